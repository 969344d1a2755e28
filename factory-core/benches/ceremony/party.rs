//! An LSP and its clients in one process, with Lightning and chain reduced to what the ceremony sees of them, and
//! an account of the time that each spends.

use std::collections::{HashMap, VecDeque};

use bitcoin::hashes::{sha256, Hash};
use bitcoin::secp256k1::PublicKey;
use bitcoin::{
    absolute, transaction, Amount, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Txid, WScriptHash,
};
use bolt_tlv::payload::{Funded, Payload};
use factory_core::ceremony::{
    ClientAction, ClientCeremony, ClientConfig, ClientInput, ClientPhase, ClientPolicy, InvitedClient,
    LspAction, LspCeremony, LspConfig, LspInput, ParamsChoice, Phase, Timeouts,
};
use factory_core::musig::public_key;
use factory_core::params::Params;
use factory_core::record::LspFactoryRecord;
use rand::rngs::StdRng;
use rand::SeedableRng;

use crate::clock::Spent;

const HEIGHT: u32 = 800;
const CAPACITY_SAT: u64 = 100_000;

/// What a ceremony took.
#[derive(Default)]
pub struct Account {
    /// The LSP, decoding and encoding of messages included.
    pub lsp: Spent,
    /// Of that, by phase in which the time went.
    pub phases: Vec<(Phase, Spent)>,
    /// Each client, likewise.
    pub clients: Vec<Spent>,
    /// Bytes that the LSP sent to all clients, and got from them.
    pub sent: usize,
    pub received: usize,
    /// Bytes of the LSP's record as JSON, and what it took to write.
    pub record: usize,
    pub storing: Spent,
}

enum Event {
    ToLsp(usize, Vec<u8>),
    Lsp(LspInput),
    ToClient(usize, Vec<u8>),
    Client(usize, ClientInput),
}

struct Party {
    lsp: LspCeremony,
    clients: Vec<ClientCeremony>,
    ids: Vec<PublicKey>,
    index: HashMap<PublicKey, usize>,
    queue: VecDeque<Event>,
    funding: Option<Transaction>,
    record: Option<Box<LspFactoryRecord>>,
    account: Account,
}

fn secret(label: &str, i: usize) -> [u8; 32] {
    let mut s = sha256::Hash::hash(format!("{label} {i}").as_bytes()).to_byte_array();
    s[0] = 1;
    s
}

fn key(label: &str, i: usize) -> PublicKey {
    public_key(&secret(label, i)).expect("a key")
}

fn payout(i: usize) -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::CompressedPublicKey(key("payout", i)).wpubkey_hash())
}

fn channel_script(temporary_channel_id: &[u8; 32]) -> ScriptBuf {
    ScriptBuf::new_p2wsh(&WScriptHash::hash(temporary_channel_id))
}

fn funding(script: ScriptBuf, value_sat: u64) -> Transaction {
    let previous_output = OutPoint::new(Txid::from_byte_array([9; 32]), 0);
    Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn { previous_output, ..TxIn::default() }],
        output: vec![TxOut { value: Amount::from_sat(value_sat), script_pubkey: script }],
    }
}

/// One ceremony from the invitations to the end, with everything that is checked about its outcome.
pub fn ceremony(params: &Params, clients: usize) -> Account {
    let ids: Vec<_> = (0..clients).map(|i| key("node", i)).collect();
    let config = LspConfig {
        instance_id: [7; 32],
        secret_key: secret("lsp", 0),
        params: ParamsChoice::Fixed(params.clone()),
        clients: ids
            .iter()
            .map(|id| InvitedClient { node_id: *id, capacity_sat: CAPACITY_SAT, push_msat: 1_000_000 })
            .collect(),
        leaf_stock_sat: 20_000,
        stock_script: payout(clients),
        birth_height: HEIGHT,
        min_clients: 2,
        timeouts: Timeouts::default(),
    };
    let make = |i: usize| {
        let config = ClientConfig {
            policy: ClientPolicy { max_exit_blocks: 2016, ..ClientPolicy::default() },
            secret_key: secret("factory", i),
            payout_script: payout(i),
            height: HEIGHT,
            network: Network::Regtest,
            timeout_secs: 600,
        };
        ClientCeremony::new(config, &mut StdRng::seed_from_u64(i as u64 + 100)).expect("a client")
    };
    let everybody = (0..clients).map(make).collect();
    let ((lsp, first), spent) =
        Spent::on(|| LspCeremony::new(config, &mut StdRng::seed_from_u64(1)).expect("a ceremony"));
    let mut party = Party {
        lsp,
        clients: everybody,
        index: ids.iter().enumerate().map(|(i, id)| (*id, i)).collect(),
        ids,
        queue: VecDeque::new(),
        funding: None,
        record: None,
        account: Account { lsp: spent, clients: vec![Spent::default(); clients], ..Account::default() },
    };
    party.lsp_did(first);
    while let Some(event) = party.queue.pop_front() {
        party.step(event);
    }
    assert_eq!(party.lsp.phase(), Phase::Done);
    assert!(party.clients.iter().all(|client| client.phase() == ClientPhase::Done));
    party.account
}

