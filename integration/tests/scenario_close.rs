//! A factory is closed with everybody's consent: one transaction, each party paid its channel balance.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::close;
use integration::ledger::{check_conserved, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
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
