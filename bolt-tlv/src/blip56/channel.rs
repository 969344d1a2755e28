//! The record `channel_in_factory`, by which `open_channel` says that the channel lives in a factory.

use super::ProtocolId;
use crate::tlv::{Reader, TlvRecords, TlvWriter};
use crate::Error;

/// TLV type of the record in `open_channel` (65600, even).
pub const CHANNEL_IN_FACTORY_TYPE: u64 = 65_600;

/// Bytes of the record's value.
pub const CHANNEL_IN_FACTORY_LEN: usize = 32 + 32 + 2;

/// `channel_in_factory`: which factory the channel being opened lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelInFactory {
    /// The factory protocol; the receiver must have listed it.
    pub protocol_id: ProtocolId,
    /// The factory.
    pub instance_id: [u8; 32],
    /// Blocks before the expiry of an HTLC at which the factory must start to be unrolled.
    pub early_warning_time: u16,
}

impl ChannelInFactory {
    /// Writes the value of the record.
    pub fn encode_value(&self) -> Vec<u8> {
        let mut value = self.protocol_id.to_vec();
        value.extend(self.instance_id);
        value.extend(self.early_warning_time.to_be_bytes());
        value
    }

    /// Reads the value of the record.
    ///
    /// # Errors
    /// [`Error::ChannelInFactory`] if it is not [`CHANNEL_IN_FACTORY_LEN`] bytes.
    pub fn decode_value(value: &[u8]) -> Result<Self, Error> {
        Self::parse_value(value).map_err(in_record)
    }

    /// Writes the record: type, length and value.
    pub fn encode_record(&self) -> Vec<u8> {
        let mut stream = TlvWriter::new();
        stream.put(CHANNEL_IN_FACTORY_TYPE, self.encode_value());
        let mut out = Vec::new();
        stream.write(&mut out);
        out
    }

    /// Reads a TLV stream that holds the record. Unknown odd records beside it are skipped.
    ///
    /// # Errors
    /// [`Error::ChannelInFactory`] around the reason.
    pub fn decode_record(record: &[u8]) -> Result<Self, Error> {
        Self::parse_record(record).map_err(in_record)
    }

    fn parse_record(record: &[u8]) -> Result<Self, Error> {
        let stream = TlvRecords::read(record, &[CHANNEL_IN_FACTORY_TYPE])?;
        let value = stream.required(CHANNEL_IN_FACTORY_TYPE, "channel_in_factory")?;
        Self::parse_value(value.all(usize::MAX)?)
    }

    fn parse_value(value: &[u8]) -> Result<Self, Error> {
        let field = "channel_in_factory";
        let value: [u8; CHANNEL_IN_FACTORY_LEN] = Reader::new(field, value).exact()?;
        let mut reader = Reader::new(field, &value);
        Ok(Self {
            protocol_id: reader.array()?,
            instance_id: reader.array()?,
            early_warning_time: reader.u16()?,
        })
    }
}

fn in_record(source: Error) -> Error {
    Error::ChannelInFactory(Box::new(source))
}
