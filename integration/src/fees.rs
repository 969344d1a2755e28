//! Who paid the fees in the chain: each transaction is traced back to the coin that pays for it.

use std::collections::{BTreeMap, HashMap};

use anyhow::{anyhow, Result};
use bitcoin::{OutPoint, Transaction, Txid};

use crate::world::{CLIENT_COIN, LSP_COINS, LSP_FUNDS};
use crate::World;

/// Script of a pay-to-anchor output: anybody spends it, so it says nothing of who pays.
const PAY_TO_ANCHOR: [u8; 4] = [0x51, 0x02, 0x4e, 0x73];

/// Looks into the chain for the owner of coins.
struct Tracer<'a> {
    world: &'a World,
    known: &'a HashMap<OutPoint, String>,
    client: &'a str,
    transactions: HashMap<Txid, Transaction>,
}

/// Fees in the blocks `first..=last` by party, sat. `known` says whose some outputs are; other coins are traced back to
/// those that the LSP and its clients began with. Of the clients only `client` may have paid anything.
///
/// # Errors
/// If nobody can be found who paid a fee.
pub fn by_party(
    world: &World,
    first: u32,
    last: u32,
    known: &HashMap<OutPoint, String>,
    client: &str,
) -> Result<BTreeMap<String, u64>> {
    let mut tracer = Tracer { world, known, client, transactions: HashMap::new() };
    let mut fees = BTreeMap::new();
    for height in first..=last {
        for tx in world.bitcoind.block(height)?.into_iter().skip(1) {
            let mut fee = 0;
            for input in &tx.input {
                fee += tracer.value(input.previous_output)?;
            }
            fee -= tx.output.iter().map(|output| output.value.to_sat()).sum::<u64>();
            if fee > 0 {
                let owner = tracer.payer(&tx)?;
                let owner = owner.ok_or_else(|| anyhow!("nobody known paid {fee} sat for {tx:?}"))?;
                *fees.entry(owner).or_default() += fee;
            }
        }
    }
    Ok(fees)
}

impl Tracer<'_> {
    fn transaction(&mut self, txid: Txid) -> Result<Transaction> {
        if let Some(tx) = self.transactions.get(&txid) {
            return Ok(tx.clone());
        }
        let tx = self.world.bitcoind.transaction(txid)?.ok_or_else(|| anyhow!("no transaction {txid}"))?;
        self.transactions.insert(txid, tx.clone());
        Ok(tx)
    }

    fn output(&mut self, outpoint: OutPoint) -> Result<bitcoin::TxOut> {
        let tx = self.transaction(outpoint.txid)?;
        tx.output.get(outpoint.vout as usize).cloned().ok_or_else(|| anyhow!("no output {outpoint}"))
    }

    fn value(&mut self, outpoint: OutPoint) -> Result<u64> {
        Ok(self.output(outpoint)?.value.to_sat())
    }

    /// Whose coin pays for a transaction: its first input that tells.
    fn payer(&mut self, tx: &Transaction) -> Result<Option<String>> {
        for input in &tx.input {
            if let Some(owner) = self.owner(input.previous_output)? {
                return Ok(Some(owner));
            }
        }
        Ok(None)
    }

    fn owner(&mut self, outpoint: OutPoint) -> Result<Option<String>> {
        if let Some(owner) = self.known.get(&outpoint) {
            return Ok(Some(owner.clone()));
        }
        let tx = self.transaction(outpoint.txid)?;
        if tx.is_coinbase() {
            return Ok(None);
        }
        let output = self.output(outpoint)?;
        if output.script_pubkey.as_bytes() == PAY_TO_ANCHOR {
            return Ok(None);
        }
        match output.value.to_sat() {
            CLIENT_COIN => Ok(Some(self.client.to_owned())),
            sat if sat == LSP_FUNDS / LSP_COINS => Ok(Some("lsp".to_owned())),
            _ => self.payer(&tx),
        }
    }
}
