//! A stock wallet buys a channel by LSPS2 while the LSP dies at each step of it, or the wallet itself: the payment ends as
//! paid or given back, nothing is opened twice, and nobody is out of pocket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Context, Result};
use integration::jit::{less_fees, outcome, status};
use integration::ledger::Snapshot;
use integration::types::Payment;
use integration::wait::{self, Seen};
use integration::world::PATIENCE;
use integration::{Peer, World};

const AMOUNT: u64 = 60_000_000;
/// The least fee, which is the larger one here, msat.
const FEE: u64 = 2_000_000;

/// An LSP that sells, an ordinary node that pays, and a wallet.
fn start(name: &str) -> Result<(World, Peer)> {
    let limits = ["--jit-hold-secs", "8", "--jit-max-channels", "20", "--jit-max-untaken", "20"];
    let sells = ["--lsps2", "true", "--lsps2-min-fee-msat", "2000000", "--lsps2-proportional-ppm", "5000"];
    let mut world = World::start_with_lsp(name, 0, &[&limits[..], &sells].concat())?;
    world.add_peer(4_000_000)?;
    let wallet = Peer::start_wallet(world.path(), &world.bitcoind, &world.lsp.uri())?;
    wallet.wait_synced(&world.bitcoind)?;
    Ok((world, wallet))
}

/// What LSP, payer and wallet hold. Fails while something is under way.
fn holdings(world: &World, wallet: &Peer) -> Result<Snapshot> {
    let pending: u64 = world.lsp.channels()?.iter().map(|c| c.pending_htlcs).sum();
    ensure!(pending == 0, "{pending} HTLCs are pending");
    let mut held = Snapshot::take(world)?;
    // A channel over which nothing has come holds less than its reserve, and the wallet cannot say how much: nothing.
    let paid: u64 =
        wallet.channels()?.iter().filter(|c| c.outbound_capacity_msat > 0).map(|c| c.local_msat).sum();
    held.parties.insert("wallet".into(), wallet.onchain_sat()? * 1000 + paid);
    Ok(held)
}

/// Waits until everybody holds what he is due after a purchase. A restarted LSP sends a funding transaction once more.
fn wait_holdings(world: &World, wallet: &Peer, before: &Snapshot, payment: &Payment) -> Result<Snapshot> {
    wait::until("everybody to hold his due", PATIENCE, || {
        world.mine_mempool()?;
        wallet.wait_synced(&world.bitcoind)?;
        let now = holdings(world, wallet)?;
        let due = due(world, before, payment)?;
        let text = format!("{now:?}, due {due:?}");
        Ok(if now.parties == due.parties { Seen::Done(now) } else { Seen::NotYet(text) })
    })
}

fn is_connected(world: &World, wallet: &Peer) -> Result<bool> {
    Ok(world.lsp.info()?.peers.iter().any(|p| p.connected && p.node_id == wallet.node_id()))
}

/// Waits until the wallet's channels are usable on both sides. By itself it connects once a minute only.
fn wait_wallet(world: &World, wallet: &Peer) -> Result<usize> {
    wait::until("the wallet's channels to be usable", PATIENCE, || {
        let ours =
            world.lsp.channels()?.into_iter().filter(|c| c.peer == wallet.node_id()).collect::<Vec<_>>();
        let theirs = wallet.channels()?;
        let connected = is_connected(world, wallet)?;
        if connected
            && ours.len() == theirs.len()
            && ours.iter().all(|c| c.usable)
            && theirs.iter().all(|c| c.usable)
        {
            return Ok(Seen::Done(ours.len()));
        }
        if !connected {
            wallet.connect(world.lsp.node_id(), world.lsp.listen())?;
        }
        Ok(Seen::NotYet(format!("{ours:?} {theirs:?}")))
    })
}

/// What everybody is due after a purchase, the fees of the blocks since taken off.
fn due(world: &World, before: &Snapshot, payment: &Payment) -> Result<Snapshot> {
    let mut due = before.clone();
    if payment.status == "succeeded" {
        assert_eq!((payment.amount_msat, payment.fee_msat), (AMOUNT, 0));
        for (party, change) in
            [("peer", -(AMOUNT as i64)), ("wallet", (AMOUNT - FEE) as i64), ("lsp", FEE as i64)]
        {
            let held = due.parties.get_mut(party).expect("a party");
            *held = held.checked_add_signed(change).expect("enough");
        }
    }
    less_fees(world, before.height, &mut due)?;
    Ok(due)
}

/// The payment has come to its end: at most one channel was opened, and the sums are right. Returns what everybody holds.
fn check(
    world: &World,
    wallet: &Peer,
    before: &Snapshot,
    channels: usize,
    hash: &str,
) -> Result<(Snapshot, bool)> {
    let payment = outcome(world, hash)?;
    let arrived = payment.status == "succeeded";
    let now = wait_wallet(world, wallet)?;
    ensure!(now <= channels + 1, "{} channels were opened for one payment", now - channels);
    ensure!(now == channels + 1 || !arrived, "paid, and no channel was opened");
    let held = wait_holdings(world, wallet, before, &payment)?;
    ensure!(status(world)?.held_htlcs == 0, "something is held");
    println!("{}, {} channel(s)", payment.status, now - channels);
    Ok((held, arrived))
}

/// Buys once more, which succeeds unless a channel is left over which the wallet was not paid. LDK (0.2, 0.3) sends an HTLC
/// over whichever channel with the wallet fits, and forgets over a restart (`LegacyChannelConfig`) that a fee may be taken
/// off what comes over a channel: then the wallet gives it back.
fn buys_again(world: &World, wallet: &Peer) -> Result<()> {
    let (before, list) = (holdings(world, wallet)?, wallet.channels()?);
    let (channels, unpaid) = (list.len(), list.iter().any(|c| c.outbound_capacity_msat == 0));
    let invoice = wallet.jit_invoice(AMOUNT, FEE)?;
    world.peer()?.send(&invoice.invoice)?;
    let (_, arrived) = check(world, wallet, &before, channels, &invoice.payment_hash)?;
    ensure!(arrived || unpaid, "another purchase was not served");
    Ok(())
}

