//! What goes into and comes out of a client's machine for advances.

use bitcoin::{OutPoint, ScriptBuf, TxOut};
use bolt_tlv::payload::Payload;

use crate::advance::check::AdvancePolicy;
use crate::advance::lsp::AdvanceReason;
use crate::advance::pending::{ClientAdvanceState, PendingAdvance};
use crate::record::ClientFactoryRecord;
use crate::refuse::RefuseCode;

/// What a client's machine starts from.
pub struct ClientAdvanceConfig {
    /// The newest complete record.
    pub record: ClientFactoryRecord,
    /// What was stored of advances; none if there was none.
    pub state: Option<ClientAdvanceState>,
    /// The client's factory key.
    pub secret_key: [u8; 32],
    /// What it wants.
    pub policy: AdvancePolicy,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientAdvancePhase {
    /// Nothing is under way, or the client waits to hear how a try ended: see [`ClientAdvanceState::pending`].
    Idle,
    /// Agreed, with nonces; waiting for its channel to be prepared and for the tree.
    Agreed,
    /// Waiting for companions and aggregate nonces.
    Covering,
    /// Waiting for the mark that the position is used up to be stored.
    Marking,
    /// Partial signatures of the inner transactions are out.
    Inner,
    /// Waiting for the inner transactions, and the mark that the state may come to be, to be stored.
    Storing,
    /// Partial signatures of the outer transactions are out.
    Outer,
    /// Waiting for the complete record to be stored.
    Recording,
}

/// What tries that are not complete mean for the client's channel, until a newer state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aftermath {
    /// Nothing: the channel has the output of the newest complete state.
    Clear,
    /// The provider may complete a try in which the channel is the same: one more outpoint that it may be at, and
    /// which needs companions like the others. The channel goes on.
    Pending,
    /// The provider may complete a try in which the channel has another capacity or script: the channel stays as it
    /// is.
    Frozen,
}

/// What the caller tells the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAdvanceInput {
    /// The provider sent a message.
    Message(Payload),
    /// What the client wants has changed.
    Policy(AdvancePolicy),
    /// The own channel is ready to move: with a change of capacity LDK's splice is up to `ReadyForSigning`.
    ChannelPrepared {
        /// The try.
        attempt: u16,
        /// The P2WSH script of the channel from then on; the same as before if its capacity does not change.
        script: ScriptBuf,
    },
    /// The companion commitments of both ways for the channel's new output are on disk.
    Covered {
        /// The try.
        attempt: u16,
    },
    /// The state with the mark of this try is on disk.
    MarkPersisted {
        /// The try.
        attempt: u16,
    },
    /// The state with the inner transactions is on disk.
    InnerPersisted {
        /// The try.
        attempt: u16,
    },
    /// The complete record is on disk.
    RecordPersisted {
        /// The try.
        attempt: u16,
    },
    /// The provider is connected.
    Connected,
    /// The connection to the provider was lost.
    Disconnected,
    /// Give up what is under way, if that is still possible: the channel cannot move, or it takes too long.
    Cancel {
        /// Why.
        text: String,
    },
}

/// What the caller has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAdvanceAction {
    /// Send a message to the provider.
    Send(Payload),
    /// Prepare the own channel, then say [`ClientAdvanceInput::ChannelPrepared`].
    PrepareChannel {
        /// The try.
        attempt: u16,
        /// Why the provider wants to advance.
        reason: AdvanceReason,
        /// Capacity before, sat.
        from_sat: u64,
        /// Capacity afterwards, sat.
        to_sat: u64,
    },
    /// The channel's new output is known: exchange companions for it, then say [`ClientAdvanceInput::Covered`].
    Rebuilt {
        /// The try.
        attempt: u16,
        /// Where the channel is going to be.
        outpoint: OutPoint,
        /// The output.
        output: TxOut,
    },
    /// Store the state, in which a mark says that this try's position is used up. Then say
    /// [`ClientAdvanceInput::MarkPersisted`]. The channel goes on as before.
    PersistMark {
        /// The try.
        attempt: u16,
        /// The state to store.
        state: Box<ClientAdvanceState>,
    },
    /// Store the state with this try added: all its inner transactions, and that it may come to be. Then say
    /// [`ClientAdvanceInput::InnerPersisted`].
    PersistInner {
        /// The state to store.
        state: Box<ClientAdvanceState>,
        /// The try, the last one of the state.
        pending: Box<PendingAdvance>,
    },
    /// Store the complete record beside the older ones, then say [`ClientAdvanceInput::RecordPersisted`].
    PersistRecord {
        /// The try.
        attempt: u16,
        /// The record.
        record: Box<ClientFactoryRecord>,
    },
    /// Store the state.
    PersistState(Box<ClientAdvanceState>),
    /// The new state is complete and stored.
    Completed {
        /// The record.
        record: Box<ClientFactoryRecord>,
    },
    /// The client refused; the old state is still its newest complete one.
    Refused {
        /// The try.
        attempt: u16,
        /// The check that failed.
        code: RefuseCode,
        /// What was wrong.
        text: String,
        /// What this and earlier tries mean for the channel.
        left: Aftermath,
    },
    /// The provider called the try off, or the connection was lost.
    Aborted {
        /// The try.
        attempt: u16,
        /// The provider's code; none if the connection was lost.
        code: Option<u16>,
        /// Its text.
        text: String,
        /// As in `Refused`.
        left: Aftermath,
    },
}
