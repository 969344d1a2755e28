//! Carrying the tree's transactions into blocks.
//!
//! Every transaction of the tree pays no fee itself and has an anchor that anybody may spend (design
//! section 3), so each goes out with a child of this wallet's that pays for both. The publisher keeps one
//! child a transaction, by its id: steps that several leaves share are paid once, whoever needs them. It
//! replaces a child by a better one until the transaction confirms, displaces a stranger's child on the
//! anchor (sibling eviction, BIP 431) and outbids another transaction on the same output (package
//! replacement).
//!
//! A child is stored before bitcoind sees it. After a crash in between, the same child goes out again.

mod standing;

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::{FeeRate, OutPoint, Transaction, Txid};
use factory_core::exit::{ChainView, ExitPlan, ExitStep};
use factory_core::faults::switch;
use lightning::util::persist::KVStoreSync;
use serde::{Deserialize, Serialize};

use crate::chain::{Bitcoind, Fees, MempoolEntry, SubmitError};
use crate::error::Error;
use crate::faults;
use crate::store::tx::StoredTx;
use crate::store::{records, Store};
use crate::wallet::{Child, ChildRequest, Rival, Wallet, MAX_SPLIT};
use standing::{Attempt, Seen, Standing};

const NAMESPACE: &str = "published";
const VERSION: u32 = 1;

/// A child we paid for a transaction of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredChild {
    pub(crate) tx: StoredTx,
    pub(crate) fee_sat: u64,
    /// Height at which it was sent.
    pub(crate) sent_at: u32,
    /// Feerate of the package, sat per 1000 weight units.
    pub(crate) sat_per_kwu: u64,
}

impl StoredChild {
    fn txid(&self) -> Txid {
        self.tx.0.compute_txid()
    }
}

/// What is kept of one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Carried {
    /// Our newest child.
    child: Option<StoredChild>,
    /// Since when the transaction has been in the mempool as it is there now.
    seen: Option<Seen>,
}

/// On what terms a transaction is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Most that its child may pay, sat; none: only the feerate is bounded.
    pub(crate) limit_sat: Option<u64>,
    /// Outputs of its child, so that others who wait for a coin get one; see [`split`].
    pub(crate) outputs: usize,
}

/// What an exit costs, fees of the children only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Paid or offered so far, sat.
    pub(crate) so_far_sat: u64,
    /// Still to come at the present feerate, sat.
    pub(crate) to_come_sat: u64,
}

/// Into how many outputs the change of a child is divided when `waiting` transactions want a coin and
/// `free` coins are there.
pub(crate) fn split(waiting: usize, free: usize) -> usize {
    waiting.div_ceil(free.max(1)).clamp(1, MAX_SPLIT)
}

/// See the module's description.
pub(crate) struct Publisher {
    wallet: Arc<Wallet>,
    bitcoind: Arc<Bitcoind>,
    fees: Arc<Fees>,
    store: Arc<Store>,
    carried: BTreeMap<Txid, Carried>,
    /// Heights at which a transaction was looked after: leaves that share one need it once a block.
    served_at: BTreeMap<Txid, u32>,
}

