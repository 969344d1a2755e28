//! What a process under test is made to do wrong: its list of faults, see [`factory_core::faults`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use factory_core::faults::{parse, LIST, POINTS};

use crate::wait::{self, Seen};

/// Faults that a scenario starts with, for checking the scenario itself: `PROCESS=LIST`, several separated by
/// semicolons; a process by its name (`lsp-server`, `client-0`) or by the beginning of it (`client`).
pub(crate) const SCENARIO: &str = "SCENARIO_FAULTS";
const PATIENCE: Duration = Duration::from_secs(60);

/// The faults of one process.
#[derive(Debug)]
pub struct Faults {
    folder: PathBuf,
    /// What goes wrong whatever the scenario itself says.
    always: String,
}

impl Faults {
    /// None at first, but for what `SCENARIO_FAULTS` in the environment says of a process of this name.
    pub(crate) fn new(folder: &Path, process: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let told = std::env::var(SCENARIO).unwrap_or_default();
        let entries = told.split(';').filter_map(|entry| entry.split_once('='));
        let lists: Vec<&str> =
            entries.filter(|(name, _)| process.starts_with(name.trim())).map(|(_, list)| list).collect();
        let faults = Self { folder: folder.to_owned(), always: lists.join(",") };
        faults.set("")?;
        Ok(faults)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// From now on this goes wrong, and what `SCENARIO_FAULTS` says: `kill@POINT#2`, `hold@POINT`, `on@SWITCH`, separated by commas.
    ///
    /// # Errors
    /// If there is no such point or switch, or the list cannot be written.
    pub fn set(&self, list: &str) -> Result<()> {
        let list = format!("{list},{}", self.always);
        parse(&list).map_err(anyhow::Error::msg)?;
        // Whole or not at all: the process reads it whenever it comes by.
        let new = self.folder.join("new");
        fs::write(&new, list)?;
        fs::rename(&new, self.folder.join(LIST)).context("write a list of faults")
    }

    /// From now on nothing goes wrong; a process that waits at a point goes on.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn clear(&self) -> Result<()> {
        self.set("")?;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if POINTS.iter().any(|point| path.file_name().is_some_and(|name| name == *point)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Whether a process waits at a point.
    pub fn is_held(&self, point: &str) -> bool {
        self.folder.join(point).exists()
    }

    /// Waits until the process waits at a point.
    ///
    /// # Errors
    /// If it has not come there within a minute.
    pub fn wait_held(&self, point: &str) -> Result<()> {
        wait::until(&format!("a process held at {point}"), PATIENCE, || {
            Ok(if self.is_held(point) { Seen::Done(()) } else { Seen::NotYet("not there".into()) })
        })
    }

    /// Lets it go on from a point.
    ///
    /// # Errors
    /// If it does not wait there.
    pub fn go_on(&self, point: &str) -> Result<()> {
        fs::remove_file(self.folder.join(point)).with_context(|| format!("no process waits at {point}"))
    }
}
