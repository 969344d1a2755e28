//! Hold invoices: invoices over a payment hash whose preimage somebody else has.
//!
//! What is paid on them waits for an order, to claim or to give back. An order is on disk before it is
//! carried out and decides for good: a restart repeats it, and a later payment of the same invoice meets
//! the same end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use factory_core::faults::switch;
use lightning::types::payment::{PaymentHash, PaymentPreimage};
use lightning::util::persist::KVStoreSync;
use serde::{Deserialize, Serialize};

use super::{records, Store};
use crate::error::Error;
use crate::util::{lock, unix_now};

const NAMESPACE: &str = "holds";
const VERSION: u32 = 1;
/// Most hold invoices that wait for their payment or for an order.
pub const MAX_OPEN: usize = 1000;
/// Records kept, those included; the others are dropped when there are more.
const MAX_KEPT: usize = 2 * MAX_OPEN;
/// LDK tells an invoice's end by the blocks' times, which may be off by that much, seconds.
const LAPSE_SLACK: u64 = 3 * 3600;

/// Where a hold invoice stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum HoldState {
    /// Not paid yet.
    Open {
        /// Unix seconds after which nobody can pay it any more.
        lapses_at: u64,
    },
    /// Paid; waits for an order.
    Held {
        /// Height at which it is given back if there is no order.
        claim_by_height: u32,
    },
    /// The order to claim was given.
    Claiming {
        /// The preimage, hex.
        preimage: String,
        /// As when it was held.
        claim_by_height: u32,
    },
    /// Claimed.
    Claimed {
        /// The preimage, hex.
        preimage: String,
    },
    /// Given back, by order or because nobody gave one in time.
    Failed,
}

impl HoldState {
    fn is_over(&self) -> bool {
        match self {
            Self::Open { lapses_at } => *lapses_at < unix_now(),
            Self::Claimed { .. } | Self::Failed => true,
            Self::Held { .. } | Self::Claiming { .. } => false,
        }
    }

    /// The preimage, once the order to claim was given.
    pub fn preimage(&self) -> Option<PaymentPreimage> {
        let (Self::Claiming { preimage, .. } | Self::Claimed { preimage }) = self else { return None };
        let mut bytes = [0; 32];
        hex::decode_to_slice(preimage, &mut bytes).ok()?;
        Some(PaymentPreimage(bytes))
    }
}

/// What a payment that has arrived has to meet with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is held, and given back at this height if there is no order.
    Held(u32),
    /// The order to claim was given already.
    Claim(PaymentPreimage),
    /// Nobody waits for it (any more), or it is too late to claim it as ordered.
    GiveBack,
    /// It came too late to be held.
    TooLate,
}

/// All hold invoices. A change is on disk when it is seen; changes are made one at a time, so of two
/// orders one wins.
#[derive(Debug)]
pub struct Holds {
    store: Arc<Store>,
    all: Mutex<HashMap<PaymentHash, HoldState>>,
}

fn key(hash: &PaymentHash) -> String {
    hex::encode(hash.0)
}

type All = HashMap<PaymentHash, HoldState>;

