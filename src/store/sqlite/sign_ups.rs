//! Users who come from an issuer, and what it told about them.

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::super::billing::{EventOutcome, EventState, names};
use super::super::changes;
use super::super::common::{self, int, uint};
use super::super::sign_ups::{self, AuthEvent, Found, Known, NewAuthEvent, SignUp, SignUps, SignedUp};
use super::super::{NewChange, StoreError, StoreResult, User, UserStatus};
use super::accounts::{self, USER_COLUMNS};
use super::{SqliteStore, failed, identity};
use crate::ledger::{AccountId, GrantId};

const EVENT_COLUMNS: &str = "id, event_type, user_id, at, state, attempts, error, payload";

#[async_trait]
impl SignUps for SqliteStore {
    async fn known(&self, id: &AccountId) -> StoreResult<Option<Known>> {
        let id = id.clone();
        self.threads.read(move |tx| known(tx, &id)).await
    }

    async fn sign_up(&self, new: SignUp) -> StoreResult<SignedUp> {
        self.threads.write(move |tx| sign_up(tx, &new)).await
    }

    async fn close_user(&self, id: &AccountId, plan: &str, actor: &str) -> StoreResult<bool> {
        let (id, plan, actor) = (id.clone(), plan.to_owned(), actor.to_owned());
        self.threads.write(move |tx| close(tx, &id, &plan, &actor)).await
    }

    async fn insert_auth_event(&self, event: NewAuthEvent) -> StoreResult<bool> {
        self.threads.write(move |tx| insert_event(tx, &event)).await
    }

    async fn auth_event(&self, id: &str) -> StoreResult<Option<AuthEvent>> {
        let id = id.to_owned();
        self.threads.read(move |tx| event(tx, &id)).await
    }

