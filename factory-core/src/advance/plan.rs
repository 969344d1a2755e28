//! The provider's side of an advance before anything is signed: which position, which amounts, which transactions.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, TxOut};
use bolt_tlv::payload;

use super::change::{amounts_are_fixed, leaf_value, reshare, Change};
use super::lsp::AdvanceRequest;
use super::record::{LeafNow, LeafShares, LspAdvanceRecord, LspAdvanceState, NewestTree};
use crate::ceremony::signing::Job;
use crate::geometry::{self, NodeRange};
use crate::musig::SignatureBytes;
use crate::node::{Node, Signatures};
use crate::plan::{index_error, LeafSpec};
use crate::record::{short, SignedNode, RECORD_VERSION};
use crate::tree::Skeleton;
use crate::Error;

/// An advance that keeps every rule.
pub(super) struct Planned {
    pub tree: NewestTree,
    pub change: Change,
    keys: Vec<PublicKey>,
    skeleton: Skeleton,
    /// The leaves below the node as they shall be; the scripts are still the old ones.
    pub leaves: Vec<LeafNow>,
}

impl Planned {
    /// Plans an advance. `burnt` are the provider's tries whose positions are used up, `least_sat` what the channel of
    /// a client (by its place in tree order) needs.
    ///
    /// # Errors
    /// [`Error::Exhausted`] if there is no newer position; else the rule that is broken.
    pub(super) fn new(
        tree: NewestTree,
        burnt: &[LspAdvanceState],
        request: &AdvanceRequest,
        least_sat: &BTreeMap<usize, u64>,
    ) -> Result<Self, Error> {
        let plan = &tree.record().plan;
        let (params, clients) = (&plan.params, plan.members.len());
        let places = geometry::path(&params.shape, clients, request.client)?;
        let top = places.get(request.level).ok_or_else(|| index_error(request.level, places.len()))?;
        let below = |leaf: &&LeafNow| leaf.first >= top.first && leaf.end <= top.end;
        let mut leaves: Vec<_> = tree.leaves().iter().filter(below).cloned().collect();
        let from = leaves.iter().map(|leaf| leaf.updates).max().unwrap_or(0);
        let ours = |b: &&LspAdvanceState| {
            let range = (short(top.first), short(top.end));
            b.instance_id == plan.instance_id
                && range.1.is_ok_and(|e| b.first < e)
                && range.0.is_ok_and(|f| b.end > f)
        };
        let above = burnt.iter().filter(ours).map(|b| b.position).max().unwrap_or(0);
        let position = params.next_position(request.level, from, above)?;
        let place = (request.level, request.client);
        let change = Change::new(params, clients, plan.expiry_height, place, (from, position))?;
        let mut shares: BTreeMap<_, _> = request.changes.iter().map(|leaf| (leaf.first, leaf)).collect();
        let last = !params.has_next(from, position)?;
        for leaf in &mut leaves {
            let Some(new) = shares.remove(&short(leaf.first)?) else { continue };
            let stock = (new.stock_sat, &plan.stock_script);
            let members = reshare(&leaf.members, &new.capacities_sat, stock)?;
            if members != leaf.members && amounts_are_fixed(params, request.level) {
                return Err(Error::SharedLeaf);
            }
            if members != leaf.members && last {
                return Err(Error::LastPosition { position });
            }
            (leaf.members, leaf.stock_sat) = (members, new.stock_sat);
        }
        if let Some((first, _)) = shares.pop_first() {
            let first = usize::try_from(first).unwrap_or(usize::MAX);
            return Err(index_error(first, clients));
        }
        for leaf in &mut leaves {
            leaf.updates = position;
            for (index, member) in (leaf.first..leaf.end).zip(&leaf.members) {
                let min = least_sat.get(&index).copied().unwrap_or(0);
                crate::params::range("capacity_sat", member.capacity_sat, min, u64::MAX)?;
            }
        }
        let keys = plan.keys();
        let value = |range: &NodeRange| {
            let leaf = leaves.iter().find(|leaf| leaf.first == range.first);
            let leaf = leaf.ok_or_else(|| index_error(range.first, clients))?;
            leaf_value(&leaf.members, leaf.stock_sat)
        };
        let skeleton = Skeleton::new(params, &keys, (change.level, change.first), value)?;
        let planned = Self { change, keys, skeleton, leaves, tree };
        let (given, wanted) = (planned.spends()?, planned.skeleton.output()?);
        if given != wanted {
            let (got, expected) = (wanted.value.to_sat(), given.value.to_sat());
            return Err(Error::Value { what: "sum of the new amounts", got, expected });
        }
        Ok(planned)
    }

