//! An LSP that acts in time loses nothing to distributions, although every client is hostile: it settles each leaf
//! before the expiry height T by itself, killed in between and short of coins, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{anyhow, ensure, Result};
use bitcoin::OutPoint;
use factory_core::lifetime::Lifetime;
use factory_core::record::{LspFactoryRecord, SignedPath};
use integration::exit::mine_until;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::signed::{output_worth, spender, tree_of, wait_published, wait_spent, Stranger, Way};
use integration::wait::{self, Seen};
use integration::world::{CLIENT_COIN, LSP_FUNDS, PATIENCE};
use integration::{Bitcoind, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 400_000;
const STOCK: u64 = 10_001;
/// Blocks from birth to the end of the dying period: more than the second of the LSP's warnings.
const ACTIVE: u32 = 155;
const DYING: u32 = 10;
/// Blocks in which the paths of all leaves are published, with coins to wait for.
const PATHS_WITHIN: u32 = 60;
/// Blocks with which a client's sweep, once published, is deep enough.
const SWEPT_WITHIN: u32 = 7;
/// More than a client's sweep of one output costs, sat.
const MAX_SWEEP_FEE: u64 = 3_000;
/// What is left in the wallet of an LSP that has put nearly everything into a factory, its funding's fee included, sat.
const LEFT_SAT: u64 = 9_000;
/// What that factory gives each client, sat.
const PUSH: u64 = 100_000;
/// The coins it is given then, sat.
const COIN: u64 = 500_000;

/// A short life, and layers of a few blocks.
fn params(clients_per_leaf: u16, arity: &[u16]) -> Value {
    let mut layers = vec![json!([]); arity.len()];
    layers.push(json!([[2, 2, 4], [2, 2, 0]]));
    json!({
        "clients_per_leaf": clients_per_leaf, "arity": arity, "layers": layers,
        "active": ACTIVE, "dying": DYING, "margin": 10,
    })
}

/// The tree as the LSP has it on disk, and the heights of its life. The LSP is stopped for that.
fn look_at_tree(world: &mut World, id: &str) -> Result<(LspFactoryRecord, Vec<SignedPath>, Lifetime)> {
    world.lsp.stop()?;
    let tree = tree_of(&world.lsp, id)?;
    world.lsp.start()?;
    world.sync()?;
    let plan = &tree.plan;
    let life =
        Lifetime::check(plan.birth_height, plan.expiry_height, &plan.params, plan.members.len()).unwrap();
    let step = usize::from(plan.params.shape.clients_per_leaf);
    let firsts = (0..plan.members.len()).step_by(step);
    let paths = firsts.map(|first| tree.leaf_path(first).unwrap()).collect();
    Ok((tree, paths, life))
}

/// `settlement_near` comes once for each of the heights that lie ahead, with the amount that will be needed.
fn check_warnings(world: &World, id: &str, life: &Lifetime) -> Result<()> {
    let mut told = vec![u64::from(life.dying_until() - world.lsp.factory(id)?.birth_height - 1)];
    for blocks in [144, 36, 6] {
        world.bitcoind.mine_to(life.dying_until() - blocks)?;
        world.lsp.wait_synced(&world.bitcoind)?;
        told.push(blocks.into());
        let events = wait::until_value(
            &format!("the warning {blocks} blocks before the settlement"),
            PATIENCE,
            || world.lsp.events("settlement_near"),
            |events| events.len() >= told.len(),
        )?;
        let seen: Vec<u64> = events.iter().map(|e| e.data["blocks"].as_u64().unwrap()).collect();
        assert_eq!(seen, told);
        let last = &events.last().unwrap().data;
        assert_eq!(last["height"], life.dying_until());
        assert_eq!(last["expiry_height"], life.expiry());
        assert!(last["needed_sat"].as_u64().unwrap() > 0, "{last}");
    }
    Ok(())
}

/// The channels of all leaves.
fn channels(paths: &[SignedPath]) -> Vec<OutPoint> {
    paths.iter().flat_map(|path| &path.leaf).map(|channel| channel.outpoint).collect()
}

/// Once all paths are there, and a block more has gone by, a commitment that has not confirmed is in the mempool.
fn wait_commitments(world: &World, paths: &[SignedPath]) -> Result<()> {
    let height = world.bitcoind.height()?;
    let mut late = Vec::new();
    for path in paths {
        let leaf = path.path.last().unwrap().txid();
        let ripe = world.bitcoind.confirmed(leaf)?.is_some_and(|c| c.height < height);
        for channel in path.leaf.iter().filter(|_| ripe) {
            if world.bitcoind.unspent(channel.outpoint)?.is_some() {
                late.push(channel.outpoint);
            }
        }
    }
    // One coin may have to serve several, one after the other.
    wait::until("a commitment transaction that is due", PATIENCE, || {
        let mut spenders = Vec::new();
        for outpoint in &late {
            spenders.extend(world.bitcoind.mempool_spender(*outpoint)?);
        }
        let there = late.is_empty() || !spenders.is_empty();
        Ok(if there { Seen::Done(()) } else { Seen::NotYet(format!("{late:?} unspent")) })
    })
}

/// Mines until every channel of the factory is closed on the chain. The LSP dies after the blocks with these numbers.
fn settle(world: &mut World, id: &str, paths: &[SignedPath], kill_after: &[u32]) -> Result<()> {
    for block in 1..=PATHS_WITHIN {
        wait_published(&world.bitcoind, &world.lsp, id, paths, Way::Channels)?;
        wait_commitments(world, paths)?;
        world.bitcoind.mine(1)?;
        if kill_after.contains(&block) {
            world.lsp.kill()?;
            world.lsp.start()?;
        }
        world.lsp.wait_synced(&world.bitcoind)?;
        let mut open = channels(paths);
        open.retain(|o| !matches!(spent(&world.bitcoind, *o), Ok(true)));
        if open.is_empty() {
            return Ok(());
        }
    }
    Err(anyhow!("not settled after {PATHS_WITHIN} blocks: {:?}", world.lsp.factory(id)?.exits))
}

/// Whether an output is on the chain and spent there.
fn spent(bitcoind: &Bitcoind, outpoint: OutPoint) -> Result<bool> {
    Ok(bitcoind.confirmed(outpoint.txid)?.is_some() && bitcoind.unspent(outpoint)?.is_none())
}

/// No distribution of any leaf can get into a block, not even when it is valid by its time.
fn check_distributions_refused(world: &World, mut hostile: Stranger, paths: &[SignedPath]) -> Result<()> {
    for distribution in paths.iter().flat_map(|path| &path.distributions) {
        let refused = hostile
            .publish(&world.bitcoind, distribution)
            .expect_err("a distribution was accepted")
            .to_string();
        assert!(refused.contains("missing") || refused.contains("spent"), "{refused}");
    }
    assert_eq!(hostile.fees_sat, 0);
    Ok(())
}

/// A client that comes back has its balance: its output of the LSP's commitment, less the fee of its own sweep.
/// `channel` is its channel's output, `held_msat` its balance, `from` a height before the settlement.
fn come_back(
    world: &mut World,
    index: usize,
    id: &str,
    channel: OutPoint,
    held_msat: u64,
    from: u32,
) -> Result<()> {
    let commitment = spender(&world.bitcoind, channel, from, world.bitcoind.height()?)?;
    let due = held_msat / 1000;
    let output = output_worth(&commitment, due)?;
    world.client_mut(index)?.start()?;
    let client = world.client(index)?;
    client.wait_synced(&world.bitcoind)?;
    world.mine_for(client, 1)?;
    wait_spent(&world.bitcoind, output)?;
    world.mine_for(client, SWEPT_WITHIN)?;
    let balance = wait::until(&format!("{} to have left with coins only", client.name()), PATIENCE, || {
        let (state, balance) = (client.factory(id)?.state, client.balance()?);
        let coins = balance.onchain.confirmed_sat == balance.total_sat;
        Ok(if coins && state == "exited" {
            Seen::Done(balance)
        } else {
            Seen::NotYet(format!("{state} {balance:?}"))
        })
    })?;
    let sweep = spender(&world.bitcoind, output, from, world.bitcoind.height()?)?;
    assert_eq!(sweep.input.len(), 1, "{sweep:?}");
    let swept: u64 = sweep.output.iter().map(|o| o.value.to_sat()).sum();
    assert!(swept < due && due - swept < MAX_SWEEP_FEE, "{} sat for a sweep", due - swept);
    assert_eq!(balance.onchain.confirmed_sat, CLIENT_COIN + swept, "{}", client.name());
    Ok(())
}

/// Four clients that pay and then vanish. The LSP settles, dying three times meanwhile; at T the distributions are
/// tried by a stranger; then the clients come back.
fn settles_in_time(name: &str, params: Value) -> Result<()> {
    let mut world = World::start(name, 4)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params));
    let factory = world.create_factory(&request)?;
    let id = factory.instance_id.clone();
    let hostile = Stranger::new(&world.bitcoind, 1)?;
    world.sync()?;
    let start = Snapshot::take(&world)?;
    let order =
        |from, to, amount_msat| Order { from: Party::Client(from), to: Party::Client(to), amount_msat };
    let paid = [
        pay(&world, order(0, 1, 12_345_678))?,
        pay(&world, order(1, 2, 1_000_001))?,
        pay(&world, order(3, 0, 77_777_777))?,
    ];
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    for client in &mut world.clients {
        client.kill()?;
    }
    let (tree, paths, life) = look_at_tree(&mut world, &id)?;
    check_warnings(&world, &id, &life)?;
    assert!(world.bitcoind.mempool()?.is_empty(), "nothing is published before the dying period ends");
    let from = world.bitcoind.height()?;
    world.bitcoind.mine_to(life.dying_until())?;
    settle(&mut world, &id, &paths, &[1, 4, 11])?;
    // Parts of a satoshi of a client's balance go to fees.
    let held: Vec<u64> =
        before.parties.iter().filter(|(name, _)| *name != "lsp").map(|(_, held)| held % 1000).collect();
    let due = before.of("lsp")? + held.iter().sum::<u64>();
    mine_until(&world, &world.lsp, "the LSP to have its share of all channels", || {
        let fees = world.bitcoind.fees(before.height + 1, world.bitcoind.height()?)?;
        let balance = world.lsp.balance()?;
        ensure!(balance.total_msat() == due - fees * 1000, "due {due} msat less {fees} sat: {balance:?}");
        Ok(())
    })?;
    // It says so when the last sweep is deep enough.
    world.mine_for(&world.lsp, 6)?;
    wait::until_value(
        "the LSP to call the factory left",
        PATIENCE,
        || Ok(world.lsp.factory(&id)?.state),
        |state| state == "exited",
    )?;
    assert!(world.bitcoind.height()? < life.expiry(), "all of it before T");

    let height = world.bitcoind.height()?;
    world.mine(life.expiry() - height)?;
    check_distributions_refused(&world, hostile, &paths)?;
    for index in 0..world.clients.len() {
        let client = world.client(index)?;
        let (node_id, held) = (client.node_id().to_owned(), before.of(client.name())?);
        let place = tree.client_ids.iter().position(|c| c.to_string() == node_id).unwrap();
        let path = tree.leaf_path(place).unwrap();
        let inside = place % usize::from(tree.plan.params.shape.clients_per_leaf);
        let channel = path.leaf[inside].outpoint;
        come_back(&mut world, index, &id, channel, held - CLIENT_COIN * 1000, from)?;
    }
    world.sync()?;
    // What the clients have was checked to the satoshi; so the rest, less fees, is with the LSP.
    let after = Snapshot::take(&world)?;
    check_conserved(&world, &before, &after)?;
    world.finish();
    Ok(())
}

