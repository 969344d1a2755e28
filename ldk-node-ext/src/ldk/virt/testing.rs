//! Two nodes in one process, for tests: LDK's channel manager and chain monitor behind this crate's own wrappers,
//! each on a store of its own. The test carries the messages and so decides what arrives when, what is lost, when a
//! process dies and what was on disk by then; blocks are made by hand.

mod blocks;
mod change;
mod pair;
mod wire;

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Waker};

use bitcoin::absolute::LockTime;
use bitcoin::constants::genesis_block;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::PublicKey;
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, Block, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness,
};
use bolt_tlv::blip56::Envelope;
use lightning::chain::BlockLocator;
use lightning::events::{Event, EventsProvider};
use lightning::ln::channelmanager::PaymentId;
use lightning::ln::msgs::BaseMessageHandler;
use lightning::ln::outbound_payment::{RecipientOnionFields, Retry};
use lightning::ln::peer_handler::CustomMessageHandler;
use lightning::ln::types::ChannelId;
use lightning::routing::router::{DefaultRouter, PaymentParameters, RouteParameters};
use lightning::routing::scoring::{
    ProbabilisticScorer, ProbabilisticScoringDecayParameters, ProbabilisticScoringFeeParameters,
};
use lightning::types::features::Bolt11InvoiceFeatures;
use lightning::types::payment::{PaymentHash, PaymentPreimage};
use lightning::util::persist::{KVStoreSync, MonitorName, CHANNEL_MANAGER_PERSISTENCE_KEY};
use lightning::util::ser::Writeable;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

pub(crate) use self::change::Move;
pub(crate) use self::pair::Pair;
pub(crate) use self::wire::Wire;
use crate::chain::{ChainIndex, Fees};
use crate::config::{NodeConfig, RpcAuth};
use crate::keys::{self, Keys};
use crate::ldk::{
    AllMonitors, Broadcaster, ChainMonitor, Changes, ChannelManager, ChannelMessages, Commitments,
    FactoryMessages, FundingDepth, HeldHtlcs, Mapping, MessageRouter, MonitorStore, NetworkGraph, Outgoing,
    Outpoints, Outward, PeerEvent, Receiving, Retired, Router, Streams, WholeBlocks,
};
use crate::logger::Logger;
use crate::node::{Failure, Ldk};
use crate::store::Store;
use crate::util::lock;
use crate::wallet::Wallet;

/// Capacity of a test's channel, sat.
pub(crate) const CAPACITY_SAT: u64 = 1_000_000;
/// What its funder gives to the other side at once, msat.
const PUSH_MSAT: u64 = 400_000_000;
/// The factory of a test's channel.
const INSTANCE: [u8; 32] = [7; 32];

/// A folder in memory where there is one: thousands of cases write to disk all the time.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// One process: everything of a node that has to do with channels.
pub(crate) struct Node {
    pub(crate) id: PublicKey,
    pub(crate) store: Arc<Store>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) outpoints: Arc<Outpoints>,
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) commitments: Arc<Commitments>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) changes: Changes,
    pub(crate) outward: Arc<Outward>,
    pub(crate) retired: Arc<Retired>,
    pub(crate) index: Arc<ChainIndex>,
    pub(crate) fees: Arc<Fees>,
    pub(crate) manager: Arc<ChannelManager>,
    pub(crate) monitor: Arc<ChainMonitor>,
    pub(crate) channel_messages: Arc<ChannelMessages>,
    pub(crate) factory_messages: Arc<FactoryMessages>,
    /// What the broadcaster has let out.
    pub(crate) outgoing: Mutex<mpsc::Receiver<Outgoing>>,
    peer_events: Mutex<mpsc::Receiver<PeerEvent>>,
    /// LDK's events that the test has not looked at yet.
    pub(crate) events: Mutex<Vec<Event>>,
    /// Messages that have left and not arrived.
    pub(crate) out: Mutex<VecDeque<Wire>>,
    /// Errors, warnings and disconnections this node has asked for.
    pub(crate) complaints: Mutex<Vec<String>>,
}

