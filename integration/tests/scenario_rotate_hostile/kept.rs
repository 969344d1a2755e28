//! An LSP that completes a state alone and keeps it, or calls it off.

use anyhow::{ensure, Context, Result};
use bitcoin::consensus::encode::serialize_hex;
use integration::payments::Party;
use integration::signed::wait_spent;
use integration::superseded::OldPath;
use integration::wait;
use integration::world::PATIENCE;
use integration::{liquidity, rotate, shares};
use serde_json::{json, Value};

use super::{newest_of_lsp, steps_of_lsp, Kind, Scene, MOVER};

/// The LSP keeps the inner signatures to itself: no state comes of it. A later rotation works, and the client leaves.
fn inner_kept(kind: Kind) -> Result<()> {
    let mut scene = Scene::start("inner-kept", kind, 2)?;
    scene.rotates_on()?;
    scene.pays()?;
    scene.world.lsp.faults().set("on@lsp.advance.withholds_inner")?;
    scene.fails_at_the_client()?;
    scene.world.lsp.faults().clear()?;
    scene.goes_on(true)?;
    let place = OldPath::of(&scene.world, MOVER)?.place()?;
    scene.leaves_by(Party::Client(MOVER), place)
}

#[test]
#[ignore = "long: make adversaries"]
fn an_lsp_keeps_the_inner_signatures() -> Result<()> {
    inner_kept(Kind::Plain)
}

#[test]
#[ignore = "long: make adversaries"]
fn an_lsp_keeps_the_inner_signatures_of_a_sale() -> Result<()> {
    inner_kept(Kind::Sale)
}

/// A rotation after which the LSP alone has the new state.
fn completed_alone(name: &str, kind: Kind, switch: &str) -> Result<Scene> {
    let mut scene = Scene::start(name, kind, 2)?;
    scene.rotates_on()?;
    scene.pays()?;
    scene.world.lsp.faults().set(&format!("on@{switch}"))?;
    scene.asks()?;
    wait::until_value(
        "the LSP alone to have the new state",
        PATIENCE,
        || scene.leaves(),
        |(lsp, own)| (lsp.position, own.position) == (2, 1) && own.rotating.is_some(),
    )?;
    if kind == Kind::Plain {
        // Neither knows which of the two states it is going to be.
        scene.pays()?;
    }
    ensure!(OldPath::of(&scene.world, MOVER)?.place()? != newest_of_lsp(&scene)?);
    Ok(scene)
}

