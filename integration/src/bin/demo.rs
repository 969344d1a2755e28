//! `demo --out FOLDER`: runs the demo and writes `FOLDER/summary.json`. Exit code 0 only if every check holds.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

/// A channel factory on regtest: born, paid through, closed, and left by one client alone.
#[derive(Parser)]
struct Arguments {
    /// Where data, logs and summary.json go.
    #[arg(long, default_value = "target/demo")]
    out: PathBuf,
}

fn main() -> Result<ExitCode> {
    let out = Arguments::parse().out;
    std::fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    let file = out.join("summary.json");
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old {}", file.display()))
        }
        _ => {}
    }
    let summary = integration::demo::run(&out);
    std::fs::write(&file, serde_json::to_string_pretty(&summary)? + "\n")
        .with_context(|| format!("write {}", file.display()))?;
    let failed: Vec<&str> = summary.checks.iter().filter(|c| !c.ok).map(|c| c.name.as_str()).collect();
    println!("{} checks, {} failed; {}", summary.checks.len(), failed.len(), file.display());
    for name in &failed {
        println!("  failed: {name}");
    }
    let good = failed.is_empty() && !summary.checks.is_empty();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
