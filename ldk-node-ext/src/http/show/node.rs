//! Node, wallet, channels, payments and events as text.

use super::format::{deadline, msat, sat, short, table, utc, Align};
use crate::api::{
    Balance, ChannelInfo, ChannelKind, ChannelState, ClientAdmission, ClientJitPolicy, Direction,
    EventRecord, Invoice, JitStatus, NodeInfo, Offer, Payment, PaymentStatus, Role, WaitingClient,
};

fn yes(b: bool) -> String {
    (if b { "yes" } else { "no" }).to_owned()
}

/// `info`.
pub fn info(i: &NodeInfo) -> String {
    let role = match i.role {
        Role::Lsp => "LSP",
        Role::Client => "client",
    };
    let synced = if i.synced { "in sync" } else { "NOT in sync" };
    let connected = i.peers.iter().filter(|p| p.connected).count();
    let next = i.deadline.as_ref().map_or("none".to_owned(), deadline);
    let listen = if i.listen.is_empty() { "no".to_owned() } else { i.listen.join(", ") };
    let mut out = format!(
        "node id   {}\nrole      {role}, {}, version {}\nchain     height {}, {synced}\n          {}\nlisten    {listen}\npeers     {connected} of {} connected\n",
        i.node_id, i.network, i.version, i.height, i.block_hash, i.peers.len(),
    );
    for peer in &i.peers {
        let state = if peer.connected { "connected" } else { "away" };
        out.push_str(&format!("          {} {state}\n", peer.node_id));
    }
    out.push_str(&format!("deadline  {next}"));
    out
}

/// `balance`.
pub fn balance(b: &Balance) -> String {
    let rows = [
        ("on chain, confirmed", sat(b.onchain.confirmed_sat)),
        ("    of that reserved", sat(b.onchain.reserved_sat)),
        ("on chain, unconfirmed", sat(b.onchain.unconfirmed_sat)),
        ("in channels", msat(b.lightning.local_msat)),
        ("    of that not confirmed yet", msat(b.lightning.trusted_msat)),
        ("coming back from closed channels", sat(b.lightning.pending_sweep_sat)),
        ("total", sat(b.total_sat)),
    ];
    let width = rows.iter().map(|(_, amount)| amount.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, amount)| format!("{name:<33} {amount:>width$}\n")).collect()
}

/// `channels`.
pub fn channels(channels: &[ChannelInfo]) -> String {
    use Align::{Left, Right};
    let head = [
        ("channel", Left),
        ("peer", Left),
        ("kind", Left),
        ("state", Left),
        ("usable", Left),
        ("capacity", Right),
        ("balance", Right),
        ("can send", Right),
        ("can receive", Right),
    ];
    let rows: Vec<Vec<String>> = channels
        .iter()
        .map(|c| {
            let kind = match (c.kind, &c.factory) {
                (ChannelKind::Onchain, _) => "on chain".to_owned(),
                (ChannelKind::Jit, _) if c.trusted => "jit, trusts the LSP".to_owned(),
                (ChannelKind::Jit, _) => "jit".to_owned(),
                (ChannelKind::Factory, Some(id)) => format!("factory {}", short(id)),
                (ChannelKind::Factory, None) => "factory".to_owned(),
            };
            let state = match c.state {
                ChannelState::Opening => "opening",
                ChannelState::WaitingForDepth => "waiting for depth",
                ChannelState::Ready => "ready",
                ChannelState::Closing => "closing",
                ChannelState::Exiting => "exiting",
                ChannelState::Stuck => "stuck: an older state is on the chain",
            };
            vec![
                short(&c.channel_id),
                short(&c.peer),
                kind,
                state.to_owned(),
                yes(c.usable),
                sat(c.capacity_sat),
                msat(c.local_msat),
                msat(c.outbound_capacity_msat),
                msat(c.inbound_capacity_msat),
            ]
        })
        .collect();
    table(&head, &rows, "no channels")
}

/// `invoice`.
pub fn invoice(i: &Invoice) -> String {
    let relayed = i.relay_fee_msat.map(|fee| format!("\nreceived by the LSP, for {}", msat(fee)));
    format!("{}\npayment hash {}{}", i.invoice, i.payment_hash, relayed.unwrap_or_default())
}

/// `offer`.
pub fn offer(o: &Offer) -> String {
    format!("{}\noffer id {}", o.offer, o.offer_id)
}

fn status(s: PaymentStatus) -> &'static str {
    match s {
        PaymentStatus::Pending => "pending",
        PaymentStatus::Succeeded => "succeeded",
        PaymentStatus::Failed => "failed",
        PaymentStatus::Held => "held",
    }
}

/// `pay`, and one of `payments`.
pub fn payment(p: &Payment) -> String {
    let way = match p.direction {
        Direction::In => "received",
        Direction::Out => "sent",
        Direction::Relayed => "relayed",
        Direction::Moved => "moved",
    };
    let failure = p.failure.as_ref().map(|f| format!("\nfailure       {f}")).unwrap_or_default();
    let claim_by = match (p.status, p.claim_by_height) {
        (PaymentStatus::Held, Some(height)) => format!("\nclaim before  height {height}"),
        _ => String::new(),
    };
    let relayed = p.relayed.as_ref().map(|r| {
        let paid = yes(r.client_paid);
        format!("\nclient        {}\ncame in       {}\nclient paid   {paid}", r.client, msat(r.received_msat))
    });
    let moved = p.moved.as_ref().map(|m| format!("\nfrom channel  {}\ninto channel  {}", m.from, m.into));
    let of_offer = [("payment id ", &p.payment_id), ("offer id   ", &p.offer_id)];
    let of_offer = of_offer.iter().filter_map(|(name, id)| Some(format!("\n{name}   {}", id.as_ref()?)));
    let failure = of_offer.collect::<String>() + &relayed.or(moved).unwrap_or_default() + &failure;
    format!(
        "payment hash  {}\nstatus        {}\n{way:<13} {}\nfee           {}\nlast change   {}{claim_by}{failure}",
        p.payment_hash,
        status(p.status),
        msat(p.amount_msat),
        msat(p.fee_msat),
        utc(p.updated_at),
    )
}