impl Holds {
    /// Reads them all.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub fn open(store: Arc<Store>) -> Result<Self, Error> {
        let mut all = HashMap::new();
        for (key, state) in records::all::<HoldState>(&*store, NAMESPACE, VERSION)? {
            let mut hash = [0; 32];
            hex::decode_to_slice(&key, &mut hash)
                .map_err(|e| Error::Corrupt { key: format!("{NAMESPACE}/{key}"), reason: e.to_string() })?;
            all.insert(PaymentHash(hash), state);
        }
        Ok(Self { store, all: Mutex::new(all) })
    }

    fn put(&self, all: &mut All, hash: &PaymentHash, state: HoldState) -> Result<(), Error> {
        if !switch("holds.unstored") {
            records::put(&*self.store, NAMESPACE, &key(hash), VERSION, &state)?;
        }
        all.insert(*hash, state);
        Ok(())
    }

    /// Takes in a new invoice that lapses after `expiry_secs`.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the hash has been used or there are too many, [`Error::Store`].
    pub fn add(&self, hash: &PaymentHash, expiry_secs: u32) -> Result<(), Error> {
        let mut all = lock(&self.all);
        if all.contains_key(hash) {
            return Err(Error::Conflict("there is a hold invoice with this payment hash".into()));
        }
        if all.values().filter(|s| !s.is_over()).count() >= MAX_OPEN {
            return Err(Error::Conflict(format!("{MAX_OPEN} hold invoices are open; that is the limit")));
        }
        if all.len() >= MAX_KEPT {
            let over: Vec<_> = all.iter().filter(|(_, s)| s.is_over()).map(|(h, _)| *h).collect();
            for old in over {
                self.forget(&mut all, &old)?;
            }
        }
        let lapses_at = unix_now().saturating_add(u64::from(expiry_secs)).saturating_add(LAPSE_SLACK);
        self.put(&mut all, hash, HoldState::Open { lapses_at })
    }

    /// Takes an invoice back that was not made after all. Does nothing once it is paid.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn withdraw(&self, hash: &PaymentHash) -> Result<(), Error> {
        let mut all = lock(&self.all);
        match all.get(hash) {
            Some(HoldState::Open { .. }) => self.forget(&mut all, hash),
            _ => Ok(()),
        }
    }

    fn forget(&self, all: &mut All, hash: &PaymentHash) -> Result<(), Error> {
        self.store
            .remove(NAMESPACE, "", &key(hash), false)
            .map_err(|e| Error::Store(format!("{NAMESPACE}: {e}")))?;
        all.remove(hash);
        Ok(())
    }

    /// Whether there is a hold invoice with this payment hash.
    pub fn has(&self, hash: &PaymentHash) -> bool {
        lock(&self.all).contains_key(hash)
    }

    /// A payment has arrived, maybe not for the first time: LDK repeats its events. `needs_path` says that
    /// claiming it may take a factory's path; only then is an order that came in time carried out in time
    /// only. `may_begin`: whether one that is not held yet may be.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn arrived(
        &self,
        hash: &PaymentHash,
        height: u32,
        claim_by_height: u32,
        needs_path: bool,
        may_begin: bool,
    ) -> Result<Arrival, Error> {
        let mut all = lock(&self.all);
        Ok(match all.get(hash) {
            Some(HoldState::Open { .. }) if may_begin && height < claim_by_height => {
                self.put(&mut all, hash, HoldState::Held { claim_by_height })?;
                Arrival::Held(claim_by_height)
            }
            Some(HoldState::Open { .. }) => Arrival::TooLate,
            Some(HoldState::Held { claim_by_height }) => Arrival::Held(*claim_by_height),
            Some(state) if height < claim_by_height || !needs_path => {
                state.preimage().map_or(Arrival::GiveBack, Arrival::Claim)
            }
            Some(_) | None => Arrival::GiveBack,
        })
    }

    /// Stores the order to claim. The same order again is fine until it is carried out or too late.
    ///
    /// # Errors
    /// [`Error::NotFound`] if no hold invoice has the preimage's hash, [`Error::Conflict`] if nothing is
    /// held or it is too late, [`Error::Store`].
    pub fn order_claim(&self, preimage: &PaymentPreimage, height: u32) -> Result<PaymentHash, Error> {
        let hash = PaymentHash::from(*preimage);
        let mut all = lock(&self.all);
        match all.get(&hash) {
            None => Err(Error::not_found(format!(
                "a hold invoice with the payment hash {}, which is that of this preimage,",
                key(&hash)
            ))),
            Some(HoldState::Held { claim_by_height }) if height >= *claim_by_height => Err(Error::Conflict(
                format!("too late: it had to be claimed before height {claim_by_height}, and it is {height}"),
            )),
            Some(HoldState::Held { claim_by_height }) => {
                let (preimage, claim_by_height) = (hex::encode(preimage.0), *claim_by_height);
                self.put(&mut all, &hash, HoldState::Claiming { preimage, claim_by_height })?;
                Ok(hash)
            }
            Some(HoldState::Claiming { claim_by_height, .. }) if height < *claim_by_height => Ok(hash),
            Some(other) => Err(nothing_held(other)),
        }
    }

    /// Stores the order to give a payment back.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such hold invoice, [`Error::Conflict`] if nothing is held,
    /// [`Error::Store`].
    pub fn order_fail(&self, hash: &PaymentHash) -> Result<(), Error> {
        let mut all = lock(&self.all);
        match all.get(hash) {
            None => Err(Error::not_found(format!("a hold invoice with the payment hash {}", key(hash)))),
            Some(HoldState::Held { .. }) => self.put(&mut all, hash, HoldState::Failed),
            Some(other) => Err(nothing_held(other)),
        }
    }

    /// LDK has claimed it. Does nothing for a payment that was no hold.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn claimed(&self, hash: &PaymentHash) -> Result<(), Error> {
        let mut all = lock(&self.all);
        match all.get(hash) {
            Some(HoldState::Claiming { preimage, .. }) => {
                let preimage = preimage.clone();
                self.put(&mut all, hash, HoldState::Claimed { preimage })
            }
            _ => Ok(()),
        }
    }

    /// Ends one that is overdue and returns it: one that is held at `claim_by_height`, or that LDK has not
    /// claimed `grace` blocks later although it was told to.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn take_overdue(&self, height: u32, grace: u32) -> Result<Option<PaymentHash>, Error> {
        let mut all = lock(&self.all);
        let overdue = all.iter().find(|(_, state)| match state {
            HoldState::Held { claim_by_height } => height >= *claim_by_height,
            HoldState::Claiming { claim_by_height, .. } => height >= claim_by_height.saturating_add(grace),
            _ => false,
        });
        let Some(hash) = overdue.map(|(hash, _)| *hash) else { return Ok(None) };
        self.put(&mut all, &hash, HoldState::Failed)?;
        Ok(Some(hash))
    }

    /// All that is known, for the start.
    pub fn all(&self) -> Vec<(PaymentHash, HoldState)> {
        lock(&self.all).iter().map(|(hash, state)| (*hash, state.clone())).collect()
    }
}

