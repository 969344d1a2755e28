//! A payment for a client without room: its factory channel grows if everybody is there, else a channel is opened beside
//! the factory, and the payment goes through.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use bitcoin::hashes::{sha256, Hash};
use integration::jit::{another_peer_channel, less_fees, of_kind, open, status, wait_count, wait_usable};
use integration::ledger::{check_conserved, wait_at_rest, wait_for};
use integration::payments::{pay, Order, Party};
use integration::types::{Factory, Payment};
use integration::world::PATIENCE;
use integration::{wait, World};
use serde_json::json;

const CAPACITY: u64 = 100_000;

fn to_client(index: usize, amount_msat: u64) -> Order {
    Order { from: Party::Peer, to: Party::Client(index), amount_msat }
}

/// Two clients on one leaf with a stock, and an ordinary node with two channels of 300k and 400k sat to spend.
fn start(name: &str) -> Result<(World, Factory)> {
    // The clients' own invoices are what is paid here.
    let mut world = World::start_with_lsp(name, 2, &["--relay", "false"])?;
    world.add_peer(600_000)?;
    another_peer_channel(&world, 800_000, 2)?;
    let request = world.factory_request(CAPACITY, 0, 300_000, Some(json!({ "clients_per_leaf": 2 })));
    let factory = world.create_factory(&request)?;
    Ok((world, factory))
}

#[test]
fn a_client_without_room_is_served_whoever_is_there() -> Result<()> {
    let (mut world, _) = start("jit-payments")?;
    let before = wait_at_rest(&world)?;

    // There is room.
    let mut paid = vec![pay(&world, to_client(0, 70_000_000))?];
    // There is none, and the other client of the leaf is there: the channel grows, nothing comes to the chain.
    paid.push(pay(&world, to_client(0, 80_000_001))?);
    assert_eq!(of_kind(&world, 0, "jit")?, vec![]);
    assert!(world.bitcoind.mempool()?.is_empty(), "a payment cost a transaction, and everybody was there");
    let grown = of_kind(&world, 0, "factory")?;
    assert!(grown[0].capacity_sat > 150_000, "{grown:?}");
    let held = wait_for(&world, &before.after(&paid)?)?;

    // The other client is away: a channel beside the factory. More than the ordinary node can send over one channel, so
    // it comes in parts.
    world.client_mut(1)?.stop()?;
    let away = held.of("client-1")?;
    let last = pay(&world, to_client(0, 450_000_000))?;
    let [(ours, _)] = &wait_usable(&world, 0, "jit")?[..] else { panic!("not one channel") };
    assert!(ours.trusted, "{ours:?}");
    let now = status(&world)?;
    assert_eq!((now.clients, now.clients_with_jit, now.channels), (2, 1, 1), "{now:?}");
    assert_eq!((now.causes.values().sum::<u64>(), now.held_htlcs), (1, 0), "{now:?}");

    // What came is the client's to spend, and fits again.
    let back = pay(&world, Order { from: Party::Client(0), to: Party::Peer, amount_msat: 30_000_000 })?;
    let again = pay(&world, to_client(0, 20_000_000))?;
    world.mine(1)?;
    let mut due = held.after(&[last, back, again])?;
    due.parties.remove("client-1");
    let fees = less_fees(&world, before.height, &mut due)?;
    assert_eq!(fees, status(&world)?.fees_sat, "what the channel cost");
    let mut after = wait_for(&world, &due)?;
    after.parties.insert("client-1".into(), away);
    check_conserved(&world, &before, &after)?;
    let [(ours, _)] = &wait_usable(&world, 0, "jit")?[..] else { panic!("not one channel") };
    assert!(!ours.trusted && ours.local_msat > 300_000_000, "{ours:?}");
    assert_eq!(status(&world)?.untaken, 0);
    world.finish();
    Ok(())
}

