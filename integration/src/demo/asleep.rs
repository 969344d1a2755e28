//! The part of the demo in which nobody can sign, and a client is served all the same.

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};

use super::{Demo, FactoryEntry};
use crate::jit;
use crate::ledger::{wait_at_rest, wait_for, Settled};
use crate::relay;
use crate::types::{Factory, Invoice};
use crate::World;

/// Capacity of each client's channel, sat.
const SMALL: u64 = 100_000;
/// Clients of the leaf that all have to sign for.
const MEMBERS: usize = 4;
/// The one that is awake.
const AWAKE: usize = 3;
/// Liquidity stock of the leaf, sat: enough, if all were awake.
const STOCK: u64 = 400_000;
/// What it is paid, msat.
const LARGE_MSAT: u64 = 250_000_000;

impl Demo {
    /// A client with a channel of 100,000 sat is paid 250,000 sat while those who would have to sign for more sleep.
    pub(super) fn serve_awake(&mut self, world: &mut World) -> Result<()> {
        self.say(&format!(
            "a leaf of {MEMBERS} clients, {SMALL} sat for each: all of them sign for its changes"
        ));
        let factory = small_factory(world)?;
        let funding = factory.funding.context("no funding outpoint")?;
        self.summary.factories.push(FactoryEntry { funding_txid: funding.txid.to_string(), n: MEMBERS });
        let before = wait_at_rest(world)?;
        self.say(&format!("{} of them go to sleep: their processes are stopped", MEMBERS - 1));
        for index in 0..AWAKE {
            world.client_mut(index)?.kill()?;
            world.wait_gone(world.client(index)?.node_id())?;
        }
        let client = world.client(AWAKE)?;
        let ask = json!({ "amount_msat": LARGE_MSAT, "description": "while the others sleep" });
        let invoice: Invoice = client.api()?.post("/v1/invoice", &ask)?;
        let fee_msat = invoice.relay_fee_msat.context("the invoice is not the LSP's")?;
        self.say(&format!(
            "client-{AWAKE} asks for {LARGE_MSAT} msat; no channel holds that, so the invoice is the LSP's (fee {fee_msat} msat)"
        ));
        let paid = world.peer()?.pay(&invoice.invoice)?;
        ensure!(paid.status == "succeeded", "the ordinary node could not pay: {paid:?}");
        relay::wait_relayed(world, &invoice.payment_hash, "succeeded")?;
        let pairs = jit::wait_count(world, AWAKE, "jit", 1)?;
        let beside = pairs.first().map(|(own, _)| own.clone()).context("no JIT channel")?;
        self.say(&format!(
            "the LSP opened a channel beside the factory, {} sat, and paid over both{}",
            beside.capacity_sat,
            if beside.trusted { "; until it confirms the client trusts the LSP for it" } else { "" }
        ));
        let parts: Vec<u64> = world.client(AWAKE)?.channels()?.iter().map(|c| c.local_msat).collect();
        let both = || {
            let sum: u64 = parts.iter().sum();
            ensure!(
                sum == LARGE_MSAT && parts.len() == 2 && !parts.contains(&0),
                "its channels hold {parts:?}"
            );
            Ok(())
        };
        self.check("a payment larger than the channel came in over the factory and a JIT channel", both());

        world.mine(1)?;
        for index in 0..AWAKE {
            world.client_mut(index)?.start()?;
        }
        world.sync()?;
        world.wait_usable(&factory)?;
        jit::wait_count(world, AWAKE, "jit", 1)?;
        let to = format!("client-{AWAKE}");
        let made = [Settled { from: "peer".into(), to, amount_msat: LARGE_MSAT, fee_msat }];
        // The funding transaction of the new channel costs its fee.
        let fees_sat = world.bitcoind.fees(before.height + 1, world.bitcoind.height()?)?;
        let after = wait_for(world, &before.after(&made)?.less("lsp", fees_sat * 1000)?)?;
        self.check("every balance is right, to the fee of one funding transaction", Ok(()));
        self.record(&made);
        self.close(world, &factory, &after)?;
        let stays = jit::wait_count(world, AWAKE, "jit", 1).map(drop);
        self.check("the factory is closed, the channel beside it lives on", stays);
        Ok(())
    }
}

fn small_factory(world: &World) -> Result<Factory> {
    let members = (0..MEMBERS).map(|index| {
        Ok(json!({ "node_id": world.client(index)?.node_id(), "capacity_sat": SMALL, "push_sat": 0 }))
    });
    let request = json!({
        "clients": members.collect::<Result<Vec<Value>>>()?,
        "stock_sat": STOCK,
        "params": { "clients_per_leaf": MEMBERS },
    });
    world.create_factory(&request)
}
