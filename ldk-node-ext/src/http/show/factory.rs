//! Factories as text: list, details, progress of a creation, close and exit.

use super::format::{bar, confirmations, deadline, sat, short, table, Align};
use crate::api::{CloseInfo, ExitInfo, ExitStepInfo, FactoryInfo, FactoryState, LeafInfo, MemberState};

/// The word for a state, as in JSON.
pub fn state(s: FactoryState) -> &'static str {
    match s {
        FactoryState::Inviting => "inviting",
        FactoryState::Planning => "planning",
        FactoryState::Opening => "opening",
        FactoryState::Funding => "funding",
        FactoryState::Nonces => "nonces",
        FactoryState::Partials => "partials",
        FactoryState::Persisting => "persisting",
        FactoryState::Confirming => "confirming",
        FactoryState::Active => "active",
        FactoryState::Dying => "dying",
        FactoryState::Closing => "closing",
        FactoryState::Closed => "closed",
        FactoryState::Exiting => "exiting",
        FactoryState::Exited => "exited",
        FactoryState::Failed => "failed",
    }
}

fn member(s: MemberState) -> &'static str {
    match s {
        MemberState::Invited => "invited",
        MemberState::Accepted => "accepted",
        MemberState::Planned => "planned",
        MemberState::Opened => "opened",
        MemberState::Signed => "signed",
        MemberState::Persisted => "persisted",
        MemberState::Ready => "ready",
        MemberState::Excluded => "excluded",
        MemberState::Exited => "exited",
        MemberState::Closed => "closed",
    }
}

/// Phases of a creation, in order, each with what a client has done when it is over and in words.
const PHASES: [(FactoryState, Option<MemberState>, &str); 9] = [
    (FactoryState::Inviting, Some(MemberState::Accepted), "clients gave their keys"),
    (FactoryState::Planning, Some(MemberState::Planned), "clients agreed to the plan"),
    (FactoryState::Opening, Some(MemberState::Opened), "channels are open up to the funding"),
    (FactoryState::Funding, None, "the funding transaction is being built"),
    (FactoryState::Nonces, None, "public nonces are being collected"),
    (FactoryState::Partials, Some(MemberState::Signed), "clients have signed"),
    (FactoryState::Persisting, Some(MemberState::Persisted), "clients have their exit on disk"),
    (FactoryState::Confirming, Some(MemberState::Ready), "channels are ready"),
    (FactoryState::Active, None, "the factory is alive"),
];

/// How far a client of a factory being created is; none for one that was left out.
fn rank(s: MemberState) -> Option<u8> {
    match s {
        MemberState::Invited => Some(0),
        MemberState::Accepted => Some(1),
        MemberState::Planned => Some(2),
        MemberState::Opened => Some(3),
        MemberState::Signed => Some(4),
        MemberState::Persisted => Some(5),
        MemberState::Ready | MemberState::Exited | MemberState::Closed => Some(6),
        MemberState::Excluded => None,
    }
}

/// One line on how far the creation of a factory is: bar, phase, count. None once it is over.
pub fn creation_progress(f: &FactoryInfo) -> Option<String> {
    let at = PHASES.iter().position(|(phase, _, _)| *phase == f.state)?;
    let (_, goal, words) = PHASES.get(at)?;
    let members: Vec<u8> = f.clients.iter().filter_map(|c| rank(c.state)).collect();
    let count = goal.and_then(rank).map(|goal| {
        let there = members.iter().filter(|r| **r >= goal).count();
        format!("{there} of {} ", members.len())
    });
    let depth = match f.state {
        FactoryState::Confirming => format!(" (funding: {})", confirmations(f.funding_confirmations)),
        _ => String::new(),
    };
    let bar = bar(at, PHASES.len() - 1, PHASES.len() - 1);
    Some(format!("{bar} {:<10} {}{words}{depth}", state(f.state), count.unwrap_or_default()))
}

/// How many clients a factory has. A client knows only itself by name, but the plan has the number.
fn members(f: &FactoryInfo) -> u64 {
    let named = f.clients.iter().filter(|c| c.state != MemberState::Excluded).count();
    let planned = f.report.as_ref().and_then(|report| report.get("clients")?.as_u64());
    planned.unwrap_or_else(|| u64::try_from(named).unwrap_or(u64::MAX))
}

