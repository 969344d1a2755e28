//! The records of all relays (LSP). A change is on disk when it is seen, and before anything is done because of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bitcoin::secp256k1::PublicKey;
use factory_core::faults::switch;
use lightning::types::payment::PaymentHash;
use lightning::util::persist::KVStoreSync;
use tokio::sync::Notify;

use super::record::{Act, Input, Relay, State, Terms};
use crate::error::Error;
use crate::store::{records, Store};
use crate::util::{lock, unix_now};

const NAMESPACE: &str = "relays";
const VERSION: u32 = 1;
/// Records of relays that are over and are still kept, to be shown.
const MAX_OVER: usize = 1000;
/// LDK tells an invoice's end by the blocks' times, which may be off by that much, seconds.
const LAPSE_SLACK: u64 = 3 * 3600;

type All = HashMap<PaymentHash, Relay>;

/// All relays.
#[derive(Debug)]
pub(crate) struct Relays {
    store: Arc<Store>,
    all: Mutex<All>,
    turn: Mutex<()>,
    /// One has come that is held.
    pub(super) held: Notify,
}

fn key(hash: &PaymentHash) -> String {
    hex::encode(hash.0)
}

impl Relays {
    /// Reads them all.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub(crate) fn open(store: Arc<Store>) -> Result<Self, Error> {
        let mut all = HashMap::new();
        for (key, relay) in records::all::<Relay>(&*store, NAMESPACE, VERSION)? {
            let mut hash = [0; 32];
            hex::decode_to_slice(&key, &mut hash)
                .map_err(|e| Error::Corrupt { key: format!("{NAMESPACE}/{key}"), reason: e.to_string() })?;
            all.insert(PaymentHash(hash), relay);
        }
        Ok(Self { store, all: Mutex::new(all), turn: Mutex::new(()), held: Notify::new() })
    }

    /// From a step to the end of what is done because of it nobody else takes one: what LDK says of a payment and
    /// what is told to LDK must not cross.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// Whether this is a relay that is held and not paid on.
    pub(crate) fn is_held(&self, hash: &PaymentHash) -> bool {
        lock(&self.all).get(hash).is_some_and(|relay| relay.state == State::Held)
    }

    /// Has what is held looked at again: there is room for a payment now.
    pub(crate) fn wake(&self) {
        self.held.notify_one();
    }

    /// Whether this is a relay's payment hash.
    pub(crate) fn has(&self, hash: &PaymentHash) -> bool {
        lock(&self.all).contains_key(hash)
    }

    /// One of them.
    pub(crate) fn get(&self, hash: &PaymentHash) -> Option<Relay> {
        lock(&self.all).get(hash).cloned()
    }

    /// Whether a relay's client has been paid; `None` if this is no relay's hash.
    pub(crate) fn is_paid_on(&self, hash: &PaymentHash) -> Option<bool> {
        lock(&self.all).get(hash).map(|relay| relay.preimage().is_some())
    }

    /// Those for which this holds.
    pub(super) fn filtered(&self, wanted: impl Fn(&Relay) -> bool) -> Vec<(PaymentHash, Relay)> {
        lock(&self.all).iter().filter(|(_, r)| wanted(r)).map(|(h, r)| (*h, r.clone())).collect()
    }

    /// All that have been paid, for display.
    pub(crate) fn paid(&self) -> Vec<(PaymentHash, Relay)> {
        self.filtered(|relay| relay.state != State::Offered)
    }

    /// Whether one more of this client's may be open.
    ///
    /// # Errors
    /// [`Error::Conflict`] with the limit.
    pub(super) fn check_limits(&self, client: &PublicKey, limits: (usize, usize)) -> Result<(), Error> {
        check_limits(&lock(&self.all), client, unix_now(), limits)
    }

    /// Takes in a new one, whose invoice lapses after `expiry_secs`. At most `per_client` of one client's and `in_all`
    /// may be open.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the hash has been used or there are too many, [`Error::Store`].
    pub(super) fn add(
        &self,
        hash: &PaymentHash,
        terms: Terms,
        expiry_secs: u32,
        (per_client, in_all): (usize, usize),
    ) -> Result<(), Error> {
        let now = unix_now();
        let mut all = lock(&self.all);
        if all.contains_key(hash) {
            return Err(Error::Conflict("this payment hash has been used".into()));
        }
        check_limits(&all, &terms.client, now, (per_client, in_all))?;
        self.forget_oldest(&mut all, now)?;
        let lapses_at = now.saturating_add(u64::from(expiry_secs)).saturating_add(LAPSE_SLACK);
        self.put(&mut all, hash, Relay::new(Terms { lapses_at, ..terms }, now))
    }

    /// Takes one back whose invoice was not made after all.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn withdraw(&self, hash: &PaymentHash) -> Result<(), Error> {
        let mut all = lock(&self.all);
        match all.get(hash).map(|relay| &relay.state) {
            Some(State::Offered) => self.forget(&mut all, hash),
            _ => Ok(()),
        }
    }

    /// Drops what has lapsed unpaid, and the oldest of what has ended if there is too much of it. What LDK could still
    /// speak of ended long before.
    fn forget_oldest(&self, all: &mut All, now: u64) -> Result<(), Error> {
        let mut over: Vec<_> = all
            .iter()
            .filter(|(_, relay)| relay.is_over(now) && relay.terms.lapses_at < now)
            .map(|(hash, relay)| (relay.state != State::Offered, relay.updated_at, *hash))
            .collect();
        over.sort_unstable();
        let ended = over.iter().filter(|(paid, ..)| *paid).count();
        let many = over.len().saturating_sub(ended.min(MAX_OVER));
        for (.., hash) in over.into_iter().take(many) {
            self.forget(all, &hash)?;
        }
        Ok(())
    }

    fn put(&self, all: &mut All, hash: &PaymentHash, relay: Relay) -> Result<(), Error> {
        if !switch("relay.unstored") {
            records::put(&*self.store, NAMESPACE, &key(hash), VERSION, &relay)?;
        }
        all.insert(*hash, relay);
        Ok(())
    }

    fn forget(&self, all: &mut All, hash: &PaymentHash) -> Result<(), Error> {
        self.store
            .remove(NAMESPACE, "", &key(hash), false)
            .map_err(|e| Error::Store(format!("{NAMESPACE}: {e}")))?;
        all.remove(hash);
        Ok(())
    }

    /// Takes a step and stores what it changed; then it is time to do what it says. Also whether anything changed.
    /// `None`: there is no such relay.
    ///
    /// # Errors
    /// [`Error::Store`]: nothing has changed.
    pub(super) fn step(
        &self,
        hash: &PaymentHash,
        input: Input<'_>,
    ) -> Result<Option<(Act, Relay, bool)>, Error> {
        let mut all = lock(&self.all);
        let Some(old) = all.get(hash) else { return Ok(None) };
        let mut relay = old.clone();
        let act = relay.step(input);
        let changed = relay != *old;
        if changed {
            relay.updated_at = unix_now();
            self.put(&mut all, hash, relay.clone())?;
        }
        Ok(Some((act, relay, changed)))
    }
}

