//! Keys, what changed about identities, kept API answers, the audit log.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::super::common::{
    self, CALLS_KEPT_US, IDEMPOTENCY_KEPT_US, IDENTITY_CHANGES_MAX, IDENTITY_KEPT_US, IGNORED_EVENTS_KEPT_US, LIST_MAX,
    RECORD_GRACE_US, SESSION_KEPT_US, bits, from_bits, int, uint,
};
use super::super::sign_ups::AUTH_EVENTS_KEPT_US;
use super::super::{IDEMPOTENCY_ABANDONED_US, Idempotent, IdentityChange, KeyRow, StoreError, StoreResult, UserStatus};
use super::{accounts, failed};
use crate::ledger::AccountId;

/// A log that has been quiet since still has the last entries of old sessions, which a reopening must know as written.
const FORGET_SESSIONS: &str = "DELETE FROM ledger_sessions AS s WHERE seen_at < ?1
    AND EXISTS (SELECT 1 FROM ledger_sessions AS l WHERE l.shard = s.shard AND l.seen_at >= ?1)";
const KEY_COLUMNS: &str =
    "id, hash, prefix, kind, user_id, name, created_at, revoked_at, expires_at, last_used_at, models,
    budget, budget_used";

pub(super) fn is_empty(tx: &Transaction<'_>) -> StoreResult<bool> {
    let question = "SELECT NOT EXISTS (SELECT 1 FROM users) AND NOT EXISTS (SELECT 1 FROM api_keys)";
    tx.query_row(question, [], |row| row.get(0)).map_err(failed)
}

pub(super) fn create_key(tx: &Transaction<'_>, key: &KeyRow) -> StoreResult<()> {
    if let Some(user) = &key.user {
        let user = accounts::user(tx, user)?.ok_or(StoreError::NotFound("the user"))?;
        if user.status == UserStatus::Closed {
            return Err(StoreError::Conflict("the user is closed".to_owned()));
        }
    }
    let count = "SELECT count(*) FROM api_keys WHERE user_id IS ?1 AND revoked_at IS NULL";
    let owner = key.user.as_ref().map(AccountId::as_str);
    common::check_keys(tx.query_row(count, [owner], |row| row.get(0)).map_err(failed)?)?;
    let row = params![
        key.id,
        key.hash,
        key.prefix,
        common::key_kind_name(key.kind),
        key.user.as_ref().map(AccountId::as_str),
        key.name,
        int(key.created_at),
        key.revoked_at.map(int),
        key.expires_at.map(int),
        key.last_used_at.map(int),
        common::models_text(key.models.as_deref())?,
        key.budget.map(|budget| budget.limit.micro()),
        key.budget.map_or(0, |budget| budget.used.micro()),
    ];
    let insert =
        format!("INSERT INTO api_keys ({KEY_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)");
    tx.prepare_cached(&insert).and_then(|mut statement| statement.execute(row)).map_err(failed)?;
    Ok(())
}

pub(super) fn key_by_hash(tx: &Transaction<'_>, hash: &[u8; 32]) -> StoreResult<Option<KeyRow>> {
    let select = format!("SELECT {KEY_COLUMNS} FROM api_keys WHERE hash = ?1");
    let found = tx.prepare_cached(&select).and_then(|mut statement| statement.query_row([hash], read_key).optional());
    found.map_err(failed)?.transpose()
}

pub(super) fn keys_of(tx: &Transaction<'_>, user: Option<&AccountId>) -> StoreResult<Vec<KeyRow>> {
    // Those that open go first, so that no number of revoked ones hides them.
    let select = format!(
        "SELECT {KEY_COLUMNS} FROM api_keys WHERE user_id IS ?1
        ORDER BY revoked_at IS NOT NULL, created_at DESC, id DESC LIMIT ?2"
    );
    let mut statement = tx.prepare_cached(&select).map_err(failed)?;
    let rows = statement.query_map(params![user.map(AccountId::as_str), LIST_MAX], read_key).map_err(failed)?;
    rows.map(|row| row.map_err(failed)?).collect::<StoreResult<_>>().map(common::newest_first)
}

