//! The two closing machines under a script of faults; see [`crate::ceremony`]. The factory and its channels are the
//! same in every run, balances are not. Both sides can start again from what they stored.

mod faults;
mod rules;

use std::collections::VecDeque;
use std::sync::OnceLock;

use bitcoin::secp256k1::PublicKey;
use bitcoin::Transaction;
use bolt_tlv::payload::Payload;
use factory_core::ceremony::ParamsChoice;
use factory_core::close::*;
use factory_core::record::{ClientFactoryRecord, LspFactoryRecord};
use rand::rngs::StdRng;
use rand::SeedableRng;

use crate::ceremony::MAX_MACHINE;
use crate::common::*;
use crate::script::Script;
use rules::{check_signed, CloseRules};

/// Clients of the factory.
const CLIENTS: usize = 3;
/// Messages kept for replays.
const KEEP: usize = 64;
/// Steps of a script.
const MAX_STEPS: usize = 400;

/// A client, its node and its link.
struct Side {
    machine: ClientClose,
    rules: CloseRules,
    to_client: VecDeque<Payload>,
    to_lsp: VecDeque<Payload>,
    reports: VecDeque<ClientCloseInput>,
    state: Option<ClientCloseState>,
    own_msat: u64,
    /// Its channel is shut down.
    shut: bool,
    pending: bool,
    starts: u64,
    /// Something on its link or in its node went wrong.
    faulty: bool,
}

pub struct Closing {
    lsp: LspClose,
    sides: Vec<Side>,
    reports: VecDeque<LspCloseInput>,
    said: Vec<Payload>,
    state: Option<LspCloseState>,
    /// The transaction of every attempt.
    unsigned: Option<Transaction>,
    /// The signed transaction as it was stored.
    stored: Option<Transaction>,
    broadcast: Option<Transaction>,
    /// The attempt of each nonce of the LSP.
    own_nonces: Vec<(PublicKey, u16)>,
    nonces: Vec<(u16, usize, [u8; 66])>,
    timer: u64,
    starts: u64,
    /// The LSP was made to say what it did not say, somewhere.
    forged: bool,
    live: fn() -> usize,
}

type Factory = (LspFactoryRecord, Vec<ClientFactoryRecord>);

fn factory() -> &'static Factory {
    static MADE: OnceLock<Factory> = OnceLock::new();
    MADE.get_or_init(|| {
        let params = shaped(CLIENTS, 1, &[3], &[0, 1]);
        let mut world = World::new(config(ParamsChoice::Reshape(params), CLIENTS, 0));
        world.run();
        (world.lsp_record.unwrap(), world.records.into_values().collect())
    })
}

/// Runs a script. `live` tells the bytes allocated in this process; without it memory is not looked at.
pub fn run(bytes: &[u8], live: fn() -> usize) {
    factory();
    let mut script = Script::new(bytes);
    let mut world = Closing::new(&mut script, live);
    for _ in 0..MAX_STEPS {
        if script.is_empty() {
            break;
        }
        world.step(&mut script);
    }
    world.end();
}

fn index(id: &PublicKey) -> usize {
    (0..CLIENTS).find(|i| node_id(*i) == *id).unwrap()
}

fn lsp_config() -> LspCloseConfig {
    LspCloseConfig {
        record: factory().0.clone(),
        advances: Vec::new(),
        secret_key: secret("lsp", 0),
        lsp_script: payout(500),
        feerate_sat_per_kwu: 1000,
        attempt: 0,
        consent_secs: 60,
        signing_secs: 60,
    }
}

fn client_config(i: usize, allow: bool) -> ClientCloseConfig {
    ClientCloseConfig {
        record: factory().1[i].clone(),
        secret_key: secret("factory", i),
        payout_script: payout(700 + i),
        allow,
    }
}

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

impl Closing {
    fn new(script: &mut Script<'_>, live: fn() -> usize) -> Self {
        let balances = [0, 999, 329_999, 330_000, 50_000_999, capacity(0) * 1000];
        let unwilling = script.below(16);
        let sides = (0..CLIENTS)
            .map(|i| {
                let own_msat = balances[script.below(balances.len())];
                let machine = client_config(i, i != unwilling.wrapping_sub(1));
                Side {
                    machine: ClientClose::new(machine, &mut rng(50 + i as u64)).unwrap(),
                    rules: CloseRules::new(i, own_msat),
                    to_client: VecDeque::new(),
                    to_lsp: VecDeque::new(),
                    reports: VecDeque::new(),
                    state: None,
                    own_msat,
                    shut: false,
                    pending: false,
                    starts: 0,
                    faulty: i == unwilling.wrapping_sub(1),
                }
            })
            .collect();
        let (lsp, first) = LspClose::new(lsp_config(), &mut rng(5)).unwrap();
        let mut world = Self {
            lsp,
            sides,
            reports: VecDeque::new(),
            said: Vec::new(),
            state: None,
            unsigned: None,
            stored: None,
            broadcast: None,
            own_nonces: Vec::new(),
            nonces: Vec::new(),
            timer: 0,
            starts: 0,
            forged: false,
            live,
        };
        world.lsp_did(first);
        world
    }

