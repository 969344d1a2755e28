//! The report itself and how it is computed.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::geometry;
use crate::params::{as_u64, range, Params};
use crate::planner::exit::exit_steps;
use crate::planner::{limits, timing};
use crate::sizes;

/// Most feerates of one report.
const MAX_FEERATES: usize = 32;
/// Highest feerate a report is computed for, sat/vB.
const MAX_FEERATE: u64 = 100_000;

/// What a report assumes beyond the parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlanOptions {
    /// Blocks the service provider waits for a client that went offline with a payment pending.
    pub patience: u16,
    /// CLTV delta of the service provider's own hop, blocks.
    pub own_hop: u16,
    /// Feerates at which an exit's cost is shown, sat/vB.
    pub feerates: Vec<u32>,
}

impl Default for PlanOptions {
    /// A day's patience, a delta of 80 as most nodes have it, and feerates from quiet to stressed.
    fn default() -> Self {
        Self { patience: 144, own_hop: 80, feerates: vec![2, 10, 50, 200] }
    }
}

/// One level of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelReport {
    /// Nodes of the level.
    pub nodes: u64,
    /// Most signers of one node: the service provider and the clients below it.
    pub signers: u64,
    /// DW layers; 0 for a static level.
    pub layers: u64,
    /// Most outputs of the branching transaction, P2A not counted.
    pub outputs: u64,
    /// Size of the widest branching transaction, vB.
    pub vbytes: u64,
}

/// What an exit costs at one feerate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCost {
    /// The feerate, sat/vB.
    pub sat_per_vbyte: u32,
    /// Path and commitment with their fee-paying children, sat.
    pub exit: u64,
    /// The same and the sweep of the delayed output, sat. A channel with less has no credible exit.
    pub with_sweep: u64,
}

/// What the parameters mean for a factory of a given size. Times in blocks, sizes in vB unless they say
/// bytes; "exit" is that of the client with the largest path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Number of clients.
    pub clients: u64,
    /// Number of leaves.
    pub leaves: u64,
    /// Arities of the interior levels, root first.
    pub arity: Vec<u16>,
    /// Clients of a full leaf.
    pub clients_per_leaf: u16,
    /// The levels, root first, the leaves last.
    pub levels: Vec<LevelReport>,
    /// Blocks counted for a confirmation in the `_worst` figures.
    pub confirm_blocks: u16,
    /// Tree transactions on a path, commitment not counted.
    pub path_transactions: u32,
    /// Relative delays on a path in the oldest state.
    pub path_delay: u32,
    /// Exit with one block for each confirmation.
    pub exit_fast: u32,
    /// Exit with `confirm_blocks` for each confirmation: what the expiry is derived from.
    pub exit_worst: u32,
    /// Claim budget with one block for each confirmation.
    pub claim_fast: u32,
    /// Claim budget with `confirm_blocks` for each confirmation: what HTLC expiries are derived from.
    pub claim_worst: u32,
    /// `early_warning` of bLIP-56: blocks before an HTLC's expiry at which an exit must start.
    pub early_warning: u16,
    /// Patience with an offline client, as assumed.
    pub patience: u16,
    /// CLTV delta of the service provider's hop, as assumed.
    pub own_hop: u16,
    /// `min_final_cltv_expiry_delta` of a client's invoice.
    pub min_final_cltv_expiry_delta: u16,
    /// Left for the rest of a route by a sender with LDK's default, after the service provider's hop.
    pub route_left_sender: u16,
    /// The same by a sender who goes to the limit of 2016.
    pub route_left_limit: u16,
    /// Left of 2016 if the payer is a client of a like factory too; none if that is not possible.
    pub route_left_two_factories: Option<u16>,
    /// From "the newest state is valid" to "the one before is", the narrowest of all layers; 0 without
    /// layers.
    pub race_window: u16,
    /// From a kickoff's confirmation to the first superseded state, at the worst moment; 0 without
    /// layers.
    pub notice: u16,
    /// Updates of one leaf before its counters are exhausted. Every attempt that may have left counts.
    pub updates_per_leaf: u64,
    /// Leaf updates of the whole factory.
    pub updates_per_factory: u64,
    /// Updates of one path with the layers of all its levels as one odometer.
    pub updates_per_path: u64,
    /// State transactions a leaf signs if it makes all its updates.
    pub leaf_state_transactions: u64,
    /// MuSig2 sessions at creation for tree transactions.
    pub tree_sessions: u64,
    /// MuSig2 sessions at creation for expiry distributions.
    pub distribution_sessions: u64,
    /// Partial signatures at creation of all signers.
    pub partials: u64,
    /// Partial signatures at creation of one client.
    pub partials_per_client: u64,
    /// Partial signatures at creation of the service provider.
    pub partials_provider: u64,
    /// Signed path a client stores, bytes.
    pub path_bytes: u64,
    /// Signed distributions a client stores, bytes.
    pub distribution_bytes: u64,
    /// One exit: path, commitment and their fee-paying children.
    pub exit_vbytes: u64,
    /// The sweep of the delayed output, after an exit.
    pub sweep_vbytes: u64,
    /// The dearest single package of an exit: a transaction and its child.
    pub dearest_package_vbytes: u64,
    /// The whole tree with fee-paying children, no commitments.
    pub tree_vbytes: u64,
    /// The whole tree, all commitments, and the children of both.
    pub tree_with_commitments_vbytes: u64,
    /// What an exit costs.
    pub costs: Vec<ExitCost>,
    /// Active period.
    pub active: u32,
    /// Dying period.
    pub dying: u32,
    /// Margin before the expiry.
    pub margin: u32,
    /// How much earlier than the expiry a distribution can become valid.
    pub distribution_spread: u32,
    /// From birth to expiry.
    pub lifetime: u32,
}

