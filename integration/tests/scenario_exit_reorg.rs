//! An exit on a chain that is rewritten under it, with a process that dies again and again; and an exit that is in want
//! of coins and budget while a stranger is in its way.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Result};
use bitcoin::{OutPoint, Txid};
use integration::cpfp::Purse;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::pace::{self, Leaving, Stand};
use integration::payments::{pay, Order, Party};
use integration::wait::{self, Seen};
use integration::world::PATIENCE;
use integration::{Bitcoind, Client, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 400_000;
/// Blocks that one exit may take here, reorganisations included.
const LIMIT: u32 = 1_000;

/// A static root, and leaves with two counters whose delays are longer than any reorganisation here.
fn params() -> Value {
    json!({ "arity": [2], "layers": [[], [[2, 8, 8], [2, 8, 0]]] })
}

/// Client 0 leaves while the LSP is dead; `depths` says how deep its nth transaction is undone, as often as wanted.
/// Before each reorganisation the client is killed: every second time it comes back only after it.
fn leaves_through(name: &str, depths: impl Fn(u32) -> Vec<u32>) -> Result<()> {
    let mut world = World::start(name, 2)?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params())))?;
    let start = Snapshot::take(&world)?;
    let paid = pay(&world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 12_345_678 })?;
    wait_for(&world, &start.after(&[paid])?)?;
    let before = wait_at_rest(&world)?;
    world.lsp.kill()?;
    let leaving = Leaving::client(&world, 0, &factory.instance_id)?;
    world.client(0)?.exit(&factory.instance_id)?;

    let mut done: Vec<Txid> = Vec::new();
    let (mut rewritten, end) = (0u32, world.bitcoind.height()? + LIMIT);
    loop {
        ensure!(world.bitcoind.height()? < end, "not done after {LIMIT} blocks: {:?}", leaving.exit(&world)?);
        let txid = match leaving.settle(&world)? {
            Stand::Done => break,
            Stand::Stuck => panic!("stuck: {:?}", leaving.exit(&world)?),
            Stand::Idle(blocks) => {
                world.bitcoind.mine(blocks)?;
                continue;
            }
            Stand::Offered(txid) => txid,
        };
        // A power cut with the transaction in the mempool changes nothing.
        world.client_mut(0)?.kill()?;
        world.client_mut(0)?.start()?;
        assert_eq!(leaving.settle(&world)?, Stand::Offered(txid));
        confirm(&world, txid)?;
        done.push(txid);
        println!("transaction {} confirmed at {}: {txid}", done.len(), world.bitcoind.height()?);
        for depth in depths(u32::try_from(done.len())?) {
            world.bitcoind.mine_empty(depth - 1)?;
            world.client(0)?.wait_synced(&world.bitcoind)?;
            let dead = rewritten % 2 == 1;
            if dead {
                world.client_mut(0)?.kill()?;
            }
            world.bitcoind.reorganize(depth)?;
            rewritten += 1;
            assert!(
                world.bitcoind.confirmed(txid)?.is_none(),
                "{txid} is in the chain after {depth} blocks fell"
            );
            if dead {
                world.client_mut(0)?.start()?;
            }
            world.client(0)?.wait_synced(&world.bitcoind)?;
            // It has to be there again, with whatever child, and confirms again.
            world.bitcoind.wait_seen(txid, PATIENCE)?;
            confirm(&world, txid)?;
        }
    }
    println!("{} transactions, {rewritten} reorganisations", done.len());
    // Root, kickoff, two states, commitment, sweep.
    assert_eq!(done.len(), 6, "transactions that were offered one by one");

    world.lsp.start()?;
    let after = pace::rest_until(&world, |after| check_conserved(&world, &before, after))?;
    assert_eq!(after.of("client-1")?, before.of("client-1")?);
    // All fees of these blocks were the client's, but for the sweep of the LSP's own output.
    let lsp = before.of("lsp")? - after.of("lsp")?;
    assert!(lsp < 2_000_000, "the LSP paid {lsp} msat");
    // Who stayed goes on.
    let mut rest = factory.clone();
    rest.clients.retain(|member| member.node_id != leaving.node_id);
    world.wait_usable(&rest)?;
    let invoice = world.lsp.invoice(7_000_001, "after all")?;
    assert_eq!(world.client(1)?.pay(&invoice.invoice)?.status, "succeeded");
    world.finish();
    Ok(())
}

