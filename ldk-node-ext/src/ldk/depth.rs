//! Whether a factory channel's funding is as deep as the policy says (invariant 13): asked for every HTLC.
//!
//! `channel_ready` is held until the funding is deep ([`super::ChannelMessages`]) and cannot be taken back. But a
//! reorganisation can take the funding off the chain again, and then the channel pays with money that may never
//! exist. So each HTLC is looked at, by its payer, by who forwards it and by its payee, with what the chain says
//! at that moment.
//!
//! The same holds for a channel that is **stuck**: a state of its leaf from before a change of capacity has won its race,
//! so the output that LDK believes in can never be on the chain.

use std::sync::Arc;

use factory_core::faults::switch;
use lightning::ln::types::ChannelId;

use super::{Mapping, Outpoints};
use crate::chain::ChainIndex;
use crate::htlc_rules::Refusal;

/// Asks the index of the chain how deep a channel's funding is.
pub struct FundingDepth {
    outpoints: Arc<Outpoints>,
    index: Arc<ChainIndex>,
    mapping: Arc<Mapping>,
}

impl FundingDepth {
    pub(crate) fn new(outpoints: Arc<Outpoints>, index: Arc<ChainIndex>, mapping: Arc<Mapping>) -> Self {
        Self { outpoints, index, mapping }
    }

    /// Whether HTLCs may pass on a channel. An ordinary channel is LDK's own matter.
    pub(crate) fn suffices(&self, channel: &ChannelId) -> bool {
        self.check(channel).is_ok()
    }

    /// As [`Self::suffices`].
    ///
    /// # Errors
    /// Why they may not.
    pub(crate) fn check(&self, channel: &ChannelId) -> Result<(), Refusal> {
        if self.is_stuck(channel) {
            return Err(Refusal::Stuck);
        }
        self.is_deep(channel).then_some(()).ok_or(Refusal::Shallow)
    }

    /// Whether what LDK believes in can never be on the chain, since an older state is there.
    pub(crate) fn is_stuck(&self, channel: &ChannelId) -> bool {
        self.mapping.is_overtaken(channel) && !switch("virt.stuck.pays")
    }

    /// Whether the funding of a channel's factory is deep.
    pub(crate) fn is_deep(&self, channel: &ChannelId) -> bool {
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
    use crate::ldk::{channel_id, Real};
    use crate::store::Store;
    use bitcoin::constants::genesis_block;
    use bitcoin::{absolute, transaction, Amount, Block, Network, OutPoint, ScriptBuf, Transaction, TxOut};
    use lightning::chain::BlockLocator;

    #[test]
    fn what_a_reorganisation_takes_away_stops_payments() {
        let dir = tempfile::tempdir().unwrap();
        let genesis = genesis_block(Network::Regtest);
        let tip = BlockLocator::new(genesis.block_hash(), 0);
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let index = Arc::new(ChainIndex::open(Arc::clone(&store), tip).unwrap());
        let outpoints = Arc::new(Outpoints::default());
        let mapping = Arc::new(Mapping::load(store).unwrap());
        let depth = FundingDepth::new(Arc::clone(&outpoints), Arc::clone(&index), mapping);
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

    #[test]
    fn an_older_state_that_has_won_stops_payments() {
        let dir = tempfile::tempdir().unwrap();
        let genesis = genesis_block(Network::Regtest);
        let tip = BlockLocator::new(genesis.block_hash(), 0);
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let index = Arc::new(ChainIndex::open(Arc::clone(&store), tip).unwrap());
        let mapping = Arc::new(Mapping::load(store).unwrap());
        let depth = FundingDepth::new(Arc::default(), index, Arc::clone(&mapping));
        let state = |sat| Transaction {
            version: transaction::Version(3),
            lock_time: absolute::LockTime::ZERO,
            input: vec![],
            output: vec![TxOut { value: Amount::from_sat(sat), script_pubkey: ScriptBuf::new() }],
        };
        let real = |tx: &Transaction| Real {
            outpoint: OutPoint { txid: tx.compute_txid(), vout: 0 },
            output: tx.output[0].clone(),
        };
        let (old, new) = (state(500), state(700));
        let spliced = Transaction { version: transaction::Version(2), ..new.clone() };
        let v = real(&spliced).outpoint;
        let id = channel_id(real(&old).outpoint);
        mapping.add_channel(id, real(&old).outpoint, real(&old)).unwrap();
        mapping.add_virtual(id, v, spliced.clone()).unwrap();
        mapping.add_real(&v, real(&new)).unwrap();
        let block = |tx: &Transaction| Block { txdata: vec![tx.clone()], ..genesis.clone() };
        mapping.connect(&block(&old), 1);
        assert!(depth.suffices(&id), "the change is not locked, and may still be given up");
        mapping.disconnect(tip);
        mapping.retire(&real(&old).outpoint).unwrap();
        mapping.connect(&block(&new), 1);
        assert!(depth.suffices(&id), "the newest state is on the chain");
        mapping.disconnect(tip);
        mapping.connect(&block(&old), 1);
        assert_eq!(depth.check(&id), Err(Refusal::Stuck), "payments go on over a channel that is stuck");
        mapping.disconnect(tip);
        assert!(depth.suffices(&id), "a reorganisation has taken it off the chain");
    }
}
