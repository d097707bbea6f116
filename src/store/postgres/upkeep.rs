//! Partitions made ahead, old ones dropped, dead letters listed and pruned.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deadpool_postgres::{Client, Object};
use jiff::Timestamp;
use tokio_postgres::Row;

use super::super::common::{self, uint};
use super::super::letters::{DeadLetter, DeadLetters};
use super::super::upkeep::{Pruned, Retention, Upkeep};
use super::super::{Page, PageRequest, StoreError, StoreResult};
use super::{PostgresStore, failed, identity, micros, query, query_opt, time, within};
use crate::ledger::Micros;

/// Of this database: held by the one replica that does the upkeep.
pub(super) const UPKEEP_LOCK: i64 = 0x_6661_7265_6b65_6570;
/// Summing up a month's rows may take long; so may one statement, and all of them together.
const STATEMENT_LIMIT: Duration = Duration::from_secs(15 * 60);
const LIMIT: Duration = Duration::from_secs(60 * 60);
/// How long a partition may wait to be taken away: whoever writes usage waits behind it.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Partitions dropped in one go.
const PARTITIONS_MAX: usize = 24;
/// Rows deleted in one transaction, and such transactions in one go.
const SLICE_ROWS: i64 = 5_000;
const SLICES_MAX: usize = 200;
const LETTER: &str = "id, at, shard, epoch, user_id, seq, reason, detail, event, usage";

#[async_trait]
impl Upkeep for PostgresStore {
    async fn keep(&self, retention: Retention) -> StoreResult<Pruned> {
        let mut own = Own(Some(self.client().await?));
        let Some(client) = own.0.as_mut() else { return Ok(Pruned::default()) };
        let (statement_ms, lock_ms) = (STATEMENT_LIMIT.as_millis(), LOCK_WAIT.as_millis());
        let limits = format!("SET statement_timeout = {statement_ms}; SET lock_timeout = {lock_ms}");
        let kept = async {
            client.batch_execute(&limits).await.map_err(failed)?;
            keep(client, retention).await
        };
        tokio::time::timeout(LIMIT, kept).await.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!("the upkeep did not end within {} s", LIMIT.as_secs())))
        })
    }
}

/// A connection that does not go back to the pool: its lock, its settings and what is under way end with it.
struct Own(Option<Client>);

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

async fn keep(client: &mut Client, retention: Retention) -> StoreResult<Pruned> {
    let locked = query_opt(client, "SELECT pg_try_advisory_lock($1)", &[&UPKEEP_LOCK]).await?;
    if !locked.is_some_and(|row| row.get(0)) {
        return Ok(Pruned::default());
    }
    identity::make_partitions(client).await?;
    let mut pruned = Pruned::default();
    if let Some(until) = retention.usage_until(Timestamp::now()) {
        pruned.usage_rows = drop_partitions(client, until).await? + prune_others(client, until).await?;
    }
    if let Some(until) = retention.letters_until(Timestamp::now()) {
        pruned.dead_letters = prune_letters(client, until).await?;
    }
    let (read, unread) = (retention.read_until(Timestamp::now()), retention.unread_until(Timestamp::now()));
    for (which, until) in [("read_at", read), ("created_at", unread)] {
        if let Some(until) = until {
            pruned.notifications += prune_notifications(client, which, until).await?;
        }
    }
    // Not left to the connection's end: the next round may begin before the server notices that.
    query_opt(client, "SELECT pg_advisory_unlock($1)", &[&UPKEEP_LOCK]).await?;
    Ok(pruned)
}

async fn drop_partitions(client: &mut Client, until: Micros) -> StoreResult<u64> {
    let mut rows = 0;
    for _ in 0..PARTITIONS_MAX {
        let oldest = query_opt(client, "SELECT usage_logs_oldest($1)", &[&time(until)]).await?;
        let Some(name) = oldest.and_then(|row| row.get::<_, Option<String>>(0)) else { break };
        let tx = client.transaction().await.map_err(failed)?;
        let gone = query_opt(&tx, "SELECT usage_logs_drop_partition($1)", &[&name]).await?;
        tx.commit().await.map_err(failed)?;
        let Some(gone) = gone.and_then(|row| row.get::<_, Option<i64>>(0)).map(uint) else {
            tracing::info!(partition = name, "old usage stays until all of it is added up by day");
            break;
        };
        tracing::info!(partition = name, rows = gone, "old usage was dropped");
        rows += gone;
    }
    Ok(rows)
}

