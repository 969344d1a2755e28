//! Companions between two nodes in one process: that they are there when they have to be, and what becomes of wrong,
//! missing, late, repeated and too many ones.

mod change;
mod random;

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Message, PublicKey, Secp256k1};
use bitcoin::sighash::SighashCache;
use bitcoin::{ecdsa, EcdsaSighashType, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use bolt_tlv::payload::{Companions, Marker, Payload};
use lightning::util::persist::KVStoreSync;

use super::commitments::NAMESPACE;
use super::map::{Real, MAX_REALS};
use super::testing::{unbroadcast, Node, Pair, Wire};
use crate::ldk::FactoryWireMessage;
use crate::util::lock;

/// Checks that a transaction's first input spends that output by the 2-of-2 of BOLT 3, as a node that validates would.
pub(super) fn assert_spends(tx: &Transaction, output: &TxOut) {
    let witness: Vec<&[u8]> = tx.input[0].witness.iter().collect();
    let [[], first, second, script] = witness[..] else { panic!("not a 2-of-2: {witness:?}") };
    let script = ScriptBuf::from_bytes(script.to_vec());
    assert_eq!(script.to_p2wsh(), output.script_pubkey, "another script than the output's");
    let bytes = script.as_bytes();
    let keys = [&bytes[2..35], &bytes[36..69]].map(|key| PublicKey::from_slice(key).unwrap());
    let whole = [&[0x52, 33][..], &keys[0].serialize(), &[33], &keys[1].serialize(), &[0x52, 0xae]].concat();
    assert_eq!(bytes, whole, "not OP_2 key key OP_2 OP_CHECKMULTISIG");
    let hash = SighashCache::new(tx).p2wsh_signature_hash(0, &script, output.value, EcdsaSighashType::All);
    let hash = Message::from_digest(hash.unwrap().to_byte_array());
    for (key, signature) in keys.iter().zip([first, second]) {
        let signature = ecdsa::Signature::from_slice(signature).unwrap();
        assert_eq!(signature.sighash_type, EcdsaSighashType::All);
        Secp256k1::new().verify_ecdsa(&hash, &signature.signature, key).expect("a signature of that key");
    }
}

/// The table knows the channel: it can rotate.
pub(super) fn rotatable(pair: Pair) -> Pair {
    let (v, output) = (pair.funding(), pair.leaf.output[0].clone());
    for node in [&pair.a, &pair.b] {
        let real = Real { outpoint: v, output: output.clone() };
        node.mapping.add_channel(pair.channel, v, real).unwrap();
        node.mapping.set_creation(&v, pair.leaf.clone()).unwrap();
    }
    pair
}

/// The nth real outpoint after the first.
pub(super) fn next_real(pair: &Pair, nth: u8) -> Real {
    let output = pair.leaf.output[0].clone();
    let outpoint = OutPoint { txid: unbroadcast(100 + nth, vec![output.clone()]).compute_txid(), vout: 0 };
    Real { outpoint, output }
}

/// A pair with further outpoints that both sides rely on.
fn rotated(count: u8) -> Pair {
    let pair = rotatable(Pair::open());
    for nth in 0..count {
        announce(&pair, false, nth);
        announce(&pair, true, nth);
    }
    pair.settle();
    assert_covered(&pair, count);
    pair
}

fn announce(pair: &Pair, b: bool, nth: u8) {
    let [node, peer] = pair.sides(b);
    node.streams.announce(peer.id, &pair.channel, &pair.funding(), next_real(pair, nth)).unwrap();
}

fn covered(pair: &Pair, b: bool, nth: u8) -> bool {
    let real = next_real(pair, nth).outpoint;
    pair.sides(b)[0].streams.covered(&pair.channel, &pair.funding(), &real)
}

/// Both sides rely on these outpoints, and have a valid commitment on each.
fn assert_covered(pair: &Pair, count: u8) {
    for b in [false, true] {
        let [node, _] = pair.sides(b);
        assert_eq!(*lock(&node.complaints), Vec::<String>::new());
        for nth in 0..count {
            assert!(covered(pair, b, nth), "outpoint {nth} is not covered");
            for (v, number, _) in node.commitments.own_commitments(&pair.channel) {
                let (real, signer) = (next_real(pair, nth), |keys_id| node.keys.channel_signer(keys_id));
                let tx = node.commitments.own_on(&v, number, &real.outpoint, signer).unwrap();
                assert_spends(&tx, &real.output);
            }
        }
    }
}

/// Delivers what a node has sent, changed by `change`: none of it is lost where that gives back what it got.
fn deliver_changed(pair: &Pair, from_b: bool, mut change: impl FnMut(Payload) -> Vec<Payload>) {
    let [from, to] = pair.sides(from_b);
    from.persist();
    from.run();
    loop {
        let next = lock(&from.out).pop_front();
        match next {
            None => return,
            Some(Wire::Custom(message)) => match message.payload() {
                Some(payload) => {
                    for payload in change(payload) {
                        to.receive(from.id, Wire::Custom(FactoryWireMessage::of(&payload)));
                    }
                }
                None => to.receive(from.id, Wire::Custom(message)),
            },
            Some(channel) => to.receive(from.id, channel),
        }
    }
}

/// The names of the messages that have left a node and not arrived.
fn names(node: &Node) -> Vec<&'static str> {
    lock(&node.out).iter().map(Wire::what).collect()
}

