//! `checks [PART OF A SWITCH'S NAME]`: leaves out one protection after the other and demands that the test that guards
//! it fails. Exit code 0 only if every one did.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use integration::checks::{self, Verdict};

/// Checks the checks: with one protection left out, the test that guards it has to fail.
#[derive(Parser)]
struct Arguments {
    /// Only switches whose name has this in it.
    #[arg(default_value = "")]
    part: String,
    /// Only scenarios.
    #[arg(long)]
    scenarios: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let chosen = checks::all().filter(|c| c.switch.contains(&arguments.part));
    let chosen: Vec<_> = chosen.filter(|c| c.is_scenario() || !arguments.scenarios).collect();
    let mut bad = Vec::new();
    println!("{:>9}  {:<27}  {:<18}  {:<60}  {:<9}  seconds", "invariant", "switch", "in", "test", "noticed");
    for check in &chosen {
        let start = Instant::now();
        let verdict = check.run();
        let noticed = matches!(verdict, Ok(Verdict::Noticed));
        println!(
            "{:>9}  {:<27}  {:<18}  {:<60}  {:<9}  {:.1}",
            check.invariant(),
            check.switch,
            check.armed.join(","),
            format!(
                "{} {} {}",
                check.program,
                check.test.rsplit("::").next().unwrap_or_default(),
                check.crash
            ),
            if noticed { "yes" } else { "NO" },
            start.elapsed().as_secs_f64()
        );
        if !noticed {
            bad.push((check, verdict));
        }
    }
    for (check, verdict) in &bad {
        println!("\n{} in {} {}:", check.switch, check.program, check.test);
        match verdict {
            Ok(Verdict::Noticed) => {}
            Ok(Verdict::Unnoticed) => println!("the test passed although the protection was missing"),
            Ok(Verdict::Otherwise(said)) => println!("failed, but without {:?}: {said}", check.says),
            Err(e) => println!("{e:#}"),
        }
    }
    println!("{} checks, {} did not notice", chosen.len(), bad.len());
    Ok(if bad.is_empty() && !chosen.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
