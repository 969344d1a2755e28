//! One key-value store for everything: LDK's objects, the wallet, factories, payments, events.
//!
//! The trait is LDK's [`KVStoreSync`]. [`Store`] is one of two backends, chosen once for a data
//! directory ([`StoreKind`]): [`SqliteStore`], the default, or [`FileStore`] on lightning-persister. Our
//! own records are JSON with a version in front (see [`records`]), so that a person can read them and a
//! newer version can migrate them.

mod backend;
pub mod events;
mod files;
pub mod holds;
pub mod payments;
pub mod records;
pub mod requests;
mod room;
mod seal;
mod sqlite;
pub(crate) mod tx;
mod wal;

pub(crate) use backend::private_dir;
pub use backend::{Store, StoreKind};
pub use files::FileStore;
pub(crate) use room::is_no_room;
pub use sqlite::SqliteStore;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use {
    files::{decode as decode_journal, encode as encode_journal},
    seal::{open as open_seal, seal},
    wal::damage as log_damage,
};

use lightning::util::persist::KVStoreSync;

use crate::error::Error;

/// Reads a key, `None` when it is not there.
///
/// # Errors
/// The backend's error other than "not found".
pub fn read_opt(
    store: &impl KVStoreSync,
    primary: &str,
    secondary: &str,
    key: &str,
) -> Result<Option<Vec<u8>>, lightning::io::Error> {
    match store.read(primary, secondary, key) {
        Ok(v) => Ok(Some(v)),
        Err(e) if e.kind() == lightning::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// An error of the store as one of this crate; `what` was to be read or written.
pub(crate) fn error(what: &str, e: &lightning::io::Error) -> Error {
    match e.get_ref() {
        Some(reason) if is_no_room(e) => Error::NoRoom(format!("{what}: {reason}")),
        Some(reason) => Error::Store(format!("{what}: {reason}")),
        None => Error::Store(format!("{what}: {e}")),
    }
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod damage;
