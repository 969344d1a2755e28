//! A client's machine for advances. See the module above for the order of messages.

mod steps;
mod types;

use bitcoin::secp256k1::PublicKey;
use bitcoin::ScriptBuf;
use bolt_tlv::payload::{self, Payload};
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};

use super::check::{NewPath, Proposal};
use super::pending::{ClientAdvanceState, PendingAdvance};
use crate::faults::switch;
use crate::musig::{EarlySession, PartialBytes, Signer};
use crate::record::ClientFactoryRecord;
use crate::refuse::{Refusal, RefuseCode};
use crate::Error;

pub use types::{
    Aftermath, ClientAdvanceAction, ClientAdvanceConfig, ClientAdvanceInput, ClientAdvancePhase,
};

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
    /// The inner partial signatures, until the mark is stored.
    first: Vec<PartialBytes>,
    /// The outer ones, made with the inner ones, until the inner transactions are complete and stored.
    second: Vec<PartialBytes>,
}

type Actions = Vec<ClientAdvanceAction>;

/// A client's side of the advances of one factory, one after the other.
///
/// [`ClientAdvance::handle`] takes any input at any time: what is late, repeated or for another factory is ignored;
/// what breaks a check is refused with the check's code.
///
/// **The caller's part.** The machine knows no chain and no clock. The caller says by
/// [`ClientAdvanceInput::Policy`] that no advance is wanted once the factory has to be settled, or as soon as a
/// kickoff of the client's path or anything that spends one is seen: a newer state would come too late. It limits how
/// often the provider may propose, since each proposal costs nonces and a prepared channel; a few tries in a minute are
/// plenty.
pub struct ClientAdvance {
    config: ClientAdvanceConfig,
    state: ClientAdvanceState,
    signer: Signer,
    rng: StdRng,
    phase: ClientAdvancePhase,
    /// The newest try that was answered; nonces are drawn at most once for a try.
    attempt: Option<u16>,
    round: Option<Round>,
    /// The outer partial signatures that left, for the case that they did not arrive.
    outer: Vec<PartialBytes>,
    /// The complete record while it is being stored.
    complete: Option<(u16, ClientFactoryRecord)>,
}

