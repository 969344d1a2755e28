//! A provider and its clients in one process, each with a disk and with a Lightning node reduced to what the machines
//! see of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bitcoin::hashes::{sha256, Hash};
use bitcoin::{OutPoint, ScriptBuf, TxOut, WScriptHash};
use bolt_tlv::payload::Payload;
use factory_core::advance::*;
use factory_core::ceremony::ParamsChoice;
use factory_core::params::Params;
use factory_core::refuse::RefuseCode;
use factory_core::Error;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::common::{config, node_id, secret, World};
use crate::rules::{self, ClientDisk, LspDisk, Rules};

pub enum Event {
    Lsp(LspAdvanceInput),
    Client(usize, ClientAdvanceInput),
}

/// Who sends to whom: what is on one way keeps its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToLsp(usize),
    ToClient(usize),
    /// From the provider's node to its machine, and from a client's.
    LspNode,
    ClientNode(usize),
}

pub type Tamper = Box<dyn FnMut(usize, Payload) -> Vec<Payload>>;

pub struct Rig {
    pub disk: LspDisk,
    pub disks: Vec<ClientDisk>,
    pub lsp: Option<LspAdvance>,
    pub clients: Vec<ClientAdvance>,
    pub queue: VecDeque<(Way, Event)>,
    pub to_client: Tamper,
    pub to_lsp: Tamper,
    pub actions: Vec<LspAdvanceAction>,
    pub client_actions: Vec<(usize, ClientAdvanceAction)>,
    pub rules: Rules,
    pub members: Vec<usize>,
    /// Clients whose companions never get to the disk.
    pub uncovered: BTreeSet<usize>,
    /// Clients whose companions do not get to the provider's disk, and whose do not get to their own only.
    pub lsp_uncovered: BTreeSet<usize>,
    pub client_uncovered: BTreeSet<usize>,
    /// Whether the provider's and the clients' writes are acknowledged.
    pub acknowledge: bool,
    pub timer: u64,
    pub attempt: u16,
    rebuilt: BTreeMap<(usize, u16), (OutPoint, TxOut)>,
    seed: u64,
}

/// A client that agrees to everything.
pub fn policy() -> AdvancePolicy {
    AdvancePolicy { allow: true, least_sat: 0, most_sat: 100_000_000 }
}

pub fn request(level: usize, client: usize, changes: &[(u32, &[u64], u64)]) -> AdvanceRequest {
    let change = |(first, capacities, stock): &(u32, &[u64], u64)| LeafShares {
        first: *first,
        capacities_sat: capacities.to_vec(),
        stock_sat: *stock,
    };
    AdvanceRequest {
        level,
        client,
        changes: changes.iter().map(change).collect(),
        reason: AdvanceReason::Rotate,
    }
}

impl Rig {
    pub fn new(params: Params, clients: usize, stock: u64) -> Self {
        let mut world = World::new(config(ParamsChoice::Fixed(params), clients, stock));
        world.run();
        let record = world.lsp_record.clone().unwrap();
        let disks: Vec<_> = (0..clients)
            .map(|i| ClientDisk { records: vec![world.records[&i].clone()], state: None })
            .collect();
        Self::of(LspDisk { record, advances: Vec::new(), burnt: Vec::new() }, disks, 0)
    }

    /// Another world with the same disks.
    pub fn fork(&self) -> Self {
        Self::of(self.disk.clone(), self.disks.clone(), self.attempt)
    }

    fn of(disk: LspDisk, disks: Vec<ClientDisk>, attempt: u16) -> Self {
        let mut rig = Self {
            disk,
            disks,
            clients: Vec::new(),
            lsp: None,
            queue: VecDeque::new(),
            to_client: Box::new(|_, p| vec![p]),
            to_lsp: Box::new(|_, p| vec![p]),
            actions: Vec::new(),
            client_actions: Vec::new(),
            rules: Rules::default(),
            members: Vec::new(),
            uncovered: BTreeSet::new(),
            lsp_uncovered: BTreeSet::new(),
            client_uncovered: BTreeSet::new(),
            acknowledge: true,
            timer: 0,
            attempt,
            rebuilt: BTreeMap::new(),
            seed: 1000,
        };
        rig.clients = (0..rig.disks.len()).map(|i| rig.client_from_disk(i)).collect();
        rig
    }

    fn rng(&mut self) -> StdRng {
        self.seed += 1;
        StdRng::seed_from_u64(self.seed)
    }

