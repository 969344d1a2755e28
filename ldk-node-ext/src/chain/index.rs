//! What of the factories is on the chain: confirmed tree transactions and spent outpoints.
//!
//! Only watched things are kept. The index survives a restart with the block it was made at, so that
//! the blocks in between are read again; what a reorganization takes off the chain is forgotten.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bitcoin::{Block, BlockHash, OutPoint, TxOut, Txid};
use factory_core::faults::switch;
use lightning::chain::BlockLocator;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::store::{records, Store};
use crate::util::lock;

const NAMESPACE: &str = "chain_index";
const KEY: &str = "state";
const VERSION: u32 = 1;

/// A transaction's place in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confirmation {
    pub(crate) height: u32,
    pub(crate) block: BlockHash,
}

/// A confirmed spend of a watched outpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spend {
    pub(crate) txid: Txid,
    pub(crate) height: u32,
}

/// The index on disk.
#[derive(Serialize, Deserialize)]
pub(crate) struct Stored {
    height: u32,
    hash: BlockHash,
    confirmed: Vec<(Txid, Confirmation)>,
    spent: Vec<(OutPoint, Spend)>,
    #[serde(default)]
    false_fundings: Vec<OutPoint>,
}

/// What a block that was read again has of what is watched.
#[derive(Default)]
pub(crate) struct Found {
    confirmed: Vec<(Txid, Confirmation)>,
    spent: Vec<(OutPoint, Spend)>,
}

struct Inner {
    height: u32,
    hash: BlockHash,
    /// How often blocks were taken off the chain since the start.
    reorganizations: u64,
    txids: HashSet<Txid>,
    outpoints: HashSet<OutPoint>,
    confirmed: HashMap<Txid, Confirmation>,
    spent: HashMap<OutPoint, Spend>,
    /// What the funding outputs have to be.
    fundings: HashMap<OutPoint, TxOut>,
    /// Funding outputs whose transaction is confirmed, with something else in their place.
    false_fundings: HashSet<OutPoint>,
}

/// See the module's description.
pub(crate) struct ChainIndex {
    inner: Mutex<Inner>,
    store: Arc<Store>,
}

impl ChainIndex {
    /// Opens the index; a new one starts at `tip`.
    pub(crate) fn open(store: Arc<Store>, tip: BlockLocator) -> Result<Self, Error> {
        let stored = records::get::<Stored>(&*store, NAMESPACE, KEY, VERSION)?.unwrap_or(Stored {
            height: tip.height,
            hash: tip.block_hash,
            confirmed: Vec::new(),
            spent: Vec::new(),
            false_fundings: Vec::new(),
        });
        let inner = Inner {
            height: stored.height,
            hash: stored.hash,
            reorganizations: 0,
            txids: stored.confirmed.iter().map(|(t, _)| *t).collect(),
            outpoints: stored.spent.iter().map(|(o, _)| *o).collect(),
            confirmed: stored.confirmed.into_iter().collect(),
            spent: stored.spent.into_iter().collect(),
            fundings: HashMap::new(),
            false_fundings: stored.false_fundings.into_iter().collect(),
        };
        let index = Self { inner: Mutex::new(inner), store };
        index.persist(&lock(&index.inner))?;
        Ok(index)
    }

    fn persist(&self, inner: &Inner) -> Result<(), Error> {
        let stored = Stored {
            height: inner.height,
            hash: inner.hash,
            confirmed: inner.confirmed.iter().map(|(k, v)| (*k, *v)).collect(),
            spent: inner.spent.iter().map(|(k, v)| (*k, *v)).collect(),
            false_fundings: inner.false_fundings.iter().copied().collect(),
        };
        records::put(&*self.store, NAMESPACE, KEY, VERSION, &stored)
    }

    /// The block this index has seen last.
    pub(crate) fn best_block(&self) -> BlockLocator {
        let inner = lock(&self.inner);
        BlockLocator::new(inner.hash, inner.height)
    }

