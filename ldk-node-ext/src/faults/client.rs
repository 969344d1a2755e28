//! A client that breaks the protocol: what the switches `client.*` make of its messages.

use std::sync::Mutex;
use std::time::Duration;

use bolt_tlv::payload::{self, Payload, MAX_SESSIONS};

use crate::util::lock;

/// A valid key of which this client has no secret: the generator. Two clients that use it use the same.
const FOREIGN_KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
/// Copies of a message in a flood: more than a peer may have waiting, and than the service works off in between.
const FLOOD: usize = 5_000;
/// Before each message of a slow client.
const PAUSE: Duration = Duration::from_millis(600);
/// Old messages that a client repeats.
const REPEATED: usize = 16;

/// What this process sent last, oldest first.
static SENT: Mutex<Vec<Payload>> = Mutex::new(Vec::new());

/// What is sent instead of this message.
pub(super) fn outgoing(on: &[String], payload: &Payload) -> Vec<Vec<u8>> {
    let is = |name: &str| on.iter().any(|n| n == name);
    let message = spoil(&is, payload.clone());
    if withheld(&is, &message) {
        return Vec::new();
    }
    let mut encoded = message.encode();
    if matches!(message, Payload::Nonces(_)) {
        if is("client.truncated") {
            encoded.truncate(encoded.len() / 2);
        } else if is("client.garbage") {
            encoded = vec![0xa4; 300];
        }
    }
    if is("client.slow") {
        std::thread::sleep(PAUSE);
    }
    let copies = match message {
        Payload::PlanOk(_) if is("client.flood") => FLOOD,
        _ if is("client.duplicate") => 2,
        _ => 1,
    };
    let mut out = Vec::new();
    if is("client.stale") {
        let mut sent = lock(&SENT);
        out.extend(sent.iter().map(Payload::encode));
        sent.push(message);
        let old = sent.len().saturating_sub(REPEATED);
        sent.drain(..old);
    }
    out.extend(std::iter::repeat_n(encoded, copies));
    out
}

fn withheld(is: &impl Fn(&str) -> bool, message: &Payload) -> bool {
    match message {
        Payload::Accept(_) => is("client.withholds.accept"),
        Payload::PlanOk(_) => is("client.withholds.plan_ok"),
        Payload::Nonces(_) => is("client.withholds.nonces"),
        Payload::Partials(_) => is("client.withholds.partials"),
        Payload::Persisted(_) => is("client.withholds.persisted"),
        Payload::AdvancePartials(_) => is("client.advance.withholds_partials"),
        Payload::AdvanceOuter(_) => is("client.advance.withholds_outer"),
        Payload::AdvancePersisted(_) => is("client.advance.withholds_persisted"),
        Payload::CloseNonce(_) => is("client.close.withholds_nonce"),
        Payload::ClosePartial(_) => is("client.close.withholds_partial"),
        _ => false,
    }
}

fn spoil(is: &impl Fn(&str) -> bool, message: Payload) -> Payload {
    match message {
        Payload::Accept(mut m) => {
            if is("client.wrong_key") {
                m.factory_key = FOREIGN_KEY.parse().unwrap_or(m.factory_key);
            }
            if is("client.bad_script") {
                // A witness program of version 2: nobody knows what it will mean.
                m.payout_script = [&[0x52, 0x20][..], &[7; 32]].concat().into();
            }
            m.into()
        }
        Payload::PlanOk(m) if is("client.out_of_turn") => {
            payload::Partials { instance_id: m.instance_id, attempt: m.attempt, partials: Vec::new() }.into()
        }
        Payload::Nonces(mut m) => {
            if is("client.bad_nonce") {
                m.nonces.iter_mut().take(1).for_each(|n| *n = [0xff; 66]);
            }
            if is("client.short_list") {
                m.nonces.pop();
            }
            if is("client.oversized") {
                m.nonces = vec![[2; 66]; MAX_SESSIONS + 1];
            }
            if is("client.ahead") {
                m.attempt = m.attempt.saturating_add(1);
            }
            m.into()
        }
        Payload::Partials(mut m) => {
            if is("client.bad_partial") {
                m.partials.iter_mut().take(1).for_each(|p| add(p, 1));
            }
            if is("client.unreadable_partial") {
                m.partials.iter_mut().take(1).for_each(|p| *p = [0xff; 32]);
            }
            // Two who do this agree beforehand that their errors add up to nothing.
            if is("client.partial_plus") {
                m.partials.iter_mut().for_each(|p| add(p, 1));
            }
            if is("client.partial_minus") {
                m.partials.iter_mut().for_each(|p| subtract(p, 1));
            }
            m.into()
        }
        Payload::CloseConsent(m) if is("client.close.refuses") => {
            let (instance_id, attempt, text) = (m.instance_id, m.attempt, "changed my mind".to_owned());
            payload::CloseRefuse { instance_id, attempt, code: 1, text }.into()
        }
        Payload::ClosePartial(mut m) => {
            if is("client.close.bad_partial") {
                add(&mut m.partial, 1);
            }
            m.into()
        }
        other => other,
    }
}

/// Adds to a big-endian number.
fn add(number: &mut [u8; 32], mut carry: u8) {
    for byte in number.iter_mut().rev() {
        let (sum, over) = byte.overflowing_add(carry);
        *byte = sum;
        carry = u8::from(over);
    }
}

/// Takes away from a big-endian number.
fn subtract(number: &mut [u8; 32], mut borrow: u8) {
    for byte in number.iter_mut().rev() {
        let (difference, under) = byte.overflowing_sub(borrow);
        *byte = difference;
        borrow = u8::from(under);
    }
}