/// Whether one more of this client's may be open.
fn check_limits(
    all: &All,
    client: &PublicKey,
    now: u64,
    (per_client, in_all): (usize, usize),
) -> Result<(), Error> {
    let open = |wanted: Option<&PublicKey>| {
        let of = |r: &&Relay| !r.is_over(now) && wanted.is_none_or(|client| *client == r.terms.client);
        all.values().filter(of).count()
    };
    if open(Some(client)) >= per_client {
        let reason = format!("{per_client} such invoices are open for this client; that is the limit");
        return Err(Error::Conflict(reason));
    }
    if open(None) >= in_all {
        return Err(Error::Conflict(format!("{in_all} such invoices are open; that is the limit")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lightning::types::payment::PaymentPreimage;

    use super::super::record::{Bytes, Incoming};
    use super::*;

    const PREIMAGE: PaymentPreimage = PaymentPreimage([7; 32]);

    fn terms(client: u8) -> Terms {
        let secret = bitcoin::secp256k1::SecretKey::from_slice(&[client; 32]).unwrap();
        let client = secret.public_key(&bitcoin::secp256k1::Secp256k1::new());
        let secret = Bytes([9; 32]);
        Terms { client, secret, amount_msat: 5, fee_msat: 1, outgoing: 100, lapses_at: 0, moved: None }
    }

    fn hash(n: u8) -> PaymentHash {
        PaymentHash([n; 32])
    }

    fn arrived() -> Input<'static> {
        let incoming = Incoming { id: Bytes([1; 32]), msat: 6, claim_by: 500, until: 1 };
        Input::Arrived { incoming, height: 100, against: None }
    }

    fn open() -> (tempfile::TempDir, Arc<Store>, Relays) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let relays = Relays::open(Arc::clone(&store)).unwrap();
        (dir, store, relays)
    }

    #[test]
    fn a_step_is_on_disk_when_it_is_seen() {
        let (_dir, store, relays) = open();
        relays.add(&hash(1), terms(1), 60, (9, 9)).unwrap();
        assert_eq!(relays.step(&hash(1), arrived()).unwrap().unwrap().0, Act::Hold);
        relays.step(&hash(1), Input::Sent(PREIMAGE)).unwrap();
        let again = Relays::open(store).unwrap();
        assert_eq!(again.get(&hash(1)), relays.get(&hash(1)), "the step is not on disk");
        assert_eq!(again.get(&hash(1)).unwrap().preimage(), Some(PREIMAGE));
        assert_eq!((again.is_paid_on(&hash(1)), again.is_paid_on(&hash(2))), (Some(true), None));
        assert_eq!(again.step(&hash(2), arrived()).unwrap(), None);
    }

    #[test]
    fn open_ones_are_bounded_for_each_client_and_in_all() {
        let (_dir, _store, relays) = open();
        let add = |n, client| relays.add(&hash(n), terms(client), 60, (2, 3));
        add(1, 1).unwrap();
        assert!(matches!(add(1, 2), Err(Error::Conflict(_))), "one hash, one relay");
        add(2, 1).unwrap();
        let e = add(3, 1).unwrap_err().to_string();
        assert!(e.contains("2 such invoices are open for this client"), "{e}");
        add(3, 2).unwrap();
        let e = add(4, 3).unwrap_err().to_string();
        assert!(e.starts_with("3 such invoices are open;"), "{e}");
        // One that has ended makes room, one that waits for its end does not.
        relays.step(&hash(1), arrived()).unwrap();
        assert!(add(4, 3).is_err());
        relays.step(&hash(1), Input::Sent(PREIMAGE)).unwrap();
        relays.step(&hash(1), Input::Claimed).unwrap();
        add(4, 3).unwrap();
        relays.withdraw(&hash(4)).unwrap();
        relays.withdraw(&hash(1)).unwrap();
        assert!(relays.has(&hash(1)) && !relays.has(&hash(4)), "only one that nobody has paid");
    }
}
