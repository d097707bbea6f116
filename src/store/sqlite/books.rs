//! The books of accounts, for the audit.

use async_trait::async_trait;
use rusqlite::{Row, Transaction, params};

use super::super::books::{AccountBooks, BookRows, Books, SpanCharged, UsageSpan};
use super::super::common::{self, int, uint};
use super::super::{StoreError, StoreResult};
use super::{SqliteStore, failed};
use crate::ledger::AccountId;

/// A payload that is no JSON, or no grant's, counts as nothing: then the sums differ, and the audit says so.
const BOOKS: &str = "SELECT c.user_id, c.seq, c.balance, c.debt, c.granted, c.charged, c.written_off, c.frozen,
        c.applied_change, c.last_change,
        coalesce((SELECT sum(remaining) FROM credit_grants WHERE user_id = c.user_id AND id <= c.applied_change), 0),
        coalesce((SELECT sum(amount - remaining) FROM credit_grants
            WHERE user_id = c.user_id AND id > c.applied_change), 0),
        coalesce((SELECT sum(g.amount) FROM credit_grants AS g JOIN credit_changes AS h
            ON h.user_id = g.user_id AND h.number = g.id
            WHERE g.user_id = c.user_id AND h.payload LIKE '{\"type\":\"grant\",%'), 0),
        coalesce(sum(h.amount), 0), coalesce(sum(h.amount) FILTER (WHERE h.number <= c.applied_change), 0),
        count(h.number), coalesce(max(h.number), 0),
        coalesce(sum(h.applied), 0), coalesce(max(h.number) FILTER (WHERE h.applied = 1), 0),
        coalesce((SELECT charged FROM usage_pruned WHERE user_id = c.user_id), 0)
    FROM credits AS c LEFT JOIN (SELECT user_id, number, applied,
            CASE WHEN payload LIKE '{\"type\":\"grant\",%' AND json_valid(payload)
                THEN coalesce(CAST(json_extract(payload, '$.amount_micro') AS INTEGER), 0) ELSE 0 END AS amount
        FROM credit_changes) AS h ON h.user_id = c.user_id";

fn books(tx: &Transaction<'_>, filter: &str, account: &str, limit: i64) -> StoreResult<Vec<AccountBooks>> {
    let select = format!("{BOOKS} WHERE {filter} GROUP BY c.user_id ORDER BY c.user_id LIMIT ?2");
    let mut statement = tx.prepare_cached(&select).map_err(failed)?;
    let rows = statement.query_map(params![account, limit], read).map_err(failed)?;
    rows.map(|row| row.map_err(failed)?).collect()
}

/// The outer result is SQLite's, the inner one says whether the row makes sense.
fn read(row: &Row<'_>) -> rusqlite::Result<StoreResult<AccountBooks>> {
    let number = |column: usize| row.get::<_, i64>(column).map(uint);
    let account: String = row.get(0)?;
    let books = AccountBooks {
        account: match common::account(&account) {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        },
        seq: number(1)?,
        balance: row.get(2)?,
        debt: row.get(3)?,
        granted: row.get(4)?,
        charged: row.get(5)?,
        written_off: row.get(6)?,
        frozen: row.get(7)?,
        applied_change: number(8)?,
        last_change: number(9)?,
        rows: BookRows {
            remaining: row.get(10)?,
            taken_early: row.get(11)?,
            grant_amounts: row.get(12)?,
            change_amounts: row.get(13)?,
            change_amounts_applied: row.get(14)?,
            changes: number(15)?,
            newest_change: number(16)?,
            applied: number(17)?,
            newest_applied: number(18)?,
            pruned: row.get(19)?,
        },
    };
    Ok(Ok(books))
}

fn charged(tx: &Transaction<'_>, span: &UsageSpan, limit: u32) -> StoreResult<SpanCharged> {
    let (account, after, upto) = (span.account.as_str(), int(span.after), int(span.upto));
    let select = "SELECT coalesce(sum(charged), 0), count(*), coalesce(max(seq), 0) FROM (SELECT charged, seq
        FROM usage_logs WHERE user_id = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4)";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let sums = statement.query_row(params![account, after, upto, limit], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    });
    let (micro, rows, newest) = sums.map_err(failed)?;
    let reached = if rows < i64::from(limit) { upto } else { newest };
    let select = "SELECT coalesce(sum(micro), 0) FROM (
        SELECT DISTINCT seq, CAST(json_extract(event, '$.charged_micro') AS INTEGER) AS micro FROM dead_letters AS d
        WHERE user_id = ?1 AND seq > ?2 AND seq <= ?3
            AND reason IN ('unreadable_usage', 'duplicate_request', 'refused') AND json_valid(event)
            AND NOT EXISTS (SELECT 1 FROM usage_logs WHERE user_id = d.user_id AND seq = d.seq))";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let letters: i64 = statement.query_row(params![account, after, reached], |row| row.get(0)).map_err(failed)?;
    let micro = micro.checked_add(letters).ok_or(StoreError::Invalid("the sum of the usage"))?;
    Ok(SpanCharged { micro, upto: uint(reached) })
}

#[async_trait]
impl Books for SqliteStore {
    async fn books(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountBooks>> {
        let after = after.map(ToString::to_string).unwrap_or_default();
        self.threads.read(move |tx| books(tx, "c.user_id > ?1", &after, i64::from(limit))).await
    }

    async fn books_of(&self, account: &AccountId) -> StoreResult<Option<AccountBooks>> {
        let account = account.clone();
        self.threads.read(move |tx| Ok(books(tx, "c.user_id = ?1", account.as_str(), 1)?.pop())).await
    }

    async fn charged(&self, spans: Vec<UsageSpan>, limit: u32) -> StoreResult<Vec<SpanCharged>> {
        self.threads.read(move |tx| spans.iter().map(|span| charged(tx, span, limit)).collect()).await
    }
}
