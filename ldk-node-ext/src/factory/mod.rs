//! The factory service: one task that drives factory-core's machines and owns every factory.
//!
//! It hears peers, LDK, the chain, timers and the API, hands each to the machine concerned and carries
//! out what the machine says, in the order it says it. Being one task, it needs no locks; what it
//! promises it has stored before.

mod admission;
mod advances;
mod capacity;
mod chain;
mod client;
mod close;
mod close_client;
mod close_lsp;
mod creating;
mod exit;
mod export;
mod finals;
mod info;
mod lsp;
mod lsp_events;
mod payment_view;
mod plan;
mod registry;
mod rotate;
mod rotate_begin;
mod rotate_client;
mod rotate_end;
mod rotate_limits;
mod rotate_lsp;
mod rotate_moves;
mod sell;
mod stored;
mod watchers;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, Transaction};
use lightning::events::ClosureReason;
use lightning::ln::types::ChannelId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::api;
use crate::config::RoleConfig;
use crate::error::Error;
use crate::ldk::{InstanceId, PeerEvent};
use crate::node::Parts;
use crate::publish::Publisher;
use crate::watch::handover::Handover;
use crate::watch::{ExitFile, WatcherInfo};

pub(crate) use payment_view::PaymentView;
pub(crate) use registry::{load, Loaded};
use stored::Factory;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use {
    plan::params,
    stored::{Factory as StoredFactory, Signed},
};

/// Upper half of the user channel id of every factory channel, by which one is known after a restart
/// in the middle of a ceremony. ASCII "factory!".
const USER_ID_MARK: u64 = 0x6661_6374_6f72_7921;
/// The service looks at everything at least this often.
const TICK: Duration = Duration::from_secs(1);
/// Ceremonies that ended badly and are still shown.
const MAX_SHOWN_FAILURES: usize = 100;

pub(crate) type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// What the service is asked to do.
pub(crate) enum Command {
    WaitingClients(Answer<Vec<api::WaitingClient>>),
    Admission(Answer<Vec<api::ClientAdmission>>),
    Readmit(PublicKey, Answer<()>),
    Create(api::CreateFactoryRequest, Answer<String>),
    Factories(Answer<Vec<api::FactoryInfo>>),
    Factory(InstanceId, Answer<api::FactoryInfo>),
    Close(InstanceId, Answer<()>),
    Exit(InstanceId, api::ExitRequest, Answer<()>),
    Rotate(InstanceId, api::RotateRequest, Answer<api::Rotation>),
    Liquidity(InstanceId, api::LiquidityRequest, Answer<api::LiquidityAnswer>),
    PaymentView(PublicKey, Answer<PaymentView>),
    ExportExit(InstanceId, Answer<ExitFile>),
    Watchers(Answer<Vec<WatcherInfo>>),
    /// An event of LDK; answered when what follows from it has been stored.
    Ldk(LdkEvent, Answer<()>),
}

/// What LDK says of factory channels.
#[derive(Debug)]
pub(crate) enum LdkEvent {
    /// The LSP's side knows the funding script.
    ChannelScript { temporary: ChannelId, peer: PublicKey, script: ScriptBuf },
    /// A peer wants to open a channel that a plan names.
    OpenRequest { temporary: ChannelId, peer: PublicKey, offer: ChannelOffer },
    /// The LSP holds the client's signature on its first commitment.
    CommitmentHeld { channel: ChannelId, temporary: ChannelId, peer: PublicKey, outpoint: OutPoint },
    /// A channel is signed.
    ChannelPending {
        channel: ChannelId,
        temporary: Option<ChannelId>,
        outpoint: OutPoint,
        redeem_script: Option<ScriptBuf>,
    },
    /// A splice of a channel can be signed.
    ReadyToSign { channel: ChannelId, unsigned: Transaction },
    /// A splice of a channel came to nothing.
    ChangeFailed { channel: ChannelId, reason: String },
    /// A channel is closed.
    ChannelClosed {
        channel: ChannelId,
        reason: ClosureReason,
        local_msat: Option<u64>,
        capacity_sat: Option<u64>,
    },
}

/// What a peer wants to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChannelOffer {
    pub(crate) capacity_sat: u64,
    pub(crate) push_msat: u64,
    /// Delay of our own output on our commitment, blocks.
    pub(crate) to_self_delay: u16,
    pub(crate) announced: bool,
    pub(crate) zero_fee_commitments: bool,
}

