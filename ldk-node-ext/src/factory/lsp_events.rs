//! What a ceremony of the LSP hears: clients' messages, connections, LDK, timers.

use bitcoin::secp256k1::PublicKey;
use bolt_tlv::payload::{self, Payload};
use factory_core::ceremony::LspInput;
use factory_core::params::FUNDING_GIVE_UP;
use lightning::ln::types::ChannelId;
use tokio::time::Instant;

use super::creating::member_state;
use super::stored::{Factory, Signed, Stage};
use super::{LdkEvent, Service};
use crate::api;
use crate::error::Error;
use crate::faults;
use crate::ldk::InstanceId;

/// A client that asked to be in a factory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) min_capacity_sat: u64,
    pub(super) max_capacity_sat: u64,
}

/// Clients remembered as waiting, at most.
const MAX_WAITING_CLIENTS: usize = 10_000;
impl Service {
    pub(super) async fn client_connected(&mut self, client: PublicKey) {
        self.remind(client);
        self.remind_of_rotations(client);
        self.resume_all_resizes(client);
    }

    pub(super) async fn client_gone(&mut self, client: PublicKey) {
        // `Join` is said on every connection.
        self.waiting.remove(&client);
        self.close_client_gone(client).await;
        self.rotation_client_gone(client);
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
        if let Payload::RelayAsk(ask) = &payload {
            self.send(client, self.parts.relay_asked(client, ask));
            return;
        }
        if self.close_message(client, &payload).await || self.advance_message(client, &payload).await {
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
        let Some(id) = payload.instance_id().filter(|id| self.creating.contains_key(id)) else {
            tracing::debug!(%client, number = payload.number(), "message of no factory under way");
            return;
        };
        self.report_lost_channels(id, &client, &payload).await;
        if let (Some(state), Some(c)) = (member_state(&payload), self.creating.get_mut(&id)) {
            c.set_member(&client, state, None);
        }
        self.lsp_input(id, LspInput::Message { client, payload }).await;
    }

    /// A channel that LDK has closed may not have been reported yet. A ceremony has to hear of it before it hears
    /// anything else of that client, and of everybody's before the message that may let the funding transaction out.
    async fn report_lost_channels(&mut self, id: InstanceId, client: &PublicKey, payload: &Payload) {
        let Some(creating) = self.creating.get(&id) else { return };
        let manager = &self.parts.manager;
        let open = |peer: &PublicKey| {
            manager.list_channels_with_counterparty(peer).into_iter().map(|c| c.channel_id).collect()
        };
        for channel in creating.lost_channels(client, payload, open) {
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
        if let Some(c) = self.creating.get(id) {
            // What is stored may be of an attempt that is over.
            return c.has(client) && c.machine.attempt() == attempt;
        }
        let made = self.factories.get(id).is_some_and(|f| match &f.signed {
            Signed::Lsp(r) => {
                f.state.stage != Stage::Void && r.attempt == attempt && r.index_of(client).is_some()
            }
            Signed::Client(_) => false,
        });
        made
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
                let of_peer = self.parts.manager.list_channels_with_counterparty(&peer);
                let details = of_peer.into_iter().find(|c| c.channel_id == channel);
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
                faults::point("lsp.commitment.held");
                self.lsp_input(id, input).await;
            }
            LdkEvent::OpenRequest { temporary, peer, .. } => {
                // A client that opens under an id of one of our plans: not in the protocol.
                let reason = "this channel id belongs to a plan".to_owned();
                let _ = self.parts.manager.force_close_broadcasting_latest_txn(&temporary, &peer, reason);
            }
            LdkEvent::ChannelPending { .. }
            | LdkEvent::ReadyToSign { .. }
            | LdkEvent::ChangeFailed { .. }
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
                waiting: ready.contains(id) && self.is_free(id),
                min_capacity_sat: w.min_capacity_sat,
                max_capacity_sat: w.max_capacity_sat,
            })
            .collect();
        list.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        Ok(list)
    }

    /// Whether a client can be in the next factory: it is in none, and not paused.
    pub(super) fn is_free(&self, client: &PublicKey) -> bool {
        !self.is_busy(client) && self.admission.paused(client, self.parts.height()).is_none()
    }

    /// Whether a client is in a ceremony or in a factory that is alive.
    fn is_busy(&self, client: &PublicKey) -> bool {
        let height = self.parts.height();
        // One whose funding lingers the clients have given up, and may be in another.
        let given_up = |f: &Factory| {
            f.state.stage == Stage::Funded && height >= f.birth_height().saturating_add(FUNDING_GIVE_UP)
        };
        let alive = |f: &Factory| {
            matches!(f.state.stage, Stage::Signed | Stage::Funded | Stage::Live) && !given_up(f)
        };
        let member = |f: &Factory| match &f.signed {
            Signed::Lsp(r) => r.index_of(client).is_some() && !f.state.left.contains(client),
            Signed::Client(_) => false,
        };
        self.creating.values().any(|c| c.has(client))
            || self.factories.values().any(|f| alive(f) && member(f))
    }
}
