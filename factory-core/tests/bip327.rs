//! The test vectors of BIP 327 (MuSig2), run against the library that does the mathematics (`secp256k1`, module
//! `musig`) and, as far as its interface allows, against [`factory_core::musig`].
//!
//! The files in `vectors/bip327` hold the BIP's vectors as libsecp256k1 ships them (MIT licence, the copy within
//! `secp256k1-sys` 0.14.1: `src/modules/musig/vectors.h`, generated from the BIP's JSON files; `key_sort` from
//! `src/tests.c`), turned back into JSON. The number of cases in each file is checked, so that none gets lost. In the
//! table, `fc` is `factory_core::musig`.
//!
//! | file          | in the file             | on `secp256k1`     | on `fc`                          |
//! |---------------|-------------------------|--------------------|----------------------------------|
//! | `key_sort`    | 1 valid                 | 1 valid            | 1 valid                          |
//! | `key_agg`     | 4 valid, 5 error        | 4 valid, 5 error   | 3 error (bad keys)               |
//! | `nonce_gen`   | 2 valid                 | 1 valid            | none                             |
//! | `nonce_agg`   | 2 valid, 3 error        | 2 valid, 3 error   | 2 valid, 3 error                 |
//! | `sign_verify` | 4 valid                 | 4 valid            | none                             |
//! |               | 6 signing errors        | 5 error            | 5 error                          |
//! |               | 3 failing verifications | 3 error            | 1 error (signature out of range) |
//! |               | 2 verification errors   | 2 error            | 2 error                          |
//! | `tweak`       | 5 valid, 1 error        | 5 valid, 1 error   | none                             |
//! | `sig_agg`     | 4 valid, 1 error        | 4 valid, 1 error   | 1 valid (untweaked key), 1 error |
//! | total         | 22 valid, 21 error      | 21 valid, 20 error | 4 valid, 15 error                |
//!
//! Five of the error cases on `fc` are bad public keys: the key type that `fc` takes refuses them before it sees them.
//!
//! What cannot run, and why:
//!
//! - **Messages of other lengths than 32 bytes** (2 cases of `sign_verify`, 2 of `nonce_gen`) and the BIP's optional
//!   **deterministic signing** (9 cases): libsecp256k1 has neither, and its file leaves them out. What is signed here
//!   is always a 32-byte sighash.
//! - **Nonce generation for a made-up aggregate key** (1 case): `secp256k1` takes the aggregate key as the cache of a
//!   real aggregation only. `fc` draws nonces from a generator that the caller gives and always binds them to a
//!   secret key, an aggregate and a message; no vector has that form.
//! - **A signer who is not among the keys** (1 signing error): the BIP calls the check optional and `secp256k1` does
//!   not make it. `fc` does, so the case runs there.
//! - **A used secret nonce** (1 signing error): `fc` cannot express it, since signing consumes the session.
//!   `secp256k1` ends the process, which is what the test looks for, in a process of its own.
//! - **Values that depend on the order of keys or on a tweak**: [`AggKey`] sorts its keys, refuses a key that is listed
//!   twice and always applies the BIP 86 tweak; no vector does all that. Hence no partial or final signature of the BIP
//!   can come out of `fc`, and a wrong partial would be wrong there for more reasons than the vector's. What can be
//!   compared is the untweaked aggregate in one `sig_agg` case whose keys happen to be in order. The four valid
//!   `key_agg` cases show the difference instead: `fc` refuses the two that list a key twice and sorts the other two,
//!   and the `key_sort` case runs on `fc` without its repeated key.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "bip327/key_agg.rs"]
mod key_agg;
#[path = "bip327/nonce_agg.rs"]
mod nonce_agg;
#[path = "bip327/nonce_gen.rs"]
mod nonce_gen;
#[path = "bip327/sig_agg.rs"]
mod sig_agg;
#[path = "bip327/sign_verify.rs"]
mod sign_verify;
#[path = "bip327/tweak.rs"]
mod tweak;

