//! The store in Postgres 15 or newer: any number of replicas share it.

mod accounts;
mod billing;
mod books;
mod connect;
mod copy;
mod flush;
mod identity;
mod key_use;
mod notifications;
mod owners;
mod questions;
mod records;
mod reopenings;
mod sessions;
mod sign_ups;
mod topups;
mod upkeep;
pub mod usage;
pub mod usage_sums;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use deadpool_postgres::{Client, GenericClient, Object, Pool};
use parking_lot::RwLock;
use refinery::Migration;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::migrations;
use super::notifications::Thresholds;
use super::{
    ChangeRow, Cursor, FlushBatch, Flushed, GrantRow, Idempotent, IdentityChange, KeyRow, NewChange, NewUser, Page,
    PageRequest, Store, StoreError, StoreResult, Unapplied, UsageRow, User,
};
use crate::config;
use crate::ledger::{AccountId, AccountState, Micros};

/// Of this database: held while one replica migrates or makes partitions, and the others wait.
const SCHEMA_LOCK: i64 = 0x_6661_7265_6761_7465;
/// Partitions of usage are made this many months ahead.
const MONTHS_AHEAD: i32 = 3;

pub struct PostgresStore {
    pool: Pool,
    /// Longest wait for an operation, after which its connection is given up.
    timeout: Duration,
    thresholds: RwLock<Arc<Thresholds>>,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("PostgresStore").finish_non_exhaustive()
    }
}

/// Runs an operation on a connection of the pool, within the timeout. An operation that did not end in time leaves a
/// connection in an unknown state: it is closed, not reused.
macro_rules! within {
    ($store:expr, |$client:ident| $work:expr) => {{
        let mut lease: Client = $store.client().await?;
        let $client: &mut Client = &mut lease;
        match tokio::time::timeout($store.timeout, async { $work.await }).await {
            Ok(answer) => answer,
            Err(_) => {
                drop(Object::take(lease));
                Err(StoreError::Unavailable(format!("no answer within {} ms", $store.timeout.as_millis())))
            }
        }
    }};
}
use within;

impl PostgresStore {
    /// Connects when first asked something. Call it on the runtime that lives as long as the store.
    pub fn connect(settings: &config::Store) -> StoreResult<PostgresStore> {
        let timeout = Duration::from_millis(settings.timeout_ms.max(1));
        Ok(PostgresStore { pool: connect::pool(settings, timeout)?, timeout, thresholds: RwLock::default() })
    }

    async fn client(&self) -> StoreResult<Client> {
        self.pool.get().await.map_err(|error| match error {
            deadpool_postgres::PoolError::Backend(error) => failed(error),
            error => StoreError::Unavailable(error.to_string()),
        })
    }
}

/// A broken rule of the schema, or a value that it cannot hold, is a `Conflict`; everything else is the server's or the way to it.
fn failed(error: tokio_postgres::Error) -> StoreError {
    let Some(refusal) = error.as_db_error() else {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        return StoreError::Unavailable(cause.unwrap_or_else(|| error.to_string()));
    };
    let code = refusal.code().code();
    // Classes 22 (data exception), 23 (integrity constraint) and P0 (raised by a trigger) are about the rows.
    if ["22", "23", "P0"].iter().any(|class| code.starts_with(class)) {
        return StoreError::Conflict(refusal.message().to_owned());
    }
    StoreError::Unavailable(format!("{} ({code})", refusal.message()))
}

type Values<'a> = &'a [&'a (dyn ToSql + Sync)];

async fn query<C: GenericClient>(client: &C, sql: &str, values: Values<'_>) -> StoreResult<Vec<Row>> {
    let statement = client.prepare_cached(sql).await.map_err(failed)?;
    client.query(&statement, values).await.map_err(failed)
}

async fn query_opt<C: GenericClient>(client: &C, sql: &str, values: Values<'_>) -> StoreResult<Option<Row>> {
    let statement = client.prepare_cached(sql).await.map_err(failed)?;
    client.query_opt(&statement, values).await.map_err(failed)
}

async fn execute<C: GenericClient>(client: &C, sql: &str, values: Values<'_>) -> StoreResult<u64> {
    let statement = client.prepare_cached(sql).await.map_err(failed)?;
    client.execute(&statement, values).await.map_err(failed)
}

fn time(micros: Micros) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_micros(micros)).unwrap_or(UNIX_EPOCH)
}

fn micros(time: SystemTime) -> Micros {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
}

async fn pending(client: &mut Client) -> StoreResult<usize> {
    let begun = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&migrations::HISTORY_TABLE]).await;
    let applied: Vec<Migration> = if begun.map_err(failed)?.get(0) {
        let runner = migrations::runner(migrations::POSTGRES)?;
        runner.get_applied_migrations_async(&mut ***client).await.map_err(migrations::failed)?
    } else {
        Vec::new()
    };
    migrations::pending(migrations::POSTGRES, &applied)
}

async fn migrate(client: &mut Client) -> StoreResult<usize> {
    // Migrations may take long, and so may the wait for another replica's.
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await.map_err(failed)?;
    client.query("SELECT pg_advisory_lock($1)", &[&SCHEMA_LOCK]).await.map_err(failed)?;
    if pending(client).await? == 0 {
        return Ok(0);
    }
    let runner = migrations::runner(migrations::POSTGRES)?;
    let report = runner.run_async(&mut ***client).await.map_err(migrations::failed)?;
    Ok(report.applied_migrations().len())
}

