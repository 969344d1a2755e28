//! `watch` and `watch-status`: guarding leaves by their exit files, or by what comes through shared folders. No wallet
//! of the client is needed, and none of the LSP.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{signal, SignalKind};

use super::{bad, set, CommonSettings, Layers, Output, Settings};
use crate::http::HttpError;
use crate::watch::{ExitFile, LeafStatus, WatchStatus, Watcher, WatcherConfig};

/// Begin of every environment variable of a watcher.
pub const PREFIX: &str = "EXIT_WATCH";
/// A watcher's data directory unless told otherwise, below the home directory.
pub const DATA_DIR: &str = ".exit-watch";
/// Digits of an id that are shown.
const SHOWN_DIGITS: usize = 12;

crate::settings! {
    /// Settings that only a watcher has.
    #[derive(Debug)]
    pub struct WatchSettings {
        /// Most fees for the transactions of one leaf, sat [default: only the feerate is bounded]
        #[arg(value_name = "SAT")]
        pub max_fee_sat: u64,
    }
}

/// Flags of `watch`.
#[derive(Args, Clone, Default)]
pub struct WatchArgs {
    /// Exit files, written by `export-exit`; none is needed with a folder
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Config file [default: config.toml in the data directory, if it is there]
    #[arg(long, value_name = "CONFIG")]
    pub config: Option<PathBuf>,
    /// Settings of every program; a watcher has neither an API nor a Lightning port.
    #[command(flatten)]
    pub common: CommonSettings,
    /// Settings of the watcher.
    #[command(flatten)]
    pub watch: WatchSettings,
}

