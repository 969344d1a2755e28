//! A client's side of rotations: carries out what `ClientAdvance` says.

use std::collections::VecDeque;

use bitcoin::OutPoint;
use bolt_tlv::blip56::FactoryChange;
use bolt_tlv::payload::{self, Payload};
use factory_core::advance::{
    AdvancePolicy, Aftermath, ClientAdvance, ClientAdvanceAction, ClientAdvanceConfig, ClientAdvanceInput,
    ClientAdvancePhase,
};
use factory_core::refuse::RefuseCode;
use serde_json::json;
use tokio::time::Instant;

use super::capacity::{difference, Resize};
use super::rotate::{Moving, PATIENCE};
use super::rotate_limits::{MAX_TRIES, WINDOW};
use super::stored::{Factory, Stage};
use super::Service;
use crate::error::Error;
use crate::faults;
use crate::ldk::{channel_id, Change, InstanceId};

/// A factory whose state this client has advanced, or is advancing.
pub(super) struct Following {
    machine: ClientAdvance,
    moving: Moving,
    /// The try that `moving` is of.
    attempt: u16,
    /// When its phase began.
    since: Instant,
    /// What the LSP says that it adds to the channel, sat.
    offered_sat: i64,
    /// The capacity that the user has asked for, sat.
    pub(super) wanted_sat: Option<u64>,
    /// When.
    pub(super) asked_at: Instant,
}

impl Following {
    fn handle(&mut self, input: ClientAdvanceInput) -> Result<Vec<ClientAdvanceAction>, factory_core::Error> {
        let before = self.machine.phase();
        let actions = self.machine.handle(input);
        if self.machine.phase() != before {
            self.since = Instant::now();
        }
        actions
    }

    /// Whether the outer partial signatures may have left: there is no way back then.
    fn is_late(&self) -> bool {
        matches!(self.machine.phase(), ClientAdvancePhase::Outer | ClientAdvancePhase::Recording)
    }

    /// The phase in words, while a try is under way.
    pub(super) fn phase(&self) -> Option<&'static str> {
        match self.machine.phase() {
            ClientAdvancePhase::Idle if self.is_asking() => Some("asked"),
            ClientAdvancePhase::Idle => self.machine.unresolved().map(|_| "pending"),
            ClientAdvancePhase::Agreed | ClientAdvancePhase::Covering => Some("preparing"),
            _ => Some("signing"),
        }
    }
}

impl Following {
    /// Whether the user has asked for another capacity, and the LSP has not proposed anything.
    pub(super) fn is_asking(&self) -> bool {
        self.wanted_sat.is_some() && self.machine.phase() == ClientAdvancePhase::Idle
    }
}

/// Whether a try that the LSP may complete is newer than everything complete.
pub(super) fn is_unresolved(factory: &Factory) -> bool {
    let newest = factory.newest_record().map_or(0, |r| r.path.updates);
    let pending = factory.advances.marks.client.iter().flat_map(|state| &state.pending);
    pending.into_iter().any(|p| p.record.path.updates > newest)
}

impl Service {
    /// What this client wants of an advance now.
    fn advance_policy(&self, factory: &Factory, channel: &OutPoint) -> AdvancePolicy {
        let open = self.parts.manager.list_channels();
        let details = open.iter().find(|c| c.channel_id == channel_id(*channel));
        let capacity_sat = details.map_or(0, |c| c.channel_value_satoshis);
        let quiet = !self.is_closing(factory) && self.may_advance(factory, &factory.leaves()).is_ok();
        let usable = details.is_some_and(|c| c.is_channel_ready);
        // Its user has to ask for a smaller one, or one that is larger than any that it would take.
        let wanted = self.following.get(&factory.id()).and_then(|f| f.wanted_sat).unwrap_or(capacity_sat);
        let most = self.client_settings().map_or(0, |s| s.policy.max_capacity_sat);
        AdvancePolicy {
            allow: quiet && usable && self.ends_too_soon(channel, &open).is_none(),
            least_sat: capacity_sat.min(wanted),
            most_sat: most.max(capacity_sat).max(wanted),
        }
    }

