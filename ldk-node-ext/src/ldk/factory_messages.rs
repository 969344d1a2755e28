//! Factory messages on the Lightning connection: bLIP-56's message 32800 through LDK's
//! [`CustomMessageHandler`].
//!
//! A peer with feature bit 271 is told our protocol id; payloads of our protocol go to the factory
//! service through a bounded queue. A peer that breaks the framing, or sends faster than its messages
//! are worked off, is warned and disconnected; nothing it sends is kept beyond that.
//!
//! Messages about companions belong to the stream of channel messages: they are answered here and now, by
//! [`ChannelMessages`], and leave in the order in which they and the service's messages were made.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bitcoin::secp256k1::PublicKey;
use bolt_tlv::blip56::{
    Envelope, FactoryMessage, FactoryPiggyback, SupportedFactoryProtocols, FEATURE_BIT,
    FEATURE_BIT_COMPULSORY, PROTOCOL_ID,
};
use bolt_tlv::payload::Payload;
use factory_core::faults::switch;
use lightning::ln::msgs::{DecodeError, ErrorAction, Init, LightningError, WarningMessage};
use lightning::ln::peer_handler::CustomMessageHandler;
use lightning::ln::types::ChannelId;
use lightning::ln::wire::{CustomMessageReader, Type};
use lightning::types::features::{InitFeatures, NodeFeatures};
use lightning::util::ser::{LengthLimitedRead, Writeable, Writer};
use tokio::sync::mpsc;

use super::change::Change;
use super::ChannelMessages;
use crate::api::{FactoryTraffic, MessageCount};
use crate::faults;
use crate::util::lock;

/// Messages of one peer that may wait for the factory service.
const MAX_WAITING_PER_PEER: usize = 32;
/// Messages of all peers that may wait for the factory service.
const MAX_WAITING: usize = 2048;
/// Messages that may wait to be sent to one peer.
const MAX_OUTGOING_PER_PEER: usize = 64;

/// A factory message as LDK carries it: type and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactoryWireMessage {
    message_type: u16,
    body: Vec<u8>,
}

impl Type for FactoryWireMessage {
    fn type_id(&self) -> u16 {
        self.message_type
    }
}

impl Writeable for FactoryWireMessage {
    fn write<W: Writer>(&self, writer: &mut W) -> Result<(), lightning::io::Error> {
        writer.write_all(&self.body)
    }
}

#[cfg(test)]
impl FactoryWireMessage {
    /// A message of our protocol.
    pub(crate) fn of(payload: &Payload) -> Self {
        let piggyback = FactoryPiggyback { protocol_id: PROTOCOL_ID, payload: payload.encode() };
        let body = FactoryMessage::from(piggyback).encode_body().unwrap();
        Self { message_type: Envelope::default().message_type, body }
    }

    /// The message of our protocol that this is.
    pub(crate) fn payload(&self) -> Option<Payload> {
        match FactoryMessage::decode_body(&self.body).unwrap() {
            FactoryMessage::FactoryPiggyback(piggyback) => Some(Payload::decode(&piggyback.payload).unwrap()),
            _ => None,
        }
    }
}

/// Counts a message of a peer that has not been worked off yet.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the factory service hears from peers.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// The peer listed our protocol: it can be talked to.
    Ready(PublicKey),
    /// The connection ended.
    Gone(PublicKey),
    /// A message of our protocol.
    Message {
        /// From.
        peer: PublicKey,
        /// Decoded.
        payload: Box<Payload>,
        /// Freed when the message has been handled.
        slot: Slot,
    },
    /// A channel moves with its factory.
    Change {
        /// From.
        peer: PublicKey,
        /// Decoded.
        change: Box<Change>,
        /// As above.
        slot: Slot,
    },
}

#[derive(Default)]
struct Peer {
    speaks_blip56: bool,
    speaks_ours: bool,
    waiting: Arc<AtomicUsize>,
    outgoing: usize,
}

impl Peer {
    /// Room for one more message of this peer.
    fn slot(&self) -> Result<Slot, LightningError> {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= MAX_WAITING_PER_PEER {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(refuse(format!(
                "factory messages: more than {MAX_WAITING_PER_PEER} unanswered, slow down"
            )));
        }
        Ok(Slot(Arc::clone(&self.waiting)))
    }
}

/// Counts of one direction since the start.
#[derive(Default)]
struct Count {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    /// Counts a message: its type and body, which Lightning's transport wraps into 34 bytes more (BOLT 8).
    fn add(&self, body: &[u8]) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        let bytes = body.len().saturating_add(size_of::<u16>());
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn read(&self) -> MessageCount {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        MessageCount { messages: read(&self.messages), bytes: read(&self.bytes) }
    }
}

