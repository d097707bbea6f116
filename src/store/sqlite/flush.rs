//! The ledger's events become rows, each exactly once: the cursor moves in the same transaction.

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::super::common::{self, UsageColumns, bits, int, uint};
use super::super::effects::{self, GrantRows, Letter, Reason, Rows};
use super::super::letters;
use super::super::notifications::{Thresholds, Warning};
use super::super::{Cursor, FlushBatch, Flushed, StoreError, StoreResult};
use super::{accounts, failed, journal, notifications, reopenings};
use crate::ledger::{AccountId, Event, GrantId, RecordState};

pub(super) fn cursor(tx: &Transaction<'_>, shard: u32) -> StoreResult<Cursor> {
    let select = "SELECT epoch, counter FROM ledger_cursors WHERE shard = ?1";
    let read = |row: &Row<'_>| Ok(Cursor { epoch: uint(row.get(0)?), counter: uint(row.get(1)?) });
    let found = tx.prepare_cached(select).and_then(|mut statement| statement.query_row([shard], read).optional());
    Ok(found.map_err(failed)?.unwrap_or_default())
}

pub(super) fn raise_epoch(tx: &Transaction<'_>, shard: u32, from: Cursor) -> StoreResult<Cursor> {
    // What stands in the journal belongs to the epoch in which it was written.
    if cursor(tx, shard)? != from || !journal::is_empty(tx, shard)? {
        return Err(StoreError::CursorMoved);
    }
    let raised = Cursor { epoch: from.epoch + 1, counter: 0 };
    set_cursor(tx, shard, raised)?;
    Ok(raised)
}

pub(super) fn set_cursor(tx: &Transaction<'_>, shard: u32, cursor: Cursor) -> StoreResult<()> {
    let upsert = "INSERT INTO ledger_cursors (shard, epoch, counter) VALUES (?1, ?2, ?3)
        ON CONFLICT (shard) DO UPDATE SET epoch = excluded.epoch, counter = excluded.counter";
    execute(tx, upsert, params![shard, int(cursor.epoch), int(cursor.counter)])
}

/// Tries the whole batch at once. Only where the store refuses a row is it done again, event by event, so that one
/// poisoned event never stops those behind it.
pub(super) fn flush(connection: &mut Connection, batch: &FlushBatch, thresholds: &Thresholds) -> StoreResult<Flushed> {
    match flush_once(connection, batch, thresholds, false) {
        Err(StoreError::Conflict(reason)) => {
            tracing::warn!(shard = batch.shard, reason, "a batch is flushed event by event");
            flush_once(connection, batch, thresholds, true)
        }
        done => done,
    }
}

fn flush_once(
    connection: &mut Connection,
    batch: &FlushBatch,
    thresholds: &Thresholds,
    carefully: bool,
) -> StoreResult<Flushed> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    if cursor(&tx, batch.shard)? != batch.from || batch.to < batch.from.counter {
        return Err(StoreError::CursorMoved);
    }
    if !journal::is_empty(&tx, batch.shard)? {
        return Err(StoreError::Unavailable("what stands in the journal comes first".to_owned()));
    }
    let mut flush = Flush::new(&tx, batch.shard, batch.from.epoch, thresholds);
    if carefully {
        flush.each(batch.events.iter())?
    } else {
        flush.grouped(&batch.events, &effects::by_account(&batch.events))?
    }
    flush.sessions(batch)?;
    write_records(&tx, &batch.records)?;
    let mut flushed = flush.finish()?;
    flushed.dead_letters += write_unreadable(&tx, batch)?;
    set_cursor(&tx, batch.shard, Cursor { epoch: batch.from.epoch, counter: batch.to })?;
    reopenings::write_mark(&tx, batch)?;
    tx.commit().map_err(failed)?;
    Ok(flushed)
}

