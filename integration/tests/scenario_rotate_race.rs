//! Superseded states come to the chain: the newest one wins where somebody is awake, and where nobody is, the channel is
//! settled on the state that won, by the newest commitment. Who publishes an older commitment loses everything.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Context, Result};
use bitcoin::OutPoint;
use integration::hold::Held;
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::pace::{self, Leaving};
use integration::payments::{pay, Order, Party};
use integration::shares::{self, due_sat, paid_sat, whole};
use integration::signed::{output_worth, spender, wait_spent};
use integration::superseded::{Cheater, OldCopy, OldPath};
use integration::types::Factory;
use integration::world::PATIENCE;
use integration::{rotate, World};
use serde_json::json;

const CAPACITY: u64 = 500_000;
const MOVER: usize = 0;
const OTHER: usize = 1;
/// Blocks that an exit may take here, reorganisations included.
const LIMIT: u32 = 1_500;
/// Most that a party pays for its own claims and sweeps here, sat.
const FEES: u64 = 20_000;

fn there(amount_msat: u64) -> Order {
    Order { from: Party::Client(MOVER), to: Party::Client(OTHER), amount_msat }
}

fn back(amount_msat: u64) -> Order {
    Order { from: Party::Client(OTHER), to: Party::Client(MOVER), amount_msat }
}

/// A factory of two, with leaves of two layers and `inner` states in the inner one.
fn start(name: &str, inner: u16) -> Result<(World, Factory, Snapshot)> {
    let world = World::start(name, 2)?;
    let params = json!({ "arity": [2], "layers": [[], [[8, 4, 8], [inner, 4, 0]]] });
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params)))?;
    let start = Snapshot::take(&world)?;
    Ok((world, factory, start))
}

/// Somebody publishes the first state's path while all are awake: the newest state is there in time, the older one is
/// refused. The channel lives on, and is left over the newest state in the end.
fn loses_its_race(name: &str, inner: u16, rotations: u64) -> Result<()> {
    let (world, factory, start) = start(name, inner)?;
    let id = &factory.instance_id;
    let mut cheater = Cheater::new(&world, 8)?;
    let old = OldPath::of(&world, MOVER)?;
    let mut paid = vec![pay(&world, there(12_345_678))?];
    for n in 0..rotations {
        rotate::once(&world, id, MOVER)?;
        paid.push(pay(&world, back(1_000_001 + n))?);
    }
    let newest = OldPath::of(&world, MOVER)?;
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    let count = old.transactions().len();
    let differ = (0..count).find(|n| old.transactions()[*n] != newest.transactions()[*n]).unwrap();

    // The cheater goes first wherever it may.
    cheater.publish(&world, &old, differ - 1)?;
    for n in differ..count {
        let (_, due) = newest.next(&world)?.context("the newest state")?;
        world.bitcoind.mine_to(due - 1)?;
        world.sync()?;
        if n == differ {
            let (stale, later) = old.next(&world)?.context("the old state")?;
            ensure!(due < later, "the newest state has no lead: {due}, {later}");
            let refused = format!("{:#}", cheater.offer(&world, stale).unwrap_err());
            ensure!(refused.contains("non-BIP68-final"), "{refused}");
        }
        let tx = &newest.transactions()[n];
        // Whoever guards publishes what is raced at once.
        world.bitcoind.wait_seen(tx.compute_txid(), PATIENCE)?;
        world.mine(1)?;
        ensure!(world.bitcoind.confirmed(tx.compute_txid())?.is_some(), "transaction {n} is not there");
    }
    let stale = &old.transactions()[differ];
    world.mine(40)?;
    let refused = format!("{:#}", cheater.offer(&world, stale).unwrap_err());
    ensure!(refused.contains("missingorspent"), "{refused}");

    // Payments go on over a channel whose leaf is on the chain.
    let now = wait_at_rest(&world)?;
    let paid = [pay(&world, there(2_000_003))?, pay(&world, back(3_000_005))?];
    wait_for(&world, &now.after(&paid)?)?;
    wait_at_rest(&world)?;
    let before = before.after(&paid)?;
    let share = shares::of_client(&world, MOVER, id)?;
    Leaving::client(&world, MOVER, id)?.ask(&world)?;
    // The commitment may be either side's.
    let place = newest.place()?;
    wait_spent(&world.bitcoind, place)?;
    world.mine(1)?;
    let tip = world.bitcoind.height()?;
    let commitment = spender(&world.bitcoind, place, tip, tip)?;
    ensure!(paid_sat(&commitment) == due_sat(CAPACITY, share, &[]), "{commitment:?}, {share} msat");
    pace::rest_until(&world, |after| whole(&world, &before, after, FEES, cheater.fees_sat))?;
    world.finish();
    Ok(())
}

