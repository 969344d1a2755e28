//! Funding transactions of JIT channels that linger: a child pays for them (CPFP), and a better one for that if it lingers
//! on.
//!
//! Only a child will do. A replacement (RBF) has another txid, and the channel that is in use already would be gone with the
//! first one.

use std::sync::Arc;

use bitcoin::consensus::encode;
use bitcoin::{FeeRate, Transaction};
use serde_json::json;
use tokio::sync::watch;

use super::record::Record;
use crate::chain::SubmitError;
use crate::config::RoleConfig;
use crate::error::Error;
use crate::faults;
use crate::node::Parts;
use crate::wallet::Rival;

/// A funding transaction, or its child, that is not confirmed after so many blocks is helped along.
const PATIENCE: u32 = 3;

/// How many times the estimate is the most that is paid: what it does not help to pay is not paid.
const MOST: u64 = 3;

/// The feerate of the funding transaction and its child together, if it is time: the estimate, and at least a quarter more
/// than what is `there`.
fn attempt(there: FeeRate, waited: u32, estimate: FeeRate, max: FeeRate) -> Option<FeeRate> {
    let raised = FeeRate::from_sat_per_kwu(there.to_sat_per_kwu().saturating_mul(5) / 4);
    let most = FeeRate::from_sat_per_kwu(estimate.to_sat_per_kwu().saturating_mul(MOST)).min(max);
    let wanted = raised.max(estimate).min(most);
    (waited >= PATIENCE && wanted > there).then_some(wanted)
}

fn feerate(tx: &Transaction, fee_sat: u64) -> FeeRate {
    FeeRate::from_sat_per_kwu(fee_sat.saturating_mul(1000) / tx.weight().to_wu().max(1))
}

/// Looks at them with every block, until told to stop. Who waits for bitcoind here keeps no payment waiting.
pub(crate) async fn run(parts: Arc<Parts>, mut stop: watch::Receiver<bool>) {
    let mut tip = parts.tip.clone();
    let lsp = matches!(parts.config.role, RoleConfig::Lsp(_));
    loop {
        tokio::select! {
            changed = tip.changed() => if changed.is_err() { return },
            _ = stop.changed() => return,
        }
        if lsp {
            tokio::select! {
                () = parts.carry_fundings() => {}
                _ = stop.changed() => return,
            }
        }
    }
}

impl Parts {
    async fn carry_fundings(&self) {
        for (id, record) in self.liquidity.records.all() {
            let since = record.carried_at.unwrap_or(record.height);
            let waited = self.height().saturating_sub(since);
            // Where nothing has been taken there is nobody's money but the LSP's, and who never takes anything must not cost
            // more than the first transaction.
            let counts = record.signed && (record.cause.is_none() || record.taken);
            let Some(tx) = record.transaction().filter(|_| counts && waited >= PATIENCE) else { continue };
            if let Err(e) = self.carry(id, &record, &tx, waited).await {
                let funding = tx.compute_txid();
                tracing::warn!(%funding, error = %e, "funding transaction lingers, and gets no child");
                let peer = record.peer.to_string();
                let data =
                    json!({"peer": peer, "funding_txid": funding.to_string(), "reason": e.to_string()});
                self.events.push("jit_funding_lingers", data);
                // Not with every block.
                let height = self.height();
                if let Err(e) = self.liquidity.records.change(id, |r| r.carried_at = Some(height)) {
                    tracing::error!(error = %e, "JIT channel not stored");
                }
            }
        }
    }

    /// # Errors
    /// [`Error::InsufficientFunds`] if its change does not pay for a child, [`Error::Wallet`], [`Error::Store`],
    /// [`Error::Bitcoind`].
    async fn carry(&self, id: u128, record: &Record, tx: &Transaction, waited: u32) -> Result<(), Error> {
        let open = self.manager.list_channels();
        let confirmed =
            open.iter().find(|c| c.user_channel_id == id).map(|c| c.confirmations.unwrap_or(0) > 0);
        let entry = self.bitcoind.mempool_entry(tx.compute_txid()).await?;
        if confirmed == Some(true) || (entry.is_none() && record.closed) {
            return Ok(());
        }
        let there = entry.as_ref().map_or_else(|| feerate(tx, record.fee_sat), |entry| entry.feerate());
        let Some(wanted) = attempt(there, waited, self.fees.normal(), self.fees.max()) else { return Ok(()) };
        let before = record.child_transaction();
        let displaced = entry.zip(before.as_ref()).filter(|(e, b)| e.spent_by.contains(&b.compute_txid()));
        let rival = match displaced {
            Some((_, before)) => Some(Rival {
                fee: bitcoin::Amount::from_sat(record.child_fee_sat),
                vsize: u64::try_from(before.vsize()).unwrap_or(u64::MAX),
                relay: self.bitcoind.incremental_relay().await?.max(FeeRate::BROADCAST_MIN),
                of_parent: false,
            }),
            None => None,
        };
        let child = self.wallet.child_of_change(tx, record.fee_sat, wanted, rival)?;
        let (fee_sat, height) = (child.fee.to_sat(), self.height());
        self.liquidity.records.change(id, |r| {
            r.child = Some(encode::serialize_hex(&child.tx));
            r.child_fee_sat = fee_sat;
            r.carried_at = Some(height);
        })?;
        faults::point("lsp.jit.child_stored");
        match self.bitcoind.submit(&[tx.clone(), child.tx.clone()]).await {
            Ok(()) => {
                self.wallet.saw_unconfirmed(tx);
                self.wallet.saw_unconfirmed(&child.tx);
                let (funding, child) = (tx.compute_txid(), child.tx.compute_txid());
                if let Some(before) = before.map(|b| b.compute_txid()).filter(|b| *b != child) {
                    self.wallet.evicted(before);
                }
                tracing::info!(%funding, %child, fee_sat, "funding transaction has a child");
                let data = json!({"peer": record.peer.to_string(), "funding_txid": funding.to_string(),
                    "child_txid": child.to_string(), "fee_sat": fee_sat});
                self.events.push("jit_funding_carried", data);
                Ok(())
            }
            Err(SubmitError::Rejected(reason)) => {
                self.liquidity.records.change(id, |r| {
                    r.child.clone_from(&record.child);
                    r.child_fee_sat = record.child_fee_sat;
                })?;
                Err(Error::Bitcoind(reason))
            }
            // It may be there.
            Err(SubmitError::Unreachable(reason)) => Err(Error::Unavailable(reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_raised_by_a_quarter_or_to_the_estimate_when_it_has_waited() {
        let rate = FeeRate::from_sat_per_kwu;
        let next = |there, waited, estimate| attempt(rate(there), waited, rate(estimate), rate(10_000));
        assert_eq!(next(1_000, 2, 9_000), None, "its blocks");
        assert_eq!(next(1_000, 3, 500), Some(rate(1_250)));
        assert_eq!(next(1_400, 3, 500), Some(rate(1_500)), "thrice the estimate");
        assert_eq!(next(1_500, 9, 500), None);
        assert_eq!(next(1_000, 3, 4_000), Some(rate(4_000)));
        assert_eq!(next(9_000, 3, 4_000), Some(rate(10_000)), "the user's bound");
        assert_eq!(next(10_000, 30, 20_000), None);
    }
}
