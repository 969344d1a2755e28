//! Settings of the two programs: the file, and the environment behind a NUL.

use std::path::PathBuf;
use std::sync::OnceLock;

use ldk_node_ext::fuzzing;

#[path = "../../client-app/src/cli/settings.rs"]
mod client;
#[path = "../../lsp-server/src/settings.rs"]
mod lsp;

/// A directory for the config file, gone with the process.
fn dir() -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().expect("a temporary directory")).path().to_owned()
}

/// What is common to both, and then each program as it starts.
pub fn settings(text: &str) {
    fuzzing::settings(text);
    // A name would be looked up.
    if text.to_lowercase().contains("bitcoind_rpc") {
        return;
    }
    let (file, environment) = text.split_once('\0').unwrap_or((text, ""));
    std::fs::write(dir().join("config.toml"), file).expect("writes");
    for prefix in [lsp::PREFIX, client::PREFIX] {
        let variables = environment.lines().filter_map(|line| line.split_once('='));
        // `CONFIG` would name another file.
        let variables = variables.filter(|(name, _)| !name.eq_ignore_ascii_case("app_config"));
        let named = |(name, value): (&str, &str)| (name.replacen("APP", prefix, 1), value.to_owned());
        let variables: Vec<_> = variables.map(named).collect();
        let config = match prefix {
            lsp::PREFIX => lsp::resolve(lsp::RunArgs::default(), dir(), variables),
            _ => client::resolve(client::RunArgs::default(), dir(), variables),
        };
        match config {
            Ok((config, _)) => config.validate().expect("what is resolved keeps the limits"),
            Err(error) => drop(error.to_string()),
        }
    }
}
