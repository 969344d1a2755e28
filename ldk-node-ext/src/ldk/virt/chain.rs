//! From the chain to LDK: what a block shows of rotated channels, in the form that LDK knows.
//!
//! A block's own transactions are passed on as they are: ordinary channels have theirs among them, with the true
//! positions of which their short channel ids are made. V-forms are shown *in addition*, behind them:
//!
//! - for a transaction with a real outpoint R of some V: the transaction that LDK believes creates V;
//! - for a transaction that spends R, and for what descends from it: the same with R's ids replaced, witnesses kept
//!   (LDK reads preimages out of them).
//!
//! Where both forms are one (V == R1) nothing is added. Their positions go on where the block ends, so they ascend and
//! are no other transaction's, and V's short channel id is nobody else's. A parent stands before its child, since it
//! does in the block.
//!
//! LDK has forgotten a retired V, and asserts that it sees no spend of what it took for unconfirmed; so what is below
//! one is kept apart, for the monitor that still watches it ([`Shown::apart`]). So is what is below a V' of which LDK's
//! monitor knows nothing yet: to it the transaction that creates V' would be a close of V.
//!
//! Reading a block twice changes nothing: at a start each of LDK's objects catches up from where it was.

use std::collections::HashSet;

use bitcoin::block::Header;
use bitcoin::{Block, BlockHash, OutPoint, Transaction, Txid};
use factory_core::faults::switch;
use lightning::chain::transaction::TransactionData;
use lightning::chain::{BlockLocator, Listen};
use lightning::ln::types::ChannelId;

use super::map::{output_of, Channel, Form, Inner, Mapping, Place, Real, MAX_FORMS};
use crate::util::{read, write};

/// Items of the witness that spends an HTLC output by a transaction both sides have signed (BOLT 3): empty, two
/// signatures, preimage or empty, script. LDK follows those outputs, for a penalty, and no others.
const HTLC_TX_WITNESS: usize = 5;

/// What a block shows of rotated channels.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// V-forms for LDK, behind the block's own transactions.
    pub(crate) live: Vec<Transaction>,
    /// V-forms of what is below outpoints that LDK's monitor has forgotten, or does not know yet.
    pub(crate) apart: Vec<(OutPoint, Transaction)>,
}

impl Shown {
    /// Hands a block to LDK.
    pub(crate) fn connect(&self, to: &dyn Listen, block: &Block, height: u32) {
        if self.live.is_empty() {
            return to.block_connected(block, height);
        }
        let data: Vec<(usize, &Transaction)> = block.txdata.iter().chain(&self.live).enumerate().collect();
        to.filtered_block_connected(&block.header, &data, height);
    }
}

/// Shows LDK's objects what they have to see, also while they catch up at start.
pub(crate) struct InVForm<'a> {
    pub(crate) mapping: &'a Mapping,
    pub(crate) to: &'a (dyn Listen + Send + Sync),
}

impl Listen for InVForm<'_> {
    fn filtered_block_connected(&self, _header: &Header, _txdata: &TransactionData, height: u32) {
        tracing::error!(height, "translation needs whole blocks");
    }
    fn block_connected(&self, block: &Block, height: u32) {
        self.mapping.connect(block, height).connect(self.to, block, height);
    }
    fn blocks_disconnected(&self, fork: BlockLocator) {
        self.mapping.disconnect(fork);
        self.to.blocks_disconnected(fork);
    }
}

/// A transaction of a block in V-form.
struct InV {
    tx: Transaction,
    under: (OutPoint, OutPoint),
    followed: Option<Vec<u32>>,
}

impl Inner {
    /// Takes note of an R that this transaction creates; the Vs it is under.
    fn created(&mut self, tx: &Transaction, txid: Txid, place: Place) -> Vec<(ChannelId, OutPoint)> {
        if !self.creations.contains(&txid) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (id, channel) in &mut self.channels {
            for v in &mut channel.virtuals {
                let is_this =
                    |r: &&Real| r.outpoint.txid == txid && output_of(&r.outpoint, tx) == Some(&r.output);
                let real = v.reals.iter().find(is_this);
                if let Some(real) = real {
                    v.confirmed = Some((real.outpoint, place));
                    found.push((*id, v.outpoint));
                }
            }
        }
        // The same order whenever the block is read.
        found.sort();
        found
    }

