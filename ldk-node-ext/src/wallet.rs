//! The on-chain wallet: `bdk_wallet` with its change sets in our store.
//!
//! It pays for funding transactions and for the children that carry tree transactions into a block,
//! receives sweeps and cooperative closes, and is LDK's coin source for anchor bumps. Addresses are
//! P2TR (BIP 86). Change sets are appended, one record each, and merged into one at start, so that a
//! write costs what has changed and not what there is.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use bdk_wallet::chain::{BlockId, CheckPoint, Merge};
use bdk_wallet::template::Bip86;
use bdk_wallet::{ChangeSet, KeychainKind, LocalOutput, Update, Wallet as BdkWallet};
use bitcoin::bip32::Xpriv;
use bitcoin::psbt::{self, Psbt};
use bitcoin::secp256k1::{All, Secp256k1};
use bitcoin::{Address, Amount, Block, FeeRate, Network, OutPoint, ScriptBuf, Sequence, Transaction, Weight};
use lightning::chain::BlockLocator;
use lightning::sign::ChangeDestinationSourceSync;
use lightning::util::persist::KVStoreSync;
use lightning::util::wallet_utils::{Utxo, WalletSourceSync};

use crate::api::OnchainBalance;
use crate::error::Error;
use crate::store::{records, Store};
use crate::util::{lock, unix_now};

const NAMESPACE: &str = "wallet";
const VERSION: u32 = 1;
/// Largest child of a version 3 transaction (BIP 431), vB.
const TRUC_CHILD_MAX_VB: u64 = 1_000;
/// Dust limit of a P2TR output, sat.
const DUST_SAT: u64 = 330;

struct Inner {
    bdk: BdkWallet,
    next_delta: u64,
    /// Coins that a funding transaction not yet broadcast spends.
    reserved: HashSet<OutPoint>,
}

/// The node's on-chain wallet. Every change is on disk before a method returns.
pub struct Wallet {
    inner: Mutex<Inner>,
    root: Xpriv,
    secp: Secp256k1<All>,
    store: Arc<Store>,
    network: Network,
}

/// A child transaction that pays for its zero-fee parent.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    pub(crate) tx: Transaction,
    pub(crate) fee: Amount,
}

fn wallet_error(e: impl std::fmt::Display) -> Error {
    Error::Wallet(e.to_string())
}

impl Wallet {
    /// Opens the wallet; a new one starts at `tip`, since nobody can have paid it before.
    pub(crate) fn open(
        root: Xpriv,
        network: Network,
        store: Arc<Store>,
        tip: BlockLocator,
    ) -> Result<Self, Error> {
        let deltas = records::all::<ChangeSet>(&*store, NAMESPACE, VERSION)?;
        let external = Bip86(root, KeychainKind::External);
        let internal = Bip86(root, KeychainKind::Internal);
        let mut merged = ChangeSet::default();
        let next_delta =
            deltas.last().and_then(|(k, _)| k.parse::<u64>().ok()).map_or(0, |n| n.saturating_add(1));
        let keys: Vec<String> = deltas.iter().map(|(k, _)| k.clone()).collect();
        for (_, delta) in deltas {
            merged.merge(delta);
        }
        let loaded = BdkWallet::load()
            .descriptor(KeychainKind::External, Some(external.clone()))
            .descriptor(KeychainKind::Internal, Some(internal.clone()))
            .check_network(network)
            .load_wallet_no_persist(merged.clone())
            .map_err(wallet_error)?;
        let existed = loaded.is_some();
        let bdk = match loaded {
            Some(w) => w,
            None => {
                let mut w = BdkWallet::create(external, internal)
                    .network(network)
                    .create_wallet_no_persist()
                    .map_err(wallet_error)?;
                if tip.height > 0 {
                    let genesis = w.latest_checkpoint().block_id();
                    let here = BlockId { height: tip.height, hash: tip.block_hash };
                    let chain = CheckPoint::from_block_ids([genesis, here])
                        .map_err(|_| Error::Wallet("tip is below genesis".into()))?;
                    w.apply_update(Update { chain: Some(chain), ..Default::default() })
                        .map_err(wallet_error)?;
                }
                w
            }
        };
        let wallet = Self {
            inner: Mutex::new(Inner { bdk, next_delta, reserved: HashSet::new() }),
            root,
            secp: Secp256k1::new(),
            store,
            network,
        };
        if existed && keys.len() > 1 {
            // One write replaces all: the merged set goes under the next key first, and merging a set
            // twice changes nothing, so a crash in between is harmless.
            let mut inner = lock(&wallet.inner);
            records::put(&*wallet.store, NAMESPACE, &format!("{:020}", inner.next_delta), VERSION, &merged)?;
            inner.next_delta = inner.next_delta.saturating_add(1);
            for key in keys {
                wallet.store.remove(NAMESPACE, "", &key, true).map_err(|e| Error::Store(e.to_string()))?;
            }
        }
        wallet.persist(&mut lock(&wallet.inner))?;
        Ok(wallet)
    }

