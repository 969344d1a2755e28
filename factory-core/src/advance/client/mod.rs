//! A client's machine for advances. See the module above for the order of messages.

mod types;

use bitcoin::secp256k1::PublicKey;
use bitcoin::ScriptBuf;
use bolt_tlv::payload::{self, Payload};
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};

use super::check::{NewPath, Proposal};
use super::lsp::AdvanceReason;
use super::record::{ClientAdvanceState, PendingAdvance};
use crate::faults::switch;
use crate::musig::{AggregateNonce, EarlySession, PartialBytes, Signer};
use crate::node::Node;
use crate::record::{ClientFactoryRecord, RECORD_VERSION};
use crate::refuse::{clip, refuse, Refusal, RefuseCode};
use crate::transaction::TreeTx;
use crate::Error;

pub use types::{ClientAdvanceAction, ClientAdvanceConfig, ClientAdvanceInput, ClientAdvancePhase};

/// What belongs to one try, up to its outer partial signatures.
struct Round {
    proposal: Proposal,
    /// Taken when signing, so that no nonce can be used twice.
    inner: Vec<EarlySession>,
    outer: Vec<EarlySession>,
    script: Option<ScriptBuf>,
    tree: Option<payload::AdvanceTree>,
    path: Option<NewPath>,
    covered: bool,
    nonces: Option<payload::AdvanceAggNonces>,
    /// Made with the inner ones, and kept here until these are complete and stored.
    partials: Vec<PartialBytes>,
}

type Actions = Vec<ClientAdvanceAction>;

/// A client's side of the advances of one factory, one after the other.
///
/// [`ClientAdvance::handle`] takes any input at any time: what is late, repeated or for another factory is ignored;
/// what breaks a check is refused with the check's code.
pub struct ClientAdvance {
    config: ClientAdvanceConfig,
    state: ClientAdvanceState,
    signer: Signer,
    rng: StdRng,
    phase: ClientAdvancePhase,
    /// The newest try that was answered; nonces are drawn at most once for a try.
    attempt: Option<u16>,
    round: Option<Round>,
    /// The complete record while it is being stored.
    complete: Option<(u16, ClientFactoryRecord)>,
}