#[test]
#[ignore = "long: make jit"]
fn what_cannot_be_served_is_given_back_at_once() -> Result<()> {
    let (mut world, _) = start("jit-refused")?;
    world.client_mut(1)?.restart_with(&[("max_jit_sat", 0)])?;
    world.lsp.restart_with(&[("jit_rotate_first", "false"), ("jit_max_channels", "1")])?;
    world.wait_usable(&world.lsp.factories()?[0])?;
    wait_peer(&world)?;
    let before = wait_at_rest(&world)?;

    // The client takes no such channel.
    let invoice = world.client(1)?.invoice(200_000_000, "more than it has room for")?;
    assert_eq!(world.peer()?.pay(&invoice.invoice)?.status, "failed");
    assert_eq!(world.client(1)?.channels()?.len(), 1);
    // The client has as many as the operator allows.
    open(&world, world.client(0)?.node_id(), 20_000)?;
    wait_count(&world, 0, "jit", 1)?;
    let invoice = world.client(0)?.invoice(200_000_000, "more than it has room for")?;
    assert_eq!(world.peer()?.pay(&invoice.invoice)?.status, "failed");
    assert_eq!(status(&world)?.held_htlcs, 0);

    // Everything that came is back, and the channels that it came by live.
    world.mine(1)?;
    let mut due = before.clone();
    less_fees(&world, before.height, &mut due)?;
    let held = wait_for(&world, &due)?;
    let small = [pay(&world, to_client(0, 20_000_000))?, pay(&world, to_client(1, 20_000_000))?];
    wait_for(&world, &held.after(&small)?)?;
    world.finish();
    Ok(())
}

/// A client that has a channel opened for it and takes nothing gets no other one.
#[test]
#[ignore = "long: make jit"]
fn who_takes_nothing_gets_no_more() -> Result<()> {
    let mut world = World::start_with_lsp("jit-abuse", 2, &["--relay", "false"])?;
    world.add_peer(4_000_000)?;
    world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    let before = wait_at_rest(&world)?;
    let outcome = |hash: &str| {
        let ended =
            |list: &Vec<Payment>| list.iter().any(|p| p.payment_hash == hash && p.status != "pending");
        let list = wait::until_value("the payment to end", PATIENCE, || world.peer()?.payments(), ended)?;
        anyhow::Ok(list.into_iter().find(|p| p.payment_hash == hash).expect("it has ended"))
    };

    for (n, amount_msat) in [(1u8, 150_000_000), (2, 250_000_000), (3, 350_000_000)] {
        let hash = sha256::Hash::hash(&[n; 32]).to_string();
        let invoice = world.client(0)?.hold_invoice(amount_msat, &hash)?;
        world.peer()?.send(&invoice.invoice)?;
        if n == 1 {
            let held =
                |list: &Vec<Payment>| list.iter().any(|p| p.payment_hash == hash && p.status == "held");
            wait::until_value("the client to hold it", PATIENCE, || world.client(0)?.payments(), held)?;
            world.client(0)?.fail(&hash)?;
        }
        assert_eq!(outcome(&hash)?.status, "failed", "{n}");
    }
    let now = status(&world)?;
    assert_eq!((now.channels, now.untaken, now.held_htlcs), (1, 1, 0), "{now:?}");

    // Somebody else is served meanwhile, and the payer has lost nothing but that.
    let paid = pay(&world, to_client(1, 150_000_000))?;
    world.mine_mempool()?;
    let mut due = before.after(&[paid])?;
    less_fees(&world, before.height, &mut due)?;
    wait_for(&world, &due)?;
    world.finish();
    Ok(())
}

/// Waits until both channels of the ordinary node are usable again.
fn wait_peer(world: &World) -> Result<()> {
    let (peer, lsp) = (world.peer()?, &world.lsp);
    wait::until_value(
        "both channels of the ordinary node to be usable",
        PATIENCE,
        || {
            if peer.channels()?.iter().any(|c| !c.usable) {
                peer.connect(lsp.node_id(), lsp.listen())?;
            }
            Ok((peer.channels()?, lsp.channels()?))
        },
        |(theirs, ours)| {
            let ours = ours.iter().filter(|c| c.peer == peer.node_id() && c.usable);
            ours.count() == 2 && theirs.iter().all(|c| c.usable)
        },
    )?;
    Ok(())
}
