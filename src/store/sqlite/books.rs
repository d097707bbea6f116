//! The books of accounts, for the audit.

use async_trait::async_trait;
use rusqlite::{Row, Transaction, params};

use super::super::books::{AccountBooks, BookRows, Books, DayBooks, MendRequest, REST_ROWS, SpanCharged, UsageSpan};
use super::super::common::{self, int, uint};
use super::super::mend::{self, CHANGES_MAX, GrantFound, Mended, Rows};
use super::super::usage_sums::Figures;
use super::super::{StoreError, StoreResult, changes};
use super::usage_sums::figures;
use super::{SqliteStore, failed, identity};
use crate::ledger::{AccountId, Change, GrantId};

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
        coalesce(p.charged, 0),
        coalesce((SELECT seq FROM usage_rolled WHERE user_id = c.user_id), 0),
        coalesce(p.day_requests, 0), coalesce(p.day_charged, 0), coalesce(p.day_input_tokens, 0),
        coalesce(p.day_cached_tokens, 0), coalesce(p.day_output_tokens, 0), coalesce(p.day_estimated, 0),
        coalesce(p.day_client_errors, 0), coalesce(p.day_server_errors, 0)
    FROM credits AS c LEFT JOIN (SELECT user_id, number, applied,
            CASE WHEN payload LIKE '{\"type\":\"grant\",%' AND json_valid(payload)
                THEN coalesce(CAST(json_extract(payload, '$.amount_micro') AS INTEGER), 0) ELSE 0 END AS amount
        FROM credit_changes) AS h ON h.user_id = c.user_id
    LEFT JOIN usage_pruned AS p ON p.user_id = c.user_id";
/// For one account: beside the others in one question, SQLite would add up everybody's.
const DAYS: &str = "SELECT coalesce(sum(requests), 0), coalesce(sum(charged), 0), coalesce(sum(input_tokens), 0),
        coalesce(sum(cached_tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(estimated), 0),
        coalesce(sum(client_errors), 0), coalesce(sum(server_errors), 0)
    FROM usage_days WHERE user_id = ?1";

fn books(tx: &Transaction<'_>, filter: &str, account: &str, limit: i64) -> StoreResult<Vec<AccountBooks>> {
    let select = format!("{BOOKS} WHERE {filter} GROUP BY c.user_id ORDER BY c.user_id LIMIT ?2");
    let mut statement = tx.prepare_cached(&select).map_err(failed)?;
    let rows = statement.query_map(params![account, limit], read).map_err(failed)?;
    let mut found: Vec<AccountBooks> = rows.map(|row| row.map_err(failed)?).collect::<StoreResult<_>>()?;
    let mut days = tx.prepare_cached(DAYS).map_err(failed)?;
    for books in &mut found {
        books.days.sums = days.query_row([books.account.as_str()], |row| figures(row, 0)).map_err(failed)?;
    }
    Ok(found)
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
        days: DayBooks { rolled: number(20)?, sums: Figures::default(), pruned: figures(row, 21)? },
    };
    Ok(Ok(books))
}

fn charged(tx: &Transaction<'_>, span: &UsageSpan, limit: u32) -> StoreResult<SpanCharged> {
    let (account, after, upto) = (span.account.as_str(), int(span.after), int(span.upto));
    let select = "SELECT count(*), coalesce(sum(charged), 0), coalesce(sum(input_tokens), 0),
            coalesce(sum(cached_tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(estimated), 0),
            coalesce(sum(status BETWEEN 400 AND 499), 0), coalesce(sum(status >= 500), 0), coalesce(max(seq), 0)
        FROM (SELECT * FROM usage_logs WHERE user_id = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4)";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let sums =
        statement.query_row(params![account, after, upto, limit], |row| Ok((figures(row, 0)?, row.get::<_, i64>(8)?)));
    let (figures, newest) = sums.map_err(failed)?;
    let reached = if figures.requests < i64::from(limit) { upto } else { newest };
    let select = "SELECT coalesce(sum(micro), 0) FROM (
        SELECT DISTINCT seq, CAST(json_extract(event, '$.charged_micro') AS INTEGER) AS micro FROM dead_letters AS d
        WHERE user_id = ?1 AND seq > ?2 AND seq <= ?3
            AND reason IN ('unreadable_usage', 'duplicate_request', 'refused') AND json_valid(event)
            AND NOT EXISTS (SELECT 1 FROM usage_logs WHERE user_id = d.user_id AND seq = d.seq))";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let letters: i64 = statement.query_row(params![account, after, reached], |row| row.get(0)).map_err(failed)?;
    let micro = figures.charged.checked_add(letters).ok_or(StoreError::Invalid("the sum of the usage"))?;
    Ok(SpanCharged { micro, upto: uint(reached), figures })
}

