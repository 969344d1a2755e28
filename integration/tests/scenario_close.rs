//! A factory is closed with everybody's consent: one transaction, each party paid its channel balance.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::close;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::wait;
use integration::world::PATIENCE;
use integration::World;
use serde_json::json;

const CAPACITY: u64 = 400_000;

#[test]
fn a_factory_is_closed_by_one_transaction() -> Result<()> {
    let mut world = World::start("close", 5)?;
    // The last client starts with nothing.
    let mut request = world.factory_request(CAPACITY, CAPACITY / 2, 15_000, None);
    request["clients"][4]["push_sat"] = json!(0);
    let factory = world.create_factory(&request)?;
    let start = Snapshot::take(&world)?;
    let paid = [
        pay(&world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 33_333_333 })?,
        pay(&world, Order { from: Party::Client(2), to: Party::Client(3), amount_msat: 1_999 })?,
        // Too little to be paid out.
        pay(&world, Order { from: Party::Client(3), to: Party::Client(4), amount_msat: 200_500 })?,
    ];
    let before = wait_for(&world, &start.after(&paid)?)?;
    // All of the close is stored with the consents, with the last balance and with each try to sign, one if all goes
    // well; not with each of the five balances.
    world.lsp.faults().set("kill@lsp.close.stored#6")?;
    let closed = close::drive(&world, &factory.instance_id);
    assert!(!world.lsp.was_killed()?, "all of the close is stored for each balance");
    let report = closed?;
    assert_eq!(report.due.get(world.client(4)?.node_id()), Some(&200));
    assert_eq!(report.due.values().filter(|sat| **sat >= close::SMALLEST_PAYOUT).count(), 4);
    let after = Snapshot::take(&world)?;
    check_conserved(&world, &before, &after)?;
    for client in &world.clients {
        assert!(client.channels()?.is_empty(), "{} still lists a channel", client.name());
    }
    world.finish();
    Ok(())
}

/// The LSP's disk is full when it is to store the consents, and once more when it is to store the signed close: nothing
/// that depends on them is done before there is room, also not what would not survive a restart.
#[test]
fn a_close_waits_for_room_on_the_disk() -> Result<()> {
    let mut world = World::start("close-full", 2)?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, None))?;
    let id = factory.instance_id;
    let start = Snapshot::take(&world)?;
    let order = Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 12_345_678 };
    let paid = pay(&world, order)?;
    wait_for(&world, &start.after(&[paid])?)?;
    let before = wait_at_rest(&world)?;
    let due = close::Due::ask(&world, &id)?;
    let full = |world: &World| {
        wait::until_value("a full disk", PATIENCE, || world.lsp.metric("disk_full"), |full| *full == 1)
    };

    world.lsp.faults().set("hold@lsp.close.store")?;
    world.lsp.close_factory(&id)?;
    world.lsp.faults().wait_held("lsp.close.store")?;
    world.lsp.faults().set("on@store.full")?;
    world.lsp.faults().go_on("lsp.close.store")?;
    full(&world)?;
    for channel in world.lsp.channels()? {
        assert_eq!(channel.state, "ready", "{channel:?}");
    }
    // With room again it goes on, and the consents are on disk by the time the first channel is shut down.
    world.lsp.faults().set("kill@lsp.channel.shut")?;
    world.lsp.wait_killed()?;
    world.lsp.faults().set("hold@lsp.close_tx.store")?;
    world.lsp.start()?;
    world.lsp.faults().wait_held("lsp.close_tx.store")?;
    world.lsp.faults().set("on@store.full")?;
    world.lsp.faults().go_on("lsp.close_tx.store")?;
    full(&world)?;
    // What is signed and not stored is not there, also when a block makes it publish what it has.
    let no_close = |world: &World| -> Result<()> {
        let close = world.lsp.factory(&id)?.close.expect("it is under way");
        assert!(close.txid.is_none(), "{close:?}");
        assert!(world.bitcoind.mempool()?.is_empty());
        Ok(())
    };
    no_close(&world)?;
    world.mine(1)?;
    no_close(&world)?;
    world.lsp.faults().clear()?;
    due.finish(&world)?;
    check_conserved(&world, &before, &Snapshot::take(&world)?)?;
    assert!(world.lsp.events("close_stalled")?.is_empty(), "nobody else is to blame");
    world.finish();
    Ok(())
}
