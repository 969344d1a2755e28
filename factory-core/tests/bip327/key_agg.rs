//! `KeySort` and `KeyAgg`: aggregate keys, and lists of keys and tweaks that make none.

use super::*;

#[derive(Deserialize)]
struct Vectors {
    pubkeys: Vec<Hex>,
    tweaks: Vec<Hex>,
    valid: Vec<Valid>,
    error: Vec<Bad>,
}

#[derive(Deserialize)]
struct Valid {
    key_indices: Vec<usize>,
    expected: Hex,
}

#[derive(Deserialize)]
struct Bad {
    key_indices: Vec<usize>,
    tweak_indices: Vec<usize>,
    is_xonly: Vec<bool>,
    error: Fault,
}

fn vectors() -> Vectors {
    load(include_str!("../vectors/bip327/key_agg_vectors.json"))
}

#[test]
fn secp256k1() {
    let v = vectors();
    assert_eq!((v.valid.len(), v.error.len()), (4, 5));
    for case in &v.valid {
        let cache = aggregate(&v.pubkeys, &case.key_indices, &v.tweaks, &[], &[]).unwrap();
        assert_eq!(cache.agg_pk().to_byte_array(), case.expected.array());
    }
    for case in &v.error {
        let got = aggregate(&v.pubkeys, &case.key_indices, &v.tweaks, &case.tweak_indices, &case.is_xonly);
        assert_eq!(got.map(|_| ()), Err(case.error));
    }
}

#[test]
fn factory_core() {
    let v = vectors();
    let mut twice = 0;
    for case in &v.valid {
        let keys = old_keys(&v.pubkeys, &case.key_indices).unwrap();
        let key = AggKey::new(&keys);
        if (1..keys.len()).any(|i| keys[..i].contains(&keys[i])) {
            assert!(matches!(key, Err(Error::DuplicateKey { .. })));
            twice += 1;
        } else {
            // Its keys are not in order: the aggregate is another one than the vector's.
            assert_ne!(key.unwrap().internal().serialize(), case.expected.array());
        }
    }
    assert_eq!(twice, 2);

    // `AggKey` takes keys that were parsed: a bad one does not get that far.
    let mut refused = 0;
    for case in v.error.iter().filter(|case| case.error == Fault::Pubkey) {
        old_keys(&v.pubkeys, &case.key_indices).unwrap_err();
        refused += 1;
    }
    assert_eq!(refused, 3);
}

#[derive(Deserialize)]
struct SortVector {
    pubkeys: Vec<Hex>,
    sorted_pubkeys: Vec<Hex>,
}

#[test]
fn key_sort() {
    let v: SortVector = load(include_str!("../vectors/bip327/key_sort_vectors.json"));
    assert_eq!((v.pubkeys.len(), v.sorted_pubkeys.len()), (6, 6));
    let keys: Vec<_> = v.pubkeys.iter().map(|key| secp::PublicKey::from_slice(&key.0).unwrap()).collect();
    let mut sorted: Vec<_> = keys.iter().collect();
    secp::sort_pubkeys(&mut sorted);
    assert!(sorted.iter().map(|key| key.serialize()).eq(v.sorted_pubkeys.iter().map(Hex::array)));

    // Without the key that the vector lists twice, first and last.
    let keys = old_keys(&v.pubkeys, &[0, 1, 2, 3, 4]).unwrap();
    let mut expected: Vec<[u8; 33]> = v.sorted_pubkeys.iter().map(Hex::array).collect();
    expected.dedup();
    assert_eq!(expected.len(), 5);
    let key = AggKey::new(&keys).unwrap();
    assert!(key.signers().iter().map(old::PublicKey::serialize).eq(expected));
}
