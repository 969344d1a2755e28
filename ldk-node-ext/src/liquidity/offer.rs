//! Offers of JIT channels that wallets have taken by LSPS2: a short channel id each, to which a payment comes.
//!
//! The offer is stored before the wallet hears of it, and says what the fee is and whether it has been paid; what comes
//! to its id is held like any payment without room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bitcoin::secp256k1::PublicKey;
use lightning::util::persist::KVStoreSync;
use lightning_liquidity::lsps2::utils::compute_opening_fee;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::store::{records, Store};
use crate::util::{lock, unix_now};

const NAMESPACE: &str = "lsps2_offers";
const VERSION: u32 = 1;
/// Offers that there may be at a time.
pub(super) const MAX_OFFERS: usize = 10_000;
/// Offers of one wallet that there may be at a time and that are not paid.
const MAX_OF_WALLET: usize = 50;

/// One offer that a wallet has taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// The wallet.
    pub(crate) peer: PublicKey,
    /// Least fee, msat.
    pub(crate) min_fee_msat: u64,
    /// Fee in millionths of the payment.
    pub(crate) proportional: u32,
    /// Least payment without a size named before, msat.
    pub(crate) min_payment_msat: u64,
    /// Largest one, msat.
    pub(crate) max_payment_msat: u64,
    /// What the wallet will be paid, the fee included, msat; it may come in parts then. None: any amount, in one HTLC.
    pub(crate) size_msat: Option<u64>,
    /// Until when a channel is opened for it, Unix seconds.
    pub(crate) valid_until: u64,
    /// User channel id of the channel that was opened, hex.
    pub(crate) channel: Option<String>,
    /// The payment that was sent on last with the fee taken off.
    #[serde(default)]
    pub(crate) charged: Option<Charge>,
    /// The fee has been taken.
    pub(crate) paid: bool,
}

/// A payment that pays for a channel. While it is on its way no other one is: both would pay for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Charge {
    /// Its hash, hex.
    pub(crate) hash: String,
    /// What was taken off each of its parts and has not been seen to be kept, msat.
    pub(crate) due_msat: Vec<u64>,
    /// The HTLCs that were seen, channel id in hex and number: LDK may tell of one again.
    pub(crate) seen: Vec<(String, u64)>,
}

/// Part of a fee that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The wallet.
    pub(crate) peer: PublicKey,
    /// The channel that the HTLC came by, hex, and its number there.
    pub(crate) htlc: (String, u64),
    /// User channel id of that channel, if it is open.
    pub(crate) channel: Option<u128>,
    /// What was kept of it, msat.
    pub(crate) msat: u64,
}

/// What is done with what came to an offer's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terms {
    /// Parts are missing.
    Incomplete,
    /// A channel is opened, and this fee taken from the sum, msat.
    Fee(u64),
    /// The wallet has its channel, and has paid for it.
    Free,
    /// Given back: why.
    No(&'static str),
}

impl Offer {
    /// What is done with these HTLCs, msat, at a time, Unix seconds.
    pub(super) fn terms(&self, parts: &[u64], now: u64) -> Terms {
        if self.paid {
            return Terms::Free;
        }
        let total = parts.iter().fold(0u64, |sum, part| sum.saturating_add(*part));
        match self.size_msat {
            Some(size) if total < size => return Terms::Incomplete,
            None if parts.len() > 1 => return Terms::No("parts, for an LSPS2 offer without an amount"),
            _ => {}
        }
        if total < self.min_payment_msat || total > self.max_payment_msat {
            return Terms::No("beyond the limits of its LSPS2 offer");
        }
        if now > self.valid_until && self.channel.is_none() {
            return Terms::No("its LSPS2 offer has expired");
        }
        match compute_opening_fee(total, self.min_fee_msat, self.proportional.into()) {
            Some(fee) if fee < total => Terms::Fee(fee),
            _ => Terms::No("less than the fee of its LSPS2 offer"),
        }
    }
}

/// What is taken off each part, msat: the largest ones bear the fee. Who takes a small part only has paid nothing.
pub(super) fn taken_off(parts: &[u64], fee_msat: u64) -> Vec<u64> {
    let mut off = vec![0; parts.len()];
    let mut left = fee_msat;
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(parts.get(*i)));
    for i in order {
        if let (Some(off), Some(part)) = (off.get_mut(i), parts.get(i)) {
            *off = left.min(part.saturating_sub(1));
            left = left.saturating_sub(*off);
        }
    }
    off
}

