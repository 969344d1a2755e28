//! What every backend must do, as one suite.

use lightning::io::ErrorKind;
use lightning::util::persist::KVStoreSync;

use super::SqliteStore;

fn suite(open: &dyn Fn() -> Box<dyn KVStoreSync>) {
    let store = open();
    assert_eq!(store.read("a", "b", "missing").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(store.list("a", "b").unwrap().is_empty());
    store.write("a", "b", "k", vec![1, 2, 3]).unwrap();
    store.write("a", "b", "k", vec![4]).unwrap();
    store.write("a", "c", "k", vec![5]).unwrap();
    store.write("", "", "manager", vec![]).unwrap();
    store.write("a", "b", "big", vec![7; 3_000_000]).unwrap();
    assert_eq!(store.read("a", "b", "k").unwrap(), vec![4]);
    assert_eq!(store.read("a", "c", "k").unwrap(), vec![5]);
    assert_eq!(store.read("", "", "manager").unwrap(), Vec::<u8>::new());
    let mut keys = store.list("a", "b").unwrap();
    keys.sort();
    assert_eq!(keys, ["big", "k"]);
    store.remove("a", "b", "k", false).unwrap();
    store.remove("a", "b", "k", false).unwrap();
    assert_eq!(store.read("a", "b", "k").unwrap_err().kind(), ErrorKind::NotFound);
    drop(store);
    let store = open();
    assert_eq!(store.read("a", "b", "big").unwrap().len(), 3_000_000);
    assert_eq!(store.list("a", "b").unwrap(), ["big"]);
}

#[test]
fn sqlite() {
    let dir = tempfile::tempdir().unwrap();
    suite(&|| Box::new(SqliteStore::open(&dir.path().join("db.sqlite")).unwrap()));
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

#[test]
fn sqlite_writes_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("db.sqlite")).unwrap();
    store.write_all(&[("a", "", "1", b"x"), ("a", "", "2", b"y")]).unwrap();
    assert_eq!(store.list("a", "").unwrap(), ["1", "2"]);
}