pub(super) fn revoke_key(tx: &Transaction<'_>, user: Option<&AccountId>, id: &str) -> StoreResult<KeyRow> {
    let select = format!("SELECT {KEY_COLUMNS} FROM api_keys WHERE id = ?1");
    let found = tx.query_row(&select, [id], read_key).optional().map_err(failed)?.transpose()?;
    let theirs = |key: &KeyRow| user.is_none() || key.user.as_ref() == user;
    let key = found.filter(theirs).ok_or(StoreError::NotFound("the key"))?;
    if key.revoked_at.is_some() {
        return Ok(key);
    }
    let now = common::now();
    tx.execute("UPDATE api_keys SET revoked_at = ?2 WHERE id = ?1", params![id, int(now)]).map_err(failed)?;
    let tell = "INSERT INTO identity_changes (key_hash, at) VALUES (?1, ?2)";
    tx.execute(tell, params![key.hash, int(now)]).map_err(failed)?;
    Ok(KeyRow { revoked_at: Some(now), ..key })
}

/// The outer result is SQLite's, the inner one says whether the row makes sense.
fn read_key(row: &Row<'_>) -> rusqlite::Result<StoreResult<KeyRow>> {
    let (kind, user): (String, Option<String>) = (row.get(3)?, row.get(4)?);
    let (created_at, revoked_at): (i64, Option<i64>) = (row.get(6)?, row.get(7)?);
    let (id, hash, prefix, name) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(5)?);
    let (expires_at, last_used_at): (Option<i64>, Option<i64>) = (row.get(8)?, row.get(9)?);
    let (models, budget, used): (Option<String>, Option<i64>, i64) = (row.get(10)?, row.get(11)?, row.get(12)?);
    Ok(common::key_kind(&kind).and_then(|kind| {
        let user = user.as_deref().map(common::account).transpose()?;
        let (created_at, revoked_at) = (uint(created_at), revoked_at.map(uint));
        let (expires_at, last_used_at) = (expires_at.map(uint), last_used_at.map(uint));
        let (budget, models) = (common::key_budget(budget, used)?, common::models(models.as_deref())?);
        Ok(KeyRow {
            id,
            hash,
            prefix,
            kind,
            user,
            name,
            created_at,
            revoked_at,
            expires_at,
            last_used_at,
            budget,
            models,
        })
    }))
}

pub(super) fn tell_user(tx: &Transaction<'_>, user: &AccountId) -> StoreResult<()> {
    let tell = "INSERT INTO identity_changes (user_id, at) VALUES (?1, ?2)";
    tx.execute(tell, params![user.as_str(), int(common::now())]).map_err(failed)?;
    Ok(())
}

pub(super) fn changes(tx: &Transaction<'_>, since: u64) -> StoreResult<(u64, Vec<IdentityChange>)> {
    if since == 0 {
        // The sequence table knows the last number given, pruned or not; the migration gave number 1 away, so that no
        // answer here is 0, which would never tell a change.
        let last = "SELECT seq FROM sqlite_sequence WHERE name = 'identity_changes'";
        let last: i64 = tx.query_row(last, [], |row| row.get(0)).map_err(failed)?;
        return Ok((uint(last), Vec::new()));
    }
    let select = "SELECT number, key_hash, user_id FROM identity_changes WHERE number > ?1 ORDER BY number LIMIT ?2";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let mut rows = statement.query(params![int(since), IDENTITY_CHANGES_MAX]).map_err(failed)?;
    let (mut last, mut found) = (since, Vec::new());
    while let Some(row) = rows.next().map_err(failed)? {
        let number: i64 = row.get(0).map_err(failed)?;
        let (hash, user): (Option<[u8; 32]>, Option<String>) =
            (row.get(1).map_err(failed)?, row.get(2).map_err(failed)?);
        last = uint(number);
        found.extend(hash.map(|hash| IdentityChange::Key { hash }));
        found.extend(user.map(|user| common::account(&user)).transpose()?.map(|id| IdentityChange::User { id }));
    }
    Ok((last, found))
}

