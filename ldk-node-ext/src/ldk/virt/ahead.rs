//! Monitors of a V' that LDK does not know yet, between the first signature that lets R' confirm and LDK's own.
//!
//! LDK's monitor learns of V' when the channel manager has the peer's `commitment_signed` for it. If R' confirms before
//! that, there would be nobody to claim what is below it, or to publish our own commitment there. So a copy of the monitor
//! is made and moved on to V', with the commitments that were foretold, by an update like LDK's own. It is kept beside
//! those of [`Retired`] outpoints, and like them sleeps until its V is spent, sees nothing but what is below that, learns
//! later secrets and preimages, and tells the channel manager what it finds out. It may close, too. It is removed when
//! LDK's monitor knows V', or when the table does not any more.

use bitcoin::OutPoint;
use factory_core::faults::switch;
use lightning::ln::types::ChannelId;
use lightning::util::persist::KVStoreSync;
use lightning::util::ser::Writeable;

use super::commitments::Commitments;
use super::retired::{key, Kept, Monitor, Retired};
use crate::error::Error;
use crate::logger::Logger;
use crate::store;
use crate::util::lock;

impl Retired {
    /// Makes the monitor of V', on disk when this returns. There may be one.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the commitments on V' are not there; [`Error::Ldk`]; [`Error::Store`].
    pub(super) fn foresee(
        &self,
        live: &Monitor,
        commitments: &Commitments,
        v: &OutPoint,
        real: &OutPoint,
    ) -> Result<(), Error> {
        let mut inner = lock(&self.inner);
        if inner.kept.iter().any(|k| k.v == *v) || switch("virt.ahead.none") {
            return Ok(());
        }
        let copy = self.decode(&live.encode()).map_err(|e| Error::Ldk(e.to_string()))?;
        let next = copy.monitor.get_latest_update_id().saturating_add(1);
        let update = commitments.update_to(&copy.channel, v, real, next)?;
        let moved = copy.monitor.update_monitor(&update, &*self.broadcaster, &*self.fees, &Logger);
        if moved.is_err() || copy.monitor.get_funding_txo().into_bitcoin_outpoint() != *v {
            return Err(Error::Ldk(format!("no monitor of {v} can be made")));
        }
        self.store
            .write(Self::NAMESPACE, "", &key(v), copy.monitor.encode())
            .map_err(|e| store::error(Self::NAMESPACE, &e))?;
        inner.kept.push(Kept { v: *v, dirty: false, ..copy });
        Ok(())
    }

    /// LDK's monitor is on disk. If it knows a V' by now, that one's own monitor is done.
    pub(crate) fn overtaken(&self, channel: &ChannelId, live: &Monitor) {
        for v in self.mapping.pending(channel).into_iter().filter(|v| self.mapping.is_ahead(v)) {
            if !live.get_outputs_to_watch().iter().any(|(txid, _)| *txid == v.txid) {
                continue;
            }
            // LDK was not shown that it is on the chain. It stays apart.
            if self.mapping.is_confirmed(&v) {
                continue;
            }
            // If it cannot be written it stays as it is until the next time.
            if let Err(e) = self.mapping.overtaken(&v) {
                tracing::error!(%v, error = %e, "not stored that LDK knows it");
                continue;
            }
            lock(&self.inner).kept.retain(|kept| kept.v != v);
            if let Err(e) = self.store.remove(Self::NAMESPACE, "", &key(&v), false) {
                tracing::error!(%v, error = %e, "its monitor was not removed");
            }
        }
    }

    /// Has the monitor of a V that LDK's own does not know publish our commitment, and go on to do so.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, or our commitment must not leave.
    pub(super) fn leave(&self, v: &OutPoint) -> Result<(), Error> {
        let mut inner = lock(&self.inner);
        let may = (self.mapping.is_ahead(v) && !self.mapping.is_retired(v)) || self.mapping.is_left(v);
        let found = inner.kept.iter_mut().find(|k| k.v == *v && may);
        let kept = found.ok_or_else(|| Error::not_found(format!("monitor of {v}")))?;
        kept.monitor.broadcast_latest_holder_commitment_txn(&*self.broadcaster, &*self.fees, &Logger);
        kept.dirty = true;
        self.write(kept);
        Ok(())
    }
}
