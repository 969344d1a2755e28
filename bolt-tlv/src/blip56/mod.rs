//! The messages of the draft bLIP-56, "Pluggable Channel Factories".
//!
//! All of them share one Lightning message type, the *envelope*. Inside it a `u16` submessage number says
//! which message it is; one TLV stream follows. Each submessage has a TLV namespace of its own.
//!
//! The draft is not merged, so the envelope's type is a parameter: [`Envelope::default`] is the draft's
//! 32800. Multi-byte integers are big-endian and txids are in internal byte order, as in
//! `funding_created`.

mod change;
mod channel;
mod checks;
mod envelope;
mod protocol;

pub use change::{
    FactoryChange, FactoryChangeAck, FactoryChangeContinue, FactoryChangeFunding, FactoryChangeInit,
    FactoryChangeLocked, FactoryOutpoint, MAX_CHANGE_PAYLOAD_LEN,
};
pub use channel::{ChannelInFactory, CHANNEL_IN_FACTORY_LEN, CHANNEL_IN_FACTORY_TYPE};
pub use checks::FailedCheck;
pub use envelope::{Envelope, FactoryMessage, MAX_MESSAGE_LEN};
pub use protocol::{
    FactoryPiggyback, ProtocolId, SupportedFactoryProtocols, MAX_PIGGYBACK_PAYLOAD_LEN, MAX_PROTOCOL_IDS,
    PROTOCOL_ID,
};

/// Feature bit `pluggable_channel_factories`, optional (odd); set in `init` (section "Feature Bit").
pub const FEATURE_BIT: usize = 271;

/// The even, compulsory twin of [`FEATURE_BIT`]; reserved by the draft, never set by us.
pub const FEATURE_BIT_COMPULSORY: usize = 270;
