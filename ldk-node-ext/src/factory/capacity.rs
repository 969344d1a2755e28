//! Changes of capacity inside a rotation: what they are at LDK's side of a channel, step by step.
//!
//! The machines of [`factory_core::advance`] have one step for it, "prepare the channel". To LDK it is a splice V -> V'
//! ([`Changes`](crate::ldk::Changes)), negotiated before the new transactions are built and locked after they are stored:
//!
//! | the machine says | here |
//! |---|---|
//! | prepare the channel | both agree on who adds what; who adds something begins the splice |
//! | (LDK is ready to sign) | V' and so the new script are known: prepared |
//! | rebuilt | R' is under V', its commitments are foretold, companions exchanged |
//! | about to ask for or give what lets R' confirm | V' is bound: there is no way back from here |
//! | the record is stored | LDK signs |
//! | the other side has it too | V' is locked, V retires |
//!
//! A try that fails before V' is bound leaves nothing. One that fails later leaves a channel that rests: no payment
//! passes until a newer state, in which the channel is as it was on V, is complete on both sides, or until the client
//! has said that it gave nothing away. So the provider has the leaf advance once more as soon as it can.

use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, Transaction, TxOut};
use lightning::ln::types::ChannelId;
use lightning::util::persist::{
    KVStoreSync, CHANNEL_MANAGER_PERSISTENCE_KEY, CHANNEL_MANAGER_PERSISTENCE_PRIMARY_NAMESPACE,
    CHANNEL_MANAGER_PERSISTENCE_SECONDARY_NAMESPACE,
};
use lightning::util::ser::Writeable;
use tokio::time::Instant;

use super::rotate_begin::Wish;
use super::stored::{Factory, Leaf, Signed, Stage};
use super::Service;
use crate::api::NodeLevel;
use crate::error::Error;
use crate::faults;
use crate::ldk::{channel_id, InstanceId, Real};
use crate::util::lock;
use bolt_tlv::payload;
use factory_core::advance::{AdvanceReason, LspAdvanceState};

/// A leaf that rests is tried to be restored once in so long.
const RESTORE_EVERY: Duration = Duration::from_secs(20);

/// A channel's change of capacity in a rotation under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resize {
    /// What we add, sat; negative for what is taken out.
    pub(super) ours_sat: i64,
    /// What the other side adds.
    pub(super) theirs_sat: i64,
    /// Whether the machine has been told that the channel is prepared.
    pub(super) prepared: bool,
    /// V', once R' is known.
    pub(super) v: Option<OutPoint>,
}

impl Resize {
    pub(super) fn new(ours_sat: i64, theirs_sat: i64) -> Self {
        Self { ours_sat, theirs_sat, prepared: false, v: None }
    }
}

/// By how much a capacity changes, sat.
///
/// # Errors
/// [`Error::InvalidArgument`] out of range.
pub(super) fn difference(from_sat: u64, to_sat: u64) -> Result<i64, Error> {
    let both = i64::try_from(from_sat).ok().zip(i64::try_from(to_sat).ok());
    let difference = both.and_then(|(from, to)| to.checked_sub(from));
    difference.ok_or_else(|| Error::invalid("capacity_sat", "out of range"))
}

impl Service {
    /// Puts a channel into the table of virtual outpoints, if it has never moved.
    pub(super) fn map_channel(&self, factory: &Factory, channel: &OutPoint) -> Result<(), Error> {
        let (name, mapping) = (channel_id(*channel), &self.parts.mapping);
        if mapping.current(&name).is_some_and(|v| v != *channel) {
            return Ok(());
        }
        let creation = factory.creation_of(channel)?;
        let born = creation.output.get(usize::try_from(channel.vout).unwrap_or(usize::MAX)).cloned();
        let output = born.ok_or_else(|| Error::not_found(format!("output {channel}")))?;
        mapping.add_channel(name, *channel, Real { outpoint: *channel, output })?;
        mapping.set_creation(channel, creation)
    }

