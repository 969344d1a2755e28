//! A watcher is handed each path of a leaf that rotates, before the older one is retired.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use bitcoin::{Transaction, Txid};
use integration::cpfp::{Purse, CHILD_FEE};
use integration::http::ApiError;
use integration::ledger::{wait_at_rest, wait_for, Snapshot};
use integration::pace::{self, Leaving};
use integration::payments::{pay, Order, Party};
use integration::types::Factory;
use integration::wait::{self, Seen};
use integration::watcher::{ExitFile, Status};
use integration::world::PATIENCE;
use integration::{liquidity, rotate, Daemon, Watcher, World};
use serde_json::{json, Value};

const CAPACITY: u64 = 500_000;
const SOLD: u64 = 50_000;
const MOVER: usize = 0;
const OTHER: usize = 1;
/// Blocks that an exit may take from a leaf that is on the chain.
const LIMIT: u32 = 400;
/// How long a watcher may be silent here, seconds.
const WAIT_SECS: u32 = 6;

/// A static root; a leaf with eight states, of which each next one is valid four blocks earlier.
fn params() -> Value {
    json!({ "arity": [2], "layers": [[], [[8, 4, 8]]] })
}

/// The delay of that state, blocks.
fn delay(position: u32) -> u32 {
    8 + 4 * (7 - position)
}

fn there(amount_msat: u64) -> Order {
    Order { from: Party::Client(MOVER), to: Party::Client(OTHER), amount_msat }
}

fn back(amount_msat: u64) -> Order {
    Order { from: Party::Client(OTHER), to: Party::Client(MOVER), amount_msat }
}

/// A node as an entry of `GET /v1/watchers` says it, waited for.
fn wait_watcher(node: &Daemon, what: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
    wait::until_value(
        what,
        PATIENCE,
        || node.api()?.get::<Vec<Value>>("/v1/watchers"),
        |list| list.len() == 1 && list.iter().all(&is),
    )?;
    Ok(())
}

/// Has a node hand its paths over in this folder.
fn hand_over(node: &mut Daemon, folder: &Path, required: bool) -> Result<()> {
    node.restart_with(&[
        ("watchers", json!(folder).to_string()),
        ("watchers_required", required.to_string()),
        ("watchers_wait_secs", WAIT_SECS.to_string()),
    ])
}

/// A stand-alone watcher that serves a folder, with a coin.
fn watcher_of(world: &World, folder: &Path) -> Result<Watcher> {
    let folder = folder.to_str().context("a path that is no text")?;
    let mut watcher = Watcher::start(world.path(), &world.bitcoind, &[], &["--watch-folders", folder])?;
    let wallet = watcher.wait_synced(&world.bitcoind)?.fee_wallet;
    world.bitcoind.fund(&[(integration::Bitcoind::parse_address(&wallet.address)?, crate::COIN)])?;
    assert_eq!(watcher.wait_synced(&world.bitcoind)?.fee_wallet.confirmed_sat, crate::COIN);
    world.sync()?;
    Ok(watcher)
}

/// The position that it holds of the only leaf.
fn position(status: &Status) -> Option<u64> {
    status.leaves.first().map(|leaf| leaf.position)
}

/// Publishes old transactions with children of its own.
struct Hostile {
    purse: Purse,
    fees: u64,
}

impl Hostile {
    fn publish(&mut self, world: &World, tx: &Transaction) -> Result<()> {
        let anchor = u32::try_from(tx.output.len() - 1)?;
        let child = self.purse.child(tx, anchor)?;
        world.bitcoind.submit_package(&[tx, &child])?;
        self.fees += CHILD_FEE;
        Ok(())
    }
}

fn height_of(world: &World, txid: Txid) -> Result<Option<u32>> {
    Ok(world.bitcoind.confirmed(txid)?.map(|there| there.height))
}

