//! The commands that both command lines have.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{json, Value};

use super::super::routes::EventPage;
use super::super::{segment, show, ApiClient, HttpError};
use super::{the_factory, Output};
use crate::api::{
    Balance, ChannelInfo, ClaimRequest, CloseChannelRequest, FactoryInfo, FailRequest, Invoice,
    InvoiceRequest, NodeInfo, Offer, OfferRequest, PayRequest, Payment, PaymentStatus, RelayMode,
};

/// How long one request waits for an event with `--follow`, seconds.
const FOLLOW_SECS: u64 = 60;

/// Commands against a running process.
#[derive(Subcommand, Clone, Debug)]
pub enum NodeCommand {
    /// Node id, chain, peers, next deadline
    Info,
    /// Money on chain and in channels
    Balance,
    /// A new on-chain address
    Address,
    /// Channels with their balances
    Channels,
    /// Begin to close an ordinary channel or one beside the factory (JIT)
    CloseChannel {
        /// Channel id, or the beginning of it
        channel_id: String,
        /// Do it alone, by publishing the newest commitment, if the other side does not answer
        #[arg(long)]
        force: bool,
    },
    /// Make an invoice
    Invoice {
        /// Amount, msat (1 sat = 1000 msat); without it the payer chooses
        #[arg(long, value_name = "MSAT", conflicts_with = "sat")]
        amount_msat: Option<u64>,
        /// Amount, sat
        #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u64).range(..=2_100_000_000_000_000))]
        sat: Option<u64>,
        /// Shown to the payer, at most 639 bytes
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Lifetime, seconds [default: 3600]
        #[arg(long, value_name = "SECONDS")]
        expiry_secs: Option<u32>,
        /// Hold what is paid until `claim` or `fail`; the preimage of this hash is somebody else's
        #[arg(long, value_name = "HASH")]
        payment_hash: Option<String>,
        /// How long that can be at least, blocks, up to 1008 [default: 36]
        #[arg(long, value_name = "BLOCKS", requires = "payment_hash")]
        hold_blocks: Option<u16>,
        /// Wallet: let the LSP receive it and pay it on over all channels: auto (if it is larger than each of them
        /// can receive), always or never [default: auto]
        #[arg(long, value_name = "MODE")]
        relay: Option<RelayMode>,
        /// Most that the payer may have to pay on top for that, msat [default: by relay_max_fee_ppm]
        #[arg(long, value_name = "MSAT")]
        relay_max_fee_msat: Option<u64>,
    },
    /// Claim what a hold invoice received
    Claim {
        /// Preimage of the payment hash
        preimage: String,
    },
    /// Give back what a hold invoice received
    Fail {
        /// Payment hash
        payment_hash: String,
    },
    /// Make an offer, which can be paid any number of times
    Offer {
        /// Amount, msat (1 sat = 1000 msat); without it the payer chooses
        #[arg(long, value_name = "MSAT", conflicts_with = "sat")]
        amount_msat: Option<u64>,
        /// Amount, sat
        #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u64).range(..=2_100_000_000_000_000))]
        sat: Option<u64>,
        /// Shown to the payer, at most 639 bytes
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Lifetime, seconds [default: no end]
        #[arg(long, value_name = "SECONDS")]
        expiry_secs: Option<u32>,
    },
    /// Pay an invoice or an offer; exit code 1 if it fails, 3 if it is still undecided
    Pay {
        /// BOLT 11 invoice, or BOLT 12 offer
        invoice: String,
        /// Amount, msat, if there is none in it
        #[arg(long, value_name = "MSAT", conflicts_with = "sat")]
        amount_msat: Option<u64>,
        /// Amount, sat
        #[arg(long, value_name = "SAT", value_parser = clap::value_parser!(u64).range(..=2_100_000_000_000_000))]
        sat: Option<u64>,
        /// How long to wait for the outcome, seconds, at most 600 [default: 60]
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
        wait_secs: Option<u64>,
    },
    /// Payments, or one of them
    Payments {
        /// Payment hash, or the id of a payment to an offer
        payment_hash: Option<String>,
    },
    /// Factories with their next deadline, or all about one of them
    Factories {
        /// Instance id, or the beginning of it
        instance_id: Option<String>,
        /// Draw the tree
        #[arg(long)]
        tree: bool,
    },
    /// What happened, oldest first; nothing is ever left out
    Events {
        /// Only those after this index
        #[arg(long, default_value_t = 0, value_name = "INDEX")]
        after: u64,
        /// At most so many, up to 1000
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
        limit: u64,
        /// Go on with new ones until interrupted; with --json a JSON object per line
        #[arg(long)]
        follow: bool,
    },
    /// Stop the process, and wait until it has stopped
    Stop,
}

/// The channel that is meant by the beginning of its id.
fn the_channel(all: &[ChannelInfo], start: &str) -> Result<String, String> {
    let start = start.to_lowercase();
    let mut found = all.iter().filter(|c| c.channel_id.starts_with(&start));
    match (found.next(), found.next()) {
        (Some(c), None) => Ok(c.channel_id.clone()),
        (Some(_), Some(_)) => Err(format!("more than one channel begins with {start}: give more of its id")),
        (None, _) => Err(format!("no channel begins with {start}")),
    }
}