    /// What the LSP adds to a client's channel by a proposal, sat.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a proposal without the client's capacity.
    pub(super) fn contribution(
        &self,
        id: &InstanceId,
        channel: &OutPoint,
        propose: &payload::AdvancePropose,
    ) -> Result<i64, Error> {
        let now = self.found(id)?.capacity_of(channel)?;
        let place = usize::try_from(channel.vout).unwrap_or(usize::MAX);
        let to = propose.capacities_sat.get(place).copied();
        difference(now, to.ok_or_else(|| Error::invalid("capacities_sat", "has not this client's"))?)
    }

    /// Begins a change of capacity with the peer.
    ///
    /// # Errors
    /// [`Error::Conflict`] with what is in the way; nothing has begun then.
    pub(super) fn begin_resize(
        &self,
        id: &InstanceId,
        peer: &PublicKey,
        channel: &OutPoint,
        resize: &Resize,
    ) -> Result<(), Error> {
        self.map_channel(self.found(id)?, channel)?;
        let name = channel_id(*channel);
        self.parts.changes.agree(&name, resize.ours_sat, resize.theirs_sat)?;
        let begun = self.parts.changes.contribute(peer, &name);
        if begun.is_err() {
            self.abort_resize(peer, channel);
        }
        begun
    }

    /// The channel's script on V', once both sides are ready to sign.
    pub(super) fn resized_script(&self, channel: &OutPoint) -> Option<ScriptBuf> {
        match self.parts.changes.negotiated(&channel_id(*channel)) {
            Ok((_, output)) => Some(output.script_pubkey),
            Err(e) => {
                tracing::trace!(%channel, reason = %e, "change of capacity is not negotiated yet");
                None
            }
        }
    }

    /// R' is known: the commitments on V' are foretold for it. Returns V'.
    pub(super) fn move_resized(
        &self,
        peer: PublicKey,
        channel: &OutPoint,
        (outpoint, output): (OutPoint, TxOut),
    ) -> Result<OutPoint, Error> {
        self.parts.changes.move_to(peer, &channel_id(*channel), Real { outpoint, output })
    }

    /// No way back: what leaves after this lets R' confirm.
    ///
    /// # Errors
    /// [`Error::Store`], or [`Error::Conflict`] if companions are missing: nothing may leave then.
    pub(super) fn bind_resized(&self, channel: &OutPoint, resize: &Resize) -> Result<(), Error> {
        let v = resize.v.ok_or_else(|| Error::Conflict(format!("channel on {channel} has not moved")))?;
        // LDK has to know the negotiation again after a crash.
        let manager = self.parts.manager.encode();
        faults::point("node.change.bind");
        self.parts
            .store
            .write(
                CHANNEL_MANAGER_PERSISTENCE_PRIMARY_NAMESPACE,
                CHANNEL_MANAGER_PERSISTENCE_SECONDARY_NAMESPACE,
                CHANNEL_MANAGER_PERSISTENCE_KEY,
                manager,
            )
            .map_err(|e| Error::Store(e.to_string()))?;
        self.parts.changes.bind(&channel_id(*channel), &v)?;
        faults::point("node.change.bound");
        Ok(())
    }

    /// Gives a change up that is not bound.
    pub(super) fn abort_resize(&self, peer: &PublicKey, channel: &OutPoint) {
        lock(&self.to_sign).remove(&channel_id(*channel));
        if let Err(e) = self.parts.changes.abort(*peer, &channel_id(*channel)) {
            tracing::debug!(%channel, reason = %e, "change of capacity stays");
        }
    }

    /// LDK is ready to sign a splice.
    pub(super) async fn ready_to_sign(&mut self, channel: ChannelId, unsigned: &Transaction) {
        self.parts.changes.ready(&channel, unsigned);
        lock(&self.to_sign).insert(channel);
        let Some(known) = self.parts.outpoints.get(&channel) else { return };
        self.finish_resize(&known.instance, &known.outpoint, false);
        self.check_covered().await;
    }

