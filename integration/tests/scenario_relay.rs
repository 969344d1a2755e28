//! Payments larger than any channel of the payee: its LSP receives them and pays them on in parts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Result};
use bitcoin::Network;
use factory_core::params::{DwLayer, Params};
use integration::http::ApiError;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::pace::{rest_until, Leaving, Stand};
use integration::payments::{pay, Order, Party};
use integration::relay::{
    self, find, invoice, settled, wait_given_back, wait_paid, wait_payer, wait_relayed, wait_usable, AMOUNT,
    FEE,
};
use integration::types::{Factory, Payment};
use integration::{wait, World};
use serde_json::{json, Value};

/// The code and the words of the API's refusal.
fn refused<T: std::fmt::Debug>(result: Result<T>) -> (String, String) {
    let error = result.unwrap_err().downcast::<ApiError>().expect("an answer of the API");
    (error.code, error.message)
}

/// What the first client has received gets out again, but for 10,000 sat, so that there is room for the next.
fn pay_back(world: &World) -> Result<()> {
    let has: u64 = world.client(0)?.channels()?.iter().map(|channel| channel.local_msat).sum();
    let order = Order { from: Party::Client(0), to: Party::Peer, amount_msat: has - 10_000_000 };
    let before = wait_at_rest(world)?;
    wait_for(world, &before.after(&[pay(world, order)?])?)?;
    wait_at_rest(world)?;
    Ok(())
}

#[test]
fn larger_than_any_channel_in_one_payment() -> Result<()> {
    let (world, _) = relay::world("relay")?;
    let before = wait_at_rest(&world)?;

    // What fits into one channel is the client's own; what fits into none is the LSP's, unless the client says no.
    let own = |amount, relay| Ok::<_, anyhow::Error>(invoice(&world, amount, relay)?.relay_fee_msat);
    assert_eq!(own(150_000_000, None)?, None);
    assert_eq!(own(AMOUNT, Some("never"))?, None);
    assert_eq!(own(10_000_000, Some("always"))?, Some(10_000));
    let large = invoice(&world, AMOUNT, None)?;
    assert_eq!(large.relay_fee_msat, Some(FEE));

    let paid = world.peer()?.pay(&large.invoice)?;
    assert_eq!((paid.status.as_str(), paid.amount_msat, paid.fee_msat), ("succeeded", AMOUNT + FEE, 0));
    let after = wait_paid(&world, &before, &large.payment_hash)?;
    check_conserved(&world, &before, &after)?;

    // It came over both channels, and each of the three tells it in its way.
    let channels = world.client(0)?.channels()?;
    let parts: Vec<u64> = channels.iter().map(|channel| channel.local_msat).collect();
    assert_eq!((parts.len(), parts.iter().sum::<u64>()), (2, AMOUNT), "{channels:?}");
    assert!(parts.iter().all(|part| *part > 50_000_000), "{channels:?}");
    let told = find(world.lsp.payments()?, &large.payment_hash, "relayed").expect("the LSP's");
    assert_eq!((told.amount_msat, told.fee_msat), (AMOUNT, FEE));
    let sides = told.relayed.expect("both sides");
    assert_eq!((sides.received_msat, sides.client_paid), (AMOUNT + FEE, true));
    assert_eq!(sides.client, world.client(0)?.node_id());
    let received = find(world.client(0)?.payments()?, &large.payment_hash, "in").expect("the client's");
    assert_eq!((received.status.as_str(), received.amount_msat), ("succeeded", AMOUNT));
    for direction in ["in", "out"] {
        assert_eq!(find(world.lsp.payments()?, &large.payment_hash, direction), None);
    }

    // A payer in the same factory: what the LSP has to claim is on a factory channel.
    let small = invoice(&world, 20_000_000, Some("always"))?;
    let paid = world.client(1)?.pay(&small.invoice)?;
    assert_eq!(paid.status, "succeeded", "{paid:?}");
    wait_for(&world, &after.after(&[settled("client-1", 20_000_000, 20_000)])?)?;

    // Refused, each with its reason.
    let (code, text) = refused(invoice(&world, 400_000_000, Some("always")));
    assert_eq!(code, "conflict");
    assert!(text.contains("amount_msat: must be from 1 to"), "{text}");
    let ask = |body: Value| world.client(0)?.api()?.post::<Value>("/v1/invoice", &body);
    let base = json!({ "amount_msat": 10_000_000, "relay": "always" });
    let with = |key: &str, value: Value| {
        let mut body = base.clone();
        body[key] = value;
        body
    };
    let (code, text) = refused(ask(with("relay_max_fee_msat", json!(9_999))));
    assert!(code == "conflict" && text.contains("max_fee_msat: the fee is 10000 msat"), "{text}");
    let (code, text) = refused(ask(with("expiry_secs", json!(59))));
    assert!(code == "invalid_argument" && text.contains("from 60"), "{text}");
    let (code, _) = refused(ask(with("amount_msat", json!(null))));
    assert_eq!(code, "invalid_argument");
    let on_lsp = json!({ "amount_msat": 10_000_000, "relay": "always" });
    let (code, _) = refused(world.lsp.api()?.post::<Value>("/v1/invoice", &on_lsp));
    assert_eq!(code, "invalid_argument");
    world.finish();
    Ok(())
}

