//! Client: asks its LSP for an invoice in its place, and shows the answer to nobody before it has checked it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Mutex;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bolt_tlv::payload::{LongText, Payload, RelayAsk};
use lightning::ln::channelmanager::MIN_FINAL_CLTV_EXPIRY_DELTA;
use lightning::ln::types::ChannelId;
use lightning::types::payment::PaymentHash;
use lightning_invoice::{Bolt11Invoice, Bolt11InvoiceDescriptionRef, Currency};
use tokio::sync::oneshot;

use super::offer::{MAX_EXPIRY_SECS, MIN_EXPIRY_SECS, NOT_ALLOWED};
use crate::api::{Invoice, RelayMode};
use crate::config::RoleConfig;
use crate::error::Error;
use crate::node::Parts;
use crate::util::{lock, unix_now};

/// Questions that may be open at a time.
const MAX_ASKS: usize = 32;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much longer than the invoice the client's own secret is good, seconds: the LSP may hold for a while what was
/// paid at the last moment.
const HELD_SECS: u32 = 3600;

/// Questions that wait for their answer.
#[derive(Default)]
pub(crate) struct Asks(Mutex<HashMap<PaymentHash, oneshot::Sender<Payload>>>);

impl Asks {
    /// The LSP is gone: nothing that was asked is answered any more.
    pub(crate) fn give_up(&self) {
        lock(&self.0).clear();
    }
}

/// What is asked for.
pub(crate) struct Wanted {
    pub(crate) amount_msat: u64,
    pub(crate) description: String,
    pub(crate) expiry_secs: u32,
    /// None: as the settings say.
    pub(crate) max_fee_msat: Option<u64>,
    /// Only the LSP's invoice will do.
    pub(crate) insists: bool,
    /// The payer is this node, over this channel.
    pub(crate) moved_from: Option<ChannelId>,
}

/// What the answer has to be.
struct Expected<'a> {
    lsp: PublicKey,
    hash: PaymentHash,
    currency: Currency,
    max_fee_msat: u64,
    wanted: &'a Wanted,
}

/// Whether the LSP is to be asked: `largest` is what the largest channel can receive, msat. Where all channels together
/// cannot either, the LSP may make room.
fn is_relayed(mode: RelayMode, amount_msat: Option<u64>, largest: u64) -> bool {
    match (mode, amount_msat) {
        (RelayMode::Never, _) | (RelayMode::Auto, None) => false,
        (RelayMode::Always, _) => true,
        (RelayMode::Auto, Some(amount)) => largest < amount,
    }
}

/// Reads the LSP's invoice; returns it with what the payer pays on top, msat.
fn check(text: &str, expected: &Expected<'_>) -> Result<(Bolt11Invoice, u64), Error> {
    let wrong =
        |what: String| Error::Conflict(format!("the LSP's invoice is not what was asked for: {what}"));
    let invoice: Bolt11Invoice = text.parse().map_err(|e| wrong(format!("no BOLT 11 invoice: {e}")))?;
    let payee = invoice.payee_pub_key().copied().unwrap_or_else(|| invoice.recover_payee_pub_key());
    if payee != expected.lsp {
        return Err(wrong(format!("the payee is {payee}")));
    }
    if invoice.payment_hash() != expected.hash {
        return Err(wrong("it has another payment hash".into()));
    }
    if invoice.currency() != expected.currency {
        return Err(wrong("it is for another network".into()));
    }
    let (least, max_fee) = (expected.wanted.amount_msat, expected.max_fee_msat);
    let fee = invoice.amount_milli_satoshis().and_then(|amount| amount.checked_sub(least));
    let Some(fee) = fee.filter(|fee| *fee <= max_fee) else {
        let amount = invoice.amount_milli_satoshis();
        let text = format!("amount {amount:?} msat, asked for {least} and at most {max_fee} on top");
        return Err(wrong(text));
    };
    if !matches!(invoice.description(), Bolt11InvoiceDescriptionRef::Direct(d) if d.as_inner().0 == expected.wanted.description)
    {
        return Err(wrong("it has another description".into()));
    }
    let (lives, now) = (invoice.expiry_time(), Duration::from_secs(unix_now()));
    if lives > Duration::from_secs(expected.wanted.expiry_secs.into()) || invoice.would_expire(now) {
        return Err(wrong(format!("it lives for {} s", lives.as_secs())));
    }
    Ok((invoice, fee))
}

