//! Node, wallet, channels and payments.

use serde::{Deserialize, Serialize};

use super::MovedPayment;

/// Which side of a factory this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The Lightning service provider: proposes and funds factories.
    Lsp,
    /// A client (wallet): joins factories of one LSP.
    Client,
}

/// The next moment at which something has to have happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// What is due, in words.
    pub what: String,
    /// Height at which it is due.
    pub height: u32,
    /// Blocks left (negative: overdue).
    pub blocks: i64,
    /// The same in seconds, at 600 s a block.
    pub seconds: i64,
}

/// A peer this node knows an address of or is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Node id, compressed point in hex.
    pub node_id: String,
    /// Whether the Noise connection stands and `init` was exchanged.
    pub connected: bool,
}

/// The state of the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Node id, compressed point in hex.
    pub node_id: String,
    /// LSP or client.
    pub role: Role,
    /// Bitcoin network.
    pub network: String,
    /// Version of this software.
    pub version: String,
    /// Height of the best block all parts of the node have seen.
    pub height: u32,
    /// Its hash, as explorers print it.
    pub block_hash: String,
    /// Whether the last poll of bitcoind succeeded and found nothing newer.
    pub synced: bool,
    /// Addresses on which Lightning connections are accepted.
    pub listen: Vec<String>,
    /// Peers.
    pub peers: Vec<PeerInfo>,
    /// The nearest deadline over all factories.
    pub deadline: Option<Deadline>,
}

/// The on-chain wallet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnchainBalance {
    /// Confirmed coins.
    pub confirmed_sat: u64,
    /// Unconfirmed coins, own change and foreign ones.
    pub unconfirmed_sat: u64,
    /// The part of the confirmed coins that a factory being created has set aside.
    pub reserved_sat: u64,
}

/// Money in channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LightningBalance {
    /// This side's balance over all open channels, reserves included, in msat.
    pub local_msat: u64,
    /// The part of that in channels whose funding is not deep: until it is, it is trust in who opened them, msat.
    #[serde(default)]
    pub trusted_msat: u64,
    /// Closed channels' money that is not yet back in the wallet, sat.
    pub pending_sweep_sat: u64,
}

/// All the money of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// On-chain wallet.
    pub onchain: OnchainBalance,
    /// Channels.
    pub lightning: LightningBalance,
    /// Sum, msat rounded down to the satoshi.
    pub total_sat: u64,
}

/// An outpoint; txid as explorers print it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outpoint {
    /// Transaction id.
    pub txid: String,
    /// Output index.
    pub vout: u32,
}

impl From<bitcoin::OutPoint> for Outpoint {
    fn from(o: bitcoin::OutPoint) -> Self {
        Self { txid: o.txid.to_string(), vout: o.vout }
    }
}

/// Where a channel's funding output lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelKind {
    /// Under a factory: its funding output is on no chain while all goes well.
    Factory,
    /// An ordinary channel that the LSP opened to its client beside the factory, usable before it is confirmed.
    Jit,
    /// Any other ordinary channel, with a confirmed (or confirming) funding output.
    Onchain,
}

/// Where a channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelState {
    /// Messages are still being exchanged.
    Opening,
    /// Signed; waits until the funding is deep enough.
    WaitingForDepth,
    /// Payments pass (when the peer is connected).
    Ready,
    /// Cooperative close under way.
    Closing,
    /// Unilateral exit under way.
    Exiting,
    /// A state from before a change of capacity has won its race to the chain, and nothing that was signed for its output
    /// counts any more: both sides would have to sign for it. No payment passes.
    Stuck,
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelInfo {
    /// Channel id in hex.
    pub channel_id: String,
    /// Peer's node id.
    pub peer: String,
    /// Funding output.
    pub funding: Option<Outpoint>,
    /// Capacity, sat.
    pub capacity_sat: u64,
    /// This side's balance, exact, reserve included, msat.
    pub local_msat: u64,
    /// Receivable now, msat.
    pub inbound_capacity_msat: u64,
    /// Sendable now, msat.
    pub outbound_capacity_msat: u64,
    /// Payments on their way over this channel.
    pub pending_htlcs: usize,
    /// `channel_ready` passed both ways.
    pub ready: bool,
    /// Ready and the peer is connected.
    pub usable: bool,
    /// Announced to the network.
    pub announced: bool,
    /// Factory or ordinary.
    pub kind: ChannelKind,
    /// Usable although its funding is not deep in the chain: until it is, what a client has in it is trust in the LSP.
    pub trusted: bool,
    /// The factory's instance id in hex.
    pub factory: Option<String>,
    /// Where it stands.
    pub state: ChannelState,
}

/// Way of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Received.
    In,
    /// Sent.
    Out,
    /// Received for a client, and paid on to it (LSP).
    Relayed,
    /// From a channel beside the factory into the factory's (client).
    Moved,
}

/// Outcome of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PaymentStatus {
    /// Not decided yet.
    Pending,
    /// Done.
    Succeeded,
    /// Failed; nothing was paid.
    Failed,
    /// Received on a hold invoice: waits to be claimed or given back.
    Held,
}

