//! The transaction that funds a channel beside the factory, trust in the LSP until it is confirmed, and what the operator
//! wants otherwise for single clients.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{anyhow, Result};
use bitcoin::Txid;
use integration::jit::{less_fees, of_kind, open, status, wait_count};
use integration::ledger::{wait_at_rest, wait_for};
use integration::payments::{pay, Order, Party};
use integration::types::{Channel, Event};
use integration::world::PATIENCE;
use integration::{wait, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 100_000;
const JIT: u64 = 200_000;

fn to_client(index: usize, amount_msat: u64) -> Order {
    Order { from: Party::Peer, to: Party::Client(index), amount_msat }
}

/// A transaction in the mempool that spends the change of another, once there is one, other than `not`.
fn wait_child(world: &World, parent: Txid, not: Option<Txid>) -> Result<Txid> {
    let child = || {
        let mempool = world.bitcoind.mempool()?.into_iter().filter(|txid| *txid != parent);
        let mut of_it = Vec::new();
        for txid in mempool {
            let tx = world.bitcoind.transaction(txid)?;
            let spends = tx.is_some_and(|tx| tx.input.iter().any(|i| i.previous_output.txid == parent));
            of_it.extend(spends.then_some(txid));
        }
        Ok(of_it)
    };
    let is_new = |list: &Vec<Txid>| matches!(list[..], [one] if Some(one) != not);
    let list = wait::until_value("a child of the funding transaction", PATIENCE, child, is_new)?;
    list.first().copied().ok_or_else(|| anyhow!("no child"))
}

#[test]
fn a_funding_transaction_that_lingers_gets_a_child_and_a_better_one() -> Result<()> {
    let mut world = World::start("jit-funding", 2)?;
    world.add_peer(2_000_000)?;
    world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    let before = wait_at_rest(&world)?;

    let id = world.client(0)?.node_id().to_owned();
    open(&world, &id, JIT)?;
    let [(ours, _)] = &wait_count(&world, 0, "jit", 1)?[..] else { panic!("not one channel") };
    let funding = ours.funding.expect("a funding outpoint").txid;
    world.bitcoind.wait_seen(funding, PATIENCE)?;
    let paid = pay(&world, to_client(0, 150_000_000))?;
    let held = world.client(0)?.balance()?;
    assert_eq!(held.lightning.trusted_msat, 150_000_000, "{held:?}");
    let told = world.client(0)?.events("payment_received")?;
    assert_eq!(told.last().unwrap().data["trusted_msat"], json!(150_000_000));

    // Blocks come, and it is in none of them. The LSP dies with the first child on disk and not sent.
    let empty = |world: &World| -> Result<()> {
        world.bitcoind.mine_empty(3)?;
        world.sync()
    };
    world.lsp.faults().set("kill@lsp.jit.child_stored")?;
    world.bitcoind.mine_empty(3)?;
    world.lsp.wait_killed()?;
    world.lsp.faults().clear()?;
    assert_eq!(world.bitcoind.mempool()?, vec![funding]);
    world.lsp.start()?;
    world.sync()?;
    world.bitcoind.mine_empty(1)?;
    world.sync()?;
    let first = wait_child(&world, funding, None)?;
    empty(&world)?;
    let second = wait_child(&world, funding, Some(first))?;

    // It was worth it for miners, and both are confirmed now; the channel has been used all the while.
    world.mine(1)?;
    for txid in [funding, second] {
        assert!(world.bitcoind.confirmed(txid)?.is_some(), "{txid} is not confirmed");
    }
    assert!(world.bitcoind.confirmed(first)?.is_none());
    world.wait_peer_usable()?;
    let again = pay(&world, to_client(0, 20_000_000))?;
    let mut due = before.after(&[paid, again])?;
    let fees = less_fees(&world, before.height, &mut due)?;
    assert_eq!(status(&world)?.fees_sat, fees, "the child is counted, the one that it displaced is not");
    wait_for(&world, &due)?;
    assert_eq!(world.client(0)?.balance()?.lightning.trusted_msat, 0);
    world.finish();
    Ok(())
}

#[test]
fn who_closes_unconfirmed_channels_is_trusted_with_no_more() -> Result<()> {
    let mut world = World::start("jit-trust", 2)?;
    world.client_mut(0)?.restart_with(&[("max_jit_sat", 300_000)])?;
    world.wait_waiting(2)?;
    world.add_peer(2_000_000)?;
    world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    let before = wait_at_rest(&world)?;
    let id = world.client(0)?.node_id().to_owned();
    let close = |channel: &Channel, force: bool| {
        let body = json!({ "channel_id": channel.channel_id, "force": force });
        world.lsp.api()?.post::<Value>("/v1/channels/close", &body)
    };
    let [leaf] = &of_kind(&world, 0, "factory")?[..] else { panic!("not one channel") };
    let refused = close(leaf, true).expect_err("a factory's channel is closed by itself");
    let refused = format!("{refused:#}");
    assert!(refused.contains("left by an exit"), "{refused}");

    // One in which the client never had anything is no trust, wherever it went.
    open(&world, &id, JIT)?;
    let [(first, _)] = &wait_count(&world, 0, "jit", 1)?[..] else { panic!("not one channel") };
    close(first, false)?;
    wait_count(&world, 0, "jit", 0)?;
    // The client is paid over the next, and the LSP closes it before it is confirmed.
    open(&world, &id, JIT)?;
    let [(second, _)] = &wait_count(&world, 0, "jit", 1)?[..] else { panic!("not one channel") };
    let paid = pay(&world, to_client(0, 150_000_000))?;
    let trusted = || Ok(world.client(0)?.balance()?.lightning.trusted_msat);
    wait::until_value("the client to have it", PATIENCE, trusted, |msat| *msat == 150_000_000)?;
    close(second, true)?;
    wait_count(&world, 0, "jit", 0)?;
    open(&world, &id, JIT)?;
    let refused = |list: &Vec<Event>| {
        let why = "max_jit_sat: 200000 sat more would be unconfirmed, at most 100000 of 300000";
        list.iter().any(|e| e.data["reason"].as_str().is_some_and(|reason| reason.starts_with(why)))
    };
    let client = world.client(0)?;
    wait::until_value("the client to refuse", PATIENCE, || client.events("jit_channel_refused"), refused)?;
    // What is left of it is there for smaller ones, and a restart changes nothing.
    world.client_mut(0)?.restart_with(&[("max_jit_sat", 300_000)])?;
    world.wait_usable(&world.lsp.factories()?[0])?;
    open(&world, &id, JIT)?;
    let client = world.client(0)?;
    let twice = |list: &Vec<Event>| list.iter().filter(|e| refused(&vec![(*e).clone()])).count() >= 2;
    wait::until_value("the client to refuse", PATIENCE, || client.events("jit_channel_refused"), twice)?;
    open(&world, &id, 100_000)?;
    wait_count(&world, 0, "jit", 1)?;

    // Both sides have their money back from the chain.
    world.mine_mempool()?;
    world.mine(150)?;
    world.mine_mempool()?;
    let mut due = before.after(&[paid])?;
    less_fees(&world, before.height, &mut due)?;
    wait::until_value(
        "the client to have what it was paid",
        PATIENCE,
        || {
            world.mine(1)?;
            world.client(0)?.balance()
        },
        |held| held.onchain.confirmed_sat >= 145_000 && held.lightning.pending_sweep_sat == 0,
    )?;
    world.finish();
    Ok(())
}

#[test]
fn one_client_is_served_otherwise_than_the_settings_say() -> Result<()> {
    let mut world = World::start_with_lsp("jit-policy-of-one", 2, &["--relay", "false"])?;
    world.add_peer(2_000_000)?;
    world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    wait_at_rest(&world)?;
    let ids: Vec<String> = world.clients.iter().map(|c| c.node_id().to_owned()).collect();
    let set = |world: &World, body: Value| world.lsp.api()?.post::<Value>("/v1/jit/policy", &body);

    let wrong = set(&world, json!({"node_id": ids[0], "jit_min_channel_sat": 5})).expect_err("too small");
    assert!(format!("{wrong:#}").contains("jit_min_channel_sat"), "{wrong:#}");
    set(&world, json!({"node_id": ids[0], "jit_max_channels": 0}))?;
    world.lsp.restart_with(&[("relay", "false")])?;
    world.wait_usable(&world.lsp.factories()?[0])?;
    world.wait_peer_usable()?;
    let all: Vec<Value> = world.lsp.api()?.get("/v1/jit/policy")?;
    assert_eq!(all, [json!({"node_id": ids[0], "jit_max_channels": 0})]);

    let before = wait_at_rest(&world)?;
    let invoice = world.client(0)?.invoice(150_000_000, "none is opened for this one")?;
    assert_eq!(world.peer()?.pay(&invoice.invoice)?.status, "failed");
    let other = pay(&world, to_client(1, 150_000_000))?;
    set(&world, json!({"node_id": ids[0]}))?;
    assert_eq!(world.lsp.api()?.get::<Vec<Value>>("/v1/jit/policy")?, Vec::<Value>::new());
    let paid = pay(&world, to_client(0, 150_000_000))?;
    assert_eq!((of_kind(&world, 0, "jit")?.len(), of_kind(&world, 1, "jit")?.len()), (1, 1));
    world.mine_mempool()?;
    let mut due = before.after(&[other, paid])?;
    less_fees(&world, before.height, &mut due)?;
    wait_for(&world, &due)?;
    world.finish();
    Ok(())
}
