//! Liquidity that is sold and given back: a channel's capacity grows out of the stock of its leaf, or shrinks into it,
//! or takes from another channel of the node that advances.
//!
//! The LSP's operator says so over the API; a client asks, and the LSP decides by its settings. What it costs is agreed
//! and paid elsewhere.

use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::OutPoint;
use bolt_tlv::payload::{self, Payload};
use factory_core::advance::{AdvanceReason, LeafShares, NewestTree};
use factory_core::record::LspFactoryRecord;
use factory_core::refuse::clip;
use serde_json::json;
use tokio::time::Instant;

use super::capacity::difference;
use super::rotate_begin::Wish;
use super::stored::{Factory, Signed, Stage};
use super::Service;
use crate::api::{LiquidityAnswer, LiquidityRequest};
use crate::error::Error;
use crate::ldk::{channel_id, InstanceId};
use crate::node::parse_node_id;

/// How long a client waits for the answer to what it asks.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long a client waits between two changes of its channel that it asks for itself, blocks: each uses up a state of
/// its leaf.
const ASK_PAUSE_BLOCKS: u32 = 6;
/// Updates of a leaf that its clients cannot use up by asking.
const KEPT_UPDATES: u64 = 2;
/// [`payload::AdvanceDecline`]'s code for what the settings do not allow.
const NOT_ALLOWED: u16 = 1;
/// That for what is not possible now.
const NOT_NOW: u16 = 2;

impl Service {
    /// The API's `liquidity`.
    pub(super) async fn liquidity_command(
        &mut self,
        id: InstanceId,
        request: &LiquidityRequest,
    ) -> Result<LiquidityAnswer, Error> {
        if request.change_sat == 0 {
            return Err(Error::invalid("change_sat", "must not be 0"));
        }
        let answer = match (self.is_lsp(), &request.client) {
            (true, Some(client)) => {
                let client = parse_node_id(client)?;
                let from = request.from.as_deref().map(parse_node_id).transpose()?;
                self.change_capacity(id, client, from, request)
            }
            (true, None) => Err(Error::invalid("client", "is needed at an LSP")),
            (false, None) if request.from.is_none() => self.ask_for_capacity(id, request.change_sat),
            (false, _) => Err(Error::invalid("client", "an LSP's to say: a client asks for itself")),
        };
        self.parts.peers.process_events();
        answer
    }

    /// Begins a rotation that changes the capacity of a client's channel.
    fn change_capacity(
        &mut self,
        id: InstanceId,
        client: PublicKey,
        from: Option<PublicKey>,
        request: &LiquidityRequest,
    ) -> Result<LiquidityAnswer, Error> {
        let factory = self.live(&id)?;
        let Signed::Lsp(record) = &factory.signed else {
            return Err(Error::Conflict("only an LSP sells".into()));
        };
        let (changes, capacity_sat) = new_shares(factory, record, client, from, request.change_sat)?;
        let reason = match (from, request.change_sat > 0) {
            (Some(_), _) => AdvanceReason::Move,
            (None, true) => AdvanceReason::Sell,
            (None, false) => AdvanceReason::GiveBack,
        };
        let begun =
            self.begin_rotation(id, client, Wish { level: request.level, changes, reason, force: false })?;
        Ok(LiquidityAnswer { attempt: Some(begun.attempt), from: begun.from, capacity_sat })
    }

