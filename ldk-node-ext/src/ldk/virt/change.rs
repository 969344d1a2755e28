//! A change of capacity: a splice V -> V' to LDK, whose transaction never leaves, with a real outpoint R' under V'.
//!
//! What the caller does on each side, in this order; the module's description says why.
//!
//! 1. [`Changes::agree`]: what each side adds. LDK hears of no other splice.
//! 2. [`Changes::contribute`], where that is not nothing, when both have agreed. Which side comes first does not matter:
//!    there is one splice.
//! 3. [`Changes::ready`] with LDK's event `FundingTransactionReadyForSigning`; a side that adds nothing gets none.
//! 4. [`Changes::negotiated`]: V' and its output, hence the script for the new tree.
//! 5. [`Changes::move_to`], when the tree says where R' is: the commitments on V' are foretold and companions for R'
//!    exchanged, as for any new real outpoint. [`Streams::covered`] says when both sides have them on disk.
//! 6. [`Changes::bind`], before a signature leaves that lets R' confirm. LDK's channel manager has to be on disk as it
//!    was at 3. From here on there is no way back by [`Changes::abort`]; only a newer complete state opens one,
//!    [`Changes::supersede`], or that no signature has left, [`Changes::free`].
//! 7. [`Changes::sign`], when the whole new path is stored: LDK signs, and both V and V' are live.
//! 8. [`Changes::lock`], when the peer has it too. LDK locks V' when both have done that; V is retired.
//!
//! Until 6 each side may [`Changes::abort`]; both are back on V then, and so they are if the connection is lost before 3.
//! Later a connection or a process may end at any time: the caller goes on where it was (1 to 5 are forgotten by a
//! process: it aborts).
//!
//! **Exits.** Before 7 LDK knows nothing of V'. An exit by an R of V is LDK's own. If R' confirms, what is below it
//! goes to a monitor of V' that 6 has made; [`Changes::leave`] has that one publish our commitment. After 7 LDK's own
//! monitor knows both V and V'.

use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::{sha256, Hash};
use bitcoin::secp256k1::{Message, PublicKey, Secp256k1, SecretKey};
use bitcoin::sighash::SighashCache;
use bitcoin::transaction::Version;
use bitcoin::{
    ecdsa, Amount, CompressedPublicKey, EcdsaSighashType, FeeRate, OutPoint, ScriptBuf, Sequence,
    Transaction, TxIn, TxOut, Txid, Witness,
};
use factory_core::faults::switch;
use lightning::ln::msgs::{ChannelMessageHandler, TxAbort};
use lightning::ln::types::ChannelId;
use lightning::util::wallet_utils::ConfirmedUtxo;

use super::map::Real;
use super::messages::Streams;
use super::retired::Retired;
use crate::error::Error;
use crate::ldk::{ChainMonitor, ChannelManager};

/// What a side's fictional input is worth, sat: the same always, so that it is signed for without a memory of it.
/// What the side does not add comes out again.
const FICTION_SAT: u64 = 1_000_000_000_000;

/// See the module's description.
pub struct Changes {
    manager: Arc<ChannelManager>,
    monitors: Arc<ChainMonitor>,
    streams: Arc<Streams>,
    retired: Arc<Retired>,
}

/// The key of fictional outputs. They exist nowhere, so it need not be a secret.
fn fiction_key() -> Result<SecretKey, Error> {
    SecretKey::from_slice(&[0x42; 32]).map_err(|e| Error::Ldk(e.to_string()))
}

/// An output that exists nowhere, for a node to spend together with V. Its transaction spends the preimage of a hash.
fn fiction(node: &PublicKey, v: &OutPoint) -> Result<Transaction, Error> {
    let key = fiction_key()?.public_key(&Secp256k1::new());
    let script_pubkey = ScriptBuf::new_p2wpkh(&CompressedPublicKey(key).wpubkey_hash());
    let nothing = [&node.serialize()[..], &v.txid[..], &v.vout.to_be_bytes()].concat();
    let nothing = Txid::from_byte_array(sha256::Hash::hash(&nothing).to_byte_array());
    let input = TxIn {
        previous_output: OutPoint { txid: nothing, vout: 0 },
        script_sig: ScriptBuf::new(),
        sequence: Sequence::MAX,
        witness: Witness::from_slice(&[[0u8; 1]]),
    };
    let output = vec![TxOut { value: Amount::from_sat(FICTION_SAT), script_pubkey }];
    Ok(Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output })
}