    /// The V-form of a transaction that spends an R, or descends from one that does.
    fn in_v_form(&self, tx: &Transaction) -> Option<InV> {
        let mut under = None;
        let mut spends_r = false;
        let mut followed = Vec::new();
        let mut inputs = Vec::with_capacity(tx.input.len());
        for (at, input) in tx.input.iter().enumerate() {
            let spent = input.previous_output;
            let mut shown = input.clone();
            if let Some(v) = self.by_real.get(&spent) {
                (under, spends_r) = (Some((*v, spent)), true);
                shown.previous_output = *v;
            } else if let Some(parent) = self.form(&spent.txid) {
                if parent.followed.as_ref().is_none_or(|outputs| outputs.contains(&spent.vout)) {
                    under = under.or(Some(parent.under));
                    shown.previous_output.txid = parent.virt;
                    let second_stage = parent.followed.is_none() && input.witness.len() == HTLC_TX_WITNESS;
                    followed.extend(u32::try_from(at).ok().filter(|_| second_stage));
                }
            }
            inputs.push(shown);
        }
        let followed = if spends_r { None } else { Some(followed) };
        // Most transactions are no one's; only the others are copied whole.
        under.map(|under| InV { tx: Transaction { input: inputs, ..tx.clone() }, under, followed })
    }

    fn form(&self, real: &Txid) -> Option<&Form> {
        let (id, at) = self.by_real_txid.get(real)?;
        self.channels.get(id)?.forms.get(*at).filter(|f| f.real == *real)
    }

    /// Keeps both ids of a confirmed transaction; its channel, if that changes anything.
    fn keep(&mut self, form: Form) -> Option<ChannelId> {
        let id = *self.by_virtual.get(&form.under.0)?;
        let channel = self.channels.get_mut(&id)?;
        match channel.forms.iter_mut().find(|f| f.real == form.real) {
            Some(known) if known.place == form.place => return None,
            Some(known) => known.place = form.place,
            None => {
                make_room(channel);
                channel.forms.push(form);
                let forms = channel.forms.iter().enumerate();
                self.by_real_txid.extend(forms.map(|(at, f)| (f.real, (id, at))));
            }
        }
        Some(id)
    }

    /// What was noted of other blocks: those for which `gone` says that they are not in the chain any more.
    fn forget(&mut self, gone: impl Fn(&Place) -> bool) -> HashSet<ChannelId> {
        let mut changed = HashSet::new();
        for (id, channel) in &mut self.channels {
            for v in &mut channel.virtuals {
                if v.confirmed.is_some_and(|(_, place)| gone(&place)) {
                    v.confirmed = None;
                    changed.insert(*id);
                }
            }
            for form in &mut channel.forms {
                if form.place.is_some_and(|place| gone(&place)) {
                    form.place = None;
                    changed.insert(*id);
                }
            }
        }
        changed
    }
}

/// Beyond the limit that the chain sets by itself there are only what reorganisations have left.
fn make_room(channel: &mut Channel) {
    if channel.forms.len() >= MAX_FORMS {
        channel.forms.retain(|f| f.place.is_some());
    }
}

impl Mapping {
    /// Reads a block; returns what LDK has to see of it beside itself.
    pub(crate) fn connect(&self, block: &Block, height: u32) -> Shown {
        if read(&self.inner).channels.is_empty() {
            return Shown::default();
        }
        let mut inner = write(&self.inner);
        let hash: BlockHash = block.block_hash();
        let place = Place { height, block: hash };
        // After a restart on another branch nobody may have told that the old one is gone.
        let mut changed = inner.forget(|p| p.height == height && p.block != hash);
        let mut shown = Shown::default();
        let mut shown_ids = HashSet::new();
        for tx in &block.txdata {
            let txid = tx.compute_txid();
            for (channel, v) in inner.created(tx, txid, place) {
                changed.insert(channel);
                let Some((_, known)) = inner.virtual_ref(&v) else { continue };
                if v.txid == txid || known.retired || known.ahead || switch("virt.creation.unseen") {
                    continue;
                }
                match &known.creation {
                    Some(creation) if shown_ids.insert(v.txid) => shown.live.push(creation.0.clone()),
                    Some(_) => {}
                    None => {
                        tracing::error!(%v, "confirmed, and the transaction that LDK waits for is not known")
                    }
                }
            }
            let Some(InV { tx: in_v, under, followed }) = inner.in_v_form(tx) else { continue };
            let virt = in_v.compute_txid();
            changed.extend(inner.keep(Form { real: txid, virt, under, followed, place: Some(place) }));
            if inner.virtual_ref(&under.0).is_some_and(|(_, known)| known.retired || known.ahead) {
                shown.apart.push((under.0, in_v));
            } else if virt != txid && !switch("virt.spend.unseen") {
                shown.live.push(in_v);
            }
        }
        self.write_changed(&mut inner, changed);
        shown
    }

