//! What a try that failed leaves behind: whose channel stays as it is, what a lost connection means, what is asked and
//! answered afterwards, and what of it is read from a disk.

use bolt_tlv::payload::{self, Payload};
use factory_core::advance::*;
use factory_core::refuse::RefuseCode;
use factory_core::Error;

use crate::altered::{assert_unharmed, leaf, rig, same_leaf, spoil};
use crate::common::{capacity, node_id, shaped};
use crate::world::{policy, request, Rig, Way};

const OUTER: u16 = payload::AdvanceOuter::NUMBER;
const INNER: u16 = payload::AdvanceInner::NUMBER;
const SIGNED: u16 = payload::AdvanceSigned::NUMBER;

fn frozen(rig: &Rig) -> Vec<bitcoin::secp256k1::PublicKey> {
    let found = rig.actions.iter().rev().find_map(|a| match a {
        LspAdvanceAction::Failed { frozen, .. } => Some(frozen.clone()),
        _ => None,
    });
    found.expect("an advance that failed")
}

/// The bits of all `AdvanceResume` that this client sent.
fn resumed(rig: &Rig, who: usize) -> Vec<(u16, u16)> {
    let of = |(i, a): &(usize, ClientAdvanceAction)| match a {
        ClientAdvanceAction::Send(Payload::AdvanceResume(m)) if *i == who => Some((m.attempt, m.pending)),
        _ => None,
    };
    rig.client_actions.iter().filter_map(of).collect()
}

/// A leaf of three where the channels of clients 0 and 1 change, and 2's does not. Client 1 withholds its signature.
#[test]
fn one_client_does_not_freeze_the_channels_of_others() {
    let (mut rig, request) = rig(leaf());
    rig.to_lsp = Box::new(|i, m| if i == 1 && m.number() == OUTER { vec![] } else { vec![m] });
    rig.advance(request.clone()).unwrap();
    let id = rig.timer;
    rig.lsp_in(LspAdvanceInput::Timeout { id });
    rig.run();
    assert_eq!(frozen(&rig), [node_id(0), node_id(1)]);
    let left: Vec<_> = (0..4).map(|i| rig.clients[i].left()).collect();
    assert_eq!(left, [Aftermath::Frozen, Aftermath::Frozen, Aftermath::Pending, Aftermath::Clear]);
    for (i, left) in left.into_iter().take(3).enumerate() {
        let said = rig.client_actions.iter().rev().find_map(|(who, a)| match a {
            ClientAdvanceAction::Aborted { left, .. } if *who == i => Some(*left),
            _ => None,
        });
        assert_eq!(said, Some(left));
    }
    // What is said of a later try is about all of them.
    rig.client_actions.clear();
    rig.client_in(1, ClientAdvanceInput::Policy(AdvancePolicy { allow: false, ..policy() }));
    rig.to_lsp = Box::new(|_, m| vec![m]);
    rig.advance(request.clone()).unwrap();
    assert_eq!(rig.refused(), [(1, RefuseCode::NotWanted, true)]);
    assert!(frozen(&rig).is_empty());
    rig.client_in(1, ClientAdvanceInput::Policy(policy()));
    assert_unharmed(&mut rig, request, "a frozen channel");
    assert!(rig.clients.iter().all(|c| c.left() == Aftermath::Clear));
}

/// The client's signature is lost with the connection: it comes again, the same bytes, and the try goes on.
#[test]
fn a_lost_connection_does_not_end_a_try_that_is_almost_signed() {
    for world in [leaf, same_leaf] {
        for after in [false, true] {
            let (mut rig, request) = rig(world());
            let lost = if after { SIGNED } else { OUTER };
            rig.to_lsp = Box::new(move |i, m| if i == 1 && m.number() == lost { vec![] } else { vec![m] });
            rig.to_client = Box::new(move |i, m| if i == 1 && m.number() == lost { vec![] } else { vec![m] });
            rig.advance(request.clone()).unwrap();
            let phase = if after { LspAdvancePhase::Persisting } else { LspAdvancePhase::Outer };
            assert_eq!(rig.lsp.as_ref().unwrap().phase(), phase);
            rig.lsp_in(LspAdvanceInput::ClientGone { client: node_id(1) });
            rig.client_in(1, ClientAdvanceInput::Disconnected);
            rig.run();
            assert!(rig.failed().is_none());
            assert_eq!(rig.clients[1].phase(), ClientAdvancePhase::Outer);
            rig.to_lsp = Box::new(|_, m| vec![m]);
            rig.to_client = Box::new(|_, m| vec![m]);
            rig.client_in(1, ClientAdvanceInput::Connected);
            rig.run();
            rig.assert_done();
            assert_eq!(rig.clients[1].left(), Aftermath::Clear);
        }
    }
}

