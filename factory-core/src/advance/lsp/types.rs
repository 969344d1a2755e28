//! What goes into and comes out of the provider's machine for an advance.

use std::collections::BTreeMap;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, TxOut};
use bolt_tlv::payload::Payload;
use serde::{Deserialize, Serialize};

use crate::advance::record::{LeafShares, LspAdvanceRecord, LspAdvanceState};
use crate::ceremony::ExcludeReason;
use crate::record::LspFactoryRecord;
use crate::Error;

/// Why a factory advances. For people and for a client's policy; the rules are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvanceReason {
    /// The state alone.
    Rotate,
    /// A client gets liquidity from the stock.
    Sell,
    /// A client gives liquidity back to the stock.
    GiveBack,
    /// Liquidity moves from one client to another.
    Move,
    /// The levels inside get their updates back.
    Reset,
    /// One that this version does not know.
    Other(u16),
}

impl AdvanceReason {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::Rotate => 1,
            Self::Sell => 2,
            Self::GiveBack => 3,
            Self::Move => 4,
            Self::Reset => 5,
            Self::Other(number) => number,
        }
    }
}

impl From<u16> for AdvanceReason {
    fn from(number: u16) -> Self {
        let known = [Self::Rotate, Self::Sell, Self::GiveBack, Self::Move, Self::Reset];
        known.into_iter().find(|reason| reason.number() == number).unwrap_or(Self::Other(number))
    }
}

/// What shall be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvanceRequest {
    /// The level of the node that advances, 0 is the root.
    pub level: usize,
    /// A client below the node, by its place in tree order.
    pub client: usize,
    /// New shares of leaves below it. A leaf that is not listed keeps its own.
    pub changes: Vec<LeafShares>,
    /// Why.
    pub reason: AdvanceReason,
}

/// What the provider's machine starts from.
pub struct LspAdvanceConfig {
    /// The factory.
    pub record: LspFactoryRecord,
    /// Its advances so far, in the order in which they were stored.
    pub advances: Vec<LspAdvanceRecord>,
    /// Tries whose positions are used up.
    pub burnt: Vec<LspAdvanceState>,
    /// The provider's factory key.
    pub secret_key: [u8; 32],
    /// What shall be done.
    pub request: AdvanceRequest,
    /// The least capacity that the channel of a client needs, sat, by the client's place in tree order.
    pub least_sat: BTreeMap<usize, u64>,
    /// Number of this try; higher than that of every earlier one for this factory, also of those that failed before
    /// anything was stored of them. So the caller stores the number before it starts the machine.
    pub attempt: u16,
    /// How long to wait for agreement, seconds.
    pub agree_secs: u32,
    /// How long to wait for the channels to be prepared, seconds.
    pub prepare_secs: u32,
    /// How long to wait for companions and for partial signatures, seconds.
    pub signing_secs: u32,
}

/// Where the advance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LspAdvancePhase {
    /// Waiting for everybody's agreement.
    Asking,
    /// Waiting for the channels to be prepared.
    Preparing,
    /// Waiting for companions.
    Covering,
    /// Waiting for partial signatures of the inner transactions.
    Inner,
    /// Waiting for partial signatures of the outer transactions. A client that is gone may come back.
    Outer,
    /// Waiting for the record to be stored.
    Recording,
    /// Complete; waiting for every client to have stored it. Has no end of its own: the machine may be dropped.
    Persisting,
    /// Over, everybody has it.
    Done,
    /// Over; the state stays as it was.
    Failed,
}

