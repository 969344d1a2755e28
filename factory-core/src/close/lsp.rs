//! The provider's closing machine. See the module above for the order of messages.

mod shutting;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, Witness};
use bolt_tlv::payload::{self, Payload};
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};

use super::lsp_types::*;
use super::transaction::{close_transaction, CloseTransaction, Payout};
use crate::advance::NewestTree;
use crate::ceremony::{ExcludeReason, Phase};
use crate::faults::switch;
use crate::musig::{
    aggregate_nonces, aggregate_partials, check_nonce, check_partial, public_key, verify_final,
    verify_partial, AggKey, NonceBytes, PartialBytes, SecretSession, SignatureBytes,
};
use crate::plan::{check_payout_script, index_error};
use crate::record::RECORD_VERSION;
use crate::refuse::clip;
use crate::transaction::taproot_sighash;
use crate::Error;

struct Client {
    id: PublicKey,
    key: PublicKey,
    capacity_sat: u64,
    outpoint: OutPoint,
    payout: Option<ScriptBuf>,
    client_msat: Option<u64>,
    nonce: Option<NonceBytes>,
    partial: Option<PartialBytes>,
}

struct Signing {
    secret: SecretSession,
    aggregate: NonceBytes,
}

/// The provider's side of a cooperative close.
pub struct LspClose {
    config: LspCloseConfig,
    key: AggKey,
    rng: StdRng,
    phase: LspClosePhase,
    timer: u64,
    clients: Vec<Client>,
    close: Option<CloseTransaction>,
    message: [u8; 32],
    signing: Option<Signing>,
    signature: Option<SignatureBytes>,
    /// Clients that are not named if the time to shut the channels down runs out now.
    excused: Vec<PublicKey>,
}

type Actions = Vec<LspCloseAction>;

impl LspClose {
    /// Starts a close by asking every client.
    ///
    /// # Errors
    /// A secret key that is not the factory's, a damaged record, or a script of another type.
    pub fn new<R: RngCore + CryptoRng>(
        config: LspCloseConfig,
        rng: &mut R,
    ) -> Result<(Self, Actions), Error> {
        let mut machine = Self::build(config, rng)?;
        let mut out = Vec::new();
        machine.enter(LspClosePhase::Asking, Some(machine.config.consent_secs), &mut out);
        let (instance_id, attempt) = machine.head();
        machine.to_all(payload::ClosePropose { instance_id, attempt }, &mut out);
        Ok((machine, out))
    }

