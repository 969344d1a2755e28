//! Submessages 6 to 14: a channel moves to a new funding outpoint together with its factory.

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::PublicKey;
use bitcoin::Txid;

use super::envelope::{Submessage, MAX_MESSAGE_LEN};
use super::protocol::PAYLOAD_TYPE;
use crate::tlv::{Reader, TlvRecords, TlvWriter, POINT_LEN};
use crate::Error;

/// Bytes around the payload of a submessage 6 or 8: message type, submessage, TLV type, TLV length and
/// the change record.
const CHANGE_OVERHEAD: usize = 2 + 2 + 3 + 3 + (3 + 1 + FactoryChange::LEN);

/// The longest payload one `factory_change_init` or `factory_change_ack` has room for: 65,448 bytes.
pub const MAX_CHANGE_PAYLOAD_LEN: usize = MAX_MESSAGE_LEN - CHANGE_OVERHEAD;

const CHANGE_TYPE: u64 = 1536;
const FUNDING_TYPE: u64 = 2560;
const CONTINUE_TYPE: u64 = 3072;
const LOCKED_TYPE: u64 = 3584;

/// The record `factory_change_tlv`: what one side puts into the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactoryChange {
    /// The channel to change.
    pub channel_id: [u8; 32],
    /// By how much the sender's balance grows, in sat; negative if it shrinks.
    pub funding_contribution_sat: i64,
    /// The sender's key in the new funding output. Should be a fresh one.
    pub funding_pubkey: PublicKey,
}

impl FactoryChange {
    const LEN: usize = 32 + 8 + POINT_LEN;

    fn put(&self, stream: &mut TlvWriter) {
        let mut value = self.channel_id.to_vec();
        value.extend(self.funding_contribution_sat.to_be_bytes());
        value.extend(self.funding_pubkey.serialize());
        stream.put(CHANGE_TYPE, value);
    }

    fn get(stream: &TlvRecords<'_>) -> Result<Self, Error> {
        let field = "factory_change";
        let value: [u8; Self::LEN] = stream.required(CHANGE_TYPE, field)?.exact()?;
        let mut reader = Reader::new(field, &value);
        let channel_id = reader.array()?;
        let funding_contribution_sat = reader.i64()?;
        let funding_pubkey = reader.point()?;
        Ok(Self { channel_id, funding_contribution_sat, funding_pubkey })
    }
}

/// The records `factory_change_funding_tlv` and `factory_change_continue_tlv`: a new funding outpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactoryOutpoint {
    /// The channel under change.
    pub channel_id: [u8; 32],
    /// The new funding transaction; internal byte order on the wire.
    pub funding_txid: Txid,
    /// The output of it.
    pub funding_output_index: u16,
}

impl FactoryOutpoint {
    const LEN: usize = 32 + 32 + 2;

    fn put(&self, tlv_type: u64, stream: &mut TlvWriter) {
        let mut value = self.channel_id.to_vec();
        value.extend(self.funding_txid.to_byte_array());
        value.extend(self.funding_output_index.to_be_bytes());
        stream.put(tlv_type, value);
    }

    fn get(record: Reader<'_>) -> Result<Self, Error> {
        let field = record.field();
        let value: [u8; Self::LEN] = record.exact()?;
        let mut reader = Reader::new(field, &value);
        let channel_id = reader.array()?;
        let funding_txid = Txid::from_byte_array(reader.array()?);
        let funding_output_index = reader.u16()?;
        Ok(Self { channel_id, funding_txid, funding_output_index })
    }
}

fn put_payload(payload: Option<&[u8]>, stream: &mut TlvWriter) {
    if let Some(payload) = payload {
        stream.put(PAYLOAD_TYPE, payload);
    }
}

fn get_payload(stream: &TlvRecords<'_>) -> Result<Option<Vec<u8>>, Error> {
    let record = stream.optional(PAYLOAD_TYPE, "factory_piggyback_payload");
    record.map(|record| Ok(record.all(MAX_CHANGE_PAYLOAD_LEN)?.to_vec())).transpose()
}

