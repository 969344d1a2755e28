//! What goes into and comes out of the provider's machine.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf};
use bolt_tlv::payload::Payload;
use serde::{Deserialize, Serialize};

use crate::params::{Params, Shape};
use crate::record::LspFactoryRecord;
use crate::Error;

/// Parameters for a number of clients that is known only when all have answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamsChoice {
    /// Exactly these, shape included. The factory fails if the shape does not fit those who stay.
    Fixed(Params),
    /// These, with interior levels chosen by default for the number of clients that take part. Interior levels
    /// are static; the leaf keeps its layers and its number of clients.
    Reshape(Params),
}

impl ParamsChoice {
    /// The parameters for `clients` clients.
    ///
    /// # Errors
    /// Those of [`Params::validate`].
    pub fn params_for(&self, clients: usize) -> Result<Params, Error> {
        let params = match self {
            Self::Fixed(params) => params.clone(),
            Self::Reshape(params) => {
                let per_leaf = params.shape.clients_per_leaf;
                let arity = Params::default_with(clients, per_leaf, params.network)?.shape.arity;
                let mut layers = vec![Vec::new(); arity.len()];
                layers.push(params.shape.layers.last().cloned().unwrap_or_default());
                Params { shape: Shape { clients_per_leaf: per_leaf, arity, layers }, ..params.clone() }
            }
        };
        params.validate(clients)?;
        Ok(params)
    }
}

/// A client to invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitedClient {
    /// Its Lightning node id.
    pub node_id: PublicKey,
    /// Capacity of its channel, sat.
    pub capacity_sat: u64,
    /// What of it belongs to the client from the start, msat.
    pub push_msat: u64,
}

/// How long to wait for clients in each phase, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// For answers to the invitation.
    pub invite: u32,
    /// For agreement to the plan.
    pub plan: u32,
    /// For the channels to be negotiated.
    pub open: u32,
    /// For the caller to build the funding transaction.
    pub funding: u32,
    /// For nonces, which come after the channel's first commitment.
    pub nonces: u32,
    /// For partial signatures.
    pub partials: u32,
    /// For clients to store their record.
    pub persist: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { invite: 60, plan: 60, open: 60, funding: 120, nonces: 120, partials: 120, persist: 120 }
    }
}

/// What the provider's machine starts from.
pub struct LspConfig {
    /// Identity of the factory, random.
    pub instance_id: [u8; 32],
    /// The provider's factory key, fresh for this factory.
    pub secret_key: [u8; 32],
    /// Parameters.
    pub params: ParamsChoice,
    /// Whom to invite, in tree order.
    pub clients: Vec<InvitedClient>,
    /// The liquidity stock of each leaf, sat; 0 for none.
    pub leaf_stock_sat: u64,
    /// Where the stock pays.
    pub stock_script: ScriptBuf,
    /// Height of the tip now, blocks.
    pub birth_height: u32,
    /// Give up below this number of clients; at least 2.
    pub min_clients: usize,
    /// How long to wait.
    pub timeouts: Timeouts,
}

/// Where the ceremony is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for clients to accept.
    Inviting,
    /// Waiting for agreement to the plan.
    Planning,
    /// Waiting for the channels' funding scripts.
    Opening,
    /// Waiting for the funding transaction to be built.
    Funding,
    /// Waiting for nonces.
    Nonces,
    /// Waiting for partial signatures.
    Partials,
    /// Waiting for the record to be stored.
    Recording,
    /// Waiting for all clients to store their paths and for all first commitments.
    Persisting,
    /// The funding transaction has been released for broadcast.
    Done,
    /// Over without a factory.
    Failed,
}

