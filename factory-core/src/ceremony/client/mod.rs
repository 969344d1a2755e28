//! A client's machine. See the module above for the order of messages.

mod types;

use std::collections::BTreeSet;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, Transaction};
use bolt_tlv::payload::{self, Payload};
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};

use crate::faults::switch;
use crate::musig::{AggregateNonce, SecretSession, Signer};
use crate::params::FUNDING_GIVE_UP;
use crate::path::{ClientPath, ClientPlan};
use crate::plan::check_payout_script;
use crate::record::ClientFactoryRecord;
use crate::refuse::{clip, refuse, Refusal, RefuseCode};
use crate::Error;

pub use types::{ClientAction, ClientConfig, ClientInput, ClientPhase};

/// The client's own channel, as its Lightning node reported it.
struct Channel {
    outpoint: OutPoint,
    script: ScriptBuf,
    capacity_sat: u64,
}

/// What belongs to one attempt.
struct Round {
    plan: ClientPlan,
    temporary_channel_id: [u8; 32],
    path: Option<ClientPath>,
    channel: Option<Channel>,
    /// Taken when signing, so that no nonce can be used twice.
    sessions: Vec<SecretSession>,
    record: Option<ClientFactoryRecord>,
}

type Actions = Vec<ClientAction>;

/// A client's side of the creation of one factory.
///
/// [`ClientCeremony::handle`] takes any input at any time: what is late, repeated or for another factory is
/// ignored; what breaks a check is refused with the check's code.
pub struct ClientCeremony {
    config: ClientConfig,
    signer: Signer,
    rng: StdRng,
    phase: ClientPhase,
    timer: u64,
    instance_id: Option<[u8; 32]>,
    attempt: u16,
    lsp_key: Option<PublicKey>,
    used_channel_ids: BTreeSet<[u8; 32]>,
    /// Funding outputs a tree was rebuilt for, over all attempts.
    used_fundings: BTreeSet<OutPoint>,
    round: Option<Round>,
}

impl ClientCeremony {
    /// A machine that waits for an invitation. `rng` is used once, for a seed that stays in memory.
    ///
    /// # Errors
    /// A bad secret key or a payout script of another type.
    pub fn new<R: RngCore + CryptoRng>(config: ClientConfig, rng: &mut R) -> Result<Self, Error> {
        let signer = Signer::new(&config.secret_key)?;
        check_payout_script("payout script", &config.payout_script)?;
        let mut seed = [0u8; 32];
        rng.fill_bytes(&mut seed);
        Ok(Self {
            config,
            signer,
            rng: StdRng::from_seed(seed),
            phase: ClientPhase::Idle,
            timer: 0,
            instance_id: None,
            attempt: 0,
            lsp_key: None,
            used_channel_ids: BTreeSet::new(),
            used_fundings: BTreeSet::new(),
            round: None,
        })
    }

    /// The phase.
    pub fn phase(&self) -> ClientPhase {
        self.phase
    }

    /// The client's factory key.
    pub fn own_key(&self) -> PublicKey {
        self.signer.public_key()
    }

    /// The factory, once an invitation came.
    pub fn instance_id(&self) -> Option<[u8; 32]> {
        self.instance_id
    }

    /// The attempt the client is in.
    pub fn attempt(&self) -> u16 {
        self.attempt
    }

    /// The checked plan of the current attempt.
    pub fn plan(&self) -> Option<&ClientPlan> {
        self.round.as_ref().map(|r| &r.plan)
    }

    /// The temporary id of the channel that the provider may open now.
    pub fn expected_channel(&self) -> Option<[u8; 32]> {
        let waits = self.phase == ClientPhase::Planned;
        self.round.as_ref().filter(|r| waits && r.channel.is_none()).map(|r| r.temporary_channel_id)
    }

    /// Takes one input and says what to do.
    ///
    /// # Errors
    /// None at present: a failed check comes out as [`ClientAction::Refused`].
    pub fn handle(&mut self, input: ClientInput) -> Result<Actions, Error> {
        let mut out = Vec::new();
        if let ClientInput::Height(height) = input {
            self.config.height = height;
            return Ok(out);
        }
        if matches!(self.phase, ClientPhase::Done | ClientPhase::Failed) {
            return Ok(out);
        }
        let result = match input {
            ClientInput::Message(message) => self.message(message, &mut out),
            ClientInput::ChannelFunded { temporary_channel_id, outpoint, funding_script, capacity_sat } => {
                let channel = Channel { outpoint, script: funding_script, capacity_sat };
                self.channel_funded(temporary_channel_id, channel, &mut out)
            }
            ClientInput::Persisted { attempt } => {
                self.persisted(attempt, &mut out);
                Ok(())
            }
            ClientInput::Timeout { id } => self.timeout(id),
            ClientInput::Disconnected => {
                if !matches!(self.phase, ClientPhase::Idle | ClientPhase::Persisted) {
                    self.abort(None, "connection lost", &mut out);
                }
                Ok(())
            }
            ClientInput::Height(_) => Ok(()),
        };
        if let Err(refusal) = result {
            self.refuse(refusal, &mut out);
        }
        Ok(out)
    }

