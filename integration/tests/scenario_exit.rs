//! One client leaves alone while the LSP is dead; the others lose nothing and go on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::exit;
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::wait;
use integration::world::PATIENCE;
use integration::World;

const CAPACITY: u64 = 500_000;
const LEAVER: usize = 1;

#[test]
fn a_client_leaves_while_the_lsp_is_dead() -> Result<()> {
    let mut world = World::start("exit", 4)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    let factory = world.create_factory(&request)?;
    let start = Snapshot::take(&world)?;
    // An odd sum of msat, so that the commitment has something to round.
    let paid = [
        pay(&world, Order { from: Party::Client(0), to: Party::Client(LEAVER), amount_msat: 12_345_678 })?,
        pay(&world, Order { from: Party::Client(LEAVER), to: Party::Client(2), amount_msat: 1_000_001 })?,
    ];
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;

    world.lsp.kill()?;
    let report = exit::drive(&world, LEAVER, &factory.instance_id, &mut |line| println!("{line}"))?;
    report.check_wallet(CAPACITY)?;
    // Its own account of the factory ends there too, once the sweep is deep.
    world.mine_for(world.client(LEAVER)?, 12)?;
    wait::until_value(
        "the client to call the factory left",
        PATIENCE,
        || Ok(world.client(LEAVER)?.factory(&factory.instance_id)?.state),
        |state| state == "exited",
    )?;

    // The LSP comes back to a chain on which one leaf is published.
    world.lsp.start()?;
    world.sync()?;
    let leaver = world.client(LEAVER)?.node_id().to_owned();
    let mut rest = factory.clone();
    rest.clients.retain(|member| member.node_id != leaver);
    world.wait_usable(&rest)?;
    // The LSP's share of the published channel goes to its wallet, whatever blocks that takes.
    let after = exit::settle_lsp(&world, &before)?;
    for index in [0, 2, 3] {
        let name = format!("client-{index}");
        assert_eq!(after.of(&name)?, before.of(&name)?, "{name} lost money");
    }

    let paid = [
        pay(&world, Order { from: Party::Client(0), to: Party::Client(2), amount_msat: 5_000_000 })?,
        pay(&world, Order { from: Party::Client(2), to: Party::Client(3), amount_msat: 6_000_000 })?,
        pay(&world, Order { from: Party::Client(3), to: Party::Client(0), amount_msat: 7_000_000 })?,
    ];
    wait_for(&world, &after.after(&paid)?)?;
    world.finish();
    Ok(())
}
