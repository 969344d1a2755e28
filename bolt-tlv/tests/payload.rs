//! The messages of our own protocol: their bytes, their limits, round trips and damaged input.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, ScriptBuf, Txid};
use bolt_tlv::payload::*;
use bolt_tlv::tlv::{write_bigsize, write_bytes, TlvWriter};
use bolt_tlv::Error;
use common::payload::message;
use common::{apply, damage, generator, GENERATOR};
use proptest::collection::vec;
use proptest::prelude::*;

/// Checks a message against its bytes, in both directions. Blanks in the hex are for the reader.
fn assert_bytes(message: impl Into<Payload>, hex: &str) {
    let message = message.into();
    let bytes = hex::decode(hex.replace([' ', '\n'], "")).unwrap();
    assert_eq!(hex::encode(message.encode()), hex::encode(&bytes));
    assert_eq!(Payload::decode(&bytes), Ok(message));
}

/// The records `instance_id` and `attempt`, as hex.
fn ids_hex() -> String {
    format!("0020{} 02020102", "bb".repeat(32))
}

const INSTANCE: [u8; 32] = [0xbb; 32];
const ATTEMPT: u16 = 0x0102;

fn script(hex: &str) -> ScriptBuf {
    ScriptBuf::from_hex(hex).unwrap()
}

/// A P2WPKH script.
fn payout() -> ScriptBuf {
    script(&format!("0014{}", "11".repeat(20)))
}

fn params() -> PlanParams {
    PlanParams {
        clients_per_leaf: 1,
        arity: vec![8],
        layers: vec![vec![], vec![DwLayer { states: 2, step: 48, base: 96 }]],
        active: 4320,
        dying: 432,
        margin: 144,
        confirm_blocks: 6,
        reorg_margin: 6,
        to_self_delay: 144,
        min_depth: 6,
    }
}

fn plan() -> Plan {
    Plan {
        instance_id: INSTANCE,
        attempt: ATTEMPT,
        network_magic: [0xfa, 0xbf, 0xb5, 0xda],
        birth_height: 1000,
        expiry_height: 6000,
        params: params(),
        keys: vec![generator(); 2],
        index: 1,
        leaf: vec![LeafMember {
            capacity_sat: 100_000,
            push_msat: 1_000,
            payout_script: payout(),
            temporary_channel_id: [0xdd; 32],
        }],
        stock_sat: 50_000,
        stock_script: payout(),
    }
}

fn path() -> Path {
    Path {
        instance_id: INSTANCE,
        attempt: ATTEMPT,
        funding_outpoint: OutPoint {
            txid: Txid::from_byte_array(std::array::from_fn(|place| place as u8)),
            vout: 1,
        },
        funding_sat: 400_000,
        levels: vec![vec![(100_000, payout()), (200_000, script("51"))]],
        channel_scripts: vec![payout()],
    }
}

#[test]
fn join_bytes() {
    assert_bytes(
        Join { version: 1, min_capacity_sat: 100_000, max_capacity_sat: 500_000 },
        "0001 00020001 020800000000000186a0 0408000000000007a120",
    );
}

#[test]
fn accept_bytes() {
    let accept =
        Accept { instance_id: INSTANCE, attempt: ATTEMPT, factory_key: generator(), payout_script: payout() };
    assert_bytes(accept, &format!("0003 {} 0421{GENERATOR} 06160014{}", ids_hex(), "11".repeat(20)));
}

#[test]
fn plan_bytes() {
    let payout = format!("0014{}", "11".repeat(20));
    let params = "00020001 02020008 0409 02 00 01 000200300060 0604000010e0 0804000001b0 0a0400000090
        0c020006 0e020006 10020090 12020006";
    let leaf = format!("01 00000000000186a0 00000000000003e8 {} 16{payout}", "dd".repeat(32));
    let keys = GENERATOR.repeat(2);
    let hex = format!(
        "0005 {} 0404fabfb5da 0604000003e8 080400001770 0a35{params} 0c42{keys} 0e0400000001 1048{leaf}
         1208000000000000c350 1416{payout}",
        ids_hex()
    );
    assert_bytes(plan(), &hex);
}

