//! Packs that are bought by themselves. Every write is one transaction after the other.

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::super::common::{self, int, uint};
use super::super::topups::{AutoTopup, Begun, Topup, TopupEnd, TopupTerms, Topups};
use super::super::{StoreError, StoreResult};
use super::{SqliteStore, billing, failed, notifications};
use crate::ledger::{AccountId, Micros};

const AUTO_COLUMNS: &str =
    "user_id, threshold, pack, currency, monthly_cap, enabled, failures, error, stopped, next_at";
const COLUMNS: &str = "id, user_id, customer_id, pack, price_id, currency, amount, payment_method, looks, created_at";
/// Something may be bought: of `a`, at `?1`.
const MAY: &str = "a.enabled = 1 AND a.stopped = 0 AND a.next_at <= ?1
    AND NOT EXISTS (SELECT 1 FROM topups AS t WHERE t.user_id = a.user_id AND t.state = 'running')";

#[async_trait]
impl Topups for SqliteStore {
    async fn set_auto_topup(&self, terms: TopupTerms) -> StoreResult<AutoTopup> {
        self.threads.write(move |tx| set(tx, &terms)).await
    }

    async fn end_auto_topup(&self, user: &AccountId) -> StoreResult<()> {
        let user = user.clone();
        let end = move |tx: &Transaction<'_>| {
            let update = "UPDATE auto_topups SET enabled = 0, updated_at = ?2 WHERE user_id = ?1";
            tx.execute(update, params![user.as_str(), int(common::now())]).map_err(failed).map(drop)
        };
        self.threads.write(end).await
    }

    async fn auto_topup(&self, user: &AccountId) -> StoreResult<Option<AutoTopup>> {
        let user = user.clone();
        self.threads.read(move |tx| auto(tx, &user)).await
    }

    async fn topup(&self, id: Uuid) -> StoreResult<Option<Topup>> {
        let one = move |tx: &Transaction<'_>| {
            let select = format!("SELECT {COLUMNS} FROM topups WHERE id = ?1");
            tx.query_row(&select, [id.as_bytes()], |row| Ok(read(row))).optional().map_err(failed)?.transpose()
        };
        self.threads.read(one).await
    }

    async fn any_auto_topup(&self) -> StoreResult<bool> {
        let any = |tx: &Transaction<'_>| {
            let select = "SELECT EXISTS (SELECT 1 FROM auto_topups WHERE enabled = 1)";
            tx.query_row(select, [], |row| row.get(0)).map_err(failed)
        };
        self.threads.read(any).await
    }

    async fn topped_up(&self, user: &AccountId, currency: &str, since: Micros) -> StoreResult<i64> {
        let (user, currency) = (user.clone(), currency.to_owned());
        self.threads.read(move |tx| spent(tx, &user, &currency, since)).await
    }

    async fn topup_wanted(&self, among: &[AccountId]) -> StoreResult<Vec<AccountId>> {
        let among = among.to_vec();
        let wanted = move |tx: &Transaction<'_>| {
            let select = format!("SELECT 1 FROM auto_topups AS a WHERE {MAY} AND a.user_id = ?2");
            let mut statement = tx.prepare_cached(&select).map_err(failed)?;
            let (now, mut found) = (int(common::now()), Vec::new());
            for user in among {
                if statement.exists(params![now, user.as_str()]).map_err(failed)? {
                    found.push(user);
                }
            }
            Ok(found)
        };
        self.threads.read(wanted).await
    }

    async fn topup_short(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountId>> {
        let after = after.map(|after| after.as_str().to_owned()).unwrap_or_default();
        let short = move |tx: &Transaction<'_>| {
            let select = format!(
                "SELECT a.user_id FROM auto_topups AS a JOIN credits AS c ON c.user_id = a.user_id
                WHERE {MAY} AND c.balance - c.debt < a.threshold AND a.user_id > ?3 ORDER BY a.user_id LIMIT ?2"
            );
            let mut statement = tx.prepare_cached(&select).map_err(failed)?;
            let read = |row: &Row<'_>| row.get::<_, String>(0);
            let rows = statement.query_map(params![int(common::now()), limit, after], read).map_err(failed)?;
            rows.map(|row| common::account(&row.map_err(failed)?)).collect()
        };
        self.threads.read(short).await
    }

    async fn begin_topup(&self, topup: Topup, month: (Micros, Micros), look_us: u64) -> StoreResult<Begun> {
        self.threads.write(move |tx| begin(tx, &topup, month, look_us)).await
    }

    async fn set_topup_method(&self, id: Uuid, method: &str) -> StoreResult<String> {
        let method = method.to_owned();
        let set = move |tx: &Transaction<'_>| {
            let update = "UPDATE topups SET payment_method = coalesce(payment_method, ?2) WHERE id = ?1
                RETURNING payment_method";
            let written = tx.query_row(update, params![id.as_bytes(), method], |row| row.get(0)).optional();
            written.map_err(failed)?.ok_or(StoreError::NotFound("the top-up"))
        };
        self.threads.write(set).await
    }

    async fn end_topup(&self, topup: &Topup, end: TopupEnd) -> StoreResult<()> {
        let topup = topup.clone();
        self.threads.write(move |tx| finish(tx, &topup, &end)).await
    }

    async fn claim_topups(&self, limit: u32, look_us: u64) -> StoreResult<Vec<Topup>> {
        let claim = move |tx: &Transaction<'_>| {
            let now = common::now();
            let update = format!(
                "UPDATE topups SET looks = looks + 1, look_at = ?2 WHERE id IN
                    (SELECT id FROM topups WHERE state = 'running' AND look_at <= ?1 ORDER BY look_at LIMIT ?3)
                RETURNING {COLUMNS}"
            );
            let mut statement = tx.prepare_cached(&update).map_err(failed)?;
            let claimed = params![int(now), int(now.saturating_add(look_us)), limit];
            let rows = statement.query_map(claimed, |row| Ok(read(row))).map_err(failed)?;
            rows.map(|row| row.map_err(failed)?).collect()
        };
        self.threads.write(claim).await
    }

    async fn look_at_topup(&self, id: Uuid, at: Micros) -> StoreResult<()> {
        let set = move |tx: &Transaction<'_>| {
            let update = "UPDATE topups SET look_at = ?2 WHERE id = ?1 AND state = 'running'";
            tx.execute(update, params![id.as_bytes(), int(at)]).map_err(failed).map(drop)
        };
        self.threads.write(set).await
    }
}

