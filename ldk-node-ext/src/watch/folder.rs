//! The folder through which a node hands its paths to a watcher.
//!
//! ```text
//! FOLDER/paths/<leaf>.json   the newest exit file of a leaf: the node writes it
//! FOLDER/acks/<leaf>.json    what the watcher says to it
//! FOLDER/alive.json          rewritten every two seconds as long as the watcher can work
//! ```
//!
//! A folder needs no port, no token and no protocol of its own: on one machine it is a directory, between two it is
//! whatever the operator trusts to carry files (NFS, sshfs, syncthing). Every file is written under another name, put on
//! the disk and renamed, so a reader sees it whole or not at all. Who may write into the folder may give the watcher
//! paths, complete and signed by everybody, and nothing else; what is in it is no secret key.
//!
//! An acknowledgement has the hash of the file it answers. It is written after the path is in the watcher's own store and
//! the chain has been looked through for it: from then on the folder may vanish.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitcoin::hashes::{sha256, Hash};
use serde::{Deserialize, Serialize};

use super::{LeafId, MAX_EXIT_FILE_BYTES};
use crate::error::Error;
use crate::util::write_for_group;

/// How often a watcher says that it is there.
pub(crate) const BEAT: Duration = Duration::from_secs(2);
/// Most paths that are taken from one folder: 33 factories of 1000 leaves, and some.
pub(super) const MAX_PATHS: usize = 40_000;
/// Longest reason that is written and read, bytes.
const MAX_REASON_BYTES: usize = 500;
/// Largest acknowledgement or sign of life that is read, bytes.
const MAX_SMALL_BYTES: u64 = 4_096;
const VERSION: u16 = 1;

/// What a watcher says to a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ack {
    version: u16,
    /// Hash of the file that it answers, hex.
    sha256: String,
    /// The position that the watcher holds, if it holds one of this leaf.
    pub(crate) position: Option<u64>,
    /// Why it did not take the path; none if it holds it.
    pub(crate) refused: Option<String>,
}

impl Ack {
    pub(crate) fn new(sha256: String, position: Option<u64>, refused: Option<String>) -> Self {
        let refused = refused.map(|text| text.chars().take(MAX_REASON_BYTES / 4).collect());
        Self { version: VERSION, sha256, position, refused }
    }

    /// Whether it answers this file.
    pub(crate) fn answers(&self, sha256: &str) -> bool {
        self.version == VERSION && self.sha256 == sha256
    }
}

/// A watcher's sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Alive {
    version: u16,
    /// Different from one to the next.
    pub(crate) beat: u64,
    /// The height up to which it has looked, blocks.
    pub(crate) height: u32,
    /// What its fee wallet lacks, sat.
    pub(crate) missing_sat: u64,
}

impl Alive {
    pub(crate) fn new(beat: u64, height: u32, missing_sat: u64) -> Self {
        Self { version: VERSION, beat, height, missing_sat }
    }
}

/// How a file was when it was read; a file that is renamed into its place is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    bytes: u64,
    time: (i64, i64),
}

