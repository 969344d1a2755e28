//! Looks at a process from outside: how it ended, how much memory it took, its metrics.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{anyhow, bail, Context, Result};

use super::{Daemon, PATIENCE};

impl Daemon {
    /// Waits until it has ended by itself with an error, and returns the end of its log.
    ///
    /// # Errors
    /// If it still runs after a minute, or ended without an error or by a signal.
    pub fn wait_refusal(&mut self) -> Result<String> {
        self.api = None;
        let status = self.process.wait_exit(PATIENCE)?;
        match status.code() {
            Some(code) if code != 0 => Ok(self.process.log_tail()),
            _ => bail!("{} ended with {status}", self.name),
        }
    }

    /// The most memory that it has had so far, KiB.
    ///
    /// # Errors
    /// If it does not run, or the system does not say.
    pub fn peak_memory_kib(&self) -> Result<u64> {
        let id = self.process.id().ok_or_else(|| anyhow!("{} does not run", self.name))?;
        let text = fs::read_to_string(format!("/proc/{id}/status")).context("read the process's status")?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number.ok_or_else(|| anyhow!("no VmHWM in {text}"))?.parse().context("VmHWM")
    }

    /// A figure of `GET /metrics` that stands for the whole node.
    ///
    /// # Errors
    /// If the call fails, or there is no such figure.
    pub fn metric(&self, name: &str) -> Result<i64> {
        let read = |file: &str| fs::read_to_string(self.data_dir.join(file)).context(file.to_owned());
        let (address, token) = (read("api-address")?, read("api-token")?);
        let mut stream = TcpStream::connect(address.trim())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
            token.trim()
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.ok_or_else(|| anyhow!("no {name} in {text}"))?.trim().parse().context("a metric")
    }
}