/// The line drops before the inner signatures arrive: the provider may take the channel for frozen, the client knows
/// that it is not, and says so: at once, or when it is told of the end.
#[test]
fn the_clients_word_decides() {
    for restart in [false, true] {
        let (mut rig, request) = rig(leaf());
        rig.to_client = Box::new(|i, m| if i == 1 && m.number() == INNER { vec![] } else { vec![m] });
        rig.advance(request.clone()).unwrap();
        let attempt = rig.attempt;
        rig.client_in(1, ClientAdvanceInput::Disconnected);
        rig.lsp_in(LspAdvanceInput::ClientGone { client: node_id(1) });
        let id = rig.timer;
        rig.lsp_in(LspAdvanceInput::Timeout { id });
        rig.queue.retain(|(way, _)| *way != Way::ToClient(1));
        rig.run();
        assert!(frozen(&rig).contains(&node_id(1)));
        assert_eq!(rig.clients[1].left(), Aftermath::Clear);
        rig.client_actions.clear();
        if restart {
            // The mark tells it.
            rig.restart_client(1);
        } else {
            let abort = rig.disk.burnt.last().unwrap().abort();
            assert_eq!(abort.attempt, attempt);
            rig.client_in(1, ClientAdvanceInput::Message(abort.into()));
        }
        assert_eq!(resumed(&rig, 1), [(attempt, 0)]);
        rig.run();
        // A client that did sign says nothing of the kind.
        rig.client_actions.clear();
        let abort = rig.disk.burnt.last().unwrap().abort();
        rig.client_in(0, ClientAdvanceInput::Message(abort.into()));
        assert_eq!(resumed(&rig, 0), []);
        let told = |(i, a): &(usize, ClientAdvanceAction)| {
            *i == 0 && matches!(a, ClientAdvanceAction::Aborted { left: Aftermath::Frozen, .. })
        };
        assert!(rig.client_actions.iter().any(told));
        assert_unharmed(&mut rig, request, "a line that dropped");
    }
}

/// The provider's machine is gone before the client has said that it stored the new state.
#[test]
fn a_machine_that_waits_for_the_last_word_may_be_dropped() {
    let (mut rig, request) = rig(same_leaf());
    rig.to_client = Box::new(|i, m| if i == 1 && m.number() == SIGNED { vec![] } else { vec![m] });
    rig.advance(request.clone()).unwrap();
    assert_eq!(rig.lsp.take().unwrap().phase(), LspAdvancePhase::Persisting);
    rig.to_client = Box::new(|_, m| vec![m]);
    rig.client_actions.clear();
    rig.client_in(1, ClientAdvanceInput::Connected);
    rig.run();
    assert_eq!(rig.disks[1].newest().path.updates, rig.position(1));
    let persisted = |rig: &Rig| {
        rig.client_actions.iter().find_map(|(_, a)| match a {
            ClientAdvanceAction::Send(Payload::AdvancePersisted(m)) => Some(m.clone()),
            _ => None,
        })
    };
    let first = rig.disk.advances[0].clone();
    let word = persisted(&rig).unwrap();
    assert!(first.is_persisted_by(1, &word) && !first.is_persisted_by(0, &word));
    rig.advance(request).unwrap();
    rig.assert_done();
    assert!(!rig.disk.advances[1].is_persisted_by(1, &word));
    // Asked about one that is superseded by now, the client says the same.
    rig.client_actions.clear();
    rig.client_in(1, ClientAdvanceInput::Message(first.signed().unwrap().into()));
    assert!(first.is_persisted_by(1, &persisted(&rig).unwrap()));
}

/// A machine that goes on after a restart has the record and nothing else: messages of earlier steps change nothing.
#[test]
fn what_is_complete_stays_so() {
    let (mut rig, request) = rig(leaf());
    rig.to_client = Box::new(|i, m| if i == 1 && m.number() == SIGNED { vec![] } else { vec![m] });
    rig.advance(request).unwrap();
    rig.restart_lsp();
    rig.run();
    let (instance_id, attempt) = (rig.disk.record.plan.instance_id, rig.attempt);
    let late: [Payload; 4] = [
        payload::AdvanceAgree { instance_id, attempt, inner: vec![[9; 66]], outer: vec![] }.into(),
        payload::AdvancePartials { instance_id, attempt, partials: vec![[1; 32]] }.into(),
        payload::AdvanceOuter { instance_id, attempt, partials: vec![[1; 32]] }.into(),
        payload::AdvanceRefuse { instance_id, attempt, code: 1, text: "late".into() }.into(),
    ];
    for payload in late {
        rig.lsp_in(LspAdvanceInput::Message { client: node_id(1), payload });
        assert_eq!(rig.lsp.as_ref().unwrap().phase(), LspAdvancePhase::Persisting);
    }
    assert!(rig.blamed().is_empty() && rig.failed().is_none());
    rig.to_client = Box::new(|_, m| vec![m]);
    rig.client_in(1, ClientAdvanceInput::Connected);
    rig.run();
    rig.assert_done();
}

