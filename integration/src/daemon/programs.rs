//! The two programs: how each is started, and what only one of them can do.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;

use anyhow::{bail, Context, Result};
use serde::Deserialize;
use serde_json::{json, Value};

use super::{poll_ms, Daemon};
use crate::bitcoind::free_port;
use crate::process::Proc;
use crate::types::WaitingClient;
use crate::{binaries, Bitcoind};

/// An `lsp-server`.
#[derive(Debug)]
pub struct Lsp {
    daemon: Daemon,
    listen: String,
}

/// A `client-app`.
#[derive(Debug)]
pub struct Client(Daemon);

impl Lsp {
    /// Starts an LSP with its data under `folder`, against `bitcoind`; `flags` are added to those of `run`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(folder: &Path, bitcoind: &Bitcoind, flags: &[&str]) -> Result<Self> {
        Self::start_as("lsp", folder, bitcoind, flags)
    }

    /// As [`Lsp::start`], one of several: with its data in `folder/name`.
    ///
    /// # Errors
    /// As [`Lsp::start`].
    pub fn start_as(name: &str, folder: &Path, bitcoind: &Bitcoind, flags: &[&str]) -> Result<Self> {
        let data_dir = folder.join(name);
        fs::create_dir_all(&data_dir)?;
        // Clients know the LSP by address, so it keeps its port over restarts.
        let listen = format!("127.0.0.1:{}", free_port()?);
        let log = folder.join(format!("{name}.log"));
        let process = Proc::new("lsp-server", &binaries::workspace("lsp-server")?, &log)
            .arg("run")
            .arg("--data-dir")
            .arg(data_dir.as_os_str())
            .args(["--network", "regtest", "--listen", &listen, "--api", "127.0.0.1:0"])
            .args(bitcoind_flags(bitcoind))
            .args(["--poll-ms", &poll_ms()])
            .args(flags)
            .env("RUST_LOG", &log_filter());
        let mut daemon = Daemon::new("lsp-server", process, data_dir)?;
        daemon.start()?;
        Ok(Self { daemon, listen })
    }

    /// `NODE_ID@HOST:PORT`.
    pub fn uri(&self) -> String {
        format!("{}@{}", self.daemon.node_id, self.listen)
    }

    /// `HOST:PORT` of its Lightning port.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    /// `GET /v1/clients`.
    ///
    /// # Errors
    /// If the call fails.
    pub fn clients(&self) -> Result<Vec<WaitingClient>> {
        self.api()?.get("/v1/clients")
    }

    /// Starts a factory; the body is that of `POST /v1/factories`. Returns the instance id.
    ///
    /// # Errors
    /// If the call fails.
    pub fn create_factory(&self, body: &Value) -> Result<String> {
        #[derive(Deserialize)]
        struct Answer {
            instance_id: String,
        }
        Ok(self.api()?.post::<Answer>("/v1/factories", body)?.instance_id)
    }

    /// Opens an ordinary channel.
    ///
    /// # Errors
    /// If the call fails.
    pub fn open_channel(&self, node_id: &str, address: &str, capacity_sat: u64, push_sat: u64) -> Result<()> {
        let body = json!({
            "node_id": node_id, "address": address, "capacity_sat": capacity_sat, "push_sat": push_sat,
        });
        self.api()?.post::<Value>("/v1/channels", &body)?;
        Ok(())
    }
}

impl Client {
    /// Makes and starts the client number `index` with its data under `folder`; `flags` are added to those of `init`.
    ///
    /// # Errors
    /// If `init` fails or it does not come up.
    pub fn start(
        folder: &Path,
        index: usize,
        bitcoind: &Bitcoind,
        lsp: &Lsp,
        flags: &[&str],
    ) -> Result<Self> {
        let name = format!("client-{index}");
        let data_dir = folder.join(&name);
        let program = binaries::workspace("client-app")?;
        let mut init = Command::new(&program);
        for name in binaries::settings() {
            init.env_remove(name);
        }
        let init = init
            .arg("init")
            .arg("--data-dir")
            .arg(&data_dir)
            .args(["--network", "regtest", "--lsp", &lsp.uri()])
            .args(bitcoind_flags(bitcoind))
            .args(["--jit-move", "never"])
            .args(flags)
            .output()
            .context("run client-app init")?;
        if !init.status.success() {
            bail!("client-app init: {}", String::from_utf8_lossy(&init.stderr));
        }
        let process = Proc::new(&name, &program, &folder.join(format!("{name}.log")))
            .arg("run")
            .arg("--data-dir")
            .arg(data_dir.as_os_str())
            .args(["--poll-ms", &poll_ms()])
            .env("RUST_LOG", &log_filter());
        let mut daemon = Daemon::new(&name, process, data_dir)?;
        daemon.start()?;
        Ok(Self(daemon))
    }

    /// Starts the unilateral exit from a factory.
    ///
    /// # Errors
    /// If the call fails.
    pub fn exit(&self, id: &str) -> Result<()> {
        self.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &json!({}))?;
        Ok(())
    }
}

pub(crate) fn bitcoind_flags(bitcoind: &Bitcoind) -> Vec<String> {
    let (user, password) = bitcoind.credentials();
    ["--bitcoind-rpc", bitcoind.rpc_address(), "--bitcoind-user", user, "--bitcoind-pass", password]
        .map(str::to_owned)
        .to_vec()
}

/// `SCENARIO_LOG` in the environment, else `info`.
pub(crate) fn log_filter() -> String {
    std::env::var("SCENARIO_LOG").unwrap_or_else(|_| "info".into())
}

impl Deref for Lsp {
    type Target = Daemon;
    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Lsp {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

impl Deref for Client {
    type Target = Daemon;
    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.0
    }
}
