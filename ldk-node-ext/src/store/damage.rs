//! Stores whose files were damaged, torn or cut off: opened as what was written up to some moment, or refused by name.

use std::fs;
use std::path::{Path, PathBuf};

use lightning::util::persist::KVStoreSync;

use super::{seal, Store, StoreKind};
use crate::error::Error;

const WRITES: u8 = 12;

/// Write number `n`: two keys of one set, and one that grows over several pages now and then.
fn write(store: &Store, n: u8) {
    let big = vec![n; if n % 4 == 3 { 9_000 } else { 20 }];
    store.write_all(&[("a", "", "one", &[n]), ("b", "c", "two", &[n]), ("b", "", "big", &big)]).unwrap();
}

/// After how many writes the store is as it is. Fails if it never was like that.
fn state(store: &Store) -> u8 {
    let one = store.read("a", "", "one").ok();
    let n = one.as_ref().map_or(0, |bytes| bytes[0]);
    let two = store.read("b", "c", "two").ok();
    assert_eq!(one, two, "half of a set");
    let big = store.read("b", "", "big").ok();
    assert_eq!(big.as_ref().map(|b| b[0]), one.map(|b| b[0]), "half of a set");
    assert!(big.is_none_or(|b| b.len() == if n % 4 == 3 { 9_000 } else { 20 }));
    n
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A copy of a store as it was after some writes, while its process was running.
fn image(kind: StoreKind, writes: u8) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (live, image) = (dir.path().join("live"), dir.path().join("image"));
    let store = Store::open_as(&live, kind).unwrap();
    for n in 1..=writes {
        write(&store, n);
    }
    copy(&live, &image);
    (dir, image)
}

/// Opens a copy of an image in which one file has other bytes.
fn open_with(image: &Path, kind: StoreKind, file: &Path, bytes: &[u8]) -> Result<u8, Error> {
    let dir = tempfile::tempdir().unwrap();
    copy(image, dir.path());
    fs::write(dir.path().join(file), bytes).unwrap();
    Store::open_as(dir.path(), kind).map(|store| state(&store))
}

fn refused(result: Result<u8, Error>, name: &str) {
    match result {
        Err(e) => assert!(e.to_string().contains(name), "{e}"),
        Ok(n) => panic!("{name}: opened as after write {n}"),
    }
}

/// After every write the files are what a power cut would leave, and what was acknowledged is there.
#[test]
fn what_was_acknowledged_is_there_after_every_write() {
    for kind in [StoreKind::Sqlite, StoreKind::Filesystem] {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        let store = Store::open_as(&live, kind).unwrap();
        for n in 1..=WRITES {
            write(&store, n);
            let image = dir.path().join(n.to_string());
            copy(&live, &image);
            assert_eq!(state(&Store::open_as(&image, kind).unwrap()), n);
        }
    }
}

#[test]
fn a_log_cut_off_anywhere_is_an_earlier_state() {
    let (_dir, image) = image(StoreKind::Sqlite, WRITES);
    let wal = Path::new("node.sqlite-wal");
    let bytes = fs::read(image.join(wal)).unwrap();
    let mut last = 0;
    for cut in (0..bytes.len()).step_by(509).chain([31, 32, 33, bytes.len() - 1, bytes.len()]) {
        let n = open_with(&image, StoreKind::Sqlite, wal, &bytes[..cut]).unwrap();
        assert!(cut != bytes.len() - 1 || n == WRITES - 1, "the last frame was torn, {n}");
        last = n;
    }
    assert_eq!(last, WRITES);
}

/// SQLite begins its log anew from time to time and leaves what is behind it.
#[test]
fn a_log_that_began_anew_is_not_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let store = Store::open_as(&live, StoreKind::Sqlite).unwrap();
    let header = || fs::read(live.join("node.sqlite-wal")).unwrap()[16..24].to_vec();
    write(&store, 1);
    let first = header();
    for n in 2..=30 {
        write(&store, n);
        store.write("x", "", "large", vec![n; 300_000]).unwrap();
        let image = dir.path().join(n.to_string());
        copy(&live, &image);
        assert_eq!(state(&Store::open_as(&image, StoreKind::Sqlite).unwrap()), n);
    }
    assert_ne!(header(), first, "it did not begin anew");
}

