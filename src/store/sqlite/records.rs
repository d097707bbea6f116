//! API holds and kept answers.

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Transaction, params};

use super::super::StoreResult;
use super::super::common;
use super::super::records::Records;
use super::{SqliteStore, accounts, failed};
use crate::ledger::{AccountId, AccountState, RecordId, RecordState};

fn record(tx: &Transaction<'_>, account: &AccountId, id: RecordId) -> StoreResult<Option<RecordState>> {
    let select = "SELECT state FROM ledger_records WHERE id = ?1 AND user_id = ?2";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let named = params![id.0.as_bytes(), account.as_str()];
    let found = statement.query_row(named, |row| row.get::<_, Vec<u8>>(0)).optional().map_err(failed)?;
    found.map(|state| common::read_record(&state)).transpose()
}

#[async_trait]
impl Records for SqliteStore {
    async fn load_open(&self, account: &AccountId) -> StoreResult<Option<AccountState>> {
        let account = account.clone();
        self.threads.read(move |tx| accounts::load(tx, &account, true)).await
    }

    async fn record(&self, account: &AccountId, id: RecordId) -> StoreResult<Option<RecordState>> {
        let account = account.clone();
        self.threads.read(move |tx| record(tx, &account, id)).await
    }
}
