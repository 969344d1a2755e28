//! What the machines must never do, and what holds of everything that is on the disks at every moment.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::Txid;
use bolt_tlv::payload::Payload;
use factory_core::advance::*;
use factory_core::record::{ClientFactoryRecord, LspFactoryRecord};
use factory_core::transaction::SignedTx;

/// What the provider has stored.
#[derive(Clone)]
pub struct LspDisk {
    pub record: LspFactoryRecord,
    pub advances: Vec<LspAdvanceRecord>,
    pub burnt: Vec<LspAdvanceState>,
}

impl LspDisk {
    pub fn newest(&self) -> NewestTree {
        NewestTree::new(&self.record, &self.advances).unwrap()
    }
}

/// What a client has stored: all its records, the newest last, and its state.
#[derive(Clone)]
pub struct ClientDisk {
    pub records: Vec<ClientFactoryRecord>,
    pub state: Option<ClientAdvanceState>,
}

impl ClientDisk {
    pub fn newest(&self) -> &ClientFactoryRecord {
        self.records.last().unwrap()
    }

    pub fn mark(&self, attempt: u16) -> Option<&AdvanceMark> {
        self.state.as_ref()?.marks.iter().find(|m| m.attempt == attempt)
    }

    pub fn pending(&self, attempt: u16) -> Option<&PendingAdvance> {
        self.state.as_ref()?.pending.iter().find(|p| p.attempt == attempt)
    }
}

/// What was seen so far, over all lives of the processes.
#[derive(Default)]
pub struct Rules {
    nonces: BTreeSet<Vec<u8>>,
    /// Companions on disk: (client, attempt), at the client and at the provider.
    pub covered: BTreeSet<(usize, u16)>,
    pub lsp_covered: BTreeSet<(usize, u16)>,
    /// The outermost transactions of tries of which a client's inner partial signatures left, and the tries.
    outermost: BTreeMap<(usize, Txid), u16>,
    /// Positions for which a client's outer partial signatures left, by client and try.
    pub gone: BTreeMap<(usize, u16), u64>,
}

fn is_signed(tx: &SignedTx) -> bool {
    tx.tx.input.iter().all(|input| !input.witness.is_empty())
}

/// Nothing of a pending try can be published before its outermost transaction is, which is new: it is in no complete
/// state, and in no other try that the provider may have completed.
pub fn hangs_below_the_outer(pending: &PendingAdvance, disk: &ClientDisk) {
    let others = disk.state.iter().flat_map(|s| &s.pending).filter(|p| p.attempt != pending.attempt);
    let records = disk.records.iter().chain(others.map(|p| &p.record));
    let all = |r: &ClientFactoryRecord| -> Vec<SignedTx> {
        r.path.path.iter().chain(&r.path.distributions).cloned().collect()
    };
    let old: BTreeSet<Txid> = records.flat_map(all).map(|tx| tx.txid()).collect();
    let funding = pending.record.path.funding.outpoint.txid;
    assert!(!old.contains(&pending.outer[0]), "the outermost transaction is that of another try");
    for tx in all(&pending.record).iter().filter(|tx| !old.contains(&tx.txid())) {
        let outer = pending.outer.contains(&tx.txid());
        assert_eq!(is_signed(tx), !outer, "{} of a pending try", tx.kind);
        let parent = tx.parent().unwrap().txid;
        let exists = old.contains(&parent) || parent == funding;
        assert_eq!(exists, outer, "{} can be published before the outermost transaction", tx.kind);
    }
}

impl Rules {
    fn fresh<const N: usize>(&mut self, nonces: &[[u8; N]]) {
        for nonce in nonces {
            assert!(self.nonces.insert(nonce.to_vec()), "a nonce was used twice");
        }
    }

