//! Random interleavings of everything that moves commitments: payments offered, claimed and failed, messages
//! delivered one by one, slow writes, new real outpoints, lost connections, and processes that die and start again
//! with what was on disk. After each step both sides hold what lets them leave by every outpoint that counts.

use std::collections::HashSet;

use bitcoin::OutPoint;
use lightning::events::bump_transaction::BumpTransactionEvent;
use lightning::events::Event;
use lightning::types::payment::{PaymentHash, PaymentPreimage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::testing::{Node, Pair};
use super::{assert_spends, next_real, rotatable};
use crate::util::lock;

/// Steps of one case, and how many outpoints it adds at most.
const STEPS: u32 = 160;
const ROTATIONS: u8 = 2;
/// Cases of the short run.
const CASES: u64 = 50;

struct Case {
    pair: Pair,
    rng: StdRng,
    v: OutPoint,
    connected: bool,
    /// How many outpoints each side has announced.
    announced: [u8; 2],
    /// Commitments on real outpoints that have been verified since the side's process began.
    verified: HashSet<(bool, u64, OutPoint)>,
    /// What each side has decided about payments: claimed with this preimage, or failed.
    decided: Vec<(bool, PaymentHash, Option<PaymentPreimage>)>,
}

impl Case {
    fn new(seed: u64) -> Self {
        let pair = rotatable(Pair::open());
        let (v, verified) = (pair.funding(), HashSet::new());
        Self {
            pair,
            rng: StdRng::seed_from_u64(seed),
            v,
            connected: true,
            announced: [0, 0],
            verified,
            decided: Vec::new(),
        }
    }

    fn announce(&mut self, b: bool) {
        let nth = self.announced[usize::from(b)];
        if nth < ROTATIONS {
            let real = next_real(&self.pair, nth);
            let [node, peer] = self.pair.sides(b);
            node.streams.announce(peer.id, &self.pair.channel, &self.v, real).unwrap();
            self.announced[usize::from(b)] += 1;
        }
    }

    fn answer(&mut self, b: bool) {
        let [node, _] = self.pair.sides(b);
        for event in node.take_events() {
            match event {
                Event::PaymentClaimable { payment_hash, purpose, .. } => {
                    let claims = self.rng.random_bool(0.75);
                    let decision = (b, payment_hash, purpose.preimage().filter(|_| claims));
                    carry_out(node, &decision);
                    self.decided.push(decision);
                }
                Event::ChannelClosed { reason, .. } => panic!("the channel was closed: {reason}"),
                _ => {}
            }
        }
    }

    fn step(mut self) -> Self {
        let b = self.rng.random_bool(0.5);
        match self.rng.random_range(0..100) {
            0..8 => {
                let [node, peer] = self.pair.sides(b);
                let channel = &node.manager.list_channels()[0];
                if channel.is_usable && channel.pending_outbound_htlcs.len() < 4 {
                    node.send(peer, self.rng.random_range(2_000_000..9_000_000));
                }
            }
            8..20 => self.pair.sides(b)[0].persist(),
            20..26 => self.answer(b),
            26..31 => self.announce(b),
            31..50 => self.pair.sides(b)[0].run(),
            50..97 if self.connected => {
                self.pair.deliver(b);
            }
            97 if self.connected => {
                self.pair.disconnect();
                self.connected = false;
            }
            98 => {
                // LDK tells of a payment once; a program notes what it is told before LDK goes on.
                let told = self.pair.sides(b)[0].take_events();
                self.pair = self.pair.restart(b);
                lock(&self.pair.sides(b)[0].events).extend(told);
                self.verified.retain(|(side, ..)| *side != b);
                self.connected = false;
            }
            _ if !self.connected => {
                self.pair.connect();
                self.connected = true;
            }
            _ => {}
        }
        self.check();
        self
    }

    /// Whoever is bound to an outpoint, and whoever relies on that, is right to.
    fn check(&mut self) {
        for b in [false, true] {
            let [node, peer] = self.pair.sides(b);
            assert!(lock(&node.complaints).is_empty(), "{:?}", lock(&node.complaints));
            let id = &self.pair.channel;
            let own = node.commitments.own_commitments(id);
            assert!((1..=2).contains(&own.len()), "{own:?}");
            let announced = node.commitments.announced(id);
            for (v, real, _) in announced.iter().filter(|(.., bound)| *bound) {
                for (_, number, _) in &own {
                    assert!(
                        node.commitments.companion_of(v, *number, real).is_some(),
                        "an own commitment without a companion"
                    );
                    if self.verified.insert((b, *number, *real)) {
                        let signer = |keys_id| node.keys.channel_signer(keys_id);
                        let tx = node.commitments.own_on(v, *number, real, signer).unwrap();
                        assert_eq!(tx.input[0].previous_output, *real);
                        assert_spends(&tx, &self.pair.leaf.output[0]);
                    }
                }
            }
            for nth in 0..self.announced[usize::from(!b)] {
                let real = next_real(&self.pair, nth).outpoint;
                if peer.streams.covered(id, &self.v, &real) {
                    let bound = announced.iter().any(|(_, r, bound)| *r == real && *bound);
                    assert!(bound, "the other side relies on an outpoint that is not covered");
                }
            }
        }
    }

    /// Everything comes to rest: all is paid, and every outpoint counts on both sides.
    fn end(mut self) -> Self {
        if !self.connected {
            self.pair.connect();
            self.connected = true;
        }
        for _ in 0..ROTATIONS {
            self.announce(false);
            self.announce(true);
        }
        for _ in 0..8 {
            self.pair.settle();
            self.answer(false);
            self.answer(true);
            // LDK forgets a decision that it could not write before the process died.
            for decision in &self.decided {
                carry_out(self.pair.sides(decision.0)[0], decision);
            }
            self.check();
        }
        for b in [false, true] {
            let [node, _] = self.pair.sides(b);
            let channel = &node.manager.list_channels()[0];
            assert!(
                channel.is_usable && channel.pending_outbound_htlcs.is_empty(),
                "not at rest: {channel:?}"
            );
            assert_eq!(node.commitments.own_commitments(&self.pair.channel).len(), 1);
            for nth in 0..ROTATIONS {
                let real = next_real(&self.pair, nth).outpoint;
                assert!(node.streams.covered(&self.pair.channel, &self.v, &real), "not covered at rest");
            }
        }
        self
    }

    /// The client leaves. What LDK publishes is on V; the same commitment is there for every outpoint that counts.
    fn leave(self) {
        let (node, id) = (&self.pair.b, &self.pair.channel);
        node.manager.force_close_broadcasting_latest_txn(id, &self.pair.a.id, "leaving".into()).unwrap();
        node.persist();
        node.run();
        let published = |event| match event {
            Event::BumpTransaction(BumpTransactionEvent::ChannelClose { commitment_tx, .. }) => {
                Some(commitment_tx.compute_txid())
            }
            _ => None,
        };
        let published = node.take_events().into_iter().find_map(published).expect("a commitment to publish");
        let own = node.commitments.own_commitments(id);
        let (v, number, _) = own.iter().find(|(.., txid)| *txid == published).expect("one that is known");
        for (_, real, _) in node.commitments.announced(id).iter().filter(|(.., bound)| *bound) {
            assert_eq!(node.commitments.newest_on(v, real), Some(*number), "the newest is on every outpoint");
        }
    }
}

fn carry_out(node: &Node, (_, hash, preimage): &(bool, PaymentHash, Option<PaymentPreimage>)) {
    match preimage {
        Some(preimage) => node.manager.claim_funds(*preimage),
        None => node.manager.fail_htlc_backwards(hash),
    }
}

fn run(seed: u64) {
    let mut case = Case::new(seed);
    for _ in 0..STEPS {
        case = case.step();
    }
    if seed % 3 > 0 {
        case = case.end();
    }
    case.leave();
}

fn run_all(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        // A failure tells which case it was.
        struct Say(u64);
        impl Drop for Say {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    eprintln!("seed {}", self.0);
                }
            }
        }
        let _say = Say(seed);
        run(seed);
    }
}

#[test]
fn every_own_commitment_is_valid_on_every_outpoint_that_counts() {
    run_all(0..CASES);
}

#[test]
#[ignore = "long: make random"]
fn every_own_commitment_is_valid_on_every_outpoint_that_counts_long() {
    let number = |name, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let first = number("SEED", 1_000);
    run_all(first..first + number("CASES", 3_000));
}