/// A timer of one of the machines: only the newest of a machine counts.
#[derive(Clone, Copy, Debug)]
struct Timer {
    id: u64,
    at: Instant,
}

impl Timer {
    fn new(id: u64, seconds: u32) -> Self {
        Self { id, at: Instant::now() + Duration::from_secs(u64::from(seconds)) }
    }
}

/// The service's state.
pub(crate) struct Service {
    parts: Arc<Parts>,
    factories: HashMap<InstanceId, Factory>,
    /// LSP: ceremonies under way.
    creating: HashMap<InstanceId, creating::Creating>,
    /// LSP: ceremonies that failed, for display, newest last.
    failed: Vec<api::FactoryInfo>,
    /// LSP: clients that asked to be in a factory.
    waiting: HashMap<PublicKey, lsp_events::Waiting>,
    /// LSP: who has failed lately.
    admission: admission::Admission,
    /// Client: the ceremony under way.
    joining: Option<client::Joining>,
    /// Client: the channel of the attempt that is being superseded by another one.
    superseded: Option<OutPoint>,
    /// Client: `Join` was sent on this connection.
    join_sent: bool,
    /// Cooperative closes under way.
    closing: HashMap<InstanceId, close::Closing>,
    /// LSP: rotations under way, by factory and try.
    rotating: HashMap<(InstanceId, u16), rotate_lsp::LspRotating>,
    /// Client: the machine of each factory that has rotated since the start.
    following: HashMap<InstanceId, rotate_client::Following>,
    /// Client: tries of each factory that came to nothing.
    tries: HashMap<InstanceId, rotate_limits::Tries>,
    /// Why the last rotation of a leaf came to nothing, until one succeeds.
    rotation_failures: HashMap<(InstanceId, u32), String>,
    /// Channels whose change of capacity LDK wants to have signed.
    to_sign: Mutex<HashSet<ChannelId>>,
    /// LSP: when leaves that rest were last tried to be restored.
    restored: HashMap<(InstanceId, u32), Instant>,
    /// LSP: when clients last had their capacities changed because they asked, blocks.
    asked: HashMap<PublicKey, u32>,
    /// LSP: clients at whom a rotation failed lately that had used a position up.
    wasteful: HashMap<(InstanceId, PublicKey), rotate_limits::Wasteful>,
    /// Hands paths to the watchers.
    handover: Handover,
    /// What was handed over.
    offered: watchers::Offered,
    /// What waits for the watchers' word.
    held_words: Vec<watchers::HeldWord>,
    /// Carries the tree's transactions into blocks.
    publisher: Publisher,
    /// Factories whose way out the wallet cannot pay for, and whose user has been told.
    reserve_low: HashSet<InstanceId>,
    /// Free coins when exits that wait for one were tried last: number and sum.
    coins_seen: (usize, u64),
    /// When exits whose transaction bitcoind did not take were tried last.
    exits_retried: Instant,
}

impl Loaded {
    /// Runs the service until told to stop.
    pub(crate) async fn run(
        self,
        parts: Arc<Parts>,
        publisher: Publisher,
        mut commands: mpsc::Receiver<Command>,
        mut peers: mpsc::Receiver<PeerEvent>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut tip = parts.tip.clone();
        let mut companions = parts.streams.changes();
        let handover = Handover::start(parts.config.watchers.clone(), &stop);
        let mut watchers = handover.changes();
        let mut service = Service {
            parts,
            factories: self.factories,
            creating: HashMap::new(),
            failed: Vec::new(),
            waiting: HashMap::new(),
            admission: self.admission,
            joining: None,
            superseded: None,
            join_sent: false,
            closing: HashMap::new(),
            rotating: HashMap::new(),
            following: HashMap::new(),
            tries: HashMap::new(),
            rotation_failures: HashMap::new(),
            asked: HashMap::new(),
            restored: HashMap::new(),
            to_sign: Mutex::new(HashSet::new()),
            wasteful: HashMap::new(),
            handover,
            offered: watchers::Offered::new(),
            held_words: Vec::new(),
            publisher,
            reserve_low: HashSet::new(),
            coins_seen: (0, 0),
            exits_retried: Instant::now(),
        };
        service.refresh_limits(service.parts.height());
        service.clean_up_after_restart();
        service.resume_closes().await;
        service.on_block().await;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                // In this order: what LDK waits for first.
                biased;
                _ = stop.changed() => return,
                command = commands.recv() => match command {
                    Some(c) => service.command(c).await,
                    None => return,
                },
                event = peers.recv() => match event {
                    Some(e) => service.peer_event(e).await,
                    None => return,
                },
                _ = companions.changed() => service.check_covered().await,
                _ = watchers.changed() => service.watchers_said(),
                _ = tip.changed() => service.on_block().await,
                _ = tick.tick() => service.tick().await,
            }
            service.parts.peers.process_events();
        }
    }
}

