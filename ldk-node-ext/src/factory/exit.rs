//! Bringing a leaf to the chain: publish its path, each transaction with a child that pays for it, in order
//! and each in its time; then LDK's commitment, then the sweep.
//!
//! An exit belongs to a leaf and is the same for both roles: a client leaves its own, the LSP leaves one
//! client and the others live on. It is driven by what is confirmed, so it goes on after a restart wherever
//! it was, and steps that somebody else has published count as done. Why exits begin is in [`triggers`], how
//! they end in [`finish`].

mod finish;
mod info;
mod reserve;
mod retry;
mod triggers;

use std::collections::BTreeSet;

use bitcoin::secp256k1::PublicKey;
use bitcoin::Txid;
use factory_core::exit::{ExitAction, ExitPlan, ExitStep, WaitReason};
use factory_core::faults::switch;
use factory_core::guard::{GuardAction, GuardWait, PATIENCE_BLOCKS};
use serde_json::json;

use super::stored::{ExitReason, Leaf, Stage, StoredExit};
use super::Service;
use crate::api::ExitRequest;
use crate::config::RoleConfig;
use crate::error::Error;
use crate::faults;
use crate::ldk::{channel_id, InstanceId};
use crate::node::parse_node_id;
use crate::publish::{split, Terms};
use crate::util::lock;

/// Coins that settlements leave to exits that are more urgent, if the wallet has more than twice as many.
const SPARE_COINS: usize = 2;

/// How the words begin that say that the wallet lacks a coin.
const WANTS_COIN: &str = "a confirmed wallet coin";
/// How the words begin that say that bitcoind did not take a transaction, or did not answer.
const FAILED: &str = "another try";

/// What is said of a channel that nothing can be done for.
const STUCK: &str =
    "the channel is stuck: a state from before a change of its capacity is on the chain, both sides would have to sign";

/// What is to be done for an exit at this block.
enum Todo {
    /// Nothing but wait, for this.
    Wait { until: Option<u32>, text: String },
    /// Carry this transaction.
    Carry(ExitStep),
    /// The path is confirmed.
    Finish,
    /// A distribution took the leaf's place.
    Distributed(usize),
    /// Nothing can be done.
    Blocked(String),
}

impl Service {
    /// The API's `exit`. On an exit that is under way it changes the budget.
    pub(super) async fn exit_command(&mut self, id: InstanceId, request: ExitRequest) -> Result<(), Error> {
        let factory = self.live(&id)?;
        let client = request.client.as_deref().map(parse_node_id).transpose()?;
        let leaf = match (self.is_lsp(), client) {
            (true, Some(client)) => factory
                .leaves()
                .into_iter()
                .find(|l| l.channels.iter().any(|(_, c)| *c == Some(client)))
                .ok_or_else(|| Error::not_found(format!("client {client} in this factory")))?,
            (true, None) => {
                return Err(Error::invalid(
                    "client",
                    "an LSP says whose leaf it leaves: give a client's node id",
                ))
            }
            (false, Some(_)) => return Err(Error::invalid("client", "a client leaves its own leaf only")),
            (false, None) => factory
                .leaves()
                .into_iter()
                .next()
                .ok_or_else(|| Error::not_found("channel of this node in the factory"))?,
        };
        if request.max_fee_sat == Some(0) {
            return Err(Error::invalid("max_fee_sat", "must be at least 1"));
        }
        if let Some(exit) = factory.state.exits.get(&leaf.first).filter(|e| !e.done) {
            let forced = exit.reason != ExitReason::Guard && exit.reason != ExitReason::Settlement;
            let mut own = leaf.channels.iter().filter(|(_, c)| *c == client || client.is_none());
            let same = forced && own.all(|(o, _)| exit.leaving.contains(o));
            if let Some(limit) = request.max_fee_sat.filter(|_| !switch("exit.no_budget")) {
                let mut changed = exit.clone();
                changed.max_fee_sat = Some(limit);
                self.put_exit(&id, leaf.first, changed)?;
            } else if same {
                return Err(Error::Conflict("the exit is under way".into()));
            }
            if same {
                return self.run_exit(&id, leaf.first).await;
            }
            return self.begin_exit(&id, &leaf, client, ExitReason::Asked, "asked for by the user").await;
        }
        // A close that waits for somebody who is away is what an exit may be the answer to.
        if self.is_lsp() && factory.state.close.as_ref().is_some_and(|c| c.signed.is_some()) {
            return Err(Error::Conflict("the cooperative close is signed, and will confirm".into()));
        }
        let own = leaf.channels.iter().filter(|(_, c)| client.is_none() || *c == client);
        let stays: Vec<_> = own.filter(|(o, _)| factory.spend_of(&self.parts.index, o).is_none()).collect();
        if stays.is_empty() {
            return Err(Error::Conflict("this channel has been left already".into()));
        }
        if stays.iter().all(|(o, _)| self.parts.depth.is_stuck(&channel_id(*o))) {
            return Err(Error::Conflict(STUCK.into()));
        }
        let limit = request.max_fee_sat.or(self.parts.config.exit_max_fee_sat);
        self.prepare_exit(&id, &leaf, client, ExitReason::Asked, "asked for by the user", limit)?;
        self.run_exit(&id, leaf.first).await
    }

