//! Blinded paths to this node: of payments to its offers, and of messages about them.
//!
//! A BOLT 11 invoice cannot say how much each of several channels can take, so LDK as a payer tries the whole amount over
//! one hint after the other and gives up. A blinded path says it (`htlc_maximum_msat`): an ordinary payer splits by itself
//! over one path for each channel. LDK's own router leaves out every channel that is smaller than the amount, asks for
//! 42 blocks at the end whatever the recipient needs, and ends its message paths in a channel's id, which is gone when
//! that channel is. So all are made here:
//!
//! * **Payments to a client**: one path for each usable channel, through its peer, with what the channel can receive.
//!   Where all together cannot, one path without a limit: the provider may make room ([`crate::liquidity`]). The provider
//!   may take any other channel with this node than the path names (LDK forwards so), so expiries are those that the
//!   strictest channel needs, on each path. The payer cannot add to what a path leaves its first node, so the paths leave
//!   the provider what it needs if the payer's channel is one of a factory like our own ([`FactoryRouter`]).
//! * **Payments to a provider**: it is public, so the path begins and ends there. LDK as a payer ignores what such a path
//!   asks for at its end (`CandidateRouteHop::OneHopBlinded`; LDK's own have hidden hops before it, which others cannot
//!   make), so our router sees to that ([`FactoryRouter`]); from an ordinary channel less will do.
//! * **Messages**: to a client through its provider, by that one's node id, so that an offer outlives channels; to a
//!   provider directly if it is not announced.
//!
//! [`FactoryRouter`]: super::FactoryRouter

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::Arc;

use bitcoin::secp256k1::{PublicKey, Secp256k1, Signing, Verification};
use lightning::blinded_path::message::{BlindedMessagePath, MessageContext, MessageForwardNode};
use lightning::blinded_path::payment::{
    BlindedPaymentPath, ForwardTlvs, PaymentConstraints, PaymentForwardNode, PaymentRelay, ReceiveTlvs,
};
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::MIN_FINAL_CLTV_EXPIRY_DELTA;
use lightning::onion_message::messenger::{
    Destination, MessageRouter as LdkMessageRouter, NodeIdMessageRouter, OnionMessagePath,
};
use lightning::sign::{EntropySource, ReceiveAuthKey};
use lightning::types::features::BlindedHopFeatures;

use super::NetworkGraph;
use crate::keys::Keys;
use crate::logger::Logger;

/// Most paths of an invoice: as many as LDK uses for one payment.
const MAX_PATHS: usize = 10;
/// Less than this is not worth a path of its own, msat.
const LEAST_MSAT: u64 = 1000;
/// Blocks that may come while the payment is on its way; as LDK has it in its BOLT 11 invoices.
const ON_THE_WAY: u16 = 3;
/// Payers look for routes of 1008 blocks in all (LDK's default); so many of them are for the hops before the path.
const PAYERS_LIMIT: u32 = 1008 - 48;

/// How this node is paid and reached.
#[derive(Clone)]
pub(crate) struct Receiving {
    pub(crate) keys: Arc<Keys>,
    /// What the node asks for at the end of a route, blocks; 0 if LDK's smallest will do.
    pub(crate) min_final: Arc<AtomicU16>,
    /// A client's provider; none if this node is one.
    pub(crate) through: Option<PublicKey>,
}

impl Receiving {
    /// Final expiry delta of a path, blocks.
    pub(super) fn final_delta(&self) -> u16 {
        let asked = self.min_final.load(Ordering::Acquire).saturating_add(ON_THE_WAY);
        asked.max(MIN_FINAL_CLTV_EXPIRY_DELTA)
    }

    /// The path to a node that is its own first node.
    pub(super) fn direct<T: Signing + Verification>(
        &self,
        recipient: PublicKey,
        key: ReceiveAuthKey,
        tlvs: ReceiveTlvs,
        secp: &Secp256k1<T>,
    ) -> Result<BlindedPaymentPath, ()> {
        BlindedPaymentPath::one_hop(recipient, key, tlvs, self.final_delta(), &*self.keys, secp)
    }

    /// The paths to a node behind its peers.
    pub(super) fn behind<T: Signing + Verification>(
        &self,
        ways: Vec<Way>,
        (recipient, key): (PublicKey, ReceiveAuthKey),
        (tlvs, amount_msat): (&ReceiveTlvs, Option<u64>),
        secp: &Secp256k1<T>,
    ) -> Result<Vec<BlindedPaymentPath>, ()> {
        let last = self.final_delta();
        choose(ways, amount_msat)
            .into_iter()
            .map(|way| way.path((recipient, key), tlvs, last, &*self.keys, secp))
            .collect()
    }
}

