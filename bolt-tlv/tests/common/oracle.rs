//! What holds for any bytes that come over the wire. Run by `tests/seeds.rs` over the committed seeds, and by the fuzz
//! target `wire`.

use bolt_tlv::blip56::{ChannelInFactory, Envelope, FactoryMessage};
use bolt_tlv::payload::{Payload, MAX_PAYLOAD_LEN, MAX_TEXT_LEN};
use bolt_tlv::tlv::{Reader, TlvRecords, TlvWriter};
use bolt_tlv::Error;

/// Known types of the stream that [`run`] reads by itself.
const TYPES: [u64; 5] = [0, 1, 2, 254, 65_600];

/// What the first byte of an input chooses.
const KINDS: [&str; 4] = ["payload", "message", "channel_in_factory", "stream"];

/// The first byte says how the others are read.
pub fn run(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match usize::from(*kind) % KINDS.len() {
        0 => payload(bytes),
        1 => message(bytes),
        2 => channel_in_factory(bytes),
        _ => stream(bytes),
    }
}

/// An error can be shown and says what it costs.
fn refused(error: &Error) {
    assert!(error.to_string().len() < 1_000, "{error}");
    let _ = error.action();
}

/// What was read is written the same way again. Only unknown odd records may get lost on the way, so a message without
/// any has one encoding.
fn same(bytes: &[u8], again: &[u8]) {
    assert!(again.len() <= bytes.len());
    assert!(again.len() < bytes.len() || again == bytes, "two encodings of one message");
}

fn payload(bytes: &[u8]) {
    match Payload::decode(bytes) {
        Ok(message) => {
            assert!(bytes.len() <= MAX_PAYLOAD_LEN);
            let again = message.encode();
            same(bytes, &again);
            assert_eq!(Payload::decode(&again).as_ref(), Ok(&message));
            if let Payload::Decline(m) = &message {
                assert!(m.text.len() <= MAX_TEXT_LEN);
            }
            let named = message.instance_id().is_some();
            assert!(named || message.attempt().is_none(), "an attempt at no factory");
        }
        Err(error) => refused(&error),
    }
}

fn message(bytes: &[u8]) {
    let envelope = Envelope::default();
    match FactoryMessage::decode(bytes, envelope) {
        Ok(message) => {
            let again = message.encode(envelope).unwrap();
            same(bytes, &again);
            assert_eq!(FactoryMessage::decode(&again, envelope).as_ref(), Ok(&message));
            if let FactoryMessage::FactoryPiggyback(inner) = &message {
                payload(&inner.payload);
            }
        }
        Err(error) => refused(&error),
    }
}

fn channel_in_factory(bytes: &[u8]) {
    match ChannelInFactory::decode_record(bytes) {
        Ok(record) => {
            same(bytes, &record.encode_record());
            assert_eq!(ChannelInFactory::decode_value(&record.encode_value()), Ok(record));
        }
        Err(error) => refused(&error),
    }
}

fn stream(bytes: &[u8]) {
    let records = match TlvRecords::read(bytes, &TYPES) {
        Ok(records) => records,
        Err(error) => return refused(&error),
    };
    let mut writer = TlvWriter::new();
    for tlv_type in TYPES {
        let Some(record) = records.optional(tlv_type, "record") else { continue };
        let value = record.clone().all(usize::MAX).unwrap();
        writer.put(tlv_type, value);
        readings(&record);
    }
    let mut again = Vec::new();
    writer.write(&mut again);
    same(bytes, &again);
}

/// Whatever is read, no more is consumed than is there.
fn readings(record: &Reader<'_>) {
    let len = record.left();
    let mut numbers = record.clone();
    while numbers.left() > 0 {
        let before = numbers.left();
        if numbers.bigsize().is_err() {
            break;
        }
        assert!(numbers.left() < before);
    }
    let mut lists = record.clone();
    while let Ok(bytes) = lists.bytes(100) {
        assert!(bytes.len() <= 100);
        if lists.left() == 0 {
            break;
        }
    }
    if let Ok(points) = record.clone().points(7) {
        assert_eq!(points.len() * 33, len);
    }
    if let Ok(text) = record.clone().text(9) {
        assert!(text.len() <= 9);
    }
}
