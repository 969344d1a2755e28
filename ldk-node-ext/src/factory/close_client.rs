//! A client's side of a cooperative close: carries out what `ClientClose` says.

use std::collections::VecDeque;

use bolt_tlv::payload::Payload;
use factory_core::close::{
    ClientClose, ClientCloseAction, ClientCloseConfig, ClientCloseInput, ClientClosePhase, ClientCloseState,
};
use factory_core::record::RECORD_VERSION;
use serde_json::json;

use super::close::Closing;
use super::stored::{ExitReason, Signed, Stage, StoredClose, StoredTx};
use super::Service;
use crate::api::ClosePayout;
use crate::error::Error;
use crate::faults;
use crate::ldk::InstanceId;

impl Service {
    /// The machine of a factory's close: the running one, or one made from what is stored.
    fn client_closing(&mut self, id: &InstanceId) -> Result<Option<&mut ClientClose>, Error> {
        if !self.closing.contains_key(id) {
            let Some(settings) = self.client_settings() else { return Ok(None) };
            let allow = settings.policy.accept_close;
            let Some(factory) = self.factories.get(id) else { return Ok(None) };
            let Signed::Client(record) = &factory.signed else { return Ok(None) };
            if factory.state.stage != Stage::Live || factory.is_exiting() {
                return Ok(None);
            }
            let stored = factory.state.close.as_ref();
            let payout_script = match stored.and_then(|c| c.payout_script.clone()) {
                Some(script) => script,
                None => self.parts.wallet.new_script()?,
            };
            let config = ClientCloseConfig {
                record: record.as_ref().clone(),
                secret_key: self.parts.keys.factory_key(&factory.state.salt)?.secret_bytes(),
                payout_script,
                allow,
            };
            let machine = match stored.and_then(|c| c.machine.clone()) {
                Some(value) => {
                    let key = format!("factory_states/{}", hex::encode(id));
                    let state: ClientCloseState = serde_json::from_value(value)
                        .map_err(|e| Error::Corrupt { key, reason: e.to_string() })?;
                    ClientClose::resume(config, &state, &mut rand::rng())?
                }
                None => ClientClose::new(config, &mut rand::rng())?,
            };
            self.closing.insert(*id, Closing::Client(Box::new(machine)));
        }
        match self.closing.get_mut(id) {
            Some(Closing::Client(machine)) => Ok(Some(machine)),
            _ => Ok(None),
        }
    }

    pub(super) async fn client_close_message(&mut self, id: InstanceId, payload: Payload) {
        if matches!(payload, Payload::ClosePropose(_)) {
            let channels = self.factories.get(&id).and_then(|f| f.channel_ids().ok()).unwrap_or_default();
            let pending = self.parts.manager.list_channels().iter().any(|c| {
                channels.contains(&c.channel_id)
                    && !(c.pending_inbound_htlcs.is_empty() && c.pending_outbound_htlcs.is_empty())
            });
            self.client_close_input(&id, ClientCloseInput::PendingPayments(pending));
        }
        if let Payload::CloseAbort(m) = &payload {
            // Also the answer to our asking, when there is no machine.
            let data = json!({"instance_id": hex::encode(id), "reason": m.text});
            self.parts.events.push("close_refused", data);
            if !self.closing.contains_key(&id) {
                let text = m.text.clone();
                let ours = self.factories.get(&id).is_some_and(|f| f.state.close_attempts == m.attempt);
                let result = if ours && m.attempt > 0 {
                    self.close_called_off(&id, text)
                } else {
                    self.stored_close(&id, |c| c.reason = Some(text))
                };
                if let Err(e) = result {
                    tracing::error!(error = %e, "factory state not stored");
                }
                return;
            }
        }
        self.client_close_input(&id, ClientCloseInput::Message(payload));
    }

    pub(super) async fn client_channel_shut(&mut self, id: &InstanceId, own_msat: u64) -> Result<(), Error> {
        // A machine that has not heard of the consent (made after a restart) is as good as none.
        if matches!(self.closing.get(id), Some(Closing::Client(m)) if m.phase() == ClientClosePhase::Idle) {
            self.closing.remove(id);
        }
        let has_machine = self.closing.contains_key(id);
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        if factory.state.close.as_ref().is_none_or(|c| c.payout_script.is_none()) {
            // The LSP has shut the channel without a close that we agreed to.
            if factory.is_exiting() || factory.state.stage != Stage::Live {
                return Ok(());
            }
            return self
                .start_exit(id, ExitReason::ChannelClosed, "the LSP shut the channel without an agreed close")
                .await;
        }
        let attempt = factory.state.close_attempts;
        let instance_id = factory.id();
        faults::point("client.balance.store");
        factory.update(&self.parts.store, |state| {
            let close = state.close.get_or_insert_default();
            close.own_msat = Some(own_msat);
            if !has_machine && close.machine.is_none() {
                // The node was restarted between its consent and this moment.
                let payout_script = close.payout_script.clone().unwrap_or_default();
                let state = ClientCloseState {
                    version: RECORD_VERSION,
                    instance_id,
                    attempt,
                    own_msat,
                    payout_script,
                    frozen: false,
                };
                close.machine = serde_json::to_value(&state).ok();
            }
        })?;
        faults::point("client.balance.stored");
        if has_machine {
            self.client_close_input(id, ClientCloseInput::ChannelShut { own_msat });
        }
        Ok(())
    }

