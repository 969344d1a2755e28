//! Processes die at named lines of their code; nothing is lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use anyhow::{Context, Result};
use integration::crash::rows::{every, quick, Phase};
use integration::crash::table::Matrix;
use integration::crash::{appear, life, nonces, wait_free, Place, CLIENTS};
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::world::{CEREMONY, PATIENCE};
use integration::{wait, World};

const CAPACITY: u64 = 300_000;

/// The LSP dies between storing the funding transaction and showing it to anybody, and waits at that line first:
/// nothing has left. Then it goes on with that very transaction.
#[test]
fn the_lsp_dies_with_the_funding_transaction_stored() -> Result<()> {
    let mut world = World::start("crash", 2)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    world.wait_waiting(2)?;
    world.lsp.faults().set("hold@lsp.funding.stored")?;
    let id = world.lsp.create_factory(&request)?;
    world.lsp.faults().wait_held("lsp.funding.stored")?;
    assert!(world.bitcoind.mempool()?.is_empty(), "the funding transaction was shown before it was due");
    world.lsp.kill()?;
    world.lsp.faults().clear()?;
    world.lsp.start()?;
    let funded = world.wait_state(&id, "confirming", CEREMONY)?;
    world.bitcoind.wait_seen(funded.funding.expect("funding").txid, PATIENCE)?;
    world.mine(1)?;
    let factory = world.wait_state(&id, "active", PATIENCE)?;
    world.wait_usable(&factory)?;
    let before = Snapshot::take(&world)?;
    let paid = pay(&world, Order { from: Party::Client(1), to: Party::Client(0), amount_msat: 9_000_000 })?;
    wait_for(&world, &before.after(&[paid])?)?;
    world.finish();
    Ok(())
}

/// Who gives a factory up after a crash dies while it does so, and gives it up after the next start.
#[test]
fn giving_up_survives_a_crash_too() -> Result<()> {
    let mut world = World::start("crash-void", CLIENTS)?;
    let before = Snapshot::take(&world)?;
    world.wait_waiting(CLIENTS)?;
    let request = world.factory_request(life::CAPACITY, life::PUSH, 0, None);
    // Everybody holds a whole signed tree, and the LSP has forgotten the ceremony.
    world.lsp.faults().set("kill@lsp.sent.signed#3")?;
    let id = world.lsp.create_factory(&request)?;
    world.lsp.wait_killed()?;
    wait::until_value(
        "the first client to have its path",
        PATIENCE,
        || Ok(world.client(0)?.factories()?.iter().any(|f| f.instance_id == id && f.funding.is_some())),
        |stored| *stored,
    )?;
    // The client has forgotten the ceremony, too: it asks what has become of its factory.
    world.client_mut(0)?.kill()?;
    world.lsp.faults().set("kill@node.void.stored")?;
    world.client(0)?.faults().set("kill@node.void.stored")?;
    world.client_mut(0)?.start()?;
    // It may come to its end before its API answers.
    let _ = world.lsp.start();
    world.lsp.wait_killed()?;
    world.lsp.faults().clear()?;
    world.lsp.start()?;
    world.client_mut(0)?.wait_killed()?;
    world.client(0)?.faults().clear()?;
    world.client_mut(0)?.start()?;
    assert_eq!(world.lsp.factory(&id)?.state, "failed");
    wait_free(&world)?;
    assert!(world.lsp.channels()?.is_empty(), "channels of a factory that never was");
    wait_for(&world, &before)?;
    let (factory, _) = life::create(&mut world, None)?;
    life::close(&mut world, &factory, None)?;
    world.finish();
    Ok(())
}

/// LDK's channel manager is not written any more once the last commitment is held, by a disk that hangs, and the
/// factory is made all the same: what was promised stood on disk before. The manager that did come to disk is one that
/// waits for the first write of its channel's monitor.
#[test]
#[ignore = "long: make crash"]
fn a_channel_is_on_disk_before_its_factory_is_made() -> Result<()> {
    let (lsp, client) =
        ((Place::Lsp, "lsp.commitment.held", CLIENTS), (Place::Client, "client.channel.pending", 1));
    for dying in [&[lsp, client][..], &[lsp], &[client]] {
        die_with_an_old_manager(dying).with_context(|| format!("dying: {dying:?}"))?;
    }
    Ok(())
}

