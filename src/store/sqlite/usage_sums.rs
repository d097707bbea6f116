//! Usage by day: summed up by a reader, written in one short transaction.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, Transaction, params, params_from_iter};

use super::super::books::UsageSpan;
use super::super::common::{self, Slice, int, uint};
use super::super::usage_sums::{
    self, AccountDay, DayRow, Dimension, Figures, MODEL_CHARS, RolledUp, SumsRequest, UsageSum, UsageSums,
};
use super::super::{Page, StoreError, StoreResult};
use super::{SqliteStore, failed, identity};
use crate::ledger::AccountId;

/// Accounts of one step, and sequence numbers of all of them together.
const ACCOUNTS_MAX: usize = 500;
const SEQS_MAX: u64 = 5_000;
pub(super) const DAY_US: i64 = 24 * 3600 * 1_000_000;

const FIGURES: &str = "sum(requests), sum(charged), sum(input_tokens), sum(cached_tokens), sum(output_tokens),
    sum(estimated), sum(client_errors), sum(server_errors)";

fn behind(tx: &Transaction<'_>, only: Option<&str>, after: &str) -> StoreResult<Vec<UsageSpan>> {
    // With the last one of the step before: it may have been cut.
    let which = if only.is_some() { "=" } else { ">=" };
    let select = format!(
        "SELECT c.user_id, coalesce(r.seq, 0), c.seq FROM credits AS c LEFT JOIN usage_rolled AS r ON r.user_id = c.user_id
        WHERE c.user_id {which} ?1 AND c.seq > coalesce(r.seq, 0) ORDER BY c.user_id LIMIT ?2"
    );
    let mut statement = tx.prepare_cached(&select).map_err(failed)?;
    let values = params![only.unwrap_or(after), ACCOUNTS_MAX as i64];
    let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
    let rows = statement.query_map(values, read).map_err(failed)?;
    rows.map(|row| {
        let (account, after, upto) = row.map_err(failed)?;
        Ok(UsageSpan { account: common::account(&account)?, after: uint(after), upto: uint(upto) })
    })
    .collect()
}

/// Adds up a piece of an account's usage by day: the account, after and up to which sequence number, microseconds of a day,
/// characters of a model.
pub const SUM_UP: &str =
    "SELECT created_at / ?4, coalesce(substr(model, 1, ?5), ''), route, coalesce(key_id, ''), count(*),
        sum(charged), sum(input_tokens), sum(cached_tokens), sum(output_tokens), sum(estimated),
        sum(status BETWEEN 400 AND 499), sum(status >= 500)
    FROM usage_logs WHERE user_id = ?1 AND seq > ?2 AND seq <= ?3 GROUP BY 1, 2, 3, 4";

/// The rows of the spans by day, and the models that those days know already.
fn sum_up(tx: &Transaction<'_>, spans: &[UsageSpan]) -> StoreResult<Vec<DayRow>> {
    let mut statement = tx.prepare_cached(SUM_UP).map_err(failed)?;
    let mut rows = Vec::new();
    for span in spans {
        let values = params![span.account.as_str(), int(span.after), int(span.upto), DAY_US, MODEL_CHARS];
        let read = |row: &Row<'_>| {
            Ok(DayRow {
                account: span.account.to_string(),
                day: row.get(0)?,
                model: row.get(1)?,
                route: row.get(2)?,
                key: row.get(3)?,
                figures: figures(row, 4)?,
            })
        };
        let found = statement.query_map(values, read).map_err(failed)?;
        rows.extend(found.collect::<Result<Vec<_>, _>>().map_err(failed)?);
    }
    let known = known_models(tx, &rows)?;
    Ok(usage_sums::bounded(rows, known))
}

