//! Factories: requests and state.

use serde::{Deserialize, Serialize};

use super::{Deadline, Outpoint};

/// A client connected to this LSP that speaks our factory protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingClient {
    /// Node id.
    pub node_id: String,
    /// Connected now.
    pub connected: bool,
    /// Asked to be in a factory (sent `Join`), is in none that is alive, and is not paused.
    pub waiting: bool,
    /// Smallest capacity it accepts, sat.
    pub min_capacity_sat: u64,
    /// Largest capacity it accepts, sat.
    pub max_capacity_sat: u64,
}

/// A client that has failed lately (LSP).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAdmission {
    /// Node id.
    pub node_id: String,
    /// Failures by its own fault that count, since it was paused last.
    pub strikes: u32,
    /// Closes it asked for lately, of which nothing came.
    pub closes_in_vain: u32,
    /// It is neither invited nor heard before this height.
    pub paused_until_height: Option<u32>,
    /// Height of the last failure.
    pub last_failure_height: u32,
    /// The last failure in words.
    pub reason: String,
}

/// Which client to admit again (LSP).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadmitRequest {
    /// Node id.
    pub node_id: String,
}

/// One client of a factory to be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactoryClientRequest {
    /// Node id.
    pub node_id: String,
    /// Channel capacity, sat.
    pub capacity_sat: u64,
    /// Given to the client at birth, sat.
    #[serde(default)]
    pub push_sat: u64,
}

/// Parameters an operator may set; the planner's defaults for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamsOverride {
    /// Clients a leaf.
    #[serde(default)]
    pub clients_per_leaf: Option<u16>,
    /// Children per interior level, root first.
    #[serde(default)]
    pub arity: Option<Vec<u16>>,
    /// DW layers per level (root first, leaf last): lists of `[states, step, base]`.
    #[serde(default)]
    pub layers: Option<Vec<Vec<[u16; 3]>>>,
    /// Active period, blocks.
    #[serde(default)]
    pub active: Option<u32>,
    /// Dying period, blocks.
    #[serde(default)]
    pub dying: Option<u32>,
    /// Margin added to the worst exit, blocks.
    #[serde(default)]
    pub margin: Option<u32>,
    /// Depth of the funding before channels are ready, blocks.
    #[serde(default)]
    pub min_depth: Option<u16>,
}

/// Request to create a factory: either `clients` or `all` with one capacity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateFactoryRequest {
    /// With whom, and how much each.
    #[serde(default)]
    pub clients: Vec<FactoryClientRequest>,
    /// With every client that waits.
    #[serde(default)]
    pub all: bool,
    /// Capacity for each with `all`, sat.
    #[serde(default)]
    pub capacity_sat: Option<u64>,
    /// Push for each with `all`, sat.
    #[serde(default)]
    pub push_sat: Option<u64>,
    /// Liquidity stock a leaf, sat (the node's default if none).
    #[serde(default)]
    pub stock_sat: Option<u64>,
    /// Parameters.
    #[serde(default)]
    pub params: Option<ParamsOverride>,
}

/// Where a factory stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactoryState {
    /// Clients were invited.
    Inviting,
    /// The plan is out.
    Planning,
    /// LDK channels are being opened.
    Opening,
    /// The funding transaction is being built.
    Funding,
    /// First signing round.
    Nonces,
    /// Second signing round.
    Partials,
    /// Signed; being stored by everybody.
    Persisting,
    /// Funding broadcast, not yet deep enough.
    Confirming,
    /// Channels are ready.
    Active,
    /// Lifetime nearly over: clients move out.
    Dying,
    /// Cooperative close under way.
    Closing,
    /// Closed by one transaction, confirmed.
    Closed,
    /// This node leaves unilaterally, or a client of ours does.
    Exiting,
    /// Left; everything is confirmed and swept.
    Exited,
    /// Never came to life.
    Failed,
}

/// Where one client of a factory stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Asked.
    Invited,
    /// Gave its key.
    Accepted,
    /// Agreed to the plan.
    Planned,
    /// Its channel is open up to the funding.
    Opened,
    /// Its partial signatures are in.
    Signed,
    /// Has its exit on disk.
    Persisted,
    /// Channel is ready.
    Ready,
    /// Left out, see the reason.
    Excluded,
    /// Left by publishing its path.
    Exited,
    /// Paid out by the cooperative close.
    Closed,
}

/// One client of a factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactoryMember {
    /// Node id.
    pub node_id: String,
    /// Channel capacity, sat.
    pub capacity_sat: u64,
    /// Given at birth, sat.
    pub push_sat: u64,
    /// Channel id in hex, once there is one.
    pub channel_id: Option<String>,
    /// Where it stands.
    pub state: MemberState,
    /// Why it was left out.
    pub reason: Option<String>,
}

