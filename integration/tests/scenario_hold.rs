//! Payments that the payee holds: until it claims them or gives them back, and not too long.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use anyhow::Result;
use bitcoin::OutPoint;
use integration::hold::Held;
use integration::http::ApiError;
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use integration::pace::{Leaving, Stand};
use integration::payments::{Order, Party};
use integration::types::Factory;
use integration::World;
use serde_json::json;

const CAPACITY: u64 = 500_000;

fn world(name: &str) -> Result<(World, Factory)> {
    let mut world = World::start(name, 2)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, 0, None);
    let factory = world.create_factory(&request)?;
    world.add_peer(4_000_000)?;
    Ok((world, factory))
}

fn hold(world: &World, from: Party, to: Party, amount_msat: u64) -> Result<Held> {
    Held::start(world, Order { from, to, amount_msat })
}

/// The code of the API's refusal.
fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().downcast_ref::<ApiError>().expect("an answer of the API").code.clone()
}

#[test]
fn held_until_claimed_or_given_back() -> Result<()> {
    let (mut world, factory) = world("hold")?;
    let before = Snapshot::take(&world)?;
    let (client, other) = (Party::Client(0), Party::Client(1));
    let incoming = hold(&world, Party::Peer, client, 20_000_001)?;
    let outgoing = hold(&world, client, Party::Peer, 30_000_000)?;
    let between = hold(&world, other, client, 1_234_567)?;
    let to_lsp = hold(&world, client, Party::Lsp, 4_000_000)?;
    let unwanted = hold(&world, Party::Peer, other, 5_000_000)?;
    let refused_by_peer = hold(&world, other, Party::Peer, 6_000_000)?;
    let all = [&incoming, &outgoing, &between, &to_lsp, &unwanted, &refused_by_peer];

    // What is held is on the channels and in nobody's balance.
    let channel = &world.client(0)?.channels()?[0];
    assert_eq!(channel.pending_htlcs, 4, "{channel:?}");
    let held = world.client(0)?.payments()?;
    let held = held.iter().find(|p| p.payment_hash == incoming.payment_hash).expect("held");
    assert_eq!((held.status.as_str(), held.amount_msat), ("held", 20_000_001));

    // Orders that cannot be carried out.
    let daemon = world.client(0)?;
    assert_eq!(refused(daemon.claim(&"00".repeat(32))), "not_found");
    assert_eq!(refused(daemon.claim("00")), "invalid_argument");
    assert_eq!(refused(daemon.fail(&outgoing.payment_hash)), "not_found");
    assert_eq!(refused(daemon.hold_invoice(1, &incoming.payment_hash)), "conflict");
    assert_eq!(refused(daemon.hold_invoice(1, "ff")), "invalid_argument");
    let hash = "11".repeat(32);
    daemon.hold_invoice(1000, &hash)?;
    assert_eq!(refused(daemon.fail(&hash)), "conflict", "nothing was paid");
    let none = json!({ "amount_msat": 1000, "hold_blocks": 10 });
    assert_eq!(refused(daemon.api()?.post::<serde_json::Value>("/v1/invoice", &none)), "invalid_argument");

    // They outlive the LSP, and an order given while it is away is carried out later.
    world.lsp.stop()?;
    world.lsp.start()?;
    world.wait_usable(&factory)?;
    for held in all {
        held.check_held(&world)?;
    }
    world.lsp.kill()?;
    incoming.claim(&world)?;
    outgoing.claim(&world)?;
    unwanted.fail(&world)?;
    world.lsp.start()?;
    world.wait_usable(&factory)?;
    between.claim(&world)?;
    to_lsp.claim(&world)?;
    refused_by_peer.fail(&world)?;

    let paid = [incoming.paid(&world)?, outgoing.paid(&world)?, between.paid(&world)?, to_lsp.paid(&world)?];
    unwanted.given_back(&world)?;
    refused_by_peer.given_back(&world)?;
    wait_for(&world, &before.after(&paid)?)?;
    let after = wait_at_rest(&world)?;
    check_conserved(&world, &before, &after)?;

    // An order is once and for all.
    assert_eq!(refused(incoming.claim(&world)), "conflict");
    assert_eq!(refused(unwanted.claim(&world)), "conflict");
    assert_eq!(refused(incoming.fail(&world)), "conflict");
    world.finish();
    Ok(())
}

