//! A factory channel is left with four payments on it, to and from an ordinary node, of which two are claimed in the
//! end and two time out: first one side brings its commitment to the chain while the other is away, then the other
//! comes back and takes its own from that commitment.
//!
//! What became of each payment is read from the transaction that spends its output, from payer and payee, and from what
//! each party holds in the end, to the satoshi.

mod settle;

use std::time::Duration;

use anyhow::{anyhow, ensure, Context, Result};
use bitcoin::Network;
use factory_core::params::{DwLayer, Params};
use serde_json::{json, Value};

use crate::hold::Held;
use crate::ledger::{wait_at_rest, Snapshot};
use crate::payments::{Order, Party};
use crate::superseded::{Cheater, OldPath};
use crate::types::Exit;
use crate::wait::{self, Seen};
use crate::world::PATIENCE;
use crate::{rotate, Daemon, World};

use settle::Commitment;

/// The client whose channel is left.
const LEAVER: usize = 0;
const CAPACITY: u64 = 600_000;
/// Both sides begin with as much.
const SHARE: u64 = CAPACITY / 2;
/// What the ordinary node pays the client, msat: claimed or not, as their expiries come.
const IN: [u64; 2] = [40_000_000, 50_000_000];
/// What the client pays the ordinary node, msat: claimed, and timed out.
const OUT: [u64; 2] = [60_000_000, 30_000_000];
/// `claim_margin_blocks` of both sides: the least, so that the client's last claim comes just before the exit.
const MARGIN: u32 = 1;
/// Layers of the small tree, `[states, step, base]`.
const SMALL: [[u16; 3]; 2] = [[2, 2, 2], [2, 2, 0]];
/// Blocks that a peer gets to take an HTLC off the channel before an exit begins.
const PEER_BLOCKS: u32 = 2;
/// How long a claim or an exit may take to appear before another block is mined.
const CLAIM_PATIENCE: Duration = Duration::from_secs(20);

/// Who brings its commitment to the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exiter {
    /// The client; the LSP is away.
    Client,
    /// The LSP; the client is away.
    Lsp,
}

/// What is played.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// For the folder's name.
    pub name: &'static str,
    /// Who leaves.
    pub exiter: Exiter,
    /// A tree that takes few blocks, or the default.
    pub small: bool,
    /// On a user's order; else by itself, when an HTLC comes near its expiry.
    pub asked: bool,
    /// How often the leaf rotates before that, the last time with the payments on the channel.
    pub rotations: u64,
    /// The state before the last one comes to the chain while all are asleep, and then the payments are made.
    pub slept: bool,
}

struct Scene {
    plan: Plan,
    world: World,
    id: String,
    before: Snapshot,
    /// Claim budget of the factory, blocks.
    claim_budget: u32,
    /// To the client: claimed, and left to time out, which expires no sooner.
    incoming: [Held; 2],
    /// From the client: claimed, and left to time out.
    outgoing: [Held; 2],
    /// HTLCs on the channel of LSP and ordinary node.
    ordinary: u64,
    /// The ordinary node has given back what it is not to claim.
    given_back: bool,
    frozen: bool,
    /// Who was away has been back.
    returned: bool,
}

/// Plays it.
///
/// # Errors
/// If somebody is not where it should be, or holds another sum than it should.
pub fn play(plan: Plan) -> Result<()> {
    let mut scene = Scene::start(plan)?;
    scene.part()?;
    match plan.asked {
        true => scene.ask()?,
        false => scene.wait_for_alarm()?,
    }
    let commitment = scene.publish()?;
    scene.come_back()?;
    scene.settle(&commitment)?;
    scene.sum_up(&commitment)?;
    scene.world.finish();
    Ok(())
}

fn claim_budget(small: bool) -> Result<u32> {
    let mut params = Params::default_for(2, Network::Regtest)?;
    if small {
        params.shape.layers.pop();
        params.shape.layers.push(SMALL.map(|[states, step, base]| DwLayer { states, step, base }).to_vec());
    }
    Ok(params.claim_budget(params.confirm_blocks)?)
}

