//! The index of factory channels by the outpoints LDK knows: what must be held back, and why.

use std::collections::HashMap;
use std::sync::RwLock;

use bitcoin::{OutPoint, Txid};
use factory_core::faults::switch;
use lightning::ln::types::ChannelId;

use crate::util::{read, write};

/// A factory's instance id.
pub type InstanceId = [u8; 32];

/// What the wrappers know of one factory channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactoryChannel {
    /// Its factory.
    pub instance: InstanceId,
    /// Its first funding output, by which it is known: an output of a leaf state.
    pub outpoint: OutPoint,
    /// Where it is by the newest complete state of its leaf.
    pub place: OutPoint,
    /// The factory's funding is deep enough: `channel_ready` may pass.
    pub released: bool,
    /// The leaf state is confirmed: commitments may be published.
    pub on_chain: bool,
    /// The newest transaction this node has published that spends the channel.
    pub published: Option<Txid>,
    /// Blocks before an HTLC's expiry at which an exit has to start; none before the factory is stored.
    pub claim_budget: Option<u32>,
    /// The factory's funding output and the depth that the policy asks of it, blocks; none before the factory is
    /// stored.
    pub funding: Option<(OutPoint, u32)>,
}

/// The answer to "may this transaction leave?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Spends no factory channel.
    Foreign,
    /// Spends a factory channel whose leaf is not confirmed.
    Held(InstanceId),
    /// Spends a factory channel whose leaf is confirmed.
    Open,
}

#[derive(Default)]
struct Inner {
    channels: HashMap<ChannelId, FactoryChannel>,
    by_outpoint: HashMap<OutPoint, ChannelId>,
    /// Temporary channel ids of the plan being signed, whose `funding_created` is awaited.
    expected: HashMap<ChannelId, InstanceId>,
}

/// Shared by all wrappers.
#[derive(Default)]
pub struct Outpoints {
    inner: RwLock<Inner>,
}

impl Outpoints {
    /// A plan names this temporary channel id; its channel will be held from `funding_created` on.
    pub(crate) fn expect(&self, temporary: ChannelId, instance: InstanceId) {
        write(&self.inner).expected.insert(temporary, instance);
    }

    /// The plan is void.
    pub(crate) fn unexpect(&self, temporary: &ChannelId) {
        write(&self.inner).expected.remove(temporary);
    }

    /// Whether a plan names this temporary channel id.
    pub(crate) fn expected(&self, temporary: &ChannelId) -> Option<InstanceId> {
        read(&self.inner).expected.get(temporary).copied()
    }

    /// Adds a channel, held back in every way.
    pub(crate) fn insert(&self, instance: InstanceId, outpoint: OutPoint) -> ChannelId {
        let id = channel_id(outpoint);
        let mut inner = write(&self.inner);
        inner.by_outpoint.insert(outpoint, id);
        inner.channels.entry(id).or_insert(FactoryChannel {
            instance,
            outpoint,
            place: outpoint,
            released: false,
            on_chain: false,
            published: None,
            claim_budget: None,
            funding: None,
        });
        id
    }

    /// Another output that a channel may be on: of a newer state of its leaf.
    pub(crate) fn add_place(&self, id: ChannelId, place: OutPoint) {
        write(&self.inner).by_outpoint.insert(place, id);
    }

    /// The newest complete state of a channel's leaf has it here.
    pub(crate) fn set_place(&self, id: &ChannelId, place: OutPoint) {
        if let Some(c) = write(&self.inner).channels.get_mut(id) {
            c.place = place;
        }
    }

    /// Takes a channel out again that never came to be.
    pub(crate) fn remove(&self, outpoint: &OutPoint) {
        let mut inner = write(&self.inner);
        if let Some(id) = inner.by_outpoint.remove(outpoint) {
            inner.channels.remove(&id);
        }
    }

    /// Records the claim budget of a channel's factory, blocks, its funding output and the depth it has to have.
    pub(crate) fn set_terms(&self, id: &ChannelId, claim_budget: u32, funding: OutPoint, min_depth: u32) {
        if let Some(c) = write(&self.inner).channels.get_mut(id) {
            c.claim_budget = Some(claim_budget);
            c.funding = Some((funding, min_depth));
        }
    }

    /// What is known of a channel.
    pub(crate) fn get(&self, id: &ChannelId) -> Option<FactoryChannel> {
        read(&self.inner).channels.get(id).copied()
    }

    /// Marks a channel's `channel_ready` as free to pass.
    pub(crate) fn set_released(&self, id: &ChannelId) {
        if let Some(c) = write(&self.inner).channels.get_mut(id) {
            c.released = true;
        }
    }

    /// Gives a channel to another factory: an attempt that was superseded goes by a name of its own.
    pub(crate) fn rename(&self, from: &InstanceId, to: &InstanceId, outpoint: Option<OutPoint>) {
        for channel in write(&self.inner).channels.values_mut() {
            if channel.instance == *from && Some(channel.outpoint) == outpoint {
                channel.instance = *to;
            }
        }
    }

