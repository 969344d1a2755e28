//! One client's path through the tree, as the client rebuilds and checks it.
//!
//! From the plan a client knows all keys and its own leaf; from the path message the outputs beside its own on each
//! level. That is enough to build every transaction between the funding output and its channel, and needs no trust:
//! a wrong sibling amount or key gives other transaction ids, whose signatures the client would refuse.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, TxOut};
use bolt_tlv::payload;

use crate::faults::switch;
use crate::geometry::{self, PathNode};
use crate::lifetime::Lifetime;
use crate::node::{client_keys, node_key, Node, NodeSpec};
use crate::params::{Params, MAX_CLIENTS};
use crate::plan::{
    self, add, check_distinct, check_payout_script, check_share, check_stock, child_ranges, LeafSpec,
};
use crate::refuse::{refuse, Refusal, RefuseCode};
use crate::transaction::{check_dust, TreeTx};
use crate::wire;

/// A plan as one client sees it. It exists only if the plan keeps the rules of the protocol; what the client
/// *wants* is checked apart from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientPlan {
    /// Identity of the factory.
    pub instance_id: [u8; 32],
    /// The try.
    pub attempt: u16,
    /// Shape and times.
    pub params: Params,
    /// Height from which its life counts, blocks.
    pub birth_height: u32,
    /// Height T from which distributions are valid, blocks.
    pub expiry_height: u32,
    /// All signers: the provider first, then the clients in tree order.
    pub keys: Vec<PublicKey>,
    /// The client's place in tree order (one less than its place in `keys`).
    pub index: usize,
    /// The client's leaf.
    pub leaf: LeafSpec,
    /// The client's place in its leaf.
    pub position: usize,
    /// The client's path, root first.
    nodes: Vec<PathNode>,
}

impl ClientPlan {
    /// Checks a plan message for the holder of `own_key`.
    ///
    /// # Errors
    /// The first rule that is broken, with its code.
    pub fn new(message: &payload::Plan, network: Network, own_key: &PublicKey) -> Result<Self, Refusal> {
        if message.network_magic != wire::magic(network) && !switch("client.plan.network") {
            let text = format!("plan is for magic {}", hex::encode(message.network_magic));
            return Err(Refusal::new(RefuseCode::Network, text));
        }
        let clients = message.keys.len().saturating_sub(1);
        if clients > MAX_CLIENTS {
            return Err(Refusal::new(RefuseCode::TooManyClients, format!("{clients} clients")));
        }
        let params = wire::params_from_wire(&message.params, network);
        if !switch("client.plan.params") {
            plan::check_params(&params, clients).map_err(refuse(RefuseCode::Params))?;
        }
        if !switch("client.plan.lifetime") {
            Lifetime::check(message.birth_height, message.expiry_height, &params, clients)
                .map_err(refuse(RefuseCode::Lifetime))?;
        }
        let place = usize::try_from(message.index).unwrap_or(usize::MAX);
        let index = place.checked_sub(1);
        let at_index = message.keys.get(place) == Some(own_key);
        let times = message.keys.iter().filter(|k| *k == own_key).count();
        let Some(index) = index.filter(|_| (at_index && times == 1) || switch("client.plan.own_key")) else {
            let text =
                format!("own key is there {times} times, expected once at index {place} of 1..={clients}");
            return Err(Refusal::new(RefuseCode::OwnKey, text));
        };
        if !switch("client.plan.keys") {
            check_distinct(&message.keys).map_err(refuse(RefuseCode::DuplicateKey))?;
        }
        let nodes = geometry::path(&params.shape, clients, index).map_err(refuse(RefuseCode::Params))?;
        let leaf = Self::check_leaf(message, &nodes)?;
        let position = nodes.last().map_or(0, |n| n.child);
        Ok(Self {
            instance_id: message.instance_id,
            attempt: message.attempt,
            params,
            birth_height: message.birth_height,
            expiry_height: message.expiry_height,
            keys: message.keys.clone(),
            index,
            leaf,
            position,
            nodes,
        })
    }

