//! Exit plans against a chain that is filled by hand.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use factory_core::ceremony::ParamsChoice;
use factory_core::exit::{DistributionAction, ExitAction, ExitPlan, KnownChain, WaitReason};
use factory_core::params::Params;
use factory_core::record::{ClientFactoryRecord, SignedPath};
use factory_core::transaction::TxKind;
use factory_core::Error;

fn made(params: Params, n: usize) -> World {
    let mut world = World::new(config(ParamsChoice::Fixed(params), n, 1_000));
    world.run();
    world.assert_made(&(0..n).collect::<Vec<_>>());
    world
}

/// A chain on which the funding transaction confirmed at `height`.
fn funded(world: &World, height: u32) -> KnownChain {
    let mut chain = KnownChain::default();
    chain.confirm(&world.broadcast[0], height);
    chain
}

#[test]
fn an_exit_takes_the_delays_of_its_path() {
    for params in [regtest(3, 1), shaped(3, 1, &[3], &[1, 2]), shaped(3, 1, &[3], &[0, 0])] {
        let world = made(params.clone(), 3);
        let record = &world.records[&1];
        let plan = record.path.exit_plan().unwrap();
        let mut chain = funded(&world, 1000);
        let mut height = 1000;
        let mut done = 0;
        for (i, step) in plan.steps.iter().enumerate() {
            if step.relative_delay > 0 {
                // The last block in which it is still too early.
                let ready = height + u32::from(step.relative_delay) - 1;
                let reason = WaitReason::RelativeDelay { step: i };
                assert_eq!(
                    plan.next_action(&chain, ready - 1),
                    ExitAction::Wait { until_height: ready, reason }
                );
                height = ready;
            }
            assert_eq!(plan.next_action(&chain, height), ExitAction::Publish { step: i });
            height += 1;
            chain.confirm(&step.tx, height);
            done += 1;
        }
        assert_eq!(plan.next_action(&chain, height), ExitAction::Done);
        assert_eq!(done, params.path_transactions());
        // Blocks: one for each transaction and the delays, each counted from its parent's block.
        let delays: u32 = plan.steps.iter().map(|s| u32::from(s.relative_delay).saturating_sub(1)).sum();
        let steps = u32::try_from(plan.steps.len()).unwrap();
        assert_eq!(height - 1000, delays + steps);
        assert!(height - 1000 <= params.worst_exit(1).unwrap());
        let channel = record.channel().unwrap();
        assert_eq!(channel.outpoint.txid, plan.steps.last().unwrap().txid);
    }
}

#[test]
fn others_steps_count_and_reorganisations_are_followed() {
    let world = made(regtest(9, 1), 9);
    let mine = world.records[&0].path.exit_plan().unwrap();
    let neighbour = world.records[&1].path.exit_plan().unwrap();
    let mut chain = KnownChain::default();
    let reason = WaitReason::FundingUnconfirmed;
    assert_eq!(mine.next_action(&chain, 50), ExitAction::Wait { until_height: 51, reason });
    chain.confirm(&world.broadcast[0], 60);
    chain.confirm(&neighbour.steps[0].tx, 61);
    assert_eq!(mine.steps[0].txid, neighbour.steps[0].txid);
    assert_eq!(mine.next_action(&chain, 61), ExitAction::Publish { step: 1 });
    chain.unconfirm(&mine.steps[0].txid);
    assert_eq!(mine.next_action(&chain, 61), ExitAction::Publish { step: 0 });
    assert_eq!(mine.next_action(&KnownChain::default(), 61), ExitAction::Wait { until_height: 62, reason });
}

#[test]
fn a_spent_funding_output_blocks() {
    let world = made(regtest(2, 1), 2);
    let plan = world.records[&0].path.exit_plan().unwrap();
    let mut chain = funded(&world, 10);
    let mut other = plan.steps[0].tx.clone();
    other.output.pop();
    chain.confirm(&other, 12);
    let blocked = ExitAction::Blocked { step: 0, outpoint: plan.funding, spent_by: other.compute_txid() };
    assert_eq!(plan.next_action(&chain, 20), blocked);
    assert!(matches!(plan.distribution_action(&chain, 1_000_000), DistributionAction::Blocked { .. }));
}

