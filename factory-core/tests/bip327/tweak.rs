//! `ApplyTweak`, seen through the partial signatures under the tweaked key.

use super::*;

#[derive(Deserialize)]
struct Vectors {
    sk: Hex,
    secnonce: Hex,
    aggnonce: Hex,
    msg: Hex,
    pubkeys: Vec<Hex>,
    pubnonces: Vec<Hex>,
    tweaks: Vec<Hex>,
    valid: Vec<Case>,
    error: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    key_indices: Vec<usize>,
    nonce_indices: Vec<usize>,
    tweak_indices: Vec<usize>,
    is_xonly: Vec<bool>,
    signer_index: usize,
    expected: Option<Hex>,
}

#[test]
fn secp256k1() {
    let v: Vectors = load(include_str!("../vectors/bip327/tweak_vectors.json"));
    assert_eq!((v.valid.len(), v.error.len()), (5, 1));
    let cache = |case: &Case| {
        aggregate(&v.pubkeys, &case.key_indices, &v.tweaks, &case.tweak_indices, &case.is_xonly)
    };
    let pair = secp::Keypair::from_secret_bytes(v.sk.array()).unwrap();
    for case in &v.valid {
        let nonces: Vec<_> =
            case.nonce_indices.iter().map(|i| public_nonce(&v.pubnonces[*i]).unwrap()).collect();
        let sum = sys::AggregatedNonce::new(&nonces.iter().collect::<Vec<_>>());
        assert_eq!(sum.serialize(), v.aggnonce.array());
        let cache = cache(case).unwrap();
        let session = sys::Session::new(&cache, sum, &v.msg.array());
        let signed = session.partial_sign(secret_nonce(&v.secnonce), &pair, &cache);
        assert_eq!(signed.serialize(), case.expected.as_ref().unwrap().array());
        let nonce = &nonces[case.signer_index];
        assert!(session.partial_verify(&cache, &signed, nonce, pair.public_key()));
    }
    for case in &v.error {
        assert_eq!(cache(case).map(|_| ()), Err(Fault::Tweak));
    }
}
