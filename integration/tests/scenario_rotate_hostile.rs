//! Cheating inside a rotation: one side stops at some step, or completes the new state alone. The rotation fails by name in
//! its time, payments go on, a later rotation works, and whoever is honest leaves with what is his on whichever state
//! confirms.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::OutPoint;
use integration::ledger::{wait_at_rest, wait_for, Settled, Snapshot};
use integration::pace::{self, Leaving};
use integration::payments::{pay, Order, Party};
use integration::shares::{self, due_sat, paid_sat, whole};
use integration::signed::{spender, wait_spent};
use integration::superseded::{Cheater, OldPath};
use integration::types::{Factory, Leaf, TreeTx};
use integration::wait::{self, Seen};
use integration::world::{factory_channel, PATIENCE};
use integration::{rotate, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 500_000;
const MOVER: usize = 0;
const OTHER: usize = 1;
/// Time of the LSP for one phase, seconds.
const PHASE: u64 = 5;
/// Within so much a rotation has failed: its phases, and a slow machine.
const IN_TIME: Duration = Duration::from_secs(4 * PHASE + 20);
/// Most that a party pays for its own exit, claims and sweeps here, sat.
const FEES: u64 = 20_000;
/// Blocks that an exit may take here.
const LIMIT: u32 = 600;

fn there(amount_msat: u64) -> Order {
    Order { from: Party::Client(MOVER), to: Party::Client(OTHER), amount_msat }
}

fn back(amount_msat: u64) -> Order {
    Order { from: Party::Client(OTHER), to: Party::Client(MOVER), amount_msat }
}

struct Scene {
    world: World,
    factory: Factory,
    id: String,
    node: String,
    start: Snapshot,
    paid: Vec<Settled>,
}

impl Scene {
    /// A leaf with two layers, and `inner` states in the inner one.
    fn start(name: &str, inner: u16) -> Result<Self> {
        let phase = PHASE.to_string();
        let world = World::start_with_lsp(name, 2, &["--phase-timeout-secs", &phase])?;
        let params = json!({ "arity": [2], "layers": [[], [[8, 4, 8], [inner, 4, 0]]] });
        let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params));
        let factory = world.create_factory(&request)?;
        let start = Snapshot::take(&world)?;
        let node = world.client(MOVER)?.node_id().to_owned();
        Ok(Self { id: factory.instance_id.clone(), world, factory, node, start, paid: Vec::new() })
    }

    /// Payments in both directions, and everybody holds his due.
    fn pays(&mut self) -> Result<()> {
        let n = u64::try_from(self.paid.len())?;
        for order in [there(3_000_001 + n), back(2_000_003 + n)] {
            self.paid.push(pay(&self.world, order)?);
        }
        wait_for(&self.world, &self.start.after(&self.paid)?)?;
        Ok(())
    }

    fn leaves(&self) -> Result<(Leaf, Leaf)> {
        let own =
            self.world.client(MOVER)?.factory(&self.id)?.leaves.into_iter().next().context("own leaf")?;
        Ok((rotate::leaf(&self.world, &self.id, &self.node)?, own))
    }

    /// The leaf rotates once, or as often as it takes until both sides have a newer state than either has now.
    fn rotates_on(&mut self) -> Result<()> {
        let (lsp, own) = self.leaves()?;
        let newest = lsp.position.max(own.position);
        let now = rotate::go_on(&self.world, &self.id, MOVER, newest)?;
        println!("rotated on from {newest} to {now}");
        Ok(())
    }

    /// Asks for a rotation that fails at the mover: named, in time.
    fn fails_at_the_client(&self) -> Result<()> {
        self.fails_at(&self.node)
    }

    /// The same for a client of this name.
    fn fails_at(&self, named: &str) -> Result<()> {
        let began = Instant::now();
        let seen = self.world.lsp.events("rotation_failed")?.len();
        rotate::ask(&self.world, &self.id, &self.node)?;
        let event = wait::until("the rotation to fail", IN_TIME, || {
            match self.world.lsp.events("rotation_failed")?.get(seen) {
                Some(event) => Ok(Seen::Done(event.clone())),
                None => Ok(Seen::NotYet(format!("{:?}", self.leaves()))),
            }
        })?;
        println!("failed after {:.1} s: {}", began.elapsed().as_secs_f32(), event.data);
        ensure!(event.data["who"] == json!([named]), "who? {event:?}");
        let (lsp, _) = self.leaves()?;
        ensure!(lsp.rotating.is_none() && lsp.failure.is_some_and(|f| f.contains(named)));
        Ok(())
    }

    /// One side leaves with the other dead, over this state; the other comes back to its money.
    fn leaves_by(self, by: Party, place: OutPoint) -> Result<()> {
        let before = wait_at_rest(&self.world)?;
        self.leaves_since(before, by, place, 0)
    }

    /// The same, counted from `before`; a stranger has paid fees since.
    fn leaves_since(mut self, before: Snapshot, by: Party, place: OutPoint, stranger_sat: u64) -> Result<()> {
        let world = &mut self.world;
        wait_at_rest(world)?;
        let share = shares::of_client(world, MOVER, &self.id)?;
        let leaving = match by {
            Party::Lsp => {
                world.client_mut(MOVER)?.kill()?;
                let body = json!({ "client": self.node });
                world.lsp.api()?.post::<Value>(&format!("/v1/factories/{}/exit", self.id), &body)?;
                Leaving::by_lsp(world, MOVER, &self.id)?
            }
            _ => {
                world.lsp.kill()?;
                world.client(MOVER)?.exit(&self.id)?;
                Leaving::client(world, MOVER, &self.id)?
            }
        };
        pace::drive(world, &[leaving], LIMIT, &mut |_| Ok(()))?;
        match by {
            Party::Lsp => world.client_mut(MOVER)?.start()?,
            _ => world.lsp.start()?,
        }
        self.whole(&before, share, place, stranger_sat)
    }

    /// Everything is in wallets, over this state, and nobody has paid more than his own fees. A stranger has paid some, too.
    fn whole(self, before: &Snapshot, share: u64, place: OutPoint, stranger_sat: u64) -> Result<()> {
        let world = &self.world;
        let after = pace::rest_until(world, |after| whole(world, before, after, FEES, stranger_sat))?;
        let commitment = spender(&world.bitcoind, place, before.height, after.height)?;
        ensure!(paid_sat(&commitment) == due_sat(CAPACITY, share, &[]), "{commitment:?}, {share} msat");
        self.world.finish();
        Ok(())
    }
}

