//! Answers of the local JSON API, as documented: the fields that the scenarios look at.
//!
//! States are kept as the text that was sent, so that a new one is a visible difference in a message and not a parse
//! error. Heights and delays are blocks; amounts have their unit in the name.

use bitcoin::{OutPoint, Txid};
use serde::Deserialize;

/// An outpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Outpoint {
    /// Transaction.
    pub txid: Txid,
    /// Output index.
    pub vout: u32,
}

impl From<Outpoint> for OutPoint {
    fn from(outpoint: Outpoint) -> Self {
        Self::new(outpoint.txid, outpoint.vout)
    }
}

/// `GET /v1/info`.
#[derive(Clone, Debug, Deserialize)]
pub struct Info {
    /// Node id.
    pub node_id: String,
    /// `lsp` or `client`.
    pub role: String,
    /// Height of the best block seen.
    pub height: u32,
    /// Hash of the best block seen.
    pub block_hash: bitcoin::BlockHash,
    /// Whether the last poll found nothing newer.
    pub synced: bool,
    /// Lightning listen addresses.
    pub listen: Vec<String>,
    /// Peers.
    pub peers: Vec<PeerEntry>,
    /// The nearest deadline.
    pub deadline: Option<Deadline>,
}

/// A peer in [`Info`].
#[derive(Clone, Debug, Deserialize)]
pub struct PeerEntry {
    /// Node id.
    pub node_id: String,
    /// Connected now.
    pub connected: bool,
}

/// What is due when.
#[derive(Clone, Debug, Deserialize)]
pub struct Deadline {
    /// In words.
    pub what: String,
    /// Blocks left.
    pub blocks: i64,
    /// Seconds left, at 600 s a block.
    pub seconds: i64,
}

/// `GET /v1/balance`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Balance {
    /// On-chain wallet.
    pub onchain: Onchain,
    /// Channels.
    pub lightning: Lightning,
    /// Sum, rounded down.
    pub total_sat: u64,
}

impl Balance {
    /// All of it, msat.
    pub fn total_msat(&self) -> u64 {
        let sat =
            self.onchain.confirmed_sat + self.onchain.unconfirmed_sat + self.lightning.pending_sweep_sat;
        sat * 1000 + self.lightning.local_msat
    }
}

/// On-chain part of [`Balance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Onchain {
    /// Confirmed coins, sat.
    pub confirmed_sat: u64,
    /// Unconfirmed coins, sat.
    pub unconfirmed_sat: u64,
    /// Part of the confirmed coins that is set aside, sat.
    pub reserved_sat: u64,
}

/// Lightning part of [`Balance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Lightning {
    /// Own balance of all channels, msat.
    pub local_msat: u64,
    /// Part of that in channels whose funding is not deep, msat.
    pub trusted_msat: u64,
    /// Money of closed channels on its way to the wallet, sat.
    pub pending_sweep_sat: u64,
}

/// An entry of `GET /v1/channels`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Channel {
    /// Channel id, hex.
    pub channel_id: String,
    /// Peer's node id.
    pub peer: String,
    /// Funding output.
    pub funding: Option<Outpoint>,
    /// Capacity, sat.
    pub capacity_sat: u64,
    /// Own balance, msat.
    pub local_msat: u64,
    /// Receivable, msat.
    pub inbound_capacity_msat: u64,
    /// Sendable, msat.
    pub outbound_capacity_msat: u64,
    /// `channel_ready` passed both ways.
    pub ready: bool,
    /// Ready, and the peer is connected.
    pub usable: bool,
    /// Payments under way, both directions.
    pub pending_htlcs: u64,
    /// `factory`, `jit` or `onchain`.
    pub kind: String,
    /// Used before it is confirmed.
    pub trusted: bool,
    /// Instance id of the factory.
    pub factory: Option<String>,
    /// Where it stands.
    pub state: String,
}

