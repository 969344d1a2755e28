//! A leaf state from before a change of capacity wins its race, since all but the cheater slept and nobody watched. Who
//! publishes an old commitment on it loses everything, or, if it is revoked by nothing yet, no more than its own; and
//! where nobody does, the channel is stuck, its node says so, and everything else goes on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Context, Result};
use bitcoin::OutPoint;
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::liquidity;
use integration::pace::{self, Leaving};
use integration::payments::{pay, Order, Party};
use integration::shares::{self, due_sat, paid_sat};
use integration::signed::spender;
use integration::superseded::{Cheater, OldCopy, OldPath};
use integration::types::{Channel, Factory};
use integration::wait;
use integration::world::{factory_channel, PATIENCE};
use integration::{rotate, Daemon, World};
use serde_json::json;

const CAPACITY: u64 = 500_000;
const SOLD: u64 = 100_000;
const STOCK: u64 = 300_000;
const MOVER: usize = 0;
const OTHER: usize = 1;
/// Blocks that an exit may take here.
const LIMIT: u32 = 1_500;
/// Most that a party pays for its own claims and sweeps here, sat.
const FEES: u64 = 20_000;

fn order(from: Party, to: Party, amount_msat: u64) -> Order {
    Order { from, to, amount_msat }
}

fn there(amount_msat: u64) -> Order {
    order(Party::Client(MOVER), Party::Client(OTHER), amount_msat)
}

fn back(amount_msat: u64) -> Order {
    order(Party::Client(OTHER), Party::Client(MOVER), amount_msat)
}

fn daemon_mut(world: &mut World, who: Party) -> Result<&mut Daemon> {
    Ok(match who {
        Party::Client(index) => world.client_mut(index)?,
        _ => &mut world.lsp,
    })
}

/// The newest state of a leaf before its client's capacity changes, and an old copy of a cheater's data.
struct Before {
    world: World,
    factory: Factory,
    id: String,
    start: Snapshot,
    old: OldPath,
    /// What the client has in its channel then, msat.
    share: u64,
    copy: Option<OldCopy>,
    cheater: Cheater,
}

impl Before {
    fn start(name: &str, cheat: Option<Party>) -> Result<Self> {
        let mut world = World::start(name, 2)?;
        let params = json!({ "arity": [2], "layers": [[], [[8, 4, 8], [8, 4, 0]]] });
        let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params));
        let factory = world.create_factory(&request)?;
        let id = factory.instance_id.clone();
        let cheater = Cheater::new(&world, 8)?;
        let start = Snapshot::take(&world)?;
        let mut paid = vec![pay(&world, there(12_345_678))?];
        rotate::once(&world, &id, MOVER)?;
        paid.push(pay(&world, back(5_000_001))?);
        let start = wait_for(&world, &start.after(&paid)?)?;
        wait_at_rest(&world)?;
        let (share, old) = (shares::of_client(&world, MOVER, &id)?, OldPath::of(&world, MOVER)?);
        let mut copy = None;
        if let Some(cheat) = cheat {
            let daemon = daemon_mut(&mut world, cheat)?;
            daemon.kill()?;
            copy = Some(OldCopy::take(daemon.data_dir())?);
            daemon.start()?;
        }
        world.sync()?;
        world.wait_usable(&factory)?;
        Ok(Self { world, factory, id, start, old, share, copy, cheater })
    }

    fn pays(&mut self, orders: &[Order]) -> Result<()> {
        let paid = orders.iter().map(|order| pay(&self.world, *order)).collect::<Result<Vec<_>>>()?;
        self.start = wait_for(&self.world, &self.start.after(&paid)?)?;
        wait_at_rest(&self.world)?;
        Ok(())
    }

    /// The client's channel grows: LDK moves on from its outpoint.
    fn sell(&self) -> Result<()> {
        let before = rotate::leaf(&self.world, &self.id, self.world.client(MOVER)?.node_id())?.position;
        liquidity::sell(&self.world, &self.id, MOVER, i64::try_from(SOLD)?)?;
        rotate::wait_position(&self.world, &self.id, MOVER, before + 1)?;
        liquidity::wait_capacity(&self.world, &self.id, MOVER, CAPACITY + SOLD)
    }

    /// Everybody sleeps until the old state is on the chain.
    fn loses_the_race(&mut self) -> Result<()> {
        for client in &mut self.world.clients {
            client.kill()?;
        }
        self.world.lsp.kill()?;
        self.cheater.publish(&self.world, &self.old, self.old.transactions().len() - 1)
    }

    /// The stock in the old state, sat: the LSP's at once.
    fn old_stock_sat(&self) -> Result<u64> {
        let state = self.old.state()?;
        let stock = state.output.get(1).context("no stock")?.value.to_sat();
        ensure!(stock >= SOLD && state.output.len() == 3, "{state:?}");
        Ok(stock)
    }
}

