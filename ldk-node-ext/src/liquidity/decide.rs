//! What is done with a payment that a client is to get: sent on as it is, after a rotation, over a new channel beside the
//! factory's, over several channels, or not at all. One pure function, with the reasons for what it chose and against what
//! it did not; who asks gathers the facts and acts.
//!
//! Off-chain comes first: a leaf that advances costs a signing round, a channel costs a transaction. A channel beside the
//! factory (JIT) is what lets the client be served while its co-signers sleep, while the factory is dying, or when its
//! odometer has run out.

use std::time::Duration;

/// What the operator allows. One for all clients, or one for a client by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JitPolicy {
    /// Try a leaf advance before a JIT channel, where all who have to sign are online.
    pub rotate_first: bool,
    /// Smallest JIT channel, sat.
    pub min_channel_sat: u64,
    /// Largest JIT channel, sat; 0: none are opened.
    pub max_channel_sat: u64,
    /// Most JIT channels of one client at a time.
    pub max_channels: u32,
    /// Most of the operator's money in one client's JIT channels, sat.
    pub max_total_sat: u64,
    /// JIT channels over which nothing has been taken yet, at which a client gets no other one.
    pub max_untaken: u32,
    /// Most that are opened for one client in 144 blocks, whatever became of them: each costs two transactions.
    pub max_per_day: u32,
    /// What a new channel has beyond what the payment needs, percent of that.
    pub headroom_percent: u32,
    /// How long a payment is held while its client is away, signs, or opens its channel.
    pub hold: Duration,
}

impl Default for JitPolicy {
    fn default() -> Self {
        Self {
            rotate_first: true,
            min_channel_sat: 50_000,
            max_channel_sat: 2_000_000,
            max_channels: 2,
            max_total_sat: 4_000_000,
            max_untaken: 1,
            max_per_day: 12,
            headroom_percent: 20,
            hold: Duration::from_secs(30),
        }
    }
}

/// What is to reach the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Amount {
    /// HTLCs that are forwarded as they came, each over one channel, msat.
    Parts(Vec<u64>),
    /// A sum that this node splits as it likes, msat.
    Divisible(u64),
}

impl Amount {
    fn total(&self) -> u64 {
        match self {
            Self::Parts(parts) => parts.iter().fold(0, |sum, part| sum.saturating_add(*part)),
            Self::Divisible(amount) => *amount,
        }
    }
}

/// The client's leaf, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// What its channel can send to the client now, msat; 0 if it is not usable.
    pub limit_msat: u64,
    /// The factory is in its active period.
    pub active: bool,
    /// Advances of the leaf that are left; 0 if none of them may change capacities.
    pub advances_left: u64,
    /// A rotation over this leaf is running, or one before it is not locked.
    pub changing: bool,
    /// All who have to sign an advance of the leaf are online.
    pub signers_online: bool,
    /// What the operator's stock in the leaf can give away, sat.
    pub stock_sat: u64,
    /// What may be under way over the channel at a time, msat: agreed when it was opened, and the same however large it
    /// grows.
    pub most_msat: u64,
}

/// All that the decision depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The payment.
    pub amount: Amount,
    /// Whether the client is connected.
    pub online: bool,
    /// What each usable channel with the client but the factory's can send now, msat (`next_outbound_htlc_limit_msat`).
    pub others_msat: Vec<u64>,
    /// Its leaf.
    pub leaf: Option<Leaf>,
    /// A rotation was tried for it.
    pub rotated: bool,
    /// A JIT channel for it is being opened.
    pub opening: bool,
    /// JIT channels that it has.
    pub jit_channels: u32,
    /// Of these, such over which it has not taken any payment.
    pub jit_untaken: u32,
    /// Capacity of these channels, sat.
    pub jit_total_sat: u64,
    /// JIT channels that were opened for it in the last 144 blocks, closed ones too.
    pub jit_lately: u32,
    /// What the wallet can spend, the fee of a funding transaction taken off, sat.
    pub wallet_sat: u64,
}