/// Rows of months that never had a partition, once they are added up by day.
async fn prune_others(client: &mut Client, until: Micros) -> StoreResult<u64> {
    let delete = "WITH old AS (SELECT u.request_id FROM usage_logs_other AS u
            JOIN usage_rolled AS r ON r.user_id = u.user_id AND u.seq <= r.seq
            WHERE u.request_id < usage_logs_first_id($1) ORDER BY u.request_id LIMIT $2),
        gone AS (DELETE FROM usage_logs_other AS u USING old WHERE u.request_id = old.request_id RETURNING u.*),
        summed AS (INSERT INTO usage_pruned AS known
            SELECT user_id, sum(charged)::bigint, count(*), $1, count(*), sum(charged)::bigint,
                sum(input_tokens)::bigint, sum(cached_tokens)::bigint, sum(output_tokens)::bigint,
                count(*) FILTER (WHERE estimated), count(*) FILTER (WHERE status BETWEEN 400 AND 499),
                count(*) FILTER (WHERE status >= 500)
            FROM gone GROUP BY user_id ORDER BY user_id
            ON CONFLICT (user_id) DO UPDATE SET
                charged = known.charged + excluded.charged, rows = known.rows + excluded.rows,
                until = greatest(known.until, excluded.until),
                day_requests = known.day_requests + excluded.day_requests,
                day_charged = known.day_charged + excluded.day_charged,
                day_input_tokens = known.day_input_tokens + excluded.day_input_tokens,
                day_cached_tokens = known.day_cached_tokens + excluded.day_cached_tokens,
                day_output_tokens = known.day_output_tokens + excluded.day_output_tokens,
                day_estimated = known.day_estimated + excluded.day_estimated,
                day_client_errors = known.day_client_errors + excluded.day_client_errors,
                day_server_errors = known.day_server_errors + excluded.day_server_errors)
        SELECT count(*) FROM gone";
    in_slices(client, delete, until).await
}

/// A letter whose usage is no row is all that stands for what was charged.
async fn prune_letters(client: &mut Client, until: Micros) -> StoreResult<u64> {
    let delete = r#"WITH old AS (SELECT id FROM dead_letters WHERE at < $1 ORDER BY at LIMIT $2),
        gone AS (DELETE FROM dead_letters AS d USING old WHERE d.id = old.id
            RETURNING d.user_id, d.seq, d.reason, d.event),
        charged AS (SELECT DISTINCT user_id, seq, substring(event FROM '"charged_micro":([0-9]{1,18})')::bigint AS micro
            FROM gone WHERE reason IN ('unreadable_usage', 'duplicate_request', 'refused')
                AND EXISTS (SELECT 1 FROM credits AS c WHERE c.user_id = gone.user_id)
                AND NOT EXISTS (SELECT 1 FROM usage_logs AS u WHERE u.user_id = gone.user_id AND u.seq = gone.seq)),
        summed AS (INSERT INTO usage_pruned AS known (user_id, charged, rows)
            SELECT user_id, coalesce(sum(micro), 0)::bigint, count(*) FROM charged GROUP BY user_id ORDER BY user_id
            ON CONFLICT (user_id) DO UPDATE
            SET charged = known.charged + excluded.charged, rows = known.rows + excluded.rows)
        SELECT count(*) FROM gone"#;
    in_slices(client, delete, until).await
}

/// Those that wait to be delivered stay.
async fn prune_notifications(client: &mut Client, which: &str, until: Micros) -> StoreResult<u64> {
    let delete = format!(
        "WITH old AS (SELECT user_id, number FROM notifications WHERE {which} < $1 AND due_at IS NULL
            ORDER BY {which} LIMIT $2),
        gone AS (DELETE FROM notifications AS n USING old WHERE n.user_id = old.user_id AND n.number = old.number
            RETURNING n.number)
        SELECT count(*) FROM gone"
    );
    in_slices(client, &delete, until).await
}

async fn in_slices(client: &mut Client, delete: &str, until: Micros) -> StoreResult<u64> {
    let mut all = 0;
    for _ in 0..SLICES_MAX {
        let row = query_opt(client, delete, &[&time(until), &SLICE_ROWS]).await?;
        let gone = row.map_or(0, |row| row.get::<_, i64>(0));
        all += uint(gone);
        if gone < SLICE_ROWS {
            break;
        }
    }
    Ok(all)
}

#[async_trait]
impl DeadLetters for PostgresStore {
    async fn dead_letters(&self, page: PageRequest) -> StoreResult<Page<DeadLetter>> {
        let slice = common::slice(&page)?;
        let before = common::position(&slice)?;
        let select = format!("SELECT {LETTER} FROM dead_letters WHERE id < $1 ORDER BY id DESC LIMIT $2");
        let rows = within!(self, |client| query(client, &select, &[&before, &slice.rows]))?;
        Ok(common::page(rows.iter().map(read).collect(), &slice, |letter: &DeadLetter| letter.id.to_string()))
    }

    async fn dead_letter(&self, id: i64) -> StoreResult<Option<DeadLetter>> {
        let select = format!("SELECT {LETTER} FROM dead_letters WHERE id = $1");
        let row = within!(self, |client| query_opt(client, &select, &[&id]))?;
        Ok(row.as_ref().map(read))
    }
}

fn read(row: &Row) -> DeadLetter {
    DeadLetter {
        id: row.get(0),
        at: micros(row.get(1)),
        shard: u32::try_from(row.get::<_, i64>(2)).unwrap_or(u32::MAX),
        epoch: uint(row.get(3)),
        account: row.get(4),
        seq: uint(row.get(5)),
        reason: row.get(6),
        detail: row.get(7),
        event: row.get(8),
        usage: Bytes::copy_from_slice(row.get(9)),
    }
}
