//! What goes into and comes out of the provider's closing machine.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, Transaction};
use bolt_tlv::payload::Payload;
use serde::{Deserialize, Serialize};

use crate::advance::LspAdvanceRecord;
use crate::ceremony::ExcludeReason;
use crate::record::LspFactoryRecord;
use crate::Error;

/// What the provider's closing machine starts from.
pub struct LspCloseConfig {
    /// The factory.
    pub record: LspFactoryRecord,
    /// Its advances so far, in the order in which they were stored: they may have changed capacities.
    pub advances: Vec<LspAdvanceRecord>,
    /// The provider's factory key.
    pub secret_key: [u8; 32],
    /// Where the provider's share goes: P2WPKH, P2WSH or P2TR.
    pub lsp_script: ScriptBuf,
    /// Feerate of the closing transaction, sat per 1000 weight units.
    pub feerate_sat_per_kwu: u64,
    /// Number of this try; higher than that of every earlier one for this factory.
    pub attempt: u16,
    /// How long to wait for consent, seconds.
    pub consent_secs: u32,
    /// How long to wait for the next channel to be shut down, for nonces and for partial signatures, seconds.
    pub signing_secs: u32,
}

/// Where the close is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LspClosePhase {
    /// Waiting for everybody's consent.
    Asking,
    /// Waiting for the channels to be shut down.
    Shutting,
    /// Waiting for nonces.
    Nonces,
    /// Waiting for partial signatures.
    Partials,
    /// Somebody is missing or failed; waiting for [`LspCloseInput::Retry`].
    Stalled,
    /// Waiting for the signed transaction to be stored.
    Recording,
    /// The transaction is out.
    Done,
    /// Over; no channel was shut down.
    Failed,
}

/// A client in the stored state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseBalance {
    /// The client's node id.
    pub client: PublicKey,
    /// Where it wants to be paid.
    pub payout_script: ScriptBuf,
    /// Its final balance, msat, once its channel is shut down.
    pub client_msat: Option<u64>,
}

/// What has to survive a restart from the moment on when channels are shut down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LspCloseState {
    /// Version of the record.
    pub version: u16,
    /// The factory.
    #[serde(with = "hex::serde")]
    pub instance_id: [u8; 32],
    /// The last attempt that was used.
    pub attempt: u16,
    /// The clients in tree order.
    pub clients: Vec<CloseBalance>,
    /// Where the provider's share goes.
    pub lsp_script: ScriptBuf,
    /// Feerate, sat per 1000 weight units.
    pub feerate_sat_per_kwu: u64,
}

/// What the caller tells the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LspCloseInput {
    /// A client sent a message.
    Message {
        /// The client's node id.
        client: PublicKey,
        /// The message.
        payload: Payload,
    },
    /// A timer ran out.
    Timeout {
        /// The id of the timer.
        id: u64,
    },
    /// A channel is shut down, its balances are final (LDK's `ChannelClosed`).
    ChannelShut {
        /// The client's node id.
        client: PublicKey,
        /// The client's balance, msat.
        client_msat: u64,
        /// The provider's balance, msat.
        lsp_msat: u64,
    },
    /// Who is not to be named by the next [`LspCloseInput::Timeout`] if its channel is not shut down by then: it has not
    /// been asked yet, or something else holds it up. Takes the place of what was said before.
    Excused {
        /// Their node ids.
        clients: Vec<PublicKey>,
    },
    /// A client's connection was lost.
    ClientGone {
        /// The client's node id.
        client: PublicKey,
    },
    /// Go on: somebody came back, or there is room again for what could not be stored. Asks with fresh nonces.
    Retry,
    /// The signed transaction is on disk.
    RecordPersisted,
}

/// What the caller has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LspCloseAction {
    /// Send a message.
    Send {
        /// The client's node id.
        client: PublicKey,
        /// The message.
        payload: Payload,
    },
    /// Store the state before doing what follows. If it cannot be stored nothing of what follows may be done; say
    /// [`LspCloseInput::Retry`] later.
    PersistState(Box<LspCloseState>),
    /// Shut a channel down (LDK's `close_channel`), with nothing of it broadcast.
    ShutdownChannel {
        /// The client's node id.
        client: PublicKey,
        /// The channel's outpoint in the tree.
        outpoint: OutPoint,
    },
    /// Store the signed closing transaction, then say [`LspCloseInput::RecordPersisted`], or later
    /// [`LspCloseInput::Retry`] if it cannot be stored.
    PersistClose {
        /// The transaction.
        tx: Box<Transaction>,
        /// Paid to clients, sat.
        paid: Vec<(PublicKey, u64)>,
        /// Balances that went to the fee, sat.
        to_fees: Vec<(PublicKey, u64)>,
        /// Paid to the provider, sat.
        lsp_sat: u64,
        /// The fee, sat.
        fee_sat: u64,
    },
    /// Broadcast the closing transaction.
    Broadcast(Box<Transaction>),
    /// Say [`LspCloseInput::Timeout`] with this id after so many seconds. Only the newest timer matters.
    SetTimer {
        /// The id.
        id: u64,
        /// Seconds.
        seconds: u32,
    },
    /// A client failed or is missing; the close is stalled until [`LspCloseInput::Retry`].
    Blamed {
        /// The client's node id.
        client: PublicKey,
        /// Why.
        reason: ExcludeReason,
    },
    /// Something failed on our own side, for example the provider's share cannot pay the fee. The close waits for
    /// [`LspCloseInput::Retry`].
    Problem {
        /// What.
        error: Error,
    },
    /// A new phase began.
    Progress(LspClosePhase),
    /// The close is over.
    Done,
    /// The close is over, nothing has changed.
    Failed {
        /// Why.
        reason: CloseFailReason,
    },
}

/// Why a close came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseFailReason {
    /// A client refused.
    #[error("client {client} refused with code {code}: {text}")]
    Refused {
        /// The client's node id.
        client: PublicKey,
        /// Its code.
        code: u16,
        /// Its text.
        text: String,
    },
    /// Clients did not answer.
    #[error("{} clients did not answer", clients.len())]
    NoAnswer {
        /// Their node ids.
        clients: Vec<PublicKey>,
    },
    /// A client's payout script is not standard.
    #[error("payout script of client {client} is not p2wpkh, p2wsh or p2tr")]
    PayoutScript {
        /// The client's node id.
        client: PublicKey,
    },
    /// Something on our side.
    #[error(transparent)]
    Internal(#[from] Error),
}
