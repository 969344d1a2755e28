//! What a block, or LDK closing a channel, means for the factories.

use std::sync::atomic::Ordering;

use bitcoin::{OutPoint, Txid};
use factory_core::ceremony::ClientInput;
use factory_core::close::LspClosePhase;
use factory_core::exit::ChainView;
use factory_core::faults::switch;
use factory_core::params::FUNDING_GIVE_UP;
use lightning::events::ClosureReason;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::types::ChannelId;
use serde_json::json;

use super::close::Closing;
use super::stored::{ExitReason, Factory, Signed, Stage};
use super::Service;
use crate::chain::{ChainIndex, Spend};
use crate::config::RoleConfig;
use crate::error::Error;
use crate::faults;
use crate::ldk::InstanceId;
use crate::node::mark_void;
use crate::util::lock;

/// Blocks that an invoice's final expiry delta has beyond what accepting asks for, so that there is half
/// an hour or so to pay it.
const INVOICE_SLACK: u16 = 6;
/// Confirmations after which a spend of the funding output is final.
pub(super) const FINAL_DEPTH: u32 = 6;

impl ChainView for ChainIndex {
    fn confirmed_at(&self, txid: &Txid) -> Option<u32> {
        self.confirmation(txid).map(|c| c.height)
    }

    fn spent_by(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.spend(outpoint).map(|s| s.txid)
    }
}

impl Service {
    /// Looks at every factory with the new tip.
    pub(super) async fn on_block(&mut self) {
        let height = self.parts.height();
        if self.joining.is_some() {
            self.client_input(ClientInput::Height(height)).await;
        }
        self.creation_height(height).await;
        let ids: Vec<InstanceId> = self.factories.keys().copied().collect();
        let open = self.parts.manager.list_channels();
        for id in ids {
            if let Err(e) = self.factory_on_block(&id, &open, height).await {
                tracing::error!(instance = hex::encode(id), error = %e, "factory");
            }
        }
        self.look_at_rotations();
        self.look_at_following();
        let exits = self.exits_under_way();
        self.run_exits(exits).await;
        self.check_reserves();
        self.refresh_limits(height);
    }

    async fn factory_on_block(
        &mut self,
        id: &InstanceId,
        open: &[ChannelDetails],
        height: u32,
    ) -> Result<(), Error> {
        let Some(factory) = self.factories.get(id) else { return Ok(()) };
        let funding = factory.funding().outpoint;
        let confirmed =
            self.parts.index.confirmation(&funding.txid).filter(|_| !self.parts.index.is_false(&funding));
        let depth = confirmed.map(|c| self.parts.index.depth(c.height));
        match (factory.state.stage, depth) {
            (Stage::Signed | Stage::Funded, Some(depth))
                if depth >= u32::from(factory.params().min_depth) || switch("factory.any_depth") =>
            {
                self.go_live(id)?;
            }
            (Stage::Funded | Stage::Live, None) if self.funding_rival(factory).is_some() => {
                self.funding_lost(id)
            }
            (Stage::Signed | Stage::Funded, None) => self.unconfirmed(id, height),
            // A reorganization took it off the chain.
            (Stage::Live, None) => self.publish_funding(id),
            (Stage::Void, Some(depth))
                if !self.is_lsp()
                    && !switch("client.given_up.unwatched")
                    && !factory.state.forgotten
                    && depth >= u32::from(factory.params().min_depth) =>
            {
                self.come_back(id).await?;
            }
            (Stage::Void, None) if !self.is_lsp() && height >= factory.expiry_height() => {
                self.forget_abandoned(id)
            }
            _ => {}
        }
        if matches!(self.factories.get(id).map(|f| f.state.stage), Some(Stage::Live)) {
            self.look_at_spends(id).await?;
            self.look_for_exits(id, open, height)?;
        }
        self.rebroadcast_close(id);
        Ok(())
    }

    /// The funding is deep enough: channels may be used from here on.
    fn go_live(&mut self, id: &InstanceId) -> Result<(), Error> {
        if self.creating.contains_key(id) {
            return Ok(());
        }
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        faults::point("node.live.store");
        factory.enter(Stage::Live, &self.parts.store)?;
        faults::point("node.live.stored");
        let channels = factory.channel_ids()?;
        if self.joining.as_ref().is_some_and(|j| j.id() == *id) {
            self.joining = None;
        }
        for channel in &channels {
            self.parts.channel_messages.release(channel);
        }
        self.parts.peers.process_events();
        faults::point("node.channels.released");
        self.parts
            .events
            .push("factory_live", json!({"instance_id": hex::encode(id), "channels": channels.len()}));
        Ok(())
    }

