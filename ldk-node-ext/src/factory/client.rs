//! A client's side of joining a factory: carries out what `ClientCeremony` says.

use std::collections::VecDeque;

use bitcoin::hashes::{sha256, Hash};
use bitcoin::secp256k1::PublicKey;
use bolt_tlv::payload::{self, Payload};
use factory_core::advance::ClientAdvanceInput;
use factory_core::ceremony::{
    ClientAction, ClientCeremony, ClientConfig, ClientInput, ClientPhase, ClientPolicy,
};
use factory_core::faults::switch;
use lightning::ln::channelmanager::TrustedChannelFeatures;
use lightning::ln::types::ChannelId;
use lightning::util::config::{ChannelConfigOverrides, ChannelConfigUpdate};
use serde_json::json;
use tokio::time::Instant;

use super::stored::{Factory, Signed, Stage, State, StoredTx};
use super::{registry, user_channel_id, ChannelOffer, LdkEvent, Service, Timer};
use crate::api;
use crate::config::{ClientSettings, RoleConfig};
use crate::faults;
use crate::ldk::InstanceId;

/// Version of our protocol that `Join` names.
const PROTOCOL_VERSION: u16 = 1;
/// How long a client waits for its LSP in each phase, seconds.
const PHASE_TIMEOUT_SECS: u32 = 600;
/// Farthest expiry height T a client signs, blocks from its tip (60 days): from T on the
/// distributions pay it, whoever is online.
const MAX_EXPIRY: u32 = 8640;
/// Most blocks between the plan's birth height and the own tip.
const MAX_BIRTH_SKEW: u32 = 6;

/// A ceremony under way.
pub(super) struct Joining {
    machine: ClientCeremony,
    id: InstanceId,
    salt: [u8; 32],
    timer: Option<Timer>,
    /// What the plan says about the channel: temporary id, capacity (sat), push (msat).
    expected: Option<(ChannelId, u64, u64)>,
    /// The channel once it is funded, with the temporary id it had.
    channel: Option<(ChannelId, ChannelId, bitcoin::OutPoint)>,
}

impl Joining {
    /// What the API shows.
    pub(super) fn id(&self) -> InstanceId {
        self.id
    }
}

impl Service {
    pub(super) fn client_settings(&self) -> Option<&ClientSettings> {
        match &self.parts.config.role {
            RoleConfig::Client(c) => Some(c),
            RoleConfig::Lsp(_) => None,
        }
    }

    /// Asks to be in a factory, once per connection, when in none.
    pub(super) fn join_if_free(&mut self) {
        let Some(settings) = self.client_settings() else { return };
        let lsp = settings.lsp_node_id;
        let alive = |f: &Factory| matches!(f.state.stage, Stage::Signed | Stage::Funded | Stage::Live);
        let free = self.joining.is_none() && !self.factories.values().any(|f| alive(f) && !f.is_exiting());
        if !settings.join || self.join_sent || !free {
            return;
        }
        let join = payload::Join {
            version: PROTOCOL_VERSION,
            min_capacity_sat: settings.policy.min_capacity_sat,
            max_capacity_sat: settings.policy.max_capacity_sat,
        };
        self.join_sent = self.send(lsp, join);
    }

    pub(super) fn lsp_connected(&mut self, peer: PublicKey) {
        if self.client_settings().is_some_and(|s| s.lsp_node_id == peer) {
            self.join_sent = false;
            // Said again in case it was lost: the LSP answers with the funding, or that it went on
            // without us.
            if let Some(joining) =
                self.joining.as_ref().filter(|j| j.machine.phase() == ClientPhase::Persisted)
            {
                let (instance_id, attempt) = (joining.id, joining.machine.attempt());
                self.send(peer, payload::Persisted { instance_id, attempt });
            }
            // The same after a restart.
            let under_way = self.joining.as_ref().map(Joining::id);
            let unsure: Vec<(InstanceId, u16)> = self
                .factories
                .values()
                .filter(|f| f.state.stage == Stage::Signed && Some(f.id()) != under_way)
                .map(|f| (f.instance_id(), f.attempt()))
                .collect();
            for (instance_id, attempt) in unsure {
                self.send(peer, payload::Persisted { instance_id, attempt });
            }
            self.ask_for_pending();
            self.follow_all(&ClientAdvanceInput::Connected);
            self.resume_all_resizes(peer);
            self.join_if_free();
        }
    }

