//! The cooperative close of a factory, driven and checked in the chain.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{anyhow, bail, Result};
use bitcoin::{OutPoint, Txid};

use crate::ledger::wait_at_rest;
use crate::wait::{self, Seen};
use crate::world::{factory_channel, PATIENCE};
use crate::World;

/// Balances below this go to fees, sat.
pub const SMALLEST_PAYOUT: u64 = 330;
/// How long the close may take to be signed.
const SIGNED_WITHIN: Duration = Duration::from_secs(120);
/// Blocks after which the close has to be final for everybody.
const DEPTH: u32 = 6;

/// A close that is done, as the chain has it.
#[derive(Clone, Debug)]
pub struct CloseReport {
    /// The transaction and its height.
    pub txid: Txid,
    /// Height of its block.
    pub height: u32,
    /// Its fee, sat: what it spends less what it pays.
    pub fee_sat: u64,
    /// What each client was due by its channel balance, sat.
    pub due: BTreeMap<String, u64>,
}

/// What a close that begins now has to pay.
#[derive(Clone, Debug)]
pub struct Due {
    id: String,
    funding: OutPoint,
    funding_sat: u64,
    /// What each client is due by its channel balance, sat, by node id.
    clients: BTreeMap<String, u64>,
    /// What each of them has in its wallet, sat.
    wallets: BTreeMap<String, u64>,
    lsp_wallet: u64,
}

/// Closes factory `id` on the LSP's word, mines the transaction and checks it: it spends the funding output and nothing
/// else, each client's wallet gets its channel balance rounded down, balances below 330 sat go to fees and are listed,
/// and the LSP gets the rest.
///
/// # Errors
/// If the close does not come, or one of these does not hold.
pub fn drive(world: &World, id: &str) -> Result<CloseReport> {
    // The LSP refuses while a payment is under way.
    wait_at_rest(world)?;
    let due = Due::ask(world, id)?;
    world.lsp.close_factory(id)?;
    due.finish(world)
}

impl Due {
    /// Asks everybody. No payment may be under way.
    ///
    /// # Errors
    /// If somebody does not answer, or has no channel in the factory.
    pub fn ask(world: &World, id: &str) -> Result<Self> {
        let factory = world.lsp.factory(id)?;
        let funding = factory.funding.ok_or_else(|| anyhow!("the factory has no funding"))?.into();
        let members = factory.clients.iter().filter(|c| c.reason.is_none()).map(|c| c.node_id.clone());
        let mut clients = BTreeMap::new();
        let mut wallets = BTreeMap::new();
        for member in members {
            let client = world.by_node_id(&member)?;
            let channel = factory_channel(&client.channels()?, id, world.lsp.node_id())?;
            clients.insert(member.clone(), channel.local_msat / 1000);
            wallets.insert(member, client.balance()?.onchain.confirmed_sat);
        }
        let lsp_wallet = world.lsp.balance()?.onchain.confirmed_sat;
        let (id, funding_sat) = (id.to_owned(), factory.funding_sat);
        Ok(Self { id, funding, funding_sat, clients, wallets, lsp_wallet })
    }

    /// Waits until the close is signed.
    ///
    /// # Errors
    /// If it is not within two minutes.
    pub fn signed(&self, world: &World) -> Result<Txid> {
        wait::until("the close transaction", SIGNED_WITHIN, || {
            let close = world.lsp.factory(&self.id)?.close;
            match close.as_ref().and_then(|close| close.txid) {
                Some(txid) => Ok(Seen::Done(txid)),
                None => Ok(Seen::NotYet(format!("{close:?}"))),
            }
        })
    }

    /// Waits until the close is signed, mines it and checks it: see [`drive`].
    ///
    /// # Errors
    /// As [`drive`].
    pub fn finish(self, world: &World) -> Result<CloseReport> {
        let Self { id, funding, funding_sat, clients: due, wallets, lsp_wallet } = &self;
        let txid = self.signed(world)?;
        let tx = world.bitcoind.wait_seen(txid, PATIENCE)?;
        world.mine(1)?;
        let height = world.bitcoind.confirmed(txid)?.ok_or_else(|| anyhow!("{txid} is not mined"))?.height;
        world.mine(DEPTH - 1)?;

        let [input] = tx.input.as_slice() else { bail!("{txid} has {} inputs", tx.input.len()) };
        if input.previous_output != *funding {
            bail!("{txid} spends {}, the factory is {funding}", input.previous_output);
        }
        let paid: u64 = tx.output.iter().map(|output| output.value.to_sat()).sum();
        let fee_sat =
            funding_sat.checked_sub(paid).ok_or_else(|| anyhow!("{txid} pays more than it spends"))?;
        check_listed(world, id, fee_sat, due)?;

        let mut clients_paid = 0;
        for (member, sat) in due {
            let payout = if *sat < SMALLEST_PAYOUT { 0 } else { *sat };
            clients_paid += payout;
            if payout > 0 && !tx.output.iter().any(|output| output.value.to_sat() == payout) {
                bail!("no output of {txid} pays {member} its {payout} sat");
            }
            let client = world.by_node_id(member)?;
            let wanted = wallets.get(member).copied().unwrap_or(0) + payout;
            wait::until_value(
                &format!("{}'s wallet to hold {wanted} sat and its channel to be gone", client.name()),
                PATIENCE,
                || client.balance(),
                |balance| balance.onchain.confirmed_sat == wanted && balance.lightning.pending_sweep_sat == 0,
            )?;
        }
        let wanted = lsp_wallet + funding_sat - clients_paid - fee_sat;
        wait::until_value(
            &format!("the LSP's wallet to hold {wanted} sat"),
            PATIENCE,
            || world.lsp.balance(),
            |balance| balance.onchain.confirmed_sat == wanted,
        )?;
        world.wait_state(id, "closed", PATIENCE)?;
        Ok(CloseReport { txid, height, fee_sat, due: self.clients })
    }
}

/// The LSP's own account of the close has to say what the chain says.
fn check_listed(world: &World, id: &str, fee_sat: u64, due: &BTreeMap<String, u64>) -> Result<()> {
    let close = world.lsp.factory(id)?.close.ok_or_else(|| anyhow!("the LSP lists no close"))?;
    let find = |list: &[crate::types::Payout], member: &str| {
        list.iter().find(|payout| payout.node_id.as_deref() == Some(member)).map(|payout| payout.sat)
    };
    let mut swallowed = 0;
    for (member, sat) in due {
        let (listed, small) = (find(&close.paid, member), find(&close.to_fees, member));
        let right = if *sat >= SMALLEST_PAYOUT {
            listed == Some(*sat) && small.is_none()
        } else {
            swallowed += *sat;
            // Nothing at all need not be listed.
            listed.unwrap_or(0) == 0 && (small == Some(*sat) || (*sat == 0 && small.is_none()))
        };
        if !right {
            bail!("{member} is due {sat} sat and listed as paid {listed:?}, to fees {small:?}");
        }
    }
    // Whether the swallowed balances count inside the fee or on top of it is a matter of words; the sum is not.
    if close.fee_sat != fee_sat && close.fee_sat + swallowed != fee_sat {
        bail!("the LSP lists a fee of {} sat, the transaction pays {fee_sat}", close.fee_sat);
    }
    Ok(())
}
