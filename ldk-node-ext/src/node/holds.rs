//! Payments that wait for an order: held from their arrival until they are claimed or given back.
//!
//! An order is stored first and carried out then; a start repeats all orders, which LDK ignores where
//! there is nothing left to do. A claim is not begun at its last height or later, whenever it was ordered.

use std::sync::Arc;

use factory_core::faults::switch;
use lightning::types::payment::{PaymentHash, PaymentPreimage};
use serde_json::json;
use tokio::sync::watch;

use super::payments::parse_hash;
use super::{htlcs, Node, Parts};
use crate::api::{ClaimRequest, Direction, FailRequest, Payment, PaymentStatus};
use crate::error::Error;
use crate::faults;
use crate::htlc_rules::Refusal;
use crate::store::holds::{Arrival, HoldState};

impl Node {
    /// Claims the payment that a hold invoice received. Returns when the order is stored and given to
    /// LDK, which says by the event `payment_received` when the money is ours.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]; [`Error::NotFound`] if no hold invoice has the preimage's hash;
    /// [`Error::Conflict`] if nothing is held (yet or any more) or it is too late; [`Error::Unavailable`] while a
    /// reorganisation has taken the funding of its channel off the chain; [`Error::Store`].
    pub fn claim_payment(&self, request: &ClaimRequest) -> Result<Payment, Error> {
        let mut preimage = [0; 32];
        hex::decode_to_slice(&request.preimage, &mut preimage)
            .map_err(|_| Error::invalid("preimage", "must be 64 hex digits"))?;
        let p = &self.parts;
        let preimage = PaymentPreimage(preimage);
        if p.is_shallow(&preimage.into()) {
            let text = "the factory's funding is not deep enough in the chain (any more); try again later";
            return Err(Error::Unavailable(text.into()));
        }
        let hash = p.holds.order_claim(&preimage, p.height())?;
        faults::point("node.hold.claim_ordered");
        // What its onion asks for was looked at when it arrived.
        p.manager.claim_funds_with_known_custom_tlvs(preimage);
        let payment = p.payments.record(&hash, Direction::In, |payment| {
            payment.status = PaymentStatus::Pending;
        })?;
        p.payment_changed();
        Ok(payment)
    }

    /// Gives the payment back that a hold invoice received. Who pays the invoice again gets it back too.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]; [`Error::NotFound`] if there is no such hold invoice;
    /// [`Error::Conflict`] if nothing is held (yet or any more); [`Error::Store`].
    pub fn fail_payment(&self, request: &FailRequest) -> Result<Payment, Error> {
        let hash = parse_hash(&request.payment_hash)?;
        self.parts.holds.order_fail(&hash)?;
        faults::point("node.hold.fail_ordered");
        self.parts.give_back(&hash, "given back by order")
    }
}

