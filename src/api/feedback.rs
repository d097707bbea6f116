//! What users say about the product.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::extract::{IdempotencyKey, Json};
use super::idempotency::{Created, Once, derived_id, fingerprint, once};
use super::problem::Problem;
use super::types::Time;
use super::{Api, Caller};
use crate::store::StoreError;
use crate::store::feedback::{self, Feedback};

const MAX_MESSAGE_CHARS: usize = 4_000;
const HOUR_US: u64 = 3600 * 1_000_000;
/// Of one user, in an hour.
const PER_HOUR: i64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Category {
    Bug,
    Idea,
    Praise,
    Billing,
    Other,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewFeedback {
    message: String,
    #[serde(default)]
    category: Option<Category>,
    /// 1 to 5.
    #[serde(default)]
    rating: Option<u8>,
    /// The request that it is about.
    #[serde(default)]
    request_id: Option<Uuid>,
}

#[derive(Debug, Serialize)]
struct Kept {
    id: String,
    created_at: Time,
}

impl Category {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Category::Bug => "bug",
            Category::Idea => "idea",
            Category::Praise => "praise",
            Category::Billing => "billing",
            Category::Other => "other",
        }
    }
}

/// Lines are kept; other control characters are no text.
fn checked(message: &str) -> Result<&str, Problem> {
    let message = message.trim();
    let strange = |char: char| char.is_control() && char != '\n' && char != '\t' && char != '\r';
    if message.is_empty() || message.chars().count() > MAX_MESSAGE_CHARS || message.chars().any(strange) {
        return Err(Problem::bad_request(format!(
            "a message has 1 to {MAX_MESSAGE_CHARS} characters and no control characters but line breaks"
        )));
    }
    Ok(message)
}

pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<NewFeedback>,
) -> Result<Response, Problem> {
    let message = checked(&body.message)?.to_owned();
    if body.rating.is_some_and(|rating| !(1..=5).contains(&rating)) {
        return Err(Problem::bad_request("a rating is 1 to 5"));
    }
    let category = body.category.unwrap_or(Category::Other).name();
    let request_id = body.request_id.map(|id| id.to_string());
    let user = principal.account.to_string();
    let rating = body.rating.map(i64::from);
    let print = fingerprint(&[
        &message,
        category,
        &rating.map(|rating| rating.to_string()).unwrap_or_default(),
        request_id.as_deref().unwrap_or_default(),
    ]);
    // The same for the same key: a repetition whose answer was lost is kept once.
    let id = key.as_ref().map_or_else(Uuid::now_v7, |key| derived_id(&["feedback", &user, key])).to_string();
    let request = Once { scope: format!("feedback {user}"), key, fingerprint: print };
    let (store, tasks) = (api.store.clone(), api.tasks.clone());
    let work = async move {
        let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0);
        let kept = Kept { id: id.clone(), created_at: Time::from_micros(now) };
        let new = Feedback { id, user, category: category.to_owned(), rating, message, request_id, at: now };
        match feedback::add(&api.store, new, now.saturating_sub(HOUR_US), PER_HOUR).await {
            Ok(true) | Err(StoreError::Conflict(_)) => Created::new(StatusCode::CREATED, &kept),
            Ok(false) => {
                let detail = format!("at most {PER_HOUR} in an hour");
                let title = "Too much feedback at once";
                Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-much-feedback", title, detail).retry_after(600))
            }
            Err(error) => Err(error.into()),
        }
    };
    once(store, &tasks, request, work).await
}
