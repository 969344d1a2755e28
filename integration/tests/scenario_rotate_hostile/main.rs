//! Cheating inside a rotation, and inside a change of capacity: one side stops at some step, or completes the new state
//! alone. The rotation fails by name in its time, payments go on, a later rotation works, and whoever is honest leaves
//! with what is his on whichever state confirms.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clients;
mod hidden;
mod kept;

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use bitcoin::OutPoint;
use integration::ledger::{wait_at_rest, wait_for, Settled, Snapshot};
use integration::pace::{self, Leaving};
use integration::payments::{pay, Order, Party};
use integration::shares::{self, due_sat, paid_sat, whole};
use integration::signed::spender;
use integration::types::{Factory, Leaf, TreeTx};
use integration::wait::{self, Seen};
use integration::{liquidity, rotate, World};
use serde_json::json;

const CAPACITY: u64 = 500_000;
/// By how much a capacity changes, sat.
const STEP: i64 = 20_000;
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

/// What is cheated in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A rotation that leaves all capacities as they are.
    Plain,
    /// The LSP sells the mover liquidity from the stock.
    Sale,
    /// The mover gives some back.
    GiveBack,
}

struct Scene {
    world: World,
    factory: Factory,
    id: String,
    node: String,
    kind: Kind,
    start: Snapshot,
    paid: Vec<Settled>,
}

impl Scene {
    /// A leaf with two layers, and `inner` states in the inner one.
    fn start(name: &str, kind: Kind, inner: u16) -> Result<Self> {
        let layers = json!([[], [[8, 4, 8], [inner, 4, 0]]]);
        Self::of(name, kind, 2, json!({ "arity": [2], "layers": layers }))
    }

    fn of(name: &str, kind: Kind, clients: usize, params: serde_json::Value) -> Result<Self> {
        let phase = PHASE.to_string();
        let flags = ["--phase-timeout-secs", &phase, "--free-liquidity-sat", "200000"];
        let world = World::start_with_lsp(&format!("{name}-{kind:?}").to_lowercase(), clients, &flags)?;
        let stock = if kind == Kind::Plain { 0 } else { 200_000 };
        let request = world.factory_request(CAPACITY, CAPACITY / 2, stock, Some(params));
        let factory = world.create_factory(&request)?;
        let start = Snapshot::take(&world)?;
        let node = world.client(MOVER)?.node_id().to_owned();
        let id = factory.instance_id.clone();
        Ok(Self { id, world, factory, node, kind, start, paid: Vec::new() })
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

    /// What everybody is due now: nobody has paid a fee so far.
    fn due(&self) -> Result<Snapshot> {
        let height = wait_at_rest(&self.world)?.height;
        Ok(Snapshot { height, ..self.start.after(&self.paid)? })
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
        liquidity::wait_agreed(&self.world, &self.id, MOVER)?;
        println!("rotated on from {newest} to {now}");
        Ok(())
    }

    /// Begins what is cheated in.
    fn asks(&self) -> Result<()> {
        match self.kind {
            Kind::Plain => rotate::ask(&self.world, &self.id, &self.node).map(drop),
            Kind::Sale => liquidity::sell(&self.world, &self.id, MOVER, STEP).map(drop),
            Kind::GiveBack => {
                // A client is heard once in so many blocks.
                self.world.mine(6)?;
                liquidity::ask(&self.world, &self.id, MOVER, -STEP).map(drop)
            }
        }
    }

    /// Asks for a rotation that fails at the mover: named, in time.
    fn fails_at_the_client(&self) -> Result<()> {
        self.fails_at(&self.node)
    }

    /// The same for a client of this name.
    fn fails_at(&self, named: &str) -> Result<()> {
        let began = Instant::now();
        let seen = self.world.lsp.events("rotation_failed")?.len();
        self.asks()?;
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

    /// After a try that failed: payments, another rotation, payments. A channel whose capacity was to change may rest in
    /// between.
    fn goes_on(&mut self, rests: bool) -> Result<()> {
        if self.kind == Kind::Plain || !rests {
            self.pays()?;
        }
        self.rotates_on()?;
        self.pays()
    }

    /// One side leaves with the other dead, over this state; the other comes back to its money.
    fn leaves_by(self, by: Party, place: OutPoint) -> Result<()> {
        let before = self.due()?;
        self.leaves_since(before, by, place, 0)
    }

    /// The same, counted from `before`; a stranger has paid fees since.
    fn leaves_since(mut self, before: Snapshot, by: Party, place: OutPoint, stranger_sat: u64) -> Result<()> {
        let world = &mut self.world;
        wait_at_rest(world)?;
        let share = shares::of_client(world, MOVER, &self.id)?;
        match by {
            Party::Lsp => world.client_mut(MOVER)?.kill()?,
            _ => world.lsp.kill()?,
        }
        let leaving = Leaving::of(world, by, MOVER, &self.id)?;
        leaving.ask(world)?;
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
        let state = world.bitcoind.confirmed(place.txid)?.context("the state")?.tx;
        let capacity = state.output[usize::try_from(place.vout)?].value.to_sat();
        ensure!(paid_sat(&commitment) == due_sat(capacity, share, &[]), "{commitment:?}, {share} msat");
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
