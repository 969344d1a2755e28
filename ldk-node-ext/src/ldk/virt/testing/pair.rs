//! The two nodes and their channel.

use bitcoin::constants::genesis_block;
use bitcoin::{Amount, Block, Network, OutPoint, Transaction, TxOut};
use lightning::chain::BlockLocator;
use lightning::events::Event;
use lightning::ln::channelmanager::TrustedChannelFeatures;
use lightning::ln::msgs::{BaseMessageHandler, Init};
use lightning::ln::peer_handler::CustomMessageHandler;
use lightning::ln::types::ChannelId;
use tempfile::TempDir;

use super::{folder, funding_of_the_factory, live, unbroadcast, Node, CAPACITY_SAT, INSTANCE, PUSH_MSAT};
use crate::util::lock;

/// Two nodes with a factory channel between them: `a` has funded it (the provider), `b` is the client.
pub(crate) struct Pair {
    pub(crate) a: Node,
    pub(crate) b: Node,
    /// The channel.
    pub(crate) channel: ChannelId,
    /// The leaf's first state, whose output 0 LDK takes for the funding output.
    pub(crate) leaf: Transaction,
    /// The tip, and how high it is.
    pub(crate) tip: BlockLocator,
    /// The chain, from height 1 on.
    pub(crate) blocks: Vec<Block>,
    /// Blocks ever made: no two are the same.
    pub(super) made: u32,
    pub(super) connected: bool,
    pub(super) folders: [TempDir; 2],
}

impl Pair {
    /// Two nodes with an open channel, at rest and on disk.
    pub(crate) fn open() -> Self {
        let genesis = genesis_block(Network::Regtest);
        let tip = BlockLocator::new(genesis.block_hash(), 0);
        let folders = [folder(), folder()];
        let a = Node::start(folders[0].path(), tip, &[]);
        let b = Node::start(folders[1].path(), tip, &[]);
        let leaf = unbroadcast(1, Vec::new());
        let mut pair = Self {
            a,
            b,
            channel: ChannelId([0; 32]),
            leaf,
            tip,
            blocks: Vec::new(),
            made: 0,
            connected: false,
            folders,
        };
        pair.connect();
        pair.settle();
        pair.open_channel();
        pair
    }

    fn open_channel(&mut self) {
        let config = Some(self.a.manager.get_current_config());
        self.a.manager.create_channel(self.b.id, CAPACITY_SAT, PUSH_MSAT, 1, None, config).unwrap();
        self.settle();
        for event in self.b.take_events() {
            let Event::OpenChannelRequest { temporary_channel_id: id, counterparty_node_id, .. } = event
            else {
                continue;
            };
            self.b.outpoints.expect(id, INSTANCE);
            self.b
                .manager
                .accept_inbound_channel_from_trusted_peer(
                    &id,
                    &counterparty_node_id,
                    1,
                    TrustedChannelFeatures::ZeroConf,
                    None,
                )
                .unwrap();
        }
        self.settle();
        for event in self.a.take_events() {
            let Event::FundingGenerationReady { temporary_channel_id, output_script, .. } = event else {
                continue;
            };
            let value = Amount::from_sat(CAPACITY_SAT);
            self.leaf = unbroadcast(1, vec![TxOut { value, script_pubkey: output_script }]);
            let txid = self.leaf.compute_txid();
            self.channel = self.a.outpoints.insert(INSTANCE, OutPoint { txid, vout: 0 });
            let txo = lightning::chain::transaction::OutPoint { txid, index: 0 };
            self.a
                .manager
                .unsafe_manual_funding_transaction_generated(temporary_channel_id, self.b.id, txo)
                .unwrap();
        }
        self.settle();
        self.block(vec![funding_of_the_factory()]);
        for node in [&self.a, &self.b] {
            node.channel_messages.release(&self.channel);
            live(&node.outpoints, &self.channel);
        }
        self.settle();
        for node in [&self.a, &self.b] {
            assert!(node.manager.list_channels()[0].is_usable, "{:?}", lock(&node.complaints));
            node.take_events();
        }
    }

    /// The outpoint LDK believes in: V.
    pub(crate) fn funding(&self) -> OutPoint {
        self.a.manager.list_channels()[0].funding_txo.unwrap().into_bitcoin_outpoint()
    }

    /// The nodes, that one first.
    pub(crate) fn sides(&self, b_first: bool) -> [&Node; 2] {
        if b_first {
            [&self.b, &self.a]
        } else {
            [&self.a, &self.b]
        }
    }

    /// Delivers the oldest message of a node.
    pub(crate) fn deliver(&self, from_b: bool) -> bool {
        let [from, to] = self.sides(from_b);
        let message = lock(&from.out).pop_front();
        let Some(message) = message else { return false };
        to.receive(from.id, message);
        true
    }

    /// Everything written and every message delivered until nothing is left to do.
    pub(crate) fn settle(&self) {
        let mut idle = 0;
        while idle < 3 {
            let mut busy = false;
            for from_b in [false, true] {
                let [node, _] = self.sides(from_b);
                busy |= node.monitor.pending_operation_count() > 0;
                node.persist();
                node.run();
                while self.connected && self.deliver(from_b) {
                    busy = true;
                }
                busy |= node.manager.needs_pending_htlc_processing();
            }
            idle = if busy { 0 } else { idle + 1 };
        }
    }

    /// Both notice that the other is there.
    pub(crate) fn connect(&mut self) {
        assert!(!std::mem::replace(&mut self.connected, true));
        for from_b in [false, true] {
            let [node, peer] = self.sides(from_b);
            let mut features = peer.channel_messages.provided_init_features(node.id);
            features |= peer.factory_messages.provided_init_features(node.id);
            let init = Init { features, networks: None, remote_network_address: None };
            node.channel_messages.peer_connected(peer.id, &init, from_b).unwrap();
            node.factory_messages.peer_connected(peer.id, &init, from_b).unwrap();
        }
    }

    /// Both lose the other; what is under way is lost.
    pub(crate) fn disconnect(&mut self) {
        self.connected = false;
        for from_b in [false, true] {
            let [node, peer] = self.sides(from_b);
            node.channel_messages.peer_disconnected(peer.id);
            node.factory_messages.peer_disconnected(peer.id);
            lock(&node.out).clear();
        }
    }

    /// One process dies and starts again with what was on disk; the other notices. They are not connected then.
    pub(crate) fn restart(mut self, b: bool) -> Self {
        if self.connected {
            self.disconnect();
        }
        let dir = self.folders[usize::from(b)].path().to_owned();
        // The store is one process's alone: the old one has to be gone first.
        let Self { a, b: client, .. } = self;
        let (a, client) = if b {
            drop(client);
            (a, Node::start(&dir, self.tip, &self.blocks))
        } else {
            drop(a);
            (Node::start(&dir, self.tip, &self.blocks), client)
        };
        Self { a, b: client, ..self }
    }

    /// A payment from one side to the other, claimed.
    pub(crate) fn pay(&self, from_b: bool, msat: u64) {
        let [from, to] = self.sides(from_b);
        let hash = from.send(to, msat);
        self.settle();
        for preimage in to.claimable() {
            to.manager.claim_funds(preimage);
        }
        self.settle();
        let sent = |e: &Event| matches!(e, Event::PaymentSent { payment_hash, .. } if *payment_hash == hash);
        assert!(from.take_events().iter().any(sent), "payment of {msat} msat");
    }
}
