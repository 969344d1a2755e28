//! A hostile LSP in a close: the client refuses with the check's code, and is paid to the satoshi when the LSP comes round.

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

/// A client agrees to a close, its channel is shut down, and then it does not sign, or not rightly: it is named, and the
/// close is signed as soon as it does its part.
#[test]
#[ignore = "long: make hostile"]
fn a_client_that_does_not_sign_a_close_is_named() -> Result<()> {
    let phase = PHASE.to_string();
    let flags = ["--phase-timeout-secs", &phase, "--admission-strikes", "0"];
    let world = World::start_with_lsp("hostile-closer", 2, &flags)?;
    let cases = [
        ("client.close.withholds_nonce", "no answer"),
        ("client.close.bad_partial", "partial signature 0 does not verify"),
    ];
    for (switch, wanted) in cases {
        let factory = world.create_factory(&request(&world, &[0, 1])?)?;
        pay_exactly(&world, 0, 1)?;
        let before = wait_at_rest(&world)?;
        world.client(1)?.faults().set(&format!("on@{switch}"))?;
        let ours = |e: &integration::types::Event| e.data["instance_id"] == factory.instance_id.as_str();
        world.lsp.close_factory(&factory.instance_id)?;
        let (named, reason) = wait::until("the LSP to name who does not sign", limit(1), || {
            match world.lsp.events("close_stalled")?.into_iter().find(ours) {
                Some(e) => Ok(Seen::Done((e.data["node_id"].to_string(), e.data["reason"].to_string()))),
                None => Ok(Seen::not_yet("no event")),
            }
        })?;
        assert!(named.contains(world.client(1)?.node_id()), "{switch}: {named}");
        assert!(reason.contains(wanted), "{switch}: {reason}");
        world.client(1)?.faults().clear()?;
        finish(&world, &factory.instance_id, &before)?;
    }
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
