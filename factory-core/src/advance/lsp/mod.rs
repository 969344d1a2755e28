//! The provider's machine for an advance. See the module above for the order of messages.

mod steps;
mod types;

use bitcoin::secp256k1::PublicKey;
use bitcoin::ScriptBuf;
use bolt_tlv::payload::Payload;
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};

use super::plan::{Built, Planned};
use super::record::{LeafNow, LspAdvanceRecord, NewestTree};
use crate::ceremony::signing::Sessions;
use crate::ceremony::{ExcludeReason, Phase};
use crate::faults::switch;
use crate::musig::{check_partial, NonceBytes, PartialBytes, PublicNonce, SignatureBytes, Signer};
use crate::params::{as_u64, range};
use crate::plan::index_error;
use crate::record::RECORD_VERSION;
use crate::refuse::clip;
use crate::Error;

pub use types::{
    AdvanceFailReason, AdvanceReason, AdvanceRequest, ChannelChange, LspAdvanceAction, LspAdvanceConfig,
    LspAdvanceInput, LspAdvancePhase,
};

struct Client {
    id: PublicKey,
    index: usize,
    /// Capacity before and after, sat.
    capacity_sat: (u64, u64),
    old_script: ScriptBuf,
    /// Inner and outer nonces, before how many there have to be is known.
    agreed: Option<(Vec<PublicNonce>, Vec<PublicNonce>)>,
    script: Option<ScriptBuf>,
    covered: bool,
    inner: Option<Vec<PartialBytes>>,
    outer: Option<Vec<PartialBytes>>,
    persisted: bool,
}

/// The provider's side of one advance of one node. Advances of nodes of which none is above the other may run side by
/// side; the caller sees to it that others do not.
///
/// **The caller's part.** The machine knows no chain: the caller starts none once the factory has to be settled or a
/// kickoff of its tree is seen, and calls one off then. After a failure it does not try again with a client that was
/// blamed, nor at once with the same ones. A machine in [`LspAdvancePhase::Persisting`] may be dropped at any time: what
/// a client still wants, [`answer_resume`](super::answer_resume) gives it, and
/// [`LspAdvanceRecord::is_persisted_by`] takes its late word.
pub struct LspAdvance {
    instance_id: [u8; 32],
    attempt: u16,
    reason: AdvanceReason,
    /// Seconds for agreement, for the channels, for signing.
    seconds: (u32, u32, u32),
    /// Clients of the factory.
    all: usize,
    signer: Signer,
    rng: StdRng,
    phase: LspAdvancePhase,
    timer: u64,
    burnt: bool,
    clients: Vec<Client>,
    planned: Option<Planned>,
    built: Option<Built>,
    /// Inner and outer sessions of each client.
    counts: (usize, usize),
    inner_sessions: Option<Sessions>,
    outer_sessions: Option<Sessions>,
    /// Verified inner signatures, by node.
    inner: Vec<Vec<SignatureBytes>>,
    record: Option<LspAdvanceRecord>,
}

type Actions = Vec<LspAdvanceAction>;
/// Clients that failed.
type Guilty = Vec<(PublicKey, ExcludeReason)>;

impl LspAdvance {
    /// Starts an advance by asking every client below the node.
    ///
    /// # Errors
    /// [`Error::Exhausted`] if there is no newer position; a secret key that is not the factory's, a damaged record,
    /// the number of an earlier try, or amounts that break a rule. Nothing has happened then.
    pub fn new<R: RngCore + CryptoRng>(
        config: LspAdvanceConfig,
        rng: &mut R,
    ) -> Result<(Self, Actions), Error> {
        let ours = |instance_id: &[u8; 32]| *instance_id == config.record.plan.instance_id;
        let completed = config.advances.iter().filter(|a| ours(&a.instance_id)).map(|a| a.attempt);
        let burnt = config.burnt.iter().filter(|b| ours(&b.instance_id)).map(|b| b.attempt);
        if let Some(known) = completed.chain(burnt).max() {
            let least = u64::from(known).saturating_add(1);
            range("attempt", config.attempt.into(), least, u16::MAX.into())?;
        }
        let tree = NewestTree::new(&config.record, &config.advances)?;
        let planned = Planned::new(tree, &config.burnt, &config.request, &config.least_sat)?;
        let (first, end) = (planned.change.first, planned.change.end);
        let mut machine = Self::build(&config, (first, end), rng)?;
        for client in &mut machine.clients {
            let place = |leaf: &LeafNow| client.index.saturating_sub(leaf.first);
            let (old, new) = (planned.tree.leaf(client.index)?, planned.leaf(client.index)?);
            let missing = || index_error(client.index, end);
            let before = old.members.get(place(old)).ok_or_else(missing)?.capacity_sat;
            let after = new.members.get(place(new)).ok_or_else(missing)?.capacity_sat;
            client.old_script = old.channel_scripts.get(place(old)).cloned().ok_or_else(missing)?;
            client.capacity_sat = (before, after);
        }
        let mut out = Vec::new();
        machine.enter(LspAdvancePhase::Asking, Some(machine.seconds.0), &mut out);
        for client in &machine.clients {
            let message = planned.proposal(machine.attempt, client.index, machine.reason.number())?;
            send(&mut out, client.id, message);
        }
        machine.planned = Some(planned);
        Ok((machine, out))
    }

