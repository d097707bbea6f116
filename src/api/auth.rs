//! What the issuer of tokens tells about users.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use super::Api;
use super::extract::{json, unreadable};
use super::problem::Problem;
use crate::identity::{svix, told};

#[derive(Serialize)]
struct Received {
    received: bool,
}

/// An event of Stack Auth's, through Svix: verified, stored, answered. It is worked off at once, or later; Svix sends it
/// again where this fails.
pub(crate) async fn webhook(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let count = |result: &str| api.metrics.auth_webhooks.with_label_values(&[result]).inc();
    if !api.identity.inbox().verifier.is_set_up() {
        return Err(Problem::unavailable("no secret of the endpoint is set up"));
    }
    let body = body.map_err(unreadable)?;
    let genuine =
        api.identity.inbox().verifier.verify(&headers, &body, now_s()).map_err(|error: svix::SvixError| {
            count(error.name());
            Problem::bad_request(error.to_string())
        })?;
    let event = told::read(&genuine, &body).map_err(|error| {
        count("unreadable");
        Problem::bad_request(error)
    })?;
    let id = event.id.clone();
    match api.store.insert_auth_event(event).await {
        Ok(fresh) => {
            count(if fresh { "stored" } else { "duplicate" });
            api.identity.inbox().wake.notify_one();
            Ok(json(StatusCode::OK, &Received { received: true }))
        }
        Err(error) => {
            count("failed");
            tracing::error!(event = id, %error, "an event about a user could not be stored; it will be sent again");
            Err(Problem::unavailable("the event could not be stored"))
        }
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