/// `dying`: who dies, the last thing it hears of LDK before, and how often it has heard that by then.
fn die_with_an_old_manager(dying: &[(Place, &str, usize)]) -> Result<()> {
    let mut world = World::start("crash-manager", CLIENTS)?;
    let before = Snapshot::take(&world)?;
    world.wait_waiting(CLIENTS)?;
    let request = world.factory_request(life::CAPACITY, life::PUSH, 0, None);
    for (place, point, nth) in dying {
        place.daemon(&mut world)?.faults().set(&format!("hold@{point}#{nth}"))?;
    }
    let id = world.lsp.create_factory(&request)?;
    // LDK writes nothing while it waits for what we do with its event.
    for (place, point, _) in dying {
        let daemon = place.daemon(&mut world)?;
        daemon.faults().wait_held(point)?;
        daemon.faults().set("hold@node.manager.store")?;
        daemon.faults().go_on(point)?;
    }
    let funded = world.wait_state(&id, "confirming", CEREMONY)?;
    for (place, ..) in dying {
        place.daemon(&mut world)?.faults().wait_held("node.manager.store")?;
    }
    // Nobody comes back before all are dead.
    for (place, ..) in dying {
        let daemon = place.daemon(&mut world)?;
        daemon.kill()?;
        daemon.faults().clear()?;
    }
    for (place, ..) in dying {
        place.daemon(&mut world)?.start()?;
    }
    appear(&world, funded.funding.expect("funding").txid)?;
    world.mine(1)?;
    let factory = world.wait_state(&id, "active", PATIENCE)?;
    assert_eq!(factory.clients.iter().filter(|c| c.reason.is_none()).count(), CLIENTS);
    life::check(&world, &factory, &before)?;
    life::close(&mut world, &factory, None)?;
    world.finish();
    Ok(())
}

/// The steps at which most is at stake; `make crash` drives all.
#[test]
fn a_crash_at_the_steps_that_matter_most() -> Result<()> {
    let mut matrix = Matrix::default();
    matrix.lives(&quick(Phase::Creation), &quick(Phase::Close))?;
    matrix.payments(&quick(Phase::Payment))?;
    matrix.exits(&quick(Phase::Exit))?;
    println!("{}", matrix.table());
    matrix.check()
}

/// What is checked after every life is worth something: a process that draws the same nonce again for a close that goes
/// on after a crash is found out.
#[test]
#[ignore = "long: make crash"]
fn a_nonce_that_comes_back_is_noticed() -> Result<()> {
    let mut world = World::start("crash-nonce", CLIENTS)?;
    let (factory, _) = life::create(&mut world, None)?;
    let signed = nonces::check(&world)?;
    assert!(signed > 0, "nothing was noted");
    wait_at_rest(&world)?;
    world.lsp.faults().set("on@nonce.fixed,kill@lsp.sent.close_agg_nonce")?;
    world.lsp.close_factory(&factory.instance_id)?;
    world.lsp.wait_killed()?;
    // The close goes on with the same transaction, and so would the nonce.
    world.lsp.faults().set("on@nonce.fixed")?;
    world.lsp.start()?;
    let error = wait::until_value(
        "the nonce to be used again",
        PATIENCE,
        || Ok(nonces::check(&world).err().map(|e| e.to_string())),
        Option::is_some,
    )?;
    let error = error.unwrap_or_default();
    assert!(error.contains("lsp-server has used a nonce twice"), "{error}");
    world.finish();
    Ok(())
}

/// Every point, every process. `CRASH_ROWS` in the environment drives those alone whose point has it in its name.
#[test]
#[ignore = "long: make crash"]
fn a_crash_at_every_step() -> Result<()> {
    let wanted = std::env::var("CRASH_ROWS").unwrap_or_default();
    let rows = |phase| -> Vec<_> { every(phase).into_iter().filter(|r| r.point.contains(&wanted)).collect() };
    let mut matrix = Matrix::default();
    matrix.payments(&rows(Phase::Payment))?;
    matrix.lives(&rows(Phase::Creation), &rows(Phase::Close))?;
    matrix.exits(&rows(Phase::Exit))?;
    let table = matrix.table();
    println!("{table}");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let file = target.join("crash-matrix.md");
    std::fs::write(&file, table).with_context(|| format!("write {}", file.display()))?;
    matrix.check()
}
