//! A watcher: it guards leaves of others without any key of theirs.
//!
//! It has the signed transactions of a path ([`ExitFile`]), a bitcoind and a small wallet of its own for fees, and
//! nothing of Lightning. It publishes the newest path when somebody else began an exit and left it, and the
//! distribution after the expiry height; [`factory_core::guard`] decides, the same publisher as in a node carries.
//!
//! A node hands it the newest path of each leaf through a folder that both have (`folder`), and waits for its word
//! (`handover`) before it sends what retires the older path.
//!
//! Everything follows from the chain and the files, so it goes on after a restart wherever it was. A file that is
//! new to it may be older than its store: then the blocks since the factory's birth are read once.

mod config;
mod engine;
mod file;
pub(crate) mod folder;
pub(crate) mod handover;
mod inbox;
mod leaf;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use bitcoin::{Block, Txid};
use lightning::bitcoin::block::Header;
use lightning::chain::transaction::TransactionData;
use lightning::chain::{BlockLocator, Listen};
use lightning::util::persist::KVStoreSync;
use lightning_block_sync::init::{synchronize_listeners, validate_best_block_header};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use config::WatcherConfig;
pub use file::{ExitFile, LeafId, EXIT_FILE_VERSION, MAX_EXIT_FILE_BYTES};
pub use handover::{HandoverConfig, WatcherInfo};
pub use status::{FeeWallet, LeafState, LeafStatus, StepStatus, WatchStatus, STATUS_FILE};

use crate::chain::{Bitcoind, ChainIndex, ChainSync, Fees, WalletListener};
use crate::error::Error;
use crate::keys;
use crate::node::check_network;
use crate::publish::Publisher;
use crate::store::{records, Store};
use crate::wallet::Wallet;
use engine::Engine;
use folder::Folder;
use leaf::Leaf;

/// Where seed and store are, in the data directory: apart from a node's, should that be its directory, too.
const WALLET_DIR: &str = "fee-wallet";
const NAMESPACE: &str = "watched";
const KEY: &str = "leaves";
const VERSION: u32 = 1;
/// Where paths are kept that came through a folder, by leaf.
const PATHS: &str = "watched_paths";
const PATHS_VERSION: u32 = 1;

/// A running watcher. It runs on the tokio runtime on which it was started, until [`Watcher::stop`].
#[derive(Debug)]
pub struct Watcher {
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
    status: watch::Receiver<WatchStatus>,
}

/// The watcher's share of the feed of blocks.
struct Feed {
    wallet: WalletListener,
    index: IndexFeed,
    tip: watch::Sender<BlockLocator>,
}

/// Follows the chain for the leaves' transactions.
struct IndexFeed(Arc<ChainIndex>);

impl Listen for IndexFeed {
    fn filtered_block_connected(&self, _header: &Header, _txdata: &TransactionData, height: u32) {
        tracing::error!(height, "the index needs whole blocks");
    }
    fn block_connected(&self, block: &Block, height: u32) {
        self.0.connect(block, height);
    }
    fn blocks_disconnected(&self, fork: BlockLocator) {
        self.0.disconnect(fork);
    }
}

impl Listen for Feed {
    fn filtered_block_connected(&self, header: &Header, txdata: &TransactionData, height: u32) {
        self.index.filtered_block_connected(header, txdata, height);
    }
    fn block_connected(&self, block: &Block, height: u32) {
        self.wallet.block_connected(block, height);
        self.index.block_connected(block, height);
        self.tip.send_replace(BlockLocator::new(block.block_hash(), height));
    }
    fn blocks_disconnected(&self, fork: BlockLocator) {
        tracing::warn!(height = fork.height, hash = %fork.block_hash, "blocks disconnected down to here");
        self.wallet.blocks_disconnected(fork);
        self.index.blocks_disconnected(fork);
        self.tip.send_replace(fork);
    }
}

