//! Logs go to stderr, so that stdout stays the answer of a command.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts logging; `RUST_LOG` chooses what (`info` if it is unset or wrong).
pub fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
    if started.is_err() {
        tracing::debug!("logging was set up before");
    }
}
