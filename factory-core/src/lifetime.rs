//! When a factory's phases end, and the rule that its expiry covers all of them.
//!
//! At the expiry height the distributions that pay the clients everything become valid. An honest service
//! provider must have settled by then, and a client that starts its exit on the last day of the dying
//! period must be done. So the expiry is at least birth + active + dying + worst exit + margin, and where
//! updates sign earlier distributions, the earliest of them counts. A [`Lifetime`] that breaks the rule
//! cannot be made, neither for a new factory nor for a rotated one.
//!
//! Heights are those of the chain's tip. A transaction with lock time `h` can be in the block after tip
//! `h` (BIP 65's and nLockTime's comparison), so "expired" begins when the tip is at the expiry.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::params::{range, Params, FUNDING_GIVE_UP};
use crate::planner::limits;

/// How much later than needed an expiry may be, blocks (two weeks): a provider may round up, but money
/// must not be locked for longer without a reason.
pub const MAX_EXPIRY_SLACK: u32 = 2016;

/// The phase of a factory at a height.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Channels are used and updated.
    Active,
    /// Clients move their money to another place.
    Dying,
    /// What is left is settled on chain.
    Settling,
    /// Distributions can be valid.
    Expired,
}

/// What ends at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadlineKind {
    /// The active period.
    Active,
    /// The dying period.
    Dying,
    /// The time to start an exit or a settlement that is complete before the first distribution.
    Settle,
    /// The time before the expiry.
    Expiry,
}

/// The next height at which something ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// What ends.
    pub kind: DeadlineKind,
    /// At which height of the tip.
    pub height: u32,
    /// Blocks until then.
    pub blocks: u32,
    /// Seconds until then at 600 s a block, for showing it to a human.
    pub seconds: u64,
}

/// The heights of a factory's life.
///
/// Only made by [`Lifetime::new`] and [`Lifetime::check`]. A stored one is checked for the order of its
/// heights when it is read; whether it covers a set of parameters only `check` can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Heights", try_from = "Heights")]
pub struct Lifetime(Heights);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Heights {
    birth: u32,
    active_until: u32,
    dying_until: u32,
    settle_by: u32,
    expiry: u32,
}

impl Lifetime {
    /// The life of a factory born at height `birth`, with the earliest expiry that covers it.
    ///
    /// # Errors
    /// Any refusal of [`Params::validate`]; [`Error::OutOfRange`] if a height would be no lock time.
    pub fn new(birth: u32, params: &Params, clients: usize) -> Result<Self, Error> {
        params.validate(clients)?;
        let expiry = add(birth, params.lifetime()?)?;
        Self::check(birth, expiry, params, clients)
    }

    /// The life of a factory whose birth and expiry somebody else chose.
    ///
    /// # Errors
    /// Any refusal of [`Params::validate`]; [`Error::ExpiryTooEarly`] if the expiry does not cover the
    /// life, the worst exit and the margin; [`Error::ExpiryTooLate`] if it is more than
    /// [`MAX_EXPIRY_SLACK`] later than that; [`Error::OutOfRange`] if it would be no height.
    pub fn check(birth: u32, expiry: u32, params: &Params, clients: usize) -> Result<Self, Error> {
        params.validate(clients)?;
        range("expiry", expiry.into(), 0, u64::from(limits::LOCKTIME_THRESHOLD).saturating_sub(1))?;
        let needed = add(birth, params.lifetime()?)?;
        if expiry < needed {
            return Err(Error::ExpiryTooEarly { expiry, needed });
        }
        let latest = add(needed, MAX_EXPIRY_SLACK)?;
        if expiry > latest {
            return Err(Error::ExpiryTooLate { expiry, latest });
        }
        let active_until = add(birth, params.active)?;
        let dying_until = add(active_until, params.dying)?;
        let settle_by = expiry
            .checked_sub(params.distribution_spread()?)
            .and_then(|h| h.checked_sub(params.worst_exit(params.confirm_blocks).ok()?))
            .ok_or(Error::Overflow { field: "settlement height" })?;
        Self::try_from(Heights { birth, active_until, dying_until, settle_by, expiry })
    }

