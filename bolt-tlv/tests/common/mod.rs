//! What the test files share: strategies that make messages, and damage done to encoded ones.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

pub mod blip56;
pub mod payload;

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::Txid;
use proptest::prelude::*;

/// The generator of secp256k1, compressed.
pub const GENERATOR: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

pub fn generator() -> PublicKey {
    GENERATOR.parse().unwrap()
}

pub fn key() -> impl Strategy<Value = PublicKey> {
    (1u64..).prop_map(|number| {
        let mut secret = [0; 32];
        secret[24..].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_secret_key(&Secp256k1::signing_only(), &SecretKey::from_slice(&secret).unwrap())
    })
}

pub fn bytes<const N: usize>() -> impl Strategy<Value = [u8; N]> {
    proptest::collection::vec(any::<u8>(), N).prop_map(|bytes| bytes.try_into().unwrap())
}

pub fn txid() -> impl Strategy<Value = Txid> {
    bytes().prop_map(Txid::from_byte_array)
}

/// One thing done to an encoded message.
#[derive(Clone, Debug)]
pub enum Damage {
    Flip(usize, u8),
    Insert(usize, u8),
    Remove(usize),
    Truncate(usize),
    Repeat(usize),
}

pub fn damage() -> impl Strategy<Value = Vec<Damage>> {
    // Mostly near the front, where numbers, types and lengths are.
    let place = || prop_oneof![0usize..100, any::<usize>()];
    let one = prop_oneof![
        (place(), 1u8..).prop_map(|(at, by)| Damage::Flip(at, by)),
        (place(), any::<u8>()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        place().prop_map(Damage::Remove),
        place().prop_map(Damage::Truncate),
        place().prop_map(Damage::Repeat),
    ];
    proptest::collection::vec(one, 1..4)
}

pub fn apply(damages: &[Damage], bytes: &mut Vec<u8>) {
    for damage in damages {
        let len = bytes.len().max(1);
        match *damage {
            _ if bytes.is_empty() => {}
            Damage::Flip(at, by) => bytes[at % len] ^= by,
            Damage::Insert(at, byte) => bytes.insert(at % len, byte),
            Damage::Remove(at) => drop(bytes.remove(at % len)),
            Damage::Truncate(at) => bytes.truncate(at % len),
            Damage::Repeat(at) => bytes.extend_from_within(at % len..),
        }
    }
}