/// The report for `clients` clients with the default [`PlanOptions`].
///
/// # Errors
/// As [`plan_with`].
pub fn plan(params: &Params, clients: usize) -> Result<PlanReport, Error> {
    plan_with(params, clients, &PlanOptions::default())
}

/// The report for `clients` clients.
///
/// # Errors
/// Any refusal of [`Params::validate`]; [`Error::NoRouteLeft`] if the patience leaves a default sender no
/// route; [`Error::OutOfRange`] for too many or too high feerates or an own hop below LDK's least.
pub fn plan_with(params: &Params, clients: usize, options: &PlanOptions) -> Result<PlanReport, Error> {
    params.validate(clients)?;
    range("own hop", options.own_hop.into(), limits::LDK_MIN_CLTV_EXPIRY_DELTA.into(), u16::MAX.into())?;
    range("number of feerates", as_u64(options.feerates.len()), 0, as_u64(MAX_FEERATES))?;
    let shape = &params.shape;
    let levels = level_reports(params, clients)?;
    let leaves = as_u64(shape.leaves(clients));
    let tree = tree_totals(params, clients)?;
    let exit = exit_totals(params, clients)?;

    let claim_worst = params.claim_budget(params.confirm_blocks)?;
    let final_delta = params.final_cltv_delta(options.patience)?;
    let route_left_sender = timing::check_route(final_delta, options.own_hop)?;
    let route_left_limit =
        limits::LDK_CLTV_FAR_FAR_AWAY.saturating_sub(final_delta).saturating_sub(options.own_hop);
    let updates_per_leaf = params.leaf_updates()?;
    let leaf_clients = clients.min(shape.clients_per_leaf.into());
    let distributions = distributions_per_leaf(params);
    let path_transactions = params.path_transactions();

    Ok(PlanReport {
        clients: as_u64(clients),
        leaves,
        arity: shape.arity.clone(),
        clients_per_leaf: shape.clients_per_leaf,
        levels,
        confirm_blocks: params.confirm_blocks,
        path_transactions,
        path_delay: params.path_delay(),
        exit_fast: params.worst_exit(1)?,
        exit_worst: params.worst_exit(params.confirm_blocks)?,
        claim_fast: params.claim_budget(1)?,
        claim_worst,
        early_warning: params.early_warning()?,
        patience: options.patience,
        own_hop: options.own_hop,
        min_final_cltv_expiry_delta: final_delta,
        route_left_sender,
        route_left_limit,
        route_left_two_factories: route_left_limit.checked_sub(params.early_warning()?),
        race_window: params.race_window(),
        notice: params.notice(),
        updates_per_leaf,
        updates_per_factory: leaves
            .checked_mul(updates_per_leaf)
            .ok_or(Error::Overflow { field: "updates of the factory" })?,
        updates_per_path: params.path_updates()?,
        leaf_state_transactions: leaf_state_transactions(params)?,
        tree_sessions: tree.transactions,
        distribution_sessions: leaves.saturating_mul(distributions),
        partials: tree.partials,
        partials_per_client: u64::from(path_transactions).saturating_add(distributions),
        partials_provider: tree.transactions.saturating_add(leaves.saturating_mul(distributions)),
        path_bytes: exit.path_bytes,
        distribution_bytes: sizes::distribution(as_u64(leaf_clients)).bytes().saturating_mul(distributions),
        exit_vbytes: exit.vbytes,
        sweep_vbytes: sizes::sweep().vbytes(),
        dearest_package_vbytes: exit.dearest,
        tree_vbytes: tree.vbytes,
        tree_with_commitments_vbytes: as_u64(clients)
            .saturating_mul(package(sizes::commitment()))
            .saturating_add(tree.vbytes),
        costs: costs(options, exit.vbytes)?,
        active: params.active,
        dying: params.dying,
        margin: params.margin,
        distribution_spread: params.distribution_spread()?,
        lifetime: params.lifetime()?,
    })
}

