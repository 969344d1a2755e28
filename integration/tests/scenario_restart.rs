//! Every process is stopped and started at rest, in order and by a power cut: all is as before.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::ledger::{wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::types::Factory;
use integration::World;

const CAPACITY: u64 = 300_000;

/// Holdings, channels and payments still work: one payment through every client.
fn still_works(world: &World, factory: &Factory, before: &Snapshot) -> Result<Snapshot> {
    world.sync()?;
    world.wait_usable(factory)?;
    let same = wait_for(world, before)?;
    let mut made = Vec::new();
    for from in 0..world.clients.len() {
        let to = (from + 1) % world.clients.len();
        made.push(pay(
            world,
            Order { from: Party::Client(from), to: Party::Client(to), amount_msat: 1_234_567 },
        )?);
    }
    wait_for(world, &same.after(&made)?)
}

#[test]
fn every_process_comes_back_as_it_was() -> Result<()> {
    let mut world = World::start("restart", 3)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 10_000, None);
    let factory = world.create_factory(&request)?;
    let ids: Vec<String> = world.lsp.channels()?.into_iter().map(|channel| channel.channel_id).collect();
    let mut held = still_works(&world, &factory, &Snapshot::take(&world)?)?;

    for index in 0..world.clients.len() {
        world.client_mut(index)?.stop()?;
        world.client_mut(index)?.start()?;
    }
    held = still_works(&world, &factory, &held)?;
    world.lsp.stop()?;
    world.lsp.start()?;
    held = still_works(&world, &factory, &held)?;
    world.bitcoind.stop()?;
    world.bitcoind.restart()?;
    held = still_works(&world, &factory, &held)?;

    // The same by a power cut, and blocks come while a process is away.
    world.client_mut(0)?.kill()?;
    world.mine(3)?;
    world.client_mut(0)?.start()?;
    held = still_works(&world, &factory, &held)?;
    world.lsp.kill()?;
    world.mine(3)?;
    world.lsp.start()?;
    held = still_works(&world, &factory, &held)?;
    world.bitcoind.kill()?;
    world.bitcoind.restart()?;
    still_works(&world, &factory, &held)?;

    let mut now: Vec<String> = world.lsp.channels()?.into_iter().map(|channel| channel.channel_id).collect();
    let mut ids = ids;
    ids.sort();
    now.sort();
    assert_eq!(now, ids, "the LSP has other channels than before");
    world.finish();
    Ok(())
}
