//! How long things take: the worst exit, the claim budget and the life of a factory.
//!
//! Every transaction of an exit is confirmed before the next is sent, because a version 3 package is one
//! parent and one child (BIP 431). "Worst" means: the oldest state of every DW layer, the only one that
//! exists at creation.

use crate::error::Error;
use crate::faults::switch;
use crate::params::{range, DwLayer, Params};
use crate::planner::limits;
use crate::sizes;

impl Params {
    /// Tree transactions from the root to the leaf state, both included: one of a static level, a kickoff
    /// and `m` states of a level with `m` DW layers.
    pub fn path_transactions(&self) -> u32 {
        self.shape.layers.iter().fold(0u32, |sum, layers| {
            sum.saturating_add(1).saturating_add(u32::try_from(layers.len()).unwrap_or(u32::MAX))
        })
    }

    /// Relative delays on the path in blocks, each layer in its oldest state. Saturates.
    pub fn path_delay(&self) -> u32 {
        self.shape
            .layers
            .iter()
            .flatten()
            .fold(0u32, |sum, layer| sum.saturating_add(u32::from(layer.oldest())))
    }

    /// Blocks from the decision to exit until the channel's money is spendable and final, if each
    /// confirmation takes `confirm_blocks`: all delays, every tree transaction and the commitment,
    /// `to_self_delay` and the reorganisation margin.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn worst_exit(&self, confirm_blocks: u16) -> Result<u32, Error> {
        let overflow = Error::Overflow { field: "worst exit" };
        self.path_transactions()
            .checked_add(1)
            .and_then(|txs| txs.checked_mul(confirm_blocks.into()))
            .and_then(|b| b.checked_add(self.path_delay()))
            .and_then(|b| match switch("lifetime.worst_exit") {
                true => Some(b),
                false => b.checked_add(self.to_self_delay.into()),
            })
            .and_then(|b| b.checked_add(self.reorg_margin.into()))
            .ok_or(overflow)
    }

    /// Blocks before an HTLC's expiry at which an exit must start for the HTLC to be claimed in time, if
    /// each confirmation takes `confirm_blocks`: the path, LDK's own claim buffer (within which the
    /// commitment goes out) and the reorganisation margin. `to_self_delay` runs later and is no part.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn claim_budget(&self, confirm_blocks: u16) -> Result<u32, Error> {
        self.path_transactions()
            .checked_mul(confirm_blocks.into())
            .and_then(|b| b.checked_add(self.path_delay()))
            .and_then(|b| b.checked_add(limits::LDK_CLAIM_BUFFER.into()))
            .and_then(|b| b.checked_add(self.reorg_margin.into()))
            .ok_or(Error::Overflow { field: "claim budget" })
    }

    /// The `min_final_cltv_expiry_delta` for invoices of a client, in blocks: the claim budget, LDK's
    /// grace and `patience`, the time the service provider waits for a client that went offline with a
    /// payment pending before it breaks the factory.
    ///
    /// # Errors
    /// [`Error::Limit`] if it is more than LDK lets an HTLC wait.
    pub fn final_cltv_delta(&self, patience: u16) -> Result<u16, Error> {
        let blocks = u64::from(self.claim_budget(self.confirm_blocks)?)
            .saturating_add(limits::LDK_GRACE.into())
            .saturating_add(patience.into());
        range("min_final_cltv_expiry_delta", blocks, 0, limits::LDK_CLTV_FAR_FAR_AWAY.into())?;
        u16::try_from(blocks).map_err(|_| Error::Overflow { field: "min_final_cltv_expiry_delta" })
    }

    /// `early_warning` of bLIP-56 in blocks: a node exits this long before an HTLC expires. The claim
    /// budget at the configured confirmation time.
    ///
    /// # Errors
    /// [`Error::Overflow`] if it does not fit the field's 16 bits.
    pub fn early_warning(&self) -> Result<u16, Error> {
        u16::try_from(self.claim_budget(self.confirm_blocks)?)
            .map_err(|_| Error::Overflow { field: "early warning time (16 bits)" })
    }

    /// Updates that one leaf can make before the DW layers of its own level are exhausted.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn leaf_updates(&self) -> Result<u64, Error> {
        states(self.shape.layers.last().into_iter().flatten())
    }

    /// Updates of one path if the layers of all its levels count as one odometer.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn path_updates(&self) -> Result<u64, Error> {
        states(self.shape.layers.iter().flatten())
    }

    /// How much earlier than the factory's expiry the last distribution can become valid, in blocks.
    ///
    /// If an update can change a client's capacity (several clients a leaf, or DW layers above the
    /// leaves), it signs new distributions whose lock time is one step earlier than the ones they
    /// replace. With one client a leaf and static levels above there is nothing to replace: 0.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn distribution_spread(&self) -> Result<u32, Error> {
        let interior_layers = self.shape.layers.iter().take(self.shape.arity.len()).any(|l| !l.is_empty());
        if self.shape.clients_per_leaf <= 1 && !interior_layers {
            return Ok(0);
        }
        self.path_updates()?
            .checked_mul(self.distribution_step().into())
            .and_then(|b| u32::try_from(b).ok())
            .ok_or(Error::Overflow { field: "distribution lock times" })
    }

    /// Blocks between the lock times of successive distributions: the widest race window of the tree.
    pub fn distribution_step(&self) -> u16 {
        self.shape.layers.iter().flatten().map(|l| l.step).max().unwrap_or(0)
    }

    /// Blocks from "the newest state is valid" to "the one before it is": the least step of any layer, 0
    /// without layers.
    pub fn race_window(&self) -> u16 {
        self.shape.layers.iter().flatten().map(|l| l.step).min().unwrap_or(0)
    }

    /// Blocks from a kickoff's confirmation to the first superseded state at the worst moment, when the
    /// newest states have no steps left; the least of all levels that have layers, 0 without any.
    pub fn notice(&self) -> u16 {
        let of_level = |layers: &Vec<DwLayer>| {
            let base = layers.iter().fold(0u16, |sum, l| sum.saturating_add(l.base));
            layers.iter().map(|l| l.step).min().map(|step| base.saturating_add(step))
        };
        self.shape.layers.iter().filter_map(of_level).min().unwrap_or(0)
    }

    /// Least number of blocks from a factory's birth to its expiry: active and dying period, the worst
    /// exit, the spread of distribution lock times and the margin.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn lifetime(&self) -> Result<u32, Error> {
        self.active
            .checked_add(self.dying)
            .and_then(|b| b.checked_add(self.margin))
            .and_then(|b| b.checked_add(self.worst_exit(self.confirm_blocks).ok()?))
            .and_then(|b| b.checked_add(self.distribution_spread().ok()?))
            .ok_or(Error::Overflow { field: "lifetime" })
    }

    pub(crate) fn validate_exit(&self) -> Result<(), Error> {
        let blocks = self.worst_exit(self.confirm_blocks)?;
        let limit = u32::from(limits::MAX_EXIT);
        if blocks > limit {
            return Err(Error::ExitTooLong { blocks, limit });
        }
        check_route(self.final_cltv_delta(0)?, limits::LDK_MIN_CLTV_EXPIRY_DELTA)?;
        // Forces every derived figure once, so that none can fail later.
        self.early_warning()?;
        self.path_updates()?;
        range("lifetime", self.lifetime()?.into(), 1, limits::LOCKTIME_THRESHOLD.into())
    }

    pub(crate) fn validate_sizes(&self, clients: usize) -> Result<(), Error> {
        for (level, node) in sizes::widest_outputs(&self.shape, clients)?.into_iter().enumerate() {
            let field = if level < self.shape.arity.len() { "interior transaction" } else { "leaf state" };
            let vbytes = sizes::tree_tx(node).vbytes();
            if vbytes > limits::TRUC_MAX_VBYTES {
                return Err(Error::TransactionTooLarge { field, vbytes, limit: limits::TRUC_MAX_VBYTES });
            }
        }
        Ok(())
    }
}

/// Refuses a final delta after which a default sender has less than `own_hop` blocks left, the delta of
/// the service provider's own hop. Returns what is left after that hop.
pub(crate) fn check_route(final_delta: u16, own_hop: u16) -> Result<u16, Error> {
    limits::LDK_SENDER_DEFAULT.checked_sub(final_delta).and_then(|left| left.checked_sub(own_hop)).ok_or(
        Error::NoRouteLeft {
            final_delta: final_delta.into(),
            needed: own_hop.into(),
            limit: limits::LDK_SENDER_DEFAULT.into(),
        },
    )
}

fn states<'a>(mut layers: impl Iterator<Item = &'a DwLayer>) -> Result<u64, Error> {
    layers
        .try_fold(1u64, |product, layer| product.checked_mul(layer.states.into()))
        .and_then(|product| product.checked_sub(1))
        .ok_or(Error::Overflow { field: "number of updates" })
}