#[test]
fn path_bytes() {
    let payout = format!("0014{}", "11".repeat(20));
    let txid = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let hex = format!(
        "0007 {} 0424 {txid} 00000001 06080000000000061a80
         082b 01 02 00000000000186a0 16{payout} 0000000000030d40 0151
         0a18 01 16{payout}",
        ids_hex()
    );
    assert_bytes(path(), &hex);
}

#[test]
fn advance_propose_bytes() {
    let propose = AdvancePropose {
        instance_id: INSTANCE,
        attempt: ATTEMPT,
        level: 1,
        from: 3,
        position: 4,
        keys: vec![generator()],
        capacities_sat: vec![100_000, 256],
        stock_sat: 1,
        reason: 2,
    };
    let hex = format!(
        "001e {} 04020001 06080000000000000003 08080000000000000004 0a21{GENERATOR}
         0c1000000000000186a00000000000000100 0e080000000000000001 10020002",
        ids_hex()
    );
    assert_bytes(propose, &hex);
}

#[test]
fn advance_bytes() {
    let (instance_id, attempt) = (INSTANCE, ATTEMPT);
    let nonces = format!("0442{} 0600", "aa".repeat(66));
    let agree = AdvanceAgree { instance_id, attempt, inner: vec![[0xaa; 66]], outer: vec![] };
    assert_bytes(agree, &format!("001f {} {nonces}", ids_hex()));
    let sums = AdvanceAggNonces { instance_id, attempt, inner: vec![[0xaa; 66]], outer: vec![] };
    assert_bytes(sums, &format!("0022 {} {nonces}", ids_hex()));
    let refuse = AdvanceRefuse { instance_id, attempt, code: 5, text: "late".into() };
    assert_bytes(refuse, &format!("0020 {} 04020005 06046c617465", ids_hex()));
    let levels = vec![vec![(100_000, payout()), (200_000, script("51"))]];
    let tree = AdvanceTree { instance_id, attempt, levels, channel_scripts: vec![payout()] };
    let p = format!("160014{}", "11".repeat(20));
    let hex = format!("0021 {} 042b 01 02 00000000000186a0 {p} 0000000000030d40 0151 0618 01 {p}", ids_hex());
    assert_bytes(tree, &hex);
    let partials = vec![[0xcc; 32]];
    let inner = AdvancePartials { instance_id, attempt, partials: partials.clone() };
    assert_bytes(inner, &format!("0023 {} 0420{}", ids_hex(), "cc".repeat(32)));
    let outer = AdvanceOuter { instance_id, attempt, partials };
    assert_bytes(outer, &format!("0025 {} 0420{}", ids_hex(), "cc".repeat(32)));
    let signatures = vec![[0xee; 64]];
    let inner = AdvanceInner { instance_id, attempt, signatures: signatures.clone() };
    assert_bytes(inner, &format!("0024 {} 0440{}", ids_hex(), "ee".repeat(64)));
    let signed = AdvanceSigned { instance_id, attempt, signatures };
    assert_bytes(signed, &format!("0026 {} 0440{}", ids_hex(), "ee".repeat(64)));
    assert_bytes(AdvancePersisted { instance_id, attempt }, &format!("0027 {}", ids_hex()));
    let resume = AdvanceResume { instance_id, attempt, pending: 1 };
    assert_bytes(resume, &format!("0028 {} 04020001", ids_hex()));
    let abort = AdvanceAbort { instance_id, attempt, code: 5, text: "late".into() };
    assert_bytes(abort, &format!("0029 {} 04020005 06046c617465", ids_hex()));
}

#[test]
fn abort_bytes_with_and_without_a_culprit() {
    let mut abort =
        Abort { instance_id: INSTANCE, attempt: ATTEMPT, code: 5, text: "late".into(), culprit: None };
    let hex = format!("000e {} 04020005 06046c617465", ids_hex());
    assert_bytes(abort.clone(), &hex);
    abort.culprit = Some(generator());
    assert_bytes(abort, &format!("{hex} 0721{GENERATOR}"));
}

