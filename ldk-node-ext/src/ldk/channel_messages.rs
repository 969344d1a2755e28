//! The channel-message handler: LDK's channel manager behind a gate for `channel_ready`.
//!
//! A factory channel is a 0-conf channel to LDK, which would be ready as soon as it is signed. It must
//! not be before the factory's funding transaction is as deep as the policy says. So both directions
//! of `channel_ready` are held: ours is taken out of the outgoing stream and the peer's is not
//! delivered. On release ours goes out first and the peer's is delivered in the same step; a channel
//! that is ready on one side only would be closed by LDK at the first payment. Only the fact that a
//! channel is held lives longer than a connection: LDK repeats `channel_ready` after reestablish.
//!
//! A factory channel's messages reach LDK in their order, behind a `commitment_signed` that waits for its companions
//! ([`Streams`]).

use std::collections::HashMap;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex};

use bitcoin::constants::ChainHash;
use bitcoin::secp256k1::PublicKey;
use bitcoin::Txid;
use bolt_tlv::payload::Payload;
use factory_core::faults::switch;
use lightning::ln::msgs::{self, BaseMessageHandler, ChannelMessageHandler, Init, MessageSendEvent};
use lightning::ln::types::ChannelId;
use lightning::types::features::{InitFeatures, NodeFeatures};

use super::outpoints::channel_id;
use super::virt::Deliver;
use super::{ChannelManager, Needs, Outpoints, Streams};
use crate::faults;
use crate::node::Failure;
use crate::util::lock;

type Key = (PublicKey, ChannelId);

#[derive(Default)]
struct Held {
    /// Ours, waiting to be sent. The newest replaces an older one.
    outgoing: HashMap<Key, msgs::ChannelReady>,
    /// The peer's, waiting to be delivered.
    incoming: HashMap<Key, msgs::ChannelReady>,
    /// Ours, released; leave before anything else.
    released: Vec<MessageSendEvent>,
}

/// See the module's description.
pub struct ChannelMessages {
    manager: Arc<ChannelManager>,
    outpoints: Arc<Outpoints>,
    streams: Arc<Streams>,
    held: Mutex<Held>,
    failure: Arc<Failure>,
}

impl ChannelMessages {
    pub(crate) fn new(
        manager: Arc<ChannelManager>,
        outpoints: Arc<Outpoints>,
        streams: Arc<Streams>,
        failure: Arc<Failure>,
    ) -> Self {
        Self { manager, outpoints, streams, held: Mutex::new(Held::default()), failure }
    }

    /// A message about companions, which is answered at once: it belongs to the stream of channel messages.
    ///
    /// # Errors
    /// What is wrong with it; the peer has to be disconnected.
    pub(super) fn companions(&self, peer: PublicKey, payload: &Payload) -> Result<(), String> {
        let channel = match payload {
            Payload::Marker(m) => m.channel_id,
            Payload::MarkerAck(m) => m.channel_id,
            Payload::Companions(m) => m.channel_id,
            _ => return Ok(()),
        };
        let channel = ChannelId(channel);
        let turn = self.streams.turn(&peer, &channel, || self.is_of(&peer, &channel));
        let turn = turn.ok_or("channel_id: no factory channel of this peer")?;
        let _turn = lock(&turn);
        self.streams.received(peer, payload)?;
        self.go_on(peer, channel);
        Ok(())
    }

    /// What has to go to the peers beside channel messages, see [`Self::companions`].
    pub(super) fn take_companions(&self) -> Vec<(PublicKey, Payload)> {
        self.streams.take_outbox()
    }

    /// Hands LDK what need not wait any longer. The caller has the channel's turn.
    fn go_on(&self, peer: PublicKey, channel: ChannelId) {
        while let Some(deliver) = self.streams.next(peer, channel) {
            deliver(&self.manager);
            self.streams.delivered(&channel);
        }
    }

    /// Takes a message of a factory channel into its stream; false if it is not one, and has to go straight on.
    fn in_order(
        &self,
        peer: PublicKey,
        channel: ChannelId,
        needs: &[msgs::CommitmentSigned],
        deliver: impl FnOnce() -> Deliver,
    ) -> bool {
        let Some(turn) = self.streams.turn(&peer, &channel, || self.is_of(&peer, &channel)) else {
            return false;
        };
        let _turn = lock(&turn);
        self.streams.arrived(peer, channel, needs.iter().map(Needs::from).collect(), deliver());
        self.go_on(peer, channel);
        true
    }

    /// A peer says what it adds to a channel by a splice, and with which key: LDK hears it if it was agreed.
    fn spliced(
        &self,
        peer: PublicKey,
        channel: ChannelId,
        (key, sat): (PublicKey, i64),
        deliver: impl Fn() -> Deliver,
    ) {
        if self.is_of(&peer, &channel) && !self.streams.may_splice(peer, &channel, key, sat) {
            return;
        }
        if !self.in_order(peer, channel, &[], &deliver) {
            deliver()(&self.manager)
        }
    }

