//! bitcoind fails those who depend on it: it is away while a factory is created, closed and left; it hangs; its mempool
//! turns dearer than what was published. All of it ends as if nothing had been, to the satoshi.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use integration::closed::{dues, wait_signed};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::pace::{self, child_of, Leaving, Stand};
use integration::payments::{pay, Order, Party};
use integration::types::Factory;
use integration::wait;
use integration::world::{CEREMONY, CLIENT_COIN, PATIENCE};
use integration::{traffic, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 400_000;
/// Blocks that one exit may take here.
const LIMIT: u32 = 400;
/// The raised floor, sat/vB; without estimates children begin with 5.
const FLOOR: u64 = 50;
/// A hung bitcoind may hold the factory service up for so long: one call's limit, and time to spare.
const ANSWERS_WITHIN: Duration = Duration::from_secs(90);

fn params() -> Value {
    json!({ "arity": [2], "layers": [[], [[2, 2, 4], [2, 2, 0]]] })
}

fn order(from: usize, to: usize, amount_msat: u64) -> Order {
    Order { from: Party::Client(from), to: Party::Client(to), amount_msat }
}

/// A payment, and the books after it.
fn paid(world: &World, from: usize, to: usize) -> Result<Snapshot> {
    let start = Snapshot::take(world)?;
    let paid = pay(world, order(from, to, 12_345_678))?;
    wait_for(world, &start.after(&[paid])?)?;
    wait_at_rest(world)
}

fn wait_not_synced(world: &World) -> Result<()> {
    for client in &world.clients {
        wait::until_value(
            &format!("{} to say that it is not in sync", client.name()),
            PATIENCE,
            || client.info(),
            |info| !info.synced,
        )?;
    }
    wait::until_value("the LSP to say that it is not in sync", PATIENCE, || world.lsp.info(), |i| !i.synced)?;
    Ok(())
}

/// Away while the funding transaction is to be broadcast, while payments are made, and while the close is.
#[test]
fn bitcoind_is_away_at_creation_and_at_the_close() -> Result<()> {
    let mut world = World::start("away", 2)?;
    world.wait_waiting(2)?;
    world.lsp.faults().set("hold@lsp.funding.stored")?;
    let id = world.lsp.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params())))?;
    world.lsp.faults().wait_held("lsp.funding.stored")?;
    world.bitcoind.kill()?;
    world.lsp.faults().clear()?;
    let funding = world.wait_state(&id, "confirming", CEREMONY)?.funding.expect("funding").txid;
    wait_not_synced(&world)?;
    world.bitcoind.restart()?;
    // It is published with the next block at the latest, and is in the one after that.
    world.mine(1)?;
    world.bitcoind.wait_seen(funding, PATIENCE)?;
    world.mine(1)?;
    let factory = world.wait_state(&id, "active", PATIENCE)?;
    world.wait_usable(&factory)?;
    let start = Snapshot::take(&world)?;

    world.bitcoind.kill()?;
    wait_not_synced(&world)?;
    let payment = pay(&world, order(0, 1, 12_345_678))?;
    let due = start.after(&[payment])?;
    world.bitcoind.restart()?;
    world.sync()?;
    wait_for(&world, &due)?;
    let before = wait_at_rest(&world)?;

    let dues = dues(&world, &id)?;
    world.bitcoind.kill()?;
    world.lsp.close_factory(&id)?;
    let txid = wait_signed(&world, &id)?;
    world.bitcoind.restart()?;
    world.mine(1)?;
    world.bitcoind.wait_seen(txid, PATIENCE)?;
    world.mine(6)?;
    world.wait_state(&id, "closed", PATIENCE)?;
    for (client, due) in world.clients.iter().zip(&dues) {
        wait::until_value(
            &format!("{} to be paid {due} sat", client.name()),
            PATIENCE,
            || client.balance(),
            |b| b.total_sat == CLIENT_COIN + due && b.onchain.confirmed_sat == b.total_sat,
        )?;
    }
    check_conserved(&world, &before, &Snapshot::take(&world)?)?;
    world.finish();
    Ok(())
}

