//! Making and closing a factory with a crash on the way.

use std::collections::HashSet;

use anyhow::{anyhow, bail, Context, Result};
use serde_json::json;

use super::{appear, nonces, wait_free, Call, Outcome, Place, Row, Victim};
use crate::close;
use crate::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use crate::payments::{pay, Order, Party};
use crate::types::Factory;
use crate::wait::{self, Seen};
use crate::world::{CEREMONY, PATIENCE};
use crate::World;

/// Capacity of each channel, sat.
pub const CAPACITY: u64 = 300_000;
/// What each client starts with, sat.
pub const PUSH: u64 = 150_000;
/// The LSP's stock in each leaf, sat.
const STOCK: u64 = 10_000;

/// Points that come by when the funding is in a block.
const ON_BLOCK: &[&str] = &["node.live.store", "node.live.stored", "node.channels.released"];
/// Points that come by when the close is final.
const ON_FINAL: &[&str] = &["node.closed.store", "node.closed.stored"];

/// Makes a factory of all clients and lets the row happen on the way. In the end a factory is there, with payments
/// through every channel; of all clients, or without the one that died.
///
/// # Errors
/// If the point is not reached, or something is lost or stuck.
pub fn create(world: &mut World, row: Option<&Row>) -> Result<(Factory, Outcome)> {
    wait_free(world)?;
    let before = Snapshot::take(world)?;
    let known = ids(world)?;
    let early = row.filter(|row| !ON_BLOCK.contains(&row.point));
    if let Some(row) = row {
        // What is said at every connection comes by at the next one only.
        let on_connect = row.point.ends_with(".join");
        if on_connect {
            row.daemon(world)?.kill()?;
            row.arm(world)?;
            let started = row.daemon(world)?.start();
            row.strike(world).with_context(|| format!("start: {started:?}"))?;
            wait_free(world)?;
        } else {
            row.arm(world)?;
        }
    }
    let request = world.factory_request(CAPACITY, PUSH, STOCK, None);
    let call = Call::post(&world.lsp, "/v1/factories", request)?;
    match early.filter(|row| !row.point.ends_with(".join")) {
        Some(row) => {
            row.strike(world)?;
            // It may have died before it had an answer.
            let _ = call.answer();
        }
        None => drop(call.answer()?),
    }
    let died = early.is_some_and(|row| row.place == Place::Lsp && row.victim != Victim::Bitcoind);
    let Some(factory) = outcome(world, &known, died)? else {
        wait_free(world).context("given up, so everybody is free")?;
        wait_for(world, &before).context("given up, so nothing has moved")?;
        let (factory, _) = create(world, None).context("after one that was given up")?;
        return Ok((factory, Outcome::GivenUp));
    };
    let funding = factory.funding.ok_or_else(|| anyhow!("no funding: {factory:?}"))?;
    appear(world, funding.txid)?;
    world.bitcoind.mine(1)?;
    if let Some(row) = row.filter(|row| ON_BLOCK.contains(&row.point)) {
        row.strike(world)?;
    }
    world.sync()?;
    let factory = world.wait_state(&factory.instance_id, "active", PATIENCE)?;
    check(world, &factory, &before)?;
    let all = members(&factory).len() == world.clients.len();
    Ok((factory, if all { Outcome::Resumed } else { Outcome::WithoutIt }))
}

/// Every channel of a factory is usable on both sides, everybody has what is due, and payments pass through all.
///
/// # Errors
/// If that does not come about.
pub fn check(world: &World, factory: &Factory, before: &Snapshot) -> Result<()> {
    world.wait_usable(factory)?;
    check_made(world, factory, before)?;
    pay_around(world, factory)
}

fn ids(world: &World) -> Result<HashSet<String>> {
    Ok(world.lsp.factories()?.into_iter().map(|factory| factory.instance_id).collect())
}

/// Node ids of the clients that are in it.
fn members(factory: &Factory) -> Vec<String> {
    factory.clients.iter().filter(|c| c.reason.is_none()).map(|c| c.node_id.clone()).collect()
}

/// The factory that is being made, once its funding is signed; none if it was given up.
fn outcome(world: &World, known: &HashSet<String>, lsp_died: bool) -> Result<Option<Factory>> {
    wait::until("the ceremony to end", CEREMONY, || {
        let new: Vec<Factory> =
            world.lsp.factories()?.into_iter().filter(|f| !known.contains(&f.instance_id)).collect();
        match new.as_slice() {
            // What was not stored is forgotten.
            [] if lsp_died => Ok(Seen::Done(None)),
            [one] if one.state == "failed" => Ok(Seen::Done(None)),
            [one] if ["confirming", "active"].contains(&one.state.as_str()) => {
                Ok(Seen::Done(Some(one.clone())))
            }
            other => Ok(Seen::NotYet(format!("{other:?}"))),
        }
    })
}