    /// Watches transactions and outpoints from the next block on.
    pub(crate) fn watch(
        &self,
        txids: impl IntoIterator<Item = Txid>,
        outpoints: impl IntoIterator<Item = OutPoint>,
    ) {
        let mut inner = lock(&self.inner);
        inner.txids.extend(txids);
        inner.outpoints.extend(outpoints);
    }

    /// Says what a funding output has to be: a transaction of the right id but with something else there
    /// funds nothing, see [`Self::is_false`].
    pub(crate) fn expect_output(&self, outpoint: OutPoint, output: TxOut) {
        lock(&self.inner).fundings.insert(outpoint, output);
    }

    /// Whether a funding output turned out to be something else when its transaction confirmed.
    pub(crate) fn is_false(&self, outpoint: &OutPoint) -> bool {
        lock(&self.inner).false_fundings.contains(outpoint)
    }

    /// Where a watched transaction is confirmed.
    pub(crate) fn confirmation(&self, txid: &Txid) -> Option<Confirmation> {
        lock(&self.inner).confirmed.get(txid).copied()
    }

    /// The confirmed spend of a watched outpoint.
    pub(crate) fn spend(&self, outpoint: &OutPoint) -> Option<Spend> {
        lock(&self.inner).spent.get(outpoint).copied()
    }

    /// Confirmations of a height, the block itself counting as one.
    pub(crate) fn depth(&self, height: u32) -> u32 {
        (lock(&self.inner).height + 1).saturating_sub(height)
    }

    /// Takes in a block; returns the watched transactions that it confirms.
    pub(crate) fn connect(&self, block: &Block, height: u32) -> Vec<Txid> {
        let mut inner = lock(&self.inner);
        let hash = block.block_hash();
        let mut found = Vec::new();
        for tx in &block.txdata {
            let spends: Vec<OutPoint> =
                tx.input.iter().map(|i| i.previous_output).filter(|o| inner.outpoints.contains(o)).collect();
            let txid = tx.compute_txid();
            for outpoint in spends {
                inner.spent.insert(outpoint, Spend { txid, height });
            }
            if inner.txids.contains(&txid) {
                let wrong: Vec<OutPoint> = inner
                    .fundings
                    .iter()
                    .filter(|(o, want)| {
                        let vout = usize::try_from(o.vout).unwrap_or(usize::MAX);
                        o.txid == txid && tx.output.get(vout) != Some(*want)
                    })
                    .map(|(o, _)| *o)
                    .collect();
                for outpoint in wrong.into_iter().filter(|_| !switch("index.any_funding")) {
                    tracing::error!(%outpoint, height, "confirmed, but it is not the factory's funding output");
                    inner.false_fundings.insert(outpoint);
                }
                inner.confirmed.insert(txid, Confirmation { height, block: hash });
                found.push(txid);
            }
        }
        inner.height = height;
        inner.hash = hash;
        if let Err(e) = self.persist(&inner) {
            // The stored state is older then; after a restart the block is read again.
            tracing::error!(height, error = %e, "chain index not stored");
        }
        found
    }

    /// How often blocks were taken off the chain since the start.
    pub(crate) fn reorganizations(&self) -> u64 {
        lock(&self.inner).reorganizations
    }

    /// Looks through an old block for what is watched now; nothing is noted before [`Self::add`].
    pub(crate) fn look_again(&self, block: &Block, height: u32, found: &mut Found) {
        let inner = lock(&self.inner);
        let hash = block.block_hash();
        for tx in &block.txdata {
            let txid = tx.compute_txid();
            let spends = tx.input.iter().map(|i| i.previous_output).filter(|o| inner.outpoints.contains(o));
            found.spent.extend(spends.map(|outpoint| (outpoint, Spend { txid, height })));
            if inner.txids.contains(&txid) {
                found.confirmed.push((txid, Confirmation { height, block: hash }));
            }
        }
    }