/// What client 0 holds when it has left: its coin and its balance, less all fees of the exit.
fn left_with_its_due(world: &World, factory: &Factory, before: &Snapshot, from: u32) -> Result<()> {
    pace::rest(world)?;
    pace::rest_until(world, |after| check_conserved(world, before, after))?;
    let client = world.client(0)?;
    let balance = client.balance()?;
    ensure!(balance.total_sat == balance.onchain.confirmed_sat, "all of it in coins: {balance:?}");
    ensure!(client.factory(&factory.instance_id)?.state == "exited", "it says that it has left");
    let lost = before.of("client-0")? / 1000 - balance.total_sat;
    let fees = world.bitcoind.fees(from + 1, world.bitcoind.height()?)?;
    ensure!(lost <= fees, "{lost} sat are gone, all fees are {fees} sat");
    Ok(())
}

/// It hangs: it takes calls and answers none. The nodes' factory services go on after one call's limit: payments pass, the
/// API answers, exits are ordered; and the exit begins when it wakes up.
#[test]
#[ignore = "long: make adversaries"]
fn bitcoind_hangs_when_an_exit_begins() -> Result<()> {
    let mut world = World::start("hangs", 3)?;
    let params = json!({ "arity": [3], "layers": [[], [[2, 2, 4], [2, 2, 0]]] });
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params)))?;
    let id = factory.instance_id.clone();
    let before = paid(&world, 0, 1)?;
    let from = world.bitcoind.height()?;
    world.bitcoind.freeze()?;
    let start = Instant::now();
    world.client(0)?.exit(&id)?;
    let leaves = json!({ "client": world.client(1)?.node_id() });
    world.lsp.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &leaves)?;
    // LDK's events wait for the service: the channels that were closed have to arrive there.
    for (daemon, leaving) in [(&**world.client(0)?, 0), (&*world.lsp, 1)] {
        let leaving = world.client(leaving)?.node_id();
        let exits = daemon.factory(&id)?.exits;
        // The LSP may have heard already that the other one left by itself.
        let begun = exits.iter().any(|exit| exit.node_id.as_deref() == Some(leaving));
        ensure!(begun, "{}: {exits:?}", daemon.name());
    }
    let took = start.elapsed();
    ensure!(took < ANSWERS_WITHIN, "a hung bitcoind held both services up for {took:?}");
    let invoice = world.client(2)?.invoice(3_000_000, "while it hangs")?;
    let payment = world.lsp.pay(&invoice.invoice)?;
    ensure!(payment.status == "succeeded", "{payment:?}");
    world.bitcoind.thaw()?;

    world.mine(1)?;
    // Both sides of both channels live and publish what is due; whose commitment confirms is a matter of chance.
    let end = world.bitcoind.height()? + LIMIT;
    let left = |index: usize| Ok::<_, anyhow::Error>(world.client(index)?.factory(&id)?.state == "exited");
    while !(left(0)? && left(1)?) {
        ensure!(world.bitcoind.height()? < end, "{:?}", world.lsp.factory(&id)?.exits);
        world.mine(1)?;
    }
    left_with_its_due(&world, &factory, &before, from)?;
    world.finish();
    Ok(())
}

/// bitcoind goes away while the first step of an exit waits in its mempool, and comes back with a floor of ten times
/// what that pays, and without it. The step is replaced, and every one pays the new floor.
#[test]
#[ignore = "long: make adversaries"]
fn an_exit_through_a_fee_spike() -> Result<()> {
    let mut world = World::start("spike", 2)?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params())))?;
    let id = factory.instance_id.clone();
    let before = paid(&world, 0, 1)?;
    let from = world.bitcoind.height()?;
    // Its commitment would be in the way of the client's.
    world.lsp.kill()?;
    let leaving = Leaving::client(&world, 0, &id)?;
    world.client(0)?.exit(&id)?;
    let Stand::Offered(first) = leaving.settle(&world)? else { panic!("nothing was published") };
    traffic::raise_floor(&mut world.bitcoind, FLOOR)?;
    ensure!(world.bitcoind.transaction(first)?.is_none(), "{first} is too cheap now");
    // What is gone is noticed with the next block.
    world.mine(1)?;
    pace::drive(&world, std::slice::from_ref(&leaving), LIMIT, &mut |_| Ok(()))?;
    world.lsp.start()?;
    left_with_its_due(&world, &factory, &before, from)?;
    for step in leaving.exit(&world)?.steps {
        let there = world.bitcoind.confirmed(step.txid)?.expect("confirmed");
        let child = child_of(&world, step.txid)?;
        let vsize = u64::try_from(there.tx.vsize() + child.vsize())?;
        let fee = world.bitcoind.fees(there.height, there.height)?;
        ensure!(fee >= FLOOR * vsize, "{} paid {fee} sat for {vsize} vB", step.kind);
    }
    world.finish();
    Ok(())
}
