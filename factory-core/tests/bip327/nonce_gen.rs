//! `NonceGen`.

use super::*;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    rand: Hex,
    sk: Option<Hex>,
    pk: Hex,
    aggpk: Option<Hex>,
    msg: Option<Hex>,
    extra_in: Option<Hex>,
    expected_secnonce: Hex,
    expected_pubnonce: Hex,
}

#[test]
fn secp256k1() {
    let v: Vectors = load(include_str!("../vectors/bip327/nonce_gen_vectors.json"));
    assert_eq!(v.cases.len(), 2);
    let mut ran = 0;
    for case in v.cases.iter().filter(|case| case.aggpk.is_none()) {
        let msg = case.msg.as_ref().map(Hex::array);
        let (secret, public) = sys::new_nonce_pair(
            sys::SessionSecretRand::assume_uniformly_random(case.rand.array()),
            None,
            case.sk.as_ref().map(|sk| secp::SecretKey::from_secret_bytes(sk.array()).unwrap()),
            secp::PublicKey::from_slice(&case.pk.0).unwrap(),
            msg.as_ref(),
            case.extra_in.as_ref().map(Hex::array),
        );
        let expected: [u8; 97] = case.expected_secnonce.array();
        assert_eq!(secret.dangerous_into_bytes()[4..68], expected[..64]);
        assert_eq!(expected[64..], case.pk.0);
        assert_eq!(public.serialize(), case.expected_pubnonce.array());
        ran += 1;
    }
    assert_eq!(ran, 1);
}
