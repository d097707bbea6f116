//! Users, their numbered billing changes, and accounts as the ledger loads them.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::super::changes::{self, Facts, Plan};
use super::super::common::{self, LIST_MAX, int, uint};
use super::super::{
    ChangeRow, GrantRow, NewChange, NewUser, Page, PageRequest, StoreError, StoreResult, Unapplied, User, UserStatus,
};
use super::{failed, identity, notifications, sign_ups};
use crate::credits::Credits;
use crate::ledger::{AccountId, AccountState, Change, GrantId, GrantState, RecordState};
use crate::mail;

pub(super) const USER_COLUMNS: &str = "id, email, plan, status, created_at, name";

pub(super) fn create_user(tx: &Transaction<'_>, user: NewUser) -> StoreResult<User> {
    if self::user(tx, &user.id)?.is_some() {
        return Err(changes::user_exists());
    }
    let now = common::now();
    let insert = "INSERT INTO users (id, email, plan, status, created_at) VALUES (?1, ?2, ?3, 'active', ?4)";
    tx.execute(insert, params![user.id.as_str(), user.email, user.plan, int(now)]).map_err(failed)?;
    tx.execute("INSERT INTO credits (user_id) VALUES (?1)", [user.id.as_str()]).map_err(failed)?;
    if let Some(signup) = changes::signup(&user) {
        add_change(tx, signup)?;
    }
    if let Some(mailbox) = user.email.as_deref().and_then(mail::digest) {
        sign_ups::claim(tx, &user.id, &mailbox)?;
    }
    identity::audit(tx, "store", "user.create", Some(&user.id), &user.plan)?;
    Ok(User {
        id: user.id,
        email: user.email,
        name: None,
        plan: user.plan,
        status: UserStatus::Active,
        created_at: now,
    })
}

pub(super) fn user(tx: &Transaction<'_>, id: &AccountId) -> StoreResult<Option<User>> {
    let select = format!("SELECT {USER_COLUMNS} FROM users WHERE id = ?1");
    let found = tx.prepare_cached(&select).and_then(|mut found| found.query_row([id.as_str()], read_user).optional());
    found.map_err(failed)?.transpose()
}

pub(super) fn users(tx: &Transaction<'_>, page: &PageRequest) -> StoreResult<Page<User>> {
    let slice = common::slice(page)?;
    let select = format!("SELECT {USER_COLUMNS} FROM users WHERE id > ?1 ORDER BY id LIMIT ?2");
    let mut statement = tx.prepare_cached(&select).map_err(failed)?;
    let after = slice.after.as_deref().unwrap_or("");
    let rows = statement.query_map(params![after, slice.rows], read_user).map_err(failed)?;
    let found: Vec<User> = rows.map(|row| row.map_err(failed)?).collect::<StoreResult<_>>()?;
    Ok(common::page(found, &slice, |user| user.id.to_string()))
}

/// Users whose id or address begins with `text`. The end of what begins so is the text and the last character there is.
pub(super) fn find_users(tx: &Transaction<'_>, text: &str, page: &PageRequest) -> StoreResult<Page<User>> {
    let slice = common::slice(page)?;
    let (low, after) = (text.to_ascii_lowercase(), slice.after.as_deref().unwrap_or(""));
    let select = format!(
        "SELECT {USER_COLUMNS} FROM users WHERE id > ?3 AND id IN (
            SELECT id FROM users WHERE id >= ?1 AND id < ?1 || char(0x10ffff)
            UNION SELECT id FROM users WHERE email IS NOT NULL AND lower(email) >= ?2
                AND lower(email) < ?2 || char(0x10ffff)) ORDER BY id LIMIT ?4"
    );
    let mut statement = tx.prepare_cached(&select).map_err(failed)?;
    let rows = statement.query_map(params![text, low, after, slice.rows], read_user).map_err(failed)?;
    let found: Vec<User> = rows.map(|row| row.map_err(failed)?).collect::<StoreResult<_>>()?;
    Ok(common::page(found, &slice, |user| user.id.to_string()))
}

