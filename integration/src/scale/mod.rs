//! How the factory behaves with many clients, each a process of its own: what creating takes, what it costs everybody,
//! payments, and a close after which every satoshi is accounted for.

mod speed;
mod usage;

use std::time::{Duration, Instant};

use anyhow::{bail, Result};

use crate::ledger::{check_conserved, wait_at_rest, wait_for, Snapshot};
use crate::payments::{pay_all, Order, Party};
use crate::wait::{self, Seen};
use crate::world::{factory_channel, CEREMONY, PATIENCE};
use crate::{close, World};

pub use speed::{speed, Speed};
use usage::{factory_traffic, socket_bytes, Traffic, Usage};

/// Capacity of each channel, sat.
const CAPACITY: u64 = 100_000;
/// How often bitcoind is asked whether the funding transaction is there.
const LOOK: Duration = Duration::from_millis(20);
/// Payments under way at a time.
const AT_ONCE: usize = 16;

/// What one number of clients took. Times are wall clock of everything that ran on this machine.
#[derive(Clone, Debug)]
pub struct Row {
    /// Clients.
    pub clients: usize,
    /// Levels of the tree, leaves included.
    pub levels: usize,
    /// From the order to the funding transaction in bitcoind's mempool, seconds.
    pub funded_secs: f64,
    /// From the order to every channel usable on both sides, one confirmation included, seconds.
    pub live_secs: f64,
    /// CPU of the LSP up to the funding transaction, seconds.
    pub lsp_cpu_secs: f64,
    /// CPU of one client likewise, the mean of all, seconds.
    pub client_cpu_secs: f64,
    /// Peak memory of the LSP up to there, MiB.
    pub lsp_peak_mib: f64,
    /// Peak memory of the largest client up to there, MiB.
    pub client_peak_mib: f64,
    /// By how much creating raised the mean client's peak, MiB.
    pub client_grown_mib: f64,
    /// Factory messages of the client with the most: to the LSP and from it.
    pub messages: (u64, u64),
    /// Their bytes.
    pub message_bytes: (u64, u64),
    /// All bytes of the LSP's connections divided by the clients, from the clients and to them; none without `ss`.
    pub socket_bytes: Option<(u64, u64)>,
    /// Payments made, each through the LSP.
    pub payments: usize,
    /// Of them a second, 16 at a time.
    pub payments_per_sec: f64,
    /// From the order to close to the close final in every wallet, seconds.
    pub close_secs: f64,
    /// Fee of the close, sat: all that is gone when everything is added up, beside the funding transaction's.
    pub close_fee_sat: u64,
}

/// Creates, pays, closes and adds up a factory of `clients` clients.
///
/// # Errors
/// If anything fails, a client is left out, or a satoshi is missing.
pub fn run(clients: usize, payments: usize) -> Result<Row> {
    let say = |text: &str| println!("  N = {clients}: {text}");
    say("starting the processes");
    let world = World::start(&format!("scale-{clients}"), clients)?;
    world.wait_waiting(clients)?;
    let start = Snapshot::take(&world)?;
    let before = Costs::now(&world)?;
    say("creating");
    let clock = Instant::now();
    let id = world.lsp.create_factory(&world.factory_request(CAPACITY, CAPACITY / 2, 0, None))?;
    wait_mempool(&world, &id)?;
    let funded_secs = clock.elapsed().as_secs_f64();
    let after = Costs::now(&world)?;
    say(&format!("funded after {funded_secs:.2} s"));
    world.bitcoind.mine(1)?;
    wait_live(&world, &id)?;
    let live_secs = clock.elapsed().as_secs_f64();
    let factory = world.wait_state(&id, "active", PATIENCE)?;
    if factory.clients.len() != clients || !factory.excluded.is_empty() {
        bail!("{} clients of {clients}, left out: {:?}", factory.clients.len(), factory.excluded);
    }

    world.sync()?;
    let open = Snapshot::take(&world)?;
    check_conserved(&world, &start, &open)?;
    say(&format!("live after {live_secs:.2} s; {payments} payments"));
    // Round by round everybody pays once and is paid once, each time by another one.
    let orders: Vec<Order> = (0..payments)
        .map(|n| Order {
            from: Party::Client(n % clients),
            to: Party::Client((n + 1 + 3 * (n / clients)) % clients),
            amount_msat: 1_000_000 + n as u64,
        })
        .filter(|order| order.from != order.to)
        .collect();
    let clock = Instant::now();
    let made = pay_all(&world, &orders, AT_ONCE)?;
    let payments_per_sec = made.len() as f64 / clock.elapsed().as_secs_f64();
    wait_for(&world, &open.after(&made)?)?;
    let paid = wait_at_rest(&world)?;
    say(&format!("{} payments, {payments_per_sec:.1} a second; closing", made.len()));

    let clock = Instant::now();
    let report = close::drive(&world, &id)?;
    let close_secs = clock.elapsed().as_secs_f64();
    let end = Snapshot::take(&world)?;
    check_conserved(&world, &paid, &end)?;
    check_conserved(&world, &start, &end)?;
    say(&format!("closed after {close_secs:.2} s, every satoshi accounted for"));

    let count = clients as f64;
    let row = Row {
        clients,
        levels: factory.tree.iter().map(|tx| tx.level + 1).max().unwrap_or(0),
        funded_secs,
        live_secs,
        lsp_cpu_secs: (after.lsp.cpu - before.lsp.cpu).as_secs_f64(),
        client_cpu_secs: (after.sum(|u| u.cpu.as_secs_f64()) - before.sum(|u| u.cpu.as_secs_f64())) / count,
        lsp_peak_mib: after.lsp.peak_mib,
        client_peak_mib: after.clients.iter().map(|u| u.peak_mib).fold(0.0, f64::max),
        client_grown_mib: (after.sum(|u| u.peak_mib) - before.sum(|u| u.peak_mib)) / count,
        messages: after.messages(&before, |t| (t.sent.0, t.received.0)),
        message_bytes: after.messages(&before, |t| (t.sent.1, t.received.1)),
        socket_bytes: after.socket.zip(before.socket).map(|(after, before)| {
            let each = |a: u64, b: u64| a.saturating_sub(b) / clients as u64;
            (each(after.received, before.received), each(after.sent, before.sent))
        }),
        payments: made.len(),
        payments_per_sec,
        close_secs,
        close_fee_sat: report.fee_sat,
    };
    world.finish();
    Ok(row)
}