/// One round: the LSP dies at a point, comes back, and the payment comes to an end at which nobody has lost.
fn lsp_dies(world: &mut World, factory: &Factory, point: &str) -> Result<()> {
    let before = wait_at_rest(world)?;
    let large = invoice(world, AMOUNT, None)?;
    world.lsp.faults().set(&format!("kill@{point}"))?;
    world.peer()?.send(&large.invoice)?;
    world.lsp.wait_killed()?;
    world.lsp.faults().clear()?;
    world.lsp.start()?;
    wait_usable(world, factory, 1)?;
    wait_paid(world, &before, &large.payment_hash)?;
    println!("killed at {point}: paid");
    pay_back(world)
}

#[test]
fn the_lsp_dies_held_paid_on_and_claimed() -> Result<()> {
    let (mut world, factory) = relay::world("relay-lsp")?;
    for point in ["lsp.relay.held", "lsp.relay.paid", "lsp.relay.claimed"] {
        lsp_dies(&mut world, &factory, point)?;
    }
    world.finish();
    Ok(())
}

#[test]
#[ignore = "long: make relay"]
fn the_lsp_dies_at_the_other_steps() -> Result<()> {
    let (mut world, factory) = relay::world("relay-lsp-all")?;
    for point in
        ["lsp.relay.paying", "lsp.relay.sent", "lsp.relay.done", "node.manager.store", "node.monitor.stored"]
    {
        lsp_dies(&mut world, &factory, point)?;
    }
    // With all parts at the client, who has not claimed them.
    let before = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT, None)?;
    world.client(0)?.faults().set("hold@node.claimable")?;
    world.peer()?.send(&large.invoice)?;
    world.client(0)?.faults().wait_held("node.claimable")?;
    world.lsp.kill()?;
    world.lsp.start()?;
    wait_relayed(&world, &large.payment_hash, "pending")?;
    world.client(0)?.faults().clear()?;
    wait_usable(&world, &factory, 1)?;
    wait_paid(&world, &before, &large.payment_hash)?;
    pay_back(&world)?;
    // Before the client has its invoice: nobody can pay it.
    world.lsp.faults().set("kill@lsp.relay.offered")?;
    assert_eq!(refused(invoice(&world, AMOUNT, None)).0, "unavailable");
    world.lsp.wait_killed()?;
    world.lsp.faults().clear()?;
    world.lsp.start()?;
    wait_usable(&world, &factory, 1)?;
    // Giving back: the client is away for good, and the LSP dies over it.
    world.lsp.restart_with(&[("relay_hold_secs", 3)])?;
    wait_usable(&world, &factory, 1)?;
    let before = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT, None)?;
    world.client_mut(0)?.kill()?;
    world.lsp.faults().set("kill@lsp.relay.failed")?;
    world.peer()?.send(&large.invoice)?;
    world.lsp.wait_killed()?;
    world.lsp.faults().clear()?;
    world.lsp.start()?;
    world.wait_peer_usable()?;
    wait_payer(&world, &large.payment_hash, "failed")?;
    world.client_mut(0)?.start()?;
    wait_usable(&world, &factory, 1)?;
    wait_given_back(&world, &before, &large.payment_hash)?;
    world.finish();
    Ok(())
}

/// The client's channels carry so many HTLCs, as the client sees it.
fn wait_parts(world: &World, parts: u64) -> Result<()> {
    wait::until_value(
        &format!("{parts} parts at the client"),
        integration::world::PATIENCE,
        || world.client(0)?.channels(),
        |channels| channels.iter().map(|channel| channel.pending_htlcs).sum::<u64>() == parts,
    )?;
    Ok(())
}

