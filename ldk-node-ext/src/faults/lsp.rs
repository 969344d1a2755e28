//! A hostile LSP: what the switches `lsp.plan.*`, `lsp.path.*` and so on make of its messages. Each breaks what one
//! check of the client is for.

use std::collections::HashMap;
use std::sync::Mutex;

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf};
use bolt_tlv::payload::{self, Payload};
use factory_core::advance::LspAdvanceRecord;
use factory_core::faults::{note, switch};

use crate::util::lock;

/// What a client was sent before, in this process.
#[derive(Clone, Copy, Default)]
struct Told {
    /// The client's place in tree order.
    index: usize,
    /// Temporary channel id of the attempt before.
    channel: Option<[u8; 32]>,
    /// Funding output of the attempt before.
    funding: Option<OutPoint>,
}

static TOLD: Mutex<Option<HashMap<PublicKey, Told>>> = Mutex::new(None);

/// What is sent instead of this message.
pub(super) fn outgoing(on: &[String], peer: &PublicKey, payload: &Payload) -> Vec<Vec<u8>> {
    let is = |name: &str| on.iter().any(|n| n == name);
    let mut told = lock(&TOLD);
    let told = told.get_or_insert_default().entry(*peer).or_default();
    let mut out = Vec::new();
    match payload.clone() {
        Payload::Plan(mut m) => {
            let channel = m.leaf.first().map(|member| member.temporary_channel_id);
            plan(&is, &mut m, told);
            told.index = usize::try_from(m.index).unwrap_or_default().saturating_sub(1);
            told.channel = channel;
            let (instance_id, attempt) = (m.instance_id, m.attempt);
            out.push(Payload::from(m));
            if is("lsp.out_of_turn") {
                out.push(payload::Signed { instance_id, attempt, signatures: Vec::new() }.into());
            }
        }
        Payload::Path(mut m) => {
            let funding = m.funding_outpoint;
            path(&is, &mut m, told);
            told.funding = Some(funding);
            out.push(m.into());
        }
        Payload::AggNonces(mut m) => {
            if is("lsp.nonces.short") {
                m.nonces.pop();
            }
            if is("lsp.nonces.garbage") {
                m.nonces.iter_mut().take(1).for_each(|n| *n = [0xff; 66]);
            }
            if is("lsp.nonces.swapped") {
                m.nonces.reverse();
            }
            if is("lsp.nonces.twice") {
                out.push(m.clone().into());
                m.nonces.reverse();
            }
            out.push(m.into());
        }
        Payload::Signed(_) if is("lsp.signed.withheld") => {}
        Payload::Signed(mut m) => {
            if is("lsp.signed.path") {
                m.signatures.iter_mut().take(1).for_each(|s| s[63] ^= 1);
            }
            // The leaf's distribution is signed last.
            if is("lsp.signed.distribution") {
                m.signatures.iter_mut().rev().take(1).for_each(|s| s[63] ^= 1);
            }
            out.push(m.into());
        }
        Payload::Funded(_) if is("lsp.never_funds") => {}
        Payload::Funded(mut m) => {
            if is("lsp.other_funding") {
                m.transaction.lock_time = LockTime::from_consensus(1);
            }
            out.push(m.into());
        }
        Payload::CloseTx(mut m) => {
            close(&is, &mut m);
            out.push(m.into());
        }
        Payload::CloseAggNonce(mut m) => {
            if is("lsp.close.nonce") {
                m.nonce = [0xff; 66];
            }
            out.push(m.into());
        }
        Payload::CloseDone(mut m) => {
            if is("lsp.close.signature") {
                m.signature[63] ^= 1;
            }
            out.push(m.into());
        }
        Payload::AdvanceInner(_) if is("lsp.advance.withholds_inner") => {}
        Payload::AdvanceSigned(_) if is("lsp.advance.withholds_signed") => {}
        Payload::AdvanceSigned(m) if is("lsp.advance.aborts") => {
            let (instance_id, attempt, text) = (m.instance_id, m.attempt, "changed my mind".to_owned());
            out.push(payload::AdvanceAbort { instance_id, attempt, code: 1, text }.into());
        }
        other => out.push(other),
    }
    out.iter().map(Payload::encode).collect()
}

/// Keeps a complete advance where a test finds it.
pub(crate) fn hides(record: &LspAdvanceRecord) -> bool {
    let hides = switch("lsp.advance.hides");
    if hides {
        note("hidden", || serde_json::to_string(record).unwrap_or_default());
    }
    hides
}

fn foreign_script() -> ScriptBuf {
    [&[0x00, 0x14][..], &[7; 20]].concat().into()
}