impl ClientAdvance {
    /// A machine that waits for a proposal, or after a restart to hear how a try ended.
    ///
    /// # Errors
    /// A secret key that is not the record's, or a state that is not of this factory.
    pub fn new<R: RngCore + CryptoRng>(mut config: ClientAdvanceConfig, rng: &mut R) -> Result<Self, Error> {
        let signer = Signer::new(&config.secret_key)?;
        if signer.public_key() != config.record.own_key {
            return Err(Error::Mismatch { what: "client's factory key" });
        }
        let instance_id = config.record.path.instance_id;
        let mut state = config.state.take().unwrap_or_else(|| ClientAdvanceState::new(instance_id));
        if state.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: state.version, known: RECORD_VERSION });
        }
        if state.instance_id != instance_id {
            return Err(Error::Mismatch { what: "stored state of the advances" });
        }
        // It may have died between the record and the state.
        let done = |p: &PendingAdvance| p.record.path.updates == config.record.path.updates;
        if let Some(done) = state.pending.iter().position(done) {
            state.completed = Some(state.pending.remove(done).attempt);
        }
        let attempt = state.pending.iter().map(|p| p.attempt).chain(state.completed).max();
        let mut seed = [0u8; 32];
        rng.fill_bytes(&mut seed);
        Ok(Self {
            config,
            state,
            signer,
            rng: StdRng::from_seed(seed),
            phase: ClientAdvancePhase::Idle,
            attempt,
            round: None,
            complete: None,
        })
    }

    /// The phase.
    pub fn phase(&self) -> ClientAdvancePhase {
        self.phase
    }

    /// The newest complete record.
    pub fn record(&self) -> &ClientFactoryRecord {
        &self.config.record
    }

    /// Tries that the provider may complete, oldest first.
    pub fn pending(&self) -> &[PendingAdvance] {
        &self.state.pending
    }

    /// The client's factory key.
    pub fn own_key(&self) -> PublicKey {
        self.signer.public_key()
    }

    /// The newest position of which anybody may have a complete state.
    fn newest(&self) -> u64 {
        let pending = self.state.pending.iter().map(|p| p.record.path.updates);
        pending.max().unwrap_or(0).max(self.config.record.path.updates)
    }

    /// The newest pending try, if it is newer than the newest complete record. As long as there is one, the channel
    /// stays as it is: nobody but the provider knows which state is the newest.
    pub fn unresolved(&self) -> Option<&PendingAdvance> {
        let updates = self.config.record.path.updates;
        self.state.pending.iter().rfind(|p| p.record.path.updates > updates)
    }

    /// Takes one input and says what to do.
    ///
    /// # Errors
    /// None at present: a failed check comes out as [`ClientAdvanceAction::Refused`].
    pub fn handle(&mut self, input: ClientAdvanceInput) -> Result<Actions, Error> {
        let mut out = Vec::new();
        let result = match input {
            ClientAdvanceInput::Message(message) => self.message(message, &mut out),
            ClientAdvanceInput::Policy(policy) => {
                self.config.policy = policy;
                Ok(())
            }
            ClientAdvanceInput::ChannelPrepared { attempt, script } => {
                self.prepared(attempt, script, &mut out)
            }
            ClientAdvanceInput::Covered { attempt } => self.covered(attempt, &mut out),
            ClientAdvanceInput::InnerPersisted { attempt } => {
                self.inner_persisted(attempt, &mut out);
                Ok(())
            }
            ClientAdvanceInput::RecordPersisted { attempt } => {
                self.record_persisted(attempt, &mut out);
                Ok(())
            }
            ClientAdvanceInput::Connected => {
                let waits = self.phase == ClientAdvancePhase::Idle;
                if let Some(attempt) = self.unresolved().filter(|_| waits).map(|p| p.attempt) {
                    let instance_id = self.state.instance_id;
                    out.push(ClientAdvanceAction::Send(
                        payload::AdvanceResume { instance_id, attempt }.into(),
                    ));
                }
                Ok(())
            }
            ClientAdvanceInput::Disconnected => {
                self.abort(None, "connection lost", &mut out);
                Ok(())
            }
            ClientAdvanceInput::Cancel { text } => self.cancel(text),
        };
        if let Err(refusal) = result {
            self.refuse(refusal, &mut out);
        }
        Ok(out)
    }

    fn cancel(&self, text: String) -> Result<(), Refusal> {
        let early = self.round.is_some() && self.phase < ClientAdvancePhase::Outer;
        if early {
            return Err(Refusal::new(RefuseCode::Internal, text));
        }
        Ok(())
    }

    /// The try's machine is in this phase with it.
    fn is_at(&self, attempt: u16, phase: ClientAdvancePhase) -> bool {
        self.attempt == Some(attempt) && self.phase == phase
    }

    fn message(&mut self, message: Payload, out: &mut Actions) -> Result<(), Refusal> {
        if message.instance_id() != Some(self.state.instance_id) {
            return Ok(());
        }
        let Some(attempt) = message.attempt() else { return Ok(()) };
        if let Payload::AdvanceSigned(m) = message {
            return self.signed(attempt, &m.signatures, out);
        }
        if let Payload::AdvancePropose(m) = message {
            return self.propose(&m, out);
        }
        let phase = self.phase;
        if self.attempt != Some(attempt) || phase == ClientAdvancePhase::Recording {
            return Ok(());
        }
        match (message, phase) {
            (Payload::AdvanceAbort(m), _) => {
                self.abort(Some(m.code), &m.text, out);
                Ok(())
            }
            (Payload::AdvanceTree(m), ClientAdvancePhase::Agreed) => {
                if let Some(round) = self.round.as_mut() {
                    round.tree.get_or_insert(m);
                }
                self.rebuild(out)
            }
            (Payload::AdvanceAggNonces(m), ClientAdvancePhase::Covering | ClientAdvancePhase::Agreed) => {
                let Some(round) = self.round.as_mut() else { return Ok(()) };
                if round.nonces.is_some() && !switch("client.advance.nonces_twice") {
                    return Err(Refusal::new(
                        RefuseCode::NonceReuse,
                        "aggregate nonces came twice in one try",
                    ));
                }
                round.nonces = Some(m);
                self.sign(out)
            }
            (Payload::AdvanceAggNonces(_), ClientAdvancePhase::Inner | ClientAdvancePhase::Storing)
                if !switch("client.advance.nonces_twice") =>
            {
                Err(Refusal::new(RefuseCode::NonceReuse, "aggregate nonces came twice in one try"))
            }
            (Payload::AdvanceInner(m), ClientAdvancePhase::Inner) => self.inner(&m.signatures, out),
            (
                message @ (Payload::AdvanceInner(_) | Payload::AdvanceTree(_)),
                ClientAdvancePhase::Agreed | ClientAdvancePhase::Covering,
            ) => {
                let text = format!("message {} in phase {phase:?}", message.number());
                Err(Refusal::new(RefuseCode::Unexpected, text))
            }
            // Repeated, late, or of another part of the protocol.
            _ => Ok(()),
        }
    }

    fn propose(&mut self, message: &payload::AdvancePropose, out: &mut Actions) -> Result<(), Refusal> {
        let again = self.attempt.is_some_and(|known| message.attempt <= known);
        if again || self.phase == ClientAdvancePhase::Recording {
            return Ok(());
        }
        // A new try ends the one before.
        self.round = None;
        self.phase = ClientAdvancePhase::Idle;
        self.attempt = Some(message.attempt);
        let (record, policy) = (&self.config.record, &self.config.policy);
        let proposal = Proposal::check(record, self.newest(), policy, message)?;
        let (inner, outer) = proposal.sessions(record)?;
        let internal = refuse(RefuseCode::Internal);
        let mut draw = |key| EarlySession::of(&self.signer, key, &mut self.rng).map_err(&internal);
        let inner = inner.into_iter().map(&mut draw).collect::<Result<Vec<_>, _>>()?;
        let outer = outer.into_iter().map(&mut draw).collect::<Result<Vec<_>, _>>()?;
        let public = |list: &[EarlySession]| list.iter().map(EarlySession::public_nonce).collect();
        let (instance_id, attempt) = (message.instance_id, message.attempt);
        let agree =
            payload::AdvanceAgree { instance_id, attempt, inner: public(&inner), outer: public(&outer) };
        let (from_sat, to_sat) = proposal.capacity_sat;
        self.round = Some(Round {
            proposal,
            inner,
            outer,
            script: None,
            tree: None,
            path: None,
            covered: false,
            nonces: None,
            partials: Vec::new(),
        });
        self.phase = ClientAdvancePhase::Agreed;
        let reason = AdvanceReason::from(message.reason);
        out.push(ClientAdvanceAction::PrepareChannel { attempt, reason, from_sat, to_sat });
        out.push(ClientAdvanceAction::Send(agree.into()));
        Ok(())
    }

    fn prepared(&mut self, attempt: u16, script: ScriptBuf, out: &mut Actions) -> Result<(), Refusal> {
        if !self.is_at(attempt, ClientAdvancePhase::Agreed) {
            return Ok(());
        }
        if let Some(round) = self.round.as_mut() {
            round.script.get_or_insert(script);
        }
        self.rebuild(out)
    }

    /// With the tree and the channel's script there: builds the new path and checks it.
    fn rebuild(&mut self, out: &mut Actions) -> Result<(), Refusal> {
        let record = &self.config.record;
        let Some(round) = self.round.as_mut() else { return Ok(()) };
        let (Some(script), Some(tree)) = (&round.script, &round.tree) else { return Ok(()) };
        let path = NewPath::build(record, &round.proposal, tree, script)?;
        let (outpoint, output) = path.channel();
        round.path = Some(path);
        let attempt = round.proposal.attempt;
        self.phase = ClientAdvancePhase::Covering;
        out.push(ClientAdvanceAction::Rebuilt { attempt, outpoint, output });
        self.sign(out)
    }

    fn covered(&mut self, attempt: u16, out: &mut Actions) -> Result<(), Refusal> {
        if !self.is_at(attempt, ClientAdvancePhase::Covering) {
            return Ok(());
        }
        if let Some(round) = self.round.as_mut() {
            round.covered = true;
        }
        self.sign(out)
    }

    /// With companions and aggregate nonces there: signs. Only the inner partial signatures leave now.
    fn sign(&mut self, out: &mut Actions) -> Result<(), Refusal> {
        if self.phase != ClientAdvancePhase::Covering {
            return Ok(());
        }
        let Some(round) = self.round.as_mut() else { return Ok(()) };
        let (Some(path), Some(nonces)) = (&round.path, &round.nonces) else { return Ok(()) };
        if !round.covered && !switch("client.advance.uncovered") {
            return Ok(());
        }
        let change = &round.proposal.change;
        // From here on the nonces are used up, whatever happens.
        let (inner, outer) = (std::mem::take(&mut round.inner), std::mem::take(&mut round.outer));
        let partials = partials(inner, path.inner(change), &nonces.inner)?;
        round.partials = self::partials(outer, path.outer(change), &nonces.outer)?;
        let (instance_id, attempt) = (self.state.instance_id, round.proposal.attempt);
        if partials.is_empty() {
            return self.inner(&[], out);
        }
        self.phase = ClientAdvancePhase::Inner;
        out.push(ClientAdvanceAction::Send(
            payload::AdvancePartials { instance_id, attempt, partials }.into(),
        ));
        Ok(())
    }

    /// The inner transactions are complete: they have to be on disk before the outer partial signatures leave.
    fn inner(&mut self, signatures: &[[u8; 64]], out: &mut Actions) -> Result<(), Refusal> {
        let Some(round) = self.round.as_ref() else { return Ok(()) };
        let Some(path) = round.path.as_ref() else { return Ok(()) };
        let pending = path.pending(&self.config.record, &round.proposal, signatures)?;
        let attempt = pending.attempt;
        self.phase = ClientAdvancePhase::Storing;
        self.state.pending.push(pending.clone());
        if switch("client.advance.inner_unstored") {
            self.inner_persisted(attempt, out);
        }
        let state = Box::new(self.state.clone());
        out.push(ClientAdvanceAction::PersistInner { state, pending: Box::new(pending) });
        Ok(())
    }

    fn inner_persisted(&mut self, attempt: u16, out: &mut Actions) {
        if !self.is_at(attempt, ClientAdvancePhase::Storing) {
            return;
        }
        let Some(round) = self.round.take() else { return };
        self.phase = ClientAdvancePhase::Outer;
        let (instance_id, partials) = (self.state.instance_id, round.partials);
        out.push(ClientAdvanceAction::Send(payload::AdvanceOuter { instance_id, attempt, partials }.into()));
    }

    /// The outer signatures of a try, perhaps after a restart.
    fn signed(&mut self, attempt: u16, signatures: &[[u8; 64]], out: &mut Actions) -> Result<(), Refusal> {
        if !matches!(self.phase, ClientAdvancePhase::Idle | ClientAdvancePhase::Outer) {
            return Ok(());
        }
        let instance_id = self.state.instance_id;
        if self.state.completed == Some(attempt) {
            // The provider does not know yet.
            out.push(ClientAdvanceAction::Send(payload::AdvancePersisted { instance_id, attempt }.into()));
            return Ok(());
        }
        let Some(pending) = self.unresolved().filter(|p| p.attempt == attempt) else { return Ok(()) };
        let record = pending.complete(signatures).map_err(refuse(RefuseCode::Signature))?;
        self.complete = Some((attempt, record.clone()));
        self.phase = ClientAdvancePhase::Recording;
        if switch("client.advance.persisted_early") {
            self.record_persisted(attempt, out);
        }
        out.push(ClientAdvanceAction::PersistRecord { attempt, record: Box::new(record) });
        Ok(())
    }

    fn record_persisted(&mut self, attempt: u16, out: &mut Actions) {
        let Some((_, record)) = self.complete.take_if(|(of, _)| *of == attempt) else { return };
        self.phase = ClientAdvancePhase::Idle;
        self.state.completed = Some(attempt);
        self.state.pending.retain(|p| p.attempt != attempt);
        self.config.record = record.clone();
        out.push(ClientAdvanceAction::PersistState(Box::new(self.state.clone())));
        let instance_id = self.state.instance_id;
        out.push(ClientAdvanceAction::Send(payload::AdvancePersisted { instance_id, attempt }.into()));
        out.push(ClientAdvanceAction::Completed { record: Box::new(record) });
    }

    /// Whether a try may come to be.
    fn is_burnt(&self, attempt: u16) -> bool {
        self.state.pending.iter().any(|p| p.attempt == attempt)
    }

    fn abort(&mut self, code: Option<u16>, text: &str, out: &mut Actions) {
        let Some(attempt) = self.attempt else { return };
        // Else it is the answer to the question how a try ended.
        let asked = code.is_some() && self.is_burnt(attempt);
        let idle = self.phase == ClientAdvancePhase::Idle && !asked;
        if idle || self.phase == ClientAdvancePhase::Recording {
            return;
        }
        self.round = None;
        self.phase = ClientAdvancePhase::Idle;
        let (text, burnt) = (clip(text), self.is_burnt(attempt));
        out.push(ClientAdvanceAction::Aborted { attempt, code, text, burnt });
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Actions) {
        self.round = None;
        self.phase = ClientAdvancePhase::Idle;
        let Some(attempt) = self.attempt else { return };
        let (code, text, burnt) = (refusal.code, refusal.text, self.is_burnt(attempt));
        let instance_id = self.state.instance_id;
        let message =
            payload::AdvanceRefuse { instance_id, attempt, code: code.number(), text: text.clone() };
        out.push(ClientAdvanceAction::Send(message.into()));
        out.push(ClientAdvanceAction::Refused { code, text, burnt });
    }
}

/// Signs with the aggregates; uses the sessions up.
fn partials<'a>(
    sessions: Vec<EarlySession>,
    txs: impl Iterator<Item = (&'a Node, &'a TreeTx)>,
    nonces: &[[u8; 66]],
) -> Result<Vec<PartialBytes>, Refusal> {
    if nonces.len() != sessions.len() {
        let text = format!("{} aggregate nonces, expected {}", nonces.len(), sessions.len());
        return Err(Refusal::new(RefuseCode::ListLength, text));
    }
    let mut partials = Vec::with_capacity(sessions.len());
    for ((session, (node, tx)), nonce) in sessions.into_iter().zip(txs).zip(nonces) {
        let nonce = AggregateNonce::read(nonce).map_err(refuse(RefuseCode::AggregateNonce))?;
        let session = session.bind(tx.sighash().map_err(refuse(RefuseCode::Internal))?);
        let signed = session.sign_in(&node.key, &nonce).map_err(refuse(RefuseCode::Internal))?;
        partials.push(signed.0);
    }
    Ok(partials)
}
