//! The demo: a factory is born, paid through and closed; a client of a second one is served while its neighbours sleep; and
//! a client of a third one leaves alone.

mod asleep;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use crate::ledger::{check_conserved, wait_at_rest, wait_for, Settled, Snapshot};
use crate::payments::{pay, pay_all, Order, Party};
use crate::types::Factory;
use crate::world::factory_channel;
use crate::{close, exit, liquidity, World};

/// Clients of the demo.
pub const CLIENTS: usize = 5;
/// Capacity of each channel, sat.
const CAPACITY: u64 = 1_000_000;
/// The client that leaves.
const LEAVER: usize = 2;
/// The client that buys inbound liquidity.
const BUYER: usize = 4;
/// How much, sat.
const BOUGHT: u64 = 200_000;
/// What it is paid then, msat.
const WANTED_MSAT: u64 = 150_000_000;
/// Liquidity stock of each leaf, sat.
const STOCK: u64 = 250_000;

/// `summary.json`.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Every factory: funding transaction and number of clients.
    pub factories: Vec<FactoryEntry>,
    /// Every payment.
    pub payments: Vec<PaymentEntry>,
    /// Every unilateral exit.
    pub exits: Vec<serde_json::Value>,
    /// Every cooperative close.
    pub closes: Vec<serde_json::Value>,
    /// What each party held, msat.
    pub balances: BTreeMap<String, BalanceEntry>,
    /// What was checked.
    pub checks: Vec<Check>,
}

/// A factory in [`Summary`].
#[derive(Debug, Serialize)]
pub struct FactoryEntry {
    /// Funding transaction.
    pub funding_txid: String,
    /// Number of clients.
    #[serde(rename = "N")]
    pub n: usize,
}

/// A payment in [`Summary`].
#[derive(Debug, Serialize)]
pub struct PaymentEntry {
    /// Who paid.
    pub from: String,
    /// Who was paid.
    pub to: String,
    /// How much, msat.
    pub amount_msat: u64,
    /// `succeeded`; anything else ends the demo.
    pub result: String,
}

/// A party's holdings in [`Summary`], msat: coins, channels and (LSP) liquidity stock.
#[derive(Debug, Default, Serialize)]
pub struct BalanceEntry {
    /// When all was funded and no factory existed.
    pub before_msat: u64,
    /// At the end.
    pub after_msat: u64,
}

/// One check in [`Summary`].
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
}

/// The running demo.
struct Demo {
    start: Instant,
    summary: Summary,
}

/// Runs the demo with its data in `out/run`, which is emptied first, and returns what came of it. Steps that cannot go
/// on after a failure end it; the failure is then the last check.
pub fn run(out: &Path) -> Summary {
    let mut demo = Demo { start: Instant::now(), summary: Summary::default() };
    if let Err(error) = demo.run(out) {
        demo.say(&format!("FAILED: {error:#}"));
        demo.summary.checks.push(Check { name: format!("the demo runs to its end: {error:#}"), ok: false });
    }
    demo.summary
}

impl Demo {
    fn say(&self, line: &str) {
        println!("[{:5.1} s] {line}", self.start.elapsed().as_secs_f32());
    }

    fn check(&mut self, name: &str, result: Result<()>) {
        match &result {
            Ok(()) => self.say(&format!("  ok: {name}")),
            Err(error) => self.say(&format!("  NOT OK: {name}: {error:#}")),
        }
        self.summary.checks.push(Check { name: name.to_owned(), ok: result.is_ok() });
    }

    fn run(&mut self, out: &Path) -> Result<()> {
        let folder = out.join("run");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder)?;
        self.say(&format!(
            "starting bitcoind (regtest), one LSP and {CLIENTS} clients, each a process of its own"
        ));
        self.say(&format!("data and logs: {}", folder.display()));
        let mut world = World::start_at(&folder, CLIENTS, &["--free-liquidity-sat", "250000"])?;
        self.say("an ordinary Lightning node, which knows nothing of factories, opens a channel to the LSP");
        world.add_peer(5_000_000)?;
        let first = Snapshot::take(&world)?;