#[test]
fn an_old_inner_state_loses_its_race() -> Result<()> {
    loses_its_race("race-inner", 8, 3)
}

#[test]
#[ignore = "long: make adversaries"]
fn an_old_outer_state_loses_its_race() -> Result<()> {
    loses_its_race("race-outer", 2, 3)
}

/// All are asleep until an older state has confirmed. Then they wake, pay over the channel, and one side leaves it with
/// the other dead: by its newest commitment, on the older state.
fn slept_through(name: &str, by: Party, inner: u16) -> Result<()> {
    let (mut world, factory, start) = start(name, inner)?;
    let id = &factory.instance_id;
    let mut cheater = Cheater::new(&world, 8)?;
    let mut paid = vec![pay(&world, there(12_345_678))?];
    rotate::once(&world, id, MOVER)?;
    let old = OldPath::of(&world, MOVER)?;
    for n in 0..2 {
        paid.push(pay(&world, back(2_000_001 + n))?);
        rotate::once(&world, id, MOVER)?;
    }
    paid.push(pay(&world, there(4_000_007))?);
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    for client in [MOVER, OTHER] {
        world.client_mut(client)?.kill()?;
    }
    world.lsp.kill()?;
    cheater.publish(&world, &old, old.transactions().len() - 1)?;

    world.lsp.start()?;
    for client in [MOVER, OTHER] {
        world.client_mut(client)?.start()?;
    }
    world.sync()?;
    world.wait_usable(&factory)?;
    let node = world.client(MOVER)?.node_id().to_owned();
    let refused = rotate::ask(&world, id, &node);
    ensure!(refused.is_err(), "it rotates on a leaf that is on the chain: {refused:?}");
    let paid = [pay(&world, there(2_000_003))?, pay(&world, back(3_000_005))?];
    let before = before.after(&paid)?;
    wait_for(&world, &before)?;
    wait_at_rest(&world)?;
    let share = shares::of_client(&world, MOVER, id)?;
    let leaving = Leaving::of(&world, by, MOVER, id)?;
    match by {
        Party::Lsp => world.client_mut(MOVER)?.kill()?,
        _ => world.lsp.kill()?,
    }
    leaving.ask(&world)?;
    let (commitment, _) = pace::to_commitment(&world, &leaving, LIMIT)?;
    ensure!(commitment.input[0].previous_output == old.place()?, "not on the state that won: {commitment:?}");
    ensure!(paid_sat(&commitment) == due_sat(CAPACITY, share, &[]), "{commitment:?}, {share} msat");
    pace::drive(&world, &[leaving], LIMIT, &mut |_| Ok(()))?;
    match by {
        Party::Lsp => world.client_mut(MOVER)?.start()?,
        _ => world.lsp.start()?,
    }
    pace::rest_until(&world, |after| whole(&world, &before, after, FEES, cheater.fees_sat))?;
    world.finish();
    Ok(())
}

