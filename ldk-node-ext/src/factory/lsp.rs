//! The LSP's side of creating a factory: carries out what `LspCeremony` says.

use std::collections::VecDeque;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint};
use bolt_tlv::payload::{self, Payload};
use factory_core::ceremony::{LspAction, LspCeremony, LspConfig, LspInput, ParamsChoice, Timeouts};
use lightning::ln::types::ChannelId;
use serde_json::json;
use tokio::time::Instant;

use super::creating::{api_state, member_state, AttemptChannel, Creating};
use super::stored::{Factory, Signed, Stage, State, StoredTx};
use super::{plan, registry, user_channel_id, LdkEvent, Service, Timer, MAX_SHOWN_FAILURES};
use crate::api::{self, ExcludedClient, FactoryMember, FactoryState, MemberState};
use crate::error::Error;
use crate::ldk::InstanceId;

/// A client that asked to be in a factory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) min_capacity_sat: u64,
    pub(super) max_capacity_sat: u64,
}

/// Clients remembered as waiting, at most.
const MAX_WAITING_CLIENTS: usize = 10_000;
/// Ceremonies at a time.
const MAX_CEREMONIES: usize = 8;

impl Service {
    /// Starts a ceremony.
    pub(super) async fn create(&mut self, request: api::CreateFactoryRequest) -> Result<String, Error> {
        let order = self.order(request)?;
        if self.creating.len() >= MAX_CEREMONIES {
            return Err(Error::Conflict(format!("{MAX_CEREMONIES} factories are being created already")));
        }
        if let Some(busy) = order.clients.iter().find(|c| self.creating.values().any(|k| k.has(&c.node_id))) {
            return Err(Error::Conflict(format!(
                "client {} takes part in another ceremony now",
                busy.node_id
            )));
        }
        let settings = self.lsp_settings()?;
        let seconds = u32::try_from(settings.phase_timeout.as_secs()).unwrap_or(u32::MAX);
        let min_clients = settings.min_clients;
        let (id, salt) = (plan::new_instance_id(), self.parts.keys.random());
        let birth_height = self.parts.height();
        let members = order
            .clients
            .iter()
            .map(|c| FactoryMember {
                node_id: c.node_id.to_string(),
                capacity_sat: c.capacity_sat,
                push_sat: c.push_msat / 1000,
                channel_id: None,
                state: MemberState::Invited,
                reason: None,
            })
            .collect();
        let to_self_delay = match &order.params {
            ParamsChoice::Fixed(p) | ParamsChoice::Reshape(p) => p.to_self_delay,
        };
        let config = LspConfig {
            instance_id: id,
            secret_key: self.parts.keys.factory_key(&salt)?.secret_bytes(),
            params: order.params,
            clients: order.clients,
            leaf_stock_sat: order.stock_sat,
            stock_script: self.parts.wallet.new_script()?,
            birth_height,
            min_clients,
            timeouts: Timeouts {
                invite: seconds,
                plan: seconds,
                open: seconds,
                funding: seconds,
                nonces: seconds,
                partials: seconds,
                persist: seconds,
            },
        };
        let (machine, actions) = LspCeremony::new(config, &mut rand::rng())?;
        let creating = Creating {
            machine,
            salt,
            psbt: None,
            timer: None,
            birth_height,
            to_self_delay,
            state: FactoryState::Inviting,
            members,
            excluded: Vec::new(),
            channels: Vec::new(),
        };
        self.parts.events.push(
            "factory_creating",
            json!({"instance_id": hex::encode(id), "clients": creating.members.len()}),
        );
        self.creating.insert(id, creating);
        self.run_lsp(id, actions).await;
        Ok(hex::encode(id))
    }

    /// Feeds one input to a ceremony and carries out what follows.
    async fn lsp_input(&mut self, id: InstanceId, input: LspInput) {
        let Some(creating) = self.creating.get_mut(&id) else { return };
        match creating.machine.handle(input) {
            Ok(actions) => self.run_lsp(id, actions).await,
            Err(e) => {
                tracing::error!(error = %e, "ceremony");
                self.fail_creation(id, e.to_string());
            }
        }
    }

