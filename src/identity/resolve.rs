//! From headers to a principal: out of the cache on the hot path, out of the store once a minute.
//!
//! What is cached is void as soon as the key or the user it was made from changes: at once on the replica where that
//! happens, within [`POLL_INTERVAL`] on the others. While the store is away, callers that are cached go on until
//! [`super::PRINCIPAL_STALE`] has passed, and nobody new gets in: a key cannot be revoked then either, except by a store that only
//! this replica fails to reach, and for that case the time is the bound.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::HeaderMap;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::cache::{Cache, Found, Watch};
use super::credentials::Credentials;
use super::keys::{self, KeyHash};
use super::principal::{AuthError, Principal, SharedPrincipal};
use crate::bridge::Pusher;
use crate::config::Config;
use crate::credits::Credits;
use crate::ledger::{AccountId, Limits};
use crate::store::{KeyKind, NewUser, SharedStore, StoreError, User, UserStatus};
use crate::telemetry::Metrics;

/// How often a replica asks what changed; revocation is promised within a second.
pub const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Look-ups in the store at the same time, at most; equal ones wait for each other.
const FLIGHTS: usize = 64;
/// After so long without an answer to its polls a replica says so in its log.
const BLIND_AFTER: Duration = Duration::from_secs(5);
/// The credits of a user this young may still be on their way into the ledger.
const FRESH_USER: Duration = Duration::from_secs(10);

/// Stands as the key where a session of the page is used.
const SESSION_KEY: &str = "page";

/// Brings an account's stored billing changes into the ledger: a new user's credits are live before their first request
/// asks for them, a grant's when the operator has the answer.
#[async_trait]
pub trait Onboard: Send + Sync + 'static {
    /// Whether all that is stored is live now. Where it is not, nothing is lost: it is pushed again later.
    async fn push(&self, account: &AccountId) -> bool;
}

#[async_trait]
impl Onboard for Pusher {
    async fn push(&self, account: &AccountId) -> bool {
        match Pusher::push(self, account).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%account, %error, "billing changes wait for the ledger");
                false
            }
        }
    }
}

/// Knows callers by their keys.
pub struct Identity {
    store: SharedStore,
    metrics: Metrics,
    plans: HashMap<String, PlanTerms>,
    service: ServiceTerms,
    onboard: Option<Arc<dyn Onboard>>,
    look_up_timeout: Duration,
    onboard_timeout: Duration,
    cache: Cache,
    key_flights: Vec<Mutex<()>>,
    user_flights: Vec<Mutex<()>>,
}

#[derive(Clone)]
struct PlanTerms {
    name: Arc<str>,
    limits: Limits,
}

struct ServiceTerms {
    create_users: bool,
    plan: String,
    signup_credits: Credits,
}

impl Identity {
    pub fn new(
        store: SharedStore,
        config: &Config,
        metrics: Metrics,
        onboard: Option<Arc<dyn Onboard>>,
    ) -> Arc<Identity> {
        let terms = |(name, plan): (&String, &crate::config::Plan)| {
            (name.clone(), PlanTerms { name: name.as_str().into(), limits: plan.limits() })
        };
        let service_plan = config.plans.get(&config.service_keys.plan);
        let flights = || (0..FLIGHTS).map(|_| Mutex::new(())).collect();
        Arc::new(Identity {
            store,
            metrics,
            plans: config.plans.iter().map(terms).collect(),
            service: ServiceTerms {
                create_users: config.service_keys.create_users,
                plan: config.service_keys.plan.clone(),
                signup_credits: service_plan.map_or(Credits::ZERO, |plan| plan.signup_credits),
            },
            onboard,
            look_up_timeout: Duration::from_millis(config.store.timeout_ms),
            onboard_timeout: Duration::from_millis(config.ledger.reserve_timeout_ms),
            cache: Cache::new(),
            key_flights: flights(),
            user_flights: flights(),
        })
    }

    /// The hot path: what is known without asking anybody. `None`: call [`Identity::authenticate`].
    pub fn cached(&self, headers: &HeaderMap) -> Option<Result<SharedPrincipal, AuthError>> {
        match Credentials::read(headers) {
            Ok(credentials) => self.cache.principal(&digest(&credentials)),
            Err(error) => Some(Err(error)),
        }
    }

