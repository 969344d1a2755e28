//! Reading LDK's state back from the store.
//!
//! The monitor of a factory channel that was closed at the factory level, or whose factory never
//! came to life, has nothing left to watch. LDK cannot drop a monitor at run time, and one that is
//! loaded makes it close the channel again. So such monitors are marked, and moved to the archive at
//! the next start at which the channel manager can be read without them.

use std::collections::HashSet;
use std::sync::{Arc, RwLock};

use bitcoin::Network;
use factory_core::faults::switch;
use lightning::chain::channelmonitor::ChannelMonitor;
use lightning::chain::BlockLocator;
use lightning::ln::channelmanager::{ChainParameters, ChannelManagerReadArgs};
use lightning::ln::types::ChannelId;
use lightning::routing::scoring::{ProbabilisticScorer, ProbabilisticScoringDecayParameters};
use lightning::util::persist::{
    read_channel_monitors, KVStoreSync, ARCHIVED_CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE,
    CHANNEL_MANAGER_PERSISTENCE_KEY, CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE,
    NETWORK_GRAPH_PERSISTENCE_KEY, OUTPUT_SWEEPER_PERSISTENCE_KEY, SCORER_PERSISTENCE_KEY,
};
use lightning::util::ser::ReadableArgs;

use crate::chain::Fees;
use crate::config::NodeConfig;
use crate::error::Error;
use crate::keys::Keys;
use crate::ldk::{
    AllMonitors, Broadcaster, ChainMonitor, ChannelManager, FactorySigner, MessageRouter, NetworkGraph,
    Router, Scorer, Sweeper, WholeBlocks,
};
use crate::logger::Logger;
use crate::store::{read_opt, records, Store};
use crate::util::unix_now;
use crate::wallet::Wallet;

const VOID_NAMESPACE: &str = "void_channels";
const VOID_VERSION: u32 = 1;

pub(crate) type Monitors = Vec<(BlockLocator, ChannelMonitor<FactorySigner>)>;

/// Marks a channel's monitor as having nothing left to watch; takes effect at the next start.
pub(crate) fn mark_void(store: &Store, channel: &ChannelId, reason: &str) -> Result<(), Error> {
    records::put(store, VOID_NAMESPACE, &hex::encode(channel.0), VOID_VERSION, &reason)
}

/// What is needed to read or make LDK's objects.
pub(crate) struct Ldk<'a> {
    pub(crate) config: &'a NodeConfig,
    pub(crate) keys: Arc<Keys>,
    pub(crate) store: Arc<Store>,
    pub(crate) fees: Arc<Fees>,
    pub(crate) broadcaster: Arc<Broadcaster>,
    pub(crate) wallet: Arc<Wallet>,
    pub(crate) logger: Arc<Logger>,
    pub(crate) tip: BlockLocator,
}

fn store_error(what: &'static str) -> impl Fn(lightning::io::Error) -> Error {
    move |e| Error::Store(format!("{what}: {e}"))
}

fn corrupt(key: &'static str) -> impl Fn(lightning::ln::msgs::DecodeError) -> Error {
    move |e| Error::Corrupt { key: key.to_owned(), reason: format!("{e:?}") }
}

