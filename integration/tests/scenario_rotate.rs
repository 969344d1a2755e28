//! A leaf's state is replaced by a newer one under a live channel.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{ensure, Result};
use integration::close::Due;
use integration::crash::Place;
use integration::hold::Held;
use integration::http::ApiError;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::pace::{self, Leaving};
use integration::payments::{pay, pay_meanwhile, Order, Party};
use integration::wait::until_value;
use integration::world::PATIENCE;
use integration::{exit, rotate, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 500_000;
const MOVER: usize = 0;
const OTHER: usize = 1;
/// Blocks that an exit of a leaf with short delays may take.
const LIMIT: u32 = 400;

fn there(amount_msat: u64) -> Order {
    Order { from: Party::Client(MOVER), to: Party::Client(OTHER), amount_msat }
}

fn back(amount_msat: u64) -> Order {
    Order { from: Party::Client(OTHER), to: Party::Client(MOVER), amount_msat }
}

/// A leaf with 64 states and short delays.
fn long_odometer() -> Value {
    json!({ "arity": [2], "layers": [[], [[8, 4, 8], [8, 4, 0]]] })
}

/// A leaf whose outer layer ticks with every second update.
fn short_inner_layer() -> Value {
    json!({ "arity": [2], "layers": [[], [[8, 4, 8], [2, 4, 0]]] })
}

/// The code and the words of an answer that refuses.
fn refused<T: std::fmt::Debug>(answer: Result<T>) -> (String, String) {
    let error = answer.unwrap_err();
    let told =
        error.chain().find_map(|cause| cause.downcast_ref::<ApiError>()).expect("an answer of the API");
    (told.code.clone(), told.message.clone())
}

/// Three rotations, with payments between them and one held over the second; then the client leaves by its newest
/// path with the LSP dead.
#[test]
fn three_rotations_then_the_client_leaves() -> Result<()> {
    let mut world = World::start("rotate", 2)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    let factory = world.create_factory(&request)?;
    let id = factory.instance_id.clone();
    let start = Snapshot::take(&world)?;

    let mut paid = vec![pay(&world, there(12_345_678))?];
    rotate::once(&world, &id, MOVER)?;
    paid.extend([pay(&world, back(7_000_001))?, pay(&world, there(3_000_000))?]);
    wait_for(&world, &start.after(&paid)?)?;

    let held = Held::start(&world, there(20_000_000))?;
    rotate::once(&world, &id, MOVER)?;
    held.check_held(&world)?;
    held.claim(&world)?;
    paid.push(held.paid(&world)?);
    wait_for(&world, &start.after(&paid)?)?;

    rotate::once(&world, &id, MOVER)?;
    paid.push(pay(&world, back(1_234_567))?);
    wait_for(&world, &start.after(&paid)?)?;
    let node = world.client(MOVER)?.node_id().to_owned();
    let leaf = rotate::leaf(&world, &id, &node)?;
    assert_eq!((leaf.position, leaf.superseded), (3, 3), "{leaf:?}");
    wait_at_rest(&world)?;

    world.lsp.kill()?;
    let report = exit::drive(&world, MOVER, &id, &mut |line| println!("{line}"))?;
    report.check_wallet(CAPACITY)?;
    world.finish();
    Ok(())
}

/// A client that is not there: nothing changes, its name is told, the others pay. Then it rotates, dies, and the LSP
/// leaves it by the newest path; it comes back to its money.
#[test]
fn an_absent_client_is_named_and_a_dead_one_is_left() -> Result<()> {
    let mut world = World::start("rotate-dead", 3)?;
    let params = json!({ "arity": [3], "layers": [[], [[2, 8, 8], [2, 8, 0]]] });
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params)))?;
    let id = factory.instance_id.clone();
    let start = Snapshot::take(&world)?;
    let node = world.client(MOVER)?.node_id().to_owned();
    let mut paid = vec![pay(&world, there(12_345_678))?];
    wait_for(&world, &start.after(&paid)?)?;

    world.client_mut(MOVER)?.kill()?;
    world.wait_gone(&node)?;
    let (code, words) = refused(rotate::ask(&world, &id, &node));
    assert!(code == "unavailable" && words.contains(&node), "{code}: {words}");
    assert_eq!(rotate::leaf(&world, &id, &node)?.position, 0);
    let other = Order { from: Party::Client(OTHER), to: Party::Client(2), amount_msat: 5_000_001 };
    paid.push(pay(&world, other)?);

    world.client_mut(MOVER)?.start()?;
    world.wait_usable(&factory)?;
    rotate::once(&world, &id, MOVER)?;
    paid.push(pay(&world, back(3_000_003))?);
    rotate::once(&world, &id, MOVER)?;
    wait_for(&world, &start.after(&paid)?)?;
    let before = wait_at_rest(&world)?;
    let newest = world.client(MOVER)?.factory(&id)?.tree;

    world.client_mut(MOVER)?.kill()?;
    let leaving = Leaving::by_lsp(&world, MOVER, &id)?;
    world.lsp.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &json!({ "client": node }))?;
    pace::drive(&world, std::slice::from_ref(&leaving), LIMIT, &mut |_| Ok(()))?;
    for step in &newest {
        assert!(
            world.bitcoind.confirmed(step.txid)?.is_some(),
            "{} {} is not on the chain",
            step.kind,
            step.txid
        );
    }
    pace::rest(&world)?;
    world.client_mut(MOVER)?.start()?;
    let after = pace::rest_until(&world, |after| check_conserved(&world, &before, after))?;
    let now = world.client(MOVER)?.balance()?;
    assert_eq!(now.onchain.confirmed_sat, now.total_sat, "{now:?}");
    let lost = before.of("client-0")? - after.of("client-0")?;
    assert!(lost < 2_000_000, "the dead client paid {lost} msat");
    world.finish();
    Ok(())
}