/// Each entry once, also where a reopening comes across it again.
fn write_unreadable(tx: &Transaction<'_>, batch: &FlushBatch) -> StoreResult<u64> {
    let insert = "INSERT INTO dead_letters (at, shard, epoch, user_id, seq, reason, detail, event, usage)
        SELECT ?1, ?2, ?3, '', 0, ?4, ?5, ?6, ?7 WHERE NOT EXISTS (SELECT 1 FROM dead_letters
            WHERE user_id = '' AND seq = 0 AND shard = ?2 AND reason = ?4 AND event = ?6)";
    let mut written = 0;
    for entry in &batch.unreadable {
        let (now, epoch, place) = (int(common::now()), int(entry.epoch), letters::place(entry));
        tracing::error!(
            shard = batch.shard,
            place,
            reason = entry.reason,
            "an entry of the ledger's log cannot be read: a dead letter"
        );
        let row = params![now, batch.shard, epoch, letters::UNREADABLE_ENTRY, entry.reason, place, &entry.bytes[..]];
        written += tx.execute(insert, row).map_err(failed)?;
    }
    Ok(written as u64)
}

const INSERT_USAGE: &str =
    "INSERT INTO usage_logs (user_id, seq, request_id, client_request_id, key_id, route, upstream,
    model, status, charged, input_tokens, cached_tokens, output_tokens, estimated, streamed, latency_ms,
    created_at, settled_at, reason)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
    ON CONFLICT (request_id) DO NOTHING";

/// Events on their way into the tables, within one transaction.
pub(super) struct Flush<'a> {
    tx: &'a Transaction<'a>,
    thresholds: &'a Thresholds,
    shard: u32,
    epoch: u64,
    now: i64,
    /// Looked up once for all rows.
    insert: Option<CachedStatement<'a>>,
    usage_rows: u64,
    letters: Vec<Letter>,
}

impl<'a> Flush<'a> {
    pub(super) fn new(tx: &'a Transaction<'a>, shard: u32, epoch: u64, thresholds: &'a Thresholds) -> Flush<'a> {
        Flush {
            tx,
            thresholds,
            shard,
            epoch,
            now: int(common::now()),
            insert: None,
            usage_rows: 0,
            letters: Vec::new(),
        }
    }

    /// Writes the dead letters, and answers what was written.
    pub(super) fn finish(self) -> StoreResult<Flushed> {
        self.write_letters()?;
        Ok(Flushed { usage_rows: self.usage_rows, dead_letters: self.letters.len() as u64 })
    }

    /// The events at `order`, which is sorted by account.
    pub(super) fn grouped(&mut self, events: &[Event], order: &[usize]) -> StoreResult<()> {
        let mut wanted = Vec::new();
        for group in order.chunk_by(|left, right| events[*left].account == events[*right].account) {
            let group: Vec<&Event> = group.iter().map(|index| &events[*index]).collect();
            wanted.clear();
            self.effects(&group, &mut wanted)?;
            for event in &wanted {
                self.usage(event)?;
            }
        }
        Ok(())
    }

    /// Every event's effect and its usage row within a savepoint of its own.
    pub(super) fn each<'e>(&mut self, events: impl Iterator<Item = &'e Event>) -> StoreResult<()> {
        for event in events {
            let mut wanted = Vec::new();
            let refused = self.guarded(|flush| flush.effects(&[event], &mut wanted))?;
            let (why, refused) = match refused {
                None if wanted.is_empty() => continue,
                None => (Reason::Refused, self.guarded(|flush| flush.usage(event))?),
                refused => (Reason::RefusedEffect, refused),
            };
            if let Some(reason) = refused {
                self.letters.push(Letter::new(event, why, reason));
            }
        }
        Ok(())
    }