/// All offers, by short channel id.
pub(crate) struct Offers {
    store: Arc<Store>,
    all: Mutex<HashMap<u64, Offer>>,
}

fn key(scid: u64) -> String {
    format!("{scid:016x}")
}

impl Offers {
    pub(super) fn open(store: Arc<Store>) -> Result<Self, Error> {
        let mut all = HashMap::new();
        for (name, offer) in records::all::<Offer>(&*store, NAMESPACE, VERSION)? {
            let corrupt = |e: std::num::ParseIntError| Error::Corrupt {
                key: format!("{NAMESPACE}/{name}"),
                reason: e.to_string(),
            };
            all.insert(u64::from_str_radix(&name, 16).map_err(corrupt)?, offer);
        }
        Ok(Self { store, all: Mutex::new(all) })
    }

    pub(crate) fn get(&self, scid: u64) -> Option<Offer> {
        lock(&self.all).get(&scid).cloned()
    }

    /// Takes a new one.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Unavailable`] if there are too many.
    pub(super) fn add(&self, scid: u64, offer: Offer) -> Result<(), Error> {
        self.forget_expired(unix_now())?;
        let mut all = lock(&self.all);
        if all.len() >= MAX_OFFERS {
            return Err(Error::Unavailable(format!("{MAX_OFFERS} LSPS2 offers wait to be paid")));
        }
        if all.values().filter(|o| o.peer == offer.peer && !o.paid).count() >= MAX_OF_WALLET {
            let wallet = offer.peer;
            return Err(Error::Unavailable(format!(
                "{MAX_OF_WALLET} LSPS2 offers of {wallet} wait to be paid"
            )));
        }
        records::put(&*self.store, NAMESPACE, &key(scid), VERSION, &offer)?;
        all.insert(scid, offer);
        Ok(())
    }

    /// Forgets what nobody has paid in time.
    fn forget_expired(&self, now: u64) -> Result<(), Error> {
        let mut all = lock(&self.all);
        let over = all.iter().filter(|(_, o)| o.channel.is_none() && o.valid_until < now);
        for scid in over.map(|(scid, _)| *scid).collect::<Vec<_>>() {
            self.remove(&mut all, scid)?;
        }
        Ok(())
    }

    fn remove(&self, all: &mut HashMap<u64, Offer>, scid: u64) -> Result<(), Error> {
        let gone = self.store.remove(NAMESPACE, "", &key(scid), false);
        gone.map_err(|e| Error::Store(format!("{NAMESPACE}/{}: {e}", key(scid))))?;
        all.remove(&scid);
        Ok(())
    }

    /// Changes one.
    ///
    /// # Errors
    /// [`Error::Store`]; nothing has changed then.
    pub(super) fn change(&self, scid: u64, change: impl FnOnce(&mut Offer)) -> Result<(), Error> {
        let mut all = lock(&self.all);
        let Some(offer) = all.get_mut(&scid) else { return Ok(()) };
        let mut new = offer.clone();
        change(&mut new);
        if new != *offer {
            records::put(&*self.store, NAMESPACE, &key(scid), VERSION, &new)?;
            *offer = new;
        }
        Ok(())
    }

    /// The id of the offer for which a channel was opened.
    pub(super) fn of_channel(&self, user_channel_id: u128) -> Option<u64> {
        let name = format!("{user_channel_id:032x}");
        lock(&self.all).iter().find(|(_, o)| o.channel.as_ref() == Some(&name)).map(|(scid, _)| *scid)
    }