pub(super) fn idempotency_begin(
    tx: &Transaction<'_>,
    scope: &str,
    key: &str,
    fingerprint: u64,
) -> StoreResult<Idempotent> {
    let now = common::now();
    let select = "SELECT fingerprint, status, body, begun_at FROM idempotency_keys WHERE scope = ?1 AND key = ?2";
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<u16>>(1)?, row.get(2)?, row.get(3)?));
    let known = tx.query_row(select, [scope, key], read).optional().map_err(failed)?;
    if let Some((known, status, body, begun_at)) = known {
        let age = now.saturating_sub(uint(begun_at));
        let stands = if status.is_some() { age < IDEMPOTENCY_KEPT_US } else { age < IDEMPOTENCY_ABANDONED_US };
        let body: Option<String> = body;
        match (status.zip(body), stands) {
            (_, false) => {}
            _ if from_bits(known) != fingerprint => return Ok(Idempotent::Mismatch),
            (Some((status, body)), _) => return Ok(Idempotent::Finished { status, body }),
            (None, _) => return Ok(Idempotent::Running),
        }
    }
    let insert = "INSERT OR REPLACE INTO idempotency_keys (scope, key, fingerprint, begun_at) VALUES (?1, ?2, ?3, ?4)";
    tx.execute(insert, params![scope, key, bits(fingerprint), int(now)]).map_err(failed)?;
    Ok(Idempotent::Begun)
}

pub(super) fn idempotency_finish(
    tx: &Transaction<'_>,
    scope: &str,
    key: &str,
    status: u16,
    body: &str,
) -> StoreResult<()> {
    let update = "UPDATE idempotency_keys SET status = ?3, body = ?4 WHERE scope = ?1 AND key = ?2 AND status IS NULL";
    tx.execute(update, params![scope, key, status, body]).map_err(failed)?;
    Ok(())
}

pub(super) fn idempotency_forget(tx: &Transaction<'_>, scope: &str, key: &str) -> StoreResult<()> {
    let delete = "DELETE FROM idempotency_keys WHERE scope = ?1 AND key = ?2 AND status IS NULL";
    tx.execute(delete, [scope, key]).map_err(failed)?;
    Ok(())
}

pub(super) fn audit(
    tx: &Transaction<'_>,
    actor: &str,
    action: &str,
    account: Option<&AccountId>,
    detail: &str,
) -> StoreResult<()> {
    let insert = "INSERT INTO audit_log (at, actor, action, user_id, detail) VALUES (?1, ?2, ?3, ?4, ?5)";
    let row = params![int(common::now()), actor, action, account.map(AccountId::as_str), detail];
    tx.prepare_cached(insert).and_then(|mut statement| statement.execute(row)).map_err(failed)?;
    Ok(())
}

pub(super) fn prune(tx: &Transaction<'_>) -> StoreResult<()> {
    let now = common::now();
    let old = [
        ("DELETE FROM idempotency_keys WHERE begun_at < ?1", IDEMPOTENCY_KEPT_US),
        ("DELETE FROM identity_changes WHERE at < ?1", IDENTITY_KEPT_US),
        ("DELETE FROM auth_events WHERE received_at < ?1 AND state IN ('processed', 'ignored')", AUTH_EVENTS_KEPT_US),
        ("DELETE FROM ledger_records WHERE held = 0 AND until < ?1", RECORD_GRACE_US),
        (FORGET_SESSIONS, SESSION_KEPT_US),
        ("DELETE FROM billing_calls WHERE created_at < ?1", CALLS_KEPT_US),
        ("DELETE FROM billing_events WHERE state = 'ignored' AND received_at < ?1", IGNORED_EVENTS_KEPT_US),
    ];
    for (delete, kept) in old {
        tx.execute(delete, [int(now.saturating_sub(kept))]).map_err(failed)?;
    }
    Ok(())
}
