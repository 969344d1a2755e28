//! Who fails again and again is left alone for a while, and who asks for closes that come to nothing is not heard.

use super::*;
use integration::types::{Channel, Event};

/// The client that gives trouble.
const PEST: usize = 3;

/// An entry of `GET /v1/admission`.
#[derive(Debug, serde::Deserialize)]
struct Entry {
    node_id: String,
    strikes: u32,
    closes_in_vain: u32,
    paused_until_height: Option<u32>,
    reason: String,
}

fn entries(world: &World) -> Result<Vec<Entry>> {
    world.lsp.api()?.get("/v1/admission")
}

/// What is known against a client.
fn entry(world: &World, client: usize) -> Result<Option<Entry>> {
    let node_id = world.client(client)?.node_id();
    Ok(entries(world)?.into_iter().find(|e| e.node_id == node_id))
}

fn waits(world: &World, client: usize) -> Result<bool> {
    let node_id = world.client(client)?.node_id();
    Ok(world.lsp.clients()?.iter().any(|c| c.node_id == node_id && c.waiting))
}

/// A client asks for a close and waits until it was told that nothing comes of it: why.
fn ask_in_vain(world: &World, client: usize, id: &str) -> Result<String> {
    let refusals = || -> Result<Vec<Event>> { world.client(client)?.events("close_refused") };
    let (before, failed) = (refusals()?.len(), world.lsp.events("close_failed")?.len());
    world.client(client)?.close_factory(id)?;
    let reason =
        wait::until("an answer to the client that asks for a close", PATIENCE, || {
            match refusals()?.get(before) {
                Some(event) => Ok(Seen::Done(event.data["reason"].to_string())),
                None => Ok(Seen::not_yet("none")),
            }
        })?;
    if !reason.contains("not admitted") {
        // Here the LSP has begun it; it is over when the factory is in use again.
        wait::until("the close to have failed", PATIENCE, || {
            let over = world.lsp.events("close_failed")?.len() > failed;
            Ok(if over { Seen::Done(()) } else { Seen::not_yet("under way") })
        })?;
    }
    world.wait_state(id, "active", PATIENCE)?;
    Ok(reason)
}

/// Waits until the LSP names a client that holds a close up, for such a reason: whom.
pub fn stalled(world: &World, id: &str, reason: &str) -> Result<String> {
    wait::until("the LSP to name who holds the close up", limit(1), || {
        let events = world.lsp.events("close_stalled")?;
        let fits = |e: &&Event| e.data["instance_id"] == id && e.data["reason"].to_string().contains(reason);
        match events.iter().find(fits) {
            Some(event) => Ok(Seen::Done(event.data["node_id"].to_string())),
            None => Ok(Seen::NotYet(format!("{:?}: {events:?}", world.lsp.factory(id)?.close))),
        }
    })
}

fn lsp_channel(world: &World, client: usize, id: &str) -> Result<Channel> {
    factory_channel(&world.lsp.channels()?, id, world.client(client)?.node_id())
}

