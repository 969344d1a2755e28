//! How an exit ends: LDK's commitment, or the kept closing transaction, and the sweep; or a distribution.

use bitcoin::OutPoint;
use factory_core::exit::ExitPlan;
use lightning::ln::types::ChannelId;

use super::super::chain::FINAL_DEPTH;
use super::super::stored::{ExitReason, Factory, StoredExit};
use super::super::Service;
use super::STUCK;
use crate::error::Error;
use crate::ldk::{channel_id, InstanceId};
use crate::logger::Logger;
use crate::node::mark_void;
use crate::util::lock;

impl Service {
    /// The path is confirmed: the channels that leave are published, then swept.
    pub(super) fn finish_exit(
        &self,
        id: &InstanceId,
        first: u32,
        exit: &mut StoredExit,
    ) -> Result<(), Error> {
        let Some(factory) = self.factories.get(id) else { return Ok(()) };
        if exit.reason == ExitReason::Settlement && exit.leaving.is_empty() {
            // Channels were kept open until now; on the chain they cost nobody a tree any more, but the
            // LSP's money in a dead client's channel comes home only if it is closed.
            let leaf = factory.leaves().into_iter().find(|l| l.first == first);
            let channels = leaf.into_iter().flat_map(|l| l.channels).map(|(o, _)| o);
            exit.leaving = channels.filter(|o| factory.spend_of(&self.parts.index, o).is_none()).collect();
            exit.waits_for = "the commitment transactions to confirm".into();
            return Ok(());
        }
        let last_height = factory
            .followed_plan(first, &self.parts.index, self.parts.height())?
            .steps
            .last()
            .and_then(|s| self.parts.index.confirmation(&s.txid))
            .map_or(0, |c| c.height);
        let mut ended = self.parts.index.depth(last_height) >= FINAL_DEPTH;
        let mut waits_for = "the leaf to be final".to_owned();
        for outpoint in &exit.leaving {
            if let Some(text) = self.channel_waits_for(factory, outpoint)? {
                (ended, waits_for) = (false, text);
                break;
            }
        }
        exit.done = ended;
        exit.waits_for = if ended { "nothing".into() } else { waits_for };
        Ok(())
    }

    /// What a channel that leaves still waits for.
    fn channel_waits_for(&self, factory: &Factory, outpoint: &OutPoint) -> Result<Option<String>, Error> {
        let channel = channel_id(*outpoint);
        let kept = self.parts.broadcaster.kept_closing(&channel)?;
        let Some(spend) = factory.spend_of(&self.parts.index, outpoint) else {
            if self.parts.depth.is_stuck(&channel) {
                return Ok(Some(STUCK.into()));
            }
            // A channel that was shut for a close that failed has a closing transaction instead.
            // It spends the output that the channel was born with, which is not the one that has come to the chain
            // if the leaf has rotated; then the last commitment stands in for it.
            match kept {
                Some(closing) if self.parts.index.confirmation(&outpoint.txid).is_some() => {
                    self.parts.broadcaster.send(vec![closing], "kept closing transaction");
                }
                Some(_) => self.publish_commitment(&channel),
                None => {}
            }
            return Ok(Some("the commitment transaction to confirm".into()));
        };
        let depth = self.parts.index.depth(spend.height);
        // That one pays the wallet itself: there is nothing to sweep.
        let settled_anyway = depth
            > u32::from(factory.params().to_self_delay).saturating_add(2 * FINAL_DEPTH)
            || kept.is_some_and(|closing| closing.compute_txid() == spend.txid);
        let swept = self.parts.is_swept(&channel, settled_anyway) && depth >= FINAL_DEPTH;
        Ok((!swept).then(|| "the sweep to confirm".into()))
    }

    /// Has LDK publish the last commitment of a channel that it has closed; what it has been told before it ignores.
    fn publish_commitment(&self, channel: &ChannelId) {
        match self.parts.monitor.get_monitor(*channel) {
            Ok(monitor) => {
                let parts = &self.parts;
                monitor.broadcast_latest_holder_commitment_txn(&parts.broadcaster, &parts.fees, &Logger);
            }
            Err(()) => tracing::error!(%channel, "no monitor of a channel that leaves"),
        }
    }

    /// A distribution took the leaf's place: its channels will never be on the chain.
    pub(super) fn finish_distributed(
        &mut self,
        id: &InstanceId,
        first: u32,
        (plan, number): (&ExitPlan, usize),
        plans: &[ExitPlan],
        exit: &mut StoredExit,
    ) -> Result<(), Error> {
        self.publisher.drop_all_lost(plans, &*self.parts.index)?;
        let Some(distribution) = plan.distributions.get(number) else { return Ok(()) };
        let Some(confirmed) = self.parts.index.confirmation(&distribution.txid) else { return Ok(()) };
        exit.distribution = Some(distribution.txid);
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        let leaf = factory.leaves().into_iter().find(|l| l.first == first);
        let members = leaf.map(|l| l.channels).unwrap_or_default();
        // What is still open in LDK is over.
        exit.leaving = members.iter().map(|(o, _)| *o).collect();
        let news: Vec<_> =
            members.iter().filter_map(|(_, c)| *c).filter(|c| !factory.state.left.contains(c)).collect();
        factory.state.left.extend(news);
        let channels: Vec<_> = members.iter().map(|(o, _)| channel_id(*o)).collect();
        lock(&self.parts.settled).extend(channels.iter().copied());
        if self.parts.index.depth(confirmed.height) < FINAL_DEPTH {
            exit.waits_for = format!("the distribution to be {FINAL_DEPTH} blocks deep");
            return Ok(());
        }
        // A distribution that was deep when this node first saw it leaves no other block to close them.
        self.close_leaving(id, exit);
        for channel in channels {
            mark_void(&self.parts.store, &channel, "paid out by a distribution")?;
        }
        exit.waits_for = "nothing".into();
        exit.done = true;
        Ok(())
    }
}
