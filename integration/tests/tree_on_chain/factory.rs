//! A factory whose keys the test holds all: signed at once, funded on regtest, published step by step.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;

use anyhow::{anyhow, bail, Context, Result};
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::{Address, Network, OutPoint, ScriptBuf, TxOut};
use factory_core::lifetime::Lifetime;
use factory_core::musig::{self, AggKey, SecretSession};
use factory_core::node::Node;
use factory_core::params::Params;
use factory_core::plan::{FactoryPlan, LeafMember, Member, PlanParts};
use factory_core::transaction::{SignedTx, TreeTx};
use factory_core::tree::{Layout, Tree};
use integration::cpfp::{Purse, CHILD_FEE};
use integration::Bitcoind;

/// Stock of each leaf, sat.
pub const STOCK: u64 = 10_001;

/// A bitcoind with its data folder, for one factory or for many.
pub struct Chain {
    bitcoind: Bitcoind,
    _folder: tempfile::TempDir,
}

impl Chain {
    pub fn start() -> Result<Rc<Self>> {
        let folder = tempfile::tempdir()?;
        Ok(Rc::new(Self { bitcoind: Bitcoind::start(folder.path())?, _folder: folder }))
    }
}

impl Deref for Chain {
    type Target = Bitcoind;

    fn deref(&self) -> &Bitcoind {
        &self.bitcoind
    }
}

/// The secret of every signer.
type Secrets = BTreeMap<PublicKey, [u8; 32]>;
/// Transactions and distributions.
type Signed = (Vec<SignedTx>, Vec<SignedTx>);

/// A signed factory with a confirmed funding output.
pub struct Factory {
    pub bitcoind: Rc<Chain>,
    pub tree: Tree,
    /// Per node of the tree: its transactions and its distributions.
    pub signed: Vec<Signed>,
    /// Height from which its distributions are valid.
    pub expiry: u32,
    /// Updates that it has made.
    pub updates: u64,
    layout: Layout,
    secrets: Secrets,
    purse: Purse,
}

/// Capacity of client `index`, sat: all different, so that a swap of two would be seen.
pub fn capacity(index: usize) -> u64 {
    100_000 + 1_000 * index as u64
}

/// Parameters with short periods, so that the expiry is a few hundred blocks away.
pub fn params(clients: usize, per_leaf: u16) -> Result<Params> {
    let defaults = Params::default_with(clients, per_leaf, Network::Regtest)?;
    Ok(Params { active: 10, dying: 10, margin: 10, ..defaults })
}

impl Factory {
    /// Builds, funds and signs the factory of `clients` clients, on a chain of its own.
    pub fn create(clients: usize, params: Params) -> Result<Self> {
        Self::create_on(&Chain::start()?, clients, params, 0)
    }

    /// Builds, funds and signs a factory as it is after `updates` updates of all its leaves.
    pub fn create_on(bitcoind: &Rc<Chain>, clients: usize, params: Params, updates: u64) -> Result<Self> {
        let secp = Secp256k1::new();
        let mut secrets = Secrets::new();
        let mut key = || -> Result<PublicKey> {
            let secret: [u8; 32] = rand::random();
            let public = SecretKey::from_slice(&secret)?.public_key(&secp);
            secrets.insert(public, secret);
            Ok(public)
        };
        let birth = bitcoind.height()?;
        let states = params.states_after(updates)?;
        let plan = FactoryPlan::new(PlanParts {
            instance_id: rand::random(),
            birth_height: birth,
            expiry_height: Lifetime::new(birth, &params, clients)?.expiry(),
            params,
            lsp_key: key()?,
            members: (0..clients)
                .map(|index| {
                    let share = LeafMember {
                        capacity_sat: capacity(index),
                        push_msat: 0,
                        payout_script: payout(index),
                        temporary_channel_id: rand::random(),
                    };
                    Ok(Member { key: key()?, share })
                })
                .collect::<Result<_>>()?,
            leaf_stock_sat: STOCK,
            stock_script: stock_script(),
        })?;
        let expiry = plan.params.distribution_height(plan.expiry_height, &states)?;
        let layout = Layout::new(plan)?;
        let output = layout.funding_output()?;
        let address = Address::from_script(&output.script_pubkey, Network::Regtest)?;
        let funding = bitcoind.fund(&[(address, output.value.to_sat())])?;
        let funding = *funding.first().ok_or_else(|| anyhow!("no funding"))?;
        let channels: Vec<ScriptBuf> = (0..clients).map(channel_script).collect();
        let tree = layout.clone().build_at(&channels, funding, &states)?;
        let signed = tree.nodes().iter().map(|node| sign_node(&secrets, node)).collect::<Result<Vec<_>>>()?;
        let count = signed.iter().map(|(txs, distributions)| txs.len() + distributions.len()).sum();
        let purse = Purse::fill(bitcoind, count)?;
        Ok(Self { bitcoind: bitcoind.clone(), tree, signed, expiry, updates, layout, secrets, purse })
    }

