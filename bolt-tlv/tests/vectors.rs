//! The bLIP-56 vectors in `tests/vectors/`: what they decode to, and why the bad ones are refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;

use bitcoin::hashes::Hash;
use bitcoin::Txid;
use bolt_tlv::blip56::*;
use bolt_tlv::{Action, Error};
use common::generator;

const ACCEPTED: &str = include_str!("vectors/accepted.txt");
const REJECTED: &str = include_str!("vectors/rejected.txt");

/// Splits a vector file into name, bytes and the rest of the line.
fn vectors(text: &str) -> BTreeMap<&str, (Vec<u8>, &str)> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = lines.map(|line| {
        let (name, line) = line.split_once(' ').unwrap();
        let (hex, rest) = line.split_once(' ').unwrap_or((line, ""));
        (name, (hex::decode(hex).unwrap(), rest))
    });
    split.collect()
}

fn change(funding_contribution_sat: i64) -> FactoryChange {
    FactoryChange { channel_id: [0xcc; 32], funding_contribution_sat, funding_pubkey: generator() }
}

fn txid() -> Txid {
    Txid::from_byte_array(std::array::from_fn(|place| place as u8))
}

fn expected(name: &str) -> FactoryMessage {
    let protocol_id = [0xaa; 32];
    let outpoint = FactoryOutpoint { channel_id: [0xcc; 32], funding_txid: txid(), funding_output_index: 1 };
    match name {
        "V2" | "N9" => SupportedFactoryProtocols { protocol_ids: vec![] }.into(),
        "V3" => SupportedFactoryProtocols { protocol_ids: vec![protocol_id] }.into(),
        "V4" => SupportedFactoryProtocols { protocol_ids: (1..=8).map(|byte| [byte; 32]).collect() }.into(),
        "V5" => FactoryPiggyback { protocol_id, payload: vec![] }.into(),
        "V6" => FactoryPiggyback { protocol_id, payload: b"hello".to_vec() }.into(),
        "V7" => FactoryChangeInit { payload: None, change: change(0) }.into(),
        "V8" => FactoryChangeInit { payload: Some(vec![1, 2]), change: change(100_000) }.into(),
        "V9" => FactoryChangeAck { payload: None, change: change(-100_000) }.into(),
        "V10" => FactoryChangeFunding { outpoint }.into(),
        "V11" => FactoryChangeContinue { outpoint }.into(),
        "V12" => FactoryChangeLocked { channel_id: [0xcc; 32], funding_txid: txid() }.into(),
        "N10" => FactoryMessage::UnknownOdd { submessage: 3 },
        other => panic!("no expectation for {other}"),
    }
}

#[test]
fn accepted_messages_decode_and_encode_to_the_byte() {
    let mut vectors = vectors(ACCEPTED);
    let (record, _) = vectors.remove("V1").unwrap();
    let channel =
        ChannelInFactory { protocol_id: [0xaa; 32], instance_id: [0xbb; 32], early_warning_time: 144 };
    assert_eq!(ChannelInFactory::decode_record(&record), Ok(channel));
    assert_eq!(ChannelInFactory::decode_value(&record[6..]), Ok(channel));
    assert_eq!(channel.encode_record(), record);

    assert_eq!(vectors.len(), 13);
    for (name, (bytes, _)) in vectors {
        let message = expected(name);
        assert_eq!(FactoryMessage::decode(&bytes, Envelope::default()), Ok(message.clone()), "{name}");
        assert_eq!(FactoryMessage::decode_body(&bytes[2..]), Ok(message.clone()), "{name}");
        // N9 holds an unknown odd record, which is not written back.
        let known = if name == "N9" { &bytes[..8] } else { &bytes[..] };
        assert_eq!(message.encode(Envelope::default()).unwrap(), known, "{name}");
        assert_eq!(message.encode_body().unwrap(), &known[2..], "{name}");
    }
}

#[test]
fn rejected_messages_are_refused_for_the_stated_reason() {
    let vectors = vectors(REJECTED);
    assert_eq!(vectors.len(), 11);
    for (name, (bytes, reason)) in vectors {
        let error = FactoryMessage::decode(&bytes, Envelope::default()).unwrap_err();
        assert!(!reason.is_empty() && error.to_string().contains(reason), "{name}: {error}");
        assert!(matches!(error, Error::Message { .. }), "{name}: {error:?}");
        assert_eq!(error.action(), Some(Action::WarningAndClose), "{name}");
    }
}
