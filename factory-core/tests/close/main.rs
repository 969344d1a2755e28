//! Cooperative closes of factories that were made in a ceremony.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod shutting;

use std::collections::VecDeque;

use bitcoin::{Amount, ScriptBuf, Transaction};
use bolt_tlv::payload::{self, Payload};
use common::*;
use factory_core::ceremony::{ExcludeReason, ParamsChoice};
use factory_core::close::*;
use factory_core::refuse::RefuseCode;
use rand::rngs::StdRng;
use rand::SeedableRng;

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

fn balance(i: usize) -> u64 {
    // One client has dust, one nothing.
    match i {
        1 => 200_500,
        2 => 0,
        _ => 40_000_999 + u64::try_from(i).unwrap() * 1000,
    }
}

struct Closing {
    world: World,
    lsp: LspClose,
    clients: Vec<ClientClose>,
    queue: VecDeque<(Option<usize>, Payload)>,
    to_client: Box<dyn FnMut(usize, Payload) -> Vec<Payload>>,
    to_lsp: Box<dyn FnMut(usize, Payload) -> Vec<Payload>>,
    actions: Vec<LspCloseAction>,
    client_actions: Vec<(usize, ClientCloseAction)>,
    states: Vec<LspCloseState>,
    client_states: Vec<Option<ClientCloseState>>,
    timer: u64,
    broadcast: Option<Transaction>,
    /// Whether frozen states reach the disk.
    disk: bool,
    /// What each channel's final balances are more than its capacity.
    too_much_msat: u64,
    /// Clients whose channels are not shut down when the provider wants it.
    open: Vec<usize>,
    provider_disk: disk::Disk,
}

fn lsp_config(world: &World) -> LspCloseConfig {
    LspCloseConfig {
        record: world.lsp_record.clone().unwrap(),
        advances: Vec::new(),
        secret_key: secret("lsp", 0),
        lsp_script: payout(500),
        feerate_sat_per_kwu: 1000,
        attempt: 0,
        consent_secs: 60,
        signing_secs: 60,
    }
}

fn client_config(world: &World, i: usize) -> ClientCloseConfig {
    ClientCloseConfig {
        record: world.records[&i].clone(),
        secret_key: secret("factory", i),
        payout_script: payout(700 + i),
        allow: true,
    }
}

impl Closing {
    fn new(n: usize) -> Self {
        let mut world = World::new(config(ParamsChoice::Reshape(regtest(n, 1)), n, 1_000));
        world.run();
        let clients = (0..n)
            .map(|i| {
                ClientClose::new(client_config(&world, i), &mut rng(50 + u64::try_from(i).unwrap())).unwrap()
            })
            .collect();
        let (lsp, actions) = LspClose::new(lsp_config(&world), &mut rng(5)).unwrap();
        let mut closing = Self {
            world,
            lsp,
            clients,
            queue: VecDeque::new(),
            to_client: Box::new(|_, p| vec![p]),
            to_lsp: Box::new(|_, p| vec![p]),
            actions: Vec::new(),
            client_actions: Vec::new(),
            states: Vec::new(),
            client_states: vec![None; n],
            timer: 0,
            broadcast: None,
            disk: true,
            too_much_msat: 0,
            open: Vec::new(),
            provider_disk: disk::Disk::default(),
        };
        closing.lsp_did(actions);
        closing
    }

    fn index(&self, id: &bitcoin::secp256k1::PublicKey) -> usize {
        (0..self.clients.len()).find(|i| node_id(*i) == *id).unwrap()
    }

    fn lsp_in(&mut self, input: LspCloseInput) {
        let actions = self.lsp.handle(input).unwrap();
        self.lsp_did(actions);
    }

    fn client_in(&mut self, i: usize, input: ClientCloseInput) {
        let actions = self.clients[i].handle(input).unwrap();
        for action in actions {
            self.client_actions.push((i, action.clone()));
            match action {
                ClientCloseAction::Send(p) => self.queue.push_back((None, p.clone())),
                ClientCloseAction::PersistFrozen(state) => {
                    let json = serde_json::to_string(&state).unwrap();
                    self.client_states[i] = Some(serde_json::from_str(&json).unwrap());
                    if self.disk {
                        self.client_in(i, ClientCloseInput::Persisted { attempt: state.attempt });
                    }
                }
                _ => {}
            }
            if let Some((None, p)) = self.queue.back().cloned() {
                self.queue.pop_back();
                let p = Payload::decode(&p.encode()).unwrap();
                for p in (self.to_lsp)(i, p) {
                    self.queue.push_back((Some(i + 1000), p));
                }
            }
        }
    }

