//! Channels beside the factory: the LSP opens an ordinary channel to its client, used before it is confirmed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{anyhow, Result};
use integration::exit;
use integration::ledger::{check_conserved, wait_at_rest, wait_for};
use integration::payments::{pay, Order, Party};
use integration::types::Channel;
use integration::world::PATIENCE;
use integration::{jit, wait, World};

const CAPACITY: u64 = 100_000;
const JIT: u64 = 200_000;

/// Channels by kind, and that both sides have the same.
fn both(world: &World, index: usize, kind: &str) -> Result<Vec<(Channel, Channel)>> {
    jit::wait_usable(world, index, kind)
}

#[test]
#[ignore = "long: make jit"]
fn a_channel_beside_the_factory_is_used_closed_and_survives_an_exit() -> Result<()> {
    let mut world = World::start("jit", 2)?;
    world.add_peer(2_000_000)?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    let before = wait_at_rest(&world)?;

    let id = world.client(0)?.node_id().to_owned();
    jit::open(&world, &id, JIT)?;
    let [(ours, theirs)] = both(&world, 0, "jit")?[..].to_vec().try_into().map_err(|v| anyhow!("{v:?}"))?;
    assert!(ours.trusted && theirs.trusted, "unconfirmed, and not shown as trust: {ours:?} {theirs:?}");
    let funding = ours.funding.expect("a funding outpoint");
    world.bitcoind.wait_seen(funding.txid, PATIENCE)?;
    assert!(world.bitcoind.confirmed(funding.txid)?.is_none());

    // Paid through both: what only the new channel has room for, and what the factory's channel can take.
    let order = |amount_msat| Order { from: Party::Peer, to: Party::Client(0), amount_msat };
    let paid = [pay(&world, order(150_000_000))?, pay(&world, order(60_000_001))?];
    world.mine(1)?;
    let held = wait_for(&world, &{
        let mut after = before.after(&paid)?;
        let fee = world.bitcoind.fees(before.height + 1, world.bitcoind.height()?)?;
        *after.parties.get_mut("lsp").unwrap() -= fee * 1000;
        after
    })?;
    check_conserved(&world, &before, &held)?;
    let [(ours, theirs)] = both(&world, 0, "jit")?[..].to_vec().try_into().map_err(|v| anyhow!("{v:?}"))?;
    assert!(!ours.trusted && !theirs.trusted, "confirmed: {ours:?} {theirs:?}");
    assert_eq!(ours.local_msat, 150_000_000);
    let [(leaf, _)] = both(&world, 0, "factory")?[..].to_vec().try_into().map_err(|v| anyhow!("{v:?}"))?;
    assert_eq!((leaf.local_msat, leaf.trusted), (60_000_001, false));

    // The factory's channel goes to the chain while the LSP is dead; the other one lives on.
    let start = wait_at_rest(&world)?;
    world.lsp.kill()?;
    let report = exit::drive(&world, 0, &factory.instance_id, &mut |line| println!("{line}"))?;
    report.check_wallet(CAPACITY)?;
    world.lsp.start()?;
    world.sync()?;
    let settled = exit::settle_lsp(&world, &start)?;
    let [(left, _)] = both(&world, 0, "jit")?[..].to_vec().try_into().map_err(|v| anyhow!("{v:?}"))?;
    assert_eq!((left.channel_id.as_str(), left.local_msat), (ours.channel_id.as_str(), 150_000_000));
    world.wait_peer_usable()?;
    let back = pay(&world, Order { from: Party::Client(0), to: Party::Peer, amount_msat: 20_000_000 })?;
    wait_for(&world, &settled.after(&[back])?)?;
    world.finish();
    Ok(())
}

#[test]
fn a_client_takes_no_more_than_its_policy_says() -> Result<()> {
    let mut world = World::start("jit-policy", 2)?;
    world.client_mut(0)?.restart_with(&[("max_jit_sat", 250_000), ("max_jit_channels", 2)])?;
    world.client_mut(1)?.restart_with(&[("max_jit_sat", 0)])?;
    world.wait_waiting(2)?;
    let ids: Vec<String> = world.clients.iter().map(|c| c.node_id().to_owned()).collect();

    jit::open(&world, &ids[0], JIT)?;
    both(&world, 0, "jit")?;
    // LDK asks again with other channel types, so the same may be refused several times.
    let refused = |index: usize, why: &str| {
        let told = |list: &Vec<integration::types::Event>| {
            list.iter().any(|e| e.data["reason"].as_str().is_some_and(|reason| reason.starts_with(why)))
        };
        wait::until_value(
            &format!("client-{index} to refuse: {why}"),
            PATIENCE,
            || world.client(index)?.events("jit_channel_refused"),
            told,
        )
    };
    // Unconfirmed capacity is bounded, and is free again with the confirmation.
    jit::open(&world, &ids[0], 50_001)?;
    refused(0, "max_jit_sat: 50001 sat more would be unconfirmed, at most 50000 of 250000")?;
    world.mine(1)?;
    jit::open(&world, &ids[0], 250_000)?;
    assert_eq!(jit::wait_count(&world, 0, "jit", 2)?.len(), 2);
    world.mine(1)?;
    jit::open(&world, &ids[0], 20_000)?;
    refused(0, "max_jit_channels: 2 ")?;
    jit::open(&world, &ids[1], 20_000)?;
    refused(1, "max_jit_sat: 20000 sat more would be unconfirmed, at most 0 of 0")?;

    // What is refused costs nobody anything, and ordinary channels by others stay refused.
    world.mine_mempool()?;
    assert_eq!(world.client(1)?.channels()?, vec![]);
    assert_eq!(world.client(0)?.channels()?.len(), 2);
    let held = wait_at_rest(&world)?;
    assert_eq!(held.of("client-0")?, held.of("client-1")?);
    world.finish();
    Ok(())
}
