//! What is known of callers without asking the store, until what it was made from changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::keys::KeyHash;
use super::marks::{Mark, Marks};
use super::principal::{AuthError, CallerKind, SharedPrincipal};
use super::token::TokenFault;
use crate::ledger::AccountId;
use crate::store::IdentityChange;

/// How long a caller is known without asking the store again.
pub const PRINCIPAL_TTL: Duration = Duration::from_secs(60);
/// How long a caller is known while the store cannot be asked.
pub const PRINCIPAL_STALE: Duration = Duration::from_secs(15 * 60);
/// Without an answer of the store for so long it cannot be asked.
const BLIND_AFTER: Duration = Duration::from_secs(2);
/// How long a refusal is remembered.
pub const REFUSAL_TTL: Duration = Duration::from_secs(10);
const MAX_PRINCIPALS: u64 = 100_000;
/// Apart from the principals, so that a flood of made-up keys pushes nobody out.
pub const MAX_REFUSALS: u64 = 10_000;

/// Entries whose use is to be noted; beyond it the next use counts.
const MAX_TOUCHED: usize = 100_000;

pub(super) struct Cache {
    found: moka::sync::Cache<KeyHash, Arc<Entry<Found>>>,
    refused: moka::sync::Cache<KeyHash, Arc<Entry<AuthError>>>,
    key_marks: Marks<KeyHash>,
    user_marks: Marks<AccountId>,
    /// Nothing is kept before the first poll told where to go on from.
    watching: AtomicBool,
    /// What was used since keys were last noted as used.
    touched: Mutex<Vec<Arc<Entry<Found>>>>,
    /// Raised when everything kept is void.
    generation: AtomicU64,
    begun: Instant,
    /// When the store last told what changed: milliseconds since `begun`.
    heard_ms: AtomicU64,
}

#[derive(Clone)]
pub(super) enum Found {
    Principal(SharedPrincipal),
    /// A service key by itself, before it names a user.
    ServiceKey(Arc<str>),
}

/// What is kept, and what makes it void.
struct Entry<T> {
    value: T,
    watch: Watch,
    kept: Instant,
    /// When what it was made from ends by itself: a token, or a key.
    until: Option<Instant>,
    /// It is among the touched.
    used: AtomicBool,
}

impl<T> Entry<T> {
    fn new(value: T, watch: Watch, until: Option<Instant>) -> Arc<Entry<T>> {
        Arc::new(Entry { value, watch, kept: Instant::now(), until, used: AtomicBool::new(false) })
    }

    fn in_time(&self) -> bool {
        self.until.is_none_or(|until| until > Instant::now())
    }
}

/// Taken before the store is read, so that a change in between is noticed.
pub(super) struct Watch {
    generation: u64,
    key: Arc<Mark>,
    user: Option<Arc<Mark>>,
}

impl Cache {
    pub(super) fn new() -> Cache {
        Cache {
            found: moka::sync::Cache::builder().max_capacity(MAX_PRINCIPALS).time_to_live(PRINCIPAL_STALE).build(),
            refused: moka::sync::Cache::builder().max_capacity(MAX_REFUSALS).time_to_live(REFUSAL_TTL).build(),
            key_marks: Marks::new(),
            user_marks: Marks::new(),
            watching: AtomicBool::new(false),
            touched: Mutex::new(Vec::new()),
            generation: AtomicU64::new(0),
            begun: Instant::now(),
            heard_ms: AtomicU64::new(0),
        }
    }

    pub(super) fn principal(&self, digest: &KeyHash) -> Option<Result<SharedPrincipal, AuthError>> {
        match self.get(digest)? {
            Ok(Found::Principal(principal)) => Some(Ok(principal)),
            Ok(Found::ServiceKey(_)) => None,
            Err(error) => Some(Err(error)),
        }
    }

