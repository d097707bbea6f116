//! The journal: a row a group commit, folded into the tables in short transactions.
//!
//! A fold reads a stretch of the journal, sorts its events by account, and writes them a slice at a time, each slice
//! with how far the fold is. The last slice moves the cursor and drops the rows. Whoever folds the same stretch again
//! sorts it the same way, and so goes on where it was cut off.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::super::common::{broken, int, uint};
use super::super::effects;
use super::super::journal::Folded;
use super::super::notifications::Thresholds;
use super::super::{Cursor, FlushBatch, Flushed, StoreError, StoreResult};
use super::flush::{self, Flush, execute};
use super::{failed, pack};
use crate::ledger::Event;

/// Packed events that one fold reads, in bytes: it keeps them in memory.
const STRETCH_BYTES: usize = 8 * 1024 * 1024;
/// Events written in one transaction of a fold: a few milliseconds, for which group commits wait.
const SLICE_EVENTS: usize = 400;

/// The end of the journal, and the cursor where it is empty.
const END: &str = "SELECT coalesce((SELECT max(last) FROM ledger_journal WHERE shard = ?1),
    (SELECT counter FROM ledger_cursors WHERE shard = ?1), 0)";
/// Writes nothing unless the journal ends at ?4, in epoch ?3.
const APPEND: &str = "INSERT INTO ledger_journal (shard, last, epoch, first, events) SELECT ?1, ?2, ?3, ?4 + 1, ?5
    WHERE ?4 = coalesce((SELECT max(last) FROM ledger_journal WHERE shard = ?1),
        (SELECT counter FROM ledger_cursors WHERE shard = ?1), 0)
    AND ?3 = coalesce((SELECT epoch FROM ledger_cursors WHERE shard = ?1), 0)";

pub(super) fn end(tx: &Transaction<'_>, shard: u32) -> StoreResult<Cursor> {
    let epoch = flush::cursor(tx, shard)?.epoch;
    let counter = tx.query_row(END, [shard], |row| row.get(0)).map_err(failed)?;
    Ok(Cursor { epoch, counter: uint(counter) })
}

/// Whether the journal holds something of this shard.
pub(super) fn is_empty(tx: &Transaction<'_>, shard: u32) -> StoreResult<bool> {
    let mut select = tx.prepare_cached("SELECT 1 FROM ledger_journal WHERE shard = ?1 LIMIT 1").map_err(failed)?;
    Ok(!select.exists([shard]).map_err(failed)?)
}

/// `packed` are the batch's events. A batch without records, which is almost every one, is a single statement and its
/// own transaction.
pub(super) fn append(connection: &mut Connection, batch: &FlushBatch, packed: &[u8]) -> StoreResult<()> {
    if batch.records.is_empty() {
        return write_down(connection, batch, packed);
    }
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    write_down(&tx, batch, packed)?;
    flush::write_records(&tx, &batch.records)?;
    tx.commit().map_err(failed)
}

fn write_down(connection: &Connection, batch: &FlushBatch, packed: &[u8]) -> StoreResult<()> {
    let (from, to) = (batch.from, batch.to);
    if to <= from.counter {
        return Err(StoreError::CursorMoved);
    }
    let row = params![batch.shard, int(to), int(from.epoch), int(from.counter), packed];
    let written = connection.prepare_cached(APPEND).and_then(|mut insert| insert.execute(row)).map_err(failed)?;
    if written == 0 { Err(StoreError::CursorMoved) } else { Ok(()) }
}

/// A stretch of the journal on its way into the tables.
pub(super) struct Stretch {
    shard: u32,
    /// Where the cursor stands.
    from: Cursor,
    /// Counter of the last entry.
    last: u64,
    events: Vec<Event>,
    /// Indices of the events, sorted by account.
    order: Vec<usize>,
    /// So many, in that order, are in the tables.
    done: usize,
    written: Flushed,
    full: bool,
    thresholds: Arc<Thresholds>,
}