#[test]
#[ignore = "long: make relay"]
fn the_client_is_away_or_dies_with_a_part() -> Result<()> {
    let (mut world, factory) = relay::world("relay-client")?;

    // It comes when the payment waits for it.
    let before = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT, None)?;
    world.client_mut(0)?.kill()?;
    world.peer()?.send(&large.invoice)?;
    let held = wait_relayed(&world, &large.payment_hash, "held")?;
    assert!(!held.relayed.expect("both sides").client_paid);
    world.client_mut(0)?.start()?;
    wait_usable(&world, &factory, 1)?;
    wait_paid(&world, &before, &large.payment_hash)?;
    pay_back(&world)?;

    // It dies when it has one part.
    let before = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT, None)?;
    world.lsp.faults().set("on@lsp.part.withheld")?;
    world.peer()?.send(&large.invoice)?;
    wait_parts(&world, 1)?;
    world.client_mut(0)?.kill()?;
    world.lsp.faults().clear()?;
    world.client_mut(0)?.start()?;
    wait_usable(&world, &factory, 1)?;
    wait_paid(&world, &before, &large.payment_hash)?;
    pay_back(&world)?;

    // It dies when it has all, and claims when it is back.
    let before = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT, None)?;
    world.client(0)?.faults().set("kill@node.claimable")?;
    world.peer()?.send(&large.invoice)?;
    world.client_mut(0)?.wait_killed()?;
    world.client(0)?.faults().clear()?;
    world.client_mut(0)?.start()?;
    wait_usable(&world, &factory, 1)?;
    let after = wait_paid(&world, &before, &large.payment_hash)?;

    // It does not come: given back, and an invoice that failed once stays failed.
    world.lsp.restart_with(&[("relay_hold_secs", 3)])?;
    wait_usable(&world, &factory, 1)?;
    let away = invoice(&world, 20_000_000, Some("always"))?;
    world.client_mut(0)?.kill()?;
    world.peer()?.send(&away.invoice)?;
    wait_payer(&world, &away.payment_hash, "failed")?;
    let told: Payment = wait_relayed(&world, &away.payment_hash, "failed")?;
    assert!(told.failure.as_deref().is_some_and(|f| f.contains("not there in time")), "{told:?}");
    world.client_mut(0)?.start()?;
    wait_usable(&world, &factory, 1)?;
    assert_eq!(world.client(1)?.pay(&away.invoice)?.status, "failed");
    wait_for(&world, &after)?;
    world.finish();
    Ok(())
}

#[test]
#[ignore = "long: make relay"]
fn a_part_that_fails_goes_another_way() -> Result<()> {
    let (world, _) = relay::world("relay-part")?;
    relay::beside(&world, 2)?;
    let before = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT, None)?;
    world.lsp.faults().set("on@lsp.part.damaged")?;
    let paid = world.peer()?.pay(&large.invoice)?;
    assert_eq!(paid.status, "succeeded", "{paid:?}");
    wait_paid(&world, &before, &large.payment_hash)?;
    world.finish();
    Ok(())
}

/// Without another way the other part is out until the client gives it up, after three of LDK's minutes.
#[test]
#[ignore = "long: make relay"]
fn a_part_that_fails_for_good_is_given_back() -> Result<()> {
    let (world, _) = relay::world("relay-part-lost")?;
    let before: Snapshot = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT + 30_000_000, None)?;
    world.lsp.faults().set("on@lsp.part.damaged")?;
    world.peer()?.send(&large.invoice)?;
    let limit = std::time::Duration::from_secs(400);
    let failed = |payment: &Option<Payment>| payment.as_ref().is_some_and(|p| p.status == "failed");
    let of = || Ok(find(world.lsp.payments()?, &large.payment_hash, "relayed"));
    wait::until_value("the LSP to give it back", limit, of, failed)?;
    wait_given_back(&world, &before, &large.payment_hash)?;
    world.finish();
    Ok(())
}

/// Layers of a tree that takes few blocks.
const SMALL: [[u16; 3]; 2] = [[2, 2, 2], [2, 2, 0]];
/// `payment_patience_blocks` of the clients.
const PATIENCE_BLOCKS: u16 = 36;
/// `claim_margin_blocks` of both sides.
const MARGIN: u32 = 12;

