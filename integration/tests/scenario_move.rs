//! Money that came over a channel beside the factory goes into the factory's channel when that has room, and the other
//! one is closed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::http::ApiError;
use integration::jit::{less_fees, of_kind, wait_usable};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::moving::{
    beside, command, confirm, paid_beside, told, wait_closed, world, Moved, CAPACITY, MOVABLE, PUSH,
    RESERVE_SAT,
};
use integration::payments::{pay, Order, Party};
use integration::types::{Channel, Factory};
use integration::world::PATIENCE;
use integration::{close, exit, wait, World};
use serde_json::json;

/// The code and the words of the API's refusal.
fn refused<T: std::fmt::Debug>(result: Result<T>) -> (String, String) {
    let error = result.unwrap_err().downcast::<ApiError>().expect("an answer of the API");
    (error.code, error.message)
}

/// The first client's channel in the factory.
fn leaf(world: &World) -> Result<Channel> {
    let pairs = wait_usable(world, 0, "factory")?;
    let (ours, theirs) = &pairs[0];
    assert_eq!(ours.capacity_sat * 1000 - ours.local_msat, theirs.local_msat, "{ours:?} {theirs:?}");
    Ok(ours.clone())
}

/// The closing transaction pays the client its reserve, and the LSP, which opened the channel, all the rest less the fee.
fn check_close(world: &World, channel: &Channel, reserve_sat: u64, held: &Snapshot) -> Result<()> {
    let tx = wait_closed(world, channel, held.of("client-0")?)?;
    let mut paid: Vec<u64> = tx.output.iter().map(|output| output.value.to_sat()).collect();
    paid.sort_unstable();
    assert_eq!((tx.input.len(), paid.len(), paid[0]), (1, 2, reserve_sat), "{tx:?}");
    let fee = channel.capacity_sat - paid.iter().sum::<u64>();
    assert!((1..5_000).contains(&fee), "a fee of {fee} sat: {tx:?}");
    Ok(())
}

/// Everybody holds what it is due, the LSP less the fees of the blocks.
fn check_due(world: &World, before: &Snapshot, due: &mut Snapshot) -> Result<()> {
    less_fees(world, before.height, due)?;
    let after = wait_for(world, due)?;
    check_conserved(world, before, &after)?;
    wait_at_rest(world).map(drop)
}

/// The neighbour sleeps, the client is paid over a channel beside the factory; when the neighbour is back, first the
/// command, then the client itself brings the money into the factory. Payments pass, and the exit holds all of it.
#[test]
fn money_goes_into_the_factory_when_the_neighbour_is_back() -> Result<()> {
    let (mut world, factory) = world("move", 300_000)?;
    let before = wait_at_rest(&world)?;
    world.client_mut(1)?.stop()?;
    let mut paid = vec![paid_beside(&world)?];
    let channel = confirm(&world)?;
    assert_eq!(channel.local_msat, MOVABLE + RESERVE_SAT * 1000);

    // There is no room, and none can be made.
    let (code, text) = refused(command(&world, 60));
    assert!(code == "conflict" && text.contains("a co-signer is offline"), "{text}");
    assert!(!text.contains("JIT"), "{text}");
    assert_eq!(of_kind(&world, 0, "jit")?[0].local_msat, channel.local_msat);

    world.client_mut(1)?.start()?;
    world.wait_usable(&factory)?;
    let moved = command(&world, 60)?;
    let expected = Moved {
        channel_id: channel.channel_id.clone(),
        moved_msat: MOVABLE,
        left_msat: 0,
        pending: false,
        closing: true,
        not_closed: None,
    };
    assert_eq!(moved, expected);
    check_close(&world, &channel, RESERVE_SAT, &before.after(&paid)?)?;
    assert_eq!(leaf(&world)?.local_msat, PUSH * 1000 + MOVABLE);
    check_due(&world, &before, &mut before.after(&paid)?)?;
    let [one] = &told(&world)?[..] else { panic!("not one payment") };
    assert_eq!((one.status.as_str(), one.amount_msat, one.fee_msat), ("succeeded", MOVABLE, 0));
    let others = world.client(0)?.payments()?;
    assert!(others.iter().filter(|p| p.payment_hash == one.payment_hash).count() == 1, "{others:?}");
    for events in [world.client(0)?.events("jit_moved")?, world.lsp.events("jit_moved")?] {
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0].data["amount_msat"], MOVABLE);
        assert_eq!(events[0].data["channel_id"], channel.channel_id);
    }

    // Again, without a word: it asks until there is room.
    world.client_mut(0)?.restart_with(&[("jit_move", "\"auto\"")])?;
    world.wait_usable(&factory)?;
    world.client_mut(1)?.stop()?;
    paid.push(paid_beside(&world)?);
    let channel = confirm(&world)?;
    let declined = |list: &Vec<integration::types::Event>| !list.is_empty();
    wait::until_value(
        "the client to be declined",
        PATIENCE,
        || world.client(0)?.events("jit_not_moved"),
        declined,
    )?;
    world.client_mut(1)?.start()?;
    world.wait_usable(&factory)?;
    check_close(&world, &channel, RESERVE_SAT, &before.after(&paid)?)?;
    assert_eq!(leaf(&world)?.local_msat, PUSH * 1000 + 2 * MOVABLE);
    paid.push(pay(&world, Order { from: Party::Client(0), to: Party::Peer, amount_msat: 50_000_003 })?);
    paid.push(pay(&world, Order { from: Party::Peer, to: Party::Client(0), amount_msat: 20_000_001 })?);
    check_due(&world, &before, &mut before.after(&paid)?)?;
    assert_eq!(of_kind(&world, 0, "jit")?, vec![]);

    let capacity = leaf(&world)?.capacity_sat;
    // The neighbour would pay fees of its own.
    world.client_mut(1)?.stop()?;
    world.lsp.kill()?;
    let report = exit::drive(&world, 0, &factory.instance_id, &mut |line| println!("{line}"))?;
    report.check_wallet(capacity)?;
    world.finish();
    Ok(())
}

