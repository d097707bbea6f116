//! The control plane: what users and the product's backend ask, on the main listener.

pub(crate) mod auth;
pub mod billing;
pub mod cors;
pub mod credits;
pub mod events;
mod experiments;
pub mod extract;
pub(crate) mod feedback;
pub mod frame;
pub mod idempotency;
pub(crate) mod keys;
pub(crate) mod links;
pub(crate) mod listed;
pub mod notifications;
pub mod openapi;
pub mod problem;
mod rate;
pub(crate) mod reports;
pub mod subscription;
mod topup;
pub mod types;
pub mod usage;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post};
use http::request::Parts;
use http::{HeaderMap, Method};
use tokio_util::task::TaskTracker;

use self::listed::Listed;
use self::problem::Problem;
use crate::billing::Billing;
use crate::billing::plans::Catalog;
use crate::config::Config;
use crate::cors::Origins;
use crate::identity::Identity;
use crate::identity::principal::{AuthError, SharedPrincipal};
use crate::ledger::{AccountId, Act, Answer, Op, SharedLedger};
use crate::notify::hub::Hub;
use crate::rollout::Current;
use crate::store::SharedStore;
use crate::telemetry::Metrics;

/// What the API works with.
pub struct ApiParts {
    pub store: SharedStore,
    /// The control plane's way to the ledger.
    pub ledger: SharedLedger,
    pub identity: Arc<Identity>,
    pub config: Arc<Config>,
    /// The settings as they are now.
    pub current: Current,
    pub metrics: Metrics,
    /// `None` without a key of Stripe's.
    pub billing: Option<Arc<Billing>>,
    pub hub: Arc<Hub>,
    /// Owns work that goes on when its caller hangs up; waited for at shutdown.
    pub tasks: TaskTracker,
}

pub(crate) struct Api {
    store: SharedStore,
    ledger: SharedLedger,
    identity: Arc<Identity>,
    config: Arc<Config>,
    current: Current,
    metrics: Metrics,
    catalog: Catalog,
    billing: Option<Arc<Billing>>,
    hub: Arc<Hub>,
    tasks: TaskTracker,
    balances: credits::Balances,
    rates: rate::Rates,
}

/// The API under `config.api.prefix`, with a problem for every path that is not there.
pub fn router(parts: ApiParts) -> Router {
    let ApiParts { store, ledger, identity, config, current, metrics, billing, hub, tasks } = parts;
    let cors = Arc::new(Origins::new(&config.cors));
    let frame = frame::Frame {
        timeout: Duration::from_millis(config.api.timeout_ms),
        metrics: metrics.clone(),
        route: Some("api"),
    };
    let (prefix, max_body) = (config.api.prefix.trim_end_matches('/').to_owned(), config.api.max_body_bytes);
    if let Some(billing) = &billing {
        identity.attach_billing(billing.clone());
    }
    let listed = routes(&config);
    let catalog = Catalog::new(config.clone());
    let (balances, rates) = (credits::Balances::new(), rate::Rates::new(&config));
    let api = Arc::new(Api {
        store,
        ledger,
        identity,
        config,
        current,
        metrics,
        catalog,
        billing,
        hub,
        tasks,
        balances,
        rates,
    });
    let document = openapi::Document::of_users(&prefix);
    let routes = listed.route("/openapi.json", get(async move || document.clone())).router();
    let routes = if prefix.is_empty() { routes } else { Router::new().nest(&prefix, routes) };
    routes
        .fallback(frame::not_found)
        .method_not_allowed_fallback(frame::method_not_allowed)
        .layer(DefaultBodyLimit::max(max_body))
        .layer(from_fn_with_state(api.clone(), rate::nobodys))
        .layer(from_fn_with_state(cors, cors::cors))
        .layer(from_fn_with_state(frame, frame::frame))
        .with_state(api)
}