    /// After an outpoint was given up with [`Streams::withdraw`]: what waited for companions on it goes on.
    pub fn withdrawn(&self, peer: PublicKey, channel: ChannelId) {
        if let Some(turn) = self.streams.turn(&peer, &channel, || self.is_of(&peer, &channel)) {
            let _turn = lock(&turn);
            self.go_on(peer, channel);
        }
    }

    fn is_of(&self, peer: &PublicKey, channel: &ChannelId) -> bool {
        self.manager.list_channels_with_counterparty(peer).iter().any(|c| c.channel_id == *channel)
    }

    /// The transaction that funds a channel, as LDK knows it.
    fn funding(&self, peer: &PublicKey, channel: &ChannelId) -> Option<Txid> {
        let all = self.manager.list_channels_with_counterparty(peer);
        all.iter().find(|c| c.channel_id == *channel)?.funding_txo.map(|txo| txo.txid)
    }

    /// Lets `channel_ready` of a channel pass from now on, both ways.
    pub(crate) fn release(&self, channel: &ChannelId) {
        // The lock is held over all of it, so that no message LDK makes in answer can overtake ours.
        let mut held = lock(&self.held);
        self.outpoints.set_released(channel);
        let keys: Vec<Key> =
            held.outgoing.keys().chain(held.incoming.keys()).filter(|(_, c)| c == channel).copied().collect();
        for key in keys {
            if let Some(msg) = held.outgoing.remove(&key) {
                held.released.push(MessageSendEvent::SendChannelReady { node_id: key.0, msg });
            }
            if let Some(msg) = held.incoming.remove(&key) {
                self.manager.handle_channel_ready(key.0, &msg);
            }
        }
    }

    /// Whether this peer has opened the channel that it gives an outpoint, and no other channel has that outpoint: else
    /// a peer could have any channel of ours taken for a factory's, and its transactions held back.
    fn may_fund(&self, peer: &PublicKey, msg: &msgs::FundingCreated, id: &ChannelId) -> bool {
        if switch("gate.foreign_funding") {
            return true;
        }
        let open = self.manager.list_channels();
        let its = open.iter().any(|c| {
            c.counterparty.node_id == *peer
                && c.channel_id == msg.temporary_channel_id
                && !c.is_outbound
                && c.funding_txo.is_none()
        });
        its && !open.iter().any(|c| c.channel_id == *id)
    }

    fn drop_peer(&self, peer: &PublicKey) {
        let mut held = lock(&self.held);
        self.streams.disconnected(peer);
        held.outgoing.retain(|(p, _), _| p != peer);
        held.incoming.retain(|(p, _), _| p != peer);
        held.released
            .retain(|e| !matches!(e, MessageSendEvent::SendChannelReady { node_id, .. } if node_id == peer));
    }
}

impl BaseMessageHandler for ChannelMessages {
    fn get_and_clear_pending_msg_events(&self) -> Vec<MessageSendEvent> {
        for free in self.streams.take_free() {
            self.manager.signer_unblocked(Some(free));
        }
        let mut held = lock(&self.held);
        let mut out = std::mem::take(&mut held.released);
        let events = self.manager.get_and_clear_pending_msg_events();
        // Taken now: what LDK has made in answer to a lock comes after ours.
        out.extend(self.streams.take_first());
        for event in events {
            self.streams.leaving(&event);
            let Some(event) = self.streams.gated(event, |peer, id| self.funding(peer, id)) else { continue };
            let Some(event) = faults::part(event) else { continue };
            match event {
                MessageSendEvent::SendChannelReady { node_id, msg }
                    if self.outpoints.holds_ready(&msg.channel_id) =>
                {
                    held.outgoing.insert((node_id, msg.channel_id), msg);
                }
                other => out.push(other),
            }
        }
        out.extend(self.streams.take_refused());
        out
    }

    fn peer_disconnected(&self, peer: PublicKey) {
        self.drop_peer(&peer);
        self.manager.peer_disconnected(peer);
    }

    fn provided_node_features(&self) -> NodeFeatures {
        self.manager.provided_node_features()
    }

    fn provided_init_features(&self, peer: PublicKey) -> InitFeatures {
        self.manager.provided_init_features(peer)
    }

    fn peer_connected(&self, peer: PublicKey, msg: &Init, inbound: bool) -> Result<(), ()> {
        self.drop_peer(&peer);
        // LDK takes 250 inbound peers without a channel, the first that come, and refuses the clients of a new
        // factory after them. The node limits connections itself, and better: `node/connections.rs`.
        let _ = inbound;
        self.manager.peer_connected(peer, msg, false)
    }
}

