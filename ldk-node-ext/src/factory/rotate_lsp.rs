//! The LSP's side of a rotation: carries out what `LspAdvance` says.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use bitcoin::secp256k1::PublicKey;
use bitcoin::OutPoint;
use bolt_tlv::blip56::FactoryChange;
use bolt_tlv::payload::{self, Payload};
use factory_core::advance::{
    answer_resume, AdvanceFailReason, LspAdvance, LspAdvanceAction, LspAdvanceInput, LspAdvancePhase,
    LspAdvanceRecord,
};
use factory_core::refuse::RefuseCode;
use serde_json::json;
use tokio::time::Instant;

use super::rotate::Moving;
use super::rotate_limits::Wasteful;
use super::stored::{Factory, Leaf, Signed};
use super::{Service, Timer};
use crate::error::Error;
use crate::faults;
use crate::ldk::{Change, InstanceId};

/// A rotation under way.
pub(super) struct LspRotating {
    pub(super) machine: LspAdvance,
    /// The clients of the node that advances, by their places in tree order.
    pub(super) span: Range<u32>,
    timer: Option<Timer>,
    /// Their channels.
    pub(super) channels: HashMap<PublicKey, Moving>,
    /// Who failed, and why.
    blamed: Vec<(PublicKey, String)>,
    /// Why this node calls it off.
    called_off: Option<String>,
    /// Since when the clients have been told that the new state is complete.
    pub(super) told: Option<Instant>,
}

impl LspRotating {
    /// One that begins now.
    pub(super) fn new(machine: LspAdvance, span: Range<u32>, leaves: &[Leaf]) -> Self {
        let members = leaves.iter().flat_map(|leaf| &leaf.channels);
        let channels = members.filter_map(|(o, c)| Some(((*c)?, Moving::new(*o)))).collect();
        Self { machine, span, timer: None, channels, blamed: Vec::new(), called_off: None, told: None }
    }

    /// The phase in words.
    pub(super) fn phase(&self) -> &'static str {
        match self.machine.phase() {
            LspAdvancePhase::Asking => "asking",
            LspAdvancePhase::Preparing | LspAdvancePhase::Covering => "preparing",
            LspAdvancePhase::Inner | LspAdvancePhase::Outer | LspAdvancePhase::Recording => "signing",
            LspAdvancePhase::Persisting => "persisting",
            LspAdvancePhase::Done => "done",
            LspAdvancePhase::Failed => "failed",
        }
    }

    /// Whether it moves a channel.
    pub(super) fn has(&self, channel: &OutPoint) -> bool {
        self.channels.values().any(|moving| moving.channel == *channel)
    }

    /// No outer partial signature has been asked for.
    pub(super) fn is_early(&self) -> bool {
        self.machine.phase() < LspAdvancePhase::Outer
    }

    /// Complete, and on this node's disk: nothing waits for what clients still have to say.
    pub(super) fn is_complete(&self) -> bool {
        self.machine.phase() >= LspAdvancePhase::Persisting
    }

    /// Whether it moves a leaf, by the leaf's first client.
    pub(super) fn moves(&self, first: u32) -> bool {
        self.span.contains(&first)
    }
}

impl Service {
    pub(super) fn push_rotation(
        &self,
        kind: &str,
        id: &InstanceId,
        attempt: u16,
        span: &Range<u32>,
        more: serde_json::Value,
    ) {
        let leaves = self.factories.get(id).map(Factory::leaves).unwrap_or_default();
        let channels = leaves.into_iter().filter(|l| span.contains(&l.first)).flat_map(|l| l.channels);
        let clients: Vec<String> = channels.filter_map(|(_, c)| Some(c?.to_string())).collect();
        let mut data = json!({"instance_id": hex::encode(id), "attempt": attempt, "clients": clients});
        if let (Some(data), serde_json::Value::Object(more)) = (data.as_object_mut(), more) {
            data.extend(more);
        }
        self.parts.events.push(kind, data);
    }

    pub(super) fn lsp_advance_message(&mut self, id: InstanceId, client: PublicKey, payload: Payload) {
        let Some(attempt) = payload.attempt() else { return };
        if let (Payload::AdvanceResume(m), false) = (&payload, self.rotating.contains_key(&(id, attempt))) {
            return self.answer_pending(id, client, m);
        }
        if let Payload::AdvanceRefuse(m) = &payload {
            // It lacks the state that the try was to start from.
            let asked = self.rotating.get(&(id, attempt)).is_some_and(|r| r.channels.contains_key(&client));
            if asked && m.code == RefuseCode::AdvanceBase.number() {
                self.tell_newest(id, client);
            }
        }
        self.rotation_input((id, attempt), LspAdvanceInput::Message { client, payload });
    }