/// The client is killed with the order to claim on disk, and at moments around that.
#[test]
fn an_order_outlives_the_process() -> Result<()> {
    let (mut world, factory) = world("hold-order")?;
    let before = Snapshot::take(&world)?;
    let mut paid = Vec::new();

    // The order is accepted while the LSP is away, so the claim cannot be carried out.
    let held = hold(&world, Party::Peer, Party::Client(0), 10_000_000)?;
    world.lsp.kill()?;
    held.claim(&world)?;
    world.client_mut(0)?.kill()?;
    world.lsp.start()?;
    assert_eq!(held.payer_says(&world)?.status, "pending");
    world.client_mut(0)?.start()?;
    world.wait_usable(&factory)?;
    paid.push(held.paid(&world)?);

    for millis in [0, 1, 3, 10, 30] {
        let held = hold(&world, Party::Peer, Party::Client(0), 1_000_000 + millis)?;
        let api = world.client(0)?.api()?.clone();
        let body = json!({ "preimage": held.preimage });
        let order =
            std::thread::spawn(move || api.post::<serde_json::Value>("/v1/payments/claim", &body).is_ok());
        // Not a wait: whatever the order has come to by then, the outcome is the same.
        std::thread::sleep(Duration::from_millis(millis));
        world.client_mut(0)?.kill()?;
        let accepted = order.join().expect("no panic");
        world.client_mut(0)?.start()?;
        world.wait_usable(&factory)?;
        if !accepted && held.payee_says(&world)?.status == "held" {
            // An order that came to the disk may be carried out at this moment, and refuses this one.
            let _ = held.claim(&world);
        }
        paid.push(held.paid(&world)?);
    }
    wait_for(&world, &before.after(&paid)?)?;
    check_conserved(&world, &before, &wait_at_rest(&world)?)?;
    world.finish();
    Ok(())
}

#[test]
fn given_back_if_nobody_claims() -> Result<()> {
    let (mut world, factory) = world("hold-late")?;
    let before = Snapshot::take(&world)?;
    let height = world.bitcoind.height()?;
    let incoming = hold(&world, Party::Peer, Party::Client(0), 20_000_000)?;
    let outgoing = hold(&world, Party::Client(0), Party::Peer, 30_000_000)?;
    // As long as promised, at least.
    assert!(incoming.claim_by_height >= height + 36, "{incoming:?} at {height}");

    let mut order = [&incoming, &outgoing];
    order.sort_by_key(|held| held.claim_by_height);
    for held in order {
        let now = world.bitcoind.height()?;
        world.mine((held.claim_by_height - 1).saturating_sub(now))?;
        if world.bitcoind.height()? < held.claim_by_height {
            held.check_held(&world)?;
            world.mine(1)?;
        }
        held.given_back(&world)?;
    }
    assert_eq!(refused(incoming.claim(&world)), "conflict", "too late");

    // One whose payee is away at that height gives it back when it returns.
    let absent = hold(&world, Party::Peer, Party::Client(1), 40_000_000)?;
    world.client_mut(1)?.kill()?;
    let now = world.bitcoind.height()?;
    world.mine(absent.claim_by_height + 1 - now)?;
    world.client_mut(1)?.start()?;
    world.wait_usable(&factory)?;
    absent.given_back(&world)?;
    wait_for(&world, &before)?;
    assert_eq!(wait_at_rest(&world)?.parties, before.parties);
    world.finish();
    Ok(())
}

/// The client dies with the order to claim on disk and not begun. It comes back when it would be too late to leave by
/// its path, but the LSP has brought the leaf to the chain meanwhile, for it cannot let the payment hang: so the claim
/// takes no path, and is made there.
#[test]
#[ignore = "long: make scenarios"]
fn an_order_is_carried_out_late_on_the_chain() -> Result<()> {
    /// More blocks than the LSP's exit takes.
    const LIMIT: u32 = 200;
    let mut world = World::start("hold-chain", 2)?;
    world.add_peer(4_000_000)?;
    let small = json!({ "layers": [[], [[2, 2, 2], [2, 2, 0]]] });
    let id =
        world.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, Some(small)))?.instance_id;
    let held = hold(&world, Party::Peer, Party::Client(0), 20_000_000)?;
    world.client(0)?.faults().set("kill@node.hold.claim_ordered")?;
    assert!(held.claim(&world).is_err(), "it dies meanwhile");
    world.client_mut(0)?.wait_killed()?;
    world.client(0)?.faults().clear()?;

    let leaving = Leaving::by_lsp(&world, 0, &id)?;
    // How long it is held differs: LDK's payers add a random delay to the last hop's.
    let end = held.claim_by_height + LIMIT;
    let leaf = loop {
        assert!(
            world.bitcoind.height()? < end,
            "the leaf is not on the chain: {:?}",
            world.lsp.factory(&id)?.exits
        );
        if world.lsp.factory(&id)?.exits.is_empty() {
            world.mine_for(&world.lsp, 1)?;
            continue;
        }
        let leaf = leaving.exit(&world)?.steps.last().expect("steps").txid;
        if world.bitcoind.confirmed(leaf)?.is_some() {
            break leaf;
        }
        match leaving.settle(&world)? {
            Stand::Idle(blocks) => world.mine_for(&world.lsp, blocks)?,
            Stand::Offered(_) => world.mine_for(&world.lsp, 1)?,
            stand => panic!("{stand:?}: {:?}", leaving.exit(&world)?),
        }
    };
    assert!(world.bitcoind.height()? >= held.claim_by_height, "not late yet");
    let channel = OutPoint::new(leaf, 0);
    assert!(world.bitcoind.unspent(channel)?.is_some(), "the commitment is not on the chain yet");

    world.client_mut(0)?.start()?;
    world.sync()?;
    for _ in 0..12 {
        world.mine(1)?;
        let said = [held.payer_says(&world)?.status, held.payee_says(&world)?.status];
        if said.iter().all(|status| status != "pending") {
            break;
        }
    }
    assert!(world.bitcoind.unspent(channel)?.is_none(), "the channel was closed on the chain");
    held.paid(&world)?;
    world.finish();
    Ok(())
}
