//! Notifications: numbered under the lock of their account's row, claimed for delivery by one replica at a time.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use deadpool_postgres::{Client, Object, Transaction};
use tokio_postgres::Row;

use super::super::common::{self, int, uint};
use super::super::notifications::{
    self, Delivered, Delivery, MARK_MAX, Marked, Notice, NotificationRow, Notifications, Standing, Thresholds,
    UNDELIVERED, Warning,
};
use super::super::{Page, PageRequest, StoreError, StoreResult};
use super::{PostgresStore, Values, execute, failed, micros, query, query_opt, time, within};
use crate::ledger::AccountId;

const COLUMNS: &str = "user_id, number, kind, data, created_at, read_at";

/// When a new notification is due: at once, or never.
pub(super) const DUE: &str = "CASE WHEN (SELECT open FROM notification_outlet) THEN now() END";

/// Locks the account's row until the commit, as a flush and a billing change do.
pub(super) async fn lock(tx: &Transaction<'_>, user: &AccountId) -> StoreResult<()> {
    let lock = "SELECT 1 FROM credits WHERE user_id = $1 FOR NO KEY UPDATE";
    query_opt(tx, lock, &[&user.as_str()]).await?.map(drop).ok_or(StoreError::NotFound("the user"))
}

/// Raises a notification, under the lock of its account's row: before [`super::identity::tell`], as everybody does.
/// Whether it was new.
pub(super) async fn add(tx: &Transaction<'_>, notice: &Notice) -> StoreResult<bool> {
    let data = notifications::checked(notice)?;
    let (user, kind, key) = (notice.user.as_str(), notice.kind.name(), &notice.dedupe_key);
    lock(tx, &notice.user).await?;
    // A statement of its own: it sees what was committed while the lock was waited for.
    let insert = format!(
        "WITH counted AS (UPDATE credits SET notices = notices + 1 WHERE user_id = $1 AND NOT EXISTS
            (SELECT FROM notifications WHERE user_id = $1 AND dedupe_key = $2) RETURNING notices)
        INSERT INTO notifications (user_id, number, kind, data, dedupe_key, created_at, due_at)
        SELECT $1, notices, $3, $4, $2, now(), {DUE} FROM counted"
    );
    Ok(execute(tx, &insert, &[&user, key, &kind, &data]).await? > 0)
}

/// Writes warnings that have their numbers.
pub(super) async fn insert(tx: &Transaction<'_>, warnings: &[Warning]) -> StoreResult<()> {
    if warnings.is_empty() {
        return Ok(());
    }
    let texts = |pick: fn(&Warning) -> &str| warnings.iter().map(pick).collect::<Vec<&str>>();
    let numbers: Vec<i64> = warnings.iter().map(|warning| int(warning.number)).collect();
    let insert = format!(
        "INSERT INTO notifications (user_id, number, kind, data, dedupe_key, created_at, due_at)
        SELECT w.*, now(), {DUE} FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[]) AS w"
    );
    let values: Values<'_> = &[
        &texts(|warning| warning.notice.user.as_str()),
        &numbers,
        &texts(|warning| warning.notice.kind.name()),
        &texts(|warning| &warning.data),
        &texts(|warning| &warning.notice.dedupe_key),
    ];
    execute(tx, &insert, values).await.map(drop)
}

#[async_trait]
impl Notifications for PostgresStore {
    fn set_thresholds(&self, thresholds: Thresholds) {
        *self.thresholds.write() = Arc::new(thresholds);
    }

    async fn notify(&self, notice: Notice) -> StoreResult<bool> {
        within!(self, |client| notify(client, &notice))
    }

    async fn notifications(
        &self,
        user: &AccountId,
        unread: bool,
        page: PageRequest,
    ) -> StoreResult<Page<NotificationRow>> {
        let slice = common::slice(&page)?;
        let before = common::position(&slice)?;
        let which = if unread { "AND read_at IS NULL" } else { "" };
        let select = format!(
            "SELECT {COLUMNS} FROM notifications WHERE user_id = $1 AND number < $2 {which}
            ORDER BY number DESC LIMIT $3"
        );
        let rows = within!(self, |client| query(client, &select, &[&user.as_str(), &before, &slice.rows]))?;
        let found = rows.iter().map(read).collect::<StoreResult<_>>()?;
        Ok(common::page(found, &slice, |row: &NotificationRow| row.number.to_string()))
    }

    async fn notifications_after(
        &self,
        user: &AccountId,
        number: u64,
        limit: u32,
    ) -> StoreResult<Vec<NotificationRow>> {
        let select =
            format!("SELECT {COLUMNS} FROM notifications WHERE user_id = $1 AND number > $2 ORDER BY number LIMIT $3");
        let rows = within!(self, |client| query(client, &select, &[&user.as_str(), &int(number), &i64::from(limit)]))?;
        rows.iter().map(read).collect()
    }

    async fn mark_read(&self, user: &AccountId, which: Marked) -> StoreResult<u64> {
        let update = "UPDATE notifications SET read_at = now() WHERE user_id = $1 AND read_at IS NULL";
        match which {
            Marked::All => within!(self, |client| execute(client, update, &[&user.as_str()])),
            Marked::Numbers(numbers) => {
                let numbers: Vec<i64> = numbers.into_iter().take(MARK_MAX).map(int).collect();
                let update = format!("{update} AND number = ANY($2)");
                within!(self, |client| execute(client, &update, &[&user.as_str(), &numbers]))
            }
        }
    }

