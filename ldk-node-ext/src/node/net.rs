//! Connections: accepting, making, and making again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Parts;
use crate::config::RoleConfig;
use crate::error::Error;
use crate::store::records;

const NAMESPACE: &str = "peers";
const VERSION: u32 = 1;
/// How long a connection may take, Noise handshake and `init` included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
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

/// Accepts connections until told to stop, a bounded number at a time.
pub(super) async fn accept(parts: Arc<Parts>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let limit = match &parts.config.role {
        RoleConfig::Lsp(s) => s.max_connections,
        RoleConfig::Client(_) => CLIENT_MAX_CONNECTIONS,
    };
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            a = listener.accept() => a,
            _ = stop.changed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of file descriptors, mostly; wait instead of spinning.
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        if open.load(Ordering::Acquire) >= limit {
            tracing::warn!(limit, "too many connections; one refused");
            continue;
        }
        let Ok(stream) = stream.into_std() else { continue };
        open.fetch_add(1, Ordering::AcqRel);
        let (peers, open) = (Arc::clone(&parts.peers), Arc::clone(&open));
        tokio::spawn(async move {
            lightning_net_tokio::setup_inbound(peers, stream).await;
            open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// Keeps the connections that matter: a client's to its LSP, and everybody's to channel peers whose
/// address is known. Waits longer after each failure, up to a limit.
pub(super) async fn keep_connected(parts: Arc<Parts>, mut stop: watch::Receiver<bool>) {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);
    let mut pause = FIRST;
    let mut lost = std::collections::HashSet::new();
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
    let with_channels: std::collections::HashSet<PublicKey> =
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