    fn persist(&self, inner: &mut Inner) -> Result<(), Error> {
        let Some(delta) = inner.bdk.staged().cloned() else { return Ok(()) };
        records::put(&*self.store, NAMESPACE, &format!("{:020}", inner.next_delta), VERSION, &delta)?;
        inner.next_delta = inner.next_delta.saturating_add(1);
        inner.bdk.take_staged();
        Ok(())
    }

    /// The block up to which the wallet is synchronized.
    pub(crate) fn best_block(&self) -> BlockLocator {
        let tip = lock(&self.inner).bdk.latest_checkpoint();
        BlockLocator::new(tip.hash(), tip.height())
    }

    /// Takes in a block. A reorganization needs no call of its own: the next block that connects
    /// lower replaces what was above.
    pub(crate) fn apply_block(&self, block: &Block, height: u32) {
        let mut inner = lock(&self.inner);
        if let Err(e) = inner.bdk.apply_block(block, height) {
            tracing::error!(height, error = %e, "block does not connect to the wallet's chain");
            return;
        }
        for tx in &block.txdata {
            for input in &tx.input {
                inner.reserved.remove(&input.previous_output);
            }
        }
        if let Err(e) = self.persist(&mut inner) {
            // The block stays staged and goes to disk with the next change; after a crash the wallet
            // is behind and reads the block again.
            tracing::error!(height, error = %e, "wallet not stored");
        }
    }

    /// Tells the wallet of a transaction of ours that bitcoind has accepted.
    pub(crate) fn saw_unconfirmed(&self, tx: &Transaction) {
        let mut inner = lock(&self.inner);
        inner.bdk.apply_unconfirmed_txs([(Arc::new(tx.clone()), unix_now())]);
        if let Err(e) = self.persist(&mut inner) {
            tracing::error!(error = %e, "wallet not stored");
        }
    }

    /// Tells the wallet that a transaction of ours left the mempool for good (replaced).
    pub(crate) fn evicted(&self, txid: bitcoin::Txid) {
        let mut inner = lock(&self.inner);
        inner.bdk.apply_evicted_txs([(txid, unix_now())]);
        if let Err(e) = self.persist(&mut inner) {
            tracing::error!(error = %e, "wallet not stored");
        }
    }

    /// A new receiving script.
    pub(crate) fn new_script(&self) -> Result<ScriptBuf, Error> {
        let mut inner = lock(&self.inner);
        let script = inner.bdk.reveal_next_address(KeychainKind::External).script_pubkey();
        self.persist(&mut inner)?;
        Ok(script)
    }

    /// A new receiving address.
    pub(crate) fn new_address(&self) -> Result<Address, Error> {
        Address::from_script(&self.new_script()?, self.network).map_err(wallet_error)
    }

    /// Balance.
    pub(crate) fn balance(&self) -> OnchainBalance {
        let inner = lock(&self.inner);
        let b = inner.bdk.balance();
        let reserved = inner
            .reserved
            .iter()
            .filter_map(|o| inner.bdk.get_utxo(*o))
            .map(|u| u.txout.value.to_sat())
            .sum();
        OnchainBalance {
            confirmed_sat: b.confirmed.to_sat(),
            unconfirmed_sat: (b.trusted_pending + b.untrusted_pending + b.immature).to_sat(),
            reserved_sat: reserved,
        }
    }