    /// Who sends this. A frozen account gets in: the ledger refuses what it may not do.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<SharedPrincipal, AuthError> {
        let credentials = Credentials::read(headers)?;
        let digest = digest(&credentials);
        if let Some(known) = self.cache.principal(&digest) {
            return known;
        }
        let looked_up = async {
            match credentials.kind {
                KeyKind::Service => self.acting_user(&credentials, &digest).await,
                KeyKind::Live | KeyKind::Test => self.key_owner(&digest).await,
            }
        };
        let answer = tokio::time::timeout(self.look_up_timeout, looked_up).await.unwrap_or_else(|_| {
            self.count("error");
            Err(AuthError::Unavailable)
        });
        match answer {
            Err(AuthError::Unavailable) => self.cache.stale(&digest).ok_or(AuthError::Unavailable),
            answer => answer,
        }
    }

    /// A user who has shown in another way than by a key who they are, such as by a session of the page.
    pub async fn of_user(&self, id: &AccountId) -> Result<SharedPrincipal, AuthError> {
        let looked_up = tokio::time::timeout(self.look_up_timeout, self.store.user(id)).await;
        let user = looked_up.map_err(|_| AuthError::Unavailable)?.map_err(|error| self.away(&error))?;
        self.principal(user.ok_or(AuthError::UnknownUser)?, SESSION_KEY.into(), KeyKind::Live)
    }

    /// Drops what was made from this key, on this replica, now.
    pub fn forget_key(&self, hash: &KeyHash) {
        self.cache.forget_key(hash);
    }

    /// Drops what was made from this user, on this replica, now.
    pub fn forget_user(&self, user: &AccountId) {
        self.cache.forget_user(user);
    }

    /// Follows what happens to keys and users, on whichever replica, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut since = None;
        let mut heard = Instant::now();
        let mut blind = false;
        while !stop.is_cancelled() {
            match self.store.identity_changes(since.unwrap_or(0)).await {
                Ok((number, changes)) => {
                    self.cache.follow(since, number, &changes);
                    since = Some(number);
                    heard = Instant::now();
                    if blind {
                        tracing::info!("changes of keys and users are followed again");
                    }
                    blind = false;
                }
                Err(error) if !blind && heard.elapsed() >= BLIND_AFTER => {
                    blind = true;
                    tracing::warn!(%error, "changes of keys and users cannot be followed; known callers go on until their time is up");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// The owner of a live or test key; `digest` is the key's hash.
    async fn key_owner(&self, digest: &KeyHash) -> Result<SharedPrincipal, AuthError> {
        let _flight = self.key_flights[slot(digest)].lock().await;
        if let Some(known) = self.cache.principal(digest) {
            return known;
        }
        let mut watch = self.cache.watch(digest);
        let looked_up = self.look_up_owner(digest, &mut watch).await;
        self.cache.keep(digest, looked_up.clone().map(Found::Principal), watch);
        looked_up
    }

    async fn look_up_owner(&self, hash: &KeyHash, watch: &mut Watch) -> Result<SharedPrincipal, AuthError> {
        let key = self.live_key(hash).await?;
        let id = key.user.ok_or(AuthError::Invalid)?;
        self.cache.watch_user(watch, &id);
        let user = self.store.user(&id).await.map_err(|error| self.away(&error))?.ok_or(AuthError::Invalid)?;
        self.principal(user, key.id.into(), key.kind)
    }

    /// The user that a service key names; `digest` stands for the two together.
    async fn acting_user(&self, credentials: &Credentials<'_>, digest: &KeyHash) -> Result<SharedPrincipal, AuthError> {
        let hash = keys::hash(credentials.key);
        let key_id = self.service_key(&hash).await?;
        let user = AccountId::parse(credentials.user).map_err(|_| AuthError::NoUser)?;
        let _flight = self.user_flights[slot(digest)].lock().await;
        if let Some(known) = self.cache.principal(digest) {
            return known;
        }
        let mut watch = self.cache.watch(&hash);
        self.cache.watch_user(&mut watch, &user);
        let looked_up = match self.user_or_new(&user).await {
            Ok(user) => self.principal(user, key_id, KeyKind::Service),
            Err(error) => Err(error),
        };
        self.cache.keep(digest, looked_up.clone().map(Found::Principal), watch);
        looked_up
    }

    async fn service_key(&self, hash: &KeyHash) -> Result<Arc<str>, AuthError> {
        if let Some(known) = self.cache.service_key(hash) {
            return known;
        }
        let _flight = self.key_flights[slot(hash)].lock().await;
        if let Some(known) = self.cache.service_key(hash) {
            return known;
        }
        let watch = self.cache.watch(hash);
        let looked_up = self.live_key(hash).await.and_then(|key| match key.kind {
            KeyKind::Service => Ok(Arc::<str>::from(key.id)),
            KeyKind::Live | KeyKind::Test => Err(AuthError::Invalid),
        });
        self.cache.keep(hash, looked_up.clone().map(Found::ServiceKey), watch);
        looked_up
    }

    async fn live_key(&self, hash: &KeyHash) -> Result<crate::store::KeyRow, AuthError> {
        let key = self.store.key_by_hash(hash).await.map_err(|error| self.away(&error))?;
        self.count(if key.is_some() { "found" } else { "unknown" });
        match key {
            Some(key) if key.revoked_at.is_some() => Err(AuthError::Revoked),
            Some(key) => Ok(key),
            None => Err(AuthError::Invalid),
        }
    }

    async fn user_or_new(&self, id: &AccountId) -> Result<User, AuthError> {
        if let Some(user) = self.store.user(id).await.map_err(|error| self.away(&error))? {
            if age(&user) < FRESH_USER {
                self.onboarded(id).await;
            }
            return Ok(user);
        }
        if !self.service.create_users {
            return Err(AuthError::UnknownUser);
        }
        let new = NewUser {
            id: id.clone(),
            email: None,
            plan: self.service.plan.clone(),
            signup_credits: self.service.signup_credits,
        };
        let user = match self.store.create_user(new).await {
            Ok(user) => user,
            // Another replica was quicker.
            Err(StoreError::Conflict(_)) => {
                self.store.user(id).await.map_err(|error| self.away(&error))?.ok_or(AuthError::Unavailable)?
            }
            Err(error) => return Err(self.away(&error)),
        };
        self.onboarded(id).await;
        Ok(user)
    }

    async fn onboarded(&self, id: &AccountId) {
        if let Some(onboard) = &self.onboard {
            // In vain is no harm: the ledger then refuses for want of credits, or is away for everybody.
            let _ = tokio::time::timeout(self.onboard_timeout, onboard.push(id)).await;
        }
    }

    fn principal(&self, user: User, key_id: Arc<str>, kind: KeyKind) -> Result<SharedPrincipal, AuthError> {
        if user.status == UserStatus::Closed {
            return Err(AuthError::Closed);
        }
        let PlanTerms { name, limits } = self.plan_terms(&user.plan);
        Ok(Arc::new(Principal { account: user.id, plan: name, limits, key_id, kind }))
    }

    /// A plan that left the configuration has the limits of the service keys' plan, not none.
    fn plan_terms(&self, plan: &str) -> PlanTerms {
        if let Some(terms) = self.plans.get(plan) {
            return terms.clone();
        }
        tracing::warn!(plan, "a user's plan is not configured");
        let limits = self.plans.get(&self.service.plan).map_or_else(Limits::default, |terms| terms.limits);
        PlanTerms { name: plan.into(), limits }
    }

    fn away(&self, error: &StoreError) -> AuthError {
        self.count("error");
        tracing::warn!(%error, "a caller cannot be looked up");
        AuthError::Unavailable
    }

    fn count(&self, result: &str) {
        self.metrics.key_lookups.with_label_values(&[result]).inc();
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Identity").field("principals", &self.cache.len()).finish_non_exhaustive()
    }
}

/// The key's hash; for a service key a hash of key and user together (a key contains no zero byte).
fn digest(credentials: &Credentials<'_>) -> KeyHash {
    if credentials.user.is_empty() {
        return keys::hash(credentials.key);
    }
    let mut hasher = Sha256::new();
    hasher.update(credentials.key.as_bytes());
    hasher.update([0]);
    hasher.update(credentials.user.as_bytes());
    hasher.finalize().into()
}

fn slot(digest: &KeyHash) -> usize {
    usize::from(digest[0]) % FLIGHTS
}

fn age(user: &User) -> Duration {
    let now = jiff::Timestamp::now().as_microsecond();
    let created = i64::try_from(user.created_at).unwrap_or(i64::MAX);
    Duration::from_micros(u64::try_from(now.saturating_sub(created)).unwrap_or(0))
}