impl NodeCommand {
    /// Runs the command and prints its outcome.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn execute(self, client: &ApiClient, output: Output) -> Result<(), HttpError> {
        match self {
            Self::Info => output.show(&client.get::<NodeInfo>("/v1/info")?, show::info),
            Self::Balance => output.show(&client.get::<Balance>("/v1/balance")?, show::balance),
            Self::Address => {
                let answer: Value = client.post("/v1/address", &json!({}))?;
                output.show(&answer, |a| a["address"].as_str().unwrap_or_default().to_owned())
            }
            Self::Channels => {
                output.show(&client.get::<Vec<ChannelInfo>>("/v1/channels")?, |list| show::channels(list))
            }
            Self::CloseChannel { channel_id, force } => {
                let channel_id = the_channel(&client.get::<Vec<ChannelInfo>>("/v1/channels")?, &channel_id)
                    .map_err(HttpError::Outcome)?;
                let request = CloseChannelRequest { channel_id: channel_id.clone(), force };
                let answer: Value = client.post("/v1/channels/close", &request)?;
                output.show(&answer, |_| format!("channel {channel_id} is being closed"))
            }
            Self::Invoice {
                amount_msat,
                sat,
                description,
                expiry_secs,
                payment_hash,
                hold_blocks,
                relay,
                relay_max_fee_msat,
            } => {
                let amount_msat = msat(amount_msat, sat);
                let request = InvoiceRequest {
                    amount_msat,
                    description,
                    expiry_secs,
                    payment_hash,
                    hold_blocks,
                    relay,
                    relay_max_fee_msat,
                };
                output.show(&client.post::<_, Invoice>("/v1/invoice", &request)?, show::invoice)
            }
            Self::Offer { amount_msat, sat, description, expiry_secs } => {
                let amount_msat = msat(amount_msat, sat);
                let request = OfferRequest { amount_msat, description, expiry_secs };
                output.show(&client.post::<_, Offer>("/v1/offer", &request)?, show::offer)
            }
            Self::Claim { preimage } => {
                let request = ClaimRequest { preimage };
                output.show(&client.post::<_, Payment>("/v1/payments/claim", &request)?, show::payment)
            }
            Self::Fail { payment_hash } => {
                let request = FailRequest { payment_hash };
                output.show(&client.post::<_, Payment>("/v1/payments/fail", &request)?, show::payment)
            }
            Self::Pay { invoice, amount_msat, sat, wait_secs } => {
                let amount_msat = msat(amount_msat, sat);
                pay(client, output, PayRequest { invoice, amount_msat, wait_secs })
            }
            Self::Payments { payment_hash: None } => {
                output.show(&client.get::<Vec<Payment>>("/v1/payments")?, |list| show::payments(list))
            }
            Self::Payments { payment_hash: Some(hash) } => {
                let path = format!("/v1/payments/{}", segment("payment_hash", &hash)?);
                output.show(&client.get::<Payment>(&path)?, show::payment)
            }
            Self::Factories { instance_id, tree } => factories(client, output, instance_id, tree),
            Self::Events { after, limit, follow: false } => {
                let page = events_after(client, after, limit, 0)?;
                output.show(&page, |page| match page.events.as_slice() {
                    [] => "no events".to_owned(),
                    some => some.iter().map(|e| show::event(e) + "\n").collect(),
                })
            }
            Self::Events { after, limit, follow: true } => follow_events(client, output, after, limit),
            Self::Stop => super::stop(client, output),
        }
    }
}

fn msat(amount_msat: Option<u64>, sat: Option<u64>) -> Option<u64> {
    amount_msat.or(sat.map(|sat| sat.saturating_mul(1000)))
}

fn pay(client: &ApiClient, output: Output, request: PayRequest) -> Result<(), HttpError> {
    let secs = request.wait_secs.unwrap_or(60);
    let payment: Payment = client.post_within("/v1/pay", &request, Duration::from_secs(secs + 40))?;
    output.show(&payment, show::payment)?;
    match payment.status {
        PaymentStatus::Succeeded => Ok(()),
        PaymentStatus::Failed => Err(HttpError::Told { code: 1 }),
        PaymentStatus::Pending | PaymentStatus::Held => Err(HttpError::Told { code: 3 }),
    }
}

fn factories(client: &ApiClient, output: Output, id: Option<String>, tree: bool) -> Result<(), HttpError> {
    let Some(id) = id else {
        let all: Vec<FactoryInfo> = client.get("/v1/factories")?;
        return output.show(&all, |all| match tree {
            false => show::factories(all),
            true => all
                .iter()
                .map(|f| format!("factory {}  {}\n{}\n", f.instance_id, show::state(f.state), show::tree(f)))
                .collect(),
        });
    };
    let id = the_factory(client, Some(&id))?;
    let one: FactoryInfo = client.get(&format!("/v1/factories/{id}"))?;
    output.show(&one, |f| match tree {
        false => show::factory(f),
        true => format!("{}\n{}", show::factory(f), show::tree(f)),
    })
}

/// Asks for events after an index, waiting `wait_secs` for the first.
///
/// # Errors
/// [`HttpError`].
pub fn events_after(
    client: &ApiClient,
    after: u64,
    limit: u64,
    wait_secs: u64,
) -> Result<EventPage, HttpError> {
    let path = format!("/v1/events?after={after}&limit={limit}&wait_secs={wait_secs}");
    client.get_within(&path, Duration::from_secs(wait_secs + 60))
}

fn follow_events(client: &ApiClient, output: Output, mut after: u64, limit: u64) -> Result<(), HttpError> {
    loop {
        let page = events_after(client, after, limit, FOLLOW_SECS)?;
        for event in &page.events {
            // A line per event in both forms.
            output.line(event, show::event)?;
        }
        after = page.next;
    }
}
