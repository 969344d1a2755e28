//! A funding transaction that does not become what was promised: its coin is spent a second time, before it is
//! confirmed or in a reorganisation after that; or nobody mines it. No payment passes over it, everybody gives it up,
//! and the next factory works.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Result};
use integration::closed::nobody_pays;
use integration::double_spend::{mine_only, rival_of, FEE};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::types::Factory;
use integration::wait;
use integration::world::{CEREMONY, CLIENT_COIN, PATIENCE};
use integration::World;
use serde_json::json;

const CAPACITY: u64 = 300_000;
const PUSH: u64 = 120_000;
/// Blocks from which on a spend is final for everybody.
const FINAL: u32 = 6;
/// Blocks after birth at which clients give an unconfirmed funding up.
const GIVE_UP: u32 = 144;

/// Creates a factory whose funding is in the mempool.
fn unconfirmed(world: &World, min_depth: u32) -> Result<Factory> {
    let request = world.factory_request(CAPACITY, PUSH, 0, Some(json!({ "min_depth": min_depth })));
    world.wait_waiting(world.clients.len())?;
    let id = world.lsp.create_factory(&request)?;
    let factory = world.wait_state(&id, "confirming", CEREMONY)?;
    world.bitcoind.wait_seen(factory.funding.expect("funding").txid, PATIENCE)?;
    Ok(factory)
}

/// All have given this factory up, and show nothing of it as money.
fn wait_given_up(world: &World, id: &str) -> Result<()> {
    world.sync()?;
    for client in &world.clients {
        wait::until_value(
            &format!("{} to give the factory up", client.name()),
            PATIENCE,
            || Ok((client.factory(id)?.state, client.balance()?)),
            |(state, b)| state == "failed" && b.total_sat == CLIENT_COIN && b.lightning.local_msat == 0,
        )?;
    }
    Ok(())
}

fn lsp_has(world: &World, id: &str, sat: u64) -> Result<()> {
    wait::until_value(
        &format!("the LSP to give the factory up and hold {sat} sat in free coins"),
        PATIENCE,
        || Ok((world.lsp.factory(id)?.state, world.lsp.balance()?)),
        |(state, b)| {
            state == "failed"
                && b.onchain.confirmed_sat == sat
                && b.onchain.reserved_sat == 0
                && b.total_sat == sat
        },
    )?;
    Ok(())
}

fn works(world: &World) -> Result<Factory> {
    let factory = world.create_factory(&world.factory_request(CAPACITY, PUSH, 0, None))?;
    let before = Snapshot::take(world)?;
    let paid = pay(world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 7_000_003 })?;
    wait_for(world, &before.after(&[paid])?)?;
    let after = wait_at_rest(world)?;
    check_conserved(world, &before, &after)?;
    Ok(factory)
}

#[test]
fn a_double_spent_funding_is_given_up_by_all() -> Result<()> {
    let mut world = World::start("double-spend", 2)?;
    let sat = world.lsp.balance()?.onchain.confirmed_sat;

    // Before it is in a block.
    let factory = unconfirmed(&world, 1)?;
    let id = factory.instance_id.clone();
    let txid = factory.funding.expect("funding").txid;
    let funding = world.bitcoind.transaction(txid)?.expect("in the mempool");
    mine_only(&world.bitcoind, &rival_of(&world.lsp, &world.bitcoind, &funding)?)?;
    world.sync()?;
    nobody_pays(&world)?;
    assert!(world.bitcoind.mempool()?.is_empty(), "its coin is gone");
    // What is five deep can fall.
    world.mine(FINAL - 2)?;
    assert_eq!(world.lsp.factory(&id)?.state, "confirming");
    world.client_mut(0)?.kill()?;
    world.client_mut(0)?.start()?;
    world.mine(1)?;
    wait_given_up(&world, &id)?;
    lsp_has(&world, &id, sat - FEE)?;
    let factory = works(&world)?;

    // Live, and then it is undone for good: deeper than this factory's policy, so the money is gone. But from the block
    // on that took it away nothing is paid with it.
    let id = factory.instance_id.clone();
    let txid = factory.funding.expect("funding").txid;
    let there = world.bitcoind.confirmed(txid)?.expect("confirmed");
    let rival = rival_of(&world.lsp, &world.bitcoind, &there.tx)?;
    let depth = world.bitcoind.height()? + 1 - there.height;
    world.bitcoind.take_off(there.height)?;
    mine_only(&world.bitcoind, &rival)?;
    world.bitcoind.mine_empty(depth)?;
    world.sync()?;
    nobody_pays(&world)?;
    world.lsp.kill()?;
    world.lsp.start()?;
    world.sync()?;
    nobody_pays(&world)?;
    world.mine(FINAL)?;
    wait_given_up(&world, &id)?;
    lsp_has(&world, &id, sat - 2 * FEE)?;
    works(&world)?;
    world.finish();
    Ok(())
}

/// Nobody mines it. After 144 blocks the clients give it up and may be in the next factory; what the LSP has signed
/// keeps its coin, and it has others.
#[test]
fn clients_whose_funding_lingers_are_taken_into_the_next_factory() -> Result<()> {
    let world = World::start("lingers", 2)?;
    let factory = unconfirmed(&world, 1)?;
    let id = factory.instance_id.clone();
    world.bitcoind.mine_empty(GIVE_UP - 1)?;
    world.sync()?;
    ensure!(world.lsp.clients()?.iter().all(|c| !c.waiting), "they are in a factory that may still be");
    world.bitcoind.mine_empty(1)?;
    wait_given_up(&world, &id)?;
    world.wait_waiting(2)?;
    // The old one goes on waiting for a block, and must not get into this one's.
    let lingering = factory.funding.expect("funding").txid;
    let request = world.factory_request(CAPACITY, PUSH, 0, None);
    let id = world.lsp.create_factory(&request)?;
    let next = world.wait_state(&id, "confirming", CEREMONY)?;
    let funding = world.bitcoind.wait_seen(next.funding.expect("funding").txid, PATIENCE)?;
    mine_only(&world.bitcoind, &funding)?;
    world.sync()?;
    let next = world.wait_state(&id, "active", PATIENCE)?;
    world.wait_usable(&next)?;
    let paid = pay(&world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 7_000_003 })?;
    wait::until_value(
        "both to hold their due",
        PATIENCE,
        || Ok([world.client(0)?.balance()?.total_msat(), world.client(1)?.balance()?.total_msat()]),
        |held| {
            let due = (CLIENT_COIN + PUSH) * 1000;
            *held == [due - 7_000_003 - paid.fee_msat, due + 7_000_003]
        },
    )?;
    assert!(world.bitcoind.mempool()?.contains(&lingering), "the LSP has not given it up");
    world.finish();
    Ok(())
}