/// An odometer that has come to its end says so, and how much is left above; the channel goes on.
#[test]
fn an_odometer_ends() -> Result<()> {
    let world = World::start("rotate-end", 2)?;
    let params = json!({ "arity": [2], "layers": [[], [[2, 8, 8]]] });
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params)))?;
    let (id, node) = (factory.instance_id, world.client(MOVER)?.node_id().to_owned());
    let start = Snapshot::take(&world)?;
    rotate::once(&world, &id, MOVER)?;
    assert_eq!(rotate::leaf(&world, &id, &node)?.left, 0);
    let (code, words) = refused(rotate::ask(&world, &id, &node));
    assert!(code == "conflict" && words.contains("no update"), "{code}: {words}");
    let paid = [pay(&world, there(2_000_000))?, pay(&world, back(1_000_000))?];
    wait_for(&world, &start.after(&paid)?)?;
    world.finish();
    Ok(())
}

/// Payments run both ways without a pause while a leaf rotates again and again: none fails, and the sums are right.
#[test]
fn payments_run_through_rotations() -> Result<()> {
    const PAYMENTS: u64 = 12;
    const ROTATIONS: u64 = 60;
    let world = World::start("rotate-traffic", 2)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(long_odometer()));
    let id = world.create_factory(&request)?.instance_id;
    let start = Snapshot::take(&world)?;
    // A rotation takes much less time than a payment, which waits for the LSP to forward it.
    let mut rotations = 0;
    let paid = pay_meanwhile(&world, &[there, there, back, back], 1_000_001, |paid| {
        rotate::once(&world, &id, MOVER)?;
        rotations += 1;
        Ok(paid >= PAYMENTS || rotations == ROTATIONS)
    })?;
    println!("{} payments in {rotations} rotations", paid.len());
    assert!(paid.len() > 4, "no traffic");
    wait_for(&world, &start.after(&paid)?)?;
    world.finish();
    Ok(())
}