    fn check_leaf(message: &payload::Plan, nodes: &[PathNode]) -> Result<LeafSpec, Refusal> {
        let expected = nodes.last().map_or(0, |n| n.end.saturating_sub(n.first));
        if message.leaf.len() != expected {
            let text = format!("leaf has {} members, the shape says {expected}", message.leaf.len());
            return Err(Refusal::new(RefuseCode::LeafMembers, text));
        }
        let members: Vec<_> = message.leaf.iter().map(wire::member_from_wire).collect();
        for (i, member) in members.iter().enumerate() {
            check_payout_script("payout script", &member.payout_script)
                .map_err(refuse(RefuseCode::PayoutScript))?;
            let code = if member.push_msat > member.capacity_sat.saturating_mul(1000) {
                RefuseCode::Push
            } else {
                RefuseCode::Capacity
            };
            check_share(member).map_err(refuse(code))?;
            let same = |other: &plan::LeafMember| other.temporary_channel_id == member.temporary_channel_id;
            if members.iter().skip(i.saturating_add(1)).any(same) {
                return Err(Refusal::new(
                    RefuseCode::ChannelId,
                    "temporary channel id is used twice in the leaf",
                ));
            }
        }
        if !switch("client.plan.stock") {
            check_stock(message.stock_sat, &message.stock_script).map_err(refuse(RefuseCode::Stock))?;
        }
        let leaf = LeafSpec {
            members,
            stock_sat: message.stock_sat,
            stock_script: message.stock_script.clone(),
            expiry_height: message.expiry_height,
        };
        leaf.value_sat().map_err(refuse(RefuseCode::Capacity))?;
        Ok(leaf)
    }

    /// The client's own share.
    pub fn own(&self) -> Option<&plan::LeafMember> {
        self.leaf.members.get(self.position)
    }

    /// Number of clients.
    pub fn clients(&self) -> usize {
        self.keys.len().saturating_sub(1)
    }
}

/// A client's path: every transaction between the funding output and its channel, and its leaf's distributions.
#[derive(Clone, Debug)]
pub struct ClientPath {
    nodes: Vec<Node>,
    funding: OutPoint,
    funding_output: TxOut,
    channel: OutPoint,
    channel_scripts: Vec<ScriptBuf>,
}

impl ClientPath {
    /// Rebuilds the path from a checked plan and a path message.
    ///
    /// # Errors
    /// The first check that fails, with its code.
    pub fn build(plan: &ClientPlan, message: &payload::Path) -> Result<Self, Refusal> {
        let interior = plan.nodes.len().saturating_sub(1);
        if message.levels.len() != interior {
            let text = format!("path has {} interior levels, expected {interior}", message.levels.len());
            return Err(Refusal::new(RefuseCode::PathShape, text));
        }
        let keys = plan
            .nodes
            .iter()
            .map(|n| node_key(&plan.keys, n.first, n.end))
            .collect::<Result<Vec<_>, _>>()
            .map_err(refuse(RefuseCode::DuplicateKey))?;
        // The outputs of every node on the path, and from them its value.
        let mut outputs = Vec::with_capacity(plan.nodes.len());
        for (i, level) in message.levels.iter().enumerate() {
            let (Some(node), Some(next)) = (plan.nodes.get(i), keys.get(i.saturating_add(1))) else {
                return Err(Refusal::new(RefuseCode::PathShape, "path is longer than the tree is deep"));
            };
            outputs.push(level_outputs(&plan.params, plan.clients(), node, level, &next.script_pubkey())?);
        }
        if message.channel_scripts.len() != plan.leaf.members.len() {
            let text = format!("{} channel scripts for the leaf", message.channel_scripts.len());
            return Err(Refusal::new(RefuseCode::PathShape, text));
        }
        outputs.push(plan.leaf.outputs(&message.channel_scripts).map_err(refuse(RefuseCode::ChannelScript))?);
        let values = outputs
            .iter()
            .map(|list| list.iter().try_fold(0u64, |sum, o| add(sum, o.value.to_sat())))
            .collect::<Result<Vec<_>, _>>()
            .map_err(refuse(RefuseCode::Conservation))?;
        // Each node gets exactly what its parent gives it.
        let given = plan.nodes.iter().zip(&outputs).map(|(node, list)| list.get(node.child));
        for (i, (output, value)) in given.zip(values.iter().skip(1)).enumerate() {
            let got = output.map_or(0, |o| o.value.to_sat());
            if got != *value && !switch("client.path.amounts") {
                let text = format!("level {i} gives its child {got} sat, the child spends {value} sat");
                return Err(Refusal::new(RefuseCode::Conservation, text));
            }
        }
        let root_value = values.first().copied().unwrap_or(0);
        if message.funding_sat != root_value && !switch("client.path.funding_value") {
            let text = format!("funding of {} sat, the root spends {root_value} sat", message.funding_sat);
            return Err(Refusal::new(RefuseCode::FundingValue, text));
        }
        let states = plan.params.states_after(0).map_err(refuse(RefuseCode::Params))?;
        let mut nodes: Vec<Node> = Vec::with_capacity(plan.nodes.len());
        let mut input = message.funding_outpoint;
        let levels = plan.nodes.iter().zip(keys).zip(outputs.into_iter().zip(values));
        for ((place, key), (outputs, value_sat)) in levels {
            let leaf = (place.level == interior).then_some(&plan.leaf);
            let node = Node::build(NodeSpec {
                level: place.level,
                first: place.first,
                end: place.end,
                key,
                clients: client_keys(&plan.keys, place.first, place.end)
                    .map_err(refuse(RefuseCode::PathShape))?,
                input,
                value_sat,
                layers: plan.params.shape.layers_at(place.level),
                states: states.at(place.level),
                outputs,
                leaf,
            })
            .map_err(refuse(RefuseCode::Conservation))?;
            input = node.child_outpoint(place.child).map_err(refuse(RefuseCode::PathShape))?;
            nodes.push(node);
        }
        let root = nodes.first().ok_or_else(|| Refusal::new(RefuseCode::PathShape, "path is empty"))?;
        let funding_output =
            TxOut { value: Amount::from_sat(root.value_sat), script_pubkey: root.script_pubkey() };
        Ok(Self {
            nodes,
            funding: message.funding_outpoint,
            funding_output,
            channel: input,
            channel_scripts: message.channel_scripts.clone(),
        })
    }

