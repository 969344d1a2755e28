//! Bringing a leaf to the chain: which transaction to publish when.
//!
//! The functions here only decide. They look at what is confirmed, whoever published it, and say what comes next.
//! Each step is one transaction without a fee and one child that pays for both; a step needs its own confirmation
//! before the next, since version 3 allows one unconfirmed parent.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, Transaction, Txid};
use serde::{Deserialize, Serialize};

use crate::record::SignedPath;
use crate::transaction::{SignedTx, TxKind};
use crate::Error;

/// What is known of the chain.
pub trait ChainView {
    /// The height at which a transaction confirmed.
    fn confirmed_at(&self, txid: &Txid) -> Option<u32>;

    /// The confirmed transaction that spends an output, if there is one.
    fn spent_by(&self, outpoint: &OutPoint) -> Option<Txid>;
}

/// A [`ChainView`] that is filled by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownChain {
    confirmed: BTreeMap<Txid, u32>,
    spent: BTreeMap<OutPoint, Txid>,
}

impl KnownChain {
    /// Notes a confirmed transaction and what it spends.
    pub fn confirm(&mut self, tx: &Transaction, height: u32) {
        let txid = tx.compute_txid();
        self.confirmed.insert(txid, height);
        for input in &tx.input {
            self.spent.insert(input.previous_output, txid);
        }
    }

    /// Forgets a transaction that a reorganisation took back.
    pub fn unconfirm(&mut self, txid: &Txid) {
        self.confirmed.remove(txid);
        self.spent.retain(|_, by| by != txid);
    }
}

impl ChainView for KnownChain {
    fn confirmed_at(&self, txid: &Txid) -> Option<u32> {
        self.confirmed.get(txid).copied()
    }

    fn spent_by(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.spent.get(outpoint).copied()
    }
}

/// One transaction to publish, together with a child that pays for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStep {
    /// Which transaction of the tree.
    #[serde(flatten)]
    pub kind: TxKind,
    /// The signed transaction.
    #[serde(with = "crate::hexed::transaction")]
    pub tx: Transaction,
    /// Its id.
    pub txid: Txid,
    /// The output it spends.
    pub parent: OutPoint,
    /// Blocks that output has to be deep first; 0 for none.
    pub relative_delay: u16,
    /// Height from which the transaction is valid (nLockTime); 0 for none.
    pub lock_height: u32,
    /// Position of the pay-to-anchor output that the child spends.
    pub anchor_vout: u32,
    /// Weight of the transaction without its child, weight units.
    pub weight: u64,
}

impl ExitStep {
    fn new(tx: &SignedTx) -> Result<Self, Error> {
        Ok(Self {
            kind: tx.kind,
            tx: tx.tx.clone(),
            txid: tx.txid(),
            parent: tx.parent().ok_or(Error::Mismatch { what: "number of inputs" })?,
            relative_delay: tx.relative_delay,
            lock_height: tx.tx.lock_time.to_consensus_u32(),
            anchor_vout: tx.anchor_vout(),
            weight: tx.weight(),
        })
    }

    /// The height of the tip from which the transaction may be in the next block, if the output it spends confirmed
    /// at `parent_height` (BIP 68; BIP 113 does not matter for heights).
    pub fn ready_at(&self, parent_height: u32) -> u32 {
        let relative = parent_height.saturating_add(u32::from(self.relative_delay)).saturating_sub(1);
        relative.max(self.lock_height)
    }
}

/// Why nothing can be published yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// The funding transaction has not confirmed.
    FundingUnconfirmed,
    /// A relative delay runs.
    RelativeDelay {
        /// The step that waits.
        step: usize,
    },
    /// The expiry height is not reached.
    Expiry,
}

/// What an exit has to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitAction {
    /// Nothing before the chain's tip is at this height.
    Wait {
        /// The height of the tip at which to ask again, blocks.
        until_height: u32,
        /// Why.
        reason: WaitReason,
    },
    /// Publish the step, with a child, until it confirms. Returned again as long as it has not.
    Publish {
        /// Position in [`ExitPlan::steps`].
        step: usize,
    },
    /// Every transaction of the path has confirmed: the channel's outpoint is on the chain.
    Done,
    /// Something else spent an output of the path and confirmed.
    Blocked {
        /// The step that can no longer confirm.
        step: usize,
        /// The output it would spend.
        outpoint: OutPoint,
        /// The confirmed transaction that did.
        spent_by: Txid,
    },
}

/// What to do about the distributions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistributionAction {
    /// Nothing before the chain's tip is at this height.
    Wait {
        /// The height of the tip at which to ask again, blocks.
        until_height: u32,
        /// Why.
        reason: WaitReason,
    },
    /// Publish this step of the path first: it is above the leaf.
    PublishPath {
        /// Position in [`ExitPlan::steps`].
        step: usize,
    },
    /// Publish this distribution, with a child, until it confirms.
    Publish {
        /// Position in [`ExitPlan::distributions`].
        distribution: usize,
    },
    /// A distribution has confirmed.
    Done {
        /// Position in [`ExitPlan::distributions`].
        distribution: usize,
    },
    /// The leaf's last transaction has confirmed: the channels are on the chain and settle by themselves.
    Settled,
    /// Something else spent an output of the path and confirmed.
    Blocked {
        /// The output.
        outpoint: OutPoint,
        /// The confirmed transaction that spent it.
        spent_by: Txid,
    },
}