    /// Records whether a channel's leaf state is confirmed.
    pub(crate) fn set_on_chain(&self, outpoint: &OutPoint, on_chain: bool) {
        let mut inner = write(&self.inner);
        let id = inner.by_outpoint.get(outpoint).copied();
        if let Some(c) = id.and_then(|id| inner.channels.get_mut(&id)) {
            c.on_chain = on_chain;
        }
    }

    /// Notes that a transaction which spends factory channels has been handed to bitcoind.
    pub(crate) fn set_published(&self, tx: &bitcoin::Transaction) {
        let mut inner = write(&self.inner);
        for input in &tx.input {
            let id = inner.by_outpoint.get(&input.previous_output).copied();
            if let Some(c) = id.and_then(|id| inner.channels.get_mut(&id)) {
                c.published = Some(tx.compute_txid());
            }
        }
    }

    /// As [`Self::set_on_chain`], for all channels on outputs of one leaf transaction.
    pub(crate) fn set_tx_on_chain(&self, txid: &Txid, on_chain: bool) {
        let mut inner = write(&self.inner);
        let of_tx = inner.by_outpoint.iter().filter(|(place, _)| place.txid == *txid);
        let ids: Vec<ChannelId> = of_tx.map(|(_, id)| *id).collect();
        for id in ids {
            if let Some(channel) = inner.channels.get_mut(&id) {
                channel.on_chain = on_chain;
            }
        }
    }

    /// Whether `channel_ready` of this channel has to wait.
    pub(crate) fn holds_ready(&self, id: &ChannelId) -> bool {
        read(&self.inner).channels.get(id).is_some_and(|c| !c.released) && !switch("ready.not_held")
    }

    /// Whether a transaction with these inputs may leave.
    pub(crate) fn gate<'a>(&self, inputs: impl IntoIterator<Item = &'a OutPoint>) -> Gate {
        let inner = read(&self.inner);
        let mut answer = Gate::Foreign;
        for outpoint in inputs {
            let channel = inner.by_outpoint.get(outpoint).and_then(|id| inner.channels.get(id));
            match channel {
                Some(c) if !c.on_chain && !switch("gate.open") => return Gate::Held(c.instance),
                Some(_) => answer = Gate::Open,
                None => {}
            }
        }
        answer
    }

    /// Whether LDK's closing transaction of this channel has to be kept instead of broadcast.
    pub(crate) fn is_factory(&self, id: &ChannelId) -> bool {
        read(&self.inner).channels.contains_key(id)
    }
}

/// The channel id that BOLT 2 derives from a funding outpoint.
pub(crate) fn channel_id(outpoint: OutPoint) -> ChannelId {
    ChannelId::v1_from_funding_outpoint(lightning::chain::transaction::OutPoint {
        txid: outpoint.txid,
        // A tree transaction has at most a few hundred outputs; funding_created carries a u16.
        index: u16::try_from(outpoint.vout).unwrap_or(u16::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::Hash;

    #[test]
    fn a_channel_is_on_the_chain_with_any_state_of_its_leaf() {
        let index = Outpoints::default();
        let leaf = OutPoint { txid: bitcoin::Txid::from_byte_array([1; 32]), vout: 0 };
        let newer = OutPoint { txid: bitcoin::Txid::from_byte_array([2; 32]), vout: 0 };
        let id = index.insert([7; 32], leaf);
        index.add_place(id, newer);
        assert_eq!(index.get(&id).unwrap().place, leaf, "not before it is complete");
        index.set_place(&id, newer);
        assert_eq!(index.get(&id).map(|c| (c.outpoint, c.place)), Some((leaf, newer)));
        assert_eq!(index.gate([&newer]), Gate::Held([7; 32]));
        index.set_tx_on_chain(&newer.txid, true);
        assert_eq!((index.gate([&newer]), index.get(&id).unwrap().on_chain), (Gate::Open, true));
        index.set_tx_on_chain(&newer.txid, false);
        assert_eq!(index.gate([&leaf]), Gate::Held([7; 32]));
    }

    #[test]
    fn nothing_leaves_before_its_leaf_is_confirmed() {
        let index = Outpoints::default();
        let leaf = OutPoint { txid: bitcoin::Txid::from_byte_array([1; 32]), vout: 0 };
        let other = OutPoint { vout: 1, ..leaf };
        let id = index.insert([7; 32], leaf);
        assert_eq!(index.gate([&other]), Gate::Foreign);
        assert_eq!(index.gate([&other, &leaf]), Gate::Held([7; 32]));
        index.set_on_chain(&leaf, true);
        assert_eq!(index.gate([&other, &leaf]), Gate::Open);
        // a reorganization closes it again
        index.set_on_chain(&leaf, false);
        assert_eq!(index.gate([&leaf]), Gate::Held([7; 32]));
        assert!(index.holds_ready(&id));
        index.set_released(&id);
        assert!(!index.holds_ready(&id));
        // inserting again (after a restart) does not undo a release
        index.insert([7; 32], leaf);
        assert!(!index.holds_ready(&id));
    }
}