    /// Asks the LSP for another capacity (client).
    fn ask_for_capacity(&mut self, id: InstanceId, change_sat: i64) -> Result<LiquidityAnswer, Error> {
        let lsp = self.client_settings().map(|s| s.lsp_node_id);
        let lsp = lsp.ok_or_else(|| Error::Conflict("only a client asks".into()))?;
        let factory = self.live(&id)?;
        let Some((channel, _)) = factory.channels()?.first().copied() else {
            return Err(Error::not_found("channel in this factory".to_owned()));
        };
        let first = factory.leaf_of(&channel).map_or(0, |leaf| leaf.first);
        let from = factory.position(first)?;
        let open = self.parts.manager.list_channels();
        let details = open.iter().find(|c| c.channel_id == channel_id(channel) && c.is_channel_ready);
        let now = details.ok_or_else(|| Error::Conflict("the channel is not open".into()))?;
        if self.is_changing(&channel) || now.channel_value_satoshis != factory.capacity_of(&channel)? {
            return Err(Error::Unavailable("the change before is not over".into()));
        }
        let capacity_sat = now.channel_value_satoshis.checked_add_signed(change_sat);
        let capacity_sat = capacity_sat.ok_or_else(|| Error::invalid("change_sat", "out of range"))?;
        let following = self.following(&id)?;
        let following = following.ok_or_else(|| Error::Conflict("the factory is not alive".into()))?;
        if following.phase().is_some() {
            return Err(Error::Conflict("a rotation of the leaf is under way".into()));
        }
        following.wanted_sat = Some(capacity_sat);
        following.asked_at = Instant::now();
        self.rotation_failures.remove(&(id, first));
        if !self.send(lsp, payload::AdvanceAsk { instance_id: id, capacity_sat }) {
            self.unwant(&id);
            return Err(Error::Unavailable("the LSP is not connected".into()));
        }
        Ok(LiquidityAnswer { attempt: None, from, capacity_sat })
    }

    fn unwant(&mut self, id: &InstanceId) {
        if let Some(following) = self.following.get_mut(id) {
            following.wanted_sat = None;
        }
    }

    /// The LSP will not do what we asked for.
    pub(super) fn capacity_declined(&mut self, id: InstanceId, payload: &Payload) {
        let Payload::AdvanceDecline(m) = payload else { return };
        if self.following.get(&id).is_some_and(|f| f.wanted_sat.is_some()) {
            self.give_up_asking(&id, &format!("the LSP declines: {}", m.text));
        }
    }

    fn give_up_asking(&mut self, id: &InstanceId, reason: &str) {
        self.unwant(id);
        self.note_failure(id, reason);
        let data = json!({"instance_id": hex::encode(id), "reason": reason});
        self.parts.events.push("liquidity_declined", data);
    }

    /// Remembers why the last rotation of the own leaf came to nothing (client).
    pub(super) fn note_failure(&mut self, id: &InstanceId, reason: &str) {
        let leaf = self.factories.get(id).and_then(|f| f.leaves().into_iter().next());
        if let Some(leaf) = leaf {
            self.rotation_failures.insert((*id, leaf.first), reason.to_owned());
        }
    }

    /// Clients whose LSP does not answer.
    pub(super) fn asking_timers(&mut self, now: Instant) {
        let waits = self.following.iter().filter(|(_, f)| f.is_asking() && f.asked_at + ANSWER_WITHIN <= now);
        let late: Vec<InstanceId> = waits.map(|(id, _)| *id).collect();
        for id in late {
            self.give_up_asking(&id, "the LSP does not answer");
        }
    }

    /// A client asks for another capacity.
    pub(super) fn asked_for_capacity(&mut self, id: InstanceId, client: PublicKey, payload: &Payload) {
        let Payload::AdvanceAsk(m) = payload else { return };
        let known = self.factories.get(&id).filter(|f| f.state.stage == Stage::Live);
        let Some(channel) = known.and_then(|f| f.channel_with(&client)) else { return };
        if let Err((code, text)) = self.take_ask(id, client, &channel, m.capacity_sat) {
            tracing::debug!(%client, text, "another capacity is declined");
            self.send(client, payload::AdvanceDecline { instance_id: id, code, text: clip(&text) });
        }
    }

