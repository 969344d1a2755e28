//! Where the programs are that the harness starts.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, bail, Context, Result};

/// The path of one of the workspace's programs, for example `lsp-server`.
///
/// `BIN_<NAME>` in the environment (`BIN_LSP_SERVER`) comes first; else the program stands beside the one that is
/// running, as cargo builds them: `target/debug/<name>`, a test one folder below.
///
/// # Errors
/// If there is none, with the command that builds it.
pub fn workspace(name: &str) -> Result<PathBuf> {
    if let Some(path) = from_environment(name)? {
        return Ok(path);
    }
    let path = profile_folder()?.join(name);
    if !path.is_file() {
        bail!("{} is not there: run `cargo build --workspace`, or `make test`", path.display());
    }
    Ok(path)
}

/// The path of the ordinary Lightning node, `BIN_PEER` in the environment or `target/peer/<profile>/peer`.
///
/// # Errors
/// If there is none, with the command that builds it.
pub fn peer() -> Result<PathBuf> {
    if let Some(path) = from_environment("peer")? {
        return Ok(path);
    }
    let profile = profile_folder()?;
    let name = profile.file_name().ok_or_else(|| anyhow!("{} has no name", profile.display()))?;
    let target = profile.parent().ok_or_else(|| anyhow!("{} has no parent", profile.display()))?;
    let path = target.join("peer").join(name).join("peer");
    if !path.is_file() {
        bail!("{} is not there: run `make peer`", path.display());
    }
    Ok(path)
}

/// The settings in the environment that the programs under test would read (`LSP_SERVER_*`, `CLIENT_APP_*`,
/// `EXIT_WATCH_*`). They are an operator's own and must not reach a scenario's processes.
pub fn settings() -> Vec<OsString> {
    let prefixes = ["LSP_SERVER_", "CLIENT_APP_", "EXIT_WATCH_"];
    let of_a_program = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
    std::env::vars_os().map(|(name, _)| name).filter(|name| of_a_program(&name.to_string_lossy())).collect()
}

/// The path of a usable bitcoind, and the policy flags that it needs: what `scripts/bitcoind.sh` says.
///
/// # Errors
/// If the script finds and installs none; its text says what to put on PATH.
pub fn bitcoind() -> Result<(PathBuf, Vec<String>)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/bitcoind.sh");
    let run = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(&script)
            .args(arguments)
            .output()
            .with_context(|| format!("run {}", script.display()))?;
        if !output.status.success() {
            bail!("no bitcoind: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    };
    let path = PathBuf::from(run(&[])?.trim());
    let flags = run(&["--flags"])?.lines().map(str::to_owned).collect();
    Ok((path, flags))
}

fn from_environment(name: &str) -> Result<Option<PathBuf>> {
    let variable = format!("BIN_{}", name.to_uppercase().replace('-', "_"));
    match std::env::var_os(&variable) {
        None => Ok(None),
        Some(path) if Path::new(&path).is_file() => Ok(Some(path.into())),
        Some(path) => bail!("{variable} names {}, which is not there", Path::new(&path).display()),
    }
}

/// `target/debug`, from where the running program is.
fn profile_folder() -> Result<PathBuf> {
    let mut folder = std::env::current_exe().context("own path")?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder)
}
