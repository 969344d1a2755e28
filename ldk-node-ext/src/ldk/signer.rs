//! The channel signer: LDK's in-memory signer behind our own type.
//!
//! It notes which HTLCs each new commitment of ours carries ([`HeldHtlcs`]).
//!
//! LDK's claims and penalties of a rotated channel spend what is below a virtual outpoint. They are signed for the
//! prevouts that they have on the chain ([`virt`](super::virt)); nothing else in them differs.

use std::sync::Arc;

use bitcoin::secp256k1::ecdsa::Signature;
use bitcoin::secp256k1::{All, PublicKey, Secp256k1, SecretKey};
use bitcoin::{Transaction, Txid};
use factory_core::faults::switch;
use lightning::ln::chan_utils::{
    ChannelPublicKeys, ChannelTransactionParameters, ClosingTransaction, CommitmentTransaction,
    HTLCOutputInCommitment, HolderCommitmentTransaction,
};
use lightning::ln::msgs::UnsignedChannelAnnouncement;
use lightning::sign::ecdsa::EcdsaChannelSigner;
use lightning::sign::{ChannelSigner, HTLCDescriptor, InMemorySigner};
use lightning::types::payment::PaymentPreimage;

use super::{Commitments, HeldHtlcs, Mapping};

/// Signs for one channel.
#[derive(Clone)]
pub struct FactorySigner {
    inner: InMemorySigner,
    held: Arc<HeldHtlcs>,
    mapping: Arc<Mapping>,
    commitments: Arc<Commitments>,
}

impl FactorySigner {
    pub(crate) fn new(
        inner: InMemorySigner,
        held: Arc<HeldHtlcs>,
        mapping: Arc<Mapping>,
        commitments: Arc<Commitments>,
    ) -> Self {
        Self { inner, held, mapping, commitments }
    }

    /// What is to be signed when LDK asks for this: the same as the chain knows it.
    fn to_sign(&self, tx: &Transaction) -> Transaction {
        if switch("virt.sign.v_form") {
            return tx.clone();
        }
        self.mapping.in_r_form(tx)
    }
}

impl ChannelSigner for FactorySigner {
    fn get_per_commitment_point(&self, idx: u64, secp: &Secp256k1<All>) -> Result<PublicKey, ()> {
        self.inner.get_per_commitment_point(idx, secp)
    }
    fn release_commitment_secret(&self, idx: u64) -> Result<[u8; 32], ()> {
        let secret = self.inner.release_commitment_secret(idx)?;
        // LDK waits then, as for a remote signer.
        if self.commitments.release(&self.inner.channel_keys_id(), idx) {
            Ok(secret)
        } else {
            Err(())
        }
    }
    fn validate_holder_commitment(
        &self,
        holder_tx: &HolderCommitmentTransaction,
        preimages: Vec<PaymentPreimage>,
    ) -> Result<(), ()> {
        self.inner.validate_holder_commitment(holder_tx, preimages)?;
        let trusted = holder_tx.trust();
        if let Some(input) = trusted.built_transaction().transaction.input.first() {
            let channel = self.mapping.channel_funded_by(&input.previous_output);
            self.held.own_commitment(channel, holder_tx.nondust_htlcs());
        }
        self.commitments.accepted(&self.inner.channel_keys_id(), holder_tx);
        Ok(())
    }
    fn validate_counterparty_revocation(&self, idx: u64, secret: &SecretKey) -> Result<(), ()> {
        self.inner.validate_counterparty_revocation(idx, secret)?;
        self.commitments.revoked(&self.inner.channel_keys_id(), idx);
        Ok(())
    }
    fn pubkeys(&self, secp: &Secp256k1<All>) -> ChannelPublicKeys {
        self.inner.pubkeys(secp)
    }
    fn new_funding_pubkey(&self, parent: Txid, secp: &Secp256k1<All>) -> PublicKey {
        self.inner.new_funding_pubkey(parent, secp)
    }
    fn channel_keys_id(&self) -> [u8; 32] {
        self.inner.channel_keys_id()
    }
}

