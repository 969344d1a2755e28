//! Channels that the LSP opens to its clients beside the factory, as the scenarios ask for them and wait for them.

use anyhow::{anyhow, Result};

use crate::ledger::Snapshot;
use crate::types::{Channel, Payment};
use crate::world::{World, PATIENCE};
use crate::{wait, Bitcoind};

/// Has the LSP open one to a node that is connected.
///
/// # Errors
/// What the LSP answers.
pub fn open(world: &World, node_id: &str, sat: u64) -> Result<()> {
    let body = serde_json::json!({ "node_id": node_id, "capacity_sat": sat });
    world.lsp.api()?.post::<serde_json::Value>("/v1/channels", &body)?;
    Ok(())
}

/// Waits until a client and the LSP have `count` channels of a kind with each other, all usable. Pairs: the client's
/// view, the LSP's.
///
/// # Errors
/// If they have not in time, with what the two say.
pub fn wait_count(world: &World, index: usize, kind: &str, count: usize) -> Result<Vec<(Channel, Channel)>> {
    let client = world.client(index)?;
    let of = |list: Vec<Channel>, peer: &str| -> Vec<Channel> {
        list.into_iter().filter(|c| c.peer == peer && c.kind == kind).collect()
    };
    wait::until_value(
        &format!("{count} usable channels of the kind {kind} on both sides"),
        PATIENCE,
        || {
            let ours = of(client.channels()?, world.lsp.node_id());
            let theirs = of(world.lsp.channels()?, client.node_id());
            let pair = |c: Channel| {
                let same = theirs.iter().find(|t| t.channel_id == c.channel_id)?;
                Some((c, same.clone()))
            };
            let (owned, same) = (ours.len(), theirs.len());
            Ok((owned, same, ours.into_iter().filter_map(pair).collect::<Vec<_>>()))
        },
        |(ours, theirs, pairs)| {
            [*ours, *theirs, pairs.len()] == [count; 3] && pairs.iter().all(|(a, b)| a.usable && b.usable)
        },
    )
    .map(|(_, _, pairs)| pairs)
}

/// As [`wait_count`], one channel.
///
/// # Errors
/// As [`wait_count`].
pub fn wait_usable(world: &World, index: usize, kind: &str) -> Result<Vec<(Channel, Channel)>> {
    wait_count(world, index, kind, 1)
}

/// `GET /v1/jit`.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct JitStatus {
    /// Clients with a channel.
    pub clients: usize,
    /// Those with one beside the factory.
    pub clients_with_jit: usize,
    /// Channels beside factories.
    pub channels: usize,
    /// Those over which nothing was taken yet.
    pub untaken: usize,
    /// Fees of all their funding transactions, sat.
    pub fees_sat: u64,
    /// Channels so far by cause.
    pub causes: std::collections::BTreeMap<String, u64>,
    /// HTLCs held now.
    pub held_htlcs: usize,
}

/// What the LSP says of channels beside its factories.
///
/// # Errors
/// If the call fails.
pub fn status(world: &World) -> Result<JitStatus> {
    world.lsp.api()?.get("/v1/jit")
}

/// Waits until the LSP holds so many HTLCs.
///
/// # Errors
/// If it does not.
pub fn wait_held(world: &World, htlcs: usize) -> Result<()> {
    wait::until_value(
        &format!("the LSP to hold {htlcs} HTLCs"),
        PATIENCE,
        || status(world),
        |now| now.held_htlcs == htlcs,
    )?;
    Ok(())
}

/// Waits until the ordinary node knows what became of a payment that it made.
///
/// # Errors
/// If it does not learn it.
pub fn outcome(world: &World, hash: &str) -> Result<Payment> {
    let of_it = |list: &[Payment]| {
        let found = list.iter().find(|p| p.payment_hash == hash && p.direction.as_deref() != Some("in"));
        found.filter(|p| p.status != "pending").cloned()
    };
    let list = wait::until_value(
        "the payer to know what became of the payment",
        PATIENCE,
        || world.peer()?.payments(),
        |list| of_it(list).is_some(),
    )?;
    of_it(&list).ok_or_else(|| anyhow!("the payment is gone"))
}

/// Takes the fees of the blocks since `before` off what the LSP is due: it alone has paid them.
///
/// # Errors
/// If bitcoind does not answer, or the LSP is not in the ledger.
pub fn less_fees(world: &World, before: u32, due: &mut Snapshot) -> Result<u64> {
    let now = world.bitcoind.height()?;
    let fees = if now > before { world.bitcoind.fees(before + 1, now)? } else { 0 };
    let held = due.parties.get_mut("lsp").ok_or_else(|| anyhow!("no LSP in the ledger"))?;
    *held -= fees * 1000;
    Ok(fees)
}

/// Channels of one kind that a client shows.
///
/// # Errors
/// If the call fails.
pub fn of_kind(world: &World, index: usize, kind: &str) -> Result<Vec<Channel>> {
    Ok(world.client(index)?.channels()?.into_iter().filter(|c| c.kind == kind).collect())
}

/// Opens another channel from the ordinary node to the LSP, half of it on each side, and waits until it has `count`
/// usable ones.
///
/// # Errors
/// If it does not get there.
pub fn another_peer_channel(world: &World, capacity_sat: u64, count: usize) -> Result<()> {
    let peer = world.peer()?;
    let address = Bitcoind::parse_address(&peer.address()?)?;
    world.bitcoind.fund(&[(address, 2 * capacity_sat)])?;
    peer.wait_synced(&world.bitcoind)?;
    world.sync()?;
    peer.open_channel(world.lsp.node_id(), world.lsp.listen(), capacity_sat, capacity_sat / 2)?;
    wait::until_value(
        "the funding transaction",
        PATIENCE,
        || world.bitcoind.mempool(),
        |list| !list.is_empty(),
    )?;
    world.mine(6)?;
    wait::until_value(
        &format!("{count} usable channels of the ordinary node"),
        PATIENCE,
        || Ok((peer.channels()?, world.lsp.channels()?)),
        |(theirs, ours)| {
            let ours = ours.iter().filter(|c| c.peer == peer.node_id() && c.usable);
            ours.count() == count && theirs.iter().filter(|c| c.usable).count() == count
        },
    )?;
    Ok(())
}
