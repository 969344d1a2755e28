//! The API's route that only a client has.

use axum::extract::{Path, State};
use axum::routing::post;
use axum::Router;
use ldk_node_ext::http::{detached, done, Answer, Body, Empty};
use ldk_node_ext::Node;
use serde_json::Value;

/// Leaving a factory.
pub fn routes(node: Node) -> Router {
    Router::new().route("/v1/factories/{instance_id}/exit", post(exit_factory)).with_state(node)
}

async fn exit_factory(
    State(node): State<Node>,
    Path(instance_id): Path<String>,
    Body(Empty {}): Body<Empty>,
) -> Answer<Value> {
    detached(async move { node.exit_factory(&instance_id).await }).await?;
    Ok(done())
}
