//! From headers to a principal: out of the cache on the hot path, out of the store once a minute.
//!
//! What is cached is void as soon as the key or the user it was made from changes: at once on the replica where that
//! happens, within [`POLL_INTERVAL`] on the others. While the store is away, callers that are cached go on until
//! [`super::PRINCIPAL_STALE`] has passed, and nobody new gets in: a key cannot be revoked then either, except by a store that only
//! this replica fails to reach, and for that case the time is the bound.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::HeaderMap;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::arrivals::{self, Judge};
use super::budget::Budgets;
use super::cache::{Cache, Found, Watch};
use super::credentials::Credentials;
use super::inbox::AuthInbox;
use super::issuers::Issuers;
use super::keys::{self, KeyHash};
use super::principal::{AuthError, CallerKind, Principal, SharedPrincipal};
use super::scope::Scope;
use super::token::TokenFault;
use crate::bridge::Pusher;
use crate::config::Config;
use crate::credits::Credits;
use crate::ledger::{AccountId, Limits, Micros};
use crate::limits::Failures;
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
/// How often the age of issuers' keys is looked at.
const ISSUERS_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is noted which keys were used.
const USES_INTERVAL: Duration = Duration::from_secs(15);
/// Keys noted in one transaction.
const USES_AT_ONCE: usize = 1_000;

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
    pub(super) store: SharedStore,
    pub(super) metrics: Metrics,
    /// Replaced as a whole when limits change.
    plans: RwLock<HashMap<String, PlanTerms>>,
    service: ServiceTerms,
    pub(super) issuers: Issuers,
    pub(super) sign_up: SignUpTerms,
    pub(super) inbox: AuthInbox,
    pub(super) budgets: Budgets,
    failures: Failures,
    pub(super) judge: OnceLock<Arc<dyn Judge>>,
    pub(super) judged: moka::sync::Cache<AccountId, ()>,
    onboard: Option<Arc<dyn Onboard>>,
    look_up_timeout: Duration,
    onboard_timeout: Duration,
    pub(super) cache: Cache,
    key_flights: Vec<Mutex<()>>,
    /// Of their own: a token may have to wait for its issuer.
    pub(super) token_flights: Vec<Mutex<()>>,
    user_flights: Vec<Mutex<()>>,
}

#[derive(Clone, PartialEq)]
struct PlanTerms {
    name: Arc<str>,
    limits: Limits,
}

struct ServiceTerms {
    create_users: bool,
    plan: String,
    signup_credits: Credits,
}

/// What a user gets who comes with a token.
pub(super) struct SignUpTerms {
    pub(super) plan: String,
    pub(super) credits: Credits,
}

fn terms(config: &Config) -> HashMap<String, PlanTerms> {
    let terms = |(name, plan): (&String, &crate::config::Plan)| {
        (name.clone(), PlanTerms { name: name.as_str().into(), limits: plan.limits() })
    };
    config.plans.iter().map(terms).collect()
}

