//! Money of a channel beside the factory that goes into the factory.

use serde::{Deserialize, Serialize};

/// A client's own money that it moves, by a payment to itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedPayment {
    /// The channel beside the factory, hex.
    pub from: String,
    /// The channel in the factory, hex; it is taken over no other.
    pub into: String,
}

/// Request to move the money of a channel beside the factory into the factory's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JitMoveRequest {
    /// The channel, hex; not needed if there is one only.
    #[serde(default)]
    pub channel_id: Option<String>,
    /// How long to wait for the payments, seconds (60 if none, 600 at most).
    #[serde(default)]
    pub wait_secs: Option<u64>,
}

/// What was moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitMoved {
    /// The channel beside the factory, hex.
    pub channel_id: String,
    /// By this request, msat.
    pub moved_msat: u64,
    /// What could still be moved, msat.
    pub left_msat: u64,
    /// A payment has not ended yet.
    pub pending: bool,
    /// The close of the channel has begun: nothing is left to move.
    pub closing: bool,
    /// Why it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_closed: Option<String>,
}
