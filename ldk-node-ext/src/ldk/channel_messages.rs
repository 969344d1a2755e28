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
use bolt_tlv::payload::Payload;
use factory_core::faults::switch;
use lightning::ln::msgs::{self, BaseMessageHandler, ChannelMessageHandler, Init, MessageSendEvent};
use lightning::ln::types::ChannelId;
use lightning::types::features::{InitFeatures, NodeFeatures};

use super::outpoints::channel_id;
use super::virt::Deliver;
use super::{ChannelManager, Needs, Outpoints, Streams};
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
        for event in self.manager.get_and_clear_pending_msg_events() {
            self.streams.leaving(&event);
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

    fn handle_tx_abort(&self, peer: PublicKey, msg: &msgs::TxAbort) {
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
        handle_stfu: Stfu,
        handle_splice_init: SpliceInit,
        handle_splice_ack: SpliceAck,
        handle_splice_locked: SpliceLocked,
        handle_tx_add_input: TxAddInput,
        handle_tx_add_output: TxAddOutput,
        handle_tx_remove_input: TxRemoveInput,
        handle_tx_remove_output: TxRemoveOutput,
        handle_tx_complete: TxComplete,
        handle_tx_signatures: TxSignatures,
        handle_tx_init_rbf: TxInitRbf,
        handle_tx_ack_rbf: TxAckRbf,
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
mod tests {
    use super::*;
    use crate::ldk::outpoints::Gate;
    use crate::ldk::test_node::{connect, outpoint, TestNode};

    const FACTORY: [u8; 32] = [7; 32];

    /// A node with two peers. Both have an ordinary channel with it, over the outpoints 1 and 2; the first one has
    /// offered the channel that the factory's plan names, under the id 9 and over the outpoint 9.
    fn world() -> (TestNode, TestNode, TestNode, msgs::FundingCreated) {
        let [node, client, other] = [(); 3].map(|()| TestNode::new());
        for (peer, n) in [(&client, 1), (&other, 2)] {
            connect(peer, &node);
            peer.open(&node, ChannelId([n; 32]), outpoint(n), false);
        }
        node.outpoints.expect(ChannelId([9; 32]), FACTORY);
        let created = client.offer(&node, ChannelId([9; 32]), outpoint(9), false);
        (node, client, other, created)
    }

    fn has_channel(node: &TestNode, peer: &TestNode, n: u8) -> bool {
        let id = channel_id(outpoint(n));
        node.manager.list_channels_with_counterparty(&peer.id).iter().any(|c| c.channel_id == id)
    }

    /// What the node publishes for an ordinary channel goes out.
    fn assert_ordinary(node: &TestNode, n: u8) {
        assert_eq!(node.outpoints.gate([&outpoint(n)]), Gate::Foreign, "the channel over {n} is a factory's");
        assert!(!node.outpoints.holds_ready(&channel_id(outpoint(n))));
    }

    #[test]
    fn no_peer_has_another_channel_taken_for_a_factorys() {
        let (node, client, other, created) = world();
        // Another one names the plan's temporary id, and the outpoint of its own ordinary channel.
        let foreign = |n| msgs::FundingCreated { funding_txid: outpoint(n).txid, ..created.clone() };
        node.messages.handle_funding_created(other.id, &foreign(2));
        assert_ordinary(&node, 2);
        // Nobody may, the client neither. Not to LDK: it would give the channel up that is named.
        for (peer, n) in [(&other, 2), (&client, 1), (&client, 2), (&other, 1)] {
            let id = channel_id(outpoint(n));
            assert!(!node.messages.may_fund(&peer.id, &foreign(n), &id), "{n}");
        }
        // Who has the factory's channel is not disturbed by it.
        node.messages.handle_funding_created(client.id, &created);
        assert_eq!(node.outpoints.gate([&outpoint(9)]), Gate::Held(FACTORY));
        assert!(node.outpoints.holds_ready(&channel_id(outpoint(9))) && has_channel(&node, &client, 9));
        [1, 2].iter().for_each(|n| assert_ordinary(&node, *n));
    }

    /// A provider opens its channels itself: the id that its plan names is its own.
    #[test]
    fn nobody_funds_a_channel_that_we_open() {
        let (node, client, other, created) = world();
        node.outpoints.expect(ChannelId([8; 32]), FACTORY);
        node.manager.create_channel(client.id, 50_000, 0, 1, Some(ChannelId([8; 32])), None).unwrap();
        for (peer, n) in [(&client, 1), (&other, 2)] {
            let temporary_channel_id = ChannelId([8; 32]);
            let msg = msgs::FundingCreated {
                funding_txid: outpoint(n).txid,
                temporary_channel_id,
                ..created.clone()
            };
            node.messages.handle_funding_created(peer.id, &msg);
            assert_ordinary(&node, n);
        }
    }

    #[test]
    fn a_factorys_outpoint_stays_with_its_channel() {
        let (node, client, _, created) = world();
        node.messages.handle_funding_created(client.id, &created);
        let before = node.outpoints.get(&channel_id(outpoint(9))).unwrap();
        // Others name it for a channel of their own: an ordinary one, and one of another plan.
        for (temporary, instance) in [(3, None), (4, Some([8; 32]))] {
            if let Some(instance) = instance {
                node.outpoints.expect(ChannelId([temporary; 32]), instance);
            }
            let other = TestNode::new();
            connect(&other, &node);
            let again = other.offer(&node, ChannelId([temporary; 32]), outpoint(9), false);
            node.messages.handle_funding_created(other.id, &again);
            assert_eq!(node.outpoints.get(&channel_id(outpoint(9))), Some(before));
            assert!(has_channel(&node, &client, 9) && !has_channel(&node, &other, 9), "{temporary}");
        }
    }

    #[test]
    fn what_ldk_refuses_is_no_factory_channel() {
        let (node, client, _, created) = world();
        // A signature for another outpoint.
        let wrong = msgs::FundingCreated { funding_txid: outpoint(5).txid, ..created };
        node.messages.handle_funding_created(client.id, &wrong);
        assert!(!has_channel(&node, &client, 5));
        assert_ordinary(&node, 5);
    }
}
