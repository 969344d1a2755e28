//! The checks are checked: each protection is left out once, by a fault switch, and the test that guards it has to
//! fail, with the words of exactly that failure. A check that passes anyway would not have noticed a real fault.
//!
//! [`table`] has the list: one row for each switch of [`factory_core::faults::PROTECTIONS`] and test that guards it.
//! Rows of tests in one process take a moment and run in `make test`; those of scenarios run in `make checks`.

mod advance;
pub mod table;
pub mod virt;

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{anyhow, bail, Context, Result};
use factory_core::faults::{LIST, PROTECTIONS, VARIABLE};

use crate::faults::SCENARIO;
use crate::wait::LONGEST;

/// How long a test in one process may take; seconds are more than enough.
const TEST: Duration = Duration::from_secs(60);
/// How long a scenario may take, with a wait that has to run out.
const SCENARIO_TIME: Duration = Duration::from_secs(420);
/// How long it waits for one thing, seconds; what comes at all comes within a few.
const PATIENCE: &str = "25";
/// How much of a test's output is shown, bytes.
const TAIL: usize = 3000;
/// What cargo puts after a test program's name: a dash and a hash of so many digits.
const HASH: usize = 16;

/// One protection left out, and the test that has to notice.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The switch that leaves it out.
    pub switch: &'static str,
    /// The processes of the scenario in which it is on, by the beginning of their names; none: the test itself and
    /// what it starts.
    pub armed: &'static [&'static str],
    /// The test program, without the hash.
    pub program: &'static str,
    /// The test in it.
    pub test: &'static str,
    /// Rows of the crash matrix, by a part of the fail point's name; empty: the test is another.
    pub crash: &'static str,
    /// What the failure has to say.
    pub says: &'static str,
}

/// All checks.
pub fn all() -> impl Iterator<Item = &'static Check> {
    table::TABLE.iter().chain(virt::VIRT).chain(advance::ADVANCE)
}

/// What became of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The test failed, in the words expected.
    Noticed,
    /// The test passed: it guards nothing.
    Unnoticed,
    /// The test failed otherwise; the end of what it said.
    Otherwise(String),
}

impl Check {
    /// Whether it is a scenario, with processes of its own.
    pub fn is_scenario(&self) -> bool {
        self.program.starts_with("scenario_")
    }

    /// The invariant that stands without protection.
    pub fn invariant(&self) -> u8 {
        PROTECTIONS.iter().find(|(name, ..)| *name == self.switch).map_or(0, |(_, number, _)| *number)
    }

    /// Runs the test with the protection left out.
    ///
    /// # Errors
    /// If the test program is not there or cannot be run, has no such test, or does not end in time.
    pub fn run(&self) -> Result<Verdict> {
        let folder = tempfile::Builder::new().prefix("check-").tempdir()?;
        let program = newest(&deps()?, self.program)?;
        let log = folder.path().join("log");
        let out = File::create(&log)?;
        let mut command = Command::new(&program);
        command
            .args(["--exact", self.test, "--nocapture", "--include-ignored", "--test-threads=1"])
            .env_remove(SCENARIO)
            .env_remove(VARIABLE)
            // What a scenario that fails leaves behind goes with this folder.
            .env("TMPDIR", folder.path())
            .env("CARGO_TARGET_DIR", folder.path())
            .env("CRASH_ROWS", self.crash)
            .env_remove(LONGEST)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        if self.armed.is_empty() {
            fs::write(folder.path().join(LIST), format!("on@{}", self.switch))?;
            command.env(VARIABLE, folder.path());
        } else {
            let armed: Vec<String> =
                self.armed.iter().map(|process| format!("{process}=on@{}", self.switch)).collect();
            command.env(SCENARIO, armed.join(";"));
        }
        if self.crash.is_empty() {
            command.env(LONGEST, PATIENCE);
        }
        let limit = if self.is_scenario() { SCENARIO_TIME } else { TEST };
        let status = run_for(command, limit);
        let said = fs::read_to_string(&log).unwrap_or_default();
        let status = status.with_context(|| format!("{self:?}; it said:\n{}", tail(&said)))?;
        if !said.contains("running 1 test\n") {
            bail!("{} has no test {}: {}", program.display(), self.test, tail(&said));
        }
        Ok(if status.success() {
            Verdict::Unnoticed
        } else if status.signal().is_none()
            && said.contains("test result: FAILED")
            && said.contains(self.says)
        {
            Verdict::Noticed
        } else {
            Verdict::Otherwise(format!("{status}: {}", tail(&said)))
        })
    }
}

/// Waits for a program that leads a process group of its own; if it takes too long the group is ended.
fn run_for(mut command: Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = command.spawn().context("start a test program")?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() >= limit {
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // Whatever it left running goes, too: a test that panics hard ends none of its processes.
    let _ = Command::new("sh").args(["-c", &format!("kill -KILL -{} 2>/dev/null", child.id())]).status();
    match status {
        Some(status) => Ok(status),
        None => {
            child.wait()?;
            bail!("not ended after {} s", limit.as_secs())
        }
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TAIL);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// The folder of the test programs: that of the running one, or the one below the running program's.
fn deps() -> Result<PathBuf> {
    let mut folder = std::env::current_exe().context("own path")?;
    folder.pop();
    if !folder.ends_with("deps") {
        folder.push("deps");
    }
    Ok(folder)
}

/// The newest program of this name: cargo leaves those of other features and versions beside it.
fn newest(folder: &Path, name: &str) -> Result<PathBuf> {
    let mut found: Option<(SystemTime, PathBuf)> = None;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let file = entry.file_name().into_string().unwrap_or_default();
        let hash = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        if !hash.is_some_and(|h| h.len() == HASH && h.bytes().all(|b| b.is_ascii_hexdigit())) {
            continue;
        }
        let made = entry.metadata()?.modified()?;
        if found.as_ref().is_none_or(|(before, _)| *before < made) {
            found = Some((made, entry.path()));
        }
    }
    found.map(|(_, path)| path).ok_or_else(|| {
        anyhow!("{} has no test program {name}: run `cargo build --workspace --tests`", folder.display())
    })
}
