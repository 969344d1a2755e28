//! What the command lines of both binaries share: settings in layers, the common commands, waiting
//! for a factory with progress, and the way errors end a command.

mod commands;
mod common;
mod exit;
mod layers;
mod wait;
pub mod watch;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

pub use commands::{events_after, NodeCommand};
pub use common::{bad, set, validate, CommonSettings, Folders};
pub use exit::ExitArgs;
pub use layers::{environment, Layers, Settings};
pub use wait::{closing, creating, exit_of, exiting, leaf_of, rotating, the_factory, WaitArgs};

use super::{ApiClient, ErrorBody, HttpError};

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct GlobalArgs {
    /// Directory of everything that is kept
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

impl GlobalArgs {
    /// The data directory: the flag, else `<PREFIX>_DATA_DIR`, else `~/<fallback>`.
    ///
    /// # Errors
    /// [`HttpError::MissingSetting`] if there is no home directory either.
    pub fn data_dir(&self, prefix: &str, fallback: &str) -> Result<PathBuf, HttpError> {
        if let Some(dir) = &self.data_dir {
            return Ok(dir.clone());
        }
        if let Some(dir) = std::env::var_os(format!("{prefix}_DATA_DIR")) {
            return Ok(dir.into());
        }
        match std::env::var_os("HOME") {
            Some(home) => Ok(PathBuf::from(home).join(fallback)),
            None => Err(HttpError::MissingSetting { key: "data_dir", hint: "use --data-dir DIR".into() }),
        }
    }

    /// How to print.
    pub fn output(&self) -> Output {
        Output { json: self.json }
    }
}

/// Prints the outcome of a command on stdout: text, or JSON with `--json`.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Prints a value; `text` is called only if text is wanted.
    ///
    /// # Errors
    /// [`HttpError::System`] if stdout cannot be written to.
    pub fn show<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), HttpError> {
        print(&match self.json {
            true => serde_json::to_string_pretty(value).map_err(not_json)?,
            false => text(value),
        })
    }

    /// Like [`Output::show`], with JSON on one line.
    ///
    /// # Errors
    /// [`HttpError::System`] if stdout cannot be written to.
    pub fn line<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), HttpError> {
        print(&match self.json {
            true => serde_json::to_string(value).map_err(not_json)?,
            false => text(value),
        })
    }
}

fn not_json(e: serde_json::Error) -> HttpError {
    HttpError::System { action: "write JSON", source: e.into() }
}

fn print(text: &str) -> Result<(), HttpError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())
        .and_then(|()| out.flush())
        .map_err(|source| HttpError::System { action: "write to stdout", source })
}

/// The end of `main`: prints the error, as JSON on stdout with `--json`, and gives the exit code.
pub fn finish(result: Result<(), HttpError>, output: Output) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let code = error.exit_code();
    // If the terminal is gone there is nobody left to tell; the exit code still says it.
    if error.is_silent() {
        return ExitCode::from(code);
    }
    if output.json {
        let _ = output.show(&ErrorBody { error: error.to_api_error() }, |e| e.error.to_string());
    } else {
        let _ = writeln!(io::stderr(), "error: {error}");
    }
    ExitCode::from(code)
}

/// Runs async work on a new runtime, for `run`.
///
/// # Errors
/// The work's, or [`HttpError::System`] if there is no runtime to be had.
pub fn block_on(work: impl std::future::Future<Output = Result<(), HttpError>>) -> Result<(), HttpError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| HttpError::System { action: "start the runtime", source })?;
    let result = runtime.block_on(work);
    // All work is done; a thread may still hang on a watcher's folder.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    result
}

/// Asks the process to stop and waits until it has.
///
/// # Errors
/// The request's; [`HttpError::StillWaiting`] after two minutes.
pub fn stop(client: &ApiClient, output: Output) -> Result<(), HttpError> {
    const PATIENCE_SECS: u64 = 120;
    let file = client.data_dir().join(super::API_ADDRESS_FILE);
    let answer: serde_json::Value = client.post("/v1/stop", &serde_json::json!({}))?;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(PATIENCE_SECS);
    while file.exists() {
        if std::time::Instant::now() > until {
            let (what, state) = ("the process".into(), "stopping".into());
            return Err(HttpError::StillWaiting { what, state, secs: PATIENCE_SECS });
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    output.show(&answer, |_| "stopped".into())
}
