//! A Lightning connection of nobody: BOLT 8 by hand, to say on it what no node would say.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use bitcoin::hashes::{sha256, Hash, HashEngine, Hmac, HmacEngine};
use bitcoin::secp256k1::ecdh::SharedSecret;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use chacha20_poly1305::{ChaCha20Poly1305, Key, Nonce};

const TAG: usize = 16;
/// A key is used for this many encryptions.
const ROTATION: u64 = 1000;
/// How long the other side may be silent where an answer is due.
const PATIENCE: Duration = Duration::from_secs(30);

/// An encrypted connection.
#[derive(Debug)]
pub struct Noise {
    stream: TcpStream,
    out: Cipher,
    back: Cipher,
}

#[derive(Debug)]
struct Cipher {
    chain: [u8; 32],
    key: [u8; 32],
    used: u64,
}

/// HKDF-SHA256 with two outputs.
fn derive(salt: &[u8; 32], secret: &[u8]) -> ([u8; 32], [u8; 32]) {
    let mac = |key: &[u8], parts: &[&[u8]]| {
        let mut engine = HmacEngine::<sha256::Hash>::new(key);
        parts.iter().for_each(|part| engine.input(part));
        Hmac::from_engine(engine).to_byte_array()
    };
    let pseudo = mac(salt, &[secret]);
    let first = mac(&pseudo, &[&[1]]);
    let second = mac(&pseudo, &[&first, &[2]]);
    (first, second)
}

fn mix(hash: &[u8; 32], bytes: &[u8]) -> [u8; 32] {
    let mut engine = sha256::Hash::engine();
    engine.input(hash);
    engine.input(bytes);
    sha256::Hash::from_engine(engine).to_byte_array()
}

fn aead(key: &[u8; 32], counter: u64) -> ChaCha20Poly1305 {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    ChaCha20Poly1305::new(Key::new(*key), Nonce::new(nonce))
}

fn seal(key: &[u8; 32], counter: u64, associated: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut bytes = plain.to_vec();
    let tag = aead(key, counter).encrypt(&mut bytes, Some(associated));
    bytes.extend_from_slice(&tag);
    bytes
}

fn unseal(key: &[u8; 32], counter: u64, associated: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
    let (text, tag) = sealed.split_last_chunk::<TAG>().ok_or_else(|| anyhow!("no tag"))?;
    let mut text = text.to_vec();
    aead(key, counter).decrypt(&mut text, *tag, Some(associated)).map_err(|e| anyhow!("decrypt: {e}"))?;
    Ok(text)
}

impl Cipher {
    fn turn(&mut self) {
        self.used += 1;
        if self.used == ROTATION {
            (self.chain, self.key) = derive(&self.chain, &self.key);
            self.used = 0;
        }
    }

    fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        let sealed = seal(&self.key, self.used, &[], plain);
        self.turn();
        sealed
    }

    fn unseal(&mut self, sealed: &[u8]) -> Result<Vec<u8>> {
        let plain = unseal(&self.key, self.used, &[], sealed)?;
        self.turn();
        Ok(plain)
    }
}

impl Noise {
    /// Connects to a node and does the handshake as the owner of `own`. Nothing is said afterwards, not even `init`.
    ///
    /// # Errors
    /// If the node does not answer, or not as it should.
    pub fn connect(address: &str, node_id: &str, own: &SecretKey) -> Result<Self> {
        let secp = Secp256k1::new();
        let theirs: PublicKey = node_id.parse().context("node id")?;
        let ephemeral = SecretKey::from_slice(&rand::random::<[u8; 32]>())?;
        let mut stream = TcpStream::connect(address).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let protocol = sha256::Hash::hash(b"Noise_XK_secp256k1_ChaChaPoly_SHA256").to_byte_array();
        let chain = protocol;
        let hash = mix(&mix(&protocol, b"lightning"), &theirs.serialize());

        let public = ephemeral.public_key(&secp).serialize();
        let hash = mix(&hash, &public);
        let (chain, key) = derive(&chain, &SharedSecret::new(&theirs, &ephemeral).secret_bytes());
        let tag = seal(&key, 0, &hash, &[]);
        let hash = mix(&hash, &tag);
        stream.write_all(&[&[0], &public[..], &tag].concat())?;

        let mut act = [0; 50];
        stream.read_exact(&mut act).context("act two")?;
        if act[0] != 0 {
            bail!("act two has version {}", act[0]);
        }
        let answer = PublicKey::from_slice(&act[1..34])?;
        let hash = mix(&hash, &act[1..34]);
        let (chain, key) = derive(&chain, &SharedSecret::new(&answer, &ephemeral).secret_bytes());
        unseal(&key, 0, &hash, &act[34..])?;
        let hash = mix(&hash, &act[34..]);

        let identity = seal(&key, 1, &hash, &own.public_key(&secp).serialize());
        let hash = mix(&hash, &identity);
        let (chain, key) = derive(&chain, &SharedSecret::new(&answer, own).secret_bytes());
        let tag = seal(&key, 0, &hash, &[]);
        stream.write_all(&[&[0], &identity[..], &tag].concat())?;
        let (out, back) = derive(&chain, &[]);
        let cipher = |key| Cipher { chain, key, used: 0 };
        Ok(Self { stream, out: cipher(out), back: cipher(back) })
    }

    /// As [`Noise::connect`], and `init` in both directions: a peer like any other.
    ///
    /// # Errors
    /// As [`Noise::connect`].
    pub fn introduced(address: &str, node_id: &str, own: &SecretKey, factories: bool) -> Result<Self> {
        let mut noise = Self::connect(address, node_id, own)?;
        noise.send(&init(factories))?;
        let first = noise.receive()?;
        if first.get(..2) != Some(&[0, 16]) {
            bail!("the first message is not init: {}", hex::encode(first));
        }
        Ok(noise)
    }

    /// Sends a message: two bytes of type, and whatever follows.
    ///
    /// # Errors
    /// If the connection is closed, or the message longer than 65535 bytes.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        let length = u16::try_from(message.len())?.to_be_bytes();
        let bytes = [self.out.seal(&length), self.out.seal(message)].concat();
        Ok(self.stream.write_all(&bytes)?)
    }

    /// Announces a message of this length and sends nothing of it.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn announce(&mut self, length: u16) -> Result<()> {
        let bytes = self.out.seal(&length.to_be_bytes());
        Ok(self.stream.write_all(&bytes)?)
    }

    /// Sends bytes as they are, not encrypted.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next message.
    ///
    /// # Errors
    /// If the connection is closed, or nothing comes for half a minute.
    pub fn receive(&mut self) -> Result<Vec<u8>> {
        let mut head = [0; 2 + TAG];
        self.stream.read_exact(&mut head)?;
        let length = self.back.unseal(&head)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let mut body = vec![0; length + TAG];
        self.stream.read_exact(&mut body)?;
        self.back.unseal(&body)
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// An `init` (BOLT 1) with the features that LDK insists on, as optional ones; with that of factories if wanted.
pub fn init(factories: bool) -> Vec<u8> {
    let mut features = [0u8; 34];
    let bits = [1, 9, 13, 15, 45].into_iter().chain(factories.then_some(271));
    for bit in bits {
        features[33 - bit / 8] |= 1 << (bit % 8);
    }
    [&[0, 16, 0, 0, 0, 34][..], &features].concat()
}
