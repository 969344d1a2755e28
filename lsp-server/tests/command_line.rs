//! The binary from outside: exit codes, environment, and what is on stdout and stderr.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Output};

/// Runs the binary with a clean environment.
fn lsp_server(data_dir: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lsp-server"))
        .env_clear()
        .env("LSP_SERVER_DATA_DIR", data_dir)
        .envs(environment.iter().copied())
        .args(args)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_command_without_a_running_process_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let text = lsp_server(dir.path(), &["info"], &[]);
    assert_eq!(text.status.code(), Some(1));
    assert!(text.stdout.is_empty());
    assert!(stderr(&text).starts_with(&format!("error: nothing runs in {}", dir.path().display())));

    let json = lsp_server(dir.path(), &["info", "--json"], &[]);
    assert_eq!(json.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(answer["error"]["code"], "unavailable");
}

#[test]
fn a_wrong_setting_stops_the_start_and_leaves_no_seed() {
    let cookie = ("LSP_SERVER_BITCOIND_COOKIE", "/nowhere");
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 6] = [
        (&[], &[], "bitcoind_cookie is not set"),
        (&[], &[cookie, ("LSP_SERVER_POL_MS", "5")], "unknown setting LSP_SERVER_POL_MS"),
        (&[], &[cookie, ("LSP_SERVER_POLL_MS", "x")], "LSP_SERVER_POLL_MS = x"),
        (&["--poll-ms", "49"], &[cookie, ("LSP_SERVER_POLL_MS", "200")], "poll_ms = 49: must be from 50 ms"),
        (&["--api", "0.0.0.0:0"], &[cookie], "dangerously_expose_api"),
        (&["--config", "/nowhere.toml"], &[cookie], "cannot read /nowhere.toml"),
    ];
    for (flags, environment, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        let output = lsp_server(dir.path(), &[&["run"], flags].concat(), environment);
        assert_eq!(output.status.code(), Some(1), "{want}");
        assert!(stderr(&output).contains(want), "{want}: {}", stderr(&output));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{want}: nothing is written");
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["create-factory"][..], &["run", "--pol-ms", "5"], &["pay"], &["dance"]] {
        assert_eq!(lsp_server(dir.path(), args, &[]).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_password_is_not_repeated_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "LSP_SERVER_BITCOIND_PASS";
    let output = lsp_server(
        dir.path(),
        &["run", "--bitcoind-cookie", "/c", "--bitcoind-user", "u"],
        &[(secret, "hunter2")],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(!stderr(&output).contains("hunter2"));
    let help = lsp_server(dir.path(), &["run", "--help"], &[(secret, "hunter2")]);
    assert!(!String::from_utf8_lossy(&help.stdout).contains("hunter2"));
}
