//! The tree itself: who can spend what, delays, sizes, and that a client comes to the same transactions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;

use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};
use bolt_tlv::payload::Payload;
use common::*;
use factory_core::ceremony::messages::{path_message, plan_message};
use factory_core::ceremony::ParamsChoice;
use factory_core::lifetime::Lifetime;
use factory_core::musig::AggKey;
use factory_core::params::Params;
use factory_core::path::{ClientPath, ClientPlan};
use factory_core::plan::{FactoryPlan, LeafMember, Member, PlanParts};
use factory_core::planner::exit_steps;
use factory_core::transaction::{anchor_output, TxKind};
use factory_core::tree::{Layout, Tree};
use factory_core::Error;
use proptest::prelude::*;

fn channel_id(i: usize) -> [u8; 32] {
    secret("channel", i)
}

fn parts(params: Params, clients: usize, stock: u64, seed: u64) -> PlanParts {
    let life = Lifetime::new(HEIGHT, &params, clients).unwrap();
    let members = (0..clients)
        .map(|i| Member {
            key: key("factory", i),
            share: LeafMember {
                capacity_sat: 330 + (seed.wrapping_mul(6_364_136_223_846_793_005) >> 40) + capacity(i),
                push_msat: 0,
                payout_script: payout(i),
                temporary_channel_id: channel_id(i),
            },
        })
        .collect();
    PlanParts {
        instance_id: [3; 32],
        params,
        birth_height: HEIGHT,
        expiry_height: life.expiry(),
        lsp_key: key("lsp", 0),
        members,
        leaf_stock_sat: stock,
        stock_script: stock_script(),
    }
}

fn tree(params: Params, clients: usize, stock: u64) -> Tree {
    let plan = FactoryPlan::new(parts(params, clients, stock, 1)).unwrap();
    let scripts: Vec<_> = (0..clients).map(|i| channel_script(&channel_id(i))).collect();
    let funding = OutPoint::new("aa".repeat(32).parse().unwrap(), 1);
    Tree::build(plan, &scripts, funding).unwrap()
}

fn shapes() -> Vec<(Params, usize, u64)> {
    vec![
        (regtest(2, 1), 2, 0),
        (regtest(13, 1), 13, 5_000),
        (regtest(13, 2), 13, 5_001),
        (regtest(50, 3), 50, 1_000),
        (shaped(8, 1, &[2, 4], &[1, 0, 2]), 8, 700),
        (shaped(6, 2, &[3], &[2, 3]), 6, 0),
        (shaped(4, 2, &[2], &[0, 0]), 4, 777),
    ]
}

/// No output above a channel can be spent without every client below it: its key is the aggregate of the provider
/// and exactly those clients, without a script path. Only the stock pays the provider.
#[test]
fn no_output_with_client_money_is_the_providers_alone() {
    let secp = bitcoin::secp256k1::Secp256k1::verification_only();
    for (params, n, stock) in shapes() {
        let tree = tree(params, n, stock);
        let mut scripts: BTreeMap<ScriptBuf, (usize, usize)> = BTreeMap::new();
        for node in tree.nodes() {
            let mut signers: Vec<_> = (node.first..node.end).map(|i| key("factory", i)).collect();
            signers.push(key("lsp", 0));
            let expected = AggKey::new(&signers).unwrap();
            assert_eq!(node.key.signers(), expected.signers(), "the signers of a node");
            let script = ScriptBuf::new_p2tr(&secp, expected.internal(), None);
            assert_eq!(node.script_pubkey(), script, "another key, or a script path");
            assert_eq!(node.key, expected);
            scripts.insert(node.script_pubkey(), (node.first, node.end));
        }
        for node in tree.nodes() {
            let leaf = !node.distributions.is_empty();
            for tx in node.sessions() {
                assert_eq!(tx.spends.script_pubkey, node.script_pubkey());
                let (last, outputs) = tx.tx.output.split_last().unwrap();
                assert_eq!(*last, anchor_output());
                let sum: u64 = outputs.iter().map(|o| o.value.to_sat()).sum();
                assert_eq!(sum, node.value_sat, "every transaction pays on all it spends");
                let distribution = matches!(tx.kind, TxKind::Distribution { .. });
                let branching = tx.txid() == node.txs.last().unwrap().txid();
                for (i, output) in outputs.iter().enumerate() {
                    if distribution {
                        let due = payout(node.first + i);
                        assert_eq!(output.script_pubkey, due, "a distribution pays somebody else");
                    } else if leaf && branching {
                        let script = &output.script_pubkey;
                        match node.first + i {
                            c if c < node.end => assert_eq!(*script, channel_script(&channel_id(c))),
                            _ => assert_eq!((output.value.to_sat(), script), (stock, &stock_script())),
                        }
                    } else {
                        let (first, end) = scripts[&output.script_pubkey];
                        assert!(node.first <= first && end <= node.end);
                        if !branching {
                            assert_eq!((first, end), (node.first, node.end));
                        }
                    }
                }
                if distribution {
                    assert_eq!(outputs.len(), node.end - node.first, "the provider gets nothing");
                    for (output, i) in outputs.iter().zip(node.first..) {
                        assert!(output.value.to_sat() >= tree.plan().members[i].share.capacity_sat);
                    }
                }
            }
        }
    }
}

