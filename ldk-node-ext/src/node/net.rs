//! Connections: accepting, making, and making again.

use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::secp256k1::PublicKey;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::msgs::SocketAddress;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::connections::{Connections, Surplus, HANDSHAKE as CONNECT_TIMEOUT};
use super::Parts;
use crate::config::RoleConfig;
use crate::error::Error;
use crate::factory;
use crate::store::records;

const NAMESPACE: &str = "peers";
const VERSION: u32 = 1;
/// Connections of one node that nobody has channels with.
const CLIENT_MAX_CONNECTIONS: usize = 16;

/// Resolves `host:port`.
async fn resolve(address: &str) -> Result<SocketAddr, Error> {
    tokio::net::lookup_host(address)
        .await
        .map_err(|e| Error::invalid("address", format!("{address}: {e}")))?
        .next()
        .ok_or_else(|| Error::invalid("address", format!("{address}: no such host")))
}

/// Connects and waits until `init` has been exchanged. Remembers the address.
pub(super) async fn connect(parts: &Arc<Parts>, peer: PublicKey, address: &str) -> Result<(), Error> {
    if peer == parts.node_id {
        return Err(Error::invalid("node_id", "is this node itself"));
    }
    if parts.peers.peer_by_node_id(&peer).is_some() {
        return Ok(());
    }
    let target = resolve(address).await?;
    let unreachable = || Error::Unavailable(format!("{peer}@{address} does not answer"));
    let attempt = lightning_net_tokio::connect_outbound(Arc::clone(&parts.peers), peer, target);
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, attempt)
        .await
        .map_err(|_| unreachable())?
        .ok_or_else(unreachable)?;
    let mut connection = std::pin::pin!(tokio::spawn(connection));
    let deadline = tokio::time::Instant::now() + CONNECT_TIMEOUT;
    while parts.peers.peer_by_node_id(&peer).is_none() {
        tokio::select! {
            _ = &mut connection => return Err(unreachable()),
            _ = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        if tokio::time::Instant::now() > deadline {
            return Err(unreachable());
        }
    }
    let known: Option<String> = records::get(&*parts.store, NAMESPACE, &peer.to_string(), VERSION)?;
    if known.as_deref() != Some(address) {
        records::put(&*parts.store, NAMESPACE, &peer.to_string(), VERSION, &address)?;
    }
    Ok(())
}

/// A connection that somebody made, as long as the handshake lasts: a second handle on its socket, which LDK has.
type Sockets = HashMap<u64, (Remote, StdTcpStream)>;

/// Where a connection comes from: what LDK keeps of an address.
type Remote = (IpAddr, u16);

/// How often connections are looked at when nobody comes.
const LOOK: Duration = Duration::from_millis(500);

/// Says that a connection ended, also if its task panics.
struct Ended(u64, mpsc::UnboundedSender<u64>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.1.send(self.0);
    }
}

/// Accepts connections until told to stop, and keeps a bounded number of them (see [`super::connections`]).
pub(super) async fn accept(parts: Arc<Parts>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let limit = match &parts.config.role {
        RoleConfig::Lsp(s) => s.max_connections,
        RoleConfig::Client(_) => CLIENT_MAX_CONNECTIONS,
    };
    let (mut table, mut sockets) = (Connections::new(limit), Sockets::new());
    let (mut open, mut next) = (0usize, 0u64);
    // One entry for each connection that is open, and those are bounded.
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            Some(id) = endings.recv() => {
                open = open.saturating_sub(1);
                table.closed(id);
                sockets.remove(&id);
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    if open >= table.hard_limit() {
                        tracing::debug!(%address, open, "too many connections; one refused");
                        continue;
                    }
                    let Ok(stream) = stream.into_std() else { continue };
                    let Ok(handle) = stream.try_clone() else { continue };
                    let (id, peers) = (next, Arc::clone(&parts.peers));
                    let end = Ended(id, ended.clone());
                    next = next.wrapping_add(1);
                    open = open.saturating_add(1);
                    table.opened(id, address.ip(), Instant::now());
                    sockets.insert(id, ((address.ip(), address.port()), handle));
                    let connection = lightning_net_tokio::setup_inbound(peers, stream);
                    tokio::spawn(async move {
                        connection.await;
                        drop(end);
                    });
                    if !table.is_crowded() {
                        continue;
                    }
                }
                Err(e) => {
                    // Out of file descriptors, mostly; wait instead of spinning.
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            _ = look.tick() => {}
        }
        thin_out(&parts, &mut table, &mut sockets);
    }
}

