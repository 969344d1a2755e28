//! The LDK node that hosts factory channels: one library for the provider's (LSP's) and the client's
//! side.
//!
//! [`Node`] is a complete Lightning node over stock LDK: chain sync from bitcoind, an on-chain wallet,
//! storage, payments. What is new is that some of its channels live under a factory, a tree of
//! transactions that stays off the chain. `factory-core` decides what to sign and when; this crate
//! gives it peers, a clock, a disk and the chain, and gives LDK channels whose funding output is on
//! no chain yet.
//!
//! - [`ldk`]: the wrappers at LDK's boundary, which hold back what must not leave yet.
//! - `factory`: the service that drives the ceremonies, exits and closes.
//! - [`liquidity`]: what is done with a payment for which a client has no room.
//! - [`store`]: one key-value store for everything.
//! - [`watch`]: a program that guards leaves without any key of theirs.
//! - [`api`]: the data a node answers with; [`http`]: the same over a local JSON API (feature `http`).

pub mod api;
mod chain;
mod config;
mod error;
mod factory;
mod faults;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod htlc_rules;
#[cfg(feature = "http")]
pub mod http;
mod keys;
pub mod ldk;
pub mod liquidity;
mod logger;
mod node;
mod publish;
mod relay;
pub mod store;
mod util;
mod wallet;
pub mod watch;

pub use config::{
    init_seed, ClientSettings, FactoryPolicy, JitMove, LspSettings, Lsps2Settings, NodeConfig, RoleConfig,
    RpcAuth,
};
pub use error::{Error, ErrorKind};
pub use node::Node;
pub use store::StoreKind;
