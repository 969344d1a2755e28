//! The steps of an advance once everybody has done its part, and what happens when one has not.

use std::collections::BTreeMap;

use bolt_tlv::payload;

use super::types::{AdvanceFailReason, ChannelChange, LspAdvanceAction, LspAdvancePhase};
use super::{send, Actions, Client, Guilty, LspAdvance};
use crate::advance::plan::Built;
use crate::ceremony::signing::{Finished, Sessions};
use crate::ceremony::ExcludeReason;
use crate::faults::switch;
use crate::musig::{PartialBytes, PublicNonce, SignatureBytes};
use crate::params::as_u64;
use crate::refuse::clip;
use crate::Error;

impl LspAdvance {
    pub(super) fn prepare(&mut self, out: &mut Actions) {
        self.enter(LspAdvancePhase::Preparing, Some(self.seconds.1), out);
        let change = |c: &Client| ChannelChange {
            client: c.id,
            index: c.index,
            from_sat: c.capacity_sat.0,
            to_sat: c.capacity_sat.1,
        };
        out.push(LspAdvanceAction::PrepareChannels(self.clients.iter().map(change).collect()));
    }

    /// The transactions are known: everybody is told, and companions are exchanged.
    pub(super) fn rebuild(&mut self, out: &mut Actions) -> Result<(), Error> {
        let planned = self.planned.take().ok_or(Error::Empty { what: "plan" })?;
        let scripts = self.clients.iter().map(|c| c.script.clone().unwrap_or_default()).collect();
        let built = planned.build(scripts)?;
        self.counts = built.session_counts();
        let mut guilty = Vec::new();
        for client in &self.clients {
            let (inner, outer) = client.agreed.as_ref().map_or((0, 0), |(i, o)| (i.len(), o.len()));
            if (inner, outer) != self.counts {
                let (got, expected) =
                    (inner.saturating_add(outer), self.counts.0.saturating_add(self.counts.1));
                let (got, expected) = (as_u64(got), as_u64(expected));
                guilty.push((client.id, ExcludeReason::ListLength { got, expected }));
            }
        }
        if !guilty.is_empty() {
            self.blame(guilty, out);
            return Ok(());
        }
        let inner = Sessions::start(&built.inner(), &self.signer, &self.nonces(|n| &n.0), &mut self.rng)?;
        let outer = Sessions::start(&built.outer(), &self.signer, &self.nonces(|n| &n.1), &mut self.rng)?;
        (self.inner_sessions, self.outer_sessions) = (Some(inner), Some(outer));
        self.enter(LspAdvancePhase::Covering, Some(self.seconds.2), out);
        for client in &self.clients {
            send(out, client.id, built.tree_message(self.attempt, client.index)?);
            let (outpoint, output) = built.channel(client.index)?;
            out.push(LspAdvanceAction::Rebuilt { client: client.id, outpoint, output });
        }
        self.built = Some(built);
        Ok(())
    }

    fn nonces(
        &self,
        list: impl Fn(&(Vec<PublicNonce>, Vec<PublicNonce>)) -> &Vec<PublicNonce>,
    ) -> Vec<Vec<PublicNonce>> {
        let mut nonces = vec![Vec::new(); self.all];
        for client in &self.clients {
            if let (Some(place), Some(agreed)) = (nonces.get_mut(client.index), &client.agreed) {
                *place = list(agreed).clone();
            }
        }
        nonces
    }

    fn partials(&self, list: impl Fn(&Client) -> &Option<Vec<PartialBytes>>) -> Vec<Vec<PartialBytes>> {
        let mut partials = vec![Vec::new(); self.all];
        for client in &self.clients {
            if let (Some(place), Some(list)) = (partials.get_mut(client.index), list(client)) {
                place.clone_from(list);
            }
        }
        partials
    }

    fn built(&self) -> Result<&Built, Error> {
        self.built.as_ref().ok_or(Error::Empty { what: "tree" })
    }

    fn send_nonces(&self, out: &mut Actions) -> Result<(), Error> {
        let missing = || Error::Empty { what: "sessions" };
        let inner_sessions = self.inner_sessions.as_ref().ok_or_else(missing)?;
        let outer = self.outer_sessions.as_ref().ok_or_else(missing)?.aggregates([0])?;
        let (instance_id, attempt, built) = (self.instance_id, self.attempt, self.built()?);
        for client in &self.clients {
            let inner = inner_sessions.aggregates(built.path(client.index))?;
            let outer = outer.clone();
            send(out, client.id, payload::AdvanceAggNonces { instance_id, attempt, inner, outer });
        }
        Ok(())
    }

    /// Companions are there: asks for partial signatures, the inner ones where there are any. From here on the position
    /// is used up.
    pub(super) fn ask(&mut self, out: &mut Actions) -> Result<(), Error> {
        self.burn(out)?;
        let phase = if self.counts.0 > 0 { LspAdvancePhase::Inner } else { LspAdvancePhase::Outer };
        if self.counts.0 == 0 {
            self.inner = self.built()?.inner().iter().map(|_| Vec::new()).collect();
        }
        self.enter(phase, Some(self.seconds.2), out);
        self.send_nonces(out)
    }

