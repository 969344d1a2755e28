//! The planner's figures against an independent computation, and every refusal once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use bitcoin::Network;
use factory_core::params::{DwLayer, Params, Shape};
use factory_core::planner::{exit_steps, limits, plan, plan_with, PlanOptions, StepKind};
use factory_core::{sizes, Error};

/// What an independent planner printed for the default factories.
struct Expected {
    clients: usize,
    arity: &'static [u16],
    exit: (u32, u32),
    claim: (u32, u32),
    updates: u64,
    exit_vbytes: u64,
    tree: (u64, u64),
    tree_sessions: u64,
    tree_partials: u64,
    path_bytes: u64,
}

#[rustfmt::skip]
const TABLE: [Expected; 9] = [
    Expected { clients: 2, arity: &[2], exit: (396, 426), claim: (287, 312), updates: 14, exit_vbytes: 1818, tree: (2622, 3316), tree_sessions: 9, tree_partials: 19, path_bytes: 961 },
    Expected { clients: 4, arity: &[4], exit: (396, 426), claim: (287, 312), updates: 28, exit_vbytes: 1904, tree: (5010, 6398), tree_sessions: 17, tree_partials: 37, path_bytes: 1047 },
    Expected { clients: 8, arity: &[8], exit: (396, 426), claim: (287, 312), updates: 56, exit_vbytes: 2076, tree: (9786, 12562), tree_sessions: 33, tree_partials: 73, path_bytes: 1219 },
    Expected { clients: 16, arity: &[4, 4], exit: (397, 432), claim: (288, 318), updates: 112, exit_vbytes: 2310, tree: (20446, 25998), tree_sessions: 69, tree_partials: 165, path_bytes: 1351 },
    Expected { clients: 32, arity: &[8, 4], exit: (397, 432), claim: (288, 318), updates: 224, exit_vbytes: 2482, tree: (40658, 51762), tree_sessions: 137, tree_partials: 329, path_bytes: 1523 },
    Expected { clients: 64, arity: &[8, 8], exit: (397, 432), claim: (288, 318), updates: 448, exit_vbytes: 2654, tree: (78866, 101074), tree_sessions: 265, tree_partials: 649, path_bytes: 1695 },
    Expected { clients: 128, arity: &[16, 8], exit: (397, 432), claim: (288, 318), updates: 896, exit_vbytes: 2998, tree: (157498, 201914), tree_sessions: 529, tree_partials: 1297, path_bytes: 2039 },
    Expected { clients: 256, arity: &[8, 8, 4], exit: (373, 408), claim: (264, 294), updates: 768, exit_vbytes: 2783, tree: (254930, 343762), tree_sessions: 841, tree_partials: 2377, path_bytes: 1824 },
    Expected { clients: 512, arity: &[8, 8, 8], exit: (373, 408), claim: (264, 294), updates: 1536, exit_vbytes: 2955, tree: (489682, 667346), tree_sessions: 1609, tree_partials: 4681, path_bytes: 1996 },
];

fn bitcoin_default(clients: usize) -> Params {
    Params::default_for(clients, Network::Bitcoin).unwrap()
}

#[test]
fn default_factories_have_the_published_figures() {
    for e in TABLE {
        let params = bitcoin_default(e.clients);
        let r = plan(&params, e.clients).unwrap();
        let n = e.clients as u64;
        assert_eq!(params.shape.arity, e.arity, "{n} clients");
        assert_eq!((r.exit_fast, r.exit_worst), e.exit, "{n} clients");
        assert_eq!((r.claim_fast, r.claim_worst), e.claim, "{n} clients");
        assert_eq!(r.updates_per_factory, e.updates, "{n} clients");
        assert_eq!(r.exit_vbytes, e.exit_vbytes, "{n} clients");
        assert_eq!((r.tree_vbytes, r.tree_with_commitments_vbytes), e.tree, "{n} clients");
        assert_eq!(r.tree_sessions, e.tree_sessions, "{n} clients");
        assert_eq!(r.path_bytes, e.path_bytes, "{n} clients");
        // Each leaf's distributions are signed by its client and the provider.
        assert_eq!(r.partials, e.tree_partials + 2 * r.distribution_sessions, "{n} clients");
        let layers = if n <= 128 { 3 } else { 2 };
        assert_eq!(r.distribution_sessions, n * (layers + 1), "{n} clients");
        assert_eq!(r.partials_provider, r.tree_sessions + r.distribution_sessions);
        assert_eq!(r.distribution_bytes, 175 * (layers + 1), "{n} clients");
    }
}