/// Learns who is who, and ends what is late or too much.
fn thin_out(parts: &Parts, table: &mut Connections, sockets: &mut Sockets) {
    if factory_core::faults::switch("net.strangers.stay") {
        return;
    }
    if !sockets.is_empty() {
        let peers = parts.peers.list_peers().into_iter().filter(|peer| peer.is_inbound_connection);
        let named: HashMap<Remote, PublicKey> = peers
            .filter_map(|peer| Some((remote(&peer.socket_address?)?, peer.counterparty_node_id)))
            .collect();
        sockets.retain(|id, (address, _)| match named.get(address) {
            Some(peer) => {
                table.named(*id, *peer);
                false
            }
            None => true,
        });
    }
    let end = |id: &u64, sockets: &mut Sockets| {
        if let Some((_, socket)) = sockets.remove(id) {
            // The reader on the other handle sees the end and tells LDK.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    };
    for id in table.take_overdue(Instant::now()) {
        end(&id, sockets);
    }
    if !table.is_crowded() {
        return;
    }
    let applicants: LazyCell<HashSet<PublicKey>, _> =
        LazyCell::new(|| parts.factory_messages.ready_peers().into_iter().collect());
    // One that was only begun costs nothing.
    let stands = |c: &ChannelDetails| {
        c.is_channel_ready || c.confirmations > Some(0) || factory::is_marked(c.user_channel_id)
    };
    let partner = |peer: &PublicKey| parts.manager.list_channels_with_counterparty(peer).iter().any(stands);
    for surplus in table.thin(partner, |peer| applicants.contains(peer)) {
        match surplus {
            Surplus::Unnamed(id) => end(&id, sockets),
            Surplus::Peer(_, peer) => {
                tracing::debug!(%peer, "disconnected: too many connections");
                parts.peers.disconnect_by_node_id(peer);
            }
        }
    }
}

fn remote(address: &SocketAddress) -> Option<Remote> {
    match address {
        SocketAddress::TcpIpV4 { addr, port } => Some(((*addr).into(), *port)),
        SocketAddress::TcpIpV6 { addr, port } => Some(((*addr).into(), *port)),
        _ => None,
    }
}

/// Keeps the connections that matter: a client's to its LSP, and everybody's to channel peers whose
/// address is known. Waits longer after each failure, up to a limit.
pub(super) async fn keep_connected(parts: Arc<Parts>, mut stop: watch::Receiver<bool>) {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);
    let mut pause = FIRST;
    let mut lost = HashSet::new();
    loop {
        let mut failed = false;
        for (peer, address) in wanted(&parts) {
            if *stop.borrow() {
                return;
            }
            if parts.peers.peer_by_node_id(&peer).is_none() {
                match connect(&parts, peer, &address).await {
                    Ok(()) => {
                        lost.remove(&peer);
                        tracing::info!(%peer, address, "connected");
                    }
                    Err(e) => {
                        failed = true;
                        if lost.insert(peer) {
                            tracing::warn!(%peer, address, error = %e, "no connection; trying on");
                        }
                    }
                }
            }
        }
        pause = if failed { (pause * 2).min(LONGEST) } else { FIRST };
        tokio::select! {
            _ = tokio::time::sleep(pause) => {}
            _ = stop.changed() => return,
        }
    }
}

fn wanted(parts: &Parts) -> Vec<(PublicKey, String)> {
    let mut list = Vec::new();
    let mut lsp = None;
    if let RoleConfig::Client(c) = &parts.config.role {
        list.push((c.lsp_node_id, c.lsp_address.clone()));
        lsp = Some(c.lsp_node_id);
    }
    let with_channels: HashSet<PublicKey> =
        parts.manager.list_channels().into_iter().map(|c| c.counterparty.node_id).collect();
    for peer in with_channels {
        if Some(peer) == lsp {
            continue;
        }
        if let Ok(Some(address)) =
            records::get::<String>(&*parts.store, NAMESPACE, &peer.to_string(), VERSION)
        {
            list.push((peer, address));
        }
    }
    list
}
