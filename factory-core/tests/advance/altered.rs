//! Every message of the provider altered: refused with the check's code, nothing changes, and the next honest try
//! succeeds.

use std::cell::Cell;
use std::rc::Rc;

use bitcoin::hashes::Hash;
use bitcoin::{ScriptBuf, WScriptHash};
use bolt_tlv::payload::{self, Payload};
use factory_core::advance::*;
use factory_core::ceremony::ExcludeReason;
use factory_core::params::Params;
use factory_core::refuse::RefuseCode;

use crate::common::{capacity, key, regtest, shaped};
use crate::rules;
use crate::world::{policy, request, Rig, Tamper};

/// Alters the first message with this number to or from client `who`.
pub fn spoil(who: usize, number: u16, alter: impl Fn(&mut Payload) + 'static) -> Tamper {
    let done = Rc::new(Cell::new(false));
    Box::new(move |i, mut message| {
        if i == who && message.number() == number && !done.replace(true) {
            alter(&mut message);
        }
        vec![message]
    })
}

/// A shared leaf of three whose amounts change, and a branch of two leaves.
pub fn leaf() -> (Params, usize, AdvanceRequest) {
    let caps = [capacity(0) - 10_000, capacity(1) + 15_000, capacity(2)];
    (shaped(6, 3, &[2], &[0, 3]), 6, request(1, 1, &[(0, &caps, 25_000)]))
}

pub fn branch() -> (Params, usize, AdvanceRequest) {
    let changes: &[(u32, &[u64], u64)] = &[(0, &[capacity(0)], 10_000), (1, &[capacity(1) + 10_000], 20_000)];
    (shaped(4, 1, &[2, 2], &[0, 2, 2]), 4, request(1, 1, changes))
}

pub fn same_leaf() -> (Params, usize, AdvanceRequest) {
    (regtest(2, 1), 2, request(1, 1, &[]))
}

pub fn rig((params, n, request): (Params, usize, AdvanceRequest)) -> (Rig, AdvanceRequest) {
    let stock = if n == 4 { 20_000 } else { 30_000 };
    let mut rig = Rig::new(params, n, stock);
    if n == 6 {
        // The leaf's innermost layer has no update left then, so the next one has inner transactions.
        for _ in 0..2 {
            rig.advance(crate::world::request(1, 1, &[])).unwrap();
            rig.assert_done();
        }
        rig.actions.clear();
        rig.disk.burnt.clear();
    }
    (rig, request)
}

/// All is as before, and the next try succeeds.
pub fn assert_unharmed(rig: &mut Rig, request: AdvanceRequest, text: &str) {
    rules::signatures(&rig.disk, &rig.disks);
    let before = rig.disk.advances.iter().filter(|a| a.attempt == rig.attempt).count();
    assert_eq!(before, 0, "{text}: something was signed");
    rig.to_client = Box::new(|_, p| vec![p]);
    rig.to_lsp = Box::new(|_, p| vec![p]);
    let burnt = rig.disk.burnt.last().map(|b| b.position);
    rig.advance(request).unwrap();
    rig.assert_done();
    assert!(rig.position(1) > burnt.unwrap_or(0), "{text}: a position was used twice");
}

