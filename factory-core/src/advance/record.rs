//! What is stored of advances. The record of the creation stays as it is; each advance adds one of its own.

use std::collections::BTreeMap;

use bitcoin::{ScriptBuf, Txid};
use bolt_tlv::payload::{self, Payload};
use serde::{Deserialize, Serialize};

use super::change::reshare;
use crate::faults::switch;
use crate::geometry;
use crate::musig::SignatureBytes;
use crate::odometer::Remaining;
use crate::plan::{index_error, LeafMember, LeafSpec};
use crate::record::{short, ClientFactoryRecord, LspFactoryRecord, SignedNode, SignedPath, RECORD_VERSION};
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
}

/// The signature in a stored transaction.
pub(crate) fn signature_of(tx: &SignedTx) -> Result<SignatureBytes, Error> {
    let signature = tx.tx.input.first().and_then(|input| input.witness.nth(0));
    let signature = signature.and_then(|s| SignatureBytes::try_from(s).ok());
    signature.ok_or_else(|| Error::BadSignature { what: tx.kind.to_string() })
}

/// The answer to a client that asks, by [`payload::AdvanceResume`], how a try ended whose machine is gone. `index` is the
/// client's place in tree order.
///
/// # Errors
/// [`Error::Mismatch`] for a damaged record.
pub fn answer_resume(
    advances: &[LspAdvanceRecord],
    index: usize,
    message: &payload::AdvanceResume,
) -> Result<Payload, Error> {
    let (instance_id, attempt) = (message.instance_id, message.attempt);
    let ended = |a: &&LspAdvanceRecord| a.instance_id == instance_id && a.attempt == attempt;
    Ok(match advances.iter().find(|a| ended(a) && a.covers(index)) {
        Some(advance) => advance.signed()?.into(),
        None => payload::AdvanceAbort { instance_id, attempt, code: 1, text: clip("not completed") }.into(),
    })
}

/// A try of the provider whose position is used up: a client may have everything of it but the outermost signature, or
/// has given its own. Stored before the messages that make it so.
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

/// A try that the client gave, or was about to give, its outer partial signatures for: the provider may complete it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingAdvance {
    /// The try.
    pub attempt: u16,
    /// The new path, complete but for the signatures of the outer transactions. If the provider publishes the outermost
    /// one, the client goes on from there.
    pub record: ClientFactoryRecord,
    /// Ids of the outer transactions, in the order in which they are signed.
    pub outer: Vec<Txid>,
}

impl PendingAdvance {
    /// Checks a record that was read: as [`ClientFactoryRecord::verify`], but for the outer transactions.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self) -> Result<(), Error> {
        self.record.verify_own()?;
        self.record.path.verify_but(|tx| self.outer.contains(&tx.txid()))
    }

    /// The complete record, with the outer signatures in order.
    ///
    /// # Errors
    /// [`Error::Count`] for a wrong number of them, [`Error::BadSignature`] for a wrong one.
    pub(crate) fn complete(&self, signatures: &[SignatureBytes]) -> Result<ClientFactoryRecord, Error> {
        if signatures.len() != self.outer.len() {
            let (got, expected) = (signatures.len(), self.outer.len());
            return Err(Error::Count { what: "list of signatures", got, expected });
        }
        let mut record = self.record.clone();
        for tx in record.path.path.iter_mut().chain(&mut record.path.distributions) {
            let txid = tx.txid();
            let place = self.outer.iter().position(|outer| *outer == txid);
            if let Some(signature) = place.and_then(|place| signatures.get(place)) {
                tx.set_signature(signature);
                if !switch("client.advance.signed_unchecked") {
                    tx.verify()?;
                }
            }
        }
        Ok(record)
    }
}

/// What of advances has to survive a client's restart, besides the newest complete record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAdvanceState {
    /// Version of the record.
    pub version: u16,
    /// The factory.
    #[serde(with = "hex::serde")]
    pub instance_id: [u8; 32],
    /// The try that the newest complete record is from; none if from the creation.
    pub completed: Option<u16>,
    /// Tries that the provider may complete, oldest first. Each has used up a position, so the odometer limits them.
    pub pending: Vec<PendingAdvance>,
}

impl ClientAdvanceState {
    /// That of a factory without any advance.
    pub fn new(instance_id: [u8; 32]) -> Self {
        Self { version: RECORD_VERSION, instance_id, completed: None, pending: Vec::new() }
    }

    /// Checks a state that was read: its version, and every pending try as [`PendingAdvance::verify`] does.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self) -> Result<(), Error> {
        if self.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: self.version, known: RECORD_VERSION });
        }
        self.pending.iter().try_for_each(PendingAdvance::verify)
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