    /// What client `index` holds from when the factory had made `updates` updates: its path and its leaf's
    /// distributions.
    pub fn at(&self, updates: u64, index: usize) -> Result<Signed> {
        let states = self.tree.plan().params.states_after(updates)?;
        let funding = self.tree.funding_outpoint();
        let tree = self.layout.clone().build_at(self.tree.channel_scripts(), funding, &states)?;
        let (mut path, mut distributions) = (Vec::new(), Vec::new());
        for node in tree.path_nodes(index)? {
            let (txs, below) = sign_node(&self.secrets, &tree.nodes()[node])?;
            path.extend(txs);
            distributions = below;
        }
        Ok((path, distributions))
    }

    /// More coins for children.
    pub fn refill(&mut self, coins: usize) -> Result<()> {
        self.purse = Purse::fill(&self.bitcoind, coins)?;
        Ok(())
    }

    /// The path to client `index`, root first.
    pub fn path(&self, index: usize) -> Result<Vec<SignedTx>> {
        let nodes = self.tree.path_nodes(index)?;
        Ok(nodes.iter().flat_map(|node| self.signed[*node].0.clone()).collect())
    }

    /// The path above client `index`'s leaf.
    pub fn path_above_leaf(&self, index: usize) -> Result<Vec<SignedTx>> {
        let mut nodes = self.tree.path_nodes(index)?;
        nodes.pop();
        Ok(nodes.iter().flat_map(|node| self.signed[*node].0.clone()).collect())
    }

    /// The transactions and the distributions of client `index`'s leaf.
    pub fn leaf(&self, index: usize) -> Result<Signed> {
        let nodes = self.tree.path_nodes(index)?;
        let leaf = nodes.last().ok_or_else(|| anyhow!("no leaf"))?;
        Ok(self.signed[*leaf].clone())
    }

    /// Height at which the transaction confirmed.
    pub fn height_of(&self, tx: &SignedTx) -> Result<Option<u32>> {
        Ok(self.bitcoind.confirmed(tx.txid())?.map(|confirmed| confirmed.height))
    }

    /// Offers it with a child that pays for both.
    pub fn offer(&mut self, tx: &SignedTx) -> Result<()> {
        let child = self.purse.child(&tx.tx, tx.anchor_vout())?;
        let result = self.bitcoind.submit_package(&[&tx.tx, &child]);
        if result.is_err() {
            self.purse.give_back(&child)?;
        }
        result
    }

    /// Checks that it is refused now for this reason.
    pub fn refused(&mut self, tx: &SignedTx, reason: &str) -> Result<()> {
        let child = self.purse.child(&tx.tx, tx.anchor_vout())?;
        let result = self.bitcoind.submit_package(&[&tx.tx, &child]);
        self.purse.give_back(&child)?;
        match result {
            Ok(()) => bail!("{} was accepted, {reason} expected", tx.kind),
            Err(error) if error.to_string().contains(reason) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{}: {reason} expected", tx.kind)),
        }
    }

    /// Publishes it in the first block that its relative delay allows: one block earlier it is refused. If that block
    /// is mined already, it goes into the next one. Returns the height of its confirmation.
    pub fn publish(&mut self, tx: &SignedTx) -> Result<u32> {
        let what = tx.kind;
        let parent = tx.parent().ok_or_else(|| anyhow!("no input"))?;
        let parent = self.bitcoind.confirmed(parent.txid)?;
        let parent = parent.ok_or_else(|| anyhow!("{what}: parent unconfirmed"))?.height;
        let first = parent + u32::from(tx.relative_delay).max(1);
        if self.bitcoind.height()? + 2 <= first {
            self.bitcoind.mine_to(first - 2)?;
            self.refused(tx, "non-BIP68-final")?;
            self.bitcoind.mine(1)?;
        }
        let expected = first.max(self.bitcoind.height()? + 1);
        self.offer(tx).with_context(|| format!("{what} at its time"))?;
        self.bitcoind.mine(1)?;
        let height = self.height_of(tx)?.ok_or_else(|| anyhow!("{what} is not in the block"))?;
        if height != expected {
            bail!("{what} confirmed at {height}, expected {expected}");
        }
        let fees = self.bitcoind.fees(height, height)?;
        if fees != CHILD_FEE {
            bail!("{what}: the block took {fees} sat of fees, the child paid {CHILD_FEE}");
        }
        Ok(height)
    }