    /// Builds a transaction that pays `value` to `script` from confirmed segwit coins, unsigned: its
    /// txid is final already. The coins are set aside until [`Self::release`] or confirmation.
    ///
    /// # Errors
    /// [`Error::InsufficientFunds`], [`Error::Wallet`].
    pub(crate) fn build_payment(
        &self,
        script: ScriptBuf,
        value: Amount,
        feerate: FeeRate,
    ) -> Result<Psbt, Error> {
        let mut inner = lock(&self.inner);
        let reserved: Vec<OutPoint> = inner.reserved.iter().copied().collect();
        let available: u64 = inner
            .bdk
            .list_unspent()
            .filter(|u| u.chain_position.is_confirmed() && !reserved.contains(&u.outpoint))
            .map(|u| u.txout.value.to_sat())
            .sum();
        let mut builder = inner.bdk.build_tx();
        builder.add_recipient(script, value).fee_rate(feerate).exclude_unconfirmed().unspendable(reserved);
        let psbt = builder.finish().map_err(|e| match e {
            bdk_wallet::error::CreateTxError::CoinSelection(shortage) => {
                Error::InsufficientFunds { needed_sat: shortage.needed.to_sat(), available_sat: available }
            }
            other => wallet_error(other),
        })?;
        inner.reserved.extend(psbt.unsigned_tx.input.iter().map(|i| i.previous_output));
        self.persist(&mut inner)?;
        Ok(psbt)
    }

    /// Gives the coins of a transaction that will never be broadcast back.
    pub(crate) fn release(&self, tx: &Transaction) {
        let mut inner = lock(&self.inner);
        for input in &tx.input {
            inner.reserved.remove(&input.previous_output);
        }
    }

    /// Sets the coins of a stored, not yet confirmed transaction aside again after a restart.
    pub(crate) fn reserve(&self, tx: &Transaction) {
        lock(&self.inner).reserved.extend(tx.input.iter().map(|i| i.previous_output));
    }

    /// Signs all inputs that are ours.
    ///
    /// # Errors
    /// [`Error::Wallet`] if one of them could not be signed.
    pub(crate) fn sign(&self, mut psbt: Psbt) -> Result<Transaction, Error> {
        let inner = lock(&self.inner);
        let mut ours = Vec::new();
        for (i, input) in psbt.unsigned_tx.input.iter().enumerate() {
            let Some(coin) = inner.bdk.get_utxo(input.previous_output) else { continue };
            let Some(slot) = psbt.inputs.get_mut(i) else { continue };
            // Where the key comes from; a transaction that LDK built does not say.
            slot.combine(inner.bdk.get_psbt_input(coin, None, true).map_err(wallet_error)?);
            ours.push(i);
        }
        // Inputs that are not ours cannot be signed; only ours are looked at below.
        let _ = psbt.sign(&self.root, &self.secp);
        inner.bdk.try_finalize_psbt(&mut psbt).map_err(wallet_error)?;
        if ours.iter().any(|i| psbt.inputs.get(*i).is_none_or(|input| input.final_script_witness.is_none())) {
            return Err(Error::Wallet("an input could not be signed".into()));
        }
        Ok(psbt.extract_tx_unchecked_fee_rate())
    }

