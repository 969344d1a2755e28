//! The LSP leaves a client that is dead: that client's path goes on the chain and no other, whoever leaves next uses
//! what is there already, and all others pay as before.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::process::Command;

use anyhow::Result;
use bitcoin::Txid;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::pace::{self, Leaving, Stand};
use integration::payments::{pay, Order, Party};
use integration::{binaries, World};
use serde_json::json;

const CAPACITY: u64 = 400_000;
/// Blocks that one exit may take here.
const LIMIT: u32 = 400;

/// The tree transactions of a client's path.
fn path(world: &World, index: usize, id: &str) -> Result<Vec<Txid>> {
    Ok(world.client(index)?.factory(id)?.tree.iter().map(|tx| tx.txid).collect())
}

/// Tree transactions that are confirmed.
fn on_chain(world: &World, id: &str) -> Result<HashSet<Txid>> {
    let mut found = HashSet::new();
    for tx in world.lsp.factory(id)?.tree {
        if world.bitcoind.confirmed(tx.txid)?.is_some() {
            found.insert(tx.txid);
        }
    }
    Ok(found)
}

fn order(from: usize, to: usize, amount_msat: u64) -> Order {
    Order { from: Party::Client(from), to: Party::Client(to), amount_msat }
}

#[test]
fn the_lsp_leaves_a_dead_client_and_the_others_live_on() -> Result<()> {
    let mut world = World::start("lsp-exit", 4)?;
    // Two static levels: what neighbours share is the root and one node.
    let params = json!({ "arity": [2, 2], "layers": [[], [], [[2, 8, 8], [2, 8, 0]]] });
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params)))?;
    let id = factory.instance_id.clone();
    let start = Snapshot::take(&world)?;
    let paid = [pay(&world, order(0, 1, 12_345_678))?, pay(&world, order(2, 3, 1_000_001))?];
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    let paths = (0..4).map(|index| path(&world, index, &id)).collect::<Result<Vec<_>>>()?;
    // Client 0 dies; its neighbour leaves later.
    const DEAD: usize = 0;
    let neighbour = (1..4).find(|index| paths[*index][1] == paths[DEAD][1]).expect("a neighbour");
    let [one, other] = (1..4).filter(|index| *index != neighbour).collect::<Vec<_>>()[..] else { panic!() };

    world.client_mut(DEAD)?.kill()?;
    let by_lsp = Leaving::by_lsp(&world, DEAD, &id)?;
    let mut exit = Command::new(binaries::workspace("lsp-server")?);
    for name in binaries::settings() {
        exit.env_remove(name);
    }
    exit.arg("--data-dir").arg(world.lsp.data_dir()).args(["exit", "--no-wait", "--client", &by_lsp.node_id]);
    assert!(exit.status()?.success());
    // While the path's delays run, the others pay.
    let mut made = Vec::new();
    pace::drive(&world, std::slice::from_ref(&by_lsp), LIMIT, &mut |stands| {
        if made.len() < 2 && matches!(stands, [Stand::Idle(_)]) {
            made.push(pay(&world, order(one, neighbour, 5_000_001))?);
            made.push(pay(&world, order(neighbour, other, 3_000_003))?);
        }
        Ok(())
    })?;
    assert_eq!(made.len(), 2, "no payment was made while the path was going out");
    assert_eq!(on_chain(&world, &id)?, paths[DEAD].iter().copied().collect(), "no other leaf is published");
    pace::rest(&world)?;
    made.push(pay(&world, order(other, one, 4_000_000))?);

    // The neighbour leaves by itself, with the LSP alive: root and node are there already.
    let held = world.client(neighbour)?.balance()?;
    let from = world.bitcoind.height()?;
    let leaving = Leaving::client(&world, neighbour, &id)?;
    wait_at_rest(&world)?;
    world.client(neighbour)?.exit(&id)?;
    pace::drive(&world, std::slice::from_ref(&leaving), LIMIT, &mut |_| Ok(()))?;
    pace::rest(&world)?;
    let both: HashSet<Txid> = paths[DEAD].iter().chain(&paths[neighbour]).copied().collect();
    assert_eq!(on_chain(&world, &id)?, both);
    let exit = leaving.exit(&world)?;
    assert!(
        exit.steps.iter().take(2).all(|step| step.child_txid.is_none()),
        "shared steps paid twice: {exit:?}"
    );
    // What is shared has one child, the LSP's; nothing of it was in the blocks of the second exit.
    for txid in &paths[DEAD][..2] {
        pace::child_of(&world, *txid)?;
        assert!(world.bitcoind.confirmed(*txid)?.expect("shared").height <= from);
    }
    let now = world.client(neighbour)?.balance()?;
    assert_eq!(now.onchain.confirmed_sat, now.total_sat);
    assert!(held.total_sat - now.total_sat < 20_000, "its exit cost {held:?} {now:?}");

    // The dead client comes back to its money.
    world.client_mut(DEAD)?.start()?;
    let after = pace::rest_until(&world, |after| check_conserved(&world, &before, after))?;
    let now = world.client(DEAD)?.balance()?;
    assert_eq!(now.onchain.confirmed_sat, now.total_sat, "{now:?}");
    let due = before.after(&made)?;
    for index in [one, other] {
        let name = format!("client-{index}");
        assert_eq!(after.of(&name)?, due.of(&name)?, "{name}");
    }
    // Its commitment was the LSP's, so it paid for the sweep of its own output only.
    let lost = due.of("client-0")? - after.of("client-0")?;
    assert!(lost < 2_000_000, "the dead client paid {lost} msat");
    let paid = [pay(&world, order(one, other, 2_000_000))?, pay(&world, order(other, one, 1_000_000))?];
    wait_for(&world, &after.after(&paid)?)?;
    world.finish();
    Ok(())
}
