//! The operator's API, on the admin listener: `/admin/v1/…` by bearer token; metrics and health open to whoever gets
//! there (the listener is on loopback unless told otherwise).
//!
//! Under `/admin/v1`: `users` (POST, GET), `users/{id}` (GET), `users/{id}/grants` (POST, GET), `users/{id}/keys` (POST,
//! GET; DELETE `…/{key}`), `users/{id}/freeze` (POST, DELETE), `users/{id}/usage` (GET), and for service keys `keys`
//! (POST, GET; DELETE `…/{key}`, which revokes any key), `usage` (GET); of billing `users/{id}/flag` (DELETE) and `events`
//! (GET `events/{id}`, POST `events/{id}/replay`); `audit` (GET) and `audit/books` (GET; POST `…/repair`); `dead-letters`
//! (GET; GET `…/{id}`); `reports/usage`, `reports/revenue`, `feedback`, `experiments`, `fraud` (GET); `users/{id}/billing-link` (POST) makes a link to the billing page.
//! `/console` is for people.
//!
//! A change is stored first and then pushed into the ledger; when the answer leaves, it is live. Where the ledger does not
//! answer in time the change is stored all the same, the answer says `"pending": true`, and it is pushed until it is live.

mod audit;
mod audit_log;
mod console;
mod dead_letters;
mod events;
mod experiments;
mod feedback;
mod fraud;
mod freeze;
mod grants;
mod health;
mod keys;
mod reports;
mod usage;
mod users;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;

use crate::api::frame;
use crate::api::listed::Listed;
use crate::api::openapi::Document;
use crate::api::problem::Problem;
use crate::bridge::Auditor;
use crate::config::{Config, Secret};
use crate::fraud::Fraud;
use crate::identity::principal::AuthError;
use crate::identity::{Identity, Onboard};
use crate::ledger::{AccountId, SharedLedger};
use crate::limits::{ClientAddress, Failures};
use crate::rollout::Current;
use crate::store::{SharedStore, User};
use crate::telemetry::Metrics;

#[cfg(test)]
pub(crate) use self::console::BUILT as CONSOLE;

/// Who is named in the audit log and as the maker of changes.
const OPERATOR: &str = "operator";
const PREFIX: &str = "/admin/v1";

/// What the operator's API works with.
pub struct AdminParts {
    pub store: SharedStore,
    /// The control plane's way to the ledger.
    pub ledger: SharedLedger,
    /// Makes stored changes live.
    pub pusher: Arc<dyn Onboard>,
    /// Proves the books.
    pub auditor: Arc<Auditor>,
    /// Judges accounts.
    pub fraud: Arc<Fraud>,
    pub identity: Arc<Identity>,
    pub config: Arc<Config>,
    /// The settings as they are now.
    pub current: Current,
    pub metrics: Metrics,
    /// Whoever sends it is the operator.
    pub token: Secret,
    /// Whether a route can take requests: one has an upstream, and the gateway is not draining.
    pub routes_ready: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Owns work that goes on when its caller hangs up; waited for at shutdown.
    pub tasks: TaskTracker,
}

pub(crate) struct Admin {
    store: SharedStore,
    ledger: SharedLedger,
    pusher: Arc<dyn Onboard>,
    auditor: Arc<Auditor>,
    fraud: Arc<Fraud>,
    identity: Arc<Identity>,
    config: Arc<Config>,
    current: Current,
    metrics: Metrics,
    token: [u8; 32],
    failures: Failures,
    console: console::Console,
    routes_ready: Arc<dyn Fn() -> bool + Send + Sync>,
    tasks: TaskTracker,
}

pub fn router(parts: AdminParts) -> Router {
    let frame = frame::Frame {
        timeout: Duration::from_millis(parts.config.api.timeout_ms),
        metrics: parts.metrics.clone(),
        route: None,
    };
    let max_body = parts.config.api.max_body_bytes;
    let admin = Arc::new(Admin {
        console: console::Console::new(&parts.config),
        failures: Failures::new(parts.config.api.failures_per_minute, parts.config.server.ipv6_prefix_bits),
        store: parts.store,
        ledger: parts.ledger,
        pusher: parts.pusher,
        auditor: parts.auditor,
        fraud: parts.fraud,
        identity: parts.identity,
        config: parts.config,
        current: parts.current,
        metrics: parts.metrics,
        token: Sha256::digest(parts.token.reveal().as_bytes()).into(),
        routes_ready: parts.routes_ready,
        tasks: parts.tasks,
    });
    let operator =
        operator_routes().router().fallback(frame::not_found).layer(from_fn_with_state(admin.clone(), operator_only));
    open_routes()
        .router()
        .nest(PREFIX, operator)
        .merge(console::routes())
        .fallback(frame::not_found)
        .method_not_allowed_fallback(frame::method_not_allowed)
        .layer(DefaultBodyLimit::max(max_body))
        .layer(from_fn_with_state(frame, frame::frame))
        .with_state(admin)
}

