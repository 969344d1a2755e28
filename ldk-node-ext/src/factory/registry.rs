//! Loading factories at start: what to watch, what to hold, and what a crash left behind.

use std::collections::HashMap;

use bolt_tlv::payload::{self, Payload};
use factory_core::params::FUNDING_GIVE_UP;
use lightning::ln::types::ChannelId;

use super::admission::Admission;
use super::stored::{Factory, Signed, Stage};
use super::{finals, is_marked, Service};
use crate::chain::ChainIndex;
use crate::config::{NodeConfig, RoleConfig};
use crate::error::Error;
use crate::faults;
use crate::ldk::{channel_id, InstanceId, Outpoints};
use crate::node::mark_void;
use crate::store::Store;
use crate::util::lock;
use crate::wallet::Wallet;

/// The factories in the store.
pub(crate) struct Loaded {
    pub(super) factories: HashMap<InstanceId, Factory>,
    pub(super) admission: Admission,
}

/// Reads all factories and checks each of them: a tree that does not verify is not used.
///
/// # Errors
/// [`Error::Corrupt`] naming the factory, and when the role does not fit the store.
pub(crate) fn load(store: &Store, config: &NodeConfig) -> Result<Loaded, Error> {
    let mut factories = HashMap::new();
    for factory in Factory::load_all(store)? {
        let id = factory.id();
        let corrupt =
            |reason: String| Error::Corrupt { key: format!("factories/{}", hex::encode(id)), reason };
        match (&factory.signed, &config.role) {
            (Signed::Lsp(record), RoleConfig::Lsp(_)) => {
                for index in 0..record.plan.members.len() {
                    let path = record.leaf_path(index);
                    path.and_then(|p| p.verify()).map_err(|e| corrupt(e.to_string()))?;
                }
            }
            (Signed::Client(record), RoleConfig::Client(_)) => {
                if record.channel().is_none_or(|c| c.key != record.own_key) {
                    return Err(corrupt("the channel is not this client's".into()));
                }
                record.path.verify().map_err(|e| corrupt(e.to_string()))?;
            }
            _ => return Err(corrupt("belongs to the other role (LSP or client)".into())),
        }
        factories.insert(id, factory);
    }
    finals::load(store, factories.values_mut())?;
    // A crash while an attempt was given a name of its own leaves it under both names.
    let aliased: Vec<(InstanceId, u16)> = factories
        .values()
        .filter(|f: &&Factory| f.state.alias.is_some())
        .map(|f| (f.instance_id(), f.attempt()))
        .collect();
    factories.retain(|_, f| f.state.alias.is_some() || !aliased.contains(&(f.instance_id(), f.attempt())));
    Ok(Loaded { factories, admission: Admission::load(store, config)? })
}