    fn deliver(&mut self, nth: usize) -> bool {
        let mut full = Vec::new();
        if !self.reports.is_empty() {
            full.push((3, 0));
        }
        for (i, side) in self.sides.iter().enumerate() {
            let queues = [!side.to_client.is_empty(), !side.to_lsp.is_empty(), !side.reports.is_empty()];
            full.extend((0..3).filter(|q| queues[*q]).map(|q| (q, i)));
        }
        let Some(&(queue, i)) = full.get(nth % full.len().max(1)) else { return false };
        match queue {
            0 => {
                if let Some(payload) = self.sides[i].to_client.pop_front() {
                    self.client_in(i, ClientCloseInput::Message(payload));
                }
            }
            1 => {
                if let Some(payload) = self.sides[i].to_lsp.pop_front() {
                    self.lsp_in(LspCloseInput::Message { client: node_id(i), payload });
                }
            }
            2 => {
                if let Some(report) = self.sides[i].reports.pop_front() {
                    self.client_in(i, report);
                }
            }
            _ => {
                if let Some(report) = self.reports.pop_front() {
                    self.lsp_in(report);
                }
            }
        }
        true
    }

    fn remember(&mut self, payload: &Payload) {
        if self.said.len() < KEEP {
            self.said.push(payload.clone());
        }
    }

    fn lsp_in(&mut self, input: LspCloseInput) {
        if let LspCloseInput::Message { client, payload: Payload::CloseNonce(m) } = &input {
            let i = index(client);
            let counts = m.attempt == self.lsp.attempt() && self.lsp.phase() == LspClosePhase::Nonces;
            if counts && !self.nonces.iter().any(|(a, c, _)| (*a, *c) == (m.attempt, i)) {
                self.nonces.push((m.attempt, i, m.nonce));
            }
        }
        let over = matches!(self.lsp.phase(), LspClosePhase::Done | LspClosePhase::Failed);
        let actions = self.lsp.handle(input).unwrap();
        assert!(!over || actions.is_empty(), "the LSP goes on after its end");
        self.lsp_did(actions);
    }

    fn lsp_did(&mut self, actions: Vec<LspCloseAction>) {
        for action in actions {
            match action {
                LspCloseAction::Send { client, payload } => {
                    let payload = Payload::decode(&payload.encode()).expect("the LSP keeps the limits");
                    self.lsp_says(&payload);
                    self.remember(&payload);
                    self.sides[index(&client)].to_client.push_back(payload);
                }
                LspCloseAction::PersistState(state) => {
                    let json = serde_json::to_string(&state).unwrap();
                    self.state = Some(serde_json::from_str(&json).unwrap());
                    assert_eq!(self.state.as_ref(), Some(&*state), "what is stored is what was said");
                }
                LspCloseAction::ShutdownChannel { client, outpoint } => {
                    let i = index(&client);
                    let state = self.state.as_ref().expect("consents are on disk before a channel is shut");
                    assert!(state.clients.iter().all(|c| !c.payout_script.is_empty()));
                    assert_eq!(factory().1[i].channel().unwrap().outpoint, outpoint);
                    let side = &mut self.sides[i];
                    if !side.shut {
                        side.reports.push_back(ClientCloseInput::ChannelShut { own_msat: side.own_msat });
                    }
                    side.shut = true;
                    let lsp_msat = capacity(i) * 1000 - side.own_msat;
                    let client_msat = side.own_msat;
                    self.reports.push_back(LspCloseInput::ChannelShut { client, client_msat, lsp_msat });
                }
                LspCloseAction::PersistClose { tx, .. } => {
                    self.stored = Some(*tx);
                    self.reports.push_back(LspCloseInput::RecordPersisted);
                }
                LspCloseAction::Broadcast(tx) => {
                    assert_eq!(self.stored.as_ref(), Some(&*tx), "broadcast before it is on disk");
                    check_signed(&tx);
                    let state = self.state.as_ref().unwrap();
                    for balance in &state.clients {
                        let i = index(&balance.client);
                        assert_eq!(balance.client_msat, Some(self.sides[i].own_msat));
                        rules::check_paid(&tx, &balance.payout_script, self.sides[i].own_msat);
                    }
                    assert!(self.broadcast.replace(*tx).is_none());
                }
                LspCloseAction::SetTimer { id, .. } => self.timer = id,
                LspCloseAction::Blamed { client, reason } => {
                    let i = index(&client);
                    assert!(self.sides[i].faulty, "client {i} did nothing wrong: {reason:?}");
                }
                LspCloseAction::Problem { error } => {
                    // The LSP's own share is too small for the fee: nothing else can fail.
                    let fee = matches!(error, factory_core::Error::Fee { .. });
                    assert!(fee, "{error}");
                    self.forged = true;
                }
                LspCloseAction::Failed { .. } => {
                    assert!(self.sides.iter().all(|s| !s.shut), "failed with a channel shut");
                    assert!(self.sides.iter().any(|s| s.faulty), "failed, and nobody did anything wrong");
                }
                LspCloseAction::Progress(_) | LspCloseAction::Done => {}
            }
        }
    }

