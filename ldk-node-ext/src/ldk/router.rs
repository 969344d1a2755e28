//! The router: leaves the provider the time it needs when a payment starts on a factory channel.
//!
//! A provider that learns the preimage late has to publish the payer's path before it can claim the
//! incoming HTLC, so it refuses to forward unless incoming and outgoing expiry lie that far apart
//! ([`crate::htlc_rules`]). Its channels do not advertise that, since it depends on where the payment comes
//! from and not on where it goes: the payer adds it here.
//!
//! It cannot do that where the provider is the first node of a blinded path: the payee has fixed there what the provider
//! gets. A payment over such paths does not start on a factory channel if all of them together are too short.
//!
//! And no payment starts on a factory channel whose funding is not deep ([`FundingDepth`]).
//!
//! What this node is paid over is in [`super::paths`].

use std::sync::Arc;

use bitcoin::secp256k1::{PublicKey, Secp256k1, Signing, Verification};
use lightning::blinded_path::payment::{BlindedPaymentPath, ReceiveTlvs};
use lightning::blinded_path::IntroductionNode;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::MIN_CLTV_EXPIRY_DELTA;
use lightning::ln::types::ChannelId;
use lightning::routing::router::{InFlightHtlcs, Payee, Route, RouteParameters, Router};
use lightning::sign::ReceiveAuthKey;

use super::paths::{Receiving, Way};
use super::{FundingDepth, Outpoints};
use crate::htlc_rules::Limits;

/// Wraps LDK's router.
pub struct FactoryRouter<R> {
    inner: R,
    receiving: Receiving,
    outpoints: Arc<Outpoints>,
    depth: Arc<FundingDepth>,
    /// `claim_margin_blocks` of the settings.
    margin: u16,
}

impl<R: Router> FactoryRouter<R> {
    pub(crate) fn new(
        inner: R,
        receiving: Receiving,
        outpoints: Arc<Outpoints>,
        depth: Arc<FundingDepth>,
        margin: u16,
    ) -> Self {
        Self { inner, receiving, outpoints, depth, margin }
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
        let may_start = |c: &&ChannelDetails| {
            self.depth.suffices(&c.channel_id)
                && self.needed(&c.channel_id).is_none_or(|delta| {
                    leaves_time(&route_params.payment_params.payee, &c.counterparty.node_id, delta)
                })
        };
        let deep: Option<Vec<&ChannelDetails>> =
            first_hops.map(|hops| hops.iter().copied().filter(may_start).collect());
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
        // Nobody forwards what goes to the peer itself, and nothing can be added where its path begins.
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
        ask_at_the_end(&mut route, &route_params.payment_params.payee);
        if route.paths.iter().any(|p| total_delta(p) > limit) {
            return Err("The total expiry delta exceeds its limit with what the factory channel needs");
        }
        route.route_params = Some(route_params.clone());
        Ok(route)
    }

    fn create_blinded_payment_paths<T: Signing + Verification>(
        &self,
        recipient: PublicKey,
        local_node_receive_key: ReceiveAuthKey,
        first_hops: Vec<ChannelDetails>,
        tlvs: ReceiveTlvs,
        amount_msats: Option<u64>,
        secp: &Secp256k1<T>,
    ) -> Result<Vec<BlindedPaymentPath>, ()> {
        let key = local_node_receive_key;
        if self.receiving.through.is_none() {
            return self.receiving.direct(recipient, key, tlvs, secp).map(|path| vec![path]);
        }
        // The payer's channel cannot be known here; one of a factory like our own is provided for.
        let needed = first_hops.iter().filter_map(|c| self.needed(&c.channel_id)).max().unwrap_or(0);
        let last = self.receiving.final_delta();
        let ways: Vec<Way> = first_hops
            .iter()
            .filter(|c| self.depth.suffices(&c.channel_id))
            .filter_map(|c| Way::over(c, needed, last))
            .collect();
        if ways.is_empty() {
            return self.inner.create_blinded_payment_paths(
                recipient,
                key,
                first_hops,
                tlvs,
                amount_msats,
                secp,
            );
        }
        self.receiving.behind(ways, (recipient, key), (&tlvs, amount_msats), secp)
    }
}

/// Whether the payee's paths can leave their first node so many blocks, if that is this peer.
fn leaves_time(payee: &Payee, peer: &PublicKey, delta: u32) -> bool {
    let Payee::Blinded { route_hints, .. } = payee else { return true };
    route_hints.iter().any(|path| {
        !begins_at(path, peer)
            || path.blinded_hops().len() < 2
            || u32::from(path.payinfo.cltv_expiry_delta) >= delta
    })
}

fn begins_at(path: &BlindedPaymentPath, node: &PublicKey) -> bool {
    matches!(path.introduction_node(), IntroductionNode::NodeId(id) if id == node)
}

