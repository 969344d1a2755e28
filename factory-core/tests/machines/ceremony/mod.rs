//! The two creation machines under a script of faults: messages are delivered in any order that connections allow,
//! dropped, repeated, altered, replayed and made up, timers run out, connections break, clients start again.
//!
//! The nodes around the machines are honest: they report what is true, each at a time of its own. A link's faults
//! count against its client: whoever had none must not be left out. What must hold is in [`super::oracle`].

mod faults;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{absolute, transaction, Amount, OutPoint, Transaction, TxIn, TxOut, Txid};
use bolt_tlv::payload::{Funded, Payload};
use factory_core::ceremony::*;
use factory_core::record::{ClientFactoryRecord, LspFactoryRecord};
use rand::rngs::StdRng;
use rand::SeedableRng;

use crate::common::*;
use crate::oracle::{ClientRules, LspRules};
use crate::script::Script;

/// Messages kept for replays.
const KEEP: usize = 64;
/// Clients at most.
const MAX_CLIENTS: usize = 4;
/// Steps of a script.
const MAX_STEPS: usize = 400;
/// Most memory of one machine of four clients, bytes: several times what an honest run takes.
pub const MAX_MACHINE: usize = 512 << 10;

/// A client, its node and its link.
struct Side {
    machine: ClientCeremony,
    rules: ClientRules,
    to_client: VecDeque<Payload>,
    to_lsp: VecDeque<Payload>,
    reports: VecDeque<ClientInput>,
    stored: BTreeMap<u16, ClientFactoryRecord>,
    timer: u64,
    starts: u64,
    /// Something on its link or in its node went wrong.
    faulty: bool,
    /// The LSP was told what the client did not say.
    lies: bool,
}

pub struct Ceremony {
    lsp: LspCeremony,
    rules: LspRules,
    sides: Vec<Side>,
    reports: VecDeque<LspInput>,
    said: Vec<Payload>,
    built: Option<Transaction>,
    fundings: u32,
    record: Option<LspFactoryRecord>,
    recorded: bool,
    held: BTreeSet<[u8; 32]>,
    broadcast: Option<Transaction>,
    timer: u64,
    called_off: bool,
    live: fn() -> usize,
}

/// Runs a script. `live` tells the bytes allocated in this process; without it memory is not looked at.
pub fn run(bytes: &[u8], live: fn() -> usize) {
    let mut script = Script::new(bytes);
    let mut world = Ceremony::new(&mut script, live);
    for _ in 0..MAX_STEPS {
        if script.is_empty() {
            break;
        }
        world.step(&mut script);
    }
    world.end();
}

/// The number of the client with this node id.
fn index(id: &PublicKey) -> usize {
    (0..MAX_CLIENTS).find(|i| node_id(*i) == *id).unwrap()
}

fn machine(i: usize, start: u64, lenient: bool) -> ClientCeremony {
    let policy = ClientPolicy { accept: lenient, ..policy() };
    let config = ClientConfig {
        policy,
        secret_key: secret("factory", i),
        payout_script: payout(i),
        height: HEIGHT + 1,
        network: bitcoin::Network::Regtest,
        timeout_secs: 600,
    };
    let seed = 100 + 10 * start + u64::try_from(i).unwrap();
    ClientCeremony::new(config, &mut StdRng::seed_from_u64(seed)).unwrap()
}

