//! Keys: one seed, from it LDK's keys, the wallet's and one hardened key per factory.
//!
//! [`Keys`] is what LDK sees as entropy source, node signer, signer provider and output spender. It
//! hands out [`FactorySigner`]s, so every channel signature of the node passes through our code, and
//! it sends LDK's own payouts to the on-chain wallet.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::bip32::{ChildNumber, Xpriv};
use bitcoin::hashes::{sha256, Hash};
use bitcoin::secp256k1::ecdh::SharedSecret;
use bitcoin::secp256k1::ecdsa::{RecoverableSignature, Signature};
use bitcoin::secp256k1::{schnorr, All, PublicKey, Scalar, Secp256k1, SecretKey};
use bitcoin::{Network, ScriptBuf, Transaction, TxOut};
use lightning::ln::inbound_payment::ExpandedKey;
use lightning::ln::msgs::UnsignedGossipMessage;
use lightning::ln::script::ShutdownScript;
use lightning::offers::invoice::UnsignedBolt12Invoice;
use lightning::sign::{
    EntropySource, InMemorySigner, KeysManager, NodeSigner, OutputSpender, PeerStorageKey, ReceiveAuthKey,
    Recipient, SignerProvider, SpendableOutputDescriptor,
};
use lightning_invoice::RawBolt11Invoice;

use crate::error::Error;
use crate::ldk::{Commitments, FactorySigner, HeldHtlcs, Mapping};
use crate::store::private_dir;
use crate::util::unix_now;
use crate::wallet::Wallet;

/// Name of the seed file in the data directory.
const SEED_FILE: &str = "seed";
/// Hardened first step of factory keys: m/525'/a'/b'/c'/d'/e'.
const FACTORY_PURPOSE: u32 = 525;

/// 32 bytes from which every key of the node follows.
pub(crate) struct Seed([u8; 32]);

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.display().to_string(), source }
}

