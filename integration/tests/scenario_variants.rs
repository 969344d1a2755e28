//! Trees of every kind: one client leaves while the LSP is dead, then the LSP comes back and leaves a client that is
//! dead. All money adds up, and who is left goes on paying.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context, Result};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::pace::{self, Leaving};
use integration::payments::{pay, Order, Party};
use integration::World;
use serde_json::{json, Value};

const CAPACITY: u64 = 300_000;
/// Leaves by itself.
const LEAVER: usize = 0;
/// Is left by the LSP.
const DEAD: usize = 1;
/// So many clients stay awake.
const AWAKE: usize = 20;
/// Blocks that one exit may take here.
const LIMIT: u32 = 900;

fn order(from: usize, to: usize, amount_msat: u64) -> Order {
    Order { from: Party::Client(from), to: Party::Client(to), amount_msat }
}

fn both_ways_out(name: &str, clients: usize, params: Option<Value>) -> Result<()> {
    let mut world = World::start(name, clients)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, params);
    let factory = world.create_factory(&request)?;
    let id = factory.instance_id.clone();
    let start = Snapshot::take(&world)?;
    let paid = [pay(&world, order(LEAVER, DEAD, 12_345_678))?, pay(&world, order(DEAD, LEAVER, 2_000_002))?];
    wait_for(&world, &start.after(&paid)?)?;
    wait_at_rest(&world)?;
    // In a large crowd those who have no part in it sleep, as phones do. The LSP's side of their channels is counted.
    for index in AWAKE..clients {
        world.client_mut(index)?.stop()?;
    }
    let before = Snapshot::take(&world)?;

    world.lsp.kill()?;
    let leaving = Leaving::client(&world, LEAVER, &id)?;
    world.client(LEAVER)?.exit(&id)?;
    pace::drive(&world, std::slice::from_ref(&leaving), LIMIT, &mut |_| Ok(()))
        .context("the client's exit")?;
    pace::rest(&world)?;
    let own = world.client(LEAVER)?.balance()?;
    assert_eq!(own.onchain.confirmed_sat, own.total_sat, "all of it in coins: {own:?}");
    // So far every fee was the leaver's.
    let fees = world.bitcoind.fees(before.height + 1, world.bitcoind.height()?)? * 1000;
    let held = before.of(&format!("client-{LEAVER}"))?;
    // What both sides' shares have beyond whole satoshis is in the commitment's anchor, whose spender gets it.
    assert_eq!(own.total_sat, (held - fees).div_ceil(1000), "{held} msat before, {fees} msat of fees");

    world.client_mut(DEAD)?.kill()?;
    world.lsp.start()?;
    world.sync()?;
    let by_lsp = Leaving::by_lsp(&world, DEAD, &id)?;
    let body = json!({ "client": by_lsp.node_id });
    world.lsp.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &body)?;
    pace::drive(&world, std::slice::from_ref(&by_lsp), LIMIT, &mut |_| Ok(())).context("the LSP's exit")?;
    world.client_mut(DEAD)?.start()?;
    let after = pace::rest_until(&world, |after| check_conserved(&world, &before, after))?;
    let mut rest = factory.clone();
    rest.clients.retain(|member| member.node_id != leaving.node_id && member.node_id != by_lsp.node_id);
    for index in (0..clients.min(AWAKE)).filter(|index| ![LEAVER, DEAD].contains(index)) {
        let name = format!("client-{index}");
        assert_eq!(after.of(&name)?, before.of(&name)?, "{name} lost money");
    }
    world.wait_usable(&rest)?;
    let paid = match clients {
        2 => vec![],
        3 => vec![pay(&world, Order { from: Party::Client(2), to: Party::Lsp, amount_msat: 4_000_000 })?],
        _ => vec![pay(&world, order(2, 3, 5_000_000))?, pay(&world, order(3, 2, 4_000_000))?],
    };
    wait_for(&world, &after.after(&paid)?)?;
    world.finish();
    Ok(())
}

#[test]
fn two_clients_with_one_layer() -> Result<()> {
    both_ways_out("two", 2, Some(json!({ "layers": [[], [[3, 6, 0]]] })))
}

/// The root is the leaf: one client's exit puts all channels on the chain.
#[test]
fn three_clients_on_one_leaf() -> Result<()> {
    both_ways_out(
        "three",
        3,
        Some(json!({ "clients_per_leaf": 3, "arity": [], "layers": [[[2, 8, 6], [2, 8, 0]]] })),
    )
}

#[test]
fn eight_clients_two_a_leaf_three_layers() -> Result<()> {
    both_ways_out("eight", 8, Some(json!({ "clients_per_leaf": 2 })))
}

#[test]
#[ignore = "long: make exits"]
fn twenty_clients_below_an_upper_layer() -> Result<()> {
    let params = json!({ "arity": [4, 5], "layers": [[], [[2, 6, 4]], [[2, 8, 4], [2, 8, 0]]] });
    both_ways_out("upper", 20, Some(params))
}

#[test]
#[ignore = "long: make exits"]
fn a_hundred_and_thirty_clients() -> Result<()> {
    both_ways_out("crowd", 130, None)
}