    /// A factory that this client had given up is on the chain after all: leave it by its path.
    async fn come_back(&mut self, id: &InstanceId) -> Result<(), Error> {
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        factory.enter(Stage::Live, &self.parts.store)?;
        for channel in factory.channel_ids()? {
            lock(&self.parts.settled).remove(&channel);
        }
        let why = "the funding confirmed after the factory had been given up";
        self.start_exit(id, ExitReason::LateFunding, why).await
    }

    /// A transaction that spends what the funding transaction does, as deep as is taken for final.
    fn funding_rival(&self, factory: &Factory) -> Option<Txid> {
        let own = factory.funding().outpoint.txid;
        let spends = factory.funding_inputs().filter_map(|o| self.parts.index.spend(&o));
        let rival = |s: &Spend| s.txid != own && self.parts.index.depth(s.height) >= FINAL_DEPTH;
        spends.into_iter().find(rival).map(|s| s.txid)
    }

    /// The funding transaction was double-spent: the factory will never be. Nobody has lost what the chain ever had as
    /// deep as the policy asks, unless a reorganisation went deeper than that.
    fn funding_lost(&mut self, id: &InstanceId) {
        let Some(rival) = self.factories.get(id).and_then(|f| self.funding_rival(f)) else { return };
        let reason = format!("the funding transaction was double-spent by {rival}");
        self.closing.remove(id);
        self.forget_rotations(id);
        if self.is_lsp() {
            self.creating.remove(id);
            return self.make_void(id, &reason);
        }
        if self.joining.as_ref().is_some_and(|j| j.id() == *id) {
            self.joining = None;
        }
        self.abandon(id, &reason);
    }

    /// The funding transaction is not in a block yet: publish it again, or give it up in time.
    fn unconfirmed(&mut self, id: &InstanceId, height: u32) {
        let Some(factory) = self.factories.get(id) else { return };
        if self.creating.contains_key(id) {
            return;
        }
        if height >= factory.birth_height().saturating_add(FUNDING_GIVE_UP) {
            if !self.is_lsp() {
                if self.joining.as_ref().is_some_and(|j| j.id() == *id) {
                    self.joining = None;
                }
                let reason = format!("funding transaction unconfirmed {FUNDING_GIVE_UP} blocks after birth");
                self.abandon(id, &reason);
                return;
            }
            // Once signed it can be mined at any time, so the LSP goes on with it: clients that have
            // given it up leave by their paths when it confirms.
            tracing::warn!(instance = hex::encode(id), "funding unconfirmed; clients have given it up");
        }
        self.publish_funding(id);
    }

    fn publish_funding(&self, id: &InstanceId) {
        let Some(factory) = self.factories.get(id) else { return };
        if let (Stage::Funded | Stage::Live, Some(tx)) = (factory.state.stage, &factory.state.funding_tx) {
            self.parts.broadcaster.send(vec![tx.0.clone()], crate::ldk::FUNDING);
        }
    }

    /// Who has spent what: the close, or leaves that were published.
    async fn look_at_spends(&mut self, id: &InstanceId) -> Result<(), Error> {
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        let index = &self.parts.index;
        if let Some(spend) = index.spend(&factory.funding().outpoint) {
            let is_root = Some(spend.txid) == factory.root_txid();
            if !is_root {
                lock(&self.parts.settled).extend(factory.channel_ids()?);
            }
            if !is_root && index.depth(spend.height) >= FINAL_DEPTH {
                // All that follows from it first: nobody looks at a closed factory again.
                for first in factory.state.exits.keys() {
                    self.publisher.drop_all_lost(&factory.plans(*first)?, &**index)?;
                }
                for channel in factory.channel_ids()? {
                    mark_void(&self.parts.store, &channel, "factory closed")?;
                }
                faults::point("node.closed.store");
                factory.enter(Stage::Closed, &self.parts.store)?;
                faults::point("node.closed.stored");
                let data = json!({"instance_id": hex::encode(id), "txid": spend.txid.to_string()});
                self.parts.events.push("factory_closed", data);
                self.closing.remove(id);
                self.forget_rotations(id);
                return Ok(());
            }
        }
        if let Signed::Lsp(_) = &factory.signed {
            let known = factory.state.left.len();
            for (outpoint, client) in factory.channels()? {
                let Some(client) = client else { continue };
                if factory.spend_of(index, &outpoint).is_some() && !factory.state.left.contains(&client) {
                    factory.state.left.push(client);
                }
            }
            let news = factory.state.left.get(known..).unwrap_or_default().to_vec();
            if !news.is_empty() {
                factory.store_state(&self.parts.store)?;
            }
            for client in news {
                let data = json!({"instance_id": hex::encode(id), "node_id": client.to_string()});
                self.parts.events.push("client_left", data);
            }
            let last = factory
                .channels()?
                .iter()
                .filter_map(|(o, _)| factory.spend_of(index, o))
                .map(|s| s.height)
                .max();
            let at_rest = factory.state.exits.values().all(|e| e.done);
            if factory.all_left() && at_rest && last.is_none_or(|h| index.depth(h) >= FINAL_DEPTH) {
                factory.state.stage = Stage::Exited;
                factory.store_state(&self.parts.store)?;
                self.parts.events.push("factory_exited", json!({"instance_id": hex::encode(id)}));
                self.forget_rotations(id);
                return Ok(());
            }
        }
        let spent_by = index.spend(&factory.funding().outpoint).map(|s| s.txid);
        let root_out = spent_by.is_some() && spent_by == factory.root_txid();
        let consented =
            factory.state.close.as_ref().is_some_and(|c| c.payout_script.is_some() || c.machine.is_some());
        if root_out && (self.closing.contains_key(id) || consented) {
            return self.close_prevented(id).await;
        }
        Ok(())
    }

