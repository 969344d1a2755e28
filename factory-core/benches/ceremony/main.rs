//! The ceremony that creates a factory, in one process without sockets, against the least it can cost.
//!
//! `make bench` prints the tables, `cargo bench -p factory-core --bench ceremony -- 64 1000` those of these sizes. Only ratios within one run mean anything: times
//! are CPU times, and the floor is measured by the same program in the same run. The outcome of each ceremony is
//! checked, the times are not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]

mod clock;
mod floor;
mod party;

use std::time::Duration;

use bitcoin::Network;
use clock::ms;
use factory_core::ceremony::Phase;
use factory_core::params::Params;
use floor::Units;
use party::Account;

/// Numbers of clients.
const SIZES: [usize; 5] = [8, 32, 128, 256, 512];
/// Ceremonies of each size; the cheapest counts, since whatever else runs on the machine only adds.
const RUNS: usize = 4;

/// The cheapest of several ceremonies.
struct Best {
    account: Account,
    /// CPU of one client, the mean of all.
    client: Duration,
}

impl Best {
    fn of(params: &Params, n: usize, runs: usize) -> Self {
        let runs: Vec<_> = (0..runs).map(|_| party::ceremony(params, n)).collect();
        let mean = |run: &Account| run.clients.iter().map(|c| c.cpu).sum::<Duration>() / n as u32;
        let client = runs.iter().map(mean).min().expect("a run");
        let account = runs.into_iter().min_by_key(|run| run.lsp.cpu).expect("a run");
        Self { account, client }
    }
}

/// By level, the sessions of a node: its transactions, at the leaf a distribution for each as well.
fn sessions(params: &Params) -> Vec<usize> {
    let levels = params.shape.levels();
    let count = |level: usize| params.shape.layers_at(level).len() + 1;
    (0..levels).map(|level| if level + 1 == levels { 2 * count(level) } else { count(level) }).collect()
}

fn arity(params: &Params) -> String {
    let list: Vec<_> = params.shape.arity.iter().map(u16::to_string).collect();
    list.join("x")
}

fn main() {
    // `cargo test` runs benches as tests, with one ceremony to see that they work.
    let quick = std::env::args().any(|arg| arg == "--test");
    let mut sizes: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = if quick { SIZES[..1].to_vec() } else { SIZES.to_vec() };
    }
    let plans: Vec<_> = sizes
        .iter()
        .map(|n| (*n, Params::default_with(*n, 1, Network::Regtest).expect("default parameters")))
        .collect();
    let mut signers: Vec<_> = plans.iter().flat_map(|(n, params)| floor::signers(params, *n)).collect();
    signers.sort_unstable();
    signers.dedup();
    // Before the ceremonies and after them, so that a busy machine hits both sides.
    let before = Units::measure(&signers);
    let runs: Vec<_> =
        plans.iter().map(|(n, params)| Best::of(params, *n, if quick { 1 } else { RUNS })).collect();
    let units = Units::measure(&signers).min(&before);
    println!("unit costs, us of CPU (libsecp256k1 through its bindings)");
    println!(
        "  read: key {:.1}, nonce {:.1}, aggregate nonce {:.1}; draw a nonce {:.1}, session {:.1}, partial signature \
         {:.1}; verify: final {:.1}, partial {:.1}",
        units.key,
        units.read_nonce,
        units.read_aggregate,
        units.nonce,
        units.session,
        units.sign,
        units.verify,
        units.verify_partial
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("\nceremony, ms of CPU, {cores} cores (LSP: whole process; one client: mean of all; bytes per client)");
    println!(
        "  {:>4} {:>7} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9} {:>6} {:>9} {:>9}",
        "N", "tree", "LSP", "floor", "ratio", "LSP wall", "client", "floor", "ratio", "down", "up"
    );
    for ((n, params), Best { account, client }) in plans.iter().zip(&runs) {
        let floor = units.floor(params, *n, &sessions(params));
        println!(
            "  {n:>4} {:>7} {:>9.1} {:>9.1} {:>6.2} {:>9.1} {:>9.2} {:>9.2} {:>6.2} {:>9} {:>9}",
            arity(params),
            ms(account.lsp.cpu),
            floor.lsp,
            ms(account.lsp.cpu) / floor.lsp,
            ms(account.lsp.wall),
            ms(*client),
            floor.client,
            ms(*client) / floor.client,
            account.sent / n,
            account.received / n,
        );
    }
    println!("\nLSP by phase, ms of CPU / of wall clock (record: as it is stored, KB)");
    let names =
        [Phase::Inviting, Phase::Planning, Phase::Opening, Phase::Funding, Phase::Nonces, Phase::Partials];
    let rest = [Phase::Recording, Phase::Persisting, Phase::Done];
    print!("  {:>4}", "N");
    for phase in names {
        print!(" {:>15}", format!("{phase:?}"));
    }
    println!(" {:>15} {:>8} {:>15}", "after", "record", "writing it");
    for ((n, _), Best { account, .. }) in plans.iter().zip(&runs) {
        let of = |wanted: &[Phase]| {
            let all = account.phases.iter().filter(|(p, _)| wanted.contains(p)).map(|(_, s)| *s);
            let sum = all.fold(clock::Spent::default(), |mut sum, s| {
                sum += s;
                sum
            });
            format!("{:.1}/{:.1}", ms(sum.cpu), ms(sum.wall))
        };
        print!("  {n:>4}");
        for phase in names {
            print!(" {:>15}", of(&[phase]));
        }
        let writing = format!("{:.1}/{:.1}", ms(account.storing.cpu), ms(account.storing.wall));
        println!(" {:>15} {:>8} {writing:>15}", of(&rest), account.record / 1000);
    }
}
