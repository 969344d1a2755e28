//! Peers that break the protocol, as processes of their own: clients at every step of a ceremony, an LSP against every
//! check of its clients. Who is hostile is told so by fault switches (`factory_core::faults`); the others run what
//! people run.
//!
//! One world makes many factories, one after the other, so that a case costs a second and not ten.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admission;
mod clients;
mod close;
mod lsp;

use std::time::Duration;

use anyhow::Result;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::types::Factory;
use integration::wait::{self, Seen};
use integration::world::{factory_channel, PATIENCE};
use integration::World;
use serde_json::{json, Value};

/// Capacity of every channel, sat.
const CAPACITY: u64 = 300_000;
/// How long the LSP waits for its clients in each phase, s: long for a busy machine, short for a test.
const PHASE: u64 = 8;
/// Phases of a ceremony in which somebody can be waited for.
const PHASES: u64 = 6;

/// The body of a request for a factory of these clients.
fn request(world: &World, clients: &[usize]) -> Result<Value> {
    let all = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    let chosen: Vec<Value> = clients.iter().map(|i| all["clients"][*i].clone()).collect();
    Ok(json!({ "clients": chosen, "stock_sat": 0 }))
}

/// Begins a factory; clients that have just been thrown out may still be on their way back.
fn begin(world: &World, body: &Value) -> Result<String> {
    wait::until("the LSP to begin a factory", PATIENCE, || Ok(Seen::Done(world.lsp.create_factory(body)?)))
}

/// How long a ceremony may take in which `failing` clients use up all their time in every phase.
fn limit(failing: usize) -> Duration {
    Duration::from_secs(PHASE * PHASES * (u64::try_from(failing).unwrap_or(0) + 1))
}

/// Mines the funding transaction and waits until the factory is in use.
fn activate(world: &World, id: &str, limit: Duration) -> Result<Factory> {
    let funded = world.wait_state(id, "confirming", limit)?;
    world.bitcoind.wait_seen(funded.funding.expect("funding").txid, PATIENCE)?;
    world.mine(1)?;
    let factory = world.wait_state(id, "active", PATIENCE)?;
    world.wait_usable(&factory)?;
    Ok(factory)
}

/// A payment arrives, and everybody holds to the millisatoshi what they should.
fn pay_exactly(world: &World, from: usize, to: usize) -> Result<()> {
    let before = Snapshot::take(world)?;
    let order = Order { from: Party::Client(from), to: Party::Client(to), amount_msat: 1_234_567 };
    let paid = pay(world, order)?;
    wait_for(world, &before.after(&[paid])?)?;
    // A close is refused while a payment is on a channel.
    wait_at_rest(world)?;
    Ok(())
}