/// What the plan says about a way out by the tree, in a few lines; the rest of the planner's report
/// is in the JSON.
fn exit_cost(report: &serde_json::Value) -> String {
    let number = |of: &serde_json::Value, name: &str| of.get(name).and_then(serde_json::Value::as_u64);
    let mut out = String::new();
    if let (Some(fast), Some(worst), Some(size)) = (
        number(report, "exit_fast"),
        number(report, "exit_worst"),
        number(report, "exit_vbytes").zip(number(report, "sweep_vbytes")).map(|(a, b)| a.saturating_add(b)),
    ) {
        out.push_str(&format!("an exit  takes {fast} to {worst} blocks and {size} vB with the sweep\n"));
    }
    let costs = report.get("costs").and_then(serde_json::Value::as_array).into_iter().flatten();
    for cost in costs {
        if let Some((rate, sum)) = number(cost, "sat_per_vbyte").zip(number(cost, "with_sweep")) {
            out.push_str(&format!("         {} at {rate} sat/vB\n", sat(sum)));
        }
    }
    out
}

/// `factories`: the list, each with its nearest deadline.
pub fn factories(list: &[FactoryInfo]) -> String {
    use Align::{Left, Right};
    let head = [
        ("factory", Left),
        ("state", Left),
        ("clients", Right),
        ("funding", Right),
        ("confirmations", Right),
        ("expires at", Right),
        ("next deadline", Left),
    ];
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|f| {
            let next = f.deadlines.iter().min_by_key(|d| d.height);
            vec![
                f.instance_id.clone(),
                state(f.state).to_owned(),
                members(f).to_string(),
                if f.funding.is_some() { sat(f.funding_sat) } else { "-".to_owned() },
                f.funding_confirmations.to_string(),
                if f.expiry_height > 0 { f.expiry_height.to_string() } else { "-".to_owned() },
                next.map_or("none".to_owned(), deadline),
            ]
        })
        .collect();
    table(&head, &rows, "no factories")
}

/// `factories ID`: all about one, without the tree.
pub fn factory(f: &FactoryInfo) -> String {
    use Align::{Left, Right};
    let mut out = format!("factory  {}\nstate    {}\n", f.instance_id, state(f.state));
    if let Some(failure) = &f.failure {
        out.push_str(&format!("failure  {failure}\n"));
    }
    if let Some(funding) = &f.funding {
        out.push_str(&format!(
            "funding  {}:{}, {}, {}\n",
            funding.txid,
            funding.vout,
            sat(f.funding_sat),
            confirmations(f.funding_confirmations)
        ));
    }
    out.push_str(&format!("life     planned at height {}", f.birth_height));
    out.push_str(&match f.expiry_height {
        // Not agreed yet, or never.
        0 => "\n".to_owned(),
        height => format!(", expires at {height}\n"),
    });
    for d in &f.deadlines {
        out.push_str(&format!("due      {}\n", deadline(d)));
    }
    let head = [
        ("client", Left),
        ("capacity", Right),
        ("given at birth", Right),
        ("state", Left),
        ("channel", Left),
    ];
    let rows: Vec<Vec<String>> = f
        .clients
        .iter()
        .map(|c| {
            vec![
                c.node_id.clone(),
                sat(c.capacity_sat),
                sat(c.push_sat),
                member(c.state).to_owned(),
                c.channel_id.as_deref().map(short).unwrap_or_default(),
            ]
        })
        .collect();
    out.push('\n');
    out.push_str(&table(&head, &rows, "no clients\n"));
    for e in &f.excluded {
        out.push_str(&format!("left out {}: {}\n", e.node_id, e.reason));
    }
    for c in f.clients.iter().filter(|c| f.excluded.iter().all(|e| e.node_id != c.node_id)) {
        if let Some(reason) = &c.reason {
            out.push_str(&format!("{}: {reason}\n", c.node_id));
        }
    }
    let over = matches!(f.state, FactoryState::Closed | FactoryState::Exited | FactoryState::Failed);
    if let Some(report) = f.report.as_ref().filter(|_| !over && f.exits.is_empty()) {
        out.push_str(&format!("\n{}", exit_cost(report)));
    }
    if let Some(r) = f.exit_reserve.filter(|r| r.available_sat < r.needed_sat) {
        out.push_str(&format!(
            "\nwallet   {} confirmed, the way out costs about {}: add a coin\n",
            sat(r.available_sat),
            sat(r.needed_sat)
        ));
    }
    // A tree whose states are all the first has nothing to tell.
    let told = |l: &&LeafInfo| l.position > 0 || l.rotating.is_some() || l.failure.is_some();
    for (i, l) in f.leaves.iter().filter(told).enumerate() {
        out.push_str(&format!("{}{}", if i == 0 { "\n" } else { "" }, leaf(l)));
    }
    if let Some(close) = &f.close {
        out.push_str(&format!("\n{}", close_text(close)));
    }
    for exit in &f.exits {
        out.push_str(&format!("\n{}", exit_text(exit)));
    }
    out
}