/// What everybody has used up to one moment.
struct Costs {
    lsp: Usage,
    clients: Vec<Usage>,
    traffic: Vec<Traffic>,
    socket: Option<usage::SocketBytes>,
}

impl Costs {
    fn now(world: &World) -> Result<Self> {
        // Processes first: asking over the API costs them something.
        let lsp = Usage::of(world.lsp.process_id()?)?;
        let clients = world.clients.iter().map(|c| Usage::of(c.process_id()?)).collect::<Result<_>>()?;
        let socket = socket_bytes(world.lsp.listen());
        let traffic = world.clients.iter().map(|c| factory_traffic(c)).collect::<Result<_>>()?;
        Ok(Self { lsp, clients, traffic, socket })
    }

    fn sum(&self, of: impl Fn(&Usage) -> f64) -> f64 {
        self.clients.iter().map(of).sum()
    }

    /// Of the client with the most: to the LSP, and from it.
    fn messages(&self, before: &Self, of: impl Fn(&Traffic) -> (u64, u64)) -> (u64, u64) {
        let since = |(now, then): (&Traffic, &Traffic)| {
            let (now, then) = (of(now), of(then));
            (now.0 - then.0, now.1 - then.1)
        };
        let all = self.traffic.iter().zip(&before.traffic).map(since);
        all.fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1)))
    }
}

/// Waits for the funding transaction, the first one in the mempool.
fn wait_mempool(world: &World, id: &str) -> Result<()> {
    let clock = Instant::now();
    let mut looks = 0u32;
    while world.bitcoind.mempool()?.is_empty() {
        looks += 1;
        // The LSP is asked seldom, so that it does not work for this.
        if looks % 100 == 0 {
            let factory = world.lsp.factory(id)?;
            if factory.state == "failed" {
                bail!("the factory failed: {:?}", factory.failure);
            }
        }
        if clock.elapsed() > CEREMONY {
            bail!("no funding transaction within {} s", CEREMONY.as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Waits until every channel is usable on both sides.
fn wait_live(world: &World, id: &str) -> Result<()> {
    let lsp = world.lsp.node_id().to_owned();
    wait::until("every channel to be usable at the LSP", PATIENCE, || {
        let channels = world.lsp.channels()?;
        let usable = channels.iter().filter(|c| c.factory.as_deref() == Some(id) && c.usable).count();
        Ok(if usable == world.clients.len() { Seen::Done(()) } else { Seen::not_yet(usable) })
    })?;
    for client in &world.clients {
        wait::until_value(
            &format!("{}'s channel to be usable", client.name()),
            PATIENCE,
            || factory_channel(&client.channels()?, id, &lsp),
            |channel| channel.usable,
        )?;
    }
    Ok(())
}

/// The table of all rows.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:>4} {:>6} {:>8} {:>8} {:>8} {:>9} {:>8} {:>9} {:>7} {:>9} {:>13} {:>13} {:>8} {:>6} {:>8}\n",
        "N",
        "levels",
        "funded s",
        "live s",
        "LSP CPU",
        "client ms",
        "LSP MiB",
        "client MiB",
        "grown",
        "msgs u/d",
        "bytes u/d",
        "socket u/d",
        "payments",
        "/s",
        "close s"
    );
    for row in rows {
        let pair = |(up, down): (u64, u64)| format!("{up}/{down}");
        text += &format!(
            "{:>4} {:>6} {:>8.2} {:>8.2} {:>8.2} {:>9.0} {:>8.1} {:>9.1} {:>7.1} {:>9} {:>13} {:>13} {:>8} {:>6.1} {:>8.2}\n",
            row.clients,
            row.levels,
            row.funded_secs,
            row.live_secs,
            row.lsp_cpu_secs,
            row.client_cpu_secs * 1e3,
            row.lsp_peak_mib,
            row.client_peak_mib,
            row.client_grown_mib,
            pair(row.messages),
            pair(row.message_bytes),
            row.socket_bytes.map_or("-".into(), pair),
            row.payments,
            row.payments_per_sec,
            row.close_secs,
        );
    }
    text
}
