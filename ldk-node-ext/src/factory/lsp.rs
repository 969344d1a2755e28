//! The LSP's side of creating a factory: carries out what `LspCeremony` says.

use std::collections::VecDeque;

use bitcoin::{Amount, OutPoint};
use bolt_tlv::payload;
use factory_core::ceremony::{LspAction, LspCeremony, LspConfig, LspInput, ParamsChoice, Timeouts};
use factory_core::faults::switch;
use lightning::ln::types::ChannelId;
use lightning::util::errors::APIError;
use serde_json::json;

use super::creating::{api_state, AttemptChannel, Creating};
use super::stored::{Factory, Signed, Stage, State, StoredTx};
use super::{plan, registry, user_channel_id, Service, Timer, MAX_SHOWN_FAILURES};
use crate::api::{self, ExcludedClient, FactoryMember, FactoryState, MemberState};
use crate::error::Error;
use crate::faults;
use crate::ldk::InstanceId;

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
    pub(super) async fn lsp_input(&mut self, id: InstanceId, input: LspInput) {
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
                let capacity_sat = capacity_sat + u64::from(switch("lsp.channel.capacity"));
                let opened = if switch("lsp.channel.not_opened") {
                    Err(APIError::APIMisuseError { err: "a switch".into() })
                } else {
                    self.parts.manager.create_channel(
                        client,
                        capacity_sat,
                        push_msat,
                        user_channel_id(),
                        Some(temporary),
                        Some(self.parts.config.factory_channel_config(to_self_delay)),
                    )
                };
                if let Some(c) = self.creating.get_mut(&id) {
                    c.channels.push(AttemptChannel { temporary, funded: None, client });
                }
                faults::point("lsp.channel.opened");
                match opened {
                    Ok(_) => Vec::new(),
                    Err(_) if !self.parts.factory_messages.ready_peers().contains(&client) => {
                        vec![LspInput::ClientGone { client }]
                    }
                    Err(e) => vec![LspInput::ChannelNotMade {
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
                        faults::point("lsp.funding.built");
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
                let manager = &self.parts.manager;
                let given = manager.unsafe_manual_funding_transaction_generated(temporary, client, txo);
                faults::point("lsp.channel.funded");
                match given {
                    Ok(()) => Vec::new(),
                    // The channel is not there any more: the client has closed it, or is gone.
                    Err(APIError::ChannelUnavailable { err: reason }) => {
                        vec![LspInput::ChannelFailed { client, temporary_channel_id, reason }]
                    }
                    Err(e) => vec![LspInput::ChannelNotMade {
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
                let factory = Factory::new(Signed::Lsp(record), state);
                faults::point("lsp.tree.store");
                let stored = factory
                    .store_all(&self.parts.store)
                    .and_then(|()| registry::register(&factory, &self.parts.outpoints, &self.parts.index));
                match stored {
                    Ok(()) => {
                        faults::point("lsp.tree.stored");
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
                if let Some(state) = self.creating.get(&id).map(|c| c.state) {
                    self.note_excluded(client, state, &reason);
                }
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
            if tx.compute_txid() != factory.funding().outpoint.txid && !switch("lsp.funding.any_txid") {
                return Err(Error::Wallet("signing changed the txid of the funding transaction".into()));
            }
            factory.state.funding_tx = Some(StoredTx(tx.clone()));
            factory.state.stage = Stage::Funded;
            faults::point("lsp.funding.store");
            if !switch("lsp.funding.unstored") {
                factory.store_state(&self.parts.store)?;
            }
            faults::point("lsp.funding.stored");
            Ok(tx)
        });
        match ready {
            Ok(tx) => {
                let (attempt, instance_id) = (factory.attempt(), *id);
                let Signed::Lsp(record) = &factory.signed else { return Vec::new() };
                let clients = record.client_ids.clone();
                self.parts.index.watch([], factory.funding_inputs());
                self.parts.broadcaster.send(vec![tx.clone()], crate::ldk::FUNDING);
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
}