/// Why a way was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Against {
    /// No usable channel has the room.
    #[error("no channel has room for it")]
    NoRoom,
    /// The client is in no factory.
    #[error("the client has no factory channel")]
    NoFactory,
    /// The factory is not active (any more).
    #[error("the factory is not active")]
    NotActive,
    /// The odometer has run out.
    #[error("the leaf's states are used up")]
    Exhausted,
    /// A rotation is running.
    #[error("the leaf is changing already")]
    Changing,
    /// Somebody who has to sign is away.
    #[error("a co-signer is offline")]
    SignerOffline,
    /// The leaf's stock is too small, sat.
    #[error("the leaf's stock is too small")]
    StockTooSmall,
    /// The channel carries no more at a time, however large it is.
    #[error("the factory channel carries no more at a time")]
    CarriesNoMore,
    /// The operator does not want rotations for this.
    #[error("rotations for payments are switched off")]
    RotationsOff,
    /// One was tried.
    #[error("a rotation for it has come to nothing")]
    RotationTried,
    /// No JIT channels at all.
    #[error("JIT channels are switched off")]
    JitOff,
    /// Larger than a JIT channel may be.
    #[error("larger than the largest JIT channel")]
    JitTooLarge,
    /// The client has as many as it may.
    #[error("the client has as many JIT channels as it may")]
    TooManyJit,
    /// As many were opened for the client lately as may.
    #[error("as many JIT channels as may were opened for the client in the last 144 blocks")]
    TooManyLately,
    /// The client's channels together are as large as they may.
    #[error("the client's JIT channels would be too large together")]
    JitTotal,
    /// Channels were opened for it, and it took nothing over them.
    #[error("the client has taken nothing over the JIT channel that it has")]
    Untaken,
    /// Not enough on-chain money.
    #[error("the wallet has too little for a channel")]
    WalletTooSmall,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send it on, over one channel.
    Forward,
    /// Send it on over several channels.
    Multipath,
    /// Hold it until the client is there.
    WaitForClient,
    /// Hold it until the change of the leaf, or the opening of the channel, that is going on is over.
    WaitForChange,
    /// Advance the leaf first: its channel with the client grows out of the stock by this, sat.
    Rotate {
        /// By how much, sat.
        grow_sat: u64,
    },
    /// Open a channel of this size first, then send it on over it.
    Jit {
        /// Capacity, sat.
        capacity_sat: u64,
    },
    /// Open a channel of this size first, then send it on over it and the others together.
    JitAndMultipath {
        /// Capacity, sat.
        capacity_sat: u64,
    },
    /// Give it back.
    Refuse,
}

impl Action {
    /// Its name in logs, events and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Multipath => "multipath",
            Self::WaitForClient => "wait_for_client",
            Self::WaitForChange => "wait_for_change",
            Self::Rotate { .. } => "rotate",
            Self::Jit { .. } => "jit",
            Self::JitAndMultipath { .. } => "jit_and_multipath",
            Self::Refuse => "refuse",
        }
    }
}

/// An action, and what spoke against the ways that come before it, in the order in which they were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why nothing that comes before it is done; for a refusal why nothing is.
    pub against: Vec<Against>,
}

/// What a channel's balance must keep: LDK's reserve of a hundredth, at least 1000 sat, both anchors, and the fee of a
/// commitment with some HTLCs, for channels whose commitments pay one; sat.
fn kept_sat(capacity_sat: u64) -> u64 {
    const ANCHORS_AND_FEE: u64 = 5_000;
    (capacity_sat / 100).max(1_000).saturating_add(ANCHORS_AND_FEE)
}

fn sat_up(msat: u64) -> u64 {
    msat.div_ceil(1000)
}

/// What does not fit into channels with this room, msat, and whether what fits needs more than one of them. Parts go
/// where LDK sends them: into the tightest channel that holds them.
fn left_over(amount: &Amount, room: &[u64]) -> (Amount, bool) {
    match amount {
        Amount::Divisible(amount) => {
            let largest = room.iter().copied().max().unwrap_or(0);
            let all = room.iter().fold(0u64, |sum, r| sum.saturating_add(*r));
            (Amount::Divisible(amount.saturating_sub(all)), largest < *amount)
        }
        Amount::Parts(parts) => {
            let mut room = room.to_vec();
            let mut used = vec![false; room.len()];
            let mut rest = Vec::new();
            for part in parts {
                let fits = (0..room.len()).filter(|i| room[*i] >= *part).min_by_key(|i| room[*i]);
                match fits {
                    Some(i) => {
                        room[i] -= part;
                        used[i] = true;
                    }
                    None => rest.push(*part),
                }
            }
            (Amount::Parts(rest), used.iter().filter(|u| **u).count() > 1)
        }
    }
}

/// The least more room with which all fits, msat: what does not fit now; or `whole`, with which everything does, where
/// the parts would be shared out in another way with more room, and one be left over again.
fn least(amount: &Amount, room: &[u64], whole: u64, with: impl Fn(u64) -> Vec<u64>) -> u64 {
    let rest = left_over(amount, room).0.total();
    if rest < whole && left_over(amount, &with(rest)).0.total() > 0 {
        return whole;
    }
    rest.min(whole)
}

