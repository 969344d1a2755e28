//! One commitment on another outpoint: its signatures made, checked, and put together.
//!
//! A commitment transaction names its funding outpoint and nothing else of it: outputs, keys, HTLCs and their order
//! stay as they are when R takes the place of V, and so does what the signature commits to of the funding output,
//! its value and script. What changes is the txid, and with it what the HTLC signatures commit to.

use bitcoin::ecdsa;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::ecdsa::Signature;
use bitcoin::secp256k1::{All, Message, Secp256k1};
use bitcoin::sighash::{EcdsaSighashType, SighashCache};
use bitcoin::{OutPoint, Transaction, Witness};
use lightning::chain::transaction::OutPoint as LdkOutPoint;
use lightning::ln::chan_utils::{
    build_htlc_transaction, get_htlc_redeemscript, make_funding_redeemscript, ChannelTransactionParameters,
    CommitmentTransaction, HTLCOutputInCommitment, HolderCommitmentTransaction, TrustedCommitmentTransaction,
};
use lightning::sign::ecdsa::EcdsaChannelSigner;
use lightning::sign::InMemorySigner;

/// The counterparty's signatures of one commitment on one outpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signed {
    pub(crate) signature: Signature,
    /// In the order of the HTLC outputs.
    pub(crate) htlcs: Vec<Signature>,
}

/// A channel's parameters and one of its commitments with another funding outpoint; none for an output index that no
/// Lightning channel can have.
fn on(
    real: &OutPoint,
    parameters: &ChannelTransactionParameters,
    commitment: &CommitmentTransaction,
    ours: bool,
    secp: &Secp256k1<All>,
) -> Option<(ChannelTransactionParameters, CommitmentTransaction)> {
    let index = u16::try_from(real.vout).ok()?;
    let mut parameters = parameters.clone();
    parameters.funding_outpoint = Some(LdkOutPoint { txid: real.txid, index });
    let directed = match ours {
        true => parameters.as_holder_broadcastable(),
        false => parameters.as_counterparty_broadcastable(),
    };
    let commitment = CommitmentTransaction::new(
        commitment.commitment_number(),
        &commitment.per_commitment_point(),
        commitment.to_broadcaster_value_sat(),
        commitment.to_countersignatory_value_sat(),
        commitment.negotiated_feerate_per_kw(),
        commitment.nondust_htlcs().clone(),
        &directed,
        secp,
    );
    Some((parameters, commitment))
}

/// Signs a commitment of the peer on another outpoint.
pub(super) fn sign(
    signer: &InMemorySigner,
    parameters: &ChannelTransactionParameters,
    theirs: &CommitmentTransaction,
    real: &OutPoint,
    secp: &Secp256k1<All>,
) -> Option<Signed> {
    let (parameters, commitment) = on(real, parameters, theirs, false, secp)?;
    let signed = signer.sign_counterparty_commitment(&parameters, &commitment, vec![], vec![], secp);
    signed.ok().map(|(signature, htlcs)| Signed { signature, htlcs })
}

/// Whether these are the peer's signatures of a commitment of ours on that outpoint.
pub(super) fn verify(
    parameters: &ChannelTransactionParameters,
    own: &CommitmentTransaction,
    real: &OutPoint,
    signed: &Signed,
    secp: &Secp256k1<All>,
) -> bool {
    let Some((parameters, own)) = on(real, parameters, own, true, secp) else { return false };
    let trusted = own.trust();
    is_signed(&parameters, &own, &signed.signature, secp)
        && own.nondust_htlcs().len() == signed.htlcs.len()
        && own
            .nondust_htlcs()
            .iter()
            .zip(&signed.htlcs)
            .all(|(htlc, signature)| verify_htlc(&parameters, &trusted, htlc, signature, secp))
}

/// Whether the peer has signed this commitment of ours, as it is; its HTLCs apart.
pub(super) fn is_signed(
    parameters: &ChannelTransactionParameters,
    own: &CommitmentTransaction,
    signature: &Signature,
    secp: &Secp256k1<All>,
) -> bool {
    let Some(peer) = parameters.counterparty_pubkeys() else { return false };
    let script = make_funding_redeemscript(&parameters.holder_pubkeys.funding_pubkey, &peer.funding_pubkey);
    let trusted = own.trust();
    let sighash = trusted.built_transaction().get_sighash_all(&script, parameters.channel_value_satoshis);
    secp.verify_ecdsa(&sighash, signature, &peer.funding_pubkey).is_ok()
}

fn verify_htlc(
    parameters: &ChannelTransactionParameters,
    own: &TrustedCommitmentTransaction<'_>,
    htlc: &HTLCOutputInCommitment,
    signature: &Signature,
    secp: &Secp256k1<All>,
) -> bool {
    let (kind, keys) = (&parameters.channel_type_features, own.keys());
    let tx = build_htlc_transaction(
        &own.txid(),
        own.negotiated_feerate_per_kw(),
        parameters.as_holder_broadcastable().contest_delay(),
        htlc,
        kind,
        &keys.broadcaster_delayed_payment_key,
        &keys.revocation_key,
    );
    let script = get_htlc_redeemscript(htlc, kind, keys);
    let anchors = kind.supports_anchors_zero_fee_htlc_tx() || kind.supports_anchor_zero_fee_commitments();
    let sighash = if anchors { EcdsaSighashType::SinglePlusAnyoneCanPay } else { EcdsaSighashType::All };
    let hash = SighashCache::new(&tx).p2wsh_signature_hash(0, &script, htlc.to_bitcoin_amount(), sighash);
    let Ok(hash) = hash else { return false };
    let key = keys.countersignatory_htlc_key.to_public_key();
    secp.verify_ecdsa(&Message::from_digest(hash.to_byte_array()), signature, &key).is_ok()
}

/// Our own commitment on another outpoint, ready for the chain.
pub(super) fn signed_by_both(
    signer: &InMemorySigner,
    parameters: &ChannelTransactionParameters,
    own: &HolderCommitmentTransaction,
    real: &OutPoint,
    signed: &Signed,
    secp: &Secp256k1<All>,
) -> Option<Transaction> {
    let (parameters, own) = on(real, parameters, own, true, secp)?;
    let ours = parameters.holder_pubkeys.funding_pubkey;
    let theirs = parameters.counterparty_pubkeys()?.funding_pubkey;
    let both = HolderCommitmentTransaction::new(own, signed.signature, signed.htlcs.clone(), &ours, &theirs);
    let own_signature = signer.sign_holder_commitment(&parameters, &both, secp).ok()?;
    let mut signatures = [(ours, own_signature), (theirs, signed.signature)];
    // BOLT 3: in the order of the keys in the script.
    signatures.sort_by_key(|(key, _)| key.serialize());
    let mut tx = both.trust().built_transaction().transaction.clone();
    let mut witness = Witness::new();
    witness.push([]);
    for (_, signature) in signatures {
        witness.push(ecdsa::Signature::sighash_all(signature).serialize());
    }
    witness.push(make_funding_redeemscript(&ours, &theirs));
    tx.input.first_mut()?.witness = witness;
    Some(tx)
}