#[async_trait]
impl Store for PostgresStore {
    async fn migrate(&self) -> StoreResult<usize> {
        let mut client = self.client().await?;
        let migrated = migrate(&mut client).await;
        // Its lock and its settings end with the connection.
        drop(Object::take(client));
        let migrated = migrated?;
        within!(self, |client| identity::make_partitions(client))?;
        Ok(migrated)
    }

    async fn check_schema(&self) -> StoreResult<()> {
        migrations::require_none_pending(within!(self, |client| pending(client))?)
    }

    async fn close(&self) {
        self.pool.close();
    }

    async fn ping(&self) -> StoreResult<()> {
        within!(self, |client| query(client, "SELECT 1 FROM ledger_cursors LIMIT 1", &[])).map(drop)
    }

    async fn is_empty(&self) -> StoreResult<bool> {
        within!(self, |client| identity::is_empty(client))
    }

    async fn create_user(&self, user: NewUser) -> StoreResult<User> {
        within!(self, |client| accounts::create_user(client, user))
    }

    async fn user(&self, id: &AccountId) -> StoreResult<Option<User>> {
        within!(self, |client| accounts::user(client, id))
    }

    async fn users(&self, page: PageRequest) -> StoreResult<Page<User>> {
        within!(self, |client| accounts::users(client, &page))
    }

    async fn set_plan(&self, id: &AccountId, plan: &str, actor: &str) -> StoreResult<User> {
        within!(self, |client| accounts::set_plan(client, id, plan, actor))
    }

    async fn create_key(&self, key: KeyRow) -> StoreResult<()> {
        within!(self, |client| identity::create_key(client, &key))
    }

    async fn key_by_hash(&self, hash: &[u8; 32]) -> StoreResult<Option<KeyRow>> {
        within!(self, |client| identity::key_by_hash(client, hash))
    }

    async fn keys_of(&self, user: Option<&AccountId>) -> StoreResult<Vec<KeyRow>> {
        within!(self, |client| identity::keys_of(client, user))
    }

    async fn revoke_key(&self, user: Option<&AccountId>, id: &str) -> StoreResult<KeyRow> {
        within!(self, |client| identity::revoke_key(client, user, id))
    }

    async fn identity_changes(&self, since: u64) -> StoreResult<(u64, Vec<IdentityChange>)> {
        within!(self, |client| identity::changes(client, since))
    }

    async fn add_change(&self, change: NewChange) -> StoreResult<ChangeRow> {
        within!(self, |client| accounts::add_change(client, change))
    }

    async fn unapplied_accounts(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<Unapplied>> {
        within!(self, |client| accounts::unapplied_accounts(client, after, limit))
    }

    async fn changes_after(&self, account: &AccountId, number: u64) -> StoreResult<Vec<ChangeRow>> {
        within!(self, |client| accounts::changes_after(client, account, number))
    }

    async fn load_account(&self, account: &AccountId) -> StoreResult<Option<AccountState>> {
        within!(self, |client| accounts::load(client, account, false))
    }

    async fn grants(&self, account: &AccountId) -> StoreResult<Vec<GrantRow>> {
        within!(self, |client| accounts::grants(client, account))
    }

    async fn cursor(&self, shard: u32) -> StoreResult<Cursor> {
        within!(self, |client| flush::cursor(client, shard))
    }

    async fn raise_epoch(&self, shard: u32, from: Cursor) -> StoreResult<Cursor> {
        within!(self, |client| flush::raise_epoch(client, shard, from))
    }

    async fn flush(&self, batch: FlushBatch) -> StoreResult<Flushed> {
        let thresholds = self.thresholds.read().clone();
        within!(self, |client| flush::flush(client, &batch, &thresholds, self.timeout))
    }

    async fn usage(&self, account: &AccountId, page: PageRequest) -> StoreResult<Page<UsageRow>> {
        within!(self, |client| usage::usage(client, account, &page))
    }

    async fn record_account(&self, id: Uuid) -> StoreResult<Option<AccountId>> {
        within!(self, |client| accounts::record_account(client, id))
    }

    async fn idempotency_begin(&self, scope: &str, key: &str, fingerprint: u64) -> StoreResult<Idempotent> {
        within!(self, |client| identity::idempotency_begin(client, scope, key, fingerprint))
    }

    async fn idempotency_finish(&self, scope: &str, key: &str, status: u16, body: &str) -> StoreResult<()> {
        within!(self, |client| identity::idempotency_finish(client, scope, key, status, body))
    }

    async fn idempotency_forget(&self, scope: &str, key: &str) -> StoreResult<()> {
        within!(self, |client| identity::idempotency_forget(client, scope, key))
    }

    async fn audit(&self, actor: &str, action: &str, account: Option<&AccountId>, detail: &str) -> StoreResult<()> {
        within!(self, |client| identity::audit(client, actor, action, account, detail))
    }

    async fn prune(&self) -> StoreResult<()> {
        within!(self, |client| identity::prune(client))
    }
}