    fn lsp_did(&mut self, actions: Vec<LspCloseAction>) {
        for action in actions {
            if !self.provider_disk.takes(&action) {
                return;
            }
            self.actions.push(action.clone());
            match action {
                LspCloseAction::Send { client, payload } => {
                    let i = self.index(&client);
                    let p = Payload::decode(&payload.encode()).unwrap();
                    for p in (self.to_client)(i, p) {
                        self.queue.push_back((Some(i), p));
                    }
                }
                LspCloseAction::PersistState(state) => {
                    let json = serde_json::to_string(&state).unwrap();
                    self.states.push(serde_json::from_str(&json).unwrap());
                }
                LspCloseAction::ShutdownChannel { client, outpoint } => {
                    let i = self.index(&client);
                    assert_eq!(self.world.records[&i].channel().unwrap().outpoint, outpoint);
                    if !self.open.contains(&i) {
                        self.channel_shut(i);
                    }
                }
                LspCloseAction::PersistClose { .. } => self.lsp_in(LspCloseInput::RecordPersisted),
                LspCloseAction::Broadcast(tx) => self.broadcast = Some(*tx),
                LspCloseAction::SetTimer { id, .. } => self.timer = id,
                _ => {}
            }
        }
    }

    /// A channel is shut down. Each side hears of it as often as it asks.
    fn channel_shut(&mut self, i: usize) {
        self.client_in(i, ClientCloseInput::ChannelShut { own_msat: balance(i) });
        let lsp_msat = capacity(i) * 1000 - balance(i) + self.too_much_msat;
        let client = node_id(i);
        self.lsp_in(LspCloseInput::ChannelShut { client, client_msat: balance(i), lsp_msat });
    }

    fn pump(&mut self) {
        while let Some((to, p)) = self.queue.pop_front() {
            match to {
                Some(i) if i >= 1000 => {
                    self.lsp_in(LspCloseInput::Message { client: node_id(i - 1000), payload: p });
                }
                Some(i) => self.client_in(i, ClientCloseInput::Message(p)),
                None => unreachable!(),
            }
        }
    }

    /// The broadcast transaction pays everyone and its signature is valid.
    fn assert_closed(&self) {
        assert_eq!(self.lsp.phase(), LspClosePhase::Done);
        let tx = self.broadcast.as_ref().unwrap();
        let record = self.world.lsp_record.as_ref().unwrap();
        let mut paid = 0;
        for i in 0..self.clients.len() {
            let due = balance(i) / 1000;
            let got: u64 = tx
                .output
                .iter()
                .filter(|o| o.script_pubkey == payout(700 + i))
                .map(|o| o.value.to_sat())
                .sum();
            assert_eq!(got, if due < 330 { 0 } else { due });
            paid += got;
        }
        let lsp: u64 =
            tx.output.iter().filter(|o| o.script_pubkey == payout(500)).map(|o| o.value.to_sat()).sum();
        let fee = record.funding.value_sat - paid - lsp;
        assert_eq!(fee, tx.weight().to_wu(), "1000 sat per 1000 weight units");
        let signature = tx.input[0].witness.nth(0).unwrap();
        let sighash = bitcoin::sighash::SighashCache::new(tx)
            .taproot_key_spend_signature_hash(
                0,
                &bitcoin::sighash::Prevouts::All(&[record.funding.tx_out()]),
                bitcoin::TapSighashType::Default,
            )
            .unwrap();
        let key = bitcoin::XOnlyPublicKey::from_slice(&record.funding.script.as_bytes()[2..]).unwrap();
        bitcoin::secp256k1::Secp256k1::verification_only()
            .verify_schnorr(
                &bitcoin::secp256k1::schnorr::Signature::from_slice(signature).unwrap(),
                &sighash.into(),
                &key,
            )
            .unwrap();
        for client in &self.clients {
            assert!(client.frozen());
        }
    }

    fn refusals(&self) -> Vec<(usize, RefuseCode)> {
        self.client_actions
            .iter()
            .filter_map(|(i, a)| match a {
                ClientCloseAction::Refused { code, .. } => Some((*i, *code)),
                _ => None,
            })
            .collect()
    }

