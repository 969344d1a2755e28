//! Gossip from those only who have something at stake, and no more than a graph of a bounded size.
//!
//! Nobody looks here whether an announced channel exists on the chain, so whoever may announce can fill the memory with
//! channels that never were. Announcements count from peers that have an announced channel with us (a factory's is not,
//! and costs a client nothing) and from peers that this node has connected to, as a client to its provider: LDK asks for
//! the graph once, when the connection is made, and only a few peers in all. The graph may have several times the size
//! of the network.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use bitcoin::secp256k1::PublicKey;
use factory_core::faults::switch;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::msgs::{
    BaseMessageHandler, ChannelAnnouncement, ChannelUpdate, ErrorAction, Init, LightningError,
    MessageSendEvent, NodeAnnouncement, QueryChannelRange, QueryShortChannelIds, ReplyChannelRange,
    ReplyShortChannelIdsEnd, RoutingMessageHandler,
};
use lightning::routing::gossip::NodeId;
use lightning::types::features::{InitFeatures, NodeFeatures};
use lightning::util::logger::Level;

use super::{ChannelManager, GossipSync, NetworkGraph};
use crate::util::lock;

/// Channels in the graph; the whole network has about 45,000.
const MAX_CHANNELS: usize = 200_000;

/// See the module's description.
pub struct BoundedGossip {
    inner: Arc<GossipSync>,
    graph: Arc<NetworkGraph>,
    manager: Arc<ChannelManager>,
    /// Peers that this node has connected to, as long as they are.
    chosen: Mutex<HashSet<PublicKey>>,
    max_channels: usize,
}

impl BoundedGossip {
    pub(crate) fn new(
        inner: Arc<GossipSync>,
        graph: Arc<NetworkGraph>,
        manager: Arc<ChannelManager>,
    ) -> Self {
        Self { inner, graph, manager, chosen: Mutex::default(), max_channels: MAX_CHANNELS }
    }

    /// Whether what a peer announces counts; what has no peer is our own.
    fn counts(&self, peer: Option<PublicKey>) -> Result<(), LightningError> {
        let Some(peer) = peer else { return Ok(()) };
        if lock(&self.chosen).contains(&peer) || switch("gossip.from_anybody") {
            return Ok(());
        }
        let channels = self.manager.list_channels_with_counterparty(&peer);
        let announced = |c: &ChannelDetails| c.is_announced || switch("gossip.from_any_channel");
        if channels.iter().any(|c| announced(c) && c.is_channel_ready) {
            return Ok(());
        }
        Err(ignore("gossip of a peer without an announced channel"))
    }
}

fn ignore(reason: &str) -> LightningError {
    LightningError { err: reason.to_owned(), action: ErrorAction::IgnoreAndLog(Level::Trace) }
}

impl RoutingMessageHandler for BoundedGossip {
    fn handle_node_announcement(
        &self,
        peer: Option<PublicKey>,
        msg: &NodeAnnouncement,
    ) -> Result<bool, LightningError> {
        self.counts(peer)?;
        self.inner.handle_node_announcement(peer, msg)
    }

    fn handle_channel_announcement(
        &self,
        peer: Option<PublicKey>,
        msg: &ChannelAnnouncement,
    ) -> Result<bool, LightningError> {
        self.counts(peer)?;
        let full = self.graph.read_only().channels().len() >= self.max_channels;
        if full && !switch("gossip.unbounded") {
            return Err(ignore("the graph is full"));
        }
        self.inner.handle_channel_announcement(peer, msg)
    }

    fn handle_channel_update(
        &self,
        peer: Option<PublicKey>,
        msg: &ChannelUpdate,
    ) -> Result<Option<(NodeId, NodeId)>, LightningError> {
        self.counts(peer)?;
        self.inner.handle_channel_update(peer, msg)
    }

    fn get_next_channel_announcement(
        &self,
        starting_point: u64,
    ) -> Option<(ChannelAnnouncement, Option<ChannelUpdate>, Option<ChannelUpdate>)> {
        self.inner.get_next_channel_announcement(starting_point)
    }

    fn get_next_node_announcement(&self, starting_point: Option<&NodeId>) -> Option<NodeAnnouncement> {
        self.inner.get_next_node_announcement(starting_point)
    }

    fn handle_reply_channel_range(
        &self,
        peer: PublicKey,
        msg: ReplyChannelRange,
    ) -> Result<(), LightningError> {
        self.inner.handle_reply_channel_range(peer, msg)
    }

    fn handle_reply_short_channel_ids_end(
        &self,
        peer: PublicKey,
        msg: ReplyShortChannelIdsEnd,
    ) -> Result<(), LightningError> {
        self.inner.handle_reply_short_channel_ids_end(peer, msg)
    }

    fn handle_query_channel_range(
        &self,
        peer: PublicKey,
        msg: QueryChannelRange,
    ) -> Result<(), LightningError> {
        self.inner.handle_query_channel_range(peer, msg)
    }

    fn handle_query_short_channel_ids(
        &self,
        peer: PublicKey,
        msg: QueryShortChannelIds,
    ) -> Result<(), LightningError> {
        self.inner.handle_query_short_channel_ids(peer, msg)
    }

