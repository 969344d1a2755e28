//! Reorganisations at each step of an exit. The chain loses its last blocks after each confirmation and again when each
//! delay is over; the plan says from the chain alone what to do again, and the exit ends where it would have ended.

use std::collections::BTreeSet;

use anyhow::{bail, ensure, Context, Result};
use bitcoin::hashes::Hash;
use bitcoin::{Address, BlockHash, Network, ScriptBuf, WScriptHash};
use factory_core::exit::{ChainView, DistributionAction, ExitAction, WaitReason};
use factory_core::transaction::SignedTx;
use serde_json::{json, Value};

use crate::factory::{params, Chain, Factory};
use crate::plans::{self, Watched};

const DEEPEST: u32 = 6;
/// Coins for all that is published more than once.
const COINS: usize = 80;
/// Blocks on top of the funding and the coins, more than all reorganisations of one exit take back.
const BURIED: u32 = 60;

/// Takes the last `depth` blocks away for good, with one block without their transactions in the place of the first.
/// Returns the height where the chains part.
fn reorganise(chain: &Chain, depth: u32) -> Result<u32> {
    let common = chain.height()? - depth;
    let first: BlockHash = chain.rpc().call("getblockhash", json!([common + 1]))?;
    chain.rpc().call::<Value>("invalidateblock", json!([first]))?;
    // Paid to a new script: a block made in the same second could otherwise be the one that was taken away.
    let script = ScriptBuf::new_p2wsh(&WScriptHash::from_byte_array(rand::random()));
    let address = Address::from_script(&script, Network::Regtest)?;
    chain.rpc().call::<Value>("generateblock", json!([address.to_string(), []]))?;
    Ok(common)
}

struct Exit {
    factory: Factory,
    view: Watched,
    depth: u32,
    /// What was taken back already: one reorganisation for each.
    done: BTreeSet<String>,
}

impl Exit {
    fn new(clients: usize, per_leaf: u16, depth: u32) -> Result<Self> {
        let chain = Chain::start()?;
        // The coin that funds must be mature also without the blocks that are taken back.
        chain.mine(DEEPEST)?;
        let mut params = params(clients, per_leaf)?;
        // Longer than the deepest reorganisation, and short enough to be waited for many times.
        for layer in params.shape.layers.iter_mut().flatten() {
            layer.step = 12;
            layer.base = layer.base.min(8);
        }
        let factory = Factory::create_on(&chain, clients, params, 0)?;
        Ok(Self { factory, view: Watched::new(), depth, done: BTreeSet::new() })
    }

    /// Takes the funding transaction back before anything is published of the tree; then everything is buried.
    fn lose_funding(&mut self) -> Result<()> {
        let chain = self.factory.bitcoind.clone();
        let plan = plans::plan(&self.factory, 0)?;
        let funding = self.factory.tree.funding_outpoint().txid;
        let funded = chain.confirmed(funding)?.map(|confirmed| confirmed.height);
        let funded = funded.context("the funding is not confirmed")?;
        let lost_tip = self.view.update(&chain)?;
        let mut lost = Vec::new();
        for height in funded..=lost_tip {
            lost.extend(chain.block(height)?.into_iter().filter(|tx| !tx.is_coinbase()));
        }
        self.view.unwind(reorganise(&chain, lost_tip + self.depth - funded)?);
        let tip = self.view.update(&chain)?;
        let action = plan.next_action(&self.view.chain, tip);
        let reason = WaitReason::FundingUnconfirmed;
        ensure!(action == ExitAction::Wait { until_height: tip + 1, reason }, "without funding: {action:?}");
        // The wallet's payments have lock times and are not valid, nor in the mempool, before the old height.
        chain.mine_empty(lost_tip - tip)?;
        for tx in lost {
            if !chain.mempool()?.contains(&tx.compute_txid()) {
                chain.send(&tx)?;
            }
        }
        chain.mine(1)?;
        let tip = self.view.update(&chain)?;
        ensure!(self.view.chain.confirmed_at(&funding) == Some(tip), "the funding confirms again");
        self.factory.refill(COINS)?;
        chain.mine(BURIED)?;
        Ok(())
    }

    /// Reorganises once for each `what`.
    fn reorganise(&mut self, what: String) -> Result<()> {
        if self.done.insert(what) {
            let common = reorganise(&self.factory.bitcoind, self.depth)?;
            self.view.unwind(common);
        }
        Ok(())
    }

