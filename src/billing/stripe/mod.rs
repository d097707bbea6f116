//! Calls to Stripe: the few we need, typed by the few fields we read.
//!
//! Every call has a time limit and is made again a bounded number of times; one that changes something carries an
//! Idempotency-Key that was stored before it was sent, the same in each attempt. No call is made at start.

pub mod fetch;
pub mod form;
pub mod objects;

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::TokioTimer;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::form::Form;
use crate::config;
use crate::outbound::{Dial, Drivers};
use crate::telemetry::Metrics;

/// Largest answer: a page of a hundred events is far below it.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
const IDLE_CONNECTION: Duration = Duration::from_secs(60);
/// The first wait before another attempt; each next one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const MAX_WAIT: Duration = Duration::from_secs(5);
/// What of Stripe's words is kept.
const MAX_MESSAGE_CHARS: usize = 300;

/// Why a call did not do what it should.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StripeError {
    /// Whether it was done is not known; the same call under the same key finds out.
    #[error("Stripe does not answer: {0}")]
    Unavailable(String),
    /// Stripe broke down over it. Under the same key it would only repeat this answer.
    #[error("Stripe failed with status {0}")]
    Failed(u16),
    #[error("Stripe does not know {0}")]
    NotFound(String),
    /// As it is, it cannot be done.
    #[error("Stripe refused: {message} ({code})")]
    Refused { status: u16, code: String, message: String },
    #[error("Stripe's answer about {0} cannot be read: {1}")]
    Unreadable(String, String),
    /// An object of test mode came back for a live key, or the other way round.
    #[error("{0} is of the other mode")]
    WrongMode(String),
}

impl StripeError {
    /// Whether the same may go well later.
    pub fn passes(&self) -> bool {
        matches!(self, StripeError::Unavailable(_) | StripeError::Failed(_))
    }
}

/// The way to Stripe.
pub struct Client {
    pool: Pool<Dial, Full<Bytes>>,
    base: String,
    authorization: HeaderValue,
    version: HeaderValue,
    livemode: bool,
    timeout: Duration,
    max_retries: u32,
    permits: Semaphore,
    metrics: Metrics,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Client({})", config::places(&self.base))
    }
}

enum Attempt {
    Done(Value),
    Failed(StripeError, Option<Duration>),
}