/// The client that slept comes back alone and leaves, over whichever state has confirmed; then the LSP comes back. All is
/// where it belongs: what is missing in sum went to the miners, beside what those paid them who are no party.
fn check_whole(world: &mut World, id: &str, before: &Snapshot, others_sat: u64) -> Result<()> {
    world.client_mut(MOVER)?.start()?;
    world.sync()?;
    world.client(MOVER)?.exit(id)?;
    let leaving = Leaving::client(world, MOVER, id)?;
    pace::drive(world, &[leaving], LIMIT, &mut |_| Ok(()))?;
    world.lsp.start()?;
    let (world, client) = (&*world, world.client(MOVER)?);
    let after = pace::rest_until(world, |after| {
        let balance = client.balance()?;
        ensure!(balance.onchain.confirmed_sat == balance.total_sat, "{balance:?}");
        let fees = world.bitcoind.fees(before.height + 1, after.height)? - others_sat;
        ensure!(before.total() == after.total() + fees * 1000, "{fees} sat of fees: {before:?} {after:?}");
        Ok(())
    })?;
    assert_eq!(after.of("client-1")?, before.of("client-1")?);
    let lost = before.of("client-0")? - after.of("client-0")?;
    assert!(lost < 5_000_000, "the client that slept paid {lost} msat");
    println!("fees of the client that slept: {lost} msat; of others {others_sat} sat");
    Ok(())
}

/// A factory, its client's first path, three rotations with payments, the second one a sale of so much, sat; everybody at
/// rest.
fn rotated(
    world: &World,
    sold_sat: u64,
    mut each: impl FnMut(u64) -> Result<()>,
) -> Result<(Factory, ExitFile, Hostile, Snapshot)> {
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 2 * sold_sat, Some(params()));
    let factory = world.create_factory(&request)?;
    let id = &factory.instance_id;
    let old = ExitFile::export(world.client(MOVER)?, &world.path().join("first.exit"))?;
    let hostile = Hostile { purse: Purse::fill(&world.bitcoind, 4)?, fees: 0 };
    world.sync()?;
    let start = Snapshot::take(world)?;
    let mut paid = vec![pay(world, there(12_345_678))?];
    for number in 1..=3 {
        if sold_sat > 0 && number == 2 {
            liquidity::sell(world, id, MOVER, i64::try_from(sold_sat)?)?;
            rotate::wait_position(world, id, MOVER, number)?;
            liquidity::wait_capacity(world, id, MOVER, CAPACITY + sold_sat)?;
        } else {
            rotate::once(world, id, MOVER)?;
        }
        paid.extend([pay(world, there(20_000_001))?, pay(world, back(3_000_003))?]);
        each(number)?;
    }
    wait_for(world, &start.after(&paid)?)?;
    Ok((factory, old, hostile, wait_at_rest(world)?))
}

/// The client and the LSP sleep while somebody publishes the client's first path, from before its capacity has changed; the
/// watcher has been handed each newer one, and was killed in between.
#[test]
fn a_superseded_state_loses_while_its_client_sleeps() -> Result<()> {
    let mut world = World::start("watched", 2)?;
    let folder = world.path().join("shared");
    let mut watcher = watcher_of(&world, &folder)?;
    hand_over(world.client_mut(MOVER)?, &folder, true)?;
    wait_watcher(world.client(MOVER)?, "the watcher to be there", |w| w["present"] == true)?;
    let bitcoind = &world.bitcoind;
    let (factory, old, mut hostile, before) = rotated(&world, SOLD, |number| {
        // No waiting: the rotation is not over before the watcher has it.
        assert_eq!(position(&watcher.wait_synced(bitcoind)?), Some(number));
        if number == 2 {
            watcher.kill()?;
            watcher.restart(bitcoind)?;
            assert_eq!(position(&watcher.status()?), Some(2), "it came back with an older path");
            wait_watcher(world.client(MOVER)?, "the watcher to be back", |w| w["present"] == true)?;
        }
        Ok(())
    })?;
    let id = factory.instance_id.clone();
    let newest: Vec<Txid> = world.client(MOVER)?.factory(&id)?.tree.iter().map(|step| step.txid).collect();
    let path: Vec<Txid> = old.path.iter().map(Transaction::compute_txid).collect();
    assert_eq!((newest.len(), &newest[..2]), (3, &path[..2]), "root and kickoff stay");
    assert_ne!(newest[2], path[2]);
    world.client_mut(MOVER)?.kill()?;
    world.lsp.kill()?;
    for step in &old.path[..2] {
        hostile.publish(&world, step)?;
        world.bitcoind.mine(1)?;
        watcher.wait_synced(&world.bitcoind)?;
    }
    let kickoff = world.bitcoind.height()?;
    // Power fails in the window.
    watcher.kill()?;
    world.bitcoind.mine_to(kickoff + delay(3) - 2)?;
    watcher.restart(&world.bitcoind)?;
    assert!(world.bitcoind.mempool()?.is_empty());
    world.bitcoind.mine(1)?;
    watcher.wait_synced(&world.bitcoind)?;
    assert!(world.bitcoind.mempool()?.contains(&newest[2]), "the newest state is not out when it is due");
    world.bitcoind.mine(1)?;
    assert_eq!(height_of(&world, newest[2])?, Some(kickoff + delay(3)));
    // The block falls, and it is there again.
    world.bitcoind.reorganize(1)?;
    watcher.wait_synced(&world.bitcoind)?;
    world.bitcoind.wait_seen(newest[2], PATIENCE)?;
    watcher.drive(&world.bitcoind, "settled", 4)?;
    world.bitcoind.mine_to(kickoff + delay(0))?;
    assert!(hostile.publish(&world, &old.path[2]).is_err(), "the first state is valid now, and too late");
    let paid = crate::COIN - watcher.wait_synced(&world.bitcoind)?.fee_wallet.confirmed_sat;
    assert!(paid > 0, "who paid for the newest state?");

    check_whole(&mut world, &factory.instance_id, &before, hostile.fees + paid)?;
    // It forgets a leaf that has ended long ago, and clears the folder.
    world.bitcoind.mine_to(kickoff + 300)?;
    wait::until_value(
        "the leaf to be forgotten",
        PATIENCE,
        || {
            Ok((
                watcher.wait_synced(&world.bitcoind)?.leaves.len(),
                std::fs::read_dir(folder.join("paths"))?.count(),
            ))
        },
        |left| *left == (0, 0),
    )?;
    watcher.stop()?;
    world.finish();
    Ok(())
}

