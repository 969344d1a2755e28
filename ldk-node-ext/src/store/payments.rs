//! Payments in and out, one record each.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use lightning::ln::channelmanager::PaymentId;
use lightning::types::payment::PaymentHash;

use super::{records, Store};
use crate::api::{Direction, MovedPayment, Payment, PaymentStatus};
use crate::error::Error;
use crate::util::unix_now;

const NAMESPACE: &str = "payments";
const VERSION: u32 = 1;

/// The record of payments. Updates are serialized by a lock, so none is lost.
#[derive(Debug)]
pub struct Payments {
    store: Arc<Store>,
    lock: Mutex<()>,
}

fn key(hash: &PaymentHash, direction: Direction) -> String {
    let side = match direction {
        Direction::In => "in",
        Direction::Out => "out",
        Direction::Relayed => "relayed",
        Direction::Moved => "moved",
    };
    format!("{}_{side}", hex::encode(hash.0))
}

impl Payment {
    /// One of which nothing more is known.
    pub(crate) fn new(payment_hash: String, direction: Direction) -> Self {
        Self {
            payment_hash,
            payment_id: None,
            offer_id: None,
            direction,
            amount_msat: 0,
            fee_msat: 0,
            status: PaymentStatus::Pending,
            failure: None,
            claim_by_height: None,
            relayed: None,
            moved: None,
            updated_at: 0,
        }
    }
}

