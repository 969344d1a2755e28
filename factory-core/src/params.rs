//! What a factory is made of: the tree's shape, its Decker-Wattenhofer (DW) counters and its times.
//!
//! A [`Params`] value is part of the plan that a service provider proposes, so it comes from a peer:
//! deserializing one proves nothing and [`Params::validate`] must be called before it is used. All
//! times are in blocks.
//!
//! The rules are looser on regtest only, so that tests need not mine for a month. Signet and the
//! testnets count like mainnet: what is tried there should be what is run later.

use bitcoin::Network;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::planner::limits;

/// Fewest clients of one factory.
pub const MIN_CLIENTS: usize = 2;
/// Most clients of one factory.
pub const MAX_CLIENTS: usize = 1000;
/// Most interior levels: ten binary levels reach 1024 leaves.
pub const MAX_INTERIOR_LEVELS: usize = 10;
/// Most stacked DW layers of one level.
pub const MAX_LAYERS: usize = 16;
/// Largest arity, and most clients of a leaf: a version 3 transaction holds 230 outputs and few more.
/// The exact size is checked separately.
pub const MAX_WIDTH: u16 = 230;
/// Shortest DW step off regtest, blocks. With less, an ordinary outage or a fee spike lets a
/// superseded state confirm first.
pub const MIN_STEP: u16 = 36;
/// Shortest active period off regtest and the default, blocks (30 days).
pub const DEFAULT_ACTIVE: u32 = 4320;
/// Shortest dying period off regtest and the default, blocks (3 days).
pub const DEFAULT_DYING: u32 = 432;
/// Smallest margin before the expiry off regtest and the default, blocks (1 day).
pub const DEFAULT_MARGIN: u32 = 144;
/// Longest active or dying period or margin, blocks (about a year).
pub const MAX_PERIOD: u32 = 52_560;
/// Blocks counted for one confirmation by default.
pub const DEFAULT_CONFIRM_BLOCKS: u16 = 6;
/// Smallest reorganisation margin off regtest and the default, blocks.
pub const DEFAULT_REORG_MARGIN: u16 = 6;
/// Smallest funding depth off regtest and the default, blocks.
pub const DEFAULT_MIN_DEPTH: u16 = 6;
/// An unconfirmed funding transaction is given up this many blocks after the factory's birth.
pub const FUNDING_GIVE_UP: u32 = 144;
/// The default shapes keep the worst exit within this many blocks (3 days).
pub const DEFAULT_EXIT_TARGET: u32 = 432;

/// Arity that costs the fewest bytes of exit per halving of the tree.
const BEST_ARITY: u16 = 8;
/// Factories of up to this size use three stacked layers of 48 blocks. A larger one could fill so many
/// blocks in a mass exit that its window must be wider.
const SMALL_FACTORY: usize = 128;

/// One DW counter. State `i` of `states` has a relative delay of `base + step * (states - 1 - i)` blocks,
/// so a newer state confirms `step` blocks before the one it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DwLayer {
    /// Number of states, at least 2: a layer with one state can never advance.
    pub states: u16,
    /// The race window between neighbouring states, blocks.
    pub step: u16,
    /// Delay of the newest state, blocks. Buys notice, and only on a level's first layer.
    pub base: u16,
}

impl DwLayer {
    /// The BIP 68 relative delay of state `state` (0 is the oldest), in blocks.
    ///
    /// # Errors
    /// [`Error::Limit`] if there is no such state, [`Error::Overflow`] if the delay needs more than
    /// the 16 bits that BIP 68 has for it.
    pub fn sequence(&self, state: u16) -> Result<u16, Error> {
        let last = self.states.checked_sub(1).ok_or(Error::OutOfRange {
            field: "layer.states",
            value: 0,
            min: 2,
            max: u64::from(u16::MAX),
        })?;
        let left = last.checked_sub(state).ok_or(Error::OutOfRange {
            field: "state",
            value: u64::from(state),
            min: 0,
            max: u64::from(last),
        })?;
        self.step
            .checked_mul(left)
            .and_then(|d| d.checked_add(self.base))
            .ok_or(Error::Overflow { field: "layer delay (16 bits)" })
    }

    /// The delay of the oldest state, in blocks: the one that counts for a worst exit. Saturates for a
    /// layer that [`Params::validate`] would refuse.
    pub fn oldest(&self) -> u16 {
        self.step.saturating_mul(self.states.saturating_sub(1)).saturating_add(self.base)
    }

    /// The delay of the expiry distribution on an output that this layer's states spend, in blocks: one
    /// step above the oldest state, so that any state goes first.
    ///
    /// # Errors
    /// [`Error::Overflow`] if it needs more than BIP 68's 16 bits.
    pub fn distribution_sequence(&self) -> Result<u16, Error> {
        self.sequence(0)?
            .checked_add(self.step)
            .ok_or(Error::Overflow { field: "distribution delay (16 bits)" })
    }
}

