//! One message of each number with fixed contents. Nonces, signatures and secrets are filled with one byte, as their
//! contents do not matter to a codec; points are points.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use bolt_tlv::payload::*;

use crate::shown::{vector, Vector};

const ID: [u8; 32] = [0xbb; 32];
const TRY: u16 = 258;
const CHANNEL: [u8; 32] = [0xcc; 32];
const HASH: [u8; 32] = [0xaa; 32];

/// The public key of the secret key with this last byte and zeros before it.
fn key(secret: u8) -> PublicKey {
    let mut bytes = [0; 32];
    bytes[31] = secret;
    PublicKey::from_secret_key(&Secp256k1::new(), &SecretKey::from_slice(&bytes).unwrap())
}

fn script(hex: &str) -> ScriptBuf {
    ScriptBuf::from_hex(hex).unwrap()
}

/// A P2WPKH script.
fn payout() -> ScriptBuf {
    script(&format!("0014{}", "11".repeat(20)))
}

/// A P2TR script.
fn stock() -> ScriptBuf {
    script(&format!("5120{}", "22".repeat(32)))
}

/// A P2WSH script, as a channel has.
fn channel() -> ScriptBuf {
    script(&format!("0020{}", "33".repeat(32)))
}

/// Bytes 00 to 1f, in internal order.
fn txid() -> Txid {
    Txid::from_byte_array(std::array::from_fn(|place| u8::try_from(place).unwrap()))
}

fn v() -> OutPoint {
    OutPoint { txid: txid(), vout: 1 }
}

fn real() -> OutPoint {
    OutPoint { txid: Txid::from_byte_array([0x44; 32]), vout: 0 }
}

fn params() -> PlanParams {
    PlanParams {
        clients_per_leaf: 1,
        arity: vec![2],
        layers: vec![vec![], vec![DwLayer { states: 2, step: 48, base: 96 }]],
        active: 4320,
        dying: 432,
        margin: 144,
        confirm_blocks: 6,
        reorg_margin: 6,
        to_self_delay: 144,
        min_depth: 6,
    }
}

fn member() -> LeafMember {
    LeafMember {
        capacity_sat: 100_000,
        push_msat: 1_000,
        payout_script: payout(),
        temporary_channel_id: [0xdd; 32],
    }
}

fn transaction(witness: Witness) -> Transaction {
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: v(),
            script_sig: ScriptBuf::new(),
            sequence: Sequence(0xffff_fffd),
            witness,
        }],
        output: vec![TxOut { value: Amount::from_sat(200_000), script_pubkey: stock() }],
    }
}

fn levels() -> Vec<Vec<(u64, ScriptBuf)>> {
    vec![vec![(150_000, stock()), (250_000, script(&format!("5120{}", "55".repeat(32))))]]
}

fn companion(htlcs: usize) -> Companion {
    Companion { real: real(), signature: [0x66; 64], htlc_signatures: vec![[0x77; 64]; htlcs] }
}

/// All messages, by number.
pub fn all() -> Vec<Vector> {
    let all = [creation(), closing(), advance(), live(), relay()];
    all.into_iter().flatten().collect()
}

