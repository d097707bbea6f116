//! What every answer of the HTTP APIs goes through: a request id, a time limit, and a net under panics.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue, StatusCode};
use tracing::Instrument;
use uuid::Uuid;

use super::problem::Problem;
use crate::telemetry::Metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_CLIENT_ID_CHARS: usize = 128;

/// Ours; in the extensions of every request. Whoever hands a request in may have set it.
#[derive(Debug, Clone, Copy)]
pub struct RequestId(pub Uuid);

/// What the client called its request, if it did.
#[derive(Debug, Clone)]
pub struct ClientRequestId(pub Option<String>);

#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) timeout: Duration,
    pub(crate) metrics: Metrics,
    /// The `route` label under which answers are counted, if they are.
    pub(crate) route: Option<&'static str>,
}

pub(crate) async fn frame(State(frame): State<Frame>, mut request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().copied().unwrap_or_else(|| RequestId(Uuid::now_v7()));
    let client_id = client_id(&request);
    request.extensions_mut().insert(id);
    request.extensions_mut().insert(ClientRequestId(client_id));
    let method = request.method().clone();
    // The route as it is written, without the ids in it.
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let span = tracing::info_span!("api", request_id = %id.0);
    let began = Instant::now();
    let answered = tokio::time::timeout(frame.timeout, AssertUnwindSafe(next.run(request)).catch_unwind());
    let mut response = match answered.instrument(span.clone()).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            frame.metrics.panics.inc();
            span.in_scope(|| tracing::error!("a handler panicked"));
            Problem::internal().into_response()
        }
        Err(_) => Problem::unavailable("it took too long; whether it was done is not known").into_response(),
    };
    if let Some(route) = frame.route {
        frame.metrics.requests.with_label_values(&[route, outcome(response.status())]).inc();
    }
    let (status, latency_ms) = (response.status().as_u16(), began.elapsed().as_millis() as u64);
    // Probes and scrapes come every few seconds.
    if matches!(path.as_deref(), Some("/healthz" | "/readyz" | "/metrics")) {
        tracing::debug!(request_id = %id.0, %method, path, status, latency_ms, "answered");
    } else {
        tracing::info!(request_id = %id.0, %method, path, status, latency_ms, "answered");
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(id.0.to_string()) {
        headers.insert(REQUEST_ID, value);
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// A closed set of labels, in the gateway's words.
fn outcome(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "unauthorized",
        StatusCode::PAYMENT_REQUIRED => "insufficient_credits",
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::PAYLOAD_TOO_LARGE => "too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limited",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        status if status.is_client_error() => "bad_request",
        status if status.is_server_error() => "internal",
        _ => "ok",
    }
}

fn client_id(request: &Request) -> Option<String> {
    let id = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    (!id.is_empty() && id.len() <= MAX_CLIENT_ID_CHARS).then(|| id.to_owned())
}

pub(crate) async fn not_found() -> Problem {
    Problem::not_found("no such path here")
}

pub(crate) async fn method_not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "Not by this method",
        "the allow header names the methods of this path",
    )
}
