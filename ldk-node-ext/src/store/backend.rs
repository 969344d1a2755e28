//! The node's store: one of two backends in a data directory that is locked for this process.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lightning::io;
use lightning::util::persist::{KVStoreSync, KVSTORE_NAMESPACE_KEY_ALPHABET, KVSTORE_NAMESPACE_KEY_MAX_LEN};
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::room::Room;
use super::{seal, FileStore, SqliteStore};
use crate::error::Error;
use crate::faults;

/// Held as long as the store is open. It is never removed: who removes it could let two in.
const LOCK_FILE: &str = "node.lock";

/// Which backend a node keeps everything in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// One SQLite file, `node.sqlite`.
    #[default]
    Sqlite,
    /// A file a key below `node.files`.
    Filesystem,
}

impl StoreKind {
    const ALL: [Self; 2] = [Self::Sqlite, Self::Filesystem];

    /// How it is written in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Filesystem => "filesystem",
        }
    }

    /// Where it keeps everything, in the data directory.
    const fn path(self) -> &'static str {
        match self {
            Self::Sqlite => "node.sqlite",
            Self::Filesystem => "node.files",
        }
    }
}

impl std::str::FromStr for StoreKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| Error::invalid("store", "must be sqlite or filesystem"))
    }
}

#[derive(Debug)]
enum Backend {
    Sqlite(SqliteStore),
    Files(FileStore),
}

impl Backend {
    fn write_all(&self, entries: &[(&str, &str, &str, &[u8])]) -> Result<(), io::Error> {
        match self {
            Self::Sqlite(store) => store.write_all(entries),
            Self::Files(store) => store.write_all(entries),
        }
    }

    fn read(&self, primary: &str, secondary: &str, key: &str) -> Result<Vec<u8>, io::Error> {
        match self {
            Self::Sqlite(store) => store.read(primary, secondary, key),
            Self::Files(store) => store.read(primary, secondary, key),
        }
    }

    /// All names.
    fn names(&self) -> Result<Vec<(String, String, String)>, Error> {
        match self {
            Self::Sqlite(store) => store.names(),
            Self::Files(store) => store.names(),
        }
    }

    /// Whether its values have checksums.
    fn is_sealed(&self) -> Result<bool, Error> {
        match self {
            Self::Sqlite(store) => store.is_sealed(),
            Self::Files(store) => store.is_sealed(),
        }
    }

    /// From now on they have.
    fn set_sealed(&self) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.set_sealed(),
            Self::Files(store) => store.set_sealed(),
        }
    }
}

/// The store the node uses. Both backends take the same names: LDK's alphabet, at most 120 bytes. Values carry a
/// checksum (see `seal`), and a store of which one is damaged is not opened.
#[derive(Debug)]
pub struct Store {
    backend: Backend,
    path: PathBuf,
    room: Room,
    // After the backend: released when that is closed.
    _lock: File,
}