    /// Begins an exit, or makes one that is under way more urgent: stored first, then the channels are
    /// closed, then the path goes out. `client` says whose channel is closed, none: all of the leaf that
    /// the reason concerns.
    pub(super) async fn begin_exit(
        &mut self,
        id: &InstanceId,
        leaf: &Leaf,
        client: Option<PublicKey>,
        reason: ExitReason,
        why: &str,
    ) -> Result<(), Error> {
        self.prepare_exit(id, leaf, client, reason, why, self.parts.config.exit_max_fee_sat)?;
        self.run_exit(id, leaf.first).await
    }

    /// A client leaves its own leaf.
    pub(super) async fn start_exit(
        &mut self,
        id: &InstanceId,
        reason: ExitReason,
        why: &str,
    ) -> Result<(), Error> {
        let Some(leaf) = self.factories.get(id).and_then(|f| f.leaves().into_iter().next()) else {
            return Ok(());
        };
        self.begin_exit(id, &leaf, None, reason, why).await
    }

    fn prepare_exit(
        &mut self,
        id: &InstanceId,
        leaf: &Leaf,
        client: Option<PublicKey>,
        reason: ExitReason,
        why: &str,
        max_fee_sat: Option<u64>,
    ) -> Result<(), Error> {
        // A guard leaves nothing, and what settles keeps its channels open until the leaf is there.
        let keeps_channels = matches!(reason, ExitReason::Guard | ExitReason::Settlement);
        let leaving: Vec<_> = leaf
            .channels
            .iter()
            .filter(|(_, c)| !keeps_channels && (client.is_none() || *c == client))
            .map(|(o, _)| *o)
            .collect();
        let height = self.parts.height();
        let Some(factory) = self.factories.get(id) else { return Ok(()) };
        let mut exit = match factory.exit_under_way(leaf.first) {
            Some(exit)
                if !reason.replaces(exit.reason) && leaving.iter().all(|o| exit.leaving.contains(o)) =>
            {
                return Ok(())
            }
            Some(exit) => exit.clone(),
            None => StoredExit::new(height, reason, why, Vec::new()),
        };
        exit.leaving.extend(leaving.iter().filter(|o| !exit.leaving.contains(o)).collect::<Vec<_>>());
        if reason.replaces(exit.reason) {
            (exit.reason, exit.why) = (reason, why.to_owned());
        }
        exit.max_fee_sat = exit.max_fee_sat.or(max_fee_sat);
        let lsp = self.is_lsp();
        self.stop_rotation(id, leaf.first);
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        let before = factory.state.clone();
        if !keeps_channels {
            factory.call_off_close(lsp);
        }
        factory.state.exits.insert(leaf.first, exit);
        faults::point("node.exit.store");
        if let Err(e) = factory.store_state(&self.parts.store) {
            // Nothing that is not on disk is begun.
            factory.state = before;
            return Err(e);
        }
        faults::point("node.exit.stored");
        if !keeps_channels {
            self.closing.remove(id);
            let channels: Vec<_> = leaving.iter().map(|o| channel_id(*o)).collect();
            lock(&self.parts.settled).retain(|c| !channels.contains(c));
        }
        let clients = self.clients_of(id, leaf.first);
        let data = json!({
            "instance_id": hex::encode(id), "clients": clients, "reason": reason, "why": why,
            "max_fee_sat": max_fee_sat,
        });
        self.parts.events.push("exit_started", data);
        Ok(())
    }

