//! GET /api/events: what happens to the caller's account, as it happens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;

use super::credits::low_below;
use super::notifications::Notification;
use super::problem::Problem;
use super::subscription::standing;
use super::{Api, Caller, PageSession, SignedIn};
use crate::billing::Billing;
use crate::billing::plans::Catalog;
use crate::config::Config;
use crate::credits::Credits;
use crate::identity::Identity;
use crate::identity::principal::{AuthError, SharedPrincipal};
use crate::ledger::AccountId;
use crate::notify::hub::{Describe, JoinError};
use crate::notify::seat::{Gate, Position, Seat};
use crate::rollout::Current;
use crate::store::SharedStore;
use crate::store::notifications::NotificationRow;

/// Whether a session of the page still stands is asked so often: a look-up in the store for each stream.
const SESSION_TRUSTED: Duration = Duration::from_secs(5);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Proxies that gather answers before they pass them on leave this one alone.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How soon a client comes again, in milliseconds; also the first sign of life.
const HELLO: &[u8] = b"retry: 1000\n\n";

pub(crate) async fn stream(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers();
    // What is no position of ours is as good as none: the client begins anew.
    let last = headers.get(LAST_EVENT_ID).and_then(|last| last.to_str().ok()?.parse::<Position>().ok());
    let low = low_below(api.current.get().plans.get(&*principal.plan));
    let (current, account) = (api.current.clone(), principal.account.clone());
    let gate: Arc<dyn Gate> = match request.extensions().get::<SignedIn>() {
        Some(signed_in) => {
            let (session, asked) = (signed_in.session.clone(), Mutex::new(Instant::now()));
            Arc::new(Session { session, current, account, low, asked })
        }
        None => {
            let (identity, headers) = (api.identity.clone(), credentials(headers));
            Arc::new(Credentials { identity, current, headers, account, low })
        }
    };
    let seat = api.hub.join(&principal.account, low, gate, last).await.map_err(|error| refused(error, &api.config))?;
    let mut response = Response::new(body(seat));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

fn body(seat: Seat) -> Body {
    let hello = futures_util::stream::once(async { Ok::<_, std::convert::Infallible>(Bytes::from_static(HELLO)) });
    let events = futures_util::stream::unfold(seat, |mut seat| async {
        let event = seat.next().await?;
        Some((Ok(event), seat))
    });
    Body::from_stream(futures_util::StreamExt::chain(hello, events))
}

fn refused(error: JoinError, config: &Config) -> Problem {
    match error {
        JoinError::TooManyOfUser => Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-streams",
            "Too many event streams are open",
            format!("one user may have {} at a time", config.notify.max_streams_per_user),
        )
        .retry_after(5),
        JoinError::TooMany | JoinError::Unavailable => Problem::unavailable(error.to_string()),
    }
}

/// What of a request's headers says who sends it.
fn credentials(headers: &HeaderMap) -> HeaderMap {
    let tells = |name: &HeaderName| [AUTHORIZATION, COOKIE, ORIGIN].contains(name) || name.as_str().starts_with("x-");
    headers.iter().filter(|(name, _)| tells(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Looks again whether the caller of a stream is who it was.
struct Credentials {
    identity: Arc<Identity>,
    current: Current,
    headers: HeaderMap,
    account: AccountId,
    /// As it was last known.
    low: Credits,
}

impl Credentials {
    fn is_same(&self, principal: &SharedPrincipal) -> bool {
        principal.account == self.account
    }
}

#[async_trait]
impl Gate for Credentials {
    fn known(&self) -> Option<bool> {
        match self.identity.cached(&self.headers)? {
            Ok(principal) => Some(self.is_same(&principal)),
            // A refusal that is remembered may be older than what is true now.
            Err(_) => None,
        }
    }

    async fn ask(&self) -> Option<Credits> {
        match self.identity.authenticate(&self.headers).await {
            Ok(principal) => {
                self.is_same(&principal).then(|| low_below(self.current.get().plans.get(&*principal.plan)))
            }
            // Nobody is turned away because the store is.
            Err(AuthError::Unavailable) => Some(self.low),
            Err(_) => None,
        }
    }
}

/// Looks again whether a session of the page still stands.
struct Session {
    session: Arc<dyn PageSession>,
    current: Current,
    account: AccountId,
    low: Credits,
    asked: Mutex<Instant>,
}

#[async_trait]
impl Gate for Session {
    fn known(&self) -> Option<bool> {
        (self.asked.lock().elapsed() < SESSION_TRUSTED).then_some(true)
    }

    async fn ask(&self) -> Option<Credits> {
        let low = match self.session.principal().await {
            Ok(principal) if principal.account == self.account => {
                low_below(self.current.get().plans.get(&*principal.plan))
            }
            // Nobody is turned away because the store is.
            Err(AuthError::Unavailable) => self.low,
            Ok(_) | Err(_) => return None,
        };
        *self.asked.lock() = Instant::now();
        Some(low)
    }
}

/// How notifications and subscriptions look.
pub struct Describer {
    pub store: SharedStore,
    pub catalog: Catalog,
    /// `None` without a key of Stripe's.
    pub billing: Option<Arc<Billing>>,
}

#[async_trait]
impl Describe for Describer {
    fn notification(&self, row: NotificationRow) -> Bytes {
        match serde_json::to_vec(&Notification::from(row)) {
            Ok(body) => body.into(),
            Err(error) => {
                tracing::error!(%error, "a notification cannot be written");
                Bytes::from_static(b"{}")
            }
        }
    }

    async fn subscription(&self, user: &AccountId) -> Option<Bytes> {
        let desk = &self.billing.as_ref()?.desk;
        let standing = standing(&self.store, &self.catalog, desk, user).await.ok()?;
        serde_json::to_vec(&standing).ok().map(Bytes::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_credentials_are_kept() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "x-api-key", "x-faregate-user", "cookie", "user-agent", "accept"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        let kept = credentials(&headers);
        assert_eq!(kept.len(), 4);
        assert!(kept.contains_key("x-faregate-user") && !kept.contains_key("user-agent"));
    }
}
