//! The most of everything that a peer may put into a message.
//!
//! The limits bound memory and work per message. They are wider than any sensible plan: whether a plan is
//! sensible is checked by whoever receives it.

/// Bytes of one payload: what `factory_piggyback` has room for.
pub const MAX_PAYLOAD_LEN: usize = crate::blip56::MAX_PIGGYBACK_PAYLOAD_LEN;

/// Clients of one factory.
pub const MAX_CLIENTS: usize = 1_000;

/// Keys in one list: the clients and the LSP.
pub const MAX_KEYS: usize = MAX_CLIENTS + 1;

/// Levels of a tree, the leaf included.
pub const MAX_LEVELS: usize = 16;

/// Decker-Wattenhofer layers of one level.
pub const MAX_LAYERS: usize = 16;

/// Child outputs of one transaction, and members of one leaf. A version 3 transaction has at most 10,000
/// virtual bytes (BIP 431), which leaves room for no more than 232 outputs of 43 bytes.
pub const MAX_OUTPUTS: usize = 232;

/// Tree transactions on the path from the funding output to one leaf.
pub const MAX_PATH_TRANSACTIONS: usize = 64;

/// Signing sessions of one client in one round, hence nonces, partial or complete signatures in one
/// message: its path, and for each transaction of it at most one distribution transaction that competes
/// for the same output.
pub const MAX_SESSIONS: usize = 2 * MAX_PATH_TRANSACTIONS;

/// Bytes of a script other than a payout script (consensus executes no larger one).
pub const MAX_SCRIPT_LEN: usize = 10_000;

/// Bytes of UTF-8 in an explanation.
pub const MAX_TEXT_LEN: usize = 256;

/// Bytes of UTF-8 in an invoice or its description. An invoice without route hints and with the longest description
/// (639 bytes, BOLT 11) has about 1,400 characters.
pub const MAX_LONG_TEXT_LEN: usize = 2_048;

/// HTLCs of one commitment, hence signatures beside its own: BOLT 2 allows 483 each way. One companion of that many
/// takes 61,927 bytes and so still fits into a message.
pub const MAX_HTLC_SIGNATURES: usize = 2 * 483;

/// Real outpoints of one funding outpoint that a commitment is signed for in one message. What a message has room for
/// is another limit, which is usually the smaller one.
pub const MAX_COMPANIONS: usize = 256;
