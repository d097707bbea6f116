//! The books of accounts, for the audit.

use std::time::SystemTime;

use async_trait::async_trait;
use deadpool_postgres::{Client, GenericClient, Object, Transaction};
use tokio_postgres::Row;

use super::super::books::{AccountBooks, BookRows, Books, DayBooks, MendRequest, REST_ROWS, SpanCharged, UsageSpan};
use super::super::common::{self, int, uint};
use super::super::mend::{self, CHANGES_MAX, GrantFound, Mended, Rows};
use super::super::{StoreError, StoreResult, changes};
use super::usage_sums::figures;
use super::{PostgresStore, Values, execute, failed, identity, micros, query, within};
use crate::ledger::{AccountId, Change, GrantId};

/// A payload that is not a grant's, or has no amount, counts as nothing: then the sums differ, and the audit says so.
const BOOKS: &str = r#"SELECT c.user_id, c.seq, c.balance, c.debt, c.granted, c.charged, c.written_off, c.frozen,
        c.applied_change, c.last_change, g.remaining, g.taken_early, g.amounts,
        h.amounts, h.amounts_applied, h.changes, h.newest, h.applied, h.newest_applied, coalesce(p.charged, 0),
        coalesce((SELECT seq FROM usage_rolled WHERE user_id = c.user_id), 0), d.*,
        coalesce(p.day_requests, 0), coalesce(p.day_charged, 0), coalesce(p.day_input_tokens, 0),
        coalesce(p.day_cached_tokens, 0), coalesce(p.day_output_tokens, 0), coalesce(p.day_estimated, 0),
        coalesce(p.day_client_errors, 0), coalesce(p.day_server_errors, 0)
    FROM (SELECT * FROM credits WHERE FILTER ORDER BY user_id LIMIT $2) AS c
    CROSS JOIN LATERAL (SELECT
            coalesce(sum(remaining) FILTER (WHERE id <= c.applied_change), 0)::bigint AS remaining,
            coalesce(sum(amount - remaining) FILTER (WHERE id > c.applied_change), 0)::bigint AS taken_early,
            coalesce(sum(amount) FILTER (WHERE EXISTS (SELECT 1 FROM credit_changes AS made
                WHERE made.user_id = c.user_id AND made.number = grants.id AND made.payload LIKE '{"type":"grant",%')),
                0)::bigint AS amounts
        FROM credit_grants AS grants WHERE grants.user_id = c.user_id) AS g
    CROSS JOIN LATERAL (SELECT
            coalesce(sum(amount), 0)::bigint AS amounts,
            coalesce(sum(amount) FILTER (WHERE number <= c.applied_change), 0)::bigint AS amounts_applied,
            count(*) AS changes, coalesce(max(number), 0) AS newest,
            count(*) FILTER (WHERE applied) AS applied,
            coalesce(max(number) FILTER (WHERE applied), 0) AS newest_applied
        FROM (SELECT number, applied, CASE WHEN payload LIKE '{"type":"grant",%'
                THEN substring(payload FROM '"amount_micro":(-?[0-9]{1,18})')::bigint END AS amount
            FROM credit_changes WHERE user_id = c.user_id) AS numbered) AS h
    CROSS JOIN LATERAL (SELECT coalesce(sum(requests), 0)::bigint, coalesce(sum(charged), 0)::bigint,
            coalesce(sum(input_tokens), 0)::bigint, coalesce(sum(cached_tokens), 0)::bigint,
            coalesce(sum(output_tokens), 0)::bigint, coalesce(sum(estimated), 0)::bigint,
            coalesce(sum(client_errors), 0)::bigint, coalesce(sum(server_errors), 0)::bigint
        FROM usage_days WHERE user_id = c.user_id) AS d
    LEFT JOIN usage_pruned AS p ON p.user_id = c.user_id
    ORDER BY c.user_id"#;

async fn books<C: GenericClient>(
    client: &C,
    filter: &str,
    account: &str,
    limit: u32,
) -> StoreResult<Vec<AccountBooks>> {
    let select = BOOKS.replace("FILTER ORDER", &format!("{filter} ORDER"));
    query(client, &select, &[&account, &i64::from(limit)]).await?.iter().map(read).collect()
}

