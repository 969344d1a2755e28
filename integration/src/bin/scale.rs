//! `scale`: factories of many clients, and the speed of payments, with every node a process of its own.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use clap::Parser;
use integration::scale::{self, Row, Speed};

/// Prints what factories of many clients take, and how fast their channels pay.
#[derive(Parser)]
struct Arguments {
    /// Numbers of clients of the factories; none for none.
    #[arg(long, value_delimiter = ',', default_value = "8,32,64,128,256")]
    sizes: Vec<usize>,
    /// Payments in the largest factory; in the others two for each client.
    #[arg(long, default_value_t = 1000)]
    payments: usize,
    /// Nodes of each kind for the speed of payments; 0 to leave it out.
    #[arg(long, default_value_t = 32)]
    speed: usize,
    /// Payments of each kind there.
    #[arg(long, default_value_t = 480)]
    speed_payments: usize,
    /// Begin nothing new after so many seconds.
    #[arg(long, default_value_t = 840)]
    limit_secs: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let (clock, limit) = (Instant::now(), Duration::from_secs(arguments.limit_secs));
    let in_time = |what: &str| {
        if clock.elapsed() < limit {
            return Ok(());
        }
        bail!("{} s are over before {what}", limit.as_secs())
    };
    let mut sizes = arguments.sizes.clone();
    sizes.retain(|n| *n > 0);
    let most = sizes.iter().copied().max();
    let mut rows: Vec<Row> = Vec::new();
    for n in sizes {
        in_time(&format!("N = {n}"))?;
        let payments = if Some(n) == most { arguments.payments } else { 2 * n };
        rows.push(scale::run(n, payments)?);
        println!("\n{}", scale::table(&rows));
    }
    if arguments.speed > 0 {
        in_time("the speed of payments")?;
        println!("{}", Speed::table(&scale::speed(arguments.speed, arguments.speed_payments)?));
    }
    println!("{:.0} s in all", clock.elapsed().as_secs_f64());
    Ok(())
}