    /// Closes the channels that leave, so that no payment is made on them any more. Idempotent.
    fn close_leaving(&self, id: &InstanceId, exit: &StoredExit) {
        let Some(factory) = self.factories.get(id) else { return };
        let open = self.parts.manager.list_channels();
        for (outpoint, client) in factory.channels().unwrap_or_default() {
            let channel = channel_id(outpoint);
            if !exit.leaving.contains(&outpoint) {
                continue;
            }
            if !open.iter().any(|c| c.channel_id == channel) {
                self.leave_unknown(&channel);
                continue;
            }
            let peer = match (&self.parts.config.role, client) {
                (RoleConfig::Client(c), _) => c.lsp_node_id,
                (RoleConfig::Lsp(_), Some(client)) => client,
                (RoleConfig::Lsp(_), None) => continue,
            };
            let text = "leaving the factory".to_owned();
            if let Err(e) = self.parts.manager.force_close_broadcasting_latest_txn(&channel, &peer, text) {
                tracing::error!(%channel, error = ?e, "channel not closed");
            }
            faults::point("node.exit.channel_closed");
        }
    }

    /// All exits under way, the most urgent first.
    pub(super) fn exits_under_way(&self) -> Vec<(ExitReason, InstanceId, u32)> {
        let mut list: Vec<_> = self
            .factories
            .iter()
            .filter(|(_, f)| f.state.stage == Stage::Live)
            .flat_map(|(id, f)| {
                f.state.exits.iter().filter(|(_, e)| !e.done).map(|(first, e)| (e.reason, *id, *first))
            })
            .collect();
        list.sort();
        list
    }

    /// Runs exits in the order given.
    pub(super) async fn run_exits(&mut self, list: Vec<(ExitReason, InstanceId, u32)>) {
        for (_, id, first) in list {
            if let Err(e) = self.run_exit(&id, first).await {
                tracing::error!(instance = hex::encode(id), leaf = first, error = %e, "exit");
            }
        }
    }

    /// Does what the exit of a leaf needs now.
    pub(super) async fn run_exit(&mut self, id: &InstanceId, first: u32) -> Result<(), Error> {
        let Some(factory) = self.factories.get(id).filter(|f| f.state.stage == Stage::Live) else {
            return Ok(());
        };
        let Some(before) = factory.exit_under_way(first).cloned() else { return Ok(()) };
        let life = factory.lifetime()?;
        self.close_leaving(id, &before);
        let plan = factory.followed_plan(first, &self.parts.index, self.parts.height())?;
        // What was overtaken gives its coin back, on whichever path it is: the next step may have no other.
        let plans = factory.plans(first)?;
        if !switch("exit.overtaken_kept") {
            self.publisher.drop_all_lost(&plans, &*self.parts.index)?;
        }
        let mut exit = before.clone();
        (exit.waits_until, exit.needs_coin_sat, exit.over_budget_sat) = (None, None, None);
        match self.todo(&plan, &before, life.dying_until()) {
            Todo::Wait { until, text } => (exit.waits_until, exit.waits_for) = (until, text),
            Todo::Carry(step) => {
                self.carry_step(id, &plans, &mut exit, &before, &step, life.settle_by()).await
            }
            Todo::Finish => self.finish_exit(id, first, &mut exit)?,
            Todo::Distributed(number) => {
                self.finish_distributed(id, first, (&plan, number), &plans, &mut exit)?
            }
            Todo::Blocked(text) => exit.waits_for = text,
        }
        self.save_exit(id, first, &plan, &before, exit)
    }

