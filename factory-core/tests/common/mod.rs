//! A provider and its clients in one process, with a Lightning node reduced to what the ceremony sees of it.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bitcoin::hashes::{sha256, Hash};
use bitcoin::secp256k1::PublicKey;
use bitcoin::{
    absolute, transaction, Amount, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, WScriptHash,
};
use bolt_tlv::payload::{Funded, Payload};
use factory_core::ceremony::*;
use factory_core::musig::public_key;
use factory_core::params::{DwLayer, Params, Shape};
use factory_core::record::{ClientFactoryRecord, LspFactoryRecord};
use rand::rngs::StdRng;
use rand::SeedableRng;

pub const HEIGHT: u32 = 800;

pub fn secret(label: &str, i: usize) -> [u8; 32] {
    let mut s = sha256::Hash::hash(format!("{label} {i}").as_bytes()).to_byte_array();
    s[0] = 1;
    s
}

/// Remembered: worlds look keys up all the time, and to make one costs a multiplication on the curve.
pub fn key(label: &str, i: usize) -> PublicKey {
    thread_local!(static MADE: RefCell<BTreeMap<(String, usize), PublicKey>> = RefCell::default());
    let new = || public_key(&secret(label, i)).unwrap();
    MADE.with_borrow_mut(|made| *made.entry((label.to_owned(), i)).or_insert_with(new))
}

pub fn node_id(i: usize) -> PublicKey {
    key("node", i)
}

pub fn payout(i: usize) -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::CompressedPublicKey(key("payout", i)).wpubkey_hash())
}

pub fn stock_script() -> ScriptBuf {
    ScriptBuf::new_p2tr(&bitcoin::secp256k1::Secp256k1::new(), key("stock", 0).into(), None)
}

pub fn channel_script(temporary_channel_id: &[u8; 32]) -> ScriptBuf {
    ScriptBuf::new_p2wsh(&WScriptHash::hash(temporary_channel_id))
}

pub fn regtest(clients: usize, per_leaf: u16) -> Params {
    Params::default_with(clients, per_leaf, Network::Regtest).unwrap()
}

/// A shape by hand, with short delays.
pub fn shaped(clients: usize, per_leaf: u16, arity: &[u16], layers: &[usize]) -> Params {
    let list = |m: usize| {
        (0..m).map(|i| DwLayer { states: 3, step: 2, base: if i == 0 { 5 } else { 0 } }).collect::<Vec<_>>()
    };
    let shape = Shape {
        clients_per_leaf: per_leaf,
        arity: arity.to_vec(),
        layers: layers.iter().map(|m| list(*m)).collect(),
    };
    let params = Params { shape, ..regtest(clients, per_leaf) };
    params.validate(clients).unwrap();
    params
}

pub fn policy() -> ClientPolicy {
    ClientPolicy { max_exit_blocks: 2016, ..ClientPolicy::default() }
}

pub fn capacity(i: usize) -> u64 {
    100_000 + 1_000 * u64::try_from(i).unwrap()
}

pub fn config(params: ParamsChoice, clients: usize, stock: u64) -> LspConfig {
    LspConfig {
        instance_id: [7; 32],
        secret_key: secret("lsp", 0),
        params,
        clients: (0..clients)
            .map(|i| InvitedClient { node_id: node_id(i), capacity_sat: capacity(i), push_msat: 1_000_000 })
            .collect(),
        leaf_stock_sat: stock,
        stock_script: stock_script(),
        birth_height: HEIGHT,
        min_clients: 2,
        timeouts: Timeouts::default(),
    }
}

pub fn client(i: usize) -> ClientCeremony {
    client_with(i, policy())
}

pub fn client_with(i: usize, policy: ClientPolicy) -> ClientCeremony {
    let config = ClientConfig {
        policy,
        secret_key: secret("factory", i),
        payout_script: payout(i),
        height: HEIGHT + 1,
        network: Network::Regtest,
        timeout_secs: 600,
    };
    ClientCeremony::new(config, &mut StdRng::seed_from_u64(u64::try_from(i).unwrap() + 100)).unwrap()
}

type Tamper = Box<dyn FnMut(usize, Payload) -> Vec<Payload>>;

pub enum Event {
    Lsp(LspInput),
    Client(usize, ClientInput),
}

pub struct World {
    pub lsp: LspCeremony,
    pub clients: Vec<ClientCeremony>,
    pub to_lsp: Tamper,
    pub to_client: Tamper,
    pub queue: VecDeque<Event>,
    pub actions: Vec<LspAction>,
    pub client_actions: Vec<(usize, ClientAction)>,
    pub records: BTreeMap<usize, ClientFactoryRecord>,
    pub lsp_record: Option<LspFactoryRecord>,
    pub open: BTreeSet<[u8; 32]>,
    pub built: Option<Transaction>,
    pub broadcast: Vec<Transaction>,
    pub funding_counter: u32,
    /// Capacity that the client's Lightning node reports, if not the agreed one.
    pub reported: Box<dyn Fn(usize, ClientInput) -> ClientInput>,
    timer: u64,
    start: Option<Vec<LspAction>>,
}

