//! What is stored of a factory's advances: beside the creation's record, which never changes.
//!
//! Each complete advance is a record of its own under the number of its try: the provider's holds what was signed
//! anew, a client's its whole new path. What a failed try leaves behind, and the highest number of any try, are in one
//! small record. A channel keeps its name, the outpoint that it was born with; where it is on the chain follows from
//! the path that confirms.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, Transaction, Txid};
use factory_core::advance::{
    superseded_paths, ClientAdvanceState, LeafPaths, LspAdvanceRecord, LspAdvanceState, NewestTree,
};
use factory_core::exit::{ChainView, ExitAction, ExitPlan, ExitStep};
use factory_core::record::{ClientFactoryRecord, SignedNode, SignedPath};
use factory_core::transaction::TxKind;
use lightning::util::persist::KVStoreSync;
use serde::{Deserialize, Serialize};

use super::stored::{Factory, Signed};
use crate::chain::{ChainIndex, Spend};
use crate::error::Error;
use crate::store::{records, Store};

const ADVANCES: &str = "factory_advances";
const MARKS: &str = "factory_advance_marks";
const VERSION: u32 = 1;

/// What is left of tries, complete or not.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Marks {
    /// The highest number of a try (LSP).
    #[serde(default)]
    pub(crate) attempts: u16,
    /// Tries whose positions are used up (LSP).
    #[serde(default)]
    pub(crate) burnt: Vec<LspAdvanceState>,
    /// The machine's own state (client).
    #[serde(default)]
    pub(crate) client: Option<ClientAdvanceState>,
}

/// The advances of one factory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Advances {
    /// Complete ones, by their try (LSP).
    pub(crate) lsp: Vec<LspAdvanceRecord>,
    /// The newest tree; none without advances (LSP).
    tree: Option<Box<NewestTree>>,
    /// Where channels have been since, or might be, by the outpoint that they were born with; of the LSP's newest last.
    places: BTreeMap<OutPoint, Vec<OutPoint>>,
    /// Complete records after the creation's, oldest first (client).
    pub(crate) client: Vec<ClientFactoryRecord>,
    /// What tries have left.
    pub(crate) marks: Marks,
}

/// Where an advance is stored: under the factory's name and the number of the try.
fn key(id: &[u8; 32], attempt: u16) -> String {
    format!("{}_{attempt:05}", hex::encode(id))
}

/// The factory's name in a key.
fn owner(key: &str) -> &str {
    key.split('_').next().unwrap_or(key)
}

/// The outpoint of a channel in a path, by its place in the leaf.
fn place(path: &SignedPath, vout: u32) -> Option<OutPoint> {
    path.path.last().map(|tx| OutPoint { txid: tx.txid(), vout })
}

impl Advances {
    fn rebuild(&mut self, signed: &Signed) -> Result<(), Error> {
        self.tree = match signed {
            Signed::Lsp(record) if !self.lsp.is_empty() => {
                Some(Box::new(NewestTree::new(record, &self.lsp)?))
            }
            _ => None,
        };
        self.places.clear();
        match signed {
            Signed::Lsp(record) => {
                let leaf = |n: &&SignedNode| !n.distributions.is_empty();
                let last = |n: &SignedNode| n.txs.last().map(|tx| tx.txid());
                for node in self.lsp.iter().flat_map(|a| &a.nodes).filter(leaf) {
                    let born = record.nodes.iter().filter(leaf).find(|n| n.first == node.first);
                    let (Some(born), Some(now)) = (born.and_then(last), last(node)) else { continue };
                    for vout in 0..node.end.saturating_sub(node.first) {
                        let channel = OutPoint { txid: born, vout };
                        self.places.entry(channel).or_default().push(OutPoint { txid: now, vout });
                    }
                }
            }
            Signed::Client(record) => {
                let pending = self.marks.client.iter().flat_map(|state| &state.pending).map(|p| &p.record);
                let Some(channel) = record.channel().map(|c| c.outpoint) else { return Ok(()) };
                let others = self.client.iter().chain(pending).filter_map(|r| place(&r.path, channel.vout));
                self.places.insert(channel, others.collect());
            }
        }
        Ok(())
    }

    /// Checks what was read, as the creation's record is checked.
    fn check(&self, signed: &Signed) -> Result<(), Error> {
        if let Some(tree) = &self.tree {
            tree.verify()?;
        }
        for record in &self.client {
            record.verify()?;
        }
        if let (Some(state), Signed::Client(born)) = (&self.marks.client, signed) {
            state.verify(self.client.last().unwrap_or(born))?;
        }
        Ok(())
    }
}