fn known_models(tx: &Transaction<'_>, rows: &[DayRow]) -> StoreResult<HashMap<AccountDay, HashSet<String>>> {
    let select = "SELECT DISTINCT model FROM usage_days WHERE user_id = ?1 AND day = ?2";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let mut known: HashMap<AccountDay, HashSet<String>> = HashMap::new();
    for row in rows {
        if let Entry::Vacant(day) = known.entry((row.account.clone(), row.day)) {
            let models = statement.query_map(params![row.account, row.day], |row| row.get(0)).map_err(failed)?;
            day.insert(models.collect::<Result<_, _>>().map_err(failed)?);
        }
    }
    Ok(known)
}

pub(super) fn figures(row: &Row<'_>, first: usize) -> rusqlite::Result<Figures> {
    Ok(Figures {
        requests: row.get(first)?,
        charged: row.get(first + 1)?,
        input_tokens: row.get(first + 2)?,
        cached_tokens: row.get(first + 3)?,
        output_tokens: row.get(first + 4)?,
        estimated: row.get(first + 5)?,
        client_errors: row.get(first + 6)?,
        server_errors: row.get(first + 7)?,
    })
}

/// `CursorMoved` where somebody else has added the spans up meanwhile.
fn add(tx: &Transaction<'_>, spans: &[UsageSpan], rows: &[DayRow]) -> StoreResult<()> {
    let mut rolled = tx.prepare_cached("SELECT seq FROM usage_rolled WHERE user_id = ?1").map_err(failed)?;
    let upsert = "INSERT INTO usage_rolled (user_id, seq) VALUES (?1, ?2)
        ON CONFLICT (user_id) DO UPDATE SET seq = excluded.seq";
    let mut upsert = tx.prepare_cached(upsert).map_err(failed)?;
    for span in spans {
        let account = span.account.as_str();
        let seq: Option<i64> = rolled.query_row([account], |row| row.get(0)).optional().map_err(failed)?;
        if uint(seq.unwrap_or(0)) != span.after {
            return Err(StoreError::CursorMoved);
        }
        upsert.execute(params![account, int(span.upto)]).map_err(failed)?;
    }
    let insert = "INSERT INTO usage_days AS d VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
        ON CONFLICT DO UPDATE SET requests = d.requests + excluded.requests, charged = d.charged + excluded.charged,
            input_tokens = d.input_tokens + excluded.input_tokens,
            cached_tokens = d.cached_tokens + excluded.cached_tokens,
            output_tokens = d.output_tokens + excluded.output_tokens, estimated = d.estimated + excluded.estimated,
            client_errors = d.client_errors + excluded.client_errors,
            server_errors = d.server_errors + excluded.server_errors";
    let mut insert = tx.prepare_cached(insert).map_err(failed)?;
    for row in rows {
        let sums = row.figures;
        let values = params![
            row.account,
            row.day,
            row.model,
            row.route,
            row.key,
            sums.requests,
            sums.charged,
            sums.input_tokens,
            sums.cached_tokens,
            sums.output_tokens,
            sums.estimated,
            sums.client_errors,
            sums.server_errors,
        ];
        insert.execute(values).map_err(failed)?;
    }
    Ok(())
}

fn redo(tx: &Transaction<'_>, account: &AccountId, actor: &str) -> StoreResult<bool> {
    let id = account.as_str();
    let delete = "DELETE FROM usage_days WHERE user_id = ?1
        AND day >= coalesce((SELECT until / ?2 FROM usage_pruned WHERE user_id = ?1), 0)";
    let rows = tx.execute(delete, params![id, DAY_US]).map_err(failed)?;
    tx.execute("UPDATE usage_rolled SET seq = 0 WHERE user_id = ?1", [id]).map_err(failed)?;
    let detail = serde_json::json!({ "rows": rows }).to_string();
    identity::audit(tx, actor, "books.redo_days", Some(account), &detail)?;
    Ok(true)
}

/// How a report is asked for, with the places of its values.
pub fn report(request: &SumsRequest) -> StoreResult<String> {
    question(request, &common::slice(&request.page)?).map(|(select, _)| select)
}

