//! Payments between the parties of a world, one by one or many at a time.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Mutex;

use anyhow::{anyhow, Context, Result};

use crate::ledger::Settled;
use crate::types::{Invoice, Payment};
use crate::World;

/// Who pays or is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A client of the factory, by its number.
    Client(usize),
    /// The ordinary node.
    Peer,
    /// The LSP itself.
    Lsp,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(index) => write!(f, "client-{index}"),
            Self::Peer => f.write_str("peer"),
            Self::Lsp => f.write_str("lsp"),
        }
    }
}

/// A payment to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Who pays.
    pub from: Party,
    /// Who is paid.
    pub to: Party,
    /// How much, msat.
    pub amount_msat: u64,
}

fn invoice(world: &World, to: Party, amount_msat: u64, text: &str) -> Result<Invoice> {
    match to {
        Party::Client(index) => world.client(index)?.invoice(amount_msat, text),
        Party::Peer => world.peer()?.invoice(amount_msat, text),
        Party::Lsp => world.lsp.invoice(amount_msat, text),
    }
}

fn send(world: &World, from: Party, invoice: &str) -> Result<Payment> {
    match from {
        Party::Client(index) => world.client(index)?.pay(invoice),
        Party::Peer => world.peer()?.pay(invoice),
        Party::Lsp => world.lsp.pay(invoice),
    }
}

/// Makes one payment and waits until the payer knows that it succeeded.
///
/// # Errors
/// If it did not succeed: why, as far as the payer knows.
pub fn pay(world: &World, order: Order) -> Result<Settled> {
    let Order { from, to, amount_msat } = order;
    let what = || format!("{from} pays {to} {amount_msat} msat");
    let invoice = invoice(world, to, amount_msat, &what()).with_context(what)?;
    let payment = send(world, from, &invoice.invoice).with_context(what)?;
    let settled = Settled::new(&from.to_string(), &to.to_string(), &payment)?;
    if settled.amount_msat != amount_msat {
        return Err(anyhow!("{}: the payer says that it paid {} msat", what(), settled.amount_msat));
    }
    Ok(settled)
}

/// Makes payments of all these kinds over and over, each kind in a thread of its own, until `work`, which is told how
/// many there were and is called again and again meanwhile, says that it is done. Returns all payments.
///
/// # Errors
/// The first failure, of `work` or of a payment.
pub fn pay_meanwhile(
    world: &World,
    kinds: &[fn(u64) -> Order],
    amount_msat: u64,
    mut work: impl FnMut(u64) -> Result<bool>,
) -> Result<Vec<Settled>> {
    let (over, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (over, count) = (&over, &count);
        let pays = |kind: &fn(u64) -> Order| {
            let order = kind(amount_msat);
            scope.spawn(move || {
                let mut paid = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    paid.push(pay(world, order)?);
                    count.fetch_add(1, Ordering::SeqCst);
                }
                anyhow::Ok(paid)
            })
        };
        let payers: Vec<_> = kinds.iter().map(pays).collect();
        let worked = loop {
            match work(count.load(Ordering::SeqCst)) {
                Ok(false) if payers.iter().all(|payer| !payer.is_finished()) => {}
                ended => break ended,
            }
        };
        over.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for payer in payers {
            all.extend(payer.join().map_err(|_| anyhow!("a payment thread panicked"))??);
        }
        worked.map(|_| all)
    })
}

/// Makes many payments, `at_once` of them at any moment.
///
/// # Errors
/// The first failure, after all have ended.
pub fn pay_all(world: &World, orders: &[Order], at_once: usize) -> Result<Vec<Settled>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(order) = orders.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let result = pay(world, *order);
                    if let Ok(mut results) = results.lock() {
                        results.push(result);
                    }
                }
            });
        }
    });
    let results = results.into_inner().map_err(|_| anyhow!("a payment thread panicked"))?;
    if results.len() != orders.len() {
        return Err(anyhow!("{} payments of {} came to an end", results.len(), orders.len()));
    }
    results.into_iter().collect()
}
