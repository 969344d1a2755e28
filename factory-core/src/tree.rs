//! The whole tree, as the provider builds it.
//!
//! In two steps, because the funding output has to be known before the funding transaction exists: [`Layout`] has
//! keys and amounts, [`Layout::build`] adds the channels' scripts and the funding outpoint and so gets all
//! transactions. Both rest on a skeleton that a part of the tree can be built from too, for an advance.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, TxOut};

use crate::geometry::{self, NodeRange};
use crate::musig::AggKey;
use crate::node::{client_keys, node_key, Node, NodeSpec};
use crate::odometer::States;
use crate::parallel;
use crate::params::Params;
use crate::plan::{add, index_error, FactoryPlan, LeafSpec};
use crate::Error;

/// Places, keys and amounts of a node and of everything below it.
#[derive(Clone, Debug)]
pub(crate) struct Skeleton {
    ranges: Vec<NodeRange>,
    keys: Vec<AggKey>,
    values: Vec<u64>,
    /// Positions in `ranges` of each interior node's children.
    children: Vec<Vec<usize>>,
}

impl Skeleton {
    /// Of the node at `level` whose first client is `first`, among the clients that `keys` lists after the provider.
    /// `leaf_value` says what a leaf is worth, sat.
    pub(crate) fn new(
        params: &Params,
        keys: &[PublicKey],
        (level, first): (usize, usize),
        leaf_value: impl Fn(&NodeRange) -> Result<u64, Error>,
    ) -> Result<Self, Error> {
        let all = geometry::nodes(&params.shape, keys.len().saturating_sub(1))?;
        let top = all.iter().find(|r| r.level == level && r.first == first);
        let end = top.map(|r| r.end).ok_or_else(|| index_error(first, keys.len()))?;
        let below = |r: &NodeRange| r.level >= level && r.first >= first && r.end <= end;
        let ranges: Vec<_> = all.into_iter().filter(below).collect();
        let node_keys = parallel::try_map(&ranges, |r| node_key(keys, r.first, r.end))?;
        let place: BTreeMap<(usize, usize), usize> =
            ranges.iter().enumerate().map(|(i, r)| ((r.level, r.first), i)).collect();
        let leaf_level = params.shape.arity.len();
        let mut children = vec![Vec::new(); ranges.len()];
        let mut values = vec![0u64; ranges.len()];
        // Children come after their parent in the list.
        for (i, range) in ranges.iter().enumerate().rev() {
            let mut value = 0u64;
            let mut positions = Vec::new();
            if range.level == leaf_level {
                value = leaf_value(range)?;
            } else {
                for (first, _) in &range.children {
                    let child = place
                        .get(&(range.level.saturating_add(1), *first))
                        .copied()
                        .ok_or_else(|| index_error(*first, ranges.len()))?;
                    let below = values.get(child).copied().ok_or_else(|| index_error(child, ranges.len()))?;
                    value = add(value, below)?;
                    positions.push(child);
                }
            }
            if let (Some(v), Some(c)) = (values.get_mut(i), children.get_mut(i)) {
                *v = value;
                *c = positions;
            }
        }
        Ok(Self { ranges, keys: node_keys, values, children })
    }

    /// The output that pays the top node.
    pub(crate) fn output(&self) -> Result<TxOut, Error> {
        self.output_of(0).map_err(|_| Error::Empty { what: "tree" })
    }

    /// Builds all nodes below the output `input`, at a position of the odometer. `leaf` has what is in a leaf, and its
    /// channels' scripts.
    pub(crate) fn build(
        &self,
        params: &Params,
        all_keys: &[PublicKey],
        input: OutPoint,
        states: &States,
        leaf: impl Fn(&NodeRange) -> Result<(LeafSpec, Vec<ScriptBuf>), Error>,
    ) -> Result<Vec<Node>, Error> {
        let leaf_level = params.shape.arity.len();
        let mut inputs: Vec<Option<OutPoint>> = vec![None; self.ranges.len()];
        if let Some(top) = inputs.first_mut() {
            *top = Some(input);
        }
        let mut nodes = Vec::with_capacity(self.ranges.len());
        let missing = |i: usize| index_error(i, self.ranges.len());
        for (i, range) in self.ranges.iter().enumerate() {
            let key = self.keys.get(i).cloned().ok_or_else(|| missing(i))?;
            let value_sat = self.values.get(i).copied().ok_or_else(|| missing(i))?;
            let input = inputs.get(i).copied().flatten().ok_or_else(|| missing(i))?;
            let below = self.children.get(i).ok_or_else(|| missing(i))?;
            let leaf = if range.level == leaf_level { Some(leaf(range)?) } else { None };
            let outputs = match &leaf {
                Some((leaf, scripts)) => leaf.outputs(scripts)?,
                None => below.iter().map(|c| self.output_of(*c)).collect::<Result<Vec<_>, _>>()?,
            };
            let node = Node::build(NodeSpec {
                level: range.level,
                first: range.first,
                end: range.end,
                key,
                clients: client_keys(all_keys, range.first, range.end)?,
                input,
                value_sat,
                layers: params.shape.layers_at(range.level),
                states: states.at(range.level),
                outputs,
                leaf: leaf.as_ref().map(|(leaf, _)| leaf),
            })?;
            for (position, child) in below.iter().enumerate() {
                let outpoint = node.child_outpoint(position)?;
                *inputs.get_mut(*child).ok_or_else(|| missing(*child))? = Some(outpoint);
            }
            nodes.push(node);
        }
        Ok(nodes)
    }

