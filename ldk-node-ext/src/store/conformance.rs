//! What every backend must do, as one suite.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use lightning::io::ErrorKind;
use lightning::util::persist::{KVStoreSync, KVSTORE_NAMESPACE_KEY_ALPHABET};

use super::events::Events;
use super::payments::Payments;
use super::{SqliteStore, Store, StoreKind};

/// A backend under test; each call of `open` is a new process on the same disk.
struct Disk {
    dir: tempfile::TempDir,
    kind: StoreKind,
}

impl Disk {
    fn open(&self) -> Store {
        Store::open_as(self.dir.path(), self.kind).unwrap()
    }
}

fn on_both(test: impl Fn(&Disk)) {
    for kind in [StoreKind::Sqlite, StoreKind::Filesystem] {
        test(&Disk { dir: tempfile::tempdir().unwrap(), kind });
    }
}

#[test]
fn keeps_lists_and_removes() {
    on_both(|disk| {
        let store = disk.open();
        assert_eq!(store.read("a", "b", "missing").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(store.list("a", "b").unwrap().is_empty());
        store.remove("a", "b", "missing", false).unwrap();
        store.write("a", "b", "k", vec![1, 2, 3]).unwrap();
        store.write("a", "b", "k", vec![4]).unwrap();
        store.write("a", "c", "k", vec![5]).unwrap();
        store.write("a", "", "k", vec![6]).unwrap();
        store.write("a", "", "b", vec![7]).unwrap();
        store.write("", "", "manager", vec![]).unwrap();
        store.write("a", "b", "big", vec![7; 3_000_000]).unwrap();
        assert_eq!(store.read("a", "b", "k").unwrap(), vec![4]);
        assert_eq!(store.read("a", "c", "k").unwrap(), vec![5]);
        assert_eq!(store.read("a", "", "k").unwrap(), vec![6]);
        assert_eq!(store.read("", "", "manager").unwrap(), Vec::<u8>::new());
        assert_eq!(store.list("a", "b").unwrap(), ["big", "k"]);
        assert_eq!(store.list("a", "").unwrap(), ["b", "k"], "a key may be called as a namespace is");
        assert_eq!(store.list("", "").unwrap(), ["manager"]);
        store.remove("a", "b", "k", false).unwrap();
        store.remove("a", "b", "k", true).unwrap();
        store.remove("a", "c", "k", true).unwrap();
        assert_eq!(store.read("a", "b", "k").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(store.list("a", "c").unwrap().is_empty());
        drop(store);
        let store = disk.open();
        assert_eq!(store.read("a", "b", "big").unwrap(), vec![7; 3_000_000]);
        assert_eq!(store.list("a", "b").unwrap(), ["big"]);
        assert_eq!(store.read("", "", "manager").unwrap(), Vec::<u8>::new());
    });
}

#[test]
fn takes_every_name_that_ldk_allows_and_no_other() {
    on_both(|disk| {
        let store = disk.open();
        let long = "Z".repeat(120);
        let mut keys: Vec<String> = KVSTORE_NAMESPACE_KEY_ALPHABET.chars().map(String::from).collect();
        keys.extend([long.clone(), "-".repeat(120), "__".into(), "tmp".into(), "CON".into()]);
        for key in &keys {
            store.write(&long, "_-", key, key.clone().into_bytes()).unwrap();
        }
        keys.sort();
        assert_eq!(store.list(&long, "_-").unwrap(), keys);
        assert!(keys.iter().all(|key| store.read(&long, "_-", key).unwrap() == key.as_bytes()));
        let longer = "Z".repeat(121);
        let wrong = [
            ("a", "b", ""),
            ("", "b", "k"),
            ("a", "b", longer.as_str()),
            ("a", &longer, "k"),
            (&longer, "", "k"),
            ("a", "..", "k"),
            ("a", "", "../../seed"),
            ("a", "", "k.0.tmp"),
            ("a", "", "k\0"),
            ("[empty]", "", "k"),
            ("a", "", "ä"),
            ("a b", "", "k"),
        ];
        for (primary, secondary, key) in wrong {
            let invalid = |kind| assert_eq!(kind, ErrorKind::InvalidInput, "{primary}/{secondary}/{key}");
            invalid(store.write(primary, secondary, key, vec![]).unwrap_err().kind());
            invalid(store.read(primary, secondary, key).unwrap_err().kind());
            invalid(store.remove(primary, secondary, key, false).unwrap_err().kind());
            let entries: [(&str, &str, &str, &[u8]); 2] =
                [("ok", "", "k", b"1"), (primary, secondary, key, b"2")];
            invalid(store.write_all(&entries).unwrap_err().kind());
        }
        assert!(store.list("ok", "").unwrap().is_empty(), "of a refused set nothing is written");
        assert_eq!(store.list("", "b").unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn writes_all_together() {
    on_both(|disk| {
        let store = disk.open();
        store.write_all(&[]).unwrap();
        store.write_all(&[("a", "", "1", b"x"), ("a", "", "2", b"y"), ("", "", "2", b"")]).unwrap();
        store.write_all(&[("a", "", "1", b"z")]).unwrap();
        let big = vec![9; 2_000_000];
        store.write_all(&[("b", "c", "1", &big), ("a", "", "2", b"last"), ("a", "", "2", b"wins")]).unwrap();
        drop(store);
        let store = disk.open();
        assert_eq!(store.list("a", "").unwrap(), ["1", "2"]);
        assert_eq!(store.read("a", "", "1").unwrap(), b"z");
        assert_eq!(store.read("a", "", "2").unwrap(), b"wins");
        assert_eq!(store.read("", "", "2").unwrap(), b"");
        assert_eq!(store.read("b", "c", "1").unwrap(), big);
    });
}

/// Readers see a value whole, old or new, and both keys of a set; no write is lost; lists hold what stays.
#[test]
fn serves_readers_and_writers_at_once() {
    const ROUNDS: u8 = 20;
    on_both(|disk| {
        let store = disk.open();
        store.write("t", "", "stays", vec![1]).unwrap();
        store.write("t", "", "shared", vec![0; 10_000]).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer: u8| {
                    let store = &store;
                    scope.spawn(move || {
                        let own = format!("own-{writer}");
                        for round in 0..ROUNDS {
                            store.write("t", "", "shared", vec![round; 10_000]).unwrap();
                            store.write("t", "", &own, vec![round]).unwrap();
                            let pair = [writer, round];
                            store.write_all(&[("u", "", "1", &pair), ("v", "", "2", &pair)]).unwrap();
                            store.write("t", "", "comes-and-goes", vec![round]).unwrap();
                            store.remove("t", "", "comes-and-goes", round % 2 == 0).unwrap();
                        }
                    })
                })
                .collect();
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        let shared = store.read("t", "", "shared").unwrap();
                        assert!(shared.len() == 10_000 && shared.iter().all(|b| *b == shared[0]));
                        assert!(store.list("t", "").unwrap().contains(&"stays".to_owned()));
                    }
                });
            }
            // A panic of a writer must end the readers too.
            let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
            done.store(true, Ordering::SeqCst);
            assert!(ended.iter().all(Result::is_ok));
        });
        drop(store);
        let store = disk.open();
        for writer in 0..4 {
            assert_eq!(store.read("t", "", &format!("own-{writer}")).unwrap(), [ROUNDS - 1]);
        }
        assert_eq!(store.read("u", "", "1").unwrap(), store.read("v", "", "2").unwrap());
        assert_eq!(store.list("t", "").unwrap(), ["own-0", "own-1", "own-2", "own-3", "shared", "stays"]);
    });
}

