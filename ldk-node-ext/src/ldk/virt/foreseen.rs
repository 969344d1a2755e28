//! What [`Commitments`] knows of a change of capacity: the negotiation, as the messages and the signer tell of it, and
//! the commitments on V' that follow from it (`predict`).

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, Transaction, TxOut};
use lightning::chain::channelmonitor::ChannelMonitorUpdate;
use lightning::ln::chan_utils::HolderCommitmentTransaction;
use lightning::ln::types::ChannelId;
use lightning::sign::InMemorySigner;

use super::commitments::Commitments;
use super::predict::Negotiation;
use super::steps;
use crate::error::Error;
use crate::util::lock;

impl Commitments {
    /// Allows one change: what we add and what the peer adds, sat. None takes the allowance back.
    pub(super) fn agree(&self, id: &ChannelId, agreed: Option<(i64, i64)>) -> Result<(), Error> {
        let mut inner = lock(&self.inner);
        let channel = inner.channels.get_mut(id);
        let channel = channel.ok_or_else(|| Error::not_found(format!("factory channel {id}")))?;
        channel.negotiation = Negotiation { agreed, ..Negotiation::default() };
        Ok(())
    }

    /// What is agreed: what we add and what the peer adds, sat.
    pub(super) fn agreed(&self, id: &ChannelId) -> Option<(i64, i64)> {
        lock(&self.inner).channels.get(id)?.negotiation.agreed
    }

    /// Whether LDK has everything that we add.
    pub(super) fn is_contributed(&self, id: &ChannelId) -> bool {
        let inner = lock(&self.inner);
        let negotiation = inner.channels.get(id).map(|channel| &channel.negotiation);
        negotiation.is_none_or(|n| n.contributed || n.agreed.is_none_or(|(ours, _)| ours == 0))
    }

    /// LDK has everything that we add.
    pub(super) fn contributed(&self, id: &ChannelId) {
        if let Some(channel) = lock(&self.inner).channels.get_mut(id) {
            channel.negotiation.contributed = true;
        }
    }

    /// We have said what we add, sat.
    pub(super) fn we_add(&self, id: &ChannelId, sat: i64) {
        if let Some(channel) = lock(&self.inner).channels.get_mut(id) {
            channel.negotiation.ours_sat = Some(sat);
        }
    }

    /// The peer says what it adds, sat, and names its key.
    ///
    /// # Errors
    /// If that is not what was agreed: LDK must not hear it.
    pub(super) fn peer_adds(&self, id: &ChannelId, key: PublicKey, sat: i64) -> Result<(), String> {
        let mut inner = lock(&self.inner);
        let channel = inner.channels.get_mut(id).ok_or("channel_id: no factory channel")?;
        match channel.negotiation.agreed {
            Some((_, agreed)) if agreed == sat => channel.negotiation.theirs = Some((key, sat)),
            Some((_, agreed)) => {
                return Err(format!("funding_contribution_satoshis: {sat}, agreed are {agreed}"));
            }
            None => return Err("a splice that nobody has agreed to".into()),
        }
        Ok(())
    }

    /// LDK asks for the signature of V in its splice transaction.
    pub(in crate::ldk) fn splicing(&self, keys_id: &[u8; 32], tx: &Transaction) {
        let mut inner = lock(&self.inner);
        if let Some((_, channel)) = inner.of(keys_id, &self.outpoints, || None) {
            channel.negotiation.tx = Some(tx.clone());
        }
    }

    /// LDK has told of its splice transaction.
    pub(super) fn ready(&self, id: &ChannelId, tx: &Transaction) {
        if let Some(channel) = lock(&self.inner).channels.get_mut(id) {
            channel.negotiation.tx = Some(tx.clone());
        }
    }

    /// V', its output and the transaction that LDK believes creates it, if the commitments on it can be foretold. With
    /// `take` they are taken in.
    ///
    /// # Errors
    /// [`Error::Conflict`] with what is missing or not as it was agreed; [`Error::NotFound`].
    pub(super) fn foresee(
        &self,
        id: &ChannelId,
        v: &OutPoint,
        take: bool,
        signer: impl FnOnce([u8; 32]) -> InMemorySigner,
    ) -> Result<(OutPoint, TxOut, Transaction), Error> {
        let mut inner = lock(&self.inner);
        let channel = inner.channels.get_mut(id);
        let channel = channel.ok_or_else(|| Error::not_found(format!("factory channel {id}")))?;
        let signer = signer(channel.keys_id);
        let foreseen = channel.foretell(v, &signer, &self.secp).map_err(Error::Conflict)?;
        let tx = channel.negotiation.tx.clone();
        let found =
            (foreseen.v, foreseen.output.clone(), tx.ok_or_else(|| Error::not_found("splice transaction"))?);
        if take {
            channel.foresee(foreseen, &self.secp).map_err(Error::Conflict)?;
        }
        Ok(found)
    }

    /// Has the commitments of this change foretold wrongly, for tests.
    #[cfg(test)]
    pub(crate) fn misjudge(&self, id: &ChannelId, off_sat: i64) {
        if let Some(channel) = lock(&self.inner).channels.get_mut(id) {
            channel.negotiation.off_sat = off_sat;
        }
    }

    /// The update that makes a monitor of the channel one of V', for an exit by R' before LDK knows of V'. The peer's
    /// signatures in it are those on R': whatever leaves is signed for that.
    ///
    /// # Errors
    /// [`Error::Conflict`] if no commitment on V' with a companion on R' is there; [`Error::Ldk`].
    pub(super) fn update_to(
        &self,
        id: &ChannelId,
        v: &OutPoint,
        real: &OutPoint,
        update_id: u64,
    ) -> Result<ChannelMonitorUpdate, Error> {
        let inner = lock(&self.inner);
        let missing = || Error::Conflict(format!("no commitment on {v} with a companion on {real}"));
        let channel = inner.channels.get(id).ok_or_else(missing)?;
        let parameters = channel.parameters(v).ok_or_else(missing)?;
        let own = channel.own.iter().find(|o| o.v == *v).ok_or_else(missing)?;
        let theirs = channel.theirs.iter().find(|t| t.v == *v).ok_or_else(missing)?;
        let signed = own.on(real).ok_or_else(missing)?;
        let peer = parameters.counterparty_pubkeys().ok_or_else(missing)?.funding_pubkey;
        let commitment = HolderCommitmentTransaction::new(
            (*own.commitment).clone(),
            signed.signature,
            signed.htlcs.clone(),
            &parameters.holder_pubkeys.funding_pubkey,
            &peer,
        );
        let made = steps::moved(update_id, id, parameters, &commitment, &theirs.commitment);
        made.map_err(|e| Error::Ldk(format!("an update to a V' that LDK does not read: {e:?}")))
    }
}
