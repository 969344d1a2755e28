//! What is stored of advances. The record of the creation stays as it is; each advance adds one of its own.

use std::collections::BTreeMap;

use bitcoin::{ScriptBuf, Txid};
use bolt_tlv::payload::{self, Payload};
use serde::{Deserialize, Serialize};

use super::change::reshare;
use crate::geometry;
use crate::musig::SignatureBytes;
use crate::odometer::Remaining;
use crate::plan::{index_error, LeafMember, LeafSpec};
use crate::record::{short, LspFactoryRecord, SignedNode, SignedPath, RECORD_VERSION};
use crate::refuse::clip;
use crate::transaction::SignedTx;
use crate::Error;

/// The shares of one leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafShares {
    /// Index of the leaf's first client in tree order.
    pub first: u32,
    /// Capacities of its channels in order, sat.
    pub capacities_sat: Vec<u64>,
    /// Its liquidity stock, sat.
    pub stock_sat: u64,
}

/// A complete advance as the provider stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LspAdvanceRecord {
    /// Version of the record.
    pub version: u16,
    /// The factory.
    #[serde(with = "hex::serde")]
    pub instance_id: [u8; 32],
    /// The try that succeeded.
    pub attempt: u16,
    /// The level of the node that advanced, 0 is the root.
    pub level: u32,
    /// Index of the first client below it.
    pub first: u32,
    /// One past the index of the last client below it.
    pub end: u32,
    /// The new position of every leaf below.
    pub position: u64,
    /// The shares of every leaf below, in order.
    pub leaves: Vec<LeafShares>,
    /// The scripts of the channels below, in order.
    pub channel_scripts: Vec<ScriptBuf>,
    /// The node and everything below it, level by level.
    pub nodes: Vec<SignedNode>,
    /// Ids of the outer transactions, in the order in which they were signed.
    pub outer: Vec<Txid>,
}

impl LspAdvanceRecord {
    /// The message that completes the advance at a client.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a damaged record.
    pub fn signed(&self) -> Result<payload::AdvanceSigned, Error> {
        let damaged = || Error::Mismatch { what: "stored advance" };
        let top = self.nodes.first().ok_or_else(damaged)?;
        let signature = |txid: &Txid| {
            let tx = top.txs.iter().chain(&top.distributions).find(|tx| tx.txid() == *txid);
            signature_of(tx.ok_or_else(damaged)?)
        };
        let signatures = self.outer.iter().map(signature).collect::<Result<_, _>>()?;
        Ok(payload::AdvanceSigned { instance_id: self.instance_id, attempt: self.attempt, signatures })
    }

    /// Whether the client at this place in tree order took part.
    pub fn covers(&self, index: usize) -> bool {
        short(index).is_ok_and(|index| (self.first..self.end).contains(&index))
    }

    /// Whether this message says that the client at this place in tree order has stored this advance. The caller takes
    /// it also long after the machine is gone.
    pub fn is_persisted_by(&self, index: usize, message: &payload::AdvancePersisted) -> bool {
        let same = (message.instance_id, message.attempt) == (self.instance_id, self.attempt);
        same && self.covers(index)
    }
}

/// The signature in a stored transaction.
pub(crate) fn signature_of(tx: &SignedTx) -> Result<SignatureBytes, Error> {
    let signature = tx.tx.input.first().and_then(|input| input.witness.nth(0));
    let signature = signature.and_then(|s| SignatureBytes::try_from(s).ok());
    signature.ok_or_else(|| Error::BadSignature { what: tx.kind.to_string() })
}

/// The answer to a client that says, by [`payload::AdvanceResume`], how it stands with a try whose machine is gone; none
/// if it only says that it gave nothing away. `index` is the client's place in tree order.
///
/// # Errors
/// [`Error::Mismatch`] for a damaged record.
pub fn answer_resume(
    advances: &[LspAdvanceRecord],
    index: usize,
    message: &payload::AdvanceResume,
) -> Result<Option<Payload>, Error> {
    if message.pending == 0 {
        return Ok(None);
    }
    let (instance_id, attempt) = (message.instance_id, message.attempt);
    let ended = |a: &&LspAdvanceRecord| a.instance_id == instance_id && a.attempt == attempt;
    Ok(Some(match advances.iter().find(|a| ended(a) && a.covers(index)) {
        Some(advance) => advance.signed()?.into(),
        None => abort(instance_id, attempt).into(),
    }))
}

