//! What a user was told: read, and marked as read.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::extract::{Json, checked_page, json};
use super::problem::Problem;
use super::types::{List, Time};
use super::{Api, Caller};
use crate::store::notifications::{MARK_MAX, Marked, NotificationRow};

/// A notification as users see it, in lists and in events.
#[derive(Debug, Serialize)]
pub struct Notification {
    /// Of this user, rising.
    pub id: u64,
    pub kind: String,
    pub data: Option<Box<RawValue>>,
    pub created_at: Time,
    pub read_at: Option<Time>,
}

impl From<NotificationRow> for Notification {
    fn from(row: NotificationRow) -> Notification {
        Notification {
            id: row.number,
            kind: row.kind,
            data: RawValue::from_string(row.data).ok(),
            created_at: Time::from_micros(row.created_at),
            read_at: row.read_at.map(Time::from_micros),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    limit: Option<u32>,
    cursor: Option<String>,
    #[serde(default)]
    unread: bool,
}

pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    let Query(asked) = Query::<Asked>::try_from_uri(&uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    let page = checked_page(asked.limit, asked.cursor)?;
    let page = api.store.notifications(&principal.account, asked.unread, page).await?;
    let data: Vec<Notification> = page.data.into_iter().map(Notification::from).collect();
    Ok(json(StatusCode::OK, &List { data, next: page.next }))
}

/// Which notifications are read: `ids`, or `all`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    #[serde(default)]
    ids: Option<Vec<u64>>,
    #[serde(default)]
    all: bool,
    read: bool,
}

#[derive(Serialize)]
struct Updated {
    updated: u64,
}

pub(crate) async fn mark(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    Json(body): Json<Mark>,
) -> Result<Response, Problem> {
    if !body.read {
        return Err(Problem::bad_request("read is true: what was read stays so"));
    }
    let which = match (body.ids, body.all) {
        (None, true) => Marked::All,
        (Some(ids), false) if ids.len() <= MARK_MAX => Marked::Numbers(ids),
        (Some(_), false) => return Err(Problem::bad_request(format!("name at most {MARK_MAX} ids at once"))),
        _ => return Err(Problem::bad_request("name ids, or all")),
    };
    let updated = api.store.mark_read(&principal.account, which).await?;
    Ok(json(StatusCode::OK, &Updated { updated }))
}
