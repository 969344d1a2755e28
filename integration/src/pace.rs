//! Unilateral exits, mined at the pace of those who leave.
//!
//! Before a block is mined, everything that is due in it has to be in the mempool: each exit says how far it is, and
//! whether its next transaction is due is worked out from the chain. So a slow process loses no block, and what comes
//! too late is an error and not a longer exit.

use std::time::Duration;

use anyhow::{anyhow, bail, Result};
use bitcoin::{OutPoint, Transaction, Txid};
use serde_json::{json, Value};

use crate::ledger::Snapshot;
use crate::payments::Party;
use crate::types::Exit;
use crate::wait::{self, Seen};
use crate::{Daemon, World};

/// How long a process may take to publish what is due.
const PROMPT: Duration = Duration::from_secs(120);
/// Script of a pay-to-anchor output: version 1, two bytes.
const PAY_TO_ANCHOR: [u8; 4] = [0x51, 0x02, 0x4e, 0x73];
/// Delay of a commitment's own output, blocks.
const TO_SELF_DELAY: u32 = 144;
/// Blocks mined at a time until the last sweeps are in.
const STRIDE: u32 = 12;
/// Within so many blocks the last sweep is confirmed: the delay, and the depths that LDK waits for.
const SWEEP_WITHIN: u32 = 400;

/// An exit that is under way.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Who publishes.
    pub party: Party,
    /// Whose channel leaves.
    pub node_id: String,
    /// The factory.
    pub id: String,
}

/// How far an exit is, with all that is due published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Nothing is due in the next so many blocks.
    Idle(u32),
    /// This transaction is in the mempool.
    Offered(Txid),
    /// It waits for its user: a coin or a larger budget.
    Stuck,
    /// The money is in the wallet.
    Done,
}

impl Leaving {
    /// A client that leaves by itself.
    ///
    /// # Errors
    /// If there is no such client.
    pub fn client(world: &World, index: usize, id: &str) -> Result<Self> {
        let node_id = world.client(index)?.node_id().to_owned();
        Ok(Self { party: Party::Client(index), node_id, id: id.to_owned() })
    }

    /// A client that the LSP leaves.
    ///
    /// # Errors
    /// If there is no such client.
    pub fn by_lsp(world: &World, index: usize, id: &str) -> Result<Self> {
        Ok(Self { party: Party::Lsp, ..Self::client(world, index, id)? })
    }

    /// The exit of a client's leaf by itself or by the LSP.
    ///
    /// # Errors
    /// If there is no such client.
    pub fn of(world: &World, by: Party, client: usize, id: &str) -> Result<Self> {
        match by {
            Party::Lsp => Self::by_lsp(world, client, id),
            _ => Self::client(world, client, id),
        }
    }

    /// Has its process begin.
    ///
    /// # Errors
    /// What the process answers.
    pub fn ask(&self, world: &World) -> Result<()> {
        let body = match self.party {
            Party::Lsp => json!({ "client": self.node_id }),
            _ => json!({}),
        };
        let path = format!("/v1/factories/{}/exit", self.id);
        self.daemon(world)?.api()?.post::<Value>(&path, &body).map(drop)
    }