/// What a node complains about, after it has had its say.
fn complaint(node: &Node) -> String {
    node.persist();
    node.run();
    std::mem::take(&mut *lock(&node.complaints)).join("; ")
}

/// The connection is lost and comes back; then everything works.
fn assert_goes_on(mut pair: Pair, count: u8) {
    pair.disconnect();
    pair.connect();
    pair.settle();
    for node in [&pair.a, &pair.b] {
        node.claimable().into_iter().for_each(|preimage| node.manager.claim_funds(preimage));
    }
    pair.settle();
    pair.pay(false, 3_000_000);
    pair.pay(true, 3_000_000);
    assert_covered(&pair, count);
}

#[test]
fn outpoints_are_covered_and_stay_so_through_payments_and_restarts() {
    let mut pair = rotated(2);
    for b in [false, true] {
        pair.pay(false, 20_000_000);
        pair.pay(true, 10_000_000);
        pair.a.send(&pair.b, 5_000_000);
        pair.settle();
        assert_covered(&pair, 2);
        let before = pair.sides(b)[0].commitments.own_commitments(&pair.channel);
        pair = pair.restart(b);
        let (node, real) = (pair.sides(b)[0], next_real(&pair, 1).outpoint);
        // One that was revoked just now may be there still.
        let newest = before.iter().min_by_key(|(_, number, _)| *number).unwrap();
        let after = node.commitments.own_commitments(&pair.channel);
        assert!(after.contains(newest), "our newest commitment is on disk");
        assert!(node.commitments.covers(&pair.channel, &pair.funding(), &real), "companions on disk");
        pair.connect();
        pair.settle();
        assert_covered(&pair, 2);
    }
}

#[test]
fn a_channel_that_never_rotated_says_nothing_more() {
    let pair = rotatable(Pair::open());
    let before = [&pair.a, &pair.b].map(|node| node.factory_messages.traffic().sent.messages);
    pair.pay(false, 20_000_000);
    pair.pay(true, 10_000_000);
    let after = [&pair.a, &pair.b].map(|node| node.factory_messages.traffic().sent.messages);
    assert_eq!((before, after), ([1, 1], [1, 1]), "the list of protocols alone");
}

#[test]
fn a_record_does_not_grow_with_payments() {
    let pair = rotated(3);
    let size = |node: &Node| {
        let keys = node.store.list(NAMESPACE, "").unwrap();
        let sizes = keys.iter().map(|key| node.store.read(NAMESPACE, "", key).unwrap().len());
        (keys.len(), sizes.sum::<usize>())
    };
    let pay = || {
        pair.pay(false, 20_000_000);
        pair.pay(true, 20_000_000);
        [size(&pair.a), size(&pair.b)]
    };
    let first = pay();
    for _ in 0..10 {
        let now = pay();
        for ((keys, bytes), (keys_before, bytes_before)) in now.into_iter().zip(first) {
            assert_eq!(keys, keys_before);
            // Amounts are of one length or another.
            assert!(bytes.abs_diff(bytes_before) < 64, "{bytes} bytes after {bytes_before}");
        }
    }
    println!("a record at rest with 3 further outpoints: {} bytes", first[0].1);
}

#[test]
fn a_marker_comes_with_every_commitment_that_is_not_revoked() {
    let pair = rotatable(Pair::open());
    pair.a.send(&pair.b, 5_000_000);
    pair.a.persist();
    pair.a.run();
    pair.a.persist();
    pair.a.run();
    while pair.deliver(false) {}
    assert_eq!(
        pair.b.commitments.own_commitments(&pair.channel).len(),
        2,
        "none is revoked before it is stored"
    );
    announce(&pair, false, 0);
    deliver_changed(&pair, false, |payload| vec![payload]);
    let real = next_real(&pair, 0).outpoint;
    assert!(pair.b.commitments.covers(&pair.channel, &pair.funding(), &real), "both commitments");
    announce(&pair, true, 0);
    pair.settle();
    assert_covered(&pair, 1);
}

