//! A client's side of an advance before anything is signed: what it accepts, and its own new path as it rebuilds it.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, TxOut, Txid};
use bolt_tlv::payload;
use serde::{Deserialize, Serialize};

use super::change::{amounts_are_fixed, leaf_value, reshare, Change};
use super::pending::{ClientAdvanceState, PendingAdvance, MAX_KEPT_TRIES};
use crate::faults::switch;
use crate::geometry::{self, PathNode};
use crate::musig::{verify_final, AggKey, SignatureBytes};
use crate::node::{client_keys, node_key, Node, NodeSpec, Signatures};
use crate::path::level_outputs;
use crate::plan::{add, LeafSpec};
use crate::record::{ClientFactoryRecord, LeafChannel, SignedPath};
use crate::refuse::{refuse, Refusal, RefuseCode};
use crate::transaction::{SignedTx, TreeTx, TxKind};
use crate::Error;

/// What a client wants of an advance. It changes with the channel, so the caller keeps it up to date; there is no
/// default, as a least capacity of nothing would give the balance away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvancePolicy {
    /// Whether the client takes part now: not while a payment ends too soon for another claim.
    pub allow: bool,
    /// The least capacity its channel needs, sat: its balance, what is pending, the reserves.
    pub least_sat: u64,
    /// The largest channel it wants, sat.
    pub most_sat: u64,
}

fn check_allowed(policy: &AdvancePolicy) -> Result<(), Refusal> {
    if policy.allow {
        return Ok(());
    }
    Err(Refusal::new(RefuseCode::NotWanted, "no advance wanted now"))
}

/// Whether the client takes part now, with a channel of this capacity.
fn check_policy(policy: &AdvancePolicy, own_sat: u64) -> Result<(), Refusal> {
    check_allowed(policy)?;
    let AdvancePolicy { least_sat, most_sat, .. } = *policy;
    if (own_sat < least_sat || own_sat > most_sat) && !switch("client.advance.capacity") {
        let text = format!("channel of {own_sat} sat, wanted are {least_sat} to {most_sat}");
        return Err(Refusal::new(RefuseCode::Capacity, text));
    }
    Ok(())
}

/// The level that a stored transaction belongs to; none for a distribution.
fn level_of(tx: &SignedTx) -> Option<usize> {
    match tx.kind {
        TxKind::Static { level } | TxKind::Kickoff { level } | TxKind::State { level, .. } => {
            Some(level.into())
        }
        TxKind::Distribution { .. } => None,
    }
}

/// A node's transactions in a stored path.
fn of_level(path: &SignedPath, level: usize) -> Vec<SignedTx> {
    path.path.iter().filter(|tx| level_of(tx) == Some(level)).cloned().collect()
}

/// The nodes of the client's path from the one that advances on, with their keys.
type Places = Vec<(PathNode, AggKey)>;

/// A proposal that passed every check.
pub(super) struct Proposal {
    pub attempt: u16,
    pub change: Change,
    nodes: Places,
    /// The provider's key, then those of the clients below the node that advances.
    keys: Vec<PublicKey>,
    leaf: LeafSpec,
    /// The client's place in its leaf.
    position: usize,
    /// Capacity of its channel before and after, sat.
    pub capacity_sat: (u64, u64),
}

impl Proposal {
    /// Checks a proposal. `state` has the tries after the newest complete record.
    pub(super) fn check(
        record: &ClientFactoryRecord,
        state: &ClientAdvanceState,
        policy: &AdvancePolicy,
        message: &payload::AdvancePropose,
    ) -> Result<Self, Refusal> {
        check_allowed(policy)?;
        let path = &record.path;
        let wrong = refuse(RefuseCode::AdvancePosition);
        if message.from != path.updates && !switch("client.advance.base") {
            let text = format!("leaf is at position {}, proposed from {}", path.updates, message.from);
            return Err(Refusal::new(RefuseCode::AdvanceBase, text));
        }
        let clients = usize::try_from(path.clients).unwrap_or(usize::MAX);
        let index = usize::try_from(record.index).unwrap_or(usize::MAX);
        let (level, to) = (usize::from(message.level), message.position);
        let place = (level, index);
        let change = Change::new(&path.params, clients, path.expiry_height, place, (path.updates, to))
            .map_err(&wrong)?;
        let newest = state.newest().max(path.updates);
        if to <= newest && !switch("client.advance.burnt") {
            let text = format!("position {to} is not newer than {newest}, which may be signed already");
            return Err(Refusal::new(RefuseCode::AdvanceBurnt, text));
        }
        let untried = path.params.is_untried(path.updates, newest, to).map_err(&wrong)?;
        if to > newest && !untried && !switch("client.advance.untried") {
            let text =
                format!("the outermost new state of position {to} may be signed already, as of {newest}");
            return Err(Refusal::new(RefuseCode::AdvanceBurnt, text));
        }
        if state.kept() >= MAX_KEPT_TRIES && !switch("client.advance.many") {
            let text = format!("{} tries are kept, at most {MAX_KEPT_TRIES} are", state.kept());
            return Err(Refusal::new(RefuseCode::AdvanceMany, text));
        }
        let places =
            geometry::path(&path.params.shape, clients, index).map_err(refuse(RefuseCode::Internal))?;
        let (keys, nodes) = Self::check_keys(record, &change, message, places.into_iter().skip(level))?;
        let (leaf, position) = Self::check_leaf(record, &change, policy, message)?;
        let capacity =
            |share: Option<u64>| share.ok_or_else(|| Refusal::new(RefuseCode::Internal, "no own share"));
        let old = capacity(record.channel().map(|c| c.share.capacity_sat))?;
        let new = capacity(leaf.members.get(position).map(|m| m.capacity_sat))?;
        let capacity_sat = (old, new);
        let last = !path.params.has_next(path.updates, to).map_err(&wrong)?;
        if old != new && last && !switch("client.advance.last") {
            return Err(Refusal::new(RefuseCode::AdvanceLast, Error::LastPosition { position: to }));
        }
        Ok(Self { attempt: message.attempt, change, nodes, keys, leaf, position, capacity_sat })
    }

