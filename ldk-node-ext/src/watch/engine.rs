//! The watcher's work: after each block it asks for every leaf what is to be done, does it, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Txid;
use factory_core::exit::{ChainView, ExitStep};
use factory_core::guard::GuardAction;
use lightning::chain::BlockLocator;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::inbox::Batch;
use super::leaf::Leaf;
use super::{FeeWallet, LeafId, LeafStatus, WatchStatus, WatcherConfig};
use crate::chain::{Bitcoind, ChainIndex, Fees};
use crate::error::Error;
use crate::publish::{split, Publisher, Terms};
use crate::store::Store;
use crate::util::unix_now;
use crate::wallet::Wallet;

/// What was refused is tried again between blocks, and the status looked at.
const RETRY: Duration = Duration::from_secs(5);
/// The status is written at least so often, seconds: so a reader can tell a watcher that died.
const HEARTBEAT_SECS: u64 = 60;

/// See the module's description.
pub(super) struct Engine {
    pub(super) config: WatcherConfig,
    pub(super) leaves: Vec<Leaf>,
    pub(super) publisher: Publisher,
    pub(super) wallet: Arc<Wallet>,
    pub(super) index: Arc<ChainIndex>,
    pub(super) fees: Arc<Fees>,
    pub(super) synced: Arc<AtomicBool>,
    pub(super) store: Arc<Store>,
    pub(super) bitcoind: Arc<Bitcoind>,
    /// Leaves that are not guarded any more: their files in the folders may go.
    pub(super) ended: BTreeSet<LeafId>,
}

