//! One node of the tree: a set of signers, the output they share, and the transactions that spend it.
//!
//! The provider, who builds the whole tree, and a client, who builds its own path, use the same functions, so they
//! cannot come to different transactions.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, TxOut};

use crate::faults::switch;
use crate::musig::{AggKey, SignatureBytes};
use crate::params::DwLayer;
use crate::plan::LeafSpec;
use crate::transaction::{TreeTx, TxKind};
use crate::Error;

/// A node with its unsigned transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The level, 0 is the root.
    pub level: usize,
    /// Index of the first client below.
    pub first: usize,
    /// One past the index of the last client below.
    pub end: usize,
    /// The key of the node's input: the provider and the clients below.
    pub key: AggKey,
    /// The keys of the clients below, in tree order.
    pub clients: Vec<PublicKey>,
    /// The output the node spends.
    pub input: OutPoint,
    /// Its value, sat.
    pub value_sat: u64,
    /// The node's transactions, each spending output 0 of the one before: one for a static level, kickoff and
    /// states otherwise. The outputs of the last one are the children.
    pub txs: Vec<TreeTx>,
    /// A leaf's distributions: number `i` spends what transaction `i` spends. Empty for an interior node.
    pub distributions: Vec<TreeTx>,
}

/// The key of the node that covers clients `first..end`, from the keys of a plan (provider first).
pub(crate) fn node_key(keys: &[PublicKey], first: usize, end: usize) -> Result<AggKey, Error> {
    let lsp = keys.first().ok_or(Error::Empty { what: "keys of a node" })?;
    let mut signers = client_keys(keys, first, end)?;
    if signers.len() > 1 && switch("keys.client_left_out") {
        signers.pop();
    }
    signers.push(*lsp);
    AggKey::new(&signers)
}

/// The keys of clients `first..end`, from the keys of a plan (provider first).
pub(crate) fn client_keys(keys: &[PublicKey], first: usize, end: usize) -> Result<Vec<PublicKey>, Error> {
    let missing = || Error::Empty { what: "keys of a node" };
    let from = first.checked_add(1).ok_or_else(missing)?;
    let to = end.checked_add(1).ok_or_else(missing)?;
    Ok(keys.get(from..to).filter(|k| !k.is_empty()).ok_or_else(missing)?.to_vec())
}

/// What a node is built from.
pub(crate) struct NodeSpec<'a> {
    pub level: usize,
    pub first: usize,
    pub end: usize,
    pub key: AggKey,
    pub clients: Vec<PublicKey>,
    pub input: OutPoint,
    pub value_sat: u64,
    pub layers: &'a [DwLayer],
    /// The state of each of the layers.
    pub states: &'a [u16],
    /// Children in order, for a leaf the channels and the stock; without the anchor.
    pub outputs: Vec<TxOut>,
    /// Set at the leaf level.
    pub leaf: Option<&'a LeafSpec>,
}

fn short(n: usize) -> Result<u16, Error> {
    u16::try_from(n).map_err(|_| Error::Overflow { field: "level or layer" })
}

impl Node {
    pub(crate) fn build(spec: NodeSpec<'_>) -> Result<Self, Error> {
        let script = spec.key.script_pubkey();
        let spends = TxOut { value: Amount::from_sat(spec.value_sat), script_pubkey: script };
        let level = short(spec.level)?;
        let mut txs: Vec<TreeTx> = Vec::with_capacity(spec.layers.len().saturating_add(1));
        let mut input = spec.input;
        if spec.layers.is_empty() {
            push(&mut txs, &mut input, TxKind::Static { level }, &spends, 0, spec.outputs)?;
        } else {
            let again = || vec![spends.clone()];
            push(&mut txs, &mut input, TxKind::Kickoff { level }, &spends, 0, again())?;
            let innermost = spec.layers.len().saturating_sub(1);
            let mut outputs = Some(spec.outputs);
            for (layer, dw) in spec.layers.iter().enumerate() {
                let state = spec.states.get(layer).copied();
                let state = state.ok_or_else(|| crate::plan::index_error(layer, spec.states.len()))?;
                let kind = TxKind::State { level, layer: short(layer)?, state };
                let outputs = if layer == innermost { outputs.take() } else { None };
                push(
                    &mut txs,
                    &mut input,
                    kind,
                    &spends,
                    dw.sequence(state)?,
                    outputs.unwrap_or_else(again),
                )?;
            }
        }
        let distributions = match spec.leaf {
            Some(leaf) => distributions(&txs, spec.input, &spends, spec.layers, leaf)?,
            None => Vec::new(),
        };
        Ok(Self {
            level: spec.level,
            first: spec.first,
            end: spec.end,
            key: spec.key,
            clients: spec.clients,
            input: spec.input,
            value_sat: spec.value_sat,
            txs,
            distributions,
        })
    }

