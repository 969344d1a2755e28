//! Exits after rotations, with payments on the channel in both directions: the commitment goes over the newest state, and
//! what was signed for the first one holds there too. And an exit on a chain that is rewritten under it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{anyhow, ensure, Context, Result};
use integration::htlc_exit::{play, Exiter, Plan};
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::pace::{self, Leaving, Stand};
use integration::payments::{pay, Order, Party};
use integration::shares::{self, due_sat, paid_sat, wait_offered, whole};
use integration::signed::spender;
use integration::superseded::OldPath;
use integration::wait;
use integration::world::PATIENCE;
use integration::{rotate, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 500_000;
const MOVER: usize = 0;
const OTHER: usize = 1;
/// Blocks that an exit may take here, reorganisations included.
const LIMIT: u32 = 1_500;
/// Most that a party pays for one claim or step here, sat.
const FEES: u64 = 20_000;

fn leaves(name: &'static str, exiter: Exiter, rotations: u64) -> Result<()> {
    play(Plan { name, exiter, small: true, asked: true, rotations, slept: false })
}

#[test]
#[ignore = "long: make adversaries"]
fn the_client_leaves_after_three() -> Result<()> {
    leaves("rotate-client-3", Exiter::Client, 3)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_lsp_leaves_after_three() -> Result<()> {
    leaves("rotate-lsp-3", Exiter::Lsp, 3)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_client_leaves_after_one() -> Result<()> {
    leaves("rotate-client-1", Exiter::Client, 1)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_lsp_leaves_after_one() -> Result<()> {
    leaves("rotate-lsp-1", Exiter::Lsp, 1)
}

/// By itself, when the first payment comes near its expiry.
#[test]
#[ignore = "long: make adversaries"]
fn the_client_is_warned_after_two() -> Result<()> {
    play(Plan {
        name: "rotate-warned",
        exiter: Exiter::Client,
        small: true,
        asked: false,
        rotations: 2,
        slept: false,
    })
}

/// The commitment goes over a state that has won although it was superseded.
fn leaves_over_an_older_state(name: &'static str, exiter: Exiter) -> Result<()> {
    play(Plan { name, exiter, small: true, asked: true, rotations: 2, slept: true })
}

#[test]
#[ignore = "long: make adversaries"]
fn the_client_leaves_over_an_older_state() -> Result<()> {
    leaves_over_an_older_state("older-client", Exiter::Client)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_lsp_leaves_over_an_older_state() -> Result<()> {
    leaves_over_an_older_state("older-lsp", Exiter::Lsp)
}

/// A leaf is left after three rotations with all awake, and each transaction is taken off the chain again, at depths that
/// change.
fn undone(name: &str, by: Party, depths: impl Fn(u32) -> Vec<u32>) -> Result<()> {
    let world = World::start(name, 2)?;
    let params = json!({ "arity": [2], "layers": [[], [[8, 4, 8], [2, 4, 0]]] });
    let id =
        &world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params)))?.instance_id;
    let start = Snapshot::take(&world)?;
    let there = Order { from: Party::Client(MOVER), to: Party::Client(OTHER), amount_msat: 12_345_678 };
    let mut paid = vec![pay(&world, there)?];
    for n in 0..3 {
        rotate::once(&world, id, MOVER)?;
        let back = Order { from: there.to, to: there.from, amount_msat: 1_000_001 + n };
        paid.push(pay(&world, back)?);
    }
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    let share = shares::of_client(&world, MOVER, id)?;
    let newest = OldPath::of(&world, MOVER)?;
    let leaving = match by {
        Party::Lsp => Leaving::by_lsp(&world, MOVER, id)?,
        _ => Leaving::client(&world, MOVER, id)?,
    };
    match by {
        Party::Lsp => {
            let body = json!({ "client": leaving.node_id });
            world.lsp.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &body)?;
        }
        _ => world.client(MOVER)?.exit(id)?,
    }
    let place = newest.place()?;
    let (mut number, mut undone, end) = (0, 0, world.bitcoind.height()? + LIMIT);
    loop {
        ensure!(world.bitcoind.height()? < end, "not done after {LIMIT} blocks: {:?}", leaving.exit(&world)?);
        world.sync()?;
        // The commitment may be either side's.
        let is_there = world.bitcoind.confirmed(place.txid)?.is_some();
        let mut txid = match is_there && world.bitcoind.unspent(place)?.is_some() {
            true => wait_offered(&world, place)?,
            false => match leaving.settle(&world)? {
                Stand::Done => break,
                Stand::Stuck => return Err(anyhow!("stuck: {:?}", leaving.exit(&world)?)),
                Stand::Idle(blocks) => {
                    world.bitcoind.mine(blocks)?;
                    continue;
                }
                Stand::Offered(txid) => txid,
            },
        };
        world.mine(1)?;
        number += 1;
        for depth in depths(number) {
            let there =
                world.bitcoind.confirmed(txid)?.with_context(|| format!("{txid} has not confirmed"))?;
            println!("transaction {number} confirmed at {}: {txid}", there.height);
            world.bitcoind.mine_empty(depth - 1)?;
            world.sync()?;
            world.bitcoind.reorganize(depth)?;
            world.sync()?;
            ensure!(
                world.bitcoind.confirmed(txid)?.is_none(),
                "{txid} is in the chain after {depth} blocks fell"
            );
            txid = wait_offered(&world, there.tx.input[0].previous_output)?;
            world.mine(1)?;
            undone += 1;
        }
        ensure!(world.bitcoind.confirmed(txid)?.is_some(), "{txid} has not confirmed");
    }
    let tip = world.bitcoind.height()?;
    let commitment = spender(&world.bitcoind, place, before.height, tip)?;
    ensure!(paid_sat(&commitment) == due_sat(CAPACITY, share, &[]), "{commitment:?}, {share} msat");
    // Each time it pays for its transaction again.
    pace::rest_until(&world, |after| whole(&world, &before, after, FEES * (1 + undone), 0))?;
    // Both sides say that it has been left.
    wait::until_value(
        "both sides to be at the end",
        PATIENCE,
        || Ok((world.lsp.channels()?, world.client(MOVER)?.channels()?)),
        |(lsp, client)| lsp.len() == 1 && client.is_empty(),
    )?;
    world.finish();
    Ok(())
}

#[test]
fn every_step_of_an_exit_is_undone_once() -> Result<()> {
    undone("rotate-reorg", Party::Client(MOVER), |number| vec![(number - 1) % 6 + 1])
}

#[test]
#[ignore = "long: make adversaries"]
fn every_step_of_the_clients_exit_is_undone_at_every_depth() -> Result<()> {
    undone("rotate-reorgs-client", Party::Client(MOVER), |_| (1..=6).collect())
}

#[test]
#[ignore = "long: make adversaries"]
fn every_step_of_the_lsps_exit_is_undone_at_every_depth() -> Result<()> {
    undone("rotate-reorgs-lsp", Party::Lsp, |_| (1..=6).collect())
}
