//! Advances: a leaf, a branch or the root gets a newer state. One machine for the provider, one for a client.
//!
//! ```text
//! provider                                     client (each below the node that advances)
//!   AdvancePropose                   ->        checks it against its record and its policy
//!                                    <-        AdvanceAgree (nonces), or AdvanceRefuse
//!   both prepare the channel: with a change of capacity LDK's splice up to `ReadyForSigning`
//!   AdvanceTree                      ->        rebuilds its path
//!   both rebuild, and exchange companion commitments for the channel's new output
//!   stores that the position is used up, after all companions are on disk
//!   AdvanceAggNonces                 ->        signs, stores a mark that the position is used up
//!                                    <-        AdvancePartials (inner)
//!   AdvanceInner                     ->        verifies, stores the inner transactions: the try is pending
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
//! others: none can be published before the outermost state is signed.
//!
//! **One try for one outermost state.** The outermost state does not commit to what is inside it: a layer that is not
//! its level's innermost pays everything to the key it had, and an upper level's innermost layer commits to its
//! children's sums only. It depends on the digits down to the layer that ticks, so two tries that share these have the same
//! outermost transaction, and inner states of both would hang below it: complete, with the same delay, and the fee
//! would decide. So a client takes part in one try only for each outermost state: before a partial signature of an
//! inner transaction leaves, it stores a mark, and the next try has to differ from every marked one already at the
//! layer that ticks (see [`Params::is_untried`](crate::params::Params::is_untried)). After 010 the next is 100 and not
//! 011, whose outermost state is that of 010. A failed try costs the positions inside the layer that it ticked.
//!
//! **Without inner transactions** (the innermost layer ticks, and no distribution changes) their round is left out:
//! `AdvanceAggNonces` is then what asks for the outer partial signatures, so it waits for the companions.
//!
//! **Positions.** Each leaf is somewhere on the odometer (see [`odometer`](crate::odometer)). A client takes part in
//! nothing that is not strictly newer than everything of which the provider may have a complete state. From the moment
//! on when partial signatures of any kind may be out, the position is used up ("burnt"), whether anything comes of it or
//! not: such a try leaves its mark on both sides. At a leaf below an upper node whose try is burnt nothing but another
//! try of an upper node will do.
//!
//! **Amounts.** New capacities and stock per leaf; an advance of a leaf keeps the leaf's sum, one of an upper node that
//! of the node. Nothing else changes: keys, parameters, T and payout scripts stay. A channel that keeps its capacity
//! keeps its script. The capacities of a shared leaf below an upper layer change only together with that layer: its
//! older and newer distributions would spend one output that may come to the chain so late that both are valid, and
//! the fee would decide. At the last position no capacity changes: a failed try could not be followed by another one.
//!
//! **Abort.** The provider may call a try off, and a client refuse it, until the client's outer partial signatures
//! are out. Who is missing or fails is named, and the try is over. There is no second nonce round over the same
//! transactions: another try is a newer position. A client without outer partial signatures out answers an
//! `AdvanceAbort` with `AdvanceResume` and 0: its channel is free of this try.
//!
//! **Pending.** From the moment on when the client could have sent its outer partial signatures, and until it has a
//! complete newer state, the try is *pending*: the provider may complete it alone, and the client has everything to go
//! on from then. A channel that would be another one in that try stays as it is ([`Aftermath::Frozen`]); one that keeps
//! its capacity goes on, with companions for one more outpoint. So who makes a try fail cannot stop the channels of
//! others that only moved along.
//!
//! **Lost connections and restarts.** Nonces are lost with a process, so a try ends with either one; what has to survive
//! are the marks and the pending tries. While a client's outer partial signatures are on their way, a lost connection
//! does not end the try: the same bytes are sent again, and the provider waits for them until its timer runs out. A client
//! with a pending try asks with `AdvanceResume` how it ended: the provider has the record and sends `AdvanceSigned`
//! again, or it says that the try is over.
//!
//! The creation's records are never changed: each advance adds an [`LspAdvanceRecord`] at the provider and a whole
//! [`ClientFactoryRecord`](crate::record::ClientFactoryRecord) at the client.

mod change;
mod check;
mod client;
mod lsp;
mod paths;
mod pending;
mod plan;
mod record;

pub use change::leaf_may_change;
pub use check::AdvancePolicy;
pub use client::{
    Aftermath, ClientAdvance, ClientAdvanceAction, ClientAdvanceConfig, ClientAdvanceInput,
    ClientAdvancePhase,
};
pub use lsp::{
    AdvanceFailReason, AdvanceReason, AdvanceRequest, ChannelChange, LspAdvance, LspAdvanceAction,
    LspAdvanceConfig, LspAdvanceInput, LspAdvancePhase,
};
pub use paths::{LeafPaths, Raced};
pub use pending::{AdvanceMark, ClientAdvanceState, PendingAdvance, MAX_KEPT_TRIES};
pub use record::{
    answer_resume, superseded_paths, LeafNow, LeafShares, LspAdvanceRecord, LspAdvanceState, NewestTree,
};