impl Ldk<'_> {
    fn get(&self, key: &'static str) -> Result<Option<Vec<u8>>, Error> {
        read_opt(&*self.store, "", "", key).map_err(store_error(key))
    }

    pub(super) fn network_graph(&self) -> Result<Arc<NetworkGraph>, Error> {
        let graph = match self.get(NETWORK_GRAPH_PERSISTENCE_KEY)? {
            // Gossip can be had again: a graph that cannot be read is dropped.
            Some(bytes) => NetworkGraph::read(&mut &bytes[..], Arc::clone(&self.logger))
                .map_err(|e| tracing::warn!(error = ?e, "network graph unreadable, starting anew"))
                .ok(),
            None => None,
        };
        Ok(Arc::new(
            graph.unwrap_or_else(|| NetworkGraph::new(self.config.network, Arc::clone(&self.logger))),
        ))
    }

    pub(super) fn scorer(&self, graph: &Arc<NetworkGraph>) -> Result<Arc<RwLock<Scorer>>, Error> {
        let decay = ProbabilisticScoringDecayParameters::default();
        let args = || (decay, Arc::clone(graph), Arc::clone(&self.logger));
        let scorer = match self.get(SCORER_PERSISTENCE_KEY)? {
            Some(bytes) => ProbabilisticScorer::read(&mut &bytes[..], args())
                .map_err(|e| tracing::warn!(error = ?e, "scores unreadable, starting anew"))
                .ok(),
            None => None,
        };
        let fresh = || ProbabilisticScorer::new(decay, Arc::clone(graph), Arc::clone(&self.logger));
        Ok(Arc::new(RwLock::new(scorer.unwrap_or_else(fresh))))
    }

    fn read_monitors(&self) -> Result<Monitors, Error> {
        read_channel_monitors(Arc::clone(&self.store), Arc::clone(&self.keys), Arc::clone(&self.keys))
            .map_err(store_error("channel monitors"))
    }

    /// Reads or makes the channel manager, and reads the monitors that are to be loaded.
    pub(crate) fn channels(
        &self,
        monitor: &Arc<AllMonitors>,
        router: Arc<Router>,
        message_router: Arc<MessageRouter>,
    ) -> Result<(ChannelManager, BlockLocator, Monitors), Error> {
        let config = self.config.user_config();
        let Some(bytes) = self.get(CHANNEL_MANAGER_PERSISTENCE_KEY)? else {
            if !self.read_monitors()?.is_empty() {
                return Err(Error::Corrupt {
                    key: CHANNEL_MANAGER_PERSISTENCE_KEY.into(),
                    reason: "there are channel monitors but no channel manager".into(),
                });
            }
            let manager = ChannelManager::new(
                Arc::clone(&self.fees),
                Arc::clone(monitor),
                Arc::clone(&self.broadcaster),
                router,
                message_router,
                Arc::clone(&self.logger),
                Arc::clone(&self.keys),
                Arc::clone(&self.keys),
                Arc::clone(&self.keys),
                config,
                ChainParameters { network: self.config.network, best_block: self.tip },
                u32::try_from(unix_now()).unwrap_or(u32::MAX),
            );
            return Ok((manager, self.tip, Vec::new()));
        };
        let read = |monitors: &Monitors| {
            let args = ChannelManagerReadArgs::new(
                Arc::clone(&self.keys),
                Arc::clone(&self.keys),
                Arc::clone(&self.keys),
                Arc::clone(&self.fees),
                Arc::clone(monitor),
                Arc::clone(&self.broadcaster),
                Arc::clone(&router),
                Arc::clone(&message_router),
                Arc::clone(&self.logger),
                config.clone(),
                monitors.iter().map(|(_, m)| m).collect(),
            );
            <(BlockLocator, ChannelManager)>::read(&mut &bytes[..], args)
                .map_err(corrupt(CHANNEL_MANAGER_PERSISTENCE_KEY))
        };
        let monitors = self.read_monitors()?;
        let void = void_channels(&self.store, &monitors)?;
        if !void.is_empty() {
            let (finished, kept): (Monitors, Monitors) =
                monitors.into_iter().partition(|(_, m)| void.contains(&m.channel_id()));
            // The manager reads without them only if it has forgotten their channels as well. If a crash
            // came in between, it has not: then they are loaded once more.
            if let Ok((best, manager)) = read(&kept) {
                for (_, m) in &finished {
                    self.archive(m)?;
                }
                return Ok((manager, best, kept));
            }
            let monitors = self.read_monitors()?;
            let (best, manager) = read(&monitors)?;
            return Ok((manager, best, monitors));
        }
        let (best, manager) = read(&monitors)?;
        Ok((manager, best, monitors))
    }

    fn archive(&self, m: &ChannelMonitor<FactorySigner>) -> Result<(), Error> {
        let key = m.persistence_key().to_string();
        let fail = store_error("channel monitors");
        let bytes =
            self.store.read(CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE, "", &key).map_err(&fail)?;
        self.store
            .write(ARCHIVED_CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE, "", &key, bytes)
            .map_err(&fail)?;
        self.store.remove(CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE, "", &key, false).map_err(&fail)?;
        tracing::info!(channel = %m.channel_id(), "monitor of a finished channel archived");
        Ok(())
    }

    pub(super) fn sweeper(&self) -> Result<(Sweeper, BlockLocator), Error> {
        let Some(bytes) = self.get(OUTPUT_SWEEPER_PERSISTENCE_KEY)? else {
            let sweeper = Sweeper::new(
                self.tip,
                Arc::clone(&self.broadcaster),
                Arc::clone(&self.fees),
                None,
                Arc::clone(&self.keys),
                Arc::clone(&self.wallet),
                Arc::clone(&self.store),
                Arc::clone(&self.logger),
            );
            return Ok((sweeper, self.tip));
        };
        let args = (
            Arc::clone(&self.broadcaster),
            Arc::clone(&self.fees),
            None::<Arc<WholeBlocks>>,
            Arc::clone(&self.keys),
            Arc::clone(&self.wallet),
            Arc::clone(&self.store),
            Arc::clone(&self.logger),
        );
        let (best, sweeper) = <(BlockLocator, Sweeper)>::read(&mut &bytes[..], args)
            .map_err(corrupt(OUTPUT_SWEEPER_PERSISTENCE_KEY))?;
        Ok((sweeper, best))
    }
}

