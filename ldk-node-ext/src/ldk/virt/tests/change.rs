//! Changes of capacity: who adds what, with payments under way, given up at each step, and over lost connections and
//! restarts at each.

use bitcoin::OutPoint;
use lightning::ln::msgs::{ChannelMessageHandler, TxAbort};
use lightning::types::payment::PaymentPreimage;

use super::super::testing::{Move, Pair, CAPACITY_SAT};
use super::{assert_spends, rotatable};
use crate::error::Error;
use crate::util::lock;

/// What each side adds, sat.
const KINDS: [(i64, i64); 7] = [
    (100_000, 0),
    (-50_000, 0),
    (0, 30_000),
    (0, -20_000),
    (70_000, 20_000),
    (-50_000, 30_000),
    (-40_000, -10_000),
];

fn open() -> Pair {
    let pair = rotatable(Pair::open());
    pair.pay(false, 20_000_000);
    pair
}

/// An HTLC in each direction; their preimages.
fn pending(pair: &Pair) -> [PaymentPreimage; 2] {
    [false, true].map(|from_b| {
        let [from, to] = pair.sides(from_b);
        from.send(to, 7_000_000);
        pair.settle();
        to.claimable().pop().unwrap()
    })
}

fn claim(pair: &Pair, [by_b, by_a]: [PaymentPreimage; 2]) {
    pair.b.manager.claim_funds(by_b);
    pair.a.manager.claim_funds(by_a);
    pair.settle();
}

fn capacity(added: i64) -> u64 {
    CAPACITY_SAT.checked_add_signed(added).unwrap()
}

/// Both have a valid commitment on the outpoint for each commitment on that V.
fn assert_has(pair: &Pair, to: &Move) {
    for node in [&pair.a, &pair.b] {
        let own = node.commitments.own_commitments(&pair.channel);
        let on_v: Vec<u64> =
            own.into_iter().filter(|(v, ..)| *v == to.v).map(|(_, number, _)| number).collect();
        assert!(!on_v.is_empty(), "no commitment on V'");
        for number in on_v {
            let signer = |keys_id| node.keys.channel_signer(keys_id);
            let tx = node.commitments.own_on(&to.v, number, &to.real.outpoint, signer).unwrap();
            assert_spends(&tx, &to.real.output);
        }
    }
}

/// The channel is funded by this and works.
fn assert_at(pair: &Pair, v: OutPoint, sat: u64) {
    for node in [&pair.a, &pair.b] {
        let channels = node.manager.list_channels();
        let channel = channels.first().expect("the channel lives");
        assert_eq!(channel.funding_txo.unwrap().into_bitcoin_outpoint(), v);
        assert_eq!(channel.channel_value_satoshis, sat);
        assert!(channel.is_usable, "{:?}", lock(&node.complaints));
        assert_eq!(node.take_broadcast(), [], "nothing leaves");
    }
    pair.pay(false, 3_000_000);
    pair.pay(true, 3_000_000);
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.commitments.virtuals(&pair.channel), [v], "nothing of another V is left");
        assert_eq!(node.mapping.current(&pair.channel), Some(v));
        assert_eq!(node.mapping.pending(&pair.channel), []);
    }
}

#[test]
fn each_side_and_both_change_the_capacity_with_payments_under_way() {
    for (a_sat, b_sat) in KINDS {
        let pair = open();
        let preimages = pending(&pair);
        let to = pair.prepare(a_sat, b_sat, 150);
        assert_has(&pair, &to);
        assert_eq!(pair.funding(), pair.a.mapping.current(&pair.channel).unwrap(), "still on V");
        pair.bind(&to);
        pair.sign(&to);
        // Both V and V' are live: LDK signs for both.
        assert_ne!(pair.funding(), to.v, "locked before both have the new state");
        claim(&pair, preimages);
        assert_has(&pair, &to);
        let preimages = pending(&pair);
        pair.lock(&to);
        claim(&pair, preimages);
        assert_has(&pair, &to);
        assert_at(&pair, to.v, capacity(a_sat + b_sat));
        assert_eq!(*lock(&pair.a.complaints), Vec::<String>::new(), "{a_sat} {b_sat}");
        assert_eq!(*lock(&pair.b.complaints), Vec::<String>::new(), "{a_sat} {b_sat}");
    }
}