pub(super) fn read_user(row: &Row<'_>) -> rusqlite::Result<StoreResult<User>> {
    let (id, status): (String, String) = (row.get(0)?, row.get(3)?);
    let (email, plan, created_at, name): (_, _, i64, _) = (row.get(1)?, row.get(2)?, row.get(4)?, row.get(5)?);
    Ok(common::account(&id).and_then(|id| {
        let (status, created_at) = (common::status(&status)?, uint(created_at));
        Ok(User { id, email, name, plan, status, created_at })
    }))
}

pub(super) fn set_plan(tx: &Transaction<'_>, id: &AccountId, plan: &str, actor: &str) -> StoreResult<User> {
    let user = changes::may_replan(user(tx, id)?)?;
    if user.plan == plan {
        return Ok(user);
    }
    tx.execute("UPDATE users SET plan = ?2 WHERE id = ?1", [id.as_str(), plan]).map_err(failed)?;
    identity::audit(tx, actor, "user.plan", Some(id), plan)?;
    identity::tell_user(tx, id)?;
    Ok(User { plan: plan.to_owned(), ..user })
}

pub(super) fn add_change(tx: &Transaction<'_>, new: NewChange) -> StoreResult<ChangeRow> {
    if let Some(known) = by_source_key(tx, &new.source_key)? {
        return changes::repeated(&new, known);
    }
    let user = user(tx, &new.account)?.ok_or(StoreError::NotFound("the user"))?;
    let facts = Facts { status: user.status, ..facts(tx, &new)? };
    let plan = changes::plan(&new, &facts)?;
    let (account, now) = (new.account.as_str(), int(common::now()));
    let source_key = (!new.source_key.is_empty()).then_some(new.source_key.as_str());
    let insert = "INSERT INTO credit_changes (user_id, number, payload, source_key, note, actor, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let row = params![account, int(plan.number), plan.payload, source_key, new.note, new.actor, now];
    tx.execute(insert, row).map_err(failed)?;
    let numbered = "UPDATE credits SET last_change = ?2 WHERE user_id = ?1";
    tx.execute(numbered, params![account, int(plan.number)]).map_err(failed)?;
    if let Some(grant) = &plan.grant {
        let insert = "INSERT INTO credit_grants
            (user_id, id, kind, amount, remaining, expires_at, source_key, note, created_at)
            VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6, ?7, ?8)";
        let kind = common::grant_kind_name(grant.kind);
        let expires_at = grant.expires_at.map(int);
        let row = params![account, int(plan.number), kind, grant.amount, expires_at, source_key, new.note, now];
        tx.execute(insert, row).map_err(failed)?;
    }
    if let Some(notice) = plan.notice(&new.account) {
        notifications::add(tx, &notice)?;
    }
    set_status(tx, &new.account, &plan)?;
    identity::audit(tx, &new.actor, plan.action, Some(&new.account), &plan.payload)?;
    Ok(ChangeRow {
        account: new.account,
        number: plan.number,
        change: new.change,
        source_key: new.source_key,
        fresh: true,
    })
}

fn set_status(tx: &Transaction<'_>, account: &AccountId, plan: &Plan) -> StoreResult<()> {
    let Some(status) = plan.status else { return Ok(()) };
    let update = "UPDATE users SET status = ?2 WHERE id = ?1";
    tx.execute(update, [account.as_str(), common::status_name(status)]).map_err(failed)?;
    identity::tell_user(tx, account)
}