/// A sale is cut short: the LSP has stored the new state and handed it over, the client dies before it has it, and then the
/// LSP dies, too. Somebody publishes the client's first path, and the newest state is there in time.
#[test]
#[ignore = "long: make adversaries"]
fn a_sale_that_was_cut_short_is_watched() -> Result<()> {
    let mut world = World::start("watched-sale", 2)?;
    let folder = world.path().join("shared");
    let mut watcher = watcher_of(&world, &folder)?;
    hand_over(&mut world.lsp, &folder, true)?;
    wait_watcher(&world.lsp, "the watcher to be there", |w| w["present"] == true)?;
    let (factory, old, mut hostile, before) = rotated(&world, SOLD, |_| Ok(()))?;
    let (id, node) = (&factory.instance_id, world.client(MOVER)?.node_id().to_owned());
    world.client(MOVER)?.faults().set("kill@client.advance.store")?;
    liquidity::sell(&world, id, MOVER, i64::try_from(SOLD)?)?;
    world.client_mut(MOVER)?.wait_killed()?;
    world.client(MOVER)?.faults().clear()?;
    assert_eq!(rotate::leaf(&world, id, &node)?.position, 4);
    let lsp = world.lsp.factory(id)?;
    let place = lsp.clients.iter().position(|c| c.node_id == node).context("no member")?;
    let mut own = lsp.tree.iter().filter(|tx| (tx.clients.0..tx.clients.1).contains(&place));
    let newest = own.next_back().context("a path")?.txid;
    world.lsp.kill()?;
    for step in &old.path[..2] {
        hostile.publish(&world, step)?;
        world.bitcoind.mine(1)?;
        watcher.wait_synced(&world.bitcoind)?;
    }
    let kickoff = world.bitcoind.height()?;
    world.bitcoind.mine_to(kickoff + delay(4) - 1)?;
    watcher.wait_synced(&world.bitcoind)?;
    assert!(world.bitcoind.mempool()?.contains(&newest), "the newest state is not out when it is due");
    world.bitcoind.mine(1)?;
    assert_eq!(height_of(&world, newest)?, Some(kickoff + delay(4)));
    let status = watcher.wait_synced(&world.bitcoind)?;
    assert!(status.leaves.iter().any(|leaf| leaf.position == 4 && leaf.state == "settled"), "{status:?}");
    let paid = crate::COIN - watcher.wait_synced(&world.bitcoind)?.fee_wallet.confirmed_sat;
    check_whole(&mut world, id, &before, hostile.fees + paid)?;
    watcher.stop()?;
    world.finish();
    Ok(())
}

