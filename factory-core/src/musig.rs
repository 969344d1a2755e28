//! MuSig2 (BIP 327) for key-path spends of P2TR outputs without a script path (BIP 86).
//!
//! This is the only module that touches the `secp256k1` release that has MuSig2; the rest of the crate, like
//! `bitcoin` and LDK, speaks an older one, so keys cross the border as bytes. Keys are sorted (`KeySort`) and the
//! aggregate is tweaked with the BIP 341 `TapTweak` of an empty script tree, so that no script path can exist.
//!
//! Two rules are kept by types. A [`SecretSession`] signs once: signing consumes it, it is neither `Clone` nor
//! serializable. And a session knows its key pair, so the underlying C code, which aborts the process on a key
//! that does not match its nonce, never sees a wrong one.

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey};
use bitcoin::taproot::{TapNodeHash, TapTweakHash};
use bitcoin::ScriptBuf;
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};
use secp256k1_musig as secp;
use secp256k1_musig::musig as sys;

use crate::faults::{note, switch};
use crate::Error;

/// A public nonce or an aggregate of public nonces, as BIP 327 serializes it.
pub type NonceBytes = [u8; 66];
/// A partial signature, as BIP 327 serializes it.
pub type PartialBytes = [u8; 32];
/// A final BIP 340 signature.
pub type SignatureBytes = [u8; 64];

/// The file in which a process under test notes each public nonce: when it is drawn, and when it signs.
pub const NONCES: &str = "nonces";

/// The aggregate of a set of signers, as an output key that only all of them together can spend.
#[derive(Clone)]
pub struct AggKey {
    signers: Vec<PublicKey>,
    internal: XOnlyPublicKey,
    output: XOnlyPublicKey,
    cache: sys::KeyAggCache,
}

impl std::fmt::Debug for AggKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AggKey").field("signers", &self.signers.len()).field("output", &self.output).finish()
    }
}

impl PartialEq for AggKey {
    fn eq(&self, other: &Self) -> bool {
        self.output == other.output && self.signers == other.signers
    }
}

impl Eq for AggKey {}

fn to_new(key: &PublicKey) -> Result<secp::PublicKey, Error> {
    // Uncompressed: no square root on the way.
    secp::PublicKey::from_byte_array_uncompressed(key.serialize_uncompressed())
        .map_err(|_| Error::NotASigner { key: key.to_string() })
}

fn to_old(key: &secp::XOnlyPublicKey) -> Result<XOnlyPublicKey, Error> {
    XOnlyPublicKey::from_slice(&key.to_byte_array()).map_err(|_| Error::Mismatch { what: "aggregate key" })
}

impl AggKey {
    /// Aggregates `keys` after sorting them by their compressed bytes (BIP 327 `KeySort`), and tweaks the result
    /// as BIP 86 asks.
    ///
    /// # Errors
    /// Fewer than two keys, or a key listed twice.
    pub fn new(keys: &[PublicKey]) -> Result<Self, Error> {
        if keys.len() < 2 {
            return Err(Error::TooFewSigners { got: keys.len() });
        }
        let mut signers = keys.to_vec();
        signers.sort_by_cached_key(PublicKey::serialize);
        for pair in signers.windows(2) {
            if let [a, b] = pair {
                if a == b && !switch("client.plan.keys") {
                    return Err(Error::DuplicateKey { key: a.to_string() });
                }
            }
        }
        let converted = signers.iter().map(to_new).collect::<Result<Vec<_>, _>>()?;
        let mut cache = sys::KeyAggCache::new(&converted.iter().collect::<Vec<_>>());
        let internal = to_old(&cache.agg_pk())?;
        // No script path.
        let scripts = switch("keys.script_path").then(TapNodeHash::all_zeros);
        let tweak = TapTweakHash::from_key_and_tweak(internal, scripts).to_byte_array();
        let tweak =
            secp::Scalar::from_be_bytes(tweak).map_err(|_| Error::Overflow { field: "taproot tweak" })?;
        cache
            .pubkey_xonly_tweak_add(&tweak)
            .map_err(|_| Error::Overflow { field: "tweaked aggregate key" })?;
        let output = to_old(&cache.agg_pk())?;
        Ok(Self { signers, internal, output, cache })
    }

