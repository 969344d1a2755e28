//! A cooperative close that everybody signed and that is not published: it counts as live until something else is on
//! the chain. Nobody can pay over the channels meanwhile, so whatever confirms in the end pays the same.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use bitcoin::{OutPoint, Transaction, Txid};
use integration::closed::{
    all_leave, close_of, distributions_are_refused, dues, nobody_pays, paths, wait_signed,
};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::pace;
use integration::payments::{pay, Order, Party};
use integration::signed::{tree_of, Stranger};
use integration::types::Factory;
use integration::wait;
use integration::world::{CLIENT_COIN, PATIENCE};
use integration::World;
use serde_json::{json, Value};

const CLIENTS: usize = 3;
const CAPACITY: u64 = 300_000;
const STOCK: u64 = 5_000;

/// A short life, short delays.
fn params() -> Value {
    json!({
        "arity": [CLIENTS], "layers": [[], [[2, 2, 4], [2, 2, 0]]], "active": 20, "dying": 10, "margin": 10,
    })
}

/// A factory over which payments were made.
struct Fresh {
    world: World,
    factory: Factory,
    before: Snapshot,
    /// What the clients are due, sat.
    dues: Vec<u64>,
}

fn fresh(name: &str) -> Result<Fresh> {
    let world = World::start(name, CLIENTS)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params()));
    let factory = world.create_factory(&request)?;
    let start = Snapshot::take(&world)?;
    let order = |from, to, amount_msat| Order { from, to, amount_msat };
    let paid = [
        pay(&world, order(Party::Client(0), Party::Client(1), 12_345_678))?,
        pay(&world, order(Party::Client(2), Party::Lsp, 3_000_001))?,
    ];
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    let dues = dues(&world, &factory.instance_id)?;
    Ok(Fresh { world, factory, before, dues })
}

/// As [`fresh`], and everybody has signed its close, which only the LSP holds.
fn withheld(name: &str) -> Result<(Fresh, Txid)> {
    let fresh = fresh(name)?;
    let (world, id) = (&fresh.world, &fresh.factory.instance_id);
    world.lsp.faults().set("on@lsp.close.withheld")?;
    world.lsp.close_factory(id)?;
    let txid = wait_signed(world, id)?;
    assert!(world.bitcoind.mempool()?.is_empty(), "it was withheld");
    Ok((fresh, txid))
}

/// It is published long after everybody has signed it, and more payments were tried in between.
#[test]
fn a_close_that_comes_late_pays_what_everybody_had() -> Result<()> {
    let (Fresh { mut world, factory, before, dues }, txid) = withheld("late-close")?;
    let id = factory.instance_id.clone();
    nobody_pays(&world)?;
    world.client_mut(0)?.kill()?;
    world.client_mut(0)?.start()?;
    world.mine(3)?;
    nobody_pays(&world)?;
    world.lsp.kill()?;
    world.lsp.start()?;
    world.mine(3)?;
    nobody_pays(&world)?;
    assert!(world.bitcoind.mempool()?.is_empty());

    world.lsp.faults().clear()?;
    world.mine(1)?;
    let tx = world.bitcoind.wait_seen(txid, PATIENCE)?;
    world.mine(6)?;
    assert_eq!(tx.input.len(), 1);
    assert_eq!(tx.input[0].previous_output, OutPoint::from(factory.funding.unwrap()));
    for (client, due) in world.clients.iter().zip(&dues) {
        assert!(tx.output.iter().any(|o| o.value.to_sat() == *due), "{} is due {due}: {tx:?}", client.name());
        wait::until_value(
            &format!("{} to be paid {due} sat", client.name()),
            PATIENCE,
            || Ok((client.balance()?, client.factory(&id)?.state)),
            |(b, state)| {
                b.total_sat == CLIENT_COIN + due
                    && b.onchain.confirmed_sat == b.total_sat
                    && state == "closed"
            },
        )?;
    }
    world.wait_state(&id, "closed", PATIENCE)?;
    let after = Snapshot::take(&world)?;
    check_conserved(&world, &before, &after)?;

    // What they were paid stays all they get, also at T.
    let lsp = world.lsp.balance()?;
    world.lsp.kill()?;
    let paths = paths(&world, &tree_of(&world.lsp, &id)?)?;
    let mut stranger = Stranger::new(&world.bitcoind, 1)?;
    let now = world.bitcoind.height()?;
    world.bitcoind.mine(factory.expiry_height.saturating_sub(now))?;
    world.sync()?;
    distributions_are_refused(&world, &paths, &mut stranger)?;
    world.lsp.start()?;
    world.mine(3)?;
    assert!(world.bitcoind.mempool()?.is_empty());
    for (client, due) in world.clients.iter().zip(&dues) {
        assert_eq!(client.balance()?.total_sat, CLIENT_COIN + due, "{}", client.name());
    }
    assert_eq!(world.lsp.balance()?, lsp);
    world.finish();
    Ok(())
}

