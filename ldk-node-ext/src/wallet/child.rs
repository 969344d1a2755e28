//! Children that carry zero-fee parents into a block.

use bdk_wallet::KeychainKind;
use bitcoin::absolute::LockTime;
use bitcoin::psbt::Psbt;
use bitcoin::transaction::Version;
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Weight, Witness};

use super::{wallet_error, Coin, Wallet};
use crate::error::Error;
use crate::util::lock;

/// Largest child of a version 3 transaction (BIP 431), vB.
const TRUC_CHILD_MAX_VB: u64 = 1_000;
/// Dust limit of a P2TR output, sat.
const DUST_SAT: u64 = 330;

/// A child transaction that pays for its zero-fee parent.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    pub(crate) tx: Transaction,
    pub(crate) fee: Amount,
}

/// Least amount of each part when change is divided, sat: enough for a child of its own at any usual feerate.
const SPLIT_MIN_SAT: u64 = 10_000;
/// Most parts that change is divided into; a child of 1000 vB has room for more.
pub(crate) const MAX_SPLIT: usize = 8;

/// What is in the mempool and has to be displaced, whoever made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rival {
    /// Its fee.
    pub(crate) fee: Amount,
    /// Its size, vB.
    pub(crate) vsize: u64,
    /// What a replacement pays for its own relay, on top.
    pub(crate) relay: FeeRate,
    /// It conflicts with the parent, so that parent and child together have to displace it (package
    /// replacement), and not with the child alone (sibling eviction, BIP 431).
    pub(crate) of_parent: bool,
}

impl Rival {
    /// Least fee of a replacement of this size: more than its fee, by the price of relaying the new one
    /// (BIP 125 rule 4), and at a higher feerate.
    fn beaten_by(&self, vsize: u64) -> u64 {
        let relay = u128::from(self.relay.to_sat_per_kwu()) * u128::from(vsize) * 4;
        let relay = u64::try_from(relay.div_ceil(1000)).unwrap_or(u64::MAX);
        let theirs = u128::from(self.fee.to_sat()) * u128::from(vsize) / u128::from(self.vsize.max(1));
        let theirs = u64::try_from(theirs).unwrap_or(u64::MAX);
        self.fee.to_sat().saturating_add(relay).max(theirs.saturating_add(1))
    }
}

/// What child is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChildRequest<'a> {
    /// The zero-fee parent.
    pub(crate) parent: &'a Transaction,
    /// Position of its pay-to-anchor output.
    pub(crate) anchor_vout: u32,
    /// Feerate of both together.
    pub(crate) feerate: FeeRate,
    /// The child to displace, if there is one.
    pub(crate) rival: Option<Rival>,
    /// Coins of our own earlier child of this parent: free for this one, since it replaces that one.
    pub(crate) reusable: &'a [OutPoint],
    /// Outputs that the change is divided into if it is large enough, at most [`MAX_SPLIT`]: so many
    /// further children need a coin of their own soon.
    pub(crate) outputs: usize,
}

/// Size of a child of an anchor with this many coins and outputs, vB. Weights (BIP 141): 10.5 vB of overhead, 41 vB for
/// the anchor input with its empty witness, 57.5 vB for a P2TR key spend, 43 vB for a P2TR output.
fn child_vb(coins: usize, outputs: usize) -> u64 {
    spend_vb(coins, outputs, 410)
}

/// Size of a transaction that spends this many coins of ours, and besides them inputs of so many tenths of a vB.
fn spend_vb(coins: usize, outputs: usize, others: u64) -> u64 {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    count(coins)
        .saturating_mul(575)
        .saturating_add(count(outputs).saturating_mul(430))
        .saturating_add(others.saturating_add(105))
        .div_ceil(10)
        .saturating_add(1)
}

/// Equal parts of an amount; the remainder goes to the first.
fn divide(sat: u64, parts: usize) -> impl Iterator<Item = u64> {
    let parts = u64::try_from(parts).unwrap_or(1).max(1);
    (0..parts).map(move |i| sat / parts + if i == 0 { sat % parts } else { 0 })
}

fn input(previous_output: OutPoint) -> TxIn {
    let sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
    TxIn { previous_output, script_sig: ScriptBuf::new(), sequence, witness: Witness::new() }
}

