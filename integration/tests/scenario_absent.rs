//! Clients that are absent are named, left out, and the factory is made with the rest.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::ledger::{wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::types::Factory;
use integration::World;

const CAPACITY: u64 = 300_000;

/// The factory has these clients, and the other is named with a reason and lost nothing.
fn check_without(world: &World, factory: &Factory, absent: usize, clients: usize) -> Result<()> {
    let absent = world.client(absent)?.node_id().to_owned();
    let [excluded] = factory.excluded.as_slice() else { panic!("left out: {:?}", factory.excluded) };
    assert_eq!(excluded.node_id, absent);
    assert!(!excluded.reason.is_empty());
    let inside: Vec<_> = factory.clients.iter().filter(|member| member.reason.is_none()).collect();
    assert_eq!(inside.len(), clients);
    assert!(inside.iter().all(|member| member.node_id != absent));
    assert_eq!(factory.funding_sat, CAPACITY * clients as u64);
    // No channel of a failed attempt stays behind.
    assert_eq!(world.lsp.channels()?.len(), clients);
    Ok(())
}

/// Connected, but it does not answer.
#[test]
fn a_silent_client_is_left_out() -> Result<()> {
    let mut world = World::start("silent", 4)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    world.wait_waiting(4)?;
    world.client_mut(2)?.freeze()?;
    let id = world.lsp.create_factory(&request)?;
    let funded = world.wait_state(&id, "confirming", integration::world::CEREMONY)?;
    world.client_mut(2)?.thaw()?;
    world.bitcoind.wait_seen(funded.funding.expect("funding").txid, integration::world::PATIENCE)?;
    world.mine(1)?;
    let factory = world.wait_state(&id, "active", integration::world::PATIENCE)?;
    world.wait_usable(&factory)?;
    check_without(&world, &factory, 2, 3)?;
    let before = Snapshot::take(&world)?;
    let paid = pay(&world, Order { from: Party::Client(3), to: Party::Client(0), amount_msat: 9_000_000 })?;
    wait_for(&world, &before.after(&[paid])?)?;
    world.finish();
    Ok(())
}

/// Its process dies in the middle of the ceremony.
#[test]
fn a_client_that_dies_is_left_out() -> Result<()> {
    let mut world = World::start("dies", 4)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    world.wait_waiting(4)?;
    let id = world.lsp.create_factory(&request)?;
    world.client_mut(0)?.kill()?;
    let funded = world.wait_state(&id, "confirming", integration::world::CEREMONY)?;
    world.bitcoind.wait_seen(funded.funding.expect("funding").txid, integration::world::PATIENCE)?;
    world.mine(1)?;
    let factory = world.wait_state(&id, "active", integration::world::PATIENCE)?;
    world.wait_usable(&factory)?;
    check_without(&world, &factory, 0, 3)?;
    // It comes back, has its coins, and waits for the next factory.
    world.client_mut(0)?.start()?;
    world.sync()?;
    assert_eq!(world.client(0)?.balance()?.total_sat, integration::world::CLIENT_COIN);
    world.wait_waiting(1)?;
    world.finish();
    Ok(())
}
