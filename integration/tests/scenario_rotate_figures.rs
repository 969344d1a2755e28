//! What rotations cost, and a hundred of one factory under load.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay_all, pay_meanwhile, Order, Party};
use integration::{rotate, Daemon, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 1_000_000;
/// The client whose nodes rotate.
const MOVER: usize = 0;

fn there(amount_msat: u64) -> Order {
    Order { from: Party::Client(MOVER), to: Party::Client(1), amount_msat }
}

fn back(amount_msat: u64) -> Order {
    Order { from: Party::Client(1), to: Party::Client(MOVER), amount_msat }
}

/// Asks for a rotation and waits until the LSP shows the next position; how long it took.
fn timed(world: &World, id: &str, level: &str) -> Result<Duration> {
    let node = world.client(MOVER)?.node_id().to_owned();
    let before = rotate::leaf(world, id, &node)?.position;
    let start = Instant::now();
    rotate::ask_at(world, id, &node, &json!(level))?;
    loop {
        let leaf = rotate::leaf(world, id, &node)?;
        if leaf.position > before && leaf.rotating.is_none() {
            return Ok(start.elapsed());
        }
        if let Some(failure) = leaf.failure {
            bail!("{level}: {failure}");
        }
        if start.elapsed() > Duration::from_secs(120) {
            bail!("{level}: still at {before}: {leaf:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A hundred rotations of one factory, of leaf and branch, while payments run both ways without a pause: none fails, and
/// after each ten all balances are right.
#[test]
#[ignore = "long: make figures"]
fn a_hundred_rotations_under_load() -> Result<()> {
    let world = World::start("rotate-hundred", 4)?;
    let layers: Value = json!([[], [[16, 2, 4]], [[8, 2, 0]]]);
    let params = json!({ "arity": [2, 2], "layers": layers });
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params));
    let id = world.create_factory(&request)?.instance_id;
    let node = world.client(MOVER)?.node_id().to_owned();
    let start = Snapshot::take(&world)?;
    let (mut paid, mut took) = (Vec::new(), Vec::new());
    while took.len() < 100 {
        let until = took.len() + 10;
        let made = pay_meanwhile(&world, &[there, there, back, back], 1_000_001, |count| {
            let leaf = rotate::leaf(&world, &id, &node)?;
            if took.len() < until {
                took.push(timed(&world, &id, if leaf.left > 0 { "leaf" } else { "branch" })?);
            }
            Ok(took.len() == until && count >= 4)
        })?;
        paid.extend(made);
        wait_for(&world, &start.after(&paid)?)?;
    }
    took.sort();
    println!(
        "100 rotations under load: median {} ms, longest {} ms; {} payments, none failed",
        took[50].as_millis(),
        took[99].as_millis(),
        paid.len()
    );
    world.finish();
    Ok(())
}

/// How long an advance takes: of a leaf alone, and of a node with all clients below it.
#[test]
#[ignore = "long: make figures"]
fn how_long_an_advance_takes() -> Result<()> {
    for clients in [8, 32] {
        let world = World::start(&format!("rotate-time-{clients}"), clients)?;
        let params = json!({ "arity": [clients], "layers": [[[8, 4, 8]], [[8, 4, 0]]] });
        let request = world.factory_request(CAPACITY / 4, CAPACITY / 8, 0, Some(params));
        let id = world.create_factory(&request)?.instance_id;
        let mut figures = Vec::new();
        for level in ["leaf", "root"] {
            let mut took = (0..5).map(|_| timed(&world, &id, level)).collect::<Result<Vec<_>>>()?;
            took.sort();
            figures.push(format!("{level} {} ms", took[2].as_millis()));
        }
        println!("{clients} clients, median of 5: {}", figures.join(", "));
        world.finish();
    }
    Ok(())
}

/// Payments a second before a channel has moved, and with companions for one to eight outpoints, in one run.
#[test]
#[ignore = "long: make figures"]
fn what_companions_cost() -> Result<()> {
    const PAYMENTS: usize = 60;
    let world = World::start("rotate-cost", 2)?;
    let params = json!({ "arity": [2], "layers": [[], [[8, 4, 8], [8, 4, 0]]] });
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params));
    let id = world.create_factory(&request)?.instance_id;
    let orders: Vec<Order> =
        (0..PAYMENTS).map(|i| if i % 2 == 0 { there(10_001) } else { back(10_001) }).collect();
    for rotations in [0, 1, 3, 4] {
        for _ in 0..rotations {
            rotate::once(&world, &id, MOVER)?;
            rotate::once(&world, &id, 1)?;
        }
        let start = Instant::now();
        pay_all(&world, &orders, 8)?;
        let node = world.client(MOVER)?.node_id();
        let outpoints = rotate::leaf(&world, &id, node)?.superseded;
        let rate = PAYMENTS as f64 / start.elapsed().as_secs_f64();
        println!("companions for {outpoints} outpoints: {rate:.1} payments a second");
    }
    world.finish();
    Ok(())
}

/// Bytes of all files of a folder, with what is below it.
fn size(folder: &Path) -> Result<u64> {
    let mut all = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        all += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(all)
}

/// What a node stores that grows by rotations, in bytes.
fn stored(daemon: &Daemon) -> Result<BTreeMap<&'static str, u64>> {
    let root = daemon.data_dir().join("node.files");
    let of = |name: &&'static str| {
        let folder = root.join(name);
        Ok((*name, if folder.is_dir() { size(&folder)? } else { 0 }))
    };
    ["factories", "virtual_outpoints", "commitments", "retired_monitors"].iter().map(of).collect()
}

/// What a rotation adds to what the client and the LSP store, and that payments add nothing to it.
#[test]
#[ignore = "long: make figures"]
fn what_a_rotation_stores() -> Result<()> {
    const ROTATIONS: u64 = 6;
    let world = World::start_with("rotate-bytes", 2, &["--store", "filesystem"])?;
    let params = json!({ "arity": [2], "layers": [[], [[8, 4, 8], [8, 4, 0]]] });
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params));
    let id = world.create_factory(&request)?.instance_id;
    let orders: Vec<Order> = (0..20).map(|i| if i % 2 == 0 { there(10_001) } else { back(10_001) }).collect();
    let both = || -> Result<_> {
        wait_at_rest(&world)?;
        Ok([("client", stored(world.client(MOVER)?)?), ("LSP", stored(&world.lsp)?)])
    };
    // Whoever has rotated once has a table for it, and both directions have been used.
    rotate::once(&world, &id, MOVER)?;
    pay_all(&world, &orders, 4)?;
    let before = both()?;
    for _ in 0..ROTATIONS {
        rotate::once(&world, &id, MOVER)?;
        pay_all(&world, &orders[..2], 1)?;
    }
    let rotated = both()?;
    for _ in 0..4 {
        pay_all(&world, &orders, 4)?;
    }
    let paid = both()?;
    for ((who, before), ((_, rotated), (_, paid))) in before.iter().zip(rotated.iter().zip(&paid)) {
        for (name, bytes) in rotated {
            let first = before.get(name).context("no such folder")?;
            let last = paid.get(name).context("no such folder")?;
            println!(
                "{who} {name}: {first} B before, {} B a rotation, {last} B after 80 payments more ({bytes} B before them)",
                bytes.saturating_sub(*first) / ROTATIONS
            );
            // A balance of more digits may take a byte or two.
            assert!(last.abs_diff(*bytes) < 64, "{who} {name}: {bytes} B have become {last} B by payments");
        }
    }
    world.finish();
    Ok(())
}
