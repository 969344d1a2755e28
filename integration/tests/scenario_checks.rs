//! The checks are checked, see [`integration::checks`]: here those of tests in one process. `make checks` runs all.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use anyhow::Result;
use factory_core::faults::{switches, HOSTILE, PROTECTIONS};
use integration::checks::{self, Check, Verdict};

const CRATES: [&str; 3] = ["factory-core", "ldk-node-ext", "client-app"];
const AT_ONCE: usize = 2;

/// The source files below a folder, but those with the lists of names.
fn sources(folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs")
            && !path.to_string_lossy().contains("core/src/faults")
        {
            into.push(fs::read_to_string(path).unwrap());
        }
    }
}

/// A fault that is listed can happen, and something uses it; a protection can be left out, and something has to notice.
#[test]
fn every_fault_is_used() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (mut product, mut tests) = (Vec::new(), Vec::new());
    for name in CRATES {
        sources(&top.join(name).join("src"), &mut product);
    }
    for folder in ["src", "tests"] {
        sources(&top.join("integration").join(folder), &mut tests);
    }
    let named = |texts: &[String], before: &str, name: &str| {
        texts.iter().any(|text| {
            text.match_indices(name).any(|(at, _)| {
                let after = text[at + name.len()..].chars().next();
                text[..at].ends_with(before)
                    && !after.is_some_and(|c| c.is_alphanumeric() || "._".contains(c))
            })
        })
    };
    // The crash matrix takes every fail point there is, and finds out whether it is reached.
    for name in switches() {
        assert!(named(&product, "\"", name), "{name} is nowhere in the programs");
        // Scenarios with hostile peers put names together from their parts.
        let part = name.rsplit('.').next().unwrap_or(name);
        let hostile = HOSTILE.iter().any(|(n, _)| *n == name) && named(&tests, "", part);
        assert!(hostile || named(&tests, "", name), "no test uses {name}");
    }
    for (name, invariant, _) in PROTECTIONS {
        let used = checks::all().any(|check| check.switch == *name) || *name == "wallet.changes_txid";
        assert!(used, "no check leaves {name} out");
        assert!((1..=17).contains(invariant), "{name}");
    }
    for check in checks::all() {
        assert!(switches().any(|name| name == check.switch), "{check:?} names no switch");
    }
}

/// Each test in one process fails when the protection that it guards is left out.
#[test]
fn tests_notice_what_is_left_out() -> Result<()> {
    let checks: Vec<&Check> = checks::all().filter(|check| !check.is_scenario()).collect();
    let (next, bad) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(check) = checks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = check.run();
                    if !matches!(verdict, Ok(Verdict::Noticed)) {
                        bad.lock().unwrap().push(format!("{check:?}: {verdict:#?}"));
                    }
                }
            });
        }
    });
    let bad = bad.into_inner().unwrap();
    assert!(bad.is_empty(), "{} of {} did not notice:\n{}", bad.len(), checks.len(), bad.join("\n"));
    Ok(())
}
