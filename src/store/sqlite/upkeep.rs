//! Old usage and dead letters, taken away in slices so that no commit waits long for them.

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::super::common::{self, int, uint};
use super::super::letters::{DeadLetter, DeadLetters};
use super::super::upkeep::{Pruned, Retention, Upkeep};
use super::super::{Page, PageRequest, StoreResult};
use super::{SqliteStore, failed};
use crate::ledger::Micros;

/// Rows deleted in one transaction, and such transactions in one go.
const SLICE_ROWS: u64 = 500;
const SLICES_MAX: usize = 2_000;
const LETTER: &str = "id, at, shard, epoch, user_id, seq, reason, detail, event, usage";

#[async_trait]
impl Upkeep for SqliteStore {
    async fn keep(&self, retention: Retention) -> StoreResult<Pruned> {
        let mut pruned = Pruned::default();
        if let Some(until) = retention.usage_until(Timestamp::now()) {
            pruned.usage_rows = self.in_slices(until, prune_usage).await?;
        }
        if let Some(until) = retention.letters_until(Timestamp::now()) {
            pruned.dead_letters = self.in_slices(until, prune_letters).await?;
        }
        if let Some(until) = retention.read_until(Timestamp::now()) {
            pruned.notifications +=
                self.in_slices(until, |tx, until| prune_notifications(tx, "read_at", until)).await?;
        }
        if let Some(until) = retention.unread_until(Timestamp::now()) {
            let slice = |tx: &Transaction<'_>, until| prune_notifications(tx, "created_at", until);
            pruned.notifications += self.in_slices(until, slice).await?;
        }
        Ok(pruned)
    }
}

impl SqliteStore {
    async fn in_slices(
        &self,
        until: Micros,
        slice: fn(&Transaction<'_>, Micros) -> StoreResult<u64>,
    ) -> StoreResult<u64> {
        let mut all = 0;
        for _ in 0..SLICES_MAX {
            let gone = self.threads.write(move |tx| slice(tx, until)).await?;
            all += gone;
            if gone < SLICE_ROWS {
                break;
            }
        }
        Ok(all)
    }
}

/// The time in a request's id (UUIDv7) is what counts, as in Postgres, and there is an index on it. Rows that are in no day
/// yet stay for now.
fn prune_usage(tx: &Transaction<'_>, until: Micros) -> StoreResult<u64> {
    let mut first = [0; 16];
    first[..6].copy_from_slice(&(until / 1_000).to_be_bytes()[2..]);
    let old = "SELECT u.rowid FROM usage_logs AS u JOIN usage_rolled AS r ON r.user_id = u.user_id AND u.seq <= r.seq
        WHERE u.request_id < ?1 ORDER BY u.request_id LIMIT ?2";
    let sums = format!(
        "INSERT INTO usage_pruned AS known
        SELECT user_id, sum(charged), count(*), ?3, count(*), sum(charged), sum(input_tokens), sum(cached_tokens),
            sum(output_tokens), sum(estimated), sum(status BETWEEN 400 AND 499), sum(status >= 500)
        FROM usage_logs WHERE rowid IN ({old}) GROUP BY user_id
        ON CONFLICT (user_id) DO UPDATE SET charged = charged + excluded.charged, rows = rows + excluded.rows,
            until = max(coalesce(until, 0), excluded.until), day_requests = day_requests + excluded.day_requests,
            day_charged = day_charged + excluded.day_charged,
            day_input_tokens = day_input_tokens + excluded.day_input_tokens,
            day_cached_tokens = day_cached_tokens + excluded.day_cached_tokens,
            day_output_tokens = day_output_tokens + excluded.day_output_tokens,
            day_estimated = day_estimated + excluded.day_estimated,
            day_client_errors = day_client_errors + excluded.day_client_errors,
            day_server_errors = day_server_errors + excluded.day_server_errors"
    );
    let (limit, until) = (int(SLICE_ROWS), int(until));
    tx.prepare_cached(&sums).and_then(|mut sums| sums.execute(params![first, limit, until])).map_err(failed)?;
    let delete = format!("DELETE FROM usage_logs WHERE rowid IN ({old})");
    let gone = tx.prepare_cached(&delete).and_then(|mut delete| delete.execute(params![first, limit]));
    Ok(gone.map_err(failed)? as u64)
}

/// A letter whose usage is no row is all that stands for what was charged.
fn prune_letters(tx: &Transaction<'_>, until: Micros) -> StoreResult<u64> {
    let (until, limit) = (int(until), int(SLICE_ROWS));
    let charged = "SELECT user_id, sum(micro), count(*) FROM (SELECT DISTINCT user_id, seq,
            json_extract(event, '$.charged_micro') AS micro
        FROM dead_letters AS d WHERE id IN (SELECT id FROM dead_letters WHERE at < ?1 ORDER BY at, id LIMIT ?2)
            AND reason IN ('unreadable_usage', 'duplicate_request', 'refused')
            AND EXISTS (SELECT 1 FROM credits AS c WHERE c.user_id = d.user_id)
            AND NOT EXISTS (SELECT 1 FROM usage_logs AS u WHERE u.user_id = d.user_id AND u.seq = d.seq))
        GROUP BY user_id";
    let mut statement = tx.prepare_cached(charged).map_err(failed)?;
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let sums: Vec<(String, i64, i64)> = {
        let rows = statement.query_map(params![until, limit], read).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)?
    };
    for (user, charged, rows) in sums {
        note_pruned(tx, &user, charged, rows)?;
    }
    let delete =
        "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters WHERE at < ?1 ORDER BY at, id LIMIT ?2)";
    Ok(tx.execute(delete, params![until, limit]).map_err(failed)? as u64)
}