impl Client {
    /// `None` without a key. Connections are driven by tasks of `tasks` until `stop`.
    pub fn new(
        settings: &config::Stripe,
        metrics: Metrics,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Option<Client> {
        let (key, livemode) = (settings.secret_key.as_ref()?, settings.livemode()?);
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", key.reveal())).ok()?;
        authorization.set_sensitive(true);
        let dial = Dial::new().inspect_err(|error| tracing::error!(%error, "TLS to Stripe cannot be set up")).ok()?;
        let pool = Pool::builder(Drivers { tasks, stop })
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(settings.max_calls)
            .build(dial);
        Some(Client {
            pool,
            base: settings.api_base.trim_end_matches('/').to_owned(),
            authorization,
            version: HeaderValue::try_from(settings.api_version.as_str()).ok()?,
            livemode,
            timeout: Duration::from_millis(settings.timeout_ms),
            max_retries: settings.max_retries,
            permits: Semaphore::new(settings.max_calls),
            metrics,
        })
    }

    pub fn livemode(&self) -> bool {
        self.livemode
    }

    /// Reads something. `path` begins with `/v1/`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &Form) -> Result<T, StripeError> {
        let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.encode()) };
        self.typed(path, self.call(Method::GET, &uri, None, None).await?)
    }

    /// Changes something, under a key that was stored before.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, form: &Form, key: &str) -> Result<T, StripeError> {
        self.typed(path, self.call(Method::POST, path, Some(form), Some(key)).await?)
    }

    /// Asks something that takes a body and changes nothing.
    pub async fn preview<T: DeserializeOwned>(&self, path: &str, form: &Form) -> Result<T, StripeError> {
        self.typed(path, self.call(Method::POST, path, Some(form), None).await?)
    }

    /// Ends something; ending it again changes nothing more.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str, form: &Form) -> Result<T, StripeError> {
        self.typed(path, self.call(Method::DELETE, path, Some(form), None).await?)
    }

    fn typed<T: DeserializeOwned>(&self, path: &str, value: Value) -> Result<T, StripeError> {
        // What has a mode must have ours: of an object, or of each in a list.
        let of_other_mode = |value: &Value| {
            value.get("livemode").and_then(Value::as_bool).is_some_and(|livemode| livemode != self.livemode)
        };
        let listed = value.get("data").and_then(Value::as_array);
        if of_other_mode(&value) || listed.is_some_and(|list| list.iter().any(of_other_mode)) {
            return Err(StripeError::WrongMode(path.to_owned()));
        }
        serde_json::from_value(value).map_err(|error| StripeError::Unreadable(path.to_owned(), error.to_string()))
    }

    async fn call(
        &self,
        method: Method,
        uri: &str,
        form: Option<&Form>,
        key: Option<&str>,
    ) -> Result<Value, StripeError> {
        let closed = |_| StripeError::Unavailable("it is closed".to_owned());
        let _permit = self.permits.acquire().await.map_err(closed)?;
        let mut wait = FIRST_WAIT;
        let mut left = self.max_retries;
        loop {
            match self.attempt(&method, uri, form, key).await {
                Attempt::Done(value) => {
                    self.count("ok");
                    return Ok(value);
                }
                Attempt::Failed(error, again) => {
                    let Some(asked) = again.filter(|_| left > 0) else {
                        self.count(if error.passes() { "failed" } else { "refused" });
                        return Err(error);
                    };
                    left -= 1;
                    // Several replicas that failed together do not come back together.
                    let jitter = Duration::from_millis(u64::from(uuid::Uuid::now_v7().as_bytes()[15]));
                    tokio::time::sleep(asked.max(wait).min(MAX_WAIT) + jitter).await;
                    wait = (wait * 2).min(MAX_WAIT);
                }
            }
        }
    }

    async fn attempt(&self, method: &Method, uri: &str, form: Option<&Form>, key: Option<&str>) -> Attempt {
        let request = match self.request(method, uri, form, key) {
            Ok(request) => request,
            Err(error) => return Attempt::Failed(StripeError::Unreadable(path(uri), error.to_string()), None),
        };
        let exchange = async {
            let response = self.pool.request(request).await.map_err(|error| cause(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
            Ok::<_, String>((head.status, head.headers, body.to_bytes()))
        };
        let late = || format!("no answer within {} ms", self.timeout.as_millis());
        let answered = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(answered) => answered,
            Err(_) => Err(late()),
        };
        match answered {
            Ok((status, headers, body)) => judge(uri, status, &headers, &body),
            // A change without a key is not made twice.
            Err(error) => {
                let again = (*method != Method::POST || key.is_some()).then_some(Duration::ZERO);
                Attempt::Failed(StripeError::Unavailable(error), again)
            }
        }
    }

    fn request(
        &self,
        method: &Method,
        uri: &str,
        form: Option<&Form>,
        key: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut builder = Request::builder()
            .method(method.clone())
            .uri(format!("{}{uri}", self.base))
            .header(AUTHORIZATION, self.authorization.clone())
            .header("stripe-version", self.version.clone())
            .header("user-agent", concat!("faregate/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = key {
            builder = builder.header("idempotency-key", key);
        }
        let body = match form {
            Some(form) => {
                builder = builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                form.encode()
            }
            None => String::new(),
        };
        builder.body(Full::from(body))
    }

    fn count(&self, result: &str) {
        self.metrics.stripe_calls.with_label_values(&[result]).inc();
    }
}

/// The path without what was asked, which may name a person.
fn path(uri: &str) -> String {
    uri.split('?').next().unwrap_or_default().to_owned()
}

fn cause(error: &hyper_util::client::legacy::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    source.unwrap_or_else(|| error.to_string())
}

fn judge(uri: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Attempt {
    if status.is_success() {
        return match serde_json::from_slice(body) {
            Ok(value) => Attempt::Done(value),
            Err(error) => Attempt::Failed(StripeError::Unreadable(path(uri), error.to_string()), None),
        };
    }
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| value.pointer(&format!("/error/{name}")).and_then(Value::as_str).unwrap_or_default();
    let error = match status.as_u16() {
        404 => StripeError::NotFound(path(uri)),
        429 => StripeError::Unavailable("too many calls".to_owned()),
        409 => StripeError::Unavailable("the object is locked by another call".to_owned()),
        status if status >= 500 => StripeError::Failed(status),
        status => StripeError::Refused {
            status,
            code: [text("code"), text("type")].into_iter().find(|code| !code.is_empty()).unwrap_or("error").to_owned(),
            message: text("message").chars().take(MAX_MESSAGE_CHARS).collect(),
        },
    };
    // Stripe says itself whether a retry makes sense, where it knows.
    let said = headers.get("stripe-should-retry").and_then(|value| value.to_str().ok());
    let again = match said {
        Some("true") => true,
        Some("false") => false,
        _ => error.passes(),
    };
    let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    Attempt::Failed(error, again.then(|| after.unwrap_or_default()))
}
