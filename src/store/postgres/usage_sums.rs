//! Usage by day. One replica at a time adds it up.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use deadpool_postgres::{Client, Object, Transaction};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::super::books::UsageSpan;
use super::super::common::{self, int, uint};
use super::super::usage_sums::{
    self, AccountDay, DayRow, Dimension, Figures, MODEL_CHARS, RolledUp, SumsRequest, UsageSum, UsageSums,
};
use super::super::{Page, StoreError, StoreResult};
use super::upkeep::UPKEEP_LOCK;
use super::{PostgresStore, execute, failed, identity, query, query_opt, within};
use crate::ledger::AccountId;

/// Accounts of one step, and sequence numbers of all of them together: a step must end within the store's timeout.
const ACCOUNTS_MAX: i64 = 1_000;
const SEQS_MAX: u64 = 20_000;
/// Of this database: held by whoever adds usage up.
const SUMS_LOCK: i64 = 0x_6661_7265_7375_6d73;

const FIGURES: &str = "sum(requests)::bigint, sum(charged)::bigint, sum(input_tokens)::bigint,
    sum(cached_tokens)::bigint, sum(output_tokens)::bigint, sum(estimated)::bigint, sum(client_errors)::bigint,
    sum(server_errors)::bigint";

async fn roll_up(client: &mut Client, only: Option<&str>, after: &str) -> StoreResult<RolledUp> {
    let tx = client.transaction().await.map_err(failed)?;
    query(&tx, "SELECT pg_advisory_xact_lock($1)", &[&SUMS_LOCK]).await?;
    let (spans, full) = behind(&tx, only, after).await?;
    let (spans, last) = usage_sums::within_budget(spans, SEQS_MAX, full);
    if spans.is_empty() {
        return Ok(RolledUp::default());
    }
    let rows = sum_up(&tx, &spans).await?;
    let known = known_models(&tx, &rows).await?;
    add(&tx, &spans, &usage_sums::bounded(rows, known)).await?;
    tx.commit().await.map_err(failed)?;
    Ok(RolledUp { passed: spans.iter().map(|span| span.upto - span.after).sum(), last })
}

async fn behind(tx: &Transaction<'_>, only: Option<&str>, after: &str) -> StoreResult<(Vec<UsageSpan>, bool)> {
    // With the last one of the step before: it may have been cut.
    let which = if only.is_some() { "=" } else { ">=" };
    let select = format!(
        "SELECT c.user_id, coalesce(r.seq, 0), c.seq FROM credits AS c LEFT JOIN usage_rolled AS r ON r.user_id = c.user_id
        WHERE c.user_id {which} $1 AND c.seq > coalesce(r.seq, 0) ORDER BY c.user_id LIMIT $2"
    );
    let rows = query(tx, &select, &[&only.unwrap_or(after), &ACCOUNTS_MAX]).await?;
    let read = |row: &Row| {
        Ok(UsageSpan { account: common::account(row.get(0))?, after: uint(row.get(1)), upto: uint(row.get(2)) })
    };
    let full = int(rows.len() as u64) >= ACCOUNTS_MAX;
    Ok((rows.iter().map(read).collect::<StoreResult<_>>()?, full))
}

/// Adds up pieces of accounts' usage by day: the accounts, after and up to which sequence numbers, characters of a model.
/// OFFSET 0 keeps the planner at one index scan for each span, whatever it believes about the table.
pub const SUM_UP: &str = "SELECT u.user_id, floor(extract(epoch FROM u.created_at) / 86400)::integer,
        coalesce(left(u.model, $4), ''), u.route, coalesce(u.key_id, ''), count(*), sum(u.charged)::bigint,
        sum(u.input_tokens)::bigint, sum(u.cached_tokens)::bigint, sum(u.output_tokens)::bigint,
        count(*) FILTER (WHERE u.estimated), count(*) FILTER (WHERE u.status BETWEEN 400 AND 499),
        count(*) FILTER (WHERE u.status >= 500)
    FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w (user_id, after, upto)
    CROSS JOIN LATERAL (SELECT * FROM usage_logs
        WHERE user_id = w.user_id AND seq > w.after AND seq <= w.upto OFFSET 0) AS u
    GROUP BY 1, 2, 3, 4, 5";

async fn sum_up(tx: &Transaction<'_>, spans: &[UsageSpan]) -> StoreResult<Vec<DayRow>> {
    let (ids, after, upto) = arrays(spans);
    let rows = query(tx, SUM_UP, &[&ids, &after, &upto, &MODEL_CHARS]).await?;
    let read = |row: &Row| DayRow {
        account: row.get(0),
        day: row.get(1),
        model: row.get(2),
        route: row.get(3),
        key: row.get(4),
        figures: figures(row, 5),
    };
    Ok(rows.iter().map(read).collect())
}