impl Party {
    fn step(&mut self, event: Event) {
        match event {
            Event::ToLsp(i, bytes) => {
                self.account.received += bytes.len();
                let client = self.ids[i];
                self.lsp_hears(|| LspInput::Message {
                    client,
                    payload: Payload::decode(&bytes).expect("a message"),
                });
            }
            Event::Lsp(input) => self.lsp_hears(|| input),
            Event::ToClient(i, bytes) => {
                self.account.sent += bytes.len();
                self.client_hears(i, || ClientInput::Message(Payload::decode(&bytes).expect("a message")));
            }
            Event::Client(i, input) => self.client_hears(i, || input),
        }
    }

    fn lsp_hears(&mut self, input: impl FnOnce() -> LspInput) {
        let phase = self.lsp.phase();
        let (actions, spent) = Spent::on(|| self.lsp.handle(input()).expect("no failure"));
        self.lsp_spent(phase, spent);
        self.lsp_did(actions);
    }

    fn lsp_spent(&mut self, phase: Phase, spent: Spent) {
        self.account.lsp += spent;
        match self.account.phases.iter_mut().find(|(p, _)| *p == phase) {
            Some((_, sum)) => *sum += spent,
            None => self.account.phases.push((phase, spent)),
        }
    }

    fn lsp_did(&mut self, actions: Vec<LspAction>) {
        let phase = self.lsp.phase();
        for action in actions {
            match action {
                LspAction::Send { client, payload } => {
                    let (bytes, spent) = Spent::on(|| payload.encode());
                    self.lsp_spent(phase, spent);
                    self.queue.push_back(Event::ToClient(self.index[&client], bytes));
                }
                LspAction::OpenChannel { client, temporary_channel_id, .. } => {
                    assert_eq!(
                        self.clients[self.index[&client]].expected_channel(),
                        Some(temporary_channel_id)
                    );
                    let script = channel_script(&temporary_channel_id);
                    let input = LspInput::ChannelScript { client, temporary_channel_id, script };
                    self.queue.push_back(Event::Lsp(input));
                }
                LspAction::BuildFunding { script, value_sat } => {
                    let tx = funding(script.clone(), value_sat);
                    let outpoint = OutPoint::new(tx.compute_txid(), 0);
                    self.funding = Some(tx);
                    self.queue.push_back(Event::Lsp(LspInput::FundingBuilt { outpoint, script, value_sat }));
                }
                LspAction::FundChannel { client, temporary_channel_id, outpoint } => {
                    let input = ClientInput::ChannelFunded {
                        temporary_channel_id,
                        outpoint,
                        funding_script: channel_script(&temporary_channel_id),
                        capacity_sat: CAPACITY_SAT,
                    };
                    self.queue.push_back(Event::Client(self.index[&client], input));
                    let held = LspInput::CommitmentHeld { client, temporary_channel_id };
                    self.queue.push_back(Event::Lsp(held));
                }
                LspAction::PersistRecord(record) => {
                    let attempt = record.attempt;
                    let (bytes, spent) = Spent::on(|| serde_json::to_vec(&record).expect("a record"));
                    self.account.record = bytes.len();
                    self.account.storing = spent;
                    self.record = Some(record);
                    self.queue.push_back(Event::Lsp(LspInput::RecordPersisted { attempt }));
                }
                LspAction::BroadcastFunding => {
                    let (Some(tx), Some(record)) = (&self.funding, &self.record) else {
                        panic!("funded before it was stored")
                    };
                    let (instance_id, attempt) = (record.plan.instance_id, record.attempt);
                    for i in 0..self.clients.len() {
                        let funded = Funded { instance_id, attempt, transaction: tx.clone() };
                        self.queue.push_back(Event::ToClient(i, Payload::from(funded).encode()));
                    }
                }
                LspAction::Excluded { reason, .. } => panic!("excluded: {reason}"),
                LspAction::Failed { reason } => panic!("failed: {reason}"),
                _ => {}
            }
        }
    }

    fn client_hears(&mut self, i: usize, input: impl FnOnce() -> ClientInput) {
        let client = &mut self.clients[i];
        let (actions, spent) = Spent::on(|| client.handle(input()).expect("no failure"));
        self.account.clients[i] += spent;
        for action in actions {
            match action {
                ClientAction::Send(payload) => {
                    let (bytes, spent) = Spent::on(|| payload.encode());
                    self.account.clients[i] += spent;
                    self.queue.push_back(Event::ToLsp(i, bytes));
                }
                ClientAction::PersistRecord(record) => {
                    // Both build the same path.
                    let lsp = self.record.as_ref().and_then(|r| r.leaf_path(i).ok());
                    assert_eq!(Some(&record.path), lsp.as_ref());
                    let attempt = record.path.attempt;
                    self.queue.push_back(Event::Client(i, ClientInput::Persisted { attempt }));
                }
                ClientAction::Refused { text, .. } => panic!("client {i} refused: {text}"),
                _ => {}
            }
        }
    }
}
