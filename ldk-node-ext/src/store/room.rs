//! A disk without room: noticed, told, and over when something can be written again.
//!
//! The file system's own word for it is lost on its way through LDK's error type, so the room is measured when a write
//! has failed.

use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;

use lightning::io;

use crate::util::{lock, unix_now};

/// What has to be free beyond what is to be written, bytes: directories, SQLite's log.
const MARGIN: u64 = 128 * 1024;

/// The reason of an [`io::Error`]: there was no room.
pub(crate) struct NoRoom(PathBuf);

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no space left on the device of {}", self.0.display())
    }
}

// LDK shows the reason of an error by this.
impl fmt::Debug for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for NoRoom {}

/// Whether this error says that there was no room.
pub(crate) fn is_no_room(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|reason| reason.is::<NoRoom>())
}

/// The room in a data directory.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    full: Mutex<Full>,
}

/// When there was none; Unix time in seconds.
#[derive(Debug, Default)]
struct Full {
    since: Option<u64>,
    /// From when to when, last time; until it is taken.
    last: Option<(u64, u64)>,
}

impl Room {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, full: Mutex::default() }
    }

    /// Since when there is no room, Unix time in seconds.
    pub(super) fn full_since(&self) -> Option<u64> {
        lock(&self.full).since
    }

    /// From when to when there was none, Unix time in seconds; told once.
    pub(super) fn take_last(&self) -> Option<(u64, u64)> {
        lock(&self.full).last.take()
    }

    /// Writes `bytes` bytes, and looks at what became of it.
    pub(super) fn write(
        &self,
        bytes: usize,
        write: impl FnOnce() -> Result<(), io::Error>,
    ) -> Result<(), io::Error> {
        if factory_core::faults::switch("store.full") {
            return Err(self.note());
        }
        match write() {
            Ok(()) => {
                let mut full = lock(&self.full);
                if let Some(since) = full.since.take() {
                    let now = unix_now();
                    tracing::info!(secs = now.saturating_sub(since), "there is room on the disk again");
                    full.last = Some((since, now));
                }
                Ok(())
            }
            Err(_) if self.is_full(bytes) => Err(self.note()),
            Err(e) => Err(e),
        }
    }

    fn is_full(&self, bytes: usize) -> bool {
        let needed = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(MARGIN);
        let stat = rustix::fs::statvfs(&self.dir);
        stat.is_ok_and(|s| {
            s.f_bavail.saturating_mul(s.f_frsize) < needed || (s.f_files > 0 && s.f_favail == 0)
        })
    }

    fn note(&self) -> io::Error {
        let mut full = lock(&self.full);
        if full.since.is_none() {
            full.since = Some(unix_now());
            tracing::error!(dir = %self.dir.display(), "no space left on the device: nothing goes on until there is");
        }
        io::Error::new(io::ErrorKind::Other, NoRoom(self.dir.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_means_a_full_disk_only_where_there_is_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path().to_owned());
        let fail = || Err(io::Error::new(io::ErrorKind::Other, "worn out"));
        let e = room.write(0, fail).unwrap_err();
        assert!(!is_no_room(&e) && room.full_since().is_none(), "{e}");
        let e = room.write(usize::MAX, fail).unwrap_err();
        assert!(is_no_room(&e) && e.to_string().contains("no space left"), "{e}");
        let since = room.full_since().unwrap();
        assert!(room.take_last().is_none(), "it is not over");
        room.write(0, || Ok(())).unwrap();
        assert!(room.full_since().is_none());
        assert!(matches!(room.take_last(), Some((from, to)) if from == since && to >= from));
        assert!(room.take_last().is_none());
    }
}