impl Parts {
    /// A payment for which LDK has no preimage has arrived: held if it is a hold invoice's, until
    /// `claim_by_height`. With a `depth` that does not suffice none is begun to be held; one that was held, or claimed,
    /// goes on. May be called again for the same payment.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn hold(
        &self,
        hash: &PaymentHash,
        amount_msat: u64,
        claim_by_height: u32,
        depth: Result<(), Refusal>,
    ) -> Result<(), Error> {
        let needs_path = self.needs_path(hash);
        match self.holds.arrived(hash, self.height(), claim_by_height, needs_path, depth.is_ok())? {
            Arrival::GiveBack => self.manager.fail_htlc_backwards(hash),
            Arrival::TooLate => {
                self.manager.fail_htlc_backwards(hash);
                let limit = self.height().saturating_add(1);
                let late = Refusal::TooLateToHold { claim_by: claim_by_height, limit };
                self.refused(hash, &depth.err().unwrap_or(late));
            }
            Arrival::Claim(preimage) => self.manager.claim_funds_with_known_custom_tlvs(preimage),
            Arrival::Held(claim_by_height) => {
                faults::point("node.hold.stored");
                self.payments.record(hash, Direction::In, |payment| {
                    // An order may have come since.
                    if payment.status == PaymentStatus::Pending {
                        payment.status = PaymentStatus::Held;
                    }
                    payment.amount_msat = amount_msat;
                    payment.claim_by_height = Some(claim_by_height);
                })?;
                self.events.push(
                    "payment_held",
                    json!({
                        "payment_hash": hex::encode(hash.0),
                        "amount_msat": amount_msat,
                        "claim_by_height": claim_by_height,
                    }),
                );
                self.payment_changed();
            }
        }
        Ok(())
    }

    /// Whether a payment is on an open factory channel whose leaf is not on the chain: then claiming it takes
    /// the peer's answer or the whole path. Elsewhere an order that came in time is never too late.
    fn needs_path(&self, hash: &PaymentHash) -> bool {
        self.manager.list_channels().iter().any(|c| {
            self.outpoints.get(&c.channel_id).is_some_and(|f| !f.on_chain || switch("holds.late_given_up"))
                && c.pending_inbound_htlcs.iter().any(|h| h.payment_hash == *hash)
        })
    }

    /// Whether a payment is on a factory channel whose funding is not deep.
    fn is_shallow(&self, hash: &PaymentHash) -> bool {
        self.manager.list_channels().iter().any(|c| {
            c.pending_inbound_htlcs.iter().any(|h| h.payment_hash == *hash)
                && !self.depth.suffices(&c.channel_id)
        })
    }

    /// Carries out that a payment is given back; the order is stored.
    fn give_back(&self, hash: &PaymentHash, why: &str) -> Result<Payment, Error> {
        self.manager.fail_htlc_backwards(hash);
        faults::point("node.hold.failed_back");
        let payment = self.payments.record(hash, Direction::In, |payment| {
            payment.status = PaymentStatus::Failed;
            payment.failure = Some(why.to_owned());
        })?;
        let data = json!({"payment_hash": payment.payment_hash, "reason": why});
        self.events.push("payment_given_back", data);
        self.payment_changed();
        Ok(payment)
    }

    /// Gives back what nobody has claimed in time.
    fn give_back_overdue(&self) -> Result<(), Error> {
        while let Some(hash) = self.holds.take_overdue(self.height(), htlcs::HTLC_FAIL_BACK_BUFFER)? {
            self.give_back(&hash, "not claimed in time")?;
        }
        Ok(())
    }

    /// Orders that the last process may not have carried out, or whose outcome it may not have stored.
    /// Claims come first: they are the ones that can come too late.
    fn repeat_orders(&self) {
        let all = self.holds.all();
        for (hash, state) in &all {
            let HoldState::Claiming { claim_by_height, .. } = state else { continue };
            match state.preimage() {
                Some(preimage) if self.height() < *claim_by_height || !self.needs_path(hash) => {
                    self.manager.claim_funds_with_known_custom_tlvs(preimage);
                }
                // Does nothing if LDK has begun the claim; if not, an exit would not bring it home in time.
                _ => self.manager.fail_htlc_backwards(hash),
            }
        }
        for (hash, _) in all.iter().filter(|(_, state)| *state == HoldState::Failed) {
            self.manager.fail_htlc_backwards(hash);
            if let Err(e) = self.close_record(hash) {
                let payment_hash = hex::encode(hash.0);
                tracing::error!(payment_hash, error = %e, "payment given back, which is not recorded");
            }
        }
    }

    /// Records that a payment was given back, if that was not done.
    fn close_record(&self, hash: &PaymentHash) -> Result<(), Error> {
        let payment = self.payments.get(hash, Direction::In)?;
        if payment.is_some_and(|p| matches!(p.status, PaymentStatus::Held | PaymentStatus::Pending)) {
            self.give_back(hash, "given back")?;
        }
        Ok(())
    }
}

/// Repeats the orders there are, then looks at what is held with every block.
pub(super) async fn run(parts: Arc<Parts>, mut stop: watch::Receiver<bool>) {
    parts.repeat_orders();
    let mut tip = parts.tip.clone();
    loop {
        if let Err(e) = parts.give_back_overdue() {
            tracing::error!(error = %e, "held payments: will be tried again with the next block");
        }
        tokio::select! {
            changed = tip.changed() => if changed.is_err() { return },
            _ = stop.changed() => return,
        }
    }
}
