//! `Sign` and `PartialSigVerify`.

use super::*;

/// Tells the test of the used nonce that it runs in the process that may end.
const CHILD: &str = "BIP327_USED_NONCE";

#[derive(Deserialize)]
struct Vectors {
    sk: Hex,
    pubkeys: Vec<Hex>,
    secnonces: Vec<Hex>,
    pubnonces: Vec<Hex>,
    aggnonces: Vec<Hex>,
    msgs: Vec<Hex>,
    valid: Vec<Valid>,
    sign_error: Vec<SignError>,
    verify_fail: Vec<VerifyError>,
    verify_error: Vec<VerifyError>,
}

#[derive(Deserialize)]
struct Valid {
    key_indices: Vec<usize>,
    aggnonce_index: usize,
    msg_index: usize,
    signer_index: usize,
    expected: Hex,
}

#[derive(Deserialize)]
struct SignError {
    key_indices: Vec<usize>,
    aggnonce_index: usize,
    msg_index: usize,
    secnonce_index: usize,
    error: Fault,
}

#[derive(Deserialize)]
struct VerifyError {
    sig: Hex,
    key_indices: Vec<usize>,
    nonce_indices: Vec<usize>,
    msg_index: usize,
    signer_index: usize,
    error: Fault,
}

impl Vectors {
    fn load() -> Self {
        let v: Self = load(include_str!("../vectors/bip327/sign_verify_vectors.json"));
        let counts = (v.valid.len(), v.sign_error.len(), v.verify_fail.len(), v.verify_error.len());
        assert_eq!(counts, (4, 6, 3, 2));
        v
    }

    fn keys(&self, indices: &[usize]) -> Result<sys::KeyAggCache, Fault> {
        aggregate(&self.pubkeys, indices, &[], &[], &[])
    }

    fn pair(&self) -> secp::Keypair {
        secp::Keypair::from_secret_bytes(self.sk.array()).unwrap()
    }

    fn nonces(&self, indices: &[usize]) -> Vec<musig::NonceBytes> {
        indices.iter().map(|i| self.pubnonces[*i].array()).collect()
    }

    fn sign(&self, case: &SignError) -> Result<sys::PartialSignature, Fault> {
        let cache = self.keys(&case.key_indices)?;
        let nonce = aggregate_nonce(&self.aggnonces[case.aggnonce_index])?;
        let session = sys::Session::new(&cache, nonce, &self.msgs[case.msg_index].array());
        let secret = secret_nonce(&self.secnonces[case.secnonce_index]);
        Ok(session.partial_sign(secret, &self.pair(), &cache))
    }

    fn verify(&self, case: &VerifyError) -> Result<(), Fault> {
        let cache = self.keys(&case.key_indices)?;
        let nonces = case
            .nonce_indices
            .iter()
            .map(|i| public_nonce(&self.pubnonces[*i]))
            .collect::<Result<Vec<_>, _>>()?;
        let sum = sys::AggregatedNonce::new(&nonces.iter().collect::<Vec<_>>());
        let session = sys::Session::new(&cache, sum, &self.msgs[case.msg_index].array());
        let signer = &self.pubkeys[case.key_indices[case.signer_index]];
        let signer = secp::PublicKey::from_slice(&signer.0).map_err(|_| Fault::Pubkey)?;
        if session.partial_verify(&cache, &partial(&case.sig)?, &nonces[case.signer_index], signer) {
            Ok(())
        } else {
            Err(Fault::Verify)
        }
    }
}

#[test]
fn secp256k1() {
    let v = Vectors::load();
    let signer = secp::PublicKey::from_slice(&v.pubkeys[0].0).unwrap();
    assert_eq!(v.pair().public_key(), signer);
    for case in &v.valid {
        assert_eq!(case.key_indices[case.signer_index], 0);
        let cache = v.keys(&case.key_indices).unwrap();
        let nonce = aggregate_nonce(&v.aggnonces[case.aggnonce_index]).unwrap();
        let session = sys::Session::new(&cache, nonce, &v.msgs[case.msg_index].array());
        let signed = session.partial_sign(secret_nonce(&v.secnonces[0]), &v.pair(), &cache);
        assert_eq!(signed.serialize(), case.expected.array());
        let public = public_nonce(&v.pubnonces[0]).unwrap();
        assert!(session.partial_verify(&cache, &signed, &public, signer));
    }

    let mut failed = 0;
    for case in v.sign_error.iter().skip(1).filter(|case| case.error != Fault::Secnonce) {
        assert_eq!(v.sign(case), Err(case.error));
        failed += 1;
    }
    assert_eq!(failed, 4); // and `a_used_nonce_does_not_sign`

    for case in v.verify_fail.iter().chain(&v.verify_error) {
        assert_eq!(v.verify(case), Err(case.error));
    }
    // What makes them fail is the fault that the vector names. The first signature is the valid one negated, the
    // second is the valid one for another signer, and the valid one passes the same function.
    let [negated, other_signer] = [&v.verify_fail[0], &v.verify_fail[1]];
    let scalar = secp::SecretKey::from_secret_bytes(v.valid[0].expected.array()).unwrap();
    assert_eq!(scalar.negate().to_secret_bytes(), negated.sig.array());
    assert_eq!(other_signer.sig.0, v.valid[0].expected.0);
    let valid = VerifyError {
        sig: Hex(v.valid[0].expected.0.clone()),
        key_indices: vec![0, 1, 2],
        nonce_indices: vec![0, 1, 2],
        msg_index: 0,
        signer_index: 0,
        error: Fault::Verify,
    };
    assert_eq!(v.verify(&valid), Ok(()));
}