    /// Undoes `work` where the store refuses its rows, and answers why.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> StoreResult<()>) -> StoreResult<Option<String>> {
        let (letters, usage_rows) = (self.letters.len(), self.usage_rows);
        execute(self.tx, "SAVEPOINT event", [])?;
        let refused = match work(self) {
            Ok(()) => None,
            Err(StoreError::Conflict(reason)) => {
                self.letters.truncate(letters);
                self.usage_rows = usage_rows;
                execute(self.tx, "ROLLBACK TO event", [])?;
                Some(reason)
            }
            Err(error) => return Err(error),
        };
        execute(self.tx, "RELEASE event", [])?;
        Ok(refused)
    }

    /// Applies the events of one account. `wanted` receives those whose usage is to be written.
    fn effects<'e>(&mut self, events: &[&'e Event], wanted: &mut Vec<&'e Event>) -> StoreResult<()> {
        let Some(account) = events.first().map(|event| &event.account) else { return Ok(()) };
        let Some(mut rows) = self.load(account, events)? else {
            let unknown = events.iter().map(|event| Letter::new(event, Reason::UnknownAccount, ""));
            self.letters.extend(unknown);
            return Ok(());
        };
        let before = rows.applied_change;
        for event in events {
            if rows.apply(event, &mut self.letters) && !event.usage.is_empty() {
                wanted.push(event);
            }
        }
        let warning = self.warn(account, &mut rows)?;
        self.save(account, &rows, before)?;
        warning.map_or(Ok(()), |warning| notifications::insert(self.tx, &warning))
    }

    /// What the account's user is to be told about the balance.
    fn warn(&self, account: &AccountId, rows: &mut Rows) -> StoreResult<Option<Warning>> {
        if !rows.may_warn(self.thresholds.highest()) {
            return Ok(None);
        }
        let plan: Option<String> = self
            .statement("SELECT plan FROM users WHERE id = ?1")?
            .query_row([account.as_str()], |row| row.get(0))
            .optional()
            .map_err(failed)?;
        let low = plan.map_or(0, |plan| self.thresholds.of_plan(&plan));
        Ok(rows.warn(low).map(|kind| Warning::new(account, kind, rows, low)))
    }

    fn load(&self, account: &AccountId, events: &[&Event]) -> StoreResult<Option<Rows>> {
        let select = "SELECT seq, balance, debt, frozen, granted, charged, written_off, forfeited, applied_change,
            notices, warned FROM credits WHERE user_id = ?1";
        let read = |row: &Row<'_>| {
            Ok(Rows {
                seq: uint(row.get(0)?),
                balance: row.get(1)?,
                debt: row.get(2)?,
                frozen: row.get(3)?,
                granted: row.get(4)?,
                charged: row.get(5)?,
                written_off: row.get(6)?,
                forfeited: row.get(7)?,
                applied_change: uint(row.get(8)?),
                notices: uint(row.get(9)?),
                warned: row.get(10)?,
                ..Rows::default()
            })
        };
        let found = self.statement(select)?.query_row([account.as_str()], read).optional().map_err(failed)?;
        let Some(mut rows) = found else { return Ok(None) };
        let newest = events.iter().map(|event| event.change).max().unwrap_or(0);
        if newest > rows.applied_change {
            rows.changes = accounts::changes_between(self.tx, account, rows.applied_change, newest)?;
        }
        let mut select = self.statement(
            "SELECT amount, remaining, frozen, expires_at, lapsed FROM credit_grants WHERE user_id = ?1 AND id = ?2",
        )?;
        for id in rows.grants_touched(events.iter().copied()) {
            let read = |row: &Row<'_>| read_grant(id, row);
            let found = select.query_row(params![account.as_str(), int(id.0)], read).optional().map_err(failed)?;
            rows.grants.extend(found);
        }
        Ok(Some(rows))
    }

    fn save(&self, account: &AccountId, rows: &Rows, before: u64) -> StoreResult<()> {
        let account = account.as_str();
        let update = "UPDATE credits SET seq = ?2, balance = ?3, debt = ?4, frozen = ?5, granted = ?6, charged = ?7,
            written_off = ?8, forfeited = ?9, applied_change = ?10, notices = ?11, warned = ?12
            WHERE user_id = ?1";
        let (seq, change) = (int(rows.seq), int(rows.applied_change));
        let row = params![
            account,
            seq,
            rows.balance,
            rows.debt,
            rows.frozen,
            rows.granted,
            rows.charged,
            rows.written_off,
            rows.forfeited,
            change,
            int(rows.notices),
            rows.warned,
        ];
        execute(self.tx, update, row)?;
        let update = "UPDATE credit_grants SET amount = ?3, remaining = ?4, frozen = ?5, lapsed = ?6
            WHERE user_id = ?1 AND id = ?2";
        for grant in rows.grants.iter().filter(|grant| grant.changed) {
            let id = int(grant.id.0);
            execute(self.tx, update, params![account, id, grant.amount, grant.remaining, grant.frozen, grant.lapsed])?;
        }
        if rows.applied_change > before {
            let update = "UPDATE credit_changes SET applied = 1 WHERE user_id = ?1 AND number > ?2 AND number <= ?3";
            execute(self.tx, update, params![account, int(before), change])?;
        }
        Ok(())
    }

    fn usage(&mut self, event: &Event) -> StoreResult<()> {
        let columns = match UsageColumns::read(event) {
            Ok(Some(columns)) => columns,
            Ok(None) => return Ok(()),
            Err(reason) => {
                self.letters.push(Letter::new(event, Reason::UnreadableUsage, reason));
                return Ok(());
            }
        };
        let usage = &columns.usage;
        let row = params![
            event.account.as_str(),
            int(event.seq),
            usage.request_id.as_bytes(),
            usage.client_request_id,
            usage.key_id,
            usage.route,
            usage.upstream,
            usage.model,
            usage.status,
            event.charged.micro(),
            columns.input_tokens,
            columns.cached_tokens,
            columns.output_tokens,
            usage.estimated,
            usage.streamed,
            columns.latency_ms,
            int(columns.created_at),
            int(event.at),
            usage.reason,
        ];
        let insert = match &mut self.insert {
            Some(insert) => insert,
            None => self.insert.insert(self.tx.prepare_cached(INSERT_USAGE).map_err(failed)?),
        };
        if insert.execute(row).map_err(failed)? == 0 {
            self.letters.push(Letter::new(event, Reason::DuplicateRequest, usage.request_id));
        } else {
            self.usage_rows += 1;
        }
        Ok(())
    }

    fn sessions(&self, batch: &FlushBatch) -> StoreResult<()> {
        let upsert = "INSERT INTO ledger_sessions (shard, session, batch, seen_at) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (shard, session) DO UPDATE SET batch = max(batch, excluded.batch), seen_at = excluded.seen_at";
        for (session, number) in &batch.sessions {
            execute(self.tx, upsert, params![batch.shard, bits(*session), int(*number), self.now])?;
        }
        Ok(())
    }

    fn write_letters(&self) -> StoreResult<()> {
        let insert = "INSERT INTO dead_letters (at, shard, epoch, user_id, seq, reason, detail, event, usage)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        for letter in &self.letters {
            let (account, reason) = (letter.account.as_str(), letter.reason.name());
            tracing::error!(account, seq = letter.seq, reason, "an event went to the dead letters");
            let (epoch, seq) = (int(self.epoch), int(letter.seq));
            let (detail, event, usage) = (&letter.detail, &letter.event, &letter.usage[..]);
            let row = params![self.now, self.shard, epoch, account, seq, reason, detail, event, usage];
            execute(self.tx, insert, row)?;
        }
        Ok(())
    }

    fn statement(&self, sql: &str) -> StoreResult<CachedStatement<'_>> {
        self.tx.prepare_cached(sql).map_err(failed)
    }
}