/// `POST /v1/invoice`.
#[derive(Clone, Debug, Deserialize)]
pub struct Invoice {
    /// BOLT 11 text.
    pub invoice: String,
    /// Payment hash, hex.
    pub payment_hash: String,
    /// What the payer pays on top for the LSP's receiving it, msat.
    #[serde(default)]
    pub relay_fee_msat: Option<u64>,
}

/// `POST /v1/pay` and an entry of `GET /v1/payments`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Payment {
    /// Payment hash, hex; empty while the payee of an offer has not answered.
    pub payment_hash: String,
    /// Of one to an offer: its id, hex.
    #[serde(default)]
    pub payment_id: Option<String>,
    /// Of one to or by an offer: the offer's id, hex.
    #[serde(default)]
    pub offer_id: Option<String>,
    /// `succeeded`, `failed`, `pending` or `held`.
    pub status: String,
    /// `in`, `out`, `relayed` or `moved`.
    #[serde(default)]
    pub direction: Option<String>,
    /// Amount, msat.
    pub amount_msat: u64,
    /// Routing fee on top, msat.
    pub fee_msat: u64,
    /// Why it failed.
    #[serde(default)]
    pub failure: Option<String>,
    /// Height at which it is given back, if it is held.
    #[serde(default)]
    pub claim_by_height: Option<u32>,
    /// Both sides, if the LSP received it for a client.
    #[serde(default)]
    pub relayed: Option<Relayed>,
}

/// A new offer.
#[derive(Clone, Debug, Deserialize)]
pub struct Offer {
    /// BOLT 12 string.
    pub offer: String,
    /// Its id, hex.
    pub offer_id: String,
}

/// Of a payment that the LSP received for a client.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Relayed {
    /// The client's node id.
    pub client: String,
    /// What came in, msat.
    pub received_msat: u64,
    /// Whether the client has been paid.
    pub client_paid: bool,
}

/// `GET /v1/clients` of the LSP.
#[derive(Clone, Debug, Deserialize)]
pub struct WaitingClient {
    /// Node id.
    pub node_id: String,
    /// Connected now.
    pub connected: bool,
    /// Asked to be in a factory.
    pub waiting: bool,
}

/// `GET /v1/factories`.
#[derive(Clone, Debug, Deserialize)]
pub struct Factory {
    /// Instance id, hex.
    pub instance_id: String,
    /// Where it stands.
    pub state: String,
    /// Why it failed.
    pub failure: Option<String>,
    /// Funding output.
    pub funding: Option<Outpoint>,
    /// Its value, sat.
    pub funding_sat: u64,
    /// Its confirmations.
    pub funding_confirmations: u32,
    /// Height at which it was planned.
    pub birth_height: u32,
    /// T.
    pub expiry_height: u32,
    /// Clients.
    pub clients: Vec<Member>,
    /// Clients left out.
    pub excluded: Vec<Excluded>,
    /// Tree transactions: all (LSP) or the own path (client).
    pub tree: Vec<TreeTx>,
    /// What is due when.
    pub deadlines: Vec<Deadline>,
    /// Cooperative close.
    pub close: Option<Close>,
    /// Exits.
    pub exits: Vec<Exit>,
    /// What leaving costs, as long as the factory is alive.
    #[serde(default)]
    pub exit_reserve: Option<Reserve>,
    /// Leaves: all (LSP) or the own one.
    #[serde(default)]
    pub leaves: Vec<Leaf>,
}

/// A leaf of a factory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Leaf {
    /// Node ids of its clients.
    pub clients: Vec<String>,
    /// Updates since the creation.
    pub position: u64,
    /// Updates of the leaf alone that are left.
    pub left: u64,
    /// States before the newest one.
    pub superseded: u64,
    /// How far a rotation is that is under way.
    pub rotating: Option<String>,
    /// Why the last rotation came to nothing.
    pub failure: Option<String>,
}

