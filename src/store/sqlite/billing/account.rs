//! One user's purchases, read as a whole and changed as a whole.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::super::super::billing::{
    self, BillingAccount, Decision, Effect, PAID_GRANTS_MAX, PURCHASES_MAX, PaidGrant, Purchase, StoredGrant,
    SubscriptionRow, names,
};
use super::super::super::common::{self, int, uint};
use super::super::super::{ChangeRow, StoreError, StoreResult};
use super::super::{accounts, failed, identity, notifications, topups};
use crate::ledger::{AccountId, GrantId, Micros};

pub(in super::super) fn begin(tx: &Transaction<'_>, user: &AccountId) -> StoreResult<()> {
    if accounts::user(tx, user)?.is_none() {
        return Err(StoreError::NotFound("the user"));
    }
    let insert = "INSERT INTO billing_accounts (user_id) VALUES (?1) ON CONFLICT (user_id) DO NOTHING";
    tx.execute(insert, [user.as_str()]).map_err(failed).map(drop)
}

pub(super) fn read(tx: &Transaction<'_>, id: &AccountId) -> StoreResult<BillingAccount> {
    begin(tx, id)?;
    let user = accounts::user(tx, id)?.ok_or(StoreError::NotFound("the user"))?;
    let select = "SELECT version, customer_id, flagged, due_at FROM billing_accounts WHERE user_id = ?1";
    let (version, customer, flagged, due_at) = tx
        .query_row(select, [id.as_str()], |row| {
            Ok((uint(row.get(0)?), row.get(1)?, row.get(2)?, row.get::<_, Option<i64>>(3)?.map(uint)))
        })
        .map_err(failed)?;
    let subscriptions = subscriptions(tx, id)?;
    let purchases = purchases(tx, id)?;
    let grants = grants(tx, id)?;
    Ok(BillingAccount { user, version, customer, flagged, due_at, subscriptions, purchases, grants })
}

fn optional_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Micros>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(uint))
}

fn subscriptions(tx: &Transaction<'_>, user: &AccountId) -> StoreResult<Vec<SubscriptionRow>> {
    let select = "SELECT id, plan, price_id, item_id, status, currency, period_start, period_end, trial_end,
        cancel_at_period_end, cancel_at, ended_at, past_due_since, paused, schedule_id, created_at
        FROM subscriptions WHERE user_id = ?1 ORDER BY created_at DESC, id DESC LIMIT ?2";
    let read = |row: &Row<'_>| {
        Ok(SubscriptionRow {
            id: row.get(0)?,
            plan: row.get(1)?,
            price: row.get(2)?,
            item: row.get(3)?,
            status: row.get(4)?,
            currency: row.get(5)?,
            period_start: optional_time(row, 6)?,
            period_end: optional_time(row, 7)?,
            trial_end: optional_time(row, 8)?,
            cancel_at_period_end: row.get(9)?,
            cancel_at: optional_time(row, 10)?,
            ended_at: optional_time(row, 11)?,
            past_due_since: optional_time(row, 12)?,
            paused: row.get(13)?,
            schedule: row.get(14)?,
            created_at: uint(row.get(15)?),
        })
    };
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let rows = statement.query_map(params![user.as_str(), common::LIST_MAX], read).map_err(failed)?;
    let mut found: Vec<SubscriptionRow> = rows.collect::<Result<_, _>>().map_err(failed)?;
    found.reverse();
    Ok(found)
}

fn purchases(tx: &Transaction<'_>, user: &AccountId) -> StoreResult<Vec<Purchase>> {
    let select = "SELECT id, kind, name, subscription_id, payment_intent, currency, amount, reversed, frozen, credits,
        months, period_start, period_end, created_at, first_credits, returned_at FROM purchases
        WHERE user_id = ?1 ORDER BY created_at DESC, id DESC LIMIT ?2";
    let read = |row: &Row<'_>| {
        let kind: String = row.get(1)?;
        let mut purchase = Purchase {
            id: row.get(0)?,
            kind: billing::PurchaseKind::Pack,
            name: row.get(2)?,
            subscription: row.get(3)?,
            payment_intent: row.get(4)?,
            currency: row.get(5)?,
            amount: row.get(6)?,
            reversed: row.get(7)?,
            frozen: row.get(8)?,
            credits: row.get(9)?,
            months: row.get(10)?,
            period_start: optional_time(row, 11)?,
            period_end: optional_time(row, 12)?,
            created_at: uint(row.get(13)?),
            first: row.get(14)?,
            returned_at: optional_time(row, 15)?,
        };
        Ok(names::purchase_kind(&kind).map(|kind| {
            purchase.kind = kind;
            purchase
        }))
    };
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let rows = statement.query_map(params![user.as_str(), PURCHASES_MAX], read).map_err(failed)?;
    let mut found: Vec<Purchase> = rows.map(|row| row.map_err(failed)?).collect::<StoreResult<_>>()?;
    found.reverse();
    Ok(found)
}

