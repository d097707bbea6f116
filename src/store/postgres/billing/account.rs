//! One user's purchases, read as a whole and changed as a whole.

use std::time::SystemTime;

use deadpool_postgres::{Client, GenericClient, Transaction};
use tokio_postgres::Row;

use super::super::super::billing::{
    self, BillingAccount, Decision, Effect, PAID_GRANTS_MAX, PURCHASES_MAX, PaidGrant, Purchase, StoredGrant,
    SubscriptionRow, names,
};
use super::super::super::common::{self, int, uint};
use super::super::super::{ChangeRow, StoreError, StoreResult};
use super::super::{
    Values, accounts, execute, failed, identity, micros, notifications, query, query_opt, time, topups,
};
use crate::ledger::{AccountId, GrantId, Micros};

pub(in super::super) async fn begin<C: GenericClient>(client: &C, user: &AccountId) -> StoreResult<()> {
    let insert = "INSERT INTO billing_accounts (user_id) SELECT id FROM users WHERE id = $1
        ON CONFLICT (user_id) DO NOTHING";
    execute(client, insert, &[&user.as_str()]).await.map(drop)
}

/// The version is read first: what changes while the rest is read makes a decision on it void.
pub(super) async fn read(client: &mut Client, id: &AccountId) -> StoreResult<BillingAccount> {
    begin(client, id).await?;
    let unknown = || StoreError::NotFound("the user");
    let select = "SELECT version, customer_id, flagged, due_at FROM billing_accounts WHERE user_id = $1";
    let row = query_opt(client, select, &[&id.as_str()]).await?.ok_or_else(unknown)?;
    Ok(BillingAccount {
        user: accounts::user(client, id).await?.ok_or_else(unknown)?,
        version: uint(row.get(0)),
        customer: row.get(1),
        flagged: row.get(2),
        due_at: at(&row, 3),
        subscriptions: subscriptions(client, id).await?,
        purchases: purchases(client, id).await?,
        grants: grants(client, id).await?,
    })
}

fn at(row: &Row, column: usize) -> Option<Micros> {
    row.get::<_, Option<SystemTime>>(column).map(micros)
}

fn count(row: &Row, column: usize) -> u32 {
    u32::try_from(row.get::<_, i32>(column)).unwrap_or(0)
}

async fn subscriptions(client: &Client, user: &AccountId) -> StoreResult<Vec<SubscriptionRow>> {
    let select = "SELECT id, plan, price_id, item_id, status, currency, period_start, period_end, trial_end,
        cancel_at_period_end, cancel_at, ended_at, past_due_since, paused, schedule_id, created_at
        FROM subscriptions WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2";
    let rows = query(client, select, &[&user.as_str(), &common::LIST_MAX]).await?;
    let read = |row: &Row| SubscriptionRow {
        id: row.get(0),
        plan: row.get(1),
        price: row.get(2),
        item: row.get(3),
        status: row.get(4),
        currency: row.get(5),
        period_start: at(row, 6),
        period_end: at(row, 7),
        trial_end: at(row, 8),
        cancel_at_period_end: row.get(9),
        cancel_at: at(row, 10),
        ended_at: at(row, 11),
        past_due_since: at(row, 12),
        paused: row.get(13),
        schedule: row.get(14),
        created_at: micros(row.get(15)),
    };
    Ok(rows.iter().rev().map(read).collect())
}

async fn purchases(client: &Client, user: &AccountId) -> StoreResult<Vec<Purchase>> {
    let select = "SELECT id, kind, name, subscription_id, payment_intent, currency, amount, reversed, frozen, credits,
        months, period_start, period_end, created_at, first_credits, returned_at FROM purchases
        WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2";
    let rows = query(client, select, &[&user.as_str(), &PURCHASES_MAX]).await?;
    let read = |row: &Row| {
        Ok(Purchase {
            id: row.get(0),
            kind: names::purchase_kind(row.get(1))?,
            name: row.get(2),
            subscription: row.get(3),
            payment_intent: row.get(4),
            currency: row.get(5),
            amount: row.get(6),
            reversed: row.get(7),
            frozen: row.get(8),
            credits: row.get(9),
            months: count(row, 10),
            period_start: at(row, 11),
            period_end: at(row, 12),
            created_at: micros(row.get(13)),
            first: row.get(14),
            returned_at: at(row, 15),
        })
    };
    rows.iter().rev().map(read).collect()
}

