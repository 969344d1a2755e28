//! What belongs to whom in a channel that comes to the chain.

use anyhow::{ensure, Context, Result};
use bitcoin::{OutPoint, Transaction, Txid};

use crate::ledger::Snapshot;
use crate::wait::{self, Seen};
use crate::world::{factory_channel, PATIENCE};
use crate::World;

/// Most that an anchor is worth, sat.
const ANCHOR_SAT: u64 = 240;

/// What a client has in its channel of a factory, msat.
///
/// # Errors
/// If there is none.
pub fn of_client(world: &World, client: usize, id: &str) -> Result<u64> {
    let channels = world.client(client)?.channels()?;
    Ok(factory_channel(&channels, id, world.lsp.node_id())?.local_msat)
}

/// What a commitment pays, beside its anchor, sat; sorted.
pub fn paid_sat(commitment: &Transaction) -> Vec<u64> {
    let all = commitment.output.iter().map(|output| output.value.to_sat());
    let mut paid: Vec<u64> = all.filter(|value| *value > ANCHOR_SAT).collect();
    paid.sort_unstable();
    paid
}

/// What a commitment has to pay if the client has `share_msat` of a channel, and payments of `held_msat` are on it, sat;
/// sorted.
pub fn due_sat(capacity_sat: u64, share_msat: u64, held_msat: &[u64]) -> Vec<u64> {
    let others = capacity_sat * 1000 - share_msat - held_msat.iter().sum::<u64>();
    let mut due: Vec<u64> =
        held_msat.iter().chain([&share_msat, &others]).map(|amount_msat| amount_msat / 1000).collect();
    due.sort_unstable();
    due
}

/// Checks that all money that was there is there, but for fees and for what went into the anchor of a commitment; a
/// stranger has paid `stranger_sat` of the fees, and nobody else more than `most_sat`.
///
/// # Errors
/// What is missing.
pub fn whole(
    world: &World,
    before: &Snapshot,
    after: &Snapshot,
    most_sat: u64,
    stranger_sat: u64,
) -> Result<()> {
    let fees = world.bitcoind.fees(before.height + 1, after.height)? - stranger_sat;
    // An anchor holds the rest of two amounts in msat: less than 2 sat, and whoever bumps gets it.
    let lost = before.total().checked_sub(after.total()).context("more than before")?;
    ensure!(
        (fees * 1000..=(fees + 2) * 1000).contains(&lost),
        "{lost} msat less, {fees} sat of fees: {before:?} {after:?}"
    );
    for (party, held) in &before.parties {
        let now = after.of(party)?;
        ensure!(now + most_sat * 1000 >= *held && now <= *held, "{party} held {held} msat, now {now}");
    }
    Ok(())
}

/// Waits until something in the mempool spends an output: what.
///
/// # Errors
/// If nothing does within a minute.
pub fn wait_offered(world: &World, outpoint: OutPoint) -> Result<Txid> {
    wait::until(&format!("a transaction that spends {outpoint}"), PATIENCE, || {
        Ok(world.bitcoind.mempool_spender(outpoint)?.map_or_else(|| Seen::not_yet("none"), Seen::Done))
    })
}
