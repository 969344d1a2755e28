//! Which crashes there are: every fail point, for every process that comes by it.

use factory_core::faults::POINTS;

use super::{Place, Row, Victim};

/// What is driven while a row's fault is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// A factory is made.
    Creation,
    /// A payment is made in it.
    Payment,
    /// It is closed.
    Close,
    /// A leaf is brought to the chain.
    Exit,
}

/// The first point of each phase after the first, in the order of [`POINTS`].
const BEGIN: [(&str, Phase); 3] = [
    ("node.pay.recorded", Phase::Payment),
    ("lsp.close.begun", Phase::Close),
    ("node.exit.store", Phase::Exit),
];

/// Points that have a scenario of their own, outside this matrix.
const ELSEWHERE: &[&str] = &[
    "node.void.stored",
    // scenario_offer
    "node.offer.requested",
    "node.offer.answered",
    // scenario_relay
    "lsp.relay.offered",
    "lsp.relay.held",
    "lsp.relay.paying",
    "lsp.relay.sent",
    "lsp.relay.paid",
    "lsp.relay.claimed",
    "lsp.relay.done",
    "lsp.relay.failed",
    // scenario_move
    "client.move.recorded",
    "client.move.sent",
    "client.move.closing",
    // scenario_jit_crash
    "lsp.jit.held",
    "lsp.jit.recorded",
    "lsp.jit.funding_stored",
    "lsp.jit.signed",
    "lsp.jit.child_stored",
    "lsp.jit.forward",
    "lsp.jit.forwarded",
    // scenario_rotate
    "lsp.rotation.begun",
    "node.channel.move",
    "node.channel.moved",
    "node.change.bind",
    "node.change.bound",
    "node.change.signed",
    "lsp.burnt.store",
    "lsp.burnt.stored",
    "client.mark.store",
    "client.mark.stored",
    "client.pending.store",
    "client.pending.stored",
    "lsp.advance.store",
    "lsp.advance.stored",
    "client.advance.store",
    "client.advance.stored",
];

/// Points that one of the two only comes by in the matrix: the LSP neither pays nor is paid here, and the client's
/// copy of the funding transaction goes out only if the LSP's does not.
const OF_CLIENT: &[&str] = &["node.pay.", "node.claimable", "node.claim", "node.paid", "node.hold."];
const OF_LSP: &[&str] = &["node.funding."];

/// Points that a process which dies there comes by again when it is back, by itself.
const TWICE: &[(&str, Place)] = &[
    ("node.funding.submit", Place::Lsp),
    ("node.live.store", Place::Lsp),
    ("node.live.store", Place::Client),
    ("node.manager.stored", Place::Client),
    ("node.monitor.stored", Place::Lsp),
    ("node.claimed", Place::Client),
    ("node.paid", Place::Client),
    ("lsp.close.stored", Place::Lsp),
    ("lsp.sent.close_agg_nonce", Place::Lsp),
    ("client.frozen.stored", Place::Client),
];

/// Messages of which the first two clients have theirs, or all.
const LATER: &[(&str, u32)] = &[
    ("lsp.sent.plan", 2),
    ("lsp.sent.agg_nonces", 2),
    ("lsp.sent.signed", 2),
    ("lsp.sent.signed", 3),
    ("lsp.sent.funded", 2),
    ("lsp.sent.close_propose", 2),
    ("lsp.balance.stored", 2),
    ("lsp.sent.close_agg_nonce", 3),
    ("lsp.sent.close_done", 2),
];

