//! The messages that tell a client about the tree.

use bolt_tlv::payload;

use crate::plan::{index_error, FactoryPlan};
use crate::tree::Tree;
use crate::{geometry, wire, Error};

/// The plan as client `index` (in tree order) has to see it.
///
/// # Errors
/// [`Error::OutOfRange`] for an index no client has.
pub fn plan_message(plan: &FactoryPlan, attempt: u16, index: usize) -> Result<payload::Plan, Error> {
    let clients = plan.members.len();
    let path = geometry::path(&plan.params.shape, clients, index)?;
    let leaf = path.last().ok_or_else(|| index_error(index, clients))?;
    let leaf = plan.leaf(leaf.first, leaf.end)?;
    Ok(payload::Plan {
        instance_id: plan.instance_id,
        attempt,
        network_magic: wire::magic(plan.params.network),
        birth_height: plan.birth_height,
        expiry_height: plan.expiry_height,
        params: wire::params_to_wire(&plan.params),
        keys: plan.keys(),
        index: u32::try_from(index.saturating_add(1)).map_err(|_| index_error(index, clients))?,
        leaf: leaf.members.iter().map(wire::member_to_wire).collect(),
        stock_sat: leaf.stock_sat,
        stock_script: leaf.stock_script,
    })
}

/// What client `index` has to know of the tree besides the plan.
///
/// # Errors
/// [`Error::OutOfRange`] for an index no client has.
pub fn path_message(tree: &Tree, attempt: u16, index: usize) -> Result<payload::Path, Error> {
    let positions = tree.path_nodes(index)?;
    let clients = tree.plan().members.len();
    let mut nodes = Vec::with_capacity(positions.len());
    for position in positions {
        nodes.push(tree.nodes().get(position).ok_or_else(|| index_error(position, tree.nodes().len()))?);
    }
    let (leaf, interior) = nodes.split_last().ok_or_else(|| index_error(index, clients))?;
    let mut levels = Vec::with_capacity(interior.len());
    for node in interior {
        let outputs = node.txs.last().map(|tx| tx.tx.output.as_slice()).unwrap_or_default();
        // All but the anchor, which is the last.
        let children = outputs.split_last().map(|(_, children)| children).unwrap_or_default();
        levels.push(children.iter().map(|o| (o.value.to_sat(), o.script_pubkey.clone())).collect());
    }
    let scripts =
        tree.channel_scripts().get(leaf.first..leaf.end).ok_or_else(|| index_error(leaf.first, clients))?;
    Ok(payload::Path {
        instance_id: tree.plan().instance_id,
        attempt,
        funding_outpoint: tree.funding_outpoint(),
        funding_sat: tree.funding_output()?.value.to_sat(),
        levels,
        channel_scripts: scripts.to_vec(),
    })
}