/// A transaction and its fee-paying child, vB.
fn package(size: sizes::TxSize) -> u64 {
    size.vbytes().saturating_add(sizes::child().vbytes())
}

/// Expiry distributions of one leaf at creation: on the leaf's input, and with `m` layers on the outputs
/// of the kickoff and of every state but the last.
fn distributions_per_leaf(params: &Params) -> u64 {
    as_u64(params.shape.layers.last().map_or(0, Vec::len)).saturating_add(1)
}

/// Each layer's states are signed anew for every state of the layers outside it.
fn leaf_state_transactions(params: &Params) -> Result<u64, Error> {
    let overflow = Error::Overflow { field: "state transactions of a leaf" };
    let mut product = 1u64;
    let mut sum = 0u64;
    for layer in params.shape.layers.last().into_iter().flatten() {
        product = product.checked_mul(layer.states.into()).ok_or(overflow.clone())?;
        sum = sum.checked_add(product).ok_or(overflow.clone())?;
    }
    Ok(sum)
}

fn level_reports(params: &Params, clients: usize) -> Result<Vec<LevelReport>, Error> {
    let shape = &params.shape;
    let mut levels: Vec<LevelReport> = (0..shape.levels())
        .map(|level| LevelReport {
            nodes: 0,
            signers: 0,
            layers: as_u64(shape.layers_at(level).len()),
            outputs: 0,
            vbytes: 0,
        })
        .collect();
    for node in geometry::nodes(shape, clients)? {
        let outputs = sizes::branch_outputs(shape, node.level, node.children.len());
        if let Some(level) = levels.get_mut(node.level) {
            level.nodes = level.nodes.saturating_add(1);
            level.signers = level.signers.max(signers(&node));
            level.outputs = level.outputs.max(outputs);
            level.vbytes = level.vbytes.max(sizes::tree_tx(outputs).vbytes());
        }
    }
    Ok(levels)
}

fn signers(node: &geometry::NodeRange) -> u64 {
    as_u64(node.end.saturating_sub(node.first)).saturating_add(1)
}

struct TreeTotals {
    transactions: u64,
    partials: u64,
    vbytes: u64,
}

/// Sums over the whole tree. With at most 1000 clients and 16 layers nothing here can saturate.
fn tree_totals(params: &Params, clients: usize) -> Result<TreeTotals, Error> {
    let shape = &params.shape;
    let mut totals = TreeTotals { transactions: 0, partials: 0, vbytes: 0 };
    for node in geometry::nodes(shape, clients)? {
        let layers = as_u64(shape.layers_at(node.level).len());
        let outputs = sizes::branch_outputs(shape, node.level, node.children.len());
        let transactions = layers.saturating_add(1);
        let distributions = if node.level >= shape.arity.len() { distributions_per_leaf(params) } else { 0 };
        let sessions = transactions.saturating_add(distributions);
        totals.transactions = totals.transactions.saturating_add(transactions);
        totals.partials = totals.partials.saturating_add(sessions.saturating_mul(signers(&node)));
        totals.vbytes = totals
            .vbytes
            .saturating_add(layers.saturating_mul(package(sizes::kickoff())))
            .saturating_add(package(sizes::tree_tx(outputs)));
    }
    Ok(totals)
}

struct ExitTotals {
    vbytes: u64,
    path_bytes: u64,
    dearest: u64,
}

fn exit_totals(params: &Params, clients: usize) -> Result<ExitTotals, Error> {
    let mut totals = ExitTotals { vbytes: 0, path_bytes: 0, dearest: 0 };
    for step in exit_steps(params, clients, 0)? {
        let vbytes = package(step.size);
        totals.vbytes = totals.vbytes.saturating_add(vbytes);
        totals.dearest = totals.dearest.max(vbytes);
        if step.level < params.shape.levels() {
            totals.path_bytes = totals.path_bytes.saturating_add(step.size.bytes());
        }
    }
    Ok(totals)
}

fn costs(options: &PlanOptions, exit_vbytes: u64) -> Result<Vec<ExitCost>, Error> {
    let with_sweep = exit_vbytes.saturating_add(sizes::sweep().vbytes());
    options
        .feerates
        .iter()
        .map(|rate| {
            let sat = u64::from(*rate);
            range("feerate (sat/vB)", sat, 1, MAX_FEERATE)?;
            Ok(ExitCost {
                sat_per_vbyte: *rate,
                exit: exit_vbytes.saturating_mul(sat),
                with_sweep: with_sweep.saturating_mul(sat),
            })
        })
        .collect()
}
