//! Whole ceremonies in one process: honest ones of many shapes, and ones with clients that fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bolt_tlv::payload::{Accept, Decline, Payload};
use common::*;
use factory_core::ceremony::{
    ClientAction, ExcludeReason, FailReason, LspAction, LspInput, ParamsChoice, Phase,
};

fn all(n: usize) -> Vec<usize> {
    (0..n).collect()
}

#[test]
fn honest_factories_of_many_shapes() {
    let cases = [
        (2, regtest(2, 1), 0),
        (3, regtest(3, 1), 5_000),
        (8, regtest(8, 1), 10_000),
        (2, regtest(2, 2), 10_001),
        (5, regtest(5, 2), 9_999),
        (8, regtest(8, 3), 0),
        (20, regtest(20, 1), 1_000),
        (20, regtest(20, 3), 1_000),
        // Layers above the leaves, several of them, and a static leaf.
        (8, shaped(8, 1, &[2, 4], &[1, 0, 2]), 700),
        (6, shaped(6, 2, &[3], &[2, 1]), 700),
        (4, shaped(4, 1, &[4], &[0, 0]), 700),
        (4, shaped(4, 2, &[2], &[1, 0]), 0),
    ];
    for (n, params, stock) in cases {
        let mut world = World::new(config(ParamsChoice::Fixed(params), n, stock));
        world.run();
        assert!(world.excluded().is_empty());
        world.assert_made(&all(n));
    }
}

#[test]
fn a_large_factory() {
    let mut world = World::new(config(ParamsChoice::Reshape(regtest(130, 1)), 130, 1_000));
    world.run();
    world.assert_made(&all(130));
}

type Fault = fn(Payload) -> Vec<Payload>;
type Expected = fn(&ExcludeReason) -> bool;