fn auto(tx: &Transaction<'_>, user: &AccountId) -> StoreResult<Option<AutoTopup>> {
    let select = format!("SELECT {AUTO_COLUMNS} FROM auto_topups WHERE user_id = ?1");
    tx.query_row(&select, [user.as_str()], |row| Ok(read_auto(row))).optional().map_err(failed)?.transpose()
}

fn spent(tx: &Transaction<'_>, user: &AccountId, currency: &str, since: Micros) -> StoreResult<i64> {
    let select = "SELECT coalesce(sum(amount), 0) FROM topups
        WHERE user_id = ?1 AND currency = ?2 AND created_at >= ?3 AND state <> 'failed'";
    tx.query_row(select, params![user.as_str(), currency, int(since)], |row| row.get(0)).map_err(failed)
}

fn set(tx: &Transaction<'_>, terms: &TopupTerms) -> StoreResult<AutoTopup> {
    billing::account::begin(tx, &terms.user)?;
    let upsert =
        "INSERT INTO auto_topups (user_id, enabled, threshold, pack, currency, monthly_cap, next_at, updated_at)
        VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?6)
        ON CONFLICT (user_id) DO UPDATE SET enabled = 1, threshold = excluded.threshold, pack = excluded.pack,
            currency = excluded.currency, monthly_cap = excluded.monthly_cap, failures = 0, error = NULL,
            stopped = 0, next_at = excluded.next_at, updated_at = excluded.updated_at";
    let now = int(common::now());
    let TopupTerms { user, threshold, pack, currency, monthly_cap } = terms;
    tx.execute(upsert, params![user.as_str(), threshold, pack, currency, monthly_cap, now]).map_err(failed)?;
    auto(tx, user)?.ok_or(StoreError::NotFound("the user"))
}

