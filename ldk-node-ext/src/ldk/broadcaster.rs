//! The broadcaster: a bounded queue to bitcoind, and the gate for factory channels.
//!
//! LDK broadcasts what it thinks is due; for a factory channel that is too early as long as the leaf
//! is not on the chain. Dropping is safe: LDK hands such a transaction out again with every block.
//! A factory channel's closing transaction is handed out once only, so it is kept in the store: the
//! factory's own close replaces it, and if that fails it is the fall-back of an exit. So is its splice transaction,
//! which only LDK believes in. What belongs to a rotated channel leaves in the form that the chain knows ([`virt`](super::virt)).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bitcoin::consensus::encode;
use bitcoin::{OutPoint, Transaction};
use factory_core::faults::switch;
use lightning::chain::chaininterface::{BroadcasterInterface, TransactionType};
use lightning::ln::types::ChannelId;
use tokio::sync::mpsc;

use super::outpoints::Gate;
use super::virt::{Outward, Way};
use super::Outpoints;
use crate::error::Error;
use crate::faults;
use crate::store::{records, Store};
use crate::util::lock;

const NAMESPACE: &str = "kept_closing";
const VERSION: u32 = 1;
/// Packages that may wait for bitcoind; LDK repeats what does not fit.
pub(crate) const QUEUE: usize = 1024;

/// What is said of a factory's funding transaction.
pub(crate) const FUNDING: &str = "factory funding";

/// Transactions to submit together.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) txs: Vec<Transaction>,
    pub(crate) what: String,
}

/// See the module's description.
pub struct Broadcaster {
    queue: mpsc::Sender<Outgoing>,
    outpoints: Arc<Outpoints>,
    outward: Arc<Outward>,
    store: Arc<Store>,
    /// Closing transactions that could not be written yet.
    unwritten: Mutex<HashMap<ChannelId, Transaction>>,
}

impl Broadcaster {
    pub(crate) fn new(
        outpoints: Arc<Outpoints>,
        outward: Arc<Outward>,
        store: Arc<Store>,
    ) -> (Self, mpsc::Receiver<Outgoing>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue, outpoints, outward, store, unwritten: Mutex::default() }, receiver)
    }

    /// Queues transactions of our own, past the gate.
    pub(crate) fn send(&self, txs: Vec<Transaction>, what: &str) {
        if what == FUNDING && (switch("lsp.never_funds") || switch("lsp.other_funding")) {
            return;
        }
        let outgoing = Outgoing { txs, what: what.to_owned() };
        if self.queue.try_send(outgoing).is_err() {
            tracing::error!(what, "broadcast queue is full; will be repeated");
        }
    }

    /// The closing transaction that LDK made for a factory channel.
    pub(crate) fn kept_closing(&self, channel: &ChannelId) -> Result<Option<Transaction>, Error> {
        if let Some(tx) = lock(&self.unwritten).get(channel) {
            return Ok(Some(tx.clone()));
        }
        let key = hex::encode(channel.0);
        let Some(text) = records::get::<String>(&*self.store, NAMESPACE, &key, VERSION)? else {
            return Ok(None);
        };
        encode::deserialize_hex(&text)
            .map(Some)
            .map_err(|e| Error::Corrupt { key: format!("{NAMESPACE}/{key}"), reason: e.to_string() })
    }

    fn keep_closing(&self, channel: &ChannelId, tx: &Transaction) {
        lock(&self.unwritten).insert(*channel, tx.clone());
        if let Err(e) = self.write_kept() {
            if switch("closing.written_once") {
                lock(&self.unwritten).clear();
            }
            tracing::error!(channel = %channel, error = %e, "closing transaction not stored yet");
        }
    }

    /// Writes the closing transactions that are not on disk yet. It comes before the channel manager is written: that
    /// one would no longer know the channel, and LDK hands its closing transaction out once.
    ///
    /// # Errors
    /// [`Error::Store`]; what was not written is kept in memory.
    pub(crate) fn write_kept(&self) -> Result<(), Error> {
        let mut unwritten = lock(&self.unwritten);
        while let Some((channel, tx)) = unwritten.iter().next() {
            let (channel, text) = (*channel, encode::serialize_hex(tx));
            records::put(&*self.store, NAMESPACE, &hex::encode(channel.0), VERSION, &text)?;
            unwritten.remove(&channel);
        }
        Ok(())
    }
}

