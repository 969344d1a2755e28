//! No payment passes over funding that is less deep than the policy says (invariant 13), whatever is restarted
//! meanwhile: 0-conf exists inside LDK only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::ledger::{wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::wait::{self, Seen};
use integration::world::{factory_channel, CEREMONY, PATIENCE};
use integration::World;
use serde_json::json;

const CAPACITY: u64 = 400_000;
const DEPTH: u32 = 3;

/// Every process is connected, no channel is ready on either side, and payments fail without leaving a trace.
fn check_shut(world: &World, id: &str) -> Result<()> {
    for client in &world.clients {
        wait::until("the client to be connected", PATIENCE, || {
            let peers = client.info()?.peers;
            let connected = peers.iter().any(|p| p.node_id == world.lsp.node_id() && p.connected);
            Ok(if connected { Seen::Done(()) } else { Seen::not_yet("not connected") })
        })?;
        for channel in [
            factory_channel(&client.channels()?, id, world.lsp.node_id())?,
            factory_channel(&world.lsp.channels()?, id, client.node_id())?,
        ] {
            assert!(!channel.ready && !channel.usable, "ready at too little depth: {channel:?}");
            assert_eq!(channel.local_msat, CAPACITY * 500, "half of it on each side");
        }
    }
    // Either side alone keeps the channel shut; each has to, for it cannot know that the other one does.
    for daemon in [&*world.lsp, &**world.client(0)?, &**world.client(1)?] {
        let (state, name) = (daemon.factory(id)?.state, daemon.name());
        assert_ne!(state, "active", "{name} calls it active at too little depth");
        assert_eq!(daemon.events("factory_live")?.len(), 0, "{name} called it live at too little depth");
    }
    let (first, second) = (world.client(0)?, world.client(1)?);
    for (payer, payee) in [(&**first, &**second), (&*world.lsp, &**first), (&**second, &*world.lsp)] {
        let payment = payer.pay(&payee.invoice(1_000_000, "too early")?.invoice)?;
        assert_eq!(payment.status, "failed", "{} paid {}: {payment:?}", payer.name(), payee.name());
    }
    Ok(())
}

#[test]
fn no_payment_passes_before_the_funding_is_deep_enough() -> Result<()> {
    let mut world = World::start("depth", 2)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(json!({ "min_depth": DEPTH })));
    world.wait_waiting(2)?;
    let id = world.lsp.create_factory(&request)?;
    let factory = world.wait_state(&id, "confirming", CEREMONY)?;
    let funding = factory.funding.expect("funding").txid;
    world.bitcoind.wait_seen(funding, PATIENCE)?;

    check_shut(&world, &id)?;
    world.mine(1)?;
    check_shut(&world, &id)?;
    // LDK repeats `channel_ready` when a connection is made again.
    world.client_mut(0)?.kill()?;
    world.client_mut(0)?.start()?;
    world.sync()?;
    check_shut(&world, &id)?;
    world.mine(1)?;
    world.lsp.kill()?;
    world.lsp.start()?;
    world.sync()?;
    check_shut(&world, &id)?;
    assert_eq!(world.lsp.factory(&id)?.state, "confirming");

    world.mine(1)?;
    let factory = world.wait_state(&id, "active", PATIENCE)?;
    let confirmed = world.bitcoind.confirmed(funding)?.expect("mined").height;
    assert_eq!(world.bitcoind.height()? - confirmed + 1, DEPTH);
    world.wait_usable(&factory)?;
    let before = Snapshot::take(&world)?;
    let paid = pay(&world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 9_000_001 })?;
    wait_for(&world, &before.after(&[paid])?)?;
    world.finish();
    Ok(())
}

/// A client accepts 0-conf for the channels of a plan it has agreed to, and no other channel at all.
#[test]
fn a_client_refuses_channels_that_are_in_no_plan() -> Result<()> {
    let world = World::start("refuse", 2)?;
    world.wait_waiting(2)?;
    let coins = world.lsp.balance()?.onchain.confirmed_sat;
    let client = world.client(0)?;
    // An announced one: of those beside a factory, which a client takes, see `scenario_jit`.
    let request = json!({ "node_id": client.node_id(), "capacity_sat": 500_000, "announce": true });
    world.lsp.api()?.post::<serde_json::Value>("/v1/channels", &request)?;
    wait::until("the LSP to hear the refusal", PATIENCE, || {
        assert_eq!(client.channels()?, [], "a channel of no plan was accepted");
        let events: serde_json::Value = world.lsp.api()?.get("/v1/events?after=0")?;
        let list = events["events"].as_array().cloned().unwrap_or_default();
        let refused =
            list.iter().find(|e| e["kind"] == "channel_closed" && e["data"]["peer"] == client.node_id());
        Ok(match refused {
            Some(e) => {
                assert!(e["data"]["reason"].to_string().contains("factory plan"), "{e}");
                Seen::Done(())
            }
            None => Seen::NotYet(format!("{list:?}")),
        })
    })?;
    assert!(world.lsp.channels()?.is_empty() && client.channels()?.is_empty());
    assert!(world.bitcoind.mempool()?.is_empty(), "nothing was funded");
    let after = world.lsp.balance()?.onchain;
    assert_eq!((after.confirmed_sat, after.reserved_sat), (coins, 0));
    world.finish();
    Ok(())
}
