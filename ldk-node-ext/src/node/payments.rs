//! Invoices and payments. What is paid to and by offers: [`super::offers`].

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lightning::ln::channelmanager::{
    Bolt11InvoiceParameters, OptionalBolt11PaymentParams, PaymentId, RecentPaymentDetails,
    MIN_FINAL_CLTV_EXPIRY_DELTA,
};
use lightning::ln::outbound_payment::{Bolt11PaymentError, Retry, RetryableSendFailure};
use lightning::types::payment::PaymentHash;
use lightning_invoice::{Bolt11Invoice, Bolt11InvoiceDescription, Description};
use serde_json::json;

use super::{Node, Parts};
use crate::api::{Direction, Invoice, InvoiceRequest, PayRequest, Payment, PaymentStatus, RelayMode};
use crate::error::Error;
use crate::faults;
use crate::ldk::ChannelManager;
use crate::relay::Wanted;

/// How long LDK looks for another route after a failure.
pub(super) const RETRY_FOR: Duration = Duration::from_secs(30);
/// Longest wait for an outcome, seconds.
const MAX_WAIT_SECS: u64 = 600;
/// Most msat there are.
const MAX_MSAT: u64 = 21_000_000 * 100_000_000 * 1000;
/// How long a payment can be held if the invoice does not say it, blocks.
const HOLD_BLOCKS: u16 = 36;
/// Longest hold, blocks: the longest route that payers look for by default.
const MAX_HOLD_BLOCKS: u16 = 1008;

impl Node {
    /// Makes an invoice. Its final expiry delta covers a unilateral exit of every factory this node
    /// is in, so an HTLC that arrives can always be claimed on the chain. With a payment hash it is a
    /// hold invoice, and the delta covers the hold as well.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]; for a hold invoice [`Error::Conflict`] if the hash was used before or
    /// there are too many, and [`Error::Store`]. For one that the LSP receives [`Error::Unavailable`] if it does not
    /// answer, [`Error::Conflict`] if it declines.
    pub async fn create_invoice(&self, request: InvoiceRequest) -> Result<Invoice, Error> {
        check_amount(request.amount_msat)?;
        let text = request.description.clone().unwrap_or_default();
        let description = Description::new(request.description.unwrap_or_default())
            .map_err(|_| Error::invalid("description", "must be at most 639 bytes"))?;
        let expiry = request.expiry_secs.unwrap_or(3600);
        if expiry == 0 || expiry > 31_536_000 {
            return Err(Error::invalid("expiry_secs", "must be from 1 to 31536000 (a year)"));
        }
        if request.payment_hash.is_none() && self.parts.relays_invoice(request.relay, request.amount_msat)? {
            let amount_msat = request.amount_msat.ok_or_else(|| {
                Error::invalid("amount_msat", "an LSP receives known amounts only: give one")
            })?;
            let max_fee_msat = request.relay_max_fee_msat;
            let insists = request.relay == Some(RelayMode::Always);
            let wanted = Wanted {
                amount_msat,
                description: text.clone(),
                expiry_secs: expiry,
                max_fee_msat,
                insists,
                moved_from: None,
            };
            if let Some(invoice) = self.parts.relayed_invoice(wanted).await? {
                return Ok(invoice);
            }
        }
        let mut min_final = self.parts.min_final_cltv.load(Ordering::Acquire);
        let held = request.payment_hash.as_deref().map(parse_hash).transpose()?;
        match (&held, request.hold_blocks) {
            (None, None) => {}
            (None, Some(_)) => return Err(Error::invalid("hold_blocks", "only with a payment_hash")),
            (Some(_), Some(n)) if n == 0 || n > MAX_HOLD_BLOCKS => {
                return Err(Error::invalid("hold_blocks", format!("must be from 1 to {MAX_HOLD_BLOCKS}")))
            }
            (Some(hash), blocks) => {
                if self.parts.payments.get(hash, Direction::In)?.is_some() || self.parts.relays.has(hash) {
                    return Err(Error::Conflict("a payment with this payment hash came in before".into()));
                }
                min_final =
                    min_final.max(MIN_FINAL_CLTV_EXPIRY_DELTA).saturating_add(blocks.unwrap_or(HOLD_BLOCKS));
                // On disk before anybody can pay it.
                self.parts.holds.add(hash, expiry)?;
                faults::point("node.hold.added");
            }
        }
        let params = Bolt11InvoiceParameters {
            amount_msats: request.amount_msat,
            description: Bolt11InvoiceDescription::Direct(description),
            invoice_expiry_delta_secs: Some(expiry),
            min_final_cltv_expiry_delta: (min_final > 0).then_some(min_final),
            payment_hash: held,
            ..Default::default()
        };
        let made = self.parts.manager.create_bolt11_invoice(params);
        if let (Err(_), Some(hash)) = (&made, &held) {
            self.parts.holds.withdraw(hash)?;
        }
        let invoice = made.map_err(|e| Error::Ldk(format!("{e:?}")))?;
        let payment_hash = hex::encode(invoice.payment_hash().0);
        Ok(Invoice { invoice: invoice.to_string(), payment_hash, relay_fee_msat: None })
    }

