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

    fn session(&self, aggregate: &NonceBytes, message: &[u8; 32]) -> Result<sys::Session, Error> {
        let nonce =
            sys::AggregatedNonce::from_byte_array(aggregate).map_err(|_| Error::BadNonce { index: 0 })?;
        Ok(sys::Session::new(&self.cache, nonce, message))
    }
}

/// The public key of a 32-byte secret key.
///
/// # Errors
/// [`Error::BadSecretKey`] for zero or a value not below the group order.
pub fn public_key(secret: &[u8; 32]) -> Result<PublicKey, Error> {
    let pair = secp::Keypair::from_secret_bytes(*secret).map_err(|_| Error::BadSecretKey)?;
    PublicKey::from_slice(&pair.public_key().serialize()).map_err(|_| Error::BadSecretKey)
}

/// One signer's secret half of one signing session: it can sign one message once.
pub struct SecretSession {
    nonce: sys::SecretNonce,
    public: NonceBytes,
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
        let own = public_key(secret)?;
        if !key.contains(&own) {
            return Err(Error::NotASigner { key: own.to_string() });
        }
        let pair = secp::Keypair::from_secret_bytes(*secret).map_err(|_| Error::BadSecretKey)?;
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
            Some(&message).filter(|_| !fixed),
            None,
        );
        let public = public.serialize();
        note(NONCES, || format!("drawn {}", hex::encode(public)));
        Ok(Self { nonce, public, pair, output: key.output, message })
    }

    /// The nonce to publish.
    pub fn public_nonce(&self) -> NonceBytes {
        self.public
    }

    /// Signs with the aggregate of everybody's nonces. The session is gone afterwards, also on an error.
    ///
    /// # Errors
    /// An aggregate nonce that does not parse, or a `key` other than the one the session was started for.
    pub fn sign(self, key: &AggKey, aggregate: &NonceBytes) -> Result<PartialBytes, Error> {
        if key.output != self.output {
            return Err(Error::Mismatch { what: "aggregate key of the session" });
        }
        let session = key.session(aggregate, &self.message)?;
        note(NONCES, || format!("signed {}", hex::encode(self.public)));
        Ok(session.partial_sign(self.nonce, &self.pair, &key.cache).serialize())
    }
}

/// Aggregates public nonces (BIP 327 `NonceAgg`). The order does not matter.
///
/// # Errors
/// [`Error::BadNonce`] with the position of the first one that does not parse, or an empty list.
pub fn aggregate_nonces(nonces: &[NonceBytes]) -> Result<NonceBytes, Error> {
    if nonces.is_empty() {
        return Err(Error::Empty { what: "list of nonces" });
    }
    let parsed = nonces
        .iter()
        .enumerate()
        .map(|(index, n)| sys::PublicNonce::from_byte_array(n).map_err(|_| Error::BadNonce { index }))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(sys::AggregatedNonce::new(&parsed.iter().collect::<Vec<_>>()).serialize())
}

/// Checks that a public nonce parses.
///
/// # Errors
/// [`Error::BadNonce`] with index 0.
pub fn check_nonce(nonce: &NonceBytes) -> Result<(), Error> {
    sys::PublicNonce::from_byte_array(nonce).map(|_| ()).map_err(|_| Error::BadNonce { index: 0 })
}

/// Checks that an aggregate nonce parses. The point at infinity is allowed, as BIP 327 asks.
///
/// # Errors
/// [`Error::BadNonce`] with index 0.
pub fn check_aggregate_nonce(nonce: &NonceBytes) -> Result<(), Error> {
    sys::AggregatedNonce::from_byte_array(nonce).map(|_| ()).map_err(|_| Error::BadNonce { index: 0 })
}

/// Checks that a partial signature parses.
///
/// # Errors
/// [`Error::BadPartial`] with index 0.
pub fn check_partial(partial: &PartialBytes) -> Result<(), Error> {
    sys::PartialSignature::from_byte_array(partial).map(|_| ()).map_err(|_| Error::BadPartial { index: 0 })
}

