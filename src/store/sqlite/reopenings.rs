//! Shards that are opened anew.

use std::collections::HashMap;

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::super::common::{self, bits, int, uint};
use super::super::reopenings::{Reopenings, SESSION_CLOSED, SessionNumber, Standing};
use super::super::{Cursor, FlushBatch, StoreError, StoreResult};
use super::{SqliteStore, failed};

/// Notes the last entry that a flush wrote.
pub(super) fn write_mark(tx: &Transaction<'_>, batch: &FlushBatch) -> StoreResult<()> {
    if batch.mark.is_empty() {
        return Ok(());
    }
    execute(tx, "UPDATE ledger_cursors SET mark = ?2 WHERE shard = ?1", params![batch.shard, batch.mark]).map(drop)
}

fn standing(tx: &Transaction<'_>, shard: u32) -> StoreResult<Standing> {
    let read = |row: &Row<'_>| {
        Ok(Standing {
            cursor: Cursor { epoch: uint(row.get(0)?), counter: uint(row.get(1)?) },
            mark: row.get(2)?,
            reopening: row.get(3)?,
        })
    };
    let select = "SELECT epoch, counter, mark, reopening FROM ledger_cursors WHERE shard = ?1";
    let found = tx.query_row(select, [shard], read).optional().map_err(failed)?;
    Ok(found.unwrap_or_default())
}

fn begin(tx: &Transaction<'_>, shard: u32, epoch: u64) -> StoreResult<Standing> {
    execute(
        tx,
        "INSERT INTO ledger_cursors (shard, epoch, counter) VALUES (?1, 0, 0) ON CONFLICT DO NOTHING",
        [shard],
    )?;
    let update = "UPDATE ledger_cursors SET epoch = ?2 + 1, counter = 0, mark = x'', reopening = 1
        WHERE shard = ?1 AND epoch = ?2 AND reopening = 0";
    execute(tx, update, params![shard, int(epoch)])?;
    standing(tx, shard)
}

fn end(tx: &Transaction<'_>, shard: u32, at: Cursor) -> StoreResult<()> {
    let update = "UPDATE ledger_cursors SET counter = 0, mark = x'', reopening = 0
        WHERE shard = ?1 AND epoch = ?2 AND counter = ?3 AND reopening = 1";
    match execute(tx, update, params![shard, int(at.epoch), int(at.counter)])? {
        0 => Err(StoreError::CursorMoved),
        _ => Ok(()),
    }
}

fn numbers(tx: &Transaction<'_>, shard: u32, sessions: &[u64]) -> StoreResult<Vec<SessionNumber>> {
    let mut select =
        tx.prepare_cached("SELECT batch FROM ledger_sessions WHERE shard = ?1 AND session = ?2").map_err(failed)?;
    let mut found = Vec::with_capacity(sessions.len());
    for session in sessions {
        let number = select.query_row(params![shard, bits(*session)], |row| row.get(0)).optional().map_err(failed)?;
        found.extend(number.map(|number| (*session, uint(number))));
    }
    Ok(found)
}

fn close(tx: &Transaction<'_>, shard: u32, known: &[SessionNumber]) -> StoreResult<()> {
    let sessions: Vec<u64> = known.iter().map(|(session, _)| *session).collect();
    let stored: HashMap<u64, u64> = numbers(tx, shard, &sessions)?.into_iter().collect();
    let is_known = |(session, number): &SessionNumber| {
        let stored = stored.get(session).copied().unwrap_or(0);
        stored == *number || stored == SESSION_CLOSED
    };
    if !known.iter().all(is_known) {
        return Err(StoreError::CursorMoved);
    }
    let upsert = "INSERT INTO ledger_sessions (shard, session, batch, seen_at) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (shard, session) DO UPDATE SET batch = excluded.batch, seen_at = excluded.seen_at";
    for session in sessions {
        execute(tx, upsert, params![shard, bits(session), int(SESSION_CLOSED), int(common::now())])?;
    }
    Ok(())
}

fn execute(tx: &Transaction<'_>, sql: &str, row: impl rusqlite::Params) -> StoreResult<usize> {
    tx.execute(sql, row).map_err(failed)
}

#[async_trait]
impl Reopenings for SqliteStore {
    async fn standing(&self, shard: u32) -> StoreResult<Standing> {
        self.threads.read(move |tx| standing(tx, shard)).await
    }

    async fn begin_reopening(&self, shard: u32, epoch: u64) -> StoreResult<Standing> {
        self.threads.write(move |tx| begin(tx, shard, epoch)).await
    }

    async fn end_reopening(&self, shard: u32, at: Cursor) -> StoreResult<()> {
        self.threads.write(move |tx| end(tx, shard, at)).await
    }

    async fn session_numbers(&self, shard: u32, sessions: Vec<u64>) -> StoreResult<Vec<SessionNumber>> {
        self.threads.read(move |tx| numbers(tx, shard, &sessions)).await
    }

    async fn close_sessions(&self, shard: u32, known: Vec<SessionNumber>) -> StoreResult<()> {
        self.threads.write(move |tx| close(tx, shard, &known)).await
    }
}