impl Loaded {
    /// Tells the wrappers and the index about every factory, before anything moves.
    pub(crate) fn register(
        &self,
        outpoints: &Outpoints,
        index: &ChainIndex,
        wallet: &Wallet,
    ) -> Result<(), Error> {
        for factory in self.factories.values() {
            register(factory, outpoints, index)?;
            if factory.state.stage == Stage::Funded {
                if let (Signed::Lsp(_), Some(tx)) = (&factory.signed, &factory.state.funding_tx) {
                    if index.confirmation(&tx.0.compute_txid()).is_none() {
                        wallet.reserve(&tx.0);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Tells the wrappers and the index about a factory.
pub(super) fn register(factory: &Factory, outpoints: &Outpoints, index: &ChainIndex) -> Result<(), Error> {
    index.expect_output(factory.funding().outpoint, factory.funding().tx_out());
    index.watch(factory.watched_txids(), factory.watched_outpoints()?);
    let claim_budget = factory.params().claim_budget(factory.params().confirm_blocks)?;
    let (funding, min_depth) = (factory.funding().outpoint, u32::from(factory.params().min_depth));
    for (outpoint, _) in factory.channels()? {
        let id = outpoints.insert(factory.id(), outpoint);
        outpoints.set_terms(&id, claim_budget, funding, min_depth);
        if matches!(factory.state.stage, Stage::Live | Stage::Closed | Stage::Exited) {
            outpoints.set_released(&id);
        }
        let places = factory.places(&outpoint);
        for place in &places {
            outpoints.add_place(id, *place);
        }
        outpoints.set_place(&id, factory.newest_place(&outpoint));
        let there = places.iter().any(|place| index.confirmation(&place.txid).is_some());
        outpoints.set_on_chain(&outpoint, there);
    }
    Ok(())
}

impl Service {
    /// A ceremony does not survive a restart: its nonces were in memory only. What it had stored or
    /// opened is given up; nobody has lost anything, since the funding transaction was not out.
    pub(super) fn clean_up_after_restart(&mut self) {
        if self.is_lsp() {
            let unfunded: Vec<InstanceId> =
                self.factories.values().filter(|f| f.state.stage == Stage::Signed).map(Factory::id).collect();
            for id in unfunded {
                self.make_void(&id, "the provider restarted before the funding transaction was out");
            }
        }
        let settled: Vec<ChannelId> = self
            .factories
            .values()
            .filter(|f| {
                let closed = f.state.close.as_ref().is_some_and(|c| c.signed.is_some());
                closed || matches!(f.state.stage, Stage::Closed | Stage::Void)
            })
            .filter_map(|f| f.channel_ids().ok())
            .flatten()
            .collect();
        lock(&self.parts.settled).extend(settled);
        let distributed = self.factories.values().flat_map(|f| {
            let paid = move |first| f.state.exits.get(&first).is_some_and(|e| e.distribution.is_some());
            f.leaves().into_iter().filter(move |l| paid(l.first)).flat_map(|l| l.channels)
        });
        lock(&self.parts.settled).extend(distributed.map(|(o, _)| channel_id(o)));
        // A client keeps the channels of what it has abandoned, see [`Self::abandon`].
        let is_lsp = self.is_lsp();
        let alive: Vec<ChannelId> = self
            .factories
            .values()
            .filter(|f| !is_lsp || f.state.stage != Stage::Void)
            .filter_map(|f| f.channel_ids().ok())
            .flatten()
            .collect();
        for c in self.parts.manager.list_channels() {
            if is_marked(c.user_channel_id) && !alive.contains(&c.channel_id) {
                tracing::warn!(channel = %c.channel_id, "channel of a factory that was never made, closing");
                let outpoint = c.funding_txo.map(|o| o.into_bitcoin_outpoint());
                self.drop_channel(&c.channel_id, &c.counterparty.node_id, outpoint);
            }
        }
    }

    /// A close does survive a restart, from the moment its first channel is shut down.
    pub(super) async fn resume_closes(&mut self) {
        if !self.is_lsp() {
            return;
        }
        let live: Vec<InstanceId> =
            self.factories.values().filter(|f| f.state.stage == Stage::Live).map(Factory::id).collect();
        for id in live {
            if let Err(e) = self.resume_lsp_close(&id).await {
                tracing::error!(instance = hex::encode(id), error = %e, "close cannot go on");
            }
        }
    }

    /// Closes a channel of an attempt that is given up. Nothing of it can be broadcast: its outpoint
    /// stays held, and its monitor is not loaded any more after the next start.
    pub(super) fn drop_channel(
        &self,
        id: &ChannelId,
        peer: &bitcoin::secp256k1::PublicKey,
        outpoint: Option<bitcoin::OutPoint>,
    ) {
        if let Some(outpoint) = outpoint {
            let id = self.parts.outpoints.insert([0; 32], outpoint);
            lock(&self.parts.settled).insert(id);
            if let Err(e) = mark_void(&self.parts.store, &id, "factory attempt given up") {
                tracing::error!(channel = %id, error = %e, "not marked");
            }
        }
        let reason = "factory attempt given up".to_owned();
        if let Err(e) = self.parts.manager.force_close_broadcasting_latest_txn(id, peer, reason) {
            tracing::debug!(channel = %id, error = ?e, "nothing to close");
        }
    }

    /// A client stops waiting for a factory whose funding transaction is not on the chain. Only the
    /// LSP knows whether it ever will be: so the signed path, LDK's channel and the watch on the
    /// funding output are all kept until T, and if it confirms after all the path is the way out.
    pub(super) fn abandon(&mut self, id: &InstanceId, reason: &str) {
        if self.end_unfunded(id, reason).is_some() {
            self.settle_channels(id);
        }
    }

    /// Marks a factory that has no confirmed funding as over.
    fn end_unfunded(&mut self, id: &InstanceId, reason: &str) -> Option<Factory> {
        let factory = self.factories.get_mut(id)?;
        if !matches!(factory.state.stage, Stage::Signed | Stage::Funded | Stage::Live) {
            return None;
        }
        factory.state.stage = Stage::Void;
        factory.state.failure = Some(reason.to_owned());
        factory.state.exits.clear();
        if let Err(e) = factory.store_state(&self.parts.store) {
            tracing::error!(error = %e, "factory state not stored");
        }
        faults::point("node.void.stored");
        let data = serde_json::json!({"instance_id": hex::encode(id), "reason": reason});
        self.parts.events.push("factory_failed", data);
        Some(factory.clone())
    }

    /// After T nothing of an abandoned factory matters any more.
    pub(super) fn forget_abandoned(&mut self, id: &InstanceId) {
        let lsp = self.client_settings().map(|c| c.lsp_node_id);
        let Some(factory) = self.factories.get(id).filter(|f| !f.state.forgotten) else { return };
        for (outpoint, client) in factory.channels().unwrap_or_default() {
            if let Some(peer) = client.or(lsp) {
                self.drop_channel(&channel_id(outpoint), &peer, Some(outpoint));
            }
        }
        // Last: what is forgotten is not looked at again.
        let Some(factory) = self.factories.get_mut(id) else { return };
        factory.state.forgotten = true;
        if let Err(e) = factory.store_state(&self.parts.store) {
            tracing::error!(error = %e, "factory state not stored");
        }
    }

    /// Ends a factory whose funding transaction was never signed, or was double-spent (LSP).
    pub(super) fn make_void(&mut self, id: &InstanceId, reason: &str) {
        let Some(factory) = self.end_unfunded(id, reason) else { return };
        if let Some(tx) = &factory.state.funding_tx {
            self.parts.wallet.release(&tx.0);
        }
        for (outpoint, client) in factory.channels().unwrap_or_default() {
            if let Some(peer) = client {
                self.drop_channel(&channel_id(outpoint), &peer, Some(outpoint));
            }
        }
    }

    /// A message to a peer; false if it cannot be sent now.
    pub(super) fn send(&self, peer: bitcoin::secp256k1::PublicKey, payload: impl Into<Payload>) -> bool {
        let payload = payload.into();
        faults::message(self.is_lsp(), &payload);
        let sent = self.parts.factory_messages.send(peer, &payload);
        faults::message_sent(self.is_lsp(), &payload, &self.parts.peers);
        tracing::debug!(%peer, number = payload.number(), sent, "factory message");
        sent
    }

    /// Tells a client that has come back what has become of its unfinished factories (LSP).
    pub(super) fn remind(&self, client: bitcoin::secp256k1::PublicKey) {
        let oldest = self.parts.height().saturating_sub(FUNDING_GIVE_UP);
        for factory in self.factories.values() {
            let Signed::Lsp(record) = &factory.signed else { continue };
            // Older ones the client has given up by itself.
            let recent = factory.birth_height() >= oldest || factory.state.stage == Stage::Live;
            if record.index_of(&client).is_none() || !recent {
                continue;
            }
            let (instance_id, attempt) = (factory.instance_id(), factory.attempt());
            let close_died =
                factory.state.close.as_ref().is_none_or(|c| c.machine.is_none() && c.signed.is_none());
            match (factory.state.stage, &factory.state.funding_tx) {
                (Stage::Live, _)
                    if factory.state.close_attempts > 0
                        && close_died
                        && !self.closing.contains_key(&factory.id()) =>
                {
                    // It may still hold to a consent of which nothing came.
                    let (attempt, text) =
                        (factory.state.close_attempts, "that close came to nothing".to_owned());
                    self.send(client, payload::CloseAbort { instance_id, attempt, code: 104, text });
                }
                (Stage::Void, _) => {
                    let text = factory.state.failure.clone().unwrap_or_default().chars().take(200).collect();
                    self.send(
                        client,
                        payload::Abort { instance_id, attempt, code: 103, text, culprit: None },
                    );
                }
                (Stage::Funded, Some(tx)) => {
                    self.send(client, payload::Funded { instance_id, attempt, transaction: tx.0.clone() });
                }
                _ => {}
            }
        }
    }
}
