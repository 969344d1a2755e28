//! Money in a channel beside the factory that goes into the factory's, as the scenarios ask for it and wait for it.

use anyhow::{anyhow, Context, Result};
use bitcoin::{OutPoint, Transaction, Txid};
use serde::Deserialize;
use serde_json::json;

use crate::jit::{self, of_kind};
use crate::ledger::Settled;
use crate::payments::{pay, Order, Party};
use crate::types::{Channel, Factory, Payment};
use crate::wait;
use crate::world::{World, PATIENCE};

/// Capacity of each channel in the factory, sat.
pub const CAPACITY: u64 = 100_000;
/// What the clients have in it, sat: it has no room for more than 9,000.
pub const PUSH: u64 = 90_000;
/// What a client is paid over the channel beside, msat.
pub const PAID: u64 = 60_000_001;
/// What it can send of that: the channel's reserve of 1,000 sat stays.
pub const MOVABLE: u64 = PAID - RESERVE_SAT * 1000;
/// What comes to its wallet, sat.
pub const RESERVE_SAT: u64 = 1_000;

/// Answer of `POST /v1/jit/move`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Moved {
    /// The channel, hex.
    pub channel_id: String,
    /// What was moved, msat.
    pub moved_msat: u64,
    /// What could still be, msat.
    pub left_msat: u64,
    /// A payment has not ended.
    pub pending: bool,
    /// The close has begun.
    pub closing: bool,
    /// Why not.
    #[serde(default)]
    pub not_closed: Option<String>,
}

/// A world with two clients in one leaf with this stock, sat, and an ordinary node with 500,000 sat to spend.
///
/// # Errors
/// If it does not come up.
pub fn world(name: &str, stock_sat: u64) -> Result<(World, Factory)> {
    let mut world = World::start(name, 2)?;
    world.add_peer(1_000_000)?;
    let params = json!({ "clients_per_leaf": 2, "arity": [], "layers": [[[8, 4, 8], [8, 4, 0]]] });
    let factory = world.create_factory(&world.factory_request(CAPACITY, PUSH, stock_sat, Some(params)))?;
    Ok((world, factory))
}

/// Has the first client move what is in its channel beside the factory, and waits so long for the payments.
///
/// # Errors
/// What the client answers.
pub fn command(world: &World, wait_secs: u64) -> Result<Moved> {
    world.client(0)?.api()?.post("/v1/jit/move", &json!({ "wait_secs": wait_secs }))
}

/// The first client is paid what only a channel beside the factory has room for.
///
/// # Errors
/// If it is not.
pub fn paid_beside(world: &World) -> Result<Settled> {
    pay(world, Order { from: Party::Peer, to: Party::Client(0), amount_msat: PAID })
}

/// Waits until the first client's one channel beside the factory is confirmed, and what it holds is at rest.
///
/// # Errors
/// If it is not in time.
pub fn confirm(world: &World) -> Result<Channel> {
    let pairs = jit::wait_usable(world, 0, "jit")?;
    let (channel, _) = pairs.first().context("one channel")?;
    let funding = channel.funding.context("a funding outpoint")?.txid;
    if world.bitcoind.confirmed(funding)?.is_none() {
        world.bitcoind.wait_seen(funding, PATIENCE)?;
    }
    world.mine(1)?;
    let list = wait::until_value(
        "the channel beside the factory to be confirmed",
        PATIENCE,
        || Ok((of_kind(world, 0, "jit")?, world.lsp.channels()?)),
        |(ours, theirs)| {
            let theirs = theirs.iter().filter(|c| c.kind == "jit");
            ours.iter().chain(theirs).all(|c| !c.trusted && c.usable && c.pending_htlcs == 0)
        },
    )?;
    list.0.into_iter().next().ok_or_else(|| anyhow!("it is gone"))
}

/// Opens a channel of this size, sat, beside the factory for the first client, has it paid over it, and confirms it.
///
/// # Errors
/// If that does not work.
pub fn beside(world: &World, capacity_sat: u64) -> Result<(Channel, Settled)> {
    jit::open(world, world.client(0)?.node_id(), capacity_sat)?;
    jit::wait_usable(world, 0, "jit")?;
    let paid = paid_beside(world)?;
    Ok((confirm(world)?, paid))
}

/// Waits for the closing transaction of a channel, mines it, and waits until both sides have forgotten the channel. All
/// the time the client holds so much, msat, before the block and after it. Returns the transaction.
///
/// # Errors
/// If it does not come.
pub fn wait_closed(world: &World, channel: &Channel, held_msat: u64) -> Result<Transaction> {
    let funding = channel.funding.context("a funding outpoint")?;
    let outpoint = OutPoint { txid: funding.txid, vout: funding.vout };
    let txid: Option<Txid> = wait::until_value(
        "the closing transaction",
        PATIENCE,
        || world.bitcoind.mempool_spender(outpoint),
        Option::is_some,
    )?;
    let txid = txid.context("a transaction")?;
    let tx = world.bitcoind.transaction(txid)?.context("a transaction")?;
    let holds = || {
        let total = || Ok(world.client(0)?.balance()?.total_msat());
        let what = format!("the client to hold {held_msat} msat");
        wait::until_value(&what, PATIENCE, total, |total| *total == held_msat)
    };
    holds()?;
    world.mine(1)?;
    wait::until_value(
        "both sides to have no channel beside the factory",
        PATIENCE,
        || Ok([of_kind(world, 0, "jit")?, world.lsp.channels()?]),
        |lists| lists.iter().flatten().all(|c| c.channel_id != channel.channel_id),
    )?;
    holds()?;
    Ok(tx)
}

/// What the first client tells of moves, the newest last.
///
/// # Errors
/// If it does not answer.
pub fn told(world: &World) -> Result<Vec<Payment>> {
    let list = world.client(0)?.payments()?;
    Ok(list.into_iter().filter(|p| p.direction.as_deref() == Some("moved")).collect())
}