    /// Pays an invoice, or to an offer, and waits for the outcome, at most `wait_secs`; after that the payment goes on
    /// by itself.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::Conflict`] if it was paid already or is being paid (an invoice: an offer is
    /// paid anew each time). A payment that was tried and failed is an answer, not an error.
    pub async fn pay(&self, request: PayRequest) -> Result<Payment, Error> {
        let p = &self.parts;
        let wait = request.wait_secs.unwrap_or(60);
        if wait > MAX_WAIT_SECS {
            return Err(Error::invalid("wait_secs", format!("must be at most {MAX_WAIT_SECS}")));
        }
        let mut changed = p.payments_changed.subscribe();
        let text = request.invoice.trim();
        let begun = match is_offer(text) {
            true => Begun::Request(self.pay_offer(text, request.amount_msat)?),
            false => Begun::Invoice(self.pay_invoice(text, request.amount_msat)?),
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(wait);
        loop {
            let now = match &begun {
                Begun::Invoice(hash) => self.find(hash, Direction::Out)?,
                Begun::Request(id) => self.find_request(id)?,
            };
            if now.status != PaymentStatus::Pending {
                return Ok(now);
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Ok(now);
            }
        }
    }

    /// Begins to pay an invoice.
    fn pay_invoice(&self, text: &str, amount_msat: Option<u64>) -> Result<PaymentHash, Error> {
        let p = &self.parts;
        let invoice: Bolt11Invoice =
            text.parse().map_err(|e| Error::invalid("invoice", format!("not a BOLT 11 invoice: {e}")))?;
        let amount = amount_to_pay(invoice.amount_milli_satoshis(), amount_msat)?;
        let hash = invoice.payment_hash();
        if p.relays.has(&hash) {
            return Err(Error::Conflict("a payment with this payment hash is received for a client".into()));
        }
        // Known to us before it is known to anybody else.
        p.payments.claim(&hash, amount)?;
        faults::point("node.pay.recorded");
        let options =
            OptionalBolt11PaymentParams { retry_strategy: Retry::Timeout(RETRY_FOR), ..Default::default() };
        let overpay = invoice.amount_milli_satoshis().is_none().then_some(amount);
        if let Err(e) = p.manager.pay_for_bolt11_invoice(&invoice, PaymentId(hash.0), overpay, options) {
            // LDK has it under way all the same and will say what became of it.
            if matches!(e, Bolt11PaymentError::SendingFailed(RetryableSendFailure::DuplicatePayment)) {
                return Err(Error::Conflict("this invoice is being paid".into()));
            }
            let why = match e {
                Bolt11PaymentError::SendingFailed(RetryableSendFailure::RouteNotFound) => {
                    match invoice.get_payee_pub_key() == p.node_id {
                        true => "this node's own invoice".into(),
                        false => p.no_route(),
                    }
                }
                e => format!("{e:?}"),
            };
            p.payments.record(&hash, Direction::Out, |payment| {
                payment.status = PaymentStatus::Failed;
                payment.failure = Some(why);
            })?;
            return Ok(hash);
        }
        faults::point("node.pay.begun");
        Ok(hash)
    }

    /// All payments, oldest change first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn payments(&self) -> Result<Vec<Payment>, Error> {
        let mut list = self.parts.payments.all()?;
        let moved: HashSet<String> =
            list.iter().filter(|p| p.moved.is_some()).map(|p| p.payment_hash.clone()).collect();
        // What was paid to oneself is one thing.
        list.retain(|p| p.direction == Direction::Out || !moved.contains(&p.payment_hash));
        let mut list: Vec<Payment> = list.into_iter().map(shown).collect();
        list.extend(self.parts.requests.unanswered()?);
        list.extend(self.parts.relayed_payments());
        list.sort_by_key(|p| p.updated_at);
        Ok(list)
    }

    /// A payment by its hash in hex, or its id; the outgoing one if there are both.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn payment(&self, payment_hash: &str) -> Result<Payment, Error> {
        let hash = parse_hash(payment_hash)?;
        match self.parts.relayed_payment(&hash) {
            Some(payment) => Ok(payment),
            None => self
                .find(&hash, Direction::Out)
                .or_else(|_| self.find(&hash, Direction::In))
                .or_else(|_| self.find_request(&PaymentId(hash.0))),
        }
    }

    pub(super) fn find(&self, hash: &PaymentHash, direction: Direction) -> Result<Payment, Error> {
        self.parts
            .payments
            .get(hash, direction)?
            .map(shown)
            .ok_or_else(|| Error::not_found(format!("payment {}", hex::encode(hash.0))))
    }
}

/// One as it is told.
fn shown(payment: Payment) -> Payment {
    match payment.moved {
        Some(_) => Payment { direction: Direction::Moved, ..payment },
        None => payment,
    }
}

/// What is being paid.
enum Begun {
    Invoice(PaymentHash),
    Request(PaymentId),
}

