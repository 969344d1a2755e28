//! Which state every DW layer is in after a number of updates, and when the distributions of that position are valid.
//!
//! The layers on a path count as one odometer: the leaf's innermost layer is the fastest digit, the root's outermost
//! the slowest. A layer that ticks puts everything inside it back to its first state, so at the layer that differs the
//! newer of two positions always has the shorter delay. Whoever may move a digit is another matter: an update of the
//! leaf's own layers needs that leaf's signers alone, one of an upper layer everybody below it.

use crate::error::Error;
use crate::params::{range, Params};

/// A position of the odometer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct States {
    updates: u64,
    levels: Vec<Vec<u16>>,
}

impl States {
    /// Updates since creation.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The state of each DW layer of `level`, outermost first; empty for a static or absent level. Level 0 is the
    /// root.
    pub fn at(&self, level: usize) -> &[u16] {
        self.levels.get(level).map_or(&[], Vec::as_slice)
    }

    /// All digits from the root's outermost layer to the leaf's innermost one.
    pub fn digits(&self) -> impl Iterator<Item = u16> + '_ {
        self.levels.iter().flatten().copied()
    }
}

impl Params {
    /// The state of every layer after `updates` updates; 0 is a factory at its creation.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the layers are exhausted before: they make [`Params::path_updates`] updates.
    pub fn states_after(&self, updates: u64) -> Result<States, Error> {
        range("updates", updates, 0, self.path_updates()?)?;
        let overflow = || Error::Overflow { field: "state of a layer" };
        let mut left = updates;
        let mut levels = Vec::with_capacity(self.shape.layers.len());
        for layers in self.shape.layers.iter().rev() {
            let mut states = Vec::with_capacity(layers.len());
            for layer in layers.iter().rev() {
                let count = u64::from(layer.states);
                let digit = left.checked_rem(count).and_then(|digit| u16::try_from(digit).ok());
                states.push(digit.ok_or_else(overflow)?);
                left = left.checked_div(count).ok_or_else(overflow)?;
            }
            states.reverse();
            levels.push(states);
        }
        levels.reverse();
        Ok(States { updates, levels })
    }

    /// The height from which the distributions signed at a position are valid, if those signed at creation are from
    /// `expiry` on: one step earlier for each update that could change what a client gets, so that the newest ones go
    /// first. Where no update can (see [`Params::distribution_spread`]), always `expiry`.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the expiry is below the spread, which no valid plan's is.
    pub fn distribution_height(&self, expiry: u32, states: &States) -> Result<u32, Error> {
        if self.distribution_spread()? == 0 {
            return Ok(expiry);
        }
        states
            .updates
            .checked_mul(self.distribution_step().into())
            .and_then(|earlier| u32::try_from(earlier).ok())
            .and_then(|earlier| expiry.checked_sub(earlier))
            .ok_or(Error::Overflow { field: "distribution lock times" })
    }
}