/// One client misbehaves: it is named with the right reason, the others make the factory.
#[test]
fn faulty_clients_are_named_and_excluded() {
    let cases: Vec<(&str, Fault, Expected)> = vec![
        (
            "silent at the invitation",
            |p| if matches!(p, Payload::Accept(_)) { vec![] } else { vec![p] },
            |r| *r == ExcludeReason::Timeout { phase: Phase::Inviting },
        ),
        (
            "silent at the plan",
            |p| if matches!(p, Payload::PlanOk(_)) { vec![] } else { vec![p] },
            |r| *r == ExcludeReason::Timeout { phase: Phase::Planning },
        ),
        (
            "silent at the nonces",
            |p| if matches!(p, Payload::Nonces(_)) { vec![] } else { vec![p] },
            |r| *r == ExcludeReason::Timeout { phase: Phase::Nonces },
        ),
        (
            "silent at the partials",
            |p| if matches!(p, Payload::Partials(_)) { vec![] } else { vec![p] },
            |r| *r == ExcludeReason::Timeout { phase: Phase::Partials },
        ),
        (
            "silent at the end",
            |p| if matches!(p, Payload::Persisted(_)) { vec![] } else { vec![p] },
            |r| *r == ExcludeReason::Timeout { phase: Phase::Persisting },
        ),
        (
            "takes the provider's key",
            |p| match p {
                Payload::Accept(m) => vec![Accept { factory_key: key("lsp", 0), ..m }.into()],
                p => vec![p],
            },
            |r| *r == ExcludeReason::DuplicateKey,
        ),
        (
            "takes a neighbour's key",
            |p| match p {
                Payload::Accept(m) => vec![Accept { factory_key: key("factory", 0), ..m }.into()],
                p => vec![p],
            },
            |r| *r == ExcludeReason::DuplicateKey,
        ),
        (
            "gives a key it does not hold",
            |p| match p {
                Payload::Accept(m) => vec![Accept { factory_key: key("other", 0), ..m }.into()],
                p => vec![p],
            },
            // It finds that the plan does not have its key, and says so.
            |r| matches!(r, ExcludeReason::Declined { code: 11, .. }),
        ),
        (
            "gives an odd payout script",
            |p| match p {
                Payload::Accept(m) => {
                    let payout_script = bitcoin::ScriptBuf::from_bytes(vec![0x51, 0x02, 0x4e, 0x73]);
                    vec![Accept { payout_script, ..m }.into()]
                }
                p => vec![p],
            },
            |r| *r == ExcludeReason::PayoutScript,
        ),
        (
            "declines the plan",
            |p| match p {
                Payload::PlanOk(m) => {
                    let text = "no".to_owned();
                    let (instance_id, attempt) = (m.instance_id, m.attempt);
                    vec![Decline { instance_id, attempt, code: 6, text }.into()]
                }
                p => vec![p],
            },
            |r| *r == ExcludeReason::Declined { code: 6, text: "no".into() },
        ),
        (
            "sends a nonce that is no point",
            |p| match p {
                Payload::Nonces(mut m) => {
                    m.nonces[1] = [0; 66];
                    vec![m.into()]
                }
                p => vec![p],
            },
            |r| *r == ExcludeReason::BadNonce { session: 1 },
        ),
        (
            "sends too few nonces",
            |p| match p {
                Payload::Nonces(mut m) => {
                    m.nonces.pop();
                    vec![m.into()]
                }
                p => vec![p],
            },
            |r| matches!(r, ExcludeReason::ListLength { .. }),
        ),
        (
            "sends too many partials",
            |p| match p {
                Payload::Partials(mut m) => {
                    m.partials.push([1; 32]);
                    vec![m.into()]
                }
                p => vec![p],
            },
            |r| matches!(r, ExcludeReason::ListLength { .. }),
        ),
        (
            "sends a partial above the group order",
            |p| match p {
                Payload::Partials(mut m) => {
                    m.partials[2] = [0xff; 32];
                    vec![m.into()]
                }
                p => vec![p],
            },
            |r| *r == ExcludeReason::BadPartial { session: 2 },
        ),
        (
            "sends a wrong partial",
            |p| match p {
                Payload::Partials(mut m) => {
                    m.partials[3][31] ^= 1;
                    vec![m.into()]
                }
                p => vec![p],
            },
            |r| *r == ExcludeReason::WrongPartial { session: 3 },
        ),
        (
            "mixes its partials up",
            |p| match p {
                Payload::Partials(mut m) => {
                    m.partials.swap(0, 1);
                    vec![m.into()]
                }
                p => vec![p],
            },
            |r| *r == ExcludeReason::WrongPartial { session: 0 },
        ),
        (
            "sends partials before they are due",
            |p| match p {
                Payload::PlanOk(m) => {
                    let partials = vec![[1; 32]; 4];
                    let (instance_id, attempt) = (m.instance_id, m.attempt);
                    vec![bolt_tlv::payload::Partials { instance_id, attempt, partials }.into()]
                }
                p => vec![p],
            },
            |r| *r == ExcludeReason::Unexpected { number: 10 },
        ),
        (
            "sends what only the provider may send",
            |p| match p {
                Payload::PlanOk(m) => {
                    let (instance_id, attempt) = (m.instance_id, m.attempt);
                    vec![bolt_tlv::payload::Signed { instance_id, attempt, signatures: vec![] }.into()]
                }
                p => vec![p],
            },
            |r| *r == ExcludeReason::Unexpected { number: 11 },
        ),
        (
            "claims a later attempt",
            |p| match p {
                Payload::PlanOk(mut m) => {
                    m.attempt += 1;
                    vec![m.into()]
                }
                p => vec![p],
            },
            |r| *r == ExcludeReason::Unexpected { number: 6 },
        ),
    ];
    for (name, fault, expected) in cases {
        for per_leaf in [1, 2] {
            let bad = 2;
            let mut world = World::new(config(ParamsChoice::Reshape(regtest(5, per_leaf)), 5, 2_000));
            world.to_lsp = Box::new(move |i, p| if i == bad { fault(p) } else { vec![p] });
            world.run();
            let excluded = world.excluded();
            assert_eq!(excluded.len(), 1, "{name}: {excluded:?}");
            assert_eq!(excluded[0].0, bad, "{name}");
            assert!(expected(&excluded[0].1), "{name}: {:?}", excluded[0].1);
            world.assert_made(&[0, 1, 3, 4]);
        }
    }
}