/// Asks for what has not been moved until the channel is being closed, and checks that nobody has lost anything.
fn finish_move(world: &World, before: &Snapshot, channel: &Channel, had_msat: u64) -> Result<()> {
    let asks = || match command(world, 60) {
        Ok(answer) => Ok(answer.closing),
        // It may be closing already, or be gone.
        Err(e) => match of_kind(world, 0, "jit")?.first() {
            Some(c) if c.state != "closing" => {
                println!("not yet: {e}");
                Ok(false)
            }
            _ => Ok(true),
        },
    };
    wait::until_value("the move to come to an end", PATIENCE, asks, |closing| *closing)?;
    check_close(world, channel, RESERVE_SAT, before)?;
    assert_eq!(leaf(world)?.local_msat, had_msat + MOVABLE);
    let mut due = before.clone();
    check_due(world, before, &mut due)
}

/// One round: a process dies there in a move, and comes back.
fn dies(world: &mut World, factory: &Factory, point: &str, at_lsp: bool) -> Result<()> {
    println!("{point}");
    let had = leaf(world)?.local_msat;
    let (channel, _) = beside(world, 100_000)?;
    let before = wait_at_rest(world)?;
    if at_lsp {
        world.lsp.faults().set(&format!("kill@{point}"))?;
        command(world, 0)?;
        world.lsp.wait_killed()?;
        world.lsp.faults().clear()?;
        world.lsp.start()?;
    } else {
        world.client(0)?.faults().set(&format!("kill@{point}"))?;
        // The answer dies with the client.
        let _ = command(world, 60);
        world.client_mut(0)?.wait_killed()?;
        world.client(0)?.faults().clear()?;
        world.client_mut(0)?.start()?;
    }
    world.wait_usable(factory)?;
    finish_move(world, &before, &channel, had)
}

#[test]
#[ignore = "long: make jit"]
fn a_process_dies_in_a_move() -> Result<()> {
    let (mut world, factory) = world("move-dies", 600_000)?;
    for point in ["lsp.relay.held", "lsp.relay.sent", "lsp.relay.paid", "lsp.relay.claimed"] {
        dies(&mut world, &factory, point, true)?;
    }
    world.finish();
    Ok(())
}

#[test]
#[ignore = "long: make jit"]
fn the_client_dies_in_a_move() -> Result<()> {
    let (mut world, factory) = world("move-client", 600_000)?;
    for point in
        ["client.move.recorded", "client.move.sent", "node.claimable", "node.paid", "client.move.closing"]
    {
        dies(&mut world, &factory, point, false)?;
    }
    world.finish();
    Ok(())
}

