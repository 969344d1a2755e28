//! Exits with crashes on the way: each row's point is armed when the one before has come by, in one exit.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use bitcoin::Txid;
use serde_json::json;

use super::{Call, Place, Row, Victim, VICTIM};
use crate::exit::mine_until;
use crate::ledger::{check_conserved, wait_at_rest, Snapshot};
use crate::payments::Party;
use crate::types::Factory;
use crate::World;

/// Blocks within which an exit with all its crashes has to end.
const BLOCKS: u32 = 600;
/// Blocks at a time while a delay runs.
const STRIDE: u32 = 6;
/// How long to look for what a block has set off before the next one comes.
const LOOK: Duration = Duration::from_millis(1500);

/// Here bitcoind has a fee-paying child that the process has not yet heard of to be there.
const CHILD_SENT: &str = "node.child.submitted";

/// Client [`VICTIM`] leaves the factory, or the LSP leaves that client, with these rows on the way. `struck` gets each
/// row whose point was reached, and how long after it was armed. In the end the client's money is in its wallet, the
/// LSP's in its own, the others have lost nothing, and what has gone is the fees in the blocks.
///
/// # Errors
/// If the exit does not end, or money is missing.
pub fn drive(
    world: &mut World,
    factory: &Factory,
    place: Place,
    rows: &[Row],
    struck: &mut Vec<(Row, Duration)>,
) -> Result<()> {
    let id = factory.instance_id.clone();
    let before = wait_at_rest(world)?;
    // Who is left is away: else it would publish the path too, and take steps from who leaves.
    other(world, place)?.kill()?;
    let due_sat = before.of(&Party::Client(VICTIM).to_string())? / 1000;
    let first = world.bitcoind.height()?;
    let mut left = rows.iter().copied();
    let mut armed = left.next().map(|row| (row, Instant::now()));
    if let Some((row, _)) = &armed {
        row.arm(world)?;
    }
    let mut call = Some(ask(world, &id, place)?);
    let mut begun = false;
    loop {
        let height = world.bitcoind.height()?;
        if height > first + BLOCKS {
            let exits = leaver(world, place)?.factory(&id)?.exits;
            bail!("no end in {BLOCKS} blocks; armed {armed:?}; {exits:?}");
        }
        if let Some((row, since)) = armed {
            if reached(world, &row)? {
                struck.push((row, since.elapsed()));
                armed = left.next().map(|row| (row, Instant::now()));
                recover(world, &row, armed.map(|(row, _)| row))?;
                if row.point == CHILD_SENT && row.victim != Victim::Bitcoind {
                    check_child(world, &id, place)?;
                }
                continue;
            }
        }
        if let Some(over) = call.take_if(|call| call.is_over()) {
            begun = over.answer().is_ok();
        }
        if call.is_none() && !begun {
            // One that died in the call may have begun, or not; or it is not back yet.
            match leaver(world, place)?.factory(&id) {
                Ok(factory) if factory.exits.is_empty() => call = Some(ask(world, &id, place)?),
                Ok(_) => begun = true,
                Err(_) => {}
            }
            continue;
        }
        if armed.is_none() {
            if is_over(world, &id, place)? {
                break;
            }
            leaver(world, place)?.wait_synced(&world.bitcoind)?;
        }
        // Where there is nothing to confirm a delay is waited for.
        world.bitcoind.mine(if world.bitcoind.mempool()?.is_empty() { STRIDE } else { 1 })?;
    }
    other(world, place)?.start()?;
    // The other side's share may still be on its way.
    let after = mine_until(world, &world.lsp, "all money to be where it belongs", || {
        world.sync()?;
        let after = Snapshot::take(world)?;
        check_conserved(world, &before, &after)?;
        Ok(after)
    })?;
    for client in world.clients.iter().skip(1) {
        if after.of(client.name())? != before.of(client.name())? {
            bail!("{} lost money: {before:?}, {after:?}", client.name());
        }
    }
    check_leaver(world, due_sat, &before, &after)
}

fn leaver(world: &World, place: Place) -> Result<&crate::Daemon> {
    match place {
        Place::Lsp => Ok(&world.lsp),
        Place::Client => Ok(world.client(VICTIM)?),
    }
}

