//! One commitment on V and on R with fixed keys, for blip-draft.md: transactions, signature hashes, signatures, and the
//! message that carries them.

#[path = "../../../../bolt-tlv/tests/common/printed.rs"]
mod printed;

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Message, PublicKey, Secp256k1, SecretKey};
use bitcoin::sighash::SighashCache;
use bitcoin::{EcdsaSighashType, OutPoint, Txid};
use bolt_tlv::payload::{self, Companions, Payload};
use lightning::ln::chan_utils::{
    build_htlc_transaction, derive_private_key, get_htlc_redeemscript, make_funding_redeemscript,
    ChannelTransactionParameters, CommitmentTransaction, CounterpartyChannelTransactionParameters,
    HTLCOutputInCommitment, HolderCommitmentTransaction,
};
use lightning::sign::{ChannelSigner, InMemorySigner, KeysManager, SignerProvider};
use lightning::types::features::ChannelTypeFeatures;
use lightning::types::payment::PaymentHash;
use printed::{line, Printed};
use serde_json::{json, Value};

use super::companion::{self, Signed};

/// The commitment's number, up from 0.
const NUMBER: u64 = 42;
const VALUE_SAT: u64 = 1_000_000;
const DELAY: u16 = 144;

fn signer(seed: u8) -> InMemorySigner {
    KeysManager::new(&[seed; 32], 0, 0, true).derive_channel_signer([seed; 32])
}

/// The channel as the node with the first signer sees it.
fn parameters(
    ours: &InMemorySigner,
    theirs: &InMemorySigner,
    outbound: bool,
) -> ChannelTransactionParameters {
    let secp = Secp256k1::new();
    let counterparty = CounterpartyChannelTransactionParameters {
        pubkeys: theirs.pubkeys(&secp),
        selected_contest_delay: DELAY,
    };
    let v = v();
    ChannelTransactionParameters {
        holder_pubkeys: ours.pubkeys(&secp),
        holder_selected_contest_delay: DELAY,
        is_outbound_from_holder: outbound,
        counterparty_parameters: Some(counterparty),
        funding_outpoint: Some(lightning::chain::transaction::OutPoint { txid: v.txid, index: 1 }),
        splice_parent_funding_txid: None,
        channel_type_features: ChannelTypeFeatures::anchors_zero_fee_commitments(),
        channel_value_satoshis: VALUE_SAT,
    }
}

fn v() -> OutPoint {
    let txid = std::array::from_fn(|place| u8::try_from(place).unwrap());
    OutPoint { txid: Txid::from_byte_array(txid), vout: 1 }
}

fn real() -> OutPoint {
    OutPoint { txid: Txid::from_byte_array([0x44; 32]), vout: 0 }
}

/// The receiver's commitment, as the sender knows it: two HTLCs, one each way.
fn commitment(parameters: &ChannelTransactionParameters, point: &PublicKey) -> CommitmentTransaction {
    let htlc = |offered, amount_msat, cltv_expiry, hash| HTLCOutputInCommitment {
        offered,
        amount_msat,
        cltv_expiry,
        payment_hash: PaymentHash([hash; 32]),
        transaction_output_index: None,
    };
    let htlcs = vec![htlc(true, 20_000_000, 2_000, 0x51), htlc(false, 30_000_000, 2_100, 0x52)];
    let number = ((1 << 48) - 1) - NUMBER;
    let directed = parameters.as_counterparty_broadcastable();
    CommitmentTransaction::new(number, point, 400_000, 550_000, 0, htlcs, &directed, &Secp256k1::new())
}

