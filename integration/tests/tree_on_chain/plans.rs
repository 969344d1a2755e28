//! The exit plan decides what to publish when. Here it decides on what a real chain shows, and a real bitcoind says
//! whether it was right: what it publishes is accepted, and what it waits for is refused one block before.

use anyhow::{bail, Result};
use bitcoin::{Transaction, Txid};
use factory_core::exit::{DistributionAction, ExitAction, ExitPlan, ExitStep, KnownChain, WaitReason};
use factory_core::record::{FundingOutput, LspFactoryRecord, SignedNode, SignedPath, RECORD_VERSION};
use factory_core::transaction::SignedTx;
use integration::Bitcoind;

use crate::factory::Factory;

/// A view of the chain that is fed from bitcoind's blocks.
pub struct Watched {
    pub chain: KnownChain,
    /// The transactions of each block that was read, from height 1.
    blocks: Vec<Vec<Txid>>,
}

impl Watched {
    pub fn new() -> Self {
        Self { chain: KnownChain::default(), blocks: Vec::new() }
    }

    /// Reads the blocks that are new and returns the height of the tip.
    pub fn update(&mut self, bitcoind: &Bitcoind) -> Result<u32> {
        let tip = bitcoind.height()?;
        for height in u32::try_from(self.blocks.len())? + 1..=tip {
            let block = bitcoind.block(height)?;
            for tx in &block {
                self.chain.confirm(tx, height);
            }
            self.blocks.push(block.iter().map(Transaction::compute_txid).collect());
        }
        Ok(tip)
    }

    /// Forgets the blocks above `height`.
    pub fn unwind(&mut self, height: u32) {
        let first = usize::try_from(height).expect("a height").min(self.blocks.len());
        for txid in self.blocks.drain(first..).flatten() {
            self.chain.unconfirm(&txid);
        }
    }
}

/// The record that the provider would store of this factory, as far as a path needs it.
fn record(factory: &Factory) -> Result<LspFactoryRecord> {
    let output = factory.tree.funding_output()?;
    let nodes = factory.tree.nodes().iter().zip(&factory.signed);
    let nodes = nodes.map(|(node, (txs, distributions))| {
        Ok(SignedNode {
            level: u32::try_from(node.level)?,
            first: u32::try_from(node.first)?,
            end: u32::try_from(node.end)?,
            txs: txs.clone(),
            distributions: distributions.clone(),
        })
    });
    Ok(LspFactoryRecord {
        version: RECORD_VERSION,
        attempt: 1,
        plan: factory.tree.plan().clone(),
        client_ids: Vec::new(),
        funding: FundingOutput {
            outpoint: factory.tree.funding_outpoint(),
            value_sat: output.value.to_sat(),
            script: output.script_pubkey,
        },
        channel_scripts: factory.tree.channel_scripts().to_vec(),
        nodes: nodes.collect::<Result<_>>()?,
    })
}

/// The plan of client `index`'s path after a round trip through its stored form.
pub fn plan(factory: &Factory, index: usize) -> Result<ExitPlan> {
    let path = SignedPath { updates: factory.updates, ..record(factory)?.leaf_path(index)? };
    path.verify()?;
    assert_eq!(path.distribution_height()?, factory.expiry);
    let stored: SignedPath = serde_json::from_str(&serde_json::to_string(&path)?)?;
    assert_eq!(stored, path);
    Ok(stored.exit_plan()?)
}

pub fn signed(path: &[SignedTx], step: &ExitStep) -> SignedTx {
    path.iter().find(|tx| tx.txid() == step.txid).expect("a step of the path").clone()
}

/// Does what the plan says until the channel is on the chain. Returns how many transactions that took.
pub fn exit(factory: &mut Factory, view: &mut Watched, index: usize) -> Result<usize> {
    let plan = plan(factory, index)?;
    let path = factory.path(index)?;
    let mut published = 0;
    loop {
        let tip = view.update(&factory.bitcoind)?;
        match plan.next_action(&view.chain, tip) {
            ExitAction::Done => return Ok(published),
            ExitAction::Publish { step } => {
                factory.offer(&signed(&path, &plan.steps[step]))?;
                factory.bitcoind.mine(1)?;
                published += 1;
            }
            ExitAction::Wait { until_height, reason: WaitReason::RelativeDelay { step } } => {
                factory.bitcoind.mine_to(until_height - 1)?;
                factory.refused(&signed(&path, &plan.steps[step]), "non-BIP68-final")?;
                factory.bitcoind.mine_to(until_height)?;
            }
            other => bail!("at height {tip}: {other:?}"),
        }
    }
}

/// Publishes `published` transactions of the leaf's path and then does what the plan says about the distributions.
/// Returns the distribution that paid.
pub fn distribute(factory: &mut Factory, index: usize, published: usize) -> Result<usize> {
    let plan = plan(factory, index)?;
    let path = factory.path(index)?;
    let (_, distributions) = factory.leaf(index)?;
    factory.publish_path(&path[..published])?;
    let mut view = Watched::new();
    loop {
        let tip = view.update(&factory.bitcoind)?;
        match plan.distribution_action(&view.chain, tip) {
            DistributionAction::Done { distribution } => {
                factory.check_distribution(&distributions[distribution], index)?;
                return Ok(distribution);
            }
            DistributionAction::Publish { distribution } => {
                factory.offer(&distributions[distribution])?;
                factory.bitcoind.mine(1)?;
            }
            DistributionAction::PublishPath { step } => {
                factory.offer(&signed(&path, &plan.steps[step]))?;
                factory.bitcoind.mine(1)?;
            }
            DistributionAction::Wait { until_height, reason: WaitReason::Expiry } => {
                factory.bitcoind.mine_to(until_height - 1)?;
                for distribution in &distributions {
                    factory.refused(distribution, "")?;
                }
                factory.bitcoind.mine_to(until_height)?;
            }
            DistributionAction::Wait { until_height, reason: WaitReason::RelativeDelay { step } } => {
                factory.bitcoind.mine_to(until_height - 1)?;
                let waiting = &distributions[step - plan.leaf_start];
                factory.refused(waiting, "non-BIP68-final")?;
                factory.bitcoind.mine_to(until_height)?;
            }
            other => bail!("at height {tip}: {other:?}"),
        }
    }
}