    /// A client asks how a try ended that no machine knows any more.
    fn answer_pending(&mut self, id: InstanceId, client: PublicKey, m: &payload::AdvanceResume) {
        let Some(factory) = self.factories.get(&id) else { return };
        let Signed::Lsp(record) = &factory.signed else { return };
        let Some(index) = record.index_of(&client) else { return };
        match answer_resume(&factory.advances.lsp, index, m) {
            // It only says that it gave nothing away.
            Ok(None) => {
                let channel = factory.channel_with(&client);
                if let Some(channel) = channel {
                    self.free_resize(&id, client, &channel, m.attempt);
                }
            }
            Ok(Some(answer)) => {
                let signed = matches!(answer, Payload::AdvanceSigned(_));
                match factory.channel_with(&client).filter(|_| signed) {
                    Some(channel) => self.send_last(&id, client, channel, answer),
                    None => self.send(client, answer),
                };
            }
            Err(e) => tracing::error!(error = %e, "stored advance"),
        }
    }

    /// The client's part of a change, with its agreement.
    pub(super) fn change_agreed(
        &mut self,
        id: InstanceId,
        client: PublicKey,
        channel: &OutPoint,
        change: &FactoryChange,
        payload: Payload,
    ) {
        let Some(attempt) = payload.attempt().filter(|_| payload.instance_id() == Some(id)) else { return };
        let input = match self.check_change(channel, change) {
            Ok(()) => LspAdvanceInput::Message { client, payload },
            Err(e) => {
                let reason = format!("factory_change_ack: {e}");
                LspAdvanceInput::ChannelFailed { client, attempt, reason }
            }
        };
        self.rotation_input((id, attempt), input);
    }

    /// The client says where its channel is going to be.
    pub(super) fn lsp_heard_place(&mut self, id: InstanceId, client: PublicKey, place: OutPoint) {
        let found = self
            .rotating
            .iter_mut()
            .find(|((of, _), r)| *of == id && !r.is_complete() && r.channels.contains_key(&client));
        let Some((key, rotating)) = found else { return };
        let key = *key;
        let Some(moving) = rotating.channels.get_mut(&client) else { return };
        moving.theirs = Some(place);
        if moving.disagrees() {
            let reason = format!("factory_change_funding: {place} is not the channel's new output");
            let input = LspAdvanceInput::ChannelFailed { client, attempt: key.1, reason };
            return self.rotation_input(key, input);
        }
        self.lsp_covered();
    }

    /// Tells machines of channels that have become covered.
    pub(super) fn lsp_covered(&mut self) {
        self.lsp_prepared();
        let mut covered = Vec::new();
        for (key, rotating) in &self.rotating {
            if rotating.machine.phase() != LspAdvancePhase::Covering {
                continue;
            }
            let there = rotating.channels.iter().filter(|(_, moving)| self.is_covered(moving));
            covered.extend(there.map(|(client, _)| (*key, *client)));
        }
        for (key, client) in covered {
            self.rotation_input(key, LspAdvanceInput::Covered { client, attempt: key.1 });
        }
    }

    /// A client's connection was lost.
    pub(super) fn rotation_client_gone(&mut self, client: PublicKey) {
        let with = self.rotating.iter().filter(|(_, r)| r.channels.contains_key(&client));
        let keys: Vec<_> = with.map(|(key, _)| *key).collect();
        for key in keys {
            self.rotation_input(key, LspAdvanceInput::ClientGone { client });
        }
        self.stop_waiting_for_absent();
    }

    /// A client that is back is told again of a rotation that it may not have stored yet.
    pub(super) fn remind_of_rotations(&mut self, client: PublicKey) {
        let mut owed = Vec::new();
        for ((id, _), rotating) in &self.rotating {
            let Some(moving) = rotating.channels.get(&client) else { continue };
            let owes = rotating.machine.missing().contains(&client);
            let record = rotating.machine.record().filter(|_| owes);
            if let Some(Ok(signed)) = record.map(LspAdvanceRecord::signed) {
                owed.push((*id, moving.channel, signed));
            }
        }
        for (id, channel, signed) in owed {
            self.send_last(&id, client, channel, signed.into());
        }
    }

    /// An exit of this leaf begins.
    pub(super) fn cancel_rotation(&mut self, id: &InstanceId, first: u32) {
        let of_leaf = self.rotating.iter().filter(|((of, _), r)| of == id && r.moves(first));
        let keys: Vec<_> = of_leaf.map(|(key, _)| *key).collect();
        for key in keys {
            self.call_off(key, "the leaf is being left".to_owned());
        }
    }

