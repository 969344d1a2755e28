//! The checks of bLIP-56 that need more than the message, and what a failed one costs.
//!
//! This crate cannot make them: they depend on the channel, the chain or the factory. Whoever makes them
//! finds here the reason to report and the [`Action`] the draft allows.

use crate::Action;

/// A check of a well-formed message that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FailedCheck {
    /// A payload came for a protocol that the receiver did not list.
    #[error("factory_protocol_id: not one of ours")]
    ProtocolNotListed,
    /// A change was proposed for a channel that is in no factory.
    #[error("channel_id: not a factory channel")]
    NotFactoryChannel,
    /// A change was proposed while the channel is not quiescent, by the wrong side, or while another
    /// change is not finished.
    #[error("factory_change_init: not allowed in this state")]
    ChangeNotAllowed,
    /// The contribution takes more than the sender has.
    #[error("funding_contribution_satoshis: exceeds the sender's balance")]
    ContributionTooLarge,
    /// The factory refuses the change.
    #[error("factory change: refused by the factory")]
    ChangeRefused,
    /// The peer agreed to a change that nobody proposed.
    #[error("factory_change_ack: no change was proposed")]
    AckWithoutInit,
    /// The outpoint is not the one the factory gave.
    #[error("funding_txid and funding_output_index: not the expected outpoint")]
    UnexpectedOutpoint,
    /// The transaction is not the one the factory gave.
    #[error("locked_funding_txid: not the expected transaction")]
    UnexpectedTxid,
    /// `open_channel` names a protocol not listed, asks for no zero-conf channel, or the factory refuses.
    #[error("channel_in_factory: channel refused")]
    OpenRefused,
    /// An HTLC expires too early for a channel in a factory.
    #[error("cltv_expiry: leaves less than the factory's early warning time")]
    HtlcExpiresTooEarly,
}

impl FailedCheck {
    /// What the draft allows the receiver to do.
    pub fn action(self) -> Action {
        match self {
            Self::ProtocolNotListed => Action::WarningAndClose,
            Self::NotFactoryChannel
            | Self::ChangeNotAllowed
            | Self::ContributionTooLarge
            | Self::ChangeRefused
            | Self::AckWithoutInit
            | Self::UnexpectedOutpoint
            | Self::UnexpectedTxid => Action::WarningOrError,
            Self::OpenRefused | Self::HtlcExpiresTooEarly => Action::ErrorAndFail,
        }
    }
}