    async fn standings(&self, users: &[AccountId]) -> StoreResult<Vec<Standing>> {
        let ids: Vec<&str> = users.iter().map(AccountId::as_str).collect();
        let select = "SELECT c.user_id, c.seq, c.notices, coalesce(b.version, 0), u.status = 'closed' FROM credits AS c
            JOIN users AS u ON u.id = c.user_id LEFT JOIN billing_accounts AS b ON b.user_id = c.user_id WHERE c.user_id = ANY($1)";
        let rows = within!(self, |client| query(client, select, &[&ids]))?;
        let read = |row: &Row| {
            Ok(Standing {
                user: common::account(row.get(0))?,
                seq: uint(row.get(1)),
                notices: uint(row.get(2)),
                billing_version: uint(row.get(3)),
                closed: row.get(4),
            })
        };
        rows.iter().map(read).collect()
    }

    async fn open_outlet(&self, open: bool) -> StoreResult<()> {
        within!(self, |client| open_outlet(client, open))
    }

    async fn claim_deliveries(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<Delivery>> {
        // Claimed rows are those that others wait for no longer: one replica sends, the others take the next ones.
        let claim = format!(
            "UPDATE notifications AS n SET attempts = n.attempts + 1, due_at = now() + make_interval(secs => $2)
            FROM (SELECT user_id, number FROM notifications WHERE due_at <= now() ORDER BY due_at LIMIT $1
                FOR UPDATE SKIP LOCKED) AS due
            WHERE n.user_id = due.user_id AND n.number = due.number
            RETURNING {}, n.attempts",
            COLUMNS.split(", ").map(|column| format!("n.{column}")).collect::<Vec<_>>().join(", ")
        );
        let lease = std::time::Duration::from_micros(lease_us).as_secs_f64();
        let rows = within!(self, |client| query(client, &claim, &[&i64::from(limit), &lease]))?;
        let attempt = |row: &Row| u32::try_from(row.get::<_, i32>(6)).unwrap_or(u32::MAX);
        rows.iter().map(|row| Ok(Delivery { notification: read(row)?, attempt: attempt(row) })).collect()
    }

    async fn finish_delivery(&self, delivery: &Delivery, outcome: Delivered) -> StoreResult<()> {
        within!(self, |client| finish(client, delivery, outcome))
    }

    async fn deliveries_waiting(&self) -> StoreResult<u64> {
        let count = "SELECT count(*) FROM notifications WHERE due_at IS NOT NULL";
        let row = within!(self, |client| query_opt(client, count, &[]))?;
        Ok(row.map_or(0, |row| uint(row.get(0))))
    }
}

async fn notify(client: &mut Client, notice: &Notice) -> StoreResult<bool> {
    let tx = client.transaction().await.map_err(failed)?;
    let fresh = add(&tx, notice).await?;
    tx.commit().await.map_err(failed)?;
    Ok(fresh)
}

async fn open_outlet(client: &mut Client, open: bool) -> StoreResult<()> {
    let tx = client.transaction().await.map_err(failed)?;
    execute(&tx, "UPDATE notification_outlet SET open = $1", &[&open]).await?;
    if !open {
        execute(&tx, "UPDATE notifications SET due_at = NULL WHERE due_at IS NOT NULL", &[]).await?;
    }
    tx.commit().await.map_err(failed)
}

async fn finish(client: &mut Client, delivery: &Delivery, outcome: Delivered) -> StoreResult<()> {
    let row = &delivery.notification;
    let (user, number) = (row.user.as_str(), int(row.number));
    let attempt = i32::try_from(delivery.attempt).unwrap_or(i32::MAX);
    let due = match &outcome {
        Delivered::Retry { at } => Some(time(*at)),
        Delivered::Done | Delivered::Dead { .. } => None,
    };
    let tx = client.transaction().await.map_err(failed)?;
    let update = "UPDATE notifications SET due_at = $4
        WHERE user_id = $1 AND number = $2 AND attempts = $3 AND due_at IS NOT NULL";
    let stood = execute(&tx, update, &[&user, &number, &attempt, &due]).await? > 0;
    if let (true, Delivered::Dead { error }) = (stood, &outcome) {
        let insert = "INSERT INTO dead_letters (shard, epoch, user_id, seq, reason, detail, event, usage)
            VALUES (0, 0, $1, $2, $3, $4, $5, '')";
        execute(&tx, insert, &[&user, &number, &UNDELIVERED, error, &notifications::letter(delivery)]).await?;
    }
    tx.commit().await.map_err(failed)
}

fn read(row: &Row) -> StoreResult<NotificationRow> {
    Ok(NotificationRow {
        user: common::account(row.get(0))?,
        number: uint(row.get(1)),
        kind: row.get(2),
        data: row.get(3),
        created_at: micros(row.get(4)),
        read_at: row.get::<_, Option<SystemTime>>(5).map(micros),
    })
}
