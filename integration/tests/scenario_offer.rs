//! Offers (BOLT 12): an ordinary payer splits a payment by itself over the payee's channels; and all that can happen
//! between the request for an invoice and its payment.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context, Result};
use integration::jit::{of_kind, status};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Settled, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::relay::{self, AMOUNT, PATIENT};
use integration::types::Payment;
use integration::world::PATIENCE;
use integration::{rotate, wait, World};
use serde_json::{json, Value};

/// Base fee of the LSP's for each part, msat, by its default settings.
const BASE: u64 = 1000;
/// And in millionths.
const PPM: u64 = 100;

/// Payments by an offer as its maker shows them, oldest first.
fn received(world: &World, index: usize, offer_id: &str) -> Result<Vec<Payment>> {
    let mut list = world.client(index)?.payments()?;
    list.retain(|p| p.offer_id.as_deref() == Some(offer_id) && p.direction.as_deref() == Some("in"));
    Ok(list)
}

/// The ordinary node pays by the first client's offer, over both channels. Returns what everybody holds then.
fn split(world: &World, offer: &integration::types::Offer, nth: usize) -> Result<Snapshot> {
    let before = wait_at_rest(world)?;
    let held = |list: &[integration::types::Channel]| list.iter().map(|c| c.local_msat).collect::<Vec<_>>();
    let had = held(&world.client(0)?.channels()?);
    let paid = world.peer()?.pay_offer(&offer.offer, None)?;
    assert_eq!((paid.status.as_str(), paid.amount_msat), ("succeeded", AMOUNT), "{paid:?}");
    let all = wait::until_value(
        "the client to show it",
        PATIENCE,
        || received(world, 0, &offer.offer_id),
        |list| list.len() == nth && list.iter().all(|p| p.status == "succeeded"),
    )?;
    let own = all.iter().find(|p| p.payment_hash == paid.payment_hash).context("the payer's hash")?;
    // A part may be a millisatoshi larger than the payer meant: the LSP rounds its fee down.
    let over = own.amount_msat - AMOUNT;
    let settled = Settled {
        from: "peer".into(),
        to: "client-0".into(),
        amount_msat: own.amount_msat,
        fee_msat: paid.fee_msat - over,
    };
    let after = wait_for(world, &before.after(&[settled])?)?;
    wait_at_rest(world)?;
    check_conserved(world, &before, &after)?;
    let parts: Vec<u64> =
        held(&world.client(0)?.channels()?).iter().zip(had).map(|(now, had)| now - had).collect();
    println!("parts {parts:?}, fee {} msat, {over} msat over", paid.fee_msat);
    assert!(parts.len() == 2 && parts.iter().all(|part| *part > 40_000_000), "{parts:?}");
    let fee: u64 = parts.iter().map(|part| BASE + part * PPM / 1_000_000).sum();
    assert!(paid.fee_msat == fee && over <= 2, "fee {fee}: {paid:?}, {own:?}");
    // Nobody was asked to receive it in the client's place, and nothing was opened for it.
    assert!(!world.lsp.payments()?.iter().any(|p| p.payment_hash == paid.payment_hash));
    assert_eq!(of_kind(world, 0, "jit")?.len(), 1);
    Ok(after)
}

