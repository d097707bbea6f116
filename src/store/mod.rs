//! The store: durable facts. Users, keys, grants, numbered billing changes, usage, and how far the ledger's events
//! have been written. SQLite and Postgres implement [`Store`] and pass the same suite.

pub mod billing;
pub mod books;
mod changes;
mod common;
pub(crate) mod effects;
pub mod experiments;
pub mod feedback;
pub mod fraud;
pub mod journal;
pub mod key_use;
pub mod letters;
mod mend;
mod migrations;
pub mod notifications;
pub mod owners;
pub mod postgres;
pub mod questions;
pub mod records;
pub mod reopenings;
pub mod reports;
pub mod sessions;
pub mod sign_ups;
pub mod sqlite;
pub mod topups;
pub mod upkeep;
pub mod usage_sums;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::journal::{Folded, Journal};
use crate::config;
use crate::credits::Credits;
pub use crate::ledger::log::{Cursor, Unreadable};
use crate::ledger::{AccountId, AccountState, Change, Event, GrantId, GrantKind, Micros, RecordState};
use crate::usage::Usage;
pub use books::Books;
pub use key_use::KeyUse;
pub use letters::DeadLetters;
pub use notifications::Notifications;
pub use owners::Owners;
pub use questions::Questions;
pub use records::Records;
pub use reopenings::Reopenings;
pub use sessions::Sessions;
pub use sign_ups::SignUps;
pub use upkeep::{Retention, Upkeep};
pub use usage_sums::UsageSums;

pub type SharedStore = Arc<dyn Store>;

/// Name of the SQLite store in the data directory.
pub const SQLITE_FILE: &str = "faregate.db";

/// The store that the settings name: Postgres where there is a URL, else SQLite in the data directory (which must
/// exist). Neither migrates nor checks the schema.
pub async fn connect(settings: &config::Store, data_dir: &Path) -> StoreResult<SharedStore> {
    if settings.url.is_empty() {
        let path = data_dir.join(SQLITE_FILE);
        let opened = tokio::task::spawn_blocking(move || sqlite::SqliteStore::open(&path)).await;
        let store = opened.map_err(|error| StoreError::Unavailable(error.to_string()))??;
        return Ok(Arc::new(store));
    }
    Ok(Arc::new(postgres::PostgresStore::connect(settings)?))
}

/// As [`connect`], with the schema this program needs: brought up to date, or only checked with `migrate = false`. What a
/// process that died left in the journal is in the tables afterwards.
pub async fn open(settings: &config::Store, data_dir: &Path) -> StoreResult<SharedStore> {
    let store = connect(settings, data_dir).await?;
    if settings.migrate {
        store.migrate().await?;
    } else {
        store.check_schema().await?;
    }
    journal::fold_rest(&store).await?;
    Ok(store)
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The thing is there already, or a rule of the schema forbids it.
    #[error("{0}")]
    Conflict(String),
    #[error("{0} is not known")]
    NotFound(&'static str),
    /// A page's cursor or limit, or an amount, that nothing here could have given.
    #[error("{0} is not valid")]
    Invalid(&'static str),
    /// The schema is older or newer than this program, or a migration failed.
    #[error("{0}")]
    Schema(String),
    /// The cursor moved on without us: another flusher wrote these events.
    #[error("the ledger cursor stands elsewhere")]
    CursorMoved,
    /// The store is out of reach, full, or broken; trying again may help.
    #[error("the store is out of reach: {0}")]
    Unavailable(String),
}

pub type StoreResult<T> = Result<T, StoreError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserStatus {
    Active,
    Frozen,
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: AccountId,
    pub email: Option<String>,
    pub name: Option<String>,
    pub plan: String,
    pub status: UserStatus,
    pub created_at: Micros,
}

#[derive(Debug, Clone)]
pub struct NewUser {
    pub id: AccountId,
    pub email: Option<String>,
    pub plan: String,
    /// The plan's `signup_credits`; zero for none. Granted in the same transaction, source key `signup:<id>`.
    pub signup_credits: Credits,
}

/// A grant as the store knows it. `remaining` includes what is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRow {
    pub id: GrantId,
    pub kind: GrantKind,
    pub amount: Credits,
    pub remaining: Credits,
    pub expires_at: Option<Micros>,
    pub frozen: bool,
    pub source_key: String,
    pub note: Option<String>,
    pub created_at: Micros,
}

/// A billing change to be numbered and stored. For `Change::Grant` and `Change::Rollover` the grant's row is written with it.
#[derive(Debug, Clone)]
pub struct NewChange {
    pub account: AccountId,
    pub change: Change,
    /// Unique over all changes that have one: the same key again for the same account stores nothing and answers the
    /// first change; for another account it is a `Conflict`. Empty: none.
    pub source_key: String,
    pub note: Option<String>,
    /// Who did it, for the audit log: `operator`, `signup`, `stripe`, …
    pub actor: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRow {
    pub account: AccountId,
    pub number: u64,
    pub change: Change,
    pub source_key: String,
    /// Whether this call stored it (`false`: the source key was there before).
    pub fresh: bool,
}

/// An account with billing changes that the ledger may not have applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unapplied {
    pub account: AccountId,
    /// How many changes.
    pub changes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    Live,
    Test,
    /// Acts for the user named in `x-faregate-user`; has no user of its own.
    Service,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    pub id: String,
    /// SHA-256 of the whole key.
    pub hash: [u8; 32],
    /// The first characters, for people to recognise it.
    pub prefix: String,
    pub kind: KeyKind,
    /// `None` for service keys.
    pub user: Option<AccountId>,
    pub name: String,
    pub created_at: Micros,
    pub revoked_at: Option<Micros>,
    pub expires_at: Option<Micros>,
    /// To within a minute or so.
    pub last_used_at: Option<Micros>,
    pub budget: Option<KeyBudget>,
    /// Globs of the models it may ask for; `None`: any.
    pub models: Option<Vec<String>>,
}

/// What a key's requests may cost in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyBudget {
    pub limit: Credits,
    pub used: Credits,
}

