//! A provider that wants two complete states of one position: whichever confirms, the fee decides, and a client that
//! gave liquidity back in one of them loses the difference. It calls tries off, forgets its marks, proposes what it
//! likes and keeps every signature.

use std::cell::RefCell;
use std::rc::Rc;

use bitcoin::Txid;
use bolt_tlv::payload::{self, Payload};
use factory_core::advance::*;
use factory_core::params::Params;
use factory_core::record::SignedPath;
use factory_core::refuse::RefuseCode;
use factory_core::transaction::SignedTx;
use factory_core::Error;

use crate::common::{capacity, shaped};
use crate::world::{request, Rig};

const STOCK: u64 = 20_000;

type Attack = (Params, usize, usize, AdvanceRequest, AdvanceRequest);

/// Client 1 of a leaf, the updates before, a try in which it gives liquidity back, and one in which it does not: a leaf
/// whose innermost layer has nothing left, a shared one, and a root under which only the leaves' insides differ.
fn attacks() -> Vec<Attack> {
    let low = capacity(1) - 70_000;
    let back = |first, caps: &[u64]| request(1, 1, &[(first, caps, STOCK + 70_000)]);
    let shared = [capacity(0), low];
    let root_back = request(0, 1, &[(1, &[low], STOCK + 70_000)]);
    vec![
        (shaped(2, 1, &[2], &[0, 3]), 2, 2, back(1, &[low]), request(1, 1, &[])),
        (shaped(4, 2, &[2], &[0, 3]), 4, 2, back(0, &shared), request(1, 1, &[])),
        (shaped(2, 1, &[2], &[2, 2]), 2, 0, root_back, request(0, 1, &[])),
    ]
}

fn made((params, n, updates, wanted, _): &Attack) -> Rig {
    let mut rig = Rig::new(params.clone(), *n, STOCK);
    for _ in 0..*updates {
        rig.advance(request(wanted.level, 1, &[])).unwrap();
        rig.assert_done();
    }
    rig.fork()
}

fn all(path: &SignedPath) -> impl Iterator<Item = &SignedTx> {
    path.path.iter().chain(&path.distributions)
}

/// Pairs of complete transactions that spend the same output, of which the chain cannot tell which is newer.
fn rivals(one: &SignedPath, other: &SignedPath) -> Vec<(Txid, Txid)> {
    let mut found = Vec::new();
    for a in all(one).filter(|tx| tx.verify().is_ok()) {
        for b in all(other).filter(|tx| tx.verify().is_ok()) {
            let times = |tx: &SignedTx| (tx.tx.input[0].sequence, tx.tx.lock_time);
            if a.parent() == b.parent() && a.txid() != b.txid() && times(a) == times(b) {
                found.push((a.txid(), b.txid()));
            }
        }
    }
    found
}

/// Drops this message to client 1, and keeps what it said.
fn withhold(rig: &mut Rig, number: u16) -> Rc<RefCell<Vec<Payload>>> {
    let kept = Rc::new(RefCell::new(Vec::new()));
    let keep = kept.clone();
    rig.to_client = Box::new(move |i, m| {
        if i == 1 && m.number() == number {
            keep.borrow_mut().push(m);
            return vec![];
        }
        vec![m]
    });
    kept
}

fn sent(rig: &Rig, who: usize) -> Vec<Payload> {
    let of = |(i, a): &(usize, ClientAdvanceAction)| match a {
        ClientAdvanceAction::Send(payload) if *i == who => Some(payload.clone()),
        _ => None,
    };
    rig.client_actions.iter().filter_map(of).collect()
}

/// What the provider has of the try that it calls off: inner transactions with valid signatures. Deterministic worlds:
/// the same try, carried to its end, has the same signatures.
fn its_end(base: &Rig, wanted: &AdvanceRequest) -> SignedPath {
    let mut shadow = base.fork();
    shadow.advance(wanted.clone()).unwrap();
    shadow.assert_done();
    shadow.disks[1].newest().path.clone()
}

/// The provider completes the inner transactions of a try, calls it off, and tries again at the same position.
#[test]
fn inner_transactions_of_a_try_that_was_called_off() {
    for attack in attacks() {
        let base = made(&attack);
        let given = its_end(&base, &attack.3);
        // What it is after: with the other try at the same position, both complete, the chain cannot tell which is newer.
        let kept = its_end(&base, &attack.4);
        assert_eq!(kept.updates, given.updates);
        assert!(!rivals(&given, &kept).is_empty(), "no attack");
        for restart in [false, true] {
            let mut rig = base.fork();
            let kept = withhold(&mut rig, payload::AdvanceInner::NUMBER);
            rig.advance(attack.3.clone()).unwrap();
            // It holds the inner transactions, signed.
            let kept = kept.borrow();
            let [Payload::AdvanceInner(inner)] = kept.as_slice() else { panic!("no inner signatures") };
            for signature in &inner.signatures {
                let signed = |tx: &SignedTx| tx.tx.input[0].witness.nth(0) == Some(signature.as_slice());
                let tx = all(&given).find(|tx| signed(tx)).expect("a signature of something else");
                tx.verify().unwrap();
            }
            if restart {
                rig.restart_client(1);
            }
            rig.lsp_in(LspAdvanceInput::Cancel);
            rig.run();
            assert!(rig.failed().unwrap().1);
            assert!(rig.clients[1].pending().is_empty());
            assert_eq!(rig.clients[1].left(), Aftermath::Clear);
            // It forgets, and tries again.
            rig.disk.burnt.clear();
            rig.to_client = Box::new(|_, m| vec![m]);
            rig.client_actions.clear();
            rig.advance(attack.4.clone()).unwrap();
            let newest = &rig.disks[1].newest().path;
            assert_eq!(rivals(&given, newest), [], "two complete states of one position");
            assert!(rig.refused().contains(&(1, RefuseCode::AdvanceBurnt, false)), "{:?}", rig.refused());
            // One that does not forget goes on.
            rig.disk.burnt.push(LspAdvanceState {
                version: 1,
                instance_id: newest.instance_id,
                attempt: 1,
                first: 0,
                end: 1_000,
                position: given.updates,
            });
            rig.advance(attack.4.clone()).unwrap();
            rig.assert_done();
            assert!(rig.position(1) > given.updates);
            assert_eq!(rivals(&given, &rig.disks[1].newest().path), []);
        }
    }
}

