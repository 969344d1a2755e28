//! What goes into and comes out of a client's machine.

use bitcoin::{Network, OutPoint, ScriptBuf, Transaction};
use bolt_tlv::payload::Payload;

use crate::ceremony::ClientPolicy;
use crate::record::ClientFactoryRecord;
use crate::refuse::RefuseCode;

/// What a client's machine starts from.
pub struct ClientConfig {
    /// What the client wants.
    pub policy: ClientPolicy,
    /// The client's factory key, fresh for this factory.
    pub secret_key: [u8; 32],
    /// Where distributions and closing transactions pay the client: P2WPKH, P2WSH or P2TR.
    pub payout_script: ScriptBuf,
    /// Height of the client's tip, blocks.
    pub height: u32,
    /// The chain.
    pub network: Network,
    /// How long to wait for the provider in each phase, seconds.
    pub timeout_secs: u32,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientPhase {
    /// Waiting for an invitation.
    Idle,
    /// Accepted; waiting for the plan.
    Accepted,
    /// Agreed to the plan; waiting for the path and for its channel.
    Planned,
    /// Nonces are out; waiting for their aggregates.
    Nonces,
    /// Partial signatures are out; waiting for signatures.
    Partials,
    /// Waiting for the record to be stored.
    Persisting,
    /// Complete; waiting for the funding transaction.
    Persisted,
    /// The funding transaction is known.
    Done,
    /// Refused or aborted.
    Failed,
}

/// What the caller tells the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientInput {
    /// The provider sent a message.
    Message(Payload),
    /// The client's channel is funded: its first commitment is stored (LDK's `ChannelPending`).
    ChannelFunded {
        /// The id under which it was opened.
        temporary_channel_id: [u8; 32],
        /// Its funding outpoint.
        outpoint: OutPoint,
        /// Its funding script (P2WSH).
        funding_script: ScriptBuf,
        /// Its capacity, sat.
        capacity_sat: u64,
    },
    /// The record is on disk.
    Persisted {
        /// The record's attempt.
        attempt: u16,
    },
    /// A timer ran out.
    Timeout {
        /// The id of the timer.
        id: u64,
    },
    /// The connection to the provider was lost.
    Disconnected,
    /// The chain's tip is at this height.
    Height(u32),
}

/// What the caller has to do. The order of a list of actions is the order in which to do them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAction {
    /// Send a message to the provider.
    Send(Payload),
    /// Accept a channel with exactly this id, capacity and push from the provider.
    ExpectChannel {
        /// The id.
        temporary_channel_id: [u8; 32],
        /// Capacity, sat.
        capacity_sat: u64,
        /// What the client starts with, msat.
        push_msat: u64,
    },
    /// An attempt that was complete on this side is over. Keep its record beside the current one until the chain's
    /// tip is at this height: should its funding output confirm after all, the record is the way out.
    KeepSuperseded {
        /// The record.
        record: Box<ClientFactoryRecord>,
        /// The height at which an unconfirmed funding transaction is given up, blocks.
        until_height: u32,
    },
    /// Close a channel of an attempt that failed and archive its monitor. Nothing of it may be broadcast while its
    /// funding output is not on the chain.
    ForgetChannel {
        /// The id it was opened under.
        temporary_channel_id: [u8; 32],
    },
    /// Store the record, then say [`ClientInput::Persisted`].
    PersistRecord(Box<ClientFactoryRecord>),
    /// The client holds a complete exit. The factory exists once its funding transaction confirms.
    Completed {
        /// The record.
        record: Box<ClientFactoryRecord>,
    },
    /// The provider showed the funding transaction; it pays the agreed output.
    FundingSeen {
        /// The transaction.
        transaction: Box<Transaction>,
    },
    /// The client refused; the ceremony is over.
    Refused {
        /// The check that failed.
        code: RefuseCode,
        /// What was wrong.
        text: String,
    },
    /// The provider ended the ceremony or went away.
    Aborted {
        /// The provider's code; none if the connection was lost.
        code: Option<u16>,
        /// The provider's text.
        text: String,
    },
    /// Say [`ClientInput::Timeout`] with this id after so many seconds. Only the newest timer matters.
    SetTimer {
        /// The id.
        id: u64,
        /// Seconds.
        seconds: u32,
    },
}
