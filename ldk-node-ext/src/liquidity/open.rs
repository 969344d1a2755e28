//! Opening JIT channels at the LSP: recorded first, funded from the wallet, broadcast when the client has signed, and
//! again with every block until the funding transaction is deep.
//!
//! Until then its coins are set aside, over restarts too: the client may have been paid over the channel already.

use bitcoin::consensus::encode;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, ScriptBuf};
use lightning::ln::channel_state::{ChannelDetails, ChannelShutdownState};
use lightning::ln::types::ChannelId;
use serde_json::json;

use super::lsps2::{SOLD, UNPAID_FOR};
use super::offer::Kept;
use super::record::Record;
use super::{id_for, new_id, new_temporary};
use crate::config::{NodeConfig, RoleConfig};
use crate::error::Error;
use crate::faults;
use crate::node::Parts;
use lightning::types::payment::PaymentHash;

/// How the queue of transactions calls it.
const WHAT: &str = "channel funding";

/// For whom a JIT channel is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum For<'a> {
    /// The operator says so; what the client gets at once, msat.
    Operator(u64),
    /// A payment, and why the factory does not do.
    Payment(&'a PaymentHash, &'a str),
    /// An LSPS2 offer, and the user channel id that is stored with it.
    Offer(u128),
}

impl Parts {
    /// Begins to open a JIT channel. Returns its user channel id.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Ldk`].
    pub(crate) fn open_jit(&self, peer: PublicKey, capacity_sat: u64, why: For<'_>) -> Result<u128, Error> {
        let (id, push_msat, cause) = match why {
            For::Operator(push_msat) => (new_id(), push_msat, None),
            For::Payment(hash, cause) => (id_for(&peer, hash), 0, Some(cause.to_owned())),
            For::Offer(id) => (id, 0, Some(SOLD.to_owned())),
        };
        // The account of an earlier one stays, if a payment comes with the same hash again.
        let known = self.liquidity.records.get(id).is_some();
        let id = if known { new_id() } else { id };
        self.liquidity.records.put(id, Record::new(peer, capacity_sat, cause, self.height()))?;
        faults::point("lsp.jit.recorded");
        let config = NodeConfig::jit_channel_config(&self.config);
        let begun = self.manager.create_channel(
            peer,
            capacity_sat,
            push_msat,
            id,
            Some(new_temporary()),
            Some(config),
        );
        if let Err(e) = begun {
            self.liquidity.records.remove(id)?;
            return Err(e.into());
        }
        self.peers.process_events();
        Ok(id)
    }

    /// The client has accepted a JIT channel: it is funded.
    ///
    /// # Errors
    /// [`Error::InsufficientFunds`], [`Error::Wallet`], [`Error::Store`], [`Error::Ldk`]; then the wallet has its coins.
    pub(crate) fn fund_jit(
        &self,
        id: u128,
        (temporary, peer): (ChannelId, PublicKey),
        (script, value): (ScriptBuf, Amount),
    ) -> Result<(), Error> {
        let psbt = self.wallet.build_payment(script, value, self.fees.normal())?;
        let unsigned = psbt.unsigned_tx.clone();
        let fee_sat = psbt.fee().map(|fee| fee.to_sat()).unwrap_or(0);
        let funded = self.wallet.sign(psbt).and_then(|tx| {
            let known = self.liquidity.records.change(id, |r| {
                r.fee_sat = fee_sat;
                r.funding = Some(encode::serialize_hex(&tx));
            })?;
            if !known {
                return Err(Error::not_found(format!("JIT channel {id:032x}")));
            }
            faults::point("lsp.jit.funding_stored");
            Ok(self.manager.funding_transaction_generated(temporary, peer, tx)?)
        });
        if funded.is_err() {
            self.wallet.release(&unsigned);
        }
        funded
    }

