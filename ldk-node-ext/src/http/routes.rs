//! The routes that the LSP and the client share.

use std::future::Future;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::{ApiCode, ApiError, Body, Empty, Params, Shutdown};
use crate::api::{
    Balance, ChannelInfo, ClaimRequest, CloseChannelRequest, ConnectRequest, EventRecord, ExitRequest,
    FactoryInfo, FailRequest, Invoice, InvoiceRequest, JitMoveRequest, JitMoved, LiquidityAnswer,
    LiquidityRequest, NodeInfo, Offer, OfferRequest, PayRequest, Payment, RotateRequest, Rotation,
};
use crate::watch::{ExitFile, WatcherInfo};
use crate::{Error, Node};

/// What a handler returns.
pub type Answer<T> = Result<Json<T>, ApiError>;

/// Events given at most in one answer.
const MAX_EVENTS: usize = 1000;
/// Longest wait of one request for an event, seconds.
const MAX_EVENT_WAIT_SECS: u64 = 300;

/// Some events, and where to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventPage {
    /// The events, oldest first.
    pub events: Vec<EventRecord>,
    /// The `after` of the next request.
    pub next: u64,
}

/// Runs a change of the node to its end even if the caller hangs up or its time is over.
///
/// # Errors
/// The node's, or [`ApiCode::Internal`] if it ended by a fault.
pub async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(ApiError::from),
        Err(e) => Err(ApiError::new(ApiCode::Internal, format!("the request ended by a fault: {e}"))),
    }
}

/// The answer that has nothing to say: `{}`.
pub fn done() -> Json<Value> {
    Json(json!({}))
}

#[derive(Clone)]
struct Api {
    node: Node,
    shutdown: Shutdown,
}

/// Routes that answer at once.
pub(super) fn quick(node: Node, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/v1/info", get(info))
        .route("/v1/balance", get(balance))
        .route("/v1/address", post(address))
        .route("/v1/channels", get(channels))
        .route("/v1/channels/close", post(close_channel))
        .route("/v1/invoice", post(invoice))
        .route("/v1/offer", post(offer))
        .route("/v1/payments", get(payments))
        .route("/v1/payments/claim", post(claim))
        .route("/v1/payments/fail", post(fail))
        .route("/v1/payments/{payment_hash}", get(payment))
        .route("/v1/connect", post(connect))
        .route("/v1/factories", get(factories))
        .route("/v1/factories/{instance_id}", get(factory))
        .route("/v1/factories/{instance_id}/close", post(close_factory))
        .route("/v1/factories/{instance_id}/exit", post(exit_factory))
        .route("/v1/factories/{instance_id}/rotate", post(rotate))
        .route("/v1/factories/{instance_id}/liquidity", post(liquidity))
        .route("/v1/factories/{instance_id}/exit-file", get(exit_file))
        .route("/v1/watchers", get(watchers))
        .route("/v1/stop", post(stop))
        .with_state(Api { node, shutdown })
}

/// Routes that wait for something if the caller wishes so.
pub(super) fn waiting(node: Node, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/v1/pay", post(pay))
        .route("/v1/jit/move", post(move_in))
        .route("/v1/events", get(events))
        .with_state(Api { node, shutdown })
}

async fn info(State(api): State<Api>) -> Json<NodeInfo> {
    Json(api.node.info())
}

async fn balance(State(api): State<Api>) -> Answer<Balance> {
    Ok(Json(api.node.balance()?))
}

async fn address(State(api): State<Api>, Body(Empty {}): Body<Empty>) -> Answer<Value> {
    Ok(Json(json!({ "address": api.node.new_address()? })))
}

async fn channels(State(api): State<Api>) -> Json<Vec<ChannelInfo>> {
    Json(api.node.channels())
}

async fn close_channel(State(api): State<Api>, Body(request): Body<CloseChannelRequest>) -> Answer<Value> {
    api.node.close_channel(&request)?;
    Ok(done())
}

async fn invoice(State(api): State<Api>, Body(request): Body<InvoiceRequest>) -> Answer<Invoice> {
    Ok(Json(detached(async move { api.node.create_invoice(request).await }).await?))
}

