//! Guarding a leaf for somebody who does not want to leave: what to publish when others begin, or after the expiry
//! height.
//!
//! A guard needs no key. It leaves the chain alone as long as the leaf is off it; it finishes what somebody else began
//! in time, so that no older state wins; and after the expiry height it pays the clients by the distribution that fits
//! what is on the chain.
//!
//! Upper transactions that a neighbour published are no reason to act: the leaf lives on below them.

use bitcoin::{OutPoint, Txid};
use serde::{Deserialize, Serialize};

use crate::exit::{ChainView, DistributionAction, ExitPlan, ExitStep, Output, WaitReason};
use crate::faults::switch;
use crate::transaction::TxKind;

/// Blocks that whoever began an exit has for each next step, where nothing is lost by waiting.
pub const PATIENCE_BLOCKS: u32 = 3;

/// What a guard waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardWait {
    /// The funding transaction has not confirmed.
    FundingUnconfirmed,
    /// Nobody has begun, or what was begun ends only after the expiry height: that height.
    Expiry,
    /// A relative delay of this step of the path, or of the distribution that competes with it.
    RelativeDelay {
        /// Position in [`ExitPlan::steps`].
        step: usize,
    },
    /// Whoever began to publish this step.
    Patience {
        /// Position in [`ExitPlan::steps`].
        step: usize,
    },
}

/// What a guard has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardAction {
    /// Nothing before the chain's tip is at this height, unless the chain changes.
    Wait {
        /// The height of the tip, blocks.
        until_height: u32,
        /// Why.
        reason: GuardWait,
    },
    /// Publish this step of the path, with a child, until it confirms.
    PublishPath {
        /// Position in [`ExitPlan::steps`].
        step: usize,
    },
    /// Publish this distribution, with a child, until it confirms.
    PublishDistribution {
        /// Position in [`ExitPlan::distributions`].
        distribution: usize,
    },
    /// The leaf's last transaction has confirmed: the channels are on the chain and settle by themselves.
    Settled,
    /// A distribution has confirmed: the clients are paid.
    Paid {
        /// Position in [`ExitPlan::distributions`].
        distribution: usize,
    },
    /// Something else spent an output of the path and confirmed: a cooperative close if it is the funding output, a
    /// state of older date otherwise.
    Lost {
        /// The output.
        outpoint: OutPoint,
        /// The confirmed transaction that spent it.
        spent_by: Txid,
    },
}

impl ExitStep {
    /// Whether an older version of it exists that somebody could publish in its place.
    pub fn is_raced(&self) -> bool {
        matches!(self.kind, TxKind::State { state, .. } if state > 0)
    }

    /// Whether it goes on with a level that its parent has begun. A kickoff or a static transaction begins one.
    fn continues_level(&self) -> bool {
        matches!(self.kind, TxKind::State { .. })
    }
}

/// The first step that has not confirmed.
struct Next<'a> {
    index: usize,
    step: &'a ExitStep,
    /// Height of the block with the output it spends.
    parent_height: u32,
}

