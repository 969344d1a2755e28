//! The harness itself: without these, a scenario's verdict means nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use integration::cpfp::Purse;
use integration::{Bitcoind, Peer};
use serde_json::{json, Value};

/// A stop, a kill and two starts: same chain, same port, same wallet.
#[test]
fn bitcoind_keeps_its_chain() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut bitcoind = Bitcoind::start(folder.path())?;
    let address = bitcoind.rpc_address().to_owned();
    bitcoind.mine(5)?;
    let (height, best) = (bitcoind.height()?, bitcoind.best_block()?);
    bitcoind.stop()?;
    assert!(bitcoind.height().is_err(), "it answers after its end");
    bitcoind.restart()?;
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