/// Leaves advance alone, then the branch above two of them, then the root above all: the levels inside begin anew, and
/// money is paid all the while. In the end the client leaves by the newest path, with the LSP dead.
#[test]
fn leaf_branch_and_root_advance_in_turn() -> Result<()> {
    let mut world = World::start("rotate-levels", 4)?;
    let layers = json!([[[3, 2, 4]], [[3, 2, 4]], [[2, 4, 0]]]);
    let params = json!({ "arity": [2, 2], "layers": layers });
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params)))?;
    let (id, node) = (factory.instance_id.clone(), world.client(MOVER)?.node_id().to_owned());
    let start = Snapshot::take(&world)?;
    let mut paid = vec![pay(&world, there(12_345_678))?];
    // Positions count states of the leaf (2) inside states of the branch (3) inside states of the root (3).
    let steps =
        [("leaf", 1, 1), ("branch", 2, 2), ("leaf", 3, 1), ("root", 6, 4), ("branch", 8, 2), ("leaf", 9, 1)];
    for (level, position, moved) in steps {
        rotate::ask_at(&world, &id, &node, &json!(level))?;
        for client in 0..moved {
            rotate::wait_position(&world, &id, client, position)?;
        }
        paid.extend([pay(&world, there(3_000_001))?, pay(&world, back(2_000_003))?]);
        wait_for(&world, &start.after(&paid)?)?;
    }
    let other = world.client(3)?.node_id().to_owned();
    assert_eq!(rotate::leaf(&world, &id, &other)?.position, 6, "the other branch stays");
    let (code, words) = refused(rotate::ask(&world, &id, &node));
    assert!(code == "conflict" && words.contains("no update"), "{code}: {words}");
    wait_at_rest(&world)?;

    world.lsp.kill()?;
    // Who sees the kickoff helps along with the states above its own leaf; here the client pays for all of it.
    for client in 1..4 {
        world.client_mut(client)?.kill()?;
    }
    let report = exit::drive(&world, MOVER, &id, &mut |line| println!("{line}"))?;
    report.check_wallet(CAPACITY)?;
    world.finish();
    Ok(())
}

/// One leaf is brought to the chain, and the static levels above it with it: the others rotate on, below them too.
#[test]
fn a_leaf_rotates_while_another_is_on_the_chain() -> Result<()> {
    const LEAVER: usize = 2;
    let mut world = World::start("rotate-published", 3)?;
    let params = json!({ "arity": [3], "layers": [[], [[2, 4, 4], [2, 4, 0]]] });
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params)))?;
    let (id, node) = (factory.instance_id.clone(), world.client(MOVER)?.node_id().to_owned());
    rotate::once(&world, &id, MOVER)?;
    wait_at_rest(&world)?;
    let left = world.client(LEAVER)?.node_id().to_owned();
    let had = world.client(LEAVER)?.balance()?.total_sat;
    world.client_mut(LEAVER)?.kill()?;
    let leaving = Leaving::by_lsp(&world, LEAVER, &id)?;
    world.lsp.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &json!({ "client": left }))?;
    pace::drive(&world, std::slice::from_ref(&leaving), LIMIT, &mut |_| Ok(()))?;
    pace::rest(&world)?;
    world.client_mut(LEAVER)?.start()?;
    pace::rest_until(&world, |_| {
        let held = world.client(LEAVER)?.balance()?;
        // For a moment after its start it shows its money nowhere. The sweep costs it a fee.
        let all = held.onchain.confirmed_sat == held.total_sat && held.total_sat + 10_000 > had;
        ensure!(all, "not all of {had} sat is in its wallet: {held:?}");
        Ok(())
    })?;
    let root = world.client(MOVER)?.factory(&id)?.tree.first().map(|step| step.txid).expect("a root");
    assert!(world.bitcoind.confirmed(root)?.is_some(), "the root is not on the chain");

    let start = Snapshot::take(&world)?;
    let (from, paid) = (rotate::leaf(&world, &id, &node)?.position, pay(&world, there(12_345_678))?);
    rotate::once(&world, &id, MOVER)?;
    rotate::once(&world, &id, OTHER)?;
    let paid = [paid, pay(&world, back(2_000_003))?];
    wait_for(&world, &start.after(&paid)?)?;
    assert_eq!(rotate::leaf(&world, &id, &node)?.position, from + 1);
    let (code, words) = refused(rotate::ask(&world, &id, &left));
    assert!(code == "conflict", "{code}: {words}");
    wait_at_rest(&world)?;

    world.lsp.kill()?;
    for client in [OTHER, LEAVER] {
        world.client_mut(client)?.kill()?;
    }
    let mover = world.client(MOVER)?;
    let (newest, before) = (mover.factory(&id)?.tree, mover.balance()?);
    mover.api()?.post::<Value>(&format!("/v1/factories/{id}/exit"), &json!({}))?;
    let leaving = Leaving::client(&world, MOVER, &id)?;
    pace::drive(&world, std::slice::from_ref(&leaving), LIMIT, &mut |_| Ok(()))?;
    for step in &newest {
        assert!(world.bitcoind.confirmed(step.txid)?.is_some(), "{} is not on the chain", step.kind);
    }
    pace::rest(&world)?;
    let now = mover.balance()?;
    assert_eq!(now.onchain.confirmed_sat, now.total_sat, "{now:?}");
    let paid = before.total_sat.checked_sub(now.total_sat).expect("no gain");
    assert!(paid < 20_000, "the client paid {paid} sat to leave");
    world.finish();
    Ok(())
}

