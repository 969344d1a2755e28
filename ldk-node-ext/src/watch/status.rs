//! What a watcher says of itself. The record is also a file of its data directory, so that whoever asks needs
//! neither a connection nor the store, which the watcher has locked.

use std::fs;
use std::path::Path;

use bitcoin::{BlockHash, Txid};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::util::write_private;

/// Name of the file in the data directory.
pub const STATUS_FILE: &str = "status.json";

/// A watcher at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// The chain.
    pub network: String,
    /// Height up to which the leaves were looked at, blocks.
    pub height: u32,
    /// The block at that height.
    pub block_hash: BlockHash,
    /// Whether bitcoind had no newer block.
    pub synced: bool,
    /// When this was written, seconds since the Unix epoch; at least once a minute while the watcher runs.
    pub written_at: u64,
    /// The wallet that pays for the transactions.
    pub fee_wallet: FeeWallet,
    /// The leaves, in the order of the files.
    pub leaves: Vec<LeafStatus>,
}

/// The watcher's own wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeeWallet {
    /// Where to pay to.
    pub address: String,
    /// Confirmed coins, sat.
    pub confirmed_sat: u64,
    /// Unconfirmed coins, sat.
    pub unconfirmed_sat: u64,
    /// What publishing everything that is still ahead costs at the present feerate, sat.
    pub needed_sat: u64,
    /// That feerate, sat per 1000 weight units.
    pub sat_per_kwu: u64,
}

impl FeeWallet {
    /// What is missing, sat.
    pub fn missing_sat(&self) -> u64 {
        self.needed_sat.saturating_sub(self.confirmed_sat.saturating_add(self.unconfirmed_sat))
    }
}

/// Where a leaf stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeafState {
    /// Nothing to do before the expiry height unless somebody begins.
    Watching,
    /// Something is to be published later.
    Waiting,
    /// A transaction is out and not confirmed.
    Publishing,
    /// The fee wallet has no coin for the next transaction.
    NeedsCoin,
    /// The next transaction costs more than is left of the budget.
    OverBudget,
    /// bitcoind or the disk refused; it is tried again.
    Failing,
    /// The leaf's channels are on the chain.
    Settled,
    /// A distribution has paid the clients.
    Paid,
    /// Something else spent the funding output (a cooperative close) or another output of the path.
    Lost,
}

/// One leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafStatus {
    /// Instance id of the factory, hex.
    pub instance_id: String,
    /// Node id of the client, or of the LSP, that wrote the file.
    pub node_id: String,
    /// The position on the odometer of the path that is held.
    #[serde(default)]
    pub position: u64,
    /// The leaf's last transaction.
    pub leaf_txid: Option<Txid>,
    /// T, blocks.
    pub expiry_height: u32,
    /// Where it stands.
    pub state: LeafState,
    /// What comes next, in words.
    pub next: String,
    /// Height of the tip before which nothing is to be done, blocks.
    pub until_height: Option<u32>,
    /// Transactions of the path that have not confirmed.
    pub steps_left: usize,
    /// Blocks until the path would be complete, if each step were published as soon as it is valid.
    pub blocks_left: Option<u32>,
    /// Fees paid so far, sat.
    pub spent_sat: u64,
    /// Fees still to come at the present feerate if all of the path has to be published, sat.
    pub to_come_sat: u64,
    /// The path, in order.
    pub steps: Vec<StepStatus>,
}

/// One transaction of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStatus {
    /// What it is, in words.
    pub kind: String,
    /// Its id.
    pub txid: Txid,
    /// Confirmation height.
    pub confirmed_height: Option<u32>,
}

impl WatchStatus {
    /// Reads the status of the watcher of a data directory, whether or not it runs.
    ///
    /// # Errors
    /// [`Error::NotFound`] if no watcher has run there, [`Error::Io`], [`Error::Corrupt`].
    pub fn read(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join(STATUS_FILE);
        let name = || path.display().to_string();
        let bytes = fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format!("{}: a watcher's status", name())),
            _ => Error::Io { path: name(), source },
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::Corrupt { key: name(), reason: format!("not a watcher's status: {e}") })
    }

    /// Writes the status whole or not at all.
    pub(super) fn write(&self, data_dir: &Path) -> Result<(), Error> {
        let path = data_dir.join(STATUS_FILE);
        let io = |source| Error::Io { path: path.display().to_string(), source };
        let text = serde_json::to_string(self).map_err(|e| io(e.into()))?;
        write_private(&path, &text).map_err(io)
    }

    /// Whether both say the same but for the time.
    pub(super) fn same(&self, other: &Self) -> bool {
        Self { written_at: other.written_at, ..self.clone() } == *other
    }
}