/// The oldest stretch: the one that is being folded where there is one.
pub(super) fn read(tx: &Transaction<'_>, shard: u32, thresholds: Arc<Thresholds>) -> StoreResult<Option<Stretch>> {
    let from = flush::cursor(tx, shard)?;
    let begun = progress(tx, shard)?;
    let select = "SELECT epoch, first, last, events FROM ledger_journal WHERE shard = ?1 AND last <= ?2 ORDER BY last";
    let upto = begun.map_or(i64::MAX, |(last, _)| last);
    let mut select = tx.prepare_cached(select).map_err(failed)?;
    let mut rows = select.query(params![shard, upto]).map_err(failed)?;
    let (mut last, mut bytes, mut full) = (from.counter, 0, false);
    let mut events = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let entry = read_entry(row).map_err(failed)?;
        if (entry.epoch, entry.first) != (from.epoch, last + 1) {
            return Err(StoreError::Unavailable(format!("the journal has a hole after entry {last}")));
        }
        bytes += entry.packed.len();
        last = entry.last;
        events.extend(pack::unpack(&entry.packed)?);
        full = begun.is_none() && bytes >= STRETCH_BYTES;
        if full {
            break;
        }
    }
    if begun.is_some_and(|(upto, _)| upto != int(last)) {
        return Err(StoreError::Unavailable("the journal lacks entries that are being folded".to_owned()));
    }
    if last == from.counter {
        return Ok(None);
    }
    let done = begun.map_or(0, |(_, done)| done);
    let order = effects::by_account(&events);
    Ok(Some(Stretch { shard, from, last, events, order, done, written: Flushed::default(), full, thresholds }))
}

struct Entry {
    epoch: u64,
    first: u64,
    last: u64,
    packed: Bytes,
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let (epoch, first, last) = (uint(row.get(0)?), uint(row.get(1)?), uint(row.get(2)?));
    Ok(Entry { epoch, first, last, packed: row.get::<_, Vec<u8>>(3)?.into() })
}

/// The last entry of the fold under way, and how many of its events are in the tables.
fn progress(tx: &Transaction<'_>, shard: u32) -> StoreResult<Option<(i64, usize)>> {
    let mut select = tx.prepare_cached("SELECT last, done FROM ledger_folds WHERE shard = ?1").map_err(failed)?;
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?));
    let found = select.query_row([shard], read).optional().map_err(failed)?;
    found.map(|(last, done)| Ok((last, usize::try_from(done).map_err(|_| broken("fold"))?))).transpose()
}

impl Stretch {
    /// Writes the next slice. Answers what came of the whole fold once that was the last.
    ///
    /// A row that the store refuses makes it do the slice again, event by event, as a flush does.
    pub(super) fn write_slice(&mut self, connection: &mut Connection) -> StoreResult<Option<Folded>> {
        let (next, written) = match self.try_slice(connection, false) {
            Err(StoreError::Conflict(reason)) => {
                tracing::warn!(shard = self.shard, reason, "a slice of the journal is folded event by event");
                self.try_slice(connection, true)?
            }
            tried => tried?,
        };
        self.done = next;
        self.written.usage_rows += written.usage_rows;
        self.written.dead_letters += written.dead_letters;
        let Flushed { usage_rows, dead_letters } = self.written;
        let to = Cursor { epoch: self.from.epoch, counter: self.last };
        Ok((next == self.order.len()).then_some(Folded { to, usage_rows, dead_letters, full: self.full }))
    }

    fn try_slice(&self, connection: &mut Connection, carefully: bool) -> StoreResult<(usize, Flushed)> {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        self.check_unmoved(&tx)?;
        let next = self.order.len().min(self.done.saturating_add(SLICE_EVENTS));
        let slice = self.order.get(self.done..next).ok_or_else(|| broken("fold"))?;
        let mut flush = Flush::new(&tx, self.shard, self.from.epoch, &self.thresholds);
        if carefully {
            flush.each(slice.iter().map(|index| &self.events[*index]))?;
        } else {
            flush.grouped(&self.events, slice)?;
        }
        let written = flush.finish()?;
        if next == self.order.len() {
            self.finish(&tx)?
        } else {
            self.note(&tx, next)?
        }
        tx.commit().map_err(failed)?;
        Ok((next, written))
    }

    fn check_unmoved(&self, tx: &Transaction<'_>) -> StoreResult<()> {
        let expected = (self.done > 0).then_some((int(self.last), self.done));
        if flush::cursor(tx, self.shard)? != self.from || progress(tx, self.shard)? != expected {
            return Err(StoreError::CursorMoved);
        }
        Ok(())
    }

    fn note(&self, tx: &Transaction<'_>, done: usize) -> StoreResult<()> {
        let upsert = "INSERT INTO ledger_folds (shard, last, done) VALUES (?1, ?2, ?3)
            ON CONFLICT (shard) DO UPDATE SET last = excluded.last, done = excluded.done";
        execute(tx, upsert, params![self.shard, int(self.last), int(done as u64)])
    }

    fn finish(&self, tx: &Transaction<'_>) -> StoreResult<()> {
        let to = Cursor { epoch: self.from.epoch, counter: self.last };
        flush::set_cursor(tx, self.shard, to)?;
        execute(tx, "DELETE FROM ledger_journal WHERE shard = ?1 AND last <= ?2", params![self.shard, int(self.last)])?;
        execute(tx, "DELETE FROM ledger_folds WHERE shard = ?1", [self.shard])
    }
}
