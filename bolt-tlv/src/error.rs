//! The one error type of this crate, and what the sender of a faulty message is owed for it.

use crate::blip56::FailedCheck;

/// What bLIP-56 asks a node to do about a message that fails a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send `warning` and close the connection. The channel lives on.
    WarningAndClose,
    /// Either send `warning` and close the connection, or send `error` and fail the channel.
    WarningOrError,
    /// Send `error` and fail the channel.
    ErrorAndFail,
}

/// Why bytes were refused, or why a value could not be written.
///
/// Every message names the field concerned and, where there is one, the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The input ends inside a field.
    #[error("{field}: needs {needed} bytes, {left} are left")]
    Truncated {
        /// The field being read.
        field: &'static str,
        /// Bytes the field needs.
        needed: u64,
        /// Bytes that were left.
        left: usize,
    },
    /// A BigSize integer uses more bytes than its value needs (BOLT 1).
    #[error("{field}: bigsize {value} is not minimally encoded")]
    NotMinimal {
        /// The field being read.
        field: &'static str,
        /// The value as encoded.
        value: u64,
    },
    /// TLV types repeat or go down (BOLT 1).
    #[error("tlv type {found} follows type {previous}: types must strictly increase")]
    NotIncreasing {
        /// The type before.
        previous: u64,
        /// The type that is not larger.
        found: u64,
    },
    /// An even TLV type that this stream does not define (BOLT 1).
    #[error("tlv type {0} is even and unknown")]
    UnknownEvenType(u64),
    /// A required TLV record is not there.
    #[error("{field}: required record (tlv type {tlv_type}) is missing")]
    Missing {
        /// The field.
        field: &'static str,
        /// Its TLV type.
        tlv_type: u64,
    },
    /// A value of fixed size has another size.
    #[error("{field}: must be {expected} bytes, is {found}")]
    WrongLength {
        /// The field.
        field: &'static str,
        /// Bytes required.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A list of fixed-size items does not divide into whole items.
    #[error("{field}: {found} bytes are not a multiple of {unit}")]
    NotMultiple {
        /// The field.
        field: &'static str,
        /// Bytes of one item.
        unit: usize,
        /// Bytes found.
        found: usize,
    },
    /// Bytes are left after the last item of a value.
    #[error("{field}: {left} bytes too many")]
    TrailingBytes {
        /// The field.
        field: &'static str,
        /// Bytes left over.
        left: usize,
    },
    /// A list has more items than allowed.
    #[error("{field}: {found} items, at most {limit} are allowed")]
    TooMany {
        /// The field.
        field: &'static str,
        /// Items allowed.
        limit: usize,
        /// Items found or announced.
        found: u64,
    },
    /// A byte string is longer than allowed.
    #[error("{field}: {found} bytes, at most {limit} are allowed")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Bytes allowed.
        limit: usize,
        /// Bytes found or announced.
        found: u64,
    },
    /// A text is not UTF-8.
    #[error("{0}: not valid utf-8")]
    NotUtf8(&'static str),
    /// 33 bytes that are not a compressed point of secp256k1.
    #[error("{0}: not a point on the curve")]
    InvalidPoint(&'static str),
    /// A script that must be a witness program (4 to 42 bytes, BIP 141) is something else.
    #[error("{0}: not a witness program of 4 to 42 bytes")]
    NotWitnessProgram(&'static str),
    /// Bytes that are not a Bitcoin transaction in consensus encoding.
    #[error("{0}: not a transaction in consensus encoding")]
    InvalidTransaction(&'static str),
    /// The number of per-level layer lists does not fit the number of arities.
    #[error("layers: {layers} levels for {arities} arities, must be one more")]
    LevelMismatch {
        /// Levels that have a list of layers.
        layers: usize,
        /// Levels that have an arity (all but the leaf).
        arities: usize,
    },
    /// The message has another type than the envelope: it is not a factory message at all.
    #[error("message type {found}, factory messages have {expected}")]
    NotFactoryMessage {
        /// The envelope's type.
        expected: u16,
        /// The type found.
        found: u16,
    },
    /// A bLIP-56 submessage number that is even and unknown.
    #[error("submessage {0} is even and unknown")]
    UnknownEvenSubmessage(u16),
    /// A number given for an unknown odd submessage is even, or is one this crate knows.
    #[error("submessage {0} is not an unknown odd one")]
    NotUnknownOdd(u16),
    /// A payload message number that is even and unknown.
    #[error("payload message {0} is even and unknown")]
    UnknownEvenPayload(u16),
    /// A factory message of the wire is malformed.
    #[error("factory submessage {submessage}: {source}")]
    Message {
        /// The submessage number; 0 if the message ended before it was complete.
        submessage: u16,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The `channel_in_factory` record of `open_channel` is malformed.
    #[error("channel_in_factory: {0}")]
    ChannelInFactory(#[source] Box<Error>),
    /// A message of our own protocol, inside a piggyback payload, is malformed.
    #[error("payload message {number}: {source}")]
    Payload {
        /// The message number; 0 if the payload ended before it was complete.
        number: u16,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A well-formed message fails a check that the caller made.
    #[error(transparent)]
    Check(#[from] FailedCheck),
}

impl Error {
    /// What bLIP-56 asks the receiver to do, where it says something.
    ///
    /// A malformed factory message costs the connection, a malformed `channel_in_factory` record the
    /// channel being opened. `None` where the draft is silent: an error of the raw TLV layer without its
    /// context, one inside an opaque payload, one met while encoding, or a message that is not ours.
    pub fn action(&self) -> Option<Action> {
        match self {
            Error::Message { .. } => Some(Action::WarningAndClose),
            Error::ChannelInFactory(_) => Some(Action::ErrorAndFail),
            Error::Check(check) => Some(check.action()),
            _ => None,
        }
    }
}
