//! An operator and two users with nothing but the command lines: a factory, a payment, and the close on a user's word.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};
use bitcoin::hashes::{sha256, Hash};
use integration::ledger::{check_conserved, wait_at_rest, Snapshot};
use integration::wait::{self, Seen};
use integration::world::{CEREMONY, CLIENT_COIN, PATIENCE};
use integration::{binaries, Daemon, World};
use serde_json::Value;

const CAPACITY: u64 = 300_000;
const PUSH: u64 = 100_000;
const PAID_SAT: u64 = 25_000;
const HELD_SAT: u64 = 7_000;

fn command(daemon: &Daemon, arguments: &[&str]) -> Result<Command> {
    let program = if daemon.name() == "lsp-server" { "lsp-server" } else { "client-app" };
    let mut command = Command::new(binaries::workspace(program)?);
    for name in binaries::settings() {
        command.env_remove(name);
    }
    command.arg("--data-dir").arg(daemon.data_dir()).arg("--json").args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// Runs a command against a running process and reads its answer.
fn run(daemon: &Daemon, arguments: &[&str]) -> Result<Value> {
    let output = command(daemon, arguments)?.output()?;
    if !output.status.success() {
        bail!("{} {arguments:?}: {}", daemon.name(), String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{} {arguments:?}", daemon.name()))
}

/// Client 0 pays a hold invoice of client 1, who then gives the order; returns the payer's last account of it.
fn pay_held(world: &World, preimage: [u8; 32], order: &str) -> Result<Value> {
    let (payer, payee) = (world.client(0)?, world.client(1)?);
    let hash = hex::encode(sha256::Hash::hash(&preimage).to_byte_array());
    let amount = (HELD_SAT * 1000).to_string();
    let make = ["invoice", "--amount-msat", &amount, "--payment-hash", &hash, "--hold-blocks", "20"];
    let invoice = run(payee, &make)?["invoice"].as_str().context("no invoice")?.to_owned();
    let undecided = command(payer, &["pay", &invoice, "--wait-secs", "0"])?.output()?;
    assert_eq!(undecided.status.code(), Some(3), "{}", String::from_utf8_lossy(&undecided.stdout));
    let status = |daemon: &Daemon, wanted: &str| {
        let what = format!("the payment to be {wanted} at {}", daemon.name());
        wait::until_value(&what, PATIENCE, || run(daemon, &["payments", &hash]), |p| p["status"] == wanted)
    };
    status(payee, "held")?;
    let (of, outcome) = match order {
        "fail" => (hash.clone(), "failed"),
        _ => (hex::encode(preimage), "succeeded"),
    };
    run(payee, &[order, &of])?;
    status(payer, outcome)
}

#[test]
fn by_command_line_alone() -> Result<()> {
    let mut world = World::start("commands", 2)?;
    world.wait_waiting(2)?;
    assert_eq!(run(&world.lsp, &["clients"])?.as_array().map(Vec::len), Some(2));
    let (capacity, push) = (CAPACITY.to_string(), PUSH.to_string());
    let make =
        ["create-factory", "--all", "--capacity-sat", &capacity, "--push-sat", &push, "--stock-sat", "0"];
    let made = run(&world.lsp, &[&make[..], &["--no-wait"]].concat())?;
    let id = made["instance_id"].as_str().context("no instance_id")?.to_owned();
    let funded = world.wait_state(&id, "confirming", CEREMONY)?;
    world.bitcoind.wait_seen(funded.funding.context("no funding")?.txid, PATIENCE)?;
    world.mine(1)?;
    let factory = world.wait_state(&id, "active", PATIENCE)?;
    world.wait_usable(&factory)?;

    let amount = (PAID_SAT * 1000).to_string();
    let invoice = run(world.client(1)?, &["invoice", "--amount-msat", &amount])?;
    let paid = run(world.client(0)?, &["pay", invoice["invoice"].as_str().context("no invoice")?])?;
    assert_eq!(paid["status"], "succeeded");
    let fee_msat = paid["fee_msat"].as_u64().context("no fee_msat")?;
    // Paid once, an invoice is not paid again, and the exit code says so.
    assert!(run(world.client(0)?, &["pay", invoice["invoice"].as_str().unwrap()]).is_err());
    let held = pay_held(&world, [3; 32], "claim")?;
    let fee_msat = fee_msat + held["fee_msat"].as_u64().context("no fee_msat")?;
    pay_held(&world, [4; 32], "fail")?;
    let before = wait_at_rest(&world)?;
    let local = |index: usize| -> Result<Value> {
        Ok(run(world.client(index)?, &["balance"])?["lightning"]["local_msat"].clone())
    };
    assert_eq!(local(0)?, (PUSH - PAID_SAT - HELD_SAT) * 1000 - fee_msat);
    assert_eq!(local(1)?, (PUSH + PAID_SAT + HELD_SAT) * 1000);

    // The command waits until the closing transaction is confirmed.
    let close =
        command(world.client(1)?, &["close"])?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let txid = wait::until("the close transaction", PATIENCE, || {
        match world.lsp.factory(&id)?.close.and_then(|close| close.txid) {
            Some(txid) => Ok(Seen::Done(txid)),
            None => Ok(Seen::not_yet("no transaction")),
        }
    })?;
    world.bitcoind.wait_seen(txid, PATIENCE)?;
    world.mine(6)?;
    let output = close.wait_with_output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world.wait_state(&id, "closed", PATIENCE)?;
    let wanted = CLIENT_COIN + PUSH + PAID_SAT + HELD_SAT;
    wait::until_value(
        "the coins of client-1",
        PATIENCE,
        || Ok(run(world.client(1)?, &["balance"])?["onchain"]["confirmed_sat"].clone()),
        |sat| *sat == wanted,
    )?;
    let shown = run(world.client(1)?, &["factories", &id])?;
    assert_eq!(shown["state"], "closed", "{shown}");
    check_conserved(&world, &before, &Snapshot::take(&world)?)?;

    for client in &mut world.clients {
        run(client, &["stop"])?;
        client.wait_end()?;
    }
    run(&world.lsp, &["stop"])?;
    world.lsp.wait_end()?;
    world.finish();
    Ok(())
}
