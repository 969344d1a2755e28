//! Payments in and out, one record each.

use std::sync::{Arc, Mutex, PoisonError};

use lightning::types::payment::PaymentHash;

use super::{records, Store};
use crate::api::{Direction, Payment, PaymentStatus};
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
    };
    format!("{}_{side}", hex::encode(hash.0))
}

impl Payments {
    /// Over the node's store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, lock: Mutex::new(()) }
    }

    /// Records a payment or a change of it. A final status is never replaced by "pending".
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
        let mut payment = old.clone().unwrap_or_else(|| Payment {
            payment_hash: hex::encode(hash.0),
            direction,
            amount_msat: 0,
            fee_msat: 0,
            status: PaymentStatus::Pending,
            failure: None,
            updated_at: 0,
        });
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