    pub fn client_sends(&mut self, i: usize, disk: &ClientDisk, message: &Payload) {
        match message {
            Payload::AdvanceAgree(m) => {
                self.fresh(&m.inner);
                self.fresh(&m.outer);
            }
            Payload::AdvancePartials(m) => {
                let covered = self.covered.contains(&(i, m.attempt));
                assert!(covered, "a partial signature left before the companions were on disk");
                let mark = disk.mark(m.attempt);
                let mark = mark.expect("inner partial signatures left before the client's mark was on disk");
                let one = *self.outermost.entry((i, mark.outermost)).or_insert(m.attempt);
                assert_eq!(one, m.attempt, "inner partial signatures of two tries below one transaction");
            }
            Payload::AdvanceOuter(m) => {
                let covered = self.covered.contains(&(i, m.attempt));
                assert!(covered, "a partial signature left before the companions were on disk");
                let pending = disk.pending(m.attempt);
                let pending = pending
                    .expect("outer partial signatures left before the inner transactions were on disk");
                pending
                    .verify(disk.newest())
                    .expect("outer partial signatures left without inner signatures");
                hangs_below_the_outer(pending, disk);
                self.gone.insert((i, m.attempt), pending.record.path.updates);
            }
            Payload::AdvancePersisted(m) => {
                let position = self.gone.get(&(i, m.attempt)).expect("stored without a signature of its own");
                let stored = disk.newest().path.updates >= *position;
                assert!(stored, "said to be stored before it was on disk");
                disk.newest().verify().unwrap();
            }
            _ => {}
        }
    }

    /// `members` are the clients below the node that advances.
    pub fn lsp_sends(&mut self, disk: &LspDisk, members: &[usize], message: &Payload) {
        let asks = match message {
            // All clients get the same outer aggregates.
            Payload::AdvanceAggNonces(m) => {
                for nonce in &m.outer {
                    self.nonces.insert(nonce.to_vec());
                }
                Some(m.attempt)
            }
            Payload::AdvanceInner(m) => Some(m.attempt),
            Payload::AdvanceSigned(m) => {
                let stored = disk.advances.iter().any(|a| a.attempt == m.attempt);
                assert!(stored, "signatures were sent before the advance was on disk");
                None
            }
            _ => None,
        };
        if let Some(attempt) = asks {
            let covered = members.iter().all(|i| self.lsp_covered.contains(&(*i, attempt)));
            assert!(covered, "the provider goes on before its companions were on disk");
            let burnt = disk.burnt.iter().any(|b| b.attempt == attempt);
            assert!(burnt, "asked for partial signatures before the mark was on disk");
        }
    }
}

/// What is on the disks fits together.
pub fn disks(lsp: &LspDisk, clients: &[ClientDisk]) {
    let tree = lsp.newest();
    for (i, disk) in clients.iter().enumerate() {
        let (own, newest) = (disk.newest(), tree.leaf_path(i).unwrap());
        assert!(own.path.updates <= newest.updates, "client {i} has a state that the provider has not");
        if own.path.updates == newest.updates {
            assert!(own.path == newest, "client {i} has another state than the provider");
        } else {
            // The client can go on from the provider's state, whatever becomes of the provider.
            let last = lsp.advances.iter().rev().find(|a| a.covers(i)).unwrap();
            let pending =
                disk.pending(last.attempt).expect("a complete state that a client is not ready for");
            assert_eq!(pending.record.path.updates, newest.updates);
            assert!(pending.record.path.leaf == newest.leaf);
            let txids = |txs: &[SignedTx]| txs.iter().map(SignedTx::txid).collect::<Vec<_>>();
            assert_eq!(txids(&pending.record.path.path), txids(&newest.path));
            assert_eq!(txids(&pending.record.path.distributions), txids(&newest.distributions));
        }
        for pending in disk.state.iter().flat_map(|s| &s.pending) {
            assert_eq!(pending.record.index as usize, i);
        }
    }
}

/// As [`disks`], and every signature.
pub fn signatures(lsp: &LspDisk, clients: &[ClientDisk]) {
    disks(lsp, clients);
    lsp.newest().verify().unwrap();
    for disk in clients {
        disk.newest().verify().unwrap();
        disk.state.iter().for_each(|state| state.verify(disk.newest()).unwrap());
    }
}