/// The LSP's newest path to the mover's leaf.
fn steps_of_lsp(scene: &Scene) -> Result<Vec<TreeTx>> {
    let factory = scene.world.lsp.factory(&scene.id)?;
    let place =
        factory.clients.iter().position(|member| member.node_id == scene.node).context("no member")?;
    Ok(factory.tree.into_iter().filter(|tx| (tx.clients.0..tx.clients.1).contains(&place)).collect())
}

/// The mover's channel output of the LSP's newest state.
fn newest_of_lsp(scene: &Scene) -> Result<OutPoint> {
    Ok(OutPoint::new(steps_of_lsp(scene)?.last().context("an empty path")?.txid, 0))
}

/// The client stops at each step; each time it is named, payments go on, and a later rotation works. In the end the LSP
/// leaves it.
#[test]
#[ignore = "long: make adversaries"]
fn a_client_stops_at_every_step() -> Result<()> {
    let mut scene = Scene::start("rotate-client-stops", 2)?;
    scene.pays()?;
    // The inner layer ticks: there are outer partial signatures only.
    scene.world.client(MOVER)?.faults().set("on@client.advance.withholds_outer")?;
    scene.fails_at_the_client()?;
    scene.world.client(MOVER)?.faults().clear()?;
    scene.pays()?;
    scene.rotates_on()?;
    scene.pays()?;
    // The outer one ticks.
    for step in ["withholds_partials", "withholds_outer"] {
        while scene.leaves()?.0.position % 2 == 0 {
            scene.rotates_on()?;
        }
        scene.world.client(MOVER)?.faults().set(&format!("on@client.advance.{step}"))?;
        scene.fails_at_the_client()?;
        scene.world.client(MOVER)?.faults().clear()?;
        scene.pays()?;
        scene.rotates_on()?;
        scene.pays()?;
    }
    // It has the new state, and does not say so: complete is complete.
    scene.world.client(MOVER)?.faults().set("on@client.advance.withholds_persisted")?;
    let before = scene.leaves()?.0.position;
    rotate::ask(&scene.world, &scene.id, &scene.node)?;
    wait::until_value(
        "both sides to have the new state",
        PATIENCE,
        || scene.leaves(),
        |(lsp, own)| lsp.position > before && own.position == lsp.position,
    )?;
    scene.pays()?;
    scene.rotates_on()?;
    scene.world.client(MOVER)?.faults().clear()?;
    scene.pays()?;
    let place = newest_of_lsp(&scene)?;
    scene.leaves_by(Party::Lsp, place)
}

