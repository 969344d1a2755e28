//! Connections from nobody: a thousand idle ones, garbage at every layer, peers that do not read, strangers that shook
//! hands. The LSP's memory stays bounded, its clients go on paying, and a new client gets in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use bitcoin::secp256k1::SecretKey;
use integration::ledger::{wait_for, Snapshot};
use integration::noise::{init, Noise};
use integration::payments::{pay, Order, Party};
use integration::wait::{self, Seen};
use integration::world::PATIENCE;
use integration::{Client, World};

const CAPACITY: u64 = 400_000;
/// What all of it together may cost the LSP, KiB. (Debug build.)
const MEMORY: u64 = 64 * 1024;
const NOBODIES: usize = 1000;
/// The smallest `max_connections` with which strangers can be many.
const PLACES: &str = "200";

/// Pays in both directions, and each party holds what it should.
fn serves(world: &World, held: &mut Snapshot) -> Result<()> {
    let mut paid = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (Party::Client(from), Party::Client(to));
        paid.push(pay(world, Order { from, to, amount_msat: 1_234_567 })?);
    }
    *held = wait_for(world, &held.after(&paid)?)?;
    Ok(())
}

/// A client that the LSP has never seen connects and asks for a factory.
fn takes_new_client(world: &mut World, index: usize) -> Result<()> {
    let folder = world.lsp.data_dir().parent().expect("folder").to_owned();
    let client = Client::start(&folder, index, &world.bitcoind, &world.lsp, &[])?;
    let id = client.node_id().to_owned();
    wait::until("the LSP to hear of the new client", PATIENCE, || {
        let known = world.lsp.clients()?.into_iter().any(|c| c.node_id == id && c.connected && c.waiting);
        Ok(if known { Seen::Done(()) } else { Seen::not_yet("not there") })
    })
}

/// How many of these connections the other side has closed.
fn closed(streams: &mut [TcpStream]) -> usize {
    let gone = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).expect("nonblocking");
        !matches!(stream.read(&mut [0; 64]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    };
    streams.iter_mut().map(gone).filter(|gone| *gone).count()
}

fn wait_closed(what: &str, streams: &mut [TcpStream], at_least: usize) -> Result<()> {
    wait::until_value(what, PATIENCE, || Ok(closed(streams)), |n| *n >= at_least)?;
    Ok(())
}

fn key(n: usize) -> SecretKey {
    let mut bytes = [3; 32];
    bytes[24..].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_slice(&bytes).expect("key")
}

/// Wrong from the first byte on, half a handshake, a handshake with nothing behind it.
fn before_init(world: &World) -> Result<Vec<TcpStream>> {
    let (address, node_id) = (world.lsp.listen(), world.lsp.node_id());
    let mut streams = Vec::new();
    let random: Vec<u8> = (0..5000u32).map(|n| (n * 7919 % 251) as u8).collect();
    let mut act = vec![0];
    act.extend_from_slice(&random[..49]);
    for bytes in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], &random, &act, &act[..20], &[1; 50], &[]] {
        let mut stream = TcpStream::connect(address)?;
        let _ = stream.write_all(bytes);
        streams.push(stream);
    }
    // Encrypted from here on.
    let mut n = 10_000;
    let mut shaken = || {
        n += 1;
        Noise::connect(address, node_id, &key(n))
    };
    let mut raw = shaken()?;
    raw.send_raw(&random)?;
    streams.push(raw.stream().try_clone()?);
    let mut announced = shaken()?;
    announced.announce(u16::MAX)?;
    announced.send_raw(&random)?;
    streams.push(announced.stream().try_clone()?);
    let ping = [0, 18, 0, 1, 0, 0];
    let even = [0, 16, 0, 0, 0, 1, 0x40];
    for first in [&ping[..], &[0, 16, 0, 9], &[0, 16], &[], &[9], &even] {
        let mut noise = shaken()?;
        noise.send(first)?;
        streams.push(noise.stream().try_clone()?);
    }
    streams.push(shaken()?.stream().try_clone()?);
    Ok(streams)
}

/// After `init`: what breaks a message, and what breaks the factory protocol.
fn after_init(world: &World) -> Result<Vec<TcpStream>> {
    let garbage = [
        vec![0, 18],                                   // ping without a body
        [&[0, 136, 0, 0][..], &[0xff; 200]].concat(),  // channel_reestablish of nothing
        vec![0, 38, 1, 2, 3],                          // funding_locked, short
        vec![0x80, 0x20],                              // ours, empty
        [&[0x80, 0x20][..], &[0xff; 60_000]].concat(), // ours, large and senseless
        [&[0x80, 0x20][..], &[0, 0, 0, 1, 0]].concat(),
        vec![0x70, 0, 1], // unknown and even: must be understood
        init(true),       // a second time
    ];
    let mut streams = Vec::new();
    for (n, message) in garbage.iter().enumerate() {
        let mut noise = Noise::introduced(world.lsp.listen(), world.lsp.node_id(), &key(20_000 + n), true)?;
        noise.send(message)?;
        streams.push(noise.stream().try_clone()?);
    }
    Ok(streams)
}