/// After the expiry height somebody can pay the clients whatever was published of the leaf before.
#[test]
fn distributions_wherever_the_leaf_stands() {
    let world = made(shaped(4, 2, &[2], &[0, 2]), 4);
    let plan = world.records[&3].path.exit_plan().unwrap();
    let expiry = plan.expiry_height;
    assert_eq!((plan.leaf_start, plan.steps.len(), plan.distributions.len()), (1, 4, 3));
    for published in 0..=3usize {
        let mut chain = funded(&world, 1000);
        let mut height = 1000;
        for step in plan.steps.iter().take(published) {
            height += 100;
            chain.confirm(&step.tx, height);
        }
        assert_eq!(
            plan.distribution_action(&chain, expiry - 1),
            DistributionAction::Wait { until_height: expiry, reason: WaitReason::Expiry }
        );
        if published == 0 {
            assert_eq!(plan.distribution_action(&chain, expiry), DistributionAction::PublishPath { step: 0 });
            chain.confirm(&plan.steps[0].tx, expiry + 1);
        }
        let due = published.max(1) - plan.leaf_start;
        let now = expiry + 1;
        assert_eq!(
            plan.distribution_action(&chain, now),
            DistributionAction::Publish { distribution: due },
            "{published} published"
        );
        let distribution = &plan.distributions[due];
        assert_eq!(distribution.kind, TxKind::Distribution { position: u16::try_from(due).unwrap() });
        assert_eq!(distribution.lock_height, expiry);
        chain.confirm(&distribution.tx, now + 1);
        assert_eq!(plan.distribution_action(&chain, now + 1), DistributionAction::Done { distribution: due });
        assert!(matches!(plan.next_action(&chain, now + 1), ExitAction::Blocked { .. }));
    }
    // All of the leaf is out: its channels settle by themselves.
    let mut chain = funded(&world, 1000);
    for (i, step) in (0u32..).zip(&plan.steps) {
        chain.confirm(&step.tx, 1001 + 50 * i);
    }
    assert_eq!(plan.distribution_action(&chain, expiry), DistributionAction::Settled);
}

/// A kickoff that confirms just before the expiry does not stop the distributions: the next one waits a little
/// longer than any state would have to, and then goes.
#[test]
fn a_kickoff_just_before_the_expiry_does_not_help() {
    let world = made(shaped(2, 1, &[2], &[0, 2]), 2);
    let plan = world.records[&0].path.exit_plan().unwrap();
    let expiry = plan.expiry_height;
    let mut chain = funded(&world, 1000);
    chain.confirm(&plan.steps[0].tx, expiry - 1);
    chain.confirm(&plan.steps[1].tx, expiry);
    let delay = u32::from(plan.distributions[1].relative_delay);
    assert!(delay > u32::from(plan.steps[2].relative_delay));
    let ready = expiry + delay - 1;
    assert_eq!(
        plan.distribution_action(&chain, expiry),
        DistributionAction::Wait { until_height: ready, reason: WaitReason::RelativeDelay { step: 2 } }
    );
    assert_eq!(plan.distribution_action(&chain, ready), DistributionAction::Publish { distribution: 1 });
}

#[test]
fn records_are_checked_when_they_are_read() {
    let world = made(regtest(3, 2), 3);
    let good = &world.records[&1];
    let json = serde_json::to_string(good).unwrap();
    let read: ClientFactoryRecord = serde_json::from_str(&json).unwrap();
    assert_eq!(read, *good);
    read.path.verify().unwrap();
    type Break = fn(&mut SignedPath);
    let cases: Vec<Break> = vec![
        |p| p.version = 2,
        |p| p.path.clear(),
        |p| {
            p.path.remove(0);
        },
        |p| p.path.swap(0, 1),
        |p| p.path[1].tx.input[0].witness = bitcoin::Witness::new(),
        |p| {
            let mut signature = p.path[0].tx.input[0].witness.nth(0).unwrap().to_vec();
            signature[5] ^= 1;
            p.path[0].tx.input[0].witness = bitcoin::Witness::from_slice(&[signature]);
        },
        |p| p.distributions.swap(0, 1),
        |p| p.distributions[0].tx.input[0].witness = p.path[0].tx.input[0].witness.clone(),
        |p| p.leaf[0].outpoint.vout += 1,
        |p| p.funding.value_sat += 1,
        |p| p.leaf_start += 9,
        |p| {
            p.distributions.pop();
        },
        |p| p.path[2].relative_delay += 1,
        |p| p.expiry_height += 1,
    ];
    for (i, change) in cases.into_iter().enumerate() {
        let mut bad = good.path.clone();
        change(&mut bad);
        assert!(bad.verify().is_err(), "case {i}");
    }
    let mut old = good.path.clone();
    old.version = 7;
    assert_eq!(old.verify(), Err(Error::RecordVersion { got: 7, known: 1 }));
    let mut short = good.path.clone();
    short.leaf_start = 99;
    assert!(ExitPlan::new(&short).is_err());
}
