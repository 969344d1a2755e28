//! The committed inputs of a fuzz target: `seeds`, made by the tests named `write_seeds`, and `regressions`, what the
//! fuzzer found once and, as `against-*`, what a machine with one protection left out does not survive. Shared by the tests that run over them.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::fs;
use std::path::PathBuf;

fn dir(kind: &str, target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(kind).join(target)
}

/// Runs every input of a target; a panic is preceded by the file's name.
pub fn each(target: &str, run: impl Fn(&[u8])) {
    let mut count = 0;
    for kind in ["seeds", "regressions"] {
        let Ok(entries) = fs::read_dir(dir(kind, target)) else { continue };
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for file in files {
            println!("{}", file.display());
            run(&fs::read(&file).unwrap());
            count += 1;
        }
    }
    assert!(count > 0, "{target} has no seeds");
}

/// Writes the seeds of a target in place of those that are there.
pub fn write(target: &str, seeds: &[(String, Vec<u8>)]) {
    let dir = dir("seeds", target);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    for (name, bytes) in seeds {
        fs::write(dir.join(name), bytes).unwrap();
    }
}