/// Mines a block, and the client has seen it.
fn confirm(world: &World, txid: Txid) -> Result<()> {
    world.bitcoind.mine(1)?;
    world.client(0)?.wait_synced(&world.bitcoind)?;
    let tip = world.bitcoind.height()?;
    assert_eq!(world.bitcoind.confirmed(txid)?.map(|there| there.height), Some(tip), "{txid}");
    Ok(())
}

#[test]
fn every_step_is_undone_once() -> Result<()> {
    leaves_through("reorg", |number| vec![number.min(6)])
}

#[test]
#[ignore = "long: make exits"]
fn every_step_is_undone_at_every_depth() -> Result<()> {
    leaves_through("reorgs", |_| (1..=6).collect())
}

/// Asks for an exit with this budget, or changes that of the one under way.
fn exit_within(client: &Client, id: &str, max_fee_sat: u64) -> Result<()> {
    let body = json!({ "max_fee_sat": max_fee_sat });
    client.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &body)?;
    Ok(())
}

/// Waits until the exit is in this phase, and checks that it stays so, with nothing published, for two blocks.
fn stays(world: &World, leaving: &Leaving, phase: &str) -> Result<integration::types::Exit> {
    for mine in [true, true, false] {
        wait::until(&format!("the exit to be {phase}"), PATIENCE, || {
            let exit = leaving.exit(world)?;
            Ok(if exit.phase == phase { Seen::Done(()) } else { Seen::NotYet(format!("{exit:?}")) })
        })?;
        assert_eq!(world.bitcoind.mempool()?, []);
        if mine {
            world.bitcoind.mine(1)?;
            world.client(0)?.wait_synced(&world.bitcoind)?;
        }
    }
    leaving.exit(world)
}

/// A stranger has published the step that is due, with a child as fat and cheap as it gets, while the client looked
/// elsewhere. No miner takes it, and the client puts a better child in its place.
fn displaces_a_stranger(
    world: &mut World,
    leaving: &Leaving,
    step: Txid,
    stranger: &mut Purse,
) -> Result<()> {
    let tx = world.bitcoind.wait_seen(step, PATIENCE)?;
    world.client_mut(0)?.freeze()?;
    // The mempool is not kept: what the client had offered is gone.
    world.bitcoind.kill()?;
    world.bitcoind.restart()?;
    assert_eq!(world.bitcoind.mempool()?, []);
    let anchor = u32::try_from(tx.output.len() - 1)?;
    let fat = stranger.child_with(&tx, anchor, 25, 1_200)?;
    assert!(fat.vsize() > 850 && fat.vsize() <= 1_000, "{}", fat.vsize());
    world.bitcoind.submit_package(&[&tx, &fat])?;
    world.client_mut(0)?.thaw()?;
    let outpoint = OutPoint::new(step, anchor);
    let foreign = fat.compute_txid();
    wait::until("the stranger's child to be displaced", PATIENCE, || {
        match world.bitcoind.mempool_spender(outpoint)? {
            Some(child) if child != foreign => Ok(Seen::Done(())),
            seen => {
                // The client looks after its step once a block; these miners leave the stranger's alone.
                world.bitcoind.mine_empty(1)?;
                world.client(0)?.wait_synced(&world.bitcoind)?;
                Ok(Seen::NotYet(format!("{seen:?}")))
            }
        }
    })?;
    let own = leaving.exit(world)?.steps.into_iter().find(|s| s.txid == step).and_then(|s| s.child_txid);
    assert_eq!(world.bitcoind.mempool_spender(outpoint)?, own);
    assert!(world.bitcoind.transaction(foreign)?.is_none(), "evicted");
    Ok(())
}