fn arrays(spans: &[UsageSpan]) -> (Vec<&str>, Vec<i64>, Vec<i64>) {
    let ids = spans.iter().map(|span| span.account.as_str()).collect();
    let after = spans.iter().map(|span| int(span.after)).collect();
    (ids, after, spans.iter().map(|span| int(span.upto)).collect())
}

pub(super) fn figures(row: &Row, first: usize) -> Figures {
    Figures {
        requests: row.get(first),
        charged: row.get(first + 1),
        input_tokens: row.get(first + 2),
        cached_tokens: row.get(first + 3),
        output_tokens: row.get(first + 4),
        estimated: row.get(first + 5),
        client_errors: row.get(first + 6),
        server_errors: row.get(first + 7),
    }
}

async fn known_models(tx: &Transaction<'_>, rows: &[DayRow]) -> StoreResult<HashMap<AccountDay, HashSet<String>>> {
    let days: HashSet<(&str, i32)> = rows.iter().map(|row| (row.account.as_str(), row.day)).collect();
    let (ids, days): (Vec<&str>, Vec<i32>) = days.into_iter().unzip();
    let select = "SELECT DISTINCT w.user_id, w.day, d.model FROM unnest($1::text[], $2::integer[]) AS w (user_id, day)
        JOIN usage_days AS d ON d.user_id = w.user_id AND d.day = DATE '1970-01-01' + w.day";
    let mut known: HashMap<AccountDay, HashSet<String>> = HashMap::new();
    for row in query(tx, select, &[&ids, &days]).await? {
        known.entry((row.get(0), row.get(1))).or_default().insert(row.get(2));
    }
    Ok(known)
}

async fn add(tx: &Transaction<'_>, spans: &[UsageSpan], rows: &[DayRow]) -> StoreResult<()> {
    let (ids, _, upto) = arrays(spans);
    let upsert = "INSERT INTO usage_rolled (user_id, seq) SELECT * FROM unnest($1::text[], $2::bigint[])
        ON CONFLICT (user_id) DO UPDATE SET seq = excluded.seq";
    execute(tx, upsert, &[&ids, &upto]).await?;
    let text = |pick: fn(&DayRow) -> &str| rows.iter().map(pick).collect::<Vec<&str>>();
    let number = |pick: fn(&Figures) -> i64| rows.iter().map(|row| pick(&row.figures)).collect::<Vec<i64>>();
    let (ids, models) = (text(|row| &row.account), text(|row| &row.model));
    let (routes, keys) = (text(|row| &row.route), text(|row| &row.key));
    let days: Vec<i32> = rows.iter().map(|row| row.day).collect();
    let (requests, charged) = (number(|sums| sums.requests), number(|sums| sums.charged));
    let (input, cached) = (number(|sums| sums.input_tokens), number(|sums| sums.cached_tokens));
    let (output, estimated) = (number(|sums| sums.output_tokens), number(|sums| sums.estimated));
    let (client, server) = (number(|sums| sums.client_errors), number(|sums| sums.server_errors));
    let insert = "INSERT INTO usage_days AS d (user_id, day, model, route, key_id, requests, charged, input_tokens,
            cached_tokens, output_tokens, estimated, client_errors, server_errors)
        SELECT user_id, DATE '1970-01-01' + day, model, route, key_id, requests, charged, input_tokens, cached_tokens,
            output_tokens, estimated, client_errors, server_errors
        FROM unnest($1::text[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[])
            AS w (user_id, day, model, route, key_id, requests, charged, input_tokens, cached_tokens, output_tokens,
                estimated, client_errors, server_errors)
        ON CONFLICT (user_id, day, model, route, key_id) DO UPDATE SET
            requests = d.requests + excluded.requests, charged = d.charged + excluded.charged,
            input_tokens = d.input_tokens + excluded.input_tokens,
            cached_tokens = d.cached_tokens + excluded.cached_tokens,
            output_tokens = d.output_tokens + excluded.output_tokens, estimated = d.estimated + excluded.estimated,
            client_errors = d.client_errors + excluded.client_errors,
            server_errors = d.server_errors + excluded.server_errors";
    let values: super::Values<'_> = &[
        &ids, &days, &models, &routes, &keys, &requests, &charged, &input, &cached, &output, &estimated, &client,
        &server,
    ];
    execute(tx, insert, values).await.map(drop)
}

