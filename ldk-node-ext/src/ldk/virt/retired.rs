//! Monitors for virtual outpoints that LDK has moved on from.
//!
//! When a splice V -> V' is locked, LDK's monitor forgets V: on a real chain V is spent by then. Here the splice is
//! virtual, and the real outpoints under V may still confirm, with a revoked commitment on them. So a copy of the
//! monitor is kept as it was before the lock, one for each retired V, with these rules, each of which costs a channel
//! if it is broken:
//!
//! - **It learns what comes later.** The commitment that is current at the lock is revoked on V' only, and preimages
//!   come later, too. These steps of the live monitor's updates are applied to the copy ([`Steps`]) before the live
//!   monitor is written, and both are written in one transaction. Steps of any other kind would spoil it.
//! - **It sleeps until V is spent**, on the chain that is valid now. A monitor that hears of blocks closes its channel
//!   when an HTLC expires that it does not know to be settled, and this one does not know.
//! - **It sees nothing but what is below its own V** ([`Shown::apart`]). V' it takes for unconfirmed.
//! - What it finds out goes to the channel manager as if the live monitor had said it ([`AllMonitors`]): the channel is
//!   closed, a payment that was claimed on the chain is claimed upstream.
//! - It is removed when the mapping has forgotten V: none of its real outpoints can confirm any more.
//!
//! The copy is made from what the store has of the monitor when the update is applied, not when LDK hands it over:
//! updates wait for the channel manager to be written first.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex};

use bitcoin::block::Header;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Block, OutPoint, Transaction};
use factory_core::faults::switch;
use lightning::chain::channelmonitor::{Balance, ChannelMonitor, ChannelMonitorUpdate, MonitorEvent};
use lightning::chain::transaction::{OutPoint as LdkOutPoint, TransactionData};
use lightning::chain::{BlockLocator, ChannelMonitorUpdateStatus, Listen, Watch};
use lightning::events::{Event, ReplayEvent};
use lightning::io;
use lightning::ln::types::ChannelId;
use lightning::util::persist::KVStoreSync;
use lightning::util::ser::{ReadableArgs, Writeable};

use super::chain::Shown;
use super::map::Mapping;
use super::steps::Steps;
use crate::chain::Fees;
use crate::error::Error;
use crate::keys::Keys;
use crate::ldk::{Broadcaster, ChainMonitor, FactorySigner};
use crate::logger::Logger;
use crate::store::{self, Store};
use crate::util::lock;

/// Where copies are kept. LDK's own namespace has the live monitor under the same name.
const NAMESPACE: &str = "retired_monitors";

pub(super) type Monitor = ChannelMonitor<FactorySigner>;

/// The monitor of one retired V.
pub(super) struct Kept {
    pub(super) v: OutPoint,
    pub(super) channel: ChannelId,
    pub(super) monitor: Arc<Monitor>,
    /// It has changed since it was written.
    pub(super) dirty: bool,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) kept: Vec<Kept>,
    /// Updates that LDK has handed over and that no monitor has seen.
    waiting: HashMap<ChannelId, VecDeque<Steps>>,
    /// The newest state of monitors that could not be written.
    unwritten: HashMap<ChannelId, Vec<u8>>,
}

/// See the module's description.
pub struct Retired {
    pub(super) store: Arc<Store>,
    pub(super) mapping: Arc<Mapping>,
    pub(super) broadcaster: Arc<Broadcaster>,
    pub(super) fees: Arc<Fees>,
    keys: Arc<Keys>,
    pub(super) inner: Mutex<Inner>,
}

/// A monitor's key and bytes, to be written with the live one.
pub(crate) type Entry = (String, Vec<u8>);

pub(super) fn key(v: &OutPoint) -> String {
    format!("{}_{}", v.txid, v.vout)
}

fn other(e: impl std::fmt::Debug) -> io::Error {
    io::Error::new(io::ErrorKind::Other, format!("{e:?}"))
}