/// The hash of a file, as an acknowledgement has it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex::encode(sha256::Hash::hash(bytes).to_byte_array())
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes the folder, if it is not there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let folder = Self(path.to_owned());
        for dir in [folder.0.join("paths"), folder.0.join("acks")] {
            fs::create_dir_all(&dir).map_err(|source| io(&dir, source))?;
        }
        Ok(folder)
    }

    fn path_file(&self, leaf: &LeafId) -> PathBuf {
        self.0.join("paths").join(format!("{leaf}.json"))
    }

    fn ack_file(&self, leaf: &LeafId) -> PathBuf {
        self.0.join("acks").join(format!("{leaf}.json"))
    }

    fn alive_file(&self) -> PathBuf {
        self.0.join("alive.json")
    }

    /// Writes a path; the one that is there is replaced.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write_path(&self, leaf: &LeafId, text: &str) -> Result<(), Error> {
        let path = self.path_file(leaf);
        write_for_group(&path, text).map_err(|source| io(&path, source))
    }

    /// Reads a path.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidArgument`] if it is too large.
    pub(super) fn read_path(&self, leaf: &LeafId) -> Result<Option<Vec<u8>>, Error> {
        read_limited(&self.path_file(leaf), MAX_EXIT_FILE_BYTES)
    }

    /// Removes the path of a leaf that has ended; its acknowledgement stays.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn remove_path(&self, leaf: &LeafId) -> Result<(), Error> {
        let path = self.path_file(leaf);
        fs::remove_file(&path).map_err(|source| io(&path, source))
    }

    /// The paths that are there, at most [`MAX_PATHS`]. What has another name is none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn paths(&self) -> Result<BTreeMap<LeafId, Stamp>, Error> {
        let dir = self.0.join("paths");
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(|source| io(&dir, source))?.take(2 * MAX_PATHS) {
            let entry = entry.map_err(|source| io(&dir, source))?;
            let name = entry.file_name();
            let leaf = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<LeafId>().ok());
            // It may have been replaced in between; then the next look finds it.
            let (Some(leaf), Ok(data)) = (leaf, entry.metadata()) else { continue };
            if data.is_file() && found.len() < MAX_PATHS {
                let time = (data.mtime(), data.mtime_nsec());
                found.insert(leaf, Stamp { inode: data.ino(), bytes: data.len(), time });
            }
        }
        Ok(found)
    }

    /// Writes an acknowledgement.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn write_ack(&self, leaf: &LeafId, ack: &Ack) -> Result<(), Error> {
        write(&self.ack_file(leaf), ack)
    }

    /// Reads what the watcher says to a leaf's path; what cannot be read says nothing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn read_ack(&self, leaf: &LeafId) -> Result<Option<Ack>, Error> {
        let bytes = read_limited(&self.ack_file(leaf), MAX_SMALL_BYTES)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Writes a sign of life.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn write_alive(&self, alive: &Alive) -> Result<(), Error> {
        write(&self.alive_file(), alive)
    }

    /// The watcher's last sign of life.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn read_alive(&self) -> Result<Option<Alive>, Error> {
        let bytes = read_limited(&self.alive_file(), MAX_SMALL_BYTES)?;
        let alive: Option<Alive> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(alive.filter(|alive| alive.version == VERSION))
    }
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string(value).map_err(|e| io(path, e.into()))?;
    write_for_group(path, &text).map_err(|source| io(path, source))
}

/// Reads a file that may not be there.
fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| io(path, source))?,
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|source| io(path, source))?;
    if u64::try_from(bytes.len()).map_or(true, |n| n > limit) {
        return Err(Error::invalid("exit_file", format!("{}: larger than {limit} bytes", path.display())));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_no_path_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let leaf: LeafId = "ab".repeat(32).parse().unwrap();
        assert!("AB".repeat(32).parse::<LeafId>().is_err() && "ab".parse::<LeafId>().is_err());
        assert_eq!(folder.read_path(&leaf).unwrap(), None);
        folder.write_path(&leaf, "one").unwrap();
        for other in ["x.json", "ab.json", "README"] {
            std::fs::write(dir.path().join("paths").join(other), "?").unwrap();
        }
        let first = folder.paths().unwrap();
        assert_eq!(first.keys().collect::<Vec<_>>(), [&leaf]);
        // The same length, within the clock's resolution.
        folder.write_path(&leaf, "two").unwrap();
        assert_ne!(folder.paths().unwrap(), first, "a file that was replaced is another one");
        assert_eq!(folder.read_path(&leaf).unwrap().unwrap(), b"two");

        let ack = Ack::new(digest(b"two"), Some(3), Some("x".repeat(1_000)));
        folder.write_ack(&leaf, &ack).unwrap();
        let read = folder.read_ack(&leaf).unwrap().unwrap();
        assert!(read == ack && read.answers(&digest(b"two")) && !read.answers(&digest(b"one")));
        std::fs::write(dir.path().join("acks").join(format!("{leaf}.json")), "torn").unwrap();
        assert_eq!(folder.read_ack(&leaf).unwrap(), None);
        std::fs::write(dir.path().join("alive.json"), vec![b' '; 5_000]).unwrap();
        assert!(folder.read_alive().unwrap_err().to_string().contains("larger than 4096"));
        folder.write_alive(&Alive::new(1, 2, 3)).unwrap();
        assert_eq!(folder.read_alive().unwrap().unwrap().height, 2);
    }
}
