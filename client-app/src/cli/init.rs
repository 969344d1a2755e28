//! `init`: seed and config file of a new wallet.

use std::path::PathBuf;

use client_app::FactoryClient;
use ldk_node_ext::http::cli::CommonSettings;
use ldk_node_ext::http::{create_data_dir, write_private, HttpError};
use ldk_node_ext::ErrorKind;
use serde::Serialize;

use super::settings::{configure, merge, ClientAppSettings, RunArgs};

/// What `init` has done.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Made {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The config file in it.
    pub config: PathBuf,
    /// Whether the seed is new; one that was there is kept.
    pub new_seed: bool,
}

/// Checks the settings, makes a seed unless there is one, and writes the settings given into
/// `config.toml`.
///
/// # Errors
/// [`HttpError`]: a wrong setting, or a config file that is there already; then nothing was changed.
pub fn init(
    args: RunArgs,
    data_dir: PathBuf,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Made, HttpError> {
    let config = data_dir.join("config.toml");
    if config.exists() {
        let text = format!("{} is there already; edit it, or choose another --data-dir", config.display());
        return Err(HttpError::Outcome(text));
    }
    let (mut common, own) = merge(args, &data_dir, variables)?;
    configure(&common, &own, data_dir.clone())?;
    if let Some(cookie) = &common.bitcoind_cookie {
        let absolute = std::path::absolute(cookie).map_err(HttpError::file("find", cookie))?;
        common.bitcoind_cookie = Some(absolute);
    }
    let text = config_text(&common, &own)?;
    create_data_dir(&data_dir)?;
    let new_seed = match FactoryClient::init(&data_dir) {
        Ok(()) => true,
        Err(client_app::Error::Node(e)) if e.kind() == ErrorKind::Conflict => false,
        Err(client_app::Error::Node(e)) => return Err(e.into()),
        Err(e) => return Err(HttpError::Outcome(e.to_string())),
    };
    write_private(&config, &text)?;
    Ok(Made { data_dir, config, new_seed })
}

fn config_text(common: &CommonSettings, own: &ClientAppSettings) -> Result<String, HttpError> {
    let fault = |e: toml::ser::Error| HttpError::Outcome(format!("cannot write the settings as TOML: {e}"));
    let settings = toml::to_string(common).map_err(fault)? + &toml::to_string(own).map_err(fault)?;
    Ok(format!("# Settings of this wallet; `client-app run --help` lists them all (--poll-ms is poll_ms here).\n{settings}"))
}

/// The outcome as text.
pub fn text(made: &Made) -> String {
    let seed = match made.new_seed {
        true => "made a new seed: back it up, all money of this wallet depends on it",
        false => "kept the seed that was there",
    };
    let dir = made.data_dir.display();
    format!("{seed}\nwrote {}\nnext: client-app run --data-dir {dir}", made.config.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::resolve;
    use std::os::unix::fs::PermissionsExt;

    fn args() -> RunArgs {
        let id = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        let mut args = RunArgs::default();
        args.client.lsp = Some(format!("{id}@127.0.0.1:9735").parse().unwrap());
        args.common.bitcoind_user = Some("u".into());
        args.common.bitcoind_pass = Some("quote \" and \\".into());
        args.common.poll_ms = Some(200);
        args.client.max_clients = Some(12);
        args
    }

    #[test]
    fn what_init_writes_run_reads() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("wallet");
        let made = init(args(), data_dir.clone(), []).unwrap();
        assert!(made.new_seed);
        let mode = std::fs::metadata(&made.config).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "it holds a password");
        let (written, _) = resolve(RunArgs::default(), data_dir.clone(), []).unwrap();
        let (wanted, _) = resolve(args(), data_dir.clone(), []).unwrap();
        assert_eq!(format!("{written:?}"), format!("{wanted:?}"));
        assert!(init(args(), data_dir, []).is_err(), "a second time");
    }

    #[test]
    fn wrong_settings_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("wallet");
        let mut wrong = args();
        wrong.client.max_clients = Some(1);
        let e = init(wrong, data_dir.clone(), []).unwrap_err().to_string();
        assert!(e.contains("max_clients = 1"), "{e}");
        assert!(!data_dir.exists());
    }

    #[test]
    fn a_restored_seed_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        FactoryClient::init(dir.path()).unwrap();
        assert!(!init(args(), dir.path().to_owned(), []).unwrap().new_seed);
    }
}
