//! Many payments are held at a time: for one client, up to its limit, and for fifty, up to the limit of all. Each comes to
//! an end, whoever can be served is served meanwhile, and memory is bounded.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure, Result};
use integration::jit::{another_peer_channel, less_fees, of_kind, status, wait_held};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Settled};
use integration::payments::{pay, Order, Party};
use integration::types::{Invoice, Payment};
use integration::world::PATIENCE;
use integration::{wait, Bitcoind, World};

const CAPACITY: u64 = 100_000;
/// HTLCs that the LSP holds for one client, and in all.
const OF_CLIENT: usize = 50;
const IN_ALL: usize = 1_000;
/// How long the end of many payments may take.
const END: Duration = Duration::from_secs(240);

fn to_client(index: usize, amount_msat: u64) -> Order {
    Order { from: Party::Peer, to: Party::Client(index), amount_msat }
}

/// The ordinary node's payments that have ended, and how many have not.
fn ended(world: &World) -> Result<(HashMap<String, Payment>, usize)> {
    let list = world.peer()?.payments()?;
    let out = list.into_iter().filter(|p| p.direction.as_deref() == Some("out"));
    let (ended, pending): (Vec<_>, Vec<_>) = out.partition(|p| p.status != "pending");
    Ok((ended.into_iter().map(|p| (p.payment_hash.clone(), p)).collect(), pending.len()))
}

/// Waits until all these payments have ended. Returns those that arrived.
fn wait_ended(world: &World, sent: &[(usize, Invoice)]) -> Result<Vec<Settled>> {
    let hashes: Vec<&str> = sent.iter().map(|(_, invoice)| invoice.payment_hash.as_str()).collect();
    let all = wait::until_value(
        "all payments to end",
        END,
        || Ok(ended(world)?.0),
        |all| hashes.iter().all(|hash| all.contains_key(*hash)),
    )?;
    let arrived = sent.iter().filter(|(_, one)| all[&one.payment_hash].status == "succeeded");
    arrived.map(|(to, one)| Settled::new("peer", &format!("client-{to}"), &all[&one.payment_hash])).collect()
}

