//! What the table knows of a V' on its way: a change of capacity that LDK has not locked.
//!
//! | mark | from when on | what it means |
//! |---|---|---|
//! | ahead | V' is added | LDK's monitor knows nothing of V'. What happens below it goes to a monitor made for it |
//! | bound | a signature may leave that lets R' confirm | V' is not given up, and the peer cannot make us |
//! | lockable | the new state is complete and stored | LDK may hear that V' is locked |
//!
//! A V' that is retired while it is ahead is one of a try that a newer state has overtaken: it keeps its monitor, and is
//! watched for what the peer may have completed.

use bitcoin::{OutPoint, Txid};
use lightning::ln::types::ChannelId;

use super::map::{Mapping, Virtual};
use crate::error::Error;
use crate::util::read;

impl Mapping {
    /// The V of a channel that LDK may still move to, newest last.
    pub(crate) fn pending(&self, channel: &ChannelId) -> Vec<OutPoint> {
        let inner = read(&self.inner);
        let Some(known) = inner.channels.get(channel) else { return Vec::new() };
        // The first one that is not retired is current.
        known.virtuals.iter().filter(|v| !v.retired).skip(1).map(|v| v.outpoint).collect()
    }

    fn has(&self, v: &OutPoint, what: impl Fn(&Virtual) -> bool) -> bool {
        read(&self.inner).virtual_ref(v).is_some_and(|(_, known)| what(known))
    }

    /// Whether LDK's monitor knows nothing of this V yet.
    pub(crate) fn is_ahead(&self, v: &OutPoint) -> bool {
        self.has(v, |known| known.ahead)
    }

    /// Whether a signature may have left that lets a real outpoint of V confirm.
    pub(crate) fn is_bound(&self, v: &OutPoint) -> bool {
        self.has(v, |known| known.bound)
    }

    /// Whether LDK may hear that the V of this transaction is locked.
    pub(super) fn is_lockable(&self, channel: &ChannelId, txid: &Txid) -> bool {
        let inner = read(&self.inner);
        let virtuals = inner.channels.get(channel).map(|c| c.virtuals.as_slice()).unwrap_or_default();
        virtuals.iter().any(|v| v.outpoint.txid == *txid && v.lockable)
    }

    /// Whether a real outpoint of V is confirmed.
    pub(super) fn is_confirmed(&self, v: &OutPoint) -> bool {
        self.has(v, |known| known.confirmed.is_some())
    }

    /// Whether a real outpoint is confirmed of a V that LDK has moved on from: none of the V that it uses can be then.
    pub(crate) fn is_overtaken(&self, channel: &ChannelId) -> bool {
        let inner = read(&self.inner);
        let virtuals = inner.channels.get(channel).map(|c| c.virtuals.as_slice()).unwrap_or_default();
        virtuals.iter().any(|v| v.retired && v.confirmed.is_some())
    }

    /// The transaction that LDK believes creates V.
    pub(super) fn creation(&self, v: &OutPoint) -> Option<bitcoin::Transaction> {
        let inner = read(&self.inner);
        inner.virtual_ref(v)?.1.creation.as_ref().map(|tx| tx.0.clone())
    }

    /// LDK's monitor has learnt of V.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`].
    pub(super) fn overtaken(&self, v: &OutPoint) -> Result<(), Error> {
        self.mark(v, |known| known.ahead = false)
    }

    /// From now on a signature that lets a real outpoint of V confirm may leave; or, with `false`, none can any more.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`].
    pub(super) fn bind(&self, v: &OutPoint, bound: bool) -> Result<(), Error> {
        self.mark(v, |known| known.bound = bound)
    }

    /// LDK may hear that V is locked.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`].
    pub(super) fn allow_lock(&self, v: &OutPoint) -> Result<(), Error> {
        self.mark(v, |known| known.lockable = true)
    }

    fn mark(&self, v: &OutPoint, mark: impl FnOnce(&mut Virtual)) -> Result<(), Error> {
        self.change_virtual(v, |_, known| {
            mark(known);
            Ok(())
        })
    }
}