    /// What the client wants may have changed since it agreed, and so may what is in its channel.
    pub(super) fn check_policy(&self, policy: &AdvancePolicy) -> Result<(), Refusal> {
        if switch("client.advance.policy_once") {
            return Ok(());
        }
        check_policy(policy, self.capacity_sat.1)
    }

    /// The keys are those of everybody who signed the client's nodes at creation.
    fn check_keys(
        record: &ClientFactoryRecord,
        change: &Change,
        message: &payload::AdvancePropose,
        places: impl Iterator<Item = PathNode>,
    ) -> Result<(Vec<PublicKey>, Places), Refusal> {
        let wrong = |text: String| Refusal::new(RefuseCode::AdvanceKeys, text);
        let expected = change.end.saturating_sub(change.first);
        if message.keys.len() != expected {
            return Err(wrong(format!("{} keys, the node has {expected} clients", message.keys.len())));
        }
        let mut keys = vec![record.path.lsp_key];
        keys.extend(&message.keys);
        let mut nodes = Vec::new();
        for place in places {
            let (first, end) =
                (place.first.saturating_sub(change.first), place.end.saturating_sub(change.first));
            let key = node_key(&keys, first, end).map_err(refuse(RefuseCode::AdvanceKeys))?;
            let old = record.path.path.iter().find(|tx| level_of(tx) == Some(place.level));
            let same = old.is_some_and(|old| old.spends.script_pubkey == key.script_pubkey());
            if !same && !switch("client.advance.keys") {
                return Err(wrong(format!("keys are not those of the node of level {}", place.level)));
            }
            nodes.push((place, key));
        }
        Ok((keys, nodes))
    }

    fn check_leaf(
        record: &ClientFactoryRecord,
        change: &Change,
        policy: &AdvancePolicy,
        message: &payload::AdvancePropose,
    ) -> Result<(LeafSpec, usize), Refusal> {
        let path = &record.path;
        let old: Vec<_> = path.leaf.iter().map(|c| c.share.clone()).collect();
        let stock = (message.stock_sat, &path.stock_script);
        let wrong = refuse(RefuseCode::AdvanceAmounts);
        let members = reshare(&old, &message.capacities_sat, stock).map_err(&wrong)?;
        let before = leaf_value(&old, path.stock_sat).map_err(&wrong)?;
        let after = leaf_value(&members, message.stock_sat).map_err(&wrong)?;
        let leaf_level = path.params.shape.arity.len();
        if change.level == leaf_level && before != after && !switch("client.advance.sum") {
            let text = format!("leaf of {before} sat shall be worth {after} sat");
            return Err(Refusal::new(RefuseCode::AdvanceAmounts, text));
        }
        let fixed = amounts_are_fixed(&path.params, change.level);
        if fixed && members != old && !switch("client.advance.shared") {
            return Err(Refusal::new(RefuseCode::AdvanceShared, Error::SharedLeaf));
        }
        let position = usize::try_from(record.position).unwrap_or(usize::MAX);
        let own = members.get(position).map_or(0, |m| m.capacity_sat);
        check_policy(policy, own)?;
        let stock_script = path.stock_script.clone();
        let (stock_sat, expiry_height) = (message.stock_sat, change.distributed_at);
        Ok((LeafSpec { members, stock_sat, stock_script, expiry_height }, position))
    }

