//! A funding transaction that lingers: after 144 blocks the clients give the factory up. They keep what they have
//! signed, since only the LSP knows whether it is dead; and when it confirms after all, each leaves by its path.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use bitcoin::{OutPoint, Txid};
use integration::wait::{self, Seen};
use integration::world::{CEREMONY, CLIENT_COIN, PATIENCE};
use integration::{Client, World};

const CAPACITY: u64 = 400_000;
const PUSH: u64 = 250_000;
/// Blocks after birth at which an unconfirmed funding is given up.
const GIVE_UP: u32 = 144;
/// More blocks than a path, a commitment and a sweep take.
const EXIT_WITHIN: u32 = 700;

/// Waits until the client has published what is due in the next block: a step of its path, the commitment, the sweep.
fn wait_published(world: &World, client: &Client, id: &str, funding: Txid) -> Result<()> {
    wait::until("what is due to be published", PATIENCE, || {
        let exit = client.factory(id)?.exits.into_iter().next();
        let Some(exit) = exit else { return Ok(Seen::not_yet("no exit")) };
        let next = world.bitcoind.height()? + 1;
        let mut parent = world.bitcoind.confirmed(funding)?.expect("mined").height;
        for step in &exit.steps {
            if let Some(height) = world.bitcoind.confirmed(step.txid)?.map(|c| c.height) {
                parent = height;
                continue;
            }
            let due = parent + u32::from(step.delay_blocks).max(1) <= next;
            let there = world.bitcoind.transaction(step.txid)?.is_some();
            return Ok(if there || !due { Seen::Done(()) } else { Seen::NotYet(format!("{step:?}")) });
        }
        // One client a leaf: its channel is the leaf's first output. The living LSP leaves, too, and its commitment may
        // be there first; then the client's own is not taken.
        let channel = exit.steps.last().map(|s| OutPoint::new(s.txid, 0)).expect("steps");
        let Some(txid) = exit.commitment_txid else {
            let there = world.bitcoind.mempool_spender(channel)?.is_some();
            return Ok(if there { Seen::Done(()) } else { Seen::not_yet("no commitment") });
        };
        let there = match world.bitcoind.confirmed(txid)?.map(|c| c.height) {
            None => {
                world.bitcoind.transaction(txid)?.is_some()
                    || world.bitcoind.mempool_spender(channel)?.is_some()
            }
            // The commitment's delay, and the block in which LDK hands the output out.
            Some(height) => next <= height + 145 || client.balance()?.lightning.pending_sweep_sat == 0,
        };
        Ok(if there { Seen::Done(()) } else { Seen::NotYet(format!("{exit:?}")) })
    })
}

#[test]
fn a_factory_given_up_is_left_when_its_funding_confirms() -> Result<()> {
    let mut world = World::start("late", 2)?;
    let request = world.factory_request(CAPACITY, PUSH, 0, None);
    world.wait_waiting(2)?;
    let id = world.lsp.create_factory(&request)?;
    let factory = world.wait_state(&id, "confirming", CEREMONY)?;
    let funding = factory.funding.expect("funding").txid;
    world.bitcoind.wait_seen(funding, PATIENCE)?;

    world.bitcoind.mine_empty(GIVE_UP)?;
    world.sync()?;
    for client in &world.clients {
        wait::until("the client to give up", PATIENCE, || {
            let state = client.factory(&id)?.state;
            Ok(if state == "failed" { Seen::Done(()) } else { Seen::NotYet(state) })
        })?;
        assert_eq!(client.balance()?.total_sat, CLIENT_COIN, "nothing of it is shown as money");
    }
    // A restart forgets nothing, and the miners are not out of the question yet.
    world.client_mut(0)?.kill()?;
    world.client_mut(0)?.start()?;
    world.sync()?;
    assert!(world.bitcoind.mempool()?.contains(&funding));

    world.mine(1)?;
    assert!(world.bitcoind.confirmed(funding)?.is_some());
    let mut mined = 0;
    loop {
        let states: Vec<String> =
            world.clients.iter().map(|c| Ok(c.factory(&id)?.state)).collect::<Result<_>>()?;
        if states.iter().all(|s| s == "exited") {
            break;
        }
        assert!(mined < EXIT_WITHIN, "{states:?} after {mined} blocks");
        world.mine(6)?;
        mined += 6;
        for client in &world.clients {
            wait_published(&world, client, &id, funding)?;
        }
    }
    // The living LSP's commitment may be the one that confirmed; then the sweep comes some blocks later.
    let mut rest = EXIT_WITHIN;
    for client in &world.clients {
        let all_in_coins = || client.balance().map(|b| b.onchain.confirmed_sat == b.total_sat);
        while !all_in_coins()? {
            assert!(rest > 0, "not all in coins: {:?}", client.balance()?);
            world.mine(1)?;
            rest -= 1;
        }
    }
    for client in &world.clients {
        let exit = client.factory(&id)?.exits.into_iter().next().expect("exit");
        let tx =
            world.bitcoind.transaction(exit.commitment_txid.expect("commitment"))?.expect("on the chain");
        let balance = client.balance()?;
        assert_eq!(balance.onchain.confirmed_sat, balance.total_sat, "all of it in coins");
        // Its coin and what the LSP gave it, less the fees of path, commitment and sweep.
        let fees = CLIENT_COIN + PUSH - balance.total_sat;
        assert!(fees < 60_000, "{fees} sat of fees");
        assert!(tx.output.iter().any(|o| o.value.to_sat() == PUSH), "{tx:?}");
    }
    world.finish();
    Ok(())
}
