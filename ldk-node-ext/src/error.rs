//! The one error type of this crate.

use lightning::util::errors::APIError;

/// What went wrong, with the field and the limit where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value given by the caller is out of its range.
    #[error("{field}: {reason}")]
    InvalidArgument {
        /// Name of the field.
        field: &'static str,
        /// What is wrong and what the limit is.
        reason: String,
    },
    /// There is no such thing.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// It exists already, or is in a state that does not allow this.
    #[error("{0}")]
    Conflict(String),
    /// A peer or bitcoind is not there now; try again later.
    #[error("{0}")]
    Unavailable(String),
    /// A client has failed too often lately.
    #[error("client {client} is not admitted before block {until_height}: {reason}")]
    NotAdmitted {
        /// Its node id.
        client: String,
        /// The height from which it is admitted again, blocks.
        until_height: u32,
        /// Its last failure.
        reason: String,
    },
    /// Not enough confirmed coins in the wallet.
    #[error("not enough confirmed coins: {needed_sat} sat needed, {available_sat} sat available")]
    InsufficientFunds {
        /// Needed, sat.
        needed_sat: u64,
        /// There, sat.
        available_sat: u64,
    },
    /// The fee that is needed is more than the user allows.
    #[error("the fee budget is spent: {needed_sat} sat needed for the next step, {left_sat} sat left of max_fee_sat")]
    OverBudget {
        /// Needed for the next transaction, sat.
        needed_sat: u64,
        /// Left of the budget, sat.
        left_sat: u64,
    },
    /// Reading or writing the store failed.
    #[error("store: {0}")]
    Store(String),
    /// The store holds something this version cannot read.
    #[error("store: {key} cannot be read: {reason}")]
    Corrupt {
        /// Key of the record.
        key: String,
        /// Why.
        reason: String,
    },
    /// The store is an old copy: a peer has proved it. Nothing may be done with it any more.
    #[error("store: this data directory is an old copy: {0}. Its channels' money would be lost by going on from here, so it is not used again. Put the newest copy back; if there is none, ask the other side to close the channel")]
    OldState(String),
    /// The disk has no room for what has to be written. Nothing was done; try again when there is.
    #[error("store: {0}")]
    NoRoom(String),
    /// File system.
    #[error("{path}: {source}")]
    Io {
        /// Path.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// bitcoind refused or is not reachable.
    #[error("bitcoind: {0}")]
    Bitcoind(String),
    /// The on-chain wallet refused.
    #[error("wallet: {0}")]
    Wallet(String),
    /// LDK refused.
    #[error("ldk: {0}")]
    Ldk(String),
    /// The factory's state machines refused.
    #[error("factory: {0}")]
    Factory(#[from] factory_core::Error),
}

/// Error classes for an API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's fault.
    InvalidArgument,
    /// Nothing there.
    NotFound,
    /// Wrong state.
    Conflict,
    /// Try again later.
    Unavailable,
    /// Wallet too small.
    InsufficientFunds,
    /// Ours.
    Internal,
}

impl Error {
    /// Shorthand for an invalid argument.
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { field, reason: reason.into() }
    }

    /// Shorthand for something missing.
    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidArgument { .. } => ErrorKind::InvalidArgument,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Conflict(_) | Self::NotAdmitted { .. } => ErrorKind::Conflict,
            Self::Unavailable(_) | Self::NoRoom(_) => ErrorKind::Unavailable,
            Self::InsufficientFunds { .. } | Self::OverBudget { .. } => ErrorKind::InsufficientFunds,
            Self::Factory(_)
            | Self::Store(_)
            | Self::Corrupt { .. }
            | Self::OldState(_)
            | Self::Io { .. }
            | Self::Bitcoind(_)
            | Self::Wallet(_)
            | Self::Ldk(_) => ErrorKind::Internal,
        }
    }

    /// The field at fault, if it is one of the caller's.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::InvalidArgument { field, .. } => Some(field),
            _ => None,
        }
    }
}

impl From<APIError> for Error {
    fn from(e: APIError) -> Self {
        match e {
            APIError::APIMisuseError { err } => Self::Conflict(err),
            APIError::ChannelUnavailable { err } => Self::Unavailable(err),
            other => Self::Ldk(format!("{other:?}")),
        }
    }
}
