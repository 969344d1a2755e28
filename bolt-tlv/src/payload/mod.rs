//! Our own factory protocol: what we put into the payload of `factory_piggyback`.
//!
//! A payload is a big-endian `u16` message number followed by one TLV stream to the end. Odd and even
//! work as in BOLT 1: a receiver ignores an unknown odd number and refuses an unknown even one; every
//! required field has an even TLV type. Each message has a type namespace of its own, but 0 is always the
//! factory instance and 2 always the attempt, in every message that has them: all but [`Join`], those of a
//! live channel and those of no factory.
//!
//! An **instance** is one factory; an **attempt** counts the tries to sign one plan for it, so that a
//! straggler of an earlier try is recognised. C is the client, S the LSP in the tables below.
//!
//! | number | message | way | number | message | way | number | message | way |
//! |---|---|---|---|---|---|---|---|---|
//! | 1 | [`Join`] | C to S | 20 | [`CloseAsk`] | C to S | 30 | [`AdvancePropose`] | S to C |
//! | 2 | [`Invite`] | S to C | 21 | [`ClosePropose`] | S to C | 31 | [`AdvanceAgree`] | C to S |
//! | 3 | [`Accept`] | C to S | 22 | [`CloseConsent`] | C to S | 32 | [`AdvanceRefuse`] | C to S |
//! | 4 | [`Decline`] | C to S | 23 | [`CloseRefuse`] | C to S | 33 | [`AdvanceTree`] | S to C |
//! | 5 | [`Plan`] | S to C | 24 | [`CloseTx`] | S to C | 34 | [`AdvanceAggNonces`] | S to C |
//! | 6 | [`PlanOk`] | C to S | 25 | [`CloseNonce`] | C to S | 35 | [`AdvancePartials`] | C to S |
//! | 7 | [`Path`] | S to C | 26 | [`CloseAggNonce`] | S to C | 36 | [`AdvanceInner`] | S to C |
//! | 8 | [`Nonces`] | C to S | 27 | [`ClosePartial`] | C to S | 37 | [`AdvanceOuter`] | C to S |
//! | 9 | [`AggNonces`] | S to C | 28 | [`CloseDone`] | S to C | 38 | [`AdvanceSigned`] | S to C |
//! | 10 | [`Partials`] | C to S | 29 | [`CloseAbort`] | S to C | 39 | [`AdvancePersisted`] | C to S |
//! | 11 | [`Signed`] | S to C | | | | 40 | [`AdvanceResume`] | C to S |
//! | 12 | [`Persisted`] | C to S | | | | 41 | [`AdvanceAbort`] | S to C |
//! | 13 | [`Funded`] | S to C | | | | 43 | [`AdvanceAsk`] | C to S |
//! | 14 | [`Abort`] | S to C | | | | 45 | [`AdvanceDecline`] | S to C |
//!
//! Of a live channel, either way: 50 [`Marker`], 51 [`MarkerAck`], 52 [`Companions`]. Of no factory: 53 [`RelayAsk`]
//! (C to S), 55 [`RelayInvoice`] and 57 [`RelayDecline`] (S to C).
//!
//! Nonces and signatures are plain bytes here: this crate knows no MuSig2. Amounts are `u64` satoshi as
//! the peer sent them, up to 2^64 - 1: whoever adds them up must check for overflow.

mod advance;
mod ceremony;
mod close;
mod codec;
mod companion;
mod limits;
mod params;
mod relay;
mod transaction;

use crate::tlv::Reader;
use crate::Error;
pub use advance::{
    AdvanceAbort, AdvanceAggNonces, AdvanceAgree, AdvanceAsk, AdvanceDecline, AdvanceInner, AdvanceOuter,
    AdvancePartials, AdvancePersisted, AdvancePropose, AdvanceRefuse, AdvanceResume, AdvanceSigned,
    AdvanceTree,
};
pub use ceremony::{
    Abort, Accept, AggNonces, Decline, Funded, Invite, Join, LeafMember, Nonces, Partials, Path, Persisted,
    Plan, PlanOk, Signed,
};
pub use close::{
    CloseAbort, CloseAggNonce, CloseAsk, CloseConsent, CloseDone, CloseNonce, ClosePartial, ClosePropose,
    CloseRefuse, CloseTx,
};
pub use codec::LongText;
use codec::{Message, Stream};
pub use companion::{Companion, Companions, Marker, MarkerAck};
pub use limits::*;
pub use params::{DwLayer, PlanParams};
pub use relay::{RelayAsk, RelayDecline, RelayInvoice};