/// The provider completes a try, keeps the outer signatures to itself, and goes on to a position that has the same
/// outermost transaction: what the client signs as inner could be published at once.
#[test]
fn inner_transactions_below_an_output_that_exists() {
    for attack in attacks() {
        let base = made(&attack);
        let mut rig = base.fork();
        let complete = rig.disk.advances.clone();
        rig.to_client = Box::new(|_, m| {
            let signed = m.number() == payload::AdvanceSigned::NUMBER;
            if signed {
                vec![]
            } else {
                vec![m]
            }
        });
        rig.advance(attack.4.clone()).unwrap();
        let position = rig.position(1);
        let [pending] = rig.clients[1].pending() else { panic!("one pending try") };
        let outermost = pending.outer[0];
        let newest = rig.disk.newest().leaf_path(1).unwrap();
        all(&newest).find(|tx| tx.txid() == outermost).unwrap().verify().unwrap();
        // As if it had not been.
        rig.disk.advances = complete;
        rig.lsp = None;
        let burnt = rig.disk.burnt.clone();
        let level = attack.4.level;
        let params = rig.disk.record.plan.params.clone();
        let from = rig.position(1);
        let inside = (position + 1..=params.path_updates().unwrap())
            .find(|to| params.check_advance(level, from, *to).is_ok() && level > 0);
        if let Some(inside) = inside {
            rig.disk.burnt.clear();
            rig.attempt += 10;
            rig.to_client = Box::new(move |_, mut m| {
                if let Payload::AdvancePropose(m) = &mut m {
                    m.position = inside;
                }
                vec![m]
            });
            rig.client_actions.clear();
            rig.advance(attack.4.clone()).unwrap();
            assert!(rig.refused().contains(&(1, RefuseCode::AdvanceBurnt, true)), "{:?}", rig.refused());
            let partials = |m: &Payload| matches!(m, Payload::AdvancePartials(_) | Payload::AdvanceOuter(_));
            assert!(!sent(&rig, 1).iter().any(partials));
        }
        // A provider that keeps to the rules does not propose it.
        rig.disk.burnt = burnt;
        rig.to_client = Box::new(|_, m| vec![m]);
        rig.advance(attack.4.clone()).unwrap();
        rig.assert_done();
        let path = &rig.disks[1].newest().path;
        assert!(all(path).all(|tx| tx.txid() != outermost), "two tries have one outermost transaction");
    }
}

/// A member of a shared leaf is not told of the newest state, so it starts from another one than its neighbour.
#[test]
fn members_that_start_from_different_states() {
    let attack = attacks().remove(1);
    let mut rig = made(&attack);
    withhold(&mut rig, payload::AdvanceSigned::NUMBER);
    rig.advance(attack.4.clone()).unwrap();
    let (old, new) = (rig.disks[1].newest().path.updates, rig.disks[0].newest().path.updates);
    assert!(old < new);
    rig.lsp = None;
    rig.client_actions.clear();
    rig.to_client = Box::new(move |i, mut m| {
        if let (1, Payload::AdvancePropose(m)) = (i, &mut m) {
            m.from = old;
        }
        vec![m]
    });
    rig.advance(attack.4.clone()).unwrap();
    assert!(rig.refused().contains(&(1, RefuseCode::AdvanceBurnt, true)), "{:?}", rig.refused());
    assert!(!sent(&rig, 1).iter().any(|m| matches!(m, Payload::AdvancePartials(_))));
}

/// After a try of the middle layer that failed, a leaf's next position is one that ticks it again.
#[test]
fn the_next_position_differs_down_to_the_layer_that_ticks() {
    let params = shaped(2, 1, &[2], &[0, 3]);
    for (from, tried, next) in [(2, 0, 3), (2, 3, 6), (2, 6, 9), (2, 8, 9), (0, 1, 2), (0, 2, 3), (0, 4, 6)] {
        assert_eq!(params.next_position(1, from, tried), Ok(next), "from {from}, tried {tried}");
        assert_eq!(params.is_untried(from, tried, next), Ok(true));
    }
    assert!(matches!(params.next_position(1, 2, 18), Err(Error::Exhausted { .. })));
    assert_eq!((params.has_next(2, 18), params.has_next(18, 18)), (Ok(false), Ok(true)));
    assert_eq!(params.is_untried(2, 3, 4), Ok(false));
    assert!(params.has_next(0, 27).is_err() && params.is_untried(0, 1, 27).is_err());
}
