//! Payments between the parties of a world, one by one or many at a time.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
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