/// Why a client was excluded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum ExcludeReason {
    /// It did not do in time what the phase needs.
    #[error("no answer in time in phase {phase:?}")]
    Timeout {
        /// The phase.
        phase: Phase,
    },
    /// Its connection was lost.
    #[error("connection lost")]
    Gone,
    /// It refused.
    #[error("declined with code {code}: {text}")]
    Declined {
        /// The client's code, see [`RefuseCode`](crate::refuse::RefuseCode).
        code: u16,
        /// The client's text.
        text: String,
    },
    /// Its factory key is somebody else's.
    #[error("factory key is already taken")]
    DuplicateKey,
    /// Its payout script is not standard.
    #[error("payout script is not p2wpkh, p2wsh or p2tr")]
    PayoutScript,
    /// A list with a wrong number of entries.
    #[error("{got} entries in a list, expected {expected}")]
    ListLength {
        /// Entries sent.
        got: u64,
        /// Entries needed.
        expected: u64,
    },
    /// A nonce that does not parse.
    #[error("nonce {session} does not parse")]
    BadNonce {
        /// Its position.
        session: u64,
    },
    /// A partial signature that does not parse.
    #[error("partial signature {session} does not parse")]
    BadPartial {
        /// Its position.
        session: u64,
    },
    /// A partial signature that does not verify.
    #[error("partial signature {session} does not verify")]
    WrongPartial {
        /// Position of the first wrong one.
        session: u64,
    },
    /// Its channel could not be opened.
    #[error("channel failed: {text}")]
    ChannelFailed {
        /// What the Lightning node said.
        text: String,
    },
    /// The provider's own node did not open or fund its channel: no fault of the client.
    #[error("the provider could not make the channel: {text}")]
    ChannelNotMade {
        /// What the Lightning node said.
        text: String,
    },
    /// A message that was not due.
    #[error("message {number} was not due")]
    Unexpected {
        /// The message's number.
        number: u16,
    },
}

impl ExcludeReason {
    /// Whether the client did something wrong, or not in time.
    pub fn is_clients_fault(&self) -> bool {
        !matches!(self, Self::ChannelNotMade { .. })
    }

    /// The number that an `Abort` message carries for it.
    pub fn code(&self) -> u16 {
        match self {
            Self::Timeout { .. } => 1,
            Self::Gone => 2,
            Self::Declined { .. } => 3,
            Self::DuplicateKey => 4,
            Self::PayoutScript => 5,
            Self::ListLength { .. } => 6,
            Self::BadNonce { .. } => 7,
            Self::BadPartial { .. } => 8,
            Self::WrongPartial { .. } => 9,
            Self::ChannelFailed { .. } | Self::ChannelNotMade { .. } => 10,
            Self::Unexpected { .. } => 11,
        }
    }
}

/// Why there will be no factory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailReason {
    /// Too few clients are left.
    #[error("{have} clients left, at least {need} are needed")]
    TooFewClients {
        /// Clients left.
        have: usize,
        /// Clients needed.
        need: usize,
    },
    /// The funding transaction could not be built.
    #[error("funding transaction: {0}")]
    Funding(String),
    /// The caller called it off.
    #[error("called off")]
    Cancelled,
    /// Something on our side.
    #[error(transparent)]
    Internal(#[from] Error),
}

impl FailReason {
    /// The number that an `Abort` message carries for it.
    pub fn code(&self) -> u16 {
        match self {
            Self::TooFewClients { .. } => 100,
            Self::Funding(_) => 101,
            Self::Cancelled => 102,
            Self::Internal(_) => 103,
        }
    }
}

