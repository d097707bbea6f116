//! Users who come from an issuer, and what it told about them.

use async_trait::async_trait;
use deadpool_postgres::{Client, GenericClient, Object, Transaction};
use tokio_postgres::Row;

use super::super::billing::{EventOutcome, names};
use super::super::changes;
use super::super::common::{self, uint};
use super::super::sign_ups::{self, AuthEvent, Found, Known, NewAuthEvent, SignUp, SignUps, SignedUp};
use super::super::{NewChange, StoreError, StoreResult, User, UserStatus};
use super::accounts::{self, USER_COLUMNS};
use super::{PostgresStore, execute, failed, identity, micros, query, query_opt, time, within};
use crate::ledger::{AccountId, GrantId};

const EVENT_COLUMNS: &str = "id, event_type, user_id, at, state, attempts, error, payload";

#[async_trait]
impl SignUps for PostgresStore {
    async fn known(&self, id: &AccountId) -> StoreResult<Option<Known>> {
        within!(self, |client| known(&*client, id))
    }

    async fn sign_up(&self, new: SignUp) -> StoreResult<SignedUp> {
        within!(self, |client| sign_up(client, &new))
    }

    async fn close_user(&self, id: &AccountId, plan: &str, actor: &str) -> StoreResult<bool> {
        within!(self, |client| close(client, id, plan, actor))
    }

    async fn insert_auth_event(&self, event: NewAuthEvent) -> StoreResult<bool> {
        within!(self, |client| insert_event(client, &event))
    }

    async fn auth_event(&self, id: &str) -> StoreResult<Option<AuthEvent>> {
        within!(self, |client| event(client, id))
    }