/// What the client wants changes after it agreed.
#[test]
fn what_a_client_wants_is_looked_at_again_before_it_signs() {
    for (wanted, code) in [
        (AdvancePolicy { allow: false, ..policy() }, RefuseCode::NotWanted),
        (AdvancePolicy { least_sat: capacity(1) + 15_001, ..policy() }, RefuseCode::Capacity),
    ] {
        for phase in [ClientAdvancePhase::Agreed, ClientAdvancePhase::Covering] {
            let (mut rig, request) = rig(leaf());
            rig.start(request.clone()).unwrap();
            while rig.clients[1].phase() != phase {
                assert!(rig.step(0));
            }
            rig.client_in(1, ClientAdvanceInput::Policy(wanted.clone()));
            rig.run();
            assert_eq!(rig.refused(), [(1, code, false)]);
            assert!(rig.clients[1].pending().is_empty());
            rig.client_in(1, ClientAdvanceInput::Policy(policy()));
            assert_unharmed(&mut rig, request, "another policy");
        }
    }
}

/// At the last position nothing could follow a try that failed, so nobody's capacity changes there.
#[test]
fn no_capacity_changes_at_the_last_position() {
    let sold = request(1, 1, &[(1, &[capacity(1) + 1_000], 19_000)]);
    let mut rig = Rig::new(shaped(2, 1, &[2], &[0, 1]), 2, 20_000);
    rig.advance(sold.clone()).unwrap();
    rig.assert_done();
    assert_eq!((rig.position(1), rig.disks[1].newest().path.params.path_updates()), (1, Ok(2)));
    let back = request(1, 1, &[(1, &[capacity(1)], 20_000)]);
    assert_eq!(rig.start(back), Err(Error::LastPosition { position: 2 }));
    rig.to_client = spoil(1, payload::AdvancePropose::NUMBER, |message| {
        let Payload::AdvancePropose(m) = message else { panic!("another message") };
        m.capacities_sat[0] -= 1_000;
        m.stock_sat += 1_000;
    });
    rig.advance(request(1, 1, &[])).unwrap();
    assert_eq!(rig.refused(), [(1, RefuseCode::AdvanceLast, false)]);
    rig.advance(request(1, 1, &[])).unwrap();
    rig.assert_done();
}

/// A leaf of which client 1 has a pending try.
fn with_pending() -> (Rig, AdvanceRequest) {
    let (mut rig, request) = rig(leaf());
    rig.to_lsp = Box::new(|_, m| if m.number() == OUTER { vec![] } else { vec![m] });
    rig.advance(request.clone()).unwrap();
    rig.lsp_in(LspAdvanceInput::Cancel);
    rig.run();
    rig.to_lsp = Box::new(|_, m| vec![m]);
    rig.client_actions.clear();
    (rig, request)
}

#[test]
fn a_client_keeps_so_many_tries() {
    let (mut rig, request) = with_pending();
    let state = rig.disks[1].state.as_mut().unwrap();
    state.pending = vec![state.pending[0].clone(); MAX_KEPT_TRIES - 1];
    rig.restart_client(1);
    rig.run();
    let mut more = rig.disks[1].state.clone().unwrap();
    assert_eq!(more.kept(), MAX_KEPT_TRIES - 1);
    more.marks.push(AdvanceMark {
        attempt: 1,
        position: more.pending[0].record.path.updates,
        outermost: more.pending[0].outer[0],
    });
    let spare = rig.fork();
    rig.disks[1].state = Some(more);
    rig.restart_client(1);
    rig.run();
    rig.client_actions.clear();
    rig.advance(request.clone()).unwrap();
    assert_eq!(rig.refused(), [(1, RefuseCode::AdvanceMany, true)]);
    let mut rig = spare;
    rig.advance(request).unwrap();
    rig.assert_done();
}

