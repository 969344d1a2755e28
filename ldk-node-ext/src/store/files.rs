//! Filesystem backend: lightning-persister's store, a file a key, and a journal of our own for what has
//! to change together.
//!
//! lightning-persister writes a key to a temporary file, syncs it, renames it and syncs the directory.
//! Three things it leaves to us: several keys at once, names of new directories (it does not sync those
//! above), and modes.
//!
//! The journal, `node.journal` next to the store's directory, is first written whole under another name
//! and renamed: one that is there under its name is complete, and its keys are written (again) before
//! anything else is read or written. A torn one never got its name and is dropped: nothing that it
//! announced was begun.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitcoin::hashes::{sha256, Hash};
use lightning::io;
use lightning::util::persist::KVStoreSync;
use lightning_persister::fs_store::v2::FilesystemStoreV2;
use serde::{Deserialize, Serialize};

use super::backend::{at, parent, private_dir, private_file, sync_dir};
use crate::error::Error;

/// How lightning-persister names the directory of an empty namespace.
const EMPTY_NAMESPACE: &str = "[empty]";
/// First word of a journal.
const JOURNAL_VERSION: &str = "journal-1";

/// A [`KVStoreSync`] in a directory.
pub struct FileStore {
    files: Mutex<Files>,
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").finish_non_exhaustive()
    }
}

struct Files {
    inner: FilesystemStoreV2,
    root: PathBuf,
    journal: PathBuf,
    /// Namespaces whose directories are on disk.
    synced: HashSet<PathBuf>,
    /// There may be a journal.
    unfinished: bool,
}

/// One key of a journal.
#[derive(Serialize, Deserialize)]
pub(crate) struct Entry<'a> {
    pub(crate) primary: &'a str,
    pub(crate) secondary: &'a str,
    pub(crate) key: &'a str,
    #[serde(with = "hex")]
    pub(crate) value: Vec<u8>,
}

impl FileStore {
    /// Opens or makes the directory, and ends what a process that died had begun. The caller sees to it
    /// that no other process does so.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged journal, [`Error::Store`] if the directory is not one of this
    /// kind, [`Error::Io`].
    pub fn open(root: &Path) -> Result<Self, Error> {
        let (journal, parent) = (root.with_extension("journal"), parent(root));
        private_dir(root).and_then(|()| sync_dir(parent)).map_err(at(root))?;
        fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(at(root))?;
        remove_temporaries(root, 2).map_err(at(root))?;
        let inner = FilesystemStoreV2::new(root.to_owned())
            .map_err(|e| Error::Store(format!("{}: {e}", root.display())))?;
        remove_if_there(&new_name(&journal)).map_err(at(&journal))?;
        let files = Files {
            inner,
            root: root.to_owned(),
            journal: journal.clone(),
            synced: HashSet::new(),
            unfinished: true,
        };
        let store = Self { files: Mutex::new(files) };
        let finished = store.finished().map(drop);
        finished.map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => {
                Error::Corrupt { key: journal.display().to_string(), reason: e.to_string() }
            }
            _ => Error::Store(format!("{}: {e}", journal.display())),
        })?;
        Ok(store)
    }

    /// The files, with nothing half done.
    fn finished(&self) -> Result<MutexGuard<'_, Files>, io::Error> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.unfinished {
            files.finish()?;
        }
        Ok(files)
    }

    /// The file of a key.
    pub(super) fn path_of(&self, primary: &str, secondary: &str, key: &str) -> PathBuf {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.dir(primary, secondary).join(key)
    }

    /// The names of all keys.
    pub(super) fn names(&self) -> Result<Vec<(String, String, String)>, Error> {
        let root = self.files.lock().unwrap_or_else(PoisonError::into_inner).root.clone();
        let mut names = Vec::new();
        for primary in entries(&root)? {
            for secondary in entries(&root.join(&primary))? {
                for key in entries(&root.join(&primary).join(&secondary))? {
                    let name =
                        |dir: &str| if dir == EMPTY_NAMESPACE { String::new() } else { dir.to_owned() };
                    names.push((name(&primary), name(&secondary), key));
                }
            }
        }
        Ok(names)
    }

    fn seal_file(&self) -> PathBuf {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.root.with_extension("sealed")
    }

    /// Whether its values have checksums: said by a file next to the directory.
    pub(super) fn is_sealed(&self) -> Result<bool, Error> {
        let path = self.seal_file();
        path.try_exists().map_err(at(&path))
    }

    /// From now on they have.
    pub(super) fn set_sealed(&self) -> Result<(), Error> {
        let path = self.seal_file();
        private_file(&path).and_then(|_| sync_dir(parent(&path))).map_err(at(&path))
    }

    /// Writes several keys: all of them or none.
    ///
    /// # Errors
    /// The file system's error. Without a journal nothing was written then; with one it is ended before
    /// anything else is read or written, in this process or the next.
    pub fn write_all(&self, entries: &[(&str, &str, &str, &[u8])]) -> Result<(), io::Error> {
        let mut files = self.finished()?;
        if let [(primary, secondary, key, value)] = entries {
            return files.put(primary, secondary, key, value.to_vec());
        }
        files.begin(entries)?;
        files.finish()
    }
}