/// Reads the advances of these factories.
///
/// # Errors
/// [`Error::Store`]; [`Error::Corrupt`] naming a record that does not hold, or whose factory is not there.
pub(super) fn load(store: &Store, factories: &mut [Factory]) -> Result<(), Error> {
    let names: BTreeMap<String, usize> =
        factories.iter().enumerate().map(|(i, f)| (hex::encode(f.id()), i)).collect();
    let mut keys = store.list(ADVANCES, "").map_err(|e| Error::Store(e.to_string()))?;
    keys.sort();
    for key in keys {
        let corrupt =
            |reason: &str| Error::Corrupt { key: format!("{ADVANCES}/{key}"), reason: reason.into() };
        let place = names.get(owner(&key)).ok_or_else(|| corrupt("its factory is not there"))?;
        let Some(factory) = factories.get_mut(*place) else { continue };
        let gone = || corrupt("gone while it was read");
        match &factory.signed {
            Signed::Lsp(_) => {
                let record = records::get(store, ADVANCES, &key, VERSION)?.ok_or_else(gone)?;
                factory.advances.lsp.push(record);
            }
            Signed::Client(_) => {
                let record = records::get(store, ADVANCES, &key, VERSION)?.ok_or_else(gone)?;
                factory.advances.client.push(record);
            }
        }
    }
    for (key, marks) in records::all::<Marks>(store, MARKS, VERSION)? {
        let corrupt = |reason: String| Error::Corrupt { key: format!("{MARKS}/{key}"), reason };
        let place = names.get(&key).ok_or_else(|| corrupt("its factory is not there".into()))?;
        if let Some(factory) = factories.get_mut(*place) {
            factory.advances.marks = marks;
        }
    }
    for factory in factories {
        let name = hex::encode(factory.id());
        let corrupt = |e: Error| Error::Corrupt { key: format!("{ADVANCES}/{name}"), reason: e.to_string() };
        factory.advances.rebuild(&factory.signed).map_err(corrupt)?;
        factory.advances.check(&factory.signed).map_err(corrupt)?;
    }
    Ok(())
}

