//! API holds and kept answers.

use std::collections::HashMap;

use async_trait::async_trait;
use deadpool_postgres::{Client, Object, Transaction};
use uuid::Uuid;

use super::super::common::{self, int};
use super::super::records::Records;
use super::super::{FlushBatch, StoreError, StoreResult};
use super::{PostgresStore, accounts, execute, query_opt, within};
use crate::ledger::{AccountId, AccountState, RecordId, RecordState};

/// Writes them as they now stand. Those of users who are not known are left out.
pub(super) async fn write(tx: &Transaction<'_>, batch: &FlushBatch) -> StoreResult<()> {
    if batch.records.is_empty() {
        return Ok(());
    }
    // A statement may change a row once.
    let newest: HashMap<RecordId, &(AccountId, RecordState)> =
        batch.records.iter().map(|record| (record.1.id, record)).collect();
    let mut newest: Vec<&(AccountId, RecordState)> = newest.into_values().collect();
    // In one order, so that two writers never wait for each other in a circle.
    newest.sort_unstable_by_key(|(_, record)| record.id.0);
    let ids: Vec<Uuid> = newest.iter().map(|(_, record)| record.id.0).collect();
    let users: Vec<&str> = newest.iter().map(|(account, _)| account.as_str()).collect();
    let held: Vec<bool> = newest.iter().map(|(_, record)| record.held.is_some()).collect();
    let until: Vec<i64> = newest.iter().map(|(_, record)| int(record.until)).collect();
    let states: Vec<Vec<u8>> =
        newest.iter().map(|(_, record)| common::write_record(record)).collect::<Result<_, _>>()?;
    let upsert = "INSERT INTO ledger_records AS r (id, user_id, held, until, state)
        SELECT w.id, w.user_id, w.held, w.until, w.state
        FROM unnest($1::uuid[], $2::text[], $3::boolean[], $4::bigint[], $5::bytea[]) AS w (id, user_id, held, until, state)
        JOIN credits AS c ON c.user_id = w.user_id
        ON CONFLICT (id) DO UPDATE SET held = excluded.held, until = excluded.until, state = excluded.state
        WHERE r.user_id = excluded.user_id";
    execute(tx, upsert, &[&ids, &users, &held, &until, &states]).await.map(drop)
}

async fn record(client: &Client, account: &AccountId, id: RecordId) -> StoreResult<Option<RecordState>> {
    let select = "SELECT state FROM ledger_records WHERE id = $1 AND user_id = $2";
    let row = query_opt(client, select, &[&id.0, &account.as_str()]).await?;
    row.map(|row| common::read_record(row.get(0))).transpose()
}

#[async_trait]
impl Records for PostgresStore {
    async fn load_open(&self, account: &AccountId) -> StoreResult<Option<AccountState>> {
        within!(self, |client| accounts::load(client, account, true))
    }

    async fn record(&self, account: &AccountId, id: RecordId) -> StoreResult<Option<RecordState>> {
        within!(self, |client| record(client, account, id))
    }
}