fn is_offer(text: &str) -> bool {
    text.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("lno1"))
}

/// Refuses an amount that cannot be asked for.
pub(super) fn check_amount(amount_msat: Option<u64>) -> Result<(), Error> {
    match amount_msat.is_some_and(|a| a == 0 || a > MAX_MSAT) {
        true => Err(Error::invalid("amount_msat", format!("must be from 1 to {MAX_MSAT}"))),
        false => Ok(()),
    }
}

/// What to pay, msat, if an invoice or an offer says `inside` and the user `given`.
pub(super) fn amount_to_pay(inside: Option<u64>, given: Option<u64>) -> Result<u64, Error> {
    check_amount(given)?;
    match (inside, given) {
        (Some(inside), Some(given)) if given != inside => {
            Err(Error::invalid("amount_msat", format!("it is over {inside} msat")))
        }
        (Some(amount), _) | (None, Some(amount)) => Ok(amount),
        (None, None) => Err(Error::invalid("amount_msat", "it names none: give one")),
    }
}

impl Parts {
    /// Why LDK has found no route, in words.
    pub(super) fn no_route(&self) -> String {
        let channels = self.manager.list_usable_channels();
        let (connected, mut usable) = (channels.len(), channels.clone());
        usable.retain(|c| self.depth.suffices(&c.channel_id));
        if connected > 0 && usable.is_empty() {
            return match channels.iter().any(|c| self.depth.is_stuck(&c.channel_id)) {
                true => "no route: the channel is stuck, an older state is on the chain".into(),
                false => "no route: the funding of the factory is not deep enough in the chain".into(),
            };
        }
        if usable.is_empty() {
            return "no route: no channel is usable now (is the peer connected?)".into();
        }
        let most: u64 = usable.iter().map(|c| c.next_outbound_htlc_limit_msat).fold(0, u64::saturating_add);
        format!("no route found; at most {most} msat can leave this node now")
    }

    /// A payment of this node's has arrived.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn paid(
        &self,
        id: Option<PaymentId>,
        hash: &PaymentHash,
        amount_msat: Option<u64>,
        fee_msat: Option<u64>,
    ) -> Result<(), Error> {
        // LDK pays an invoice that somebody else gives out for the payee without asking.
        let request = id.map(|id| self.request_paid(&id, hash)).transpose()?.flatten();
        let done = self.payments.record(hash, Direction::Out, |payment| {
            payment.status = PaymentStatus::Succeeded;
            payment.failure = None;
            payment.amount_msat = amount_msat.unwrap_or(payment.amount_msat);
            payment.fee_msat = fee_msat.unwrap_or(0);
            if let (Some(id), Some(request)) = (id, request) {
                payment.payment_id = Some(hex::encode(id.0));
                payment.offer_id = Some(request.offer_id);
            }
        })?;
        faults::point("node.paid.recorded");
        self.tell_sent(&done);
        self.payment_changed();
        Ok(())
    }

    /// A payment of this node's has come to nothing.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(super) fn not_paid(&self, hash: &PaymentHash, why: &str) -> Result<(), Error> {
        let failed = self.payments.record(hash, Direction::Out, |payment| {
            payment.status = PaymentStatus::Failed;
            payment.failure.get_or_insert_with(|| why.to_owned());
        })?;
        let why = failed.failure;
        self.events.push("payment_failed", json!({"payment_hash": hex::encode(hash.0), "reason": why}));
        self.payment_changed();
        Ok(())
    }
}

/// Outgoing payments that LDK knows of, by what is their id for LDK.
pub(crate) fn known_payments(manager: &ChannelManager) -> HashSet<PaymentHash> {
    let recent = manager.list_recent_payments().into_iter();
    // Our payment id is the payment hash, unless it is to an offer.
    let hash = |payment| match payment {
        RecentPaymentDetails::AwaitingInvoice { payment_id }
        | RecentPaymentDetails::Pending { payment_id, .. }
        | RecentPaymentDetails::Fulfilled { payment_id, .. }
        | RecentPaymentDetails::Abandoned { payment_id, .. } => PaymentHash(payment_id.0),
    };
    recent.map(hash).collect()
}

pub(super) fn parse_hash(text: &str) -> Result<PaymentHash, Error> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash)
        .map_err(|_| Error::invalid("payment_hash", "must be 64 hex digits"))
        .map(|()| PaymentHash(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_paid_is_what_both_say() {
        let of = |inside, given| amount_to_pay(inside, given).ok();
        assert_eq!((of(Some(5), None), of(Some(5), Some(5)), of(None, Some(5))), (Some(5), Some(5), Some(5)));
        for (inside, given) in [(Some(5), Some(6)), (None, None), (None, Some(0)), (None, Some(MAX_MSAT + 1))]
        {
            assert_eq!(of(inside, given), None);
        }
        assert!(is_offer("lno1pg") && is_offer("LNO1PG") && !is_offer("lnbcrt1") && !is_offer("lno"));
    }
}
