//! Offers (BOLT 12): what is paid by this node's own, and payments to those of others.
//!
//! LDK remembers nothing of an own offer: its keys are in it. The paths to this node are made anew for each payer
//! (`ldk/paths.rs`), so an offer outlives channels and rotations; what arrives goes the way of every payment.
//!
//! A payment to an offer begins with a request over onion messages, and has a hash when the answer comes. The invoice
//! is on record under its hash before LDK pays it: what is on the channel under a hash that is in no record would
//! count as somebody else's. LDK would pay a second invoice for the same request after a restart from before the
//! first one; then the first, of which nothing has left, is given up.
//!
//! LDK waits for an answer for one to two minutes; here it is 30 s. Messages are sent once, and who is not connected to
//! his provider does not get them.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::constants::ChainHash;
use lightning::blinded_path::message::OffersContext;
use lightning::events::PaymentPurpose;
use lightning::ln::channelmanager::{OptionalOfferPaymentParams, PaymentId};
use lightning::ln::outbound_payment::{Bolt12PaymentError, Retry, RetryableSendFailure};
use lightning::offers::invoice::Bolt12Invoice;
use lightning::offers::offer::{Amount, Offer};
use lightning::offers::parse::Bolt12SemanticError;
use lightning::sign::EntropySource;
use lightning::types::payment::PaymentHash;
use serde_json::json;

use super::ldk_events::MIN_SPONTANEOUS_MSAT;
use super::payments::{amount_to_pay, check_amount, RETRY_FOR};
use super::{Node, Parts};
use crate::api::{self, Direction, OfferRequest, Payment, PaymentStatus};
use crate::error::Error;
use crate::faults;
use crate::store::requests::{Answer, Request};
use crate::util::unix_now;

/// How long a payee may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest description, bytes: that of an invoice.
const MAX_DESCRIPTION: usize = 639;
/// Longest lifetime, seconds: a year.
const MAX_EXPIRY_SECS: u32 = 31_536_000;

/// The id of the offer by which a payment came, hex.
pub(super) fn paid_offer(purpose: &PaymentPurpose) -> Option<String> {
    match purpose {
        PaymentPurpose::Bolt12OfferPayment { payment_context, .. } => {
            Some(hex::encode(payment_context.offer_id.0))
        }
        _ => None,
    }
}

impl Node {
    /// Makes an offer, which can be paid any number of times; a client's leads through its LSP.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::Unavailable`] if a client is not connected to its LSP.
    pub fn create_offer(&self, request: OfferRequest) -> Result<api::Offer, Error> {
        check_amount(request.amount_msat)?;
        if request.amount_msat.is_some_and(|msat| msat < MIN_SPONTANEOUS_MSAT) {
            return Err(Error::invalid("amount_msat", format!("must be at least {MIN_SPONTANEOUS_MSAT}")));
        }
        let description = request.description.unwrap_or_default();
        if description.len() > MAX_DESCRIPTION {
            return Err(Error::invalid("description", format!("must be at most {MAX_DESCRIPTION} bytes")));
        }
        if request.expiry_secs.is_some_and(|secs| secs == 0 || secs > MAX_EXPIRY_SECS) {
            let reason = format!("must be from 1 to {MAX_EXPIRY_SECS} (a year)");
            return Err(Error::invalid("expiry_secs", reason));
        }
        let failed = |e| match e {
            Bolt12SemanticError::MissingPaths => {
                Error::Unavailable("an offer leads through the LSP, which is not connected".into())
            }
            e => Error::Ldk(format!("{e:?}")),
        };
        let mut builder = self.parts.manager.create_offer_builder().map_err(failed)?;
        if let Some(amount) = request.amount_msat {
            builder = builder.amount_msats(amount);
        }
        if let Some(secs) = request.expiry_secs {
            let end = unix_now().saturating_add(secs.into());
            builder = builder.absolute_expiry(Duration::from_secs(end));
        }
        let offer = builder.description(description).build().map_err(failed)?;
        Ok(api::Offer { offer: offer.to_string(), offer_id: hex::encode(offer.id().0) })
    }