    async fn claim_auth_events(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<AuthEvent>> {
        self.threads.write(move |tx| claim_events(tx, limit, lease_us)).await
    }

    async fn finish_auth_event(&self, id: &str, outcome: EventOutcome) -> StoreResult<()> {
        let id = id.to_owned();
        self.threads.write(move |tx| finish_event(tx, &id, &outcome)).await
    }

    async fn auth_event_counts(&self) -> StoreResult<(u64, u64)> {
        self.threads.read(counts).await
    }
}

fn known(tx: &Transaction<'_>, id: &AccountId) -> StoreResult<Option<Known>> {
    let select = format!("SELECT {USER_COLUMNS}, signup_open, profile_at FROM users WHERE id = ?1");
    let read = |row: &Row<'_>| Ok((accounts::read_user(row)?, row.get::<_, bool>(6)?, row.get::<_, i64>(7)?));
    let found = tx.prepare_cached(&select).and_then(|mut found| found.query_row([id.as_str()], read).optional());
    let Some((user, signup_open, profile_at)) = found.map_err(failed)? else { return Ok(None) };
    Ok(Some(Known { user: user?, signup_open, profile_at: uint(profile_at) }))
}

/// The first to claim a mailbox keeps it. Answers whose it is.
pub(super) fn claim(tx: &Transaction<'_>, id: &AccountId, mailbox: &[u8; 32]) -> StoreResult<String> {
    let insert = "INSERT INTO signup_claims (mail_hash, user_id, created_at) VALUES (?1, ?2, ?3)
        ON CONFLICT (mail_hash) DO NOTHING";
    tx.execute(insert, params![mailbox, id.as_str(), int(common::now())]).map_err(failed)?;
    let select = "SELECT user_id FROM signup_claims WHERE mail_hash = ?1";
    tx.query_row(select, [mailbox], |row| row.get(0)).map_err(failed)
}

fn insert_user(tx: &Transaction<'_>, id: &AccountId, plan: &str, status: UserStatus, open: bool) -> StoreResult<()> {
    let insert = "INSERT INTO users (id, plan, status, created_at, signup_open) VALUES (?1, ?2, ?3, ?4, ?5)";
    let row = params![id.as_str(), plan, common::status_name(status), int(common::now()), open];
    tx.execute(insert, row).map_err(failed)?;
    tx.execute("INSERT INTO credits (user_id) VALUES (?1)", [id.as_str()]).map_err(failed)?;
    Ok(())
}

fn sign_up(tx: &Transaction<'_>, new: &SignUp) -> StoreResult<SignedUp> {
    let mut before = known(tx, &new.id)?;
    let created = before.is_none();
    if created {
        insert_user(tx, &new.id, &new.plan, UserStatus::Active, true)?;
        identity::audit(tx, &new.actor, "user.create", Some(&new.id), &new.plan)?;
        before = known(tx, &new.id)?;
    }
    let found = Found { known: before.ok_or(StoreError::NotFound("the user"))?, created };
    let decision = sign_ups::decide(new, &found);
    let owner = decision.claim.map(|mailbox| claim(tx, &new.id, &mailbox)).transpose()?;
    let mut granted = false;
    if decision.settle {
        if owner.is_none_or(|owner| owner == new.id.as_str()) {
            if let Some(signup) = changes::signup(&new.as_new_user()) {
                granted = accounts::add_change(tx, signup)?.fresh;
            }
        } else {
            identity::audit(tx, &new.actor, "signup.repeated", Some(&new.id), "the mailbox had its credits")?;
        }
        tx.execute("UPDATE users SET signup_open = 0 WHERE id = ?1", [new.id.as_str()]).map_err(failed)?;
    }
    let mut user = found.known.user;
    if let Some((email, name)) = decision.profile {
        let update = "UPDATE users SET email = ?2, name = ?3, profile_at = ?4 WHERE id = ?1";
        tx.execute(update, params![new.id.as_str(), email, name, int(new.profile.at)]).map_err(failed)?;
        user = User { email, name, ..user };
    }
    Ok(SignedUp { user, created, granted, renamed: decision.renamed })
}

fn close(tx: &Transaction<'_>, id: &AccountId, plan: &str, actor: &str) -> StoreResult<bool> {
    let open = match accounts::user(tx, id)? {
        None => {
            insert_user(tx, id, plan, UserStatus::Closed, false)?;
            false
        }
        Some(user) if user.status == UserStatus::Closed => return Ok(false),
        Some(user) => {
            for (change, source_key) in sign_ups::closing(id, user.status, &live_grants(tx, id)?) {
                let (account, note, actor) = (id.clone(), Some("the account was closed".to_owned()), actor.to_owned());
                accounts::add_change(tx, NewChange { account, change, source_key, note, actor })?;
            }
            true
        }
    };
    let now = int(common::now());
    let revoke = "UPDATE api_keys SET revoked_at = ?2 WHERE user_id = ?1 AND revoked_at IS NULL";
    tx.execute(revoke, params![id.as_str(), now]).map_err(failed)?;
    let blank = "UPDATE users SET status = 'closed', email = NULL, name = NULL, signup_open = 0 WHERE id = ?1";
    tx.execute(blank, [id.as_str()]).map_err(failed)?;
    let forget = "UPDATE auth_events SET payload = '' WHERE user_id = ?1 AND state <> 'pending'";
    tx.execute(forget, [id.as_str()]).map_err(failed)?;
    identity::audit(tx, actor, "user.close", Some(id), "")?;
    identity::tell_user(tx, id)?;
    Ok(open)
}

/// Grants with something left, and those that the ledger has not yet.
fn live_grants(tx: &Transaction<'_>, id: &AccountId) -> StoreResult<Vec<GrantId>> {
    let select = "SELECT g.id FROM credit_grants AS g JOIN credits AS c ON c.user_id = g.user_id
        WHERE g.user_id = ?1 AND (g.remaining > 0 OR g.id > c.applied_change) ORDER BY g.id";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let rows = statement.query_map([id.as_str()], |row| row.get::<_, i64>(0)).map_err(failed)?;
    rows.map(|row| row.map(|number| GrantId(uint(number))).map_err(failed)).collect()
}

fn insert_event(tx: &Transaction<'_>, event: &NewAuthEvent) -> StoreResult<bool> {
    let insert = "INSERT INTO auth_events (id, event_type, user_id, at, received_at, state, next_attempt_at, payload)
        VALUES (?1, ?2, ?3, ?4, ?5, 'pending', ?5, ?6) ON CONFLICT (id) DO NOTHING";
    let user = event.user.as_ref().map(AccountId::as_str);
    let row = params![event.id, event.event_type, user, int(event.at), int(common::now()), event.payload];
    Ok(tx.execute(insert, row).map_err(failed)? > 0)
}

fn event(tx: &Transaction<'_>, id: &str) -> StoreResult<Option<AuthEvent>> {
    let select = format!("SELECT {EVENT_COLUMNS} FROM auth_events WHERE id = ?1");
    tx.query_row(&select, [id], read_event).optional().map_err(failed)?.transpose()
}

fn claim_events(tx: &Transaction<'_>, limit: u32, lease_us: u64) -> StoreResult<Vec<AuthEvent>> {
    let now = common::now();
    let update = format!(
        "UPDATE auth_events SET attempts = attempts + 1, next_attempt_at = ?2 WHERE id IN
            (SELECT id FROM auth_events WHERE state = 'pending' AND next_attempt_at <= ?1
            ORDER BY next_attempt_at LIMIT ?3)
        RETURNING {EVENT_COLUMNS}"
    );
    let mut statement = tx.prepare_cached(&update).map_err(failed)?;
    let values = params![int(now), int(now.saturating_add(lease_us)), limit];
    let rows = statement.query_map(values, read_event).map_err(failed)?;
    let mut found: Vec<AuthEvent> = rows.map(|row| row.map_err(failed)?).collect::<StoreResult<_>>()?;
    found.sort_by_key(|event| event.at);
    Ok(found)
}

fn finish_event(tx: &Transaction<'_>, id: &str, outcome: &EventOutcome) -> StoreResult<()> {
    let now = int(common::now());
    let done = "UPDATE auth_events SET state = ?2, processed_at = ?3, error = NULL,
        payload = CASE WHEN EXISTS (SELECT 1 FROM users AS u WHERE u.id = auth_events.user_id AND u.status = 'closed')
            THEN '' ELSE payload END
        WHERE id = ?1";
    let changed = match outcome {
        EventOutcome::Processed { .. } => tx.execute(done, params![id, "processed", now]),
        EventOutcome::Ignored => tx.execute(done, params![id, "ignored", now]),
        EventOutcome::Retry { error, at } => {
            let update = "UPDATE auth_events SET error = ?2, next_attempt_at = ?3 WHERE id = ?1 AND state = 'pending'";
            tx.execute(update, params![id, error, int(*at)])
        }
        EventOutcome::Parked { error } => {
            let update = "UPDATE auth_events SET state = 'parked', error = ?2 WHERE id = ?1 AND state = 'pending'";
            tx.execute(update, params![id, error])
        }
    };
    changed.map_err(failed).map(drop)
}

fn counts(tx: &Transaction<'_>) -> StoreResult<(u64, u64)> {
    let select = "SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'parked')
        FROM auth_events WHERE state IN ('pending', 'parked')";
    tx.query_row(select, [], |row| Ok((uint(row.get(0)?), uint(row.get(1)?)))).map_err(failed)
}

fn read_event(row: &Row<'_>) -> rusqlite::Result<StoreResult<AuthEvent>> {
    let (user, state): (Option<String>, String) = (row.get(2)?, row.get(4)?);
    let mut event = AuthEvent {
        id: row.get(0)?,
        event_type: row.get(1)?,
        user: None,
        at: uint(row.get(3)?),
        state: EventState::Pending,
        attempts: row.get(5)?,
        error: row.get(6)?,
        payload: row.get(7)?,
    };
    Ok(names::event_state(&state).and_then(|state| {
        event.state = state;
        event.user = user.as_deref().map(common::account).transpose()?;
        Ok(event)
    }))
}
