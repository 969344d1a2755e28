//! What happens on the chain to a V that LDK has moved on from by a splice.

use bitcoin::key::{Keypair, TweakedPublicKey};
use bitcoin::secp256k1::{Message, Secp256k1, SecretKey};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, TxOut, Witness};
use lightning::events::Event;
use lightning::util::wallet_utils::ConfirmedUtxo;

use super::super::testing::{unbroadcast, CAPACITY_SAT};
use super::super::{Real, Way};
use super::World;

const ADDED: u64 = 100_000;
const HTLC: u64 = 40_000_000;

impl World {
    /// The provider adds capacity out of an input that is on no chain: V -> V', with a real outpoint for V'.
    fn splice(&mut self) {
        let secp = Secp256k1::new();
        let key = Keypair::from_secret_key(&secp, &SecretKey::from_slice(&[77; 32]).unwrap());
        let output_key = TweakedPublicKey::dangerous_assume_tweaked(key.x_only_public_key().0);
        let script_pubkey = ScriptBuf::new_p2tr_tweaked(output_key);
        self.tag += 1;
        let stock = TxOut { value: Amount::from_sat(ADDED), script_pubkey };
        let stock_tx = unbroadcast(self.tag, vec![stock.clone()]);
        let (a, b) = (&self.pair.a, &self.pair.b);
        let (id, peer) = (self.pair.channel, b.id);
        let template = a.manager.splice_channel(&id, &peer).unwrap();
        let input = ConfirmedUtxo::new_p2tr_key_spend(stock_tx.clone(), 0).unwrap();
        let contribution = template
            .without_prior_contribution(FeeRate::ZERO, FeeRate::from_sat_per_kwu(5_000))
            .add_input(input)
            .unwrap()
            .build()
            .unwrap();
        a.manager.funding_contributed(&id, &peer, contribution, Some(0)).unwrap();
        self.pair.settle();
        let old = self.leaves.last().unwrap().1.output.clone();
        let ready = a.take_events().into_iter().find_map(|event| match event {
            Event::FundingTransactionReadyForSigning { unsigned_transaction, .. } => {
                Some(unsigned_transaction)
            }
            _ => None,
        });
        let mut tx = ready.unwrap();
        let vout = tx.output.iter().position(|o| o.script_pubkey.is_p2wsh()).unwrap();
        let from_stock = |o: &OutPoint| o.txid == stock_tx.compute_txid();
        let spent: Vec<TxOut> = tx
            .input
            .iter()
            .map(|i| if from_stock(&i.previous_output) { stock.clone() } else { old.clone() })
            .collect();
        let at = tx.input.iter().position(|i| from_stock(&i.previous_output)).unwrap();
        let hash = SighashCache::new(&tx)
            .taproot_key_spend_signature_hash(at, &Prevouts::All(&spent), TapSighashType::Default)
            .unwrap();
        let signature = secp.sign_schnorr_no_aux_rand(&Message::from(hash), &key);
        tx.input[at].witness = Witness::from_slice(&[signature.serialize()]);
        self.v = OutPoint { txid: tx.compute_txid(), vout: u32::try_from(vout).unwrap() };
        let output = tx.output[vout].clone();
        let leaf = unbroadcast(self.tag + 100, vec![output.clone()]);
        let real = Real { outpoint: OutPoint { txid: leaf.compute_txid(), vout: 0 }, output };
        for node in [a, b] {
            node.mapping.expect_virtual(id, self.v).unwrap();
        }
        a.manager.funding_transaction_signed(&id, &peer, tx).unwrap();
        self.pair.settle();
        for node in [a, b] {
            node.take_events();
            assert_eq!(node.manager.list_channels()[0].funding_txo.unwrap().into_bitcoin_outpoint(), self.v);
            assert_eq!(node.mapping.current(&id), Some(self.v), "no monitor was kept for the V before");
            assert_eq!(node.take_broadcast(), [], "only LDK believes in it");
        }
        self.announce(leaf, real);
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

#[test]
fn every_generation_has_its_own_monitor() {
    let (cheater, generations) = (true, 3);
    for punished in 0..generations {
        let mut world = World::open(0);
        let mut old = Vec::new();
        for generation in 0..generations {
            let preimage = world.lock_in(cheater, HTLC);
            let snapshot = world.snapshot(cheater);
            let real = world.leaves[generation].1.clone();
            old.push(world.on(cheater, &snapshot, &real));
            world.node(!cheater).manager.claim_funds(preimage);
            world.pair.settle();
            world.splice();
        }
        world = world.restart(!cheater);
        world.confirm(punished, old[punished].clone());
        let capacity = CAPACITY_SAT + ADDED * u64::try_from(punished).unwrap();
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
