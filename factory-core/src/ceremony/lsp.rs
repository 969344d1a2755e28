//! The provider's machine. See the module above for the order of messages.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf};
use bolt_tlv::payload::{self, Payload};
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};

use super::lsp_types::*;
use super::messages::{path_message, plan_message};
use super::signing::{Finished, TreeSigning};
use crate::lifetime::Lifetime;
use crate::musig::{check_nonce, check_partial, public_key, NonceBytes, PartialBytes};
use crate::params::{as_u64, MIN_CLIENTS};
use crate::plan::{check_payout_script, FactoryPlan, LeafMember, Member, PlanParts};
use crate::record::LspFactoryRecord;
use crate::refuse::clip;
use crate::tree::{Layout, Tree};
use crate::Error;

/// A client that takes part.
struct Client {
    id: PublicKey,
    capacity_sat: u64,
    push_msat: u64,
    /// Kept over attempts.
    accepted: Option<(PublicKey, ScriptBuf)>,
    round: Round,
}

/// What a client has done in the current attempt.
#[derive(Default)]
struct Round {
    temporary_channel_id: [u8; 32],
    planned: bool,
    opened: bool,
    script: Option<ScriptBuf>,
    outpoint: Option<OutPoint>,
    nonces: Option<Vec<NonceBytes>>,
    partials: Option<Vec<PartialBytes>>,
    persisted: bool,
    held: bool,
}

/// The provider's side of the creation of one factory.
///
/// [`LspCeremony::handle`] takes any input at any time: what is late or repeated is ignored, what a client may not
/// send excludes it.
pub struct LspCeremony {
    config: LspConfig,
    lsp_key: PublicKey,
    rng: StdRng,
    phase: Phase,
    attempt: u16,
    timer: u64,
    clients: Vec<Client>,
    layout: Option<Layout>,
    funding_asked: bool,
    tree: Option<Tree>,
    signing: Option<TreeSigning>,
    record: Option<LspFactoryRecord>,
}

type Actions = Vec<LspAction>;
/// Clients to exclude.
type Guilty = Vec<(PublicKey, ExcludeReason)>;