#[test]
fn the_client_leaves_over_a_state_that_won() -> Result<()> {
    slept_through("slept-client", Party::Client(MOVER), 8)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_lsp_leaves_over_a_state_that_won() -> Result<()> {
    slept_through("slept-lsp", Party::Lsp, 2)
}

/// A payment to the mover that is on its channel in the old commitment, msat; the mover gives it back later.
const HELD: u64 = 50_000_000;

/// One side starts again from an old copy of its data, while the other sleeps, and leaves: a commitment that it has
/// revoked, on the newest state, or, where it has rotated since, on an older one. The other side wakes and takes all. If
/// there is a payment on the old commitment, the cheater, a client, has claimed it on the chain by then.
fn punished(name: &str, by: Party, rotates_on: bool, with_payment: bool) -> Result<()> {
    let (mut world, factory, start) = start(name, 8)?;
    let id = &factory.instance_id;
    let mut paid = vec![pay(&world, there(12_345_678))?];
    rotate::once(&world, id, MOVER)?;
    rotate::once(&world, id, MOVER)?;
    paid.push(pay(&world, back(5_000_001))?);
    wait_for(&world, &start.after(&paid)?)?;
    wait_at_rest(&world)?;
    let held = with_payment.then(|| Held::start(&world, back(HELD))).transpose()?;
    let old_share = shares::of_client(&world, MOVER, id)?;
    let old = OldPath::of(&world, MOVER)?;
    let copy = match by {
        Party::Lsp => {
            world.lsp.kill()?;
            let copy = OldCopy::take(world.lsp.data_dir())?;
            world.lsp.start()?;
            copy
        }
        _ => {
            world.client_mut(MOVER)?.kill()?;
            let copy = OldCopy::take(world.client(MOVER)?.data_dir())?;
            world.client_mut(MOVER)?.start()?;
            copy
        }
    };
    world.sync()?;
    world.wait_usable(&factory)?;
    if rotates_on {
        rotate::once(&world, id, MOVER)?;
    }
    if let Some(held) = &held {
        held.fail(&world)?;
        held.given_back(&world)?;
    }
    // What the cheater takes back.
    let order = if by == Party::Lsp { back(100_000_000) } else { there(100_000_000) };
    paid.push(pay(&world, order)?);
    paid.push(pay(&world, order)?);
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    let newest_share = shares::of_client(&world, MOVER, id)?;
    let leaving = Leaving::of(&world, by, MOVER, id)?;
    for client in [MOVER, OTHER] {
        world.client_mut(client)?.kill()?;
    }
    world.lsp.kill()?;
    copy.put_back()?;
    match by {
        Party::Lsp => world.lsp.start()?,
        _ => world.client_mut(MOVER)?.start()?,
    }
    world.sync()?;
    if let Some(held) = &held {
        held.claim(&world)?;
    }
    leaving.ask(&world)?;
    let (commitment, first) = pace::to_commitment(&world, &leaving, LIMIT)?;
    let mut height = first;
    ensure!(commitment.input[0].previous_output == old.place()?, "another place: {commitment:?}");
    let on_it: &[u64] = if held.is_some() { &[HELD] } else { &[] };
    let due = due_sat(CAPACITY, old_share, on_it);
    ensure!(paid_sat(&commitment) == due, "not the old commitment: {commitment:?}");
    if held.is_some() {
        let output = output_worth(&commitment, HELD / 1000)?;
        world.mine(1)?;
        wait_spent(&world.bitcoind, output)?;
        while world.bitcoind.unspent(output)?.is_some() {
            world.mine(1)?;
        }
        height = world.bitcoind.height()?;
    }

    // It has no more to say.
    let name = match by {
        Party::Lsp => {
            world.lsp.kill()?;
            world.client_mut(MOVER)?.start()?;
            world.client(MOVER)?.name().to_owned()
        }
        _ => {
            world.client_mut(MOVER)?.kill()?;
            world.lsp.start()?;
            "lsp".to_owned()
        }
    };
    world.sync()?;
    let own = if by == Party::Lsp { newest_share } else { CAPACITY * 1000 - newest_share };
    let all: u64 = paid_sat(&commitment).iter().sum();
    pace::rest_until(&world, |after| {
        let fees = world.bitcoind.fees(height + 1, after.height)?;
        let due = before.of(&name)? - own + all * 1000 - fees * 1000;
        ensure!(after.of(&name)? == due, "{name} is due {due} msat, {fees} sat of fees: {after:?}");
        ensure!(fees <= FEES, "{fees} sat of fees");
        Ok(())
    })?;
    // By penalties: what the cheater claimed is taken from the transaction that claimed it.
    let tip = world.bitcoind.height()?;
    let mut penalties = 0;
    for (vout, output) in (0u32..).zip(&commitment.output).filter(|(_, o)| o.value.to_sat() > 240) {
        let mut outpoint = OutPoint::new(commitment.compute_txid(), vout);
        if held.is_some() && output.value.to_sat() == HELD / 1000 {
            outpoint = output_worth(&spender(&world.bitcoind, outpoint, first, tip)?, HELD / 1000)?;
        }
        let tx = spender(&world.bitcoind, outpoint, first, tip)?;
        let input = tx.input.iter().find(|i| i.previous_output == outpoint).unwrap();
        penalties += usize::from(input.witness.len() == 3 && input.witness.nth(1) == Some(&[1]));
    }
    ensure!(penalties == 1 + usize::from(held.is_some()), "{penalties} penalties");
    world.finish();
    Ok(())
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_revoked_commitment_on_the_newest_state_is_punished() -> Result<()> {
    punished("revoked-client", Party::Client(MOVER), false, false)
}

#[test]
fn an_lsps_revoked_commitment_on_an_older_state_is_punished() -> Result<()> {
    punished("revoked-lsp-old", Party::Lsp, true, false)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_revoked_commitment_on_an_older_state_is_punished() -> Result<()> {
    punished("revoked-client-old", Party::Client(MOVER), true, false)
}

#[test]
#[ignore = "long: make adversaries"]
fn an_lsps_revoked_commitment_on_the_newest_state_is_punished() -> Result<()> {
    punished("revoked-lsp", Party::Lsp, false, false)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_claim_on_a_revoked_commitment_on_an_older_state_is_punished() -> Result<()> {
    punished("revoked-claim-old", Party::Client(MOVER), true, true)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_claim_on_a_revoked_commitment_is_punished() -> Result<()> {
    punished("revoked-claim", Party::Client(MOVER), false, true)
}
