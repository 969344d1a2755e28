//! Closings on the chain under one V with several real outpoints.

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::Secp256k1;
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, Transaction};
use lightning::events::Event;
use lightning::sign::ecdsa::EcdsaChannelSigner;
use lightning::sign::{HTLCDescriptor, SignerProvider};
use lightning::types::payment::PaymentPreimage;

use super::super::testing::CAPACITY_SAT;
use super::super::Way;
use super::World;

/// Blocks until everything is over: HTLCs expire (LDK adds up to 160 blocks at random), then `to_self_delay`.
pub(super) const LONG: u32 = 400;
/// What side `b` has after the first payments, sat.
pub(super) fn balance(b: bool) -> u64 {
    if b {
        410_000
    } else {
        590_000
    }
}

pub(super) const SENT: u64 = 30_000_000;
pub(super) const RECEIVED: u64 = 25_000_000;

impl World {
    /// Pending for `b` in both directions: one that it can claim, and one that will expire. Nobody hears of the claim.
    fn pending(&mut self, b: bool) {
        self.lock_in(b, SENT);
        let preimage = self.lock_in(!b, RECEIVED);
        self.claim_alone(b, preimage);
    }

    /// Nobody hears of the claim.
    pub(super) fn claim_alone(&mut self, b: bool, preimage: PaymentPreimage) {
        self.pair.disconnect();
        self.node(b).manager.claim_funds(preimage);
        self.node(b).persist();
        self.node(b).run();
    }

    /// Whether that side has paid what it had sent.
    pub(super) fn was_paid(&self, b: bool) -> bool {
        self.node(b).take_events().iter().any(|e| matches!(e, Event::PaymentSent { .. }))
    }

    pub(super) fn confirm_leaf(&mut self, state: usize) {
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

/// The cheater has brought its HTLC to a second transaction before anybody looks.
#[test]
fn a_revoked_htlc_transaction_is_punished() {
    for (cheater, state) in [(true, 1), (false, 2)] {
        let mut world = World::open(2);
        let preimage = world.lock_in(!cheater, RECEIVED);
        let real = world.leaves[state].1.clone();
        let old = world.on(cheater, &world.snapshot(cheater), &real);
        let success = htlc_success(&world, cheater, &real.outpoint, &old, preimage);
        world.node(cheater).manager.claim_funds(preimage);
        world.pair.settle();
        world.pair.pay(true, 1_000_000);
        world.confirm_leaf(state);
        world.block(&[old, success]);
        assert_eq!(world.resolve(!cheater, 30), CAPACITY_SAT, "cheater {cheater}, state {state}");
    }
}

/// The transaction that claims the only HTLC of a side's own commitment.
fn htlc_success(
    world: &World,
    b: bool,
    real: &OutPoint,
    commitment: &Transaction,
    preimage: PaymentPreimage,
) -> Transaction {
    let (node, secp) = (world.node(b), Secp256k1::new());
    let number = node.commitments.newest_on(&world.v, real).unwrap();
    let (_, htlcs) = node.commitments.companion_of(&world.v, number, real).unwrap();
    let derivation = world.snapshot(b).derivation;
    let signer = node.keys.derive_channel_signer(derivation.keys_id);
    let own = node.commitments.own_transaction(&world.v, number);
    let descriptor = HTLCDescriptor {
        channel_derivation_parameters: derivation,
        commitment_txid: commitment.compute_txid(),
        per_commitment_number: number,
        per_commitment_point: own.per_commitment_point(),
        feerate_per_kw: own.negotiated_feerate_per_kw(),
        htlc: own.nondust_htlcs()[0].clone(),
        preimage: Some(preimage),
        counterparty_sig: htlcs[0],
    };
    let mut tx = Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: vec![descriptor.unsigned_tx_input()],
        output: vec![descriptor.tx_output(&secp)],
    };
    let signature = signer.sign_holder_htlc_transaction(&tx, 0, &descriptor, &secp).unwrap();
    tx.input[0].witness = descriptor.tx_input_witness(&signature, &descriptor.witness_script(&secp));
    tx
}