#[test]
fn a_change_can_be_given_up_by_each_side_until_it_is_bound() {
    for (a_sat, b_sat) in [(100_000, 0), (-40_000, -10_000)] {
        for by_b in [false, true] {
            for step in 0..3 {
                let pair = open();
                let (v, preimages) = (pair.funding(), pending(&pair));
                let [by, peer] = pair.sides(by_b);
                match step {
                    0 => drop(pair.negotiate(a_sat, b_sat)),
                    1 => {
                        let (v, output) = pair.negotiate(a_sat, b_sat);
                        pair.announce_by(by_b, &pair.leaf_for(v, output, 150)).unwrap();
                    }
                    _ => drop(pair.prepare(a_sat, b_sat, 150)),
                }
                by.changes.abort(peer.id, &pair.channel).unwrap();
                pair.settle();
                for node in [&pair.a, &pair.b] {
                    assert_eq!(
                        node.commitments.virtuals(&pair.channel),
                        [v],
                        "{a_sat} {b_sat} {by_b} {step}"
                    );
                    assert_eq!(node.mapping.pending(&pair.channel), []);
                    lock(&node.complaints).clear();
                }
                claim(&pair, preimages);
                assert_at(&pair, v, CAPACITY_SAT);
                // And it is tried again.
                let to = pair.prepare(a_sat, b_sat, 151);
                pair.bind(&to);
                pair.sign(&to);
                pair.lock(&to);
                assert_at(&pair, to.v, capacity(a_sat + b_sat));
            }
        }
    }
}

#[test]
fn what_is_bound_is_not_given_up() {
    for by_b in [false, true] {
        let pair = open();
        let to = pair.prepare(100_000, 0, 150);
        pair.bind(&to);
        let [by, peer] = pair.sides(by_b);
        assert!(matches!(by.changes.abort(peer.id, &pair.channel), Err(Error::Conflict(_))));
        // A peer that does it all the same.
        by.manager.handle_tx_abort(peer.id, &abort(&pair));
        pair.settle();
        assert_eq!(peer.mapping.pending(&pair.channel), [to.v]);
        assert_has_on(&pair, !by_b, &to);
        let said = std::mem::take(&mut *lock(&peer.complaints)).join("; ");
        assert!(said.contains("tx_abort after signatures"), "tx_abort was heard: {said:?}");
    }
}

fn abort(pair: &Pair) -> TxAbort {
    TxAbort { channel_id: pair.channel, data: vec![] }
}

fn assert_has_on(pair: &Pair, b: bool, to: &Move) {
    let [node, _] = pair.sides(b);
    assert!(node.commitments.newest_on(&to.v, &to.real.outpoint).is_some(), "nothing is left to leave by");
}

/// What happens between two steps.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Between {
    Reconnect,
    RestartA,
    RestartB,
}

fn interrupt(mut pair: Pair, how: Between) -> Pair {
    match how {
        Between::Reconnect => pair.disconnect(),
        Between::RestartA => pair = pair.restart(false),
        Between::RestartB => pair = pair.restart(true),
    }
    pair.connect();
    pair.settle();
    pair.look();
    pair
}

