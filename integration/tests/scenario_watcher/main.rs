//! All clients and the LSP are gone; a watcher without any key of theirs pays every client after the expiry height.
//! `rotations`: it is handed each new path, and publishes the newest when somebody publishes an older one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod rotations;

use std::path::{Path, PathBuf};

use anyhow::{anyhow, Result};
use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use bitcoin::Transaction;
use integration::cpfp::Purse;
use integration::types::Factory;
use integration::watcher::ExitFile;
use integration::world::{CLIENT_COIN, PATIENCE};
use integration::{wait, Bitcoind, Watcher, World};
use serde_json::{json, Value};

const CLIENTS: usize = 4;
const CAPACITY: u64 = 300_000;
/// A leaf's liquidity stock; odd, so that one client of two gets a satoshi more.
const STOCK: u64 = 10_001;
/// What the watcher's wallet gets, in one coin.
const COIN: u64 = 400_000;

/// A short life, and layers of a few blocks.
fn params(clients_per_leaf: u16, arity: &[u16]) -> Value {
    let mut layers = vec![json!([]); arity.len()];
    layers.push(json!([[2, 2, 4], [2, 2, 0]]));
    json!({
        "clients_per_leaf": clients_per_leaf, "arity": arity, "layers": layers,
        "active": 20, "dying": 10, "margin": 10,
    })
}

/// A factory whose clients have handed out their exit files, and everybody in it dead.
fn abandoned(name: &str, params: Value) -> Result<(World, Factory, Vec<ExitFile>, Vec<PathBuf>)> {
    let mut world = World::start(name, CLIENTS)?;
    let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, Some(params));
    let factory = world.create_factory(&request)?;
    let (mut exits, mut files) = (Vec::new(), Vec::new());
    for client in &world.clients {
        let file = world.path().join(format!("{}.exit", client.name()));
        exits.push(ExitFile::export(client, &file)?);
        files.push(file);
    }
    assert!(exits.iter().all(|exit| exit.expiry_height == factory.expiry_height));
    for client in &mut world.clients {
        client.kill()?;
    }
    world.lsp.kill()?;
    Ok((world, factory, exits, files))
}

/// The watcher says what it needs, and is given one coin.
fn fund(world: &World, watcher: &mut Watcher) -> Result<()> {
    let wallet = watcher.wait_synced(&world.bitcoind)?.fee_wallet;
    assert_eq!(wallet.confirmed_sat, 0);
    assert!(wallet.needed_sat > 0 && wallet.needed_sat < COIN, "{wallet:?}");
    world.bitcoind.fund(&[(Bitcoind::parse_address(&wallet.address)?, COIN)])?;
    let wallet = watcher.wait_synced(&world.bitcoind)?.fee_wallet;
    assert_eq!(wallet.confirmed_sat, COIN);
    Ok(())
}

/// A file that somebody has changed is refused: another state, a signature, an amount, a time, an owner.
fn check_refusals(world: &World, file: &Path) -> Result<()> {
    let good: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let signature = |value: &mut Value| {
        let tx = value["path"]["path"][1]["tx"].as_str().unwrap().to_owned();
        let mut tx: Transaction = deserialize_hex(&tx).unwrap();
        let mut witness = tx.input[0].witness.nth(0).unwrap().to_vec();
        witness[9] ^= 1;
        tx.input[0].witness = bitcoin::Witness::from_slice(&[witness]);
        value["path"]["path"][1]["tx"] = json!(serialize_hex(&tx));
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Value));
    let changes: [Change<'_>; 6] = [
        ("signature", &signature),
        ("version 2", &|v| v["version"] = json!(2)),
        ("lock time", &|v| v["path"]["expiry_height"] = json!(1)),
        ("for bitcoin", &|v| v["network"] = json!("bitcoin")),
        ("does not match", &|v| v["path"]["funding"]["value_sat"] = json!(1_000_000)),
        ("stored distribution", &|v| {
            v["path"]["leaf"][0]["payout_script"] = v["path"]["stock_script"].clone()
        }),
    ];
    for (reason, change) in changes {
        let mut value = good.clone();
        change(&mut value);
        let bad = world.path().join("bad.exit");
        std::fs::write(&bad, serde_json::to_vec(&value)?)?;
        let said = Watcher::refusal(world.path(), &world.bitcoind, &bad)?;
        assert!(said.contains(reason) && said.contains("bad.exit"), "{reason}: {said}");
    }
    Ok(())
}

/// Which distribution of the client is in the chain.
fn distribution_of(world: &World, exit: &ExitFile) -> Result<Option<(usize, Transaction)>> {
    for (i, txid) in exit.distribution_txids().into_iter().enumerate() {
        if let Some(confirmed) = world.bitcoind.confirmed(txid)? {
            return Ok(Some((i, confirmed.tx)));
        }
    }
    Ok(None)
}

