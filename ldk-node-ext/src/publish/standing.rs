//! Publishing one step of an exit, and keeping it moving.
//!
//! The step's anchor belongs to everybody, and upper steps are shared: whoever publishes one first chooses
//! the fee of its child. So it is not enough that a step is in the mempool. One that lingers there gets a
//! child of ours that displaces the one it has, whosever that is.
//!
//! A child is stored before bitcoind sees it. After a crash in between, the same child goes out again.

use bitcoin::{FeeRate, OutPoint, Transaction};
use factory_core::exit::ExitStep;

use super::super::stored::{StoredChild, StoredExit, StoredTx};
use super::super::Service;
use crate::chain::SubmitError;
use crate::error::Error;
use crate::ldk::InstanceId;
use crate::wallet::{Child, ChildRequest, Rival};

/// A step that is not confirmed after so many blocks is bumped.
const BUMP_AFTER_BLOCKS: u32 = 2;
/// Each bump raises the feerate by this part, per cent.
const BUMP_PERCENT: u64 = 25;

/// Where a step stands.
struct Standing<'a> {
    /// Feerate of the step and its child in the mempool, whosever that is; none if it is not there.
    there: Option<FeeRate>,
    /// Our newest child of it, whether or not it is in the mempool.
    own: Option<&'a StoredChild>,
    /// Height at which the step was first seen in the mempool.
    seen_at: Option<u32>,
    /// Height of the tip.
    height: u32,
    /// Feerate for the next blocks.
    urgent: FeeRate,
    /// The user's upper bound.
    max: FeeRate,
}

/// What is to be done for it.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// Nothing now.
    Wait,
    /// Hand out the child we have again.
    Again,
    /// Make a child, both together at this feerate.
    Child(FeeRate),
}

impl Standing<'_> {
    fn attempt(&self) -> Attempt {
        let stale = |since: u32| self.height >= since.saturating_add(BUMP_AFTER_BLOCKS);
        let raised = |sat_per_kwu: u64| {
            let raised = sat_per_kwu.saturating_mul(100 + BUMP_PERCENT).div_ceil(100);
            FeeRate::from_sat_per_kwu(raised).max(self.urgent).min(self.max)
        };
        match (self.there, self.own) {
            (None, None) => Attempt::Child(self.urgent),
            (None, Some(own)) if stale(own.sent_at) => Attempt::Child(raised(own.sat_per_kwu)),
            (None, Some(_)) => Attempt::Again,
            (Some(there), own) => {
                let since = own.map(|c| c.sent_at).max(self.seen_at).unwrap_or(self.height);
                if stale(since) && there < self.max {
                    Attempt::Child(raised(there.to_sat_per_kwu()))
                } else {
                    Attempt::Wait
                }
            }
        }
    }
}

/// Remembers since when a step has been in the mempool.
fn note_seen(exit: &mut StoredExit, index: usize, there: bool, height: u32) -> Option<u32> {
    if there && exit.seen_at.len() <= index {
        exit.seen_at.resize(index.saturating_add(1), None);
    }
    let slot = exit.seen_at.get_mut(index)?;
    *slot = there.then(|| slot.unwrap_or(height));
    *slot
}

fn spent_by(tx: &Transaction) -> Vec<OutPoint> {
    tx.input.iter().map(|i| i.previous_output).collect()
}

impl Service {
    /// Publishes a step with a child, or bumps one that lingers.
    pub(super) async fn publish_step(
        &mut self,
        id: &InstanceId,
        exit: &mut StoredExit,
        index: usize,
        step: &ExitStep,
        height: u32,
    ) -> Result<(), Error> {
        let entry = self.parts.bitcoind.mempool_entry(step.txid).await?;
        let own = exit.children.get(index).cloned().flatten();
        if let (Some(entry), Some(own)) = (&entry, &own) {
            // bitcoind took it although we never heard its answer.
            if entry.spent_by.contains(&own.tx.0.compute_txid()) {
                self.parts.wallet.saw_unconfirmed(&own.tx.0);
            }
        }
        let standing = Standing {
            there: entry.as_ref().map(|e| e.feerate()),
            own: own.as_ref(),
            seen_at: note_seen(exit, index, entry.is_some(), height),
            height,
            urgent: self.parts.fees.urgent(),
            max: self.parts.fees.max(),
        };
        let feerate = match (standing.attempt(), &own) {
            (Attempt::Wait, _) => return Ok(()),
            (Attempt::Again, Some(own)) => {
                match self.parts.bitcoind.submit(&[step.tx.clone(), own.tx.0.clone()]).await {
                    Ok(()) => {
                        self.parts.wallet.saw_unconfirmed(&own.tx.0);
                        self.parts.wallet.release(&own.tx.0);
                        return Ok(());
                    }
                    Err(SubmitError::Unreachable(r)) => return Err(Error::Unavailable(r)),
                    // Its coin may be gone, or the mempool's floor has risen.
                    Err(SubmitError::Rejected(_)) => standing.urgent,
                }
            }
            (Attempt::Again, None) => standing.urgent,
            (Attempt::Child(feerate), _) => feerate,
        };
        let rival = match &entry {
            Some(e) if e.descendant_vsize > e.vsize => {
                // At least what the network's nodes ask for, if ours is more generous.
                let relay = self.parts.bitcoind.incremental_relay().await?.max(FeeRate::BROADCAST_MIN);
                Some(Rival { fee: e.descendant_fee, vsize: e.descendant_vsize - e.vsize, relay })
            }
            _ => None,
        };
        let reusable = own.as_ref().map(|c| spent_by(&c.tx.0)).unwrap_or_default();
        let (parent, anchor_vout) = (&step.tx, step.anchor_vout);
        let request = ChildRequest { parent, anchor_vout, feerate, rival, reusable: &reusable };
        let child = self.parts.wallet.child_for(request)?;
        self.send_child(id, exit, index, step, own, child, height).await
    }