/// Those that wait to be delivered stay.
fn prune_notifications(tx: &Transaction<'_>, which: &str, until: Micros) -> StoreResult<u64> {
    let delete = format!(
        "DELETE FROM notifications WHERE rowid IN (SELECT rowid FROM notifications
            WHERE {which} < ?1 AND due_at IS NULL ORDER BY {which} LIMIT ?2)"
    );
    let gone = tx.prepare_cached(&delete).and_then(|mut delete| delete.execute(params![int(until), int(SLICE_ROWS)]));
    Ok(gone.map_err(failed)? as u64)
}

fn note_pruned(tx: &Transaction<'_>, user: &str, charged: i64, rows: i64) -> StoreResult<()> {
    let upsert = "INSERT INTO usage_pruned (user_id, charged, rows) VALUES (?1, ?2, ?3)
        ON CONFLICT (user_id) DO UPDATE SET charged = charged + excluded.charged, rows = rows + excluded.rows";
    tx.prepare_cached(upsert).and_then(|mut upsert| upsert.execute(params![user, charged, rows])).map_err(failed)?;
    Ok(())
}

#[async_trait]
impl DeadLetters for SqliteStore {
    async fn dead_letters(&self, page: PageRequest) -> StoreResult<Page<DeadLetter>> {
        let list = move |tx: &Transaction<'_>| {
            let slice = common::slice(&page)?;
            let before = common::position(&slice)?;
            let select = format!("SELECT {LETTER} FROM dead_letters WHERE id < ?1 ORDER BY id DESC LIMIT ?2");
            let mut statement = tx.prepare_cached(&select).map_err(failed)?;
            let rows = statement.query_map(params![before, slice.rows], read).map_err(failed)?;
            let found: Vec<DeadLetter> = rows.collect::<Result<_, _>>().map_err(failed)?;
            Ok(common::page(found, &slice, |letter| letter.id.to_string()))
        };
        self.threads.read(list).await
    }

    async fn dead_letter(&self, id: i64) -> StoreResult<Option<DeadLetter>> {
        let select = format!("SELECT {LETTER} FROM dead_letters WHERE id = ?1");
        let look = move |tx: &Transaction<'_>| tx.query_row(&select, [id], read).optional().map_err(failed);
        self.threads.read(look).await
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    let number = |column: usize| row.get::<_, i64>(column).map(uint);
    Ok(DeadLetter {
        id: row.get(0)?,
        at: number(1)?,
        shard: u32::try_from(number(2)?).unwrap_or(u32::MAX),
        epoch: number(3)?,
        account: row.get(4)?,
        seq: number(5)?,
        reason: row.get(6)?,
        detail: row.get(7)?,
        event: row.get(8)?,
        usage: Bytes::from(row.get::<_, Vec<u8>>(9)?),
    })
}
