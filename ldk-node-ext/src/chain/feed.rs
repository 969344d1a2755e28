//! The feed of blocks: one path from bitcoind to the wallet, the index, the gates and LDK, in this
//! order, so that everything a block changes is known before LDK acts on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::block::Header;
use bitcoin::{Block, Network};
use lightning::chain::transaction::TransactionData;
use lightning::chain::{BlockLocator, Listen};
use lightning_block_sync::poll::{ChainPoller, ChainTip, ValidatedBlockHeader};
use lightning_block_sync::{HeaderCache, SpvClient};
use tokio::sync::watch;

use super::{Bitcoind, ChainIndex, Fees};
use crate::ldk::{ChainMonitor, ChannelManager, Mapping, Outpoints, Retired, Sweeper};
use crate::wallet::Wallet;

/// Fee estimates are asked for every so many looks at the chain, and at least once a minute.
const FEE_LOOKS: u32 = 50;
const FEE_INTERVAL: Duration = Duration::from_secs(60);

/// The wallet's and index' share of the feed, also used to catch up at start.
pub(crate) struct OwnParts {
    pub(crate) wallet: Arc<Wallet>,
    pub(crate) index: Arc<ChainIndex>,
    pub(crate) outpoints: Arc<Outpoints>,
}

/// Catches the wallet up at start.
pub(crate) struct WalletListener(pub(crate) Arc<Wallet>);

impl Listen for WalletListener {
    fn filtered_block_connected(&self, _header: &Header, _txdata: &TransactionData, height: u32) {
        tracing::error!(height, "the wallet needs whole blocks");
    }
    fn block_connected(&self, block: &Block, height: u32) {
        self.0.apply_block(block, height);
    }
    fn blocks_disconnected(&self, _fork: BlockLocator) {}
}

/// Catches the index up at start.
pub(crate) struct IndexListener {
    pub(crate) index: Arc<ChainIndex>,
    pub(crate) outpoints: Arc<Outpoints>,
}

impl Listen for IndexListener {
    fn filtered_block_connected(&self, _header: &Header, _txdata: &TransactionData, height: u32) {
        tracing::error!(height, "the index needs whole blocks");
    }
    fn block_connected(&self, block: &Block, height: u32) {
        for txid in self.index.connect(block, height) {
            self.outpoints.set_tx_on_chain(&txid, true);
        }
    }
    fn blocks_disconnected(&self, fork: BlockLocator) {
        for txid in self.index.disconnect(fork) {
            self.outpoints.set_tx_on_chain(&txid, false);
        }
    }
}

/// Everything that follows the chain while the node runs.
pub(crate) struct ChainFeed {
    wallet: WalletListener,
    index: IndexListener,
    manager: Arc<ChannelManager>,
    monitor: Arc<ChainMonitor>,
    mapping: Arc<Mapping>,
    retired: Arc<Retired>,
    sweeper: Arc<Sweeper>,
    tip: watch::Sender<BlockLocator>,
}

impl ChainFeed {
    pub(crate) fn new(
        own: &OwnParts,
        manager: Arc<ChannelManager>,
        monitor: Arc<ChainMonitor>,
        mapping: Arc<Mapping>,
        retired: Arc<Retired>,
        sweeper: Arc<Sweeper>,
        tip: watch::Sender<BlockLocator>,
    ) -> Self {
        let wallet = WalletListener(Arc::clone(&own.wallet));
        let index = IndexListener { index: Arc::clone(&own.index), outpoints: Arc::clone(&own.outpoints) };
        Self { wallet, index, manager, monitor, mapping, retired, sweeper, tip }
    }
}

impl Listen for ChainFeed {
    fn filtered_block_connected(&self, _header: &Header, _txdata: &TransactionData, height: u32) {
        tracing::error!(height, "the feed needs whole blocks");
    }

    fn block_connected(&self, block: &Block, height: u32) {
        self.wallet.block_connected(block, height);
        self.index.block_connected(block, height);
        let shown = self.mapping.connect(block, height);
        self.retired.connect(&block.header, height, &shown);
        shown.connect(&*self.manager, block, height);
        shown.connect(&*self.monitor, block, height);
        self.sweeper.block_connected(block, height);
        tracing::debug!(height, hash = %block.block_hash(), "block connected");
        self.tip.send_replace(BlockLocator::new(block.block_hash(), height));
    }

    fn blocks_disconnected(&self, fork: BlockLocator) {
        tracing::warn!(height = fork.height, hash = %fork.block_hash, "blocks disconnected down to here");
        self.wallet.blocks_disconnected(fork);
        self.index.blocks_disconnected(fork);
        self.mapping.disconnect(fork);
        self.retired.disconnect(fork);
        self.manager.blocks_disconnected(fork);
        self.monitor.blocks_disconnected(fork);
        self.sweeper.blocks_disconnected(fork);
        self.tip.send_replace(fork);
    }
}

/// Polls bitcoind until told to stop; goes on when bitcoind is away for a while.
pub(crate) struct ChainSync {
    pub(crate) bitcoind: Arc<Bitcoind>,
    pub(crate) fees: Arc<Fees>,
    pub(crate) network: Network,
    pub(crate) interval: Duration,
    pub(crate) synced: Arc<AtomicBool>,
}

impl ChainSync {
    pub(crate) async fn run(
        self,
        tip: ValidatedBlockHeader,
        cache: HeaderCache,
        feed: impl Listen,
        mut stop: watch::Receiver<bool>,
    ) {
        let poller = ChainPoller::new(Arc::clone(&self.bitcoind), self.network);
        let mut client = SpvClient::new(tip, poller, cache, &feed);
        let fee_interval = self.interval.saturating_mul(FEE_LOOKS).min(FEE_INTERVAL);
        let mut next_fees = tokio::time::Instant::now() + fee_interval;
        loop {
            match client.poll_best_tip().await {
                Ok((ChainTip::Common, _)) => self.synced.store(true, Ordering::Release),
                // Progress; look again at once, there may be more.
                Ok((ChainTip::Better(_), true)) => continue,
                Ok((ChainTip::Better(_) | ChainTip::Worse(_), _)) => {
                    self.synced.store(false, Ordering::Release)
                }
                Err(e) => {
                    if self.synced.swap(false, Ordering::AcqRel) {
                        tracing::warn!(error = ?e, "bitcoind does not answer; trying on");
                    }
                }
            }
            if tokio::time::Instant::now() >= next_fees {
                self.fees.refresh(&self.bitcoind).await;
                next_fees = tokio::time::Instant::now() + fee_interval;
            }
            tokio::select! {
                _ = tokio::time::sleep(self.interval) => {}
                _ = stop.changed() => return,
            }
        }
    }
}
