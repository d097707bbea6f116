//! Users, their numbered billing changes, and accounts as the ledger loads them.

use std::time::SystemTime;

use deadpool_postgres::{Client, GenericClient, Transaction};
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::changes::{self, Facts, Plan};
use super::super::common::{self, LIST_MAX, int, uint};
use super::super::{
    ChangeRow, GrantRow, NewChange, NewUser, Page, PageRequest, StoreError, StoreResult, Unapplied, User, UserStatus,
};
use super::{Values, execute, failed, identity, micros, notifications, query, query_opt, sign_ups, time};
use crate::credits::Credits;
use crate::ledger::{AccountId, AccountState, GrantId, GrantState};
use crate::mail;

pub(super) const USER_COLUMNS: &str = "id, email, plan, status, created_at, name";

pub(super) async fn create_user(client: &mut Client, user: NewUser) -> StoreResult<User> {
    let tx = client.transaction().await.map_err(failed)?;
    let now = common::now();
    let insert = "INSERT INTO users (id, email, plan, status, created_at) VALUES ($1, $2, $3, 'active', $4)
        ON CONFLICT DO NOTHING";
    if execute(&tx, insert, &[&user.id.as_str(), &user.email, &user.plan, &time(now)]).await? == 0 {
        return Err(changes::user_exists());
    }
    execute(&tx, "INSERT INTO credits (user_id) VALUES ($1)", &[&user.id.as_str()]).await?;
    if let Some(signup) = changes::signup(&user) {
        store_change(&tx, signup).await?;
    }
    if let Some(mailbox) = user.email.as_deref().and_then(mail::digest) {
        sign_ups::claim(&tx, &user.id, &mailbox).await?;
    }
    identity::audit(&tx, "store", "user.create", Some(&user.id), &user.plan).await?;
    tx.commit().await.map_err(failed)?;
    Ok(User {
        id: user.id,
        email: user.email,
        name: None,
        plan: user.plan,
        status: UserStatus::Active,
        created_at: now,
    })
}

pub(super) async fn user<C: GenericClient>(client: &C, id: &AccountId) -> StoreResult<Option<User>> {
    let select = format!("SELECT {USER_COLUMNS} FROM users WHERE id = $1");
    query_opt(client, &select, &[&id.as_str()]).await?.as_ref().map(read_user).transpose()
}

pub(super) async fn users(client: &Client, page: &PageRequest) -> StoreResult<Page<User>> {
    let slice = common::slice(page)?;
    let select = format!("SELECT {USER_COLUMNS} FROM users WHERE id > $1 ORDER BY id LIMIT $2");
    let after = slice.after.as_deref().unwrap_or("");
    let rows = query(client, &select, &[&after, &slice.rows]).await?;
    let found: Vec<User> = rows.iter().map(read_user).collect::<StoreResult<_>>()?;
    Ok(common::page(found, &slice, |user| user.id.to_string()))
}

/// Users whose id or address begins with `text`. The end of what begins so is the text and the last character there is.
pub(super) async fn find_users(client: &Client, text: &str, page: &PageRequest) -> StoreResult<Page<User>> {
    let slice = common::slice(page)?;
    let (low, after) = (text.to_lowercase(), slice.after.as_deref().unwrap_or(""));
    let select = format!(
        "SELECT {USER_COLUMNS} FROM users WHERE id > $3 AND id IN (
            SELECT id FROM users WHERE id >= $1 AND id < $1 || chr(1114111)
            UNION SELECT id FROM users WHERE email IS NOT NULL AND lower(email) COLLATE \"C\" >= $2
                AND lower(email) COLLATE \"C\" < $2 || chr(1114111)) ORDER BY id LIMIT $4"
    );
    let rows = query(client, &select, &[&text, &low, &after, &slice.rows]).await?;
    let found: Vec<User> = rows.iter().map(read_user).collect::<StoreResult<_>>()?;
    Ok(common::page(found, &slice, |user| user.id.to_string()))
}

pub(super) fn read_user(row: &Row) -> StoreResult<User> {
    Ok(User {
        id: common::account(row.get(0))?,
        email: row.get(1),
        name: row.get(5),
        plan: row.get(2),
        status: common::status(row.get(3))?,
        created_at: micros(row.get(4)),
    })
}

pub(super) async fn set_plan(client: &mut Client, id: &AccountId, plan: &str, actor: &str) -> StoreResult<User> {
    let tx = client.transaction().await.map_err(failed)?;
    let user = move_plan(&tx, id, plan, actor).await?;
    tx.commit().await.map_err(failed)?;
    Ok(user)
}