/// The client leaves while the LSP sleeps: over the last state that it has.
fn client_leaves(kind: Kind) -> Result<()> {
    let scene = completed_alone("alone-client", kind, "lsp.advance.withholds_signed")?;
    let place = OldPath::of(&scene.world, MOVER)?.place()?;
    scene.leaves_by(Party::Client(MOVER), place)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_client_leaves_over_the_state_before() -> Result<()> {
    client_leaves(Kind::Plain)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_client_leaves_over_the_state_before_a_sale() -> Result<()> {
    client_leaves(Kind::Sale)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_client_leaves_over_the_state_before_it_gave_back() -> Result<()> {
    client_leaves(Kind::GiveBack)
}

/// The LSP leaves over the state that it has kept, while the client sleeps.
fn lsp_leaves(kind: Kind) -> Result<()> {
    let scene = completed_alone("alone-lsp", kind, "lsp.advance.aborts")?;
    let place = newest_of_lsp(&scene)?;
    scene.leaves_by(Party::Lsp, place)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_lsp_leaves_over_the_state_it_kept() -> Result<()> {
    lsp_leaves(Kind::Plain)
}

#[test]
fn the_lsp_leaves_over_the_sale_it_kept() -> Result<()> {
    lsp_leaves(Kind::Sale)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_lsp_leaves_over_what_it_was_given_back() -> Result<()> {
    lsp_leaves(Kind::GiveBack)
}

/// The client leaves over the state that it has, and the LSP, awake, publishes the newer one that it has kept: it wins, and
/// the client's commitment holds on it.
fn the_kept_state_wins(name: &str, kind: Kind, switch: &str) -> Result<()> {
    let scene = completed_alone(name, kind, switch)?;
    let place = newest_of_lsp(&scene)?;
    let before = scene.due()?;
    let share = shares::of_client(&scene.world, MOVER, &scene.id)?;
    scene.world.client(MOVER)?.exit(&scene.id)?;
    let world = &scene.world;
    for step in steps_of_lsp(&scene)? {
        let parent = world.bitcoind.confirmed(step.parent_txid)?.context("its parent")?.height;
        let due = parent + u32::from(step.delay_blocks).max(1);
        if world.bitcoind.height()? + 1 < due {
            world.bitcoind.mine_to(due - 1)?;
            world.sync()?;
        }
        world.bitcoind.wait_seen(step.txid, PATIENCE)?;
        world.mine(1)?;
        ensure!(world.bitcoind.confirmed(step.txid)?.is_some(), "{} is not there", step.kind);
    }
    wait_spent(&world.bitcoind, place)?;
    world.mine(1)?;
    scene.whole(&before, share, place, 0)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_state_that_the_lsp_kept_wins() -> Result<()> {
    the_kept_state_wins("kept", Kind::Plain, "lsp.advance.withholds_signed")
}

#[test]
#[ignore = "long: make adversaries"]
fn the_sale_that_the_lsp_kept_wins() -> Result<()> {
    the_kept_state_wins("kept", Kind::Sale, "lsp.advance.withholds_signed")
}

#[test]
#[ignore = "long: make adversaries"]
fn the_state_that_the_lsp_called_off_wins() -> Result<()> {
    the_kept_state_wins("called-off", Kind::Plain, "lsp.advance.aborts")
}

#[test]
#[ignore = "long: make adversaries"]
fn the_sale_that_the_lsp_called_off_wins() -> Result<()> {
    the_kept_state_wins("called-off", Kind::Sale, "lsp.advance.aborts")
}

/// The same where miners leave the newer state out until the client's is valid, too, and take that one. All coins that
/// paid for what has lost are free again.
fn the_kept_state_loses(kind: Kind) -> Result<()> {
    let scene = completed_alone("kept-loses", kind, "lsp.advance.withholds_signed")?;
    let path = OldPath::of(&scene.world, MOVER)?;
    let (place, before) = (path.place()?, scene.due()?);
    let share = shares::of_client(&scene.world, MOVER, &scene.id)?;
    let world = &scene.world;
    world.client(MOVER)?.exit(&scene.id)?;
    let raced = steps_of_lsp(&scene)?.get(2).context("the outer state")?.txid;
    for (number, tx) in path.transactions().iter().enumerate() {
        let (next, due) = path.next(world)?.context("a step")?;
        ensure!(next == tx);
        if number == 2 {
            while world.bitcoind.height()? + 2 < due {
                world.bitcoind.mine_empty(1)?;
                world.sync()?;
            }
            world.bitcoind.wait_seen(raced, PATIENCE)?;
            world.bitcoind.mine_empty(1)?;
            let block = json!([world.bitcoind.new_address()?, [serialize_hex(tx)]]);
            world.bitcoind.rpc().call::<Value>("generateblock", block)?;
            world.sync()?;
        } else {
            world.bitcoind.wait_seen(tx.compute_txid(), PATIENCE)?;
            world.mine(1)?;
        }
        ensure!(world.bitcoind.confirmed(tx.compute_txid())?.is_some(), "transaction {number} is not there");
    }
    wait_spent(&world.bitcoind, place)?;
    world.mine(1)?;
    scene.whole(&before, share, place, 0)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_state_that_the_lsp_kept_loses() -> Result<()> {
    the_kept_state_loses(Kind::Plain)
}

#[test]
#[ignore = "long: make adversaries"]
fn the_sale_that_the_lsp_kept_loses() -> Result<()> {
    the_kept_state_loses(Kind::Sale)
}

/// The LSP hands the state over after all: the client has it, and the leaf rotates on.
fn handed_over_after_all(kind: Kind) -> Result<()> {
    let mut scene = completed_alone("handed-over", kind, "lsp.advance.aborts")?;
    scene.world.lsp.faults().clear()?;
    scene.world.client_mut(MOVER)?.stop()?;
    scene.world.client_mut(MOVER)?.start()?;
    rotate::wait_position(&scene.world, &scene.id, MOVER, 2)?;
    liquidity::wait_agreed(&scene.world, &scene.id, MOVER)?;
    scene.pays()?;
    scene.rotates_on()?;
    scene.pays()?;
    let place = OldPath::of(&scene.world, MOVER)?.place()?;
    ensure!(place == newest_of_lsp(&scene)?);
    scene.leaves_by(Party::Client(MOVER), place)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_kept_state_is_handed_over_after_all() -> Result<()> {
    handed_over_after_all(Kind::Plain)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_kept_sale_is_handed_over_after_all() -> Result<()> {
    handed_over_after_all(Kind::Sale)
}
