//! What is stored of a factory: complete signed transactions and what is needed to use them.
//!
//! [`SignedPath`] is all that somebody needs to bring one leaf to the chain; it holds no secret, so a watcher may
//! have it too. [`ClientFactoryRecord`] is a client's, [`LspFactoryRecord`] the provider's with every node. Records
//! are serde values with a version; transactions are consensus hex.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, TxOut};
use serde::{Deserialize, Serialize};

use crate::exit::ExitPlan;
use crate::form;
use crate::geometry::{self, PathNode};
use crate::musig::SignatureBytes;
use crate::node::Signatures;
use crate::params::Params;
use crate::path::{ClientPath, ClientPlan};
use crate::plan::{index_error, FactoryPlan, LeafMember, LeafSpec};
use crate::transaction::{sequence, SignedTx, TxKind};
use crate::tree::Tree;
use crate::Error;

/// Version of the records that this build writes and reads.
pub const RECORD_VERSION: u16 = 1;

/// The funding output of a factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FundingOutput {
    /// Where it is.
    pub outpoint: OutPoint,
    /// Its value, sat.
    pub value_sat: u64,
    /// Its script: P2TR of all signers.
    pub script: ScriptBuf,
}

impl FundingOutput {
    /// As a transaction output.
    pub fn tx_out(&self) -> TxOut {
        TxOut { value: bitcoin::Amount::from_sat(self.value_sat), script_pubkey: self.script.clone() }
    }
}

/// One channel of a leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafChannel {
    /// The client's factory key.
    pub key: PublicKey,
    /// Its share.
    #[serde(flatten)]
    pub share: LeafMember,
    /// The channel's P2WSH script.
    pub script: ScriptBuf,
    /// The channel's outpoint, created by the last transaction of the path.
    pub outpoint: OutPoint,
}

impl LeafChannel {
    /// The channel's output.
    pub fn output(&self) -> TxOut {
        TxOut {
            value: bitcoin::Amount::from_sat(self.share.capacity_sat),
            script_pubkey: self.script.clone(),
        }
    }
}

/// Everything needed to bring one leaf to the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPath {
    /// Version of the record.
    pub version: u16,
    /// Identity of the factory.
    #[serde(with = "hex::serde")]
    pub instance_id: [u8; 32],
    /// The try that succeeded.
    pub attempt: u16,
    /// Shape and times.
    pub params: Params,
    /// Number of clients of the factory.
    pub clients: u32,
    /// Height from which its life counts, blocks.
    pub birth_height: u32,
    /// Height T from which the distributions signed at creation are valid, blocks.
    pub expiry_height: u32,
    /// The provider's factory key.
    pub lsp_key: PublicKey,
    /// The funding output.
    pub funding: FundingOutput,
    /// The transactions from the funding output to the leaf, in the order of publication.
    pub path: Vec<SignedTx>,
    /// Position in `path` of the leaf's first transaction.
    pub leaf_start: u32,
    /// The leaf's distributions; number `i` competes with path transaction `leaf_start + i`.
    pub distributions: Vec<SignedTx>,
    /// The leaf's channels in output order.
    pub leaf: Vec<LeafChannel>,
    /// The leaf's liquidity stock, sat.
    pub stock_sat: u64,
    /// Where the stock pays.
    pub stock_script: ScriptBuf,
    /// The position of the odometer that the leaf is at; 0 at creation.
    #[serde(default)]
    pub updates: u64,
}

impl SignedPath {
    /// The height from which the distributions of this position are valid: [`SignedPath::expiry_height`] or earlier.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a position that the parameters do not have.
    pub fn distribution_height(&self) -> Result<u32, Error> {
        self.params.distribution_height(self.expiry_height, &self.params.states_after(self.updates)?)
    }

