//! Signed trees on a real bitcoind, before any Lightning: every transaction goes in as a package with one child,
//! whole paths confirm with the right relative delays (one block early is refused), and after the expiry the
//! distributions pay the clients, unless a state goes first.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod factory;
mod hostile;
mod plans;
mod reorganised;
mod silent;
mod sizes;

use anyhow::Result;
use factory::{params, Factory};
use factory_core::params::{DwLayer, Params};

/// Publishes the whole path of each of these clients and checks what it ends in.
fn publish_paths(clients: usize, params: Params, leaving: impl IntoIterator<Item = usize>) -> Result<()> {
    let mut factory = Factory::create(clients, params)?;
    for index in leaving {
        let path = factory.path(index)?;
        factory.publish_path(&path)?;
        factory.check_leaf(index)?;
    }
    Ok(())
}

#[test]
fn two_clients() -> Result<()> {
    publish_paths(2, params(2, 1)?, 0..2)
}

#[test]
fn three_clients() -> Result<()> {
    publish_paths(3, params(3, 1)?, 0..3)
}

#[test]
fn eight_clients() -> Result<()> {
    publish_paths(8, params(8, 1)?, 0..8)
}

#[test]
fn twenty_clients_on_two_interior_levels() -> Result<()> {
    let params = params(20, 1)?;
    assert!(params.shape.arity.len() >= 2, "{:?}", params.shape);
    publish_paths(20, params, [0, 7, 8, 19])
}

#[test]
fn two_clients_a_leaf() -> Result<()> {
    publish_paths(5, params(5, 2)?, 0..5)
}

#[test]
fn three_clients_a_leaf() -> Result<()> {
    publish_paths(8, params(8, 3)?, 0..8)
}

#[test]
fn all_clients_on_one_leaf() -> Result<()> {
    publish_paths(3, params(3, 3)?, 0..3)
}

#[test]
fn a_static_leaf() -> Result<()> {
    let mut params = params(8, 1)?;
    params.shape.layers = vec![Vec::new(); params.shape.levels()];
    publish_paths(8, params, 0..8)
}

#[test]
fn a_dw_layer_above_the_leaves() -> Result<()> {
    let mut params = params(4, 1)?;
    *params.shape.layers.first_mut().unwrap() = vec![DwLayer { states: 3, step: 5, base: 4 }];
    publish_paths(4, params, 0..4)
}

#[test]
#[ignore = "long: make scenarios"]
fn a_hundred_and_thirty_clients() -> Result<()> {
    let params = params(130, 1)?;
    publish_paths(130, params, [0, 64, 65, 129])
}

/// Publishes the path down to the leaf and the first `published` transactions of the leaf, waits for the expiry, and
/// lets the distribution pay that comes next.
fn distribute_after(published: usize, clients: usize, params: Params, index: usize) -> Result<()> {
    let mut factory = Factory::create(clients, params)?;
    let expiry = factory.tree.plan().expiry_height;
    let mut path = factory.path_above_leaf(index)?;
    let (txs, distributions) = factory.leaf(index)?;
    path.extend_from_slice(&txs[..published]);
    factory.publish_path(&path)?;

    // A transaction with lock time T is valid in block T + 1 and not in block T.
    let distribution = &distributions[published];
    factory.bitcoind.mine_to(expiry - 1)?;
    factory.refused(distribution, "non-final")?;
    factory.bitcoind.mine_to(expiry)?;
    factory.publish(distribution)?;
    factory.check_distribution(distribution, index)?;

    // What it paid out, no state can take back, and no other distribution pays again.
    factory.refused(&txs[published], "bad-txns-inputs-missingorspent")?;
    for (other, distribution) in distributions.iter().enumerate() {
        if other != published {
            factory.refused(distribution, "bad-txns-inputs-missingorspent")?;
        }
    }
    Ok(())
}

#[test]
fn distribution_of_an_unpublished_leaf() -> Result<()> {
    distribute_after(0, 3, params(3, 1)?, 1)
}

