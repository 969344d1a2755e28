//! Leaving a factory alone: publish the own path, each transaction with a child that pays for it, in
//! order and each in its time; then LDK's commitment, then the sweep.
//!
//! The exit is driven by what is confirmed, so it goes on after a restart wherever it was, and steps
//! that somebody else has published count as done.

mod publish;

use factory_core::exit::{ExitAction, WaitReason};
use serde_json::json;

use super::stored::{Stage, StoredExit};
use super::Service;
use crate::config::RoleConfig;
use crate::error::Error;
use crate::ldk::{channel_id, InstanceId};
use crate::util::lock;

impl Service {
    /// The API's `exit`.
    pub(super) async fn exit_command(&mut self, id: InstanceId) -> Result<(), Error> {
        if self.is_lsp() {
            return Err(Error::Conflict("only a client leaves by this command; an LSP closes".into()));
        }
        let factory = self.live(&id)?;
        if factory.state.exit.is_some() {
            return Err(Error::Conflict("the exit is under way".into()));
        }
        self.start_exit(&id, "asked for by the user").await
    }

    /// Begins an exit: stored first, then the channel is closed, then the path goes out.
    pub(super) async fn start_exit(&mut self, id: &InstanceId, why: &str) -> Result<(), Error> {
        let height = self.parts.height();
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        let steps = factory.exit_plan()?.steps.len();
        // The money comes by the path, not by a close that may have been agreed to or signed before.
        self.closing.remove(id);
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        if let Some(close) = factory.state.close.as_mut() {
            close.payout_script = None;
            close.machine = None;
            close.reason = Some("this node leaves by its path".into());
        }
        lock(&self.parts.settled).retain(|c| !factory.channel_ids().unwrap_or_default().contains(c));
        factory.state.exit = Some(StoredExit {
            started_at: height,
            children: vec![None; steps],
            waits_for: "start".into(),
            ..StoredExit::default()
        });
        factory.store_state(&self.parts.store)?;
        self.parts.events.push("exit_started", json!({"instance_id": hex::encode(id), "reason": why}));
        self.close_channel_for_exit(id);
        self.run_exit(id).await
    }

    /// Closes the LDK channel, so that no payment is made on it any more. Idempotent.
    fn close_channel_for_exit(&self, id: &InstanceId) {
        let RoleConfig::Client(client) = &self.parts.config.role else { return };
        let Some(factory) = self.factories.get(id) else { return };
        for channel in factory.channel_ids().unwrap_or_default() {
            let open = self.parts.manager.list_channels().iter().any(|c| c.channel_id == channel);
            if open {
                let text = "leaving the factory".to_owned();
                if let Err(e) = self.parts.manager.force_close_broadcasting_latest_txn(
                    &channel,
                    &client.lsp_node_id,
                    text,
                ) {
                    tracing::error!(%channel, error = ?e, "channel not closed");
                }
            }
        }
    }

