//! Just before T, while the clients sleep, the static nodes and every kickoff of the tree are published: whoever did it
//! has gained the leaves' delays. At T all wake up, the LSP too, and the leaf states and the distributions are in a race
//! that the states win: everybody gets what the channels say, to the satoshi.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Result};
use integration::closed::{distributions_are_refused, dues, paths};
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::pace;
use integration::payments::{pay, Order, Party};
use integration::signed::{output_worth, spender, tree_of, wait_published, wait_spent, Stranger, Way};
use integration::world::CLIENT_COIN;
use integration::World;
use serde_json::json;

const CLIENTS: usize = 3;
const CAPACITY: u64 = 300_000;
const STOCK: u64 = 10_001;
/// More blocks than the leaves' delays and the commitments take.
const SETTLED_WITHIN: u32 = 30;

#[test]
#[ignore = "long: make adversaries"]
fn kickoffs_just_before_t_gain_nothing() -> Result<()> {
    let mut world = World::start("expiry", CLIENTS)?;
    let params = json!({
        "arity": [CLIENTS], "layers": [[], [[2, 2, 4], [2, 2, 0]]], "active": 20, "dying": 10, "margin": 10,
    });
    let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params));
    let factory = world.create_factory(&request)?;
    let id = factory.instance_id.clone();
    let mut stranger = Stranger::new(&world.bitcoind, 1 + 2 * CLIENTS)?;
    world.sync()?;
    let start = Snapshot::take(&world)?;
    let order = |from, to, amount_msat| Order { from, to, amount_msat };
    let paid = [
        pay(&world, order(Party::Client(0), Party::Client(1), 98_765_432))?,
        pay(&world, order(Party::Client(2), Party::Lsp, 1_000_001))?,
    ];
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    let dues = dues(&world, &id)?;
    world.lsp.kill()?;
    let paths = paths(&world, &tree_of(&world.lsp, &id)?)?;
    for client in &mut world.clients {
        client.freeze()?;
    }

    // The root, then all kickoffs in one block: the last before T.
    world.bitcoind.mine_to(factory.expiry_height - 2)?;
    stranger.publish(&world.bitcoind, &paths[0].path[0])?;
    world.bitcoind.mine(1)?;
    for path in &paths {
        stranger.publish(&world.bitcoind, &path.path[1])?;
    }
    world.bitcoind.mine(1)?;
    let kicked = world.bitcoind.height()?;
    assert_eq!(kicked, factory.expiry_height);
    for path in &paths {
        assert!(world.bitcoind.confirmed(path.path[1].txid())?.is_some());
    }
    world.lsp.start()?;
    for client in &mut world.clients {
        client.thaw()?;
    }
    world.sync()?;

    let mut settled = 0;
    for _ in 0..SETTLED_WITHIN {
        wait_published(&world.bitcoind, &world.lsp, &id, &paths, Way::Channels)?;
        settled = 0;
        for path in &paths {
            let channel = path.leaf[0].outpoint;
            if world.bitcoind.confirmed(channel.txid)?.is_some() {
                wait_spent(&world.bitcoind, channel)?;
                settled += usize::from(world.bitcoind.unspent(channel)?.is_none());
            }
        }
        if settled == CLIENTS {
            break;
        }
        world.mine(1)?;
    }
    ensure!(settled == CLIENTS, "only {settled} leaves were settled within {SETTLED_WITHIN} blocks");
    let commitments_until = world.bitcoind.height()?;
    pace::rest_until(&world, |after| {
        let fees = world.bitcoind.fees(before.height + 1, after.height)? - stranger.fees_sat;
        ensure!(before.total() == after.total() + fees * 1000, "{fees} sat of fees: {before:?} {after:?}");
        Ok(())
    })?;
    for (index, path) in paths.iter().enumerate() {
        let commitment = spender(&world.bitcoind, path.leaf[0].outpoint, kicked + 1, commitments_until)?;
        output_worth(&commitment, dues[index])?;
        let balance = world.client(index)?.balance()?;
        ensure!(balance.onchain.confirmed_sat == balance.total_sat, "all of it in coins: {balance:?}");
        ensure!(balance.total_sat <= CLIENT_COIN + dues[index], "{balance:?}, due {}", dues[index]);
    }
    distributions_are_refused(&world, &paths, &mut stranger)?;
    world.finish();
    Ok(())
}