async fn offer(State(api): State<Api>, Body(request): Body<OfferRequest>) -> Answer<Offer> {
    Ok(Json(api.node.create_offer(request)?))
}

async fn pay(State(api): State<Api>, Body(request): Body<PayRequest>) -> Answer<Payment> {
    Ok(Json(detached(async move { api.node.pay(request).await }).await?))
}

async fn move_in(State(api): State<Api>, Body(request): Body<JitMoveRequest>) -> Answer<JitMoved> {
    Ok(Json(detached(async move { api.node.move_in(request).await }).await?))
}

async fn payments(State(api): State<Api>) -> Answer<Vec<Payment>> {
    Ok(Json(api.node.payments()?))
}

async fn payment(State(api): State<Api>, Path(payment_hash): Path<String>) -> Answer<Payment> {
    Ok(Json(api.node.payment(&payment_hash)?))
}

async fn claim(State(api): State<Api>, Body(request): Body<ClaimRequest>) -> Answer<Payment> {
    Ok(Json(api.node.claim_payment(&request)?))
}

async fn fail(State(api): State<Api>, Body(request): Body<FailRequest>) -> Answer<Payment> {
    Ok(Json(api.node.fail_payment(&request)?))
}

async fn connect(State(api): State<Api>, Body(request): Body<ConnectRequest>) -> Answer<Value> {
    detached(async move { api.node.connect(request).await }).await?;
    Ok(done())
}

async fn factories(State(api): State<Api>) -> Answer<Vec<FactoryInfo>> {
    Ok(Json(api.node.factories().await?))
}

async fn factory(State(api): State<Api>, Path(instance_id): Path<String>) -> Answer<FactoryInfo> {
    Ok(Json(api.node.factory(&instance_id).await?))
}

async fn close_factory(
    State(api): State<Api>,
    Path(instance_id): Path<String>,
    Body(Empty {}): Body<Empty>,
) -> Answer<Value> {
    detached(async move { api.node.close_factory(&instance_id).await }).await?;
    Ok(done())
}

async fn exit_file(State(api): State<Api>, Path(instance_id): Path<String>) -> Answer<ExitFile> {
    Ok(Json(api.node.export_exit(&instance_id).await?))
}

async fn watchers(State(api): State<Api>) -> Answer<Vec<WatcherInfo>> {
    Ok(Json(api.node.watchers().await?))
}

async fn exit_factory(
    State(api): State<Api>,
    Path(instance_id): Path<String>,
    Body(request): Body<ExitRequest>,
) -> Answer<Value> {
    detached(async move { api.node.exit_factory(&instance_id, request).await }).await?;
    Ok(done())
}

async fn rotate(
    State(api): State<Api>,
    Path(instance_id): Path<String>,
    Body(request): Body<RotateRequest>,
) -> Answer<Rotation> {
    Ok(Json(detached(async move { api.node.rotate(&instance_id, request).await }).await?))
}

async fn liquidity(
    State(api): State<Api>,
    Path(instance_id): Path<String>,
    Body(request): Body<LiquidityRequest>,
) -> Answer<LiquidityAnswer> {
    Ok(Json(detached(async move { api.node.change_liquidity(&instance_id, request).await }).await?))
}

async fn events(State(api): State<Api>, mut params: Params) -> Answer<EventPage> {
    let after = params.number("after", 0, u64::MAX)?;
    let limit = params.number("limit", 100, MAX_EVENTS)?;
    let wait = Duration::from_secs(params.number("wait_secs", 0, MAX_EVENT_WAIT_SECS)?);
    params.finish()?;
    let mut events = api.node.events(after, limit)?;
    if events.is_empty() && limit > 0 && !wait.is_zero() {
        tokio::select! {
            () = api.node.wait_event(after, wait) => {}
            () = api.shutdown.requested() => {}
        }
        events = api.node.events(after, limit)?;
    }
    let next = events.last().map_or(after, |e| e.index);
    Ok(Json(EventPage { events, next }))
}

async fn stop(State(api): State<Api>, Body(Empty {}): Body<Empty>) -> Json<Value> {
    tracing::info!("stop requested over the API");
    api.shutdown.request();
    done()
}
