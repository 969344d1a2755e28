//! Regtest harness: real processes over loopback TCP, judged by the chain and by balances.
//!
//! [`Bitcoind`], [`Lsp`], [`Client`] and [`Peer`] each own one child process with its own data folder and log file;
//! dropping the value ends that process and no other. [`World`] puts them together, [`ledger`] adds up all money of
//! all parties, [`wait`] polls for a condition and says what it last saw when the time is up.
//!
//! Nothing in here links the programs under test: they are started as an operator starts them and asked over their
//! local APIs, so the types of [`types`] are written from the documented API and are a check on it.

pub mod binaries;
pub mod bitcoind;
pub mod checks;
pub mod close;
pub mod closed;
pub mod cpfp;
pub mod crash;
pub mod daemon;
pub mod demo;
pub mod double_spend;
pub mod exit;
pub mod faults;
pub mod fees;
pub mod hold;
pub mod htlc_exit;
pub mod http;
pub mod jit;
pub mod ledger;
pub mod liquidity;
pub mod moving;
pub mod noise;
pub mod pace;
pub mod payments;
pub mod peer;
pub mod process;
pub mod relay;
pub mod rotate;
pub mod scale;
pub mod shares;
pub mod signed;
pub mod superseded;
pub mod traffic;
pub mod types;
pub mod wait;
pub mod watcher;
pub mod world;

pub use bitcoind::Bitcoind;
pub use daemon::{Client, Daemon, Lsp};
pub use peer::Peer;
pub use watcher::Watcher;
pub use world::World;
