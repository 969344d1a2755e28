//! A whole regtest world: bitcoind, an LSP, its clients and, if wanted, an ordinary Lightning node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail, Result};
use bitcoin::Txid;
use serde_json::{json, Value};
use tempfile::TempDir;

use crate::types::{Channel, Factory};
use crate::wait::{self, Seen};
use crate::{Bitcoind, Client, Daemon, Lsp, Peer};

/// How long a ceremony may take, an absent client's timeouts included.
pub const CEREMONY: Duration = Duration::from_secs(240);
/// How long anything else may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What each client gets as fee coin for an exit, sat.
pub const CLIENT_COIN: u64 = 500_000;
/// What the LSP gets, sat, in [`LSP_COINS`] coins.
pub const LSP_FUNDS: u64 = 100_000_000;
/// Number of the LSP's coins.
pub const LSP_COINS: u64 = 4;

/// Running processes; dropped in this order.
#[derive(Debug)]
pub struct World {
    /// The ordinary node.
    pub peer: Option<Peer>,
    /// The clients.
    pub clients: Vec<Client>,
    /// The LSP.
    pub lsp: Lsp,
    /// The chain.
    pub bitcoind: Bitcoind,
    path: PathBuf,
    folder: Folder,
}

/// A temporary folder that stays, and says where it is, unless the scenario ended well.
#[derive(Debug)]
struct Folder {
    dir: Option<TempDir>,
    done: bool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let (Some(dir), false) = (self.dir.take(), self.done) {
            eprintln!("data and logs are kept in {}", dir.keep().display());
        }
    }
}

impl World {
    /// Starts bitcoind, the LSP and `clients` clients, each with confirmed coins. `name` goes into the folder's name.
    ///
    /// # Errors
    /// If one of them does not come up.
    pub fn start(name: &str, clients: usize) -> Result<Self> {
        Self::start_with(name, clients, &[])
    }