impl ChildRequest<'_> {
    /// Fee of a child with this many coins and outputs, sat.
    fn fee_with(&self, coins: usize, outputs: usize) -> u64 {
        let vsize = child_vb(coins, outputs);
        let parent = self.parent.weight().to_wu();
        let weight = parent.saturating_add(vsize.saturating_mul(4));
        let package = self.feerate.fee_wu(Weight::from_wu(weight)).map_or(u64::MAX, Amount::to_sat);
        let beats = self.rival.map_or(0, |r| {
            r.beaten_by(if r.of_parent { vsize.saturating_add(parent.div_ceil(4)) } else { vsize })
        });
        package.max(beats)
    }

    /// Fee of a child with this many coins and one output, sat.
    fn fee(&self, coins: usize) -> u64 {
        self.fee_with(coins, 1)
    }

    /// Fee of a child with one coin and one output: the least that this request costs, sat.
    pub(crate) fn least_fee(&self) -> u64 {
        self.fee(1)
    }

    /// How the rest of the chosen coins is divided, and the fee that goes with it.
    fn outputs(&self, coins: usize, sum: u64) -> (u64, Vec<u64>) {
        let most = self.outputs.clamp(1, MAX_SPLIT);
        let fits = |n: &usize| {
            let rest = sum.saturating_sub(self.fee_with(coins, *n));
            let parts = u64::try_from(*n).unwrap_or(u64::MAX);
            *n == 1 || (rest / parts >= SPLIT_MIN_SAT && child_vb(coins, *n) <= TRUC_CHILD_MAX_VB)
        };
        let n = (1..=most).rev().find(fits).unwrap_or(1);
        let fee = self.fee_with(coins, n);
        (fee, divide(sum.saturating_sub(fee), n).collect())
    }

    /// The smallest single coin that suffices, else the largest ones together.
    ///
    /// # Errors
    /// [`Error::InsufficientFunds`] with the amount that one coin would need to have.
    fn select(&self, anchor: Amount, mut coins: Vec<Coin>) -> Result<(Vec<Coin>, u64, Vec<u64>), Error> {
        coins.sort_by_key(|c| std::cmp::Reverse(c.txout.value));
        let total = |list: &[Coin]| list.iter().map(|c| c.txout.value.to_sat()).sum::<u64>();
        let available = total(&coins);
        let needed = |coins: usize| self.fee(coins).saturating_add(DUST_SAT);
        let sum = |list: &[Coin]| total(list).saturating_add(anchor.to_sat());
        let single = coins.iter().rev().find(|c| sum(std::slice::from_ref(*c)) >= needed(1));
        let chosen = match single {
            Some(one) => vec![one.clone()],
            None => {
                let enough = (2..=coins.len())
                    .take_while(|n| child_vb(*n, 1) <= TRUC_CHILD_MAX_VB)
                    .find(|n| coins.get(..*n).is_some_and(|list| sum(list) >= needed(*n)));
                let shortage = Error::InsufficientFunds { needed_sat: needed(1), available_sat: available };
                coins.truncate(enough.ok_or(shortage)?);
                coins
            }
        };
        let (fee, rest) = self.outputs(chosen.len(), sum(&chosen));
        Ok((chosen, fee, rest))
    }
}