/// The leaf's state is superseded, and the old one comes to the chain while nobody looks.
fn sleep_through(world: &mut World, id: &str) -> Result<()> {
    let old = OldPath::of(world, LEAVER)?;
    rotate::once(world, id, LEAVER)?;
    let mut cheater = Cheater::new(world, old.transactions().len())?;
    for client in &mut world.clients {
        client.kill()?;
    }
    world.lsp.kill()?;
    cheater.publish(world, &old, old.transactions().len() - 1)?;
    world.lsp.start()?;
    for client in &mut world.clients {
        client.start()?;
    }
    world.sync()?;
    let factory = world.lsp.factory(id)?;
    world.wait_usable(&factory)
}

impl Scene {
    /// The factory with its four payments, everybody alive.
    fn start(plan: Plan) -> Result<Self> {
        let mut world = World::start(plan.name, 2)?;
        world.lsp.restart_with(&[("claim_margin_blocks", MARGIN)])?;
        world.client_mut(LEAVER)?.restart_with(&[("claim_margin_blocks", MARGIN)])?;
        world.sync()?;
        world.add_peer(4_000_000)?;
        let params = plan.small.then(|| json!({ "layers": [[], SMALL] }));
        let factory = world.create_factory(&world.factory_request(CAPACITY, SHARE, 0, params))?;
        let id = factory.instance_id;
        for _ in 1..plan.rotations {
            rotate::once(&world, &id, LEAVER)?;
        }
        if plan.slept {
            sleep_through(&mut world, &id)?;
        }
        let before = wait_at_rest(&world)?;
        let hold = |from, to, amount_msat| Held::start(&world, Order { from, to, amount_msat });
        let client = Party::Client(LEAVER);
        let [one, other] = IN.map(|amount| hold(Party::Peer, client, amount));
        let mut incoming = [one?, other?];
        // Senders add blocks at random.
        incoming.sort_by_key(|held| held.claim_by_height);
        if !plan.asked {
            // One block for the payments that are to come, one for the claim.
            world.bitcoind.mine_to(incoming[0].claim_by_height - 2)?;
            world.sync()?;
        }
        let one = hold(client, Party::Peer, OUT[0])?;
        // LDK 0.3.0-rc3 requests the claims of its own commitment again for a preimage that comes late, and does not
        // recognize timeouts that it has put together since they expire at once: an assertion fails in a debug build.
        world.mine(1)?;
        let outgoing = [one, hold(client, Party::Peer, OUT[1])?];
        let claim_budget = claim_budget(plan.small)?;
        if plan.rotations > 0 && !plan.slept {
            rotate::once(&world, &id, LEAVER)?;
        }
        Ok(Self {
            plan,
            world,
            id,
            before,
            claim_budget,
            incoming,
            outgoing,
            ordinary: 4,
            given_back: false,
            frozen: false,
            returned: false,
        })
    }

    /// Whether the client claims on the chain only, when the exit is done.
    fn claims_late(&self) -> bool {
        self.plan.asked && self.plan.small
    }

    /// One side goes away; what it does not hear of is claimed.
    fn part(&mut self) -> Result<()> {
        match self.plan.exiter {
            Exiter::Client if self.plan.asked => self.world.lsp.kill()?,
            Exiter::Client => {
                self.world.lsp.freeze()?;
                self.frozen = true;
            }
            // The LSP is not to hear of the client's claim either.
            Exiter::Lsp if !self.claims_late() => self.world.lsp.kill()?,
            Exiter::Lsp => {}
        }
        if !self.claims_late() {
            self.incoming[0].claim(&self.world)?;
        }
        if self.plan.exiter == Exiter::Lsp {
            self.world.client_mut(LEAVER)?.kill()?;
            if !self.world.lsp.is_up() {
                self.world.lsp.start()?;
                self.sync()?;
                self.world.wait_peer_usable()?;
            }
            self.outgoing[0].claim(&self.world)?;
            self.off_the_ordinary_channel()?;
        }
        Ok(())
    }