impl Store {
    /// Opens or makes the store of a data directory with the default backend.
    ///
    /// # Errors
    /// As [`Store::open_as`].
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        Self::open_as(data_dir, StoreKind::default())
    }

    /// Opens or makes the store of a data directory, which is made too if it is not there. What is new
    /// is its owner's alone (modes 600 and 700).
    ///
    /// # Errors
    /// [`Error::Conflict`] if another process runs in this directory, [`Error::InvalidArgument`] if it
    /// holds a store of the other kind, [`Error::Corrupt`] for a damaged one; as the backend's `open`;
    /// [`Error::Io`].
    pub fn open_as(data_dir: &Path, kind: StoreKind) -> Result<Self, Error> {
        private_dir(data_dir).map_err(at(data_dir))?;
        let path = data_dir.join(LOCK_FILE);
        let lock = private_file(&path).map_err(at(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let dir = data_dir.display();
                return Err(Error::Conflict(format!("{dir}: another process runs in this data directory")));
            }
            Err(e) => return Err(at(&path)(e.into())),
        }
        let mut others = StoreKind::ALL.into_iter().filter(|other| *other != kind);
        if let Some(other) = others.find(|other| data_dir.join(other.path()).exists()) {
            let (name, path) = (other.name(), data_dir.join(other.path()));
            return Err(Error::invalid(
                "store",
                format!("must be {name}: this data directory has such a store, {}", path.display()),
            ));
        }
        let path = data_dir.join(kind.path());
        let backend = match kind {
            StoreKind::Sqlite => {
                // SQLite gives its log the mode of the database.
                private_file(&path).and_then(|_| sync_dir(data_dir)).map_err(at(&path))?;
                Backend::Sqlite(SqliteStore::open(&path)?)
            }
            StoreKind::Filesystem => Backend::Files(FileStore::open(&path)?),
        };
        let store = Self { backend, path, room: Room::new(data_dir.to_owned()), _lock: lock };
        store.check_all()?;
        Ok(store)
    }

    /// Checks every value. Those of a store from before there were checksums get theirs.
    fn check_all(&self) -> Result<(), Error> {
        let sealed = self.backend.is_sealed()?;
        for (primary, secondary, key) in self.backend.names()? {
            let name = (primary.as_str(), secondary.as_str(), key.as_str());
            let damaged = |reason: String| Error::Corrupt { key: self.describe(name), reason };
            let bytes = self.backend.read(name.0, name.1, name.2).map_err(|e| damaged(e.to_string()))?;
            if sealed {
                seal::open(name, bytes).ok_or_else(|| damaged("damaged: its checksum is wrong".into()))?;
            } else if seal::open(name, bytes.clone()).is_none() {
                let bytes = seal::seal(name, bytes);
                let written = self.backend.write_all(&[(name.0, name.1, name.2, &bytes)]);
                written.map_err(|e| Error::Store(format!("{}: {e}", self.describe(name))))?;
            }
        }
        if sealed {
            return Ok(());
        }
        self.backend.set_sealed()
    }

    /// Where a value is, for people.
    fn describe(&self, (primary, secondary, key): seal::Name<'_>) -> String {
        match &self.backend {
            Backend::Sqlite(_) => format!("{}: {primary}/{secondary}/{key}", self.path.display()),
            Backend::Files(store) => store.path_of(primary, secondary, key).display().to_string(),
        }
    }

    /// Since when there is no room on the disk, Unix time in seconds.
    pub(crate) fn full_since(&self) -> Option<u64> {
        self.room.full_since()
    }

    /// From when to when the disk was full, Unix time in seconds; told once, when it is over.
    pub(crate) fn take_full(&self) -> Option<(u64, u64)> {
        self.room.take_last()
    }

    /// Whether a data directory has a store, of whichever kind.
    pub(crate) fn exists(data_dir: &Path) -> bool {
        StoreKind::ALL.into_iter().any(|kind| data_dir.join(kind.path()).exists())
    }

    /// Writes several keys: all of them or none, whenever the process dies.
    ///
    /// # Errors
    /// The backend's error. Nothing was written then; or, on the file system, what was begun is ended
    /// before anything else is read or written.
    pub fn write_all(&self, entries: &[(&str, &str, &str, &[u8])]) -> Result<(), io::Error> {
        for (primary, secondary, key, _) in entries {
            check(primary, secondary, Some(key))?;
        }
        let sealed: Vec<Vec<u8>> =
            entries.iter().map(|(p, s, k, value)| seal::seal((p, s, k), value.to_vec())).collect();
        let entries: Vec<(&str, &str, &str, &[u8])> =
            entries.iter().zip(&sealed).map(|((p, s, k, _), value)| (*p, *s, *k, value.as_slice())).collect();
        let bytes = sealed.iter().map(Vec::len).sum();
        self.room.write(bytes, || self.backend.write_all(&entries))
    }
}

impl KVStoreSync for Store {
    fn read(&self, primary: &str, secondary: &str, key: &str) -> Result<Vec<u8>, io::Error> {
        check(primary, secondary, Some(key))?;
        let name = (primary, secondary, key);
        seal::open(name, self.backend.read(primary, secondary, key)?).ok_or_else(|| {
            let reason = format!("{}: damaged: its checksum is wrong", self.describe(name));
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })
    }

    fn write(&self, primary: &str, secondary: &str, key: &str, buf: Vec<u8>) -> Result<(), io::Error> {
        faults::ldk_object(primary, key, "store");
        self.write_all(&[(primary, secondary, key, &buf)])?;
        faults::ldk_object(primary, key, "stored");
        Ok(())
    }

