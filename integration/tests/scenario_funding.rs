//! The funding transaction is the one whose txid the tree was signed for (invariant 16).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::ledger::{wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::wait::{self, Seen};
use integration::world::{CEREMONY, LSP_FUNDS};
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