#[test]
fn nothing_is_revoked_before_its_companions_are_on_disk() {
    let pair = rotated(1);
    pair.a.send(&pair.b, 5_000_000);
    pair.a.persist();
    pair.a.run();
    deliver_changed(&pair, false, |payload| vec![payload]);
    pair.b.run();
    assert_eq!(names(&pair.b), Vec::<&str>::new(), "not before it is written");
    pair.b.persist();
    pair.b.run();
    assert!(names(&pair.b).contains(&"handle_revoke_and_ack"), "{:?}", names(&pair.b));
}

#[test]
fn a_record_that_is_newer_than_ldks_state_keeps_nothing_waiting() {
    let mut pair = rotated(1);
    pair.a.send(&pair.b, 5_000_000);
    pair.a.persist();
    pair.a.run();
    deliver_changed(&pair, false, |payload| vec![payload]);
    // What the marker brings is written at once, and with it the commitment that LDK has not written yet.
    announce(&pair, false, 1);
    deliver_changed(&pair, false, |payload| vec![payload]);
    pair = pair.restart(true);
    assert_eq!(pair.b.commitments.own_commitments(&pair.channel).len(), 2, "LDK knows of one");
    pair.connect();
    pair.settle();
    let preimages = pair.b.claimable();
    assert_eq!(preimages.len(), 1, "the payment waits for companions that were used up");
    preimages.into_iter().for_each(|preimage| pair.b.manager.claim_funds(preimage));
    pair.settle();
    announce(&pair, true, 1);
    pair.settle();
    assert_covered(&pair, 2);
    assert_goes_on(pair, 2);
}

#[test]
fn a_wrong_companion_is_refused_and_nothing_is_revoked() {
    for htlc in [false, true] {
        let pair = rotated(1);
        pair.a.send(&pair.b, 5_000_000);
        pair.a.persist();
        pair.a.run();
        deliver_changed(&pair, false, |payload| match payload {
            Payload::Companions(mut m) => {
                let other = m.commitment;
                let of = m.companions.first_mut().unwrap();
                if htlc {
                    of.htlc_signatures[0] = other
                } else {
                    of.signature = other
                }
                vec![m.into()]
            }
            other => vec![other],
        });
        let said = complaint(&pair.b);
        assert!(said.contains("a wrong signature on"), "a wrong companion was taken: {said:?}");
        assert!(!names(&pair.b).contains(&"handle_revoke_and_ack"), "revoked on a wrong companion");
        assert_eq!(pair.b.manager.list_channels().len(), 1, "the channel lives");
        assert_goes_on(pair, 1);
    }
}

#[test]
fn a_missing_companion_is_waited_for_and_comes_after_a_reconnect() {
    let pair = rotated(2);
    pair.a.send(&pair.b, 5_000_000);
    pair.a.persist();
    pair.a.run();
    deliver_changed(&pair, false, |payload| match payload {
        Payload::Companions(mut m) => {
            m.companions.truncate(1);
            vec![m.into()]
        }
        other => vec![other],
    });
    assert_eq!(complaint(&pair.b), "");
    assert_eq!(names(&pair.b), Vec::<&str>::new(), "nothing has reached LDK");
    assert_eq!(pair.b.commitments.own_commitments(&pair.channel).len(), 1);
    assert_goes_on(pair, 2);
}

#[test]
fn late_and_repeated_companions_do_no_harm() {
    let pair = rotated(1);
    let mut old = Vec::new();
    for _ in 0..2 {
        pair.a.send(&pair.b, 5_000_000);
        pair.a.persist();
        pair.a.run();
        deliver_changed(&pair, false, |payload| {
            old.push(payload.clone());
            let mut all = vec![payload.clone(), payload];
            all.extend(old.iter().cloned());
            all
        });
        assert_eq!(complaint(&pair.b), "");
        pair.settle();
        for preimage in pair.b.claimable() {
            pair.b.manager.claim_funds(preimage);
        }
        pair.settle();
    }
    for payload in &old {
        pair.b.receive(pair.a.id, Wire::Custom(FactoryWireMessage::of(payload)));
    }
    assert_covered(&pair, 1);
    assert_goes_on(pair, 1);
}