    fn output_of(&self, node: usize) -> Result<TxOut, Error> {
        match (self.keys.get(node), self.values.get(node)) {
            (Some(key), Some(value)) => {
                Ok(TxOut { value: Amount::from_sat(*value), script_pubkey: key.script_pubkey() })
            }
            _ => Err(index_error(node, self.keys.len())),
        }
    }
}

/// Keys and amounts of every node.
#[derive(Clone, Debug)]
pub struct Layout {
    plan: FactoryPlan,
    skeleton: Skeleton,
}

impl Layout {
    /// Computes the keys and amounts of every node of `plan`.
    ///
    /// # Errors
    /// Those of the geometry and of key aggregation; none is expected for a valid plan.
    pub fn new(plan: FactoryPlan) -> Result<Self, Error> {
        let value = |leaf: &NodeRange| plan.leaf(leaf.first, leaf.end)?.value_sat();
        let skeleton = Skeleton::new(&plan.params, &plan.keys(), (0, 0), value)?;
        Ok(Self { plan, skeleton })
    }

    /// The plan.
    pub fn plan(&self) -> &FactoryPlan {
        &self.plan
    }

    /// The funding output: everybody's aggregate key and the sum of all leaves.
    ///
    /// # Errors
    /// [`Error::Empty`] for a tree without nodes, which a valid plan does not have.
    pub fn funding_output(&self) -> Result<TxOut, Error> {
        self.skeleton.output()
    }

    /// Builds all transactions of a factory at its creation: every DW layer in its first state. `channel_scripts` has
    /// one P2WSH script per client in tree order.
    ///
    /// # Errors
    /// [`Error::Count`] or [`Error::Script`] for wrong scripts, [`Error::Dust`] for an output that is too small.
    pub fn build(self, channel_scripts: &[ScriptBuf], funding: OutPoint) -> Result<Tree, Error> {
        let states = self.plan.params.states_after(0)?;
        self.build_at(channel_scripts, funding, &states)
    }

    /// Builds all transactions with every node at the same position of the odometer, which
    /// [`Params::states_after`](crate::params::Params::states_after) has. Down to the first layer that differs, two
    /// positions share their transactions.
    ///
    /// # Errors
    /// As [`Layout::build`], and [`Error::OutOfRange`] for states of other parameters.
    pub fn build_at(
        self,
        channel_scripts: &[ScriptBuf],
        funding: OutPoint,
        states: &States,
    ) -> Result<Tree, Error> {
        let distributed_at = self.plan.params.distribution_height(self.plan.expiry_height, states)?;
        let clients = self.plan.members.len();
        if channel_scripts.len() != clients {
            return Err(Error::Count {
                what: "channel scripts",
                got: channel_scripts.len(),
                expected: clients,
            });
        }
        let leaf = |range: &NodeRange| {
            let leaf = self.plan.leaf(range.first, range.end)?;
            let scripts = channel_scripts.get(range.first..range.end);
            let scripts = scripts.ok_or_else(|| index_error(range.first, clients))?;
            Ok((LeafSpec { expiry_height: distributed_at, ..leaf }, scripts.to_vec()))
        };
        let nodes = self.skeleton.build(&self.plan.params, &self.plan.keys(), funding, states, leaf)?;
        Ok(Tree { layout: self, nodes, funding, channel_scripts: channel_scripts.to_vec() })
    }
}

/// Every transaction of a factory, unsigned.
#[derive(Clone, Debug)]
pub struct Tree {
    layout: Layout,
    nodes: Vec<Node>,
    funding: OutPoint,
    channel_scripts: Vec<ScriptBuf>,
}

impl Tree {
    /// Builds the tree of `plan` at once; see [`Layout`] for the two steps.
    ///
    /// # Errors
    /// Those of [`Layout::new`] and [`Layout::build`].
    pub fn build(plan: FactoryPlan, channel_scripts: &[ScriptBuf], funding: OutPoint) -> Result<Self, Error> {
        Layout::new(plan)?.build(channel_scripts, funding)
    }

    /// The plan.
    pub fn plan(&self) -> &FactoryPlan {
        &self.layout.plan
    }

    /// The funding outpoint.
    pub fn funding_outpoint(&self) -> OutPoint {
        self.funding
    }

    /// The funding output.
    ///
    /// # Errors
    /// As [`Layout::funding_output`].
    pub fn funding_output(&self) -> Result<TxOut, Error> {
        self.layout.funding_output()
    }

    /// All nodes, root first, level by level.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The clients' channel scripts in tree order.
    pub fn channel_scripts(&self) -> &[ScriptBuf] {
        &self.channel_scripts
    }

    /// Positions in [`Tree::nodes`] of the nodes on client `index`'s path, root first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an index no client has.
    pub fn path_nodes(&self, index: usize) -> Result<Vec<usize>, Error> {
        let path = geometry::path(&self.plan().params.shape, self.plan().members.len(), index)?;
        path.iter()
            .map(|p| {
                self.nodes
                    .iter()
                    .position(|n| n.level == p.level && n.first == p.first)
                    .ok_or_else(|| index_error(p.first, self.nodes.len()))
            })
            .collect()
    }

    /// The outpoint of client `index`'s channel.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an index no client has.
    pub fn channel_outpoint(&self, index: usize) -> Result<OutPoint, Error> {
        let leaf = self.path_nodes(index)?.last().copied().and_then(|i| self.nodes.get(i));
        let leaf = leaf.ok_or_else(|| index_error(index, self.nodes.len()))?;
        leaf.child_outpoint(index.saturating_sub(leaf.first))
    }
}
