//! Signing in and out, and the page's files.

use std::sync::Arc;

use async_trait::async_trait;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, SET_COOKIE};
use http::{Extensions, HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Serialize};

use super::Pages;
use crate::api::extract::{Json, json};
use crate::api::links::no_randomness;
use crate::api::problem::Problem;
use crate::api::types::Time;
use crate::api::{PageSession, SignedIn};
use crate::identity::principal::{AuthError, SharedPrincipal};
use crate::identity::secret;
use crate::ledger::{AccountId, Micros};
use crate::limits::ClientAddress;
use crate::store::StoreError;
use crate::store::sessions::{SecretHash, Session};

const STACK_HEADERS: [&str; 4] = ["x-stack-access-token", "x-stack-auth", "x-hexclave-access-token", "x-hexclave-auth"];

#[derive(Serialize)]
struct Standing {
    /// Null: nobody is signed in.
    user: Option<UserView>,
    expires_at: Option<Time>,
}

#[derive(Serialize)]
struct UserView {
    id: AccountId,
    email: Option<String>,
    plan: String,
}

/// Empty: by the token in the headers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begin {
    #[serde(default)]
    link: Option<String>,
    /// Whoever is signed in here makes way.
    #[serde(default)]
    switch: bool,
}

pub(super) async fn html(State(pages): State<Arc<Pages>>) -> Response {
    pages.site.html()
}

pub(super) async fn asset(
    State(pages): State<Arc<Pages>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    pages.site.asset(&name, &headers).ok_or_else(|| Problem::not_found("no such path here"))
}

/// Who is signed in. Nobody is an answer, too: the page asks before it knows.
pub(super) async fn show(State(pages): State<Arc<Pages>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let nobody = Standing { user: None, expires_at: None };
    let Some(session) = pages.session(&uri, &headers).await? else { return Ok(json(StatusCode::OK, &nobody)) };
    let Some(id) = session.user else { return Ok(json(StatusCode::OK, &nobody)) };
    pages.standing(&id, session.expires_at).await
}

pub(super) async fn begin(
    State(pages): State<Arc<Pages>>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
    Json(body): Json<Begin>,
) -> Result<Response, Problem> {
    if !pages.cookies.own_call(&uri, &headers) {
        return Err(foreign());
    }
    let (secret, expires_at) = (secret::generate().map_err(|error| no_randomness(&error))?, pages.session_end());
    let hash = secret::hash(secret.reveal(), &[]).ok_or_else(Problem::internal)?;
    let carried = pages.session(&uri, &headers).await?;
    let before = carried.as_ref().filter(|_| !body.switch).and_then(|session| session.user.as_ref());
    let user = match body.link {
        Some(link) => {
            let used = || Problem::new(StatusCode::FORBIDDEN, "link-used", "The link does not open", LINK_USED);
            let link = secret::hash(&link, &[]).ok_or_else(used)?;
            make_way(before, &pages.store.link_user(link).await?.ok_or_else(used)?)?;
            pages.store.redeem_link(link, hash, expires_at).await?.ok_or_else(used)?
        }
        None => {
            let principal = pages.by_token(&headers, &extensions).await?;
            let user = principal.account.clone();
            make_way(before, &user)?;
            pages.store.begin_session(Session { hash, user: Some(user.clone()), expires_at }).await?;
            user
        }
    };
    // The browser forgets its secret; nobody else is to use it.
    if let Some(carried) = carried
        && let Err(error) = pages.store.end_session(carried.hash).await
    {
        tracing::warn!(%error, "a session that was replaced could not be ended");
    }
    let mut response = pages.standing(&user, expires_at).await?;
    let seconds = pages.config.page.session_ms / 1_000;
    let cookie = pages.cookies.set(&secret, seconds).ok_or_else(Problem::internal)?;
    response.headers_mut().insert(SET_COOKIE, cookie);
    Ok(response)
}

