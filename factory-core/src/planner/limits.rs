//! Limits that the planner does not choose: LDK's, and those of Bitcoin relay.
//!
//! The LDK figures are those of `lightning` 0.3. The private ones are repeated here because this crate
//! does not depend on LDK; a crate that does can compare the public ones in a test.

/// Blocks before an HTLC's expiry at which LDK broadcasts a commitment to claim it on chain
/// (`CLTV_CLAIM_BUFFER`, `chain/channelmonitor.rs`).
pub const LDK_CLAIM_BUFFER: u16 = 36;
/// Blocks LDK waits for a peer before it acts (`LATENCY_GRACE_PERIOD_BLOCKS`, `chain/channelmonitor.rs`).
pub const LDK_GRACE: u16 = 3;
/// Smallest `to_self_delay` LDK accepts, blocks (`BREAKDOWN_TIMEOUT`, `ln/channelmanager.rs`).
pub const LDK_MIN_TO_SELF_DELAY: u16 = 144;
/// Largest `to_self_delay` LDK accepts, blocks (`MAX_LOCAL_BREAKDOWN_TIMEOUT`, `ln/channelmanager.rs`).
pub const LDK_MAX_TO_SELF_DELAY: u16 = 2016;
/// Smallest delta between an incoming and an outgoing HTLC in LDK, blocks (`MIN_CLTV_EXPIRY_DELTA`).
pub const LDK_MIN_CLTV_EXPIRY_DELTA: u16 = 48;
/// Longest route a sender takes by default, blocks (`DEFAULT_MAX_TOTAL_CLTV_EXPIRY_DELTA`).
pub const LDK_SENDER_DEFAULT: u16 = 1008;
/// LDK refuses an HTLC that expires later than this, blocks from now (`CLTV_FAR_FAR_AWAY`).
pub const LDK_CLTV_FAR_FAR_AWAY: u16 = 2016;

/// Longest worst exit, blocks: an HTLC may not be held longer.
pub const MAX_EXIT: u16 = LDK_CLTV_FAR_FAR_AWAY;
/// Largest version 3 transaction that nodes relay, vB (BIP 431).
pub const TRUC_MAX_VBYTES: u64 = 10_000;
/// Lock times from here on are seconds, not heights (`LOCKTIME_THRESHOLD`, BIP 65).
pub const LOCKTIME_THRESHOLD: u32 = 500_000_000;
/// Mean seconds between blocks, for showing a time to a human. Never used for a decision.
pub const SECONDS_PER_BLOCK: u32 = 600;