/// A client that was left out of a factory, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcludedClient {
    /// Node id.
    pub node_id: String,
    /// The check that failed, in words.
    pub reason: String,
}

/// One transaction of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeTx {
    /// Level, root = 0.
    pub level: usize,
    /// `static`, `kickoff` or `state`.
    pub kind: String,
    /// Transaction id.
    pub txid: String,
    /// Transaction it spends.
    pub parent_txid: String,
    /// Output it spends.
    pub vout: u32,
    /// Relative delay, blocks.
    pub delay_blocks: u16,
    /// Clients below: first and one past the last.
    pub clients: [usize; 2],
    /// Value of its input, sat.
    pub sat: u64,
    /// Confirmation height.
    pub confirmed_height: Option<u32>,
}

/// One party paid by the cooperative close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosePayout {
    /// Node id.
    pub node_id: String,
    /// Amount, sat.
    pub sat: u64,
}

/// The cooperative close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseInfo {
    /// `asking`, `shutting`, `signing`, `broadcast`, `confirmed` or `failed`.
    pub phase: String,
    /// Why it failed or waits.
    pub reason: Option<String>,
    /// Close transaction.
    pub txid: Option<String>,
    /// Its height.
    pub height: Option<u32>,
    /// Its confirmations.
    pub confirmations: u32,
    /// Who gets what (a client knows only itself).
    pub paid: Vec<ClosePayout>,
    /// Clients whose balance was below 330 sat and went to fees.
    pub to_fees: Vec<ClosePayout>,
    /// Transaction fee, paid by the LSP, sat.
    pub fee_sat: u64,
}

/// One step of an exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStepInfo {
    /// `static`, `kickoff` or `state`.
    pub kind: String,
    /// Transaction id.
    pub txid: String,
    /// The fee-paying child we sent with it.
    pub child_txid: Option<String>,
    /// Relative delay, blocks.
    pub delay_blocks: u16,
    /// Its size, vB.
    pub vsize: u64,
    /// Size of our child, vB.
    pub child_vsize: Option<u64>,
    /// First height at which it may confirm, once known.
    pub earliest_height: Option<u32>,
    /// Confirmation height.
    pub confirmed_height: Option<u32>,
    /// Fee of the child we paid, sat.
    pub fee_sat: u64,
}

/// Request to leave a factory by its tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitRequest {
    /// LSP: node id of the client whose leaf is left. A client leaves its own.
    #[serde(default)]
    pub client: Option<String>,
    /// Most that the fee-paying children of the path may cost together, sat. Given again for an exit that is
    /// under way, it changes the bound.
    #[serde(default)]
    pub max_fee_sat: Option<u64>,
}

/// What the wallet has to hold for this node's way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReserve {
    /// Fees of the path (LSP: of every leaf's) at the present feerate, sat.
    pub needed_sat: u64,
    /// Confirmed in the wallet, sat.
    pub available_sat: u64,
}

/// A leaf on its way to the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInfo {
    /// Whose channel leaves.
    pub node_id: String,
    /// Everybody on the leaf.
    pub clients: Vec<String>,
    /// Why, in words.
    pub reason: String,
    /// `path`, `commitment`, `sweep`, `distribution`, `done`, `waiting_for_coin` or `over_budget`.
    pub phase: String,
    /// What it waits for, in words.
    pub waits_for: String,
    /// The height that it waits for, if it is one.
    pub waits_until_height: Option<u32>,
    /// Height at which it began (none: a client that left by itself).
    pub started_height: Option<u32>,
    /// Height at which the money is spendable if every step confirms at once.
    pub expected_end_height: Option<u32>,
    /// The path, in order; ends with the distribution if one has paid.
    pub steps: Vec<ExitStepInfo>,
    /// Commitment (or kept closing) transaction.
    pub commitment_txid: Option<String>,
    /// Its height.
    pub commitment_height: Option<u32>,
    /// The distribution that took the leaf's place.
    pub distribution_txid: Option<String>,
    /// Fees of our children so far, sat.
    pub fees_sat: u64,
    /// Fees of the children to come at the present feerate, sat.
    pub fees_to_come_sat: u64,
    /// Bound of both, sat.
    pub max_fee_sat: Option<u64>,
    /// A coin is missing: the amount that one coin needs to have, sat.
    pub needs_coin_sat: Option<u64>,
    /// The bound is too small: what the next child needs, sat.
    pub over_budget_sat: Option<u64>,
}