impl Ceremony {
    fn new(script: &mut Script<'_>, live: fn() -> usize) -> Self {
        let n = 2 + script.below(3);
        // The smallest trees, and now and then one as it is in life: each is signed anew in every run.
        let params = match script.below(4) {
            0 => shaped(n, 4, &[], &[1]),
            1 => shaped(n, 2, if n > 2 { &[2] } else { &[] }, if n > 2 { &[0, 1] } else { &[1] }),
            2 => shaped(n, 1, &[u16::try_from(n).unwrap()], &[0, 1]),
            _ => regtest(n, 1),
        };
        let stock = if script.below(2) == 0 { 0 } else { 20_000 };
        let config = config(ParamsChoice::Reshape(params), n, stock);
        let (lsp, first) = LspCeremony::new(config, &mut StdRng::seed_from_u64(1)).unwrap();
        let unwilling = script.below(16);
        let sides = (0..n)
            .map(|i| Side {
                machine: machine(i, 0, i != unwilling.wrapping_sub(1)),
                rules: ClientRules::new(i),
                to_client: VecDeque::new(),
                to_lsp: VecDeque::new(),
                reports: VecDeque::new(),
                stored: BTreeMap::new(),
                timer: 0,
                starts: 0,
                faulty: i == unwilling.wrapping_sub(1),
                lies: false,
            })
            .collect();
        let mut world = Self {
            lsp,
            rules: LspRules::default(),
            sides,
            reports: VecDeque::new(),
            said: Vec::new(),
            built: None,
            fundings: 0,
            record: None,
            recorded: false,
            held: BTreeSet::new(),
            broadcast: None,
            timer: 0,
            called_off: false,
            live,
        };
        world.lsp_did(first);
        world
    }

    // ------------------------------------------------------------------ deliveries

