//! Usage rows, read by the page.

use rusqlite::{Row, ToSql, Transaction};
use uuid::Uuid;

use super::super::common::{self, uint};
use super::super::{Page, PageRequest, StoreResult, UsageRow};
use super::failed;
use crate::credits::Credits;
use crate::ledger::AccountId;
use crate::usage::Usage;

/// A page of an account's usage: the account, before which sequence number, how many rows.
pub const PAGE: &str = "SELECT seq, charged, request_id, client_request_id, key_id, route, upstream, model, status,
        input_tokens, cached_tokens, output_tokens, estimated, streamed, latency_ms, created_at, reason
    FROM usage_logs WHERE user_id = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3";

pub(super) fn usage(tx: &Transaction<'_>, account: &AccountId, page: &PageRequest) -> StoreResult<Page<UsageRow>> {
    let slice = common::slice(page)?;
    let before = common::position(&slice)?;
    let mut statement = tx.prepare_cached(PAGE).map_err(failed)?;
    let values: [&dyn ToSql; 3] = [&account.as_str(), &before, &slice.rows];
    let rows = statement.query_map(values, |row| read(account, row)).map_err(failed)?;
    let found: Vec<UsageRow> = rows.collect::<Result<_, _>>().map_err(failed)?;
    Ok(common::page(found, &slice, |row| row.seq.to_string()))
}

fn read(account: &AccountId, row: &Row<'_>) -> rusqlite::Result<UsageRow> {
    let number = |column: usize| row.get::<_, i64>(column).map(uint);
    let usage = Usage {
        request_id: Uuid::from_bytes(row.get(2)?),
        client_request_id: row.get(3)?,
        key_id: row.get(4)?,
        route: row.get(5)?,
        upstream: row.get(6)?,
        model: row.get(7)?,
        status: row.get(8)?,
        input_tokens: number(9)?,
        cached_tokens: number(10)?,
        output_tokens: number(11)?,
        estimated: row.get(12)?,
        streamed: row.get(13)?,
        latency_ms: number(14)?,
        created_at_ms: number(15)? / 1_000,
        reason: row.get(16)?,
    };
    let charged = Credits::saturating_from_micro(i128::from(row.get::<_, i64>(1)?));
    Ok(UsageRow { account: account.clone(), seq: number(0)?, charged, usage })
}
