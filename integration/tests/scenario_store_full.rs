//! A disk fills up while payments are under way: nothing is promised that is not on it, everybody is told, and
//! it goes on by itself when there is room. To the satoshi, with either kind of store.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Result};
use integration::http::ApiError;
use integration::ledger::{wait_at_rest, wait_for, Settled, Snapshot};
use integration::types::Payment;
use integration::wait;
use integration::world::PATIENCE;
use integration::{Client, Daemon, World};

const CAPACITY: u64 = 400_000;
const FULL: &str = "on@store.full";

/// Refused by a node whose disk is full, and told why.
fn no_room<T: std::fmt::Debug>(result: Result<T>) -> Result<()> {
    let error = result.expect_err("a node without room promised something");
    let Some(told) = error.chain().find_map(|cause| cause.downcast_ref::<ApiError>()) else {
        return Err(error);
    };
    ensure!(told.status == 503 && told.code == "unavailable", "{told}");
    ensure!(told.message.contains("no space left"), "{told}");
    Ok(())
}

fn wait_full(daemon: &Daemon, full: bool) -> Result<()> {
    let what = format!(
        "{} to say {}",
        daemon.name(),
        if full { "that its disk is full" } else { "that there is room" }
    );
    wait::until_value(&what, PATIENCE, || daemon.metric("disk_full"), |now| *now == i64::from(full))?;
    Ok(())
}

/// Begins a payment from one client to the other.
fn begin(world: &World, from: usize, to: usize, amount_msat: u64) -> Result<String> {
    let invoice = world.client(to)?.invoice(amount_msat, "while the disk is full")?;
    Ok(world.client(from)?.send(&invoice.invoice)?.payment_hash)
}

fn outgoing(client: &Client, hash: &str) -> Result<Payment> {
    let all = client.payments()?;
    let found = all.into_iter().find(|p| p.payment_hash == hash && p.direction.as_deref() == Some("out"));
    found.ok_or_else(|| anyhow::anyhow!("no payment {hash}"))
}

fn settled(world: &World, from: usize, to: usize, hash: &str) -> Result<Settled> {
    let client = world.client(from)?;
    let done = |payment: &Payment| payment.status != "pending";
    let payment = wait::until_value("the payment to end", PATIENCE, || outgoing(client, hash), done)?;
    Settled::new(&format!("client-{from}"), &format!("client-{to}"), &payment)
}

fn a_full_disk(kind: &str) -> Result<()> {
    let mut world = World::start_with(&format!("full-{kind}"), 2, &["--store", kind])?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    let factory = world.create_factory(&request)?;
    let start = Snapshot::take(&world)?;
    let mut paid = Vec::new();

    // The LSP's disk, between the payer and the payee.
    world.lsp.faults().set(FULL)?;
    let first = begin(&world, 0, 1, 5_000_000)?;
    let second = begin(&world, 1, 0, 7_000_001)?;
    wait_full(&world.lsp, true)?;
    no_room(world.lsp.address())?;
    for (payer, hash) in [(0, &first), (1, &second)] {
        ensure!(outgoing(world.client(payer)?, hash)?.status == "pending");
    }
    world.lsp.faults().clear()?;
    paid.push(settled(&world, 0, 1, &first)?);
    paid.push(settled(&world, 1, 0, &second)?);
    wait_full(&world.lsp, false)?;
    wait_for(&world, &start.after(&paid)?)?;
    let told = || world.lsp.events("disk_full");
    wait::until_value("the event", PATIENCE, told, |events| events.len() == 1)?;

    // The payee's disk, then the payer's: the one cannot take, the other does not begin to pay.
    world.client(1)?.faults().set(FULL)?;
    let invoice = world.client(1)?.invoice(9_000_000, "to a full disk")?;
    let third = world.client(0)?.send(&invoice.invoice)?.payment_hash;
    wait_full(world.client(1)?, true)?;
    let other = world.client(0)?.invoice(2_000_000, "from a full disk")?;
    no_room(world.client(1)?.send(&other.invoice))?;
    ensure!(outgoing(world.client(0)?, &third)?.status == "pending");
    world.client(1)?.faults().clear()?;
    paid.push(settled(&world, 0, 1, &third)?);
    wait_full(world.client(1)?, false)?;
    wait_for(&world, &start.after(&paid)?)?;

    // The LSP's again, with blocks in the meantime; it is killed, and stopped, before there is room.
    world.lsp.faults().set(FULL)?;
    let fourth = begin(&world, 0, 1, 4_000_000)?;
    wait_full(&world.lsp, true)?;
    world.bitcoind.mine(2)?;
    world.lsp.wait_synced(&world.bitcoind)?;
    world.lsp.kill()?;
    world.lsp.faults().clear()?;
    world.lsp.start()?;
    paid.push(settled(&world, 0, 1, &fourth)?);
    world.wait_usable(&factory)?;
    wait_for(&world, &start.after(&paid)?)?;
    wait_at_rest(&world)?;
    world.client(0)?.faults().set(FULL)?;
    no_room(world.client(0)?.address())?;
    world.client_mut(0)?.kill()?;
    world.client(0)?.faults().clear()?;
    world.client_mut(0)?.start()?;
    world.sync()?;
    world.wait_usable(&factory)?;
    wait_for(&world, &start.after(&paid)?)?;
    world.finish();
    Ok(())
}

#[test]
fn a_full_disk_under_sqlite() -> Result<()> {
    a_full_disk("sqlite")
}

#[test]
#[ignore = "long: make scenarios"]
fn a_full_disk_under_files() -> Result<()> {
    a_full_disk("filesystem")
}
