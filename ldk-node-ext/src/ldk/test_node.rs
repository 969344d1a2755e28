//! Nodes for tests of the wrappers: a real channel manager with everything between it and a peer, without sockets,
//! bitcoind or factory service. What they say to each other is carried by hand.

use std::sync::{Arc, Mutex, RwLock};

use bitcoin::constants::genesis_block;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Network, OutPoint, Txid};
use lightning::chain::BlockLocator;
use lightning::events::{Event, EventsProvider};
use lightning::ln::channelmanager::{ChainParameters, TrustedChannelFeatures};
use lightning::ln::msgs::{
    BaseMessageHandler, ChannelMessageHandler, FundingCreated, Init, MessageSendEvent,
};
use lightning::ln::types::ChannelId;
use lightning::routing::gossip::P2PGossipSync;
use lightning::routing::router::DefaultRouter;
use lightning::routing::scoring::{
    ProbabilisticScorer, ProbabilisticScoringDecayParameters, ProbabilisticScoringFeeParameters,
};
use tokio::sync::{mpsc, watch};

use super::{
    AllMonitors, BoundedGossip, Broadcaster, ChainMonitor, ChannelManager, ChannelMessages, Commitments,
    FundingDepth, HeldHtlcs, Mapping, MessageRouter, MonitorStore, NetworkGraph, Outgoing, Outpoints,
    Outward, Receiving, Retired, Router, Streams,
};
use crate::chain::{ChainIndex, Fees};
use crate::config::{NodeConfig, RpcAuth};
use crate::keys::{create_seed, Keys};
use crate::logger::Logger;
use crate::node::Failure;
use crate::store::Store;
use crate::util::{lock, unix_now};
use crate::wallet::Wallet;

/// Capacity of the channels between them, sat.
const CAPACITY_SAT: u64 = 100_000;

/// See the module's description.
pub(super) struct TestNode {
    _dir: tempfile::TempDir,
    _queue: mpsc::Receiver<Outgoing>,
    pub(super) id: PublicKey,
    pub(super) outpoints: Arc<Outpoints>,
    pub(super) manager: Arc<ChannelManager>,
    pub(super) messages: ChannelMessages,
    pub(super) graph: Arc<NetworkGraph>,
    pub(super) gossip: BoundedGossip,
    /// What it funds its next channel with.
    funding: Mutex<OutPoint>,
}

