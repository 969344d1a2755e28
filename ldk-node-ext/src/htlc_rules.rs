//! How long an HTLC on a factory channel must have left, and when one that does not resolve has to be taken
//! to the chain.
//!
//! Money in a factory channel comes to the chain through the factory's path, so an HTLC on it can be claimed
//! or timed out only C blocks after somebody has decided to, the claim budget of the factory. M, the margin
//! of the settings, covers heights that differ between nodes and time to react. Pure decisions; who asks is
//! `node/htlcs.rs`.

use std::collections::HashMap;

use factory_core::faults::switch;
use lightning::types::payment::PaymentHash;

/// Blocks that LDK counts after an outgoing HTLC's expiry until it treats it as timed out, 3 to go to the
/// chain and 36 to have a claim confirmed there (`LATENCY_GRACE_PERIOD_BLOCKS` and `CLTV_CLAIM_BUFFER` of
/// LDK 0.3, which are private).
const SETTLE_BLOCKS: u32 = 39;
/// Blocks that the peer gets to take an HTLC off the channel by itself once it has become due.
const PEER_BLOCKS: u32 = 2;

/// What HTLCs on one factory channel have to keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// C and M together, blocks.
    claim: u32,
}

impl Limits {
    /// From the claim budget and the margin. Without a known budget nothing is long enough.
    pub(crate) fn new(claim_budget: Option<u32>, margin: u16) -> Self {
        Self { claim: claim_budget.unwrap_or(u32::MAX).saturating_add(margin.into()) }
    }

    /// C and M together, blocks.
    pub(crate) fn claim(self) -> u32 {
        self.claim
    }

    /// Lowest expiry of an HTLC that is accepted on the channel or forwarded to it, a height.
    pub(crate) fn expiry(self, height: u32) -> u32 {
        height.saturating_add(self.claim)
    }

    /// Last height at which an HTLC with this expiry may be claimed.
    pub(crate) fn last_claim(self, expiry: u32) -> u32 {
        expiry.saturating_sub(self.claim)
    }

    /// Least distance of incoming and outgoing expiry of an HTLC that comes from the channel, blocks.
    pub(crate) fn delta(self) -> u32 {
        self.claim.saturating_add(SETTLE_BLOCKS)
    }

    /// The stricter of two.
    pub(crate) fn stricter(self, other: Self) -> Self {
        Self { claim: self.claim.max(other.claim) }
    }
}

/// Why an HTLC is failed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("expires too soon for a factory channel")]
    ExpiresTooSoon { expiry: u32, limit: u32 },
    #[error("too few blocks between incoming and outgoing expiry for a factory channel")]
    DeltaTooSmall { delta: u32, limit: u32 },
    #[error("has to be claimed too soon to be held")]
    TooLateToHold { claim_by: u32, limit: u32 },
    #[error("its incoming channel is not known any more")]
    UnknownSource,
    #[error("its outgoing channel is not usable")]
    NotUsable,
    #[error("the funding of a factory that it passes is not deep enough in the chain")]
    Shallow,
    #[error("no room: {0}")]
    NoRoom(&'static str),
    #[error("a channel that it passes is stuck: a state from before a change of capacity is on the chain")]
    Stuck,
}

impl Refusal {
    /// What the HTLC has and what it must have, blocks or heights, where that is the reason.
    pub(crate) fn numbers(&self) -> Option<(u32, u32)> {
        match *self {
            Self::ExpiresTooSoon { expiry: has, limit }
            | Self::DeltaTooSmall { delta: has, limit }
            | Self::TooLateToHold { claim_by: has, limit } => Some((has, limit)),
            Self::UnknownSource | Self::NotUsable | Self::Shallow | Self::Stuck | Self::NoRoom(_) => None,
        }
    }
}

/// One side of an HTLC that is to be forwarded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    /// Of the factory channel it is on, if it is on one.
    pub(crate) limits: Option<Limits>,
    /// Expiry, a height.
    pub(crate) expiry: u32,
}

/// Whether an HTLC may be accepted at `height`, as its final hop, or be offered on.
///
/// # Errors
/// [`Refusal::ExpiresTooSoon`].
pub(crate) fn check_expiry(height: u32, side: Side) -> Result<(), Refusal> {
    let limit = side.limits.map_or(0, |l| l.expiry(height));
    if side.expiry < limit && !switch("htlc.expiry") {
        return Err(Refusal::ExpiresTooSoon { expiry: side.expiry, limit });
    }
    Ok(())
}

/// Whether an HTLC may be forwarded at `height`.
///
/// # Errors
/// [`Refusal::ExpiresTooSoon`], [`Refusal::DeltaTooSmall`].
pub(crate) fn check_forward(height: u32, incoming: Side, outgoing: Side) -> Result<(), Refusal> {
    let limit = incoming.limits.map_or(0, Limits::delta);
    let delta = incoming.expiry.saturating_sub(outgoing.expiry);
    if delta < limit && !switch("htlc.delta") {
        return Err(Refusal::DeltaTooSmall { delta, limit });
    }
    check_expiry(height, outgoing)
}

/// Lets a limited number of things a block pass, for events that outsiders can cause.
#[derive(Debug, Default)]
pub(crate) struct PerBlock {
    height: u32,
    passed: u32,
}

impl PerBlock {
    /// Whether another one passes at `height`, of at most `limit`.
    pub(crate) fn pass(&mut self, height: u32, limit: u32) -> bool {
        if self.height != height {
            *self = Self { height, passed: 0 };
        }
        self.passed = self.passed.saturating_add(1);
        self.passed <= limit
    }
}