    fn enter(&mut self, phase: ClientPhase, out: &mut Actions) {
        self.phase = phase;
        self.timer = self.timer.wrapping_add(1);
        let waits = [ClientPhase::Accepted, ClientPhase::Planned, ClientPhase::Nonces, ClientPhase::Partials];
        if waits.contains(&phase) {
            out.push(ClientAction::SetTimer { id: self.timer, seconds: self.config.timeout_secs });
        }
    }

    fn message(&mut self, message: Payload, out: &mut Actions) -> Result<(), Refusal> {
        if let Payload::Invite(invite) = &message {
            return self.invite(invite, out);
        }
        let Some(instance_id) = self.instance_id.filter(|id| message.instance_id() == Some(*id)) else {
            return Ok(());
        };
        let Some(attempt) = message.attempt().filter(|a| *a >= self.attempt) else {
            return Ok(());
        };
        if let Payload::Abort(abort) = message {
            self.abort(Some(abort.code), &abort.text, out);
            return Ok(());
        }
        if let Payload::Plan(plan) = &message {
            let again = attempt == self.attempt && self.phase != ClientPhase::Accepted;
            return if again { Ok(()) } else { self.plan_message(plan, out) };
        }
        if attempt > self.attempt {
            let text = format!("message {} of an attempt that was not planned", message.number());
            return Err(Refusal::new(RefuseCode::Unexpected, text));
        }
        match (message, self.phase) {
            (Payload::Path(path), ClientPhase::Planned) => self.path(&path, out),
            (Payload::AggNonces(m), ClientPhase::Nonces) => self.sign(instance_id, &m.nonces, out),
            (Payload::AggNonces(_), phase)
                if phase > ClientPhase::Nonces && switch("client.nonces.twice") =>
            {
                Ok(())
            }
            (
                Payload::AggNonces(_),
                ClientPhase::Partials | ClientPhase::Persisting | ClientPhase::Persisted,
            ) => Err(Refusal::new(RefuseCode::NonceReuse, "aggregate nonces came twice in one attempt")),
            (Payload::Signed(m), ClientPhase::Partials) => self.signed(&m.signatures, out),
            (Payload::Funded(m), ClientPhase::Persisted) => {
                self.funded(m.transaction, out);
                Ok(())
            }
            // Repetitions.
            (Payload::Path(_), phase) if phase > ClientPhase::Planned => Ok(()),
            (Payload::Signed(_), phase) if phase > ClientPhase::Partials => Ok(()),
            (Payload::UnknownOdd(_), _) => Ok(()),
            (message, phase) => {
                let text = format!("message {} in phase {phase:?}", message.number());
                Err(Refusal::new(RefuseCode::Unexpected, text))
            }
        }
    }

    fn invite(&mut self, invite: &payload::Invite, out: &mut Actions) -> Result<(), Refusal> {
        if self.phase != ClientPhase::Idle {
            return Ok(());
        }
        self.instance_id = Some(invite.instance_id);
        self.attempt = invite.attempt;
        if !self.config.policy.accept {
            return Err(Refusal::new(RefuseCode::NotWanted, "no factory wanted now"));
        }
        self.enter(ClientPhase::Accepted, out);
        out.push(ClientAction::Send(
            payload::Accept {
                instance_id: invite.instance_id,
                attempt: invite.attempt,
                factory_key: self.own_key(),
                payout_script: self.config.payout_script.clone(),
            }
            .into(),
        ));
        Ok(())
    }

