//! Every client leaves at once, while the LSP is dead and blocks are full of dearer transactions: all end, and cost what
//! the planner says, but for the waiting.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;

use anyhow::{ensure, Result};
use bitcoin::{Network, Txid};
use factory_core::params::Params;
use factory_core::planner::exit_steps;
use factory_core::sizes;
use integration::ledger::wait_at_rest;
use integration::pace::{self, Leaving};
use integration::traffic::{self, Traffic};
use integration::World;

const CAPACITY: u64 = 400_000;
/// Weight of a block, so small that the foreign traffic fills ten of them.
const BLOCK_WEIGHT: u32 = 400_000;
/// Feerates of the foreign traffic, sat/vB: from what the clients begin with to several times that.
const FEERATES: (u64, u64) = (5, 40);
/// The planner counts an output for the stock of a leaf, of which there is none here, vB.
const STOCK_VB: u64 = 43;
/// Blocks that all exits together may take.
const LIMIT: u32 = 1_500;

/// What one transaction of an exit took.
struct Row {
    /// Blocks from the first that it could be in to the one it is in.
    waited: u32,
    /// Blocks after its parent.
    blocks: u32,
    /// With its child.
    vbytes: u64,
    fee_sat: u64,
    /// Outputs of the child beyond the one that the planner counts, and coins beyond the first.
    extra_vb: u64,
}

fn fee_of(world: &World, child: &bitcoin::Transaction) -> Result<u64> {
    let mut spent = 0;
    for input in &child.input {
        let parent = world.bitcoind.transaction(input.previous_output.txid)?.expect("known");
        spent += parent.output[usize::try_from(input.previous_output.vout)?].value.to_sat();
    }
    Ok(spent - child.output.iter().map(|output| output.value.to_sat()).sum::<u64>())
}

/// Looks a transaction and its child up in the chain.
fn row(world: &World, txid: Txid, parent_height: u32, delay: u16) -> Result<Row> {
    let there = world.bitcoind.confirmed(txid)?.expect("confirmed");
    let child = pace::child_of(world, txid)?;
    let blocks = there.height - parent_height;
    let earliest = u32::from(delay).max(1);
    ensure!(blocks >= earliest, "{txid} confirmed {blocks} blocks after its parent, its delay is {delay}");
    let (inputs, outputs) = (u64::try_from(child.input.len())?, u64::try_from(child.output.len())?);
    Ok(Row {
        waited: blocks - earliest,
        blocks,
        vbytes: u64::try_from(there.tx.vsize() + child.vsize())?,
        fee_sat: fee_of(world, &child)?,
        // A key path input has 57.5 vB, an output 43 vB (BIP 141).
        extra_vb: ((inputs - 2) * 115).div_ceil(2) + (outputs - 1) * 43,
    })
}

fn all_leave(name: &str, clients: usize, traffic_vb: u64) -> Result<()> {
    let mut world = World::start(name, clients)?;
    traffic::small_blocks(&mut world.bitcoind, BLOCK_WEIGHT)?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, None))?;
    let id = factory.instance_id.clone();
    let params = Params::default_for(clients, Network::Regtest)?;
    // Where in the tree each leaf is, and so how wide the nodes above it are.
    let mut places: HashMap<Txid, usize> = HashMap::new();
    for tx in world.lsp.factory(&id)?.tree {
        places.insert(tx.txid, tx.clients.0);
    }
    let traffic = Traffic::prepare(&world.bitcoind, traffic_vb)?;
    world.sync()?;
    let before = wait_at_rest(&world)?;
    world.lsp.kill()?;
    let foreign = traffic.send(&world.bitcoind, FEERATES.0, FEERATES.1)?;
    let exits = (0..clients).map(|index| Leaving::client(&world, index, &id)).collect::<Result<Vec<_>>>()?;
    for client in &world.clients {
        client.exit(&id)?;
    }
    pace::drive(&world, &exits, LIMIT, &mut |_| Ok(()))?;
    pace::rest(&world)?;

    let mut known: HashMap<Txid, u64> = HashMap::new();
    let mut waited_most = 0;
    println!("client  blocks  planned  waited  vbytes  planned  child fees of the path, sat");
    for (index, leaving) in exits.iter().enumerate() {
        let exit = leaving.exit(&world)?;
        let planned = exit_steps(&params, clients, places[&exit.steps.last().expect("a path").txid])?;
        assert_eq!(planned.len(), exit.steps.len() + 1, "the path and the commitment");
        let mut parent = before.height;
        let (mut blocks, mut waited, mut vbytes, mut fees) = (0, 0, 0, 0);
        let commitment = exit.commitment_txid.expect("commitment");
        let txids = exit.steps.iter().map(|step| step.txid).chain([commitment]);
        for (txid, plan) in txids.zip(&planned) {
            let row = row(&world, txid, parent, plan.delay)?;
            parent += row.blocks;
            blocks += row.blocks;
            waited += row.waited;
            vbytes += row.vbytes - row.extra_vb;
            fees += row.fee_sat;
            known.insert(txid, row.fee_sat);
        }
        let planned_blocks: u32 = planned.iter().map(|step| u32::from(step.delay).max(1)).sum();
        let planned_vb: u64 = planned.iter().map(|step| step.size.vbytes() + sizes::child().vbytes()).sum();
        let planned_vb = planned_vb - STOCK_VB;
        println!("{index:6}  {blocks:6}  {planned_blocks:7}  {waited:6}  {vbytes:6}  {planned_vb:7}  {fees}");
        assert_eq!(blocks - waited, planned_blocks);
        // The planner rounds each transaction up, and counts the commitment's signatures at their longest.
        assert!(vbytes <= planned_vb && planned_vb - vbytes <= 4, "{vbytes} vB, planned {planned_vb}");
        waited_most = waited_most.max(waited);
    }
    let paid: u64 = known.values().sum();
    println!(
        "{} transactions and their children, {paid} sat; waited at most {waited_most} blocks",
        known.len()
    );
    assert!(waited_most > 0, "nobody had to wait: the blocks were not full");
    let mut foreign_sat = 0;
    for txid in &foreign {
        let there = world.bitcoind.confirmed(*txid)?.expect("the foreign traffic confirms, too");
        foreign_sat += fee_of(&world, &there.tx)?;
    }
    for client in &world.clients {
        let balance = client.balance()?;
        assert_eq!(balance.onchain.confirmed_sat, balance.total_sat, "{}: {balance:?}", client.name());
    }

    world.lsp.start()?;
    pace::rest_until(&world, |after| {
        let fees = world.bitcoind.fees(before.height + 1, after.height)? - foreign_sat;
        ensure!(before.total() == after.total() + fees * 1000, "{before:?} {after:?}");
        Ok(())
    })?;
    world.finish();
    Ok(())
}

#[test]
fn five_clients_leave_at_once() -> Result<()> {
    all_leave("five", 5, 300_000)
}

#[test]
#[ignore = "long: make exits"]
fn twenty_clients_leave_at_once() -> Result<()> {
    all_leave("twenty", 20, 1_000_000)
}
