//! The provider's machine. See the module above for the order of messages.

mod steps;
mod types;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf};
use bolt_tlv::payload::{self, Payload};
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};

use super::signing::TreeSigning;
use crate::faults::switch;
use crate::musig::{check_partial, PartialBytes, PublicNonce, Signer};
use crate::params::{as_u64, MIN_CLIENTS};
use crate::plan::check_payout_script;
use crate::record::LspFactoryRecord;
use crate::refuse::clip;
use crate::tree::{Layout, Tree};
use crate::Error;

pub use types::{
    ExcludeReason, FailReason, InvitedClient, LspAction, LspConfig, LspInput, ParamsChoice, Phase, Timeouts,
};

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
    nonces: Option<Vec<PublicNonce>>,
    partials: Option<Vec<PartialBytes>>,
    persisted: bool,
    held: bool,
}

impl Round {
    /// Whether the client has stored its exit, and its signature on the first commitment is here.
    fn is_complete(&self) -> bool {
        (self.persisted || switch("lsp.funding.early")) && (self.held || switch("lsp.funding.uncommitted"))
    }
}

/// The provider's side of the creation of one factory.
///
/// [`LspCeremony::handle`] takes any input at any time: what is late or repeated is ignored, what a client may not
/// send excludes it.
pub struct LspCeremony {
    config: LspConfig,
    signer: Signer,
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
        let signer = Signer::new(&config.secret_key)?;
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
            signer,
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
                let reason = ExcludeReason::ChannelFailed { text: clip(reason) };
                Ok(self.channel_failed(client, temporary_channel_id, reason))
            }
            LspInput::ChannelNotMade { client, temporary_channel_id, reason } => {
                let reason = ExcludeReason::ChannelNotMade { text: clip(reason) };
                Ok(self.channel_failed(client, temporary_channel_id, reason))
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
            LspInput::Height(height) => {
                self.config.birth_height = height;
                Ok(Vec::new())
            }
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
                Phase::Persisting if all(|c| c.round.is_complete()) => {
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
        // On the bytes in memory: the usual comparison serializes both.
        self.clients.iter_mut().find(|c| c.id.eq_fast_unstable(&id))
    }

    /// The client, if the channel is one that was opened in the current attempt.
    fn opened_channel(&mut self, id: PublicKey, channel: [u8; 32]) -> Option<&mut Client> {
        self.client(id).filter(|c| c.round.opened && c.round.temporary_channel_id == channel)
    }

    fn message(&mut self, id: PublicKey, message: Payload) -> Result<Guilty, Error> {
        let (phase, attempt, lsp_key) = (self.phase, self.attempt, self.signer.public_key());
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
            clients.iter().any(|c| {
                let other = !c.id.eq_fast_unstable(&id);
                other && c.accepted.as_ref().is_some_and(|(k, _)| k.eq_fast_unstable(key))
            })
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
                if taken && !switch("lsp.accept.key") {
                    return blame(ExcludeReason::DuplicateKey);
                }
                if check_payout_script("payout script", &m.payout_script).is_err()
                    && !switch("lsp.accept.script")
                {
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
                let mut nonces = Vec::with_capacity(m.nonces.len());
                for (session, nonce) in m.nonces.iter().enumerate() {
                    match PublicNonce::read(nonce) {
                        Ok(nonce) => nonces.push(nonce),
                        Err(_) => return blame(ExcludeReason::BadNonce { session: as_u64(session) }),
                    }
                }
                client.round.nonces = Some(nonces);
            }
            Payload::Partials(m) if phase >= Phase::Partials => {
                if client.round.partials.is_some() {
                    return Ok(Vec::new());
                }
                if m.partials.len() != sessions {
                    return blame(length(m.partials.len(), sessions));
                }
                let bad = m.partials.iter().position(|p| check_partial(p).is_err());
                if let Some(session) = bad.filter(|_| !switch("lsp.partials.unchecked")) {
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
            Some(c) if c.round.is_complete() => Vec::new(),
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
            Phase::Persisting => !c.round.is_complete(),
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

    fn channel_failed(&mut self, id: PublicKey, channel: [u8; 32], reason: ExcludeReason) -> Guilty {
        match self.opened_channel(id, channel) {
            Some(_) => vec![(id, reason)],
            None => Vec::new(),
        }
    }
}

fn length(got: usize, expected: usize) -> ExcludeReason {
    ExcludeReason::ListLength { got: as_u64(got), expected: as_u64(expected) }
}

fn send(out: &mut Actions, client: PublicKey, message: impl Into<Payload>) {
    out.push(LspAction::Send { client, payload: message.into() });
}
