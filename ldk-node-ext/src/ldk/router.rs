//! The router: leaves the provider the time it needs when a payment starts on a factory channel.
//!
//! A provider that learns the preimage late has to publish the payer's path before it can claim the
//! incoming HTLC, so it refuses to forward unless incoming and outgoing expiry lie that far apart
//! ([`crate::htlc_rules`]). Its channels do not advertise that, since it depends on where the payment comes
//! from and not on where it goes: the payer adds it here.
//!
//! And no payment starts on a factory channel whose funding is not deep ([`FundingDepth`]).

use std::sync::Arc;

use bitcoin::secp256k1::{PublicKey, Secp256k1, Signing, Verification};
use lightning::blinded_path::payment::{BlindedPaymentPath, ReceiveTlvs};
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::MIN_CLTV_EXPIRY_DELTA;
use lightning::ln::types::ChannelId;
use lightning::routing::router::{InFlightHtlcs, Payee, Route, RouteParameters, Router};
use lightning::sign::ReceiveAuthKey;

use super::{FundingDepth, Outpoints};
use crate::htlc_rules::Limits;

/// Wraps LDK's router.
pub struct FactoryRouter<R> {
    inner: R,
    outpoints: Arc<Outpoints>,
    depth: Arc<FundingDepth>,
    /// `claim_margin_blocks` of the settings.
    margin: u16,
}

impl<R: Router> FactoryRouter<R> {
    pub(crate) fn new(inner: R, outpoints: Arc<Outpoints>, depth: Arc<FundingDepth>, margin: u16) -> Self {
        Self { inner, outpoints, depth, margin }
    }

    /// Delta that the provider has to get for a payment over this channel, if it is a factory's, blocks.
    fn needed(&self, channel: &ChannelId) -> Option<u32> {
        let budget = self.outpoints.get(channel)?.claim_budget?;
        Some(Limits::new(Some(budget), self.margin).delta())
    }
}

impl<R: Router> Router for FactoryRouter<R> {
    fn find_route(
        &self,
        payer: &PublicKey,
        route_params: &RouteParameters,
        first_hops: Option<&[&ChannelDetails]>,
        inflight_htlcs: InFlightHtlcs,
    ) -> Result<Route, &'static str> {
        let deep: Option<Vec<&ChannelDetails>> = first_hops
            .map(|hops| hops.iter().copied().filter(|c| self.depth.suffices(&c.channel_id)).collect());
        let first_hops = deep.as_deref();
        let needs: Vec<(u64, u32)> = first_hops
            .unwrap_or_default()
            .iter()
            .filter_map(|c| Some((c.get_outbound_payment_scid()?, self.needed(&c.channel_id)?)))
            .collect();
        let Some(most) = needs.iter().map(|(_, delta)| *delta).max() else {
            return self.inner.find_route(payer, route_params, first_hops, inflight_htlcs);
        };
        let limit = route_params.payment_params.max_total_cltv_expiry_delta;
        // Nobody forwards what goes to the peer itself.
        let added = match is_peer(route_params, first_hops.unwrap_or_default()) {
            true => 0,
            false => most.saturating_sub(MIN_CLTV_EXPIRY_DELTA.into()),
        };
        // What is added below must not break the payer's limit.
        let left = limit.saturating_sub(added);
        if left == 0 {
            return Err("The limit of the total expiry delta is below what the factory channel needs");
        }
        let mut lowered = route_params.clone();
        lowered.payment_params.max_total_cltv_expiry_delta = left;
        let mut route = self.inner.find_route(payer, &lowered, first_hops, inflight_htlcs)?;
        raise(&mut route, &needs);
        if route.paths.iter().any(|p| total_delta(p) > limit) {
            return Err("The total expiry delta exceeds its limit with what the factory channel needs");
        }
        route.route_params = Some(route_params.clone());
        Ok(route)
    }

    /// The payer's channel cannot be known here; one of a factory like our own is provided for.
    fn create_blinded_payment_paths<T: Signing + Verification>(
        &self,
        recipient: PublicKey,
        local_node_receive_key: ReceiveAuthKey,
        mut first_hops: Vec<ChannelDetails>,
        tlvs: ReceiveTlvs,
        amount_msats: Option<u64>,
        secp: &Secp256k1<T>,
    ) -> Result<Vec<BlindedPaymentPath>, ()> {
        for channel in &mut first_hops {
            let needed = self.needed(&channel.channel_id);
            if let (Some(needed), Some(info)) = (needed, &mut channel.counterparty.forwarding_info) {
                let needed = u16::try_from(needed).map_err(|_| ())?;
                info.cltv_expiry_delta = info.cltv_expiry_delta.max(needed);
            }
        }
        let key = local_node_receive_key;
        self.inner.create_blinded_payment_paths(recipient, key, first_hops, tlvs, amount_msats, secp)
    }
}

/// Whether the payee is the peer of one of these channels.
fn is_peer(route_params: &RouteParameters, first_hops: &[&ChannelDetails]) -> bool {
    match &route_params.payment_params.payee {
        Payee::Clear { node_id, .. } => first_hops.iter().any(|c| c.counterparty.node_id == *node_id),
        Payee::Blinded { .. } => false,
    }
}

/// Blocks from now to the expiry of a path's first HTLC.
fn total_delta(path: &lightning::routing::router::Path) -> u32 {
    path.hops.iter().fold(0, |sum, hop| sum.saturating_add(hop.cltv_expiry_delta))
}

/// Gives the first node of each path that is not the last its delta; `needs`: scid of the first channel
/// and the delta for it.
fn raise(route: &mut Route, needs: &[(u64, u32)]) {
    for path in route.paths.iter_mut().filter(|p| p.hops.len() > 1) {
        let Some(first) = path.hops.first_mut() else { continue };
        if let Some((_, delta)) = needs.iter().find(|(scid, _)| *scid == first.short_channel_id) {
            first.cltv_expiry_delta = first.cltv_expiry_delta.max(*delta);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::secp256k1::SecretKey;
    use lightning::routing::router::{Path, RouteHop};
    use lightning::types::features::{ChannelFeatures, NodeFeatures};

    fn path(hops: &[(u64, u32)]) -> Path {
        let secret = SecretKey::from_slice(&[1; 32]).unwrap();
        let hop = |&(short_channel_id, cltv_expiry_delta)| RouteHop {
            pubkey: secret.public_key(&Secp256k1::new()),
            node_features: NodeFeatures::empty(),
            short_channel_id,
            channel_features: ChannelFeatures::empty(),
            fee_msat: 0,
            cltv_expiry_delta,
            maybe_announced_channel: false,
        };
        Path { hops: hops.iter().map(hop).collect(), blinded_tail: None }
    }

    #[test]
    fn only_a_forwarding_first_hop_over_a_factory_channel_is_raised() {
        let paths = vec![
            path(&[(7, 80), (8, 40)]),
            path(&[(7, 40)]),
            path(&[(9, 80), (7, 40)]),
            path(&[(7, 500), (1, 1)]),
        ];
        let mut route = Route { paths, route_params: None };
        raise(&mut route, &[(7, 363)]);
        let totals: Vec<u32> = route.paths.iter().map(total_delta).collect();
        assert_eq!(totals, [403, 40, 120, 501]);
    }
}