/// One page of a list: at most `limit` (1 to 500) after `cursor`, which an earlier page's `next` gave.
#[derive(Debug, Clone)]
pub struct PageRequest {
    pub limit: u32,
    pub cursor: Option<String>,
}

impl Default for PageRequest {
    fn default() -> PageRequest {
        PageRequest { limit: 100, cursor: None }
    }
}

#[derive(Debug, Clone)]
pub struct Page<T> {
    pub data: Vec<T>,
    /// `None` at the end.
    pub next: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    pub account: AccountId,
    pub seq: u64,
    pub charged: Credits,
    pub usage: Usage,
}

/// Entries of a shard's event log, in order, each with the events of one batch.
#[derive(Debug, Clone, Default)]
pub struct FlushBatch {
    pub shard: u32,
    /// Where the cursor must stand before.
    pub from: Cursor,
    /// The counter of the last entry here; the cursor stands there afterwards.
    pub to: u64,
    /// The head of that entry (Redis only; else empty).
    pub mark: Vec<u8>,
    /// In the order of the log.
    pub events: Vec<Event>,
    /// Last batch number of each session in these entries (Redis only).
    pub sessions: Vec<(u64, u64)>,
    /// API holds and kept answers as they now stand: of those of one id, the last.
    pub records: Vec<(AccountId, RecordState)>,
    /// Entries that cannot be read: each becomes a dead letter, once (Redis only).
    pub unreadable: Vec<Unreadable>,
}

/// What came of a flush.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flushed {
    pub usage_rows: u64,
    pub dead_letters: u64,
}

/// How long a creating POST may be under way before another caller with its key takes over.
pub const IDEMPOTENCY_ABANDONED_US: Micros = 60 * 1_000_000;

/// The answer to a creating POST, kept for 24 h.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Idempotent {
    /// The caller goes on, and calls `idempotency_finish` or `idempotency_forget`.
    Begun,
    Running,
    Finished {
        status: u16,
        body: String,
    },
    /// The key was used for another request.
    Mismatch,
}

