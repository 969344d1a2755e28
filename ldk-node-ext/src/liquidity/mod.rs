//! Channels beside the factory (JIT channels): ordinary channels that an LSP opens to its client when the factory
//! cannot give the client what it needs now.
//!
//! Such a channel is used before its funding transaction is confirmed. Until then what the client has in it is trust in
//! the LSP, and the client's policy says how much of that it takes ([`accept`]).

mod accept;
pub mod decide;

use lightning::ln::types::ChannelId;

pub(crate) use accept::OpenedToUs;

/// Begin of the user channel id of every such channel, on both sides. LDK stores the id with the channel.
const USER_ID_MARK: u32 = 0x6a69_7401;

/// Begin of the temporary channel id that the LSP gives such a channel. By it the client knows what is meant: a factory's
/// channel that it has given up must not pass for one beside it.
const TEMPORARY_MARK: [u8; 8] = *b"jit-chan";

/// A temporary channel id for such a channel.
pub(crate) fn new_temporary() -> ChannelId {
    let mut id: [u8; 32] = rand::random();
    let (mark, _) = id.split_at_mut(TEMPORARY_MARK.len());
    mark.copy_from_slice(&TEMPORARY_MARK);
    ChannelId(id)
}

/// A user channel id of a channel beside the factory.
pub(crate) fn new_id() -> u128 {
    let random: u128 = u128::from_be_bytes(rand::random());
    (u128::from(USER_ID_MARK) << 96) | (random >> 32)
}

/// Whether a channel was opened beside a factory.
pub(crate) fn is_jit(user_channel_id: u128) -> bool {
    user_channel_id >> 96 == u128::from(USER_ID_MARK)
}
