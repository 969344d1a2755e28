//! Closings on the chain under one V with several real outpoints.

use bitcoin::Transaction;
use lightning::events::Event;

use super::super::testing::CAPACITY_SAT;
use super::super::Way;
use super::World;

/// Blocks until everything is over: HTLCs expire (LDK adds up to 160 blocks at random), then `to_self_delay`.
const LONG: u32 = 400;
/// What side `b` has after the first payments, sat.
fn balance(b: bool) -> u64 {
    if b {
        410_000
    } else {
        590_000
    }
}

const SENT: u64 = 30_000_000;
const RECEIVED: u64 = 25_000_000;

impl World {
    /// Pending for `b` in both directions: one that it can claim, and one that will expire. Nobody hears of the claim.
    fn pending(&mut self, b: bool) {
        self.lock_in(b, SENT);
        let preimage = self.lock_in(!b, RECEIVED);
        self.pair.disconnect();
        self.node(b).manager.claim_funds(preimage);
        self.node(b).persist();
        self.node(b).run();
    }

    /// Whether that side has paid what it had sent.
    fn was_paid(&self, b: bool) -> bool {
        self.node(b).take_events().iter().any(|e| matches!(e, Event::PaymentSent { .. }))
    }

    fn confirm_leaf(&mut self, state: usize) {
        let leaf = self.leaves[state].0.clone();
        self.block(&[leaf]);
    }
}

/// All that `b` has, with its pending payments: what it sent comes back, what it received is claimed.
fn with_pending(b: bool) -> u64 {
    balance(b) + RECEIVED / 1000
}

#[test]
fn our_own_commitment_leaves_on_the_outpoint_that_is_confirmed() {
    // The first one (V == R1), a superseded one and the newest one.
    for (b, state) in [(false, 0), (false, 2), (true, 1), (true, 2)] {
        let mut world = World::open(2);
        world.pending(b);
        world.force_close(b);
        let (held, _) = world.due(b);
        assert_eq!(held, [], "no leaf is confirmed");
        world.confirm_leaf(state);
        let (out, _) = world.due(b);
        let out = out.first().expect("nothing leaves though a leaf is confirmed").clone();
        let real = world.leaves[state].1.outpoint;
        assert_eq!(out.input[0].previous_output, real, "on what is confirmed");
        world.block(&[out]);
        assert_eq!(world.resolve(b, LONG), with_pending(b), "side b: {b}, state {state}");
        assert!(world.was_paid(!b), "the peer reads the preimage on the chain");
    }
}

#[test]
fn a_commitment_of_the_peer_is_claimed_on_every_outpoint() {
    for (b, state) in [(false, 0), (false, 1), (true, 1), (true, 2)] {
        let mut world = World::open(2);
        world.pending(b);
        let theirs = world.snapshot(!b);
        let theirs = world.on(!b, &theirs, &world.leaves[state].1.clone());
        world.confirm_leaf(state);
        world.block(&[theirs]);
        assert_eq!(world.resolve(b, LONG), with_pending(b), "side b: {b}, state {state}");
        assert!(world.was_paid(!b), "the peer reads the preimage on the chain");
    }
}

/// A commitment with HTLCs in both directions that the cheater has revoked since, on that leaf state.
fn revoked(world: &mut World, cheater: bool, state: usize) -> Transaction {
    let (one, other) = (world.lock_in(cheater, SENT), world.lock_in(!cheater, RECEIVED));
    let old = world.snapshot(cheater);
    world.node(!cheater).manager.claim_funds(one);
    world.node(cheater).manager.claim_funds(other);
    world.pair.settle();
    world.pair.pay(true, 1_000_000);
    let real = world.leaves[state].1.clone();
    world.on(cheater, &old, &real)
}

#[test]
fn a_revoked_commitment_is_punished_on_every_outpoint() {
    for (cheater, state) in [(true, 0), (true, 1), (false, 1), (false, 2)] {
        let mut world = World::open(2);
        let old = revoked(&mut world, cheater, state);
        world.confirm_leaf(state);
        world.block(&[old]);
        assert_eq!(world.resolve(!cheater, 30), CAPACITY_SAT, "cheater {cheater}, state {state}");
    }
}

#[test]
fn a_process_that_starts_again_goes_on_where_it_was() {
    for b in [false, true] {
        let mut world = World::open(2);
        world.pending(b);
        world.force_close(b);
        world = world.restart(b);
        world.confirm_leaf(1);
        world = world.restart(b);
        // LDK asks again with every block.
        world.blocks(1);
        let (out, _) = world.due(b);
        world.block(&out[..1]);
        // The parent was read before, what spends it will be read after.
        world = world.restart(b);
        assert_eq!(world.resolve(b, 10), 0);
        world = world.restart(b);
        let first = world.resolve(b, LONG / 2);
        world = world.restart(b);
        assert_eq!(first + world.resolve(b, LONG), with_pending(b), "side b: {b}");
    }
}

#[test]
fn a_reorganisation_to_another_leaf_state_is_followed() {
    for b in [false, true] {
        let mut world = World::open(2);
        world.pending(b);
        let own = world.snapshot(b).tx;
        world.force_close(b);
        world.confirm_leaf(1);
        let (out, _) = world.due(b);
        world.block(&out[..1]);
        assert_eq!(world.resolve(b, 2), 0);
        // The commitment only, and it comes again.
        world.take_back(3);
        world.resolve(b, 2);
        // The leaf state, and another one confirms.
        world.take_back(3);
        let way = world.node(b).outward.way(&[&own]);
        assert_eq!(way, Way::Held, "a commitment leaves, and no leaf is confirmed any more");
        world.blocks(1);
        world.due(b);
        world.confirm_leaf(2);
        assert_eq!(world.resolve(b, LONG), with_pending(b), "side b: {b}");
        let on_chain = world.pair.blocks.iter().flat_map(|block| &block.txdata);
        let newest = world.leaves[2].1.outpoint;
        assert_eq!(on_chain.filter(|tx| tx.input[0].previous_output == newest).count(), 1);
    }
}

#[test]
fn a_penalty_follows_a_reorganisation() {
    let mut world = World::open(2);
    let real = world.leaves[2].1.clone();
    let (one, other) = (world.lock_in(true, SENT), world.lock_in(false, RECEIVED));
    let old = world.snapshot(true);
    world.node(false).manager.claim_funds(one);
    world.node(true).manager.claim_funds(other);
    world.pair.settle();
    world.confirm_leaf(1);
    let first = world.on(true, &old, &world.leaves[1].1.clone());
    world.block(&[first]);
    world.resolve(false, 2);
    world.take_back(4);
    world.confirm_leaf(2);
    let second = world.on(true, &old, &real);
    world.block(&[second]);
    assert_eq!(world.resolve(false, 40), CAPACITY_SAT);
}
