//! Which clients sit below which node of the tree.
//!
//! Everyone derives the tree from the shape and the number of clients alone, so the rule has to be
//! exact: a node's leaves are spread over its children as evenly as possible, the first children taking
//! one more where it does not divide; clients fill the leaves in order, so all leaves are full except
//! possibly the last. A client needs only its own path, and [`path`] computes that without visiting the
//! rest of the tree.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::params::{as_u64, Shape};

/// A node of the tree and the clients below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRange {
    /// The node's level: 0 is the root, `shape.arity.len()` the leaves.
    pub level: usize,
    /// Index of the first client below.
    pub first: usize,
    /// One past the index of the last client below.
    pub end: usize,
    /// Client ranges `(first, end)` of the children, in output order. A leaf's children are its clients.
    pub children: Vec<(usize, usize)>,
}

/// A node on one client's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathNode {
    /// The node's level: 0 is the root.
    pub level: usize,
    /// Index of the first client below.
    pub first: usize,
    /// One past the index of the last client below.
    pub end: usize,
    /// Position of the next node of the path among the children; at the leaf, the client's position in it.
    pub child: usize,
}

/// The client ranges of the children of the node at `level` that covers clients `first..end`, in output
/// order. At the leaf level (and below) every client is a child of its own. `shape` must have passed
/// [`Shape::check_structure`].
pub fn children(
    shape: &Shape,
    clients: usize,
    level: usize,
    first: usize,
    end: usize,
) -> Vec<(usize, usize)> {
    let end = end.min(clients);
    let Some(arity) = shape.arity.get(level) else {
        return (first..end).map(|i| (i, i.saturating_add(1))).collect();
    };
    let per_leaf = usize::from(shape.clients_per_leaf).max(1);
    let leaves = end.saturating_sub(first).div_ceil(per_leaf);
    let parts = usize::from(*arity).min(leaves);
    let (Some(each), Some(longer)) = (leaves.checked_div(parts), leaves.checked_rem(parts)) else {
        return Vec::new();
    };
    let mut from = first;
    (0..parts)
        .map(|i| {
            let size = each.saturating_add(usize::from(i < longer)).saturating_mul(per_leaf);
            let to = from.saturating_add(size).min(end);
            let range = (from, to);
            from = to;
            range
        })
        .collect()
}

/// The path of client `index` from the root to its leaf.
///
/// # Errors
/// The refusals of [`Shape::check_structure`], and [`Error::Limit`] for an index that no client has.
pub fn path(shape: &Shape, clients: usize, index: usize) -> Result<Vec<PathNode>, Error> {
    shape.check_structure(clients)?;
    let no_client = Error::OutOfRange {
        field: "client index",
        value: as_u64(index),
        min: 0,
        max: as_u64(clients).saturating_sub(1),
    };
    let (mut first, mut end) = (0, clients);
    let mut path = Vec::with_capacity(shape.levels());
    for level in 0..shape.levels() {
        let below = children(shape, clients, level, first, end);
        let found = below.iter().enumerate().find(|(_, (f, e))| (*f..*e).contains(&index));
        let Some((child, (next_first, next_end))) = found else {
            return Err(no_client);
        };
        path.push(PathNode { level, first, end, child });
        (first, end) = (*next_first, *next_end);
    }
    Ok(path)
}

/// All nodes of the tree, level by level from the root, left to right in a level.
///
/// # Errors
/// The refusals of [`Shape::check_structure`].
pub fn nodes(shape: &Shape, clients: usize) -> Result<Vec<NodeRange>, Error> {
    shape.check_structure(clients)?;
    let mut all = Vec::new();
    let mut current = vec![(0, clients)];
    for level in 0..shape.levels() {
        let mut next = Vec::new();
        for (first, end) in current {
            let below = children(shape, clients, level, first, end);
            next.extend_from_slice(&below);
            all.push(NodeRange { level, first, end, children: below });
        }
        current = next;
    }
    Ok(all)
}