/// Rows that are pruned meanwhile would be in no day any more.
async fn redo(client: &mut Client, account: &AccountId, actor: &str) -> StoreResult<bool> {
    let tx = client.transaction().await.map_err(failed)?;
    query(&tx, "SELECT pg_advisory_xact_lock($1)", &[&SUMS_LOCK]).await?;
    let alone = query_opt(&tx, "SELECT pg_try_advisory_xact_lock($1)", &[&UPKEEP_LOCK]).await?;
    if !alone.is_some_and(|row| row.get(0)) {
        return Ok(false);
    }
    let id = account.as_str();
    let delete = "DELETE FROM usage_days WHERE user_id = $1 AND day >= coalesce(
        (SELECT (until AT TIME ZONE 'UTC')::date FROM usage_pruned WHERE user_id = $1), '-infinity')";
    let rows = execute(&tx, delete, &[&id]).await?;
    execute(&tx, "UPDATE usage_rolled SET seq = 0 WHERE user_id = $1", &[&id]).await?;
    let detail = serde_json::json!({ "rows": rows }).to_string();
    identity::audit(&tx, actor, "books.redo_days", Some(account), &detail).await?;
    tx.commit().await.map_err(failed)?;
    Ok(true)
}

type Boxed = Box<dyn ToSql + Sync + Send>;

/// How a report is asked for, with the places of its values: those of the request in the order of its fields, then the number
/// of rows.
pub fn report(request: &SumsRequest) -> StoreResult<String> {
    question(request, None).map(|(select, _)| select)
}

/// The question, and its values but for the number of rows, which comes last.
fn question(request: &SumsRequest, after: Option<Vec<String>>) -> StoreResult<(String, Vec<Boxed>)> {
    let columns: Vec<&str> = request.by.iter().map(|dimension| dimension.column()).collect();
    let columns = columns.join(", ");
    let (mut conditions, mut values) = (vec!["true".to_owned()], Vec::<Boxed>::new());
    let mut condition = |text: &str, value: Boxed| {
        values.push(value);
        conditions.push(text.replace('?', &format!("${}", values.len())));
    };
    if let Some(account) = &request.account {
        condition("user_id = ?", Box::new(account.to_string()));
    }
    if let Some(plan) = &request.plan {
        condition("user_id IN (SELECT id FROM users WHERE plan = ?)", Box::new(plan.clone()));
    }
    if let Some(from) = request.from {
        condition("day >= DATE '1970-01-01' + ?::integer", Box::new(from));
    }
    if let Some(to) = request.to {
        condition("day < DATE '1970-01-01' + ?::integer", Box::new(to));
    }
    if let Some(after) = after {
        let mut places = Vec::with_capacity(after.len());
        for (dimension, text) in request.by.iter().zip(after) {
            let place = values.len() + 1;
            if *dimension == Dimension::Day {
                values.push(Box::new(common::day(&text)?));
                places.push(format!("DATE '1970-01-01' + ${place}::integer"));
            } else {
                values.push(Box::new(text));
                places.push(format!("${place}"));
            }
        }
        conditions.push(format!("({columns}) > ({})", places.join(", ")));
    }
    let told: Vec<&str> = request
        .by
        .iter()
        .map(|dimension| match dimension {
            Dimension::Day => "(day - DATE '1970-01-01')::text",
            other => other.column(),
        })
        .collect();
    let select = format!(
        "SELECT {}, {FIGURES} FROM usage_days WHERE {} GROUP BY {columns} ORDER BY {columns} LIMIT ${}",
        told.join(", "),
        conditions.join(" AND "),
        values.len() + 1
    );
    Ok((select, values))
}

async fn sums(client: &Client, request: &SumsRequest) -> StoreResult<Page<UsageSum>> {
    let slice = common::slice(&request.page)?;
    let after = usage_sums::position(slice.after.as_deref(), request.by.len())?;
    let (select, mut values) = question(request, after)?;
    values.push(Box::new(slice.rows));
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
    let rows = query(client, &select, &values).await?;
    let read = |row: &Row| UsageSum {
        of: (0..request.by.len()).map(|column| row.get(column)).collect(),
        figures: figures(row, request.by.len()),
    };
    Ok(common::page(rows.iter().map(read).collect(), &slice, usage_sums::write_position))
}

#[async_trait]
impl UsageSums for PostgresStore {
    async fn roll_up(&self, only: Option<&AccountId>, after: Option<&AccountId>) -> StoreResult<RolledUp> {
        let (only, after) = (only.map(AccountId::as_str), after.map_or("", AccountId::as_str));
        within!(self, |client| roll_up(client, only, after))
    }

    async fn redo_days(&self, account: &AccountId, actor: &str) -> StoreResult<bool> {
        within!(self, |client| redo(client, account, actor))
    }

    async fn usage_sums(&self, request: SumsRequest) -> StoreResult<Page<UsageSum>> {
        within!(self, |client| sums(client, &request))
    }
}
