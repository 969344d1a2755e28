//! Rotations: a leaf's newest state replaces the one before under its live channels.
//!
//! The machines of [`factory_core::advance`] say what is signed and when; bLIP-56's `factory_change_*` says it of each
//! channel; [`Streams`](crate::ldk::Streams) has the channel's commitments signed on the new outpoint too. This is
//! what both roles share: the messages of a channel's change, and when it is covered.
//!
//! | submessage | LSP | client |
//! |---|---|---|
//! | `factory_change_init` | carries `AdvancePropose` | |
//! | `factory_change_ack` | | carries `AdvanceAgree` |
//! | `factory_change_funding` | once it has built the new transactions | once it has rebuilt them |
//! | `factory_change_continue` | with `AdvanceSigned`, its record is on disk | with `AdvancePersisted`, likewise |
//! | `factory_change_locked` | in answer to the other's `continue` | the same |
//!
//! The newest DW state holds once it is complete, so `locked` follows at once. A channel keeps its funding keys; where
//! its capacity changes, the LSP adds or takes, and LDK's splice has keys of its own ([`capacity`](super::capacity)).
//!
//! An outpoint that has once been announced to a channel's peer stays so, also after a try that failed: another try
//! for the same position has the same transactions, and companions on what never confirms cost nothing but a
//! signature. So the two sides need not agree on when to stop.

use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, TxOut};
use bolt_tlv::blip56::{FactoryChange, FactoryChangeLocked, FactoryOutpoint};
use bolt_tlv::payload::Payload;
use lightning::ln::channel_state::ChannelDetails;

use super::capacity::Resize;
use super::stored::{Factory, Leaf};
use super::Service;
use crate::api::LeafInfo;
use crate::error::Error;
use crate::faults;
use crate::ldk::{channel_id, Change, InstanceId, Real};

/// How long a client waits for its LSP in one phase; then it gives the try up, if that is still possible.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// The longest that the LSP takes for one phase: a client's phase may span two of the LSP's, and to give up late
/// costs a position.
pub(super) const LONGEST_PHASE: Duration = Duration::from_secs(PATIENCE.as_secs() / 3);

/// A channel that moves with its leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moving {
    /// Its name: the outpoint that it was born with.
    pub(super) channel: OutPoint,
    /// Where it is going to be, once that is known.
    pub(super) place: Option<OutPoint>,
    /// Where the other side says that it is going to be.
    pub(super) theirs: Option<OutPoint>,
    /// Its change of capacity, if there is one.
    pub(super) resize: Option<Resize>,
}

impl Moving {
    pub(super) fn new(channel: OutPoint) -> Self {
        Self { channel, place: None, theirs: None, resize: None }
    }

    /// Whether both sides name a place, and not the same one.
    pub(super) fn disagrees(&self) -> bool {
        matches!((self.place, self.theirs), (Some(ours), Some(theirs)) if ours != theirs)
    }
}

impl Service {
    /// LDK's outpoint of a channel.
    pub(super) fn virtual_of(&self, channel: &OutPoint) -> OutPoint {
        self.parts.mapping.current(&channel_id(*channel)).unwrap_or(*channel)
    }

    /// Our side of a channel's change: what we add, sat, and the key that it has.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a channel without commitments.
    pub(super) fn change_of(
        &self,
        channel: &OutPoint,
        funding_contribution_sat: i64,
    ) -> Result<FactoryChange, Error> {
        let id = channel_id(*channel);
        let keys = self.parts.streams.funding_keys(&id, &self.virtual_of(channel));
        let (funding_pubkey, _) =
            keys.ok_or_else(|| Error::Conflict(format!("channel {id} has no commitment yet")))?;
        Ok(FactoryChange { channel_id: id.0, funding_contribution_sat, funding_pubkey })
    }

