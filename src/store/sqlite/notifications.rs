//! Notifications, numbered by their account. There is one writer, so nothing needs a lock.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::super::common::{self, int, uint};
use super::super::notifications::{
    self, Delivered, Delivery, MARK_MAX, Marked, Notice, NotificationRow, Notifications, Standing, Thresholds,
    UNDELIVERED, Warning,
};
use super::super::{Page, PageRequest, StoreError, StoreResult};
use super::{SqliteStore, failed};
use crate::ledger::AccountId;

const COLUMNS: &str = "user_id, number, kind, data, created_at, read_at";

/// Raises a notification. Whether it was new.
pub(super) fn add(tx: &Transaction<'_>, notice: &Notice) -> StoreResult<bool> {
    let data = notifications::checked(notice)?;
    let user = notice.user.as_str();
    let count = "UPDATE credits SET notices = notices + 1 WHERE user_id = ?1 AND NOT EXISTS
        (SELECT 1 FROM notifications WHERE user_id = ?1 AND dedupe_key = ?2) RETURNING notices";
    let mut count = tx.prepare_cached(count).map_err(failed)?;
    let number = count.query_row([user, &notice.dedupe_key], |row| row.get::<_, i64>(0)).optional().map_err(failed)?;
    let Some(number) = number else {
        let known = "SELECT 1 FROM credits WHERE user_id = ?1";
        let known = tx.prepare_cached(known).and_then(|mut known| known.exists([user])).map_err(failed)?;
        return if known { Ok(false) } else { Err(StoreError::NotFound("the user")) };
    };
    write(tx, number, notice, &data)?;
    Ok(true)
}

/// Writes a warning that has its number.
pub(super) fn insert(tx: &Transaction<'_>, warning: &Warning) -> StoreResult<()> {
    write(tx, int(warning.number), &warning.notice, &warning.data)
}

fn write(tx: &Transaction<'_>, number: i64, notice: &Notice, data: &str) -> StoreResult<()> {
    let insert = "INSERT INTO notifications (user_id, number, kind, data, dedupe_key, created_at, due_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, CASE WHEN (SELECT open FROM notification_outlet) THEN ?6 END)";
    let row = params![notice.user.as_str(), number, notice.kind.name(), data, notice.dedupe_key, int(common::now())];
    tx.prepare_cached(insert).and_then(|mut insert| insert.execute(row)).map_err(failed).map(drop)
}

#[async_trait]
impl Notifications for SqliteStore {
    fn set_thresholds(&self, thresholds: Thresholds) {
        *self.thresholds.write() = Arc::new(thresholds);
    }

    async fn notify(&self, notice: Notice) -> StoreResult<bool> {
        self.threads.write(move |tx| add(tx, &notice)).await
    }

