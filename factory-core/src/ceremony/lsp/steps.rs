//! The steps of a ceremony once everybody has done its part, and what happens when one has not.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, ScriptBuf};
use bolt_tlv::payload;
use rand::RngCore;

use super::types::{FailReason, LspAction, Phase};
use super::{send, Actions, Guilty, LspCeremony, Round};
use crate::ceremony::messages::{path_message, plan_message};
use crate::ceremony::signing::{Finished, TreeSigning};
use crate::ceremony::ExcludeReason;
use crate::faults::switch;
use crate::lifetime::Lifetime;
use crate::musig::PublicNonce;
use crate::params::as_u64;
use crate::plan::{FactoryPlan, LeafMember, Member, PlanParts};
use crate::record::LspFactoryRecord;
use crate::refuse::clip;
use crate::tree::Layout;
use crate::Error;

impl LspCeremony {
    /// Invites are answered, or an attempt failed: a new plan for those who are left.
    pub(super) fn plan(&mut self, out: &mut Actions) -> Result<(), Error> {
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
            lsp_key: self.signer.public_key(),
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

    pub(super) fn open(&mut self, out: &mut Actions) {
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

    pub(super) fn ask_funding(&mut self, out: &mut Actions) -> Result<(), Error> {
        let layout = self.layout.as_ref().ok_or(Error::Empty { what: "layout" })?;
        let output = layout.funding_output()?;
        self.funding_asked = true;
        self.enter(Phase::Funding, Some(self.config.timeouts.funding), out);
        out.push(LspAction::BuildFunding { script: output.script_pubkey, value_sat: output.value.to_sat() });
        Ok(())
    }

    pub(super) fn funding_built(
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

    fn nonces(&self) -> Vec<Vec<PublicNonce>> {
        self.clients.iter().map(|c| c.round.nonces.clone().unwrap_or_default()).collect()
    }

    pub(super) fn aggregate(&mut self, out: &mut Actions) -> Result<(), Error> {
        let tree = self.tree.as_ref().ok_or(Error::Empty { what: "tree" })?;
        let signing = TreeSigning::start(tree, &self.signer, &self.nonces(), &mut self.rng)?;
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

    pub(super) fn finish(&mut self, out: &mut Actions) -> Result<Guilty, Error> {
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
                if switch("lsp.signatures.early") {
                    self.record_persisted(self.attempt, out)?;
                }
                out.push(LspAction::PersistRecord(Box::new(record)));
                Ok(Vec::new())
            }
        }
    }

    pub(super) fn record_persisted(&mut self, attempt: u16, out: &mut Actions) -> Result<Guilty, Error> {
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
    pub(super) fn tear_down(&mut self, out: &mut Actions) {
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

    pub(super) fn exclude(&mut self, guilty: Guilty, out: &mut Actions) -> Result<(), Error> {
        self.tear_down(out);
        for (id, reason) in guilty {
            let Some(position) = self.clients.iter().position(|c| c.id == id) else { continue };
            let client = self.clients.remove(position);
            let abort = payload::Abort {
                instance_id: self.config.instance_id,
                attempt: self.attempt,
                code: reason.code(),
                text: clip(&reason),
                culprit: client.accepted.map(|(key, _)| key).filter(|_| reason.is_clients_fault()),
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

    pub(super) fn fail(&mut self, reason: FailReason, out: &mut Actions) {
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