    /// Delivers the first of the `nth` queue that is not empty; says whether there was one.
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
                    self.client_in(i, ClientInput::Message(payload));
                }
            }
            1 => {
                if let Some(payload) = self.sides[i].to_lsp.pop_front() {
                    self.lsp_in(LspInput::Message { client: node_id(i), payload });
                }
            }
            2 => {
                if let Some(report) = self.sides[i].reports.pop_front() {
                    self.report(i, report);
                }
            }
            _ => {
                if let Some(report) = self.reports.pop_front() {
                    match &report {
                        LspInput::RecordPersisted { .. } => self.recorded = true,
                        LspInput::CommitmentHeld { temporary_channel_id, .. } => {
                            self.held.insert(*temporary_channel_id);
                        }
                        _ => {}
                    }
                    self.lsp_in(report);
                }
            }
        }
        true
    }

    /// What the client's node says. Once its channel is funded, the LSP holds a commitment, too.
    fn report(&mut self, i: usize, report: ClientInput) {
        if let ClientInput::ChannelFunded { temporary_channel_id, .. } = &report {
            let temporary_channel_id = *temporary_channel_id;
            self.reports.push_back(LspInput::CommitmentHeld { client: node_id(i), temporary_channel_id });
            self.sides[i].rules.funded(&report);
        }
        if let ClientInput::Persisted { attempt } = &report {
            self.sides[i].rules.stored(*attempt);
        }
        self.client_in(i, report);
    }

    // ------------------------------------------------------------------ the machines

    fn lsp_in(&mut self, input: LspInput) {
        let over = matches!(self.lsp.phase(), Phase::Done | Phase::Failed);
        if let LspInput::Message { client, payload: Payload::Nonces(m) } = &input {
            if m.attempt == self.lsp.attempt() && self.lsp.phase() >= Phase::Nonces {
                self.rules.heard(index(client), m);
            }
        }
        let actions = self.lsp.handle(input).unwrap();
        assert!(!over || actions.is_empty(), "the LSP goes on after its end");
        self.lsp_did(actions);
    }

    fn client_in(&mut self, i: usize, input: ClientInput) {
        let over = matches!(self.sides[i].machine.phase(), ClientPhase::Done | ClientPhase::Failed);
        let actions = self.sides[i].machine.handle(input).unwrap();
        assert!(!over || actions.is_empty(), "client {i} goes on after its end");
        assert!(actions.len() <= 8, "client {i}: {} actions for one input", actions.len());
        self.client_did(i, actions);
    }

    fn remember(&mut self, payload: &Payload) {
        if self.said.len() < KEEP {
            self.said.push(payload.clone());
        }
    }

    fn lsp_did(&mut self, actions: Vec<LspAction>) {
        let members: Vec<usize> = self.lsp.clients().iter().map(index).collect();
        for action in actions {
            self.rules.check(&action, &members, index);
            match action {
                LspAction::Send { client, payload } => {
                    let i = index(&client);
                    let payload = Payload::decode(&payload.encode()).expect("the LSP keeps the limits");
                    let signed = matches!(&payload, Payload::Signed(_));
                    assert!(!signed || self.recorded, "signatures leave before the tree is on disk");
                    self.remember(&payload);
                    self.sides[i].to_client.push_back(payload);
                }
                LspAction::OpenChannel { client, temporary_channel_id, .. } => {
                    let i = index(&client);
                    let expected = self.sides[i].machine.expected_channel() == Some(temporary_channel_id);
                    self.reports.push_back(if expected {
                        let script = channel_script(&temporary_channel_id);
                        LspInput::ChannelScript { client, temporary_channel_id, script }
                    } else {
                        self.sides[i].faulty |= self.sides[i].machine.phase() != ClientPhase::Planned;
                        let reason = "refused by the client".to_owned();
                        LspInput::ChannelFailed { client, temporary_channel_id, reason }
                    });
                }
                LspAction::BuildFunding { script, value_sat } => {
                    assert!(self.built.is_none(), "two funding transactions at once");
                    self.fundings += 1;
                    let tx = funding_transaction(self.fundings, script.clone(), value_sat);
                    let outpoint = OutPoint::new(tx.compute_txid(), 1);
                    self.built = Some(tx);
                    self.reports.push_back(LspInput::FundingBuilt { outpoint, script, value_sat });
                }
                LspAction::ReleaseFunding => {
                    assert!(self.broadcast.is_none(), "a funding transaction that is out is given up");
                    assert!(self.built.take().is_some());
                }
                LspAction::FundChannel { client, temporary_channel_id, outpoint } => {
                    let i = index(&client);
                    self.sides[i].reports.push_back(ClientInput::ChannelFunded {
                        temporary_channel_id,
                        outpoint,
                        funding_script: channel_script(&temporary_channel_id),
                        capacity_sat: capacity(i),
                    });
                }
                LspAction::PersistRecord(record) => {
                    let attempt = record.attempt;
                    let json = serde_json::to_string(&record).unwrap();
                    self.record = Some(serde_json::from_str(&json).unwrap());
                    assert_eq!(self.record.as_ref(), Some(&*record), "what is stored is what was said");
                    self.recorded = false;
                    self.reports.push_back(LspInput::RecordPersisted { attempt });
                }
                LspAction::BroadcastFunding => self.broadcast(),
                LspAction::SetTimer { id, .. } => self.timer = id,
                LspAction::Excluded { client, reason } => {
                    let i = index(&client);
                    // Keys are fresh and known to nobody before they are accepted; a script may guess one.
                    let guessed = reason == ExcludeReason::DuplicateKey;
                    assert!(self.sides[i].faulty || guessed, "client {i} did nothing wrong: {reason:?}");
                    self.sides[i].faulty = true;
                }
                LspAction::Failed { reason } => {
                    assert!(self.broadcast.is_none(), "failed with the funding out");
                    let honest = self.sides.iter().filter(|s| !s.faulty).count();
                    match reason {
                        FailReason::TooFewClients { .. } => assert!(honest < 2, "{honest} did nothing wrong"),
                        FailReason::Internal(error) => panic!("{error}"),
                        _ => assert!(self.called_off || honest == 0, "{reason:?}"),
                    }
                }
                LspAction::CloseChannel { .. } | LspAction::Progress(_) | LspAction::Done => {}
            }
        }
    }

    /// The funding leaves: everybody who does not lie has a complete exit and a commitment on disk.
    fn broadcast(&mut self) {
        let record = self.record.clone().expect("a record before the broadcast");
        assert!(self.recorded && self.broadcast.is_none());
        for (at, id) in record.client_ids.iter().enumerate() {
            let i = index(id);
            let path = record.leaf_path(at).unwrap();
            path.verify().unwrap();
            let channel = path.leaf.iter().find(|c| c.key == record.plan.members[at].key).unwrap();
            assert!(self.held.contains(&channel.share.temporary_channel_id), "no commitment of client {i}");
            if !self.sides[i].lies {
                let stored = self.sides[i].stored.get(&record.attempt).expect("stored by every client");
                // What is in no transaction, as the script of a stock of 0 sat, can be told to each client differently.
                assert_eq!(stored.path.path, path.path);
                assert_eq!(stored.path.distributions, path.distributions);
                assert!(self.sides[i].faulty || stored.path == path, "client {i} has another record");
                assert!(self.sides[i].rules.is_stored(record.attempt));
            }
        }
        let tx = self.built.clone().expect("a funding transaction");
        assert_eq!(record.funding.outpoint, OutPoint::new(tx.compute_txid(), 1));
        for id in &record.client_ids {
            let (instance_id, attempt) = (record.plan.instance_id, record.attempt);
            let funded = Funded { instance_id, attempt, transaction: tx.clone() };
            let i = index(id);
            self.sides[i].to_client.push_back(funded.into());
        }
        self.broadcast = Some(tx);
    }

    fn client_did(&mut self, i: usize, actions: Vec<ClientAction>) {
        for action in actions {
            self.sides[i].rules.check(&action);
            match action {
                ClientAction::Send(payload) => {
                    let payload = Payload::decode(&payload.encode()).expect("a client keeps the limits");
                    self.remember(&payload);
                    self.sides[i].to_lsp.push_back(payload);
                }
                ClientAction::PersistRecord(record) => {
                    let json = serde_json::to_string(&record).unwrap();
                    let attempt = record.path.attempt;
                    let read: ClientFactoryRecord = serde_json::from_str(&json).unwrap();
                    assert_eq!(read, *record, "what is stored is what was said");
                    self.sides[i].stored.insert(attempt, read);
                    self.sides[i].reports.push_back(ClientInput::Persisted { attempt });
                }
                ClientAction::SetTimer { id, .. } => self.sides[i].timer = id,
                ClientAction::Refused { .. } | ClientAction::Aborted { .. } => self.sides[i].faulty = true,
                _ => {}
            }
        }
    }

    /// What a machine takes is freed when it goes.
    fn weigh<T>(&self, machine: T) {
        let before = (self.live)();
        drop(machine);
        let freed = before.saturating_sub((self.live)());
        assert!(freed <= MAX_MACHINE, "a machine of {freed} bytes");
    }

    /// Without further faults it ends: everything is delivered, and where nothing is left the LSP's timer runs out.
    fn end(mut self) {
        for _ in 0..100 {
            while self.deliver(0) {}
            if matches!(self.lsp.phase(), Phase::Done | Phase::Failed) {
                break;
            }
            let id = self.timer;
            self.lsp_in(LspInput::Timeout { id });
        }
        let done = self.lsp.phase() == Phase::Done;
        assert!(done || self.lsp.phase() == Phase::Failed, "still in {:?}", self.lsp.phase());
        assert_eq!(done, self.broadcast.is_some());
        if let (true, Some(record)) = (done, &self.record) {
            for i in (0..self.sides.len()).filter(|i| !self.sides[*i].faulty) {
                assert!(record.client_ids.contains(&node_id(i)), "client {i} was left out");
                assert_eq!(self.sides[i].machine.phase(), ClientPhase::Done, "client {i}");
            }
        }
        while let Some(side) = self.sides.pop() {
            self.weigh(side.machine);
        }
        let (live, lsp) = (self.live, self.lsp);
        let before = live();
        drop(lsp);
        let freed = before.saturating_sub(live());
        assert!(freed <= MAX_MACHINE, "a machine of {freed} bytes");
    }
}

fn funding_transaction(number: u32, script: bitcoin::ScriptBuf, value_sat: u64) -> Transaction {
    Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(Txid::from_byte_array([9; 32]), number),
            ..TxIn::default()
        }],
        output: vec![
            TxOut { value: Amount::from_sat(1234), script_pubkey: payout(1) },
            TxOut { value: Amount::from_sat(value_sat), script_pubkey: script },
        ],
    }
}