impl World {
    pub fn new(config: LspConfig) -> Self {
        let n = config.clients.len();
        let (lsp, first) = LspCeremony::new(config, &mut StdRng::seed_from_u64(1)).unwrap();
        Self {
            lsp,
            clients: (0..n).map(client).collect(),
            to_lsp: Box::new(|_, p| vec![p]),
            to_client: Box::new(|_, p| vec![p]),
            queue: VecDeque::new(),
            actions: Vec::new(),
            client_actions: Vec::new(),
            records: BTreeMap::new(),
            lsp_record: None,
            open: BTreeSet::new(),
            built: None,
            broadcast: Vec::new(),
            funding_counter: 0,
            reported: Box::new(|_, i| i),
            timer: 0,
            start: Some(first),
        }
    }

    fn index(id: &PublicKey, n: usize) -> usize {
        (0..n).find(|i| node_id(*i) == *id).unwrap()
    }

    /// Runs, without timers, until a condition holds or nothing is left to do.
    pub fn run_until(&mut self, stop: impl Fn(&LspCeremony) -> bool) {
        let first = self.start.take().unwrap_or_default();
        self.lsp_actions(first);
        while !stop(&self.lsp) {
            let Some(event) = self.queue.pop_front() else { return };
            self.step(event);
        }
    }

    pub fn step(&mut self, event: Event) {
        match event {
            Event::Lsp(input) => {
                let actions = self.lsp.handle(input).unwrap();
                self.lsp_actions(actions);
            }
            Event::Client(i, input) => {
                let actions = self.clients[i].handle(input).unwrap();
                self.client_did(i, actions);
            }
        }
    }

    /// Runs until nothing is left to do; timers run out only when nothing else happens.
    pub fn run(&mut self) {
        let first = self.start.take().unwrap_or_default();
        self.lsp_actions(first);
        for _ in 0..100 {
            while let Some(event) = self.queue.pop_front() {
                self.step(event);
            }
            if matches!(self.lsp.phase(), Phase::Done | Phase::Failed) {
                return;
            }
            self.queue.push_back(Event::Lsp(LspInput::Timeout { id: self.timer }));
        }
        panic!("ceremony does not end, phase {:?}", self.lsp.phase());
    }

