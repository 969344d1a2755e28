//! All money of all parties, added up to the millisatoshi.
//!
//! Payments move money between parties; mining fees take it out. Nothing else may change the sum: with nothing in the
//! mempool, what all parties held before is what they hold now and the fees in the blocks between. The fees are read
//! from the blocks, not from what a party says it paid. (Blocks must hold no payment of bitcoind's own wallet.)

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{anyhow, bail, Result};
use bitcoin::{OutPoint, Txid};

use crate::types::{Payment, TreeTx};
use crate::wait::{self, Seen};
use crate::{Daemon, World};

/// How long the last HTLC of a payment may take to be removed on both sides.
const SETTLE: Duration = Duration::from_secs(60);

/// What every party holds at one height.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Height of the chain.
    pub height: u32,
    /// Holdings by party (`lsp`, `peer`, `client-0`, ...), msat.
    pub parties: BTreeMap<String, u64>,
}

impl Snapshot {
    /// Asks every party that runs.
    ///
    /// # Errors
    /// If a party does not answer, or something is unconfirmed.
    pub fn take(world: &World) -> Result<Self> {
        let mempool = world.bitcoind.mempool()?;
        if !mempool.is_empty() {
            bail!("the mempool holds {mempool:?}: fees of those are in no block yet");
        }
        let mut parties = BTreeMap::new();
        if world.lsp.is_up() {
            parties.insert("lsp".to_owned(), world.lsp.balance()?.total_msat() + stock_sat(world)? * 1000);
        }
        for client in world.clients.iter().filter(|client| client.is_up()) {
            parties.insert(client.name().to_owned(), client.balance()?.total_msat());
        }
        if let Some(peer) = &world.peer {
            parties.insert("peer".to_owned(), peer.held_msat()?);
        }
        Ok(Self { height: world.bitcoind.height()?, parties })
    }

    /// The sum, msat.
    pub fn total(&self) -> u64 {
        self.parties.values().sum()
    }

    /// What one party holds, msat.
    ///
    /// # Errors
    /// If it was not asked.
    pub fn of(&self, party: &str) -> Result<u64> {
        self.parties.get(party).copied().ok_or_else(|| anyhow!("{party} is not in the ledger"))
    }

    /// What must be there after these payments.
    ///
    /// # Errors
    /// If a payment's party is unknown or would hold less than nothing.
    pub fn after(&self, payments: &[Settled]) -> Result<Self> {
        let mut next = self.clone();
        for payment in payments {
            let fee = payment.fee_msat;
            next.change(&payment.from, |held| held.checked_sub(payment.amount_msat.checked_add(fee)?))?;
            next.change(&payment.to, |held| held.checked_add(payment.amount_msat))?;
            next.change("lsp", |held| held.checked_add(fee))?;
        }
        Ok(next)
    }

    /// What must be there if a party has spent so much, msat.
    ///
    /// # Errors
    /// If the party is unknown or would hold less than nothing.
    pub fn less(&self, party: &str, msat: u64) -> Result<Self> {
        let mut next = self.clone();
        next.change(party, |held| held.checked_sub(msat))?;
        Ok(next)
    }

    fn change(&mut self, party: &str, change: impl Fn(u64) -> Option<u64>) -> Result<()> {
        let held = self.parties.get_mut(party).ok_or_else(|| anyhow!("{party} is not in the ledger"))?;
        *held = change(*held).ok_or_else(|| anyhow!("{party} would hold less than nothing"))?;
        Ok(())
    }
}

/// A payment that succeeded, through the LSP as the only node between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Paying party.
    pub from: String,
    /// Receiving party.
    pub to: String,
    /// Amount that arrived, msat.
    pub amount_msat: u64,
    /// What the LSP kept, msat: what the payer paid on top.
    pub fee_msat: u64,
}

impl Settled {
    /// From the payer's account of it.
    ///
    /// # Errors
    /// If the payment did not succeed.
    pub fn new(from: &str, to: &str, payment: &Payment) -> Result<Self> {
        if payment.status != "succeeded" {
            bail!("payment from {from} to {to}: {} ({:?})", payment.status, payment.failure);
        }
        Ok(Self {
            from: from.to_owned(),
            to: to.to_owned(),
            amount_msat: payment.amount_msat,
            fee_msat: payment.fee_msat,
        })
    }
}

/// Waits until every party holds exactly what `expected` says.
///
/// # Errors
/// At the deadline: each party that holds something else, with both figures.
pub fn wait_for(world: &World, expected: &Snapshot) -> Result<Snapshot> {
    wait::until("every party to hold its due", SETTLE, || {
        let now = Snapshot::take(world)?;
        let wrong: Vec<String> = expected
            .parties
            .iter()
            .filter(|(party, due)| now.parties.get(*party) != Some(due))
            .map(|(party, due)| format!("{party} holds {:?} msat, due {due}", now.parties.get(party)))
            .collect();
        Ok(if wrong.is_empty() { Seen::Done(now) } else { Seen::NotYet(wrong.join("; ")) })
    })
}

