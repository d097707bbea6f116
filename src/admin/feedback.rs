//! What users said.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};

use super::Admin;
use crate::api::extract::{checked_page, json};
use crate::api::feedback::Category;
use crate::api::problem::Problem;
use crate::api::types::{List, Time};
use crate::ledger::AccountId;
use crate::store::feedback::{self, Feedback, FeedbackFilter};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    user: Option<AccountId>,
    category: Option<Category>,
    limit: Option<u32>,
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct FeedbackView {
    id: String,
    user_id: String,
    category: String,
    rating: Option<i64>,
    message: String,
    request_id: Option<String>,
    created_at: Time,
}

/// Newest first.
pub(super) async fn list(State(admin): State<Arc<Admin>>, uri: Uri) -> Result<Response, Problem> {
    let Query(asked) = Query::<Asked>::try_from_uri(&uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    let category = asked.category.map(|category| category.name().to_owned());
    let filter = FeedbackFilter { user: asked.user, category };
    let page = feedback::list(&admin.store, filter, checked_page(asked.limit, asked.cursor)?).await?;
    let view = |row: Feedback| FeedbackView {
        id: row.id,
        user_id: row.user,
        category: row.category,
        rating: row.rating,
        message: row.message,
        request_id: row.request_id,
        created_at: Time::from_micros(row.at),
    };
    Ok(json(StatusCode::OK, &List { data: page.data.into_iter().map(view).collect(), next: page.next }))
}
