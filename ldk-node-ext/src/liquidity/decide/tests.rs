use proptest::prelude::*;

use super::*;

/// A client with 100,000 sat of room in an active factory, all online, much stock, much money.
fn situation(amount: Amount) -> Situation {
    Situation {
        amount,
        online: true,
        others_msat: Vec::new(),
        leaf: Some(Leaf {
            limit_msat: 100_000_000,
            active: true,
            advances_left: 3,
            changing: false,
            signers_online: true,
            stock_sat: 1_000_000,
            most_msat: 1_000_000_000,
        }),
        rotated: false,
        opening: false,
        jit_channels: 0,
        jit_untaken: 0,
        jit_total_sat: 0,
        jit_lately: 0,
        wallet_sat: 10_000_000,
    }
}

fn one(sat: u64) -> Amount {
    Amount::Parts(vec![sat * 1000])
}

fn with_leaf(amount: Amount, change: impl FnOnce(&mut Leaf)) -> Situation {
    let mut s = situation(amount);
    change(s.leaf.as_mut().unwrap());
    s
}

fn action(s: &Situation) -> Action {
    decide(s, &JitPolicy::default()).action
}

/// The only reason beside the lack of room why no rotation was chosen; a JIT channel is.
fn why_jit(s: &Situation) -> Against {
    let decision = decide(s, &JitPolicy::default());
    assert!(matches!(decision.action, Action::Jit { .. } | Action::JitAndMultipath { .. }), "{decision:?}");
    assert_eq!(decision.against[0], Against::NoRoom);
    assert_eq!(decision.against.len(), 2);
    decision.against[1]
}

fn why_refused(s: &Situation, policy: &JitPolicy) -> Against {
    let decision = decide(s, policy);
    assert_eq!(decision.action, Action::Refuse);
    *decision.against.last().unwrap()
}

#[test]
fn what_fits_goes_on_at_once() {
    assert_eq!(action(&situation(one(100_000))), Action::Forward);
    let mut s = situation(Amount::Divisible(250_000_000));
    s.others_msat = vec![200_000_000];
    assert_eq!(action(&s), Action::Multipath);
    s.amount = Amount::Parts(vec![90_000_000, 150_000_000]);
    assert_eq!(action(&s), Action::Multipath);
    // Nothing else is asked for: not even if nothing else were possible.
    s.wallet_sat = 0;
    s.leaf.as_mut().unwrap().signers_online = false;
    assert_eq!(decide(&s, &JitPolicy::default()).against, []);
}

#[test]
fn the_rows_of_the_table() {
    // Co-signers online: off the chain.
    let Action::Rotate { grow_sat } = action(&situation(one(150_000))) else { panic!() };
    assert!((50_000..60_000).contains(&grow_sat), "{grow_sat}");
    // A co-signer offline.
    let sleeping = with_leaf(one(150_000), |leaf| leaf.signers_online = false);
    assert_eq!(why_jit(&sleeping), Against::SignerOffline);
    // A large payment that this node splits: over the factory and a channel for the rest.
    let mut large = with_leaf(Amount::Divisible(250_000_000), |leaf| leaf.signers_online = false);
    let Action::JitAndMultipath { capacity_sat } = action(&large) else { panic!() };
    assert!((155_000..200_000).contains(&capacity_sat), "{capacity_sat}");
    large.others_msat = vec![200_000_000];
    assert_eq!(action(&large), Action::Multipath);
    // Dying, and the odometer exhausted.
    assert_eq!(why_jit(&with_leaf(one(150_000), |leaf| leaf.active = false)), Against::NotActive);
    assert_eq!(why_jit(&with_leaf(one(150_000), |leaf| leaf.advances_left = 0)), Against::Exhausted);
    // No factory at all.
    let mut none = situation(one(150_000));
    none.leaf = None;
    assert_eq!(why_jit(&none), Against::NoFactory);
    assert!(matches!(action(&none), Action::Jit { .. }));
}

#[test]
fn who_is_away_is_waited_for() {
    let mut s = situation(one(10));
    s.online = false;
    assert_eq!(action(&s), Action::WaitForClient);
    s.online = true;
    s.amount = one(150_000);
    s.opening = true;
    assert_eq!(action(&s), Action::WaitForChange);
    // Before the factory's change is over nobody can say what will be missing, but a channel helps at once.
    let changing = with_leaf(one(150_000), |leaf| leaf.changing = true);
    assert_eq!(why_jit(&changing), Against::Changing);
    let no_jit = JitPolicy { max_channel_sat: 0, ..JitPolicy::default() };
    assert_eq!(decide(&changing, &no_jit).action, Action::WaitForChange);
}