    /// LDK says that a splice came to nothing: so does the try, as long as that is possible.
    pub(super) fn resize_failed(&mut self, channel: ChannelId, reason: &str) {
        let Some(known) = self.parts.outpoints.get(&channel) else { return };
        let text = format!("change of capacity: {reason}");
        if self.is_lsp() {
            self.moving_failed(&known.instance, &known.outpoint, &text);
        } else {
            self.resizing_failed(&known.instance, &text);
        }
    }

    /// The peer is connected: goes on with the changes of capacity that were under way with it.
    pub(super) fn resume_all_resizes(&self, peer: PublicKey) {
        for (id, factory) in &self.factories {
            let channels = factory.channels().unwrap_or_default();
            let with_peer = channels.iter().filter(|(_, client)| client.is_none_or(|client| client == peer));
            for (channel, _) in with_peer {
                self.resume_resize(id, peer, channel);
            }
        }
    }

    fn resume_resize(&self, id: &InstanceId, peer: PublicKey, channel: &OutPoint) {
        let (name, mapping) = (channel_id(*channel), &self.parts.mapping);
        let pending = mapping.pending(&name);
        if pending.is_empty() {
            return;
        }
        if !pending.iter().any(|v| mapping.is_bound(v)) && !self.is_moving(id, channel) {
            // Of a try that ended with the process.
            self.abort_resize(&peer, channel);
        }
        self.finish_resize(id, channel, !self.is_lsp());
        let Some(factory) = self.factories.get(id) else { return };
        if self.is_resting(factory, channel) {
            let tried = factory.leaf_of(channel).and_then(|leaf| factory.tried(leaf.first));
            if let Some(abort) =
                tried.filter(|_| self.is_undecided(factory, channel)).map(LspAdvanceState::abort)
            {
                self.send(peer, abort);
            }
        } else {
            self.tell_continue(id, peer, channel);
        }
    }

    /// Whether a rotation of a channel is under way.
    fn is_moving(&self, id: &InstanceId, channel: &OutPoint) -> bool {
        let mut of_lsp = self.rotating.iter().filter(|((of, _), _)| of == id);
        let following = self.following.get(id).and_then(|f| f.phase());
        of_lsp.any(|(_, r)| r.has(channel)) || following.is_some()
    }

    /// Whether a try is kept that is newer than everything complete of this channel's leaf.
    fn is_undecided(&self, factory: &Factory, channel: &OutPoint) -> bool {
        match &factory.signed {
            Signed::Lsp(_) => {
                let Some(leaf) = factory.leaf_of(channel) else { return true };
                let Ok(position) = factory.position(leaf.first) else { return true };
                factory.tried(leaf.first).is_some_and(|tried| tried.position > position)
            }
            Signed::Client(_) => super::rotate_client::is_unresolved(factory),
        }
    }

    /// Does what can be done for a channel's change of capacity that is bound: LDK signs it if its state is the newest
    /// complete one, locks it if the other side has that too, and forgets it if a newer state is.
    pub(super) fn finish_resize(&self, id: &InstanceId, channel: &OutPoint, locks: bool) {
        let Some(factory) = self.factories.get(id) else { return };
        let name = channel_id(*channel);
        let mapping = &self.parts.mapping;
        let pending = mapping.pending(&name);
        if pending.is_empty() {
            return;
        }
        let lsp = self.client_settings().map(|s| s.lsp_node_id);
        let client = || factory.channels().ok()?.into_iter().find(|(o, _)| o == channel)?.1;
        let Some(peer) = lsp.or_else(client) else { return };
        let newest = factory.newest_place(channel);
        for v in pending.into_iter().filter(|v| mapping.is_bound(v)) {
            let result = if mapping.reals(&v).iter().any(|real| real.outpoint == newest) {
                // Once: LDK asks again after a restart, if it has to be signed then.
                if lock(&self.to_sign).remove(&name) {
                    if let Err(e) = self.parts.changes.sign(&peer, &name, &v) {
                        tracing::error!(%channel, error = %e, "change of capacity not signed");
                        lock(&self.to_sign).insert(name);
                    }
                    faults::point("node.change.signed");
                }
                if locks {
                    self.parts.changes.lock(&name, &v)
                } else {
                    Ok(())
                }
            } else if self.is_undecided(factory, channel) {
                Ok(())
            } else {
                self.parts.changes.supersede(peer, &name, &v)
            };
            if let Err(e) = result {
                tracing::error!(%channel, %v, error = %e, "change of capacity");
            }
        }
        self.parts.peers.process_events();
    }

