//! Changes of capacity, as the scenarios ask for them and wait for them.

use anyhow::{Context, Result};
use serde_json::{json, Value};

use crate::wait;
use crate::world::{factory_channel, World, PATIENCE};

/// Has a client ask for a change of its capacity, sat.
///
/// # Errors
/// What the client answers.
pub fn ask(world: &World, id: &str, index: usize, change_sat: i64) -> Result<Value> {
    world.client(index)?.api()?.post(&path(id), &json!({ "change_sat": change_sat }))
}

/// Has the LSP change the capacity of a client, sat.
///
/// # Errors
/// What the LSP answers.
pub fn sell(world: &World, id: &str, index: usize, change_sat: i64) -> Result<Value> {
    let client = world.client(index)?.node_id();
    world.lsp.api()?.post(&path(id), &json!({ "client": client, "change_sat": change_sat }))
}

/// Has the LSP move liquidity from one client's channel to another's, sat.
///
/// # Errors
/// What the LSP answers.
pub fn shift(world: &World, id: &str, (from, to): (usize, usize), sat: i64) -> Result<Value> {
    let (from, client) = (world.client(from)?.node_id(), world.client(to)?.node_id());
    let request = json!({ "client": client, "from": from, "change_sat": sat });
    world.lsp.api()?.post(&path(id), &request)
}

fn path(id: &str) -> String {
    format!("/v1/factories/{id}/liquidity")
}

/// Waits until LDK has this capacity for a client's channel on both sides, and it can be used.
///
/// # Errors
/// If it has not in time, with what the two say.
pub fn wait_capacity(world: &World, id: &str, index: usize, capacity_sat: u64) -> Result<()> {
    let client = world.client(index)?;
    wait::until_value(
        &format!("both sides to have a channel of {capacity_sat} sat"),
        PATIENCE,
        || {
            let own = factory_channel(&client.channels()?, id, world.lsp.node_id())?;
            let theirs =
                factory_channel(&world.lsp.channels()?, id, client.node_id()).context("at the LSP")?;
            Ok((own, theirs))
        },
        |(own, theirs)| [own, theirs].iter().all(|c| c.capacity_sat == capacity_sat && c.usable),
    )?;
    Ok(())
}

/// Waits until LDK has the same capacity for a client's channel on both sides, that of the factory's newest state, and
/// it can be used.
///
/// # Errors
/// If it has not in time, with what the two say.
pub fn wait_agreed(world: &World, id: &str, index: usize) -> Result<()> {
    let node = world.client(index)?.node_id().to_owned();
    let factory = world.lsp.factory(id)?;
    let found = factory.clients.iter().find(|c| c.node_id == node);
    wait_capacity(world, id, index, found.context("client of the factory")?.capacity_sat)
}
