//! An LSP that completes a state, says that it has failed, and lets it come to the chain later.

use anyhow::{ensure, Result};
use integration::ledger::wait_at_rest;
use integration::pace::{self, Leaving};
use integration::payments::{pay, Party};
use integration::shares::{self, due_sat, paid_sat};
use integration::signed::{spender, wait_spent};
use integration::superseded::{Cheater, OldCopy, OldPath};
use integration::wait;
use integration::world::PATIENCE;

use super::{back, there, Kind, Scene, CAPACITY, FEES, LIMIT, MOVER, STEP};

/// Where the LSP is when it lets a leaf advance once more, whose channel rests after a sale that has failed.
const RESTORES: &str = "lsp.rotation.begun";

/// A rotation that the LSP has completed and says has failed: where the channel would be, if that state confirmed. After a
/// sale the LSP dies before it does anything else.
fn hidden(scene: &mut Scene) -> Result<OldPath> {
    scene.rotates_on()?;
    scene.pays()?;
    if scene.kind == Kind::Plain {
        scene.world.lsp.faults().set("on@lsp.advance.hides")?;
        scene.asks()?;
        wait::until_value(
            "the rotation to fail, and to be pending at the client",
            PATIENCE,
            || scene.leaves(),
            |(lsp, own)| {
                let failed = lsp.failure.as_ref().is_some_and(|f| f.contains("changed my mind"));
                failed && lsp.rotating.is_none() && own.rotating.as_deref() == Some("pending")
            },
        )?;
        scene.world.lsp.faults().clear()?;
        scene.pays()?;
    } else {
        scene.world.lsp.faults().set(&format!("on@lsp.advance.hides,kill@{RESTORES}#2"))?;
        scene.asks()?;
        scene.world.lsp.wait_killed()?;
        scene.world.lsp.faults().clear()?;
        let client = scene.world.client(MOVER)?;
        wait::until_value(
            "the sale to be pending at the client",
            PATIENCE,
            || Ok(client.factory(&scene.id)?.leaves[0].rotating.clone()),
            |rotating| rotating.as_deref() == Some("pending"),
        )?;
    }
    OldPath::hidden(&scene.world, MOVER)
}