type Case = (&'static str, u16, RefuseCode, fn(&mut Payload));

fn refuses(world: impl Fn() -> (Params, usize, AdvanceRequest), cases: &[Case]) {
    let (base, request) = rig(world());
    for (text, number, code, alter) in cases {
        let (mut rig, request) = (base.fork(), request.clone());
        rig.to_client = spoil(1, *number, *alter);
        rig.advance(request.clone()).unwrap();
        assert_eq!(rig.refused(), [(1, *code, false)], "{text}");
        let declined = rig.blamed();
        assert!(
            matches!(&declined[..], [(1, ExcludeReason::Declined { code: c, .. })] if *c == code.number()),
            "{text}"
        );
        assert_unharmed(&mut rig, request, text);
    }
}

macro_rules! alter {
    ($kind:ident, $m:ident => $do:expr) => {
        |message: &mut Payload| {
            let Payload::$kind($m) = message else { panic!("another message") };
            let _ = $do;
        }
    };
}

pub(crate) use alter;

fn other_script(i: u8) -> ScriptBuf {
    ScriptBuf::new_p2wsh(&WScriptHash::from_byte_array([i; 32]))
}

const PROPOSE: u16 = payload::AdvancePropose::NUMBER;
const TREE: u16 = payload::AdvanceTree::NUMBER;
const NONCES: u16 = payload::AdvanceAggNonces::NUMBER;
const INNER: u16 = payload::AdvanceInner::NUMBER;

#[test]
fn proposals_that_break_one_rule() {
    refuses(
        leaf,
        &[
            (
                "from another position",
                PROPOSE,
                RefuseCode::AdvanceBase,
                alter!(AdvancePropose, m => m.from = 0),
            ),
            (
                "to the same position",
                PROPOSE,
                RefuseCode::AdvancePosition,
                alter!(AdvancePropose, m => m.position = 2),
            ),
            (
                "beyond the odometer",
                PROPOSE,
                RefuseCode::AdvancePosition,
                alter!(AdvancePropose, m => m.position = 27),
            ),
            (
                "beyond all numbers",
                PROPOSE,
                RefuseCode::AdvancePosition,
                alter!(AdvancePropose, m => m.position = u64::MAX),
            ),
            (
                "of a static level",
                PROPOSE,
                RefuseCode::AdvancePosition,
                alter!(AdvancePropose, m => m.level = 0),
            ),
            (
                "of a level that there is not",
                PROPOSE,
                RefuseCode::AdvancePosition,
                alter!(AdvancePropose, m => m.level = 9),
            ),
            (
                "a stranger's key",
                PROPOSE,
                RefuseCode::AdvanceKeys,
                alter!(AdvancePropose, m => m.keys[0] = key("factory", 5)),
            ),
            ("a key too few", PROPOSE, RefuseCode::AdvanceKeys, alter!(AdvancePropose, m => m.keys.pop())),
            (
                "a key twice",
                PROPOSE,
                RefuseCode::AdvanceKeys,
                alter!(AdvancePropose, m => m.keys[2] = m.keys[0]),
            ),
            (
                "a sat too much",
                PROPOSE,
                RefuseCode::AdvanceAmounts,
                alter!(AdvancePropose, m => m.stock_sat += 1),
            ),
            (
                "a sat too little",
                PROPOSE,
                RefuseCode::AdvanceAmounts,
                alter!(AdvancePropose, m => m.capacities_sat[0] -= 1),
            ),
            (
                "dust for a stock",
                PROPOSE,
                RefuseCode::AdvanceAmounts,
                alter!(AdvancePropose, m => {
                    m.capacities_sat[0] += m.stock_sat - 100;
                    m.stock_sat = 100;
                }),
            ),
            (
                "dust for a neighbour",
                PROPOSE,
                RefuseCode::AdvanceAmounts,
                alter!(AdvancePropose, m => {
                    m.capacities_sat[1] += m.capacities_sat[0] - 329;
                    m.capacities_sat[0] = 329;
                }),
            ),
            (
                "amounts that overflow",
                PROPOSE,
                RefuseCode::AdvanceAmounts,
                alter!(AdvancePropose, m => m.stock_sat = u64::MAX),
            ),
            (
                "a member too many",
                PROPOSE,
                RefuseCode::AdvanceAmounts,
                alter!(AdvancePropose, m => m.capacities_sat.push(1_000)),
            ),
        ],
    );
    refuses(
        branch,
        &[
            (
                "not a multiple",
                PROPOSE,
                RefuseCode::AdvancePosition,
                alter!(AdvancePropose, m => m.position += 1),
            ),
            (
                "a level too deep",
                PROPOSE,
                RefuseCode::AdvancePosition,
                alter!(AdvancePropose, m => m.level = 2),
            ),
            (
                "keys in another order",
                PROPOSE,
                RefuseCode::AdvanceKeys,
                alter!(AdvancePropose, m => m.keys.swap(0, 1)),
            ),
        ],
    );
}

#[test]
fn trees_that_break_one_rule() {
    refuses(
        leaf,
        &[
            (
                "another's channel",
                TREE,
                RefuseCode::ChannelScript,
                alter!(AdvanceTree, m => m.channel_scripts[1] = other_script(7)),
            ),
            (
                "another's script, same capacity",
                TREE,
                RefuseCode::ChannelScript,
                alter!(AdvanceTree, m => m.channel_scripts[2] = other_script(7)),
            ),
            (
                "no p2wsh",
                TREE,
                RefuseCode::ChannelScript,
                alter!(AdvanceTree, m => m.channel_scripts[0] = ScriptBuf::from_bytes(vec![0x51])),
            ),
            (
                "a script too few",
                TREE,
                RefuseCode::ChannelScript,
                alter!(AdvanceTree, m => m.channel_scripts.pop()),
            ),
            (
                "a level too many",
                TREE,
                RefuseCode::PathShape,
                alter!(AdvanceTree, m => m.levels.push(Vec::new())),
            ),
        ],
    );
    refuses(
        branch,
        &[
            ("a level too few", TREE, RefuseCode::PathShape, alter!(AdvanceTree, m => m.levels.pop())),
            (
                "a child too many",
                TREE,
                RefuseCode::PathShape,
                alter!(AdvanceTree, m => {
                    let copy = m.levels[0][0].clone();
                    m.levels[0].push(copy);
                }),
            ),
            (
                "own leaf a sat short",
                TREE,
                RefuseCode::Conservation,
                alter!(AdvanceTree, m => {
                    m.levels[0][1].0 -= 1;
                    m.levels[0][0].0 += 1;
                }),
            ),
            (
                "sibling a sat more",
                TREE,
                RefuseCode::Conservation,
                alter!(AdvanceTree, m => m.levels[0][0].0 += 1),
            ),
            (
                "own leaf paid to the sibling",
                TREE,
                RefuseCode::ChildKey,
                alter!(AdvanceTree, m => m.levels[0][1].1 = m.levels[0][0].1.clone()),
            ),
            (
                "sibling that is not p2tr",
                TREE,
                RefuseCode::SiblingOutput,
                alter!(AdvanceTree, m => m.levels[0][0].1 = other_script(1)),
            ),
            (
                "sibling of dust",
                TREE,
                RefuseCode::SiblingOutput,
                alter!(AdvanceTree, m => m.levels[0][0].0 = 1),
            ),
        ],
    );
}

#[test]
fn nonces_and_inner_signatures() {
    for world in [leaf, branch] {
        refuses(
            world,
            &[
                (
                    "no point",
                    NONCES,
                    RefuseCode::AggregateNonce,
                    alter!(AdvanceAggNonces, m => m.inner[0] = [5; 66]),
                ),
                (
                    "no point outside",
                    NONCES,
                    RefuseCode::AggregateNonce,
                    alter!(AdvanceAggNonces, m => m.outer[0] = [5; 66]),
                ),
                (
                    "a nonce too few",
                    NONCES,
                    RefuseCode::ListLength,
                    alter!(AdvanceAggNonces, m => m.inner.pop()),
                ),
                (
                    "a nonce too many",
                    NONCES,
                    RefuseCode::ListLength,
                    alter!(AdvanceAggNonces, m => m.outer.push(m.outer[0])),
                ),
                (
                    "a wrong inner signature",
                    INNER,
                    RefuseCode::Signature,
                    alter!(AdvanceInner, m => m.signatures[0][9] ^= 1),
                ),
                (
                    "the last one wrong",
                    INNER,
                    RefuseCode::Signature,
                    alter!(AdvanceInner, m => m.signatures.last_mut().unwrap()[40] ^= 1),
                ),
                (
                    "a signature too few",
                    INNER,
                    RefuseCode::ListLength,
                    alter!(AdvanceInner, m => m.signatures.pop()),
                ),
            ],
        );
    }
}

#[test]
fn aggregate_nonces_are_used_once() {
    for world in [leaf, branch] {
        let (mut rig, request) = rig(world());
        rig.to_client =
            Box::new(|i, m| if i == 1 && m.number() == NONCES { vec![m.clone(), m] } else { vec![m] });
        rig.advance(request.clone()).unwrap();
        assert_eq!(rig.refused(), [(1, RefuseCode::NonceReuse, false)]);
        assert_unharmed(&mut rig, request, "nonces twice");
    }
}

#[test]
fn a_policy_and_a_shared_leaf_are_kept() {
    let (mut rig, request_) = rig(leaf());
    for (policy, code) in [
        (AdvancePolicy { allow: false, ..policy() }, RefuseCode::NotWanted),
        (AdvancePolicy { least_sat: capacity(1) + 15_001, ..policy() }, RefuseCode::Capacity),
        (AdvancePolicy { most_sat: capacity(1) + 14_999, ..policy() }, RefuseCode::Capacity),
    ] {
        rig.client_in(1, ClientAdvanceInput::Policy(policy));
        rig.client_actions.clear();
        rig.advance(request_.clone()).unwrap();
        assert_eq!(rig.refused(), [(1, code, false)]);
    }
    rig.client_in(1, ClientAdvanceInput::Policy(policy()));
    assert_unharmed(&mut rig, request_, "a policy");

    let (mut rig, request_) = rig_of_shared();
    rig.to_client = spoil(
        1,
        PROPOSE,
        alter!(AdvancePropose, m => {
            m.capacities_sat[0] += 500;
            m.capacities_sat[1] -= 500;
        }),
    );
    rig.advance(request_.clone()).unwrap();
    assert_eq!(rig.refused(), [(1, RefuseCode::AdvanceShared, false)]);
    assert_unharmed(&mut rig, request_, "a shared leaf");
}

fn rig_of_shared() -> (Rig, AdvanceRequest) {
    (Rig::new(shaped(4, 2, &[2], &[1, 1]), 4, 10_000), request(1, 0, &[]))
}

/// The outer signatures are wrong: the client's partial is out, so it waits for the right ones.
#[test]
fn a_wrong_outer_signature_leaves_the_try_pending() {
    for world in [leaf, branch, same_leaf] {
        for short in [false, true] {
            let (mut rig, request) = rig(world());
            rig.to_client = spoil(1, payload::AdvanceSigned::NUMBER, move |message| {
                let Payload::AdvanceSigned(m) = message else { panic!("another message") };
                if short {
                    m.signatures.pop();
                } else {
                    m.signatures[0][20] ^= 1;
                }
            });
            rig.advance(request).unwrap();
            assert_eq!(rig.refused(), [(1, RefuseCode::Signature, true)]);
            rules::signatures(&rig.disk, &rig.disks);
            assert_eq!(rig.clients[1].pending().len(), 1);
            assert_eq!(rig.lsp.as_ref().unwrap().phase(), LspAdvancePhase::Persisting);
            rig.client_in(1, ClientAdvanceInput::Connected);
            rig.run();
            rig.assert_done();
            assert!(rig.clients[1].pending().is_empty());
        }
    }
}

/// A message of another factory or another try is ignored, so the provider waits in vain.
#[test]
fn other_factories_and_tries_are_ignored() {
    for number in [PROPOSE, TREE, NONCES, INNER] {
        for case in 0..3u16 {
            let (mut rig, request) = rig(leaf());
            rig.to_client = Box::new(move |i, m| {
                if i != 1 || m.number() != number {
                    return vec![m];
                }
                let mut bytes = m.encode();
                // Number, then two records: 32 bytes of the factory, 2 of the try.
                match case {
                    0 => bytes[10] ^= 1,
                    1 => bytes[39] = bytes[39].wrapping_add(1),
                    _ => bytes[39] = 0,
                }
                vec![Payload::decode(&bytes).unwrap()]
            });
            rig.advance(request.clone()).unwrap();
            let id = rig.timer;
            rig.lsp_in(LspAdvanceInput::Timeout { id });
            rig.run();
            let text = format!("message {number} case {case}");
            let timeouts = rig.blamed();
            assert!(matches!(&timeouts[..], [(1, ExcludeReason::Timeout { .. })]), "{text}: {timeouts:?}");
            if case == 1 && number == PROPOSE {
                // It drew nonces for a try that is yet to come, and does not draw them twice.
                rig.attempt += 1;
            }
            assert_unharmed(&mut rig, request, &text);
        }
    }
}
