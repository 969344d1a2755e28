//! How a watcher is configured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bitcoin::Network;

use crate::config::{check_feerates, check_poll_interval, RpcAuth};
use crate::error::Error;

/// Most folders of one watcher.
const MAX_FOLDERS: usize = 100;

/// A watcher's configuration.
#[derive(Clone, Debug)]
pub struct WatcherConfig {
    /// Where its fee wallet and its status are kept.
    pub data_dir: PathBuf,
    /// Bitcoin network.
    pub network: Network,
    /// Folders that nodes share with it, from which it takes their paths.
    pub folders: Vec<PathBuf>,
    /// bitcoind's RPC address.
    pub bitcoind_rpc: SocketAddr,
    /// bitcoind's RPC login.
    pub bitcoind_auth: RpcAuth,
    /// How often bitcoind is asked for new blocks.
    pub poll_interval: Duration,
    /// Used where bitcoind has no estimate, sat/vB.
    pub fallback_feerate_sat_per_vb: u32,
    /// Never pay more than this, sat/vB.
    pub max_feerate_sat_per_vb: u32,
    /// Most fees for the transactions of one leaf, sat; none: only the feerate is bounded.
    pub max_fee_sat: Option<u64>,
}

impl WatcherConfig {
    /// With defaults: every 5 seconds, 5 sat/vB, at most 500 sat/vB, no other bound.
    pub fn new(
        data_dir: PathBuf,
        network: Network,
        bitcoind_rpc: SocketAddr,
        bitcoind_auth: RpcAuth,
    ) -> Self {
        Self {
            data_dir,
            network,
            folders: Vec::new(),
            bitcoind_rpc,
            bitcoind_auth,
            poll_interval: Duration::from_secs(5),
            fallback_feerate_sat_per_vb: 5,
            max_feerate_sat_per_vb: 500,
            max_fee_sat: None,
        }
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        check_feerates(self.fallback_feerate_sat_per_vb, self.max_feerate_sat_per_vb)?;
        if self.max_fee_sat == Some(0) {
            return Err(Error::invalid("max_fee_sat", "must be at least 1"));
        }
        if self.folders.len() > MAX_FOLDERS {
            return Err(Error::invalid("watch_folders", format!("must be at most {MAX_FOLDERS}")));
        }
        check_poll_interval(self.poll_interval)
    }
}
