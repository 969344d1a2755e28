//! LSP: answers clients that ask for an invoice in their place.

use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bolt_tlv::payload::{LongText, Payload, RelayAsk, RelayDecline, RelayInvoice};
use factory_core::refuse::clip;
use lightning::ln::channel_state::ChannelDetails;
use lightning::sign::{NodeSigner, Recipient};
use lightning::types::payment::PaymentHash;
use lightning_invoice::{Bolt11Invoice, Currency, Description, InvoiceBuilder};

use super::budget::{self, Budget};
use super::record::{Bytes, Relay, State, Terms};
use crate::api::Direction;
use crate::config::{LspSettings, RoleConfig};
use crate::error::Error;
use crate::factory::PaymentView;
use crate::faults;
use crate::htlc_rules::Limits;
use crate::node::Parts;
use crate::util::unix_now;

/// Code of [`RelayDecline`]: the LSP's settings or limits do not allow it.
pub(super) const NOT_ALLOWED: u16 = 1;
/// Code of [`RelayDecline`]: not now.
pub(super) const NOT_NOW: u16 = 2;
/// Code of [`RelayDecline`]: what was asked makes no sense.
pub(super) const MALFORMED: u16 = 3;
/// Longest lifetime of an invoice, seconds.
pub(super) const MAX_EXPIRY_SECS: u32 = 7 * 24 * 3600;
/// Shortest one, seconds: a record outlives its invoice by hours, and there are not many for a client.
pub(super) const MIN_EXPIRY_SECS: u32 = 60;
/// Seconds of one block, on average.
const BLOCK_SECS: u64 = 600;
/// Blocks that may come quickly while the client is waited for.
const QUICK_BLOCKS: u64 = 3;
/// What LDK adds to the final expiry delta in its own invoices, for blocks on the way.
const ON_THE_WAY: u64 = 3;

/// A refusal: code and words.
pub(super) type Declined = (u16, String);

/// What the LSP takes for a relay of this amount, msat.
fn fee_msat(settings: &LspSettings, amount_msat: u64) -> Option<u64> {
    let proportional = u128::from(amount_msat) * u128::from(settings.relay_fee_ppm) / 1_000_000;
    u64::try_from(proportional).ok()?.checked_add(settings.relay_fee_base_msat.into())
}

fn declined(e: Error) -> Declined {
    match e {
        Error::Conflict(reason) => (NOT_NOW, reason),
        e => {
            tracing::error!(error = %e, "relay not offered");
            (NOT_NOW, "internal error".into())
        }
    }
}

impl Parts {
    /// The answer to a client that asks for an invoice; the relay is stored when there is one.
    pub(crate) fn relay_asked(&self, client: PublicKey, ask: &RelayAsk, view: &PaymentView) -> Payload {
        let payment_hash = ask.payment_hash;
        match self.offer_relay(client, ask, view) {
            Ok(invoice) => RelayInvoice { payment_hash, invoice: LongText(invoice.to_string()) }.into(),
            Err((code, text)) => {
                tracing::info!(%client, code, text, "relay declined");
                RelayDecline { payment_hash, code, text: clip(text) }.into()
            }
        }
    }

    fn offer_relay(
        &self,
        client: PublicKey,
        ask: &RelayAsk,
        view: &PaymentView,
    ) -> Result<Bolt11Invoice, Declined> {
        let RoleConfig::Lsp(settings) = &self.config.role else {
            return Err((NOT_ALLOWED, "not an LSP".into()));
        };
        if !settings.relay {
            return Err((NOT_ALLOWED, "relay: this LSP does not receive for its clients".into()));
        }
        let limits = (settings.relay_max_open_per_client, settings.relay_max_open);
        if ask.moved_from.is_some() {
            // The client alone can pay for a move, and makes one after the other: the last one it has given up.
            let given_up = |relay: &Relay| {
                relay.terms.client == client && relay.terms.moved.is_some() && relay.state == State::Offered
            };
            for (hash, _) in self.relays.filtered(given_up) {
                self.relays.withdraw(&hash).map_err(declined)?;
            }
        }
        self.relays.check_limits(&client, limits).map_err(declined)?;
        if !self.is_served(&client) {
            return Err((NOT_ALLOWED, "only for clients that have a channel in a factory".into()));
        }
        if ask.expiry_secs < MIN_EXPIRY_SECS || ask.expiry_secs > MAX_EXPIRY_SECS {
            let text = format!("expiry_secs: must be from {MIN_EXPIRY_SECS} to {MAX_EXPIRY_SECS}");
            return Err((MALFORMED, text));
        }
        if Description::new(ask.description.0.clone()).is_err() {
            return Err((MALFORMED, "description: must be at most 639 bytes".into()));
        }
        let fee_msat = match ask.moved_from {
            Some(_) => 0,
            None => fee_msat(settings, ask.amount_msat).unwrap_or(u64::MAX),
        };
        if fee_msat > ask.max_fee_msat {
            let text = format!("max_fee_msat: the fee is {fee_msat} msat, above {}", ask.max_fee_msat);
            return Err((NOT_ALLOWED, text));
        }
        if ask.amount_msat == 0 {
            return Err((MALFORMED, "amount_msat: must be at least 1".into()));
        }
        let moved =
            ask.moved_from.map(|from| self.check_move(&client, from, ask.amount_msat, view)).transpose()?;
        let mut channels = self.client_channels(&client);
        channels.retain(|c| moved.is_none_or(|moved| moved.into.0 == c.channel_id.0));
        let most = receivable_msat(channels.iter());
        if ask.amount_msat > most {
            self.could_have_room(&client, ask.amount_msat, view, moved.is_some()).map_err(|why| {
                let text =
                    format!("amount_msat: there is room for {most}, and not for {}: {why}", ask.amount_msat);
                (NOT_NOW, text)
            })?;
        }
        let hash = PaymentHash(ask.payment_hash);
        self.check_unused(&hash)?;
        let budget = self.relay_budget(settings, ask, &client)?;
        let secret = Bytes(ask.payment_secret);
        let (amount_msat, outgoing) = (ask.amount_msat, budget.outgoing);
        let terms = Terms { client, secret, amount_msat, fee_msat, outgoing, lapses_at: 0, moved };
        self.relays.add(&hash, terms, ask.expiry_secs, limits).map_err(declined)?;
        faults::point("lsp.relay.offered");
        let made = self.relay_invoice(&hash, amount_msat.saturating_add(fee_msat), budget.room, ask);
        made.inspect_err(|_| drop(self.relays.withdraw(&hash))).map_err(|e| declined(Error::Ldk(e)))
    }