#[test]
fn a_change_goes_on_over_lost_connections_and_restarts() {
    let kinds = [(100_000, 0), (0, -20_000), (70_000, -20_000)].into_iter().cycle();
    for (how, later) in [(Between::Reconnect, 0), (Between::RestartA, 1), (Between::RestartB, 2)] {
        for (step, (a_sat, b_sat)) in (0..6).zip(kinds.clone().skip(later)) {
            // Before 2 what a process knows is lost with it.
            if how == Between::Reconnect || step >= 2 {
                let mut pair = open();
                let preimages = pending(&pair);
                let at = |pair: Pair, now: u32| if now == step { interrupt(pair, how) } else { pair };
                let (v, output) = pair.negotiate(a_sat, b_sat);
                let to = pair.leaf_for(v, output, 150);
                // 1 to 5 are one process's; between them there may be any number of connections.
                if how == Between::Reconnect {
                    pair = at(pair, 0);
                }
                pair.announce_by(true, &to).unwrap();
                if how == Between::Reconnect {
                    pair = at(pair, 1);
                }
                pair.announce_by(false, &to).unwrap();
                pair.settle();
                pair = at(pair, 2);
                pair.assert_move_covered(&to);
                pair.bind(&to);
                pair = at(pair, 3);
                assert_has(&pair, &to);
                pair.sign(&to);
                pair = at(pair, 4);
                assert_ne!(pair.funding(), to.v, "locked before both have the new state: {how:?} {step}");
                pair.a.changes.lock(&pair.channel, &to.v).unwrap();
                pair.settle();
                pair = at(pair, 5);
                assert_ne!(pair.funding(), to.v, "locked by one side");
                pair.lock(&to);
                claim(&pair, preimages);
                assert_has(&pair, &to);
                assert_at(&pair, to.v, capacity(a_sat + b_sat));
            }
        }
    }
}

#[test]
fn a_process_that_has_forgotten_a_change_gives_it_up() {
    for how in [Between::RestartA, Between::RestartB] {
        for announced in [false, true] {
            let pair = open();
            let (v, preimages) = (pair.funding(), pending(&pair));
            let (new, output) = pair.negotiate(100_000, 0);
            if announced {
                pair.announce_by(how == Between::RestartB, &pair.leaf_for(new, output, 150)).unwrap();
            }
            let pair = interrupt(pair, how);
            let [by, peer] = pair.sides(how == Between::RestartB);
            assert!(matches!(by.changes.negotiated(&pair.channel), Err(Error::Conflict(_))));
            by.changes.abort(peer.id, &pair.channel).unwrap();
            pair.settle();
            claim(&pair, preimages);
            assert_at(&pair, v, CAPACITY_SAT);
        }
    }
}

#[test]
fn a_splice_that_was_not_agreed_is_not_heard() {
    for (agreed, does) in [(None, 100_000), (Some(100_000), 99_999), (Some(-1), 1)] {
        let mut pair = open();
        let v = pair.funding();
        pair.a.changes.agree(&pair.channel, does, 0).unwrap();
        if let Some(agreed) = agreed {
            pair.b.changes.agree(&pair.channel, 0, agreed).unwrap();
        }
        pair.a.changes.contribute(&pair.b.id, &pair.channel).unwrap();
        pair.settle();
        let said = std::mem::take(&mut *lock(&pair.b.complaints)).join("; ");
        assert!(said.contains("agreed"), "the splice was accepted: {said:?}");
        pair.disconnect();
        pair.a.changes.abort(pair.b.id, &pair.channel).unwrap();
        pair.connect();
        pair.settle();
        lock(&pair.a.complaints).clear();
        assert_at(&pair, v, CAPACITY_SAT);
    }
}

#[test]
fn what_cannot_be_foretold_is_refused() {
    let pair = open();
    let id = pair.channel;
    assert!(matches!(pair.a.changes.agree(&id, 0, 0), Err(Error::InvalidArgument { .. })));
    assert!(matches!(pair.a.changes.contribute(&pair.b.id, &id), Err(Error::Conflict(_))));
    assert!(matches!(pair.a.changes.negotiated(&id), Err(Error::Conflict(_))));
    let (v, output) = pair.negotiate(100_000, 0);
    let mut wrong = pair.leaf_for(v, output.clone(), 150);
    wrong.real.output.value += bitcoin::Amount::ONE_SAT;
    let refused = pair.announce_by(false, &wrong);
    assert!(matches!(refused, Err(Error::InvalidArgument { field: "output", .. })));
    let to = pair.leaf_for(v, output, 150);
    assert!(matches!(pair.a.changes.bind(&id, &to.v), Err(Error::NotFound { .. })));
    pair.announce_by(true, &to).unwrap();
    pair.settle();
    assert!(
        matches!(pair.b.changes.bind(&id, &to.v), Err(Error::Conflict(_))),
        "nothing has come from the peer"
    );
    pair.announce_by(false, &to).unwrap();
    // It has all that it needs, and does not know yet that the peer has.
    let early = pair.a.changes.bind(&id, &to.v);
    assert!(matches!(early, Err(Error::Conflict(_))), "bound before the peer has its own");
    assert!(matches!(pair.a.changes.sign(&pair.b.id, &id, &to.v), Err(Error::Conflict(_))), "not bound");
    pair.settle();
    assert!(matches!(pair.a.changes.sign(&pair.b.id, &id, &to.v), Err(Error::Conflict(_))), "signed unbound");
    pair.bind(&to);
    pair.sign(&to);
    pair.lock(&to);
    assert_at(&pair, to.v, capacity(100_000));
}

