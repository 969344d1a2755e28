//! Whether a factory channel's funding is as deep as the policy says (invariant 13): asked for every HTLC.
//!
//! `channel_ready` is held until the funding is deep ([`super::ChannelMessages`]) and cannot be taken back. But a
//! reorganisation can take the funding off the chain again, and then the channel pays with money that may never
//! exist. So each HTLC is looked at, by its payer, by who forwards it and by its payee, with what the chain says
//! at that moment.

use std::sync::Arc;

use factory_core::faults::switch;
use lightning::ln::types::ChannelId;

use super::Outpoints;
use crate::chain::ChainIndex;

/// Asks the index of the chain how deep a channel's funding is.
pub struct FundingDepth {
    outpoints: Arc<Outpoints>,
    index: Arc<ChainIndex>,
}

impl FundingDepth {
    pub(crate) fn new(outpoints: Arc<Outpoints>, index: Arc<ChainIndex>) -> Self {
        Self { outpoints, index }
    }

    /// Whether HTLCs may pass on a channel. An ordinary channel is LDK's own matter.
    pub(crate) fn suffices(&self, channel: &ChannelId) -> bool {
        if switch("node.depth.ignored") {
            return true;
        }
        let Some(factory) = self.outpoints.get(channel) else { return true };
        factory.funding.is_some_and(|(outpoint, least)| {
            let confirmed =
                self.index.confirmation(&outpoint.txid).filter(|_| !self.index.is_false(&outpoint));
            confirmed.is_some_and(|c| self.index.depth(c.height) >= least)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ldk::channel_id;
    use crate::store::Store;
    use bitcoin::constants::genesis_block;
    use bitcoin::{absolute, transaction, Block, Network, OutPoint, Transaction};
    use lightning::chain::BlockLocator;

    #[test]
    fn what_a_reorganisation_takes_away_stops_payments() {
        let dir = tempfile::tempdir().unwrap();
        let genesis = genesis_block(Network::Regtest);
        let tip = BlockLocator::new(genesis.block_hash(), 0);
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let index = Arc::new(ChainIndex::open(store, tip).unwrap());
        let outpoints = Arc::new(Outpoints::default());
        let depth = FundingDepth::new(Arc::clone(&outpoints), Arc::clone(&index));
        let tx = Transaction {
            version: transaction::Version(3),
            lock_time: absolute::LockTime::ZERO,
            input: vec![],
            output: vec![],
        };
        let funding = OutPoint { txid: tx.compute_txid(), vout: 0 };
        let leaf = OutPoint { vout: 7, ..funding };
        assert!(depth.suffices(&channel_id(leaf)), "an ordinary channel");
        let id = outpoints.insert([1; 32], leaf);
        assert!(!depth.suffices(&id), "of a factory that is not stored");
        outpoints.set_terms(&id, 300, funding, 2);
        index.watch([funding.txid], []);
        assert!(!depth.suffices(&id), "unconfirmed");
        let empty = Block { txdata: vec![], ..genesis };
        index.connect(&Block { txdata: vec![tx.clone()], ..empty.clone() }, 1);
        assert!(!depth.suffices(&id), "one block of two");
        index.connect(&empty, 2);
        assert!(depth.suffices(&id));
        index.disconnect(BlockLocator::new(empty.block_hash(), 1));
        assert!(!depth.suffices(&id), "one block fell");
        index.disconnect(tip);
        assert!(!depth.suffices(&id), "both fell");
        index.connect(&Block { txdata: vec![tx], ..empty.clone() }, 1);
        index.connect(&empty, 2);
        assert!(depth.suffices(&id), "deep again");
    }
}