/// `factory_change_init` (6): the quiescence initiator proposes a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactoryChangeInit {
    /// Bytes for the channel's factory protocol, at most [`MAX_CHANGE_PAYLOAD_LEN`]; `None` and an empty
    /// payload are different things on the wire.
    pub payload: Option<Vec<u8>>,
    /// The initiator's side of the change.
    pub change: FactoryChange,
}

impl Submessage for FactoryChangeInit {
    const NUMBER: u16 = 6;
    const TYPES: &'static [u64] = &[PAYLOAD_TYPE, CHANGE_TYPE];

    fn put(&self, stream: &mut TlvWriter) {
        put_payload(self.payload.as_deref(), stream);
        self.change.put(stream);
    }

    fn get(stream: &TlvRecords<'_>) -> Result<Self, Error> {
        Ok(Self { payload: get_payload(stream)?, change: FactoryChange::get(stream)? })
    }
}

/// `factory_change_ack` (8): the other side agrees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactoryChangeAck {
    /// As in [`FactoryChangeInit`].
    pub payload: Option<Vec<u8>>,
    /// The other side's part in the change.
    pub change: FactoryChange,
}

impl Submessage for FactoryChangeAck {
    const NUMBER: u16 = 8;
    const TYPES: &'static [u64] = &[PAYLOAD_TYPE, CHANGE_TYPE];

    fn put(&self, stream: &mut TlvWriter) {
        put_payload(self.payload.as_deref(), stream);
        self.change.put(stream);
    }

    fn get(stream: &TlvRecords<'_>) -> Result<Self, Error> {
        Ok(Self { payload: get_payload(stream)?, change: FactoryChange::get(stream)? })
    }
}

/// `factory_change_funding` (10): the new funding outpoint, from both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactoryChangeFunding {
    /// The new outpoint.
    pub outpoint: FactoryOutpoint,
}

impl Submessage for FactoryChangeFunding {
    const NUMBER: u16 = 10;
    const TYPES: &'static [u64] = &[FUNDING_TYPE];

    fn put(&self, stream: &mut TlvWriter) {
        self.outpoint.put(FUNDING_TYPE, stream);
    }

    fn get(stream: &TlvRecords<'_>) -> Result<Self, Error> {
        let record = stream.required(FUNDING_TYPE, "factory_change_funding")?;
        Ok(Self { outpoint: FactoryOutpoint::get(record)? })
    }
}

/// `factory_change_continue` (12): the new factory state is complete, the channel may resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactoryChangeContinue {
    /// The outpoint of the sender's [`FactoryChangeFunding`] again.
    pub outpoint: FactoryOutpoint,
}

impl Submessage for FactoryChangeContinue {
    const NUMBER: u16 = 12;
    const TYPES: &'static [u64] = &[CONTINUE_TYPE];

    fn put(&self, stream: &mut TlvWriter) {
        self.outpoint.put(CONTINUE_TYPE, stream);
    }

    fn get(stream: &TlvRecords<'_>) -> Result<Self, Error> {
        let record = stream.required(CONTINUE_TYPE, "factory_change_continue")?;
        Ok(Self { outpoint: FactoryOutpoint::get(record)? })
    }
}

/// `factory_change_locked` (14): the old factory state is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactoryChangeLocked {
    /// The channel under change.
    pub channel_id: [u8; 32],
    /// The funding transaction from now on; internal byte order on the wire.
    pub funding_txid: Txid,
}

impl Submessage for FactoryChangeLocked {
    const NUMBER: u16 = 14;
    const TYPES: &'static [u64] = &[LOCKED_TYPE];

    fn put(&self, stream: &mut TlvWriter) {
        let mut value = self.channel_id.to_vec();
        value.extend(self.funding_txid.to_byte_array());
        stream.put(LOCKED_TYPE, value);
    }

    fn get(stream: &TlvRecords<'_>) -> Result<Self, Error> {
        let field = "factory_change_locked";
        let value: [u8; 64] = stream.required(LOCKED_TYPE, field)?.exact()?;
        let mut reader = Reader::new(field, &value);
        Ok(Self { channel_id: reader.array()?, funding_txid: Txid::from_byte_array(reader.array()?) })
    }
}
