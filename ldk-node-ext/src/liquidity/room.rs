//! How much each channel with a client can send now.
//!
//! LDK puts an HTLC that it is told to forward into a channel a moment later, and counts it only then. Until then it is
//! taken off here, or several payments would be sent into the same room.

use std::time::{Duration, Instant};

use bitcoin::secp256k1::PublicKey;
use lightning::events::{InboundHTLCLocator, OutboundHTLCLocator};
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::types::ChannelId;
use lightning::types::payment::PaymentHash;

use super::is_jit;
use super::offer::Kept;
use crate::error::Error;
use crate::node::Parts;
use crate::util::lock;

/// After so long LDK has put an HTLC into a channel, or has given it back.
const ON_THE_WAY: Duration = Duration::from_secs(2);

/// HTLCs that LDK has been told to forward, and that no channel shows yet.
#[derive(Default)]
pub(crate) struct Handed(Vec<(PublicKey, PaymentHash, u64, Instant)>);

/// A usable channel with a client and what it can send, msat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) channel: ChannelId,
    pub(super) msat: u64,
}

impl Handed {
    fn add(&mut self, peer: PublicKey, hash: PaymentHash, msat: u64, now: Instant) {
        self.0.push((peer, hash, msat, now));
    }

    /// Takes what is on its way to a peer off its channels, each from the tightest that holds it, as LDK does.
    fn take_off(&mut self, peer: &PublicKey, channels: &[&ChannelDetails], rooms: &mut [Room], now: Instant) {
        let shown = |hash: &PaymentHash, msat: u64| {
            let pending = channels.iter().flat_map(|c| &c.pending_outbound_htlcs);
            pending.into_iter().any(|h| h.payment_hash == *hash && h.amount_msat == msat)
        };
        self.0.retain(|(to, hash, msat, at)| {
            now.saturating_duration_since(*at) < ON_THE_WAY && (to != peer || !shown(hash, *msat))
        });
        for (_, _, msat, _) in self.0.iter().filter(|(to, ..)| to == peer) {
            let fits = rooms.iter_mut().filter(|r| r.msat >= *msat).min_by_key(|r| r.msat);
            if let Some(room) = fits {
                room.msat = room.msat.saturating_sub(*msat);
            }
        }
    }
}

impl Handed {
    /// Whether one is on its way that no channel shows yet.
    fn has(&self, peer: &PublicKey, hash: &str, now: Instant) -> bool {
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < ON_THE_WAY;
        self.0.iter().any(|(to, h, _, at)| to == peer && fresh(at) && hex::encode(h.0) == hash)
    }

    /// One has been settled; it may have been so fast that no channel ever showed it.
    fn settled(&mut self, peer: &PublicKey, msat: u64) {
        if let Some(at) = self.0.iter().position(|(to, _, sum, _)| to == peer && *sum == msat) {
            self.0.remove(at);
        }
    }
}

impl Parts {
    /// An HTLC that came `from` somewhere has been sent on and settled, and this was kept of it beyond the forwarding fee, msat.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn forwarded(
        &self,
        from: Option<&InboundHTLCLocator>,
        htlc: &OutboundHTLCLocator,
        kept_msat: u64,
    ) -> Result<(), Error> {
        if let Some((peer, msat)) = htlc.node_id.zip(htlc.amount_msat) {
            lock(&self.liquidity.handed).settled(&peer, msat);
        }
        let came = from.and_then(|from| Some((hex::encode(from.channel_id.0), from.htlc_id?)));
        if let (Some(peer), Some(came), 1..) = (htlc.node_id, came, kept_msat) {
            self.fee_kept(&Kept { peer, htlc: came, channel: htlc.user_channel_id, msat: kept_msat })?;
        }
        htlc.user_channel_id.filter(|id| is_jit(*id)).map_or(Ok(()), |id| self.jit_taken(id))
    }

    /// Whether LDK has been told to forward an HTLC with this hash to a peer, and no channel shows it yet.
    pub(super) fn is_handed(&self, peer: &PublicKey, hash: &str) -> bool {
        lock(&self.liquidity.handed).has(peer, hash, Instant::now())
    }

    /// The usable channels with a peer whose funding is deep enough, and what each can send now.
    pub(super) fn rooms(&self, peer: &PublicKey, open: &[ChannelDetails]) -> Vec<Room> {
        let of_peer = |c: &&ChannelDetails| c.counterparty.node_id == *peer;
        let channels: Vec<&ChannelDetails> = open.iter().filter(of_peer).collect();
        // Over one that a wallet has not paid for nothing goes but what pays for it.
        let usable = channels.iter().filter(|c| {
            c.is_usable && self.depth.suffices(&c.channel_id) && !self.is_unpaid(c.user_channel_id)
        });
        let mut rooms: Vec<Room> =
            usable.map(|c| Room { channel: c.channel_id, msat: c.next_outbound_htlc_limit_msat }).collect();
        lock(&self.liquidity.handed).take_off(peer, &channels, &mut rooms, Instant::now());
        rooms
    }

    /// Whether one of a client's channels has room for an HTLC.
    pub(crate) fn has_room(&self, peer: &PublicKey, open: &[ChannelDetails], msat: u64) -> bool {
        self.rooms(peer, open).iter().any(|room| room.msat >= msat)
    }

    /// Whether LDK would send an HTLC for a peer over a channel that the peer has not paid for: it takes the tightest one
    /// that has the room, whichever it is told.
    pub(crate) fn goes_unpaid(&self, peer: &PublicKey, open: &[ChannelDetails], msat: u64) -> bool {
        let fits = open.iter().filter(|c| {
            c.counterparty.node_id == *peer && c.is_usable && c.next_outbound_htlc_limit_msat >= msat
        });
        let taken = fits.min_by_key(|c| c.next_outbound_htlc_limit_msat);
        taken.is_some_and(|c| self.is_unpaid(c.user_channel_id))
    }

    /// Notes that LDK has been told to forward an HTLC.
    pub(crate) fn note_handed(&self, peer: PublicKey, hash: PaymentHash, msat: u64) {
        lock(&self.liquidity.handed).add(peer, hash, msat, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_takes_the_tightest_room_for_a_while() {
        let peer: PublicKey =
            "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
        let room = |n, msat| Room { channel: ChannelId([n; 32]), msat };
        let start = Instant::now();
        let mut handed = Handed::default();
        handed.add(peer, PaymentHash([1; 32]), 60, start);
        handed.add(peer, PaymentHash([2; 32]), 60, start);
        let mut rooms = [room(1, 200), room(2, 100)];
        handed.take_off(&peer, &[], &mut rooms, start);
        assert_eq!(rooms, [room(1, 140), room(2, 40)]);
        handed.settled(&peer, 60);
        let mut rooms = [room(1, 200), room(2, 100)];
        handed.take_off(&peer, &[], &mut rooms, start);
        assert_eq!(rooms, [room(1, 200), room(2, 40)], "one is over");
        let mut rooms = [room(1, 200), room(2, 100)];
        handed.take_off(&peer, &[], &mut rooms, start + ON_THE_WAY);
        assert_eq!(rooms, [room(1, 200), room(2, 100)]);
        assert!(handed.0.is_empty());
    }
}
