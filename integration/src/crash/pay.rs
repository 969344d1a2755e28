//! Payments with a crash on the way, in a factory that lives.

use anyhow::{bail, Context, Result};
use serde_json::json;

use super::{Call, Outcome, Place, Row, OTHER, VICTIM};
use crate::hold::Held;
use crate::ledger::{check_conserved, wait_at_rest, wait_for, Settled};
use crate::payments::{Order, Party};
use crate::types::{Factory, Payment};
use crate::wait::{self, Seen};
use crate::world::PATIENCE;
use crate::{Client, World};

/// So little that all rows, one after the other, leave the payer something.
const AMOUNT_MSAT: u64 = 2_654_321;

/// Points at which the payee comes by.
const OF_PAYEE: &[&str] = &["node.claimable", "node.claim.begun", "node.claimed"];

/// Makes a payment and lets the row happen on the way: it is settled, or comes back whole and can be made again.
/// Afterwards everybody holds exactly what the payment leaves, and nothing is pending.
///
/// # Errors
/// If the point is not reached, or something is lost or stuck.
pub fn payment(world: &mut World, factory: &Factory, row: &Row) -> Result<Outcome> {
    world.wait_usable(factory)?;
    let before = wait_at_rest(world)?;
    let (paid, outcome) = match row.point {
        point if point.starts_with("node.hold.") || point == "node.pay.failed" => held(world, factory, row)?,
        _ => plain(world, factory, row)?,
    };
    world.wait_usable(factory)?;
    wait_for(world, &before.after(&paid)?)?;
    let after = wait_at_rest(world)?;
    check_conserved(world, &before, &after)?;
    Ok(outcome)
}

/// After a crash: everybody follows the chain and is connected.
fn back(world: &World, factory: &Factory) -> Result<()> {
    world.sync()?;
    world.wait_usable(factory)
}

fn plain(world: &mut World, factory: &Factory, row: &Row) -> Result<(Vec<Settled>, Outcome)> {
    let receives = OF_PAYEE.iter().any(|point| row.point.starts_with(point));
    let (from, to) = if receives { (OTHER, VICTIM) } else { (VICTIM, OTHER) };
    let invoice = world.client(to)?.invoice(AMOUNT_MSAT, &row.to_string())?;
    row.arm(world)?;
    let body = json!({ "invoice": invoice.invoice, "wait_secs": 0 });
    let call = Call::post(world.client(from)?, "/v1/pay", body)?;
    row.strike(world)?;
    let _ = call.answer();
    back(world, factory)?;
    let names = [Party::Client(from), Party::Client(to)].map(|party| party.to_string());
    let settled = |payment: &Payment| Settled::new(&names[0], &names[1], payment);
    let payer = world.client(from)?;
    let end = wait::until("the payment to come to an end", PATIENCE, || {
        let payment = of(payer, &invoice.payment_hash, "out")?;
        Ok(match payment {
            Some(p) if p.status == "pending" => Seen::NotYet(format!("{p:?}")),
            end => Seen::Done(end),
        })
    })?;
    match end {
        Some(payment) if payment.status == "succeeded" => {
            wait_received(world.client(to)?, &invoice.payment_hash)?;
            Ok((vec![settled(&payment)?], Outcome::Settled))
        }
        end => {
            // Never begun, or failed: the payee has nothing, and the invoice can be paid.
            if let Some(got) = of(world.client(to)?, &invoice.payment_hash, "in")? {
                if got.status == "succeeded" {
                    bail!("the payee was paid, the payer says {end:?}");
                }
            }
            let payment = payer.pay(&invoice.invoice)?;
            let settled = settled(&payment).context("again, after it came back")?;
            wait_received(world.client(to)?, &invoice.payment_hash)?;
            Ok((vec![settled], Outcome::CameBack))
        }
    }
}

fn of(client: &Client, hash: &str, direction: &str) -> Result<Option<Payment>> {
    let found = |p: &Payment| p.payment_hash == hash && p.direction.as_deref() == Some(direction);
    Ok(client.payments()?.into_iter().find(found))
}

fn wait_received(client: &Client, hash: &str) -> Result<()> {
    wait::until_value(
        &format!("{} to call the payment received", client.name()),
        PATIENCE,
        || of(client, hash, "in"),
        |payment| payment.as_ref().is_some_and(|p| p.status == "succeeded"),
    )?;
    Ok(())
}

/// The same with a payment that the payee holds until it is told what to do.
fn held(world: &mut World, factory: &Factory, row: &Row) -> Result<(Vec<Settled>, Outcome)> {
    let (payee, payer) = (Party::Client(VICTIM), Party::Client(OTHER));
    let order = Order { from: payer, to: payee, amount_msat: AMOUNT_MSAT };
    if row.place != Place::Client {
        bail!("only a client's holds are driven here");
    }
    match row.point {
        "node.hold.added" => {
            row.arm(world)?;
            let hash = hex::encode(rand::random::<[u8; 32]>());
            let body = json!({ "amount_msat": AMOUNT_MSAT, "payment_hash": hash });
            let call = Call::post(world.client(VICTIM)?, "/v1/invoice", body)?;
            row.strike(world)?;
            let _ = call.answer();
            back(world, factory)?;
            let held = Held::start(world, order)?;
            held.claim(world)?;
            Ok((vec![held.paid(world)?], Outcome::GivenUp))
        }
        "node.hold.stored" => {
            row.arm(world)?;
            let held = Held::announce(world, order)?;
            row.strike(world)?;
            back(world, factory)?;
            let held = held.arrive(world)?;
            held.claim(world)?;
            Ok((vec![held.paid(world)?], Outcome::Settled))
        }
        "node.hold.claim_ordered" => {
            let held = Held::start(world, order)?;
            row.arm(world)?;
            let body = json!({ "preimage": held.preimage });
            let call = Call::post(world.client(VICTIM)?, "/v1/payments/claim", body)?;
            row.strike(world)?;
            let _ = call.answer();
            back(world, factory)?;
            Ok((vec![held.paid(world)?], Outcome::Settled))
        }
        "node.pay.failed" => {
            let order = Order { from: payee, to: payer, amount_msat: AMOUNT_MSAT };
            let held = Held::start(world, order)?;
            row.arm(world)?;
            held.fail(world)?;
            row.strike(world)?;
            back(world, factory)?;
            held.given_back(world)?;
            Ok((Vec::new(), Outcome::CameBack))
        }
        _ => {
            let held = Held::start(world, order)?;
            row.arm(world)?;
            let body = json!({ "payment_hash": held.payment_hash });
            let call = Call::post(world.client(VICTIM)?, "/v1/payments/fail", body)?;
            row.strike(world)?;
            let _ = call.answer();
            back(world, factory)?;
            held.given_back(world)?;
            Ok((Vec::new(), Outcome::CameBack))
        }
    }
}
