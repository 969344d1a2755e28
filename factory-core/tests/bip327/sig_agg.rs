//! `PartialSigAgg`: final signatures, and a partial signature that is out of range.

use super::*;

#[derive(Deserialize)]
struct Vectors {
    pubkeys: Vec<Hex>,
    tweaks: Vec<Hex>,
    psigs: Vec<Hex>,
    msg: Hex,
    valid: Vec<Valid>,
    error: Vec<Bad>,
}

#[derive(Deserialize)]
struct Valid {
    key_indices: Vec<usize>,
    tweak_indices: Vec<usize>,
    is_xonly: Vec<bool>,
    aggnonce: Hex,
    psig_indices: Vec<usize>,
    expected: Hex,
}

#[derive(Deserialize)]
struct Bad {
    key_indices: Vec<usize>,
    aggnonce: Hex,
    psig_indices: Vec<usize>,
    signer: usize,
}

fn vectors() -> Vectors {
    let v: Vectors = load(include_str!("../vectors/bip327/sig_agg_vectors.json"));
    assert_eq!((v.valid.len(), v.error.len()), (4, 1));
    v
}

#[test]
fn secp256k1() {
    let v = vectors();
    for case in &v.valid {
        let cache =
            aggregate(&v.pubkeys, &case.key_indices, &v.tweaks, &case.tweak_indices, &case.is_xonly).unwrap();
        let nonce = aggregate_nonce(&case.aggnonce).unwrap();
        let session = sys::Session::new(&cache, nonce, &v.msg.array());
        let partials: Vec<_> = case.psig_indices.iter().map(|i| partial(&v.psigs[*i]).unwrap()).collect();
        let signature = session.partial_sig_agg(&partials.iter().collect::<Vec<_>>());
        let signature = signature.verify(&cache.agg_pk(), &v.msg.0).unwrap();
        assert_eq!(signature.to_byte_array(), case.expected.array());
    }
    for case in &v.error {
        for (signer, i) in case.psig_indices.iter().enumerate() {
            assert_eq!(partial(&v.psigs[*i]).is_err(), signer == case.signer);
        }
    }
}

#[test]
fn factory_core() {
    let v = vectors();
    let context = old::Secp256k1::verification_only();
    let message = v.msg.array();
    let mut ran = 0;
    for case in v.valid.iter().filter(|case| case.tweak_indices.is_empty()) {
        let keys = old_keys(&v.pubkeys, &case.key_indices).unwrap();
        let key = AggKey::new(&keys).unwrap();
        let signature = old::schnorr::Signature::from_slice(&case.expected.0).unwrap();
        let digest = old::Message::from_digest(message);
        let accepted = context.verify_schnorr(&signature, &digest, &key.internal()).is_ok();
        assert_eq!(accepted, key.signers() == keys, "valid under the sorted keys' aggregate alone");
        musig::verify_final(&key, &message, &case.expected.array()).unwrap_err(); // the BIP 86 tweak
        ran += usize::from(accepted);
    }
    assert_eq!(ran, 1);

    for case in &v.error {
        let key = AggKey::new(&old_keys(&v.pubkeys, &case.key_indices).unwrap()).unwrap();
        let partials: Vec<_> = case.psig_indices.iter().map(|i| v.psigs[*i].array()).collect();
        let got = musig::aggregate_partials(&key, &message, &case.aggnonce.array(), &partials);
        assert_eq!(got, Err(Error::BadPartial { index: case.signer }));
    }
}