    /// Begins to pay to an offer: asks for its invoice.
    pub(super) fn pay_offer(&self, text: &str, amount_msat: Option<u64>) -> Result<PaymentId, Error> {
        let p = &self.parts;
        let wrong = |reason: String| Error::invalid("invoice", reason);
        let offer: Offer = text.parse().map_err(|e| wrong(format!("not a BOLT 12 offer: {e:?}")))?;
        if !offer.supports_chain(ChainHash::using_genesis_block(p.config.network)) {
            return Err(wrong("the offer is for another network".into()));
        }
        if offer.is_expired() {
            return Err(wrong("the offer has expired".into()));
        }
        let inside = match offer.amount() {
            None => None,
            Some(Amount::Bitcoin { amount_msats }) => Some(amount_msats),
            Some(Amount::Currency { .. }) => return Err(wrong("the offer is in another currency".into())),
        };
        let amount = amount_to_pay(inside, amount_msat)?;
        let id = PaymentId(p.keys.get_secure_random_bytes());
        // Known to us before it is known to anybody else.
        p.requests.begin(&id, hex::encode(offer.id().0), amount)?;
        faults::point("node.offer.requested");
        let options =
            OptionalOfferPaymentParams { retry_strategy: Retry::Timeout(RETRY_FOR), ..Default::default() };
        let given = inside.is_none().then_some(amount);
        if let Err(e) = p.manager.pay_for_offer(&offer, given, id, options) {
            let why = match e {
                Bolt12SemanticError::MissingPaths => {
                    "no way for the answer: is the LSP connected?".to_owned()
                }
                e => format!("{e:?}"),
            };
            p.requests.fail_awaited(&id, &why)?;
            return Ok(id);
        }
        tokio::spawn(give_up_later(Arc::clone(&self.parts), id));
        Ok(id)
    }

    pub(super) fn find_request(&self, id: &PaymentId) -> Result<Payment, Error> {
        let unknown = || Error::not_found(format!("payment {}", hex::encode(id.0)));
        let request = self.parts.requests.get(id)?.ok_or_else(unknown)?;
        let paid = request.hash().map(|hash| self.parts.payments.get(&hash, Direction::Out)).transpose()?;
        Ok(paid.flatten().unwrap_or_else(|| request.payment(id)))
    }
}

/// Ends a request that nobody has answered in time.
async fn give_up_later(parts: Arc<Parts>, id: PaymentId) {
    let mut stop = parts.stop.subscribe();
    tokio::select! {
        () = tokio::time::sleep(PATIENCE) => {}
        // LDK remembers it, and gives it up after the next start.
        _ = stop.wait_for(|stop| *stop) => return,
    }
    let why = format!("the payee has not answered within {} s", PATIENCE.as_secs());
    if let Err(e) = parts.end_request(&id, &why) {
        tracing::error!(error = %e, "a payment to an offer without an answer");
    }
}

impl Parts {
    /// Ends a request to which there is no invoice, here and at LDK.
    fn end_request(&self, id: &PaymentId, why: &str) -> Result<bool, Error> {
        let ended = self.requests.fail_awaited(id, why)?;
        if ended {
            self.manager.abandon_payment(*id);
            self.tell_failed(id, why);
        }
        Ok(ended)
    }

    fn tell_failed(&self, id: &PaymentId, why: &str) {
        self.events.push("payment_failed", json!({"payment_id": hex::encode(id.0), "reason": why}));
        self.payment_changed();
    }

