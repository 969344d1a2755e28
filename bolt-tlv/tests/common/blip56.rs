//! Strategies for the messages of bLIP-56.

use bolt_tlv::blip56::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{bytes, key, txid};

fn change() -> impl Strategy<Value = FactoryChange> {
    (bytes(), any::<i64>(), key()).prop_map(|(channel_id, funding_contribution_sat, funding_pubkey)| {
        FactoryChange { channel_id, funding_contribution_sat, funding_pubkey }
    })
}

fn outpoint() -> impl Strategy<Value = FactoryOutpoint> {
    (bytes(), txid(), any::<u16>()).prop_map(|(channel_id, funding_txid, funding_output_index)| {
        FactoryOutpoint { channel_id, funding_txid, funding_output_index }
    })
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..400)
}

pub fn channel_in_factory() -> impl Strategy<Value = ChannelInFactory> {
    (bytes(), bytes(), any::<u16>()).prop_map(|(protocol_id, instance_id, early_warning_time)| {
        ChannelInFactory { protocol_id, instance_id, early_warning_time }
    })
}

pub fn message() -> impl Strategy<Value = FactoryMessage> {
    prop_oneof![
        vec(bytes(), 0..20).prop_map(|protocol_ids| SupportedFactoryProtocols { protocol_ids }.into()),
        (bytes(), payload())
            .prop_map(|(protocol_id, payload)| FactoryPiggyback { protocol_id, payload }.into()),
        (option::of(payload()), change())
            .prop_map(|(payload, change)| FactoryChangeInit { payload, change }.into()),
        (option::of(payload()), change())
            .prop_map(|(payload, change)| FactoryChangeAck { payload, change }.into()),
        outpoint().prop_map(|outpoint| FactoryChangeFunding { outpoint }.into()),
        outpoint().prop_map(|outpoint| FactoryChangeContinue { outpoint }.into()),
        (bytes(), txid()).prop_map(|(channel_id, funding_txid)| FactoryChangeLocked {
            channel_id,
            funding_txid
        }
        .into()),
        (0u16..=0x7fff).prop_map(|half| FactoryMessage::UnknownOdd { submessage: 2 * half + 1 }),
    ]
}