impl Node {
    /// Starts a node in a folder, with what is on disk there.
    fn start(dir: &Path, tip: BlockLocator, blocks: &[Block]) -> Self {
        let network = Network::Regtest;
        let auth = RpcAuth::UserPass { user: String::new(), pass: String::new() };
        let config = NodeConfig::lsp(dir.to_owned(), network, SocketAddr::from(([127, 0, 0, 1], 1)), auth);
        let seed = keys::load_seed(dir, Store::exists(dir)).unwrap();
        let store = Arc::new(Store::open(dir).unwrap());
        let logger = Arc::new(Logger);
        let root = seed.root(network).unwrap();
        let wallet = Arc::new(Wallet::open(root, network, Arc::clone(&store), tip).unwrap());
        let outpoints = Arc::new(Outpoints::default());
        let held = Arc::new(HeldHtlcs::new(Arc::clone(&outpoints), Arc::clone(&store)));
        let mapping = Arc::new(Mapping::load(Arc::clone(&store)).unwrap());
        let commitments = Commitments::load(Arc::clone(&outpoints), Arc::clone(&store)).unwrap();
        let commitments = Arc::new(commitments);
        let keys = Keys::new(
            &seed,
            network,
            Arc::clone(&wallet),
            held,
            Arc::clone(&mapping),
            Arc::clone(&commitments),
        )
        .unwrap();
        let keys = Arc::new(keys);
        let index = Arc::new(ChainIndex::open(Arc::clone(&store), tip).unwrap());
        let fees = Arc::new(Fees::new(5, 500));
        let outward = Outward::new(Arc::clone(&mapping), Arc::clone(&commitments), Arc::clone(&keys));
        let outward = Arc::new(outward);
        let (broadcaster, outgoing) =
            Broadcaster::new(Arc::clone(&outpoints), Arc::clone(&outward), Arc::clone(&store));
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
            Arc::new(MonitorStore::new(Arc::clone(&store), Arc::clone(&commitments), Arc::clone(&retired)));
        let monitor = Arc::new(ChainMonitor::new(
            None::<Arc<WholeBlocks>>,
            Arc::clone(&broadcaster),
            Arc::clone(&logger),
            Arc::clone(&fees),
            Arc::clone(&monitor_store),
            Arc::clone(&keys),
            keys.peer_storage_key(),
            true,
        ));
        let graph = Arc::new(NetworkGraph::new(network, Arc::clone(&logger)));
        let decay = ProbabilisticScoringDecayParameters::default();
        let scorer = ProbabilisticScorer::new(decay, Arc::clone(&graph), Arc::clone(&logger));
        let router = DefaultRouter::new(
            Arc::clone(&graph),
            Arc::clone(&logger),
            Arc::clone(&keys),
            Arc::new(RwLock::new(scorer)),
            ProbabilisticScoringFeeParameters::default(),
        );
        let depth =
            Arc::new(FundingDepth::new(Arc::clone(&outpoints), Arc::clone(&index), Arc::clone(&mapping)));
        let receiving =
            Receiving { keys: Arc::clone(&keys), min_final: Arc::default(), through: config.provider() };
        let router = Router::new(router, receiving.clone(), Arc::clone(&outpoints), depth, 12);
        let router = Arc::new(router);
        let message_router = Arc::new(MessageRouter::new(graph, receiving));
        let ldk = Ldk {
            config: &config,
            keys: Arc::clone(&keys),
            store: Arc::clone(&store),
            fees: Arc::clone(&fees),
            broadcaster: Arc::clone(&broadcaster),
            wallet: Arc::clone(&wallet),
            logger: Arc::clone(&logger),
            tip,
        };
        let watched = Arc::new(AllMonitors::new(Arc::clone(&monitor), Arc::clone(&retired)));
        let (manager, best, monitors) = ldk.channels(&watched, router, message_router).unwrap();
        let user = config.factory_channel_config(144);
        manager.set_current_config(user);
        let manager = Arc::new(manager);
        index.watch([funding_of_the_factory().compute_txid()], []);
        for (_, m) in &monitors {
            let MonitorName::V1Channel(first) = m.persistence_key() else { panic!("of another kind") };
            let id = outpoints.insert(INSTANCE, first.into_bitcoin_outpoint());
            live(&outpoints, &id);
        }
        let monitors: Vec<_> = monitors
            .into_iter()
            .map(|(best, m)| (best, (m, Arc::clone(&broadcaster), Arc::clone(&fees), Arc::clone(&logger))))
            .collect();
        blocks::catch_up(blocks, &mapping, &retired, (best, &*manager), &monitors);
        for (_, (m, ..)) in monitors {
            monitor.load_existing_monitor(m.channel_id(), m).unwrap();
        }
        let streams = Streams::new(Arc::clone(&commitments), Arc::clone(&mapping), Arc::clone(&keys));
        let streams = Arc::new(streams);
        let changes = Changes::new(
            Arc::clone(&manager),
            Arc::clone(&monitor),
            Arc::clone(&streams),
            Arc::clone(&retired),
        );
        let (stop, _) = watch::channel(false);
        let failure = Arc::new(Failure::new(stop, Arc::clone(&store)));
        let channel_messages =
            ChannelMessages::new(Arc::clone(&manager), Arc::clone(&outpoints), Arc::clone(&streams), failure);
        let channel_messages = Arc::new(channel_messages);
        let (factory_messages, peer_events) = FactoryMessages::new(Envelope::default());
        factory_messages.carry(Arc::clone(&channel_messages));
        Self {
            id: keys.node_id(),
            store,
            keys,
            outpoints,
            mapping,
            commitments,
            streams,
            changes,
            outward,
            retired,
            index,
            fees,
            manager,
            monitor,
            channel_messages,
            factory_messages: Arc::new(factory_messages),
            outgoing: Mutex::new(outgoing),
            peer_events: Mutex::new(peer_events),
            events: Mutex::default(),
            out: Mutex::default(),
            complaints: Mutex::default(),
        }
    }

