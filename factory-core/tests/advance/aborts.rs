//! A try that ends at every moment, by everybody: what is on the disks is wholly old, or wholly new and at hand for
//! both; the position is not used again; the next try succeeds.

use bolt_tlv::payload::Payload;
use factory_core::advance::*;
use factory_core::ceremony::ExcludeReason;
use factory_core::params::Params;
use factory_core::refuse::RefuseCode;
use factory_core::Error;

use crate::common::{capacity, node_id, shaped};
use crate::rules;
use crate::world::{request, Rig};

pub type Case = (Params, usize, u64, AdvanceRequest);

/// A factory of a case, with as many updates of its leaf as it takes that the next one has inner transactions.
pub fn made((params, n, stock, wanted): &Case) -> Rig {
    let mut rig = Rig::new(params.clone(), *n, *stock);
    let leaf = params.shape.layers.len() - 1;
    let layers = params.shape.layers_at(leaf);
    if wanted.level == leaf && layers.len() > 1 {
        for _ in 1..layers[1].states {
            rig.advance(request(leaf, 1, &[])).unwrap();
            rig.assert_done();
        }
        rig.disk.burnt.clear();
    }
    rig.fork()
}

/// One client without and with inner transactions, a shared leaf, a branch.
pub fn cases() -> Vec<Case> {
    let caps = [capacity(0) - 10_000, capacity(1) + 15_000];
    let changes: &[(u32, &[u64], u64)] = &[(0, &[capacity(0)], 10_000), (1, &[capacity(1) + 10_000], 20_000)];
    vec![
        (shaped(2, 1, &[2], &[0, 1]), 2, 1_000, request(1, 1, &[])),
        (shaped(2, 1, &[2], &[0, 3]), 2, 40_000, request(1, 1, &[(1, &[capacity(1) + 5_000], 35_000)])),
        (shaped(2, 2, &[], &[3]), 2, 30_000, request(0, 1, &[(0, &caps, 25_000)])),
        (shaped(2, 1, &[2], &[2, 2]), 2, 20_000, request(0, 1, changes)),
    ]
}

/// Steps of an honest run.
fn length(base: &Rig, case: &Case) -> usize {
    let mut rig = base.fork();
    rig.start(case.3.clone()).unwrap();
    let mut steps = 0;
    while rig.step(0) {
        steps += 1;
    }
    rig.assert_done();
    steps
}

/// After a try that ended: the next one, which everybody completes.
pub fn again(rig: &mut Rig, request: &AdvanceRequest) {
    rules::signatures(&rig.disk, &rig.disks);
    for i in 0..rig.clients.len() {
        rig.client_in(i, ClientAdvanceInput::Connected);
    }
    rig.run();
    rules::signatures(&rig.disk, &rig.disks);
    let burnt = rig.disk.burnt.iter().map(|b| b.position).max().unwrap_or(0);
    // What was completed is the newest for everybody; the amounts may be there already.
    rig.advance(request.clone()).unwrap();
    rig.assert_done();
    assert!(rig.position(1) > burnt, "a position was used twice");
}

fn at_each_step(stop: impl Fn(&mut Rig)) {
    for case in cases() {
        let base = made(&case);
        for steps in 0..=length(&base, &case) {
            let mut rig = base.fork();
            let before = (rig.disk.advances.len(), rig.disks[1].records.len());
            rig.start(case.3.clone()).unwrap();
            for _ in 0..steps {
                rig.step(0);
            }
            stop(&mut rig);
            rig.run();
            let complete = rig.disk.advances.len();
            if let Some((_, burnt)) = rig.failed() {
                assert_eq!(burnt, !rig.disk.burnt.is_empty());
                assert_eq!(complete, before.0);
            }
            if rig.disk.burnt.is_empty() {
                // Nothing of it stays with anybody.
                assert_eq!(rig.disks[1].records.len(), before.1);
                let states = rig.disks.iter().filter_map(|d| d.state.as_ref());
                assert!(states.into_iter().all(|s| s.pending.is_empty()));
            }
            again(&mut rig, &case.3);
        }
    }
}

#[test]
fn the_provider_calls_it_off() {
    at_each_step(|rig| rig.lsp_in(LspAdvanceInput::Cancel));
}

#[test]
fn a_client_gives_up() {
    at_each_step(|rig| rig.client_in(1, ClientAdvanceInput::Cancel { text: "the channel is busy".into() }));
}

#[test]
fn a_connection_is_lost() {
    at_each_step(|rig| {
        rig.lsp_in(LspAdvanceInput::ClientGone { client: node_id(1) });
        rig.client_in(1, ClientAdvanceInput::Disconnected);
    });
}

#[test]
fn a_channel_fails() {
    at_each_step(|rig| {
        let (client, attempt) = (node_id(1), rig.attempt);
        let reason = "not quiescent".to_owned();
        rig.lsp_in(LspAdvanceInput::ChannelFailed { client, attempt, reason });
    });
}