/// What becomes of a commitment from the old copy.
#[derive(Clone, Copy, PartialEq)]
enum Old {
    /// Revoked on the outpoint that has retired since.
    RevokedBefore,
    /// Revoked by the first update after the change.
    RevokedAfter,
    /// There was no update.
    Newest,
}

/// One side starts again from an old copy of its data when the old state has won, and leaves by the commitment that was
/// its newest one then. The other side wakes and takes all, or its own if that commitment is not revoked.
fn an_old_commitment(name: &str, by: Party, old: Old) -> Result<()> {
    let mut scene = Before::start(name, Some(by))?;
    // What the cheater takes back.
    let more = if by == Party::Lsp { back(60_000_000) } else { there(60_000_000) };
    if old == Old::RevokedBefore {
        scene.pays(&[more])?;
    }
    scene.sell()?;
    if old != Old::Newest {
        scene.pays(&[more])?;
    }
    let honest = if by == Party::Lsp { Party::Client(MOVER) } else { Party::Lsp };
    let newest = shares::of_client(&scene.world, MOVER, &scene.id)?;
    let held_msat = daemon_mut(&mut scene.world, honest)?.balance()?.total_msat();
    let leaving = Leaving::of(&scene.world, by, MOVER, &scene.id)?;
    scene.loses_the_race()?;
    scene.copy.take().context("an old copy")?.put_back()?;
    daemon_mut(&mut scene.world, by)?.start()?;
    scene.world.sync()?;
    leaving.ask(&scene.world)?;
    let (commitment, first) = pace::to_commitment(&scene.world, &leaving, LIMIT)?;
    ensure!(commitment.input[0].previous_output == scene.old.place()?, "another place: {commitment:?}");
    ensure!(paid_sat(&commitment) == due_sat(CAPACITY, scene.share, &[]), "another one: {commitment:?}");

    daemon_mut(&mut scene.world, by)?.kill()?;
    daemon_mut(&mut scene.world, honest)?.start()?;
    scene.world.sync()?;
    let of = |share, capacity| if honest == Party::Lsp { capacity * 1000 - share } else { share };
    let gets_sat = match old {
        Old::Newest => of(scene.share, CAPACITY) / 1000,
        _ => paid_sat(&commitment).iter().sum(),
    };
    let stock_sat = if honest == Party::Lsp { scene.old_stock_sat()? } else { 0 };
    let due = held_msat - of(newest, CAPACITY + SOLD) + (gets_sat + stock_sat) * 1000;
    let world = &scene.world;
    let name = honest.to_string();
    pace::rest_until(world, |after| {
        let fees = world.bitcoind.fees(first + 1, after.height)?;
        let daemon: &Daemon = if honest == Party::Lsp { &world.lsp } else { world.client(MOVER)? };
        let holds = daemon.balance()?.total_msat();
        ensure!(holds + fees * 1000 == due, "{name} holds {holds} msat, due {due}, {fees} sat of fees");
        ensure!(fees <= FEES, "{fees} sat of fees");
        Ok(())
    })?;
    let tip = world.bitcoind.height()?;
    let mut penalties = 0;
    for (vout, _) in (0u32..).zip(&commitment.output).filter(|(_, o)| o.value.to_sat() > 240) {
        let outpoint = OutPoint::new(commitment.compute_txid(), vout);
        if world.bitcoind.unspent(outpoint)?.is_none() {
            let tx = spender(&world.bitcoind, outpoint, first, tip)?;
            let input = tx.input.iter().find(|i| i.previous_output == outpoint).unwrap();
            penalties += usize::from(input.witness.len() == 3 && input.witness.nth(1) == Some(&[1]));
        }
    }
    ensure!(penalties == usize::from(old != Old::Newest), "{penalties} penalties");
    scene.world.finish();
    Ok(())
}