/// A client that cannot store what it has to says so at once, and is named with the reason.
#[test]
fn a_client_without_room_says_so() -> Result<()> {
    let world = World::start("rotate-no-room", 2)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(long_odometer()));
    let id = world.create_factory(&request)?.instance_id;
    let start = Snapshot::take(&world)?;
    let mover = world.client(MOVER)?;
    let node = mover.node_id().to_owned();
    mover.faults().set("on@store.full")?;
    rotate::ask(&world, &id, &node)?;
    let failed = until_value(
        "the rotation to fail",
        PATIENCE,
        || world.lsp.events("rotation_failed"),
        |events| !events.is_empty(),
    )?;
    mover.faults().clear()?;
    let (who, reason) = (&failed[0].data["who"], failed[0].data["reason"].as_str().unwrap_or_default());
    assert!(*who == json!([node]) && reason.contains("declined") && reason.contains("store"), "{failed:?}");
    rotate::go_on(&world, &id, MOVER, 0)?;
    let paid = [pay(&world, there(3_000_001))?];
    wait_for(&world, &start.after(&paid)?)?;
    world.finish();
    Ok(())
}

/// A client does not say that it has its new state: the rotation ends without its word, by name, and holds up neither the
/// close of the factory nor anything else.
#[test]
#[ignore = "long: make crash"]
fn a_silent_client_holds_nothing_up() -> Result<()> {
    let world = World::start_with_lsp("rotate-silent", 2, &["--phase-timeout-secs", "8"])?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(long_odometer()));
    let id = world.create_factory(&request)?.instance_id;
    let start = Snapshot::take(&world)?;
    let mut paid = vec![pay(&world, there(12_345_678))?];
    wait_for(&world, &start.after(&paid)?)?;
    let mover = world.client(MOVER)?;
    let node = mover.node_id().to_owned();

    // First it keeps its signatures to itself, and a position is gone: it is left alone for a while.
    mover.faults().set("on@client.advance.withholds_outer")?;
    rotate::ask(&world, &id, &node)?;
    let failed = until_value(
        "the rotation to fail",
        PATIENCE,
        || world.lsp.events("rotation_failed"),
        |events| !events.is_empty(),
    )?;
    assert_eq!((&failed[0].data["who"], &failed[0].data["burnt"]), (&json!([node]), &json!(true)));
    let gently = json!({ "client": node });
    let (code, words) =
        refused(world.lsp.api()?.post::<Value>(&format!("/v1/factories/{id}/rotate"), &gently));
    assert!(code == "unavailable" && words.contains("63 of the leaf are left"), "{code}: {words}");

    mover.faults().set("hold@client.advance.store")?;
    rotate::ask(&world, &id, &node)?;
    mover.faults().wait_held("client.advance.store")?;
    let ended = until_value(
        "the rotation to end",
        PATIENCE,
        || world.lsp.events("factory_rotated"),
        |events| !events.is_empty(),
    )?;
    assert_eq!(ended[0].data["unconfirmed"], json!([node]));
    let leaf = rotate::leaf(&world, &id, &node)?;
    assert_eq!((leaf.position, leaf.rotating, leaf.failure), (2, None, None));
    mover.faults().go_on("client.advance.store")?;
    mover.faults().clear()?;
    rotate::wait_position(&world, &id, MOVER, 2)?;
    rotate::once(&world, &id, MOVER)?;
    paid.push(pay(&world, back(3_000_003))?);
    wait_for(&world, &start.after(&paid)?)?;

    // The same once more, and the close begins while the LSP still waits.
    wait_at_rest(&world)?;
    let due = Due::ask(&world, &id)?;
    mover.faults().set("hold@client.advance.stored")?;
    rotate::ask(&world, &id, &node)?;
    mover.faults().wait_held("client.advance.stored")?;
    until_value(
        "the LSP to have the new state",
        PATIENCE,
        || rotate::leaf(&world, &id, &node),
        |leaf| leaf.position == 4 && leaf.rotating.as_deref() != Some("signing"),
    )?;
    world.lsp.close_factory(&id)?;
    mover.faults().go_on("client.advance.stored")?;
    due.finish(&world)?;
    world.finish();
    Ok(())
}