#[test]
fn duplicates_and_strangers_change_nothing() {
    let mut world = World::new(config(ParamsChoice::Reshape(regtest(4, 1)), 4, 0));
    world.to_lsp = Box::new(|_, p| vec![p.clone(), p]);
    world.run();
    assert!(world.excluded().is_empty());
    world.assert_made(&all(4));

    let mut world = World::new(config(ParamsChoice::Reshape(regtest(3, 1)), 3, 0));
    let join = bolt_tlv::payload::Join { version: 1, min_capacity_sat: 0, max_capacity_sat: 1 };
    world.to_lsp = Box::new(move |_, p| vec![join.clone().into(), Payload::UnknownOdd(77), p]);
    let stranger = LspInput::Message {
        client: key("stranger", 0),
        payload: bolt_tlv::payload::PlanOk { instance_id: [7; 32], attempt: 0 }.into(),
    };
    world.queue.push_back(Event::Lsp(stranger));
    world.queue.push_back(Event::Lsp(LspInput::ClientGone { client: key("stranger", 0) }));
    world.run();
    assert!(world.excluded().is_empty());
    world.assert_made(&all(3));
}

/// Two clients fail one after the other: two restarts, each with fresh nonces and fresh channels.
#[test]
fn restarts_use_fresh_nonces_and_channels() {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::rc::Rc;
    let nonces = Rc::new(RefCell::new((BTreeSet::new(), 0usize)));
    let seen = nonces.clone();
    let mut world = World::new(config(ParamsChoice::Reshape(regtest(6, 1)), 6, 0));
    world.to_lsp = Box::new(move |i, p| match p {
        Payload::Nonces(m) => {
            for nonce in &m.nonces {
                seen.borrow_mut().0.insert(*nonce);
                seen.borrow_mut().1 += 1;
            }
            vec![m.into()]
        }
        Payload::Partials(mut m) if i == 1 || (i == 4 && m.attempt == 1) => {
            m.partials[0][31] ^= 1;
            vec![m.into()]
        }
        p => vec![p],
    });
    world.run();
    assert_eq!(world.excluded().iter().map(|(i, _)| *i).collect::<Vec<_>>(), [1, 4]);
    world.assert_made(&[0, 2, 3, 5]);
    assert_eq!(world.lsp.attempt(), 2);
    assert_eq!(world.funding_counter, 3);
    let nonces = nonces.borrow();
    assert_eq!(nonces.0.len(), nonces.1, "a nonce was used twice");
    let opened: Vec<_> = world
        .actions
        .iter()
        .filter_map(|a| match a {
            LspAction::OpenChannel { temporary_channel_id, .. } => Some(*temporary_channel_id),
            _ => None,
        })
        .collect();
    assert_eq!(opened.len(), 6 + 5 + 4);
    assert_eq!(opened.iter().collect::<BTreeSet<_>>().len(), opened.len());
}

#[test]
fn too_few_clients_end_it() {
    let mut world = World::new(config(ParamsChoice::Reshape(regtest(2, 1)), 2, 0));
    world.to_lsp = Box::new(|i, p| if i == 0 && matches!(p, Payload::Nonces(_)) { vec![] } else { vec![p] });
    world.run();
    assert_eq!(world.lsp.phase(), Phase::Failed);
    let reason = FailReason::TooFewClients { have: 1, need: 2 };
    assert_eq!(world.actions.last(), Some(&LspAction::Failed { reason }));
    assert!(world.open.is_empty(), "a channel stays open");
    assert!(world.built.is_none(), "the funding transaction is still held");
    assert!(world.broadcast.is_empty());
}

#[test]
fn a_lost_connection_counts_until_the_client_is_complete() {
    for phase in [Phase::Planning, Phase::Nonces, Phase::Partials, Phase::Persisting] {
        let mut world = World::new(config(ParamsChoice::Reshape(regtest(4, 1)), 4, 0));
        let number = match phase {
            Phase::Planning => 6,
            Phase::Nonces => 8,
            Phase::Partials => 10,
            _ => 12,
        };
        world.to_lsp = Box::new(move |i, p| if i == 3 && p.number() == number { vec![] } else { vec![p] });
        // The others are served first, then the connection is lost: before any timer.
        let gone = LspInput::ClientGone { client: node_id(3) };
        world.run_until(|lsp| lsp.phase() == phase);
        world.queue.push_back(Event::Lsp(gone));
        world.run();
        assert_eq!(world.excluded(), [(3, ExcludeReason::Gone)]);
        world.assert_made(&[0, 1, 2]);
    }
}