#[test]
fn messages_tell_their_number_instance_and_attempt() {
    let persisted = Payload::from(Persisted { instance_id: INSTANCE, attempt: ATTEMPT });
    assert_eq!(persisted.number(), 12);
    assert_eq!((persisted.instance_id(), persisted.attempt()), (Some(INSTANCE), Some(ATTEMPT)));
    let ask = Payload::from(CloseAsk { instance_id: INSTANCE });
    assert_eq!((ask.number(), ask.instance_id(), ask.attempt()), (20, Some(INSTANCE), None));
    assert_bytes(ask, &format!("0014 0020{}", "bb".repeat(32)));
    let unknown = Payload::UnknownOdd(47);
    assert_eq!((unknown.number(), unknown.instance_id(), unknown.attempt()), (47, None, None));
}

/// The innermost reason why bytes are refused as message `number`.
fn refusal(number: u16, bytes: &[u8]) -> Error {
    match Payload::decode(bytes).unwrap_err() {
        Error::Payload { number: found, source } if found == number => *source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn unknown_numbers_follow_odd_and_even() {
    assert_eq!(Payload::decode(&[0, 47, 0xfd]), Ok(Payload::UnknownOdd(47)));
    assert_eq!(refusal(42, &[0, 42]), Error::UnknownEvenPayload(42));
    assert_eq!(refusal(0, &[0]), Error::Truncated { field: "payload", needed: 2, left: 1 });
}

#[test]
fn unknown_records_follow_odd_and_even() {
    let ask = Payload::from(CloseAsk { instance_id: INSTANCE });
    let with = |record: [u8; 2]| [ask.encode(), record.to_vec()].concat();
    assert_eq!(Payload::decode(&with([9, 0])), Ok(ask.clone()));
    assert_eq!(refusal(20, &with([2, 0])), Error::UnknownEvenType(2));
}

#[test]
fn a_missing_field_is_named() {
    assert_eq!(refusal(3, &[0, 3]), Error::Missing { field: "instance_id", tlv_type: 0 });
    let no_attempt = [&[0, 3, 0, 32][..], &INSTANCE].concat();
    assert_eq!(refusal(3, &no_attempt), Error::Missing { field: "attempt", tlv_type: 2 });
}

/// The reason why a message is refused after a change to it.
fn refused(message: impl Into<Payload>) -> Error {
    let message = message.into();
    let error = refusal(message.number(), &message.encode());
    assert!(message.check().is_err());
    error
}

fn at_limit(message: impl Into<Payload>) {
    let message = message.into();
    assert_eq!(message.check(), Ok(()));
    assert_eq!(Payload::decode(&message.encode()), Ok(message));
}

#[test]
fn lists_of_a_plan_have_limits() {
    let with = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan();
        change(&mut plan);
        plan
    };
    at_limit(with(&|plan| plan.keys = vec![generator(); MAX_KEYS]));
    let error = refused(with(&|plan| plan.keys = vec![generator(); MAX_KEYS + 1]));
    assert_eq!(error, Error::TooMany { field: "keys", limit: 1_001, found: 1_002 });

    at_limit(with(&|plan| plan.leaf = vec![plan.leaf[0].clone(); MAX_OUTPUTS]));
    let error = refused(with(&|plan| plan.leaf = vec![plan.leaf[0].clone(); MAX_OUTPUTS + 1]));
    assert_eq!(error, Error::TooMany { field: "leaf", limit: 232, found: 233 });

    let levels = |count: usize, layers: usize| {
        with(&|plan| {
            plan.params.arity = vec![8; count - 1];
            plan.params.layers = vec![vec![plan.params.layers[1][0]; layers]; count];
        })
    };
    at_limit(levels(MAX_LEVELS, MAX_LAYERS));
    let error = refused(levels(MAX_LEVELS + 1, MAX_LAYERS));
    assert_eq!(error, Error::TooMany { field: "layers", limit: 16, found: 17 });
    let error = refused(levels(MAX_LEVELS, MAX_LAYERS + 1));
    assert_eq!(error, Error::TooMany { field: "layers", limit: 16, found: 17 });
    let error = refused(with(&|plan| plan.params.arity = vec![8; MAX_LEVELS + 1]));
    assert_eq!(error, Error::TooMany { field: "arity", limit: 16, found: 17 });
    for arity in [vec![], vec![8, 8]] {
        let arities = arity.len();
        let error = refused(with(&|plan| plan.params.arity = arity.clone()));
        assert_eq!(error, Error::LevelMismatch { layers: 2, arities });
    }
}

#[test]
fn lists_of_a_path_have_limits() {
    let with = |change: &dyn Fn(&mut Path)| {
        let mut path = path();
        change(&mut path);
        path
    };
    let level = |outputs| vec![(1, payout()); outputs];
    at_limit(with(&|path| path.levels = vec![level(2); MAX_LEVELS]));
    let error = refused(with(&|path| path.levels = vec![level(2); MAX_LEVELS + 1]));
    assert_eq!(error, Error::TooMany { field: "levels", limit: 16, found: 17 });
    at_limit(with(&|path| path.levels = vec![level(MAX_OUTPUTS)]));
    let error = refused(with(&|path| path.levels = vec![level(MAX_OUTPUTS + 1)]));
    assert_eq!(error, Error::TooMany { field: "levels", limit: 232, found: 233 });
    at_limit(with(&|path| path.channel_scripts = vec![payout(); MAX_OUTPUTS]));
    let error = refused(with(&|path| path.channel_scripts = vec![payout(); MAX_OUTPUTS + 1]));
    assert_eq!(error, Error::TooMany { field: "channel_scripts", limit: 232, found: 233 });
    let long = |len| vec![ScriptBuf::from_bytes(vec![0x51; len])];
    at_limit(with(&|path| path.channel_scripts = long(MAX_SCRIPT_LEN)));
    let error = refused(with(&|path| path.channel_scripts = long(MAX_SCRIPT_LEN + 1)));
    assert_eq!(error, Error::TooLong { field: "channel_scripts", limit: 10_000, found: 10_001 });
}

#[test]
fn signatures_and_texts_have_limits() {
    let (instance_id, attempt) = (INSTANCE, ATTEMPT);
    let nonces = |count| Nonces { instance_id, attempt, nonces: vec![[1; 66]; count] };
    let agg_nonces = |count| AggNonces { instance_id, attempt, nonces: vec![[1; 66]; count] };
    let partials = |count| Partials { instance_id, attempt, partials: vec![[1; 32]; count] };
    let signed = |count| Signed { instance_id, attempt, signatures: vec![[1; 64]; count] };
    at_limit(nonces(MAX_SESSIONS));
    at_limit(agg_nonces(MAX_SESSIONS));
    at_limit(partials(MAX_SESSIONS));
    at_limit(signed(MAX_SESSIONS));
    let too_many = |field| Error::TooMany { field, limit: 128, found: 129 };
    assert_eq!(refused(nonces(MAX_SESSIONS + 1)), too_many("nonces"));
    assert_eq!(refused(agg_nonces(MAX_SESSIONS + 1)), too_many("nonces"));
    assert_eq!(refused(partials(MAX_SESSIONS + 1)), too_many("partials"));
    assert_eq!(refused(signed(MAX_SESSIONS + 1)), too_many("signatures"));

    let decline = |len| Decline { instance_id, attempt, code: 1, text: "x".repeat(len) };
    at_limit(decline(MAX_TEXT_LEN));
    assert_eq!(refused(decline(257)), Error::TooLong { field: "text", limit: 256, found: 257 });
}

#[test]
fn limits_of_an_advance() {
    let (instance_id, attempt) = (INSTANCE, ATTEMPT);
    let propose = |amounts: usize, keys: usize| AdvancePropose {
        instance_id,
        attempt,
        level: 0,
        from: 0,
        position: 1,
        keys: vec![generator(); keys],
        capacities_sat: vec![1; amounts],
        stock_sat: 0,
        reason: 0,
    };
    at_limit(propose(MAX_OUTPUTS, MAX_KEYS));
    let too_many =
        |field, limit: usize| Error::TooMany { field, limit, found: u64::try_from(limit).unwrap() + 1 };
    assert_eq!(refused(propose(MAX_OUTPUTS + 1, 1)), too_many("capacities_sat", MAX_OUTPUTS));
    assert_eq!(refused(propose(1, MAX_KEYS + 1)), too_many("keys", MAX_KEYS));
    let agree = |n: usize, m: usize| AdvanceAgree {
        instance_id,
        attempt,
        inner: vec![[2; 66]; n],
        outer: vec![[2; 66]; m],
    };
    at_limit(agree(MAX_SESSIONS, MAX_SESSIONS));
    assert_eq!(refused(agree(MAX_SESSIONS + 1, 0)), too_many("inner", MAX_SESSIONS));
    assert_eq!(refused(agree(0, MAX_SESSIONS + 1)), too_many("outer", MAX_SESSIONS));
    let outer = |n: usize| AdvanceOuter { instance_id, attempt, partials: vec![[2; 32]; n] };
    at_limit(outer(MAX_SESSIONS));
    assert_eq!(refused(outer(MAX_SESSIONS + 1)), too_many("partials", MAX_SESSIONS));
    let inner = |n: usize| AdvanceInner { instance_id, attempt, signatures: vec![[2; 64]; n] };
    at_limit(inner(MAX_SESSIONS));
    assert_eq!(refused(inner(MAX_SESSIONS + 1)), too_many("signatures", MAX_SESSIONS));
    let text = |n: usize| AdvanceAbort { instance_id, attempt, code: 1, text: "x".repeat(n) };
    at_limit(text(MAX_TEXT_LEN));
    refused(text(MAX_TEXT_LEN + 1));
}

#[test]
fn invoices_have_limits() {
    let invoice = |n: usize| RelayInvoice { payment_hash: [1; 32], invoice: LongText("x".repeat(n)) };
    at_limit(invoice(MAX_LONG_TEXT_LEN));
    let too_long = Error::TooLong { field: "invoice", limit: 2048, found: 2049 };
    assert_eq!(refused(invoice(MAX_LONG_TEXT_LEN + 1)), too_long);
}

#[test]
fn companions_have_limits() {
    let companions = |count: usize, htlcs: usize| Companions {
        channel_id: [1; 32],
        funding: OutPoint::null(),
        number: 7,
        commitment: [2; 64],
        companions: vec![
            Companion {
                real: OutPoint::null(),
                signature: [3; 64],
                htlc_signatures: vec![[4; 64]; htlcs]
            };
            count
        ],
    };
    at_limit(companions(MAX_COMPANIONS, 0));
    at_limit(companions(1, MAX_HTLC_SIGNATURES));
    assert_eq!(companions(1, MAX_HTLC_SIGNATURES).companions[0].encoded_len(), 61_927);
    let error = refused(companions(MAX_COMPANIONS + 1, 0));
    assert_eq!(error, Error::TooMany { field: "companions", limit: 256, found: 257 });
    let error = refused(companions(1, MAX_HTLC_SIGNATURES + 1));
    assert_eq!(error, Error::TooMany { field: "companions", limit: 966, found: 967 });
    let error = refused(companions(2, MAX_HTLC_SIGNATURES));
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
}

#[test]
fn a_payout_script_is_a_witness_program() {
    let (instance_id, attempt) = (INSTANCE, ATTEMPT);
    let consent = |hex: &str| CloseConsent { instance_id, attempt, payout_script: script(hex) };
    for program in [2, 20, 32, 40] {
        at_limit(consent(&format!("51{program:02x}{}", "22".repeat(program))));
    }
    // Empty; bare OP_TRUE; P2PKH; a program too short, too long, with a byte missing, of version "17".
    let p2pkh = format!("76a914{}88ac", "22".repeat(20));
    let long = format!("5129{}", "22".repeat(41));
    for hex in ["", "51", &p2pkh, "510122", &long, "510322", "61022222"] {
        assert_eq!(refused(consent(hex)), Error::NotWitnessProgram("payout_script"), "{hex}");
    }
    let mut plan = plan();
    plan.leaf[0].payout_script = script("51");
    assert_eq!(refused(plan.clone()), Error::NotWitnessProgram("leaf"));
    plan.leaf[0].payout_script = payout();
    plan.stock_script = script("51");
    assert_eq!(refused(plan), Error::NotWitnessProgram("stock_script"));
}

/// A count that the input cannot hold must fail on the missing bytes, whatever it promises.
#[test]
fn counts_larger_than_the_input_are_refused() {
    let stream = |value: Vec<u8>| {
        let mut records = TlvWriter::new();
        records.put(0, INSTANCE);
        records.put(2, ATTEMPT.to_be_bytes());
        records.put(4, [0; 36]);
        records.put(6, [0; 8]);
        records.put(8, value);
        records.put(10, [0]);
        let mut bytes = vec![0, 7];
        records.write(&mut bytes);
        bytes
    };
    assert!(Payload::decode(&stream(vec![0])).is_ok());
    let error = refusal(7, &stream(vec![16]));
    assert_eq!(error, Error::Truncated { field: "levels", needed: 1, left: 0 });
    let mut huge = Vec::new();
    write_bigsize(&mut huge, u64::MAX);
    let error = refusal(7, &stream(huge));
    assert_eq!(error, Error::TooMany { field: "levels", limit: 16, found: u64::MAX });
    let error = refusal(7, &stream(vec![0, 0]));
    assert_eq!(error, Error::TrailingBytes { field: "levels", left: 1 });
}

#[test]
fn malformed_values_are_refused() {
    let message = |number: u8, value: &[u8]| {
        let mut bytes = [&[0, number, 0, 32][..], &INSTANCE, &[2, 2, 1, 2, 4]].concat();
        write_bytes(&mut bytes, value);
        bytes
    };
    let wrong = |found| Error::WrongLength { field: "nonce", expected: 66, found };
    assert_eq!(refusal(25, &message(25, &[1; 65])), wrong(65));
    assert_eq!(refusal(26, &message(26, &[1; 67])), wrong(67));
    assert_eq!(refusal(3, &message(3, &[5; 33])), Error::InvalidPoint("factory_key"));
    assert_eq!(refusal(3, &message(3, &[2; 34])), Error::TrailingBytes { field: "factory_key", left: 1 });
    assert_eq!(refusal(13, &message(13, &[0; 9])), Error::InvalidTransaction("transaction"));
    let multiple = Error::NotMultiple { field: "partials", unit: 32, found: 33 };
    assert_eq!(refusal(10, &message(10, &[0; 33])), multiple);
}

#[test]
fn a_payload_fits_into_one_piggyback() {
    let mut bytes = vec![0, 47];
    bytes.resize(MAX_PAYLOAD_LEN, 0);
    assert_eq!(Payload::decode(&bytes), Ok(Payload::UnknownOdd(47)));
    bytes.push(0);
    assert!(matches!(refusal(47, &bytes), Error::TooLong { field: "payload", .. }));
}

/// The largest plan for a full factory still fits into one message.
#[test]
fn a_plan_for_all_clients_fits() {
    let mut plan = plan();
    plan.keys = vec![generator(); MAX_KEYS];
    plan.params.arity = vec![8; MAX_LEVELS - 1];
    plan.params.layers = vec![vec![DwLayer { states: 2, step: 48, base: 96 }; MAX_LAYERS]; MAX_LEVELS];
    plan.leaf = vec![plan.leaf[0].clone(); MAX_OUTPUTS];
    assert!(Payload::from(plan).encode().len() <= MAX_PAYLOAD_LEN);
}

/// Whatever decodes is stable: it encodes to no more bytes than it came from, and to the same message.
fn assert_stable(bytes: &[u8]) {
    if let Ok(message) = Payload::decode(bytes) {
        let again = message.encode();
        assert!(again.len() <= bytes.len());
        assert_eq!(Payload::decode(&again), Ok(message));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn every_message_comes_back(message in message()) {
        prop_assert_eq!(Payload::decode(&message.encode()), Ok(message.clone()));
        prop_assert_eq!(message.check(), Ok(()));
    }

    #[test]
    fn a_message_cut_short_is_refused(message in message(), cut in any::<usize>()) {
        let bytes = message.encode();
        let cut = Payload::decode(&bytes[..cut % bytes.len()]);
        // Only the culprit of an abort may be missing.
        match (message, cut) {
            (Payload::Abort(whole), Ok(Payload::Abort(cut))) => {
                prop_assert_eq!(cut, Abort { culprit: None, ..whole });
            },
            (_, cut) => prop_assert!(cut.is_err()),
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(number in 0u16..32, bytes in vec(any::<u8>(), 0..200)) {
        assert_stable(&bytes);
        assert_stable(&[&number.to_be_bytes()[..], &bytes].concat());
    }

    #[test]
    fn damaged_messages_do_no_harm(message in message(), damages in damage()) {
        let mut bytes = message.encode();
        apply(&damages, &mut bytes);
        assert_stable(&bytes);
    }
}