    /// The invoice for a request has come: puts it on record and has LDK pay it, or says why not.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn invoice_received(
        &self,
        id: PaymentId,
        invoice: &Bolt12Invoice,
        context: Option<&OffersContext>,
    ) -> Result<(), Error> {
        let hash = invoice.payment_hash();
        if let Err(why) = self.take_invoice(&id, &hash, invoice.amount_msats())? {
            if !self.end_request(&id, &why)? {
                self.manager.abandon_payment(id);
            }
            return Ok(());
        }
        faults::point("node.offer.answered");
        let why = match self.manager.send_payment_for_bolt12_invoice(invoice, context) {
            // The second: it is under way, from before a restart.
            Ok(()) | Err(Bolt12PaymentError::DuplicateInvoice) => return Ok(()),
            Err(Bolt12PaymentError::UnexpectedInvoice) => {
                return self.not_paid(&hash, "given up before the payee has answered");
            }
            Err(Bolt12PaymentError::SendingFailed(RetryableSendFailure::RouteNotFound)) => self.no_route(),
            Err(e) => format!("{e:?}"),
        };
        // LDK has given it up, and tells so by an event, in fewer words.
        self.payments.record(&hash, Direction::Out, |payment| {
            payment.status = PaymentStatus::Failed;
            payment.failure = Some(why);
        })?;
        Ok(())
    }

    /// Whether an invoice is what was asked for; if so, it is on record.
    fn take_invoice(
        &self,
        id: &PaymentId,
        hash: &PaymentHash,
        amount_msat: u64,
    ) -> Result<Result<(), String>, Error> {
        let Some(request) = self.requests.get(id)? else { return Ok(Err("nobody has asked for it".into())) };
        match &request.answer {
            Answer::Failed { reason } => return Ok(Err(reason.clone())),
            Answer::Invoice { .. } if request.hash() == Some(*hash) => {}
            _ if amount_msat != request.amount_msat => {
                let asked = request.amount_msat;
                return Ok(Err(format!("the payee wants {amount_msat} msat and not {asked}")));
            }
            _ if self.relays.has(hash) => {
                return Ok(Err("a payment with this payment hash is received for a client".into()))
            }
            _ => {}
        }
        let own = Some(hex::encode(id.0));
        let known = self.payments.get(hash, Direction::Out)?.filter(|p| p.payment_id == own);
        if let Some(told) = known.as_ref().filter(|p| p.status == PaymentStatus::Failed) {
            // Before a restart, and the user may have paid again.
            return Ok(Err(told.failure.clone().unwrap_or_else(|| "failed".to_owned())));
        }
        if known.is_none() {
            match self.payments.claim_to_offer(hash, request.amount_msat, id, &request.offer_id) {
                Err(Error::Conflict(reason)) => return Ok(Err(reason)),
                claimed => claimed?,
            };
        }
        if let Some(old) = request.hash().filter(|old| old != hash) {
            self.not_paid(&old, "the payee has sent another invoice")?;
        }
        let answer = Answer::Invoice { payment_hash: hex::encode(hash.0) };
        let unless_failed =
            |old: &Answer| (*old != answer && !matches!(old, Answer::Failed { .. })).then_some(answer);
        let now = self.requests.update(id, unless_failed)?.map(|request| request.answer);
        if let Some(Answer::Failed { reason }) = now {
            // Given up meanwhile, and the user knows it.
            self.not_paid(hash, &reason)?;
            return Ok(Err(reason));
        }
        Ok(Ok(()))
    }

    /// Notes the hash under which a request was paid. None if it was none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn request_paid(&self, id: &PaymentId, hash: &PaymentHash) -> Result<Option<Request>, Error> {
        if id.0 == hash.0 {
            return Ok(None);
        }
        let answer = Answer::Invoice { payment_hash: hex::encode(hash.0) };
        self.requests.update(id, |old| (*old != answer).then_some(answer))
    }

    /// Notes that a request has come to nothing, or the payment of its invoice. False if it was none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn request_failed(&self, id: &PaymentId, why: &str) -> Result<bool, Error> {
        let Some(request) = self.requests.get(id)? else { return Ok(false) };
        if let Some(hash) = request.hash() {
            self.not_paid(&hash, why)?;
        } else if self.requests.fail_awaited(id, why)? {
            self.tell_failed(id, why);
        }
        Ok(true)
    }
}
