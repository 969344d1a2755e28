//! A factory's signed transactions, read from the disk of an LSP that does not run: what it could publish whenever it
//! likes, and what a leaf's way to the chain has to look like.

use anyhow::{bail, Context, Result};
use bitcoin::{OutPoint, Transaction, Txid};
use factory_core::record::{LspFactoryRecord, SignedPath};
use factory_core::transaction::SignedTx;
use rusqlite::{params, Connection};
use serde::de::DeserializeOwned;
use serde::Deserialize;

use crate::cpfp::{Purse, CHILD_FEE};
use crate::types::Exit;
use crate::wait::{self, Seen};
use crate::world::PATIENCE;
use crate::{Bitcoind, Daemon, Lsp};

/// Reads the tree of factory `id` from the store of a stopped LSP.
///
/// # Errors
/// If the LSP runs, or the record is not there or not readable.
pub fn tree_of(lsp: &Lsp, id: &str) -> Result<LspFactoryRecord> {
    #[derive(Deserialize)]
    struct Stored {
        record: Record,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Record {
        Lsp(Box<LspFactoryRecord>),
    }
    if lsp.is_up() {
        bail!("the LSP has to be stopped first: its store is its own while it runs");
    }
    let file = lsp.data_dir().join("node.sqlite");
    let store = Connection::open(&file).with_context(|| file.display().to_string())?;
    let bytes: Vec<u8> = store.query_row(
        "SELECT value FROM kv WHERE primary_namespace = 'factories' AND key = ?1",
        params![id],
        |row| row.get(0),
    )?;
    let Stored { record: Record::Lsp(record) } = stored_json(&bytes)?;
    Ok(*record)
}

/// A record as the store has it: JSON, and behind it its checksum, which is the store's own matter.
pub(crate) fn stored_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter();
    Ok(values.next().context("an empty record")??)
}

/// Publishes transactions of a tree, each with a child of its own.
pub struct Stranger {
    purse: Purse,
    /// Fees of the children that were accepted, sat.
    pub fees_sat: u64,
}

impl Stranger {
    /// One that can publish `transactions` transactions. Mines blocks with fees of bitcoind's own wallet.
    ///
    /// # Errors
    /// If bitcoind cannot pay for them.
    pub fn new(bitcoind: &Bitcoind, transactions: usize) -> Result<Self> {
        Ok(Self { purse: Purse::fill(bitcoind, transactions)?, fees_sat: 0 })
    }

    /// Publishes a transaction.
    ///
    /// # Errors
    /// If bitcoind refuses it: why. It has cost nothing then.
    pub fn publish(&mut self, bitcoind: &Bitcoind, tx: &SignedTx) -> Result<()> {
        let child = self.purse.child(&tx.tx, tx.anchor_vout())?;
        if let Err(refused) = bitcoind.submit_package(&[&tx.tx, &child]) {
            self.purse.give_back(&child)?;
            return Err(refused);
        }
        self.fees_sat += CHILD_FEE;
        Ok(())
    }
}

/// Where a leaf's transactions lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the channels.
    Channels,
    /// To the clients, by a distribution.
    Distribution,
}

/// The first transaction of the way that is not confirmed, and the height of the block in which it may be; none at the
/// end of the way.
///
/// # Errors
/// If bitcoind does not answer.
pub fn next_of(bitcoind: &Bitcoind, path: &SignedPath, way: Way) -> Result<Option<(Txid, u32)>> {
    let start = usize::try_from(path.leaf_start)?;
    for (index, tx) in path.path.iter().enumerate() {
        let rival = index.checked_sub(start).and_then(|number| path.distributions.get(number));
        if let Some(rival) = rival {
            if bitcoind.confirmed(rival.txid())?.is_some() {
                return Ok(None);
            }
        }
        if bitcoind.confirmed(tx.txid())?.is_some() {
            continue;
        }
        let next = rival.filter(|_| way == Way::Distribution).unwrap_or(tx);
        let parent = next.parent().context("a tree transaction has an input")?.txid;
        let parent = bitcoind.confirmed(parent)?.context("its parent is confirmed")?.height;
        let ready = parent + u32::from(next.relative_delay).max(1);
        // A lock time is the last height at which the transaction is not valid.
        return Ok(Some((next.txid(), ready.max(next.tx.lock_time.to_consensus_u32() + 1))));
    }
    Ok(None)
}

/// Waits until a process has seen the best block and has published what may be in the next one. A leaf whose exit says
/// that it waits for a coin is not waited for.
///
/// # Errors
/// If something due is not published within a minute.
pub fn wait_published(
    bitcoind: &Bitcoind,
    daemon: &Daemon,
    id: &str,
    paths: &[SignedPath],
    way: Way,
) -> Result<()> {
    daemon.wait_synced(bitcoind)?;
    let next_block = bitcoind.height()? + 1;
    let mut due = Vec::new();
    for path in paths {
        due.extend(next_of(bitcoind, path, way)?.filter(|(_, height)| *height <= next_block).map(|d| d.0));
    }
    wait::until(&format!("{} to publish what is due", daemon.name()), PATIENCE, || {
        let mempool = bitcoind.mempool()?;
        let exits: Vec<Exit> = daemon.factory(id)?.exits;
        let missing: Vec<&Txid> = due.iter().filter(|txid| !mempool.contains(txid)).collect();
        let without_coin = |txid: &Txid| {
            exits
                .iter()
                .any(|exit| exit.needs_coin_sat.is_some() && exit.steps.iter().any(|s| s.txid == *txid))
        };
        Ok(if missing.iter().all(|txid| without_coin(txid)) {
            Seen::Done(())
        } else {
            Seen::NotYet(format!("{missing:?} are not in the mempool; {exits:?}"))
        })
    })
}

/// The transaction of blocks `first..=last` that spends an output.
///
/// # Errors
/// If there is none.
pub fn spender(bitcoind: &Bitcoind, outpoint: OutPoint, first: u32, last: u32) -> Result<Transaction> {
    for height in first..=last {
        let spends = |tx: &Transaction| tx.input.iter().any(|input| input.previous_output == outpoint);
        if let Some(tx) = bitcoind.block(height)?.into_iter().find(spends) {
            return Ok(tx);
        }
    }
    bail!("{outpoint} is not spent in blocks {first}..={last}")
}

/// The output of a transaction that is worth this much, sat.
///
/// # Errors
/// If there is none.
pub fn output_worth(tx: &Transaction, sat: u64) -> Result<OutPoint> {
    let vout = tx.output.iter().position(|output| output.value.to_sat() == sat);
    let vout = vout.with_context(|| format!("no output is worth {sat} sat: {tx:?}"))?;
    Ok(OutPoint::new(tx.compute_txid(), u32::try_from(vout)?))
}

/// Waits until a confirmed output is spent, by a transaction of the mempool at least.
///
/// # Errors
/// If it is not within a minute.
pub fn wait_spent(bitcoind: &Bitcoind, outpoint: OutPoint) -> Result<()> {
    wait::until(&format!("{outpoint} to be spent"), PATIENCE, || {
        let spent = bitcoind.unspent(outpoint)?.is_none() || bitcoind.mempool_spender(outpoint)?.is_some();
        Ok(if spent { Seen::Done(()) } else { Seen::not_yet("unspent") })
    })
}
