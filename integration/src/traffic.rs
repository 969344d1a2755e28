//! Other people's transactions, so that blocks are full and feerates rise.

use anyhow::Result;
use bitcoin::{Amount, Txid};

use crate::cpfp::Purse;
use crate::Bitcoind;

/// Outputs of a large foreign transaction, and of a small one. Of each feerate there is one of both: what a block has
/// room for beside the large ones, the small ones fill.
const OUTPUTS: [u64; 2] = [60, 4];
/// Virtual size of a P2WPKH output (BIP 141), vB.
const OUTPUT_VB: u64 = 31;
/// Virtual size of the rest, one P2WPKH input included, vB.
const REST_VB: u64 = 79;
/// A coin that pays the outputs and any fee here, sat.
const COIN_SAT: u64 = 150_000;

fn vsize(outputs: u64) -> u64 {
    REST_VB + OUTPUT_VB * outputs
}

/// Payments that are ready to be sent.
pub struct Traffic {
    purse: Purse,
    count: u64,
}

impl Traffic {
    /// Gets the coins for `vbytes` vB of payments. Mines two blocks.
    ///
    /// # Errors
    /// If bitcoind cannot pay.
    pub fn prepare(bitcoind: &Bitcoind, vbytes: u64) -> Result<Self> {
        let count = vbytes.div_ceil(OUTPUTS.into_iter().map(vsize).sum()).max(1);
        let coins = usize::try_from(count)? * OUTPUTS.len();
        Ok(Self { purse: Purse::fill_with(bitcoind, coins, COIN_SAT)?, count })
    }

    /// Puts them all into the mempool, at feerates from `least` to `most` sat/vB, evenly spread.
    ///
    /// # Errors
    /// If bitcoind takes one of them not.
    pub fn send(mut self, bitcoind: &Bitcoind, least: u64, most: u64) -> Result<Vec<Txid>> {
        let mut sent = Vec::new();
        for number in 0..self.count {
            let feerate = least + most.saturating_sub(least) * number / self.count;
            for outputs in OUTPUTS {
                let tx = self.purse.divide(usize::try_from(outputs)?, feerate * vsize(outputs))?;
                sent.push(bitcoind.send(&tx)?);
            }
        }
        Ok(sent)
    }
}

/// Lets bitcoind mine blocks of at most this many weight units from now on. It is stopped and started for it.
///
/// # Errors
/// If it does not come back.
pub fn small_blocks(bitcoind: &mut Bitcoind, weight: u32) -> Result<()> {
    let file = bitcoind.data_dir().join("bitcoin.conf");
    let settings = std::fs::read_to_string(&file)?;
    bitcoind.stop()?;
    // The last section of the file is the chain's.
    std::fs::write(&file, format!("{settings}blockmaxweight={weight}\n"))?;
    bitcoind.restart()
}

/// Lets bitcoind take nothing into its mempool that pays less than this, sat/vB, and forget what is there and does. It
/// is stopped and started for it.
///
/// # Errors
/// If it does not come back.
pub fn raise_floor(bitcoind: &mut Bitcoind, sat_per_vb: u64) -> Result<()> {
    let btc_per_kvb = Amount::from_sat(sat_per_vb * 1000).to_btc();
    bitcoind.stop()?;
    // After the flags it was started with, of which one may be the same: the last one counts.
    bitcoind.add_flag(&format!("-minrelaytxfee={btc_per_kvb:.8}"));
    bitcoind.restart()
}