    pub(super) async fn lsp_gone(&mut self, peer: PublicKey) {
        if self.client_settings().is_some_and(|s| s.lsp_node_id == peer) {
            self.join_sent = false;
            self.parts.asks.give_up();
            self.client_input(ClientInput::Disconnected).await;
            self.follow_all(&ClientAdvanceInput::Disconnected);
        }
    }

    pub(super) async fn lsp_message(&mut self, peer: PublicKey, payload: Payload) {
        let Some(settings) = self.client_settings() else { return };
        if settings.lsp_node_id != peer {
            tracing::debug!(%peer, "factory message of somebody who is not our LSP");
            return;
        }
        if self.close_message(peer, &payload).await || self.advance_message(peer, &payload).await {
            return;
        }
        if let Payload::Invite(invite) = &payload {
            self.invited(peer, invite);
        }
        if self.joining.as_ref().is_some_and(|j| payload.instance_id() == Some(j.id)) {
            return self.client_input(ClientInput::Message(payload)).await;
        }
        match payload {
            Payload::RelayInvoice(_) | Payload::RelayDecline(_) => self.parts.relay_answered(payload),
            Payload::Funded(m) => self.funding_shown(&m.instance_id, m.transaction),
            Payload::Abort(m) => {
                let aborted = self.factories.get(&m.instance_id).is_some_and(|f| {
                    f.attempt() == m.attempt
                        // One that was live lives on, also while a reorganisation has its funding off the chain.
                        && matches!(f.state.stage, Stage::Signed | Stage::Funded)
                        && self.parts.index.confirmation(&f.funding().outpoint.txid).is_none()
                });
                if aborted {
                    self.abandon(&m.instance_id, &format!("given up by the LSP: {}", m.text));
                    self.join_sent = false;
                }
            }
            other => tracing::debug!(number = other.number(), "message of no factory under way"),
        }
    }

    /// An invitation: a machine of its own, with a key of its own.
    fn invited(&mut self, lsp: PublicKey, invite: &payload::Invite) {
        let (instance_id, attempt) = (invite.instance_id, invite.attempt);
        if self.joining.as_ref().is_some_and(|j| j.id == instance_id) {
            return;
        }
        let decline =
            |code: u16, text: &str| payload::Decline { instance_id, attempt, code, text: text.to_owned() };
        if self.joining.is_some() {
            self.send(lsp, decline(1, "another ceremony is under way"));
            return;
        }
        if self.factories.contains_key(&instance_id) {
            self.send(lsp, decline(1, "this instance id has been used"));
            return;
        }
        let Some(settings) = self.client_settings() else { return };
        let policy = ClientPolicy {
            accept: settings.join,
            min_lifetime_blocks: settings.policy.min_lifetime_blocks,
            max_expiry_blocks: MAX_EXPIRY,
            max_exit_blocks: settings.policy.max_exit_blocks,
            min_capacity_sat: settings.policy.min_capacity_sat,
            max_capacity_sat: settings.policy.max_capacity_sat,
            min_push_msat: 0,
            max_clients: u32::try_from(settings.policy.max_clients).unwrap_or(u32::MAX),
            max_birth_skew_blocks: MAX_BIRTH_SKEW,
        };
        let salt = self.parts.keys.random();
        let machine = self.parts.keys.factory_key(&salt).and_then(|key| {
            let config = ClientConfig {
                policy,
                secret_key: key.secret_bytes(),
                payout_script: self.parts.wallet.new_script()?,
                height: self.parts.height(),
                network: self.parts.config.network,
                timeout_secs: PHASE_TIMEOUT_SECS,
            };
            Ok(ClientCeremony::new(config, &mut rand::rng())?)
        });
        match machine {
            Ok(machine) => {
                self.parts.events.push("factory_invited", json!({"instance_id": hex::encode(instance_id)}));
                let id = instance_id;
                self.joining =
                    Some(Joining { machine, id, salt, timer: None, expected: None, channel: None });
            }
            Err(e) => {
                tracing::error!(error = %e, "cannot join");
                self.send(lsp, decline(1, "internal error"));
            }
        }
    }