    /// Makes the machine of a factory, if it is not there.
    pub(super) fn following(&mut self, id: &InstanceId) -> Result<Option<&mut Following>, Error> {
        if !self.following.contains_key(id) {
            let Some(factory) = self.factories.get(id).filter(|f| f.state.stage == Stage::Live) else {
                return Ok(None);
            };
            let Some(record) = factory.newest_record().cloned() else { return Ok(None) };
            let Some((channel, _)) = factory.channels()?.first().copied() else { return Ok(None) };
            let config = ClientAdvanceConfig {
                record,
                state: factory.advances.marks.client.clone(),
                secret_key: self.parts.keys.factory_key(&factory.state.salt)?.secret_bytes(),
                policy: self.advance_policy(factory, &channel),
            };
            let machine = ClientAdvance::new(config, &mut rand::rng())?;
            let (moving, since) = (Moving::new(channel), Instant::now());
            let (offered_sat, wanted_sat, asked_at) = (0, None, since);
            let following =
                Following { machine, moving, attempt: 0, since, offered_sat, wanted_sat, asked_at };
            self.following.insert(*id, following);
        }
        Ok(self.following.get_mut(id))
    }

    /// The LSP proposes a change of our channel.
    pub(super) fn change_proposed(
        &mut self,
        id: InstanceId,
        channel: &OutPoint,
        change: &FactoryChange,
        payload: Payload,
    ) {
        let Some(attempt) = payload.attempt().filter(|_| payload.instance_id() == Some(id)) else { return };
        let checked = self.check_change(channel, change).map_err(|e| format!("factory_change_init: {e}"));
        if let Err(text) = checked.and_then(|()| self.watchers_there().map_err(|e| e.to_string())) {
            return self.refuse_try(id, attempt, RefuseCode::Internal, &text);
        }
        let known = self.factories.get(&id).is_some_and(|f| f.state.stage == Stage::Live);
        if known && !self.tries.entry(id).or_default().begin(Instant::now()) {
            let text = format!("more than {MAX_TRIES} tries in {} s came to nothing", WINDOW.as_secs());
            return self.refuse_try(id, attempt, RefuseCode::AdvanceMany, &text);
        }
        match self.following(&id) {
            Ok(Some(following)) => following.offered_sat = change.funding_contribution_sat,
            Ok(None) => return,
            Err(e) => return tracing::error!(error = %e, "rotation"),
        }
        self.follow(&id, ClientAdvanceInput::Message(payload));
    }

    /// Refuses a try of which the machine has not heard.
    fn refuse_try(&self, instance_id: InstanceId, attempt: u16, code: RefuseCode, text: &str) {
        let Some(lsp) = self.client_settings().map(|s| s.lsp_node_id) else { return };
        let (code, text) = (code.number(), text.chars().take(200).collect());
        self.send(lsp, payload::AdvanceRefuse { instance_id, attempt, code, text });
    }

    pub(super) fn client_advance_message(&mut self, id: InstanceId, payload: Payload) {
        self.follow(&id, ClientAdvanceInput::Message(payload));
    }

    /// The LSP says where the channel is going to be.
    pub(super) fn client_heard_place(&mut self, id: InstanceId, place: OutPoint) {
        let Some(following) = self.following.get_mut(&id) else { return };
        following.moving.theirs = Some(place);
        if following.moving.disagrees() {
            let text = format!("factory_change_funding: {place} is not the channel's new output");
            return self.follow(&id, ClientAdvanceInput::Cancel { text });
        }
        self.client_covered();
    }