impl Retired {
    /// Reads all copies.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub(crate) fn load(
        store: Arc<Store>,
        mapping: Arc<Mapping>,
        broadcaster: Arc<Broadcaster>,
        fees: Arc<Fees>,
        keys: Arc<Keys>,
    ) -> Result<Self, Error> {
        let retired = Self { store, mapping, broadcaster, fees, keys, inner: Mutex::default() };
        let names = retired.store.list(NAMESPACE, "").map_err(|e| store::error(NAMESPACE, &e))?;
        for name in names {
            let what = format!("{NAMESPACE}/{name}");
            let bytes = retired.store.read(NAMESPACE, "", &name).map_err(|e| store::error(&what, &e))?;
            let kept =
                retired.decode(&bytes).map_err(|e| Error::Corrupt { key: what, reason: e.to_string() })?;
            if !retired.mapping.is_ahead(&kept.v) {
                if retired.mapping.pending(&kept.channel).contains(&kept.v) {
                    // LDK's monitor knows it; the process died before this one was removed.
                    retired
                        .store
                        .remove(NAMESPACE, "", &name, false)
                        .map_err(|e| store::error(NAMESPACE, &e))?;
                    continue;
                }
                retired.retire(&kept.v);
            }
            lock(&retired.inner).kept.push(Kept { dirty: false, ..kept });
        }
        Ok(retired)
    }

    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Kept, io::Error> {
        let read = <(BlockLocator, Monitor)>::read(&mut &bytes[..], (&*self.keys, &*self.keys));
        let (_, monitor) = read.map_err(other)?;
        let (v, channel) = (monitor.get_funding_txo().into_bitcoin_outpoint(), monitor.channel_id());
        Ok(Kept { v, channel, monitor: Arc::new(monitor), dirty: true })
    }

    fn retire(&self, v: &OutPoint) {
        // It is done again at the next start, since the copy is there.
        if let Err(e) = self.mapping.retire(v) {
            tracing::error!(%v, error = %e, "not stored that it is retired");
        }
    }

    // What LDK's updates tell.

    /// LDK hands an update over; it is applied some time later.
    fn announced(&self, channel: &ChannelId, update: &ChannelMonitorUpdate) {
        if self.mapping.current(channel).is_none() {
            return;
        }
        match Steps::of(update) {
            Ok(steps) if steps.is_empty() => {}
            Ok(steps) => lock(&self.inner).waiting.entry(*channel).or_default().push_back(steps),
            Err(e) => {
                tracing::error!(%channel, error = ?e, "LDK's encoding of an update is not the one expected")
            }
        }
    }

    /// The live monitor has been updated and is about to be written. Makes the copy that is due and brings the others
    /// up to date; returns what has to be written with it.
    ///
    /// # Errors
    /// What reading the state before the update came to.
    pub(crate) fn follow(
        &self,
        channel: &ChannelId,
        updated_to: u64,
        stored: impl FnOnce() -> Result<Vec<u8>, io::Error>,
    ) -> Result<Vec<Entry>, io::Error> {
        let mut inner = lock(&self.inner);
        let mut stored = Some(stored);
        while let Some(steps) = inner.waiting.get_mut(channel).and_then(|queue| {
            let due = queue.front().is_some_and(|s| s.id <= updated_to);
            due.then(|| queue.pop_front()).flatten()
        }) {
            if let (true, Some(stored)) = (steps.locks, stored.take()) {
                let before = inner.unwritten.get(channel).cloned().map_or_else(stored, Ok)?;
                self.keep(&mut inner, &before)?;
            }
            if !switch("virt.retired.ignorant") {
                self.teach(&mut inner, channel, &steps);
            }
        }
        inner.waiting.retain(|_, queue| !queue.is_empty());
        let dirty = inner.kept.iter().filter(|k| k.channel == *channel && k.dirty);
        Ok(dirty.map(|k| (key(&k.v), k.monitor.encode())).collect())
    }

    /// As [`Self::follow`], for a monitor that cannot be written for now; [`Self::not_written`] has the state before.
    ///
    /// # Errors
    /// If that state is none that LDK reads.
    pub(crate) fn follow_unwritten(&self, channel: &ChannelId, monitor: &Monitor) -> Result<(), io::Error> {
        let none = || Err(other("no state before the update"));
        self.follow(channel, monitor.get_latest_update_id(), none).map(|_| ())
    }

    /// Makes the copy of a monitor that is about to forget its outpoint; a second time, after a crash, there is one.
    fn keep(&self, inner: &mut Inner, before: &[u8]) -> Result<(), io::Error> {
        let kept = self.decode(before)?;
        let known = inner.kept.iter().any(|k| k.v == kept.v);
        // A splice that is no rotation spends its outpoint on the chain, as LDK believes.
        if known || self.mapping.channel_of(&kept.v).is_none() || switch("virt.retired.none") {
            return Ok(());
        }
        tracing::info!(channel = %kept.channel, v = %kept.v, "retired; its monitor is kept");
        self.retire(&kept.v);
        inner.kept.push(kept);
        Ok(())
    }

    fn teach(&self, inner: &mut Inner, channel: &ChannelId, steps: &Steps) {
        for kept in inner.kept.iter_mut().filter(|k| k.channel == *channel) {
            let next = kept.monitor.get_latest_update_id().saturating_add(1);
            match steps.update(next, channel) {
                Ok(None) => {}
                Ok(Some(update)) => {
                    let to = (&*self.broadcaster, &*self.fees, &Logger);
                    if kept.monitor.update_monitor(&update, to.0, to.1, to.2).is_err() {
                        // It has taken in what it could; of a spent outpoint it refuses what it needs no more.
                        tracing::debug!(%channel, v = %kept.v, "retired monitor is closed");
                    }
                    kept.dirty = true;
                }
                Err(e) => tracing::error!(%channel, error = ?e, "LDK does not read its own steps"),
            }
        }
    }

    /// What [`Self::follow`] returned is on disk.
    pub(crate) fn written(&self, channel: &ChannelId) {
        let mut inner = lock(&self.inner);
        inner.unwritten.remove(channel);
        inner.kept.iter_mut().filter(|k| k.channel == *channel).for_each(|k| k.dirty = false);
    }

    /// It is not: the live monitor's newest state is in memory only.
    pub(crate) fn not_written(&self, channel: &ChannelId, monitor: &Monitor) {
        if self.mapping.current(channel).is_some() {
            lock(&self.inner).unwritten.insert(*channel, monitor.encode());
        }
    }

    // What the chain tells.

    /// Shows a block to those whose V is spent, after the mapping has read it.
    pub(crate) fn connect(&self, header: &Header, height: u32, shown: &Shown) {
        let mut inner = lock(&self.inner);
        self.remove_lost(&mut inner);
        for kept in &mut inner.kept {
            if self.mapping.spend(&kept.v).is_none() && !switch("virt.retired.awake") {
                continue;
            }
            let own = shown.apart.iter().filter(|(v, _)| *v == kept.v).map(|(_, tx)| tx);
            let own: Vec<(usize, &Transaction)> = own.enumerate().map(|(at, tx)| (at + 1, tx)).collect();
            self.show(&kept.monitor, header, height, &own);
            kept.dirty = true;
            self.write(kept);
        }
    }

    fn show(&self, monitor: &Monitor, header: &Header, height: u32, own: &TransactionData) {
        let to = (&*self.broadcaster, &*self.fees, &Logger);
        let best = monitor.current_best_block();
        let again = best.height == height && best.block_hash == header.block_hash();
        if best.height >= height && !again {
            // On another branch, or at a start before what it had seen already.
            let parent = BlockLocator::new(header.prev_blockhash, height.saturating_sub(1));
            monitor.blocks_disconnected(parent, to.0, to.1, to.2);
        }
        if !own.is_empty() {
            monitor.transactions_confirmed(header, own, height, to.0, to.1, to.2);
        }
        if !again {
            monitor.best_block_updated(header, height, to.0, to.1, to.2);
        }
    }

    /// Takes blocks back.
    pub(crate) fn disconnect(&self, fork: BlockLocator) {
        for kept in &mut lock(&self.inner).kept {
            if kept.monitor.current_best_block().height > fork.height {
                let to = (&*self.broadcaster, &*self.fees, &Logger);
                kept.monitor.blocks_disconnected(fork, to.0, to.1, to.2);
                kept.dirty = true;
                self.write(kept);
            }
        }
    }

    /// Writes one by itself. If that fails it is older on disk than in memory, and reads the blocks in between again.
    pub(super) fn write(&self, kept: &mut Kept) {
        match self.store.write(NAMESPACE, "", &key(&kept.v), kept.monitor.encode()) {
            Ok(()) => kept.dirty = false,
            Err(e) => tracing::error!(v = %kept.v, error = %e, "retired monitor not stored"),
        }
    }

    fn remove_lost(&self, inner: &mut Inner) {
        inner.kept.retain(|kept| {
            if self.mapping.channel_of(&kept.v).is_some() {
                return true;
            }
            match self.store.remove(NAMESPACE, "", &key(&kept.v), false) {
                Ok(()) => tracing::info!(v = %kept.v, "can no longer confirm; its monitor is removed"),
                Err(e) => tracing::error!(v = %kept.v, error = %e, "retired monitor not removed"),
            }
            false
        });
    }

    /// The names under which copies are in the store.
    pub(crate) const NAMESPACE: &'static str = NAMESPACE;

    // What they find out.

    /// What is to be claimed of a channel below a V that LDK's own monitor does not know, if that V is spent on the chain or
    /// about to be: nothing else of the channel will ever come.
    pub(crate) fn balances(&self, channel: &ChannelId) -> Option<Vec<Balance>> {
        let inner = lock(&self.inner);
        let mut of_it = inner.kept.iter().filter(|kept| kept.channel == *channel);
        // A reorganisation may have taken off the chain what was left over.
        let left = |v: &OutPoint| self.mapping.is_left(v) && self.mapping.is_confirmed(v);
        let spent = of_it.find(|k| self.mapping.spend(&k.v).is_some() || left(&k.v))?;
        Some(spent.monitor.get_claimable_balances())
    }

    fn monitors(&self) -> Vec<Arc<Monitor>> {
        lock(&self.inner).kept.iter().map(|k| Arc::clone(&k.monitor)).collect()
    }

    /// Hands their events out, as LDK's chain monitor does with those of live ones, and repeats their claims.
    pub(crate) async fn process_events<F: Future<Output = Result<(), ReplayEvent>>>(
        &self,
        handler: impl Fn(Event) -> F,
    ) {
        for monitor in self.monitors() {
            if monitor.process_pending_events_async(&handler, &Logger).await.is_err() {
                tracing::warn!(channel = %monitor.channel_id(), "event of a retired monitor comes again");
            }
            monitor.rebroadcast_pending_claims(&*self.broadcaster, &*self.fees, &Logger);
        }
    }
}

