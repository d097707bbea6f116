//! Packs that are bought by themselves. A user's row of `auto_topups` is locked by whoever begins or ends a purchase.

use std::time::SystemTime;

use async_trait::async_trait;
use deadpool_postgres::{Client, Object, Transaction};
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::common;
use super::super::topups::{AutoTopup, Begun, Topup, TopupEnd, TopupTerms, Topups};
use super::super::{StoreError, StoreResult};
use super::{PostgresStore, Values, billing, execute, failed, micros, notifications, query, query_opt, time, within};
use crate::ledger::{AccountId, Micros};

const AUTO_COLUMNS: &str =
    "user_id, threshold, pack, currency, monthly_cap, enabled, failures, error, stopped, next_at";
const COLUMNS: &str = "id, user_id, customer_id, pack, price_id, currency, amount, payment_method, looks, created_at";
const SPENT: &str = "SELECT coalesce(sum(amount), 0)::bigint FROM topups
    WHERE user_id = $1 AND currency = $2 AND created_at >= $3 AND state <> 'failed'";
/// Something may be bought: of `a`, at `$1`.
const MAY: &str = "a.enabled AND NOT a.stopped AND a.next_at <= $1
    AND NOT EXISTS (SELECT FROM topups AS t WHERE t.user_id = a.user_id AND t.state = 'running')";

#[async_trait]
impl Topups for PostgresStore {
    async fn set_auto_topup(&self, terms: TopupTerms) -> StoreResult<AutoTopup> {
        within!(self, |client| set(client, &terms))
    }

    async fn end_auto_topup(&self, user: &AccountId) -> StoreResult<()> {
        let update = "UPDATE auto_topups SET enabled = false, updated_at = $2 WHERE user_id = $1";
        within!(self, |client| execute(client, update, &[&user.as_str(), &time(common::now())])).map(drop)
    }

    async fn auto_topup(&self, user: &AccountId) -> StoreResult<Option<AutoTopup>> {
        let select = format!("SELECT {AUTO_COLUMNS} FROM auto_topups WHERE user_id = $1");
        within!(self, |client| query_opt(client, &select, &[&user.as_str()]))?.as_ref().map(read_auto).transpose()
    }

    async fn topup(&self, id: Uuid) -> StoreResult<Option<Topup>> {
        let select = format!("SELECT {COLUMNS} FROM topups WHERE id = $1");
        within!(self, |client| query_opt(client, &select, &[&id]))?.as_ref().map(read).transpose()
    }

    async fn any_auto_topup(&self) -> StoreResult<bool> {
        let select = "SELECT EXISTS (SELECT FROM auto_topups WHERE enabled)";
        Ok(within!(self, |client| query_opt(client, select, &[]))?.is_some_and(|row| row.get(0)))
    }

    async fn topped_up(&self, user: &AccountId, currency: &str, since: Micros) -> StoreResult<i64> {
        let row = within!(self, |client| query_opt(client, SPENT, &[&user.as_str(), &currency, &time(since)]))?;
        Ok(row.map_or(0, |row| row.get(0)))
    }

    async fn topup_wanted(&self, among: &[AccountId]) -> StoreResult<Vec<AccountId>> {
        let among: Vec<&str> = among.iter().map(AccountId::as_str).collect();
        let select = format!("SELECT a.user_id FROM auto_topups AS a WHERE a.user_id = ANY($2) AND {MAY}");
        within!(self, |client| users(client, &select, &[&time(common::now()), &among]))
    }