#[test]
fn the_lsp_settles_each_leaf_in_time() -> Result<()> {
    settles_in_time("settle", params(1, &[2, 2]))
}

#[test]
fn the_lsp_settles_leaves_of_two_clients_in_time() -> Result<()> {
    settles_in_time("settle-pairs", params(2, &[2]))
}

/// The wallet is too small: that is said long before, with the amount; the settlement waits and goes on.
#[test]
fn a_settlement_goes_on_when_a_coin_arrives() -> Result<()> {
    let mut world = World::start("settle-coin", 2)?;
    // Nearly all of the LSP's money goes into the factory.
    let capacity = (LSP_FUNDS - LEFT_SAT) / 2;
    let request = world.factory_request(capacity, PUSH, 0, Some(params(1, &[2])));
    let factory = world.create_factory(&request)?;
    let id = factory.instance_id;
    let before = wait_at_rest(&world)?;
    let reserve = world.lsp.factory(&id)?.exit_reserve.unwrap();
    assert!(reserve.available_sat < reserve.needed_sat, "{reserve:?}");
    wait::until_value(
        "the LSP to say that its wallet is too small",
        PATIENCE,
        || world.lsp.events("exit_reserve_low"),
        |events| {
            events.iter().any(|event| {
                event.data["needed_sat"] == reserve.needed_sat
                    && event.data["available_sat"] == reserve.available_sat
            })
        },
    )?;
    for client in &mut world.clients {
        client.kill()?;
    }
    let (_, paths, life) = look_at_tree(&mut world, &id)?;
    world.bitcoind.mine_to(life.dying_until())?;

    let mut blocks = 0;
    let asked = loop {
        wait_published(&world.bitcoind, &world.lsp, &id, &paths, Way::Channels)?;
        if let Some(event) = world.lsp.events("exit_needs_coin")?.pop() {
            let all = world.lsp.balance()?.onchain.confirmed_sat;
            let too_little = event.data["needed_sat"].as_u64().is_some_and(|needed| all < needed);
            if too_little && world.bitcoind.mempool()?.is_empty() {
                break event;
            }
        }
        assert!(blocks < PATHS_WITHIN, "{:?}", world.lsp.factory(&id)?.exits);
        world.mine_for(&world.lsp, 1)?;
        blocks += 1;
    };
    let needed = asked.data["needed_sat"].as_u64().unwrap();
    let available = asked.data["available_sat"].as_u64().unwrap();
    assert!(available < needed, "{asked:?}");
    wait::until_value(
        "the settlement to wait for a coin",
        PATIENCE,
        || Ok(world.lsp.factory(&id)?.exits),
        |exits| exits.iter().any(|exit| exit.phase == "waiting_for_coin"),
    )?;
    let address = Bitcoind::parse_address(asked.data["address"].as_str().unwrap())?;
    let other = Bitcoind::parse_address(&world.lsp.address()?)?;
    world.bitcoind.fund(&[(address, COIN), (other, COIN)])?;
    let funded = world.bitcoind.height()?;
    let given = world.bitcoind.fees(funded, funded)?;
    settle(&mut world, &id, &paths, &[])?;
    mine_until(&world, &world.lsp, "the LSP to have its share of both channels", || {
        let fees = world.bitcoind.fees(before.height + 1, world.bitcoind.height()?)? - given;
        let (due, balance) = (before.of("lsp")? / 1000 + 2 * COIN - fees, world.lsp.balance()?);
        ensure!(balance.total_msat() == due * 1000, "due {due} sat: {balance:?}");
        Ok(())
    })?;
    assert!(world.bitcoind.height()? < life.expiry(), "all of it before T");
    world.finish();
    Ok(())
}
