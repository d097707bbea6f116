//! The billing page on the main listener: its files, and who is signed in on it.
//!
//! A user signs in by a link that the product's backend asks for (it opens once), or with a token that [`Identity`]
//! knows. The session is a cookie that scripts cannot read and other sites cannot send; with it, and with the header
//! that only the page's own scripts set, the user's API answers as to a key.

pub(crate) mod assets;
pub(crate) mod session;

mod sign_in;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::get;

pub(crate) use self::sign_in::foreign;

use self::assets::{Built, Site};
use self::session::CookieJar;
use crate::api::frame;
use crate::config::Config;
use crate::identity::Identity;
use crate::store::SharedStore;
use crate::telemetry::Metrics;

/// Set by the page's own scripts on every call: another site's form cannot, and its script may not without our leave.
const CALL_HEADER: &str = "x-faregate-page";
const COOKIE: &str = "fg_session";
/// Bodies of the page's own calls.
const MAX_BODY_BYTES: usize = 4 * 1024;

pub(crate) const BUILT: Built = Built {
    html: include_str!("../../web/dist/billing/index.html"),
    script: include_bytes!("../../web/dist/billing/app.js"),
    style: include_bytes!("../../web/dist/billing/app.css"),
};

/// What the page works with.
pub struct PageParts {
    pub store: SharedStore,
    pub identity: Arc<Identity>,
    pub config: Arc<Config>,
    pub metrics: Metrics,
}

pub(crate) struct Pages {
    store: SharedStore,
    identity: Arc<Identity>,
    config: Arc<Config>,
    site: Site,
    cookies: CookieJar,
}

/// The control plane of the main listener: the page, and the users' API, which knows the page's sessions.
pub fn router(parts: PageParts, api: Router) -> Router {
    let PageParts { store, identity, config, metrics } = parts;
    if !config.page.enabled {
        return api;
    }
    let frame = frame::Frame { timeout: Duration::from_millis(config.api.timeout_ms), metrics, route: Some("page") };
    let prefix = config.page.prefix.clone();
    let sells = config.stripe.secret_key.is_some();
    let facts = serde_json::json!({ "api": config.api.prefix, "page": prefix, "sells": sells });
    let pages = Arc::new(Pages {
        site: Site::new(&BUILT, &prefix, &facts, &config.page.frame_ancestors),
        cookies: CookieJar::new(COOKIE, CALL_HEADER, secure(&config), &config.page.url),
        store,
        identity,
        config,
    });
    let own = Router::new()
        .route(&prefix, get(sign_in::html))
        .route(&format!("{prefix}/"), get(sign_in::html))
        .route(&format!("{prefix}/assets/{{name}}"), get(sign_in::asset))
        .route(&format!("{prefix}/session"), get(sign_in::show).post(sign_in::begin).delete(sign_in::end))
        .route(&format!("{prefix}/{{*rest}}"), get(frame::not_found))
        .method_not_allowed_fallback(frame::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(frame, frame::frame));
    own.fallback_service(api.layer(from_fn_with_state(pages.clone(), sign_in::signed_in))).with_state(pages)
}

/// Whether people reach the page by TLS, ours or a proxy's.
fn secure(config: &Config) -> bool {
    config.tls.certificate.is_some() || config.page.url.starts_with("https://")
}
