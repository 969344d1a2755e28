//! An ordinary wallet (ldk-node as published) buys channels of our LSP by LSPS2, and is paid over them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use integration::jit::{another_peer_channel, status};
use integration::world::PATIENCE;
use integration::{wait, Peer, World};

/// The wallet's balance in its channels, msat, once it has so many usable ones and this much in them.
fn wait_wallet(wallet: &Peer, channels: usize, msat: u64) -> Result<()> {
    wait::until_value(
        &format!("the wallet to hold {msat} msat in {channels} channels"),
        PATIENCE,
        || wallet.channels(),
        |list| {
            list.len() == channels
                && list.iter().all(|c| c.usable)
                && list.iter().map(|c| c.local_msat).sum::<u64>() == msat
        },
    )?;
    Ok(())
}

#[test]
fn a_stock_wallet_buys_channels_and_is_paid_over_them() -> Result<()> {
    let flags = ["--lsps2", "true", "--lsps2-min-fee-msat", "2000000", "--lsps2-proportional-ppm", "5000"];
    let mut world = World::start_with_lsp("lsps2", 0, &flags)?;
    world.add_peer(600_000)?;
    another_peer_channel(&world, 800_000, 2)?;
    let wallet = Peer::start_wallet(world.path(), &world.bitcoind, &world.lsp.uri())?;
    wallet.wait_synced(&world.bitcoind)?;
    let (start, lsp, peer) =
        (world.bitcoind.height()?, world.lsp.balance()?.total_msat(), world.peer()?.held_msat()?);

    // More than one channel of the sender's: it comes in parts, and the proportional fee is the larger one.
    assert!(wallet.jit_invoice(450_000_000, 2_249_999).is_err(), "the fee is above what the wallet allows");
    let invoice = wallet.jit_invoice(450_000_000, 2_250_000)?;
    let paid = world.peer()?.pay(&invoice.invoice)?;
    assert_eq!((paid.status.as_str(), paid.amount_msat, paid.fee_msat), ("succeeded", 450_000_000, 0));
    wait_wallet(&wallet, 1, 447_750_000)?;
    // Another purchase, for the least fee, while the first channel is unconfirmed.
    let invoice = wallet.jit_invoice(20_000_000, 2_000_000)?;
    let paid = world.peer()?.pay(&invoice.invoice)?;
    assert_eq!((paid.status.as_str(), paid.amount_msat), ("succeeded", 20_000_000));
    wait_wallet(&wallet, 2, 465_750_000)?;
    // An invoice as ever: no purchase, the LSP's ordinary forwarding fee.
    let invoice = wallet.invoice(5_000_000, "no purchase")?;
    let third = world.peer()?.pay(&invoice.invoice)?;
    assert_eq!(third.status, "succeeded");
    wait_wallet(&wallet, 2, 470_750_000)?;

    // Both fundings confirm; the LSP holds what it is due, to the millisatoshi.
    let fundings = world.mine_mempool()?;
    for channel in wallet.channels()? {
        let funding = channel.funding.expect("a funding outpoint");
        assert!(fundings.contains(&funding.txid), "{funding:?} was not broadcast");
    }
    let fees = world.bitcoind.fees(start + 1, world.bitcoind.height()?)?;
    assert_eq!(status(&world)?.fees_sat, fees);
    let due = lsp + 2_250_000 + 2_000_000 + third.fee_msat - fees * 1000;
    let total = || Ok((world.lsp.balance()?.total_msat(), world.peer()?.held_msat()?));
    let theirs = peer - 475_000_000 - third.fee_msat;
    wait::until_value("both to hold their due", PATIENCE, total, |held| *held == (due, theirs))?;
    world.finish();
    Ok(())
}
