//! Rotations of a leaf, as the scenarios ask for them and wait for them.

use anyhow::{Context, Result};
use serde_json::{json, Value};

use crate::http::ApiError;
use crate::types::Leaf;
use crate::wait::{self, Seen};
use crate::world::{World, PATIENCE};

/// The leaf of a client as a factory's LSP shows it.
///
/// # Errors
/// If it shows none.
pub fn leaf(world: &World, id: &str, client: &str) -> Result<Leaf> {
    let factory = world.lsp.factory(id)?;
    let found = factory.leaves.into_iter().find(|l| l.clients.iter().any(|c| c == client));
    found.with_context(|| format!("no leaf of {client}"))
}

/// Asks the LSP to rotate a client's leaf; the number of the try.
///
/// # Errors
/// What the LSP answers.
pub fn ask(world: &World, id: &str, client: &str) -> Result<u64> {
    ask_at(world, id, client, &json!("leaf"))
}

/// As [`ask`], for a node above the client by its level.
///
/// # Errors
/// What the LSP answers.
pub fn ask_at(world: &World, id: &str, client: &str, level: &Value) -> Result<u64> {
    let path = format!("/v1/factories/{id}/rotate");
    // Who has made a rotation fail is tried again at once.
    let request = json!({ "client": client, "level": level, "force": true });
    let answer: Value = world.lsp.api()?.post(&path, &request)?;
    answer["attempt"].as_u64().context("attempt")
}

/// Waits until both sides show a leaf at a position, and nothing is under way.
///
/// # Errors
/// If they do not in time, with what they show.
pub fn wait_position(world: &World, id: &str, index: usize, position: u64) -> Result<()> {
    let client = world.client(index)?;
    let node = client.node_id().to_owned();
    wait::until_value(
        &format!("both sides to be at position {position}"),
        PATIENCE,
        || {
            let own = client.factory(id)?.leaves.into_iter().next().context("own leaf")?;
            Ok((leaf(world, id, &node)?, own))
        },
        |(lsp, own)| [lsp, own].iter().all(|l| l.position == position && l.rotating.is_none()),
    )?;
    Ok(())
}

/// Waits until a rotation of a client's leaf has failed, as the LSP says; the reason.
///
/// # Errors
/// If it does not in time.
pub fn wait_failure(world: &World, id: &str, client: &str) -> Result<String> {
    wait::until("a rotation to fail", PATIENCE, || {
        let leaf = leaf(world, id, client)?;
        Ok(match leaf.failure {
            Some(failure) if leaf.rotating.is_none() => Seen::Done(failure),
            _ => Seen::NotYet(format!("{leaf:?}")),
        })
    })
}

/// Rotates a client's leaf once, and waits until both sides have the new state. Channels are usable a moment before the
/// two programs have greeted each other, so an LSP that does not see its client yet is asked again.
///
/// # Errors
/// If it fails.
pub fn once(world: &World, id: &str, index: usize) -> Result<()> {
    let node = world.client(index)?.node_id().to_owned();
    let before = leaf(world, id, &node)?.position;
    wait::until("the LSP to begin a rotation", PATIENCE, || {
        let asked = ask(world, id, &node);
        let refusal = asked.as_ref().err().and_then(|error| error.downcast_ref::<ApiError>());
        match refusal.filter(|refusal| refusal.code == "unavailable") {
            Some(refusal) => Ok(Seen::not_yet(&refusal.message)),
            None => Ok(Seen::Done(asked)),
        }
    })??;
    wait_position(world, id, index, before + 1)
}

/// Rotates until both sides are at the same position, and it is newer than this: what was under way when a process died
/// ends one way or the other, and then the leaf rotates on. Returns the position.
///
/// # Errors
/// If it never does, with what both sides show.
pub fn go_on(world: &World, id: &str, index: usize, position: u64) -> Result<u64> {
    let client = world.client(index)?;
    let node = client.node_id().to_owned();
    wait::until(&format!("a position newer than {position}"), PATIENCE, || {
        let own = client.factory(id)?.leaves.into_iter().next().context("own leaf")?;
        let lsp = leaf(world, id, &node)?;
        let at_rest = lsp.rotating.is_none() && own.rotating.is_none();
        if at_rest && lsp.position == own.position && lsp.position > position {
            return Ok(Seen::Done(lsp.position));
        }
        let mut state = format!("{lsp:?} {own:?}");
        if lsp.rotating.is_none() {
            // Refused as long as the client is not there.
            if let Err(error) = ask(world, id, &node) {
                state = format!("{error:#}: {state}");
            }
        }
        Ok(Seen::NotYet(state))
    })
}
