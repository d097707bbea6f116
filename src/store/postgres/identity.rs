//! Keys, what changed about identities, kept API answers, the audit log.

use std::time::SystemTime;

use deadpool_postgres::{Client, GenericClient, Transaction};
use tokio_postgres::Row;

use super::super::common::{
    self, CALLS_KEPT_US, IDEMPOTENCY_KEPT_US, IDENTITY_CHANGES_MAX, IDENTITY_KEPT_US, IGNORED_EVENTS_KEPT_US, LIST_MAX,
    RECORD_GRACE_US, SESSION_KEPT_US, bits, from_bits, int, uint,
};
use super::super::sign_ups::AUTH_EVENTS_KEPT_US;
use super::super::{IDEMPOTENCY_ABANDONED_US, Idempotent, IdentityChange, KeyRow, StoreError, StoreResult, UserStatus};
use super::{MONTHS_AHEAD, SCHEMA_LOCK, Values, accounts, execute, failed, micros, query, query_opt, time};
use crate::ledger::AccountId;

/// A log that has been quiet since still has the last entries of old sessions, which a reopening must know as written.
const FORGET_SESSIONS: &str = "DELETE FROM ledger_sessions AS s WHERE seen_at < $1
    AND EXISTS (SELECT 1 FROM ledger_sessions AS l WHERE l.shard = s.shard AND l.seen_at >= $1)";
const KEY_COLUMNS: &str =
    "id, hash, prefix, kind, user_id, name, created_at, revoked_at, expires_at, last_used_at, models,
    budget, budget_used";

pub(super) async fn is_empty(client: &Client) -> StoreResult<bool> {
    let question = "SELECT NOT EXISTS (SELECT FROM users) AND NOT EXISTS (SELECT FROM api_keys)";
    Ok(query_opt(client, question, &[]).await?.is_none_or(|row| row.get(0)))
}

pub(super) async fn create_key(client: &mut Client, key: &KeyRow) -> StoreResult<()> {
    let tx = client.transaction().await.map_err(failed)?;
    let count = match &key.user {
        Some(user) => {
            // Two at once would both be the last; and nobody closes the account meanwhile.
            execute(&tx, "SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE", &[&user.as_str()]).await?;
            let count = "SELECT count(*) FROM api_keys WHERE user_id = $1 AND revoked_at IS NULL";
            query(&tx, count, &[&user.as_str()]).await?
        }
        None => query(&tx, "SELECT count(*) FROM api_keys WHERE user_id IS NULL AND revoked_at IS NULL", &[]).await?,
    };
    common::check_keys(count.first().map_or(0, |row| row.get(0)))?;
    if let Some(user) = &key.user {
        let user = accounts::user(&tx, user).await?.ok_or(StoreError::NotFound("the user"))?;
        if user.status == UserStatus::Closed {
            return Err(StoreError::Conflict("the user is closed".to_owned()));
        }
    }
    let insert =
        format!("INSERT INTO api_keys ({KEY_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)");
    let (kind, hash) = (common::key_kind_name(key.kind), &key.hash[..]);
    let user = key.user.as_ref().map(AccountId::as_str);
    let (created_at, revoked_at) = (time(key.created_at), key.revoked_at.map(time));
    let (expires_at, last_used_at) = (key.expires_at.map(time), key.last_used_at.map(time));
    let models = common::models_text(key.models.as_deref())?;
    let (limit, used) =
        (key.budget.map(|budget| budget.limit.micro()), key.budget.map_or(0, |budget| budget.used.micro()));
    let row: Values<'_> = &[
        &key.id,
        &hash,
        &key.prefix,
        &kind,
        &user,
        &key.name,
        &created_at,
        &revoked_at,
        &expires_at,
        &last_used_at,
        &models,
        &limit,
        &used,
    ];
    execute(&tx, &insert, row).await?;
    tx.commit().await.map_err(failed)
}

pub(super) async fn key_by_hash(client: &Client, hash: &[u8; 32]) -> StoreResult<Option<KeyRow>> {
    let select = format!("SELECT {KEY_COLUMNS} FROM api_keys WHERE hash = $1");
    query_opt(client, &select, &[&&hash[..]]).await?.as_ref().map(read_key).transpose()
}