    /// A plan, either the first or that of a new attempt, which ends the one before.
    fn plan_message(&mut self, message: &payload::Plan, out: &mut Actions) -> Result<(), Refusal> {
        self.drop_round(out);
        self.attempt = message.attempt;
        let plan = ClientPlan::new(message, self.config.network, &self.own_key())?;
        let lsp_key = plan.keys.first().copied();
        if self.lsp_key.is_some() && self.lsp_key != lsp_key && !switch("client.plan.lsp_key") {
            return Err(Refusal::new(RefuseCode::LspKey, "provider's key changed between attempts"));
        }
        if !switch("client.plan.policy") {
            self.config.policy.check(&plan, self.config.height, &self.config.payout_script)?;
        }
        let own = plan
            .own()
            .cloned()
            .ok_or_else(|| Refusal::new(RefuseCode::LeafMembers, "leaf does not hold this client"))?;
        if !self.used_channel_ids.insert(own.temporary_channel_id) && !switch("client.plan.channel_id") {
            return Err(Refusal::new(RefuseCode::ChannelId, "temporary channel id of an earlier attempt"));
        }
        self.lsp_key = lsp_key;
        let (instance_id, attempt) = (plan.instance_id, plan.attempt);
        self.round = Some(Round {
            plan,
            temporary_channel_id: own.temporary_channel_id,
            path: None,
            channel: None,
            sessions: Vec::new(),
            record: None,
        });
        self.enter(ClientPhase::Planned, out);
        // First be ready for the channel, then ask for it.
        out.push(ClientAction::ExpectChannel {
            temporary_channel_id: own.temporary_channel_id,
            capacity_sat: own.capacity_sat,
            push_msat: own.push_msat,
        });
        out.push(ClientAction::Send(payload::PlanOk { instance_id, attempt }.into()));
        Ok(())
    }

    fn round(&mut self) -> Result<&mut Round, Refusal> {
        self.round.as_mut().ok_or_else(|| Refusal::new(RefuseCode::Internal, "no plan"))
    }

    fn path(&mut self, message: &payload::Path, out: &mut Actions) -> Result<(), Refusal> {
        let round = self.round()?;
        if round.path.is_some() {
            return Ok(());
        }
        let path = ClientPath::build(&round.plan, message)?;
        // Two trees signed for one output would both be valid: the one that pays out the first balances
        // could be published over the other.
        let funding = path.funding_outpoint();
        round.path = Some(path);
        if !self.used_fundings.insert(funding) && !switch("client.path.funding_reused") {
            let text = format!("funding output {funding} of an earlier attempt");
            return Err(Refusal::new(RefuseCode::FundingReused, text));
        }
        self.start_sessions(out)
    }

    fn channel_funded(
        &mut self,
        temporary_channel_id: [u8; 32],
        channel: Channel,
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        let waits = self.phase == ClientPhase::Planned;
        match self.round.as_mut() {
            Some(r) if waits && r.temporary_channel_id == temporary_channel_id && r.channel.is_none() => {
                r.channel = Some(channel);
            }
            _ => return Ok(()),
        }
        self.start_sessions(out)
    }

    /// With the path and the channel there: checks that they belong together, then sends nonces.
    fn start_sessions(&mut self, out: &mut Actions) -> Result<(), Refusal> {
        let Some(round) = self.round.as_mut() else { return Ok(()) };
        let (Some(path), Some(channel)) = (&round.path, &round.channel) else { return Ok(()) };
        let script = path.channel_scripts().get(round.plan.position);
        if script != Some(&channel.script) && !switch("client.channel.script") {
            return Err(Refusal::new(
                RefuseCode::ChannelScript,
                "leaf pays another script than the channel's",
            ));
        }
        if path.channel_outpoint() != channel.outpoint && !switch("client.channel.outpoint") {
            let text =
                format!("channel is over {}, path leads to {}", channel.outpoint, path.channel_outpoint());
            return Err(Refusal::new(RefuseCode::ChannelOutpoint, text));
        }
        let capacity = round.plan.own().map_or(0, |own| own.capacity_sat);
        if capacity != channel.capacity_sat && !switch("client.channel.capacity") {
            let text = format!("channel of {} sat, planned were {capacity}", channel.capacity_sat);
            return Err(Refusal::new(RefuseCode::ChannelCapacity, text));
        }
        let mut sessions = Vec::with_capacity(path.session_count());
        for (node, tx) in path.sessions() {
            let message = tx.sighash().map_err(refuse(RefuseCode::Internal))?;
            sessions.push(
                SecretSession::of(&self.signer, &node.key, message, &mut self.rng)
                    .map_err(refuse(RefuseCode::Internal))?,
            );
        }
        let nonces = sessions.iter().map(SecretSession::public_nonce).collect();
        round.sessions = sessions;
        let (instance_id, attempt) = (round.plan.instance_id, round.plan.attempt);
        self.enter(ClientPhase::Nonces, out);
        out.push(ClientAction::Send(payload::Nonces { instance_id, attempt, nonces }.into()));
        Ok(())
    }

