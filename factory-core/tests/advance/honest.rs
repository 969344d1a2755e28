//! Advances in which everybody does its part.

use bitcoin::{OutPoint, TxOut};
use factory_core::advance::*;
use factory_core::record::SignedPath;
use factory_core::tree::Layout;
use factory_core::Error;

use crate::common::{capacity, payout, regtest, shaped};
use crate::world::{request, Rig};

fn txids(path: &SignedPath) -> Vec<bitcoin::Txid> {
    path.path.iter().chain(&path.distributions).map(|tx| tx.txid()).collect()
}

/// Everything of a leaf, sat.
fn worth(path: &SignedPath) -> u64 {
    path.leaf.iter().map(|c| c.share.capacity_sat).sum::<u64>() + path.stock_sat
}

fn outputs(path: &SignedPath) -> Vec<TxOut> {
    path.path.last().unwrap().tx.output.clone()
}

#[test]
fn a_client_buys_from_the_stock_and_gives_back() {
    let mut rig = Rig::new(regtest(4, 1), 4, 50_000);
    let leaf = rig.disk.record.plan.params.shape.arity.len();
    let old: Vec<_> = (0..4).map(|i| rig.disks[i].newest().path.clone()).collect();
    rig.advance(request(leaf, 1, &[(1, &[capacity(1) + 20_000], 30_000)])).unwrap();
    rig.assert_done();
    let path = &rig.disks[1].newest().path;
    assert_eq!((path.updates, worth(path)), (1, worth(&old[1])));
    assert_eq!(outputs(path)[0].value.to_sat(), capacity(1) + 20_000);
    assert_eq!(outputs(path)[1].value.to_sat(), 30_000);
    assert_eq!(outputs(path)[0].script_pubkey, path.leaf[0].script);
    assert_ne!(path.leaf[0].script, old[1].leaf[0].script);
    assert_eq!(path.leaf[0].outpoint, OutPoint::new(path.path.last().unwrap().txid(), 0));
    // One client a leaf: whatever is in the channel, the distributions pay it everything. They stay.
    assert_eq!(path.distributions, old[1].distributions);
    // The innermost layer ticked: one transaction is new, and one step faster.
    let last = path.path.len() - 1;
    assert_eq!(path.path[..last], old[1].path[..last]);
    assert_eq!(path.path[last].relative_delay + 48, old[1].path[last].relative_delay);
    for i in [0, 2, 3] {
        assert_eq!(rig.disks[i].newest().path, old[i]);
    }
    rig.advance(request(leaf, 1, &[(1, &[capacity(1)], 50_000)])).unwrap();
    rig.assert_done();
    let path = &rig.disks[1].newest().path;
    assert_eq!((path.updates, worth(path)), (2, worth(&old[1])));
    // The middle layer ticked: two states are new, and the distribution of the output between them.
    assert_eq!(path.distributions[..3], old[1].distributions[..3]);
    assert_ne!(path.distributions[3], old[1].distributions[3]);
    let superseded = superseded_paths(&rig.disk.record, &rig.disk.advances, 1).unwrap();
    assert_eq!(superseded.iter().map(|p| p.updates).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(superseded[0], old[1]);
    assert_eq!(superseded[1], rig.disks[1].records[1].path);
}

/// At each position a leaf is what it would be in a tree that is built at that position.
#[test]
fn every_position_is_the_one_of_the_whole_tree() {
    for (params, n) in [
        (regtest(3, 1), 3),
        (shaped(3, 1, &[3], &[0, 2]), 3),
        (shaped(4, 2, &[2], &[0, 2]), 4),
        (shaped(4, 1, &[2, 2], &[0, 1, 2]), 4),
        (shaped(5, 2, &[2, 2], &[1, 1, 1]), 5),
    ] {
        let mut rig = Rig::new(params.clone(), n, 2_000);
        let (levels, record) = (params.shape.levels(), rig.disk.record.clone());
        let layout = Layout::new(record.plan.clone()).unwrap();
        let mut advances = 0;
        loop {
            // The innermost level that has something left.
            let level = (0..levels).rev().find(|l| {
                let position = rig.position(0);
                params.next_position(*l, position, position).is_ok()
            });
            let Some(level) = level else { break };
            let left = rig.disk.newest().remaining(0).unwrap();
            rig.advance(request(level, 0, &[])).unwrap();
            rig.assert_done();
            advances += 1;
            let position = rig.position(0);
            assert_eq!(rig.disk.newest().remaining(0).unwrap().levels[level] + 1, left.levels[level]);
            let states = params.states_after(position).unwrap();
            let tree =
                layout.clone().build_at(&record.channel_scripts, record.funding.outpoint, &states).unwrap();
            for i in &rig.members {
                assert_eq!(rig.position(*i), position);
                let nodes = tree.path_nodes(*i).unwrap();
                let nodes = nodes.iter().map(|node| &tree.nodes()[*node]);
                let txs = nodes.clone().flat_map(|node| node.txs.iter().map(|tx| tx.txid()));
                let leaf = nodes.flat_map(|node| node.distributions.iter().map(|tx| tx.txid()));
                assert_eq!(txids(&rig.disks[*i].newest().path), txs.chain(leaf).collect::<Vec<_>>());
                let own = rig.disks[*i].newest();
                let height = params.distribution_height(own.path.expiry_height, &states).unwrap();
                assert_eq!(own.path.distribution_height().unwrap(), height);
                assert_eq!(own.path.exit_plan().unwrap().expiry_height, height);
            }
        }
        // Every position of the first leaf was used once.
        assert_eq!(advances, params.path_updates().unwrap());
        let exhausted = Error::Exhausted { level: levels - 1, leaf: 0, upper: 0 };
        assert_eq!(rig.start(request(levels - 1, 0, &[])), Err(exhausted));
    }
}

#[test]
fn exhausted_says_what_is_left() {
    let mut rig = Rig::new(shaped(4, 1, &[2, 2], &[0, 1, 1]), 4, 2_000);
    for _ in 0..2 {
        rig.advance(request(2, 1, &[])).unwrap();
        rig.assert_done();
    }
    assert_eq!(rig.start(request(2, 1, &[])), Err(Error::Exhausted { level: 2, leaf: 0, upper: 2 }));
    assert_eq!(rig.start(request(0, 1, &[])), Err(Error::Exhausted { level: 0, leaf: 0, upper: 2 }));
    // The neighbour's leaf has its own, and the branch gives both theirs back.
    assert_eq!(rig.disk.newest().remaining(0).unwrap().levels, [0, 2, 2]);
    assert_eq!(rig.disk.newest().remaining(1).unwrap().levels, [0, 2, 0]);
    rig.advance(request(1, 1, &[])).unwrap();
    rig.assert_done();
    assert_eq!((rig.position(0), rig.position(1), rig.position(2)), (3, 3, 0));
    assert_eq!(rig.disk.newest().remaining(1).unwrap().levels, [0, 1, 2]);
}

#[test]
fn liquidity_moves_between_the_clients_of_a_leaf() {
    let mut rig = Rig::new(regtest(6, 3), 6, 30_000);
    let old = rig.disks[4].newest().path.clone();
    let leaf = old.params.shape.arity.len();
    let caps = [capacity(3) - 10_000, capacity(4) + 25_000, capacity(5)];
    rig.advance(request(leaf, 4, &[(3, &caps, 15_000)])).unwrap();
    rig.assert_done();
    let path = &rig.disks[4].newest().path;
    assert_eq!(worth(path), worth(&old));
    assert_eq!(
        outputs(path).iter().take(4).map(|o| o.value.to_sat()).collect::<Vec<_>>(),
        [&caps[..], &[15_000]].concat()
    );
    // A channel that keeps its capacity keeps its script.
    assert_eq!(path.leaf[2].script, old.leaf[2].script);
    // All distributions are new: one step earlier, with the new amounts.
    let height = old.expiry_height - u32::from(path.params.distribution_step());
    assert_eq!(path.expiry_height, old.expiry_height);
    for (new, old) in path.distributions.iter().zip(&old.distributions) {
        assert_ne!(new.txid(), old.txid());
        assert_eq!(new.tx.lock_time.to_consensus_u32(), height);
        for (i, cap) in (3..6).zip(caps) {
            let paid = new.tx.output.iter().find(|o| o.script_pubkey == payout(i)).unwrap();
            assert!(paid.value.to_sat() >= cap);
        }
    }
    assert!(rig.disks[0].newest().path.updates == 0);
}

#[test]
fn liquidity_moves_between_leaves_with_the_branch() {
    for (params, n, level, client) in
        [(shaped(4, 1, &[2, 2], &[0, 1, 2]), 4, 1, 2), (shaped(4, 1, &[2, 2], &[1, 1, 1]), 4, 0, 1)]
    {
        let mut rig = Rig::new(params, n, 20_000);
        // A leaf on its own first: the advance above puts all to the same position.
        rig.advance(request(2, 3, &[(3, &[capacity(3) + 5_000], 15_000)])).unwrap();
        rig.assert_done();
        let before: u64 = (0..4).map(|i| worth(&rig.disks[i].newest().path)).sum();
        let changes: &[(u32, &[u64], u64)] =
            &[(2, &[capacity(2) + 30_000], 5_000), (3, &[capacity(3) - 15_000], 20_000)];
        rig.advance(request(level, client, changes)).unwrap();
        rig.assert_done();
        let after: Vec<_> = (0..4).map(|i| worth(&rig.disks[i].newest().path)).collect();
        assert_eq!(after.iter().sum::<u64>(), before);
        assert_eq!(after[2], capacity(2) + 35_000);
        assert_eq!(after[3], capacity(3) + 5_000);
        let position = rig.position(3);
        assert!(rig.members.iter().all(|i| rig.position(*i) == position));
        assert_eq!(
            rig.disk.newest().remaining(3).unwrap().leaf(),
            rig.disk.newest().remaining(2).unwrap().leaf()
        );
        // The leaf's own counter begins anew, and what was sold stays sold.
        rig.advance(request(2, 2, &[(2, &[capacity(2) + 35_000], 0)])).unwrap();
        rig.assert_done();
        assert_eq!(outputs(&rig.disks[2].newest().path).len(), 2);
    }
}

#[test]
fn amounts_that_break_a_rule_are_not_proposed() {
    let mut rig = Rig::new(regtest(4, 1), 4, 50_000);
    let leaf = rig.disk.record.plan.params.shape.arity.len();
    let mut refused = |request| rig.start(request).unwrap_err();
    assert!(matches!(refused(request(leaf, 1, &[(1, &[capacity(1) + 1], 50_000)])), Error::Value { .. }));
    assert!(matches!(refused(request(leaf, 1, &[(1, &[capacity(1) + 49_999], 1)])), Error::Dust { .. }));
    assert!(matches!(
        refused(request(leaf, 1, &[(1, &[329], capacity(1) + 49_671)])),
        Error::OutOfRange { .. }
    ));
    // What the channel needs.
    let low = refused(request(leaf, 1, &[(1, &[4_999], capacity(1) + 45_001)]));
    assert_eq!(low, Error::OutOfRange { field: "capacity_sat", value: 4_999, min: 5_000, max: u64::MAX });
    assert!(matches!(refused(request(leaf, 1, &[(2, &[1_000], 0)])), Error::OutOfRange { .. }));
    assert!(matches!(refused(request(leaf, 1, &[(1, &[1_000, 1_000], 0)])), Error::Count { .. }));
    assert!(matches!(refused(request(0, 1, &[])), Error::Exhausted { .. }));
    assert!(matches!(refused(request(leaf + 1, 1, &[])), Error::OutOfRange { .. }));
    let mut rig = Rig::new(shaped(4, 2, &[2], &[1, 1]), 4, 10_000);
    let caps = [capacity(0) + 1_000, capacity(1) - 1_000];
    assert_eq!(rig.start(request(1, 0, &[(0, &caps, 10_000)])), Err(Error::SharedLeaf));
    rig.advance(request(1, 0, &[])).unwrap();
    rig.assert_done();
    rig.advance(request(0, 0, &[(0, &caps, 10_000)])).unwrap();
    rig.assert_done();
}

#[test]
fn many_clients_advance_together() {
    let mut rig = Rig::new(shaped(32, 1, &[4, 8], &[1, 1, 1]), 32, 1_000);
    rig.advance(request(0, 7, &[])).unwrap();
    rig.assert_done();
    rig.advance(request(1, 20, &[])).unwrap();
    rig.assert_done();
    assert_eq!(rig.members.len(), 8);
    rig.advance(request(2, 20, &[])).unwrap();
    rig.assert_done();
    assert_eq!((rig.position(0), rig.position(20), rig.position(21)), (9, 13, 12));
}

/// An advance of a level leaves the levels above as they are, makes its own newer, and lets those inside begin anew.
#[test]
fn positions_by_their_digits() {
    for params in [
        regtest(3, 1),
        shaped(4, 1, &[2, 2], &[0, 1, 2]),
        shaped(4, 1, &[2, 2], &[1, 0, 2]),
        shaped(4, 2, &[2], &[2, 1]),
        shaped(3, 1, &[3], &[1, 0]),
    ] {
        let levels = params.shape.levels();
        let last = params.path_updates().unwrap();
        for from in 0..=last {
            let old = params.states_after(from).unwrap();
            for level in 0..levels {
                let mut reached = Vec::new();
                for to in 0..=last {
                    let new = params.states_after(to).unwrap();
                    let above = (0..level).all(|l| old.at(l) == new.at(l));
                    let inside = (level + 1..levels).all(|l| new.at(l).iter().all(|digit| *digit == 0));
                    let expected = above && inside && new.at(level) > old.at(level);
                    let layer = params.check_advance(level, from, to);
                    assert_eq!(layer.is_ok(), expected, "level {level} from {from} to {to}");
                    if let Ok(layer) = layer {
                        assert_eq!(old.at(level)[..layer], new.at(level)[..layer]);
                        assert!(old.at(level)[layer] < new.at(level)[layer]);
                        reached.push(to);
                    }
                }
                assert_eq!(params.remaining(from).unwrap().levels[level], reached.len() as u64);
                for above in 0..=last {
                    // Of all positions that were tried since, none has the same digits down to the layer that ticks.
                    let untried = |to: &u64| {
                        let digits = |p| params.states_after(p).unwrap().digits().collect::<Vec<_>>();
                        let new = digits(*to);
                        let ticks = digits(from).iter().zip(&new).position(|(a, b)| a != b).unwrap();
                        *to > above && (from + 1..=above).all(|m| digits(m)[..=ticks] != new[..=ticks])
                    };
                    let next = reached.iter().copied().find(untried);
                    let got = params.next_position(level, from, above);
                    assert_eq!(got.clone().ok(), next);
                    assert!(next.is_some() || matches!(got, Err(Error::Exhausted { .. })));
                }
            }
        }
        assert!(params.next_position(levels, 0, 0).is_err() && params.remaining(last + 1).is_err());
        assert!(params.check_advance(0, 0, last + 1).is_err());
    }
}

#[test]
fn reasons_have_numbers() {
    for number in 0..10 {
        assert_eq!(AdvanceReason::from(number).number(), number);
    }
}