/// Each client comes back without an LSP and has `amounts` more than its coin, in any order.
fn check_paid(world: &mut World, mut amounts: Vec<u64>) -> Result<()> {
    let mut got = Vec::new();
    for client in &mut world.clients {
        client.start()?;
        client.wait_synced(&world.bitcoind)?;
        let balance = wait::until_value(
            "the distribution to be in the client's wallet",
            PATIENCE,
            || Ok(client.balance()?.onchain),
            |onchain| onchain.confirmed_sat > CLIENT_COIN && onchain.unconfirmed_sat == 0,
        )?;
        got.push(balance.confirmed_sat - CLIENT_COIN);
    }
    amounts.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, amounts);
    Ok(())
}

/// What the wallet lost is what the blocks took as fees.
fn check_fees(world: &World, watcher: &mut Watcher, first: u32, others: u64) -> Result<()> {
    world.bitcoind.mine(1)?;
    let wallet = watcher.wait_synced(&world.bitcoind)?.fee_wallet;
    assert_eq!((wallet.unconfirmed_sat, wallet.needed_sat), (0, 0));
    let fees = world.bitcoind.fees(first, world.bitcoind.height()?)? - others;
    assert_eq!(COIN - wallet.confirmed_sat, fees);
    assert!(fees > 0);
    Ok(())
}

/// Nothing was published; two leaves of two clients. The watcher is started only after the expiry height, and killed
/// in between, once while the chain is reorganised.
#[test]
fn a_watcher_without_keys_pays_everybody() -> Result<()> {
    let (mut world, factory, exits, files) = abandoned("watcher", params(2, &[2]))?;
    check_refusals(&world, &files[0])?;
    world.bitcoind.mine_to(factory.expiry_height - 4)?;
    let mut watcher = Watcher::start(world.path(), &world.bitcoind, &files, &["--max-fee-sat", "100"])?;
    fund(&world, &mut watcher)?;
    let first = world.bitcoind.height()? + 1;
    world.bitcoind.mine_to(factory.expiry_height - 1)?;
    let status = watcher.wait_synced(&world.bitcoind)?;
    assert_eq!(status.leaves.len(), 2, "clients of one leaf are one leaf");
    assert!(status.leaves.iter().all(|leaf| leaf.state == "watching"), "{status:?}");
    assert_eq!(world.bitcoind.mempool()?, []);

    world.bitcoind.mine(1)?;
    let status = watcher.wait_synced(&world.bitcoind)?;
    let begun = status.leaves.iter().all(|leaf| leaf.state == "over_budget");
    assert!(begun, "not begun at the expiry height: {status:?}");
    assert_eq!(world.bitcoind.mempool()?, []);
    watcher.stop()?;
    let mut watcher = Watcher::start(world.path(), &world.bitcoind, &files, &[])?;
    let root = exits[0].path[0].compute_txid();
    assert!(world.bitcoind.mempool()?.contains(&root), "the root is not out at the expiry height");
    watcher.kill()?;
    world.bitcoind.mine(1)?;
    watcher.restart(&world.bitcoind)?;
    // It is dead again while the root's block is taken off the chain, and bitcoind does not know the root any more.
    watcher.kill()?;
    assert!(world.bitcoind.confirmed(root)?.is_some());
    world.bitcoind.reorganize(1)?;
    world.bitcoind.kill()?;
    world.bitcoind.restart()?;
    assert_eq!(world.bitcoind.mempool()?, []);
    let again = world.bitcoind.height()?;
    watcher.restart(&world.bitcoind)?;
    assert!(world.bitcoind.mempool()?.contains(&root), "the root is not out again after a reorganisation");
    watcher.drive(&world.bitcoind, "paid", 20)?;
    // The root, then both leaves at once or one after the other, depending on the coins.
    assert!(world.bitcoind.height()? <= again + 4);
    for exit in &exits {
        let (position, tx) = distribution_of(&world, exit)?.ok_or_else(|| anyhow!("not paid"))?;
        assert_eq!(position, 0);
        let values: Vec<u64> = tx.output.iter().map(|output| output.value.to_sat()).collect();
        assert_eq!(values, [CAPACITY + STOCK / 2 + 1, CAPACITY + STOCK / 2, 0]);
    }
    check_fees(&world, &mut watcher, first, 0)?;
    watcher.stop()?;
    let (more, less) = (CAPACITY + STOCK / 2 + 1, CAPACITY + STOCK / 2);
    check_paid(&mut world, vec![more, more, less, less])?;
    world.finish();
    Ok(())
}