    /// Publishes what of the path is not confirmed yet.
    pub fn publish_path(&mut self, path: &[SignedTx]) -> Result<()> {
        for tx in path {
            if self.height_of(tx)?.is_none() {
                self.publish(tx)?;
            }
        }
        Ok(())
    }

    /// Checks client `index`'s channel output and its leaf's stock in the chain.
    pub fn check_leaf(&self, index: usize) -> Result<()> {
        let outpoint = self.tree.channel_outpoint(index)?;
        self.check_output(outpoint, &channel_script(index), capacity(index))?;
        let members = self.members(index)?;
        let stock = OutPoint::new(outpoint.txid, u32::try_from(members.len())?);
        self.check_output(stock, &stock_script(), STOCK)
    }

    /// Checks that the distribution pays the clients of `index`'s leaf all of it: each its capacity and its share of
    /// the stock, the first what rounding leaves.
    pub fn check_distribution(&self, distribution: &SignedTx, index: usize) -> Result<()> {
        let members = self.members(index)?;
        let all: u64 = members.iter().map(|member| capacity(*member)).sum();
        let shares: Vec<u64> = members.iter().map(|member| STOCK * capacity(*member) / all).collect();
        let left = STOCK - shares.iter().sum::<u64>();
        for (position, (member, share)) in members.iter().zip(&shares).enumerate() {
            let sat = capacity(*member) + share + if position == 0 { left } else { 0 };
            let outpoint = OutPoint::new(distribution.txid(), u32::try_from(position)?);
            self.check_output(outpoint, &payout(*member), sat)?;
        }
        Ok(())
    }

    /// The clients of `index`'s leaf.
    pub fn members(&self, index: usize) -> Result<Vec<usize>> {
        let nodes = self.tree.path_nodes(index)?;
        let leaf =
            nodes.last().and_then(|node| self.tree.nodes().get(*node)).ok_or_else(|| anyhow!("no leaf"))?;
        Ok((leaf.first..leaf.end).collect())
    }

    fn check_output(&self, outpoint: OutPoint, script: &ScriptBuf, sat: u64) -> Result<()> {
        let tx =
            self.bitcoind.confirmed(outpoint.txid)?.ok_or_else(|| anyhow!("{outpoint} is not confirmed"))?.tx;
        let wanted = TxOut { value: bitcoin::Amount::from_sat(sat), script_pubkey: script.clone() };
        let found = tx.output.get(outpoint.vout as usize);
        if found != Some(&wanted) {
            bail!("{outpoint} is {found:?}, expected {wanted:?}");
        }
        let unspent = self.bitcoind.unspent(outpoint)?.map(bitcoin::Amount::to_sat);
        if unspent != Some(sat) {
            bail!("{outpoint} holds {unspent:?} sat unspent, expected {sat}");
        }
        Ok(())
    }
}

fn sign_node(secrets: &Secrets, node: &Node) -> Result<Signed> {
    let sign = |tx: &TreeTx| sign(secrets, &node.key, tx);
    let txs = node.txs.iter().map(sign).collect::<Result<_>>()?;
    Ok((txs, node.distributions.iter().map(sign).collect::<Result<_>>()?))
}

/// Signs with every signer of `key`, in one session as BIP 327 has it.
fn sign(secrets: &Secrets, key: &AggKey, tx: &TreeTx) -> Result<SignedTx> {
    let message = tx.sighash()?;
    let mut rng = rand::rng();
    let sessions = key
        .signers()
        .iter()
        .map(|signer| {
            let secret = secrets.get(signer).ok_or_else(|| anyhow!("unknown signer"))?;
            Ok(SecretSession::new(secret, key, message, &mut rng)?)
        })
        .collect::<Result<Vec<_>>>()?;
    let nonces: Vec<_> = sessions.iter().map(SecretSession::public_nonce).collect();
    let aggregate = musig::aggregate_nonces(&nonces)?;
    let partials =
        sessions.into_iter().map(|session| session.sign(key, &aggregate)).collect::<Result<Vec<_>, _>>()?;
    let signature = musig::aggregate_partials(key, &message, &aggregate, &partials)?;
    Ok(tx.signed(&signature))
}

/// A P2WSH script that stands for a channel's.
fn channel_script(index: usize) -> ScriptBuf {
    let inner = bitcoin::script::Builder::new().push_int(index as i64 + 2).push_int(1).into_script();
    inner.to_p2wsh()
}

/// Where distributions pay client `index`.
fn payout(index: usize) -> ScriptBuf {
    let inner = bitcoin::script::Builder::new().push_int(index as i64 + 2).push_int(2).into_script();
    inner.to_p2wsh()
}

pub fn stock_script() -> ScriptBuf {
    bitcoin::script::Builder::new().push_int(3).push_int(3).into_script().to_p2wsh()
}
