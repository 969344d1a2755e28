//! LDK's side of the wallet: change scripts for sweeps, and coins for the bumps of its claims.
//!
//! LDK keeps its claims apart by itself (it remembers which claim has which coin) and spends the coins
//! of a claim again with every higher bump. So coins once lent stay on offer until a confirmed
//! transaction spends them, and nobody else gets them meanwhile.

use std::collections::HashSet;

use bdk_wallet::KeychainKind;
use bitcoin::psbt::Psbt;
use bitcoin::{OutPoint, ScriptBuf, Sequence, Transaction};
use lightning::sign::ChangeDestinationSourceSync;
use lightning::util::wallet_utils::{Utxo, WalletSourceSync};

use super::{Coin, Inner, Wallet};
use crate::error::Error;
use crate::util::lock;

impl Inner {
    /// What LDK may spend: free coins, and those that it has already.
    fn lendable(&self) -> Vec<Coin> {
        let mut coins = self.coins(|o| self.lent.contains_key(o));
        coins.retain(|c| !self.reserved.contains(&c.outpoint));
        coins
    }
}

impl Wallet {
    /// Signs a bump; its coins are LDK's from now on, which is stored before the signature leaves.
    fn sign_bump(&self, psbt: Psbt) -> Result<Transaction, Error> {
        let mut inner = lock(&self.inner);
        let lendable: HashSet<OutPoint> = inner.lendable().into_iter().map(|c| c.outpoint).collect();
        let ours: Vec<OutPoint> = psbt
            .unsigned_tx
            .input
            .iter()
            .map(|i| i.previous_output)
            .filter(|o| inner.bdk.spk_index().txout(*o).is_some())
            .collect();
        // Listed and signed are two calls; somebody may have been faster. LDK comes back.
        if let Some(gone) = ours.iter().find(|o| !lendable.contains(o)) {
            return Err(Error::Wallet(format!("coin {gone} has been used otherwise meanwhile")));
        }
        let tx = self.sign_with(&inner, psbt)?;
        let height = inner.bdk.latest_checkpoint().height();
        let mut changed = false;
        for coin in ours {
            changed |= inner.lent.insert(coin, height) != Some(height);
        }
        if changed {
            self.store_lent(&inner)?;
        }
        Ok(tx)
    }
}

impl ChangeDestinationSourceSync for Wallet {
    fn get_change_destination_script(&self) -> Result<ScriptBuf, ()> {
        self.new_script().map_err(|e| tracing::error!(error = %e, "no sweep script"))
    }
}

impl WalletSourceSync for Wallet {
    fn list_confirmed_utxos(&self) -> Result<Vec<Utxo>, ()> {
        let coins = lock(&self.inner).lendable();
        let utxos = coins.into_iter().map(|coin| Utxo {
            outpoint: coin.outpoint,
            output: coin.txout,
            // empty script_sig (1 byte of base size), then item count, length and signature
            satisfaction_weight: 4 + 1 + 1 + 64,
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        });
        Ok(utxos.collect())
    }

    fn get_prevtx(&self, outpoint: OutPoint) -> Result<Transaction, ()> {
        let inner = lock(&self.inner);
        inner.bdk.get_tx(outpoint.txid).map(|t| t.tx_node.tx.as_ref().clone()).ok_or(())
    }

    fn get_change_script(&self) -> Result<ScriptBuf, ()> {
        let mut inner = lock(&self.inner);
        let script = inner.bdk.next_unused_address(KeychainKind::Internal).script_pubkey();
        self.persist(&mut inner).map_err(|e| tracing::error!(error = %e, "wallet not stored"))?;
        Ok(script)
    }

    fn sign_psbt(&self, psbt: Psbt) -> Result<Transaction, ()> {
        // Anchor inputs are not ours; LDK adds their witnesses itself.
        self.sign_bump(psbt).map_err(|e| tracing::error!(error = %e, "cannot sign"))
    }
}
