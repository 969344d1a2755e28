//! What of a splice may pass: only the one that both sides have agreed to, once, and its lock only when the caller says.
//!
//! LDK accepts any splice of a peer's by itself, signs for it, and locks a splice of a 0-conf channel as soon as it is
//! signed. Here a lock retires V, and from the next update on nobody can leave by an R of V any more. So both directions of
//! `splice_locked` are held, as `channel_ready` is at the start: ours is not sent and the peer's is not delivered,
//! also where `channel_reestablish` says the same, until the caller has the new state. Then ours goes out first, and
//! the peer's is delivered in the same step. What is held lives no longer than a connection: LDK repeats it.
//!
//! Where both sides add something the peer's `stfu` waits until ours is there: else LDK answers without it.
//!
//! A signature that lets R' confirm binds both sides: `tx_abort` no longer reaches LDK then, and is dropped.

use bitcoin::secp256k1::PublicKey;
use bitcoin::Txid;
use factory_core::faults::switch;
use lightning::ln::msgs::{ChannelReestablish, MessageSendEvent, SpliceLocked, Stfu};
use lightning::ln::types::ChannelId;

use super::messages::Streams;
use crate::util::lock;

/// What waits of one channel.
#[derive(Default)]
pub(super) struct Locks {
    outgoing: Option<SpliceLocked>,
    incoming: Option<SpliceLocked>,
    stfu: Option<Stfu>,
}

impl Streams {
    fn holds_lock(&self, channel: &ChannelId, txid: &Txid) -> bool {
        self.commitments.knows(channel)
            && !self.mapping.is_lockable(channel, txid)
            && !switch("splice.lock.not_held")
    }

    /// A message as it may leave now, if it may. `current` is the transaction that funds its channel.
    pub(in crate::ldk) fn gated(
        &self,
        event: MessageSendEvent,
        current: impl FnOnce(&PublicKey, &ChannelId) -> Option<Txid>,
    ) -> Option<MessageSendEvent> {
        let mut inner = lock(&self.inner);
        match event {
            MessageSendEvent::SendSpliceLocked { node_id, msg }
                if self.holds_lock(&msg.channel_id, &msg.splice_txid) =>
            {
                let key = (node_id, msg.channel_id);
                inner.locks.entry(key).or_default().outgoing = Some(msg);
                None
            }
            MessageSendEvent::SendChannelReestablish { node_id, mut msg } => {
                let channel_id = msg.channel_id;
                if let Some(splice_txid) = self.takes_lock(&mut msg, || current(&node_id, &channel_id)) {
                    let locked = SpliceLocked { channel_id, splice_txid };
                    inner.locks.entry((node_id, channel_id)).or_default().outgoing = Some(locked);
                }
                Some(MessageSendEvent::SendChannelReestablish { node_id, msg })
            }
            other => Some(other),
        }
    }

    /// Takes a lock that is to be held out of `channel_reestablish`; which one it is.
    fn takes_lock(
        &self,
        msg: &mut ChannelReestablish,
        current: impl FnOnce() -> Option<Txid>,
    ) -> Option<Txid> {
        let txid = msg.my_current_funding_locked.as_ref()?.txid;
        if !self.holds_lock(&msg.channel_id, &txid) || current() == Some(txid) {
            return None;
        }
        msg.my_current_funding_locked = None;
        Some(txid)
    }

    /// The peer's `channel_reestablish` as LDK may have it.
    pub(in crate::ldk) fn without_lock(
        &self,
        peer: PublicKey,
        msg: &ChannelReestablish,
        current: impl FnOnce() -> Option<Txid>,
    ) -> ChannelReestablish {
        let (mut msg, channel_id) = (msg.clone(), msg.channel_id);
        let mut inner = lock(&self.inner);
        if let Some(splice_txid) = self.takes_lock(&mut msg, current) {
            let locked = SpliceLocked { channel_id, splice_txid };
            inner.locks.entry((peer, channel_id)).or_default().incoming = Some(locked);
        }
        msg
    }

    /// Whether the peer's `splice_locked` may be delivered now; it is kept if not.
    pub(in crate::ldk) fn may_lock(&self, peer: PublicKey, msg: &SpliceLocked) -> bool {
        let mut inner = lock(&self.inner);
        if !self.holds_lock(&msg.channel_id, &msg.splice_txid) {
            return true;
        }
        inner.locks.entry((peer, msg.channel_id)).or_default().incoming = Some(msg.clone());
        false
    }

    /// Lets the lock of a channel pass that the mapping allows now: ours is the next message that leaves; the peer's is
    /// returned, to be delivered.
    pub(super) fn release_lock(&self, channel: &ChannelId) -> Option<(PublicKey, SpliceLocked)> {
        let mut inner = lock(&self.inner);
        let key = inner.locks.keys().find(|(_, c)| c == channel).copied()?;
        let locks = inner.locks.remove(&key)?;
        let (node_id, _) = key;
        if let Some(msg) = locks.outgoing {
            inner.first.push(MessageSendEvent::SendSpliceLocked { node_id, msg });
        }
        locks.incoming.map(|msg| (node_id, msg))
    }

    /// What has to leave before anything else.
    pub(in crate::ldk) fn take_first(&self) -> Vec<MessageSendEvent> {
        std::mem::take(&mut lock(&self.inner).first)
    }

    /// Whether LDK may hear that the peer splices, in `splice_init` or `splice_ack`; if not the peer is told why, and
    /// disconnected.
    pub(in crate::ldk) fn may_splice(
        &self,
        peer: PublicKey,
        channel: &ChannelId,
        key: PublicKey,
        sat: i64,
    ) -> bool {
        match self.commitments.peer_adds(channel, key, sat) {
            Err(reason) if !switch("splice.any") => {
                self.refuse(peer, *channel, reason);
                false
            }
            _ => true,
        }
    }

    /// Whether LDK may hear the peer's `stfu`: not before what we add ourselves is there, or it would not be part of the
    /// splice. It is kept then.
    pub(in crate::ldk) fn may_rest(&self, peer: PublicKey, msg: &Stfu) -> bool {
        let mut inner = lock(&self.inner);
        if self.commitments.is_contributed(&msg.channel_id) || switch("splice.stfu.early") {
            return true;
        }
        inner.locks.entry((peer, msg.channel_id)).or_default().stfu = Some(msg.clone());
        false
    }

    /// What we add is there: the peer's `stfu` that waited for it.
    pub(super) fn contributed(&self, peer: &PublicKey, channel: &ChannelId) -> Option<Stfu> {
        let mut inner = lock(&self.inner);
        self.commitments.contributed(channel);
        inner.locks.get_mut(&(*peer, *channel))?.stfu.take()
    }

    /// Whether LDK may hear of another candidate for a splice that is signed: for a factory's channel there is none.
    pub(in crate::ldk) fn may_replace(&self, peer: PublicKey, channel: &ChannelId) -> bool {
        let known = self.commitments.knows(channel);
        if known {
            self.refuse(peer, *channel, "a change of capacity is not replaced".into());
        }
        !known
    }

    /// Whether LDK may hear `tx_abort`.
    pub(in crate::ldk) fn may_abort(&self, peer: PublicKey, channel: &ChannelId) -> bool {
        let bound = self.mapping.pending(channel).iter().any(|v| self.mapping.is_bound(v));
        if bound && !switch("splice.abort.passed") {
            // Not the end of the connection: who was killed between binding and signing says so next, with a message
            // of the advance, and both go back then.
            self.warn(peer, *channel, "tx_abort after signatures of the new state have left".into());
            return false;
        }
        true
    }
}