/// Hands a monitor that was read from the store to LDK.
///
/// LDK lists the updates of a monitor that are being written, and goes on after a restart with channels whose updates
/// were. The first write of a monitor is on no list. The channel manager is written before it, with a channel that
/// waits for it: where nothing newer of the manager came to disk the channel would wait for ever, on neither side
/// usable. What is read from the store has been written, so that is said here. A channel that waits for nothing
/// ignores it, and one that waits for later updates goes on waiting for those.
pub(super) fn load_monitor(
    chain_monitor: &ChainMonitor,
    monitor: ChannelMonitor<FactorySigner>,
) -> Result<(), Error> {
    let (id, update) = (monitor.channel_id(), monitor.get_latest_update_id());
    chain_monitor
        .load_existing_monitor(id, monitor)
        .map_err(|()| Error::Ldk(format!("monitor of channel {id} refused")))?;
    if update == 0 && !switch("node.monitor.first_write") {
        chain_monitor
            .channel_monitor_updated(id, update)
            .map_err(|e| Error::Ldk(format!("monitor of channel {id}: {e:?}")))?;
    }
    Ok(())
}

/// Which of these monitors are marked as having nothing left to watch.
pub(super) fn void_channels(store: &Store, monitors: &Monitors) -> Result<HashSet<ChannelId>, Error> {
    let marked = store.list(VOID_NAMESPACE, "").map_err(store_error(VOID_NAMESPACE))?;
    Ok(monitors
        .iter()
        .map(|(_, m)| m.channel_id())
        .filter(|id| marked.contains(&hex::encode(id.0)))
        .collect())
}

/// Refuses a store of another network.
pub(crate) fn check_network(store: &Store, network: Network) -> Result<(), Error> {
    const NAMESPACE: &str = "node";
    match records::get::<Network>(store, NAMESPACE, "network", 1)? {
        Some(stored) if stored != network => {
            Err(Error::invalid("network", format!("this data directory belongs to {stored}, not {network}")))
        }
        Some(_) => Ok(()),
        None => records::put(store, NAMESPACE, "network", 1, &network),
    }
}
