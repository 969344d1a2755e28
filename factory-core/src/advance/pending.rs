//! What a client stores of tries that are not complete: those that the provider may complete, and marks of others.

use bitcoin::Txid;
use serde::{Deserialize, Serialize};

use crate::faults::switch;
use crate::musig::SignatureBytes;
use crate::record::{ClientFactoryRecord, LeafChannel, RECORD_VERSION};
use crate::transaction::{SignedTx, TxKind};
use crate::Error;

/// Most tries that a client keeps, see [`ClientAdvanceState::kept`]: the whole list is written with each.
pub const MAX_KEPT_TRIES: usize = 16;

/// A try that the client gave partial signatures for, of its inner transactions only: its position is used up, and the
/// channel is not concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvanceMark {
    /// The try.
    pub attempt: u16,
    /// The position.
    pub position: u64,
    /// The outermost transaction, which the client did not sign.
    pub outermost: Txid,
}

/// A try that the client gave, or was about to give, its outer partial signatures for: the provider may complete it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingAdvance {
    /// The try.
    pub attempt: u16,
    /// The new path, complete but for the signatures of the outer transactions. If the provider publishes the outermost
    /// one, the client goes on from there.
    pub record: ClientFactoryRecord,
    /// Ids of the outer transactions, in the order in which they are signed.
    pub outer: Vec<Txid>,
}

impl PendingAdvance {
    /// Checks a record that was read: that it is of the same factory and client as the newest complete one, that the
    /// outer transactions are those of the outermost state, and else as [`ClientFactoryRecord::verify`] does.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self, newest: &ClientFactoryRecord) -> Result<(), Error> {
        self.check_origin(newest)?;
        if self.outer != self.true_outer()? {
            return Err(Error::Mismatch { what: "outer transactions of a stored try" });
        }
        self.record.verify_own()?;
        self.record.path.verify_but(|tx| self.outer.contains(&tx.txid()))
    }

    /// The client, the factory and the leaf are the same; only amounts, scripts and signatures may differ.
    fn check_origin(&self, newest: &ClientFactoryRecord) -> Result<(), Error> {
        let place = |r: &ClientFactoryRecord| (r.index, r.position, r.own_key, r.path.instance_id);
        let heights = |r: &ClientFactoryRecord| (r.path.clients, r.path.birth_height, r.path.expiry_height);
        let (one, other) = (&self.record, newest);
        let (path, old) = (&one.path, &other.path);
        let same = place(one) == place(other)
            && heights(one) == heights(other)
            && (path.lsp_key, &path.funding) == (old.lsp_key, &old.funding)
            && (&path.params, &path.stock_script) == (&old.params, &old.stock_script)
            && path.leaf.len() == old.leaf.len();
        let mut members = path.leaf.iter().zip(&old.leaf);
        let kept = |(a, b): (&LeafChannel, &LeafChannel)| {
            (a.key, &a.share.payout_script) == (b.key, &b.share.payout_script)
        };
        if !same || !members.all(kept) {
            return Err(Error::Mismatch { what: "factory of a stored try" });
        }
        Ok(())
    }

    /// The outermost state, and the distributions of outputs that stay if they are signed anew with every update: see
    /// the module's docs.
    fn true_outer(&self) -> Result<Vec<Txid>, Error> {
        let wrong = || Error::Mismatch { what: "outer transactions of a stored try" };
        let path = &self.record.path;
        let outermost = self.outer.first().ok_or_else(wrong)?;
        let place = path.path.iter().position(|tx| tx.txid() == *outermost).ok_or_else(wrong)?;
        if !matches!(path.path.get(place).map(|tx| tx.kind), Some(TxKind::State { .. })) {
            return Err(wrong());
        }
        let start = usize::try_from(path.leaf_start).map_err(|_| wrong())?;
        let again = match place.checked_sub(start) {
            Some(ticked) if path.params.distribution_spread()? > 0 => ticked.saturating_add(1),
            _ => 0,
        };
        let distributions = path.distributions.iter().take(again).map(SignedTx::txid);
        Ok(std::iter::once(*outermost).chain(distributions).collect())
    }

    /// The complete record, with the outer signatures in order.
    ///
    /// # Errors
    /// [`Error::Count`] for a wrong number of them, [`Error::BadSignature`] for a wrong one.
    pub(crate) fn complete(&self, signatures: &[SignatureBytes]) -> Result<ClientFactoryRecord, Error> {
        if signatures.len() != self.outer.len() {
            let (got, expected) = (signatures.len(), self.outer.len());
            return Err(Error::Count { what: "list of signatures", got, expected });
        }
        let mut record = self.record.clone();
        for tx in record.path.path.iter_mut().chain(&mut record.path.distributions) {
            let txid = tx.txid();
            let place = self.outer.iter().position(|outer| *outer == txid);
            if let Some(signature) = place.and_then(|place| signatures.get(place)) {
                tx.set_signature(signature);
                if !switch("client.advance.signed_unchecked") {
                    tx.verify()?;
                }
            }
        }
        Ok(record)
    }
}

/// What of advances has to survive a client's restart, besides the newest complete record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAdvanceState {
    /// Version of the record.
    pub version: u16,
    /// The factory.
    #[serde(with = "hex::serde")]
    pub instance_id: [u8; 32],
    /// The try that the newest complete record is from; none if from the creation.
    pub completed: Option<u16>,
    /// Tries that the provider may complete, oldest first.
    pub pending: Vec<PendingAdvance>,
    /// Other tries newer than the newest complete record, of which inner partial signatures are out, oldest first.
    #[serde(default)]
    pub marks: Vec<AdvanceMark>,
}

impl ClientAdvanceState {
    /// That of a factory without any advance.
    pub fn new(instance_id: [u8; 32]) -> Self {
        let (pending, marks) = (Vec::new(), Vec::new());
        Self { version: RECORD_VERSION, instance_id, completed: None, pending, marks }
    }

    /// Checks a state that was read: its version, the factory, and every pending try as [`PendingAdvance::verify`]
    /// does. `newest` is the newest complete record.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self, newest: &ClientFactoryRecord) -> Result<(), Error> {
        if self.version != RECORD_VERSION {
            return Err(Error::RecordVersion { got: self.version, known: RECORD_VERSION });
        }
        if self.instance_id != newest.path.instance_id {
            return Err(Error::Mismatch { what: "stored state of the advances" });
        }
        for mark in &self.marks {
            newest.path.params.states_after(mark.position)?;
        }
        self.pending.iter().try_for_each(|pending| pending.verify(newest))
    }

    /// How many tries are kept: those that may come to be, also of positions that are superseded, and the marks.
    pub fn kept(&self) -> usize {
        self.pending.len().saturating_add(self.marks.len())
    }

    /// The newest position of these tries, 0 if there are none.
    pub(crate) fn newest(&self) -> u64 {
        let pending = self.pending.iter().map(|p| p.record.path.updates);
        pending.chain(self.marks.iter().map(|m| m.position)).max().unwrap_or(0)
    }

    /// A record is complete: the try is not pending any more, and marks that are not newer are of no use. Whatever is
    /// newer than the record differs from those tries in a digit outside what they signed.
    pub(crate) fn complete(&mut self, attempt: u16, updates: u64) {
        self.completed = Some(attempt);
        self.pending.retain(|p| p.attempt != attempt);
        self.marks.retain(|m| m.position > updates);
    }
}