    /// Checks a record that was read: its version, that the transactions form one chain from the funding output,
    /// that they are those of its shape and position with their delays, that leaf and distributions pay what they should,
    /// and every signature.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self) -> Result<(), Error> {
        self.verify_but(|_| false)
    }

    /// As [`SignedPath::verify`], for a path of which some transactions are not signed.
    pub(crate) fn verify_but(&self, unsigned: impl Fn(&SignedTx) -> bool) -> Result<(), Error> {
        let signed = |tx: &SignedTx| if unsigned(tx) { Ok(()) } else { tx.verify() };
        if self.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: self.version, known: RECORD_VERSION });
        }
        if self.path.is_empty() {
            return Err(Error::Empty { what: "path" });
        }
        let states = self.params.states_after(self.updates)?;
        let mut known = BTreeMap::from([(self.funding.outpoint, self.funding.tx_out())]);
        let broken = || Error::Mismatch { what: "chain of stored transactions" };
        for tx in &self.path {
            if tx.parent().and_then(|p| known.get(&p)) != Some(&tx.spends) {
                return Err(broken());
            }
            known.clear();
            for (vout, output) in (0u32..).zip(&tx.tx.output) {
                known.insert(OutPoint::new(tx.txid(), vout), output.clone());
            }
            check_times(tx, 0)?;
            if let TxKind::State { level, layer, state } = tx.kind {
                if states.at(level.into()).get(usize::from(layer)) != Some(&state) {
                    return Err(Error::Mismatch { what: "position of a stored path" });
                }
            }
            signed(tx)?;
        }
        for channel in &self.leaf {
            let output = known.get(&channel.outpoint).ok_or_else(broken)?;
            if *output != channel.output() {
                return Err(broken());
            }
        }
        let start = usize::try_from(self.leaf_start).map_err(|_| broken())?;
        let leaf = self.path.get(start..).filter(|l| !l.is_empty()).ok_or_else(broken)?;
        if self.distributions.len() != leaf.len() {
            return Err(Error::Count {
                what: "distributions",
                got: self.distributions.len(),
                expected: leaf.len(),
            });
        }
        let lock_height = self.distribution_height()?;
        for (distribution, rival) in self.distributions.iter().zip(leaf) {
            if distribution.parent() != rival.parent() || distribution.spends != rival.spends {
                return Err(broken());
            }
            check_times(distribution, lock_height)?;
            signed(distribution)?;
        }
        form::check(self)
    }

    /// The steps of an exit.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a record whose transactions do not hang together.
    pub fn exit_plan(&self) -> Result<ExitPlan, Error> {
        ExitPlan::new(self)
    }
}

/// A factory as a client stores it: its own path and where in the leaf it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFactoryRecord {
    /// The signed path.
    #[serde(flatten)]
    pub path: SignedPath,
    /// The client's place in tree order.
    pub index: u32,
    /// The client's place in its leaf.
    pub position: u32,
    /// The client's own factory key.
    pub own_key: PublicKey,
}

impl ClientFactoryRecord {
    /// Puts the signatures, in the order of [`ClientPath::sessions`], into the path's transactions. They are not
    /// verified here.
    ///
    /// # Errors
    /// [`Error::Count`] for a wrong number of signatures.
    pub(crate) fn assemble(
        plan: &ClientPlan,
        path: &ClientPath,
        own_key: PublicKey,
        signatures: &[SignatureBytes],
    ) -> Result<Self, Error> {
        let mut signatures = Signatures::new(signatures, path.session_count())?;
        let mut txs = Vec::new();
        let mut distributions = Vec::new();
        let mut leaf_start = 0;
        let mut first_of_leaf = 0;
        for node in path.nodes() {
            leaf_start = txs.len();
            first_of_leaf = node.first;
            for tx in &node.txs {
                txs.push(tx.signed(signatures.next()?));
            }
            for tx in &node.distributions {
                distributions.push(tx.signed(signatures.next()?));
            }
        }
        let client_keys = plan.keys.iter().skip(1).skip(first_of_leaf);
        let last = txs.last().map(SignedTx::txid).ok_or(Error::Empty { what: "path" })?;
        let mut leaf = Vec::new();
        for (vout, ((share, key), script)) in
            (0u32..).zip(plan.leaf.members.iter().zip(client_keys).zip(path.channel_scripts()))
        {
            leaf.push(LeafChannel {
                key: *key,
                share: share.clone(),
                script: script.clone(),
                outpoint: OutPoint::new(last, vout),
            });
        }
        let funding = path.funding_output();
        Ok(Self {
            path: SignedPath {
                version: RECORD_VERSION,
                instance_id: plan.instance_id,
                attempt: plan.attempt,
                params: plan.params.clone(),
                clients: short(plan.clients())?,
                birth_height: plan.birth_height,
                expiry_height: plan.expiry_height,
                lsp_key: *plan.keys.first().ok_or(Error::Empty { what: "keys" })?,
                funding: FundingOutput {
                    outpoint: path.funding_outpoint(),
                    value_sat: funding.value.to_sat(),
                    script: funding.script_pubkey.clone(),
                },
                path: txs,
                leaf_start: short(leaf_start)?,
                distributions,
                leaf,
                stock_sat: plan.leaf.stock_sat,
                stock_script: plan.leaf.stock_script.clone(),
                updates: 0,
            },
            index: short(plan.index)?,
            position: short(plan.position)?,
            own_key,
        })
    }

