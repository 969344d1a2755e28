//! Messages that were said, changed into others that somebody might say instead.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, ScriptBuf, Transaction};
use bolt_tlv::payload::*;

use crate::common::{key, payout};
use crate::script::Script;

/// Changes one thing. `said` are messages of the same run to take parts from. None if what comes out is no message:
/// the connection would not outlive it.
pub fn alter(message: &Payload, said: &[Payload], script: &mut Script<'_>) -> Option<Payload> {
    match script.below(4) {
        0 => bytes(message, script),
        1 => head(message, script),
        2 => Some(other_of_its_kind(message, said, script)),
        _ => Payload::decode(&body(message.clone(), script).encode()).ok(),
    }
}

/// One byte of the encoding is another, is missing or is there twice.
fn bytes(message: &Payload, script: &mut Script<'_>) -> Option<Payload> {
    let mut encoded = message.encode();
    let at = script.below(encoded.len());
    match script.below(3) {
        0 => encoded[at] ^= script.byte().max(1),
        1 => drop(encoded.remove(at)),
        _ => encoded.insert(at, encoded[at]),
    }
    Payload::decode(&encoded).ok()
}

/// Another instance or attempt.
fn head(message: &Payload, script: &mut Script<'_>) -> Option<Payload> {
    let mut encoded = message.encode();
    // The number, then the records 0 (32 bytes) and 2 (2 bytes), each with type and length.
    let attempt = encoded.get(38..40).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let attempt = match script.below(4) {
        0 => {
            *encoded.get_mut(4)? ^= 1;
            attempt
        }
        1 => attempt.wrapping_add(1),
        2 => attempt.wrapping_sub(1),
        _ => u16::MAX,
    };
    encoded.get_mut(38..40)?.copy_from_slice(&attempt.to_be_bytes());
    Payload::decode(&encoded).ok()
}

fn other_of_its_kind(message: &Payload, said: &[Payload], script: &mut Script<'_>) -> Payload {
    let others: Vec<_> = said.iter().filter(|m| m.number() == message.number()).collect();
    others.get(script.below(others.len())).map_or_else(|| message.clone(), |m| (*m).clone())
}

fn number(value: &mut u64, script: &mut Script<'_>) {
    *value = match script.below(6) {
        0 => 0,
        1 => value.wrapping_add(1),
        2 => value.wrapping_sub(1),
        3 => u64::MAX,
        4 => u64::from(script.number()),
        _ => value.rotate_left(1),
    };
}

fn small(value: &mut u32, script: &mut Script<'_>) {
    let mut wide = u64::from(*value);
    number(&mut wide, script);
    *value = u32::try_from(wide & u64::from(u32::MAX)).unwrap();
}

fn smaller(value: &mut u16, script: &mut Script<'_>) {
    let mut wide = u64::from(*value);
    number(&mut wide, script);
    *value = u16::try_from(wide & u64::from(u16::MAX)).unwrap();
}

/// Swaps two, drops one, repeats one, or all but a few go.
fn list<T: Clone>(items: &mut Vec<T>, script: &mut Script<'_>) {
    if items.is_empty() {
        return;
    }
    let at = script.below(items.len());
    match script.below(4) {
        0 => {
            let other = script.below(items.len());
            items.swap(at, other);
        }
        1 => drop(items.remove(at)),
        2 => items.insert(at, items[at].clone()),
        _ => items.truncate(at),
    }
}

fn words<const N: usize>(items: &mut Vec<[u8; N]>, script: &mut Script<'_>) {
    let at = script.below(items.len());
    match (items.get_mut(at), script.below(4)) {
        (Some(item), 0) => item[script.below(N)] ^= script.byte().max(1),
        (Some(item), 1) => *item = [script.byte(); N],
        _ => list(items, script),
    }
}

fn script_of(script: &mut Script<'_>) -> ScriptBuf {
    match script.below(4) {
        0 => payout(script.below(4)),
        1 => payout(700 + script.below(4)),
        2 => ScriptBuf::new_op_return([1, 2]),
        _ => ScriptBuf::from_bytes([&[0x51, 32][..], &[script.byte(); 32][..]].concat()),
    }
}

fn key_of(script: &mut Script<'_>) -> PublicKey {
    match script.below(3) {
        0 => key("lsp", 0),
        1 => key("factory", script.below(4)),
        _ => key("stranger", script.below(4)),
    }
}

fn keys(items: &mut Vec<PublicKey>, script: &mut Script<'_>) {
    let at = script.below(items.len());
    match (items.get_mut(at), script.below(2)) {
        (Some(item), 0) => *item = key_of(script),
        _ => list(items, script),
    }
}