    async fn topup_short(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountId>> {
        let after = after.map(AccountId::as_str).unwrap_or_default();
        let select = format!(
            "SELECT a.user_id FROM auto_topups AS a JOIN credits AS c ON c.user_id = a.user_id
            WHERE {MAY} AND c.balance - c.debt < a.threshold AND a.user_id > $3 ORDER BY a.user_id LIMIT $2"
        );
        within!(self, |client| users(client, &select, &[&time(common::now()), &i64::from(limit), &after]))
    }

    async fn begin_topup(&self, topup: Topup, month: (Micros, Micros), look_us: u64) -> StoreResult<Begun> {
        within!(self, |client| begin(client, &topup, month, look_us))
    }

    async fn set_topup_method(&self, id: Uuid, method: &str) -> StoreResult<String> {
        let update = "UPDATE topups SET payment_method = coalesce(payment_method, $2) WHERE id = $1
            RETURNING payment_method";
        let row = within!(self, |client| query_opt(client, update, &[&id, &method]))?;
        Ok(row.ok_or(StoreError::NotFound("the top-up"))?.get(0))
    }

    async fn end_topup(&self, topup: &Topup, end: TopupEnd) -> StoreResult<()> {
        within!(self, |client| finish(client, topup, &end))
    }

    async fn claim_topups(&self, limit: u32, look_us: u64) -> StoreResult<Vec<Topup>> {
        let now = common::now();
        let update = format!(
            "UPDATE topups SET looks = looks + 1, look_at = $2 WHERE id IN
                (SELECT id FROM topups WHERE state = 'running' AND look_at <= $1 ORDER BY look_at LIMIT $3
                FOR UPDATE SKIP LOCKED) RETURNING {COLUMNS}"
        );
        let (from, until) = (time(now), time(now.saturating_add(look_us)));
        let rows = within!(self, |client| query(client, &update, &[&from, &until, &i64::from(limit)]))?;
        rows.iter().map(read).collect()
    }

    async fn look_at_topup(&self, id: Uuid, at: Micros) -> StoreResult<()> {
        let update = "UPDATE topups SET look_at = $2 WHERE id = $1 AND state = 'running'";
        within!(self, |client| execute(client, update, &[&id, &time(at)])).map(drop)
    }
}

async fn users(client: &Client, sql: &str, values: Values<'_>) -> StoreResult<Vec<AccountId>> {
    query(client, sql, values).await?.iter().map(|row| common::account(row.get(0))).collect()
}

async fn set(client: &mut Client, terms: &TopupTerms) -> StoreResult<AutoTopup> {
    let tx = client.transaction().await.map_err(failed)?;
    billing::account::begin(&tx, &terms.user).await?;
    let upsert = format!(
        "INSERT INTO auto_topups (user_id, enabled, threshold, pack, currency, monthly_cap, next_at, updated_at)
        VALUES ($1, true, $2, $3, $4, $5, $6, $6)
        ON CONFLICT (user_id) DO UPDATE SET enabled = true, threshold = excluded.threshold, pack = excluded.pack,
            currency = excluded.currency, monthly_cap = excluded.monthly_cap, failures = 0, error = NULL,
            stopped = false, next_at = excluded.next_at, updated_at = excluded.updated_at
        RETURNING {AUTO_COLUMNS}"
    );
    let values: Values<'_> = &[
        &terms.user.as_str(),
        &terms.threshold,
        &terms.pack,
        &terms.currency,
        &terms.monthly_cap,
        &time(common::now()),
    ];
    let row = query_opt(&tx, &upsert, values).await?.ok_or(StoreError::NotFound("the user"))?;
    let written = read_auto(&row)?;
    tx.commit().await.map_err(failed)?;
    Ok(written)
}

/// The payment arrived; whatever was written of it before.
pub(super) async fn paid(tx: &Transaction<'_>, id: Uuid) -> StoreResult<()> {
    let update = "UPDATE topups SET state = 'paid', error = NULL WHERE id = $1 AND state <> 'paid' RETURNING user_id";
    let Some(row) = query_opt(tx, update, &[&id]).await? else { return Ok(()) };
    let update = "UPDATE auto_topups SET failures = 0, error = NULL, stopped = false WHERE user_id = $1";
    execute(tx, update, &[&row.get::<_, &str>(0)]).await.map(drop)
}

