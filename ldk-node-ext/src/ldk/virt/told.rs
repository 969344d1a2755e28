//! What peers are told of what they did wrong.

use bitcoin::secp256k1::PublicKey;
use lightning::ln::msgs::{ErrorAction, MessageSendEvent, WarningMessage};
use lightning::ln::types::ChannelId;
use lightning::util::logger::Level;

use super::messages::Streams;
use crate::util::lock;

/// Warnings that wait to be sent, over all peers.
const MAX_WARNED: usize = 64;

impl Streams {
    /// Tells the peer what is wrong, and ends the connection.
    pub(super) fn refuse(&self, peer: PublicKey, channel: ChannelId, reason: String) {
        lock(&self.inner).refused.push((peer, channel, reason));
    }

    /// Tells a peer that something was not passed on; the connection stays.
    pub(super) fn warn(&self, peer: PublicKey, channel: ChannelId, reason: String) {
        let mut inner = lock(&self.inner);
        // Whoever is to be told so more often at a time is told as often as this.
        if inner.warned.len() < MAX_WARNED {
            inner.warned.push((peer, channel, reason));
        }
    }

    /// Warnings to peers, most of which have to be disconnected.
    pub(in crate::ldk) fn take_refused(&self) -> Vec<MessageSendEvent> {
        let mut inner = lock(&self.inner);
        let (refused, warned) = (std::mem::take(&mut inner.refused), std::mem::take(&mut inner.warned));
        drop(inner);
        let told = |(peer, channel, reason): (PublicKey, ChannelId, String)| {
            tracing::warn!(%peer, %channel, reason, "not passed on");
            let msg = WarningMessage { channel_id: channel, data: reason };
            let action = ErrorAction::SendWarningMessage { msg, log_level: Level::Debug };
            MessageSendEvent::HandleError { node_id: peer, action }
        };
        let warning = |(peer, channel, reason): (PublicKey, ChannelId, String)| {
            tracing::warn!(%peer, %channel, reason, "companions refused, disconnecting");
            let msg = WarningMessage { channel_id: channel, data: reason };
            let action = ErrorAction::DisconnectPeerWithWarning { msg };
            MessageSendEvent::HandleError { node_id: peer, action }
        };
        refused.into_iter().map(warning).chain(warned.into_iter().map(told)).collect()
    }
}
