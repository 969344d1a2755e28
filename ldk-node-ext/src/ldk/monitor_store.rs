//! Channel monitors on a disk that may be full.
//!
//! LDK's own way with a store panics when a monitor cannot be written. Here such a write counts as one that is still
//! under way: LDK holds back every message that depends on it, so nothing is promised that is not on disk. Once there
//! is room the newest state is written, which contains all before it, and the messages leave.
//!
//! With a monitor goes the record of its channel's commitments ([`Commitments`]) and what [`Retired`] keeps of its
//! older outpoints, in the same transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use factory_core::faults::switch;
use lightning::chain::chainmonitor::Persist;
use lightning::chain::channelmonitor::{ChannelMonitor, ChannelMonitorUpdate};
use lightning::chain::ChannelMonitorUpdateStatus;
use lightning::ln::types::ChannelId;
use lightning::util::persist::{
    KVStoreSync, MonitorName, CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE,
    CHANNEL_MONITOR_PERSISTENCE_SECONDARY_NAMESPACE,
};
use lightning::util::ser::Writeable;

use super::virt::COMMITMENTS;
use super::{ChainMonitor, Commitments, FactorySigner, Retired};
use crate::error::Error;
use crate::faults;
use crate::store::{is_no_room, Store};
use crate::util::lock;

/// Updates that LDK waits for, of channels whose newest state is not on disk.
type Behind = HashMap<ChannelId, Vec<u64>>;

/// Writes monitors; see the module's description.
pub struct MonitorStore {
    store: Arc<Store>,
    commitments: Arc<Commitments>,
    retired: Arc<Retired>,
    behind: Mutex<Behind>,
}

impl MonitorStore {
    pub(crate) fn new(store: Arc<Store>, commitments: Arc<Commitments>, retired: Arc<Retired>) -> Self {
        Self { store, commitments, retired, behind: Mutex::default() }
    }

    fn put(
        &self,
        name: MonitorName,
        monitor: &ChannelMonitor<FactorySigner>,
    ) -> Result<(), lightning::io::Error> {
        let (primary, secondary) =
            (CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE, CHANNEL_MONITOR_PERSISTENCE_SECONDARY_NAMESPACE);
        let (channel, key, bytes) = (monitor.channel_id(), name.to_string(), monitor.encode());
        let other = |e: Error| lightning::io::Error::new(lightning::io::ErrorKind::Other, e.to_string());
        let record = self.commitments.record(&channel).map_err(other)?;
        let before = || self.store.read(primary, secondary, &key);
        let retired = self.retired.follow(&channel, monitor.get_latest_update_id(), before)?;
        let mut entries = vec![(primary, secondary, key.as_str(), bytes.as_slice())];
        if let Some(record) = record.as_ref().filter(|_| !switch("companion.not_stored")) {
            entries.push((COMMITMENTS, "", record.key.as_str(), record.bytes.as_slice()));
        }
        entries.extend(
            retired.iter().map(|(key, bytes)| (Retired::NAMESPACE, "", key.as_str(), bytes.as_slice())),
        );
        faults::ldk_object(primary, &key, "store");
        self.store.write_all(&entries)?;
        faults::ldk_object(primary, &key, "stored");
        if let Some(record) = &record {
            self.commitments.stored(&channel, record);
        }
        self.retired.written(&channel);
        self.retired.overtaken(&channel, monitor);
        Ok(())
    }

    /// `update`: the one that LDK waits for; none after a block.
    fn persist(
        &self,
        name: MonitorName,
        update: Option<u64>,
        monitor: &ChannelMonitor<FactorySigner>,
    ) -> ChannelMonitorUpdateStatus {
        let mut behind = lock(&self.behind);
        let channel = monitor.channel_id();
        let written = if behind.contains_key(&channel) {
            self.retired.follow_unwritten(&channel, monitor).map(|()| false)
        } else {
            match self.put(name, monitor) {
                Err(e) if is_no_room(&e) => Ok(false),
                other => other.map(|()| true),
            }
        };
        match written {
            Ok(true) => return ChannelMonitorUpdateStatus::Completed,
            Ok(false) => {}
            Err(e) => {
                tracing::error!(%channel, error = %e, "channel monitor not stored");
                return ChannelMonitorUpdateStatus::UnrecoverableError;
            }
        }
        self.retired.not_written(&channel, monitor);
        behind.entry(channel).or_default().extend(update);
        ChannelMonitorUpdateStatus::InProgress
    }

    /// Writes what could not be written, and lets LDK go on with those channels, as far as there is room.
    pub(crate) fn catch_up(&self, monitors: &ChainMonitor) -> Result<(), lightning::io::Error> {
        let channels: Vec<ChannelId> = lock(&self.behind).keys().copied().collect();
        for channel in channels {
            let done = {
                let Ok(monitor) = monitors.get_monitor(channel) else { continue };
                let mut behind = lock(&self.behind);
                match self.put(monitor.persistence_key(), &monitor) {
                    Ok(()) => behind.remove(&channel).unwrap_or_default(),
                    Err(e) if is_no_room(&e) => return Ok(()),
                    Err(e) => return Err(e),
                }
            };
            // Without our lock: LDK takes its own first when it writes.
            for update in done {
                if let Err(e) = monitors.channel_monitor_updated(channel, update) {
                    tracing::error!(%channel, error = ?e, "monitor update");
                }
            }
        }
        Ok(())
    }
}

impl Persist<FactorySigner> for MonitorStore {
    fn persist_new_channel(
        &self,
        name: MonitorName,
        monitor: &ChannelMonitor<FactorySigner>,
    ) -> ChannelMonitorUpdateStatus {
        self.commitments.committed(
            &monitor.channel_id(),
            monitor.initial_counterparty_commitment_tx().into_iter().collect(),
        );
        self.persist(name, Some(monitor.get_latest_update_id()), monitor)
    }

    fn update_persisted_channel(
        &self,
        name: MonitorName,
        update: Option<&ChannelMonitorUpdate>,
        monitor: &ChannelMonitor<FactorySigner>,
    ) -> ChannelMonitorUpdateStatus {
        if let Some(update) = update {
            let theirs = monitor.counterparty_commitment_txs_from_update(update);
            self.commitments.committed(&monitor.channel_id(), theirs);
        }
        self.persist(name, update.map(|update| update.update_id), monitor)
    }

    fn archive_persisted_channel(&self, name: MonitorName) {
        Persist::<FactorySigner>::archive_persisted_channel(&*self.store, name);
    }
}