    /// Notes what blocks that were read again had, unless the chain has been reorganized since: false then.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn add(&self, found: Found, reorganizations: u64) -> Result<bool, Error> {
        let mut inner = lock(&self.inner);
        if inner.reorganizations != reorganizations {
            return Ok(false);
        }
        inner.confirmed.extend(found.confirmed);
        inner.spent.extend(found.spent);
        self.persist(&inner)?;
        Ok(true)
    }

    /// Forgets everything above a block; returns the transactions that are off the chain now.
    pub(crate) fn disconnect(&self, fork: BlockLocator) -> Vec<Txid> {
        let mut inner = lock(&self.inner);
        let gone: Vec<Txid> =
            inner.confirmed.iter().filter(|(_, c)| c.height > fork.height).map(|(t, _)| *t).collect();
        if !switch("index.reorg_kept") {
            inner.confirmed.retain(|_, c| c.height <= fork.height);
            inner.spent.retain(|_, s| s.height <= fork.height);
        }
        inner.height = fork.height;
        inner.hash = fork.block_hash;
        inner.reorganizations = inner.reorganizations.wrapping_add(1);
        if let Err(e) = self.persist(&inner) {
            tracing::error!(height = fork.height, error = %e, "chain index not stored");
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::constants::genesis_block;
    use bitcoin::hashes::Hash;
    use bitcoin::{absolute, transaction, Network, Transaction, TxIn};

    fn spending(outpoint: OutPoint) -> Transaction {
        Transaction {
            version: transaction::Version(3),
            lock_time: absolute::LockTime::ZERO,
            input: vec![TxIn { previous_output: outpoint, ..Default::default() }],
            output: vec![],
        }
    }

    #[test]
    fn a_transaction_without_the_funding_output_funds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let genesis = genesis_block(Network::Regtest);
        let tip = BlockLocator::new(genesis.block_hash(), 0);
        let index = ChainIndex::open(Arc::new(Store::open(&dir.path().join("db")).unwrap()), tip).unwrap();
        let output =
            TxOut { value: bitcoin::Amount::from_sat(1_000), script_pubkey: bitcoin::ScriptBuf::new() };
        let tx = Transaction { output: vec![output.clone()], ..spending(OutPoint::null()) };
        let txid = tx.compute_txid();
        let block = Block { txdata: vec![tx], ..genesis };
        let at = |vout| OutPoint { txid, vout };
        index.watch([txid], []);
        let more = TxOut { value: bitcoin::Amount::from_sat(1_001), ..output.clone() };
        index.expect_output(at(0), output.clone());
        index.expect_output(at(1), output);
        assert_eq!(index.connect(&block, 1), [txid]);
        assert!(!index.is_false(&at(0)), "what is there is believed");
        assert!(index.is_false(&at(1)), "there is no such output");
        index.expect_output(at(0), more);
        index.connect(&block, 1);
        assert!(index.is_false(&at(0)), "one satoshi is missing");
    }

    #[test]
    fn a_reorganization_and_a_restart_leave_the_truth() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let genesis = genesis_block(Network::Regtest);
        let tip = BlockLocator::new(genesis.block_hash(), 0);
        let funding = OutPoint { txid: Txid::from_byte_array([1; 32]), vout: 0 };
        let tx = spending(funding);
        let block = Block { txdata: vec![tx.clone()], ..genesis };
        {
            let index = ChainIndex::open(Arc::new(Store::open(&path).unwrap()), tip).unwrap();
            index.watch([tx.compute_txid()], [funding]);
            assert_eq!(index.connect(&block, 1), [tx.compute_txid()]);
            assert_eq!(index.depth(1), 1);
        }
        let index = ChainIndex::open(Arc::new(Store::open(&path).unwrap()), tip).unwrap();
        assert_eq!(index.best_block().height, 1, "the stored block, not the tip given");
        assert_eq!(index.confirmation(&tx.compute_txid()).unwrap().height, 1);
        assert_eq!(index.spend(&funding), Some(Spend { txid: tx.compute_txid(), height: 1 }));
        assert_eq!(index.disconnect(tip), [tx.compute_txid()]);
        assert!(index.confirmation(&tx.compute_txid()).is_none() && index.spend(&funding).is_none());
    }
}