        let factory = self.birth(&world)?;
        let held = self.pay(&world)?;
        let held = self.buy(&world, &factory, &held)?;
        self.close(&world, &factory, &held)?;

        self.serve_awake(&mut world)?;

        let factory = self.birth(&world)?;
        self.leave(&mut world, &factory)?;

        let last = Snapshot::take(&world)?;
        self.check(
            "all money is accounted for: before = after + mining fees",
            check_conserved(&world, &first, &last),
        );
        for (party, before_msat) in &first.parties {
            let after_msat = last.of(party)?;
            self.say(&format!("{party}: {before_msat} msat before, {after_msat} msat after"));
            self.summary
                .balances
                .insert(party.clone(), BalanceEntry { before_msat: *before_msat, after_msat });
        }
        Ok(())
    }

    fn birth(&mut self, world: &World) -> Result<Factory> {
        self.say(&format!("the LSP and {CLIENTS} clients sign a factory, {CAPACITY} sat for each client"));
        let request = world.factory_request(CAPACITY, CAPACITY / 2, STOCK, None);
        let factory = world.create_factory(&request)?;
        let funding = factory.funding.context("no funding outpoint")?;
        self.say(&format!("born: {CLIENTS} channels in one transaction, {}", funding.txid));
        for tx in &factory.tree {
            self.say(&format!(
                "  off chain: level {} {:8} {} ({} blocks)",
                tx.level, tx.kind, tx.txid, tx.delay_blocks
            ));
        }
        let members = factory.clients.iter().filter(|member| member.reason.is_none()).count();
        let all = if members == CLIENTS { Ok(()) } else { Err(anyhow::anyhow!("{members} clients")) };
        self.check("every client has a usable channel", all);
        let mined = world.bitcoind.confirmed(funding.txid)?.map(|_| ()).context("not confirmed");
        self.check("one confirmed transaction funds the factory", mined);
        self.summary.factories.push(FactoryEntry { funding_txid: funding.txid.to_string(), n: members });
        Ok(factory)
    }

    fn record(&mut self, payments: &[Settled]) {
        for payment in payments {
            self.summary.payments.push(PaymentEntry {
                from: payment.from.clone(),
                to: payment.to.clone(),
                amount_msat: payment.amount_msat,
                result: "succeeded".into(),
            });
        }
    }

    fn pay(&mut self, world: &World) -> Result<Snapshot> {
        self.say("client to client, client to the ordinary node and back");
        let before = Snapshot::take(world)?;
        let order = |from, to, amount_msat| Order { from, to, amount_msat };
        let mut orders = vec![
            order(Party::Client(0), Party::Client(1), 25_000_000),
            order(Party::Client(0), Party::Peer, 40_000_000),
            order(Party::Peer, Party::Client(3), 55_000_001),
        ];
        for index in 0..CLIENTS {
            orders.push(order(Party::Client(index), Party::Client((index + 1) % CLIENTS), 1_000_000));
            orders.push(order(Party::Peer, Party::Client(index), 500_500));
        }
        let made = pay_all(world, &orders, 5)?;
        self.say(&format!("{} payments succeeded", made.len()));
        self.record(&made);
        let after = wait_for(world, &before.after(&made)?)?;
        self.check("after the payments every balance is right to the millisatoshi", Ok(()));
        Ok(after)
    }

    /// A client whose channel is full buys inbound liquidity while its channel goes on, and is paid over it.
    fn buy(&mut self, world: &World, factory: &Factory, before: &Snapshot) -> Result<Snapshot> {
        let id = &factory.instance_id;
        let client = world.client(BUYER)?;
        let inbound = |factory: &str| -> Result<u64> {
            let channel = factory_channel(&client.channels()?, factory, world.lsp.node_id())?;
            Ok(channel.inbound_capacity_msat)
        };
        let order = |amount_msat| Order { from: Party::Peer, to: Party::Client(BUYER), amount_msat };
        let mut made = vec![pay(world, order(inbound(id)?.saturating_sub(1_000_000)))?];
        wait_for(world, &before.after(&made)?)?;
        let left = inbound(id)?;
        self.say(&format!(
            "client-{BUYER} can be paid {left} msat more: it buys {BOUGHT} sat of inbound liquidity"
        ));
        liquidity::ask(world, id, BUYER, i64::try_from(BOUGHT)?)?;
        let start = Instant::now();
        liquidity::wait_capacity(world, id, BUYER, CAPACITY + BOUGHT)?;
        let took = start.elapsed().as_millis();
        self.say(&format!(
            "its leaf has a newer state, off chain, after {took} ms; the channel is the same one"
        ));
        made.push(pay(world, order(WANTED_MSAT))?);
        let after = wait_for(world, &before.after(&made)?)?;
        self.check("with what it bought it is paid, and every balance is right", Ok(()));
        self.record(&made);
        Ok(after)
    }

    fn close(&mut self, world: &World, factory: &Factory, before: &Snapshot) -> Result<()> {
        self.say("all agree to close this factory: one transaction pays everybody");
        let report = close::drive(world, &factory.instance_id)?;
        self.say(&format!("closed in block {}: {}, fee {} sat", report.height, report.txid, report.fee_sat));
        self.check("the close pays each party its channel balance", Ok(()));
        let after = Snapshot::take(world)?;
        self.check("the close costs its fee and nothing else", check_conserved(world, before, &after));
        self.summary.closes.push(json!({
            "txid": report.txid, "height": report.height, "fee_sat": report.fee_sat,
            "funding_txid": factory.funding.map(|funding| funding.txid),
        }));
        Ok(())
    }

    fn leave(&mut self, world: &mut World, factory: &Factory) -> Result<()> {
        let before = wait_at_rest(world)?;
        self.say("the LSP's process is killed");
        world.lsp.kill()?;
        self.say(&format!(
            "client-{LEAVER} leaves alone: it publishes its path, one small package after the other"
        ));
        let start = self.start;
        let report = exit::drive(world, LEAVER, &factory.instance_id, &mut |line| {
            println!("[{:5.1} s]   {line}", start.elapsed().as_secs_f32());
        })?;
        self.check("path and commitment confirmed in order, each after its delay and not earlier", Ok(()));
        let (coins_before, coins_after) = report.wallet_sat;
        self.say(&format!(
            "client-{LEAVER} held {coins_before} sat in coins, now {coins_after} sat; fees {} sat",
            report.fees_sat
        ));
        self.check("its money, less the fees, is in its own wallet", report.check_wallet(CAPACITY));
        self.summary.exits.push(json!({
            "client": format!("client-{LEAVER}"),
            "path": report.path.iter().map(|(txid, height)| json!({ "txid": txid, "height": height }))
                .collect::<Vec<_>>(),
            "commitment": { "txid": report.commitment.0, "height": report.commitment.1 },
            "fees_sat": report.fees_sat,
        }));

        self.say("the LSP comes back; the other clients go on paying");
        world.lsp.start()?;
        world.sync()?;
        let leaver = world.client(LEAVER)?.node_id().to_owned();
        let mut rest = factory.clone();
        rest.clients.retain(|member| member.node_id != leaver);
        world.wait_usable(&rest)?;
        let settled = exit::settle_lsp(world, &before)?;
        let mut untouched = Ok(());
        for client in world.clients.iter().filter(|client| client.node_id() != leaver) {
            if settled.of(client.name())? != before.of(client.name())? {
                untouched = Err(anyhow::anyhow!("{} holds another sum", client.name()));
            }
        }
        self.check("the other clients lost nothing", untouched);
        let made = vec![
            pay(world, Order { from: Party::Client(0), to: Party::Client(1), amount_msat: 2_000_000 })?,
            pay(world, Order { from: Party::Client(3), to: Party::Client(4), amount_msat: 3_000_000 })?,
            pay(world, Order { from: Party::Peer, to: Party::Client(0), amount_msat: 4_000_000 })?,
        ];
        self.record(&made);
        wait_for(world, &settled.after(&made)?)?;
        self.check("the other clients go on paying", Ok(()));
        Ok(())
    }
}