    fn blamed(&self) -> Vec<(usize, ExcludeReason)> {
        self.actions
            .iter()
            .filter_map(|a| match a {
                LspCloseAction::Blamed { client, reason } => Some((self.index(client), reason.clone())),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn everyone_is_paid_to_the_satoshi() {
    for n in [2, 5, 20] {
        let mut closing = Closing::new(n);
        closing.pump();
        closing.assert_closed();
        for client in &closing.clients {
            assert_eq!(client.phase(), ClientClosePhase::Done);
        }
        assert!(closing.refusals().is_empty());
    }
}

#[test]
fn a_refusal_or_silence_changes_nothing() {
    let mut closing = Closing::new(3);
    closing.clients[1].handle(ClientCloseInput::PendingPayments(true)).unwrap();
    closing.pump();
    assert_eq!(closing.refusals(), [(1, RefuseCode::PendingPayments)]);
    assert_eq!(closing.lsp.phase(), LspClosePhase::Failed);
    assert!(!closing.actions.iter().any(|a| matches!(a, LspCloseAction::ShutdownChannel { .. })));

    let mut closing = Closing::new(3);
    closing.to_client = Box::new(|i, p| if i == 2 { vec![] } else { vec![p] });
    closing.queue.retain(|(to, _)| *to != Some(2));
    closing.pump();
    let id = closing.timer;
    closing.lsp_in(LspCloseInput::Timeout { id });
    let reason = CloseFailReason::NoAnswer { clients: vec![node_id(2)] };
    assert_eq!(closing.actions.last(), Some(&LspCloseAction::Failed { reason }));
    assert!(closing.clients.iter().all(|c| !c.frozen()));
}

#[test]
fn a_missing_signer_is_asked_again_for_the_same_transaction() {
    for number in [25, 27] {
        let mut closing = Closing::new(4);
        let mut dropped = false;
        closing.to_lsp = Box::new(move |i, p| {
            if i == 3 && p.number() == number && !dropped {
                dropped = true;
                return vec![];
            }
            vec![p]
        });
        closing.pump();
        let id = closing.timer;
        closing.lsp_in(LspCloseInput::Timeout { id });
        assert_eq!(closing.lsp.phase(), LspClosePhase::Stalled);
        assert_eq!(closing.blamed().len(), 1);
        assert_eq!(closing.blamed()[0].0, 3);
        closing.lsp_in(LspCloseInput::Retry);
        closing.pump();
        closing.assert_closed();
        let mut txs: Vec<_> = closing
            .actions
            .iter()
            .filter_map(|a| match a {
                LspCloseAction::Send { payload: Payload::CloseTx(m), .. } => Some(m.transaction.clone()),
                _ => None,
            })
            .collect();
        txs.dedup();
        assert_eq!(txs.len(), 1);
    }
}

#[test]
fn a_wrong_signer_is_named() {
    let mut closing = Closing::new(4);
    let mut done = false;
    closing.to_lsp = Box::new(move |i, p| match p {
        Payload::ClosePartial(mut m) if i == 2 && !done => {
            done = true;
            m.partial[31] ^= 1;
            vec![m.into()]
        }
        p => vec![p],
    });
    closing.pump();
    assert_eq!(closing.blamed(), [(2, ExcludeReason::WrongPartial { session: 0 })]);
    closing.lsp_in(LspCloseInput::Retry);
    closing.pump();
    closing.assert_closed();
}

#[test]
fn restarts_resume() {
    let mut closing = Closing::new(3);
    closing.to_lsp = Box::new(|i, p| if i == 1 && p.number() == 27 { vec![] } else { vec![p] });
    closing.pump();
    assert_eq!(closing.lsp.phase(), LspClosePhase::Partials);
    // Both the provider and a client start again from what they stored.
    let state = closing.states.last().unwrap().clone();
    let client_state = closing.client_states[1].clone().unwrap();
    assert!(client_state.frozen);
    closing.clients[1] =
        ClientClose::resume(client_config(&closing.world, 1), &client_state, &mut rng(77)).unwrap();
    assert!(closing.clients[1].frozen());
    closing.to_lsp = Box::new(|_, p| vec![p]);
    let (lsp, actions) = LspClose::resume(lsp_config(&closing.world), &state, &mut rng(78)).unwrap();
    closing.lsp = lsp;
    closing.lsp_did(actions);
    closing.pump();
    closing.assert_closed();
}

/// Nothing leaves a client before the frozen state is on disk.
#[test]
fn partials_wait_for_the_disk() {
    let mut closing = Closing::new(2);
    closing.disk = false;
    closing.pump();
    let partials = |c: &Closing| {
        c.client_actions
            .iter()
            .filter(|(_, a)| matches!(a, ClientCloseAction::Send(Payload::ClosePartial(_))))
            .count()
    };
    assert_eq!(partials(&closing), 0, "a partial left before the disk had the frozen state");
    assert!(closing.clients.iter().all(|c| c.phase() == ClientClosePhase::Freezing));
    for i in 0..2 {
        let attempt = closing.client_states[i].as_ref().unwrap().attempt;
        closing.client_in(i, ClientCloseInput::Persisted { attempt });
    }
    closing.pump();
    closing.assert_closed();
}

type Cheat = fn(&mut payload::CloseTx);

#[test]
fn a_cheating_provider_is_refused() {
    let cases: Vec<(RefuseCode, Cheat)> = vec![
        (RefuseCode::CloseAmount, |m| {
            let own = m.transaction.output.iter_mut().find(|o| o.script_pubkey == payout(700)).unwrap();
            own.value -= Amount::from_sat(1);
        }),
        (RefuseCode::CloseAmount, |m| m.transaction.output.retain(|o| o.script_pubkey != payout(700))),
        (RefuseCode::CloseAmount, |m| {
            m.transaction.output[0].value = Amount::from_sat(1 << 40);
        }),
        (RefuseCode::CloseForm, |m| {
            for output in &mut m.transaction.output {
                output.script_pubkey = ScriptBuf::new_op_return([1, 2]);
            }
        }),
        // One dust output, and no node relays the rest.
        (RefuseCode::CloseForm, |m| {
            let dust = bitcoin::TxOut { value: Amount::from_sat(1), script_pubkey: payout(701) };
            m.transaction.output.push(dust);
        }),
        (RefuseCode::CloseForm, |m| m.transaction.input[0].previous_output.vout += 1),
        (RefuseCode::CloseForm, |m| {
            let again = m.transaction.input[0].clone();
            m.transaction.input.push(again);
        }),
        (RefuseCode::CloseForm, |m| {
            m.transaction.lock_time = bitcoin::absolute::LockTime::from_height(10_000).unwrap();
        }),
        (RefuseCode::CloseForm, |m| {
            m.transaction.input[0].sequence = bitcoin::Sequence::from_height(100);
        }),
        (RefuseCode::CloseKeys, |m| {
            m.keys.pop();
        }),
        (RefuseCode::CloseKeys, |m| m.keys[1] = key("other", 1)),
        (RefuseCode::CloseKeys, |m| m.keys[1] = m.keys[2]),
    ];
    for (code, cheat) in cases {
        let mut closing = Closing::new(3);
        closing.to_client = Box::new(move |i, p| match p {
            Payload::CloseTx(mut m) if i == 0 => {
                cheat(&mut m);
                vec![m.into()]
            }
            p => vec![p],
        });
        closing.pump();
        assert_eq!(closing.refusals(), [(0, code)]);
        assert!(!closing.clients[0].frozen());
        assert!(closing.broadcast.is_none());
        // Honest the second time.
        closing.to_client = Box::new(|_, p| vec![p]);
        closing.lsp_in(LspCloseInput::Retry);
        closing.pump();
        closing.assert_closed();
    }
}

#[test]
fn an_aggregate_nonce_is_used_once() {
    let mut closing = Closing::new(2);
    closing.to_client = Box::new(|_, p| match p {
        Payload::CloseAggNonce(m) => {
            let mut other = m.clone();
            other.nonce = [0; 66];
            vec![m.into(), other.into()]
        }
        p => vec![p],
    });
    closing.pump();
    assert!(closing.refusals().contains(&(0, RefuseCode::NonceReuse)));
    let partials = closing
        .client_actions
        .iter()
        .filter(|(i, a)| *i == 0 && matches!(a, ClientCloseAction::Send(Payload::ClosePartial(_))))
        .count();
    assert_eq!(partials, 1);
}

/// A channel whose final balances are not its capacity: the close does not go on with them.
#[test]
fn balances_that_do_not_add_up_are_a_problem() {
    let mut closing = Closing::new(2);
    closing.too_much_msat = 1000;
    closing.pump();
    let told = closing.actions.iter().any(|a| matches!(a, LspCloseAction::Problem { .. }));
    assert!(told, "no problem was told");
    assert!(closing.broadcast.is_none());
}
