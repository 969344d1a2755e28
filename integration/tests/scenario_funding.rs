//! The funding transaction is the one whose txid the tree was signed for (invariant 16), and it leaves only when every
//! client has its path on disk (invariant 2).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::ledger::{wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::wait::{self, Seen};
use integration::world::{CEREMONY, LSP_FUNDS, PATIENCE};
use integration::World;

const CAPACITY: u64 = 300_000;

/// The LSP's wallet signs something else than it was given, as one with an external signer might: nothing is shown to
/// anybody, no coin is lost or locked, and the next factory is made.
#[test]
fn a_wallet_that_changes_the_txid_funds_nothing() -> Result<()> {
    let world = World::start("funding-txid", 2)?;
    let before = Snapshot::take(&world)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    world.wait_waiting(2)?;
    world.lsp.faults().set("on@wallet.changes_txid")?;
    let id = world.lsp.create_factory(&request)?;
    let failure = wait::until("the LSP to give the factory up", CEREMONY, || {
        assert_eq!(world.bitcoind.mempool()?, [], "a transaction with another txid was shown");
        let factory = world.lsp.factory(&id)?;
        Ok(if factory.state == "failed" {
            Seen::Done(factory.failure.unwrap_or_default())
        } else {
            Seen::NotYet(factory.state)
        })
    })?;
    assert!(failure.contains("txid"), "{failure}");
    assert_eq!(world.bitcoind.mempool()?, []);
    wait::until_value(
        "every coin to be free again",
        CEREMONY,
        || Ok(world.lsp.balance()?.onchain),
        |onchain| (onchain.confirmed_sat, onchain.reserved_sat) == (LSP_FUNDS, 0),
    )?;
    wait_for(&world, &before)?;

    world.lsp.faults().clear()?;
    let factory = world.create_factory(&request)?;
    assert_ne!(factory.instance_id, id);
    let before = Snapshot::take(&world)?;
    let paid = pay(&world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 9_000_001 })?;
    wait_for(&world, &before.after(&[paid])?)?;
    world.finish();
    Ok(())
}

/// A client dies when it has stored its path and said nothing yet: the factory is made without it. It comes back with
/// the path, for only the LSP knows that the first funding transaction is void.
#[test]
fn a_client_that_dies_keeps_the_path_that_it_has_stored() -> Result<()> {
    const DYING: usize = 2;
    let mut world = World::start("funding-path", 3)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    world.wait_waiting(3)?;
    world.client(DYING)?.faults().set("kill@client.path.stored")?;
    let id = world.lsp.create_factory(&request)?;
    world.client_mut(DYING)?.wait_killed()?;
    world.client(DYING)?.faults().clear()?;
    world.client_mut(DYING)?.start()?;
    let kept = world.client(DYING)?.factories()?;
    assert_eq!(kept.len(), 1, "the path is lost: {kept:?}");
    let kept = kept[0].funding.expect("a funding output");

    let factory = world.wait_state(&id, "confirming", CEREMONY)?;
    let funding = factory.funding.expect("funding");
    assert_ne!(kept.txid, funding.txid, "another attempt, another funding transaction");
    let dead = world.client(DYING)?.node_id();
    assert!(factory.excluded.iter().any(|e| e.node_id == dead), "{:?}", factory.excluded);
    world.bitcoind.wait_seen(funding.txid, PATIENCE)?;
    world.mine(1)?;
    let factory = world.wait_state(&id, "active", PATIENCE)?;
    world.wait_usable(&factory)?;
    let before = Snapshot::take(&world)?;
    let paid = pay(&world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 9_000_001 })?;
    wait_for(&world, &before.after(&[paid])?)?;
    world.finish();
    Ok(())
}
