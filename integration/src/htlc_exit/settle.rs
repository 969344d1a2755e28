//! The second half: what is on the commitment goes where it belongs, and everybody's money is added up.

use std::collections::HashMap;

use anyhow::{anyhow, bail, ensure, Result};
use bitcoin::{OutPoint, Transaction};

use super::{Scene, CLAIM_PATIENCE, LEAVER, SHARE};
use crate::fees;
use crate::hold::Held;
use crate::ledger::{check_conserved, Settled, Snapshot};
use crate::payments::Party;
use crate::wait::{self, Seen};
use crate::world::PATIENCE;

/// Blocks until LDK takes a timeout on the chain for final.
const FINAL: u32 = 6;
/// Blocks within which a claim that is due confirms.
const CLAIM_WITHIN: u32 = 6;
/// Blocks mined at a time where nothing is due at a known height.
const STRIDE: u32 = 12;

/// The commitment in the chain.
pub(super) struct Commitment {
    pub(super) tx: Transaction,
    pub(super) height: u32,
}

/// What the LSP charges to forward, msat: 1 sat and 100 millionths.
fn forwarding_fee(amount_msat: u64) -> u64 {
    1000 + amount_msat / 10_000
}

/// Worth of a payment's output in the commitment, sat.
fn on_chain_sat(held: &Held) -> u64 {
    let amount = held.order.amount_msat;
    match held.order.from {
        Party::Client(_) => (amount + forwarding_fee(amount)) / 1000,
        _ => amount / 1000,
    }
}

impl Scene {
    /// Every payment's output is spent by who is due, and payer and payee agree.
    pub(super) fn settle(&mut self, commitment: &Commitment) -> Result<()> {
        let [claimed_in, expired_in] = self.incoming.clone();
        let [claimed_out, expired_out] = self.outgoing.clone();
        let spent = self.spent(commitment, &claimed_in, true)?;
        ensure!(spent <= self.expiry(&claimed_in), "claimed at {spent}, too late: {claimed_in:?}");
        self.off_the_ordinary_channel()?;
        self.spent(commitment, &claimed_out, true)?;

        let expiry = self.expiry(&expired_in);
        self.advance(expiry)?;
        self.spent(commitment, &expired_in, false)?;
        self.advance(self.world.bitcoind.height()? + FINAL)?;
        expired_in.given_back(&self.world)?;
        self.off_the_ordinary_channel()?;

        // Its expiry is known to the client alone.
        let outpoint = commitment.output(&expired_out)?;
        let end = self.world.bitcoind.height()? + 2 * (self.claim_budget + 144);
        while self.spender(outpoint, commitment.height)?.is_none() {
            let height = self.world.bitcoind.height()?;
            ensure!(height < end, "no timeout of {expired_out:?} at {height}");
            self.advance(height + STRIDE)?;
        }
        self.spent(commitment, &expired_out, false)?;
        ensure!(self.given_back, "the ordinary node still has {expired_out:?}");
        self.advance(self.world.bitcoind.height()? + FINAL)?;
        expired_out.given_back(&self.world)
    }

    /// The transaction that spends an output, and whether it is confirmed.
    fn spender(&self, outpoint: OutPoint, since: u32) -> Result<Option<(Transaction, Option<u32>)>> {
        let bitcoind = &self.world.bitcoind;
        let spends = |tx: &Transaction| tx.input.iter().any(|input| input.previous_output == outpoint);
        if bitcoind.unspent(outpoint)?.is_some() {
            for txid in bitcoind.mempool()? {
                if let Some(tx) = bitcoind.transaction(txid)?.filter(spends) {
                    return Ok(Some((tx, None)));
                }
            }
            return Ok(None);
        }
        for height in since..=bitcoind.height()? {
            if let Some(tx) = bitcoind.block(height)?.into_iter().find(spends) {
                return Ok(Some((tx, Some(height))));
            }
        }
        bail!("{outpoint} is neither unspent nor spent since {since}")
    }