impl EcdsaChannelSigner for FactorySigner {
    fn sign_counterparty_commitment(
        &self,
        parameters: &ChannelTransactionParameters,
        commitment: &CommitmentTransaction,
        inbound: Vec<PaymentPreimage>,
        outbound: Vec<PaymentPreimage>,
        secp: &Secp256k1<All>,
    ) -> Result<(Signature, Vec<Signature>), ()> {
        if let (Some(funding), false) = (parameters.funding_outpoint, inbound.is_empty()) {
            let channel = self.mapping.channel_funded_by(&funding.into_bitcoin_outpoint());
            self.held.claimed(channel, &inbound);
        }
        let signed =
            self.inner.sign_counterparty_commitment(parameters, commitment, inbound, outbound, secp)?;
        // LDK waits then; it has not been told a signature that must not leave.
        if self.commitments.signed(&self.inner.channel_keys_id(), parameters, commitment, signed.0) {
            Ok(signed)
        } else {
            Err(())
        }
    }
    fn sign_holder_commitment(
        &self,
        parameters: &ChannelTransactionParameters,
        commitment: &HolderCommitmentTransaction,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.inner.sign_holder_commitment(parameters, commitment, secp)
    }
    fn sign_justice_revoked_output(
        &self,
        parameters: &ChannelTransactionParameters,
        justice: &Transaction,
        input: usize,
        amount: u64,
        key: &SecretKey,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        let justice = self.to_sign(justice);
        self.inner.sign_justice_revoked_output(parameters, &justice, input, amount, key, secp)
    }
    fn sign_justice_revoked_htlc(
        &self,
        parameters: &ChannelTransactionParameters,
        justice: &Transaction,
        input: usize,
        amount: u64,
        key: &SecretKey,
        htlc: &HTLCOutputInCommitment,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        let justice = self.to_sign(justice);
        self.inner.sign_justice_revoked_htlc(parameters, &justice, input, amount, key, htlc, secp)
    }
    fn sign_holder_htlc_transaction(
        &self,
        htlc_tx: &Transaction,
        input: usize,
        descriptor: &HTLCDescriptor,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        let htlc_tx = self.to_sign(htlc_tx);
        self.inner.sign_holder_htlc_transaction(&htlc_tx, input, descriptor, secp)
    }
    fn sign_counterparty_htlc_transaction(
        &self,
        parameters: &ChannelTransactionParameters,
        htlc_tx: &Transaction,
        input: usize,
        amount: u64,
        point: &PublicKey,
        htlc: &HTLCOutputInCommitment,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        let htlc_tx = self.to_sign(htlc_tx);
        self.inner.sign_counterparty_htlc_transaction(parameters, &htlc_tx, input, amount, point, htlc, secp)
    }
    fn sign_closing_transaction(
        &self,
        parameters: &ChannelTransactionParameters,
        closing: &ClosingTransaction,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.inner.sign_closing_transaction(parameters, closing, secp)
    }
    fn sign_holder_keyed_anchor_input(
        &self,
        parameters: &ChannelTransactionParameters,
        anchor_tx: &Transaction,
        input: usize,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        let anchor_tx = self.to_sign(anchor_tx);
        self.inner.sign_holder_keyed_anchor_input(parameters, &anchor_tx, input, secp)
    }
    fn sign_channel_announcement_with_funding_key(
        &self,
        parameters: &ChannelTransactionParameters,
        msg: &UnsignedChannelAnnouncement,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.inner.sign_channel_announcement_with_funding_key(parameters, msg, secp)
    }
    fn sign_splice_shared_input(
        &self,
        parameters: &ChannelTransactionParameters,
        tx: &Transaction,
        input: usize,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.commitments.splicing(&self.inner.channel_keys_id(), tx);
        self.inner.sign_splice_shared_input(parameters, tx, input, secp)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{channel_id, HeldHtlc, Outpoints};
    use super::*;
    use crate::store::Store;
    use bitcoin::hashes::Hash;
    use lightning::chain::transaction::OutPoint;
    use lightning::ln::chan_utils::CounterpartyChannelTransactionParameters;
    use lightning::sign::{KeysManager, SignerProvider};
    use lightning::types::features::ChannelTypeFeatures;
    use lightning::types::payment::PaymentHash;
    use lightning::util::persist::KVStoreSync;

    const OURS: (bool, u8, u32) = (true, 1, 500);

    fn htlc((offered, byte, cltv_expiry): (bool, u8, u32)) -> HTLCOutputInCommitment {
        HTLCOutputInCommitment {
            offered,
            amount_msat: 5_000_000,
            cltv_expiry,
            payment_hash: PaymentPreimage([byte; 32]).into(),
            transaction_output_index: None,
        }
    }

    #[test]
    fn a_claimed_htlc_is_held_until_our_own_commitment_is_rid_of_it() {
        let secp = Secp256k1::new();
        let keys = KeysManager::new(&[7; 32], 1, 1, true);
        let inner = |n: u8| keys.derive_channel_signer([n; 32]);
        let (own, peer) = (inner(1).pubkeys(&secp), inner(2).pubkeys(&secp));
        let txid = Txid::from_byte_array([9; 32]);
        let parameters = ChannelTransactionParameters {
            holder_pubkeys: own.clone(),
            holder_selected_contest_delay: 144,
            is_outbound_from_holder: true,
            counterparty_parameters: Some(CounterpartyChannelTransactionParameters {
                pubkeys: peer.clone(),
                selected_contest_delay: 144,
            }),
            funding_outpoint: Some(OutPoint { txid, index: 0 }),
            splice_parent_funding_txid: None,
            channel_type_features: ChannelTypeFeatures::anchors_zero_fee_commitments(),
            channel_value_satoshis: 100_000,
        };
        let outpoints = Arc::new(Outpoints::default());
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let held = Arc::new(HeldHtlcs::new(Arc::clone(&outpoints), Arc::clone(&store)));
        let restarted = || {
            let held = HeldHtlcs::new(Arc::clone(&outpoints), Arc::clone(&store));
            held.load().unwrap();
            held
        };
        let mapping = Arc::new(Mapping::load(Arc::clone(&store)).unwrap());
        let commitments = Commitments::load(Arc::clone(&outpoints), Arc::clone(&store)).unwrap();
        let signer = FactorySigner::new(inner(1), Arc::clone(&held), mapping, Arc::new(commitments));
        let funding = bitcoin::OutPoint { txid, vout: 0 };
        let (channel, point) = (channel_id(funding), signer.get_per_commitment_point(9, &secp).unwrap());
        let commitment = |htlcs: &[(bool, u8, u32)], broadcast: bool| {
            let directed = match broadcast {
                true => parameters.as_holder_broadcastable(),
                false => parameters.as_counterparty_broadcastable(),
            };
            let htlcs = htlcs.iter().copied().map(htlc).collect();
            CommitmentTransaction::new(9, &point, 40_000, 40_000, 0, htlcs, &directed, &secp)
        };
        let sign = |commitment: &CommitmentTransaction, preimages: Vec<PaymentPreimage>| {
            let sign = EcdsaChannelSigner::sign_counterparty_commitment;
            sign(&signer, &parameters, commitment, preimages, vec![], &secp).unwrap()
        };
        let receive = |htlcs: &[(bool, u8, u32)]| {
            let tx = commitment(htlcs, true);
            let (signature, _) = sign(&commitment(&[], false), vec![]);
            let signatures = vec![signature; htlcs.len()];
            let (a, b) = (&own.funding_pubkey, &peer.funding_pubkey);
            let tx = HolderCommitmentTransaction::new(tx, signature, signatures, a, b);
            signer.validate_holder_commitment(&tx, vec![]).unwrap();
            held.claimed_inbound(&channel)
        };
        let preimage = |byte| PaymentPreimage([byte; 32]);

        // Not a factory's channel: nothing is kept.
        receive(&[(false, 2, 600)]);
        sign(&commitment(&[], false), vec![preimage(2)]);
        assert!(held.claimed_inbound(&channel).is_empty());

        outpoints.insert([1; 32], funding);
        assert!(receive(&[OURS, (false, 2, 600), (false, 3, 700)]).is_empty(), "nothing is claimed");
        sign(&commitment(&[], false), vec![preimage(2), preimage(1)]);
        let claimed = [HeldHtlc { expiry: 600, payment_hash: PaymentHash::from(preimage(2)) }];
        assert_eq!(held.claimed_inbound(&channel), claimed, "inbound and claimed alone");
        assert_eq!(restarted().claimed_inbound(&channel), claimed, "after a restart too");
        assert_eq!(receive(&[OURS, (false, 2, 600)]), claimed, "still on our commitment");
        assert!(receive(&[OURS]).is_empty(), "the peer has signed it away");
        let records = || store.list("held_htlcs", "").unwrap().len();
        assert_eq!(records(), 0, "nothing to remember");

        receive(&[(false, 2, 600)]);
        assert_eq!(records(), 1);
        let others = HeldHtlcs::new(Arc::default(), Arc::clone(&store));
        others.load().unwrap();
        assert_eq!(records(), 0, "of no factory any more");
    }
}