impl Engine {
    /// Works until told to stop.
    pub(super) async fn run(
        mut self,
        mut tip: watch::Receiver<BlockLocator>,
        status: watch::Sender<WatchStatus>,
        mut folders: mpsc::Receiver<Batch>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                _ = tip.changed() => {}
                Some(batch) = folders.recv() => {
                    let (height, missing_sat) = {
                        let status = status.borrow();
                        (status.height, status.fee_wallet.missing_sat())
                    };
                    if !self.receive(batch, height, missing_sat).await {
                        continue;
                    }
                }
                _ = retry.tick() => {}
            }
            match self.look().await {
                Ok(now) => status.send_if_modified(|last| {
                    let modified = !now.same(last);
                    *last = now;
                    modified
                }),
                Err(e) => {
                    tracing::error!(error = %e, "the watcher cannot work; trying on");
                    false
                }
            };
        }
    }

    /// Does for every leaf what is due, and writes down where it stands.
    pub(super) async fn look(&mut self) -> Result<WatchStatus, Error> {
        self.forget_ended()?;
        let synced = self.synced.load(Ordering::Acquire);
        let tip = self.index.best_block();
        let actions: Vec<GuardAction> =
            self.leaves.iter().map(|leaf| leaf.plan.guard_action(&*self.index, tip.height)).collect();
        let outputs = self.outputs(&actions);
        let mut leaves = Vec::with_capacity(actions.len());
        for (leaf, action) in self.leaves.iter().zip(&actions) {
            self.publisher.drop_lost(&leaf.plan, &*self.index)?;
            let mut trouble = None;
            if let Some(step) = leaf.wanted(action) {
                let paid = self.publisher.cost(&leaf.plan, &*self.index).so_far_sat;
                let others = paid.saturating_sub(self.publisher.paid_sat(&step.txid));
                let limit_sat = self.config.max_fee_sat.map(|max| max.saturating_sub(others));
                let terms = Terms { limit_sat, outputs };
                trouble = self.publisher.carry(step, tip.height, terms).await.err();
            }
            leaves.push(leaf_status(
                leaf,
                action,
                trouble.as_ref(),
                &self.publisher,
                &self.index,
                tip.height,
            ));
        }
        let status = WatchStatus {
            network: self.config.network.to_string(),
            height: tip.height,
            block_hash: tip.block_hash,
            synced,
            written_at: unix_now(),
            fee_wallet: self.fee_wallet(&actions)?,
            leaves,
        };
        self.write(&status)?;
        Ok(status)
    }

    /// Into how many outputs the change is divided, so that all who wait get a coin of their own.
    fn outputs(&self, actions: &[GuardAction]) -> usize {
        let mut waiting: Vec<Txid> = self
            .leaves
            .iter()
            .zip(actions)
            .filter_map(|(leaf, action)| leaf.wanted(action))
            .map(|step| step.txid)
            .filter(|txid| self.publisher.paid_sat(txid) == 0)
            .collect();
        waiting.sort();
        waiting.dedup();
        split(waiting.len(), self.wallet.free_coins().0)
    }

    /// The wallet, and what it should hold: the price of everything that may still have to be published. What
    /// several leaves share is counted once, and of two transactions for one output the dearer.
    fn fee_wallet(&self, actions: &[GuardAction]) -> Result<FeeWallet, Error> {
        let mut prices: BTreeMap<Txid, u64> = BTreeMap::new();
        for (leaf, action) in self.leaves.iter().zip(actions) {
            if over(action) {
                continue;
            }
            for (i, step) in leaf.plan.steps.iter().enumerate() {
                let rival = i.checked_sub(leaf.plan.leaf_start).and_then(|d| leaf.plan.distributions.get(d));
                let carried = |s: &ExitStep| self.publisher.paid_sat(&s.txid) > 0;
                if self.index.confirmed_at(&step.txid).is_some()
                    || carried(step)
                    || rival.is_some_and(carried)
                {
                    continue;
                }
                let price = self.publisher.estimate_sat(step);
                let rival = rival.map_or(0, |rival| self.publisher.estimate_sat(rival));
                prices.insert(step.txid, price.max(rival));
            }
        }
        let balance = self.wallet.balance();
        Ok(FeeWallet {
            address: self.wallet.unused_address()?.to_string(),
            confirmed_sat: balance.confirmed_sat,
            unconfirmed_sat: balance.unconfirmed_sat,
            needed_sat: prices.values().fold(0, |sum, price| sum.saturating_add(*price)),
            sat_per_kwu: self.fees.urgent().to_sat_per_kwu(),
        })
    }

    /// Writes the status file if it says something new or is getting old.
    fn write(&self, status: &WatchStatus) -> Result<(), Error> {
        let last = WatchStatus::read(&self.config.data_dir).ok();
        let old = |last: &WatchStatus| {
            status.written_at.saturating_sub(last.written_at) >= HEARTBEAT_SECS || !status.same(last)
        };
        match last.as_ref().is_none_or(old) {
            true => status.write(&self.config.data_dir),
            false => Ok(()),
        }
    }
}

/// Whether nothing more is to be published, as far as the chain stands now.
fn over(action: &GuardAction) -> bool {
    matches!(action, GuardAction::Settled | GuardAction::Paid { .. } | GuardAction::Lost { .. })
}

fn leaf_status(
    leaf: &Leaf,
    action: &GuardAction,
    trouble: Option<&Error>,
    publisher: &Publisher,
    index: &ChainIndex,
    height: u32,
) -> LeafStatus {
    let (state, next, until_height) = leaf.describe(action, trouble);
    let cost = publisher.cost(&leaf.plan, index);
    let path = &leaf.file.path;
    LeafStatus {
        instance_id: hex::encode(path.instance_id),
        node_id: leaf.file.node_id.to_string(),
        position: leaf.file.position(),
        leaf_txid: leaf.file.leaf_txid(),
        expiry_height: path.expiry_height,
        state,
        next,
        until_height,
        steps_left: leaf.plan.steps_left(index),
        blocks_left: leaf.plan.blocks_left(index, height),
        spent_sat: cost.so_far_sat,
        to_come_sat: if over(action) { 0 } else { cost.to_come_sat },
        steps: leaf.steps(index),
    }
}
