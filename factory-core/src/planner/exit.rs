//! The transactions of one client's exit, in the order in which they go out.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::geometry;
use crate::params::Params;
use crate::sizes::{self, TxSize};

/// What a transaction of an exit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The only transaction of a static level.
    Static,
    /// Starts the clock of a level with DW layers.
    Kickoff,
    /// The state of a DW layer; `layer` 0 is the level's outermost.
    State {
        /// Index of the layer in its level.
        layer: usize,
    },
    /// The channel's commitment.
    Commitment,
}

/// One transaction of an exit. Each goes out with a fee-paying child ([`sizes::child`]) once the one
/// before it is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStep {
    /// The level, 0 is the root. The commitment has the number of levels.
    pub level: usize,
    /// What the transaction is.
    pub kind: StepKind,
    /// Blocks after the confirmation of the transaction before it until this one is valid, in the
    /// layer's oldest state.
    pub delay: u16,
    /// Its size without the child.
    pub size: TxSize,
}

/// The exit of client `index`: its path from the root, then its channel's commitment.
///
/// The first client's exit is the largest of the factory, because where a tree does not divide evenly
/// the first children are the larger ones.
///
/// # Errors
/// The refusals of [`geometry::path`].
pub fn exit_steps(params: &Params, clients: usize, index: usize) -> Result<Vec<ExitStep>, Error> {
    let shape = &params.shape;
    let mut steps = Vec::new();
    for node in geometry::path(shape, clients, index)? {
        let level = node.level;
        let width = geometry::children(shape, clients, level, node.first, node.end).len();
        let branching = sizes::tree_tx(sizes::branch_outputs(shape, level, width));
        let layers = shape.layers_at(level);
        if layers.is_empty() {
            steps.push(ExitStep { level, kind: StepKind::Static, delay: 0, size: branching });
            continue;
        }
        steps.push(ExitStep { level, kind: StepKind::Kickoff, delay: 0, size: sizes::kickoff() });
        for (layer, counter) in layers.iter().enumerate() {
            let last = layer.saturating_add(1) == layers.len();
            let size = if last { branching } else { sizes::kickoff() };
            steps.push(ExitStep { level, kind: StepKind::State { layer }, delay: counter.oldest(), size });
        }
    }
    steps.push(ExitStep {
        level: shape.levels(),
        kind: StepKind::Commitment,
        delay: 0,
        size: sizes::commitment(),
    });
    Ok(steps)
}