/// Into a factory that is dying nothing is moved, and nothing changes.
#[test]
#[ignore = "long: make jit"]
fn a_dying_factory_takes_nothing() -> Result<()> {
    let mut world = World::start("move-dying", 2)?;
    world.add_peer(1_000_000)?;
    let params = json!({ "active": 20, "dying": 100 });
    let factory = world.create_factory(&world.factory_request(CAPACITY, PUSH, 300_000, Some(params)))?;
    let (channel, _) = beside(&world, 100_000)?;
    world.mine(20)?;
    world.wait_state(&factory.instance_id, "dying", PATIENCE)?;
    let before = wait_at_rest(&world)?;
    let (code, text) = refused(command(&world, 60));
    assert!(code == "conflict" && text.contains("no active factory"), "{text}");
    assert_eq!(wait_at_rest(&world)?, before);
    assert_eq!(of_kind(&world, 0, "jit")?[0].local_msat, channel.local_msat);
    world.finish();
    Ok(())
}

/// No stock: declined, and nothing changes. No factory: as well. In the next factory there is room.
#[test]
#[ignore = "long: make jit"]
fn without_room_nothing_moves_until_the_next_factory() -> Result<()> {
    let (world, factory) = world("move-next", 0)?;
    let (channel, _) = beside(&world, 100_000)?;
    let before = wait_at_rest(&world)?;
    let (code, text) = refused(command(&world, 60));
    assert!(code == "conflict" && text.contains("the leaf's stock is too small"), "{text}");
    assert_eq!(wait_at_rest(&world)?, before);

    close::drive(&world, &factory.instance_id)?;
    let (code, text) = refused(command(&world, 60));
    assert!(code == "conflict" && text.contains("no active factory"), "{text}");
    assert_eq!(of_kind(&world, 0, "jit")?[0].local_msat, channel.local_msat);

    let next = world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    let before = wait_at_rest(&world)?;
    assert!(command(&world, 60)?.closing);
    check_close(&world, &channel, RESERVE_SAT, &before)?;
    assert_eq!(leaf(&world)?.local_msat, MOVABLE);
    assert_eq!(leaf(&world)?.factory, Some(next.instance_id));
    let mut due = before.clone();
    check_due(&world, &before, &mut due)?;
    world.finish();
    Ok(())
}

/// Who breaks the rules of a move gets nothing by it: money that does not come over the channel that was named is given
/// back, and so is what the LSP does not pay into the factory. What is more than the factory's channel carries at a time
/// goes in parts.
#[test]
#[ignore = "long: make jit"]
fn what_goes_astray_is_given_back_and_much_goes_in_parts() -> Result<()> {
    const BESIDE: u64 = 300_000;
    let (world, _) = world("move-astray", 600_000)?;
    beside(&world, BESIDE)?;
    let before = wait_at_rest(&world)?;
    for (daemon, fault) in [(&**world.client(0)?, "client.move.astray"), (&*world.lsp, "lsp.move.astray")] {
        daemon.faults().set(&format!("on@{fault}"))?;
        let (code, text) = refused(command(&world, 60));
        assert!(code == "conflict" && text.starts_with("the payment came back"), "{text}");
        daemon.faults().clear()?;
        wait_for(&world, &before)?;
        wait_at_rest(&world)?;
    }
    assert_eq!(world.lsp.events("jit_moved")?.len() + world.client(0)?.events("jit_moved")?.len(), 0);

    let more = pay(&world, Order { from: Party::Peer, to: Party::Client(0), amount_msat: 90_000_000 })?;
    let mut due = before.after(&[more])?;
    wait_for(&world, &due)?;
    wait_at_rest(&world)?;
    let channel = of_kind(&world, 0, "jit")?.remove(0);
    let all = channel.local_msat - BESIDE / 100 * 1000;
    let moved = command(&world, 60)?;
    assert_eq!((moved.moved_msat, moved.closing), (all, true), "{moved:?}");
    let parts: Vec<_> = told(&world)?.into_iter().filter(|p| p.status == "succeeded").collect();
    assert_eq!((parts.len(), parts.iter().map(|p| p.amount_msat).sum::<u64>()), (2, all), "{parts:?}");
    check_close(&world, &channel, BESIDE / 100, &due)?;
    assert_eq!(leaf(&world)?.local_msat, PUSH * 1000 + all);
    check_due(&world, &before, &mut due)?;
    world.finish();
    Ok(())
}
