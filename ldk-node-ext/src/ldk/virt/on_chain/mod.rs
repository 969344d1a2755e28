//! A channel whose real outpoint changes, and everything that may happen to it on the chain: two LDK nodes in one
//! process, blocks by hand. Whatever leaves is checked as a node of the network would: its scripts run against the
//! outputs that it spends, and those have to be there.

mod claims;
mod retired;
mod signing;
mod window;

use std::collections::{HashMap, HashSet};

use bitcoin::consensus::serialize;
use bitcoin::secp256k1::Secp256k1;
use bitcoin::{Amount, OutPoint, Script, ScriptBuf, Transaction, TxOut, Txid, WitnessVersion};
use lightning::events::bump_transaction::BumpTransactionEvent;
use lightning::events::Event;
use lightning::sign::ecdsa::EcdsaChannelSigner;
use lightning::sign::{OutputSpender, SignerProvider, SpendableOutputDescriptor};
use lightning::types::payment::PaymentPreimage;

use self::signing::{Both, Snapshot};
use super::testing::{unbroadcast, Node, Pair};
use super::{Bump, Real};
use crate::util::lock;

/// A channel under V, its leaf states, and what is on the chain.
struct World {
    pair: Pair,
    /// What makes the commitments of each side on any outpoint.
    both: [Both; 2],
    /// The V that LDK believes in.
    v: OutPoint,
    /// The leaf states with a real outpoint of V, oldest first. The first one is what LDK takes for V's.
    leaves: Vec<(Transaction, Real)>,
    /// What can be spent.
    unspent: HashMap<OutPoint, TxOut>,
    /// What was ever on the chain.
    ever: HashSet<Txid>,
    tag: u8,
}

impl World {
    /// A channel with payments behind it, rotated so often.
    fn open(rotations: usize) -> Self {
        let pair = Pair::open();
        pair.pay(false, 20_000_000);
        pair.pay(true, 10_000_000);
        let v = pair.funding();
        let first = Real { outpoint: v, output: pair.leaf.output[0].clone() };
        for node in [&pair.a, &pair.b] {
            node.mapping.add_channel(pair.channel, v, first.clone()).unwrap();
            node.mapping.set_creation(&v, pair.leaf.clone()).unwrap();
        }
        let leaves = vec![(pair.leaf.clone(), first)];
        let both = [Both::new(false), Both::new(true)];
        let mut world =
            Self { pair, both, v, leaves, unspent: HashMap::new(), ever: HashSet::new(), tag: 100 };
        world.running(false, true);
        world.running(true, true);
        for _ in 0..rotations {
            world.rotate();
        }
        world.learn();
        world
    }

    /// Both sides learn what they would have exchanged.
    fn learn(&self) {
        self.both.iter().for_each(|both| both.learn(&self.pair));
    }

    fn running(&self, b: bool, runs: bool) {
        self.both.iter().for_each(|both| both.runs(b, runs.then(|| self.node(b))));
    }

    fn node(&self, b: bool) -> &Node {
        self.pair.sides(b)[0]
    }

    /// A process dies and starts again.
    fn restart(mut self, b: bool) -> Self {
        self.running(b, false);
        self.pair = self.pair.restart(b);
        self.running(b, true);
        self.node(b).persist();
        self.node(b).run();
        self
    }

    /// Another leaf state: the channel's output is somewhere else in it, beside some stock.
    fn rotate(&mut self) {
        self.tag += 1;
        let output = self.leaves.last().unwrap().1.output.clone();
        let stock = TxOut { value: Amount::from_sat(5_000), script_pubkey: ScriptBuf::from(vec![0x51]) };
        let tx = unbroadcast(self.tag, vec![stock, output.clone()]);
        let real = Real { outpoint: OutPoint { txid: tx.compute_txid(), vout: 1 }, output };
        self.announce(tx, real);
    }

    /// Both sides sign for another real outpoint of V; from then on its leaf state may confirm.
    fn announce(&mut self, leaf: Transaction, real: Real) {
        let channel = &self.pair.channel;
        for b in [false, true] {
            let [node, peer] = self.pair.sides(b);
            node.streams.announce(peer.id, channel, &self.v, real.clone()).unwrap();
        }
        self.pair.settle();
        for node in [&self.pair.a, &self.pair.b] {
            assert!(node.streams.covered(channel, &self.v, &real.outpoint), "{:?}", lock(&node.complaints));
        }
        self.leaves.push((leaf, real));
    }

