use super::*;
use musig2::secp::{Point, Scalar};
use rand::rngs::StdRng;
use rand::SeedableRng;

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
    assert!(matches!(SecretSession::new(&secret(3), &key, [1; 32], &mut rng), Err(Error::NotASigner { .. })));
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
