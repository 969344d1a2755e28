//! A client's money goes from a channel beside its factory into the factory's: a relay whose payer is the client itself.
//!
//! The client pays the LSP over the one channel, the LSP pays the client over the other, under one hash, as with any
//! relay; so neither can end with both. What differs: the LSP takes nothing for it, so it has to have come over the
//! channel that the client named, or anybody could be paid for nothing that way; and it is paid over the channel in the
//! factory alone, for which a rotation may make room, but never another channel.

use bitcoin::secp256k1::PublicKey;
use factory_core::faults::switch;
use lightning::ln::channelmanager::PaymentId;
use lightning::ln::outbound_payment::{RecipientOnionFields, RetryableSendFailure};
use lightning::ln::types::ChannelId;
use lightning::routing::router::{Path, PaymentParameters, Route, RouteHop, RouteParameters};
use lightning::types::features::{ChannelFeatures, NodeFeatures};
use lightning::types::payment::{PaymentHash, PaymentSecret};

use super::drive::Arrived;
use super::offer::{Declined, MALFORMED, NOT_NOW};
use super::record::{Bytes, Moved, Terms};
use crate::factory::PaymentView;
use crate::liquidity::is_jit;
use crate::node::Parts;

/// The way to the node at the other end of a channel, over this channel (`scid`) and no other. `blocks`: its final expiry
/// delta.
pub(crate) fn direct(peer: PublicKey, scid: u64, msat: u64, blocks: u32) -> Route {
    let hop = RouteHop {
        pubkey: peer,
        node_features: NodeFeatures::empty(),
        short_channel_id: scid,
        channel_features: ChannelFeatures::empty(),
        fee_msat: msat,
        cltv_expiry_delta: blocks,
        maybe_announced_channel: false,
    };
    let payment_params = PaymentParameters::from_node_id(peer, blocks);
    let route_params =
        RouteParameters { payment_params, final_value_msat: msat, max_total_routing_fee_msat: Some(0) };
    Route { paths: vec![Path { hops: vec![hop], blinded_tail: None }], route_params: Some(route_params) }
}

impl Parts {
    /// Whether money may be moved from this channel of a client's, and into which.
    pub(super) fn check_move(
        &self,
        client: &PublicKey,
        from: [u8; 32],
        amount_msat: u64,
        view: &PaymentView,
    ) -> Result<Moved, Declined> {
        let (Some(into), Some(leaf)) = (view.channel, view.leaf) else {
            return Err((NOT_NOW, "the client has no channel in a factory that is alive".into()));
        };
        if !leaf.active {
            return Err((NOT_NOW, "the factory is not active".into()));
        }
        let open = self.manager.list_channels_with_counterparty(client);
        let source = open.iter().find(|c| c.channel_id.0 == from && is_jit(c.user_channel_id));
        let Some(source) = source else {
            return Err((MALFORMED, "moved_from: no channel beside the factory of this client".into()));
        };
        if !self.is_deep(source) {
            return Err((
                NOT_NOW,
                "moved_from: the channel's funding is not deep enough in the chain".into(),
            ));
        }
        let most = source.inbound_capacity_msat;
        if amount_msat > most {
            let text = format!("amount_msat: {amount_msat} is more than the channel can send, {most}");
            return Err((MALFORMED, text));
        }
        Ok(Moved { from: Bytes(from), into: Bytes(into.0) })
    }

    /// Why what has arrived under a relay's hash came the wrong way, if it did.
    pub(super) fn against(&self, arrived: &Arrived) -> Option<&'static str> {
        let moved = self.relays.get(&arrived.hash).and_then(|relay| relay.terms.moved);
        match moved {
            _ if !arrived.deep => {
                Some("the funding of a factory that it came over is not deep enough in the chain")
            }
            Some(moved) if arrived.channels.iter().any(|id| id.0 != moved.from.0) => {
                Some("it did not come over the channel that the client named")
            }
            Some(moved) => {
                let all = self.manager.list_channels();
                let from = all.iter().find(|c| c.channel_id.0 == moved.from.0);
                let deep = from.is_some_and(|c| self.is_deep(c));
                (!deep)
                    .then_some("the funding of the channel that it came over is not deep enough in the chain")
            }
            None => None,
        }
    }

    /// Pays a client over its channel in the factory.
    ///
    /// # Errors
    /// LDK's; [`RetryableSendFailure::RouteNotFound`] if the channel is gone.
    pub(super) fn pay_into(
        &self,
        hash: &PaymentHash,
        terms: &Terms,
        moved: &Moved,
    ) -> Result<(), RetryableSendFailure> {
        let all = self.manager.list_channels_with_counterparty(&terms.client);
        let into = if switch("lsp.move.astray") { moved.from } else { moved.into };
        let scid = all.iter().find(|c| c.channel_id == ChannelId(into.0));
        let scid =
            scid.and_then(|c| c.get_outbound_payment_scid()).ok_or(RetryableSendFailure::RouteNotFound)?;
        let route = direct(terms.client, scid, terms.amount_msat, terms.outgoing);
        let onion = RecipientOnionFields::secret_only(PaymentSecret(terms.secret.0), terms.amount_msat);
        self.manager.send_payment_with_route(route, *hash, onion, PaymentId(hash.0))
    }
}
