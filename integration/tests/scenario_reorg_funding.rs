//! Reorganisations around a factory's creation, one to six blocks deep: payments pass exactly while the funding is as
//! deep as the policy says (invariant 13), nothing is lost or made, and what fell off the chain comes back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{bail, ensure, Result};
use bitcoin::Txid;
use integration::closed::nobody_pays;
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::payments::{pay, Order, Party};
use integration::types::Factory;
use integration::wait;
use integration::world::{factory_channel, CEREMONY, PATIENCE};
use integration::World;
use serde_json::json;

const CAPACITY: u64 = 400_000;
const DEPTH: u32 = 3;
const DEEPEST: u32 = 6;

struct Born {
    world: World,
    factory: Factory,
    funding: Txid,
}

/// A factory whose funding is in the mempool.
fn born(name: &str) -> Result<Born> {
    let mut world = World::start(name, 2)?;
    world.add_peer(1_000_000)?;
    // Nothing of the world itself falls with a reorganisation.
    world.mine(DEEPEST + 1)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(json!({ "min_depth": DEPTH })));
    world.wait_waiting(2)?;
    let id = world.lsp.create_factory(&request)?;
    let factory = world.wait_state(&id, "confirming", CEREMONY)?;
    let funding = factory.funding.expect("funding").txid;
    world.bitcoind.wait_seen(funding, PATIENCE)?;
    Ok(Born { world, factory, funding })
}

impl Born {
    /// The funding's confirmations.
    fn depth(&self) -> Result<u32> {
        let there = self.world.bitcoind.confirmed(self.funding)?;
        Ok(there.map_or(0, |there| self.world.bitcoind.height().unwrap_or(0) + 1 - there.height))
    }

    /// Mines until the funding has so many confirmations.
    fn confirm(&self, confirmations: u32) -> Result<()> {
        // bitcoind forgets it when the chain falls below its lock time; the LSP and the clients do not.
        self.world.bitcoind.wait_seen(self.funding, PATIENCE)?;
        match confirmations.checked_sub(self.depth()?) {
            Some(0) => Ok(()),
            Some(missing) => self.world.mine(missing),
            None => bail!("it has more than {confirmations} confirmations"),
        }
    }

    /// Both sides of every channel say that it is usable, or that it is not, as the depth is.
    fn wait_shown(&self, usable: bool) -> Result<()> {
        let (world, id) = (&self.world, &self.factory.instance_id);
        world.sync()?;
        let state = if usable { "active" } else { "confirming" };
        world.wait_state(id, state, PATIENCE)?;
        for client in &world.clients {
            wait::until_value(
                &format!("{}'s channel to be usable: {usable}", client.name()),
                PATIENCE,
                || {
                    let own = factory_channel(&client.channels()?, id, world.lsp.node_id())?;
                    let theirs = factory_channel(&world.lsp.channels()?, id, client.node_id())?;
                    Ok((own.usable, theirs.usable))
                },
                |seen| *seen == (usable, usable),
            )?;
        }
        Ok(())
    }

    /// Payments pass or fail as the depth says; the balances are exact after that.
    fn check(&self, before: &Snapshot) -> Result<Snapshot> {
        let (world, deep) = (&self.world, self.depth()? >= DEPTH);
        self.wait_shown(deep)?;
        world.wait_peer_usable()?;
        let due = if deep {
            let order = |from, to, amount_msat| Order { from, to, amount_msat };
            let paid = [
                pay(world, order(Party::Client(0), Party::Client(1), 2_000_001))?,
                pay(world, order(Party::Peer, Party::Client(0), 1_000_003))?,
                pay(world, order(Party::Client(1), Party::Peer, 1_000_007))?,
            ];
            before.after(&paid)?
        } else {
            nobody_pays(world)?;
            let client = world.client(0)?;
            // It does not even try where the invoice names no channel.
            let passed = world.peer()?.pay(&client.invoice(1_000_000, "refused")?.invoice);
            let passed = passed.is_ok_and(|payment| payment.status != "failed");
            ensure!(!passed, "the ordinary node paid {}", client.name());
            let failed = client.pay(&world.peer()?.invoice(1_000_000, "refused")?.invoice)?;
            ensure!(failed.status == "failed", "{} paid the ordinary node: {failed:?}", client.name());
            before.clone()
        };
        let balances = |world: &World| -> Result<Vec<u64>> {
            world.clients.iter().map(|client| Ok(client.balance()?.lightning.local_msat)).collect()
        };
        if self.depth()? > 0 {
            wait_for(world, &due)?;
            wait_at_rest(world)?;
        } else {
            // The ledger counts no money of which the funding is in the mempool; the channels do.
            let held: Vec<u64> =
                (0..2).map(|i| Ok(due.of(&format!("client-{i}"))? - 500_000_000)).collect::<Result<_>>()?;
            assert_eq!(balances(world)?, held, "nothing has moved");
        }
        Ok(due)
    }
}

