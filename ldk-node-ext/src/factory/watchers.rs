//! Watchers: they hold the newest path before what retires the older one is sent.
//!
//! A newer state retires the older one by what each side says last of an advance, once its record is on disk:
//! `AdvanceSigned` is the LSP's (with it the client has the new state complete, and goes on), `AdvancePersisted` the
//! client's (with it the LSP takes the state as shared by all, and a changed capacity may lock). Before that the side that
//! holds its word back is no worse off than with the older state: it can publish either. Earlier it cannot be asked
//! for: a watcher takes complete paths only, and a path is complete when the last signatures are there, after which
//! nothing is left to be sent but these. So they wait here, together with the `factory_change_continue` that goes with
//! them, until each watcher has said that the path is on its disk.
//!
//! If a watcher is silent for the configured time, the user is told (`watcher_silent`). Where watchers are not required
//! the message then goes out; where they are it waits on. What can be refused without a loss is refused before anything
//! is signed: with required watchers a leaf does not begin to rotate while one of them is away.
//!
//! After a restart every path is handed over again, and what the other side asks for again waits again.

use std::collections::BTreeSet;

use bitcoin::secp256k1::PublicKey;
use bitcoin::OutPoint;
use bolt_tlv::payload::Payload;
use factory_core::faults::switch;
use serde_json::json;
use tokio::time::Instant;

use super::stored::{Factory, Signed, Stage};
use super::Service;
use crate::error::Error;
use crate::ldk::InstanceId;
use crate::watch::{ExitFile, LeafId};

/// Most paths that are handed over in one tick: each is verified before.
const AT_ONCE: usize = 20;

/// The last message of an advance, which waits for the watchers.
pub(super) struct HeldWord {
    id: InstanceId,
    peer: PublicKey,
    channel: OutPoint,
    payload: Payload,
    leaf: LeafId,
    position: u64,
    since: Instant,
    /// Whether the user has been told.
    told: bool,
}

/// Paths that were handed over: factory, leaf by its first client, position.
pub(super) type Offered = BTreeSet<(InstanceId, u32, u64)>;

impl Service {
    /// The exit file of a leaf's newest path, by its first client.
    ///
    /// # Errors
    /// [`Error::Factory`] for a record that does not hold.
    pub(super) fn exit_file(&self, factory: &Factory, first: u32) -> Result<ExitFile, Error> {
        let lsp = matches!(factory.signed, Signed::Lsp(_));
        ExitFile::new(self.parts.config.network, self.parts.node_id, lsp, factory.leaf_path(first)?)
    }

    /// Whether a rotation may begin as far as the watchers are concerned.
    ///
    /// # Errors
    /// [`Error::Unavailable`] naming required watchers that are away.
    pub(super) fn watchers_there(&self) -> Result<(), Error> {
        let away = if self.handover.config().required { self.handover.away() } else { Vec::new() };
        match away.is_empty() {
            true => Ok(()),
            false => Err(Error::Unavailable(format!("{} is away and is required", away.join(" and ")))),
        }
    }

    /// Hands over what is new, some of it at a time; forgets what has ended.
    pub(super) fn offer_paths(&mut self) {
        if !self.handover.any() {
            return;
        }
        let mut new = Vec::new();
        for factory in self.factories.values() {
            let id = factory.id();
            if !matches!(factory.state.stage, Stage::Funded | Stage::Live) {
                continue;
            }
            for leaf in factory.leaves() {
                let Ok(position) = factory.position(leaf.first) else { continue };
                if !self.offered.contains(&(id, leaf.first, position)) && new.len() < AT_ONCE {
                    new.push((id, leaf.first));
                }
            }
        }
        for (id, first) in new {
            if let Err(e) = self.offer_path(&id, first) {
                tracing::error!(error = %e, "a path for the watchers");
            }
        }
        let over = |id: &InstanceId| {
            let stage = self.factories.get(id).map(|f| f.state.stage);
            !matches!(stage, Some(Stage::Signed | Stage::Funded | Stage::Live))
        };
        let ended: Vec<_> = self.offered.iter().filter(|(id, _, _)| over(id)).copied().collect();
        for key @ (id, first, _) in ended {
            self.offered.remove(&key);
            let file = self.factories.get(&id).and_then(|f| self.exit_file(f, first).ok());
            if let Some(file) = file {
                self.handover.forget(&file.leaf_id());
            }
        }
    }

    /// Hands a leaf's newest path over.
    fn offer_path(&mut self, id: &InstanceId, first: u32) -> Result<(LeafId, u64), Error> {
        let factory = self.found(id)?;
        let position = factory.position(first)?;
        let file = self.exit_file(factory, first)?;
        self.handover.offer(&file)?;
        self.offered.retain(|(of, leaf, _)| (of, leaf) != (id, &first));
        self.offered.insert((*id, first, position));
        Ok((file.leaf_id(), position))
    }

    /// Sends the last message of an advance, at once or when the watchers hold the path.
    pub(super) fn send_last(
        &mut self,
        id: &InstanceId,
        peer: PublicKey,
        channel: OutPoint,
        payload: Payload,
    ) -> bool {
        if !self.handover.any() || switch("node.watchers.unasked") {
            let sent = self.send(peer, payload);
            self.tell_continue(id, peer, &channel);
            return sent;
        }
        let leaf = self.factories.get(id).and_then(|f| f.leaf_of(&channel)).map(|leaf| leaf.first);
        let Some(Ok((leaf, position))) = leaf.map(|first| self.offer_path(id, first)) else {
            tracing::error!(instance = hex::encode(id), "the path of a channel cannot be handed over");
            return false;
        };
        // One for each channel: the newest says all that the ones before it said.
        let old = self.held_words.iter().position(|held| held.id == *id && held.channel == channel);
        let old = old.map(|place| self.held_words.swap_remove(place)).filter(|old| old.position == position);
        let (since, told) = old.map_or((Instant::now(), false), |old| (old.since, old.told));
        let held = HeldWord { id: *id, peer, channel, payload, leaf, position, since, told };
        self.held_words.push(held);
        self.watchers_said();
        true
    }

    /// Sends what has waited for the watchers, as far as they have answered or the wait is over.
    pub(super) fn watchers_said(&mut self) {
        let config = self.handover.config();
        let (required, wait) = (config.required, config.wait);
        let mut waiting = Vec::new();
        for mut held in std::mem::take(&mut self.held_words) {
            let without = self.handover.without(&held.leaf, held.position);
            let over = held.since.elapsed() >= wait;
            if !without.is_empty() && over && !held.told {
                held.told = true;
                self.parts.events.push(
                    "watcher_silent",
                    json!({
                        "instance_id": hex::encode(held.id), "position": held.position,
                        "reason": without.join("; "), "required": required,
                    }),
                );
            }
            if without.is_empty() || (over && !required) {
                // If the peer is gone it asks again when it is back.
                self.send(held.peer, held.payload);
                self.tell_continue(&held.id, held.peer, &held.channel);
            } else {
                waiting.push(held);
            }
        }
        self.held_words = waiting;
    }
}
