//! Others publish what concerns a leaf: steps that come first, kickoffs that nobody asked for, a whole path. Coins,
//! budgets and channels are not forgotten over it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{anyhow, Result};
use bitcoin::consensus::encode::serialize_hex;
use factory_core::lifetime::Lifetime;
use factory_core::record::{LspFactoryRecord, SignedPath};
use integration::signed::{tree_of, wait_published, Stranger, Way};
use integration::types::Exit;
use integration::wait::{self, Seen};
use integration::world::{CLIENT_COIN, PATIENCE};
use integration::{Client, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 400_000;
/// Blocks from birth to the end of the dying period: more than a stranger needs to publish a leaf.
const ACTIVE: u32 = 40;
const DYING: u32 = 10;
/// Transactions of a path: the root, the leaf's kickoff, a state of each of its two layers.
const ROOT: usize = 0;
const KICKOFF: usize = 1;
const FIRST_STATE: usize = 2;
/// More blocks than the second distribution waits for, and is deep after.
const PAID_WITHIN: u32 = 30;

fn params() -> Value {
    let layers = json!([[], [[2, 2, 4], [2, 2, 0]]]);
    json!({
        "clients_per_leaf": 1, "arity": [2], "layers": layers, "active": ACTIVE, "dying": DYING, "margin": 10,
    })
}

/// A factory of two clients, one of them dead, and the path of client `of`. The LSP is stopped.
fn start(name: &str, dead: usize, of: usize) -> Result<(World, LspFactoryRecord, SignedPath, String)> {
    let mut world = World::start(name, 2)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params()));
    let id = world.create_factory(&request)?.instance_id;
    world.client_mut(dead)?.kill()?;
    world.lsp.stop()?;
    let tree = tree_of(&world.lsp, &id)?;
    let node_id = world.client(of)?.node_id();
    let place = tree.client_ids.iter().position(|c| c.to_string() == node_id).unwrap();
    let path = tree.leaf_path(place)?;
    Ok((world, tree, path, id))
}

fn exit_of(client: &Client, id: &str) -> Result<Exit> {
    client.factory(id)?.exits.pop().ok_or_else(|| anyhow!("no exit"))
}

/// The client's distribution is in the mempool, paid for with its only coin, when a miner takes the LSP's kickoff
/// instead: the coin is free again, and pays for the distribution that comes next.
#[test]
fn a_step_that_was_overtaken_gives_its_coin_back() -> Result<()> {
    let (world, tree, path, id) = start("overtaken", 1, 0)?;
    let client = world.client(0)?;
    world.bitcoind.mine_to(tree.plan.expiry_height)?;
    let publish =
        || wait_published(&world.bitcoind, client, &id, std::slice::from_ref(&path), Way::Distribution);
    publish()?;
    assert!(world.bitcoind.mempool()?.contains(&path.path[ROOT].txid()), "the root is not out at T");
    world.mine(1)?;
    publish()?;
    let first = path.distributions[0].txid();
    assert!(world.bitcoind.mempool()?.contains(&first), "the distribution is not out");
    let kickoff = &path.path[KICKOFF];
    let block = json!([world.bitcoind.new_address()?, [serialize_hex(&kickoff.tx)]]);
    world.bitcoind.rpc().call::<Value>("generateblock", block)?;
    world.sync()?;
    assert!(world.bitcoind.confirmed(kickoff.txid())?.is_some());
    assert_eq!(world.bitcoind.mempool()?, [], "the distribution is void");

    for _ in 0..PAID_WITHIN {
        publish()?;
        if client.factory(&id)?.state == "exited" {
            break;
        }
        world.mine(1)?;
    }
    let second = path.distributions[1].txid();
    assert!(world.bitcoind.confirmed(second)?.is_some(), "not paid: {:?}", exit_of(client, &id)?);
    let exit = exit_of(client, &id)?;
    assert_eq!(exit.distribution_txid, Some(second));
    let balance = wait::until_value(
        "the client to hold coins only",
        PATIENCE,
        || client.balance(),
        |b| b.onchain.confirmed_sat == b.total_sat,
    )?;
    assert_eq!(balance.total_sat, CLIENT_COIN + CAPACITY - exit.fees_sat);
    world.finish();
    Ok(())
}

