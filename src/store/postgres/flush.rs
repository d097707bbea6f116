//! The ledger's events become rows, each exactly once: the cursor's row is locked first and moves in the same transaction,
//! so of two flushers one waits and then finds it elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use deadpool_postgres::{Client, Transaction};
use tokio_postgres::Row;

use super::super::common::{self, UsageColumns, bits, int, uint};
use super::super::effects::{self, GrantRows, Letter, Reason, Rows};
use super::super::notifications::{Thresholds, Warning};
use super::super::{Cursor, FlushBatch, Flushed, StoreError, StoreResult, changes, letters};
use super::{Values, execute, failed, micros, notifications, query, query_opt, records, reopenings};
use super::{copy, usage};
use crate::ledger::{AccountId, Event, GrantId};

pub(super) async fn cursor(client: &Client, shard: u32) -> StoreResult<Cursor> {
    let select = "SELECT epoch, counter FROM ledger_cursors WHERE shard = $1";
    Ok(query_opt(client, select, &[&i64::from(shard)]).await?.map(|row| read_cursor(&row)).unwrap_or_default())
}

fn read_cursor(row: &Row) -> Cursor {
    Cursor { epoch: uint(row.get(0)), counter: uint(row.get(1)) }
}

/// Where the cursor stands; its row is locked until the commit.
pub(super) async fn lock_cursor(tx: &Transaction<'_>, shard: u32) -> StoreResult<Cursor> {
    let shard = i64::from(shard);
    let select = "SELECT epoch, counter FROM ledger_cursors WHERE shard = $1 FOR UPDATE";
    if let Some(row) = query_opt(tx, select, &[&shard]).await? {
        return Ok(read_cursor(&row));
    }
    let insert = "INSERT INTO ledger_cursors (shard, epoch, counter) VALUES ($1, 0, 0) ON CONFLICT DO NOTHING";
    execute(tx, insert, &[&shard]).await?;
    Ok(query_opt(tx, select, &[&shard]).await?.map(|row| read_cursor(&row)).unwrap_or_default())
}

async fn set_cursor(tx: &Transaction<'_>, shard: u32, cursor: Cursor) -> StoreResult<()> {
    let update = "UPDATE ledger_cursors SET epoch = $2, counter = $3 WHERE shard = $1";
    execute(tx, update, &[&i64::from(shard), &int(cursor.epoch), &int(cursor.counter)]).await.map(drop)
}

pub(super) async fn raise_epoch(client: &mut Client, shard: u32, from: Cursor) -> StoreResult<Cursor> {
    let tx = client.transaction().await.map_err(failed)?;
    if lock_cursor(&tx, shard).await? != from {
        return Err(StoreError::CursorMoved);
    }
    let raised = Cursor { epoch: from.epoch + 1, counter: 0 };
    set_cursor(&tx, shard, raised).await?;
    tx.commit().await.map_err(failed)?;
    Ok(raised)
}

/// Tries the whole batch at once. Only where the store refuses a row is it done again, in ever smaller parts, so that
/// one poisoned event never stops those behind it.
///
/// A transaction older than `abandoned` cannot have anybody left who waits for it.
pub(super) async fn flush(
    client: &mut Client,
    batch: &FlushBatch,
    thresholds: &Thresholds,
    abandoned: Duration,
) -> StoreResult<Flushed> {
    let done = match flush_once(client, batch, thresholds, false).await {
        Err(StoreError::Conflict(reason)) => {
            tracing::warn!(shard = batch.shard, reason, "a batch is flushed in parts");
            flush_once(client, batch, thresholds, true).await
        }
        done => done,
    };
    if let Err(StoreError::Unavailable(_)) = &done
        && let Ok(true) = free_cursor(client, batch.shard, abandoned).await
    {
        tracing::warn!(shard = batch.shard, "the transaction of a flusher that stands still was ended");
    }
    done
}

/// Ends a transaction that has held the cursor's row for longer than any of ours may last: its replica stands still or is
/// cut off. The server does not do so by itself while it waits for a COPY to go on: neither the statement's time limit nor
/// that of an idle transaction applies there.
async fn free_cursor(client: &Client, shard: u32, abandoned: Duration) -> StoreResult<bool> {
    let end = "SELECT pg_terminate_backend(a.pid) FROM ledger_cursors AS c
        JOIN pg_locks AS l ON l.locktype = 'transactionid' AND l.transactionid = c.xmax AND l.granted
        JOIN pg_stat_activity AS a ON a.pid = l.pid AND a.datname = current_database()
        WHERE c.shard = $1 AND a.pid <> pg_backend_pid()
            AND a.xact_start < clock_timestamp() - make_interval(secs => $2)";
    Ok(!query(client, end, &[&i64::from(shard), &abandoned.as_secs_f64()]).await?.is_empty())
}