/// Puts flags, environment and config file together, and reads the exit files.
///
/// # Errors
/// [`HttpError`] naming the setting or the file, and what is wrong with it.
pub fn configure(
    args: WatchArgs,
    data_dir: PathBuf,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<(WatcherConfig, Vec<ExitFile>), HttpError> {
    let known = [CommonSettings::KEYS, WatchSettings::KEYS];
    let layers = Layers::load(PREFIX, variables, args.config.as_deref(), &data_dir, &known)?;
    let common = CommonSettings::resolve(args.common, &layers)?;
    let own: WatchSettings = layers.resolve(args.watch)?;
    let unused = [
        ("listen", common.listen.map(|v| v.to_string())),
        ("api", common.api.map(|v| v.to_string())),
        ("dangerously_expose_api", common.dangerously_expose_api.map(|v| v.to_string())),
        ("alias", common.alias.clone()),
        ("store", common.store.map(|v| format!("{v:?}").to_lowercase())),
        ("exit_max_fee_sat", common.exit_max_fee_sat.map(|v| v.to_string())),
        ("watchers", common.watchers.as_ref().map(ToString::to_string)),
        ("watchers_required", common.watchers_required.map(|v| v.to_string())),
        ("watchers_wait_secs", common.watchers_wait_secs.map(|v| v.to_string())),
        ("claim_margin_blocks", common.claim_margin_blocks.map(|v| v.to_string())),
    ];
    if let Some((key, Some(value))) = unused.into_iter().find(|(_, value)| value.is_some()) {
        return Err(bad(key, value, "a watcher has no use for it"));
    }
    let mut config = WatcherConfig::new(data_dir, common.network(), common.rpc()?, common.auth()?);
    set(&mut config.poll_interval, common.poll_ms.map(Duration::from_millis));
    set(&mut config.fallback_feerate_sat_per_vb, common.fallback_feerate_sat_per_vb);
    set(&mut config.max_feerate_sat_per_vb, common.max_feerate_sat_per_vb);
    config.max_fee_sat = own.max_fee_sat;
    config.folders = common.watch_folders.map(|f| f.0).unwrap_or_default();
    config.validate()?;
    let files = args.files.iter().map(|file| ExitFile::read(file)).collect::<Result<_, _>>()?;
    Ok((config, files))
}

/// Runs a watcher until SIGTERM or SIGINT, and prints what changes.
///
/// # Errors
/// [`HttpError`]: the watcher's start; [`HttpError::NodeEnded`] if it ends by a fault.
pub async fn run(config: WatcherConfig, files: Vec<ExitFile>, output: Output) -> Result<(), HttpError> {
    let handler = |e: io::Error| HttpError::System { action: "install a signal handler", source: e };
    let mut terminate = signal(SignalKind::terminate()).map_err(handler)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(handler)?;
    let watcher = tokio::select! {
        watcher = Watcher::start(config, files) => watcher?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let mut status = watcher.status();
    let mut said: Vec<String> = Vec::new();
    let ended = loop {
        let now = status.borrow_and_update().clone();
        let lines = lines(&now);
        if lines != said {
            let new: Vec<&String> = lines.iter().filter(|line| !said.contains(line)).collect();
            let text = |s: &WatchStatus| {
                new.iter().map(|line| format!("height {}: {line}\n", s.height)).collect::<String>()
            };
            // Guarding goes on when nobody reads any more; the status file says the same.
            let _ = output.line(&now, text);
            said = lines;
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { break true },
            () = watcher.stopped() => break true,
            _ = terminate.recv() => break false,
            _ = interrupt.recv() => break false,
        }
    };
    watcher.stop().await;
    match ended {
        true => Err(HttpError::NodeEnded { reason: None }),
        false => Ok(()),
    }
}

/// Prints the status that the watcher of a data directory has written last.
///
/// # Errors
/// [`HttpError::Node`] if there is none.
pub fn show(data_dir: &Path, output: Output) -> Result<(), HttpError> {
    let status = WatchStatus::read(data_dir)?;
    output.show(&status, |s| {
        let behind = if s.synced { "" } else { ", bitcoind does not answer or has more" };
        let head = format!("height {}{behind}, written at {} (Unix time)", s.height, s.written_at);
        std::iter::once(head).chain(lines(s)).collect::<Vec<_>>().join("\n")
    })
}

/// The fee wallet and the leaves, a line each.
fn lines(status: &WatchStatus) -> Vec<String> {
    std::iter::once(wallet_line(status)).chain(status.leaves.iter().map(leaf_line)).collect()
}

fn wallet_line(status: &WatchStatus) -> String {
    let wallet = &status.fee_wallet;
    let holds = match wallet.unconfirmed_sat {
        0 => format!("{} sat", wallet.confirmed_sat),
        more => format!("{} sat and {more} sat unconfirmed", wallet.confirmed_sat),
    };
    let text = format!("fee wallet {}: holds {holds}, needs {} sat", wallet.address, wallet.needed_sat);
    match wallet.missing_sat() {
        0 => text,
        missing => {
            format!("{text} at the present feerate: WARNING, {missing} sat are missing, pay them there")
        }
    }
}

fn leaf_line(leaf: &LeafStatus) -> String {
    let short = |id: &str| id.chars().take(SHOWN_DIGITS).collect::<String>();
    let spent = match leaf.spent_sat {
        0 => String::new(),
        sat => format!(" (fees so far {sat} sat)"),
    };
    format!(
        "factory {}, node {}, position {}: {}{spent}",
        short(&leaf.instance_id),
        short(&leaf.node_id),
        leaf.position,
        leaf.next
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> WatchArgs {
        let mut args = WatchArgs::default();
        args.common.bitcoind_cookie = Some("/c".into());
        args
    }

    fn fails(args: WatchArgs) -> String {
        let dir = tempfile::tempdir().unwrap();
        configure(args, dir.path().to_owned(), []).unwrap_err().to_string()
    }

    #[test]
    fn settings_come_from_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), "max_fee_sat = 7\npoll_ms = 300").unwrap();
        let variables = [("EXIT_WATCH_POLL_MS".to_owned(), "200".to_owned())];
        let (config, files) = configure(args(), dir.path().to_owned(), variables).unwrap();
        assert_eq!((config.max_fee_sat, config.poll_interval), (Some(7), Duration::from_millis(200)));
        assert!(files.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mut wrong = args();
        wrong.common.alias = Some("x".into());
        assert!(fails(wrong).contains("alias = x"));
        let mut wrong = args();
        wrong.common.poll_ms = Some(1);
        assert!(fails(wrong).contains("poll_interval"));
        let missing = WatchArgs { files: vec!["/nothing/here".into()], ..args() };
        assert!(fails(missing).contains("/nothing/here"));
    }
}