/// Somebody begins to publish the client's leaf, and the client guards it. Then its user leaves with a budget: that
/// holds for what the guard has begun, too.
#[test]
fn a_budget_given_beside_a_guard_is_kept() -> Result<()> {
    const TOO_LITTLE: u64 = 100;
    const ENOUGH: u64 = 50_000;
    let (world, _, path, id) = start("budget", 1, 0)?;
    let client = world.client(0)?;
    let mut stranger = Stranger::new(&world.bitcoind, 2)?;
    for number in [ROOT, KICKOFF] {
        stranger.publish(&world.bitcoind, &path.path[number])?;
        world.mine(1)?;
    }
    wait::until_value(
        "the client to guard its leaf",
        PATIENCE,
        || Ok(client.factory(&id)?.exits),
        |e| !e.is_empty(),
    )?;
    let state = &path.path[FIRST_STATE];
    let within = |max_fee_sat: u64| -> Result<()> {
        let body = json!({ "max_fee_sat": max_fee_sat });
        client.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &body)?;
        Ok(())
    };
    within(TOO_LITTLE)?;
    for _ in 0..=state.relative_delay {
        assert!(!world.bitcoind.mempool()?.contains(&state.txid()), "published beyond the budget");
        world.mine(1)?;
    }
    // The child's fee is decided upon with every block; the last of them is after the state was due.
    let exit = wait::until("the exit to be over its budget", PATIENCE, || {
        let exit = exit_of(client, &id)?;
        let published = world.bitcoind.mempool()?.contains(&state.txid());
        assert!(!published, "published beyond the budget: {exit:?}");
        Ok(if exit.phase == "over_budget" { Seen::Done(exit) } else { Seen::NotYet(format!("{exit:?}")) })
    })?;
    assert_eq!((exit.max_fee_sat, exit.fees_sat), (Some(TOO_LITTLE), 0), "{exit:?}");
    within(ENOUGH)?;
    world.bitcoind.wait_seen(state.txid(), PATIENCE)?;
    assert_eq!(exit_of(client, &id)?.max_fee_sat, Some(ENOUGH));
    world.finish();
    Ok(())
}

/// Somebody has published a dead client's whole path. The channel lives on, for it costs nobody a tree any more; but by
/// the end of the dying period the LSP closes it, or its money would stay there for good.
#[test]
fn a_channel_on_a_published_leaf_is_closed_in_the_end() -> Result<()> {
    let (mut world, tree, path, id) = start("left-open", 0, 0)?;
    let plan = &tree.plan;
    let life = Lifetime::check(plan.birth_height, plan.expiry_height, &plan.params, plan.members.len())?;
    world.lsp.start()?;
    world.sync()?;
    let mut stranger = Stranger::new(&world.bitcoind, path.path.len())?;
    for tx in &path.path {
        world.mine(u32::from(tx.relative_delay).saturating_sub(1))?;
        // The LSP guards the leaf, and may have been first.
        if !world.bitcoind.mempool()?.contains(&tx.txid()) {
            stranger.publish(&world.bitcoind, tx)?;
        }
        world.mine(1)?;
        assert!(world.bitcoind.confirmed(tx.txid())?.is_some(), "{:?} is not on the chain", tx.kind);
    }
    let channel = path.leaf[0].outpoint;
    assert!(world.bitcoind.height()? < life.dying_until() - 1, "the path took too long");
    world.bitcoind.mine_to(life.dying_until() - 1)?;
    world.sync()?;
    assert!(world.bitcoind.unspent(channel)?.is_some(), "closed before it had to be");
    assert_eq!(world.bitcoind.mempool_spender(channel)?, None, "closed before it had to be");
    world.mine(2)?;
    wait::until("the channel on a published leaf to be closed", PATIENCE, || {
        let spent =
            world.bitcoind.unspent(channel)?.is_none() || world.bitcoind.mempool_spender(channel)?.is_some();
        Ok(if spent { Seen::Done(()) } else { Seen::NotYet(format!("{:?}", world.lsp.factory(&id)?.exits)) })
    })?;
    world.finish();
    Ok(())
}