/// Every client is reached exactly once, and all transactions form one tree under the funding output.
#[test]
fn all_transactions_hang_together() {
    for (params, n, stock) in shapes() {
        let tree = tree(params, n, stock);
        let mut known: BTreeMap<Txid, Transaction> = BTreeMap::new();
        for node in tree.nodes() {
            for tx in node.sessions() {
                let parent = tx.tx.input[0].previous_output;
                if parent == tree.funding_outpoint() {
                    assert_eq!(tx.spends, tree.funding_output().unwrap());
                } else {
                    let output = &known[&parent.txid].output[usize::try_from(parent.vout).unwrap()];
                    assert_eq!(tx.spends, *output);
                }
                known.insert(tx.txid(), tx.tx.clone());
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..n {
            let outpoint = tree.channel_outpoint(i).unwrap();
            assert!(seen.insert(outpoint));
            let output = &known[&outpoint.txid].output[usize::try_from(outpoint.vout).unwrap()];
            assert_eq!(output.script_pubkey, channel_script(&channel_id(i)));
            assert_eq!(output.value.to_sat(), tree.plan().members[i].share.capacity_sat);
        }
        assert!(tree.channel_outpoint(n).is_err());
    }
}

#[test]
fn delays_and_versions() {
    for (params, n, stock) in shapes() {
        let tree = tree(params.clone(), n, stock);
        for node in tree.nodes() {
            let layers = params.shape.layers_at(node.level);
            let expected = if layers.is_empty() { 1 } else { layers.len() + 1 };
            assert_eq!(node.txs.len(), expected);
            for tx in node.sessions() {
                assert_eq!(tx.tx.version.0, 3);
                let sequence = tx.tx.input[0].sequence;
                let lock = tx.tx.lock_time.to_consensus_u32();
                match tx.kind {
                    TxKind::Static { .. } | TxKind::Kickoff { .. } => {
                        assert_eq!((sequence.0, lock, tx.relative_delay), (0xffff_fffd, 0, 0));
                    }
                    TxKind::State { layer, state, .. } => {
                        let delay = layers[usize::from(layer)].sequence(state).unwrap();
                        assert_eq!(state, 0);
                        assert_eq!((sequence.0, lock), (u32::from(delay), 0));
                    }
                    TxKind::Distribution { position } => {
                        assert_eq!(lock, tree.plan().expiry_height);
                        let expected = match position {
                            0 => 0xffff_fffd,
                            i => {
                                let layer = layers[usize::from(i) - 1];
                                // Any state of the layer goes first.
                                let oldest = (0..layer.states).map(|s| layer.sequence(s).unwrap()).max();
                                u32::from(oldest.unwrap() + layer.step)
                            }
                        };
                        assert_eq!(sequence.0, expected);
                    }
                }
            }
            if !node.distributions.is_empty() {
                // One for each output of the leaf that a transaction of the leaf spends.
                assert_eq!(node.distributions.len(), node.txs.len());
                for (d, t) in node.distributions.iter().zip(&node.txs) {
                    assert_eq!(d.tx.input[0].previous_output, t.tx.input[0].previous_output);
                }
            }
        }
    }
}

#[test]
fn the_stock_is_shared_by_capacity() {
    let mut parts = parts(regtest(3, 3), 3, 1_000, 1);
    for (member, capacity) in parts.members.iter_mut().zip([1_000, 1_000, 5_000]) {
        member.share.capacity_sat = capacity;
    }
    let plan = FactoryPlan::new(parts).unwrap();
    let outputs = plan.leaf(0, 3).unwrap().distribution_outputs().unwrap();
    let values: Vec<_> = outputs.iter().map(|o| o.value.to_sat()).collect();
    // 142.86, 142.86 and 714.29, rounded down; the first gets the 2 that are left.
    assert_eq!(values, [1_144, 1_142, 5_714]);
}

/// The planner's byte counts are those of the signed transactions.
#[test]
fn sizes_are_exact() {
    for (n, params) in [
        (2, regtest(2, 1)),
        (20, regtest(20, 1)),
        (9, regtest(9, 2)),
        (8, shaped(8, 1, &[2, 4], &[1, 0, 2])),
        (4, shaped(4, 2, &[2], &[0, 0])),
    ] {
        let mut world = World::new(config(ParamsChoice::Fixed(params.clone()), n, 5_000));
        world.run();
        let record = world.lsp_record.as_ref().unwrap();
        for index in 0..n {
            let path = record.leaf_path(index).unwrap();
            let steps = exit_steps(&params, n, index).unwrap();
            assert_eq!(steps.len(), path.path.len() + 1, "and the commitment");
            for (step, tx) in steps.iter().zip(&path.path) {
                assert_eq!(step.size.weight(), tx.weight(), "{}", tx.kind);
                assert_eq!(step.delay, tx.relative_delay);
            }
        }
    }
}

#[test]
fn plans_that_break_a_rule_do_not_exist() {
    type Break = fn(&mut PlanParts);
    let cases: Vec<Break> = vec![
        |p| p.expiry_height -= 1,
        |p| p.members[1].key = p.members[0].key,
        |p| p.members[1].key = p.lsp_key,
        |p| p.members[0].share.capacity_sat = 329,
        |p| p.members[0].share.capacity_sat = 21_000_000 * 100_000_000 + 1,
        |p| p.members.iter_mut().for_each(|m| m.share.capacity_sat = 11_000_000 * 100_000_000),
        |p| p.members[0].share.push_msat = u64::MAX,
        |p| p.members[0].share.payout_script = ScriptBuf::new(),
        |p| p.members[0].share.temporary_channel_id = p.members[1].share.temporary_channel_id,
        |p| p.leaf_stock_sat = 100,
        |p| p.stock_script = ScriptBuf::new(),
        |p| p.params.shape.layers.clear(),
        |p| {
            p.members.pop();
        },
    ];
    let good = parts(regtest(2, 1), 2, 1_000, 1);
    assert!(FactoryPlan::new(good.clone()).is_ok());
    for (i, change) in cases.into_iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(FactoryPlan::new(bad.clone()).is_err(), "case {i}");
        let json = serde_json::to_string(&bad).unwrap();
        assert!(serde_json::from_str::<FactoryPlan>(&json).is_err(), "case {i} from a record");
    }
    let json = serde_json::to_string(&FactoryPlan::new(good.clone()).unwrap()).unwrap();
    assert_eq!(*serde_json::from_str::<FactoryPlan>(&json).unwrap(), good);
}

fn any_params() -> impl Strategy<Value = (Params, usize)> {
    prop_oneof![
        (2usize..60, 1u16..5).prop_map(|(n, k)| (regtest(n, k), n)),
        (0usize..3, 0usize..3, 0usize..3).prop_map(|(a, b, c)| (shaped(8, 2, &[2, 2], &[a, b, c]), 8)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A client that knows its plan and path messages comes to the transactions of the provider's tree.
    #[test]
    fn client_and_provider_agree((params, n) in any_params(), stock in 330u64..100_000, pick in any::<prop::sample::Index>(), seed in any::<u64>()) {
        let plan = FactoryPlan::new(parts(params.clone(), n, stock, seed)).unwrap();
        let scripts: Vec<_> = (0..n).map(|i| channel_script(&channel_id(i))).collect();
        let tree = Tree::build(plan.clone(), &scripts, OutPoint::new("bb".repeat(32).parse().unwrap(), 7)).unwrap();
        let i = pick.index(n);
        let wire = |p: Payload| Payload::decode(&p.encode()).unwrap();
        let Payload::Plan(message) = wire(plan_message(&plan, 4, i).unwrap().into()) else { panic!() };
        let own = ClientPlan::new(&message, params.network, &key("factory", i)).unwrap();
        let Payload::Path(message) = wire(path_message(&tree, 4, i).unwrap().into()) else { panic!() };
        let path = ClientPath::build(&own, &message).unwrap();
        let positions = tree.path_nodes(i).unwrap();
        prop_assert_eq!(path.nodes().len(), positions.len());
        for (mine, position) in path.nodes().iter().zip(positions) {
            prop_assert_eq!(mine, &tree.nodes()[position]);
        }
        prop_assert_eq!(path.channel_outpoint(), tree.channel_outpoint(i).unwrap());
        prop_assert_eq!(path.funding_output(), &tree.funding_output().unwrap());
        prop_assert_eq!(own.index, i);
        prop_assert_eq!(&own.own().unwrap().payout_script, &payout(i));
    }

    /// Positions of the odometer: creation is position 0, a later one shares all transactions above the layer that
    /// differs, is faster there, and hangs together.
    #[test]
    fn later_positions_win_where_they_differ((params, n) in any_params(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let plan = FactoryPlan::new(parts(params.clone(), n, 5_000, 3)).unwrap();
        let scripts: Vec<_> = (0..n).map(|i| channel_script(&channel_id(i))).collect();
        let funding = OutPoint::new("cc".repeat(32).parse().unwrap(), 0);
        let layout = Layout::new(plan).unwrap();
        let at = |updates| {
            layout.clone().build_at(&scripts, funding, &params.states_after(updates).unwrap()).unwrap()
        };
        let created = layout.clone().build(&scripts, funding).unwrap();
        let first = at(0);
        prop_assert_eq!(first.nodes(), created.nodes());
        let updates = params.path_updates().unwrap();
        let exhausted = Error::OutOfRange { field: "updates", value: updates + 1, min: 0, max: updates };
        prop_assert_eq!(params.states_after(updates + 1), Err(exhausted));
        let (one, other) = (a.index(updates as usize + 1) as u64, b.index(updates as usize + 1) as u64);
        let (older, newer) = (one.min(other), one.max(other));
        let path = |tree: &Tree| -> Vec<_> {
            let nodes = tree.path_nodes(n - 1).unwrap();
            nodes.iter().flat_map(|node| tree.nodes()[*node].txs.clone()).collect()
        };
        for updates in [older, newer] {
            let (tree, states) = (at(updates), params.states_after(updates).unwrap());
            prop_assert_eq!(states.updates(), updates);
            let mut parent = funding;
            for tx in path(&tree) {
                prop_assert_eq!(tx.tx.input[0].previous_output.txid, parent.txid);
                parent = OutPoint::new(tx.txid(), 0);
            }
            let place = params.shape.layers.iter().flatten().zip(states.digits());
            let number = place.fold(0, |sum, (layer, digit)| sum * u64::from(layer.states) + u64::from(digit));
            prop_assert_eq!(number, updates);
            let earlier = match params.distribution_spread().unwrap() {
                0 => 0,
                _ => updates as u32 * u32::from(params.distribution_step()),
            };
            let lock = tree.plan().expiry_height - earlier;
            for distribution in tree.nodes().iter().flat_map(|node| &node.distributions) {
                prop_assert_eq!(distribution.tx.lock_time.to_consensus_u32(), lock);
            }
        }
        let (old, new) = (path(&at(older)), path(&at(newer)));
        let differ = old.iter().zip(&new).position(|(old, new)| old.txid() != new.txid());
        prop_assert_eq!(differ.is_none(), older == newer);
        if let Some(differ) = differ {
            prop_assert_eq!(&old[differ].tx.input, &{
                let mut input = new[differ].tx.input.clone();
                input[0].sequence = old[differ].tx.input[0].sequence;
                input
            });
            prop_assert!(old[differ].relative_delay >= new[differ].relative_delay + params.race_window());
        }
    }
}
