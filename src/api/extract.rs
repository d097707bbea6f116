//! What handlers ask for: a JSON body, a page, an Idempotency-Key; each refused with a problem that names what is wrong.

use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use crate::store::PageRequest;

/// Items of a page when the caller does not say.
const DEFAULT_PAGE: u32 = 50;
/// Items of a page at most.
const MAX_PAGE: u32 = 500;
/// The cursor of a report names a row by all its dimensions.
const MAX_CURSOR_CHARS: usize = 2_048;
const MAX_IDEMPOTENCY_KEY_CHARS: usize = 255;

/// A JSON body, with its bounds and its fields checked.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Json<T>, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-json",
                "The body must be JSON",
                "send it with content-type: application/json",
            ));
        }
        let body = Bytes::from_request(request, state).await.map_err(unreadable)?;
        // serde would take an array of the fields' values in order, too.
        if body.trim_ascii_start().first().is_some_and(|first| *first == b'[') {
            return Err(Problem::bad_request("the body must be an object, not an array, at line 1 column 1"));
        }
        // serde_json says line and column, and names an unknown field.
        serde_json::from_slice(&body).map(Json).map_err(|error| Problem::bad_request(error.to_string()))
    }
}

/// A successful answer as JSON.
pub fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => json_text(status, text),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written");
            Problem::internal().into_response()
        }
    }
}

pub(crate) fn json_text(status: StatusCode, text: String) -> Response {
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

/// `limit` and `cursor` of a paged list.
pub struct Paging(pub PageRequest);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PagingQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Paging {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Paging, Problem> {
        let Query(query) =
            Query::<PagingQuery>::try_from_uri(&parts.uri).map_err(|error| Problem::bad_request(error.body_text()))?;
        checked_page(query.limit, query.cursor).map(Paging)
    }
}

/// A page as the store is asked for it, if that is one.
pub(crate) fn checked_page(limit: Option<u32>, cursor: Option<String>) -> Result<PageRequest, Problem> {
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::bad_request(format!("limit is 1 to {MAX_PAGE}")));
    }
    let allowed = |cursor: &String| cursor.len() <= MAX_CURSOR_CHARS && cursor.bytes().all(|b| b.is_ascii_graphic());
    if cursor.as_ref().is_some_and(|cursor| !allowed(cursor)) {
        return Err(Problem::bad_request("a cursor is what an earlier page gave as next"));
    }
    Ok(PageRequest { limit, cursor: cursor.filter(|cursor| !cursor.is_empty()) })
}

/// The caller's Idempotency-Key, if there is one.
#[derive(Debug, Clone)]
pub struct IdempotencyKey(pub Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<IdempotencyKey, Problem> {
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else { return Ok(IdempotencyKey(None)) };
        let key = value.to_str().ok().filter(|key| {
            (1..=MAX_IDEMPOTENCY_KEY_CHARS).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
        });
        match (key, values.next()) {
            (Some(key), None) => Ok(IdempotencyKey(Some(key.to_owned()))),
            _ => Err(Problem::bad_request(format!(
                "send one Idempotency-Key of 1 to {MAX_IDEMPOTENCY_KEY_CHARS} visible ASCII characters"
            ))),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(value)) = headers.get(CONTENT_TYPE).map(HeaderValue::to_str) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

pub(crate) fn unreadable(rejection: BytesRejection) -> Problem {
    match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The body is too large",
            "send less in one request",
        ),
        _ => Problem::bad_request("the body broke off"),
    }
}
