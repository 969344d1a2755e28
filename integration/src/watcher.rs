//! A `client-app watch` process: no wallet of a client, no key of a channel, only exit files.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::{BlockHash, Transaction, Txid};
use serde::Deserialize;

use crate::daemon::{bitcoind_flags, log_filter, poll_ms};
use crate::process::Proc;
use crate::wait::{self, Seen};
use crate::{binaries, Bitcoind, Client};

/// How long a start, a stop or a look at the chain may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The process and its data folder.
#[derive(Debug)]
pub struct Watcher {
    process: Proc,
    program: PathBuf,
    data_dir: PathBuf,
}

/// `client-app watch-status --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Height up to which it has looked.
    pub height: u32,
    /// Block at that height.
    pub block_hash: BlockHash,
    /// Its wallet.
    pub fee_wallet: FeeWallet,
    /// The leaves.
    pub leaves: Vec<Leaf>,
}

/// The wallet in [`Status`].
#[derive(Clone, Debug, Deserialize)]
pub struct FeeWallet {
    /// Where to pay to.
    pub address: String,
    /// Confirmed coins, sat.
    pub confirmed_sat: u64,
    /// Unconfirmed coins, sat.
    pub unconfirmed_sat: u64,
    /// What it should hold, sat.
    pub needed_sat: u64,
}

/// A leaf in [`Status`].
#[derive(Clone, Debug, Deserialize)]
pub struct Leaf {
    /// Node id of the client that wrote the file.
    pub node_id: String,
    /// The position on the odometer of the path that is held.
    pub position: u64,
    /// `watching`, `publishing`, `paid`, ...
    pub state: String,
    /// What comes next, in words.
    pub next: String,
    /// Fees paid so far, sat.
    pub spent_sat: u64,
}

/// What a client's exit file has, as far as the scenarios look at it.
#[derive(Clone, Debug)]
pub struct ExitFile {
    /// The path, in order.
    pub path: Vec<Transaction>,
    /// Position of the leaf's first transaction in the path.
    pub leaf_start: usize,
    /// Number `i` competes with path transaction `leaf_start + i`.
    pub distributions: Vec<Transaction>,
    /// T.
    pub expiry_height: u32,
}

impl ExitFile {
    /// Has a running client write its exit file, and reads it.
    ///
    /// # Errors
    /// If the command fails or the file is not as documented.
    pub fn export(client: &Client, file: &Path) -> Result<Self> {
        let program = binaries::workspace("client-app")?;
        run(&program, &["export-exit".as_ref(), file.as_os_str()], client.data_dir())?;
        Self::read(file)
    }

    fn read(file: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            path: Record,
        }
        #[derive(Deserialize)]
        struct Record {
            path: Vec<Signed>,
            leaf_start: usize,
            distributions: Vec<Signed>,
            expiry_height: u32,
        }
        #[derive(Deserialize)]
        struct Signed {
            tx: String,
        }
        let record = serde_json::from_slice::<File>(&fs::read(file)?)?.path;
        let parse = |list: &[Signed]| {
            list.iter().map(|signed| Ok(deserialize_hex(&signed.tx)?)).collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            path: parse(&record.path)?,
            leaf_start: record.leaf_start,
            distributions: parse(&record.distributions)?,
            expiry_height: record.expiry_height,
        })
    }

    /// The ids of the distributions.
    pub fn distribution_txids(&self) -> Vec<Txid> {
        self.distributions.iter().map(Transaction::compute_txid).collect()
    }
}

impl Watcher {
    /// Starts a watcher of these files with its data under `folder`, and waits until it has looked at the chain.
    /// `flags` come on top of those that it needs.
    ///
    /// # Errors
    /// If it does not come up; with the end of its log.
    pub fn start(folder: &Path, bitcoind: &Bitcoind, files: &[PathBuf], flags: &[&str]) -> Result<Self> {
        let data_dir = folder.join("watcher");
        let program = binaries::workspace("client-app")?;
        let process = Proc::new("watcher", &program, &folder.join("watcher.log"))
            .arg("watch")
            .args(files)
            .arg("--data-dir")
            .arg(data_dir.as_os_str())
            .args(["--network", "regtest", "--poll-ms", &poll_ms()])
            .args(bitcoind_flags(bitcoind))
            .args(flags)
            .env("RUST_LOG", &log_filter());
        let mut watcher = Self { process, program, data_dir };
        watcher.restart(bitcoind)?;
        Ok(watcher)
    }

