//! The unrevoked commitments of every factory channel, as the signer and the monitors see them.
//!
//! The signer tells of each commitment that LDK signs or accepts and of each secret that it releases; a monitor update
//! tells of the peer's next commitment before it is signed. A channel's record is written with its monitor, in one
//! transaction of the store, and LDK sends `commitment_signed` and `revoke_and_ack` only after the monitor is written:
//! so what a message depends on is on disk before the message leaves, at no cost of its own (invariants 3 and 5).
//! Where LDK would release a secret without that, it is refused: LDK then waits as for a remote signer, and goes on
//! when it is told to.
//!
//! A record may be newer than the monitor that is read with it, never older. What is newer is repeated by LDK: the
//! same commitment is signed or accepted again, and takes its old place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bitcoin::secp256k1::ecdsa::Signature;
use bitcoin::secp256k1::{All, PublicKey, Secp256k1};
use bitcoin::{OutPoint, Transaction, Txid};
use factory_core::faults::switch;
use lightning::ln::chan_utils::{
    ChannelTransactionParameters, CommitmentTransaction, HolderCommitmentTransaction,
};
use lightning::ln::types::ChannelId;
use lightning::sign::{ChannelSigner, InMemorySigner};
use lightning::util::persist::KVStoreSync;

use super::channel::{Channel, Theirs, Waiting};
use super::companion::{self, Signed};
use super::record::StoredCommitments;
use crate::error::Error;
use crate::ldk::{channel_id, Outpoints};
use crate::store::{records, Store};
use crate::util::lock;

/// Where the records are.
pub(crate) const NAMESPACE: &str = "commitments";
const VERSION: u32 = 1;

#[derive(Default)]
pub(super) struct Inner {
    pub(super) channels: HashMap<ChannelId, Channel>,
    by_keys: HashMap<[u8; 32], ChannelId>,
    /// What was wrong with companions whose commitment LDK has accepted.
    wrong: Vec<(ChannelId, String)>,
}

impl Inner {
    /// The channel of a signer; one that the signer has not been used for before is known by its first outpoint.
    pub(super) fn of(
        &mut self,
        keys_id: &[u8; 32],
        outpoints: &Outpoints,
        v: impl FnOnce() -> Option<OutPoint>,
    ) -> Option<(ChannelId, &mut Channel)> {
        let id = match self.by_keys.get(keys_id) {
            Some(id) => *id,
            None => {
                let id = channel_id(v()?);
                if !outpoints.is_factory(&id) {
                    return None;
                }
                self.by_keys.insert(*keys_id, id);
                self.channels.insert(id, Channel::new(*keys_id));
                id
            }
        };
        self.channels.get_mut(&id).map(|channel| (id, channel))
    }
}

/// A channel's record in the form in which it is written, and which state it is.
pub(crate) struct Record {
    pub(crate) key: String,
    pub(crate) bytes: Vec<u8>,
    state: u64,
}

/// One commitment of the peer's to be signed on real outpoints: what [`Commitments::companions`] answers.
pub(super) struct Accompanied {
    pub(super) v: OutPoint,
    /// As LDK counts.
    pub(super) number: u64,
    /// The signature on V.
    pub(super) commitment: Signature,
    pub(super) companions: Vec<(OutPoint, Signed)>,
}

/// See the module's description.
pub struct Commitments {
    pub(super) outpoints: Arc<Outpoints>,
    store: Arc<Store>,
    pub(super) secp: Secp256k1<All>,
    pub(super) inner: Mutex<Inner>,
}