fn creation() -> Vec<Vector> {
    let plan = vector!(
        "Plan",
        Plan {
            instance_id: ID,
            attempt: TRY,
            network_magic: [0xfa, 0xbf, 0xb5, 0xda],
            birth_height: 1000,
            expiry_height: 6000,
            params: params(),
            keys: vec![key(1), key(2), key(3)],
            index: 1,
            leaf: vec![member()],
            stock_sat: 50_000,
            stock_script: stock(),
        }
    );
    let path = vector!(
        "Path",
        Path {
            instance_id: ID,
            attempt: TRY,
            funding_outpoint: v(),
            funding_sat: 400_000,
            levels: levels(),
            channel_scripts: vec![channel()],
        }
    );
    let signed = transaction(Witness::from_slice(&[[0x88; 64]]));
    vec![
        vector!("Join", Join { version: 1, min_capacity_sat: 100_000, max_capacity_sat: 500_000 }),
        vector!("Invite", Invite { instance_id: ID, attempt: TRY }),
        vector!(
            "Accept",
            Accept { instance_id: ID, attempt: TRY, factory_key: key(2), payout_script: payout() }
        ),
        vector!("Decline", Decline { instance_id: ID, attempt: TRY, code: 6, text: "too long".into() }),
        plan,
        vector!("PlanOk", PlanOk { instance_id: ID, attempt: TRY }),
        path,
        vector!("Nonces", Nonces { instance_id: ID, attempt: TRY, nonces: vec![[0x02; 66], [0x03; 66]] }),
        vector!("AggNonces", AggNonces { instance_id: ID, attempt: TRY, nonces: vec![[0x02; 66]] }),
        vector!(
            "Partials",
            Partials { instance_id: ID, attempt: TRY, partials: vec![[0x04; 32], [0x05; 32]] }
        ),
        vector!("Signed", Signed { instance_id: ID, attempt: TRY, signatures: vec![[0x06; 64]] }),
        vector!("Persisted", Persisted { instance_id: ID, attempt: TRY }),
        vector!("Funded", Funded { instance_id: ID, attempt: TRY, transaction: signed }),
        vector!(
            "Abort",
            Abort { instance_id: ID, attempt: TRY, code: 102, text: "late".into(), culprit: None }
        ),
        vector!(
            "Abort with a culprit",
            Abort { instance_id: ID, attempt: TRY, code: 1, text: "late".into(), culprit: Some(key(2)) }
        ),
    ]
}

fn closing() -> Vec<Vector> {
    let unsigned = transaction(Witness::new());
    vec![
        vector!("CloseAsk", CloseAsk { instance_id: ID }),
        vector!("ClosePropose", ClosePropose { instance_id: ID, attempt: TRY }),
        vector!("CloseConsent", CloseConsent { instance_id: ID, attempt: TRY, payout_script: payout() }),
        vector!(
            "CloseRefuse",
            CloseRefuse { instance_id: ID, attempt: TRY, code: 32, text: "a payment is pending".into() }
        ),
        vector!(
            "CloseTx",
            CloseTx { instance_id: ID, attempt: TRY, transaction: unsigned, keys: vec![key(1), key(2)] }
        ),
        vector!("CloseNonce", CloseNonce { instance_id: ID, attempt: TRY, nonce: [0x02; 66] }),
        vector!("CloseAggNonce", CloseAggNonce { instance_id: ID, attempt: TRY, nonce: [0x03; 66] }),
        vector!("ClosePartial", ClosePartial { instance_id: ID, attempt: TRY, partial: [0x04; 32] }),
        vector!("CloseDone", CloseDone { instance_id: ID, attempt: TRY, signature: [0x06; 64] }),
        vector!("CloseAbort", CloseAbort { instance_id: ID, attempt: TRY, code: 103, text: "later".into() }),
    ]
}

