//! What waits for room on the disk, and goes on when there is some.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lightning::io;
use lightning::util::persist::{KVStore, KVStoreSync};
use serde_json::json;
use tokio::sync::watch;

use super::Parts;
use crate::error::Error;
use crate::ldk::{Broadcaster, MonitorStore};
use crate::store::{is_no_room, records, Store};

const NAMESPACE: &str = "node";
/// How long it is between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// The store as LDK's background task writes to it: the channel manager above all. Where there is no room it waits;
/// nothing that depends on the write leaves the node meanwhile, since monitors are written after the manager. Any
/// other error ends the node.
pub(super) struct PatientStore {
    pub(super) store: Arc<Store>,
    pub(super) broadcaster: Arc<Broadcaster>,
    pub(super) stop: watch::Receiver<bool>,
}

impl KVStore for PatientStore {
    fn read(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
    ) -> impl Future<Output = Result<Vec<u8>, io::Error>> + 'static + Send {
        std::future::ready(self.store.read(primary, secondary, key))
    }

    // One task writes, one after the other, so the order of writes to a key is kept.
    fn write(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
        buf: Vec<u8>,
    ) -> impl Future<Output = Result<(), io::Error>> + 'static + Send {
        let (store, mut stop) = (Arc::clone(&self.store), self.stop.clone());
        let broadcaster = Arc::clone(&self.broadcaster);
        let names = [primary, secondary, key].map(str::to_owned);
        async move {
            let [primary, secondary, key] = &names;
            loop {
                let written = match broadcaster.write_kept() {
                    Ok(()) => store.write(primary, secondary, key, buf.clone()),
                    Err(Error::NoRoom(_)) if !*stop.borrow() => {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    Err(e) => Err(io::Error::new(io::ErrorKind::Other, e.to_string())),
                };
                match written {
                    Err(e) if is_no_room(&e) && !*stop.borrow() => {
                        tokio::select! {
                            () = tokio::time::sleep(PAUSE) => {}
                            _ = stop.changed() => {}
                        }
                    }
                    other => return other,
                }
            }
        }
    }

    fn remove(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
        lazy: bool,
    ) -> impl Future<Output = Result<(), io::Error>> + 'static + Send {
        std::future::ready(self.store.remove(primary, secondary, key, lazy))
    }

    fn list(
        &self,
        primary: &str,
        secondary: &str,
    ) -> impl Future<Output = Result<Vec<String>, io::Error>> + 'static + Send {
        std::future::ready(self.store.list(primary, secondary))
    }
}

/// As long as the disk is full: looks whether there is room, and writes the monitors that wait for it.
pub(super) async fn run(parts: Arc<Parts>, monitors: Arc<MonitorStore>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = stop.changed() => return,
        }
        if let Err(e) = monitors.catch_up(&parts.monitor) {
            return parts.failure.stop(format!("it cannot write a channel's state: {e}"));
        }
        if parts.store.full_since().is_some() {
            // Where nothing waits for room, nothing else would find it.
            let _ = records::put(&*parts.store, NAMESPACE, "room", 1, &());
        }
        if let Some((from, to)) = parts.store.take_full() {
            parts.events.push("disk_full", json!({ "from": from, "to": to }));
        }
    }
}