#[derive(Default)]
struct Inner {
    peers: HashMap<PublicKey, Peer>,
    outgoing: Vec<(PublicKey, FactoryWireMessage)>,
    /// Counters of lost connections whose messages have not all been worked off: they count on when
    /// the peer comes back.
    lingering: HashMap<PublicKey, Arc<AtomicUsize>>,
}

/// See the module's description.
pub struct FactoryMessages {
    envelope: Envelope,
    channels: OnceLock<Arc<ChannelMessages>>,
    inner: Mutex<Inner>,
    events: mpsc::Sender<PeerEvent>,
    received: Count,
    sent: Count,
}

fn refuse(reason: String) -> LightningError {
    LightningError {
        err: reason.clone(),
        action: ErrorAction::DisconnectPeerWithWarning {
            msg: WarningMessage { channel_id: ChannelId::new_zero(), data: reason },
        },
    }
}

impl FactoryMessages {
    pub(crate) fn new(envelope: Envelope) -> (Self, mpsc::Receiver<PeerEvent>) {
        let (events, receiver) = mpsc::channel(MAX_WAITING);
        let inner = Mutex::new(Inner::default());
        let (received, sent) = (Count::default(), Count::default());
        let channels = OnceLock::new();
        (Self { envelope, channels, inner, events, received, sent }, receiver)
    }

    /// From now on companions of live channels are carried too.
    pub(crate) fn carry(&self, channels: Arc<ChannelMessages>) {
        let _ = self.channels.set(channels);
    }

    /// Queues what channels have to say beside channel messages.
    fn fetch(&self, inner: &mut Inner) {
        let Some(channels) = self.channels.get().filter(|_| !switch("companions.late")) else { return };
        for (peer, payload) in channels.take_companions() {
            if inner.peers.get(&peer).is_some_and(|p| p.speaks_blip56) {
                let piggyback = FactoryPiggyback { protocol_id: PROTOCOL_ID, payload: payload.encode() };
                self.queue(inner, peer, piggyback.into());
            }
        }
    }

    /// Queues a message; the caller then lets the peer manager run.
    ///
    /// Returns false if the peer is not connected, does not speak our protocol, or does not read.
    pub(crate) fn send(&self, peer: PublicKey, payload: &Payload) -> bool {
        let payloads = faults::outgoing(&peer, payload);
        let mut inner = lock(&self.inner);
        self.fetch(&mut inner);
        let ready =
            inner.peers.get(&peer).is_some_and(|p| p.speaks_ours && p.outgoing < MAX_OUTGOING_PER_PEER);
        ready
            && payloads.into_iter().all(|payload| {
                let piggyback = FactoryPiggyback { protocol_id: PROTOCOL_ID, payload };
                self.queue(&mut inner, peer, piggyback.into())
            })
    }

    /// As [`Self::send`], for a message of a channel's change.
    pub(crate) fn send_change(&self, peer: PublicKey, change: &Change) -> bool {
        let mut inner = lock(&self.inner);
        self.fetch(&mut inner);
        let ready =
            inner.peers.get(&peer).is_some_and(|p| p.speaks_ours && p.outgoing < MAX_OUTGOING_PER_PEER);
        ready && self.queue(&mut inner, peer, change.message())
    }

    /// Factory messages since the start.
    pub(crate) fn traffic(&self) -> FactoryTraffic {
        FactoryTraffic { received: self.received.read(), sent: self.sent.read() }
    }

    /// Connected peers that speak our protocol.
    pub(crate) fn ready_peers(&self) -> Vec<PublicKey> {
        lock(&self.inner).peers.iter().filter(|(_, p)| p.speaks_ours).map(|(id, _)| *id).collect()
    }

    fn queue(&self, inner: &mut Inner, peer: PublicKey, message: FactoryMessage) -> bool {
        match message.encode_body() {
            Ok(body) => {
                self.sent.add(&body);
                inner
                    .outgoing
                    .push((peer, FactoryWireMessage { message_type: self.envelope.message_type, body }));
                if let Some(p) = inner.peers.get_mut(&peer) {
                    p.outgoing = p.outgoing.saturating_add(1);
                }
                true
            }
            Err(e) => {
                tracing::error!(%peer, error = %e, "factory message not sent");
                false
            }
        }
    }

    fn tell(&self, event: PeerEvent) -> Result<(), LightningError> {
        self.events.try_send(event).map_err(|_| refuse("factory messages: too busy, try again later".into()))
    }