    /// The output that the node spends.
    fn spends(&self) -> Result<TxOut, Error> {
        let node = self.tree.node(self.change.level, self.change.first)?;
        node.txs.first().map(|tx| tx.spends.clone()).ok_or(Error::Mismatch { what: "stored tree" })
    }

    /// The proposal to the client at this place.
    pub(super) fn proposal(
        &self,
        attempt: u16,
        index: usize,
        reason: u16,
    ) -> Result<payload::AdvancePropose, Error> {
        let (plan, change) = (&self.tree.record().plan, &self.change);
        let keys = self.keys.get(change.first.saturating_add(1)..change.end.saturating_add(1));
        let leaf = self.leaf(index)?;
        Ok(payload::AdvancePropose {
            instance_id: plan.instance_id,
            attempt,
            level: u16::try_from(change.level).map_err(|_| Error::Overflow { field: "level" })?,
            from: self.tree.leaf(index)?.updates,
            position: change.position,
            keys: keys.ok_or_else(|| index_error(change.end, self.keys.len()))?.to_vec(),
            capacities_sat: leaf.members.iter().map(|m| m.capacity_sat).collect(),
            stock_sat: leaf.stock_sat,
            reason,
        })
    }

    /// The leaf of a client as it shall be.
    pub(super) fn leaf(&self, index: usize) -> Result<&LeafNow, Error> {
        let found = self.leaves.iter().find(|leaf| (leaf.first..leaf.end).contains(&index));
        found.ok_or_else(|| index_error(index, self.change.end))
    }

    /// Builds the transactions, with the scripts of all channels below the node, in tree order.
    pub(super) fn build(mut self, scripts: Vec<ScriptBuf>) -> Result<Built, Error> {
        let mut scripts = scripts.into_iter();
        for script in self.leaves.iter_mut().flat_map(|leaf| &mut leaf.channel_scripts) {
            *script = scripts.next().ok_or(Error::Empty { what: "channel scripts" })?;
        }
        let plan = &self.tree.record().plan;
        let top = self.tree.node(self.change.level, self.change.first)?;
        let input = top.txs.first().and_then(|tx| tx.parent());
        let input = input.ok_or(Error::Mismatch { what: "stored tree" })?;
        let leaf = |range: &NodeRange| -> Result<(LeafSpec, Vec<ScriptBuf>), Error> {
            let leaf = self.leaf(range.first)?;
            Ok((leaf.spec(&plan.stock_script, self.change.distributed_at), leaf.channel_scripts.clone()))
        };
        let states = &self.change.states;
        let nodes = self.skeleton.build(&plan.params, &self.keys, input, states, leaf)?;
        Ok(Built { planned: self, nodes })
    }
}

/// An advance whose transactions are known.
pub(super) struct Built {
    planned: Planned,
    nodes: Vec<Node>,
}

impl Built {
    pub(super) fn change(&self) -> &Change {
        &self.planned.change
    }