#[test]
fn a_channel_that_fails_excludes_its_client() {
    let mut world = World::new(config(ParamsChoice::Reshape(regtest(4, 2)), 4, 0));
    world.run_until(|lsp| lsp.phase() == Phase::Nonces);
    let channel = world.clients[1].plan().unwrap().own().unwrap().temporary_channel_id;
    world.queue.push_front(Event::Lsp(LspInput::ChannelFailed {
        client: node_id(1),
        temporary_channel_id: channel,
        reason: "peer error".into(),
    }));
    world.run();
    assert_eq!(world.excluded(), [(1, ExcludeReason::ChannelFailed { text: "peer error".into() })]);
    world.assert_made(&[0, 2, 3]);
}

/// What fails on the provider's own side leaves the client out as well, but is told apart, and nobody is accused.
#[test]
fn a_channel_that_the_provider_cannot_make_is_nobodys_fault() {
    let mut world = World::new(config(ParamsChoice::Reshape(regtest(4, 2)), 4, 0));
    world.run_until(|lsp| lsp.phase() == Phase::Nonces);
    let temporary_channel_id = world.clients[1].plan().unwrap().own().unwrap().temporary_channel_id;
    let reason = "misuse".to_owned();
    let input = LspInput::ChannelNotMade { client: node_id(1), temporary_channel_id, reason };
    let actions = world.lsp.handle(input).unwrap();
    let aborts: Vec<_> = actions
        .iter()
        .filter_map(|a| match a {
            LspAction::Send { client, payload: Payload::Abort(m) } => Some((*client, m.culprit)),
            _ => None,
        })
        .collect();
    assert_eq!(aborts, [(node_id(1), None)]);
    let reason = ExcludeReason::ChannelNotMade { text: "misuse".into() };
    assert!(!reason.is_clients_fault());
    assert!(actions.contains(&LspAction::Excluded { client: node_id(1), reason }));
}

#[test]
fn cancelling_tells_everybody() {
    let mut world = World::new(config(ParamsChoice::Reshape(regtest(3, 1)), 3, 0));
    world.run_until(|lsp| lsp.phase() == Phase::Partials);
    world.queue.clear();
    world.queue.push_back(Event::Lsp(LspInput::Cancel));
    world.run();
    assert_eq!(world.actions.last(), Some(&LspAction::Failed { reason: FailReason::Cancelled }));
    assert!(world.open.is_empty() && world.built.is_none() && world.broadcast.is_empty());
    let aborts = world
        .actions
        .iter()
        .filter(|a| matches!(a, LspAction::Send { payload: Payload::Abort(_), .. }))
        .count();
    assert_eq!(aborts, 3);
}

/// A client that was complete keeps its exit when the provider starts over: only the provider knows whether the
/// first funding transaction is void.
#[test]
fn a_complete_exit_outlives_its_attempt() {
    let mut world = World::new(config(ParamsChoice::Reshape(regtest(3, 1)), 3, 0));
    world.to_lsp = Box::new(|i, p| if i == 2 && p.number() == 12 { vec![] } else { vec![p] });
    world.run();
    world.assert_made(&[0, 1]);
    for i in 0..2 {
        let kept: Vec<_> = world
            .client_actions
            .iter()
            .filter_map(|(c, a)| match a {
                ClientAction::KeepSuperseded { record, until_height } if *c == i => {
                    Some((record.clone(), *until_height))
                }
                _ => None,
            })
            .collect();
        let [(record, until)] = kept.as_slice() else { panic!("a complete exit was thrown away: {kept:?}") };
        assert_eq!((record.path.attempt, *until), (0, HEIGHT + 144));
        record.path.verify().unwrap();
        assert_ne!(record.path.funding.outpoint, world.records[&i].path.funding.outpoint);
    }
}
