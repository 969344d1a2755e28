//! The LSP's side of a cooperative close: carries out what `LspClose` says.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::OutPoint;
use bolt_tlv::payload::{self, Payload};
use factory_core::close::{
    LspClose, LspCloseAction, LspCloseConfig, LspCloseInput, LspClosePhase, LspCloseState,
};
use factory_core::faults::switch;
use lightning::ln::channel_state::{ChannelDetails, ChannelShutdownState};
use lightning::ln::types::ChannelId;
use serde_json::json;
use tokio::time::Instant;

use super::close::{Closing, LspClosing};
use super::stored::{Factory, Signed, Stage, StoredClose, StoredTx};
use super::{Service, Timer};
use crate::api::ClosePayout;
use crate::error::Error;
use crate::faults;
use crate::ldk::{channel_id, InstanceId};

/// Most clients of a factory that can be closed cooperatively: keys (33 bytes each) and outputs (43) of
/// all of them travel in one Lightning message of 65,535 bytes.
const MAX_CLIENTS: usize = 850;
/// A stalled close is tried again after so long, when everybody is there, and each time after twice
/// as long, up to the limit.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(3600);

fn payouts(list: Vec<(PublicKey, u64)>) -> Vec<ClosePayout> {
    list.into_iter().map(|(id, sat)| ClosePayout { node_id: id.to_string(), sat }).collect()
}

/// Whether this process plays an LSP that keeps what was signed to itself.
fn withheld() -> bool {
    switch("lsp.close.withheld")
}

impl Service {
    fn lsp_close_config(&self, factory: &Factory, attempt: u16) -> Result<LspCloseConfig, Error> {
        let Signed::Lsp(record) = &factory.signed else {
            return Err(Error::Conflict("only an LSP closes".into()));
        };
        let seconds = u32::try_from(self.lsp_settings()?.phase_timeout.as_secs()).unwrap_or(u32::MAX);
        Ok(LspCloseConfig {
            record: record.as_ref().clone(),
            advances: factory.advances.lsp.clone(),
            secret_key: self.parts.keys.factory_key(&factory.state.salt)?.secret_bytes(),
            lsp_script: self.parts.wallet.new_script()?,
            feerate_sat_per_kwu: self.parts.fees.normal().to_sat_per_kwu(),
            attempt,
            consent_secs: seconds,
            signing_secs: seconds,
        })
    }

    /// Starts a close: everybody has to be there, and no payment may be on its way.
    pub(super) async fn begin_close(
        &mut self,
        id: InstanceId,
        asked_by: Option<PublicKey>,
    ) -> Result<(), Error> {
        let factory = self.found(&id)?;
        let Signed::Lsp(record) = &factory.signed else {
            return Err(Error::Conflict("only an LSP closes".into()));
        };
        if let Some(spend) = self.parts.index.spend(&factory.funding().outpoint) {
            return Err(Error::Conflict(format!("the funding output was spent by {}", spend.txid)));
        }
        if record.client_ids.len() > MAX_CLIENTS {
            let text = format!("{} clients; the closing transaction of more than {MAX_CLIENTS} does not fit into one message", record.client_ids.len());
            return Err(Error::Conflict(text));
        }
        let ready = self.parts.factory_messages.ready_peers();
        if let Some(missing) = record.client_ids.iter().find(|c| !ready.contains(c)) {
            return Err(Error::Unavailable(format!("client {missing} is not connected")));
        }
        let open = self.parts.manager.list_channels();
        for (outpoint, client) in factory.channels()? {
            if self.is_changing(&outpoint) {
                let text = format!("the capacity of channel {} is being changed", channel_id(outpoint));
                return Err(Error::Unavailable(text));
            }
            let at_rest = open.iter().find(|c| c.channel_id == channel_id(outpoint)).is_some_and(|c| {
                c.channel_shutdown_state.is_none_or(|s| s == ChannelShutdownState::NotShuttingDown)
            });
            let Some(client) = client else { continue };
            if !at_rest && !factory.state.finals.contains_key(&client) {
                let text = format!("the channel with {client} is closed already; this factory ends by exits");
                return Err(Error::Conflict(text));
            }
        }
        let channels = factory.channel_ids()?;
        for c in self.parts.manager.list_channels().iter().filter(|c| channels.contains(&c.channel_id)) {
            if !c.pending_inbound_htlcs.is_empty() || !c.pending_outbound_htlcs.is_empty() {
                let peer = c.counterparty.node_id;
                return Err(Error::Unavailable(format!(
                    "a payment is pending on the channel with {peer}; try again"
                )));
            }
        }
        let attempt = factory.state.close_attempts.saturating_add(1);
        let config = self.lsp_close_config(factory, attempt)?;
        let (machine, actions) = LspClose::new(config, &mut rand::rng())?;
        if let Some(f) = self.factories.get_mut(&id) {
            f.update(&self.parts.store, |state| {
                state.close_attempts = attempt;
                state.close = Some(StoredClose { asked_by, ..StoredClose::default() });
            })?;
            faults::point("lsp.close.begun");
        }
        self.parts.events.push("factory_closing", json!({"instance_id": hex::encode(id)}));
        self.insert_closing(id, machine, asked_by);
        self.run_lsp_close(id, actions).await;
        Ok(())
    }