    fn client_from_disk(&mut self, i: usize) -> ClientAdvance {
        let config = ClientAdvanceConfig {
            record: self.disks[i].newest().clone(),
            state: self.disks[i].state.clone(),
            secret_key: secret("factory", i),
            policy: policy(),
        };
        ClientAdvance::new(config, &mut self.rng()).unwrap()
    }

    fn lsp_config(&self, request: AdvanceRequest) -> LspAdvanceConfig {
        LspAdvanceConfig {
            record: self.disk.record.clone(),
            advances: self.disk.advances.clone(),
            burnt: self.disk.burnt.clone(),
            secret_key: secret("lsp", 0),
            request,
            least_sat: BTreeMap::from([(1, 5_000)]),
            attempt: self.attempt,
            agree_secs: 60,
            prepare_secs: 60,
            signing_secs: 60,
        }
    }

    /// Starts an advance; nothing is delivered yet.
    pub fn start(&mut self, request: AdvanceRequest) -> Result<(), Error> {
        self.attempt += 1;
        let params = &self.disk.record.plan.params;
        let nodes = factory_core::geometry::path(&params.shape, self.disks.len(), request.client).unwrap();
        self.members = nodes.get(request.level).map(|n| (n.first..n.end).collect()).unwrap_or_default();
        let config = self.lsp_config(request);
        let (lsp, actions) = LspAdvance::new(config, &mut self.rng())?;
        self.lsp = Some(lsp);
        self.lsp_did(actions);
        Ok(())
    }

    /// Starts an advance and runs it until nothing happens any more.
    pub fn advance(&mut self, request: AdvanceRequest) -> Result<(), Error> {
        self.start(request)?;
        self.run();
        Ok(())
    }

    pub fn run(&mut self) {
        while self.step(0) {}
    }

    /// One event: the first of a way, chosen by `choice`.
    pub fn step(&mut self, choice: usize) -> bool {
        let mut ways: Vec<Way> = Vec::new();
        for (way, _) in &self.queue {
            if !ways.contains(way) {
                ways.push(*way);
            }
        }
        if ways.is_empty() {
            return false;
        }
        let way = ways[choice % ways.len()];
        let at = self.queue.iter().position(|(w, _)| *w == way).unwrap();
        let (_, event) = self.queue.remove(at).unwrap();
        match event {
            Event::Lsp(input) => self.lsp_in(input),
            Event::Client(i, input) => self.client_in(i, input),
        }
        true
    }

    /// Where no machine is at work, the provider answers from its disk.
    pub fn lsp_in(&mut self, input: LspAdvanceInput) {
        let over = |lsp: &LspAdvance| matches!(lsp.phase(), LspAdvancePhase::Done | LspAdvancePhase::Failed);
        if let LspAdvanceInput::Message { client, payload: Payload::AdvanceResume(m) } = &input {
            if self.lsp.as_ref().is_none_or(|lsp| over(lsp) || lsp.attempt() != m.attempt) {
                let i = self.index(client);
                if let Some(payload) = answer_resume(&self.disk.advances, i, m).unwrap() {
                    let event = Event::Client(i, ClientAdvanceInput::Message(payload));
                    self.queue.push_back((Way::ToClient(i), event));
                }
                return;
            }
        }
        let Some(lsp) = self.lsp.as_mut() else { return };
        let actions = lsp.handle(input).unwrap();
        self.lsp_did(actions);
    }

    pub fn client_in(&mut self, i: usize, input: ClientAdvanceInput) {
        let actions = self.clients[i].handle(input).unwrap();
        self.client_did(i, actions);
    }

    fn script(&self, i: usize, attempt: u16, from_sat: u64, to_sat: u64) -> ScriptBuf {
        if from_sat == to_sat {
            return self.disks[i].newest().channel().unwrap().script.clone();
        }
        let text = format!("channel {i} {attempt} {to_sat}");
        ScriptBuf::new_p2wsh(&WScriptHash::from_byte_array(
            sha256::Hash::hash(text.as_bytes()).to_byte_array(),
        ))
    }