    fn handle(&self, message: FactoryMessage, peer: PublicKey) -> Result<(), LightningError> {
        match message {
            FactoryMessage::SupportedFactoryProtocols(theirs) => {
                let ours = theirs.protocol_ids.contains(&PROTOCOL_ID);
                let mut inner = lock(&self.inner);
                let Some(p) = inner.peers.get_mut(&peer) else { return Ok(()) };
                let is_new = ours && !p.speaks_ours;
                p.speaks_ours |= ours;
                drop(inner);
                if is_new {
                    self.tell(PeerEvent::Ready(peer))?;
                }
                Ok(())
            }
            FactoryMessage::FactoryPiggyback(piggyback) => {
                if piggyback.protocol_id != PROTOCOL_ID {
                    return Err(refuse("factory_protocol_id: not one of those we support".into()));
                }
                let payload = Payload::decode(&piggyback.payload).map_err(|e| refuse(e.to_string()))?;
                let inner = lock(&self.inner);
                let Some(p) = inner.peers.get(&peer).filter(|p| p.speaks_ours) else {
                    return Err(refuse("factory_piggyback before supported_factory_protocols".into()));
                };
                let of_a_channel =
                    matches!(payload, Payload::Marker(_) | Payload::MarkerAck(_) | Payload::Companions(_));
                if let (true, Some(channels)) = (of_a_channel, self.channels.get()) {
                    drop(inner);
                    return channels.companions(peer, &payload).map_err(refuse);
                }
                if matches!(payload, Payload::AdvancePropose(_) | Payload::AdvanceAgree(_)) {
                    return Err(refuse(format!(
                        "factory_piggyback: message {} belongs into a factory_change",
                        payload.number()
                    )));
                }
                let slot = p.slot()?;
                drop(inner);
                self.tell(PeerEvent::Message { peer, payload: Box::new(payload), slot })
            }
            change @ (FactoryMessage::ChangeInit(_)
            | FactoryMessage::ChangeAck(_)
            | FactoryMessage::ChangeFunding(_)
            | FactoryMessage::ChangeContinue(_)
            | FactoryMessage::ChangeLocked(_)) => {
                let inner = lock(&self.inner);
                let Some(p) = inner.peers.get(&peer).filter(|p| p.speaks_ours) else {
                    return Err(refuse("factory_change before supported_factory_protocols".into()));
                };
                let slot = p.slot()?;
                drop(inner);
                match Change::read(change).map_err(refuse)? {
                    Some(change) => self.tell(PeerEvent::Change { peer, change: Box::new(change), slot }),
                    None => Ok(()),
                }
            }
            FactoryMessage::UnknownOdd { .. } => Ok(()),
        }
    }
}

impl CustomMessageReader for FactoryMessages {
    type CustomMessage = FactoryWireMessage;

    fn read<R: LengthLimitedRead>(
        &self,
        message_type: u16,
        buffer: &mut R,
    ) -> Result<Option<FactoryWireMessage>, DecodeError> {
        if message_type != self.envelope.message_type {
            return Ok(None);
        }
        let mut body =
            vec![0; usize::try_from(buffer.remaining_bytes()).map_err(|_| DecodeError::ShortRead)?];
        buffer.read_exact(&mut body)?;
        Ok(Some(FactoryWireMessage { message_type, body }))
    }
}

impl CustomMessageHandler for FactoryMessages {
    fn handle_custom_message(&self, msg: FactoryWireMessage, peer: PublicKey) -> Result<(), LightningError> {
        self.received.add(&msg.body);
        let decoded = FactoryMessage::decode_body(&msg.body).map_err(|e| refuse(e.to_string()));
        let result = decoded.and_then(|message| self.handle(message, peer));
        if let Err(e) = &result {
            tracing::warn!(%peer, reason = e.err, "factory message refused, disconnecting");
        }
        result
    }

    fn get_and_clear_pending_msg(&self) -> Vec<(PublicKey, FactoryWireMessage)> {
        let mut inner = lock(&self.inner);
        self.fetch(&mut inner);
        for peer in inner.peers.values_mut() {
            peer.outgoing = 0;
        }
        std::mem::take(&mut inner.outgoing)
    }

    fn peer_disconnected(&self, peer: PublicKey) {
        let mut inner = lock(&self.inner);
        inner.outgoing.retain(|(p, _)| *p != peer);
        let removed = inner.peers.remove(&peer);
        inner.lingering.retain(|_, waiting| waiting.load(Ordering::Acquire) > 0);
        let spoke = removed.as_ref().is_some_and(|p| p.speaks_ours);
        if let Some(p) = removed.filter(|p| p.waiting.load(Ordering::Acquire) > 0) {
            inner.lingering.insert(peer, p.waiting);
        }
        drop(inner);
        if spoke && self.events.try_send(PeerEvent::Gone(peer)).is_err() {
            // The service asks `ready_peers` on every tick as well.
            tracing::warn!(%peer, "factory service is busy; it will notice the lost peer later");
        }
    }