/// `payments`.
pub fn payments(payments: &[Payment]) -> String {
    use Align::{Left, Right};
    let head = [
        ("last change", Left),
        ("way", Left),
        ("amount", Right),
        ("fee", Right),
        ("status", Left),
        ("payment hash", Left),
    ];
    let rows: Vec<Vec<String>> = payments
        .iter()
        .map(|p| {
            let way = match p.direction {
                Direction::In => "in",
                Direction::Out => "out",
                Direction::Relayed => "relayed",
                Direction::Moved => "moved",
            };
            let failure = p.failure.as_ref().map(|f| format!(": {f}")).unwrap_or_default();
            vec![
                utc(p.updated_at),
                way.to_owned(),
                msat(p.amount_msat),
                msat(p.fee_msat),
                format!("{}{failure}", status(p.status)),
                match (p.payment_hash.is_empty(), &p.payment_id) {
                    (true, Some(id)) => format!("id {id}"),
                    _ => p.payment_hash.clone(),
                },
            ]
        })
        .collect();
    table(&head, &rows, "no payments")
}

/// `clients`. Node ids are whole: they are what `create-factory` wants.
pub fn clients(clients: &[WaitingClient]) -> String {
    use Align::{Left, Right};
    let head = [
        ("node id", Left),
        ("connected", Left),
        ("waiting", Left),
        ("smallest channel", Right),
        ("largest channel", Right),
    ];
    let rows: Vec<Vec<String>> = clients
        .iter()
        .map(|c| {
            vec![
                c.node_id.clone(),
                yes(c.connected),
                yes(c.waiting),
                sat(c.min_capacity_sat),
                sat(c.max_capacity_sat),
            ]
        })
        .collect();
    table(&head, &rows, "no clients")
}

/// `admission`. Node ids are whole: they are what `readmit` wants.
pub fn admission(clients: &[ClientAdmission]) -> String {
    use Align::{Left, Right};
    let head = [
        ("node id", Left),
        ("strikes", Right),
        ("closes in vain", Right),
        ("paused until", Right),
        ("last failure", Right),
        ("reason", Left),
    ];
    let rows: Vec<Vec<String>> = clients
        .iter()
        .map(|c| {
            vec![
                c.node_id.clone(),
                c.strikes.to_string(),
                c.closes_in_vain.to_string(),
                c.paused_until_height.map_or("not paused".into(), |height| height.to_string()),
                c.last_failure_height.to_string(),
                c.reason.clone(),
            ]
        })
        .collect();
    table(&head, &rows, "no client has failed lately")
}

/// `jit`.
pub fn jit(j: &JitStatus) -> String {
    let with = format!("{} of {}", j.clients_with_jit, j.clients);
    let rows = [
        ("clients with a channel beside the factory", with),
        ("channels beside factories", j.channels.to_string()),
        ("their capacity", sat(j.capacity_sat)),
        ("those over which nothing was taken yet", j.untaken.to_string()),
        ("fees of all funding transactions so far", sat(j.fees_sat)),
        ("HTLCs held now", j.held_htlcs.to_string()),
    ];
    let mut out: String = rows.iter().map(|(name, value)| format!("{name:<42} {value}\n")).collect();
    for (cause, count) in &j.causes {
        out.push_str(&format!("opened because of {cause:<24} {count}\n"));
    }
    for d in &j.decisions {
        let why = if d.reason.is_empty() { String::new() } else { format!(", {}", d.reason) };
        out.push_str(&format!("decided {:<34} {}\n", format!("{}{why}", d.action), d.count));
    }
    out
}

/// `jit-policy`.
pub fn jit_policies(all: &[ClientJitPolicy]) -> String {
    use Align::{Left, Right};
    let head = [
        ("client", Left),
        ("rotate first", Left),
        ("smallest", Right),
        ("largest", Right),
        ("channels", Right),
        ("in all", Right),
        ("untaken", Right),
        ("a day", Right),
        ("headroom", Right),
        ("hold", Right),
    ];
    let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|p| {
            vec![
                p.node_id.clone(),
                or(p.jit_rotate_first.map(yes)),
                or(p.jit_min_channel_sat.map(sat)),
                or(p.jit_max_channel_sat.map(sat)),
                or(p.jit_max_channels.map(|n| n.to_string())),
                or(p.jit_max_total_sat.map(sat)),
                or(p.jit_max_untaken.map(|n| n.to_string())),
                or(p.jit_max_per_day.map(|n| n.to_string())),
                or(p.jit_headroom_percent.map(|n| format!("{n} %"))),
                or(p.jit_hold_secs.map(|n| format!("{n} s"))),
            ]
        })
        .collect();
    table(&head, &rows, "the settings hold for all clients")
}

/// One of `events`.
pub fn event(e: &EventRecord) -> String {
    format!("{:>6}  {}  {}  {}", e.index, utc(e.time), e.kind, e.data)
}