    /// As [`World::start`], with these flags of both programs on top.
    ///
    /// # Errors
    /// As [`World::start`].
    pub fn start_with(name: &str, clients: usize, flags: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("scenario-{name}-")).tempdir()?;
        let path = dir.path().to_owned();
        Self::start_in(path, Folder { dir: Some(dir), done: false }, clients, flags, &[])
    }

    /// As [`World::start`], with these flags of the LSP on top.
    ///
    /// # Errors
    /// As [`World::start`].
    pub fn start_with_lsp(name: &str, clients: usize, lsp_flags: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("scenario-{name}-")).tempdir()?;
        let path = dir.path().to_owned();
        Self::start_in(path, Folder { dir: Some(dir), done: false }, clients, &[], lsp_flags)
    }

    /// As [`World::start_with_lsp`], in a folder that stays in any case.
    ///
    /// # Errors
    /// As [`World::start`].
    pub fn start_at(path: &Path, clients: usize, lsp_flags: &[&str]) -> Result<Self> {
        Self::start_in(path.to_owned(), Folder { dir: None, done: false }, clients, &[], lsp_flags)
    }

    fn start_in(
        path: PathBuf,
        folder: Folder,
        clients: usize,
        flags: &[&str],
        lsp_flags: &[&str],
    ) -> Result<Self> {
        let bitcoind = Bitcoind::start(&path)?;
        let lsp = Lsp::start(&path, &bitcoind, &[flags, lsp_flags].concat())?;
        let clients = start_clients(&path, clients, &bitcoind, &lsp, flags)?;
        let world = Self { peer: None, clients, lsp, bitcoind, path, folder };
        world.fund()?;
        Ok(world)
    }

    fn fund(&self) -> Result<()> {
        let mut payments = Vec::new();
        for _ in 0..LSP_COINS {
            payments.push((Bitcoind::parse_address(&self.lsp.address()?)?, LSP_FUNDS / LSP_COINS));
        }
        for client in &self.clients {
            payments.push((Bitcoind::parse_address(&client.address()?)?, CLIENT_COIN));
        }
        self.bitcoind.fund(&payments)?;
        self.sync()?;
        let funds = |name: &str, wanted: u64, balance: u64| {
            if balance == wanted {
                Ok(())
            } else {
                bail!("{name} was paid {wanted} sat and says that it holds {balance} sat")
            }
        };
        funds("the LSP", LSP_FUNDS, self.lsp.balance()?.onchain.confirmed_sat)?;
        for client in &self.clients {
            funds(client.name(), CLIENT_COIN, client.balance()?.onchain.confirmed_sat)?;
        }
        Ok(())
    }

    /// Adds an ordinary node with one channel to the LSP, half of it on each side.
    ///
    /// # Errors
    /// If the node does not come up or the channel does not become usable.
    pub fn add_peer(&mut self, capacity_sat: u64) -> Result<()> {
        let peer = Peer::start(&self.path, &self.bitcoind)?;
        let address = Bitcoind::parse_address(&peer.address()?)?;
        self.bitcoind.fund(&[(address, 2 * capacity_sat)])?;
        peer.wait_synced(&self.bitcoind)?;
        self.sync()?;
        peer.open_channel(self.lsp.node_id(), self.lsp.listen(), capacity_sat, capacity_sat / 2)?;
        let funding = wait::until("the ordinary channel's funding", PATIENCE, || {
            match peer.channels()?.into_iter().find_map(|channel| channel.funding) {
                Some(funding) => Ok(Seen::Done(funding.txid)),
                None => Ok(Seen::not_yet("no funding")),
            }
        })?;
        self.bitcoind.wait_seen(funding, PATIENCE)?;
        self.bitcoind.mine(6)?;
        self.peer = Some(peer);
        self.sync()?;
        self.wait_peer_usable()
    }

    /// Waits until the ordinary node's channel is usable on both sides; without such a node there is nothing to wait
    /// for. The node is connected again if it is not: by itself it tries once a minute only.
    ///
    /// # Errors
    /// If it does not become so.
    pub fn wait_peer_usable(&self) -> Result<()> {
        let (Some(peer), lsp) = (&self.peer, &self.lsp) else { return Ok(()) };
        wait::until("the ordinary channel to be usable on both sides", PATIENCE, || {
            let ours = lsp.channels()?.into_iter().find(|channel| channel.peer == peer.node_id());
            let theirs = peer.channels()?.into_iter().find(|channel| channel.peer == lsp.node_id());
            match (ours, theirs) {
                (Some(ours), Some(theirs)) if ours.usable && theirs.usable => Ok(Seen::Done(())),
                seen => {
                    peer.connect(lsp.node_id(), lsp.listen())?;
                    Ok(Seen::NotYet(format!("{seen:?}")))
                }
            }
        })
    }

    /// The ordinary node.
    ///
    /// # Errors
    /// If there is none.
    pub fn peer(&self) -> Result<&Peer> {
        self.peer.as_ref().ok_or_else(|| anyhow!("this world has no ordinary node"))
    }

    /// A client.
    ///
    /// # Errors
    /// If there is none with this number.
    pub fn client(&self, index: usize) -> Result<&Client> {
        self.clients.get(index).ok_or_else(|| anyhow!("there is no client {index}"))
    }

    /// A client, to stop or start it.
    ///
    /// # Errors
    /// If there is none with this number.
    pub fn client_mut(&mut self, index: usize) -> Result<&mut Client> {
        self.clients.get_mut(index).ok_or_else(|| anyhow!("there is no client {index}"))
    }

    /// Waits until every running process has seen the best block.
    ///
    /// # Errors
    /// If one does not within a minute.
    pub fn sync(&self) -> Result<()> {
        if self.lsp.is_up() {
            self.lsp.wait_synced(&self.bitcoind)?;
        }
        for client in self.clients.iter().filter(|client| client.is_up()) {
            client.wait_synced(&self.bitcoind)?;
        }
        match &self.peer {
            Some(peer) => peer.wait_synced(&self.bitcoind),
            None => Ok(()),
        }
    }

    /// Mines blocks and waits until every running process has seen them.
    ///
    /// # Errors
    /// As [`World::sync`].
    pub fn mine(&self, blocks: u32) -> Result<()> {
        self.bitcoind.mine(blocks)?;
        self.sync()
    }

    /// Mines blocks and waits until this one process has seen them: the ordinary node looks at the chain every two
    /// seconds only, and need not keep up with hundreds of blocks one by one.
    ///
    /// # Errors
    /// If it does not see them within a minute.
    pub fn mine_for(&self, daemon: &Daemon, blocks: u32) -> Result<()> {
        self.bitcoind.mine(blocks)?;
        daemon.wait_synced(&self.bitcoind)
    }

    /// Waits until the LSP counts `clients` clients that are connected and wait for a factory.
    ///
    /// # Errors
    /// If they do not come.
    pub fn wait_waiting(&self, clients: usize) -> Result<()> {
        wait::until(&format!("{clients} waiting clients"), PATIENCE, || {
            let list = self.lsp.clients()?;
            let waiting = list.iter().filter(|client| client.connected && client.waiting).count();
            Ok(if waiting >= clients { Seen::Done(()) } else { Seen::NotYet(format!("{waiting}: {list:?}")) })
        })
    }

    /// The body of a request for a factory with all clients, each with the same amounts.
    pub fn factory_request(
        &self,
        capacity_sat: u64,
        push_sat: u64,
        stock_sat: u64,
        params: Option<Value>,
    ) -> Value {
        let clients: Vec<Value> = self
            .clients
            .iter()
            .map(|client| {
                json!({ "node_id": client.node_id(), "capacity_sat": capacity_sat, "push_sat": push_sat })
            })
            .collect();
        json!({ "clients": clients, "stock_sat": stock_sat, "params": params })
    }

    /// Creates a factory, mines its funding transaction and waits until it is active with every channel usable on
    /// both sides. Clients that the LSP left out are not waited for.
    ///
    /// # Errors
    /// If the factory fails, with the LSP's reason.
    pub fn create_factory(&self, request: &Value) -> Result<Factory> {
        self.wait_waiting(request["clients"].as_array().map_or(0, Vec::len))?;
        let id = self.lsp.create_factory(request)?;
        self.wait_state(&id, "confirming", CEREMONY)?;
        let funding = self.lsp.factory(&id)?.funding.ok_or_else(|| anyhow!("no funding outpoint"))?;
        self.bitcoind.wait_seen(funding.txid, PATIENCE)?;
        self.mine(1)?;
        let factory = self.wait_state(&id, "active", PATIENCE)?;
        self.wait_usable(&factory)?;
        Ok(factory)
    }

    /// Waits until the LSP says that the factory is in this state.
    ///
    /// # Errors
    /// If it fails, with the LSP's reason, or the time is up.
    pub fn wait_state(&self, id: &str, state: &str, limit: Duration) -> Result<Factory> {
        let mut failure = None;
        let factory = wait::until(&format!("factory {id} to be {state}"), limit, || {
            let factory = self.lsp.factory(id)?;
            if factory.state == state {
                return Ok(Seen::Done(Some(factory)));
            }
            if factory.state == "failed" {
                failure = Some(factory.failure.unwrap_or_default());
                return Ok(Seen::Done(None));
            }
            let members: Vec<_> = factory.clients.iter().map(|c| (&c.node_id, &c.state, &c.reason)).collect();
            Ok(Seen::NotYet(format!("{} {members:?}", factory.state)))
        })?;
        factory.ok_or_else(|| anyhow!("the factory failed: {}", failure.unwrap_or_default()))
    }

    /// Waits until the channels of a factory's clients that run are usable on both sides, and the ordinary node's.
    ///
    /// # Errors
    /// If they do not become so.
    pub fn wait_usable(&self, factory: &Factory) -> Result<()> {
        for member in factory.clients.iter().filter(|member| member.reason.is_none()) {
            let client = self.by_node_id(&member.node_id)?;
            if !client.is_up() {
                continue;
            }
            wait::until(
                &format!("{}'s channel to be usable on both sides", client.name()),
                PATIENCE,
                || {
                    let own = factory_channel(&client.channels()?, &factory.instance_id, self.lsp.node_id())?;
                    let theirs =
                        factory_channel(&self.lsp.channels()?, &factory.instance_id, client.node_id())?;
                    if own.usable && theirs.usable {
                        Ok(Seen::Done(()))
                    } else {
                        Ok(Seen::NotYet(format!("client {own:?}, LSP {theirs:?}")))
                    }
                },
            )?;
        }
        self.wait_peer_usable()
    }

    /// Waits until the LSP has noticed that a client is gone.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_gone(&self, node_id: &str) -> Result<()> {
        wait::until_value(
            "the LSP to miss a client",
            PATIENCE,
            || self.lsp.api()?.get::<Vec<serde_json::Value>>("/v1/clients"),
            |list| !list.iter().any(|c| c["node_id"] == *node_id && c["connected"] == true),
        )?;
        Ok(())
    }

    /// The client with this node id.
    ///
    /// # Errors
    /// If there is none.
    pub fn by_node_id(&self, node_id: &str) -> Result<&Client> {
        self.clients
            .iter()
            .find(|client| client.node_id() == node_id)
            .ok_or_else(|| anyhow!("no client has the node id {node_id}"))
    }

    /// Mines what is in the mempool until it stays empty, and returns the transactions that were in it.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn mine_mempool(&self) -> Result<Vec<Txid>> {
        let mut mined = Vec::new();
        loop {
            let mempool = self.bitcoind.mempool()?;
            if mempool.is_empty() {
                return Ok(mined);
            }
            mined.extend(mempool);
            self.mine(1)?;
        }
    }

    /// The scenario ended well: its folder is removed.
    pub fn finish(mut self) {
        self.folder.done = true;
    }

    /// Where data and logs are.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Starts clients, some of them at a time: each waits for its process, not for the processor.