    /// Makes the version 3 child that pays for a zero-fee parent: it spends the parent's pay-to-anchor
    /// output and confirmed coins of ours, and returns the rest to us (BIP 431: at most 1000 vB, one
    /// unconfirmed parent).
    ///
    /// # Errors
    /// [`Error::InsufficientFunds`] with the amount that one coin would need to have.
    pub(crate) fn child_for(
        &self,
        parent: &Transaction,
        anchor_vout: u32,
        parent_fee: Amount,
        feerate: FeeRate,
        min_fee: Amount,
    ) -> Result<Child, Error> {
        let anchor = OutPoint { txid: parent.compute_txid(), vout: anchor_vout };
        let anchor_out = parent
            .output
            .get(anchor_vout as usize)
            .cloned()
            .ok_or_else(|| Error::Wallet("parent has no such anchor output".into()))?;
        let mut inner = lock(&self.inner);
        let mut coins: Vec<LocalOutput> = inner
            .bdk
            .list_unspent()
            .filter(|u| u.chain_position.is_confirmed() && !inner.reserved.contains(&u.outpoint))
            .collect();
        coins.sort_by_key(|u| std::cmp::Reverse(u.txout.value));
        let available: u64 = coins.iter().map(|u| u.txout.value.to_sat()).sum();
        // Weights (BIP 141): 10.5 vB of overhead, 41 vB for the anchor input with its empty witness,
        // 57.5 vB for a P2TR key spend, 43 vB for the P2TR output.
        let child_vb = |inputs: u64| (105 + 410 + 575 * inputs + 430).div_ceil(10) + 1;
        let fee_for = |inputs: u64| {
            let package = feerate * (parent.weight() + Weight::from_vb_unchecked(child_vb(inputs)));
            package.checked_sub(parent_fee).unwrap_or(Amount::ZERO).max(min_fee)
        };
        let mut chosen: Vec<LocalOutput> = Vec::new();
        let mut sum = anchor_out.value;
        // The smallest single coin that suffices, else the largest ones together.
        if let Some(one) = coins.iter().rev().find(|u| {
            (u.txout.value + anchor_out.value).to_sat() >= fee_for(1).to_sat().saturating_add(DUST_SAT)
        }) {
            sum += one.txout.value;
            chosen.push(one.clone());
        } else {
            for coin in coins {
                sum += coin.txout.value;
                chosen.push(coin);
                if sum.to_sat() >= fee_for(chosen.len() as u64).to_sat().saturating_add(DUST_SAT) {
                    break;
                }
            }
        }
        let inputs = chosen.len() as u64;
        let fee = fee_for(inputs.max(1));
        let needed = fee.to_sat().saturating_add(DUST_SAT);
        if sum.to_sat() < needed || child_vb(inputs) > TRUC_CHILD_MAX_VB {
            return Err(Error::InsufficientFunds { needed_sat: needed, available_sat: available });
        }
        let change = inner.bdk.next_unused_address(KeychainKind::Internal).script_pubkey();
        let mut builder = inner.bdk.build_tx();
        let input = psbt::Input { witness_utxo: Some(anchor_out), ..Default::default() };
        builder
            .version(3)
            .fee_absolute(fee)
            .manually_selected_only()
            .only_witness_utxo()
            .drain_to(change)
            .add_foreign_utxo_with_sequence(anchor, input, Weight::ZERO, Sequence::ENABLE_RBF_NO_LOCKTIME)
            .map_err(wallet_error)?;
        for coin in &chosen {
            builder.add_utxo(coin.outpoint).map_err(wallet_error)?;
        }
        let psbt = builder.finish().map_err(wallet_error)?;
        self.persist(&mut inner)?;
        drop(inner);
        Ok(Child { tx: self.sign(psbt)?, fee })
    }
}

impl ChangeDestinationSourceSync for Wallet {
    fn get_change_destination_script(&self) -> Result<ScriptBuf, ()> {
        self.new_script().map_err(|e| tracing::error!(error = %e, "no sweep script"))
    }
}

impl WalletSourceSync for Wallet {
    fn list_confirmed_utxos(&self) -> Result<Vec<Utxo>, ()> {
        let inner = lock(&self.inner);
        let coins = inner
            .bdk
            .list_unspent()
            .filter(|u| u.chain_position.is_confirmed() && !inner.reserved.contains(&u.outpoint))
            .map(|u| Utxo {
                outpoint: u.outpoint,
                output: u.txout,
                // empty script_sig (1 byte of base size), then item count, length and signature
                satisfaction_weight: 4 + 1 + 1 + 64,
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            })
            .collect();
        Ok(coins)
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
        self.sign(psbt).map_err(|e| tracing::error!(error = %e, "cannot sign"))
    }
}