fn grants(tx: &Transaction<'_>, user: &AccountId) -> StoreResult<Vec<PaidGrant>> {
    let select = "SELECT p.source_key, p.purchase_id, p.use, p.parent, p.month, p.amount, p.starts_at, p.ends_at,
            p.ended, p.frozen, p.claimed, p.taken, p.serial,
            c.applied, g.amount, g.remaining, g.lapsed, a.applied_change < a.last_change
        FROM purchase_grants AS p
        JOIN credit_changes AS c ON c.source_key = p.source_key
        JOIN credit_grants AS g ON g.user_id = c.user_id AND g.id = c.number
        JOIN credits AS a ON a.user_id = c.user_id
        WHERE p.user_id = ?1 ORDER BY c.number DESC LIMIT ?2";
    let read = |row: &Row<'_>| {
        let used_as: String = row.get(2)?;
        let mut grant = PaidGrant {
            key: row.get(0)?,
            purchase: row.get(1)?,
            used_as: billing::GrantUse::Main,
            parent: row.get(3)?,
            month: row.get(4)?,
            amount: row.get(5)?,
            starts_at: optional_time(row, 6)?,
            ends_at: optional_time(row, 7)?,
            ended: row.get(8)?,
            frozen: row.get(9)?,
            claimed: row.get(10)?,
            taken: row.get(11)?,
            serial: row.get(12)?,
            stored: StoredGrant {
                applied: row.get(13)?,
                amount: row.get(14)?,
                remaining: row.get(15)?,
                lapsed: row.get(16)?,
                waiting: row.get(17)?,
            },
        };
        Ok(names::grant_use(&used_as).map(|used_as| {
            grant.used_as = used_as;
            grant
        }))
    };
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let rows = statement.query_map(params![user.as_str(), PAID_GRANTS_MAX], read).map_err(failed)?;
    let mut found: Vec<PaidGrant> = rows.map(|row| row.map_err(failed)?).collect::<StoreResult<_>>()?;
    found.reverse();
    Ok(found)
}

pub(super) fn period_ends(tx: &Transaction<'_>, user: &AccountId) -> StoreResult<Vec<(GrantId, Micros)>> {
    let select = "SELECT c.number, p.ends_at FROM purchase_grants AS p
        JOIN credit_changes AS c ON c.source_key = p.source_key
        WHERE p.user_id = ?1 AND p.ended = 0 AND p.ends_at IS NOT NULL ORDER BY c.number DESC LIMIT ?2";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let read = |row: &Row<'_>| Ok((GrantId(uint(row.get(0)?)), uint(row.get(1)?)));
    let rows = statement.query_map(params![user.as_str(), common::LIST_MAX], read).map_err(failed)?;
    rows.collect::<Result<_, _>>().map_err(failed)
}

pub(super) fn apply(tx: &Transaction<'_>, decision: &Decision) -> StoreResult<Option<Vec<ChangeRow>>> {
    begin(tx, &decision.user)?;
    let raise = "UPDATE billing_accounts SET version = version + 1 WHERE user_id = ?1 AND version = ?2";
    if tx.execute(raise, params![decision.user.as_str(), int(decision.version)]).map_err(failed)? == 0 {
        return Ok(None);
    }
    let mut changes = Vec::new();
    for effect in &decision.effects {
        changes.extend(write(tx, decision, effect)?);
    }
    if let Some(event) = &decision.event {
        let outcome = billing::EventOutcome::Processed { user: Some(decision.user.clone()) };
        super::events::finish(tx, event, &outcome)?;
    }
    Ok(Some(changes))
}

fn write(tx: &Transaction<'_>, decision: &Decision, effect: &Effect) -> StoreResult<Option<ChangeRow>> {
    let user = decision.user.as_str();
    match effect {
        Effect::Change(planned) => {
            let named = planned.act.names().map(|key| number_of(tx, &decision.user, key)).transpose()?;
            return accounts::add_change(tx, billing::change(decision, planned, named)?).map(Some);
        }
        Effect::Subscription(row) => put_subscription(tx, user, row)?,
        Effect::Purchase(purchase) => put_purchase(tx, user, purchase)?,
        Effect::Grant(grant) => put_grant(tx, user, grant)?,
        Effect::Plan(plan) => accounts::set_plan(tx, &decision.user, plan, &decision.actor).map(drop)?,
        Effect::Flagged(flagged) => {
            let update = "UPDATE billing_accounts SET flagged = ?2 WHERE user_id = ?1";
            tx.execute(update, params![user, flagged]).map_err(failed).map(drop)?;
        }
        Effect::Due(due) => {
            let update = "UPDATE billing_accounts SET due_at = ?2 WHERE user_id = ?1";
            tx.execute(update, params![user, due.map(int)]).map_err(failed).map(drop)?;
        }
        Effect::Customer(customer) => {
            let update = "UPDATE billing_accounts SET customer_id = ?2 WHERE user_id = ?1";
            tx.execute(update, params![user, customer]).map_err(failed).map(drop)?;
        }
        Effect::Checkout { session, state } => {
            let update = "UPDATE checkouts SET state = ?2 WHERE session_id = ?1";
            tx.execute(update, params![session, names::checkout_state_name(*state)]).map_err(failed).map(drop)?;
        }
        Effect::Notify { kind, data, dedupe_key } => {
            notifications::add(tx, &decision.notice(*kind, data, dedupe_key))?;
        }
        Effect::TopupPaid(id) => topups::paid(tx, *id)?,
        Effect::Note { action, detail } => {
            identity::audit(tx, &decision.actor, action, Some(&decision.user), detail)?;
        }
    }
    Ok(None)
}

