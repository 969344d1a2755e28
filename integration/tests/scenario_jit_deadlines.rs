//! What is held is given back in time, whatever does not happen: the client does not come back, the chain stands still and
//! then makes up for it, no channel can be paid for. The channel by which it came lives.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::jit::{less_fees, outcome, status, wait_held, wait_usable};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Settled, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::types::Invoice;
use integration::World;

const CAPACITY: u64 = 100_000;
/// Fits into a client's channel.
const SMALL: u64 = 20_000_000;
/// Does not.
const LARGE: u64 = 150_000_000;
/// Blocks that come at once.
const BURST: u32 = 30;
/// By then LDK gives any payment back.
const MOST_BLOCKS: u32 = 2_016;

/// Two clients without stock, an ordinary node that pays, and an LSP that holds payments for so long.
fn start(name: &str, hold_secs: &str) -> Result<World> {
    let mut world = World::start_with_lsp(name, 2, &["--relay", "false", "--jit-hold-secs", hold_secs])?;
    world.add_peer(4_000_000)?;
    world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    Ok(world)
}

/// A client makes an invoice and goes.
fn leaves_an_invoice(world: &mut World, index: usize, amount_msat: u64) -> Result<Invoice> {
    let invoice = world.client(index)?.invoice(amount_msat, "while I am away")?;
    let node = world.client(index)?.node_id().to_owned();
    world.client_mut(index)?.kill()?;
    world.wait_gone(&node)?;
    Ok(invoice)
}

/// The channel that it came by is the same, and carries the next payment; everybody holds what he is due.
fn goes_on(world: &mut World, before: &Snapshot, channel: &str, paid: &[Settled]) -> Result<Snapshot> {
    world.client_mut(0)?.start()?;
    world.sync()?;
    world.wait_usable(&world.lsp.factories()?[0])?;
    let incoming = world.lsp.channels()?.into_iter().find(|c| c.channel_id == channel);
    assert!(incoming.is_some_and(|c| c.usable), "the channel by which it came is gone");
    assert_eq!(status(world)?.held_htlcs, 0);
    let next = pay(world, Order { from: Party::Peer, to: Party::Client(0), amount_msat: SMALL })?;
    world.mine_mempool()?;
    let mut due = before.after(&[paid, &[next]].concat())?;
    less_fees(world, before.height, &mut due)?;
    let after = wait_for(world, &due)?;
    check_conserved(world, before, &after)?;
    wait_at_rest(world)
}

/// The channel with the ordinary node.
fn incoming(world: &World) -> Result<String> {
    let peer = world.peer()?.node_id();
    let found = world.lsp.channels()?.into_iter().find(|c| c.peer == peer);
    Ok(found.expect("the ordinary channel").channel_id)
}

/// The client never returns, the LSP dies over it and forgets for how long it has held it. What is left is the deadline,
/// and blocks come many at a time.
#[test]
#[ignore = "long: make jit"]
fn a_client_that_never_returns_and_blocks_in_bursts() -> Result<()> {
    let mut world = start("jit-blocks", "600")?;
    let before = wait_at_rest(&world)?;
    let channel = incoming(&world)?;
    let invoice = leaves_an_invoice(&mut world, 0, SMALL)?;
    world.peer()?.send(&invoice.invoice)?;
    wait_held(&world, 1)?;
    world.lsp.kill()?;
    world.lsp.start()?;
    world.sync()?;
    world.wait_peer_usable()?;
    wait_held(&world, 1)?;
    let start = world.bitcoind.height()?;
    while status(&world)?.held_htlcs > 0 {
        let mined = world.bitcoind.height()? - start;
        assert!(mined < MOST_BLOCKS, "it is held after {mined} blocks");
        world.mine_for(&world.lsp, BURST)?;
    }
    assert_eq!(outcome(&world, &invoice.payment_hash)?.status, "failed");
    println!("given back after {} blocks", world.bitcoind.height()? - start);
    assert!(world.bitcoind.mempool()?.is_empty(), "a channel has gone to the chain");
    goes_on(&mut world, &before, &channel, &[])?;
    world.finish();
    Ok(())
}

/// The LSP's bitcoind does not answer while it holds a payment, nor while it should open a channel for another one.
#[test]
#[ignore = "long: make jit"]
fn bitcoind_does_not_answer_meanwhile() -> Result<()> {
    let mut world = start("jit-stall", "6")?;
    let before = wait_at_rest(&world)?;
    let channel = incoming(&world)?;
    let away = leaves_an_invoice(&mut world, 0, SMALL)?;
    let there = world.client(1)?.invoice(LARGE, "more than it has room for")?;
    world.bitcoind.freeze()?;
    world.peer()?.send(&away.invoice)?;
    world.peer()?.send(&there.invoice)?;
    let gone = outcome(&world, &away.payment_hash);
    let served = outcome(&world, &there.payment_hash);
    world.bitcoind.thaw()?;
    assert_eq!(gone?.status, "failed");
    let served = served?;
    println!("with a bitcoind that did not answer the payment over a new channel {}", served.status);
    let mut paid = Vec::new();
    if served.status == "succeeded" {
        let [(ours, _)] = &wait_usable(&world, 1, "jit")?[..] else { panic!("not one channel") };
        // The funding transaction comes out when bitcoind is back, before or with the blocks that it missed.
        let funding = ours.funding.expect("a funding outpoint").txid;
        world.bitcoind.wait_seen(funding, integration::world::PATIENCE)?;
        paid.push(Settled::new("peer", "client-1", &served)?);
    }
    world.mine(BURST)?;
    goes_on(&mut world, &before, &channel, &paid)?;
    world.finish();
    Ok(())
}

/// No channel can be paid for: given back at once, not held.
#[test]
#[ignore = "long: make jit"]
fn the_lsp_has_too_little_for_a_channel() -> Result<()> {
    let mut world = start("jit-poor", "600")?;
    let more = integration::world::LSP_FUNDS * 2;
    world.lsp.restart_with(&[
        ("jit_min_channel_sat", more),
        ("jit_max_channel_sat", more),
        ("jit_max_total_sat", more),
    ])?;
    world.wait_usable(&world.lsp.factories()?[0])?;
    let before = wait_at_rest(&world)?;
    let channel = incoming(&world)?;
    let invoice = world.client(0)?.invoice(LARGE, "more than it has room for")?;
    let payment = world.peer()?.pay(&invoice.invoice)?;
    assert_eq!(payment.status, "failed");
    world.client_mut(0)?.stop()?;
    goes_on(&mut world, &before, &channel, &[])?;
    world.finish();
    Ok(())
}