/// What the caller tells the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LspInput {
    /// A client sent a message.
    Message {
        /// The client's node id.
        client: PublicKey,
        /// The message.
        payload: Payload,
    },
    /// A client's connection was lost.
    ClientGone {
        /// The client's node id.
        client: PublicKey,
    },
    /// A timer ran out.
    Timeout {
        /// The id of the timer.
        id: u64,
    },
    /// A channel was accepted: its funding script is known (LDK's `FundingGenerationReady`).
    ChannelScript {
        /// The client's node id.
        client: PublicKey,
        /// The id under which it was opened.
        temporary_channel_id: [u8; 32],
        /// The P2WSH script.
        script: ScriptBuf,
    },
    /// Our own Lightning node would not open or fund a channel, and the client has no part in it.
    ChannelNotMade {
        /// The client's node id.
        client: PublicKey,
        /// The id under which it was to be opened.
        temporary_channel_id: [u8; 32],
        /// What the Lightning node said.
        reason: String,
    },
    /// A channel was refused or closed by the client, or does not fit.
    ChannelFailed {
        /// The client's node id.
        client: PublicKey,
        /// The id under which it was opened.
        temporary_channel_id: [u8; 32],
        /// What the Lightning node said.
        reason: String,
    },
    /// The funding transaction is built; its txid will not change.
    FundingBuilt {
        /// Its factory output.
        outpoint: OutPoint,
        /// The script of that output, as it was asked for.
        script: ScriptBuf,
        /// The value of that output, sat.
        value_sat: u64,
    },
    /// The funding transaction cannot be built.
    FundingFailed {
        /// Why.
        reason: String,
    },
    /// A channel's first commitment is signed by the client and stored (LDK's `FundingTxBroadcastSafe`).
    CommitmentHeld {
        /// The client's node id.
        client: PublicKey,
        /// The id under which the channel was opened.
        temporary_channel_id: [u8; 32],
    },
    /// The record is on disk.
    RecordPersisted {
        /// The record's attempt.
        attempt: u16,
    },
    /// The chain's tip is at this height: the next plan is born there.
    Height(u32),
    /// The caller wants to stop.
    Cancel,
}

/// What the caller has to do. The order of a list of actions is the order in which to do them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LspAction {
    /// Send a message.
    Send {
        /// The client's node id.
        client: PublicKey,
        /// The message.
        payload: Payload,
    },
    /// Open a channel up to the point where its funding script is known.
    OpenChannel {
        /// The client's node id.
        client: PublicKey,
        /// The id to open it under.
        temporary_channel_id: [u8; 32],
        /// Capacity, sat.
        capacity_sat: u64,
        /// Amount pushed to the client, msat.
        push_msat: u64,
    },
    /// Close and forget a channel of an attempt that failed. Nothing of it may be broadcast.
    CloseChannel {
        /// The client's node id.
        client: PublicKey,
        /// The id it was opened under.
        temporary_channel_id: [u8; 32],
        /// Its funding outpoint, if it got that far.
        outpoint: Option<OutPoint>,
    },
    /// Build a transaction with this output from confirmed segwit inputs, and keep it.
    BuildFunding {
        /// P2TR of all signers.
        script: ScriptBuf,
        /// Value, sat.
        value_sat: u64,
    },
    /// Give up the funding transaction of this attempt and its inputs. It must never be broadcast.
    ReleaseFunding,
    /// Fund a channel over this outpoint of the tree.
    FundChannel {
        /// The client's node id.
        client: PublicKey,
        /// The id it was opened under.
        temporary_channel_id: [u8; 32],
        /// Its funding outpoint.
        outpoint: OutPoint,
    },
    /// Store the record, then say [`LspInput::RecordPersisted`]. It replaces one of an earlier attempt.
    PersistRecord(Box<LspFactoryRecord>),
    /// Broadcast the funding transaction, and send it to the clients (`Funded`).
    BroadcastFunding,
    /// Say [`LspInput::Timeout`] with this id after so many seconds. Only the newest timer matters.
    SetTimer {
        /// The id.
        id: u64,
        /// Seconds.
        seconds: u32,
    },
    /// A client was excluded.
    Excluded {
        /// The client's node id.
        client: PublicKey,
        /// Why.
        reason: ExcludeReason,
    },
    /// A new phase began.
    Progress(Phase),
    /// The ceremony is over, the factory made.
    Done,
    /// The ceremony is over without a factory. A record that was stored is void.
    Failed {
        /// Why.
        reason: FailReason,
    },
}
