//! A client's closing machine. See the module above for the order of messages.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{absolute, transaction, ScriptBuf, Transaction, Witness};
use bolt_tlv::payload::{self, Payload};
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use super::transaction::{DUST_SAT, MIN_FEERATE_SAT_PER_KWU};
use crate::faults::switch;
use crate::musig::{check_aggregate_nonce, public_key, verify_final, AggKey, PartialBytes, SecretSession};
use crate::plan::{add, check_payout_script};
use crate::record::{ClientFactoryRecord, RECORD_VERSION};
use crate::refuse::{clip, refuse, Refusal, RefuseCode};
use crate::transaction::{check_dust, taproot_sighash, NO_DELAY};
use crate::Error;

/// Weight that the witness of the one input adds: marker and flag, count, length, signature (BIP 141).
const KEY_SPEND_WITNESS: u64 = 2 + 1 + 1 + 64;

/// What a client's closing machine starts from.
pub struct ClientCloseConfig {
    /// The factory.
    pub record: ClientFactoryRecord,
    /// The client's factory key.
    pub secret_key: [u8; 32],
    /// Where the closing transaction pays the client: P2WPKH, P2WSH or P2TR.
    pub payout_script: ScriptBuf,
    /// Whether the client agrees to a close.
    pub allow: bool,
}

/// What has to survive a restart: the channel is shut down, perhaps a partial signature is out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCloseState {
    /// Version of the record.
    pub version: u16,
    /// The factory.
    #[serde(with = "hex::serde")]
    pub instance_id: [u8; 32],
    /// The last attempt that was seen.
    pub attempt: u16,
    /// The client's final balance, msat.
    pub own_msat: u64,
    /// Where the client is paid.
    pub payout_script: ScriptBuf,
    /// Whether a partial signature may have left: the channel stays frozen until a spend of the funding output is
    /// deep.
    pub frozen: bool,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientClosePhase {
    /// Nothing was proposed.
    Idle,
    /// Consented; waiting for its channel to be shut down and for the transaction.
    Consented,
    /// The nonce is out; waiting for the aggregate.
    Nonce,
    /// Waiting for the frozen state to be stored.
    Freezing,
    /// The partial signature is out.
    Signed,
    /// The transaction is complete.
    Done,
}

/// What the caller tells the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCloseInput {
    /// The provider sent a message.
    Message(Payload),
    /// Whether payments are pending on the channel.
    PendingPayments(bool),
    /// The channel is shut down, its balance is final (LDK's `ChannelClosed`).
    ChannelShut {
        /// The client's balance, msat.
        own_msat: u64,
    },
    /// The frozen state is on disk.
    Persisted {
        /// The state's attempt.
        attempt: u16,
    },
}

/// What the caller has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCloseAction {
    /// Send a message to the provider.
    Send(Payload),
    /// Start no payment on the channel any more, and let the provider shut it down.
    StopPayments,
    /// Store the state, then say [`ClientCloseInput::Persisted`].
    PersistFrozen(ClientCloseState),
    /// The closing transaction is complete; it may be broadcast by anybody.
    Completed {
        /// The signed transaction.
        tx: Box<Transaction>,
    },
    /// The client refused. If its channel was shut down already, it stays so.
    Refused {
        /// The check that failed.
        code: RefuseCode,
        /// What was wrong.
        text: String,
    },
    /// The provider called this attempt off.
    Aborted {
        /// Its code.
        code: u16,
        /// Its text.
        text: String,
    },
}

struct Round {
    key: AggKey,
    tx: Transaction,
    message: [u8; 32],
    session: Option<SecretSession>,
    partial: Option<PartialBytes>,
}

type Actions = Vec<ClientCloseAction>;

/// A client's side of a cooperative close.
pub struct ClientClose {
    config: ClientCloseConfig,
    own_key: PublicKey,
    rng: StdRng,
    phase: ClientClosePhase,
    /// Highest attempt for which something was sent; nonces are drawn at most once for an attempt.
    attempt: Option<u16>,
    pending_payments: bool,
    own_msat: Option<u64>,
    frozen: bool,
    waiting: Option<payload::CloseTx>,
    round: Option<Round>,
}

