//! How a rotation begins at the LSP, and why it may not.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use bitcoin::OutPoint;
use factory_core::advance::{AdvanceReason, AdvanceRequest, LspAdvance, LspAdvanceConfig};
use lightning::ln::channel_state::ChannelDetails;
use serde_json::json;

use super::rotate_lsp::LspRotating;
use super::stored::{Factory, Leaf, Signed};
use super::Service;
use crate::api::{NodeLevel, RotateRequest, Rotation};
use crate::error::Error;
use crate::faults;
use crate::ldk::{channel_id, InstanceId};
use crate::node::parse_node_id;

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
        let rotation = self.begin_rotation(id, client, request.level)?;
        self.parts.peers.process_events();
        Ok(rotation)
    }

    /// Starts a rotation of a node above a client, or says why it cannot be: nothing has happened then.
    fn begin_rotation(
        &mut self,
        id: InstanceId,
        client: PublicKey,
        level: NodeLevel,
    ) -> Result<Rotation, Error> {
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
        let own = leaves.iter().rfind(|leaf| leaf.first <= place);
        let from = own.map_or(Ok(0), |leaf| factory.position(leaf.first))?;
        let marks = &factory.advances.marks;
        let attempt = marks
            .attempts
            .checked_add(1)
            .ok_or_else(|| Error::Conflict(format!("{} tries to rotate, no more numbers", marks.attempts)))?;
        let seconds = u32::try_from(self.lsp_settings()?.phase_timeout.as_secs()).unwrap_or(u32::MAX);
        let config = LspAdvanceConfig {
            record: record.as_ref().clone(),
            advances: factory.advances.lsp.clone(),
            burnt: marks.burnt.clone(),
            secret_key: self.parts.keys.factory_key(&factory.state.salt)?.secret_bytes(),
            request: AdvanceRequest {
                level,
                client: index,
                changes: Vec::new(),
                reason: AdvanceReason::Rotate,
            },
            least_sat: BTreeMap::new(),
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
        Ok(Rotation { attempt, from })
    }

    /// Whether leaves may rotate now.
    fn may_rotate(&self, factory: &Factory, leaves: &[Leaf]) -> Result<(), Error> {
        let id = factory.id();
        if self.is_closing(factory) {
            return Err(Error::Conflict("the factory is being closed".into()));
        }
        if leaves.iter().any(|l| factory.exit_under_way(l.first).is_some()) || factory.is_exiting() {
            return Err(Error::Conflict("a leaf of the factory is being left".into()));
        }
        self.watchers_there()?;
        if self.parts.index.spend(&factory.funding().outpoint).is_some() {
            return Err(Error::Conflict("the factory's funding output has been spent".into()));
        }
        let until = factory.lifetime()?.dying_until();
        if self.parts.height() >= until {
            return Err(Error::Conflict(format!("the factory is settled from height {until} on")));
        }
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
        let overlaps = |r: &LspRotating| leaves.iter().any(|leaf| r.moves(leaf.first));
        if let Some(((_, attempt), _)) = self.rotating.iter().find(|((of, _), r)| *of == id && overlaps(r)) {
            return Err(Error::Conflict(format!("rotation {attempt} of this part is under way")));
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
        if let Some(expiry) = self.ends_too_soon(channel, open) {
            let text = format!(
                "a payment on the channel with {client} expires at height {expiry}, too soon for another claim"
            );
            return Err(Error::Unavailable(text));
        }
        Ok(())
    }
}
