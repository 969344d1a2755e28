//! Reorganisations after a cooperative close, one to six blocks deep: the close comes back, with it everybody's money,
//! to the satoshi; also when the funding falls with it, and whoever is dead meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Result};
use bitcoin::Txid;
use integration::closed::{dues, nobody_pays, wait_signed};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::wait;
use integration::world::{CLIENT_COIN, PATIENCE};
use integration::World;

const CAPACITY: u64 = 300_000;
const FINAL: u32 = 6;

struct Closed {
    world: World,
    id: String,
    before: Snapshot,
    dues: Vec<u64>,
    funding: Txid,
    txid: Txid,
}

/// A factory that is closed; the transaction is in the mempool.
fn closed(name: &str) -> Result<Closed> {
    let world = World::start(name, 2)?;
    world.mine(FINAL)?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 5_000, None))?;
    let start = Snapshot::take(&world)?;
    let paid = pay(&world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 12_345_678 })?;
    wait_for(&world, &start.after(&[paid])?)?;
    let before = wait_at_rest(&world)?;
    let id = factory.instance_id.clone();
    let dues = dues(&world, &id)?;
    world.lsp.close_factory(&id)?;
    let txid = wait_signed(&world, &id)?;
    world.bitcoind.wait_seen(txid, PATIENCE)?;
    Ok(Closed { world, id, before, dues, funding: factory.funding.expect("funding").txid, txid })
}

impl Closed {
    /// Everybody shows the close as so deep, with its due in the wallet once it is in a block.
    fn check(&self, confirmations: u32) -> Result<()> {
        let (world, id) = (&self.world, &self.id);
        world.sync()?;
        let there = world.bitcoind.confirmed(self.txid)?.map(|there| there.height);
        let depth = there.map_or(0, |height| world.bitcoind.height().unwrap_or(0) + 1 - height);
        ensure!(depth == confirmations, "{depth} confirmations, expected {confirmations}");
        for (client, due) in world.clients.iter().zip(&self.dues) {
            let coins = CLIENT_COIN + if depth > 0 { *due } else { 0 };
            wait::until_value(
                &format!("{} to hold {coins} sat in coins", client.name()),
                PATIENCE,
                || client.balance(),
                |b| {
                    b.onchain.confirmed_sat == coins
                        && b.lightning.pending_sweep_sat == 0
                        && b.lightning.local_msat == 0
                },
            )?;
        }
        if depth > 0 {
            world.wait_state(id, "closed", PATIENCE)?;
            wait::until("the sums to be right", PATIENCE, || {
                check_conserved(world, &self.before, &Snapshot::take(world)?)?;
                Ok(wait::Seen::Done(()))
            })?;
        } else {
            world.bitcoind.wait_seen(self.txid, PATIENCE)?;
        }
        Ok(())
    }
}

/// The chain is rewritten when the close has each number of confirmations up to six.
#[test]
fn the_close_falls_at_each_depth_and_comes_back() -> Result<()> {
    let mut closed = closed("reorg-close")?;
    closed.check(0)?;
    let block = closed.world.bitcoind.confirmed(closed.funding)?.expect("it is deep").height;
    let fee = closed.world.bitcoind.fees(block, block)? * 1000;
    closed.world.bitcoind.reorganize(FINAL)?;
    // The funding fell with the blocks below the close; its fee is paid in the blocks that are counted.
    assert!(closed.world.bitcoind.confirmed(closed.funding)?.is_none());
    *closed.before.parties.get_mut("lsp").expect("the LSP's") += fee;
    closed.world.bitcoind.wait_seen(closed.funding, PATIENCE)?;
    closed.check(0)?;
    nobody_pays(&closed.world)?;
    for confirmations in 1..=FINAL {
        closed.world.mine(confirmations)?;
        closed.check(confirmations)?;
        // By turns a client and the LSP are dead while it falls.
        match confirmations % 3 {
            1 => closed.world.client_mut(0)?.kill()?,
            2 => closed.world.lsp.kill()?,
            _ => {}
        }
        closed.world.bitcoind.reorganize(confirmations)?;
        assert!(closed.world.bitcoind.confirmed(closed.txid)?.is_none());
        match confirmations % 3 {
            1 => closed.world.client_mut(0)?.start()?,
            2 => closed.world.lsp.start()?,
            _ => {}
        }
        closed.check(0)?;
    }
    nobody_pays(&closed.world)?;
    closed.world.mine(FINAL + 1)?;
    closed.check(FINAL + 1)?;
    closed.world.finish();
    Ok(())
}
