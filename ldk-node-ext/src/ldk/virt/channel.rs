//! One channel's unrevoked commitments, and the peer's signatures of ours on every outpoint it has announced.
//!
//! Everything goes by (commitment number, V), and LDK counts numbers *down*. What moves the lists:
//!
//! | list | grows | shrinks |
//! |---|---|---|
//! | the peer's, at most 2 for a V | LDK signs one, or a monitor update carries one | the peer revokes; a splice fails |
//! | ours, at most 2 for a V | LDK accepts one | LDK releases our secret; a splice fails |
//! | outpoints announced | the peer's marker | V has no commitment any more; the attempt is given up |
//! | inbox | a companion comes before its commitment | it is used, or its commitment is there already |
//!
//! A monitor update carries the peer's next commitment *before* LDK signs it: so it is on disk before anything of it
//! leaves, and a restart in between forgets nothing that the peer may hold.

use bitcoin::secp256k1::ecdsa::Signature;
use bitcoin::secp256k1::{All, Secp256k1};
use bitcoin::{OutPoint, Txid};
use factory_core::faults::switch;
use lightning::ln::chan_utils::{
    ChannelTransactionParameters, CommitmentTransaction, HolderCommitmentTransaction,
};

use super::companion::{self, Signed};
use super::map::MAX_REALS;
use super::predict::Negotiation;

/// Bytes of the companions of one channel that may wait for their commitment: those of one in flight on every outpoint
/// there may be, with as many HTLCs as such channels take, and as much again.
const MAX_WAITING: usize = 4 << 20;

/// A commitment of the peer's.
#[derive(Clone, Debug)]
pub(super) struct Theirs {
    pub(super) v: OutPoint,
    pub(super) commitment: CommitmentTransaction,
    /// What LDK has signed it with; none if that was before a restart.
    pub(super) signature: Option<Signature>,
    /// LDK will sign it if all goes well: see `predict`.
    pub(super) predicted: bool,
}

impl Theirs {
    pub(super) fn new(commitment: CommitmentTransaction, signature: Option<Signature>) -> Option<Self> {
        let v = funding(&commitment)?;
        Some(Self { v, commitment, signature, predicted: false })
    }
}

/// A commitment of ours.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) v: OutPoint,
    pub(super) commitment: HolderCommitmentTransaction,
    pub(super) companions: Vec<(OutPoint, Signed)>,
    /// LDK will accept it if all goes well: see `predict`. The signature on V that it has is none of the peer's then.
    pub(super) predicted: bool,
    /// The state of the channel's record in which all of this is.
    pub(super) since: u64,
}

impl Own {
    /// As it was stored.
    pub(super) fn read(
        commitment: HolderCommitmentTransaction,
        companions: Vec<(OutPoint, Signed)>,
    ) -> Option<Self> {
        let v = funding(&commitment)?;
        Some(Self { v, commitment, companions, predicted: false, since: 0 })
    }

    pub(super) fn number(&self) -> u64 {
        self.commitment.commitment_number()
    }

    pub(super) fn on(&self, real: &OutPoint) -> Option<&Signed> {
        self.companions.iter().find(|(r, _)| r == real).map(|(_, signed)| signed)
    }
}

/// An outpoint that the peer has promised companions on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) v: OutPoint,
    pub(super) real: OutPoint,
    /// Each of our unrevoked commitments on V has been found to have one; from then on each has to.
    pub(super) covered: bool,
}

/// A companion that may have come before its commitment.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) v: OutPoint,
    /// As LDK counts.
    pub(super) number: u64,
    /// The signature on V that it goes with.
    pub(super) commitment: Signature,
    pub(super) real: OutPoint,
    pub(super) signed: Signed,
}

impl Waiting {
    /// About what it takes, bytes.
    fn size(&self) -> usize {
        let signatures = self.signed.htlcs.len().saturating_add(1);
        size_of::<Self>().saturating_add(signatures.saturating_mul(64))
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) keys_id: [u8; 32],
    pub(super) parameters: Vec<ChannelTransactionParameters>,
    pub(super) theirs: Vec<Theirs>,
    pub(super) own: Vec<Own>,
    pub(super) announced: Vec<Announced>,
    inbox: Vec<Waiting>,
    /// Counts the states of the record; the newest, and the newest that is on disk.
    pub(super) state: u64,
    pub(super) stored: u64,
    /// LDK was refused a secret for want of a companion, and waits.
    pub(super) secret_held: bool,
    /// The record could not be written when it was due.
    pub(super) owed: bool,
    /// A change of capacity that is being negotiated.
    pub(super) negotiation: Negotiation,
}