impl BroadcasterInterface for Broadcaster {
    fn broadcast_transactions(&self, txs: &[(&Transaction, TransactionType)]) {
        for (tx, kind) in txs {
            if let TransactionType::CooperativeClose { channel_id, .. } = kind {
                if self.outpoints.is_factory(channel_id) && !switch("closing.sent") {
                    tracing::debug!(channel = %channel_id, txid = %tx.compute_txid(), "closing transaction kept");
                    self.keep_closing(channel_id, tx);
                    faults::point("node.closing.kept");
                    return;
                }
            }
            if let (TransactionType::InteractiveFunding { candidates }, false) =
                (kind, switch("virt.splice.sent"))
            {
                let channels = candidates.iter().flat_map(|c| &c.channels);
                if channels.into_iter().any(|c| self.outpoints.is_factory(&c.channel_id)) {
                    // The table has had it since before anything was signed for it.
                    return tracing::debug!(txid = %tx.compute_txid(), "splice transaction stays here");
                }
            }
        }
        let what = txs.first().map(|(_, kind)| format!("{kind:?}")).unwrap_or_default();
        let what = what.split([' ', '{']).next().unwrap_or_default().to_owned();
        let plain: Vec<&Transaction> = txs.iter().map(|(tx, _)| *tx).collect();
        match self.outward.way(&plain) {
            Way::Plain => {}
            Way::Held => return tracing::debug!(what, "held: no real outpoint of it is confirmed"),
            Way::Real(real) => return self.send(real, &what),
        }
        let inputs: Vec<OutPoint> =
            txs.iter().flat_map(|(tx, _)| tx.input.iter().map(|i| i.previous_output)).collect();
        if let Gate::Held(instance) = self.outpoints.gate(&inputs) {
            tracing::debug!(instance = hex::encode(instance), "held: the leaf is not confirmed");
            return;
        }
        self.send(txs.iter().map(|(tx, _)| (*tx).clone()).collect(), &what);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::StoreKind;
    use bitcoin::hashes::Hash;
    use bitcoin::{absolute, transaction, TxIn, Txid};
    use lightning::chain::chaininterface::{ChannelFunding, FundingCandidate, FundingPurpose};
    use std::path::{Path, PathBuf};

    fn spend(outpoint: OutPoint) -> Transaction {
        Transaction {
            version: transaction::Version(3),
            lock_time: absolute::LockTime::ZERO,
            input: vec![TxIn { previous_output: outpoint, ..Default::default() }],
            output: vec![],
        }
    }

    /// A store in files whose closing transactions have no place, as long as the file at the path is there.
    pub(crate) fn blocked(dir: &Path) -> (Arc<Store>, PathBuf) {
        let store = Arc::new(Store::open_as(dir, StoreKind::Filesystem).unwrap());
        let place = dir.join("node.files").join(NAMESPACE);
        std::fs::write(&place, "in the way").unwrap();
        (store, place)
    }

    /// Has LDK hand out the closing transaction of a factory's channel.
    pub(crate) fn close(broadcaster: &Broadcaster, n: u8) -> (ChannelId, Transaction) {
        let leaf = OutPoint { txid: Txid::from_byte_array([n; 32]), vout: 0 };
        let (id, tx) = (broadcaster.outpoints.insert([1; 32], leaf), spend(leaf));
        let counterparty_node_id =
            "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
        let coop = TransactionType::CooperativeClose { counterparty_node_id, channel_id: id };
        broadcaster.broadcast_transactions(&[(&tx, coop)]);
        (id, tx)
    }

    #[test]
    fn a_held_commitment_and_a_closing_transaction_stay_here() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let outpoints = Arc::new(Outpoints::default());
        let outward = super::super::virt::testing::outward(dir.path(), &store, &outpoints);
        let (broadcaster, mut queue) = Broadcaster::new(Arc::clone(&outpoints), outward, store);
        let leaf = OutPoint { txid: Txid::from_byte_array([9; 32]), vout: 0 };
        let id = outpoints.insert([1; 32], leaf);
        let tx = spend(leaf);
        let peer = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
        let close = TransactionType::UnilateralClose { counterparty_node_id: peer, channel_id: id };
        broadcaster.broadcast_transactions(&[(&tx, close.clone())]);
        assert!(queue.try_recv().is_err());
        outpoints.set_on_chain(&leaf, true);
        broadcaster.broadcast_transactions(&[(&tx, close)]);
        assert_eq!(queue.try_recv().unwrap().txs, vec![tx.clone()]);
        let coop = TransactionType::CooperativeClose { counterparty_node_id: peer, channel_id: id };
        broadcaster.broadcast_transactions(&[(&tx, coop)]);
        assert!(
            queue.try_recv().is_err(),
            "a factory channel's closing transaction is never broadcast by LDK"
        );
        assert_eq!(broadcaster.kept_closing(&id).unwrap(), Some(tx.clone()));

        let channel = ChannelFunding {
            counterparty_node_id: peer,
            channel_id: id,
            purpose: FundingPurpose::Splice,
            contribution: None,
        };
        let candidates = vec![FundingCandidate { txid: tx.compute_txid(), channels: vec![channel] }];
        broadcaster.broadcast_transactions(&[(&tx, TransactionType::InteractiveFunding { candidates })]);
        assert!(queue.try_recv().is_err(), "a splice transaction has left");
    }
    #[test]
    fn a_closing_transaction_that_cannot_be_written_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (store, place) = blocked(dir.path());
        let new = || {
            let outward = super::super::virt::testing::outward_apart();
            Broadcaster::new(Arc::default(), outward, Arc::clone(&store))
        };
        let (broadcaster, mut queue) = new();
        let kept = [1, 2].map(|n| close(&broadcaster, n));
        assert!(queue.try_recv().is_err());
        for (id, tx) in &kept {
            let found = broadcaster.kept_closing(id).ok().flatten();
            assert_eq!(found.as_ref(), Some(tx), "the only copy is lost");
        }
        broadcaster.write_kept().unwrap_err();
        std::fs::remove_file(&place).unwrap();
        assert!(
            kept.iter().all(|(id, _)| new().0.kept_closing(id).unwrap().is_none()),
            "nothing is written yet"
        );
        broadcaster.write_kept().unwrap();
        // As the next process finds them.
        for (id, tx) in &kept {
            assert_eq!(new().0.kept_closing(id).unwrap().as_ref(), Some(tx));
        }
        assert!(lock(&broadcaster.unwritten).is_empty());
    }
}