    fn exiter(&self) -> Result<&Daemon> {
        Ok(match self.plan.exiter {
            Exiter::Client => self.world.client(LEAVER)?,
            Exiter::Lsp => &self.world.lsp,
        })
    }

    fn exit(&self) -> Result<Option<Exit>> {
        let leaver = self.world.client(LEAVER)?.node_id();
        let exits = self.exiter()?.factory(&self.id)?.exits;
        Ok(exits.into_iter().find(|exit| exit.node_id.as_deref() == Some(leaver)))
    }

    /// Waits for those that can look at the chain. The ordinary node does so every two seconds only; when nothing is on
    /// its channel any more, it need not keep up.
    fn sync(&self) -> Result<()> {
        let bitcoind = &self.world.bitcoind;
        if self.world.lsp.is_up() && !self.frozen {
            self.world.lsp.wait_synced(bitcoind)?;
        }
        for client in self.world.clients.iter().filter(|client| client.is_up()) {
            client.wait_synced(bitcoind)?;
        }
        match self.ordinary {
            0 => Ok(()),
            _ => self.world.peer()?.wait_synced(bitcoind),
        }
    }

    /// Waits until one HTLC less is on the channel of LSP and ordinary node.
    fn off_the_ordinary_channel(&mut self) -> Result<()> {
        self.ordinary -= 1;
        let peer = self.world.peer()?.node_id();
        wait::until_value(
            &format!("{} HTLCs between LSP and ordinary node", self.ordinary),
            PATIENCE,
            || self.world.lsp.channels(),
            |list| list.iter().any(|c| c.peer == peer && c.usable && c.pending_htlcs == self.ordinary),
        )?;
        Ok(())
    }

    /// Mines up to a height, and waits there and where the ordinary node gives a payment back: the LSP would close their
    /// channel if it came to know of much later blocks first.
    fn advance(&mut self, to: u32) -> Result<()> {
        let give_back = self.outgoing[1].claim_by_height;
        let at_work = self.world.lsp.is_up() && !self.frozen;
        if at_work && !self.given_back && give_back <= to {
            self.mine_to(give_back)?;
            self.off_the_ordinary_channel()?;
            self.given_back = true;
        }
        self.mine_to(to)
    }

    fn mine_to(&self, height: u32) -> Result<()> {
        if self.world.bitcoind.height()? < height {
            self.world.bitcoind.mine_to(height)?;
        }
        self.sync()
    }

    /// The user's order.
    fn ask(&self) -> Result<()> {
        let body = match self.plan.exiter {
            Exiter::Client => json!({}),
            Exiter::Lsp => json!({ "client": self.world.client(LEAVER)?.node_id() }),
        };
        self.exiter()?.api()?.post::<Value>(&format!("/v1/factories/{}/exit", self.id), &body)?;
        Ok(())
    }

    /// Expiry on the factory channel of a payment to the client.
    fn expiry(&self, held: &Held) -> u32 {
        held.claim_by_height + self.claim_budget + MARGIN
    }

    /// Nobody asks: the exit begins when the first expiry comes as near as the worst exit is long, and not before.
    fn wait_for_alarm(&mut self) -> Result<()> {
        let first = self.incoming[0].clone();
        let due = self.expiry(&first) - self.claim_budget;
        self.advance(due - 1)?;
        ensure!(self.exit()?.is_none(), "an exit at {}, due at {due}", due - 1);
        for _ in 0..=PEER_BLOCKS {
            self.world.mine_for(self.exiter()?, 1)?;
        }
        let exit = loop {
            let height = self.world.bitcoind.height()?;
            let begun = wait::until("the exit to begin", CLAIM_PATIENCE, || {
                Ok(self.exit()?.map_or_else(|| Seen::not_yet("none"), Seen::Done))
            });
            match begun {
                Ok(exit) => break exit,
                Err(error) if height > due + 2 * PEER_BLOCKS => {
                    return Err(error.context(format!("at {height}, due at {due}")))
                }
                // What was due may have been looked at a block later.
                Err(_) => self.world.mine_for(self.exiter()?, 1)?,
            }
        };
        let (reason, started) = (exit.reason, exit.started_height.unwrap_or_default());
        let expiry = self.expiry(&first).to_string();
        ensure!(reason.contains(&first.payment_hash) && reason.contains(&expiry), "{reason}, not {first:?}");
        ensure!(started >= due + PEER_BLOCKS, "started at {started}, due at {due}");
        println!("exit at {started}, due at {due}: {reason}");
        Ok(())
    }

