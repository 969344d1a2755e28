//! What happens on the chain to a V that LDK has moved on from by a splice.

use bitcoin::Transaction;

use super::super::testing::{Move, CAPACITY_SAT};
use super::super::Way;
use super::claims::LONG;
use super::World;

const ADDED: u64 = 100_000;
const HTLC: u64 = 40_000_000;

impl World {
    /// The provider adds capacity: V -> V', with a real outpoint for V'.
    fn splice(&mut self) {
        self.change(i64::try_from(ADDED).unwrap(), 0);
    }

    /// Each side adds this, sat.
    pub(super) fn change(&mut self, a_sat: i64, b_sat: i64) {
        self.tag += 1;
        let to = self.pair.prepare(a_sat, b_sat, self.tag + 100);
        self.pair.bind(&to);
        self.pair.sign(&to);
        self.pair.lock(&to);
        for node in [&self.pair.a, &self.pair.b] {
            node.take_events();
            let current = node.mapping.current(&self.pair.channel);
            assert_eq!(current, Some(to.v), "no monitor was kept for the V before");
            assert_eq!(node.take_broadcast(), [], "only LDK believes in it");
        }
        self.moved(to);
    }

    /// LDK is at V'.
    pub(super) fn moved(&mut self, to: Move) {
        self.v = to.v;
        self.leaves.push((to.leaf, to.real));
        self.learn();
    }

    fn confirm(&mut self, state: usize, spend: Transaction) {
        let leaf = self.leaves[state].0.clone();
        self.block(&[leaf]);
        self.block(&[spend]);
    }
}

#[test]
fn a_revoked_commitment_on_a_retired_outpoint_is_punished() {
    for cheater in [false, true] {
        for (late, restart, state) in [(false, true, 1), (true, false, 0), (true, true, 1)] {
            let mut world = World::open(1);
            let preimage = world.lock_in(cheater, HTLC);
            let old = world.snapshot(cheater);
            let old = world.on(cheater, &old, &world.leaves[state].1.clone());
            let claim = |world: &World| {
                world.node(!cheater).manager.claim_funds(preimage);
                world.pair.settle();
                world.pair.pay(!cheater, 1_000_000);
            };
            if !late {
                claim(&world);
            }
            world.splice();
            if late {
                claim(&world);
            }
            if restart {
                world = world.restart(!cheater);
            }
            world.confirm(state, old);
            let gets = world.resolve(!cheater, 30);
            assert_eq!(
                gets, CAPACITY_SAT,
                "cheater {cheater}, revoked after the lock {late}, restart {restart}"
            );
            assert!(world.node(!cheater).manager.list_channels().is_empty(), "the channel on V' is closed");
        }
    }
}

#[test]
fn a_preimage_that_comes_after_the_lock_claims_on_a_retired_outpoint() {
    for b in [false, true] {
        for restart in [false, true] {
            let mut world = World::open(1);
            let preimage = world.lock_in(!b, HTLC);
            let theirs = world.snapshot(!b);
            let theirs = world.on(!b, &theirs, &world.leaves[1].1.clone());
            world.splice();
            world.pair.disconnect();
            world.node(b).manager.claim_funds(preimage);
            world.node(b).persist();
            world.node(b).run();
            if restart {
                world = world.restart(b);
            }
            world.confirm(1, theirs);
            let has = if b { 410_000 } else { 590_000 };
            assert_eq!(world.resolve(b, 30), has + HTLC / 1000, "side b: {b}, restart {restart}");
        }
    }
}

#[test]
fn our_own_commitment_leaves_after_a_splice() {
    for b in [false, true] {
        let mut world = World::open(1);
        world.splice();
        world.rotate();
        world.force_close(b);
        let (leaf, real) = world.leaves.last().unwrap().clone();
        world.block(&[leaf]);
        let (out, _) = world.due(b);
        let out = out.first().expect("nothing leaves though a leaf is confirmed").clone();
        assert_eq!(out.input[0].previous_output, real.outpoint);
        world.block(&[out]);
        assert_eq!(world.resolve(b, 160), if b { 410_000 } else { 590_000 + ADDED });
    }
}

#[test]
fn a_commitment_of_ours_on_a_retired_outpoint_never_leaves() {
    let mut world = World::open(1);
    let old = world.snapshot(false).tx;
    let (leaf, real) = world.leaves[1].clone();
    world.block(std::slice::from_ref(&leaf));
    let Way::Real(out) = world.node(false).outward.way(&[&old]) else { panic!("its leaf is confirmed") };
    assert_eq!(out[0].input[0].previous_output, real.outpoint);
    world.take_back(1);
    world.splice();
    world.block(&[leaf]);
    assert_eq!(world.node(false).outward.way(&[&old]), Way::Held, "on a retired outpoint");
}