    /// Exits that wait for a coin are tried again between blocks.
    pub(super) async fn retry_exits(&mut self) {
        let waiting: Vec<InstanceId> = self
            .factories
            .iter()
            .filter(|(_, f)| f.state.stage == Stage::Live)
            .filter(|(_, f)| f.state.exit.as_ref().is_some_and(|e| e.needs_coin_sat.is_some() && !e.done))
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            if let Err(e) = self.run_exit(&id).await {
                tracing::error!(error = %e, "exit");
            }
        }
    }

    /// Does what the exit needs now.
    pub(super) async fn run_exit(&mut self, id: &InstanceId) -> Result<(), Error> {
        let Some(factory) = self.factories.get(id) else { return Ok(()) };
        let Some(exit) = factory.state.exit.as_ref().filter(|e| !e.done) else { return Ok(()) };
        let before = exit.clone();
        self.close_channel_for_exit(id);
        let factory = match self.factories.get(id) {
            Some(f) => f,
            None => return Ok(()),
        };
        let plan = factory.exit_plan()?;
        let height = self.parts.height();
        let action = plan.next_action(&*self.parts.index, height);
        let mut exit = before.clone();
        match action {
            ExitAction::Wait { until_height, reason } => {
                exit.needs_coin_sat = None;
                exit.waits_for = match reason {
                    WaitReason::FundingUnconfirmed => "the funding transaction to confirm".into(),
                    WaitReason::Expiry => format!("height {until_height}"),
                    WaitReason::RelativeDelay { step } => {
                        let kind = plan.steps.get(step).map(|s| s.kind.to_string()).unwrap_or_default();
                        format!("height {until_height}, then the {kind}")
                    }
                };
            }
            ExitAction::Publish { step } => {
                if let Some(s) = plan.steps.get(step) {
                    match self.publish_step(id, &mut exit, step, s, height).await {
                        Ok(()) => {
                            exit.needs_coin_sat = None;
                            exit.waits_for = format!("the {} to confirm", s.kind);
                        }
                        Err(Error::InsufficientFunds { needed_sat, available_sat }) => {
                            exit.needs_coin_sat = Some(needed_sat);
                            exit.waits_for = format!(
                                "a confirmed wallet coin of {needed_sat} sat to pay for the {} ({available_sat} sat available)",
                                s.kind
                            );
                        }
                        Err(e) => exit.waits_for = format!("another try to publish the {}: {e}", s.kind),
                    }
                }
            }
            ExitAction::Done => self.finish_exit(id, &mut exit)?,
            ExitAction::Blocked { outpoint, spent_by, .. } => {
                exit.needs_coin_sat = None;
                exit.waits_for = format!("nothing: {outpoint} was spent by {spent_by}");
                // Steps that can never confirm hold no coin.
                for child in exit.children.iter().flatten() {
                    self.parts.wallet.evicted(child.tx.0.compute_txid());
                }
            }
        }
        self.save_exit(id, &before, exit)
    }

    fn save_exit(&mut self, id: &InstanceId, before: &StoredExit, exit: StoredExit) -> Result<(), Error> {
        if exit == *before {
            return Ok(());
        }
        if exit.waits_for != before.waits_for {
            let data = json!({"instance_id": hex::encode(id), "waits_for": exit.waits_for});
            self.parts.events.push("exit_progress", data);
        }
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        if exit.done {
            factory.state.stage = Stage::Exited;
            self.parts.events.push("exit_done", json!({"instance_id": hex::encode(id)}));
            self.join_sent = false;
        }
        factory.state.exit = Some(exit);
        factory.store_state(&self.parts.store)
    }

    /// Writes the exit as it is at this moment.
    fn store_exit(&mut self, id: &InstanceId, exit: &StoredExit) -> Result<(), Error> {
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        factory.state.exit = Some(exit.clone());
        factory.store_state(&self.parts.store)
    }

    /// The path is confirmed: the commitment, or the kept closing transaction, then the sweep.
    fn finish_exit(&self, id: &InstanceId, exit: &mut StoredExit) -> Result<(), Error> {
        exit.needs_coin_sat = None;
        let Some(factory) = self.factories.get(id) else { return Ok(()) };
        let Some((outpoint, _)) = factory.channels()?.first().copied() else { return Ok(()) };
        let channel = channel_id(outpoint);
        let Some(spend) = self.parts.index.spend(&outpoint) else {
            exit.waits_for = "the commitment transaction to confirm".into();
            // A channel that was shut for a close that failed has a closing transaction instead.
            if let Some(closing) = self.parts.broadcaster.kept_closing(&channel)? {
                self.parts.broadcaster.send(vec![closing], "kept closing transaction");
            }
            return Ok(());
        };
        let depth = self.parts.index.depth(spend.height);
        let delay = u32::from(factory.params().to_self_delay);
        let settled_anyway = depth > delay.saturating_add(2 * super::chain::FINAL_DEPTH);
        let swept = self.parts.is_swept(&channel, settled_anyway);
        exit.done = swept && depth >= super::chain::FINAL_DEPTH;
        exit.waits_for = if exit.done { "nothing".into() } else { "the sweep to confirm".into() };
        Ok(())
    }
}
