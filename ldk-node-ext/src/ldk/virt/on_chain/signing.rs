//! Commitments on any outpoint, signed with both sides' keys: what somebody publishes that is not to be helped.

use std::sync::{Arc, Mutex};

use bitcoin::ecdsa;
use bitcoin::secp256k1::Secp256k1;
use bitcoin::{OutPoint, Transaction, Witness};
use lightning::chain::chaininterface::{BroadcasterInterface, TransactionType};
use lightning::chain::channelmonitor::ChannelMonitor;
use lightning::chain::transaction::OutPoint as LdkOutPoint;
use lightning::chain::BlockLocator;
use lightning::events::bump_transaction::BumpTransactionEvent;
use lightning::events::Event;
use lightning::ln::chan_utils::make_funding_redeemscript;
use lightning::ln::types::ChannelId;
use lightning::sign::ecdsa::EcdsaChannelSigner;
use lightning::sign::ChannelDerivationParameters;
use lightning::util::ser::{ReadableArgs, Writeable};

use super::super::testing::{Node, Pair};
use crate::keys::Keys;
use crate::ldk::FactorySigner;
use crate::logger::Logger;
use crate::util::lock;

struct Nowhere;

impl BroadcasterInterface for Nowhere {
    fn broadcast_transactions(&self, _txs: &[(&Transaction, TransactionType)]) {}
}

/// A node's newest commitment at some time, signed by both on V.
pub(super) struct Snapshot {
    pub(super) tx: Transaction,
    pub(super) derivation: ChannelDerivationParameters,
}

impl Snapshot {
    /// Asks a copy of the monitor, so that the channel goes on.
    pub(super) fn of(node: &Node, channel: &ChannelId) -> Self {
        let bytes = node.monitor.get_monitor(*channel).unwrap().encode();
        let read = <(BlockLocator, ChannelMonitor<FactorySigner>)>::read;
        let (_, copy) = read(&mut &bytes[..], (&*node.keys, &*node.keys)).unwrap();
        copy.broadcast_latest_holder_commitment_txn(&Nowhere, &*node.fees, &Logger);
        let found = Mutex::new(None);
        let handler = |event: Event| {
            if let Event::BumpTransaction(BumpTransactionEvent::ChannelClose {
                commitment_tx: tx,
                anchor_descriptor: anchor,
                ..
            }) = event
            {
                *lock(&found) = Some(Self { tx, derivation: anchor.channel_derivation_parameters });
            }
            Ok(())
        };
        copy.process_pending_events(&&handler, &Logger).unwrap();
        let found = lock(&found).take();
        found.unwrap()
    }
}

/// Both sides' keys: what makes the commitments of one of them.
pub(super) struct Both {
    /// Own and peer's; none while that process does not run.
    keys: Mutex<[Option<Arc<Keys>>; 2]>,
    /// Own and peer's, by V.
    known: Mutex<Vec<(OutPoint, [ChannelDerivationParameters; 2])>>,
    of_b: bool,
}

impl Both {
    pub(super) fn new(of_b: bool) -> Self {
        Self { keys: Mutex::default(), known: Mutex::default(), of_b }
    }

    /// The process of that side begins, or ends.
    pub(super) fn runs(&self, b: bool, node: Option<&Node>) {
        lock(&self.keys)[usize::from(b != self.of_b)] = node.map(|node| Arc::clone(&node.keys));
    }

    /// Learns the parameters of the V that is current.
    pub(super) fn learn(&self, pair: &Pair) {
        let sides = pair.sides(self.of_b);
        let both = sides.map(|node| Snapshot::of(node, &pair.channel).derivation);
        let v = both[0].transaction_parameters.funding_outpoint.unwrap().into_bitcoin_outpoint();
        let mut known = lock(&self.known);
        known.retain(|(other, _)| *other != v);
        known.push((v, both));
    }

    /// A commitment, which spends a V, on another outpoint.
    pub(super) fn sign(&self, commitment: &Transaction, real: &OutPoint) -> Transaction {
        let secp = Secp256k1::new();
        let v = commitment.input[0].previous_output;
        let known = lock(&self.known);
        let (_, both) = known.iter().find(|(other, _)| *other == v).unwrap();
        let mut tx = commitment.clone();
        tx.input[0].previous_output = *real;
        tx.input[0].witness = Witness::new();
        let keys = lock(&self.keys);
        let mut signatures: Vec<_> = both
            .iter()
            .zip(keys.iter())
            .map(|(derivation, keys)| {
                let mut parameters = derivation.transaction_parameters.clone();
                let index = u16::try_from(real.vout).unwrap();
                parameters.funding_outpoint = Some(LdkOutPoint { txid: real.txid, index });
                let signer = keys.as_ref().unwrap().channel_signer(derivation.keys_id);
                let signature = signer.sign_splice_shared_input(&parameters, &tx, 0, &secp).unwrap();
                (parameters.holder_pubkeys.funding_pubkey, signature)
            })
            .collect();
        signatures.sort_by_key(|(key, _)| key.serialize());
        let script = make_funding_redeemscript(&signatures[0].0, &signatures[1].0);
        let witness = &mut tx.input[0].witness;
        witness.push([]);
        for (_, signature) in signatures {
            witness.push(ecdsa::Signature::sighash_all(signature).serialize());
        }
        witness.push(script);
        tx
    }
}
