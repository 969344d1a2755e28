//! What the API shows of factories.

use std::collections::HashSet;

use bitcoin::secp256k1::PublicKey;
use factory_core::lifetime::{Lifetime, Phase};
use factory_core::planner;
use factory_core::transaction::{SignedTx, TxKind};
use lightning::ln::types::ChannelId;

use super::stored::{Factory, Signed, Stage};
use super::Service;
use crate::api::{
    CloseInfo, Deadline, FactoryInfo, FactoryMember, FactoryState, MemberState, Outpoint, TreeTx,
};
use crate::chain::Spend;
use crate::error::Error;
use crate::ldk::{channel_id, InstanceId};

/// Mean time between blocks, seconds.
const SECONDS_PER_BLOCK: i64 = 600;

pub(super) fn kind_name(kind: TxKind) -> &'static str {
    match kind {
        TxKind::Static { .. } => "static",
        TxKind::Kickoff { .. } => "kickoff",
        TxKind::State { .. } => "state",
        TxKind::Distribution { .. } => "distribution",
    }
}

fn level_of(kind: TxKind) -> usize {
    match kind {
        TxKind::Static { level } | TxKind::Kickoff { level } | TxKind::State { level, .. } => {
            usize::from(level)
        }
        TxKind::Distribution { .. } => 0,
    }
}

fn deadline(what: &str, at: u32, height: u32) -> Deadline {
    let blocks = i64::from(at) - i64::from(height);
    Deadline { what: what.to_owned(), height: at, blocks, seconds: blocks.saturating_mul(SECONDS_PER_BLOCK) }
}

impl Service {
    /// All factories, oldest first: those that were made, those under way, those that failed.
    pub(super) fn all_infos(&self) -> Vec<FactoryInfo> {
        let mut ids: Vec<InstanceId> = self.factories.keys().chain(self.creating.keys()).copied().collect();
        ids.sort();
        ids.dedup();
        let mut list: Vec<FactoryInfo> = self.failed.clone();
        // LDK lists its channels once, not once for each factory.
        let ready = self.ready_channels();
        list.extend(ids.iter().filter_map(|id| self.info_with(id, &ready).ok()));
        list.extend(self.joining_info());
        list.sort_by(|a, b| a.instance_id.cmp(&b.instance_id));
        list
    }

    fn ready_channels(&self) -> HashSet<ChannelId> {
        let open = self.parts.manager.list_channels().into_iter();
        open.filter(|c| c.is_channel_ready).map(|c| c.channel_id).collect()
    }

    /// One factory.
    pub(super) fn info(&self, id: &InstanceId) -> Result<FactoryInfo, Error> {
        self.info_with(id, &self.ready_channels())
    }

    fn info_with(&self, id: &InstanceId, ready: &HashSet<ChannelId>) -> Result<FactoryInfo, Error> {
        if let Some(creating) = self.creating.get(id) {
            return Ok(creating.info(id, None));
        }
        if let Some(factory) = self.factories.get(id) {
            return self.made_info(factory, ready);
        }
        let hex = hex::encode(id);
        if let Some(joining) = self.joining_info().filter(|j| j.instance_id == hex) {
            return Ok(joining);
        }
        let failed = self.failed.iter().find(|f| f.instance_id == hex).cloned();
        failed.ok_or_else(|| Error::not_found(format!("factory {hex}")))
    }

    fn made_info(&self, factory: &Factory, ready: &HashSet<ChannelId>) -> Result<FactoryInfo, Error> {
        let height = self.parts.height();
        let funding = factory.funding();
        let confirmation = self.parts.index.confirmation(&funding.outpoint.txid);
        let alive = matches!(factory.state.stage, Stage::Funded | Stage::Live);
        let report = planner::plan(factory.params(), factory.clients()).ok();
        Ok(FactoryInfo {
            instance_id: hex::encode(factory.id()),
            state: self.state_of(factory, height),
            failure: factory.state.failure.clone(),
            funding: Some(Outpoint::from(funding.outpoint)),
            funding_sat: funding.value_sat,
            funding_confirmations: confirmation.map_or(0, |c| self.parts.index.depth(c.height)),
            birth_height: factory.birth_height(),
            expiry_height: factory.expiry_height(),
            clients: self.members(factory, ready)?,
            excluded: factory.state.excluded.clone(),
            tree: self.tree(factory),
            deadlines: self.deadlines(factory, height),
            report: report.and_then(|r| serde_json::to_value(r).ok()),
            close: self.close_info(factory),
            exits: self.exits(factory)?,
            exit_reserve: alive.then(|| self.exit_reserve(factory)),
            leaves: self.leaf_infos(factory)?,
        })
    }

    fn state_of(&self, factory: &Factory, height: u32) -> FactoryState {
        let phase = factory.lifetime().ok().map(|l| l.phase_at(height));
        match factory.state.stage {
            Stage::Void => FactoryState::Failed,
            Stage::Exited => FactoryState::Exited,
            Stage::Closed => FactoryState::Closed,
            Stage::Signed | Stage::Funded => FactoryState::Confirming,
            Stage::Live if self.confirmed_close(factory).is_some() => FactoryState::Closed,
            Stage::Live if factory.is_exiting() => FactoryState::Exiting,
            Stage::Live if factory.all_left() => FactoryState::Exited,
            Stage::Live if self.is_closing(factory) => FactoryState::Closing,
            // A reorganisation took the funding off the chain.
            Stage::Live if !self.is_deep(factory) => FactoryState::Confirming,
            Stage::Live => match phase {
                Some(Phase::Active) | None => FactoryState::Active,
                Some(_) => FactoryState::Dying,
            },
        }
    }