    /// The path, each step in its block, and the commitment.
    fn publish(&mut self) -> Result<Commitment> {
        let exit = wait::until("the exit", PATIENCE, || {
            Ok(self.exit()?.map_or_else(|| Seen::not_yet("none"), Seen::Done))
        })?;
        let funding =
            self.world.client(1)?.factory(&self.id)?.funding.ok_or_else(|| anyhow!("no funding"))?;
        let mut parent = self.confirmed_at(funding.txid)?;
        for (number, step) in exit.steps.iter().enumerate() {
            if let Some(there) = self.world.bitcoind.confirmed(step.txid)?.filter(|_| self.plan.slept) {
                parent = there.height;
                continue;
            }
            let due = parent + u32::from(step.delay_blocks).max(1);
            if self.world.bitcoind.height()? + 1 < due {
                self.advance(due - 1)?;
            }
            let expected = due.max(self.world.bitcoind.height()? + 1);
            self.world.bitcoind.wait_seen(step.txid, PATIENCE).with_context(|| step.kind.clone())?;
            self.world.mine_for(self.exiter()?, 1)?;
            parent = self.confirmed_at(step.txid)?;
            ensure!(parent == expected, "{} confirmed at {parent}, expected {expected}", step.kind);
            println!("{} confirmed at {parent}", step.kind);
            // On a long path the outer channel's deadlines come before its end. The LSP is there for them, and away
            // again when the commitments are due: only one of the two can be the client's.
            if !self.plan.small && self.plan.exiter == Exiter::Client {
                if number == 1 {
                    self.come_back()?;
                } else if number + 2 == exit.steps.len() {
                    self.world.lsp.kill()?;
                }
            }
        }
        let txid = wait::until("the commitment transaction", PATIENCE, || {
            let exit = self.exit()?;
            match exit.as_ref().and_then(|exit| exit.commitment_txid) {
                Some(txid) => Ok(Seen::Done(txid)),
                None => Ok(Seen::NotYet(format!("{exit:?}"))),
            }
        })?;
        let tx = self.world.bitcoind.wait_seen(txid, PATIENCE)?;
        self.world.mine_for(self.exiter()?, 1)?;
        let height = self.confirmed_at(txid)?;
        println!("commitment confirmed at {height}");
        Ok(Commitment { tx, height })
    }

    fn confirmed_at(&self, txid: bitcoin::Txid) -> Result<u32> {
        let found = self.world.bitcoind.confirmed(txid)?;
        Ok(found.ok_or_else(|| anyhow!("{txid} is not confirmed"))?.height)
    }

    /// The side that was away is there again, and the claims come that were not made before.
    fn come_back(&mut self) -> Result<()> {
        match self.plan.exiter {
            Exiter::Client => {
                if self.frozen {
                    self.world.lsp.kill()?;
                    self.frozen = false;
                }
                self.world.lsp.start()?;
            }
            Exiter::Lsp => self.world.client_mut(LEAVER)?.start()?,
        }
        self.sync()?;
        self.world.wait_peer_usable()?;
        if std::mem::replace(&mut self.returned, true) {
            return Ok(());
        }
        if self.claims_late() {
            self.incoming[0].claim(&self.world)?;
        }
        if self.plan.exiter == Exiter::Client {
            self.outgoing[0].claim(&self.world)?;
            self.off_the_ordinary_channel()?;
        }
        Ok(())
    }
}
