//! Exits while a change of capacity is under way: from the first signature that lets R' confirm until LDK has locked V'.

use bitcoin::Transaction;

use super::super::testing::{Move, CAPACITY_SAT};
use super::claims::{balance, LONG, RECEIVED, SENT};
use super::World;

const ADDED: i64 = 100_000;
const TAKEN: i64 = -20_000;

/// How far the change is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// R' may be complete; LDK knows nothing of V'.
    Bound,
    /// LDK has signed for V', and not locked it.
    Signed,
}

const WINDOW: [At; 2] = [At::Bound, At::Signed];

/// With payments pending for `b` in both directions: one that it can claim, and one that will expire.
fn world(b: bool, at: At, restart: bool) -> (World, Move) {
    let mut world = World::open(1);
    world.lock_in(b, SENT);
    let preimage = world.lock_in(!b, RECEIVED);
    // The client takes something out, too: both contribute.
    let to = world.pair.prepare(ADDED, TAKEN, 230);
    world.pair.bind(&to);
    if at == At::Signed {
        world.pair.sign(&to);
        assert_ne!(world.pair.funding(), to.v);
    }
    world.leaves.push((to.leaf.clone(), to.real.clone()));
    if restart {
        world = world.restart(b);
        world.pair.connect();
        world.pair.settle();
    }
    world.claim_alone(b, preimage);
    (world, to)
}

/// What `b` has in the end, sat: what it sent comes back, what it received is claimed.
fn expected(b: bool, moved: bool) -> u64 {
    let added = match (moved, b) {
        (false, _) => 0,
        (true, false) => ADDED,
        (true, true) => TAKEN,
    };
    (balance(b) + RECEIVED / 1000).checked_add_signed(added).unwrap()
}

/// The commitment of a side on R'.
fn on_new(world: &World, b: bool, to: &Move) -> Transaction {
    let node = world.node(b);
    let number = node.commitments.newest_on(&to.v, &to.real.outpoint).expect("no commitment on R'");
    let signer = |keys_id| node.keys.channel_signer(keys_id);
    node.commitments.own_on(&to.v, number, &to.real.outpoint, signer).unwrap()
}

#[test]
fn our_own_commitment_leaves_by_the_new_outpoint() {
    for at in WINDOW {
        for b in [false, true] {
            let restart = b == (at == At::Bound);
            let (mut world, to) = world(b, at, restart);
            world.force_close(b);
            if at == At::Bound {
                world.node(b).changes.leave(&to.v).expect("no monitor of V'");
            }
            world.node(b).run();
            assert_eq!(world.due(b).0, [], "no leaf is confirmed");
            world.confirm_leaf(2);
            world.blocks(1);
            let (out, _) = world.due(b);
            let mut out = out.iter().filter(|tx| tx.input[0].previous_output == to.real.outpoint);
            let out = out.next().expect("nothing leaves though R' is confirmed").clone();
            world.block(&[out]);
            assert_eq!(world.resolve(b, LONG), expected(b, true), "{at:?}, side b: {b}, restart {restart}");
            assert!(world.was_paid(!b), "the peer reads the preimage on the chain");
        }
    }
}

#[test]
fn our_own_commitment_leaves_by_the_old_outpoint() {
    for at in WINDOW {
        for b in [false, true] {
            let (mut world, _) = world(b, at, b);
            world.force_close(b);
            assert_eq!(world.due(b).0, [], "no leaf is confirmed");
            world.confirm_leaf(1);
            let (out, _) = world.due(b);
            world.block(&out[..1]);
            assert_eq!(world.resolve(b, LONG), expected(b, false), "{at:?}, side b: {b}");
            assert!(world.was_paid(!b), "the peer reads the preimage on the chain");
        }
    }
}

#[test]
fn a_commitment_of_the_peer_is_claimed_on_the_new_outpoint() {
    for at in WINDOW {
        for b in [false, true] {
            let restart = b == (at == At::Bound);
            let (mut world, to) = world(b, at, restart);
            let theirs = on_new(&world, !b, &to);
            world.confirm_leaf(2);
            world.block(&[theirs]);
            assert_eq!(world.resolve(b, LONG), expected(b, true), "{at:?}, side b: {b}, restart {restart}");
            assert!(world.was_paid(!b), "the peer reads the preimage on the chain");
            assert!(world.node(b).manager.list_channels().is_empty(), "the channel is closed");
        }
    }
}