#[test]
fn an_ordinary_payer_splits_by_itself() -> Result<()> {
    let (world, factory) = relay::world("offer")?;
    let offer = world.client(0)?.offer(Some(AMOUNT))?;
    split(&world, &offer, 1)?;

    // What it has received gets out again, partly to offers: of the LSP, and of the ordinary node, whose path asks for
    // fewer blocks than a payment from a factory channel needs, so it starts on the other one.
    let before = wait_at_rest(&world)?;
    let to_lsp = world.client(0)?.pay(&world.lsp.offer(Some(5_000_000))?.offer)?;
    let to_peer = world.client(0)?.pay(&world.peer()?.offer(20_000_000)?)?;
    let from_peer = world.peer()?.pay_offer(&world.lsp.offer(None)?.offer, Some(3_000_000))?;
    let out = [
        Settled::new("client-0", "lsp", &to_lsp)?,
        Settled::new("client-0", "peer", &to_peer)?,
        Settled::new("peer", "lsp", &from_peer)?,
    ];
    assert!(to_peer.payment_id.is_some() && to_peer.offer_id.is_some(), "{to_peer:?}");
    let id = to_peer.payment_id.clone().unwrap_or_default();
    let by_id: Payment = world.client(0)?.api()?.get(&format!("/v1/payments/{id}"))?;
    assert_eq!(by_id.payment_hash, to_peer.payment_hash);
    let before = wait_for(&world, &before.after(&out)?)?;
    let beside = Order { from: Party::Client(0), to: Party::Peer, amount_msat: 215_000_000 };
    wait_for(&world, &before.after(&[pay(&world, beside)?])?)?;

    // The second client has a factory channel only. It pays an offer without an amount, and not that of the ordinary node.
    let before = wait_at_rest(&world)?;
    let any = world.client(0)?.offer(None)?;
    let body = json!({ "invoice": any.offer, "amount_msat": 7_000_001, "wait_secs": 90 });
    let paid: Payment = world.client(1)?.api()?.post("/v1/pay", &body)?;
    let due = before.after(&[Settled::new("client-1", "client-0", &paid)?])?;
    let refused = world.client(1)?.pay(&world.peer()?.offer(1_000_000)?)?;
    assert_eq!(refused.status, "failed");
    assert!(refused.failure.as_deref().is_some_and(|why| why.contains("no route")), "{refused:?}");
    wait_for(&world, &due)?;

    // The offer outlives a rotation.
    let order = Order { from: Party::Client(0), to: Party::Peer, amount_msat: 7_000_000 };
    wait_for(&world, &due.after(&[pay(&world, order)?])?)?;
    wait_at_rest(&world)?;
    rotate::once(&world, &factory.instance_id, 0)?;
    split(&world, &offer, 2)?;

    let bad = |body: Value| world.client(0)?.api()?.post::<Value>("/v1/pay", &body);
    for (body, why) in [
        (json!({ "invoice": "lno1nonsense" }), "not a BOLT 12 offer"),
        (json!({ "invoice": any.offer }), "it names none"),
        (json!({ "invoice": offer.offer, "amount_msat": 1 }), "it is over 250000000 msat"),
    ] {
        let error = format!("{:#}", bad(body).unwrap_err());
        assert!(error.contains(why), "{error}");
    }
    world.finish();
    Ok(())
}

/// A payment by an offer for which there is no room is held, and served.
#[test]
#[ignore = "long: make relay"]
fn a_client_without_room_is_served() -> Result<()> {
    let (world, _) = relay::one_channel("offer-room", Value::Null, PATIENT)?;
    let before = wait_at_rest(&world)?;
    let offer = world.client(0)?.offer(None)?;
    let paid = world.peer()?.pay_offer(&offer.offer, Some(150_000_000))?;
    let settled = Settled::new("peer", "client-0", &paid)?;
    let own = wait::until_value(
        "the client to show it",
        PATIENCE,
        || received(&world, 0, &offer.offer_id),
        |list| list.iter().any(|p| p.status == "succeeded"),
    )?;
    let over = own[0].amount_msat - settled.amount_msat;
    let settled =
        Settled { amount_msat: settled.amount_msat + over, fee_msat: settled.fee_msat - over, ..settled };
    world.mine_mempool()?;
    let mut due = before.after(&[settled])?;
    integration::jit::less_fees(&world, before.height, &mut due)?;
    wait_for(&world, &due)?;
    assert_eq!(of_kind(&world, 0, "jit")?.len(), 1);
    assert_eq!(status(&world)?.held_htlcs, 0);
    world.finish();
    Ok(())
}

/// Where the LSP makes no room the payer has his money back, and knows nothing but that.
#[test]
#[ignore = "long: make relay"]
fn what_is_refused_inside_the_path_is_given_back() -> Result<()> {
    let (mut world, factory) = relay::one_channel("offer-refused", Value::Null, PATIENT)?;
    world.client_mut(0)?.restart_with(&[("max_jit_sat", 0)])?;
    world.wait_usable(&factory)?;
    let before = wait_at_rest(&world)?;
    let offer = world.client(0)?.offer(None)?;
    let paid = world.peer()?.pay_offer(&offer.offer, Some(150_000_000))?;
    assert_eq!(paid.status, "failed", "{paid:?}");
    wait_for(&world, &before)?;
    assert_eq!(status(&world)?.held_htlcs, 0);
    assert_eq!(received(&world, 0, &offer.offer_id)?, vec![]);
    // What fits is paid by the same offer.
    let paid = world.peer()?.pay_offer(&offer.offer, Some(20_000_000))?;
    assert_eq!(paid.status, "succeeded", "{paid:?}");
    world.finish();
    Ok(())
}