/// Follows the chain at start, from where the channel manager was: that one is written last.
pub(crate) struct RetiredListener<'a> {
    pub(crate) mapping: &'a Mapping,
    pub(crate) retired: &'a Retired,
}

impl Listen for RetiredListener<'_> {
    fn filtered_block_connected(&self, _header: &Header, _txdata: &TransactionData, height: u32) {
        tracing::error!(height, "retired monitors need whole blocks");
    }
    fn block_connected(&self, block: &Block, height: u32) {
        let shown = self.mapping.connect(block, height);
        self.retired.connect(&block.header, height, &shown);
    }
    fn blocks_disconnected(&self, fork: BlockLocator) {
        self.mapping.disconnect(fork);
        self.retired.disconnect(fork);
    }
}

type Released = (LdkOutPoint, ChannelId, Vec<MonitorEvent>, PublicKey);

/// What LDK's channel manager takes for its chain monitor: the live monitors, and what the retired ones say.
pub struct AllMonitors {
    live: Arc<ChainMonitor>,
    retired: Arc<Retired>,
}

impl AllMonitors {
    pub(crate) fn new(live: Arc<ChainMonitor>, retired: Arc<Retired>) -> Self {
        Self { live, retired }
    }
}

impl Watch<FactorySigner> for AllMonitors {
    fn watch_channel(&self, channel: ChannelId, monitor: Monitor) -> Result<ChannelMonitorUpdateStatus, ()> {
        self.live.watch_channel(channel, monitor)
    }

    fn update_channel(
        &self,
        channel: ChannelId,
        update: &ChannelMonitorUpdate,
    ) -> ChannelMonitorUpdateStatus {
        self.retired.announced(&channel, update);
        self.live.update_channel(channel, update)
    }

    fn release_pending_monitor_events(&self) -> Vec<Released> {
        let mut released = self.live.release_pending_monitor_events();
        for monitor in self.retired.monitors() {
            let events = monitor.get_and_clear_pending_monitor_events();
            if !events.is_empty() {
                let (v, channel) = (monitor.get_funding_txo(), monitor.channel_id());
                released.push((v, channel, events, monitor.get_counterparty_node_id()));
            }
        }
        released
    }
}