/// The payment arrived; whatever was written of it before.
pub(super) fn paid(tx: &Transaction<'_>, id: Uuid) -> StoreResult<()> {
    let update = "UPDATE topups SET state = 'paid', error = NULL WHERE id = ?1 AND state <> 'paid' RETURNING user_id";
    let user: Option<String> = tx.query_row(update, [id.as_bytes()], |row| row.get(0)).optional().map_err(failed)?;
    let Some(user) = user else { return Ok(()) };
    let update = "UPDATE auto_topups SET failures = 0, error = NULL, stopped = 0 WHERE user_id = ?1";
    tx.execute(update, [user]).map_err(failed).map(drop)
}

fn begin(tx: &Transaction<'_>, topup: &Topup, (since, next): (Micros, Micros), look_us: u64) -> StoreResult<Begun> {
    let (now, user) = (common::now(), topup.user.as_str());
    let may = format!("SELECT a.monthly_cap FROM auto_topups AS a WHERE {MAY} AND a.user_id = ?2");
    let cap: Option<i64> = tx.query_row(&may, params![int(now), user], |row| row.get(0)).optional().map_err(failed)?;
    let Some(cap) = cap else { return Ok(Begun::NotNow) };
    if spent(tx, &topup.user, &topup.currency, since)?.saturating_add(topup.amount) > cap {
        let wait = "UPDATE auto_topups SET next_at = ?2, error = 'monthly_cap' WHERE user_id = ?1";
        tx.execute(wait, params![user, int(next)]).map_err(failed)?;
        return Ok(Begun::Capped);
    }
    let insert = "INSERT INTO topups (id, user_id, customer_id, pack, price_id, currency, amount, state, look_at,
        created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'running', ?8, ?9)";
    let row = params![
        topup.id.as_bytes(),
        user,
        topup.customer,
        topup.pack,
        topup.price,
        topup.currency,
        topup.amount,
        int(now.saturating_add(look_us)),
        int(topup.created_at),
    ];
    tx.execute(insert, row).map_err(failed).map(|_| Begun::Begun)
}

fn finish(tx: &Transaction<'_>, topup: &Topup, end: &TopupEnd) -> StoreResult<()> {
    match end {
        TopupEnd::Void => {
            let delete = "DELETE FROM topups WHERE id = ?1 AND state = 'running' AND payment_method IS NULL";
            tx.execute(delete, [topup.id.as_bytes()]).map_err(failed)?;
        }
        TopupEnd::Declined { code, again_at, .. } => {
            let update = "UPDATE topups SET state = 'failed', error = ?2 WHERE id = ?1 AND state = 'running'";
            if tx.execute(update, params![topup.id.as_bytes(), code]).map_err(failed)? == 0 {
                return Ok(());
            }
            let update = "UPDATE auto_topups SET failures = failures + 1, error = ?2, stopped = ?3 IS NULL,
                next_at = coalesce(?3, next_at) WHERE user_id = ?1";
            tx.execute(update, params![topup.user.as_str(), code, again_at.map(int)]).map_err(failed)?;
        }
    }
    match end.notice(topup) {
        Some(notice) => notifications::add(tx, &notice).map(drop),
        None => Ok(()),
    }
}

fn read_auto(row: &Row<'_>) -> StoreResult<AutoTopup> {
    let text = |column| row.get::<_, String>(column).map_err(failed);
    Ok(AutoTopup {
        terms: TopupTerms {
            user: common::account(&text(0)?)?,
            threshold: row.get(1).map_err(failed)?,
            pack: text(2)?,
            currency: text(3)?,
            monthly_cap: row.get(4).map_err(failed)?,
        },
        enabled: row.get(5).map_err(failed)?,
        failures: row.get(6).map_err(failed)?,
        error: row.get(7).map_err(failed)?,
        stopped: row.get(8).map_err(failed)?,
        next_at: uint(row.get(9).map_err(failed)?),
    })
}

fn read(row: &Row<'_>) -> StoreResult<Topup> {
    let text = |column| row.get::<_, String>(column).map_err(failed);
    Ok(Topup {
        id: Uuid::from_bytes(row.get(0).map_err(failed)?),
        user: common::account(&text(1)?)?,
        customer: text(2)?,
        pack: text(3)?,
        price: text(4)?,
        currency: text(5)?,
        amount: row.get(6).map_err(failed)?,
        payment_method: row.get(7).map_err(failed)?,
        looks: row.get(8).map_err(failed)?,
        created_at: uint(row.get(9).map_err(failed)?),
    })
}