    /// Publishes a step, and says what the exit waits for then.
    async fn carry_step(
        &mut self,
        id: &InstanceId,
        plans: &[ExitPlan],
        exit: &mut StoredExit,
        before: &StoredExit,
        step: &ExitStep,
        settle_by: u32,
    ) {
        let height = self.parts.height();
        let steps = plans.iter().flat_map(|plan| plan.steps.iter().chain(&plan.distributions));
        let others: BTreeSet<Txid> = steps.map(|s| s.txid).filter(|txid| *txid != step.txid).collect();
        let paid = others.iter().map(|txid| self.publisher.paid_sat(txid)).fold(0, u64::saturating_add);
        let limit_sat = exit.max_fee_sat.map(|max| max.saturating_sub(paid));
        let (free, available_sat) = self.parts.wallet.free_coins();
        let frugal = exit.reason == ExitReason::Settlement && free <= SPARE_COINS && height < settle_by;
        let unpaid = self.publisher.paid_sat(&step.txid) == 0;
        if frugal && unpaid && self.parts.wallet.coin_count() > 2 * SPARE_COINS {
            // Nobody has to send one: they come back with the next block.
            exit.needs_coin_sat = Some(self.publisher.estimate_sat(step));
            exit.waits_for =
                format!("a coin for the {}; the last {SPARE_COINS} are kept for others", step.kind);
            return;
        }
        let waiting = self.exits_under_way().len();
        let terms = Terms { limit_sat, outputs: split(waiting, free) };
        let result = self.publisher.carry(step, height, terms).await;
        exit.waits_for = match result {
            Ok(()) => format!("the {} to confirm", step.kind),
            Err(Error::InsufficientFunds { needed_sat, .. }) => {
                exit.needs_coin_sat = Some(needed_sat);
                format!(
                    "{WANTS_COIN} of {needed_sat} sat to pay for the {}; {available_sat} sat are free",
                    step.kind
                )
            }
            Err(Error::OverBudget { needed_sat, left_sat }) => {
                exit.over_budget_sat = Some(needed_sat);
                format!(
                    "a larger budget: the {} needs {needed_sat} sat, {left_sat} sat are left of max_fee_sat",
                    step.kind
                )
            }
            Err(e) => format!("{FAILED} to publish the {}: {e}", step.kind),
        };
        // Told once a step; that one waits for coins left to others is no reason to send any.
        let told = before.needs_coin_sat.is_some()
            && before.waits_for.starts_with(WANTS_COIN)
            && before.waits_for.contains(&step.kind.to_string());
        if let (Some(needed_sat), false) = (exit.needs_coin_sat, told) {
            let address = self.parts.wallet.new_address().map(|a| a.to_string()).ok();
            let data = json!({
                "instance_id": hex::encode(id), "needed_sat": needed_sat, "available_sat": available_sat,
                "address": address, "for": step.kind.to_string(),
            });
            self.parts.events.push("exit_needs_coin", data);
        }
    }

    fn todo(&self, plan: &ExitPlan, exit: &StoredExit, dying_until: u32) -> Todo {
        let (view, height) = (&*self.parts.index, self.parts.height());
        let paid = plan.distributions.iter().position(|d| self.parts.index.confirmation(&d.txid).is_some());
        if let Some(number) = paid {
            return Todo::Distributed(number);
        }
        let step = |i: usize| plan.steps.get(i).cloned().map_or(Todo::Finish, Todo::Carry);
        match exit.reason {
            ExitReason::Expiry | ExitReason::Guard => match plan.guard_action(view, height) {
                GuardAction::Wait { until_height, reason } => guard_wait(plan, until_height, reason),
                GuardAction::PublishPath { step: i } => step(i),
                GuardAction::PublishDistribution { distribution } if exit.reason == ExitReason::Expiry => {
                    plan.distributions.get(distribution).cloned().map_or(Todo::Finish, Todo::Carry)
                }
                // The LSP never pays itself out of its channels, a client has the expiry's own exit for it.
                GuardAction::PublishDistribution { .. } => {
                    Todo::Wait { until: None, text: "the settlement".into() }
                }
                GuardAction::Settled => Todo::Finish,
                GuardAction::Paid { distribution } => Todo::Distributed(distribution),
                GuardAction::Lost { outpoint, spent_by } => {
                    Todo::Blocked(format!("nothing: {outpoint} was spent by {spent_by}"))
                }
            },
            _ => match plan.next_action(view, height) {
                ExitAction::Wait { until_height, reason } => wait(plan, until_height, reason),
                ExitAction::Publish { step: i } => self.patient(plan, exit, i, dying_until),
                ExitAction::Done => Todo::Finish,
                ExitAction::Blocked { outpoint, spent_by, .. } => {
                    Todo::Blocked(format!("nothing: {outpoint} was spent by {spent_by}"))
                }
            },
        }
    }

    /// The LSP leaves the steps of a client that goes by itself to that client, for a while.
    fn patient(&self, plan: &ExitPlan, exit: &StoredExit, i: usize, dying_until: u32) -> Todo {
        let Some(step) = plan.steps.get(i) else { return Todo::Finish };
        let parent = self.parts.index.confirmation(&step.parent.txid).map_or(0, |c| c.height);
        let since = step.ready_at(parent).max(exit.started_at);
        let until = since.saturating_add(PATIENCE_BLOCKS);
        // A payment that hangs on the channel does not wait, nor a newer state; and once the LSP settles
        // it has no time to give away.
        let leaves_to_client = self.is_lsp()
            && exit.reason == ExitReason::ChannelClosed
            && !step.is_raced()
            && self.parts.height() < dying_until
            && exit.leaving.iter().all(|o| self.parts.is_quiet(&channel_id(*o)));
        if leaves_to_client && self.parts.height() < until && self.publisher.child(&step.txid).is_none() {
            return Todo::Wait {
                until: Some(until),
                text: format!("the client to publish the {}", step.kind),
            };
        }
        Todo::Carry(step.clone())
    }

