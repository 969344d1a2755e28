//! HTLCs on factory channels: which are accepted and forwarded, and which need an exit.

use std::collections::HashMap;
use std::sync::Mutex;

use bitcoin::hashes::{sha256, Hash, HashEngine};
use bitcoin::secp256k1::PublicKey;
use lightning::ln::channel_state::{
    ChannelDetails, InboundHTLCDetails, InboundHTLCStateDetails, OutboundHTLCStateDetails,
};
use lightning::ln::channelmanager::InterceptId;
use lightning::ln::types::ChannelId;
use lightning::types::payment::PaymentHash;
use serde_json::json;

use super::Parts;
use crate::api::{Direction, PaymentStatus};
use crate::config::RoleConfig;
use crate::faults;
use crate::htlc_rules::{
    alarm, check_expiry, check_forward, DueSince, HtlcAlarm, HtlcKind, Limits, PerBlock, Refusal, Side,
};
use crate::ldk::CLTV_EXPIRY_DELTA;
use crate::liquidity::Full;
use crate::util::lock;

/// Events of refused HTLCs a block: anybody can cause them, and the event log is bounded.
const REFUSAL_EVENTS: u32 = 50;
/// Blocks before an HTLC's expiry at which LDK fails it back; `claim_deadline` is that much earlier
/// (`HTLC_FAIL_BACK_BUFFER` of LDK 0.3, which is private).
pub(super) const HTLC_FAIL_BACK_BUFFER: u32 = 39;

/// What is remembered of HTLCs from one block to the next.
#[derive(Default)]
pub(crate) struct HtlcMemory {
    refusals: Mutex<PerBlock>,
    due: Mutex<HashMap<ChannelId, DueSince>>,
}

/// An HTLC that LDK asks about before it forwards it.
#[derive(Clone, Debug)]
pub(crate) struct Intercepted {
    pub(crate) id: InterceptId,
    pub(crate) next_scid: u64,
    pub(crate) payment_hash: PaymentHash,
    /// What is to be sent on, msat.
    pub(crate) amount_msat: u64,
    /// What came in, msat.
    pub(crate) inbound_msat: u64,
    /// None from LDK before 0.3 only.
    pub(crate) outgoing_expiry: Option<u32>,
}

/// Where an HTLC goes next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NextHop {
    /// The channel that the sender named.
    pub(crate) channel: ChannelId,
    /// With whom.
    pub(crate) peer: PublicKey,
}

/// LDK's id of an intercepted HTLC (`InterceptId::from_htlc_id_and_chan_id`, which is private).
fn intercept_id(htlc_id: u64, channel: &ChannelId, offered_by: &PublicKey) -> InterceptId {
    let mut engine = sha256::Hash::engine();
    engine.input(&htlc_id.to_be_bytes());
    engine.input(&channel.0);
    engine.input(&offered_by.serialize());
    InterceptId(sha256::Hash::from_engine(engine).to_byte_array())
}

/// The channel that an HTLC came by, and its expiry there.
fn source<'a>(channels: &'a [ChannelDetails], htlc: &Intercepted) -> Option<(&'a ChannelDetails, u32)> {
    channels.iter().find_map(|c| {
        let of_it = c.pending_inbound_htlcs.iter().find(|h| {
            h.payment_hash == htlc.payment_hash
                && intercept_id(h.htlc_id, &c.channel_id, &c.counterparty.node_id) == htlc.id
        });
        of_it.map(|h| (c, h.cltv_expiry))
    })
}

impl Parts {
    /// The limits of a channel, if it is a factory's.
    fn limits(&self, channel: &ChannelId) -> Option<Limits> {
        let known = self.outpoints.get(channel)?;
        Some(Limits::new(known.claim_budget, self.config.claim_margin_blocks))
    }

