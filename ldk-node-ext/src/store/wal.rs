//! Whether SQLite would silently drop committed transactions from its write-ahead log.
//!
//! At the start SQLite carries on with the frames of the log up to the first one whose checksum is wrong: after a power
//! cut that is the transaction that was being written. If a frame is damaged that was synced long before, everything
//! behind it is dropped in the same way, without a word, and a channel is back at an old state. The two can be told
//! apart. A transaction is begun only when the one before is on disk, so behind the first wrong frame there can be
//! what is left of one transaction, and its last frame is the only one that commits. A frame that goes on, by its
//! checksum, from one that commits was written after that commit was synced: then something is lost, and the log is
//! refused. Damage to the very last transaction looks like a power cut.
//!
//! The format: <https://www.sqlite.org/fileformat2.html#walformat>.

use std::path::{Path, PathBuf};

use super::backend::at;
use crate::error::Error;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// First word of a log whose checksums read words in big-endian order; one less: little-endian.
const MAGIC_BIG: u32 = 0x377f_0683;
/// SQLite's default, bytes.
const PAGE: usize = 4096;

/// Refuses a log that has lost something. One that is not there is fine.
///
/// # Errors
/// [`Error::Corrupt`] naming the log, [`Error::Io`].
pub(super) fn check(database: &Path) -> Result<(), Error> {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    let path = PathBuf::from(name);
    let bytes = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(at(&path))?,
    };
    match damage(&bytes) {
        None => Ok(()),
        Some(offset) => Err(Error::Corrupt {
            key: path.display().to_string(),
            reason: format!("damaged at byte {offset}, and what was written later is still behind it"),
        }),
    }
}

/// Where a log is damaged in front of a transaction that is still there.
pub(crate) fn damage(log: &[u8]) -> Option<usize> {
    let header = log.get(..HEADER)?;
    let big = word(header, 0) == MAGIC_BIG;
    let page = match usize::try_from(word(header, 8)).unwrap_or_default() {
        1 => 65_536,
        size if size.is_power_of_two() && (512..=32_768).contains(&size) => size,
        _ => PAGE,
    };
    let computed = sum(big, (0, 0), &header[..24]);
    let stored = (word(header, 24), word(header, 28));
    let mut broken = (computed != stored || word(header, 0) | 1 != MAGIC_BIG).then_some(0);
    // What a frame may go on from: the checksum as it is stored before it, and as it should be.
    let mut from = [stored, computed];
    // What has other salts was left by an earlier round of the log, and is in the database. Where the header is
    // damaged, the first frame has them.
    let salts = match (broken, log.get(HEADER..HEADER + FRAME_HEADER)) {
        (Some(_), Some(first)) => (word(first, 8), word(first, 12)),
        _ => (word(header, 16), word(header, 20)),
    };
    let mut commits = false;
    for (i, frame) in log[HEADER..].chunks_exact(FRAME_HEADER + page).enumerate() {
        let current = (word(frame, 8), word(frame, 12)) == salts;
        let stored = (word(frame, 16), word(frame, 20));
        let next = from.map(|seed| sum(big, sum(big, seed, &frame[..8]), &frame[FRAME_HEADER..]));
        match broken {
            None if next[0] == stored && current => {}
            None => broken = Some(HEADER + i * (FRAME_HEADER + page)),
            Some(offset) if commits && current && next.contains(&stored) => return Some(offset),
            Some(_) => {}
        }
        commits = word(frame, 4) != 0;
        from = [stored, next[0]];
    }
    None
}

/// The four bytes at an offset, 0 beyond the end.
fn word(bytes: &[u8], offset: usize) -> u32 {
    let four = bytes.get(offset..).and_then(|rest| rest.first_chunk::<4>());
    four.map_or(0, |four| u32::from_be_bytes(*four))
}

/// SQLite's checksum, continued.
fn sum(big: bool, (mut a, mut b): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let read = |offset| {
        let w = word(bytes, offset);
        if big {
            w
        } else {
            w.swap_bytes()
        }
    };
    for offset in (0..bytes.len()).step_by(8) {
        a = a.wrapping_add(read(offset)).wrapping_add(b);
        b = b.wrapping_add(read(offset + 4)).wrapping_add(a);
    }
    (a, b)
}
