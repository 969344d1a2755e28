//! The node: everything wired together, and the methods a program calls.

mod broadcast;
mod builder;
mod bumps;
mod channels;
mod connections;
mod failure;
mod holds;
mod htlcs;
mod ldk_events;
mod net;
mod offers;
mod payments;
mod restore;
mod room;

pub(crate) use failure::Failure;
pub(crate) use htlcs::Intercepted;
pub(crate) use payments::known_payments;
#[cfg(test)]
pub(crate) use restore::Ldk;
pub(crate) use restore::{check_network, mark_void};

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use lightning::chain::BlockLocator;
use lightning::events::bump_transaction::sync::BumpTransactionEventHandlerSync;
use lightning::util::wallet_utils::WalletSync;
use tokio::sync::{mpsc, oneshot, watch, Notify};

use crate::api;
use crate::chain::{Bitcoind, ChainIndex, Fees};
use crate::config::{NodeConfig, RoleConfig};
use crate::error::Error;
use crate::factory::Command;
use crate::keys::Keys;
use crate::ldk::{
    Broadcaster, ChainMonitor, Changes, ChannelManager, ChannelMessages, FactoryMessages, FundingDepth,
    HeldHtlcs, LspsManager, Mapping, OnionMessenger, Outpoints, Outward, PeerManager, Retired, Streams,
    Sweeper,
};
use crate::liquidity::Liquidity;
use crate::logger::Logger;
use crate::relay::{Asks, Relays};
use crate::store::events::Events;
use crate::store::holds::Holds;
use crate::store::payments::Payments;
use crate::store::requests::Requests;
use crate::store::Store;
use crate::util::lock;
use crate::wallet::Wallet;
use crate::watch::{ExitFile, WatcherInfo};

pub(crate) type BumpHandler = BumpTransactionEventHandlerSync<
    Arc<Broadcaster>,
    Arc<WalletSync<Arc<Wallet>, Arc<Logger>>>,
    Arc<Keys>,
    Arc<Logger>,
>;

/// All parts of a running node.
pub(crate) struct Parts {
    pub(crate) config: NodeConfig,
    pub(crate) node_id: PublicKey,
    pub(crate) keys: Arc<Keys>,
    pub(crate) store: Arc<Store>,
    pub(crate) wallet: Arc<Wallet>,
    pub(crate) index: Arc<ChainIndex>,
    pub(crate) outpoints: Arc<Outpoints>,
    pub(crate) depth: Arc<FundingDepth>,
    pub(crate) fees: Arc<Fees>,
    pub(crate) bitcoind: Arc<Bitcoind>,
    pub(crate) broadcaster: Arc<Broadcaster>,
    pub(crate) outward: Arc<Outward>,
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) changes: Changes,
    pub(crate) manager: Arc<ChannelManager>,
    pub(crate) monitor: Arc<ChainMonitor>,
    pub(crate) retired: Arc<Retired>,
    pub(crate) onion_messenger: Arc<OnionMessenger>,
    pub(crate) channel_messages: Arc<ChannelMessages>,
    pub(crate) factory_messages: Arc<FactoryMessages>,
    pub(crate) peers: Arc<PeerManager>,
    pub(crate) sweeper: Arc<Sweeper>,
    pub(crate) bump: BumpHandler,
    pub(crate) bumps: bumps::BumpMemory,
    pub(crate) payments: Payments,
    /// Payments to offers.
    pub(crate) requests: Requests,
    pub(crate) holds: Holds,
    /// LSP: payments received for clients.
    pub(crate) relays: Relays,
    /// Client: invoices that the LSP was asked for.
    pub(crate) asks: Asks,
    pub(crate) events: Events,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) tip: watch::Receiver<BlockLocator>,
    pub(crate) synced: Arc<AtomicBool>,
    pub(crate) payments_changed: watch::Sender<u64>,
    /// Smallest final expiry delta for invoices, from the factories' claim budgets, blocks.
    pub(crate) min_final_cltv: Arc<AtomicU16>,
    /// HTLCs that our own commitments of factory channels carry.
    pub(crate) held: Arc<HeldHtlcs>,
    pub(crate) htlcs: htlcs::HtlcMemory,
    /// What is held for clients without room, and the channels beside the factory.
    pub(crate) liquidity: Liquidity,
    /// Speaks LSPS with wallets, if the operator wants that.
    pub(crate) lsps: Option<Arc<LspsManager>>,
    /// A wallet has asked it something.
    pub(crate) lsps_asked: Arc<Notify>,
    /// Nearest deadline over all factories, kept by the factory service.
    pub(crate) deadline: Mutex<Option<api::Deadline>>,
    /// Channels that are in no factory any more and whose money is accounted for elsewhere.
    pub(crate) settled: Mutex<std::collections::HashSet<lightning::ln::types::ChannelId>>,
    pub(crate) listen: Mutex<Option<SocketAddr>>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) failure: Arc<Failure>,
    pub(crate) ended: watch::Sender<bool>,
}