    async fn run_lsp(&mut self, id: InstanceId, actions: Vec<LspAction>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            for input in self.lsp_action(id, action).await {
                let Some(creating) = self.creating.get_mut(&id) else { return };
                match creating.machine.handle(input) {
                    Ok(more) => queue.extend(more),
                    Err(e) => return self.fail_creation(id, e.to_string()),
                }
            }
        }
        self.parts.peers.process_events();
    }

    /// Carries out one action; returns what the machine has to hear about it.
    async fn lsp_action(&mut self, id: InstanceId, action: LspAction) -> Vec<LspInput> {
        match action {
            LspAction::Send { client, payload } => {
                if self.send(client, payload) {
                    Vec::new()
                } else {
                    vec![LspInput::ClientGone { client }]
                }
            }
            LspAction::OpenChannel { client, temporary_channel_id, capacity_sat, push_msat } => {
                let temporary = ChannelId(temporary_channel_id);
                self.parts.outpoints.expect(temporary, id);
                let to_self_delay = self.creating.get(&id).map_or(0, |c| c.to_self_delay);
                let opened = self.parts.manager.create_channel(
                    client,
                    capacity_sat,
                    push_msat,
                    user_channel_id(),
                    Some(temporary),
                    Some(self.parts.config.factory_channel_config(to_self_delay)),
                );
                if let Some(c) = self.creating.get_mut(&id) {
                    c.channels.push(AttemptChannel { temporary, funded: None, client });
                }
                match opened {
                    Ok(_) => Vec::new(),
                    Err(e) => vec![LspInput::ChannelFailed {
                        client,
                        temporary_channel_id,
                        reason: format!("{e:?}"),
                    }],
                }
            }
            LspAction::CloseChannel { client, temporary_channel_id, outpoint } => {
                let temporary = ChannelId(temporary_channel_id);
                self.parts.outpoints.unexpect(&temporary);
                if let Some(c) = self.creating.get_mut(&id) {
                    c.channels.retain(|channel| channel.temporary != temporary);
                }
                let channel = outpoint.map_or(temporary, crate::ldk::channel_id);
                self.drop_channel(&channel, &client, outpoint);
                Vec::new()
            }
            LspAction::BuildFunding { script, value_sat } => {
                let value = Amount::from_sat(value_sat);
                let built = self.parts.wallet.build_payment(script.clone(), value, self.parts.fees.normal());
                match built {
                    Ok(psbt) => {
                        let tx = &psbt.unsigned_tx;
                        let vout = (0u32..)
                            .zip(&tx.output)
                            .find(|(_, o)| o.script_pubkey == script && o.value == value);
                        let Some((vout, _)) = vout else {
                            let reason = "the wallet left the factory output out".to_owned();
                            return vec![LspInput::FundingFailed { reason }];
                        };
                        let outpoint = OutPoint { txid: tx.compute_txid(), vout };
                        if let Some(c) = self.creating.get_mut(&id) {
                            c.psbt = Some(psbt);
                        }
                        vec![LspInput::FundingBuilt { outpoint, script, value_sat }]
                    }
                    Err(e) => vec![LspInput::FundingFailed { reason: e.to_string() }],
                }
            }
            LspAction::ReleaseFunding => {
                if let Some(psbt) = self.creating.get_mut(&id).and_then(|c| c.psbt.take()) {
                    self.parts.wallet.release(&psbt.unsigned_tx);
                }
                Vec::new()
            }
            LspAction::FundChannel { client, temporary_channel_id, outpoint } => {
                // Held before LDK considers it open.
                let funded = self.parts.outpoints.insert(id, outpoint);
                let temporary = ChannelId(temporary_channel_id);
                let channels = self.creating.get_mut(&id).map(|c| &mut c.channels);
                if let Some(channel) = channels.into_iter().flatten().find(|c| c.temporary == temporary) {
                    channel.funded = Some(funded);
                }
                let index = u16::try_from(outpoint.vout).unwrap_or(u16::MAX);
                let txo = lightning::chain::transaction::OutPoint { txid: outpoint.txid, index };
                match self.parts.manager.unsafe_manual_funding_transaction_generated(temporary, client, txo) {
                    Ok(()) => Vec::new(),
                    Err(e) => vec![LspInput::ChannelFailed {
                        client,
                        temporary_channel_id,
                        reason: format!("{e:?}"),
                    }],
                }
            }
            LspAction::PersistRecord(record) => {
                let attempt = record.attempt;
                let Some(creating) = self.creating.get(&id) else { return Vec::new() };
                let state = State::new(creating.salt, creating.excluded.clone());
                let factory = Factory { signed: Signed::Lsp(record), state };
                let stored = factory
                    .store_all(&self.parts.store)
                    .and_then(|()| registry::register(&factory, &self.parts.outpoints, &self.parts.index));
                match stored {
                    Ok(()) => {
                        self.factories.insert(id, factory);
                        vec![LspInput::RecordPersisted { attempt }]
                    }
                    Err(e) => {
                        tracing::error!(error = %e, "factory not stored");
                        vec![LspInput::Cancel]
                    }
                }
            }
            LspAction::BroadcastFunding => self.broadcast_funding(&id),
            LspAction::SetTimer { id: timer, seconds } => {
                if let Some(c) = self.creating.get_mut(&id) {
                    c.timer = Some(Timer::new(timer, seconds));
                }
                Vec::new()
            }
            LspAction::Excluded { client, reason } => {
                tracing::warn!(%client, %reason, "client excluded from the factory");
                self.parts.events.push(
                    "client_excluded",
                    json!({"instance_id": hex::encode(id), "node_id": client.to_string(), "reason": reason.to_string()}),
                );
                if let Some(c) = self.creating.get_mut(&id) {
                    c.set_member(&client, MemberState::Excluded, Some(reason.to_string()));
                    c.excluded
                        .push(ExcludedClient { node_id: client.to_string(), reason: reason.to_string() });
                }
                Vec::new()
            }
            LspAction::Progress(phase) => {
                tracing::info!(instance = hex::encode(id), ?phase, "ceremony");
                if let Some(c) = self.creating.get_mut(&id) {
                    c.state = api_state(phase);
                }
                Vec::new()
            }
            LspAction::Done => {
                self.creating.remove(&id);
                if self.factories.get(&id).is_none_or(|f| f.state.stage == Stage::Void) {
                    return Vec::new();
                }
                let data = json!({"instance_id": hex::encode(id)});
                self.parts.events.push("factory_created", data);
                Vec::new()
            }
            LspAction::Failed { reason } => {
                self.fail_creation(id, reason.to_string());
                Vec::new()
            }
        }
    }

    /// Signs the funding transaction, stores it, and only then shows it to anybody.
    fn broadcast_funding(&mut self, id: &InstanceId) -> Vec<LspInput> {
        let Some(psbt) = self.creating.get_mut(id).and_then(|c| c.psbt.take()) else {
            return vec![LspInput::FundingFailed { reason: "there is no funding transaction".into() }];
        };
        let Some(factory) = self.factories.get_mut(id) else {
            return vec![LspInput::FundingFailed { reason: "there is no record".into() }];
        };
        let unsigned = psbt.unsigned_tx.clone();
        let open: Vec<ChannelId> = self.parts.manager.list_channels().iter().map(|c| c.channel_id).collect();
        let all_open = factory.channel_ids().is_ok_and(|ids| ids.iter().all(|id| open.contains(id)));
        let signed = if all_open {
            self.parts.wallet.sign(psbt)
        } else {
            Err(Error::Conflict("a channel was closed before the funding transaction was signed".into()))
        };
        let ready = signed.and_then(|tx| {
            if tx.compute_txid() != factory.funding().outpoint.txid {
                return Err(Error::Wallet("signing changed the txid of the funding transaction".into()));
            }
            factory.state.funding_tx = Some(StoredTx(tx.clone()));
            factory.state.stage = Stage::Funded;
            factory.store_state(&self.parts.store)?;
            Ok(tx)
        });
        match ready {
            Ok(tx) => {
                let (attempt, instance_id) = (factory.attempt(), *id);
                let Signed::Lsp(record) = &factory.signed else { return Vec::new() };
                let clients = record.client_ids.clone();
                self.parts.broadcaster.send(vec![tx.clone()], "factory funding");
                for client in clients {
                    self.send(client, payload::Funded { instance_id, attempt, transaction: tx.clone() });
                }
                Vec::new()
            }
            Err(e) => {
                tracing::error!(error = %e, "funding transaction not broadcast");
                factory.state.stage = Stage::Signed;
                factory.state.funding_tx = None;
                self.parts.wallet.release(&unsigned);
                let (instance_id, attempt) = (*id, factory.attempt());
                let clients = match &factory.signed {
                    Signed::Lsp(record) => record.client_ids.clone(),
                    Signed::Client(_) => Vec::new(),
                };
                let text: String = e.to_string().chars().take(200).collect();
                for client in clients {
                    let text = text.clone();
                    self.send(
                        client,
                        payload::Abort { instance_id, attempt, code: 101, text, culprit: None },
                    );
                }
                self.make_void(id, &text);
                Vec::new()
            }
        }
    }

    fn fail_creation(&mut self, id: InstanceId, reason: String) {
        let Some(creating) = self.creating.remove(&id) else { return };
        if let Some(psbt) = &creating.psbt {
            self.parts.wallet.release(&psbt.unsigned_tx);
        }
        self.make_void(&id, &reason);
        // Whatever the machine has not closed itself.
        for AttemptChannel { temporary, funded, client } in &creating.channels {
            self.parts.outpoints.unexpect(temporary);
            let id = funded.unwrap_or(*temporary);
            let outpoint = funded.and_then(|f| self.parts.outpoints.get(&f)).map(|c| c.outpoint);
            self.drop_channel(&id, client, outpoint);
        }
        if !self.factories.contains_key(&id) {
            self.parts
                .events
                .push("factory_failed", json!({"instance_id": hex::encode(id), "reason": reason}));
            if self.failed.len() >= MAX_SHOWN_FAILURES {
                self.failed.remove(0);
            }
            self.failed.push(creating.info(&id, Some(reason)));
        }
    }

    // ---- what peers and LDK say

    pub(super) async fn client_connected(&mut self, client: PublicKey) {
        self.remind(client);
    }

    pub(super) async fn client_gone(&mut self, client: PublicKey) {
        // `Join` is said on every connection.
        self.waiting.remove(&client);
        let ids: Vec<InstanceId> =
            self.creating.iter().filter(|(_, c)| c.has(&client)).map(|(id, _)| *id).collect();
        for id in ids {
            self.lsp_input(id, LspInput::ClientGone { client }).await;
        }
    }

    pub(super) async fn client_message(&mut self, client: PublicKey, payload: Payload) {
        if let Payload::Join(join) = &payload {
            let known = self.waiting.contains_key(&client);
            if known || self.waiting.len() < MAX_WAITING_CLIENTS {
                let (min_capacity_sat, max_capacity_sat) = (join.min_capacity_sat, join.max_capacity_sat);
                self.waiting.insert(client, Waiting { min_capacity_sat, max_capacity_sat });
            }
            return;
        }
        if self.close_message(client, &payload).await {
            return;
        }
        if let Payload::Persisted(m) = &payload {
            if !self.is_current(&client, &m.instance_id, m.attempt) {
                let (instance_id, attempt) = (m.instance_id, m.attempt);
                let text = "the factory was made without you, or not at all".to_owned();
                self.send(client, payload::Abort { instance_id, attempt, code: 2, text, culprit: None });
                return;
            }
        }
        if let Some(id) = payload.instance_id() {
            self.report_lost_channels(id).await;
        }
        let Some(id) = payload.instance_id().filter(|id| self.creating.contains_key(id)) else {
            tracing::debug!(%client, number = payload.number(), "message of no factory under way");
            return;
        };
        if let (Some(state), Some(c)) = (member_state(&payload), self.creating.get_mut(&id)) {
            c.set_member(&client, state, None);
        }
        self.lsp_input(id, LspInput::Message { client, payload }).await;
    }

    /// A channel that LDK has closed may not have been reported yet; a ceremony has to hear of it before
    /// it hears anything else.
    async fn report_lost_channels(&mut self, id: InstanceId) {
        let open: Vec<ChannelId> = self.parts.manager.list_channels().iter().map(|c| c.channel_id).collect();
        let lost: Vec<AttemptChannel> = match self.creating.get(&id) {
            Some(c) => {
                c.channels.iter().filter(|c| c.funded.is_some_and(|f| !open.contains(&f))).copied().collect()
            }
            None => return,
        };
        for channel in lost {
            let (client, temporary_channel_id) = (channel.client, channel.temporary.0);
            let reason = "closed before the factory was made".to_owned();
            self.lsp_input(id, LspInput::ChannelFailed { client, temporary_channel_id, reason }).await;
        }
    }

    /// The tip has moved: the next plan is born there.
    pub(super) async fn creation_height(&mut self, height: u32) {
        let ids: Vec<InstanceId> = self.creating.keys().copied().collect();
        for id in ids {
            self.lsp_input(id, LspInput::Height(height)).await;
        }
    }

    /// Whether a client is in this attempt of a factory, be it under way or made.
    fn is_current(&self, client: &PublicKey, id: &InstanceId, attempt: u16) -> bool {
        let creating = self.creating.get(id).is_some_and(|c| c.has(client) && c.machine.attempt() == attempt);
        let made = self.factories.get(id).is_some_and(|f| match &f.signed {
            Signed::Lsp(r) => {
                f.state.stage != Stage::Void && r.attempt == attempt && r.index_of(client).is_some()
            }
            Signed::Client(_) => false,
        });
        creating || made
    }

    pub(super) async fn lsp_ldk_event(&mut self, event: LdkEvent) {
        match event {
            LdkEvent::ChannelScript { temporary, peer, script } => {
                if let Some(id) = self.parts.outpoints.expected(&temporary) {
                    let input =
                        LspInput::ChannelScript { client: peer, temporary_channel_id: temporary.0, script };
                    self.lsp_input(id, input).await;
                }
            }
            LdkEvent::CommitmentHeld { channel, temporary, peer, outpoint } => {
                let Some(id) = self.parts.outpoints.expected(&temporary) else { return };
                tracing::debug!(%channel, %outpoint, "first commitment held");
                self.parts.outpoints.unexpect(&temporary);
                let (client, temporary_channel_id) = (peer, temporary.0);
                let details =
                    self.parts.manager.list_channels().into_iter().find(|c| c.channel_id == channel);
                let zero_fee = details
                    .and_then(|c| c.channel_type)
                    .is_some_and(|t| t.supports_anchor_zero_fee_commitments());
                let input = if zero_fee {
                    LspInput::CommitmentHeld { client, temporary_channel_id }
                } else {
                    // With a fee in the commitment a long hold would end in a force close.
                    let reason = "the channel has no zero-fee commitments".to_owned();
                    LspInput::ChannelFailed { client, temporary_channel_id, reason }
                };
                self.lsp_input(id, input).await;
            }
            LdkEvent::OpenRequest { temporary, peer, .. } => {
                // A client that opens under an id of one of our plans: not in the protocol.
                let reason = "this channel id belongs to a plan".to_owned();
                let _ = self.parts.manager.force_close_broadcasting_latest_txn(&temporary, &peer, reason);
            }
            LdkEvent::ChannelPending { .. }
            | LdkEvent::ChannelReady { .. }
            | LdkEvent::ChannelClosed { .. } => {}
        }
    }

    /// A channel that LDK closed while its ceremony was still under way.
    pub(super) async fn creation_channel_closed(&mut self, channel: ChannelId, reason: &str) {
        let found = self.creating.iter().find_map(|(id, c)| {
            let hit = c.channels.iter().find(|c| c.temporary == channel || c.funded == Some(channel))?;
            Some((*id, hit.client, hit.temporary))
        });
        if let Some((id, client, temporary)) = found {
            let input = LspInput::ChannelFailed {
                client,
                temporary_channel_id: temporary.0,
                reason: reason.to_owned(),
            };
            self.lsp_input(id, input).await;
        }
    }

    pub(super) async fn lsp_timers(&mut self, now: Instant) {
        let due: Vec<(InstanceId, u64)> = self
            .creating
            .iter()
            .filter_map(|(id, c)| c.timer.filter(|t| t.at <= now).map(|t| (*id, t.id)))
            .collect();
        for (id, timer) in due {
            if let Some(c) = self.creating.get_mut(&id) {
                c.timer = None;
            }
            self.lsp_input(id, LspInput::Timeout { id: timer }).await;
        }
    }

    /// Clients that speak our protocol, and whether they wait.
    pub(super) fn waiting_clients(&self) -> Result<Vec<api::WaitingClient>, Error> {
        self.lsp_settings()?;
        let ready = self.parts.factory_messages.ready_peers();
        let mut list: Vec<api::WaitingClient> = self
            .waiting
            .iter()
            .map(|(id, w)| api::WaitingClient {
                node_id: id.to_string(),
                connected: ready.contains(id),
                waiting: ready.contains(id) && !self.is_busy(id),
                min_capacity_sat: w.min_capacity_sat,
                max_capacity_sat: w.max_capacity_sat,
            })
            .collect();
        list.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        Ok(list)
    }

    /// Whether a client is in a ceremony or in a factory that is alive.
    pub(super) fn is_busy(&self, client: &PublicKey) -> bool {
        let alive = |f: &Factory| matches!(f.state.stage, Stage::Signed | Stage::Funded | Stage::Live);
        let member = |f: &Factory| match &f.signed {
            Signed::Lsp(r) => r.index_of(client).is_some() && !f.state.left.contains(client),
            Signed::Client(_) => false,
        };
        self.creating.values().any(|c| c.has(client))
            || self.factories.values().any(|f| alive(f) && member(f))
    }
}
