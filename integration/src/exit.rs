//! One client's unilateral exit: mined block by block as it becomes due, and checked in the chain.

use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use bitcoin::{OutPoint, Sequence, Transaction, Txid};

use crate::ledger::{check_conserved, Snapshot};
use crate::types::TreeTx;
use crate::wait::{self, Seen};
use crate::world::factory_channel;
use crate::{Client, Daemon, World};

/// How long the client may take to publish what is due.
const PROMPT: Duration = Duration::from_secs(60);
/// Blocks after the commitment within which all money has to be in the wallet: the commitment's delay, and as much
/// again for the sweep and its depth.
const SWEEP_WITHIN: u32 = 288;
/// Blocks mined at a time while the commitment's delay runs.
const STRIDE: u32 = 12;

/// An exit that is done, as the chain has it.
#[derive(Clone, Debug)]
pub struct ExitReport {
    /// The path's transactions and their heights, in order.
    pub path: Vec<(Txid, u32)>,
    /// The commitment transaction and its height.
    pub commitment: (Txid, u32),
    /// What the LSP's side of the commitment got, sat.
    pub remote_sat: u64,
    /// All fees in the blocks of the exit, sat.
    pub fees_sat: u64,
    /// The client's coins before and after, sat.
    pub wallet_sat: (u64, u64),
}

/// Lets client `index` leave factory `id`, mines what it publishes, and returns when its money is in its own wallet.
/// Nothing else may be going on. `progress` is told each step.
///
/// # Errors
/// If a transaction of the path does not come when it is due, comes early, spends something else or has another
/// relative delay than announced; or if the money does not arrive.
pub fn drive(world: &World, index: usize, id: &str, progress: &mut dyn FnMut(String)) -> Result<ExitReport> {
    let client = world.client(index)?;
    let channel = factory_channel(&client.channels()?, id, world.lsp.node_id())?;
    let funding: OutPoint = channel.funding.ok_or_else(|| anyhow!("the channel has no funding"))?.into();
    let wallet_before = client.balance()?.onchain.confirmed_sat;
    let start = world.bitcoind.height()?;
    let path = client.factory(id)?.tree;
    if path.is_empty() {
        bail!("the client shows no path");
    }
    client.exit(id)?;

    let mut confirmed: Vec<(Txid, u32)> = Vec::new();
    for step in &path {
        let height =
            confirm_step(world, client, step).with_context(|| format!("{} {}", step.kind, step.txid))?;
        progress(format!("{} of level {} confirmed at {height}: {}", step.kind, step.level, step.txid));
        confirmed.push((step.txid, height));
    }
    let last = confirmed.last().map(|(txid, _)| *txid);
    if last != Some(funding.txid) {
        bail!("the path ends in {last:?}, the channel is funded by {funding}");
    }

    let commitment = wait::until("the commitment transaction", PROMPT, || {
        let exits = client.factory(id)?.exits;
        match exits.first().and_then(|exit| exit.commitment_txid) {
            Some(txid) => Ok(Seen::Done(txid)),
            None => Ok(Seen::NotYet(format!("{exits:?}"))),
        }
    })?;
    let tx = world.bitcoind.wait_seen(commitment, PROMPT)?;
    if tx.input.first().map(|input| input.previous_output) != Some(funding) {
        bail!("commitment {commitment} does not spend the channel's output {funding}");
    }
    world.mine_for(client, 1)?;
    let commitment_height =
        world.bitcoind.confirmed(commitment)?.ok_or_else(|| anyhow!("{commitment} is not mined"))?.height;
    progress(format!("commitment confirmed at {commitment_height}: {commitment}"));

    let remote_sat = remote_sat(&tx, channel.capacity_sat, channel.local_msat)?;
    mine_until(world, client, "the client's wallet to hold its due", || {
        let report = ExitReport {
            path: confirmed.clone(),
            commitment: (commitment, commitment_height),
            remote_sat,
            fees_sat: world.bitcoind.fees(start + 1, world.bitcoind.height()?)?,
            wallet_sat: (wallet_before, client.balance()?.onchain.confirmed_sat),
        };
        report.check_wallet(channel.capacity_sat)?;
        Ok(report)
    })
}

