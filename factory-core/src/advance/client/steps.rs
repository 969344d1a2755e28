//! A client's steps from the proposal to the complete record, and how a try ends before that.

use bitcoin::ScriptBuf;
use bolt_tlv::payload;

use super::types::{ClientAdvanceAction, ClientAdvancePhase};
use super::{Actions, ClientAdvance, Round};
use crate::advance::check::{NewPath, Proposal};
use crate::advance::lsp::AdvanceReason;
use crate::advance::pending::AdvanceMark;
use crate::faults::switch;
use crate::musig::{AggregateNonce, EarlySession, PartialBytes};
use crate::node::Node;
use crate::refuse::{clip, refuse, Refusal, RefuseCode};
use crate::transaction::TreeTx;

impl ClientAdvance {
    pub(super) fn propose(
        &mut self,
        message: &payload::AdvancePropose,
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        let again = self.attempt.is_some_and(|known| message.attempt <= known);
        if again || self.phase == ClientAdvancePhase::Recording {
            return Ok(());
        }
        // A new try ends the one before.
        self.end_round();
        self.attempt = Some(message.attempt);
        let (record, policy) = (&self.config.record, &self.config.policy);
        let proposal = Proposal::check(record, &self.state, policy, message)?;
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
            first: Vec::new(),
            second: Vec::new(),
        });
        self.phase = ClientAdvancePhase::Agreed;
        let reason = AdvanceReason::from(message.reason);
        out.push(ClientAdvanceAction::PrepareChannel { attempt, reason, from_sat, to_sat });
        out.push(ClientAdvanceAction::Send(agree.into()));
        Ok(())
    }

    pub(super) fn prepared(
        &mut self,
        attempt: u16,
        script: ScriptBuf,
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        if !self.is_at(attempt, ClientAdvancePhase::Agreed) {
            return Ok(());
        }
        if let Some(round) = self.round.as_mut() {
            round.script.get_or_insert(script);
        }
        self.rebuild(out)
    }

    /// With the tree and the channel's script there: builds the new path and checks it.
    pub(super) fn rebuild(&mut self, out: &mut Actions) -> Result<(), Refusal> {
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

    pub(super) fn covered(&mut self, attempt: u16, out: &mut Actions) -> Result<(), Refusal> {
        if !self.is_at(attempt, ClientAdvancePhase::Covering) {
            return Ok(());
        }
        if let Some(round) = self.round.as_mut() {
            round.covered = true;
        }
        self.sign(out)
    }

    /// With companions and aggregate nonces there: signs. Nothing leaves before the disk knows that the position is
    /// used up.
    pub(super) fn sign(&mut self, out: &mut Actions) -> Result<(), Refusal> {
        if self.phase != ClientAdvancePhase::Covering {
            return Ok(());
        }
        let Some(round) = self.round.as_mut() else { return Ok(()) };
        let (Some(path), Some(nonces)) = (&round.path, &round.nonces) else { return Ok(()) };
        if !round.covered && !switch("client.advance.uncovered") {
            return Ok(());
        }
        round.proposal.check_policy(&self.config.policy)?;
        let change = &round.proposal.change;
        // From here on the nonces are used up, whatever happens.
        let (inner, outer) = (std::mem::take(&mut round.inner), std::mem::take(&mut round.outer));
        round.first = partials(inner, path.inner(change), &nonces.inner)?;
        round.second = partials(outer, path.outer(change), &nonces.outer)?;
        if round.first.is_empty() {
            return self.inner(&[], out);
        }
        let outermost = path.outer(change).next().map(|(_, tx)| tx.txid());
        let outermost = outermost.ok_or_else(|| Refusal::new(RefuseCode::Internal, "nothing to sign"))?;
        let (attempt, position) = (round.proposal.attempt, change.position);
        self.state.marks.push(AdvanceMark { attempt, position, outermost });
        self.phase = ClientAdvancePhase::Marking;
        if switch("client.advance.unmarked") {
            self.mark_persisted(attempt, out);
        }
        out.push(ClientAdvanceAction::PersistMark { attempt, state: Box::new(self.state.clone()) });
        Ok(())
    }

    /// The mark is on disk: the inner partial signatures leave.
    pub(super) fn mark_persisted(&mut self, attempt: u16, out: &mut Actions) {
        if !self.is_at(attempt, ClientAdvancePhase::Marking) {
            return;
        }
        let Some(round) = self.round.as_mut() else { return };
        self.phase = ClientAdvancePhase::Inner;
        let (instance_id, partials) = (self.state.instance_id, std::mem::take(&mut round.first));
        let message = payload::AdvancePartials { instance_id, attempt, partials };
        out.push(ClientAdvanceAction::Send(message.into()));
    }

    /// The inner transactions are complete: they have to be on disk before the outer partial signatures leave.
    pub(super) fn inner(&mut self, signatures: &[[u8; 64]], out: &mut Actions) -> Result<(), Refusal> {
        let Some(round) = self.round.as_ref() else { return Ok(()) };
        let Some(path) = round.path.as_ref() else { return Ok(()) };
        round.proposal.check_policy(&self.config.policy)?;
        let pending = path.pending(&self.config.record, &round.proposal, signatures)?;
        let attempt = pending.attempt;
        self.phase = ClientAdvancePhase::Storing;
        // It says all that the mark said.
        self.state.marks.retain(|mark| mark.attempt != attempt);
        self.state.pending.push(pending.clone());
        if switch("client.advance.inner_unstored") {
            self.inner_persisted(attempt, out);
        }
        let state = Box::new(self.state.clone());
        out.push(ClientAdvanceAction::PersistInner { state, pending: Box::new(pending) });
        Ok(())
    }

    pub(super) fn inner_persisted(&mut self, attempt: u16, out: &mut Actions) {
        if !self.is_at(attempt, ClientAdvancePhase::Storing) {
            return;
        }
        let Some(round) = self.round.take() else { return };
        self.phase = ClientAdvancePhase::Outer;
        self.outer = round.second;
        self.send_outer(attempt, out);
    }

    /// The same bytes each time, so it is no second use of a nonce.
    pub(super) fn send_outer(&self, attempt: u16, out: &mut Actions) {
        let (instance_id, partials) = (self.state.instance_id, self.outer.clone());
        out.push(ClientAdvanceAction::Send(payload::AdvanceOuter { instance_id, attempt, partials }.into()));
    }

    /// The outer signatures of a try, perhaps after a restart.
    pub(super) fn signed(
        &mut self,
        attempt: u16,
        signatures: &[[u8; 64]],
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        if !matches!(self.phase, ClientAdvancePhase::Idle | ClientAdvancePhase::Outer) {
            return Ok(());
        }
        let instance_id = self.state.instance_id;
        if self.state.completed.is_some_and(|completed| attempt <= completed) {
            // The provider does not know yet. What is newer has superseded it.
            out.push(ClientAdvanceAction::Send(payload::AdvancePersisted { instance_id, attempt }.into()));
            return Ok(());
        }
        let Some(pending) = self.unresolved().filter(|p| p.attempt == attempt) else { return Ok(()) };
        let record = pending.complete(signatures).map_err(refuse(RefuseCode::Signature))?;
        self.complete = Some((attempt, record.clone()));
        self.outer.clear();
        self.phase = ClientAdvancePhase::Recording;
        if switch("client.advance.persisted_early") {
            self.record_persisted(attempt, out);
        }
        out.push(ClientAdvanceAction::PersistRecord { attempt, record: Box::new(record) });
        Ok(())
    }

    pub(super) fn record_persisted(&mut self, attempt: u16, out: &mut Actions) {
        let Some((_, record)) = self.complete.take_if(|(of, _)| *of == attempt) else { return };
        self.phase = ClientAdvancePhase::Idle;
        self.state.complete(attempt, record.path.updates);
        self.config.record = record.clone();
        out.push(ClientAdvanceAction::PersistState(Box::new(self.state.clone())));
        let instance_id = self.state.instance_id;
        out.push(ClientAdvanceAction::Send(payload::AdvancePersisted { instance_id, attempt }.into()));
        out.push(ClientAdvanceAction::Completed { record: Box::new(record) });
    }

    /// What is under way is over; nonces and partial signatures of it are gone.
    fn end_round(&mut self) {
        self.round = None;
        self.outer.clear();
        self.phase = ClientAdvancePhase::Idle;
    }

    /// The connection is lost. A try whose outer partial signatures are on their way goes on with the next one.
    pub(super) fn disconnected(&mut self, out: &mut Actions) {
        let Some(attempt) = self.attempt else { return };
        match self.phase {
            ClientAdvancePhase::Idle
            | ClientAdvancePhase::Storing
            | ClientAdvancePhase::Outer
            | ClientAdvancePhase::Recording => {}
            ClientAdvancePhase::Agreed
            | ClientAdvancePhase::Covering
            | ClientAdvancePhase::Marking
            | ClientAdvancePhase::Inner => {
                self.end_round();
                self.aborted(attempt, None, "connection lost", out);
            }
        }
    }

    /// The provider says that a try is over; it may be an old one.
    pub(super) fn abort(&mut self, attempt: u16, code: u16, text: &str, out: &mut Actions) {
        let current = self.attempt == Some(attempt) && self.phase != ClientAdvancePhase::Idle;
        if current {
            self.end_round();
        }
        let burnt = self.is_pending(attempt);
        if current || burnt {
            self.aborted(attempt, Some(code), text, out);
        }
        if !burnt {
            self.resume(attempt, out);
        }
    }

    fn aborted(&mut self, attempt: u16, code: Option<u16>, text: &str, out: &mut Actions) {
        let (text, left) = (clip(text), self.left());
        out.push(ClientAdvanceAction::Aborted { attempt, code, text, left });
    }

    /// Tells the provider whether a try may come to be.
    pub(super) fn resume(&self, attempt: u16, out: &mut Actions) {
        let (instance_id, pending) = (self.state.instance_id, u16::from(self.is_pending(attempt)));
        out.push(ClientAdvanceAction::Send(payload::AdvanceResume { instance_id, attempt, pending }.into()));
    }

    /// A check of a message of this try failed.
    pub(super) fn refuse(&mut self, attempt: u16, refusal: Refusal, out: &mut Actions) {
        if self.attempt == Some(attempt) {
            self.end_round();
        }
        let (code, text, left) = (refusal.code, refusal.text, self.left());
        let instance_id = self.state.instance_id;
        let message =
            payload::AdvanceRefuse { instance_id, attempt, code: code.number(), text: text.clone() };
        out.push(ClientAdvanceAction::Send(message.into()));
        out.push(ClientAdvanceAction::Refused { attempt, code, text, left });
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