    /// Tells machines of channels that have become covered.
    pub(super) fn client_covered(&mut self) {
        self.client_prepared();
        let covering =
            self.following.iter().filter(|(_, f)| f.machine.phase() == ClientAdvancePhase::Covering);
        let covered = covering.filter(|(_, f)| self.is_covered(&f.moving));
        let list: Vec<_> = covered.map(|(id, f)| (*id, f.attempt)).collect();
        for (id, attempt) in list {
            self.follow(&id, ClientAdvanceInput::Covered { attempt });
        }
    }

    /// Tells the machine that a channel has been prepared for its change of capacity.
    fn client_prepared(&mut self) {
        let mut ready = Vec::new();
        for (id, following) in &self.following {
            let waits = following.moving.resize.is_some_and(|resize| !resize.prepared);
            if waits && following.machine.phase() == ClientAdvancePhase::Agreed {
                let script = self.resized_script(&following.moving.channel);
                ready.extend(script.map(|script| (*id, following.attempt, script)));
            }
        }
        for (id, attempt, script) in ready {
            if let Some(resize) = self.following.get_mut(&id).and_then(|f| f.moving.resize.as_mut()) {
                resize.prepared = true;
            }
            self.follow(&id, ClientAdvanceInput::ChannelPrepared { attempt, script });
        }
    }

    /// The channel cannot change as it should.
    pub(super) fn resizing_failed(&mut self, id: &InstanceId, reason: &str) {
        if self.following.get(id).is_some_and(|f| f.moving.resize.is_some()) {
            self.cancel_following(id, reason);
        }
    }

    /// After a start: how did the tries end that we gave our signatures for?
    pub(super) fn ask_for_pending(&mut self) {
        let asking = |f: &Factory| f.state.stage == Stage::Live && is_unresolved(f);
        let ids: Vec<InstanceId> = self.factories.values().filter(|f| asking(f)).map(Factory::id).collect();
        for id in ids {
            if let Err(e) = self.following(&id) {
                tracing::error!(error = %e, "rotation");
            }
        }
    }

    /// Tells every machine the same.
    pub(super) fn follow_all(&mut self, input: &ClientAdvanceInput) {
        let ids: Vec<InstanceId> = self.following.keys().copied().collect();
        for id in ids {
            self.follow(&id, input.clone());
        }
    }

    /// Gives a try up, if that is still possible.
    pub(super) fn cancel_following(&mut self, id: &InstanceId, why: &str) {
        if self.following.contains_key(id) {
            self.follow(id, ClientAdvanceInput::Cancel { text: why.to_owned() });
        }
    }

    pub(super) fn following_timers(&mut self, now: Instant) {
        let waits = |f: &Following| {
            !matches!(f.machine.phase(), ClientAdvancePhase::Idle) && f.since + PATIENCE <= now
        };
        let late: Vec<InstanceId> =
            self.following.iter().filter(|(_, f)| waits(f)).map(|(id, _)| *id).collect();
        for id in late {
            self.cancel_following(&id, "the LSP takes too long");
        }
    }

    /// What the client wants as things are now, if there is a machine to be told.
    fn policy_now(&self, id: &InstanceId) -> Option<ClientAdvanceInput> {
        let (factory, following) = (self.factories.get(id)?, self.following.get(id)?);
        Some(ClientAdvanceInput::Policy(self.advance_policy(factory, &following.moving.channel)))
    }

    /// A block has come: a try that is not wanted any more ends, as far as it can.
    pub(super) fn look_at_following(&mut self) {
        let under_way =
            |f: &&Following| !matches!(f.machine.phase(), ClientAdvancePhase::Idle) && !f.is_late();
        let ids: Vec<InstanceId> =
            self.following.iter().filter(|(_, f)| under_way(f)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(ClientAdvanceInput::Policy(policy)) = self.policy_now(&id) else { continue };
            if !policy.allow {
                self.cancel_following(&id, "the channel cannot move any more");
            }
        }
    }