impl ClientAdvance {
    /// A machine that waits for a proposal, or after a restart to hear how a try ended.
    ///
    /// # Errors
    /// A secret key that is not the record's, a damaged record, or a state that is damaged or not of this factory.
    pub fn new<R: RngCore + CryptoRng>(mut config: ClientAdvanceConfig, rng: &mut R) -> Result<Self, Error> {
        let signer = Signer::new(&config.secret_key)?;
        if signer.public_key() != config.record.own_key {
            return Err(Error::Mismatch { what: "client's factory key" });
        }
        config.record.verify()?;
        let instance_id = config.record.path.instance_id;
        let mut state = config.state.take().unwrap_or_else(|| ClientAdvanceState::new(instance_id));
        state.verify(&config.record)?;
        // It may have died between the record and the state.
        let updates = config.record.path.updates;
        let done = state.pending.iter().find(|p| p.record.path.updates == updates).map(|p| p.attempt);
        if let Some(attempt) = done {
            state.complete(attempt, updates);
        }
        let tries = state.pending.iter().map(|p| p.attempt).chain(state.marks.iter().map(|m| m.attempt));
        let attempt = tries.chain(state.completed).max();
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
            outer: Vec::new(),
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

    /// The newest pending try, if it is newer than the newest complete record. Nobody but the provider knows which of
    /// the two states is the newest.
    pub fn unresolved(&self) -> Option<&PendingAdvance> {
        let updates = self.config.record.path.updates;
        self.state.pending.iter().rfind(|p| p.record.path.updates > updates)
    }

    /// What the tries so far mean for the client's channel.
    pub fn left(&self) -> Aftermath {
        let record = &self.config.record;
        let mut newer = self.state.pending.iter().map(|p| &p.record);
        let channel = |r: &ClientFactoryRecord| r.channel().map(|c| c.output());
        if newer.any(|r| r.path.updates > record.path.updates && channel(r) != channel(record)) {
            return Aftermath::Frozen;
        }
        if self.unresolved().is_some() {
            Aftermath::Pending
        } else {
            Aftermath::Clear
        }
    }

    /// Whether a try may come to be.
    fn is_pending(&self, attempt: u16) -> bool {
        self.state.pending.iter().any(|p| p.attempt == attempt)
    }

    /// Takes one input and says what to do.
    ///
    /// # Errors
    /// None at present: a failed check comes out as [`ClientAdvanceAction::Refused`].
    pub fn handle(&mut self, input: ClientAdvanceInput) -> Result<Actions, Error> {
        let mut out = Vec::new();
        let (of, result) = match input {
            ClientAdvanceInput::Message(message) => {
                let of = message.attempt();
                (of, self.message(message, &mut out))
            }
            ClientAdvanceInput::Policy(policy) => {
                self.config.policy = policy;
                (None, Ok(()))
            }
            ClientAdvanceInput::ChannelPrepared { attempt, script } => {
                (Some(attempt), self.prepared(attempt, script, &mut out))
            }
            ClientAdvanceInput::Covered { attempt } => (Some(attempt), self.covered(attempt, &mut out)),
            ClientAdvanceInput::MarkPersisted { attempt } => {
                self.mark_persisted(attempt, &mut out);
                (None, Ok(()))
            }
            ClientAdvanceInput::InnerPersisted { attempt } => {
                self.inner_persisted(attempt, &mut out);
                (None, Ok(()))
            }
            ClientAdvanceInput::RecordPersisted { attempt } => {
                self.record_persisted(attempt, &mut out);
                (None, Ok(()))
            }
            ClientAdvanceInput::Connected => {
                self.connected(&mut out);
                (None, Ok(()))
            }
            ClientAdvanceInput::Disconnected => {
                self.disconnected(&mut out);
                (None, Ok(()))
            }
            ClientAdvanceInput::Cancel { text } => (self.attempt, self.cancel(text)),
        };
        if let (Some(attempt), Err(refusal)) = (of, result) {
            self.refuse(attempt, refusal, &mut out);
        }
        Ok(out)
    }

    /// Sends the outer partial signatures again that may not have arrived, and says how it stands with the newest try.
    fn connected(&self, out: &mut Actions) {
        let unresolved = self.unresolved().map(|p| p.attempt);
        match self.phase {
            ClientAdvancePhase::Outer => {
                if let Some(attempt) = self.attempt {
                    self.send_outer(attempt, out);
                    self.resume(attempt, out);
                }
            }
            ClientAdvancePhase::Storing => {
                // Whether the provider still waits is not known.
                if let Some(attempt) = self.attempt {
                    self.resume(attempt, out);
                }
            }
            ClientAdvancePhase::Idle => {
                let newest = self.attempt.filter(|attempt| Some(*attempt) > self.state.completed);
                if let Some(attempt) = unresolved.or(newest) {
                    self.resume(attempt, out);
                }
            }
            _ => {}
        }
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
        if phase == ClientAdvancePhase::Recording {
            return Ok(());
        }
        if let Payload::AdvanceAbort(m) = message {
            self.abort(attempt, m.code, &m.text, out);
            return Ok(());
        }
        if self.attempt != Some(attempt) {
            return Ok(());
        }
        match (message, phase) {
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
            (
                Payload::AdvanceAggNonces(_),
                ClientAdvancePhase::Marking | ClientAdvancePhase::Inner | ClientAdvancePhase::Storing,
            ) if !switch("client.advance.nonces_twice") => {
                Err(Refusal::new(RefuseCode::NonceReuse, "aggregate nonces came twice in one try"))
            }
            (Payload::AdvanceInner(m), ClientAdvancePhase::Inner) => self.inner(&m.signatures, out),
            (
                message @ (Payload::AdvanceInner(_) | Payload::AdvanceTree(_)),
                ClientAdvancePhase::Agreed | ClientAdvancePhase::Covering | ClientAdvancePhase::Marking,
            ) => {
                let text = format!("message {} in phase {phase:?}", message.number());
                Err(Refusal::new(RefuseCode::Unexpected, text))
            }
            // Repeated, late, or of another part of the protocol.
            _ => Ok(()),
        }
    }
}
