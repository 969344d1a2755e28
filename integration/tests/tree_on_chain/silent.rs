//! All clients are gone, and the provider too, after it published some of its tree just before the expiry. Somebody
//! who has the signed paths, a coin and no key of the factory follows their plans: every client gets all that the
//! distributions give it, the provider nothing. Many factories share the blocks of one chain.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{bail, ensure, Context, Result};
use bitcoin::Txid;
use factory_core::exit::{DistributionAction, ExitAction, ExitPlan, ExitStep};
use factory_core::transaction::SignedTx;
use serde_json::{json, Value};

use crate::factory::{params, stock_script, Chain, Factory};
use crate::plans::{self, Watched};

/// One leaf as its watcher has it.
struct Leaf {
    /// Its first client.
    client: usize,
    plan: ExitPlan,
    /// Path and distributions.
    txs: Vec<SignedTx>,
    distributions: Vec<SignedTx>,
    paid: bool,
}

struct Silent {
    factory: Factory,
    /// Transactions of every path that the provider publishes.
    published: usize,
    /// Height at which it begins, so that the last of them confirms in the last block before the distributions.
    begin: u32,
    leaves: Vec<Leaf>,
    name: String,
}

/// What the provider leaves behind.
#[derive(Clone, Copy, Debug)]
enum Left {
    Nothing,
    Root,
    /// Everything above the leaves.
    AboveLeaves,
    /// Also all kickoffs.
    Kickoffs,
    /// Also so many states of every leaf.
    States(usize),
}

/// Every one of them for the default leaf of three layers: with its third state the leaf would be published.
const ALL: [Left; 6] =
    [Left::Nothing, Left::Root, Left::AboveLeaves, Left::Kickoffs, Left::States(1), Left::States(2)];

impl Silent {
    fn new(chain: &Rc<Chain>, clients: usize, per_leaf: u16, updates: u64, left: Left) -> Result<Self> {
        let factory = Factory::create_on(chain, clients, params(clients, per_leaf)?, updates)?;
        let mut leaves: Vec<Leaf> = Vec::new();
        let mut client = 0;
        while client < clients {
            let plan = plans::plan(&factory, client)?;
            let (txs, (_, distributions)) = (factory.path(client)?, factory.leaf(client)?);
            leaves.push(Leaf { client, plan, txs, distributions, paid: false });
            client += factory.members(client)?.len();
        }
        let plan = &leaves[0].plan;
        let published = match left {
            Left::Nothing => 0,
            Left::Root => 1,
            Left::AboveLeaves => plan.leaf_start,
            Left::Kickoffs => plan.leaf_start + 1,
            Left::States(states) => plan.leaf_start + 1 + states,
        };
        let blocks = plan.steps[..published].iter().map(|step| u32::from(step.relative_delay).max(1));
        let begin = factory.expiry - blocks.sum::<u32>();
        ensure!(begin >= chain.height()?, "the expiry is too near");
        let name = format!("{clients} clients, {per_leaf} a leaf, after {updates} updates, {left:?}");
        Ok(Self { factory, published, begin, leaves, name })
    }

    fn over(&self) -> bool {
        self.leaves.iter().all(|leaf| leaf.paid)
    }

    fn act(&mut self, view: &Watched, tip: u32) -> Result<()> {
        if tip < self.factory.expiry {
            for leaf in &self.leaves {
                let action = leaf.plan.distribution_action(&view.chain, tip);
                ensure!(matches!(action, DistributionAction::Wait { .. }), "{action:?} before the expiry");
            }
            if tip >= self.begin {
                self.provider(view, tip)?;
            }
            if tip + 1 == self.factory.expiry || tip == self.begin {
                for distribution in self.leaves.iter().flat_map(|leaf| &leaf.distributions) {
                    self.factory.refused(distribution, "non-final")?;
                }
            }
            return Ok(());
        }
        self.watchers(view, tip)
    }

    /// The provider publishes its part of every path.
    fn provider(&mut self, view: &Watched, tip: u32) -> Result<()> {
        let mut offered = BTreeSet::new();
        for leaf in &self.leaves {
            if let ExitAction::Publish { step } = leaf.plan.next_action(&view.chain, tip) {
                if step < self.published {
                    offer(&mut self.factory, &mut offered, &leaf.txs, &leaf.plan.steps[step])?;
                }
            }
        }
        Ok(())
    }

