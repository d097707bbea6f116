//! What speaks against accounts.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};

use super::Admin;
use crate::api::extract::{checked_page, json};
use crate::api::problem::Problem;
use crate::api::types::{List, Time};
use crate::ledger::AccountId;
use crate::store::fraud::{SignalRow, signals};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    user: Option<AccountId>,
    limit: Option<u32>,
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct SignalView {
    id: i64,
    user_id: String,
    signal: String,
    /// What it was seen in: `signup`, a day, a card, an event of Stripe's.
    source: String,
    score: i64,
    reason: String,
    at: Time,
    cleared_at: Option<Time>,
    cleared_by: Option<String>,
}

/// Newest first.
pub(super) async fn list(State(admin): State<Arc<Admin>>, uri: Uri) -> Result<Response, Problem> {
    let Query(asked) = Query::<Asked>::try_from_uri(&uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    let page = signals(&admin.store, asked.user.as_ref(), checked_page(asked.limit, asked.cursor)?).await?;
    let view = |row: SignalRow| SignalView {
        id: row.id,
        user_id: row.user,
        signal: row.signal,
        source: row.source,
        score: row.score,
        reason: row.reason,
        at: Time::from_micros(row.at),
        cleared_at: row.cleared_at.map(Time::from_micros),
        cleared_by: row.cleared_by,
    };
    Ok(json(StatusCode::OK, &List { data: page.data.into_iter().map(view).collect(), next: page.next }))
}