/// A channel by which this node can be paid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Way {
    peer: PublicKey,
    scid: u64,
    relay: PaymentRelay,
    minimum_msat: u64,
    /// Most that the payer may send over the path, msat.
    maximum_msat: u64,
}

impl Way {
    /// Over a channel, if its peer knows blinded paths and has told what it takes. The peer gets `needed` blocks, if a
    /// payer still finds a route then.
    pub(super) fn over(channel: &ChannelDetails, needed: u32, last: u16) -> Option<Self> {
        if !channel.counterparty.features.supports_route_blinding() {
            return None;
        }
        let mut relay: PaymentRelay = channel.counterparty.forwarding_info.clone()?.try_into().ok()?;
        if let Ok(needed) = u16::try_from(needed) {
            if u32::from(needed).saturating_add(last.into()) <= PAYERS_LIMIT {
                relay.cltv_expiry_delta = relay.cltv_expiry_delta.max(needed);
            }
        }
        let maximum = channel.inbound_htlc_maximum_msat.unwrap_or(u64::MAX);
        Some(Self {
            peer: channel.counterparty.node_id,
            scid: channel.get_inbound_payment_scid()?,
            relay,
            minimum_msat: channel.inbound_htlc_minimum_msat.unwrap_or(0),
            maximum_msat: channel.inbound_capacity_msat.min(maximum),
        })
    }

    fn path<ES: EntropySource, T: Signing + Verification>(
        self,
        (recipient, key): (PublicKey, ReceiveAuthKey),
        tlvs: &ReceiveTlvs,
        last: u16,
        entropy: ES,
        secp: &Secp256k1<T>,
    ) -> Result<BlindedPaymentPath, ()> {
        let delta = u32::from(self.relay.cltv_expiry_delta);
        let constraints = PaymentConstraints {
            max_cltv_expiry: tlvs.payment_constraints.max_cltv_expiry.saturating_add(delta),
            htlc_minimum_msat: self.minimum_msat,
        };
        let forward = PaymentForwardNode {
            tlvs: ForwardTlvs {
                short_channel_id: self.scid,
                payment_relay: self.relay,
                payment_constraints: constraints,
                features: BlindedHopFeatures::empty(),
                next_blinding_override: None,
            },
            node_id: self.peer,
            // Of what comes in there; the limit is on what arrives.
            htlc_maximum_msat: u64::MAX,
        };
        BlindedPaymentPath::new(
            &[forward],
            recipient,
            key,
            tlvs.clone(),
            self.maximum_msat,
            last,
            entropy,
            secp,
        )
    }
}

/// The ways of an invoice, with most room first.
fn choose(mut ways: Vec<Way>, amount_msat: Option<u64>) -> Vec<Way> {
    ways.sort_by_key(|way| Reverse(way.maximum_msat));
    let room = |way: &&Way| way.maximum_msat >= way.minimum_msat.max(LEAST_MSAT);
    let chosen: Vec<Way> = ways.iter().filter(room).take(MAX_PATHS).copied().collect();
    let sum = chosen.iter().fold(0, |sum: u64, way| sum.saturating_add(way.maximum_msat));
    match ways.first() {
        Some(first) if chosen.is_empty() || amount_msat.is_some_and(|amount| sum < amount) => {
            vec![Way { maximum_msat: u64::MAX, ..*first }]
        }
        _ => chosen,
    }
}

/// Finds ways for onion messages.
pub struct MessageRouter {
    inner: NodeIdMessageRouter<Arc<NetworkGraph>, Arc<Logger>, Arc<Keys>>,
    receiving: Receiving,
}

impl MessageRouter {
    pub(crate) fn new(graph: Arc<NetworkGraph>, receiving: Receiving) -> Self {
        let inner = NodeIdMessageRouter::new(graph, Arc::clone(&receiving.keys));
        Self { inner, receiving }
    }
}

impl LdkMessageRouter for MessageRouter {
    fn find_path(
        &self,
        sender: PublicKey,
        peers: Vec<PublicKey>,
        destination: Destination,
    ) -> Result<OnionMessagePath, ()> {
        self.inner.find_path(sender, peers, destination)
    }