impl Parts {
    /// Height of the last block that all parts have seen.
    pub(crate) fn height(&self) -> u32 {
        self.tip.borrow().height
    }

    pub(crate) fn role(&self) -> api::Role {
        match self.config.role {
            RoleConfig::Lsp(_) => api::Role::Lsp,
            RoleConfig::Client(_) => api::Role::Client,
        }
    }
}

/// A running node. Cheap to clone; the last clone that is dropped does not stop it, [`Node::stop`]
/// does.
#[derive(Clone)]
pub struct Node {
    parts: Arc<Parts>,
}

impl Node {
    /// Starts a node: opens its store, catches up with bitcoind, accepts and makes connections.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad configuration, [`Error::Bitcoind`] when bitcoind cannot
    /// be used, [`Error::Store`] and [`Error::Corrupt`] when the store cannot.
    pub async fn start(config: NodeConfig) -> Result<Self, Error> {
        builder::start(config).await
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Stops in order: connections first, then everything is written. Returns when done.
    ///
    /// # Errors
    /// None at present; the type leaves room.
    pub async fn stop(&self) -> Result<(), Error> {
        self.parts.stop.send_replace(true);
        self.stopped().await;
        Ok(())
    }

    /// Resolves when the node has ended and everything is written, after [`Self::stop`] or a fatal
    /// error.
    pub async fn stopped(&self) {
        let _ = self.parts.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Why the node ended by itself, if it did and knows.
    pub fn failure(&self) -> Option<String> {
        self.parts.failure.reason().map(str::to_owned)
    }

    /// Node id, hex.
    pub fn node_id(&self) -> String {
        self.parts.node_id.to_string()
    }

    /// The state of the node.
    pub fn info(&self) -> api::NodeInfo {
        let p = &self.parts;
        let tip = *p.tip.borrow();
        let connected: Vec<PublicKey> =
            p.peers.list_peers().into_iter().map(|d| d.counterparty_node_id).collect();
        let mut known = connected.clone();
        known.extend(p.manager.list_channels().into_iter().map(|c| c.counterparty.node_id));
        if let RoleConfig::Client(c) = &p.config.role {
            known.push(c.lsp_node_id);
        }
        known.sort();
        known.dedup();
        api::NodeInfo {
            node_id: p.node_id.to_string(),
            role: p.role(),
            network: p.config.network.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            height: tip.height,
            block_hash: tip.block_hash.to_string(),
            synced: p.synced.load(Ordering::Acquire),
            listen: self.listen_address().iter().map(ToString::to_string).collect(),
            peers: known
                .into_iter()
                .map(|id| api::PeerInfo { node_id: id.to_string(), connected: connected.contains(&id) })
                .collect(),
            deadline: lock(&p.deadline).clone(),
        }
    }

    /// Factory messages since the start.
    pub fn factory_traffic(&self) -> api::FactoryTraffic {
        self.parts.factory_messages.traffic()
    }

    /// Since when the disk has had no room for what the node has to write, Unix time in seconds. What depends on it
    /// waits.
    pub fn disk_full_since(&self) -> Option<u64> {
        self.parts.store.full_since()
    }

    /// Where Lightning connections are accepted.
    pub fn listen_address(&self) -> Option<SocketAddr> {
        *lock(&self.parts.listen)
    }

    /// A new on-chain address.
    ///
    /// # Errors
    /// [`Error::Store`]: the address is only handed out once its index is on disk.
    pub fn new_address(&self) -> Result<String, Error> {
        Ok(self.parts.wallet.new_address()?.to_string())
    }

    /// Events after an index, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn events(&self, after: u64, limit: usize) -> Result<Vec<api::EventRecord>, Error> {
        self.parts.events.after(after, limit)
    }

    /// Returns when an event with a larger index exists, at the latest after `timeout`.
    pub async fn wait_event(&self, after: u64, timeout: Duration) {
        let mut newest = self.parts.events.subscribe();
        let _ = tokio::time::timeout(timeout, newest.wait_for(|n| *n > after)).await;
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let (answer, reply) = oneshot::channel();
        let gone = || Error::Unavailable("the node is stopping".into());
        self.parts.commands.send(make(answer)).await.map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?
    }

    /// Clients that speak our protocol (LSP).
    ///
    /// # Errors
    /// [`Error::Conflict`] on a client.
    pub async fn waiting_clients(&self) -> Result<Vec<api::WaitingClient>, Error> {
        self.ask(Command::WaitingClients).await
    }

    /// Clients that have failed lately, and who is paused for it (LSP).
    ///
    /// # Errors
    /// [`Error::Conflict`] on a client.
    pub async fn admission(&self) -> Result<Vec<api::ClientAdmission>, Error> {
        self.ask(Command::Admission).await
    }

    /// Forgets what a client has failed at, so that it is invited again (LSP).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, [`Error::NotFound`] if nothing is known against it.
    pub async fn readmit(&self, request: api::ReadmitRequest) -> Result<(), Error> {
        let client = parse_node_id(&request.node_id)?;
        self.ask(|a| Command::Readmit(client, a)).await
    }

    /// Starts a factory (LSP); follow it with [`Self::factory`]. Returns its instance id in hex.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, [`Error::Unavailable`] if a client is not there,
    /// [`Error::InsufficientFunds`].
    pub async fn create_factory(&self, request: api::CreateFactoryRequest) -> Result<String, Error> {
        self.ask(|a| Command::Create(request, a)).await
    }

    /// All factories, newest last.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn factories(&self) -> Result<Vec<api::FactoryInfo>, Error> {
        self.ask(Command::Factories).await
    }

