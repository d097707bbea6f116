//! Every refusal, in the form of the protocol that the client speaks. The one place that maps errors to HTTP.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::json;

use super::body::BodyFault;
use super::headers::{self, X_SHOULD_RETRY};
use super::meter;
use super::outcome::Outcome;
use super::upstream::Fault;
use crate::config::RouteKind;
use crate::credits::Credits;
use crate::identity::budget::BudgetRefusal;
use crate::identity::principal::AuthError;
use crate::ledger::{Limit, hold};

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no route")]
    NoRoute,
    #[error("method not allowed")]
    Method,
    #[error("unclear path")]
    Path,
    #[error("too many connection options")]
    Connection,
    #[error("both Content-Length and Transfer-Encoding")]
    Framing,
    #[error("unknown expectation")]
    Expectation,
    #[error("upgrades are not passed here")]
    Upgrade,
    #[error("shed")]
    Shed(Duration),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Endpoint(#[from] meter::Refused),
    #[error("this path has no price")]
    Unpriced,
    #[error("this model has no price")]
    UnknownModel,
    #[error("the key is not for this model")]
    ModelNotAllowed,
    /// What the key's own budget said to a share of so many credits.
    #[error("the key's budget refused: {refusal:?}")]
    Budget { refusal: BudgetRefusal, asked: Credits },
    #[error(transparent)]
    Request(#[from] meter::BadRequest),
    #[error(transparent)]
    Body(#[from] BodyFault),
    /// What the ledger said to a hold of so many credits.
    #[error("the ledger refused: {refusal:?}")]
    Ledger { refusal: hold::Refusal, asked: Credits },
    #[error("the upstream failed: {0}")]
    Upstream(#[from] Fault),
    #[error("no upstream is well")]
    UpstreamsDown(Duration),
    #[error("the upstream does not accept our credentials")]
    UpstreamKey,
    #[error("the upstream compresses its answer although asked not to")]
    UpstreamEncoding,
    #[error("the upstream's answer broke off")]
    UpstreamCut,
    #[error("internal error")]
    Internal,
    /// One whose request was forwarded: it was settled, and counted, already.
    #[error(transparent)]
    Settled(Box<Refusal>),
}

/// A refusal as people and programs read it.
struct View {
    status: StatusCode,
    outcome: Outcome,
    /// OpenAI's `type` and `code`.
    openai: (&'static str, &'static str),
    message: Cow<'static, str>,
    param: Option<&'static str>,
    retry: Retry,
}

/// What is said about trying again.
#[derive(Clone, Copy)]
enum Retry {
    Never,
    After(Duration),
    /// Nothing is said.
    Silent,
}

const SOON: Retry = Retry::After(Duration::from_secs(1));

impl Refusal {
    pub(super) fn outcome(&self) -> Outcome {
        self.view().outcome
    }

    pub(super) fn status(&self) -> StatusCode {
        self.view().status
    }

    /// Whether its outcome was counted when its fare was settled.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self, Refusal::Settled(_))
    }

    /// Whether the client's connection can carry another request.
    fn closes(&self) -> bool {
        match self {
            Refusal::Framing | Refusal::Body(_) => true,
            Refusal::Settled(refusal) => refusal.closes(),
            _ => false,
        }
    }

    fn view(&self) -> View {
        match self {
            Refusal::NoRoute => bad(StatusCode::NOT_FOUND, Outcome::NotFound, "not_found", "nothing is served here"),
            Refusal::Method => bad(
                StatusCode::METHOD_NOT_ALLOWED,
                Outcome::BadRequest,
                "method_not_allowed",
                "this method is not served",
            ),
            Refusal::Path => bad_request("invalid_path", "the path can be read in more than one way"),
            Refusal::Connection => bad_request("invalid_header", "the Connection header lists too many options"),
            Refusal::Framing => bad_request("invalid_framing", "both Content-Length and Transfer-Encoding were sent"),
            Refusal::Expectation => bad(
                StatusCode::EXPECTATION_FAILED,
                Outcome::BadRequest,
                "expectation_failed",
                "of all expectations, only 100-continue is met",
            ),
            Refusal::Upgrade => bad_request("upgrade_refused", "protocol upgrades are not passed on this route"),
            Refusal::Shed(wait) => View {
                status: StatusCode::TOO_MANY_REQUESTS,
                outcome: Outcome::Shed,
                openai: ("requests", "rate_limit_exceeded"),
                message: "too many requests for this server; it sheds what it cannot carry".into(),
                param: None,
                retry: Retry::After(*wait),
            },
            Refusal::Auth(error) => auth(*error),
            Refusal::Endpoint(refused) => {
                bad(StatusCode::FORBIDDEN, Outcome::Forbidden, "endpoint_refused", refused.to_string())
            }
            Refusal::Unpriced => bad(
                StatusCode::FORBIDDEN,
                Outcome::Forbidden,
                "endpoint_not_priced",
                "this path has no price here, so it is not served",
            ),
            Refusal::UnknownModel => View {
                param: Some("model"),
                ..bad_request("model_not_priced", "this model has no price here, so it is not served")
            },
            Refusal::ModelNotAllowed => View {
                param: Some("model"),
                ..bad(
                    StatusCode::FORBIDDEN,
                    Outcome::Forbidden,
                    "model_not_allowed",
                    "this API key may not ask for this model",
                )
            },
            Refusal::Budget { refusal: BudgetRefusal::Unavailable, .. } => auth(AuthError::Unavailable),
            Refusal::Budget { refusal: BudgetRefusal::Exhausted { left, held }, asked } => {
                budget_exhausted(*left, *held, *asked)
            }
            Refusal::Request(error) => {
                View { param: error.param, ..bad_request("invalid_request", error.message.clone()) }
            }
            Refusal::Body(BodyFault::TooLarge) => bad(
                StatusCode::PAYLOAD_TOO_LARGE,
                Outcome::TooLarge,
                "request_too_large",
                "the request body is over the limit",
            ),
            Refusal::Body(BodyFault::Timeout) => bad(
                StatusCode::REQUEST_TIMEOUT,
                Outcome::BodyTimeout,
                "request_timeout",
                "the request body did not come in time",
            ),
            Refusal::Body(BodyFault::NoRoom) => View {
                openai: ("server_error", "server_busy"),
                retry: SOON,
                ..bad(
                    StatusCode::SERVICE_UNAVAILABLE,
                    Outcome::Shed,
                    "server_busy",
                    "too many large requests at once; this one can be sent again",
                )
            },
            Refusal::Body(BodyFault::Broken) => bad_request("invalid_body", "the request body broke off"),
            Refusal::Ledger { refusal, asked } => ledger(*refusal, *asked),
            Refusal::Upstream(Fault::ConnectTimeout | Fault::FirstByteTimeout) => upstream(
                StatusCode::GATEWAY_TIMEOUT,
                Outcome::UpstreamTimeout,
                "upstream_timeout",
                "the upstream did not answer in time",
            ),
            Refusal::Upstream(Fault::Full) => View { retry: SOON, ..down("the gateway has no connection left") },
            Refusal::Upstream(_) => upstream(
                StatusCode::BAD_GATEWAY,
                Outcome::UpstreamUnavailable,
                "upstream_unreachable",
                "the upstream could not be reached or did not answer properly",
            ),
            Refusal::UpstreamsDown(wait) => {
                View { retry: Retry::After(*wait), ..down("every upstream of this route failed lately") }
            }
            Refusal::UpstreamKey => upstream(
                StatusCode::BAD_GATEWAY,
                Outcome::UpstreamRefusedKey,
                "upstream_refused",
                "the upstream does not accept this gateway; its operator has to look into it",
            ),
            Refusal::UpstreamEncoding => upstream(
                StatusCode::BAD_GATEWAY,
                Outcome::UpstreamUnavailable,
                "upstream_encoding",
                "the upstream compresses its answers, which cannot be metered; its operator has to look into it",
            ),
            Refusal::UpstreamCut => upstream(
                StatusCode::BAD_GATEWAY,
                Outcome::UpstreamCut,
                "upstream_broke_off",
                "the upstream broke off in the middle of its answer",
            ),
            Refusal::Internal => upstream(
                StatusCode::INTERNAL_SERVER_ERROR,
                Outcome::Internal,
                "internal_error",
                "something went wrong in the gateway",
            ),
            Refusal::Settled(refusal) => refusal.view(),
        }
    }

    /// As an answer. `request_id` is told in header and, where the protocol has a place for it, in the body.
    pub(super) fn answer(&self, kind: RouteKind, anthropic: bool, request_id: HeaderValue) -> Response<Bytes> {
        let view = self.view();
        let form = if anthropic { RouteKind::Anthropic } else { kind };
        let text = match form {
            RouteKind::Openai => openai(&view),
            RouteKind::Anthropic => anthropic_body(&view, request_id.to_str().unwrap_or_default()),
            RouteKind::Http => problem(&view, request_id.to_str().unwrap_or_default()),
        };
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = view.status;
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type(form)));
        match view.retry {
            Retry::Never => {
                fields.insert(X_SHOULD_RETRY.clone(), HeaderValue::from_static("false"));
            }
            Retry::After(wait) => {
                let seconds = wait.as_millis().div_ceil(1_000).max(1) as u64;
                fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Retry::Silent => {}
        }
        if self.closes() {
            fields.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        if view.status == StatusCode::METHOD_NOT_ALLOWED {
            fields
                .insert(http::header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        if view.status == StatusCode::UNAUTHORIZED {
            fields.insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        headers::annotate(fields, form, request_id, None, None);
        response
    }
}

fn content_type(kind: RouteKind) -> &'static str {
    match kind {
        RouteKind::Http => "application/problem+json",
        RouteKind::Openai | RouteKind::Anthropic => "application/json",
    }
}

fn openai(view: &View) -> String {
    let (kind, code) = view.openai;
    json!({"error": {"message": view.message, "type": kind, "param": view.param, "code": code}}).to_string()
}

fn anthropic_body(view: &View, request_id: &str) -> String {
    let kind = anthropic_type(view.status);
    json!({"type": "error", "error": {"type": kind, "message": view.message}, "request_id": request_id}).to_string()
}

fn problem(view: &View, request_id: &str) -> String {
    json!({
        "type": "about:blank",
        "title": view.status.canonical_reason(),
        "status": view.status.as_u16(),
        "detail": view.message,
        "code": view.openai.1,
        "request_id": request_id,
    })
    .to_string()
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        status if status >= 500 => "api_error",
        _ => "invalid_request_error",
    }
}

fn bad(status: StatusCode, outcome: Outcome, code: &'static str, message: impl Into<Cow<'static, str>>) -> View {
    View {
        status,
        outcome,
        openai: ("invalid_request_error", code),
        message: message.into(),
        param: None,
        retry: Retry::Never,
    }
}

fn bad_request(code: &'static str, message: impl Into<Cow<'static, str>>) -> View {
    bad(StatusCode::BAD_REQUEST, Outcome::BadRequest, code, message)
}

fn upstream(status: StatusCode, outcome: Outcome, code: &'static str, message: &'static str) -> View {
    View { openai: ("server_error", code), retry: Retry::Silent, ..bad(status, outcome, code, message) }
}

fn down(message: &'static str) -> View {
    upstream(StatusCode::SERVICE_UNAVAILABLE, Outcome::UpstreamUnavailable, "upstream_unavailable", message)
}

fn auth(error: AuthError) -> View {
    let unauthorized = |code| bad(StatusCode::UNAUTHORIZED, Outcome::Unauthorized, code, error.to_string());
    match error {
        AuthError::Missing => unauthorized("missing_api_key"),
        AuthError::Invalid => unauthorized("invalid_api_key"),
        AuthError::Ambiguous => unauthorized("ambiguous_credentials"),
        AuthError::Revoked => unauthorized("revoked_api_key"),
        AuthError::Expired => unauthorized("expired_api_key"),
        AuthError::Token(_) => unauthorized("invalid_access_token"),
        AuthError::Unproven => bad(StatusCode::FORBIDDEN, Outcome::Forbidden, "user_not_verified", error.to_string()),
        AuthError::NoUser | AuthError::UnknownUser => {
            View { param: Some("x-faregate-user"), ..bad_request("invalid_user", error.to_string()) }
        }
        AuthError::Closed => bad(StatusCode::FORBIDDEN, Outcome::Forbidden, "account_closed", error.to_string()),
        AuthError::Throttled { retry_after_s } => View {
            openai: ("requests", "rate_limit_exceeded"),
            retry: Retry::After(Duration::from_secs(retry_after_s.into())),
            ..bad(StatusCode::TOO_MANY_REQUESTS, Outcome::RateLimited, "rate_limit_exceeded", error.to_string())
        },
        AuthError::Unavailable => View {
            openai: ("server_error", "keys_unavailable"),
            retry: SOON,
            ..bad(StatusCode::SERVICE_UNAVAILABLE, Outcome::LedgerUnavailable, "keys_unavailable", error.to_string())
        },
    }
}

fn ledger(refusal: hold::Refusal, asked: Credits) -> View {
    let unavailable = |message: &'static str| View {
        openai: ("server_error", "ledger_unavailable"),
        retry: SOON,
        ..bad(StatusCode::SERVICE_UNAVAILABLE, Outcome::LedgerUnavailable, "ledger_unavailable", message)
    };
    match refusal {
        hold::Refusal::Insufficient { available, held } => insufficient(available, held, asked),
        hold::Refusal::Limited { limit, retry_after_us } => limited(limit, retry_after_us),
        hold::Refusal::Frozen => {
            bad(StatusCode::FORBIDDEN, Outcome::Forbidden, "account_frozen", "the account is frozen")
        }
        hold::Refusal::UnknownAccount => {
            bad(StatusCode::FORBIDDEN, Outcome::Forbidden, "account_unknown", "the account does not exist")
        }
        hold::Refusal::TooLarge => bad_request("request_too_expensive", "no account can hold what this may cost"),
        hold::Refusal::Unreadable => {
            View { retry: Retry::Never, ..unavailable("the account cannot be read; its operator has to look into it") }
        }
        hold::Refusal::Backlogged => unavailable("credits cannot be reserved right now: too much waits to be recorded"),
        hold::Refusal::Unavailable => unavailable("credits cannot be reserved right now"),
    }
}

fn insufficient(available: Credits, held: Credits, asked: Credits) -> View {
    let short = View {
        status: StatusCode::PAYMENT_REQUIRED,
        outcome: Outcome::InsufficientCredits,
        openai: ("insufficient_quota", "insufficient_credits"),
        message: format!("not enough credits: this may cost {asked}, and {available} are available").into(),
        param: None,
        retry: Retry::Never,
    };
    if available.saturating_add(held) < asked {
        return short;
    }
    // Requests in flight give back what they do not use.
    let message = format!("{}; {held} more are held by requests in flight", short.message);
    View { message: message.into(), retry: SOON, ..short }
}

fn budget_exhausted(left: Credits, held: Credits, asked: Credits) -> View {
    View {
        status: StatusCode::PAYMENT_REQUIRED,
        outcome: Outcome::InsufficientCredits,
        openai: ("insufficient_quota", "key_budget_exhausted"),
        message: format!("the API key's own budget is used up: this may cost {asked}, and {left} of it are left")
            .into(),
        param: None,
        // Requests in flight give back what they do not use.
        retry: if left.saturating_add(held) < asked { Retry::Never } else { SOON },
    }
}

fn limited(limit: Limit, retry_after_us: Option<u64>) -> View {
    let (kind, name) = match limit {
        Limit::Requests => ("requests", "requests per minute"),
        Limit::Tokens => ("tokens", "tokens per minute"),
        Limit::Concurrency => ("requests", "concurrent requests"),
    };
    let (message, retry) = match retry_after_us {
        Some(wait) => (format!("the plan's limit of {name} is reached"), Retry::After(Duration::from_micros(wait))),
        None => (format!("this request is larger than the plan's limit of {name} could ever admit"), Retry::Never),
    };
    View {
        status: StatusCode::TOO_MANY_REQUESTS,
        outcome: Outcome::RateLimited,
        openai: (kind, "rate_limit_exceeded"),
        message: message.into(),
        param: None,
        retry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn answer(refusal: Refusal, kind: RouteKind) -> (http::response::Parts, Value) {
        let response = refusal.answer(kind, false, HeaderValue::from_static("the-id"));
        let (parts, bytes) = response.into_parts();
        (parts, serde_json::from_slice(&bytes).unwrap())
    }

    fn broke(available: u32, held: u32) -> Refusal {
        let refusal = hold::Refusal::Insufficient { available: Credits::whole(available), held: Credits::whole(held) };
        Refusal::Ledger { refusal, asked: Credits::whole(5) }
    }

    #[test]
    fn out_of_credits_in_every_protocol() {
        let (parts, body) = answer(broke(1, 0), RouteKind::Openai);
        assert_eq!(parts.status, 402);
        assert_eq!(body["error"]["type"], "insufficient_quota");
        assert_eq!(body["error"]["code"], "insufficient_credits");
        assert_eq!(body["error"]["param"], Value::Null);
        assert_eq!(parts.headers["x-should-retry"], "false");
        assert!(!parts.headers.contains_key("retry-after"));
        let (parts, body) = answer(broke(1, 0), RouteKind::Anthropic);
        assert_eq!(body["type"], "error");
        assert_eq!(body["error"]["type"], "billing_error");
        assert_eq!(body["request_id"], "the-id");
        assert_eq!(parts.headers["request-id"], "the-id");
        let (parts, body) = answer(broke(1, 0), RouteKind::Http);
        assert_eq!(parts.headers["content-type"], "application/problem+json");
        assert_eq!(body["status"], 402);
        assert_eq!(body["title"], "Payment Required");
    }

    #[test]
    fn holds_in_flight_make_a_402_worth_retrying() {
        let (parts, _) = answer(broke(1, 4), RouteKind::Openai);
        assert_eq!(parts.status, 402);
        assert_eq!(parts.headers["retry-after"], "1");
        assert!(!parts.headers.contains_key("x-should-retry"));
    }

    #[test]
    fn limits_say_when_to_come_back_unless_never() {
        let limited = |retry_after_us| {
            let refusal = hold::Refusal::Limited { limit: Limit::Tokens, retry_after_us };
            answer(Refusal::Ledger { refusal, asked: Credits::ZERO }, RouteKind::Openai)
        };
        let (parts, body) = limited(Some(1_200_000));
        assert_eq!(parts.status, 429);
        assert_eq!(parts.headers["retry-after"], "2");
        assert_eq!(body["error"]["type"], "tokens");
        assert!(body["error"]["message"].as_str().unwrap().contains("tokens per minute"));
        let (parts, _) = limited(None);
        assert_eq!(parts.headers["x-should-retry"], "false");
        assert!(!parts.headers.contains_key("retry-after"));
    }

    #[test]
    fn the_ledger_out_of_reach_is_503_with_retry_after() {
        let refusal = Refusal::Ledger { refusal: hold::Refusal::Unavailable, asked: Credits::ZERO };
        let (parts, body) = answer(refusal, RouteKind::Anthropic);
        assert_eq!(parts.status, 503);
        assert_eq!(parts.headers["retry-after"], "1");
        assert_eq!(body["error"]["type"], "overloaded_error");
    }
}
