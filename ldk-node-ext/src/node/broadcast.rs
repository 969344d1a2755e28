//! What is broadcast goes to bitcoind from here, one package after the other.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::Parts;
use crate::chain::SubmitError;
use crate::faults;
use crate::ldk::Outgoing;

/// Hands transactions to bitcoind, one package after the other.
pub(super) async fn run(
    parts: Arc<Parts>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let Outgoing { txs, what } = tokio::select! {
            o = outgoing.recv() => match o { Some(o) => o, None => return },
            _ = stop.changed() => return,
        };
        let txids: Vec<String> = txs.iter().map(|t| t.compute_txid().to_string()).collect();
        faults::submit(&what, "submit");
        let answer = parts.bitcoind.submit(&txs).await;
        faults::submit(&what, "submitted");
        match answer {
            Ok(()) => {
                tracing::info!(what, ?txids, "broadcast");
                for tx in &txs {
                    parts.outpoints.set_published(tx);
                    parts.wallet.saw_unconfirmed(tx);
                }
            }
            // LDK and the factory service try again with the next block.
            Err(SubmitError::Rejected(reason)) => {
                tracing::warn!(what, ?txids, reason, "not accepted by bitcoind");
                // After a restart it may be there already, with a child that is as good.
                for tx in &txs {
                    if matches!(parts.bitcoind.mempool_entry(tx.compute_txid()).await, Ok(Some(_))) {
                        parts.outpoints.set_published(tx);
                    }
                }
            }
            Err(SubmitError::Unreachable(reason)) => {
                tracing::warn!(what, ?txids, reason, "bitcoind cannot be asked")
            }
        }
    }
}