    fn insert_closing(&mut self, id: InstanceId, machine: LspClose, asked_by: Option<PublicKey>) {
        let (retry_at, pause) = (Instant::now() + FIRST_RETRY, FIRST_RETRY);
        let (timer, to_shut) = (None, Vec::new());
        let (broken, stored, told) = (false, None, false);
        let closing = LspClosing { machine, timer, to_shut, retry_at, pause, asked_by, broken, stored, told };
        self.closing.insert(id, Closing::Lsp(Box::new(closing)));
    }

    /// Goes on with a close after a restart.
    pub(super) async fn resume_lsp_close(&mut self, id: &InstanceId) -> Result<(), Error> {
        let factory = self.found(id)?;
        let Some(stored) = factory.state.close.as_ref().filter(|c| c.signed.is_none()) else { return Ok(()) };
        let (Some(machine), asked_by) = (stored.machine.clone(), stored.asked_by) else { return Ok(()) };
        let key = format!("factory_states/{}", hex::encode(id));
        let state: LspCloseState =
            serde_json::from_value(machine).map_err(|e| Error::Corrupt { key, reason: e.to_string() })?;
        let config = self.lsp_close_config(factory, state.attempt)?;
        let (machine, actions) = LspClose::resume(config, &state, &mut rand::rng())?;
        self.insert_closing(*id, machine, asked_by);
        if let Some(Closing::Lsp(closing)) = self.closing.get_mut(id) {
            closing.stored = Some(state.attempt);
            // Nobody is connected yet: what is asked for now is asked again when everybody is.
            (closing.broken, closing.retry_at) = (true, Instant::now());
        }
        self.run_lsp_close(*id, actions).await;
        Ok(())
    }

    pub(super) async fn lsp_close_message(&mut self, id: InstanceId, client: PublicKey, payload: Payload) {
        if let Payload::CloseAsk(_) = &payload {
            return self.close_asked(id, client).await;
        }
        self.lsp_close_input(id, LspCloseInput::Message { client, payload }).await;
    }

    /// A client asks for a close. Everybody has to consent anyway, so it is tried, unless this client has cost the
    /// others too much lately.
    async fn close_asked(&mut self, id: InstanceId, client: PublicKey) {
        let result = match self.may_ask_for_close(&client, &id).and_then(|()| self.closable(&id)) {
            Ok(()) => self.begin_close(id, Some(client)).await,
            Err(e) => Err(e),
        };
        if let Err(e) = result {
            tracing::info!(%client, error = %e, "close asked for, not possible");
            let text = e.to_string().chars().take(200).collect();
            self.send(client, payload::CloseAbort { instance_id: id, attempt: 0, code: 103, text });
        }
    }

    pub(super) async fn lsp_channel_shut(
        &mut self,
        id: &InstanceId,
        outpoint: OutPoint,
        client: PublicKey,
        client_msat: u64,
        lsp_msat: u64,
    ) -> Result<(), Error> {
        // LDK says it once, so it is kept, also for a close that begins later.
        if let Some(factory) = self.factories.get_mut(id) {
            faults::point("lsp.balance.store");
            factory.keep_final(&self.parts.store, outpoint, client, (client_msat, lsp_msat))?;
            faults::point("lsp.balance.stored");
        }
        if let Some(Closing::Lsp(c)) = self.closing.get_mut(id) {
            c.to_shut.retain(|(peer, _)| *peer != client);
            // The others have to wait for who asked for the close.
            c.told &= c.asked_by != Some(client);
        }
        self.lsp_close_input(*id, LspCloseInput::ChannelShut { client, client_msat, lsp_msat }).await;
        Ok(())
    }

