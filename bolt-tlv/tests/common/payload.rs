//! Strategies for the messages of our own protocol. Each list is drawn well within its limit; the limits
//! themselves have tests of their own.

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::PublicKey;
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, WitnessProgram, WitnessVersion,
};
use bolt_tlv::payload::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{bytes, key, txid};

fn payout_script() -> impl Strategy<Value = ScriptBuf> {
    (1u8..=16, vec(any::<u8>(), 2..=40)).prop_map(|(version, program)| {
        let version = WitnessVersion::try_from(version).unwrap();
        ScriptBuf::new_witness_program(&WitnessProgram::new(version, &program).unwrap())
    })
}

fn script() -> impl Strategy<Value = ScriptBuf> {
    vec(any::<u8>(), 0..300).prop_map(ScriptBuf::from_bytes)
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,60}"
}

fn keys() -> impl Strategy<Value = Vec<PublicKey>> {
    vec(key(), 0..6)
}

fn outpoint() -> impl Strategy<Value = OutPoint> {
    (txid(), any::<u32>()).prop_map(|(txid, vout)| OutPoint { txid, vout })
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let input = (outpoint(), script(), any::<u32>(), vec(vec(any::<u8>(), 0..80), 0..3));
    let input = input.prop_map(|(previous_output, script_sig, sequence, witness)| TxIn {
        previous_output,
        script_sig,
        sequence: Sequence(sequence),
        witness: witness.into(),
    });
    let output = (any::<u64>(), script())
        .prop_map(|(sat, script_pubkey)| TxOut { value: Amount::from_sat(sat), script_pubkey });
    (any::<i32>(), any::<u32>(), vec(input, 1..4), vec(output, 0..4)).prop_map(
        |(version, lock_time, input, output)| Transaction {
            version: Version(version),
            lock_time: LockTime::from_consensus(lock_time),
            input,
            output,
        },
    )
}

fn params() -> impl Strategy<Value = PlanParams> {
    let layer = (any::<u16>(), any::<u16>(), any::<u16>()).prop_map(|(states, step, base)| DwLayer {
        states,
        step,
        base,
    });
    let level = (any::<u16>(), vec(layer.clone(), 0..=MAX_LAYERS));
    let levels = (vec(level, 0..MAX_LEVELS), vec(layer, 0..=MAX_LAYERS));
    let blocks = (any::<u32>(), any::<u32>(), any::<u32>());
    let small = (any::<u16>(), any::<u16>(), any::<u16>(), any::<u16>(), any::<u16>());
    (levels, blocks, small).prop_map(|((upper, leaf), (active, dying, margin), small)| {
        let (arity, mut layers): (Vec<_>, Vec<_>) = upper.into_iter().unzip();
        layers.push(leaf);
        let (clients_per_leaf, confirm_blocks, reorg_margin, to_self_delay, min_depth) = small;
        PlanParams {
            clients_per_leaf,
            arity,
            layers,
            active,
            dying,
            margin,
            confirm_blocks,
            reorg_margin,
            to_self_delay,
            min_depth,
        }
    })
}

fn member() -> impl Strategy<Value = LeafMember> {
    (any::<u64>(), any::<u64>(), payout_script(), bytes()).prop_map(
        |(capacity_sat, push_msat, payout_script, temporary_channel_id)| LeafMember {
            capacity_sat,
            push_msat,
            payout_script,
            temporary_channel_id,
        },
    )
}

/// A strategy for a message of one attempt: the fields and where each comes from.
macro_rules! of_attempt {
    ($name:ident { $($field:ident: $strategy:expr),* }) => {
        (bytes(), any::<u16>(), ($($strategy,)*)).prop_map(
            |(instance_id, attempt, ($($field,)*))| $name { instance_id, attempt, $($field),* }.into()
        )
    };
    ($name:ident) => {
        (bytes(), any::<u16>())
            .prop_map(|(instance_id, attempt)| $name { instance_id, attempt }.into())
    };
}

fn creation() -> BoxedStrategy<Payload> {
    let plan = of_attempt!(Plan {
        network_magic: bytes(),
        birth_height: any::<u32>(),
        expiry_height: any::<u32>(),
        params: params(),
        keys: keys(),
        index: any::<u32>(),
        leaf: vec(member(), 0..4),
        stock_sat: any::<u64>(),
        stock_script: payout_script()
    });
    let path = of_attempt!(Path {
        funding_outpoint: outpoint(),
        funding_sat: any::<u64>(),
        levels: vec(vec((any::<u64>(), script()), 0..9), 0..4),
        channel_scripts: vec(script(), 0..4)
    });
    let join = (any::<u16>(), any::<u64>(), any::<u64>()).prop_map(|(version, least, most)| {
        Join { version, min_capacity_sat: least, max_capacity_sat: most }.into()
    });
    prop_oneof![
        join,
        of_attempt!(Invite),
        of_attempt!(Accept { factory_key: key(), payout_script: payout_script() }),
        of_attempt!(Decline { code: any::<u16>(), text: text() }),
        plan,
        of_attempt!(PlanOk),
        path,
        of_attempt!(Nonces { nonces: vec(bytes(), 0..6) }),
        of_attempt!(AggNonces { nonces: vec(bytes(), 0..6) }),
        of_attempt!(Partials { partials: vec(bytes(), 0..6) }),
        of_attempt!(Signed { signatures: vec(bytes(), 0..6) }),
        of_attempt!(Persisted),
        of_attempt!(Funded { transaction: transaction() }),
        of_attempt!(Abort { code: any::<u16>(), text: text(), culprit: option::of(key()) }),
    ]
    .boxed()
}