/// A wrong signature of an old try, and an end of it, are about that try.
#[test]
fn messages_about_old_tries() {
    let (mut rig, request) = with_pending();
    let old = rig.attempt;
    let signed = payload::AdvanceSigned {
        instance_id: rig.disk.record.plan.instance_id,
        attempt: old,
        signatures: vec![[7; 64]],
    };
    // A newer try is under way when it comes.
    rig.start(request.clone()).unwrap();
    while rig.clients[1].phase() != ClientAdvancePhase::Covering {
        assert!(rig.step(0));
    }
    rig.client_actions.clear();
    rig.client_in(1, ClientAdvanceInput::Message(signed.clone().into()));
    assert!(rig.client_actions.is_empty());
    let abort = rig.disk.burnt[0].abort();
    assert_eq!(abort.attempt, old);
    rig.client_in(1, ClientAdvanceInput::Message(abort.into()));
    let [(1, ClientAdvanceAction::Aborted { attempt, code: Some(_), .. })] = rig.client_actions.as_slice()
    else {
        panic!("{:?}", rig.client_actions)
    };
    assert_eq!(*attempt, old);
    assert_eq!(rig.clients[1].phase(), ClientAdvancePhase::Covering);
    // The newer one is refused, and then the old one's signature comes.
    rig.client_in(1, ClientAdvanceInput::Cancel { text: "no".into() });
    rig.run();
    rig.client_actions.clear();
    rig.client_in(1, ClientAdvanceInput::Message(signed.into()));
    let refused = rig.client_actions.iter().find_map(|(_, a)| match a {
        ClientAdvanceAction::Send(Payload::AdvanceRefuse(m)) => Some(m.attempt),
        _ => None,
    });
    assert_eq!(refused, Some(old));
    assert_unharmed(&mut rig, request, "old tries");
}

/// A try's number is used once.
#[test]
fn the_provider_counts_its_tries() {
    let (mut rig, request) = with_pending();
    for known in [0, 1] {
        rig.attempt = known;
        let error = rig.start(request.clone()).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { field: "attempt", .. }), "{error:?}");
    }
}

/// A state that was read belongs to the newest record, and is checked.
#[test]
fn a_stored_try_of_something_else_is_refused() {
    let (rig, _) = with_pending();
    let newest = rig.disks[1].newest();
    let good = rig.disks[1].state.clone().unwrap();
    assert_eq!(good.verify(newest), Ok(()));
    type Break = fn(&mut PendingAdvance);
    let cases: &[Break] = &[
        |p| p.record.path.instance_id = [9; 32],
        |p| p.record.path.funding.value_sat += 1,
        |p| p.record.path.expiry_height += 1,
        |p| p.record.path.stock_script = p.record.path.leaf[0].script.clone(),
        |p| p.record.path.leaf[0].share.payout_script = p.record.path.leaf[1].share.payout_script.clone(),
        |p| p.record.path.leaf[0].key = p.record.path.leaf[2].key,
        |p| p.record.path.leaf[0].share.capacity_sat += 1,
        |p| p.record.path.stock_sat += 1,
        |p| p.record.index = 2,
        |p| p.record.position = 2,
        |p| p.record.own_key = p.record.path.leaf[0].key,
        |p| p.record.path.updates += 1,
        |p| p.outer.clear(),
        |p| p.outer.swap(0, 1),
        |p| p.outer.truncate(1),
        |p| p.outer.push(p.record.path.path.last().unwrap().txid()),
        |p| p.outer[0] = p.record.path.path.last().unwrap().txid(),
    ];
    for (i, alter) in cases.iter().enumerate() {
        let mut bad = good.clone();
        alter(&mut bad.pending[0]);
        assert!(bad.verify(newest).is_err(), "case {i}");
        let config = ClientAdvanceConfig {
            record: newest.clone(),
            state: Some(bad),
            secret_key: crate::common::secret("factory", 1),
            policy: policy(),
        };
        let mut rng: rand::rngs::StdRng = rand::SeedableRng::seed_from_u64(3);
        assert!(ClientAdvance::new(config, &mut rng).is_err(), "case {i}");
    }
    let mark = AdvanceMark { attempt: 2, position: 27, outermost: good.pending[0].outer[0] };
    assert!(ClientAdvanceState { marks: vec![mark], ..good }.verify(newest).is_err());
    // Shares that the leaf does not pay.
    let mut advance = rig.disk.advances[0].clone();
    advance.leaves[0].capacities_sat[0] += 1;
    assert!(NewestTree::new(&rig.disk.record, &[advance]).is_err());
}