    /// An HTLC from one side to the other that both have committed to; its preimage.
    fn lock_in(&self, from_b: bool, msat: u64) -> PaymentPreimage {
        let [from, to] = self.pair.sides(from_b);
        from.send(to, msat);
        self.pair.settle();
        to.claimable().pop().unwrap()
    }

    /// A side's commitment as it is now, in V-form.
    fn snapshot(&self, b: bool) -> Snapshot {
        Snapshot::of(self.node(b), &self.pair.channel)
    }

    /// The same on a real outpoint.
    fn on(&self, b: bool, snapshot: &Snapshot, real: &Real) -> Transaction {
        self.both[usize::from(b)].sign(&snapshot.tx, &real.outpoint)
    }

    /// Runs the scripts of what a transaction spends of the chain; each input has to be there.
    fn check(&self, tx: &Transaction) {
        for (at, input) in tx.input.iter().enumerate() {
            let spent = self.unspent.get(&input.previous_output);
            let spent =
                spent.unwrap_or_else(|| panic!("spends {}, which is not there", input.previous_output));
            if is_anchor(&spent.script_pubkey) {
                continue;
            }
            assert_eq!(spent.script_pubkey.witness_version(), Some(WitnessVersion::V0));
            let run = bitcoinconsensus::verify(
                spent.script_pubkey.as_bytes(),
                spent.value.to_sat(),
                &serialize(tx),
                None,
                at,
            );
            run.unwrap_or_else(|e| panic!("input {at} of {tx:?}: {e:?}"));
        }
    }

    /// A block for both; what is in it is checked, but for leaf states.
    fn block(&mut self, txs: &[Transaction]) {
        for tx in txs {
            let txid = tx.compute_txid();
            if !self.leaves.iter().any(|(leaf, _)| leaf.compute_txid() == txid) {
                self.check(tx);
            }
            self.ever.insert(txid);
            tx.input.iter().for_each(|i| drop(self.unspent.remove(&i.previous_output)));
            let outputs = (0..).zip(tx.output.iter().cloned());
            self.unspent.extend(outputs.map(|(vout, output)| (OutPoint { txid, vout }, output)));
        }
        self.pair.block(txs.to_vec());
        for node in [&self.pair.a, &self.pair.b] {
            if !txs.is_empty() {
                node.persist();
            }
            node.run();
        }
    }

    fn blocks(&mut self, count: u32) {
        (0..count).for_each(|_| self.block(&[]));
    }

    /// Takes blocks back, with what is in them.
    fn take_back(&mut self, count: usize) {
        self.pair.disconnect_blocks(count);
        self.unspent.clear();
        for tx in self.pair.blocks.iter().flat_map(|b| &b.txdata) {
            tx.input.iter().for_each(|i| drop(self.unspent.remove(&i.previous_output)));
            let txid = tx.compute_txid();
            let outputs = (0..).zip(tx.output.iter().cloned());
            self.unspent.extend(outputs.map(|(vout, output)| (OutPoint { txid, vout }, output)));
        }
    }

    /// Closes the channel without asking the peer.
    fn force_close(&self, b: bool) {
        let [node, peer] = self.pair.sides(b);
        let why = "test".to_owned();
        node.manager.force_close_broadcasting_latest_txn(&self.pair.channel, &peer.id, why).unwrap();
        node.persist();
        node.run();
    }

    /// What a side would hand to the network now: what LDK's broadcaster has let out, and what its bump events ask
    /// for, without the wallet's fee inputs. Spendable outputs are returned besides.
    fn due(&self, b: bool) -> (Vec<Transaction>, Vec<SpendableOutputDescriptor>) {
        let node = self.node(b);
        let mut txs = node.take_broadcast();
        let mut spendable = Vec::new();
        for event in node.take_events() {
            match event {
                Event::BumpTransaction(mut bump) => {
                    if node.outward.bump(&mut bump) != Bump::Held {
                        txs.extend(bumped(node, bump));
                    }
                }
                Event::SpendableOutputs { mut outputs, .. } => {
                    node.outward.spendable(&mut outputs);
                    spendable.extend(outputs);
                }
                other => lock(&node.events).push(other),
            }
        }
        (txs, spendable)
    }