impl LspCeremony {
    /// Starts a ceremony. The first actions invite the clients. `rng` is used once, for a seed that stays in memory.
    ///
    /// # Errors
    /// A bad secret key, fewer than two clients to start with or as the minimum, or a client invited twice.
    pub fn new<R: RngCore + CryptoRng>(config: LspConfig, rng: &mut R) -> Result<(Self, Actions), Error> {
        let lsp_key = public_key(&config.secret_key)?;
        let need = as_u64(config.min_clients.max(MIN_CLIENTS));
        let most = as_u64(crate::params::MAX_CLIENTS);
        crate::params::range("min_clients", as_u64(config.min_clients), as_u64(MIN_CLIENTS), most)?;
        crate::params::range("clients", as_u64(config.clients.len()), need, most)?;
        let ids: Vec<_> = config.clients.iter().map(|c| c.node_id).collect();
        crate::plan::check_distinct(&ids)?;
        let mut seed = [0u8; 32];
        rng.fill_bytes(&mut seed);
        let clients = config
            .clients
            .iter()
            .map(|c| Client {
                id: c.node_id,
                capacity_sat: c.capacity_sat,
                push_msat: c.push_msat,
                accepted: None,
                round: Round::default(),
            })
            .collect();
        let mut machine = Self {
            config,
            lsp_key,
            rng: StdRng::from_seed(seed),
            phase: Phase::Inviting,
            attempt: 0,
            timer: 0,
            clients,
            layout: None,
            funding_asked: false,
            tree: None,
            signing: None,
            record: None,
        };
        let mut out = Vec::new();
        machine.enter(Phase::Inviting, Some(machine.config.timeouts.invite), &mut out);
        let (instance_id, attempt) = (machine.config.instance_id, machine.attempt);
        for client in &machine.clients {
            send(&mut out, client.id, payload::Invite { instance_id, attempt });
        }
        Ok((machine, out))
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The current attempt.
    pub fn attempt(&self) -> u16 {
        self.attempt
    }

    /// The node ids of the clients that take part, in tree order.
    pub fn clients(&self) -> Vec<PublicKey> {
        self.clients.iter().map(|c| c.id).collect()
    }

    /// The record, once all signatures are verified.
    pub fn record(&self) -> Option<&LspFactoryRecord> {
        self.record.as_ref()
    }

    /// Takes one input and says what to do. After `Done` or `Failed` nothing happens any more.
    ///
    /// # Errors
    /// None at present: a failure on our own side comes out as [`LspAction::Failed`], so that channels are closed
    /// and clients told.
    pub fn handle(&mut self, input: LspInput) -> Result<Actions, Error> {
        let mut out = Vec::new();
        if matches!(self.phase, Phase::Done | Phase::Failed) {
            return Ok(out);
        }
        let done = match input {
            LspInput::Message { client, payload } => self.message(client, payload),
            LspInput::ClientGone { client } => Ok(self.client_gone(client)),
            LspInput::Timeout { id } => self.timeout(id, &mut out),
            LspInput::ChannelScript { client, temporary_channel_id, script } => {
                Ok(self.channel_script(client, temporary_channel_id, script))
            }
            LspInput::ChannelFailed { client, temporary_channel_id, reason } => {
                Ok(self.channel_failed(client, temporary_channel_id, &reason))
            }
            LspInput::FundingBuilt { outpoint, script, value_sat } => {
                self.funding_built(outpoint, &script, value_sat, &mut out)
            }
            LspInput::FundingFailed { reason } => {
                if self.phase == Phase::Funding {
                    self.fail(FailReason::Funding(reason), &mut out);
                }
                Ok(Vec::new())
            }
            LspInput::CommitmentHeld { client, temporary_channel_id } => {
                if let Some(c) = self.opened_channel(client, temporary_channel_id) {
                    c.round.held = c.round.outpoint.is_some();
                }
                Ok(Vec::new())
            }
            LspInput::RecordPersisted { attempt } => self.record_persisted(attempt, &mut out),
            LspInput::Cancel => {
                self.fail(FailReason::Cancelled, &mut out);
                Ok(Vec::new())
            }
        };
        let result = done.and_then(|guilty| self.proceed(guilty, &mut out));
        if let Err(error) = result {
            self.fail(FailReason::Internal(error), &mut out);
        }
        Ok(out)
    }

    /// Excludes the guilty, and takes every step that is due now.
    fn proceed(&mut self, mut guilty: Guilty, out: &mut Actions) -> Result<(), Error> {
        loop {
            if matches!(self.phase, Phase::Done | Phase::Failed) {
                return Ok(());
            }
            if !guilty.is_empty() {
                self.exclude(std::mem::take(&mut guilty), out)?;
                continue;
            }
            let all = |f: fn(&Client) -> bool| self.clients.iter().all(f);
            match self.phase {
                Phase::Inviting if all(|c| c.accepted.is_some()) => self.plan(out)?,
                Phase::Planning if all(|c| c.round.planned) => self.open(out),
                Phase::Opening if all(|c| c.round.script.is_some()) => self.ask_funding(out)?,
                Phase::Nonces if all(|c| c.round.nonces.is_some()) => self.aggregate(out)?,
                Phase::Partials if all(|c| c.round.partials.is_some()) => guilty = self.finish(out)?,
                Phase::Persisting if all(|c| c.round.persisted && c.round.held) => {
                    out.push(LspAction::BroadcastFunding);
                    self.enter(Phase::Done, None, out);
                    out.push(LspAction::Done);
                }
                _ => return Ok(()),
            }
        }
    }

    fn enter(&mut self, phase: Phase, seconds: Option<u32>, out: &mut Actions) {
        self.phase = phase;
        // Also without a new timer: an old one means nothing in the new phase.
        self.timer = self.timer.wrapping_add(1);
        out.push(LspAction::Progress(phase));
        if let Some(seconds) = seconds {
            out.push(LspAction::SetTimer { id: self.timer, seconds });
        }
    }

    fn client(&mut self, id: PublicKey) -> Option<&mut Client> {
        self.clients.iter_mut().find(|c| c.id == id)
    }

    /// The client, if the channel is one that was opened in the current attempt.
    fn opened_channel(&mut self, id: PublicKey, channel: [u8; 32]) -> Option<&mut Client> {
        self.client(id).filter(|c| c.round.opened && c.round.temporary_channel_id == channel)
    }

    // ------------------------------------------------------------------ inputs

    fn message(&mut self, id: PublicKey, message: Payload) -> Result<Guilty, Error> {
        let (phase, attempt, lsp_key) = (self.phase, self.attempt, self.lsp_key);
        let number = message.number();
        if message.instance_id() != Some(self.config.instance_id) {
            return Ok(Vec::new());
        }
        let blame = |reason| Ok(vec![(id, reason)]);
        // The provider starts every attempt, so a client cannot be ahead of it.
        match message.attempt() {
            Some(of) if of < attempt => return Ok(Vec::new()),
            Some(of) if of > attempt && self.client(id).is_some() => {
                return blame(ExcludeReason::Unexpected { number });
            }
            Some(_) => {}
            None => return Ok(Vec::new()),
        }
        let sessions = self.tree.as_ref().map_or(0, TreeSigning::path_sessions);
        let taken = |key: &PublicKey, clients: &[Client]| {
            clients.iter().any(|c| c.id != id && c.accepted.as_ref().is_some_and(|(k, _)| k == key))
        };
        let taken = match &message {
            Payload::Accept(m) => m.factory_key == lsp_key || taken(&m.factory_key, &self.clients),
            _ => false,
        };
        let Some(client) = self.client(id) else {
            return Ok(Vec::new());
        };
        match message {
            Payload::Accept(m) => {
                if phase != Phase::Inviting || client.accepted.is_some() {
                    return Ok(Vec::new());
                }
                if taken {
                    return blame(ExcludeReason::DuplicateKey);
                }
                if check_payout_script("payout script", &m.payout_script).is_err() {
                    return blame(ExcludeReason::PayoutScript);
                }
                client.accepted = Some((m.factory_key, m.payout_script));
            }
            Payload::Decline(m) => {
                return blame(ExcludeReason::Declined { code: m.code, text: clip(m.text) });
            }
            Payload::PlanOk(_) if phase >= Phase::Planning => client.round.planned = true,
            Payload::Nonces(m) if phase >= Phase::Nonces => {
                if client.round.nonces.is_some() {
                    return Ok(Vec::new());
                }
                if m.nonces.len() != sessions {
                    return blame(length(m.nonces.len(), sessions));
                }
                if let Some(session) = m.nonces.iter().position(|n| check_nonce(n).is_err()) {
                    return blame(ExcludeReason::BadNonce { session: as_u64(session) });
                }
                client.round.nonces = Some(m.nonces);
            }
            Payload::Partials(m) if phase >= Phase::Partials => {
                if client.round.partials.is_some() {
                    return Ok(Vec::new());
                }
                if m.partials.len() != sessions {
                    return blame(length(m.partials.len(), sessions));
                }
                if let Some(session) = m.partials.iter().position(|p| check_partial(p).is_err()) {
                    return blame(ExcludeReason::BadPartial { session: as_u64(session) });
                }
                client.round.partials = Some(m.partials);
            }
            Payload::Persisted(_) if phase >= Phase::Persisting => client.round.persisted = true,
            _ => return blame(ExcludeReason::Unexpected { number }),
        }
        Ok(Vec::new())
    }

    fn client_gone(&mut self, id: PublicKey) -> Guilty {
        match self.client(id) {
            // It has all it needs; it need not be there for the broadcast.
            Some(c) if c.round.persisted && c.round.held => Vec::new(),
            Some(_) => vec![(id, ExcludeReason::Gone)],
            None => Vec::new(),
        }
    }

    fn timeout(&mut self, id: u64, out: &mut Actions) -> Result<Guilty, Error> {
        if id != self.timer {
            return Ok(Vec::new());
        }
        let phase = self.phase;
        let late = |c: &&Client| match phase {
            Phase::Inviting => c.accepted.is_none(),
            Phase::Planning => !c.round.planned,
            Phase::Opening => c.round.script.is_none(),
            Phase::Nonces => c.round.nonces.is_none(),
            Phase::Partials => c.round.partials.is_none(),
            Phase::Persisting => !c.round.persisted || !c.round.held,
            Phase::Funding | Phase::Recording | Phase::Done | Phase::Failed => false,
        };
        let guilty: Guilty =
            self.clients.iter().filter(late).map(|c| (c.id, ExcludeReason::Timeout { phase })).collect();
        if phase == Phase::Funding {
            self.fail(FailReason::Funding("not built in time".into()), out);
        }
        Ok(guilty)
    }

    fn channel_script(&mut self, id: PublicKey, channel: [u8; 32], script: ScriptBuf) -> Guilty {
        if self.phase != Phase::Opening {
            return Vec::new();
        }
        match self.opened_channel(id, channel) {
            Some(_) if !script.is_p2wsh() => {
                vec![(id, ExcludeReason::ChannelFailed { text: "funding script is not p2wsh".into() })]
            }
            Some(client) => {
                client.round.script.get_or_insert(script);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn channel_failed(&mut self, id: PublicKey, channel: [u8; 32], reason: &str) -> Guilty {
        match self.opened_channel(id, channel) {
            Some(_) => vec![(id, ExcludeReason::ChannelFailed { text: clip(reason) })],
            None => Vec::new(),
        }
    }

    // ------------------------------------------------------------------ steps

    /// Invites are answered, or an attempt failed: a new plan for those who are left.
    fn plan(&mut self, out: &mut Actions) -> Result<(), Error> {
        let params = self.config.params.params_for(self.clients.len())?;
        let life = Lifetime::new(self.config.birth_height, &params, self.clients.len())?;
        let mut members = Vec::with_capacity(self.clients.len());
        for client in &mut self.clients {
            client.round = Round::default();
            self.rng.fill_bytes(&mut client.round.temporary_channel_id);
            let (key, payout_script) =
                client.accepted.clone().ok_or(Error::Mismatch { what: "list of those who accepted" })?;
            members.push(Member {
                key,
                share: LeafMember {
                    capacity_sat: client.capacity_sat,
                    push_msat: client.push_msat,
                    payout_script,
                    temporary_channel_id: client.round.temporary_channel_id,
                },
            });
        }
        let plan = FactoryPlan::new(PlanParts {
            instance_id: self.config.instance_id,
            params,
            birth_height: self.config.birth_height,
            expiry_height: life.expiry(),
            lsp_key: self.lsp_key,
            members,
            leaf_stock_sat: self.config.leaf_stock_sat,
            stock_script: self.config.stock_script.clone(),
        })?;
        self.enter(Phase::Planning, Some(self.config.timeouts.plan), out);
        for (index, client) in self.clients.iter().enumerate() {
            send(out, client.id, plan_message(&plan, self.attempt, index)?);
        }
        self.layout = Some(Layout::new(plan)?);
        Ok(())
    }

    fn open(&mut self, out: &mut Actions) {
        self.enter(Phase::Opening, Some(self.config.timeouts.open), out);
        for client in &mut self.clients {
            client.round.opened = true;
            out.push(LspAction::OpenChannel {
                client: client.id,
                temporary_channel_id: client.round.temporary_channel_id,
                capacity_sat: client.capacity_sat,
                push_msat: client.push_msat,
            });
        }
    }

    fn ask_funding(&mut self, out: &mut Actions) -> Result<(), Error> {
        let layout = self.layout.as_ref().ok_or(Error::Empty { what: "layout" })?;
        let output = layout.funding_output()?;
        self.funding_asked = true;
        self.enter(Phase::Funding, Some(self.config.timeouts.funding), out);
        out.push(LspAction::BuildFunding { script: output.script_pubkey, value_sat: output.value.to_sat() });
        Ok(())
    }

    fn funding_built(
        &mut self,
        outpoint: OutPoint,
        script: &ScriptBuf,
        value_sat: u64,
        out: &mut Actions,
    ) -> Result<Guilty, Error> {
        if self.phase != Phase::Funding {
            return Ok(Vec::new());
        }
        let layout = self.layout.take().ok_or(Error::Empty { what: "layout" })?;
        let output = layout.funding_output()?;
        if output.script_pubkey != *script {
            // Of an earlier attempt.
            self.layout = Some(layout);
            return Ok(Vec::new());
        }
        let expected = output.value.to_sat();
        if value_sat != expected {
            return Err(Error::Value { what: "funding output", got: value_sat, expected });
        }
        let scripts: Vec<_> =
            self.clients.iter().map(|c| c.round.script.clone().unwrap_or_default()).collect();
        let tree = layout.build(&scripts, outpoint)?;
        self.enter(Phase::Nonces, Some(self.config.timeouts.nonces), out);
        for (index, client) in self.clients.iter_mut().enumerate() {
            send(out, client.id, path_message(&tree, self.attempt, index)?);
            let outpoint = tree.channel_outpoint(index)?;
            client.round.outpoint = Some(outpoint);
            out.push(LspAction::FundChannel {
                client: client.id,
                temporary_channel_id: client.round.temporary_channel_id,
                outpoint,
            });
        }
        self.tree = Some(tree);
        Ok(Vec::new())
    }

    fn nonces(&self) -> Vec<Vec<NonceBytes>> {
        self.clients.iter().map(|c| c.round.nonces.clone().unwrap_or_default()).collect()
    }

    fn aggregate(&mut self, out: &mut Actions) -> Result<(), Error> {
        let tree = self.tree.as_ref().ok_or(Error::Empty { what: "tree" })?;
        let signing = TreeSigning::start(tree, &self.config.secret_key, &self.nonces(), &mut self.rng)?;
        let (instance_id, attempt) = (self.config.instance_id, self.attempt);
        let mut messages = Vec::with_capacity(self.clients.len());
        for (index, client) in self.clients.iter().enumerate() {
            let nonces = signing.aggregates_for(tree, index)?;
            messages.push((client.id, payload::AggNonces { instance_id, attempt, nonces }));
        }
        self.signing = Some(signing);
        self.enter(Phase::Partials, Some(self.config.timeouts.partials), out);
        for (client, message) in messages {
            send(out, client, message);
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Actions) -> Result<Guilty, Error> {
        let tree = self.tree.as_ref().ok_or(Error::Empty { what: "tree" })?;
        let signing = self.signing.take().ok_or(Error::Empty { what: "sessions" })?;
        let partials: Vec<_> =
            self.clients.iter().map(|c| c.round.partials.clone().unwrap_or_default()).collect();
        match signing.finish(tree, &self.nonces(), &partials)? {
            Finished::Culprits(culprits) => {
                let mut guilty: BTreeMap<usize, usize> = culprits;
                let named = self.clients.iter().enumerate().filter_map(|(index, client)| {
                    let session = as_u64(guilty.remove(&index)?);
                    Some((client.id, ExcludeReason::WrongPartial { session }))
                });
                Ok(named.collect())
            }
            Finished::Signed(signatures) => {
                let ids = self.clients.iter().map(|c| c.id).collect();
                let record = LspFactoryRecord::assemble(tree, self.attempt, ids, &signatures)?;
                self.record = Some(record.clone());
                self.enter(Phase::Recording, None, out);
                out.push(LspAction::PersistRecord(Box::new(record)));
                Ok(Vec::new())
            }
        }
    }

    fn record_persisted(&mut self, attempt: u16, out: &mut Actions) -> Result<Guilty, Error> {
        if self.phase != Phase::Recording || attempt != self.attempt {
            return Ok(Vec::new());
        }
        let record = self.record.as_ref().ok_or(Error::Empty { what: "record" })?;
        let tree = self.tree.as_ref().ok_or(Error::Empty { what: "tree" })?;
        let instance_id = self.config.instance_id;
        let mut messages = Vec::with_capacity(self.clients.len());
        for (index, client) in self.clients.iter().enumerate() {
            let mut signatures = Vec::new();
            for position in tree.path_nodes(index)? {
                let node = record.nodes.get(position).ok_or(Error::Mismatch { what: "signed tree" })?;
                for tx in node.txs.iter().chain(&node.distributions) {
                    let signature = tx.tx.input.first().and_then(|i| i.witness.nth(0));
                    let signature = signature.and_then(|s| <[u8; 64]>::try_from(s).ok());
                    signatures.push(signature.ok_or(Error::Mismatch { what: "signed tree" })?);
                }
            }
            messages.push((client.id, payload::Signed { instance_id, attempt, signatures }));
        }
        self.enter(Phase::Persisting, Some(self.config.timeouts.persist), out);
        for (client, message) in messages {
            send(out, client, message);
        }
        Ok(Vec::new())
    }

    // ------------------------------------------------------------------ failure

    /// Undoes the attempt: channels closed, funding given up.
    fn tear_down(&mut self, out: &mut Actions) {
        for client in &mut self.clients {
            let round = std::mem::take(&mut client.round);
            if round.opened {
                out.push(LspAction::CloseChannel {
                    client: client.id,
                    temporary_channel_id: round.temporary_channel_id,
                    outpoint: round.outpoint,
                });
            }
        }
        if std::mem::take(&mut self.funding_asked) {
            out.push(LspAction::ReleaseFunding);
        }
        self.layout = None;
        self.tree = None;
        self.signing = None;
        self.record = None;
    }

    fn exclude(&mut self, guilty: Guilty, out: &mut Actions) -> Result<(), Error> {
        self.tear_down(out);
        for (id, reason) in guilty {
            let Some(position) = self.clients.iter().position(|c| c.id == id) else { continue };
            let client = self.clients.remove(position);
            let abort = payload::Abort {
                instance_id: self.config.instance_id,
                attempt: self.attempt,
                code: reason.code(),
                text: clip(&reason),
                culprit: client.accepted.map(|(key, _)| key),
            };
            send(out, id, abort);
            out.push(LspAction::Excluded { client: id, reason });
        }
        let (have, need) = (self.clients.len(), self.config.min_clients);
        if have < need {
            self.fail(FailReason::TooFewClients { have, need }, out);
            return Ok(());
        }
        if self.phase == Phase::Inviting {
            return Ok(());
        }
        self.attempt = self.attempt.checked_add(1).ok_or(Error::Overflow { field: "attempt" })?;
        self.plan(out)
    }

    fn fail(&mut self, reason: FailReason, out: &mut Actions) {
        self.tear_down(out);
        for client in &self.clients {
            let abort = payload::Abort {
                instance_id: self.config.instance_id,
                attempt: self.attempt,
                code: reason.code(),
                text: clip(&reason),
                culprit: None,
            };
            send(out, client.id, abort);
        }
        self.enter(Phase::Failed, None, out);
        out.push(LspAction::Failed { reason });
    }
}

fn length(got: usize, expected: usize) -> ExcludeReason {
    ExcludeReason::ListLength { got: as_u64(got), expected: as_u64(expected) }
}

fn send(out: &mut Actions, client: PublicKey, message: impl Into<Payload>) {
    out.push(LspAction::Send { client, payload: message.into() });
}