/// Nobody answers for a client that is away. An ordinary payer gives up when LDK does, our own in half a minute.
#[test]
#[ignore = "long: make relay"]
fn a_payee_who_is_away_costs_nothing() -> Result<()> {
    let (mut world, factory) = relay::world("offer-away")?;
    let offer = world.client(0)?.offer(Some(10_000_000))?;
    let before = wait_at_rest(&world)?;
    let held = before.of("client-0")?;
    world.client_mut(0)?.stop()?;
    let asked = world.client(1)?.send(&offer.offer)?;
    assert_eq!((asked.status.as_str(), asked.payment_hash.as_str()), ("pending", ""), "{asked:?}");
    let paid = world.peer()?.pay_offer(&offer.offer, None)?;
    assert_eq!(paid.status, "failed", "{paid:?}");
    let id = asked.payment_id.expect("its id");
    let ended: Payment = world.client(1)?.api()?.get(&format!("/v1/payments/{id}"))?;
    assert_eq!(ended.status, "failed");
    assert!(
        ended.failure.as_deref().is_some_and(|why| why.contains("not answered within 30 s")),
        "{ended:?}"
    );
    let mut due = before.clone();
    due.parties.remove("client-0");
    wait_for(&world, &due)?;

    // It is back, and the offer as good as before.
    world.client_mut(0)?.start()?;
    relay::wait_usable(&world, &factory, 1)?;
    due.parties.insert("client-0".into(), held);
    let paid = world.client(1)?.pay(&offer.offer)?;
    wait_for(&world, &due.after(&[Settled::new("client-1", "client-0", &paid)?])?)?;
    // Who is not connected makes no offer, and pays none.
    world.lsp.stop()?;
    let error = format!("{:#}", world.client(0)?.offer(None).unwrap_err());
    assert!(error.contains("not connected"), "{error}");
    let paid = world.client(1)?.pay(&offer.offer)?;
    assert!(paid.failure.as_deref().is_some_and(|why| why.contains("no way for the answer")), "{paid:?}");
    world.finish();
    Ok(())
}

/// The payer dies with the request on record, and with the invoice; the payee with the payment.
#[test]
#[ignore = "long: make relay"]
fn payer_and_payee_die_at_every_step() -> Result<()> {
    let (mut world, factory) = relay::world("offer-crash")?;
    let offer = world.client(0)?.offer(Some(2_000_000))?;
    let usable = |world: &World| relay::wait_usable(world, &factory, 1);
    for point in ["node.offer.requested", "node.offer.answered", "node.paid"] {
        let before = wait_at_rest(&world)?;
        world.client(1)?.faults().set(&format!("kill@{point}"))?;
        let ids = |list: Vec<Payment>| list.into_iter().filter_map(|p| p.payment_id).collect::<Vec<_>>();
        let known = ids(world.client(1)?.payments()?);
        // The answer is lost with the process.
        let _ = world.client(1)?.send(&offer.offer);
        world.client_mut(1)?.wait_killed()?;
        world.client(1)?.faults().clear()?;
        world.client_mut(1)?.start()?;
        usable(&world)?;
        let new = |p: &Payment| p.payment_id.as_ref().is_some_and(|id| !known.contains(id));
        let ended = wait::until_value(
            "the payment to end",
            std::time::Duration::from_secs(150),
            || Ok(world.client(1)?.payments()?.into_iter().find(new)),
            |payment| payment.as_ref().is_some_and(|p| p.status != "pending"),
        )?;
        let last = &ended.context("a payment")?;
        println!("killed at {point}: {} {:?}", last.status, last.failure);
        let due = match last.status.as_str() {
            "succeeded" => before.after(&[Settled::new("client-1", "client-0", last)?])?,
            _ => before,
        };
        // With the invoice on record LDK may not have written that there is a request: then nothing has left.
        let expected = match point {
            "node.offer.requested" => Some("failed"),
            "node.paid" => Some("succeeded"),
            _ => None,
        };
        assert!(expected.is_none_or(|status| last.status == status), "{last:?}");
        wait_for(&world, &due)?;
    }
    let before = wait_at_rest(&world)?;
    world.client(0)?.faults().set("kill@node.claimable")?;
    let begun = world.client(1)?.send(&offer.offer)?;
    world.client_mut(0)?.wait_killed()?;
    world.client(0)?.faults().clear()?;
    world.client_mut(0)?.start()?;
    usable(&world)?;
    let id = begun.payment_id.expect("its id");
    let paid = wait::until_value(
        "the payment to end",
        PATIENCE,
        || world.client(1)?.api()?.get::<Payment>(&format!("/v1/payments/{id}")),
        |payment| payment.status != "pending",
    )?;
    wait_for(&world, &before.after(&[Settled::new("client-1", "client-0", &paid)?])?)?;
    world.finish();
    Ok(())
}