    /// Completes the inner transactions, and asks for the partial signatures of the outer ones.
    pub(super) fn cross(&mut self, out: &mut Actions) -> Result<(), Error> {
        let sessions = self.inner_sessions.take().ok_or(Error::Empty { what: "sessions" })?;
        let (nonces, partials) = (self.nonces(|n| &n.0), self.partials(|c| &c.inner));
        let finished = sessions.finish(&self.built()?.inner(), &nonces, &partials)?;
        self.inner = match self.signed(finished, 0) {
            Ok(signatures) => signatures,
            Err(guilty) => {
                self.blame(guilty, out);
                return Ok(());
            }
        };
        self.enter(LspAdvancePhase::Outer, Some(self.seconds.2), out);
        let (instance_id, attempt, built) = (self.instance_id, self.attempt, self.built()?);
        for client in &self.clients {
            let of_path = built.path(client.index).filter_map(|i| self.inner.get(i));
            let signatures = of_path.flatten().copied().collect();
            send(out, client.id, payload::AdvanceInner { instance_id, attempt, signatures });
        }
        Ok(())
    }

    fn burn(&mut self, out: &mut Actions) -> Result<(), Error> {
        self.burnt = true;
        if !switch("lsp.advance.unburnt") {
            out.push(LspAdvanceAction::PersistState(self.built()?.mark(self.attempt)?));
        }
        Ok(())
    }

    /// The signatures, or who is at fault; `offset` is where the round's sessions start in the count of all.
    fn signed(&self, finished: Finished, offset: usize) -> Result<Vec<Vec<SignatureBytes>>, Guilty> {
        match finished {
            Finished::Signed(signatures) => Ok(signatures),
            Finished::Culprits(culprits) => {
                let mut culprits: BTreeMap<usize, usize> = culprits;
                let named = self.clients.iter().filter_map(|client| {
                    let session = as_u64(culprits.remove(&client.index)?.saturating_add(offset));
                    Some((client.id, ExcludeReason::WrongPartial { session }))
                });
                Err(named.collect())
            }
        }
    }

    pub(super) fn finish(&mut self, out: &mut Actions) -> Result<(), Error> {
        let sessions = self.outer_sessions.take().ok_or(Error::Empty { what: "sessions" })?;
        let (nonces, partials) = (self.nonces(|n| &n.1), self.partials(|c| &c.outer));
        let finished = sessions.finish(&self.built()?.outer(), &nonces, &partials)?;
        let signatures = match self.signed(finished, self.counts.0) {
            Ok(signatures) => signatures.concat(),
            Err(guilty) => {
                self.blame(guilty, out);
                return Ok(());
            }
        };
        let record = self.built()?.record(self.attempt, &self.inner, &signatures)?;
        self.record = Some(record.clone());
        self.enter(LspAdvancePhase::Recording, None, out);
        if switch("lsp.advance.signed_early") {
            self.tell_signed(out)?;
        }
        out.push(LspAdvanceAction::PersistRecord(Box::new(record)));
        Ok(())
    }

    pub(super) fn tell_signed(&mut self, out: &mut Actions) -> Result<(), Error> {
        let record = self.record.as_ref().ok_or(Error::Empty { what: "record" })?;
        let message = record.signed()?;
        self.enter(LspAdvancePhase::Persisting, None, out);
        for client in &self.clients {
            send(out, client.id, message.clone());
        }
        Ok(())
    }

    pub(super) fn blame(&mut self, guilty: Guilty, out: &mut Actions) {
        let clients = guilty.iter().map(|(client, _)| *client).collect();
        out.extend(guilty.into_iter().map(|(client, reason)| LspAdvanceAction::Blamed { client, reason }));
        self.fail(AdvanceFailReason::Clients { clients }, out);
    }

    pub(super) fn fail(&mut self, reason: AdvanceFailReason, out: &mut Actions) {
        let asked = self.phase == LspAdvancePhase::Outer;
        let changes = |c: &&Client| asked && c.capacity_sat.0 != c.capacity_sat.1;
        let frozen = self.clients.iter().filter(changes).map(|c| c.id).collect();
        // Nonces of this try are not used again.
        (self.planned, self.built) = (None, None);
        (self.inner_sessions, self.outer_sessions) = (None, None);
        let (instance_id, attempt, code) = (self.instance_id, self.attempt, reason.code());
        for client in &self.clients {
            let text = clip(&reason);
            send(out, client.id, payload::AdvanceAbort { instance_id, attempt, code, text });
        }
        self.enter(LspAdvancePhase::Failed, None, out);
        out.push(LspAdvanceAction::Failed { reason, burnt: self.burnt, frozen });
    }

    pub(super) fn enter(&mut self, phase: LspAdvancePhase, seconds: Option<u32>, out: &mut Actions) {
        self.phase = phase;
        self.timer = self.timer.wrapping_add(1);
        out.push(LspAdvanceAction::Progress(phase));
        if let Some(seconds) = seconds {
            out.push(LspAdvanceAction::SetTimer { id: self.timer, seconds });
        }
    }
}
