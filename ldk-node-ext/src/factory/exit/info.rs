//! What the API shows of exits.

use bitcoin::secp256k1::PublicKey;
use bitcoin::OutPoint;
use factory_core::exit::ExitPlan;

use super::super::info::kind_name;
use super::super::stored::{Factory, Leaf, StoredExit};
use super::super::Service;
use crate::api::{ExitInfo, ExitStepInfo};
use crate::error::Error;
use crate::ldk::channel_id;

impl Service {
    /// Exits of this node, and clients of ours that left by themselves: one for each channel that leaves.
    pub(in crate::factory) fn exits(&self, factory: &Factory) -> Result<Vec<ExitInfo>, Error> {
        let mut list = Vec::new();
        for leaf in factory.leaves() {
            let stored = factory.state.exits.get(&leaf.first);
            let leaves = |o: &OutPoint| stored.is_some_and(|e| e.leaving.contains(o));
            let left = |c: &Option<PublicKey>| c.is_some_and(|c| factory.state.left.contains(&c));
            let mut shown: Vec<_> = leaf.channels.iter().filter(|(o, c)| leaves(o) || left(c)).collect();
            if shown.is_empty() && stored.is_some() {
                shown.extend(leaf.channels.first());
            }
            for channel in shown {
                // Who left by itself has nothing to do with an exit that came after.
                let stored = stored.filter(|_| leaves(&channel.0) || !left(&channel.1));
                list.push(self.exit_info(factory, &leaf, stored, channel)?);
            }
        }
        Ok(list)
    }

    fn exit_info(
        &self,
        factory: &Factory,
        leaf: &Leaf,
        stored: Option<&StoredExit>,
        (outpoint, whose): &(OutPoint, Option<PublicKey>),
    ) -> Result<ExitInfo, Error> {
        let index = &self.parts.index;
        let height = self.parts.height();
        let plan = factory.followed_plan(leaf.first, index, height)?;
        let cost = self.publisher.cost(&plan, &**index);
        let steps = self.steps(&plan, stored);
        let node_of = |c: Option<PublicKey>| c.unwrap_or(self.parts.node_id).to_string();
        let spend = factory.spend_of(index, outpoint);
        let published = self.parts.outpoints.get(&channel_id(*outpoint)).and_then(|c| c.published);
        let phase = match (stored, spend) {
            (Some(e), _) if e.done => "done",
            (Some(e), _) if e.distribution.is_some() => "distribution",
            (Some(e), _) if e.needs_coin_sat.is_some() => "waiting_for_coin",
            (Some(e), _) if e.over_budget_sat.is_some() => "over_budget",
            (_, Some(_)) => "sweep",
            _ if steps.iter().all(|s| s.confirmed_height.is_some()) => "commitment",
            _ => "path",
        };
        let delay = u32::from(factory.params().to_self_delay);
        // The commitment takes a block, too.
        let expected_end = match spend {
            Some(s) => Some(s.height.saturating_add(delay)),
            None => plan
                .blocks_left(&**index, height)
                .map(|blocks| height.saturating_add(blocks).saturating_add(delay).saturating_add(1)),
        };
        let over = stored.is_none_or(|e| e.done || e.distribution.is_some());
        Ok(ExitInfo {
            node_id: node_of(*whose),
            clients: leaf.channels.iter().map(|(_, c)| node_of(*c)).collect(),
            reason: stored.map_or_else(|| "left by itself".to_owned(), |e| e.why.clone()),
            phase: phase.to_owned(),
            waits_for: stored.map(|e| e.waits_for.clone()).unwrap_or_default(),
            waits_until_height: stored.and_then(|e| e.waits_until),
            started_height: stored.map(|e| e.started_at),
            expected_end_height: expected_end.filter(|_| !over),
            steps,
            commitment_txid: spend.map(|s| s.txid).or(published).map(|t| t.to_string()),
            commitment_height: spend.map(|s| s.height),
            distribution_txid: stored.and_then(|e| e.distribution).map(|t| t.to_string()),
            fees_sat: cost.so_far_sat,
            fees_to_come_sat: if over { 0 } else { cost.to_come_sat },
            max_fee_sat: stored.and_then(|e| e.max_fee_sat),
            needs_coin_sat: stored.and_then(|e| e.needs_coin_sat),
            over_budget_sat: stored.and_then(|e| e.over_budget_sat),
        })
    }

    /// The path; or, where a distribution is the way out, what stands in its place from there on.
    fn steps(&self, plan: &ExitPlan, stored: Option<&StoredExit>) -> Vec<ExitStepInfo> {
        let index = &self.parts.index;
        let paid = stored.and_then(|e| e.distribution);
        let by = plan.distributions.iter().position(|d| Some(d.txid) == paid);
        let path = match by {
            Some(number) => plan.steps.get(..plan.leaf_start.saturating_add(number)).unwrap_or_default(),
            None => &plan.steps,
        };
        path.iter()
            .chain(by.and_then(|number| plan.distributions.get(number)))
            .map(|step| {
                let child = self.publisher.child(&step.txid);
                let parent_height = index.confirmation(&step.parent.txid).map(|c| c.height);
                let child_txid = child.map(|c| c.tx.0.compute_txid());
                ExitStepInfo {
                    kind: kind_name(step.kind).to_owned(),
                    txid: step.txid.to_string(),
                    child_txid: child_txid.map(|t| t.to_string()),
                    delay_blocks: step.relative_delay,
                    vsize: step.weight.div_ceil(4),
                    child_vsize: child.and_then(|c| u64::try_from(c.tx.0.vsize()).ok()),
                    earliest_height: parent_height.map(|h| step.ready_at(h).saturating_add(1)),
                    confirmed_height: index.confirmation(&step.txid).map(|c| c.height),
                    fee_sat: self.publisher.paid_sat(&step.txid),
                }
            })
            .collect()
    }
}