/// Waits for one transaction of the path in the block in which it is due, mines it and checks it. Returns its height.
fn confirm_step(world: &World, client: &Client, step: &TreeTx) -> Result<u32> {
    let parent = world.bitcoind.confirmed(step.parent_txid)?;
    let parent = parent.ok_or_else(|| anyhow!("its parent {} is not confirmed", step.parent_txid))?.height;
    let due = parent + u32::from(step.delay_blocks).max(1);
    if world.bitcoind.height()? + 2 <= due {
        world.bitcoind.mine_to(due - 2)?;
        client.wait_synced(&world.bitcoind)?;
        if world.bitcoind.transaction(step.txid)?.is_some() {
            bail!("it was seen at height {}, two blocks before it is due at {due}", due - 2);
        }
        world.mine_for(client, 1)?;
    }
    let expected = due.max(world.bitcoind.height()? + 1);
    let tx = world.bitcoind.wait_seen(step.txid, PROMPT)?;
    let input = tx.input.first().ok_or_else(|| anyhow!("it has no input"))?;
    if input.previous_output != OutPoint::new(step.parent_txid, step.vout) {
        bail!("it spends {}, announced {}:{}", input.previous_output, step.parent_txid, step.vout);
    }
    let delay = Sequence::from_height(step.delay_blocks);
    if step.delay_blocks > 0 && input.sequence != delay {
        bail!("its sequence is {}, its delay {} blocks", input.sequence, step.delay_blocks);
    }
    world.mine_for(client, 1)?;
    let height =
        world.bitcoind.confirmed(step.txid)?.ok_or_else(|| anyhow!("it is not in the block"))?.height;
    if height != expected {
        bail!("it confirmed at {height}, expected {expected}");
    }
    Ok(height)
}

/// Mines until the money of a published channel is where it belongs: until `arrived` returns without an error, with
/// nothing of this node on its way. Between two of its accounts (channel, sweep, wallet) a node shows money in neither
/// for a moment; then this waits, and mines nothing.
///
/// # Errors
/// If the money does not get there.
pub fn mine_until<T>(
    world: &World,
    daemon: &Daemon,
    what: &str,
    mut arrived: impl FnMut() -> Result<T>,
) -> Result<T> {
    let end = world.bitcoind.height()? + SWEEP_WITHIN;
    loop {
        let there = wait::until(what, PROMPT, || {
            let balance = daemon.balance()?;
            let moving = balance.lightning.pending_sweep_sat > 0 || balance.onchain.unconfirmed_sat > 0;
            match moving || !world.bitcoind.mempool()?.is_empty() {
                true => Ok(Seen::Done(None)),
                false => Ok(Seen::Done(Some(arrived()?))),
            }
        })?;
        if let Some(value) = there {
            return Ok(value);
        }
        if world.bitcoind.height()? > end {
            bail!("no end of waiting for {what} in {SWEEP_WITHIN} blocks: {:?}", daemon.balance()?);
        }
        world.mine_for(daemon, STRIDE)?;
    }
}

/// Mines until the LSP's share of a channel that a client published is confirmed in the LSP's wallet: until nothing is
/// missing of what all held `before` but the fees in the blocks. Returns what they hold then.
///
/// # Errors
/// If it does not get there.
pub fn settle_lsp(world: &World, before: &Snapshot) -> Result<Snapshot> {
    mine_until(world, &world.lsp, "the LSP's share of the published channel", || {
        world.sync()?;
        let after = Snapshot::take(world)?;
        check_conserved(world, before, &after)?;
        Ok(after)
    })
}

/// What the commitment pays the other side: the output worth its share. (The own share is in a script that only the
/// client can name.)
fn remote_sat(commitment: &Transaction, capacity_sat: u64, local_msat: u64) -> Result<u64> {
    let due = (capacity_sat * 1000 - local_msat) / 1000;
    let paid = commitment.output.iter().map(|output| output.value.to_sat()).find(|sat| *sat == due);
    paid.ok_or_else(|| anyhow!("no output of the commitment pays the LSP its {due} sat: {commitment:?}"))
}

impl ExitReport {
    /// Checks that the client's wallet got everything: its share of the channel, less the fees of the blocks.
    ///
    /// # Errors
    /// If it holds another sum.
    pub fn check_wallet(&self, capacity_sat: u64) -> Result<()> {
        let (before, after) = self.wallet_sat;
        let due = before + capacity_sat - self.remote_sat - self.fees_sat;
        if after != due {
            bail!("the client's wallet holds {after} sat, due {due}: {self:?}");
        }
        Ok(())
    }
}