    /// Stores a child, then submits it with its step; if it is refused, the child before counts again.
    #[allow(clippy::too_many_arguments)]
    async fn send_child(
        &mut self,
        id: &InstanceId,
        exit: &mut StoredExit,
        index: usize,
        step: &ExitStep,
        before: Option<StoredChild>,
        child: Child,
        height: u32,
    ) -> Result<(), Error> {
        let Child { tx, fee } = child;
        let weight = step.tx.weight() + tx.weight();
        let stored = StoredChild {
            tx: StoredTx(tx.clone()),
            fee_sat: fee.to_sat(),
            sent_at: height,
            sat_per_kwu: fee.to_sat().saturating_mul(1000) / weight.to_wu().max(1),
        };
        if let Some(slot) = exit.children.get_mut(index) {
            *slot = Some(stored);
        }
        let submitted = match self.store_exit(id, exit) {
            Ok(()) => self.parts.bitcoind.submit(&[step.tx.clone(), tx.clone()]).await,
            Err(e) => {
                self.parts.wallet.release(&tx);
                if let Some(slot) = exit.children.get_mut(index) {
                    *slot = before;
                }
                return Err(e);
            }
        };
        let wallet = &self.parts.wallet;
        match submitted {
            Ok(()) => {
                tracing::info!(kind = %step.kind, txid = %step.txid, %fee, "exit step published");
                wallet.saw_unconfirmed(&tx);
                wallet.release(&tx);
                if let Some(before) = before.filter(|b| b.tx.0.compute_txid() != tx.compute_txid()) {
                    wallet.evicted(before.tx.0.compute_txid());
                    wallet.release(&before.tx.0);
                }
                Ok(())
            }
            Err(SubmitError::Rejected(reason)) => {
                tracing::warn!(kind = %step.kind, txid = %step.txid, reason, "exit step not accepted");
                wallet.release(&tx);
                if let Some(slot) = exit.children.get_mut(index) {
                    *slot = before;
                }
                self.store_exit(id, exit)?;
                Err(Error::Bitcoind(reason))
            }
            // It may have been accepted: it stays on record and its coins set aside.
            Err(SubmitError::Unreachable(reason)) => {
                tracing::warn!(kind = %step.kind, txid = %step.txid, reason, "no answer to an exit step");
                Err(Error::Unavailable(reason))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;

    const MAX: u64 = 50_000;

    fn child(sent_at: u32, sat_per_kwu: u64) -> StoredChild {
        let tx =
            Transaction { version: Version(3), lock_time: LockTime::ZERO, input: vec![], output: vec![] };
        StoredChild { tx: StoredTx(tx), fee_sat: 1, sent_at, sat_per_kwu }
    }

    /// `there`: feerate in the mempool, sat per 1000 weight units.
    fn attempt(there: Option<u64>, own: Option<&StoredChild>, seen_at: Option<u32>, height: u32) -> Attempt {
        let rate = FeeRate::from_sat_per_kwu;
        Standing { there: there.map(rate), own, seen_at, height, urgent: rate(1000), max: rate(MAX) }
            .attempt()
    }

    fn at(sat_per_kwu: u64) -> Attempt {
        Attempt::Child(FeeRate::from_sat_per_kwu(sat_per_kwu))
    }

    #[test]
    fn a_step_that_somebody_else_published_is_bumped_when_it_lingers() {
        let cheap = Some(250);
        assert_eq!(attempt(cheap, None, Some(100), 100), Attempt::Wait);
        assert_eq!(attempt(cheap, None, Some(100), 101), Attempt::Wait);
        assert_eq!(attempt(cheap, None, Some(100), 102), at(1000));
        // above the estimate and still there: a quarter more
        assert_eq!(attempt(Some(2000), None, Some(100), 102), at(2500));
        assert_eq!(attempt(Some(MAX - 1), None, Some(100), 102), at(MAX));
        // beyond the user's bound nobody is outbid
        assert_eq!(attempt(Some(MAX), None, Some(100), 150), Attempt::Wait);
    }

    #[test]
    fn an_own_child_is_given_two_blocks() {
        let own = child(110, 2000);
        assert_eq!(attempt(Some(2000), Some(&own), Some(100), 111), Attempt::Wait);
        assert_eq!(attempt(Some(2000), Some(&own), Some(100), 112), at(2500));
        // displaced by somebody else's: the same patience
        assert_eq!(attempt(Some(250), Some(&own), Some(111), 112), Attempt::Wait);
        assert_eq!(attempt(Some(250), Some(&own), Some(111), 113), at(1000));
    }

    #[test]
    fn a_child_that_was_stored_and_never_submitted_goes_out_again() {
        let own = child(110, 2000);
        assert_eq!(attempt(None, None, None, 110), at(1000));
        assert_eq!(attempt(None, Some(&own), None, 110), Attempt::Again);
        assert_eq!(attempt(None, Some(&own), None, 112), at(2500));
    }

    #[test]
    fn the_height_of_the_first_sight_is_kept() {
        // a record of an older version has no list
        let mut exit = StoredExit::default();
        assert_eq!(note_seen(&mut exit, 2, false, 100), None);
        assert_eq!(note_seen(&mut exit, 2, true, 100), Some(100));
        assert_eq!(note_seen(&mut exit, 2, true, 105), Some(100));
        assert_eq!(exit.seen_at, [None, None, Some(100)]);
        // it fell out and came back
        assert_eq!(note_seen(&mut exit, 2, false, 106), None);
        assert_eq!(note_seen(&mut exit, 2, true, 107), Some(107));
    }
}