    /// Checks that a factory proposed at tip `tip` was born about now. A birth far in the future would
    /// lock money for longer, and one in the past leaves no time to confirm the funding.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the birth is [`FUNDING_GIVE_UP`] blocks or more away from the tip.
    pub fn check_birth(&self, tip: u32) -> Result<(), Error> {
        let near = FUNDING_GIVE_UP.saturating_sub(1);
        range("birth", self.birth().into(), tip.saturating_sub(near).into(), tip.saturating_add(near).into())
    }

    /// The height at which the factory was born: the tip when it was proposed.
    pub fn birth(&self) -> u32 {
        self.0.birth
    }

    /// First height of the dying period.
    pub fn active_until(&self) -> u32 {
        self.0.active_until
    }

    /// First height after the dying period.
    pub fn dying_until(&self) -> u32 {
        self.0.dying_until
    }

    /// Last height at which a worst exit can start and be complete before any distribution is valid.
    /// Later than the dying period by the margin at least.
    pub fn settle_by(&self) -> u32 {
        self.0.settle_by
    }

    /// The lock time of the distributions signed at creation.
    pub fn expiry(&self) -> u32 {
        self.0.expiry
    }

    /// The height at which a funding transaction that is still unconfirmed is given up.
    pub fn funding_give_up(&self) -> u32 {
        self.0.birth.saturating_add(FUNDING_GIVE_UP)
    }

    /// The lock time of the distributions signed with update number `update` (0 is the creation). Later
    /// updates have earlier lock times if they can change capacities, so that the newest goes first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the odometer has no such update.
    pub fn distribution_lock_time(&self, params: &Params, update: u64) -> Result<u32, Error> {
        range("update", update, 0, params.path_updates()?)?;
        if params.distribution_spread()? == 0 {
            return Ok(self.0.expiry);
        }
        update
            .checked_mul(params.distribution_step().into())
            .and_then(|blocks| u32::try_from(blocks).ok())
            .and_then(|blocks| self.0.expiry.checked_sub(blocks))
            .ok_or(Error::Overflow { field: "distribution lock time" })
    }

    /// The phase when the tip is at `height`.
    pub fn phase_at(&self, height: u32) -> Phase {
        if height < self.0.active_until {
            Phase::Active
        } else if height < self.0.dying_until {
            Phase::Dying
        } else if height < self.0.expiry {
            Phase::Settling
        } else {
            Phase::Expired
        }
    }

    /// The next deadline after tip `height`; none once expired.
    pub fn next_deadline(&self, height: u32) -> Option<Deadline> {
        [
            (DeadlineKind::Active, self.0.active_until),
            (DeadlineKind::Dying, self.0.dying_until),
            (DeadlineKind::Settle, self.0.settle_by),
            (DeadlineKind::Expiry, self.0.expiry),
        ]
        .into_iter()
        .filter(|(_, at)| *at > height)
        .map(|(kind, at)| {
            let blocks = at.saturating_sub(height);
            let seconds = u64::from(blocks).saturating_mul(limits::SECONDS_PER_BLOCK.into());
            Deadline { kind, height: at, blocks, seconds }
        })
        .next()
    }
}

impl From<Lifetime> for Heights {
    fn from(life: Lifetime) -> Self {
        life.0
    }
}

impl TryFrom<Heights> for Lifetime {
    type Error = Error;

    fn try_from(h: Heights) -> Result<Self, Error> {
        let order = [
            ("active_until", h.birth, h.active_until),
            ("dying_until", h.active_until, h.dying_until),
            ("settle_by", h.dying_until, h.settle_by),
            ("expiry", h.settle_by, h.expiry),
        ];
        for (field, before, at) in order {
            let min = u64::from(before).saturating_add(1);
            range(field, at.into(), min, u64::from(limits::LOCKTIME_THRESHOLD).saturating_sub(1))?;
        }
        Ok(Self(h))
    }
}

fn add(height: u32, blocks: u32) -> Result<u32, Error> {
    height.checked_add(blocks).ok_or(Error::Overflow { field: "height" })
}
