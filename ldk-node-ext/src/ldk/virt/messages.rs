//! Companions in the message streams of live channels.
//!
//! Companions are made when `commitment_signed` *leaves*, for the outpoints that are live at that point of the stream;
//! so a new outpoint cannot miss one that LDK signs at the same moment. A [`Marker`] announces an outpoint, and with it
//! go the companions of everything that was signed before.
//!
//! LDK's peer manager writes custom messages after the channel messages of the same round, and a `commitment_signed`
//! has no room for anything. So the receiver **parks** it, and what comes behind it on that channel, until its
//! companions are there; `channel_reestablish` is never parked. It then goes to LDK, whose own transaction the
//! companions are checked against ([`Commitments::accepted`]). What is wrong with companions is told to the peer in a
//! warning, and the connection ends. The channel goes on after the next one: each side announces all of its live
//! outpoints again right after `channel_reestablish`, and repeats the companions of every commitment that is not
//! revoked.
//!
//! A channel without announced outpoints has its messages passed straight on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use bitcoin::secp256k1::ecdsa::Signature;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, Txid};
use bolt_tlv::payload::{self, Companions, Marker, MarkerAck, Payload, MAX_PAYLOAD_LEN};
use factory_core::faults::switch;
use lightning::ln::msgs::{ChannelReestablish, CommitmentSigned, MessageSendEvent};
use lightning::ln::types::ChannelId;
use tokio::sync::watch;

use super::channel::Waiting;
use super::commitments::{Accompanied, Commitments};
use super::companion::Signed;
use super::gate::Locks;
use super::map::{Mapping, Real, MAX_REALS};
use crate::error::Error;
use crate::keys::Keys;
use crate::ldk::{channel_id, ChannelManager};
use crate::util::lock;

/// Messages of one channel that may be parked: a full round of updates of a channel, twice.
const MAX_PARKED: usize = 1024;
/// Markers of one channel that may wait for their companions: of the live V, of the next, and of one before.
const MAX_DUE: usize = 3 * MAX_REALS;
/// Bytes of a [`Companions`] message beside the companions: well above what they take.
const OVERHEAD: usize = 256;
/// The first commitment's number as LDK counts, down; BOLT 3 counts up from 0.
const FIRST: u64 = (1 << 48) - 1;

/// A channel message, to be handed to LDK.
pub(crate) type Deliver = Box<dyn FnOnce(&ChannelManager) + Send>;
pub(super) type Key = (PublicKey, ChannelId);

/// What a `commitment_signed` has to come with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    funding: Option<Txid>,
    signature: Signature,
    htlcs: usize,
}

impl From<&CommitmentSigned> for Needs {
    fn from(msg: &CommitmentSigned) -> Self {
        Self { funding: msg.funding_txid, signature: msg.signature, htlcs: msg.htlc_signatures.len() }
    }
}

struct Parked {
    needs: Vec<Needs>,
    deliver: Deliver,
}

#[derive(Default)]
pub(super) struct Inner {
    /// Whose channel it is, and the right to hand its messages to LDK: one at a time, in their order.
    owners: HashMap<ChannelId, (PublicKey, Arc<Mutex<()>>)>,
    parked: HashMap<Key, VecDeque<Parked>>,
    outbox: Vec<(PublicKey, Payload)>,
    /// Markers that are to be answered once we have what they promise.
    due: HashSet<(Key, OutPoint, OutPoint)>,
    /// Outpoints for which the peer has said that it has what we promised.
    peer_has: HashSet<(ChannelId, OutPoint, OutPoint)>,
    pub(super) refused: Vec<(PublicKey, ChannelId, String)>,
    /// Peers that are only told.
    pub(super) warned: Vec<(PublicKey, ChannelId, String)>,
    /// `splice_locked` that waits.
    pub(super) locks: HashMap<Key, Locks>,
    /// What leaves before anything else.
    pub(super) first: Vec<MessageSendEvent>,
}

/// See the module's description.
pub struct Streams {
    pub(super) commitments: Arc<Commitments>,
    pub(super) mapping: Arc<Mapping>,
    pub(super) keys: Arc<Keys>,
    pub(super) inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

impl Streams {
    pub(crate) fn new(commitments: Arc<Commitments>, mapping: Arc<Mapping>, keys: Arc<Keys>) -> Self {
        Self { commitments, mapping, keys, inner: Mutex::default(), changed: watch::channel(0).0 }
    }