pub(super) async fn keys_of(client: &Client, user: Option<&AccountId>) -> StoreResult<Vec<KeyRow>> {
    // Those that open go first, so that no number of revoked ones hides them.
    let order = "ORDER BY revoked_at IS NOT NULL, created_at DESC, id DESC LIMIT";
    let rows = match user {
        Some(user) => {
            let select = format!("SELECT {KEY_COLUMNS} FROM api_keys WHERE user_id = $1 {order} $2");
            query(client, &select, &[&user.as_str(), &LIST_MAX]).await?
        }
        None => {
            let select = format!("SELECT {KEY_COLUMNS} FROM api_keys WHERE user_id IS NULL {order} $1");
            query(client, &select, &[&LIST_MAX]).await?
        }
    };
    rows.iter().map(read_key).collect::<StoreResult<_>>().map(common::newest_first)
}

pub(super) async fn revoke_key(client: &mut Client, user: Option<&AccountId>, id: &str) -> StoreResult<KeyRow> {
    let tx = client.transaction().await.map_err(failed)?;
    let select = format!("SELECT {KEY_COLUMNS} FROM api_keys WHERE id = $1 FOR NO KEY UPDATE");
    let found = query_opt(&tx, &select, &[&id]).await?.as_ref().map(read_key).transpose()?;
    let theirs = |key: &KeyRow| user.is_none() || key.user.as_ref() == user;
    let key = found.filter(theirs).ok_or(StoreError::NotFound("the key"))?;
    if key.revoked_at.is_some() {
        return Ok(key);
    }
    let now = common::now();
    execute(&tx, "UPDATE api_keys SET revoked_at = $2 WHERE id = $1", &[&id, &time(now)]).await?;
    tell(&tx, Some(&key.hash), None).await?;
    tx.commit().await.map_err(failed)?;
    Ok(KeyRow { revoked_at: Some(now), ..key })
}

fn read_key(row: &Row) -> StoreResult<KeyRow> {
    let hash: &[u8] = row.get(1);
    let user: Option<&str> = row.get(4);
    Ok(KeyRow {
        id: row.get(0),
        hash: hash.try_into().map_err(|_| common::broken("hash of a key"))?,
        prefix: row.get(2),
        kind: common::key_kind(row.get(3))?,
        user: user.map(common::account).transpose()?,
        name: row.get(5),
        created_at: micros(row.get(6)),
        revoked_at: row.get::<_, Option<SystemTime>>(7).map(micros),
        expires_at: row.get::<_, Option<SystemTime>>(8).map(micros),
        last_used_at: row.get::<_, Option<SystemTime>>(9).map(micros),
        models: common::models(row.get(10))?,
        budget: common::key_budget(row.get(11), row.get(12))?,
    })
}

/// Last in a transaction: it holds up every other one that tells something until the commit.
pub(super) async fn tell(tx: &Transaction<'_>, key: Option<&[u8; 32]>, user: Option<&AccountId>) -> StoreResult<()> {
    let insert = "WITH counted AS (UPDATE identity_counter SET last = last + 1 RETURNING last)
        INSERT INTO identity_changes (number, key_hash, user_id) SELECT last, $1, $2 FROM counted";
    let (key, user) = (key.map(|hash| &hash[..]), user.map(AccountId::as_str));
    execute(tx, insert, &[&key, &user]).await.map(drop)
}

pub(super) async fn changes(client: &Client, since: u64) -> StoreResult<(u64, Vec<IdentityChange>)> {
    if since == 0 {
        let row = query_opt(client, "SELECT last FROM identity_counter", &[]).await?;
        return Ok((row.map_or(1, |row| uint(row.get(0))), Vec::new()));
    }
    let select = "SELECT c.last, i.number, i.key_hash, i.user_id FROM identity_counter AS c LEFT JOIN
        (SELECT number, key_hash, user_id FROM identity_changes WHERE number > $1 ORDER BY number LIMIT $2) AS i ON true
        ORDER BY i.number";
    let (mut last, mut found) = (since, Vec::new());
    for row in query(client, select, &[&int(since), &IDENTITY_CHANGES_MAX]).await? {
        let counted = uint(row.get(0));
        // A server that was restored, or failed over to, may have lost what was numbered up to here.
        let Some(number) = row.get::<_, Option<i64>>(1) else { return Ok((last.min(counted.max(1)), found)) };
        last = uint(number);
        if let Some(hash) = row.get::<_, Option<&[u8]>>(2) {
            let hash = hash.try_into().map_err(|_| common::broken("hash of a key"))?;
            found.push(IdentityChange::Key { hash });
        }
        if let Some(user) = row.get::<_, Option<&str>>(3) {
            found.push(IdentityChange::User { id: common::account(user)? });
        }
    }
    Ok((last, found))
}

