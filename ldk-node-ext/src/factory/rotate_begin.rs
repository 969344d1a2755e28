//! How a rotation begins at the LSP, and why it may not.

use std::collections::BTreeMap;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::OutPoint;
use factory_core::advance::{AdvanceReason, AdvanceRequest, LeafShares, LspAdvance, LspAdvanceConfig};
use factory_core::record::LspFactoryRecord;
use lightning::ln::channel_state::ChannelDetails;
use serde_json::json;
use tokio::time::Instant;

use super::rotate::LONGEST_PHASE;
use super::rotate_limits::PAUSE;
use super::rotate_lsp::LspRotating;
use super::stored::{Factory, Leaf, Signed};
use super::Service;
use crate::api::{NodeLevel, RotateRequest, Rotation};
use crate::error::Error;
use crate::faults;
use crate::ldk::{channel_id, InstanceId, MAX_REALS};
use crate::node::parse_node_id;

/// Longest phase of a rotation that changes a capacity: the channel is quiescent for up to four of them, and LDK
/// disconnects after 60 s of that.
const LONGEST_CHANGE: Duration = Duration::from_secs(14);

/// What a rotation shall do.
pub(super) struct Wish {
    /// Which node above the client advances.
    pub(super) level: NodeLevel,
    /// Shares that change.
    pub(super) changes: Vec<LeafShares>,
    /// Why.
    pub(super) reason: AdvanceReason,
    /// Also if a client has just wasted a position.
    pub(super) force: bool,
}

impl Service {
    /// The API's `rotate`.
    pub(super) async fn rotate_command(
        &mut self,
        id: InstanceId,
        request: &RotateRequest,
    ) -> Result<Rotation, Error> {
        if !self.is_lsp() {
            return Err(Error::Conflict("rotations begin with the LSP".into()));
        }
        let client = parse_node_id(&request.client)?;
        let wish = Wish {
            level: request.level,
            changes: Vec::new(),
            reason: AdvanceReason::Rotate,
            force: request.force,
        };
        let rotation = self.begin_rotation(id, client, wish)?;
        self.parts.peers.process_events();
        Ok(rotation)
    }