fn plan(is: &impl Fn(&str) -> bool, m: &mut payload::Plan, told: &Told) {
    let again = m.attempt > 0;
    let place = usize::try_from(m.index).unwrap_or_default();
    if is("lsp.plan.network") {
        m.network_magic[0] ^= 1;
    }
    if is("lsp.plan.params") {
        m.params.to_self_delay = 0;
    }
    if is("lsp.plan.lifetime") {
        m.expiry_height = m.expiry_height.saturating_sub(1);
    }
    if is("lsp.plan.birth_height") {
        m.birth_height = m.birth_height.saturating_add(7);
        m.expiry_height = m.expiry_height.saturating_add(7);
    }
    if is("lsp.plan.own_key") {
        m.index = m.index % u32::try_from(m.keys.len().saturating_sub(1)).unwrap_or(1) + 1;
    }
    if is("lsp.plan.duplicate_key") {
        let other = (1..m.keys.len()).find(|i| *i != place).and_then(|i| m.keys.get(i).copied());
        if let (Some(first), Some(other)) = (m.keys.first_mut(), other) {
            *first = other;
        }
    }
    if is("lsp.plan.substitute_key") {
        // In the place of another client a key of the LSP's: here only another valid one.
        let other = (1..m.keys.len()).find(|i| *i != place);
        if let Some(key) = other.and_then(|i| m.keys.get_mut(i)) {
            *key = negated(key);
        }
    }
    if again && is("lsp.plan.lsp_key") {
        m.keys.iter_mut().take(1).for_each(|key| *key = negated(key));
    }
    if again && is("lsp.plan.channel_id_again") {
        if let (Some(member), Some(old)) = (m.leaf.first_mut(), told.channel) {
            member.temporary_channel_id = old;
        }
    }
    if is("lsp.plan.leaf_members") {
        m.leaf.extend(m.leaf.first().cloned());
    }
    if is("lsp.plan.stock") {
        m.stock_sat = 5;
    }
    for member in &mut m.leaf {
        if is("lsp.plan.capacity") {
            member.capacity_sat = 10_000;
            member.push_msat = 0;
        }
        if is("lsp.plan.push") {
            member.push_msat = member.capacity_sat * 1000 + 1;
        }
        if is("lsp.plan.payout_script") {
            member.payout_script = foreign_script();
        }
    }
}

/// Another valid key: the point mirrored.
fn negated(key: &PublicKey) -> PublicKey {
    let mut bytes = key.serialize();
    bytes[0] ^= 1;
    PublicKey::from_slice(&bytes).unwrap_or(*key)
}

fn path(is: &impl Fn(&str) -> bool, m: &mut payload::Path, told: &Told) {
    if is("lsp.path.levels") {
        m.levels.push(Vec::new());
    }
    if is("lsp.path.funding_value") {
        m.funding_sat = m.funding_sat.saturating_add(1);
    }
    if is("lsp.path.outpoint") {
        m.funding_outpoint.vout = m.funding_outpoint.vout.saturating_add(1);
    }
    if is("lsp.path.channel_script") {
        m.channel_scripts.iter_mut().for_each(|script| *script = ScriptBuf::from(mirrored(script)));
    }
    if let (true, Some(old)) = (m.attempt > 0 && is("lsp.path.funding_again"), told.funding) {
        m.funding_outpoint = old;
    }
    let Some(root) = m.levels.first_mut() else { return };
    if let Some((sat, script)) = root.get_mut(told.index) {
        if is("lsp.path.conservation") {
            *sat = sat.saturating_add(1);
        }
        if is("lsp.path.child_key") {
            *script = ScriptBuf::from(mirrored(script));
        }
    }
    let mut siblings =
        root.iter_mut().enumerate().filter(|(i, _)| *i != told.index).map(|(_, output)| output);
    let Some((sat, script)) = siblings.next() else { return };
    if is("lsp.path.sibling") {
        *script = foreign_script();
    }
    if is("lsp.path.sibling_amount") {
        *sat = sat.saturating_add(1);
        m.funding_sat = m.funding_sat.saturating_add(1);
    }
    // Adds up, but is another tree for each client.
    if let (true, Some((other, _))) = (is("lsp.two_trees"), siblings.next()) {
        *sat = sat.saturating_add(1);
        *other = other.saturating_sub(1);
    }
}

/// A script of the same form for another key or hash.
fn mirrored(script: &ScriptBuf) -> Vec<u8> {
    let mut bytes = script.to_bytes();
    bytes.iter_mut().rev().take(1).for_each(|byte| *byte ^= 1);
    bytes
}

fn close(is: &impl Fn(&str) -> bool, m: &mut payload::CloseTx) {
    let tx = &mut m.transaction;
    if is("lsp.close.amount") {
        tx.output.iter_mut().for_each(|o| o.value = Amount::from_sat(o.value.to_sat().saturating_sub(1)));
    }
    if is("lsp.close.script") {
        tx.output.iter_mut().for_each(|o| o.script_pubkey = foreign_script());
    }
    if is("lsp.close.form") {
        tx.lock_time = LockTime::from_consensus(1);
        tx.input.iter_mut().for_each(|i| i.sequence = bitcoin::Sequence::ZERO);
    }
    if is("lsp.close.keys") {
        m.keys.iter_mut().take(1).for_each(|key| *key = negated(key));
    }
}