/// By how much the leaf's channel has to grow for what does not fit, sat; or why it cannot.
fn rotation(s: &Situation, leaf: Option<Leaf>, policy: &JitPolicy) -> Result<Action, Against> {
    let leaf = leaf.ok_or(Against::NoFactory)?;
    if s.rotated {
        return Err(Against::RotationTried);
    }
    if !policy.rotate_first {
        return Err(Against::RotationsOff);
    }
    if !leaf.active {
        return Err(Against::NotActive);
    }
    // Before what follows from it: during a change the odometer and the stock are about to be others.
    if leaf.changing {
        return Err(Against::Changing);
    }
    if leaf.advances_left == 0 {
        return Err(Against::Exhausted);
    }
    let grown = |by: u64| {
        let leaf = std::iter::once(leaf.limit_msat.saturating_add(by));
        leaf.chain(s.others_msat.iter().copied()).collect()
    };
    let whole = s.amount.total().saturating_sub(leaf.limit_msat);
    let missing = least(&s.amount, &room(s), whole, grown);
    // A larger channel keeps a larger reserve.
    let grow_sat = sat_up(missing).saturating_add(sat_up(missing) / 50).saturating_add(1_000);
    if leaf.limit_msat.saturating_add(missing) > leaf.most_msat {
        return Err(Against::CarriesNoMore);
    }
    if grow_sat > leaf.stock_sat {
        return Err(Against::StockTooSmall);
    }
    if !leaf.signers_online {
        return Err(Against::SignerOffline);
    }
    Ok(Action::Rotate { grow_sat })
}

/// The channel that has to be opened for what does not fit; or why none can.
fn jit(s: &Situation, policy: &JitPolicy) -> Result<Action, Against> {
    if policy.max_channel_sat == 0 || policy.max_channels == 0 {
        return Err(Against::JitOff);
    }
    if s.jit_untaken >= policy.max_untaken.max(1) {
        return Err(Against::Untaken);
    }
    if s.jit_channels >= policy.max_channels {
        return Err(Against::TooManyJit);
    }
    if s.jit_lately >= policy.max_per_day {
        return Err(Against::TooManyLately);
    }
    let beside = |size: u64| room(s).into_iter().chain([size]).collect();
    let rest = least(&s.amount, &room(s), s.amount.total(), beside);
    let needed = sat_up(rest);
    let wanted = needed.saturating_add(needed / 100 * u64::from(policy.headroom_percent));
    let smallest = needed.saturating_add(kept_sat(needed.saturating_add(needed / 50)));
    if smallest > policy.max_channel_sat {
        return Err(Against::JitTooLarge);
    }
    let left = policy.max_total_sat.saturating_sub(s.jit_total_sat);
    if smallest.max(policy.min_channel_sat) > left {
        return Err(Against::JitTotal);
    }
    if smallest.max(policy.min_channel_sat) > s.wallet_sat {
        return Err(Against::WalletTooSmall);
    }
    let wanted = wanted.saturating_add(kept_sat(wanted)).max(policy.min_channel_sat);
    let capacity_sat = wanted.min(policy.max_channel_sat).min(left).min(s.wallet_sat).max(smallest);
    let all_over_it = room(s).is_empty() || rest >= s.amount.total();
    Ok(if all_over_it { Action::Jit { capacity_sat } } else { Action::JitAndMultipath { capacity_sat } })
}

fn room(s: &Situation) -> Vec<u64> {
    let leaf = s.leaf.map(|leaf| leaf.limit_msat);
    leaf.into_iter().chain(s.others_msat.iter().copied()).filter(|limit| *limit > 0).collect()
}

/// What is done with a payment.
pub fn decide(s: &Situation, policy: &JitPolicy) -> Decision {
    let decided = |action, against| Decision { action, against };
    if !s.online {
        return decided(Action::WaitForClient, Vec::new());
    }
    let (rest, several) = left_over(&s.amount, &room(s));
    let fits = rest.total() == 0;
    if fits {
        return decided(if several { Action::Multipath } else { Action::Forward }, Vec::new());
    }
    let mut against = vec![Against::NoRoom];
    if s.opening {
        return decided(Action::WaitForChange, against);
    }
    match rotation(s, s.leaf, policy) {
        Ok(action) => return decided(action, against),
        Err(why) => against.push(why),
    }
    match jit(s, policy) {
        Ok(action) => return decided(action, against),
        Err(why) => against.push(why),
    }
    // What is going on may give it the room; how long that may take is the policy's `hold`.
    if against.contains(&Against::Changing) {
        return decided(Action::WaitForChange, against);
    }
    decided(Action::Refuse, against)
}

#[cfg(test)]
mod tests;