    pub(super) async fn client_input(&mut self, input: ClientInput) {
        let Some(joining) = self.joining.as_mut() else { return };
        let mut queue = match joining.machine.handle(input) {
            Ok(actions) => VecDeque::from(actions),
            Err(e) => {
                tracing::error!(error = %e, "ceremony");
                return;
            }
        };
        while let Some(action) = queue.pop_front() {
            let Some(input) = self.client_action(action) else { continue };
            let Some(joining) = self.joining.as_mut() else { break };
            match joining.machine.handle(input) {
                Ok(more) => queue.extend(more),
                Err(e) => tracing::error!(error = %e, "ceremony"),
            }
        }
        self.parts.peers.process_events();
    }

    /// Carries out one action; returns what the machine has to hear about it.
    fn client_action(&mut self, action: ClientAction) -> Option<ClientInput> {
        let lsp = self.client_settings()?.lsp_node_id;
        match action {
            ClientAction::Send(payload) => {
                self.send(lsp, payload);
                None
            }
            ClientAction::ExpectChannel { temporary_channel_id, capacity_sat, push_msat } => {
                let temporary = ChannelId(temporary_channel_id);
                let joining = self.joining.as_mut()?;
                joining.expected = Some((temporary, capacity_sat, push_msat));
                self.parts.outpoints.expect(temporary, joining.id);
                None
            }
            ClientAction::KeepSuperseded { record, .. } => {
                // The next attempt's record takes its place under the instance id, so it gets a name
                // of its own, and is kept like any other factory that was given up.
                let id = self.joining.as_ref()?.id;
                let mut factory = self.factories.get(&id).cloned()?;
                if factory.attempt() != record.path.attempt {
                    return None;
                }
                let mut name = id.to_vec();
                name.extend(record.path.attempt.to_be_bytes());
                factory.state.alias = Some(sha256::Hash::hash(&name).to_byte_array());
                factory.state.stage = Stage::Void;
                factory.state.failure = Some("superseded by another attempt".into());
                let alias = factory.id();
                if let Err(e) = factory.store_all(&self.parts.store) {
                    // Then it stays under its own name.
                    tracing::error!(error = %e, "superseded attempt not stored");
                    return None;
                }
                // Moved, not copied: one path is published by one factory only. A crash in between leaves
                // both, and the next start keeps the alias.
                if let Err(e) = Factory::remove(&self.parts.store, &id) {
                    tracing::error!(error = %e, "superseded attempt not removed");
                }
                self.factories.remove(&id);
                self.superseded = factory.channels().ok().and_then(|c| c.first().map(|(o, _)| *o));
                self.parts.outpoints.rename(&id, &alias, self.superseded);
                self.factories.insert(alias, factory);
                self.settle_channels(&alias);
                None
            }
            ClientAction::ForgetChannel { temporary_channel_id } => {
                let temporary = ChannelId(temporary_channel_id);
                self.parts.outpoints.unexpect(&temporary);
                let joining = self.joining.as_mut()?;
                joining.expected = None;
                let channel = joining.channel.take();
                let kept = self.superseded.take();
                match channel {
                    // Part of a signed path: kept like the path itself.
                    Some((t, _, outpoint)) if t == temporary && kept == Some(outpoint) => {}
                    Some((t, channel, outpoint)) if t == temporary => {
                        self.drop_channel(&channel, &lsp, Some(outpoint))
                    }
                    _ => self.drop_channel(&temporary, &lsp, None),
                }
                None
            }
            ClientAction::PersistRecord(record) => {
                let attempt = record.path.attempt;
                let joining = self.joining.as_ref()?;
                let state = State::new(joining.salt, Vec::new());
                let factory = Factory::new(Signed::Client(record), state);
                faults::point("client.path.store");
                let stored = match switch("client.path.unstored") {
                    true => Ok(()),
                    false => factory.store_all(&self.parts.store),
                };
                let stored = stored
                    .and_then(|()| registry::register(&factory, &self.parts.outpoints, &self.parts.index));
                match stored {
                    Ok(()) => {
                        faults::point("client.path.stored");
                        self.factories.insert(joining.id, factory);
                        Some(ClientInput::Persisted { attempt })
                    }
                    Err(e) => {
                        // Nothing is said to the LSP: it will time out and go on without us.
                        tracing::error!(error = %e, "factory not stored");
                        None
                    }
                }
            }
            ClientAction::Completed { record } => {
                self.parts.events.push(
                    "factory_joined",
                    json!({
                        "instance_id": hex::encode(record.path.instance_id),
                        "funding": record.path.funding.outpoint.to_string(),
                        "expiry_height": record.path.expiry_height,
                    }),
                );
                None
            }
            ClientAction::FundingSeen { transaction } => {
                let id = self.joining.take()?.id;
                self.funding_shown(&id, *transaction);
                None
            }
            ClientAction::Refused { code, text } => {
                self.joining_ended("factory_refused", &format!("{code:?}: {text}"));
                None
            }
            ClientAction::Aborted { text, .. } => {
                self.joining_ended("factory_aborted", &text);
                None
            }
            ClientAction::SetTimer { id, seconds } => {
                self.joining.as_mut()?.timer = Some(Timer::new(id, seconds));
                None
            }
        }
    }