impl TestNode {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::Regtest;
        let auth = RpcAuth::CookieFile(dir.path().to_owned());
        let config = NodeConfig::lsp(dir.path().to_owned(), network, ([127, 0, 0, 1], 1).into(), auth);
        let seed = create_seed(dir.path()).unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let tip = BlockLocator::new(genesis_block(network).block_hash(), 0);
        let logger = Arc::new(Logger);
        let root = seed.root(network).unwrap();
        let wallet = Arc::new(Wallet::open(root, network, Arc::clone(&store), tip).unwrap());
        let outpoints = Arc::new(Outpoints::default());
        let held = Arc::new(HeldHtlcs::new(Arc::clone(&outpoints), Arc::clone(&store)));
        let mapping = Arc::new(Mapping::load(Arc::clone(&store)).unwrap());
        let commitments = Commitments::load(Arc::clone(&outpoints), Arc::clone(&store)).unwrap();
        let commitments = Arc::new(commitments);
        let (m, c) = (Arc::clone(&mapping), Arc::clone(&commitments));
        let keys = Arc::new(Keys::new(&seed, network, wallet, held, m, c).unwrap());
        let index = Arc::new(ChainIndex::open(Arc::clone(&store), tip).unwrap());
        let fees = Arc::new(Fees::new(1, 100));
        let depth = Arc::new(FundingDepth::new(Arc::clone(&outpoints), index, Arc::clone(&mapping)));
        let outward = Outward::new(Arc::clone(&mapping), Arc::clone(&commitments), Arc::clone(&keys));
        let (broadcaster, queue) =
            Broadcaster::new(Arc::clone(&outpoints), Arc::new(outward), Arc::clone(&store));
        let broadcaster = Arc::new(broadcaster);
        let retired = Retired::load(
            Arc::clone(&store),
            Arc::clone(&mapping),
            Arc::clone(&broadcaster),
            Arc::clone(&fees),
            Arc::clone(&keys),
        );
        let retired = Arc::new(retired.unwrap());
        let monitor_store =
            MonitorStore::new(Arc::clone(&store), Arc::clone(&commitments), Arc::clone(&retired));
        let graph = Arc::new(NetworkGraph::new(network, Arc::clone(&logger)));
        let decay = ProbabilisticScoringDecayParameters::default();
        let scorer = ProbabilisticScorer::new(decay, Arc::clone(&graph), Arc::clone(&logger));
        let monitor = Arc::new(ChainMonitor::new(
            None,
            Arc::clone(&broadcaster),
            Arc::clone(&logger),
            Arc::clone(&fees),
            Arc::new(monitor_store),
            Arc::clone(&keys),
            keys.peer_storage_key(),
            // Nobody writes the manager here, so the monitors do not wait for it.
            false,
        ));
        let router = DefaultRouter::new(
            Arc::clone(&graph),
            Arc::clone(&logger),
            Arc::clone(&keys),
            Arc::new(RwLock::new(scorer)),
            ProbabilisticScoringFeeParameters::default(),
        );
        let receiving =
            Receiving { keys: Arc::clone(&keys), min_final: Arc::default(), through: config.provider() };
        let margin = config.claim_margin_blocks;
        let router = Router::new(router, receiving.clone(), Arc::clone(&outpoints), depth, margin);
        let manager = Arc::new(ChannelManager::new(
            fees,
            Arc::new(AllMonitors::new(monitor, retired)),
            broadcaster,
            Arc::new(router),
            Arc::new(MessageRouter::new(Arc::clone(&graph), receiving)),
            Arc::clone(&logger),
            Arc::clone(&keys),
            Arc::clone(&keys),
            Arc::clone(&keys),
            config.user_config(),
            ChainParameters { network, best_block: tip },
            u32::try_from(unix_now()).unwrap(),
        ));
        let streams = Arc::new(Streams::new(commitments, mapping, Arc::clone(&keys)));
        let failure = Arc::new(Failure::new(watch::channel(false).0, store));
        let sync = Arc::new(P2PGossipSync::new(Arc::clone(&graph), None, logger));
        Self {
            _dir: dir,
            _queue: queue,
            id: keys.node_id(),
            messages: ChannelMessages::new(Arc::clone(&manager), Arc::clone(&outpoints), streams, failure),
            gossip: BoundedGossip::new(sync, Arc::clone(&graph), Arc::clone(&manager)),
            outpoints,
            manager,
            graph,
            funding: Mutex::new(OutPoint::null()),
        }
    }

    /// What it says of itself to `peer`.
    pub(super) fn init_for(&self, peer: &TestNode) -> Init {
        let mut features = self.messages.provided_init_features(peer.id);
        features.set_gossip_queries_optional();
        Init { features, networks: None, remote_network_address: None }
    }

    /// Asks `peer` for a channel over `outpoint`, and carries what follows up to `funding_created`, which is not
    /// delivered.
    pub(super) fn offer(
        &self,
        peer: &TestNode,
        temporary: ChannelId,
        outpoint: OutPoint,
        announced: bool,
    ) -> FundingCreated {
        *lock(&self.funding) = outpoint;
        let mut config = self.manager.get_current_config();
        config.channel_handshake_config.announce_for_forwarding = announced;
        self.manager.create_channel(peer.id, CAPACITY_SAT, 0, 1, Some(temporary), Some(config)).unwrap();
        carry(self, peer).expect("a funding_created")
    }

    /// Opens a channel that is ready at once.
    pub(super) fn open(&self, peer: &TestNode, temporary: ChannelId, outpoint: OutPoint, announced: bool) {
        let created = self.offer(peer, temporary, outpoint, announced);
        peer.messages.handle_funding_created(self.id, &created);
        assert!(carry(self, peer).is_none());
    }

    fn events(&self) {
        let handler = |event: Event| {
            match event {
                Event::OpenChannelRequest { temporary_channel_id, counterparty_node_id, .. } => self
                    .manager
                    .accept_inbound_channel_from_trusted_peer(
                        &temporary_channel_id,
                        &counterparty_node_id,
                        1,
                        TrustedChannelFeatures::ZeroConf,
                        None,
                    )
                    .unwrap(),
                Event::FundingGenerationReady { temporary_channel_id, counterparty_node_id, .. } => {
                    let OutPoint { txid, vout } = *lock(&self.funding);
                    let index = u16::try_from(vout).unwrap();
                    let txo = lightning::chain::transaction::OutPoint { txid, index };
                    let peer = counterparty_node_id;
                    self.manager
                        .unsafe_manual_funding_transaction_generated(temporary_channel_id, peer, txo)
                        .unwrap();
                }
                _ => {}
            }
            Ok(())
        };
        self.manager.process_pending_events(&handler);
    }

    /// Hears what `from` says to it; `funding_created` is returned instead.
    fn hear(&self, from: &TestNode, said: Vec<MessageSendEvent>) -> Option<FundingCreated> {
        let (handler, peer) = (&self.messages, from.id);
        let mut created = None;
        for event in said {
            match event {
                MessageSendEvent::SendOpenChannel { node_id, msg } if node_id == self.id => {
                    handler.handle_open_channel(peer, &msg)
                }
                MessageSendEvent::SendAcceptChannel { node_id, msg } if node_id == self.id => {
                    handler.handle_accept_channel(peer, &msg)
                }
                MessageSendEvent::SendFundingCreated { node_id, msg } if node_id == self.id => {
                    created = Some(msg)
                }
                MessageSendEvent::SendFundingSigned { node_id, msg } if node_id == self.id => {
                    handler.handle_funding_signed(peer, &msg)
                }
                MessageSendEvent::SendChannelReady { node_id, msg } if node_id == self.id => {
                    handler.handle_channel_ready(peer, &msg)
                }
                // What is for others is lost.
                _ => {}
            }
        }
        created
    }
}

/// An outpoint of a transaction that is nowhere. Its channel id is not the temporary id of the same bytes.
pub(super) fn outpoint(n: u8) -> OutPoint {
    OutPoint { txid: Txid::from_byte_array([n; 32]), vout: 1 }
}

/// Connects two nodes; the first one has called.
pub(super) fn connect(caller: &TestNode, called: &TestNode) {
    caller.messages.peer_connected(called.id, &called.init_for(caller), false).unwrap();
    called.messages.peer_connected(caller.id, &caller.init_for(called), true).unwrap();
    assert!(carry(caller, called).is_none());
}

/// Carries messages between two nodes until neither has anything to say; `funding_created` is returned instead.
fn carry(a: &TestNode, b: &TestNode) -> Option<FundingCreated> {
    let mut created = None;
    loop {
        a.events();
        b.events();
        let (of_a, of_b) =
            (a.messages.get_and_clear_pending_msg_events(), b.messages.get_and_clear_pending_msg_events());
        if of_a.is_empty() && of_b.is_empty() {
            return created;
        }
        created = b.hear(a, of_a).or(a.hear(b, of_b)).or(created);
    }
}