#[test]
#[ignore = "long: make jit"]
fn the_lsp_dies_at_every_step_of_a_purchase() -> Result<()> {
    let (mut world, wallet) = start("lsps2-crash")?;
    for point in [
        "lsp.jit.held",
        "lsp.jit.recorded",
        "lsp.jit.funding_stored",
        "lsp.jit.signed",
        "lsp.jit.forward",
        "lsp.jit.forwarded",
    ] {
        println!("{point}");
        let (before, channels) = (holdings(&world, &wallet)?, wallet.channels()?.len());
        let invoice = wallet.jit_invoice(AMOUNT, FEE).context(point)?;
        world.lsp.faults().set(&format!("kill@{point}"))?;
        world.peer()?.send(&invoice.invoice)?;
        world.lsp.wait_killed()?;
        world.lsp.faults().clear()?;
        world.lsp.start()?;
        world.sync()?;
        world.wait_peer_usable()?;
        wait_wallet(&world, &wallet)?;
        let (_, arrived) = check(&world, &wallet, &before, channels, &invoice.payment_hash).context(point)?;
        if !arrived {
            buys_again(&world, &wallet).context(point)?;
        }
    }
    world.finish();
    Ok(())
}

/// The wallet dies at two of the LSP's steps, and comes back at once or when the payment has been given back.
fn buyer_dies(name: &str, points: [&'static str; 2]) -> Result<()> {
    let (world, mut wallet) = start(name)?;
    for (point, at_once) in points.into_iter().flat_map(|point| [(point, true), (point, false)]) {
        println!("{point}, {}", if at_once { "back at once" } else { "back too late" });
        let (before, channels) = (holdings(&world, &wallet)?, wallet.channels()?.len());
        let invoice = wallet.jit_invoice(AMOUNT, FEE).context(point)?;
        world.lsp.faults().set(&format!("hold@{point}"))?;
        world.peer()?.send(&invoice.invoice)?;
        world.lsp.faults().wait_held(point)?;
        wallet.kill()?;
        world.lsp.faults().clear()?;
        let connected = || is_connected(&world, &wallet);
        wait::until_value("the LSP to miss the wallet", PATIENCE, connected, |there| !there)?;
        if !at_once {
            let payment = outcome(&world, &invoice.payment_hash)?;
            println!("{} while it was away", payment.status);
        }
        wallet.restart()?;
        wait_wallet(&world, &wallet)?;
        let (_, arrived) = check(&world, &wallet, &before, channels, &invoice.payment_hash).context(point)?;
        if !arrived {
            buys_again(&world, &wallet).context(point)?;
        }
    }
    world.finish();
    Ok(())
}

#[test]
#[ignore = "long: make jit"]
fn the_buyer_dies_before_its_channel_is_there() -> Result<()> {
    buyer_dies("lsps2-buyer-early", ["lsp.jit.recorded", "lsp.jit.funding_stored"])
}

#[test]
#[ignore = "long: make jit"]
fn the_buyer_dies_when_its_channel_is_there() -> Result<()> {
    buyer_dies("lsps2-buyer-late", ["lsp.jit.signed", "lsp.jit.forward"])
}

/// A channel that was sold and never paid for carries nothing, and is closed when nobody has paid for it in a day's blocks.
#[test]
#[ignore = "long: make jit"]
fn what_is_not_paid_for_is_closed() -> Result<()> {
    let (world, mut wallet) = start("lsps2-unpaid")?;
    let before = holdings(&world, &wallet)?;
    let invoice = wallet.jit_invoice(AMOUNT, FEE)?;
    world.lsp.faults().set("hold@lsp.jit.forward")?;
    world.peer()?.send(&invoice.invoice)?;
    world.lsp.faults().wait_held("lsp.jit.forward")?;
    wallet.kill()?;
    world.lsp.faults().clear()?;
    assert_eq!(outcome(&world, &invoice.payment_hash)?.status, "failed");
    wallet.restart()?;
    assert_eq!(wait_wallet(&world, &wallet)?, 1);

    // Nothing comes over it for which its price has not been paid.
    let free = wallet.invoice(10_000_000, "over a channel that is not paid for")?;
    assert_eq!(world.peer()?.pay(&free.invoice)?.status, "failed");
    world.mine(140)?;
    wallet.wait_synced(&world.bitcoind)?;
    assert_eq!(wait_wallet(&world, &wallet)?, 1, "it is closed too soon");
    world.mine(10)?;
    wallet.wait_synced(&world.bitcoind)?;
    wait::until("the channel to be closed", PATIENCE, || {
        world.mine_mempool()?;
        world.mine(1)?;
        let left = world.lsp.channels()?.iter().filter(|c| c.peer == wallet.node_id()).count();
        Ok(if left == 0 { Seen::Done(()) } else { Seen::NotYet(format!("{left} channels")) })
    })?;
    // The LSP has paid the fees, and nobody else anything.
    wait::until("everybody to hold what he held", PATIENCE, || {
        world.mine_mempool()?;
        wallet.wait_synced(&world.bitcoind)?;
        let (now, mut due) = (holdings(&world, &wallet)?, before.clone());
        less_fees(&world, before.height, &mut due)?;
        let text = format!("{now:?}, due {due:?}");
        Ok(if now.parties == due.parties { Seen::Done(()) } else { Seen::NotYet(text) })
    })?;
    world.finish();
    Ok(())
}
