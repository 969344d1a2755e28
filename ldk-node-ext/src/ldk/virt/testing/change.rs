//! Changes of the capacity of a test's channel, step by step.

use bitcoin::{OutPoint, Transaction, TxOut};
use lightning::events::Event;

use super::super::Real;
use super::{unbroadcast, Node, Pair};
use crate::error::Error;
use crate::util::lock;

/// A change that both sides are going through.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    /// V'.
    pub(crate) v: OutPoint,
    /// The leaf state with R'.
    pub(crate) leaf: Transaction,
    /// R'.
    pub(crate) real: Real,
}

impl Node {
    /// Tells of LDK's events about the change, and keeps the others.
    pub(crate) fn look(&self) {
        for event in self.take_events() {
            match event {
                Event::FundingTransactionReadyForSigning { channel_id, unsigned_transaction, .. } => {
                    self.changes.ready(&channel_id, &unsigned_transaction);
                }
                other => lock(&self.events).push(other),
            }
        }
    }
}

impl Pair {
    /// Each side adds this, sat: both ready to sign.
    pub(crate) fn negotiate(&self, a_sat: i64, b_sat: i64) -> (OutPoint, TxOut) {
        let id = &self.channel;
        self.a.changes.agree(id, a_sat, b_sat).unwrap();
        self.b.changes.agree(id, b_sat, a_sat).unwrap();
        for b in [false, true] {
            let [node, peer] = self.sides(b);
            node.changes.contribute(&peer.id, id).unwrap();
        }
        self.settle();
        self.look();
        let [a, b] = [&self.a, &self.b].map(|node| node.changes.negotiated(id).unwrap());
        assert_eq!(a, b, "both expect the same");
        a
    }

    /// See [`Node::look`].
    pub(crate) fn look(&self) {
        self.a.look();
        self.b.look();
    }

    /// A leaf state with that output.
    pub(crate) fn leaf_for(&self, v: OutPoint, output: TxOut, tag: u8) -> Move {
        let leaf = unbroadcast(tag, vec![output.clone()]);
        let real = Real { outpoint: OutPoint { txid: leaf.compute_txid(), vout: 0 }, output };
        Move { v, leaf, real }
    }

    /// Both announce R'.
    pub(crate) fn announce_move(&self, to: &Move) {
        for b in [false, true] {
            self.announce_by(b, to).unwrap();
        }
        self.settle();
    }

    /// One side announces R'.
    pub(crate) fn announce_by(&self, b: bool, to: &Move) -> Result<(), Error> {
        let [node, peer] = self.sides(b);
        node.changes.move_to(peer.id, &self.channel, to.real.clone()).map(|v| assert_eq!(v, to.v))
    }

    /// Up to where both have everything on R', before anything is signed.
    pub(crate) fn prepare(&self, a_sat: i64, b_sat: i64, tag: u8) -> Move {
        let (v, output) = self.negotiate(a_sat, b_sat);
        let to = self.leaf_for(v, output, tag);
        self.announce_move(&to);
        self.assert_move_covered(&to);
        to
    }

    /// Both rely on R'.
    pub(crate) fn assert_move_covered(&self, to: &Move) {
        for node in [&self.a, &self.b] {
            let covered = node.streams.covered(&self.channel, &to.v, &to.real.outpoint);
            assert!(covered, "R' is not covered: {:?}", lock(&node.complaints));
        }
    }

    /// Signatures for R' may leave both.
    pub(crate) fn bind(&self, to: &Move) {
        for node in [&self.a, &self.b] {
            node.changes.bind(&self.channel, &to.v).unwrap();
        }
    }

    /// Both sign.
    pub(crate) fn sign(&self, to: &Move) {
        for b in [false, true] {
            let [node, peer] = self.sides(b);
            node.changes.sign(&peer.id, &self.channel, &to.v).unwrap();
        }
        self.settle();
    }

    /// Both lock.
    pub(crate) fn lock(&self, to: &Move) {
        for node in [&self.a, &self.b] {
            node.changes.lock(&self.channel, &to.v).unwrap();
        }
        self.settle();
        for node in [&self.a, &self.b] {
            let funded = node.manager.list_channels()[0].funding_txo.unwrap().into_bitcoin_outpoint();
            assert_eq!(funded, to.v, "{:?}", lock(&node.complaints));
        }
    }
}