/// An older state wins before there was an update: our commitment on it is what it was. After one it is revoked.
#[test]
fn a_commitment_that_is_not_revoked_leaves_a_retired_outpoint() {
    for b in [false, true] {
        for (updated, restart) in [(false, false), (false, true), (true, false)] {
            let mut world = World::open(1);
            let v = world.v;
            world.splice();
            assert_eq!(world.node(b).changes.may_leave(&world.pair.channel), None, "nothing has won");
            if updated {
                world.pair.pay(!b, 1_000_000);
            }
            let (leaf, real) = world.leaves[1].clone();
            world.block(&[leaf]);
            let may = world.node(b).changes.may_leave(&world.pair.channel);
            assert_eq!(may, (!updated).then_some(v), "side b: {b}, updated {updated}");
            world.force_close(b);
            world.node(b).take_broadcast();
            world.node(b).take_events();
            if updated {
                assert!(world.node(b).changes.leave(&v).is_err(), "a revoked commitment is published");
                world.blocks(1);
                assert_eq!(world.due(b).0, [], "a revoked commitment leaves");
                continue;
            }
            world.node(b).changes.leave(&v).unwrap();
            if restart {
                world = world.restart(b);
                world.node(b).changes.leave(&v).unwrap();
            }
            world.node(b).run();
            let (out, _) = world.due(b);
            let out = out.iter().find(|tx| tx.input[0].previous_output == real.outpoint);
            let out = out.expect("nothing leaves though it is not revoked").clone();
            world.block(&[out]);
            let has = if b { 410_000 } else { 590_000 };
            assert_eq!(world.resolve(b, LONG), has, "side b: {b}, restart {restart}");
        }
    }
}

/// The payer's retired monitor reads the preimage on the chain, and the channel manager hears of it.
#[test]
fn a_claim_on_a_retired_outpoint_reaches_the_channel_manager() {
    for b in [false, true] {
        for restart in [false, true] {
            let mut world = World::open(1);
            let preimage = world.lock_in(!b, HTLC);
            let own = world.snapshot(b);
            let own = world.on(b, &own, &world.leaves[1].1.clone());
            world.splice();
            world.claim_alone(b, preimage);
            if restart {
                world = world.restart(!b);
            }
            world.confirm(1, own);
            let has = if b { 410_000 } else { 590_000 };
            assert_eq!(world.resolve(b, LONG), has + HTLC / 1000, "side b: {b}, restart {restart}");
            assert!(world.was_paid(!b), "the preimage was read and went nowhere");
        }
    }
}

#[test]
fn blocks_between_the_steps_of_a_change_do_no_harm() {
    let mut world = World::open(1);
    let (by_b, by_a) = (world.lock_in(false, HTLC), world.lock_in(true, HTLC));
    let (v, output) = world.pair.negotiate(i64::try_from(ADDED).unwrap(), 0);
    let to = world.pair.leaf_for(v, output, 222);
    world.blocks(1);
    world.pair.announce_move(&to);
    world.blocks(1);
    world.pair.bind(&to);
    world.blocks(1);
    world.pair.sign(&to);
    world.blocks(7);
    world.pair.lock(&to);
    world.blocks(1);
    world.moved(to);
    world.node(true).manager.claim_funds(by_b);
    world.node(false).manager.claim_funds(by_a);
    world.pair.settle();
    world.pair.pay(true, 1_000_000);
    for b in [false, true] {
        assert_eq!(world.due(b).0, [], "nothing leaves");
    }
}

#[test]
fn every_generation_has_its_own_monitor() {
    let (cheater, generations) = (true, 3);
    // The provider's, the client's, and both.
    let changes = [(100_000, 0), (0, -20_000), (30_000, 10_000)];
    for punished in 0..generations {
        let mut world = World::open(0);
        let mut old = Vec::new();
        for (generation, (a_sat, b_sat)) in changes.into_iter().enumerate() {
            let preimage = world.lock_in(cheater, HTLC);
            let snapshot = world.snapshot(cheater);
            let real = world.leaves[generation].1.clone();
            old.push(world.on(cheater, &snapshot, &real));
            world.node(!cheater).manager.claim_funds(preimage);
            world.pair.settle();
            world.change(a_sat, b_sat);
        }
        world = world.restart(!cheater);
        world.confirm(punished, old[punished].clone());
        let added: i64 = changes[..punished].iter().map(|(a_sat, b_sat)| a_sat + b_sat).sum();
        let capacity = CAPACITY_SAT.checked_add_signed(added).unwrap();
        assert_eq!(world.resolve(!cheater, 30), capacity, "generation {punished}");
    }
}

#[test]
fn a_retired_monitor_sleeps_until_its_outpoint_is_spent() {
    let mut world = World::open(1);
    let preimage = world.lock_in(false, HTLC);
    let old = world.snapshot(false);
    let old = world.on(false, &old, &world.leaves[1].1.clone());
    world.splice();
    // Long settled on V' when it expires; the copies do not know.
    world.node(true).manager.claim_funds(preimage);
    world.pair.settle();
    world.blocks(150);
    world.pair.settle();
    for b in [false, true] {
        assert_eq!(world.node(b).manager.list_channels().len(), 1, "closed by the copy, side b: {b}");
    }
    world.pair.pay(true, 1_000_000);
    // Then it wakes; goes to sleep when a reorganisation takes the spend away; and wakes again.
    world.confirm(1, old.clone());
    world.resolve(true, 2);
    world.take_back(3);
    world.resolve(true, 3);
    world.block(&[old]);
    assert_eq!(world.resolve(true, 40), CAPACITY_SAT);
}

#[test]
fn what_can_no_longer_confirm_is_forgotten() {
    let mut world = World::open(1);
    let first = world.v;
    world.splice();
    world.pair.pay(false, 1_000_000);
    let gone: Vec<_> = world.leaves[..2].iter().map(|(_, real)| real.outpoint).collect();
    for node in [&world.pair.a, &world.pair.b] {
        gone.iter().for_each(|real| node.mapping.drop_real(&first, real).unwrap());
    }
    world.blocks(1);
    use lightning::util::persist::KVStoreSync;
    for b in [false, true] {
        assert!(world.node(b).store.list("retired_monitors", "").unwrap().is_empty());
    }
    world = world.restart(true);
    world.pair.connect();
    world.pair.settle();
    world.pair.pay(true, 1_000_000);
}
