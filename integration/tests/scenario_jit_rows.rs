//! What a client without room gets in each situation there is: an advance of its leaf; a channel beside the factory when
//! the leaf's states are used up, and when the factory is dying; both channels for what is larger than any of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use anyhow::Result;
use integration::jit::{less_fees, of_kind, status, wait_usable};
use integration::ledger::{check_conserved, wait_at_rest, wait_for, Settled};
use integration::payments::{pay, Order, Party};
use integration::relay::{self, AMOUNT, FEE};
use integration::{rotate, wait, World};
use serde_json::json;

const CAPACITY: u64 = 100_000;
const STOCK: u64 = 300_000;
/// Length of the active period, blocks.
const ACTIVE: u32 = 40;

/// Pays a client, and how long that took.
fn pay_client(world: &World, index: usize, amount_msat: u64) -> Result<(Settled, Duration)> {
    let start = Instant::now();
    let paid = pay(world, Order { from: Party::Peer, to: Party::Client(index), amount_msat })?;
    Ok((paid, start.elapsed()))
}

/// One leaf with three states, of which the last one changes no capacity; its two clients are there all the time.
#[test]
fn a_leaf_advances_then_its_states_are_used_up_then_the_factory_is_dying() -> Result<()> {
    let mut world = World::start_with_lsp("jit-rows", 2, &["--relay", "false"])?;
    world.add_peer(4_000_000)?;
    let params = json!({
        "clients_per_leaf": 2, "arity": [], "layers": [[[3, 8, 8]]], "active": ACTIVE, "dying": 100,
    });
    let factory = world.create_factory(&world.factory_request(CAPACITY, 0, STOCK, Some(params)))?;
    let id = factory.instance_id.clone();
    let node = |index: usize| anyhow::Ok(world.client(index)?.node_id().to_owned());
    let before = wait_at_rest(&world)?;

    // Everybody is there: the leaf advances, and the chain does not hear of it.
    let (fits, plain) = pay_client(&world, 0, 70_000_000)?;
    let (larger, advance) = pay_client(&world, 0, 80_000_001)?;
    println!("a payment that fits took {plain:?}, one for which the leaf advanced {advance:?}");
    assert!(world.bitcoind.mempool()?.is_empty(), "the payment cost a transaction");
    let leaf = rotate::leaf(&world, &id, &node(0)?)?;
    assert_eq!((leaf.position, leaf.left), (1, 1), "{leaf:?}");
    assert_eq!(of_kind(&world, 0, "jit")?, vec![]);
    let held = wait_for(&world, &before.after(&[fits, larger])?)?;
    assert_eq!(held.height, before.height);

    // No state is left for it, though the stock would do and everybody is there.
    let (beside, opening) = pay_client(&world, 0, 100_000_000)?;
    println!("one for which a channel was opened took {opening:?}");
    let [(jit, _)] = &wait_usable(&world, 0, "jit")?[..] else { panic!("not one channel") };
    assert!(jit.trusted && jit.local_msat > 0, "{jit:?}");
    let funding = jit.funding.expect("a funding outpoint").txid;
    assert_eq!(world.mine_mempool()?, [funding]);
    assert_eq!(rotate::leaf(&world, &id, &node(0)?)?.position, 1);
    let mut due = held.after(&[beside])?;
    less_fees(&world, held.height, &mut due)?;
    let held = wait_for(&world, &due)?;

    // The factory is dying: the other client gets a channel too, and what it has in the factory stays as it is.
    world.bitcoind.mine_to(factory.birth_height + ACTIVE)?;
    world.sync()?;
    world.wait_state(&id, "dying", integration::world::PATIENCE)?;
    wait_at_rest(&world)?;
    let in_factory = of_kind(&world, 1, "factory")?;
    let (late, _) = pay_client(&world, 1, 150_000_001)?;
    let [(jit, _)] = &wait_usable(&world, 1, "jit")?[..] else { panic!("not one channel") };
    assert_eq!(jit.local_msat, 150_000_001);
    let mined = world.mine_mempool()?;
    assert_eq!(mined, [jit.funding.expect("a funding outpoint").txid]);
    wait_at_rest(&world)?;
    assert_eq!(of_kind(&world, 1, "factory")?, in_factory);
    let now = world.lsp.factory(&id)?;
    assert!(now.state == "dying" && now.exits.is_empty() && now.close.is_none(), "{now:?}");
    let causes: Vec<_> = status(&world)?.causes.into_iter().collect();
    assert_eq!(causes, [("Exhausted".to_owned(), 1), ("NotActive".to_owned(), 1)]);
    let mut due = held.after(&[late])?;
    less_fees(&world, held.height, &mut due)?;
    let held = wait_for(&world, &due)?;

    // Both go on: what came is theirs to spend, and the factory's channel takes what fits into it alone.
    let back =
        |index, amount_msat| pay(&world, Order { from: Party::Client(index), to: Party::Peer, amount_msat });
    let spent = [back(0, 120_000_000)?, back(1, 100_000_000)?, pay_client(&world, 1, 90_000_000)?.0];
    let after = wait_for(&world, &held.after(&spent)?)?;
    check_conserved(&world, &before, &after)?;
    world.finish();
    Ok(())
}