    /// The client has signed: from now on the funding transaction is out, and is kept out.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn jit_signed(&self, id: u128) -> Result<(), Error> {
        self.liquidity.records.change(id, |r| r.signed = true)?;
        faults::point("lsp.jit.signed");
        self.liquidity.wake();
        Ok(())
    }

    /// A fee that wallets pay for channels was kept, or a part of one.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn fee_kept(&self, kept: &Kept) -> Result<(), Error> {
        if let Some(sold) = self.liquidity.offers.fee_kept(kept)? {
            self.liquidity.records.change(sold, |r| r.taken = true)?;
        }
        Ok(())
    }

    /// A channel was paid over. One that was sold counts as paid over when its fee was kept.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn jit_taken(&self, id: u128) -> Result<(), Error> {
        if !self.is_unpaid(id) {
            self.liquidity.records.change(id, |r| r.taken = true)?;
        }
        Ok(())
    }

    /// A JIT channel is closed, or came to nothing.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn jit_closed(&self, id: u128, channel: &ChannelId) -> Result<(), Error> {
        // A client that had nothing in it, and was about to get nothing, has trusted nobody with anything.
        if matches!(self.config.role, RoleConfig::Client(_)) && self.to_come_sat(channel) == 0 {
            return self.liquidity.records.remove(id);
        }
        let record = self.liquidity.records.get(id);
        self.liquidity.offers.closed(id, record.as_ref().is_some_and(|r| r.signed))?;
        match record {
            Some(record) if !record.signed => self.liquidity.records.remove(id)?,
            Some(_) => {
                let height = self.height();
                self.liquidity.records.change(id, |r| {
                    r.closed = true;
                    r.closed_at = r.closed_at.or(Some(height));
                })?;
            }
            None => {}
        }
        self.liquidity.wake();
        Ok(())
    }

    /// After a start: coins of funding transactions that are out are set aside again, and what the last process only began
    /// is forgotten: LDK has.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn restore_jit(&self) -> Result<(), Error> {
        let open = self.manager.list_channels();
        for (id, record) in self.liquidity.records.all() {
            let known = open.iter().any(|c| c.user_channel_id == id);
            match record.transaction() {
                // It may have been signed without our knowing.
                Some(tx) if record.signed || known => {
                    self.liquidity.records.change(id, |r| r.signed = true)?;
                    self.wallet.reserve(&tx);
                }
                _ if !known && !record.signed => self.liquidity.records.remove(id)?,
                _ => {}
            }
        }
        let known =
            |id| self.liquidity.records.get(id).is_some() || open.iter().any(|c| c.user_channel_id == id);
        self.liquidity.offers.keep_channels(known)
    }

    /// Funding transactions that are not deep are broadcast again; those that are, are forgotten.
    pub(super) fn look_at_fundings(&self) {
        let open = self.manager.list_channels();
        self.look_at_trust(&open);
        for (id, record) in self.liquidity.records.all() {
            let channel = open.iter().find(|c| c.user_channel_id == id);
            if let Some(channel) = channel.filter(|_| self.is_unpaid(id)) {
                self.close_unpaid(channel, &record);
            }
            let Some(tx) = record.transaction().filter(|_| record.signed) else { continue };
            // The client of one that is closed may have been paid over it: a day's blocks for it to confirm.
            let late = self.height() >= record.closed_at.unwrap_or(record.height).saturating_add(UNPAID_FOR);
            let deep = channel.map_or(record.closed && late, |c| self.is_deep(c));
            if deep {
                let forget = |r: &mut Record| (r.funding, r.child) = (None, None);
                if let Err(e) = self.liquidity.records.change(id, forget) {
                    tracing::error!(error = %e, "JIT channel not stored");
                }
            } else if channel.is_none_or(|c| c.confirmations.unwrap_or(0) == 0) {
                self.broadcaster.send(std::iter::once(tx).chain(record.child_transaction()).collect(), WHAT);
            }
        }
    }

    /// Nothing goes over a channel that was sold and not paid for: after a day's blocks it is closed by agreement, and after
    /// two alone. All in it is this node's.
    fn close_unpaid(&self, channel: &ChannelDetails, record: &Record) {
        let late = |days: u32| self.height() >= record.height.saturating_add(UNPAID_FOR.saturating_mul(days));
        let stays = channel.channel_shutdown_state.is_none_or(|s| s == ChannelShutdownState::NotShuttingDown);
        let (id, peer) = (&channel.channel_id, &record.peer);
        if late(1) && record.signed && stays && channel.pending_outbound_htlcs.is_empty() {
            let closed = match (channel.is_usable, late(2)) {
                (true, _) => self.manager.close_channel(id, peer),
                (false, true) => {
                    let reason = "nobody has paid for it".to_owned();
                    self.manager.force_close_broadcasting_latest_txn(id, peer, reason)
                }
                (false, false) => Ok(()),
            };
            if let Err(e) = closed {
                tracing::warn!(peer = %record.peer, error = ?e, "channel that was not paid for not closed");
            }
        }
    }

    /// Tells that a JIT channel could not be opened.
    pub(crate) fn jit_failed(&self, peer: &PublicKey, reason: &str) {
        tracing::warn!(%peer, reason, "JIT channel not opened");
        self.events.push("jit_channel_failed", json!({"peer": peer.to_string(), "reason": reason}));
    }

    /// Gives up a JIT channel that the client has not signed.
    pub(super) fn abandon_jit(&self, peer: &PublicKey, id: u128, reason: &str) {
        let open = self.manager.list_channels_with_counterparty(peer);
        let begun = self.liquidity.records.get(id).is_some_and(|r| !r.signed);
        if let Some(c) = open.iter().find(|c| c.user_channel_id == id && begun) {
            let closed =
                self.manager.force_close_broadcasting_latest_txn(&c.channel_id, peer, reason.to_owned());
            if let Err(e) = closed {
                tracing::warn!(%peer, error = ?e, "JIT channel not given up");
            }
        }
    }
}