/// Where a leaf is on the odometer.
pub fn leaf(l: &LeafInfo) -> String {
    let digits: Vec<String> = l.digits.iter().map(u16::to_string).collect();
    let above = match l.left_above {
        0 => String::new(),
        n => format!(", {n} above it"),
    };
    let names: Vec<String> = l.clients.iter().map(|c| short(c)).collect();
    let mut out = format!(
        "leaf     {}: state {}, position {}, {} of its updates left{above}\n",
        names.join(" "),
        digits.join("."),
        l.position,
        l.left,
    );
    if let Some(phase) = &l.rotating {
        out.push_str(&format!("         rotation: {phase}\n"));
    }
    if let Some(failure) = &l.failure {
        out.push_str(&format!("         the last rotation failed: {failure}\n"));
    }
    out
}

/// The cooperative close.
pub fn close_text(c: &CloseInfo) -> String {
    let mut out = format!("close    {}", c.phase);
    if let Some(reason) = &c.reason {
        out.push_str(&format!(": {reason}"));
    }
    out.push('\n');
    if let Some(txid) = &c.txid {
        let height = c.height.map(|h| format!(", height {h}")).unwrap_or_default();
        out.push_str(&format!("         {txid}{height}, {}\n", confirmations(c.confirmations)));
        // A client knows its own share only.
        if c.fee_sat > 0 {
            out.push_str(&format!("         fee {}\n", sat(c.fee_sat)));
        }
    }
    for p in &c.paid {
        out.push_str(&format!("         {} gets {}\n", p.node_id, sat(p.sat)));
    }
    for p in &c.to_fees {
        out.push_str(&format!("         {} had {}, below dust: gone to fees\n", p.node_id, sat(p.sat)));
    }
    out
}

/// One step of an exit.
pub fn step(number: usize, total: usize, s: &ExitStepInfo) -> String {
    let delay = match s.delay_blocks {
        0 => String::new(),
        n => format!(", delay {n} blocks"),
    };
    let place = match (s.confirmed_height, s.earliest_height, &s.child_txid) {
        (Some(h), _, _) => format!("confirmed at height {h}"),
        (None, Some(h), None) => format!("may confirm from height {h}"),
        (None, _, Some(_)) => "sent, not confirmed yet".to_owned(),
        (None, None, None) => "waits for the one before it".to_owned(),
    };
    let fee = match (&s.child_txid, s.fee_sat) {
        (Some(child), fee) => format!(", child {} pays {}", short(child), sat(fee)),
        (None, _) => String::new(),
    };
    format!("{number}/{total} {:<8} {}{delay}: {place}{fee}", s.kind, short(&s.txid))
}

/// An exit, step by step.
pub fn exit_text(e: &ExitInfo) -> String {
    let total = e.steps.len();
    let done = e.steps.iter().filter(|s| s.confirmed_height.is_some()).count();
    let mut out = format!(
        "exit of  {}\n         {} {}: {}\n",
        e.node_id,
        bar(done, total, total.min(20)),
        e.phase,
        e.waits_for
    );
    out.push_str(&format!("         because {}\n", e.reason));
    for (i, s) in e.steps.iter().enumerate() {
        out.push_str(&format!("         {}\n", step(i + 1, total, s)));
    }
    if let Some(txid) = &e.distribution_txid {
        out.push_str(&format!("         paid by distribution {txid}\n"));
    }
    if let Some(txid) = &e.commitment_txid {
        let height = e.commitment_height.map_or("not confirmed".to_owned(), |h| format!("height {h}"));
        out.push_str(&format!("         commitment {txid}, {height}\n"));
    }
    let bound = e.max_fee_sat.map(|max| format!(" of at most {}", sat(max))).unwrap_or_default();
    let to_come = match e.fees_to_come_sat {
        0 => String::new(),
        more => format!(", about {} to come", sat(more)),
    };
    out.push_str(&format!("         fees of the path so far {}{to_come}{bound}\n", sat(e.fees_sat)));
    if let Some(height) = e.expected_end_height {
        out.push_str(&format!("         money spendable from height {height} at the earliest\n"));
    }
    out
}

