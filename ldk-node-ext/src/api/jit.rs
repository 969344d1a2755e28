//! Channels beside the factories (JIT).

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

/// How often something was decided about payments, since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionCount {
    /// What: `forward`, `rotate`, `jit`, `refuse`, ...
    pub action: String,
    /// Why nothing that is preferred to it; empty if nothing is.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// What the operator wants otherwise for one client than the settings of the same names say (LSP); what is not said
/// follows those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientJitPolicy {
    /// The client's node id.
    pub node_id: String,
    /// Try a leaf advance before a JIT channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_rotate_first: Option<bool>,
    /// Smallest JIT channel, sat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_min_channel_sat: Option<u64>,
    /// Largest JIT channel, sat; 0: none are opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_max_channel_sat: Option<u64>,
    /// Most JIT channels at a time; 0: none are opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_max_channels: Option<u32>,
    /// Most of the operator's money in its JIT channels, sat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_max_total_sat: Option<u64>,
    /// JIT channels over which nothing has been taken yet, at which it gets no other one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_max_untaken: Option<u32>,
    /// Most that are opened in 144 blocks, whatever became of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_max_per_day: Option<u32>,
    /// What a new channel has beyond what the payment needs, percent of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_headroom_percent: Option<u32>,
    /// How long a payment is held while the client is away, signs, or opens its channel, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_hold_secs: Option<u64>,
}

/// Channels beside the factories: who has them, why, and what they have cost (LSP).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitStatus {
    /// Clients with a channel in a factory.
    pub clients: usize,
    /// Those of them with a channel beside it.
    pub clients_with_jit: usize,
    /// Channels beside factories.
    pub channels: usize,
    /// Their capacity, sat.
    pub capacity_sat: u64,
    /// Those over which no payment has been taken yet.
    pub untaken: usize,
    /// Fees of all funding transactions so far, of closed channels too, sat.
    pub fees_sat: u64,
    /// All channels so far by their cause.
    pub causes: std::collections::BTreeMap<String, u64>,
    /// HTLCs that are held now.
    pub held_htlcs: usize,
    /// Decisions since the start.
    pub decisions: Vec<DecisionCount>,
}
