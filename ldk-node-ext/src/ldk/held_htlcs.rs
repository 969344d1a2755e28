//! HTLCs that this node's own newest commitments carry, as the signer has seen them.
//!
//! LDK drops an inbound HTLC that was claimed from its channel list as soon as the peer has revoked, while
//! our own commitment still carries it until the peer signs the next one. A peer that withholds that
//! signature keeps the HTLC alive without anything in the list to show for it. The signer sees both: each
//! new commitment of ours, and with each commitment of the peer the preimages of what was claimed.
//!
//! On disk before the signer returns, so that a restart forgets nothing. A channel without inbound HTLCs has
//! no record and costs no write.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use factory_core::faults::switch;
use lightning::ln::chan_utils::HTLCOutputInCommitment;
use lightning::ln::types::ChannelId;
use lightning::types::payment::{PaymentHash, PaymentPreimage};
use lightning::util::persist::KVStoreSync;
use serde::{Deserialize, Serialize};

use super::Outpoints;
use crate::error::Error;
use crate::store::{records, Store};
use crate::util::lock;

const NAMESPACE: &str = "held_htlcs";
const VERSION: u32 = 1;

/// An inbound HTLC with an output on our newest commitment whose preimage we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldHtlc {
    /// Height at which the peer may take it back.
    pub(crate) expiry: u32,
    pub(crate) payment_hash: PaymentHash,
}

/// An inbound HTLC with an output on our newest commitment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inbound {
    expiry: u32,
    /// Hex.
    #[serde(with = "hex::serde")]
    payment_hash: [u8; 32],
    claimed: bool,
}

type Channels = HashMap<ChannelId, Vec<Inbound>>;

/// The HTLCs of every factory channel; at most LDK's 50 a channel.
pub struct HeldHtlcs {
    outpoints: Arc<Outpoints>,
    store: Arc<Store>,
    channels: Mutex<Channels>,
}

impl HeldHtlcs {
    /// Knows of nothing before [`Self::load`].
    pub(crate) fn new(outpoints: Arc<Outpoints>, store: Arc<Store>) -> Self {
        Self { outpoints, store, channels: Mutex::default() }
    }

    /// Reads what the last process knew of channels that are still a factory's, and removes the rest. The
    /// factories must be known.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub(crate) fn load(&self) -> Result<(), Error> {
        let mut channels = lock(&self.channels);
        for (key, inbound) in records::all::<Vec<Inbound>>(&*self.store, NAMESPACE, VERSION)? {
            let mut id = [0; 32];
            hex::decode_to_slice(&key, &mut id)
                .map_err(|e| Error::Corrupt { key: format!("{NAMESPACE}/{key}"), reason: e.to_string() })?;
            let channel = ChannelId(id);
            if self.outpoints.is_factory(&channel) {
                channels.insert(channel, inbound);
            } else {
                self.write(&channel, &[])?;
            }
        }
        Ok(())
    }

    fn write(&self, channel: &ChannelId, inbound: &[Inbound]) -> Result<(), Error> {
        let key = hex::encode(channel.0);
        if inbound.is_empty() {
            return self
                .store
                .remove(NAMESPACE, "", &key, false)
                .map_err(|e| Error::Store(format!("{NAMESPACE}/{key}: {e}")));
        }
        records::put(&*self.store, NAMESPACE, &key, VERSION, &inbound)
    }

    /// Takes over what a channel carries now.
    fn set(&self, channels: &mut Channels, channel: ChannelId, inbound: Vec<Inbound>) {
        if channels.get(&channel).map_or(&[][..], |old| old) == inbound {
            return;
        }
        // The channel goes on: to stop the signer would close it, and LDK's list has most of this too.
        if let Err(e) = self.write(&channel, &inbound) {
            tracing::error!(%channel, error = %e, "HTLCs of a commitment not stored; a restart may forget them");
        }
        if inbound.is_empty() {
            channels.remove(&channel);
        } else {
            channels.insert(channel, inbound);
        }
    }

    /// Our newest commitment carries these HTLCs, and no others.
    pub(super) fn own_commitment(&self, channel: ChannelId, htlcs: &[HTLCOutputInCommitment]) {
        if !self.outpoints.is_factory(&channel) {
            return;
        }
        let mut channels = lock(&self.channels);
        let old = channels.get(&channel).map_or(&[][..], |old| old);
        let claimed = |hash: &[u8; 32]| old.iter().any(|h| h.claimed && h.payment_hash == *hash);
        let inbound = htlcs
            .iter()
            .filter(|h| !h.offered)
            .map(|h| Inbound {
                expiry: h.cltv_expiry,
                payment_hash: h.payment_hash.0,
                claimed: claimed(&h.payment_hash.0),
            })
            .collect();
        self.set(&mut channels, channel, inbound);
    }

    /// The peer's next commitment leaves out inbound HTLCs that were claimed with these preimages.
    pub(super) fn claimed(&self, channel: ChannelId, preimages: &[PaymentPreimage]) {
        let mut channels = lock(&self.channels);
        let Some(mut inbound) = channels.get(&channel).cloned() else { return };
        let hashes: Vec<[u8; 32]> = preimages.iter().map(|p| PaymentHash::from(*p).0).collect();
        for htlc in &mut inbound {
            htlc.claimed |= hashes.contains(&htlc.payment_hash) && !switch("htlc.held_forgotten");
        }
        self.set(&mut channels, channel, inbound);
    }

    /// Claimed inbound HTLCs that are still on our newest commitment of a channel.
    pub(crate) fn claimed_inbound(&self, channel: &ChannelId) -> Vec<HeldHtlc> {
        let channels = lock(&self.channels);
        let claimed = channels.get(channel).into_iter().flatten().filter(|h| h.claimed);
        claimed.map(|h| HeldHtlc { expiry: h.expiry, payment_hash: PaymentHash(h.payment_hash) }).collect()
    }
}
