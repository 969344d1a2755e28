//! Why exits begin: looked at with every block, for every leaf.
//!
//! Nothing here waits for an event: what the chain, LDK and the records say now decides, so that an event
//! that was lost in a crash is made up for by the next block.

use factory_core::faults::switch;
use factory_core::guard::{GuardAction, GuardWait};
use lightning::ln::channel_state::ChannelDetails;
use serde_json::json;

use super::super::stored::{ExitReason, Factory, Leaf, Signed, Stage};
use super::super::Service;
use crate::error::Error;
use crate::ldk::{channel_id, InstanceId};

/// Blocks before the end of the dying period at which both sides are told, largest first.
const WARNINGS: [u32; 4] = [432, 144, 36, 6];

impl Service {
    /// Begins the exits that are due. They are stored here and run afterwards, the most urgent first.
    /// `open` are LDK's channels.
    pub(in crate::factory) fn look_for_exits(
        &mut self,
        id: &InstanceId,
        open: &[ChannelDetails],
        height: u32,
    ) -> Result<(), Error> {
        let leaves = self.factories.get(id).map(Factory::leaves).unwrap_or_default();
        for leaf in leaves {
            let Some(factory) = self.factories.get(id).filter(|f| f.state.stage == Stage::Live) else {
                return Ok(());
            };
            let Some((reason, why, client)) = self.due(factory, &leaf, open, height)? else { continue };
            let limit = self.parts.config.exit_max_fee_sat;
            self.prepare_exit(id, &leaf, client, reason, &why, limit)?;
        }
        self.warn_of_settlement(id, height)
    }

    /// The most urgent reason to bring a leaf to the chain now, and whose channel it concerns.
    fn due(
        &self,
        factory: &Factory,
        leaf: &Leaf,
        open: &[ChannelDetails],
        height: u32,
    ) -> Result<Option<(ExitReason, String, Option<bitcoin::secp256k1::PublicKey>)>, Error> {
        let there = self.is_there(factory, leaf);
        if !self.is_lsp() && !there && height >= factory.expiry_height() && !switch("client.no_expiry") {
            let why = format!("the factory's expiry height {} has come", factory.expiry_height());
            return Ok(factory.exit_due(leaf.first).then_some((ExitReason::Expiry, why, None)));
        }
        let spent = |o: &bitcoin::OutPoint| factory.spend_of(&self.parts.index, o).is_some();
        // Channels that leave were closed by this node itself.
        let leaves =
            |o: &bitcoin::OutPoint| factory.exit_under_way(leaf.first).is_some_and(|e| e.leaving.contains(o));
        for (outpoint, client) in leaf.channels.iter().filter(|(o, _)| !leaves(o)) {
            let channel = channel_id(*outpoint);
            let closed = !open.iter().any(|c| c.channel_id == channel);
            if !closed && self.parts.changes.may_leave(&channel).is_some() {
                let why = "a state from before a change of capacity is on the chain".to_owned();
                return Ok(Some((ExitReason::ChannelClosed, why, *client)));
            }
            if closed
                && !spent(outpoint)
                && !self.agreed(factory, *client)
                && !self.is_distributed(factory, leaf)
            {
                return Ok(Some((ExitReason::ChannelClosed, "the channel is closed".into(), *client)));
            }
        }
        // Once the leaf is on the chain LDK sees to it alone; but what nobody has closed by the time of
        // settlement would stay there for good.
        if there {
            let open = leaf.channels.iter().any(|(o, _)| !spent(o));
            let idle = factory.exit_under_way(leaf.first).is_none();
            let late = height >= self.settle_from(factory)? && !switch("lsp.settled_leaf.left_open");
            let due = self.is_lsp() && open && idle && late;
            let why = "channels of a leaf on the chain, closed at the end of the dying period";
            return Ok(due.then(|| (ExitReason::Settlement, why.to_owned(), None)));
        }
        if self.is_lsp() && self.is_distributed(factory, leaf) {
            let paid = "a distribution has paid the clients".to_owned();
            return Ok(factory.exit_due(leaf.first).then_some((ExitReason::Settlement, paid, None)));
        }
        for (outpoint, client) in &leaf.channels {
            if let Some(htlc) = self.parts.htlc_alarm(&channel_id(*outpoint), open, height) {
                let hash = hex::encode(htlc.payment_hash.0);
                let why = format!("the payment {hash} on the channel expires at height {}", htlc.expiry);
                return Ok(Some((ExitReason::Htlc, why, *client)));
            }
        }
        if self.is_lsp() && height >= self.settle_from(factory)? && !switch("lsp.no_settlement") {
            let why = format!("settled before the expiry height {}", factory.expiry_height());
            return Ok(Some((ExitReason::Settlement, why, None)));
        }
        // What this node has begun itself needs no guard.
        let begun = factory.exit_under_way(leaf.first).is_some();
        if !begun
            && !switch("guard.absent")
            && self.root_is_out(factory)
            && self.guard_is_called(factory, leaf, height)?
        {
            let why = "somebody has begun to publish the leaf".to_owned();
            return Ok(Some((ExitReason::Guard, why, None)));
        }
        Ok(None)
    }

