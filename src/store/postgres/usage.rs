//! Usage rows: written by the hundred, read by the page.

use std::time::SystemTime;

use deadpool_postgres::{Client, Transaction};
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::common::{self, TIME_MAX_US, UsageColumns, int, uint};
use super::super::{Page, PageRequest, StoreResult, UsageRow};
use super::{Values, micros, query, time};
use crate::credits::Credits;
use crate::ledger::{AccountId, Event};
use crate::usage::Usage;

/// Rows, column by column.
#[derive(Default)]
pub(super) struct UsageArrays {
    request_id: Vec<Uuid>,
    user_id: Vec<String>,
    seq: Vec<i64>,
    client_request_id: Vec<Option<String>>,
    key_id: Vec<Option<String>>,
    route: Vec<String>,
    upstream: Vec<Option<String>>,
    model: Vec<Option<String>>,
    status: Vec<i32>,
    charged: Vec<i64>,
    input_tokens: Vec<i64>,
    cached_tokens: Vec<i64>,
    output_tokens: Vec<i64>,
    estimated: Vec<bool>,
    streamed: Vec<bool>,
    latency_ms: Vec<i64>,
    created_at: Vec<SystemTime>,
    settled_at: Vec<SystemTime>,
    reason: Vec<Option<String>>,
}

impl UsageArrays {
    pub(super) fn push(&mut self, event: &Event, columns: UsageColumns) {
        let usage = columns.usage;
        self.request_id.push(usage.request_id);
        self.user_id.push(event.account.to_string());
        self.seq.push(int(event.seq));
        self.client_request_id.push(usage.client_request_id);
        self.key_id.push(usage.key_id);
        self.route.push(usage.route);
        self.upstream.push(usage.upstream);
        self.model.push(usage.model);
        self.status.push(i32::from(usage.status));
        self.charged.push(event.charged.micro());
        self.input_tokens.push(columns.input_tokens);
        self.cached_tokens.push(columns.cached_tokens);
        self.output_tokens.push(columns.output_tokens);
        self.estimated.push(usage.estimated);
        self.streamed.push(usage.streamed);
        self.latency_ms.push(columns.latency_ms);
        self.created_at.push(time(columns.created_at));
        self.settled_at.push(time(event.at.min(TIME_MAX_US)));
        self.reason.push(usage.reason);
    }

    /// Answers account and sequence of the rows that were written; the others' request ids are taken.
    pub(super) async fn insert(&self, tx: &Transaction<'_>) -> StoreResult<Vec<(String, u64)>> {
        let insert =
            "INSERT INTO usage_logs (request_id, user_id, seq, client_request_id, key_id, route, upstream, model,
                status, charged, input_tokens, cached_tokens, output_tokens, estimated, streamed, latency_ms,
                created_at, settled_at, reason)
            SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::text[], $9::integer[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::boolean[],
                $15::boolean[], $16::bigint[], $17::timestamptz[], $18::timestamptz[], $19::text[])
            ON CONFLICT (request_id) DO NOTHING RETURNING user_id, seq";
        let values: Values<'_> = &[
            &self.request_id,
            &self.user_id,
            &self.seq,
            &self.client_request_id,
            &self.key_id,
            &self.route,
            &self.upstream,
            &self.model,
            &self.status,
            &self.charged,
            &self.input_tokens,
            &self.cached_tokens,
            &self.output_tokens,
            &self.estimated,
            &self.streamed,
            &self.latency_ms,
            &self.created_at,
            &self.settled_at,
            &self.reason,
        ];
        let rows = query(tx, insert, values).await?;
        Ok(rows.iter().map(|row| (row.get(0), uint(row.get(1)))).collect())
    }
}

pub(super) async fn usage(client: &Client, account: &AccountId, page: &PageRequest) -> StoreResult<Page<UsageRow>> {
    let slice = common::slice(page)?;
    let select = "SELECT seq, charged, request_id, client_request_id, key_id, route, upstream, model, status,
            input_tokens, cached_tokens, output_tokens, estimated, streamed, latency_ms, created_at, reason
        FROM usage_logs WHERE user_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3";
    let before = common::position(&slice)?;
    let rows = query(client, select, &[&account.as_str(), &before, &slice.rows]).await?;
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
