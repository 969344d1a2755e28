//! Virtual and real funding outpoints: the one place that knows both.
//!
//! A factory that changes state gives a channel a new funding outpoint which does not spend the old one. No LDK
//! channel can follow that: to LDK a channel's funding is an outpoint that stays, or that a splice spends. So LDK
//! keeps a **virtual** outpoint V, and the chain has a **real** one, R. A channel is born with V == R1 (an output of
//! its leaf's first state). A rotation that leaves the capacity as it is adds R2, R3 ... under the same V; one that
//! changes the capacity is an LDK splice V -> V' whose transaction never leaves this process, with a real R' under V'.
//!
//! A commitment on V and its counterpart on R differ in nothing but the outpoint that they spend, hence in their
//! txid, hence in everything below them. So whatever crosses LDK's boundary with an outpoint or a txid in it exists
//! in a *V-form*, which LDK sees, and an *R-form*, which the chain sees:
//!
//! | direction | what | where |
//! |---|---|---|
//! | chain to LDK | blocks: V-forms are shown beside what is in the block | `chain` |
//! | LDK to chain | transactions handed to the broadcaster | `outgoing` |
//! | LDK to chain | bump events, before LDK's handler sees them | `events` |
//! | LDK to sweeper | spendable outputs; the sweeper knows R-forms only | `events` |
//! | LDK to signer | claims and penalties are signed in R-form | [`FactorySigner`](super::FactorySigner) |
//! | peer to peer, both ways | signatures of each commitment on every R: *companions* | `commitments`, `messages` |
//! | live monitor to retired one | secrets and preimages that come after the lock | `retired`, `steps` |
//! | splice messages, both ways | let through, held, refused | `gate` |
//!
//! A new R goes through three states, on each side by itself:
//!
//! 1. [`Streams::announce`]: we sign for it from now on. The peer gets a marker and the companions of everything that
//!    it has not revoked, and later ones with each `commitment_signed`.
//! 2. The peer has done the same: each unrevoked commitment of ours has a companion on R, on disk. From then on none of
//!    ours is revoked before the next one has. This is acknowledged.
//! 3. [`Streams::covered`]: we have that, and the peer has said so too. Only now may a signature leave that lets R
//!    confirm.
//!
//! A change of capacity is done by [`Changes`]: LDK splices V -> V' at no fee with inputs that exist nowhere, and R' is
//! under V'. The commitments on V' are foretold (`predict`), so that both sides have theirs on R' before LDK, or anybody,
//! signs what cannot be taken back:
//!
//! ```text
//! agree, contribute       stfu, splice_init, splice_ack, tx_add_*, tx_complete   LDK is ready to sign; V at rest
//! negotiated              V' and its script are known; the tree is planned
//! move_to                 marker, companions for R'                              as for any R, see above
//! bind                    a monitor of V' (`ahead`); no tx_abort from here on
//!                         the tree is signed: R' may confirm                     exits by R and by R', either side
//! sign                    commitment_signed, tx_signatures                       V and V' live, each with companions
//! lock                    splice_locked                                          V is retired
//! ```
//!
//! LDK would accept any splice of the peer's, and lock it at once. `gate` lets in only what was agreed, and holds
//! `splice_locked` of both directions until the caller has stored the new state.
//!
//! A peer that sends a wrong companion, or none, stops the channel and nothing else: the commitment that it belongs to
//! is held back, or, if LDK has taken it already, the secret of the one before; and that one is valid on every R.
//!
//! [`Mapping`] is the table behind all of them. A channel that was never rotated is not in it, and passes through
//! everything here untouched.
//!
//! # What it takes from LDK (0.3.0-rc3), all of it public
//!
//! - Signatures below a commitment commit to ids, values and scripts; only the ids differ between the forms. So the
//!   signer's methods for claims and penalties get the transaction with the prevouts of the R-form, and everything
//!   else that LDK computed stands. Our own commitment and its HTLC transactions need signatures of the peer's for
//!   each R besides ([`Commitments`]).
//! - `Listen::filtered_block_connected` may be given more than the block has. LDK looks transactions up by txid and by
//!   outpoint; what it has no use for it ignores. What it is given keeps its witness: preimages are read from there.
//! - A funder with a manual broadcast withholds its commitment until it has seen the funding transaction. For V that
//!   is the transaction LDK knows, so it is shown when an R of V is confirmed. `ChannelManager` panics if an input of
//!   a funding transaction of its own has no witness; [`Mapping::set_creation`] refuses one.
//! - A monitor asserts that a spend of a pending funding comes after that funding, and that a confirmed transaction
//!   does not confirm again elsewhere without a disconnection. Parents are shown before children, blocks are taken
//!   back everywhere before others come, and what is below a retired V goes to its own monitor only.
//! - `BumpTransaction` events and claims come again with blocks, so what is not due may be dropped.
//! - A monitor can be encoded and read back as a second one, and takes updates of which only some steps are left.
//!
//! # What it does not do
//!
//! LDK's cooperative close is in V-form and stays here (the factory's close replaces it), and so does a splice's
//! transaction. The wallet and the sweeper never see a V. Nothing else in the project knows of V at all.

mod ahead;
mod chain;
mod change;
mod channel;
mod commitments;
mod companion;
mod events;
mod foreseen;
mod gate;
mod map;
mod messages;
mod outgoing;
mod pending;
mod predict;
mod record;
mod retired;
mod steps;
mod told;

pub(crate) use chain::InVForm;
pub use change::Changes;
pub use commitments::Commitments;
pub(super) use commitments::NAMESPACE as COMMITMENTS;
pub(crate) use events::Bump;
pub(crate) use map::MAX_REALS;
pub use map::{Mapping, Real};
pub(super) use messages::Deliver;
pub(crate) use messages::Needs;
pub use messages::Streams;
pub use outgoing::Outward;
pub(crate) use outgoing::Way;
pub(crate) use retired::RetiredListener;
pub use retired::{AllMonitors, Retired};

#[cfg(test)]
mod on_chain;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