impl ClientClose {
    /// A machine that waits for a proposal.
    ///
    /// # Errors
    /// A secret key that is not the record's, or a script of another type.
    pub fn new<R: RngCore + CryptoRng>(config: ClientCloseConfig, rng: &mut R) -> Result<Self, Error> {
        let own_key = public_key(&config.secret_key)?;
        if own_key != config.record.own_key {
            return Err(Error::Mismatch { what: "client's factory key" });
        }
        check_payout_script("payout script", &config.payout_script)?;
        let mut seed = [0u8; 32];
        rng.fill_bytes(&mut seed);
        Ok(Self {
            config,
            own_key,
            rng: StdRng::from_seed(seed),
            phase: ClientClosePhase::Idle,
            attempt: None,
            pending_payments: false,
            own_msat: None,
            frozen: false,
            waiting: None,
            round: None,
        })
    }

    /// Goes on after a restart, with the state stored last. Only a later attempt of the provider is answered.
    ///
    /// # Errors
    /// As [`ClientClose::new`], and a state that is not of this factory.
    pub fn resume<R: RngCore + CryptoRng>(
        mut config: ClientCloseConfig,
        state: &ClientCloseState,
        rng: &mut R,
    ) -> Result<Self, Error> {
        if state.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: state.version, known: RECORD_VERSION });
        }
        if state.instance_id != config.record.path.instance_id {
            return Err(Error::Mismatch { what: "stored state of the close" });
        }
        config.payout_script = state.payout_script.clone();
        let mut machine = Self::new(config, rng)?;
        machine.phase = ClientClosePhase::Consented;
        machine.attempt = Some(state.attempt);
        machine.own_msat = Some(state.own_msat);
        machine.frozen = state.frozen;
        Ok(machine)
    }

    /// The phase.
    pub fn phase(&self) -> ClientClosePhase {
        self.phase
    }

    /// Whether a partial signature may be out, so that the channel has to stay frozen until a spend of the funding
    /// output is deep.
    pub fn frozen(&self) -> bool {
        self.frozen
    }

    /// Takes one input and says what to do. What is late, repeated or for another factory is ignored.
    ///
    /// # Errors
    /// None at present: a failed check comes out as [`ClientCloseAction::Refused`].
    pub fn handle(&mut self, input: ClientCloseInput) -> Result<Actions, Error> {
        let mut out = Vec::new();
        if self.phase == ClientClosePhase::Done {
            return Ok(out);
        }
        let result = match input {
            ClientCloseInput::Message(message) => self.message(message, &mut out),
            ClientCloseInput::PendingPayments(pending) => {
                self.pending_payments = pending;
                Ok(())
            }
            ClientCloseInput::ChannelShut { own_msat } => self.channel_shut(own_msat, &mut out),
            ClientCloseInput::Persisted { attempt } => {
                self.persisted(attempt, &mut out);
                Ok(())
            }
        };
        if let Err(refusal) = result {
            self.refuse(refusal, &mut out);
        }
        Ok(out)
    }

    fn message(&mut self, message: Payload, out: &mut Actions) -> Result<(), Refusal> {
        let instance_id = self.config.record.path.instance_id;
        if message.instance_id() != Some(instance_id) {
            return Ok(());
        }
        let Some(attempt) = message.attempt() else { return Ok(()) };
        let known = self.attempt;
        if known.is_some_and(|known| attempt < known) {
            return Ok(());
        }
        let current = known == Some(attempt);
        match (message, self.phase) {
            (Payload::ClosePropose(_), ClientClosePhase::Idle) => self.propose(attempt, out),
            // The provider starts over before any channel is shut down.
            (Payload::ClosePropose(_), ClientClosePhase::Consented)
                if !current && self.own_msat.is_none() =>
            {
                self.propose(attempt, out)
            }
            (Payload::CloseTx(m), phase) if phase >= ClientClosePhase::Consented && !current => {
                self.attempt = Some(attempt);
                self.round = None;
                self.waiting = Some(m);
                self.phase = ClientClosePhase::Consented;
                self.check_transaction(out)
            }
            (Payload::CloseAggNonce(m), ClientClosePhase::Nonce) if current => self.aggregate(&m.nonce, out),
            (Payload::CloseAggNonce(_), ClientClosePhase::Freezing | ClientClosePhase::Signed)
                if current && !switch("client.close.nonce_twice") =>
            {
                Err(Refusal::new(RefuseCode::NonceReuse, "an aggregate nonce came twice in one attempt"))
            }
            (Payload::CloseDone(m), ClientClosePhase::Signed) if current => self.complete(&m.signature, out),
            (Payload::CloseAbort(m), phase) if current && phase != ClientClosePhase::Idle => {
                self.waiting = None;
                self.round = None;
                if self.own_msat.is_none() {
                    self.phase = ClientClosePhase::Idle;
                } else {
                    self.phase = ClientClosePhase::Consented;
                }
                out.push(ClientCloseAction::Aborted { code: m.code, text: clip(m.text) });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn propose(&mut self, attempt: u16, out: &mut Actions) -> Result<(), Refusal> {
        self.attempt = Some(attempt);
        if !self.config.allow {
            return Err(Refusal::new(RefuseCode::NotWanted, "no close wanted now"));
        }
        if self.pending_payments && !switch("client.close.pending") {
            return Err(Refusal::new(RefuseCode::PendingPayments, "payments are pending on the channel"));
        }
        self.phase = ClientClosePhase::Consented;
        out.push(ClientCloseAction::StopPayments);
        let instance_id = self.config.record.path.instance_id;
        let payout_script = self.config.payout_script.clone();
        out.push(ClientCloseAction::Send(
            payload::CloseConsent { instance_id, attempt, payout_script }.into(),
        ));
        Ok(())
    }

    fn state(&self, own_msat: u64) -> ClientCloseState {
        ClientCloseState {
            version: RECORD_VERSION,
            instance_id: self.config.record.path.instance_id,
            attempt: self.attempt.unwrap_or(0),
            own_msat,
            payout_script: self.config.payout_script.clone(),
            frozen: self.frozen,
        }
    }

    fn channel_shut(&mut self, own_msat: u64, out: &mut Actions) -> Result<(), Refusal> {
        if self.phase != ClientClosePhase::Consented || self.own_msat.is_some() {
            return Ok(());
        }
        self.own_msat = Some(own_msat);
        out.push(ClientCloseAction::PersistFrozen(self.state(own_msat)));
        self.check_transaction(out)
    }

    /// With the transaction and the final balance there: checks one against the other, then sends a nonce.
    fn check_transaction(&mut self, out: &mut Actions) -> Result<(), Refusal> {
        let Some(own_msat) = self.own_msat else { return Ok(()) };
        let Some(message) = self.waiting.take() else { return Ok(()) };
        let key = self.check_keys(&message.keys)?;
        if !switch("client.close.form") {
            self.check_form(&message.transaction)?;
        }
        if !switch("client.close.amount") {
            self.check_amount(&message.transaction, own_msat)?;
        }
        let funding = self.config.record.path.funding.tx_out();
        let sighash =
            taproot_sighash(&message.transaction, &funding).map_err(refuse(RefuseCode::CloseForm))?;
        let session = SecretSession::new(&self.config.secret_key, &key, sighash, &mut self.rng)
            .map_err(refuse(RefuseCode::Internal))?;
        let nonce = session.public_nonce();
        self.round = Some(Round {
            key,
            tx: message.transaction,
            message: sighash,
            session: Some(session),
            partial: None,
        });
        self.phase = ClientClosePhase::Nonce;
        let (instance_id, attempt) = (message.instance_id, message.attempt);
        out.push(ClientCloseAction::Send(payload::CloseNonce { instance_id, attempt, nonce }.into()));
        Ok(())
    }

    fn check_keys(&self, keys: &[PublicKey]) -> Result<AggKey, Refusal> {
        let key = AggKey::new(keys).map_err(refuse(RefuseCode::CloseKeys))?;
        let funding = &self.config.record.path.funding.script;
        let same = key.script_pubkey() == *funding && key.contains(&self.own_key);
        if !same && !switch("client.close.keys") {
            return Err(Refusal::new(RefuseCode::CloseKeys, "keys are not those of the funding output"));
        }
        Ok(key)
    }

    fn check_form(&self, tx: &Transaction) -> Result<(), Refusal> {
        let wrong = |text: &str| Err(Refusal::new(RefuseCode::CloseForm, text));
        if tx.version != transaction::Version::TWO || tx.lock_time != absolute::LockTime::ZERO {
            return wrong("version is not 2 or lock time not 0");
        }
        let [input] = tx.input.as_slice() else {
            return wrong("not exactly one input");
        };
        if input.previous_output != self.config.record.path.funding.outpoint {
            return wrong("input is not the funding output");
        }
        if input.sequence != NO_DELAY || !input.script_sig.is_empty() || !input.witness.is_empty() {
            return wrong("input has a delay or is signed");
        }
        Ok(())
    }

    fn check_amount(&self, tx: &Transaction, own_msat: u64) -> Result<(), Refusal> {
        let funding_sat = self.config.record.path.funding.value_sat;
        // One output that no node relays would keep the whole transaction from confirming, with the
        // channel frozen.
        for output in &tx.output {
            check_payout_script("output of the close", &output.script_pubkey)
                .and_then(|()| check_dust("output of the close", output))
                .map_err(refuse(RefuseCode::CloseForm))?;
        }
        let total = tx
            .output
            .iter()
            .try_fold(0u64, |sum, o| add(sum, o.value.to_sat()))
            .map_err(refuse(RefuseCode::CloseAmount))?;
        if total > funding_sat {
            let text = format!("outputs of {total} sat, the funding output has {funding_sat} sat");
            return Err(Refusal::new(RefuseCode::CloseAmount, text));
        }
        let weight = tx.weight().to_wu().saturating_add(KEY_SPEND_WITNESS);
        let least = weight.saturating_mul(MIN_FEERATE_SAT_PER_KWU).div_ceil(1000);
        let fee = funding_sat.saturating_sub(total);
        if fee < least {
            let text = format!("fee of {fee} sat, the least that is relayed is {least} sat");
            return Err(Refusal::new(RefuseCode::CloseAmount, text));
        }
        let due = own_msat / 1000;
        if due < DUST_SAT {
            return Ok(());
        }
        // It has to be one output: several small ones would cost more to spend.
        let paid = tx
            .output
            .iter()
            .filter(|o| o.script_pubkey == self.config.payout_script)
            .map(|o| o.value.to_sat())
            .max()
            .unwrap_or(0);
        if paid < due {
            let text = format!("pays {paid} sat, due are {due} sat");
            return Err(Refusal::new(RefuseCode::CloseAmount, text));
        }
        Ok(())
    }

    fn aggregate(&mut self, nonce: &[u8; 66], out: &mut Actions) -> Result<(), Refusal> {
        let internal = || Refusal::new(RefuseCode::Internal, "no session");
        let round = self.round.as_mut().ok_or_else(internal)?;
        // Used up from here on, whatever happens.
        let session = round.session.take().ok_or_else(internal)?;
        check_aggregate_nonce(nonce).map_err(refuse(RefuseCode::AggregateNonce))?;
        round.partial = Some(session.sign(&round.key, nonce).map_err(refuse(RefuseCode::AggregateNonce))?);
        self.phase = ClientClosePhase::Freezing;
        self.frozen = !switch("client.close.thawed");
        let own_msat = self.own_msat.ok_or_else(internal)?;
        if switch("client.close.partial_early") {
            self.persisted(self.attempt.unwrap_or(0), out);
        }
        out.push(ClientCloseAction::PersistFrozen(self.state(own_msat)));
        Ok(())
    }

    fn persisted(&mut self, attempt: u16, out: &mut Actions) {
        if self.phase != ClientClosePhase::Freezing || self.attempt != Some(attempt) {
            return;
        }
        let Some(partial) = self.round.as_mut().and_then(|r| r.partial.take()) else { return };
        self.phase = ClientClosePhase::Signed;
        let instance_id = self.config.record.path.instance_id;
        out.push(ClientCloseAction::Send(payload::ClosePartial { instance_id, attempt, partial }.into()));
    }

    fn complete(&mut self, signature: &[u8; 64], out: &mut Actions) -> Result<(), Refusal> {
        let Some(round) = &self.round else { return Ok(()) };
        verify_final(&round.key, &round.message, signature).map_err(refuse(RefuseCode::Signature))?;
        let mut tx = round.tx.clone();
        for input in &mut tx.input {
            input.witness = Witness::from_slice(&[signature.as_slice()]);
        }
        self.phase = ClientClosePhase::Done;
        out.push(ClientCloseAction::Completed { tx: Box::new(tx) });
        Ok(())
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Actions) {
        self.waiting = None;
        self.round = None;
        // What is shut down stays shut down, and a later attempt may do better.
        self.phase =
            if self.own_msat.is_none() { ClientClosePhase::Idle } else { ClientClosePhase::Consented };
        if let Some(attempt) = self.attempt {
            let instance_id = self.config.record.path.instance_id;
            let (code, text) = (refusal.code.number(), refusal.text.clone());
            out.push(ClientCloseAction::Send(
                payload::CloseRefuse { instance_id, attempt, code, text }.into(),
            ));
        }
        out.push(ClientCloseAction::Refused { code: refusal.code, text: refusal.text });
    }
}