/// The commitment and its HTLC transactions on one outpoint, with what is signed.
fn on(
    outpoint: OutPoint,
    sender: &InMemorySigner,
    parameters: &ChannelTransactionParameters,
    commitment: &CommitmentTransaction,
) -> (Value, Signed) {
    let secp = Secp256k1::new();
    let mut parameters = parameters.clone();
    let index = u16::try_from(outpoint.vout).unwrap();
    parameters.funding_outpoint =
        Some(lightning::chain::transaction::OutPoint { txid: outpoint.txid, index });
    let signed = companion::sign(sender, &parameters, commitment, &outpoint, &secp).unwrap();
    let built = CommitmentTransaction::new(
        commitment.commitment_number(),
        &commitment.per_commitment_point(),
        commitment.to_broadcaster_value_sat(),
        commitment.to_countersignatory_value_sat(),
        0,
        commitment.nondust_htlcs().clone(),
        &parameters.as_counterparty_broadcastable(),
        &secp,
    );
    let trusted = built.trust();
    let theirs = parameters.counterparty_pubkeys().unwrap().funding_pubkey;
    let script = make_funding_redeemscript(&parameters.holder_pubkeys.funding_pubkey, &theirs);
    let hash = trusted.built_transaction().get_sighash_all(&script, VALUE_SAT);
    // Low R, and nothing random: that a signer without either would do as well is said in the draft.
    let funding_key = sender.funding_key(None);
    assert_eq!(secp.sign_ecdsa_low_r(&hash, &funding_key), signed.signature);

    let keys = trusted.keys();
    let own_key = derive_private_key(&secp, &keys.per_commitment_point, &sender.htlc_base_key);
    let mut htlcs = Vec::new();
    for (htlc, signature) in built.nondust_htlcs().iter().zip(&signed.htlcs) {
        let kind = &parameters.channel_type_features;
        let tx = build_htlc_transaction(
            &trusted.txid(),
            0,
            DELAY,
            htlc,
            kind,
            &keys.broadcaster_delayed_payment_key,
            &keys.revocation_key,
        );
        let script = get_htlc_redeemscript(htlc, kind, keys);
        let hash = SighashCache::new(&tx)
            .p2wsh_signature_hash(
                0,
                &script,
                htlc.to_bitcoin_amount(),
                EcdsaSighashType::SinglePlusAnyoneCanPay,
            )
            .unwrap();
        let message = Message::from_digest(hash.to_byte_array());
        assert_eq!(secp.sign_ecdsa_low_r(&message, &own_key), *signature);
        htlcs.push(json!({
            "unsigned": serialize_hex(&tx),
            "witness_script": script.to_hex_string(),
            "sat": htlc.to_bitcoin_amount().to_sat(),
            "sighash": hex::encode(hash),
            "signature": hex::encode(signature.serialize_compact()),
        }));
    }
    let txid: &[u8] = outpoint.txid.as_ref();
    let shown = json!({
        "outpoint": {"txid": hex::encode(txid), "vout": outpoint.vout},
        "commitment": serialize_hex(&trusted.built_transaction().transaction),
        "sighash": hex::encode(hash.as_ref()),
        "signature": hex::encode(signed.signature.serialize_compact()),
        "htlcs": htlcs,
    });
    (shown, signed)
}

struct World {
    json: Value,
    message: Payload,
}

fn world() -> World {
    let secp = Secp256k1::new();
    let (sender, receiver) = (signer(1), signer(2));
    let secret = SecretKey::from_slice(&[3; 32]).unwrap();
    let point = PublicKey::from_secret_key(&secp, &secret);
    let parameters_of_sender = parameters(&sender, &receiver, true);
    let commitment = commitment(&parameters_of_sender, &point);
    let (on_v, of_v) = on(v(), &sender, &parameters_of_sender, &commitment);
    let (on_r, of_r) = on(real(), &sender, &parameters_of_sender, &commitment);

    // The receiver takes what the sender made, and nothing else.
    let parameters = parameters(&receiver, &sender, false);
    let own = HolderCommitmentTransaction::new(
        commitment.clone(),
        of_v.signature,
        of_v.htlcs.clone(),
        &receiver.pubkeys(&secp).funding_pubkey,
        &sender.pubkeys(&secp).funding_pubkey,
    );
    assert!(companion::verify(&parameters, &own, &real(), &of_r, &secp));
    assert!(!companion::verify(&parameters, &own, &real(), &of_v, &secp));
    assert!(!companion::verify(&parameters, &own, &v(), &of_r, &secp));

    let message: Payload = Companions {
        channel_id: [0xcc; 32],
        funding: v(),
        number: NUMBER,
        commitment: of_v.signature.serialize_compact(),
        companions: vec![payload::Companion {
            real: real(),
            signature: of_r.signature.serialize_compact(),
            htlc_signatures: of_r.htlcs.iter().map(|s| s.serialize_compact()).collect(),
        }],
    }
    .into();
    let public = |signer: &InMemorySigner| {
        let keys = signer.pubkeys(&secp);
        json!({
            "funding_pubkey": keys.funding_pubkey.to_string(),
            "revocation_basepoint": keys.revocation_basepoint.to_public_key().to_string(),
            "payment_basepoint": keys.payment_point.to_string(),
            "delayed_payment_basepoint": keys.delayed_payment_basepoint.to_public_key().to_string(),
            "htlc_basepoint": keys.htlc_basepoint.to_public_key().to_string(),
        })
    };
    let json = json!({
        "about": "A commitment of the receiver's with two HTLCs, signed by the sender on V and on R. The sender has \
                  opened the channel. Zero-fee commitments; both delays are 144. Signatures: 64 bytes, RFC 6979 with \
                  a low R.",
        "value_sat": VALUE_SAT,
        "number": NUMBER,
        "sender": public(&sender),
        "sender_secrets": {
            "funding": hex::encode(sender.funding_key(None).secret_bytes()),
            "htlc_base": hex::encode(sender.htlc_base_key.secret_bytes()),
        },
        "receiver": public(&receiver),
        "per_commitment_point": point.to_string(),
        "on_v": on_v,
        "on_r": on_r,
        "companions": hex::encode(message.encode()),
    });
    World { json, message }
}