    /// One factory.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn factory(&self, instance_id: &str) -> Result<api::FactoryInfo, Error> {
        let id = parse_instance(instance_id)?;
        self.ask(|a| Command::Factory(id, a)).await
    }

    /// Closes a factory cooperatively; a client asks its LSP to.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`] in the wrong state, [`Error::Unavailable`] if somebody
    /// needed is not connected.
    pub async fn close_factory(&self, instance_id: &str) -> Result<(), Error> {
        let id = parse_instance(instance_id)?;
        self.ask(|a| Command::Close(id, a)).await
    }

    /// Rotates a client's leaf: its newest state replaces the one before (LSP). It begins; an event says how it ends.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unavailable`] naming a client that is not connected, or while a payment ends too
    /// soon; [`Error::Conflict`] in the wrong state, or if the leaf's odometer is exhausted.
    pub async fn rotate(
        &self,
        instance_id: &str,
        request: api::RotateRequest,
    ) -> Result<api::Rotation, Error> {
        let id = parse_instance(instance_id)?;
        self.ask(|a| Command::Rotate(id, request, a)).await
    }

    /// Changes the capacity of a client's channel (LSP), or asks the LSP to change that of the own one (client). It begins;
    /// an event says how it ends.
    ///
    /// # Errors
    /// As [`Self::rotate`]; [`Error::InvalidArgument`] if nothing changes or the leaf's stock, the channel or LDK do not
    /// allow it.
    pub async fn change_liquidity(
        &self,
        instance_id: &str,
        request: api::LiquidityRequest,
    ) -> Result<api::LiquidityAnswer, Error> {
        let id = parse_instance(instance_id)?;
        self.ask(|a| Command::Liquidity(id, request, a)).await
    }

    /// What a watcher needs to guard the own leaf of a factory (client). It holds no secret.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`] on an LSP or if the factory is not alive.
    pub async fn export_exit(&self, instance_id: &str) -> Result<ExitFile, Error> {
        let id = parse_instance(instance_id)?;
        self.ask(|a| Command::ExportExit(id, a)).await
    }

    /// The watchers that are handed this node's paths, and how it stands with each.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the node is stopping.
    pub async fn watchers(&self) -> Result<Vec<WatcherInfo>, Error> {
        self.ask(Command::Watchers).await
    }

    /// Leaves a factory alone by publishing the own path (client), or leaves one client by its path (LSP).
    /// Runs on, also over restarts. On an exit that is under way it changes the fee budget.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, [`Error::NotFound`], [`Error::Conflict`].
    pub async fn exit_factory(&self, instance_id: &str, request: api::ExitRequest) -> Result<(), Error> {
        let id = parse_instance(instance_id)?;
        self.ask(|a| Command::Exit(id, request, a)).await
    }
}

fn parse_instance(text: &str) -> Result<[u8; 32], Error> {
    let mut id = [0; 32];
    hex::decode_to_slice(text, &mut id)
        .map_err(|_| Error::invalid("instance_id", "must be 64 hex digits"))
        .map(|()| id)
}

pub(crate) fn parse_node_id(text: &str) -> Result<PublicKey, Error> {
    text.parse().map_err(|_| Error::invalid("node_id", "must be a compressed public key, 66 hex digits"))
}