    fn lsp_says(&mut self, payload: &Payload) {
        match payload {
            // One transaction, whatever happens: two could both be signed.
            Payload::CloseTx(m) => {
                let state = self.state.as_ref().unwrap();
                assert_eq!(state.attempt, m.attempt, "an attempt that is not on disk");
                assert!(state.clients.iter().all(|c| c.client_msat.is_some()));
                let first = self.unsigned.get_or_insert_with(|| m.transaction.clone());
                assert_eq!(first, &m.transaction, "another transaction than before");
            }
            Payload::CloseAggNonce(m) => self.own_nonce(m.attempt, &m.nonce),
            _ => {}
        }
    }

    /// The aggregate without the clients' nonces is the LSP's, which is new in every attempt.
    fn own_nonce(&mut self, attempt: u16, aggregate: &[u8; 66]) {
        let secp = bitcoin::secp256k1::Secp256k1::new();
        let point = |nonce: &[u8; 66]| PublicKey::from_slice(&nonce[..33]).ok();
        let Some(sum) = point(aggregate) else { return };
        let mut parts = vec![sum];
        for (_, _, nonce) in self.nonces.iter().filter(|(a, _, _)| *a == attempt) {
            let Some(part) = point(nonce) else { return };
            parts.push(part.negate(&secp));
        }
        assert_eq!(parts.len(), CLIENTS + 1, "aggregated without a client's nonce");
        let Ok(own) = PublicKey::combine_keys(&parts.iter().collect::<Vec<_>>()) else { return };
        for (other, used) in &self.own_nonces {
            assert!(*other != own || *used == attempt, "the LSP uses a nonce in two attempts");
        }
        self.own_nonces.push((own, attempt));
    }

    fn client_in(&mut self, i: usize, input: ClientCloseInput) {
        let side = &mut self.sides[i];
        side.rules.hears(&input);
        let was_frozen = side.machine.frozen();
        let over = side.machine.phase() == ClientClosePhase::Done;
        let actions = side.machine.handle(input).unwrap();
        assert!(!over || actions.is_empty(), "client {i} goes on after its end");
        assert!(!was_frozen || side.machine.frozen(), "client {i} thaws");
        assert!(actions.len() <= 8);
        self.client_did(i, actions);
    }

    fn client_did(&mut self, i: usize, actions: Vec<ClientCloseAction>) {
        for action in actions {
            let side = &mut self.sides[i];
            side.rules.check(&action, &side.machine, side.pending);
            match action {
                ClientCloseAction::Send(payload) => {
                    let payload = Payload::decode(&payload.encode()).expect("a client keeps the limits");
                    self.remember(&payload);
                    self.sides[i].to_lsp.push_back(payload);
                }
                ClientCloseAction::PersistFrozen(state) => {
                    let json = serde_json::to_string(&state).unwrap();
                    side.state = Some(serde_json::from_str(&json).unwrap());
                    assert_eq!(side.state.as_ref(), Some(&state), "what is stored is what was said");
                    side.reports.push_back(ClientCloseInput::Persisted { attempt: state.attempt });
                }
                ClientCloseAction::Refused { .. } | ClientCloseAction::Aborted { .. } => side.faulty = true,
                ClientCloseAction::StopPayments | ClientCloseAction::Completed { .. } => {}
            }
        }
    }

    fn weigh<T>(&self, machine: T) {
        let before = (self.live)();
        drop(machine);
        let freed = before.saturating_sub((self.live)());
        assert!(freed <= MAX_MACHINE, "a machine of {freed} bytes");
    }

    /// Without further faults it ends, unless a client was led astray.
    fn end(mut self) {
        for side in &mut self.sides {
            side.pending = false;
        }
        for i in 0..CLIENTS {
            self.client_in(i, ClientCloseInput::PendingPayments(false));
        }
        for _ in 0..8 {
            while self.deliver(0) {}
            if matches!(self.lsp.phase(), LspClosePhase::Done | LspClosePhase::Failed) {
                break;
            }
            self.sides.iter_mut().for_each(|s| s.faulty = true);
            let id = self.timer;
            self.lsp_in(LspCloseInput::Timeout { id });
            self.lsp_in(LspCloseInput::Retry);
        }
        let phase = self.lsp.phase();
        let over = matches!(phase, LspClosePhase::Done | LspClosePhase::Failed);
        assert!(over || self.forged, "still in {phase:?}");
        assert_eq!(self.broadcast.is_some(), phase == LspClosePhase::Done);
        while let Some(side) = self.sides.pop() {
            self.weigh(side.machine);
        }
    }
}