impl Wallet {
    /// Makes the child that pays for an ordinary transaction of ours that lingers: it spends the change of that, and nothing
    /// else. `parent_fee_sat` is what the parent pays itself, `feerate` is for both together.
    ///
    /// # Errors
    /// [`Error::InsufficientFunds`] if the change, above dust, pays for nothing that would help; where it pays for less than
    /// `feerate`, the child pays that.
    pub(crate) fn child_of_change(
        &self,
        parent: &Transaction,
        parent_fee_sat: u64,
        feerate: FeeRate,
        rival: Option<Rival>,
    ) -> Result<Child, Error> {
        let mut inner = lock(&self.inner);
        // bitcoind may not have taken it yet.
        inner.saw(parent);
        let txid = parent.compute_txid();
        let change: Vec<(OutPoint, TxOut)> = (0u32..)
            .zip(&parent.output)
            .filter(|(_, out)| inner.bdk.is_mine(out.script_pubkey.clone()))
            .map(|(vout, out)| (OutPoint { txid, vout }, out.clone()))
            .collect();
        let sum = change.iter().map(|(_, out)| out.value.to_sat()).fold(0, u64::saturating_add);
        let vsize = spend_vb(change.len(), 1, 0);
        let weight = parent.weight().to_wu().saturating_add(vsize.saturating_mul(4));
        let package = feerate.fee_wu(Weight::from_wu(weight)).map_or(u64::MAX, Amount::to_sat);
        let beats = rival.map_or(0, |rival| rival.beaten_by(vsize));
        // Less than a child of this feerate pays nothing of the parent.
        let parent_wu = parent.weight().to_wu().max(1);
        let own = parent_fee_sat.saturating_mul(vsize.saturating_mul(4)) / parent_wu;
        let least = vsize.max(beats).max(own.saturating_add(own / 4));
        let needed_sat = least.saturating_add(DUST_SAT);
        if change.is_empty() || sum < needed_sat {
            return Err(Error::InsufficientFunds { needed_sat, available_sat: sum });
        }
        // What the change can pay, where it cannot pay all that is wanted.
        let fee = package.saturating_sub(parent_fee_sat).max(least).min(sum.saturating_sub(DUST_SAT));
        let script_pubkey = inner.bdk.next_unused_address(KeychainKind::Internal).script_pubkey();
        self.persist(&mut inner)?;
        let tx = Transaction {
            version: Version::TWO,
            lock_time: LockTime::from_height(inner.bdk.latest_checkpoint().height()).map_err(wallet_error)?,
            input: change.iter().map(|(outpoint, _)| input(*outpoint)).collect(),
            output: vec![TxOut { value: Amount::from_sat(sum.saturating_sub(fee)), script_pubkey }],
        };
        let mut psbt = Psbt::from_unsigned_tx(tx).map_err(wallet_error)?;
        for (slot, (_, out)) in psbt.inputs.iter_mut().zip(change) {
            slot.witness_utxo = Some(out);
        }
        let tx = self.sign_with(&inner, psbt)?;
        Ok(Child { tx, fee: Amount::from_sat(fee) })
    }

    /// Makes the version 3 child that pays for a zero-fee parent: it spends the parent's pay-to-anchor
    /// output and confirmed coins of ours, and returns the rest to us (BIP 431: at most 1000 vB, one
    /// unconfirmed parent). Its coins are reserved until [`Self::release`] or confirmation. Nothing is
    /// written when there is no such child.
    ///
    /// # Errors
    /// [`Error::InsufficientFunds`] with the amount that one coin would need to have.
    pub(crate) fn child_for(&self, request: ChildRequest<'_>) -> Result<Child, Error> {
        let anchor = OutPoint { txid: request.parent.compute_txid(), vout: request.anchor_vout };
        let anchor_out = usize::try_from(request.anchor_vout)
            .ok()
            .and_then(|i| request.parent.output.get(i).cloned())
            .ok_or_else(|| Error::Wallet("parent has no such anchor output".into()))?;
        let mut inner = lock(&self.inner);
        let mut coins = inner.coins(|o| request.reusable.contains(o));
        coins.retain(|c| request.reusable.contains(&c.outpoint) || !inner.taken(&c.outpoint));
        let (chosen, fee, rest) = request.select(anchor_out.value, coins)?;
        let output = match rest.as_slice() {
            [one] => {
                let script_pubkey = inner.bdk.next_unused_address(KeychainKind::Internal).script_pubkey();
                vec![TxOut { value: Amount::from_sat(*one), script_pubkey }]
            }
            parts => parts
                .iter()
                .map(|part| TxOut {
                    value: Amount::from_sat(*part),
                    script_pubkey: inner.bdk.reveal_next_address(KeychainKind::Internal).script_pubkey(),
                })
                .collect(),
        };
        self.persist(&mut inner)?;
        let tx = Transaction {
            version: Version(3),
            // Not valid in a block that would have to be mined anew (fee sniping).
            lock_time: LockTime::from_height(inner.bdk.latest_checkpoint().height()).map_err(wallet_error)?,
            input: std::iter::once(anchor).chain(chosen.iter().map(|c| c.outpoint)).map(input).collect(),
            output,
        };
        let mut psbt = Psbt::from_unsigned_tx(tx).map_err(wallet_error)?;
        if let Some(slot) = psbt.inputs.first_mut() {
            slot.witness_utxo = Some(anchor_out);
        }
        let tx = self.sign_with(&inner, psbt)?;
        inner.reserved.extend(chosen.iter().map(|c| c.outpoint));
        Ok(Child { tx, fee: Amount::from_sat(fee) })
    }
}
