//! Channel factories without I/O: the transaction tree, its MuSig2 sessions, the ceremonies that sign it, exit
//! plans, advances to newer states and the cooperative close.
//!
//! Everything here is a value or a state machine that takes a message, a block height or a timer and returns
//! messages and actions. There is no clock, no network, no storage, no async and no Lightning library; randomness
//! is passed in. The work on a whole tree is spread over the cores, and done when a call returns. What leaves this crate as an action is carried out by the caller.

pub mod advance;
pub mod ceremony;
pub mod close;
mod error;
pub mod exit;
pub mod faults;
mod form;
pub mod geometry;
pub mod guard;
mod hexed;
pub mod lifetime;
pub mod musig;
pub mod node;
pub mod odometer;
mod parallel;
pub mod params;
pub mod path;
pub mod plan;
pub mod planner;
pub mod record;
pub mod refuse;
pub mod sizes;
pub mod transaction;
pub mod tree;
mod wire;

pub use error::Error;