pub(super) async fn move_plan(tx: &Transaction<'_>, id: &AccountId, plan: &str, actor: &str) -> StoreResult<User> {
    let select = format!("SELECT {USER_COLUMNS} FROM users WHERE id = $1 FOR NO KEY UPDATE");
    let found = query_opt(tx, &select, &[&id.as_str()]).await?.as_ref().map(read_user).transpose()?;
    let user = changes::may_replan(found)?;
    if user.plan == plan {
        return Ok(user);
    }
    execute(tx, "UPDATE users SET plan = $2 WHERE id = $1", &[&id.as_str(), &plan]).await?;
    identity::audit(tx, actor, "user.plan", Some(id), plan).await?;
    identity::tell(tx, None, Some(id)).await?;
    Ok(User { plan: plan.to_owned(), ..user })
}

pub(super) async fn add_change(client: &mut Client, new: NewChange) -> StoreResult<ChangeRow> {
    let tx = client.transaction().await.map_err(failed)?;
    let stored = store_change(&tx, new).await?;
    tx.commit().await.map_err(failed)?;
    Ok(stored)
}

pub(super) async fn store_change(tx: &Transaction<'_>, new: NewChange) -> StoreResult<ChangeRow> {
    // The account's row is locked first: whoever comes second sees the first one's source key.
    let facts = lock(tx, &new).await?;
    if let Some(known) = by_source_key(tx, &new.source_key).await? {
        return changes::repeated(&new, known);
    }
    let plan = changes::plan(&new, &facts.ok_or(StoreError::NotFound("the user"))?)?;
    let (account, number) = (new.account.as_str(), int(plan.number));
    let source_key = (!new.source_key.is_empty()).then_some(new.source_key.as_str());
    let insert = "INSERT INTO credit_changes (user_id, number, payload, source_key, note, actor)
        VALUES ($1, $2, $3, $4, $5, $6)";
    execute(tx, insert, &[&account, &number, &plan.payload, &source_key, &new.note, &new.actor]).await?;
    execute(tx, "UPDATE credits SET last_change = $2 WHERE user_id = $1", &[&account, &number]).await?;
    if let Some(grant) = &plan.grant {
        let insert = "INSERT INTO credit_grants (user_id, id, kind, amount, remaining, expires_at, source_key, note)
            VALUES ($1, $2, $3, $4, $4, $5, $6, $7)";
        let (kind, expires_at) = (common::grant_kind_name(grant.kind), grant.expires_at.map(time));
        execute(tx, insert, &[&account, &number, &kind, &grant.amount, &expires_at, &source_key, &new.note]).await?;
    }
    identity::audit(tx, &new.actor, plan.action, Some(&new.account), &plan.payload).await?;
    if let Some(notice) = plan.notice(&new.account) {
        notifications::add(tx, &notice).await?;
    }
    set_status(tx, &new.account, &plan).await?;
    Ok(ChangeRow {
        account: new.account,
        number: plan.number,
        change: new.change,
        source_key: new.source_key,
        fresh: true,
    })
}

async fn set_status(tx: &Transaction<'_>, account: &AccountId, plan: &Plan) -> StoreResult<()> {
    let Some(status) = plan.status else { return Ok(()) };
    let update = "UPDATE users SET status = $2 WHERE id = $1";
    execute(tx, update, &[&account.as_str(), &common::status_name(status)]).await?;
    identity::tell(tx, None, Some(account)).await
}

/// Locks the account's row against flushes and other changes, and reads what there is to know. `None` where there is no such user.
async fn lock(tx: &Transaction<'_>, new: &NewChange) -> StoreResult<Option<Facts>> {
    let account = new.account.as_str();
    let select = "SELECT last_change, debt FROM credits WHERE user_id = $1 FOR NO KEY UPDATE";
    let Some(row) = query_opt(tx, select, &[&account]).await? else { return Ok(None) };
    // A statement of its own: it sees what was committed while the lock was waited for.
    let select = "SELECT status, remaining, live FROM users CROSS JOIN (SELECT
            coalesce(sum(g.remaining), 0)::bigint AS remaining, count(*) FILTER (
                WHERE (g.remaining > 0 OR g.id > c.applied_change) AND (g.expires_at IS NULL OR g.expires_at > $2)) AS live
            FROM credits AS c JOIN credit_grants AS g ON g.user_id = c.user_id WHERE c.user_id = $1) AS sums
        WHERE id = $1";
    let asked: Values<'_> = &[&account, &time(changes::lapsed_before())];
    let Some(more) = query_opt(tx, select, asked).await? else { return Ok(None) };
    let named = match changes::names_grant(&new.change) {
        None => None,
        Some(grant) => {
            let select = "SELECT amount, payload, applied FROM credit_grants AS g
                JOIN credit_changes AS c ON c.user_id = g.user_id AND c.number = g.id WHERE g.user_id = $1 AND g.id = $2";
            let found = query_opt(tx, select, &[&account, &int(grant.0)]).await?;
            let most =
                |row: Row| Ok::<_, StoreError>(changes::most(row.get(0), &changes::read(row.get(1))?, row.get(2)));
            found.map(most).transpose()?
        }
    };
    Ok(Some(Facts {
        status: common::status(more.get(0))?,
        last_change: uint(row.get(0)),
        debt: row.get(1),
        remaining: more.get(1),
        live_grants: more.get(2),
        named,
    }))
}

