//! The on-chain wallet: `bdk_wallet` with its change sets in our store.
//!
//! It pays for funding transactions and for the children that carry tree transactions into a block,
//! receives sweeps and cooperative closes, and is LDK's coin source for anchor bumps. Addresses are
//! P2TR (BIP 86). Change sets are appended, one record each, and merged into one at start, so that a
//! write costs what has changed and not what there is.
//!
//! Three users share the coins, and no coin serves two of them at once: a coin is free, or *reserved*
//! for one of our own transactions that bitcoind does not have yet, or *lent* to LDK's fee bumps.

mod child;
mod ldk;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bdk_wallet::chain::{BlockId, CanonicalizationParams, CheckPoint, Merge};
use bdk_wallet::template::Bip86;
use bdk_wallet::{ChangeSet, KeychainKind, LocalOutput, Update, Wallet as BdkWallet};
use bitcoin::absolute::LockTime;
use bitcoin::bip32::Xpriv;
use bitcoin::psbt::Psbt;
use bitcoin::secp256k1::{All, Secp256k1};
use bitcoin::{Address, Amount, Block, FeeRate, Network, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use factory_core::faults::switch;
use lightning::chain::BlockLocator;
use lightning::util::persist::KVStoreSync;

pub(crate) use child::{Child, ChildRequest, Rival, MAX_SPLIT};

use crate::api::OnchainBalance;
use crate::error::Error;
use crate::store::{records, Store};
use crate::util::{lock, unix_now};

const NAMESPACE: &str = "wallet";
const VERSION: u32 = 1;
/// Where the lent coins are stored: one record.
const LENT_NAMESPACE: &str = "wallet_lent";
const LENT_KEY: &str = "coins";
/// A coin that LDK has not signed with for so many blocks is ours again. LDK repeats every pending claim
/// after 15 blocks at the latest, and every 30 seconds while it runs.
const LENT_FOR_BLOCKS: u32 = 18;

struct Inner {
    bdk: BdkWallet,
    next_delta: u64,
    /// Coins that a transaction of ours not yet broadcast spends.
    reserved: HashSet<OutPoint>,
    /// Coins in LDK's fee bumps, with the height of the last signature. A bump of the same claim spends
    /// the same coin again, so being spent by an unconfirmed transaction does not use them up.
    lent: HashMap<OutPoint, u32>,
}

/// A confirmed coin of ours.
#[derive(Clone, Debug)]
struct Coin {
    outpoint: OutPoint,
    txout: TxOut,
}

impl Inner {
    /// Confirmed coins that no transaction spends; one that only an unconfirmed transaction spends is
    /// among them if `respend` says so.
    fn coins(&self, respend: impl Fn(&OutPoint) -> bool) -> Vec<Coin> {
        let tip = self.bdk.latest_checkpoint().block_id();
        let ours = self.bdk.spk_index().outpoints().iter().copied();
        self.bdk
            .tx_graph()
            .filter_chain_txouts(self.bdk.local_chain(), tip, CanonicalizationParams::default(), ours)
            .map(|(_, out)| out)
            // Whether a confirmed transaction spends it is looked at here, too.
            .filter(|out| out.is_confirmed_and_spendable(tip.height))
            .filter(|out| out.spent_by.is_none() || respend(&out.outpoint))
            .map(|out| Coin { outpoint: out.outpoint, txout: out.txout })
            .collect()
    }

    /// Whether somebody else among the wallet's users has this coin.
    fn taken(&self, outpoint: &OutPoint) -> bool {
        self.reserved.contains(outpoint) || self.lent.contains_key(outpoint)
    }

    /// Notes an unconfirmed transaction. bdk believes the transaction seen last, and only if it was seen
    /// after it was evicted, in whole seconds: so time moves on here by one where the clock has not.
    fn saw(&mut self, tx: &Transaction) {
        let txid = tx.compute_txid();
        if self.bdk.get_tx(txid).is_some() {
            return;
        }
        let graph = self.bdk.tx_graph();
        let evicted = graph.get_last_evicted(txid);
        let rivals = graph.direct_conflicts(tx).filter_map(|(_, t)| graph.get_tx_node(t)?.last_seen).max();
        let after = evicted.max(rivals).map_or(0, |t| t.saturating_add(1));
        self.bdk.apply_unconfirmed_txs([(Arc::new(tx.clone()), unix_now().max(after))]);
    }

    /// Takes back unconfirmed transactions; confirmed and unknown ones are left alone. One that does not count because
    /// of another transaction is taken back, too: it would count again if that one is gone after a reorganisation. (bdk's
    /// own call leaves those out.)
    fn evict(&mut self, txids: &[Txid]) {
        let mut update = Update::default();
        for txid in txids {
            let confirmed = self.bdk.get_tx(*txid).is_some_and(|t| t.chain_position.is_confirmed());
            let Some(node) = self.bdk.tx_graph().get_tx_node(*txid).filter(|_| !confirmed) else { continue };
            update.tx_update.evicted_ats.insert((*txid, unix_now().max(node.last_seen.unwrap_or(0))));
        }
        if let Err(e) = self.bdk.apply_update(update) {
            tracing::error!(error = %e, "unconfirmed transactions not taken back");
        }
    }

    /// Transactions that spend one of these coins, whether they count at present or not.
    fn spenders(&self, coins: &HashMap<OutPoint, u32>) -> Vec<Txid> {
        self.bdk
            .tx_graph()
            .full_txs()
            .filter(|t| t.tx.input.iter().any(|i| coins.contains_key(&i.previous_output)))
            .map(|t| t.txid)
            .collect()
    }

    /// Outpoints that transactions above a height spend.
    fn spent_above(&self, height: u32) -> HashSet<OutPoint> {
        self.bdk
            .transactions()
            .filter(|t| t.chain_position.confirmation_height_upper_bound().is_some_and(|h| h > height))
            .flat_map(|t| t.tx_node.tx.input.iter().map(|i| i.previous_output).collect::<Vec<_>>())
            .collect()
    }
}

/// The node's on-chain wallet. Every change is on disk before a method returns.
pub struct Wallet {
    inner: Mutex<Inner>,
    root: Xpriv,
    secp: Secp256k1<All>,
    store: Arc<Store>,
    network: Network,
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
            .map_err(|e| Error::Wallet(format!("the seed does not belong to this store: {e}")))?;
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
        let lent: Vec<(OutPoint, u32)> =
            records::get(&*store, LENT_NAMESPACE, LENT_KEY, VERSION)?.unwrap_or_default();
        let lent = lent.into_iter().collect();
        let wallet = Self {
            inner: Mutex::new(Inner { bdk, next_delta, reserved: HashSet::new(), lent }),
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

    fn store_lent(&self, inner: &Inner) -> Result<(), Error> {
        let list: Vec<(OutPoint, u32)> = inner.lent.iter().map(|(o, h)| (*o, *h)).collect();
        records::put(&*self.store, LENT_NAMESPACE, LENT_KEY, VERSION, &list)
    }

    /// The block up to which the wallet is synchronized.
    pub(crate) fn best_block(&self) -> BlockLocator {
        let tip = lock(&self.inner).bdk.latest_checkpoint();
        BlockLocator::new(tip.hash(), tip.height())
    }

    /// Takes in a block. A transaction of ours that lost an input to one in it (an anchor belongs to
    /// everybody) gives its coins back by itself. A reorganization needs no call of its own: the next
    /// block that connects lower replaces what was above.
    pub(crate) fn apply_block(&self, block: &Block, height: u32) {
        let mut inner = lock(&self.inner);
        if let Err(e) = inner.bdk.apply_block(block, height) {
            tracing::error!(height, error = %e, "block does not connect to the wallet's chain");
            return;
        }
        for input in block.txdata.iter().flat_map(|tx| &tx.input) {
            inner.reserved.remove(&input.previous_output);
        }
        self.take_back(&mut inner, height);
        if let Err(e) = self.persist(&mut inner) {
            // The block stays staged and goes to disk with the next change; after a crash the wallet
            // is behind and reads the block again.
            tracing::error!(height, error = %e, "wallet not stored");
        }
    }

    /// Takes back the coins that LDK has stopped signing with: their claims are settled or given up, and
    /// what still spends them without being confirmed never will be. A coin that a young block spends is
    /// kept in mind: a reorganisation may give its claim to somebody else.
    fn take_back(&self, inner: &mut Inner, height: u32) {
        let is_old = |at: u32| at.saturating_add(LENT_FOR_BLOCKS) < height;
        if !inner.lent.values().any(|at| is_old(*at)) {
            return;
        }
        let young = inner.spent_above(height.saturating_sub(LENT_FOR_BLOCKS));
        let (old, lent): (HashMap<_, _>, HashMap<_, _>) =
            inner.lent.drain().partition(|(coin, at)| is_old(*at) && !young.contains(coin));
        inner.lent = lent;
        if old.is_empty() {
            return;
        }
        let lost = inner.spenders(&old);
        inner.evict(&lost);
        if let Err(e) = self.store_lent(inner) {
            tracing::error!(height, error = %e, "lent coins not stored");
        }
    }

    /// Tells the wallet of a transaction of ours that bitcoind has accepted. Writes nothing if it knows.
    pub(crate) fn saw_unconfirmed(&self, tx: &Transaction) {
        let mut inner = lock(&self.inner);
        inner.saw(tx);
        if let Err(e) = self.persist(&mut inner) {
            tracing::error!(error = %e, "wallet not stored");
        }
    }

    /// Tells the wallet that an unconfirmed transaction of ours left the mempool for good (replaced).
    pub(crate) fn evicted(&self, txid: Txid) {
        let mut inner = lock(&self.inner);
        inner.evict(&[txid]);
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

    /// A receiving address that nobody has paid to yet: the same one until somebody does.
    pub(crate) fn unused_address(&self) -> Result<Address, Error> {
        let mut inner = lock(&self.inner);
        let address = inner.bdk.next_unused_address(KeychainKind::External).address;
        self.persist(&mut inner)?;
        Ok(address)
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

    /// Confirmed coins that nobody among the wallet's users has: how many, and their sum in sat.
    pub(crate) fn free_coins(&self) -> (usize, u64) {
        let inner = lock(&self.inner);
        let free: Vec<u64> = inner
            .coins(|_| false)
            .into_iter()
            .filter(|c| !inner.taken(&c.outpoint))
            .map(|c| c.txout.value.to_sat())
            .collect();
        (free.len(), free.iter().sum())
    }

    /// All coins of this wallet, whoever has them at the moment.
    pub(crate) fn coin_count(&self) -> usize {
        lock(&self.inner).bdk.list_unspent().count()
    }

    /// Whether a transaction is confirmed, or in the mempool as far as this wallet knows.
    pub(crate) fn knows(&self, txid: Txid) -> bool {
        lock(&self.inner).bdk.get_tx(txid).is_some()
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
        let taken: Vec<OutPoint> = inner.reserved.iter().chain(inner.lent.keys()).copied().collect();
        let free = inner.coins(|_| false).into_iter().filter(|c| !inner.taken(&c.outpoint));
        let available: u64 = free.map(|c| c.txout.value.to_sat()).sum();
        let mut builder = inner.bdk.build_tx();
        // In this order: `unspendable` forgets what was excluded before it.
        builder.add_recipient(script, value).fee_rate(feerate).unspendable(taken);
        if !switch("wallet.unconfirmed_coins") {
            builder.exclude_unconfirmed();
        }
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
        if switch("wallet.changes_txid") {
            psbt.unsigned_tx.lock_time = LockTime::from_consensus(1);
        }
        self.sign_with(&lock(&self.inner), psbt)
    }

    fn sign_with(&self, inner: &Inner, mut psbt: Psbt) -> Result<Transaction, Error> {
        // Coins spent by an unconfirmed transaction, too: that is the one being replaced.
        let coins: HashMap<OutPoint, LocalOutput> =
            inner.bdk.list_output().map(|coin| (coin.outpoint, coin)).collect();
        let mut ours = Vec::new();
        for (i, input) in psbt.unsigned_tx.input.iter().enumerate() {
            let Some(coin) = coins.get(&input.previous_output) else { continue };
            let Some(slot) = psbt.inputs.get_mut(i) else { continue };
            // Where the key comes from; a transaction that LDK built does not say.
            slot.combine(inner.bdk.get_psbt_input(coin.clone(), None, true).map_err(wallet_error)?);
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
}