impl Files {
    /// Puts a journal in place.
    fn begin(&mut self, entries: &[(&str, &str, &str, &[u8])]) -> Result<(), io::Error> {
        let bytes = encode(entries)?;
        let new = new_name(&self.journal);
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &self.journal));
        if let Err(e) = written {
            // The first error counts; the next open tries again.
            let _ = remove_if_there(&new);
            return Err(e.into());
        }
        self.unfinished = true;
        Ok(())
    }

    /// Writes the keys of the journal, if there is one, and removes it. Its name is on disk before the
    /// first key, and gone from there before anything else may be written: it would undo that.
    fn finish(&mut self) -> Result<(), io::Error> {
        let dir = parent(&self.journal).to_owned();
        sync_dir(&dir)?;
        match fs::read(&self.journal) {
            Ok(bytes) => {
                for Entry { primary, secondary, key, value } in decode(&bytes)? {
                    self.put(primary, secondary, key, value)?;
                }
                fs::remove_file(&self.journal)?;
                sync_dir(&dir)?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
        self.unfinished = false;
        Ok(())
    }

    fn put(&mut self, primary: &str, secondary: &str, key: &str, value: Vec<u8>) -> Result<(), io::Error> {
        let dir = self.namespace(primary, secondary)?;
        self.inner.write(primary, secondary, key, value)?;
        fs::set_permissions(dir.join(key), Permissions::from_mode(0o600))?;
        Ok(())
    }

    fn dir(&self, primary: &str, secondary: &str) -> PathBuf {
        let name = |namespace| match namespace {
            "" => EMPTY_NAMESPACE,
            other => other,
        };
        self.root.join(name(primary)).join(name(secondary))
    }

    /// The directory of a namespace, on disk by name: a key in it is safe only then.
    fn namespace(&mut self, primary: &str, secondary: &str) -> Result<PathBuf, io::Error> {
        let dir = self.dir(primary, secondary);
        if !self.synced.contains(&dir) {
            private_dir(&dir)?;
            // It may have been there, left by a process that died before it synced.
            sync_dir(parent(&dir))?;
            sync_dir(&self.root)?;
            self.synced.insert(dir.clone());
        }
        Ok(dir)
    }
}

impl KVStoreSync for FileStore {
    fn read(&self, primary: &str, secondary: &str, key: &str) -> Result<Vec<u8>, io::Error> {
        self.finished()?.inner.read(primary, secondary, key)
    }

    fn write(&self, primary: &str, secondary: &str, key: &str, buf: Vec<u8>) -> Result<(), io::Error> {
        self.finished()?.put(primary, secondary, key, buf)
    }

    fn remove(&self, primary: &str, secondary: &str, key: &str, lazy: bool) -> Result<(), io::Error> {
        self.finished()?.inner.remove(primary, secondary, key, lazy)
    }

    fn list(&self, primary: &str, secondary: &str) -> Result<Vec<String>, io::Error> {
        let mut keys = self.finished()?.inner.list(primary, secondary)?;
        keys.sort();
        Ok(keys)
    }
}

/// A journal: version and checksum in the first line, the keys as JSON in the second.
pub(crate) fn encode(entries: &[(&str, &str, &str, &[u8])]) -> Result<Vec<u8>, io::Error> {
    let entries: Vec<Entry<'_>> = entries
        .iter()
        .map(|(primary, secondary, key, value)| Entry { primary, secondary, key, value: value.to_vec() })
        .collect();
    let body = serde_json::to_vec(&entries).map_err(|e| invalid(&e.to_string()))?;
    let mut bytes = format!("{JOURNAL_VERSION} {}\n", sha256::Hash::hash(&body)).into_bytes();
    bytes.extend(body);
    Ok(bytes)
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Entry<'_>>, io::Error> {
    let mut lines = bytes.splitn(2, |b| *b == b'\n');
    let (head, body) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let wanted = format!("{JOURNAL_VERSION} {}", sha256::Hash::hash(body));
    if head != wanted.as_bytes() {
        return Err(invalid("not a journal of this version, or damaged"));
    }
    serde_json::from_slice(body).map_err(|e| invalid(&e.to_string()))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// The name under which a journal is written.
fn new_name(journal: &Path) -> PathBuf {
    journal.with_extension("journal.new")
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The names in a directory.
fn entries(dir: &Path) -> Result<Vec<String>, Error> {
    let read = || fs::read_dir(dir)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect();
    let names: std::io::Result<Vec<String>> = read();
    names.map_err(at(dir))
}

/// Removes the temporary files of writes that a dying process did not end.
fn remove_temporaries(dir: &Path, levels: usize) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if levels > 0 {
                remove_temporaries(&entry.path(), levels - 1)?;
            }
        } else if entry.path().extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [(&str, &str, &str, &[u8]); 3] =
        [("trees", "", "1", b"old tree"), ("states", "", "1", b"old state"), ("", "", "m", b"old")];
    const NEW: [(&str, &str, &str, &[u8]); 3] =
        [("trees", "", "1", b"new tree"), ("states", "", "1", b"new state"), ("", "", "m", b"")];

    fn holds(store: &FileStore, entries: &[(&str, &str, &str, &[u8])]) -> bool {
        entries.iter().all(|(p, s, k, v)| store.read(p, s, k).unwrap() == *v)
    }

    fn old() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("node.files");
        FileStore::open(&root).unwrap().write_all(&OLD).unwrap();
        let journal = dir.path().join("node.journal");
        assert!(!journal.exists());
        (dir, root, journal)
    }

    #[test]
    fn a_journal_torn_at_any_byte_is_dropped() {
        let (_dir, root, journal) = old();
        let bytes = encode(&NEW).unwrap();
        let new = new_name(&journal);
        for end in 0..=bytes.len() {
            fs::write(&new, &bytes[..end]).unwrap();
            let store = FileStore::open(&root).unwrap();
            assert!(holds(&store, &OLD), "torn at byte {end}");
            assert!(!new.exists() && !journal.exists());
        }
    }

    #[test]
    fn a_complete_journal_is_ended_however_far_it_got() {
        for written in 0..=NEW.len() {
            let (_dir, root, journal) = old();
            let store = FileStore::open(&root).unwrap();
            for (primary, secondary, key, value) in &NEW[..written] {
                store.write(primary, secondary, key, value.to_vec()).unwrap();
            }
            drop(store);
            fs::write(&journal, encode(&NEW).unwrap()).unwrap();
            let store = FileStore::open(&root).unwrap();
            assert!(holds(&store, &NEW), "died after {written} keys");
            // What comes after is not undone by it.
            assert!(!journal.exists());
            store.write("states", "", "1", b"newest".to_vec()).unwrap();
            drop(store);
            assert_eq!(FileStore::open(&root).unwrap().read("states", "", "1").unwrap(), b"newest");
        }
    }

    #[test]
    fn a_damaged_journal_is_refused_by_name() {
        let (_dir, root, journal) = old();
        let bytes = encode(&NEW).unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..bytes.len()).map(|end| bytes[..end].to_vec()).collect();
        damaged.extend((0..bytes.len()).map(|at| {
            let mut copy = bytes.clone();
            copy[at] ^= 1;
            copy
        }));
        for copy in damaged {
            fs::write(&journal, &copy).unwrap();
            let e = FileStore::open(&root).unwrap_err();
            assert!(matches!(&e, Error::Corrupt { key, .. } if key.ends_with("node.journal")), "{e}");
        }
        fs::remove_file(&journal).unwrap();
        assert!(holds(&FileStore::open(&root).unwrap(), &OLD), "nothing of it was written");
    }

    /// The disk refuses one of the keys: nobody sees the half, and all is there once it accepts.
    #[test]
    fn a_half_is_never_seen() {
        let (_dir, root, journal) = old();
        let store = FileStore::open(&root).unwrap();
        let blocked = root.join("states").join(EMPTY_NAMESPACE).join("1");
        fs::remove_file(&blocked).unwrap();
        fs::create_dir(&blocked).unwrap();
        assert!(store.write_all(&NEW).is_err());
        assert!(store.read("trees", "", "1").is_err() && store.list("trees", "").is_err());
        assert!(store.write("other", "", "k", vec![]).is_err());
        assert!(FileStore::open(&root).is_err(), "nor does the next process see it");
        assert!(journal.exists());
        fs::remove_dir(&blocked).unwrap();
        assert!(holds(&store, &NEW) && !journal.exists());
    }

    #[test]
    fn nothing_is_begun_without_a_journal() {
        let (dir, root, journal) = old();
        let store = FileStore::open(&root).unwrap();
        fs::create_dir(new_name(&journal)).unwrap();
        assert!(store.write_all(&NEW).is_err());
        assert!(holds(&store, &OLD));
        fs::remove_dir(new_name(&journal)).unwrap();
        store.write_all(&NEW).unwrap();
        assert!(holds(&store, &NEW));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the store's directory alone");
    }

    #[test]
    fn what_a_dead_process_was_writing_is_removed() {
        let (_dir, root, _journal) = old();
        let torn = root.join("states").join(EMPTY_NAMESPACE).join("1.0.tmp");
        fs::write(&torn, b"half a st").unwrap();
        let store = FileStore::open(&root).unwrap();
        assert!(!torn.exists());
        assert_eq!(store.list("states", "").unwrap(), ["1"]);
        assert!(holds(&store, &OLD));
    }
}