fn number_of(tx: &Transaction<'_>, user: &AccountId, key: &str) -> StoreResult<GrantId> {
    let select = "SELECT number FROM credit_changes WHERE source_key = ?1 AND user_id = ?2";
    let found = tx.query_row(select, [key, user.as_str()], |row| row.get::<_, i64>(0)).optional().map_err(failed)?;
    found.map(|number| GrantId(uint(number))).ok_or(StoreError::NotFound("the grant"))
}

fn put_subscription(tx: &Transaction<'_>, user: &str, row: &SubscriptionRow) -> StoreResult<()> {
    let upsert = "INSERT INTO subscriptions (id, user_id, plan, price_id, item_id, status, currency, period_start,
            period_end, trial_end, cancel_at_period_end, cancel_at, ended_at, past_due_since, paused, schedule_id,
            created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
        ON CONFLICT (id) DO UPDATE SET plan = excluded.plan, price_id = excluded.price_id, item_id = excluded.item_id,
            status = excluded.status, currency = excluded.currency, period_start = excluded.period_start,
            period_end = excluded.period_end, trial_end = excluded.trial_end,
            cancel_at_period_end = excluded.cancel_at_period_end, cancel_at = excluded.cancel_at,
            ended_at = excluded.ended_at, past_due_since = excluded.past_due_since, paused = excluded.paused,
            schedule_id = excluded.schedule_id";
    let values = params![
        row.id,
        user,
        row.plan,
        row.price,
        row.item,
        row.status,
        row.currency,
        row.period_start.map(int),
        row.period_end.map(int),
        row.trial_end.map(int),
        row.cancel_at_period_end,
        row.cancel_at.map(int),
        row.ended_at.map(int),
        row.past_due_since.map(int),
        row.paused,
        row.schedule,
        int(row.created_at),
    ];
    tx.execute(upsert, values).map_err(failed).map(drop)
}

fn put_purchase(tx: &Transaction<'_>, user: &str, purchase: &Purchase) -> StoreResult<()> {
    let upsert = "INSERT INTO purchases (id, user_id, kind, name, subscription_id, payment_intent, currency, amount,
            reversed, frozen, credits, months, period_start, period_end, created_at, first_credits, returned_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
        ON CONFLICT (id) DO UPDATE SET payment_intent = excluded.payment_intent, reversed = excluded.reversed,
            frozen = excluded.frozen, returned_at = excluded.returned_at";
    let values = params![
        purchase.id,
        user,
        names::purchase_kind_name(purchase.kind),
        purchase.name,
        purchase.subscription,
        purchase.payment_intent,
        purchase.currency,
        purchase.amount,
        purchase.reversed,
        purchase.frozen,
        purchase.credits,
        purchase.months,
        purchase.period_start.map(int),
        purchase.period_end.map(int),
        int(purchase.created_at),
        purchase.first,
        purchase.returned_at.map(int),
    ];
    tx.execute(upsert, values).map_err(failed).map(drop)
}

fn put_grant(tx: &Transaction<'_>, user: &str, grant: &PaidGrant) -> StoreResult<()> {
    let upsert = "INSERT INTO purchase_grants (source_key, purchase_id, user_id, use, parent, month, amount, starts_at,
            ends_at, ended, frozen, claimed, taken, serial)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
        ON CONFLICT (source_key) DO UPDATE SET ended = excluded.ended, frozen = excluded.frozen,
            claimed = excluded.claimed, taken = excluded.taken, serial = excluded.serial";
    let values = params![
        grant.key,
        grant.purchase,
        user,
        names::grant_use_name(grant.used_as),
        grant.parent,
        grant.month,
        grant.amount,
        grant.starts_at.map(int),
        grant.ends_at.map(int),
        grant.ended,
        grant.frozen,
        grant.claimed,
        grant.taken,
        grant.serial,
    ];
    tx.execute(upsert, values).map_err(failed).map(drop)
}