    fn joining_ended(&mut self, kind: &str, reason: &str) {
        let Some(joining) = self.joining.take() else { return };
        tracing::warn!(reason, "no factory");
        self.parts.events.push(kind, json!({"instance_id": hex::encode(joining.id), "reason": reason}));
        self.abandon(&joining.id, reason);
        self.join_sent = false;
    }

    /// The LSP shows the funding transaction. Only the chain is believed; this is for display, and so
    /// that this node can publish it too.
    fn funding_shown(&mut self, id: &InstanceId, tx: bitcoin::Transaction) {
        let Some(factory) = self.factories.get_mut(id) else { return };
        let funding = factory.funding();
        let vout = usize::try_from(funding.outpoint.vout).unwrap_or(usize::MAX);
        let pays =
            tx.compute_txid() == funding.outpoint.txid && tx.output.get(vout) == Some(&funding.tx_out());
        if factory.state.stage != Stage::Signed || !pays {
            return;
        }
        factory.state.stage = Stage::Funded;
        factory.state.funding_tx = Some(StoredTx(tx));
        self.parts.index.watch([], factory.funding_inputs());
        if let Err(e) = factory.store_state(&self.parts.store) {
            tracing::error!(error = %e, "factory state not stored");
        }
        faults::point("client.funding.stored");
    }

    pub(super) async fn client_ldk_event(&mut self, event: LdkEvent) {
        match event {
            LdkEvent::OpenRequest { temporary, peer, offer } => self.accept_channel(temporary, peer, offer),
            LdkEvent::ChannelPending {
                channel, temporary: Some(temporary), outpoint, redeem_script, ..
            } => {
                let expected = self.joining.as_ref().and_then(|j| j.expected).map(|e| e.0);
                if expected != Some(temporary) {
                    // Of an attempt that is over: LDK was faster than the news of its end.
                    self.drop_unclaimed(&channel, outpoint);
                    return;
                }
                let Some(joining) = self.joining.as_mut() else { return };
                joining.channel = Some((temporary, channel, outpoint));
                faults::point("client.channel.pending");
                self.parts.outpoints.unexpect(&temporary);
                let details =
                    self.parts.manager.list_channels().into_iter().find(|c| c.channel_id == channel);
                let Some(capacity_sat) = details.map(|c| c.channel_value_satoshis) else { return };
                let funding_script = redeem_script.map(|s| s.to_p2wsh()).unwrap_or_default();
                let temporary_channel_id = temporary.0;
                let input = ClientInput::ChannelFunded {
                    temporary_channel_id,
                    outpoint,
                    funding_script,
                    capacity_sat,
                };
                self.client_input(input).await;
            }
            _ => {}
        }
    }