/// The outpoint that a commitment spends.
pub(super) fn funding(commitment: &CommitmentTransaction) -> Option<OutPoint> {
    commitment.trust().built_transaction().transaction.input.first().map(|input| input.previous_output)
}

pub(super) fn same(a: &CommitmentTransaction, b: &CommitmentTransaction) -> bool {
    a.trust().txid() == b.trust().txid()
}

impl Channel {
    pub(super) fn new(keys_id: [u8; 32]) -> Self {
        Self {
            keys_id,
            parameters: Vec::new(),
            theirs: Vec::new(),
            own: Vec::new(),
            announced: Vec::new(),
            inbox: Vec::new(),
            state: 0,
            stored: 0,
            secret_held: false,
            owed: false,
            negotiation: Negotiation::default(),
        }
    }

    pub(super) fn changed(&mut self) {
        self.state = self.state.saturating_add(1);
    }

    /// The parameters of a V.
    pub(super) fn parameters(&self, v: &OutPoint) -> Option<&ChannelTransactionParameters> {
        self.parameters.iter().find(|p| p.funding_outpoint.map(|o| o.into_bitcoin_outpoint()) == Some(*v))
    }

    /// LDK has signed a commitment of the peer's. False if it is not the one that was predicted, which must not leave.
    pub(super) fn signed(
        &mut self,
        parameters: &ChannelTransactionParameters,
        commitment: &CommitmentTransaction,
        signature: Signature,
    ) -> bool {
        let Some(theirs) = Theirs::new(commitment.clone(), Some(signature)) else { return true };
        let other = |t: &Theirs| t.predicted && t.v == theirs.v && !same(&t.commitment, commitment);
        if self.theirs.iter().any(other) && !switch("predict.unchecked") {
            return false;
        }
        if self.parameters(&theirs.v).is_none() {
            self.parameters.push(parameters.clone());
            self.changed();
        }
        self.add_theirs(theirs);
        true
    }

    /// A commitment of the peer's; the same once more only brings its signature.
    pub(super) fn add_theirs(&mut self, new: Theirs) {
        let number = new.commitment.commitment_number();
        let old = self.theirs.iter_mut().find(|t| t.v == new.v && t.commitment.commitment_number() == number);
        match old {
            Some(old) if same(&old.commitment, &new.commitment) => {
                old.signature = new.signature.or(old.signature);
                if !std::mem::replace(&mut old.predicted, false) {
                    return;
                }
            }
            Some(old) => *old = new,
            None => self.theirs.push(new),
        }
        self.changed();
    }

    /// The peer has revoked its commitments from this number on, as LDK counts.
    pub(super) fn revoked(&mut self, number: u64) {
        let before = self.theirs.len();
        self.theirs.retain(|t| t.commitment.commitment_number() < number);
        if self.theirs.len() != before {
            self.forget_parameters();
            self.changed();
        }
    }

    /// LDK accepts a commitment of ours; what is wrong with its companions.
    pub(super) fn accepted(
        &mut self,
        commitment: &HolderCommitmentTransaction,
        secp: &Secp256k1<All>,
    ) -> Vec<String> {
        let Some(mut new) = Own::read(commitment.clone(), Vec::new()) else { return Vec::new() };
        self.changed();
        new.since = self.state;
        let old = self.own.iter().position(|o| o.v == new.v && o.number() == new.number());
        if let Some(old) = old.map(|at| self.own.swap_remove(at)) {
            if same(&old.commitment, commitment) {
                new.companions = old.companions;
            }
        }
        self.own.push(new);
        self.settle(secp)
    }

    /// Whether our secret of this number, as LDK counts, may leave: each newer commitment of ours has a companion on
    /// every outpoint that the peer is bound to, on disk (invariant 5).
    pub(super) fn may_release(&self, number: u64) -> bool {
        self.own.iter().filter(|own| own.number() < number).all(|own| {
            let mut bound = self.announced.iter().filter(|a| a.v == own.v && a.covered);
            own.since <= self.stored && bound.all(|a| own.on(&a.real).is_some())
        })
    }

    /// Our commitments from this number on, as LDK counts, are revoked.
    pub(super) fn released(&mut self, number: u64) {
        let before = self.own.len();
        let gone: Vec<OutPoint> =
            self.own.iter().filter(|own| own.number() >= number).map(|own| own.v).collect();
        self.own.retain(|own| own.number() < number);
        if self.own.len() != before {
            // A V that LDK has moved on from has no newer one.
            let left: Vec<OutPoint> = self.own.iter().map(|own| own.v).collect();
            self.announced.retain(|a| !gone.contains(&a.v) || left.contains(&a.v));
            self.inbox.retain(|w| !gone.contains(&w.v) || left.contains(&w.v));
            self.forget_parameters();
            self.changed();
        }
    }

