//! Shards that are opened anew.

use async_trait::async_trait;
use deadpool_postgres::{Client, Object, Transaction};

use super::super::common::{bits, from_bits, int, uint};
use super::super::reopenings::{Reopenings, SESSION_CLOSED, SessionNumber, Standing};
use super::super::{Cursor, FlushBatch, StoreError, StoreResult};
use super::{PostgresStore, execute, failed, flush, query, query_opt, within};

/// Notes the last entry that a flush wrote.
pub(super) async fn write_mark(tx: &Transaction<'_>, batch: &FlushBatch) -> StoreResult<()> {
    if batch.mark.is_empty() {
        return Ok(());
    }
    let update = "UPDATE ledger_cursors SET mark = $2 WHERE shard = $1";
    execute(tx, update, &[&i64::from(batch.shard), &batch.mark]).await.map(drop)
}

async fn standing(client: &Client, shard: u32) -> StoreResult<Standing> {
    let select = "SELECT epoch, counter, mark, reopening FROM ledger_cursors WHERE shard = $1";
    let row = query_opt(client, select, &[&i64::from(shard)]).await?;
    Ok(row.map_or_else(Standing::default, |row| Standing {
        cursor: Cursor { epoch: uint(row.get(0)), counter: uint(row.get(1)) },
        mark: row.get(2),
        reopening: row.get(3),
    }))
}

async fn begin(client: &mut Client, shard: u32, epoch: u64) -> StoreResult<Standing> {
    let tx = client.transaction().await.map_err(failed)?;
    // Makes the row where there is none, and waits for a flush that is under way.
    flush::lock_cursor(&tx, shard).await?;
    let update = "UPDATE ledger_cursors SET epoch = $2 + 1, counter = 0, mark = '', reopening = true
        WHERE shard = $1 AND epoch = $2 AND NOT reopening";
    execute(&tx, update, &[&i64::from(shard), &int(epoch)]).await?;
    tx.commit().await.map_err(failed)?;
    standing(client, shard).await
}

async fn end(client: &Client, shard: u32, at: Cursor) -> StoreResult<()> {
    let update = "UPDATE ledger_cursors SET counter = 0, mark = '', reopening = false
        WHERE shard = $1 AND epoch = $2 AND counter = $3 AND reopening";
    let ended = execute(client, update, &[&i64::from(shard), &int(at.epoch), &int(at.counter)]).await?;
    if ended == 0 { Err(StoreError::CursorMoved) } else { Ok(()) }
}

async fn numbers(client: &Client, shard: u32, sessions: &[u64]) -> StoreResult<Vec<SessionNumber>> {
    let sessions: Vec<i64> = sessions.iter().map(|session| bits(*session)).collect();
    let select = "SELECT session, batch FROM ledger_sessions WHERE shard = $1 AND session = ANY($2)";
    let rows = query(client, select, &[&i64::from(shard), &sessions]).await?;
    Ok(rows.iter().map(|row| (from_bits(row.get(0)), uint(row.get(1)))).collect())
}

async fn close(client: &mut Client, shard: u32, known: &[SessionNumber]) -> StoreResult<()> {
    let (sessions, numbers): (Vec<i64>, Vec<i64>) =
        known.iter().map(|(session, number)| (bits(*session), int(*number))).unzip();
    let (shard_id, closed) = (i64::from(shard), int(SESSION_CLOSED));
    let tx = client.transaction().await.map_err(failed)?;
    // What else writes sessions locks it too.
    flush::lock_cursor(&tx, shard).await?;
    let others = "SELECT k.session FROM unnest($2::bigint[], $3::bigint[]) AS k (session, batch)
        LEFT JOIN ledger_sessions AS s ON s.shard = $1 AND s.session = k.session
        WHERE coalesce(s.batch, 0) NOT IN (k.batch, $4) LIMIT 1";
    if query_opt(&tx, others, &[&shard_id, &sessions, &numbers, &closed]).await?.is_some() {
        return Err(StoreError::CursorMoved);
    }
    let upsert = "INSERT INTO ledger_sessions (shard, session, batch)
        SELECT $1, k.session, $3 FROM unnest($2::bigint[]) AS k (session)
        ON CONFLICT (shard, session) DO UPDATE SET batch = excluded.batch, seen_at = now()";
    execute(&tx, upsert, &[&shard_id, &sessions, &closed]).await?;
    tx.commit().await.map_err(failed)
}

#[async_trait]
impl Reopenings for PostgresStore {
    async fn standing(&self, shard: u32) -> StoreResult<Standing> {
        within!(self, |client| standing(client, shard))
    }

    async fn begin_reopening(&self, shard: u32, epoch: u64) -> StoreResult<Standing> {
        within!(self, |client| begin(client, shard, epoch))
    }

    async fn end_reopening(&self, shard: u32, at: Cursor) -> StoreResult<()> {
        within!(self, |client| end(client, shard, at))
    }

    async fn session_numbers(&self, shard: u32, sessions: Vec<u64>) -> StoreResult<Vec<SessionNumber>> {
        within!(self, |client| numbers(client, shard, &sessions))
    }

    async fn close_sessions(&self, shard: u32, known: Vec<SessionNumber>) -> StoreResult<()> {
        within!(self, |client| close(client, shard, &known))
    }
}
