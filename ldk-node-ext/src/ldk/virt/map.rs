//! The table of virtual and real outpoints, and of the transactions below them that are on the chain.
//!
//! One record a channel, written before the call that changes it returns. It holds for each V the transaction that
//! LDK believes creates it, the real outpoints under it, and which of those is confirmed; and of each confirmed
//! commitment on one of them, and of each HTLC transaction below that, both ids. The ids have to survive a restart:
//! a block that was read before it may contain the parent of a transaction in a block that is read after it.
//!
//! The ids are bounded by the chain itself: a commitment has at most 966 HTLC outputs, each is spent once, and what
//! is below an HTLC transaction is shown to LDK but has no children that matter to it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use bitcoin::{BlockHash, OutPoint, Transaction, TxOut, Txid};
use lightning::ln::types::ChannelId;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::store::tx::StoredTx;
use crate::store::{records, Store};
use crate::util::{read, write};

const NAMESPACE: &str = "virtual_outpoints";
const VERSION: u32 = 1;
/// Virtual outpoints of one channel: the live one, a splice's, and the retired ones that could still confirm.
pub(crate) const MAX_VIRTUALS: usize = 256;
/// Real outpoints under one virtual outpoint that could still confirm.
pub(crate) const MAX_REALS: usize = 256;
/// Transactions below one channel's outpoints of which both ids are kept: a commitment's on two branches of the chain.
pub(super) const MAX_FORMS: usize = 2_048;

/// A real outpoint under a virtual one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Real {
    /// An output of a leaf state.
    pub outpoint: OutPoint,
    /// That output.
    pub output: TxOut,
}

/// The block that something is confirmed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) height: u32,
    pub(super) block: BlockHash,
}

/// What is known of one V.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Virtual {
    pub(super) outpoint: OutPoint,
    /// The transaction that LDK believes creates it, with its witnesses; none for one that was not told.
    pub(super) creation: Option<StoredTx>,
    /// Oldest first.
    pub(super) reals: Vec<Real>,
    /// Which of them is confirmed.
    pub(super) confirmed: Option<(OutPoint, Place)>,
    pub(super) retired: bool,
    // What follows is said in `pending`.
    #[serde(default)]
    pub(super) ahead: bool,
    #[serde(default)]
    pub(super) bound: bool,
    #[serde(default)]
    pub(super) lockable: bool,
}

/// A transaction below a real outpoint, by both its ids.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Form {
    pub(super) real: Txid,
    pub(super) virt: Txid,
    /// The V and the R that it descends from.
    pub(super) under: (OutPoint, OutPoint),
    /// The outputs whose spends matter to LDK; none: all, it is a commitment.
    pub(super) followed: Option<Vec<u32>>,
    pub(super) place: Option<Place>,
}

/// A channel's record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Channel {
    pub(super) virtuals: Vec<Virtual>,
    pub(super) forms: Vec<Form>,
}

/// The channels, and what is looked up all the time.
#[derive(Default)]
pub(super) struct Inner {
    pub(super) channels: HashMap<ChannelId, Channel>,
    pub(super) by_virtual: HashMap<OutPoint, ChannelId>,
    pub(super) by_real: HashMap<OutPoint, OutPoint>,
    /// Transactions with an R among their outputs.
    pub(super) creations: HashSet<Txid>,
    /// [`Form`]s by their real id.
    pub(super) by_real_txid: HashMap<Txid, (ChannelId, usize)>,
    /// Channels whose record is older than what is known.
    pub(super) unwritten: HashSet<ChannelId>,
}

impl Inner {
    pub(super) fn virtual_ref(&self, v: &OutPoint) -> Option<(ChannelId, &Virtual)> {
        let id = *self.by_virtual.get(v)?;
        let found = self.channels.get(&id)?.virtuals.iter().find(|x| x.outpoint == *v)?;
        Some((id, found))
    }

