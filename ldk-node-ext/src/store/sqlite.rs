//! SQLite backend: one file, write-ahead log, full sync (a write that returned survives power loss).

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lightning::io;
use lightning::util::persist::KVStoreSync;
use rusqlite::{params, Connection, OptionalExtension};

use super::wal;
use crate::error::Error;

/// Version of what is in the table, kept in `PRAGMA user_version`. 1: values without checksum.
const SCHEMA_VERSION: i64 = 2;

/// A [`KVStoreSync`] in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Mutex<Connection>,
}

impl SqliteStore {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// [`Error::Store`] if it cannot be opened, is locked by another process, or was written by a
    /// newer version; [`Error::Corrupt`] if it or its log is damaged.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |e: rusqlite::Error| {
            let busy = e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy);
            let hint = if busy { "; another process runs in this data directory" } else { "" };
            Error::Store(format!("{}: {e}{hint}", path.display()))
        };
        wal::check(path)?;
        let connection = Connection::open(path).map_err(fail)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(fail)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(fail)?;
        if version > SCHEMA_VERSION {
            return Err(Error::Store(format!(
                "{}: written by a newer version (schema {version}, this one knows {SCHEMA_VERSION})",
                path.display()
            )));
        }
        connection
            .execute_batch(
                "BEGIN EXCLUSIVE;
                 CREATE TABLE IF NOT EXISTS kv (
                     primary_namespace TEXT NOT NULL,
                     secondary_namespace TEXT NOT NULL,
                     key TEXT NOT NULL,
                     value BLOB NOT NULL,
                     PRIMARY KEY (primary_namespace, secondary_namespace, key)
                 ) WITHOUT ROWID;
                 COMMIT;",
            )
            .map_err(fail)?;
        // The log begins anew with every start, so that what is in it is of this run: `wal` counts on that.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(fail)?;
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)).map_err(fail)?;
        if found != "ok" {
            return Err(Error::Corrupt { key: path.display().to_string(), reason: found });
        }
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// The names of all keys.
    pub(super) fn names(&self) -> Result<Vec<(String, String, String)>, Error> {
        let connection = self.lock();
        let names = || {
            let mut statement =
                connection.prepare("SELECT primary_namespace, secondary_namespace, key FROM kv")?;
            let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
            rows.collect::<Result<Vec<_>, rusqlite::Error>>()
        };
        names().map_err(|e| Error::Store(e.to_string()))
    }

    /// Whether its values have checksums.
    pub(super) fn is_sealed(&self) -> Result<bool, Error> {
        let version = self.lock().query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0));
        version.map(|v| v == SCHEMA_VERSION).map_err(|e| Error::Store(e.to_string()))
    }

    /// From now on they have.
    pub(super) fn set_sealed(&self) -> Result<(), Error> {
        let set = self.lock().pragma_update(None, "user_version", SCHEMA_VERSION);
        set.map_err(|e| Error::Store(e.to_string()))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes several keys in one transaction: all of them or none.
    ///
    /// # Errors
    /// The database's error; nothing was written then.
    pub fn write_all(&self, entries: &[(&str, &str, &str, &[u8])]) -> Result<(), io::Error> {
        let mut connection = self.lock();
        let tx = connection.transaction().map_err(io_error)?;
        for (primary, secondary, key, value) in entries {
            tx.execute(
                "INSERT INTO kv VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET value = excluded.value",
                params![primary, secondary, key, value],
            )
            .map_err(io_error)?;
        }
        tx.commit().map_err(io_error)
    }
}

fn io_error(e: rusqlite::Error) -> io::Error {
    io::Error::new(io::ErrorKind::Other, e.to_string())
}

impl KVStoreSync for SqliteStore {
    fn read(&self, primary: &str, secondary: &str, key: &str) -> Result<Vec<u8>, io::Error> {
        self.lock()
            .prepare_cached(
                "SELECT value FROM kv WHERE primary_namespace = ?1 AND secondary_namespace = ?2 AND key = ?3",
            )
            .and_then(|mut s| s.query_row(params![primary, secondary, key], |r| r.get(0)).optional())
            .map_err(io_error)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{primary}/{secondary}/{key}")))
    }

    fn write(&self, primary: &str, secondary: &str, key: &str, buf: Vec<u8>) -> Result<(), io::Error> {
        self.write_all(&[(primary, secondary, key, &buf)])
    }

    fn remove(&self, primary: &str, secondary: &str, key: &str, _lazy: bool) -> Result<(), io::Error> {
        self.lock()
            .execute(
                "DELETE FROM kv WHERE primary_namespace = ?1 AND secondary_namespace = ?2 AND key = ?3",
                params![primary, secondary, key],
            )
            .map(|_| ())
            .map_err(io_error)
    }

    fn list(&self, primary: &str, secondary: &str) -> Result<Vec<String>, io::Error> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached(
                "SELECT key FROM kv WHERE primary_namespace = ?1 AND secondary_namespace = ?2 ORDER BY key",
            )
            .map_err(io_error)?;
        let keys = statement
            .query_map(params![primary, secondary], |r| r.get(0))
            .and_then(|rows| rows.collect::<Result<Vec<String>, _>>())
            .map_err(io_error)?;
        Ok(keys)
    }
}
