//! Channels that were shut for a close of the factory: who is due what, the transaction that pays it, and ways to be
//! paid without it.

use std::collections::BTreeMap;

use anyhow::{anyhow, bail, ensure, Context, Result};
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::{Transaction, Txid};
use factory_core::record::{LspFactoryRecord, SignedPath};
use rusqlite::{params, Connection};
use serde_json::Value;

use crate::signed::{stored_json, wait_published, Stranger, Way};
use crate::wait::{self, Seen};
use crate::world::{factory_channel, PATIENCE};
use crate::{Lsp, World};

/// Blocks that all clients may take to leave: short delays and the reserve for a process that is late.
const LEFT_WITHIN: u32 = 80;

/// What each client is due, sat, by its number: its channel's balance, rounded down.
///
/// # Errors
/// If a client has no channel in the factory.
pub fn dues(world: &World, id: &str) -> Result<Vec<u64>> {
    let due = |client: &crate::Client| {
        Ok(factory_channel(&client.channels()?, id, world.lsp.node_id())?.local_msat / 1000)
    };
    world.clients.iter().map(due).collect()
}

/// Waits until the LSP holds a signed close, and says which transaction that is.
///
/// # Errors
/// If there is none within a minute.
pub fn wait_signed(world: &World, id: &str) -> Result<Txid> {
    wait::until("the close to be signed", PATIENCE, || {
        let close = world.lsp.factory(id)?.close;
        match close.as_ref().and_then(|close| close.txid) {
            Some(txid) => Ok(Seen::Done(txid)),
            None => Ok(Seen::NotYet(format!("{close:?}"))),
        }
    })
}

/// The signed close in the store of a stopped LSP.
///
/// # Errors
/// If the LSP runs, or there is none.
pub fn close_of(lsp: &Lsp, id: &str) -> Result<Transaction> {
    if lsp.is_up() {
        bail!("the LSP has to be stopped first: its store is its own while it runs");
    }
    let store = Connection::open(lsp.data_dir().join("node.sqlite"))?;
    let bytes: Vec<u8> = store.query_row(
        "SELECT value FROM kv WHERE primary_namespace = 'factory_states' AND key = ?1",
        params![id],
        |row| row.get(0),
    )?;
    let stored: Value = stored_json(&bytes)?;
    let hex = stored["record"]["close"]["signed"].as_str();
    Ok(deserialize_hex(hex.with_context(|| format!("no signed close: {stored}"))?)?)
}

/// Nobody can pay over the channels of a factory that is being closed: every payment fails.
///
/// # Errors
/// If one passes.
pub fn nobody_pays(world: &World) -> Result<()> {
    let clients = &world.clients;
    for (index, client) in clients.iter().enumerate() {
        let next = &clients[(index + 1) % clients.len()];
        let to = [world.lsp.invoice(1_000_000, "refused")?, next.invoice(1_000_000, "refused")?];
        for invoice in to {
            let payment = client.pay(&invoice.invoice)?;
            ensure!(payment.status == "failed", "{} paid: {payment:?}", client.name());
        }
        let payment = world.lsp.pay(&client.invoice(1_000_000, "refused")?.invoice)?;
        ensure!(payment.status == "failed", "the LSP paid {}: {payment:?}", client.name());
    }
    Ok(())
}

/// The signed path of each client of the world, by its number.
///
/// # Errors
/// If one is not in the tree.
pub fn paths(world: &World, tree: &LspFactoryRecord) -> Result<Vec<SignedPath>> {
    let path = |client: &crate::Client| {
        let place = tree.client_ids.iter().position(|id| id.to_string() == client.node_id());
        Ok(tree.leaf_path(place.ok_or_else(|| anyhow!("{} is not in the tree", client.name()))?)?)
    };
    world.clients.iter().map(path).collect()
}

/// Mines until every client has left by its path and says so, each with a spend of its channel six deep. Returns those
/// spends, by the clients' numbers.
///
/// # Errors
/// If it takes too many blocks, or something due does not come.
pub fn all_leave(world: &World, id: &str, paths: &[SignedPath]) -> Result<Vec<Txid>> {
    let channel = |index: usize| match paths[index].leaf.as_slice() {
        [only] => Ok(only.outpoint),
        more => Err(anyhow!("{} channels on the leaf, one is provided for", more.len())),
    };
    let mut spends: BTreeMap<usize, Txid> = BTreeMap::new();
    for _ in 0..LEFT_WITHIN {
        let mut left = 0;
        for (index, client) in world.clients.iter().enumerate() {
            wait_published(&world.bitcoind, client, id, std::slice::from_ref(&paths[index]), Way::Channels)?;
            let outpoint = channel(index)?;
            let leaf_is_out = world.bitcoind.confirmed(outpoint.txid)?.is_some();
            if leaf_is_out && !spends.contains_key(&index) {
                let by = wait::until("the channel to be spent", PATIENCE, || {
                    Ok(world.bitcoind.mempool_spender(outpoint)?.map_or(Seen::not_yet("unspent"), Seen::Done))
                })?;
                spends.insert(index, by);
            }
            left += usize::from(client.factory(id)?.state == "exited");
        }
        if left == world.clients.len() {
            return Ok(spends.into_values().collect());
        }
        world.mine(1)?;
    }
    let states: Vec<_> = world.clients.iter().map(|c| c.factory(id).map(|f| f.exits)).collect();
    bail!("not all have left within {LEFT_WITHIN} blocks: {states:?}")
}

/// At T or later: every distribution of these paths is refused by the chain, because its input is spent or will never
/// be. The stranger who tries is left as rich as before.
///
/// # Errors
/// If one is accepted.
pub fn distributions_are_refused(world: &World, paths: &[SignedPath], stranger: &mut Stranger) -> Result<()> {
    for path in paths {
        ensure!(world.bitcoind.height()? >= path.expiry_height, "T has not come");
        for distribution in &path.distributions {
            let refused = stranger.publish(&world.bitcoind, distribution);
            let error = refused.err().ok_or_else(|| anyhow!("{} was accepted", distribution.txid()))?;
            ensure!(error.to_string().contains("inputs-missingorspent"), "{error:#}");
        }
    }
    Ok(())
}
