//! Starting a node: open, catch up, connect, run.

use std::sync::atomic::{AtomicBool, AtomicU16};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bolt_tlv::blip56::Envelope;
use lightning::chain::{BlockLocator, Listen};
use lightning::events::bump_transaction::sync::BumpTransactionEventHandlerSync;
use lightning::ln::peer_handler::{IgnoringMessageHandler, MessageHandler};
use lightning::routing::gossip::P2PGossipSync;
use lightning::routing::router::DefaultRouter;
use lightning::routing::scoring::ProbabilisticScoringFeeParameters;
use lightning::sign::{ChangeDestinationSourceSyncWrapper, EntropySource};
use lightning::util::sweep::OutputSweeper;
use lightning::util::wallet_utils::WalletSync;
use lightning_background_processor::{process_events_async, GossipSync as BackgroundGossip};
use lightning_block_sync::init::{synchronize_listeners, validate_best_block_header};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch, Notify};
use tokio::task::JoinSet;

use super::htlcs::HtlcMemory;
use super::payments::known_payments;
use super::restore::{check_network, load_monitor, void_channels, Ldk};
use super::room::{self, PatientStore};
use super::{broadcast, failure, holds, ldk_events, net, Failure, Node, Parts};
use crate::chain::{
    Bitcoind, ChainFeed, ChainIndex, ChainSync, Fees, IndexListener, OwnParts, WalletListener,
};
use crate::config::NodeConfig;
use crate::error::Error;
use crate::factory;
use crate::keys::{self, Keys};
use crate::ldk::virt::{InVForm, RetiredListener};
use crate::ldk::{
    AllMonitors, BoundedGossip, Broadcaster, ChainMonitor, Changes, ChannelMessages, Commitments,
    CustomMessages, FactoryMessages, FundingDepth, GossipSync, HeldHtlcs, Mapping, MessageRouter,
    MonitorStore, OfferMessages, OnionMessenger, Outpoints, Outward, PeerManager, Receiving, Retired, Router,
    Streams, WholeBlocks,
};
use crate::liquidity::{self, Liquidity};
use crate::logger::Logger;
use crate::publish::Publisher;
use crate::relay::{self, Asks, Relays};
use crate::store::events::Events;
use crate::store::holds::Holds;
use crate::store::payments::Payments;
use crate::store::requests::Requests;
use crate::store::Store;
use crate::util::unix_now;
use crate::wallet::Wallet;

/// The type of a sweeper that is not handed over.
type NoSweeper = OutputSweeper<
    Arc<Broadcaster>,
    ChangeDestinationSourceSyncWrapper<Arc<Wallet>>,
    Arc<Fees>,
    Arc<WholeBlocks>,
    PatientStore,
    Arc<Logger>,
    Arc<Keys>,
>;

/// Commands that may wait for the factory service.
const COMMAND_QUEUE: usize = 256;