/// Somebody publishes the root, the static nodes, some kickoffs and a first state just before the expiry height.
#[test]
fn a_hostile_publication_just_before_the_expiry_does_not_help() -> Result<()> {
    let (mut world, factory, exits, files) = abandoned("watcher-hostile", params(1, &[2, 2]))?;
    let expiry = factory.expiry_height;
    let mut watcher = Watcher::start(world.path(), &world.bitcoind, &files[..2], &[])?;
    fund(&world, &mut watcher)?;
    // Two files more, whose factory is older than what it has seen.
    world.bitcoind.mine(3)?;
    assert_eq!(watcher.wait_synced(&world.bitcoind)?.leaves.len(), 2);
    watcher.stop()?;
    let mut watcher = Watcher::start(world.path(), &world.bitcoind, &files, &[])?;
    let status = watcher.wait_synced(&world.bitcoind)?;
    assert_eq!((status.leaves.len(), status.fee_wallet.confirmed_sat), (CLIENTS, COIN));
    let mut purse = Purse::fill(&world.bitcoind, 10)?;
    let mut hostile_fees = 0;
    let mut publish = |world: &World, tx: &Transaction| -> Result<()> {
        let anchor = u32::try_from(tx.output.len() - 1)?;
        let child = purse.child(tx, anchor)?;
        world.bitcoind.submit_package(&[tx, &child])?;
        hostile_fees += integration::cpfp::CHILD_FEE;
        Ok(())
    };
    // Clients that share a leaf's parent have the same path above it.
    let above: Vec<Vec<Transaction>> = exits.iter().map(|e| e.path[..e.leaf_start].to_vec()).collect();
    assert!(above.iter().all(|path| path.len() == 2));
    let statics: Vec<Transaction> = {
        let mut list: Vec<Transaction> = above.iter().map(|path| path[1].clone()).collect();
        list.sort_by_key(Transaction::compute_txid);
        list.dedup();
        list
    };
    assert_eq!(statics.len(), 2);
    let first = world.bitcoind.height()? + 1;
    world.bitcoind.mine_to(expiry - 11)?;
    watcher.wait_synced(&world.bitcoind)?;
    publish(&world, &above[0][0])?;
    world.bitcoind.mine(1)?;
    for tx in &statics {
        publish(&world, tx)?;
    }
    world.bitcoind.mine(1)?;
    // Client 2: the kickoff at T - 8, the first state at T - 2. The last state would be out at T at the earliest.
    let kickoff = |client: usize| exits[client].path[2].clone();
    publish(&world, &kickoff(2))?;
    world.bitcoind.mine(1)?;
    assert_eq!(world.bitcoind.height()?, expiry - 8);
    world.bitcoind.mine(4)?;
    for client in [1, 3] {
        publish(&world, &kickoff(client))?;
    }
    world.bitcoind.mine(1)?;
    publish(&world, &exits[2].path[3])?;
    world.bitcoind.mine(1)?;
    assert_eq!(world.bitcoind.height()?, expiry - 2);
    assert!(world.bitcoind.confirmed(exits[2].path[3].compute_txid())?.is_some());
    let status = watcher.wait_synced(&world.bitcoind)?;
    assert!(status.leaves.iter().all(|leaf| leaf.spent_sat == 0), "nothing was due before: {status:?}");

    watcher.drive(&world.bitcoind, "paid", 30)?;
    for (client, expected) in [(0, 0), (1, 1), (2, 2), (3, 1)] {
        let (position, tx) = distribution_of(&world, &exits[client])?.ok_or_else(|| anyhow!("not paid"))?;
        assert_eq!(position, expected, "client {client}");
        let values: Vec<u64> = tx.output.iter().map(|output| output.value.to_sat()).collect();
        assert_eq!(values, [CAPACITY + STOCK, 0]);
    }
    check_fees(&world, &mut watcher, first, hostile_fees)?;
    watcher.stop()?;
    check_paid(&mut world, vec![CAPACITY + STOCK; CLIENTS])?;
    world.finish();
    Ok(())
}

/// Throws old blocks away, up to a height at most: they come in files of a few hundred (`fastprune`), and the last 288
/// stay in any case. The index of all transactions needs every block, so it goes, too.
fn prune(bitcoind: &mut Bitcoind, height: u32) -> Result<()> {
    bitcoind.stop()?;
    let file = bitcoind.data_dir().join("bitcoin.conf");
    std::fs::write(&file, std::fs::read_to_string(&file)?.replace("txindex=1", "prune=1"))?;
    bitcoind.restart()?;
    bitcoind.rpc().call::<Value>("pruneblockchain", json!([height]))?;
    Ok(())
}

/// A watcher that is given a factory older than its bitcoind's blocks says so and does not start: it could not know what
/// of the factory is on the chain. One that has read them before goes on without them.
#[test]
fn a_chain_without_the_factorys_first_blocks_is_refused() -> Result<()> {
    const OLD: u32 = 300;
    let (mut world, factory, _, files) = abandoned("watcher-pruned", params(2, &[2]))?;
    let mut watcher = Watcher::start(world.path(), &world.bitcoind, &files[..2], &[])?;
    world.bitcoind.mine(2 * OLD)?;
    let before = watcher.wait_synced(&world.bitcoind)?;
    watcher.stop()?;
    assert!(factory.birth_height < OLD / 2);
    prune(&mut world.bitcoind, OLD)?;
    let said = Watcher::refusal(world.path(), &world.bitcoind, &files[2])?;
    assert!(said.contains("pruned") && said.contains(&format!("born at {}", factory.birth_height)), "{said}");
    watcher.restart(&world.bitcoind)?;
    assert_eq!(watcher.status()?.leaves.len(), before.leaves.len());
    watcher.stop()?;
    world.finish();
    Ok(())
}