impl Service {
    fn is_lsp(&self) -> bool {
        matches!(self.parts.config.role, RoleConfig::Lsp(_))
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::WaitingClients(answer) => {
                let _ = answer.send(self.waiting_clients());
            }
            Command::Admission(answer) => {
                let _ = answer.send(self.admission_list());
            }
            Command::Readmit(client, answer) => {
                let _ = answer.send(self.readmit(client));
            }
            Command::Create(request, answer) => {
                let result = self.create(request).await;
                let _ = answer.send(result);
            }
            Command::Factories(answer) => {
                let _ = answer.send(Ok(self.all_infos()));
            }
            Command::Factory(id, answer) => {
                let _ = answer.send(self.info(&id));
            }
            Command::Close(id, answer) => {
                let result = self.close_command(id).await;
                let _ = answer.send(result);
            }
            Command::Exit(id, request, answer) => {
                let result = self.exit_command(id, request).await;
                let _ = answer.send(result);
            }
            Command::Rotate(id, request, answer) => {
                let result = self.rotate_command(id, &request).await;
                let _ = answer.send(result);
            }
            Command::Liquidity(id, request, answer) => {
                let result = self.liquidity_command(id, &request).await;
                let _ = answer.send(result);
            }
            Command::PaymentView(client, answer) => {
                let _ = answer.send(Ok(self.payment_view(&client)));
            }
            Command::ExportExit(id, answer) => {
                let _ = answer.send(self.export_exit(&id));
            }
            Command::Watchers(answer) => {
                let _ = answer.send(Ok(self.handover.infos()));
            }
            Command::Ldk(event, handled) => {
                let result = self.ldk_event(event).await;
                let _ = handled.send(result);
            }
        }
    }

    async fn peer_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Ready(peer) => {
                if self.is_lsp() {
                    self.client_connected(peer).await;
                } else {
                    self.lsp_connected(peer);
                }
            }
            PeerEvent::Gone(peer) => {
                if self.is_lsp() {
                    self.client_gone(peer).await;
                } else {
                    self.lsp_gone(peer).await;
                }
            }
            PeerEvent::Message { peer, payload, slot } => {
                if self.is_lsp() {
                    self.client_message(peer, *payload).await;
                } else {
                    self.lsp_message(peer, *payload).await;
                }
                drop(slot);
            }
            PeerEvent::Change { peer, change, slot } => {
                self.change_message(peer, *change).await;
                drop(slot);
            }
        }
    }

    async fn ldk_event(&mut self, event: LdkEvent) -> Result<(), Error> {
        match event {
            LdkEvent::ChannelClosed { channel, reason, local_msat, capacity_sat } => {
                return self.channel_closed(channel, reason, local_msat, capacity_sat).await;
            }
            LdkEvent::ReadyToSign { channel, unsigned } => self.ready_to_sign(channel, &unsigned).await,
            LdkEvent::ChangeFailed { channel, reason } => self.resize_failed(channel, &reason),
            other if self.is_lsp() => self.lsp_ldk_event(other).await,
            other => self.client_ldk_event(other).await,
        }
        Ok(())
    }

    /// Timers, and everything that waits for time to pass.
    async fn tick(&mut self) {
        let now = Instant::now();
        self.lsp_timers(now).await;
        self.client_timers(now).await;
        self.lsp_close_timers(now).await;
        self.rotation_timers(now).await;
        self.check_covered().await;
        self.offer_paths();
        self.watchers_said();
        self.retry_exits().await;
        self.parts.sweep();
        self.join_if_free();
    }
}

/// A user channel id that marks a factory channel.
fn user_channel_id() -> u128 {
    (u128::from(USER_ID_MARK) << 64) | u128::from(rand::random::<u64>())
}

/// Whether a channel was opened for a factory.
pub(crate) fn is_marked(user_channel_id: u128) -> bool {
    user_channel_id >> 64 == u128::from(USER_ID_MARK)
}
