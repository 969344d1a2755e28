//! Old states against the newest. A hostile party holds everything that was ever signed and submits each superseded
//! transaction in every block from when it is valid. The other side holds the newest path and publishes each state of
//! it as soon as its plan says so, or at the last moment that is in time. One block later the old state wins, which
//! shows that the races are real.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{bail, ensure, Result};
use factory_core::exit::{ChainView, ExitAction, ExitPlan};
use factory_core::params::{DwLayer, Params, Shape};
use factory_core::transaction::{SignedTx, TxKind};

use crate::factory::{params, Chain, Factory};
use crate::plans::{self, Watched};

/// More blocks than any race here lasts.
const LONGEST: u32 = 200;
/// How often an old state that was overtaken is submitted again.
const TRIES: usize = 2;

/// When the newest state is published.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Timing {
    /// As soon as it is valid.
    Prompt,
    /// In time for the block before the old state could confirm.
    LastChance,
    /// One block after that.
    TooLate,
}

struct Old {
    tx: SignedTx,
    /// Times it was refused because a newer state had been faster.
    overtaken: usize,
}

struct Race {
    factory: Factory,
    timing: Timing,
    plan: ExitPlan,
    path: Vec<SignedTx>,
    old: Vec<Old>,
    /// The newest position and, where it loses, the old one.
    name: String,
    over: bool,
}

impl Race {
    /// A factory at position `newest` whose hostile party holds the positions `older`.
    fn new(
        chain: &Rc<Chain>,
        clients: usize,
        params: &Params,
        newest: u64,
        older: impl IntoIterator<Item = u64>,
        timing: Timing,
    ) -> Result<Self> {
        let factory = Factory::create_on(chain, clients, params.clone(), newest)?;
        let plan = plans::plan(&factory, 0)?;
        let path = factory.path(0)?;
        let mut seen: BTreeSet<_> = path.iter().map(SignedTx::txid).collect();
        let mut old = Vec::new();
        let mut positions = Vec::new();
        for position in older {
            let superseded = factory.at(position, 0)?.0.into_iter().filter(|tx| seen.insert(tx.txid()));
            old.extend(superseded.map(|tx| Old { tx, overtaken: 0 }));
            positions.push(position);
        }
        let name = format!("{newest} against {positions:?}, {timing:?}");
        Ok(Self { factory, timing, plan, path, old, name, over: false })
    }

    /// What both sides do while the tip is at `tip`, the hostile one first.
    fn act(&mut self, view: &Watched, tip: u32) -> Result<()> {
        if self.over {
            return Ok(());
        }
        let won = self.hostile(view, tip)?;
        match self.plan.next_action(&view.chain, tip) {
            ExitAction::Publish { step } => {
                let tx = plans::signed(&self.path, &self.plan.steps[step]);
                if won {
                    ensure!(self.factory.offer(&tx).is_err(), "{} replaced an old state", tx.kind);
                } else if tip + 1 >= self.publish_in(&tx, view) {
                    self.factory.offer(&tx)?;
                }
            }
            ExitAction::Wait { .. } => {}
            ExitAction::Done => {
                ensure!(self.timing != Timing::TooLate, "the newest state won, though it was late");
                if self.fighting(view).all(|old| old.overtaken >= TRIES) {
                    self.factory.check_leaf(0)?;
                    self.over = true;
                }
            }
            ExitAction::Blocked { spent_by, .. } => {
                ensure!(self.timing == Timing::TooLate, "an old state won");
                ensure!(self.old.iter().any(|old| old.tx.txid() == spent_by), "{spent_by} is no old state");
                self.over = true;
            }
        }
        Ok(())
    }

    /// The old transactions whose parent confirmed.
    fn fighting<'a>(&'a self, view: &'a Watched) -> impl Iterator<Item = &'a Old> {
        self.old.iter().filter(|old| parent_height(&old.tx, view).is_some())
    }

    /// Submits every superseded transaction. Returns whether one was accepted.
    fn hostile(&mut self, view: &Watched, tip: u32) -> Result<bool> {
        let mut won = false;
        for old in &mut self.old {
            let Some(parent) = parent_height(&old.tx, view) else { continue };
            let valid_in = parent + u32::from(old.tx.relative_delay);
            if tip + 1 >= valid_in && self.timing == Timing::TooLate {
                if self.factory.height_of(&old.tx)?.is_none() {
                    self.factory.offer(&old.tx)?;
                    won = true;
                }
            } else if tip + 1 >= valid_in {
                self.factory.refused(&old.tx, "bad-txns-inputs-missingorspent")?;
                old.overtaken += 1;
            } else if tip == parent {
                self.factory.refused(&old.tx, "non-BIP68-final")?;
            }
        }
        Ok(won)
    }