/// The clients in it have what the plan gives them, the others what they had, and nothing else has changed.
fn check_made(world: &World, factory: &Factory, before: &Snapshot) -> Result<()> {
    let members = members(factory);
    let [excluded, named] = [factory.excluded.len(), world.clients.len() - members.len()];
    if excluded != named {
        bail!("{named} clients are not in the factory, {excluded} are listed as left out: {factory:?}");
    }
    let channels = world.lsp.channels()?.len();
    if channels != members.len() {
        bail!("the LSP has {channels} channels with {} clients", members.len());
    }
    let mut due = before.clone();
    for client in &world.clients {
        if members.iter().any(|id| id == client.node_id()) {
            *due.parties.entry(client.name().to_owned()).or_default() += PUSH * 1000;
        }
    }
    due.parties.remove("lsp");
    let after = wait_for(world, &due)?;
    check_conserved(world, before, &after)
}

/// A payment from each client to the next.
fn pay_around(world: &World, factory: &Factory) -> Result<()> {
    let members = members(factory);
    let inside: Vec<usize> = (0..world.clients.len())
        .filter(|i| members.iter().any(|m| m == world.clients[*i].node_id()))
        .collect();
    let before = wait_at_rest(world)?;
    let mut made = Vec::new();
    for (from, to) in inside.iter().zip(inside.iter().cycle().skip(1)) {
        let (from, to) = (Party::Client(*from), Party::Client(*to));
        made.push(pay(world, Order { from, to, amount_msat: 3_210_987 })?);
    }
    wait_for(world, &before.after(&made)?)?;
    Ok(())
}

/// Closes a factory and lets the row happen on the way. In the end it is closed, everybody paid to the satoshi, and
/// every client free for the next.
///
/// # Errors
/// If the point is not reached, or something is lost or stuck.
pub fn close(world: &mut World, factory: &Factory, row: Option<&Row>) -> Result<Outcome> {
    let id = factory.instance_id.as_str();
    wait_at_rest(world)?;
    let before = Snapshot::take(world)?;
    let mut outcome = Outcome::Resumed;
    match row {
        None => drop(close::drive(world, id)?),
        Some(row) => {
            let due = close::Due::ask(world, id)?;
            row.arm(world)?;
            let call = Call::post(&world.lsp, &format!("/v1/factories/{id}/close"), json!({}))?;
            let late = ON_FINAL.contains(&row.point);
            if late {
                call.answer()?;
            } else {
                row.strike(world)?;
                let _ = call.answer();
            }
            world.sync()?;
            if begun(world, id)? {
                if late {
                    appear(world, due.signed(world)?)?;
                    world.bitcoind.mine(6)?;
                    row.strike(world)?;
                    world.sync()?;
                }
                appear(world, due.signed(world)?)?;
                due.finish(world)?;
            } else {
                outcome = Outcome::GivenUp;
                let factory = world.lsp.factory(id)?;
                world.wait_usable(&factory).context("given up, so the channels live on")?;
                pay_around(world, &factory)?;
                close::drive(world, id)?;
            }
        }
    }
    for client in &world.clients {
        let channels: Vec<_> =
            client.channels()?.into_iter().filter(|c| c.factory.as_deref() == Some(id)).collect();
        if !channels.is_empty() {
            bail!("{} still lists {channels:?}", client.name());
        }
    }
    let after = Snapshot::take(world)?;
    check_conserved(world, &before, &after)?;
    wait_free(world)?;
    nonces::check(world)?;
    Ok(outcome)
}

/// Whether the close goes on: its transaction is signed; or it was given up, and the factory lives on.
fn begun(world: &World, id: &str) -> Result<bool> {
    wait::until("the close to be signed or given up", CEREMONY, || {
        let factory = world.lsp.factory(id)?;
        let signed = factory.close.as_ref().is_some_and(|close| close.txid.is_some());
        match factory.state.as_str() {
            _ if signed => Ok(Seen::Done(true)),
            "active" => Ok(Seen::Done(false)),
            state => Ok(Seen::NotYet(format!("{state}: {:?}", factory.close))),
        }
    })
}