impl Identity {
    pub fn new(
        store: SharedStore,
        config: &Config,
        metrics: Metrics,
        onboard: Option<Arc<dyn Onboard>>,
    ) -> Arc<Identity> {
        let service_plan = config.plans.get(&config.service_keys.plan);
        let token_plan = config.plans.get(&config.tokens.plan);
        let flights = || (0..FLIGHTS).map(|_| Mutex::new(())).collect();
        Arc::new(Identity {
            store,
            plans: RwLock::new(terms(config)),
            service: ServiceTerms {
                create_users: config.service_keys.create_users,
                plan: config.service_keys.plan.clone(),
                signup_credits: service_plan.map_or(Credits::ZERO, |plan| plan.signup_credits),
            },
            issuers: Issuers::new(config, &metrics),
            sign_up: SignUpTerms {
                plan: config.tokens.plan.clone(),
                credits: token_plan.map_or(Credits::ZERO, |plan| plan.signup_credits),
            },
            inbox: AuthInbox::new(config),
            budgets: Budgets::new(),
            failures: Failures::new(config.api.failures_per_minute, config.server.ipv6_prefix_bits),
            judge: OnceLock::new(),
            judged: arrivals::judged(),
            metrics,
            onboard,
            look_up_timeout: Duration::from_millis(config.store.timeout_ms),
            onboard_timeout: Duration::from_millis(config.ledger.reserve_timeout_ms),
            cache: Cache::new(),
            key_flights: flights(),
            token_flights: flights(),
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
        self.authenticate_from(headers, None).await
    }

    /// The same, of a request that came from this address.
    pub async fn authenticate_from(
        &self,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> Result<SharedPrincipal, AuthError> {
        let credentials = Credentials::read(headers).map_err(|error| self.counted(error, address))?;
        let digest = digest(&credentials);
        if let Some(known) = self.cache.principal(&digest) {
            return known.map_err(|error| self.counted(error, address));
        }
        self.may_look_up(&credentials, address)?;
        let looked_up = async {
            match &credentials {
                Credentials::Key { key, kind: KeyKind::Service, user } => self.acting_user(key, user, &digest).await,
                Credentials::Key { .. } => self.key_owner(&digest).await,
                Credentials::Token(token) => self.token_user(token, &digest, address).await,
            }
        };
        let answer = tokio::time::timeout(self.look_up_timeout, looked_up).await.unwrap_or_else(|_| {
            self.count("error");
            Err(AuthError::Unavailable)
        });
        match answer {
            Err(AuthError::Unavailable) => self.cache.stale(&digest).ok_or(AuthError::Unavailable),
            answer => answer.map_err(|error| self.counted(error, address)),
        }
    }

    /// Where many wrong keys came from, others are not even looked up, but for those that were in use before: one client
    /// with an old key must not shut the door for all others behind its address.
    fn may_look_up(&self, credentials: &Credentials<'_>, address: Option<IpAddr>) -> Result<(), AuthError> {
        let Credentials::Key { key, .. } = credentials else { return Ok(()) };
        match address.and_then(|address| self.failures.wait(address)) {
            Some(wait) if !self.cache.remembers(&keys::hash(key)) => Err(throttled(wait)),
            _ => Ok(()),
        }
    }

    /// Counts what was wrong against where it came from. An error that is one too many says so instead.
    fn counted(&self, error: AuthError, address: Option<IpAddr>) -> AuthError {
        let guess = match error {
            AuthError::Invalid | AuthError::Revoked | AuthError::Expired => true,
            // One that was good once.
            AuthError::Token(fault) => fault != TokenFault::Expired,
            _ => false,
        };
        let wait = address.filter(|_| guess).and_then(|address| self.failures.count(address));
        wait.map_or(error, throttled)
    }

    /// A user who has shown in another way than by a key who they are, such as by a session of the page.
    pub async fn of_user(&self, id: &AccountId) -> Result<SharedPrincipal, AuthError> {
        let looked_up = tokio::time::timeout(self.look_up_timeout, self.store.user(id)).await;
        let user = looked_up.map_err(|_| AuthError::Unavailable)?.map_err(|error| self.away(&error))?;
        self.principal(user.ok_or(AuthError::UnknownUser)?, SESSION_KEY.into(), CallerKind::Session, None)
    }

    /// Takes over the plans' limits: whoever was known by the old ones is looked up again.
    pub fn set_plans(&self, config: &Config) {
        let fresh = terms(config);
        let mut plans = self.plans.write();
        // Nobody is looked up again for nothing: the store may be away.
        if *plans != fresh {
            *plans = fresh;
            drop(plans);
            self.cache.clear();
        }
    }

    /// Drops what was made from this key, on this replica, now.
    pub fn forget_key(&self, hash: &KeyHash) {
        self.cache.forget_key(hash);
    }

    /// Drops what was made from this user, on this replica, now.
    pub fn forget_user(&self, user: &AccountId) {
        self.cache.forget_user(user);
    }

    /// Follows what happens to keys and users, on whichever replica, keeps issuers' keys fresh, works off what issuers tell,
    /// and notes which keys are used, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::join!(
            self.follow(&stop),
            self.keep_issuers(&stop),
            self.work_events(&stop),
            self.note_uses(&stop),
            self.keep_budgets(&stop)
        );
    }

    pub(crate) fn inbox(&self) -> &AuthInbox {
        &self.inbox
    }

    async fn keep_issuers(&self, stop: &CancellationToken) {
        while !self.issuers.is_empty() && !stop.is_cancelled() {
            tokio::select! {
                () = async {
                    tokio::time::sleep(ISSUERS_INTERVAL).await;
                    self.issuers.keep_fresh().await;
                } => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn note_uses(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(USES_INTERVAL) => {}
                () = stop.cancelled() => {}
            }
            let keys = self.cache.take_touched();
            let at = now_us();
            for keys in keys.chunks(USES_AT_ONCE) {
                if let Err(error) = self.store.touch_keys(keys, at).await {
                    tracing::warn!(%error, "when keys were last used could not be noted");
                    break;
                }
            }
        }
    }

    async fn follow(&self, stop: &CancellationToken) {
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
        let (mut watch, mut until) = (self.cache.watch(digest), None);
        let looked_up = self.look_up_owner(digest, &mut watch, &mut until).await;
        self.cache.keep(digest, looked_up.clone().map(Found::Principal), watch, until);
        looked_up
    }

    async fn look_up_owner(
        &self,
        hash: &KeyHash,
        watch: &mut Watch,
        until: &mut Option<Instant>,
    ) -> Result<SharedPrincipal, AuthError> {
        let key = self.live_key(hash).await?;
        *until = key.expires_at.map(instant_of);
        let scope = Scope::of(&key).map_err(|error| {
            tracing::error!(key = key.id, %error, "a key's limits cannot be read: it opens nothing");
            AuthError::Invalid
        })?;
        let id = key.user.ok_or(AuthError::Invalid)?;
        self.cache.watch_user(watch, &id);
        let user = self.store.user(&id).await.map_err(|error| self.away(&error))?.ok_or(AuthError::Invalid)?;
        self.principal(user, key.id.into(), key.kind.into(), scope.map(Arc::new))
    }

    /// The user that a service key names; `digest` stands for the two together.
    async fn acting_user(&self, key: &str, user: &str, digest: &KeyHash) -> Result<SharedPrincipal, AuthError> {
        let hash = keys::hash(key);
        // Before the key is read: one that is revoked while this waits is not kept.
        let mut watch = self.cache.watch(&hash);
        let key_id = self.service_key(&hash).await?;
        let user = AccountId::parse(user).map_err(|_| AuthError::NoUser)?;
        let _flight = self.user_flights[slot(digest)].lock().await;
        if let Some(known) = self.cache.principal(digest) {
            return known;
        }
        self.cache.watch_user(&mut watch, &user);
        let looked_up = match self.user_or_new(&user).await {
            Ok(user) => self.principal(user, key_id, CallerKind::Service, None),
            Err(error) => Err(error),
        };
        self.cache.keep(digest, looked_up.clone().map(Found::Principal), watch, None);
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
        let (watch, mut until) = (self.cache.watch(hash), None);
        let looked_up = self.live_key(hash).await.and_then(|key| match key.kind {
            KeyKind::Service => {
                until = key.expires_at.map(instant_of);
                Ok(Arc::<str>::from(key.id))
            }
            KeyKind::Live | KeyKind::Test => Err(AuthError::Invalid),
        });
        self.cache.keep(hash, looked_up.clone().map(Found::ServiceKey), watch, until);
        looked_up
    }

    async fn live_key(&self, hash: &KeyHash) -> Result<crate::store::KeyRow, AuthError> {
        let key = self.store.key_by_hash(hash).await.map_err(|error| self.away(&error))?;
        self.count(if key.is_some() { "found" } else { "unknown" });
        match key {
            Some(key) if key.revoked_at.is_some() => Err(AuthError::Revoked),
            Some(key) if key.expires_at.is_some_and(|at| at <= now_us()) => Err(AuthError::Expired),
            Some(key) => Ok(key),
            None => Err(AuthError::Invalid),
        }
    }

    async fn user_or_new(&self, id: &AccountId) -> Result<User, AuthError> {
        if let Some(user) = self.store.user(id).await.map_err(|error| self.away(&error))? {
            if is_fresh(&user) {
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

    pub(super) async fn onboarded(&self, id: &AccountId) {
        if let Some(onboard) = &self.onboard {
            // In vain is no harm: the ledger then refuses for want of credits, or is away for everybody.
            let _ = tokio::time::timeout(self.onboard_timeout, onboard.push(id)).await;
        }
    }

    pub(super) fn principal(
        &self,
        user: User,
        key_id: Arc<str>,
        kind: CallerKind,
        scope: Option<Arc<Scope>>,
    ) -> Result<SharedPrincipal, AuthError> {
        if user.status == UserStatus::Closed {
            return Err(AuthError::Closed);
        }
        let PlanTerms { name, limits } = self.plan_terms(&user.plan);
        Ok(Arc::new(Principal { account: user.id, plan: name, limits, key_id, kind, scope }))
    }

    /// A plan that left the configuration has the limits of the service keys' plan, not none.
    fn plan_terms(&self, plan: &str) -> PlanTerms {
        let plans = self.plans.read();
        if let Some(terms) = plans.get(plan) {
            return terms.clone();
        }
        tracing::warn!(plan, "a user's plan is not configured");
        let limits = plans.get(&self.service.plan).map_or_else(Limits::default, |terms| terms.limits);
        PlanTerms { name: plan.into(), limits }
    }

    pub(super) fn away(&self, error: &StoreError) -> AuthError {
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

fn throttled(wait: Duration) -> AuthError {
    let seconds = wait.as_millis().div_ceil(1_000).max(1);
    AuthError::Throttled { retry_after_s: u32::try_from(seconds).unwrap_or(u32::MAX) }
}

/// The hash of a key or a token; for a service key a hash of key and user together (a key contains no zero byte).
fn digest(credentials: &Credentials<'_>) -> KeyHash {
    match credentials {
        Credentials::Token(text) => keys::hash(text),
        Credentials::Key { key, user: "", .. } => keys::hash(key),
        Credentials::Key { key, user, .. } => {
            let mut hasher = Sha256::new();
            hasher.update(key.as_bytes());
            hasher.update([0]);
            hasher.update(user.as_bytes());
            hasher.finalize().into()
        }
    }
}

pub(super) fn now_us() -> Micros {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0)
}

/// When a time of the wall clock comes, by the clock that only goes forward.
pub(super) fn instant_of(at: Micros) -> Instant {
    let now = Instant::now();
    now.checked_add(Duration::from_micros(at.saturating_sub(now_us()))).unwrap_or(now)
}

pub(super) fn slot(digest: &KeyHash) -> usize {
    usize::from(digest[0]) % FLIGHTS
}

/// Whether the credits of a user may still be on their way into the ledger.
pub(super) fn is_fresh(user: &User) -> bool {
    Duration::from_micros(now_us().saturating_sub(user.created_at)) < FRESH_USER
}