impl Factory {
    /// Stores marks; in memory they change only if that succeeds.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn mark(&mut self, store: &Store, change: impl FnOnce(&mut Marks)) -> Result<(), Error> {
        let mut marks = self.advances.marks.clone();
        change(&mut marks);
        records::put(store, MARKS, &hex::encode(self.id()), VERSION, &marks)?;
        self.advances.marks = marks;
        match self.signed {
            // A pending try is a place where the channel might be.
            Signed::Client(_) => self.advances.rebuild(&self.signed),
            Signed::Lsp(_) => Ok(()),
        }
    }

    /// Stores a complete advance (LSP).
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Factory`] for a record that does not fit.
    pub(super) fn add_advance(&mut self, store: &Store, record: LspAdvanceRecord) -> Result<(), Error> {
        let mut advances = self.advances.clone();
        advances.lsp.push(record.clone());
        advances.rebuild(&self.signed)?;
        records::put(store, ADVANCES, &key(&self.id(), record.attempt), VERSION, &record)?;
        self.advances = advances;
        Ok(())
    }

    /// Stores the complete record of an advance (client).
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn add_record(
        &mut self,
        store: &Store,
        attempt: u16,
        record: ClientFactoryRecord,
    ) -> Result<(), Error> {
        records::put(store, ADVANCES, &key(&self.id(), attempt), VERSION, &record)?;
        self.advances.client.push(record);
        self.advances.rebuild(&self.signed)
    }

    /// The newest complete record (client).
    pub(crate) fn newest_record(&self) -> Option<&ClientFactoryRecord> {
        match &self.signed {
            Signed::Client(record) => Some(self.advances.client.last().unwrap_or(record)),
            Signed::Lsp(_) => None,
        }
    }

    /// The newest signed path of a leaf, by its first client.
    ///
    /// # Errors
    /// [`Error::Factory`] for a leaf that is not there.
    pub(crate) fn leaf_path(&self, first: u32) -> Result<SignedPath, Error> {
        let index = usize::try_from(first).unwrap_or(usize::MAX);
        Ok(match (&self.signed, &self.advances.tree) {
            (Signed::Lsp(_), Some(tree)) => tree.leaf_path(index)?,
            (Signed::Lsp(r), None) => r.leaf_path(index)?,
            (Signed::Client(r), _) => self.newest_record().map_or_else(|| r.path.clone(), |r| r.path.clone()),
        })
    }

    /// The path that a leaf was born with.
    ///
    /// # Errors
    /// As [`Self::leaf_path`].
    fn first_path(&self, first: u32) -> Result<SignedPath, Error> {
        Ok(match &self.signed {
            Signed::Lsp(r) => r.leaf_path(usize::try_from(first).unwrap_or(usize::MAX))?,
            Signed::Client(r) => r.path.clone(),
        })
    }

    /// Paths of a leaf other than the newest that might confirm: superseded ones, and what is pending at a client.
    ///
    /// # Errors
    /// As [`Self::leaf_path`].
    pub(crate) fn other_paths(&self, first: u32) -> Result<Vec<SignedPath>, Error> {
        Ok(match &self.signed {
            Signed::Lsp(_) if self.advances.lsp.is_empty() => Vec::new(),
            Signed::Lsp(r) => {
                superseded_paths(r, &self.advances.lsp, usize::try_from(first).unwrap_or(usize::MAX))?
            }
            Signed::Client(r) => {
                let newer = self.advances.client.iter().map(|r| &r.path);
                let mut all: Vec<_> = std::iter::once(&r.path).chain(newer).cloned().collect();
                all.pop();
                let pending = self.advances.marks.client.iter().flat_map(|state| &state.pending);
                all.extend(pending.map(|p| p.record.path.clone()));
                all
            }
        })
    }

    /// How many paths of a leaf have been superseded.
    pub(crate) fn superseded(&self, first: u32) -> usize {
        let index = usize::try_from(first).unwrap_or(usize::MAX);
        match &self.signed {
            Signed::Lsp(_) => self.advances.lsp.iter().filter(|a| a.covers(index)).count(),
            Signed::Client(_) => self.advances.client.len(),
        }
    }

    /// The steps of a leaf's exit over its newest path, by its first client.
    ///
    /// # Errors
    /// As [`Self::leaf_path`].
    pub(crate) fn exit_plan(&self, first: u32) -> Result<ExitPlan, Error> {
        Ok(self.leaf_path(first)?.exit_plan()?)
    }

    /// An output of a leaf's newest path whose spend means that a newer state would come too late: a clock of the path
    /// runs, or something that is not of the path has taken its place. Transactions of levels without DW layers start no
    /// clock: whatever others have published of them, the leaf may still get newer states.
    ///
    /// # Errors
    /// As [`Self::leaf_path`].
    pub(crate) fn begun(&self, first: u32, view: &dyn ChainView) -> Result<Option<OutPoint>, Error> {
        let begun = |step: &&ExitStep| {
            let starts_none = matches!(step.kind, TxKind::Static { .. });
            view.spent_by(&step.parent).is_some_and(|by| by != step.txid || !starts_none)
        };
        Ok(self.exit_plan(first)?.steps.iter().find(begun).map(|step| step.parent))
    }

    /// The plans of all paths of a leaf that might confirm, the newest first.
    ///
    /// # Errors
    /// As [`Self::leaf_path`].
    pub(crate) fn plans(&self, first: u32) -> Result<Vec<ExitPlan>, Error> {
        let mut plans = vec![self.exit_plan(first)?];
        for path in self.other_paths(first)? {
            plans.push(path.exit_plan()?);
        }
        Ok(plans)
    }

    /// The exit that is to be followed: over the newest path, or over another one that has won on the chain.
    ///
    /// # Errors
    /// As [`Self::leaf_path`].
    pub(crate) fn followed_plan(
        &self,
        first: u32,
        index: &ChainIndex,
        height: u32,
    ) -> Result<ExitPlan, Error> {
        // Nearly always the newest path is the one, and the others need not be put together.
        let newest = self.exit_plan(first)?;
        if !matches!(newest.next_action(index, height), ExitAction::Blocked { .. }) {
            return Ok(newest);
        }
        let others = self.other_paths(first)?;
        let paths = LeafPaths::new(&self.leaf_path(first)?, &others)?;
        Ok(paths.followed(index, height).1.clone())
    }

    /// Nodes of the tree as they were signed at the creation and since (LSP).
    pub(super) fn nodes(&self) -> Vec<&SignedNode> {
        match &self.signed {
            Signed::Lsp(r) => r.nodes.iter().chain(self.advances.lsp.iter().flat_map(|a| &a.nodes)).collect(),
            Signed::Client(_) => Vec::new(),
        }
    }

    /// Nodes of the tree as they are now (LSP).
    pub(super) fn newest_nodes(&self) -> &[SignedNode] {
        match (&self.signed, &self.advances.tree) {
            (Signed::Lsp(_), Some(tree)) => tree.nodes(),
            (Signed::Lsp(r), None) => &r.nodes,
            (Signed::Client(_), _) => &[],
        }
    }

    /// Paths since the creation, newest last, pending tries included (client).
    pub(super) fn own_paths(&self) -> Vec<&SignedPath> {
        match &self.signed {
            Signed::Lsp(_) => Vec::new(),
            Signed::Client(r) => {
                let pending = self.advances.marks.client.iter().flat_map(|state| &state.pending);
                let newer = self.advances.client.iter().chain(pending.map(|p| &p.record));
                std::iter::once(&r.path).chain(newer.map(|r| &r.path)).collect()
            }
        }
    }

    /// Ids of every transaction of the tree that might confirm.
    pub(super) fn tree_txids(&self) -> Vec<Txid> {
        let nodes = self.nodes();
        let of_nodes = nodes.iter().flat_map(|n| n.txs.iter().chain(&n.distributions));
        let paths = self.own_paths();
        let of_paths = paths.iter().flat_map(|p| p.path.iter().chain(&p.distributions));
        let mut all: Vec<Txid> = of_nodes.chain(of_paths).map(|t| t.txid()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Outpoints inside the tree.
    pub(super) fn tree_outpoints(&self) -> Vec<OutPoint> {
        let nodes = self.nodes();
        let paths = self.own_paths();
        let txs = nodes.iter().flat_map(|n| &n.txs).chain(paths.iter().flat_map(|p| &p.path));
        let mut all: Vec<OutPoint> = txs.filter_map(|t| t.parent()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Where a channel may be on the chain; it is known by the outpoint that it was born with, which comes first.
    pub(crate) fn places(&self, channel: &OutPoint) -> Vec<OutPoint> {
        let others = self.advances.places.get(channel).into_iter().flatten();
        std::iter::once(channel).chain(others).copied().collect()
    }

    /// The confirmed spend of a channel, wherever it is on the chain.
    pub(crate) fn spend_of(&self, index: &ChainIndex, channel: &OutPoint) -> Option<Spend> {
        self.places(channel).iter().find_map(|place| index.spend(place))
    }

    /// Where a channel is by the newest complete path.
    pub(crate) fn newest_place(&self, channel: &OutPoint) -> OutPoint {
        let newest = match &self.signed {
            Signed::Lsp(_) => self.advances.places.get(channel).and_then(|places| places.last()).copied(),
            Signed::Client(_) => self.newest_record().and_then(|r| place(&r.path, channel.vout)),
        };
        newest.unwrap_or(*channel)
    }

    /// The transaction that a channel was born with, complete.
    ///
    /// # Errors
    /// As [`Self::leaf_path`].
    pub(super) fn creation_of(&self, channel: &OutPoint) -> Result<Transaction, Error> {
        let missing = || Error::not_found(format!("channel on {channel}"));
        let leaf = self.leaf_of(channel).ok_or_else(missing)?;
        let path = self.first_path(leaf.first)?;
        let last = path.path.last().filter(|tx| tx.txid() == channel.txid);
        last.map(|tx| tx.tx.clone()).ok_or_else(missing)
    }

    /// The capacity of a channel by the newest complete state, sat.
    ///
    /// # Errors
    /// As [`Self::leaf_path`].
    pub(crate) fn capacity_of(&self, channel: &OutPoint) -> Result<u64, Error> {
        let missing = || Error::not_found(format!("channel on {channel}"));
        let path = self.leaf_path(self.leaf_of(channel).ok_or_else(missing)?.first)?;
        let share = path.leaf.get(usize::try_from(channel.vout).unwrap_or(usize::MAX));
        share.map(|c| c.share.capacity_sat).ok_or_else(missing)
    }

    /// The newest try of a leaf whose position is used up, complete or not (LSP).
    pub(super) fn tried(&self, first: u32) -> Option<&LspAdvanceState> {
        let burnt = self.advances.marks.burnt.iter();
        burnt.filter(|b| (b.first..b.end).contains(&first)).max_by_key(|b| b.position)
    }

    /// The newest position of a leaf on the odometer.
    ///
    /// # Errors
    /// As [`Self::leaf_path`].
    pub(crate) fn position(&self, first: u32) -> Result<u64, Error> {
        Ok(match (&self.signed, &self.advances.tree) {
            (Signed::Lsp(_), Some(tree)) => tree.leaf(usize::try_from(first).unwrap_or(usize::MAX))?.updates,
            (Signed::Lsp(_), None) => 0,
            (Signed::Client(_), _) => self.newest_record().map_or(0, |r| r.path.updates),
        })
    }
}

#[cfg(test)]
mod tests;
