//! The inbox: every event as it came, and how it stands.

use std::time::SystemTime;

use deadpool_postgres::Client;
use tokio_postgres::Row;

use super::super::super::billing::{EventFilter, EventOutcome, EventRow, NewEvent, names};
use super::super::super::common::{self, uint};
use super::super::super::{Page, PageRequest, StoreResult};
use super::super::{execute, micros, query, query_opt, time};
use super::not_known;
use crate::ledger::AccountId;

const COLUMNS: &str = "id, event_type, object_type, object_id, livemode, user_id, amount, currency, created_at,
    received_at, state, attempts, next_attempt_at, processed_at, error";

pub(super) async fn insert(client: &Client, event: &NewEvent) -> StoreResult<bool> {
    let insert = "INSERT INTO billing_events (id, event_type, object_type, object_id, livemode, amount, currency,
        created_at, received_at, state, next_attempt_at, error, payload)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $9, $11, $12) ON CONFLICT (id) DO NOTHING";
    let row: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[
        &event.id,
        &event.event_type,
        &event.object_type,
        &event.object_id,
        &event.livemode,
        &event.amount,
        &event.currency,
        &time(event.created_at),
        &time(common::now()),
        &names::event_state_name(event.state),
        &event.error,
        &event.payload,
    ];
    Ok(execute(client, insert, row).await? > 0)
}

pub(super) async fn one(client: &Client, id: &str) -> StoreResult<Option<EventRow>> {
    let select = format!("SELECT {COLUMNS}, payload FROM billing_events WHERE id = $1");
    query_opt(client, &select, &[&id]).await?.as_ref().map(read).transpose()
}

pub(super) async fn list(client: &Client, filter: &EventFilter, page: &PageRequest) -> StoreResult<Page<EventRow>> {
    let slice = common::slice(page)?;
    let (at, id) = names::event_position(slice.after.as_deref())?;
    // No time in Postgres lies as late as the largest number.
    let before = time(uint(at).min(common::TIME_MAX_US));
    let select = format!(
        "SELECT {COLUMNS}, '' FROM billing_events
        WHERE (received_at, id) < ($1, $2) AND ($3::text IS NULL OR state = $3) AND ($4::text IS NULL OR user_id = $4)
        ORDER BY received_at DESC, id DESC LIMIT $5"
    );
    let state = filter.state.map(names::event_state_name);
    let user = filter.user.as_ref().map(AccountId::as_str);
    let rows = query(client, &select, &[&before, &id, &state, &user, &slice.rows]).await?;
    let found: Vec<EventRow> = rows.iter().map(read).collect::<StoreResult<_>>()?;
    Ok(common::page(found, &slice, |row| format!("{} {}", row.received_at, row.id)))
}

pub(super) async fn claim(client: &Client, limit: u32, lease_us: u64) -> StoreResult<Vec<EventRow>> {
    let now = common::now();
    let update = format!(
        "UPDATE billing_events SET attempts = attempts + 1, next_attempt_at = $2 WHERE id IN
            (SELECT id FROM billing_events WHERE state = 'pending' AND next_attempt_at <= $1
            ORDER BY next_attempt_at LIMIT $3 FOR UPDATE SKIP LOCKED)
        RETURNING {COLUMNS}, payload"
    );
    let until = time(now.saturating_add(lease_us));
    let rows = query(client, &update, &[&time(now), &until, &i64::from(limit)]).await?;
    let mut found: Vec<EventRow> = rows.iter().map(read).collect::<StoreResult<_>>()?;
    found.sort_by_key(|row| row.received_at);
    Ok(found)
}

pub(super) async fn finish<C: deadpool_postgres::GenericClient>(
    client: &C,
    id: &str,
    outcome: &EventOutcome,
) -> StoreResult<()> {
    let now = time(common::now());
    let done = "UPDATE billing_events SET state = $2, processed_at = $3, error = NULL,
        user_id = coalesce($4::text, user_id) WHERE id = $1";
    let nobody: Option<&str> = None;
    let changed = match outcome {
        EventOutcome::Processed { user } => {
            let user = user.as_ref().map(AccountId::as_str);
            execute(client, done, &[&id, &"processed", &now, &user]).await
        }
        EventOutcome::Ignored => execute(client, done, &[&id, &"ignored", &now, &nobody]).await,
        EventOutcome::Retry { error, at } => {
            let update = "UPDATE billing_events SET error = $2, next_attempt_at = $3
                WHERE id = $1 AND state = 'pending'";
            execute(client, update, &[&id, error, &time(*at)]).await
        }
        EventOutcome::Parked { error } => {
            let update = "UPDATE billing_events SET state = 'parked', error = $2 WHERE id = $1 AND state = 'pending'";
            execute(client, update, &[&id, error]).await
        }
    };
    changed.map(drop)
}

pub(super) async fn replay(client: &Client, id: &str) -> StoreResult<EventRow> {
    let update = "UPDATE billing_events SET state = 'pending', attempts = 0, next_attempt_at = $2, error = NULL
        WHERE id = $1";
    execute(client, update, &[&id, &time(common::now())]).await?;
    one(client, id).await?.ok_or_else(not_known)
}

pub(super) async fn counts(client: &Client) -> StoreResult<(u64, u64)> {
    let select = "SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'parked')
        FROM billing_events WHERE state IN ('pending', 'parked')";
    let row = query_opt(client, select, &[]).await?;
    Ok(row.map_or((0, 0), |row| (uint(row.get(0)), uint(row.get(1)))))
}

fn read(row: &Row) -> StoreResult<EventRow> {
    let user: Option<&str> = row.get(5);
    let attempts: i32 = row.get(11);
    Ok(EventRow {
        id: row.get(0),
        event_type: row.get(1),
        object_type: row.get(2),
        object_id: row.get(3),
        livemode: row.get(4),
        user: user.map(common::account).transpose()?,
        amount: row.get(6),
        currency: row.get(7),
        created_at: micros(row.get(8)),
        received_at: micros(row.get(9)),
        state: names::event_state(row.get(10))?,
        attempts: u32::try_from(attempts).unwrap_or(0),
        next_attempt_at: micros(row.get(12)),
        processed_at: row.get::<_, Option<SystemTime>>(13).map(micros),
        error: row.get(14),
        payload: row.get(15),
    })
}
