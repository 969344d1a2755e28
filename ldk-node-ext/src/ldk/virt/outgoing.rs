//! From LDK to the chain: transactions and prevouts in the form that the chain knows.
//!
//! What LDK made spends a V, or something below one. Below a V the R-form has other ids and the same witnesses: the
//! signer signs for the R-form already ([`Mapping::in_r_form`]). A commitment of our own on R needs other signatures,
//! the peer's among them: its *companion* ([`Commitments`]).
//!
//! The R that counts is the confirmed one. As long as none is, nothing that spends V leaves; LDK hands it out again
//! with every block. Nothing of ours that spends a retired V leaves: after the first update it is revoked. Only where
//! there was none, and the channel is closed, so that there will be none, it may ([`super::Changes::leave`]).

use std::sync::Arc;

use bitcoin::secp256k1::ecdsa::Signature;
use bitcoin::{OutPoint, Transaction, Txid};
use factory_core::faults::switch;
use lightning::sign::HTLCDescriptor;

use super::commitments::Commitments;
use super::map::{Mapping, Real};
use crate::keys::Keys;
use crate::util::read;

/// Where transactions of LDK may go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Of no rotated channel: out as they are, through the gate.
    Plain,
    /// Not now.
    Held,
    /// Out in this form, past the gate: their R is confirmed.
    Real(Vec<Transaction>),
}

/// An output of V that has a confirmed R, by what spends it.
pub(super) struct Confirmed {
    pub(super) v: OutPoint,
    pub(super) real: Real,
}

/// See the module's description.
pub struct Outward {
    pub(super) mapping: Arc<Mapping>,
    commitments: Arc<Commitments>,
    keys: Arc<Keys>,
}

impl Mapping {
    /// The id on the chain of a transaction that LDK knows by this one; none for what is not below a V.
    pub(crate) fn real_txid(&self, virt: &Txid) -> Option<Txid> {
        self.below(virt).map(|(real, _)| real)
    }

    /// As [`Self::real_txid`], with the V and the R that it is below. On several branches of the chain there may have
    /// been several: the confirmed one counts, else the newest.
    pub(super) fn below(&self, virt: &Txid) -> Option<(Txid, (OutPoint, OutPoint))> {
        let inner = read(&self.inner);
        let forms = || inner.channels.values().flat_map(|c| &c.forms).filter(|f| f.virt == *virt);
        let found = forms().find(|f| f.place.is_some()).or_else(|| forms().last())?;
        Some((found.real, found.under))
    }

    /// A transaction below a V with the prevouts that it has on the chain: what has to be signed. Anything else as it
    /// is.
    pub(crate) fn in_r_form(&self, tx: &Transaction) -> Transaction {
        let mut tx = tx.clone();
        if read(&self.inner).channels.is_empty() {
            return tx;
        }
        for input in &mut tx.input {
            if let Some(real) = self.real_txid(&input.previous_output.txid) {
                input.previous_output.txid = real;
            }
        }
        tx
    }

    /// Whether V is known, and its confirmed R unless what is ours on V may be revoked.
    pub(super) fn confirmed(&self, v: &OutPoint) -> Option<Option<Real>> {
        let inner = read(&self.inner);
        let (_, known) = inner.virtual_ref(v)?;
        let sent = !known.retired || known.left || switch("virt.retired.sent");
        let (outpoint, _) = known.confirmed.filter(|_| sent).unzip();
        Some(outpoint.and_then(|o| known.reals.iter().find(|r| r.outpoint == o).cloned()))
    }
}

impl Outward {
    pub(crate) fn new(mapping: Arc<Mapping>, commitments: Arc<Commitments>, keys: Arc<Keys>) -> Self {
        Self { mapping, commitments, keys }
    }

    /// Transactions that LDK hands out together, parents first, as they may leave.
    pub(crate) fn way(&self, txs: &[&Transaction]) -> Way {
        let mut out = Vec::with_capacity(txs.len());
        let mut own: Vec<(Txid, Txid)> = Vec::new();
        let mut changed = false;
        for tx in txs {
            let mut real = self.mapping.in_r_form(tx);
            for input in &mut real.input {
                if let Some((_, txid)) = own.iter().find(|(virt, _)| *virt == input.previous_output.txid) {
                    input.previous_output.txid = *txid;
                }
            }
            match self.commitment(tx) {
                None => {}
                Some(None) => return Way::Held,
                Some(Some(commitment)) => {
                    own.push((tx.compute_txid(), commitment.compute_txid()));
                    real = commitment;
                    changed = true;
                }
            }
            changed |= real != **tx;
            out.push(real);
        }
        if changed {
            Way::Real(out)
        } else {
            Way::Plain
        }
    }

    /// A commitment of ours on a known V: as it may leave, or that it may not. None for anything else.
    pub(super) fn commitment(&self, tx: &Transaction) -> Option<Option<Transaction>> {
        let spent = tx.input.first()?.previous_output;
        let real = match self.mapping.confirmed(&spent)? {
            None => return Some(None),
            Some(real) => real,
        };
        let confirmed = Confirmed { v: spent, real };
        Some(self.on_confirmed(tx, &confirmed))
    }

    /// The peer's signature for the transaction of an HTLC of our commitment on a real outpoint.
    pub(super) fn htlc_signature(
        &self,
        v: &OutPoint,
        real: &OutPoint,
        htlc: &HTLCDescriptor,
    ) -> Option<Signature> {
        let output = htlc.htlc.transaction_output_index?;
        self.commitments.htlc_signature(v, htlc.per_commitment_number, real, output)
    }

    fn on_confirmed(&self, tx: &Transaction, confirmed: &Confirmed) -> Option<Transaction> {
        if confirmed.v == confirmed.real.outpoint {
            return Some(tx.clone());
        }
        let Confirmed { v, real } = confirmed;
        let number = self.commitments.own_number(v, &tx.compute_txid());
        let signer = |keys_id| self.keys.channel_signer(keys_id);
        let found = number.and_then(|number| self.commitments.own_on(v, number, &real.outpoint, signer));
        if found.is_none() {
            tracing::error!(%v, real = %real.outpoint, "no companion for our commitment");
        }
        found
    }
}