/// API holds and kept answers as they now stand.
pub(super) fn write_records(tx: &Transaction<'_>, records: &[(AccountId, RecordState)]) -> StoreResult<()> {
    let upsert = "INSERT INTO ledger_records (id, user_id, held, until, state)
        SELECT ?1, user_id, ?3, ?4, ?5 FROM credits WHERE user_id = ?2
        ON CONFLICT (id) DO UPDATE SET held = excluded.held, until = excluded.until, state = excluded.state
        WHERE user_id = excluded.user_id";
    for (account, record) in records {
        let state = common::write_record(record)?;
        let row = params![record.id.0.as_bytes(), account.as_str(), record.held.is_some(), int(record.until), state];
        execute(tx, upsert, row)?;
    }
    Ok(())
}

pub(super) fn execute(tx: &Transaction<'_>, sql: &str, row: impl rusqlite::Params) -> StoreResult<()> {
    tx.prepare_cached(sql).and_then(|mut statement| statement.execute(row)).map_err(failed)?;
    Ok(())
}

fn read_grant(id: GrantId, row: &Row<'_>) -> rusqlite::Result<GrantRows> {
    let expires_at: Option<i64> = row.get(3)?;
    Ok(GrantRows {
        id,
        amount: row.get(0)?,
        remaining: row.get(1)?,
        frozen: row.get(2)?,
        expires_at: expires_at.map_or(0, uint),
        lapsed: row.get(4)?,
        changed: false,
    })
}