/// The client leaves, and somebody publishes a state of which the client was told that it failed. It wins, and the client
/// goes on over that one.
fn comes_out(kind: Kind) -> Result<()> {
    let mut scene = Scene::start("hidden", kind, 2)?;
    let mut cheater = Cheater::new(&scene.world, 8)?;
    let hidden = hidden(&mut scene)?;
    let height = scene.world.bitcoind.height()?;
    let before = integration::ledger::Snapshot { height, ..scene.start.after(&scene.paid)? };
    let share = shares::of_client(&scene.world, MOVER, &scene.id)?;
    if scene.world.lsp.is_up() {
        scene.world.lsp.kill()?;
    }
    scene.world.client(MOVER)?.exit(&scene.id)?;
    cheater.publish(&scene.world, &hidden, hidden.transactions().len() - 1)?;
    let leaving = Leaving::client(&scene.world, MOVER, &scene.id)?;
    pace::drive(&scene.world, &[leaving], LIMIT, &mut |_| Ok(()))?;
    scene.world.lsp.start()?;
    let place = hidden.place()?;
    scene.whole(&before, share, place, cheater.fees_sat)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_hidden_state_comes_out_in_the_clients_exit() -> Result<()> {
    comes_out(Kind::Plain)
}

#[test]
#[ignore = "long: make adversaries"]
fn a_hidden_sale_comes_out_in_the_clients_exit() -> Result<()> {
    comes_out(Kind::Sale)
}

#[test]
#[ignore = "long: make adversaries"]
fn what_was_hidden_when_the_client_gave_back_comes_out_in_its_exit() -> Result<()> {
    comes_out(Kind::GiveBack)
}

/// The leaf has rotated on since, and all sleep while the hidden state confirms: payments go on over it, and the client
/// leaves over it.
#[test]
#[ignore = "long: make adversaries"]
fn a_hidden_state_is_slept_through() -> Result<()> {
    let mut scene = Scene::start("hidden-slept", Kind::Plain, 2)?;
    let mut cheater = Cheater::new(&scene.world, 8)?;
    let hidden = hidden(&mut scene)?;
    scene.rotates_on()?;
    scene.pays()?;
    let before = wait_at_rest(&scene.world)?;
    let paid = scene.paid.len();
    for client in &mut scene.world.clients {
        client.kill()?;
    }
    scene.world.lsp.kill()?;
    cheater.publish(&scene.world, &hidden, hidden.transactions().len() - 1)?;
    scene.world.lsp.start()?;
    for client in &mut scene.world.clients {
        client.start()?;
    }
    scene.world.sync()?;
    scene.world.wait_usable(&scene.factory)?;
    scene.pays()?;
    let before = before.after(&scene.paid[paid..])?;
    let place = hidden.place()?;
    scene.leaves_since(before, Party::Client(MOVER), place, cheater.fees_sat)
}

/// A sale that the LSP has hidden, after which it has let the leaf advance like one that means well. All sleep while the
/// hidden state confirms. The LSP goes back to its data from when it hid it, and publishes its commitment of then: the
/// client, which has been paid since, takes all.
#[test]
#[ignore = "long: make adversaries"]
fn a_revoked_commitment_on_a_hidden_sale_is_punished() -> Result<()> {
    let mut scene = Scene::start("hidden-revoked", Kind::Sale, 2)?;
    let mut cheater = Cheater::new(&scene.world, 8)?;
    let hidden = hidden(&mut scene)?;
    let then = shares::of_client(&scene.world, MOVER, &scene.id)?;
    let copy = OldCopy::take(scene.world.lsp.data_dir())?;
    scene.world.lsp.start()?;
    scene.rotates_on()?;
    scene.paid.push(pay(&scene.world, back(60_000_000))?);
    scene.pays()?;
    let share = shares::of_client(&scene.world, MOVER, &scene.id)?;
    let held_msat = scene.world.client(MOVER)?.balance()?.total_msat();
    let leaving = Leaving::by_lsp(&scene.world, MOVER, &scene.id)?;
    for client in &mut scene.world.clients {
        client.kill()?;
    }
    scene.world.lsp.kill()?;
    cheater.publish(&scene.world, &hidden, hidden.transactions().len() - 1)?;
    copy.put_back()?;
    scene.world.lsp.start()?;
    scene.world.sync()?;
    leaving.ask(&scene.world)?;
    let place = hidden.place()?;
    wait_spent(&scene.world.bitcoind, place)?;
    scene.world.mine(1)?;
    let first = scene.world.bitcoind.height()?;
    let commitment = spender(&scene.world.bitcoind, place, first, first)?;
    let capacity = CAPACITY + u64::try_from(STEP)?;
    ensure!(paid_sat(&commitment) == due_sat(capacity, then, &[]), "another one: {commitment:?}");

    scene.world.lsp.kill()?;
    scene.world.client_mut(MOVER)?.start()?;
    scene.world.sync()?;
    let gets_sat: u64 = paid_sat(&commitment).iter().sum();
    let world = &scene.world;
    pace::rest_until(world, |after| {
        let fees = world.bitcoind.fees(first + 1, after.height)?;
        let holds = world.client(MOVER)?.balance()?.total_msat() + fees * 1000;
        let due = held_msat - share + gets_sat * 1000;
        ensure!(holds == due && fees <= FEES, "{holds} msat with {fees} sat of fees, due {due} msat");
        Ok(())
    })?;
    scene.world.finish();
    Ok(())
}

/// The same where nobody has an old copy: nothing that is signed counts on the hidden state any more, both sides say so, and
/// nobody is paid over the channel.
#[test]
#[ignore = "long: make adversaries"]
fn a_hidden_sale_is_slept_through() -> Result<()> {
    let mut scene = Scene::start("hidden-stuck", Kind::Sale, 2)?;
    let mut cheater = Cheater::new(&scene.world, 8)?;
    let hidden = hidden(&mut scene)?;
    scene.world.lsp.start()?;
    scene.rotates_on()?;
    scene.pays()?;
    for client in &mut scene.world.clients {
        client.kill()?;
    }
    scene.world.lsp.kill()?;
    cheater.publish(&scene.world, &hidden, hidden.transactions().len() - 1)?;
    scene.world.lsp.start()?;
    for client in &mut scene.world.clients {
        client.start()?;
    }
    let world = &scene.world;
    world.sync()?;
    wait::until_value(
        "both sides to say that the channel is stuck",
        PATIENCE,
        || Ok([world.client(MOVER)?.channels()?, world.lsp.channels()?]),
        |[own, theirs]| {
            let stuck =
                |list: &[integration::types::Channel]| list.iter().filter(|c| c.state == "stuck").count();
            stuck(own) == 1 && stuck(theirs) == 1
        },
    )?;
    for order in [there(1_000_000), back(1_000_000)] {
        let answer = pay(world, order);
        ensure!(answer.is_err(), "{order:?} was paid over a channel that is stuck: {answer:?}");
    }
    world.mine(12)?;
    ensure!(world.bitcoind.mempool()?.is_empty() && world.bitcoind.unspent(hidden.place()?)?.is_some());
    scene.world.finish();
    Ok(())
}
