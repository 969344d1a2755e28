//! Capacities change under live channels: liquidity is sold from the stock of a leaf, given back, and moved.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::liquidity;
use integration::payments::{pay, Order, Party};
use integration::{exit, rotate, World};

const CAPACITY: u64 = 500_000;
/// Nearly all: what is left is the LSP's reserve of 1 %.
const PUSH: u64 = 495_000;
const STOCK: u64 = 300_000;
const BUYER: usize = 0;
const OTHER: usize = 1;

fn there(amount_msat: u64) -> Order {
    Order { from: Party::Client(BUYER), to: Party::Client(OTHER), amount_msat }
}

fn back(amount_msat: u64) -> Order {
    Order { from: Party::Client(OTHER), to: Party::Client(BUYER), amount_msat }
}

/// A client that cannot be paid buys inbound liquidity, is paid, pays, rotates on, gives some back, and leaves with the
/// LSP dead: with all that it was paid.
#[test]
fn a_client_without_inbound_buys_some_and_is_paid() -> Result<()> {
    let mut world = World::start_with_lsp("liquidity", 2, &["--free-liquidity-sat", "250000"])?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, PUSH, STOCK, None))?;
    let id = factory.instance_id.clone();
    let start = Snapshot::take(&world)?;
    assert!(pay(&world, back(50_000_000)).is_err(), "the client was paid over a channel without room");

    liquidity::ask(&world, &id, BUYER, 200_000)?;
    rotate::wait_position(&world, &id, BUYER, 1)?;
    liquidity::wait_capacity(&world, &id, BUYER, CAPACITY + 200_000)?;
    wait_for(&world, &start)?;
    let mut paid = vec![pay(&world, back(150_000_000))?, pay(&world, there(20_000_001))?];
    wait_for(&world, &start.after(&paid)?)?;

    rotate::once(&world, &id, BUYER)?;
    paid.push(pay(&world, back(10_000_003))?);
    wait_for(&world, &start.after(&paid)?)?;
    wait_at_rest(&world)?;

    world.lsp.kill()?;
    let report = exit::drive(&world, BUYER, &id, &mut |line| println!("{line}"))?;
    report.check_wallet(CAPACITY + 200_000)?;
    world.finish();
    Ok(())
}