#[test]
fn an_lsps_commitment_that_was_revoked_later_is_punished() -> Result<()> {
    an_old_commitment("retired-lsp-later", Party::Lsp, Old::RevokedAfter)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_commitment_that_was_revoked_later_is_punished() -> Result<()> {
    an_old_commitment("retired-client-later", Party::Client(MOVER), Old::RevokedAfter)
}

#[test]
#[ignore = "long: make adversaries"]
fn an_lsps_commitment_that_was_revoked_before_is_punished() -> Result<()> {
    an_old_commitment("retired-lsp", Party::Lsp, Old::RevokedBefore)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_commitment_that_was_revoked_before_is_punished() -> Result<()> {
    an_old_commitment("retired-client", Party::Client(MOVER), Old::RevokedBefore)
}

#[test]
#[ignore = "long: make adversaries"]
fn an_lsps_commitment_that_is_not_revoked_pays_the_client() -> Result<()> {
    an_old_commitment("retired-lsp-newest", Party::Lsp, Old::Newest)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_commitment_that_is_not_revoked_pays_the_lsp() -> Result<()> {
    an_old_commitment("retired-client-newest", Party::Client(MOVER), Old::Newest)
}

/// The mover's channel on both sides.
fn both(world: &World, id: &str) -> Result<[Channel; 2]> {
    let client = world.client(MOVER)?;
    let own = factory_channel(&client.channels()?, id, world.lsp.node_id())?;
    let theirs = factory_channel(&world.lsp.channels()?, id, client.node_id())?;
    Ok([own, theirs])
}

/// Waits until the mover's channel is stuck on both sides.
fn wait_stuck(world: &World, id: &str) -> Result<()> {
    let stuck = |c: &Channel| c.state == "stuck" && !c.usable;
    wait::until_value(
        "both sides to say that the channel is stuck",
        PATIENCE,
        || both(world, id),
        |both| both.iter().all(stuck),
    )?;
    Ok(())
}

/// Nothing that is signed spends the old state: both sides say so, nobody pays over the channel, nothing is published. The
/// neighbour pays, is paid, and leaves with what is its own.
#[test]
#[ignore = "long: make adversaries"]
fn a_channel_is_stuck_and_everything_else_goes_on() -> Result<()> {
    let mut scene = Before::start("retired-stuck", None)?;
    scene.sell()?;
    scene.pays(&[back(60_000_000), there(7_000_001)])?;
    let share = shares::of_client(&scene.world, MOVER, &scene.id)?;
    scene.loses_the_race()?;
    let (id, place) = (scene.id.clone(), scene.old.place()?);
    for round in 0..2 {
        scene.world.lsp.start()?;
        for client in &mut scene.world.clients {
            client.start()?;
        }
        let world = &scene.world;
        world.sync()?;
        wait_stuck(world, &id)?;
        ensure!(shares::of_client(world, MOVER, &id)? == share, "the share has changed");
        let (other, lsp) = (Party::Client(OTHER), Party::Lsp);
        let held = |party: &str| Ok::<_, anyhow::Error>(wait_at_rest(world)?.of(party)?);
        let before = held(&other.to_string())?;
        let settled = [pay(world, order(other, lsp, 2_000_001))?, pay(world, order(lsp, other, 1_000_003))?];
        for refused in [there(1_000_000), back(1_000_000), order(Party::Client(MOVER), lsp, 1_000_000)] {
            let answer = pay(world, refused);
            ensure!(answer.is_err(), "{refused:?} was paid over a channel that is stuck: {answer:?}");
        }
        let due = before - settled[0].amount_msat - settled[0].fee_msat + settled[1].amount_msat;
        ensure!(held(&other.to_string())? == due, "the neighbour is not where it was");
        for by in [Party::Client(MOVER), Party::Lsp] {
            let answer = Leaving::of(world, by, MOVER, &id)?.ask(world);
            let text = format!("{:#}", answer.unwrap_err());
            ensure!(text.contains("stuck"), "{by}: {text}");
        }
        world.mine(12)?;
        ensure!(world.bitcoind.mempool()?.is_empty() && world.bitcoind.unspent(place)?.is_some());
        wait_stuck(world, &id)?;
        if round == 0 {
            for client in &mut scene.world.clients {
                client.kill()?;
            }
            scene.world.lsp.kill()?;
        }
    }

    // The neighbour's leaf.
    let world = &scene.world;
    let held = wait_at_rest(world)?;
    let share = shares::of_client(world, OTHER, &id)?;
    let leaving = Leaving::client(world, OTHER, &id)?;
    leaving.ask(world)?;
    pace::drive(world, &[leaving], LIMIT, &mut |_| Ok(()))?;
    let after = pace::rest(world).and_then(|()| Snapshot::take(world))?;
    let fees = world.bitcoind.fees(held.height + 1, after.height)?;
    let other = Party::Client(OTHER).to_string();
    let lost = held.of(&other)? - after.of(&other)?;
    ensure!(lost <= (fees + 1) * 1000 && fees <= FEES, "{lost} msat of {share}, {fees} sat of fees");
    wait_stuck(world, &id)?;
    ensure!(world.bitcoind.unspent(place)?.is_some(), "somebody has spent what is stuck");
    ensure!(scene.factory.instance_id == id);
    scene.world.finish();
    Ok(())
}

/// A reorganisation takes the old state off the chain, and the newest one wins after all: the channel is what it was.
#[test]
#[ignore = "long: make adversaries"]
fn a_reorganisation_frees_a_channel_that_was_stuck() -> Result<()> {
    let mut scene = Before::start("retired-reorg", None)?;
    scene.sell()?;
    scene.pays(&[back(60_000_000)])?;
    let newest = OldPath::of(&scene.world, MOVER)?;
    scene.loses_the_race()?;
    scene.world.lsp.start()?;
    for client in &mut scene.world.clients {
        client.start()?;
    }
    scene.world.sync()?;
    wait_stuck(&scene.world, &scene.id)?;
    let world = &scene.world;
    let differs = |(old, new): &(&_, &_)| old != new;
    let paths = || scene.old.transactions().iter().zip(newest.transactions());
    let (old, _) = paths().find(differs).context("the same path")?;
    let from = world.bitcoind.confirmed(old.compute_txid())?.context("the old state")?.height;
    world.bitcoind.reorganize(world.bitcoind.height()? + 1 - from)?;
    world.sync()?;
    wait::until_value(
        "the channel to be ready again",
        PATIENCE,
        || both(world, &scene.id),
        |both| both.iter().all(|c| c.state == "ready" && c.usable),
    )?;
    let share = shares::of_client(world, MOVER, &scene.id)?;
    let paid = pay(world, there(7_000_001))?;
    wait::until_value(
        "the payment to be on the channel",
        PATIENCE,
        || both(world, &scene.id),
        |both| both[0].local_msat == share - paid.amount_msat - paid.fee_msat && both[0].pending_htlcs == 0,
    )?;
    scene.world.finish();
    Ok(())
}
