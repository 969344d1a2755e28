//! The cooperative close: one transaction spends the funding output and pays everyone the balance of its channel.
//!
//! ```text
//! provider                                     client
//!   ClosePropose                     ->        refuses if it does not want to or has pending payments
//!                                    <-        CloseConsent (payout script)
//!   shuts every channel down (Lightning `shutdown`): the balances are final from here on
//!   CloseTx                          ->        checks that it gets its balance
//!                                    <-        CloseNonce
//!   CloseAggNonce                    ->        stores that its channel is frozen
//!                                    <-        ClosePartial
//!   verifies the signature, stores and broadcasts the transaction
//!   CloseDone                        ->
//! ```
//!
//! A spend of the funding output cannot be revoked. From the first partial signature on a channel therefore stays
//! frozen until a spend of the funding output is deep enough, and the machines have no way back: who is missing is
//! asked again with fresh nonces, for the same transaction.
//!
//! Who consents and then does not let its channel be shut down is named like one that does not sign, and asked again in
//! the same way. Not if something else holds the channel up, which the provider's node has to know: a payment that is
//! still pending (its payer, its payee or anybody between them may be the cause, and its expiry is the limit) excuses a
//! client that has answered `shutdown`, for only what comes after that has to wait for payments.

mod client;
mod lsp;
mod lsp_types;
mod transaction;

pub use client::{
    ClientClose, ClientCloseAction, ClientCloseConfig, ClientCloseInput, ClientClosePhase, ClientCloseState,
};
pub use lsp::LspClose;
pub use lsp_types::{
    CloseBalance, CloseFailReason, LspCloseAction, LspCloseConfig, LspCloseInput, LspClosePhase,
    LspCloseState,
};
pub use transaction::{close_transaction, CloseTransaction, Payout, DUST_SAT, MIN_FEERATE_SAT_PER_KWU};