fn vectors() -> Printed {
    let World { json, message } = world();
    let mut text = String::new();
    let hex = |value: &Value| value.as_str().unwrap().to_owned();
    text.push_str(&line("Funding secret of the sender", "", &hex(&json["sender_secrets"]["funding"])));
    text.push_str(&line("HTLC base secret of the sender", "", &hex(&json["sender_secrets"]["htlc_base"])));
    text.push_str(&line("Per-commitment point of the receiver", "", &hex(&json["per_commitment_point"])));
    for side in ["sender", "receiver"] {
        for (name, key) in json[side].as_object().unwrap() {
            text.push_str(&line(&format!("The {side}'s {name}"), "", &hex(key)));
        }
    }
    for (name, form) in [("V", &json["on_v"]), ("R", &json["on_r"])] {
        text.push_str(&line(&format!("Commitment on {name}"), "unsigned", &hex(&form["commitment"])));
        text.push_str(&line(&format!("Signature hash on {name}"), "", &hex(&form["sighash"])));
        text.push_str(&line(&format!("Signature on {name}"), "", &hex(&form["signature"])));
        for (i, htlc) in form["htlcs"].as_array().unwrap().iter().enumerate() {
            let sat = format!("unsigned, spends {} sat", htlc["sat"]);
            text.push_str(&line(&format!("HTLC transaction {i} on {name}"), &sat, &hex(&htlc["unsigned"])));
            let script = &htlc["witness_script"];
            text.push_str(&line(&format!("Witness script of HTLC {i} on {name}"), "", &hex(script)));
            text.push_str(&line(
                &format!("Signature hash of HTLC {i} on {name}"),
                "",
                &hex(&htlc["sighash"]),
            ));
            text.push_str(&line(&format!("Signature of HTLC {i} on {name}"), "", &hex(&htlc["signature"])));
        }
    }
    text.push_str(&line("Companions", "number 52, channel_id cc*32", &hex::encode(message.encode())));
    Printed { file: Some(("ldk-node-ext/tests/vectors/companions.json", json)), block: "companions", text }
}

/// The two forms differ in the outpoint, and below that in the commitment's id.
#[test]
fn the_forms_differ_in_nothing_but_ids() {
    let json = world().json;
    let (on_v, on_r) = (&json["on_v"], &json["on_r"]);
    let outpoint = |o: OutPoint| [&o.txid.to_byte_array()[..], &o.vout.to_le_bytes()].concat();
    let (v, real) = (hex::encode(outpoint(v())), hex::encode(outpoint(real())));
    let moved = on_v["commitment"].as_str().unwrap().replace(&v, &real);
    assert_eq!(moved, on_r["commitment"].as_str().unwrap());
    for (a, b) in on_v["htlcs"].as_array().unwrap().iter().zip(on_r["htlcs"].as_array().unwrap()) {
        assert_eq!((&a["witness_script"], &a["sat"]), (&b["witness_script"], &b["sat"]));
        let (a, b) = (a["unsigned"].as_str().unwrap(), b["unsigned"].as_str().unwrap());
        // Version, marker-free count of inputs, then the id.
        assert_eq!((&a[..10], &a[74..]), (&b[..10], &b[74..]));
        assert_ne!(a[10..74], b[10..74]);
    }
}

#[test]
fn file_and_draft_have_these_vectors() {
    vectors().check();
}

#[test]
#[ignore = "writes: make vectors"]
fn write_vectors() {
    std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors")).unwrap();
    vectors().write();
}