pub(super) async fn start(config: NodeConfig) -> Result<Node, Error> {
    config.validate()?;
    let seed = keys::load_seed(&config.data_dir, Store::exists(&config.data_dir))?;
    let store = Arc::new(Store::open_as(&config.data_dir, config.store)?);
    check_network(&store, config.network)?;
    failure::check(&store)?;
    let (stop, stop_receiver) = watch::channel(false);
    let failure = Arc::new(Failure::new(stop.clone(), Arc::clone(&store)));

    let bitcoind = Arc::new(Bitcoind::new(config.bitcoind_rpc, config.bitcoind_auth.clone())?);
    bitcoind.check(config.network).await?;
    let source = Arc::clone(&bitcoind);
    let best = validate_best_block_header(&*source).await.map_err(|e| Error::Bitcoind(format!("{e:?}")))?;
    let tip = best.to_block_locator();

    let logger = Arc::new(Logger);
    let wallet = Arc::new(Wallet::open(seed.root(config.network)?, config.network, Arc::clone(&store), tip)?);
    let outpoints = Arc::new(Outpoints::default());
    let held = Arc::new(HeldHtlcs::new(Arc::clone(&outpoints), Arc::clone(&store)));
    let mapping = Arc::new(Mapping::load(Arc::clone(&store))?);
    let commitments = Arc::new(Commitments::load(Arc::clone(&outpoints), Arc::clone(&store))?);
    let keys = Arc::new(Keys::new(
        &seed,
        config.network,
        Arc::clone(&wallet),
        Arc::clone(&held),
        Arc::clone(&mapping),
        Arc::clone(&commitments),
    )?);
    let index = Arc::new(ChainIndex::open(Arc::clone(&store), tip)?);
    let fees = Arc::new(Fees::new(config.fallback_feerate_sat_per_vb, config.max_feerate_sat_per_vb));
    fees.refresh(&bitcoind).await;
    let depth = Arc::new(FundingDepth::new(Arc::clone(&outpoints), Arc::clone(&index), Arc::clone(&mapping)));
    let outward = Outward::new(Arc::clone(&mapping), Arc::clone(&commitments), Arc::clone(&keys));
    let outward = Arc::new(outward);
    let (broadcaster, outgoing) =
        Broadcaster::new(Arc::clone(&outpoints), Arc::clone(&outward), Arc::clone(&store));
    let broadcaster = Arc::new(broadcaster);

    // The factories tell what to watch and what to hold; that comes before anything of LDK moves.
    let factories = factory::load(&store, &config)?;
    factories.register(&outpoints, &index, &wallet)?;
    held.load()?;

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
    let graph = ldk.network_graph()?;
    let scorer = ldk.scorer(&graph)?;
    let retired = Retired::load(
        Arc::clone(&store),
        Arc::clone(&mapping),
        Arc::clone(&broadcaster),
        Arc::clone(&fees),
        Arc::clone(&keys),
    )?;
    let retired = Arc::new(retired);
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
        // Monitor writes wait for the manager's: a crash in between then closes no channel.
        true,
    ));
    let router = DefaultRouter::new(
        Arc::clone(&graph),
        Arc::clone(&logger),
        Arc::clone(&keys),
        Arc::clone(&scorer),
        ProbabilisticScoringFeeParameters::default(),
    );
    let min_final_cltv: Arc<AtomicU16> = Arc::default();
    let receiving = Receiving {
        keys: Arc::clone(&keys),
        min_final: Arc::clone(&min_final_cltv),
        through: config.provider(),
    };
    let message_router = Arc::new(MessageRouter::new(Arc::clone(&graph), receiving.clone()));
    let (known, deep, margin) = (Arc::clone(&outpoints), Arc::clone(&depth), config.claim_margin_blocks);
    let router = Arc::new(Router::new(router, receiving, known, deep, margin));
    let monitors = AllMonitors::new(Arc::clone(&monitor), Arc::clone(&retired));
    let watch = Arc::new(monitors);
    let (manager, manager_best, monitors) = ldk.channels(&watch, router, Arc::clone(&message_router))?;
    commitments.keep_only(&monitors.iter().map(|(_, m)| m.channel_id()).collect::<Vec<_>>())?;
    let manager = Arc::new(manager);
    // Channels of a ceremony that the last stop interrupted, and what is left of void ones: held too.
    for channel in manager.list_channels().into_iter().filter(|c| factory::is_marked(c.user_channel_id)) {
        if let (None, Some(funding)) = (outpoints.get(&channel.channel_id), channel.funding_txo) {
            outpoints.insert([0; 32], funding.into_bitcoin_outpoint());
        }
    }
    // Also counted as nobody's money, from the start on.
    let void = void_channels(&store, &monitors)?;
    for id in &void {
        let monitor = monitors.iter().find(|(_, m)| m.channel_id() == *id);
        if let (None, Some((_, m))) = (outpoints.get(id), monitor) {
            outpoints.insert([0; 32], m.get_funding_txo().into_bitcoin_outpoint());
        }
    }
    let (sweeper, sweeper_best) = ldk.sweeper()?;
    let sweeper = Arc::new(sweeper);

    // Everything catches up to one tip, our own parts first.
    let wallet_listener = WalletListener(Arc::clone(&wallet));
    let index_listener = IndexListener { index: Arc::clone(&index), outpoints: Arc::clone(&outpoints) };
    let monitors: Vec<_> = monitors
        .into_iter()
        .map(|(best, m)| (best, (m, Arc::clone(&broadcaster), Arc::clone(&fees), Arc::clone(&logger))))
        .collect();
    let retired_listener = RetiredListener { mapping: &mapping, retired: &retired };
    let manager_listener = InVForm { mapping: &mapping, to: &*manager };
    let monitor_listeners: Vec<_> =
        monitors.iter().map(|(best, m)| (*best, InVForm { mapping: &mapping, to: m })).collect();
    let mut listeners: Vec<(BlockLocator, &(dyn Listen + Send + Sync))> = vec![
        (wallet.best_block(), &wallet_listener),
        (index.best_block(), &index_listener),
        (manager_best, &retired_listener),
        (manager_best, &manager_listener),
        (sweeper_best, &*sweeper),
    ];
    listeners.extend(monitor_listeners.iter().map(|(best, m)| (*best, m as &(dyn Listen + Send + Sync))));
    let (cache, header) = synchronize_listeners(Arc::clone(&source), config.network, listeners)
        .await
        .map_err(|e| Error::Bitcoind(format!("catching up: {e:?}")))?;
    for (_, (m, ..)) in monitors {
        load_monitor(&monitor, m)?;
    }
    let (tip_sender, tip) = watch::channel(header.to_block_locator());

    let (factory_messages, peer_events) = FactoryMessages::new(Envelope::default());
    let factory_messages = Arc::new(factory_messages);
    let streams = Arc::new(Streams::new(commitments, Arc::clone(&mapping), Arc::clone(&keys)));
    let channel_messages = Arc::new(ChannelMessages::new(
        Arc::clone(&manager),
        Arc::clone(&outpoints),
        Arc::clone(&streams),
        Arc::clone(&failure),
    ));
    factory_messages.carry(Arc::clone(&channel_messages));
    let onion_messenger = Arc::new(OnionMessenger::new(
        Arc::clone(&keys),
        Arc::clone(&keys),
        Arc::clone(&logger),
        Arc::clone(&manager),
        message_router,
        Arc::new(OfferMessages::new(Arc::clone(&manager))),
        IgnoringMessageHandler {},
        IgnoringMessageHandler {},
        IgnoringMessageHandler {},
    ));
    let gossip: Arc<GossipSync> = Arc::new(P2PGossipSync::new(Arc::clone(&graph), None, Arc::clone(&logger)));
    let lsps = liquidity::lsps(&config, &keys, &manager, &store, &broadcaster)?;
    let lsps_asked = Arc::new(Notify::new());
    let handlers = MessageHandler {
        chan_handler: Arc::clone(&channel_messages),
        route_handler: Arc::new(BoundedGossip::new(
            Arc::clone(&gossip),
            Arc::clone(&graph),
            Arc::clone(&manager),
        )),
        onion_message_handler: Arc::clone(&onion_messenger),
        custom_message_handler: Arc::new(CustomMessages::new(
            Arc::clone(&factory_messages),
            lsps.clone(),
            Arc::clone(&lsps_asked),
        )),
        send_only_message_handler: Arc::clone(&monitor),
    };
    let now = u32::try_from(unix_now()).unwrap_or(u32::MAX);
    let random = keys.get_secure_random_bytes();
    let peers = Arc::new(PeerManager::new(handlers, now, &random, Arc::clone(&logger), Arc::clone(&keys)));
    let bump_wallet = Arc::new(WalletSync::new(Arc::clone(&wallet), Arc::clone(&logger)));
    let bump = BumpTransactionEventHandlerSync::new(
        Arc::clone(&broadcaster),
        bump_wallet,
        Arc::clone(&keys),
        Arc::clone(&logger),
    );

    let liquidity = Liquidity::open(Arc::clone(&store))?;
    let payments = Payments::new(Arc::clone(&store));
    let requests = Requests::new(Arc::clone(&store));
    let known = known_payments(&manager);
    payments.fail_unknown(&known)?;
    requests.fail_unknown(&known)?;
    let (commands, command_queue) = mpsc::channel(COMMAND_QUEUE);
    let (ended, _) = watch::channel(false);
    let (payments_changed, _) = watch::channel(0);
    let synced = Arc::new(AtomicBool::new(true));
    let changes =
        Changes::new(Arc::clone(&manager), Arc::clone(&monitor), Arc::clone(&streams), Arc::clone(&retired));
    let parts = Arc::new(Parts {
        node_id: keys.node_id(),
        payments,
        requests,
        holds: Holds::open(Arc::clone(&store))?,
        relays: Relays::open(Arc::clone(&store))?,
        asks: Asks::default(),
        events: Events::open(Arc::clone(&store))?,
        config,
        keys,
        store,
        wallet,
        index,
        outpoints,
        depth,
        fees,
        bitcoind,
        broadcaster,
        outward,
        mapping: Arc::clone(&mapping),
        streams,
        changes,
        manager,
        monitor,
        retired,
        onion_messenger,
        channel_messages,
        factory_messages,
        peers,
        sweeper,
        bump,
        bumps: Default::default(),
        commands,
        tip,
        synced: Arc::clone(&synced),
        payments_changed,
        min_final_cltv,
        held,
        htlcs: HtlcMemory::default(),
        liquidity,
        lsps,
        lsps_asked,
        deadline: Mutex::new(None),
        settled: Mutex::new(void),
        listen: Mutex::new(None),
        stop,
        failure,
        ended,
    });

    parts.restore_jit()?;

    let listener = match parts.config.listen {
        Some(address) => {
            let bound = TcpListener::bind(address)
                .await
                .map_err(|e| Error::invalid("listen", format!("{address}: {e}")))?;
            *crate::util::lock(&parts.listen) = bound.local_addr().ok();
            Some(bound)
        }
        None => None,
    };

    let own = OwnParts {
        wallet: Arc::clone(&parts.wallet),
        index: Arc::clone(&parts.index),
        outpoints: Arc::clone(&parts.outpoints),
    };
    let feed = ChainFeed::new(
        &own,
        Arc::clone(&parts.manager),
        Arc::clone(&parts.monitor),
        Arc::clone(&mapping),
        Arc::clone(&parts.retired),
        Arc::clone(&parts.sweeper),
        tip_sender,
    );
    let sync = ChainSync {
        bitcoind: Arc::clone(&parts.bitcoind),
        fees: Arc::clone(&parts.fees),
        network: parts.config.network,
        interval: parts.config.poll_interval,
        synced,
    };
    let publisher = Publisher::load(
        Arc::clone(&parts.store),
        Arc::clone(&parts.wallet),
        Arc::clone(&parts.bitcoind),
        Arc::clone(&parts.fees),
    )?;
    let mut tasks = JoinSet::new();
    tasks.spawn(sync.run(header, cache, feed, stop_receiver.clone()));
    tasks.spawn(broadcast::run(Arc::clone(&parts), outgoing, stop_receiver.clone()));
    tasks.spawn(background(Arc::clone(&parts), gossip, scorer, stop_receiver.clone()));
    tasks.spawn(factories.run(
        Arc::clone(&parts),
        publisher,
        command_queue,
        peer_events,
        stop_receiver.clone(),
    ));
    tasks.spawn(room::run(Arc::clone(&parts), monitor_store, stop_receiver.clone()));
    tasks.spawn(retired_events(Arc::clone(&parts), stop_receiver.clone()));
    tasks.spawn(relay::run(Arc::clone(&parts), stop_receiver.clone()));
    tasks.spawn(liquidity::run(Arc::clone(&parts), stop_receiver.clone()));
    tasks.spawn(liquidity::run_carry(Arc::clone(&parts), stop_receiver.clone()));
    tasks.spawn(liquidity::run_moving(Arc::clone(&parts), stop_receiver.clone()));
    if parts.lsps.is_some() {
        tasks.spawn(liquidity::run_lsps2(Arc::clone(&parts), stop_receiver.clone()));
    }
    tasks.spawn(holds::run(Arc::clone(&parts), stop_receiver.clone()));
    tasks.spawn(net::keep_connected(Arc::clone(&parts), stop_receiver.clone()));
    if let Some(listener) = listener {
        tasks.spawn(net::accept(Arc::clone(&parts), listener, stop_receiver));
    }
    tokio::spawn(supervise(Arc::clone(&parts), tasks));
    tracing::info!(node_id = %parts.node_id, height = parts.height(), "node started");
    Ok(Node { parts })
}

