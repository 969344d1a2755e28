//! LDK's events about money on the chain, in the form that the chain knows.
//!
//! Bump events are changed before LDK's handler sees them, so that it works with real outpoints only: coins, anchor
//! and HTLC inputs, signatures. Spendable outputs are changed before the sweeper sees them; it never hears of a V.

use bitcoin::OutPoint;
use factory_core::faults::switch;
use lightning::events::bump_transaction::BumpTransactionEvent;
use lightning::sign::{HTLCDescriptor, SpendableOutputDescriptor};

use super::outgoing::Outward;

/// What became of a bump event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bump {
    /// Of no rotated channel: as it was, and subject to the gate.
    Plain,
    /// Not now; LDK asks again.
    Held,
    /// Changed, and its R is confirmed.
    Real,
}

impl Outward {
    /// Changes a bump event to what the chain knows.
    pub(crate) fn bump(&self, event: &mut BumpTransactionEvent) -> Bump {
        if switch("virt.bump.v_form") {
            return Bump::Plain;
        }
        match event {
            BumpTransactionEvent::ChannelClose { commitment_tx, anchor_descriptor, .. } => {
                match self.commitment(commitment_tx) {
                    None => Bump::Plain,
                    Some(None) => Bump::Held,
                    Some(Some(real)) => {
                        anchor_descriptor.outpoint.txid = real.compute_txid();
                        *commitment_tx = real;
                        Bump::Real
                    }
                }
            }
            BumpTransactionEvent::HTLCResolution { htlc_descriptors, .. } => {
                let before = htlc_descriptors.len();
                let mut changed = false;
                htlc_descriptors.retain_mut(|descriptor| match self.htlc(descriptor) {
                    Bump::Held => false,
                    answer => {
                        changed |= answer == Bump::Real;
                        true
                    }
                });
                match (htlc_descriptors.is_empty() && before > 0, changed) {
                    (true, _) => Bump::Held,
                    (false, true) => Bump::Real,
                    (false, false) => Bump::Plain,
                }
            }
        }
    }

    /// Points an HTLC of our own commitment to where it is on the chain.
    fn htlc(&self, descriptor: &mut HTLCDescriptor) -> Bump {
        let commitment = descriptor.commitment_txid;
        let Some((real_txid, (v, real))) = self.mapping.below(&commitment) else { return Bump::Plain };
        descriptor.commitment_txid = real_txid;
        if v != real {
            let Some(signature) = self.htlc_signature(&v, &real, descriptor) else {
                tracing::error!(%v, %real, %commitment, "no companion for an HTLC of our commitment");
                return Bump::Held;
            };
            descriptor.counterparty_sig = signature;
        }
        Bump::Real
    }

    /// Spendable outputs as they are on the chain.
    pub(crate) fn spendable(&self, outputs: &mut [SpendableOutputDescriptor]) {
        for output in outputs.iter_mut().filter(|_| !switch("virt.sweep.v_form")) {
            let outpoint = match output {
                SpendableOutputDescriptor::StaticOutput { outpoint, .. } => outpoint,
                SpendableOutputDescriptor::DelayedPaymentOutput(d) => &mut d.outpoint,
                SpendableOutputDescriptor::StaticPaymentOutput(d) => &mut d.outpoint,
            };
            if let Some(real) = self.mapping.real_txid(&outpoint.txid) {
                let was: OutPoint = outpoint.into_bitcoin_outpoint();
                outpoint.txid = real;
                tracing::debug!(%was, now = %outpoint, "spendable output");
            }
        }
    }
}