    /// The limits of the strictest of several channels.
    pub(crate) fn strictest<'a>(&self, channels: impl Iterator<Item = &'a ChannelId>) -> Option<Limits> {
        channels.filter_map(|c| self.limits(c)).reduce(Limits::stricter)
    }

    /// Whether a payment that came over these channels leaves enough time to claim it on the chain, should
    /// the peer stop answering. Our own invoices ask for that much; spontaneous payments may not have it.
    /// If not, it is failed back.
    pub(super) fn accept_or_fail_back(
        &self,
        payment_hash: &PaymentHash,
        channels: &[(ChannelId, Option<u128>)],
        claim_deadline: Option<u32>,
    ) -> bool {
        let limits = self.strictest(channels.iter().map(|(id, _)| id));
        let expiry = claim_deadline.map_or(u32::MAX, |d| d.saturating_add(HTLC_FAIL_BACK_BUFFER));
        let late = check_expiry(self.height(), Side { limits, expiry });
        let Err(refusal) = late.and_then(|()| self.check_depth(channels)) else { return true };
        self.manager.fail_htlc_backwards(payment_hash);
        self.refused(payment_hash, &refusal);
        false
    }

    /// Whether all these channels may be paid over, as far as the chain goes.
    pub(super) fn check_depth(&self, channels: &[(ChannelId, Option<u128>)]) -> Result<(), Refusal> {
        channels.iter().try_for_each(|(id, _)| self.depth.check(id))
    }

    /// The last height at which a payment that came over these channels may be claimed; without a deadline
    /// it could be held for too long.
    pub(super) fn claim_by(
        &self,
        channels: &[(ChannelId, Option<u128>)],
        claim_deadline: Option<u32>,
    ) -> u32 {
        let Some(deadline) = claim_deadline else { return 0 };
        let limits = self.strictest(channels.iter().map(|(id, _)| id));
        let expiry = deadline.saturating_add(HTLC_FAIL_BACK_BUFFER);
        limits.map_or(deadline, |l| deadline.min(l.last_claim(expiry)))
    }

    /// Forwards an HTLC, or fails it back. Harmless if repeated: LDK answers for each HTLC once.
    pub(super) fn intercepted(&self, htlc: &Intercepted) {
        faults::point("lsp.intercepted");
        let result = self.try_forward(htlc);
        faults::point("lsp.forward.decided");
        if let Err(refusal) = result {
            if self.manager.fail_intercepted_htlc(htlc.id).is_ok() {
                self.refused(&htlc.payment_hash, &refusal);
            }
        }
    }

    /// The channel that an HTLC goes to next, if the rules for factory channels allow it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn next_hop(
        &self,
        channels: &[ChannelDetails],
        htlc: &Intercepted,
    ) -> Result<NextHop, Refusal> {
        let (from, incoming_expiry) = source(channels, htlc).ok_or(Refusal::UnknownSource)?;
        let asked = Some(htlc.next_scid);
        let to = channels
            .iter()
            .find(|c| c.outbound_scid_alias == asked || c.short_channel_id == asked)
            .ok_or(Refusal::NotUsable)?;
        let peer = to.counterparty.node_id;
        // LDK takes whichever channel with that peer fits.
        let of_peer = channels.iter().filter(|c| c.counterparty.node_id == peer && c.is_channel_ready);
        let of_peer = of_peer.map(|c| &c.channel_id);
        of_peer.clone().chain([&from.channel_id]).try_for_each(|c| self.depth.check(c))?;
        let incoming = Side { limits: self.limits(&from.channel_id), expiry: incoming_expiry };
        let outgoing =
            Side { limits: self.strictest(of_peer), expiry: htlc.outgoing_expiry.unwrap_or_default() };
        check_forward(self.height(), incoming, outgoing)?;
        Ok(NextHop { channel: to.channel_id, peer })
    }

    /// Gives an HTLC to LDK, which sends it on over any channel with that peer that has room. False if LDK does not take
    /// it.
    pub(crate) fn pass_on(&self, htlc: &Intercepted, channel: &ChannelId, peer: PublicKey) -> bool {
        let sent = self.manager.forward_intercepted_htlc(htlc.id, channel, peer, htlc.amount_msat).is_ok();
        if sent {
            self.note_handed(peer, htlc.payment_hash, htlc.amount_msat);
        }
        sent
    }

    /// Whether what came to the id of an LSPS2 offer may be sent on. Of such an HTLC LDK checks next to nothing.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn check_bought(
        &self,
        channels: &[ChannelDetails],
        htlc: &Intercepted,
    ) -> Result<(), Refusal> {
        let (from, expiry) = source(channels, htlc).ok_or(Refusal::UnknownSource)?;
        if self.liquidity.offers.get(htlc.next_scid).is_none() {
            return Err(Refusal::NotUsable);
        }
        self.depth.check(&from.channel_id)?;
        if htlc.amount_msat > htlc.inbound_msat {
            return Err(Refusal::NoRoom("less has come than is to be sent on"));
        }
        let incoming = Side { limits: self.limits(&from.channel_id), expiry };
        let outgoing = Side { limits: None, expiry: htlc.outgoing_expiry.unwrap_or(u32::MAX) };
        let (delta, limit) = (expiry.saturating_sub(outgoing.expiry), u32::from(CLTV_EXPIRY_DELTA));
        if delta < limit {
            return Err(Refusal::DeltaTooSmall { delta, limit });
        }
        check_forward(self.height(), incoming, outgoing)
    }

    fn try_forward(&self, htlc: &Intercepted) -> Result<(), Refusal> {
        let channels = self.manager.list_channels();
        let full = |full| match full {
            Full::Client => Refusal::NoRoom("too many payments are held for this client"),
            Full::All => Refusal::NoRoom("too many payments are held"),
        };
        if let Some(offer) = self.liquidity.offers.get(htlc.next_scid) {
            self.check_bought(&channels, htlc)?;
            return self.hold_for(offer.peer, htlc, true).map_err(full);
        }
        let next = self.next_hop(&channels, htlc)?;
        if self.goes_unpaid(&next.peer, &channels, htlc.amount_msat) {
            return Err(Refusal::NoRoom("the opening fee of its channel has not been paid"));
        }
        // A client without room is served, if it can be.
        if !self.has_room(&next.peer, &channels, htlc.amount_msat) && self.is_served(&next.peer) {
            return self.hold_for(next.peer, htlc, false).map_err(full);
        }
        if !self.pass_on(htlc, &next.channel, next.peer) {
            return Err(Refusal::NotUsable);
        }
        self.count_forward();
        Ok(())
    }

    /// Whether there may be another event of a payment that passes: anybody can cause them.
    pub(crate) fn may_tell(&self) -> bool {
        lock(&self.htlcs.refusals).pass(self.height(), REFUSAL_EVENTS)
    }

    /// Tells that an HTLC was failed back.
    pub(crate) fn refused(&self, payment_hash: &PaymentHash, refusal: &Refusal) {
        let payment_hash = hex::encode(payment_hash.0);
        tracing::warn!(payment_hash, ?refusal, "HTLC failed back");
        if !self.may_tell() {
            return;
        }
        let (blocks, limit) = refusal.numbers().unzip();
        self.events.push(
            "htlc_refused",
            json!({
                "payment_hash": payment_hash,
                "reason": refusal.to_string(),
                "value": blocks,
                "limit": limit,
            }),
        );
    }

    /// The HTLC on a factory channel for which an exit has to start at `height`, if there is one. To be
    /// asked at every block: it remembers since when an HTLC has been due. `all` are LDK's channels.
    pub(crate) fn htlc_alarm(
        &self,
        channel: &ChannelId,
        all: &[ChannelDetails],
        height: u32,
    ) -> Option<HtlcAlarm> {
        let claim_budget = self.outpoints.get(channel)?.claim_budget?;
        let known = all.iter().find(|c| c.channel_id == *channel);
        let pending = known.map(|c| self.endangered(c, all)).unwrap_or_default();
        let mut due = lock(&self.htlcs.due);
        let found = alarm(&pending, claim_budget, height, due.entry(*channel).or_default());
        due.retain(|_, since| !since.is_empty());
        found
    }

    /// HTLCs of a channel by which money is lost if they are not resolved in time.
    fn endangered(&self, channel: &ChannelDetails, all: &[ChannelDetails]) -> Vec<HtlcAlarm> {
        let listed = channel
            .pending_inbound_htlcs
            .iter()
            .filter(|h| !h.is_dust && self.is_claimed(h, all))
            .map(|h| (h.cltv_expiry, h.payment_hash));
        let held = self.held.claimed_inbound(&channel.channel_id);
        let mut pending: Vec<HtlcAlarm> = listed
            .chain(held.into_iter().map(|h| (h.expiry, h.payment_hash)))
            .map(|(expiry, payment_hash)| HtlcAlarm { expiry, payment_hash, kind: HtlcKind::Claimed })
            .collect();
        // One that the peer has failed may still be on its commitment; one that it has claimed cost us
        // nothing more.
        let outbound = channel
            .pending_outbound_htlcs
            .iter()
            .filter(|h| h.state != Some(OutboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveSuccess))
            .filter(|h| !h.is_dust);
        pending.extend(outbound.map(|h| HtlcAlarm {
            expiry: h.cltv_expiry,
            payment_hash: h.payment_hash,
            kind: if self.is_own(&h.payment_hash, all) { HtlcKind::Own } else { HtlcKind::Forwarded },
        }));
        pending
    }

    /// Whether an inbound HTLC has been claimed. LDK's list says so, also of a claim that the peer was not
    /// there to hear of. Where it does not say, one that waits for nothing any more counts as claimed: that
    /// only adds alarms, and an exit too many is the price.
    fn is_claimed(&self, htlc: &InboundHTLCDetails, all: &[ChannelDetails]) -> bool {
        let undecided = match htlc.state {
            Some(InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFulfill) => return true,
            Some(InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFail) => return false,
            _ => htlc.payment_hash,
        };
        if let Some(paid_on) = self.relays.is_paid_on(&undecided) {
            return paid_on;
        }
        if let Ok(Some(payment)) = self.payments.get(&undecided, Direction::In) {
            return !matches!(payment.status, PaymentStatus::Failed | PaymentStatus::Held);
        }
        let going_out =
            |c: &ChannelDetails| c.pending_outbound_htlcs.iter().any(|h| h.payment_hash == undecided);
        matches!(self.config.role, RoleConfig::Lsp(_)) && !all.iter().any(going_out)
    }

    /// Whether an outbound HTLC is for a payment of this node and of nobody else.
    fn is_own(&self, hash: &PaymentHash, all: &[ChannelDetails]) -> bool {
        let own = self.payments.get(hash, Direction::Out);
        let ours = matches!(own, Ok(Some(p)) if p.status == PaymentStatus::Pending);
        let incoming = |c: &ChannelDetails| c.pending_inbound_htlcs.iter().any(|h| h.payment_hash == *hash);
        ours && !all.iter().any(incoming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_covers_number_channel_and_peer() {
        let secret = bitcoin::secp256k1::SecretKey::from_slice(&[3; 32]).unwrap();
        let peer = secret.public_key(&bitcoin::secp256k1::Secp256k1::new());
        let mut bytes = vec![0, 0, 0, 0, 0, 0, 1, 2];
        bytes.extend([5; 32]);
        bytes.extend(peer.serialize());
        let expected = sha256::Hash::hash(&bytes).to_byte_array();
        assert_eq!(intercept_id(258, &ChannelId([5; 32]), &peer).0, expected);
    }
}
