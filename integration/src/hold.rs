//! Payments that stay on their way until the scenario ends them: the payee holds them.

use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use bitcoin::hashes::{sha256, Hash};

use crate::ledger::Settled;
use crate::payments::{Order, Party};
use crate::types::Payment;
use crate::wait::{self, Seen};
use crate::{Daemon, World};

/// How long a payment may take to arrive, or its end to come back to the payer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A payment that the payee holds; its HTLCs are on every channel on the way.
#[derive(Clone, Debug)]
pub struct Held {
    /// Who pays whom how much.
    pub order: Order,
    /// Payment hash, hex.
    pub payment_hash: String,
    /// What the payee claims it with, hex.
    pub preimage: String,
    /// Height at which the payee gives it back by itself.
    pub claim_by_height: u32,
}

fn daemon(world: &World, party: Party) -> Result<&Daemon> {
    match party {
        Party::Client(index) => Ok(world.client(index)?),
        Party::Lsp => Ok(&world.lsp),
        Party::Peer => bail!("the ordinary node is no daemon"),
    }
}

fn find(payments: Vec<Payment>, hash: &str, direction: &str) -> Option<Payment> {
    payments.into_iter().find(|p| p.payment_hash == hash && p.direction.as_deref() == Some(direction))
}

fn order_text(order: Order) -> String {
    format!("{} pays {} {} msat, held", order.from, order.to, order.amount_msat)
}

impl Held {
    /// Makes a payment and waits until the payee holds it.
    ///
    /// # Errors
    /// If it fails, or does not arrive.
    pub fn start(world: &World, order: Order) -> Result<Self> {
        Self::announce(world, order)?.arrive(world)
    }

    /// Makes a payment and does not wait for anything.
    ///
    /// # Errors
    /// If payer or payee refuses.
    pub fn announce(world: &World, order: Order) -> Result<Self> {
        let preimage: [u8; 32] = rand::random();
        let payment_hash = hex::encode(sha256::Hash::hash(&preimage).to_byte_array());
        let Order { from, to, amount_msat } = order;
        let invoice = match to {
            Party::Peer => world.peer()?.hold_invoice(amount_msat, &payment_hash),
            _ => daemon(world, to)?.hold_invoice(amount_msat, &payment_hash),
        }
        .with_context(|| order_text(order))?
        .invoice;
        match from {
            Party::Peer => world.peer()?.send(&invoice),
            _ => daemon(world, from)?.send(&invoice),
        }
        .with_context(|| order_text(order))?;
        Ok(Self { order, payment_hash, preimage: hex::encode(preimage), claim_by_height: 0 })
    }

    /// Waits until the payee holds it.
    ///
    /// # Errors
    /// If it fails, or does not arrive.
    pub fn arrive(mut self, world: &World) -> Result<Self> {
        let mut failed = None;
        self.claim_by_height = wait::until(&order_text(self.order), PATIENCE, || {
            let payer = self.payer_says(world)?;
            if payer.status != "pending" {
                failed = Some(format!("{payer:?}"));
                return Ok(Seen::Done(0));
            }
            Ok(match self.held_until(world)? {
                Some(height) => Seen::Done(height),
                None => Seen::NotYet(format!("{payer:?}")),
            })
        })?;
        match failed {
            Some(payment) => bail!("{}: {payment}", order_text(self.order)),
            None => Ok(self),
        }
    }

    /// The height at which the payee gives it back, if it has arrived. The ordinary node says so of what it does not
    /// hold any more as well.
    fn held_until(&self, world: &World) -> Result<Option<u32>> {
        Ok(match self.order.to {
            Party::Peer => {
                let held = world.peer()?.held()?.into_iter().find(|h| h.payment_hash == self.payment_hash);
                held.and_then(|held| held.claim_by_height)
            }
            to => {
                let payment = find(daemon(world, to)?.payments()?, &self.payment_hash, "in");
                payment.filter(|payment| payment.status == "held").and_then(|p| p.claim_by_height)
            }
        })
    }

    /// The payer's account of it.
    ///
    /// # Errors
    /// If the payer does not answer or does not know it.
    pub fn payer_says(&self, world: &World) -> Result<Payment> {
        let payments = match self.order.from {
            Party::Peer => world.peer()?.payments()?,
            from => daemon(world, from)?.payments()?,
        };
        find(payments, &self.payment_hash, "out").ok_or_else(|| anyhow!("the payer does not know {self:?}"))
    }

    /// The payee's account of it.
    ///
    /// # Errors
    /// If the payee does not answer or does not know it.
    pub fn payee_says(&self, world: &World) -> Result<Payment> {
        let payments = match self.order.to {
            Party::Peer => world.peer()?.payments()?,
            to => daemon(world, to)?.payments()?,
        };
        find(payments, &self.payment_hash, "in").ok_or_else(|| anyhow!("the payee does not know {self:?}"))
    }

    /// Checks that it is held still.
    ///
    /// # Errors
    /// If one of the two sees an end.
    pub fn check_held(&self, world: &World) -> Result<()> {
        let (payer, payee) = (self.payer_says(world)?, self.payee_says(world)?);
        // The ordinary node calls it pending from the invoice on.
        let wanted = if self.order.to == Party::Peer { "pending" } else { "held" };
        if payer.status != "pending" || payee.status != wanted {
            bail!("not held any more: payer {payer:?}, payee {payee:?}");
        }
        Ok(())
    }

    /// Lets the payee claim it.
    ///
    /// # Errors
    /// If the payee refuses.
    pub fn claim(&self, world: &World) -> Result<()> {
        match self.order.to {
            Party::Peer => world.peer()?.claim(&self.preimage),
            to => daemon(world, to)?.claim(&self.preimage).map(|_| ()),
        }
    }

    /// Lets the payee give it back.
    ///
    /// # Errors
    /// If the payee refuses.
    pub fn fail(&self, world: &World) -> Result<()> {
        match self.order.to {
            Party::Peer => world.peer()?.fail(&self.payment_hash),
            to => daemon(world, to)?.fail(&self.payment_hash).map(|_| ()),
        }
    }

    fn end(&self, world: &World, status: &str) -> Result<Payment> {
        // The ordinary node does not write down that it gave a payment back because nobody claimed it.
        let silent = self.order.to == Party::Peer && status == "failed";
        wait::until_value(
            &format!("payer and payee to call the payment {status}: {self:?}"),
            PATIENCE,
            || Ok((self.payer_says(world)?, self.payee_says(world)?)),
            |(payer, payee)| payer.status == status && (payee.status == status || silent),
        )
        .map(|(payer, _)| payer)
    }

    /// Waits until payer and payee say that it succeeded.
    ///
    /// # Errors
    /// If they do not.
    pub fn paid(&self, world: &World) -> Result<Settled> {
        let payment = self.end(world, "succeeded")?;
        Settled::new(&self.order.from.to_string(), &self.order.to.to_string(), &payment)
    }

    /// Waits until payer and payee say that it failed.
    ///
    /// # Errors
    /// If they do not.
    pub fn given_back(&self, world: &World) -> Result<()> {
        self.end(world, "failed").map(|_| ())
    }
}