#[async_trait]
pub trait Store:
    Books
    + UsageSums
    + Reopenings
    + Records
    + Owners
    + billing::BillingStore
    + topups::Topups
    + SignUps
    + KeyUse
    + DeadLetters
    + Upkeep
    + Notifications
    + Sessions
    + Questions
    + Send
    + Sync
    + 'static
{
    /// Brings the schema up to date; forward only. Answers how many migrations ran. `Schema` when the store has
    /// migrations that this program does not know.
    async fn migrate(&self) -> StoreResult<usize>;
    /// `Schema` unless the schema is exactly this program's.
    async fn check_schema(&self) -> StoreResult<()>;
    /// Finishes what was submitted and gives up threads and connections. Everything afterwards is `Unavailable`.
    async fn close(&self);
    /// A cheap question, for readiness.
    async fn ping(&self) -> StoreResult<()>;
    /// Whether no user and no key was ever made.
    async fn is_empty(&self) -> StoreResult<bool>;

    // Users
    /// `Conflict` when the id is taken. Ids of closed users stay taken.
    async fn create_user(&self, user: NewUser) -> StoreResult<User>;
    async fn user(&self, id: &AccountId) -> StoreResult<Option<User>>;
    async fn users(&self, page: PageRequest) -> StoreResult<Page<User>>;
    /// Moves a user to another plan, and tells every replica in the same transaction. Answers the user as it then is;
    /// a plan that it has already changes nothing. `NotFound` without such a user, `Conflict` for a closed one.
    async fn set_plan(&self, id: &AccountId, plan: &str, actor: &str) -> StoreResult<User>;

    // Keys
    async fn create_key(&self, key: KeyRow) -> StoreResult<()>;
    async fn key_by_hash(&self, hash: &[u8; 32]) -> StoreResult<Option<KeyRow>>;
    /// A user's keys, or with `None` the service keys; newest first, revoked ones too, at most 500.
    async fn keys_of(&self, user: Option<&AccountId>) -> StoreResult<Vec<KeyRow>>;
    /// Answers the key as revoked; `NotFound` for another user's or no key. `user` `None`: anybody's.
    async fn revoke_key(&self, user: Option<&AccountId>, id: &str) -> StoreResult<KeyRow>;
    /// What happened to keys and users after `since`, in order, with the number to ask with next time: replicas poll it
    /// several times a second to drop what they cached. `since` 0 answers only the number. At most 1,000 at once.
    /// Told are revoked keys and frozen and unfrozen users, for 24 h; not what was created: keep "unknown" only briefly.
    async fn identity_changes(&self, since: u64) -> StoreResult<(u64, Vec<IdentityChange>)>;

    // Billing changes and accounts
    /// Numbers and stores a change in one transaction, with its grant's row and an audit row. A freeze of the account
    /// shows in the user's status at once. `Conflict` when the grants of the account (or its debt) would pass
    /// [`Credits::INPUT_LIMIT`], for a closed user, or for more than a grant's amount revoked; `NotFound` for its user
    /// or the grant it names.
    async fn add_change(&self, change: NewChange) -> StoreResult<ChangeRow>;
    /// Accounts with changes whose event has not been flushed, in their order after `after`, at most `limit`: what the
    /// pusher still has to push.
    async fn unapplied_accounts(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<Unapplied>>;
    /// Changes of an account after `number`, in order, at most 500.
    async fn changes_after(&self, account: &AccountId, number: u64) -> StoreResult<Vec<ChangeRow>>;
    /// The account as of its last flushed event: grants of changes applied by then, with something remaining.
    /// `None` when there is no such user. With all its records: what the embedded ledger keeps in memory.
    async fn load_account(&self, account: &AccountId) -> StoreResult<Option<AccountState>>;
    /// All grants of an account, newest first, at most 500.
    async fn grants(&self, account: &AccountId) -> StoreResult<Vec<GrantRow>>;

    // Events
    async fn cursor(&self, shard: u32) -> StoreResult<Cursor>;
    /// Begins a new epoch with counter 0, when the ledger lost its data, or its process took the store over.
    async fn raise_epoch(&self, shard: u32, from: Cursor) -> StoreResult<Cursor>;
    /// Writes a batch in one transaction: usage rows, deltas, debt, sequences, applied changes, sessions, records, and the
    /// cursor, which must stand at `batch.from` (`CursorMoved` otherwise). An event whose usage cannot be written goes
    /// to the dead letters, its balance effect is applied all the same.
    async fn flush(&self, batch: FlushBatch) -> StoreResult<Flushed>;
    /// Where events can be taken down faster than [`Store::flush`] writes them; `None` where only that is there. While
    /// something stands in the journal, `flush` is `Unavailable`, and `raise_epoch` answers `CursorMoved`.
    fn journal(&self) -> Option<&dyn Journal> {
        None
    }
    /// In the order they were settled, newest first.
    async fn usage(&self, account: &AccountId, page: PageRequest) -> StoreResult<Page<UsageRow>>;

    // Records, and kept API answers
    async fn record_account(&self, id: Uuid) -> StoreResult<Option<AccountId>>;
    /// One that has been running for more than [`IDEMPOTENCY_ABANDONED_US`] was left by a process that died: it begins anew.
    async fn idempotency_begin(&self, scope: &str, key: &str, fingerprint: u64) -> StoreResult<Idempotent>;
    async fn idempotency_finish(&self, scope: &str, key: &str, status: u16, body: &str) -> StoreResult<()>;
    async fn idempotency_forget(&self, scope: &str, key: &str) -> StoreResult<()>;

    async fn audit(&self, actor: &str, action: &str, account: Option<&AccountId>, detail: &str) -> StoreResult<()>;
    /// Removes kept answers, records and identity changes past their time. Called now and then.
    async fn prune(&self) -> StoreResult<()>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityChange {
    Key { hash: [u8; 32] },
    User { id: AccountId },
}