    /// The client has said that it gave nothing away in the newest try: what is bound of it can be forgotten.
    pub(super) fn free_resize(&self, id: &InstanceId, peer: PublicKey, channel: &OutPoint, attempt: u16) {
        let Some(factory) = self.factories.get(id) else { return };
        let tried = factory.leaf_of(channel).and_then(|leaf| factory.tried(leaf.first));
        if tried.is_none_or(|tried| tried.attempt != attempt) {
            return;
        }
        let (name, newest) = (channel_id(*channel), factory.newest_place(channel));
        let mapping = &self.parts.mapping;
        for v in mapping.pending(&name).into_iter().filter(|v| mapping.is_bound(v)) {
            if mapping.reals(&v).iter().any(|real| real.outpoint == newest) {
                continue;
            }
            if let Err(e) = self.parts.changes.free(peer, &name, &v) {
                tracing::error!(%channel, %v, error = %e, "change of capacity");
            }
        }
    }

    /// A channel that is left, and that LDK has closed: what it does not know of a change of capacity is published as soon
    /// as its output is on the chain.
    pub(super) fn leave_unknown(&self, channel: &ChannelId) {
        let mapping = &self.parts.mapping;
        for v in mapping.pending(channel).into_iter().filter(|v| mapping.is_ahead(v) && mapping.is_bound(v)) {
            if let Err(e) = self.parts.changes.leave(&v) {
                tracing::error!(%channel, %v, error = %e, "no commitment to leave by");
            }
        }
    }

    /// Whether a change of a channel's capacity is not over: its newest state may be complete, and not locked.
    pub(super) fn is_changing(&self, channel: &OutPoint) -> bool {
        !self.parts.mapping.pending(&channel_id(*channel)).is_empty()
    }

    /// Has leaves whose channels rest advance once more, as soon as everybody is there (LSP).
    pub(super) fn restore_resting(&mut self, now: Instant) {
        let mut found = Vec::new();
        for (id, factory) in self.factories.iter().filter(|(_, f)| f.state.stage == Stage::Live) {
            let rests = |leaf: &Leaf| {
                let rests = |c: &OutPoint| self.is_resting(factory, c) && self.is_undecided(factory, c);
                leaf.channels.iter().find(|(c, _)| rests(c)).and_then(|(_, client)| *client)
            };
            let leaves = factory.leaves();
            found.extend(leaves.iter().filter_map(|leaf| Some((*id, leaf.first, rests(leaf)?))));
        }
        for (id, first, client) in found {
            let last = self.restored.get(&(id, first));
            if last.is_some_and(|at| *at + RESTORE_EVERY > now) {
                continue;
            }
            let wish = Wish {
                level: NodeLevel::Leaf,
                changes: Vec::new(),
                reason: AdvanceReason::Rotate,
                force: false,
            };
            match self.begin_rotation(id, client, wish) {
                Ok(_) => {
                    self.restored.insert((id, first), now);
                }
                Err(e) => tracing::debug!(%client, reason = %e, "leaf is not restored yet"),
            }
        }
    }

    /// Whether a channel rests because a change of capacity failed too late.
    pub(super) fn is_resting(&self, factory: &Factory, channel: &OutPoint) -> bool {
        let newest = factory.newest_place(channel);
        let mapping = &self.parts.mapping;
        let pending = mapping.pending(&channel_id(*channel));
        let lost = |v: &OutPoint| mapping.reals(v).iter().all(|real| real.outpoint != newest);
        pending.iter().any(|v| mapping.is_bound(v) && lost(v))
    }
}
