//! What a [`Node`](crate::Node) answers: plain data with units in the names.
//!
//! These types are the contract of the local JSON API of both binaries and of their command lines;
//! a wallet that embeds the crate gets the same structs. Amounts are integers, `_sat` or `_msat`;
//! heights and delays are blocks; times are seconds since the Unix epoch.

mod factory;
mod jit;
mod node;
mod offer;

pub use factory::*;
pub use jit::*;
pub use node::*;
pub use offer::*;