    /// Ends a try, if that is still possible.
    pub(super) fn call_off(&mut self, key: (InstanceId, u16), why: String) {
        if let Some(rotating) = self.rotating.get_mut(&key) {
            rotating.called_off = Some(why);
        }
        self.rotation_input(key, LspAdvanceInput::Cancel);
    }

    /// Timers of rotations; a client's patience with its LSP.
    pub(super) async fn rotation_timers(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (key, rotating) in &mut self.rotating {
            if let Some(timer) = rotating.timer.filter(|t| t.at <= now) {
                rotating.timer = None;
                due.push((*key, timer.id));
            }
        }
        for (key, id) in due {
            self.rotation_input(key, LspAdvanceInput::Timeout { id });
        }
        self.stop_waiting(now);
        self.following_timers(now);
        self.asking_timers(now);
        if self.is_lsp() {
            self.restore_resting(now);
        }
    }

    pub(super) fn rotation_input(&mut self, key: (InstanceId, u16), input: LspAdvanceInput) {
        let Some(rotating) = self.rotating.get_mut(&key) else { return };
        match rotating.machine.handle(input) {
            Ok(actions) => self.run_rotation(key, actions),
            Err(e) => tracing::error!(error = %e, "rotation"),
        }
    }

    pub(super) fn run_rotation(&mut self, key: (InstanceId, u16), actions: Vec<LspAdvanceAction>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            let inputs = match self.rotation_action(key, action) {
                Ok(inputs) => inputs,
                Err(e) => {
                    // What could not be stored is not acted upon.
                    tracing::error!(error = %e, "rotation");
                    queue.clear();
                    self.broken(key, &e)
                }
            };
            for input in inputs {
                let Some(rotating) = self.rotating.get_mut(&key) else { return };
                match rotating.machine.handle(input) {
                    Ok(more) => queue.extend(more),
                    Err(e) => tracing::error!(error = %e, "rotation"),
                }
            }
        }
        self.parts.peers.process_events();
    }

    /// Something could not be stored: the try is over. A complete one whose record is not on disk was told to nobody.
    fn broken(&mut self, key: (InstanceId, u16), error: &Error) -> Vec<LspAdvanceInput> {
        let (instance_id, attempt) = key;
        let Some(rotating) = self.rotating.get(&key) else { return Vec::new() };
        if rotating.machine.phase() != LspAdvancePhase::Recording {
            return vec![LspAdvanceInput::Cancel];
        }
        let clients: Vec<PublicKey> = rotating.channels.keys().copied().collect();
        let text: String = error.to_string().chars().take(200).collect();
        for client in clients {
            let text = text.clone();
            self.send(client, payload::AdvanceAbort { instance_id, attempt, code: 103, text });
        }
        self.rotation_failed(key, &text, true);
        Vec::new()
    }

    /// Carries out one action; returns what the machine has to hear about it.
    fn rotation_action(
        &mut self,
        key: (InstanceId, u16),
        action: LspAdvanceAction,
    ) -> Result<Vec<LspAdvanceInput>, Error> {
        let (id, attempt) = key;
        match action {
            LspAdvanceAction::Send { client, payload } => {
                if !self.send_advance(key, client, payload)? {
                    return Ok(vec![LspAdvanceInput::ClientGone { client }]);
                }
            }
            LspAdvanceAction::PrepareChannels(changes) => {
                let mut inputs = Vec::new();
                for change in &changes {
                    inputs.extend(self.prepare_move(key, change)?);
                }
                return Ok(inputs);
            }
            LspAdvanceAction::Rebuilt { client, outpoint, output } => {
                return Ok(self.rebuilt(key, client, (outpoint, output)));
            }
            LspAdvanceAction::PersistState(state) => {
                if let Some(factory) = self.factories.get_mut(&id) {
                    faults::point("lsp.burnt.store");
                    factory.mark(&self.parts.store, |marks| marks.burnt.push(state))?;
                    faults::point("lsp.burnt.stored");
                }
            }
            LspAdvanceAction::PersistRecord(record) if faults::hides(&record) => {
                return Err(Error::Conflict("changed my mind".into()));
            }
            LspAdvanceAction::PersistRecord(record) => {
                if let Some(factory) = self.factories.get_mut(&id) {
                    faults::point("lsp.advance.store");
                    factory.add_advance(&self.parts.store, *record)?;
                    faults::point("lsp.advance.stored");
                }
                // Before anybody is told.
                self.moved(&id)?;
                return Ok(vec![LspAdvanceInput::RecordPersisted { attempt }]);
            }
            LspAdvanceAction::SetTimer { id: timer, seconds } => {
                if let Some(rotating) = self.rotating.get_mut(&key) {
                    rotating.timer = Some(Timer::new(timer, seconds));
                }
            }
            LspAdvanceAction::ClientPersisted { client } => {
                tracing::debug!(%client, attempt, "the client has stored its new state");
                let moving = self.rotating.get(&key).and_then(|r| r.channels.get(&client));
                if let Some(channel) = moving.map(|moving| moving.channel) {
                    self.finish_resize(&id, &channel, true);
                }
            }
            LspAdvanceAction::Blamed { client, reason } => {
                tracing::warn!(%client, %reason, "rotation fails for a client");
                if let Some(rotating) = self.rotating.get_mut(&key) {
                    rotating.blamed.push((client, reason.to_string()));
                }
            }
            LspAdvanceAction::Progress(LspAdvancePhase::Outer) => {
                let moving: Vec<Moving> = self
                    .rotating
                    .get(&key)
                    .map(|r| r.channels.values().copied().collect())
                    .unwrap_or_default();
                for (channel, resize) in moving.iter().filter_map(|m| Some((m.channel, m.resize?))) {
                    self.bind_resized(&channel, &resize)?;
                }
            }
            LspAdvanceAction::Progress(phase) => {
                tracing::debug!(instance = hex::encode(id), attempt, ?phase, "rotation");
                if let (LspAdvancePhase::Persisting, Some(rotating)) = (phase, self.rotating.get_mut(&key)) {
                    rotating.told = Some(Instant::now());
                }
            }
            LspAdvanceAction::Completed => self.rotated(key),
            LspAdvanceAction::Failed { reason, burnt, .. } => {
                let text = self.failure_text(key, &reason);
                let moving = self.rotating.get(&key).map(|r| r.channels.clone()).unwrap_or_default();
                // One that is bound rests, until a newer state is complete or its client says that it can.
                for (client, moving) in moving.iter().filter(|(_, moving)| moving.resize.is_some()) {
                    self.abort_resize(client, &moving.channel);
                }
                self.rotation_failed(key, &text, burnt);
            }
        }
        Ok(Vec::new())
    }

    /// Why a try failed, with the names of those at whom it failed.
    fn failure_text(&self, key: (InstanceId, u16), reason: &AdvanceFailReason) -> String {
        let rotating = self.rotating.get(&key);
        let blamed = rotating.map(|r| r.blamed.as_slice()).unwrap_or_default();
        if blamed.is_empty() {
            let why = rotating.and_then(|r| r.called_off.as_ref());
            return why.map_or_else(|| reason.to_string(), |why| format!("{reason}: {why}"));
        }
        let one = |(client, why): &(PublicKey, String)| format!("client {client}: {why}");
        blamed.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    fn rotation_failed(&mut self, key: (InstanceId, u16), reason: &str, burnt: bool) {
        let (id, attempt) = key;
        let Some(rotating) = self.rotating.remove(&key) else { return };
        tracing::warn!(instance = hex::encode(id), attempt, reason, burnt, "rotation failed");
        let leaves = self.factories.get(&id).map(Factory::leaves).unwrap_or_default();
        for leaf in leaves.iter().filter(|leaf| rotating.moves(leaf.first)) {
            self.rotation_failures.insert((id, leaf.first), reason.to_owned());
        }
        for (client, why) in rotating.blamed.iter().filter(|_| burnt) {
            let wasteful = Wasteful { at: Instant::now(), why: why.clone() };
            self.wasteful.insert((id, *client), wasteful);
        }
        let who: Vec<String> = rotating.blamed.iter().map(|(client, _)| client.to_string()).collect();
        let data = json!({"reason": reason, "who": who, "burnt": burnt});
        self.push_rotation("rotation_failed", &id, attempt, &rotating.span, data);
    }

    /// Sends a message of an advance in the form it travels in.
    fn send_advance(
        &mut self,
        key: (InstanceId, u16),
        client: PublicKey,
        payload: Payload,
    ) -> Result<bool, Error> {
        let channel = self.rotating.get(&key).and_then(|r| r.channels.get(&client)).map(|m| m.channel);
        let Some(channel) = channel else { return Ok(false) };
        match payload {
            Payload::AdvancePropose(ref propose) => {
                let adds = self.contribution(&key.0, &channel, propose)?;
                let change = self.change_of(&channel, adds)?;
                Ok(self.send_change(client, &Change::Init(change, payload)))
            }
            payload @ Payload::AdvanceSigned(_) => Ok(self.send_last(&key.0, client, channel, payload)),
            payload => Ok(self.send(client, payload)),
        }
    }
}