const CHANGE_COLUMNS: &str = "user_id, number, payload, source_key";

async fn by_source_key(tx: &Transaction<'_>, source_key: &str) -> StoreResult<Option<ChangeRow>> {
    if source_key.is_empty() {
        return Ok(None);
    }
    let select = format!("SELECT {CHANGE_COLUMNS} FROM credit_changes WHERE source_key = $1");
    query_opt(tx, &select, &[&source_key]).await?.as_ref().map(read_change).transpose()
}

pub(super) async fn unapplied_accounts(
    client: &Client,
    after: Option<&AccountId>,
    limit: u32,
) -> StoreResult<Vec<Unapplied>> {
    let select = "SELECT user_id, count(*) FROM credit_changes WHERE NOT applied AND user_id > $1
        GROUP BY user_id ORDER BY user_id LIMIT $2";
    let rows = query(client, select, &[&after.map_or("", AccountId::as_str), &i64::from(limit)]).await?;
    let read = |row: &Row| Ok(Unapplied { account: common::account(row.get(0))?, changes: uint(row.get(1)) });
    rows.iter().map(read).collect()
}

pub(super) async fn changes_after(client: &Client, account: &AccountId, number: u64) -> StoreResult<Vec<ChangeRow>> {
    let select = format!(
        "SELECT {CHANGE_COLUMNS} FROM credit_changes WHERE user_id = $1 AND number > $2 ORDER BY number LIMIT $3"
    );
    let rows = query(client, &select, &[&account.as_str(), &int(number), &LIST_MAX]).await?;
    rows.iter().map(read_change).collect()
}

fn read_change(row: &Row) -> StoreResult<ChangeRow> {
    Ok(ChangeRow {
        account: common::account(row.get(0))?,
        number: uint(row.get(1)),
        change: changes::read(row.get(2))?,
        source_key: row.get::<_, Option<String>>(3).unwrap_or_default(),
        fresh: false,
    })
}

/// One statement, so one snapshot: a row for each grant, or a single one without.
pub(super) async fn load(client: &Client, account: &AccountId, open_only: bool) -> StoreResult<Option<AccountState>> {
    let select = "SELECT c.seq, c.applied_change, c.frozen, c.debt, g.id, g.kind, g.remaining, g.expires_at, g.frozen,
            (SELECT array_agg(state) FROM ledger_records WHERE user_id = c.user_id AND (held OR NOT $2))
        FROM credits AS c LEFT JOIN credit_grants AS g
            ON g.user_id = c.user_id AND g.id <= c.applied_change AND g.remaining > 0
        WHERE c.user_id = $1 ORDER BY g.id";
    let rows = query(client, select, &[&account.as_str(), &open_only]).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut state = AccountState {
        seq: uint(first.get(0)),
        change: uint(first.get(1)),
        frozen: first.get(2),
        debt_micro: first.get(3),
        ..AccountState::default()
    };
    for row in &rows {
        let Some(id) = row.get::<_, Option<i64>>(4) else { continue };
        state.grants.push(GrantState {
            id: GrantId(uint(id)),
            kind: common::grant_kind(row.get(5))?,
            remaining_micro: row.get(6),
            expires_at: row.get::<_, Option<SystemTime>>(7).map_or(0, micros),
            frozen: row.get(8),
        });
    }
    let records: Option<Vec<&[u8]>> = first.get(9);
    state.records = records.unwrap_or_default().into_iter().map(common::read_record).collect::<StoreResult<_>>()?;
    Ok(Some(state))
}

pub(super) async fn record_account(client: &Client, id: Uuid) -> StoreResult<Option<AccountId>> {
    let row = query_opt(client, "SELECT user_id FROM ledger_records WHERE id = $1", &[&id]).await?;
    row.map(|row| common::account(row.get(0))).transpose()
}

pub(super) async fn grants(client: &Client, account: &AccountId) -> StoreResult<Vec<GrantRow>> {
    let select = "SELECT id, kind, amount, remaining, expires_at, frozen, source_key, note, created_at
        FROM credit_grants WHERE user_id = $1 ORDER BY id DESC LIMIT $2";
    let rows = query(client, select, &[&account.as_str(), &LIST_MAX]).await?;
    rows.iter().map(read_grant).collect()
}

fn read_grant(row: &Row) -> StoreResult<GrantRow> {
    let credits = |micro| Credits::from_micro(micro).ok_or_else(|| common::broken("amount"));
    Ok(GrantRow {
        id: GrantId(uint(row.get(0))),
        kind: common::grant_kind(row.get(1))?,
        amount: credits(row.get(2))?,
        remaining: credits(row.get(3))?,
        expires_at: row.get::<_, Option<SystemTime>>(4).map(micros),
        frozen: row.get(5),
        source_key: row.get::<_, Option<String>>(6).unwrap_or_default(),
        note: row.get(7),
        created_at: micros(row.get(8)),
    })
}