/// Starts clients, some at a time.
fn start_clients(world: &mut World, indices: std::ops::Range<usize>) -> Result<()> {
    let clients = &mut world.clients[indices];
    let each = clients.len().div_ceil(8).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .chunks_mut(each)
            .map(|some| scope.spawn(move || some.iter_mut().try_for_each(|client| client.start())))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// A sender floods a client that is away. It is held what its limit allows and the rest is given back at once; another
/// client is served meanwhile, with room and without; and when the first one is back, it gets what was held.
#[test]
#[ignore = "long: make jit"]
fn a_flood_for_one_client_is_bounded_and_others_are_served() -> Result<()> {
    let mut world = World::start_with_lsp("jit-flood", 2, &["--relay", "false", "--jit-hold-secs", "600"])?;
    world.add_peer(4_000_000)?;
    another_peer_channel(&world, 2_000_000, 2)?;
    let factory = world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    let before = wait_at_rest(&world)?;
    let more = OF_CLIENT + 20;
    let invoices = (0..more).map(|n| world.client(0)?.invoice(1_500_000 + n as u64, "flood"));
    let sent = invoices.map(|one| Ok((0, one?))).collect::<Result<Vec<_>>>()?;
    let node = world.client(0)?.node_id().to_owned();
    world.client_mut(0)?.kill()?;
    world.wait_gone(&node)?;

    for (_, invoice) in &sent {
        world.peer()?.send(&invoice.invoice)?;
    }
    // A payer tries again for some seconds, in vain.
    let (refused, _) = wait::until_value(
        "what is too much to be given back",
        PATIENCE,
        || ended(&world),
        |(ended, _)| ended.len() == more - OF_CLIENT,
    )?;
    assert!(refused.values().all(|p| p.status == "failed"), "{refused:?}");
    wait_held(&world, OF_CLIENT)?;
    let mut paid = vec![pay(&world, to_client(1, 20_000_000))?, pay(&world, to_client(1, 150_000_000))?];
    assert_eq!(of_kind(&world, 1, "jit")?.len(), 1);
    assert_eq!(status(&world)?.held_htlcs, OF_CLIENT);

    world.client_mut(0)?.start()?;
    world.wait_usable(&factory)?;
    let arrived = wait_ended(&world, &sent)?;
    assert_eq!(arrived.len(), OF_CLIENT);
    wait_held(&world, 0)?;
    paid.extend(arrived);
    world.mine_mempool()?;
    let mut due = before.after(&paid)?;
    less_fees(&world, before.height, &mut due)?;
    let after = wait_for(&world, &due)?;
    check_conserved(&world, &before, &after)?;
    world.finish();
    Ok(())
}

/// Clients that sleep, payments for each, and the channels by which they come: fifty HTLCs each.
const SLEEPERS: usize = 50;
const EACH: usize = IN_ALL / SLEEPERS;
const CHANNELS: usize = 24;
const CHANNEL: u64 = 400_000;
/// What the LSP keeps in each: who opened it pays for the place of every HTLC on its commitments.
const KEPT: u64 = 60_000;
/// Unconfirmed ones that LDK lets a peer open at a time.
const UNFUNDED: usize = 4;
/// Of the clients so many come back and have room, the next ones come back and have too little, the others stay away.
const ROOM: usize = 20;
const TOO_LITTLE: usize = 10;
/// The client that is there all the time.
const AWAKE: usize = SLEEPERS;
/// Blocks that come at once.
const BURST: u32 = 25;
/// By how much holding all of it may raise the LSP's peak memory, MiB.
const MOST_MIB: u64 = 64;

/// A world in which an ordinary node can pay a thousand times at once.
fn crowd() -> Result<World> {
    let limits = ["--relay", "false", "--jit-hold-secs", "600", "--jit-rotate-first", "false"];
    let mut world = World::start_with_lsp("jit-crowd", SLEEPERS + 1, &limits)?;
    world.add_peer(2_000_000)?;
    // Anchors of the channels need reserves; each channel is paid with a coin of its own.
    let peer = Bitcoind::parse_address(&world.peer()?.address()?)?;
    let mut coins = vec![(peer, 2_000_000)];
    for _ in 0..CHANNELS + 2 * TOO_LITTLE {
        coins.push((Bitcoind::parse_address(&world.lsp.address()?)?, CHANNEL + 100_000));
    }
    world.bitcoind.fund(&coins)?;
    world.sync()?;
    let (id, listen) = (world.peer()?.node_id(), world.peer()?.listen());
    for round in 1..=CHANNELS / UNFUNDED {
        for _ in 0..UNFUNDED {
            world.lsp.open_channel(id, listen, CHANNEL, CHANNEL - KEPT)?;
        }
        wait::until_value("fundings", PATIENCE, || world.bitcoind.mempool(), |list| list.len() == UNFUNDED)?;
        world.mine(6)?;
        wait::until_value(
            "the channels of the ordinary node to be usable",
            PATIENCE,
            || world.peer()?.channels(),
            |list| list.len() == 1 + round * UNFUNDED && list.iter().all(|c| c.usable),
        )?;
    }
    world.create_factory(&world.factory_request(CAPACITY, 0, 0, None))?;
    Ok(world)
}

/// The channels with the ordinary node, and whether each is usable.
fn incoming(world: &World) -> Result<BTreeMap<String, bool>> {
    let peer = world.peer()?.node_id();
    let list = world.lsp.channels()?.into_iter().filter(|c| c.peer == peer);
    Ok(list.map(|c| (c.channel_id, c.usable)).collect())
}

#[test]
#[ignore = "long: make jit"]
fn a_thousand_payments_for_fifty_clients() -> Result<()> {
    let mut world = crowd()?;
    let before = wait_at_rest(&world)?;
    let channels = incoming(&world)?;
    let mut sent = Vec::new();
    for n in 0..SLEEPERS * EACH {
        let to = n % SLEEPERS;
        let sat = if (ROOM..ROOM + TOO_LITTLE).contains(&to) { 8_000 } else { 4_000 };
        sent.push((to, world.client(to)?.invoice(sat * 1000 + n as u64, "one of a thousand")?));
    }
    let above = world.client(0)?.invoice(4_000_000, "one too many")?;
    for client in &mut world.clients[..SLEEPERS] {
        client.kill()?;
    }
    for index in 0..SLEEPERS {
        world.wait_gone(world.client(index)?.node_id())?;
    }

    let (idle, clock) = (world.lsp.peak_memory_kib()?, Instant::now());
    for (_, invoice) in &sent {
        world.peer()?.send(&invoice.invoice)?;
    }
    wait::until_value("the LSP to hold a thousand", END, || status(&world), |now| now.held_htlcs == IN_ALL)?;
    let holding = clock.elapsed();
    // One more is given back at once, and who has room is served meanwhile.
    assert_eq!(world.peer()?.pay(&above.invoice)?.status, "failed");
    let mut paid = vec![pay(&world, to_client(AWAKE, 20_000_000))?];
    assert_eq!(status(&world)?.held_htlcs, IN_ALL);
    let full = world.lsp.peak_memory_kib()?;

    let clock = Instant::now();
    start_clients(&mut world, 0..ROOM + TOO_LITTLE)?;
    let back = clock.elapsed();
    let (served, away): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(to, _)| *to < ROOM + TOO_LITTLE);
    let arrived = wait_ended(&world, &served)?;
    println!(
        "clients were back after {back:?}, what was held for them had ended after {:?}",
        clock.elapsed()
    );
    ensure!(arrived.len() == served.len(), "{} of {} arrived", arrived.len(), served.len());
    paid.extend(arrived);
    let beside = (ROOM..ROOM + TOO_LITTLE).map(|index| Ok(of_kind(&world, index, "jit")?.len()));
    assert_eq!(beside.collect::<Result<Vec<_>>>()?, [1; TOO_LITTLE]);
    wait_held(&world, away.len())?;

    // The others stay away until the deadline.
    let (clock, start) = (Instant::now(), world.bitcoind.height()?);
    while status(&world)?.held_htlcs > 0 {
        ensure!(world.bitcoind.height()? < start + 2_016, "{:?}", status(&world)?);
        world.mine(BURST)?;
    }
    let blocks = world.bitcoind.height()? - start;
    println!("the rest was given back within {blocks} blocks, {:?}", clock.elapsed());
    assert_eq!(wait_ended(&world, &away)?, []);
    let peak = world.lsp.peak_memory_kib()?;
    println!(
        "{IN_ALL} held after {holding:?}; the LSP's peak memory: {} MiB before, {} MiB with all held, {} MiB in the end",
        idle / 1024,
        full / 1024,
        peak / 1024
    );
    assert!(peak < idle + MOST_MIB * 1024, "{peak} KiB, {idle} KiB before");

    // Every channel lives, and everybody holds what he is due.
    start_clients(&mut world, ROOM + TOO_LITTLE..SLEEPERS)?;
    world.sync()?;
    world.wait_usable(&world.lsp.factories()?[0])?;
    assert_eq!(incoming(&world)?, channels);
    paid.push(pay(&world, to_client(SLEEPERS - 1, 20_000_000))?);
    world.mine_mempool()?;
    let mut due = before.after(&paid)?;
    less_fees(&world, before.height, &mut due)?;
    let after = wait_for(&world, &due)?;
    check_conserved(&world, &before, &after)?;
    world.finish();
    Ok(())
}