    fn peer_connected(&self, peer: PublicKey, init: &Init, _inbound: bool) -> Result<(), ()> {
        let has =
            |bit: usize| init.features.le_flags().get(bit / 8).is_some_and(|b| b & (1 << (bit % 8)) != 0);
        let speaks_blip56 = has(FEATURE_BIT) || has(FEATURE_BIT_COMPULSORY);
        let mut inner = lock(&self.inner);
        let waiting = inner.lingering.remove(&peer).unwrap_or_default();
        inner.peers.insert(peer, Peer { speaks_blip56, waiting, ..Peer::default() });
        if speaks_blip56 {
            let supported = SupportedFactoryProtocols { protocol_ids: vec![PROTOCOL_ID] };
            self.queue(&mut inner, peer, supported.into());
        }
        Ok(())
    }

    fn provided_node_features(&self) -> NodeFeatures {
        let mut features = NodeFeatures::empty();
        let _ = features.set_optional_custom_bit(FEATURE_BIT);
        features
    }

    fn provided_init_features(&self, _peer: PublicKey) -> InitFeatures {
        let mut features = InitFeatures::empty();
        let _ = features.set_optional_custom_bit(FEATURE_BIT);
        features
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bolt_tlv::payload::Join;

    fn peer() -> PublicKey {
        "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap()
    }

    fn init(bit: bool) -> Init {
        let mut features = InitFeatures::empty();
        if bit {
            features.set_optional_custom_bit(FEATURE_BIT).unwrap();
        }
        Init { features, networks: None, remote_network_address: None }
    }

    fn wire(message: FactoryMessage) -> FactoryWireMessage {
        FactoryWireMessage { message_type: 32800, body: message.encode_body().unwrap() }
    }

    #[test]
    fn only_a_peer_with_the_bit_is_told_and_heard() {
        let (handler, mut events) = FactoryMessages::new(Envelope::default());
        handler.peer_connected(peer(), &init(false), true).unwrap();
        assert!(handler.get_and_clear_pending_msg().is_empty());
        let join = Payload::from(Join { version: 1, min_capacity_sat: 1, max_capacity_sat: 2 });
        assert!(!handler.send(peer(), &join));
        let piggyback = FactoryPiggyback { protocol_id: PROTOCOL_ID, payload: join.encode() };
        assert!(handler.handle_custom_message(wire(piggyback.clone().into()), peer()).is_err());

        handler.peer_connected(peer(), &init(true), true).unwrap();
        assert_eq!(handler.get_and_clear_pending_msg().len(), 1);
        let supported = SupportedFactoryProtocols { protocol_ids: vec![PROTOCOL_ID] };
        handler.handle_custom_message(wire(supported.into()), peer()).unwrap();
        assert!(matches!(events.try_recv(), Ok(PeerEvent::Ready(p)) if p == peer()));
        assert!(handler.send(peer(), &join));
        // a flood is cut off at the limit, and heard again once worked off
        for _ in 0..MAX_WAITING_PER_PEER {
            handler.handle_custom_message(wire(piggyback.clone().into()), peer()).unwrap();
        }
        assert!(handler.handle_custom_message(wire(piggyback.clone().into()), peer()).is_err());
        assert!(matches!(events.try_recv(), Ok(PeerEvent::Message { .. })));
        handler.handle_custom_message(wire(piggyback.into()), peer()).unwrap();
        let traffic = handler.traffic();
        assert_eq!(traffic.sent.messages, 2, "the protocols and the Join");
        assert!(traffic.received.messages > 32 && traffic.received.bytes > 32 * 32, "{traffic:?}");
        // What belongs into a change is not heard outside of one.
        let agree = bolt_tlv::payload::AdvanceAgree {
            instance_id: [1; 32],
            attempt: 1,
            inner: vec![],
            outer: vec![],
        };
        let stray = FactoryWireMessage::of(&agree.into());
        assert!(handler.handle_custom_message(stray, peer()).is_err());
        handler.peer_disconnected(peer());
        assert!(!handler.send(peer(), &join));
    }

    #[test]
    fn a_peer_that_does_not_read_is_not_buffered_without_end() {
        let (handler, _events) = FactoryMessages::new(Envelope::default());
        handler.peer_connected(peer(), &init(true), true).unwrap();
        let supported = SupportedFactoryProtocols { protocol_ids: vec![PROTOCOL_ID] };
        handler.handle_custom_message(wire(supported.into()), peer()).unwrap();
        let join = Payload::from(Join { version: 1, min_capacity_sat: 1, max_capacity_sat: 2 });
        let taken = (0..1000).filter(|_| handler.send(peer(), &join)).count();
        assert!(taken <= MAX_OUTGOING_PER_PEER, "{taken}");
    }
}