/// Where a process may die in a rotation, in the order in which it comes by.
const STEPS: [(&str, Place); 13] = [
    ("lsp.rotation.begun", Place::Lsp),
    ("node.channel.move", Place::Lsp),
    ("node.channel.moved", Place::Lsp),
    ("node.channel.move", Place::Client),
    ("node.channel.moved", Place::Client),
    ("lsp.burnt.store", Place::Lsp),
    ("lsp.burnt.stored", Place::Lsp),
    ("client.pending.store", Place::Client),
    ("client.pending.stored", Place::Client),
    ("lsp.advance.store", Place::Lsp),
    ("lsp.advance.stored", Place::Lsp),
    ("client.advance.store", Place::Client),
    ("client.advance.stored", Place::Client),
];

/// The same where the outer layer ticks, so that there are inner transactions.
const MARK_STEPS: [(&str, Place); 2] =
    [("client.mark.store", Place::Client), ("client.mark.stored", Place::Client)];

/// A process dies there; afterwards both sides have the same state, the leaf rotates on, and the balances add up.
fn dies_and_goes_on(name: &str, steps: &[(&str, Place)]) -> Result<()> {
    let mut world = World::start(name, 2)?;
    let marks = steps.iter().any(|step| MARK_STEPS.contains(step));
    let params = if marks { short_inner_layer() } else { long_odometer() };
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params));
    let factory = world.create_factory(&request)?;
    let id = factory.instance_id.clone();
    let start = Snapshot::take(&world)?;
    let node = world.client(MOVER)?.node_id().to_owned();
    let (mut paid, mut position) = (Vec::new(), 0);
    for (point, place) in steps {
        println!("{point} {place:?}");
        if marks && position % 2 == 0 {
            rotate::once(&world, &id, MOVER)?;
        }
        let fault = format!("kill@{point}");
        // The answer may be lost with the process.
        match place {
            Place::Lsp => {
                world.lsp.faults().set(&fault)?;
                let _ = rotate::ask(&world, &id, &node);
                world.lsp.wait_killed()?;
                world.lsp.faults().clear()?;
                world.lsp.start()?;
            }
            Place::Client => {
                world.client(MOVER)?.faults().set(&fault)?;
                rotate::ask(&world, &id, &node)?;
                world.client_mut(MOVER)?.wait_killed()?;
                world.client(MOVER)?.faults().clear()?;
                world.client_mut(MOVER)?.start()?;
            }
        }
        world.wait_usable(&factory)?;
        position = rotate::go_on(&world, &id, MOVER, position)?;
        paid.extend([pay(&world, there(3_000_001))?, pay(&world, back(2_000_003))?]);
        wait_for(&world, &start.after(&paid)?)?;
    }
    world.finish();
    Ok(())
}

#[test]
fn the_lsp_dies_in_a_rotation() -> Result<()> {
    dies_and_goes_on("rotate-lsp-dies", &[STEPS[6], STEPS[10]])
}

#[test]
fn the_client_dies_in_a_rotation() -> Result<()> {
    dies_and_goes_on("rotate-client-dies", &[STEPS[4], STEPS[8], STEPS[12]])
}

#[test]
fn the_client_dies_before_its_inner_signatures_leave() -> Result<()> {
    dies_and_goes_on("rotate-mark-dies", &MARK_STEPS)
}

#[test]
#[ignore = "long: make crash"]
fn a_process_dies_at_every_step_of_a_rotation() -> Result<()> {
    dies_and_goes_on("rotate-all-die", &STEPS)
}
