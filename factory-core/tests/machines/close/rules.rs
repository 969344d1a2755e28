//! What a client's closing machine must never do.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::{schnorr, Message, Secp256k1};
use bitcoin::sighash::{Prevouts, SighashCache};
use bitcoin::{absolute, ScriptBuf, TapSighashType, Transaction, XOnlyPublicKey};
use bolt_tlv::payload::{CloseTx, Payload};
use factory_core::close::{ClientClose, ClientCloseAction, ClientCloseInput};
use factory_core::musig::AggKey;

use super::factory;
use crate::common::{key, payout};

/// Below this much, sat, a balance has no output.
const DUST: u64 = 330;

/// The rules of one client, over all its lives.
pub struct CloseRules {
    client: usize,
    own_msat: u64,
    /// Every public nonce that ever left.
    nonces: BTreeSet<[u8; 66]>,
    asked: BTreeSet<u16>,
    /// The transactions that it was asked to sign, first of each attempt in this life.
    txs: BTreeMap<u16, CloseTx>,
    refused: BTreeSet<u16>,
    partials: BTreeSet<u16>,
    /// The attempt whose frozen state is on disk.
    frozen: Option<u16>,
    on_disk: bool,
}

impl CloseRules {
    pub fn new(client: usize, own_msat: u64) -> Self {
        Self {
            client,
            own_msat,
            nonces: BTreeSet::new(),
            asked: BTreeSet::new(),
            txs: BTreeMap::new(),
            refused: BTreeSet::new(),
            partials: BTreeSet::new(),
            frozen: None,
            on_disk: false,
        }
    }

    /// The process starts again from what is stored.
    pub fn restarted(&mut self) {
        self.txs.clear();
        self.asked.clear();
    }

    pub fn hears(&mut self, input: &ClientCloseInput) {
        match input {
            ClientCloseInput::Message(Payload::CloseTx(m)) => {
                self.txs.entry(m.attempt).or_insert_with(|| m.clone());
            }
            ClientCloseInput::Persisted { attempt } => self.on_disk |= self.frozen == Some(*attempt),
            _ => {}
        }
    }

    pub fn check(&mut self, action: &ClientCloseAction, machine: &ClientClose, pending: bool) {
        match action {
            ClientCloseAction::Send(Payload::CloseConsent(m)) => {
                assert!(!pending, "consent with a payment pending");
                assert_eq!(m.payout_script, payout(700 + self.client));
            }
            ClientCloseAction::Send(Payload::CloseRefuse(m)) => {
                self.refused.insert(m.attempt);
            }
            ClientCloseAction::Send(Payload::CloseNonce(m)) => {
                assert!(self.asked.insert(m.attempt), "two nonces in attempt {}", m.attempt);
                assert!(!self.partials.contains(&m.attempt), "an attempt that is over begins again");
                assert!(self.nonces.insert(m.nonce), "a nonce a second time");
            }
            ClientCloseAction::Send(Payload::ClosePartial(m)) => {
                assert!(self.partials.insert(m.attempt), "two partials in attempt {}", m.attempt);
                assert!(self.asked.contains(&m.attempt), "a partial without a nonce");
                assert!(!self.refused.contains(&m.attempt), "a partial after a refusal");
                assert!(self.frozen == Some(m.attempt) && self.on_disk, "a partial before the disk knows");
                assert!(machine.frozen());
                let tx = self.txs.get(&m.attempt).expect("a transaction to sign");
                self.acceptable(tx);
            }
            ClientCloseAction::PersistFrozen(state) => {
                assert_eq!(state.own_msat, self.own_msat);
                assert!(state.frozen || self.frozen.is_none(), "the disk is told that nothing was signed");
                if state.frozen {
                    self.frozen = Some(state.attempt);
                    self.on_disk = false;
                }
            }
            ClientCloseAction::Completed { tx } => {
                check_signed(tx);
                check_paid(tx, &payout(700 + self.client), self.own_msat);
            }
            _ => {}
        }
    }

    /// What is signed pays the client, confirms, and is a spend of the funding output by all.
    fn acceptable(&self, message: &CloseTx) {
        let funding = &factory().0.funding;
        let tx = &message.transaction;
        assert_eq!(tx.input.len(), 1);
        assert_eq!(tx.input[0].previous_output, funding.outpoint);
        assert_eq!(tx.lock_time, absolute::LockTime::ZERO);
        assert!(!tx.input[0].sequence.is_relative_lock_time());
        check_paid(tx, &payout(700 + self.client), self.own_msat);
        assert_eq!(AggKey::new(&message.keys).unwrap().script_pubkey(), funding.script);
        assert!(message.keys.contains(&key("factory", self.client)));
    }
}

/// One output pays what is due, and the whole is worth no more than the funding output less the least fee.
pub fn check_paid(tx: &Transaction, script: &ScriptBuf, own_msat: u64) {
    let due = own_msat / 1000;
    let paid = tx.output.iter().any(|o| o.script_pubkey == *script && o.value.to_sat() >= due);
    assert!(paid || due < DUST, "{due} sat are not paid");
    let total: u64 = tx.output.iter().map(|o| o.value.to_sat()).sum();
    let least = u64::try_from(tx.vsize()).unwrap();
    assert!(total + least <= factory().0.funding.value_sat, "no fee is left");
    for output in &tx.output {
        assert!(output.value >= output.script_pubkey.minimal_non_dust(), "dust");
    }
}

/// The signature is that of the funding output's key.
pub fn check_signed(tx: &Transaction) {
    let funding = &factory().0.funding;
    let signature = schnorr::Signature::from_slice(tx.input[0].witness.nth(0).unwrap()).unwrap();
    let sighash = SighashCache::new(tx)
        .taproot_key_spend_signature_hash(0, &Prevouts::All(&[funding.tx_out()]), TapSighashType::Default)
        .unwrap();
    let key = XOnlyPublicKey::from_slice(&funding.script.as_bytes()[2..]).unwrap();
    Secp256k1::verification_only().verify_schnorr(&signature, &Message::from(sighash), &key).unwrap();
}
