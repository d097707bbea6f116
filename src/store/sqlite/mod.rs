//! The store as a SQLite file: one process, nothing to install.

mod accounts;
mod billing;
mod books;
mod copy;
mod flush;
mod identity;
mod journal;
mod key_use;
mod notifications;
mod owners;
mod pack;
mod questions;
mod records;
mod reopenings;
mod sessions;
mod sign_ups;
mod threads;
mod topups;
mod upkeep;
pub mod usage;
pub mod usage_sums;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::RwLock;
use refinery::Migration;
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use uuid::Uuid;

use super::journal::{Folded, Journal};
use super::migrations;
use super::notifications::Thresholds;
use super::{
    ChangeRow, Cursor, FlushBatch, Flushed, GrantRow, Idempotent, IdentityChange, KeyRow, NewChange, NewUser, Page,
    PageRequest, Store, StoreError, StoreResult, Unapplied, UsageRow, User,
};
use crate::ledger::{AccountId, AccountState};
pub use copy::{back_up, restore};
use threads::Threads;

pub struct SqliteStore {
    threads: Threads,
    thresholds: RwLock<Arc<Thresholds>>,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file, or makes it. Blocks: call it off the async runtimes. The folder must exist, and only one process
    /// may use the file.
    pub fn open(path: &Path) -> StoreResult<SqliteStore> {
        Ok(SqliteStore { threads: Threads::start(path)?, thresholds: RwLock::default() })
    }
}

/// A broken rule of the schema is a `Conflict`; everything else is the file's or the disk's.
fn failed(error: rusqlite::Error) -> StoreError {
    match &error {
        rusqlite::Error::SqliteFailure(code, message) => match code.code {
            ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig => {
                StoreError::Conflict(message.clone().unwrap_or_else(|| code.to_string()))
            }
            _ => StoreError::Unavailable(error.to_string()),
        },
        _ => StoreError::Unavailable(error.to_string()),
    }
}

fn pending(connection: &mut Connection) -> StoreResult<usize> {
    let question = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1";
    let begun: Option<i64> =
        connection.query_row(question, [migrations::HISTORY_TABLE], |row| row.get(0)).optional().map_err(failed)?;
    let applied: Vec<Migration> = match begun {
        None => Vec::new(),
        Some(_) => {
            let runner = migrations::runner(migrations::SQLITE)?;
            runner.get_applied_migrations(connection).map_err(migrations::failed)?
        }
    };
    migrations::pending(migrations::SQLITE, &applied)
}

#[async_trait]
impl Store for SqliteStore {
    async fn migrate(&self) -> StoreResult<usize> {
        let migrate = |connection: &mut Connection| {
            if pending(connection)? == 0 {
                return Ok(0);
            }
            let report = migrations::runner(migrations::SQLITE)?.run(connection).map_err(migrations::failed)?;
            Ok(report.applied_migrations().len())
        };
        self.threads.own(migrate).await
    }

    async fn check_schema(&self) -> StoreResult<()> {
        migrations::require_none_pending(self.threads.own(pending).await?)
    }

    async fn close(&self) {
        self.threads.close().await;
    }

    async fn ping(&self) -> StoreResult<()> {
        self.threads
            .read(|tx| tx.query_row("SELECT count(*) FROM ledger_cursors", [], |_| Ok(())).map_err(failed))
            .await
    }

    async fn is_empty(&self) -> StoreResult<bool> {
        self.threads.read(identity::is_empty).await
    }

    async fn create_user(&self, user: NewUser) -> StoreResult<User> {
        self.threads.write(move |tx| accounts::create_user(tx, user)).await
    }

    async fn user(&self, id: &AccountId) -> StoreResult<Option<User>> {
        let id = id.clone();
        self.threads.read(move |tx| accounts::user(tx, &id)).await
    }

    async fn users(&self, page: PageRequest) -> StoreResult<Page<User>> {
        self.threads.read(move |tx| accounts::users(tx, &page)).await
    }

    async fn set_plan(&self, id: &AccountId, plan: &str, actor: &str) -> StoreResult<User> {
        let (id, plan, actor) = (id.clone(), plan.to_owned(), actor.to_owned());
        self.threads.write(move |tx| accounts::set_plan(tx, &id, &plan, &actor)).await
    }

    async fn create_key(&self, key: KeyRow) -> StoreResult<()> {
        self.threads.write(move |tx| identity::create_key(tx, &key)).await
    }

    async fn key_by_hash(&self, hash: &[u8; 32]) -> StoreResult<Option<KeyRow>> {
        let hash = *hash;
        self.threads.read(move |tx| identity::key_by_hash(tx, &hash)).await
    }

    async fn keys_of(&self, user: Option<&AccountId>) -> StoreResult<Vec<KeyRow>> {
        let user = user.cloned();
        self.threads.read(move |tx| identity::keys_of(tx, user.as_ref())).await
    }