/// Asks for large answers until the LSP does not take more questions, and reads none of them.
fn does_not_read(world: &World, n: usize) -> Result<Noise> {
    let mut noise = Noise::introduced(world.lsp.listen(), world.lsp.node_id(), &key(30_000 + n), true)?;
    noise.stream().set_write_timeout(Some(Duration::from_millis(500)))?;
    // A ping of 2 kB that asks for 65531 bytes back.
    let ping = [&[0, 18, 0xff, 0xfb, 0x08, 0x00][..], &[0; 2048]].concat();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) && noise.send(&ping).is_ok() {}
    Ok(noise)
}

#[test]
fn nobody_keeps_the_clients_out() -> Result<()> {
    let mut world = World::start("connections", 2)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    let factory = world.create_factory(&request)?;
    world.lsp.restart_with(&[("max_connections", PLACES)])?;
    world.wait_usable(&factory)?;
    let mut held = Snapshot::take(&world)?;
    serves(&world, &mut held)?;
    let memory = world.lsp.peak_memory_kib()?;

    // Idle ones: an eighth of the places is theirs, the rest is closed at once, and those after ten seconds.
    let mut idle: Vec<TcpStream> = Vec::new();
    for _ in 0..NOBODIES {
        idle.push(TcpStream::connect(world.lsp.listen())?);
    }
    serves(&world, &mut held)?;
    takes_new_client(&mut world, 2)?;
    wait_closed("most idle connections to be closed", &mut idle, NOBODIES - 50)?;

    let mut rude = before_init(&world)?;
    rude.extend(after_init(&world)?);
    let mut slow = Vec::new();
    for n in 0..2 {
        slow.push(does_not_read(&world, n)?);
    }
    serves(&world, &mut held)?;

    // Strangers that shake hands and say that they are clients: more than there are places. Two come in between.
    let mut strangers = Vec::new();
    for n in 0..300 {
        // One that is sent away before it has said all is no failure.
        if let Ok(noise) = Noise::introduced(world.lsp.listen(), world.lsp.node_id(), &key(n), n % 2 == 0) {
            strangers.push(noise.stream().try_clone()?);
        }
        if n == 250 {
            serves(&world, &mut held)?;
            takes_new_client(&mut world, 3)?;
        }
    }
    ensure!(strangers.len() > 250, "only {} strangers got in", strangers.len());
    let beyond = strangers.len() - 110;
    wait_closed("strangers beyond the half to be closed", &mut strangers, beyond)?;
    world.client_mut(1)?.kill()?;
    world.client_mut(1)?.start()?;
    world.wait_usable(&factory)?;
    serves(&world, &mut held)?;

    let count = (idle.len(), rude.len());
    wait_closed("every idle connection to be closed", &mut idle, count.0)?;
    wait_closed("every rude connection to be closed", &mut rude, count.1)?;
    let more = world.lsp.peak_memory_kib()? - memory;
    println!("the LSP's memory grew by {more} KiB at most");
    ensure!(more < MEMORY, "the LSP's memory grew by {more} KiB");
    drop(slow);
    world.finish();
    Ok(())
}

/// The local API: requests that never end, garbage, and more connections than there may be.
#[test]
fn nobody_keeps_the_operator_out() -> Result<()> {
    let world = World::start("api-connections", 0)?;
    let address = std::fs::read_to_string(world.lsp.data_dir().join("api-address"))?;
    let memory = world.lsp.peak_memory_kib()?;
    let beginnings: [&[u8]; 5] = [
        b"",
        b"GET /v1/info HTTP/1.1\r\nhost: x\r\nx-long: ",
        b"POST /v1/pay HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n{",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[b'A'; 20_000],
    ];
    let mut open = Vec::new();
    for n in 0..NOBODIES {
        let mut stream = TcpStream::connect(address.trim())?;
        let _ = stream.write_all(beginnings[n % beginnings.len()]);
        open.push(stream);
        if n % 250 == 0 {
            world.lsp.info()?;
        }
    }
    world.lsp.info()?;
    world.lsp.address()?;
    wait_closed("connections beyond the limit to be closed", &mut open, NOBODIES - 520)?;
    let more = world.lsp.peak_memory_kib()? - memory;
    println!("the LSP's memory grew by {more} KiB at most");
    ensure!(more < MEMORY, "the LSP's memory grew by {more} KiB");
    world.finish();
    Ok(())
}