fn closing() -> BoxedStrategy<Payload> {
    prop_oneof![
        bytes().prop_map(|instance_id| CloseAsk { instance_id }.into()),
        of_attempt!(ClosePropose),
        of_attempt!(CloseConsent { payout_script: payout_script() }),
        of_attempt!(CloseRefuse { code: any::<u16>(), text: text() }),
        of_attempt!(CloseTx { transaction: transaction(), keys: keys() }),
        of_attempt!(CloseNonce { nonce: bytes() }),
        of_attempt!(CloseAggNonce { nonce: bytes() }),
        of_attempt!(ClosePartial { partial: bytes() }),
        of_attempt!(CloseDone { signature: bytes() }),
        of_attempt!(CloseAbort { code: any::<u16>(), text: text() }),
    ]
    .boxed()
}

fn advance() -> BoxedStrategy<Payload> {
    prop_oneof![
        of_attempt!(AdvancePropose {
            level: any::<u16>(),
            from: any::<u64>(),
            position: any::<u64>(),
            keys: keys(),
            capacities_sat: vec(any::<u64>(), 0..6),
            stock_sat: any::<u64>(),
            reason: any::<u16>()
        }),
        of_attempt!(AdvanceAgree { inner: vec(bytes(), 0..6), outer: vec(bytes(), 0..6) }),
        of_attempt!(AdvanceRefuse { code: any::<u16>(), text: text() }),
        of_attempt!(AdvanceTree {
            levels: vec(vec((any::<u64>(), script()), 0..9), 0..4),
            channel_scripts: vec(script(), 0..4)
        }),
        of_attempt!(AdvanceAggNonces { inner: vec(bytes(), 0..6), outer: vec(bytes(), 0..6) }),
        of_attempt!(AdvancePartials { partials: vec(bytes(), 0..6) }),
        of_attempt!(AdvanceInner { signatures: vec(bytes(), 0..6) }),
        of_attempt!(AdvanceOuter { partials: vec(bytes(), 0..6) }),
        of_attempt!(AdvanceSigned { signatures: vec(bytes(), 0..6) }),
        of_attempt!(AdvancePersisted),
        of_attempt!(AdvanceResume { pending: any::<u16>() }),
        of_attempt!(AdvanceAbort { code: any::<u16>(), text: text() }),
        (bytes(), any::<u64>()).prop_map(|(instance_id, capacity_sat)| AdvanceAsk {
            instance_id,
            capacity_sat
        }
        .into()),
        (bytes(), any::<u16>(), text()).prop_map(|(instance_id, code, text)| AdvanceDecline {
            instance_id,
            code,
            text
        }
        .into()),
    ]
    .boxed()
}

fn live() -> BoxedStrategy<Payload> {
    let companion = (outpoint(), bytes(), vec(bytes(), 0..4))
        .prop_map(|(real, signature, htlc_signatures)| Companion { real, signature, htlc_signatures });
    let marked = || (bytes(), outpoint(), outpoint());
    prop_oneof![
        marked().prop_map(|(channel_id, funding, real)| Marker { channel_id, funding, real }.into()),
        marked().prop_map(|(channel_id, funding, real)| MarkerAck { channel_id, funding, real }.into()),
        (bytes(), outpoint(), any::<u64>(), bytes(), vec(companion, 0..4)).prop_map(
            |(channel_id, funding, number, commitment, companions)| {
                Companions { channel_id, funding, number, commitment, companions }.into()
            }
        ),
    ]
    .boxed()
}

fn relay() -> BoxedStrategy<Payload> {
    let long = || text().prop_map(LongText);
    let from = prop::option::of(bytes());
    let ask = (bytes(), bytes(), any::<u64>(), any::<u16>(), any::<u64>(), any::<u32>(), long(), from);
    prop_oneof![
        ask.prop_map(
            |(
                payment_hash,
                payment_secret,
                amount_msat,
                min_final,
                max_fee_msat,
                expiry_secs,
                description,
                moved_from,
            )| {
                RelayAsk {
                    payment_hash,
                    payment_secret,
                    amount_msat,
                    min_final,
                    max_fee_msat,
                    expiry_secs,
                    description,
                    moved_from,
                }
                .into()
            }
        ),
        (bytes(), long()).prop_map(|(payment_hash, invoice)| RelayInvoice { payment_hash, invoice }.into()),
        (bytes(), any::<u16>(), text()).prop_map(|(payment_hash, code, text)| RelayDecline {
            payment_hash,
            code,
            text
        }
        .into()),
    ]
    .boxed()
}

pub fn message() -> impl Strategy<Value = Payload> {
    // Odd numbers this version knows end at 57; those between are of other messages or none.
    let unknown = (29u16..=0x7fff).prop_map(|half| Payload::UnknownOdd(2 * half + 1));
    prop_oneof![14 => creation(), 10 => closing(), 12 => advance(), 3 => live(), 3 => relay(), 1 => unknown]
}