/// R' comes to the chain before LDK has heard of V', and the peer's `commitment_signed` for it comes after that: LDK must
/// not have it, since it was not shown R'.
#[test]
fn a_signature_that_comes_after_its_output_is_refused() {
    for b in [false, true] {
        let (mut world, to) = world(b, At::Bound, false);
        for side in [false, true] {
            let [node, peer] = world.pair.sides(side);
            node.changes.sign(&peer.id, &world.pair.channel, &to.v).unwrap();
        }
        let theirs = on_new(&world, !b, &to);
        world.confirm_leaf(2);
        world.pair.settle();
        world.block(&[theirs]);
        assert_eq!(world.resolve(b, LONG), expected(b, true), "side b: {b}");
    }
}

#[test]
fn a_commitment_of_the_peer_is_claimed_on_the_old_outpoint() {
    for at in WINDOW {
        for b in [false, true] {
            let (mut world, _) = world(b, at, !b);
            let theirs = world.snapshot(!b);
            let theirs = world.on(!b, &theirs, &world.leaves[1].1.clone());
            world.confirm_leaf(1);
            world.block(&[theirs]);
            assert_eq!(world.resolve(b, LONG), expected(b, false), "{at:?}, side b: {b}");
        }
    }
}

/// Both V and V' go on; what was revoked on V' before it is locked is punished.
#[test]
fn a_revoked_commitment_on_the_new_outpoint_is_punished_before_the_lock() {
    for cheater in [false, true] {
        let mut world = World::open(1);
        let preimage = world.lock_in(cheater, SENT);
        let to = world.pair.prepare(ADDED, 0, 231);
        world.pair.bind(&to);
        world.pair.sign(&to);
        let old = on_new(&world, cheater, &to);
        world.node(!cheater).manager.claim_funds(preimage);
        world.pair.settle();
        world.leaves.push((to.leaf.clone(), to.real.clone()));
        world.confirm_leaf(2);
        world.block(&[old]);
        let all = CAPACITY_SAT.checked_add_signed(ADDED).unwrap();
        assert_eq!(world.resolve(!cheater, 30), all, "cheater {cheater}");
    }
}

/// A newer state has overtaken the change. The peer has completed R' all the same, and publishes it when we sleep, with a
/// commitment that it has revoked since.
#[test]
fn a_revoked_commitment_on_an_overtaken_outpoint_is_punished() {
    for cheater in [false, true] {
        for restart in [false, true] {
            let mut world = World::open(1);
            let preimage = world.lock_in(cheater, SENT);
            let to = world.pair.prepare(ADDED, 0, 232);
            world.pair.bind(&to);
            let old = on_new(&world, cheater, &to);
            for b in [false, true] {
                let [node, peer] = world.pair.sides(b);
                node.changes.supersede(peer.id, &world.pair.channel, &to.v).unwrap();
                assert_eq!(node.mapping.current(&world.pair.channel), Some(world.v), "LDK stays on V");
            }
            world.pair.settle();
            world.node(!cheater).manager.claim_funds(preimage);
            world.pair.settle();
            world.pair.pay(true, 1_000_000);
            if restart {
                world = world.restart(!cheater);
                world.pair.connect();
                world.pair.settle();
                world.pair.pay(true, 1_000_000);
            }
            world.leaves.push((to.leaf.clone(), to.real.clone()));
            world.confirm_leaf(2);
            world.block(&[old]);
            let all = CAPACITY_SAT.checked_add_signed(ADDED).unwrap();
            let got = world.resolve(!cheater, 30);
            assert_eq!(got, all, "nobody watches what was overtaken: cheater {cheater}, restart {restart}");
            assert!(world.node(!cheater).manager.list_channels().is_empty(), "the channel on V is closed");
        }
    }
}