    /// Has it confirm, and takes that back the first time.
    fn confirm(&mut self, tx: &SignedTx) -> Result<()> {
        // What a reorganisation took out may be back in the mempool with its child, which pays as much.
        if let Err(error) = self.factory.offer(tx) {
            let waits = self.factory.bitcoind.mempool()?.contains(&tx.txid());
            ensure!(waits, "{} at its time: {error}", tx.kind);
        }
        self.factory.bitcoind.mine(1)?;
        let height = self.view.update(&self.factory.bitcoind)?;
        let found = self.view.chain.confirmed_at(&tx.txid());
        ensure!(found == Some(height), "{} is at {found:?}, expected {height}", tx.kind);
        self.reorganise(format!("{} confirmed", tx.kind))
    }

    /// Waits, with `tx` refused before, and takes the end of the wait back the first time.
    fn wait(&mut self, until: u32, tx: &SignedTx, reason: &str) -> Result<()> {
        self.factory.bitcoind.mine_to(until - 1)?;
        self.factory.refused(tx, reason)?;
        self.factory.bitcoind.mine_to(until)?;
        self.view.update(&self.factory.bitcoind)?;
        self.reorganise(format!("{} ready", tx.kind))
    }

    /// The exit of client `index`. Returns the number of reorganisations.
    fn run(&mut self, index: usize) -> Result<usize> {
        let plan = plans::plan(&self.factory, index)?;
        let path = self.factory.path(index)?;
        loop {
            let tip = self.view.update(&self.factory.bitcoind)?;
            match plan.next_action(&self.view.chain, tip) {
                ExitAction::Publish { step } => {
                    self.confirm(&plans::signed(&path, &plan.steps[step]))?;
                }
                ExitAction::Wait { until_height, reason: WaitReason::RelativeDelay { step } } => {
                    let tx = plans::signed(&path, &plan.steps[step]);
                    self.wait(until_height, &tx, "non-BIP68-final")?;
                }
                ExitAction::Done => break,
                other => bail!("at height {tip}: {other:?}"),
            }
        }
        self.factory.check_leaf(index)?;
        Ok(self.done.len())
    }

    /// The distribution to client `index`'s leaf after its first `published` transactions.
    fn distribute(&mut self, index: usize, published: usize) -> Result<usize> {
        let plan = plans::plan(&self.factory, index)?;
        let path = self.factory.path(index)?;
        let (_, distributions) = self.factory.leaf(index)?;
        self.factory.publish_path(&path[..published])?;
        loop {
            let tip = self.view.update(&self.factory.bitcoind)?;
            match plan.distribution_action(&self.view.chain, tip) {
                DistributionAction::PublishPath { step } => {
                    self.confirm(&plans::signed(&path, &plan.steps[step]))?;
                }
                DistributionAction::Publish { distribution } => {
                    self.confirm(&distributions[distribution].clone())?;
                }
                DistributionAction::Wait { until_height, reason: WaitReason::Expiry } => {
                    self.wait(until_height, &distributions[0].clone(), "non-final")?;
                }
                DistributionAction::Wait { until_height, reason: WaitReason::RelativeDelay { step } } => {
                    let tx = distributions[step - plan.leaf_start].clone();
                    self.wait(until_height, &tx, "non-BIP68-final")?;
                }
                DistributionAction::Done { distribution } => {
                    self.factory.check_distribution(&distributions[distribution], index)?;
                    return Ok(self.done.len());
                }
                other => bail!("at height {tip}: {other:?}"),
            }
        }
    }
}

#[test]
fn an_exit_through_reorganisations() -> Result<()> {
    for depth in 1..=DEEPEST {
        let mut exit = Exit::new(3, 1, depth)?;
        exit.lose_funding()?;
        // Root, kickoff and three states confirm, and each state has a delay that ends.
        assert_eq!(exit.run(1).with_context(|| format!("depth {depth}"))?, 5 + 3);
    }
    Ok(())
}

#[test]
fn distributions_through_reorganisations() -> Result<()> {
    for depth in 1..=DEEPEST {
        // From nothing: expiry, root and distribution. After the kickoff and a state: expiry and distribution.
        let (published, reorganised) = if depth % 2 == 0 { (0, 3) } else { (3, 2) };
        let mut exit = Exit::new(3, 1, depth)?;
        exit.lose_funding()?;
        let done = exit.distribute(1, published).with_context(|| format!("depth {depth}"))?;
        assert_eq!(done, reorganised, "after {published} transactions");
    }
    Ok(())
}
