//! The inbox: every event as it came, and how it stands.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::super::super::billing::{EventFilter, EventOutcome, EventRow, EventState, NewEvent, names};
use super::super::super::common::{self, int, uint};
use super::super::super::{Page, PageRequest, StoreResult};
use super::super::failed;
use super::not_known;
use crate::ledger::AccountId;

const COLUMNS: &str = "id, event_type, object_type, object_id, livemode, user_id, amount, currency, created_at,
    received_at, state, attempts, next_attempt_at, processed_at, error";

pub(super) fn insert(tx: &Transaction<'_>, event: &NewEvent) -> StoreResult<bool> {
    let insert = "INSERT INTO billing_events (id, event_type, object_type, object_id, livemode, amount, currency,
        created_at, received_at, state, next_attempt_at, error, payload)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?9, ?11, ?12) ON CONFLICT (id) DO NOTHING";
    let now = int(common::now());
    let state = names::event_state_name(event.state);
    let row = params![
        event.id,
        event.event_type,
        event.object_type,
        event.object_id,
        event.livemode,
        event.amount,
        event.currency,
        int(event.created_at),
        now,
        state,
        event.error,
        event.payload,
    ];
    let inserted = tx.prepare_cached(insert).and_then(|mut statement| statement.execute(row)).map_err(failed)?;
    Ok(inserted > 0)
}

pub(super) fn one(tx: &Transaction<'_>, id: &str) -> StoreResult<Option<EventRow>> {
    let select = format!("SELECT {COLUMNS}, payload FROM billing_events WHERE id = ?1");
    tx.query_row(&select, [id], read).optional().map_err(failed)?.transpose()
}

pub(super) fn list(tx: &Transaction<'_>, filter: &EventFilter, page: &PageRequest) -> StoreResult<Page<EventRow>> {
    let slice = common::slice(page)?;
    let (time, id) = names::event_position(slice.after.as_deref())?;
    let select = format!(
        "SELECT {COLUMNS}, '' FROM billing_events
        WHERE (received_at, id) < (?1, ?2) AND (?3 IS NULL OR state = ?3) AND (?4 IS NULL OR user_id = ?4)
        ORDER BY received_at DESC, id DESC LIMIT ?5"
    );
    let state = filter.state.map(names::event_state_name);
    let user = filter.user.as_ref().map(AccountId::as_str);
    let mut statement = tx.prepare_cached(&select).map_err(failed)?;
    let rows = statement.query_map(params![time, id, state, user, slice.rows], read).map_err(failed)?;
    let found: Vec<EventRow> = rows.map(|row| row.map_err(failed)?).collect::<StoreResult<_>>()?;
    Ok(common::page(found, &slice, |row| format!("{} {}", row.received_at, row.id)))
}

pub(super) fn claim(tx: &Transaction<'_>, limit: u32, lease_us: u64) -> StoreResult<Vec<EventRow>> {
    let now = common::now();
    let update = format!(
        "UPDATE billing_events SET attempts = attempts + 1, next_attempt_at = ?2 WHERE id IN
            (SELECT id FROM billing_events WHERE state = 'pending' AND next_attempt_at <= ?1
            ORDER BY next_attempt_at LIMIT ?3)
        RETURNING {COLUMNS}, payload"
    );
    let mut statement = tx.prepare_cached(&update).map_err(failed)?;
    let values = params![int(now), int(now.saturating_add(lease_us)), limit];
    let rows = statement.query_map(values, read).map_err(failed)?;
    let mut found: Vec<EventRow> = rows.map(|row| row.map_err(failed)?).collect::<StoreResult<_>>()?;
    found.sort_by_key(|row| row.received_at);
    Ok(found)
}

pub(super) fn finish(tx: &Transaction<'_>, id: &str, outcome: &EventOutcome) -> StoreResult<()> {
    let now = int(common::now());
    let done = "UPDATE billing_events SET state = ?2, processed_at = ?3, error = NULL,
        user_id = coalesce(?4, user_id) WHERE id = ?1";
    let changed = match outcome {
        EventOutcome::Processed { user } => {
            let user = user.as_ref().map(AccountId::as_str);
            tx.execute(done, params![id, "processed", now, user])
        }
        EventOutcome::Ignored => tx.execute(done, params![id, "ignored", now, None::<String>]),
        EventOutcome::Retry { error, at } => {
            let update = "UPDATE billing_events SET error = ?2, next_attempt_at = ?3
                WHERE id = ?1 AND state = 'pending'";
            tx.execute(update, params![id, error, int(*at)])
        }
        EventOutcome::Parked { error } => {
            let update = "UPDATE billing_events SET state = 'parked', error = ?2 WHERE id = ?1 AND state = 'pending'";
            tx.execute(update, params![id, error])
        }
    };
    changed.map_err(failed).map(drop)
}

pub(super) fn replay(tx: &Transaction<'_>, id: &str) -> StoreResult<EventRow> {
    let update = "UPDATE billing_events SET state = 'pending', attempts = 0, next_attempt_at = ?2, error = NULL
        WHERE id = ?1";
    tx.execute(update, params![id, int(common::now())]).map_err(failed)?;
    one(tx, id)?.ok_or_else(not_known)
}

pub(super) fn counts(tx: &Transaction<'_>) -> StoreResult<(u64, u64)> {
    let select = "SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'parked')
        FROM billing_events WHERE state IN ('pending', 'parked')";
    let read = |row: &Row<'_>| Ok((uint(row.get(0)?), uint(row.get(1)?)));
    tx.query_row(select, [], read).map_err(failed)
}

/// The outer result is SQLite's, the inner one says whether the row makes sense.
fn read(row: &Row<'_>) -> rusqlite::Result<StoreResult<EventRow>> {
    let (user, state): (Option<String>, String) = (row.get(5)?, row.get(10)?);
    let time = |column| row.get::<_, i64>(column).map(uint);
    let processed_at: Option<i64> = row.get(13)?;
    let mut event = EventRow {
        id: row.get(0)?,
        event_type: row.get(1)?,
        object_type: row.get(2)?,
        object_id: row.get(3)?,
        livemode: row.get(4)?,
        user: None,
        amount: row.get(6)?,
        currency: row.get(7)?,
        created_at: time(8)?,
        received_at: time(9)?,
        state: EventState::Pending,
        attempts: row.get(11)?,
        next_attempt_at: time(12)?,
        processed_at: processed_at.map(uint),
        error: row.get(14)?,
        payload: row.get(15)?,
    };
    Ok(names::event_state(&state).and_then(|state| {
        event.state = state;
        event.user = user.as_deref().map(common::account).transpose()?;
        Ok(event)
    }))
}
