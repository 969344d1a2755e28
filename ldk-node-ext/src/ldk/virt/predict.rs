//! The commitments on V' before LDK makes them.
//!
//! A change of capacity is a splice V -> V' to LDK. It makes the commitments on V' when it signs, and from there is no
//! way back; but no signature that lets R' confirm may leave before both sides have their commitments on R' (invariant
//! 3). So they are foretold. While a splice is negotiated the channel rests, and a commitment on V' differs from the
//! newest one on V in its funding outpoint, in the two keys of its funding output, which both sides have named in
//! `splice_init` and `splice_ack`, in the capacity, and in the balance of each side, by what it adds or takes. The number,
//! the point, the HTLCs and the fee stay.
//!
//! A balance too small for an output of its own is not known from the commitment. Nobody can foretell it after its
//! owner has added something, so that is refused.
//!
//! What was foretold stands in the channel's lists like any commitment, marked, so companions are made for it and
//! checked against it as ever. LDK then has to make the same: a `commitment_signed` that is not for it does not reach LDK,
//! and a signature of ours for anything else does not leave it.

use bitcoin::secp256k1::ecdsa::Signature;
use bitcoin::secp256k1::{All, Message, PublicKey, Secp256k1, SecretKey};
use bitcoin::{Amount, OutPoint, Transaction, TxOut, Txid};
use factory_core::faults::switch;
use lightning::ln::chan_utils::{
    make_funding_redeemscript, ChannelTransactionParameters, CommitmentTransaction,
    HolderCommitmentTransaction,
};
use lightning::sign::{ChannelSigner, InMemorySigner};

use super::channel::{same, Channel, Own, Theirs};
use super::companion;

/// Outputs below this are left out of a commitment: LDK's own dust limit, sat.
const DUST_SAT: u64 = 354;

/// What is known of a change of capacity before it is signed.
#[derive(Debug, Default)]
pub(super) struct Negotiation {
    /// What our caller has agreed to: what we add and what the peer adds, sat; negative for what is taken out.
    pub(super) agreed: Option<(i64, i64)>,
    /// LDK has what we add.
    pub(super) contributed: bool,
    /// What we have said in `splice_init` or `splice_ack`, sat.
    pub(super) ours_sat: Option<i64>,
    /// What the peer has: its funding key, and what it adds, sat.
    pub(super) theirs: Option<(PublicKey, i64)>,
    /// LDK's splice transaction.
    pub(super) tx: Option<Transaction>,
    /// The signature of a `commitment_signed` for another transaction than that of the V there was.
    pub(super) heard: Option<(Txid, Signature)>,
    /// By how much a test has us foretell wrongly, sat.
    #[cfg(test)]
    pub(super) off_sat: i64,
}

/// V' and the commitments on it.
pub(super) struct Foreseen {
    pub(super) v: OutPoint,
    pub(super) output: TxOut,
    parameters: ChannelTransactionParameters,
    own: CommitmentTransaction,
    theirs: CommitmentTransaction,
}

/// A balance after its owner has added something, sat.
fn shifted(before_sat: u64, added_sat: i64) -> Result<u64, String> {
    match before_sat.checked_add_signed(added_sat) {
        _ if added_sat == 0 => Ok(before_sat),
        Some(after) if before_sat > 0 && after >= DUST_SAT => Ok(after),
        _ => Err(format!("a balance of {before_sat} sat cannot change by {added_sat} sat: too small")),
    }
}

/// A commitment on V' made of the one on V.
fn moved(
    on_v: &CommitmentTransaction,
    parameters: &ChannelTransactionParameters,
    ours: bool,
    (broadcaster_sat, other_sat): (i64, i64),
    secp: &Secp256k1<All>,
) -> Result<CommitmentTransaction, String> {
    let directed = match ours {
        true => parameters.as_holder_broadcastable(),
        false => parameters.as_counterparty_broadcastable(),
    };
    Ok(CommitmentTransaction::new(
        on_v.commitment_number(),
        &on_v.per_commitment_point(),
        shifted(on_v.to_broadcaster_value_sat(), broadcaster_sat)?,
        shifted(on_v.to_countersignatory_value_sat(), other_sat)?,
        on_v.negotiated_feerate_per_kw(),
        on_v.nondust_htlcs().clone(),
        &directed,
        secp,
    ))
}

/// Stands where the peer's signature on V' will be.
fn nobodys(secp: &Secp256k1<All>) -> Result<Signature, String> {
    let key = SecretKey::from_slice(&[1; 32]).map_err(|e| e.to_string())?;
    Ok(secp.sign_ecdsa(&Message::from_digest([1; 32]), &key))
}