/// The ordered steps of an exit and the distributions that take their place after the expiry height.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitPlan {
    /// The funding outpoint.
    pub funding: OutPoint,
    /// The path, in the order of publication.
    pub steps: Vec<ExitStep>,
    /// Position in `steps` of the leaf's first transaction.
    pub leaf_start: usize,
    /// The distributions; number `i` competes with step `leaf_start + i`.
    pub distributions: Vec<ExitStep>,
    /// Height from which the distributions are valid, blocks: T, or earlier after an advance that signed new ones.
    pub expiry_height: u32,
}

/// State of one output of the path.
pub(crate) enum Output {
    /// Its transaction has not confirmed.
    Missing,
    /// Unspent, created at this height.
    Unspent(u32),
    /// Spent by this confirmed transaction.
    Spent(Txid),
}

impl ExitPlan {
    /// The plan of a stored path.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::Empty`] for a damaged record.
    pub fn new(path: &SignedPath) -> Result<Self, Error> {
        let steps = path.path.iter().map(ExitStep::new).collect::<Result<Vec<_>, _>>()?;
        let distributions = path.distributions.iter().map(ExitStep::new).collect::<Result<Vec<_>, _>>()?;
        let leaf_start =
            usize::try_from(path.leaf_start).map_err(|_| Error::Overflow { field: "leaf_start" })?;
        if leaf_start >= steps.len() {
            return Err(Error::Empty { what: "transactions of the leaf" });
        }
        let leaf_steps = steps.len().saturating_sub(leaf_start);
        if distributions.len() > leaf_steps {
            return Err(Error::Count {
                what: "distributions",
                got: distributions.len(),
                expected: leaf_steps,
            });
        }
        Ok(Self {
            funding: path.funding.outpoint,
            steps,
            leaf_start,
            distributions,
            expiry_height: path.distribution_height()?,
        })
    }

    pub(crate) fn output(&self, view: &dyn ChainView, outpoint: &OutPoint) -> Output {
        match (view.spent_by(outpoint), view.confirmed_at(&outpoint.txid)) {
            (Some(by), _) => Output::Spent(by),
            (None, Some(height)) => Output::Unspent(height),
            (None, None) => Output::Missing,
        }
    }

    /// What the exit has to do, given what has confirmed and the height of the tip.
    pub fn next_action(&self, view: &dyn ChainView, height: u32) -> ExitAction {
        for (i, step) in self.steps.iter().enumerate() {
            if view.confirmed_at(&step.txid).is_some() {
                continue;
            }
            return match self.output(view, &step.parent) {
                Output::Missing => {
                    let reason = WaitReason::FundingUnconfirmed;
                    ExitAction::Wait { until_height: height.saturating_add(1), reason }
                }
                Output::Spent(spent_by) => ExitAction::Blocked { step: i, outpoint: step.parent, spent_by },
                Output::Unspent(parent_height) => match step.ready_at(parent_height) {
                    at if height >= at => ExitAction::Publish { step: i },
                    until_height => {
                        ExitAction::Wait { until_height, reason: WaitReason::RelativeDelay { step: i } }
                    }
                },
            };
        }
        ExitAction::Done
    }

    /// What to do about the distributions, given what has confirmed and the height of the tip. Before the expiry
    /// height only waiting.
    pub fn distribution_action(&self, view: &dyn ChainView, height: u32) -> DistributionAction {
        for (i, distribution) in self.distributions.iter().enumerate() {
            if view.confirmed_at(&distribution.txid).is_some() {
                return DistributionAction::Done { distribution: i };
            }
        }
        if self.steps.last().is_some_and(|last| view.confirmed_at(&last.txid).is_some()) {
            return DistributionAction::Settled;
        }
        let waits = height < self.expiry_height;
        for (i, step) in self.steps.iter().enumerate() {
            if view.confirmed_at(&step.txid).is_some() {
                continue;
            }
            let parent_height = match self.output(view, &step.parent) {
                Output::Missing => {
                    let reason = WaitReason::FundingUnconfirmed;
                    return DistributionAction::Wait { until_height: height.saturating_add(1), reason };
                }
                Output::Spent(spent_by) => {
                    return DistributionAction::Blocked { outpoint: step.parent, spent_by };
                }
                Output::Unspent(parent_height) => parent_height,
            };
            if waits {
                let reason = WaitReason::Expiry;
                return DistributionAction::Wait { until_height: self.expiry_height, reason };
            }
            let distribution = i.checked_sub(self.leaf_start);
            let (next, action) = match distribution.and_then(|d| Some((d, self.distributions.get(d)?))) {
                Some((d, step)) => (step, DistributionAction::Publish { distribution: d }),
                None => (step, DistributionAction::PublishPath { step: i }),
            };
            let at = next.ready_at(parent_height);
            if height >= at {
                return action;
            }
            let reason = WaitReason::RelativeDelay { step: i };
            return DistributionAction::Wait { until_height: at, reason };
        }
        DistributionAction::Settled
    }
}