    /// Both sides have to come to the same output; then the companions get to the disks.
    fn rebuilt(&mut self, i: usize, attempt: u16, channel: (OutPoint, TxOut)) {
        let Some(other) = self.rebuilt.remove(&(i, attempt)) else {
            self.rebuilt.insert((i, attempt), channel);
            return;
        };
        assert_eq!(other, channel, "the two sides have different outputs for the channel");
        if self.uncovered.contains(&i) {
            return;
        }
        if !self.lsp_uncovered.contains(&i) {
            self.rules.lsp_covered.insert((i, attempt));
            let input = LspAdvanceInput::Covered { client: node_id(i), attempt };
            self.queue.push_back((Way::LspNode, Event::Lsp(input)));
        }
        if self.client_uncovered.contains(&i) {
            return;
        }
        self.rules.covered.insert((i, attempt));
        let input = ClientAdvanceInput::Covered { attempt };
        self.queue.push_back((Way::ClientNode(i), Event::Client(i, input)));
    }

    fn index(&self, id: &bitcoin::secp256k1::PublicKey) -> usize {
        (0..self.disks.len()).find(|i| node_id(*i) == *id).unwrap()
    }

    fn lsp_did(&mut self, actions: Vec<LspAdvanceAction>) {
        let attempt = self.attempt;
        for action in actions {
            self.actions.push(action.clone());
            match action {
                LspAdvanceAction::Send { client, payload } => {
                    let i = self.index(&client);
                    self.rules.lsp_sends(&self.disk, &self.members, &payload);
                    let payload = Payload::decode(&payload.encode()).unwrap();
                    for p in (self.to_client)(i, payload) {
                        let event = Event::Client(i, ClientAdvanceInput::Message(p));
                        self.queue.push_back((Way::ToClient(i), event));
                    }
                }
                LspAdvanceAction::PrepareChannels(channels) => {
                    for channel in channels {
                        let script = self.script(channel.index, attempt, channel.from_sat, channel.to_sat);
                        let client = channel.client;
                        let input = LspAdvanceInput::ChannelPrepared { client, attempt, script };
                        self.queue.push_back((Way::LspNode, Event::Lsp(input)));
                    }
                }
                LspAdvanceAction::Rebuilt { client, outpoint, output } => {
                    self.rebuilt(self.index(&client), attempt, (outpoint, output));
                }
                LspAdvanceAction::PersistState(state) => {
                    let json = serde_json::to_string(&state).unwrap();
                    self.disk.burnt.push(serde_json::from_str(&json).unwrap());
                }
                LspAdvanceAction::PersistRecord(record) => {
                    let json = serde_json::to_string(&record).unwrap();
                    self.disk.advances.push(serde_json::from_str(&json).unwrap());
                    rules::disks(&self.disk, &self.disks);
                    if self.acknowledge {
                        let attempt = record.attempt;
                        let input = LspAdvanceInput::RecordPersisted { attempt };
                        self.queue.push_back((Way::LspNode, Event::Lsp(input)));
                    }
                }
                LspAdvanceAction::SetTimer { id, .. } => self.timer = id,
                _ => {}
            }
        }
    }

    fn client_did(&mut self, i: usize, actions: Vec<ClientAdvanceAction>) {
        for action in actions {
            self.client_actions.push((i, action.clone()));
            match action {
                ClientAdvanceAction::Send(payload) => {
                    self.rules.client_sends(i, &self.disks[i], &payload);
                    let payload = Payload::decode(&payload.encode()).unwrap();
                    for payload in (self.to_lsp)(i, payload) {
                        let input = LspAdvanceInput::Message { client: node_id(i), payload };
                        self.queue.push_back((Way::ToLsp(i), Event::Lsp(input)));
                    }
                }
                ClientAdvanceAction::PrepareChannel { attempt, from_sat, to_sat, .. } => {
                    let script = self.script(i, attempt, from_sat, to_sat);
                    let input = ClientAdvanceInput::ChannelPrepared { attempt, script };
                    self.queue.push_back((Way::ClientNode(i), Event::Client(i, input)));
                }
                ClientAdvanceAction::Rebuilt { attempt, outpoint, output } => {
                    self.rebuilt(i, attempt, (outpoint, output));
                }
                ClientAdvanceAction::PersistMark { attempt, state } => {
                    assert_eq!(state.marks.last().unwrap().attempt, attempt);
                    self.store_state(i, &state);
                    if self.acknowledge {
                        let input = ClientAdvanceInput::MarkPersisted { attempt };
                        self.queue.push_back((Way::ClientNode(i), Event::Client(i, input)));
                    }
                }
                ClientAdvanceAction::PersistInner { state, pending } => {
                    rules::hangs_below_the_outer(&pending, &self.disks[i]);
                    assert_eq!(state.pending.last(), Some(&*pending));
                    self.store_state(i, &state);
                    let attempt = pending.attempt;
                    if self.acknowledge {
                        let input = ClientAdvanceInput::InnerPersisted { attempt };
                        self.queue.push_back((Way::ClientNode(i), Event::Client(i, input)));
                    }
                }
                ClientAdvanceAction::PersistState(state) => self.store_state(i, &state),
                ClientAdvanceAction::PersistRecord { attempt, record } => {
                    record.verify().expect("a client stored a state that is not signed");
                    let json = serde_json::to_string(&record).unwrap();
                    self.disks[i].records.push(serde_json::from_str(&json).unwrap());
                    rules::disks(&self.disk, &self.disks);
                    if self.acknowledge {
                        let input = ClientAdvanceInput::RecordPersisted { attempt };
                        self.queue.push_back((Way::ClientNode(i), Event::Client(i, input)));
                    }
                }
                _ => {}
            }
        }
    }