fn advance() -> Vec<Vector> {
    let propose = vector!(
        "AdvancePropose",
        AdvancePropose {
            instance_id: ID,
            attempt: TRY,
            level: 1,
            from: 0,
            position: 1,
            keys: vec![key(2)],
            capacities_sat: vec![120_000],
            stock_sat: 30_000,
            reason: 2,
        }
    );
    let (inner, outer) = (vec![[0x02; 66], [0x03; 66]], vec![[0x02; 66]]);
    vec![
        propose,
        vector!(
            "AdvanceAgree",
            AdvanceAgree { instance_id: ID, attempt: TRY, inner: inner.clone(), outer: outer.clone() }
        ),
        vector!(
            "AdvanceAgree without inner transactions",
            AdvanceAgree { instance_id: ID, attempt: TRY, inner: vec![], outer: outer.clone() }
        ),
        vector!(
            "AdvanceRefuse",
            AdvanceRefuse { instance_id: ID, attempt: TRY, code: 41, text: "not newer".into() }
        ),
        vector!(
            "AdvanceTree of a leaf",
            AdvanceTree { instance_id: ID, attempt: TRY, levels: vec![], channel_scripts: vec![channel()] }
        ),
        vector!(
            "AdvanceTree of a root",
            AdvanceTree { instance_id: ID, attempt: TRY, levels: levels(), channel_scripts: vec![channel()] }
        ),
        vector!(
            "AdvanceAggNonces",
            AdvanceAggNonces { instance_id: ID, attempt: TRY, inner: inner.clone(), outer: outer.clone() }
        ),
        vector!(
            "AdvancePartials",
            AdvancePartials { instance_id: ID, attempt: TRY, partials: vec![[0x04; 32], [0x05; 32]] }
        ),
        vector!(
            "AdvanceInner",
            AdvanceInner { instance_id: ID, attempt: TRY, signatures: vec![[0x06; 64], [0x07; 64]] }
        ),
        vector!("AdvanceOuter", AdvanceOuter { instance_id: ID, attempt: TRY, partials: vec![[0x04; 32]] }),
        vector!(
            "AdvanceSigned",
            AdvanceSigned { instance_id: ID, attempt: TRY, signatures: vec![[0x06; 64]] }
        ),
        vector!("AdvancePersisted", AdvancePersisted { instance_id: ID, attempt: TRY }),
        vector!("AdvanceResume, pending", AdvanceResume { instance_id: ID, attempt: TRY, pending: 1 }),
        vector!("AdvanceResume, free", AdvanceResume { instance_id: ID, attempt: TRY, pending: 0 }),
        vector!(
            "AdvanceAbort",
            AdvanceAbort { instance_id: ID, attempt: TRY, code: 1, text: "not completed".into() }
        ),
        vector!("AdvanceAsk", AdvanceAsk { instance_id: ID, capacity_sat: 700_000 }),
        vector!("AdvanceDecline", AdvanceDecline { instance_id: ID, code: 1, text: "not sold".into() }),
    ]
}

fn live() -> Vec<Vector> {
    let two = vec![companion(0), Companion { real: v(), ..companion(0) }];
    vec![
        vector!("Marker", Marker { channel_id: CHANNEL, funding: v(), real: real() }),
        vector!("MarkerAck", MarkerAck { channel_id: CHANNEL, funding: v(), real: real() }),
        vector!(
            "Companions, one outpoint, two HTLCs",
            Companions {
                channel_id: CHANNEL,
                funding: v(),
                number: 42,
                commitment: [0x99; 64],
                companions: vec![companion(2)]
            }
        ),
        vector!(
            "Companions, two outpoints, no HTLC",
            Companions {
                channel_id: CHANNEL,
                funding: v(),
                number: 42,
                commitment: [0x99; 64],
                companions: two
            }
        ),
    ]
}

fn relay() -> Vec<Vector> {
    vec![
        vector!(
            "RelayAsk",
            RelayAsk {
                payment_hash: HASH,
                payment_secret: [0xab; 32],
                amount_msat: 250_000_000,
                min_final: 360,
                max_fee_msat: 2_500_000,
                expiry_secs: 3600,
                description: LongText("two oxen".into()),
                moved_from: None,
            }
        ),
        vector!(
            "RelayAsk, into the factory",
            RelayAsk {
                payment_hash: HASH,
                payment_secret: [0xab; 32],
                amount_msat: 50_000_000,
                min_final: 360,
                max_fee_msat: 0,
                expiry_secs: 120,
                description: LongText("into the factory".into()),
                moved_from: Some(CHANNEL),
            }
        ),
        vector!("RelayInvoice", RelayInvoice { payment_hash: HASH, invoice: LongText("lnbcrt1".into()) }),
        vector!("RelayDecline", RelayDecline { payment_hash: HASH, code: 2, text: "not now".into() }),
    ]
}
