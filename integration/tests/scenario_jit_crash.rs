//! Payments that are held for a client without room, while the LSP or the client dies or is silent: nobody is out of
//! pocket, no channel is opened twice, and the channel that the payment came by lives.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context, Result};
use integration::jit::{less_fees, of_kind, outcome, status, wait_count};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Settled};
use integration::payments::{pay, Order, Party};
use integration::world::PATIENCE;
use integration::{wait, World};

const CAPACITY: u64 = 100_000;
/// More than a client has room for.
const AMOUNT: u64 = 150_000_000;
/// How long the LSP holds a payment, seconds.
const HOLD: u64 = 6;

/// Two clients without stock, and an ordinary node that pays.
fn start(name: &str) -> Result<World> {
    let hold = HOLD.to_string();
    let limits = ["--jit-hold-secs", &hold, "--jit-max-channels", "20", "--jit-max-untaken", "20"];
    // What is paid here is the client's own invoice.
    let flags = [&limits[..], &["--jit-max-total-sat", "10000000", "--relay", "false"]].concat();
    let mut world = World::start_with_lsp(name, 2, &flags)?;
    world.add_peer(4_000_000)?;
    world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    wait_at_rest(&world)?;
    Ok(world)
}

/// The LSP dies at a point while it serves a payment, and comes back. Returns whether the payment arrived.
fn die_at(world: &mut World, point: &str) -> Result<bool> {
    let before = wait_at_rest(world)?;
    let channels = of_kind(world, 0, "jit")?.len();
    let invoice = world.client(0)?.invoice(AMOUNT, point)?;
    world.lsp.faults().set(&format!("kill@{point}"))?;
    world.peer()?.send(&invoice.invoice)?;
    world.lsp.wait_killed()?;
    world.lsp.faults().clear()?;
    world.lsp.start()?;
    world.sync()?;
    world.wait_peer_usable()?;
    let payment = outcome(world, &invoice.payment_hash)?;
    let arrived = payment.status == "succeeded";
    // Whatever was opened for it is one channel, used for what comes next.
    let opened = of_kind(world, 0, "jit")?.len() - channels;
    assert!(opened <= 1, "{opened} channels were opened for one payment");
    wait_count(world, 0, "jit", channels + opened)?;
    world.mine_mempool()?;
    wait_at_rest(world)?;
    let settled = if arrived { vec![Settled::new("peer", "client-0", &payment)?] } else { vec![] };
    let mut due = before.after(&settled)?;
    less_fees(world, before.height, &mut due)?;
    let mut held = wait_for(world, &due)?;
    check_conserved(world, &before, &held)?;
    // The payer tries again, and gets through.
    if !arrived {
        let again = pay(world, Order { from: Party::Peer, to: Party::Client(0), amount_msat: AMOUNT })?;
        let count = of_kind(world, 0, "jit")?.len();
        assert!(count <= channels + 1, "another channel was opened beside the one that was there");
        world.mine_mempool()?;
        let height = held.height;
        held = held.after(&[again])?;
        less_fees(world, height, &mut held)?;
        wait_for(world, &held)?;
    }
    assert_eq!(status(world)?.held_htlcs, 0);
    println!("{point}: {}, {opened} channel(s)", payment.status);
    Ok(arrived)
}

#[test]
fn the_lsp_dies_when_the_client_has_signed() -> Result<()> {
    let mut world = start("jit-signed")?;
    assert!(die_at(&mut world, "lsp.jit.signed")?, "the payment was not served after the restart");
    world.finish();
    Ok(())
}

#[test]
#[ignore = "long: make jit"]
fn the_lsp_dies_at_every_step() -> Result<()> {
    let mut world = start("jit-crash")?;
    for point in [
        "lsp.jit.held",
        "lsp.jit.recorded",
        "lsp.jit.funding_stored",
        "lsp.jit.signed",
        "lsp.jit.forward",
        "lsp.jit.forwarded",
    ] {
        die_at(&mut world, point).context(point)?;
    }
    world.finish();
    Ok(())
}

#[test]
#[ignore = "long: make jit"]
fn a_client_that_is_silent_or_goes_costs_nobody_anything() -> Result<()> {
    let mut world = start("jit-silent")?;
    let before = wait_at_rest(&world)?;

    // Silent while its channel is opened: given back when the time is up.
    let invoice = world.client(0)?.invoice(AMOUNT, "silent")?;
    world.client_mut(0)?.freeze()?;
    world.peer()?.send(&invoice.invoice)?;
    let payment = outcome(&world, &invoice.payment_hash)?;
    assert_eq!(payment.status, "failed");
    world.client_mut(0)?.thaw()?;

    // It goes before its channel is opened: given back at once.
    let invoice = world.client(1)?.invoice(AMOUNT, "gone")?;
    world.lsp.faults().set("hold@lsp.jit.recorded")?;
    world.peer()?.send(&invoice.invoice)?;
    world.lsp.faults().wait_held("lsp.jit.recorded")?;
    world.client_mut(1)?.kill()?;
    wait::until_value(
        "the LSP to notice",
        PATIENCE,
        || world.lsp.clients(),
        |list| !list.iter().any(|c| c.connected && c.node_id == world.clients[1].node_id()),
    )?;
    world.lsp.faults().go_on("lsp.jit.recorded")?;
    assert_eq!(outcome(&world, &invoice.payment_hash)?.status, "failed");
    world.lsp.faults().clear()?;
    world.client_mut(1)?.start()?;

    // Nothing is left of it, the channels live, and both are served now.
    assert_eq!(status(&world)?.held_htlcs, 0);
    assert!(world.bitcoind.mempool()?.is_empty(), "a channel was paid for in vain");
    world.sync()?;
    world.wait_usable(&world.lsp.factories()?[0])?;
    let held = wait_for(&world, &before)?;
    let to = |index| Order { from: Party::Peer, to: Party::Client(index), amount_msat: AMOUNT };
    let paid = [pay(&world, to(0))?, pay(&world, to(1))?];
    world.mine_mempool()?;
    let mut due = held.after(&paid)?;
    less_fees(&world, held.height, &mut due)?;
    wait_for(&world, &due)?;
    world.finish();
    Ok(())
}