/// A byte of the log that turned: refused if anything that was written later depends on it. Only the newest
/// transaction cannot be told from one that a power cut tore.
#[test]
fn a_damaged_log_is_refused_but_for_its_last_transaction() {
    let (_dir, image) = image(StoreKind::Sqlite, WRITES);
    let wal = Path::new("node.sqlite-wal");
    let bytes = fs::read(image.join(wal)).unwrap();
    let (mut refusals, mut torn) = (0, 0);
    let headers = (32..bytes.len()).step_by(4096 + 24).flat_map(|frame| frame..frame + 24);
    let offsets: Vec<usize> =
        (0..32).chain(headers.step_by(3)).chain((32..bytes.len()).step_by(997)).collect();
    for at in offsets {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        match open_with(&image, StoreKind::Sqlite, wal, &damaged) {
            Err(e) => {
                assert!(e.to_string().contains("node.sqlite"), "{e}");
                refusals += 1;
            }
            Ok(n) => {
                // The sequence number in the header means nothing.
                assert!(n >= WRITES - 1, "byte {at}: silently back to write {n}");
                torn += usize::from(n < WRITES);
            }
        }
    }
    assert!(refusals > 5 * torn && torn > 0, "{refusals} refused, {torn} taken for torn");
}

#[test]
fn a_damaged_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let store = Store::open_as(&live, StoreKind::Sqlite).unwrap();
    (1..=WRITES).for_each(|n| write(&store, n));
    drop(store);
    assert!(!live.join("node.sqlite-wal").exists(), "all is in the database");
    let file = Path::new("node.sqlite");
    let bytes = fs::read(live.join(file)).unwrap();
    let value = seal::seal(("b", "", "big"), vec![WRITES; 20]);
    let at = bytes.windows(value.len()).position(|w| w == value).unwrap();
    let within: Vec<usize> = (at..at + value.len()).collect();
    let mut refusals = 0;
    for at in within.iter().copied().chain((0..bytes.len()).step_by(101)) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        match open_with(&live, StoreKind::Sqlite, file, &damaged) {
            Err(e) => {
                assert!(e.to_string().contains("node.sqlite"), "{e}");
                refusals += 1;
            }
            Ok(n) => {
                assert_eq!(n, WRITES, "byte {at}");
                assert!(!within.contains(&at), "byte {at} of a value");
            }
        }
    }
    assert!(refusals > within.len(), "{refusals}");
    for cut in [bytes.len() - 1, bytes.len() - 4096, 4096, 100] {
        // What is cut off may have been free.
        match open_with(&live, StoreKind::Sqlite, file, &bytes[..cut]) {
            Ok(n) => assert!(n == WRITES && cut > bytes.len() / 2, "cut at {cut}, after write {n}"),
            Err(e) => assert!(e.to_string().contains("node.sqlite"), "{e}"),
        }
    }
}

#[test]
fn a_damaged_or_cut_record_is_refused_by_the_name_of_its_file() {
    let (_dir, image) = image(StoreKind::Filesystem, 2);
    for file in ["node.files/a/[empty]/one", "node.files/b/c/two", "node.files/b/[empty]/big"] {
        let bytes = fs::read(image.join(file)).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            refused(open_with(&image, StoreKind::Filesystem, Path::new(file), &damaged), file);
            refused(open_with(&image, StoreKind::Filesystem, Path::new(file), &bytes[..at]), file);
        }
    }
    // One file under the name of another.
    let bytes = fs::read(image.join("node.files/a/[empty]/one")).unwrap();
    let two = "node.files/b/c/two";
    refused(open_with(&image, StoreKind::Filesystem, Path::new(two), &bytes), two);
}

/// What a version without checksums wrote gets them, also if that was interrupted.
#[test]
fn an_older_store_is_sealed() {
    for kind in [StoreKind::Sqlite, StoreKind::Filesystem] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_as(dir.path(), kind).unwrap();
        write(&store, 5);
        drop(store);
        match kind {
            StoreKind::Sqlite => {
                let db = rusqlite::Connection::open(dir.path().join("node.sqlite")).unwrap();
                let set = "UPDATE kv SET value = x'05' WHERE key = 'one'";
                db.execute(set, []).unwrap();
                db.pragma_update(None, "user_version", 1).unwrap();
            }
            StoreKind::Filesystem => {
                fs::write(dir.path().join("node.files/a/[empty]/one"), [5]).unwrap();
                fs::remove_file(dir.path().join("node.sealed")).unwrap();
            }
        }
        for _ in 0..2 {
            assert_eq!(state(&Store::open_as(dir.path(), kind).unwrap()), 5);
        }
    }
}