fn read(row: &Row) -> StoreResult<AccountBooks> {
    let number = |column: usize| uint(row.get(column));
    Ok(AccountBooks {
        account: common::account(row.get(0))?,
        seq: number(1),
        balance: row.get(2),
        debt: row.get(3),
        granted: row.get(4),
        charged: row.get(5),
        written_off: row.get(6),
        frozen: row.get(7),
        applied_change: number(8),
        last_change: number(9),
        rows: BookRows {
            remaining: row.get(10),
            taken_early: row.get(11),
            grant_amounts: row.get(12),
            change_amounts: row.get(13),
            change_amounts_applied: row.get(14),
            changes: number(15),
            newest_change: number(16),
            applied: number(17),
            newest_applied: number(18),
            pruned: row.get(19),
        },
        days: DayBooks { rolled: number(20), sums: figures(row, 21), pruned: figures(row, 29) },
    })
}

/// By spans, in their order. The rows of a span do not change any more once its account has been flushed that far.
async fn charged<C: GenericClient>(client: &C, spans: &[UsageSpan], limit: u32) -> StoreResult<Vec<SpanCharged>> {
    let ids: Vec<&str> = spans.iter().map(|span| span.account.as_str()).collect();
    let after: Vec<i64> = spans.iter().map(|span| int(span.after)).collect();
    let upto: Vec<i64> = spans.iter().map(|span| int(span.upto)).collect();
    let select = "SELECT r.* FROM unnest($1::text[], $2::bigint[], $3::bigint[])
            WITH ORDINALITY AS w (user_id, after, upto, place)
        CROSS JOIN LATERAL (SELECT count(*), coalesce(sum(charged), 0)::bigint, coalesce(sum(input_tokens), 0)::bigint,
                coalesce(sum(cached_tokens), 0)::bigint, coalesce(sum(output_tokens), 0)::bigint,
                count(*) FILTER (WHERE estimated), count(*) FILTER (WHERE status BETWEEN 400 AND 499),
                count(*) FILTER (WHERE status >= 500), coalesce(max(seq), 0)
            FROM (SELECT * FROM usage_logs WHERE user_id = w.user_id AND seq > w.after AND seq <= w.upto
                ORDER BY seq LIMIT $4) AS piece) AS r
        ORDER BY w.place";
    let values: Values<'_> = &[&ids, &after, &upto, &i64::from(limit)];
    let rows = query(client, select, values).await?;
    let mut found: Vec<SpanCharged> = Vec::with_capacity(spans.len());
    for (row, span) in rows.iter().zip(spans) {
        let figures = figures(row, 0);
        let whole = figures.requests < i64::from(limit);
        let upto = if whole { span.upto } else { uint(row.get(8)) };
        found.push(SpanCharged { micro: figures.charged, upto, figures });
    }
    let reached: Vec<i64> = found.iter().map(|sum| int(sum.upto)).collect();
    let select = r#"SELECT w.place, sum(d.micro)::bigint
        FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS w (user_id, after, upto, place)
        CROSS JOIN LATERAL (SELECT DISTINCT seq, substring(event FROM '"charged_micro":([0-9]{1,18})')::bigint AS micro
            FROM dead_letters AS letter WHERE user_id = w.user_id AND seq > w.after AND seq <= w.upto
                AND reason IN ('unreadable_usage', 'duplicate_request', 'refused') AND NOT EXISTS (
                    SELECT 1 FROM usage_logs AS u WHERE u.user_id = letter.user_id AND u.seq = letter.seq)) AS d
        GROUP BY w.place"#;
    for row in query(client, select, &[&ids, &after, &reached]).await? {
        let place = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
        if let Some(sum) = found.get_mut(place) {
            let letters = row.get::<_, Option<i64>>(1).unwrap_or(0);
            sum.micro = sum.micro.checked_add(letters).ok_or(StoreError::Invalid("the sum of the usage"))?;
        }
    }
    Ok(found)
}