impl Payments {
    /// Over the node's store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, lock: Mutex::new(()) }
    }

    /// Takes an outgoing payment for sending: records it as pending unless it is pending or done. Of
    /// several callers one gets it.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the invoice is being paid or has been paid, [`Error::Store`].
    pub fn claim(&self, hash: &PaymentHash, amount_msat: u64) -> Result<Payment, Error> {
        self.begin(hash, amount_msat, |_| {})
    }

    /// As [`Self::claim`], of money that this node pays to itself.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn claim_move(
        &self,
        hash: &PaymentHash,
        amount_msat: u64,
        moved: MovedPayment,
    ) -> Result<Payment, Error> {
        self.begin(hash, amount_msat, |payment| payment.moved = Some(moved))
    }

    /// As [`Self::claim`], of a payment to an offer with this id.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn claim_to_offer(
        &self,
        hash: &PaymentHash,
        amount_msat: u64,
        id: &PaymentId,
        offer_id: &str,
    ) -> Result<Payment, Error> {
        self.begin(hash, amount_msat, |payment| {
            payment.payment_id = Some(hex::encode(id.0));
            payment.offer_id = Some(offer_id.to_owned());
        })
    }

    fn begin(
        &self,
        hash: &PaymentHash,
        amount_msat: u64,
        fill: impl FnOnce(&mut Payment),
    ) -> Result<Payment, Error> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(hash, Direction::Out);
        let old: Option<Payment> = records::get(&*self.store, NAMESPACE, &key, VERSION)?;
        match old.map(|p| p.status) {
            Some(PaymentStatus::Succeeded) => {
                return Err(Error::Conflict("this invoice has been paid".into()))
            }
            Some(PaymentStatus::Pending | PaymentStatus::Held) => {
                return Err(Error::Conflict("this invoice is being paid".into()))
            }
            Some(PaymentStatus::Failed) | None => {}
        }
        let mut payment = Payment {
            amount_msat,
            updated_at: unix_now(),
            ..Payment::new(hex::encode(hash.0), Direction::Out)
        };
        fill(&mut payment);
        records::put(&*self.store, NAMESPACE, &key, VERSION, &payment)?;
        Ok(payment)
    }

    /// At start: pending outgoing payments that LDK does not know never left, since it stores a payment
    /// before it sends it. They become failed, so that they can be tried again. Returns how many.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn fail_unknown(&self, known: &HashSet<PaymentHash>) -> Result<usize, Error> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let known: HashSet<String> = known.iter().map(|h| hex::encode(h.0)).collect();
        let mut failed = 0;
        for (key, mut payment) in records::all::<Payment>(&*self.store, NAMESPACE, VERSION)? {
            let pending = payment.direction == Direction::Out && payment.status == PaymentStatus::Pending;
            // LDK has it under the hash, or under the id if it is to an offer.
            let id = payment.payment_id.as_ref().unwrap_or(&payment.payment_hash);
            if !pending || known.contains(id) {
                continue;
            }
            payment.status = PaymentStatus::Failed;
            payment.failure = Some("the node stopped before it was sent".into());
            payment.updated_at = unix_now();
            records::put(&*self.store, NAMESPACE, &key, VERSION, &payment)?;
            failed += 1;
        }
        Ok(failed)
    }

    /// Records a payment or a change of it. A success is never replaced.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn record(
        &self,
        hash: &PaymentHash,
        direction: Direction,
        change: impl FnOnce(&mut Payment),
    ) -> Result<Payment, Error> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(hash, direction);
        let old: Option<Payment> = records::get(&*self.store, NAMESPACE, &key, VERSION)?;
        let mut payment = old.clone().unwrap_or_else(|| Payment::new(hex::encode(hash.0), direction));
        change(&mut payment);
        if let Some(old) = old {
            if old.status == PaymentStatus::Succeeded && payment.status != PaymentStatus::Succeeded {
                return Ok(old);
            }
        }
        payment.updated_at = unix_now();
        records::put(&*self.store, NAMESPACE, &key, VERSION, &payment)?;
        Ok(payment)
    }

    /// The payment of one direction under a hash.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn get(&self, hash: &PaymentHash, direction: Direction) -> Result<Option<Payment>, Error> {
        records::get(&*self.store, NAMESPACE, &key(hash, direction), VERSION)
    }

    /// All of them, oldest change first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn all(&self) -> Result<Vec<Payment>, Error> {
        let mut list: Vec<Payment> =
            records::all(&*self.store, NAMESPACE, VERSION)?.into_iter().map(|(_, p)| p).collect();
        list.sort_by_key(|p| p.updated_at);
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payments() -> (tempfile::TempDir, Payments) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        (dir, Payments::new(store))
    }

    fn status(payments: &Payments, hash: &PaymentHash) -> PaymentStatus {
        payments.get(hash, Direction::Out).unwrap().unwrap().status
    }

    #[test]
    fn of_many_callers_one_gets_to_send() {
        let (_dir, payments) = payments();
        let hash = PaymentHash([1; 32]);
        let won = std::thread::scope(|s| {
            let tries: Vec<_> = (0..8).map(|_| s.spawn(|| payments.claim(&hash, 5).is_ok())).collect();
            tries.into_iter().filter_map(|t| t.join().ok()).filter(|won| *won).count()
        });
        assert_eq!(won, 1);
        // again after a failure, never after a success
        let set = |status| payments.record(&hash, Direction::Out, |p| p.status = status).unwrap();
        set(PaymentStatus::Failed);
        assert_eq!(payments.claim(&hash, 7).unwrap().amount_msat, 7);
        set(PaymentStatus::Succeeded);
        assert!(matches!(payments.claim(&hash, 7), Err(Error::Conflict(_))));
        assert_eq!(status(&payments, &hash), PaymentStatus::Succeeded);
    }

    #[test]
    fn what_ldk_does_not_know_was_never_sent() {
        let (_dir, payments) = payments();
        let [lost, sent, done, id] = [1, 2, 3, 4].map(|b| PaymentHash([b; 32]));
        let to_offer = PaymentHash([5; 32]);
        payments.claim_to_offer(&to_offer, 5, &PaymentId(id.0), "aa").unwrap();
        for hash in [&lost, &sent, &done] {
            payments.claim(hash, 5).unwrap();
        }
        payments.record(&done, Direction::Out, |p| p.status = PaymentStatus::Succeeded).unwrap();
        // one that comes in under the same hash is none of it
        payments.record(&lost, Direction::In, |p| p.amount_msat = 5).unwrap();
        assert_eq!(payments.fail_unknown(&HashSet::from([sent, id])).unwrap(), 1);
        assert_eq!(status(&payments, &lost), PaymentStatus::Failed);
        assert_eq!(status(&payments, &sent), PaymentStatus::Pending);
        assert_eq!(status(&payments, &to_offer), PaymentStatus::Pending);
        assert_eq!(status(&payments, &done), PaymentStatus::Succeeded);
        let incoming = payments.get(&lost, Direction::In).unwrap().unwrap();
        assert_eq!(incoming.status, PaymentStatus::Pending);
        assert!(payments.claim(&lost, 5).is_ok(), "it can be tried again");
    }
}