/// Unconfirmed, confirmed, one block short, just deep, and deeper: at each moment the chain is rewritten.
fn rewritten(name: &str, depths: &[u32]) -> Result<()> {
    let mut born = born(name)?;
    // What the parties hold, their money in the factory included; the ledger can be asked once it is confirmed.
    for depth in depths {
        born.world.bitcoind.reorganize(*depth)?;
        born.world.sync()?;
    }
    born.wait_shown(false)?;
    born.confirm(1)?;
    let mut held = Snapshot::take(&born.world)?;
    for depth in depths {
        for confirmations in 1..=DEPTH + 1 {
            println!("{confirmations} confirmations, {depth} blocks fall");
            born.confirm(confirmations)?;
            held = born.check(&held)?;
            born.world.bitcoind.reorganize(*depth)?;
            assert_eq!(born.depth()? == 0, confirmations <= *depth);
            held = born.check(&held)?;
        }
        // To begin anew with the next depth; one of them is dead meanwhile.
        born.confirm(DEPTH + 2)?;
        held = born.check(&held)?;
        born.world.client_mut(1)?.kill()?;
        born.world.bitcoind.reorganize(DEPTH + 2)?;
        assert_eq!(born.depth()?, 0);
        born.world.client_mut(1)?.start()?;
        held = born.check(&held)?;
    }
    born.confirm(DEPTH)?;
    born.check(&held)?;
    born.world.finish();
    Ok(())
}

#[test]
fn payments_stop_when_the_funding_falls_and_go_on_when_it_is_deep_again() -> Result<()> {
    rewritten("reorg-funding", &[3])
}

#[test]
#[ignore = "long: make adversaries"]
fn at_every_depth() -> Result<()> {
    rewritten("reorg-funding-all", &[1, 2, 4, 5, 6])
}

/// Whoever still pays, forwards or claims over funding that has fallen is refused by the others.
#[test]
fn each_side_refuses_what_the_other_lets_pass() -> Result<()> {
    let born = born("reorg-refuses")?;
    born.world.mine(DEPTH)?;
    let held = born.check(&Snapshot::take(&born.world)?)?;
    let world = &born.world;
    world.bitcoind.reorganize(DEPTH)?;
    world.sync()?;
    let (payer, payee) = (world.client(0)?, world.client(1)?);
    let refused = |by: &integration::Daemon, before: usize| {
        wait::until_value(
            &format!("{} to refuse", by.name()),
            PATIENCE,
            || by.events("htlc_refused"),
            |list| {
                let deep = |e: &integration::types::Event| {
                    e.data["reason"].as_str().unwrap_or_default().contains("not deep")
                };
                list.iter().filter(|e| deep(e)).count() > before
            },
        )
    };
    payer.faults().set("on@node.depth.ignored")?;
    let payment = payer.pay(&payee.invoice(1_000_000, "the LSP refuses")?.invoice)?;
    assert_eq!(payment.status, "failed", "{payment:?}");
    refused(&world.lsp, 0)?;
    assert!(payee.events("htlc_refused")?.is_empty(), "it did not get so far");
    world.lsp.faults().set("on@node.depth.ignored")?;
    let payment = payer.pay(&payee.invoice(1_000_000, "the payee refuses")?.invoice)?;
    assert_eq!(payment.status, "failed", "{payment:?}");
    refused(payee, 0)?;
    payer.faults().clear()?;
    world.lsp.faults().clear()?;
    world.mine(DEPTH)?;
    born.check(&held)?;
    born.world.finish();
    Ok(())
}