    fn daemon<'a>(&self, world: &'a World) -> Result<&'a Daemon> {
        match self.party {
            Party::Client(index) => Ok(world.client(index)?),
            Party::Lsp => Ok(&world.lsp),
            Party::Peer => Err(anyhow!("the ordinary node is in no factory")),
        }
    }

    /// What its process says of it.
    ///
    /// # Errors
    /// If it shows no such exit.
    pub fn exit(&self, world: &World) -> Result<Exit> {
        let exits = self.daemon(world)?.factory(&self.id)?.exits;
        let found = exits.into_iter().find(|exit| exit.node_id.as_ref() == Some(&self.node_id));
        found.ok_or_else(|| anyhow!("{} shows no exit of {}", self.party, self.node_id))
    }

    /// Waits until all that is due in the next block is published, and says how far the exit is.
    ///
    /// # Errors
    /// If something due does not come.
    pub fn settle(&self, world: &World) -> Result<Stand> {
        let daemon = self.daemon(world)?;
        daemon.wait_synced(&world.bitcoind)?;
        wait::until(&format!("what is due of the exit of {}", self.party), PROMPT, || self.look(world))
    }

    fn look(&self, world: &World) -> Result<Seen<Stand>> {
        let (chain, exit) = (&world.bitcoind, self.exit(world)?);
        let tip = chain.height()?;
        match exit.phase.as_str() {
            "done" => return Ok(Seen::Done(Stand::Done)),
            "waiting_for_coin" | "over_budget" => return Ok(Seen::Done(Stand::Stuck)),
            _ => {}
        }
        for step in &exit.steps {
            if chain.confirmed(step.txid)?.is_some() {
                continue;
            }
            let Some(earliest) = step.earliest_height else {
                return Ok(Seen::NotYet(format!("its parent is not known yet: {exit:?}")));
            };
            if tip + 1 < earliest {
                return Ok(Seen::Done(Stand::Idle(earliest - 1 - tip)));
            }
            return offered(world, step.txid, &exit);
        }
        let Some(commitment) = exit.commitment_txid else {
            // If the other side's commitment was faster, ours has no place in the mempool; this exit shows the one
            // that confirms.
            let theirs =
                exit.steps.last().map(|step| self.commitment_below(world, step.txid)).transpose()?.flatten();
            let missing = || Seen::NotYet(format!("no commitment: {exit:?}"));
            return Ok(theirs.map_or_else(missing, |txid| Seen::Done(Stand::Offered(txid))));
        };
        match chain.confirmed(commitment)? {
            None => offered(world, commitment, &exit),
            Some(there) => self.sweep(world, &exit, there.height, &there.tx),
        }
    }

    /// A commitment in the mempool, whoever's, on an output of the path's last transaction.
    fn commitment_below(&self, world: &World, last: Txid) -> Result<Option<Txid>> {
        let Some(leaf) = world.bitcoind.confirmed(last)? else { return Ok(None) };
        for vout in (0u32..).zip(&leaf.tx.output).map(|(vout, _)| vout) {
            if let Some(spender) = world.bitcoind.mempool_spender(OutPoint::new(last, vout))? {
                let tx = world.bitcoind.transaction(spender)?;
                // Not the child that pays for the path.
                if tx.is_some_and(|tx| tx.input.len() == 1) {
                    return Ok(Some(spender));
                }
            }
        }
        Ok(None)
    }

    /// The commitment is confirmed at `height`: its delay runs, then it is swept.
    fn sweep(&self, world: &World, exit: &Exit, height: u32, tx: &Transaction) -> Result<Seen<Stand>> {
        let (chain, txid) = (&world.bitcoind, tx.compute_txid());
        let tip = chain.height()?;
        // The sweep can be in the block at this height.
        let from = height + TO_SELF_DELAY;
        let mut open = 0;
        for (vout, output) in (0u32..).zip(&tx.output) {
            let outpoint = OutPoint::new(txid, vout);
            if output.value.to_sat() < 330 || chain.unspent(outpoint)?.is_none() {
                continue;
            }
            open += 1;
            if let Some(sweep) = chain.mempool_spender(outpoint)? {
                return Ok(Seen::Done(Stand::Offered(sweep)));
            }
        }
        if tip + 1 < from {
            return Ok(Seen::Done(Stand::Idle(from - 1 - tip)));
        }
        // Two outputs, of which the other side's may wait for a side that is dead.
        let swept = self.daemon(world)?.balance()?.lightning.pending_sweep_sat == 0 || open < 2;
        // LDK hands the output out with the block in which the delay ends, or the next one.
        let late = tip > from + 1 && !swept;
        Ok(if late { Seen::NotYet(format!("no sweep: {exit:?}")) } else { Seen::Done(Stand::Idle(1)) })
    }
}

/// A transaction that is due: in the mempool, with a child that pays for it.
fn offered(world: &World, txid: Txid, exit: &Exit) -> Result<Seen<Stand>> {
    let missing = |what: &str| Ok(Seen::NotYet(format!("{txid} {what}: {exit:?}")));
    let Some(tx) = world.bitcoind.transaction(txid)? else { return missing("is due") };
    match world.bitcoind.mempool_spender(anchor_of(&tx)?)? {
        Some(_) => Ok(Seen::Done(Stand::Offered(txid))),
        None => missing("has no child"),
    }
}

/// The pay-to-anchor output of a transaction.
fn anchor_of(tx: &Transaction) -> Result<OutPoint> {
    let anchor = tx.output.iter().position(|output| output.script_pubkey.as_bytes() == PAY_TO_ANCHOR);
    let anchor = anchor.ok_or_else(|| anyhow!("{} has no anchor", tx.compute_txid()))?;
    Ok(OutPoint::new(tx.compute_txid(), u32::try_from(anchor)?))
}