/// What is built on a store works on each: the index of events goes on, a payment is claimed once.
#[test]
fn carries_events_and_payments() {
    use lightning::types::payment::PaymentHash;

    use crate::api::Direction;

    on_both(|disk| {
        let hash = PaymentHash([7; 32]);
        for (round, known) in [(1, 0), (2, 12)] {
            let store = Arc::new(disk.open());
            let events = Events::open(Arc::clone(&store)).unwrap();
            assert_eq!(*events.subscribe().borrow(), known);
            (0..12).for_each(|n| events.push("e", serde_json::json!({ "n": n })));
            let seen: Vec<u64> = events.after(known, 100).unwrap().into_iter().map(|e| e.index).collect();
            assert_eq!(seen, (known + 1..=known + 12).collect::<Vec<_>>());
            let payments = Payments::new(store);
            assert_eq!(payments.claim(&hash, 5).is_ok(), round == 1);
            assert_eq!(payments.get(&hash, Direction::Out).unwrap().unwrap().amount_msat, 5);
            assert_eq!(payments.all().unwrap().len(), 1);
        }
    });
}

#[test]
fn sqlite_refuses_a_second_process_and_a_newer_schema() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db.sqlite");
    let store = SqliteStore::open(&path).unwrap();
    let refused = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(refused.contains("locked"), "{refused}");
    drop(store);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refused = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(refused.contains("newer version (schema 99"), "{refused}");
}
