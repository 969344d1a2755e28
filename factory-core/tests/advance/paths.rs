//! A leaf with several paths: which one is published, and what is done when another one wins.

use bitcoin::OutPoint;
use factory_core::advance::*;
use factory_core::exit::{ChainView, ExitAction, KnownChain};
use factory_core::guard::GuardAction;
use factory_core::record::SignedPath;
use factory_core::transaction::SignedTx;

use crate::common::{capacity, regtest, shaped};
use crate::world::{request, Rig};

/// Confirms the funding transaction, which is none of ours.
struct Chain {
    known: KnownChain,
    funding: bitcoin::Txid,
}

impl ChainView for Chain {
    fn confirmed_at(&self, txid: &bitcoin::Txid) -> Option<u32> {
        if *txid == self.funding {
            Some(100)
        } else {
            self.known.confirmed_at(txid)
        }
    }

    fn spent_by(&self, outpoint: &OutPoint) -> Option<bitcoin::Txid> {
        self.known.spent_by(outpoint)
    }
}

fn chain(path: &SignedPath, confirmed: usize) -> Chain {
    let mut known = KnownChain::default();
    for tx in &path.path[..confirmed] {
        known.confirm(&tx.tx, 200);
    }
    Chain { known, funding: path.funding.outpoint.txid }
}

/// A leaf after five updates, and its paths: the newest, and those before.
fn leaf() -> (SignedPath, Vec<SignedPath>) {
    let mut rig = Rig::new(regtest(2, 1), 2, 50_000);
    for i in 1..=5 {
        // A try of position 4 could not be followed by another one, so nothing is bought there.
        let bought = if i == 4 { 3_000 } else { 1_000 * i };
        rig.advance(request(1, 1, &[(1, &[capacity(1) + bought], 50_000 - bought)])).unwrap();
        rig.assert_done();
    }
    let old: Vec<_> = rig.disks[1].records[..5].iter().map(|r| r.path.clone()).collect();
    assert_eq!(old, superseded_paths(&rig.disk.record, &rig.disk.advances, 1).unwrap());
    (rig.disks[1].newest().path.clone(), old)
}

#[test]
fn the_newest_path_is_faster_than_each_older_one() {
    let (newest, old) = leaf();
    for path in &old {
        let pairs = newest.path.iter().zip(&path.path);
        let (new, old) = pairs.clone().find(|(n, o)| n.txid() != o.txid()).unwrap();
        assert_eq!(new.parent(), old.parent());
        assert!(old.relative_delay >= new.relative_delay + 48);
    }
}

#[test]
fn the_newest_path_is_followed_until_another_has_won() {
    let (newest, old) = leaf();
    let paths = LeafPaths::new(&newest, &old).unwrap();
    for confirmed in 0..=newest.path.len() {
        let chain = chain(&newest, confirmed);
        let action = newest.exit_plan().unwrap().next_action(&chain, 5_000);
        assert_eq!(paths.exit_action(&chain, 5_000), Raced { lost_to: None, action });
    }
    // Each older path can confirm until the newest has gone another way.
    for (confirmed, alive) in [(2, &[0, 1, 2, 3, 4][..]), (3, &[4]), (4, &[4]), (5, &[])] {
        assert_eq!(paths.alive(&chain(&newest, confirmed), 5_000), alive);
    }
    // Position 5 is 101 in binary. Whatever confirms of an older one decides which is followed: the newest of those
    // that hold it.
    for (lost, confirmed, followed) in
        [(0, 3, 3), (3, 3, 3), (0, 4, 1), (2, 4, 3), (0, 5, 0), (1, 5, 1), (4, 5, 4)]
    {
        // Static root, kickoff, three states.
        assert_eq!(newest.path.len(), 5);
        let path = &old[lost];
        let chain = chain(path, confirmed);
        let raced = paths.exit_action(&chain, 5_000);
        assert_eq!(raced.lost_to, Some(followed), "{lost} up to {confirmed}");
        let action = if confirmed == 5 { ExitAction::Done } else { ExitAction::Publish { step: confirmed } };
        assert_eq!(raced.action, action);
        let guarded = paths.guard_action(&chain, 5_000);
        assert_eq!(guarded.lost_to, Some(followed));
        assert_eq!(matches!(guarded.action, GuardAction::Settled), confirmed == 5);
    }
    // Neither does anything without the others: it says that the race is lost, and to what.
    let alone = LeafPaths::new(&newest, &[]).unwrap();
    let chain = chain(&old[0], 3);
    let spent_by = old[0].path[2].txid();
    let outpoint = old[0].path[2].parent().unwrap();
    let lost = alone.exit_action(&chain, 5_000);
    assert_eq!(lost, Raced { lost_to: None, action: ExitAction::Blocked { step: 2, outpoint, spent_by } });
    assert_eq!(alone.guard_action(&chain, 5_000).action, GuardAction::Lost { outpoint, spent_by });
}

/// Where no update can change what anybody gets, a distribution of an output that stays is the same on every path: the
/// newest goes on being followed when one confirms.
#[test]
fn a_distribution_that_all_paths_share_is_the_newests() {
    let (newest, old) = leaf();
    let paths = LeafPaths::new(&newest, &old).unwrap();
    // Up to the kickoff, whose output the distribution spends.
    let mut chain = chain(&newest, 2);
    let kickoff = newest.path[1].txid();
    let parent = |tx: &SignedTx| tx.parent().map(|parent| parent.txid);
    let distribution = newest.distributions.iter().find(|tx| parent(tx) == Some(kickoff)).unwrap();
    assert!(old.iter().all(|path| path.distributions.iter().any(|tx| tx.txid() == distribution.txid())));
    chain.known.confirm(&distribution.tx, 4_000);
    let (lost_to, plan) = paths.followed(&chain, 5_000);
    assert_eq!((lost_to, plan), (None, &newest.exit_plan().unwrap()));
}

#[test]
fn an_old_branch_that_wins_takes_its_leaves_along() {
    let mut rig = Rig::new(shaped(4, 1, &[2, 2], &[0, 1, 1]), 4, 20_000);
    rig.advance(request(2, 1, &[])).unwrap();
    rig.advance(request(1, 1, &[])).unwrap();
    rig.assert_done();
    let (newest, old) =
        (&rig.disks[1].newest().path, superseded_paths(&rig.disk.record, &rig.disk.advances, 1).unwrap());
    let paths = LeafPaths::new(newest, &old).unwrap();
    // Root, branch's kickoff and state, leaf's kickoff and state: the old branch's state, and then the newest leaf on it.
    let chain = chain(&old[0], 4);
    let raced = paths.exit_action(&chain, 5_000);
    assert_eq!(raced, Raced { lost_to: Some(1), action: ExitAction::Publish { step: 4 } });
    assert_eq!(old[1].updates, 1);
    let other = Rig::new(regtest(2, 1), 2, 0);
    assert!(LeafPaths::new(newest, std::slice::from_ref(&other.disks[0].newest().path)).is_err());
}
