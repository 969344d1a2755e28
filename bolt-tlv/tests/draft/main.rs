//! The test vectors of blip-draft.md: made by this crate's code, read back by it, and the same in the draft and in
//! `tests/vectors`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod messages;
#[path = "../common/printed.rs"]
mod printed;
mod refused;
mod shown;

use std::collections::{BTreeMap, BTreeSet};

use bolt_tlv::payload::Payload;
use bolt_tlv::tlv::Reader;
use printed::{brief, line, Printed};
use refused::Case;
use serde_json::{json, Value};
use shown::Vector;

fn payloads() -> Printed {
    let vectors: Vec<Vector> = messages::all();
    let cases: Vec<Case> = [refused::malformed(), refused::limits()].into_iter().flatten().collect();
    let message = |v: &Vector| {
        json!({
            "name": v.name,
            "number": v.payload.number(),
            "message": v.message,
            "fields": v.fields,
            "payload": hex::encode(v.payload.encode()),
        })
    };
    let case = |c: &Case| json!({"name": c.name, "parts": c.parts, "error": c.error});
    let json = json!({
        "about": "Payloads of the factory protocol. A payload given as parts: each part's hex, so many times, one \
                  after the other. Without an error it has to be accepted.",
        "messages": vectors.iter().map(message).collect::<Value>(),
        "cases": cases.iter().map(case).collect::<Value>(),
    });
    let mut text = String::new();
    for v in &vectors {
        let said = format!("number {}{}", v.payload.number(), fields(&v.fields));
        text.push_str(&line(&v.name, &said, &hex::encode(v.payload.encode())));
    }
    text.push_str("\nTo be refused, but for those that say otherwise:\n\n");
    for c in &cases {
        let said = c.error.map_or_else(|| "accepted".to_owned(), |error| format!("\"{error}\""));
        match c.parts.as_slice() {
            [(hex, 1)] => text.push_str(&line(c.name, &said, hex)),
            _ => text.push_str(&format!("- **{}**, {said} (in the file only)\n", c.name)),
        }
    }
    Printed { file: Some(("bolt-tlv/tests/vectors/payload.json", json)), block: "payloads", text }
}

/// The fields that are not the same in all of them.
fn fields(fields: &Value) -> String {
    let fields = fields.as_object().unwrap().iter();
    let own = fields.filter(|(name, _)| !["instance_id", "attempt", "channel_id"].contains(&name.as_str()));
    own.map(|(name, value)| format!(", {name} {}", brief(value))).collect()
}

/// The messages of bLIP-56 itself, which are in text files.
fn blip56() -> String {
    let print = |text: &str, refused: bool| {
        let mut out = String::new();
        let mut said = "";
        for row in text.lines() {
            if let Some(comment) = row.strip_prefix("# ") {
                said = comment;
            } else if let Some((name, rest)) = row.split_once(' ') {
                let (hex, reason) = rest.split_once(' ').unwrap_or((rest, ""));
                assert_eq!(refused, !reason.is_empty(), "{name}");
                out.push_str(&line(name, said, hex));
            }
        }
        out
    };
    let accepted = print(include_str!("../vectors/accepted.txt"), false);
    let refused = print(include_str!("../vectors/rejected.txt"), true);
    format!("{accepted}\nTo be refused:\n\n{refused}")
}

fn framing() -> Printed {
    Printed { file: None, block: "bLIP-56 messages", text: blip56() }
}

#[test]
fn every_message_has_a_vector_and_comes_back() {
    let vectors = messages::all();
    let mut numbers = BTreeSet::new();
    for v in &vectors {
        let bytes = v.payload.encode();
        assert_eq!(Payload::decode(&bytes), Ok(v.payload.clone()), "{}", v.name);
        numbers.insert(v.payload.number());
    }
    let known = |number: &u16| {
        !matches!(Payload::decode(&number.to_be_bytes()), Ok(Payload::UnknownOdd(_)))
            && !matches!(Payload::decode(&number.to_be_bytes()), Err(e) if e.to_string().contains("is even and unknown"))
    };
    assert_eq!(numbers, (0..1000).filter(known).collect());
}

#[test]
fn cases_end_as_they_say() {
    for case in refused::malformed().into_iter().chain(refused::limits()) {
        let hex: String = case.parts.iter().map(|(hex, times)| hex.repeat(*times)).collect();
        let bytes = hex::decode(hex).unwrap();
        match (case.error, Payload::decode(&bytes)) {
            (None, Ok(Payload::UnknownOdd(_))) => {}
            (None, Ok(payload)) if case.name.starts_with("unknown odd record") => {
                assert!(payload.encode().len() < bytes.len());
            }
            (None, Ok(payload)) => assert_eq!(payload.encode(), bytes, "{}", case.name),
            (Some(error), Err(e)) => assert!(e.to_string().contains(error), "{}: {e}", case.name),
            (_, other) => panic!("{}: {other:?}", case.name),
        }
    }
}

/// Types of the records of an encoded message.
fn types(payload: &Payload) -> BTreeSet<u64> {
    let bytes = payload.encode();
    let mut reader = Reader::new("payload", &bytes[2..]);
    let mut types = BTreeSet::new();
    while reader.left() > 0 {
        types.insert(reader.bigsize().unwrap());
        let length = reader.bigsize().unwrap();
        reader.take(length).unwrap();
    }
    types
}

/// The table of messages in the draft: numbers, names, who sends them, records.
#[test]
fn the_drafts_table_has_these_messages_and_records() {
    let mut coded: BTreeMap<u16, (String, BTreeSet<u64>)> = BTreeMap::new();
    for v in messages::all() {
        let entry = coded.entry(v.payload.number()).or_insert((v.message.to_owned(), BTreeSet::new()));
        entry.1.extend(types(&v.payload));
    }
    let draft = printed::draft();
    let mut printed = BTreeMap::new();
    for row in draft.lines().filter(|row| row.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, name, way, records] = cells[..] else { continue };
        let Ok(number) = number.parse::<u16>() else { continue };
        if !["C to S", "S to C", "both"].iter().any(|w| way.starts_with(w)) {
            continue;
        }
        let first = |record: &str| record.trim().split(' ').next().unwrap().parse().ok();
        let mut types: BTreeSet<u64> = records.trim_end_matches('|').split(';').filter_map(first).collect();
        match number {
            1 | 50..=57 => {}
            20 | 43 | 45 => types.extend([0]),
            _ => types.extend([0, 2]),
        }
        printed.insert(number, (name.to_owned(), types));
    }
    assert_eq!(printed, coded);
}

#[test]
fn file_and_draft_have_these_vectors() {
    payloads().check();
    framing().check();
}

#[test]
#[ignore = "writes: make vectors"]
fn write_vectors() {
    payloads().write();
    framing().write();
}