async fn begin(
    client: &mut Client,
    topup: &Topup,
    (since, next): (Micros, Micros),
    look_us: u64,
) -> StoreResult<Begun> {
    let (now, user) = (common::now(), topup.user.as_str());
    let tx = client.transaction().await.map_err(failed)?;
    // Whoever comes second waits here, and then finds the first one's purchase.
    let lock = "SELECT monthly_cap FROM auto_topups WHERE user_id = $1 FOR UPDATE";
    let Some(cap) = query_opt(&tx, lock, &[&user]).await? else { return Ok(Begun::NotNow) };
    let may = format!("SELECT FROM auto_topups AS a WHERE {MAY} AND a.user_id = $2");
    if query_opt(&tx, &may, &[&time(now), &user]).await?.is_none() {
        return Ok(Begun::NotNow);
    }
    let spent = query_opt(&tx, SPENT, &[&user, &topup.currency, &time(since)]).await?;
    let spent: i64 = spent.map_or(0, |row| row.get(0));
    let fits = spent.saturating_add(topup.amount) <= cap.get(0);
    if fits {
        let insert = "INSERT INTO topups (id, user_id, customer_id, pack, price_id, currency, amount, state, look_at,
            created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 'running', $8, $9)";
        let values: Values<'_> = &[
            &topup.id,
            &user,
            &topup.customer,
            &topup.pack,
            &topup.price,
            &topup.currency,
            &topup.amount,
            &time(now.saturating_add(look_us)),
            &time(topup.created_at),
        ];
        execute(&tx, insert, values).await?;
    } else {
        let wait = "UPDATE auto_topups SET next_at = $2, error = 'monthly_cap' WHERE user_id = $1";
        execute(&tx, wait, &[&user, &time(next)]).await?;
    }
    tx.commit().await.map_err(failed)?;
    Ok(if fits { Begun::Begun } else { Begun::Capped })
}

async fn finish(client: &mut Client, topup: &Topup, end: &TopupEnd) -> StoreResult<()> {
    let tx = client.transaction().await.map_err(failed)?;
    let user = topup.user.as_str();
    // Credits before what is the user's own, as a decision does.
    notifications::lock(&tx, &topup.user).await?;
    match end {
        TopupEnd::Void => {
            let delete = "DELETE FROM topups WHERE id = $1 AND state = 'running' AND payment_method IS NULL";
            execute(&tx, delete, &[&topup.id]).await?;
        }
        TopupEnd::Declined { code, again_at, .. } => {
            let update = "UPDATE topups SET state = 'failed', error = $2 WHERE id = $1 AND state = 'running'";
            if execute(&tx, update, &[&topup.id, code]).await? == 0 {
                return Ok(());
            }
            let update =
                "UPDATE auto_topups SET failures = failures + 1, error = $2, stopped = $3::timestamptz IS NULL,
                next_at = coalesce($3, next_at) WHERE user_id = $1";
            execute(&tx, update, &[&user, code, &again_at.map(time)]).await?;
        }
    }
    if let Some(notice) = end.notice(topup) {
        notifications::add(&tx, &notice).await?;
    }
    tx.commit().await.map_err(failed)
}

fn count(row: &Row, column: usize) -> u32 {
    u32::try_from(row.get::<_, i32>(column)).unwrap_or(0)
}

fn read_auto(row: &Row) -> StoreResult<AutoTopup> {
    Ok(AutoTopup {
        terms: TopupTerms {
            user: common::account(row.get(0))?,
            threshold: row.get(1),
            pack: row.get(2),
            currency: row.get(3),
            monthly_cap: row.get(4),
        },
        enabled: row.get(5),
        failures: count(row, 6),
        error: row.get(7),
        stopped: row.get(8),
        next_at: micros(row.get::<_, SystemTime>(9)),
    })
}

fn read(row: &Row) -> StoreResult<Topup> {
    Ok(Topup {
        id: row.get(0),
        user: common::account(row.get(1))?,
        customer: row.get(2),
        pack: row.get(3),
        price: row.get(4),
        currency: row.get(5),
        amount: row.get(6),
        payment_method: row.get(7),
        looks: count(row, 8),
        created_at: micros(row.get(9)),
    })
}