    async fn notifications(
        &self,
        user: &AccountId,
        unread: bool,
        page: PageRequest,
    ) -> StoreResult<Page<NotificationRow>> {
        let user = user.clone();
        let list = move |tx: &Transaction<'_>| {
            let slice = common::slice(&page)?;
            let before = common::position(&slice)?;
            let which = if unread { "AND read_at IS NULL" } else { "" };
            let select = format!(
                "SELECT {COLUMNS} FROM notifications WHERE user_id = ?1 AND number < ?2 {which}
                ORDER BY number DESC LIMIT ?3"
            );
            let mut statement = tx.prepare_cached(&select).map_err(failed)?;
            let rows = statement.query_map(params![user.as_str(), before, slice.rows], |row| read(&user, row));
            let found: Vec<NotificationRow> = rows.map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
            Ok(common::page(found, &slice, |row| row.number.to_string()))
        };
        self.threads.read(list).await
    }

    async fn notifications_after(
        &self,
        user: &AccountId,
        number: u64,
        limit: u32,
    ) -> StoreResult<Vec<NotificationRow>> {
        let user = user.clone();
        let list = move |tx: &Transaction<'_>| {
            let select = format!(
                "SELECT {COLUMNS} FROM notifications WHERE user_id = ?1 AND number > ?2 ORDER BY number LIMIT ?3"
            );
            let mut statement = tx.prepare_cached(&select).map_err(failed)?;
            let rows = statement.query_map(params![user.as_str(), int(number), limit], |row| read(&user, row));
            rows.map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
        };
        self.threads.read(list).await
    }

    async fn mark_read(&self, user: &AccountId, which: Marked) -> StoreResult<u64> {
        let user = user.clone();
        let mark = move |tx: &Transaction<'_>| {
            let now = int(common::now());
            let update = "UPDATE notifications SET read_at = ?2 WHERE user_id = ?1 AND read_at IS NULL";
            let Marked::Numbers(numbers) = which else {
                let all = tx.prepare_cached(update).and_then(|mut update| update.execute(params![user.as_str(), now]));
                return all.map(|rows| rows as u64).map_err(failed);
            };
            let mut one = tx.prepare_cached(&format!("{update} AND number = ?3")).map_err(failed)?;
            let mut updated = 0;
            for number in numbers.into_iter().take(MARK_MAX) {
                updated += one.execute(params![user.as_str(), now, int(number)]).map_err(failed)? as u64;
            }
            Ok(updated)
        };
        self.threads.write(mark).await
    }

    async fn standings(&self, users: &[AccountId]) -> StoreResult<Vec<Standing>> {
        let users = users.to_vec();
        let look = move |tx: &Transaction<'_>| {
            let select = "SELECT c.seq, c.notices, coalesce(b.version, 0), u.status = 'closed' FROM credits AS c
                JOIN users AS u ON u.id = c.user_id LEFT JOIN billing_accounts AS b ON b.user_id = c.user_id WHERE c.user_id = ?1";
            let mut select = tx.prepare_cached(select).map_err(failed)?;
            let mut found = Vec::with_capacity(users.len());
            for user in users {
                let read = |row: &Row<'_>| {
                    let number = |column: usize| row.get::<_, i64>(column).map(uint);
                    Ok(Standing {
                        user: user.clone(),
                        seq: number(0)?,
                        notices: number(1)?,
                        billing_version: number(2)?,
                        closed: row.get(3)?,
                    })
                };
                found.extend(select.query_row([user.as_str()], read).optional().map_err(failed)?);
            }
            Ok(found)
        };
        self.threads.read(look).await
    }

    async fn open_outlet(&self, open: bool) -> StoreResult<()> {
        let set = move |tx: &Transaction<'_>| {
            tx.execute("UPDATE notification_outlet SET open = ?1", [open]).map_err(failed)?;
            if !open {
                tx.execute("UPDATE notifications SET due_at = NULL WHERE due_at IS NOT NULL", []).map_err(failed)?;
            }
            Ok(())
        };
        self.threads.write(set).await
    }

    async fn claim_deliveries(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<Delivery>> {
        let now = common::now();
        let due = move |tx: &Transaction<'_>| {
            let select = "SELECT EXISTS (SELECT 1 FROM notifications WHERE due_at <= ?1)";
            tx.prepare_cached(select).and_then(|mut due| due.query_row([int(now)], |row| row.get(0))).map_err(failed)
        };
        // Looking needs no write, and there is seldom anything.
        if !self.threads.read(due).await? {
            return Ok(Vec::new());
        }
        let claim = move |tx: &Transaction<'_>| {
            let claim = format!(
                "UPDATE notifications SET attempts = attempts + 1, due_at = ?2 WHERE rowid IN
                    (SELECT rowid FROM notifications WHERE due_at <= ?1 ORDER BY due_at LIMIT ?3)
                RETURNING {COLUMNS}, attempts"
            );
            let mut claim = tx.prepare_cached(&claim).map_err(failed)?;
            let read = |row: &Row<'_>| {
                let user: String = row.get(0)?;
                let attempt: u32 = row.get(6)?;
                Ok((user, attempt, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
            };
            let rows = claim.query_map(params![int(now), int(now.saturating_add(lease_us)), limit], read);
            let mut claimed = Vec::new();
            for row in rows.map_err(failed)? {
                let (user, attempt, number, kind, data, created_at, read_at) = row.map_err(failed)?;
                let notification = NotificationRow {
                    user: common::account(&user)?,
                    number: uint(number),
                    kind,
                    data,
                    created_at: uint(created_at),
                    read_at: Option::<i64>::map(read_at, uint),
                };
                claimed.push(Delivery { notification, attempt });
            }
            Ok(claimed)
        };
        self.threads.write(claim).await
    }

    async fn finish_delivery(&self, delivery: &Delivery, outcome: Delivered) -> StoreResult<()> {
        let delivery = delivery.clone();
        let finish = move |tx: &Transaction<'_>| {
            let row = &delivery.notification;
            let (user, number) = (row.user.as_str(), int(row.number));
            let due = match &outcome {
                Delivered::Retry { at } => Some(int(*at)),
                Delivered::Done | Delivered::Dead { .. } => None,
            };
            let update = "UPDATE notifications SET due_at = ?4
                WHERE user_id = ?1 AND number = ?2 AND attempts = ?3 AND due_at IS NOT NULL";
            let stood = tx.execute(update, params![user, number, delivery.attempt, due]).map_err(failed)? > 0;
            if let (true, Delivered::Dead { error }) = (stood, &outcome) {
                let insert = "INSERT INTO dead_letters (at, shard, epoch, user_id, seq, reason, detail, event, usage)
                    VALUES (?1, 0, 0, ?2, ?3, ?4, ?5, ?6, x'')";
                let letter = notifications::letter(&delivery);
                let row = params![int(common::now()), user, number, UNDELIVERED, error, letter];
                tx.execute(insert, row).map_err(failed)?;
            }
            Ok(())
        };
        self.threads.write(finish).await
    }

    async fn deliveries_waiting(&self) -> StoreResult<u64> {
        let count = |tx: &Transaction<'_>| {
            tx.query_row("SELECT count(*) FROM notifications WHERE due_at IS NOT NULL", [], |row| row.get::<_, i64>(0))
                .map(uint)
                .map_err(failed)
        };
        self.threads.read(count).await
    }
}

fn read(user: &AccountId, row: &Row<'_>) -> rusqlite::Result<NotificationRow> {
    Ok(NotificationRow {
        user: user.clone(),
        number: uint(row.get(1)?),
        kind: row.get(2)?,
        data: row.get(3)?,
        created_at: uint(row.get(4)?),
        read_at: row.get::<_, Option<i64>>(5)?.map(uint),
    })
}
