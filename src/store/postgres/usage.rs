//! Usage rows: written by the thousand, read by the page.

use deadpool_postgres::{Client, Transaction};
use tokio_postgres::Row;

use super::super::common::{self, TIME_MAX_US, UsageColumns, int, uint};
use super::super::{Page, PageRequest, StoreResult, UsageRow};
use super::{Values, execute, micros, query, time};
use crate::credits::Credits;
use crate::ledger::{AccountId, Event};
use crate::usage::Usage;

/// Writes one row; answers 0 where its request id is taken. Many at once: see [`super::copy`].
pub(super) async fn insert(tx: &Transaction<'_>, event: &Event, columns: &UsageColumns) -> StoreResult<u64> {
    let usage = &columns.usage;
    let insert =
        "INSERT INTO usage_logs (request_id, user_id, seq, client_request_id, key_id, route, upstream, model, status,
            charged, input_tokens, cached_tokens, output_tokens, estimated, streamed, latency_ms, created_at, settled_at,
            reason)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
        ON CONFLICT (request_id) DO NOTHING";
    let values: Values<'_> = &[
        &usage.request_id,
        &event.account.as_str(),
        &int(event.seq),
        &usage.client_request_id,
        &usage.key_id,
        &usage.route,
        &usage.upstream,
        &usage.model,
        &i32::from(usage.status),
        &event.charged.micro(),
        &columns.input_tokens,
        &columns.cached_tokens,
        &columns.output_tokens,
        &usage.estimated,
        &usage.streamed,
        &columns.latency_ms,
        &time(columns.created_at),
        &time(event.at.min(TIME_MAX_US)),
        &usage.reason,
    ];
    execute(tx, insert, values).await
}

/// A page of an account's usage: the account, before which sequence number, how many rows.
pub const PAGE: &str = "SELECT seq, charged, request_id, client_request_id, key_id, route, upstream, model, status,
        input_tokens, cached_tokens, output_tokens, estimated, streamed, latency_ms, created_at, reason
    FROM usage_logs WHERE user_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3";

pub(super) async fn usage(client: &Client, account: &AccountId, page: &PageRequest) -> StoreResult<Page<UsageRow>> {
    let slice = common::slice(page)?;
    let before = common::position(&slice)?;
    let rows = query(client, PAGE, &[&account.as_str(), &before, &slice.rows]).await?;
    let found: Vec<UsageRow> = rows.iter().map(|row| read(account, row)).collect();
    Ok(common::page(found, &slice, |row| row.seq.to_string()))
}

fn read(account: &AccountId, row: &Row) -> UsageRow {
    let number = |column: usize| uint(row.get(column));
    let usage = Usage {
        request_id: row.get(2),
        client_request_id: row.get(3),
        key_id: row.get(4),
        route: row.get(5),
        upstream: row.get(6),
        model: row.get(7),
        status: u16::try_from(row.get::<_, i32>(8)).unwrap_or(0),
        input_tokens: number(9),
        cached_tokens: number(10),
        output_tokens: number(11),
        estimated: row.get(12),
        streamed: row.get(13),
        latency_ms: number(14),
        created_at_ms: micros(row.get(15)) / 1_000,
        reason: row.get(16),
    };
    let charged = Credits::saturating_from_micro(i128::from(row.get::<_, i64>(1)));
    UsageRow { account: account.clone(), seq: number(0), charged, usage }
}