impl Commitments {
    /// Reads all records.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub(crate) fn load(outpoints: Arc<Outpoints>, store: Arc<Store>) -> Result<Self, Error> {
        let mut inner = Inner::default();
        for (key, stored) in records::all::<StoredCommitments>(&*store, NAMESPACE, VERSION)? {
            let corrupt = |reason| Error::Corrupt { key: format!("{NAMESPACE}/{key}"), reason };
            let mut id = [0; 32];
            hex::decode_to_slice(&key, &mut id).map_err(|e| corrupt(e.to_string()))?;
            let channel = stored.channel().map_err(corrupt)?;
            inner.by_keys.insert(channel.keys_id, ChannelId(id));
            inner.channels.insert(ChannelId(id), channel);
        }
        Ok(Self { outpoints, store, secp: Secp256k1::new(), inner: Mutex::new(inner) })
    }

    /// Forgets channels that have no monitor any more.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn keep_only(&self, channels: &[ChannelId]) -> Result<(), Error> {
        let mut inner = lock(&self.inner);
        let gone: Vec<ChannelId> =
            inner.channels.keys().filter(|id| !channels.contains(id)).copied().collect();
        for id in gone {
            let key = hex::encode(id.0);
            self.store
                .remove(NAMESPACE, "", &key, false)
                .map_err(|e| Error::Store(format!("{NAMESPACE}/{key}: {e}")))?;
            if let Some(channel) = inner.channels.remove(&id) {
                inner.by_keys.remove(&channel.keys_id);
            }
        }
        Ok(())
    }

    // What the signer tells.

    /// LDK has signed a commitment of the peer's; false if it must not have the signature: see [`Channel::signed`].
    pub(in crate::ldk) fn signed(
        &self,
        keys_id: &[u8; 32],
        parameters: &ChannelTransactionParameters,
        commitment: &CommitmentTransaction,
        signature: Signature,
    ) -> bool {
        let mut inner = lock(&self.inner);
        let v = || parameters.funding_outpoint.map(|o| o.into_bitcoin_outpoint());
        let found = inner.of(keys_id, &self.outpoints, v);
        found.is_none_or(|(_, channel)| channel.signed(parameters, commitment, signature))
    }

    /// LDK accepts a commitment of ours. It is not refused for a companion that is wrong: that would close the
    /// channel. The secret of the one before stays here then, until the peer has sent a right one.
    pub(in crate::ldk) fn accepted(&self, keys_id: &[u8; 32], commitment: &HolderCommitmentTransaction) {
        let mut inner = lock(&self.inner);
        let trusted = commitment.trust();
        let v = || trusted.built_transaction().transaction.input.first().map(|i| i.previous_output);
        if let Some((id, channel)) = inner.of(keys_id, &self.outpoints, v) {
            let wrong = channel.accepted(commitment, &self.secp);
            inner.wrong.extend(wrong.into_iter().map(|reason| (id, reason)));
        }
    }

    /// The peer has revoked its commitments from this number on.
    pub(in crate::ldk) fn revoked(&self, keys_id: &[u8; 32], number: u64) {
        let mut inner = lock(&self.inner);
        if let Some((_, channel)) = inner.of(keys_id, &self.outpoints, || None) {
            channel.revoked(number);
        }
    }

    /// Whether our secret of this number may leave; if so, the commitments from there on are revoked.
    pub(in crate::ldk) fn release(&self, keys_id: &[u8; 32], number: u64) -> bool {
        let mut inner = lock(&self.inner);
        let Some((_, channel)) = inner.of(keys_id, &self.outpoints, || None) else { return true };
        let free = channel.may_release(number) || switch("companion.secret_not_held");
        channel.secret_held = !free;
        if free {
            channel.released(number);
        }
        free
    }

    /// After a connection the peer has shown our secret of the commitment with this number: those from there on are
    /// revoked. A process that died after it had released the secret does not know it.
    pub(super) fn shown(
        &self,
        id: &ChannelId,
        number: u64,
        secret: &[u8; 32],
        signer: impl FnOnce([u8; 32]) -> InMemorySigner,
    ) {
        if let Some(channel) = lock(&self.inner).channels.get_mut(id) {
            if signer(channel.keys_id).release_commitment_secret(number).as_ref() == Ok(secret) {
                channel.released(number);
            }
        }
    }

    /// Channels whose secret was held and need not be any longer.
    pub(in crate::ldk) fn take_free(&self) -> Vec<ChannelId> {
        let mut inner = lock(&self.inner);
        let held = inner.channels.iter_mut().filter(|(_, channel)| channel.secret_held);
        held.filter_map(|(id, channel)| {
            let oldest = channel.own.iter().map(|own| own.number()).max()?;
            channel.secret_held = !channel.may_release(oldest);
            (!channel.secret_held).then_some(*id)
        })
        .collect()
    }

    /// What was wrong with companions of commitments that LDK has accepted since this was last asked.
    pub(super) fn take_wrong(&self) -> Vec<(ChannelId, String)> {
        std::mem::take(&mut lock(&self.inner).wrong)
    }

    // What the store of monitors tells.

    /// A monitor that is about to be written carries these commitments of the peer's.
    pub(in crate::ldk) fn committed(&self, id: &ChannelId, commitments: Vec<CommitmentTransaction>) {
        if let Some(channel) = lock(&self.inner).channels.get_mut(id) {
            commitments
                .into_iter()
                .filter_map(|c| Theirs::new(c, None))
                .for_each(|theirs| channel.add_theirs(theirs));
        }
    }

    /// The channel's record, if it is to be written.
    ///
    /// # Errors
    /// [`Error::Store`] for one that is no JSON, which it always is.
    pub(in crate::ldk) fn record(&self, id: &ChannelId) -> Result<Option<Record>, Error> {
        let inner = lock(&self.inner);
        let Some(channel) = inner.channels.get(id).filter(|c| c.state > c.stored) else { return Ok(None) };
        let key = hex::encode(id.0);
        let bytes = records::encode(VERSION, &StoredCommitments::from(channel))
            .map_err(|e| Error::Store(format!("{NAMESPACE}/{key}: {e}")))?;
        Ok(Some(Record { key, bytes, state: channel.state }))
    }

    /// A record is on disk.
    pub(in crate::ldk) fn stored(&self, id: &ChannelId, record: &Record) {
        if let Some(channel) = lock(&self.inner).channels.get_mut(id) {
            channel.stored = channel.stored.max(record.state);
        }
    }

    /// Writes a channel's record by itself.
    fn write(&self, id: &ChannelId) -> Result<(), Error> {
        let Some(record) = self.record(id)? else { return Ok(()) };
        self.store
            .write(NAMESPACE, "", &record.key, record.bytes.clone())
            .map_err(|e| crate::store::error(NAMESPACE, &e))?;
        self.stored(id, &record);
        Ok(())
    }

    // What the message streams ask and tell.

    /// Whether this is a factory channel with commitments.
    pub(super) fn knows(&self, id: &ChannelId) -> bool {
        lock(&self.inner).channels.contains_key(id)
    }

    /// As [`Channel::is_accompanied`].
    pub(super) fn is_accompanied(
        &self,
        id: &ChannelId,
        funding: Option<&Txid>,
        commitment: &Signature,
        htlcs: usize,
    ) -> Result<bool, String> {
        let mut inner = lock(&self.inner);
        let Some(channel) = inner.channels.get_mut(id) else { return Ok(true) };
        channel.heard(funding, commitment);
        channel.is_accompanied(funding, commitment, htlcs, &self.secp)
    }

    /// The peer announces an outpoint.
    pub(super) fn announce(&self, id: &ChannelId, v: OutPoint, real: OutPoint) -> Result<(), String> {
        let mut inner = lock(&self.inner);
        inner.channels.get_mut(id).ok_or("channel_id: no factory channel")?.announce(v, real)
    }

    /// An outpoint is given up, in both directions.
    pub(super) fn withdraw(&self, id: &ChannelId, v: &OutPoint, real: &OutPoint) -> Result<(), Error> {
        if let Some(channel) = lock(&self.inner).channels.get_mut(id) {
            channel.withdraw(v, real);
        }
        self.write(id)
    }

    /// A splice came to nothing: only these V are left, and those that LDK has accepted commitments on. Returns them.
    pub(super) fn keep_virtuals(&self, id: &ChannelId, known: impl Fn(&OutPoint) -> bool) -> Vec<OutPoint> {
        let mut inner = lock(&self.inner);
        let Some(channel) = inner.channels.get_mut(id) else { return Vec::new() };
        channel.keep_only(known);
        channel.own.iter().map(|o| o.v).collect()
    }

    /// The connection to the peer of these channels has ended.
    pub(super) fn disconnected(&self, channels: Vec<ChannelId>) {
        let mut inner = lock(&self.inner);
        for id in channels {
            if let Some(channel) = inner.channels.get_mut(&id) {
                channel.disconnected();
            }
        }
    }

    /// Takes companions of the peer's in.
    pub(super) fn receive(
        &self,
        id: &ChannelId,
        companions: impl IntoIterator<Item = Waiting>,
    ) -> Result<(), String> {
        let mut inner = lock(&self.inner);
        inner.channels.get_mut(id).ok_or("channel_id: no factory channel")?.receive(companions, &self.secp)
    }

    /// Writes what has come for commitments that LDK has accepted already. Whether an outpoint is covered now that was
    /// not before.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::NoRoom`]: nothing may be told to the peer then.
    pub(super) fn settle(&self, id: &ChannelId) -> Result<bool, Error> {
        let newly = lock(&self.inner).channels.get_mut(id).is_some_and(Channel::newly_covered);
        let due = |channel: &Channel| channel.secret_held || channel.owed || newly;
        if lock(&self.inner).channels.get(id).is_some_and(due) {
            let written = self.write(id);
            // What is covered is so once only: it is written with the next companions if not now.
            if let Some(channel) = lock(&self.inner).channels.get_mut(id) {
                channel.owed = written.is_err();
            }
            written?;
        }
        Ok(newly)
    }

    /// Whether each of our unrevoked commitments on V has a companion on that outpoint, on disk.
    pub(crate) fn covers(&self, id: &ChannelId, v: &OutPoint, real: &OutPoint) -> bool {
        lock(&self.inner).channels.get(id).is_some_and(|channel| channel.covers(v, real))
    }

    /// Signs on these outpoints: the commitment with that signature, or all of the peer's on V.
    pub(super) fn companions(
        &self,
        id: &ChannelId,
        which: impl Fn(&OutPoint, Option<&Signature>) -> bool,
        reals: impl Fn(&OutPoint) -> Vec<OutPoint>,
        signer: impl FnOnce([u8; 32]) -> InMemorySigner,
    ) -> Vec<Accompanied> {
        let inner = lock(&self.inner);
        let Some(channel) = inner.channels.get(id) else { return Vec::new() };
        let theirs = channel.theirs.iter().filter(|t| which(&t.v, t.signature.as_ref()));
        let theirs: Vec<(&Theirs, Vec<OutPoint>)> =
            theirs.map(|t| (t, reals(&t.v))).filter(|(_, reals)| !reals.is_empty()).collect();
        if theirs.is_empty() {
            return Vec::new();
        }
        let signer = signer(channel.keys_id);
        let sign = |(t, reals): (&Theirs, Vec<OutPoint>)| {
            let parameters = channel.parameters(&t.v)?;
            let on = |real: &OutPoint| companion::sign(&signer, parameters, &t.commitment, real, &self.secp);
            // LDK signs the same commitment in the same way each time.
            let commitment = t.signature.or_else(|| on(&t.v).map(|signed| signed.signature))?;
            let companions = reals.into_iter().filter_map(|real| Some((real, on(&real)?))).collect();
            Some(Accompanied { v: t.v, number: t.commitment.commitment_number(), commitment, companions })
        };
        theirs.into_iter().filter_map(sign).collect()
    }

    /// Our unrevoked commitments: V, number and txid on V, for tests.
    #[cfg(test)]
    pub(crate) fn own_commitments(&self, id: &ChannelId) -> Vec<(OutPoint, u64, Txid)> {
        let inner = lock(&self.inner);
        let own = inner.channels.get(id).into_iter().flat_map(|c| &c.own);
        own.map(|o| (o.v, o.number(), o.commitment.trust().txid())).collect()
    }

    /// Our commitment with this number, for tests.
    #[cfg(test)]
    pub(crate) fn own_transaction(&self, v: &OutPoint, number: u64) -> CommitmentTransaction {
        let inner = lock(&self.inner);
        let mut own = inner.channels.values().flat_map(|c| &c.own);
        (*own.find(|o| o.v == *v && o.number() == number).unwrap().commitment).clone()
    }

    /// V of every commitment of either side, for tests.
    #[cfg(test)]
    pub(crate) fn virtuals(&self, id: &ChannelId) -> Vec<OutPoint> {
        let inner = lock(&self.inner);
        let Some(channel) = inner.channels.get(id) else { return Vec::new() };
        let mut all: Vec<OutPoint> =
            channel.own.iter().map(|o| o.v).chain(channel.theirs.iter().map(|t| t.v)).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Outpoints that the peer has announced, and whether it has been bound to them, for tests.
    #[cfg(test)]
    pub(crate) fn announced(&self, id: &ChannelId) -> Vec<(OutPoint, OutPoint, bool)> {
        let inner = lock(&self.inner);
        let all = inner.channels.get(id).map(|c| c.announced.clone()).unwrap_or_default();
        all.into_iter().map(|a| (a.v, a.real, a.covered)).collect()
    }

    /// The funding keys of a channel on V: ours and the peer's.
    pub(super) fn funding_keys(&self, id: &ChannelId, v: &OutPoint) -> Option<(PublicKey, PublicKey)> {
        let inner = lock(&self.inner);
        let parameters = inner.channels.get(id)?.parameters(v)?;
        let theirs = parameters.counterparty_parameters.as_ref()?;
        Some((parameters.holder_pubkeys.funding_pubkey, theirs.pubkeys.funding_pubkey))
    }

    // What an exit asks.

    /// Whether LDK has accepted a commitment of ours on V that is not revoked.
    pub(super) fn holds(&self, v: &OutPoint) -> bool {
        let inner = lock(&self.inner);
        let mut own = inner.channels.values().flat_map(|c| &c.own);
        own.any(|own| own.v == *v && !own.predicted)
    }

    /// The peer's signatures of our commitment with this number, as LDK counts, on a real outpoint of V.
    pub fn companion_of(
        &self,
        v: &OutPoint,
        number: u64,
        real: &OutPoint,
    ) -> Option<(Signature, Vec<Signature>)> {
        let inner = lock(&self.inner);
        let mut own = inner.channels.values().flat_map(|c| &c.own);
        let signed = own.find(|o| o.v == *v && o.number() == number)?.on(real)?;
        Some((signed.signature, signed.htlcs.clone()))
    }

    /// Our commitment with this number, as LDK counts, on a real outpoint of V: signed by both and ready for the chain.
    pub fn own_on(
        &self,
        v: &OutPoint,
        number: u64,
        real: &OutPoint,
        signer: impl FnOnce([u8; 32]) -> InMemorySigner,
    ) -> Option<Transaction> {
        let inner = lock(&self.inner);
        let has = |c: &&Channel| c.own.iter().any(|o| o.v == *v && o.number() == number);
        let channel = inner.channels.values().find(has)?;
        let own = channel.own.iter().find(|o| o.v == *v && o.number() == number)?;
        let (signed, parameters) = (own.on(real)?, channel.parameters(v)?);
        let signer = signer(channel.keys_id);
        companion::signed_by_both(&signer, parameters, &own.commitment, real, signed, &self.secp)
    }

    /// The number, as LDK counts, of our commitment with that id on V.
    pub(super) fn own_number(&self, v: &OutPoint, txid: &Txid) -> Option<u64> {
        let inner = lock(&self.inner);
        let mut own = inner.channels.values().flat_map(|c| &c.own);
        own.find(|o| o.v == *v && o.commitment.trust().txid() == *txid).map(|o| o.number())
    }

    /// The peer's signature, on a real outpoint of V, for the HTLC at that output of our commitment with this number.
    pub(super) fn htlc_signature(
        &self,
        v: &OutPoint,
        number: u64,
        real: &OutPoint,
        output: u32,
    ) -> Option<Signature> {
        let inner = lock(&self.inner);
        let mut own = inner.channels.values().flat_map(|c| &c.own);
        let own = own.find(|o| o.v == *v && o.number() == number)?;
        let mut htlcs = own.commitment.nondust_htlcs().iter();
        let at = htlcs.position(|h| h.transaction_output_index == Some(output))?;
        own.on(real)?.htlcs.get(at).copied()
    }

    /// The number, as LDK counts, of our newest commitment on V that has a companion on a real outpoint.
    pub fn newest_on(&self, v: &OutPoint, real: &OutPoint) -> Option<u64> {
        let inner = lock(&self.inner);
        let own = inner.channels.values().flat_map(|c| &c.own);
        own.filter(|o| o.v == *v && o.on(real).is_some()).map(|o| o.number()).min()
    }
}
