//! bLIP-56 messages beyond the vectors: limits, envelope, actions, round trips and damaged input.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bitcoin::hashes::{sha256, Hash};
use bolt_tlv::blip56::*;
use bolt_tlv::{Action, Error};
use common::blip56::{channel_in_factory, message};
use common::{apply, damage, generator};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn our_protocol_id_is_the_hash_of_its_name_and_version() {
    let preimage = ["ldk-superscalar", "1"].concat();
    assert_eq!(sha256::Hash::hash(preimage.as_bytes()).to_byte_array(), PROTOCOL_ID);
}

/// The three largest messages fit exactly; one byte or one id more does not.
#[test]
fn size_limits_are_exact() {
    assert_eq!(
        (MAX_PIGGYBACK_PAYLOAD_LEN, MAX_CHANGE_PAYLOAD_LEN, MAX_PROTOCOL_IDS),
        (65_491, 65_448, 2_047)
    );
    let envelope = Envelope::default();
    let piggyback = |len| FactoryPiggyback { protocol_id: [1; 32], payload: vec![7; len] }.into();
    let change = FactoryChange {
        channel_id: [2; 32],
        funding_contribution_sat: i64::MIN,
        funding_pubkey: generator(),
    };
    let init = |len| FactoryChangeInit { payload: Some(vec![7; len]), change }.into();
    let ack = |len| FactoryChangeAck { payload: Some(vec![7; len]), change }.into();
    let ids = |len| SupportedFactoryProtocols { protocol_ids: vec![[3; 32]; len] }.into();
    type Make<'a> = &'a dyn Fn(usize) -> FactoryMessage;
    let cases: [(Make, usize, usize); 4] = [
        (&piggyback, MAX_PIGGYBACK_PAYLOAD_LEN, 0),
        (&init, MAX_CHANGE_PAYLOAD_LEN, 0),
        (&ack, MAX_CHANGE_PAYLOAD_LEN, 0),
        (&ids, MAX_PROTOCOL_IDS, 21),
    ];
    for (make, most, spare) in cases {
        let bytes = make(most).encode(envelope).unwrap();
        assert_eq!(bytes.len(), MAX_MESSAGE_LEN - spare);
        assert_eq!(FactoryMessage::decode(&bytes, envelope), Ok(make(most)));
        assert!(matches!(make(most + 1).encode(envelope), Err(Error::TooLong { .. })));
    }
    // A body longer than any message can be is refused even if all that is too long is ignorable.
    let mut long = vec![0, 3];
    long.resize(MAX_MESSAGE_LEN - 2, 0);
    assert_eq!(FactoryMessage::decode_body(&long), Ok(FactoryMessage::UnknownOdd { submessage: 3 }));
    long.push(0);
    let error = FactoryMessage::decode_body(&long).unwrap_err();
    assert_eq!(
        error.to_string(),
        "factory submessage 3: message body: 65532 bytes, at most 65531 are allowed"
    );
}

#[test]
fn the_envelope_is_a_parameter() {
    let message = FactoryMessage::from(SupportedFactoryProtocols::default());
    let odd = Envelope { message_type: 33_001 };
    let bytes = message.encode(odd).unwrap();
    assert_eq!(hex::encode(&bytes), "80e90002fd020000");
    assert_eq!(FactoryMessage::decode(&bytes, odd), Ok(message));
    let error = FactoryMessage::decode(&bytes, Envelope::default()).unwrap_err();
    assert_eq!(error, Error::NotFactoryMessage { expected: 32_800, found: 33_001 });
    assert_eq!(error.action(), None);
    for short in [&[][..], &[0x80]] {
        let error = FactoryMessage::decode(short, Envelope::default()).unwrap_err();
        assert!(matches!(error, Error::Message { submessage: 0, .. }));
    }
}

/// Types that another submessage knows are unknown here: each has a namespace of its own.
#[test]
fn submessages_do_not_share_tlv_types() {
    let change = format!("fd060049{}{}{}", "cc".repeat(32), "00".repeat(8), common::GENERATOR);
    let id = format!("0020{}", "aa".repeat(32));
    for (body, foreign) in [("0002fd020000fd040000".to_owned(), 1024), (format!("0006{id}{change}"), 0)] {
        let error = FactoryMessage::decode_body(&hex::decode(body).unwrap()).unwrap_err();
        assert!(error.to_string().ends_with(&format!("tlv type {foreign} is even and unknown")), "{error}");
    }
}