    /// Lets a side do on the chain whatever it wants to, for so many blocks; what it has got in the end and what its
    /// claims have paid in fees, sat.
    fn resolve(&mut self, b: bool, blocks: u32) -> u64 {
        let mut got = 0;
        for _ in 0..blocks {
            let (txs, spendable) = self.due(b);
            let mut include: Vec<Transaction> = Vec::new();
            for tx in txs {
                let spent =
                    |o: &OutPoint| include.iter().any(|t| t.input.iter().any(|i| i.previous_output == *o));
                let fresh = tx
                    .input
                    .iter()
                    .all(|i| self.unspent.contains_key(&i.previous_output) && !spent(&i.previous_output));
                if fresh {
                    let put_in: u64 =
                        tx.input.iter().map(|i| self.unspent[&i.previous_output].value.to_sat()).sum();
                    // Only claims that spend nothing of the channel's pay nothing: those of a commitment.
                    let is_commitment =
                        self.leaves.iter().any(|(_, r)| r.outpoint == tx.input[0].previous_output);
                    if !is_commitment {
                        got += put_in - tx.output.iter().map(|o| o.value.to_sat()).sum::<u64>();
                    }
                    include.push(tx);
                } else {
                    // It may have been confirmed already, come twice, or its parent been taken back; it may not spend
                    // what never was.
                    let all = tx.input.iter().all(|i| self.ever.contains(&i.previous_output.txid));
                    assert!(all, "spends what is on no chain: {tx:?}");
                }
            }
            for output in spendable {
                let node = self.node(b);
                let to = ScriptBuf::from(vec![0x51]);
                if let SpendableOutputDescriptor::StaticOutput { outpoint, output, .. } = &output {
                    // The wallet's own: it is there, that is all.
                    let there = self.unspent.get(&outpoint.into_bitcoin_outpoint());
                    assert_eq!(there, Some(output), "a wallet's output that is not on the chain");
                    got += output.value.to_sat();
                    continue;
                }
                let secp = Secp256k1::new();
                let spend = node.keys.spend_spendable_outputs(&[&output], vec![], to, 253, None, &secp);
                let spend = spend.unwrap();
                self.check(&spend);
                let input = spend.input[0].previous_output;
                got += self.unspent[&input].value.to_sat();
                include.push(spend);
            }
            self.block(&include);
        }
        got
    }
}

/// Pay-to-anchor, which anybody spends without a witness.
fn is_anchor(script: &Script) -> bool {
    script.as_bytes() == [0x51, 2, 0x4e, 0x73]
}

/// The transactions that a bump event asks for, without fee inputs and the child on the anchor.
fn bumped(node: &Node, bump: BumpTransactionEvent) -> Vec<Transaction> {
    match bump {
        BumpTransactionEvent::ChannelClose { commitment_tx, anchor_descriptor, .. } => {
            assert_eq!(anchor_descriptor.outpoint.txid, commitment_tx.compute_txid());
            let anchor = usize::try_from(anchor_descriptor.outpoint.vout).unwrap();
            assert!(is_anchor(&commitment_tx.output[anchor].script_pubkey));
            vec![commitment_tx]
        }
        BumpTransactionEvent::HTLCResolution { htlc_descriptors, tx_lock_time, .. } => {
            let secp = Secp256k1::new();
            let sign = |d: &lightning::sign::HTLCDescriptor| {
                let mut tx = Transaction {
                    version: bitcoin::transaction::Version(3),
                    lock_time: tx_lock_time,
                    input: vec![d.unsigned_tx_input()],
                    output: vec![d.tx_output(&secp)],
                };
                let signer = node.keys.derive_channel_signer(d.channel_derivation_parameters.keys_id);
                let signature = signer.sign_holder_htlc_transaction(&tx, 0, d, &secp).unwrap();
                tx.input[0].witness = d.tx_input_witness(&signature, &d.witness_script(&secp));
                tx
            };
            htlc_descriptors.iter().map(sign).collect()
        }
    }
}
