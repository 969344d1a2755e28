//! HTLCs that this node's own newest commitments carry, as the signer has seen them.
//!
//! LDK drops an inbound HTLC that was claimed from its channel list as soon as the peer has revoked, while
//! our own commitment still carries it until the peer signs the next one. A peer that withholds that
//! signature keeps the HTLC alive without anything in the list to show for it. The signer sees both: each
//! new commitment of ours, and with each commitment of the peer the preimages of what was claimed.
//!
//! In memory only: after a restart a channel is unknown until its next commitment.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bitcoin::OutPoint;
use lightning::ln::chan_utils::HTLCOutputInCommitment;
use lightning::ln::types::ChannelId;
use lightning::types::payment::{PaymentHash, PaymentPreimage};

use super::{channel_id, Outpoints};
use crate::util::lock;

/// An inbound HTLC with an output on our newest commitment whose preimage we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldHtlc {
    /// Height at which the peer may take it back.
    pub(crate) expiry: u32,
    pub(crate) payment_hash: PaymentHash,
}

#[derive(Default)]
struct Held {
    inbound: Vec<HeldHtlc>,
    claimed: HashSet<PaymentHash>,
}

/// The HTLCs of every factory channel; at most LDK's 50 a channel.
pub struct HeldHtlcs {
    outpoints: Arc<Outpoints>,
    channels: Mutex<HashMap<ChannelId, Held>>,
}

impl HeldHtlcs {
    pub(crate) fn new(outpoints: Arc<Outpoints>) -> Self {
        Self { outpoints, channels: Mutex::default() }
    }

    /// Our newest commitment carries these HTLCs, and no others.
    pub(super) fn own_commitment(&self, funding: OutPoint, htlcs: &[HTLCOutputInCommitment]) {
        let channel = channel_id(funding);
        if !self.outpoints.is_factory(&channel) {
            return;
        }
        let mut channels = lock(&self.channels);
        let held = channels.entry(channel).or_default();
        held.inbound = htlcs
            .iter()
            .filter(|h| !h.offered)
            .map(|h| HeldHtlc { expiry: h.cltv_expiry, payment_hash: h.payment_hash })
            .collect();
        held.claimed.retain(|hash| held.inbound.iter().any(|h| h.payment_hash == *hash));
        if held.inbound.is_empty() {
            channels.remove(&channel);
        }
    }

    /// The peer's next commitment leaves out inbound HTLCs that were claimed with these preimages.
    pub(super) fn claimed(&self, funding: OutPoint, preimages: &[PaymentPreimage]) {
        let mut channels = lock(&self.channels);
        let Some(held) = channels.get_mut(&channel_id(funding)) else { return };
        let hashes = preimages.iter().map(|p| PaymentHash::from(*p));
        held.claimed.extend(hashes.filter(|hash| held.inbound.iter().any(|h| h.payment_hash == *hash)));
    }

    /// Claimed inbound HTLCs that are still on our newest commitment of a channel.
    pub(crate) fn claimed_inbound(&self, channel: &ChannelId) -> Vec<HeldHtlc> {
        let channels = lock(&self.channels);
        let Some(held) = channels.get(channel) else { return Vec::new() };
        held.inbound.iter().filter(|h| held.claimed.contains(&h.payment_hash)).copied().collect()
    }
}