    /// The height of the block in which the newest side wants `tx`.
    fn publish_in(&self, tx: &SignedTx, view: &Watched) -> u32 {
        // The fastest old state of the same layer.
        let rival = self.old.iter().filter(|old| old.tx.parent() == tx.parent());
        let rival = rival.map(|old| u32::from(old.tx.relative_delay)).min();
        match (rival, parent_height(tx, view), self.timing) {
            (Some(delay), Some(parent), Timing::LastChance) => parent + delay - 1,
            (Some(delay), Some(parent), Timing::TooLate) => parent + delay,
            _ => 0,
        }
    }
}

fn parent_height(tx: &SignedTx, view: &Watched) -> Option<u32> {
    view.chain.confirmed_at(&tx.parent()?.txid)
}

/// Runs all races in the same blocks.
fn run(chain: &Chain, races: &mut [Race]) -> Result<()> {
    let mut view = Watched::new();
    for _ in 0..LONGEST {
        let tip = view.update(chain)?;
        for race in races.iter_mut() {
            race.act(&view, tip).map_err(|error| error.context(race.name.clone()))?;
        }
        if races.iter().all(|race| race.over) {
            return Ok(());
        }
        chain.mine(1)?;
    }
    let left: Vec<_> = races.iter().filter(|race| !race.over).map(|race| &race.name).collect();
    bail!("not over after {LONGEST} blocks: {left:?}")
}

/// Every position of this shape against all older ones, prompt and at the last moment; then each older one against a
/// newest that comes too late.
fn fight(clients: usize, shape: Shape) -> Result<()> {
    let params = Params { shape, ..params(clients, 1)? };
    let last = params.path_updates()?;
    let chain = Chain::start()?;
    let mut races = Vec::new();
    for newest in 1..=last {
        for timing in [Timing::Prompt, Timing::LastChance] {
            races.push(Race::new(&chain, clients, &params, newest, 0..newest, timing)?);
        }
    }
    for older in 0..last {
        races.push(Race::new(&chain, clients, &params, last, [older], Timing::TooLate)?);
    }
    // Each state that is not the newest of its layer was fought on the way down the newest path.
    let digits = params.states_after(last)?;
    let expected: usize = digits.digits().map(usize::from).sum();
    let newest = &races[usize::try_from(last)? * 2 - 1];
    let parents: BTreeSet<_> = newest.path.iter().filter_map(SignedTx::parent).collect();
    let rivals = newest.old.iter().filter(|old| old.tx.parent().is_some_and(|p| parents.contains(&p)));
    let kinds: BTreeSet<_> = rivals.map(|old| old.tx.kind.to_string()).collect();
    assert_eq!(kinds.len(), expected, "{kinds:?}");
    assert!(newest
        .old
        .iter()
        .all(|old| matches!(old.tx.kind, TxKind::State { .. } | TxKind::Kickoff { .. })));
    run(&chain, &mut races)
}

fn layers(states: u16, step: u16, base: u16, count: usize) -> Vec<DwLayer> {
    (0..count).map(|i| DwLayer { states, step, base: if i == 0 { base } else { 0 } }).collect()
}

#[test]
fn one_layer_of_four_states() -> Result<()> {
    let layers = vec![Vec::new(), layers(4, 3, 2, 1)];
    fight(2, Shape { clients_per_leaf: 1, arity: vec![2], layers })
}

#[test]
fn three_stacked_layers() -> Result<()> {
    let layers = vec![Vec::new(), layers(2, 2, 4, 3)];
    fight(2, Shape { clients_per_leaf: 1, arity: vec![2], layers })
}

#[test]
fn a_layer_above_the_leaves() -> Result<()> {
    let layers = vec![layers(2, 4, 3, 1), layers(2, 3, 2, 2)];
    fight(2, Shape { clients_per_leaf: 1, arity: vec![2], layers })
}

#[test]
fn a_shared_leaf() -> Result<()> {
    fight(3, Shape { clients_per_leaf: 3, arity: Vec::new(), layers: vec![layers(2, 3, 1, 2)] })
}

/// After an update of a shared leaf the distributions of before come one step later than the new ones.
#[test]
fn old_distributions_come_too_late() -> Result<()> {
    let layers = vec![layers(2, 6, 4, 2)];
    let params = Params { shape: Shape { clients_per_leaf: 2, arity: Vec::new(), layers }, ..params(2, 2)? };
    let chain = Chain::start()?;
    for newest in 1..=params.path_updates()? {
        let mut factory = Factory::create_on(&chain, 2, params.clone(), newest)?;
        let (_, newer) = factory.leaf(0)?;
        let (_, older) = factory.at(newest - 1, 0)?;
        chain.mine_to(factory.expiry)?;
        factory.refused(&older[0], "non-final")?;
        factory.publish(&newer[0])?;
        chain.mine_to(factory.expiry + u32::from(params.distribution_step()))?;
        factory.refused(&older[0], "bad-txns-inputs-missingorspent")?;
        factory.check_distribution(&newer[0], 0)?;
    }
    Ok(())
}