    /// Goes on after a restart with the advance of `config.attempt`, whose record is stored: tells the clients again. The
    /// request is not looked at. A try without a record is over, and its position used up if there is a state of it.
    ///
    /// # Errors
    /// As [`LspAdvance::new`]; [`Error::Mismatch`] without such an advance.
    pub fn resume<R: RngCore + CryptoRng>(
        config: LspAdvanceConfig,
        rng: &mut R,
    ) -> Result<(Self, Actions), Error> {
        let record = config.advances.iter().find(|a| a.attempt == config.attempt).cloned();
        let record = record.ok_or(Error::Mismatch { what: "try of a stored advance" })?;
        let place = |n: u32| usize::try_from(n).map_err(|_| Error::Overflow { field: "place in a tree" });
        let mut machine = Self::build(&config, (place(record.first)?, place(record.end)?), rng)?;
        machine.record = Some(record);
        machine.burnt = true;
        let mut out = Vec::new();
        machine.tell_signed(&mut out)?;
        Ok((machine, out))
    }

    fn build<R: RngCore + CryptoRng>(
        config: &LspAdvanceConfig,
        (first, end): (usize, usize),
        rng: &mut R,
    ) -> Result<Self, Error> {
        let record = &config.record;
        if record.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: record.version, known: RECORD_VERSION });
        }
        let signer = Signer::new(&config.secret_key)?;
        if signer.public_key() != record.plan.lsp_key {
            return Err(Error::Mismatch { what: "provider's factory key" });
        }
        let ids =
            record.client_ids.get(first..end).ok_or_else(|| index_error(end, record.client_ids.len()))?;
        let client = |(index, id): (usize, &PublicKey)| Client {
            id: *id,
            index,
            capacity_sat: (0, 0),
            old_script: ScriptBuf::new(),
            agreed: None,
            script: None,
            covered: false,
            inner: None,
            outer: None,
            persisted: false,
        };
        let mut seed = [0u8; 32];
        rng.fill_bytes(&mut seed);
        Ok(Self {
            instance_id: record.plan.instance_id,
            attempt: config.attempt,
            reason: config.request.reason,
            seconds: (config.agree_secs, config.prepare_secs, config.signing_secs),
            all: record.client_ids.len(),
            signer,
            rng: StdRng::from_seed(seed),
            phase: LspAdvancePhase::Asking,
            timer: 0,
            burnt: false,
            clients: (first..end).zip(ids).map(client).collect(),
            planned: None,
            built: None,
            counts: (0, 0),
            inner_sessions: None,
            outer_sessions: None,
            inner: Vec::new(),
            record: None,
        })
    }

    /// The phase.
    pub fn phase(&self) -> LspAdvancePhase {
        self.phase
    }

    /// The try.
    pub fn attempt(&self) -> u16 {
        self.attempt
    }

    /// Whether the position is used up.
    pub fn burnt(&self) -> bool {
        self.burnt
    }

    /// The complete advance, once all signatures are verified.
    pub fn record(&self) -> Option<&LspAdvanceRecord> {
        self.record.as_ref()
    }

    /// Clients that still owe something in this phase.
    pub fn missing(&self) -> Vec<PublicKey> {
        self.clients.iter().filter(|c| self.owes(c)).map(|c| c.id).collect()
    }

    fn owes(&self, client: &Client) -> bool {
        match self.phase {
            LspAdvancePhase::Asking => client.agreed.is_none(),
            LspAdvancePhase::Preparing => client.script.is_none(),
            LspAdvancePhase::Covering => !client.covered,
            LspAdvancePhase::Inner => client.inner.is_none(),
            LspAdvancePhase::Outer => client.outer.is_none(),
            LspAdvancePhase::Persisting => !client.persisted,
            _ => false,
        }
    }

    /// Takes one input and says what to do. What is late or repeated is ignored.
    ///
    /// # Errors
    /// None at present: a failure on our own side comes out as [`LspAdvanceAction::Failed`].
    pub fn handle(&mut self, input: LspAdvanceInput) -> Result<Actions, Error> {
        let mut out = Vec::new();
        if matches!(self.phase, LspAdvancePhase::Done | LspAdvancePhase::Failed) {
            return Ok(out);
        }
        let result = self.input(input, &mut out).and_then(|guilty| {
            if guilty.is_empty() {
                return self.proceed(&mut out);
            }
            self.blame(guilty, &mut out);
            Ok(())
        });
        if let Err(error) = result {
            self.fail(AdvanceFailReason::Internal(error), &mut out);
        }
        Ok(out)
    }

    fn input(&mut self, input: LspAdvanceInput, out: &mut Actions) -> Result<Guilty, Error> {
        let (phase, attempt) = (self.phase, self.attempt);
        match input {
            LspAdvanceInput::Message { client, payload } => self.message(client, payload, out),
            LspAdvanceInput::ClientGone { client } => Ok(self.gone(client)),
            LspAdvanceInput::Timeout { id } => Ok(self.timeout(id)),
            LspAdvanceInput::ChannelPrepared { client, attempt: of, script } => {
                if phase != LspAdvancePhase::Preparing || of != attempt {
                    return Ok(Vec::new());
                }
                let Some(client) = self.client(client) else { return Ok(Vec::new()) };
                let kept = client.capacity_sat.0 == client.capacity_sat.1;
                if kept && script != client.old_script {
                    return Err(Error::Mismatch { what: "script of a channel that keeps its capacity" });
                }
                client.script.get_or_insert(script);
                Ok(Vec::new())
            }
            LspAdvanceInput::ChannelFailed { client, attempt: of, reason } => {
                let early = phase < LspAdvancePhase::Outer && of == attempt;
                let known = early && self.client(client).is_some();
                let text = clip(reason);
                Ok(known.then_some((client, ExcludeReason::ChannelFailed { text })).into_iter().collect())
            }
            LspAdvanceInput::Covered { client, attempt: of } => {
                if phase == LspAdvancePhase::Covering && of == attempt {
                    if let Some(client) = self.client(client) {
                        client.covered = true;
                    }
                }
                Ok(Vec::new())
            }
            LspAdvanceInput::RecordPersisted { attempt: of } => {
                if phase == LspAdvancePhase::Recording && of == attempt {
                    self.tell_signed(out)?;
                }
                Ok(Vec::new())
            }
            LspAdvanceInput::Cancel => {
                if phase < LspAdvancePhase::Recording {
                    self.fail(AdvanceFailReason::Cancelled, out);
                }
                Ok(Vec::new())
            }
        }
    }

    /// Takes every step that is due now.
    fn proceed(&mut self, out: &mut Actions) -> Result<(), Error> {
        if self.clients.iter().any(|c| self.owes(c)) && !self.hurries() {
            return Ok(());
        }
        match self.phase {
            LspAdvancePhase::Asking => {
                self.prepare(out);
                Ok(())
            }
            LspAdvancePhase::Preparing => self.rebuild(out),
            LspAdvancePhase::Covering => self.ask(out),
            LspAdvancePhase::Inner => self.cross(out),
            LspAdvancePhase::Outer => self.finish(out),
            LspAdvancePhase::Persisting => {
                self.enter(LspAdvancePhase::Done, None, out);
                out.push(LspAdvanceAction::Completed);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Without the protection, companions are not waited for.
    fn hurries(&self) -> bool {
        self.phase == LspAdvancePhase::Covering && switch("lsp.advance.uncovered")
    }

    fn client(&mut self, id: PublicKey) -> Option<&mut Client> {
        self.clients.iter_mut().find(|c| c.id == id)
    }

    fn message(&mut self, id: PublicKey, message: Payload, out: &mut Actions) -> Result<Guilty, Error> {
        let number = message.number();
        // Earlier tries are over, and only the provider starts a new one.
        if message.instance_id() != Some(self.instance_id) || message.attempt() != Some(self.attempt) {
            return Ok(Vec::new());
        }
        let (phase, counts) = (self.phase, self.counts);
        let signed = self.record.as_ref().filter(|_| phase == LspAdvancePhase::Persisting);
        let signed = signed.map(LspAdvanceRecord::signed).transpose()?;
        let Some(client) = self.client(id) else { return Ok(Vec::new()) };
        let blame = |reason| Ok(vec![(id, reason)]);
        match message {
            // Complete: whatever is late or strange cannot undo it. A machine that resumed knows nothing of what was.
            Payload::AdvanceAgree(_) | Payload::AdvancePartials(_) | Payload::AdvanceOuter(_)
                if phase >= LspAdvancePhase::Recording => {}
            Payload::AdvanceAgree(m) => {
                if client.agreed.is_some() {
                    return Ok(Vec::new());
                }
                match (read(&m.inner, 0), read(&m.outer, m.inner.len())) {
                    (Ok(inner), Ok(outer)) => client.agreed = Some((inner, outer)),
                    (Err(reason), _) | (_, Err(reason)) => return blame(reason),
                }
            }
            // Late: the new state is complete, or can be without it.
            Payload::AdvanceRefuse(_) if client.outer.is_some() || phase >= LspAdvancePhase::Recording => {}
            Payload::AdvanceRefuse(m) => {
                return blame(ExcludeReason::Declined { code: m.code, text: clip(m.text) });
            }
            Payload::AdvancePartials(m) if phase >= LspAdvancePhase::Inner => {
                if client.inner.is_none() {
                    match check(&m.partials, counts.0, 0) {
                        Ok(()) => client.inner = Some(m.partials),
                        Err(reason) => return blame(reason),
                    }
                }
            }
            Payload::AdvanceOuter(m) if phase >= LspAdvancePhase::Outer => {
                if client.outer.is_none() {
                    match check(&m.partials, counts.1, counts.0) {
                        Ok(()) => client.outer = Some(m.partials),
                        Err(reason) => return blame(reason),
                    }
                }
            }
            Payload::AdvancePersisted(_) if phase == LspAdvancePhase::Persisting => {
                if !client.persisted {
                    client.persisted = true;
                    out.push(LspAdvanceAction::ClientPersisted { client: id });
                }
            }
            Payload::AdvanceResume(_) => match signed {
                Some(signed) => send(out, id, signed),
                // It has started again in between, or dropped what it had when its connection was lost.
                None if phase < LspAdvancePhase::Recording && client.outer.is_none() => {
                    return blame(ExcludeReason::Gone);
                }
                None => {}
            },
            _ if phase >= LspAdvancePhase::Recording => {}
            _ => return blame(ExcludeReason::Unexpected { number }),
        }
        Ok(Vec::new())
    }

    fn gone(&mut self, id: PublicKey) -> Guilty {
        // A client that has stored the inner transactions comes back with its outer partial signatures. There is time
        // until the timer runs out.
        let early = self.phase < LspAdvancePhase::Outer;
        let known = early && self.client(id).is_some();
        known.then_some((id, ExcludeReason::Gone)).into_iter().collect()
    }

    fn timeout(&self, id: u64) -> Guilty {
        let phase = match self.phase {
            LspAdvancePhase::Asking => Phase::Planning,
            LspAdvancePhase::Preparing => Phase::Opening,
            LspAdvancePhase::Covering | LspAdvancePhase::Inner | LspAdvancePhase::Outer => Phase::Partials,
            _ => return Vec::new(),
        };
        let missing = if id == self.timer { self.missing() } else { Vec::new() };
        missing.into_iter().map(|id| (id, ExcludeReason::Timeout { phase })).collect()
    }
}

fn send(out: &mut Actions, client: PublicKey, message: impl Into<Payload>) {
    out.push(LspAdvanceAction::Send { client, payload: message.into() });
}

/// Reads nonces; `offset` is where the list starts in the count of all sessions.
fn read(nonces: &[NonceBytes], offset: usize) -> Result<Vec<PublicNonce>, ExcludeReason> {
    let one = |(i, nonce)| {
        let session = as_u64(offset.saturating_add(i));
        PublicNonce::read(nonce).map_err(|_| ExcludeReason::BadNonce { session })
    };
    nonces.iter().enumerate().map(one).collect()
}

/// Checks a list of partial signatures by itself.
fn check(partials: &[PartialBytes], expected: usize, offset: usize) -> Result<(), ExcludeReason> {
    if partials.len() != expected {
        return Err(ExcludeReason::ListLength { got: as_u64(partials.len()), expected: as_u64(expected) });
    }
    match partials.iter().position(|p| check_partial(p).is_err()) {
        Some(session) => Err(ExcludeReason::BadPartial { session: as_u64(offset.saturating_add(session)) }),
        None => Ok(()),
    }
}