    /// Changes whenever [`Self::covered`] may answer otherwise than before.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether both sides have, on disk, each of their unrevoked commitments on V also on this outpoint, and will go on
    /// so: only then may anything be signed that lets it confirm (invariants 3 and 11).
    pub fn covered(&self, channel: &ChannelId, v: &OutPoint, real: &OutPoint) -> bool {
        self.commitments.covers(channel, v, real)
            && lock(&self.inner).peer_has.contains(&(*channel, *v, *real))
    }

    /// The funding keys of a channel on V: ours and the peer's.
    pub(crate) fn funding_keys(&self, channel: &ChannelId, v: &OutPoint) -> Option<(PublicKey, PublicKey)> {
        self.commitments.funding_keys(channel, v)
    }

    /// Announces a new real outpoint of V to the channel's peer. What is queued leaves when the peer manager runs; if
    /// the peer is not there it is announced after the next `channel_reestablish`.
    ///
    /// # Errors
    /// Those of [`Mapping::add_real`].
    pub fn announce(
        &self,
        peer: PublicKey,
        channel: &ChannelId,
        v: &OutPoint,
        real: Real,
    ) -> Result<(), Error> {
        let outpoint = real.outpoint;
        // Held until the marker is queued: a commitment that leaves meanwhile would come with a companion on an outpoint
        // that the peer has not heard of.
        let mut inner = lock(&self.inner);
        self.mapping.add_real(v, real)?;
        let mut out = Vec::new();
        self.mark(channel, |on, real| on == v && *real == outpoint, &mut out);
        inner.outbox.extend(out.into_iter().map(|payload| (peer, payload)));
        Ok(())
    }

    /// Gives an outpoint up, in both directions: it can no longer confirm, or never could. The other side has to do
    /// the same; until it has, it waits for companions that no longer come.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn withdraw(&self, channel: &ChannelId, v: &OutPoint, real: &OutPoint) -> Result<(), Error> {
        self.mapping.drop_real(v, real)?;
        self.commitments.withdraw(channel, v, real)?;
        let mut inner = lock(&self.inner);
        inner.peer_has.remove(&(*channel, *v, *real));
        inner.due.retain(|((_, c), on, r)| c != channel || on != v || r != real);
        Ok(())
    }

    /// The real outpoints of V that LDK does not sign for.
    fn others(&self, v: &OutPoint) -> Vec<OutPoint> {
        self.mapping.reals(v).into_iter().map(|real| real.outpoint).filter(|real| real != v).collect()
    }

    /// Markers of the outpoints that are asked for, and companions of all that was signed before.
    fn mark(
        &self,
        channel: &ChannelId,
        which: impl Fn(&OutPoint, &OutPoint) -> bool,
        out: &mut Vec<Payload>,
    ) {
        let reals = |v: &OutPoint| {
            let mut reals = self.others(v);
            reals.retain(|real| which(v, real));
            reals
        };
        let signer = |keys_id| self.keys.channel_signer(keys_id);
        let mut all = self.commitments.companions(channel, |_, _| true, reals, signer);
        if switch("marker.newest_only") {
            let newest = all.iter().map(|a| a.number).min();
            all.retain(|a| Some(a.number) == newest);
        }
        let mut marked = HashSet::new();
        for accompanied in &all {
            let (v, reals) = (accompanied.v, accompanied.companions.iter().map(|(real, _)| *real));
            for real in reals.filter(|real| marked.insert((v, *real))) {
                out.push(Marker { channel_id: channel.0, funding: v, real }.into());
            }
        }
        all.into_iter().for_each(|accompanied| write(channel, accompanied, out));
    }