    /// Checks a record that was read: the path as [`SignedPath::verify`] does, and the own channel.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self) -> Result<(), Error> {
        self.verify_own()?;
        self.path.verify()
    }

    /// Checks that the own channel is where it should be.
    pub(crate) fn verify_own(&self) -> Result<(), Error> {
        let own = self.channel().is_some_and(|c| c.key == self.own_key);
        if !own || self.position > self.index || self.index >= self.path.clients {
            return Err(Error::Mismatch { what: "own channel of a stored path" });
        }
        Ok(())
    }

    /// The client's own channel.
    pub fn channel(&self) -> Option<&LeafChannel> {
        self.path.leaf.get(usize::try_from(self.position).ok()?)
    }
}

/// A node of the provider's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedNode {
    /// The level, 0 is the root.
    pub level: u32,
    /// Index of the first client below.
    pub first: u32,
    /// One past the index of the last client below.
    pub end: u32,
    /// The node's transactions in order.
    pub txs: Vec<SignedTx>,
    /// A leaf's distributions.
    pub distributions: Vec<SignedTx>,
}

/// A factory as the provider stores it: the plan and every node, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LspFactoryRecord {
    /// Version of the record.
    pub version: u16,
    /// The try that succeeded.
    pub attempt: u16,
    /// The plan.
    pub plan: FactoryPlan,
    /// The clients' node ids in tree order.
    pub client_ids: Vec<PublicKey>,
    /// The funding output.
    pub funding: FundingOutput,
    /// The clients' channel scripts in tree order.
    pub channel_scripts: Vec<ScriptBuf>,
    /// All nodes, root first, level by level.
    pub nodes: Vec<SignedNode>,
}

impl LspFactoryRecord {
    /// Puts signatures, one list per node of `tree` in the order of its sessions, into the transactions.
    pub(crate) fn assemble(
        tree: &Tree,
        attempt: u16,
        client_ids: Vec<PublicKey>,
        signatures: &[Vec<SignatureBytes>],
    ) -> Result<Self, Error> {
        if signatures.len() != tree.nodes().len() {
            return Err(Error::Count {
                what: "signed nodes",
                got: signatures.len(),
                expected: tree.nodes().len(),
            });
        }
        let mut nodes = Vec::with_capacity(signatures.len());
        for (node, list) in tree.nodes().iter().zip(signatures) {
            let mut list = Signatures::new(list, node.session_count())?;
            let mut sign = |txs: &[crate::transaction::TreeTx]| {
                txs.iter().map(|tx| Ok(tx.signed(list.next()?))).collect::<Result<Vec<_>, Error>>()
            };
            nodes.push(SignedNode {
                level: short(node.level)?,
                first: short(node.first)?,
                end: short(node.end)?,
                txs: sign(&node.txs)?,
                distributions: sign(&node.distributions)?,
            });
        }
        let output = tree.funding_output()?;
        Ok(Self {
            version: RECORD_VERSION,
            attempt,
            plan: tree.plan().clone(),
            client_ids,
            funding: FundingOutput {
                outpoint: tree.funding_outpoint(),
                value_sat: output.value.to_sat(),
                script: output.script_pubkey,
            },
            channel_scripts: tree.channel_scripts().to_vec(),
            nodes,
        })
    }