impl Channel {
    /// V' and what is on it, from the negotiation as it stands.
    ///
    /// # Errors
    /// What is missing or cannot be foretold.
    pub(super) fn foretell(
        &self,
        v: &OutPoint,
        signer: &InMemorySigner,
        secp: &Secp256k1<All>,
    ) -> Result<Foreseen, String> {
        let negotiation = &self.negotiation;
        let tx = negotiation.tx.as_ref().ok_or("no splice transaction yet")?;
        let ours = negotiation.ours_sat.ok_or("nothing was said of what we add")?;
        let (peer, theirs) = negotiation.theirs.ok_or("the peer has not said what it adds")?;
        if negotiation.agreed != Some((ours, theirs)) {
            return Err(format!("we add {ours} sat and the peer {theirs} sat, which was not agreed"));
        }
        let mut parameters = self.parameters(v).ok_or("no commitment on the outpoint before")?.clone();
        let newest_own = self.own.iter().filter(|o| o.v == *v).min_by_key(|o| o.number());
        let newest_theirs =
            self.theirs.iter().filter(|t| t.v == *v).min_by_key(|t| t.commitment.commitment_number());
        let (own_on_v, theirs_on_v) =
            newest_own.zip(newest_theirs).ok_or("no commitment on the outpoint before")?;

        let value = parameters.channel_value_satoshis.checked_add_signed(ours);
        let value = value.and_then(|v| v.checked_add_signed(theirs)).ok_or("capacity: out of range")?;
        parameters.channel_value_satoshis = value;
        parameters.splice_parent_funding_txid = Some(v.txid);
        parameters.holder_pubkeys.funding_pubkey = signer.new_funding_pubkey(v.txid, secp);
        parameters.counterparty_parameters.as_mut().ok_or("no keys of the peer")?.pubkeys.funding_pubkey =
            peer;
        let script = make_funding_redeemscript(&parameters.holder_pubkeys.funding_pubkey, &peer).to_p2wsh();
        let output = TxOut { value: Amount::from_sat(value), script_pubkey: script };
        let at = tx.output.iter().position(|o| *o == output).and_then(|at| u32::try_from(at).ok());
        let spends = tx.input.iter().any(|i| i.previous_output == *v);
        let vout =
            at.filter(|_| spends).ok_or("the splice transaction has not the output that was agreed")?;
        let new = OutPoint { txid: tx.compute_txid(), vout };
        let index = u16::try_from(vout).map_err(|e| e.to_string())?;
        parameters.funding_outpoint = Some(lightning::chain::transaction::OutPoint { txid: new.txid, index });

        #[cfg(test)]
        let ours = ours.saturating_add(negotiation.off_sat);
        let own = moved(&own_on_v.commitment, &parameters, true, (ours, theirs), secp)?;
        let theirs = moved(&theirs_on_v.commitment, &parameters, false, (theirs, ours), secp)?;
        if let Some((txid, signature)) = &negotiation.heard {
            let right = *txid == new.txid && companion::is_signed(&parameters, &own, signature, secp);
            if !right && !switch("predict.unchecked") {
                return Err("commitment_signed: not for the commitment that was foretold".into());
            }
        }
        if let Some(made) = self.theirs.iter().find(|t| t.v == new) {
            if !same(&made.commitment, &theirs) && !switch("predict.unchecked") {
                return Err("LDK has signed another commitment than was foretold".into());
            }
        }
        Ok(Foreseen { v: new, output, parameters, own, theirs })
    }

    /// Takes what was foretold into the lists. A second time changes nothing.
    ///
    /// # Errors
    /// What of LDK's cannot be made.
    pub(super) fn foresee(&mut self, foreseen: Foreseen, secp: &Secp256k1<All>) -> Result<(), String> {
        let Foreseen { v, parameters, own, theirs, .. } = foreseen;
        let (ours, peer) = (
            parameters.holder_pubkeys.funding_pubkey,
            parameters.counterparty_pubkeys().ok_or("no keys of the peer")?.funding_pubkey,
        );
        if self.parameters(&v).is_none() {
            self.parameters.push(parameters);
        }
        if !self.theirs.iter().any(|t| t.v == v) {
            let theirs = Theirs::new(theirs, None).ok_or("a commitment without an input")?;
            self.theirs.push(Theirs { predicted: true, ..theirs });
        }
        if !self.own.iter().any(|o| o.v == v) {
            let nobodys = nobodys(secp)?;
            let htlcs = vec![nobodys; own.nondust_htlcs().len()];
            let own = HolderCommitmentTransaction::new(own, nobodys, htlcs, &ours, &peer);
            let own = Own::read(own, Vec::new()).ok_or("a commitment without an input")?;
            self.own.push(Own { predicted: true, ..own });
        }
        self.changed();
        let state = self.state;
        self.own.iter_mut().filter(|o| o.v == v && o.predicted).for_each(|o| o.since = state);
        // Companions may have come already.
        self.settle(secp).pop().map_or(Ok(()), Err)
    }

    /// A `commitment_signed` has come; one for a transaction that is not known is that of a splice.
    pub(super) fn heard(&mut self, funding: Option<&Txid>, signature: &Signature) {
        let known = |txid: &Txid| self.own.iter().any(|o| o.v.txid == *txid);
        if let Some(txid) = funding.filter(|txid| !known(txid)) {
            self.negotiation.heard = Some((*txid, *signature));
        }
    }

    /// Whether a `commitment_signed` is for the commitment that was foretold, where one was.
    ///
    /// # Errors
    /// If it is not; LDK must not have it then.
    pub(super) fn is_as_predicted(
        &self,
        funding: Option<&Txid>,
        signature: &Signature,
        secp: &Secp256k1<All>,
    ) -> Result<(), String> {
        let is_its = |o: &&Own| o.predicted && funding.is_some_and(|txid| o.v.txid == *txid);
        for own in self.own.iter().filter(is_its) {
            let parameters = self.parameters(&own.v);
            let right = parameters.is_some_and(|p| companion::is_signed(p, &own.commitment, signature, secp));
            if !right && !switch("predict.unchecked") {
                return Err("commitment_signed: not for the commitment that was foretold".into());
            }
        }
        Ok(())
    }
}
