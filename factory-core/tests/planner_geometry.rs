//! The tree's geometry and the default parameters for every supported number of clients.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use bitcoin::Network;
use factory_core::geometry::{children, nodes, path};
use factory_core::params::{Params, Shape, DEFAULT_EXIT_TARGET, MAX_CLIENTS, MIN_CLIENTS};
use factory_core::planner::{exit_steps, plan};
use factory_core::Error;
use proptest::prelude::*;

fn static_shape(clients_per_leaf: u16, arity: &[u16]) -> Shape {
    Shape { clients_per_leaf, arity: arity.to_vec(), layers: vec![vec![]; arity.len() + 1] }
}

/// Worked by hand: 11 clients, 2 a leaf, are 6 leaves; the root's 4 children get 2, 2, 1 and 1 of them.
#[test]
fn an_uneven_tree() {
    let shape = static_shape(2, &[4, 2]);
    assert_eq!(children(&shape, 11, 0, 0, 11), [(0, 4), (4, 8), (8, 10), (10, 11)]);
    assert_eq!(children(&shape, 11, 1, 4, 8), [(4, 6), (6, 8)]);
    assert_eq!(children(&shape, 11, 1, 10, 11), [(10, 11)]);
    assert_eq!(children(&shape, 11, 2, 6, 8), [(6, 7), (7, 8)]);
    let steps: Vec<_> =
        path(&shape, 11, 7).unwrap().iter().map(|n| (n.level, n.first, n.end, n.child)).collect();
    assert_eq!(steps, [(0, 0, 11, 1), (1, 4, 8, 1), (2, 6, 8, 1)]);
    let all: Vec<_> = nodes(&shape, 11).unwrap().iter().map(|n| (n.level, n.first, n.end)).collect();
    assert_eq!(
        all,
        [
            (0, 0, 11),
            (1, 0, 4),
            (1, 4, 8),
            (1, 8, 10),
            (1, 10, 11),
            (2, 0, 2),
            (2, 2, 4),
            (2, 4, 6),
            (2, 6, 8),
            (2, 8, 10),
            (2, 10, 11),
        ]
    );
}

#[test]
fn a_factory_of_one_leaf() {
    let shape = static_shape(2, &[]);
    let only = path(&shape, 2, 1).unwrap();
    assert_eq!(only.iter().map(|n| (n.first, n.end, n.child)).collect::<Vec<_>>(), [(0, 2, 1)]);
    assert_eq!(path(&shape, 3, 0), Err(Error::ShapeTooSmall { capacity: 2, clients: 3 }));
    assert!(nodes(&shape, 3).is_err());
}

#[test]
fn empty_and_reversed_ranges_have_no_children() {
    let shape = static_shape(1, &[8]);
    assert!(children(&shape, 8, 0, 5, 5).is_empty());
    assert!(children(&shape, 8, 0, 6, 5).is_empty());
    assert!(children(&shape, 8, 1, 6, 5).is_empty());
    // Nobody beyond the last client, whatever range is asked for.
    assert_eq!(children(&shape, 8, 1, 6, usize::MAX), [(6, 7), (7, 8)]);
}

/// Every size, not a sample: the default validates and keeps the promised exit.
#[test]
fn every_size_has_a_default() {
    for clients in MIN_CLIENTS..=MAX_CLIENTS {
        for network in [Network::Bitcoin, Network::Regtest] {
            let params = Params::default_for(clients, network).unwrap();
            params.validate(clients).unwrap();
            assert!(params.worst_exit(6).unwrap() <= DEFAULT_EXIT_TARGET, "{clients} clients");
            assert!(params.shape.arity.iter().all(|a| (2..=16).contains(a)), "{:?}", params.shape.arity);
            assert_eq!(params.leaf_updates().unwrap(), if clients <= 128 { 7 } else { 3 });
            assert_eq!(params.min_depth, if network == Network::Regtest { 1 } else { 6 });
        }
    }
}

/// Checks one factory's geometry from every side.
fn check_tree(shape: &Shape, clients: usize) -> Result<(), TestCaseError> {
    let all = nodes(shape, clients).unwrap();
    for level in 0..shape.levels() {
        // The nodes of a level partition the clients, in order and without an empty node.
        let mut next = 0;
        for node in all.iter().filter(|n| n.level == level) {
            prop_assert_eq!(node.first, next);
            prop_assert!(node.end > node.first);
            next = node.end;
            // So do the children of a node, and they are no more than the arity.
            let mut child_next = node.first;
            for (first, end) in &node.children {
                prop_assert_eq!(*first, child_next);
                prop_assert!(end > first);
                child_next = *end;
            }
            prop_assert_eq!(child_next, node.end);
            match shape.arity.get(level) {
                Some(arity) => {
                    prop_assert!(node.children.len() <= usize::from(*arity));
                    // As even as possible, counted in leaves.
                    let sizes: Vec<usize> = node.children.iter().map(|(f, e)| shape.leaves(e - f)).collect();
                    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
                    prop_assert!(most - least <= 1);
                }
                None => prop_assert!(node.end - node.first <= usize::from(shape.clients_per_leaf)),
            }
        }
        prop_assert_eq!(next, clients);
    }
    prop_assert_eq!(all.iter().filter(|n| n.level == shape.arity.len()).count(), shape.leaves(clients));
    for index in 0..clients {
        // A client's path is the chain of nodes that hold it.
        let steps = path(shape, clients, index).unwrap();
        let holding: Vec<_> = all.iter().filter(|n| n.first <= index && index < n.end).collect();
        prop_assert_eq!(steps.len(), holding.len());
        for (i, (step, node)) in steps.iter().zip(&holding).enumerate() {
            prop_assert_eq!((step.level, step.first, step.end), (node.level, node.first, node.end));
            let below = node.children[step.child];
            match steps.get(i + 1) {
                Some(next) => prop_assert_eq!(below, (next.first, next.end)),
                None => prop_assert_eq!(below, (index, index + 1)),
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn default_trees_are_consistent(clients in MIN_CLIENTS..=MAX_CLIENTS, k in 1u16..=4) {
        let params = Params::default_with(clients, k, Network::Bitcoin).unwrap();
        check_tree(&params.shape, clients)?;
        // The report takes the first client's exit for the largest.
        let vbytes = |i| exit_steps(&params, clients, i).unwrap().iter().map(|s| s.size.vbytes() + 153).sum::<u64>();
        let largest = (0..clients).map(vbytes).max().unwrap();
        prop_assert_eq!(plan(&params, clients).unwrap().exit_vbytes, largest);
        let delay: u32 = exit_steps(&params, clients, 0).unwrap().iter().map(|s| u32::from(s.delay)).sum();
        prop_assert_eq!(delay, params.path_delay());
    }

    #[test]
    fn any_valid_shape_is_consistent(
        clients in MIN_CLIENTS..=300usize,
        k in 1u16..=6,
        arity in proptest::collection::vec(2u16..=12, 0..5),
    ) {
        let shape = static_shape(k, &arity);
        if shape.check_structure(clients).is_ok() {
            check_tree(&shape, clients)?;
        } else {
            prop_assert!(path(&shape, clients, 0).is_err());
        }
    }
}