    /// Makes the tables for looking up anew; changes of a channel are rare.
    pub(super) fn reindex(&mut self) {
        self.by_virtual.clear();
        self.by_real.clear();
        self.creations.clear();
        self.by_real_txid.clear();
        for (id, channel) in &self.channels {
            for v in &channel.virtuals {
                self.by_virtual.insert(v.outpoint, *id);
                for real in &v.reals {
                    self.by_real.insert(real.outpoint, v.outpoint);
                    self.creations.insert(real.outpoint.txid);
                }
            }
            for (at, form) in channel.forms.iter().enumerate() {
                self.by_real_txid.insert(form.real, (*id, at));
            }
        }
    }
}

/// See the module's description.
pub struct Mapping {
    pub(super) inner: RwLock<Inner>,
    store: Arc<Store>,
}

impl Mapping {
    /// Reads all records.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub(crate) fn load(store: Arc<Store>) -> Result<Self, Error> {
        let mut inner = Inner::default();
        for (key, channel) in records::all::<Channel>(&*store, NAMESPACE, VERSION)? {
            let mut id = [0; 32];
            hex::decode_to_slice(&key, &mut id)
                .map_err(|e| Error::Corrupt { key: format!("{NAMESPACE}/{key}"), reason: e.to_string() })?;
            inner.channels.insert(ChannelId(id), channel);
        }
        inner.reindex();
        Ok(Self { inner: RwLock::new(inner), store })
    }

    /// Changes one channel on disk and then in memory, or neither.
    fn change<T>(
        &self,
        id: ChannelId,
        change: impl FnOnce(&Inner, &mut Channel) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut inner = write(&self.inner);
        let mut channel = inner.channels.get(&id).cloned().unwrap_or_default();
        let answer = change(&inner, &mut channel)?;
        self.write_channel(&id, &channel)?;
        inner.unwritten.remove(&id);
        inner.channels.insert(id, channel);
        inner.reindex();
        Ok(answer)
    }

    pub(super) fn change_virtual(
        &self,
        v: &OutPoint,
        change: impl FnOnce(&Inner, &mut Virtual) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let missing = || Error::not_found(format!("virtual outpoint {v}"));
        let id = *read(&self.inner).by_virtual.get(v).ok_or_else(missing)?;
        self.change(id, |inner, channel| {
            let found = channel.virtuals.iter_mut().find(|x| x.outpoint == *v).ok_or_else(missing)?;
            change(inner, found)
        })
    }

    pub(super) fn write_channel(&self, id: &ChannelId, channel: &Channel) -> Result<(), Error> {
        records::put(&*self.store, NAMESPACE, &hex::encode(id.0), VERSION, channel)
    }

    /// Takes a channel in, with the outpoint that it was funded with: V == R1.
    ///
    /// # Errors
    /// [`Error::Conflict`] if either outpoint is known as something else; [`Error::Store`].
    pub(crate) fn add_channel(&self, channel: ChannelId, v: OutPoint, real: Real) -> Result<(), Error> {
        self.insert(channel, v, vec![real], None)
    }

    /// Adds V', which LDK's splice transaction `tx` creates, before anything is signed for it. It is LDK's to make and
    /// never leaves; its inputs need a witness each, as for [`Self::set_creation`].
    ///
    /// # Errors
    /// [`Error::NotFound`] if the channel is unknown; [`Error::Conflict`]; [`Error::InvalidArgument`] as for
    /// [`Self::set_creation`]; [`Error::Store`]: nothing is known of V' then.
    pub(crate) fn add_virtual(&self, channel: ChannelId, v: OutPoint, tx: Transaction) -> Result<(), Error> {
        check_creation(&v, &tx)?;
        if !read(&self.inner).channels.contains_key(&channel) {
            return Err(Error::not_found(format!("virtual outpoints of channel {channel}")));
        }
        self.insert(channel, v, Vec::new(), Some(tx))
    }

    fn insert(
        &self,
        channel: ChannelId,
        v: OutPoint,
        reals: Vec<Real>,
        creation: Option<Transaction>,
    ) -> Result<(), Error> {
        self.change(channel, |inner, record| {
            if let Some((id, known)) = inner.virtual_ref(&v) {
                // The same once more, as after a crash, changes nothing.
                let same = id == channel && reals.iter().all(|r| known.reals.contains(r));
                return if same { Ok(()) } else { Err(taken("virtual", &v)) };
            }
            if let Some(real) = reals.iter().find(|r| inner.by_real.contains_key(&r.outpoint)) {
                return Err(taken("real", &real.outpoint));
            }
            if record.virtuals.len() >= MAX_VIRTUALS {
                return Err(too_many("virtual outpoints of one channel", MAX_VIRTUALS));
            }
            let ahead = reals.is_empty();
            let new = Virtual {
                outpoint: v,
                creation: creation.map(StoredTx),
                reals,
                confirmed: None,
                retired: false,
                ahead,
                bound: false,
                lockable: false,
            };
            record.virtuals.push(new);
            Ok(())
        })
    }

    /// Says which transaction LDK believes creates V: the leaf's first state for the V that a channel was born with,
    /// needed as soon as V has a real outpoint beside itself. Its inputs need their witnesses:
    /// LDK takes a confirmed funding transaction of its own without them for a mistake that must not go on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `tx` does not create `v` or an input has no witness; [`Error::Conflict`] if its
    /// output is not what the real ones are; [`Error::NotFound`]; [`Error::Store`].
    pub(crate) fn set_creation(&self, v: &OutPoint, tx: Transaction) -> Result<(), Error> {
        check_creation(v, &tx)?;
        self.change_virtual(v, |_, known| {
            let created = output_of(v, &tx);
            if known.reals.iter().any(|r| Some(&r.output) != created) {
                return Err(Error::Conflict(format!(
                    "{v} is not of the value and script of its real outpoints"
                )));
            }
            known.creation = Some(StoredTx(tx));
            Ok(())
        })
    }

    /// Adds a real outpoint, the newest, under V. Adding it again changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown V; [`Error::Conflict`] if it belongs to another V, if its output is not what
    /// the others are, or if there are [`MAX_REALS`]; [`Error::Store`].
    pub(crate) fn add_real(&self, v: &OutPoint, real: Real) -> Result<(), Error> {
        self.change_virtual(v, |inner, known| {
            match inner.by_real.get(&real.outpoint) {
                Some(other) if other == v => return Ok(()),
                Some(_) => return Err(taken("real", &real.outpoint)),
                None => {}
            }
            let created = known.creation.as_ref().and_then(|tx| output_of(v, &tx.0));
            if known.reals.first().map(|r| &r.output).or(created).is_some_and(|o| *o != real.output) {
                let outpoint = real.outpoint;
                return Err(Error::Conflict(format!("{outpoint} is not of the value and script of {v}")));
            }
            if known.reals.len() >= MAX_REALS {
                return Err(too_many("real outpoints under one virtual outpoint", MAX_REALS));
            }
            known.reals.push(real);
            Ok(())
        })
    }

    /// Forgets a real outpoint that can no longer confirm. A retired V without any goes with its last.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown V; [`Error::Store`].
    pub(crate) fn drop_real(&self, v: &OutPoint, real: &OutPoint) -> Result<(), Error> {
        self.change_virtual(v, |_, known| {
            known.reals.retain(|r| r.outpoint != *real);
            known.confirmed = known.confirmed.filter(|(r, _)| r != real);
            Ok(())
        })?;
        let gone = read(&self.inner).virtual_ref(v).is_some_and(|(_, x)| x.retired && x.reals.is_empty());
        if gone {
            self.drop_virtual(v)?;
        }
        Ok(())
    }

    /// Forgets a V with all that is under it: one that came to nothing, or that cannot confirm any more.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`].
    pub(crate) fn drop_virtual(&self, v: &OutPoint) -> Result<(), Error> {
        let id = read(&self.inner).by_virtual.get(v).copied();
        let id = id.ok_or_else(|| Error::not_found(format!("virtual outpoint {v}")))?;
        self.change(id, |_, channel| {
            channel.virtuals.retain(|x| x.outpoint != *v);
            channel.forms.retain(|f| f.under.0 != *v);
            Ok(())
        })
    }

    /// LDK has moved on from V; it is still watched.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`].
    pub(crate) fn retire(&self, v: &OutPoint) -> Result<(), Error> {
        self.change_virtual(v, |_, known| {
            known.retired = true;
            Ok(())
        })
    }

    /// The V that LDK uses for a channel. While a splice is not locked that is the one before it.
    pub(crate) fn current(&self, channel: &ChannelId) -> Option<OutPoint> {
        let inner = read(&self.inner);
        inner.channels.get(channel)?.virtuals.iter().find(|v| !v.retired).map(|v| v.outpoint)
    }

    /// The real outpoints under V that could still confirm, oldest first; none for a channel that never rotated.
    pub(crate) fn reals(&self, v: &OutPoint) -> Vec<Real> {
        read(&self.inner).virtual_ref(v).map(|(_, known)| known.reals.clone()).unwrap_or_default()
    }

    /// Whether V takes no more real outpoints.
    pub(crate) fn is_full(&self, v: &OutPoint) -> bool {
        read(&self.inner).virtual_ref(v).is_some_and(|(_, known)| known.reals.len() >= MAX_REALS)
    }

    /// The V that a real outpoint is under.
    #[cfg(test)]
    pub(crate) fn virtual_of(&self, real: &OutPoint) -> Option<OutPoint> {
        read(&self.inner).by_real.get(real).copied()
    }

    /// Whether LDK has moved on from V.
    pub(crate) fn is_retired(&self, v: &OutPoint) -> bool {
        read(&self.inner).virtual_ref(v).is_some_and(|(_, known)| known.retired)
    }

    /// The channel that LDK believes to be funded by this outpoint. Its id stays that of the first one.
    pub(crate) fn channel_funded_by(&self, v: &OutPoint) -> ChannelId {
        self.channel_of(v).unwrap_or_else(|| crate::ldk::channel_id(*v))
    }

    /// The channel of a V.
    pub(crate) fn channel_of(&self, v: &OutPoint) -> Option<ChannelId> {
        read(&self.inner).by_virtual.get(v).copied()
    }
}

