//! Errors as RFC 9457 problem details, the one place where this API's errors become HTTP.

use std::borrow::Cow;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use crate::credits::Credits;
use crate::identity::principal::AuthError;
use crate::ledger::{Kept, LedgerError, Micros};
use crate::store::StoreError;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An error as its caller sees it. What is no caller's business is logged where the problem is made.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    /// Names the kind of problem for programs: `urn:faregate:problem:<slug>`.
    slug: &'static str,
    title: &'static str,
    detail: Cow<'static, str>,
    /// As text: an amount must not become a float on the way.
    members: Vec<(&'static str, Box<RawValue>)>,
    retry_after_s: Option<u64>,
}

impl Problem {
    pub fn new(
        status: StatusCode,
        slug: &'static str,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Problem {
        Problem { status, slug, title, detail: detail.into(), members: Vec::new(), retry_after_s: None }
    }

    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", "The request cannot be understood", detail)
    }

    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", detail)
    }

    pub fn conflict(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::CONFLICT, "conflict", "It is there already, or no longer as it was", detail)
    }

    pub fn internal() -> Problem {
        let detail = "the error is in the log under this request's id";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something here is broken", detail)
    }

    pub fn unavailable(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not possible right now", detail).retry_after(1)
    }

    pub fn insufficient(asked: Credits, available: Credits, held: Credits) -> Problem {
        let detail = format!("{asked} credits were asked for, {available} are available");
        let problem = Problem::new(StatusCode::PAYMENT_REQUIRED, "insufficient-credits", "Not enough credits", detail)
            .member("available", &available)
            .member("held", &held);
        // Waiting helps only where holds that will end are all that blocks.
        if asked > available && asked <= available.saturating_add(held) { problem.retry_after(1) } else { problem }
    }

    pub fn frozen() -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "frozen", "The account is frozen", "ask the operator of this service")
    }

    /// The account has as many open holds as it may.
    pub fn too_many_holds(retry_after_us: Option<Micros>) -> Problem {
        let detail = "this account has too many open holds: settle or release some";
        let seconds = retry_after_us.unwrap_or(0).div_ceil(1_000_000).max(1);
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-holds", "Too many open holds", detail)
            .retry_after(seconds)
    }

    pub fn too_many_requests(detail: impl Into<Cow<'static, str>>, wait: Duration) -> Problem {
        let seconds = u64::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX).max(1);
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests", detail).retry_after(seconds)
    }

    pub fn restricted_key() -> Problem {
        Problem::new(
            StatusCode::FORBIDDEN,
            "restricted-key",
            "The key has limits of its own",
            "a key with a budget, an expiry or models is for requests through the gateway; here it may only look",
        )
    }

    pub fn unknown_hold() -> Problem {
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown-hold",
            "There is no such hold",
            "this account has no hold of this id",
        )
    }

    /// The hold was settled, released, or has expired; the members say what came of it.
    pub fn finished(kept: Kept) -> Problem {
        let credits = |micro: i64| Credits::saturating_from_micro(i128::from(micro));
        let finished = |detail| Problem::new(StatusCode::CONFLICT, "finished-hold", "The hold is finished", detail);
        match kept {
            Kept::Charged { charged_micro, .. } => {
                finished("it was settled").member("charged", &credits(charged_micro))
            }
            Kept::Released { .. } => finished("it was released or has expired"),
            Kept::Held { .. } => finished("it is no longer held"),
        }
    }

    pub fn key_reused() -> Problem {
        Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "The Idempotency-Key was used for another request",
            "use a new key for a new request, and the same body with the same key",
        )
    }

    pub fn still_running() -> Problem {
        Problem::new(
            StatusCode::CONFLICT,
            "idempotency-key-in-use",
            "A request with this Idempotency-Key is under way",
            "ask again a little later",
        )
        .retry_after(1)
    }

    /// Adds a member of the problem's own.
    pub fn member(mut self, name: &'static str, value: &impl Serialize) -> Problem {
        if let Ok(value) = serde_json::value::to_raw_value(value) {
            self.members.push((name, value));
        }
        self
    }

    pub fn retry_after(mut self, seconds: u64) -> Problem {
        self.retry_after_s = Some(seconds);
        self
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4 + self.members.len()))?;
        map.serialize_entry("type", &format_args!("urn:faregate:problem:{}", self.slug))?;
        map.serialize_entry("title", self.title)?;
        map.serialize_entry("status", &self.status.as_u16())?;
        map.serialize_entry("detail", &self.detail)?;
        for (name, value) in &self.members {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Plain data into memory: it cannot fail, and an empty body would still carry the status.
        let json = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status, json).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self.retry_after_s {
            Some(seconds) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            None if self.status.is_client_error() => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            None => {}
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Problem {
        let refused = |status, slug, title| Problem::new(status, slug, title, error.to_string());
        match error {
            AuthError::Missing => refused(StatusCode::UNAUTHORIZED, "no-key", "A key is needed"),
            AuthError::Invalid | AuthError::Revoked | AuthError::Expired | AuthError::Ambiguous => {
                refused(StatusCode::UNAUTHORIZED, "invalid-key", "The key does not open")
            }
            AuthError::Token(_) => refused(StatusCode::UNAUTHORIZED, "invalid-token", "The access token does not open"),
            AuthError::Unproven => refused(StatusCode::FORBIDDEN, "unproven", "The user is not verified"),
            AuthError::NoUser => refused(StatusCode::BAD_REQUEST, "no-user", "A user must be named"),
            AuthError::UnknownUser => refused(StatusCode::NOT_FOUND, "unknown-user", "There is no such user"),
            AuthError::Closed => refused(StatusCode::FORBIDDEN, "closed", "The account is closed"),
            AuthError::Throttled { retry_after_s } => {
                Problem::too_many_requests(error.to_string(), Duration::from_secs(retry_after_s.into()))
            }
            AuthError::Unavailable => Problem::unavailable(error.to_string()),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::Conflict(what) => Problem::conflict(what),
            StoreError::NotFound(what) => Problem::not_found(format!("{what} is not known")),
            StoreError::Invalid(what) => Problem::bad_request(format!("{what} is not valid")),
            StoreError::CursorMoved | StoreError::Schema(_) | StoreError::Unavailable(_) => {
                tracing::warn!(%error, "the store does not answer");
                Problem::unavailable("the store is out of reach")
            }
        }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Problem {
        match error {
            LedgerError::Unavailable => Problem::unavailable(
                "the ledger did not answer; whether it was done is not known: ask again with the same Idempotency-Key",
            ),
            LedgerError::Busy => Problem::unavailable("the ledger is busy"),
        }
    }
}