impl Publisher {
    /// Reads what was published before.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub(crate) fn load(
        store: Arc<Store>,
        wallet: Arc<Wallet>,
        bitcoind: Arc<Bitcoind>,
        fees: Arc<Fees>,
    ) -> Result<Self, Error> {
        let mut carried = BTreeMap::new();
        for (key, record) in records::all::<Carried>(&*store, NAMESPACE, VERSION)? {
            let corrupt = |_| Error::Corrupt {
                key: format!("{NAMESPACE}/{key}"),
                reason: "the key is not a transaction id".into(),
            };
            carried.insert(key.parse::<Txid>().map_err(corrupt)?, record);
        }
        Ok(Self { wallet, bitcoind, fees, store, carried, served_at: BTreeMap::new() })
    }

    /// Our newest child of a transaction.
    pub(crate) fn child(&self, txid: &Txid) -> Option<&StoredChild> {
        self.carried.get(txid)?.child.as_ref()
    }

    /// What our child of a transaction pays, if it is confirmed or in the mempool; sat.
    pub(crate) fn paid_sat(&self, txid: &Txid) -> u64 {
        self.child(txid).filter(|c| self.wallet.knows(c.txid())).map_or(0, |c| c.fee_sat)
    }

    /// What a child of a step costs at the feerate of the next blocks, sat.
    pub(crate) fn estimate_sat(&self, step: &ExitStep) -> u64 {
        request(step, self.fees.urgent(), None, &[], 1).least_fee()
    }

    /// What a path costs.
    pub(crate) fn cost(&self, plan: &ExitPlan, view: &dyn ChainView) -> Cost {
        let mut cost = Cost::default();
        for step in plan.steps.iter().chain(&plan.distributions) {
            cost.so_far_sat = cost.so_far_sat.saturating_add(self.paid_sat(&step.txid));
        }
        for step in plan.steps.iter().filter(|s| view.confirmed_at(&s.txid).is_none()) {
            if self.paid_sat(&step.txid) == 0 {
                cost.to_come_sat = cost.to_come_sat.saturating_add(self.estimate_sat(step));
            }
        }
        cost
    }

    fn write(&self, txid: &Txid) -> Result<(), Error> {
        let key = txid.to_string();
        match self.carried.get(txid) {
            Some(record) => records::put(&*self.store, NAMESPACE, &key, VERSION, record),
            None => self.store.remove(NAMESPACE, "", &key, false).map_err(|e| Error::Store(e.to_string())),
        }
    }

    /// Forgets the children of transactions of this plan that can never confirm; their coins are free again.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn drop_lost(&mut self, plan: &ExitPlan, view: &dyn ChainView) -> Result<(), Error> {
        for step in plan.steps.iter().chain(&plan.distributions) {
            let lost = view.confirmed_at(&step.txid).is_none()
                && view.spent_by(&step.parent).is_some_and(|by| by != step.txid);
            if !lost {
                continue;
            }
            let Some(carried) = self.carried.remove(&step.txid) else { continue };
            if let Some(child) = carried.child {
                self.wallet.evicted(child.txid());
                self.wallet.release(&child.tx.0);
            }
            self.write(&step.txid)?;
        }
        Ok(())
    }

    /// As [`Self::drop_lost`], for every path that a leaf may take: what was carried before another path won is on
    /// none but its own.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn drop_all_lost(&mut self, plans: &[ExitPlan], view: &dyn ChainView) -> Result<(), Error> {
        plans.iter().try_for_each(|plan| self.drop_lost(plan, view))
    }

    /// Remembers since when a transaction has been in the mempool at this feerate.
    fn note_seen(&mut self, txid: &Txid, there: Option<FeeRate>, height: u32) -> Result<Option<u32>, Error> {
        let carried = self.carried.get(txid);
        let known = carried.and_then(|c| c.seen);
        let now =
            Seen::next(known, there, carried.and_then(|c| c.child.as_ref()), height, self.fees.urgent());
        if now != known {
            self.carried.entry(*txid).or_default().seen = now;
            self.write(txid)?;
        }
        Ok(now.map(|s| s.at))
    }

    /// Publishes a step with a child, or replaces the child of one that lingers. Called again with every
    /// block until the step confirms.
    ///
    /// # Errors
    /// [`Error::InsufficientFunds`] with the amount that one coin would need to have,
    /// [`Error::OverBudget`], [`Error::Unavailable`] if bitcoind cannot be asked, [`Error::Bitcoind`] if
    /// it refuses, [`Error::Store`].
    pub(crate) async fn carry(&mut self, step: &ExitStep, height: u32, terms: Terms) -> Result<(), Error> {
        if self.served_at.get(&step.txid) == Some(&height) {
            return Ok(());
        }
        self.carry_now(step, height, terms).await?;
        self.served_at.retain(|_, at| *at == height);
        self.served_at.insert(step.txid, height);
        Ok(())
    }

    async fn carry_now(&mut self, step: &ExitStep, height: u32, terms: Terms) -> Result<(), Error> {
        let entry = self.bitcoind.mempool_entry(step.txid).await?;
        let own = self.child(&step.txid).cloned();
        if let (Some(entry), Some(own)) = (&entry, &own) {
            // bitcoind took it although we never heard its answer.
            if entry.spent_by.contains(&own.txid()) {
                self.wallet.saw_unconfirmed(&own.tx.0);
            }
        }
        // Alone it goes nowhere: a reorganization can bring it back to the mempool without its child.
        let carried = entry.as_ref().filter(|e| e.descendant_vsize > e.vsize);
        let there = carried.map(MempoolEntry::feerate);
        let standing = Standing {
            there,
            own: own.as_ref(),
            seen_at: self.note_seen(&step.txid, there, height)?,
            height,
            urgent: self.fees.urgent(),
            max: self.fees.max(),
        };
        let feerate = match (standing.attempt(), &own) {
            (Attempt::Wait, _) => return Ok(()),
            (Attempt::Again, Some(own)) => {
                match self.bitcoind.submit(&[step.tx.clone(), own.tx.0.clone()]).await {
                    Ok(()) => {
                        self.wallet.saw_unconfirmed(&own.tx.0);
                        self.wallet.release(&own.tx.0);
                        return Ok(());
                    }
                    Err(SubmitError::Unreachable(r)) => return Err(Error::Unavailable(r)),
                    // Its coin may be gone, or the mempool's floor has risen.
                    Err(SubmitError::Rejected(_)) => standing.urgent,
                }
            }
            (Attempt::Again, None) => standing.urgent,
            (Attempt::Child(feerate), _) => feerate,
        };
        let rival = self.rival(step, entry.as_ref()).await?;
        let reusable = own.as_ref().map(|c| spent_by(&c.tx.0)).unwrap_or_default();
        let dearest = request(step, feerate, rival, &reusable, terms.outputs);
        let wanted = within(dearest, terms.limit_sat, standing.there)?;
        let mut child = self.wallet.child_for(wanted)?;
        if wanted.outputs > 1 && terms.limit_sat.is_some_and(|limit| child.fee.to_sat() > limit) {
            // Dividing the change is a favour to others.
            self.wallet.release(&child.tx);
            child = self.wallet.child_for(ChildRequest { outputs: 1, ..wanted })?;
        }
        if terms.limit_sat.is_some_and(|limit| child.fee.to_sat() > limit) {
            // Several small coins cost more than one.
            self.wallet.release(&child.tx);
            let left_sat = terms.limit_sat.unwrap_or(0);
            return Err(Error::OverBudget { needed_sat: child.fee.to_sat(), left_sat });
        }
        self.send(step, own, child, height).await
    }

    /// What has to be displaced: the child that is there, or another transaction on the same output.
    async fn rival(&self, step: &ExitStep, entry: Option<&MempoolEntry>) -> Result<Option<Rival>, Error> {
        let (fee, vsize, of_parent) = match entry {
            Some(e) if e.descendant_vsize > e.vsize => {
                (e.descendant_fee, e.descendant_vsize - e.vsize, false)
            }
            Some(_) => return Ok(None),
            None => {
                let spender = self.bitcoind.mempool_spender(&step.parent).await?;
                let Some(other) = spender.filter(|s| *s != step.txid) else { return Ok(None) };
                let Some(e) = self.bitcoind.mempool_entry(other).await? else { return Ok(None) };
                (e.descendant_fee, e.descendant_vsize, true)
            }
        };
        // At least what the network's nodes ask for, if ours is more generous.
        let relay = self.bitcoind.incremental_relay().await?.max(FeeRate::BROADCAST_MIN);
        Ok(Some(Rival { fee, vsize, relay, of_parent }))
    }

    /// Stores a child and hands the package to bitcoind.
    async fn send(
        &mut self,
        step: &ExitStep,
        before: Option<StoredChild>,
        child: Child,
        height: u32,
    ) -> Result<(), Error> {
        let Child { tx, fee } = child;
        let weight = step.tx.weight() + tx.weight();
        let stored = StoredChild {
            tx: StoredTx(tx.clone()),
            fee_sat: fee.to_sat(),
            sent_at: height,
            sat_per_kwu: fee.to_sat().saturating_mul(1000) / weight.to_wu().max(1),
        };
        self.carried.entry(step.txid).or_default().child = Some(stored);
        faults::point("node.child.store");
        let written = if switch("publish.child_unstored") { Ok(()) } else { self.write(&step.txid) };
        if let Err(e) = written {
            self.wallet.release(&tx);
            self.carried.entry(step.txid).or_default().child = before;
            return Err(e);
        }
        faults::point("node.child.stored");
        let answer = self.bitcoind.submit(&[step.tx.clone(), tx.clone()]).await;
        faults::point("node.child.submitted");
        match answer {
            Ok(()) => {
                tracing::info!(kind = %step.kind, txid = %step.txid, %fee, "tree transaction published");
                self.wallet.saw_unconfirmed(&tx);
                self.wallet.release(&tx);
                if let Some(before) = before.filter(|b| b.txid() != tx.compute_txid()) {
                    self.wallet.evicted(before.txid());
                    self.wallet.release(&before.tx.0);
                }
                Ok(())
            }
            Err(SubmitError::Rejected(reason)) => {
                tracing::warn!(kind = %step.kind, txid = %step.txid, reason, "tree transaction not accepted");
                self.wallet.release(&tx);
                self.carried.entry(step.txid).or_default().child = before;
                self.write(&step.txid)?;
                Err(Error::Bitcoind(reason))
            }
            // It may have been accepted: it stays on record and its coins set aside.
            Err(SubmitError::Unreachable(reason)) => {
                tracing::warn!(kind = %step.kind, txid = %step.txid, reason, "no answer to a tree transaction");
                Err(Error::Unavailable(reason))
            }
        }
    }
}