/// One side foretells other commitments than LDK makes.
#[test]
fn what_was_foretold_wrongly_is_refused_and_the_channel_goes_on() {
    for (a_sat, b_sat) in [(100_000, 0), (0, 30_000), (70_000, 20_000)] {
        for wrong_b in [false, true] {
            let mut pair = open();
            let (v, preimages) = (pair.funding(), pending(&pair));
            let (new, output) = pair.negotiate(a_sat, b_sat);
            let to = pair.leaf_for(new, output, 150);
            let [wrong, right] = pair.sides(wrong_b);
            wrong.commitments.misjudge(&pair.channel, -1);
            let found = pair.announce_by(wrong_b, &to);
            let right_found = pair.announce_by(!wrong_b, &to);
            pair.settle();
            // Where one side adds nothing its LDK has signed already, and the other has heard it: both see at once.
            if a_sat == 0 || b_sat == 0 {
                assert!(
                    matches!(found, Err(Error::Conflict(_))),
                    "other commitments than LDK's were foretold"
                );
            }
            let covered = |node: &super::Node| node.streams.covered(&pair.channel, &to.v, &to.real.outpoint);
            assert!(!covered(wrong) || !covered(right), "covered, though it is not the same commitment");
            assert!(right_found.is_ok());
            assert!(wrong.changes.bind(&pair.channel, &to.v).is_err(), "bound on a wrong commitment");
            pair.disconnect();
            pair.connect();
            for b in [false, true] {
                let [node, peer] = pair.sides(b);
                node.changes.abort(peer.id, &pair.channel).unwrap();
            }
            pair.settle();
            pair.disconnect();
            pair.connect();
            pair.settle();
            claim(&pair, preimages);
            assert_at(&pair, v, CAPACITY_SAT);
        }
    }
}

/// One side's LDK is asked to rest before what it adds itself is there.
#[test]
fn what_both_add_is_in_one_splice() {
    for b_first in [false, true] {
        let pair = open();
        let (id, adds) = (pair.channel, [(70_000, 20_000), (20_000, 70_000)]);
        for (b, (ours, theirs)) in [(false, adds[0]), (true, adds[1])] {
            pair.sides(b)[0].changes.agree(&id, ours, theirs).unwrap();
        }
        let [first, second] = pair.sides(b_first);
        first.changes.contribute(&second.id, &id).unwrap();
        pair.settle();
        pair.look();
        second.changes.contribute(&first.id, &id).unwrap();
        pair.settle();
        pair.look();
        let found = [&pair.a, &pair.b].map(|node| node.changes.negotiated(&id).ok());
        assert!(found[0].is_some() && found[0] == found[1], "both add something, and it is not in there");
    }
}

/// A peer cannot have us remember outpoints without end.
#[test]
fn outpoints_of_a_v_that_there_is_not_are_forgotten() {
    let pair = open();
    let marker = |n: u32| bolt_tlv::payload::Marker {
        channel_id: pair.channel.0,
        funding: OutPoint { vout: n, ..OutPoint::null() },
        real: OutPoint { vout: n, ..OutPoint::null() },
    };
    for n in 1..50 {
        let payload = bolt_tlv::payload::Payload::from(marker(n));
        pair.b.receive(pair.a.id, super::Wire::Custom(super::FactoryWireMessage::of(&payload)));
    }
    assert_eq!(pair.b.commitments.announced(&pair.channel).len(), 1);
}