#[test]
fn distribution_after_the_kickoff() -> Result<()> {
    distribute_after(1, 3, params(3, 1)?, 2)
}

#[test]
fn distribution_after_a_state() -> Result<()> {
    distribute_after(2, 2, params(2, 1)?, 0)
}

#[test]
fn distribution_after_the_last_but_one_state() -> Result<()> {
    distribute_after(3, 2, params(2, 1)?, 1)
}

#[test]
fn distribution_of_a_shared_leaf() -> Result<()> {
    distribute_after(0, 8, params(8, 3)?, 4)?;
    distribute_after(1, 3, params(3, 3)?, 0)
}

#[test]
fn distribution_of_a_static_leaf() -> Result<()> {
    let mut params = params(3, 1)?;
    params.shape.layers = vec![Vec::new(); params.shape.levels()];
    distribute_after(0, 3, params, 0)
}

/// Published after the expiry, a kickoff's output is first a state's and only one step later the distribution's.
#[test]
fn after_the_expiry_a_state_still_goes_first() -> Result<()> {
    let mut factory = Factory::create(3, params(3, 1)?)?;
    let expiry = factory.tree.plan().expiry_height;
    let path = factory.path(0)?;
    let (txs, distributions) = factory.leaf(0)?;
    let above = factory.path_above_leaf(0)?;
    factory.publish_path(&above)?;
    factory.bitcoind.mine_to(expiry + 1)?;
    let kickoff = factory.publish(&txs[0])?;
    let state = kickoff + u32::from(txs[1].relative_delay);
    assert!(distributions[1].relative_delay > txs[1].relative_delay);
    factory.bitcoind.mine_to(state - 1)?;
    factory.refused(&distributions[1], "non-BIP68-final")?;
    factory.publish(&txs[1])?;
    factory.bitcoind.mine_to(kickoff + u32::from(distributions[1].relative_delay))?;
    factory.refused(&distributions[1], "bad-txns-inputs-missingorspent")?;
    factory.publish_path(&path)?;
    factory.check_leaf(0)?;
    for distribution in &distributions {
        factory.refused(distribution, "bad-txns-inputs-missingorspent")?;
    }
    Ok(())
}

/// Two clients of one leaf and one of another leave one after the other by their plans. What is published already
/// counts for the next one.
#[test]
fn exit_plans_are_right_about_the_chain() -> Result<()> {
    let mut params = params(5, 2)?;
    *params.shape.layers.first_mut().unwrap() = vec![DwLayer { states: 2, step: 3, base: 2 }];
    let mut factory = Factory::create(5, params)?;
    let mut view = plans::Watched::new();
    let length = factory.path(0)?.len();
    let above = factory.path_above_leaf(0)?.len();
    assert_eq!(plans::exit(&mut factory, &mut view, 0)?, length);
    assert_eq!(plans::exit(&mut factory, &mut view, 1)?, 0, "the neighbour's leaf is published");
    assert_eq!(plans::exit(&mut factory, &mut view, 4)?, length - above);
    for index in [0, 1, 4] {
        factory.check_leaf(index)?;
    }
    Ok(())
}

#[test]
fn distribution_plans_are_right_about_the_chain() -> Result<()> {
    let shapes = params(3, 1)?;
    // From nothing, from the level above the leaf, from the kickoff, from one and from two states.
    for (published, pays) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)] {
        let mut factory = Factory::create(3, shapes.clone())?;
        assert_eq!(plans::distribute(&mut factory, 1, published)?, pays, "after {published} transactions");
    }
    Ok(())
}

/// The kickoff appears only after the expiry: the distribution waits for its relative delay.
#[test]
fn a_distribution_waits_for_its_delay_after_a_late_kickoff() -> Result<()> {
    let mut factory = Factory::create(2, params(2, 1)?)?;
    let expiry = factory.tree.plan().expiry_height;
    let path = factory.path(0)?;
    factory.publish_path(&path[..1])?;
    factory.bitcoind.mine_to(expiry + 5)?;
    assert_eq!(plans::distribute(&mut factory, 0, 2)?, 1);
    Ok(())
}
