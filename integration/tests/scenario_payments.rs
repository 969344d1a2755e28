//! Eight clients in one funding transaction pay each other and an ordinary node, two hundred times at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::ledger::{check_conserved, wait_for, Snapshot};
use integration::payments::{pay_all, Order, Party};
use integration::World;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const CLIENTS: usize = 8;
const CAPACITY: u64 = 1_000_000;
const PAYMENTS: usize = 200;
const AT_ONCE: usize = 12;

/// Random payers and payees, never the same; the ordinary node is one of them.
fn orders(seed: u64) -> Vec<Order> {
    let mut rng = StdRng::seed_from_u64(seed);
    let party = |rng: &mut StdRng| match rng.random_range(0..=CLIENTS) {
        CLIENTS => Party::Peer,
        index => Party::Client(index),
    };
    (0..PAYMENTS)
        .map(|_| loop {
            let (from, to) = (party(&mut rng), party(&mut rng));
            if from != to {
                break Order { from, to, amount_msat: rng.random_range(1_000..=3_000_000) };
            }
        })
        .collect()
}

#[test]
fn two_hundred_payments_at_once() -> Result<()> {
    let mut world = World::start("payments", CLIENTS)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 20_000, None);
    let factory = world.create_factory(&request)?;

    // One confirmed transaction is the whole factory.
    let funding = factory.funding.expect("a funding outpoint");
    let tx = world.bitcoind.confirmed(funding.txid)?.expect("confirmed").tx;
    let output = &tx.output[funding.vout as usize];
    assert_eq!(output.value.to_sat(), factory.funding_sat);
    assert!(output.script_pubkey.is_p2tr(), "{}", output.script_pubkey);
    let stock = 20_000 * CLIENTS as u64;
    assert_eq!(factory.funding_sat, CAPACITY * CLIENTS as u64 + stock);
    assert_eq!(factory.clients.len(), CLIENTS);
    for member in &factory.clients {
        let client = world.by_node_id(&member.node_id)?;
        let channels = client.channels()?;
        let [channel] = channels.as_slice() else { panic!("{channels:?}") };
        assert!(channel.usable && channel.kind == "factory", "{channel:?}");
        let on_chain = channel.funding.map(|f| world.bitcoind.transaction(f.txid)).transpose()?.flatten();
        assert_eq!(on_chain, None, "a leaf is on the chain");
        assert_eq!((channel.capacity_sat, channel.local_msat), (CAPACITY, CAPACITY / 2 * 1000));
    }

    world.add_peer(10_000_000)?;
    let before = Snapshot::take(&world)?;
    let made = pay_all(&world, &orders(7), AT_ONCE)?;
    assert_eq!(made.len(), PAYMENTS);
    for (from, to) in [("client", "client"), ("client", "peer"), ("peer", "client")] {
        assert!(made.iter().any(|p| p.from.starts_with(from) && p.to.starts_with(to)), "none {from} to {to}");
    }
    let after = wait_for(&world, &before.after(&made)?)?;
    check_conserved(&world, &before, &after)?;
    world.finish();
    Ok(())
}