    fn follow(&mut self, id: &InstanceId, input: ClientAdvanceInput) {
        let mut inputs = VecDeque::new();
        // What may not be signed now was perhaps fine when the try began.
        if matches!(input, ClientAdvanceInput::Message(_) | ClientAdvanceInput::Covered { .. }) {
            inputs.extend(self.policy_now(id));
        }
        inputs.push_back(input);
        while let Some(input) = inputs.pop_front() {
            let actions = match self.following(id) {
                Ok(Some(following)) => following.handle(input),
                Ok(None) => return,
                Err(e) => return tracing::error!(error = %e, "rotation"),
            };
            let actions = match actions {
                Ok(actions) => actions,
                Err(e) => return tracing::error!(error = %e, "rotation"),
            };
            for action in actions {
                match self.follow_action(id, action) {
                    Ok(next) => inputs.extend(next),
                    Err(e) => {
                        tracing::error!(error = %e, "rotation");
                        self.broken_off(id, &e);
                        return;
                    }
                }
            }
        }
        self.parts.peers.process_events();
    }

    /// Not stored or not moved, so nothing that depends on it is sent; another machine begins from what is on disk. The
    /// LSP is told, as far as the try has not gone too far for that.
    fn broken_off(&mut self, id: &InstanceId, error: &Error) {
        let Some(following) = self.following.get_mut(id) else { return };
        let cancel = ClientAdvanceInput::Cancel { text: error.to_string() };
        let actions = following.handle(cancel).unwrap_or_default();
        let lsp = self.client_settings().map(|s| s.lsp_node_id);
        for action in actions {
            match (action, lsp) {
                (ClientAdvanceAction::Send(payload), Some(lsp)) => {
                    self.send(lsp, payload);
                }
                (ClientAdvanceAction::Refused { attempt, code, text, left }, _) => {
                    self.following_failed(id, attempt, &format!("{code:?}: {text}"), left);
                }
                _ => {}
            }
        }
        self.following.remove(id);
        self.parts.peers.process_events();
    }