/// The quick set: the steps at which most is at stake.
const QUICK: &[(&str, Place, Victim)] = &[
    ("lsp.sent.signed", Place::Lsp, Victim::Process),
    ("node.funding.submit", Place::Lsp, Victim::Twice),
    ("client.sent.nonces", Place::Client, Victim::Process),
    ("client.path.stored", Place::Client, Victim::Process),
    ("client.sent.persisted", Place::Client, Victim::Process),
    ("node.funding.submit", Place::Lsp, Victim::Bitcoind),
    ("lsp.balance.stored", Place::Lsp, Victim::Process),
    ("lsp.sent.close_agg_nonce", Place::Lsp, Victim::Process),
    ("client.sent.close_partial", Place::Client, Victim::Process),
    ("client.frozen.stored", Place::Client, Victim::Process),
    ("node.close.submit", Place::Lsp, Victim::Bitcoind),
    ("node.manager.stored", Place::Lsp, Victim::Process),
    ("lsp.forward.decided", Place::Lsp, Victim::Process),
    ("node.claim.begun", Place::Client, Victim::Process),
    ("node.paid", Place::Client, Victim::Process),
    ("node.hold.claim_ordered", Place::Client, Victim::Process),
    ("node.child.stored", Place::Client, Victim::Process),
    ("node.commitment.submit", Place::Client, Victim::Process),
];

/// The phase in which a point comes by.
pub fn phase(point: &str) -> Phase {
    let at = |name: &str| POINTS.iter().position(|p| *p == name);
    let begun = BEGIN.iter().rev().find(|(first, _)| at(first) <= at(point));
    begun.map_or(Phase::Creation, |(_, phase)| *phase)
}

fn places(point: &str) -> &'static [Place] {
    let starts = |list: &[&str]| list.iter().any(|start| point.starts_with(start));
    if point.starts_with("lsp.") || starts(OF_LSP) {
        &[Place::Lsp]
    } else if point.starts_with("client.") || starts(OF_CLIENT) {
        &[Place::Client]
    } else {
        &[Place::Lsp, Place::Client]
    }
}

/// Every row of a phase: each process dies at each of its points, bitcoind at each step, some die twice, and some
/// when a message has gone to more than one.
pub fn every(wanted: Phase) -> Vec<Row> {
    let mut rows = Vec::new();
    for point in POINTS.iter().filter(|p| phase(p) == wanted && !ELSEWHERE.contains(p)) {
        let places = places(point);
        for place in places {
            rows.push(Row { point, place: *place, victim: Victim::Process, nth: 1 });
            if TWICE.contains(&(*point, *place)) {
                rows.push(Row { point, place: *place, victim: Victim::Twice, nth: 1 });
            }
        }
        let later = LATER.iter().filter(|(name, _)| name == point);
        rows.extend(later.map(|(_, nth)| Row {
            point,
            place: Place::Lsp,
            victim: Victim::Process,
            nth: *nth,
        }));
        // At a connection bitcoind plays no part.
        if !point.ends_with(".join") {
            let held = places.iter().take(1);
            rows.extend(held.map(|place| Row { point, place: *place, victim: Victim::Bitcoind, nth: 1 }));
        }
    }
    rows
}

/// The quick set of a phase.
pub fn quick(wanted: Phase) -> Vec<Row> {
    let rows = QUICK.iter().filter(|(point, ..)| phase(point) == wanted);
    rows.map(|(point, place, victim)| Row { point, place: *place, victim: *victim, nth: 1 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_a_row() {
        let phases = [Phase::Creation, Phase::Payment, Phase::Close, Phase::Exit];
        let rows: Vec<Row> = phases.into_iter().flat_map(every).collect();
        for point in POINTS.iter().filter(|p| !ELSEWHERE.contains(p)) {
            assert!(rows.iter().any(|row| row.point == *point), "{point}");
        }
        let named = TWICE.iter().map(|(p, _)| p).chain(LATER.iter().map(|(p, _)| p));
        for point in named.chain(QUICK.iter().map(|(p, ..)| p)).chain(ELSEWHERE) {
            assert!(POINTS.contains(point), "{point} is no point");
        }
        for row in phases.into_iter().flat_map(quick) {
            assert!(rows.iter().any(|r| (r.point, r.place) == (row.point, row.place)), "{row}");
        }
    }

    #[test]
    fn a_points_phase_is_told_by_its_place_in_the_list() {
        assert_eq!(phase("client.send.join"), Phase::Creation);
        assert_eq!(phase("node.channels.released"), Phase::Creation);
        assert_eq!(phase("node.hold.stored"), Phase::Payment);
        assert_eq!(phase("node.closed.stored"), Phase::Close);
        assert_eq!(phase("node.exit.ended"), Phase::Exit);
    }
}
