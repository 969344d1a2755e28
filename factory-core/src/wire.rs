//! Between the wire's types and this crate's.

use bitcoin::Network;
use bolt_tlv::payload;

use crate::params::{DwLayer, Params, Shape};
use crate::plan::LeafMember;

/// Parameters as a plan message carries them.
pub(crate) fn params_to_wire(params: &Params) -> payload::PlanParams {
    let layer = |l: &DwLayer| payload::DwLayer { states: l.states, step: l.step, base: l.base };
    payload::PlanParams {
        clients_per_leaf: params.shape.clients_per_leaf,
        arity: params.shape.arity.clone(),
        layers: params.shape.layers.iter().map(|list| list.iter().map(layer).collect()).collect(),
        active: params.active,
        dying: params.dying,
        margin: params.margin,
        confirm_blocks: params.confirm_blocks,
        reorg_margin: params.reorg_margin,
        to_self_delay: params.to_self_delay,
        min_depth: params.min_depth,
    }
}

/// Parameters from a plan message; they still have to be validated.
pub(crate) fn params_from_wire(params: &payload::PlanParams, network: Network) -> Params {
    let layer = |l: &payload::DwLayer| DwLayer { states: l.states, step: l.step, base: l.base };
    Params {
        network,
        shape: Shape {
            clients_per_leaf: params.clients_per_leaf,
            arity: params.arity.clone(),
            layers: params.layers.iter().map(|list| list.iter().map(layer).collect()).collect(),
        },
        active: params.active,
        dying: params.dying,
        margin: params.margin,
        confirm_blocks: params.confirm_blocks,
        reorg_margin: params.reorg_margin,
        to_self_delay: params.to_self_delay,
        min_depth: params.min_depth,
    }
}

pub(crate) fn member_to_wire(member: &LeafMember) -> payload::LeafMember {
    payload::LeafMember {
        capacity_sat: member.capacity_sat,
        push_msat: member.push_msat,
        payout_script: member.payout_script.clone(),
        temporary_channel_id: member.temporary_channel_id,
    }
}

pub(crate) fn member_from_wire(member: &payload::LeafMember) -> LeafMember {
    LeafMember {
        capacity_sat: member.capacity_sat,
        push_msat: member.push_msat,
        payout_script: member.payout_script.clone(),
        temporary_channel_id: member.temporary_channel_id,
    }
}

/// The message start bytes of a network.
pub(crate) fn magic(network: Network) -> [u8; 4] {
    network.magic().to_bytes()
}