    pub(super) fn service_key(&self, hash: &KeyHash) -> Option<Result<Arc<str>, AuthError>> {
        match self.get(hash)? {
            Ok(Found::ServiceKey(id)) => Some(Ok(id)),
            Ok(Found::Principal(_)) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn get(&self, digest: &KeyHash) -> Option<Result<Found, AuthError>> {
        let generation = self.generation.load(Ordering::Acquire);
        let found = self.found.get(digest).filter(|entry| entry.watch.stands(generation) && entry.in_time());
        if let Some(entry) = found.filter(|entry| entry.kept.elapsed() < PRINCIPAL_TTL || self.blind()) {
            self.touch(&entry);
            return Some(Ok(entry.value.clone()));
        }
        self.refused.get(digest).filter(|entry| entry.watch.stands(generation)).map(|entry| Err(entry.value))
    }

    /// Who this was, when the store could last be asked.
    pub(super) fn stale(&self, digest: &KeyHash) -> Option<SharedPrincipal> {
        let generation = self.generation.load(Ordering::Acquire);
        let entry = self.found.get(digest).filter(|entry| entry.watch.stands(generation) && entry.in_time())?;
        match &entry.value {
            Found::Principal(principal) => Some(principal.clone()),
            Found::ServiceKey(_) => None,
        }
    }

    /// Whether this was somebody not long ago.
    pub(super) fn remembers(&self, digest: &KeyHash) -> bool {
        let generation = self.generation.load(Ordering::Acquire);
        self.found.get(digest).is_some_and(|entry| entry.watch.stands(generation) && entry.in_time())
    }

    /// Whether the store has told nothing for so long that it is of no use to ask it.
    fn blind(&self) -> bool {
        let heard = Duration::from_millis(self.heard_ms.load(Ordering::Acquire));
        self.begun.elapsed().saturating_sub(heard) >= BLIND_AFTER
    }

    pub(super) fn watch(&self, key: &KeyHash) -> Watch {
        let generation = self.generation.load(Ordering::Acquire);
        Watch { generation, key: self.key_marks.mark(*key), user: None }
    }

    pub(super) fn watch_user(&self, watch: &mut Watch, user: &AccountId) {
        watch.user = Some(self.user_marks.mark(user.clone()));
    }

    /// Keeps what was looked up, no longer than `until`; that nothing could be looked up is not kept, nor a key that its
    /// issuer may publish any moment.
    pub(super) fn keep(
        &self,
        digest: &KeyHash,
        looked_up: Result<Found, AuthError>,
        watch: Watch,
        until: Option<Instant>,
    ) {
        if !self.watching.load(Ordering::Acquire) {
            return;
        }
        match looked_up {
            Ok(value) => {
                let entry = Entry::new(value, watch, until);
                self.touch(&entry);
                self.found.insert(*digest, entry);
            }
            // A user may be made any moment, on whichever replica, and nobody tells.
            Err(AuthError::Unavailable | AuthError::UnknownUser | AuthError::Token(TokenFault::UnknownKey)) => {}
            Err(value) => self.refused.insert(*digest, Entry::new(value, watch, None)),
        }
    }

    fn touch(&self, entry: &Arc<Entry<Found>>) {
        // One read where it is noted already, as on the hot path it is.
        if entry.used.load(Ordering::Relaxed) || entry.used.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut touched = self.touched.lock();
        if touched.len() < MAX_TOUCHED {
            touched.push(entry.clone());
        }
    }

    /// The keys that were used since this was last asked.
    pub(super) fn take_touched(&self) -> Vec<String> {
        let touched = std::mem::take(&mut *self.touched.lock());
        let mut keys: Vec<String> = touched
            .iter()
            .filter_map(|entry| {
                entry.used.store(false, Ordering::Relaxed);
                match &entry.value {
                    Found::Principal(principal) if principal.kind == CallerKind::Token => None,
                    Found::Principal(principal) => Some(principal.key_id.to_string()),
                    Found::ServiceKey(id) => Some(id.to_string()),
                }
            })
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Everything kept is void.
    pub(super) fn clear(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn forget_key(&self, hash: &KeyHash) {
        self.key_marks.spoil(hash);
    }

    pub(super) fn forget_user(&self, user: &AccountId) {
        self.user_marks.spoil(user);
    }

    /// Takes in what a poll after `since` answered.
    pub(super) fn follow(&self, since: Option<u64>, number: u64, changes: &[IdentityChange]) {
        let heard_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(heard_ms, Ordering::Release);
        // Asked with 0 the store tells no changes, so whatever came after nothing must be taken for everything.
        // So must whatever a store says that counts less than it did: it has lost changes.
        if (since == Some(0) && number > 0) || since.is_some_and(|since| number < since) {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        for change in changes {
            match change {
                IdentityChange::Key { hash } => self.forget_key(hash),
                IdentityChange::User { id } => self.forget_user(id),
            }
        }
        self.watching.store(true, Ordering::Release);
    }

    pub(super) fn len(&self) -> u64 {
        self.found.entry_count()
    }
}

impl Watch {
    fn stands(&self, generation: u64) -> bool {
        self.generation == generation
            && !self.key.is_spoiled()
            && !self.user.as_ref().is_some_and(|mark| mark.is_spoiled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::principal::Principal;
    use crate::ledger::Limits;

    const KEY: KeyHash = [7; 32];

    fn account() -> AccountId {
        AccountId::parse("u").unwrap()
    }

    fn found() -> Result<Found, AuthError> {
        Ok(Found::Principal(Arc::new(Principal {
            account: account(),
            plan: "free".into(),
            limits: Limits::default(),
            key_id: "key".into(),
            kind: CallerKind::Live,
            scope: None,
        })))
    }

    fn looked_up(cache: &Cache) -> Watch {
        let mut watch = cache.watch(&KEY);
        cache.watch_user(&mut watch, &account());
        watch
    }

    #[test]
    fn a_change_voids_what_was_kept_and_what_was_being_looked_up() {
        let changes = [IdentityChange::Key { hash: KEY }, IdentityChange::User { id: account() }];
        for change in changes {
            let cache = Cache::new();
            cache.follow(None, 3, &[]);
            cache.keep(&KEY, found(), looked_up(&cache), None);
            assert!(cache.principal(&KEY).is_some());
            let under_way = looked_up(&cache);
            cache.follow(Some(3), 4, &[change]);
            assert!(cache.principal(&KEY).is_none());
            cache.keep(&KEY, found(), under_way, None);
            assert!(cache.principal(&KEY).is_none(), "read before the change, kept after it");
            cache.keep(&KEY, found(), looked_up(&cache), None);
            assert!(cache.principal(&KEY).is_some());
        }
    }

    #[test]
    fn the_first_change_ever_voids_everything() {
        let cache = Cache::new();
        cache.follow(None, 0, &[]);
        cache.keep(&KEY, found(), looked_up(&cache), None);
        cache.follow(Some(0), 0, &[]);
        assert!(cache.principal(&KEY).is_some());
        cache.follow(Some(0), 1, &[]);
        assert!(cache.principal(&KEY).is_none());
    }

    #[test]
    fn nothing_is_kept_before_changes_are_followed() {
        let cache = Cache::new();
        cache.keep(&KEY, found(), looked_up(&cache), None);
        assert!(cache.principal(&KEY).is_none());
    }

    /// A minute without the store, and longer: who is known goes on, and is asked for again once it is back.
    #[test]
    fn known_callers_go_on_while_the_store_is_away() {
        let now = Instant::now();
        let ago = |time: Duration| now.checked_sub(time).unwrap();
        let mut cache = Cache::new();
        cache.begun = ago(Duration::from_secs(100));
        cache.follow(None, 3, &[]);
        let kept = ago(PRINCIPAL_TTL);
        let entry = Entry {
            value: found().unwrap(),
            watch: looked_up(&cache),
            kept,
            until: None,
            used: AtomicBool::new(false),
        };
        cache.found.insert(KEY, Arc::new(entry));
        assert!(cache.principal(&KEY).is_none(), "its time is up, and the store answers");
        assert!(cache.stale(&KEY).is_some(), "unless it does not, this time");
        cache.heard_ms.store(97_000, Ordering::Release);
        assert!(cache.principal(&KEY).is_some(), "the store told nothing for three seconds");
        cache.forget_user(&account());
        assert!(cache.principal(&KEY).is_none() && cache.stale(&KEY).is_none(), "what changed counts");
    }

    /// Neither a fresh cache nor a store that is away makes a token last longer than it says.
    #[test]
    fn nobody_is_known_beyond_their_time() {
        let cache = Cache::new();
        cache.follow(None, 3, &[]);
        let past = Instant::now();
        cache.keep(&KEY, found(), looked_up(&cache), Some(past));
        assert!(cache.principal(&KEY).is_none() && cache.stale(&KEY).is_none());
        cache.keep(&KEY, found(), looked_up(&cache), Some(past + Duration::from_secs(60)));
        assert!(cache.principal(&KEY).is_some() && cache.stale(&KEY).is_some());
    }

    #[test]
    fn uses_are_noted_once() {
        let cache = Cache::new();
        cache.follow(None, 3, &[]);
        cache.keep(&KEY, found(), looked_up(&cache), None);
        assert!((0..5).all(|_| cache.principal(&KEY).is_some()));
        assert_eq!(cache.take_touched(), ["key"]);
        assert!(cache.take_touched().is_empty());
        assert!(cache.principal(&KEY).is_some());
        assert_eq!(cache.take_touched(), ["key"]);
    }

    #[test]
    fn a_store_that_is_away_is_no_answer_to_keep() {
        let cache = Cache::new();
        cache.follow(None, 1, &[]);
        cache.keep(&KEY, Err(AuthError::Unavailable), looked_up(&cache), None);
        assert!(cache.principal(&KEY).is_none());
        cache.keep(&KEY, Err(AuthError::Revoked), looked_up(&cache), None);
        assert_eq!(cache.principal(&KEY), Some(Err(AuthError::Revoked)));
    }

    #[test]
    fn refusals_are_bounded_and_apart() {
        let cache = Cache::new();
        cache.follow(None, 1, &[]);
        cache.keep(&KEY, found(), looked_up(&cache), None);
        for number in 0..MAX_REFUSALS * 3 {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_be_bytes());
            let watch = cache.watch(&digest);
            cache.keep(&digest, Err(AuthError::Invalid), watch, None);
        }
        cache.refused.run_pending_tasks();
        assert!(cache.refused.entry_count() <= MAX_REFUSALS);
        assert!(cache.principal(&KEY).is_some());
    }
}
