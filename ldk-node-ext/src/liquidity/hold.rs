//! HTLCs that are held until there is room for them: a table in memory, bounded for each client and in all.
//!
//! All HTLCs of one payment (the parts of an MPP set) are held together. A payment that this node makes itself, for what a
//! relay holds, waits here too; it has no HTLCs yet, and goes where its own router sends it. Nothing here is stored: LDK tells of every HTLC
//! that nobody has answered again after a restart.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bitcoin::secp256k1::PublicKey;
use lightning::types::payment::PaymentHash;

use super::decide::Amount;
use crate::node::Intercepted;

/// HTLCs for one client that are held at a time: as many as a channel takes.
const MAX_OF_CLIENT: usize = 50;
/// HTLCs that are held at a time.
const MAX_IN_ALL: usize = 1200;
/// Of these, such for clients that are away: who pays absent clients keeps nobody who is there from being served.
const MAX_AWAY: usize = 1000;
/// Of these, such that came to the ids of LSPS2 offers: anybody can take those, under any number of names.
const MAX_BOUGHT: usize = 500;
/// Parts of a payment come one after the other; so long after the last one it is decided what is done with them.
const GATHER: Duration = Duration::from_millis(150);
/// How long channels may take to be usable after a connection was made.
const SETTLING: Duration = Duration::from_secs(3);
/// LDK gives an HTLC back by itself so many blocks before it would expire at the next node; some more are left for it to
/// travel.
const BEFORE_EXPIRY: u32 = 39 + 3;

/// Why an HTLC is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The client has as many as it may.
    Client,
    /// There are as many as there may be.
    All,
}

/// A payment that is held.
#[derive(Clone, Debug)]
pub(super) struct Payment {
    /// Its HTLCs, by LDK's ids.
    pub(super) parts: Vec<Intercepted>,
    /// A payment of this node's own instead, msat.
    pub(super) own_msat: Option<u64>,
    /// Which has to go over the client's channel in the factory.
    pub(super) into_factory: bool,
    /// When the first one came.
    since: Instant,
    /// When the last one came.
    newest: Instant,
    /// Since when the client has been there.
    there_since: Option<Instant>,
    /// It came to the id of an LSPS2 offer.
    pub(super) bought: bool,
    /// A channel is being opened for it.
    pub(super) opening: bool,
    /// User channel id of that channel, if it was begun by this process.
    pub(super) channel: Option<u128>,
    /// A rotation was begun for it, or cannot be.
    pub(super) rotated: bool,
    /// What was decided last, so that it is told once.
    pub(super) told: Option<&'static str>,
}

impl Payment {
    /// One of this node's own.
    pub(super) fn own(msat: u64, into_factory: bool, now: Instant) -> Self {
        Self { own_msat: Some(msat), into_factory, ..Self::begun(false, now) }
    }

    fn begun(bought: bool, now: Instant) -> Self {
        Self {
            parts: Vec::new(),
            own_msat: None,
            into_factory: false,
            since: now,
            newest: now,
            there_since: None,
            bought,
            opening: false,
            channel: None,
            rotated: false,
            told: None,
        }
    }

    /// What is to reach the client.
    pub(super) fn amount(&self) -> Amount {
        self.own_msat.map_or_else(|| Amount::Parts(self.amounts()), Amount::Divisible)
    }

    /// Amounts of its parts, msat; of one of this node's own all of it.
    pub(super) fn amounts(&self) -> Vec<u64> {
        self.own_msat.into_iter().chain(self.parts.iter().map(|p| p.amount_msat)).collect()
    }

    /// Sum of its parts, msat.
    pub(super) fn total_msat(&self) -> u64 {
        self.amounts().iter().fold(0, |sum, part| sum.saturating_add(*part))
    }

    /// Places that it takes.
    fn places(&self) -> usize {
        self.parts.len().max(1)
    }

    /// Whether no part has come for a while.
    pub(super) fn is_gathered(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.newest) >= GATHER
    }

    /// Whether its client was not there a moment ago: one that was just connected may still have to agree with us on its
    /// channels.
    pub(super) fn is_settling(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.there_since.unwrap_or(now)) < SETTLING
    }

    /// Why it cannot be held any longer.
    pub(super) fn over(&self, now: Instant, limit: Duration, height: u32) -> Option<&'static str> {
        let soon = |p: &Intercepted| p.outgoing_expiry.unwrap_or(0) <= height.saturating_add(BEFORE_EXPIRY);
        if self.parts.iter().any(soon) {
            return Some("it would expire");
        }
        (now.saturating_duration_since(self.since) >= limit).then_some("it was held as long as may be")
    }
}