#[test]
fn every_limit_of_the_policy_holds() {
    let default = JitPolicy::default;
    let s = || with_leaf(one(150_000), |leaf| leaf.signers_online = false);
    assert_eq!(why_refused(&s(), &JitPolicy { max_channel_sat: 0, ..default() }), Against::JitOff);
    assert_eq!(why_refused(&s(), &JitPolicy { max_channels: 0, ..default() }), Against::JitOff);
    assert_eq!(why_refused(&s(), &JitPolicy { max_channel_sat: 150_000, ..default() }), Against::JitTooLarge);
    let mut used = s();
    used.jit_channels = 2;
    assert_eq!(why_refused(&used, &default()), Against::TooManyJit);
    used.jit_channels = 1;
    used.jit_untaken = 1;
    assert_eq!(why_refused(&used, &default()), Against::Untaken);
    used.jit_untaken = 0;
    used.jit_lately = 12;
    assert_eq!(why_refused(&used, &default()), Against::TooManyLately);
    used.jit_lately = 11;
    used.jit_total_sat = 3_900_000;
    assert_eq!(why_refused(&used, &default()), Against::JitTotal);
    let mut poor = s();
    poor.wallet_sat = 150_000;
    assert_eq!(why_refused(&poor, &default()), Against::WalletTooSmall);
    let stock = with_leaf(one(150_000), |leaf| leaf.stock_sat = 50_000);
    assert_eq!(why_jit(&stock), Against::StockTooSmall);
    let narrow = with_leaf(one(150_000), |leaf| leaf.most_msat = 149_999_999);
    assert_eq!(why_jit(&narrow), Against::CarriesNoMore);
    let wide = with_leaf(one(150_000), |leaf| leaf.most_msat = 150_000_000);
    assert!(matches!(action(&wide), Action::Rotate { .. }));
    let off = JitPolicy { rotate_first: false, ..default() };
    assert_eq!(decide(&situation(one(150_000)), &off).against, [Against::NoRoom, Against::RotationsOff]);
    let tried = Situation { rotated: true, ..situation(one(150_000)) };
    assert_eq!(why_jit(&tried), Against::RotationTried);
    // Small channels are not worth their transaction.
    let mut small = s();
    small.leaf = None;
    small.amount = one(1_000);
    assert_eq!(action(&small), Action::Jit { capacity_sat: 50_000 });
}

#[test]
fn more_room_that_changes_where_parts_go_is_seen() {
    // With 500 more the first part would go into the grown channel, and the last one find no place.
    let amount = Amount::Parts(vec![600_000, 700_000, 900_000]);
    let room = [700_000, 900_000];
    let grown = |by: u64| vec![700_000 + by, 900_000];
    let by = least(&amount, &room, 1_500_000, grown);
    assert_eq!(left_over(&amount, &grown(by)).0, Amount::Parts(vec![]));
}

fn amounts() -> impl Strategy<Value = Amount> {
    let part = 1u64..400_000_000;
    prop_oneof![
        prop::collection::vec(part, 1..8).prop_map(Amount::Parts),
        (1u64..2_000_000_000).prop_map(Amount::Divisible)
    ]
}

fn leaves() -> impl Strategy<Value = Leaf> {
    let numbers = (0u64..500_000_000, 0u64..3, 0u64..2_000_000);
    (numbers, any::<[bool; 3]>()).prop_map(
        |((limit_msat, advances_left, stock_sat), [active, changing, signers_online])| Leaf {
            limit_msat,
            active,
            advances_left,
            changing,
            signers_online,
            stock_sat,
            most_msat: limit_msat.saturating_add(100_000_000),
        },
    )
}

fn situations() -> impl Strategy<Value = Situation> {
    let others = prop::collection::vec(0u64..500_000_000, 0..4);
    let jit = (0u32..4, 0u32..3, 0u64..5_000_000, 0u64..5_000_000);
    (amounts(), others, prop::option::of(leaves()), jit, any::<[bool; 2]>()).prop_map(
        |(
            amount,
            others_msat,
            leaf,
            (jit_channels, jit_untaken, jit_total_sat, wallet_sat),
            [online, opening],
        )| {
            Situation {
                amount,
                online,
                others_msat,
                leaf,
                rotated: false,
                opening,
                jit_channels,
                jit_untaken,
                jit_total_sat,
                jit_lately: jit_channels,
                wallet_sat,
            }
        },
    )
}

proptest! {
    /// What is done suffices, costs no more than is allowed, and is never done if it is not needed.
    #[test]
    fn decisions_are_enough_and_within_the_limits(s in situations(), tight in any::<bool>()) {
        let mut policy = JitPolicy::default();
        if tight {
            policy.max_channel_sat = 300_000;
            policy.max_total_sat = 400_000;
        }
        let decision = decide(&s, &policy);
        let before = left_over(&s.amount, &room(&s)).0.total();
        match decision.action {
            Action::Forward | Action::Multipath => prop_assert_eq!(before, 0),
            Action::WaitForClient => prop_assert!(!s.online),
            Action::WaitForChange => prop_assert!(s.opening || s.leaf.unwrap().changing),
            Action::Rotate { grow_sat } => {
                let leaf = s.leaf.unwrap();
                prop_assert!(before > 0 && grow_sat <= leaf.stock_sat && leaf.signers_online && leaf.active);
                prop_assert!(leaf.advances_left > 0 && !leaf.changing);
                // The reserve of a hundredth of what it grows by is kept.
                let mut after = s.clone();
                after.leaf = Some(Leaf { limit_msat: leaf.limit_msat + (grow_sat - grow_sat / 100) * 1000, ..leaf });
                prop_assert_eq!(left_over(&s.amount, &room(&after)).0.total(), 0);
            }
            Action::Jit { capacity_sat } | Action::JitAndMultipath { capacity_sat } => {
                prop_assert!(before > 0 && capacity_sat <= policy.max_channel_sat);
                prop_assert!(capacity_sat >= policy.min_channel_sat && capacity_sat <= s.wallet_sat);
                prop_assert!(capacity_sat + s.jit_total_sat <= policy.max_total_sat);
                prop_assert!(s.jit_channels < policy.max_channels && s.jit_untaken < policy.max_untaken);
                let mut after = s.clone();
                after.others_msat.push((capacity_sat - kept_sat(capacity_sat)) * 1000);
                prop_assert_eq!(left_over(&s.amount, &room(&after)).0.total(), 0);
                if matches!(decision.action, Action::Jit { .. }) {
                    prop_assert!((capacity_sat - kept_sat(capacity_sat)) * 1000 >= s.amount.total());
                }
            }
            Action::Refuse => prop_assert!(before > 0 && decision.against.len() > 2),
        }
    }
}