/// Methods that pass on in the order of their channel's messages.
macro_rules! in_order {
    ($($method: ident: $msg: ident),* $(,)?) => {
        $(fn $method(&self, peer: PublicKey, msg: &msgs::$msg) {
            let deliver = || -> Deliver {
                let msg = msg.clone();
                Box::new(move |manager| manager.$method(peer, &msg))
            };
            if !self.in_order(peer, msg.channel_id, &[], deliver) {
                self.manager.$method(peer, msg)
            }
        })*
    };
}

/// Methods that pass straight on.
macro_rules! pass {
    ($($method: ident: $msg: ty),* $(,)?) => {
        $(fn $method(&self, peer: PublicKey, msg: $msg) {
            self.manager.$method(peer, msg)
        })*
    };
}

impl ChannelMessageHandler for ChannelMessages {
    fn handle_channel_ready(&self, peer: PublicKey, msg: &msgs::ChannelReady) {
        let mut held = lock(&self.held);
        // Only for a channel that is really this peer's; anything else is LDK's to refuse.
        if self.outpoints.holds_ready(&msg.channel_id) && self.is_of(&peer, &msg.channel_id) {
            held.incoming.insert((peer, msg.channel_id), msg.clone());
        } else {
            self.manager.handle_channel_ready(peer, msg);
        }
    }

    fn handle_funding_created(&self, peer: PublicKey, msg: &msgs::FundingCreated) {
        let outpoint =
            bitcoin::OutPoint { txid: msg.funding_txid, vout: u32::from(msg.funding_output_index) };
        let id = channel_id(outpoint);
        // From this message on LDK considers the channel signed; it has to be held before that.
        let instance = self.outpoints.expected(&msg.temporary_channel_id);
        let held = instance.filter(|_| self.outpoints.get(&id).is_none() && self.may_fund(&peer, msg, &id));
        if let Some(instance) = held {
            self.outpoints.insert(instance, outpoint);
        }
        self.manager.handle_funding_created(peer, msg);
        if held.is_some() && !switch("gate.refused_funding") && !self.is_of(&peer, &id) {
            // LDK refused it.
            self.outpoints.remove(&outpoint);
        }
    }

    fn handle_channel_reestablish(&self, peer: PublicKey, msg: &msgs::ChannelReestablish) {
        let _proving = self.failure.proving();
        let msg = &self.streams.without_lock(peer, msg, || self.funding(&peer, &msg.channel_id));
        let manager = AssertUnwindSafe(&self.manager);
        let Err(panic) = catch_unwind(|| manager.handle_channel_reestablish(peer, msg)) else {
            if self.is_of(&peer, &msg.channel_id) {
                self.streams.reestablished(msg);
            }
            return;
        };
        // LDK panics when the peer knows a secret of a state that we have never seen. The manager is of no use any
        // more, which is right: it must not sign, close or store anything.
        let text =
            panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
        if !text.is_some_and(|text| text.contains("fallen behind")) {
            resume_unwind(panic);
        }
        self.failure.old_state(peer, &msg.channel_id);
    }

    fn handle_shutdown(&self, peer: PublicKey, msg: &msgs::Shutdown) {
        if switch("client.close.ignores_shutdown") {
            return;
        }
        let deliver = || -> Deliver {
            let msg = msg.clone();
            Box::new(move |manager| manager.handle_shutdown(peer, &msg))
        };
        if !self.in_order(peer, msg.channel_id, &[], deliver) {
            self.manager.handle_shutdown(peer, msg)
        }
    }

    fn handle_update_fulfill_htlc(&self, peer: PublicKey, msg: msgs::UpdateFulfillHTLC) {
        let deliver = || -> Deliver {
            let msg = msg.clone();
            Box::new(move |manager| manager.handle_update_fulfill_htlc(peer, msg))
        };
        if !self.in_order(peer, msg.channel_id, &[], deliver) {
            self.manager.handle_update_fulfill_htlc(peer, msg)
        }
    }

    fn handle_commitment_signed(&self, peer: PublicKey, msg: &msgs::CommitmentSigned) {
        let deliver = || -> Deliver {
            let msg = msg.clone();
            Box::new(move |manager| manager.handle_commitment_signed(peer, &msg))
        };
        if !self.in_order(peer, msg.channel_id, std::slice::from_ref(msg), deliver) {
            self.manager.handle_commitment_signed(peer, msg)
        }
    }

    fn handle_commitment_signed_batch(
        &self,
        peer: PublicKey,
        channel: ChannelId,
        batch: Vec<msgs::CommitmentSigned>,
    ) {
        let deliver = || -> Deliver {
            let batch = batch.clone();
            Box::new(move |manager| manager.handle_commitment_signed_batch(peer, channel, batch))
        };
        if !self.in_order(peer, channel, &batch, deliver) {
            self.manager.handle_commitment_signed_batch(peer, channel, batch)
        }
    }