/// It never comes, or too late: a client leaves by its path while the LSP is gone, which calls the others out; all are
/// paid the same that the close would have paid them, and then the chain refuses the close, and at T the distributions.
#[test]
fn a_client_that_leaves_instead_calls_the_others_out() -> Result<()> {
    let (Fresh { mut world, factory, before, dues }, txid) = withheld("veto")?;
    let id = factory.instance_id.clone();
    world.lsp.kill()?;
    let close: Transaction = close_of(&world.lsp, &id)?;
    assert_eq!(close.compute_txid(), txid);
    let paths = paths(&world, &tree_of(&world.lsp, &id)?)?;
    world.client(0)?.exit(&id)?;
    let spends = all_leave(&world, &id, &paths)?;
    let refused = world.bitcoind.send(&close).expect_err("the funding output is spent");
    assert!(refused.to_string().contains("inputs-missingorspent"), "{refused:#}");
    for ((client, due), spend) in world.clients.iter().zip(&dues).zip(&spends) {
        // The closing transaction that was made when the channel was shut.
        let tx = world.bitcoind.confirmed(*spend)?.expect("confirmed").tx;
        assert!(tx.output.iter().any(|o| o.value.to_sat() == *due), "{} is due {due}: {tx:?}", client.name());
        let fees = client.factory(&id)?.exits.pop().expect("exit").fees_sat;
        let balance = client.balance()?;
        assert_eq!(balance.total_sat, balance.onchain.confirmed_sat, "{}", client.name());
        assert_eq!(balance.total_sat, CLIENT_COIN + due - fees, "{}: {fees} sat of fees", client.name());
    }

    // The LSP comes back, goes on publishing its close, and gets what is left.
    world.lsp.faults().clear()?;
    world.lsp.start()?;
    pace::rest_until(&world, |after| check_conserved(&world, &before, after))?;
    world.wait_state(&id, "exited", PATIENCE)?;
    let held = Snapshot::take(&world)?;
    let mut stranger = Stranger::new(&world.bitcoind, 1)?;
    let now = world.bitcoind.height()?;
    world.bitcoind.mine(factory.expiry_height.saturating_sub(now))?;
    world.sync()?;
    distributions_are_refused(&world, &paths, &mut stranger)?;
    world.mine(3)?;
    assert_eq!(Snapshot::take(&world)?.parties, held.parties);
    world.finish();
    Ok(())
}

/// A client leaves by its path while the close is being signed: one signature is missing, and comes when the root is on
/// the chain already. The channels were shut by then, so all leave by their paths, with the same amounts.
#[test]
#[ignore = "long: make adversaries"]
fn a_client_that_leaves_while_the_close_is_being_signed() -> Result<()> {
    let Fresh { mut world, factory, before, dues } = fresh("veto-signing")?;
    let id = factory.instance_id.clone();
    world.lsp.stop()?;
    let paths = paths(&world, &tree_of(&world.lsp, &id)?)?;
    world.lsp.start()?;
    world.wait_usable(&factory)?;
    let slow = world.client(2)?;
    slow.faults().set("hold@client.send.close_partial")?;
    world.lsp.close_factory(&id)?;
    slow.faults().wait_held("client.send.close_partial")?;
    world.client(0)?.exit(&id)?;
    let root = world.lsp.factory(&id)?.tree[0].txid;
    world.bitcoind.wait_seen(root, PATIENCE)?;
    world.bitcoind.mine(1)?;
    assert!(world.bitcoind.confirmed(root)?.is_some());
    slow.faults().clear()?;
    world.sync()?;
    all_leave(&world, &id, &paths)?;
    pace::rest_until(&world, |after| check_conserved(&world, &before, after))?;
    for (client, due) in world.clients.iter().zip(&dues) {
        let fees = client.factory(&id)?.exits.pop().expect("exit").fees_sat;
        assert_eq!(client.balance()?.total_sat, CLIENT_COIN + due - fees, "{}", client.name());
    }
    world.finish();
    Ok(())
}