    /// Goes on after a restart, with the state stored last: asks for what is missing, with fresh nonces. Attempt,
    /// script and feerate of `config` are replaced by the stored ones.
    ///
    /// # Errors
    /// As [`LspClose::new`], and a state that is not of this factory.
    pub fn resume<R: RngCore + CryptoRng>(
        mut config: LspCloseConfig,
        state: &LspCloseState,
        rng: &mut R,
    ) -> Result<(Self, Actions), Error> {
        if state.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: state.version, known: RECORD_VERSION });
        }
        config.attempt = state.attempt;
        config.lsp_script = state.lsp_script.clone();
        config.feerate_sat_per_kwu = state.feerate_sat_per_kwu;
        let mut machine = Self::build(config, rng)?;
        let ids = state.clients.iter().map(|c| c.client);
        if state.instance_id != machine.config.record.plan.instance_id
            || !machine.clients.iter().map(|c| c.id).eq(ids)
        {
            return Err(Error::Mismatch { what: "stored state of the close" });
        }
        for (client, stored) in machine.clients.iter_mut().zip(&state.clients) {
            client.payout = Some(stored.payout_script.clone());
            client.client_msat = stored.client_msat;
        }
        let mut out = Vec::new();
        // Nobody is connected yet, so nobody is late: the first `Retry` sets the timer.
        machine.enter(LspClosePhase::Shutting, None, &mut out);
        machine.ask_shutdowns(&mut out);
        let result = machine.proceed(&mut out);
        machine.settle(result, &mut out);
        Ok((machine, out))
    }

    fn build<R: RngCore + CryptoRng>(config: LspCloseConfig, rng: &mut R) -> Result<Self, Error> {
        let record = &config.record;
        if record.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: record.version, known: RECORD_VERSION });
        }
        check_payout_script("provider's script", &config.lsp_script)?;
        if public_key(&config.secret_key)? != record.plan.lsp_key {
            return Err(Error::Mismatch { what: "provider's factory key" });
        }
        let key = AggKey::new(&record.plan.keys())?;
        if key.script_pubkey() != record.funding.script {
            return Err(Error::Mismatch { what: "funding script of the record" });
        }
        if record.client_ids.len() != record.plan.members.len() {
            return Err(Error::Mismatch { what: "number of clients of the record" });
        }
        let newest = NewestTree::new(record, &config.advances)?;
        let mut clients = Vec::with_capacity(record.client_ids.len());
        for (index, (id, member)) in record.client_ids.iter().zip(&record.plan.members).enumerate() {
            let path = record.leaf_path(index)?;
            let channel = path.leaf.iter().find(|c| c.key == member.key);
            let leaf = newest.leaf(index)?;
            let share = index.checked_sub(leaf.first).and_then(|place| leaf.members.get(place));
            clients.push(Client {
                id: *id,
                key: member.key,
                capacity_sat: share.ok_or_else(|| index_error(index, leaf.end))?.capacity_sat,
                outpoint: channel.map(|c| c.outpoint).ok_or_else(|| index_error(index, path.leaf.len()))?,
                payout: None,
                client_msat: None,
                nonce: None,
                partial: None,
            });
        }
        let mut seed = [0u8; 32];
        rng.fill_bytes(&mut seed);
        Ok(Self {
            config,
            key,
            rng: StdRng::from_seed(seed),
            phase: LspClosePhase::Asking,
            timer: 0,
            clients,
            close: None,
            message: [0; 32],
            signing: None,
            signature: None,
            excused: Vec::new(),
        })
    }

    /// The phase.
    pub fn phase(&self) -> LspClosePhase {
        self.phase
    }

    /// The current attempt.
    pub fn attempt(&self) -> u16 {
        self.config.attempt
    }

    /// Clients that still owe something in this phase.
    pub fn missing(&self) -> Vec<PublicKey> {
        let owes = |c: &&Client| match self.phase {
            LspClosePhase::Asking => c.payout.is_none(),
            LspClosePhase::Shutting => c.client_msat.is_none(),
            LspClosePhase::Nonces => c.nonce.is_none(),
            LspClosePhase::Partials => c.partial.is_none(),
            _ => false,
        };
        self.clients.iter().filter(owes).map(|c| c.id).collect()
    }

    /// Takes one input and says what to do. What is late or repeated is ignored.
    ///
    /// # Errors
    /// None at present: a failure on our own side comes out as [`LspCloseAction::Problem`], for by then channels may
    /// be shut down and the close has to go on.
    pub fn handle(&mut self, input: LspCloseInput) -> Result<Actions, Error> {
        let mut out = Vec::new();
        if matches!(self.phase, LspClosePhase::Done | LspClosePhase::Failed) {
            return Ok(out);
        }
        let result = match input {
            LspCloseInput::Message { client, payload } => {
                self.message(client, payload, &mut out);
                Ok(())
            }
            LspCloseInput::Timeout { id } => {
                if id == self.timer {
                    self.timeout(&mut out);
                }
                Ok(())
            }
            LspCloseInput::ChannelShut { client, client_msat, lsp_msat } => {
                self.channel_shut(client, client_msat, lsp_msat, &mut out)
            }
            LspCloseInput::Excused { clients } => {
                self.excused = clients;
                Ok(())
            }
            LspCloseInput::ClientGone { client } => {
                self.client_gone(client, &mut out);
                Ok(())
            }
            LspCloseInput::Retry => self.retry(&mut out),
            LspCloseInput::RecordPersisted => {
                self.record_persisted(&mut out);
                Ok(())
            }
        };
        self.settle(result, &mut out);
        let result = self.proceed(&mut out);
        self.settle(result, &mut out);
        Ok(out)
    }

    /// Reports a failure. From the shutdown on there is no way back, so the close waits for another try.
    fn settle(&mut self, result: Result<(), Error>, out: &mut Actions) {
        if let Err(error) = result {
            if self.all_shut() {
                self.stall(Vec::new(), out);
            }
            out.push(LspCloseAction::Problem { error });
        }
    }

    fn proceed(&mut self, out: &mut Actions) -> Result<(), Error> {
        let all = |f: fn(&Client) -> bool| self.clients.iter().all(f);
        match self.phase {
            LspClosePhase::Asking if all(|c| c.payout.is_some()) => {
                self.shut_down(out);
                Ok(())
            }
            LspClosePhase::Shutting if self.all_shut() => self.ask_nonces(out),
            LspClosePhase::Nonces if all(|c| c.nonce.is_some()) => self.aggregate(out),
            LspClosePhase::Partials if all(|c| c.partial.is_some()) => self.finish(out),
            _ => Ok(()),
        }
    }

    fn message(&mut self, id: PublicKey, message: Payload, out: &mut Actions) {
        let (instance_id, attempt) = self.head();
        let number = message.number();
        // Earlier attempts are over, and only the provider starts a new one.
        if message.instance_id() != Some(instance_id) || message.attempt() != Some(attempt) {
            return;
        }
        let phase = self.phase;
        let Some(client) = self.clients.iter_mut().find(|c| c.id == id) else { return };
        match message {
            Payload::CloseConsent(m) if phase == LspClosePhase::Asking => {
                if check_payout_script("payout script", &m.payout_script).is_err() {
                    self.fail(CloseFailReason::PayoutScript { client: id }, out);
                } else {
                    client.payout.get_or_insert(m.payout_script);
                }
            }
            Payload::CloseRefuse(m) => {
                let (code, text) = (m.code, clip(m.text));
                if phase == LspClosePhase::Asking {
                    self.fail(CloseFailReason::Refused { client: id, code, text }, out);
                } else if phase >= LspClosePhase::Nonces && phase < LspClosePhase::Recording {
                    self.stall(vec![(id, ExcludeReason::Declined { code, text })], out);
                }
            }
            Payload::CloseNonce(m) if phase == LspClosePhase::Nonces && client.nonce.is_none() => {
                if check_nonce(&m.nonce).is_err() {
                    self.stall(vec![(id, ExcludeReason::BadNonce { session: 0 })], out);
                } else {
                    client.nonce = Some(m.nonce);
                }
            }
            Payload::ClosePartial(m) if phase == LspClosePhase::Partials && client.partial.is_none() => {
                if check_partial(&m.partial).is_err() {
                    self.stall(vec![(id, ExcludeReason::BadPartial { session: 0 })], out);
                } else {
                    client.partial = Some(m.partial);
                }
            }
            Payload::ClosePartial(_) if phase == LspClosePhase::Nonces => {
                self.stall(vec![(id, ExcludeReason::Unexpected { number })], out);
            }
            // Late, repeated, or of another part of the protocol.
            _ => {}
        }
    }

    fn timeout(&mut self, out: &mut Actions) {
        let missing = self.missing();
        match self.phase {
            LspClosePhase::Asking => self.fail(CloseFailReason::NoAnswer { clients: missing }, out),
            LspClosePhase::Shutting => self.late_shutdowns(missing, out),
            LspClosePhase::Nonces | LspClosePhase::Partials => {
                let phase = if self.phase == LspClosePhase::Nonces { Phase::Nonces } else { Phase::Partials };
                let blamed = missing.into_iter().map(|id| (id, ExcludeReason::Timeout { phase })).collect();
                self.stall(blamed, out);
            }
            _ => {}
        }
    }

    /// The transaction, always the same for the same balances, and fresh nonces.
    fn ask_nonces(&mut self, out: &mut Actions) -> Result<(), Error> {
        if self.close.is_none() {
            let balances: Vec<_> = self
                .clients
                .iter()
                .map(|c| Payout {
                    client: c.id,
                    script: c.payout.clone().unwrap_or_default(),
                    balance_msat: c.client_msat.unwrap_or(0),
                })
                .collect();
            let funding = &self.config.record.funding;
            let close = close_transaction(
                funding,
                &balances,
                &self.config.lsp_script,
                self.config.feerate_sat_per_kwu,
            )?;
            self.message = taproot_sighash(&close.tx, &funding.tx_out())?;
            self.close = Some(close);
        }
        let transaction = self.close.as_ref().map(|c| c.tx.clone()).ok_or(Error::Empty { what: "close" })?;
        for client in &mut self.clients {
            client.nonce = None;
            client.partial = None;
        }
        self.signing = None;
        self.config.attempt =
            self.config.attempt.checked_add(1).ok_or(Error::Overflow { field: "attempt" })?;
        out.push(LspCloseAction::PersistState(Box::new(self.state())));
        self.enter(LspClosePhase::Nonces, Some(self.config.signing_secs), out);
        let (instance_id, attempt) = self.head();
        let keys = self.config.record.plan.keys();
        self.to_all(payload::CloseTx { instance_id, attempt, transaction, keys }, out);
        Ok(())
    }

    fn aggregate(&mut self, out: &mut Actions) -> Result<(), Error> {
        let secret = SecretSession::new(&self.config.secret_key, &self.key, self.message, &mut self.rng)?;
        let mut nonces = vec![secret.public_nonce()];
        nonces.extend(self.clients.iter().filter_map(|c| c.nonce));
        let aggregate = aggregate_nonces(&nonces)?;
        self.signing = Some(Signing { secret, aggregate });
        self.enter(LspClosePhase::Partials, Some(self.config.signing_secs), out);
        let (instance_id, attempt) = self.head();
        self.to_all(payload::CloseAggNonce { instance_id, attempt, nonce: aggregate }, out);
        Ok(())
    }

    fn finish(&mut self, out: &mut Actions) -> Result<(), Error> {
        let Signing { secret, aggregate } = self.signing.take().ok_or(Error::Empty { what: "session" })?;
        let mut partials = vec![secret.sign(&self.key, &aggregate)?];
        partials.extend(self.clients.iter().filter_map(|c| c.partial));
        let signature = aggregate_partials(&self.key, &self.message, &aggregate, &partials)?;
        if verify_final(&self.key, &self.message, &signature).is_err() {
            let wrong = |c: &&Client| match (&c.nonce, &c.partial) {
                (Some(nonce), Some(partial)) => {
                    verify_partial(&self.key, &self.message, &aggregate, &c.key, nonce, partial).is_err()
                }
                _ => true,
            };
            let blamed: Vec<_> = self
                .clients
                .iter()
                .filter(wrong)
                .map(|c| (c.id, ExcludeReason::WrongPartial { session: 0 }))
                .collect();
            if blamed.is_empty() {
                return Err(Error::BadSignature { what: "own partial signature".into() });
            }
            self.stall(blamed, out);
            return Ok(());
        }
        let close = self.close.as_mut().ok_or(Error::Empty { what: "close" })?;
        for input in &mut close.tx.input {
            input.witness = Witness::from_slice(&[signature.as_slice()]);
        }
        self.signature = Some(signature);
        self.enter(LspClosePhase::Recording, None, out);
        self.persist_close(out);
        Ok(())
    }

    fn record_persisted(&mut self, out: &mut Actions) {
        if self.phase != LspClosePhase::Recording {
            return;
        }
        let (Some(close), Some(signature)) = (&self.close, self.signature) else { return };
        out.push(LspCloseAction::Broadcast(Box::new(close.tx.clone())));
        let (instance_id, attempt) = self.head();
        self.to_all(payload::CloseDone { instance_id, attempt, signature }, out);
        self.enter(LspClosePhase::Done, None, out);
        out.push(LspCloseAction::Done);
    }

    fn stall(&mut self, blamed: Vec<(PublicKey, ExcludeReason)>, out: &mut Actions) {
        // Nonces of this attempt are not used again.
        self.signing = None;
        self.enter(LspClosePhase::Stalled, None, out);
        out.extend(blamed.into_iter().map(|(client, reason)| LspCloseAction::Blamed { client, reason }));
    }

    fn fail(&mut self, reason: CloseFailReason, out: &mut Actions) {
        let (instance_id, attempt) = self.head();
        self.to_all(payload::CloseAbort { instance_id, attempt, code: 1, text: clip(&reason) }, out);
        self.enter(LspClosePhase::Failed, None, out);
        out.push(LspCloseAction::Failed { reason });
    }

    fn state(&self) -> LspCloseState {
        LspCloseState {
            version: RECORD_VERSION,
            instance_id: self.config.record.plan.instance_id,
            attempt: self.config.attempt,
            clients: self
                .clients
                .iter()
                .map(|c| CloseBalance {
                    client: c.id,
                    payout_script: c.payout.clone().unwrap_or_default(),
                    client_msat: c.client_msat,
                })
                .collect(),
            lsp_script: self.config.lsp_script.clone(),
            feerate_sat_per_kwu: self.config.feerate_sat_per_kwu,
        }
    }

    fn head(&self) -> ([u8; 32], u16) {
        (self.config.record.plan.instance_id, self.config.attempt)
    }

    fn enter(&mut self, phase: LspClosePhase, seconds: Option<u32>, out: &mut Actions) {
        self.phase = phase;
        out.push(LspCloseAction::Progress(phase));
        self.set_timer(seconds, out);
    }

    /// Whatever timer there was means nothing any more.
    fn set_timer(&mut self, seconds: Option<u32>, out: &mut Actions) {
        self.timer = self.timer.wrapping_add(1);
        if let Some(seconds) = seconds {
            out.push(LspCloseAction::SetTimer { id: self.timer, seconds });
        }
    }

    fn to_all(&self, message: impl Into<Payload>, out: &mut Actions) {
        let payload = message.into();
        out.extend(
            self.clients.iter().map(|c| LspCloseAction::Send { client: c.id, payload: payload.clone() }),
        );
    }
}