/// Where an exit stands, on one line.
pub fn exit_state(e: &ExitInfo) -> String {
    let cost = match (e.fees_sat, e.fees_to_come_sat) {
        (paid, 0) => format!("{} of fees", sat(paid)),
        (paid, more) => format!("{} of fees, about {} to come", sat(paid), sat(more)),
    };
    format!("{}: {} ({cost})", e.phase, e.waits_for)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::api::{Deadline, FactoryMember, Outpoint};

    /// An active factory of two clients.
    pub(crate) fn sample() -> FactoryInfo {
        let client = |id: &str, state| FactoryMember {
            node_id: id.into(),
            capacity_sat: 1_000_000,
            push_sat: 0,
            channel_id: None,
            state,
            reason: None,
        };
        FactoryInfo {
            instance_id: "cd".repeat(32),
            state: FactoryState::Active,
            failure: None,
            funding: Some(Outpoint { txid: "f0".into(), vout: 1 }),
            funding_sat: 2_000_000,
            funding_confirmations: 1,
            birth_height: 100,
            expiry_height: 5400,
            clients: vec![client("02aa", MemberState::Ready), client("02bb", MemberState::Ready)],
            excluded: vec![],
            tree: vec![],
            deadlines: vec![
                Deadline { what: "late".into(), height: 900, blocks: 800, seconds: 480_000 },
                Deadline { what: "soon".into(), height: 200, blocks: 100, seconds: 60_000 },
            ],
            report: None,
            close: None,
            exits: vec![],
            exit_reserve: None,
            leaves: Vec::new(),
        }
    }

    #[test]
    fn progress_counts_those_who_are_in() {
        let mut f = sample();
        f.state = FactoryState::Opening;
        for (client, state) in f.clients.iter_mut().zip([MemberState::Opened, MemberState::Planned]) {
            client.state = state;
        }
        let mut third = f.clients[0].clone();
        third.state = MemberState::Excluded;
        f.clients.push(third);
        let line = creation_progress(&f).unwrap();
        assert!(line.contains("[##······] opening"), "{line}");
        assert!(line.contains("1 of 2 channels"), "{line}");
        f.state = FactoryState::Failed;
        assert_eq!(creation_progress(&f), None);
    }

    #[test]
    fn the_list_shows_the_nearest_deadline() {
        let text = factories(&[sample()]);
        assert!(text.contains("soon: in 100 blocks, about 16 h 40 min (height 200)"), "{text}");
        assert!(!text.contains("late"));
        assert_eq!(factories(&[]), "no factories");
    }

    #[test]
    fn a_failed_plan_shows_no_numbers_it_never_had() {
        let mut f = sample();
        (f.state, f.funding, f.funding_sat, f.expiry_height) = (FactoryState::Failed, None, 0, 0);
        let text = factory(&f);
        assert!(text.contains("planned at height 100\n") && !text.contains("expires"), "{text}");
        assert!(!factories(&[f]).contains("0 sat"));
    }

    #[test]
    fn the_plan_says_how_many_are_in_and_what_an_exit_costs() {
        let mut f = sample();
        f.clients.truncate(1);
        f.report = Some(serde_json::json!({
            "clients": 7, "exit_fast": 396, "exit_worst": 426, "exit_vbytes": 1818, "sweep_vbytes": 133,
            "costs": [{ "sat_per_vbyte": 10, "exit": 18180, "with_sweep": 19510 }],
        }));
        let list = factories(&[f.clone()]);
        assert!(list.contains("active        7"), "{list}");
        let text = factory(&f);
        assert!(text.contains("an exit  takes 396 to 426 blocks and 1951 vB with the sweep\n"), "{text}");
        assert!(text.contains("19,510 sat at 10 sat/vB"), "{text}");
        f.state = FactoryState::Closed;
        assert!(!factory(&f).contains("an exit"), "nobody will need one any more");
        f.clients[0].reason = Some("funds elsewhere".into());
        assert!(factory(&f).contains("02aa: funds elsewhere"));
    }

    #[test]
    fn details_name_who_was_left_out_and_who_went_to_fees() {
        let mut f = sample();
        f.excluded.push(crate::api::ExcludedClient { node_id: "02cc".into(), reason: "bad partial".into() });
        f.close = Some(CloseInfo {
            phase: "confirmed".into(),
            reason: None,
            txid: Some("ef".into()),
            height: Some(300),
            confirmations: 1,
            paid: vec![],
            to_fees: vec![crate::api::ClosePayout { node_id: "02bb".into(), sat: 329 }],
            fee_sat: 250,
        });
        let text = factory(&f);
        assert!(text.contains("left out 02cc: bad partial"), "{text}");
        assert!(text.contains("02bb had 329 sat, below dust"), "{text}");
    }
}