    /// Starts a rotation of a node above a client, or says why it cannot be: nothing has happened then.
    pub(super) fn begin_rotation(
        &mut self,
        id: InstanceId,
        client: PublicKey,
        wish: Wish,
    ) -> Result<Rotation, Error> {
        let Wish { level, changes, reason, force } = wish;
        let factory = self.live(&id)?;
        let Signed::Lsp(record) = &factory.signed else {
            return Err(Error::Conflict("rotations begin with the LSP".into()));
        };
        let index = record.index_of(&client);
        let index = index.ok_or_else(|| Error::not_found(format!("client {client} in this factory")))?;
        let place = u32::try_from(index).unwrap_or(u32::MAX);
        let deepest = factory.params().shape.arity.len();
        let level = level.of(deepest);
        let node = record.nodes.iter().find(|n| {
            usize::try_from(n.level).is_ok_and(|l| l == level) && (n.first..n.end).contains(&place)
        });
        let node = node.ok_or_else(|| Error::invalid("level", format!("must be from 0 to {deepest}")))?;
        let span = node.first..node.end;
        let leaves: Vec<Leaf> = factory.leaves().into_iter().filter(|l| span.contains(&l.first)).collect();
        self.may_rotate(factory, &leaves)?;
        let rests = |(channel, _): &&(OutPoint, Option<PublicKey>)| self.is_resting(factory, channel);
        if let Some((channel, _)) =
            leaves.iter().flat_map(|l| &l.channels).find(rests).filter(|_| !changes.is_empty())
        {
            let text =
                format!("a change of channel {} has failed: rotate its leaf first", channel_id(*channel));
            return Err(Error::Conflict(text));
        }
        let channels = || leaves.iter().flat_map(|leaf| &leaf.channels);
        let unlocked = channels().find(|(c, _)| self.is_changing(c) && !self.is_resting(factory, c));
        if let Some((channel, client)) = unlocked {
            let whose = client.map(|c| c.to_string()).unwrap_or_default();
            let text =
                format!("the capacity of channel {} with {whose} is being changed", channel_id(*channel));
            return Err(Error::Unavailable(text));
        }
        let left = factory.params().remaining(factory.position(place)?)?.leaf();
        if !force {
            self.check_wasteful(&id, &leaves, left)?;
        }
        let own = leaves.iter().rfind(|leaf| leaf.first <= place);
        let from = own.map_or(Ok(0), |leaf| factory.position(leaf.first))?;
        let marks = &factory.advances.marks;
        let attempt = marks
            .attempts
            .checked_add(1)
            .ok_or_else(|| Error::Conflict(format!("{} tries to rotate, no more numbers", marks.attempts)))?;
        let mut phase = self.lsp_settings()?.phase_timeout.min(LONGEST_PHASE);
        if !changes.is_empty() {
            // A channel that is quiescent for too long is disconnected by LDK.
            phase = phase.min(LONGEST_CHANGE);
        }
        let seconds = u32::try_from(phase.as_secs()).unwrap_or(u32::MAX);
        let config = LspAdvanceConfig {
            record: record.as_ref().clone(),
            advances: factory.advances.lsp.clone(),
            burnt: marks.burnt.clone(),
            secret_key: self.parts.keys.factory_key(&factory.state.salt)?.secret_bytes(),
            request: AdvanceRequest { level, client: index, changes, reason },
            least_sat: self.least_capacities(record, &leaves),
            attempt,
            agree_secs: seconds,
            prepare_secs: seconds,
            signing_secs: seconds,
        };
        let (machine, actions) = LspAdvance::new(config, &mut rand::rng()).map_err(|e| match e {
            // An answer, not a fault: how much is left is in its words.
            e @ factory_core::Error::Exhausted { .. } => Error::Conflict(e.to_string()),
            e => e.into(),
        })?;
        if let Some(factory) = self.factories.get_mut(&id) {
            factory.mark(&self.parts.store, |marks| marks.attempts = attempt)?;
        }
        faults::point("lsp.rotation.begun");
        for leaf in &leaves {
            self.rotation_failures.remove(&(id, leaf.first));
        }
        self.push_rotation("factory_rotating", &id, attempt, &span, json!({"from": from, "level": level}));
        self.rotating.insert((id, attempt), LspRotating::new(machine, span, &leaves));
        self.run_rotation((id, attempt), actions);
        Ok(Rotation { attempt, from, left })
    }

    /// Whether a client of these leaves has just wasted a position: another try may cost another one.
    fn check_wasteful(&self, id: &InstanceId, leaves: &[Leaf], left: u64) -> Result<(), Error> {
        let now = Instant::now();
        let members = leaves.iter().flat_map(|leaf| &leaf.channels).filter_map(|(_, client)| *client);
        let mut known = members.filter_map(|client| Some((client, self.wasteful.get(&(*id, client))?)));
        match known.find(|(_, wasteful)| wasteful.pauses(now)) {
            None => Ok(()),
            Some((client, wasteful)) => Err(Error::Unavailable(format!(
                "the last rotation failed at client {client} and used an update up, {left} of the leaf are left: \
                 {}; tried again after {} s, or at once with force",
                wasteful.why,
                PAUSE.as_secs()
            ))),
        }
    }

    /// What each channel needs at least, sat, by its client's place: all that we cannot take out of it.
    fn least_capacities(&self, record: &LspFactoryRecord, leaves: &[Leaf]) -> BTreeMap<usize, u64> {
        let open = self.parts.manager.list_channels();
        let least = |(channel, client): &(OutPoint, Option<PublicKey>)| {
            let index = record.index_of(client.as_ref()?)?;
            let details = open.iter().find(|c| c.channel_id == channel_id(*channel))?;
            let ours = details.outbound_capacity_msat / 1000;
            Some((index, details.channel_value_satoshis.saturating_sub(ours)))
        };
        leaves.iter().flat_map(|leaf| &leaf.channels).filter_map(least).collect()
    }