/// Makes a new seed file, readable by its owner only.
pub(crate) fn create_seed(data_dir: &Path) -> Result<Seed, Error> {
    private_dir(data_dir).map_err(io_error(data_dir))?;
    let path = data_dir.join(SEED_FILE);
    if path.exists() {
        return Err(Error::Conflict(format!("{} exists already", path.display())));
    }
    let bytes: [u8; 32] = rand::random();
    let new = data_dir.join("seed.new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&new).map_err(io_error(&new))?;
    file.write_all(hex::encode(bytes).as_bytes()).and_then(|()| file.sync_all()).map_err(io_error(&new))?;
    fs::rename(&new, &path).map_err(io_error(&path))?;
    // The name has to be on disk too before anybody pays to a key of it.
    fs::File::open(data_dir).and_then(|d| d.sync_all()).map_err(io_error(data_dir))?;
    Ok(Seed(bytes))
}

/// Reads the seed file, or makes one when there is neither a seed nor a store.
pub(crate) fn load_seed(data_dir: &Path, store_exists: bool) -> Result<Seed, Error> {
    let path = data_dir.join(SEED_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let mut bytes = [0u8; 32];
            hex::decode_to_slice(text.trim(), &mut bytes).map_err(|e| Error::Corrupt {
                key: path.display().to_string(),
                reason: format!("not 32 bytes in hex: {e}"),
            })?;
            Ok(Seed(bytes))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !store_exists => create_seed(data_dir),
        Err(e) => Err(io_error(&path)(e)),
    }
}

impl Seed {
    /// BIP 32 root of this seed.
    pub(crate) fn root(&self, network: Network) -> Result<Xpriv, Error> {
        Xpriv::new_master(network, &self.0).map_err(|e| Error::Wallet(e.to_string()))
    }
}

/// All key material of the node.
pub struct Keys {
    ldk: KeysManager,
    root: Xpriv,
    secp: Secp256k1<All>,
    wallet: Arc<Wallet>,
    held: Arc<HeldHtlcs>,
    mapping: Arc<Mapping>,
    commitments: Arc<Commitments>,
}

impl Keys {
    pub(crate) fn new(
        seed: &Seed,
        network: Network,
        wallet: Arc<Wallet>,
        held: Arc<HeldHtlcs>,
        mapping: Arc<Mapping>,
        commitments: Arc<Commitments>,
    ) -> Result<Self, Error> {
        let now = std::time::SystemTime::now();
        let nanos = now.duration_since(std::time::UNIX_EPOCH).map(|d| d.subsec_nanos()).unwrap_or(0);
        Ok(Self {
            ldk: KeysManager::new(&seed.0, unix_now(), nanos, true),
            root: seed.root(network)?,
            secp: Secp256k1::new(),
            wallet,
            held,
            mapping,
            commitments,
        })
    }

    /// The secret key of this node for one factory, hardened-derived from `salt`. The salt is random,
    /// made by this node itself and stored with the factory, so that nobody can make two factories
    /// share a key.
    ///
    /// # Errors
    /// [`Error::Wallet`] with negligible probability (invalid child key).
    pub(crate) fn factory_key(&self, salt: &[u8; 32]) -> Result<SecretKey, Error> {
        let digest = sha256::Hash::hash(salt).to_byte_array();
        let mut path = vec![ChildNumber::from_hardened_idx(FACTORY_PURPOSE)];
        for chunk in digest.chunks_exact(4).take(5) {
            let word = chunk.iter().fold(0u32, |acc, b| (acc << 8) | u32::from(*b)) & 0x7fff_ffff;
            path.push(ChildNumber::from_hardened_idx(word));
        }
        let path: Vec<ChildNumber> =
            path.into_iter().collect::<Result<_, _>>().map_err(|e| Error::Wallet(e.to_string()))?;
        let key = self.root.derive_priv(&self.secp, &path).map_err(|e| Error::Wallet(e.to_string()))?;
        Ok(key.private_key)
    }

    /// This node's id.
    pub(crate) fn node_id(&self) -> PublicKey {
        self.ldk.get_node_secret_key().public_key(&self.secp)
    }

    /// LDK's key for encrypted peer storage.
    pub(crate) fn peer_storage_key(&self) -> PeerStorageKey {
        self.ldk.get_peer_storage_key()
    }

    /// LDK's own signer of a channel.
    pub(crate) fn channel_signer(&self, channel_keys_id: [u8; 32]) -> InMemorySigner {
        self.ldk.derive_channel_signer(channel_keys_id)
    }

    /// Fresh random bytes.
    pub(crate) fn random(&self) -> [u8; 32] {
        self.ldk.get_secure_random_bytes()
    }
}

impl EntropySource for Keys {
    fn get_secure_random_bytes(&self) -> [u8; 32] {
        self.ldk.get_secure_random_bytes()
    }
}

impl NodeSigner for Keys {
    fn get_expanded_key(&self) -> ExpandedKey {
        self.ldk.get_expanded_key()
    }
    fn get_peer_storage_key(&self) -> PeerStorageKey {
        self.ldk.get_peer_storage_key()
    }
    fn get_receive_auth_key(&self) -> ReceiveAuthKey {
        self.ldk.get_receive_auth_key()
    }
    fn get_node_id(&self, recipient: Recipient) -> Result<PublicKey, ()> {
        self.ldk.get_node_id(recipient)
    }
    fn ecdh(
        &self,
        recipient: Recipient,
        other: &PublicKey,
        tweak: Option<&Scalar>,
    ) -> Result<SharedSecret, ()> {
        self.ldk.ecdh(recipient, other, tweak)
    }
    fn sign_invoice(
        &self,
        invoice: &RawBolt11Invoice,
        recipient: Recipient,
    ) -> Result<RecoverableSignature, ()> {
        self.ldk.sign_invoice(invoice, recipient)
    }
    fn sign_bolt12_invoice(&self, invoice: &UnsignedBolt12Invoice) -> Result<schnorr::Signature, ()> {
        self.ldk.sign_bolt12_invoice(invoice)
    }
    fn sign_gossip_message(&self, msg: UnsignedGossipMessage) -> Result<Signature, ()> {
        self.ldk.sign_gossip_message(msg)
    }
    fn sign_message(&self, msg: &[u8]) -> Result<String, ()> {
        self.ldk.sign_message(msg)
    }
}

impl OutputSpender for Keys {
    fn spend_spendable_outputs(
        &self,
        descriptors: &[&SpendableOutputDescriptor],
        outputs: Vec<TxOut>,
        change: ScriptBuf,
        feerate_sat_per_1000_weight: u32,
        locktime: Option<LockTime>,
        secp: &Secp256k1<All>,
    ) -> Result<Transaction, ()> {
        self.ldk.spend_spendable_outputs(
            descriptors,
            outputs,
            change,
            feerate_sat_per_1000_weight,
            locktime,
            secp,
        )
    }
}

impl SignerProvider for Keys {
    type EcdsaSigner = FactorySigner;

    fn generate_channel_keys_id(&self, inbound: bool, user_channel_id: u128) -> [u8; 32] {
        self.ldk.generate_channel_keys_id(inbound, user_channel_id)
    }

    fn derive_channel_signer(&self, channel_keys_id: [u8; 32]) -> FactorySigner {
        FactorySigner::new(
            self.channel_signer(channel_keys_id),
            Arc::clone(&self.held),
            Arc::clone(&self.mapping),
            Arc::clone(&self.commitments),
        )
    }

    fn get_destination_script(&self, _channel_keys_id: [u8; 32]) -> Result<ScriptBuf, ()> {
        self.wallet.new_script().map_err(|e| tracing::error!(error = %e, "no destination script"))
    }

    fn get_shutdown_scriptpubkey(&self) -> Result<ShutdownScript, ()> {
        let script =
            self.wallet.new_script().map_err(|e| tracing::error!(error = %e, "no shutdown script"))?;
        ShutdownScript::try_from(script).map_err(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_file_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let seed = create_seed(dir.path()).unwrap();
        assert!(matches!(create_seed(dir.path()), Err(Error::Conflict(_))));
        assert_eq!(load_seed(dir.path(), true).unwrap().0, seed.0);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(dir.path().join(SEED_FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let other = tempfile::tempdir().unwrap();
        assert!(load_seed(other.path(), true).is_err(), "a store without its seed must not get a new one");
    }
}