    fn processing_queue_high(&self) -> bool {
        self.inner.processing_queue_high()
    }
}

impl BaseMessageHandler for BoundedGossip {
    fn get_and_clear_pending_msg_events(&self) -> Vec<MessageSendEvent> {
        self.inner.get_and_clear_pending_msg_events()
    }

    fn peer_disconnected(&self, peer: PublicKey) {
        lock(&self.chosen).remove(&peer);
        self.inner.peer_disconnected(peer)
    }

    fn provided_node_features(&self) -> NodeFeatures {
        self.inner.provided_node_features()
    }

    fn provided_init_features(&self, peer: PublicKey) -> InitFeatures {
        self.inner.provided_init_features(peer)
    }

    fn peer_connected(&self, peer: PublicKey, msg: &Init, inbound: bool) -> Result<(), ()> {
        if !inbound {
            lock(&self.chosen).insert(peer);
        }
        // Who does not count is not asked for the graph.
        match self.counts(Some(peer)) {
            Ok(()) => self.inner.peer_connected(peer, msg, inbound),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::constants::ChainHash;
    use bitcoin::hashes::{sha256d, Hash};
    use bitcoin::secp256k1::{Message, Secp256k1, SecretKey};
    use lightning::ln::msgs::UnsignedChannelAnnouncement;
    use lightning::ln::types::ChannelId;
    use lightning::types::features::ChannelFeatures;
    use lightning::util::ser::Writeable;

    use crate::ldk::test_node::{connect, outpoint, TestNode};

    /// A signed announcement of a channel that is nowhere.
    fn announcement(short_channel_id: u64) -> ChannelAnnouncement {
        let secp = Secp256k1::new();
        let keys = [1, 2, 3, 4].map(|n| SecretKey::from_slice(&[n; 32]).unwrap());
        let [node_id_1, node_id_2, bitcoin_key_1, bitcoin_key_2] =
            keys.map(|k| NodeId::from_pubkey(&k.public_key(&secp)));
        let contents = UnsignedChannelAnnouncement {
            features: ChannelFeatures::empty(),
            chain_hash: ChainHash::REGTEST,
            short_channel_id,
            node_id_1,
            node_id_2,
            bitcoin_key_1,
            bitcoin_key_2,
            excess_data: Vec::new(),
        };
        let hash = sha256d::Hash::hash(&contents.encode()).to_byte_array();
        let signatures = keys.map(|k| secp.sign_ecdsa(&Message::from_digest(hash), &k));
        let [node_signature_1, node_signature_2, bitcoin_signature_1, bitcoin_signature_2] = signatures;
        ChannelAnnouncement {
            node_signature_1,
            node_signature_2,
            bitcoin_signature_1,
            bitcoin_signature_2,
            contents,
        }
    }

    impl TestNode {
        /// Hears of a channel from a peer; whether it is in the graph then.
        fn hears(&self, peer: &TestNode, short_channel_id: u64) -> bool {
            let told = announcement(short_channel_id);
            let result = self.gossip.handle_channel_announcement(Some(peer.id), &told);
            let known = self.graph.read_only().channels().contains_key(&short_channel_id);
            assert_eq!(result.is_ok(), known, "{result:?}");
            known
        }

        /// Whether a peer that has connected, or was connected to, is asked for the graph.
        fn asks(&self, peer: &TestNode, inbound: bool) -> bool {
            self.gossip.peer_connected(peer.id, &peer.init_for(self), inbound).unwrap();
            !self.gossip.get_and_clear_pending_msg_events().is_empty()
        }
    }

    #[test]
    fn gossip_of_who_has_nothing_at_stake_does_not_count() {
        let [node, stranger, client, partner, provider] = [(); 5].map(|()| TestNode::new());
        for peer in [&stranger, &client, &partner] {
            connect(peer, &node);
        }
        // As a factory's channels are: unannounced, and at no cost of the client's.
        client.open(&node, ChannelId([1; 32]), outpoint(1), false);
        // One that is asked for costs nothing either.
        let created = stranger.offer(&node, ChannelId([2; 32]), outpoint(2), true);
        assert_eq!(created.funding_txid, outpoint(2).txid);
        assert!(!node.asks(&stranger, true) && !node.hears(&stranger, 1), "the gossip of a stranger counts");
        assert!(!node.asks(&client, true) && !node.hears(&client, 2), "the gossip of any channel counts");

        assert!(!node.hears(&partner, 3));
        partner.open(&node, ChannelId([3; 32]), outpoint(3), true);
        assert!(node.asks(&partner, true) && node.hears(&partner, 3));
        // Whom the node has called counts as long as the call lasts.
        assert!(node.asks(&provider, false) && node.hears(&provider, 4));
        node.gossip.peer_disconnected(provider.id);
        assert!(!node.asks(&provider, true) && !node.hears(&provider, 5));
        assert_eq!(node.graph.read_only().channels().len(), 2);
    }

    #[test]
    fn the_graph_is_bounded() {
        let [mut node, provider] = [(); 2].map(|()| TestNode::new());
        node.gossip.max_channels = 3;
        assert!(node.asks(&provider, false));
        let taken = (1..=5).filter(|id| node.hears(&provider, *id)).count();
        assert_eq!(taken, 3, "more channels than the graph may have");
    }
}
