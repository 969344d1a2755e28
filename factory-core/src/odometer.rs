//! Which state every DW layer is in after a number of updates, and when the distributions of that position are valid.
//!
//! The layers on a path count as one odometer: the leaf's innermost layer is the fastest digit, the root's outermost
//! the slowest. A layer that ticks puts everything inside it back to its first state, so at the layer that differs the
//! newer of two positions always has the shorter delay. Whoever may move a digit is another matter: an update of the
//! leaf's own layers needs that leaf's signers alone, one of an upper layer everybody below it.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::params::{as_u64, range, Params};

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

/// What is left of the odometer at a position.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Remaining {
    /// Per level, root first, how often its layers can still tick while those above stay as they are; 0 for a static
    /// level. An update of one level gives the levels inside it all theirs back.
    pub levels: Vec<u64>,
}

impl Remaining {
    /// Updates of the leaf alone.
    pub fn leaf(&self) -> u64 {
        self.levels.last().copied().unwrap_or(0)
    }

    /// Updates of the levels above, which need everybody below the node that ticks.
    pub fn upper(&self) -> u64 {
        self.levels.iter().rev().skip(1).fold(0, |sum, n| sum.saturating_add(*n))
    }
}

impl Params {
    /// States of `level`: the product of those of its layers, 1 for a static level.
    fn level_states(&self, level: usize) -> Result<u64, Error> {
        let product = |product: u64, states: u16| product.checked_mul(states.into());
        let layers = self.shape.layers_at(level).iter().map(|layer| layer.states);
        layers.into_iter().try_fold(1, product).ok_or(Error::Overflow { field: "states of a level" })
    }

    /// Positions from one state of `level` to the next: all those of the levels inside it.
    fn level_step(&self, level: usize) -> Result<u64, Error> {
        let mut step = 1u64;
        for inside in level.saturating_add(1)..self.shape.levels() {
            let states = self.level_states(inside)?;
            step = step.checked_mul(states).ok_or(Error::Overflow { field: "states of a level" })?;
        }
        Ok(step)
    }

    /// The state of `level` at a position, and the position of everything above it, as numbers.
    fn split(&self, level: usize, position: u64) -> Result<(u64, u64), Error> {
        let overflow = || Error::Overflow { field: "states of a level" };
        let states = self.level_states(level)?;
        let high = position.checked_div(self.level_step(level)?).ok_or_else(overflow)?;
        let state = high.checked_rem(states).ok_or_else(overflow)?;
        Ok((state, high.checked_div(states).ok_or_else(overflow)?))
    }

    /// What is left at a position.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a position that there is not.
    pub fn remaining(&self, position: u64) -> Result<Remaining, Error> {
        range("updates", position, 0, self.path_updates()?)?;
        let left = |level| {
            let (state, _) = self.split(level, position)?;
            Ok(self.level_states(level)?.saturating_sub(1).saturating_sub(state))
        };
        Ok(Remaining { levels: (0..self.shape.levels()).map(left).collect::<Result<_, Error>>()? })
    }

    /// The first position that an advance of `level` leads to from `from` and whose outermost new state is in no
    /// position up to `above`, the newest that was tried: see [`Params::is_untried`]. The levels inside begin anew.
    ///
    /// # Errors
    /// [`Error::Exhausted`] with what is left if there is none; [`Error::OutOfRange`] for a level or a position
    /// that there is not.
    pub fn next_position(&self, level: usize, from: u64, above: u64) -> Result<u64, Error> {
        range("level", as_u64(level), 0, as_u64(self.shape.levels()).saturating_sub(1))?;
        let newest = from.max(above);
        let left = self.remaining(newest)?;
        let mut step = self.level_step(level)?;
        for layer in self.shape.layers_at(level).iter().rev() {
            let next = newest.checked_div(step).and_then(|high| high.checked_add(1)?.checked_mul(step));
            let next = next.filter(|next| self.check_advance(level, from, *next).is_ok());
            if let Some(next) = next {
                if self.is_untried(from, above, next)? {
                    return Ok(next);
                }
            }
            let wider = step.checked_mul(layer.states.into());
            step = wider.ok_or(Error::Overflow { field: "states of a level" })?;
        }
        Err(Error::Exhausted { level, leaf: left.leaf(), upper: left.upper() })
    }

    /// Whether anything newer is left for a leaf at `from` once `above` was tried, at whatever level.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a position that there is not.
    pub fn has_next(&self, from: u64, above: u64) -> Result<bool, Error> {
        range("updates", from.max(above), 0, self.path_updates()?)?;
        Ok((0..self.shape.levels()).any(|level| self.next_position(level, from, above).is_ok()))
    }

    /// Whether the outermost state that an advance from `from` to `to` signs anew is one that no position after `from`
    /// and up to `newest` has, of which a try may have been signed in part or whole.
    ///
    /// The outermost new state commits to the digits down to the layer that ticks, and not to what is inside it. If a
    /// try had the same digits down to there, its outermost state may be complete already or become so with this one:
    /// what is signed below it could be published at once, and two sets of inner states would hang below one output.
    /// All tries since `from` are between `from` and the newest, so that they share the digits that these two share; it
    /// is enough to compare with the newest.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a position that there is not.
    pub fn is_untried(&self, from: u64, newest: u64, to: u64) -> Result<bool, Error> {
        if newest <= from {
            return Ok(to > from);
        }
        Ok(to > newest && self.first_difference(newest, to)? == self.first_difference(from, to)?)
    }

    /// The outermost digit in which two positions differ; none if they are the same.
    fn first_difference(&self, one: u64, other: u64) -> Result<Option<usize>, Error> {
        let (one, other) = (self.states_after(one)?, self.states_after(other)?);
        let first = one.digits().zip(other.digits()).position(|(a, b)| a != b);
        Ok(first)
    }

    /// Checks that an advance of `level` may lead from one position to another: the levels above stay as they are,
    /// the level itself gets newer, those inside begin anew. Returns the layer that ticks, 0 for the outermost.
    ///
    /// # Errors
    /// [`Error::Advance`], or [`Error::OutOfRange`] for a position that there is not.
    pub fn check_advance(&self, level: usize, from: u64, to: u64) -> Result<usize, Error> {
        let wrong = || Error::Advance { level, from, to };
        let (old, new) = (self.states_after(from)?, self.states_after(to)?);
        let begins_anew = to.checked_rem(self.level_step(level)?) == Some(0);
        let ((before, above), (after, still)) = (self.split(level, from)?, self.split(level, to)?);
        if !begins_anew || above != still || after <= before {
            return Err(wrong());
        }
        old.at(level).iter().zip(new.at(level)).position(|(old, new)| old != new).ok_or_else(wrong)
    }

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