/// LDK takes a funding transaction without witnesses for a mistake; only it ever sees these.
fn with_witnesses(mut tx: Transaction) -> Transaction {
    for input in tx.input.iter_mut().filter(|input| input.witness.is_empty()) {
        input.witness = Witness::from_slice(&[[0u8; 1]]);
    }
    tx
}

/// The splice transaction with the witness of our fictional input alone; none if it has no such input.
fn signed(mut tx: Transaction, fiction: &Transaction) -> Result<Option<Transaction>, Error> {
    let spent = OutPoint { txid: fiction.compute_txid(), vout: 0 };
    let Some(at) = tx.input.iter().position(|i| i.previous_output == spent) else { return Ok(None) };
    let Some(output) = fiction.output.first() else { return Ok(None) };
    tx.input.iter_mut().for_each(|input| input.witness = Witness::new());
    let (secp, key) = (Secp256k1::new(), fiction_key()?);
    let hash = SighashCache::new(&tx)
        .p2wpkh_signature_hash(at, &output.script_pubkey, output.value, EcdsaSighashType::All)
        .map_err(|e| Error::Ldk(e.to_string()))?;
    let signature = secp.sign_ecdsa(&Message::from_digest(hash.to_byte_array()), &key);
    if let Some(input) = tx.input.get_mut(at) {
        input.witness = Witness::p2wpkh(&ecdsa::Signature::sighash_all(signature), &key.public_key(&secp));
    }
    Ok(Some(tx))
}

impl Changes {
    /// For the channels of a node.
    pub(crate) fn new(
        manager: Arc<ChannelManager>,
        monitors: Arc<ChainMonitor>,
        streams: Arc<Streams>,
        retired: Arc<Retired>,
    ) -> Self {
        Self { manager, monitors, streams, retired }
    }

    fn current(&self, channel: &ChannelId) -> Result<OutPoint, Error> {
        let current = self.streams.mapping.current(channel);
        current.ok_or_else(|| Error::not_found(format!("virtual outpoints of channel {channel}")))
    }

    /// Both sides are going to add this much, sat; what is taken out is negative. Only such a splice is begun or
    /// accepted, and only one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if nobody adds anything; [`Error::NotFound`]; [`Error::Conflict`] if there is a change
    /// under way.
    pub fn agree(&self, channel: &ChannelId, ours_sat: i64, theirs_sat: i64) -> Result<(), Error> {
        if ours_sat == 0 && theirs_sat == 0 {
            return Err(Error::invalid("capacity_sat", "does not change"));
        }
        self.current(channel)?;
        if let Some(v) = self.streams.mapping.pending(channel).first() {
            return Err(Error::Conflict(format!("channel {channel} is on its way to {v}")));
        }
        self.streams.commitments.agree(channel, Some((ours_sat, theirs_sat)))
    }

