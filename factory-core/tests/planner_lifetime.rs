//! The rule that the expiry covers the life, the worst exit and the margin, and attempts to break it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use bitcoin::Network;
use factory_core::lifetime::{DeadlineKind, Lifetime, Phase, MAX_EXPIRY_SLACK};
use factory_core::params::{DwLayer, Params};
use factory_core::Error;
use proptest::prelude::*;

const BIRTH: u32 = 900_000;

fn default(clients: usize, clients_per_leaf: u16) -> Params {
    Params::default_with(clients, clients_per_leaf, Network::Bitcoin).unwrap()
}

#[test]
fn the_heights_of_a_default_factory() {
    let life = Lifetime::new(BIRTH, &default(64, 1), 64).unwrap();
    assert_eq!(life.birth(), BIRTH);
    assert_eq!(life.active_until(), BIRTH + 4320);
    assert_eq!(life.dying_until(), BIRTH + 4752);
    // The margin lies between the dying period and the last moment to start a worst exit of 432.
    assert_eq!(life.settle_by(), BIRTH + 4752 + 144);
    assert_eq!(life.expiry(), BIRTH + 4752 + 144 + 432);
    assert_eq!(life.funding_give_up(), BIRTH + 144);
}

/// One way to make a factory need one block more, or several.
type Longer = (&'static str, u32, fn(&mut Params));

#[test]
fn an_expiry_that_misses_any_part_is_refused() {
    let parts: [Longer; 8] = [
        ("active", 1, |p| p.active += 1),
        ("dying", 1, |p| p.dying += 1),
        ("margin", 1, |p| p.margin += 1),
        ("to_self_delay", 1, |p| p.to_self_delay += 1),
        ("reorg_margin", 1, |p| p.reorg_margin += 1),
        ("base delay", 1, |p| p.shape.layers[2][0].base += 1),
        ("step of an inner layer", 1, |p| p.shape.layers[2][2].step += 1),
        // Six tree transactions and the commitment.
        ("confirm_blocks", 7, |p| p.confirm_blocks += 1),
    ];
    let params = default(64, 1);
    let expiry = Lifetime::new(BIRTH, &params, 64).unwrap().expiry();
    assert_eq!(
        Lifetime::check(BIRTH, expiry - 1, &params, 64),
        Err(Error::ExpiryTooEarly { expiry: expiry - 1, needed: expiry })
    );
    Lifetime::check(BIRTH, expiry, &params, 64).unwrap();
    assert_eq!(
        Lifetime::check(BIRTH + 1, expiry, &params, 64),
        Err(Error::ExpiryTooEarly { expiry, needed: expiry + 1 })
    );
    for (name, blocks, change) in parts {
        let mut longer = params.clone();
        change(&mut longer);
        assert_eq!(
            Lifetime::check(BIRTH, expiry, &longer, 64),
            Err(Error::ExpiryTooEarly { expiry, needed: expiry + blocks }),
            "{name}"
        );
        let life = Lifetime::check(BIRTH, expiry + blocks, &longer, 64).unwrap();
        assert_eq!(life, Lifetime::new(BIRTH, &longer, 64).unwrap(), "{name}");
    }
    // A layer more: its delay and one confirmation.
    let mut deeper = params.clone();
    deeper.shape.layers[2].push(DwLayer { states: 2, step: 36, base: 0 });
    assert_eq!(
        Lifetime::check(BIRTH, expiry, &deeper, 64),
        Err(Error::ExpiryTooEarly { expiry, needed: expiry + 36 + 6 })
    );
}

#[test]
fn an_expiry_that_locks_money_for_nothing_is_refused() {
    let params = default(8, 1);
    let needed = Lifetime::new(BIRTH, &params, 8).unwrap().expiry();
    let latest = needed + MAX_EXPIRY_SLACK;
    let life = Lifetime::check(BIRTH, latest, &params, 8).unwrap();
    // The slack goes to the time after the dying period.
    assert_eq!(life.dying_until(), BIRTH + 4752);
    assert_eq!(life.settle_by(), BIRTH + 4752 + 144 + MAX_EXPIRY_SLACK);
    assert_eq!(
        Lifetime::check(BIRTH, latest + 1, &params, 8),
        Err(Error::ExpiryTooLate { expiry: latest + 1, latest })
    );
}

#[test]
fn an_expiry_is_a_height_and_not_a_time() {
    let params = default(8, 1);
    let lifetime = params.lifetime().unwrap();
    let last = 499_999_999 - lifetime;
    assert_eq!(Lifetime::new(last, &params, 8).unwrap().expiry(), 499_999_999);
    assert!(matches!(Lifetime::new(last + 1, &params, 8), Err(Error::OutOfRange { field: "expiry", .. })));
    assert!(Lifetime::new(u32::MAX, &params, 8).is_err());
    assert!(Lifetime::check(BIRTH, u32::MAX, &params, 8).is_err());
}

#[test]
fn invalid_parameters_have_no_lifetime() {
    let mut params = default(8, 1);
    params.active = 4319;
    assert!(matches!(Lifetime::new(BIRTH, &params, 8), Err(Error::OutOfRange { field: "active", .. })));
    let params = default(8, 1);
    assert!(Lifetime::new(BIRTH, &params, 9).is_err());
}

#[test]
fn birth_must_be_near_the_tip() {
    let life = Lifetime::new(BIRTH, &default(8, 1), 8).unwrap();
    life.check_birth(BIRTH + 143).unwrap();
    life.check_birth(BIRTH - 143).unwrap();
    for tip in [BIRTH + 144, BIRTH - 144] {
        assert!(matches!(life.check_birth(tip), Err(Error::OutOfRange { field: "birth", .. })));
    }
}

#[test]
fn phases_and_deadlines_block_by_block() {
    let life = Lifetime::new(BIRTH, &default(64, 1), 64).unwrap();
    let at =
        |height| (life.phase_at(height), life.next_deadline(height).map(|d| (d.kind, d.blocks, d.seconds)));
    let active = life.active_until();
    assert_eq!(at(active - 1), (Phase::Active, Some((DeadlineKind::Active, 1, 600))));
    assert_eq!(at(active), (Phase::Dying, Some((DeadlineKind::Dying, 432, 259_200))));
    assert_eq!(at(life.dying_until() - 1), (Phase::Dying, Some((DeadlineKind::Dying, 1, 600))));
    assert_eq!(at(life.dying_until()), (Phase::Settling, Some((DeadlineKind::Settle, 144, 86_400))));
    assert_eq!(at(life.settle_by()), (Phase::Settling, Some((DeadlineKind::Expiry, 432, 259_200))));
    assert_eq!(at(life.expiry() - 1), (Phase::Settling, Some((DeadlineKind::Expiry, 1, 600))));
    assert_eq!(at(life.expiry()), (Phase::Expired, None));
    assert_eq!(life.next_deadline(0).unwrap().height, active);
}

#[test]
fn newer_distributions_go_first_and_never_into_the_life() {
    // One client a leaf: amounts never change, one lock time for all.
    let single = default(64, 1);
    let life = Lifetime::new(BIRTH, &single, 64).unwrap();
    assert_eq!(life.distribution_lock_time(&single, 7).unwrap(), life.expiry());
    // Two: one step earlier for each of seven updates.
    let shared = default(64, 2);
    let life = Lifetime::new(BIRTH, &shared, 64).unwrap();
    let times: Vec<u32> = (0..=7).map(|i| life.distribution_lock_time(&shared, i).unwrap()).collect();
    assert_eq!(times[0], life.expiry());
    assert!(times.windows(2).all(|w| w[0] - w[1] == 48));
    assert!(matches!(
        life.distribution_lock_time(&shared, 8),
        Err(Error::OutOfRange { field: "update", value: 8, max: 7, .. })
    ));
    // The earliest still leaves the worst exit after the dying period and the margin.
    assert_eq!(times[7], life.dying_until() + 144 + shared.worst_exit(6).unwrap());
    assert_eq!(life.settle_by(), times[7] - shared.worst_exit(6).unwrap());
    // A layer above the leaves re-signs distributions with one client a leaf too.
    let mut upper = default(8, 1);
    upper.shape.layers[0] = vec![DwLayer { states: 2, step: 60, base: 0 }];
    assert_eq!(upper.distribution_spread().unwrap(), 15 * 60);
}

#[test]
fn stored_lifetimes_keep_their_order() {
    let life = Lifetime::new(BIRTH, &default(8, 1), 8).unwrap();
    let json = serde_json::to_string(&life).unwrap();
    assert_eq!(serde_json::from_str::<Lifetime>(&json).unwrap(), life);
    for (from, to) in [
        ("\"active_until\":904320", "\"active_until\":900000"),
        ("\"settle_by\":904896", "\"settle_by\":904752"),
        ("\"expiry\":905322", "\"expiry\":904896"),
        ("\"expiry\":905322", "\"expiry\":500000000"),
    ] {
        let broken = json.replace(from, to);
        assert_ne!(broken, json, "{from}");
        assert!(serde_json::from_str::<Lifetime>(&broken).is_err(), "{to}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whoever starts an exit on the last day of the dying period, with the margin used up, is done
    /// before any distribution is valid; one block less is refused.
    #[test]
    fn the_expiry_covers_everything(
        clients in 2usize..=1000,
        k in 1u16..=4,
        active in 4320u32..=10_000,
        dying in 432u32..=2000,
        margin in 144u32..=1000,
        confirm in 6u16..=12,
        to_self in 144u16..=1000,
        birth in 0u32..=10_000_000,
    ) {
        let params = Params {
            active, dying, margin, confirm_blocks: confirm, to_self_delay: to_self,
            ..default(clients, k)
        };
        let life = Lifetime::new(birth, &params, clients).unwrap();
        // Counted here from the transactions of the exit rather than with the planner's formula.
        let steps = factory_core::planner::exit_steps(&params, clients, 0).unwrap();
        let exit: u32 = steps.iter().map(|s| u32::from(s.delay) + u32::from(confirm)).sum::<u32>()
            + u32::from(to_self) + u32::from(params.reorg_margin);
        let last = if k == 1 { 0 } else { params.leaf_updates().unwrap() };
        let earliest = life.distribution_lock_time(&params, last).unwrap();
        prop_assert_eq!(birth + active + dying + margin + exit, earliest);
        prop_assert_eq!(life.settle_by() + exit, earliest);
        prop_assert!(Lifetime::check(birth, life.expiry() - 1, &params, clients).is_err());
        prop_assert_eq!(Lifetime::check(birth, life.expiry(), &params, clients), Ok(life));
    }
}