/// The library ends the process over a secret nonce that was used (overwritten with zeros). It must never sign.
#[test]
fn a_used_nonce_does_not_sign() {
    let v = Vectors::load();
    let cases: Vec<_> = v.sign_error.iter().filter(|case| case.error == Fault::Secnonce).collect();
    assert_eq!(cases.len(), 1);
    if std::env::var_os(CHILD).is_some() {
        println!("signed {:?}", v.sign(cases[0]));
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "sign_verify::a_used_nonce_does_not_sign"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(err.contains("[libsecp256k1] illegal argument. !is_zero"), "{err}");
    assert!(!out.contains("signed "), "{out}");
    assert!(!child.status.success());
}

#[test]
fn factory_core() {
    let v = Vectors::load();
    let mut rng = StdRng::from_seed([1; 32]);
    let infinity = &v.aggnonces[v.valid[3].aggnonce_index];
    assert_eq!(infinity.0, [0; 66]);
    musig::check_aggregate_nonce(&infinity.array()).unwrap();
    // In the BIP's file that case has nonces 0 and 3, which cancel out.
    assert_eq!(musig::aggregate_nonces(&v.nonces(&[0, 3])), Ok(infinity.array()));

    let mut ran = 0;
    for (i, case) in v.sign_error.iter().enumerate() {
        let keys = old_keys(&v.pubkeys, &case.key_indices);
        let message = v.msgs[case.msg_index].array();
        let aggnonce = v.aggnonces[case.aggnonce_index].array();
        match (i, case.error) {
            (0, Fault::Pubkey) => {
                let key = AggKey::new(&keys.unwrap()).unwrap();
                let session = SecretSession::new(&v.sk.array(), &key, message, &mut rng);
                let own = musig::public_key(&v.sk.array()).unwrap().to_string();
                assert_eq!(session.map(|_| ()), Err(Error::NotASigner { key: own }));
            }
            (_, Fault::Pubkey) => assert!(keys.is_err()),
            (_, Fault::Aggnonce) => {
                let key = AggKey::new(&keys.unwrap()).unwrap();
                let session = SecretSession::new(&v.sk.array(), &key, message, &mut rng).unwrap();
                assert_eq!(session.sign(&key, &aggnonce), Err(Error::BadNonce { index: 0 }));
                assert_eq!(musig::check_aggregate_nonce(&aggnonce), Err(Error::BadNonce { index: 0 }));
            }
            _ => continue,
        }
        ran += 1;
    }
    assert_eq!(ran, 5);

    ran = 0;
    for case in v.verify_fail.iter().chain(&v.verify_error).filter(|case| case.error != Fault::Verify) {
        ran += 1;
        let keys = match old_keys(&v.pubkeys, &case.key_indices) {
            Ok(keys) => keys,
            Err(_) => {
                assert_eq!(case.error, Fault::Pubkey);
                continue;
            }
        };
        let key = AggKey::new(&keys).unwrap();
        let nonces = v.nonces(&case.nonce_indices);
        let message = v.msgs[case.msg_index].array();
        let verify = |sum, nonce, sig| {
            musig::verify_partial(&key, &message, sum, &keys[case.signer_index], nonce, sig)
        };
        let expected = if case.error == Fault::Psig {
            Error::BadPartial { index: 0 }
        } else {
            Error::BadNonce { index: 0 }
        };
        let sum = v.aggnonces[0].array();
        let sig = case.sig.array();
        assert_eq!(verify(&sum, &nonces[case.signer_index], &sig), Err(expected.clone()));
        if case.error == Fault::Psig {
            assert_eq!(musig::aggregate_nonces(&nonces), Ok(sum));
            assert_eq!(musig::check_partial(&sig), Err(expected));
        } else {
            assert_eq!(musig::aggregate_nonces(&nonces), Err(expected));
        }
        // The same call with bytes that parse gets as far as the equation.
        let parses = verify(&sum, &v.pubnonces[0].array(), &v.valid[0].expected.array());
        assert_eq!(parses, Err(Error::WrongPartial { index: 0 }));
    }
    assert_eq!(ran, 3);
}