    /// Forgets every V but these: a splice came to nothing. What LDK has accepted a commitment on stays, too: it does
    /// not go back from there.
    pub(super) fn keep_only(&mut self, known: impl Fn(&OutPoint) -> bool) {
        let accepted: Vec<OutPoint> = self.own.iter().filter(|o| !o.predicted).map(|o| o.v).collect();
        let known = |v: &OutPoint| known(v) || accepted.contains(v);
        self.negotiation = Negotiation {
            agreed: self.negotiation.agreed,
            contributed: self.negotiation.contributed,
            ..Negotiation::default()
        };
        self.theirs.retain(|t| known(&t.v));
        self.own.retain(|o| known(&o.v));
        self.announced.retain(|a| known(&a.v));
        self.inbox.retain(|w| known(&w.v));
        self.forget_parameters();
        self.changed();
    }

    fn forget_parameters(&mut self) {
        let (own, theirs) = (&self.own, &self.theirs);
        self.parameters.retain(|p| {
            let v = p.funding_outpoint.map(|o| o.into_bitcoin_outpoint());
            own.iter().any(|o| Some(o.v) == v) || theirs.iter().any(|t| Some(t.v) == v)
        });
    }

    /// The peer announces an outpoint. Of Vs without a commitment of ours there is but one, that of a splice: the newest
    /// takes the place of one that came to nothing.
    ///
    /// # Errors
    /// If that is one more than there may be.
    pub(super) fn announce(&mut self, v: OutPoint, real: OutPoint) -> Result<(), String> {
        if self.announced.iter().any(|a| a.v == v && a.real == real) {
            return Ok(());
        }
        if self.announced.iter().filter(|a| a.v == v).count() >= MAX_REALS {
            return Err(format!("real: more than {MAX_REALS} outpoints announced for one channel"));
        }
        if self.parameters(&v).is_none() {
            let parameters = self.parameters.iter();
            let known = parameters.filter_map(|p| p.funding_outpoint.map(|o| o.into_bitcoin_outpoint()));
            let known: Vec<OutPoint> = known.chain([v]).collect();
            self.announced.retain(|a| a.covered || known.contains(&a.v));
            self.inbox.retain(|w| known.contains(&w.v));
        }
        self.announced.push(Announced { v, real, covered: false });
        self.changed();
        Ok(())
    }

    /// The connection has ended: what has not come to its end is announced and sent again after the next one.
    pub(super) fn disconnected(&mut self) {
        self.inbox.clear();
        let before = self.announced.len();
        self.announced.retain(|a| a.covered);
        if self.announced.len() != before {
            self.changed();
        }
    }

    /// Whether a companion for the commitment of ours with this number can be of use: it is not revoked, or it is the
    /// next one.
    fn is_of_use(&self, number: u64) -> bool {
        let newest = self.own.iter().map(Own::number).min();
        let oldest = self.own.iter().map(Own::number).max();
        newest
            .zip(oldest)
            .is_some_and(|(newest, oldest)| (newest.saturating_sub(1)..=oldest).contains(&number))
    }

    /// An outpoint that the peer was bound to can no longer confirm, or never could.
    pub(super) fn withdraw(&mut self, v: &OutPoint, real: &OutPoint) {
        self.announced.retain(|a| a.v != *v || a.real != *real);
        self.inbox.retain(|w| w.v != *v || w.real != *real);
        for own in self.own.iter_mut().filter(|own| own.v == *v) {
            own.companions.retain(|(r, _)| r != real);
        }
        self.changed();
    }

    /// Takes companions in, the newest in the place of an older one. One on an outpoint that was not announced, or for
    /// a commitment that is gone, is of no use to anybody and is dropped.
    ///
    /// # Errors
    /// What is wrong with one of them, or that there are more than can be waited for.
    pub(super) fn receive(
        &mut self,
        waiting: impl IntoIterator<Item = Waiting>,
        secp: &Secp256k1<All>,
    ) -> Result<(), String> {
        for new in waiting {
            let announced = self.announced.iter().any(|a| a.v == new.v && a.real == new.real);
            if !announced || !self.is_of_use(new.number) {
                continue;
            }
            self.inbox.retain(|w| (w.v, w.number, w.real) != (new.v, new.number, new.real));
            let waiting = self.inbox.iter().map(Waiting::size).fold(new.size(), usize::saturating_add);
            if waiting > MAX_WAITING {
                return Err(format!("companions: more than {MAX_WAITING} bytes without their commitment"));
            }
            self.inbox.push(new);
        }
        self.settle(secp).pop().map_or(Ok(()), Err)
    }