    /// Writes the manager and then the monitors, as LDK's background task does; what waits for that may leave then.
    pub(crate) fn persist(&self) {
        let count = self.monitor.pending_operation_count();
        self.store.write("", "", CHANNEL_MANAGER_PERSISTENCE_KEY, self.manager.encode()).unwrap();
        self.monitor.flush(count, &Arc::new(Logger));
    }

    /// Lets LDK work off what it has to, collects its events, and puts what has to leave on the wire: channel
    /// messages before custom ones, as LDK's peer manager does.
    pub(crate) fn run(&self) {
        self.manager.process_pending_htlc_forwards();
        let collect = |event: Event| {
            lock(&self.events).push(event);
            Ok(())
        };
        self.monitor.process_pending_events(&collect);
        let retired = self.retired.process_events(|event| std::future::ready(collect(event)));
        assert!(std::pin::pin!(retired).poll(&mut Context::from_waker(Waker::noop())).is_ready());
        self.manager.process_pending_events(&collect);
        let mut out = lock(&self.out);
        for event in self.channel_messages.get_and_clear_pending_msg_events() {
            wire::split(event, &mut out, &self.complaints);
        }
        let custom = self.factory_messages.get_and_clear_pending_msg();
        out.extend(custom.into_iter().map(|(_, message)| Wire::Custom(message)));
        while lock(&self.peer_events).try_recv().is_ok() {}
    }

    /// LDK's events since this was last asked.
    pub(crate) fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut *lock(&self.events))
    }

    /// Transactions that have left the broadcaster since this was last asked.
    pub(crate) fn take_broadcast(&self) -> Vec<Transaction> {
        let mut queue = lock(&self.outgoing);
        std::iter::from_fn(|| queue.try_recv().ok()).flat_map(|o| o.txs).collect()
    }

    /// Takes a message from the wire.
    pub(crate) fn receive(&self, from: PublicKey, message: Wire) {
        match message {
            Wire::Channel { deliver, .. } => deliver(self, from),
            Wire::Custom(message) => {
                if let Err(e) = self.factory_messages.handle_custom_message(message, from) {
                    lock(&self.complaints).push(e.err);
                }
            }
        }
    }

    /// Offers a payment to the other node.
    pub(crate) fn send(&self, to: &Self, msat: u64) -> PaymentHash {
        let (hash, secret, _) = to.manager.create_inbound_payment(Some(msat), 3600, None, None).unwrap();
        let mut features = Bolt11InvoiceFeatures::empty();
        features.set_variable_length_onion_required();
        features.set_payment_secret_required();
        let payee = PaymentParameters::from_node_id(to.id, 24).with_bolt11_features(features).unwrap();
        let route = RouteParameters::from_payment_params_and_value(payee, msat);
        let onion = RecipientOnionFields::secret_only(secret, msat);
        self.manager.send_payment(hash, onion, PaymentId(hash.0), route, Retry::Attempts(0)).unwrap();
        hash
    }

    /// Preimages of payments that have arrived and wait to be claimed.
    pub(crate) fn claimable(&self) -> Vec<PaymentPreimage> {
        let claimable = |event| match event {
            Event::PaymentClaimable { purpose, .. } => purpose.preimage(),
            _ => None,
        };
        self.take_events().into_iter().filter_map(claimable).collect()
    }
}

