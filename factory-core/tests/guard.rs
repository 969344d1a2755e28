//! What a guard does, against others who publish what they like.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::OnceLock;

use common::*;
use factory_core::ceremony::ParamsChoice;
use factory_core::exit::{ChainView, ExitPlan, ExitStep, KnownChain};
use factory_core::guard::{GuardAction, GuardWait, PATIENCE_BLOCKS};
use factory_core::transaction::TxKind;
use proptest::prelude::*;

const FUNDED: u32 = 1000;

/// A leaf of two below a static root; three stacked layers. With the chain on which its funding is confirmed.
fn leaf() -> (ExitPlan, KnownChain) {
    static MADE: OnceLock<(ExitPlan, KnownChain)> = OnceLock::new();
    MADE.get_or_init(|| {
        let params = shaped(4, 2, &[2], &[0, 3]);
        let mut world = World::new(config(ParamsChoice::Fixed(params), 4, 1_000));
        world.run();
        world.assert_made(&[0, 1, 2, 3]);
        let mut chain = KnownChain::default();
        chain.confirm(&world.broadcast[0], FUNDED);
        (world.records[&3].path.exit_plan().unwrap(), chain)
    })
    .clone()
}

/// Says that a state is not the first of its layer: an older one could be published.
fn update(plan: &mut ExitPlan, step: usize) {
    let TxKind::State { state, .. } = &mut plan.steps[step].kind else { panic!("no state") };
    *state = 1;
}

fn wait(until_height: u32, reason: GuardWait) -> GuardAction {
    GuardAction::Wait { until_height, reason }
}

#[test]
fn a_leaf_that_nobody_touches_is_left_alone() {
    let (plan, mut chain) = leaf();
    let t = plan.expiry_height;
    let none = KnownChain::default();
    assert_eq!(plan.guard_action(&none, 50), wait(51, GuardWait::FundingUnconfirmed));
    assert_eq!(plan.guard_action(&chain, FUNDED), wait(t, GuardWait::Expiry));
    // A neighbour leaves: the root is shared, the leaf is not.
    chain.confirm(&plan.steps[0].tx, FUNDED + 1);
    assert_eq!(plan.guard_action(&chain, FUNDED + 50), wait(t, GuardWait::Expiry));
    assert_eq!(plan.guard_action(&chain, t - 1), wait(t, GuardWait::Expiry));
    assert_eq!(plan.guard_action(&chain, t), GuardAction::PublishDistribution { distribution: 0 });
}

#[test]
fn the_path_above_the_leaf_is_published_after_the_expiry() {
    let (plan, mut chain) = leaf();
    let t = plan.expiry_height;
    assert_eq!(plan.guard_action(&chain, t), GuardAction::PublishPath { step: 0 });
    chain.confirm(&plan.steps[0].tx, t + 1);
    assert_eq!(plan.guard_action(&chain, t + 1), GuardAction::PublishDistribution { distribution: 0 });
    chain.confirm(&plan.distributions[0].tx, t + 2);
    assert_eq!(plan.guard_action(&chain, t + 2), GuardAction::Paid { distribution: 0 });
    assert_eq!(plan.blocks_left(&chain, t + 2), None);
}

#[test]
fn an_exit_that_was_begun_is_finished_with_patience() {
    let (plan, mut chain) = leaf();
    let mut height = FUNDED;
    for step in &plan.steps[..2] {
        height += 1;
        chain.confirm(&step.tx, height);
    }
    let ready = plan.steps[2].ready_at(height);
    let patient = ready + PATIENCE_BLOCKS;
    assert_eq!(plan.guard_action(&chain, height), wait(patient, GuardWait::RelativeDelay { step: 2 }));
    assert_eq!(plan.guard_action(&chain, ready), wait(patient, GuardWait::Patience { step: 2 }));
    assert_eq!(plan.guard_action(&chain, patient), GuardAction::PublishPath { step: 2 });
    assert_eq!(plan.steps_left(&chain), 3);
}

#[test]
fn a_state_with_an_older_rival_goes_out_at_once() {
    let (mut plan, mut chain) = leaf();
    update(&mut plan, 3);
    let mut height = FUNDED;
    for step in &plan.steps[..3] {
        height += 1;
        chain.confirm(&step.tx, height);
    }
    let ready = plan.steps[3].ready_at(height);
    assert_eq!(plan.guard_action(&chain, ready - 1), wait(ready, GuardWait::RelativeDelay { step: 3 }));
    assert_eq!(plan.guard_action(&chain, ready), GuardAction::PublishPath { step: 3 });
    // After the expiry height too: the distribution may be older than the state.
    let late = plan.expiry_height + 500;
    assert_eq!(plan.guard_action(&chain, late), GuardAction::PublishPath { step: 3 });
    // The older state was faster.
    let mut older = plan.steps[3].tx.clone();
    older.output.pop();
    chain.confirm(&older, late);
    let lost = GuardAction::Lost { outpoint: plan.steps[3].parent, spent_by: older.compute_txid() };
    assert_eq!(plan.guard_action(&chain, late), lost);
    assert_eq!(plan.blocks_left(&chain, late), None);
}

