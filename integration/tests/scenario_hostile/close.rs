//! A hostile LSP in a close: the client refuses with the check's code, and is paid to the satoshi when the LSP comes round.

use std::time::Instant;

use integration::hold::Held;

use super::*;

/// How long a close may go on that is tried again after pauses.
const RETRIED: Duration = Duration::from_secs(120);

/// Waits for the close, mines it and checks that everybody holds what they held before, rounded down to the satoshi, and
/// that the mining fee is all that went.
pub fn finish(world: &World, id: &str, before: &Snapshot) -> Result<()> {
    let txid = wait::until("the close transaction", RETRIED, || {
        let close = world.lsp.factory(id)?.close;
        match close.as_ref().and_then(|close| close.txid) {
            Some(txid) => Ok(Seen::Done(txid)),
            None => Ok(Seen::NotYet(format!("{close:?}"))),
        }
    })?;
    world.bitcoind.wait_seen(txid, PATIENCE)?;
    world.mine(6)?;
    world.wait_state(id, "closed", PATIENCE)?;
    let factory = world.lsp.factory(id)?;
    for member in &factory.clients {
        let client = world.by_node_id(&member.node_id)?;
        let due = before.of(client.name())? / 1000 * 1000;
        wait::until_value(
            &format!("{} to be paid {due} msat", client.name()),
            PATIENCE,
            || client.balance(),
            |balance| balance.total_msat() == due && balance.onchain.unconfirmed_sat == 0,
        )?;
    }
    check_conserved(world, before, &Snapshot::take(world)?)
}

#[test]
fn a_hostile_lsp_gets_no_signature_for_another_close() -> Result<()> {
    cheated(&[("lsp.close.amount", "CloseAmount")])
}

#[test]
#[ignore = "long: make hostile"]
fn a_hostile_lsp_gets_no_signature_for_any_other_close() -> Result<()> {
    cheated(&[
        ("lsp.close.script", "CloseAmount"),
        ("lsp.close.form", "CloseForm"),
        ("lsp.close.keys", "CloseKeys"),
        ("lsp.close.nonce", "AggregateNonce"),
        ("lsp.close.signature", "Signature"),
    ])
}

/// A client agrees to a close and then keeps its channel open, goes away, or does not sign, or not rightly: it is named,
/// and the close is signed as soon as it does its part.
#[test]
#[ignore = "long: make hostile"]
fn a_client_that_holds_a_close_up_is_named() -> Result<()> {
    let phase = PHASE.to_string();
    let flags = ["--phase-timeout-secs", &phase, "--admission-strikes", "0"];
    let mut world = World::start_with_lsp("hostile-closer", 2, &flags)?;
    let cases = [
        ("on@client.close.ignores_shutdown", "not shut down in time"),
        ("kill@client.sent.close_nonce", "connection lost"),
        ("on@client.close.withholds_nonce", "no answer"),
        ("on@client.close.bad_partial", "partial signature 0 does not verify"),
    ];
    for (fault, wanted) in cases {
        let factory = world.create_factory(&request(&world, &[0, 1])?)?;
        let id = factory.instance_id.as_str();
        pay_exactly(&world, 0, 1)?;
        let before = wait_at_rest(&world)?;
        // The nonce that it gives before it goes is not the last one.
        let slow = if fault.starts_with("kill") { "hold@client.send.close_nonce" } else { "" };
        world.client(0)?.faults().set(slow)?;
        world.client(1)?.faults().set(fault)?;
        world.lsp.close_factory(id)?;
        let named = admission::stalled(&world, id, wanted)?;
        assert!(named.contains(world.client(1)?.node_id()), "{fault}: {named}");
        world.client(0)?.faults().clear()?;
        world.client(1)?.faults().clear()?;
        if fault.starts_with("kill") {
            world.client_mut(1)?.wait_killed()?;
            world.client_mut(1)?.start()?;
        } else if fault.ends_with("shutdown") {
            // What it has not heard it hears when it connects again.
            world.client_mut(1)?.stop()?;
            world.client_mut(1)?.start()?;
        }
        finish(&world, id, &before)?;
    }
    world.finish();
    Ok(())
}

/// A payment that is still held keeps two channels from being shut. Payer and payee have answered, so neither is named;
/// the close goes on by itself when the payment ends.
#[test]
#[ignore = "long: make hostile"]
fn nobody_is_named_for_a_payment_that_is_pending() -> Result<()> {
    let phase = PHASE.to_string();
    let world = World::start_with_lsp("close-pending", 3, &["--phase-timeout-secs", &phase])?;
    let factory = world.create_factory(&request(&world, &[0, 1, 2])?)?;
    let id = factory.instance_id.as_str();
    let start = wait_at_rest(&world)?;
    // Begun after the LSP and both clients have looked whether there is any: the third has not answered yet.
    world.client(2)?.faults().set("hold@client.send.close_consent")?;
    world.lsp.close_factory(id)?;
    world.client(2)?.faults().wait_held("client.send.close_consent")?;
    let order = Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 5_000_001 };
    let held = Held::start(&world, order)?;
    world.client(2)?.faults().clear()?;
    let shut = |client: usize| -> Result<bool> {
        let of = world.client(client)?.node_id();
        Ok(factory_channel(&world.lsp.channels()?, id, of).is_err())
    };
    wait::until_value("the third channel to be shut down", PATIENCE, || shut(2), |shut| *shut)?;
    // The time for the others runs out twice.
    let until = Instant::now() + Duration::from_secs(2 * PHASE + 4);
    while Instant::now() < until {
        held.check_held(&world)?;
        assert!(!shut(0)? && !shut(1)?);
        let events = world.lsp.events("close_stalled")?;
        assert!(events.is_empty(), "{events:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    held.claim(&world)?;
    let paid = held.paid(&world)?;
    let due = start.after(&[paid])?;
    finish(&world, id, &due)?;
    assert!(world.lsp.events("close_stalled")?.is_empty());
    world.finish();
    Ok(())
}

/// One factory after the other is closed, first in the wrong way: the LSP's switch, the clients' code.
fn cheated(cases: &[(&str, &str)]) -> Result<()> {
    let phase = PHASE.to_string();
    let flags = ["--phase-timeout-secs", &phase, "--admission-strikes", "0"];
    let world = World::start_with_lsp("hostile-close", 2, &flags)?;
    for (switch, code) in cases {
        let factory = world.create_factory(&request(&world, &[0, 1])?)?;
        pay_exactly(&world, 0, 1)?;
        let before = wait_at_rest(&world)?;
        let seen: Vec<usize> = world
            .clients
            .iter()
            .map(|client| Ok(client.events("close_refused")?.len()))
            .collect::<Result<_>>()?;
        world.lsp.faults().set(&format!("on@{switch}"))?;
        world.lsp.close_factory(&factory.instance_id)?;
        for (client, seen) in world.clients.iter().zip(seen) {
            let reason = wait::until("the client to refuse", limit(1), || {
                match client.events("close_refused")?.get(seen) {
                    Some(event) => Ok(Seen::Done(event.data["reason"].to_string())),
                    None => Ok(Seen::not_yet("no event")),
                }
            })?;
            assert!(reason.starts_with(&format!("\"{code}: ")), "{switch}: {reason}");
        }
        world.lsp.faults().clear()?;
        finish(&world, &factory.instance_id, &before)?;
    }
    world.finish();
    Ok(())
}
