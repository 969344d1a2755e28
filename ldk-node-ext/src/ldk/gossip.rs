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
}

impl BoundedGossip {
    pub(crate) fn new(
        inner: Arc<GossipSync>,
        graph: Arc<NetworkGraph>,
        manager: Arc<ChannelManager>,
    ) -> Self {
        Self { inner, graph, manager, chosen: Mutex::default() }
    }

    /// Whether what a peer announces counts; what has no peer is our own.
    fn counts(&self, peer: Option<PublicKey>) -> Result<(), LightningError> {
        let Some(peer) = peer else { return Ok(()) };
        if lock(&self.chosen).contains(&peer) {
            return Ok(());
        }
        let channels = self.manager.list_channels_with_counterparty(&peer);
        if channels.iter().any(|c| c.is_announced && c.is_channel_ready) {
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
        if self.graph.read_only().channels().len() >= MAX_CHANNELS {
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