impl Parts {
    /// Whether an invoice is to be the LSP's. `mode` is None where the request does not say.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] on an LSP that is told to.
    pub(crate) fn relays_invoice(&self, mode: Option<RelayMode>, amount: Option<u64>) -> Result<bool, Error> {
        if matches!(self.config.role, RoleConfig::Lsp(_)) {
            return match mode {
                None => Ok(false),
                Some(_) => Err(Error::invalid("relay", "only a client has an LSP that could receive for it")),
            };
        }
        let channels = self.manager.list_channels();
        let each = channels.iter().filter(|c| c.is_channel_ready).map(|c| c.inbound_capacity_msat);
        Ok(is_relayed(mode.unwrap_or_default(), amount, each.max().unwrap_or(0)))
    }

    /// Asks the LSP for an invoice, and checks it. None if its settings do not allow one and the user does not insist: it
    /// may still make room for the client's own.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]; [`Error::Unavailable`] if the LSP is not there or does not answer;
    /// [`Error::Conflict`] if it declines, or its invoice is not what was asked for.
    pub(crate) async fn relayed_invoice(&self, wanted: Wanted) -> Result<Option<Invoice>, Error> {
        Ok(self.asked_for(&wanted).await?.map(|(invoice, fee)| Invoice {
            invoice: invoice.to_string(),
            payment_hash: hex::encode(invoice.payment_hash().0),
            relay_fee_msat: Some(fee),
        }))
    }

    /// As [`Self::relayed_invoice`], to be paid by this node.
    ///
    /// # Errors
    /// As [`Self::relayed_invoice`].
    pub(crate) async fn invoice_of_lsp(&self, wanted: &Wanted) -> Result<Bolt11Invoice, Error> {
        let asked = self.asked_for(wanted).await?.map(|(invoice, _)| invoice);
        asked.ok_or_else(|| Error::Conflict("the LSP does not receive for its clients".into()))
    }

    async fn asked_for(&self, wanted: &Wanted) -> Result<Option<(Bolt11Invoice, u64)>, Error> {
        let RoleConfig::Client(settings) = &self.config.role else {
            return Err(Error::invalid("relay", "only a client has an LSP"));
        };
        if wanted.expiry_secs < MIN_EXPIRY_SECS || wanted.expiry_secs > MAX_EXPIRY_SECS {
            let reason =
                format!("must be from {MIN_EXPIRY_SECS} to {MAX_EXPIRY_SECS} if the LSP receives it");
            return Err(Error::invalid("expiry_secs", reason));
        }
        let part = u128::from(wanted.amount_msat) * u128::from(settings.relay_max_fee_ppm) / 1_000_000;
        let max_fee_msat = wanted.max_fee_msat.unwrap_or(u64::try_from(part).unwrap_or(u64::MAX));
        let min_final = self.min_final_cltv.load(Ordering::Acquire).max(MIN_FINAL_CLTV_EXPIRY_DELTA);
        let lives = wanted.expiry_secs.saturating_add(HELD_SECS);
        let (hash, secret, _) = self
            .manager
            .create_inbound_payment(Some(wanted.amount_msat), lives, Some(min_final), None)
            .map_err(|()| Error::Ldk("no payment secret".into()))?;
        let ask = RelayAsk {
            payment_hash: hash.0,
            payment_secret: secret.0,
            amount_msat: wanted.amount_msat,
            min_final,
            max_fee_msat,
            expiry_secs: wanted.expiry_secs,
            description: LongText(wanted.description.clone()),
            moved_from: wanted.moved_from.map(|id| id.0),
        };
        let text = match self.ask_lsp(settings.lsp_node_id, hash, ask).await? {
            Payload::RelayInvoice(m) => m.invoice.0,
            Payload::RelayDecline(m) if m.code == NOT_ALLOWED && !wanted.insists => {
                tracing::info!(reason = m.text, "the LSP does not receive in this client's place");
                return Ok(None);
            }
            Payload::RelayDecline(m) => {
                return Err(Error::Conflict(format!("the LSP does not receive this payment: {}", m.text)))
            }
            other => return Err(Error::Ldk(format!("message {} is no answer", other.number()))),
        };
        let (lsp, currency) = (settings.lsp_node_id, Currency::from(self.config.network));
        check(&text, &Expected { lsp, hash, currency, max_fee_msat, wanted }).map(Some)
    }