/// The tree: how wide each level is and which levels can be updated.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Clients that share a leaf. All leaves are full except possibly the last.
    pub clients_per_leaf: u16,
    /// Most children of a node, per interior level, root first. Empty: the root is the only leaf.
    pub arity: Vec<u16>,
    /// The DW layers, outermost first, per level: interior levels root first, then the leaf level. An
    /// empty list makes the level static (one transaction); `m` layers make it a kickoff and `m` states.
    pub layers: Vec<Vec<DwLayer>>,
}

impl Shape {
    /// Number of levels, the leaf level included.
    pub fn levels(&self) -> usize {
        self.arity.len().saturating_add(1)
    }

    /// Number of leaves that `clients` clients need.
    pub fn leaves(&self, clients: usize) -> usize {
        clients.div_ceil(usize::from(self.clients_per_leaf).max(1))
    }

    /// The DW layers of `level`; empty for a static or absent level.
    pub fn layers_at(&self, level: usize) -> &[DwLayer] {
        self.layers.get(level).map_or(&[], Vec::as_slice)
    }

    /// Checks that the tree can be built for `clients` clients: counts, arities, and one list of layers
    /// per level. Says nothing about times; see [`Params::validate`].
    ///
    /// # Errors
    /// The first rule that is broken, with the field, the value and the limit.
    pub fn check_structure(&self, clients: usize) -> Result<(), Error> {
        range("clients", as_u64(clients), as_u64(MIN_CLIENTS), as_u64(MAX_CLIENTS))?;
        range("shape.clients_per_leaf", self.clients_per_leaf.into(), 1, MAX_WIDTH.into())?;
        range("number of interior levels", as_u64(self.arity.len()), 0, as_u64(MAX_INTERIOR_LEVELS))?;
        let leaves = as_u64(self.leaves(clients));
        let mut reach: u64 = 1;
        for (level, arity) in self.arity.iter().enumerate() {
            range("shape.arity", (*arity).into(), 2, MAX_WIDTH.into())?;
            if reach >= leaves {
                return Err(Error::WastefulLevel { level, leaves });
            }
            reach = reach.saturating_mul(u64::from(*arity));
        }
        if reach < leaves {
            let capacity = reach.saturating_mul(u64::from(self.clients_per_leaf));
            return Err(Error::ShapeTooSmall { capacity, clients: as_u64(clients) });
        }
        if self.layers.len() != self.levels() {
            return Err(Error::LayerLists { found: self.layers.len(), needed: self.levels() });
        }
        Ok(())
    }
}

/// Everything about a factory that does not depend on who takes part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The chain. Regtest loosens some limits.
    pub network: Network,
    /// The tree.
    pub shape: Shape,
    /// Length of the active period, blocks.
    pub active: u32,
    /// Length of the dying period in which clients move on, blocks.
    pub dying: u32,
    /// Blocks kept between the end of a worst exit and the expiry.
    pub margin: u32,
    /// Blocks counted for each confirmation of an exit.
    pub confirm_blocks: u16,
    /// Depth at which a confirmation counts as final, blocks.
    pub reorg_margin: u16,
    /// `to_self_delay` of the channels' commitments, blocks (BOLT 2).
    pub to_self_delay: u16,
    /// Depth of the funding transaction at which the channels become ready, blocks.
    pub min_depth: u16,
}

impl Params {
    /// The default factory for `clients` clients, one client a leaf.
    ///
    /// # Errors
    /// As [`Params::default_with`].
    pub fn default_for(clients: usize, network: Network) -> Result<Self, Error> {
        Self::default_with(clients, 1, network)
    }

    /// The default factory with `clients_per_leaf` clients a leaf.
    ///
    /// Interior levels are static and have arity 8, narrowed to 4 from the leaves up while the tree still
    /// fits. If that many levels would make the worst exit longer than [`DEFAULT_EXIT_TARGET`], a level is
    /// dropped and the root widened instead.
    ///
    /// # Errors
    /// [`Error::Limit`] for an unsupported number of clients, or any refusal of
    /// [`Params::validate`].
    pub fn default_with(clients: usize, clients_per_leaf: u16, network: Network) -> Result<Self, Error> {
        range("clients", as_u64(clients), as_u64(MIN_CLIENTS), as_u64(MAX_CLIENTS))?;
        range("shape.clients_per_leaf", clients_per_leaf.into(), 1, MAX_WIDTH.into())?;
        let leaves = clients.div_ceil(usize::from(clients_per_leaf));
        let mut levels = 0u32;
        while usize::from(BEST_ARITY).saturating_pow(levels) < leaves {
            levels = levels.saturating_add(1);
        }
        let build = |levels| Self {
            network,
            shape: default_shape(clients, clients_per_leaf, leaves, levels),
            active: DEFAULT_ACTIVE,
            dying: DEFAULT_DYING,
            margin: DEFAULT_MARGIN,
            confirm_blocks: DEFAULT_CONFIRM_BLOCKS,
            reorg_margin: DEFAULT_REORG_MARGIN,
            to_self_delay: limits::LDK_MIN_TO_SELF_DELAY,
            min_depth: if network == Network::Regtest { 1 } else { DEFAULT_MIN_DEPTH },
        };
        let mut params = build(levels);
        while levels > 1 && params.worst_exit(params.confirm_blocks)? > DEFAULT_EXIT_TARGET {
            levels = levels.saturating_sub(1);
            params = build(levels);
        }
        params.validate(clients)?;
        Ok(params)
    }