    fn remove(&self, primary: &str, secondary: &str, key: &str, lazy: bool) -> Result<(), io::Error> {
        check(primary, secondary, Some(key))?;
        self.room.write(0, || match &self.backend {
            Backend::Sqlite(store) => store.remove(primary, secondary, key, lazy),
            Backend::Files(store) => store.remove(primary, secondary, key, lazy),
        })
    }

    fn list(&self, primary: &str, secondary: &str) -> Result<Vec<String>, io::Error> {
        check(primary, secondary, None)?;
        match &self.backend {
            Backend::Sqlite(store) => store.list(primary, secondary),
            Backend::Files(store) => store.list(primary, secondary),
        }
    }
}

/// LDK's rules for names: they are paths on the file system, and lightning-persister panics on others
/// where debug assertions are on.
fn check(primary: &str, secondary: &str, key: Option<&str>) -> Result<(), io::Error> {
    let valid = |name: &str| {
        name.len() <= KVSTORE_NAMESPACE_KEY_MAX_LEN
            && name.chars().all(|c| KVSTORE_NAMESPACE_KEY_ALPHABET.contains(c))
    };
    let named = key.is_none_or(|key| valid(key) && !key.is_empty());
    let nested = secondary.is_empty() || !primary.is_empty();
    if named && nested && valid(primary) && valid(secondary) {
        return Ok(());
    }
    let name = format!("{primary:?}/{secondary:?}/{:?}", key.unwrap_or_default());
    let limit =
        format!("must be at most {KVSTORE_NAMESPACE_KEY_MAX_LEN} of A-Z a-z 0-9 _ -, a key not empty");
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: {limit}, and no namespace below none")))
}

/// A file system's error with its path.
pub(super) fn at(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.display().to_string(), source }
}

/// Makes a directory, and those above it, that only its owner can enter; one that exists is left as it is.
pub(crate) fn private_dir(path: &Path) -> std::io::Result<()> {
    let new: Vec<&Path> =
        path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // A file in a directory whose name is not on disk is lost with it, however well the file was synced.
    new.into_iter().try_for_each(|dir| sync_dir(parent(dir)))
}

/// The directory that holds this name.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Puts the names in a directory on disk.
pub(super) fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Opens or makes a file that only its owner can read.
pub(super) fn private_file(path: &Path) -> std::io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn one_process_and_one_kind() {
        for (kind, other) in [StoreKind::ALL, [StoreKind::Filesystem, StoreKind::Sqlite]].map(|[a, b]| (a, b))
        {
            let dir = tempfile::tempdir().unwrap();
            let data_dir = dir.path().join("node");
            assert!(!Store::exists(&data_dir));
            let store = Store::open_as(&data_dir, kind).unwrap();
            assert!(Store::exists(&data_dir));
            for again in StoreKind::ALL {
                let e = Store::open_as(&data_dir, again).unwrap_err();
                assert!(matches!(e, Error::Conflict(_)), "{e}");
                assert!(e.to_string().contains("another process runs"), "{e}");
            }
            drop(store);
            let e = Store::open_as(&data_dir, other).unwrap_err();
            assert_eq!(e.field(), Some("store"));
            assert!(e.to_string().contains(&format!("must be {}", kind.name())), "{e}");
            assert!(!data_dir.join(other.path()).exists(), "the refused kind left something");
            Store::open_as(&data_dir, kind).unwrap();
        }
    }

    #[test]
    fn what_it_makes_is_the_owners_alone() {
        for kind in StoreKind::ALL {
            let dir = tempfile::tempdir().unwrap();
            let data_dir = dir.path().join("node");
            let store = Store::open_as(&data_dir, kind).unwrap();
            store.write("a", "", "k", vec![1]).unwrap();
            store.write_all(&[("b", "c", "k", b"1"), ("", "", "k", b"2")]).unwrap();
            assert_eq!(mode(&data_dir), 0o700);
            let mut left = vec![data_dir];
            while let Some(path) = left.pop() {
                let wanted = if path.is_dir() { 0o700 } else { 0o600 };
                assert_eq!(mode(&path), wanted, "{}", path.display());
                if path.is_dir() {
                    left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                }
            }
        }
    }

    #[test]
    fn kinds_have_names() {
        for kind in StoreKind::ALL {
            assert_eq!(kind.name().parse::<StoreKind>().unwrap(), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        let e = "postgres".parse::<StoreKind>().unwrap_err().to_string();
        assert!(e.contains("sqlite or filesystem"), "{e}");
    }
}
