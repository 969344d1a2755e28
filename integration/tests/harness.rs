//! The harness itself: without these, a scenario's verdict means nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use integration::cpfp::Purse;
use integration::wait::{self, Seen};
use integration::world::PATIENCE;
use integration::{Bitcoind, Peer};
use serde_json::{json, Value};

/// A stop, a kill with blocks that are not on disk yet, and two starts: same chain, same port, same wallet.
#[test]
fn bitcoind_keeps_its_chain() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut bitcoind = Bitcoind::start(folder.path())?;
    let address = bitcoind.rpc_address().to_owned();
    bitcoind.mine(5)?;
    bitcoind.stop()?;
    assert!(bitcoind.height().is_err(), "it answers after its end");
    bitcoind.restart()?;
    bitcoind.mine(5)?;
    let (height, best) = (bitcoind.height()?, bitcoind.best_block()?);
    bitcoind.kill()?;
    bitcoind.restart()?;
    assert_eq!((bitcoind.height()?, bitcoind.best_block()?), (height, best));
    assert_eq!(bitcoind.rpc_address(), address);
    bitcoind.mine(1)?;
    assert_eq!(bitcoind.height()?, height + 1);
    Ok(())
}

/// The policy that everything rests on: a version 3 parent without fee and its child go in together, the parent
/// alone does not; and the fees of the block are what the child paid.
#[test]
fn a_feeless_parent_needs_its_child() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bitcoind = Bitcoind::start(folder.path())?;
    let mut purse = Purse::fill(&bitcoind, 2)?;
    // A coin that anybody can spend: P2WSH of OP_TRUE.
    let script = ScriptBuf::from_bytes(vec![0x51]);
    let address = bitcoin::Address::p2wsh(&script, bitcoin::Network::Regtest);
    let coin = bitcoind.fund(&[(address.clone(), 50_000)])?.remove(0);
    let anchor = TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from_hex("51024e73")? };
    let parent = Transaction {
        version: Version::non_standard(3),
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: coin,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::from_slice(&[script.as_bytes()]),
        }],
        output: vec![
            TxOut { value: Amount::from_sat(50_000), script_pubkey: address.script_pubkey() },
            anchor,
        ],
    };
    let refused = bitcoind.send(&parent).unwrap_err().to_string();
    assert!(refused.contains("min relay fee not met"), "{refused}");
    let child = purse.child(&parent, 1)?;
    bitcoind.submit_package(&[&parent, &child])?;
    bitcoind.mine(1)?;
    let height = bitcoind.height()?;
    assert_eq!(bitcoind.confirmed(parent.compute_txid())?.map(|c| c.height), Some(height));
    assert_eq!(bitcoind.confirmed(child.compute_txid())?.map(|c| c.tx), Some(child));
    assert_eq!(bitcoind.fees(height, height)?, integration::cpfp::CHILD_FEE);
    Ok(())
}

/// The ordinary node gets coins, shows them, and is the same node after stop, kill and start.
#[test]
fn the_ordinary_node_restarts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bitcoind = Bitcoind::start(folder.path())?;
    let mut peer = Peer::start(folder.path(), &bitcoind)?;
    let node_id = peer.node_id().to_owned();
    bitcoind.fund(&[(Bitcoind::parse_address(&peer.address()?)?, 123_456)])?;
    peer.wait_synced(&bitcoind)?;
    assert_eq!(peer.onchain_sat()?, 123_456);
    peer.stop()?;
    peer.restart()?;
    peer.kill()?;
    peer.restart()?;
    peer.wait_synced(&bitcoind)?;
    assert_eq!((peer.node_id(), peer.onchain_sat()?), (node_id.as_str(), 123_456));
    let error =
        peer.call::<Value>(&json!({ "method": "connect", "node_id": "02", "address": "x" })).unwrap_err();
    assert!(error.to_string().contains("not a node id"), "{error}");
    Ok(())
}

/// Two ordinary nodes: the sum that the ledger takes of such a node is exact, through a channel's opening and payments
/// both ways.
#[test]
fn ordinary_nodes_add_up() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bitcoind = Bitcoind::start(folder.path())?;
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    std::fs::create_dir_all(&one)?;
    std::fs::create_dir_all(&two)?;
    let (one, two) = (Peer::start(&one, &bitcoind)?, Peer::start(&two, &bitcoind)?);
    bitcoind.fund(&[
        (Bitcoind::parse_address(&one.address()?)?, 3_000_000),
        (Bitcoind::parse_address(&two.address()?)?, 1_000_000),
    ])?;
    let start = bitcoind.height()?;
    one.wait_synced(&bitcoind)?;
    two.wait_synced(&bitcoind)?;
    one.open_channel(two.node_id(), two.listen(), 1_000_000, 400_000)?;
    let funding = wait::until("the funding", PATIENCE, || {
        Ok(match one.channels()?.into_iter().find_map(|channel| channel.funding) {
            Some(funding) => Seen::Done(funding.txid),
            None => Seen::not_yet("none"),
        })
    })?;
    bitcoind.wait_seen(funding, PATIENCE)?;
    bitcoind.mine(6)?;
    one.wait_synced(&bitcoind)?;
    two.wait_synced(&bitcoind)?;
    wait::until("the channel", PATIENCE, || {
        let usable = |peer: &Peer| Ok::<_, anyhow::Error>(peer.channels()?.iter().any(|c| c.usable));
        Ok(if usable(&one)? && usable(&two)? { Seen::Done(()) } else { Seen::not_yet("not usable") })
    })?;
    let fees = bitcoind.fees(start + 1, bitcoind.height()?)? * 1000;
    let expect = |first: u64, second: u64| {
        wait::until("both to hold their due", PATIENCE, || {
            let held = (one.held_msat()?, two.held_msat()?);
            Ok(if held == (first, second) { Seen::Done(()) } else { Seen::NotYet(format!("{held:?}")) })
        })
    };
    let (first, second) = (2_600_000_000 - fees, 1_400_000_000);
    expect(first, second)?;
    let paid = two.pay(&one.invoice(123_456_789, "there")?.invoice)?;
    assert_eq!((paid.status.as_str(), paid.fee_msat), ("succeeded", 0));
    expect(first + 123_456_789, second - 123_456_789)?;
    let paid = one.pay(&two.invoice(23_456_790, "and back")?.invoice)?;
    assert_eq!((paid.status.as_str(), paid.fee_msat), ("succeeded", 0));
    expect(first + 99_999_999, second - 99_999_999)
}