    /// Has LDK begin the splice, or take part in the one that the peer begins, with what was agreed of ours. Nothing is
    /// done where we add nothing.
    ///
    /// # Errors
    /// [`Error::Conflict`] if nothing was agreed, or what LDK says.
    pub fn contribute(&self, peer: &PublicKey, channel: &ChannelId) -> Result<(), Error> {
        let agreed = self.streams.commitments.agreed(channel);
        let (ours, _) = agreed.ok_or_else(|| Error::Conflict("no change was agreed".into()))?;
        if ours == 0 {
            return Ok(());
        }
        let v = self.current(channel)?;
        let fiction = fiction(&self.streams.keys.node_id(), &v)?;
        let out = FICTION_SAT.checked_add_signed(-ours).map(Amount::from_sat);
        let value = out.ok_or_else(|| Error::invalid("capacity_sat", "out of range"))?;
        let script = fiction.output.first().map(|o| o.script_pubkey.clone()).unwrap_or_default();
        let input = ConfirmedUtxo::new_p2wpkh(fiction, 0);
        let input = input.map_err(|()| Error::Ldk("a fictional output is refused".into()))?;
        let refused = |e: &dyn std::fmt::Debug| Error::Conflict(format!("LDK refuses the change: {e:?}"));
        let contribution = self
            .manager
            .splice_channel(channel, peer)?
            .without_prior_contribution(FeeRate::ZERO, FeeRate::ZERO)
            .add_input(input)
            .map_err(|e| refused(&e))?
            .add_output(TxOut { value, script_pubkey: script })
            .build()
            .map_err(|e| refused(&e))?;
        // No two tries have the same V'. It is a height, and nobody waits for it.
        let random = self.streams.keys.random();
        let locktime = random.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) % 500_000_000);
        self.manager.funding_contributed(channel, peer, contribution, locktime).map_err(|e| refused(&e))?;
        if let Some(msg) = self.streams.contributed(peer, channel) {
            self.manager.handle_stfu(*peer, &msg);
        }
        Ok(())
    }

    /// LDK is ready to sign.
    pub fn ready(&self, channel: &ChannelId, unsigned: &Transaction) {
        self.streams.commitments.ready(channel, unsigned);
    }

    /// V' and its output, once both sides are ready to sign for what was agreed.
    ///
    /// # Errors
    /// [`Error::Conflict`] with what is not there yet, or not as agreed, or cannot be foretold.
    pub fn negotiated(&self, channel: &ChannelId) -> Result<(OutPoint, TxOut), Error> {
        let signer = |keys_id| self.streams.keys.channel_signer(keys_id);
        let v = self.current(channel)?;
        let (new, output, _) = self.streams.commitments.foresee(channel, &v, false, signer)?;
        Ok((new, output))
    }

    /// R' is known: foretells the commitments on V' and announces R' to the peer. Returns V'. The channel stays as it is.
    ///
    /// # Errors
    /// As [`Self::negotiated`]; [`Error::InvalidArgument`] if R' is not of the value and script of V'; [`Error::Conflict`]
    /// if companions that have come already are wrong; [`Error::Store`]: nothing has been announced then.
    pub fn move_to(&self, peer: PublicKey, channel: &ChannelId, real: Real) -> Result<OutPoint, Error> {
        let (mapping, commitments) = (&self.streams.mapping, &self.streams.commitments);
        let signer = |keys_id| self.streams.keys.channel_signer(keys_id);
        let v = self.current(channel)?;
        let (new, output, tx) = commitments.foresee(channel, &v, false, signer)?;
        if real.output != output {
            return Err(Error::invalid("output", format!("is not of the value and script of {new}")));
        }
        mapping.add_virtual(*channel, new, with_witnesses(tx))?;
        let announced = mapping
            .add_real(&new, real.clone())
            .and_then(|()| commitments.foresee(channel, &v, true, signer))
            .and_then(|_| self.streams.announce(peer, channel, &new, real));
        if let Err(e) = announced {
            self.streams.aborted(channel);
            return Err(e);
        }
        self.streams.settle(channel);
        Ok(new)
    }

    fn pending(&self, channel: &ChannelId, v: &OutPoint) -> Result<(), Error> {
        match self.streams.mapping.pending(channel).contains(v) {
            true => Ok(()),
            false => Err(Error::not_found(format!("{v}: not where channel {channel} is going"))),
        }
    }

    /// Signatures that let R' confirm may leave when this has returned. Makes the monitor of V'.
    ///
    /// # Errors
    /// [`Error::Conflict`] if not every commitment on V' is there on both sides and on disk; [`Error::NotFound`];
    /// [`Error::Store`]: nothing may leave then.
    pub fn bind(&self, channel: &ChannelId, v: &OutPoint) -> Result<(), Error> {
        self.pending(channel, v)?;
        let reals = self.streams.mapping.reals(v);
        let covered =
            |real: &Real| self.streams.covered(channel, v, &real.outpoint) || switch("change.bind.uncovered");
        let Some(real) = reals.first().filter(|_| reals.iter().all(covered)) else {
            return Err(Error::Conflict(format!("not every commitment on {v} has its companions")));
        };
        if self.streams.mapping.is_ahead(v) {
            let live = self.monitors.get_monitor(*channel);
            let live = live.map_err(|()| Error::not_found(format!("monitor of channel {channel}")))?;
            self.retired.foresee(&live, &self.streams.commitments, v, &real.outpoint)?;
        }
        self.streams.mapping.bind(v, true)
    }

    /// A newer state is complete and stored: the change is given up. If signatures of ours have left, the peer may have
    /// completed R', and publish it while we sleep; so V' is watched from now on like a V that LDK has moved on from.
    ///
    /// # Errors
    /// As [`Self::abort`].
    pub fn supersede(&self, peer: PublicKey, channel: &ChannelId, v: &OutPoint) -> Result<(), Error> {
        if switch("virt.superseded.dropped") {
            return self.free(peer, channel, v);
        }
        self.pending(channel, v)?;
        self.streams.mapping.retire(v)?;
        self.abort(peer, channel)
    }

    /// No signature has ever left that lets R' confirm: the change is given up.
    ///
    /// # Errors
    /// As [`Self::abort`].
    pub fn free(&self, peer: PublicKey, channel: &ChannelId, v: &OutPoint) -> Result<(), Error> {
        self.pending(channel, v)?;
        self.streams.mapping.bind(v, false)?;
        self.abort(peer, channel)
    }

    /// Gives the change up; the channel is on V as before. There may be none.
    ///
    /// # Errors
    /// [`Error::Conflict`] after [`Self::bind`]; [`Error::NotFound`].
    pub fn abort(&self, peer: PublicKey, channel: &ChannelId) -> Result<(), Error> {
        let pending = self.streams.mapping.pending(channel);
        if pending.iter().any(|v| self.streams.mapping.is_bound(v)) {
            return Err(Error::Conflict("signatures of the new state have left".into()));
        }
        self.streams.commitments.agree(channel, None)?;
        if self.manager.cancel_funding_contributed(channel, &peer).is_err() {
            // LDK has no call for who adds nothing. It takes this for the peer's, and answers to the peer.
            let msg = TxAbort { channel_id: *channel, data: b"given up".to_vec() };
            self.manager.handle_tx_abort(peer, &msg);
        }
        self.streams.aborted(channel);
        Ok(())
    }

    /// The new path is stored: LDK may sign for V'. Nothing is done where we add nothing: LDK has signed, and goes on
    /// when the peer has.
    ///
    /// # Errors
    /// [`Error::Conflict`] before [`Self::bind`], or if an outpoint of the channel is confirmed; what LDK says.
    pub fn sign(&self, peer: &PublicKey, channel: &ChannelId, v: &OutPoint) -> Result<(), Error> {
        self.pending(channel, v)?;
        let mapping = &self.streams.mapping;
        if !mapping.is_bound(v) && !switch("change.sign.unbound") {
            return Err(Error::Conflict(format!("{v} is not bound")));
        }
        let before = self.current(channel)?;
        if mapping.is_confirmed(v) || mapping.is_confirmed(&before) {
            return Err(Error::Conflict("an outpoint of the channel is confirmed".into()));
        }
        let tx = mapping.creation(v).ok_or_else(|| Error::not_found(format!("transaction of {v}")))?;
        let fiction = fiction(&self.streams.keys.node_id(), &before)?;
        match signed(tx, &fiction)? {
            None => Ok(()),
            Some(tx) => Ok(self.manager.funding_transaction_signed(channel, peer, tx)?),
        }
    }

    /// The peer has the new state, or no longer needs it: V' may be locked from our side.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`]: it is not locked then.
    pub fn lock(&self, channel: &ChannelId, v: &OutPoint) -> Result<(), Error> {
        self.streams.mapping.allow_lock(v)?;
        // The next one has to be agreed again.
        self.streams.commitments.agree(channel, None)?;
        if let Some((peer, msg)) = self.streams.release_lock(channel) {
            self.manager.handle_splice_locked(peer, &msg);
        }
        Ok(())
    }

    /// The V that LDK has moved on from, an R of which has won, and on which our commitment is not revoked: there was no
    /// update since. As long as the channel is open the peer may have us revoke it.
    pub fn may_leave(&self, channel: &ChannelId) -> Option<OutPoint> {
        let v = self.streams.mapping.overtaken_by(channel)?;
        (self.streams.commitments.holds(&v) && !switch("virt.unrevoked.stays")).then_some(v)
    }

    /// Publishes our commitment on a V' that LDK does not know, or on a V of [`Self::may_leave`]: it leaves as soon as the
    /// real outpoint is confirmed. The channel has to be closed in LDK, for the second on disk, too.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no monitor of V, or our commitment is revoked; [`Error::Store`].
    pub fn leave(&self, v: &OutPoint) -> Result<(), Error> {
        let mapping = &self.streams.mapping;
        if mapping.is_retired(v) && !mapping.is_left(v) && self.streams.commitments.holds(v) {
            mapping.leave(v)?;
        }
        self.retired.leave(v)
    }
}
