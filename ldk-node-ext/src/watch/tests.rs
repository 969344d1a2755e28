//! A watcher's directory, and files that are no exit files.

use super::*;

#[test]
fn what_is_no_exit_file_is_refused_with_the_reason() {
    let fails = |text: &str| ExitFile::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(fails("{").contains("not an exit file"));
    assert!(fails("{}").contains("version"));
    assert!(fails(r#"{"version":2}"#).contains("version 2, this software reads 1"));
    assert!(fails(r#"{"version":1,"network":"regtest"}"#).contains("node_id"));
    let large = vec![b' '; usize::try_from(MAX_EXIT_FILE_BYTES).unwrap() + 1];
    assert!(ExitFile::parse(&large).unwrap_err().to_string().contains("larger than"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("exit.json");
    std::fs::write(&path, &large).unwrap();
    assert!(ExitFile::read(&path).unwrap_err().to_string().contains("larger than"));
}

#[test]
fn a_watcher_has_a_seed_of_its_own_and_its_directory_alone() {
    let dir = tempfile::tempdir().unwrap();
    crate::init_seed(dir.path()).unwrap();
    let read = |path: &Path| std::fs::read(path.join("seed")).unwrap();
    let wallet = dir.path().join(WALLET_DIR);
    // A crash between the store and the seed.
    drop(Store::open(&wallet).unwrap());
    let first = open_store(dir.path()).unwrap();
    assert_ne!(read(dir.path()), read(&wallet));
    assert!(matches!(open_store(dir.path()).err().unwrap(), Error::Conflict(_)));
    let seed = read(&wallet);
    // Without its seed a wallet cannot be used any more, and gets no other one.
    first.0.write("wallet", "", "0", vec![1]).unwrap();
    drop(first);
    drop(open_store(dir.path()).unwrap());
    assert_eq!(read(&wallet), seed);
    std::fs::remove_file(wallet.join("seed")).unwrap();
    assert!(open_store(dir.path()).is_err());
}
