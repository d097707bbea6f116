//! The operator's console: its files, and the session that stands for the admin token in a browser.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::SET_COOKIE;
use http::{Extensions, HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Admin, Named};
use crate::api::extract::{Json, json};
use crate::api::frame;
use crate::api::links::{self, no_randomness};
use crate::api::problem::Problem;
use crate::api::types::Time;
use crate::config::Config;
use crate::identity::secret;
use crate::page::assets::{Built, Site};
use crate::page::foreign;
use crate::page::session::CookieJar;
use crate::store::StoreError;
use crate::store::sessions::Session;

/// Where the console answers on the admin listener.
const PREFIX: &str = "/console";
/// Set by the console's own scripts on every call.
const CALL_HEADER: &str = "x-faregate-console";
const COOKIE: &str = "fg_console";

pub(crate) const BUILT: Built = Built {
    html: include_str!("../../web/dist/console/index.html"),
    script: include_bytes!("../../web/dist/console/app.js"),
    style: include_bytes!("../../web/dist/console/app.css"),
};

/// The console's parts.
pub(super) struct Console {
    site: Site,
    cookies: CookieJar,
}

impl Console {
    pub(super) fn new(config: &Config) -> Console {
        let facts = serde_json::json!({ "api": "/admin/v1", "page": PREFIX, "version": env!("CARGO_PKG_VERSION") });
        let url = &config.page.console_url;
        Console {
            site: Site::new(&BUILT, PREFIX, &facts, &[]),
            cookies: CookieJar::new(COOKIE, CALL_HEADER, url.starts_with("https://"), url),
        }
    }
}

pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route(PREFIX, get(html))
        .route(&format!("{PREFIX}/"), get(html))
        .route(&format!("{PREFIX}/assets/{{name}}"), get(asset))
        .route(&format!("{PREFIX}/session"), get(show).post(begin).delete(end))
        .route(&format!("{PREFIX}/{{*rest}}"), get(frame::not_found))
}

#[derive(Serialize)]
struct Standing {
    signed_in: bool,
    expires_at: Option<Time>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    token: String,
}

async fn html(State(admin): State<Arc<Admin>>) -> Response {
    admin.console.site.html()
}

async fn asset(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    admin.console.site.asset(&name, &headers).ok_or_else(|| Problem::not_found("no such path here"))
}

async fn show(State(admin): State<Arc<Admin>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let session = admin.session(&uri, &headers).await?;
    let expires_at = session.map(|session| Time::from_micros(session.expires_at));
    Ok(json(StatusCode::OK, &Standing { signed_in: expires_at.is_some(), expires_at }))
}

async fn begin(
    State(admin): State<Arc<Admin>>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
    Json(Begin { token }): Json<Begin>,
) -> Result<Response, Problem> {
    if !admin.console.cookies.own_call(&uri, &headers) {
        return Err(foreign());
    }
    admin.try_token(&token, &extensions)?;
    let carried = admin.session(&uri, &headers).await?;
    let ms = admin.config.page.console_session_ms;
    let (secret, expires_at) = (secret::generate().map_err(|error| no_randomness(&error))?, secret::from_now(ms));
    let hash = secret::hash(secret.reveal(), &admin.token).ok_or_else(Problem::internal)?;
    admin.store.begin_session(Session { hash, user: None, expires_at }).await?;
    // The browser forgets its secret; nobody else is to use it.
    if let Some(carried) = carried
        && let Err(error) = admin.store.end_session(carried.hash).await
    {
        tracing::warn!(%error, "a session that was replaced could not be ended");
    }
    admin.audit("console.sign_in", None, "").await;
    let standing = Standing { signed_in: true, expires_at: Some(Time::from_micros(expires_at)) };
    let mut response = json(StatusCode::OK, &standing);
    let cookie = admin.console.cookies.set(&secret, ms / 1_000).ok_or_else(Problem::internal)?;
    response.headers_mut().insert(SET_COOKIE, cookie);
    Ok(response)
}

async fn end(State(admin): State<Arc<Admin>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    if !admin.console.cookies.own_call(&uri, &headers) {
        return Err(foreign());
    }
    if let Some(session) = admin.session(&uri, &headers).await? {
        admin.store.end_session(session.hash).await?;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().extend(admin.console.cookies.clear().map(|cookie| (SET_COOKIE, cookie)));
    Ok(response)
}

/// A link that signs a user in on the billing page, for who helps them.
pub(super) async fn billing_link(State(admin): State<Arc<Admin>>, Named(user): Named) -> Result<Response, Problem> {
    let made = links::make(&admin.config, &admin.store, &user.id).await?;
    admin.audit("user.billing_link", Some(&user.id), "").await;
    Ok(json(StatusCode::CREATED, &made))
}

impl Admin {
    /// Digests are compared, so that not even the length of the token shows in the time it takes.
    pub(super) fn is_token(&self, token: &str) -> bool {
        bool::from(Sha256::digest(token.as_bytes()).as_slice().ct_eq(&self.token))
    }

    /// The operator's session that this call carries. Its hash has the token in it: with a new token all sessions end.
    pub(super) async fn session(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<Session>, StoreError> {
        let secret = self.console.cookies.secret(uri, headers);
        let Some(hash) = secret.and_then(|secret| secret::hash(secret, &self.token)) else { return Ok(None) };
        Ok(self.store.session(hash).await?.filter(|session| session.user.is_none()))
    }
}