fn taken(what: &str, outpoint: &OutPoint) -> Error {
    Error::Conflict(format!("{what} outpoint {outpoint} belongs to something else"))
}

fn too_many(what: &str, limit: usize) -> Error {
    Error::Conflict(format!("there are {limit} {what}, the most there may be"))
}

pub(super) fn output_of<'a>(outpoint: &OutPoint, tx: &'a Transaction) -> Option<&'a TxOut> {
    tx.output.get(usize::try_from(outpoint.vout).ok()?)
}

fn check_creation(v: &OutPoint, tx: &Transaction) -> Result<(), Error> {
    if tx.compute_txid() != v.txid || output_of(v, tx).is_none() {
        return Err(Error::invalid("transaction", format!("does not create {v}")));
    }
    if tx.input.iter().any(|i| i.witness.is_empty()) {
        return Err(Error::invalid("transaction", "an input has no witness"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreKind;
    use bitcoin::hashes::Hash;
    use bitcoin::{absolute, transaction, Amount, ScriptBuf, TxIn, Witness};

    fn output(sat: u64) -> TxOut {
        TxOut { value: Amount::from_sat(sat), script_pubkey: ScriptBuf::new() }
    }

    fn real(byte: u8, sat: u64) -> Real {
        let outpoint = OutPoint { txid: Txid::from_byte_array([byte; 32]), vout: 0 };
        Real { outpoint, output: output(sat) }
    }

    fn creation(signed: bool) -> Transaction {
        let witness = if signed { Witness::from_slice(&[[1]]) } else { Witness::new() };
        Transaction {
            version: transaction::Version::TWO,
            lock_time: absolute::LockTime::ZERO,
            input: vec![TxIn { witness, ..Default::default() }],
            output: vec![output(7)],
        }
    }

    #[test]
    fn what_is_known_survives_and_what_cannot_be_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let map = Mapping::load(Arc::clone(&store)).unwrap();
        let (id, r1) = (ChannelId([1; 32]), real(1, 5));
        let v = r1.outpoint;
        assert_eq!((map.current(&id), map.reals(&v)), (None, vec![]), "never rotated");
        map.add_channel(id, v, r1.clone()).unwrap();
        map.add_channel(id, v, r1.clone()).unwrap();
        map.add_real(&v, real(2, 5)).unwrap();
        map.add_real(&v, real(2, 5)).unwrap();
        assert!(matches!(map.add_real(&v, real(3, 6)), Err(Error::Conflict(_))), "another value");
        assert!(matches!(map.add_real(&real(9, 5).outpoint, r1.clone()), Err(Error::NotFound { .. })));
        assert!(matches!(
            map.add_channel(ChannelId([2; 32]), real(4, 5).outpoint, real(2, 5)),
            Err(Error::Conflict(_))
        ));

        let tx = creation(true);
        let next = OutPoint { txid: tx.compute_txid(), vout: 0 };
        assert!(matches!(map.add_virtual(id, v, tx.clone()), Err(Error::InvalidArgument { .. })));
        assert!(matches!(map.add_virtual(id, next, creation(false)), Err(Error::InvalidArgument { .. })));
        map.add_virtual(id, next, tx).unwrap();
        assert!(matches!(map.add_real(&next, real(5, 5)), Err(Error::Conflict(_))), "not what V' is");
        map.add_real(&next, real(5, 7)).unwrap();
        assert_eq!(map.current(&id), Some(v), "not locked yet");
        assert_eq!((map.channel_funded_by(&next), map.channel_funded_by(&v)), (id, id));
        map.retire(&v).unwrap();

        let map = Mapping::load(store).unwrap();
        assert_eq!((map.current(&id), map.is_retired(&v)), (Some(next), true));
        assert_eq!(map.reals(&v), [r1.clone(), real(2, 5)]);
        assert_eq!(map.virtual_of(&real(5, 7).outpoint), Some(next));
        map.drop_real(&v, &r1.outpoint).unwrap();
        assert_eq!(map.channel_of(&v), Some(id), "one is left");
        map.drop_real(&v, &real(2, 5).outpoint).unwrap();
        assert_eq!((map.channel_of(&v), map.current(&id)), (None, Some(next)));
    }

    #[test]
    fn a_v_that_cannot_be_written_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open_as(dir.path(), StoreKind::Filesystem).unwrap());
        let map = Mapping::load(Arc::clone(&store)).unwrap();
        let (id, first, tx) = (ChannelId([1; 32]), real(1, 5), creation(true));
        map.add_channel(id, first.outpoint, first).unwrap();
        let next = OutPoint { txid: tx.compute_txid(), vout: 0 };
        let place = dir.path().join("node.files").join(NAMESPACE);
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::write(&place, "in the way").unwrap();
        assert!(map.add_virtual(id, next, tx.clone()).is_err());
        assert_eq!((map.channel_of(&next), map.pending(&id)), (None, vec![]), "known without being on disk");
        std::fs::remove_file(&place).unwrap();
        map.add_virtual(id, next, tx.clone()).unwrap();
        let map = Mapping::load(store).unwrap();
        assert_eq!((map.pending(&id), map.creation(&next)), (vec![next], Some(tx)));
        assert!(map.is_ahead(&next) && !map.is_bound(&next));
    }

    #[test]
    fn the_number_of_outpoints_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let map = Mapping::load(Arc::new(Store::open(&dir.path().join("db")).unwrap())).unwrap();
        let first = real(1, 5);
        map.add_channel(ChannelId([1; 32]), first.outpoint, first.clone()).unwrap();
        let nth = |vout| Real { outpoint: OutPoint { vout, ..first.outpoint }, output: output(5) };
        for n in 1..u32::try_from(MAX_REALS).unwrap() {
            map.add_real(&first.outpoint, nth(n)).unwrap();
        }
        assert!(map.is_full(&first.outpoint) && !map.is_full(&nth(9_999).outpoint));
        assert!(matches!(map.add_real(&first.outpoint, nth(9_999)), Err(Error::Conflict(_))));
        map.drop_real(&first.outpoint, &nth(7).outpoint).unwrap();
        assert!(!map.is_full(&first.outpoint));
    }
}