    /// Whether leaves may rotate now.
    fn may_rotate(&self, factory: &Factory, leaves: &[Leaf]) -> Result<(), Error> {
        let id = factory.id();
        if self.is_closing(factory) {
            return Err(Error::Conflict("the factory is being closed".into()));
        }
        self.may_advance(factory, leaves)?;
        self.watchers_there()?;
        let ready = self.parts.factory_messages.ready_peers();
        let open = self.parts.manager.list_channels();
        for (outpoint, client) in leaves.iter().flat_map(|leaf| &leaf.channels) {
            let Some(client) = client else { continue };
            if factory.state.left.contains(client) {
                return Err(Error::Conflict(format!("client {client} has left the factory")));
            }
            if !ready.contains(client) {
                return Err(Error::Unavailable(format!("client {client} is not connected")));
            }
            self.may_move(client, outpoint, &open)?;
        }
        let overlaps = |r: &LspRotating| !r.is_complete() && leaves.iter().any(|leaf| r.moves(leaf.first));
        if let Some(((_, attempt), _)) = self.rotating.iter().find(|((of, _), r)| *of == id && overlaps(r)) {
            return Err(Error::Conflict(format!("rotation {attempt} of this part is under way")));
        }
        Ok(())
    }

    /// A block has come: what may not begin any more is called off, as long as no outer partial signature has been asked
    /// for.
    pub(super) fn look_at_rotations(&mut self) {
        let open = self.parts.manager.list_channels();
        let mut over = Vec::new();
        for (key, rotating) in self.rotating.iter().filter(|(_, r)| r.is_early()) {
            let Some(factory) = self.factories.get(&key.0) else { continue };
            let leaves = factory.leaves().into_iter().filter(|leaf| rotating.moves(leaf.first));
            let leaves: Vec<Leaf> = leaves.collect();
            let channels = leaves.iter().flat_map(|leaf| &leaf.channels);
            let mut members = channels.filter_map(|(outpoint, client)| Some((outpoint, (*client)?)));
            let may = self
                .may_advance(factory, &leaves)
                .and_then(|()| members.try_for_each(|(o, client)| self.may_move(&client, o, &open)));
            over.extend(may.err().map(|e| (*key, e.to_string())));
        }
        for (key, why) in over {
            self.call_off(key, why);
        }
    }

    /// Whether the chain lets leaves have newer states: none of them is being left, and no clock of theirs runs. What
    /// happens to other leaves of the factory does not matter.
    pub(super) fn may_advance(&self, factory: &Factory, leaves: &[Leaf]) -> Result<(), Error> {
        for leaf in leaves {
            if factory.exit_under_way(leaf.first).is_some() {
                return Err(Error::Conflict("the leaf is being left".into()));
            }
            if let Some(spent) = factory.begun(leaf.first, &*self.parts.index)? {
                return Err(Error::Conflict(format!("the leaf's path has begun: {spent} has been spent")));
            }
        }
        let until = factory.lifetime()?.dying_until();
        if self.parts.height() >= until {
            return Err(Error::Conflict(format!("the factory is settled from height {until} on")));
        }
        Ok(())
    }

    /// Whether a channel can move: it is open, and no payment ends too soon.
    pub(super) fn may_move(
        &self,
        client: &PublicKey,
        channel: &OutPoint,
        open: &[ChannelDetails],
    ) -> Result<(), Error> {
        let id = channel_id(*channel);
        let details = open.iter().find(|c| c.channel_id == id);
        let usable = details.is_some_and(|c| c.is_channel_ready);
        if !usable {
            return Err(Error::Conflict(format!("the channel with {client} is not open")));
        }
        if self.parts.mapping.is_full(&self.virtual_of(channel)) {
            let text =
                format!("the channel with {client} has been at {MAX_REALS} places, the most there may be");
            return Err(Error::Conflict(text));
        }
        if let Some(expiry) = self.ends_too_soon(channel, open) {
            let text = format!(
                "a payment on the channel with {client} expires at height {expiry}, too soon for another claim"
            );
            return Err(Error::Unavailable(text));
        }
        Ok(())
    }
}