    /// A channel message is about to leave: what has to follow it.
    pub(in crate::ldk) fn leaving(&self, event: &MessageSendEvent) {
        // As in `announce`.
        let mut inner = lock(&self.inner);
        let mut out = Vec::new();
        let peer = match event {
            MessageSendEvent::UpdateHTLCs { node_id, channel_id, updates } => {
                for msg in &updates.commitment_signed {
                    self.accompany(channel_id, msg, &mut out);
                }
                node_id
            }
            MessageSendEvent::SendChannelReestablish { node_id, msg } => {
                self.mark(&msg.channel_id, |_, _| true, &mut out);
                node_id
            }
            MessageSendEvent::SendTxAbort { msg, .. } => return self.aborted(&msg.channel_id),
            MessageSendEvent::SendSpliceInit { msg, .. } => {
                return self.commitments.we_add(&msg.channel_id, msg.funding_contribution_satoshis);
            }
            MessageSendEvent::SendSpliceAck { msg, .. } => {
                return self.commitments.we_add(&msg.channel_id, msg.funding_contribution_satoshis);
            }
            _ => return,
        };
        inner.outbox.extend(out.into_iter().map(|payload| (*peer, payload)));
    }

    fn accompany(&self, channel: &ChannelId, msg: &CommitmentSigned, out: &mut Vec<Payload>) {
        let which = |_: &OutPoint, signature: Option<&Signature>| signature == Some(&msg.signature);
        let signer = |keys_id| self.keys.channel_signer(keys_id);
        let companions = self.commitments.companions(channel, which, |v| self.others(v), signer);
        companions.into_iter().for_each(|accompanied| write(channel, accompanied, out));
    }

    /// The peer says after a connection where it stands, and LDK agrees.
    pub(in crate::ldk) fn reestablished(&self, msg: &ChannelReestablish) {
        // It expects the secret of this number next (BOLT 2), so it has the one before.
        let Some(shown) = msg.next_remote_commitment_number.checked_sub(1) else { return };
        let (channel, secret) = (&msg.channel_id, &msg.your_last_per_commitment_secret);
        let signer = |keys_id| self.keys.channel_signer(keys_id);
        if let Some(number) = FIRST.checked_sub(shown) {
            self.commitments.shown(channel, number, secret, signer);
        }
    }

    /// A splice was given up: nothing that was signed for its outpoint counts. No hook of LDK's tells the signer. A V' that
    /// is bound stays: its R' may confirm.
    pub(in crate::ldk) fn aborted(&self, channel: &ChannelId) {
        let current = self.mapping.current(channel);
        let kept = self.commitments.keep_virtuals(channel, |v| match current {
            Some(current) if *v == current => true,
            // One that LDK never knew, and will not, has its monitor; nothing is signed for it any more.
            Some(_) if self.mapping.is_retired(v) => !self.mapping.is_ahead(v),
            Some(_) => self.mapping.is_bound(v),
            None => channel_id(*v) == *channel,
        });
        let pending = self.mapping.pending(channel).into_iter();
        for v in pending.filter(|v| !kept.contains(v) && !self.mapping.is_bound(v)) {
            if let Err(e) = self.mapping.drop_virtual(&v) {
                tracing::error!(%v, error = %e, "not stored that it came to nothing");
            }
        }
    }

    /// Messages of ours that have to leave, in their order.
    pub(in crate::ldk) fn take_outbox(&self) -> Vec<(PublicKey, Payload)> {
        std::mem::take(&mut lock(&self.inner).outbox)
    }

    /// The right to hand messages of this channel to LDK; none if it is not one of this peer's with commitments of a
    /// factory: then they go straight on.
    pub(in crate::ldk) fn turn(
        &self,
        peer: &PublicKey,
        channel: &ChannelId,
        is_its: impl FnOnce() -> bool,
    ) -> Option<Arc<Mutex<()>>> {
        if !self.commitments.knows(channel) {
            return None;
        }
        let known = lock(&self.inner).owners.get(channel).cloned();
        let (owner, turn) = match known {
            Some(known) => known,
            None if is_its() => {
                let mut inner = lock(&self.inner);
                inner.owners.entry(*channel).or_insert_with(|| (*peer, Arc::default())).clone()
            }
            None => return None,
        };
        (owner == *peer).then_some(turn)
    }