    /// Checks a record that was read: its version, that it has the nodes of its shape and a client, a channel script
    /// and a place for each, and every leaf's path as [`SignedPath::verify`] does.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self) -> Result<(), Error> {
        if self.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: self.version, known: RECORD_VERSION });
        }
        let (shape, clients) = (&self.plan.params.shape, self.plan.members.len());
        for (what, got) in [("client ids", self.client_ids.len()), ("scripts", self.channel_scripts.len())] {
            if got != clients {
                return Err(Error::Count { what, got, expected: clients });
            }
        }
        let places = geometry::nodes(shape, clients)?;
        if places.len() != self.nodes.len() {
            return Err(Error::Count { what: "nodes", got: self.nodes.len(), expected: places.len() });
        }
        for (node, place) in self.nodes.iter().zip(&places) {
            let is_leaf = place.level.saturating_add(1) == shape.levels();
            let here = (short(place.level)?, short(place.first)?, short(place.end)?);
            if (node.level, node.first, node.end) != here || is_leaf == node.distributions.is_empty() {
                return Err(Error::Mismatch { what: "place of a stored node" });
            }
            if is_leaf {
                self.leaf_path(place.first)?.verify()?;
            }
        }
        Ok(())
    }

    /// The path and the distributions of client `index` at creation, as that client has them.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an index no client has, [`Error::Mismatch`] for a damaged record.
    pub fn leaf_path(&self, index: usize) -> Result<SignedPath, Error> {
        let clients = self.plan.members.len();
        let places = geometry::path(&self.plan.params.shape, clients, index)?;
        let place = places.last().ok_or_else(|| index_error(index, clients))?;
        let scripts = self.channel_scripts.get(place.first..place.end);
        let scripts = scripts.ok_or_else(|| index_error(place.first, self.channel_scripts.len()))?;
        self.path_through(&self.nodes, &places, &self.plan.leaf(place.first, place.end)?, scripts, 0)
    }

    /// The path at `places` through these nodes to a leaf with these shares and scripts.
    pub(crate) fn path_through(
        &self,
        nodes: &[SignedNode],
        places: &[PathNode],
        spec: &LeafSpec,
        scripts: &[ScriptBuf],
        updates: u64,
    ) -> Result<SignedPath, Error> {
        let mut path = Vec::new();
        let mut leaf_start = 0;
        let mut last = None;
        for place in places {
            let (level, first) = (short(place.level)?, short(place.first)?);
            let node = nodes
                .iter()
                .find(|n| n.level == level && n.first == first)
                .ok_or(Error::Mismatch { what: "stored tree" })?;
            leaf_start = path.len();
            path.extend(node.txs.iter().cloned());
            last = Some((node, place));
        }
        let (node, place) = last.ok_or(Error::Empty { what: "path" })?;
        let txid = path.last().map(SignedTx::txid).ok_or(Error::Empty { what: "path" })?;
        let members = self.plan.members.iter().skip(place.first);
        let leaf = (0u32..)
            .zip(spec.members.iter().zip(members).zip(scripts))
            .map(|(vout, ((share, member), script))| LeafChannel {
                key: member.key,
                share: share.clone(),
                script: script.clone(),
                outpoint: OutPoint::new(txid, vout),
            })
            .collect();
        Ok(SignedPath {
            version: self.version,
            instance_id: self.plan.instance_id,
            attempt: self.attempt,
            params: self.plan.params.clone(),
            clients: short(self.plan.members.len())?,
            birth_height: self.plan.birth_height,
            expiry_height: self.plan.expiry_height,
            lsp_key: self.plan.lsp_key,
            funding: self.funding.clone(),
            path,
            leaf_start: short(leaf_start)?,
            distributions: node.distributions.clone(),
            leaf,
            stock_sat: spec.stock_sat,
            stock_script: spec.stock_script.clone(),
            updates,
        })
    }

    /// The place of a client in tree order.
    pub fn index_of(&self, client: &PublicKey) -> Option<usize> {
        self.client_ids.iter().position(|id| id == client)
    }
}

/// The stored delay and the lock time are those of the transaction.
fn check_times(tx: &SignedTx, lock_height: u32) -> Result<(), Error> {
    let expected = sequence(tx.relative_delay);
    let sequences = tx.tx.input.iter().all(|input| input.sequence == expected);
    if !sequences || tx.tx.lock_time.to_consensus_u32() != lock_height {
        return Err(Error::Mismatch { what: "delay or lock time of a stored transaction" });
    }
    Ok(())
}

pub(crate) fn short(n: usize) -> Result<u32, Error> {
    u32::try_from(n).map_err(|_| Error::Overflow { field: "position in a record" })
}