    /// Whether the looser limits of a private test chain apply.
    pub fn is_regtest(&self) -> bool {
        self.network == Network::Regtest
    }

    /// Checks every rule for a factory of `clients` clients.
    ///
    /// # Errors
    /// The first rule that is broken, with the field, the value and the limit.
    pub fn validate(&self, clients: usize) -> Result<(), Error> {
        self.shape.check_structure(clients)?;
        self.validate_layers()?;
        self.validate_times()?;
        self.validate_exit()?;
        self.validate_sizes(clients)
    }

    fn validate_layers(&self) -> Result<(), Error> {
        let max = u64::from(u16::MAX);
        let min_step = if self.is_regtest() { 1 } else { MIN_STEP };
        for (level, layers) in self.shape.layers.iter().enumerate() {
            range("number of layers of a level", as_u64(layers.len()), 0, as_u64(MAX_LAYERS))?;
            for (index, layer) in layers.iter().enumerate() {
                range("layer.states", layer.states.into(), 2, max)?;
                range("layer.step", layer.step.into(), min_step.into(), max)?;
                if index > 0 && layer.base != 0 {
                    return Err(Error::BaseOnInnerLayer { level, layer: index, base: layer.base });
                }
                layer.distribution_sequence()?;
            }
        }
        Ok(())
    }

    fn validate_times(&self) -> Result<(), Error> {
        let floor = |least: u32| if self.is_regtest() { 1 } else { u64::from(least) };
        range("active", self.active.into(), floor(DEFAULT_ACTIVE), MAX_PERIOD.into())?;
        range("dying", self.dying.into(), floor(DEFAULT_DYING), MAX_PERIOD.into())?;
        range("margin", self.margin.into(), floor(DEFAULT_MARGIN), MAX_PERIOD.into())?;
        let exit = limits::MAX_EXIT.into();
        range("confirm_blocks", self.confirm_blocks.into(), floor(DEFAULT_CONFIRM_BLOCKS.into()), exit)?;
        range("reorg_margin", self.reorg_margin.into(), floor(DEFAULT_REORG_MARGIN.into()), exit)?;
        range(
            "to_self_delay",
            self.to_self_delay.into(),
            limits::LDK_MIN_TO_SELF_DELAY.into(),
            limits::LDK_MAX_TO_SELF_DELAY.into(),
        )?;
        range("min_depth", self.min_depth.into(), floor(DEFAULT_MIN_DEPTH.into()), FUNDING_GIVE_UP.into())
    }
}

/// Refuses `value` outside `min..=max`.
pub(crate) fn range(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), Error> {
    if value < min || value > max {
        return Err(Error::OutOfRange { field, value, min, max });
    }
    Ok(())
}

/// Widens; no supported platform has pointers of more than 64 bits.
pub(crate) fn as_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn default_shape(clients: usize, clients_per_leaf: u16, leaves: usize, levels: u32) -> Shape {
    let mut arity = vec![BEST_ARITY; usize::try_from(levels).unwrap_or(0)];
    let reach = |arity: &[u16]| arity.iter().fold(1usize, |p, a| p.saturating_mul((*a).into()));
    for level in (0..arity.len()).rev() {
        let mut narrower = arity.clone();
        if let Some(a) = narrower.get_mut(level) {
            *a /= 2;
        }
        if reach(&narrower) < leaves {
            break;
        }
        arity = narrower;
    }
    if let Some((root, below)) = arity.split_first_mut() {
        // Too few levels: widen the root. Too many children for a tree of one level: fit it.
        let needed = leaves.div_ceil(reach(below).max(1));
        if needed > usize::from(*root) || below.is_empty() {
            *root = u16::try_from(needed).unwrap_or(u16::MAX);
        }
    }
    let leaf = if clients <= SMALL_FACTORY { stack(3, 48, 96) } else { stack(2, 72, 72) };
    let mut layers = vec![Vec::new(); arity.len()];
    layers.push(leaf);
    Shape { clients_per_leaf, arity, layers }
}

/// `count` stacked two-state layers; the first carries the base delay.
fn stack(count: usize, step: u16, base: u16) -> Vec<DwLayer> {
    (0..count).map(|i| DwLayer { states: 2, step, base: if i == 0 { base } else { 0 } }).collect()
}
