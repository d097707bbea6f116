//! For those who watch: alive, ready, and the metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use prometheus::{Encoder, TextEncoder};
use serde::Serialize;

use super::Admin;
use crate::api::extract::json;
use crate::api::problem::Problem;
use crate::ledger::Status;

/// A store that takes longer is not ready.
const STORE_WAIT: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    ledger: &'static str,
    store: &'static str,
    routes: &'static str,
}

/// The process answers; nothing else is asked, or a slow database would have it restarted.
pub(super) async fn alive() -> Response {
    json(StatusCode::OK, &Health { status: "alive" })
}

/// Ready when ledger, store and a route are.
pub(super) async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let store = matches!(tokio::time::timeout(STORE_WAIT, admin.store.ping()).await, Ok(Ok(())));
    let ledger = match admin.ledger.status() {
        Status::Ready => "ready",
        Status::Unavailable => "unavailable",
        Status::Backlogged => "backlogged",
    };
    let routes = (admin.routes_ready)();
    let word = |ready| if ready { "ready" } else { "unavailable" };
    let ready = store && routes && ledger == "ready";
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(code, &Readiness { status: word(ready), ledger, store: word(store), routes: word(routes) })
}

pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let mut text = Vec::new();
    let encoder = TextEncoder::new();
    if let Err(error) = encoder.encode(&admin.metrics.registry.gather(), &mut text) {
        tracing::error!(%error, "the metrics cannot be written");
        return Problem::internal().into_response();
    }
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, kind)], text).into_response()
}
