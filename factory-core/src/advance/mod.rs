//! Advances: a leaf, a branch or the root gets a newer state. One machine for the provider, one for a client.
//!
//! ```text
//! provider                                     client (each below the node that advances)
//!   AdvancePropose                   ->        checks it against its record and its policy
//!                                    <-        AdvanceAgree (nonces), or AdvanceRefuse
//!   both prepare the channel: with a change of capacity LDK's splice up to `ReadyForSigning`
//!   AdvanceTree                      ->        rebuilds its path
//!   both rebuild, and exchange companion commitments for the channel's new output
//!   AdvanceAggNonces                 ->
//!                                    <-        AdvancePartials (inner; after its companions are on disk)
//!   stores that the position is used up (after all companions are on disk)
//!   AdvanceInner                     ->        verifies, stores the inner transactions and the same mark
//!                                    <-        AdvanceOuter
//!   verifies all signatures, stores the record
//!   AdvanceSigned                    ->        verifies, stores the record
//!                                    <-        AdvancePersisted
//! ```
//!
//! **What changes.** A layer of the node ticks. Its state, which spends an output that stays, is the *outermost*
//! transaction that changes; everything inside it is new too. So are all distributions of the leaves below, if an
//! update can change what somebody gets at all; else only those that spend outputs that change. The new transactions
//! fall into two lists. *Outer* is what spends an output that stays: the outermost state, and, where the leaf itself
//! advances, distributions of such outputs: complete, they could be published. *Inner* is the rest, which hangs below
//! the outermost state. The inner partial signatures travel together although some inner transactions hang below
//! others: the output below which all of them hang does not exist before the outermost state is signed, so nobody can
//! publish any.
//!
//! **Without inner transactions** (the innermost layer ticks, and no distribution changes) their round is left out:
//! `AdvanceAggNonces` is then what asks for the outer partial signatures, so it waits for the companions.
//!
//! **Positions.** Each leaf is somewhere on the odometer (see [`odometer`](crate::odometer)). A client takes part in
//! nothing that is not strictly newer than everything of which the provider may have a complete state: from the moment
//! on when a client has, or could have, sent its outer partial signatures, the position is used up ("burnt"), whether
//! anything comes of it or not.
//! A try that failed later than that leaves its mark on both sides, and the next one takes a newer position. At a leaf
//! below an upper node whose try is burnt nothing but another try of an upper node will do.
//!
//! **Amounts.** New capacities and stock per leaf; an advance of a leaf keeps the leaf's sum, one of an upper node that
//! of the node. Nothing else changes: keys, parameters, T and payout scripts stay. A channel that keeps its capacity
//! keeps its script. The capacities of a shared leaf below an upper layer change only together with that layer: its
//! older and newer distributions would spend one output that may come to the chain so late that both are valid, and
//! the fee would decide.
//!
//! **Abort.** The provider may call a try off, and a client refuse it, until the client's outer partial signatures
//! are out. Who is missing or fails is named, and the try is over. There is no second nonce round over the same
//! transactions: another try is a newer position.
//!
//! **Restart.** Nonces are lost, so a try ends with either process; what has to survive are the marks. A client that
//! sent its outer partial signatures asks with `AdvanceResume` how it ended: the provider has the record and sends
//! `AdvanceSigned` again, or it says that the try is over. Until the client has a complete newer state, the try stays
//! *pending*: the client has everything to go on from, should the provider publish its outermost state after all.
//!
//! The creation's records are never changed: each advance adds an [`LspAdvanceRecord`] at the provider and a whole
//! [`ClientFactoryRecord`](crate::record::ClientFactoryRecord) at the client.

mod change;
mod check;
mod client;
mod lsp;
mod paths;
mod plan;
mod record;

pub use check::AdvancePolicy;
pub use client::{
    ClientAdvance, ClientAdvanceAction, ClientAdvanceConfig, ClientAdvanceInput, ClientAdvancePhase,
};
pub use lsp::{
    AdvanceFailReason, AdvanceReason, AdvanceRequest, ChannelChange, LspAdvance, LspAdvanceAction,
    LspAdvanceConfig, LspAdvanceInput, LspAdvancePhase,
};
pub use paths::{LeafPaths, Raced};
pub use record::{
    answer_resume, superseded_paths, ClientAdvanceState, LeafNow, LeafShares, LspAdvanceRecord,
    LspAdvanceState, NewestTree, PendingAdvance,
};