/// Nobody is signed in as somebody else by opening what they were sent: what they then buy would be the sender's.
fn make_way(before: Option<&AccountId>, user: &AccountId) -> Result<(), Problem> {
    if before.is_none_or(|before| before == user) {
        return Ok(());
    }
    let detail = "another user is signed in here: ask them, and send \"switch\": true";
    Err(Problem::new(StatusCode::CONFLICT, "somebody-else", "Somebody else is signed in", detail))
}

const LINK_USED: &str = "it opens once, and not for long: ask for a new one where you got it";

pub(super) async fn end(State(pages): State<Arc<Pages>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    if !pages.cookies.own_call(&uri, &headers) {
        return Err(foreign());
    }
    if let Some(hash) = pages.hash(&uri, &headers) {
        pages.store.end_session(hash).await?;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().extend(pages.cookies.clear().map(|cookie| (SET_COOKIE, cookie)));
    Ok(response)
}

/// Lets the users' API know who is signed in on the page, where the call carries no credentials of its own.
pub(super) async fn signed_in(State(pages): State<Arc<Pages>>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let own = ["x-api-key", AUTHORIZATION.as_str()].into_iter().chain(STACK_HEADERS);
    if !own.into_iter().any(|name| headers.contains_key(name))
        && let Some(hash) = pages.hash(request.uri(), headers)
    {
        let session = OfPage { pages: pages.clone(), hash };
        let known = match session.principal().await {
            Err(AuthError::Missing) => None,
            known => Some(known.map_err(Problem::from)),
        };
        if let Some(principal) = known {
            request.extensions_mut().insert(SignedIn { principal, session: Arc::new(session) });
        }
    }
    next.run(request).await
}

/// A session by its hash.
struct OfPage {
    pages: Arc<Pages>,
    hash: SecretHash,
}

#[async_trait]
impl PageSession for OfPage {
    async fn principal(&self) -> Result<SharedPrincipal, AuthError> {
        let session = self.pages.store.session(self.hash).await.map_err(|error| {
            tracing::warn!(%error, "a session of the page cannot be looked up");
            AuthError::Unavailable
        })?;
        let user = session.and_then(|session| session.user).ok_or(AuthError::Missing)?;
        self.pages.identity.of_user(&user).await
    }
}

impl Pages {
    fn hash(&self, uri: &Uri, headers: &HeaderMap) -> Option<SecretHash> {
        self.cookies.secret(uri, headers).and_then(|secret| secret::hash(secret, &[]))
    }

    async fn session(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<Session>, StoreError> {
        match self.hash(uri, headers) {
            Some(hash) => self.store.session(hash).await,
            None => Ok(None),
        }
    }

    async fn standing(&self, user: &AccountId, expires_at: Micros) -> Result<Response, Problem> {
        // Refuses who may not come in any more.
        self.identity.of_user(user).await?;
        let user = self.store.user(user).await?.ok_or_else(|| Problem::not_found("there is no such user"))?;
        let view = UserView { id: user.id, email: user.email, plan: user.plan };
        let expires_at = Some(Time::from_micros(expires_at));
        Ok(json(StatusCode::OK, &Standing { user: Some(view), expires_at }))
    }

    /// Who a token says it is. A key is no way in: keys never reach a browser.
    async fn by_token(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<SharedPrincipal, Problem> {
        let token = STACK_HEADERS.iter().any(|name| headers.contains_key(*name));
        if !token || headers.contains_key(AUTHORIZATION) || headers.contains_key("x-api-key") {
            return Err(AuthError::Missing.into());
        }
        let address = extensions.get::<ClientAddress>().map(|ClientAddress(address)| *address);
        Ok(self.identity.authenticate_from(headers, address).await?)
    }

    fn session_end(&self) -> Micros {
        secret::from_now(self.config.page.session_ms)
    }
}

pub(crate) fn foreign() -> Problem {
    let detail = "calls with a session come from the page itself";
    Problem::new(StatusCode::FORBIDDEN, "foreign-call", "Not from here", detail)
}