#[test]
fn time_runs_out() {
    at_each_step(|rig| {
        let id = rig.timer;
        rig.lsp_in(LspAdvanceInput::Timeout { id });
    });
}

#[test]
fn who_is_absent_is_named_at_once() {
    for case in cases() {
        let mut rig = made(&case);
        rig.start(case.3.clone()).unwrap();
        rig.lsp_in(LspAdvanceInput::ClientGone { client: node_id(1) });
        assert_eq!(rig.blamed(), [(1, ExcludeReason::Gone)]);
        let reason = AdvanceFailReason::Clients { clients: vec![node_id(1)] };
        assert_eq!(rig.failed(), Some((reason, false)));
        rig.run();
        assert!(rig.clients.iter().all(|c| c.phase() == ClientAdvancePhase::Idle && c.pending().is_empty()));
    }
}

/// What may be signed is never proposed again, and a client would not sign it.
#[test]
fn a_position_is_used_once() {
    let params = shaped(4, 1, &[2, 2], &[0, 1, 2]);
    let mut rig = Rig::new(params, 4, 20_000);
    // A branch try whose outer partial signatures are out, and that is called off.
    rig.to_lsp = Box::new(|i, m| if i == 1 && m.number() == 37 { vec![] } else { vec![m] });
    rig.advance(request(1, 1, &[])).unwrap();
    rig.lsp_in(LspAdvanceInput::Cancel);
    rig.run();
    assert_eq!(rig.failed(), Some((AdvanceFailReason::Cancelled, true)));
    for i in [0, 1] {
        let pending = rig.clients[i].pending();
        assert_eq!((pending.len(), pending[0].record.path.updates), (1, 9));
    }
    rig.to_lsp = Box::new(|_, m| vec![m]);
    // The leaf's own layers lead to nothing newer than that.
    assert_eq!(rig.start(request(2, 1, &[])), Err(Error::Exhausted { level: 2, leaf: 8, upper: 1 }));
    // A provider that forgot is refused.
    let burnt = std::mem::take(&mut rig.disk.burnt);
    for level in [2, 1] {
        rig.client_actions.clear();
        rig.advance(request(level, 1, &[])).unwrap();
        let refused = rig.refused().contains(&(1, RefuseCode::AdvanceBurnt, true));
        assert!(refused, "a position that may be signed already was agreed to");
    }
    assert!(rig.disk.burnt.is_empty() && rig.disk.advances.is_empty());
    rig.disk.burnt = burnt;
    rig.advance(request(1, 1, &[])).unwrap();
    rig.assert_done();
    assert_eq!(rig.position(1), 18);
    // The other branch knows nothing of it.
    rig.advance(request(2, 3, &[])).unwrap();
    rig.assert_done();
    assert_eq!(rig.position(3), 1);
    // What was pending is superseded now, and could still be published.
    assert_eq!(rig.clients[1].pending().len(), 1);
    assert!(rig.clients[1].pending()[0].record.path.updates < rig.position(1));
}

/// The provider completes a try alone and says that it is over: the client can go on from there.
#[test]
fn a_provider_that_completes_alone() {
    for case in cases() {
        let mut rig = made(&case);
        let abort = |m: &Payload| {
            let (instance_id, attempt) = (m.instance_id().unwrap(), m.attempt().unwrap());
            bolt_tlv::payload::AdvanceAbort { instance_id, attempt, code: 1, text: "over".into() }
        };
        rig.to_client = Box::new(move |_, m| if m.number() == 38 { vec![abort(&m).into()] } else { vec![m] });
        rig.advance(case.3.clone()).unwrap();
        let newest = rig.disk.newest();
        for i in rig.members.clone() {
            let [pending] = rig.clients[i].pending() else { panic!("one pending try") };
            let path = newest.leaf_path(i).unwrap();
            let complete =
                LeafPaths::new(&rig.disks[i].newest().path, std::slice::from_ref(&pending.record.path))
                    .unwrap();
            // The provider publishes its new path up to the outermost new transaction.
            let mut chain = factory_core::exit::KnownChain::default();
            let mut funding = rig.disk.record.funding.outpoint.txid;
            let outermost = path.path.iter().position(|tx| pending.outer.contains(&tx.txid())).unwrap();
            for tx in &path.path[..=outermost] {
                assert_eq!(tx.parent().unwrap().txid, funding);
                funding = tx.txid();
                chain.confirm(&tx.tx, 200);
            }
            for tx in &path.path[outermost + 1..] {
                let next = complete.exit_action(&chain, 10_000);
                assert_eq!(next.lost_to, Some(0));
                let factory_core::exit::ExitAction::Publish { step } = next.action else {
                    panic!("{next:?}")
                };
                let step = &pending.record.path.path[step];
                assert_eq!(step.txid(), tx.txid());
                step.verify().unwrap();
                chain.confirm(&step.tx, 300);
            }
            let end = complete.exit_action(&chain, 10_000);
            assert_eq!((end.lost_to, end.action), (Some(0), factory_core::exit::ExitAction::Done));
        }
    }
}
