//! The API's connections: bounded in number, and in the time that a request may take to arrive.
//!
//! Everybody on the machine can connect. Where there are too many, a connection over which the token was never shown
//! makes room, so nobody without it can keep the operator out.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{service_fn, Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, Id, JoinSet};

use super::Shutdown;

/// Connections at the same time.
pub const MAX_CONNECTIONS: usize = 512;
/// Within this time a request's head has to be there, counted from the end of the one before.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Most that is read ahead of one connection, bytes; a request's head has to fit.
const MAX_AHEAD: usize = 64 * 1024;
/// After the system could not give a connection.
const PAUSE: Duration = Duration::from_millis(200);

/// Whether the token was shown over a connection; an extension of its requests.
#[derive(Clone, Default)]
pub(super) struct Trusted(Arc<AtomicBool>);

impl Trusted {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

struct Open {
    number: u64,
    trusted: Trusted,
    task: AbortHandle,
}

/// Serves until told to stop, then ends when the last request is answered. Dropped, it breaks off.
pub async fn serve(listener: TcpListener, app: Router, shutdown: Shutdown) {
    let mut tasks = JoinSet::new();
    let mut open: HashMap<Id, Open> = HashMap::new();
    let mut next = 0u64;
    loop {
        let stream = tokio::select! {
            biased;
            () = shutdown.requested() => break,
            Some(ended) = tasks.join_next_with_id() => {
                open.remove(&ended.map_or_else(|e| e.id(), |(id, ())| id));
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!(error = %e, "the API cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
        };
        if open.len() >= MAX_CONNECTIONS {
            let untrusted = open.iter().filter(|(_, o)| !o.trusted.0.load(Ordering::Acquire));
            let Some(oldest) = untrusted.min_by_key(|(_, o)| o.number).map(|(id, _)| *id) else { continue };
            if let Some(o) = open.remove(&oldest) {
                o.task.abort();
            }
        }
        let trusted = Trusted::default();
        let task = tasks.spawn(connection(stream, app.clone(), trusted.clone(), shutdown.clone()));
        open.insert(task.id(), Open { number: next, trusted, task });
        next = next.wrapping_add(1);
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, app: Router, trusted: Trusted, shutdown: Shutdown) {
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(trusted.clone());
        app.call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(MAX_AHEAD);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // An error is the other side's: it went away, or did not speak HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shutdown.requested() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