    fn handle_splice_init(&self, peer: PublicKey, msg: &msgs::SpliceInit) {
        self.spliced(peer, msg.channel_id, (msg.funding_pubkey, msg.funding_contribution_satoshis), || {
            let msg = msg.clone();
            Box::new(move |manager| manager.handle_splice_init(peer, &msg))
        });
    }

    fn handle_splice_ack(&self, peer: PublicKey, msg: &msgs::SpliceAck) {
        self.spliced(peer, msg.channel_id, (msg.funding_pubkey, msg.funding_contribution_satoshis), || {
            let msg = msg.clone();
            Box::new(move |manager| manager.handle_splice_ack(peer, &msg))
        });
    }

    fn handle_stfu(&self, peer: PublicKey, msg: &msgs::Stfu) {
        let deliver = || -> Deliver {
            let (msg, streams) = (msg.clone(), Arc::clone(&self.streams));
            Box::new(move |manager| {
                if streams.may_rest(peer, &msg) {
                    manager.handle_stfu(peer, &msg);
                }
            })
        };
        if !self.in_order(peer, msg.channel_id, &[], deliver) {
            self.manager.handle_stfu(peer, msg)
        }
    }

    fn handle_splice_locked(&self, peer: PublicKey, msg: &msgs::SpliceLocked) {
        let deliver = || -> Deliver {
            let (msg, streams) = (msg.clone(), Arc::clone(&self.streams));
            Box::new(move |manager| {
                if streams.may_lock(peer, &msg) {
                    manager.handle_splice_locked(peer, &msg);
                }
            })
        };
        if !self.in_order(peer, msg.channel_id, &[], deliver) {
            self.manager.handle_splice_locked(peer, msg)
        }
    }

    fn handle_tx_init_rbf(&self, peer: PublicKey, msg: &msgs::TxInitRbf) {
        if !self.is_of(&peer, &msg.channel_id) || self.streams.may_replace(peer, &msg.channel_id) {
            self.manager.handle_tx_init_rbf(peer, msg)
        }
    }

    fn handle_tx_ack_rbf(&self, peer: PublicKey, msg: &msgs::TxAckRbf) {
        if !self.is_of(&peer, &msg.channel_id) || self.streams.may_replace(peer, &msg.channel_id) {
            self.manager.handle_tx_ack_rbf(peer, msg)
        }
    }

    fn handle_tx_abort(&self, peer: PublicKey, msg: &msgs::TxAbort) {
        if self.is_of(&peer, &msg.channel_id) && !self.streams.may_abort(peer, &msg.channel_id) {
            return;
        }
        let deliver = || -> Deliver {
            let (msg, streams) = (msg.clone(), Arc::clone(&self.streams));
            Box::new(move |manager| {
                manager.handle_tx_abort(peer, &msg);
                streams.aborted(&msg.channel_id);
            })
        };
        if !self.in_order(peer, msg.channel_id, &[], deliver) {
            self.manager.handle_tx_abort(peer, msg)
        }
    }

    in_order! {
        handle_closing_signed: ClosingSigned,
        handle_tx_add_input: TxAddInput,
        handle_tx_add_output: TxAddOutput,
        handle_tx_remove_input: TxRemoveInput,
        handle_tx_remove_output: TxRemoveOutput,
        handle_tx_complete: TxComplete,
        handle_tx_signatures: TxSignatures,
        handle_update_add_htlc: UpdateAddHTLC,
        handle_update_fail_htlc: UpdateFailHTLC,
        handle_update_fail_malformed_htlc: UpdateFailMalformedHTLC,
        handle_revoke_and_ack: RevokeAndACK,
        handle_update_fee: UpdateFee,
    }

    pass! {
        handle_open_channel: &msgs::OpenChannel,
        handle_open_channel_v2: &msgs::OpenChannelV2,
        handle_accept_channel: &msgs::AcceptChannel,
        handle_accept_channel_v2: &msgs::AcceptChannelV2,
        handle_funding_signed: &msgs::FundingSigned,
        handle_peer_storage: msgs::PeerStorage,
        handle_peer_storage_retrieval: msgs::PeerStorageRetrieval,
        handle_announcement_signatures: &msgs::AnnouncementSignatures,
        handle_channel_update: &msgs::ChannelUpdate,
        handle_error: &msgs::ErrorMessage,
    }

    fn get_chain_hashes(&self) -> Option<Vec<ChainHash>> {
        self.manager.get_chain_hashes()
    }

    fn message_received(&self) {
        self.manager.message_received()
    }
}

#[cfg(test)]
mod tests;