    /// Closes a factory channel that is in no factory's record, and has its monitor forgotten.
    pub(super) fn drop_unclaimed(&self, channel: &ChannelId, outpoint: bitcoin::OutPoint) {
        let claimed = |f: &Factory| f.channel_ids().is_ok_and(|ids| ids.contains(channel));
        let Some(lsp) = self.client_settings().map(|s| s.lsp_node_id) else { return };
        if self.parts.outpoints.get(channel).is_some() && !self.factories.values().any(claimed) {
            self.drop_channel(channel, &lsp, Some(outpoint));
        }
    }

    /// Accepts a 0-conf channel if it is exactly the plan's, else refuses it.
    fn accept_channel(&mut self, temporary: ChannelId, peer: PublicKey, offer: ChannelOffer) {
        let lsp = self.client_settings().map(|s| s.lsp_node_id);
        let planned = self.joining.as_ref().and_then(|j| {
            let (expected, capacity_sat, push_msat) = j.expected?;
            let to_self_delay = j.machine.plan()?.params.to_self_delay;
            let offer = ChannelOffer {
                capacity_sat,
                push_msat,
                to_self_delay,
                announced: false,
                zero_fee_commitments: true,
            };
            Some((expected, offer))
        });
        let manager = &self.parts.manager;
        if lsp != Some(peer) || planned != Some((temporary, offer)) {
            tracing::warn!(%peer, ?offer, ?planned, "channel is not the planned one");
            let reason = "not the channel of the plan".to_owned();
            let _ = manager.force_close_broadcasting_latest_txn(&temporary, &peer, reason);
            return;
        }
        let overrides = ChannelConfigOverrides {
            handshake_overrides: None,
            update_overrides: Some(ChannelConfigUpdate {
                force_close_avoidance_max_fee_satoshis: Some(0),
                ..Default::default()
            }),
        };
        let accepted = manager.accept_inbound_channel_from_trusted_peer(
            &temporary,
            &peer,
            user_channel_id(),
            TrustedChannelFeatures::ZeroConf,
            Some(overrides),
        );
        faults::point("client.channel.accepted");
        if let Err(e) = accepted {
            tracing::error!(error = ?e, "planned channel not accepted");
        }
    }

    pub(super) async fn client_timers(&mut self, now: Instant) {
        let Some(joining) = self.joining.as_mut() else { return };
        if let Some(timer) = joining.timer.filter(|t| t.at <= now) {
            joining.timer = None;
            self.client_input(ClientInput::Timeout { id: timer.id }).await;
        }
    }

    /// Ceremonies of the client, for display.
    pub(super) fn joining_info(&self) -> Option<api::FactoryInfo> {
        let joining = self.joining.as_ref()?;
        if self.factories.contains_key(&joining.id) {
            return None;
        }
        Some(api::FactoryInfo {
            instance_id: hex::encode(joining.id()),
            state: api::FactoryState::Inviting,
            failure: None,
            funding: None,
            funding_sat: 0,
            funding_confirmations: 0,
            birth_height: self.parts.height(),
            expiry_height: 0,
            clients: Vec::new(),
            excluded: Vec::new(),
            tree: Vec::new(),
            deadlines: Vec::new(),
            report: None,
            close: None,
            exits: Vec::new(),
            exit_reserve: None,
            leaves: Vec::new(),
        })
    }
}