async fn grants(client: &Client, user: &AccountId) -> StoreResult<Vec<PaidGrant>> {
    let select = "SELECT p.source_key, p.purchase_id, p.use, p.parent, p.month, p.amount, p.starts_at, p.ends_at,
            p.ended, p.frozen, p.claimed, p.taken, p.serial,
            c.applied, g.amount, g.remaining, g.lapsed, a.applied_change < a.last_change
        FROM purchase_grants AS p
        JOIN credit_changes AS c ON c.source_key = p.source_key
        JOIN credit_grants AS g ON g.user_id = c.user_id AND g.id = c.number
        JOIN credits AS a ON a.user_id = c.user_id
        WHERE p.user_id = $1 ORDER BY c.number DESC LIMIT $2";
    let rows = query(client, select, &[&user.as_str(), &PAID_GRANTS_MAX]).await?;
    let read = |row: &Row| {
        Ok(PaidGrant {
            key: row.get(0),
            purchase: row.get(1),
            used_as: names::grant_use(row.get(2))?,
            parent: row.get(3),
            month: count(row, 4),
            amount: row.get(5),
            starts_at: at(row, 6),
            ends_at: at(row, 7),
            ended: row.get(8),
            frozen: row.get(9),
            claimed: row.get(10),
            taken: row.get(11),
            serial: count(row, 12),
            stored: StoredGrant {
                applied: row.get(13),
                amount: row.get(14),
                remaining: row.get(15),
                lapsed: row.get(16),
                waiting: row.get(17),
            },
        })
    };
    rows.iter().rev().map(read).collect()
}

pub(super) async fn period_ends(client: &Client, user: &AccountId) -> StoreResult<Vec<(GrantId, Micros)>> {
    let select = "SELECT c.number, p.ends_at FROM purchase_grants AS p
        JOIN credit_changes AS c ON c.source_key = p.source_key
        WHERE p.user_id = $1 AND NOT p.ended AND p.ends_at IS NOT NULL ORDER BY c.number DESC LIMIT $2";
    let rows = query(client, select, &[&user.as_str(), &common::LIST_MAX]).await?;
    Ok(rows.iter().map(|row| (GrantId(uint(row.get(0))), micros(row.get(1)))).collect())
}

pub(super) async fn apply(client: &mut Client, decision: &Decision) -> StoreResult<Option<Vec<ChangeRow>>> {
    let tx = client.transaction().await.map_err(failed)?;
    begin(&tx, &decision.user).await?;
    // Whoever comes second waits for the row here, and finds another version.
    let raise = "UPDATE billing_accounts SET version = version + 1 WHERE user_id = $1 AND version = $2";
    if execute(&tx, raise, &[&decision.user.as_str(), &int(decision.version)]).await? == 0 {
        return Ok(None);
    }
    let locks = |effect: &Effect| matches!(effect, Effect::Change(_) | Effect::Plan(_) | Effect::Notify { .. });
    if decision.effects.iter().any(locks) {
        // Credits before the user, as a freeze does, in whatever order the effects come: or the two wait for each other.
        let lock = "SELECT FROM credits WHERE user_id = $1 FOR NO KEY UPDATE";
        query_opt(&tx, lock, &[&decision.user.as_str()]).await?;
    }
    let mut changes = Vec::new();
    for effect in &decision.effects {
        changes.extend(write(&tx, decision, effect).await?);
    }
    if let Some(event) = &decision.event {
        let outcome = billing::EventOutcome::Processed { user: Some(decision.user.clone()) };
        super::events::finish(&tx, event, &outcome).await?;
    }
    tx.commit().await.map_err(failed)?;
    Ok(Some(changes))
}

async fn write(tx: &Transaction<'_>, decision: &Decision, effect: &Effect) -> StoreResult<Option<ChangeRow>> {
    let user = decision.user.as_str();
    match effect {
        Effect::Change(planned) => {
            let named = match planned.act.names() {
                Some(key) => Some(number_of(tx, user, key).await?),
                None => None,
            };
            return accounts::store_change(tx, billing::change(decision, planned, named)?).await.map(Some);
        }
        Effect::Subscription(row) => put_subscription(tx, user, row).await?,
        Effect::Purchase(purchase) => put_purchase(tx, user, purchase).await?,
        Effect::Grant(grant) => put_grant(tx, user, grant).await?,
        Effect::Plan(plan) => accounts::move_plan(tx, &decision.user, plan, &decision.actor).await.map(drop)?,
        Effect::Flagged(flagged) => {
            let update = "UPDATE billing_accounts SET flagged = $2 WHERE user_id = $1";
            execute(tx, update, &[&user, flagged]).await.map(drop)?;
        }
        Effect::Due(due) => {
            let update = "UPDATE billing_accounts SET due_at = $2 WHERE user_id = $1";
            execute(tx, update, &[&user, &due.map(time)]).await.map(drop)?;
        }
        Effect::Customer(customer) => {
            let update = "UPDATE billing_accounts SET customer_id = $2 WHERE user_id = $1";
            execute(tx, update, &[&user, customer]).await.map(drop)?;
        }
        Effect::Checkout { session, state } => {
            let update = "UPDATE checkouts SET state = $2 WHERE session_id = $1";
            execute(tx, update, &[session, &names::checkout_state_name(*state)]).await.map(drop)?;
        }
        Effect::Notify { kind, data, dedupe_key } => {
            notifications::add(tx, &decision.notice(*kind, data, dedupe_key)).await?;
        }
        Effect::TopupPaid(id) => topups::paid(tx, *id).await?,
        Effect::Note { action, detail } => {
            identity::audit(tx, &decision.actor, action, Some(&decision.user), detail).await?;
        }
    }
    Ok(None)
}