    async fn revoke_key(&self, user: Option<&AccountId>, id: &str) -> StoreResult<KeyRow> {
        let (user, id) = (user.cloned(), id.to_owned());
        self.threads.write(move |tx| identity::revoke_key(tx, user.as_ref(), &id)).await
    }

    async fn identity_changes(&self, since: u64) -> StoreResult<(u64, Vec<IdentityChange>)> {
        self.threads.read(move |tx| identity::changes(tx, since)).await
    }

    async fn add_change(&self, change: NewChange) -> StoreResult<ChangeRow> {
        self.threads.write(move |tx| accounts::add_change(tx, change)).await
    }

    async fn unapplied_accounts(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<Unapplied>> {
        let after = after.cloned();
        self.threads.read(move |tx| accounts::unapplied_accounts(tx, after.as_ref(), limit)).await
    }

    async fn changes_after(&self, account: &AccountId, number: u64) -> StoreResult<Vec<ChangeRow>> {
        let account = account.clone();
        self.threads.read(move |tx| accounts::changes_after(tx, &account, number)).await
    }

    async fn load_account(&self, account: &AccountId) -> StoreResult<Option<AccountState>> {
        let account = account.clone();
        self.threads.read(move |tx| accounts::load(tx, &account, false)).await
    }

    async fn grants(&self, account: &AccountId) -> StoreResult<Vec<GrantRow>> {
        let account = account.clone();
        self.threads.read(move |tx| accounts::grants(tx, &account)).await
    }

    async fn cursor(&self, shard: u32) -> StoreResult<Cursor> {
        self.threads.read(move |tx| flush::cursor(tx, shard)).await
    }

    async fn raise_epoch(&self, shard: u32, from: Cursor) -> StoreResult<Cursor> {
        self.threads.write(move |tx| flush::raise_epoch(tx, shard, from)).await
    }

    async fn flush(&self, batch: FlushBatch) -> StoreResult<Flushed> {
        let thresholds = self.thresholds.read().clone();
        self.threads.own(move |connection| flush::flush(connection, &batch, &thresholds)).await
    }

    fn journal(&self) -> Option<&dyn Journal> {
        Some(self)
    }

    async fn usage(&self, account: &AccountId, page: PageRequest) -> StoreResult<Page<UsageRow>> {
        let account = account.clone();
        self.threads.read(move |tx| usage::usage(tx, &account, &page)).await
    }

    async fn record_account(&self, id: Uuid) -> StoreResult<Option<AccountId>> {
        self.threads.read(move |tx| accounts::record_account(tx, id)).await
    }

    async fn idempotency_begin(&self, scope: &str, key: &str, fingerprint: u64) -> StoreResult<Idempotent> {
        let (scope, key) = (scope.to_owned(), key.to_owned());
        self.threads.write(move |tx| identity::idempotency_begin(tx, &scope, &key, fingerprint)).await
    }

    async fn idempotency_finish(&self, scope: &str, key: &str, status: u16, body: &str) -> StoreResult<()> {
        let (scope, key, body) = (scope.to_owned(), key.to_owned(), body.to_owned());
        self.threads.write(move |tx| identity::idempotency_finish(tx, &scope, &key, status, &body)).await
    }

    async fn idempotency_forget(&self, scope: &str, key: &str) -> StoreResult<()> {
        let (scope, key) = (scope.to_owned(), key.to_owned());
        self.threads.write(move |tx| identity::idempotency_forget(tx, &scope, &key)).await
    }

    async fn audit(&self, actor: &str, action: &str, account: Option<&AccountId>, detail: &str) -> StoreResult<()> {
        let (actor, action, account, detail) =
            (actor.to_owned(), action.to_owned(), account.cloned(), detail.to_owned());
        self.threads.write(move |tx| identity::audit(tx, &actor, &action, account.as_ref(), &detail)).await
    }

    async fn prune(&self) -> StoreResult<()> {
        self.threads.write(identity::prune).await
    }
}

#[async_trait]
impl Journal for SqliteStore {
    async fn journal_end(&self, shard: u32) -> StoreResult<Cursor> {
        self.threads.read(move |tx| journal::end(tx, shard)).await
    }

    async fn append(&self, batch: FlushBatch) -> StoreResult<()> {
        let packed = pack::pack(&batch.events)?;
        self.threads.own(move |connection| journal::append(connection, &batch, &packed)).await
    }

    async fn fold(&self, shard: u32) -> StoreResult<Option<Folded>> {
        let thresholds = self.thresholds.read().clone();
        let read = move |tx: &rusqlite::Transaction<'_>| journal::read(tx, shard, thresholds);
        let Some(mut stretch) = self.threads.read(read).await? else { return Ok(None) };
        loop {
            let slice = move |connection: &mut Connection| {
                let folded = stretch.write_slice(connection)?;
                Ok((stretch, folded))
            };
            let (rest, folded) = self.threads.own_relaxed(slice).await?;
            match folded {
                Some(folded) => return Ok(Some(folded)),
                None => stretch = rest,
            }
        }
    }
}
