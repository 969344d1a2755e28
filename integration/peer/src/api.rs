//! The requests that control the node, `{"method": "...", ...}`, and what is answered: `{"ok": ...}` or
//! `{"error": "..."}`. Amounts carry their unit in the name.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{anyhow, Context, Result};
use ldk_node::bitcoin::secp256k1::PublicKey;
use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::lightning_invoice::{Bolt11Invoice, Bolt11InvoiceDescription, Description};
use ldk_node::lightning_types::payment::{PaymentHash, PaymentPreimage};
use ldk_node::payment::{PaymentDetails, PaymentDirection, PaymentKind, PaymentStatus};
use ldk_node::{ChannelDetails, Event, Node};
use serde::Deserialize;
use serde_json::{json, Value};

/// Payments that wait for an order, as the events told them: hash, amount (msat) and the height at which the node gives
/// them back. Known as long as the process lives.
#[derive(Default)]
pub struct Held(Mutex<Vec<(PaymentHash, u64, Option<u32>)>>);

impl Held {
    /// Takes note of an event that tells of one.
    pub fn note(&self, event: &Event) -> Result<()> {
        let Event::PaymentClaimable { payment_hash, claimable_amount_msat, claim_deadline, .. } = event
        else {
            return Ok(());
        };
        let mut held = self.0.lock().map_err(|_| anyhow!("a thread panicked"))?;
        held.retain(|(hash, ..)| hash != payment_hash);
        held.push((*payment_hash, *claimable_amount_msat, *claim_deadline));
        Ok(())
    }

    fn list(&self) -> Result<Vec<(PaymentHash, u64, Option<u32>)>> {
        Ok(self.0.lock().map_err(|_| anyhow!("a thread panicked"))?.clone())
    }
}

/// One request line.
#[derive(Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Request {
    /// Own node id, and the height and hash of the best block that the node has seen.
    Info,
    /// A new on-chain address.
    Address,
    /// On-chain and Lightning balance in sat.
    Balance,
    /// Connects to a node and remembers it.
    Connect { node_id: String, address: String },
    /// Opens a channel; `announce` makes it a public one.
    OpenChannel {
        node_id: String,
        address: String,
        capacity_sat: u64,
        push_msat: Option<u64>,
        #[serde(default)]
        announce: bool,
    },
    /// A BOLT 11 invoice.
    Invoice { amount_msat: u64, description: Option<String>, expiry_secs: Option<u32> },
    /// A BOLT 11 invoice that is paid over a channel that the LSP opens for it (LSPS2); the LSP's fee is at most
    /// `max_fee_msat`.
    JitInvoice { amount_msat: u64, max_fee_msat: Option<u64> },
    /// A BOLT 11 invoice over a hash; what is paid on it is held until `hold_claim` or `hold_fail`.
    HoldInvoice {
        amount_msat: u64,
        payment_hash: String,
        description: Option<String>,
        expiry_secs: Option<u32>,
    },
    /// Every payment that was held since the start of the process, whatever became of it.
    Held,
    /// Claims a held payment.
    HoldClaim { preimage: String },
    /// Gives a held payment back.
    HoldFail { payment_hash: String },
    /// Pays an invoice and waits up to `wait_secs` (60 if not given) for the outcome.
    Pay { invoice: String, wait_secs: Option<u64> },
    /// Pays to an offer, `amount_msat` if it has none, and waits up to `wait_secs` (60 if not given) for the outcome.
    PayOffer { offer: String, amount_msat: Option<u64>, wait_secs: Option<u64> },
    /// An offer.
    Offer { amount_msat: u64 },
    /// Every Lightning payment, in and out.
    Payments,
    /// Every channel.
    Channels,
    /// Stops the node.
    Stop,
}