    /// The signers, in the order of BIP 327 `KeySort`. Partial signatures may be aggregated in any order.
    pub fn signers(&self) -> &[PublicKey] {
        &self.signers
    }

    /// Whether `key` is one of the signers.
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.signers.binary_search_by_key(&key.serialize(), PublicKey::serialize).is_ok()
    }

    /// The aggregate before the BIP 86 tweak.
    pub fn internal(&self) -> XOnlyPublicKey {
        self.internal
    }

    /// The P2TR output key.
    pub fn output(&self) -> XOnlyPublicKey {
        self.output
    }

    /// The P2TR script of the output key.
    pub fn script_pubkey(&self) -> ScriptBuf {
        ScriptBuf::new_p2tr_tweaked(bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(self.output))
    }

    fn session(&self, aggregate: &AggregateNonce, message: &[u8; 32]) -> Session {
        Session(sys::Session::new(&self.cache, aggregate.0, message))
    }
}

/// The public key of a 32-byte secret key.
///
/// # Errors
/// [`Error::BadSecretKey`] for zero or a value not below the group order.
pub fn public_key(secret: &[u8; 32]) -> Result<PublicKey, Error> {
    Ok(Signer::new(secret)?.public)
}

/// A signer's key pair.
pub struct Signer {
    pair: secp::Keypair,
    public: PublicKey,
}

impl Signer {
    /// From a 32-byte secret key.
    ///
    /// # Errors
    /// As [`public_key`].
    pub fn new(secret: &[u8; 32]) -> Result<Self, Error> {
        let pair = secp::Keypair::from_secret_bytes(*secret).map_err(|_| Error::BadSecretKey)?;
        let public =
            PublicKey::from_slice(&pair.public_key().serialize()).map_err(|_| Error::BadSecretKey)?;
        Ok(Self { pair, public })
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }
}

/// A public nonce that was read: two points, as reading them takes two square roots.
#[derive(Clone, Copy)]
pub struct PublicNonce(sys::PublicNonce);

impl PublicNonce {
    /// Reads a nonce.
    ///
    /// # Errors
    /// [`Error::BadNonce`] with index 0.
    pub fn read(nonce: &NonceBytes) -> Result<Self, Error> {
        sys::PublicNonce::from_byte_array(nonce).map(Self).map_err(|_| Error::BadNonce { index: 0 })
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> NonceBytes {
        self.0.serialize()
    }
}

/// The sum of everybody's nonces that was read or computed.
#[derive(Clone, Copy)]
pub struct AggregateNonce(sys::AggregatedNonce);

impl AggregateNonce {
    /// Reads an aggregate nonce. The point at infinity is allowed, as BIP 327 asks.
    ///
    /// # Errors
    /// [`Error::BadNonce`] with index 0.
    pub fn read(nonce: &NonceBytes) -> Result<Self, Error> {
        sys::AggregatedNonce::from_byte_array(nonce).map(Self).map_err(|_| Error::BadNonce { index: 0 })
    }

    /// Adds nonces up (BIP 327 `NonceAgg`). The order does not matter.
    ///
    /// # Errors
    /// An empty list.
    pub fn sum(nonces: &[PublicNonce]) -> Result<Self, Error> {
        if nonces.is_empty() {
            return Err(Error::Empty { what: "list of nonces" });
        }
        Ok(Self(sys::AggregatedNonce::new(&nonces.iter().map(|n| &n.0).collect::<Vec<_>>())))
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> NonceBytes {
        self.0.serialize()
    }
}

/// One signer's secret half of one signing session: it can sign one message once.
pub struct SecretSession {
    nonce: sys::SecretNonce,
    public: PublicNonce,
    pair: secp::Keypair,
    output: XOnlyPublicKey,
    message: [u8; 32],
}

impl std::fmt::Debug for SecretSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretSession").finish_non_exhaustive()
    }
}

impl SecretSession {
    /// Starts a session: draws a nonce bound to the key, the aggregate and the message (BIP 327 `NonceGen`).
    ///
    /// # Errors
    /// A bad secret key, or one whose public key is not a signer of `key`.
    pub fn new<R: RngCore + CryptoRng>(
        secret: &[u8; 32],
        key: &AggKey,
        message: [u8; 32],
        rng: &mut R,
    ) -> Result<Self, Error> {
        Self::of(&Signer::new(secret)?, key, message, rng)
    }

