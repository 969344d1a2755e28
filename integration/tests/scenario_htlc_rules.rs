//! How long a payment over a factory channel must have left: just enough passes, one block less is failed back, and
//! nobody loses anything.
//!
//! A sender adds 40, 80 or 120 blocks to the expiry at random, for privacy. So the settings are chosen such that the
//! least of these is just enough, or the most of them one block too few; the node that refuses says which it was.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{anyhow, ensure, Result};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Settled, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::types::{Factory, Invoice};
use integration::world::PATIENCE;
use integration::{wait, Daemon, World};
use serde_json::Value;

const CAPACITY: u64 = 1_000_000;
const AMOUNT: u64 = 5_000_000;
/// Claim budget of the default factory, as the planner prints it, blocks.
const CLAIM: u32 = 312;
/// The LSP's margin, blocks.
const MARGIN: u32 = 135;
/// What is added beside the random blocks: 3 by LDK in each invoice, 1 by the sender.
const ADDED: u32 = 4;
/// What a sender adds at random.
const SHADOW: [u32; 3] = [40, 80, 120];
/// Invoices ask for C + 3 + patience.
const GRACE: u32 = 3;
/// Patience of the client whose invoices ask for just enough, with the least that a sender adds.
const ENOUGH: u32 = CLAIM + MARGIN - ADDED - SHADOW[0] - CLAIM - GRACE;
/// Least patience of an invoice at a margin of one block: the next block too few, with the most that a sender adds.
const TOO_LITTLE: u32 = CLAIM + MARGIN - 1 - ADDED - SHADOW[2] - CLAIM - GRACE;
/// Blocks that LDK counts after an expiry until a timeout is settled.
const SETTLE: u32 = 39;

/// Refused HTLCs that a node has told of: what they had and what the limit was.
fn refusals(node: &Daemon) -> Result<Vec<(String, i64, i64)>> {
    let events: Value = node.api()?.get("/v1/events?after=0")?;
    let list = events["events"].as_array().ok_or_else(|| anyhow!("no events in {events}"))?;
    let refused = list.iter().filter(|event| event["kind"] == "htlc_refused").map(|event| {
        let number = |key: &str| event["data"][key].as_i64().ok_or_else(|| anyhow!("no {key} in {event}"));
        let hash = event["data"]["payment_hash"].as_str().unwrap_or_default().to_owned();
        Ok((hash, number("value")?, number("limit")?))
    });
    refused.collect()
}

/// The one refusal of a payment.
fn refusal(node: &Daemon, invoice: &Invoice) -> Result<(i64, i64)> {
    let of_it = |list: &[(String, i64, i64)]| -> Vec<(i64, i64)> {
        let same = list.iter().filter(|(hash, ..)| *hash == invoice.payment_hash);
        same.map(|(_, value, limit)| (*value, *limit)).collect()
    };
    let all = wait::until_value(
        "the node to tell of the refusal",
        PATIENCE,
        || refusals(node),
        |list| !of_it(list).is_empty(),
    )?;
    match of_it(&all).as_slice() {
        [one] => Ok(*one),
        more => Err(anyhow!("refused more than once: {more:?}")),
    }
}

/// Waits until an incoming payment is known to have arrived, or checks that it is not.
fn check_payee(payee: &Daemon, invoice: &Invoice, arrived: bool) -> Result<()> {
    if arrived {
        wait::until_value(
            "the payee to have the payment",
            PATIENCE,
            || payee.payments(),
            |list| list.iter().any(|p| p.payment_hash == invoice.payment_hash && p.status == "succeeded"),
        )?;
        return Ok(());
    }
    let list = payee.payments()?;
    ensure!(list.iter().all(|p| p.payment_hash != invoice.payment_hash), "the payee knows it: {list:?}");
    Ok(())
}

/// An expiry that was one block too early at most, by what a sender may have added less than the most.
fn just_outside((value, limit): (i64, i64), height: u32, distance: u32) -> Result<()> {
    ensure!(
        limit == i64::from(height + distance),
        "limit {limit} at height {height}, not {distance} above it"
    );
    let outcomes: Vec<i64> = SHADOW.iter().map(|s| -1 - i64::from(SHADOW[2] - s)).collect();
    ensure!(outcomes.contains(&(value - limit)), "{value} with limit {limit}: not of {outcomes:?}");
    Ok(())
}

fn restart(world: &mut World, factory: &Factory, client: usize, settings: &[(&str, u32)]) -> Result<()> {
    world.client_mut(client)?.restart_with(settings)?;
    world.sync()?;
    world.wait_usable(factory)
}

fn start(name: &str, clients: [u32; 2]) -> Result<(World, Factory)> {
    let mut world = World::start(name, 2)?;
    world.lsp.restart_with(&[("claim_margin_blocks", MARGIN)])?;
    for (index, patience) in clients.into_iter().enumerate() {
        let settings = [("claim_margin_blocks", 1), ("payment_patience_blocks", patience)];
        world.client_mut(index)?.restart_with(&settings)?;
    }
    world.add_peer(4 * CAPACITY)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 10_000, None);
    let factory = world.create_factory(&request)?;
    Ok((world, factory))
}