    async fn lsp_close_input(&mut self, id: InstanceId, input: LspCloseInput) {
        let Some(Closing::Lsp(closing)) = self.closing.get_mut(&id) else { return };
        match closing.machine.handle(input) {
            Ok(actions) => self.run_lsp_close(id, actions).await,
            Err(e) => tracing::error!(error = %e, "close"),
        }
    }

    async fn run_lsp_close(&mut self, id: InstanceId, actions: Vec<LspCloseAction>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            match self.lsp_close_action(&id, action) {
                Ok(None) => {}
                Ok(Some(input)) => {
                    let Some(Closing::Lsp(closing)) = self.closing.get_mut(&id) else { return };
                    match closing.machine.handle(input) {
                        Ok(more) => queue.extend(more),
                        Err(e) => tracing::error!(error = %e, "close"),
                    }
                }
                Err(e) => {
                    // What could not be stored is not acted upon; the round is made anew later.
                    tracing::error!(error = %e, "close");
                    if let Some(Closing::Lsp(closing)) = self.closing.get_mut(&id) {
                        closing.broken = true;
                    }
                    return;
                }
            }
        }
        // Each of N channels that is shut comes by here, and a look at all of them costs time for each of the N.
        if matches!(self.closing.get(&id), Some(Closing::Lsp(c)) if !c.told) {
            self.shut_channels(&id);
        }
        self.parts.peers.process_events();
    }

    /// Whether all of a machine's state is on disk: while channels are shut down only their balances change, and those
    /// were kept one by one before the machine heard of them ([`super::finals`]).
    fn is_stored(&self, id: &InstanceId, state: &LspCloseState) -> bool {
        let Some(Closing::Lsp(c)) = self.closing.get(id) else { return false };
        let shutting = c.machine.phase() == LspClosePhase::Shutting && !switch("lsp.close.stores_all");
        shutting && c.stored == Some(state.attempt)
    }

    fn close_state(&mut self, id: &InstanceId, change: impl FnOnce(&mut StoredClose)) -> Result<(), Error> {
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        factory.update(&self.parts.store, |state| change(state.close.get_or_insert_default()))
    }

    fn lsp_close_action(
        &mut self,
        id: &InstanceId,
        action: LspCloseAction,
    ) -> Result<Option<LspCloseInput>, Error> {
        match action {
            LspCloseAction::Send { payload: Payload::CloseDone(_), .. } if withheld() => {}
            LspCloseAction::Send { client, payload } => {
                let sent = self.send(client, payload);
                if let Some(Closing::Lsp(c)) = self.closing.get_mut(id) {
                    // A client that cannot be reached is asked again as soon as everybody is there.
                    let signing =
                        matches!(c.machine.phase(), LspClosePhase::Nonces | LspClosePhase::Partials);
                    c.broken |= signing && !sent;
                }
            }
            LspCloseAction::PersistState(state) if self.is_stored(id, &state) => {}
            LspCloseAction::PersistState(state) => {
                let value = serde_json::to_value(&*state).map_err(|e| Error::Store(e.to_string()))?;
                faults::point("lsp.close.store");
                if let Some(f) = self.factories.get_mut(id) {
                    f.update(&self.parts.store, |stored| {
                        stored.close_attempts = stored.close_attempts.max(state.attempt);
                        stored.close.get_or_insert_default().machine = Some(value);
                    })?;
                }
                if let Some(Closing::Lsp(c)) = self.closing.get_mut(id) {
                    c.stored = Some(state.attempt);
                }
                faults::point("lsp.close.stored");
            }
            LspCloseAction::ShutdownChannel { client, outpoint } => {
                let last = self.factories.get(id).and_then(|f| f.state.finals.get(&client)).copied();
                if let Some((client_msat, lsp_msat)) = last {
                    return Ok(Some(LspCloseInput::ChannelShut { client, client_msat, lsp_msat }));
                }
                match self.closing.get_mut(id) {
                    Some(Closing::Lsp(c)) if !c.to_shut.contains(&(client, outpoint)) => {
                        c.to_shut.push((client, outpoint));
                        c.told = false;
                    }
                    _ => {}
                }
            }
            LspCloseAction::PersistClose { tx, paid, to_fees, lsp_sat, fee_sat } => {
                let mut paid = payouts(paid);
                paid.push(ClosePayout { node_id: self.parts.node_id.to_string(), sat: lsp_sat });
                self.parts.index.watch([tx.compute_txid()], []);
                faults::point("lsp.close_tx.store");
                self.close_state(id, |c| {
                    c.signed = Some(StoredTx(*tx));
                    c.paid = paid;
                    c.to_fees = payouts(to_fees);
                    c.fee_sat = fee_sat;
                    c.reason = None;
                })?;
                faults::point("lsp.close_tx.stored");
                self.settle_channels(id);
                return Ok(Some(LspCloseInput::RecordPersisted));
            }
            LspCloseAction::Broadcast(_) if withheld() => {}
            LspCloseAction::Broadcast(tx) => self.parts.broadcaster.send(vec![*tx], "factory close"),
            LspCloseAction::SetTimer { id: timer, seconds } => {
                if let Some(Closing::Lsp(c)) = self.closing.get_mut(id) {
                    c.timer = Some(Timer::new(timer, seconds));
                }
            }
            LspCloseAction::Blamed { client, reason } => {
                tracing::warn!(%client, %reason, "close waits for a client");
                let data = json!({"instance_id": hex::encode(id), "node_id": client.to_string(), "reason": reason.to_string()});
                self.parts.events.push("close_stalled", data);
                self.note_stalled(client, &reason);
                self.close_state(id, |c| c.reason = Some(format!("client {client}: {reason}")))?;
            }
            LspCloseAction::Problem { error } => {
                tracing::error!(%error, "close");
                self.close_state(id, |c| c.reason = Some(error.to_string()))?;
            }
            LspCloseAction::Progress(phase) => tracing::info!(instance = hex::encode(id), ?phase, "close"),
            LspCloseAction::Done => {
                self.parts.events.push("close_signed", json!({"instance_id": hex::encode(id)}));
            }
            LspCloseAction::Failed { reason } => {
                let asked_by = match self.closing.get(id) {
                    Some(Closing::Lsp(closing)) => closing.asked_by,
                    _ => None,
                };
                self.note_close_failed(asked_by, &reason);
                let reason = reason.to_string();
                let data = json!({"instance_id": hex::encode(id), "reason": reason});
                self.parts.events.push("close_failed", data);
                self.closing.remove(id);
                self.close_state(id, |c| {
                    c.machine = None;
                    c.reason = Some(reason);
                })?;
            }
        }
        Ok(None)
    }

    /// Asks LDK to shut channels down. LDK refuses while the peer is away or a monitor is being
    /// written, so this is repeated until the channel is gone.
    fn shut_channels(&mut self, id: &InstanceId) {
        let Some(Closing::Lsp(closing)) = self.closing.get_mut(id) else { return };
        if closing.to_shut.is_empty() {
            return;
        }
        let open = self.parts.manager.list_channels();
        let open: HashMap<ChannelId, &ChannelDetails> = open.iter().map(|c| (c.channel_id, c)).collect();
        // Who wanted the close goes first: if it does not, the others' channels live on.
        let asker = closing.asked_by.filter(|asker| closing.to_shut.iter().any(|(c, _)| c == asker));
        let mut told = true;
        closing.to_shut.retain(|(client, outpoint)| {
            if asker.is_some_and(|asker| asker != *client) {
                return true;
            }
            let channel = channel_id(*outpoint);
            let Some(details) = open.get(&channel) else {
                // Closed before: LDK's event has come or will come.
                return false;
            };
            let shutting =
                details.channel_shutdown_state.is_some_and(|s| s != ChannelShutdownState::NotShuttingDown);
            if shutting {
                return true;
            }
            if let Err(e) = self.parts.manager.close_channel(&channel, client) {
                tracing::debug!(%channel, error = ?e, "not shut down yet");
                told = false;
            }
            faults::point("lsp.channel.shut");
            true
        });
        closing.told = told;
    }

    /// Clients whose channels are still open through no fault of theirs: it is not their turn yet, our own disk is full,
    /// LDK has closed the channel already, or they have answered and a payment is pending. That LDK could not even ask,
    /// in all that time, is theirs: it is asked each second, and waits for nothing but the peer.
    fn excused_from_shutdown(&self, id: &InstanceId) -> Vec<PublicKey> {
        let Some(Closing::Lsp(closing)) = self.closing.get(id) else { return Vec::new() };
        let asker = closing.asked_by.filter(|asker| closing.to_shut.iter().any(|(c, _)| c == asker));
        let full = self.parts.store.full_since().is_some();
        let ready = self.parts.factory_messages.ready_peers();
        let open = self.parts.manager.list_channels();
        let open: HashMap<ChannelId, &ChannelDetails> = open.iter().map(|c| (c.channel_id, c)).collect();
        let held_up = |client: &PublicKey, outpoint: &OutPoint| {
            let Some(c) = open.get(&channel_id(*outpoint)) else { return true };
            let pending = !c.pending_inbound_htlcs.is_empty() || !c.pending_outbound_htlcs.is_empty();
            let state = c.channel_shutdown_state;
            // Its own `shutdown` waits for no payment.
            pending && state == Some(ChannelShutdownState::ResolvingHTLCs) && ready.contains(client)
        };
        let excused = closing.machine.missing().into_iter().filter(|client| {
            let not_yet = asker.is_some_and(|asker| asker != *client);
            let channel = closing.to_shut.iter().find(|(c, _)| c == client);
            full || not_yet || channel.is_none_or(|(_, outpoint)| held_up(client, outpoint))
        });
        excused.collect()
    }

    /// A client that a close waits for has lost its connection. Nobody else is kept waiting for the time limit:
    /// what was only asked is given up, and a signature is asked for again when everybody is back.
    pub(super) async fn close_client_gone(&mut self, client: PublicKey) {
        let now = Instant::now();
        let mut signing = Vec::new();
        for (id, closing) in &mut self.closing {
            let Closing::Lsp(c) = closing else { continue };
            match c.machine.phase() {
                LspClosePhase::Asking if c.machine.missing().contains(&client) => {
                    c.timer.iter_mut().for_each(|timer| timer.at = now);
                }
                LspClosePhase::Nonces | LspClosePhase::Partials => signing.push(*id),
                _ => {}
            }
        }
        for id in signing {
            self.lsp_close_input(id, LspCloseInput::ClientGone { client }).await;
        }
    }

    pub(super) async fn lsp_close_timers(&mut self, now: Instant) {
        let ready = self.parts.factory_messages.ready_peers();
        let full = self.parts.store.full_since().is_some();
        let mut inputs = Vec::new();
        let mut to_shut = Vec::new();
        for (id, closing) in &mut self.closing {
            let Closing::Lsp(c) = closing else { continue };
            let phase = c.machine.phase();
            if let Some(timer) = c.timer.filter(|t| t.at <= now) {
                c.timer = None;
                inputs.push((*id, LspCloseInput::Timeout { id: timer.id }));
            }
            if !c.to_shut.is_empty() {
                to_shut.push(*id);
            }
            if c.broken && full {
                // Nothing can be stored, so nothing can go on; then it does so soon.
                (c.pause, c.retry_at) = (FIRST_RETRY, now + FIRST_RETRY);
            }
            let stalled = (c.broken || phase == LspClosePhase::Stalled) && c.retry_at <= now;
            // What is signed needs nobody else any more.
            let all_there = || {
                phase == LspClosePhase::Recording
                    || self.factories.get(id).is_some_and(|f| match &f.signed {
                        Signed::Lsp(r) => r.client_ids.iter().all(|client| ready.contains(client)),
                        Signed::Client(_) => false,
                    })
            };
            if stalled && all_there() {
                c.pause = (c.pause * 2).min(LONGEST_RETRY);
                c.retry_at = now + c.pause;
                c.broken = false;
                inputs.push((*id, LspCloseInput::Retry));
            }
        }
        for id in to_shut {
            self.shut_channels(&id);
        }
        for (id, input) in inputs {
            if matches!(input, LspCloseInput::Timeout { .. }) {
                let clients = self.excused_from_shutdown(&id);
                self.lsp_close_input(id, LspCloseInput::Excused { clients }).await;
            }
            self.lsp_close_input(id, input).await;
        }
    }

    /// Publishes the signed close again until it is confirmed.
    pub(super) fn rebroadcast_close(&self, id: &InstanceId) {
        let Some(factory) = self.factories.get(id).filter(|f| f.state.stage == Stage::Live) else { return };
        let Some(tx) = factory.state.close.as_ref().and_then(|c| c.signed.as_ref()) else { return };
        if self.parts.index.spend(&factory.funding().outpoint).is_none() && !withheld() {
            self.parts.broadcaster.send(vec![tx.0.clone()], "factory close");
        }
    }
}