    fn client_close_input(&mut self, id: &InstanceId, input: ClientCloseInput) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let actions = match self.client_closing(id) {
                Ok(Some(machine)) => machine.handle(input),
                Ok(None) => return,
                Err(e) => {
                    tracing::error!(error = %e, "close");
                    return;
                }
            };
            match actions {
                Ok(actions) => {
                    for action in actions {
                        match self.client_close_action(id, action) {
                            Ok(next) => inputs.extend(next),
                            Err(e) => {
                                // Not stored, so nothing that depends on it is sent.
                                tracing::error!(error = %e, "close");
                                return;
                            }
                        }
                    }
                }
                Err(e) => tracing::error!(error = %e, "close"),
            }
        }
        self.parts.peers.process_events();
    }

    fn stored_close(&mut self, id: &InstanceId, change: impl FnOnce(&mut StoredClose)) -> Result<(), Error> {
        let Some(factory) = self.factories.get_mut(id) else { return Ok(()) };
        factory.update(&self.parts.store, |state| change(state.close.get_or_insert_default()))
    }

    /// A try to close has come to nothing. A channel that was not shut down lives on as if nobody had
    /// asked; one that was stays shut, and waits for the next try.
    fn close_called_off(&mut self, id: &InstanceId, reason: String) -> Result<(), Error> {
        let shut =
            self.factories.get(id).and_then(|f| f.state.close.as_ref()).is_some_and(|c| c.own_msat.is_some());
        if shut {
            return self.stored_close(id, |c| c.reason = Some(reason));
        }
        self.closing.remove(id);
        self.stored_close(id, |c| *c = StoredClose { reason: Some(reason), ..StoredClose::default() })
    }

    fn client_close_action(
        &mut self,
        id: &InstanceId,
        action: ClientCloseAction,
    ) -> Result<Option<ClientCloseInput>, Error> {
        let Some(lsp) = self.client_settings().map(|s| s.lsp_node_id) else { return Ok(None) };
        match action {
            ClientCloseAction::Send(payload) => {
                if let Payload::CloseConsent(consent) = &payload {
                    // Where we are paid is fixed by what we say here, so it is stored first.
                    let (script, attempt) = (consent.payout_script.clone(), consent.attempt);
                    faults::point("client.consent.store");
                    if let Some(f) = self.factories.get_mut(id) {
                        f.update(&self.parts.store, |state| {
                            state.close_attempts = attempt;
                            let close = state.close.get_or_insert_default();
                            close.payout_script = Some(script);
                            close.reason = None;
                        })?;
                    }
                    faults::point("client.consent.stored");
                }
                self.send(lsp, payload);
                Ok(None)
            }
            ClientCloseAction::StopPayments => {
                self.parts.events.push("factory_closing", json!({"instance_id": hex::encode(id)}));
                Ok(None)
            }
            ClientCloseAction::PersistFrozen(state) => {
                let attempt = state.attempt;
                let value = serde_json::to_value(&state).map_err(|e| Error::Store(e.to_string()))?;
                let frozen = state.frozen;
                if frozen {
                    faults::point("client.frozen.store");
                }
                self.stored_close(id, |c| {
                    c.own_msat = Some(state.own_msat);
                    c.machine = Some(value);
                })?;
                if frozen {
                    faults::point("client.frozen.stored");
                }
                Ok(Some(ClientCloseInput::Persisted { attempt }))
            }
            ClientCloseAction::Completed { tx } => {
                let own = self.factories.get(id).and_then(|f| f.state.close.as_ref());
                let script = own.and_then(|c| c.payout_script.clone());
                let sat: u64 = tx
                    .output
                    .iter()
                    .filter(|o| Some(&o.script_pubkey) == script.as_ref())
                    .map(|o| o.value.to_sat())
                    .sum();
                let node_id = self.parts.node_id.to_string();
                let swallowed = own.and_then(|c| c.own_msat).unwrap_or(0) / 1000;
                self.parts.index.watch([tx.compute_txid()], []);
                self.stored_close(id, |c| {
                    c.signed = Some(StoredTx((*tx).clone()));
                    match sat {
                        0 => c.to_fees = vec![ClosePayout { node_id, sat: swallowed }],
                        sat => c.paid = vec![ClosePayout { node_id, sat }],
                    }
                })?;
                faults::point("client.close_tx.stored");
                self.settle_channels(id);
                // Anybody may publish it.
                self.parts.broadcaster.send(vec![*tx], "factory close");
                Ok(None)
            }
            ClientCloseAction::Refused { code, text } => {
                let data = json!({"instance_id": hex::encode(id), "reason": format!("{code:?}: {text}")});
                self.parts.events.push("close_refused", data);
                self.close_called_off(id, text)?;
                Ok(None)
            }
            ClientCloseAction::Aborted { text, .. } => {
                self.close_called_off(id, text)?;
                Ok(None)
            }
        }
    }
}