/// One payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Payment hash in hex; empty while the payee of an offer has not answered.
    pub payment_hash: String,
    /// Of one to an offer: its id in hex, known from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    /// Of one to or by an offer: the offer's id in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer_id: Option<String>,
    /// In or out.
    pub direction: Direction,
    /// Amount that arrived or shall arrive at the payee, msat.
    pub amount_msat: u64,
    /// Routing fee paid on top, msat (0 for received payments).
    pub fee_msat: u64,
    /// Outcome.
    pub status: PaymentStatus,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// For one on a hold invoice: at this height it is given back unless it was claimed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_by_height: Option<u32>,
    /// Both sides of a relayed payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relayed: Option<RelayedPayment>,
    /// From where into what it was moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<MovedPayment>,
    /// The last change, Unix seconds.
    pub updated_at: u64,
}

/// A payment that an LSP receives for a client. The payment's `amount_msat` is what the client gets, its `fee_msat`
/// what the LSP gets; it is `held` until it is paid on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayedPayment {
    /// The client's node id.
    pub client: String,
    /// What came in, msat.
    pub received_msat: u64,
    /// Whether the client has been paid.
    pub client_paid: bool,
    /// The channel beside the factory from which the client moved it into the factory, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<String>,
}

/// When the LSP receives a payment in the client's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayMode {
    /// If no single channel has room for it. Where the LSP's settings do not allow that the invoice is the client's own.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// Never.
    Never,
}

impl std::str::FromStr for RelayMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err("must be auto, always or never".into()),
        }
    }
}

/// Request for an invoice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvoiceRequest {
    /// Amount in msat; none: the payer chooses.
    #[serde(default)]
    pub amount_msat: Option<u64>,
    /// Shown to the payer, at most 639 bytes (BOLT 11).
    #[serde(default)]
    pub description: Option<String>,
    /// Lifetime in seconds, 3600 if none.
    #[serde(default)]
    pub expiry_secs: Option<u32>,
    /// Payment hash, 64 hex digits: makes a hold invoice. Its payment is held until it is claimed with
    /// the preimage or given back.
    #[serde(default)]
    pub payment_hash: Option<String>,
    /// How long a payment of a hold invoice can be held at least, blocks (36 if none, 1008 at most).
    /// Payers look for routes of a limited length in blocks, mostly 1008 in all.
    #[serde(default)]
    pub hold_blocks: Option<u16>,
    /// Client: whether the LSP receives it and pays it on over all channels, `auto` if none.
    #[serde(default)]
    pub relay: Option<RelayMode>,
    /// Client: most that the payer may have to pay on top for that, msat; none: by `relay_max_fee_ppm`.
    #[serde(default)]
    pub relay_max_fee_msat: Option<u64>,
}

/// Request to claim what a hold invoice received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Preimage of the payment hash, 64 hex digits.
    pub preimage: String,
}

/// Request to give back what a hold invoice received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailRequest {
    /// Payment hash, 64 hex digits.
    pub payment_hash: String,
}

/// A new invoice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoice {
    /// BOLT 11 string.
    pub invoice: String,
    /// Payment hash in hex.
    pub payment_hash: String,
    /// Of one that the LSP receives: what the payer pays on top for it, msat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_fee_msat: Option<u64>,
}

/// Request to pay an invoice or an offer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayRequest {
    /// BOLT 11 string of an invoice, or BOLT 12 string of an offer.
    pub invoice: String,
    /// Amount in msat, where there is none in it.
    #[serde(default)]
    pub amount_msat: Option<u64>,
    /// How long to wait for the outcome, seconds (60 if none, 600 at most). The payment goes on
    /// after that; look it up by its hash, or its id.
    #[serde(default)]
    pub wait_secs: Option<u64>,
}

/// Request to open an ordinary on-chain channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenChannelRequest {
    /// Peer's node id.
    pub node_id: String,
    /// `host:port`; none when already connected.
    #[serde(default)]
    pub address: Option<String>,
    /// Capacity, sat.
    pub capacity_sat: u64,
    /// Given to the peer at birth, sat.
    #[serde(default)]
    pub push_sat: u64,
    /// Announce to the network.
    #[serde(default)]
    pub announce: bool,
}

/// Request to close an ordinary channel or a JIT channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseChannelRequest {
    /// Channel id, 64 hex digits.
    pub channel_id: String,
    /// Do it alone, by publishing the newest commitment, instead of by agreement.
    #[serde(default)]
    pub force: bool,
}

/// Request to connect to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectRequest {
    /// Peer's node id.
    pub node_id: String,
    /// `host:port`.
    pub address: String,
}

/// Something that happened, kept on disk under a growing index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// 1, 2, 3, ...; resume with the last one you have seen.
    pub index: u64,
    /// Unix seconds.
    pub time: u64,
    /// What kind of event.
    pub kind: String,
    /// Its fields.
    pub data: serde_json::Value,
}

/// Factory messages of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageCount {
    /// How many.
    pub messages: u64,
    /// Their bytes, type and body.
    pub bytes: u64,
}

/// Factory messages (bLIP-56) since the node's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FactoryTraffic {
    /// From peers.
    pub received: MessageCount,
    /// To peers.
    pub sent: MessageCount,
}