    /// As [`SecretSession::new`], for a signer of many sessions.
    ///
    /// # Errors
    /// As [`SecretSession::new`].
    pub fn of<R: RngCore + CryptoRng>(
        signer: &Signer,
        key: &AggKey,
        message: [u8; 32],
        rng: &mut R,
    ) -> Result<Self, Error> {
        Self::draw(signer, key, Some(message), rng)
    }

    fn draw<R: RngCore + CryptoRng>(
        signer: &Signer,
        key: &AggKey,
        message: Option<[u8; 32]>,
        rng: &mut R,
    ) -> Result<Self, Error> {
        let Signer { pair, public } = signer;
        if !key.contains(public) {
            return Err(Error::NotASigner { key: public.to_string() });
        }
        let fixed = switch("nonce.fixed");
        let random = match fixed {
            true => sys::SessionSecretRand::from_rng(&mut StdRng::from_seed([7; 32])),
            false => sys::SessionSecretRand::from_rng(rng),
        };
        let (nonce, public) = sys::new_nonce_pair(
            random,
            Some(&key.cache).filter(|_| !fixed),
            Some(pair.secret_key()),
            pair.public_key(),
            message.as_ref().filter(|_| !fixed),
            None,
        );
        note(NONCES, || format!("drawn {}", hex::encode(public.serialize())));
        let message = message.unwrap_or_default();
        Ok(Self { nonce, public: PublicNonce(public), pair: *pair, output: key.output, message })
    }

    /// The nonce to publish.
    pub fn public_nonce(&self) -> NonceBytes {
        self.public.to_bytes()
    }

    /// The nonce to publish, to be added to others.
    pub(crate) fn public(&self) -> PublicNonce {
        self.public
    }

    /// Signs with the aggregate of everybody's nonces. The session is gone afterwards, also on an error.
    ///
    /// # Errors
    /// An aggregate nonce that does not parse, or a `key` other than the one the session was started for.
    pub fn sign(self, key: &AggKey, aggregate: &NonceBytes) -> Result<PartialBytes, Error> {
        self.sign_in(key, &AggregateNonce::read(aggregate)?).map(|(partial, _)| partial)
    }

    /// As [`SecretSession::sign`]; returns also what is needed to add partial signatures up.
    ///
    /// # Errors
    /// As [`SecretSession::sign`].
    pub fn sign_in(self, key: &AggKey, aggregate: &AggregateNonce) -> Result<(PartialBytes, Session), Error> {
        if key.output != self.output {
            return Err(Error::Mismatch { what: "aggregate key of the session" });
        }
        let session = key.session(aggregate, &self.message);
        note(NONCES, || format!("signed {}", hex::encode(self.public.0.serialize())));
        Ok((session.0.partial_sign(self.nonce, &self.pair, &key.cache).serialize(), session))
    }
}

/// One signer's secret half of a signing session whose message is not known yet. BIP 327 allows that: two nonces and
/// their binding to the message when signing are what it has for it.
pub struct EarlySession(SecretSession);

impl std::fmt::Debug for EarlySession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EarlySession").finish_non_exhaustive()
    }
}

impl EarlySession {
    /// Draws a nonce bound to the key and the aggregate.
    ///
    /// # Errors
    /// As [`SecretSession::new`].
    pub fn of<R: RngCore + CryptoRng>(signer: &Signer, key: &AggKey, rng: &mut R) -> Result<Self, Error> {
        SecretSession::draw(signer, key, None, rng).map(Self)
    }

    /// The nonce to publish.
    pub fn public_nonce(&self) -> NonceBytes {
        self.0.public_nonce()
    }

    /// The session for one message. The nonce cannot be used for another.
    pub fn bind(self, message: [u8; 32]) -> SecretSession {
        SecretSession { message, ..self.0 }
    }
}

/// The public half of a signing session: key, message and everybody's nonces.
#[derive(Clone, Copy)]
pub struct Session(sys::Session);