#[test]
fn who_fails_again_and_again_is_paused() -> Result<()> {
    let phase = PHASE.to_string();
    let flags = ["--phase-timeout-secs", &phase, "--min-clients", "4"];
    let flags = [&flags[..], &["--admission-strikes", "2", "--admission-pause-blocks", "3"]].concat();
    let mut world = World::start_with_lsp("admission", 4, &flags)?;
    world.wait_waiting(4)?;
    let body = request(&world, &[0, 1, 2, 3])?;
    let start = Snapshot::take(&world)?;

    // What fails on the LSP's own side counts against nobody.
    let fails = |world: &World| -> Result<()> {
        let id = begin(world, &body)?;
        wait::until_value("no factory", limit(1), || world.lsp.factory(&id), |f| f.state == "failed")?;
        Ok(())
    };
    world.lsp.faults().set("on@lsp.channel.not_opened")?;
    fails(&world)?;
    assert!(entries(&world)?.is_empty(), "{:?}", entries(&world)?);
    world.lsp.faults().clear()?;
    world.wait_waiting(4)?;

    // It joins and fails. What it costs the others: here the factory.
    world.client(PEST)?.faults().set("on@client.short_list")?;
    fails(&world)?;
    let seen = entry(&world, PEST)?.expect("it is listed");
    assert!(seen.strikes == 1 && seen.reason.contains("entries in a list"), "{seen:?}");
    world.wait_waiting(4)?;
    // Or it goes away with its nonces given.
    assert!(waits(&world, PEST)?);
    world.client(PEST)?.faults().set("kill@client.sent.nonces")?;
    fails(&world)?;
    world.client_mut(PEST)?.wait_killed()?;
    world.client(PEST)?.faults().clear()?;
    world.client_mut(PEST)?.start()?;
    world.wait_waiting(3)?;
    let height = world.bitcoind.height()?;
    let seen = entry(&world, PEST)?.expect("it is listed");
    assert_eq!((seen.strikes, seen.paused_until_height), (0, Some(height + 3)), "{seen:?}");
    assert!(seen.reason.contains("connection lost"), "{seen:?}");
    assert_eq!(entries(&world)?.len(), 1, "the others did nothing wrong");
    // Neither by name nor as one of all, also not after a restart of the LSP.
    world.lsp.stop()?;
    world.lsp.start()?;
    world.wait_waiting(3)?;
    for _ in 0..2 {
        assert!(!waits(&world, PEST)?);
        let e = format!("{:#}", world.lsp.create_factory(&body).expect_err("it is paused"));
        assert!(e.contains(&format!("not admitted before block {}", height + 3)), "{e}");
        world.mine(1)?;
    }
    wait_for(&world, &Snapshot { height: height + 2, ..start })?;
    world.client(PEST)?.faults().clear()?;
    world.mine(1)?;
    world.wait_waiting(4)?;
    let id = begin(&world, &body)?;
    let factory = activate(&world, &id, limit(0))?;
    assert!(factory.excluded.is_empty(), "{:?}", factory.excluded);

    // It asks for closes to which it does not agree itself; then it is not heard. The factory is as it was.
    world.client(PEST)?.faults().set("on@client.close.refuses")?;
    for _ in 0..2 {
        let reason = ask_in_vain(&world, PEST, &id)?;
        assert!(!reason.contains("not admitted"), "{reason}");
    }
    let reason = ask_in_vain(&world, PEST, &id)?;
    assert!(reason.contains("not admitted before block"), "{reason}");
    let seen = entry(&world, PEST)?.expect("it is listed");
    assert_eq!(seen.paused_until_height, Some(world.bitcoind.height()? + 6), "twice as long: {seen:?}");
    // Another one asks, and it refuses: that one is not to blame, but may not go on for ever either.
    for _ in 0..2 {
        ask_in_vain(&world, 1, &id)?;
    }
    let reason = ask_in_vain(&world, 1, &id)?;
    assert!(reason.contains("asked for 2 closes"), "{reason}");
    let seen = entry(&world, 1)?.expect("it is listed");
    assert_eq!((seen.strikes, seen.closes_in_vain, seen.paused_until_height), (0, 2, None), "{seen:?}");
    pay_exactly(&world, 0, PEST)?;

    // The operator lets it in again, and it asks for a close, agrees, and does not shut its channel down: the others'
    // channels live on.
    let pest = json!({ "node_id": world.client(PEST)?.node_id() });
    world.lsp.api()?.post::<Value>("/v1/admission/readmit", &pest)?;
    assert!(entry(&world, PEST)?.is_none());
    world.client(PEST)?.faults().set("on@client.close.ignores_shutdown")?;
    world.client(PEST)?.close_factory(&id)?;
    wait::until_value(
        "its channel to be shut down by the LSP",
        PATIENCE,
        || lsp_channel(&world, PEST, &id),
        |channel| channel.state == "closing",
    )?;
    for client in 0..PEST {
        let channel = lsp_channel(&world, client, &id)?;
        assert!(channel.usable && channel.state == "ready", "client {client}: {channel:?}");
    }
    pay_exactly(&world, 0, 1)?;
    let before = wait_at_rest(&world)?;
    assert!(stalled(&world, &id, "not shut down in time")?.contains(world.client(PEST)?.node_id()));
    let seen = entry(&world, PEST)?.expect("it is listed");
    assert!(seen.strikes > 0 || seen.paused_until_height.is_some(), "{seen:?}");
    assert!(seen.reason.contains("not shut down in time"), "{seen:?}");
    for client in [0, 2] {
        assert!(entry(&world, client)?.is_none(), "the others have not been asked yet");
    }

    // It comes back, shuts down like the others, and does not sign: it is named. When it signs, everybody is paid.
    world.client_mut(PEST)?.stop()?;
    world.client(PEST)?.faults().set("on@client.close.withholds_partial")?;
    world.client_mut(PEST)?.start()?;
    let named = stalled(&world, &id, "no answer in time")?;
    assert!(named.contains(world.client(PEST)?.node_id()), "{named}");
    let seen = entry(&world, PEST)?.expect("it is listed");
    assert!(seen.strikes > 0 || seen.paused_until_height.is_some(), "{seen:?}");
    assert!(seen.reason.contains("close: "), "{seen:?}");
    world.client(PEST)?.faults().clear()?;
    close::finish(&world, &id, &before)?;
    world.finish();
    Ok(())
}