#[test]
fn two_clients_a_leaf_have_the_published_figures() {
    let mut params = Params::default_with(64, 2, Network::Bitcoin).unwrap();
    assert_eq!(params.shape.arity, [8, 4]);
    let r = plan(&params, 64).unwrap();
    assert_eq!(
        (r.exit_vbytes, r.tree_vbytes, r.tree_sessions + 1, r.updates_per_factory),
        (2525, 42034, 138, 224)
    );
    // Seven updates sign distributions 48 blocks apart.
    assert_eq!(r.distribution_spread, 7 * 48);
    assert_eq!(r.lifetime, 4320 + 432 + 144 + 432 + 336);
    params.shape.clients_per_leaf = 1;
    params.shape.arity = vec![8, 8];
    assert_eq!(plan(&params, 64).unwrap().lifetime, 4320 + 432 + 144 + 432);
}

#[test]
fn default_htlc_and_money_figures() {
    let r = plan(&bitcoin_default(64), 64).unwrap();
    assert_eq!((r.early_warning, r.min_final_cltv_expiry_delta), (318, 465));
    assert_eq!(
        (r.route_left_sender, r.route_left_limit, r.route_left_two_factories),
        (463, 1471, Some(1153))
    );
    assert_eq!((r.race_window, r.notice), (48, 144));
    assert_eq!((r.updates_per_leaf, r.leaf_state_transactions), (7, 14));
    assert_eq!((r.sweep_vbytes, r.dearest_package_vbytes), (133, 425 + 153));
    let at_50 = r.costs.iter().find(|c| c.sat_per_vbyte == 50).unwrap();
    assert_eq!(at_50.with_sweep, 139_350);
    let signers: Vec<u64> = r.levels.iter().map(|l| l.signers).collect();
    assert_eq!(signers, [65, 9, 2]);
    let quick = PlanOptions { patience: 36, ..PlanOptions::default() };
    let r = plan_with(&bitcoin_default(64), 64, &quick).unwrap();
    assert_eq!((r.min_final_cltv_expiry_delta, r.route_left_sender), (357, 571));
}

#[test]
fn sizes_of_single_transactions() {
    let vb = |s: sizes::TxSize| s.vbytes();
    assert_eq!([2, 4, 8, 16].map(|a| vb(sizes::tree_tx(a))), [167, 253, 425, 769]);
    assert_eq!([1, 2, 3, 4].map(|k| vb(sizes::leaf_state(k))), [167, 210, 253, 296]);
    assert_eq!((vb(sizes::kickoff()), vb(sizes::child()), vb(sizes::child_p2wpkh())), (124, 153, 163));
    assert_eq!((vb(sizes::commitment()), vb(sizes::sweep()), vb(sizes::htlc_success())), (194, 133, 276));
    // 252 and 253 outputs differ by two more bytes of count.
    assert_eq!(sizes::tree_tx(252).base - sizes::tree_tx(251).base, 43 + 2);
}

