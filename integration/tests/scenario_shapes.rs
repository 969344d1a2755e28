//! Other trees than the default one: clients that share a leaf, and levels of nodes above the leaves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, pay_all, Order, Party};
use integration::types::Factory;
use integration::{close, exit, World};
use serde_json::json;

const CAPACITY: u64 = 400_000;
const STOCK: u64 = 50_000;

/// Every client pays the next one; all at once.
fn round(world: &World, amount_msat: u64) -> Result<Snapshot> {
    let before = Snapshot::take(world)?;
    let clients = world.clients.len();
    let orders: Vec<Order> = (0..clients)
        .map(|from| {
            let amount_msat = amount_msat + 1_001 * from as u64;
            Order { from: Party::Client(from), to: Party::Client((from + 1) % clients), amount_msat }
        })
        .collect();
    let made = pay_all(world, &orders, clients)?;
    wait_for(world, &before.after(&made)?)
}

/// Payments, then the close.
fn pay_and_close(world: World, factory: &Factory) -> Result<()> {
    let before = round(&world, 20_000_000)?;
    close::drive(&world, &factory.instance_id)?;
    let after = Snapshot::take(&world)?;
    check_conserved(&world, &before, &after)?;
    world.finish();
    Ok(())
}

/// The clients below each leaf, in order.
fn leaves(factory: &Factory) -> Vec<(usize, usize)> {
    let deepest = factory.tree.iter().map(|tx| tx.level).max().unwrap_or(0);
    let mut leaves: Vec<_> =
        factory.tree.iter().filter(|tx| tx.level == deepest).map(|tx| tx.clients).collect();
    leaves.sort_unstable();
    leaves.dedup();
    leaves
}

#[test]
fn two_clients_a_leaf() -> Result<()> {
    let world = World::start("pairs", 5)?;
    let request =
        world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(json!({ "clients_per_leaf": 2 })));
    let factory = world.create_factory(&request)?;
    // The last leaf is not full; the stock is per leaf.
    assert_eq!(leaves(&factory), [(0, 2), (2, 4), (4, 5)]);
    assert_eq!(factory.funding_sat, 5 * CAPACITY + 3 * STOCK);
    pay_and_close(world, &factory)
}

/// Three levels, a counter on the middle one.
#[test]
fn levels_above_the_leaves() -> Result<()> {
    let world = World::start("levels", 9)?;
    let params = json!({ "arity": [3, 3], "layers": [[], [[2, 3, 2]], [[2, 4, 3], [2, 4, 0]]] });
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params));
    let factory = world.create_factory(&request)?;
    assert_eq!(leaves(&factory), (0..9).map(|first| (first, first + 1)).collect::<Vec<_>>());
    for (level, kind, count) in [(0, "static", 1), (1, "kickoff", 3), (1, "state", 3), (2, "kickoff", 9)] {
        let found = factory.tree.iter().filter(|tx| tx.level == level && tx.kind == kind).count();
        assert_eq!(found, count, "{kind} of level {level}");
    }
    assert_eq!(factory.tree.iter().filter(|tx| tx.level == 2 && tx.kind == "state").count(), 18);
    pay_and_close(world, &factory)
}

/// A leaf that two share goes on the chain for one of them. The other's channel is funded by the same transaction then;
/// it lost nothing and goes on paying, and so do those on the other leaf, whose path has a counter above it.
#[test]
fn a_neighbour_leaves_a_shared_leaf() -> Result<()> {
    const LEAVER: usize = 2;
    let mut world = World::start("neighbour", 4)?;
    let params =
        json!({ "clients_per_leaf": 2, "arity": [2], "layers": [[[2, 6, 5]], [[2, 8, 4], [2, 8, 0]]] });
    let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params));
    let factory = world.create_factory(&request)?;
    // The neighbour is who ends in the same transaction.
    let leaf = |index: usize| -> Result<Option<bitcoin::Txid>> {
        Ok(world.client(index)?.factory(&factory.instance_id)?.tree.last().map(|tx| tx.txid))
    };
    let mut rest = vec![0, 1, 3];
    let shared = leaf(LEAVER)?;
    rest.sort_by_key(|index| leaf(*index).unwrap() != shared);
    let [neighbour, one, other] = rest[..] else { panic!("{rest:?}") };
    assert!(leaf(neighbour)? == shared && leaf(one)? != shared && leaf(one)? == leaf(other)?);
    round(&world, 10_000_000)?;
    let before = wait_at_rest(&world)?;

    world.lsp.kill()?;
    let report = exit::drive(&world, LEAVER, &factory.instance_id, &mut |line| println!("{line}"))?;
    // Kickoff and state of the upper level, kickoff and two states of the leaf.
    assert_eq!(report.path.len(), 5);
    report.check_wallet(CAPACITY)?;

    world.lsp.start()?;
    world.sync()?;
    let leaver = world.client(LEAVER)?.node_id().to_owned();
    let mut staying = factory.clone();
    staying.clients.retain(|member| member.node_id != leaver);
    world.wait_usable(&staying)?;
    let after = exit::settle_lsp(&world, &before)?;
    for index in rest {
        let name = format!("client-{index}");
        assert_eq!(after.of(&name)?, before.of(&name)?, "{name} lost money");
    }
    let order =
        |from, to, amount_msat| Order { from: Party::Client(from), to: Party::Client(to), amount_msat };
    let paid = [
        pay(&world, order(one, neighbour, 5_000_001))?,
        pay(&world, order(neighbour, other, 6_000_002))?,
        pay(&world, order(other, one, 7_000_003))?,
    ];
    wait_for(&world, &after.after(&paid)?)?;
    world.finish();
    Ok(())
}