/// Claim budget of the small tree, and the blocks that a relayed payment gets on the client's channels from the
/// height at which it is paid on.
fn blocks() -> Result<(u32, u32)> {
    let mut params = Params::default_for(2, Network::Regtest)?;
    params.shape.layers.pop();
    params.shape.layers.push(SMALL.map(|[states, step, base]| DwLayer { states, step, base }).to_vec());
    let asked_for = u32::from(params.final_cltv_delta(PATIENCE_BLOCKS)?);
    Ok((params.claim_budget(params.confirm_blocks)?, asked_for + 3 + 2))
}

/// Off the chain: a client that comes too late gives it back, and one that claims late makes nobody poorer, since
/// the LSP has that much time left on the other side.
#[test]
#[ignore = "long: make relay"]
fn a_client_that_sits_on_it_costs_nobody_anything() -> Result<()> {
    let (world, _) = relay::world_with("relay-late", json!({ "layers": [[], SMALL] }))?;
    let (claim_budget, delta) = blocks()?;

    // The client looks at it when it may not claim it any more.
    let before = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT, None)?;
    world.client(0)?.faults().set("hold@node.claimable")?;
    world.peer()?.send(&large.invoice)?;
    world.client(0)?.faults().wait_held("node.claimable")?;
    let expiry = world.bitcoind.height()? + delta;
    world.bitcoind.mine_to(expiry - claim_budget - MARGIN + 1)?;
    world.sync()?;
    world.client(0)?.faults().clear()?;
    wait_given_back(&world, &before, &large.payment_hash)?;

    // It looks in time and claims as late as it can without being left.
    let before = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT, None)?;
    world.client(0)?.faults().set("hold@node.claimable.recorded")?;
    world.peer()?.send(&large.invoice)?;
    world.client(0)?.faults().wait_held("node.claimable.recorded")?;
    let expiry = world.bitcoind.height()? + delta;
    world.bitcoind.mine_to(expiry - claim_budget + 1)?;
    world.sync()?;
    let told = wait_relayed(&world, &large.payment_hash, "pending")?;
    assert!(told.claim_by_height.is_some_and(|height| height > expiry + 45), "{told:?}, {expiry}");
    world.client(0)?.faults().clear()?;
    wait_paid(&world, &before, &large.payment_hash)?;
    world.finish();
    Ok(())
}

/// The client is gone for good with the payment on its channels: the LSP takes them to the chain, gets the parts back
/// there, and only then, and in time, gives the payer its own.
#[test]
#[ignore = "long: make relay"]
fn a_client_that_is_gone_is_left_before_the_payer_is_paid_back() -> Result<()> {
    let (mut world, factory) = relay::world_with("relay-gone", json!({ "layers": [[], SMALL] }))?;
    let before = wait_at_rest(&world)?;
    let large = invoice(&world, AMOUNT, None)?;
    world.client(0)?.faults().set("kill@node.claimable")?;
    world.peer()?.send(&large.invoice)?;
    world.client_mut(0)?.wait_killed()?;
    world.client(0)?.faults().clear()?;
    let claim_by = wait_relayed(&world, &large.payment_hash, "pending")?.claim_by_height.expect("a height");
    let (claim_budget, delta) = blocks()?;

    let leaving = Leaving::by_lsp(&world, 0, &factory.instance_id)?;
    world.bitcoind.mine_to(world.bitcoind.height()? + delta - claim_budget)?;
    world.sync()?;
    loop {
        let told = find(world.lsp.payments()?, &large.payment_hash, "relayed").expect("the relay");
        if told.status == "failed" {
            break;
        }
        assert!(world.bitcoind.height()? < claim_by, "LDK has given it back by itself at {claim_by}");
        let blocks = match world.lsp.factory(&factory.instance_id)?.exits.is_empty() {
            true => 1,
            false => match leaving.settle(&world)? {
                Stand::Idle(blocks) => blocks.min(3),
                _ => 1,
            },
        };
        world.mine_for(&world.lsp, blocks)?;
    }
    let height = world.bitcoind.height()?;
    world.sync()?;
    println!("given back at {height}, {} blocks before the incoming payment is due", claim_by - height);
    wait_payer(&world, &large.payment_hash, "failed")?;

    // Nobody but the LSP has paid anything, and that only fees.
    world.client_mut(0)?.start()?;
    world.sync()?;
    rest_until(&world, |held| {
        for party in ["peer", "client-0", "client-1"] {
            ensure!(held.of(party)? == before.of(party)?, "{party}: {held:?}, before {before:?}");
        }
        check_conserved(&world, &before, held)
    })?;
    world.finish();
    Ok(())
}