pub(super) async fn idempotency_begin(
    client: &Client,
    scope: &str,
    key: &str,
    fingerprint: u64,
) -> StoreResult<Idempotent> {
    let now = common::now();
    let ago = |micros: u64| time(now.saturating_sub(micros));
    // One statement, so that of many at once exactly one begins.
    let insert = "INSERT INTO idempotency_keys AS known (scope, key, fingerprint, begun_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (scope, key) DO UPDATE
        SET fingerprint = excluded.fingerprint, begun_at = excluded.begun_at, status = NULL, body = NULL
        WHERE known.begun_at <= CASE WHEN known.status IS NULL THEN $5::timestamptz ELSE $6::timestamptz END";
    let (running, kept) = (ago(IDEMPOTENCY_ABANDONED_US), ago(IDEMPOTENCY_KEPT_US));
    let begun = execute(client, insert, &[&scope, &key, &bits(fingerprint), &time(now), &running, &kept]).await?;
    if begun == 1 {
        return Ok(Idempotent::Begun);
    }
    let select = "SELECT fingerprint, status, body FROM idempotency_keys WHERE scope = $1 AND key = $2";
    let Some(row) = query_opt(client, select, &[&scope, &key]).await? else {
        // Forgotten or pruned just now: the caller tries again.
        return Ok(Idempotent::Running);
    };
    let (status, body): (Option<i32>, Option<String>) = (row.get(1), row.get(2));
    if from_bits(row.get(0)) != fingerprint {
        return Ok(Idempotent::Mismatch);
    }
    Ok(match status.zip(body) {
        None => Idempotent::Running,
        Some((status, body)) => Idempotent::Finished { status: u16::try_from(status).unwrap_or(500), body },
    })
}

pub(super) async fn idempotency_finish(
    client: &Client,
    scope: &str,
    key: &str,
    status: u16,
    body: &str,
) -> StoreResult<()> {
    let update = "UPDATE idempotency_keys SET status = $3, body = $4 WHERE scope = $1 AND key = $2 AND status IS NULL";
    execute(client, update, &[&scope, &key, &i32::from(status), &body]).await.map(drop)
}

pub(super) async fn idempotency_forget(client: &Client, scope: &str, key: &str) -> StoreResult<()> {
    let delete = "DELETE FROM idempotency_keys WHERE scope = $1 AND key = $2 AND status IS NULL";
    execute(client, delete, &[&scope, &key]).await.map(drop)
}

pub(super) async fn audit<C: GenericClient>(
    client: &C,
    actor: &str,
    action: &str,
    account: Option<&AccountId>,
    detail: &str,
) -> StoreResult<()> {
    let insert = "INSERT INTO audit_log (actor, action, user_id, detail) VALUES ($1, $2, $3, $4)";
    execute(client, insert, &[&actor, &action, &account.map(AccountId::as_str), &detail]).await.map(drop)
}

pub(super) async fn prune(client: &mut Client) -> StoreResult<()> {
    let now = common::now();
    let old = |kept: u64| now.saturating_sub(kept);
    let deletes = [
        ("DELETE FROM idempotency_keys WHERE begun_at < $1", IDEMPOTENCY_KEPT_US),
        ("DELETE FROM identity_changes WHERE at < $1", IDENTITY_KEPT_US),
        ("DELETE FROM auth_events WHERE received_at < $1 AND state IN ('processed', 'ignored')", AUTH_EVENTS_KEPT_US),
        (FORGET_SESSIONS, SESSION_KEPT_US),
        ("DELETE FROM billing_calls WHERE created_at < $1", CALLS_KEPT_US),
        ("DELETE FROM billing_events WHERE state = 'ignored' AND received_at < $1", IGNORED_EVENTS_KEPT_US),
    ];
    for (delete, kept) in deletes {
        execute(client, delete, &[&time(old(kept))]).await?;
    }
    let delete = "DELETE FROM ledger_records WHERE NOT held AND until < $1";
    execute(client, delete, &[&int(old(RECORD_GRACE_US))]).await.map(drop)
}

/// Makes the months' partitions of usage ahead of time, one replica at a time.
pub(super) async fn make_partitions(client: &mut Client) -> StoreResult<()> {
    let tx = client.transaction().await.map_err(failed)?;
    query(&tx, "SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
    query(&tx, "SELECT usage_logs_make_partitions($1)", &[&MONTHS_AHEAD]).await?;
    tx.commit().await.map_err(failed)
}