    /// Checks the other side's part of a change.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub(super) fn check_change(&self, channel: &OutPoint, change: &FactoryChange) -> Result<(), Error> {
        if change.channel_id != channel_id(*channel).0 {
            return Err(Error::invalid("channel_id", "another channel's"));
        }
        if self.is_lsp() && change.funding_contribution_sat != 0 {
            return Err(Error::invalid("funding_contribution_sat", "must be 0 for a client"));
        }
        let id = channel_id(*channel);
        let keys = self.parts.streams.funding_keys(&id, &self.virtual_of(channel));
        if keys.is_none_or(|(_, theirs)| theirs != change.funding_pubkey) {
            return Err(Error::invalid("funding_pubkey", "must stay as it is"));
        }
        Ok(())
    }

    /// Has a channel's commitments signed on its new output too, from now on; the chain is watched for it. Returns V' if
    /// the capacity changes.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Conflict`] for an output that is not the channel's.
    pub(super) fn move_channel(
        &self,
        id: &InstanceId,
        peer: PublicKey,
        moving: &Moving,
        (place, output): (OutPoint, TxOut),
    ) -> Result<Option<OutPoint>, Error> {
        let channel = &moving.channel;
        let (name, v) = (channel_id(*channel), self.virtual_of(channel));
        self.map_channel(self.found(id)?, channel)?;
        self.parts.index.watch([place.txid], [place]);
        self.parts.outpoints.add_place(name, place);
        faults::point("node.channel.move");
        let new = if moving.resize.is_some() {
            Some(self.move_resized(peer, channel, (place, output))?)
        } else {
            self.parts.streams.announce(peer, &name, &v, Real { outpoint: place, output })?;
            None
        };
        faults::point("node.channel.moved");
        Ok(new)
    }

    /// A newer state is complete and on disk: the chain is watched for all of it, and the channels are there now.
    ///
    /// # Errors
    /// [`Error::NotFound`] without the factory.
    pub(super) fn moved(&self, id: &InstanceId) -> Result<(), Error> {
        let factory = self.found(id)?;
        self.parts.index.watch(factory.watched_txids(), factory.watched_outpoints()?);
        for (channel, _) in factory.channels()? {
            self.parts.outpoints.set_place(&channel_id(channel), factory.newest_place(&channel));
            // What the LSP sends is complete at the LSP.
            self.finish_resize(id, &channel, !self.is_lsp());
        }
        Ok(())
    }

    /// Whether both sides name the same new place, and have companions on it on disk.
    pub(super) fn is_covered(&self, moving: &Moving) -> bool {
        let Some(place) = moving.place.filter(|place| moving.theirs == Some(*place)) else { return false };
        let v = match moving.resize {
            Some(resize) => resize.v,
            None => Some(self.virtual_of(&moving.channel)),
        };
        let Some(v) = v else { return false };
        self.parts.streams.covered(&channel_id(moving.channel), &v, &place)
    }

    /// Looks whether channels have become covered.
    pub(super) async fn check_covered(&mut self) {
        if self.is_lsp() {
            self.lsp_covered();
        } else {
            self.client_covered();
        }
    }

    /// The first expiry, blocks, of a payment on a channel that would not survive another claim: it is refused to
    /// rotate then.
    pub(super) fn ends_too_soon(&self, channel: &OutPoint, open: &[ChannelDetails]) -> Option<u32> {
        let id = channel_id(*channel);
        let budget = self.parts.outpoints.get(&id)?.claim_budget?;
        let details = open.iter().find(|c| c.channel_id == id)?;
        let inbound = details.pending_inbound_htlcs.iter().map(|h| h.cltv_expiry);
        let first = inbound.chain(details.pending_outbound_htlcs.iter().map(|h| h.cltv_expiry)).min()?;
        let margin = u32::from(self.parts.config.claim_margin_blocks);
        let needed = self.parts.height().saturating_add(budget).saturating_add(margin);
        (first <= needed).then_some(first)
    }

    pub(super) fn send_change(&self, peer: PublicKey, change: &Change) -> bool {
        self.parts.factory_messages.send_change(peer, change)
    }

    /// What the channel's new place is said in.
    pub(super) fn outpoint_message(channel: &OutPoint, place: OutPoint) -> FactoryOutpoint {
        FactoryOutpoint {
            channel_id: channel_id(*channel).0,
            funding_txid: place.txid,
            // As for the channel id.
            funding_output_index: u16::try_from(place.vout).unwrap_or(u16::MAX),
        }
    }

    /// Says that the new state is on disk.
    pub(super) fn tell_continue(&self, id: &InstanceId, peer: PublicKey, channel: &OutPoint) {
        let place = self.factories.get(id).map(|f| f.newest_place(channel));
        if let Some(place) = place {
            self.send_change(peer, &Change::Continue(Self::outpoint_message(channel, place)));
        }
    }

    /// A message of a channel's change.
    pub(super) async fn change_message(&mut self, peer: PublicKey, change: Change) {
        let found = self.changing(peer, &change.channel_id());
        let Some((id, channel)) = found else {
            tracing::debug!(%peer, "change of a channel that is in no factory of this peer");
            return;
        };
        match change {
            Change::Init(change, payload) if !self.is_lsp() => {
                self.change_proposed(id, &channel, &change, payload);
            }
            Change::Ack(change, payload) if self.is_lsp() => {
                self.change_agreed(id, peer, &channel, &change, payload);
            }
            Change::Init(..) | Change::Ack(..) => {
                tracing::debug!(%peer, "change from the wrong side");
            }
            Change::Funding(outpoint) => {
                let place =
                    OutPoint { txid: outpoint.funding_txid, vout: outpoint.funding_output_index.into() };
                if self.is_lsp() {
                    self.lsp_heard_place(id, peer, place);
                } else {
                    self.client_heard_place(id, place);
                }
            }
            Change::Continue(outpoint) => self.change_continues(&id, peer, &channel, &outpoint),
            Change::Locked(locked) => {
                tracing::debug!(%peer, txid = %locked.funding_txid, "the peer has locked its new state");
            }
        }
        self.parts.peers.process_events();
    }

    /// The peer has the new state on disk; if we have the same, the one before has lost.
    fn change_continues(
        &self,
        id: &InstanceId,
        peer: PublicKey,
        channel: &OutPoint,
        outpoint: &FactoryOutpoint,
    ) {
        let place = self.factories.get(id).map(|f| f.newest_place(channel));
        let same = place.filter(|place| Self::outpoint_message(channel, *place) == *outpoint);
        match same {
            Some(place) => {
                self.finish_resize(id, channel, true);
                let locked =
                    FactoryChangeLocked { channel_id: outpoint.channel_id, funding_txid: place.txid };
                self.send_change(peer, &Change::Locked(locked));
            }
            // The LSP says so before the client's record is complete; the client answers with its own.
            None => {
                tracing::debug!(%peer, txid = %outpoint.funding_txid, "the peer goes on with a newer state")
            }
        }
    }

    /// The factory and the channel that a change of this peer is about.
    fn changing(&self, peer: PublicKey, id: &[u8; 32]) -> Option<(InstanceId, OutPoint)> {
        let lsp = self.client_settings().map(|s| s.lsp_node_id);
        if lsp.is_some_and(|lsp| lsp != peer) {
            return None;
        }
        let instance = self.parts.outpoints.get(&lightning::ln::types::ChannelId(*id))?.instance;
        let channels = self.factories.get(&instance)?.channels().ok()?;
        let found = channels
            .into_iter()
            .find(|(o, client)| channel_id(*o).0 == *id && client.is_none_or(|client| client == peer));
        found.map(|(outpoint, _)| (instance, outpoint))
    }

    /// Whether a message belongs to an advance; if so it has been dealt with.
    pub(super) async fn advance_message(&mut self, peer: PublicKey, payload: &Payload) -> bool {
        let from_client = matches!(
            payload,
            Payload::AdvanceRefuse(_)
                | Payload::AdvancePartials(_)
                | Payload::AdvanceOuter(_)
                | Payload::AdvancePersisted(_)
                | Payload::AdvanceResume(_)
                | Payload::AdvanceAsk(_)
        );
        let from_lsp = matches!(
            payload,
            Payload::AdvanceTree(_)
                | Payload::AdvanceAggNonces(_)
                | Payload::AdvanceInner(_)
                | Payload::AdvanceSigned(_)
                | Payload::AdvanceAbort(_)
                | Payload::AdvanceDecline(_)
        );
        let Some(id) = payload.instance_id().filter(|_| from_client || from_lsp) else { return false };
        match (self.is_lsp(), from_client) {
            (true, true) if matches!(payload, Payload::AdvanceAsk(_)) => {
                self.asked_for_capacity(id, peer, payload);
            }
            (false, false) if matches!(payload, Payload::AdvanceDecline(_)) => {
                self.capacity_declined(id, payload);
            }
            (true, true) => self.lsp_advance_message(id, peer, payload.clone()),
            (false, false) => self.client_advance_message(id, payload.clone()),
            _ => tracing::debug!(%peer, number = payload.number(), "advance message from the wrong side"),
        }
        true
    }

    /// An exit begins: nothing new is signed for its leaf, as far as it can still be stopped.
    pub(super) fn stop_rotation(&mut self, id: &InstanceId, first: u32) {
        if self.is_lsp() {
            self.cancel_rotation(id, first);
        } else {
            self.cancel_following(id, "the leaf is being left");
        }
    }

    /// The script of a channel's output, as it is now.
    pub(super) fn script_of(factory: &Factory, channel: &OutPoint) -> Result<bitcoin::ScriptBuf, Error> {
        let missing = || Error::not_found(format!("output {channel}"));
        let path = factory.leaf_path(factory.leaf_of(channel).ok_or_else(missing)?.first)?;
        let outputs = path.path.last().map(|tx| &tx.tx.output);
        let output = outputs.and_then(|o| o.get(usize::try_from(channel.vout).unwrap_or(usize::MAX)));
        output.map(|o| o.script_pubkey.clone()).ok_or_else(missing)
    }

    /// Where the leaves are on the odometer, for display.
    pub(super) fn leaf_infos(&self, factory: &Factory) -> Result<Vec<LeafInfo>, Error> {
        let id = factory.id();
        let one = |leaf: Leaf| {
            let position = factory.position(leaf.first)?;
            let params = factory.params();
            let left = params.remaining(position)?;
            let running = self.rotating.iter().filter(|((of, _), r)| *of == id && r.moves(leaf.first));
            let running = running.max_by_key(|((_, attempt), _)| *attempt);
            let following = self.following.get(&id).and_then(|f| f.phase());
            // Complete, but LDK has the capacity before for a moment more.
            let locks = |c: &OutPoint| self.is_changing(c) && !self.is_resting(factory, c);
            let locking = leaf.channels.iter().any(|(channel, _)| locks(channel)).then_some("locking");
            let node_of = |c: Option<PublicKey>| c.unwrap_or(self.parts.node_id).to_string();
            Ok(LeafInfo {
                clients: leaf.channels.iter().map(|(_, c)| node_of(*c)).collect(),
                digits: params.states_after(position)?.digits().collect(),
                position,
                left: left.leaf(),
                left_above: left.upper(),
                superseded: u64::try_from(factory.superseded(leaf.first)).unwrap_or(u64::MAX),
                rotating: running.map(|(_, r)| r.phase()).or(following).or(locking).map(str::to_owned),
                failure: self.rotation_failures.get(&(id, leaf.first)).cloned(),
            })
        };
        factory.leaves().into_iter().map(one).collect()
    }
}
