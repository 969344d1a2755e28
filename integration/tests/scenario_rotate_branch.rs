//! Advances of a node above the leaves, under attack: three clients below a root with states of its own. Whoever stops is
//! named, and the others lose nothing; an old root state loses its race, and where it wins every leaf below it is settled as
//! it was then, with the amounts of now.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Context, Result};
use integration::ledger::{wait_at_rest, wait_for, Settled, Snapshot};
use integration::pace::{self, Leaving};
use integration::payments::{pay, Order, Party};
use integration::shares::{self, due_sat, paid_sat, whole};
use integration::signed::spender;
use integration::superseded::{Cheater, OldPath};
use integration::types::Factory;
use integration::wait::{self, Seen};
use integration::world::{factory_channel, PATIENCE};
use integration::{liquidity, rotate, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 500_000;
const SOLD: u64 = 40_000;
const CLIENTS: usize = 3;
const MOVER: usize = 0;
/// Who stops.
const STOPS: usize = 1;
const OTHER: usize = 2;
/// Time of the LSP for one phase, seconds.
const PHASE: u64 = 5;
/// Blocks that an exit may take here.
const LIMIT: u32 = 1_500;
/// Most that a party pays for its own exit, claims and sweeps here, sat.
const FEES: u64 = 30_000;

fn order(from: usize, to: usize, amount_msat: u64) -> Order {
    Order { from: Party::Client(from), to: Party::Client(to), amount_msat }
}

struct Scene {
    world: World,
    factory: Factory,
    id: String,
    start: Snapshot,
    paid: Vec<Settled>,
}

impl Scene {
    /// A root with states, and a leaf below it for each client.
    fn start(name: &str, stock_sat: u64) -> Result<Self> {
        let phase = PHASE.to_string();
        let world = World::start_with_lsp(name, CLIENTS, &["--phase-timeout-secs", &phase])?;
        let params = json!({ "arity": [3], "layers": [[[12, 4, 8]], [[2, 4, 0]]] });
        let request = world.factory_request(CAPACITY, CAPACITY / 2, stock_sat, Some(params));
        let factory = world.create_factory(&request)?;
        let start = Snapshot::take(&world)?;
        Ok(Self { id: factory.instance_id.clone(), world, factory, start, paid: Vec::new() })
    }

    fn pays(&mut self, orders: &[Order]) -> Result<()> {
        for order in orders {
            self.paid.push(pay(&self.world, *order)?);
        }
        wait_for(&self.world, &self.start.after(&self.paid)?)?;
        Ok(())
    }

    /// Everybody pays and is paid.
    fn all_pay(&mut self) -> Result<()> {
        let n = u64::try_from(self.paid.len())?;
        self.pays(&[
            order(MOVER, STOPS, 3_000_001 + n),
            order(STOPS, OTHER, 2_000_003),
            order(OTHER, MOVER, 2_500_005),
        ])
    }

    /// What everybody is due now: nobody has paid a fee so far.
    fn due(&self) -> Result<Snapshot> {
        let height = wait_at_rest(&self.world)?.height;
        Ok(Snapshot { height, ..self.start.after(&self.paid)? })
    }

    fn node(&self, client: usize) -> Result<&str> {
        Ok(self.world.client(client)?.node_id())
    }

    /// Each leaf's position at the LSP and at its client, and whether something is under way.
    fn positions(&self) -> Result<Vec<(u64, u64, bool)>> {
        let one = |client: usize| {
            let own = self.world.client(client)?.factory(&self.id)?.leaves.into_iter().next();
            let (own, lsp) =
                (own.context("own leaf")?, rotate::leaf(&self.world, &self.id, self.node(client)?)?);
            Ok((lsp.position, own.position, lsp.rotating.is_some() || own.rotating.is_some()))
        };
        (0..CLIENTS).map(one).collect()
    }

    /// The root advances, or a failed try of it is made up for: all leaves are newer on both sides.
    fn root_on(&self) -> Result<()> {
        let newest =
            self.positions()?.into_iter().map(|(lsp, own, _)| lsp.max(own)).max().context("leaves")?;
        wait::until(&format!("all leaves to be newer than {newest}"), PATIENCE, || {
            let now = self.positions()?;
            if now.iter().all(|(lsp, own, busy)| lsp == own && *lsp > newest && !busy) {
                return Ok(Seen::Done(()));
            }
            if !now.iter().any(|(.., busy)| *busy) || now.iter().all(|(lsp, ..)| *lsp <= newest) {
                let _ = rotate::ask_at(&self.world, &self.id, self.node(MOVER)?, &json!("root"));
            }
            Ok(Seen::NotYet(format!("{now:?}")))
        })?;
        (0..CLIENTS).try_for_each(|client| liquidity::wait_agreed(&self.world, &self.id, client))
    }

    /// Has the root advance, with liquidity sold to the mover if so.
    fn asks(&self, sells: bool) -> Result<()> {
        let (node, path) = (self.node(MOVER)?, format!("/v1/factories/{}/liquidity", self.id));
        if sells {
            let request = json!({ "client": node, "change_sat": SOLD, "level": "root" });
            return self.world.lsp.api()?.post::<Value>(&path, &request).map(drop);
        }
        rotate::ask_at(&self.world, &self.id, node, &json!("root")).map(drop)
    }

    /// A client leaves with the LSP dead and the others awake, over that output; all are whole in the end.
    fn leaves(mut self, place: bitcoin::OutPoint, before: &Snapshot, stranger_sat: u64) -> Result<()> {
        let share = shares::of_client(&self.world, MOVER, &self.id)?;
        self.world.lsp.kill()?;
        let leaving = Leaving::client(&self.world, MOVER, &self.id)?;
        leaving.ask(&self.world)?;
        let (commitment, first) = pace::to_commitment(&self.world, &leaving, LIMIT)?;
        ensure!(commitment.input[0].previous_output == place, "another place: {commitment:?}");
        let state = self.world.bitcoind.confirmed(place.txid)?.context("the state")?.tx;
        let capacity = state.output[usize::try_from(place.vout)?].value.to_sat();
        ensure!(paid_sat(&commitment) == due_sat(capacity, share, &[]), "{commitment:?}, {share} msat");
        pace::drive(&self.world, &[leaving], LIMIT, &mut |_| Ok(()))?;
        self.world.lsp.start()?;
        let world = &self.world;
        let after = pace::rest_until(world, |after| whole(world, before, after, FEES, stranger_sat))?;
        spender(&world.bitcoind, place, first, after.height)?;
        // The others are paid as before, wherever their leaves are.
        others_usable(world, &self.id)?;
        let held = wait_at_rest(world)?;
        let paid = [pay(world, order(STOPS, OTHER, 1_000_001))?, pay(world, order(OTHER, STOPS, 2_000_003))?];
        wait_for(world, &held.after(&paid)?)?;
        self.world.finish();
        Ok(())
    }
}

/// Waits until the channels of the clients that stay are usable.
fn others_usable(world: &World, id: &str) -> Result<()> {
    for client in [STOPS, OTHER] {
        let client = world.client(client)?;
        wait::until_value(
            "the other channels to be usable",
            PATIENCE,
            || {
                let own = factory_channel(&client.channels()?, id, world.lsp.node_id())?;
                Ok([own, factory_channel(&world.lsp.channels()?, id, client.node_id())?])
            },
            |both| both.iter().all(|channel| channel.usable),
        )?;
    }
    Ok(())
}

/// A client stops at each step of an advance of the root; it is named, the others pay each other, and the root advances
/// later. With a sale to another client in it, that one's channel may rest in between.
fn a_client_stops(name: &str, sells: bool) -> Result<()> {
    let mut scene = Scene::start(name, if sells { 300_000 } else { 0 })?;
    scene.all_pay()?;
    for step in ["withholds_partials", "withholds_outer"] {
        println!("{step}");
        let stops = scene.world.client(STOPS)?;
        stops.faults().set(&format!("on@client.advance.{step}"))?;
        let (named, seen) = (stops.node_id().to_owned(), scene.world.lsp.events("rotation_failed")?.len());
        scene.asks(sells)?;
        let event = wait::until("the advance to fail", PATIENCE, || {
            Ok(match scene.world.lsp.events("rotation_failed")?.get(seen) {
                Some(event) => Seen::Done(event.clone()),
                None => Seen::NotYet(format!("{:?}", scene.positions())),
            })
        })?;
        ensure!(event.data["who"] == json!([named]), "who? {event:?}");
        // It goes on stopping, and nobody needs it.
        if sells {
            scene.pays(&[order(OTHER, STOPS, 1_000_007), order(STOPS, OTHER, 1_000_009)])?;
        } else {
            scene.pays(&[order(OTHER, MOVER, 1_000_007), order(MOVER, OTHER, 1_000_009)])?;
        }
        scene.world.client(STOPS)?.faults().clear()?;
        scene.root_on()?;
        scene.all_pay()?;
    }
    if sells {
        scene.asks(true)?;
        liquidity::wait_capacity(&scene.world, &scene.id, MOVER, CAPACITY + SOLD)?;
        wait::until_value(
            "all to have the new state",
            PATIENCE,
            || scene.positions(),
            |all| all.iter().all(|(lsp, own, busy)| lsp == own && !busy),
        )?;
        scene.all_pay()?;
    }
    let (place, before) = (OldPath::of(&scene.world, MOVER)?.place()?, scene.due()?);
    scene.leaves(place, &before, 0)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_client_stops_in_a_root_advance() -> Result<()> {
    a_client_stops("branch-stops", false)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_client_stops_in_a_root_advance_that_sells_to_another() -> Result<()> {
    a_client_stops("branch-stops-sale", true)
}

/// A client publishes its path from before the root advanced. Another one's client sleeps. The newest root state is there in
/// time, and each leaf is where it was.
#[test]
#[ignore = "long: make adversaries"]
fn an_old_root_state_loses_its_race() -> Result<()> {
    let mut scene = Scene::start("branch-race", 0)?;
    let mut cheater = Cheater::new(&scene.world, 8)?;
    let old = OldPath::of(&scene.world, STOPS)?;
    for _ in 0..2 {
        scene.all_pay()?;
        scene.root_on()?;
    }
    rotate::once(&scene.world, &scene.id, MOVER)?;
    scene.all_pay()?;
    let before = scene.due()?;
    let (newest, own) = (OldPath::of(&scene.world, STOPS)?, OldPath::of(&scene.world, MOVER)?);
    scene.world.client_mut(OTHER)?.kill()?;
    let world = &scene.world;
    let differ =
        (0..old.transactions().len()).find(|n| old.transactions()[*n] != newest.transactions()[*n]).unwrap();
    cheater.publish(world, &old, differ - 1)?;
    let (tx, due) = newest.next(world)?.context("the newest root state")?;
    let (stale, later) = old.next(world)?.context("the old root state")?;
    ensure!(due < later, "the newest root state has no lead: {due}, {later}");
    world.bitcoind.mine_to(due - 1)?;
    world.sync()?;
    let refused = format!("{:#}", cheater.offer(world, stale).unwrap_err());
    ensure!(refused.contains("non-BIP68-final"), "{refused}");
    world.bitcoind.wait_seen(tx.compute_txid(), PATIENCE)?;
    world.mine(1)?;
    ensure!(world.bitcoind.confirmed(tx.compute_txid())?.is_some(), "the newest root state is not there");
    world.bitcoind.mine_to(later)?;
    world.sync()?;
    let refused = format!("{:#}", cheater.offer(world, stale).unwrap_err());
    ensure!(refused.contains("missingorspent"), "{refused}");
    scene.world.client_mut(OTHER)?.start()?;
    scene.world.sync()?;
    scene.world.wait_usable(&scene.factory)?;
    let fees = cheater.fees_sat;
    scene.leaves(own.place()?, &before, fees)
}

/// All sleep while an old root state confirms: every leaf below it is the one of then. Payments go on, and the client leaves
/// by its newest commitment on the old leaf.
#[test]
#[ignore = "long: make adversaries"]
fn an_old_root_state_is_slept_through() -> Result<()> {
    let mut scene = Scene::start("branch-slept", 0)?;
    let mut cheater = Cheater::new(&scene.world, 8)?;
    rotate::once(&scene.world, &scene.id, MOVER)?;
    let old = OldPath::of(&scene.world, MOVER)?;
    for _ in 0..2 {
        scene.all_pay()?;
        scene.root_on()?;
    }
    scene.all_pay()?;
    let before = scene.due()?;
    for client in &mut scene.world.clients {
        client.kill()?;
    }
    scene.world.lsp.kill()?;
    let newest = old.transactions().iter().position(|tx| tx.output.len() > 2).context("the root state")?;
    cheater.publish(&scene.world, &old, newest)?;
    scene.world.lsp.start()?;
    for client in &mut scene.world.clients {
        client.start()?;
    }
    scene.world.sync()?;
    scene.world.wait_usable(&scene.factory)?;
    let paid = [
        pay(&scene.world, order(MOVER, STOPS, 4_000_001))?,
        pay(&scene.world, order(OTHER, MOVER, 5_000_003))?,
    ];
    wait_at_rest(&scene.world)?;
    let (before, place, fees) = (before.after(&paid)?, old.place()?, cheater.fees_sat);
    scene.leaves(place, &before, fees)
}

/// The LSP completes an advance of the root, hides it, and it comes out in the client's exit.
#[test]
#[ignore = "long: make adversaries"]
fn a_hidden_root_state_comes_out_in_the_clients_exit() -> Result<()> {
    let mut scene = Scene::start("branch-hidden", 0)?;
    let mut cheater = Cheater::new(&scene.world, 8)?;
    scene.all_pay()?;
    scene.world.lsp.faults().set("on@lsp.advance.hides")?;
    scene.asks(false)?;
    wait::until_value(
        "the advance to be pending at all clients",
        PATIENCE,
        || {
            let leaf = |client: usize| Ok(scene.world.client(client)?.factory(&scene.id)?.leaves[0].clone());
            (0..CLIENTS).map(leaf).collect::<Result<Vec<_>>>()
        },
        |leaves| leaves.iter().all(|leaf| leaf.rotating.as_deref() == Some("pending")),
    )?;
    scene.world.lsp.faults().clear()?;
    scene.all_pay()?;
    let hidden = OldPath::hidden(&scene.world, MOVER)?;
    let before = scene.due()?;
    let share = shares::of_client(&scene.world, MOVER, &scene.id)?;
    scene.world.lsp.kill()?;
    scene.world.client(MOVER)?.exit(&scene.id)?;
    let state = hidden.transactions().iter().position(|tx| tx.output.len() > 2).context("the root state")?;
    cheater.publish(&scene.world, &hidden, state)?;
    let leaving = Leaving::client(&scene.world, MOVER, &scene.id)?;
    pace::drive(&scene.world, &[leaving], LIMIT, &mut |_| Ok(()))?;
    scene.world.lsp.start()?;
    let (world, fees) = (&scene.world, cheater.fees_sat);
    let after = pace::rest_until(world, |after| whole(world, &before, after, FEES, fees))?;
    let commitment = spender(&world.bitcoind, hidden.place()?, before.height, after.height)?;
    ensure!(paid_sat(&commitment) == due_sat(CAPACITY, share, &[]), "{commitment:?}, {share} msat");
    scene.world.finish();
    Ok(())
}