#[test]
fn what_is_begun_shortly_before_the_expiry_ends_in_a_distribution() {
    let (plan, chain) = leaf();
    let t = plan.expiry_height;
    for published in 2..=4usize {
        let mut chain = chain.clone();
        for (i, step) in (0u32..).zip(&plan.steps[..published]) {
            chain.confirm(&step.tx, t - 10 + i);
        }
        assert_eq!(plan.guard_action(&chain, t - 6), wait(t, GuardWait::Expiry), "{published} published");
        let due = published - plan.leaf_start;
        let ready = plan.distributions[due].ready_at(t - 11 + u32::try_from(published).unwrap()).max(t);
        assert_eq!(
            plan.guard_action(&chain, ready),
            GuardAction::PublishDistribution { distribution: due },
            "{published} published"
        );
    }
}

/// Blocks that the simple rule says are left are those that it takes.
#[test]
fn blocks_left_are_counted_to_the_last_step() {
    let (plan, mut chain) = leaf();
    let mut height = FUNDED;
    let all = plan.blocks_left(&chain, height).unwrap();
    for (i, step) in plan.steps.iter().enumerate() {
        let parent = chain.confirmed_at(&step.parent.txid).unwrap();
        while height < step.ready_at(parent) {
            height += 1;
            assert_eq!(plan.blocks_left(&chain, height), Some(FUNDED + all - height), "step {i}");
        }
        height += 1;
        chain.confirm(&step.tx, height);
        assert_eq!(plan.blocks_left(&chain, height), Some(FUNDED + all - height), "step {i}");
    }
    assert_eq!((height, plan.steps_left(&chain)), (FUNDED + all, 0));
    assert_eq!(plan.guard_action(&chain, height), GuardAction::Settled);
}

/// Confirms a transaction that is valid now in the next block.
fn mine(chain: &mut KnownChain, step: &ExitStep, height: u32) {
    let parent = chain.confirmed_at(&step.parent.txid).expect("the parent is confirmed");
    assert_eq!(chain.spent_by(&step.parent), None, "{} spends a spent output", step.kind);
    assert!(height >= step.ready_at(parent), "{} is not valid at {height}", step.kind);
    chain.confirm(&step.tx, height + 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Others publish any steps at any time, blocks are taken back; the guard publishes only what is valid, begins
    /// nothing before the expiry height, is first with every state that has a rival, and the leaf always ends.
    #[test]
    fn whatever_others_do_the_leaf_ends(
        updated in proptest::collection::vec(any::<bool>(), 3),
        others in proptest::collection::vec(0u32..40, 0..6),
        start_before in 0u32..400,
        reorg in proptest::option::of(1u32..120),
    ) {
        let (mut plan, mut chain) = leaf();
        for (layer, updated) in updated.iter().enumerate() {
            if *updated {
                let step = plan.leaf_start + 1 + layer;
                update(&mut plan, step);
            }
        }
        let t = plan.expiry_height;
        let mut height = t - start_before.min(t - FUNDED - 1);
        // The next step that others publish, and when.
        let mut pauses = others.into_iter();
        let mut others_at = pauses.next().map(|p| height + p);
        let reorg_at = reorg.map(|r| height + r);
        let mut ended = false;
        for _ in 0..1000 {
            let action = plan.guard_action(&chain, height);
            let next = plan.steps.iter().position(|s| chain.confirmed_at(&s.txid).is_none());
            let next_ready = next.is_some_and(|i| {
                let step = &plan.steps[i];
                let parent = chain.confirmed_at(&step.parent.txid);
                chain.spent_by(&step.parent).is_none() && parent.is_some_and(|h| height >= step.ready_at(h))
            });
            let own = match action {
                GuardAction::PublishPath { step } => {
                    prop_assert_eq!(next, Some(step));
                    prop_assert!(step > plan.leaf_start || height >= t, "begins before the expiry");
                    Some(plan.steps[step].clone())
                }
                GuardAction::PublishDistribution { distribution } => {
                    prop_assert!(height >= t);
                    Some(plan.distributions[distribution].clone())
                }
                GuardAction::Wait { until_height, .. } => {
                    prop_assert!(until_height > height);
                    None
                }
                GuardAction::Settled | GuardAction::Paid { .. } => {
                    ended = true;
                    break;
                }
                GuardAction::Lost { .. } => return Err(TestCaseError::fail("nobody has an older state here")),
            };
            if let (Some(i), true) = (next, next_ready) {
                if plan.steps[i].is_raced() {
                    prop_assert_eq!(action, GuardAction::PublishPath { step: i });
                }
            }
            match (own, next) {
                (Some(own), _) => mine(&mut chain, &own, height),
                (None, Some(i)) if next_ready && others_at.is_some_and(|at| height >= at) => {
                    let step = plan.steps[i].clone();
                    mine(&mut chain, &step, height);
                    others_at = pauses.next().map(|p| height + p);
                }
                _ => {}
            }
            height += 1;
            if Some(height) == reorg_at {
                // The last transaction is off the chain again; the height stays for simplicity.
                let all = plan.distributions.iter().chain(plan.steps.iter().rev());
                let last = all.map(|s| s.txid).find(|txid| chain.confirmed_at(txid).is_some());
                last.into_iter().for_each(|txid| chain.unconfirm(&txid));
            }
        }
        prop_assert!(ended, "the leaf did not end");
        prop_assert!(height <= t + 200, "ended only at {} for {}", height, t);
    }
}