fn other(world: &mut World, place: Place) -> Result<&mut crate::Daemon> {
    match place {
        Place::Lsp => Ok(world.client_mut(VICTIM)?),
        Place::Client => Ok(&mut world.lsp),
    }
}

fn ask(world: &World, id: &str, place: Place) -> Result<Call> {
    let body = match place {
        Place::Client => json!({}),
        Place::Lsp => json!({ "client": world.client(VICTIM)?.node_id() }),
    };
    Call::post(leaver(world, place)?, &format!("/v1/factories/{id}/exit"), body)
}

/// Whether the row's point is reached within a moment. Not every block leads there, so there is no long wait: the
/// next block comes, and it is looked at again.
fn reached(world: &mut World, row: &Row) -> Result<bool> {
    let since = Instant::now();
    while since.elapsed() < LOOK {
        if row.has_struck(world)? {
            return Ok(true);
        }
        let best = world.bitcoind.best_block()?;
        let daemon = row.daemon(world)?;
        let idle = daemon.info().is_ok_and(|info| info.block_hash == best && info.synced);
        if idle && since.elapsed() > LOOK / 10 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    row.has_struck(world)
}

/// Starts again what has died, with the next row armed from the first moment on.
fn recover(world: &mut World, row: &Row, next: Option<Row>) -> Result<()> {
    if row.victim == Victim::Bitcoind {
        world.bitcoind.kill()?;
        // Before it goes on: it may come by the next one at once.
        match next {
            Some(next) => next.arm(world)?,
            None => row.daemon(world)?.faults().set("")?,
        }
        row.daemon(world)?.faults().go_on(row.point)?;
        return world.bitcoind.restart();
    }
    row.daemon(world)?.faults().clear()?;
    if let Some(next) = next {
        next.arm(world)?;
    }
    match row.daemon(world)?.start() {
        // At the next row's point already, perhaps: that is looked at next.
        Err(_) if next.is_some() => Ok(()),
        started => started,
    }
}

/// Who leaves knows the child that bitcoind has: it counts for the budget, and its coin is spent.
fn check_child(world: &World, id: &str, place: Place) -> Result<()> {
    let since = Instant::now();
    loop {
        // It may have died at the next row's point already.
        let Ok(factory) = leaver(world, place)?.factory(id) else { return Ok(()) };
        let steps: HashMap<Txid, Option<Txid>> =
            factory.exits.iter().flat_map(|exit| &exit.steps).map(|s| (s.txid, s.child_txid)).collect();
        let mut unknown = None;
        for txid in world.bitcoind.mempool()? {
            let Some(tx) = world.bitcoind.transaction(txid)? else { continue };
            let of_step = tx.input.iter().find_map(|input| steps.get(&input.previous_output.txid));
            // A step is a child of the step before, and has been known all along.
            if !steps.contains_key(&txid) && of_step.is_some_and(|known| *known != Some(txid)) {
                unknown = Some((txid, of_step.copied().flatten()));
            }
        }
        match unknown {
            None => return Ok(()),
            Some((child, known)) if since.elapsed() > LOOK => {
                bail!("who leaves does not know the child {child} in the mempool, but {known:?}")
            }
            Some(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Whether the exit is done, for who leaves.
fn is_over(world: &World, id: &str, place: Place) -> Result<bool> {
    let factory = leaver(world, place)?.factory(id)?;
    Ok(factory.exits.iter().all(|exit| exit.phase == "done") && !factory.exits.is_empty())
}

/// The client has its share of the channel in its wallet, less what it may have paid in fees: for its path and its
/// sweep, or for its sweep alone if it was the LSP that left.
fn check_leaver(world: &World, due_sat: u64, before: &Snapshot, after: &Snapshot) -> Result<()> {
    let balance = world.client(VICTIM)?.balance()?;
    let held = balance.onchain.confirmed_sat;
    let fees = world.bitcoind.fees(before.height + 1, after.height)?;
    if held > due_sat || held + fees < due_sat || balance.lightning.local_msat > 0 {
        bail!("the client holds {balance:?}, due {due_sat} sat less at most {fees} sat of fees");
    }
    Ok(())
}
