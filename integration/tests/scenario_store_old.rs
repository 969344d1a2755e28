//! An old copy of a data directory is put back: the node notices by what its peer proves, stops, and does not start
//! with it again. The newest copy goes on as if nothing had been.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use anyhow::{ensure, Result};
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::superseded::copy;
use integration::{Daemon, World};

const CAPACITY: u64 = 400_000;

fn put_back(copy_of: &Path, data_dir: &Path) -> Result<()> {
    fs::remove_dir_all(data_dir)?;
    copy(copy_of, data_dir)
}

/// Starts it from an old copy and waits for its refusal; then once more, when it does not even come up.
fn refuses(daemon: &mut Daemon) -> Result<()> {
    // It may have met the other side before its API answered.
    let text = match daemon.start() {
        Ok(()) => daemon.wait_refusal()?,
        Err(e) => format!("{e:#}"),
    };
    ensure!(
        text.contains("this data directory is an old copy") && text.contains("newest copy back"),
        "{text}"
    );
    let text = format!("{:#}", daemon.start().unwrap_err());
    ensure!(text.contains("this data directory is an old copy"), "the second time: {text}");
    Ok(())
}

fn payments(world: &World, count: u64) -> Result<Vec<integration::ledger::Settled>> {
    let mut made = Vec::new();
    for n in 0..count {
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (Party::Client(from), Party::Client(to));
            made.push(pay(world, Order { from, to, amount_msat: 3_000_000 + 500_000 * n })?);
        }
    }
    Ok(made)
}

fn an_old_copy(kind: &str) -> Result<()> {
    let mut world = World::start_with(&format!("old-{kind}"), 2, &["--store", kind])?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    let factory = world.create_factory(&request)?;
    let start = Snapshot::take(&world)?;
    let paid = payments(&world, 1)?;
    wait_for(&world, &start.after(&paid)?)?;
    wait_at_rest(&world)?;
    let copies = tempfile::tempdir()?;

    // A client, then the LSP itself.
    for who in ["client", "lsp"] {
        let (old, newest) =
            (copies.path().join(format!("{who}-old")), copies.path().join(format!("{who}-newest")));
        let data_dir = match who {
            "client" => world.client(1)?.data_dir().to_owned(),
            _ => world.lsp.data_dir().to_owned(),
        };
        let held = wait_at_rest(&world)?;
        daemon(&mut world, who)?.kill()?;
        copy(&data_dir, &old)?;
        daemon(&mut world, who)?.start()?;
        world.wait_usable(&factory)?;
        let paid = payments(&world, 2)?;
        wait_for(&world, &held.after(&paid)?)?;
        let held = wait_at_rest(&world)?;
        daemon(&mut world, who)?.kill()?;
        copy(&data_dir, &newest)?;

        put_back(&old, &data_dir)?;
        refuses(daemon(&mut world, who)?)?;
        ensure!(world.bitcoind.mempool()?.is_empty(), "something was published from an old state");

        put_back(&newest, &data_dir)?;
        daemon(&mut world, who)?.start()?;
        world.sync()?;
        world.wait_usable(&factory)?;
        wait_for(&world, &held)?;
        let paid = payments(&world, 1)?;
        wait_for(&world, &held.after(&paid)?)?;
        wait_at_rest(&world)?;
    }
    ensure!(world.lsp.factory(&factory.instance_id)?.state == "active");
    world.finish();
    Ok(())
}

fn daemon<'a>(world: &'a mut World, who: &str) -> Result<&'a mut Daemon> {
    Ok(match who {
        "client" => world.client_mut(1)?,
        _ => &mut world.lsp,
    })
}

#[test]
fn an_old_copy_of_files() -> Result<()> {
    an_old_copy("filesystem")
}

#[test]
#[ignore = "long: make scenarios"]
fn an_old_copy_of_sqlite() -> Result<()> {
    an_old_copy("sqlite")
}
