//! Runs a node with its API until somebody ends it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::signal::unix::{signal, SignalKind};

use super::files::{create_data_dir, AddressFiles, Token};
use super::serve::serve;
use super::server::{bind, secure, within, Shutdown};
use super::{routes, HttpError};
use crate::watch::{Watcher, WatcherConfig};
use crate::{Error, Node, NodeConfig};

/// Where a watcher inside a node keeps its data, in the data directory.
const WATCHER_DIR: &str = "watcher";
/// Time for a request that answers at once.
const QUICK: Duration = Duration::from_secs(60);
/// Time for a request that waits: the longest wait of a payment (600 s) and a bit.
const WAITING: Duration = Duration::from_secs(630);
/// Requests still open at the end are given this long.
const DRAIN: Duration = Duration::from_secs(3);

/// Where the API listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiOptions {
    /// Address; port 0: any free one.
    pub bind: SocketAddr,
    /// Allow an address that other machines can reach.
    pub expose: bool,
}

/// The watcher for other nodes, with the node's bitcoind and feerates, and data and wallet of its own.
fn watching(config: &NodeConfig) -> Option<WatcherConfig> {
    if config.watch_folders.is_empty() {
        return None;
    }
    let dir = config.data_dir.join(WATCHER_DIR);
    let mut watching =
        WatcherConfig::new(dir, config.network, config.bitcoind_rpc, config.bitcoind_auth.clone());
    watching.folders.clone_from(&config.watch_folders);
    watching.poll_interval = config.poll_interval;
    watching.fallback_feerate_sat_per_vb = config.fallback_feerate_sat_per_vb;
    watching.max_feerate_sat_per_vb = config.max_feerate_sat_per_vb;
    Some(watching)
}

/// Resolves when there is a watcher and it has ended.
async fn watcher_ended(watcher: Option<&Watcher>) {
    match watcher {
        Some(watcher) => watcher.stopped().await,
        None => std::future::pending().await,
    }
}

/// Lets the process open as many files as the system allows it: each connection is one, and the usual limit is 1024.
fn raise_file_limit() {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(error = %e, "the limit of open files stays as it is");
    }
}

/// Starts the node and serves its API until `stop`, SIGTERM or SIGINT, then ends both in order: no
/// new requests, the open ones get 3 seconds, the node stores all and stops.
///
/// `role_routes` are those that only this side has. The files with token and addresses are in the
/// data directory; `api-address` appears when everything is ready and vanishes when all is over.
///
/// # Errors
/// [`HttpError`]: the API's socket or files; the node's start; [`HttpError::NodeEnded`] if the node
/// ends by a fault.
pub async fn serve_node(
    config: NodeConfig,
    api: ApiOptions,
    role_routes: fn(Node) -> Router,
) -> Result<(), HttpError> {
    let handler = |e: io::Error| HttpError::System { action: "install a signal handler", source: e };
    let mut terminate = signal(SignalKind::terminate()).map_err(handler)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(handler)?;

    raise_file_limit();
    create_data_dir(&config.data_dir)?;
    let token = Token::read_or_create(&config.data_dir)?;
    let listener = bind(api.bind, api.expose).await?;
    let address = listener.local_addr().map_err(|source| HttpError::Bind { address: api.bind, source })?;
    let data_dir = config.data_dir.clone();
    let rpc = config.bitcoind_rpc;
    let watching = watching(&config);

    let node = tokio::select! {
        node = Node::start(config) => node.map_err(|e| match e {
            Error::Bitcoind(_) => HttpError::Bitcoind { rpc, source: e },
            other => other.into(),
        })?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let watcher = match watching {
        Some(watching) => tokio::select! {
            watcher = Watcher::start(watching, Vec::new()) => watcher.map(Some).map_err(HttpError::from),
            _ = terminate.recv() => return Ok(node.stop().await?),
            _ = interrupt.recv() => return Ok(node.stop().await?),
        },
        None => Ok(None),
    };
    let watcher = match watcher {
        Ok(watcher) => watcher,
        Err(e) => {
            node.stop().await?;
            return Err(e);
        }
    };
    let shutdown = Shutdown::default();
    let quick = routes::quick(node.clone(), shutdown.clone())
        .merge(super::metrics::routes(node.clone()))
        .merge(role_routes(node.clone()));
    let waiting = routes::waiting(node.clone(), shutdown.clone());
    let app = secure(within(QUICK, quick).merge(within(WAITING, waiting)), token);
    let mut server = tokio::spawn(serve(listener, app, shutdown.clone()));

    // Only now: the node holds the data directory, so the files are no other process's.
    let files = AddressFiles::prepare(&data_dir)
        .and_then(|files| files.write(address, node.listen_address()).map(|()| files));
    match &files {
        Ok(_) => {
            let listen = node.listen_address().map_or("no".to_owned(), |at| at.to_string());
            tracing::info!(api = %address, %listen, node_id = %node.node_id(), "ready");
        }
        Err(_) => shutdown.request(),
    }

    let mut ended = false;
    tokio::select! {
        () = shutdown.requested() => {}
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
        () = node.stopped() => ended = true,
        () = watcher_ended(watcher.as_ref()) => tracing::error!("the watcher ended by itself"),
        _ = &mut server => tracing::error!("the API ended by itself"),
    }
    shutdown.request();
    if !server.is_finished() && tokio::time::timeout(DRAIN, &mut server).await.is_err() {
        tracing::info!("requests were still open");
        server.abort();
    }
    if let Some(watcher) = &watcher {
        watcher.stop().await;
    }
    let stopped = node.stop().await;
    drop(files?);
    stopped?;
    if ended {
        return Err(HttpError::NodeEnded { reason: node.failure() });
    }
    tracing::info!("stopped");
    Ok(())
}
