//! Payments that the LSP receives for a client and pays on over several channels.

use std::time::Duration;

use anyhow::{anyhow, Result};
use serde_json::{json, Value};

use crate::ledger::{wait_at_rest, wait_for, Settled, Snapshot};
use crate::types::{Factory, Invoice, Payment};
use crate::world::{World, PATIENCE};
use crate::{jit, wait};

/// Capacity of the first client's channel in the factory, sat.
pub const CAPACITY: u64 = 100_000;
/// Capacity of its channel beside, sat.
pub const BESIDE: u64 = 200_000;
/// More than each of them can receive, msat.
pub const AMOUNT: u64 = 250_000_000;
/// What the LSP takes for that by its default settings, msat.
pub const FEE: u64 = 250_000;
/// How long the end of a payment may take, restarts included.
const END: Duration = Duration::from_secs(90);

/// A world with two clients and an ordinary node. The first client has two channels, the second one some money.
///
/// # Errors
/// If it does not come up.
pub fn world(name: &str) -> Result<(World, Factory)> {
    world_with(name, Value::Null)
}

/// As [`world`], with these parameters of the factory.
///
/// # Errors
/// As [`world`].
pub fn world_with(name: &str, params: Value) -> Result<(World, Factory)> {
    let mut world = World::start(name, 2)?;
    world.add_peer(4_000_000)?;
    let [first, second] = [world.client(0)?.node_id(), world.client(1)?.node_id()];
    let request = json!({
        "clients": [
            { "node_id": first, "capacity_sat": CAPACITY, "push_sat": 0 },
            { "node_id": second, "capacity_sat": CAPACITY, "push_sat": CAPACITY / 2 },
        ],
        "stock_sat": 0,
        "params": params,
    });
    let factory = world.create_factory(&request)?;
    beside(&world, 1)?;
    Ok((world, factory))
}

/// Opens another channel beside the factory, which then are `count`, and waits until all are usable and confirmed.
///
/// # Errors
/// If they are not in time.
pub fn beside(world: &World, count: usize) -> Result<()> {
    jit::open(world, world.client(0)?.node_id(), BESIDE)?;
    let channels = jit::wait_count(world, 0, "jit", count)?;
    for (channel, _) in channels {
        let funding = channel.funding.ok_or_else(|| anyhow!("no funding"))?;
        if world.bitcoind.confirmed(funding.txid)?.is_none() {
            world.bitcoind.wait_seen(funding.txid, PATIENCE)?;
        }
    }
    world.mine(1)?;
    wait::until_value(
        "the channels beside the factory to be confirmed",
        PATIENCE,
        || world.client(0)?.channels(),
        |channels| channels.iter().all(|channel| !channel.trusted),
    )?;
    Ok(())
}

/// Waits until the first client's channels are usable again, and the ordinary node's.
///
/// # Errors
/// If they are not in time.
pub fn wait_usable(world: &World, factory: &Factory, count: usize) -> Result<()> {
    world.wait_usable(factory)?;
    jit::wait_count(world, 0, "jit", count)?;
    world.wait_peer_usable()
}

/// An invoice of the first client's; `relay` as in the API.
///
/// # Errors
/// What the client answers.
pub fn invoice(world: &World, amount_msat: u64, relay: Option<&str>) -> Result<Invoice> {
    let body = json!({ "amount_msat": amount_msat, "description": "two oxen", "relay": relay });
    world.client(0)?.api()?.post("/v1/invoice", &body)
}

/// The payment of the first client's that the LSP received.
pub fn settled(from: &str, amount_msat: u64, fee_msat: u64) -> Settled {
    Settled { from: from.into(), to: "client-0".into(), amount_msat, fee_msat }
}

/// The payment under this hash as a process tells it.
pub fn find(list: Vec<Payment>, hash: &str, direction: &str) -> Option<Payment> {
    list.into_iter().find(|p| p.payment_hash == hash && p.direction.as_deref() == Some(direction))
}

/// Waits until the LSP says so of a payment that it received for the client.
///
/// # Errors
/// If it does not.
pub fn wait_relayed(world: &World, hash: &str, status: &str) -> Result<Payment> {
    let is = |payment: &Option<Payment>| payment.as_ref().is_some_and(|p| p.status == status);
    let what = format!("the LSP to say {status}");
    let payment = wait::until_value(&what, END, || Ok(find(world.lsp.payments()?, hash, "relayed")), is)?;
    payment.ok_or_else(|| anyhow!("the LSP does not know it"))
}

/// Waits until the ordinary node says so of a payment it made.
///
/// # Errors
/// If it does not.
pub fn wait_payer(world: &World, hash: &str, status: &str) -> Result<()> {
    let is = |payment: &Option<Payment>| payment.as_ref().is_some_and(|p| p.status == status);
    let what = format!("the payer to say {status}");
    wait::until_value(&what, END, || Ok(find(world.peer()?.payments()?, hash, "out")), is)?;
    Ok(())
}

/// Waits until a payment from the ordinary node to the first client has come to its good end for all three, with
/// exactly these amounts. Returns what everybody holds then.
///
/// # Errors
/// If it does not, or somebody holds something else.
pub fn wait_paid(world: &World, before: &Snapshot, hash: &str) -> Result<Snapshot> {
    wait_payer(world, hash, "succeeded")?;
    wait_relayed(world, hash, "succeeded")?;
    wait_for(world, &before.after(&[settled("peer", AMOUNT, FEE)])?)?;
    wait_at_rest(world)
}

/// Waits until it has come to nothing for all three. The ordinary node may go on trying for a while.
///
/// # Errors
/// If it does not, or somebody holds something else than before.
pub fn wait_given_back(world: &World, before: &Snapshot, hash: &str) -> Result<Snapshot> {
    wait_relayed(world, hash, "failed")?;
    wait_payer(world, hash, "failed")?;
    wait_for(world, before)?;
    wait_at_rest(world)
}
