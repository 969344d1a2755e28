//! What the LSP records of each JIT channel that it opens: what it cost, why it was opened, whether anything was ever paid
//! over it, and its funding transaction until that is deep.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bitcoin::consensus::encode;
use bitcoin::secp256k1::PublicKey;
use bitcoin::Transaction;
use lightning::util::persist::KVStoreSync;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::store::{records, Store};
use crate::util::lock;

const NAMESPACE: &str = "jit_channels";
const VERSION: u32 = 1;

/// One JIT channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Whose.
    pub(crate) peer: PublicKey,
    /// Capacity, sat.
    pub(crate) capacity_sat: u64,
    /// Fee of its funding transaction, sat; 0 until there is one.
    pub(crate) fee_sat: u64,
    /// Why the factory did not do, in a word; none for one that the operator opened.
    pub(crate) cause: Option<String>,
    /// Height at which it was opened.
    pub(crate) height: u32,
    /// Its funding transaction, hex, until that is deep.
    pub(crate) funding: Option<String>,
    /// The client has signed: the funding transaction may be broadcast, and may have been.
    pub(crate) signed: bool,
    /// A payment has been taken over it.
    pub(crate) taken: bool,
    /// It is closed.
    pub(crate) closed: bool,
    /// Height at which it was closed.
    #[serde(default)]
    pub(crate) closed_at: Option<u32>,
    /// The child that pays for its funding transaction, hex, if that lingered.
    #[serde(default)]
    pub(crate) child: Option<String>,
    /// The child's fee, sat.
    #[serde(default)]
    pub(crate) child_fee_sat: u64,
    /// Height at which the child was made last.
    #[serde(default)]
    pub(crate) carried_at: Option<u32>,
}

impl Record {
    pub(super) fn new(peer: PublicKey, capacity_sat: u64, cause: Option<String>, height: u32) -> Self {
        Self {
            peer,
            capacity_sat,
            fee_sat: 0,
            cause,
            height,
            funding: None,
            signed: false,
            taken: false,
            closed: false,
            closed_at: None,
            child: None,
            child_fee_sat: 0,
            carried_at: None,
        }
    }

    /// Its funding transaction, while that is not deep.
    pub(super) fn transaction(&self) -> Option<Transaction> {
        encode::deserialize_hex(self.funding.as_ref()?).ok()
    }

    /// The child of that.
    pub(super) fn child_transaction(&self) -> Option<Transaction> {
        encode::deserialize_hex(self.child.as_ref()?).ok()
    }
}

/// All of them, by user channel id: one for each funding transaction that the LSP has paid for.
pub(super) struct Records {
    store: Arc<Store>,
    all: Mutex<HashMap<u128, Record>>,
}

fn key(id: u128) -> String {
    format!("{id:032x}")
}

impl Records {
    pub(super) fn open(store: Arc<Store>) -> Result<Self, Error> {
        let mut all = HashMap::new();
        for (name, record) in records::all::<Record>(&*store, NAMESPACE, VERSION)? {
            let id = u128::from_str_radix(&name, 16)
                .map_err(|e| Error::Corrupt { key: format!("{NAMESPACE}/{name}"), reason: e.to_string() })?;
            all.insert(id, record);
        }
        Ok(Self { store, all: Mutex::new(all) })
    }

    /// Writes a record.
    ///
    /// # Errors
    /// [`Error::Store`]; nothing has changed then.
    pub(super) fn put(&self, id: u128, record: Record) -> Result<(), Error> {
        let mut all = lock(&self.all);
        records::put(&*self.store, NAMESPACE, &key(id), VERSION, &record)?;
        all.insert(id, record);
        Ok(())
    }

    /// Changes a record, if there is one; writes only what is new.
    ///
    /// # Errors
    /// [`Error::Store`]; nothing has changed then.
    pub(super) fn change(&self, id: u128, change: impl FnOnce(&mut Record)) -> Result<bool, Error> {
        let mut all = lock(&self.all);
        let Some(record) = all.get_mut(&id) else { return Ok(false) };
        let mut new = record.clone();
        change(&mut new);
        if new != *record {
            records::put(&*self.store, NAMESPACE, &key(id), VERSION, &new)?;
            *record = new;
        }
        Ok(true)
    }

    /// Forgets one that never came to be.
    ///
    /// # Errors
    /// [`Error::Store`]; nothing has changed then.
    pub(super) fn remove(&self, id: u128) -> Result<(), Error> {
        let mut all = lock(&self.all);
        self.store
            .remove(NAMESPACE, "", &key(id), false)
            .map_err(|e| Error::Store(format!("{NAMESPACE}/{}: {e}", key(id))))?;
        all.remove(&id);
        Ok(())
    }

    pub(super) fn get(&self, id: u128) -> Option<Record> {
        lock(&self.all).get(&id).cloned()
    }

    pub(super) fn all(&self) -> Vec<(u128, Record)> {
        lock(&self.all).iter().map(|(id, record)| (*id, record.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let peer = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
        let record = Record::new(peer, 70_000, Some("Exhausted".into()), 7);
        let store = Arc::new(Store::open(&path).unwrap());
        let records = Records::open(Arc::clone(&store)).unwrap();
        records.put(1, record.clone()).unwrap();
        records.put(u128::MAX, record.clone()).unwrap();
        assert!(records.change(1, |r| r.taken = true).unwrap());
        assert!(!records.change(2, |r| r.taken = true).unwrap());
        records.remove(u128::MAX).unwrap();
        drop((records, store));
        let records = Records::open(Arc::new(Store::open(&path).unwrap())).unwrap();
        assert_eq!(records.all(), vec![(1, Record { taken: true, ..record })]);
        assert_eq!(records.get(2), None);
    }
}