    /// Tries to start a watcher of one file and returns why it refuses to.
    ///
    /// # Errors
    /// If it does not refuse.
    pub fn refusal(folder: &Path, bitcoind: &Bitcoind, file: &Path) -> Result<String> {
        let log = folder.join("refused.log");
        match fs::remove_file(&log) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut process = Proc::new("watcher", &binaries::workspace("client-app")?, &log)
            .arg("watch")
            .arg(file.as_os_str())
            .arg("--data-dir")
            .arg(folder.join("refused").as_os_str())
            .args(bitcoind_flags(bitcoind));
        process.start()?;
        match process.wait_exit(wait::at_most(PATIENCE)) {
            Ok(status) if !status.success() => Ok(process.log_tail()),
            taken => bail!("it took {}: {taken:?}", file.display()),
        }
    }

    /// Starts it again after [`Watcher::kill`].
    ///
    /// # Errors
    /// If it runs or does not come up.
    pub fn restart(&mut self, bitcoind: &Bitcoind) -> Result<()> {
        // What an earlier run wrote says nothing of this one.
        match fs::remove_file(self.data_dir.join("status.json")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.process.start()?;
        self.wait_synced(bitcoind)?;
        Ok(())
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Stops it in order (SIGTERM).
    ///
    /// # Errors
    /// If it does not end in time, or with an error code.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate(PATIENCE)
    }

    /// What `client-app watch-status` says.
    ///
    /// # Errors
    /// If the command fails.
    pub fn status(&self) -> Result<Status> {
        let said = run(&self.program, &["watch-status".as_ref(), "--json".as_ref()], &self.data_dir)?;
        serde_json::from_slice(&said).context("status of the watcher")
    }

    /// Waits until it has looked at bitcoind's best block and done what it had to do about it.
    ///
    /// # Errors
    /// If it dies, or has not within a minute.
    pub fn wait_synced(&mut self, bitcoind: &Bitcoind) -> Result<Status> {
        let best = bitcoind.best_block()?;
        let mut dead = None;
        let status = wait::until(&format!("the watcher at block {best}"), PATIENCE, || {
            if let Err(error) = self.process.expect_running() {
                dead = Some(error);
                return Ok(Seen::Done(None));
            }
            let status = self.status()?;
            // What bitcoind refused for now is tried again.
            let failing = status.leaves.iter().any(|leaf| leaf.state == "failing");
            Ok(if status.block_hash == best && !failing {
                Seen::Done(Some(status))
            } else {
                Seen::NotYet(format!("{status:?}"))
            })
        })?;
        match dead {
            Some(error) => Err(error),
            None => status.ok_or_else(|| anyhow!("the watcher says nothing")),
        }
    }

    /// Mines one block after the other, each when the watcher has seen the one before, until every leaf is in this
    /// state.
    ///
    /// # Errors
    /// If they are not within `blocks`.
    pub fn drive(&mut self, bitcoind: &Bitcoind, state: &str, blocks: u32) -> Result<Status> {
        for _ in 0..blocks {
            let status = self.wait_synced(bitcoind)?;
            if status.leaves.iter().all(|leaf| leaf.state == state) {
                return Ok(status);
            }
            bitcoind.mine(1)?;
        }
        bail!("not every leaf is {state} after {blocks} blocks: {:?}", self.wait_synced(bitcoind)?.leaves)
    }
}

/// Runs a command against a data folder and returns what it printed.
fn run(program: &Path, arguments: &[&OsStr], data_dir: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new(program);
    for name in binaries::settings() {
        command.env_remove(name);
    }
    let output = command.args(arguments).arg("--data-dir").arg(data_dir).output()?;
    if !output.status.success() {
        bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