    fn create_blinded_paths<T: Signing + Verification>(
        &self,
        recipient: PublicKey,
        local_node_receive_key: ReceiveAuthKey,
        context: MessageContext,
        mut peers: Vec<MessageForwardNode>,
        secp: &Secp256k1<T>,
    ) -> Result<Vec<BlindedMessagePath>, ()> {
        let key = local_node_receive_key;
        if let Some(provider) = self.receiving.through {
            // Others are gone tomorrow.
            peers.retain(|peer| peer.node_id == provider);
            return self.inner.create_blinded_paths(recipient, key, context, peers, secp);
        }
        let made = self.inner.create_blinded_paths(recipient, key, context.clone(), peers, secp);
        made.or_else(|()| {
            let keys = &*self.receiving.keys;
            Ok(vec![BlindedMessagePath::one_hop(recipient, key, context, false, keys, secp)])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightning::blinded_path::payment::{Bolt12RefundContext, PaymentContext};
    use lightning::blinded_path::IntroductionNode;
    use lightning::types::payment::PaymentSecret;
    use proptest::prelude::*;

    fn way(scid: u64, minimum_msat: u64, maximum_msat: u64) -> Way {
        let peer = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
        let relay =
            PaymentRelay { cltv_expiry_delta: 80, fee_proportional_millionths: 0, fee_base_msat: 1000 };
        Way { peer, scid, relay, minimum_msat, maximum_msat }
    }

    fn maxima(ways: &[Way]) -> Vec<(u64, u64)> {
        ways.iter().map(|way| (way.scid, way.maximum_msat)).collect()
    }

    #[test]
    fn each_channel_says_what_it_takes_and_one_without_room_is_left_out() {
        let ways =
            vec![way(1, 1, 99_000_000), way(2, 1, 500), way(3, 1, 198_000_000), way(4, 900_000, 1_000)];
        let chosen = choose(ways.clone(), Some(250_000_000));
        assert_eq!(maxima(&chosen), [(3, 198_000_000), (1, 99_000_000)]);
        assert_eq!(choose(ways.clone(), None), chosen);
        // A single one, and one that has to grow.
        assert_eq!(maxima(&choose(vec![ways[0]], Some(99_000_000))), [(1, 99_000_000)]);
        assert_eq!(maxima(&choose(ways, Some(297_000_001))), [(3, u64::MAX)]);
        assert_eq!(maxima(&choose(vec![way(7, 1, 0)], Some(5_000))), [(7, u64::MAX)]);
        assert!(choose(Vec::new(), Some(1)).is_empty());
    }

    struct Fixed;

    impl EntropySource for Fixed {
        fn get_secure_random_bytes(&self) -> [u8; 32] {
            [7; 32]
        }
    }

    #[test]
    fn a_path_carries_fee_expiry_and_limit_of_its_channel() {
        let tlvs = ReceiveTlvs {
            payment_secret: PaymentSecret([1; 32]),
            payment_constraints: PaymentConstraints { max_cltv_expiry: 5000, htlc_minimum_msat: 1 },
            payment_context: PaymentContext::Bolt12Refund(Bolt12RefundContext { payment_metadata: None }),
        };
        let of = way(1, 1, 99_000_000);
        let path = of.path((of.peer, ReceiveAuthKey([2; 32])), &tlvs, 351, Fixed, &Secp256k1::new()).unwrap();
        let info = &path.payinfo;
        assert_eq!((info.htlc_maximum_msat, info.cltv_expiry_delta), (99_000_000, 431));
        assert_eq!((info.fee_base_msat, info.fee_proportional_millionths), (1000, 0));
        assert_eq!(path.introduction_node(), &IntroductionNode::NodeId(of.peer));
    }

    proptest! {
        #[test]
        fn no_path_promises_more_than_its_channel_unless_the_provider_has_to_make_room(
            rooms in prop::collection::vec((0u64..5_000_000, 0u64..400_000_000), 1..20),
            amount in prop::option::of(1u64..2_000_000_000),
        ) {
            let ways: Vec<Way> =
                (0u64..).zip(&rooms).map(|(n, (least, most))| way(n, *least, *most)).collect();
            let chosen = choose(ways.clone(), amount);
            prop_assert!((1..=MAX_PATHS).contains(&chosen.len()));
            let unlimited = chosen.iter().any(|way| way.maximum_msat == u64::MAX);
            if unlimited {
                prop_assert_eq!(chosen.len(), 1);
            } else {
                prop_assert!(chosen.iter().all(|way| ways.contains(way)));
                let sum: u64 = chosen.iter().map(|way| way.maximum_msat).sum();
                prop_assert!(amount.is_none_or(|amount| sum >= amount));
            }
        }
    }
}