/// The sizes against the serialization of real transactions of the same form.
#[test]
fn sizes_match_serialized_transactions() {
    use bitcoin::{
        absolute, transaction, Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness,
    };
    let out = |script: Vec<u8>| TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from_bytes(script) };
    let tx = |witnesses: Vec<Vec<usize>>, outs: Vec<TxOut>| Transaction {
        version: transaction::Version(3),
        lock_time: absolute::LockTime::ZERO,
        input: witnesses
            .into_iter()
            .map(|items| TxIn {
                previous_output: OutPoint::null(),
                script_sig: ScriptBuf::new(),
                sequence: Sequence::ZERO,
                witness: Witness::from_slice(&items.iter().map(|n| vec![1u8; *n]).collect::<Vec<_>>()),
            })
            .collect(),
        output: outs,
    };
    let key_path = || vec![64];
    let p2tr = || out(vec![0x51; 34]);
    let p2a = || out(vec![0x51, 0x02, 0x4e, 0x73]);
    let same = |size: sizes::TxSize, tx: &Transaction| {
        assert_eq!(
            (size.weight(), size.vbytes(), size.bytes()),
            (tx.weight().to_wu(), tx.vsize() as u64, tx.total_size() as u64)
        );
    };
    for n in [1u64, 2, 3, 8, 16, 230, 251, 252, 253, 300] {
        let mut outs: Vec<TxOut> = (0..n).map(|_| p2tr()).collect();
        outs.push(p2a());
        same(sizes::tree_tx(n), &tx(vec![key_path()], outs));
    }
    // An empty stack is a P2A input's witness.
    same(sizes::child(), &tx(vec![vec![], key_path()], vec![p2tr()]));
    same(sizes::child_p2wpkh(), &tx(vec![vec![], vec![72, 33]], vec![p2tr()]));
    same(sizes::commitment(), &tx(vec![vec![0, 72, 72, 71]], vec![p2tr(), out(vec![0; 22]), p2a()]));
    same(sizes::sweep(), &tx(vec![vec![72, 0, 77]], vec![p2tr()]));
}

#[test]
fn exit_steps_are_the_path_in_order() {
    let steps = exit_steps(&bitcoin_default(64), 64, 63).unwrap();
    let kinds: Vec<_> = steps.iter().map(|s| (s.level, s.kind, s.delay)).collect();
    let state = |layer| StepKind::State { layer };
    assert_eq!(
        kinds,
        [
            (0, StepKind::Static, 0),
            (1, StepKind::Static, 0),
            (2, StepKind::Kickoff, 0),
            (2, state(0), 144),
            (2, state(1), 48),
            (2, state(2), 48),
            (3, StepKind::Commitment, 0),
        ]
    );
    assert!(matches!(
        exit_steps(&bitcoin_default(64), 64, 64),
        Err(Error::OutOfRange { field: "client index", value: 64, max: 63, .. })
    ));
}

#[test]
fn delays_of_a_layer() {
    let layer = DwLayer { states: 4, step: 72, base: 10 };
    let all: Vec<_> = (0..4).map(|i| layer.sequence(i).unwrap()).collect();
    assert_eq!(all, [226, 154, 82, 10]);
    assert_eq!((layer.oldest(), layer.distribution_sequence().unwrap()), (226, 298));
    assert!(matches!(layer.sequence(4), Err(Error::OutOfRange { field: "state", value: 4, max: 3, .. })));
    // 16 bits: 65,535 fits, one more does not.
    let edge = DwLayer { states: 2, step: 32_768, base: 32_767 };
    assert_eq!(edge.sequence(0).unwrap(), 65_535);
    assert_eq!(
        DwLayer { base: 32_768, ..edge }.sequence(0),
        Err(Error::Overflow { field: "layer delay (16 bits)" })
    );
    assert!(matches!(edge.distribution_sequence(), Err(Error::Overflow { .. })));
    assert!(DwLayer { states: 0, step: 1, base: 0 }.sequence(0).is_err());
}

#[test]
fn report_prints_and_survives_json() {
    let r = plan(&bitcoin_default(64), 64).unwrap();
    let text = r.to_string();
    for needle in
        ["8x8, 1", "397 / 432 blocks", "288 / 318 blocks", "465 (patience 144)", "139350 sat", "265 + 256"]
    {
        assert!(text.contains(needle), "{needle} missing in\n{text}");
    }
    let json = serde_json::to_string(&r).unwrap();
    assert_eq!(serde_json::from_str::<factory_core::planner::PlanReport>(&json).unwrap(), r);
    let params = bitcoin_default(300);
    let json = serde_json::to_string(&params).unwrap();
    assert_eq!(serde_json::from_str::<Params>(&json).unwrap(), params);
}