/// What publishing all own leaves costs, and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Reserve {
    /// Cost, sat.
    pub needed_sat: u64,
    /// Confirmed coins, sat.
    pub available_sat: u64,
}

/// An entry of `GET /v1/events`.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Its number.
    pub index: u64,
    /// What has happened.
    pub kind: String,
    /// To what.
    pub data: serde_json::Value,
}

/// A client of a factory.
#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    /// Node id.
    pub node_id: String,
    /// Capacity, sat.
    pub capacity_sat: u64,
    /// Given to the client at birth, sat.
    pub push_sat: u64,
    /// Channel id, hex.
    pub channel_id: Option<String>,
    /// Where it stands.
    pub state: String,
    /// Why it was left out.
    pub reason: Option<String>,
}

/// A client that was left out.
#[derive(Clone, Debug, Deserialize)]
pub struct Excluded {
    /// Node id.
    pub node_id: String,
    /// Why.
    pub reason: String,
}

/// A tree transaction.
#[derive(Clone, Debug, Deserialize)]
pub struct TreeTx {
    /// Level, root 0.
    pub level: usize,
    /// `static`, `kickoff` or `state`.
    pub kind: String,
    /// Transaction id.
    pub txid: Txid,
    /// Transaction it spends.
    pub parent_txid: Txid,
    /// Output it spends.
    pub vout: u32,
    /// Relative delay, blocks.
    pub delay_blocks: u16,
    /// The clients below it: number of the first, and of the last plus one.
    pub clients: (usize, usize),
    /// What it spends, sat.
    pub sat: u64,
    /// Confirmation height.
    pub confirmed_height: Option<u32>,
}

/// The cooperative close.
#[derive(Clone, Debug, Deserialize)]
pub struct Close {
    /// Where it stands.
    pub phase: String,
    /// Close transaction.
    pub txid: Option<Txid>,
    /// Who is paid what.
    pub paid: Vec<Payout>,
    /// Whose balance was too small and went to fees.
    pub to_fees: Vec<Payout>,
    /// Fee, sat.
    pub fee_sat: u64,
}

/// A party and an amount.
#[derive(Clone, Debug, Deserialize)]
pub struct Payout {
    /// Node id; none for the LSP.
    pub node_id: Option<String>,
    /// Amount, sat.
    pub sat: u64,
}

/// A unilateral exit.
#[derive(Clone, Debug, Deserialize)]
pub struct Exit {
    /// Whose.
    pub node_id: Option<String>,
    /// Why it began.
    pub reason: String,
    /// Height at which it began.
    pub started_height: Option<u32>,
    /// Where it stands.
    pub phase: String,
    /// What it waits for, in words.
    #[serde(default)]
    pub waits_for: String,
    /// The path, in order.
    pub steps: Vec<ExitStep>,
    /// Commitment transaction.
    pub commitment_txid: Option<Txid>,
    /// Its height.
    pub commitment_height: Option<u32>,
    /// Fees paid, sat.
    pub fees_sat: u64,
    /// The distribution that took the leaf's place.
    pub distribution_txid: Option<Txid>,
    /// A coin is missing: what it has to be worth, sat.
    pub needs_coin_sat: Option<u64>,
    /// What the next child needs, if the budget is too small for it, sat.
    pub over_budget_sat: Option<u64>,
    /// Bound of all fees, sat.
    pub max_fee_sat: Option<u64>,
}

/// One step of an exit.
#[derive(Clone, Debug, Deserialize)]
pub struct ExitStep {
    /// `static`, `kickoff` or `state`.
    pub kind: String,
    /// Transaction id.
    pub txid: Txid,
    /// Relative delay, blocks.
    pub delay_blocks: u16,
    /// Confirmation height.
    pub confirmed_height: Option<u32>,
    /// Our newest child.
    pub child_txid: Option<Txid>,
    /// First block that it can be in.
    pub earliest_height: Option<u32>,
}
