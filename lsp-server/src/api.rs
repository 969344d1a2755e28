//! The API's routes that only an LSP has.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use ldk_node_ext::api::{
    ClientAdmission, ClientJitPolicy, CreateFactoryRequest, JitStatus, OpenChannelRequest, ReadmitRequest,
    WaitingClient,
};
use ldk_node_ext::http::{detached, done, Answer, Body};
use ldk_node_ext::Node;
use serde_json::{json, Value};

/// Clients, and creating factories and channels.
pub fn routes(node: Node) -> Router {
    Router::new()
        .route("/v1/clients", get(clients))
        .route("/v1/admission", get(admission))
        .route("/v1/admission/readmit", post(readmit))
        .route("/v1/factories", post(create_factory))
        .route("/v1/channels", post(open_channel))
        .route("/v1/jit", get(jit))
        .route("/v1/jit/policy", get(jit_policies).post(set_jit_policy))
        .with_state(node)
}

async fn clients(State(node): State<Node>) -> Answer<Vec<WaitingClient>> {
    Ok(Json(node.waiting_clients().await?))
}

async fn jit(State(node): State<Node>) -> Json<JitStatus> {
    Json(node.jit_status())
}

async fn jit_policies(State(node): State<Node>) -> Json<Vec<ClientJitPolicy>> {
    Json(node.jit_policies())
}

async fn set_jit_policy(State(node): State<Node>, Body(policy): Body<ClientJitPolicy>) -> Answer<Value> {
    node.set_jit_policy(policy)?;
    Ok(done())
}

async fn admission(State(node): State<Node>) -> Answer<Vec<ClientAdmission>> {
    Ok(Json(node.admission().await?))
}

async fn readmit(State(node): State<Node>, Body(request): Body<ReadmitRequest>) -> Answer<Value> {
    detached(async move { node.readmit(request).await }).await?;
    Ok(done())
}

async fn create_factory(
    State(node): State<Node>,
    Body(request): Body<CreateFactoryRequest>,
) -> Answer<Value> {
    let instance_id = detached(async move { node.create_factory(request).await }).await?;
    Ok(Json(json!({ "instance_id": instance_id })))
}

async fn open_channel(State(node): State<Node>, Body(request): Body<OpenChannelRequest>) -> Answer<Value> {
    let user_channel_id = detached(async move { node.open_channel(request).await }).await?;
    Ok(Json(json!({ "user_channel_id": user_channel_id })))
}
