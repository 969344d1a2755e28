//! The committed seeds of the fuzz target `wire`, and what the fuzzer has found.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/oracle.rs"]
mod oracle;
#[path = "../../fuzz/replay.rs"]
mod replay;

use std::collections::BTreeMap;

use bolt_tlv::blip56::Envelope;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

#[test]
fn seeds_hold() {
    replay::each("wire", oracle::run);
}

/// A message of every number, drawn from the strategies of the other tests, and the vectors of BOLT 1.
#[test]
#[ignore = "writes: make fuzz-seeds"]
fn write_seeds() {
    let mut runner = TestRunner::deterministic();
    let mut seeds = BTreeMap::new();
    let with_kind = |kind: u8, bytes: Vec<u8>| [vec![kind], bytes].concat();
    for _ in 0..2_000 {
        let message = common::payload::message().new_tree(&mut runner).unwrap().current();
        let bytes = message.encode();
        if bytes.len() < 1_500 && message.number() < 42 {
            seeds.entry(format!("payload-{:02}", message.number())).or_insert(with_kind(0, bytes));
        }
        let message = common::blip56::message().new_tree(&mut runner).unwrap().current();
        let bytes = message.encode(Envelope::default()).unwrap();
        if message.submessage() < 16 {
            seeds.entry(format!("message-{:02}", message.submessage())).or_insert(with_kind(1, bytes));
        }
    }
    let record = common::blip56::channel_in_factory().new_tree(&mut runner).unwrap().current();
    seeds.insert("channel_in_factory".into(), with_kind(2, record.encode_record()));
    for (at, stream) in
        ["", "fd00fe02abcd", "0001000100ff", "01020304", "fe00010040020708"].iter().enumerate()
    {
        seeds.insert(format!("stream-{at}"), with_kind(3, hex::decode(stream).unwrap()));
    }
    replay::write("wire", &seeds.into_iter().collect::<Vec<_>>());
}