    /// Forgets what was confirmed above a block.
    pub(crate) fn disconnect(&self, fork: BlockLocator) {
        let mut inner = write(&self.inner);
        if !switch("virt.reorg.kept") {
            let changed = inner.forget(|p| p.height > fork.height);
            self.write_changed(&mut inner, changed);
        }
    }

    /// Writes records before LDK hears of what is in them, and what could not be written before.
    fn write_changed(&self, inner: &mut Inner, changed: HashSet<ChannelId>) {
        inner.unwritten.extend(changed);
        let waiting: Vec<ChannelId> = inner.unwritten.iter().copied().collect();
        for id in waiting {
            let written = inner.channels.get(&id).map_or(Ok(()), |channel| self.write_channel(&id, channel));
            match written {
                Ok(()) => {
                    inner.unwritten.remove(&id);
                }
                Err(e) => {
                    tracing::error!(channel = %id, error = %e, "outpoints not stored; with the next block again")
                }
            }
        }
    }

    /// The spend of V that is confirmed: in R-form, and the height of its block.
    pub(crate) fn spend(&self, v: &OutPoint) -> Option<(Txid, u32)> {
        let inner = read(&self.inner);
        let id = inner.by_virtual.get(v)?;
        let forms = inner.channels.get(id)?.forms.iter();
        let mut commitments = forms.filter(|f| f.under.0 == *v && f.followed.is_none());
        commitments.find_map(|f| f.place.map(|place| (f.real, place.height)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bitcoin::constants::genesis_block;
    use bitcoin::{absolute, transaction, Amount, Network, ScriptBuf, TxIn, TxOut, Witness};

    use super::*;
    use crate::store::Store;

    /// A transaction that spends these, each with so many witness items, and has outputs of these values.
    fn tx(spends: &[(OutPoint, usize)], sat: &[u64]) -> Transaction {
        let input = spends.iter().map(|(previous_output, items)| TxIn {
            previous_output: *previous_output,
            witness: Witness::from_slice(&vec![[1]; *items]),
            ..Default::default()
        });
        let output = |sat: &u64| TxOut { value: Amount::from_sat(*sat), script_pubkey: ScriptBuf::new() };
        Transaction {
            version: transaction::Version(3),
            lock_time: absolute::LockTime::ZERO,
            input: input.collect(),
            output: sat.iter().map(output).collect(),
        }
    }

    fn out(tx: &Transaction, vout: u32) -> OutPoint {
        OutPoint { txid: tx.compute_txid(), vout }
    }

    fn real(tx: &Transaction, vout: u32) -> Real {
        let outpoint = out(tx, vout);
        Real { outpoint, output: output_of(&outpoint, tx).unwrap().clone() }
    }

    fn block(txs: &[&Transaction]) -> Block {
        let mut block = genesis_block(Network::Regtest);
        block.txdata.extend(txs.iter().map(|tx| (*tx).clone()));
        block.header.merkle_root = block.compute_merkle_root().unwrap();
        block
    }

    /// Notes what LDK is shown.
    #[derive(Default)]
    struct Seen(Mutex<Vec<(usize, Txid)>>);

    impl Listen for Seen {
        fn filtered_block_connected(&self, _header: &Header, data: &TransactionData, _height: u32) {
            *crate::util::lock(&self.0) = data.iter().map(|(at, tx)| (*at, tx.compute_txid())).collect();
        }
        fn blocks_disconnected(&self, _fork: BlockLocator) {}
    }

    /// Two channels on one leaf: V == R1 for both; the second has been spliced to V'.
    fn leaf(store: &Arc<Store>) -> (Mapping, [Transaction; 3]) {
        let map = Mapping::load(Arc::clone(store)).unwrap();
        let parent = OutPoint { vout: 7, ..OutPoint::null() };
        let first = tx(&[(parent, 1)], &[50, 60]);
        let spliced = tx(&[(out(&first, 1), 1)], &[70]);
        let second = tx(&[(parent, 2)], &[50, 70, 9]);
        let ids = [ChannelId([1; 32]), ChannelId([2; 32])];
        for (id, vout) in ids.iter().zip(0..) {
            map.add_channel(*id, out(&first, vout), real(&first, vout)).unwrap();
            map.set_creation(&out(&first, vout), first.clone()).unwrap();
        }
        map.add_real(&out(&first, 0), real(&second, 0)).unwrap();
        map.add_virtual(ids[1], out(&spliced, 0), spliced.clone()).unwrap();
        map.overtaken(&out(&spliced, 0)).unwrap();
        map.add_real(&out(&spliced, 0), real(&second, 1)).unwrap();
        map.retire(&out(&first, 1)).unwrap();
        (map, [first, spliced, second])
    }

    #[test]
    fn a_leaf_state_is_shown_as_what_ldk_waits_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let (map, [first, spliced, second]) = leaf(&store);
        let (other, seen) = (tx(&[], &[3]), Seen::default());
        let with_second = block(&[&second, &other]);
        let shown = map.connect(&with_second, 5);
        assert_eq!(shown.live, [first.clone(), spliced.clone()], "one for each V, once");
        assert_eq!(map.connect(&with_second, 5), shown, "as often as it is read");
        shown.connect(&seen, &with_second, 5);
        let all: Vec<Txid> =
            with_second.txdata.iter().chain(&shown.live).map(Transaction::compute_txid).collect();
        let all: Vec<(usize, Txid)> = all.into_iter().enumerate().collect();
        assert_eq!(*crate::util::lock(&seen.0), all, "ascending, behind what is there");
        assert_eq!(map.confirmed(&out(&first, 0)), Some(Some(real(&second, 0))));

        map.disconnect(BlockLocator::new(with_second.block_hash(), 4));
        assert_eq!(map.confirmed(&out(&first, 0)), Some(None));
        // The first one is what it is; of the second channel it is a retired outpoint.
        assert_eq!(map.connect(&block(&[&first]), 5), Shown::default());
        assert_eq!(map.confirmed(&out(&first, 0)), Some(Some(real(&first, 0))));
        assert_eq!(map.confirmed(&out(&first, 1)), Some(None));
        assert_eq!(map.connect(&block(&[&other]), 6), Shown::default());
    }

    #[test]
    fn what_descends_from_a_real_outpoint_is_followed_as_far_as_it_matters() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let (map, [first, _, second]) = leaf(&store);
        let coin = |vout| OutPoint { vout, ..OutPoint::null() };
        let commitment = tx(&[(out(&second, 0), 4)], &[10, 20, 0]);
        // An HTLC transaction with a coin of the wallet's for its fee; a child on the anchor; and what spends each.
        let htlc = tx(&[(coin(1), 1), (out(&commitment, 1), HTLC_TX_WITNESS)], &[4, 20]);
        let child = tx(&[(out(&commitment, 2), 0), (coin(2), 1)], &[30]);
        let penalty = tx(&[(out(&htlc, 1), 3)], &[19]);
        let of_change = tx(&[(out(&htlc, 0), 1)], &[3]);
        let of_child = tx(&[(out(&child, 0), 1)], &[29]);
        map.connect(&block(&[&second]), 5);
        map.connect(&block(&[&commitment, &htlc]), 6);
        // A restart, and blocks that were read before are read again.
        let map = Mapping::load(Arc::clone(&store)).unwrap();
        map.connect(&block(&[&commitment, &htlc]), 6);
        let shown = map.connect(&block(&[&child, &penalty, &of_change, &of_child]), 7);
        assert_eq!(shown.apart, []);
        let [child_v, penalty_v] = &shown.live[..] else { panic!("{:?}", shown.live) };

        let spends = |parent: &Transaction, at: usize, from: OutPoint| {
            let mut parent = parent.clone();
            parent.input[at].previous_output = from;
            parent
        };
        let commitment_v = spends(&commitment, 0, out(&first, 0));
        let htlc_v = spends(&htlc, 1, out(&commitment_v, 1));
        assert_eq!(*child_v, spends(&child, 0, out(&commitment_v, 2)));
        assert_eq!(*penalty_v, spends(&penalty, 0, out(&htlc_v, 1)), "witness and all");
        for (real, virt) in [(&commitment, &commitment_v), (&htlc, &htlc_v), (&penalty, penalty_v)] {
            assert_eq!(map.real_txid(&virt.compute_txid()), Some(real.compute_txid()));
        }
        assert_eq!(map.in_r_form(penalty_v), penalty);
        assert_eq!(map.in_r_form(&of_child), of_child);
        assert_eq!(map.spend(&out(&first, 0)), Some((commitment.compute_txid(), 6)));
    }
}
