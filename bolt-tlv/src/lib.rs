//! The wire format of channel factories: bytes in, types out.
//!
//! Three layers, each usable without the ones above it:
//!
//! - [`tlv`]: BigSize integers and TLV streams as BOLT 1 defines them, strict in every respect.
//! - [`blip56`]: the messages of the draft bLIP-56, "Pluggable Channel Factories", and the record it adds
//!   to `open_channel`.
//! - [`payload`]: what our own factory protocol says inside a `factory_piggyback` message: the signing
//!   ceremony and the cooperative close.
//!
//! The crate does no I/O, keeps no state and depends on no Lightning implementation. It checks *form*:
//! lengths, order, limits, points on the curve. Whether a well-formed message makes sense at this moment
//! is decided by the caller.

pub mod blip56;
mod error;
pub mod payload;
pub mod tlv;

pub use error::{Action, Error};