/// Says that a try is over of which there is no record.
fn abort(instance_id: [u8; 32], attempt: u16) -> payload::AdvanceAbort {
    payload::AdvanceAbort { instance_id, attempt, code: 1, text: clip("not completed") }
}

/// A try of the provider whose position is used up: partial signatures of it may be anywhere. Stored before the first
/// message that asks for any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LspAdvanceState {
    /// Version of the record.
    pub version: u16,
    /// The factory.
    #[serde(with = "hex::serde")]
    pub instance_id: [u8; 32],
    /// The try.
    pub attempt: u16,
    /// Index of the first client below the node.
    pub first: u32,
    /// One past the index of the last one.
    pub end: u32,
    /// The position.
    pub position: u64,
}

impl LspAdvanceState {
    /// Tells a client again, after it was away, that this try is over. It answers with
    /// [`payload::AdvanceResume`] if it gave nothing away that would change its channel.
    pub fn abort(&self) -> payload::AdvanceAbort {
        abort(self.instance_id, self.attempt)
    }
}

/// A leaf as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafNow {
    /// Index of its first client in tree order.
    pub first: usize,
    /// One past the index of its last client.
    pub end: usize,
    /// Its position.
    pub updates: u64,
    /// Its members in order.
    pub members: Vec<LeafMember>,
    /// Its liquidity stock, sat.
    pub stock_sat: u64,
    /// Its channels' scripts in order.
    pub channel_scripts: Vec<ScriptBuf>,
}

impl LeafNow {
    /// The same for building transactions.
    pub(crate) fn spec(&self, stock_script: &ScriptBuf, distributed_at: u32) -> LeafSpec {
        LeafSpec {
            members: self.members.clone(),
            stock_sat: self.stock_sat,
            stock_script: stock_script.clone(),
            expiry_height: distributed_at,
        }
    }
}

/// The provider's newest complete tree: the record of the creation with all advances on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewestTree {
    record: LspFactoryRecord,
    nodes: Vec<SignedNode>,
    leaves: Vec<LeafNow>,
}

impl NewestTree {
    /// `advances` are in the order in which they were stored.
    ///
    /// # Errors
    /// [`Error::RecordVersion`] or [`Error::Mismatch`] for an advance that is not of this factory or not in order.
    pub fn new(record: &LspFactoryRecord, advances: &[LspAdvanceRecord]) -> Result<Self, Error> {
        let (plan, mut leaves) = (&record.plan, Vec::new());
        for range in geometry::nodes(&plan.params.shape, plan.members.len())? {
            if range.level != plan.params.shape.arity.len() {
                continue;
            }
            let spec = plan.leaf(range.first, range.end)?;
            let scripts = record.channel_scripts.get(range.first..range.end);
            let count = record.channel_scripts.len();
            leaves.push(LeafNow {
                first: range.first,
                end: range.end,
                updates: 0,
                members: spec.members,
                stock_sat: spec.stock_sat,
                channel_scripts: scripts.ok_or_else(|| index_error(range.first, count))?.to_vec(),
            });
        }
        let mut tree = Self { nodes: record.nodes.clone(), record: record.clone(), leaves };
        for advance in advances {
            tree.apply(advance)?;
        }
        Ok(tree)
    }