/// Without a watcher the first state confirms, and the channel is settled on its output, with the amounts of now.
#[test]
fn without_a_watcher_the_channel_is_settled_on_the_superseded_output() -> Result<()> {
    let mut world = World::start("unwatched", 2)?;
    let (factory, old, mut hostile, before) = rotated(&world, 0, |_| Ok(()))?;
    world.client_mut(MOVER)?.kill()?;
    world.lsp.kill()?;
    for step in &old.path[..2] {
        hostile.publish(&world, step)?;
        world.bitcoind.mine(1)?;
    }
    world.bitcoind.mine_to(world.bitcoind.height()? + delay(0) - 1)?;
    hostile.publish(&world, &old.path[2])?;
    world.bitcoind.mine(1)?;
    let lost = old.path[2].compute_txid();
    assert!(height_of(&world, lost)?.is_some());

    check_whole(&mut world, &factory.instance_id, &before, hostile.fees)?;
    let channel = bitcoin::OutPoint { txid: lost, vout: 0 };
    assert!(world.bitcoind.unspent(channel)?.is_none(), "the channel's output on the superseded state");
    world.finish();
    Ok(())
}

/// What an answer that refuses says.
fn refused<T: std::fmt::Debug>(answer: Result<T>) -> String {
    let error = answer.unwrap_err();
    let told =
        error.chain().find_map(|cause| cause.downcast_ref::<ApiError>()).expect("an answer of the API");
    told.message.clone()
}

/// A required watcher that is away stops a rotation before it begins, by name; one that dies in the middle holds back what
/// retires the older path until it is back. One that is not required is only told of.
#[test]
fn a_watcher_that_is_away_is_named() -> Result<()> {
    let mut world = World::start("watcher-away", 2)?;
    let folder = world.path().join("shared");
    let name = folder.display().to_string();
    let mut watcher = watcher_of(&world, &folder)?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(params())))?;
    let (id, node) = (factory.instance_id.clone(), world.client(MOVER)?.node_id().to_owned());
    let mine = |w: &Value| w["present"] == true && w["held"] == 1;
    hand_over(world.client_mut(MOVER)?, &folder, true)?;
    wait_watcher(world.client(MOVER)?, "the first path to be held", mine)?;
    world.wait_usable(&factory)?;

    watcher.kill()?;
    wait_watcher(world.client(MOVER)?, "the watcher to be missed", |w| w["present"] == false)?;
    rotate::ask(&world, &id, &node)?;
    let failure = wait::until("the client to refuse", PATIENCE, || {
        let leaf = rotate::leaf(&world, &id, &node)?;
        Ok(match (leaf.rotating, leaf.failure) {
            (None, Some(failure)) => Seen::Done(failure),
            state => Seen::NotYet(format!("{state:?}")),
        })
    })?;
    assert!(failure.contains(&node) && failure.contains(&name), "{failure}");
    assert_eq!(world.client(MOVER)?.factory(&id)?.leaves[0].position, 0);

    // It is there when the rotation begins, and dies before it is asked.
    watcher.restart(&world.bitcoind)?;
    wait_watcher(world.client(MOVER)?, "the watcher to be back", mine)?;
    watcher.kill()?;
    rotate::ask(&world, &id, &node)?;
    let told = wait::until_value(
        "the user to be told",
        PATIENCE,
        || world.client(MOVER)?.events("watcher_silent"),
        |events| !events.is_empty(),
    )?;
    assert!(told[0].data["reason"].as_str().unwrap().contains(&name), "{told:?}");
    let leaf = rotate::leaf(&world, &id, &node)?;
    assert_eq!(
        leaf.rotating.as_deref(),
        Some("persisting"),
        "the client's last word left without the watcher"
    );
    // The channel goes on meanwhile, and a restart of the client does not let the word go.
    pay(&world, there(1_000_001))?;
    world.client_mut(MOVER)?.kill()?;
    world.client_mut(MOVER)?.start()?;
    world.wait_usable(&factory)?;
    pay(&world, back(1_000_001))?;
    // The LSP does not wait for who was away; it has not heard the word.
    wait::until_value(
        "the LSP to miss the client's word",
        PATIENCE,
        || world.lsp.events("factory_rotated"),
        |events| events.iter().any(|e| e.data["unconfirmed"].to_string().contains(&node)),
    )?;
    watcher.restart(&world.bitcoind)?;
    rotate::wait_position(&world, &id, MOVER, 1)?;
    assert_eq!(position(&watcher.wait_synced(&world.bitcoind)?), Some(1));

    // An older path is refused, and the newer one stays.
    let path = std::fs::read_dir(folder.join("paths"))?.next().context("no path")??.path();
    let ack = folder.join("acks").join(path.file_name().context("a name")?);
    let older = std::fs::read(&path)?;
    wait_watcher(world.client(MOVER)?, "the watcher to be back again", mine)?;
    rotate::once(&world, &id, MOVER)?;
    std::fs::write(&path, older)?;
    wait::until("the older path to be refused", PATIENCE, || {
        let said: Value = serde_json::from_slice(&std::fs::read(&ack)?)?;
        Ok(match said["refused"].as_str() {
            Some(reason) if reason.contains("position 1 is older than position 2") => Seen::Done(()),
            _ => Seen::NotYet(said.to_string()),
        })
    })?;
    assert_eq!(position(&watcher.wait_synced(&world.bitcoind)?), Some(2));

    // Not required: the rotation goes on without it.
    hand_over(world.client_mut(MOVER)?, &folder, false)?;
    world.wait_usable(&factory)?;
    wait_watcher(world.client(MOVER)?, "the watcher to be there", |w| w["present"] == true)?;
    watcher.kill()?;
    let told = world.client(MOVER)?.events("watcher_silent")?.len();
    rotate::once(&world, &id, MOVER)?;
    assert_eq!(world.client(MOVER)?.events("watcher_silent")?.len(), told + 1);
    // When it is back it takes the newest path from the folder.
    watcher.restart(&world.bitcoind)?;
    wait_watcher(world.client(MOVER)?, "the newest path to be held", mine)?;
    assert_eq!(position(&watcher.wait_synced(&world.bitcoind)?), Some(3));

    // The LSP's own watcher is away: it says so itself.
    let lsps = world.path().join("lsps");
    hand_over(&mut world.lsp, &lsps, true)?;
    world.wait_usable(&factory)?;
    let said = refused(rotate::ask(&world, &id, &node));
    assert!(said.contains(&lsps.display().to_string()) && said.contains("away"), "{said}");
    world.finish();
    Ok(())
}