    /// Writes what has changed, and tells it.
    fn save_exit(
        &mut self,
        id: &InstanceId,
        first: u32,
        plan: &ExitPlan,
        before: &StoredExit,
        exit: StoredExit,
    ) -> Result<(), Error> {
        if exit == *before {
            return Ok(());
        }
        let cost = self.publisher.cost(plan, &*self.parts.index);
        let over = exit.done || exit.distribution.is_some();
        let to_come_sat = if over { 0 } else { cost.to_come_sat };
        let news = json!({
            "instance_id": hex::encode(id), "clients": self.clients_of(id, first),
            "waits_for": exit.waits_for, "waits_until": exit.waits_until,
            "fees_sat": cost.so_far_sat, "to_come_sat": to_come_sat,
        });
        let (told, done) = (exit.waits_for != before.waits_for, exit.done);
        let is_lsp = self.is_lsp();
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        let distribution = exit.distribution;
        let guarded = exit.reason == ExitReason::Guard;
        factory.state.exits.insert(first, exit);
        if done && !is_lsp && (!guarded || distribution.is_some()) {
            factory.state.stage = Stage::Exited;
        }
        factory.store_state(&self.parts.store)?;
        faults::point(if done { "node.exit.ended" } else { "node.exit.progress" });
        if told {
            self.parts.events.push("exit_progress", news.clone());
        }
        if done {
            let data = json!({"instance_id": hex::encode(id), "clients": self.clients_of(id, first),
                "fees_sat": cost.so_far_sat, "distribution": distribution.map(|d| d.to_string())});
            self.parts.events.push("exit_done", data);
            self.join_sent = false;
            if self.factories.get(id).is_some_and(|f| f.state.stage == Stage::Exited) {
                self.forget_rotations(id);
            }
        }
        Ok(())
    }

    /// Writes an exit as it is at this moment.
    fn put_exit(&mut self, id: &InstanceId, first: u32, exit: StoredExit) -> Result<(), Error> {
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        let before = factory.state.exits.insert(first, exit);
        let stored = factory.store_state(&self.parts.store);
        if let (Err(_), Some(before)) = (&stored, before) {
            factory.state.exits.insert(first, before);
        }
        stored
    }

    /// Node ids of a leaf's clients, as far as this node knows them.
    fn clients_of(&self, id: &InstanceId, first: u32) -> Vec<String> {
        let leaf = self.factories.get(id).and_then(|f| f.leaves().into_iter().find(|l| l.first == first));
        let own = self.parts.node_id;
        let channels = leaf.map(|l| l.channels).unwrap_or_default();
        channels.into_iter().map(|(_, c)| c.unwrap_or(own).to_string()).collect()
    }
}

fn kind_of(plan: &ExitPlan, step: usize) -> String {
    plan.steps.get(step).map(|s| s.kind.to_string()).unwrap_or_default()
}

fn wait(plan: &ExitPlan, until_height: u32, reason: WaitReason) -> Todo {
    match reason {
        WaitReason::FundingUnconfirmed => {
            Todo::Wait { until: None, text: "the funding transaction to confirm".into() }
        }
        WaitReason::Expiry => {
            Todo::Wait { until: Some(until_height), text: format!("height {until_height}") }
        }
        WaitReason::RelativeDelay { step } => {
            let text = format!("height {until_height}, then the {}", kind_of(plan, step));
            Todo::Wait { until: Some(until_height), text }
        }
    }
}

fn guard_wait(plan: &ExitPlan, until_height: u32, reason: GuardWait) -> Todo {
    match reason {
        GuardWait::FundingUnconfirmed => wait(plan, until_height, WaitReason::FundingUnconfirmed),
        GuardWait::Expiry => wait(plan, until_height, WaitReason::Expiry),
        GuardWait::RelativeDelay { step } => wait(plan, until_height, WaitReason::RelativeDelay { step }),
        GuardWait::Patience { step } => Todo::Wait {
            until: Some(until_height),
            text: format!(
                "whoever began to publish the {}, until height {until_height}",
                kind_of(plan, step)
            ),
        },
    }
}