async fn number_of(tx: &Transaction<'_>, user: &str, key: &str) -> StoreResult<GrantId> {
    let select = "SELECT number FROM credit_changes WHERE source_key = $1 AND user_id = $2";
    let row = query_opt(tx, select, &[&key, &user]).await?;
    row.map(|row| GrantId(uint(row.get(0)))).ok_or(StoreError::NotFound("the grant"))
}

fn small(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

async fn put_subscription(tx: &Transaction<'_>, user: &str, row: &SubscriptionRow) -> StoreResult<()> {
    let upsert = "INSERT INTO subscriptions (id, user_id, plan, price_id, item_id, status, currency, period_start,
            period_end, trial_end, cancel_at_period_end, cancel_at, ended_at, past_due_since, paused, schedule_id,
            created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
        ON CONFLICT (id) DO UPDATE SET plan = excluded.plan, price_id = excluded.price_id, item_id = excluded.item_id,
            status = excluded.status, currency = excluded.currency, period_start = excluded.period_start,
            period_end = excluded.period_end, trial_end = excluded.trial_end,
            cancel_at_period_end = excluded.cancel_at_period_end, cancel_at = excluded.cancel_at,
            ended_at = excluded.ended_at, past_due_since = excluded.past_due_since, paused = excluded.paused,
            schedule_id = excluded.schedule_id";
    let values: Values<'_> = &[
        &row.id,
        &user,
        &row.plan,
        &row.price,
        &row.item,
        &row.status,
        &row.currency,
        &row.period_start.map(time),
        &row.period_end.map(time),
        &row.trial_end.map(time),
        &row.cancel_at_period_end,
        &row.cancel_at.map(time),
        &row.ended_at.map(time),
        &row.past_due_since.map(time),
        &row.paused,
        &row.schedule,
        &time(row.created_at),
    ];
    execute(tx, upsert, values).await.map(drop)
}

async fn put_purchase(tx: &Transaction<'_>, user: &str, purchase: &Purchase) -> StoreResult<()> {
    let upsert = "INSERT INTO purchases (id, user_id, kind, name, subscription_id, payment_intent, currency, amount,
            reversed, frozen, credits, months, period_start, period_end, created_at, first_credits, returned_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
        ON CONFLICT (id) DO UPDATE SET payment_intent = excluded.payment_intent, reversed = excluded.reversed,
            frozen = excluded.frozen, returned_at = excluded.returned_at";
    let values: Values<'_> = &[
        &purchase.id,
        &user,
        &names::purchase_kind_name(purchase.kind),
        &purchase.name,
        &purchase.subscription,
        &purchase.payment_intent,
        &purchase.currency,
        &purchase.amount,
        &purchase.reversed,
        &purchase.frozen,
        &purchase.credits,
        &small(purchase.months),
        &purchase.period_start.map(time),
        &purchase.period_end.map(time),
        &time(purchase.created_at),
        &purchase.first,
        &purchase.returned_at.map(time),
    ];
    execute(tx, upsert, values).await.map(drop)
}

async fn put_grant(tx: &Transaction<'_>, user: &str, grant: &PaidGrant) -> StoreResult<()> {
    let upsert = "INSERT INTO purchase_grants (source_key, purchase_id, user_id, use, parent, month, amount, starts_at,
            ends_at, ended, frozen, claimed, taken, serial)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
        ON CONFLICT (source_key) DO UPDATE SET ended = excluded.ended, frozen = excluded.frozen,
            claimed = excluded.claimed, taken = excluded.taken, serial = excluded.serial";
    let values: Values<'_> = &[
        &grant.key,
        &grant.purchase,
        &user,
        &names::grant_use_name(grant.used_as),
        &grant.parent,
        &small(grant.month),
        &grant.amount,
        &grant.starts_at.map(time),
        &grant.ends_at.map(time),
        &grant.ended,
        &grant.frozen,
        &grant.claimed,
        &grant.taken,
        &small(grant.serial),
    ];
    execute(tx, upsert, values).await.map(drop)
}
