//! Capacities change under live channels: liquidity is sold from the stock of a leaf, given back, and moved.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::crash::Place;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::liquidity;
use integration::pace::{self, Leaving};
use integration::payments::{pay, Order, Party};
use integration::{close, exit, rotate, World};
use serde_json::{json, Value};

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
    // By itself the LSP makes no room here.
    let own = ["--relay", "false", "--jit-rotate-first", "false", "--jit-max-channel-sat", "0"];
    let mut world =
        World::start_with_lsp("liquidity", 2, &[&own[..], &["--free-liquidity-sat", "250000"]].concat())?;
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

/// The operator sells from the stock; a neighbour that was not asked keeps what it has, and gives some back when it wants
/// to; the close pays everybody to the satoshi.
#[test]
fn the_operator_sells_neighbours_give_back_and_the_factory_is_closed() -> Result<()> {
    let world = World::start_with_lsp("liquidity-lsp", 2, &["--free-liquidity-sat", "1"])?;
    // Both in one leaf, so that they are neighbours.
    let params = json!({ "clients_per_leaf": 2, "arity": [], "layers": [[[8, 4, 8]]] });
    let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params));
    let id = world.create_factory(&request)?.instance_id;
    let start = Snapshot::take(&world)?;
    let held = |buyer, other| -> Result<()> {
        liquidity::wait_capacity(&world, &id, BUYER, buyer)?;
        liquidity::wait_capacity(&world, &id, OTHER, other)
    };
    liquidity::sell(&world, &id, BUYER, 100_000)?;
    rotate::wait_position(&world, &id, BUYER, 1)?;
    held(CAPACITY + 100_000, CAPACITY)?;
    let mut paid = vec![pay(&world, back(200_000_000))?];

    liquidity::shift(&world, &id, (OTHER, BUYER), 50_000)?;
    let neighbour = world.client(OTHER)?.node_id().to_owned();
    let failure = rotate::wait_failure(&world, &id, &neighbour)?;
    assert!(failure.contains(&neighbour), "{failure}");
    held(CAPACITY + 100_000, CAPACITY)?;
    paid.push(pay(&world, there(30_000_001))?);
    wait_for(&world, &start.after(&paid)?)?;

    liquidity::ask(&world, &id, OTHER, -50_000)?;
    rotate::wait_position(&world, &id, BUYER, 2)?;
    held(CAPACITY + 100_000, CAPACITY - 50_000)?;
    liquidity::sell(&world, &id, BUYER, 50_000)?;
    rotate::wait_position(&world, &id, BUYER, 3)?;
    held(CAPACITY + 150_000, CAPACITY - 50_000)?;
    paid.extend([pay(&world, there(10_000_001))?, pay(&world, back(10_000_003))?]);
    wait_for(&world, &start.after(&paid)?)?;
    close::drive(&world, &id)?;
    world.finish();
    Ok(())
}

/// Where a process may die in a sale, in the order in which it comes by.
const STEPS: [(&str, Place); 9] = [
    ("node.channel.moved", Place::Lsp),
    ("node.channel.moved", Place::Client),
    ("node.change.bind", Place::Lsp),
    ("node.change.bound", Place::Lsp),
    ("node.change.bind", Place::Client),
    ("node.change.bound", Place::Client),
    ("lsp.advance.stored", Place::Lsp),
    ("node.change.signed", Place::Lsp),
    ("client.advance.stored", Place::Client),
];

/// A process dies there in a sale; afterwards both sides have the same state and the same capacity, the leaf rotates on,
/// payments pass, and the balances add up.
fn dies_and_goes_on(name: &str, steps: &[(&str, Place)]) -> Result<()> {
    let mut world = World::start(name, 2)?;
    let params = json!({ "arity": [2], "layers": [[], [[8, 4, 8], [8, 4, 0]]] });
    let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params));
    let factory = world.create_factory(&request)?;
    let id = factory.instance_id.clone();
    let start = Snapshot::take(&world)?;
    let (mut paid, mut position) = (Vec::new(), 0);
    for (point, place) in steps {
        println!("{point} {place:?}");
        let fault = format!("kill@{point}");
        match place {
            Place::Lsp => {
                world.lsp.faults().set(&fault)?;
                let _ = liquidity::sell(&world, &id, BUYER, 20_000);
                world.lsp.wait_killed()?;
                world.lsp.faults().clear()?;
                world.lsp.start()?;
            }
            Place::Client => {
                world.client(BUYER)?.faults().set(&fault)?;
                liquidity::sell(&world, &id, BUYER, 20_000)?;
                world.client_mut(BUYER)?.wait_killed()?;
                world.client(BUYER)?.faults().clear()?;
                world.client_mut(BUYER)?.start()?;
            }
        }
        world.wait_usable(&factory)?;
        position = rotate::go_on(&world, &id, BUYER, position)?;
        liquidity::wait_agreed(&world, &id, BUYER)?;
        paid.extend([pay(&world, there(3_000_001))?, pay(&world, back(2_000_003))?]);
        wait_for(&world, &start.after(&paid)?)?;
    }
    world.finish();
    Ok(())
}

#[test]
fn a_process_dies_in_a_sale() -> Result<()> {
    dies_and_goes_on("liquidity-dies", &[STEPS[1], STEPS[5], STEPS[7]])
}

#[test]
#[ignore = "long: make crash"]
fn a_process_dies_at_every_step_of_a_sale() -> Result<()> {
    dies_and_goes_on("liquidity-all-die", &STEPS)
}

/// A client dies in a sale and does not come back: before it has given its last signature, and when the LSP has completed
/// the state. The LSP leaves it with all that is its own; the client comes back to its money.
#[test]
#[ignore = "long: make crash"]
fn the_lsp_leaves_a_client_that_died_in_a_sale() -> Result<()> {
    for point in ["node.change.bound", "client.pending.stored", "client.advance.store"] {
        println!("{point}");
        let mut world = World::start("liquidity-left", 2)?;
        let params = json!({ "arity": [2], "layers": [[], [[8, 4, 8]]] });
        let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params));
        let id = world.create_factory(&request)?.instance_id;
        let node = world.client(BUYER)?.node_id().to_owned();
        let start = Snapshot::take(&world)?;
        let before = wait_for(&world, &start.after(&[pay(&world, there(12_345_678))?])?)?;
        wait_at_rest(&world)?;
        world.client(BUYER)?.faults().set(&format!("kill@{point}"))?;
        liquidity::sell(&world, &id, BUYER, 100_000)?;
        world.client_mut(BUYER)?.wait_killed()?;
        world.client(BUYER)?.faults().clear()?;

        let leaving = Leaving::by_lsp(&world, BUYER, &id)?;
        world.lsp.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &json!({ "client": node }))?;
        pace::drive(&world, std::slice::from_ref(&leaving), 400, &mut |_| Ok(()))?;
        pace::rest(&world)?;
        world.client_mut(BUYER)?.start()?;
        pace::rest_until(&world, |after| check_conserved(&world, &before, after))?;
        let now = world.client(BUYER)?.balance()?;
        assert_eq!(now.onchain.confirmed_sat, now.total_sat, "{now:?}");
        world.finish();
    }
    Ok(())
}