    /// Whether a closed channel is accounted for by a cooperative close of the factory.
    fn agreed(&self, factory: &Factory, client: Option<bitcoin::secp256k1::PublicKey>) -> bool {
        let stored = factory.state.close.as_ref();
        match &factory.signed {
            // What was shut for a close that may still come has its balance on record.
            Signed::Lsp(_) => {
                self.is_closing(factory) || client.is_some_and(|c| factory.state.finals.contains_key(&c))
            }
            Signed::Client(_) => stored.is_some_and(|c| c.payout_script.is_some() || c.signed.is_some()),
        }
    }

    fn root_is_out(&self, factory: &Factory) -> bool {
        factory.root_txid().is_some_and(|root| self.parts.index.confirmation(&root).is_some())
    }

    /// Whether a state of the leaf is on the chain, whichever it is.
    fn is_there(&self, factory: &Factory, leaf: &Leaf) -> bool {
        let places = leaf.channels.first().map(|(o, _)| factory.places(o)).unwrap_or_default();
        places.iter().any(|o| self.parts.index.confirmation(&o.txid).is_some())
    }

    /// Whether the leaf's input was spent by something that is not on its path.
    pub(in crate::factory) fn is_distributed(&self, factory: &Factory, leaf: &Leaf) -> bool {
        let (nodes, paths) = (factory.nodes(), factory.own_paths());
        let of_leaf = nodes.iter().filter(|n| n.first == leaf.first).flat_map(|n| &n.distributions);
        let mut distributions = of_leaf.chain(paths.iter().flat_map(|p| &p.distributions));
        let confirmed = |t: &factory_core::transaction::SignedTx| {
            self.parts.index.spend(&t.parent().unwrap_or_default()).is_some_and(|s| s.txid == t.txid())
        };
        distributions.any(confirmed)
    }

    /// Whether a clock of the leaf's path runs that somebody has started.
    fn guard_is_called(&self, factory: &Factory, leaf: &Leaf, height: u32) -> Result<bool, Error> {
        let action = factory
            .followed_plan(leaf.first, &self.parts.index, height)?
            .guard_action(&*self.parts.index, height);
        Ok(match action {
            GuardAction::PublishPath { .. } => true,
            GuardAction::Wait { reason, .. } => {
                matches!(reason, GuardWait::RelativeDelay { .. } | GuardWait::Patience { .. })
            }
            _ => false,
        })
    }

    /// The height from which the LSP settles: the end of the dying period; if a cooperative close is signed,
    /// it has until the last height at which an exit can start.
    fn settle_from(&self, factory: &Factory) -> Result<u32, Error> {
        let life = factory.lifetime()?;
        let signed = factory.state.close.as_ref().is_some_and(|c| c.signed.is_some());
        Ok(if signed { life.settle_by() } else { life.dying_until() })
    }

    /// Tells that the end of the dying period comes near: the LSP settles from then on, a client's distributions
    /// pay if it does not.
    fn warn_of_settlement(&mut self, id: &InstanceId, height: u32) -> Result<(), Error> {
        let Some(factory) = self.factories.get(id) else { return Ok(()) };
        let until = factory.lifetime()?.dying_until();
        let blocks = until.saturating_sub(height);
        let Some(threshold) = WARNINGS.into_iter().rev().find(|w| blocks <= *w) else { return Ok(()) };
        if blocks == 0 || factory.state.warned_at.is_some_and(|told| told <= threshold) {
            return Ok(());
        }
        let reserve = self.exit_reserve(factory);
        let data = json!({
            "instance_id": hex::encode(id), "height": until, "blocks": blocks,
            "expiry_height": factory.expiry_height(),
            "needed_sat": reserve.needed_sat, "available_sat": reserve.available_sat,
        });
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        factory.state.warned_at = Some(threshold);
        factory.store_state(&self.parts.store)?;
        self.parts.events.push("settlement_near", data);
        Ok(())
    }
}

impl Factory {
    /// Whether a leaf has no exit under way and none that has ended for good. A guard's is neither: it may have
    /// begun before T with what cannot end in time.
    fn exit_due(&self, first: u32) -> bool {
        self.state.exits.get(&first).is_none_or(|e| e.reason == ExitReason::Guard && e.distribution.is_none())
    }
}