/// The one who would have to sign sleeps. In one payment by an ordinary node: what fits over the factory's channel, the
/// rest over one that is opened for it.
#[test]
fn larger_than_any_channel_while_a_co_signer_sleeps() -> Result<()> {
    let mut world = World::start("jit-rows-large", 2)?;
    world.add_peer(4_000_000)?;
    let params = json!({ "clients_per_leaf": 2 });
    let factory = world.create_factory(&world.factory_request(CAPACITY, 0, STOCK, Some(params)))?;
    let before = wait_at_rest(&world)?;
    let sleeper = world.client(1)?.node_id().to_owned();
    world.client_mut(1)?.kill()?;
    world.wait_gone(&sleeper)?;

    let large = relay::invoice(&world, AMOUNT, None)?;
    assert_eq!(large.relay_fee_msat, Some(FEE));
    let paid = world.peer()?.pay(&large.invoice)?;
    assert_eq!((paid.status.as_str(), paid.amount_msat, paid.fee_msat), ("succeeded", AMOUNT + FEE, 0));
    relay::wait_relayed(&world, &large.payment_hash, "succeeded")?;
    let pairs = [wait_usable(&world, 0, "factory")?, wait_usable(&world, 0, "jit")?].concat();
    for (own, _) in &pairs {
        assert!(own.capacity_sat * 1000 < AMOUNT, "it fits into one channel: {own:?}");
        assert!(own.local_msat > 50_000_000, "{own:?}");
    }
    assert_eq!(pairs.iter().map(|(own, _)| own.local_msat).sum::<u64>(), AMOUNT);
    let leaf = rotate::leaf(&world, &factory.instance_id, world.client(0)?.node_id())?;
    assert_eq!(leaf.position, 0);

    let fundings = world.mine_mempool()?;
    assert_eq!(fundings.len(), 1, "{fundings:?}");
    let confirmed = |list: &Vec<integration::types::Channel>| list.iter().all(|c| c.usable && !c.trusted);
    wait::until_value(
        "the channel beside the factory to be confirmed",
        integration::world::PATIENCE,
        || world.client(0)?.channels(),
        confirmed,
    )?;
    world.client_mut(1)?.start()?;
    world.sync()?;
    world.wait_usable(&factory)?;
    let mut due = before.after(&[relay::settled("peer", AMOUNT, FEE)])?;
    less_fees(&world, before.height, &mut due)?;
    let held = wait_for(&world, &due)?;

    // It spends more than either channel holds by itself.
    let back = pay(&world, Order { from: Party::Client(0), to: Party::Peer, amount_msat: 200_000_000 })?;
    let after = wait_for(&world, &held.after(&[back])?)?;
    check_conserved(&world, &before, &after)?;
    world.finish();
    Ok(())
}
