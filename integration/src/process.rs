//! One child process with its log file.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::binaries;

/// How much of a log is shown when its process has died, in bytes.
const TAIL: usize = 4096;

/// A program with fixed arguments that can be started, ended and started again. Its output is appended to one log
/// file. Dropping it ends the process (SIGKILL) if it runs.
#[derive(Debug)]
pub struct Proc {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Proc {
    /// A process that is not started yet. `name` is for messages.
    pub fn new(name: &str, program: &Path, log: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log: log.to_owned(),
            child: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds an argument for the next start.
    pub fn add_argument(&mut self, argument: impl Into<OsString>) {
        self.arguments.push(argument.into());
    }

    /// Sets an environment variable of the process.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts it with its arguments.
    ///
    /// # Errors
    /// If it runs already or cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if self.is_running()? {
            bail!("{} runs already", self.name);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        for name in binaries::settings() {
            command.env_remove(name);
        }
        let child = command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {} ({})", self.name, self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Whether the process runs now.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        match &mut self.child {
            None => Ok(false),
            Some(child) => Ok(child.try_wait().context("look at a child process")?.is_none()),
        }
    }

    /// Fails with the end of the log if the process has died.
    ///
    /// # Errors
    /// If it does not run.
    pub fn expect_running(&mut self) -> Result<()> {
        if !self.is_running()? {
            bail!("{} is not running; end of its log:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// If it does not run, or still runs after `limit`, or ends with an error code.
    pub fn terminate(&mut self, limit: Duration) -> Result<()> {
        self.signal("TERM")?;
        let status = self.wait_exit(limit)?;
        if !status.success() {
            bail!("{} ended with {status} on SIGTERM; end of its log:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Freezes it (SIGSTOP): its connections stand, but it does not answer.
    ///
    /// # Errors
    /// If it does not run.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets it go on after [`Proc::freeze`].
    ///
    /// # Errors
    /// If it does not run.
    pub fn thaw(&mut self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&mut self, signal: &str) -> Result<()> {
        self.expect_running()?;
        let Some(child) = &self.child else { bail!("{} was never started", self.name) };
        // The shell's own `kill`: the standard library can only send SIGKILL.
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status()?;
        if !sent.success() {
            bail!("cannot send SIG{signal} to {}", self.name);
        }
        Ok(())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// If it still runs after `limit`.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            let Some(child) = &mut self.child else { bail!("{} does not run", self.name) };
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            if start.elapsed() >= limit {
                let stacks = stacks(child.id());
                bail!(
                    "{} still runs after {} s; end of its log:\n{}\n{stacks}",
                    self.name,
                    limit.as_secs(),
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once (SIGKILL), as a power cut would.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        match self.child.take() {
            None => bail!("{} does not run", self.name),
            Some(mut child) => {
                child.kill().with_context(|| format!("kill {}", self.name))?;
                child.wait().with_context(|| format!("reap {}", self.name))?;
                Ok(())
            }
        }
    }

    /// Its process id, if it was started and not ended.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let start = bytes.len().saturating_sub(TAIL);
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
    }

    /// The log file.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What every thread of a process that does not end is doing, where gdb is there to say it.
fn stacks(pid: u32) -> String {
    let gdb = Command::new("timeout")
        .args(["60", "gdb", "-p", &pid.to_string(), "-batch", "-ex", "thread apply all backtrace 30"])
        .output();
    gdb.map_or_else(|e| format!("no stacks: {e}"), |o| String::from_utf8_lossy(&o.stdout).into_owned())
}
