//! What an advance signs anew, and in which of its two rounds. Provider and client share these functions.

use crate::geometry;
use crate::node::{Node, Signatures};
use crate::odometer::States;
use crate::params::Params;
use crate::plan::{add, check_share, check_stock, index_error, LeafMember};
use crate::transaction::{SignedTx, TreeTx};
use crate::Error;

/// The node that advances, where to, and which of its transactions are new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The level of the node, 0 is the root.
    pub level: usize,
    /// Index of the first client below it.
    pub first: usize,
    /// One past the index of the last client below it.
    pub end: usize,
    /// The new position of every leaf below.
    pub position: u64,
    /// The same, by layer.
    pub states: States,
    /// Position among the node's transactions of the outermost one that changes: a kickoff comes first.
    pub ticked: usize,
    /// Height from which the new distributions are valid, blocks.
    pub distributed_at: u32,
    /// Whether all distributions are signed anew, also those of outputs that stay. So it is wherever an update could
    /// change what somebody gets: their lock time tells the positions apart, also that of a try that failed.
    redistributed: bool,
}

impl Change {
    /// An advance of the node at `level` above client `index`, from one position to another, in a factory that
    /// expires at `expiry`.
    pub(crate) fn new(
        params: &Params,
        clients: usize,
        expiry: u32,
        (level, index): (usize, usize),
        (from, to): (u64, u64),
    ) -> Result<Self, Error> {
        let path = geometry::path(&params.shape, clients, index)?;
        let node = path.get(level).ok_or_else(|| index_error(level, path.len()))?;
        let ticked = params.check_advance(level, from, to)?.saturating_add(1);
        let states = params.states_after(to)?;
        Ok(Self {
            level,
            first: node.first,
            end: node.end,
            position: to,
            ticked,
            distributed_at: params.distribution_height(expiry, &states)?,
            states,
            redistributed: params.distribution_spread()? > 0,
        })
    }

    fn is_top(&self, node: &Node) -> bool {
        node.level == self.level
    }

    /// What of a node spends outputs that stay as they are.
    pub(crate) fn outer<'a>(&self, node: &'a Node) -> Vec<&'a TreeTx> {
        if !self.is_top(node) {
            return Vec::new();
        }
        let distributions = if self.redistributed { self.ticked.saturating_add(1) } else { 0 };
        let ticked = node.txs.iter().skip(self.ticked).take(1);
        ticked.chain(node.distributions.iter().take(distributions)).collect()
    }

    /// What of a node hangs below the outermost transaction that changes.
    pub(crate) fn inner<'a>(&self, node: &'a Node) -> Vec<&'a TreeTx> {
        let kept = if self.is_top(node) { self.ticked.saturating_add(1) } else { 0 };
        node.txs.iter().skip(kept).chain(node.distributions.iter().skip(kept)).collect()
    }

    /// How many inner and outer transactions the node that advances has, if it has as many as this in all.
    pub(crate) fn counts(&self, txs: usize, distributions: usize) -> (usize, usize) {
        let kept = self.ticked.saturating_add(1);
        let again = if self.redistributed { kept.min(distributions) } else { 0 };
        let inner = txs.saturating_sub(kept).saturating_add(distributions.saturating_sub(kept));
        (inner, again.saturating_add(usize::from(txs > self.ticked)))
    }

    /// Puts signatures into a node's transactions; what does not change comes from the node's older version. Without
    /// outer signatures the outer transactions stay unsigned.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if something that should not change does, [`Error::Empty`] for too few signatures.
    pub(crate) fn sign(
        &self,
        node: &Node,
        old: (&[SignedTx], &[SignedTx]),
        outer: &mut Option<Signatures<'_>>,
        inner: &mut Signatures<'_>,
    ) -> Result<(Vec<SignedTx>, Vec<SignedTx>), Error> {
        let mut sign = |i: usize, tx: &TreeTx, old: Option<&SignedTx>, is_outer: bool| {
            if !self.is_top(node) || i > self.ticked {
                return Ok(tx.signed(inner.next()?));
            }
            if is_outer {
                return match outer {
                    Some(outer) => Ok(tx.signed(outer.next()?)),
                    None => Ok(tx.unsigned()),
                };
            }
            let same = old.filter(|old| old.txid() == tx.txid()).cloned();
            same.ok_or(Error::Mismatch { what: "transaction that an advance leaves alone" })
        };
        let mut txs = Vec::with_capacity(node.txs.len());
        for (i, tx) in node.txs.iter().enumerate() {
            txs.push(sign(i, tx, old.0.get(i), i == self.ticked)?);
        }
        let mut distributions = Vec::with_capacity(node.distributions.len());
        for (i, tx) in node.distributions.iter().enumerate() {
            distributions.push(sign(i, tx, old.1.get(i), self.redistributed)?);
        }
        Ok((txs, distributions))
    }
}