/// By whom it is for, and its hash.
pub(super) type Key = (PublicKey, PaymentHash);

/// The table.
#[derive(Default)]
pub(crate) struct Held {
    payments: HashMap<Key, Payment>,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.payments.is_empty()
    }

    /// HTLCs held.
    pub(super) fn count(&self) -> usize {
        self.payments.values().map(Payment::places).sum()
    }

    fn count_of(&self, client: &PublicKey) -> usize {
        self.payments.iter().filter(|((c, _), _)| c == client).map(|(_, p)| p.places()).sum()
    }

    fn has_place(&self, client: &PublicKey, there: bool) -> Result<(), Full> {
        let away = || self.payments.values().filter(|p| p.there_since.is_none()).map(Payment::places).sum();
        let away: usize = if there { 0 } else { away() };
        if self.count() >= MAX_IN_ALL || away >= MAX_AWAY {
            return Err(Full::All);
        }
        if self.count_of(client) >= MAX_OF_CLIENT {
            return Err(Full::Client);
        }
        Ok(())
    }

    /// Takes a payment of this node's own; one that waits already stays as it is. Returns whether it is new.
    pub(super) fn add_own(&mut self, key: Key, own: Payment) -> Result<bool, Full> {
        if self.payments.contains_key(&key) {
            return Ok(false);
        }
        self.has_place(&key.0, true)?;
        self.payments.insert(key, own);
        Ok(true)
    }

    /// Takes an HTLC; one that is held already stays as it is.
    pub(super) fn add(
        &mut self,
        client: PublicKey,
        part: Intercepted,
        (bought, there): (bool, bool),
        now: Instant,
    ) -> Result<(), Full> {
        let key = (client, part.payment_hash);
        if self.payments.get(&key).is_some_and(|p| p.parts.iter().any(|known| known.id == part.id)) {
            return Ok(());
        }
        // Under the hash of a payment of our own nothing else can be meant.
        if self.payments.get(&key).is_some_and(|p| p.own_msat.is_some()) {
            return Err(Full::Client);
        }
        self.has_place(&client, there)?;
        let sold = self.payments.values().filter(|p| p.bought).map(Payment::places);
        if bought && sold.sum::<usize>() >= MAX_BOUGHT {
            return Err(Full::All);
        }
        let payment = self.payments.entry(key).or_insert_with(|| Payment::begun(bought, now));
        payment.there_since = payment.there_since.or(there.then_some(now));
        payment.newest = now;
        payment.parts.push(part);
        Ok(())
    }

    /// All payments for each client, the oldest first.
    pub(super) fn by_client(&self) -> HashMap<PublicKey, Vec<(PaymentHash, Payment)>> {
        let mut all: HashMap<PublicKey, Vec<(PaymentHash, Payment)>> = HashMap::new();
        for ((client, hash), payment) in &self.payments {
            all.entry(*client).or_default().push((*hash, payment.clone()));
        }
        for list in all.values_mut() {
            list.sort_by_key(|(_, payment)| payment.since);
        }
        all
    }

    /// All clients for whom something is held.
    pub(super) fn clients(&self) -> HashSet<PublicKey> {
        self.payments.keys().map(|(client, _)| *client).collect()
    }

    /// Notes who is there.
    pub(super) fn note_there(&mut self, there: &HashSet<PublicKey>, now: Instant) {
        for ((client, _), payment) in &mut self.payments {
            payment.there_since = there.contains(client).then(|| payment.there_since.unwrap_or(now));
        }
    }

    /// A payment, to note something of it.
    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Payment> {
        self.payments.get_mut(key)
    }

    /// Takes a payment out: it is answered.
    pub(super) fn take(&mut self, key: &Key) -> Option<Payment> {
        self.payments.remove(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightning::ln::channelmanager::InterceptId;

    fn client(n: u8) -> PublicKey {
        let secret = bitcoin::secp256k1::SecretKey::from_slice(&[n; 32]).unwrap();
        secret.public_key(&bitcoin::secp256k1::Secp256k1::new())
    }

    fn part(hash: u8, id: u32) -> Intercepted {
        let mut bytes = [hash; 32];
        bytes[..4].copy_from_slice(&id.to_be_bytes());
        Intercepted {
            id: InterceptId(bytes),
            next_scid: 1,
            payment_hash: PaymentHash([hash; 32]),
            amount_msat: 1_000,
            inbound_msat: 1_000,
            outgoing_expiry: Some(500),
        }
    }

    #[test]
    fn a_client_and_all_of_them_are_bounded() {
        let (mut held, now) = (Held::default(), Instant::now());
        for id in 0..50 {
            held.add(client(1), part(1, id), (false, false), now).unwrap();
        }
        assert_eq!(held.add(client(1), part(2, 0), (false, false), now), Err(Full::Client));
        held.add(client(1), part(1, 7), (false, false), now).unwrap();
        assert_eq!(held.count(), 50, "one that is known is not held twice");
        for n in 2..=20 {
            for id in 0..50 {
                held.add(client(n), part(n, id), (false, false), now).unwrap();
            }
        }
        assert_eq!(held.add(client(21), part(1, 0), (false, false), now), Err(Full::All));
        for n in 22..=25 {
            for id in 0..50 {
                held.add(client(n), part(n, id), (false, true), now).unwrap();
            }
        }
        assert_eq!(held.add(client(26), part(1, 0), (false, true), now), Err(Full::All), "who is there, too");
        for n in 22..=25 {
            held.take(&(client(n), PaymentHash([n; 32]))).unwrap();
        }
        assert_eq!(held.take(&(client(1), PaymentHash([1; 32]))).unwrap().parts.len(), 50);
        held.add(client(21), part(1, 0), (false, false), now).unwrap();
        assert_eq!((held.count(), held.by_client().len()), (951, 20));
    }

    #[test]
    fn wallets_do_not_take_the_places_of_clients() {
        let (mut held, now) = (Held::default(), Instant::now());
        for n in 1..=10 {
            for id in 0..50 {
                held.add(client(n), part(n, id), (true, false), now).unwrap();
            }
        }
        assert_eq!(held.add(client(11), part(11, 0), (true, false), now), Err(Full::All));
        held.add(client(11), part(11, 0), (false, false), now).unwrap();
        held.take(&(client(1), PaymentHash([1; 32]))).unwrap();
        held.add(client(11), part(12, 0), (true, false), now).unwrap();
    }

    #[test]
    fn a_client_that_comes_back_late_has_time_to_settle() {
        let (mut held, start) = (Held::default(), Instant::now());
        held.add(client(1), part(1, 0), (false, false), start).unwrap();
        let there = HashSet::from([client(1)]);
        assert_eq!(held.clients(), there);
        let later = |secs| start + Duration::from_secs(secs);
        let settles = |held: &Held, secs| held.by_client()[&client(1)][0].1.is_settling(later(secs));
        held.note_there(&HashSet::new(), later(20));
        held.note_there(&there, later(21));
        held.note_there(&there, later(22));
        assert!(settles(&held, 23) && !settles(&held, 24));
        held.note_there(&HashSet::new(), later(25));
        held.note_there(&there, later(26));
        assert!(settles(&held, 28));
    }

    #[test]
    fn nothing_is_held_too_long() {
        let (mut held, start) = (Held::default(), Instant::now());
        held.add(client(1), part(1, 0), (false, false), start).unwrap();
        let later = |ms| start + Duration::from_millis(ms);
        held.add(client(1), part(1, 1), (false, false), later(100)).unwrap();
        let payment = held.by_client().remove(&client(1)).unwrap().remove(0).1;
        assert_eq!((payment.amounts(), payment.total_msat()), (vec![1_000, 1_000], 2_000));
        assert!(!payment.is_gathered(later(200)) && payment.is_gathered(later(250)));
        let limit = Duration::from_secs(30);
        assert_eq!(payment.over(later(29_999), limit, 400), None);
        assert!(payment.over(later(30_000), limit, 400).is_some());
        assert_eq!(payment.over(start, limit, 457), None);
        assert!(payment.over(start, limit, 458).is_some());
    }
}
