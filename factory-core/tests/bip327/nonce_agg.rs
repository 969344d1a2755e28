//! `NonceAgg`, with nonces that cancel out and nonces that do not parse.

use super::*;

#[derive(Deserialize)]
struct Vectors {
    pubnonces: Vec<Hex>,
    valid: Vec<Valid>,
    error: Vec<Bad>,
}

#[derive(Deserialize)]
struct Valid {
    nonce_indices: Vec<usize>,
    expected: Hex,
}

#[derive(Deserialize)]
struct Bad {
    nonce_indices: Vec<usize>,
    signer: usize,
}

fn vectors() -> Vectors {
    let v: Vectors = load(include_str!("../vectors/bip327/nonce_agg_vectors.json"));
    assert_eq!((v.valid.len(), v.error.len()), (2, 3));
    v
}

#[test]
fn secp256k1() {
    let v = vectors();
    for case in &v.valid {
        let nonces: Vec<_> =
            case.nonce_indices.iter().map(|i| public_nonce(&v.pubnonces[*i]).unwrap()).collect();
        let sum = sys::AggregatedNonce::new(&nonces.iter().collect::<Vec<_>>());
        assert_eq!(sum.serialize(), case.expected.array());
        assert_eq!(aggregate_nonce(&case.expected), Ok(sum));
    }
    for case in &v.error {
        for (signer, i) in case.nonce_indices.iter().enumerate() {
            assert_eq!(public_nonce(&v.pubnonces[*i]).is_err(), signer == case.signer);
        }
    }
}

#[test]
fn factory_core() {
    let v = vectors();
    let nonces = |indices: &[usize]| indices.iter().map(|i| v.pubnonces[*i].array()).collect::<Vec<_>>();
    for case in &v.valid {
        let sum = musig::aggregate_nonces(&nonces(&case.nonce_indices)).unwrap();
        assert_eq!(sum, case.expected.array());
        musig::check_aggregate_nonce(&sum).unwrap();
    }
    for case in &v.error {
        let nonces = nonces(&case.nonce_indices);
        assert_eq!(musig::aggregate_nonces(&nonces), Err(Error::BadNonce { index: case.signer }));
        for (signer, nonce) in nonces.iter().enumerate() {
            assert_eq!(musig::check_nonce(nonce).is_err(), signer == case.signer);
        }
    }
}