    /// Carries out one action; returns what the machine has to hear about it.
    fn follow_action(
        &mut self,
        id: &InstanceId,
        action: ClientAdvanceAction,
    ) -> Result<Option<ClientAdvanceInput>, Error> {
        let Some(lsp) = self.client_settings().map(|s| s.lsp_node_id) else { return Ok(None) };
        let Some(channel) = self.following.get(id).map(|f| f.moving.channel) else { return Ok(None) };
        match action {
            ClientAdvanceAction::Send(payload @ Payload::AdvanceAgree(_)) => {
                let change = self.change_of(&channel, 0)?;
                self.send_change(lsp, &Change::Ack(change, payload));
            }
            ClientAdvanceAction::Send(payload @ Payload::AdvancePersisted(_)) => {
                self.send_last(id, lsp, channel, payload);
            }
            ClientAdvanceAction::Send(payload) => {
                self.send(lsp, payload);
            }
            ClientAdvanceAction::PrepareChannel { attempt, from_sat, to_sat, .. } => {
                let adds = difference(from_sat, to_sat)?;
                let Some(following) = self.following.get_mut(id) else { return Ok(None) };
                following.moving = Moving::new(channel);
                following.attempt = attempt;
                if following.offered_sat != adds {
                    let text = format!("funding_contribution_sat: must be {adds}");
                    return Ok(Some(ClientAdvanceInput::Cancel { text }));
                }
                if adds != 0 {
                    let resize = Resize::new(0, adds);
                    following.moving.resize = Some(resize);
                    let begun = self.begin_resize(id, &lsp, &channel, &resize);
                    return Ok(begun.err().map(|e| ClientAdvanceInput::Cancel { text: e.to_string() }));
                }
                let script = Self::script_of(self.found(id)?, &channel)?;
                return Ok(Some(ClientAdvanceInput::ChannelPrepared { attempt, script }));
            }
            ClientAdvanceAction::Rebuilt { outpoint, output, .. } => {
                if let Some(following) = self.following.get_mut(id) {
                    following.moving.place = Some(outpoint);
                    if following.moving.disagrees() {
                        let text = "factory_change_funding: not the channel's new output".to_owned();
                        return Ok(Some(ClientAdvanceInput::Cancel { text }));
                    }
                }
                let Some(moving) = self.following.get(id).map(|f| f.moving) else { return Ok(None) };
                let v = self.move_channel(id, lsp, &moving, (outpoint, output))?;
                if let Some(resize) = self.following.get_mut(id).and_then(|f| f.moving.resize.as_mut()) {
                    resize.v = v;
                }
                self.send_change(lsp, &Change::Funding(Self::outpoint_message(&channel, outpoint)));
            }
            ClientAdvanceAction::PersistMark { attempt, state } => {
                if let Some(factory) = self.factories.get_mut(id) {
                    faults::point("client.mark.store");
                    factory.mark(&self.parts.store, |marks| marks.client = Some(*state))?;
                    faults::point("client.mark.stored");
                }
                return Ok(Some(ClientAdvanceInput::MarkPersisted { attempt }));
            }
            ClientAdvanceAction::PersistInner { state, pending } => {
                let attempt = pending.attempt;
                if let Some(resize) = self.following.get(id).and_then(|f| f.moving.resize) {
                    self.bind_resized(&channel, &resize)?;
                }
                if let Some(factory) = self.factories.get_mut(id) {
                    faults::point("client.pending.store");
                    factory.mark(&self.parts.store, |marks| marks.client = Some(*state))?;
                    faults::point("client.pending.stored");
                    // The LSP may complete it from now on.
                    self.parts.index.watch(factory.watched_txids(), factory.watched_outpoints()?);
                }
                return Ok(Some(ClientAdvanceInput::InnerPersisted { attempt }));
            }
            ClientAdvanceAction::PersistRecord { attempt, record } => {
                if let Some(factory) = self.factories.get_mut(id) {
                    faults::point("client.advance.store");
                    factory.add_record(&self.parts.store, attempt, *record)?;
                    faults::point("client.advance.stored");
                }
                self.moved(id)?;
                return Ok(Some(ClientAdvanceInput::RecordPersisted { attempt }));
            }
            ClientAdvanceAction::PersistState(state) => {
                if let Some(factory) = self.factories.get_mut(id) {
                    factory.mark(&self.parts.store, |marks| marks.client = Some(*state))?;
                }
            }
            ClientAdvanceAction::Completed { record } => {
                if let Some(following) = self.following.get_mut(id) {
                    following.wanted_sat = None;
                }
                let data = json!({"instance_id": hex::encode(id), "position": record.path.updates});
                self.parts.events.push("factory_rotated", data);
                self.tries.entry(*id).or_default().completed();
            }
            ClientAdvanceAction::Refused { attempt, code, text, left } => {
                self.following_failed(id, attempt, &format!("{code:?}: {text}"), left);
            }
            ClientAdvanceAction::Aborted { attempt, text, left, .. } => {
                self.following_failed(id, attempt, &text, left);
            }
        }
        Ok(None)
    }

    fn following_failed(&mut self, id: &InstanceId, attempt: u16, reason: &str, left: Aftermath) {
        let lsp = self.client_settings().map(|s| s.lsp_node_id);
        if let Some(following) = self.following.get_mut(id) {
            let moving = following.moving;
            following.moving.resize = None;
            following.wanted_sat = None;
            // One that is bound rests.
            if let (Some(lsp), Some(_)) = (lsp, moving.resize) {
                self.abort_resize(&lsp, &moving.channel);
            }
        }
        if !self.tries.entry(*id).or_default().is_news(attempt, reason) {
            return;
        }
        let pending = left != Aftermath::Clear;
        self.note_failure(id, reason);
        let data = json!({
            "instance_id": hex::encode(id), "attempt": attempt, "reason": reason, "pending": pending,
        });
        self.parts.events.push("rotation_failed", data);
    }
}
