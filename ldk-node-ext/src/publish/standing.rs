//! When a step is published, and when its child is replaced by a better one.
//!
//! The step's anchor belongs to everybody, and upper steps are shared: whoever publishes one first chooses
//! the fee of its child. So it is not enough that a step is in the mempool. One that lingers there gets a
//! child of ours that displaces the one it has, whosever that is.

use bitcoin::FeeRate;
use serde::{Deserialize, Serialize};

use super::StoredChild;

/// A step that is not confirmed after so many blocks is bumped.
const BUMP_AFTER_BLOCKS: u32 = 2;
/// Each bump raises the feerate by this part, per cent.
const BUMP_PERCENT: u64 = 25;

/// A step in the mempool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Height at which it was first seen there at this feerate.
    pub(super) at: u32,
    /// Feerate of the step and its child, sat per 1000 weight units.
    sat_per_kwu: u64,
}

impl Seen {
    /// What is known after another look. Who finds that somebody else has bumped it as he would have done leaves it at
    /// that for a while: all who share a step look at it with the same block, and would outbid each other. Less than
    /// that buys no time, or a stranger could hold a step back with one cheap child after the other.
    pub(super) fn next(
        known: Option<Self>,
        there: Option<FeeRate>,
        own: Option<&StoredChild>,
        height: u32,
        urgent: FeeRate,
    ) -> Option<Self> {
        let sat_per_kwu = there?.to_sat_per_kwu();
        let Some(seen) = known else { return Some(Self { at: height, sat_per_kwu }) };
        let before = seen.sat_per_kwu.max(own.map_or(0, |c| c.sat_per_kwu));
        // Feerates of the same package differ by what is rounded.
        let bumped = before.saturating_mul(100 + BUMP_PERCENT - 5) / 100;
        let raised = sat_per_kwu >= bumped && sat_per_kwu >= urgent.to_sat_per_kwu();
        Some(Self { at: if raised { height } else { seen.at }, sat_per_kwu })
    }
}

/// Where a step stands.
pub(super) struct Standing<'a> {
    /// Feerate of the step and its child in the mempool, whosever that is; none if they are not there.
    pub(super) there: Option<FeeRate>,
    /// Our newest child of it, whether or not it is in the mempool.
    pub(super) own: Option<&'a StoredChild>,
    /// Height at which the step was first seen in the mempool at that feerate.
    pub(super) seen_at: Option<u32>,
    /// Height of the tip.
    pub(super) height: u32,
    /// Feerate for the next blocks.
    pub(super) urgent: FeeRate,
    /// The user's upper bound.
    pub(super) max: FeeRate,
}

/// What is to be done for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Nothing now.
    Wait,
    /// Hand out the child we have again.
    Again,
    /// Make a child, both together at this feerate.
    Child(FeeRate),
}

impl Standing<'_> {
    /// What to do now.
    pub(super) fn attempt(&self) -> Attempt {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tx::StoredTx;
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use bitcoin::Transaction;

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
    fn who_is_outbid_waits_again() {
        let look = |known, there: u64, own: Option<&StoredChild>, height| {
            let urgent = FeeRate::from_sat_per_kwu(1200);
            Seen::next(known, Some(FeeRate::from_sat_per_kwu(there)), own, height, urgent)
        };
        let since = |seen: Option<Seen>| seen.map(|s| s.at);
        let first = look(None, 1000, None, 100);
        assert_eq!(since(first), Some(100));
        assert_eq!(since(look(first, 1001, None, 102)), Some(100));
        // somebody else's child in place of the one before
        let raised = look(first, 1250, None, 102);
        assert_eq!(since(raised), Some(102));
        assert_eq!(since(look(raised, 1250, None, 103)), Some(102));
        // by little, or to less than what is urgent
        assert_eq!(since(look(raised, 1400, None, 103)), Some(102));
        assert_eq!(since(look(look(None, 500, None, 100), 1000, None, 102)), Some(100));
        // our own counts from when it was sent
        assert_eq!(since(look(first, 1250, Some(&child(102, 1249)), 103)), Some(100));
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
}
