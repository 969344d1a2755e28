//! Channels that the LSP opens to its clients beside the factory, as the scenarios ask for them and wait for them.

use anyhow::Result;

use crate::types::Channel;
use crate::wait;
use crate::world::{World, PATIENCE};

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