fn nothing_held(state: &HoldState) -> Error {
    let why = match state {
        HoldState::Claiming { .. } => "the payment is being claimed",
        HoldState::Claimed { .. } => "the payment has been claimed",
        HoldState::Failed => "the payment has been given back",
        HoldState::Open { .. } | HoldState::Held { .. } => "nothing was paid yet",
    };
    Error::Conflict(format!("nothing is held under this payment hash: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREIMAGE: PaymentPreimage = PaymentPreimage([7; 32]);

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        (dir, store)
    }

    fn held(store: &Arc<Store>) -> (Holds, PaymentHash) {
        let holds = Holds::open(Arc::clone(store)).unwrap();
        let hash = PaymentHash::from(PREIMAGE);
        holds.add(&hash, 60).unwrap();
        assert_eq!(holds.arrived(&hash, 100, 120, true, true).unwrap(), Arrival::Held(120));
        assert_eq!(
            holds.arrived(&hash, 101, 130, true, true).unwrap(),
            Arrival::Held(120),
            "the event again"
        );
        (holds, hash)
    }

    #[test]
    fn an_order_outlives_the_process_and_meets_whatever_arrives_again() {
        let (_dir, store) = store();
        let (holds, hash) = held(&store);
        assert_eq!(holds.order_claim(&PREIMAGE, 119).unwrap(), hash);
        assert!(matches!(holds.order_fail(&hash), Err(Error::Conflict(_))), "one order wins");
        drop(holds);
        let holds = Holds::open(Arc::clone(&store)).unwrap();
        let stored = holds.all();
        let [(_, state)] = stored.as_slice() else { panic!("the order is not on disk: {stored:?}") };
        assert_eq!(state.preimage(), Some(PREIMAGE));
        // the event again, in time and too late
        assert_eq!(holds.order_claim(&PREIMAGE, 119).unwrap(), hash);
        assert_eq!(holds.arrived(&hash, 119, 120, true, true).unwrap(), Arrival::Claim(PREIMAGE));
        assert_eq!(holds.arrived(&hash, 119, 120, true, false).unwrap(), Arrival::Claim(PREIMAGE), "ordered");
        assert_eq!(holds.arrived(&hash, 120, 120, true, true).unwrap(), Arrival::GiveBack);
        assert_eq!(
            holds.arrived(&hash, 120, 120, false, true).unwrap(),
            Arrival::Claim(PREIMAGE),
            "on the chain"
        );
        assert!(matches!(holds.order_claim(&PREIMAGE, 120), Err(Error::Conflict(_))));
        // LDK had begun the claim
        holds.claimed(&hash).unwrap();
        assert_eq!(holds.arrived(&hash, 125, 200, true, true).unwrap(), Arrival::Claim(PREIMAGE));
        assert_eq!(holds.arrived(&hash, 200, 200, true, true).unwrap(), Arrival::GiveBack);
        assert_eq!(holds.take_overdue(1000, 39).unwrap(), None);
        assert!(matches!(holds.order_claim(&PREIMAGE, 110), Err(Error::Conflict(_))));
    }

    #[test]
    fn what_nobody_claims_is_given_back_for_good() {
        let (_dir, store) = store();
        let (holds, hash) = held(&store);
        assert_eq!(holds.take_overdue(119, 39).unwrap(), None);
        let late = holds.order_claim(&PREIMAGE, 120).unwrap_err().to_string();
        assert!(late.contains("before height 120"), "{late}");
        assert_eq!(holds.take_overdue(120, 39).unwrap(), Some(hash));
        let holds = Holds::open(Arc::clone(&store)).unwrap();
        assert_eq!(holds.arrived(&hash, 121, 200, true, true).unwrap(), Arrival::GiveBack);
        let e = holds.order_claim(&PREIMAGE, 100).unwrap_err().to_string();
        assert!(e.contains("given back"), "{e}");
    }

    #[test]
    fn a_claim_that_ldk_could_not_carry_out_ends_too() {
        let (_dir, store) = store();
        let (holds, hash) = held(&store);
        holds.order_claim(&PREIMAGE, 119).unwrap();
        assert_eq!(holds.take_overdue(158, 39).unwrap(), None);
        assert_eq!(holds.take_overdue(159, 39).unwrap(), Some(hash));
    }

    #[test]
    fn orders_for_what_is_not_there_are_refused() {
        let (_dir, store) = store();
        let holds = Holds::open(store).unwrap();
        let hash = PaymentHash::from(PREIMAGE);
        assert!(matches!(holds.order_claim(&PREIMAGE, 1), Err(Error::NotFound { .. })));
        assert!(matches!(holds.order_fail(&hash), Err(Error::NotFound { .. })));
        assert_eq!(holds.arrived(&hash, 1, 9, true, true).unwrap(), Arrival::GiveBack, "a stranger's hash");
        holds.add(&hash, 60).unwrap();
        assert!(matches!(holds.add(&hash, 60), Err(Error::Conflict(_))));
        assert!(matches!(holds.order_claim(&PREIMAGE, 1), Err(Error::Conflict(_))));
        assert!(matches!(holds.order_fail(&hash), Err(Error::Conflict(_))));
        assert_eq!(
            holds.arrived(&hash, 9, 9, true, true).unwrap(),
            Arrival::TooLate,
            "no block left to claim in"
        );
        assert_eq!(
            holds.arrived(&hash, 8, 9, true, false).unwrap(),
            Arrival::TooLate,
            "over shallow funding"
        );
        assert_eq!(holds.arrived(&hash, 8, 9, true, true).unwrap(), Arrival::Held(9), "paid again in time");
        holds.withdraw(&hash).unwrap();
        assert_eq!(
            holds.arrived(&hash, 8, 9, true, true).unwrap(),
            Arrival::Held(9),
            "only one that nobody has paid"
        );
        let other = PaymentHash([1; 32]);
        holds.add(&other, 60).unwrap();
        holds.withdraw(&other).unwrap();
        holds.add(&other, 60).unwrap();
    }

    #[test]
    fn their_number_is_bounded() {
        let (_dir, store) = store();
        let holds = Holds::open(store).unwrap();
        let hash = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            PaymentHash(bytes)
        };
        for n in 0..MAX_OPEN {
            holds.add(&hash(n), 60).unwrap();
        }
        assert!(matches!(holds.add(&hash(MAX_OPEN), 60), Err(Error::Conflict(_))));
        // one that is over makes room, and is itself dropped when many are
        holds.arrived(&hash(0), 1, 9, true, true).unwrap();
        holds.order_fail(&hash(0)).unwrap();
        holds.add(&hash(MAX_OPEN), 60).unwrap();
        for n in 1..MAX_OPEN {
            holds.arrived(&hash(n), 1, 9, true, true).unwrap();
            holds.order_fail(&hash(n)).unwrap();
            holds.add(&hash(MAX_OPEN + n), 60).unwrap();
        }
        assert_eq!(holds.all().len(), MAX_KEPT);
        holds.arrived(&hash(MAX_OPEN), 1, 9, true, true).unwrap();
        holds.order_fail(&hash(MAX_OPEN)).unwrap();
        holds.add(&hash(MAX_KEPT), 60).unwrap();
        assert_eq!(holds.all().len(), MAX_OPEN);
    }
}
