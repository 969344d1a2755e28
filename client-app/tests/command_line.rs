//! The binary from outside: `init`, the config file it writes, and errors.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(feature = "cli")]

use std::path::Path;
use std::process::{Command, Output};

const LSP: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798@127.0.0.1:9735";

/// Runs the binary with a clean environment.
fn client_app(data_dir: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_client-app"))
        .env_clear()
        .envs(environment.iter().copied())
        .args(args)
        .arg("--data-dir")
        .arg(data_dir)
        .output()
        .unwrap()
}

#[test]
fn init_makes_a_wallet_once() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("wallet");
    let args = ["init", "--json", "--lsp", LSP, "--bitcoind-user", "u", "--network", "regtest"];
    let made = client_app(&data_dir, &args, &[("CLIENT_APP_BITCOIND_PASS", "p")]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(answer["new_seed"], true);

    let config = std::fs::read_to_string(data_dir.join("config.toml")).unwrap();
    let config: toml::Table = toml::from_str(&config).unwrap();
    assert_eq!(config["lsp"].as_str(), Some(LSP));
    assert_eq!(config["network"].as_str(), Some("regtest"));
    assert_eq!(config["bitcoind_pass"].as_str(), Some("p"));

    let before = std::fs::read(data_dir.join("seed")).unwrap();
    let again = client_app(&data_dir, &args, &[("CLIENT_APP_BITCOIND_PASS", "q")]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(std::fs::read(data_dir.join("seed")).unwrap(), before);
}

#[test]
fn init_names_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("wallet");
    let output = client_app(&data_dir, &["init", "--bitcoind-cookie", "/c"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("lsp is not set"));
    assert!(!data_dir.exists());
}

#[test]
fn commands_need_a_running_wallet() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["info", "exit", "close", "stop", "factories"] {
        let output = client_app(dir.path(), &[command], &[]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("nothing runs in"), "{command}");
    }
}