fn start_clients(
    path: &Path,
    clients: usize,
    bitcoind: &Bitcoind,
    lsp: &Lsp,
    flags: &[&str],
) -> Result<Vec<Client>> {
    const AT_ONCE: usize = 8;
    let every = |first: usize| {
        let indices = (first..clients).step_by(AT_ONCE);
        indices.map(|i| Ok((i, Client::start(path, i, bitcoind, lsp, flags)?))).collect::<Result<Vec<_>>>()
    };
    let mut started = Vec::with_capacity(clients);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(clients)).map(|n| scope.spawn(move || every(n))).collect();
        for thread in threads {
            started.extend(thread.join().map_err(|_| anyhow!("a thread that starts clients panicked"))??);
        }
        Ok::<_, anyhow::Error>(())
    })?;
    started.sort_by_key(|(i, _)| *i);
    Ok(started.into_iter().map(|(_, client)| client).collect())
}

/// The channel with `peer` in the factory `id`.
///
/// # Errors
/// If there is none.
pub fn factory_channel(channels: &[Channel], id: &str, peer: &str) -> Result<Channel> {
    channels
        .iter()
        .find(|channel| channel.factory.as_deref() == Some(id) && channel.peer == peer)
        .cloned()
        .ok_or_else(|| anyhow!("no channel with {peer} in factory {id} among {channels:?}"))
}