/// The way out of a node without channels.
pub(crate) fn outward(dir: &Path, store: &Arc<Store>, outpoints: &Arc<Outpoints>) -> Arc<Outward> {
    let tip = BlockLocator::new(genesis_block(Network::Regtest).block_hash(), 0);
    let seed = keys::create_seed(dir).unwrap();
    let root = seed.root(Network::Regtest).unwrap();
    let wallet = Arc::new(Wallet::open(root, Network::Regtest, Arc::clone(store), tip).unwrap());
    let held = Arc::new(HeldHtlcs::new(Arc::clone(outpoints), Arc::clone(store)));
    let mapping = Arc::new(Mapping::load(Arc::clone(store)).unwrap());
    let commitments = Arc::new(Commitments::load(Arc::clone(outpoints), Arc::clone(store)).unwrap());
    let (m, c) = (Arc::clone(&mapping), Arc::clone(&commitments));
    let keys = Arc::new(Keys::new(&seed, Network::Regtest, wallet, held, m, c).unwrap());
    Arc::new(Outward::new(mapping, commitments, keys))
}

/// The same over a store of its own.
pub(crate) fn outward_apart() -> Arc<Outward> {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    outward(dir.path(), &store, &Arc::default())
}

/// A transaction nobody has broadcast, with these outputs; `tag` makes it another one.
pub(crate) fn unbroadcast(tag: u8, output: Vec<TxOut>) -> Transaction {
    let previous_output = OutPoint { txid: Txid::from_byte_array([tag; 32]), vout: 0 };
    let witness = Witness::from_slice(&[[1u8; 64]]);
    let input = TxIn { previous_output, script_sig: ScriptBuf::new(), sequence: Sequence::MAX, witness };
    Transaction { version: Version(3), lock_time: LockTime::ZERO, input: vec![input], output }
}

/// What the factory of a test's channel is funded with.
fn funding_of_the_factory() -> Transaction {
    unbroadcast(2, vec![TxOut { value: Amount::from_sat(2 * CAPACITY_SAT), script_pubkey: ScriptBuf::new() }])
}

/// What the factory service tells of a factory that lives.
fn live(outpoints: &Outpoints, channel: &ChannelId) {
    let funding = OutPoint { txid: funding_of_the_factory().compute_txid(), vout: 0 };
    outpoints.set_terms(channel, 0, funding, 1);
    outpoints.set_released(channel);
}

#[test]
fn two_nodes_pay_each_other_and_start_again() {
    let mut pair = Pair::open();
    pair.pay(false, 20_000_000);
    pair.pay(true, 10_000_000);
    for b in [false, true] {
        pair.a.send(&pair.b, 5_000_000);
        pair.settle();
        // LDK tells of a payment once, and writes that it has.
        let preimages = pair.b.claimable();
        pair = pair.restart(b);
        pair.connect();
        pair.settle();
        for preimage in preimages {
            pair.b.manager.claim_funds(preimage);
        }
        pair.settle();
    }
    pair.disconnect();
    pair.connect();
    pair.settle();
    pair.pay(true, 10_000_000);
    for node in [&pair.a, &pair.b] {
        assert!(lock(&node.complaints).is_empty(), "{:?}", lock(&node.complaints));
        let channel = &node.manager.list_channels()[0];
        assert!(channel.pending_inbound_htlcs.is_empty() && channel.pending_outbound_htlcs.is_empty());
    }
    pair.block(Vec::new());
    assert_eq!(pair.a.manager.current_best_block().height, 2);
}