    /// From here on the wallet shows the channels' money: the close pays it there.
    pub(super) fn settle_channels(&self, id: &InstanceId) {
        let channels = self.factories.get(id).and_then(|f| f.channel_ids().ok()).unwrap_or_default();
        lock(&self.parts.settled).extend(channels);
    }

    /// Keeps what depends on all factories together: the invoices' final expiry delta and the nearest
    /// deadline.
    pub(super) fn refresh_limits(&self, height: u32) {
        let patience = match &self.parts.config.role {
            RoleConfig::Client(c) => c.policy.payment_patience_blocks,
            RoleConfig::Lsp(_) => 0,
        }
        // At least what accepting a payment asks for, and a few blocks that may come meanwhile.
        .max(self.parts.config.claim_margin_blocks.saturating_add(INVOICE_SLACK));
        let live = |f: &&Factory| matches!(f.state.stage, Stage::Signed | Stage::Funded | Stage::Live);
        let min_final = self
            .factories
            .values()
            .filter(live)
            .filter_map(|f| f.params().final_cltv_delta(patience).ok())
            .max()
            .unwrap_or(0);
        self.parts.min_final_cltv.store(min_final, Ordering::Release);
        let nearest = self
            .factories
            .values()
            .filter(|f| matches!(f.state.stage, Stage::Funded | Stage::Live))
            .flat_map(|f| self.deadlines(f, height))
            .min_by_key(|d| d.height);
        *lock(&self.parts.deadline) = nearest;
    }

    /// LDK has closed a channel.
    pub(super) async fn channel_closed(
        &mut self,
        channel: ChannelId,
        reason: ClosureReason,
        local_msat: Option<u64>,
        capacity_sat: Option<u64>,
    ) -> Result<(), Error> {
        self.creation_channel_closed(channel, &reason.to_string()).await;
        let Some(known) = self.parts.outpoints.get(&channel) else { return Ok(()) };
        let id = known.instance;
        let claimed =
            self.factories.get(&id).is_some_and(|f| f.channel_ids().is_ok_and(|ids| ids.contains(&channel)));
        if !claimed {
            self.drop_unclaimed(&channel, known.outpoint);
            return Ok(());
        }
        let Some(factory) = self.factories.get(&id) else { return Ok(()) };
        if factory.state.stage == Stage::Void {
            return Ok(());
        }
        let cooperative = matches!(
            reason,
            ClosureReason::LegacyCooperativeClosure
                | ClosureReason::CounterpartyInitiatedCooperativeClosure
                | ClosureReason::LocallyInitiatedCooperativeClosure
        );
        // A shutdown that was agreed upon but whose last message was lost ends as an error on one side. If
        // no payment was pending, the balances are as final as in the other case.
        let agreed = match &factory.signed {
            Signed::Lsp(_) => {
                matches!(self.closing.get(&id), Some(Closing::Lsp(c)) if c.machine.phase() >= LspClosePhase::Shutting)
            }
            Signed::Client(_) => factory.state.close.as_ref().is_some_and(|c| c.payout_script.is_some()),
        };
        if cooperative || (agreed && self.parts.is_quiet(&channel)) {
            return self.channel_shut(&id, known.outpoint, local_msat, capacity_sat).await;
        }
        tracing::warn!(%channel, %reason, "factory channel closed");
        // The money in a closed channel comes home by its path only.
        let leaf = factory.leaf_of(&known.outpoint).filter(|_| factory.state.stage == Stage::Live);
        let Some(leaf) = leaf.filter(|l| !self.is_distributed(factory, l)) else { return Ok(()) };
        if factory.exit_under_way(leaf.first).is_some_and(|e| e.leaving.contains(&known.outpoint)) {
            return Ok(());
        }
        let client = leaf.channels.iter().find(|(o, _)| *o == known.outpoint).and_then(|(_, c)| *c);
        self.begin_exit(&id, &leaf, client, ExitReason::ChannelClosed, &format!("channel closed: {reason}"))
            .await
    }
}
