//! Every message of a client altered or left out: the client is named with a fitting reason, nothing changes, and the
//! next honest try succeeds.

use bolt_tlv::payload::{self, Payload};
use factory_core::advance::*;
use factory_core::ceremony::{ExcludeReason, Phase};

use crate::altered::{alter, assert_unharmed, branch, leaf, rig, same_leaf, spoil};
use crate::common::node_id;

#[test]
fn faulty_clients_are_named() {
    const AGREE: u16 = payload::AdvanceAgree::NUMBER;
    const PARTIALS: u16 = payload::AdvancePartials::NUMBER;
    const OUTER: u16 = payload::AdvanceOuter::NUMBER;
    type Case = (&'static str, u16, fn(&ExcludeReason) -> bool, fn(&mut Payload));
    let cases: &[Case] = &[
        (
            "no nonce",
            AGREE,
            |r| matches!(r, ExcludeReason::BadNonce { session: 0 }),
            alter!(AdvanceAgree, m => m.inner[0] = [9; 66]),
        ),
        (
            "no outer nonce",
            AGREE,
            |r| matches!(r, ExcludeReason::BadNonce { .. }),
            alter!(AdvanceAgree, m => m.outer[0] = [9; 66]),
        ),
        (
            "a nonce too few",
            AGREE,
            |r| matches!(r, ExcludeReason::ListLength { .. }),
            alter!(AdvanceAgree, m => m.inner.pop()),
        ),
        (
            "a nonce too many",
            AGREE,
            |r| matches!(r, ExcludeReason::ListLength { .. }),
            alter!(AdvanceAgree, m => m.outer.push(m.outer[0])),
        ),
        (
            "nonces on the other list",
            AGREE,
            |r| matches!(r, ExcludeReason::ListLength { .. }),
            alter!(AdvanceAgree, m => m.outer.extend(m.inner.pop())),
        ),
        (
            "no number",
            PARTIALS,
            |r| matches!(r, ExcludeReason::BadPartial { session: 0 }),
            alter!(AdvancePartials, m => m.partials[0] = [0xff; 32]),
        ),
        (
            "a wrong partial",
            PARTIALS,
            |r| matches!(r, ExcludeReason::WrongPartial { session: 1 }),
            alter!(AdvancePartials, m => m.partials[1][31] ^= 1),
        ),
        (
            "a partial too few",
            PARTIALS,
            |r| matches!(r, ExcludeReason::ListLength { .. }),
            alter!(AdvancePartials, m => m.partials.pop()),
        ),
        (
            "a wrong outer partial",
            OUTER,
            |r| matches!(r, ExcludeReason::WrongPartial { .. }),
            alter!(AdvanceOuter, m => m.partials[0][31] ^= 1),
        ),
        (
            "no outer number",
            OUTER,
            |r| matches!(r, ExcludeReason::BadPartial { .. }),
            alter!(AdvanceOuter, m => m.partials[0] = [0xff; 32]),
        ),
        (
            "an outer partial too many",
            OUTER,
            |r| matches!(r, ExcludeReason::ListLength { .. }),
            alter!(AdvanceOuter, m => m.partials.push(m.partials[0])),
        ),
        (
            "out of turn",
            AGREE,
            |r| matches!(r, ExcludeReason::Unexpected { number: 37 }),
            |m| {
                let (instance_id, attempt) = (m.instance_id().unwrap(), m.attempt().unwrap());
                *m = payload::AdvanceOuter { instance_id, attempt, partials: vec![[1; 32]] }.into();
            },
        ),
        (
            "stored too soon",
            PARTIALS,
            |r| matches!(r, ExcludeReason::Unexpected { number: 39 }),
            |m| {
                let (instance_id, attempt) = (m.instance_id().unwrap(), m.attempt().unwrap());
                *m = payload::AdvancePersisted { instance_id, attempt }.into();
            },
        ),
    ];
    for world in [leaf, branch] {
        let (base, request) = rig(world());
        for (text, number, reason, alter) in cases {
            let (mut rig, request) = (base.fork(), request.clone());
            rig.to_lsp = spoil(1, *number, *alter);
            rig.advance(request.clone()).unwrap();
            let blamed = rig.blamed();
            assert!(matches!(&blamed[..], [(1, r)] if reason(r)), "{text}: {blamed:?}");
            let burnt = *number != AGREE;
            assert_eq!(rig.failed().unwrap().1, burnt, "{text}");
            assert_unharmed(&mut rig, request, text);
        }
    }
}

#[test]
fn silence_is_named_and_companions_are_waited_for() {
    for number in [31, 35, 37] {
        let (mut rig, request) = rig(leaf());
        rig.to_lsp = Box::new(move |i, m| if i == 1 && m.number() == number { vec![] } else { vec![m] });
        rig.advance(request.clone()).unwrap();
        let id = rig.timer;
        rig.lsp_in(LspAdvanceInput::Timeout { id: id - 1 });
        assert!(rig.failed().is_none());
        rig.lsp_in(LspAdvanceInput::Timeout { id });
        rig.run();
        let phase = if number == 31 { Phase::Planning } else { Phase::Partials };
        assert_eq!(rig.blamed(), [(1, ExcludeReason::Timeout { phase })]);
        assert_eq!(rig.failed().unwrap().1, number != 31);
        assert_unharmed(&mut rig, request, "silence");
    }
    // They are on the client's disk, and not on the provider's.
    for world in [leaf, branch, same_leaf] {
        let (mut rig, request) = rig(world());
        rig.lsp_uncovered.insert(1);
        rig.advance(request.clone()).unwrap();
        assert_eq!(rig.lsp.as_ref().unwrap().phase(), LspAdvancePhase::Covering);
        rig.lsp_in(LspAdvanceInput::ClientGone { client: node_id(1) });
        rig.run();
        assert!(!rig.failed().unwrap().1 && rig.disk.burnt.is_empty());
        rig.lsp_uncovered.clear();
        assert_unharmed(&mut rig, request, "no companions at the provider");
    }
    // They are on the provider's disk, and not on the client's.
    for world in [leaf, branch, same_leaf] {
        let (mut rig, request) = rig(world());
        rig.client_uncovered.insert(1);
        rig.advance(request.clone()).unwrap();
        assert_eq!(rig.clients[1].phase(), ClientAdvancePhase::Covering);
        let id = rig.timer;
        rig.lsp_in(LspAdvanceInput::Timeout { id });
        rig.run();
        assert_eq!(rig.blamed(), [(1, ExcludeReason::Timeout { phase: Phase::Partials })]);
        assert!(rig.clients[1].pending().is_empty());
        rig.client_uncovered.clear();
        assert_unharmed(&mut rig, request, "no companions at the client");
    }
    for world in [leaf, branch, same_leaf] {
        let (mut rig, request) = rig(world());
        rig.uncovered.insert(1);
        rig.advance(request.clone()).unwrap();
        assert_eq!(rig.lsp.as_ref().unwrap().phase(), LspAdvancePhase::Covering);
        let id = rig.timer;
        rig.lsp_in(LspAdvanceInput::Timeout { id });
        rig.run();
        assert_eq!(rig.blamed(), [(1, ExcludeReason::Timeout { phase: Phase::Partials })]);
        assert!(!rig.failed().unwrap().1 && rig.disk.burnt.is_empty());
        rig.uncovered.clear();
        assert_unharmed(&mut rig, request, "no companions");
    }
}
