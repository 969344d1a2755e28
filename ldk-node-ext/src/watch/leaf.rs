//! A leaf that is watched: its file, its plan, and where it stands.

use std::collections::BTreeMap;

use bitcoin::{Network, Txid};
use factory_core::exit::{ChainView, ExitPlan, ExitStep};
use factory_core::guard::{GuardAction, GuardWait};

use super::{ExitFile, LeafId, LeafState, StepStatus};
use crate::chain::ChainIndex;
use crate::error::Error;

/// See the module's description.
pub(super) struct Leaf {
    pub(super) id: LeafId,
    pub(super) file: ExitFile,
    pub(super) plan: ExitPlan,
}

/// The newest file of each leaf.
///
/// # Errors
/// [`Error::InvalidArgument`] if one is wrong or of another network.
pub(super) fn newest(files: Vec<ExitFile>, network: Network) -> Result<Vec<Leaf>, Error> {
    let mut leaves: BTreeMap<LeafId, usize> = BTreeMap::new();
    let mut found: Vec<Leaf> = Vec::with_capacity(files.len());
    for file in files {
        file.verify()?;
        let leaf = Leaf::new(file, network)?;
        match leaves.get(&leaf.id).and_then(|place| found.get_mut(*place)) {
            Some(other) if other.file.position() < leaf.file.position() => *other = leaf,
            Some(_) => {}
            None => {
                leaves.insert(leaf.id, found.len());
                found.push(leaf);
            }
        }
    }
    Ok(found)
}

impl Leaf {
    /// The leaf of a file that has been verified.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a file of another network.
    pub(super) fn new(file: ExitFile, network: Network) -> Result<Self, Error> {
        if file.network != network {
            let reason = format!("an exit file for {}, the watcher is on {network}", file.network);
            return Err(Error::invalid("network", reason));
        }
        Ok(Self { id: file.leaf_id(), plan: file.plan()?, file })
    }

    /// Path and distributions.
    pub(super) fn transactions(&self) -> impl Iterator<Item = &ExitStep> {
        self.plan.steps.iter().chain(&self.plan.distributions)
    }

    /// All its transactions.
    pub(super) fn txids(&self) -> impl Iterator<Item = Txid> + '_ {
        self.transactions().map(|step| step.txid)
    }

    /// Has the chain looked through for it.
    pub(super) fn register(&self, index: &ChainIndex) {
        let funding = self.plan.funding.txid;
        index.watch(self.txids().chain([funding]), self.transactions().map(|step| step.parent));
    }

    /// What to publish now.
    pub(super) fn wanted(&self, action: &GuardAction) -> Option<&ExitStep> {
        match action {
            GuardAction::PublishPath { step } => self.plan.steps.get(*step),
            GuardAction::PublishDistribution { distribution } => self.plan.distributions.get(*distribution),
            GuardAction::Wait { .. }
            | GuardAction::Settled
            | GuardAction::Paid { .. }
            | GuardAction::Lost { .. } => None,
        }
    }

    /// The height at which it ended, if nothing more is to be published.
    pub(super) fn ended_at(&self, action: &GuardAction, index: &ChainIndex) -> Option<u32> {
        match action {
            GuardAction::Settled => self.plan.steps.last().and_then(|last| index.confirmed_at(&last.txid)),
            GuardAction::Paid { distribution } => {
                self.plan.distributions.get(*distribution).and_then(|paid| index.confirmed_at(&paid.txid))
            }
            GuardAction::Lost { outpoint, .. } => index.spend(outpoint).map(|spend| spend.height),
            GuardAction::Wait { .. }
            | GuardAction::PublishPath { .. }
            | GuardAction::PublishDistribution { .. } => None,
        }
    }

    /// The path with its heights.
    pub(super) fn steps(&self, view: &dyn ChainView) -> Vec<StepStatus> {
        let status = |step: &ExitStep| StepStatus {
            kind: step.kind.to_string(),
            txid: step.txid,
            confirmed_height: view.confirmed_at(&step.txid),
        };
        let published = self.plan.distributions.iter().filter(|d| view.confirmed_at(&d.txid).is_some());
        self.plan.steps.iter().chain(published).map(status).collect()
    }

    fn kind(&self, step: usize) -> String {
        self.plan.steps.get(step).map(|s| s.kind.to_string()).unwrap_or_default()
    }

    /// State, words, and the height before which nothing is to be done.
    pub(super) fn describe(
        &self,
        action: &GuardAction,
        trouble: Option<&Error>,
    ) -> (LeafState, String, Option<u32>) {
        match action {
            GuardAction::Wait { until_height, reason } => {
                let (state, text) = match reason {
                    GuardWait::FundingUnconfirmed => {
                        (LeafState::Waiting, "the funding transaction has not confirmed".to_owned())
                    }
                    GuardWait::Expiry => {
                        let text = format!("watching; the clients are paid from height {until_height}");
                        (LeafState::Watching, text)
                    }
                    GuardWait::RelativeDelay { step } => {
                        let text = format!("at height {until_height} the {}", self.kind(*step));
                        let text = match *until_height >= self.plan.expiry_height {
                            true => format!("{text}, or the distribution in its place"),
                            false => text,
                        };
                        (LeafState::Waiting, text)
                    }
                    GuardWait::Patience { step } => {
                        let text = format!(
                            "at height {until_height} the {}, unless whoever began publishes it",
                            self.kind(*step)
                        );
                        (LeafState::Waiting, text)
                    }
                };
                (state, text, Some(*until_height))
            }
            GuardAction::PublishPath { .. } | GuardAction::PublishDistribution { .. } => {
                let (state, text) = self.publishing(action, trouble);
                (state, text, None)
            }
            GuardAction::Settled => {
                (LeafState::Settled, "its channels are on the chain and settle by themselves".into(), None)
            }
            GuardAction::Paid { distribution } => {
                let txid = self.plan.distributions.get(*distribution).map(|d| d.txid.to_string());
                let text = format!("its clients are paid by {}", txid.unwrap_or_default());
                (LeafState::Paid, text, None)
            }
            GuardAction::Lost { outpoint, spent_by } if *outpoint == self.plan.funding => {
                let text = format!("the factory has ended: {spent_by} spent its funding output");
                (LeafState::Lost, text, None)
            }
            GuardAction::Lost { outpoint, spent_by } => (
                LeafState::Lost,
                format!("{spent_by} spent {outpoint}: not a transaction of this file"),
                None,
            ),
        }
    }

    fn publishing(&self, action: &GuardAction, trouble: Option<&Error>) -> (LeafState, String) {
        let kind = self.wanted(action).map(|s| s.kind.to_string()).unwrap_or_default();
        match trouble {
            None => (LeafState::Publishing, format!("the {kind} to confirm")),
            Some(Error::InsufficientFunds { needed_sat, available_sat }) => {
                let text = format!(
                    "a confirmed coin of {needed_sat} sat in the fee wallet for the {kind} ({available_sat} sat available)"
                );
                (LeafState::NeedsCoin, text)
            }
            Some(e @ Error::OverBudget { .. }) => (LeafState::OverBudget, format!("the {kind}: {e}")),
            Some(e) => (LeafState::Failing, format!("another try to publish the {kind}: {e}")),
        }
    }
}