fn mend(tx: &Transaction<'_>, request: &MendRequest) -> StoreResult<bool> {
    let account = request.account.as_str();
    let books = books(tx, "c.user_id = ?1", account, 1)?.pop().ok_or(StoreError::NotFound("the account"))?;
    let rest = UsageSpan { account: request.account.clone(), after: request.upto, upto: books.seq };
    let rest = charged(tx, &rest, REST_ROWS)?;
    if books.seq < request.upto || rest.upto < books.seq {
        return Err(StoreError::Invalid("the sum of the usage"));
    }
    if books.rows.pruned != request.pruned {
        return Err(StoreError::CursorMoved);
    }
    let used = request.used.checked_add(rest.micro).ok_or(StoreError::Invalid("the sum of the usage"))?;
    let found = Rows { changes: changes_of(tx, account)?, grants: grants_of(tx, account)?, books };
    let Some(mended) = mend::plan(&found, used, request)? else { return Ok(false) };
    let update = "UPDATE credits SET balance = ?2, debt = ?3, granted = ?4, charged = ?5, frozen = ?6, last_change = ?7
        WHERE user_id = ?1";
    let Mended { balance, debt, granted, charged, frozen, last_change, grants, detail } = mended;
    tx.execute(update, params![account, balance, debt, granted, charged, frozen, int(last_change)]).map_err(failed)?;
    for grant in grants {
        let update = "UPDATE credit_grants SET amount = ?3, remaining = ?4 WHERE user_id = ?1 AND id = ?2";
        tx.execute(update, params![account, int(grant.id.0), grant.amount, grant.remaining]).map_err(failed)?;
    }
    let update = "UPDATE credit_changes SET applied = (number <= ?2) WHERE user_id = ?1 AND applied <> (number <= ?2)";
    tx.execute(update, params![account, int(found.books.applied_change)]).map_err(failed)?;
    identity::audit(tx, &request.actor, "books.mend", Some(&request.account), &detail)?;
    Ok(true)
}

fn changes_of(tx: &Transaction<'_>, account: &str) -> StoreResult<Vec<(u64, Option<Change>)>> {
    let select = "SELECT number, payload FROM credit_changes WHERE user_id = ?1 ORDER BY number LIMIT ?2";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let read = |row: &Row<'_>| Ok((uint(row.get(0)?), changes::read(&row.get::<_, String>(1)?).ok()));
    let rows = statement.query_map(params![account, CHANGES_MAX as i64], read).map_err(failed)?;
    rows.collect::<Result<_, _>>().map_err(failed)
}

fn grants_of(tx: &Transaction<'_>, account: &str) -> StoreResult<Vec<GrantFound>> {
    let select =
        "SELECT id, kind, amount, remaining, expires_at FROM credit_grants WHERE user_id = ?1 ORDER BY id LIMIT ?2";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let read = |row: &Row<'_>| {
        let (id, kind, amount, remaining) =
            (GrantId(uint(row.get(0)?)), row.get::<_, String>(1)?, row.get(2)?, row.get(3)?);
        let expires_at = row.get::<_, Option<i64>>(4)?.map(uint);
        Ok(common::grant_kind(&kind).map(|kind| GrantFound { id, kind, amount, remaining, expires_at }))
    };
    let rows = statement.query_map(params![account, CHANGES_MAX as i64], read).map_err(failed)?;
    rows.map(|row| row.map_err(failed)?).collect()
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

    async fn mend(&self, request: MendRequest) -> StoreResult<bool> {
        self.threads.write(move |tx| mend(tx, &request)).await
    }
}
