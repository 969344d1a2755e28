//! A leaf's state is replaced by a newer one under a live channel.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::hold::Held;
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::{exit, rotate, World};

const CAPACITY: u64 = 500_000;
const MOVER: usize = 0;

/// Three rotations, with payments between them and one held over the second; then the client leaves by its newest
/// path with the LSP dead.
#[test]
fn three_rotations_then_the_client_leaves() -> Result<()> {
    let mut world = World::start("rotate", 2)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    let factory = world.create_factory(&request)?;
    let id = factory.instance_id.clone();
    let start = Snapshot::take(&world)?;
    let there = |amount_msat| Order { from: Party::Client(MOVER), to: Party::Client(1), amount_msat };
    let back = |amount_msat| Order { from: Party::Client(1), to: Party::Client(MOVER), amount_msat };

    let mut paid = vec![pay(&world, there(12_345_678))?];
    rotate::once(&world, &id, MOVER)?;
    paid.extend([pay(&world, back(7_000_001))?, pay(&world, there(3_000_000))?]);
    wait_for(&world, &start.after(&paid)?)?;

    let held = Held::start(&world, there(20_000_000))?;
    rotate::once(&world, &id, MOVER)?;
    held.check_held(&world)?;
    held.claim(&world)?;
    paid.push(held.paid(&world)?);
    wait_for(&world, &start.after(&paid)?)?;

    rotate::once(&world, &id, MOVER)?;
    paid.push(pay(&world, back(1_234_567))?);
    wait_for(&world, &start.after(&paid)?)?;
    let node = world.client(MOVER)?.node_id().to_owned();
    let leaf = rotate::leaf(&world, &id, &node)?;
    assert_eq!((leaf.position, leaf.superseded), (3, 3), "{leaf:?}");
    wait_at_rest(&world)?;

    world.lsp.kill()?;
    let report = exit::drive(&world, MOVER, &id, &mut |line| println!("{line}"))?;
    report.check_wallet(CAPACITY)?;
    world.finish();
    Ok(())
}