macro_rules! payload {
    ($($name:ident)*) => {
        /// One message of our factory protocol.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Payload {
            $(
                #[doc = concat!("See [`", stringify!($name), "`].")]
                $name($name),
            )*
            /// A message with an odd number that this version does not know; to be ignored. Decoding
            /// drops its content, encoding writes the number alone.
            UnknownOdd(u16),
        }

        impl Payload {
            /// The message number.
            pub fn number(&self) -> u16 {
                match self {
                    $(Payload::$name(_) => $name::NUMBER,)*
                    Payload::UnknownOdd(number) => *number,
                }
            }

            /// The factory instance the message is about, if it names one.
            pub fn instance_id(&self) -> Option<[u8; 32]> {
                match self {
                    $(Payload::$name(message) => message.instance(),)*
                    Payload::UnknownOdd(_) => None,
                }
            }

            /// The attempt the message belongs to, if it names one.
            pub fn attempt(&self) -> Option<u16> {
                match self {
                    $(Payload::$name(message) => message.attempt_number(),)*
                    Payload::UnknownOdd(_) => None,
                }
            }

            /// Writes the message. The limits are not checked here: see [`Payload::check`].
            pub fn encode(&self) -> Vec<u8> {
                let mut out = self.number().to_be_bytes().to_vec();
                match self {
                    $(Payload::$name(message) => message.write(&mut out),)*
                    Payload::UnknownOdd(_) => {},
                }
                out
            }

            fn decode_stream(number: u16, stream: &[u8]) -> Result<Self, Error> {
                match number {
                    $($name::NUMBER => Ok(Payload::$name($name::read(stream)?)),)*
                    odd if odd % 2 == 1 => Ok(Payload::UnknownOdd(odd)),
                    even => Err(Error::UnknownEvenPayload(even)),
                }
            }
        }

        $(
            impl From<$name> for Payload {
                fn from(message: $name) -> Self {
                    Payload::$name(message)
                }
            }
        )*
    };
}

payload! {
    Join Invite Accept Decline Plan PlanOk Path Nonces AggNonces Partials Signed Persisted Funded Abort
    CloseAsk ClosePropose CloseConsent CloseRefuse CloseTx CloseNonce CloseAggNonce ClosePartial CloseDone
    CloseAbort
    AdvancePropose AdvanceAgree AdvanceRefuse AdvanceTree AdvanceAggNonces AdvancePartials AdvanceInner AdvanceOuter
    AdvanceSigned AdvancePersisted AdvanceResume AdvanceAbort AdvanceAsk AdvanceDecline
    Marker MarkerAck Companions
    RelayAsk RelayInvoice RelayDecline
}

impl Payload {
    /// Reads a message.
    ///
    /// # Errors
    /// [`Error::Payload`] around the reason: a malformed stream, a missing or malformed field, a limit
    /// exceeded, or an unknown even message number. [`Error::TooLong`] inside it above
    /// [`MAX_PAYLOAD_LEN`], the most a `factory_piggyback` can carry.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let in_message = |number| move |source| Error::Payload { number, source: Box::new(source) };
        let mut reader = Reader::new("payload", bytes);
        let number = reader.u16().map_err(in_message(0))?;
        let stream = reader.all(MAX_PAYLOAD_LEN.saturating_sub(2)).map_err(in_message(number))?;
        Self::decode_stream(number, stream).map_err(in_message(number))
    }

    /// Checks that a peer will be able to read this message: that it keeps all limits.
    ///
    /// # Errors
    /// Those of [`Payload::decode`] on the encoded message.
    pub fn check(&self) -> Result<(), Error> {
        Self::decode(&self.encode()).map(drop)
    }
}