impl ExitPlan {
    /// The next step and the height of its parent; else what there is instead.
    fn next_step(&self, view: &dyn ChainView, height: u32) -> Result<Next<'_>, GuardAction> {
        let unconfirmed = |s: &ExitStep| view.confirmed_at(&s.txid).is_none();
        let Some((index, step)) = self.steps.iter().enumerate().find(|(_, s)| unconfirmed(s)) else {
            return Err(GuardAction::Settled);
        };
        match self.output(view, &step.parent) {
            Output::Missing => {
                let reason = GuardWait::FundingUnconfirmed;
                Err(GuardAction::Wait { until_height: height.saturating_add(1), reason })
            }
            Output::Spent(spent_by) => {
                let paid = self.distributions.iter().position(|d| d.txid == spent_by);
                let lost = GuardAction::Lost { outpoint: step.parent, spent_by };
                Err(paid.map_or(lost, |distribution| GuardAction::Paid { distribution }))
            }
            Output::Unspent(parent_height) => Ok(Next { index, step, parent_height }),
        }
    }

    /// What somebody who guards the leaf without leaving has to do, given what has confirmed and the height of the
    /// tip.
    ///
    /// A state that an older one competes with goes out as soon as it is valid, before and after the expiry height: the
    /// distributions may be older than it. Another step is left to whoever began for [`PATIENCE_BLOCKS`], and to the
    /// distributions if the path would not end before the expiry height.
    pub fn guard_action(&self, view: &dyn ChainView, height: u32) -> GuardAction {
        let next = match self.next_step(view, height) {
            Ok(next) => next,
            Err(instead) => return instead,
        };
        let (step, ready) = (next.index, next.step.ready_at(next.parent_height));
        if next.step.is_raced() && !switch("guard.no_hurry") {
            if height >= ready {
                return GuardAction::PublishPath { step };
            }
            return GuardAction::Wait { until_height: ready, reason: GuardWait::RelativeDelay { step } };
        }
        if height >= self.expiry_height && !switch("guard.no_distribution") {
            return self.after_expiry(view, height);
        }
        let at = ready.saturating_add(PATIENCE_BLOCKS);
        let end = self.blocks_from(&next, height.max(at)).saturating_add(height.max(at));
        if !next.step.continues_level() || end >= self.expiry_height {
            return GuardAction::Wait { until_height: self.expiry_height, reason: GuardWait::Expiry };
        }
        match (height >= at, height >= ready) {
            (true, _) => GuardAction::PublishPath { step },
            (false, true) => GuardAction::Wait { until_height: at, reason: GuardWait::Patience { step } },
            (false, false) => {
                GuardAction::Wait { until_height: at, reason: GuardWait::RelativeDelay { step } }
            }
        }
    }

    fn after_expiry(&self, view: &dyn ChainView, height: u32) -> GuardAction {
        match self.distribution_action(view, height) {
            DistributionAction::Wait { until_height, reason } => {
                let reason = match reason {
                    WaitReason::FundingUnconfirmed => GuardWait::FundingUnconfirmed,
                    WaitReason::Expiry => GuardWait::Expiry,
                    WaitReason::RelativeDelay { step } => GuardWait::RelativeDelay { step },
                };
                GuardAction::Wait { until_height, reason }
            }
            DistributionAction::PublishPath { step } => GuardAction::PublishPath { step },
            DistributionAction::Publish { distribution } => GuardAction::PublishDistribution { distribution },
            DistributionAction::Done { distribution } => GuardAction::Paid { distribution },
            DistributionAction::Settled => GuardAction::Settled,
            DistributionAction::Blocked { outpoint, spent_by } => GuardAction::Lost { outpoint, spent_by },
        }
    }

    /// Steps of the path that have not confirmed.
    pub fn steps_left(&self, view: &dyn ChainView) -> usize {
        self.steps.iter().filter(|s| view.confirmed_at(&s.txid).is_none()).count()
    }

    /// Blocks from the tip until the path's last transaction confirms, if each step is in the next block as soon as it
    /// is valid; none if something else spent an output of the path or the funding transaction has not confirmed.
    pub fn blocks_left(&self, view: &dyn ChainView, height: u32) -> Option<u32> {
        match self.next_step(view, height) {
            Ok(next) => {
                let start = height.max(next.step.ready_at(next.parent_height));
                Some(self.blocks_from(&next, start).saturating_add(start.saturating_sub(height)))
            }
            Err(GuardAction::Settled) => Some(0),
            Err(_) => None,
        }
    }

    /// Blocks from `start` until the last step confirms, if the next one is published at `start`.
    fn blocks_from(&self, next: &Next<'_>, start: u32) -> u32 {
        let rest = self.steps.iter().skip(next.index.saturating_add(1));
        let end = rest.fold(start.saturating_add(1), |confirmed, step| {
            confirmed.max(step.ready_at(confirmed)).saturating_add(1)
        });
        end.saturating_sub(start)
    }
}