    /// Waits until a payment's output is spent in the chain, by preimage or not. Returns the height.
    fn spent(&self, commitment: &Commitment, held: &Held, by_preimage: bool) -> Result<u32> {
        let outpoint = commitment.output(held)?;
        let end = self.world.bitcoind.height()? + CLAIM_WITHIN;
        let (tx, height) = loop {
            let seen = wait::until("a claim", CLAIM_PATIENCE, || {
                Ok(match self.spender(outpoint, commitment.height)? {
                    Some(found) => Seen::Done(found),
                    None => Seen::not_yet("unspent"),
                })
            });
            match seen {
                Ok((tx, Some(height))) => break (tx, height),
                Err(error) if self.world.bitcoind.height()? >= end => {
                    return Err(error.context(format!("nobody claims {held:?}")))
                }
                _ => {
                    self.world.bitcoind.mine(1)?;
                    self.sync()?;
                }
            }
        };
        let preimage = hex::decode(&held.preimage)?;
        let input = tx.input.iter().find(|input| input.previous_output == outpoint);
        let input = input.ok_or_else(|| anyhow!("{tx:?} does not spend {outpoint}"))?;
        let shown = input.witness.iter().any(|element| element == preimage);
        ensure!(shown == by_preimage, "preimage {shown}, expected {by_preimage}: {tx:?} for {held:?}");
        let expiry = tx.lock_time.to_consensus_u32();
        ensure!(by_preimage || expiry > commitment.height, "no timeout: {tx:?}");
        if by_preimage {
            held.paid(&self.world)?;
        }
        println!("{} of {} msat settled at {height}", held.payment_hash, held.order.amount_msat);
        Ok(height)
    }

    /// Mines until all money is in wallets: what each party had, the payments, and the fees that it paid itself.
    pub(super) fn sum_up(&mut self, commitment: &Commitment) -> Result<()> {
        let payments = [self.incoming[0].paid(&self.world)?, self.outgoing[0].paid(&self.world)?];
        let known = self.owners(commitment)?;
        let end = self.world.bitcoind.height()? + 2 * 144;
        loop {
            let arrived = wait::until("all money in wallets", PATIENCE, || {
                let mut moving = !self.world.bitcoind.mempool()?.is_empty();
                for daemon in [&*self.world.lsp, self.world.client(LEAVER)?] {
                    let balance = daemon.balance()?;
                    moving |= balance.lightning.pending_sweep_sat > 0 || balance.onchain.unconfirmed_sat > 0;
                }
                if !moving {
                    self.check(&payments, &known)?;
                }
                Ok(Seen::Done(!moving))
            })?;
            let height = self.world.bitcoind.height()?;
            if arrived {
                break;
            }
            ensure!(height < end, "money still on its way at {height}");
            self.advance(height + STRIDE)?;
        }
        let end = self.world.bitcoind.height()? + STRIDE;
        self.advance(end)?;
        wait::until_value(
            "the exit to be done",
            PATIENCE,
            || self.exit(),
            |exit| exit.as_ref().is_some_and(|exit| exit.phase == "done"),
        )?;
        Ok(())
    }

    fn check(&self, payments: &[Settled], known: &HashMap<OutPoint, String>) -> Result<()> {
        let now = Snapshot::take(&self.world)?;
        let mut due = self.before.after(payments)?;
        let client = self.world.client(LEAVER)?.name();
        let fees = fees::by_party(&self.world, self.before.height + 1, now.height, known, client)?;
        for (party, sat) in &fees {
            let held = due.parties.get_mut(party).ok_or_else(|| anyhow!("{party} is not in the ledger"))?;
            *held -= sat * 1000;
        }
        ensure!(now.parties == due.parties, "held {:?}, due {:?}, fees {fees:?}", now.parties, due.parties);
        check_conserved(&self.world, &self.before, &now)?;
        println!("all have their due at {}; fees, sat: {fees:?}", now.height);
        Ok(())
    }

    /// Whose the outputs of the commitment are.
    fn owners(&self, commitment: &Commitment) -> Result<HashMap<OutPoint, String>> {
        let client = self.world.client(LEAVER)?.name();
        let [claimed_in, expired_in] = &self.incoming;
        let [claimed_out, expired_out] = &self.outgoing;
        let client_sat = SHARE - on_chain_sat(claimed_out) - on_chain_sat(expired_out);
        let lsp_sat = SHARE - on_chain_sat(claimed_in) - on_chain_sat(expired_in);
        let worth = [
            (client_sat, client),
            (on_chain_sat(claimed_in), client),
            (on_chain_sat(expired_out), client),
            (lsp_sat, "lsp"),
            (on_chain_sat(expired_in), "lsp"),
            (on_chain_sat(claimed_out), "lsp"),
        ];
        let owner = |(sat, party): (u64, &str)| Ok((commitment.worth(sat)?, party.to_owned()));
        worth.into_iter().map(owner).collect()
    }
}

impl Commitment {
    /// The one output of this worth, sat.
    fn worth(&self, sat: u64) -> Result<OutPoint> {
        let vout = self.tx.output.iter().position(|output| output.value.to_sat() == sat);
        let vout = vout.ok_or_else(|| anyhow!("no output of {sat} sat in {:?}", self.tx))?;
        Ok(OutPoint::new(self.tx.compute_txid(), u32::try_from(vout)?))
    }

    fn output(&self, held: &Held) -> Result<OutPoint> {
        self.worth(on_chain_sat(held))
    }
}
