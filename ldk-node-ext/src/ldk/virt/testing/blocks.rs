//! Blocks by hand, for both nodes of a test.

use bitcoin::block::{Header, Version as BlockVersion};
use bitcoin::hashes::Hash;
use bitcoin::{Block, CompactTarget, Transaction, TxMerkleNode};
use lightning::chain::{BlockLocator, Listen};

use super::{unbroadcast, Pair};
use crate::ldk::virt::{InVForm, RetiredListener};
use crate::ldk::{Mapping, Retired};

/// Shows LDK's objects the blocks since they were written, as a start does: each from where it was.
pub(super) fn catch_up<M: Listen + Send + Sync>(
    blocks: &[Block],
    mapping: &Mapping,
    retired: &Retired,
    (best, manager): (BlockLocator, &(dyn Listen + Send + Sync)),
    monitors: &[(BlockLocator, M)],
) {
    for (block, height) in blocks.iter().zip(1..) {
        let connect = |from: &BlockLocator, listener: &dyn Listen| {
            if from.height < height {
                listener.block_connected(block, height);
            }
        };
        connect(&best, &RetiredListener { mapping, retired });
        connect(&best, &InVForm { mapping, to: manager });
        for (best, monitor) in monitors {
            connect(best, &InVForm { mapping, to: monitor });
        }
    }
}

impl Pair {
    /// A block with these transactions for both nodes.
    pub(crate) fn block(&mut self, txs: Vec<Transaction>) -> Block {
        let mut block = next_block(self.tip, txs);
        self.made += 1;
        block.header.nonce = self.made;
        self.tip = BlockLocator::new(block.block_hash(), self.tip.height + 1);
        for node in [&self.a, &self.b] {
            node.index.connect(&block, self.tip.height);
            let shown = node.mapping.connect(&block, self.tip.height);
            node.retired.connect(&block.header, self.tip.height, &shown);
            shown.connect(&*node.manager, &block, self.tip.height);
            shown.connect(&*node.monitor, &block, self.tip.height);
        }
        self.blocks.push(block.clone());
        block
    }

    /// Takes blocks back.
    pub(crate) fn disconnect_blocks(&mut self, count: usize) {
        self.blocks.truncate(self.blocks.len() - count);
        let height = u32::try_from(self.blocks.len()).unwrap();
        self.tip = BlockLocator::new(self.blocks.last().unwrap().block_hash(), height);
        for node in [&self.a, &self.b] {
            node.index.disconnect(self.tip);
            node.mapping.disconnect(self.tip);
            node.retired.disconnect(self.tip);
            node.manager.blocks_disconnected(self.tip);
            node.monitor.blocks_disconnected(self.tip);
        }
    }
}

/// A block on top of another.
pub(crate) fn next_block(tip: BlockLocator, txs: Vec<Transaction>) -> Block {
    let header = Header {
        version: BlockVersion::NO_SOFT_FORK_SIGNALLING,
        prev_blockhash: tip.block_hash,
        merkle_root: TxMerkleNode::all_zeros(),
        time: 1_700_000_000 + tip.height,
        bits: CompactTarget::from_consensus(0x207f_ffff),
        nonce: tip.height,
    };
    let mut txdata = vec![unbroadcast(0, Vec::new())];
    txdata.extend(txs);
    let mut block = Block { header, txdata };
    block.header.merkle_root = block.compute_merkle_root().unwrap();
    block
}
