//! How many blocks a relayed payment needs, from the invoice to the client's claim.
//!
//! LDK does not know that the two sides of a relay belong together: it gives the incoming payment back when its time is
//! over, whatever has become of the outgoing one. So the outgoing one has to be over before that, also where the chain
//! has to decide. Counted in heights, from the client's side to the payer's:
//!
//! - FINAL: what the client asks for and the LSP's own rules for its channels want, and [`SLACK`].
//! - [`LDK_EXTRA`]: LDK gives an outgoing HTLC that much more than FINAL.
//! - [`SETTLE`]: after the outgoing HTLC's expiry, until its output is swept and buried, or the preimage is read
//!   from the chain. The exit of a factory is not in it: that starts a claim budget before the expiry.
//! - [`LATE`]: blocks that come between the decision to pay on and LDK's last try.
//! - what the incoming side needs for its claim: 39 blocks for LDK, the claim budget and its margin for a payment that
//!   comes in over a factory channel.
//! - the blocks for which the LSP is willing to wait for the client.

use factory_core::faults::switch;
use lightning::ln::channelmanager::MIN_FINAL_CLTV_EXPIRY_DELTA;

/// Blocks by which heights of two nodes may differ, and that may come while a payment is under way.
pub(crate) const SLACK: u32 = 3;
/// LDK: the expiry of an outgoing HTLC is the height + FINAL + this.
pub(crate) const LDK_EXTRA: u32 = 2;
/// 3 blocks of LDK's patience, 36 for commitment and HTLC transaction, 6 until they are buried.
pub(crate) const SETTLE: u32 = 45;
/// See the module's description. LDK tries again for 30 s at most.
pub(crate) const LATE: u32 = 6;
/// What LDK needs to claim an incoming HTLC over an ordinary channel: it gives it back that long before its expiry.
const CLAIM: u32 = 39;
/// Payers look for routes of 1008 blocks in all (LDK's default), of which one hop before this node takes 48.
pub(crate) const LIMIT: u32 = 1008 - 48;

/// The blocks of one relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// FINAL.
    pub(crate) outgoing: u32,
    /// What the invoice asks for.
    pub(crate) room: u16,
}

/// What a relay would need, and the most that there is, blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    pub(crate) needed: u32,
}

/// Plans a relay: `client` is what the client asks for, `own` what the LSP's rules want of a payment on the client's
/// channels, `incoming` what a claim takes where the payer's channel is in a factory (0: no such channel), `hold` how
/// long the client may be waited for. Payers over factory channels are left out if there is no room for them.
///
/// # Errors
/// [`TooLong`].
pub(crate) fn plan(client: u32, own: u32, incoming: u32, hold: u32) -> Result<Budget, TooLong> {
    let least = client.max(own).max(MIN_FINAL_CLTV_EXPIRY_DELTA.into());
    let outgoing = least.saturating_add(SLACK);
    let room = |claim: u32| {
        [LDK_EXTRA, SETTLE, LATE, hold, SLACK, claim].into_iter().fold(outgoing, u32::saturating_add)
    };
    let widest = [incoming.max(CLAIM), CLAIM].into_iter().map(room).find(|room| *room <= LIMIT);
    let room = widest.and_then(|room| u16::try_from(room).ok()).ok_or(TooLong { needed: room(CLAIM) })?;
    Ok(Budget { outgoing, room })
}

/// The last height at which a payment may be paid on with FINAL `outgoing` if the incoming one has to be claimed
/// before `claim_by`.
pub(crate) fn last_send(claim_by: u32, outgoing: u32) -> Option<u32> {
    if switch("relay.margin") {
        return Some(claim_by);
    }
    [outgoing, LDK_EXTRA, SETTLE, LATE].into_iter().try_fold(claim_by, u32::checked_sub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_term_is_in_it() {
        let ordinary = plan(360, 324, 0, 4).unwrap();
        assert_eq!(ordinary, Budget { outgoing: 363, room: 363 + 2 + 45 + 6 + 4 + 3 + 39 });
        assert_eq!(plan(360, 324, 324, 4).unwrap().room, ordinary.room + 324 - 39);
        assert_eq!(plan(10, 20, 0, 4).unwrap().outgoing, 42 + 3, "LDK's own least");
        assert_eq!(plan(10, 400, 0, 4).unwrap().outgoing, 403, "the LSP's rules");
    }

    #[test]
    fn payers_in_factories_give_way_and_what_is_too_long_is_refused() {
        assert_eq!(plan(600, 0, 324, 4).unwrap().room, 603 + 2 + 45 + 6 + 4 + 3 + 39);
        let most = LIMIT - (3 + 2 + 45 + 6 + 4 + 3 + 39);
        assert_eq!(u32::from(plan(most, 0, 0, 4).unwrap().room), LIMIT);
        assert_eq!(plan(most + 1, 0, 0, 4), Err(TooLong { needed: LIMIT + 1 }));
        assert_eq!(plan(u32::MAX, 0, 0, 4), Err(TooLong { needed: u32::MAX }));
        assert_eq!(plan(42, 0, 0, u32::MAX), Err(TooLong { needed: u32::MAX }));
    }

    /// Whoever pays with exactly what the invoice asks for is paid on, also if the LSP waits as long as it may.
    #[test]
    fn the_invoices_room_is_enough_to_pay_on_and_not_more() {
        for (incoming, claim) in [(0, 39), (324, 324)] {
            let budget = plan(360, 324, incoming, 4).unwrap();
            let expiry = 1000 + u32::from(budget.room);
            let last = last_send(expiry - claim, budget.outgoing).unwrap();
            assert_eq!(last, 1000 + 4 + SLACK);
            // Sent at the last moment and late, it is over before the incoming one has to be claimed.
            assert_eq!(last + LATE + budget.outgoing + LDK_EXTRA + SETTLE, expiry - claim);
        }
        assert_eq!(last_send(100, 363), None);
    }
}
