//! Who did what.

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
use crate::store::reports::{AuditFilter, audit_log};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    user: Option<AccountId>,
    actor: Option<String>,
    action: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct LineView {
    id: i64,
    at: Time,
    actor: String,
    action: String,
    user_id: Option<String>,
    detail: String,
}

/// Newest first.
pub(super) async fn list(State(admin): State<Arc<Admin>>, uri: Uri) -> Result<Response, Problem> {
    let Query(asked) = Query::<Asked>::try_from_uri(&uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    let filter = AuditFilter { user: asked.user, actor: asked.actor, action: asked.action };
    if [&filter.actor, &filter.action].into_iter().flatten().any(|text| text.chars().any(char::is_control)) {
        return Err(Problem::bad_request("actor and action have no control characters"));
    }
    let page = audit_log(&admin.store, filter, checked_page(asked.limit, asked.cursor)?).await?;
    let view = |line: crate::store::reports::AuditLine| LineView {
        id: line.id,
        at: Time::from_micros(line.at),
        actor: line.actor,
        action: line.action,
        user_id: line.user,
        detail: line.detail,
    };
    Ok(json(StatusCode::OK, &List { data: page.data.into_iter().map(view).collect(), next: page.next }))
}