    fn take_ask(
        &mut self,
        id: InstanceId,
        client: PublicKey,
        channel: &OutPoint,
        wanted_sat: u64,
    ) -> Result<(), (u16, String)> {
        let not_now = |e: Error| (NOT_NOW, e.to_string());
        let free_sat = self.lsp_settings().map_err(not_now)?.free_liquidity_sat;
        let factory = self.found(&id).map_err(not_now)?;
        let Signed::Lsp(record) = &factory.signed else { return Ok(()) };
        let index = record.index_of(&client).unwrap_or(usize::MAX);
        let born_sat = record.plan.members.get(index).map_or(0, |m| m.share.capacity_sat);
        let now_sat = factory.capacity_of(channel).map_err(not_now)?;
        let first = factory.leaf_of(channel).map_or(0, |leaf| leaf.first);
        if free_sat == 0 {
            return Err((NOT_ALLOWED, "this LSP changes capacities itself: ask its operator".into()));
        }
        let left = factory.params().remaining(factory.position(first).map_err(not_now)?);
        if left.map_err(|e| not_now(e.into()))?.leaf() <= KEPT_UPDATES {
            return Err((NOT_NOW, format!("the last {KEPT_UPDATES} updates of the leaf are kept back")));
        }
        let most_sat = born_sat.saturating_add(free_sat);
        if wanted_sat > now_sat && wanted_sat > most_sat {
            let text = format!("capacity_sat {wanted_sat}: a client may take up to {most_sat} by itself");
            return Err((NOT_ALLOWED, text));
        }
        let height = self.parts.height();
        if let Some(next) = self.asked.get(&client).map(|at| at.saturating_add(ASK_PAUSE_BLOCKS)) {
            if next > height {
                return Err((NOT_NOW, format!("asked too often: the next time at height {next}")));
            }
        }
        let change_sat = difference(now_sat, wanted_sat).map_err(not_now)?;
        if change_sat == 0 {
            return Err((NOT_ALLOWED, format!("capacity_sat {wanted_sat}: is what the channel has")));
        }
        let request = LiquidityRequest { change_sat, ..LiquidityRequest::default() };
        self.change_capacity(id, client, None, &request).map_err(not_now)?;
        // Only of clients that are in a factory, so there are not many.
        self.asked.insert(client, height);
        Ok(())
    }
}

/// The leaf shares after a change, and the client's capacity, sat.
fn new_shares(
    factory: &Factory,
    record: &LspFactoryRecord,
    client: PublicKey,
    from: Option<PublicKey>,
    change_sat: i64,
) -> Result<(Vec<LeafShares>, u64), Error> {
    let index_of = |client: PublicKey| {
        let index = record.index_of(&client);
        index.ok_or_else(|| Error::not_found(format!("client {client} in this factory")))
    };
    let tree = NewestTree::new(record, &factory.advances.lsp)?;
    let mut changes: Vec<LeafShares> = Vec::new();
    let mut add = |index: usize, to_channel: i64, to_stock: i64| -> Result<u64, Error> {
        let leaf = tree.leaf(index)?;
        let first = u32::try_from(leaf.first).unwrap_or(u32::MAX);
        let at = match changes.iter().position(|c| c.first == first) {
            Some(at) => at,
            None => {
                let capacities_sat = leaf.members.iter().map(|m| m.capacity_sat).collect();
                changes.push(LeafShares { first, capacities_sat, stock_sat: leaf.stock_sat });
                changes.len().saturating_sub(1)
            }
        };
        let missing = || Error::not_found(format!("client {index} in this factory"));
        let shares = changes.get_mut(at).ok_or_else(missing)?;
        let stock = shares.stock_sat.checked_add_signed(to_stock).ok_or_else(|| {
            Error::invalid("change_sat", format!("the leaf's stock holds {} sat", shares.stock_sat))
        })?;
        let capacity = shares.capacities_sat.get_mut(index.saturating_sub(leaf.first)).ok_or_else(missing)?;
        let before = *capacity;
        let small = || Error::invalid("change_sat", format!("a channel has {before} sat"));
        *capacity = before.checked_add_signed(to_channel).ok_or_else(small)?;
        shares.stock_sat = stock;
        Ok(*capacity)
    };
    let back = change_sat.checked_neg().ok_or_else(|| Error::invalid("change_sat", "out of range"))?;
    let capacity = match from {
        None => add(index_of(client)?, change_sat, back)?,
        Some(from) if from == client => return Err(Error::invalid("from", "must be another client")),
        Some(from) => {
            add(index_of(from)?, back, 0)?;
            add(index_of(client)?, change_sat, 0)?
        }
    };
    Ok((changes, capacity))
}