/// What hangs on an HTLC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HtlcKind {
    /// Inbound, and we have its preimage: after its expiry the peer may take it back.
    Claimed,
    /// Outbound for somebody else's payment: the incoming HTLC expires a little later.
    Forwarded,
    /// Outbound, this node's own payment: nothing else hangs on it.
    Own,
}

/// An HTLC on a factory channel that an exit may have to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HtlcAlarm {
    /// A height.
    pub(crate) expiry: u32,
    pub(crate) payment_hash: PaymentHash,
    pub(crate) kind: HtlcKind,
}

impl HtlcAlarm {
    /// Height from which it must not stay as it is, if an exit takes `claim_budget` blocks.
    fn due(&self, claim_budget: u32) -> u32 {
        match self.kind {
            HtlcKind::Claimed | HtlcKind::Forwarded => self.expiry.saturating_sub(claim_budget),
            HtlcKind::Own => self.expiry,
        }
    }
}

/// Since when each HTLC of a channel has been due. After a restart the count begins anew: two blocks of the
/// claim budget's reorganisation margin.
pub(crate) type DueSince = HashMap<(PaymentHash, u32), u32>;

/// The HTLC for which an exit has to start now: one that is due and that the peer has left standing for
/// [`PEER_BLOCKS`] since; the first to expire if there are several.
pub(crate) fn alarm(
    pending: &[HtlcAlarm],
    claim_budget: u32,
    height: u32,
    since: &mut DueSince,
) -> Option<HtlcAlarm> {
    let key = |h: &HtlcAlarm| (h.payment_hash, h.expiry);
    let is_due = |h: &&HtlcAlarm| height >= h.due(claim_budget) && !switch("htlc.no_alarm");
    let due: Vec<&HtlcAlarm> = pending.iter().filter(is_due).collect();
    since.retain(|k, _| due.iter().any(|h| key(h) == *k));
    due.into_iter()
        .filter(|h| {
            let first = *since.entry(key(h)).or_insert(height);
            height >= first.saturating_add(PEER_BLOCKS)
        })
        .min_by_key(|h| h.expiry)
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Option<Limits> = Some(Limits { claim: 324 });

    #[test]
    fn one_block_decides() {
        assert_eq!(Limits::new(Some(312), 12), LIMITS.unwrap());
        assert_eq!(check_expiry(1000, Side { limits: LIMITS, expiry: 1324 }), Ok(()));
        let late = Refusal::ExpiresTooSoon { expiry: 1323, limit: 1324 };
        assert_eq!(check_expiry(1000, Side { limits: LIMITS, expiry: 1323 }), Err(late));

        let outgoing = |limits| Side { limits, expiry: 1324 };
        for (out, expiry, expected) in [
            (None, 1687, Ok(())),
            (None, 1686, Err(Refusal::DeltaTooSmall { delta: 362, limit: 363 })),
            (LIMITS, 1687, Ok(())),
        ] {
            let incoming = Side { limits: LIMITS, expiry };
            assert_eq!(check_forward(1000, incoming, outgoing(out)), expected);
        }
        let incoming = Side { limits: None, expiry: 1404 };
        assert_eq!(
            check_forward(1001, incoming, outgoing(LIMITS)).unwrap_err().numbers(),
            Some((1324, 1325))
        );
        assert_eq!(check_forward(1001, incoming, outgoing(None)), Ok(()));
    }

    #[test]
    fn without_a_budget_nothing_passes() {
        let side = Side { limits: Some(Limits::new(None, 12)), expiry: u32::MAX - 1 };
        assert!(check_expiry(0, side).is_err());
        assert!(check_forward(0, side, Side { limits: None, expiry: 0 }).is_err());
    }

    #[test]
    fn an_alarm_waits_for_the_peer_and_ends_with_its_htlc() {
        let htlc = |byte, expiry, kind| HtlcAlarm { expiry, payment_hash: PaymentHash([byte; 32]), kind };
        let claimed = htlc(1, 1000, HtlcKind::Claimed);
        let forwarded = htlc(2, 990, HtlcKind::Forwarded);
        let own = htlc(3, 700, HtlcKind::Own);
        let mut since = DueSince::new();
        let mut at = |pending: &[HtlcAlarm], height| alarm(pending, 300, height, &mut since);
        assert_eq!(at(&[claimed], 699), None, "not due");
        assert_eq!(at(&[claimed], 700), None, "due: the peer's turn");
        assert_eq!(at(&[claimed], 701), None);
        assert_eq!(at(&[claimed], 702), Some(claimed));
        assert_eq!(at(&[claimed, forwarded], 703), Some(claimed), "the other is new");
        assert_eq!(at(&[claimed, forwarded], 705), Some(forwarded), "the first to expire");
        assert_eq!(at(&[], 706), None);
        assert_eq!(at(&[claimed], 707), None, "resolved in between: counted anew");
        let mut since = DueSince::new();
        let mut at = |height| alarm(&[own], 300, height, &mut since);
        assert_eq!((at(699), at(700), at(701), at(702)), (None, None, None, Some(own)));
    }

    #[test]
    fn events_are_limited_by_block() {
        let mut gate = PerBlock::default();
        let passed = |gate: &mut PerBlock, height| (0..60).filter(|_| gate.pass(height, 50)).count();
        assert_eq!((passed(&mut gate, 7), passed(&mut gate, 8), passed(&mut gate, 8)), (50, 50, 0));
    }
}