#[test]
fn companions_for_another_number_of_htlcs_are_refused_before_ldk_sees_anything() {
    let pair = rotated(1);
    pair.a.send(&pair.b, 5_000_000);
    pair.a.persist();
    pair.a.run();
    deliver_changed(&pair, false, |payload| match payload {
        Payload::Companions(mut m) => {
            m.companions[0].htlc_signatures.clear();
            vec![m.into()]
        }
        other => vec![other],
    });
    let said = complaint(&pair.b);
    assert!(said.contains("0 HTLC signatures on") && said.contains("not 1"), "{said:?}");
    assert_eq!(pair.b.commitments.own_commitments(&pair.channel).len(), 1);
    assert_goes_on(pair, 1);
}

#[test]
fn a_splice_that_is_given_up_leaves_nothing_behind() {
    let pair = rotated(1);
    let (a, b) = (&pair.a, &pair.b);
    let id = pair.channel;
    pair.negotiate(-50_000, 0);
    assert_eq!(b.commitments.virtuals(&id).len(), 2, "the client has signed for V'");
    a.changes.abort(b.id, &id).unwrap();
    pair.settle();
    for node in [a, b] {
        assert_eq!(node.commitments.virtuals(&id), [pair.funding()], "nothing of V' is left");
        lock(&node.complaints).clear();
    }
    assert_goes_on(pair, 1);
}

#[test]
fn what_a_peer_may_say_has_limits() {
    let pair = rotatable(Pair::open());
    let (channel_id, funding) = (pair.channel.0, pair.funding());
    let say = |payload: Payload| {
        pair.b.receive(pair.a.id, Wire::Custom(FactoryWireMessage::of(&payload)));
        std::mem::take(&mut *lock(&pair.b.complaints)).join("; ")
    };
    let marker = |nth: u32| Marker {
        channel_id,
        funding,
        real: OutPoint { txid: Txid::from_byte_array([9; 32]), vout: nth },
    };
    let foreign = Marker { channel_id: [8; 32], ..marker(0) };
    assert!(say(foreign.into()).contains("no factory channel of this peer"));
    for nth in 0..u32::try_from(MAX_REALS).unwrap() {
        assert_eq!(say(marker(nth).into()), "");
    }
    let said = say(marker(99_999).into());
    assert!(said.contains("more than 256 outpoints announced"), "{said:?}");
    let announced = || pair.b.commitments.announced(&pair.channel);
    // Of Vs that are not there, only the newest is remembered.
    for nth in 0..300 {
        let other = OutPoint { txid: Txid::from_byte_array([7; 32]), vout: nth };
        assert_eq!(say(Marker { funding: other, ..marker(nth) }.into()), "");
        assert_eq!(announced().len(), MAX_REALS + 1);
    }
    let companions = |number: u64, real| Companions {
        channel_id,
        funding,
        number,
        commitment: [1; 64],
        companions: vec![bolt_tlv::payload::Companion {
            real,
            signature: [1; 64],
            htlc_signatures: vec![[1; 64]; 483],
        }],
    };
    assert_eq!(say(companions(5, OutPoint::null()).into()), "", "of no outpoint that was announced");
    assert!(say(companions(1 << 48, OutPoint::null()).into()).contains("above 2^48 - 1"));
    let fill = |number: u64| {
        let all = (0..u32::try_from(MAX_REALS).unwrap()).map(|nth| marker(nth).real);
        all.map(|real| say(companions(number, real).into())).collect::<String>()
    };
    // LDK counts down.
    let [(_, newest, _)] = pair.b.commitments.own_commitments(&pair.channel)[..] else {
        panic!("one commitment")
    };
    let newest = (1 << 48) - 1 - newest;
    for useless in [newest + 2, newest + 1_000] {
        assert_eq!(fill(useless), "", "of no commitment that can come");
    }
    let refused = fill(newest + 1);
    assert!(refused.contains("bytes without their commitment"), "{refused:?}");
    // With the connection all of it goes.
    pair.b.streams.disconnected(&pair.a.id);
    assert_eq!(announced(), []);
}

#[test]
fn an_outpoint_that_was_given_up_is_not_waited_for() {
    let pair = rotated(2);
    let (v, real) = (pair.funding(), next_real(&pair, 1).outpoint);
    pair.a.streams.withdraw(&pair.channel, &v, &real).unwrap();
    pair.a.send(&pair.b, 5_000_000);
    pair.settle();
    assert_eq!(pair.b.claimable(), vec![], "its other side still waits");
    pair.b.streams.withdraw(&pair.channel, &v, &real).unwrap();
    pair.b.channel_messages.withdrawn(pair.a.id, pair.channel);
    pair.settle();
    assert!(!covered(&pair, false, 1) && !covered(&pair, true, 1));
    assert_goes_on(pair, 1);
}