    fn apply(&mut self, advance: &LspAdvanceRecord) -> Result<(), Error> {
        if advance.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: advance.version, known: RECORD_VERSION });
        }
        let strange = || Error::Mismatch { what: "stored advance" };
        let plan = &self.record.plan;
        if advance.instance_id != plan.instance_id {
            return Err(strange());
        }
        let level = usize::try_from(advance.level).map_err(|_| strange())?;
        let shares: BTreeMap<_, _> = advance.leaves.iter().map(|leaf| (leaf.first, leaf)).collect();
        let mut scripts = advance.channel_scripts.iter();
        let mut applied = 0usize;
        for leaf in self.leaves.iter_mut().filter(|leaf| advance.covers(leaf.first)) {
            plan.params.check_advance(level, leaf.updates, advance.position)?;
            let new = shares.get(&short(leaf.first)?).ok_or_else(strange)?;
            let stock = (new.stock_sat, &plan.stock_script);
            leaf.members = reshare(&leaf.members, &new.capacities_sat, stock)?;
            leaf.stock_sat = new.stock_sat;
            leaf.updates = advance.position;
            for script in &mut leaf.channel_scripts {
                *script = scripts.next().ok_or_else(strange)?.clone();
            }
            applied = applied.saturating_add(1);
        }
        if applied != advance.leaves.len() || scripts.next().is_some() {
            return Err(strange());
        }
        let places: BTreeMap<_, _> =
            self.nodes.iter().enumerate().map(|(i, node)| ((node.level, node.first), i)).collect();
        for node in &advance.nodes {
            let place = places.get(&(node.level, node.first)).and_then(|i| self.nodes.get_mut(*i));
            *place.filter(|old| old.end == node.end).ok_or_else(strange)? = node.clone();
        }
        // The shares are those that the new leaves pay.
        let leaf_level = plan.params.shape.arity.len();
        for leaf in self.leaves.iter().filter(|leaf| advance.covers(leaf.first)) {
            let outputs = leaf.spec(&plan.stock_script, 0).outputs(&leaf.channel_scripts)?;
            let last = self.node(leaf_level, leaf.first)?.txs.last();
            let paid = last.and_then(|tx| tx.tx.output.split_last()).map(|(_, paid)| paid);
            if paid != Some(outputs.as_slice()) {
                return Err(strange());
            }
        }
        Ok(())
    }

    /// The record of the creation.
    pub fn record(&self) -> &LspFactoryRecord {
        &self.record
    }

    /// All nodes of the tree as they are signed now.
    pub fn nodes(&self) -> &[SignedNode] {
        &self.nodes
    }

    /// All leaves in tree order.
    pub fn leaves(&self) -> &[LeafNow] {
        &self.leaves
    }

    /// The leaf of the client at this place in tree order.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an index no client has.
    pub fn leaf(&self, index: usize) -> Result<&LeafNow, Error> {
        let found = self.leaves.iter().find(|leaf| (leaf.first..leaf.end).contains(&index));
        found.ok_or_else(|| index_error(index, self.record.plan.members.len()))
    }

    /// What is left of the odometer for a client's leaf.
    ///
    /// # Errors
    /// As [`NewestTree::leaf`].
    pub fn remaining(&self, index: usize) -> Result<Remaining, Error> {
        self.record.plan.params.remaining(self.leaf(index)?.updates)
    }

    /// The newest path of a client, as that client has it.
    ///
    /// # Errors
    /// As [`NewestTree::leaf`]; [`Error::Mismatch`] for a damaged record.
    pub fn leaf_path(&self, index: usize) -> Result<SignedPath, Error> {
        let (plan, leaf) = (&self.record.plan, self.leaf(index)?);
        let places = geometry::path(&plan.params.shape, plan.members.len(), index)?;
        let spec = leaf.spec(&plan.stock_script, plan.expiry_height);
        self.record.path_through(&self.nodes, &places, &spec, &leaf.channel_scripts, leaf.updates)
    }

    /// A node as it is signed now.
    pub(crate) fn node(&self, level: usize, first: usize) -> Result<&SignedNode, Error> {
        let (l, f) = (short(level)?, short(first)?);
        let found = self.nodes.iter().find(|n| n.level == l && n.first == f);
        found.ok_or(Error::Mismatch { what: "stored tree" })
    }

    /// Checks the newest path of every leaf as [`SignedPath::verify`] does.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self) -> Result<(), Error> {
        self.leaves.iter().try_for_each(|leaf| self.leaf_path(leaf.first)?.verify())
    }
}

/// The paths that a leaf had before its newest one, oldest first: each may still confirm, as long as nothing that it
/// competes with has.
///
/// # Errors
/// As [`NewestTree::new`] and [`NewestTree::leaf_path`].
pub fn superseded_paths(
    record: &LspFactoryRecord,
    advances: &[LspAdvanceRecord],
    index: usize,
) -> Result<Vec<SignedPath>, Error> {
    let mut tree = NewestTree::new(record, &[])?;
    let mut paths = Vec::new();
    for advance in advances {
        if advance.covers(index) {
            paths.push(tree.leaf_path(index)?);
        }
        tree.apply(advance)?;
    }
    Ok(paths)
}