/// Adds partial signatures up to a signature (BIP 327 `PartialSigAgg`). The result is **not** verified here: see
/// [`verify_final`].
///
/// # Errors
/// A number of partials other than the number of signers, or the position of one that does not parse.
pub fn aggregate_partials(
    key: &AggKey,
    message: &[u8; 32],
    aggregate: &NonceBytes,
    partials: &[PartialBytes],
) -> Result<SignatureBytes, Error> {
    if partials.len() != key.signers.len() {
        return Err(Error::Count {
            what: "list of partial signatures",
            got: partials.len(),
            expected: key.signers.len(),
        });
    }
    let parsed = partials
        .iter()
        .enumerate()
        .map(|(index, p)| sys::PartialSignature::from_byte_array(p).map_err(|_| Error::BadPartial { index }))
        .collect::<Result<Vec<_>, _>>()?;
    let session = key.session(aggregate, message)?;
    let signature = session.partial_sig_agg(&parsed.iter().collect::<Vec<_>>());
    Ok(signature.assume_valid().to_byte_array())
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
    let nonce = sys::PublicNonce::from_byte_array(nonce).map_err(|_| Error::BadNonce { index: 0 })?;
    let session = key.session(aggregate, message)?;
    if session.partial_verify(&key.cache, &partial, &nonce, to_new(signer)?) {
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
mod tests {
    use super::*;
    use musig2::secp::{Point, Scalar};

    fn secret(i: u8) -> [u8; 32] {
        let mut s = [i; 32];
        s[0] = 1;
        s[31] = i.wrapping_mul(7).wrapping_add(1);
        s
    }

    fn bitcoin_accepts(output: &XOnlyPublicKey, message: &[u8; 32], signature: &SignatureBytes) -> bool {
        bitcoin::secp256k1::Secp256k1::verification_only()
            .verify_schnorr(
                &bitcoin::secp256k1::schnorr::Signature::from_slice(signature).unwrap(),
                &bitcoin::secp256k1::Message::from_digest(*message),
                output,
            )
            .is_ok()
    }

    /// The `musig2` crate is an independent implementation of the protocol: same keys, same nonces on the wire, same
    /// signature, with some signers on either side.
    #[test]
    fn agrees_with_an_independent_implementation() {
        for n in [2u8, 3, 9, 40] {
            let mut rng = StdRng::from_seed([n; 32]);
            let secrets: Vec<_> = (0..n).map(secret).collect();
            let publics: Vec<_> = secrets.iter().map(|s| public_key(s).unwrap()).collect();
            let key = AggKey::new(&publics).unwrap();
            let message = [n ^ 0x55; 32];

            let points = key.signers().iter().map(|p| Point::from_slice(&p.serialize()).unwrap());
            let oracle = musig2::KeyAggContext::new(points).unwrap();
            let plain: Point = oracle.aggregated_pubkey();
            assert_eq!(plain.serialize_xonly(), key.internal().serialize());
            let oracle = oracle.with_unspendable_taproot_tweak().unwrap();
            let tweaked: Point = oracle.aggregated_pubkey();
            assert_eq!(tweaked.serialize_xonly(), key.output().serialize());

            let mut ours = Vec::new();
            let mut theirs = Vec::new();
            let mut nonces = Vec::new();
            for (i, s) in secrets.iter().enumerate() {
                if i % 2 == 0 {
                    let session = SecretSession::new(s, &key, message, &mut rng).unwrap();
                    nonces.push(session.public_nonce());
                    ours.push((i, session));
                } else {
                    let scalar = Scalar::from_slice(s).unwrap();
                    let mut seed = [0u8; 32];
                    rng.fill_bytes(&mut seed);
                    let nonce = musig2::SecNonce::generate(seed, scalar, tweaked, message, []);
                    nonces.push(nonce.public_nonce().serialize());
                    theirs.push((i, scalar, nonce));
                }
            }
            let aggregate = aggregate_nonces(&nonces).unwrap();
            let their_aggregate = musig2::AggNonce::from_bytes(&aggregate).unwrap();
            let mut partials = vec![[0u8; 32]; secrets.len()];
            for (i, session) in ours {
                partials[i] = session.sign(&key, &aggregate).unwrap();
            }
            for (i, scalar, nonce) in theirs {
                let p: musig2::PartialSignature =
                    musig2::sign_partial(&oracle, scalar, nonce, &their_aggregate, message).unwrap();
                partials[i] = p.serialize();
            }
            for i in 0..secrets.len() {
                verify_partial(&key, &message, &aggregate, &publics[i], &nonces[i], &partials[i]).unwrap();
                let j = (i + 1) % secrets.len();
                assert_eq!(
                    verify_partial(&key, &message, &aggregate, &publics[j], &nonces[j], &partials[i]),
                    Err(Error::WrongPartial { index: 0 })
                );
            }
            let signature = aggregate_partials(&key, &message, &aggregate, &partials).unwrap();
            verify_final(&key, &message, &signature).unwrap();
            assert!(bitcoin_accepts(&key.output(), &message, &signature));
            assert!(!bitcoin_accepts(&key.internal(), &message, &signature));
            let parsed = partials.iter().map(|p| musig2::PartialSignature::from_slice(p).unwrap());
            let other: musig2::CompactSignature =
                musig2::aggregate_partial_signatures(&oracle, &their_aggregate, parsed, message).unwrap();
            assert_eq!(other.serialize(), signature);
            let mut broken = signature;
            broken[40] ^= 1;
            assert!(verify_final(&key, &message, &broken).is_err());
            assert!(verify_final(&key, &[1; 32], &signature).is_err());
        }
    }

    #[test]
    fn output_key_has_no_script_path() {
        let keys = [public_key(&secret(1)).unwrap(), public_key(&secret(2)).unwrap()];
        let key = AggKey::new(&keys).unwrap();
        let secp = bitcoin::secp256k1::Secp256k1::verification_only();
        assert_eq!(key.script_pubkey(), ScriptBuf::new_p2tr(&secp, key.internal(), None));
        let reversed = AggKey::new(&[keys[1], keys[0]]).unwrap();
        assert_eq!(key, reversed);
    }

    #[test]
    fn refuses_bad_key_lists() {
        let a = public_key(&secret(1)).unwrap();
        assert_eq!(AggKey::new(&[a]).unwrap_err(), Error::TooFewSigners { got: 1 });
        assert!(matches!(AggKey::new(&[a, a]), Err(Error::DuplicateKey { .. })));
        assert_eq!(public_key(&[0; 32]), Err(Error::BadSecretKey));
        assert_eq!(public_key(&[0xff; 32]), Err(Error::BadSecretKey));
    }

    #[test]
    fn wrong_key_is_an_error_not_an_abort() {
        let keys: Vec<_> = (1..4).map(|i| public_key(&secret(i)).unwrap()).collect();
        let mut rng = StdRng::from_seed([9; 32]);
        let key = AggKey::new(&keys[..2]).unwrap();
        let other = AggKey::new(&keys).unwrap();
        assert!(matches!(
            SecretSession::new(&secret(3), &key, [1; 32], &mut rng),
            Err(Error::NotASigner { .. })
        ));
        let session = SecretSession::new(&secret(1), &key, [1; 32], &mut rng).unwrap();
        let aggregate = session.public_nonce();
        assert_eq!(
            session.sign(&other, &aggregate),
            Err(Error::Mismatch { what: "aggregate key of the session" })
        );
    }

    /// Everything a peer sends is 66 or 32 arbitrary bytes; nonces that cancel out must not bring a process down.
    #[test]
    fn hostile_bytes_are_errors() {
        let keys: Vec<_> = (1..3).map(|i| public_key(&secret(i)).unwrap()).collect();
        let key = AggKey::new(&keys).unwrap();
        let mut rng = StdRng::from_seed([3; 32]);
        for bad in [[0u8; 66], [2u8; 66], [0xff; 66], [4u8; 66]] {
            if check_nonce(&bad).is_err() {
                assert_eq!(aggregate_nonces(&[bad]), Err(Error::BadNonce { index: 0 }));
            }
        }
        assert!(check_nonce(&[0; 66]).is_err());
        assert!(check_aggregate_nonce(&[0; 66]).is_ok());
        assert!(check_partial(&[0xff; 32]).is_err());
        assert_eq!(aggregate_nonces(&[]), Err(Error::Empty { what: "list of nonces" }));

        let honest = SecretSession::new(&secret(1), &key, [7; 32], &mut rng).unwrap();
        let mut negated = honest.public_nonce();
        negated[0] ^= 1; // 2 <-> 3: the opposite point
        negated[33] ^= 1;
        let aggregate = aggregate_nonces(&[honest.public_nonce(), negated]).unwrap();
        assert_eq!(aggregate, [0; 66]);
        let partial = honest.sign(&key, &aggregate).unwrap();
        let signature = aggregate_partials(&key, &[7; 32], &aggregate, &[partial, [1; 32]]).unwrap();
        assert!(verify_final(&key, &[7; 32], &signature).is_err());
        assert!(aggregate_partials(&key, &[7; 32], &aggregate, &[partial]).is_err());
        assert!(aggregate_partials(&key, &[7; 32], &aggregate, &[partial, [0xff; 32]]).is_err());
    }
}