/// Waits for the order to stop, then for every task; only then has the node ended. A task that ends
/// before that has failed, and a node without it must not go on.
async fn supervise(parts: Arc<Parts>, mut tasks: JoinSet<()>) {
    let mut stop = parts.stop.subscribe();
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        // The order may have come, and been obeyed by a task, since it was looked for above.
        ended = tasks.join_next() => if !*parts.stop.borrow() {
            parts.failure.stop(format!("a task of the node ended by itself: {ended:?}"));
        }
    }
    // In a task of its own: after a panic inside LDK its locks may panic as well, and the end has to come.
    let peers = Arc::clone(&parts.peers);
    let _ = tokio::spawn(async move { peers.disconnect_all_peers() }).await;
    while let Some(ended) = tasks.join_next().await {
        if let Err(e) = ended {
            tracing::error!(error = %e, "a task of the node ended badly");
        }
    }
    parts.ended.send_replace(true);
}

/// LDK waits before it goes on with HTLCs, 56 ms on average, so that who watches the lines of many nodes cannot easily
/// tell which payment is which. A payment through the LSP meets that three times. An LSP with hundreds of clients has
/// enough payments at once: it and they wait for this part of it.
const FORWARD_DELAY_PART: u32 = 8;
/// Such a delay is at most 201 ms long, all other timers of LDK's at least a second.
const LONGEST_FORWARD_DELAY: Duration = Duration::from_millis(250);