impl Watcher {
    /// Starts a watcher for these files, and for what it has taken from folders before. Of several of one leaf the
    /// newest counts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad configuration or file, or if there is neither a file nor a folder, [`Error::Conflict`] if another watcher runs in the
    /// data directory, [`Error::Bitcoind`] when bitcoind cannot be used or no longer has the blocks since a
    /// factory's birth, [`Error::Store`] and [`Error::Corrupt`].
    pub async fn start(config: WatcherConfig, files: Vec<ExitFile>) -> Result<Self, Error> {
        config.validate()?;
        if files.is_empty() && config.folders.is_empty() {
            return Err(Error::invalid("exit_file", "at least one is needed, or a folder"));
        }
        let folders = config.folders.iter().map(|f| Folder::open(f)).collect::<Result<Vec<_>, _>>()?;
        // Before there is anything in the data directory.
        leaf::newest(files.clone(), config.network)?;
        let (store, seed) = open_store(&config.data_dir)?;
        check_network(&store, config.network)?;
        let files = files.into_iter().chain(inbox::stored(&store)?).collect();
        let leaves = leaf::newest(files, config.network)?;

        let bitcoind = Arc::new(Bitcoind::new(config.bitcoind_rpc, config.bitcoind_auth.clone())?);
        bitcoind.check(config.network).await?;
        let best =
            validate_best_block_header(&*bitcoind).await.map_err(|e| Error::Bitcoind(format!("{e:?}")))?;
        let tip = best.to_block_locator();
        let root = seed.root(config.network)?;
        let wallet = Arc::new(Wallet::open(root, config.network, Arc::clone(&store), tip)?);
        let index = Arc::new(ChainIndex::open(Arc::clone(&store), tip)?);
        leaves.iter().for_each(|leaf| leaf.register(&index));
        rewind(&store, &bitcoind, &index, &leaves).await?;
        let fees = Arc::new(Fees::new(config.fallback_feerate_sat_per_vb, config.max_feerate_sat_per_vb));
        fees.refresh(&bitcoind).await;

        let wallet_listener = WalletListener(Arc::clone(&wallet));
        let index_listener = IndexFeed(Arc::clone(&index));
        let listeners: Vec<(BlockLocator, &(dyn Listen + Send + Sync))> =
            vec![(wallet.best_block(), &wallet_listener), (index.best_block(), &index_listener)];
        let (cache, header) = synchronize_listeners(Arc::clone(&bitcoind), config.network, listeners)
            .await
            .map_err(|e| Error::Bitcoind(format!("catching up: {e:?}")))?;
        remember(&store, &leaves)?;

        let (tip_sender, tip) = watch::channel(header.to_block_locator());
        let (stop, stopped) = watch::channel(false);
        let (ended_sender, ended) = watch::channel(false);
        let synced = Arc::new(AtomicBool::new(true));
        let publisher = Publisher::load(
            Arc::clone(&store),
            Arc::clone(&wallet),
            Arc::clone(&bitcoind),
            Arc::clone(&fees),
        )?;
        let sync = ChainSync {
            bitcoind: Arc::clone(&bitcoind),
            fees: Arc::clone(&fees),
            network: config.network,
            interval: config.poll_interval,
            synced: Arc::clone(&synced),
        };
        let mut engine = Engine {
            config,
            leaves,
            publisher,
            wallet,
            index,
            fees,
            synced,
            store,
            bitcoind,
            ended: BTreeSet::new(),
        };
        let (status_sender, status) = watch::channel(engine.look().await?);
        let feed = Feed { wallet: wallet_listener, index: index_listener, tip: tip_sender };
        let mut tasks = JoinSet::new();
        tasks.spawn(sync.run(header, cache, feed, stopped.clone()));
        let (batches, from_folders) = mpsc::channel(1);
        for folder in folders {
            tasks.spawn(inbox::serve(folder, batches.clone(), stopped.clone()));
        }
        tasks.spawn(engine.run(tip, status_sender, from_folders, stopped.clone()));
        tokio::spawn(supervise(tasks, stop.clone(), stopped, ended_sender));
        Ok(Self { stop, ended, status })
    }

    /// Where everything stands; changes can be waited for.
    pub fn status(&self) -> watch::Receiver<WatchStatus> {
        self.status.clone()
    }

    /// Ends the watcher. Everything is on disk at any time.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        self.stopped().await;
    }

    /// Resolves when the watcher has ended, after [`Watcher::stop`] or a fault.
    pub async fn stopped(&self) {
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

/// Opens the store and the seed of the fee wallet, both new if there is neither.
fn open_store(data_dir: &Path) -> Result<(Arc<Store>, keys::Seed), Error> {
    let dir = data_dir.join(WALLET_DIR);
    let store = Store::open(&dir)?;
    // The store comes first, so the seed may be missing as long as there is no wallet in it.
    let in_use = !store.list("wallet", "").map_err(|e| Error::Store(e.to_string()))?.is_empty();
    let seed = keys::load_seed(&dir, in_use)?;
    Ok((Arc::new(store), seed))
}

/// Takes the index back below what is new to it, mostly the birth of a factory, so that the blocks since are read.
async fn rewind(
    store: &Store,
    bitcoind: &Bitcoind,
    index: &ChainIndex,
    leaves: &[Leaf],
) -> Result<(), Error> {
    let known: BTreeSet<Txid> = records::get(store, NAMESPACE, KEY, VERSION)?.unwrap_or_default();
    let from = leaves.iter().filter_map(|leaf| inbox::first_height(leaf, &known, index)).min();
    let Some(birth) = from else { return Ok(()) };
    let before = birth.saturating_sub(1);
    if before >= index.best_block().height {
        return Ok(());
    }
    let first = bitcoind.first_block().await?;
    if first > u64::from(birth) {
        return Err(Error::Bitcoind(format!(
            "it is pruned and has blocks from {first} on; a factory of these files was born at {birth}: use one that has them"
        )));
    }
    tracing::info!(from = birth, "reading the blocks since the birth of a factory that is new here");
    index.disconnect(bitcoind.block_at(before).await?);
    Ok(())
}

/// Notes that the blocks since the birth of these leaves have been read. Others that were there are not followed
/// from now on, so they would be new again.
fn remember(store: &Store, leaves: &[Leaf]) -> Result<(), Error> {
    let known: BTreeSet<Txid> = leaves.iter().flat_map(Leaf::txids).collect();
    records::put(store, NAMESPACE, KEY, VERSION, &known)
}

/// Waits for the order to stop, then for every task. A task that ends before that has failed, and a watcher without
/// it must not go on.
async fn supervise(
    mut tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    mut stopped: watch::Receiver<bool>,
    ended: watch::Sender<bool>,
) {
    tokio::select! {
        biased;
        _ = stopped.wait_for(|stop| *stop) => {}
        task = tasks.join_next() => {
            tracing::error!(?task, "a task of the watcher ended by itself; the watcher stops");
            stop.send_replace(true);
        }
    }
    while let Some(task) = tasks.join_next().await {
        if let Err(e) = task {
            tracing::error!(error = %e, "a task of the watcher ended badly");
        }
    }
    ended.send_replace(true);
}