/// Carries out one request.
pub fn handle(node: &Node, held: &Held, request: Request) -> Result<Value> {
    match request {
        Request::Info => {
            let status = node.status();
            Ok(json!({
                "node_id": node.node_id().to_string(),
                "height": status.current_best_block.height,
                "block_hash": status.current_best_block.block_hash.to_string(),
            }))
        }
        Request::Address => Ok(json!({ "address": node.onchain_payment().new_address()?.to_string() })),
        Request::Balance => {
            let balances = node.list_balances();
            Ok(json!({
                "onchain_sat": balances.total_onchain_balance_sats,
                "onchain_spendable_sat": balances.spendable_onchain_balance_sats,
                "lightning_sat": balances.total_lightning_balance_sats,
            }))
        }
        Request::Connect { node_id, address } => {
            node.connect(parse_node(&node_id)?, parse_address(&address)?, true)?;
            Ok(json!({}))
        }
        Request::OpenChannel { node_id, address, capacity_sat, push_msat, announce } => {
            let (id, at) = (parse_node(&node_id)?, parse_address(&address)?);
            let channel = if announce {
                node.open_announced_channel(id, at, capacity_sat, push_msat, None)?
            } else {
                node.open_channel(id, at, capacity_sat, push_msat, None)?
            };
            Ok(json!({ "user_channel_id": channel.0.to_string() }))
        }
        Request::Invoice { amount_msat, description, expiry_secs } => {
            let description = describe(description)?;
            let payments = node.bolt11_payment();
            invoice(&payments.receive(amount_msat, &description, expiry_secs.unwrap_or(3600))?)
        }
        Request::JitInvoice { amount_msat, max_fee_msat } => {
            let payments = node.bolt11_payment();
            invoice(&payments.receive_via_jit_channel(amount_msat, &describe(None)?, 3600, max_fee_msat)?)
        }
        Request::HoldInvoice { amount_msat, payment_hash, description, expiry_secs } => {
            let hash = PaymentHash(parse_bytes(&payment_hash)?);
            let description = describe(description)?;
            let (payments, expiry) = (node.bolt11_payment(), expiry_secs.unwrap_or(3600));
            invoice(&payments.receive_for_hash(amount_msat, &description, expiry, hash)?)
        }
        Request::Held => {
            let list = held.list()?;
            let each = list.iter().map(|(hash, amount_msat, claim_by_height)| {
                json!({
                    "payment_hash": hex(&hash.0),
                    "amount_msat": amount_msat,
                    "claim_by_height": claim_by_height,
                })
            });
            Ok(each.collect())
        }
        Request::HoldClaim { preimage } => {
            let preimage = PaymentPreimage(parse_bytes(&preimage)?);
            let hash = PaymentHash::from(preimage);
            let list = held.list()?;
            let (_, amount_msat, _) =
                list.iter().find(|(h, ..)| *h == hash).ok_or_else(|| anyhow!("nothing is held"))?;
            node.bolt11_payment().claim_for_hash(hash, *amount_msat, preimage)?;
            Ok(json!({}))
        }
        Request::HoldFail { payment_hash } => {
            node.bolt11_payment().fail_for_hash(PaymentHash(parse_bytes(&payment_hash)?))?;
            Ok(json!({}))
        }
        Request::Pay { invoice, wait_secs } => {
            pay(node, &invoice, Duration::from_secs(wait_secs.unwrap_or(60)))
        }
        Request::PayOffer { offer, amount_msat, wait_secs } => {
            let offer = offer.parse().map_err(|error| anyhow!("not an offer: {error:?}"))?;
            let id = match amount_msat {
                Some(msat) => node.bolt12_payment().send_using_amount(&offer, msat, None, None, None)?,
                None => node.bolt12_payment().send(&offer, None, None, None)?,
            };
            outcome(node, &id, Duration::from_secs(wait_secs.unwrap_or(60)))
        }
        Request::Offer { amount_msat } => {
            let offer = node.bolt12_payment().receive(amount_msat, "an ox", None, None)?;
            Ok(json!({ "offer": offer.to_string() }))
        }
        Request::Payments => Ok(node.list_payments().iter().filter_map(payment).collect()),
        Request::Channels => Ok(channels(node)),
        Request::Stop => Ok(json!({})),
    }
}

fn describe(text: Option<String>) -> Result<Bolt11InvoiceDescription> {
    let text = Description::new(text.unwrap_or_default()).context("description")?;
    Ok(Bolt11InvoiceDescription::Direct(text))
}