    fn lsp_actions(&mut self, actions: Vec<LspAction>) {
        let n = self.clients.len();
        for action in actions {
            self.actions.push(action.clone());
            match action {
                LspAction::Send { client, payload } => {
                    let i = Self::index(&client, n);
                    let bytes = payload.encode();
                    let payload = Payload::decode(&bytes).unwrap();
                    for p in (self.to_client)(i, payload) {
                        self.queue.push_back(Event::Client(i, ClientInput::Message(p)));
                    }
                }
                LspAction::OpenChannel { client, temporary_channel_id, .. } => {
                    let i = Self::index(&client, n);
                    let input = if self.clients[i].expected_channel() == Some(temporary_channel_id) {
                        assert!(self.open.insert(temporary_channel_id));
                        let script = channel_script(&temporary_channel_id);
                        LspInput::ChannelScript { client, temporary_channel_id, script }
                    } else {
                        let reason = "refused by the client".to_owned();
                        LspInput::ChannelFailed { client, temporary_channel_id, reason }
                    };
                    self.queue.push_back(Event::Lsp(input));
                }
                LspAction::CloseChannel { temporary_channel_id, .. } => {
                    self.open.remove(&temporary_channel_id);
                }
                LspAction::BuildFunding { script, value_sat } => {
                    assert!(self.built.is_none(), "two funding transactions at once");
                    self.funding_counter += 1;
                    let tx = Transaction {
                        version: transaction::Version::TWO,
                        lock_time: absolute::LockTime::ZERO,
                        input: vec![TxIn {
                            previous_output: OutPoint::new(
                                bitcoin::Txid::from_byte_array([9; 32]),
                                self.funding_counter,
                            ),
                            ..TxIn::default()
                        }],
                        output: vec![
                            TxOut { value: Amount::from_sat(1234), script_pubkey: payout(1) },
                            TxOut { value: Amount::from_sat(value_sat), script_pubkey: script.clone() },
                        ],
                    };
                    let outpoint = OutPoint::new(tx.compute_txid(), 1);
                    self.built = Some(tx);
                    let input = LspInput::FundingBuilt { outpoint, script, value_sat };
                    self.queue.push_back(Event::Lsp(input));
                }
                LspAction::ReleaseFunding => {
                    assert!(self.built.take().is_some());
                }
                LspAction::FundChannel { client, temporary_channel_id, outpoint } => {
                    let i = Self::index(&client, n);
                    let input = ClientInput::ChannelFunded {
                        temporary_channel_id,
                        outpoint,
                        funding_script: channel_script(&temporary_channel_id),
                        capacity_sat: capacity(i),
                    };
                    self.queue.push_back(Event::Client(i, (self.reported)(i, input)));
                    let held = LspInput::CommitmentHeld { client, temporary_channel_id };
                    self.queue.push_back(Event::Lsp(held));
                }
                LspAction::PersistRecord(record) => {
                    let attempt = record.attempt;
                    let json = serde_json::to_string(&record).unwrap();
                    self.lsp_record = Some(serde_json::from_str(&json).unwrap());
                    self.queue.push_back(Event::Lsp(LspInput::RecordPersisted { attempt }));
                }
                LspAction::BroadcastFunding => {
                    // No funding before everybody holds a complete exit.
                    let record = self.lsp_record.as_ref().unwrap();
                    for id in &record.client_ids {
                        let stored = self.records.get(&Self::index(id, n));
                        let stored = stored.expect("funding broadcast before a client had stored its exit");
                        assert_eq!(stored.path.attempt, record.attempt);
                        assert_eq!(stored.path.funding, record.funding);
                        stored.path.verify().expect("a client stored an exit that is not signed");
                    }
                    let tx = self.built.clone().unwrap();
                    assert_eq!(record.funding.outpoint, OutPoint::new(tx.compute_txid(), 1));
                    self.broadcast.push(tx.clone());
                    for id in &record.client_ids {
                        let funded = Funded {
                            instance_id: record.plan.instance_id,
                            attempt: record.attempt,
                            transaction: tx.clone(),
                        };
                        let input = ClientInput::Message(funded.into());
                        self.queue.push_back(Event::Client(Self::index(id, n), input));
                    }
                }
                LspAction::SetTimer { id, .. } => self.timer = id,
                LspAction::Excluded { .. }
                | LspAction::Progress(_)
                | LspAction::Done
                | LspAction::Failed { .. } => {}
            }
        }
    }

    fn client_did(&mut self, i: usize, actions: Vec<ClientAction>) {
        for action in actions {
            self.client_actions.push((i, action.clone()));
            match action {
                ClientAction::Send(payload) => {
                    let payload = Payload::decode(&payload.encode()).unwrap();
                    for payload in (self.to_lsp)(i, payload) {
                        let input = LspInput::Message { client: node_id(i), payload };
                        self.queue.push_back(Event::Lsp(input));
                    }
                }
                ClientAction::PersistRecord(record) => {
                    let json = serde_json::to_string(&record).unwrap();
                    let attempt = record.path.attempt;
                    self.records.insert(i, serde_json::from_str(&json).unwrap());
                    self.queue.push_back(Event::Client(i, ClientInput::Persisted { attempt }));
                }
                _ => {}
            }
        }
    }

    pub fn excluded(&self) -> Vec<(usize, ExcludeReason)> {
        let n = self.clients.len();
        self.actions
            .iter()
            .filter_map(|a| match a {
                LspAction::Excluded { client, reason } => Some((Self::index(client, n), reason.clone())),
                _ => None,
            })
            .collect()
    }

    pub fn refused(&self, i: usize) -> Option<factory_core::refuse::RefuseCode> {
        self.client_actions.iter().find_map(|(c, a)| match a {
            ClientAction::Refused { code, .. } if *c == i => Some(*code),
            _ => None,
        })
    }

    /// Everything that holds after a success.
    pub fn assert_made(&self, members: &[usize]) {
        assert_eq!(self.lsp.phase(), Phase::Done, "{:?}", self.excluded());
        assert_eq!(self.broadcast.len(), 1);
        let record = self.lsp_record.as_ref().unwrap();
        let ids: Vec<_> = members.iter().map(|i| node_id(*i)).collect();
        assert_eq!(record.client_ids, ids);
        // Channels of the last attempt only.
        assert_eq!(self.open.len(), members.len());
        for (index, i) in members.iter().enumerate() {
            assert_eq!(self.clients[*i].phase(), ClientPhase::Done);
            let own = &self.records[i];
            assert_eq!(own.path, record.leaf_path(index).unwrap());
            own.path.verify().unwrap();
            let channel = own.channel().unwrap();
            assert_eq!(channel.key, key("factory", *i));
            assert_eq!(channel.share.payout_script, payout(*i));
            assert!(self.open.contains(&channel.share.temporary_channel_id));
        }
    }
}