    fn store_state(&mut self, i: usize, state: &ClientAdvanceState) {
        let json = serde_json::to_string(state).unwrap();
        self.disks[i].state = Some(serde_json::from_str(&json).unwrap());
    }

    /// The client's process dies and starts again from its disk; what was on its way is lost.
    pub fn restart_client(&mut self, i: usize) {
        let lost = [Way::ToClient(i), Way::ToLsp(i), Way::ClientNode(i)];
        self.queue.retain(|(way, _)| !lost.contains(way));
        self.rebuilt.retain(|(client, _), _| *client != i);
        let client = self.client_from_disk(i);
        self.clients[i] = client;
        self.lsp_in(LspAdvanceInput::ClientGone { client: node_id(i) });
        self.client_in(i, ClientAdvanceInput::Connected);
    }

    /// The provider's process dies and starts again from its disk: it goes on with an advance that is stored.
    pub fn restart_lsp(&mut self) {
        self.rebuilt.clear();
        self.lsp = None;
        for i in 0..self.clients.len() {
            self.client_in(i, ClientAdvanceInput::Disconnected);
        }
        self.queue.retain(|(way, _)| matches!(way, Way::ClientNode(_)));
        if self.disk.advances.last().is_some_and(|a| a.attempt == self.attempt) {
            let config = self.lsp_config(request(0, 0, &[]));
            let (lsp, actions) = LspAdvance::resume(config, &mut self.rng()).unwrap();
            self.lsp = Some(lsp);
            self.lsp_did(actions);
        }
        for i in 0..self.clients.len() {
            self.client_in(i, ClientAdvanceInput::Connected);
        }
    }

    /// Which clients refused, why, and whether this or another try may come to be all the same.
    pub fn refused(&self) -> Vec<(usize, RefuseCode, bool)> {
        let refused = |(i, a): &(usize, ClientAdvanceAction)| match a {
            ClientAdvanceAction::Refused { code, left, .. } => Some((*i, *code, *left > Aftermath::Clear)),
            _ => None,
        };
        self.client_actions.iter().filter_map(refused).collect()
    }

    pub fn failed(&self) -> Option<(AdvanceFailReason, bool)> {
        self.actions.iter().rev().find_map(|a| match a {
            LspAdvanceAction::Failed { reason, burnt, .. } => Some((reason.clone(), *burnt)),
            _ => None,
        })
    }

    pub fn blamed(&self) -> Vec<(usize, factory_core::ceremony::ExcludeReason)> {
        let blamed = |a: &LspAdvanceAction| match a {
            LspAdvanceAction::Blamed { client, reason } => Some((self.index(client), reason.clone())),
            _ => None,
        };
        self.actions.iter().filter_map(blamed).collect()
    }

    pub fn position(&self, i: usize) -> u64 {
        self.disk.newest().leaf(i).unwrap().updates
    }

    /// The last advance came to its end, and everybody has it.
    pub fn assert_done(&self) {
        let phase = self.lsp.as_ref().map(LspAdvance::phase);
        assert_eq!(phase, Some(LspAdvancePhase::Done), "{:?} {:?}", self.blamed(), self.refused());
        rules::signatures(&self.disk, &self.disks);
        for i in &self.members {
            assert_eq!(self.disks[*i].newest().path.updates, self.position(*i));
            assert_eq!(self.clients[*i].phase(), ClientAdvancePhase::Idle);
            assert!(self.clients[*i].record() == self.disks[*i].newest());
        }
    }

    pub fn random(&mut self, rng: &mut StdRng) -> bool {
        self.step(rng.random_range(0..64))
    }
}