/// A side keeps its companions to itself while a leaf rotates. The rotation fails; when they come, all goes on.
fn companions_are_late(name: &str, late: Party) -> Result<()> {
    let mut scene = Scene::start(name, 8)?;
    scene.pays()?;
    for round in 0..2 {
        println!("round {round}");
        let set = |list: &str| match late {
            Party::Lsp => scene.world.lsp.faults().set(list),
            _ => scene.world.client(MOVER)?.faults().set(list),
        };
        set("on@companions.late")?;
        scene.fails_at_the_client()?;
        set("")?;
        scene.pays()?;
        scene.rotates_on()?;
        scene.pays()?;
    }
    let place = OldPath::of(&scene.world, MOVER)?.place()?;
    let by = if late == Party::Lsp { Party::Client(MOVER) } else { Party::Lsp };
    scene.leaves_by(by, place)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_clients_companions_are_late() -> Result<()> {
    companions_are_late("rotate-late-client", Party::Client(MOVER))
}

#[test]
#[ignore = "long: make adversaries"]
fn an_lsps_companions_are_late() -> Result<()> {
    companions_are_late("rotate-late-lsp", Party::Lsp)
}

/// The LSP keeps the inner signatures to itself: no state comes of it. A later rotation works, and the client leaves.
#[test]
#[ignore = "long: make adversaries"]
fn an_lsp_keeps_the_inner_signatures() -> Result<()> {
    let mut scene = Scene::start("rotate-inner-kept", 2)?;
    scene.rotates_on()?;
    scene.pays()?;
    scene.world.lsp.faults().set("on@lsp.advance.withholds_inner")?;
    scene.fails_at_the_client()?;
    scene.world.lsp.faults().clear()?;
    scene.pays()?;
    scene.rotates_on()?;
    scene.pays()?;
    let place = OldPath::of(&scene.world, MOVER)?.place()?;
    scene.leaves_by(Party::Client(MOVER), place)
}

/// A rotation after which the LSP alone has the new state.
fn completed_alone(name: &str, switch: &str) -> Result<Scene> {
    let mut scene = Scene::start(name, 2)?;
    scene.rotates_on()?;
    scene.pays()?;
    scene.world.lsp.faults().set(&format!("on@{switch}"))?;
    rotate::ask(&scene.world, &scene.id, &scene.node)?;
    wait::until_value(
        "the LSP alone to have the new state",
        PATIENCE,
        || scene.leaves(),
        |(lsp, own)| (lsp.position, own.position) == (2, 1) && own.rotating.is_some(),
    )?;
    // Neither knows which of the two states it is going to be.
    scene.pays()?;
    ensure!(OldPath::of(&scene.world, MOVER)?.place()? != newest_of_lsp(&scene)?);
    Ok(scene)
}

/// The client leaves while the LSP sleeps: over the last state that it has.
#[test]
#[ignore = "long: make adversaries"]
fn the_client_leaves_over_the_state_before() -> Result<()> {
    let scene = completed_alone("rotate-alone-client", "lsp.advance.withholds_signed")?;
    let place = OldPath::of(&scene.world, MOVER)?.place()?;
    scene.leaves_by(Party::Client(MOVER), place)
}

/// The LSP leaves over the state that it has kept, while the client sleeps.
#[test]
fn the_lsp_leaves_over_the_state_it_kept() -> Result<()> {
    let scene = completed_alone("rotate-alone-lsp", "lsp.advance.aborts")?;
    let place = newest_of_lsp(&scene)?;
    scene.leaves_by(Party::Lsp, place)
}

/// The client leaves over the state that it has, and the LSP, awake, publishes the newer one that it has kept: it wins, and
/// the client's commitment holds on it.
fn the_kept_state_wins(name: &str, switch: &str) -> Result<()> {
    let scene = completed_alone(name, switch)?;
    let place = newest_of_lsp(&scene)?;
    let before = wait_at_rest(&scene.world)?;
    let share = shares::of_client(&scene.world, MOVER, &scene.id)?;
    scene.world.client(MOVER)?.exit(&scene.id)?;
    let world = &scene.world;
    for step in steps_of_lsp(&scene)? {
        let parent = world.bitcoind.confirmed(step.parent_txid)?.context("its parent")?.height;
        let due = parent + u32::from(step.delay_blocks).max(1);
        if world.bitcoind.height()? + 1 < due {
            world.bitcoind.mine_to(due - 1)?;
            world.sync()?;
        }
        world.bitcoind.wait_seen(step.txid, PATIENCE)?;
        world.mine(1)?;
        ensure!(world.bitcoind.confirmed(step.txid)?.is_some(), "{} is not there", step.kind);
    }
    wait_spent(&world.bitcoind, place)?;
    world.mine(1)?;
    scene.whole(&before, share, place, 0)
}

/// The same where miners leave the newer state out until the client's is valid, too, and take that one. All coins that
/// paid for what has lost are free again.
#[test]
#[ignore = "long: make adversaries"]
fn the_state_that_the_lsp_kept_loses() -> Result<()> {
    let scene = completed_alone("rotate-kept-loses", "lsp.advance.withholds_signed")?;
    let path = OldPath::of(&scene.world, MOVER)?;
    let (place, before) = (path.place()?, wait_at_rest(&scene.world)?);
    let share = shares::of_client(&scene.world, MOVER, &scene.id)?;
    let world = &scene.world;
    world.client(MOVER)?.exit(&scene.id)?;
    let raced = steps_of_lsp(&scene)?.get(2).context("the outer state")?.txid;
    for (number, tx) in path.transactions().iter().enumerate() {
        let (next, due) = path.next(world)?.context("a step")?;
        ensure!(next == tx);
        if number == 2 {
            while world.bitcoind.height()? + 2 < due {
                world.bitcoind.mine_empty(1)?;
                world.sync()?;
            }
            world.bitcoind.wait_seen(raced, PATIENCE)?;
            world.bitcoind.mine_empty(1)?;
            let block = json!([world.bitcoind.new_address()?, [serialize_hex(tx)]]);
            world.bitcoind.rpc().call::<Value>("generateblock", block)?;
            world.sync()?;
        } else {
            world.bitcoind.wait_seen(tx.compute_txid(), PATIENCE)?;
            world.mine(1)?;
        }
        ensure!(world.bitcoind.confirmed(tx.compute_txid())?.is_some(), "transaction {number} is not there");
    }
    wait_spent(&world.bitcoind, place)?;
    world.mine(1)?;
    scene.whole(&before, share, place, 0)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_state_that_the_lsp_kept_wins() -> Result<()> {
    the_kept_state_wins("rotate-kept", "lsp.advance.withholds_signed")
}

#[test]
#[ignore = "long: make adversaries"]
fn the_state_that_the_lsp_called_off_wins() -> Result<()> {
    the_kept_state_wins("rotate-called-off", "lsp.advance.aborts")
}

/// The LSP hands the state over after all: the client has it, and the leaf rotates on.
#[test]
#[ignore = "long: make adversaries"]
fn a_kept_state_is_handed_over_after_all() -> Result<()> {
    let mut scene = completed_alone("rotate-handed-over", "lsp.advance.aborts")?;
    scene.world.lsp.faults().clear()?;
    scene.world.client_mut(MOVER)?.stop()?;
    scene.world.client_mut(MOVER)?.start()?;
    scene.world.wait_usable(&scene.factory)?;
    rotate::wait_position(&scene.world, &scene.id, MOVER, 2)?;
    scene.pays()?;
    scene.rotates_on()?;
    scene.pays()?;
    let place = OldPath::of(&scene.world, MOVER)?.place()?;
    ensure!(place == newest_of_lsp(&scene)?);
    scene.leaves_by(Party::Client(MOVER), place)
}

/// A rotation that the LSP has completed and says has failed: where the channel would be, if that state confirmed.
fn hidden(scene: &mut Scene) -> Result<OldPath> {
    scene.rotates_on()?;
    scene.pays()?;
    scene.world.lsp.faults().set("on@lsp.advance.hides")?;
    rotate::ask(&scene.world, &scene.id, &scene.node)?;
    wait::until_value(
        "the rotation to fail, and to be pending at the client",
        PATIENCE,
        || scene.leaves(),
        |(lsp, own)| {
            let failed = lsp.failure.as_ref().is_some_and(|f| f.contains("changed my mind"));
            failed && lsp.rotating.is_none() && own.rotating.as_deref() == Some("pending")
        },
    )?;
    scene.world.lsp.faults().clear()?;
    scene.pays()?;
    OldPath::hidden(&scene.world, MOVER)
}

/// The client leaves, and somebody publishes a state of which the client was told that it failed. It wins, and the client
/// goes on over that one.
#[test]
#[ignore = "long: make adversaries"]
fn a_hidden_state_comes_out_in_the_clients_exit() -> Result<()> {
    let mut scene = Scene::start("rotate-hidden", 2)?;
    let mut cheater = Cheater::new(&scene.world, 8)?;
    let hidden = hidden(&mut scene)?;
    let before = wait_at_rest(&scene.world)?;
    let share = shares::of_client(&scene.world, MOVER, &scene.id)?;
    scene.world.lsp.kill()?;
    scene.world.client(MOVER)?.exit(&scene.id)?;
    cheater.publish(&scene.world, &hidden, hidden.transactions().len() - 1)?;
    let leaving = Leaving::client(&scene.world, MOVER, &scene.id)?;
    pace::drive(&scene.world, &[leaving], LIMIT, &mut |_| Ok(()))?;
    scene.world.lsp.start()?;
    let place = hidden.place()?;
    scene.whole(&before, share, place, cheater.fees_sat)
}

/// The leaf has rotated on since, and all sleep while the hidden state confirms: payments go on over it, and the client
/// leaves over it.
#[test]
#[ignore = "long: make adversaries"]
fn a_hidden_state_is_slept_through() -> Result<()> {
    let mut scene = Scene::start("rotate-hidden-slept", 2)?;
    let mut cheater = Cheater::new(&scene.world, 8)?;
    let hidden = hidden(&mut scene)?;
    scene.rotates_on()?;
    scene.pays()?;
    let before = wait_at_rest(&scene.world)?;
    let paid = scene.paid.len();
    for client in &mut scene.world.clients {
        client.kill()?;
    }
    scene.world.lsp.kill()?;
    cheater.publish(&scene.world, &hidden, hidden.transactions().len() - 1)?;
    scene.world.lsp.start()?;
    for client in &mut scene.world.clients {
        client.start()?;
    }
    scene.world.sync()?;
    scene.world.wait_usable(&scene.factory)?;
    scene.pays()?;
    let before = before.after(&scene.paid[paid..])?;
    let place = hidden.place()?;
    scene.leaves_since(before, Party::Client(MOVER), place, cheater.fees_sat)
}

/// A leaf of two clients: one of them stops, the other's channel goes on, the leaf rotates later, and the other leaves it.
#[test]
#[ignore = "long: make adversaries"]
fn a_neighbour_stops() -> Result<()> {
    let phase = PHASE.to_string();
    let world = World::start_with_lsp("rotate-neighbour", 4, &["--phase-timeout-secs", &phase])?;
    let params = json!({ "clients_per_leaf": 2, "arity": [2], "layers": [[], [[8, 4, 8], [2, 4, 0]]] });
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 20_000, Some(params));
    let factory = world.create_factory(&request)?;
    let start = Snapshot::take(&world)?;
    let node = world.client(MOVER)?.node_id().to_owned();
    let mut scene = Scene { id: factory.instance_id.clone(), world, factory, node, start, paid: Vec::new() };
    scene.rotates_on()?;
    scene.pays()?;
    for step in ["withholds_partials", "withholds_outer", "withholds_persisted"] {
        while scene.leaves()?.0.position % 2 == 0 {
            scene.rotates_on()?;
        }
        let neighbour = scene.world.client(OTHER)?;
        neighbour.faults().set(&format!("on@client.advance.{step}"))?;
        let named = neighbour.node_id().to_owned();
        if step == "withholds_persisted" {
            rotate::ask(&scene.world, &scene.id, &scene.node)?;
        } else {
            scene.fails_at(&named)?;
        }
        if step != "withholds_persisted" {
            scene.world.client(OTHER)?.faults().clear()?;
        }
        scene.pays()?;
        scene.rotates_on()?;
        scene.world.client(OTHER)?.faults().clear()?;
        scene.pays()?;
    }
    let channel =
        factory_channel(&scene.world.client(MOVER)?.channels()?, &scene.id, scene.world.lsp.node_id())?;
    let funding: OutPoint = channel.funding.context("funding")?.into();
    let place = OutPoint { vout: funding.vout, ..OldPath::of(&scene.world, MOVER)?.place()? };
    scene.leaves_by(Party::Client(MOVER), place)
}