    /// The keys under which the client is going to sign: those of the inner sessions, and that of the outer ones as
    /// often. What is signed is not known yet, but how many transactions of which node.
    pub(super) fn sessions(
        &self,
        record: &ClientFactoryRecord,
    ) -> Result<(Vec<&AggKey>, Vec<&AggKey>), Refusal> {
        // The old path has the same number of each.
        let path = &record.path;
        let none = || Refusal::new(RefuseCode::Internal, "no node");
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        for (i, (place, key)) in self.nodes.iter().enumerate() {
            let txs = of_level(path, place.level).len();
            let leaf_level = path.params.shape.arity.len();
            let distributions = if place.level == leaf_level { path.distributions.len() } else { 0 };
            let count = match i {
                0 => {
                    let (inner, outer_count) = self.change.counts(txs, distributions);
                    outer.extend(std::iter::repeat_n(key, outer_count));
                    inner
                }
                _ => txs.saturating_add(distributions),
            };
            inner.extend(std::iter::repeat_n(key, count));
        }
        if outer.is_empty() {
            return Err(none());
        }
        Ok((inner, outer))
    }
}

/// A client's new path, from the node that advances on.
pub(super) struct NewPath {
    nodes: Vec<Node>,
    channel: OutPoint,
    output: TxOut,
    scripts: Vec<ScriptBuf>,
}

impl NewPath {
    /// Rebuilds the path. `script` is that of the client's own channel.
    pub(super) fn build(
        record: &ClientFactoryRecord,
        proposal: &Proposal,
        message: &payload::AdvanceTree,
        script: &ScriptBuf,
    ) -> Result<Self, Refusal> {
        let (path, change) = (&record.path, &proposal.change);
        Self::check_scripts(record, proposal, message, script)?;
        let interior = proposal.nodes.len().saturating_sub(1);
        if message.levels.len() != interior {
            let text = format!("tree has {} interior levels, expected {interior}", message.levels.len());
            return Err(Refusal::new(RefuseCode::PathShape, text));
        }
        let shape = || Refusal::new(RefuseCode::PathShape, "path of another length");
        let clients = usize::try_from(path.clients).map_err(refuse(RefuseCode::Internal))?;
        let mut outputs = Vec::with_capacity(proposal.nodes.len());
        for (i, level) in message.levels.iter().enumerate() {
            let (node, _) = proposal.nodes.get(i).ok_or_else(shape)?;
            let (_, next) = proposal.nodes.get(i.saturating_add(1)).ok_or_else(shape)?;
            outputs.push(level_outputs(&path.params, clients, node, level, &next.script_pubkey())?);
        }
        let leaf = proposal.leaf.outputs(&message.channel_scripts);
        outputs.push(leaf.map_err(refuse(RefuseCode::ChannelScript))?);
        // Each node gets from its parent exactly what it spends, the first what it had.
        let old = of_level(path, change.level);
        let old = old.first().ok_or_else(shape)?;
        let mut given = old.spends.value.to_sat();
        for ((place, _), list) in proposal.nodes.iter().zip(&outputs) {
            let sum = list.iter().try_fold(0u64, |sum, o| add(sum, o.value.to_sat()));
            let sum = sum.map_err(refuse(RefuseCode::Conservation))?;
            if sum != given {
                let text = format!("node of level {} gets {given} sat and spends {sum} sat", place.level);
                return Err(Refusal::new(RefuseCode::Conservation, text));
            }
            given = list.get(place.child).map_or(0, |o| o.value.to_sat());
        }
        let mut input = old.parent().ok_or_else(shape)?;
        let mut value_sat = old.spends.value.to_sat();
        let mut nodes: Vec<Node> = Vec::with_capacity(proposal.nodes.len());
        for ((place, key), outputs) in proposal.nodes.iter().zip(outputs) {
            let (first, end) =
                (place.first.saturating_sub(change.first), place.end.saturating_sub(change.first));
            let next_value = outputs.get(place.child).map_or(0, |o| o.value.to_sat());
            let node = Node::build(NodeSpec {
                level: place.level,
                first: place.first,
                end: place.end,
                key: key.clone(),
                clients: client_keys(&proposal.keys, first, end).map_err(refuse(RefuseCode::Internal))?,
                input,
                value_sat,
                layers: path.params.shape.layers_at(place.level),
                states: change.states.at(place.level),
                outputs,
                leaf: (place.level == path.params.shape.arity.len()).then_some(&proposal.leaf),
            })
            .map_err(refuse(RefuseCode::Conservation))?;
            input = node.child_outpoint(place.child).map_err(refuse(RefuseCode::PathShape))?;
            value_sat = next_value;
            nodes.push(node);
        }
        let last = nodes.last().and_then(|node| node.txs.last());
        let output = last.and_then(|tx| tx.tx.output.get(proposal.position)).cloned().ok_or_else(shape)?;
        Ok(Self { nodes, channel: input, output, scripts: message.channel_scripts.clone() })
    }