/// LDK's own housekeeping and events, until told to stop; the last thing it does is to write
/// everything.
async fn background(
    parts: Arc<Parts>,
    gossip: Arc<GossipSync>,
    scorer: Arc<std::sync::RwLock<crate::ldk::Scorer>>,
    stop: watch::Receiver<bool>,
) {
    let sleeper = {
        let stop = stop.clone();
        move |d: Duration| {
            let mut stop = stop.clone();
            let d = if d < LONGEST_FORWARD_DELAY { d / FORWARD_DELAY_PART } else { d };
            Box::pin(async move {
                if *stop.borrow() {
                    return true;
                }
                tokio::select! {
                    _ = tokio::time::sleep(d) => false,
                    _ = stop.changed() => true,
                }
            })
        }
    };
    let handler_parts = Arc::clone(&parts);
    let result = process_events_async(
        PatientStore { store: Arc::clone(&parts.store), broadcaster: Arc::clone(&parts.broadcaster), stop },
        move |event| ldk_events::handle(Arc::clone(&handler_parts), event),
        Arc::clone(&parts.monitor),
        Arc::clone(&parts.manager),
        Some(Arc::clone(&parts.onion_messenger)),
        BackgroundGossip::p2p(gossip),
        Arc::clone(&parts.peers),
        lightning_background_processor::NO_LIQUIDITY_MANAGER,
        // The factory service sweeps, more often than this task would.
        None::<&NoSweeper>,
        Arc::new(Logger),
        Some(scorer),
        sleeper,
        false,
        || SystemTime::now().duration_since(UNIX_EPOCH).ok(),
    )
    .await;
    if let Err(e) = result {
        parts.failure.stop(format!("it cannot write its state: {e}"));
    }
}

/// How often claims of retired monitors are repeated: as LDK does with those of live ones.
const RETIRED_INTERVAL: Duration = Duration::from_secs(30);

/// The events of retired monitors, with every block and every now and then.
async fn retired_events(parts: Arc<Parts>, mut stop: watch::Receiver<bool>) {
    let mut tip = parts.tip.clone();
    while !*stop.borrow() {
        parts.retired.process_events(|event| ldk_events::handle(Arc::clone(&parts), event)).await;
        tokio::select! {
            _ = tip.changed() => {}
            _ = tokio::time::sleep(RETIRED_INTERVAL) => {}
            _ = stop.changed() => {}
        }
    }
}