/// Who is in a leaf, with new capacities. Everything else about the members stays.
///
/// # Errors
/// [`Error::Count`], or the rule for shares or stock that is broken.
pub(crate) fn reshare(
    old: &[LeafMember],
    capacities_sat: &[u64],
    (stock_sat, stock_script): (u64, &bitcoin::ScriptBuf),
) -> Result<Vec<LeafMember>, Error> {
    if capacities_sat.len() != old.len() {
        let (got, expected) = (capacities_sat.len(), old.len());
        return Err(Error::Count { what: "capacities of a leaf", got, expected });
    }
    check_stock(stock_sat, stock_script)?;
    let mut members = Vec::with_capacity(old.len());
    for (member, capacity_sat) in old.iter().zip(capacities_sat) {
        // What it had at the start may be more than it has room for now.
        let push_msat = member.push_msat.min(capacity_sat.saturating_mul(1000));
        let member = LeafMember { capacity_sat: *capacity_sat, push_msat, ..member.clone() };
        check_share(&member)?;
        members.push(member);
    }
    Ok(members)
}

/// Value of a leaf: its channels and its stock, sat.
pub(crate) fn leaf_value(members: &[LeafMember], stock_sat: u64) -> Result<u64, Error> {
    members.iter().try_fold(stock_sat, |sum, m| add(sum, m.capacity_sat))
}

/// Whether an advance of the leaf level may not change the capacities: the leaf is shared and a level above has DW
/// layers.
///
/// The distribution of the leaf's input has no delay, only its lock time tells an older one from a newer one, and both
/// spend the same output. Below static levels anybody can bring that output to the chain before the older one is
/// valid. Below a DW layer it may come so late that both are valid at once, and then the fee decides. An advance of the
/// upper level gives the leaf another input, so there the question does not come up.
pub(crate) fn amounts_are_fixed(params: &Params, level: usize) -> bool {
    let leaf_level = params.shape.arity.len();
    let above = params.shape.layers.iter().take(leaf_level).any(|layers| !layers.is_empty());
    level == leaf_level && above && params.shape.clients_per_leaf > 1
}

/// Whether an advance of a leaf alone may change capacities: it has a next position, that is not the last one of all, and
/// amounts may change at its level. `from` is the leaf's position, `above` the newest that was tried.
///
/// # Errors
/// [`Error::OutOfRange`] for a position that there is not.
pub fn leaf_may_change(params: &Params, from: u64, above: u64) -> Result<bool, Error> {
    let level = params.shape.arity.len();
    if amounts_are_fixed(params, level) {
        return Ok(false);
    }
    match params.next_position(level, from, above) {
        Ok(next) => params.has_next(from, next),
        Err(Error::Exhausted { .. }) => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::Network;

    use super::*;
    use crate::params::DwLayer;

    fn params(clients_per_leaf: u16, layers: &[&[u16]]) -> Params {
        let mut params = Params::default_for(4, Network::Regtest).unwrap();
        let layer = |states: &u16| DwLayer { states: *states, step: 8, base: 8 };
        params.shape.clients_per_leaf = clients_per_leaf;
        params.shape.arity = vec![2; layers.len() - 1];
        params.shape.layers = layers.iter().map(|level| level.iter().map(layer).collect()).collect();
        params
    }

    #[test]
    fn the_last_position_of_all_changes_no_capacity() {
        let one_level = params(4, &[&[3]]);
        let may = |from, above| leaf_may_change(&one_level, from, above).unwrap();
        assert!(may(0, 0));
        assert!(!may(1, 0), "position 2 is the last one");
        assert!(!may(0, 1), "a try has used up position 1");
        assert!(!may(2, 0));
        assert!(leaf_may_change(&one_level, 3, 0).is_err());
        // Above is one that begins the leaf's states anew.
        let two_levels = params(1, &[&[2], &[3]]);
        assert!(leaf_may_change(&two_levels, 1, 0).unwrap());
        assert!(!leaf_may_change(&two_levels, 2, 0).unwrap());
        let shared = params(2, &[&[2], &[3]]);
        assert!(!leaf_may_change(&shared, 0, 0).unwrap(), "a shared leaf below layers");
    }
}