use bitcoin::secp256k1 as old;
use factory_core::musig::{self, AggKey, SecretSession};
use factory_core::Error;
use rand::rngs::StdRng;
use rand::SeedableRng;
use secp256k1_musig as secp;
use secp256k1_musig::musig as sys;
use serde::de::DeserializeOwned;
use serde::Deserialize;

/// A byte string of a vector, of any length.
#[derive(Deserialize)]
#[serde(transparent)]
struct Hex(#[serde(with = "hex")] Vec<u8>);

impl Hex {
    fn array<const N: usize>(&self) -> [u8; N] {
        self.0.as_slice().try_into().expect("length of the vector's byte string")
    }
}

/// What a vector says is wrong.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Fault {
    Pubkey,
    Tweak,
    Pubnonce,
    Aggnonce,
    Secnonce,
    Psig,
    Verify,
}

fn load<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}

/// `KeyAgg`, then `ApplyTweak` for each of the tweaks.
fn aggregate(
    keys: &[Hex],
    indices: &[usize],
    tweaks: &[Hex],
    tweak_indices: &[usize],
    is_xonly: &[bool],
) -> Result<sys::KeyAggCache, Fault> {
    let keys = indices
        .iter()
        .map(|i| secp::PublicKey::from_slice(&keys[*i].0).map_err(|_| Fault::Pubkey))
        .collect::<Result<Vec<_>, _>>()?;
    let mut cache = sys::KeyAggCache::new(&keys.iter().collect::<Vec<_>>());
    assert_eq!(tweak_indices.len(), is_xonly.len());
    for (i, is_xonly) in tweak_indices.iter().zip(is_xonly) {
        let tweak = secp::Scalar::from_be_bytes(tweaks[*i].array()).map_err(|_| Fault::Tweak)?;
        let tweaked =
            if *is_xonly { cache.pubkey_xonly_tweak_add(&tweak) } else { cache.pubkey_ec_tweak_add(&tweak) };
        tweaked.map_err(|_| Fault::Tweak)?;
    }
    Ok(cache)
}

/// The keys as `factory-core` takes them.
fn old_keys(keys: &[Hex], indices: &[usize]) -> Result<Vec<old::PublicKey>, old::Error> {
    indices.iter().map(|i| old::PublicKey::from_slice(&keys[*i].0)).collect()
}

/// A secret nonce with the scalars of a vector (k1, k2 and the compressed public key, 97 bytes). The library keeps
/// it as 4 bytes of its own, k1, k2 and the public key in a form that depends on the platform, so the scalars replace
/// those of a nonce made for the same key.
fn secret_nonce(vector: &Hex) -> sys::SecretNonce {
    let vector: [u8; 97] = vector.array();
    let key = secp::PublicKey::from_slice(&vector[64..]).unwrap();
    let seed = sys::SessionSecretRand::assume_uniformly_random([1; 32]);
    let (nonce, _) = sys::new_nonce_pair(seed, None, None, key, None, None);
    let mut bytes = nonce.dangerous_into_bytes();
    bytes[4..68].copy_from_slice(&vector[..64]);
    sys::SecretNonce::dangerous_from_bytes(bytes)
}

fn public_nonce(bytes: &Hex) -> Result<sys::PublicNonce, Fault> {
    sys::PublicNonce::from_byte_array(&bytes.array()).map_err(|_| Fault::Pubnonce)
}

fn aggregate_nonce(bytes: &Hex) -> Result<sys::AggregatedNonce, Fault> {
    sys::AggregatedNonce::from_byte_array(&bytes.array()).map_err(|_| Fault::Aggnonce)
}

fn partial(bytes: &Hex) -> Result<sys::PartialSignature, Fault> {
    sys::PartialSignature::from_byte_array(&bytes.array()).map_err(|_| Fault::Psig)
}