/// What the caller tells the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LspAdvanceInput {
    /// A client sent a message.
    Message {
        /// The client's node id.
        client: PublicKey,
        /// The message.
        payload: Payload,
    },
    /// A client is not there, or its connection was lost.
    ClientGone {
        /// The client's node id.
        client: PublicKey,
    },
    /// A timer ran out.
    Timeout {
        /// The id of the timer.
        id: u64,
    },
    /// A channel is ready to move: with a change of capacity LDK's splice is up to `ReadyForSigning`.
    ChannelPrepared {
        /// The client's node id.
        client: PublicKey,
        /// The try.
        attempt: u16,
        /// The P2WSH script of the channel from then on; the same as before if its capacity does not change.
        script: ScriptBuf,
    },
    /// A channel cannot move.
    ChannelFailed {
        /// The client's node id.
        client: PublicKey,
        /// The try.
        attempt: u16,
        /// Why.
        reason: String,
    },
    /// The companion commitments of both ways for the channel's new output are on disk.
    Covered {
        /// The client's node id.
        client: PublicKey,
        /// The try.
        attempt: u16,
    },
    /// The record is on disk.
    RecordPersisted {
        /// The record's try.
        attempt: u16,
    },
    /// Call it off, if that is still possible.
    Cancel,
}

/// One channel of an advance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelChange {
    /// The client's node id.
    pub client: PublicKey,
    /// Its place in tree order.
    pub index: usize,
    /// Capacity of its channel before, sat.
    pub from_sat: u64,
    /// Capacity afterwards, sat.
    pub to_sat: u64,
}

/// What the caller has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LspAdvanceAction {
    /// Send a message.
    Send {
        /// The client's node id.
        client: PublicKey,
        /// The message.
        payload: Payload,
    },
    /// Prepare the channels, then say [`LspAdvanceInput::ChannelPrepared`] for each. All channels below the node are
    /// listed, also those that keep their capacity.
    PrepareChannels(Vec<ChannelChange>),
    /// A channel's new output is known: exchange companions for it, then say [`LspAdvanceInput::Covered`].
    Rebuilt {
        /// The client's node id.
        client: PublicKey,
        /// Where the channel is going to be.
        outpoint: OutPoint,
        /// The output.
        output: TxOut,
    },
    /// Store that the position is used up, before doing what follows.
    PersistState(LspAdvanceState),
    /// Store the complete advance, then say [`LspAdvanceInput::RecordPersisted`].
    PersistRecord(Box<LspAdvanceRecord>),
    /// Say [`LspAdvanceInput::Timeout`] with this id after so many seconds. Only the newest timer matters.
    SetTimer {
        /// The id.
        id: u64,
        /// Seconds.
        seconds: u32,
    },
    /// A client has stored the new state: its channel may go on over it.
    ClientPersisted {
        /// The client's node id.
        client: PublicKey,
    },
    /// A client failed or is missing. It is left out of whatever comes next until it is fit again.
    Blamed {
        /// The client's node id.
        client: PublicKey,
        /// Why.
        reason: ExcludeReason,
    },
    /// A new phase began.
    Progress(LspAdvancePhase),
    /// Everybody has the new state.
    Completed,
    /// The advance is over, the old state is still the newest complete one.
    Failed {
        /// Why.
        reason: AdvanceFailReason,
        /// Whether the position is used up, so that another try has to take a newer one.
        burnt: bool,
        /// Clients that may have given their outer partial signatures for a state in which their channel is another
        /// one: it stays as it is until a newer state is complete, or until the client says, by an `AdvanceResume` of
        /// this try with 0, that it has not. To one that is away now, [`LspAdvanceState::abort`] is sent when it is
        /// back. The client's word decides: it is what the client itself goes by. Channels that keep their capacity go on
        /// in any case; their output in this try is one more that may confirm.
        frozen: Vec<PublicKey>,
    },
}

/// Why an advance came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdvanceFailReason {
    /// Clients failed or are missing; they are named.
    #[error("{} clients failed", clients.len())]
    Clients {
        /// Their node ids.
        clients: Vec<PublicKey>,
    },
    /// The caller called it off.
    #[error("called off")]
    Cancelled,
    /// Something on our side.
    #[error(transparent)]
    Internal(#[from] Error),
}

impl AdvanceFailReason {
    /// The number that an `AdvanceAbort` carries for it.
    pub fn code(&self) -> u16 {
        match self {
            Self::Clients { .. } => 100,
            Self::Cancelled => 102,
            Self::Internal(_) => 103,
        }
    }
}