fn invoice(invoice: &Bolt11Invoice) -> Result<Value> {
    Ok(json!({ "payment_hash": invoice.payment_hash().to_string(), "invoice": invoice.to_string() }))
}

fn pay(node: &Node, invoice: &str, wait: Duration) -> Result<Value> {
    let invoice: Bolt11Invoice = invoice.parse().map_err(|error| anyhow!("not an invoice: {error}"))?;
    let id = node.bolt11_payment().send(&invoice, None)?;
    outcome(node, &id, wait)
}

/// The payment as it is when it has ended, or when the time is over.
fn outcome(node: &Node, id: &PaymentId, wait: Duration) -> Result<Value> {
    let deadline = Instant::now() + wait;
    loop {
        let details = node.payment(id).ok_or_else(|| anyhow!("payment {id} is not in the store"))?;
        if details.status != PaymentStatus::Pending || Instant::now() >= deadline {
            return payment(&details).ok_or_else(|| anyhow!("payment {id} is not a Lightning payment"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// None for an on-chain payment. One to an offer has no hash while the payee has not answered.
fn payment(details: &PaymentDetails) -> Option<Value> {
    let hash = match &details.kind {
        PaymentKind::Bolt11 { hash, .. } | PaymentKind::Bolt11Jit { hash, .. } => Some(*hash),
        PaymentKind::Bolt12Offer { hash, .. } => *hash,
        _ => return None,
    };
    Some(json!({
        "payment_hash": hash.map(|hash| hash.to_string()).unwrap_or_default(),
        "direction": match details.direction {
            PaymentDirection::Inbound => "in",
            PaymentDirection::Outbound => "out",
        },
        "status": match details.status {
            PaymentStatus::Pending => "pending",
            PaymentStatus::Succeeded => "succeeded",
            PaymentStatus::Failed => "failed",
        },
        "amount_msat": details.amount_msat.unwrap_or(0),
        "fee_msat": details.fee_paid_msat.unwrap_or(0),
    }))
}

fn channels(node: &Node) -> Value {
    let list = node.list_channels();
    list.iter()
        .map(|channel| {
            let funding = channel.funding_txo.map(|o| json!({ "txid": o.txid.to_string(), "vout": o.vout }));
            json!({
                "channel_id": hex(&channel.channel_id.0),
                "peer": channel.counterparty_node_id.to_string(),
                "funding": funding,
                "capacity_sat": channel.channel_value_sats,
                "local_msat": local_msat(channel),
                "outbound_capacity_msat": channel.outbound_capacity_msat,
                "inbound_capacity_msat": channel.inbound_capacity_msat,
                "ready": channel.is_channel_ready,
                "usable": channel.is_usable,
                "announced": channel.is_announced,
            })
        })
        .collect()
}

/// Own balance of a channel without pending payments, msat. LDK shows what can be sent or received, which is less by the
/// reserve of the side that sends and, for the side that opened the channel, by what the anchor outputs cost. So it is
/// taken from the other side where this side opened. Exact while both sides hold their reserve.
fn local_msat(channel: &ChannelDetails) -> u64 {
    if channel.is_outbound {
        let remote =
            channel.inbound_capacity_msat + channel.counterparty_unspendable_punishment_reserve * 1000;
        (channel.channel_value_sats * 1000).saturating_sub(remote)
    } else {
        channel.outbound_capacity_msat + channel.unspendable_punishment_reserve.unwrap_or(0) * 1000
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_bytes(text: &str) -> Result<[u8; 32]> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 || !text.is_ascii() {
        return Err(anyhow!("not 64 hex digits: {text}"));
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair)?, 16).with_context(|| text.to_owned())?;
    }
    Ok(bytes)
}

fn parse_node(text: &str) -> Result<PublicKey> {
    text.parse().with_context(|| format!("not a node id: {text}"))
}

fn parse_address(text: &str) -> Result<SocketAddress> {
    text.parse().map_err(|_| anyhow!("not an address: {text}"))
}