impl Session {
    /// Adds partial signatures up to a signature (BIP 327 `PartialSigAgg`). The result is **not** verified here: see
    /// [`verify_final`].
    ///
    /// # Errors
    /// A number of partials other than the number of signers, or the position of one that does not parse.
    pub fn aggregate(&self, key: &AggKey, partials: &[PartialBytes]) -> Result<SignatureBytes, Error> {
        if partials.len() != key.signers.len() {
            return Err(Error::Count {
                what: "list of partial signatures",
                got: partials.len(),
                expected: key.signers.len(),
            });
        }
        let read =
            |(index, p)| sys::PartialSignature::from_byte_array(p).map_err(|_| Error::BadPartial { index });
        let parsed = partials.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        let signature = self.0.partial_sig_agg(&parsed.iter().collect::<Vec<_>>());
        Ok(signature.assume_valid().to_byte_array())
    }
}

/// Aggregates public nonces (BIP 327 `NonceAgg`). The order does not matter.
///
/// # Errors
/// [`Error::BadNonce`] with the position of the first one that does not parse, or an empty list.
pub fn aggregate_nonces(nonces: &[NonceBytes]) -> Result<NonceBytes, Error> {
    let read = |(index, n)| PublicNonce::read(n).map_err(|_| Error::BadNonce { index });
    let parsed = nonces.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(AggregateNonce::sum(&parsed)?.to_bytes())
}

/// Checks that a public nonce parses.
///
/// # Errors
/// [`Error::BadNonce`] with index 0.
pub fn check_nonce(nonce: &NonceBytes) -> Result<(), Error> {
    PublicNonce::read(nonce).map(|_| ())
}

/// Checks that an aggregate nonce parses. The point at infinity is allowed, as BIP 327 asks.
///
/// # Errors
/// [`Error::BadNonce`] with index 0.
pub fn check_aggregate_nonce(nonce: &NonceBytes) -> Result<(), Error> {
    AggregateNonce::read(nonce).map(|_| ())
}

/// Checks that a partial signature parses.
///
/// # Errors
/// [`Error::BadPartial`] with index 0.
pub fn check_partial(partial: &PartialBytes) -> Result<(), Error> {
    sys::PartialSignature::from_byte_array(partial).map(|_| ()).map_err(|_| Error::BadPartial { index: 0 })
}

/// Adds partial signatures up to a signature, as [`Session::aggregate`].
///
/// # Errors
/// As [`Session::aggregate`], or an aggregate nonce that does not parse.
pub fn aggregate_partials(
    key: &AggKey,
    message: &[u8; 32],
    aggregate: &NonceBytes,
    partials: &[PartialBytes],
) -> Result<SignatureBytes, Error> {
    key.session(&AggregateNonce::read(aggregate)?, message).aggregate(key, partials)
}

/// Checks one signer's partial signature (BIP 327 `PartialSigVerify`), to name a culprit.
///
/// # Errors
/// [`Error::WrongPartial`] if it is wrong, [`Error::BadNonce`] or [`Error::BadPartial`] if something does not
/// parse, [`Error::NotASigner`] for a stranger's key.
pub fn verify_partial(
    key: &AggKey,
    message: &[u8; 32],
    aggregate: &NonceBytes,
    signer: &PublicKey,
    nonce: &NonceBytes,
    partial: &PartialBytes,
) -> Result<(), Error> {
    if !key.contains(signer) {
        return Err(Error::NotASigner { key: signer.to_string() });
    }
    let partial =
        sys::PartialSignature::from_byte_array(partial).map_err(|_| Error::BadPartial { index: 0 })?;
    let nonce = PublicNonce::read(nonce)?;
    let session = key.session(&AggregateNonce::read(aggregate)?, message);
    if session.0.partial_verify(&key.cache, &partial, &nonce.0, to_new(signer)?) {
        Ok(())
    } else {
        Err(Error::WrongPartial { index: 0 })
    }
}

/// Checks a final signature under the output key (BIP 340).
///
/// # Errors
/// [`Error::BadSignature`].
pub fn verify_final(key: &AggKey, message: &[u8; 32], signature: &SignatureBytes) -> Result<(), Error> {
    secp::schnorr::verify(
        &secp::schnorr::Signature::from_byte_array(*signature),
        message,
        &key.cache.agg_pk(),
    )
    .map_err(|_| Error::BadSignature { what: "message".into() })
}

#[cfg(test)]
mod tests;