fn facts(tx: &Transaction<'_>, new: &NewChange) -> StoreResult<Facts> {
    let select = "SELECT last_change, debt, coalesce(sum(g.remaining), 0), count(g.id) FILTER (
            WHERE (g.remaining > 0 OR g.id > applied_change) AND (g.expires_at IS NULL OR g.expires_at > ?2))
        FROM credits AS c LEFT JOIN credit_grants AS g ON g.user_id = c.user_id WHERE c.user_id = ?1 GROUP BY c.user_id";
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    let asked = params![new.account.as_str(), int(changes::lapsed_before())];
    let (last_change, debt, remaining, live_grants) = tx.query_row(select, asked, read).map_err(failed)?;
    let named = match changes::names_grant(&new.change) {
        None => None,
        Some(grant) => {
            let select = "SELECT amount, payload, applied FROM credit_grants
                JOIN credit_changes USING (user_id) WHERE user_id = ?1 AND credit_grants.id = ?2 AND number = ?2";
            let key = params![new.account.as_str(), int(grant.0)];
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?));
            let found = tx.query_row(select, key, read).optional().map_err(failed)?;
            let most = |(amount, payload, applied): (i64, String, bool)| {
                Ok::<_, StoreError>(changes::most(amount, &changes::read(&payload)?, applied))
            };
            found.map(most).transpose()?
        }
    };
    Ok(Facts { status: UserStatus::Active, last_change: uint(last_change), debt, remaining, live_grants, named })
}

const CHANGE_COLUMNS: &str = "user_id, number, payload, source_key";

fn by_source_key(tx: &Transaction<'_>, source_key: &str) -> StoreResult<Option<ChangeRow>> {
    if source_key.is_empty() {
        return Ok(None);
    }
    let select = format!("SELECT {CHANGE_COLUMNS} FROM credit_changes WHERE source_key = ?1");
    tx.query_row(&select, [source_key], read_change).optional().map_err(failed)?.transpose()
}

pub(super) fn unapplied_accounts(
    tx: &Transaction<'_>,
    after: Option<&AccountId>,
    limit: u32,
) -> StoreResult<Vec<Unapplied>> {
    let select = "SELECT user_id, count(*) FROM credit_changes WHERE applied = 0 AND user_id > ?1
        GROUP BY user_id ORDER BY user_id LIMIT ?2";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?));
    let rows = statement.query_map(params![after.map_or("", AccountId::as_str), limit], read).map_err(failed)?;
    rows.map(|row| {
        let (account, changes) = row.map_err(failed)?;
        Ok(Unapplied { account: common::account(&account)?, changes: uint(changes) })
    })
    .collect()
}

pub(super) fn changes_after(tx: &Transaction<'_>, account: &AccountId, number: u64) -> StoreResult<Vec<ChangeRow>> {
    let select = format!(
        "SELECT {CHANGE_COLUMNS} FROM credit_changes WHERE user_id = ?1 AND number > ?2 ORDER BY number LIMIT ?3"
    );
    let mut statement = tx.prepare_cached(&select).map_err(failed)?;
    let rows = statement.query_map(params![account.as_str(), int(number), LIST_MAX], read_change).map_err(failed)?;
    rows.map(|row| row.map_err(failed)?).collect()
}

fn read_change(row: &Row<'_>) -> rusqlite::Result<StoreResult<ChangeRow>> {
    let (account, number, payload): (String, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let source_key: Option<String> = row.get(3)?;
    Ok(common::account(&account).and_then(|account| {
        let change = changes::read(&payload)?;
        let source_key = source_key.unwrap_or_default();
        Ok(ChangeRow { account, number: uint(number), change, source_key, fresh: false })
    }))
}

/// Changes that the ledger may have applied since the last flush.
pub(super) fn changes_between(
    tx: &Transaction<'_>,
    account: &AccountId,
    after: u64,
    upto: u64,
) -> StoreResult<Vec<(u64, Change)>> {
    let select = "SELECT number, payload FROM credit_changes WHERE user_id = ?1 AND number > ?2 AND number <= ?3
        ORDER BY number";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
    let rows = statement.query_map(params![account.as_str(), int(after), int(upto)], read).map_err(failed)?;
    rows.map(|row| {
        let (number, payload) = row.map_err(failed)?;
        Ok((uint(number), changes::read(&payload)?))
    })
    .collect()
}

pub(super) fn load(tx: &Transaction<'_>, account: &AccountId, open_only: bool) -> StoreResult<Option<AccountState>> {
    let select = "SELECT seq, applied_change, frozen, debt FROM credits WHERE user_id = ?1";
    let read = |row: &Row<'_>| {
        let (seq, change): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (frozen, debt_micro) = (row.get(2)?, row.get(3)?);
        Ok(AccountState { seq: uint(seq), change: uint(change), frozen, debt_micro, ..AccountState::default() })
    };
    let found = tx.prepare_cached(select).and_then(|mut found| found.query_row([account.as_str()], read).optional());
    let Some(mut state) = found.map_err(failed)? else { return Ok(None) };
    let select = "SELECT id, kind, remaining, expires_at, frozen FROM credit_grants
        WHERE user_id = ?1 AND id <= ?2 AND remaining > 0 ORDER BY id";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let mut rows = statement.query(params![account.as_str(), int(state.change)]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        state.grants.push(read_grant_state(row).map_err(failed)??);
    }
    state.records = records(tx, account, open_only)?;
    Ok(Some(state))
}