    /// Whether payments may pass on the factory's channels, as far as its funding goes.
    fn is_deep(&self, factory: &Factory) -> bool {
        let channels = factory.channel_ids().unwrap_or_default();
        channels.iter().all(|id| self.parts.depth.is_deep(id))
    }

    /// The confirmed spend of the funding output, if it is not the tree's root: the close.
    pub(super) fn confirmed_close(&self, factory: &Factory) -> Option<Spend> {
        let spend = self.parts.index.spend(&factory.funding().outpoint)?;
        (Some(spend.txid) != factory.root_txid()).then_some(spend)
    }

    /// What is due for a factory that is alive.
    pub(super) fn deadlines(&self, factory: &Factory, height: u32) -> Vec<Deadline> {
        let Ok(life): Result<Lifetime, _> = factory.lifetime() else { return Vec::new() };
        let mut list = vec![
            deadline("active period ends", life.active_until(), height),
            deadline("dying period ends, settlement begins", life.dying_until(), height),
            deadline("last height to start an exit", life.settle_by(), height),
            deadline("distributions become valid (T)", life.expiry(), height),
        ];
        if matches!(factory.state.stage, Stage::Signed | Stage::Funded) {
            list.insert(0, deadline("funding is given up if unconfirmed", life.funding_give_up(), height));
        }
        list.retain(|d| d.blocks >= 0);
        let over = matches!(factory.state.stage, Stage::Closed | Stage::Exited | Stage::Void);
        if over || factory.all_left() {
            list.clear();
        }
        list
    }

    fn members(&self, factory: &Factory, ready: &HashSet<ChannelId>) -> Result<Vec<FactoryMember>, Error> {
        let member = |node_id: PublicKey, capacity_sat: u64, push_msat: u64, outpoint: bitcoin::OutPoint| {
            let channel = channel_id(outpoint);
            let left = factory.state.left.contains(&node_id)
                || factory.spend_of(&self.parts.index, &outpoint).is_some();
            let state = match factory.state.stage {
                Stage::Closed => MemberState::Closed,
                _ if left => MemberState::Exited,
                _ if ready.contains(&channel) => MemberState::Ready,
                _ => MemberState::Persisted,
            };
            FactoryMember {
                node_id: node_id.to_string(),
                capacity_sat,
                push_sat: push_msat / 1000,
                channel_id: Some(hex::encode(channel.0)),
                state,
                reason: None,
            }
        };
        Ok(match &factory.signed {
            Signed::Lsp(r) => factory
                .channels()?
                .into_iter()
                .zip(&r.plan.members)
                .filter_map(|((outpoint, client), m)| {
                    let capacity_sat = factory.capacity_of(&outpoint).unwrap_or(m.share.capacity_sat);
                    Some(member(client?, capacity_sat, m.share.push_msat, outpoint))
                })
                .collect(),
            Signed::Client(r) => r
                .channel()
                .map(|c| {
                    let capacity_sat = factory.capacity_of(&c.outpoint).unwrap_or(c.share.capacity_sat);
                    member(self.parts.node_id, capacity_sat, c.share.push_msat, c.outpoint)
                })
                .into_iter()
                .collect(),
        })
    }

    fn tree_tx(&self, tx: &SignedTx, clients: [usize; 2]) -> TreeTx {
        let parent = tx.parent();
        TreeTx {
            level: level_of(tx.kind),
            kind: kind_name(tx.kind).to_owned(),
            txid: tx.txid().to_string(),
            parent_txid: parent.map(|p| p.txid.to_string()).unwrap_or_default(),
            vout: parent.map_or(0, |p| p.vout),
            delay_blocks: tx.relative_delay,
            clients,
            sat: tx.spends.value.to_sat(),
            confirmed_height: self.parts.index.confirmation(&tx.txid()).map(|c| c.height),
        }
    }

    fn tree(&self, factory: &Factory) -> Vec<TreeTx> {
        let at = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        match &factory.signed {
            Signed::Lsp(_) => factory
                .newest_nodes()
                .iter()
                .flat_map(|n| n.txs.iter().map(move |t| (t, [at(n.first), at(n.end)])))
                .map(|(t, clients)| self.tree_tx(t, clients))
                .collect(),
            Signed::Client(r) => {
                let own = [at(r.index), at(r.index).saturating_add(1)];
                let newest = factory.newest_record().unwrap_or(r);
                newest.path.path.iter().map(|t| self.tree_tx(t, own)).collect()
            }
        }
    }

    fn close_info(&self, factory: &Factory) -> Option<CloseInfo> {
        let close = factory.state.close.as_ref()?;
        let confirmed = self.confirmed_close(factory);
        let shown = confirmed.map(|s| s.txid).or_else(|| close.signed.as_ref().map(|t| t.0.compute_txid()));
        let phase = match (&confirmed, &close.signed) {
            (Some(_), _) => "confirmed".to_owned(),
            (None, Some(_)) => "broadcast".to_owned(),
            (None, None) => self.close_phase(factory),
        };
        Some(CloseInfo {
            phase,
            reason: close.reason.clone(),
            txid: shown.map(|t| t.to_string()),
            height: confirmed.map(|s| s.height),
            confirmations: confirmed.map_or(0, |s| self.parts.index.depth(s.height)),
            paid: close.paid.clone(),
            to_fees: close.to_fees.clone(),
            fee_sat: close.fee_sat,
        })
    }
}