    async fn claim_auth_events(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<AuthEvent>> {
        within!(self, |client| claim_events(client, limit, lease_us))
    }

    async fn finish_auth_event(&self, id: &str, outcome: EventOutcome) -> StoreResult<()> {
        within!(self, |client| finish_event(client, id, &outcome))
    }

    async fn auth_event_counts(&self) -> StoreResult<(u64, u64)> {
        within!(self, |client| counts(client))
    }
}

async fn known<C: GenericClient>(client: &C, id: &AccountId) -> StoreResult<Option<Known>> {
    let select = format!("SELECT {USER_COLUMNS}, signup_open, profile_at FROM users WHERE id = $1");
    let Some(row) = query_opt(client, &select, &[&id.as_str()]).await? else { return Ok(None) };
    Ok(Some(Known { user: accounts::read_user(&row)?, signup_open: row.get(6), profile_at: micros(row.get(7)) }))
}

/// The first to claim a mailbox keeps it; whoever comes at the same time waits for the first one's commit. Answers whose
/// it is.
pub(super) async fn claim(tx: &Transaction<'_>, id: &AccountId, mailbox: &[u8; 32]) -> StoreResult<String> {
    let insert = "INSERT INTO signup_claims (mail_hash, user_id) VALUES ($1, $2) ON CONFLICT (mail_hash) DO NOTHING";
    execute(tx, insert, &[&&mailbox[..], &id.as_str()]).await?;
    let select = "SELECT user_id FROM signup_claims WHERE mail_hash = $1";
    let row = query_opt(tx, select, &[&&mailbox[..]]).await?;
    Ok(row.map_or_else(String::new, |row| row.get(0)))
}

/// Whether it was not there.
async fn insert_user(
    tx: &Transaction<'_>,
    id: &AccountId,
    plan: &str,
    status: UserStatus,
    open: bool,
) -> StoreResult<bool> {
    let insert = "INSERT INTO users (id, plan, status, created_at, signup_open) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT DO NOTHING";
    let (now, status) = (time(common::now()), common::status_name(status));
    if execute(tx, insert, &[&id.as_str(), &plan, &status, &now, &open]).await? == 0 {
        return Ok(false);
    }
    execute(tx, "INSERT INTO credits (user_id) VALUES ($1)", &[&id.as_str()]).await?;
    Ok(true)
}

/// As every billing change does first: so nobody waits for another in a circle.
async fn lock_account(tx: &Transaction<'_>, id: &AccountId) -> StoreResult<()> {
    query_opt(tx, "SELECT FROM credits WHERE user_id = $1 FOR NO KEY UPDATE", &[&id.as_str()]).await.map(drop)
}

async fn sign_up(client: &mut Client, new: &SignUp) -> StoreResult<SignedUp> {
    let tx = client.transaction().await.map_err(failed)?;
    let created = insert_user(&tx, &new.id, &new.plan, UserStatus::Active, true).await?;
    lock_account(&tx, &new.id).await?;
    if created {
        identity::audit(&tx, &new.actor, "user.create", Some(&new.id), &new.plan).await?;
    }
    let known = known(&tx, &new.id).await?.ok_or(StoreError::NotFound("the user"))?;
    let found = Found { known, created };
    let decision = sign_ups::decide(new, &found);
    let owner = match &decision.claim {
        Some(mailbox) => Some(claim(&tx, &new.id, mailbox).await?),
        None => None,
    };
    let mut granted = false;
    if decision.settle {
        if owner.is_none_or(|owner| owner == new.id.as_str()) {
            if let Some(signup) = changes::signup(&new.as_new_user()) {
                granted = accounts::store_change(&tx, signup).await?.fresh;
            }
        } else {
            identity::audit(&tx, &new.actor, "signup.repeated", Some(&new.id), "the mailbox had its credits").await?;
        }
        execute(&tx, "UPDATE users SET signup_open = false WHERE id = $1", &[&new.id.as_str()]).await?;
    }
    let mut user = found.known.user;
    if let Some((email, name)) = decision.profile {
        let update = "UPDATE users SET email = $2, name = $3, profile_at = $4 WHERE id = $1";
        execute(&tx, update, &[&new.id.as_str(), &email, &name, &time(new.profile.at)]).await?;
        user = User { email, name, ..user };
    }
    tx.commit().await.map_err(failed)?;
    Ok(SignedUp { user, created, granted, renamed: decision.renamed })
}

async fn close(client: &mut Client, id: &AccountId, plan: &str, actor: &str) -> StoreResult<bool> {
    let tx = client.transaction().await.map_err(failed)?;
    let stranger = insert_user(&tx, id, plan, UserStatus::Closed, false).await?;
    if !stranger {
        lock_account(&tx, id).await?;
        let user = accounts::user(&tx, id).await?.ok_or(StoreError::NotFound("the user"))?;
        if user.status == UserStatus::Closed {
            return Ok(false);
        }
        for (change, source_key) in sign_ups::closing(id, user.status, &live_grants(&tx, id).await?) {
            let (account, note, actor) = (id.clone(), Some("the account was closed".to_owned()), actor.to_owned());
            accounts::store_change(&tx, NewChange { account, change, source_key, note, actor }).await?;
        }
    }
    let revoke = "UPDATE api_keys SET revoked_at = $2 WHERE user_id = $1 AND revoked_at IS NULL";
    execute(&tx, revoke, &[&id.as_str(), &time(common::now())]).await?;
    let blank = "UPDATE users SET status = 'closed', email = NULL, name = NULL, signup_open = false WHERE id = $1";
    execute(&tx, blank, &[&id.as_str()]).await?;
    let forget = "UPDATE auth_events SET payload = '' WHERE user_id = $1 AND state <> 'pending'";
    execute(&tx, forget, &[&id.as_str()]).await?;
    identity::audit(&tx, actor, "user.close", Some(id), "").await?;
    identity::tell(&tx, None, Some(id)).await?;
    tx.commit().await.map_err(failed)?;
    Ok(!stranger)
}

/// Grants with something left, and those that the ledger has not yet.
async fn live_grants(tx: &Transaction<'_>, id: &AccountId) -> StoreResult<Vec<GrantId>> {
    let select = "SELECT g.id FROM credit_grants AS g JOIN credits AS c ON c.user_id = g.user_id
        WHERE g.user_id = $1 AND (g.remaining > 0 OR g.id > c.applied_change) ORDER BY g.id";
    Ok(query(tx, select, &[&id.as_str()]).await?.iter().map(|row| GrantId(uint(row.get(0)))).collect())
}

async fn insert_event(client: &Client, event: &NewAuthEvent) -> StoreResult<bool> {
    let insert = "INSERT INTO auth_events (id, event_type, user_id, at, received_at, state, next_attempt_at, payload)
        VALUES ($1, $2, $3, $4, $5, 'pending', $5, $6) ON CONFLICT (id) DO NOTHING";
    let user = event.user.as_ref().map(AccountId::as_str);
    let (at, now) = (time(event.at), time(common::now()));
    Ok(execute(client, insert, &[&event.id, &event.event_type, &user, &at, &now, &event.payload]).await? > 0)
}

async fn event(client: &Client, id: &str) -> StoreResult<Option<AuthEvent>> {
    let select = format!("SELECT {EVENT_COLUMNS} FROM auth_events WHERE id = $1");
    query_opt(client, &select, &[&id]).await?.as_ref().map(read_event).transpose()
}

async fn claim_events(client: &Client, limit: u32, lease_us: u64) -> StoreResult<Vec<AuthEvent>> {
    let now = common::now();
    let update = format!(
        "UPDATE auth_events SET attempts = attempts + 1, next_attempt_at = $2 WHERE id IN
            (SELECT id FROM auth_events WHERE state = 'pending' AND next_attempt_at <= $1
            ORDER BY next_attempt_at LIMIT $3 FOR UPDATE SKIP LOCKED)
        RETURNING {EVENT_COLUMNS}"
    );
    let until = time(now.saturating_add(lease_us));
    let rows = query(client, &update, &[&time(now), &until, &i64::from(limit)]).await?;
    let mut found: Vec<AuthEvent> = rows.iter().map(read_event).collect::<StoreResult<_>>()?;
    found.sort_by_key(|event| event.at);
    Ok(found)
}

async fn finish_event(client: &Client, id: &str, outcome: &EventOutcome) -> StoreResult<()> {
    let now = time(common::now());
    let done = "UPDATE auth_events SET state = $2, processed_at = $3, error = NULL,
        payload = CASE WHEN EXISTS (SELECT 1 FROM users AS u WHERE u.id = auth_events.user_id AND u.status = 'closed')
            THEN '' ELSE payload END
        WHERE id = $1";
    let changed = match outcome {
        EventOutcome::Processed { .. } => execute(client, done, &[&id, &"processed", &now]).await,
        EventOutcome::Ignored => execute(client, done, &[&id, &"ignored", &now]).await,
        EventOutcome::Retry { error, at } => {
            let update = "UPDATE auth_events SET error = $2, next_attempt_at = $3 WHERE id = $1 AND state = 'pending'";
            execute(client, update, &[&id, error, &time(*at)]).await
        }
        EventOutcome::Parked { error } => {
            let update = "UPDATE auth_events SET state = 'parked', error = $2 WHERE id = $1 AND state = 'pending'";
            execute(client, update, &[&id, error]).await
        }
    };
    changed.map(drop)
}

async fn counts(client: &Client) -> StoreResult<(u64, u64)> {
    let select = "SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'parked')
        FROM auth_events WHERE state IN ('pending', 'parked')";
    let row = query_opt(client, select, &[]).await?;
    Ok(row.map_or((0, 0), |row| (uint(row.get(0)), uint(row.get(1)))))
}

fn read_event(row: &Row) -> StoreResult<AuthEvent> {
    let user: Option<&str> = row.get(2);
    let attempts: i32 = row.get(5);
    Ok(AuthEvent {
        id: row.get(0),
        event_type: row.get(1),
        user: user.map(common::account).transpose()?,
        at: micros(row.get(3)),
        state: names::event_state(row.get(4))?,
        attempts: u32::try_from(attempts).unwrap_or(0),
        error: row.get(6),
        payload: row.get(7),
    })
}
