//! What a process has used, from `/proc`, and what went over its connections, from `ss` and its own metrics.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{anyhow, Context, Result};

use crate::Daemon;

/// Ticks of `/proc/PID/stat` in a second (`USER_HZ`, 100 on every Linux that Rust supports).
const TICKS: u64 = 100;

/// CPU and memory of a process.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time since its start, in hundredths of a second.
    pub cpu: Duration,
    /// The most memory it has had (`VmHWM`), MiB.
    pub peak_mib: f64,
}

impl Usage {
    /// Of a process that runs.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn of(id: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).context("CPU time of a process")?;
        // The name, in brackets, may hold anything; the fields after it are numbers (proc(5): 14 and 15).
        let (_, fields) = stat.rsplit_once(')').ok_or_else(|| anyhow!("/proc/{id}/stat: {stat}"))?;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>())
            .sum::<Result<u64, _>>()?;
        let status = fs::read_to_string(format!("/proc/{id}/status")).context("memory of a process")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: f64 = peak
            .and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok())
            .ok_or_else(|| anyhow!("/proc/{id}/status has no VmHWM"))?;
        Ok(Self { cpu: Duration::from_millis(ticks * 1000 / TICKS), peak_mib: kib / 1024.0 })
    }
}

/// Factory messages of a node since its start: number and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// To peers.
    pub sent: (u64, u64),
    /// From peers.
    pub received: (u64, u64),
}

/// What a node counts itself.
///
/// # Errors
/// If the call fails or a figure is missing.
pub fn factory_traffic(daemon: &Daemon) -> Result<Traffic> {
    let text = daemon.api()?.text("/metrics")?;
    let figure = |name: &str, direction: &str| {
        let start = format!("{name}_total{{direction=\"{direction}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok());
        value.ok_or_else(|| anyhow!("no {start:?} in the metrics of {}", daemon.name()))
    };
    let of = |direction: &str| {
        Ok::<_, anyhow::Error>((
            figure("factory_messages", direction)?,
            figure("factory_message_bytes", direction)?,
        ))
    };
    Ok(Traffic { sent: of("out")?, received: of("in")? })
}

/// Bytes over all connections of a listening address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketBytes {
    /// From it.
    pub sent: u64,
    /// To it.
    pub received: u64,
}

/// What the kernel has counted of the connections that stand now; none without `ss`.
pub fn socket_bytes(listen: &str) -> Option<SocketBytes> {
    let port = listen.rsplit_once(':')?.1;
    let filter = format!("sport = :{port}");
    let output = Command::new("ss").args(["-tinH", "state", "established", &filter]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    let mut bytes = SocketBytes::default();
    for word in text.split_whitespace() {
        if let Some(sent) = word.strip_prefix("bytes_sent:") {
            bytes.sent += sent.parse::<u64>().ok()?;
        } else if let Some(received) = word.strip_prefix("bytes_received:") {
            bytes.received += received.parse::<u64>().ok()?;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_time_and_memory() {
        let own = Usage::of(std::process::id()).unwrap();
        assert!(own.peak_mib > 0.5 && own.peak_mib < 10_000.0, "{own:?}");
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed() < Duration::from_millis(300) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(Usage::of(std::process::id()).unwrap().cpu > own.cpu);
    }
}