    async fn ask_lsp(&self, lsp: PublicKey, hash: PaymentHash, ask: RelayAsk) -> Result<Payload, Error> {
        let (answer, reply) = oneshot::channel();
        {
            let mut open = lock(&self.asks.0);
            open.retain(|_, waits| !waits.is_closed());
            if open.len() >= MAX_ASKS {
                let text = format!("{MAX_ASKS} invoices are being asked for; try again later");
                return Err(Error::Unavailable(text));
            }
            open.insert(hash, answer);
        }
        if !self.factory_messages.send(lsp, &ask.into()) {
            return Err(Error::Unavailable(
                "the LSP, which has to receive this payment, is not connected".into(),
            ));
        }
        self.peers.process_events();
        match tokio::time::timeout(PATIENCE, reply).await {
            Ok(Ok(payload)) => Ok(payload),
            Ok(Err(_)) => Err(Error::Unavailable("the connection with the LSP ended".into())),
            Err(_) => {
                Err(Error::Unavailable("the LSP has not answered; it may not know relayed payments".into()))
            }
        }
    }

    /// The LSP has answered.
    pub(crate) fn relay_answered(&self, payload: Payload) {
        let hash = match &payload {
            Payload::RelayInvoice(m) => m.payment_hash,
            Payload::RelayDecline(m) => m.payment_hash,
            _ => return,
        };
        if let Some(waits) = lock(&self.asks.0).remove(&PaymentHash(hash)) {
            let _ = waits.send(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{Secp256k1, SecretKey};
    use lightning::types::payment::PaymentSecret;
    use lightning_invoice::InvoiceBuilder;

    use super::*;

    const SAT: u64 = 1000;

    #[test]
    fn the_lsp_is_asked_for_what_no_channel_has_room_for() {
        let largest = 90_000 * SAT;
        let auto = |sat: u64| is_relayed(RelayMode::Auto, Some(sat * SAT), largest);
        assert!(!auto(90_000) && auto(90_001) && auto(2_000_000));
        assert!(!is_relayed(RelayMode::Auto, None, largest));
        assert!(is_relayed(RelayMode::Always, Some(1), largest));
        assert!(!is_relayed(RelayMode::Never, Some(100_000 * SAT), largest));
    }

    fn key(secret: u8) -> SecretKey {
        SecretKey::from_slice(&[secret; 32]).unwrap()
    }

    fn invoice(signer: u8, hash: u8, amount_msat: u64, currency: Currency, expiry: u64) -> String {
        InvoiceBuilder::new(currency)
            .description("two oxen".into())
            .duration_since_epoch(Duration::from_secs(unix_now()))
            .payment_hash(PaymentHash([hash; 32]))
            .payment_secret(PaymentSecret([1; 32]))
            .min_final_cltv_expiry_delta(500)
            .amount_milli_satoshis(amount_msat)
            .expiry_time(Duration::from_secs(expiry))
            .build_signed(|digest| Secp256k1::new().sign_ecdsa_recoverable(digest, &key(signer)))
            .unwrap()
            .to_string()
    }

    #[test]
    fn an_invoice_that_is_not_what_was_asked_for_is_not_shown() {
        let wanted = Wanted {
            amount_msat: 5000,
            description: "two oxen".into(),
            expiry_secs: 600,
            max_fee_msat: None,
            insists: true,
            moved_from: None,
        };
        let lsp = key(1).public_key(&Secp256k1::new());
        let hash = PaymentHash([2; 32]);
        let of = |text: &str| {
            let currency = Currency::Regtest;
            check(text, &Expected { lsp, hash, currency, max_fee_msat: 50, wanted: &wanted })
                .map(|(_, fee)| fee)
        };
        let good = |signer, hash, amount, expiry| invoice(signer, hash, amount, Currency::Regtest, expiry);
        assert_eq!(of(&good(1, 2, 5050, 600)).unwrap(), 50);
        assert_eq!(of(&good(1, 2, 5000, 60)).unwrap(), 0);
        let other = Wanted {
            amount_msat: 5000,
            description: "one ox".into(),
            expiry_secs: 600,
            max_fee_msat: None,
            insists: true,
            moved_from: None,
        };
        let other = Expected { lsp, hash, currency: Currency::Regtest, max_fee_msat: 50, wanted: &other };
        let e = check(&good(1, 2, 5000, 600), &other).unwrap_err().to_string();
        assert!(e.contains("another description"), "{e}");
        for (text, why) in [
            (good(3, 2, 5000, 600), "the payee"),
            (good(1, 3, 5000, 600), "payment hash"),
            (good(1, 2, 5051, 600), "at most 50 on top"),
            (good(1, 2, 4999, 600), "asked for 5000"),
            (good(1, 2, 5000, 601), "lives for 601 s"),
            (invoice(1, 2, 5000, Currency::Bitcoin, 600), "another network"),
            ("lnbcrt1".into(), "no BOLT 11 invoice"),
        ] {
            let e = of(&text).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
    }
}
