//! Events with a growing index, kept until [`KEEP`] newer ones exist. A reader resumes with the last
//! index it has seen, so none is lost between two reads.

use std::sync::{Arc, Mutex, PoisonError};

use lightning::util::persist::KVStoreSync;
use tokio::sync::watch;

use super::{records, Store};
use crate::api::EventRecord;
use crate::error::Error;
use crate::util::unix_now;

const NAMESPACE: &str = "events";
const VERSION: u32 = 1;
/// How many events are kept.
pub const KEEP: u64 = 10_000;
/// How many one read returns at most.
pub const MAX_PAGE: usize = 1_000;

/// The event log.
#[derive(Debug)]
pub struct Events {
    store: Arc<Store>,
    next: Mutex<u64>,
    newest: watch::Sender<u64>,
}

fn key(index: u64) -> String {
    format!("{index:020}")
}

impl Events {
    /// Opens the log.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn open(store: Arc<Store>) -> Result<Self, Error> {
        let keys = store.list(NAMESPACE, "").map_err(|e| Error::Store(format!("{NAMESPACE}: {e}")))?;
        let last = keys.last().and_then(|k| k.parse::<u64>().ok()).unwrap_or(0);
        let (newest, _) = watch::channel(last);
        Ok(Self { store, next: Mutex::new(last.saturating_add(1)), newest })
    }

    /// Appends one; logs and goes on if the disk refuses, since events only inform.
    pub fn push(&self, kind: &str, data: serde_json::Value) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let index = *next;
        let record = EventRecord { index, time: unix_now(), kind: kind.to_owned(), data };
        tracing::info!(kind, data = %record.data, "event");
        if let Err(e) = records::put(&*self.store, NAMESPACE, &key(index), VERSION, &record) {
            tracing::error!(error = %e, "event not stored");
            return;
        }
        if index > KEEP {
            let _ = self.store.remove(NAMESPACE, "", &key(index - KEEP), true);
        }
        *next = index.saturating_add(1);
        self.newest.send_replace(index);
    }

    /// Events with an index above `after`, at most `limit` and at most [`MAX_PAGE`].
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn after(&self, after: u64, limit: usize) -> Result<Vec<EventRecord>, Error> {
        let newest = *self.newest.borrow();
        let first = after.saturating_add(1).max(newest.saturating_sub(KEEP));
        let mut out = Vec::new();
        for index in first..=newest {
            if out.len() >= limit.min(MAX_PAGE) {
                break;
            }
            out.extend(records::get::<EventRecord>(&*self.store, NAMESPACE, &key(index), VERSION)?);
        }
        Ok(out)
    }

    /// Changes whenever there is a newer event.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_grow_over_restarts_and_readers_resume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let events = Events::open(Arc::new(Store::open(&path).unwrap())).unwrap();
        events.push("a", serde_json::json!({"x": 1}));
        events.push("b", serde_json::json!({}));
        drop(events);
        let events = Events::open(Arc::new(Store::open(&path).unwrap())).unwrap();
        events.push("c", serde_json::json!({}));
        let seen: Vec<_> = events.after(1, 10).unwrap().into_iter().map(|e| (e.index, e.kind)).collect();
        assert_eq!(seen, [(2, "b".into()), (3, "c".into())]);
        assert_eq!(events.after(0, 2).unwrap().len(), 2);
        assert!(events.after(3, 10).unwrap().is_empty());
    }
}