    /// The outer sessions: all of one node.
    pub(super) fn outer(&self) -> Vec<Job<'_>> {
        let job = |node| Job { node, txs: self.change().outer(node), offset: 0 };
        self.nodes.iter().take(1).map(job).collect()
    }

    /// The inner sessions, by node; a node may have none. All nodes of a level have equally many.
    pub(super) fn inner(&self) -> Vec<Job<'_>> {
        let (mut offset, mut level, mut count) = (0usize, self.change().level, 0usize);
        let mut jobs = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let txs = self.change().inner(node);
            if node.level != level {
                offset = offset.saturating_add(count);
                level = node.level;
            }
            count = txs.len();
            jobs.push(Job { node, txs, offset });
        }
        jobs
    }

    /// Positions of the nodes on the path of the client at this place, from the top one on.
    pub(super) fn path(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        let above = move |node: &Node| (node.first..node.end).contains(&index);
        self.nodes.iter().enumerate().filter(move |(_, node)| above(node)).map(|(i, _)| i)
    }

    /// Number of inner and outer sessions of every client.
    pub(super) fn session_counts(&self) -> (usize, usize) {
        let inner = self.inner();
        let at = |i: usize| inner.get(i).map_or(0, |job| job.txs.len());
        let of_path = self.path(self.change().first).fold(0usize, |sum, i| sum.saturating_add(at(i)));
        (of_path, self.outer().iter().map(|job| job.txs.len()).sum())
    }

    /// What the client at this place has to know of the new tree.
    pub(super) fn tree_message(&self, attempt: u16, index: usize) -> Result<payload::AdvanceTree, Error> {
        let plan = &self.planned.tree.record().plan;
        let mut levels = Vec::new();
        for node in self.path(index).filter_map(|i| self.nodes.get(i)) {
            if node.level == plan.params.shape.arity.len() {
                continue;
            }
            let outputs = node.txs.last().map(|tx| tx.tx.output.as_slice()).unwrap_or_default();
            // All but the anchor, which is the last.
            let children = outputs.split_last().map(|(_, children)| children).unwrap_or_default();
            levels.push(children.iter().map(|o| (o.value.to_sat(), o.script_pubkey.clone())).collect());
        }
        let channel_scripts = self.planned.leaf(index)?.channel_scripts.clone();
        Ok(payload::AdvanceTree { instance_id: plan.instance_id, attempt, levels, channel_scripts })
    }

    /// Where the channel of the client at this place is going to be.
    pub(super) fn channel(&self, index: usize) -> Result<(OutPoint, TxOut), Error> {
        let leaf = self.path(index).last().and_then(|i| self.nodes.get(i));
        let leaf = leaf.ok_or_else(|| index_error(index, self.change().end))?;
        let place = index.saturating_sub(leaf.first);
        let output = leaf.txs.last().and_then(|tx| tx.tx.output.get(place)).cloned();
        Ok((leaf.child_outpoint(place)?, output.ok_or_else(|| index_error(place, leaf.end))?))
    }

    /// The mark that this position is used up.
    pub(super) fn mark(&self, attempt: u16) -> Result<LspAdvanceState, Error> {
        Ok(LspAdvanceState {
            version: RECORD_VERSION,
            instance_id: self.planned.tree.record().plan.instance_id,
            attempt,
            first: short(self.change().first)?,
            end: short(self.change().end)?,
            position: self.change().position,
        })
    }

    /// The record of the complete advance. The signatures are those of [`Built::inner`], by node, and of
    /// [`Built::outer`].
    pub(super) fn record(
        &self,
        attempt: u16,
        inner: &[Vec<SignatureBytes>],
        outer: &[SignatureBytes],
    ) -> Result<LspAdvanceRecord, Error> {
        let (change, tree) = (self.change(), &self.planned.tree);
        let old = tree.node(change.level, change.first)?;
        let mut nodes = Vec::with_capacity(self.nodes.len());
        let outer_ids: Vec<_> = self.nodes.first().map(|top| change.outer(top)).unwrap_or_default();
        let mut outer = Some(Signatures::new(outer, outer_ids.len())?);
        for (node, inner) in self.nodes.iter().zip(inner) {
            let mut inner = Signatures::new(inner, change.inner(node).len())?;
            let old = (old.txs.as_slice(), old.distributions.as_slice());
            let (txs, distributions) = change.sign(node, old, &mut outer, &mut inner)?;
            let (level, first, end) = (short(node.level)?, short(node.first)?, short(node.end)?);
            nodes.push(SignedNode { level, first, end, txs, distributions });
        }
        let shares = |leaf: &LeafNow| {
            let capacities_sat = leaf.members.iter().map(|m| m.capacity_sat).collect();
            Ok(LeafShares { first: short(leaf.first)?, capacities_sat, stock_sat: leaf.stock_sat })
        };
        let leaves = &self.planned.leaves;
        Ok(LspAdvanceRecord {
            version: RECORD_VERSION,
            instance_id: tree.record().plan.instance_id,
            attempt,
            level: short(change.level)?,
            first: short(change.first)?,
            end: short(change.end)?,
            position: change.position,
            leaves: leaves.iter().map(shares).collect::<Result<_, Error>>()?,
            channel_scripts: leaves.iter().flat_map(|leaf| leaf.channel_scripts.clone()).collect(),
            nodes,
            outer: outer_ids.iter().map(|tx| tx.txid()).collect(),
        })
    }
}