fn spent_by(tx: &Transaction) -> Vec<OutPoint> {
    tx.input.iter().map(|i| i.previous_output).collect()
}

fn request<'a>(
    step: &'a ExitStep,
    feerate: FeeRate,
    rival: Option<Rival>,
    reusable: &'a [OutPoint],
    outputs: usize,
) -> ChildRequest<'a> {
    ChildRequest { parent: &step.tx, anchor_vout: step.anchor_vout, feerate, rival, reusable, outputs }
}

/// Lowers the feerate of a request to what the budget allows, if that still gets the step anywhere: at
/// least what bitcoind relays, and more than what is there already.
fn within<'a>(
    mut request: ChildRequest<'a>,
    limit_sat: Option<u64>,
    there: Option<FeeRate>,
) -> Result<ChildRequest<'a>, Error> {
    let Some(left_sat) = limit_sat else { return Ok(request) };
    let needed_sat = request.least_fee();
    if needed_sat <= left_sat {
        return Ok(request);
    }
    request.outputs = 1;
    // least_fee falls with the feerate in proportion, down to what the rival asks for.
    let asked = u128::from(request.feerate.to_sat_per_kwu());
    let lower = asked * u128::from(left_sat) / u128::from(needed_sat.max(1));
    let lower = FeeRate::from_sat_per_kwu(u64::try_from(lower).unwrap_or(0).saturating_sub(1));
    let least = there.unwrap_or(FeeRate::ZERO).max(FeeRate::BROADCAST_MIN);
    request.feerate = lower;
    if lower > least && request.least_fee() <= left_sat {
        Ok(request)
    } else {
        Err(Error::OverBudget { needed_sat, left_sat })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use bitcoin::{Amount, ScriptBuf, TxIn, TxOut};

    fn parent() -> Transaction {
        let output = vec![TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new() }];
        Transaction { version: Version(3), lock_time: LockTime::ZERO, input: vec![TxIn::default()], output }
    }

    fn asked(parent: &Transaction, sat_per_vb: u64, rival: Option<Rival>) -> ChildRequest<'_> {
        let feerate = FeeRate::from_sat_per_vb(sat_per_vb).unwrap();
        ChildRequest { parent, anchor_vout: 0, feerate, rival, reusable: &[], outputs: 3 }
    }

    #[test]
    fn a_budget_lowers_the_feerate_and_stops_what_it_cannot_pay() {
        let parent = parent();
        let full = asked(&parent, 20, None);
        let needed = full.least_fee();
        assert_eq!(within(full, None, None).unwrap().feerate, full.feerate);
        assert_eq!(within(full, Some(needed), None).unwrap().outputs, 3);
        let half = within(full, Some(needed / 2), None).unwrap();
        assert!(half.least_fee() <= needed / 2 && half.least_fee() >= needed / 2 - needed / 50);
        assert!(half.feerate < full.feerate && half.feerate > FeeRate::BROADCAST_MIN);
        // below what bitcoind relays
        let e = within(full, Some(needed / 21), None).unwrap_err();
        assert!(
            matches!(e, Error::OverBudget { needed_sat, left_sat } if needed_sat == needed && left_sat == needed / 21)
        );
        // no better than what is there
        let there = FeeRate::from_sat_per_vb(10);
        assert!(matches!(within(full, Some(needed / 2), there), Err(Error::OverBudget { .. })));
        // a stranger's dear child
        let rival = Rival {
            fee: Amount::from_sat(50_000),
            vsize: 900,
            relay: FeeRate::BROADCAST_MIN,
            of_parent: false,
        };
        assert!(matches!(
            within(asked(&parent, 20, Some(rival)), Some(needed), None),
            Err(Error::OverBudget { needed_sat, .. }) if needed_sat > 50_000
        ));
    }

    #[test]
    fn a_conflict_is_outbid_by_the_package() {
        let parent = parent();
        let rival = |of_parent| Rival {
            fee: Amount::from_sat(3_000),
            vsize: 300,
            relay: FeeRate::BROADCAST_MIN,
            of_parent,
        };
        let sibling = asked(&parent, 1, Some(rival(false))).least_fee();
        let conflict = asked(&parent, 1, Some(rival(true))).least_fee();
        assert!(sibling > 3_000 && conflict > sibling, "{sibling} {conflict}");
    }

    #[test]
    fn change_is_divided_by_those_who_wait() {
        assert_eq!(split(1, 1), 1);
        assert_eq!(split(5, 0), 5);
        assert_eq!(split(5, 2), 3);
        assert_eq!(split(100, 1), MAX_SPLIT);
        assert_eq!(split(0, 3), 1);
    }
}