    /// Part of a fee was kept. Returns the channel that is paid for with it, if the whole fee has come; also if LDK says so
    /// again. LDK takes whichever channel with the wallet has room, so the fee need not come over the one that was sold.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn fee_kept(&self, kept: &Kept) -> Result<Option<u128>, Error> {
        let name = kept.channel.map(|id| format!("{id:032x}"));
        let found = {
            let all = lock(&self.all);
            let of_wallet = || all.iter().filter(|(_, o)| o.peer == kept.peer);
            let known = |o: &Offer| o.charged.as_ref().is_some_and(|c| c.seen.contains(&kept.htlc));
            let due =
                |o: &Offer| !o.paid && o.charged.as_ref().is_some_and(|c| c.due_msat.contains(&kept.msat));
            let again = of_wallet().find(|(_, o)| known(o));
            let its = || of_wallet().find(|(_, o)| due(o) && o.channel == name);
            let any = || of_wallet().find(|(_, o)| due(o));
            again.or_else(its).or_else(any).map(|(scid, _)| *scid)
        };
        let Some(scid) = found else { return Ok(None) };
        self.change(scid, |offer| {
            let Some(charge) = offer.charged.as_mut().filter(|c| !c.seen.contains(&kept.htlc)) else {
                return;
            };
            if let Some(at) = charge.due_msat.iter().position(|msat| *msat == kept.msat) {
                charge.due_msat.remove(at);
                charge.seen.push(kept.htlc.clone());
                offer.paid = charge.due_msat.is_empty();
            }
        })?;
        let paid = self.get(scid).filter(|offer| offer.paid).and_then(|offer| offer.channel);
        Ok(paid.and_then(|id| u128::from_str_radix(&id, 16).ok()))
    }

    /// Forgets channels of offers that nobody knows (any more): the process died when it had only begun to open them.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn keep_channels(&self, known: impl Fn(u128) -> bool) -> Result<(), Error> {
        let lost = |o: &Offer| {
            let id = o.channel.as_ref().map(|id| u128::from_str_radix(id, 16));
            id.is_some_and(|id| id.map_or(true, |id| !known(id)))
        };
        let all: Vec<u64> = lock(&self.all).iter().filter(|(_, o)| lost(o)).map(|(scid, _)| *scid).collect();
        all.into_iter().try_for_each(|scid| self.change(scid, |offer| offer.channel = None))
    }

    /// The channel of an offer is closed: the offer is over.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn closed(&self, user_channel_id: u128, signed: bool) -> Result<(), Error> {
        let Some(scid) = self.of_channel(user_channel_id) else { return Ok(()) };
        if signed {
            return self.remove(&mut lock(&self.all), scid);
        }
        self.change(scid, |offer| offer.channel = None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(size_msat: Option<u64>) -> Offer {
        let peer = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        Offer {
            peer: peer.parse().unwrap(),
            min_fee_msat: 2_000,
            proportional: 10_000,
            min_payment_msat: 1_000,
            max_payment_msat: 1_000_000,
            size_msat,
            valid_until: 100,
            channel: None,
            charged: None,
            paid: false,
        }
    }

    #[test]
    fn the_fee_is_the_larger_one_and_parts_are_waited_for() {
        let fixed = offer(Some(500_000));
        assert_eq!(fixed.terms(&[300_000], 0), Terms::Incomplete);
        assert_eq!(fixed.terms(&[300_000, 200_000], 100), Terms::Fee(5_000));
        assert!(matches!(fixed.terms(&[500_000], 101), Terms::No(_)), "expired");
        let opened = Offer { channel: Some("x".into()), ..fixed.clone() };
        assert_eq!(opened.terms(&[500_001], 101), Terms::Fee(5_001), "the channel is there: rounded up");
        assert_eq!(Offer { paid: true, ..fixed }.terms(&[1], 999), Terms::Free);
        let any = offer(None);
        assert_eq!(any.terms(&[100_000], 0), Terms::Fee(2_000));
        for wrong in [&[50_000, 50_000][..], &[999], &[1_000_001], &[2_000]] {
            assert!(matches!(any.terms(wrong, 0), Terms::No(_)), "{wrong:?}");
        }
    }

    #[test]
    fn the_largest_parts_bear_the_fee_and_the_sum_is_exact() {
        assert_eq!(taken_off(&[1, 300_000, 100_000], 3_001), [0, 3_001, 0]);
        assert_eq!(taken_off(&[40, 50, 30], 60), [11, 49, 0]);
        assert_eq!(taken_off(&[7], 3), [3]);
        for (parts, fee) in [(vec![100_000, 200_000], 3_001), (vec![1, 1, 1_000], 10), (vec![5, 5, 5], 12)] {
            let off = taken_off(&parts, fee);
            assert_eq!(off.iter().sum::<u64>(), fee, "{parts:?}");
            assert!(off.iter().zip(&parts).all(|(off, part)| off < part));
        }
    }

    fn opened(dir: &std::path::Path) -> Offers {
        Offers::open(Arc::new(Store::open(&dir.join("db")).unwrap())).unwrap()
    }

    #[test]
    fn a_wallet_has_so_many_offers_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let offers = opened(dir.path());
        let late = Offer { valid_until: u64::MAX, ..offer(None) };
        for scid in 0..50 {
            offers.add(scid, late.clone()).unwrap();
        }
        assert!(matches!(offers.add(50, late.clone()), Err(Error::Unavailable(_))));
        let other = "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5".parse().unwrap();
        offers.add(50, Offer { peer: other, ..late.clone() }).unwrap();
        offers.change(7, |o| o.paid = true).unwrap();
        offers.add(51, late).unwrap();
    }

    fn charged(due_msat: &[u64]) -> Option<Charge> {
        Some(Charge { hash: "aa".into(), due_msat: due_msat.to_vec(), seen: Vec::new() })
    }

    fn kept(channel: u128, number: u64, msat: u64) -> Kept {
        Kept { peer: offer(None).peer, htlc: ("cc".into(), number), channel: Some(channel), msat }
    }

    #[test]
    fn the_fee_is_paid_for_the_channel_that_was_sold_whichever_carried_it() {
        let dir = tempfile::tempdir().unwrap();
        let offers = opened(dir.path());
        let sold = |n: u128| Offer { channel: Some(format!("{n:032x}")), ..offer(None) };
        offers.add(1, sold(10)).unwrap();
        offers.add(2, Offer { charged: charged(&[2_000]), ..sold(20) }).unwrap();
        let stranger = "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5".parse().unwrap();
        assert_eq!(offers.fee_kept(&Kept { peer: stranger, ..kept(20, 0, 2_000) }).unwrap(), None);
        assert_eq!(offers.fee_kept(&kept(20, 0, 1_999)).unwrap(), None, "not what was taken off");
        assert_eq!(offers.fee_kept(&kept(10, 0, 2_000)).unwrap(), Some(20), "no fee was taken for the first");
        assert!(offers.get(2).unwrap().paid && !offers.get(1).unwrap().paid);
    }

    #[test]
    fn a_part_of_the_fee_does_not_pay_and_none_counts_twice() {
        let dir = tempfile::tempdir().unwrap();
        let offers = opened(dir.path());
        let sold = |n: u128| Offer { channel: Some(format!("{n:032x}")), ..offer(None) };
        offers.add(1, Offer { charged: charged(&[1_500, 500]), ..sold(10) }).unwrap();
        offers.add(2, Offer { charged: charged(&[500]), ..sold(20) }).unwrap();
        assert_eq!(offers.fee_kept(&kept(10, 0, 500)).unwrap(), None);
        // LDK says it again, after a death: it is neither the rest of the one nor the fee of the other.
        assert_eq!(offers.fee_kept(&kept(10, 0, 500)).unwrap(), None);
        assert!(!offers.get(2).unwrap().paid);
        assert_eq!(offers.fee_kept(&kept(10, 1, 1_500)).unwrap(), Some(10));
        assert_eq!(
            offers.fee_kept(&kept(10, 1, 1_500)).unwrap(),
            Some(10),
            "what follows may not be on disk yet"
        );
        assert!(offers.get(1).unwrap().paid && !offers.get(2).unwrap().paid);
    }

    #[test]
    fn a_channel_that_was_only_begun_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let offers = opened(dir.path());
        let sold = |n: u128| Offer { channel: Some(format!("{n:032x}")), ..offer(None) };
        offers.add(1, sold(10)).unwrap();
        offers.add(2, sold(20)).unwrap();
        offers.keep_channels(|id| id == 10).unwrap();
        drop(offers);
        let offers = opened(dir.path());
        assert_eq!((offers.of_channel(10), offers.of_channel(20)), (Some(1), None));
        assert_eq!(offers.get(2).unwrap().terms(&[100_000], 101), Terms::No("its LSPS2 offer has expired"));
    }
}