    /// The own channel's script is the one that the Lightning node has, and a channel that keeps its capacity keeps its
    /// script.
    fn check_scripts(
        record: &ClientFactoryRecord,
        proposal: &Proposal,
        message: &payload::AdvanceTree,
        script: &ScriptBuf,
    ) -> Result<(), Refusal> {
        let own = message.channel_scripts.get(proposal.position);
        if own != Some(script) && !switch("client.advance.script") {
            return Err(Refusal::new(
                RefuseCode::ChannelScript,
                "leaf pays another script than the channel's",
            ));
        }
        let members = proposal.leaf.members.iter().zip(&message.channel_scripts);
        for (i, (old, (new, script))) in record.path.leaf.iter().zip(members).enumerate() {
            let kept = old.share.capacity_sat == new.capacity_sat;
            if kept && old.script != *script && !switch("client.advance.script") {
                let text = format!("channel {i} of the leaf has another script and the same capacity");
                return Err(Refusal::new(RefuseCode::ChannelScript, text));
            }
        }
        Ok(())
    }

    /// Where the client's channel is going to be.
    pub(super) fn channel(&self) -> (OutPoint, TxOut) {
        (self.channel, self.output.clone())
    }

    /// What the client signs in the first round, in the order of the messages.
    pub(super) fn inner<'a>(&'a self, change: &'a Change) -> impl Iterator<Item = (&'a Node, &'a TreeTx)> {
        self.nodes.iter().flat_map(|node| change.inner(node).into_iter().map(move |tx| (node, tx)))
    }

    /// What it signs in the second round.
    pub(super) fn outer<'a>(&'a self, change: &'a Change) -> impl Iterator<Item = (&'a Node, &'a TreeTx)> {
        self.nodes.iter().flat_map(|node| change.outer(node).into_iter().map(move |tx| (node, tx)))
    }

    /// Verifies the inner signatures, and puts the new path together, complete but for the outer signatures.
    pub(super) fn pending(
        &self,
        record: &ClientFactoryRecord,
        proposal: &Proposal,
        signatures: &[SignatureBytes],
    ) -> Result<PendingAdvance, Refusal> {
        let (change, internal) = (&proposal.change, refuse::<Error>(RefuseCode::Internal));
        let expected = self.inner(change).count();
        if signatures.len() != expected {
            let text = format!("{} inner signatures, expected {expected}", signatures.len());
            return Err(Refusal::new(RefuseCode::ListLength, text));
        }
        for ((node, tx), signature) in self.inner(change).zip(signatures) {
            let message = tx.sighash().map_err(&internal)?;
            let verified = verify_final(&node.key, &message, signature);
            if verified.is_err() && !switch("client.advance.inner_unchecked") {
                return Err(Refusal::new(
                    RefuseCode::Signature,
                    format!("signature of {} is wrong", tx.kind),
                ));
            }
        }
        self.assemble(record, proposal, signatures).map_err(internal)
    }

    fn assemble(
        &self,
        record: &ClientFactoryRecord,
        proposal: &Proposal,
        signatures: &[SignatureBytes],
    ) -> Result<PendingAdvance, Error> {
        let (old, change) = (&record.path, &proposal.change);
        let kept = |tx: &&SignedTx| level_of(tx).is_some_and(|level| level < change.level);
        let mut path: Vec<_> = old.path.iter().filter(kept).cloned().collect();
        let leaf_start = old.leaf_start;
        let mut distributions = Vec::new();
        let mut inner = Signatures::new(signatures, signatures.len())?;
        for node in &self.nodes {
            let of_node = of_level(old, node.level);
            let is_leaf = node.level == old.params.shape.arity.len();
            let old_distributions = if is_leaf { old.distributions.as_slice() } else { &[] };
            let (txs, of_leaf) = change.sign(node, (&of_node, old_distributions), &mut None, &mut inner)?;
            path.extend(txs);
            distributions.extend(of_leaf);
        }
        let txid = self.channel.txid;
        let shares = proposal.leaf.members.iter().zip(&self.scripts).zip(&old.leaf);
        let leaf = (0u32..)
            .zip(shares)
            .map(|(vout, ((share, script), old))| LeafChannel {
                key: old.key,
                share: share.clone(),
                script: script.clone(),
                outpoint: OutPoint::new(txid, vout),
            })
            .collect();
        let outer: Vec<Txid> = self.outer(change).map(|(_, tx)| tx.txid()).collect();
        let path = SignedPath {
            path,
            leaf_start,
            distributions,
            leaf,
            stock_sat: proposal.leaf.stock_sat,
            updates: change.position,
            ..old.clone()
        };
        let record = ClientFactoryRecord { path, ..record.clone() };
        Ok(PendingAdvance { attempt: proposal.attempt, record, outer })
    }
}
