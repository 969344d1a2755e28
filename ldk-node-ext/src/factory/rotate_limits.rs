//! What tries to rotate that come to nothing may cost. A client: nonces, a checked tree, companions, and room in its list of
//! events. A leaf: its positions. Those that complete use the odometer up and need no other limit.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use factory_core::advance::MAX_KEPT_TRIES;
use tokio::time::Instant;

/// Tries of one factory that may come to nothing within [`WINDOW`].
pub(super) const MAX_TRIES: usize = 30;
/// See [`MAX_TRIES`].
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Tries whose failures are remembered.
const MAX_TOLD: usize = 2 * MAX_KEPT_TRIES;
/// Reasons of one try that are told.
const MAX_REASONS: usize = 4;

/// How long a client is left alone by itself at whom a rotation has failed after its position was used up.
pub(super) const PAUSE: Duration = Duration::from_secs(300);

/// What a client has cost its leaf, at the LSP. An odometer has so many positions and no more, and a client that covers
/// and then keeps its signatures to itself uses one up each time.
#[derive(Debug)]
pub(super) struct Wasteful {
    /// When it was.
    pub(super) at: Instant,
    /// What it did.
    pub(super) why: String,
}

impl Wasteful {
    /// Whether it is too early for another try.
    pub(super) fn pauses(&self, now: Instant) -> bool {
        self.at + PAUSE > now
    }
}

/// A client's tries of one factory.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// When those since the last complete one began.
    begun: VecDeque<Instant>,
    /// Why tries failed, as the user was told.
    told: BTreeMap<u16, Vec<String>>,
}

impl Tries {
    /// Whether another try may begin now; if so it counts.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        self.begun.retain(|at| *at + WINDOW > now);
        let room = self.begun.len() < MAX_TRIES;
        if room {
            self.begun.push_back(now);
        }
        room
    }

    /// One is complete.
    pub(super) fn completed(&mut self) {
        self.begun.clear();
    }

    /// Whether this failure is news to the user.
    pub(super) fn is_news(&mut self, attempt: u16, reason: &str) -> bool {
        let told = self.told.entry(attempt).or_default();
        let news = told.len() < MAX_REASONS && !told.iter().any(|known| known == reason);
        if news {
            told.push(reason.to_owned());
        }
        while self.told.len() > MAX_TOLD {
            self.told.pop_first();
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_that_come_to_nothing_are_limited() {
        let (mut tries, start) = (Tries::default(), Instant::now());
        for _ in 0..MAX_TRIES {
            assert!(tries.begin(start));
        }
        assert!(!tries.begin(start) && !tries.begin(start + WINDOW / 2));
        assert!(tries.begin(start + WINDOW));
        for _ in 1..MAX_TRIES {
            assert!(tries.begin(start + WINDOW));
        }
        assert!(!tries.begin(start + WINDOW));
        tries.completed();
        assert!(tries.begin(start + WINDOW));
    }

    #[test]
    fn who_wastes_a_position_is_left_alone_for_a_while() {
        let at = Instant::now();
        let wasteful = Wasteful { at, why: "no answer".into() };
        assert!(wasteful.pauses(at) && wasteful.pauses(at + PAUSE - Duration::from_secs(1)));
        assert!(!wasteful.pauses(at + PAUSE));
    }

    #[test]
    fn a_failure_is_told_once_and_a_talker_not_for_ever() {
        let mut tries = Tries::default();
        assert!(tries.is_news(1, "called off") && !tries.is_news(1, "called off"));
        assert!(tries.is_news(2, "called off") && tries.is_news(1, "a wrong signature"));
        let told = (0..1_000).filter(|n| tries.is_news(1, &n.to_string())).count();
        assert_eq!(told, MAX_REASONS - 2);
        for attempt in 3..1_000 {
            tries.is_news(attempt, "called off");
        }
        assert!(tries.told.len() <= MAX_TOLD && tries.told.contains_key(&999));
    }
}