/// Mines until all these exits are done. `at_block` is called before every block, with how far each exit is.
///
/// # Errors
/// If something due does not come, an exit waits for its user, or it takes more than `limit` blocks.
pub fn drive(
    world: &World,
    exits: &[Leaving],
    limit: u32,
    at_block: &mut dyn FnMut(&[Stand]) -> Result<()>,
) -> Result<()> {
    let end = world.bitcoind.height()? + limit;
    loop {
        world.sync()?;
        let stands = exits.iter().map(|exit| exit.settle(world)).collect::<Result<Vec<_>>>()?;
        at_block(&stands)?;
        let mut blocks = u32::MAX;
        for (stand, exit) in stands.iter().zip(exits) {
            match stand {
                Stand::Idle(idle) => blocks = blocks.min(*idle),
                Stand::Offered(_) => blocks = 1,
                Stand::Stuck => bail!("it waits for its user: {:?}", exit.exit(world)?),
                Stand::Done => {}
            }
        }
        if blocks == u32::MAX {
            return Ok(());
        }
        if world.bitcoind.height()? >= end {
            bail!("not done after {limit} blocks: {stands:?}");
        }
        world.bitcoind.mine(blocks)?;
    }
}

/// Mines until an exit has its commitment in the chain, for `limit` blocks at most; that one and its height.
///
/// # Errors
/// If something due does not come, or it takes too many blocks.
pub fn to_commitment(world: &World, leaving: &Leaving, limit: u32) -> Result<(Transaction, u32)> {
    let end = world.bitcoind.height()? + limit;
    loop {
        let exit = leaving.exit(world)?;
        if let (Some(txid), Some(height)) = (exit.commitment_txid, exit.commitment_height) {
            let there = world.bitcoind.confirmed(txid)?.ok_or_else(|| anyhow!("{txid} is not confirmed"))?;
            return Ok((there.tx, height));
        }
        match leaving.settle(world)? {
            Stand::Idle(blocks) => world.bitcoind.mine(blocks)?,
            Stand::Offered(_) => world.bitcoind.mine(1)?,
            stand => bail!("{stand:?}: {exit:?}"),
        };
        world.sync()?;
        if world.bitcoind.height()? >= end {
            bail!("no commitment after {limit} blocks: {exit:?}");
        }
    }
}

/// Mines until no running party waits for a sweep or a confirmation, and the mempool is empty.
///
/// # Errors
/// If it takes too many blocks.
pub fn rest(world: &World) -> Result<()> {
    let end = world.bitcoind.height()? + SWEEP_WITHIN;
    loop {
        world.sync()?;
        let mut waiting = Vec::new();
        let lsp: &Daemon = &world.lsp;
        let daemons = std::iter::once(lsp).chain(world.clients.iter().map(|client| -> &Daemon { client }));
        for daemon in daemons.filter(|daemon| daemon.is_up()) {
            let balance = daemon.balance()?;
            if balance.lightning.pending_sweep_sat > 0 || balance.onchain.unconfirmed_sat > 0 {
                waiting.push(format!("{} {balance:?}", daemon.name()));
            }
        }
        if waiting.is_empty() && world.bitcoind.mempool()?.is_empty() {
            return Ok(());
        }
        if world.bitcoind.height()? > end {
            bail!("money is on its way still: {waiting:?}");
        }
        world.bitcoind.mine(STRIDE)?;
    }
}

/// As [`rest`], and until `check` finds what everybody holds to be right. Between a commitment and its sweep there are
/// moments in which a process that has just come back shows the money nowhere.
///
/// # Errors
/// If it takes too many blocks: what `check` said last.
pub fn rest_until(world: &World, mut check: impl FnMut(&Snapshot) -> Result<()>) -> Result<Snapshot> {
    let end = world.bitcoind.height()? + SWEEP_WITHIN;
    loop {
        rest(world)?;
        match Snapshot::take(world).and_then(|held| check(&held).map(|()| held)) {
            Ok(held) => return Ok(held),
            Err(error) if world.bitcoind.height()? > end => return Err(error),
            Err(_) => world.bitcoind.mine(STRIDE)?,
        };
    }
}

/// The child that carried a confirmed transaction.
///
/// # Errors
/// If there is none.
pub fn child_of(world: &World, parent: Txid) -> Result<Transaction> {
    let there = world.bitcoind.confirmed(parent)?.ok_or_else(|| anyhow!("{parent} is not confirmed"))?;
    // Version 3 and no fee of its own: in the same block, right behind it.
    let block = world.bitcoind.block(there.height)?;
    let anchor = anchor_of(&there.tx)?;
    let child = block.into_iter().find(|tx| tx.input.iter().any(|input| input.previous_output == anchor));
    child.ok_or_else(|| anyhow!("{parent} has no child in its block"))
}