fn read_grant_state(row: &Row<'_>) -> rusqlite::Result<StoreResult<GrantState>> {
    let (id, kind, expires_at): (i64, String, Option<i64>) = (row.get(0)?, row.get(1)?, row.get(3)?);
    let (remaining_micro, frozen) = (row.get(2)?, row.get(4)?);
    Ok(common::grant_kind(&kind).map(|kind| GrantState {
        id: GrantId(uint(id)),
        kind,
        remaining_micro,
        expires_at: expires_at.map_or(0, uint),
        frozen,
    }))
}

fn records(tx: &Transaction<'_>, account: &AccountId, open_only: bool) -> StoreResult<Vec<RecordState>> {
    let select = match open_only {
        true => "SELECT state FROM ledger_records WHERE user_id = ?1 AND held = 1",
        false => "SELECT state FROM ledger_records WHERE user_id = ?1",
    };
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let rows = statement.query_map([account.as_str()], |row| row.get::<_, Vec<u8>>(0)).map_err(failed)?;
    rows.map(|row| common::read_record(&row.map_err(failed)?)).collect()
}

pub(super) fn record_account(tx: &Transaction<'_>, id: Uuid) -> StoreResult<Option<AccountId>> {
    let select = "SELECT user_id FROM ledger_records WHERE id = ?1";
    let read = |row: &Row<'_>| row.get::<_, String>(0);
    let found = tx.prepare_cached(select).and_then(|mut found| found.query_row([id.as_bytes()], read).optional());
    found.map_err(failed)?.map(|user| common::account(&user)).transpose()
}

pub(super) fn grants(tx: &Transaction<'_>, account: &AccountId) -> StoreResult<Vec<GrantRow>> {
    let select = "SELECT id, kind, amount, remaining, expires_at, frozen, source_key, note, created_at
        FROM credit_grants WHERE user_id = ?1 ORDER BY id DESC LIMIT ?2";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let rows = statement.query_map(params![account.as_str(), LIST_MAX], read_grant).map_err(failed)?;
    rows.map(|row| row.map_err(failed)?).collect()
}

fn read_grant(row: &Row<'_>) -> rusqlite::Result<StoreResult<GrantRow>> {
    let (id, kind, amount, remaining): (i64, String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    let (expires_at, frozen): (Option<i64>, bool) = (row.get(4)?, row.get(5)?);
    let (source_key, note, created_at): (Option<String>, _, i64) = (row.get(6)?, row.get(7)?, row.get(8)?);
    Ok(common::grant_kind(&kind).and_then(|kind| {
        let credits = |micro| Credits::from_micro(micro).ok_or_else(|| common::broken("amount"));
        Ok(GrantRow {
            id: GrantId(uint(id)),
            kind,
            amount: credits(amount)?,
            remaining: credits(remaining)?,
            expires_at: expires_at.map(uint),
            frozen,
            source_key: source_key.unwrap_or_default(),
            note,
            created_at: uint(created_at),
        })
    }))
}