async fn mend(client: &mut Client, request: &MendRequest) -> StoreResult<bool> {
    let tx = client.transaction().await.map_err(failed)?;
    let account = request.account.as_str();
    // Against flushes and new changes; what is read below is what was committed before.
    query(&tx, "SELECT 1 FROM credits WHERE user_id = $1 FOR NO KEY UPDATE", &[&account]).await?;
    let books = books(&tx, "user_id = $1", account, 1).await?.pop().ok_or(StoreError::NotFound("the account"))?;
    let rest = UsageSpan { account: request.account.clone(), after: request.upto, upto: books.seq };
    let rest = charged(&tx, &[rest], REST_ROWS).await?.pop().unwrap_or_default();
    if books.seq < request.upto || rest.upto < books.seq {
        return Err(StoreError::Invalid("the sum of the usage"));
    }
    if books.rows.pruned != request.pruned {
        return Err(StoreError::CursorMoved);
    }
    let used = request.used.checked_add(rest.micro).ok_or(StoreError::Invalid("the sum of the usage"))?;
    let found = Rows { changes: changes_of(&tx, account).await?, grants: grants_of(&tx, account).await?, books };
    let Some(mended) = mend::plan(&found, used, request)? else { return Ok(false) };
    let update = "UPDATE credits SET balance = $2, debt = $3, granted = $4, charged = $5, frozen = $6, last_change = $7
        WHERE user_id = $1";
    let Mended { balance, debt, granted, charged, frozen, last_change, grants, detail } = mended;
    let last_change = int(last_change);
    execute(&tx, update, &[&account, &balance, &debt, &granted, &charged, &frozen, &last_change]).await?;
    for grant in grants {
        let update = "UPDATE credit_grants SET amount = $3, remaining = $4 WHERE user_id = $1 AND id = $2";
        execute(&tx, update, &[&account, &int(grant.id.0), &grant.amount, &grant.remaining]).await?;
    }
    let update = "UPDATE credit_changes SET applied = (number <= $2) WHERE user_id = $1 AND applied <> (number <= $2)";
    execute(&tx, update, &[&account, &int(found.books.applied_change)]).await?;
    identity::audit(&tx, &request.actor, "books.mend", Some(&request.account), &detail).await?;
    tx.commit().await.map_err(failed)?;
    Ok(true)
}

async fn changes_of(tx: &Transaction<'_>, account: &str) -> StoreResult<Vec<(u64, Option<Change>)>> {
    let select = "SELECT number, payload FROM credit_changes WHERE user_id = $1 ORDER BY number LIMIT $2";
    let rows = query(tx, select, &[&account, &(CHANGES_MAX as i64)]).await?;
    Ok(rows.iter().map(|row| (uint(row.get(0)), changes::read(row.get(1)).ok())).collect())
}

async fn grants_of(tx: &Transaction<'_>, account: &str) -> StoreResult<Vec<GrantFound>> {
    let select =
        "SELECT id, kind, amount, remaining, expires_at FROM credit_grants WHERE user_id = $1 ORDER BY id LIMIT $2";
    let rows = query(tx, select, &[&account, &(CHANGES_MAX as i64)]).await?;
    let read = |row: &Row| {
        Ok(GrantFound {
            id: GrantId(uint(row.get(0))),
            kind: common::grant_kind(row.get(1))?,
            amount: row.get(2),
            remaining: row.get(3),
            expires_at: row.get::<_, Option<SystemTime>>(4).map(micros),
        })
    };
    rows.iter().map(read).collect()
}

#[async_trait]
impl Books for PostgresStore {
    async fn books(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountBooks>> {
        let after = after.map_or("", AccountId::as_str);
        within!(self, |client| books(&*client, "user_id > $1", after, limit))
    }

    async fn books_of(&self, account: &AccountId) -> StoreResult<Option<AccountBooks>> {
        within!(self, |client| books(&*client, "user_id = $1", account.as_str(), 1)).map(|mut found| found.pop())
    }

    async fn charged(&self, spans: Vec<UsageSpan>, limit: u32) -> StoreResult<Vec<SpanCharged>> {
        within!(self, |client| charged(&*client, &spans, limit))
    }

    async fn mend(&self, request: MendRequest) -> StoreResult<bool> {
        within!(self, |client| mend(client, &request))
    }
}