async fn flush_once(
    client: &mut Client,
    batch: &FlushBatch,
    thresholds: &Thresholds,
    carefully: bool,
) -> StoreResult<Flushed> {
    let mut tx = client.transaction().await.map_err(failed)?;
    if lock_cursor(&tx, batch.shard).await? != batch.from || batch.to < batch.from.counter {
        return Err(StoreError::CursorMoved);
    }
    let order = effects::by_account(&batch.events);
    let sorted: Vec<&Event> = order.iter().map(|index| &batch.events[*index]).collect();
    let mut flush = Flush { thresholds, usage_rows: 0, letters: Vec::new() };
    if carefully {
        // All accounts at once and in order, as in the other way: taken one by one they could meet another flusher's.
        lock_accounts(&tx, &sorted).await?;
        let wanted = flush.careful_effects(&mut tx, &batch.events, &sorted).await?;
        let rows = flush.read_usage(&wanted);
        flush.careful_usage(&mut tx, &rows).await?;
    } else if !sorted.is_empty() {
        let wanted = flush.effects(&tx, &sorted).await?;
        let rows = flush.read_usage(&wanted);
        if !rows.is_empty() {
            copy::rows(&tx, &rows).await?;
            flush.usage_rows += rows.len() as u64;
        }
    }
    sessions(&tx, batch).await?;
    records::write(&tx, batch).await?;
    write_letters(&tx, batch, &flush.letters).await?;
    let unreadable = write_unreadable(&tx, batch).await?;
    set_cursor(&tx, batch.shard, Cursor { epoch: batch.from.epoch, counter: batch.to }).await?;
    reopenings::write_mark(&tx, batch).await?;
    tx.commit().await.map_err(failed)?;
    Ok(Flushed { usage_rows: flush.usage_rows, dead_letters: flush.letters.len() as u64 + unreadable })
}

struct Flush<'a> {
    thresholds: &'a Thresholds,
    usage_rows: u64,
    letters: Vec<Letter>,
}

/// An event and what of it becomes a usage row.
type UsageRow<'e> = (&'e Event, UsageColumns);

