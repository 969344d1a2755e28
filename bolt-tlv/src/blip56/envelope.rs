//! The message around every submessage: its type, its submessage number, its size limit.

use super::{
    FactoryChangeAck, FactoryChangeContinue, FactoryChangeFunding, FactoryChangeInit, FactoryChangeLocked,
    FactoryPiggyback, SupportedFactoryProtocols,
};
use crate::tlv::{Reader, TlvRecords, TlvWriter};
use crate::Error;

/// Bytes of a whole Lightning message, its type included (BOLT 8).
pub const MAX_MESSAGE_LEN: usize = 65_535;

/// Bytes of a Lightning message after its type.
const MAX_BODY_LEN: usize = MAX_MESSAGE_LEN - 2;

/// The Lightning message type that carries the factory submessages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// The type, in front of every factory message.
    pub message_type: u16,
}

impl Default for Envelope {
    /// The draft's `factory_message_id`, 32800 (0x8020).
    fn default() -> Self {
        Self { message_type: 32_800 }
    }
}

/// One submessage: its TLV stream and the types that stream knows.
pub(super) trait Submessage: Sized {
    const NUMBER: u16;
    const TYPES: &'static [u64];
    fn put(&self, stream: &mut TlvWriter);
    fn get(stream: &TlvRecords<'_>) -> Result<Self, Error>;
}

macro_rules! factory_message {
    ($($(#[$doc:meta])* $variant:ident($name:ident),)*) => {
        /// Any bLIP-56 message of the peer wire.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum FactoryMessage {
            $($(#[$doc])* $variant($name),)*
            /// An odd submessage that this version does not know; to be ignored (BOLT 1). Decoding drops
            /// its content, encoding writes the number alone.
            UnknownOdd {
                /// The submessage number.
                submessage: u16,
            },
        }

        impl FactoryMessage {
            /// The submessage number.
            pub fn submessage(&self) -> u16 {
                match self {
                    $(Self::$variant(_) => <$name as Submessage>::NUMBER,)*
                    Self::UnknownOdd { submessage } => *submessage,
                }
            }

            fn put(&self, stream: &mut TlvWriter) {
                match self {
                    $(Self::$variant(message) => message.put(stream),)*
                    Self::UnknownOdd { .. } => {},
                }
            }

            fn get(submessage: u16, bytes: &[u8]) -> Result<Self, Error> {
                match submessage {
                    $(<$name as Submessage>::NUMBER => {
                        let stream = TlvRecords::read(bytes, <$name as Submessage>::TYPES)?;
                        Ok(Self::$variant(<$name as Submessage>::get(&stream)?))
                    },)*
                    odd if odd % 2 == 1 => Ok(Self::UnknownOdd { submessage: odd }),
                    even => Err(Error::UnknownEvenSubmessage(even)),
                }
            }
        }

        $(
            impl From<$name> for FactoryMessage {
                fn from(message: $name) -> Self {
                    Self::$variant(message)
                }
            }
        )*
    };
}

factory_message! {
    /// 2: the factory protocols the sender supports.
    SupportedFactoryProtocols(SupportedFactoryProtocols),
    /// 4: bytes of a factory protocol.
    FactoryPiggyback(FactoryPiggyback),
    /// 6: the proposal to change the funding of a channel.
    ChangeInit(FactoryChangeInit),
    /// 8: the answer to the proposal.
    ChangeAck(FactoryChangeAck),
    /// 10: the new funding outpoint.
    ChangeFunding(FactoryChangeFunding),
    /// 12: leave to resume the channel on the old and the new funding.
    ChangeContinue(FactoryChangeContinue),
    /// 14: only the new funding is valid from here on.
    ChangeLocked(FactoryChangeLocked),
}

impl FactoryMessage {
    /// Writes the whole message, its type included.
    ///
    /// # Errors
    /// As [`FactoryMessage::encode_body`].
    pub fn encode(&self, envelope: Envelope) -> Result<Vec<u8>, Error> {
        let mut out = envelope.message_type.to_be_bytes().to_vec();
        out.extend(self.encode_body()?);
        Ok(out)
    }

    /// Writes the message without its type, for a transport that keeps the two apart.
    ///
    /// # Errors
    /// [`Error::TooLong`] if the message would exceed [`MAX_MESSAGE_LEN`]; [`Error::NotUnknownOdd`] for a
    /// [`FactoryMessage::UnknownOdd`] with an even number.
    pub fn encode_body(&self) -> Result<Vec<u8>, Error> {
        if let Self::UnknownOdd { submessage } = self {
            if submessage % 2 == 0 {
                return Err(Error::NotUnknownOdd(*submessage));
            }
        }
        let mut stream = TlvWriter::new();
        self.put(&mut stream);
        let mut out = self.submessage().to_be_bytes().to_vec();
        stream.write(&mut out);
        // Checked on the whole message: with exact record overheads this is what the limits on payloads
        // and on the number of protocol ids come from.
        Reader::new("message body", &out).all(MAX_BODY_LEN)?;
        Ok(out)
    }

    /// Reads a whole message, its type included.
    ///
    /// # Errors
    /// [`Error::NotFactoryMessage`] if the type is not the envelope's; otherwise as
    /// [`FactoryMessage::decode_body`].
    pub fn decode(bytes: &[u8], envelope: Envelope) -> Result<Self, Error> {
        let mut reader = Reader::new("message type", bytes);
        let found = reader.u16().map_err(|source| in_message(0, source))?;
        if found != envelope.message_type {
            return Err(Error::NotFactoryMessage { expected: envelope.message_type, found });
        }
        let body = reader.all(usize::MAX)?;
        Self::decode_body(body)
    }

    /// Reads a message without its type.
    ///
    /// # Errors
    /// [`Error::Message`] around the reason. Its [`Error::action`] is always to warn and close the
    /// connection.
    pub fn decode_body(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new("submessage", bytes);
        let number = reader.u16().map_err(|source| in_message(0, source))?;
        let limit = MAX_BODY_LEN.saturating_sub(2);
        let stream = Reader::new("message body", reader.all(usize::MAX)?);
        let stream = stream.all(limit).map_err(|source| in_message(number, source))?;
        Self::get(number, stream).map_err(|source| in_message(number, source))
    }
}

fn in_message(submessage: u16, source: Error) -> Error {
    Error::Message { submessage, source: Box::new(source) }
}