    /// Channels with a client over which it can be paid, if it is connected.
    fn client_channels(&self, client: &PublicKey) -> Vec<ChannelDetails> {
        let mut channels = self.manager.list_channels_with_counterparty(client);
        channels.retain(|c| {
            c.is_channel_ready && self.depth.suffices(&c.channel_id) && !self.is_unpaid(c.user_channel_id)
        });
        channels
    }

    /// A payment hash that anything else here has to do with is nobody's relay.
    fn check_unused(&self, hash: &PaymentHash) -> Result<(), Declined> {
        let paid = |direction| self.payments.get(hash, direction).map(|p| p.is_some()).map_err(declined);
        if self.holds.has(hash) || paid(Direction::In)? || paid(Direction::Out)? {
            return Err((NOT_NOW, "payment_hash: this payment hash has been used".into()));
        }
        Ok(())
    }

    /// The blocks of a relay. Money that is moved does not come over a factory's channel.
    fn relay_budget(
        &self,
        settings: &LspSettings,
        ask: &RelayAsk,
        client: &PublicKey,
    ) -> Result<Budget, Declined> {
        let all = self.manager.list_channels();
        // Also of channels that are not ready yet, or whose funding is not deep.
        let of_client = all.iter().filter(|c| c.counterparty.node_id == *client);
        let own = self.strictest(of_client.map(|c| &c.channel_id)).map_or(0, Limits::claim);
        let payers = all.iter().filter(|_| ask.moved_from.is_none()).map(|c| &c.channel_id);
        let incoming = self.strictest(payers).map_or(0, Limits::claim);
        let min_final = ask.min_final;
        let hold = settings.relay_hold_secs.div_ceil(BLOCK_SECS).saturating_add(QUICK_BLOCKS);
        let hold = u32::try_from(hold).unwrap_or(u32::MAX);
        budget::plan(min_final.into(), own, incoming, hold).map_err(|e| {
            let (needed, most) = (e.needed, budget::LIMIT);
            (
                NOT_ALLOWED,
                format!("min_final: {min_final} blocks make {needed} in all, and {most} is the most"),
            )
        })
    }

    /// The invoice, without route hints: those would name channels of others.
    fn relay_invoice(
        &self,
        hash: &PaymentHash,
        amount_msat: u64,
        room: u16,
        ask: &RelayAsk,
    ) -> Result<Bolt11Invoice, String> {
        let (secret, _) = self
            .manager
            .create_inbound_payment_for_hash(*hash, Some(amount_msat), ask.expiry_secs, Some(room), None)
            .map_err(|()| "no payment secret".to_owned())?;
        let raw = InvoiceBuilder::new(Currency::from(self.config.network))
            .description(ask.description.0.clone())
            .duration_since_epoch(Duration::from_secs(unix_now()))
            .payee_pub_key(self.node_id)
            .payment_hash(*hash)
            .payment_secret(secret)
            .basic_mpp()
            .min_final_cltv_expiry_delta(u64::from(room).saturating_add(ON_THE_WAY))
            .amount_milli_satoshis(amount_msat)
            .expiry_time(Duration::from_secs(ask.expiry_secs.into()))
            .build_raw()
            .map_err(|e| format!("{e:?}"))?;
        let signature =
            self.keys.sign_invoice(&raw, Recipient::Node).map_err(|()| "not signed".to_owned())?;
        let signed = raw.sign(|_| Ok::<_, ()>(signature)).map_err(|()| "not signed".to_owned())?;
        Bolt11Invoice::from_signed(signed).map_err(|e| format!("{e:?}"))
    }
}

/// What can be sent over these channels together, msat.
pub(super) fn receivable_msat<'a>(channels: impl Iterator<Item = &'a ChannelDetails>) -> u64 {
    channels.map(|c| c.next_outbound_htlc_limit_msat).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fee_is_base_and_part_and_never_wraps() {
        let with = |relay_fee_base_msat, relay_fee_ppm| LspSettings {
            relay_fee_base_msat,
            relay_fee_ppm,
            ..LspSettings::default()
        };
        assert_eq!(fee_msat(&with(7, 1000), 250_000_000), Some(250_007));
        assert_eq!(fee_msat(&with(0, 0), u64::MAX), Some(0));
        assert_eq!(fee_msat(&with(1, 1_000_000), u64::MAX), None);
    }
}