/// Pays the client one coin, in the next block.
fn give_coin(world: &World, sat: u64) -> Result<()> {
    let address = Bitcoind::parse_address(&world.client(0)?.address()?)?;
    world.bitcoind.fund(&[(address, sat)])?;
    world.client(0)?.wait_synced(&world.bitcoind)
}

#[test]
fn an_exit_in_want_of_coin_and_budget_with_a_stranger_in_its_way() -> Result<()> {
    const COIN: u64 = 100_000;
    const BUDGET: u64 = 2_000;
    let mut world = World::start("want", 0)?;
    for index in 0..2 {
        let poor = Client::start(world.path(), index, &world.bitcoind, &world.lsp, &[])?;
        world.clients.push(poor);
    }
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params())))?;
    let before = wait_at_rest(&world)?;
    assert_eq!(before.of("client-0")?, CAPACITY * 500, "no coin, half of the channel");
    world.lsp.kill()?;
    let id = factory.instance_id.clone();
    let leaving = Leaving::client(&world, 0, &id)?;

    // Less than any child costs.
    exit_within(world.client(0)?, &id, 100)?;
    let exit = stays(&world, &leaving, "over_budget")?;
    assert!(
        exit.over_budget_sat.is_some_and(|needed| needed > 100) && exit.max_fee_sat == Some(100),
        "{exit:?}"
    );
    // Enough for one, but there is no coin.
    exit_within(world.client(0)?, &id, BUDGET)?;
    let exit = stays(&world, &leaving, "waiting_for_coin")?;
    let needed = exit.needs_coin_sat.expect("amount");
    assert!((500..=BUDGET).contains(&needed), "{exit:?}");
    // One sat too little is no coin; two coins together are.
    give_coin(&world, needed - 1)?;
    let exit = stays(&world, &leaving, "waiting_for_coin")?;
    assert_eq!(exit.needs_coin_sat, Some(needed));
    give_coin(&world, COIN)?;
    let paid_from = world.bitcoind.height()?;
    // It goes on until the budget is used up.
    let spent = loop {
        match leaving.settle(&world)? {
            Stand::Stuck => break world.bitcoind.fees(paid_from + 1, world.bitcoind.height()?)?,
            Stand::Idle(blocks) => drop(world.bitcoind.mine(blocks)?),
            Stand::Offered(_) => drop(world.bitcoind.mine(1)?),
            Stand::Done => panic!("for {BUDGET} sat?"),
        }
    };
    assert!(spent > 0 && spent <= BUDGET, "{spent}");
    let exit = stays(&world, &leaving, "over_budget")?;
    assert_eq!(exit.fees_sat, spent);
    let step = exit.steps.iter().find(|s| s.confirmed_height.is_none()).expect("a step is missing").txid;
    // The blocks with the stranger's coins have fees that are not the client's.
    let mut stranger = Purse::fill(&world.bitcoind, 1)?;
    world.client(0)?.wait_synced(&world.bitcoind)?;
    let from = world.bitcoind.height()?;
    exit_within(world.client(0)?, &id, 50_000)?;
    assert_eq!(leaving.settle(&world)?, Stand::Offered(step));
    displaces_a_stranger(&mut world, &leaving, step, &mut stranger)?;
    pace::drive(&world, std::slice::from_ref(&leaving), LIMIT, &mut |_| Ok(()))?;
    pace::rest(&world)?;
    let fees = spent + world.bitcoind.fees(from + 1, world.bitcoind.height()?)?;
    let after = world.client(0)?.balance()?;
    assert_eq!(after.total_sat, after.onchain.confirmed_sat);
    assert_eq!(after.total_sat, needed - 1 + COIN + CAPACITY / 2 - fees, "{after:?}, {fees} sat of fees");

    // The LSP's share arrives, too.
    world.lsp.start()?;
    let from = world.bitcoind.height()?;
    let after = pace::rest_until(&world, |after| {
        let due = before.of("lsp")? - world.bitcoind.fees(from + 1, after.height)? * 1000;
        ensure!(after.of("lsp")? == due, "the LSP is due {due} msat: {after:?}");
        Ok(())
    })?;
    assert_eq!(after.of("client-1")?, before.of("client-1")?);
    world.finish();
    Ok(())
}