    fn is_accompanied(&self, channel: &ChannelId, needs: &[Needs]) -> Result<bool, String> {
        for need in needs {
            // Its R' is on the chain, and LDK was not shown that: what is below goes to V's own monitor for good.
            let late = |v: &OutPoint| Some(v.txid) == need.funding && self.mapping.is_confirmed(v);
            let ahead = |v: &OutPoint| self.mapping.is_ahead(v) && late(v);
            if self.mapping.pending(channel).iter().any(ahead) {
                return Err("commitment_signed: its output is on the chain already".into());
            }
            let ready = self.commitments.is_accompanied(
                channel,
                need.funding.as_ref(),
                &need.signature,
                need.htlcs,
            )?;
            if !ready && !switch("companion.not_awaited") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a message from the peer. The caller has the channel's turn, and asks for what to deliver then.
    pub(in crate::ldk) fn arrived(
        &self,
        peer: PublicKey,
        channel: ChannelId,
        needs: Vec<Needs>,
        deliver: Deliver,
    ) {
        let mut inner = lock(&self.inner);
        let queue = inner.parked.entry((peer, channel)).or_default();
        if queue.len() < MAX_PARKED {
            queue.push_back(Parked { needs, deliver });
        } else {
            let reason = format!("more than {MAX_PARKED} messages without the companions they wait for");
            inner.refused.push((peer, channel, reason));
        }
    }

    /// The next message to be handed to LDK, if it need not wait. The caller has the channel's turn.
    pub(in crate::ldk) fn next(&self, peer: PublicKey, channel: ChannelId) -> Option<Deliver> {
        let mut inner = lock(&self.inner);
        let queue = inner.parked.get_mut(&(peer, channel))?;
        let ready = match queue.front() {
            Some(first) => self.is_accompanied(&channel, &first.needs),
            None => Ok(false),
        };
        match ready {
            Ok(true) => queue.pop_front().map(|parked| parked.deliver),
            Ok(false) => {
                if queue.is_empty() {
                    inner.parked.remove(&(peer, channel));
                }
                None
            }
            Err(reason) => {
                // Nothing more of this channel is heard on this connection.
                inner.refused.push((peer, channel, reason));
                None
            }
        }
    }

    /// A message of this module from the channel's peer. The caller lets LDK go on then, see [`Self::next`].
    ///
    /// # Errors
    /// What is wrong with it; the peer is told, and disconnected.
    pub(in crate::ldk) fn received(&self, peer: PublicKey, payload: &Payload) -> Result<(), String> {
        let channel = match payload {
            Payload::Marker(m) => {
                let channel = ChannelId(m.channel_id);
                self.commitments.announce(&channel, m.funding, m.real)?;
                let mut inner = lock(&self.inner);
                if inner.due.iter().filter(|((_, c), ..)| *c == channel).count() >= MAX_DUE {
                    return Err(format!("marker: more than {MAX_DUE} wait for their companions"));
                }
                inner.due.insert(((peer, channel), m.funding, m.real));
                channel
            }
            Payload::MarkerAck(m) => {
                let channel = ChannelId(m.channel_id);
                if !self.others(&m.funding).contains(&m.real) {
                    return Err("marker_ack: real: no outpoint that was announced".into());
                }
                lock(&self.inner).peer_has.insert((channel, m.funding, m.real));
                self.changed.send_modify(|n| *n = n.wrapping_add(1));
                return Ok(());
            }
            Payload::Companions(m) => {
                let channel = ChannelId(m.channel_id);
                self.commitments.receive(&channel, read(m)?)?;
                channel
            }
            _ => return Ok(()),
        };
        self.answer(&channel)
    }

    /// Acknowledges what has become covered, once it is on disk.
    fn answer(&self, channel: &ChannelId) -> Result<(), String> {
        match self.commitments.settle(channel) {
            Ok(_) => {}
            Err(e) => {
                tracing::error!(%channel, error = %e, "companions not stored");
                return Ok(());
            }
        }
        let mut inner = lock(&self.inner);
        let ready: Vec<_> = inner
            .due
            .iter()
            .filter(|((_, c), v, real)| c == channel && self.commitments.covers(c, v, real))
            .copied()
            .collect();
        for due in ready {
            inner.due.remove(&due);
            let ((peer, channel), funding, real) = due;
            let ack = MarkerAck { channel_id: channel.0, funding, real };
            inner.outbox.push((peer, ack.into()));
            self.changed.send_modify(|n| *n = n.wrapping_add(1));
        }
        Ok(())
    }

    /// As [`Self::answer`], where it is repeated if it fails.
    pub(super) fn settle(&self, channel: &ChannelId) {
        let _ = self.answer(channel);
    }

    /// A message has been handed to LDK: what came of its companions.
    pub(in crate::ldk) fn delivered(&self, channel: &ChannelId) {
        let wrong = self.commitments.take_wrong();
        if !wrong.is_empty() {
            let mut inner = lock(&self.inner);
            for (channel, reason) in wrong {
                if let Some((peer, _)) = inner.owners.get(&channel).cloned() {
                    inner.refused.push((peer, channel, reason));
                }
            }
        }
        let due = lock(&self.inner).due.iter().any(|((_, c), ..)| c == channel);
        if due {
            let _ = self.answer(channel);
        }
    }

    /// Channels that LDK waits for and need not any longer, with their peers.
    pub(in crate::ldk) fn take_free(&self) -> Vec<(PublicKey, ChannelId)> {
        let free = self.commitments.take_free();
        let inner = lock(&self.inner);
        free.into_iter().filter_map(|id| Some((inner.owners.get(&id)?.0, id))).collect()
    }

    /// The connection ended: what was under way is lost, and is repeated after the next one.
    pub(in crate::ldk) fn disconnected(&self, peer: &PublicKey) {
        let owned =
            lock(&self.inner).owners.iter().filter(|(_, (p, _))| p == peer).map(|(id, _)| *id).collect();
        self.commitments.disconnected(owned);
        let mut inner = lock(&self.inner);
        inner.parked.retain(|(p, _), _| p != peer);
        inner.outbox.retain(|(p, _)| p != peer);
        inner.due.retain(|((p, _), ..)| p != peer);
        inner.refused.retain(|(p, ..)| p != peer);
        inner.warned.retain(|(p, ..)| p != peer);
        inner.locks.retain(|(p, _), _| p != peer);
        let leaves = |e: &MessageSendEvent| !matches!(e, MessageSendEvent::SendSpliceLocked { node_id, .. } if node_id == peer);
        inner.first.retain(leaves);
    }
}

/// Puts the companions of one commitment into as many messages as they need.
fn write(channel: &ChannelId, accompanied: Accompanied, out: &mut Vec<Payload>) {
    let message = |companions| Companions {
        channel_id: channel.0,
        funding: accompanied.v,
        number: FIRST.saturating_sub(accompanied.number),
        commitment: accompanied.commitment.serialize_compact(),
        companions,
    };
    let (mut companions, mut len) = (Vec::new(), OVERHEAD);
    for (real, signed) in accompanied.companions {
        let companion = payload::Companion {
            real,
            signature: signed.signature.serialize_compact(),
            htlc_signatures: signed.htlcs.iter().map(Signature::serialize_compact).collect(),
        };
        let size = companion.encoded_len();
        let full = len.saturating_add(size) > MAX_PAYLOAD_LEN || companions.len() >= payload::MAX_COMPANIONS;
        if full && !companions.is_empty() {
            out.push(message(std::mem::take(&mut companions)).into());
            len = OVERHEAD;
        }
        len = len.saturating_add(size);
        companions.push(companion);
    }
    if !companions.is_empty() {
        out.push(message(companions).into());
    }
}

fn read(m: &Companions) -> Result<Vec<Waiting>, String> {
    let signature = |field: &str, bytes: &[u8; 64]| {
        Signature::from_compact(bytes).map_err(|_| format!("companions: {field}: no signature"))
    };
    let commitment = signature("commitment", &m.commitment)?;
    let number = FIRST.checked_sub(m.number).ok_or("companions: number: above 2^48 - 1")?;
    let waiting = |c: &payload::Companion| {
        let htlcs = c.htlc_signatures.iter().map(|s| signature("htlc_signatures", s));
        let signed = Signed {
            signature: signature("signature", &c.signature)?,
            htlcs: htlcs.collect::<Result<_, _>>()?,
        };
        Ok(Waiting { v: m.funding, number, commitment, real: c.real, signed })
    };
    m.companions.iter().map(waiting).collect()
}