impl Flush<'_> {
    /// All effects within a savepoint; where the store refuses one of them, each within its own.
    async fn careful_effects<'e>(
        &mut self,
        tx: &mut Transaction<'_>,
        events: &'e [Event],
        sorted: &[&'e Event],
    ) -> StoreResult<Vec<&'e Event>> {
        match self.effects_within(tx, sorted).await {
            Err(StoreError::Conflict(_)) => {}
            done => return done,
        }
        let mut wanted = Vec::with_capacity(events.len());
        for event in events {
            match self.effects_within(tx, &[event]).await {
                Ok(one) => wanted.extend(one),
                Err(StoreError::Conflict(reason)) => {
                    self.letters.push(Letter::new(event, Reason::RefusedEffect, reason))
                }
                Err(error) => return Err(error),
            }
        }
        Ok(wanted)
    }

    async fn effects_within<'e>(
        &mut self,
        tx: &mut Transaction<'_>,
        events: &[&'e Event],
    ) -> StoreResult<Vec<&'e Event>> {
        let letters = self.letters.len();
        let savepoint = tx.savepoint("effects").await.map_err(failed)?;
        match self.effects(&savepoint, events).await {
            Ok(wanted) => savepoint.commit().await.map_err(failed).map(|()| wanted),
            Err(error) => {
                self.letters.truncate(letters);
                savepoint.rollback().await.map_err(failed)?;
                Err(error)
            }
        }
    }

    /// Applies events, sorted by account. Answers those whose usage is to be written.
    async fn effects<'e>(&mut self, tx: &Transaction<'_>, events: &[&'e Event]) -> StoreResult<Vec<&'e Event>> {
        let mut accounts = lock_accounts(tx, events).await?;
        load_changes(tx, events, &mut accounts).await?;
        load_grants(tx, events, &mut accounts).await?;
        let mut wanted = Vec::with_capacity(events.len());
        for event in events {
            match accounts.get_mut(&event.account) {
                None => self.letters.push(Letter::new(event, Reason::UnknownAccount, "")),
                Some((rows, _)) => {
                    if rows.apply(event, &mut self.letters) && !event.usage.is_empty() {
                        wanted.push(*event);
                    }
                }
            }
        }
        let warnings = warn(tx, &mut accounts, self.thresholds).await?;
        save_accounts(tx, &accounts).await?;
        notifications::insert(tx, &warnings).await?;
        save_grants(tx, &accounts).await?;
        save_changes(tx, &accounts).await?;
        Ok(wanted)
    }

    /// The events' usage as rows; what cannot be read becomes a letter.
    fn read_usage<'e>(&mut self, events: &[&'e Event]) -> Vec<UsageRow<'e>> {
        let mut rows = Vec::with_capacity(events.len());
        for event in events {
            match UsageColumns::read(event) {
                Ok(Some(columns)) => rows.push((*event, columns)),
                Ok(None) => {}
                Err(reason) => self.letters.push(Letter::new(event, Reason::UnreadableUsage, reason)),
            }
        }
        rows
    }

    /// Halves what the store refuses until the rows that it refuses are alone.
    async fn careful_usage(&mut self, tx: &mut Transaction<'_>, rows: &[UsageRow<'_>]) -> StoreResult<()> {
        // The parts still to be written, the next one last.
        let mut parts = vec![rows];
        while let Some(part) = parts.pop() {
            let savepoint = tx.savepoint("usage").await.map_err(failed)?;
            let written = match part {
                [] => Ok(0),
                [one] => usage::insert(&savepoint, one.0, &one.1).await,
                many => copy::rows(&savepoint, many).await.map(|()| many.len() as u64),
            };
            match (written, part) {
                (Ok(written), _) => {
                    savepoint.commit().await.map_err(failed)?;
                    self.usage_rows += written;
                    if written < part.len() as u64 {
                        self.letters.extend(part.iter().map(|row| Letter::new(row.0, Reason::DuplicateRequest, "")));
                    }
                }
                (Err(StoreError::Conflict(reason)), [one]) => {
                    savepoint.rollback().await.map_err(failed)?;
                    self.letters.push(Letter::new(one.0, Reason::Refused, reason));
                }
                (Err(StoreError::Conflict(_)), many) => {
                    savepoint.rollback().await.map_err(failed)?;
                    let (first, second) = many.split_at(many.len() / 2);
                    parts.extend([second, first]);
                }
                (Err(error), _) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The rows of each account, and the change it stood at before.
type Accounts = BTreeMap<AccountId, (Rows, u64)>;

/// Locks the accounts' rows, in their order, against other flushes and new changes, and reads them.
async fn lock_accounts(tx: &Transaction<'_>, events: &[&Event]) -> StoreResult<Accounts> {
    let mut ids: Vec<&str> = events.iter().map(|event| event.account.as_str()).collect();
    ids.dedup();
    let select = "SELECT user_id, seq, balance, debt, frozen, granted, charged, written_off, forfeited, applied_change,
            notices, warned FROM credits WHERE user_id = ANY($1) ORDER BY user_id FOR NO KEY UPDATE";
    let mut accounts = Accounts::new();
    for row in query(tx, select, &[&ids]).await? {
        let rows = Rows {
            seq: uint(row.get(1)),
            balance: row.get(2),
            debt: row.get(3),
            frozen: row.get(4),
            granted: row.get(5),
            charged: row.get(6),
            written_off: row.get(7),
            forfeited: row.get(8),
            applied_change: uint(row.get(9)),
            notices: uint(row.get(10)),
            warned: row.get(11),
            ..Rows::default()
        };
        let before = rows.applied_change;
        accounts.insert(common::account(row.get(0))?, (rows, before));
    }
    Ok(accounts)
}

/// Reads the billing changes that the events answer.
async fn load_changes(tx: &Transaction<'_>, events: &[&Event], accounts: &mut Accounts) -> StoreResult<()> {
    let (mut ids, mut after, mut upto) = (Vec::new(), Vec::new(), Vec::new());
    for group in events.chunk_by(|left, right| left.account == right.account) {
        let newest = group.iter().map(|event| event.change).max().unwrap_or(0);
        let Some((rows, _)) = accounts.get(&group[0].account) else { continue };
        if newest > rows.applied_change {
            ids.push(group[0].account.as_str());
            after.push(int(rows.applied_change));
            upto.push(int(newest));
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    let select = "SELECT c.user_id, c.number, c.payload FROM credit_changes AS c
        JOIN unnest($1::text[], $2::bigint[], $3::bigint[]) AS w (user_id, after, upto)
            ON c.user_id = w.user_id AND c.number > w.after AND c.number <= w.upto
        ORDER BY c.user_id, c.number";
    for row in query(tx, select, &[&ids, &after, &upto]).await? {
        if let Some((rows, _)) = accounts.get_mut(&common::account(row.get(0))?) {
            rows.changes.push((uint(row.get(1)), changes::read(row.get(2))?));
        }
    }
    Ok(())
}

/// Reads the grants that the events touch. They need no lock: only a flush changes them, and it has the account's.
async fn load_grants(tx: &Transaction<'_>, events: &[&Event], accounts: &mut Accounts) -> StoreResult<()> {
    let (mut ids, mut grants) = (Vec::new(), Vec::new());
    for group in events.chunk_by(|left, right| left.account == right.account) {
        let Some((rows, _)) = accounts.get(&group[0].account) else { continue };
        for grant in rows.grants_touched(group.iter().copied()) {
            ids.push(group[0].account.as_str());
            grants.push(int(grant.0));
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    let select =
        "SELECT g.user_id, g.id, g.amount, g.remaining, g.frozen, g.expires_at, g.lapsed FROM credit_grants AS g
        JOIN unnest($1::text[], $2::bigint[]) AS w (user_id, id) ON g.user_id = w.user_id AND g.id = w.id";
    for row in query(tx, select, &[&ids, &grants]).await? {
        if let Some((rows, _)) = accounts.get_mut(&common::account(row.get(0))?) {
            let id = GrantId(uint(row.get(1)));
            let (amount, remaining, frozen) = (row.get(2), row.get(3), row.get(4));
            let expires_at = row.get::<_, Option<SystemTime>>(5).map_or(0, micros);
            let lapsed = row.get(6);
            rows.grants.push(GrantRows { id, amount, remaining, frozen, expires_at, lapsed, changed: false });
        }
    }
    Ok(())
}

/// What the accounts' users are to be told about their balances. Plans are read only of those that a plan may matter for.
async fn warn(tx: &Transaction<'_>, accounts: &mut Accounts, thresholds: &Thresholds) -> StoreResult<Vec<Warning>> {
    let near = accounts.iter().filter(|(_, (rows, _))| rows.may_warn(thresholds.highest()));
    let near: Vec<&str> = near.map(|(id, _)| id.as_str()).collect();
    if near.is_empty() {
        return Ok(Vec::new());
    }
    let mut warnings = Vec::new();
    for row in query(tx, "SELECT id, plan FROM users WHERE id = ANY($1)", &[&near]).await? {
        let (id, low) = (common::account(row.get(0))?, thresholds.of_plan(row.get(1)));
        if let Some((rows, _)) = accounts.get_mut(&id)
            && let Some(kind) = rows.warn(low)
        {
            warnings.push(Warning::new(&id, kind, rows, low));
        }
    }
    Ok(warnings)
}

async fn save_accounts(tx: &Transaction<'_>, accounts: &Accounts) -> StoreResult<()> {
    let ids: Vec<&str> = accounts.keys().map(AccountId::as_str).collect();
    let column = |pick: fn(&Rows) -> i64| accounts.values().map(|(rows, _)| pick(rows)).collect::<Vec<i64>>();
    let frozen: Vec<bool> = accounts.values().map(|(rows, _)| rows.frozen).collect();
    let update = "UPDATE credits AS c SET seq = w.seq, balance = w.balance, debt = w.debt, frozen = w.frozen,
            granted = w.granted, charged = w.charged, written_off = w.written_off, forfeited = w.forfeited,
            applied_change = w.applied_change, notices = w.notices, warned = w.warned
        FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::boolean[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::smallint[])
            AS w (user_id, seq, balance, debt, frozen, granted, charged, written_off, forfeited, applied_change,
                notices, warned)
        WHERE c.user_id = w.user_id";
    let (seq, balance) = (column(|rows| int(rows.seq)), column(|rows| rows.balance));
    let (debt, granted) = (column(|rows| rows.debt), column(|rows| rows.granted));
    let (charged, written_off) = (column(|rows| rows.charged), column(|rows| rows.written_off));
    let (forfeited, change) = (column(|rows| rows.forfeited), column(|rows| int(rows.applied_change)));
    let notices = column(|rows| int(rows.notices));
    let warned: Vec<i16> = accounts.values().map(|(rows, _)| rows.warned).collect();
    let books: Values<'_> = &[
        &ids,
        &seq,
        &balance,
        &debt,
        &frozen,
        &granted,
        &charged,
        &written_off,
        &forfeited,
        &change,
        &notices,
        &warned,
    ];
    execute(tx, update, books).await.map(drop)
}

async fn save_grants(tx: &Transaction<'_>, accounts: &Accounts) -> StoreResult<()> {
    let changed = accounts.iter().flat_map(|(id, (rows, _))| {
        rows.grants.iter().filter(|grant| grant.changed).map(move |grant| (id.as_str(), grant))
    });
    let (ids, grants): (Vec<&str>, Vec<&GrantRows>) = changed.unzip();
    if ids.is_empty() {
        return Ok(());
    }
    let numbers: Vec<i64> = grants.iter().map(|grant| int(grant.id.0)).collect();
    let amounts: Vec<i64> = grants.iter().map(|grant| grant.amount).collect();
    let remaining: Vec<i64> = grants.iter().map(|grant| grant.remaining).collect();
    let frozen: Vec<bool> = grants.iter().map(|grant| grant.frozen).collect();
    let lapsed: Vec<i64> = grants.iter().map(|grant| grant.lapsed).collect();
    let update = "UPDATE credit_grants AS g
        SET amount = w.amount, remaining = w.remaining, frozen = w.frozen, lapsed = w.lapsed
        FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::boolean[], $6::bigint[])
            AS w (user_id, id, amount, remaining, frozen, lapsed)
        WHERE g.user_id = w.user_id AND g.id = w.id";
    execute(tx, update, &[&ids, &numbers, &amounts, &remaining, &frozen, &lapsed]).await.map(drop)
}

async fn save_changes(tx: &Transaction<'_>, accounts: &Accounts) -> StoreResult<()> {
    let moved = accounts.iter().filter(|(_, (rows, before))| rows.applied_change > *before);
    let (mut ids, mut after, mut upto) = (Vec::new(), Vec::new(), Vec::new());
    for (id, (rows, before)) in moved {
        ids.push(id.as_str());
        after.push(int(*before));
        upto.push(int(rows.applied_change));
    }
    if ids.is_empty() {
        return Ok(());
    }
    let update = "UPDATE credit_changes AS c SET applied = true
        FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w (user_id, after, upto)
        WHERE c.user_id = w.user_id AND c.number > w.after AND c.number <= w.upto";
    execute(tx, update, &[&ids, &after, &upto]).await.map(drop)
}

async fn sessions(tx: &Transaction<'_>, batch: &FlushBatch) -> StoreResult<()> {
    if batch.sessions.is_empty() {
        return Ok(());
    }
    let newest: BTreeMap<i64, i64> = batch.sessions.iter().fold(BTreeMap::new(), |mut newest, (session, number)| {
        let known = newest.entry(bits(*session)).or_insert(0);
        *known = int(*number).max(*known);
        newest
    });
    let (sessions, numbers): (Vec<i64>, Vec<i64>) = newest.into_iter().unzip();
    let upsert = "INSERT INTO ledger_sessions AS s (shard, session, batch)
        SELECT $1, w.session, w.batch FROM unnest($2::bigint[], $3::bigint[]) AS w (session, batch)
        ON CONFLICT (shard, session) DO UPDATE SET batch = greatest(s.batch, excluded.batch), seen_at = now()";
    execute(tx, upsert, &[&i64::from(batch.shard), &sessions, &numbers]).await.map(drop)
}

/// Each entry once, also where a reopening comes across it again.
async fn write_unreadable(tx: &Transaction<'_>, batch: &FlushBatch) -> StoreResult<u64> {
    let insert = "INSERT INTO dead_letters (shard, epoch, user_id, seq, reason, detail, event, usage)
        SELECT $1, $2, '', 0, $3, $4, $5, $6 WHERE NOT EXISTS (SELECT 1 FROM dead_letters
            WHERE user_id = '' AND seq = 0 AND shard = $1 AND reason = $3 AND event = $5)";
    let (shard, mut written) = (i64::from(batch.shard), 0);
    for entry in &batch.unreadable {
        let (epoch, place, bytes) = (int(entry.epoch), letters::place(entry), &entry.bytes[..]);
        tracing::error!(
            shard,
            place,
            reason = entry.reason,
            "an entry of the ledger's log cannot be read: a dead letter"
        );
        written +=
            execute(tx, insert, &[&shard, &epoch, &letters::UNREADABLE_ENTRY, &entry.reason, &place, &bytes]).await?;
    }
    Ok(written)
}

async fn write_letters(tx: &Transaction<'_>, batch: &FlushBatch, letters: &[Letter]) -> StoreResult<()> {
    let insert = "INSERT INTO dead_letters (shard, epoch, user_id, seq, reason, detail, event, usage)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let (shard, epoch) = (i64::from(batch.shard), int(batch.from.epoch));
    for letter in letters {
        let (account, reason) = (letter.account.as_str(), letter.reason.name());
        tracing::error!(account, seq = letter.seq, reason, "an event went to the dead letters");
        let (seq, usage) = (int(letter.seq), &letter.usage[..]);
        execute(tx, insert, &[&shard, &epoch, &account, &seq, &reason, &letter.detail, &letter.event, &usage]).await?;
    }
    Ok(())
}