    fn sign(&mut self, instance_id: [u8; 32], nonces: &[[u8; 66]], out: &mut Actions) -> Result<(), Refusal> {
        let attempt = self.attempt;
        let round = self.round()?;
        // From here on the nonces are used up, whatever happens.
        let sessions = std::mem::take(&mut round.sessions);
        let path = round.path.as_ref().ok_or_else(|| Refusal::new(RefuseCode::Internal, "no path"))?;
        if nonces.len() != sessions.len() || sessions.len() != path.session_count() {
            let text = format!("{} aggregate nonces, expected {}", nonces.len(), path.session_count());
            return Err(Refusal::new(RefuseCode::ListLength, text));
        }
        let read = nonces.iter().map(AggregateNonce::read).collect::<Result<Vec<_>, _>>();
        let nonces = read.map_err(refuse(RefuseCode::AggregateNonce))?;
        let mut partials = Vec::with_capacity(sessions.len());
        for ((session, (node, _)), nonce) in sessions.into_iter().zip(path.sessions()).zip(&nonces) {
            let (partial, _) =
                session.sign_in(&node.key, nonce).map_err(refuse(RefuseCode::AggregateNonce))?;
            partials.push(partial);
        }
        self.enter(ClientPhase::Partials, out);
        out.push(ClientAction::Send(payload::Partials { instance_id, attempt, partials }.into()));
        Ok(())
    }

    fn signed(&mut self, signatures: &[[u8; 64]], out: &mut Actions) -> Result<(), Refusal> {
        let own_key = self.own_key();
        let round = self.round()?;
        let path = round.path.as_ref().ok_or_else(|| Refusal::new(RefuseCode::Internal, "no path"))?;
        let record = ClientFactoryRecord::assemble(&round.plan, path, own_key, signatures)
            .map_err(refuse(RefuseCode::ListLength))?;
        // Every signature, and once more that the transactions form one chain.
        if !switch("client.signatures.unchecked") {
            record.path.verify().map_err(refuse(RefuseCode::Signature))?;
        }
        round.record = Some(record.clone());
        self.enter(ClientPhase::Persisting, out);
        if switch("client.persisted.early") {
            self.persisted(self.attempt, out);
        }
        out.push(ClientAction::PersistRecord(Box::new(record)));
        Ok(())
    }

    fn persisted(&mut self, attempt: u16, out: &mut Actions) {
        if self.phase != ClientPhase::Persisting || attempt != self.attempt {
            return;
        }
        let Some(record) = self.round.as_ref().and_then(|r| r.record.clone()) else { return };
        let instance_id = record.path.instance_id;
        self.enter(ClientPhase::Persisted, out);
        out.push(ClientAction::Send(payload::Persisted { instance_id, attempt }.into()));
        out.push(ClientAction::Completed { record: Box::new(record) });
    }

    fn funded(&mut self, transaction: Transaction, out: &mut Actions) {
        let Some(record) = self.round.as_ref().and_then(|r| r.record.as_ref()) else { return };
        let funding = &record.path.funding;
        let vout = usize::try_from(funding.outpoint.vout).unwrap_or(usize::MAX);
        let pays = transaction.output.get(vout) == Some(&funding.tx_out());
        // Anything else says nothing; the chain will tell.
        if pays && transaction.compute_txid() == funding.outpoint.txid {
            self.enter(ClientPhase::Done, out);
            out.push(ClientAction::FundingSeen { transaction: Box::new(transaction) });
        }
    }

    fn timeout(&self, id: u64) -> Result<(), Refusal> {
        let waits =
            !matches!(self.phase, ClientPhase::Idle | ClientPhase::Persisting | ClientPhase::Persisted);
        if waits && id == self.timer {
            let text = format!("provider took too long in phase {:?}", self.phase);
            return Err(Refusal::new(RefuseCode::Timeout, text));
        }
        Ok(())
    }

    fn drop_round(&mut self, out: &mut Actions) {
        if let Some(round) = self.round.take() {
            if let Some(record) = round.record.filter(|_| !switch("client.superseded.dropped")) {
                // What is stored stays usable: only the provider knows whether its funding transaction is void.
                let until_height = record.path.birth_height.saturating_add(FUNDING_GIVE_UP);
                out.push(ClientAction::KeepSuperseded { record: Box::new(record), until_height });
            }
            out.push(ClientAction::ForgetChannel { temporary_channel_id: round.temporary_channel_id });
        }
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Actions) {
        self.drop_round(out);
        if let Some(instance_id) = self.instance_id {
            let decline = payload::Decline {
                instance_id,
                attempt: self.attempt,
                code: refusal.code.number(),
                text: refusal.text.clone(),
            };
            out.push(ClientAction::Send(decline.into()));
        }
        self.enter(ClientPhase::Failed, out);
        out.push(ClientAction::Refused { code: refusal.code, text: refusal.text });
    }

    fn abort(&mut self, code: Option<u16>, text: &str, out: &mut Actions) {
        self.drop_round(out);
        self.enter(ClientPhase::Failed, out);
        out.push(ClientAction::Aborted { code, text: clip(text) });
    }
}