/// Whether the payee, or the first node of each of its paths, is the peer of one of these channels.
fn is_peer(route_params: &RouteParameters, first_hops: &[&ChannelDetails]) -> bool {
    match &route_params.payment_params.payee {
        Payee::Clear { node_id, .. } => first_hops.iter().any(|c| c.counterparty.node_id == *node_id),
        Payee::Blinded { route_hints, .. } => {
            route_hints.iter().all(|path| first_hops.iter().any(|c| begins_at(path, &c.counterparty.node_id)))
        }
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

/// Gives the payee what it asks for at the end where its path has no other hop. LDK 0.3 as a payer takes no notice of that
/// there and adds only what hides the route's length, so a provider would give back what comes from a factory channel.
fn ask_at_the_end(route: &mut Route, payee: &Payee) {
    let Payee::Blinded { route_hints, .. } = payee else { return };
    for path in &mut route.paths {
        let (Some(tail), Some(last)) = (&mut path.blinded_tail, path.hops.last_mut()) else { continue };
        let hint = route_hints.iter().find(|hint| hint.blinding_point() == tail.blinding_point);
        let Some(asked) = hint.map(|hint| u32::from(hint.payinfo.cltv_expiry_delta)) else { continue };
        if tail.hops.len() == 1 {
            let missing = asked.saturating_sub(tail.excess_final_cltv_expiry_delta);
            tail.excess_final_cltv_expiry_delta = tail.excess_final_cltv_expiry_delta.saturating_add(missing);
            last.cltv_expiry_delta = last.cltv_expiry_delta.saturating_add(missing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::secp256k1::SecretKey;
    use lightning::blinded_path::payment::BlindedPayInfo;
    use lightning::blinded_path::BlindedHop;
    use lightning::routing::router::{BlindedTail, Path, RouteHop};
    use lightning::types::features::{BlindedHopFeatures, ChannelFeatures, NodeFeatures};

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
    #[test]
    fn a_payee_that_is_its_paths_first_node_gets_what_it_asks_for() {
        let node = |n| SecretKey::from_slice(&[n; 32]).unwrap().public_key(&Secp256k1::new());
        let hint = |point, hops: usize| {
            let hop = || BlindedHop { blinded_node_id: node(9), encrypted_payload: Vec::new() };
            let hops: Vec<BlindedHop> = (0..hops).map(|_| hop()).collect();
            let payinfo = BlindedPayInfo { cltv_expiry_delta: 351, ..payinfo() };
            BlindedPaymentPath::from_blinded_path_and_payinfo(node(1), node(point), hops, payinfo)
        };
        let hints = vec![hint(2, 1), hint(3, 2)];
        let over = |hint: &BlindedPaymentPath, last, excess| {
            let mut path = path(&[(7, last)]);
            path.blinded_tail = Some(BlindedTail {
                trampoline_hops: Vec::new(),
                hops: hint.blinded_hops().to_vec(),
                blinding_point: hint.blinding_point(),
                excess_final_cltv_expiry_delta: excess,
                final_value_msat: 1,
            });
            path
        };
        let paths = vec![over(&hints[0], 72, 72), over(&hints[0], 400, 400), over(&hints[1], 351, 0)];
        let mut route = Route { paths, route_params: None };
        ask_at_the_end(&mut route, &Payee::Blinded { route_hints: hints, features: None });
        let ends: Vec<(u32, u32)> = route
            .paths
            .iter()
            .map(|p| (total_delta(p), p.blinded_tail.as_ref().unwrap().excess_final_cltv_expiry_delta))
            .collect();
        assert_eq!(ends, [(351, 351), (400, 400), (351, 0)]);
    }

    fn payinfo() -> BlindedPayInfo {
        BlindedPayInfo {
            fee_base_msat: 0,
            fee_proportional_millionths: 0,
            cltv_expiry_delta: 0,
            htlc_minimum_msat: 1,
            htlc_maximum_msat: 1000,
            features: BlindedHopFeatures::empty(),
        }
    }

    #[test]
    fn what_a_blinded_path_leaves_its_first_node_is_seen() {
        let node = |n| SecretKey::from_slice(&[n; 32]).unwrap().public_key(&Secp256k1::new());
        let path = |first, hops: usize, cltv_expiry_delta| {
            let hop = || BlindedHop { blinded_node_id: node(9), encrypted_payload: Vec::new() };
            let payinfo = BlindedPayInfo { cltv_expiry_delta, ..payinfo() };
            let hops = (0..hops).map(|_| hop()).collect();
            BlindedPaymentPath::from_blinded_path_and_payinfo(node(first), node(8), hops, payinfo)
        };
        let payee = |paths| Payee::Blinded { route_hints: paths, features: None };
        let leaves = |paths, delta| leaves_time(&payee(paths), &node(1), delta);
        assert!(leaves(vec![path(1, 2, 363)], 363) && !leaves(vec![path(1, 2, 362)], 363));
        assert!(leaves(vec![path(1, 1, 42)], 363), "the peer is the payee");
        assert!(leaves(vec![path(2, 2, 122)], 363), "the payer adds what is missing before it");
        assert!(leaves(vec![path(1, 2, 122), path(1, 2, 400)], 363));
    }
}