/// Waits until no channel holds a pending payment, on either side. The balances are right a round trip before that; an
/// LSP killed in that round trip leaves a payment on the channel, for which the payee has to go on the chain in the end.
///
/// # Errors
/// If payments stay pending, or a party does not answer.
pub fn wait_at_rest(world: &World) -> Result<Snapshot> {
    let daemons = std::iter::once::<&Daemon>(&world.lsp)
        .chain(world.clients.iter().map(|client| -> &Daemon { client }));
    for daemon in daemons.filter(|daemon| daemon.is_up()) {
        wait::until_value(
            &format!("{} to have no pending payment", daemon.name()),
            SETTLE,
            || daemon.channels(),
            |channels| channels.iter().all(|channel| channel.pending_htlcs == 0),
        )?;
    }
    Snapshot::take(world)
}

/// Checks that between two moments money left only as fees in the blocks.
///
/// # Errors
/// If the sums differ: all figures.
pub fn check_conserved(world: &World, before: &Snapshot, after: &Snapshot) -> Result<()> {
    let fees = match after.height.checked_sub(before.height) {
        None => bail!("height went from {} to {}", before.height, after.height),
        Some(0) => 0,
        Some(_) => world.bitcoind.fees(before.height + 1, after.height)? * 1000,
    };
    if before.total() != after.total() + fees {
        bail!(
            "{} msat before, {} msat after and {fees} msat of fees in blocks {}..={}: {before:?}, {after:?}",
            before.total(),
            after.total(),
            before.height + 1,
            after.height
        );
    }
    Ok(())
}

/// Liquidity stock that is the LSP's money, but in no channel and no coin: that of factories whose funding output is
/// unspent, and, where the tree is being published, that of the leaves that are not on the chain.
fn stock_sat(world: &World) -> Result<u64> {
    let mut sum = 0;
    for factory in world.lsp.factories()? {
        let Some(funding) = factory.funding else { continue };
        let members: u64 =
            factory.clients.iter().filter(|c| c.reason.is_none()).map(|client| client.capacity_sat).sum();
        let stock = factory.funding_sat.saturating_sub(members);
        if world.bitcoind.unspent(funding.into())?.is_some() {
            sum += stock;
        } else if stock > 0 {
            let tree = world.lsp.factory(&factory.instance_id)?.tree;
            let published =
                |tx: &TreeTx| Ok::<_, anyhow::Error>(world.bitcoind.confirmed(tx.txid)?.is_some());
            let root = tree.iter().find(|tx| tx.parent_txid == funding.txid);
            // Otherwise it was closed: the closing transaction pays the stock to the LSP.
            if root.map(published).transpose()? == Some(true) {
                let parents: HashSet<Txid> = tree.iter().map(|tx| tx.parent_txid).collect();
                let leaves: Vec<_> = tree.iter().filter(|tx| !parents.contains(&tx.txid)).collect();
                let members: Vec<_> = factory.clients.iter().filter(|c| c.reason.is_none()).collect();
                for leaf in leaves {
                    if !is_settled(world, &tree, leaf)? {
                        let own = members.get(leaf.clients.0..leaf.clients.1).unwrap_or_default();
                        sum += leaf.sat.saturating_sub(own.iter().map(|c| c.capacity_sat).sum());
                    }
                }
            }
        }
    }
    Ok(sum)
}

/// Whether a leaf's last transaction is on the chain, or another one has taken its place: an older state.
fn is_settled(world: &World, tree: &[TreeTx], leaf: &TreeTx) -> Result<bool> {
    let mut tx = leaf;
    if world.bitcoind.confirmed(leaf.txid)?.is_some() {
        return Ok(true);
    }
    loop {
        let spent = OutPoint::new(tx.parent_txid, tx.vout);
        if world.bitcoind.confirmed(tx.parent_txid)?.is_some() {
            return Ok(world.bitcoind.unspent(spent)?.is_none());
        }
        tx = tree
            .iter()
            .find(|parent| parent.txid == tx.parent_txid)
            .ok_or_else(|| anyhow!("{} is not in the tree", tx.parent_txid))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(parties: &[(&str, u64)]) -> Snapshot {
        let parties = parties.iter().map(|(name, held)| ((*name).to_owned(), *held)).collect();
        Snapshot { height: 1, parties }
    }

    fn payment(from: &str, to: &str, amount_msat: u64, fee_msat: u64) -> Settled {
        Settled { from: from.into(), to: to.into(), amount_msat, fee_msat }
    }

    #[test]
    fn payments_move_money_and_the_fee_is_the_lsps() {
        let before = snapshot(&[("a", 1000), ("b", 0), ("lsp", 5)]);
        let after = before.after(&[payment("a", "b", 700, 20), payment("b", "lsp", 100, 0)]).unwrap();
        assert_eq!(after, snapshot(&[("a", 280), ("b", 600), ("lsp", 125)]));
        assert_eq!(after.total(), before.total());
    }

    #[test]
    fn nobody_pays_what_he_has_not_and_strangers_are_refused() {
        let before = snapshot(&[("a", 1000), ("lsp", 5)]);
        assert!(before.after(&[payment("a", "lsp", 1000, 1)]).is_err());
        assert!(before.after(&[payment("a", "c", 1, 0)]).is_err());
    }

    #[test]
    fn only_a_payment_that_succeeded_counts() {
        let payment = Payment {
            payment_hash: String::new(),
            payment_id: None,
            offer_id: None,
            status: "pending".into(),
            direction: None,
            amount_msat: 1,
            fee_msat: 0,
            failure: None,
            claim_by_height: None,
            relayed: None,
        };
        assert!(Settled::new("a", "b", &payment).is_err());
        assert!(Settled::new("a", "b", &Payment { status: "succeeded".into(), ..payment }).is_ok());
    }
}
