//! The crash matrix: a process dies at a named line, is started again, and nothing is lost.
//!
//! A [`Row`] is one crash: who dies, at which fail point. A life of a factory (made, paid through, closed or left) is
//! driven with the row's fault armed; when the point is reached the process is killed and started again, and the
//! row's phase has to come to a good end: the ceremony goes on, or is given up and made anew; a payment is settled
//! or comes back whole; a close is signed; an exit brings the money home. All balances are judged to the satoshi
//! ([`crate::ledger`]). A point that is not reached fails its row.
//!
//! Where bitcoind dies, the process that needs it is held at the point; it goes on while bitcoind is away.

pub mod exit;
pub mod life;
pub mod nonces;
pub mod pay;
pub mod rows;
pub mod table;

use std::fmt;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{anyhow, bail, Result};
use bitcoin::{Transaction, Txid};
use serde_json::Value;

use crate::wait::{self, Seen};
use crate::world::PATIENCE;
use crate::{Daemon, World};

/// The client that dies, and the one that stays.
pub const VICTIM: usize = 0;
/// See [`VICTIM`].
pub const OTHER: usize = 1;
/// Clients of a world.
pub const CLIENTS: usize = 3;

/// A process that comes by a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The LSP.
    Lsp,
    /// Client [`VICTIM`].
    Client,
}

impl Place {
    /// The process.
    ///
    /// # Errors
    /// If the world has no such client.
    pub fn daemon(self, world: &mut World) -> Result<&mut Daemon> {
        match self {
            Self::Lsp => Ok(&mut world.lsp),
            Self::Client => Ok(world.client_mut(VICTIM)?),
        }
    }
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The process that comes by.
    Process,
    /// The same, and once more at the same point when it is back.
    Twice,
    /// bitcoind, while the process waits at the point.
    Bitcoind,
}

/// One crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name of the fail point.
    pub point: &'static str,
    /// Who comes by it.
    pub place: Place,
    /// Who dies there.
    pub victim: Victim,
    /// The how manieth time it comes by, from 1.
    pub nth: u32,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Lsp => "LSP",
            Place::Client => "client",
        };
        match self.victim {
            Victim::Process => write!(f, "the {place} dies at {}", self.point)?,
            Victim::Twice => write!(f, "the {place} dies twice at {}", self.point)?,
            Victim::Bitcoind => write!(f, "bitcoind dies with the {place} at {}", self.point)?,
        }
        if self.nth > 1 {
            write!(f, " (time {})", self.nth)?;
        }
        Ok(())
    }
}

/// What became of what the crash interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It went on and came to its end.
    Resumed,
    /// The rest went on without the one that died.
    WithoutIt,
    /// It was given up, and done anew.
    GivenUp,
    /// A payment arrived.
    Settled,
    /// A payment came back whole, and was made anew.
    CameBack,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resumed => "goes on",
            Self::WithoutIt => "without it",
            Self::GivenUp => "made anew",
            Self::Settled => "settled",
            Self::CameBack => "came back",
        })
    }
}

impl Row {
    /// The process that comes by.
    ///
    /// # Errors
    /// If the world has no such client.
    pub fn daemon<'a>(&self, world: &'a mut World) -> Result<&'a mut Daemon> {
        self.place.daemon(world)
    }

    /// The fault that makes it happen.
    fn fault(&self) -> String {
        let kind = if self.victim == Victim::Bitcoind { "hold" } else { "kill" };
        format!("{kind}@{}#{}", self.point, self.nth)
    }

    /// From now on it happens when the process comes by.
    ///
    /// # Errors
    /// If there is no such point.
    pub fn arm(&self, world: &mut World) -> Result<()> {
        self.daemon(world)?.faults().set(&self.fault())
    }

    /// Waits until it has happened, and starts again what has died.
    ///
    /// # Errors
    /// If the point is not reached, or a process does not come back.
    pub fn strike(&self, world: &mut World) -> Result<()> {
        if self.victim == Victim::Bitcoind {
            self.daemon(world)?.faults().wait_held(self.point)?;
            return self.strike_bitcoind(world);
        }
        let daemon = self.daemon(world)?;
        daemon.wait_killed()?;
        if self.victim == Victim::Twice {
            // It may die before its API answers.
            let started = daemon.start();
            if let Err(e) = daemon.wait_killed() {
                return Err(e.context(format!("second time: {started:?}")));
            }
        }
        daemon.faults().clear()?;
        daemon.start()
    }

    /// bitcoind dies while a process waits at the point; that goes on meanwhile.
    fn strike_bitcoind(&self, world: &mut World) -> Result<()> {
        world.bitcoind.kill()?;
        self.daemon(world)?.faults().clear()?;
        world.bitcoind.restart()
    }

    /// Whether the point has been reached.
    ///
    /// # Errors
    /// If the process has ended in another way.
    fn has_struck(&self, world: &mut World) -> Result<bool> {
        let daemon = self.daemon(world)?;
        match self.victim {
            Victim::Bitcoind => Ok(daemon.faults().is_held(self.point)),
            Victim::Process | Victim::Twice => daemon.was_killed(),
        }
    }
}

/// A call of the local API in a thread of its own: the process may die in it, or be held.
pub(crate) struct Call(JoinHandle<Result<Value>>);

impl Call {
    pub(crate) fn post(daemon: &Daemon, path: &str, body: Value) -> Result<Self> {
        let (api, path) = (daemon.api()?.clone(), path.to_owned());
        Ok(Self(std::thread::spawn(move || api.post(&path, &body))))
    }

    /// Whether there is an answer.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// The answer; an error if the process has died.
    pub(crate) fn answer(self) -> Result<Value> {
        self.0.join().map_err(|_| anyhow!("a call of the API panicked"))?
    }
}

/// Waits until a transaction is in the mempool or a block. A bitcoind that was killed has lost its mempool, and what
/// could not be handed to it is tried again with the next block: so blocks come meanwhile.
///
/// # Errors
/// If it does not come within a minute.
pub fn appear(world: &World, txid: Txid) -> Result<Transaction> {
    let mut looks = 0u32;
    wait::until(&format!("transaction {txid}, blocks coming"), PATIENCE, || {
        if let Some(tx) = world.bitcoind.transaction(txid)? {
            return Ok(Seen::Done(tx));
        }
        looks += 1;
        if looks % 30 == 0 {
            world.bitcoind.mine(1)?;
        }
        Ok(Seen::not_yet("unknown"))
    })
}

/// Every client waits for a factory again, and nobody's coins are set aside.
///
/// # Errors
/// If that does not come about.
pub fn wait_free(world: &World) -> Result<()> {
    world.sync()?;
    world.wait_waiting(world.clients.len())?;
    let reserved = world.lsp.balance()?.onchain.reserved_sat;
    if reserved > 0 {
        bail!("{reserved} sat of the LSP's coins are still set aside");
    }
    Ok(())
}

/// Time since then, in words.
pub(crate) fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}