    /// One watcher for each leaf.
    fn watchers(&mut self, view: &Watched, tip: u32) -> Result<()> {
        let mut offered = BTreeSet::new();
        for leaf in &mut self.leaves {
            match leaf.plan.distribution_action(&view.chain, tip) {
                DistributionAction::Wait { .. } => {}
                DistributionAction::PublishPath { step } => {
                    ensure!(step >= self.published, "step {step} was published by the provider");
                    offer(&mut self.factory, &mut offered, &leaf.txs, &leaf.plan.steps[step])?;
                }
                DistributionAction::Publish { distribution } => {
                    let step = &leaf.plan.distributions[distribution];
                    offer(&mut self.factory, &mut offered, &leaf.distributions, step)?;
                }
                DistributionAction::Done { distribution } if !leaf.paid => {
                    let expected = self.published.saturating_sub(leaf.plan.leaf_start);
                    ensure!(distribution == expected, "distribution {distribution}, expected {expected}");
                    self.factory.check_distribution(&leaf.distributions[distribution], leaf.client)?;
                    leaf.paid = true;
                }
                DistributionAction::Done { .. } => {}
                other => bail!("leaf of client {} at height {tip}: {other:?}", leaf.client),
            }
        }
        Ok(())
    }
}

/// Offers a step, once if several leaves need it.
fn offer(
    factory: &mut Factory,
    offered: &mut BTreeSet<Txid>,
    txs: &[SignedTx],
    step: &ExitStep,
) -> Result<()> {
    if offered.insert(step.txid) {
        factory.offer(&plans::signed(txs, step)).with_context(|| step.kind.to_string())?;
    }
    Ok(())
}

/// Runs all of them in the same blocks, until every client is paid.
fn run(chain: &Chain, mut factories: Vec<Silent>) -> Result<()> {
    let mut view = Watched::new();
    let last = factories.iter().map(|silent| silent.factory.expiry).max().unwrap_or_default() + 400;
    chain.mine_to(factories.iter().map(|silent| silent.begin).min().unwrap_or_default())?;
    loop {
        let tip = view.update(chain)?;
        for silent in &mut factories {
            silent.act(&view, tip).with_context(|| silent.name.clone())?;
        }
        if factories.iter().all(Silent::over) {
            break;
        }
        ensure!(tip < last, "not every client is paid at height {tip}");
        chain.mine(1)?;
    }
    // Whatever the provider could get from a leaf goes to its stock script.
    let script = format!("raw({})", stock_script().to_hex_string());
    let found: Value = chain.rpc().call("scantxoutset", json!(["start", [script]]))?;
    ensure!(found["unspents"] == json!([]), "the provider got {found}");
    Ok(())
}

fn silent(cases: impl IntoIterator<Item = (usize, u16, u64, Left)>) -> Result<()> {
    let chain = Chain::start()?;
    let factories = cases
        .into_iter()
        .map(|(clients, per_leaf, updates, left)| Silent::new(&chain, clients, per_leaf, updates, left));
    let factories = factories.collect::<Result<Vec<_>>>()?;
    run(&chain, factories)
}

/// One up to `most` clients a leaf.
fn every_stage(clients: usize, most: u16) -> Result<()> {
    silent((1..=most).flat_map(|per_leaf| ALL.map(|left| (clients, per_leaf, 0, left))))
}

#[test]
fn two_clients() -> Result<()> {
    every_stage(2, 2)
}

#[test]
fn three_clients() -> Result<()> {
    every_stage(3, 3)
}

#[test]
fn eight_clients() -> Result<()> {
    every_stage(8, 3)
}

/// Two interior levels, so that the root and all that is above the leaves are not the same.
#[test]
fn twenty_clients() -> Result<()> {
    let cases = [
        (1, Left::Nothing),
        (1, Left::Root),
        (1, Left::AboveLeaves),
        (1, Left::Kickoffs),
        (2, Left::States(1)),
        (3, Left::States(2)),
    ];
    silent(cases.map(|(per_leaf, left)| (20, per_leaf, 0, left)))
}

/// Later positions: shorter delays for the states, the same for the distributions, and an earlier height for these
/// where clients share a leaf.
#[test]
fn after_updates() -> Result<()> {
    let left = [Left::Nothing, Left::Kickoffs, Left::States(1), Left::States(2)];
    let after = [(3, 1, 5), (3, 2, 3), (3, 3, 7)];
    silent(after.into_iter().flat_map(|(n, per, updates)| left.map(|left| (n, per, updates, left))))
}
