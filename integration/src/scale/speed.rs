//! Payments through factory channels against payments through ordinary ones: the same LSP, the same node on the other
//! side, in one run, and in turns, so that a busy machine hits both.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Result};

use super::usage::Usage;
use crate::wait::{self, Seen};
use crate::world::PATIENCE;
use crate::{Bitcoind, Daemon, Lsp, World};

/// Capacity of each channel, sat.
const CAPACITY: u64 = 200_000;
/// Amount of a payment, msat.
const AMOUNT: u64 = 10_000;
/// Turns that each kind of channel gets.
const TURNS: usize = 3;

/// Speed of one kind of channel at one number of payments at a time.
#[derive(Clone, Debug)]
pub struct Speed {
    /// `factory` or `ordinary`.
    pub kind: String,
    /// Payments under way at a time, each from and to another node.
    pub at_once: usize,
    /// Payments.
    pub payments: usize,
    /// Of them a second.
    pub per_sec: f64,
    /// Half of them took at most this long from the order to the payer's proof, ms.
    pub p50_ms: f64,
    /// 95 of 100 of them did.
    pub p95_ms: f64,
    /// CPU of the LSP for one payment, ms.
    pub lsp_ms: f64,
}

#[derive(Default)]
struct Sum {
    times: Vec<Duration>,
    elapsed: Duration,
    lsp: Duration,
}

/// Measures with `nodes` nodes of each kind, one payment at a time and `nodes` at a time.
///
/// # Errors
/// If a channel does not become usable or a payment fails.
pub fn speed(nodes: usize, payments: usize) -> Result<Vec<Speed>> {
    println!("  starting {nodes} clients and {nodes} ordinary nodes");
    let world = World::start("speed", nodes)?;
    let others = ordinary(&world, nodes)?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, None))?;
    println!("  factory {} is active, ordinary channels are usable", factory.instance_id);
    let clients: Vec<&Daemon> = world.clients.iter().map(|client| -> &Daemon { client }).collect();
    let others: Vec<&Daemon> = others.iter().map(|node| -> &Daemon { node }).collect();

    let cases = [
        ("factory", &clients, 1),
        ("ordinary", &others, 1),
        ("factory", &clients, nodes),
        ("ordinary", &others, nodes),
    ];
    let mut sums: Vec<Sum> = cases.iter().map(|_| Sum::default()).collect();
    // Once around to begin with, so that everybody has paid and been paid.
    for nodes in [&clients, &others] {
        measure(&world, nodes, nodes.len(), nodes.len(), &mut Sum::default())?;
    }
    for _ in 0..TURNS {
        for ((_, nodes, at_once), sum) in cases.iter().zip(&mut sums) {
            let count = if *at_once == 1 { payments.div_ceil(4) } else { payments };
            measure(&world, nodes, count.div_ceil(TURNS), *at_once, sum)?;
        }
    }
    let speeds = cases.iter().zip(sums).map(|((kind, _, at_once), mut sum)| {
        sum.times.sort_unstable();
        let count = sum.times.len();
        let at = |percent: usize| {
            sum.times.get(count * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Speed {
            kind: (*kind).to_owned(),
            at_once: *at_once,
            payments: count,
            per_sec: count as f64 / sum.elapsed.as_secs_f64(),
            p50_ms: at(50),
            p95_ms: at(95),
            lsp_ms: sum.lsp.as_secs_f64() * 1e3 / count as f64,
        }
    });
    let speeds = speeds.collect();
    world.finish();
    Ok(speeds)
}

/// Ordinary nodes, each with one channel to the LSP, half of it on each side.
fn ordinary(world: &World, count: usize) -> Result<Vec<Lsp>> {
    let mut nodes = Vec::with_capacity(count);
    let mut payments = Vec::with_capacity(count);
    for n in 0..count {
        let node = Lsp::start_as(&format!("ordinary-{n}"), world.path(), &world.bitcoind, &[])?;
        payments.push((Bitcoind::parse_address(&node.address()?)?, 2 * CAPACITY));
        nodes.push(node);
    }
    world.bitcoind.fund(&payments)?;
    for node in &nodes {
        node.wait_synced(&world.bitcoind)?;
        node.open_channel(world.lsp.node_id(), world.lsp.listen(), CAPACITY, CAPACITY / 2)?;
    }
    wait::until_value(
        "the ordinary channels' funding transactions",
        PATIENCE,
        || world.bitcoind.mempool(),
        |all| all.len() == count,
    )?;
    world.mine(6)?;
    for node in &nodes {
        wait::until("an ordinary channel to be usable on both sides", PATIENCE, || {
            let own = node.channels()?.first().is_some_and(|channel| channel.usable);
            let theirs = world.lsp.channels()?;
            let theirs = theirs.iter().any(|channel| channel.peer == node.node_id() && channel.usable);
            Ok(if own && theirs { Seen::Done(()) } else { Seen::NotYet(format!("{own} {theirs}")) })
        })?;
    }
    Ok(nodes)
}

/// Makes `count` payments around the ring of `nodes`, `at_once` at a time. Invoices are made before.
fn measure(world: &World, nodes: &[&Daemon], count: usize, at_once: usize, sum: &mut Sum) -> Result<()> {
    let mut orders = Vec::with_capacity(count);
    for n in 0..count {
        let (Some(from), Some(to)) = (nodes.get(n % nodes.len()), nodes.get((n + 1) % nodes.len())) else {
            bail!("no nodes")
        };
        orders.push((from, to.invoice(AMOUNT, "speed")?.invoice));
    }
    let lsp = Usage::of(world.lsp.process_id()?)?;
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let clock = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((from, invoice)) = orders.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let clock = Instant::now();
                    let result = from.pay(invoice).map(|payment| (payment, clock.elapsed()));
                    if let Ok(mut results) = results.lock() {
                        results.push(result);
                    }
                }
            });
        }
    });
    sum.elapsed += clock.elapsed();
    sum.lsp += Usage::of(world.lsp.process_id()?)?.cpu - lsp.cpu;
    for result in results.into_inner().map_err(|_| anyhow!("a payment thread panicked"))? {
        let (payment, time) = result?;
        if payment.status != "succeeded" {
            bail!("a payment {}: {:?}", payment.status, payment.failure);
        }
        sum.times.push(time);
    }
    Ok(())
}

impl Speed {
    /// The table of all speeds.
    pub fn table(all: &[Self]) -> String {
        let mut text = format!(
            "{:>9} {:>7} {:>8} {:>8} {:>8} {:>8} {:>10}\n",
            "channels", "at once", "payments", "/s", "p50 ms", "p95 ms", "LSP ms CPU"
        );
        for Self { kind, at_once, payments, per_sec, p50_ms, p95_ms, lsp_ms } in all {
            text += &format!(
                "{kind:>9} {at_once:>7} {payments:>8} {per_sec:>8.1} {p50_ms:>8.0} {p95_ms:>8.0} {lsp_ms:>10.1}\n"
            );
        }
        text
    }
}