/// What is under the prefix, beside the document that describes it.
fn routes(config: &Config) -> Listed<Arc<Api>> {
    let (max_webhook, max_auth_webhook) = (config.stripe.max_webhook_bytes, config.stack.max_webhook_bytes);
    Listed::new()
        .route("/credits/check", get(credits::check))
        .route("/credits/deduct", post(credits::deduct))
        .route("/credits/reserve", post(credits::reserve))
        .route("/credits/settle", post(credits::settle))
        .route("/credits/release", post(credits::release))
        .route("/usage", get(usage::list))
        .route("/events", get(events::stream))
        .route("/notifications", get(notifications::list).patch(notifications::mark))
        .route("/flags", get(experiments::flags))
        .route("/feedback", post(feedback::create))
        .route("/plans", get(billing::plans))
        .route("/billing/checkout", post(subscription::checkout))
        .route("/billing/portal", post(subscription::portal))
        .route("/billing/link", post(links::create))
        .route("/billing/subscription", get(subscription::show).post(subscription::change).delete(subscription::cancel))
        .route("/billing/auto-topup", get(topup::show).put(topup::set).delete(topup::end))
        .route("/billing/history", get(subscription::history))
        .route("/billing/webhook", post(billing::webhook).layer(DefaultBodyLimit::max(max_webhook)))
        .route("/keys", get(keys::list).post(keys::create))
        .route("/keys/{id}", delete(keys::revoke))
        .route("/auth/webhook", post(auth::webhook).layer(DefaultBodyLimit::max(max_auth_webhook)))
}

/// The paths of the API as they are routed.
pub fn paths(config: &Config) -> Vec<String> {
    let prefix = config.api.prefix.trim_end_matches('/');
    let document = std::iter::once(format!("{prefix}/openapi.json"));
    routes(config).paths(prefix).chain(document).collect()
}

/// Who is signed in on the page, or why not; whoever hands a request in may have put it into its extensions.
#[derive(Clone)]
pub(crate) struct SignedIn {
    pub(crate) principal: Result<SharedPrincipal, Problem>,
    pub(crate) session: Arc<dyn PageSession>,
}

/// A session of the page, for what goes on longer than a request.
#[async_trait]
pub(crate) trait PageSession: Send + Sync + 'static {
    /// Whose it is, while it stands.
    async fn principal(&self) -> Result<SharedPrincipal, AuthError>;
}

/// The authenticated caller.
pub(crate) struct Caller(pub(crate) SharedPrincipal);

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Caller, Problem> {
        if let Some(SignedIn { principal, .. }) = parts.extensions.get() {
            let known = principal.clone()?;
            api.rates.check(&known, &parts.extensions)?;
            return Ok(Caller(known));
        }
        let known = api.known(&parts.headers, rate::address_of(&parts.extensions)).await?;
        api.rates.check(&known, &parts.extensions)?;
        // A key with limits of its own could otherwise spend past them here, or make one without.
        if known.scope.is_some() && !matches!(parts.method, Method::GET | Method::HEAD) {
            return Err(Problem::restricted_key());
        }
        Ok(Caller(known))
    }
}

impl Api {
    /// Who sends this.
    async fn known(&self, headers: &HeaderMap, address: Option<IpAddr>) -> Result<SharedPrincipal, AuthError> {
        match self.identity.cached(headers) {
            Some(Ok(known)) => Ok(known),
            _ => self.identity.authenticate_from(headers, address).await,
        }
    }
}

/// Asks the ledger, for as long as a request may wait for it.
pub(crate) async fn ask(
    ledger: &SharedLedger,
    config: &Config,
    account: &AccountId,
    act: Act,
) -> Result<Answer, Problem> {
    let reply = ledger.submit(Op { account: account.clone(), act });
    let wait = Duration::from_millis(config.ledger.reserve_timeout_ms);
    let answer = tokio::time::timeout(wait, reply).await.unwrap_or(Err(crate::ledger::LedgerError::Unavailable));
    answer.map_err(Problem::from)
}

/// The problems that any operation can meet; what else an answer means is its caller's to say.
pub(crate) fn refused(answer: Answer, account: &AccountId) -> Problem {
    match answer {
        Answer::Frozen => Problem::frozen(),
        Answer::NotLoaded => Problem::not_found("the account does not exist"),
        Answer::UnknownHold => Problem::unknown_hold(),
        Answer::Finished(kept) => Problem::finished(kept),
        Answer::Mismatch => Problem::key_reused(),
        Answer::TooLarge => Problem::bad_request("the account cannot hold so much"),
        Answer::Limited { retry_after_us, .. } => Problem::too_many_holds(retry_after_us),
        Answer::Backlogged => Problem::unavailable("the ledger takes no new work"),
        Answer::Unreadable => {
            tracing::error!(%account, "the ledger cannot read this account");
            Problem::internal()
        }
        other => {
            tracing::error!(%account, answer = ?other, "the ledger answered what was not asked");
            Problem::internal()
        }
    }
}