/// The LSP hands its paths to another node, which watches them beside its own work; then the LSP is dead, and a client
/// publishes its first state.
#[test]
fn a_node_watches_for_another() -> Result<()> {
    let mut world = World::start("watched-lsp", 2)?;
    let folder = world.path().join("shared");
    world.client_mut(OTHER)?.restart_with(&[("watch_folders", json!(folder).to_string())])?;
    hand_over(&mut world.lsp, &folder, true)?;
    wait_watcher(&world.lsp, "the watcher to be there", |w| w["present"] == true)?;
    let data_dir = world.client(OTHER)?.data_dir().join("watcher");
    let status =
        || -> Result<Status> { Ok(serde_json::from_slice(&std::fs::read(data_dir.join("status.json"))?)?) };
    let coin = integration::Bitcoind::parse_address(&status()?.fee_wallet.address)?;
    world.bitcoind.fund(&[(coin, crate::COIN)])?;
    world.sync()?;

    let (factory, old, mut hostile, _) = rotated(&world, 0, |_| Ok(()))?;
    let leaves = status()?.leaves;
    let lsp = world.lsp.node_id().to_owned();
    let mut held: Vec<u64> = leaves.iter().map(|leaf| leaf.position).collect();
    held.sort_unstable();
    assert_eq!(held, [0, 3], "both leaves of the LSP: {leaves:?}");
    assert!(leaves.iter().all(|leaf| leaf.node_id == lsp));
    let newest = world.client(MOVER)?.factory(&factory.instance_id)?.tree;
    let newest = newest.last().context("a path")?.txid;
    world.lsp.kill()?;
    // Its software would publish the newest state.
    world.client_mut(MOVER)?.kill()?;
    for step in &old.path[..2] {
        hostile.publish(&world, step)?;
        world.bitcoind.mine(1)?;
    }
    world.bitcoind.mine_to(world.bitcoind.height()? + delay(3) - 1)?;
    world.bitcoind.wait_seen(newest, PATIENCE)?;
    world.bitcoind.mine(1)?;
    assert!(height_of(&world, newest)?.is_some());
    let tip = world.bitcoind.height()?;
    let leaves = wait::until_value("the watcher to see it", PATIENCE, &status, |s| s.height == tip)?.leaves;
    assert!(leaves.iter().any(|leaf| leaf.position == 3 && leaf.state == "settled" && leaf.spent_sat > 0));
    world.finish();
    Ok(())
}