/// One factory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FactoryInfo {
    /// Instance id in hex.
    pub instance_id: String,
    /// Where it stands.
    pub state: FactoryState,
    /// Why it failed.
    pub failure: Option<String>,
    /// Funding output.
    pub funding: Option<Outpoint>,
    /// Its value, sat.
    pub funding_sat: u64,
    /// Its confirmations.
    pub funding_confirmations: u32,
    /// Height at which it was planned.
    pub birth_height: u32,
    /// T: distribution transactions are valid from here.
    pub expiry_height: u32,
    /// Clients (a client sees itself).
    pub clients: Vec<FactoryMember>,
    /// Clients left out.
    pub excluded: Vec<ExcludedClient>,
    /// Tree transactions (a client sees its own path).
    pub tree: Vec<TreeTx>,
    /// What is due when.
    pub deadlines: Vec<Deadline>,
    /// The planner's report for this factory.
    pub report: Option<serde_json::Value>,
    /// Cooperative close.
    pub close: Option<CloseInfo>,
    /// Exits.
    pub exits: Vec<ExitInfo>,
    /// What the wallet has to hold for this node's way out, while the factory is alive.
    pub exit_reserve: Option<ExitReserve>,
    /// The leaves, and where they are on the odometer (a client sees its own).
    #[serde(default)]
    pub leaves: Vec<LeafInfo>,
}

/// A leaf of a factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafInfo {
    /// Node ids of its clients, as far as this node knows them.
    pub clients: Vec<String>,
    /// The state of each DW layer from the root to the leaf's innermost one; all 0 at the creation.
    pub digits: Vec<u16>,
    /// The newest complete position: how far the odometer has gone.
    pub position: u64,
    /// Updates of the leaf alone that are left.
    pub left: u64,
    /// Updates of the levels above that are left.
    pub left_above: u64,
    /// States before the newest one.
    pub superseded: u64,
    /// How far a rotation is that is under way.
    pub rotating: Option<String>,
    /// Why the last rotation came to nothing, until one succeeds.
    pub failure: Option<String>,
}

/// Request to rotate a node of the tree: its newest state replaces the one before, nothing else changes (LSP).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// Node id of a client below the node.
    pub client: String,
    /// Which node above the client; its leaf if not given.
    #[serde(default)]
    pub level: NodeLevel,
    /// Also with a client that has just made a rotation fail when its position was used up already.
    #[serde(default)]
    pub force: bool,
}

/// A node of the tree, as seen from a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeLevel {
    /// Its leaf.
    #[default]
    Leaf,
    /// The node that its leaf hangs below; the levels inside it begin anew.
    Branch,
    /// The root: all clients take part.
    Root,
    /// A node by its level: 0 is the root.
    Number(u32),
}

impl NodeLevel {
    /// The level in a tree whose leaves are at this one.
    pub fn of(self, leaf: usize) -> usize {
        match self {
            Self::Leaf => leaf,
            Self::Branch => leaf.saturating_sub(1),
            Self::Root => 0,
            Self::Number(number) => usize::try_from(number).unwrap_or(usize::MAX),
        }
    }
}

impl std::str::FromStr for NodeLevel {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Ok(match word {
            "leaf" => Self::Leaf,
            "branch" => Self::Branch,
            "root" => Self::Root,
            number => {
                let number =
                    number.parse().map_err(|_| "leaf, branch, root, or a level from 0".to_owned())?;
                Self::Number(number)
            }
        })
    }
}

/// Request to change the capacity of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiquidityRequest {
    /// LSP: node id of the client whose channel it is. Not given by a client, which asks for its own.
    #[serde(default)]
    pub client: Option<String>,
    /// By how much its capacity changes, sat; not 0. It grows by inbound liquidity of the client, and shrinks by the
    /// same: what is the client's stays.
    pub change_sat: i64,
    /// LSP: node id of the client out of whose channel it comes, or into which it goes; the stock of the leaf if not
    /// given.
    #[serde(default)]
    pub from: Option<String>,
    /// LSP: which node above the client advances; its leaf if not given.
    #[serde(default)]
    pub level: NodeLevel,
}

/// A change of capacity that has begun, or that a client has asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiquidityAnswer {
    /// Number of the try; none at a client.
    pub attempt: Option<u16>,
    /// The position that the client's leaf is at, updates since the creation.
    pub from: u64,
    /// The capacity that the channel is going to have, sat.
    pub capacity_sat: u64,
}

/// A rotation that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Number of the try, rising per factory.
    pub attempt: u16,
    /// The position that the client's leaf is at, updates since the creation.
    pub from: u64,
    /// Updates of the leaf alone that are left before this one.
    #[serde(default)]
    pub left: u64,
}
