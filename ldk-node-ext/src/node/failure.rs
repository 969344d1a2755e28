//! Why a node stopped by itself, and the one reason for which it does not start again.
//!
//! A peer can prove that our state of a channel is an old one: that a newer one existed, by a secret which only we
//! could have given away. Then the data directory was put back from a copy, and everything done with it may be
//! punished. The node stops, notes it in the store, and does not start with that store again; the copy that is put in
//! its place has no such note.

use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard};

use bitcoin::secp256k1::PublicKey;
use lightning::ln::types::ChannelId;
use tokio::sync::watch;

use crate::error::Error;
use crate::store::{records, Store};
use crate::util::{read, write};

const NAMESPACE: &str = "node";
const KEY: &str = "old_state";
const VERSION: u32 = 1;

/// The first thing that went wrong for good, and the order to stop.
#[derive(Debug)]
pub(crate) struct Failure {
    reason: OnceLock<String>,
    proving: RwLock<()>,
    stop: watch::Sender<bool>,
    store: Arc<Store>,
}

impl Failure {
    pub(crate) fn new(stop: watch::Sender<bool>, store: Arc<Store>) -> Self {
        Self { reason: OnceLock::new(), proving: RwLock::new(()), stop, store }
    }

    /// To be held while a peer may be proving that our state is an old one. LDK's locks are of no use to any other
    /// task from that moment on, and what then fails because of them is not the reason to be told.
    pub(crate) fn proving(&self) -> RwLockReadGuard<'_, ()> {
        read(&self.proving)
    }

    /// Stops the node. The first reason is the one that counts.
    pub(crate) fn stop(&self, reason: String) {
        drop(write(&self.proving));
        self.end(reason);
    }

    fn end(&self, reason: String) {
        tracing::error!(reason, "the node stops");
        let _ = self.reason.set(reason);
        self.stop.send_replace(true);
    }

    /// A peer has proved that this channel's state is an old one: stops the node for good. The caller holds
    /// [`Self::proving`].
    pub(crate) fn old_state(&self, peer: PublicKey, channel: &ChannelId) {
        let proof =
            format!("{peer} has proved that channel {channel} had a newer state than the one stored here");
        if let Err(e) = records::put(&*self.store, NAMESPACE, KEY, VERSION, &proof) {
            tracing::error!(error = %e, "not noted");
        }
        self.end(old(&proof).to_string());
    }

    /// Why the node stopped by itself.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }
}

/// Refuses a store that has been proved to be an old copy.
pub(super) fn check(store: &Store) -> Result<(), Error> {
    match records::get::<String>(store, NAMESPACE, KEY, VERSION)? {
        Some(proof) => Err(old(&proof)),
        None => Ok(()),
    }
}

fn old(proof: &str) -> Error {
    Error::OldState(proof.to_owned())
}