#[test]
fn every_required_record_is_required() {
    for (submessage, tlv_type) in [(2, 512), (4, 0), (6, 1536), (8, 1536), (10, 2560), (12, 3072), (14, 3584)]
    {
        let error = FactoryMessage::decode_body(&[0, submessage]).unwrap_err();
        assert_eq!(error.action(), Some(Action::WarningAndClose));
        assert!(error.to_string().ends_with(&format!("required record (tlv type {tlv_type}) is missing")));
    }
}

#[test]
fn fixed_records_are_neither_short_nor_long() {
    let lens = [("000afd0a00", 66), ("000cfd0c00", 66), ("000efd0e00", 64), ("0006fd0600", 73)];
    for (head, len) in lens {
        for found in [0, len - 1, len + 1] {
            let bytes = hex::decode(format!("{head}{found:02x}{}", "02".repeat(found))).unwrap();
            let error = FactoryMessage::decode_body(&bytes).unwrap_err().to_string();
            assert!(error.ends_with(&format!("must be {len} bytes, is {found}")), "{error}");
        }
    }
    for len in [0, 65, 67] {
        let error = ChannelInFactory::decode_value(&vec![0; len]).unwrap_err();
        assert_eq!(error.action(), Some(Action::ErrorAndFail));
    }
}

#[test]
fn an_unknown_message_must_be_odd_to_be_written() {
    let even = FactoryMessage::UnknownOdd { submessage: 16 };
    assert_eq!(even.encode_body(), Err(Error::NotUnknownOdd(16)));
}

#[test]
fn only_protocols_of_both_sides_are_in_common() {
    let list =
        |ids: &[u8]| SupportedFactoryProtocols { protocol_ids: ids.iter().map(|id| [*id; 32]).collect() };
    assert_eq!(list(&[3, 1, 3, 2]).in_common(&list(&[2, 3, 4])), vec![[3; 32], [2; 32]]);
    assert!(list(&[1]).in_common(&list(&[])).is_empty());
}

#[test]
fn failed_checks_cost_what_the_draft_says() {
    let action = |check| Error::from(check).action();
    assert_eq!(action(FailedCheck::ProtocolNotListed), Some(Action::WarningAndClose));
    assert_eq!(action(FailedCheck::UnexpectedOutpoint), Some(Action::WarningOrError));
    assert_eq!(action(FailedCheck::HtlcExpiresTooEarly), Some(Action::ErrorAndFail));
}

/// Whatever decodes is stable: it encodes to no more bytes than it came from, and to the same message.
fn assert_stable(body: &[u8]) {
    if let Ok(message) = FactoryMessage::decode_body(body) {
        let again = message.encode_body().unwrap();
        assert!(again.len() <= body.len());
        assert_eq!(FactoryMessage::decode_body(&again), Ok(message));
    }
}

proptest! {
    #[test]
    fn every_message_comes_back(message in message(), message_type in any::<u16>()) {
        let envelope = Envelope { message_type };
        let bytes = message.encode(envelope).unwrap();
        let decoded = FactoryMessage::decode(&bytes, envelope);
        prop_assert_eq!(decoded, Ok(message));
    }

    #[test]
    fn every_channel_record_comes_back(channel in channel_in_factory()) {
        prop_assert_eq!(ChannelInFactory::decode_value(&channel.encode_value()), Ok(channel));
        prop_assert_eq!(ChannelInFactory::decode_record(&channel.encode_record()), Ok(channel));
    }

    #[test]
    fn a_message_cut_short_is_refused(message in message(), cut in any::<usize>()) {
        let bytes = message.encode_body().unwrap();
        let cut = &bytes[..cut % bytes.len()];
        // Every known message ends in a required record, and an unknown one is its number alone.
        prop_assert!(FactoryMessage::decode_body(cut).is_err());
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(number in 0u16..20, bytes in vec(any::<u8>(), 0..200)) {
        assert_stable(&bytes);
        assert_stable(&[&number.to_be_bytes()[..], &bytes].concat());
        let _ = ChannelInFactory::decode_record(&bytes);
    }

    #[test]
    fn damaged_messages_do_no_harm(message in message(), damages in damage()) {
        let mut bytes = message.encode_body().unwrap();
        apply(&damages, &mut bytes);
        assert_stable(&bytes);
    }
}