    /// The nodes, root first, each with what it signs.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What the client signs, in the order of the messages: per node its transactions, then its distributions.
    pub fn sessions(&self) -> impl Iterator<Item = (&Node, &TreeTx)> {
        self.nodes.iter().flat_map(|node| node.sessions().map(move |tx| (node, tx)))
    }

    /// Number of [`ClientPath::sessions`].
    pub fn session_count(&self) -> usize {
        self.nodes.iter().map(Node::session_count).sum()
    }

    /// The funding outpoint.
    pub fn funding_outpoint(&self) -> OutPoint {
        self.funding
    }

    /// The funding output.
    pub fn funding_output(&self) -> &TxOut {
        &self.funding_output
    }

    /// The outpoint of the client's channel.
    pub fn channel_outpoint(&self) -> OutPoint {
        self.channel
    }

    /// The channel scripts of the leaf's members, in order.
    pub fn channel_scripts(&self) -> &[ScriptBuf] {
        &self.channel_scripts
    }
}

/// The outputs of one node of the path as the provider told them: its children in order, among them `child_script`,
/// which pays the signers of the path's next node.
///
/// # Errors
/// The first check that fails, with its code.
pub(crate) fn level_outputs(
    params: &Params,
    clients: usize,
    node: &PathNode,
    level: &[(u64, ScriptBuf)],
    child_script: &ScriptBuf,
) -> Result<Vec<TxOut>, Refusal> {
    let ranges = child_ranges(params, clients, node).map_err(refuse(RefuseCode::PathShape))?;
    if level.len() != ranges.len() {
        let text = format!("level {} has {} outputs, expected {}", node.level, level.len(), ranges.len());
        return Err(Refusal::new(RefuseCode::PathShape, text));
    }
    let mut outputs = Vec::with_capacity(level.len().saturating_add(1));
    for (i, (sat, script)) in level.iter().enumerate() {
        let output = TxOut { value: Amount::from_sat(*sat), script_pubkey: script.clone() };
        if i == node.child {
            if script != child_script && !switch("client.path.child_key") {
                let text = format!("output {i} of level {} does not pay this client's signers", node.level);
                return Err(Refusal::new(RefuseCode::ChildKey, text));
            }
        } else if !switch("client.path.siblings") {
            if !script.is_p2tr() {
                let text = format!("output {i} of level {} is not p2tr", node.level);
                return Err(Refusal::new(RefuseCode::SiblingOutput, text));
            }
            check_dust("sibling output", &output).map_err(refuse(RefuseCode::SiblingOutput))?;
        }
        outputs.push(output);
    }
    Ok(outputs)
}
