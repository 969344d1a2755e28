//! What waits for room on the disk, and goes on when there is some.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use factory_core::faults::switch;
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
                let kept = if switch("closing.unwritten") { Ok(()) } else { broadcaster.write_kept() };
                let written = match kept {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ldk::broadcaster_tests::{blocked, close};
    use crate::store::read_opt;

    /// A manager on disk that has forgotten a channel, and no closing transaction beside it: that money would be gone.
    #[tokio::test]
    async fn the_manager_waits_for_the_closing_transactions() {
        let dir = tempfile::tempdir().unwrap();
        let (store, place) = blocked(dir.path());
        let new = || {
            let outward = crate::ldk::virt::testing::outward_apart();
            Broadcaster::new(Arc::default(), outward, Arc::clone(&store)).0
        };
        let broadcaster = Arc::new(new());
        let (id, tx) = close(&broadcaster, 1);
        let (_sender, stop) = watch::channel(false);
        let patient = PatientStore { store: Arc::clone(&store), broadcaster, stop };
        let on_disk = || read_opt(&*store, "", "", "manager").unwrap();

        let written = patient.write("", "", "manager", vec![1]).await;
        assert_eq!(on_disk(), None, "the manager was written without its closing transaction");
        written.unwrap_err();
        std::fs::remove_file(place).unwrap();
        patient.write("", "", "manager", vec![2]).await.unwrap();
        assert_eq!(on_disk(), Some(vec![2]));
        assert_eq!(new().kept_closing(&id).unwrap(), Some(tx));
    }
}