    /// What the node's signers sign, in the order of the messages: its transactions, then its distributions.
    pub fn sessions(&self) -> impl Iterator<Item = &TreeTx> {
        self.txs.iter().chain(self.distributions.iter())
    }

    /// Number of [`Node::sessions`].
    pub fn session_count(&self) -> usize {
        self.txs.len().saturating_add(self.distributions.len())
    }

    /// The output of the last transaction at position `child`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is none.
    pub fn child_outpoint(&self, child: usize) -> Result<OutPoint, Error> {
        let last = self.txs.last().ok_or(Error::Empty { what: "transactions of a node" })?;
        let error = || crate::plan::index_error(child, last.tx.output.len());
        if child >= last.tx.output.len() {
            return Err(error());
        }
        Ok(OutPoint::new(last.txid(), u32::try_from(child).map_err(|_| error())?))
    }

    /// The script that pays this node's signers.
    pub fn script_pubkey(&self) -> ScriptBuf {
        self.key.script_pubkey()
    }
}

fn push(
    txs: &mut Vec<TreeTx>,
    input: &mut OutPoint,
    kind: TxKind,
    spends: &TxOut,
    delay: u16,
    outputs: Vec<TxOut>,
) -> Result<(), Error> {
    let tx = TreeTx::new(kind, *input, spends.clone(), delay, 0, outputs)?;
    *input = OutPoint::new(tx.txid(), 0);
    txs.push(tx);
    Ok(())
}

/// The distributions of a leaf. Number 0 spends the leaf's input without a delay. Number `i` spends the output that
/// state `i - 1` of the layers spends too, one step later than that layer's oldest state could.
fn distributions(
    txs: &[TreeTx],
    input: OutPoint,
    spends: &TxOut,
    layers: &[DwLayer],
    leaf: &LeafSpec,
) -> Result<Vec<TreeTx>, Error> {
    let outputs = leaf.distribution_outputs()?;
    let make = |spent: usize, input: OutPoint, delay: u16| {
        let kind = TxKind::Distribution { position: short(spent)? };
        TreeTx::new(kind, input, spends.clone(), delay, leaf.expiry_height, outputs.clone())
    };
    let mut all = vec![make(0, input, 0)?];
    for (i, (parent, layer)) in txs.iter().zip(layers).enumerate() {
        let delay = layer.distribution_sequence()?;
        all.push(make(i.saturating_add(1), OutPoint::new(parent.txid(), 0), delay)?);
    }
    Ok(all)
}

/// Hands out signatures one after the other.
pub(crate) struct Signatures<'a>(std::slice::Iter<'a, SignatureBytes>);

impl<'a> Signatures<'a> {
    pub(crate) fn new(list: &'a [SignatureBytes], expected: usize) -> Result<Self, Error> {
        if list.len() != expected {
            return Err(Error::Count { what: "list of signatures", got: list.len(), expected });
        }
        Ok(Self(list.iter()))
    }

    pub(crate) fn next(&mut self) -> Result<&'a SignatureBytes, Error> {
        self.0.next().ok_or(Error::Empty { what: "list of signatures" })
    }
}