/// One way to spoil parameters.
type Change = fn(&mut Params);

/// Applies `change` to a valid factory of 64 and returns the refusal.
fn refusal(network: Network, change: impl Fn(&mut Params)) -> Error {
    let mut params = Params::default_for(64, network).unwrap();
    change(&mut params);
    let refusal = params.validate(64).expect_err("accepted");
    assert!(plan(&params, 64).is_err(), "the planner accepts what the check refuses");
    refusal
}

fn assert_range(network: Network, name: &str, change: impl Fn(&mut Params)) {
    match refusal(network, change) {
        Error::OutOfRange { field, value, min, max } => {
            assert_eq!(field, name);
            assert!(value < min || value > max);
        }
        other => panic!("{name}: {other}"),
    }
}

#[test]
fn numbers_of_clients() {
    for clients in [0, 1, 1001, usize::MAX] {
        let at = |e| matches!(e, Error::OutOfRange { field: "clients", min: 2, max: 1000, .. });
        assert!(at(Params::default_for(clients, Network::Regtest).unwrap_err()));
        assert!(at(bitcoin_default(64).validate(clients).unwrap_err()));
    }
}

#[test]
fn times_below_their_minimum_are_refused_except_on_regtest() {
    let looser: [(&str, Change); 7] = [
        ("confirm_blocks", |p| p.confirm_blocks = 5),
        ("active", |p| p.active = 4319),
        ("dying", |p| p.dying = 431),
        ("margin", |p| p.margin = 143),
        ("reorg_margin", |p| p.reorg_margin = 5),
        ("min_depth", |p| p.min_depth = 5),
        ("layer.step", |p| p.shape.layers[2][1].step = 35),
    ];
    for (name, change) in looser {
        for network in [Network::Bitcoin, Network::Testnet, Network::Testnet4, Network::Signet] {
            assert_range(network, name, change);
        }
        let mut params = Params::default_for(64, Network::Regtest).unwrap();
        change(&mut params);
        params.validate(64).unwrap();
    }
    let everywhere: [(&str, Change); 16] = [
        ("active", |p| p.active = 0),
        ("active", |p| p.active = 52_561),
        ("dying", |p| p.dying = 0),
        ("dying", |p| p.dying = u32::MAX),
        ("margin", |p| p.margin = 0),
        ("margin", |p| p.margin = u32::MAX),
        ("confirm_blocks", |p| p.confirm_blocks = 0),
        ("confirm_blocks", |p| p.confirm_blocks = u16::MAX),
        ("reorg_margin", |p| p.reorg_margin = 0),
        ("to_self_delay", |p| p.to_self_delay = 143),
        ("to_self_delay", |p| p.to_self_delay = 2017),
        ("min_depth", |p| p.min_depth = 0),
        ("min_depth", |p| p.min_depth = 145),
        ("layer.step", |p| p.shape.layers[2][0].step = 0),
        ("layer.states", |p| p.shape.layers[2][0].states = 1),
        ("layer.states", |p| p.shape.layers[2][0].states = 0),
    ];
    for (name, change) in everywhere {
        assert_range(Network::Bitcoin, name, change);
        assert_range(Network::Regtest, name, change);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let net = Network::Bitcoin;
    assert_range(net, "shape.arity", |p| p.shape.arity[0] = 0);
    assert_range(net, "shape.arity", |p| p.shape.arity[1] = 1);
    assert_range(net, "shape.clients_per_leaf", |p| p.shape.clients_per_leaf = 0);
    assert_range(net, "number of interior levels", |p| p.shape.arity = vec![2; 11]);
    assert_range(net, "number of layers of a level", |p| {
        p.shape.layers[2] = vec![DwLayer { states: 2, step: 36, base: 0 }; 17];
    });
    assert_eq!(refusal(net, |p| p.shape.arity[0] = 7), Error::ShapeTooSmall { capacity: 56, clients: 64 });
    assert_eq!(
        refusal(net, |p| p.shape.arity = vec![8, 8, 2]),
        Error::WastefulLevel { level: 2, leaves: 64 }
    );
    assert_eq!(refusal(net, |p| p.shape.layers.push(vec![])), Error::LayerLists { found: 4, needed: 3 });
    assert_eq!(
        refusal(net, |p| {
            p.shape.layers.remove(0);
        }),
        Error::LayerLists { found: 2, needed: 3 }
    );
    assert_eq!(
        refusal(net, |p| p.shape.layers[2][1].base = 1),
        Error::BaseOnInnerLayer { level: 2, layer: 1, base: 1 }
    );
    assert!(matches!(
        refusal(net, |p| p.shape.layers[2][0] = DwLayer { states: 2, step: 40_000, base: 0 }),
        Error::Overflow { .. }
    ));
    let wide = Shape { clients_per_leaf: 230, arity: vec![2], layers: vec![vec![], vec![]] };
    let mut params = Params { shape: wide, ..bitcoin_default(64) };
    assert_eq!(
        params.validate(460),
        Err(Error::TransactionTooLarge {
            field: "leaf state",
            vbytes: 10_014,
            limit: limits::TRUC_MAX_VBYTES
        })
    );
    params.shape.clients_per_leaf = 229;
    params.validate(458).unwrap();
}

#[test]
fn exits_that_take_too_long_are_refused() {
    // 397 blocks with one a confirmation: each further block costs one. 2016 is the last that fits LDK's
    // limit; the sender's default is the tighter bound, so a long to_self_delay, which is no part of the
    // claim budget, is used to reach it.
    let base = bitcoin_default(64);
    let exit = base.worst_exit(6).unwrap();
    let longest = 144 + u16::try_from(2016 - exit).unwrap();
    let mut params = Params { to_self_delay: longest, ..base.clone() };
    params.validate(64).unwrap();
    params.to_self_delay += 1;
    assert_eq!(params.validate(64), Err(Error::ExitTooLong { blocks: 2017, limit: 2016 }));

    // 1008 - 48 - 3 is the largest claim budget that leaves a default sender the provider's hop.
    let claim = base.claim_budget(6).unwrap();
    let mut params = base.clone();
    params.shape.layers[2][0].base += u16::try_from(1008 - 48 - 3 - claim).unwrap();
    params.validate(64).unwrap();
    params.shape.layers[2][0].base += 1;
    assert_eq!(params.validate(64), Err(Error::NoRouteLeft { final_delta: 961, needed: 48, limit: 1008 }));
    let patient = PlanOptions { patience: 1000, ..PlanOptions::default() };
    assert!(matches!(plan_with(&base, 64, &patient), Err(Error::NoRouteLeft { .. })));
    let forever = PlanOptions { patience: u16::MAX, ..PlanOptions::default() };
    assert!(plan_with(&base, 64, &forever).is_err());
    let hop = PlanOptions { own_hop: 47, ..PlanOptions::default() };
    assert!(matches!(plan_with(&base, 64, &hop), Err(Error::OutOfRange { field: "own hop", .. })));
    let many = PlanOptions { feerates: vec![1; 33], ..PlanOptions::default() };
    assert!(plan_with(&base, 64, &many).is_err());
}

#[test]
fn a_peer_cannot_overflow_the_update_counter() {
    // On regtest steps of one block allow many layers: 10^30 updates do not fit 64 bits.
    let mut params = Params::default_for(64, Network::Regtest).unwrap();
    let layers = vec![DwLayer { states: 10, step: 1, base: 0 }; 15];
    params.shape.layers = vec![layers.clone(), vec![], layers];
    assert_eq!(params.validate(64), Err(Error::Overflow { field: "number of updates" }));
    params.shape.layers[0].clear();
    params.validate(64).unwrap();
}
