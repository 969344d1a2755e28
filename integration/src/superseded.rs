//! What a cheater keeps: paths of states that have been superseded, and old copies of data folders.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, ensure, Context, Result};
use bitcoin::{OutPoint, Transaction};
use factory_core::advance::LspAdvanceRecord;
use factory_core::record::SignedNode;

use crate::cpfp::{Purse, CHILD_FEE};
use crate::watcher::ExitFile;
use crate::World;

/// A leaf's path, complete, as it was the newest one at some time.
#[derive(Clone, Debug)]
pub struct OldPath(Vec<Transaction>);

/// Who publishes old paths, with coins of its own.
pub struct Cheater {
    purse: Purse,
    /// Fees of what it has published, sat.
    pub fees_sat: u64,
}

/// Relative delay of a tree transaction, blocks.
fn delay(tx: &Transaction) -> u32 {
    let sequence = tx.input.first().map_or(0, |input| input.sequence.to_consensus_u32());
    if sequence & (1 << 31) == 0 {
        sequence & 0xffff
    } else {
        0
    }
}

impl OldPath {
    /// A running client's path as it is now.
    ///
    /// # Errors
    /// If the client does not hand it out.
    pub fn of(world: &World, client: usize) -> Result<Self> {
        let file = world.path().join(format!("old-path-{:08x}", rand::random::<u32>()));
        Ok(Self(ExitFile::export(world.client(client)?, &file)?.path))
    }

    /// The path of the state that the LSP has completed and hidden, on the switch `lsp.advance.hides`; its leaf is that of
    /// `client`.
    ///
    /// # Errors
    /// If it has hidden none.
    pub fn hidden(world: &World, client: usize) -> Result<Self> {
        let file = world.lsp.faults().folder().join("hidden");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let record: LspAdvanceRecord = serde_json::from_str(text.lines().last().context("nothing hidden")?)?;
        let mut path = Self::of(world, client)?.0;
        // Above several leaves all channels keep their scripts.
        let script = |tx: &Transaction| tx.output.first().map(|output| output.script_pubkey.clone());
        let own = path.last().and_then(script);
        let leaves: Vec<_> = record.nodes.iter().filter(|node| !node.distributions.is_empty()).collect();
        let is_own = |node: &&&SignedNode| node.txs.last().and_then(|signed| script(&signed.tx)) == own;
        let leaf = if leaves.len() > 1 { leaves.iter().find(is_own) } else { leaves.first() };
        let first = leaf.context("a leaf")?.first;
        let covering = || record.nodes.iter().filter(|node| (node.first..node.end).contains(&first));
        path.truncate(path.len() - covering().map(|node| node.txs.len()).sum::<usize>());
        path.extend(covering().flat_map(|node| &node.txs).map(|signed| signed.tx.clone()));
        Ok(Self(path))
    }

    /// Its transactions, in order.
    pub fn transactions(&self) -> &[Transaction] {
        &self.0
    }

    /// Its last transaction: the state that has the channels.
    ///
    /// # Errors
    /// If it is empty.
    pub fn state(&self) -> Result<&Transaction> {
        self.0.last().context("an empty path")
    }

    /// The output of the leaf's first channel.
    ///
    /// # Errors
    /// If it is empty.
    pub fn place(&self) -> Result<OutPoint> {
        Ok(OutPoint::new(self.state()?.compute_txid(), 0))
    }

    /// The next transaction that is not confirmed, and the first block that it can be in.
    ///
    /// # Errors
    /// If its parent is not confirmed.
    pub fn next(&self, world: &World) -> Result<Option<(&Transaction, u32)>> {
        for tx in &self.0 {
            if world.bitcoind.confirmed(tx.compute_txid())?.is_some() {
                continue;
            }
            let parent: OutPoint = tx.input.first().context("no input")?.previous_output;
            let there = world.bitcoind.confirmed(parent.txid)?;
            let there = there.ok_or_else(|| anyhow!("{parent} is not confirmed"))?;
            return Ok(Some((tx, there.height + delay(tx).max(1))));
        }
        Ok(None)
    }
}

impl Cheater {
    /// One with coins for so many transactions. Mines blocks with fees of bitcoind's own wallet.
    ///
    /// # Errors
    /// If bitcoind cannot pay for them.
    pub fn new(world: &World, transactions: usize) -> Result<Self> {
        let purse = Purse::fill(&world.bitcoind, transactions)?;
        world.sync()?;
        Ok(Self { purse, fees_sat: 0 })
    }

    /// Offers one transaction of a path to the mempool.
    ///
    /// # Errors
    /// If it is refused; it has cost nothing then.
    pub fn offer(&mut self, world: &World, tx: &Transaction) -> Result<()> {
        let child = self.purse.child(tx, u32::try_from(tx.output.len() - 1)?)?;
        if let Err(refused) = world.bitcoind.submit_package(&[tx, &child]) {
            self.purse.give_back(&child)?;
            return Err(refused);
        }
        self.fees_sat += CHILD_FEE;
        Ok(())
    }

    /// Publishes what of a path is not confirmed, up to its transaction `until`, each in the first block that it can be
    /// in; who runs sees every block, and what others offer first is left to them.
    ///
    /// # Errors
    /// If one of them does not confirm then.
    pub fn publish(&mut self, world: &World, path: &OldPath, until: usize) -> Result<()> {
        let last = path.0.get(until).context("no such transaction")?.compute_txid();
        while world.bitcoind.confirmed(last)?.is_none() {
            let (tx, due) = path.next(world)?.context("it is confirmed")?;
            let txid = tx.compute_txid();
            world.sync()?;
            if world.bitcoind.height()? + 1 < due {
                world.bitcoind.mine_to(due - 1)?;
                world.sync()?;
            }
            if world.bitcoind.transaction(txid)?.is_none() {
                self.offer(world, tx)?;
            }
            world.mine(1)?;
            ensure!(world.bitcoind.confirmed(txid)?.is_some(), "{txid} has not confirmed");
        }
        Ok(())
    }
}

/// A copy of a data folder.
#[derive(Debug)]
pub struct OldCopy {
    of: PathBuf,
    copy: tempfile::TempDir,
}

/// Copies a folder with all that is in it.
///
/// # Errors
/// If something cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

impl OldCopy {
    /// Copies the folder of a process that does not run.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn take(data_dir: &Path) -> Result<Self> {
        let old = Self { of: data_dir.to_owned(), copy: tempfile::tempdir()? };
        copy(&old.of, old.copy.path())?;
        Ok(old)
    }

    /// Puts it back in the place of what is there now.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put_back(&self) -> Result<()> {
        fs::remove_dir_all(&self.of)?;
        copy(self.copy.path(), &self.of)
    }
}
