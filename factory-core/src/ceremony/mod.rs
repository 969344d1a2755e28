//! The ceremony that creates a factory: one state machine for the provider, one for a client.
//!
//! ```text
//! provider                                     client
//!   Invite                           ->
//!                                    <-        Accept (fresh key, payout script)
//!   Plan                             ->        checks it against the protocol and its policy
//!                                    <-        PlanOk
//!   opens the Lightning channels, builds the funding transaction (unsigned)
//!   Path                             ->        rebuilds its path; its channel is funded over the leaf's outpoint
//!                                    <-        Nonces
//!   AggNonces                        ->
//!                                    <-        Partials (after every check)
//!   verifies all signatures, stores the record
//!   Signed                           ->        verifies all signatures, stores the record
//!                                    <-        Persisted
//!   broadcasts the funding transaction when every client has persisted and every channel has its commitment
//!   Funded                           ->
//! ```
//!
//! At creation the outermost transaction is the funding transaction, so partials may flow in one message: until it
//! is broadcast nobody can lose anything. A client that fails is named and excluded, and everything from the plan
//! on is done again without it, with a higher attempt number, fresh nonces and fresh channels.

mod checks;
mod client;
mod lsp;
pub mod messages;
pub(crate) mod signing;

pub use checks::ClientPolicy;
pub use client::{ClientAction, ClientCeremony, ClientConfig, ClientInput, ClientPhase};
pub use lsp::{
    ExcludeReason, FailReason, InvitedClient, LspAction, LspCeremony, LspConfig, LspInput, ParamsChoice,
    Phase, Timeouts,
};