fn question(request: &SumsRequest, slice: &Slice) -> StoreResult<(String, Vec<Value>)> {
    let columns: Vec<&str> = request.by.iter().map(|dimension| dimension.column()).collect();
    let columns = columns.join(", ");
    let (mut conditions, mut values) = (vec!["true".to_owned()], Vec::<Value>::new());
    let mut condition = |text: &str, value: Value| {
        values.push(value);
        conditions.push(text.replace('?', &format!("?{}", values.len())));
    };
    if let Some(account) = &request.account {
        condition("user_id = ?", account.to_string().into());
    }
    if let Some(plan) = &request.plan {
        condition("user_id IN (SELECT id FROM users WHERE plan = ?)", plan.clone().into());
    }
    if let Some(from) = request.from {
        condition("day >= ?", i64::from(from).into());
    }
    if let Some(to) = request.to {
        condition("day < ?", i64::from(to).into());
    }
    if let Some(after) = usage_sums::position(slice.after.as_deref(), request.by.len())? {
        let first = values.len() + 1;
        for (dimension, text) in request.by.iter().zip(after) {
            values.push(match dimension {
                Dimension::Day => Value::Integer(common::day(&text)?.into()),
                _ => text.into(),
            });
        }
        let places: Vec<String> = (first..=values.len()).map(|place| format!("?{place}")).collect();
        conditions.push(format!("({columns}) > ({})", places.join(", ")));
    }
    values.push(slice.rows.into());
    let select = format!(
        "SELECT {columns}, {FIGURES} FROM usage_days WHERE {} GROUP BY {columns} ORDER BY {columns} LIMIT ?{}",
        conditions.join(" AND "),
        values.len()
    );
    Ok((select, values))
}

fn sums(tx: &Transaction<'_>, request: &SumsRequest) -> StoreResult<Page<UsageSum>> {
    let slice = common::slice(&request.page)?;
    let (select, values) = question(request, &slice)?;
    let read = |row: &Row<'_>| {
        let of = request.by.iter().enumerate().map(|(column, dimension)| match dimension {
            Dimension::Day => row.get::<_, i64>(column).map(|day| day.to_string()),
            _ => row.get(column),
        });
        Ok(UsageSum { of: of.collect::<Result<_, _>>()?, figures: figures(row, request.by.len())? })
    };
    let mut statement = tx.prepare_cached(&select).map_err(failed)?;
    let found = statement.query_map(params_from_iter(values), read).map_err(failed)?;
    let found: Vec<UsageSum> = found.collect::<Result<_, _>>().map_err(failed)?;
    Ok(common::page(found, &slice, usage_sums::write_position))
}

#[async_trait]
impl UsageSums for SqliteStore {
    async fn roll_up(&self, only: Option<&AccountId>, after: Option<&AccountId>) -> StoreResult<RolledUp> {
        let only = only.map(ToString::to_string);
        let after = after.map(ToString::to_string).unwrap_or_default();
        let summed = self.threads.read(move |tx| {
            let behind = behind(tx, only.as_deref(), &after)?;
            let full = behind.len() >= ACCOUNTS_MAX;
            let (spans, last) = usage_sums::within_budget(behind, SEQS_MAX, full);
            let rows = sum_up(tx, &spans)?;
            Ok((spans, rows, last))
        });
        let (spans, rows, last) = summed.await?;
        if spans.is_empty() {
            return Ok(RolledUp::default());
        }
        let passed = spans.iter().map(|span| span.upto - span.after).sum();
        self.threads.write(move |tx| add(tx, &spans, &rows)).await?;
        Ok(RolledUp { passed, last })
    }

    async fn redo_days(&self, account: &AccountId, actor: &str) -> StoreResult<bool> {
        let (account, actor) = (account.clone(), actor.to_owned());
        self.threads.write(move |tx| redo(tx, &account, &actor)).await
    }

    async fn usage_sums(&self, request: SumsRequest) -> StoreResult<Page<UsageSum>> {
        self.threads.read(move |tx| sums(tx, &request)).await
    }
}