    /// Whether `commitment_signed` with this signature has all its companions, for as many HTLCs. It names the
    /// transaction of its V; if not, its V is the only one.
    ///
    /// # Errors
    /// If one of them is for another number of HTLCs.
    pub(super) fn is_accompanied(
        &self,
        funding: Option<&Txid>,
        commitment: &Signature,
        htlcs: usize,
        secp: &Secp256k1<All>,
    ) -> Result<bool, String> {
        self.is_as_predicted(funding, commitment, secp)?;
        let on = |a: &&Announced| funding.is_none_or(|txid| a.v.txid == *txid);
        for Announced { v, real, .. } in self.announced.iter().filter(on).copied() {
            // A record that is newer than LDK's own state knows the commitment already.
            let known = |o: &Own| o.v == v && (o.predicted || o.commitment.counterparty_sig == *commitment);
            if self.own.iter().any(|o| known(o) && o.on(&real).is_some()) {
                continue;
            }
            let mut found =
                self.inbox.iter().filter(|w| w.v == v && w.real == real && w.commitment == *commitment);
            let Some(waiting) = found.next() else { return Ok(false) };
            if waiting.signed.htlcs.len() != htlcs {
                let has = waiting.signed.htlcs.len();
                return Err(format!("companions: {has} HTLC signatures on {real}, not {htlcs}"));
            }
        }
        Ok(true)
    }

    /// Gives our commitments the companions that have come for them; what is wrong with those.
    pub(super) fn settle(&mut self, secp: &Secp256k1<All>) -> Vec<String> {
        let mut wrong = Vec::new();
        for own in &mut self.own {
            for announced in self.announced.iter().filter(|a| a.v == own.v) {
                let (v, real) = (announced.v, announced.real);
                let found = |w: &Waiting| w.v == v && w.real == real && w.number == own.number();
                let Some(at) = self.inbox.iter().position(found) else { continue };
                let found = |p: &&ChannelTransactionParameters| {
                    p.funding_outpoint.map(|o| o.into_bitcoin_outpoint()) == Some(v)
                };
                let Some(parameters) = self.parameters.iter().find(found) else { continue };
                let signed = self.inbox.swap_remove(at).signed;
                if own.on(&real) == Some(&signed) {
                    continue;
                }
                if companion::verify(parameters, &own.commitment, &real, &signed, secp)
                    || switch("companion.unchecked")
                {
                    own.companions.retain(|(r, _)| *r != real);
                    own.companions.push((real, signed));
                    self.state = self.state.saturating_add(1);
                    own.since = self.state;
                } else {
                    wrong.push(format!("companions: a wrong signature on {real}"));
                }
            }
        }
        // What is for a commitment that is older than the ones there are comes too late.
        let newest = |v: &OutPoint| self.own.iter().filter(|o| o.v == *v).map(Own::number).min();
        let newest: Vec<(OutPoint, Option<u64>)> =
            self.announced.iter().map(|a| (a.v, newest(&a.v))).collect();
        let parameters: Vec<bool> = self.inbox.iter().map(|w| self.parameters(&w.v).is_some()).collect();
        let mut known = parameters.into_iter();
        self.inbox.retain(|w| {
            let newest = newest.iter().find(|(v, _)| *v == w.v).and_then(|(_, n)| *n);
            !known.next().unwrap_or(true) || newest.is_none_or(|newest| w.number < newest)
        });
        wrong
    }

    /// Outpoints that are covered now and were not before.
    pub(super) fn newly_covered(&mut self) -> bool {
        let mut newly = false;
        for announced in &mut self.announced {
            let own = || self.own.iter().filter(|o| o.v == announced.v);
            let with = own().filter(|o| o.on(&announced.real).is_some()).count();
            let covered = with > 0 && (with == own().count() || switch("marker.newest_suffices"));
            if covered && !announced.covered {
                announced.covered = true;
                newly = true;
            }
        }
        if newly {
            self.changed();
        }
        newly
    }

    /// Whether each of our unrevoked commitments has a companion on that outpoint, on disk.
    pub(super) fn covers(&self, v: &OutPoint, real: &OutPoint) -> bool {
        let bound = self.announced.iter().any(|a| a.v == *v && a.real == *real && a.covered);
        let mut own = self.own.iter().filter(|o| o.v == *v).peekable();
        bound && own.peek().is_some() && own.all(|o| o.since <= self.stored && o.on(real).is_some())
    }
}