fn transaction(tx: &mut Transaction, script: &mut Script<'_>) {
    let at = script.below(tx.output.len());
    match (tx.output.get_mut(at), script.below(7)) {
        (Some(output), 0) => {
            let mut sat = output.value.to_sat();
            number(&mut sat, script);
            output.value = Amount::from_sat(sat);
        }
        (Some(output), 1) => output.script_pubkey = script_of(script),
        (_, 2) => list(&mut tx.output, script),
        (_, 3) => list(&mut tx.input, script),
        (_, 4) => tx.version.0 ^= 1,
        (_, 5) => tx.lock_time = bitcoin::absolute::LockTime::from_consensus(script.number().into()),
        (_, _) => {
            if let Some(input) = tx.input.first_mut() {
                match script.below(3) {
                    0 => input.previous_output.vout ^= 1,
                    1 => input.sequence = bitcoin::Sequence(script.number().into()),
                    _ => input.witness.push([7; 64]),
                }
            }
        }
    }
}

fn plan(m: &mut Plan, script: &mut Script<'_>) {
    let members = m.leaf.len();
    match script.below(12) {
        0 => small(&mut m.birth_height, script),
        1 => small(&mut m.expiry_height, script),
        2 => keys(&mut m.keys, script),
        3 => small(&mut m.index, script),
        4 => number(&mut m.stock_sat, script),
        5 => m.stock_script = script_of(script),
        6 => list(&mut m.leaf, script),
        7 => smaller(&mut m.params.clients_per_leaf, script),
        8 => match script.below(6) {
            0 => small(&mut m.params.active, script),
            1 => small(&mut m.params.dying, script),
            2 => small(&mut m.params.margin, script),
            3 => smaller(&mut m.params.confirm_blocks, script),
            4 => smaller(&mut m.params.to_self_delay, script),
            _ => smaller(&mut m.params.min_depth, script),
        },
        9 => {
            let level = script.below(m.params.layers.len());
            if let Some(layer) = m.params.layers.get_mut(level).and_then(|l| l.first_mut()) {
                match script.below(3) {
                    0 => smaller(&mut layer.states, script),
                    1 => smaller(&mut layer.step, script),
                    _ => smaller(&mut layer.base, script),
                }
            }
        }
        10 => list(&mut m.params.arity, script),
        _ => {
            let Some(member) = m.leaf.get_mut(script.below(members)) else { return };
            match script.below(4) {
                0 => number(&mut member.capacity_sat, script),
                1 => number(&mut member.push_msat, script),
                2 => member.payout_script = script_of(script),
                _ => member.temporary_channel_id[0] ^= 1,
            }
        }
    }
}

fn path(m: &mut Path, script: &mut Script<'_>) {
    match script.below(6) {
        0 => m.funding_outpoint.vout ^= 1,
        1 => number(&mut m.funding_sat, script),
        2 => list(&mut m.levels, script),
        3 => list(&mut m.channel_scripts, script),
        4 => {
            let at = script.below(m.channel_scripts.len());
            if let Some(channel) = m.channel_scripts.get_mut(at) {
                *channel = script_of(script);
            }
        }
        _ => {
            let level = script.below(m.levels.len());
            let Some(outputs) = m.levels.get_mut(level) else { return };
            let at = script.below(outputs.len());
            match (outputs.get_mut(at), script.below(3)) {
                (Some((sat, _)), 0) => number(sat, script),
                (Some((_, to)), 1) => *to = script_of(script),
                _ => list(outputs, script),
            }
        }
    }
}

/// Changes one field to something plausible.
fn body(mut message: Payload, script: &mut Script<'_>) -> Payload {
    match &mut message {
        Payload::Accept(m) => match script.below(2) {
            0 => m.factory_key = key_of(script),
            _ => m.payout_script = script_of(script),
        },
        Payload::Plan(m) => plan(m, script),
        Payload::Path(m) => path(m, script),
        Payload::Nonces(m) => words(&mut m.nonces, script),
        Payload::AggNonces(m) => words(&mut m.nonces, script),
        Payload::Partials(m) => words(&mut m.partials, script),
        Payload::Signed(m) => words(&mut m.signatures, script),
        Payload::Funded(m) => transaction(&mut m.transaction, script),
        Payload::CloseConsent(m) => m.payout_script = script_of(script),
        Payload::CloseTx(m) => match script.below(2) {
            0 => keys(&mut m.keys, script),
            _ => transaction(&mut m.transaction, script),
        },
        Payload::CloseNonce(m) => m.nonce[script.below(66)] ^= script.byte().max(1),
        Payload::CloseAggNonce(m) => match script.below(2) {
            0 => m.nonce = [0; 66],
            _ => m.nonce[script.below(66)] ^= script.byte().max(1),
        },
        Payload::ClosePartial(m) => m.partial[script.below(32)] ^= script.byte().max(1),
        Payload::CloseDone(m) => m.signature[script.below(64)] ^= script.byte().max(1),
        _ => {}
    }
    message
}