#[test]
fn one_block_decides() -> Result<()> {
    let (mut world, factory) = start("htlc-rules", [TOO_LITTLE, ENOUGH])?;
    let before = wait_at_rest(&world)?;
    let mut paid = Vec::new();

    // Forwarded to a factory channel: what asks for too little is failed back, whatever the sender adds.
    for _ in 0..3 {
        let invoice = world.client(0)?.invoice(AMOUNT, "too soon")?;
        let payment = world.peer()?.pay(&invoice.invoice)?;
        assert_eq!(payment.status, "failed", "forwarded although it expires too soon");
        just_outside(refusal(&world.lsp, &invoice)?, world.bitcoind.height()?, CLAIM + MARGIN)?;
        check_payee(world.client(0)?, &invoice, false)?;
        paid.push(pay(&world, Order { from: Party::Peer, to: Party::Client(1), amount_msat: AMOUNT })?);
    }
    let mut held = wait_for(&world, &before.after(&paid)?)?;

    // Accepted at the final hop: the client has become stricter since it made its invoice.
    let strict = world.client(0)?.invoice(AMOUNT, "too soon for a stricter client")?;
    let enough = world.client(1)?.invoice(AMOUNT, "enough for a stricter client")?;
    for client in 0..2 {
        restart(&mut world, &factory, client, &[("claim_margin_blocks", MARGIN)])?;
    }
    let payment = world.lsp.pay(&strict.invoice)?;
    assert_eq!(payment.status, "failed", "accepted although it expires too soon");
    just_outside(refusal(world.client(0)?, &strict)?, world.bitcoind.height()?, CLAIM + MARGIN)?;
    let payment = world.peer()?.pay(&enough.invoice)?;
    check_payee(world.client(1)?, &enough, true)?;
    held = wait_for(&world, &held.after(&[Settled::new("peer", "client-1", &payment)?])?)?;
    assert_eq!(refusals(world.client(1)?)?, [], "client-1 never had a reason");

    // From a factory channel: the payer's own margin decides how far apart incoming and outgoing expiry are.
    restart(&mut world, &factory, 0, &[("claim_margin_blocks", MARGIN - 1)])?;
    let invoice = world.peer()?.invoice(AMOUNT, "delta one block short")?;
    let payment = world.client(0)?.pay(&invoice.invoice)?;
    assert_eq!(payment.status, "failed", "forwarded with too few blocks between the expiries");
    let delta = i64::from(CLAIM + MARGIN + SETTLE);
    assert_eq!(refusal(&world.lsp, &invoice)?, (delta - 1, delta));
    held = wait_for(&world, &held)?;
    restart(&mut world, &factory, 0, &[("claim_margin_blocks", MARGIN)])?;
    // Both rules together with large margins on all sides are more than a sender's 1008 blocks.
    restart(&mut world, &factory, 1, &[("claim_margin_blocks", 1)])?;
    let told = refusals(&world.lsp)?;
    let paid = [
        pay(&world, Order { from: Party::Client(0), to: Party::Peer, amount_msat: AMOUNT })?,
        // Both rules at once.
        pay(&world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: AMOUNT })?,
    ];
    assert_eq!(refusals(&world.lsp)?, told);
    let after = wait_for(&world, &held.after(&paid)?)?;
    check_conserved(&world, &before, &after)?;
    world.finish();
    Ok(())
}

#[test]
fn the_lsp_dies_while_it_decides() -> Result<()> {
    let (mut world, factory) = start("htlc-rules-killed", [ENOUGH, ENOUGH])?;
    let mut held = wait_at_rest(&world)?;
    for round in 0..6u64 {
        let invoice = world.client(0)?.invoice(AMOUNT, &format!("round {round}"))?;
        let (peer, lsp) = (world.peer.as_ref().ok_or_else(|| anyhow!("no peer"))?, &mut world.lsp);
        std::thread::scope(|scope| {
            let paying = scope.spawn(|| peer.pay(&invoice.invoice));
            // Earlier and later in the life of the payment; the verdict is the same wherever it was.
            std::thread::sleep(std::time::Duration::from_millis(40 * round));
            lsp.kill()?;
            lsp.start()?;
            // By itself the ordinary node tries again once a minute only.
            peer.connect(lsp.node_id(), lsp.listen())?;
            // An error is no verdict: if the LSP was gone before the payment left, the payer found no route.
            let _ = paying.join().map_err(|_| anyhow!("the payer's thread panicked"))?;
            anyhow::Ok(())
        })?;
        world.sync()?;
        world.wait_usable(&factory)?;
        let list = wait::until_value(
            "the payer to know what became of it",
            PATIENCE,
            || {
                world
                    .peer()?
                    .call::<Vec<integration::types::Payment>>(&serde_json::json!({"method": "payments"}))
            },
            |list| list.iter().any(|p| p.payment_hash == invoice.payment_hash && p.status != "pending"),
        )?;
        let payment = list.iter().find(|p| p.payment_hash == invoice.payment_hash);
        let payment = payment.ok_or_else(|| anyhow!("the payment is gone"))?;
        wait_at_rest(&world)?;
        let arrived = payment.status == "succeeded";
        check_payee(world.client(0)?, &invoice, arrived)?;
        let settled = match arrived {
            true => vec![Settled::new("peer", "client-0", payment)?],
            false => vec![],
        };
        let expected: Snapshot = held.after(&settled)?;
        println!("round {round}: {}", payment.status);
        held = wait_for(&world, &expected)?;
    }
    world.finish();
    Ok(())
}
