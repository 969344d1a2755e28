//! A leaf with several signed paths: the newest, and others of which one may confirm in its place.
//!
//! The newest complete path is the one to publish: at the layer where it differs from an older one its delay is
//! shorter. If another one confirms all the same, the race is lost, and the leaf goes on over that one: a superseded
//! path if the guard slept, a pending one if the provider completed a try that it had called off.

use serde::{Deserialize, Serialize};

use crate::exit::{ChainView, ExitAction, ExitPlan};
use crate::guard::GuardAction;
use crate::record::SignedPath;
use crate::Error;

/// What has to be done, and over which path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raced<A> {
    /// None for the newest path; else the place of the other path that has won, as they were given.
    pub lost_to: Option<usize>,
    /// What to do over that path.
    pub action: A,
}

/// The exit plans of one leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafPaths {
    newest: ExitPlan,
    /// Position on the odometer, plan.
    others: Vec<(u64, ExitPlan)>,
}

impl LeafPaths {
    /// `others` are the superseded paths and those of pending tries, in any order.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a path of another factory or a damaged one.
    pub fn new(newest: &SignedPath, others: &[SignedPath]) -> Result<Self, Error> {
        let plan = |path: &SignedPath| {
            if path.instance_id != newest.instance_id || path.funding != newest.funding {
                return Err(Error::Mismatch { what: "factory of a superseded path" });
            }
            Ok((path.updates, path.exit_plan()?))
        };
        let others = others.iter().map(plan).collect::<Result<_, _>>()?;
        Ok(Self { newest: newest.exit_plan()?, others })
    }

    /// The plan to follow, and its place among the others if it is not the newest.
    ///
    /// Of several paths that hold the transaction that won, the one of the newest position is faster where they
    /// differ. One that is not signed up to its next step is no use.
    pub fn followed(&self, view: &dyn ChainView, height: u32) -> (Option<usize>, &ExitPlan) {
        let ExitAction::Blocked { spent_by, .. } = self.newest.next_action(view, height) else {
            return (None, &self.newest);
        };
        let holds =
            |plan: &ExitPlan| plan.steps.iter().chain(&plan.distributions).any(|tx| tx.txid == spent_by);
        let goes_on = |plan: &ExitPlan| {
            let next = plan.steps.iter().find(|step| view.confirmed_at(&step.txid).is_none());
            let signed = next.is_none_or(|step| step.tx.input.iter().all(|input| !input.witness.is_empty()));
            signed && !matches!(plan.next_action(view, height), ExitAction::Blocked { .. })
        };
        let ours = |(_, (_, plan)): &(usize, &(u64, ExitPlan))| holds(plan);
        let won = self.others.iter().enumerate().filter(ours);
        // What all paths hold, as a distribution may be, does not make any of them the winner.
        let best = won.max_by_key(|(_, (updates, plan))| (goes_on(plan), *updates));
        let best = best.filter(|(_, (_, plan))| !holds(&self.newest) || goes_on(plan));
        best.map_or((None, &self.newest), |(place, (_, plan))| (Some(place), plan))
    }

    /// Places of the other paths that could still confirm: nothing that has confirmed spends an output of theirs. How
    /// deep it is is not looked at.
    pub fn alive(&self, view: &dyn ChainView, height: u32) -> Vec<usize> {
        let blocked = |plan: &ExitPlan| matches!(plan.next_action(view, height), ExitAction::Blocked { .. });
        let alive = self.others.iter().enumerate().filter(|(_, (_, plan))| !blocked(plan));
        alive.map(|(place, _)| place).collect()
    }

    /// As [`ExitPlan::next_action`], over the path that is to be followed.
    pub fn exit_action(&self, view: &dyn ChainView, height: u32) -> Raced<ExitAction> {
        let (lost_to, plan) = self.followed(view, height);
        Raced { lost_to, action: plan.next_action(view, height) }
    }

    /// As [`ExitPlan::guard_action`], over the path that is to be followed.
    pub fn guard_action(&self, view: &dyn ChainView, height: u32) -> Raced<GuardAction> {
        let (lost_to, plan) = self.followed(view, height);
        Raced { lost_to, action: plan.guard_action(view, height) }
    }
}
