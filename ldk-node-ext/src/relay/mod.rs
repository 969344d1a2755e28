//! Payments larger than any channel of the client: the LSP receives them and pays them on in parts, under one payment
//! hash.
//!
//! LDK forwards an HTLC over one channel only, while a payment that it makes itself it splits. So the client has its LSP
//! make the invoice, over the client's payment hash (`ask`, `offer`). The LSP holds what comes in on it, pays the client
//! over all its channels, learns the preimage by that, and claims (`drive`). Without the preimage, which only the client
//! has, it can claim nothing.
//!
//! LDK does not know that the two payments are one. What keeps the LSP whole is the record of each (`record`, `store`),
//! written before each step, and that the outgoing payment is over, also on the chain, before the incoming one has to be
//! claimed (`budget`).

mod ask;
mod budget;
mod drive;
mod moves;
mod offer;
mod record;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use ask::{Asks, Wanted};
pub(crate) use drive::{run, Arrived};
pub(crate) use moves::direct;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use record::Relay;
pub(crate) use store::Relays;
