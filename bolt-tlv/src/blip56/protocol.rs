//! Submessages 2 and 4: which factory protocols a node supports, and the bytes they exchange.

use super::envelope::{Submessage, MAX_MESSAGE_LEN};
use crate::tlv::{TlvRecords, TlvWriter};
use crate::Error;

/// The name of a factory protocol: 32 opaque bytes.
pub type ProtocolId = [u8; 32];

/// The id of our own factory protocol.
///
/// It is the SHA-256 of the 16 ASCII bytes `ldk-superscalar1`: the protocol's name joined to its major
/// version, as the draft recommends, without a separator.
pub const PROTOCOL_ID: ProtocolId = [
    0x44, 0xc7, 0xf9, 0xb3, 0x68, 0xad, 0xf3, 0x4a, 0x51, 0x36, 0xf4, 0xcb, 0x73, 0xdf, 0xa2, 0xdb, 0x4f,
    0x96, 0xe3, 0xd2, 0x9e, 0x22, 0x3f, 0x30, 0xb0, 0x98, 0x49, 0xce, 0xe5, 0x60, 0xab, 0x86,
];

/// Bytes in front of the first id of a submessage 2: message type, submessage, TLV type, TLV length.
const IDS_OVERHEAD: usize = 2 + 2 + 3 + 3;

/// The most protocol ids one message has room for: 2047.
pub const MAX_PROTOCOL_IDS: usize = (MAX_MESSAGE_LEN - IDS_OVERHEAD) / 32;

/// Bytes around the payload of a submessage 4: message type, submessage, the id's record, TLV type, TLV
/// length.
const PIGGYBACK_OVERHEAD: usize = 2 + 2 + 34 + 3 + 3;

/// The longest payload one `factory_piggyback` has room for: 65,491 bytes.
pub const MAX_PIGGYBACK_PAYLOAD_LEN: usize = MAX_MESSAGE_LEN - PIGGYBACK_OVERHEAD;

const ID_TYPE: u64 = 0;
const IDS_TYPE: u64 = 512;
pub(super) const PAYLOAD_TYPE: u64 = 1024;

/// `supported_factory_protocols` (2), sent once the peer's `init` shows the feature bit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SupportedFactoryProtocols {
    /// The ids, at most [`MAX_PROTOCOL_IDS`]; may be empty. Order and repetitions are kept as received.
    pub protocol_ids: Vec<ProtocolId>,
}

impl SupportedFactoryProtocols {
    /// The ids that both sides listed, without repetitions, in the order of `self`. Only these may be
    /// used between the two nodes.
    pub fn in_common(&self, other: &Self) -> Vec<ProtocolId> {
        let mut common: Vec<ProtocolId> = Vec::new();
        for id in &self.protocol_ids {
            if other.protocol_ids.contains(id) && !common.contains(id) {
                common.push(*id);
            }
        }
        common
    }
}

impl Submessage for SupportedFactoryProtocols {
    const NUMBER: u16 = 2;
    const TYPES: &'static [u64] = &[IDS_TYPE];

    fn put(&self, stream: &mut TlvWriter) {
        stream.put(IDS_TYPE, self.protocol_ids.concat());
    }

    fn get(stream: &TlvRecords<'_>) -> Result<Self, Error> {
        let protocol_ids = stream.required(IDS_TYPE, "factory_protocol_ids")?.arrays(MAX_PROTOCOL_IDS)?;
        Ok(Self { protocol_ids })
    }
}

/// `factory_piggyback` (4): bytes that only the factory protocol understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactoryPiggyback {
    /// The protocol the payload belongs to; both sides must have listed it.
    pub protocol_id: ProtocolId,
    /// The payload, at most [`MAX_PIGGYBACK_PAYLOAD_LEN`] bytes.
    pub payload: Vec<u8>,
}

impl Submessage for FactoryPiggyback {
    const NUMBER: u16 = 4;
    const TYPES: &'static [u64] = &[ID_TYPE, PAYLOAD_TYPE];

    fn put(&self, stream: &mut TlvWriter) {
        stream.put(ID_TYPE, self.protocol_id);
        stream.put(PAYLOAD_TYPE, self.payload.as_slice());
    }

    fn get(stream: &TlvRecords<'_>) -> Result<Self, Error> {
        let protocol_id = stream.required(ID_TYPE, "factory_protocol_id")?.exact()?;
        let payload = stream.required(PAYLOAD_TYPE, "factory_piggyback_payload")?;
        Ok(Self { protocol_id, payload: payload.all(MAX_PIGGYBACK_PAYLOAD_LEN)?.to_vec() })
    }
}