/// What needs the token, under [`PREFIX`].
fn operator_routes() -> Listed<Arc<Admin>> {
    Listed::new()
        .route("/users", post(users::create).get(users::list))
        .route("/users/{id}", get(users::show))
        .route("/users/{id}/grants", post(grants::create).get(grants::list))
        .route("/users/{id}/keys", post(keys::create).get(keys::list))
        .route("/users/{id}/keys/{key}", delete(keys::revoke))
        .route("/users/{id}/freeze", post(freeze::freeze).delete(freeze::unfreeze))
        .route("/users/{id}/usage", get(users::usage))
        .route("/users/{id}/billing-link", post(console::billing_link))
        .route("/users/{id}/flag", delete(events::unflag))
        .route("/events", get(events::list))
        .route("/events/{id}", get(events::show))
        .route("/events/{id}/replay", post(events::replay))
        .route("/keys", post(keys::create_service).get(keys::list_service))
        .route("/keys/{key}", delete(keys::revoke_service))
        .route("/usage", get(usage::report))
        .route("/reports/usage", get(reports::usage))
        .route("/reports/revenue", get(reports::revenue))
        .route("/feedback", get(feedback::list))
        .route("/experiments", get(experiments::list))
        .route("/fraud", get(fraud::list))
        .route("/audit", get(audit_log::list))
        .route("/audit/books", get(audit::books))
        .route("/audit/books/repair", post(audit::repair))
        .route("/dead-letters", get(dead_letters::list))
        .route("/dead-letters/{id}", get(dead_letters::show))
}

/// What is open to whoever gets to the listener.
fn open_routes() -> Listed<Arc<Admin>> {
    let document = Document::of_operators();
    Listed::new()
        .route("/metrics", get(health::metrics))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/openapi.json", get(async move || document.clone()))
}

/// The paths of the admin listener as they are routed.
pub fn paths() -> Vec<String> {
    operator_routes().paths(PREFIX).chain(open_routes().paths("")).collect()
}

/// Lets in who sends the token, or the console's session; everybody else learns nothing, not even which paths there are.
async fn operator_only(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    match token_of(request.headers()) {
        None => match admin.session(request.uri(), request.headers()).await {
            Ok(Some(_)) => next.run(request).await,
            Ok(None) => Problem::from(AuthError::Missing).into_response(),
            Err(error) => Problem::from(error).into_response(),
        },
        Some(token) => match admin.try_token(token, request.extensions()) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        },
    }
}

fn token_of(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The user that the path names, who exists.
pub(crate) struct Named(pub(crate) User);

impl FromRequestParts<Arc<Admin>> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, admin: &Arc<Admin>) -> Result<Named, Problem> {
        let unknown = || Problem::not_found("there is no such user");
        let Path(params) =
            Path::<Vec<(String, String)>>::from_request_parts(parts, admin).await.map_err(|_| unknown())?;
        let id = params.into_iter().find(|(name, _)| name == "id").map(|(_, id)| id).ok_or_else(unknown)?;
        let id = AccountId::parse(&id).map_err(|_| unknown())?;
        admin.store.user(&id).await?.map(Named).ok_or_else(unknown)
    }
}

impl Admin {
    /// A token as it was sent. Where many wrong ones came from, none is looked at for a while, lest it be guessed.
    fn try_token(&self, token: &str, extensions: &http::Extensions) -> Result<(), Problem> {
        let address = extensions.get::<ClientAddress>().map(|ClientAddress(address)| *address);
        let slow = |wait| Problem::too_many_requests("too many wrong tokens came from this address", wait);
        if let Some(wait) = address.and_then(|address| self.failures.wait(address)) {
            return Err(slow(wait));
        }
        if self.is_token(token) {
            return Ok(());
        }
        tracing::warn!(?address, "a wrong admin token was sent");
        let wait = address.and_then(|address| self.failures.count(address));
        Err(wait.map_or_else(|| Problem::from(AuthError::Invalid), slow))
    }

    /// Makes an account's stored changes live. Whether some are still on their way.
    async fn pending(&self, account: &AccountId) -> bool {
        let wait = Duration::from_millis(self.config.ledger.reserve_timeout_ms);
        !tokio::time::timeout(wait, self.pusher.push(account)).await.unwrap_or(false)
    }

    /// Notes what the operator did. What is done stays done where it cannot be noted, and the log says so.
    async fn audit(&self, action: &str, account: Option<&AccountId>, detail: &str) {
        if let Err(error) = self.store.audit(OPERATOR, action, account, detail).await {
            tracing::error!(%error, action, detail, "an operator's action could not be written to the audit log");
        }
    }
}
