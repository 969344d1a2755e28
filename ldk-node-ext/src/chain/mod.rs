//! The chain as the node sees it: bitcoind, fee rates, and the feed of blocks to every part.

mod bitcoind;
mod feed;
mod fees;
mod index;

pub(crate) use bitcoind::{Bitcoind, MempoolEntry, SubmitError};
pub(crate) use feed::{ChainFeed, ChainSync, IndexListener, OwnParts, WalletListener};
pub use fees::Fees;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use index::Stored as StoredIndex;
pub(crate) use index::{ChainIndex, Found, Spend};
