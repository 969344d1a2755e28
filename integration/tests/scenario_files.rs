//! Everything on the filesystem store: a factory, payments, a power cut of both sides, and one client's way out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{ensure, Result};
use integration::exit;
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::wait;
use integration::world::PATIENCE;
use integration::{binaries, Daemon, World};

const CAPACITY: u64 = 400_000;
const LEAVER: usize = 1;

/// Starts a second process in a data folder and returns what it says; it has to end by itself, with an error.
fn refused(world: &World, daemon: &Daemon, kind: &str) -> Result<String> {
    let program = if daemon.name() == "lsp-server" { "lsp-server" } else { "client-app" };
    let mut command = Command::new(binaries::workspace(program)?);
    for name in binaries::settings() {
        command.env_remove(name);
    }
    command.arg("run").arg("--data-dir").arg(daemon.data_dir()).args(["--store", kind]);
    if program == "lsp-server" {
        let (user, password) = world.bitcoind.credentials();
        command.args(["--network", "regtest", "--listen", "127.0.0.1:0"]);
        command.args(["--bitcoind-rpc", world.bitcoind.rpc_address()]);
        command.args(["--bitcoind-user", user, "--bitcoind-pass", password]);
    }
    let output = command.output()?;
    ensure!(!output.status.success(), "{} ran a second time in {:?}", program, daemon.data_dir());
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// All is in files that only the owner can read, and nothing is in SQLite.
fn check_files(daemon: &Daemon) -> Result<()> {
    let root = daemon.data_dir().join("node.files");
    ensure!(!daemon.data_dir().join("node.sqlite").exists(), "{} uses SQLite", daemon.name());
    let (mut left, mut keys) = (vec![root.clone()], 0);
    while let Some(path) = left.pop() {
        let meta = match fs::metadata(&path) {
            // The process runs: what was listed may be gone.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if meta.is_dir() {
            ensure!(meta.permissions().mode() & 0o777 == 0o700, "{}", path.display());
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        } else {
            keys += 1;
        }
    }
    ensure!(keys > 5, "{} holds {keys} keys", root.display());
    Ok(())
}

#[test]
fn a_world_on_files() -> Result<()> {
    let mut world = World::start_with("files", 3, &["--store", "filesystem"])?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    let factory = world.create_factory(&request)?;
    let start = Snapshot::take(&world)?;
    let paid = [
        pay(&world, Order { from: Party::Client(0), to: Party::Client(LEAVER), amount_msat: 23_456_789 })?,
        pay(&world, Order { from: Party::Client(LEAVER), to: Party::Client(2), amount_msat: 1_000_001 })?,
    ];
    wait_for(&world, &start.after(&paid)?)?;
    let held = wait_at_rest(&world)?;
    let payments = world.client(0)?.payments()?.len();
    check_files(&world.lsp)?;
    check_files(world.client(LEAVER)?)?;

    // One process to a data folder, and one kind of store.
    let text = refused(&world, &world.lsp, "filesystem")?;
    ensure!(text.contains("another process runs in this data directory"), "{text}");
    let text = refused(&world, world.client(0)?, "filesystem")?;
    ensure!(text.contains("another process runs in this data directory"), "{text}");

    // A power cut of everybody at once, and blocks come in the meantime.
    for index in 0..world.clients.len() {
        world.client_mut(index)?.kill()?;
    }
    world.lsp.kill()?;
    let text = refused(&world, &world.lsp, "sqlite")?;
    ensure!(text.contains("must be filesystem"), "{text}");
    let text = refused(&world, world.client(0)?, "sqlite")?;
    ensure!(text.contains("must be filesystem"), "{text}");
    world.bitcoind.mine(2)?;
    world.lsp.start()?;
    for index in 0..world.clients.len() {
        world.client_mut(index)?.start()?;
    }
    world.sync()?;
    world.wait_usable(&factory)?;
    let back = wait_for(&world, &held)?;
    assert_eq!(world.client(0)?.payments()?.len(), payments, "its record of payments is another");
    let paid = [
        pay(&world, Order { from: Party::Client(2), to: Party::Client(LEAVER), amount_msat: 34_567_890 })?,
        pay(&world, Order { from: Party::Client(LEAVER), to: Party::Client(0), amount_msat: 2_000_003 })?,
    ];
    wait_for(&world, &back.after(&paid)?)?;
    let before = wait_at_rest(&world)?;

    world.lsp.kill()?;
    let report = exit::drive(&world, LEAVER, &factory.instance_id, &mut |line| println!("{line}"))?;
    report.check_wallet(CAPACITY)?;
    world.mine_for(world.client(LEAVER)?, 12)?;
    wait::until_value(
        "the client to call the factory left",
        PATIENCE,
        || Ok(world.client(LEAVER)?.factory(&factory.instance_id)?.state),
        |state| state == "exited",
    )?;

    world.lsp.start()?;
    world.sync()?;
    let leaver = world.client(LEAVER)?.node_id().to_owned();
    let mut rest = factory.clone();
    rest.clients.retain(|member| member.node_id != leaver);
    world.wait_usable(&rest)?;
    let after = exit::settle_lsp(&world, &before)?;
    for name in ["client-0", "client-2"] {
        assert_eq!(after.of(name)?, before.of(name)?, "{name} lost money");
    }
    let paid = [pay(&world, Order { from: Party::Client(0), to: Party::Client(2), amount_msat: 5_000_000 })?];
    wait_for(&world, &after.after(&paid)?)?;
    world.finish();
    Ok(())
}
