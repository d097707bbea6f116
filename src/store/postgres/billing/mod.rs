//! What users bought.

pub(super) mod account;
mod events;

use std::time::SystemTime;

use async_trait::async_trait;
use deadpool_postgres::{Client, GenericClient, Object};
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::billing::{
    BillingAccount, BillingStore, Checkout, CheckoutState, Decision, EventFilter, EventOutcome, EventRow, NewEvent,
    names,
};
use super::super::common::{self, bits, from_bits};
use super::super::{ChangeRow, Page, PageRequest, StoreError, StoreResult};
use super::{PostgresStore, Values, execute, failed, micros, query, query_opt, time, within};
use crate::ledger::{AccountId, GrantId, Micros};

#[async_trait]
impl BillingStore for PostgresStore {
    async fn insert_event(&self, event: NewEvent) -> StoreResult<bool> {
        within!(self, |client| events::insert(client, &event))
    }

    async fn billing_event(&self, id: &str) -> StoreResult<Option<EventRow>> {
        within!(self, |client| events::one(client, id))
    }

    async fn billing_events(&self, filter: EventFilter, page: PageRequest) -> StoreResult<Page<EventRow>> {
        within!(self, |client| events::list(client, &filter, &page))
    }

    async fn claim_events(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<EventRow>> {
        within!(self, |client| events::claim(client, limit, lease_us))
    }

    async fn finish_event(&self, id: &str, outcome: EventOutcome) -> StoreResult<()> {
        within!(self, |client| events::finish(client, id, &outcome))
    }

    async fn replay_event(&self, id: &str) -> StoreResult<EventRow> {
        within!(self, |client| events::replay(client, id))
    }

    async fn event_counts(&self) -> StoreResult<(u64, u64)> {
        within!(self, |client| events::counts(client))
    }

    async fn billing_account(&self, user: &AccountId) -> StoreResult<BillingAccount> {
        within!(self, |client| account::read(client, user))
    }

    async fn period_ends(&self, user: &AccountId) -> StoreResult<Vec<(GrantId, Micros)>> {
        within!(self, |client| account::period_ends(client, user))
    }

    async fn apply_decision(&self, decision: Decision) -> StoreResult<Option<Vec<ChangeRow>>> {
        within!(self, |client| account::apply(client, &decision))
    }

    async fn user_of_customer(&self, customer: &str) -> StoreResult<Option<AccountId>> {
        let select = "SELECT user_id FROM billing_accounts WHERE customer_id = $1";
        Ok(within!(self, |client| users(client, select, &[&customer]))?.pop())
    }

    async fn user_of_subscription(&self, subscription: &str) -> StoreResult<Option<AccountId>> {
        let select = "SELECT user_id FROM subscriptions WHERE id = $1";
        Ok(within!(self, |client| users(client, select, &[&subscription]))?.pop())
    }

    async fn user_of_payment(&self, payment_intent: &str) -> StoreResult<Option<AccountId>> {
        let select = "SELECT user_id FROM purchases WHERE payment_intent = $1 LIMIT 1";
        Ok(within!(self, |client| users(client, select, &[&payment_intent]))?.pop())
    }

    async fn claim_due_accounts(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<AccountId>> {
        let now = common::now();
        let update = "UPDATE billing_accounts SET due_at = $2 WHERE user_id IN
            (SELECT user_id FROM billing_accounts WHERE due_at <= $1 ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED)
            RETURNING user_id";
        let (from, until) = (time(now), time(now.saturating_add(lease_us)));
        within!(self, |client| users(client, update, &[&from, &until, &i64::from(limit)]))
    }

    async fn billed_users(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountId>> {
        let after = after.map_or("", AccountId::as_str);
        let select = "SELECT user_id FROM billing_accounts WHERE customer_id IS NOT NULL AND user_id > $1
            ORDER BY user_id LIMIT $2";
        within!(self, |client| users(client, select, &[&after, &i64::from(limit)]))
    }

    async fn begin_checkout(&self, checkout: Checkout) -> StoreResult<()> {
        within!(self, |client| begin_checkout(client, &checkout))
    }

    async fn open_checkout(&self, user: &AccountId) -> StoreResult<Option<Checkout>> {
        let user = user.as_str();
        within!(self, |client| find_checkout(client, "user_id = $1 AND state = 'open'", user))
    }

    async fn checkout_of_session(&self, session: &str) -> StoreResult<Option<Checkout>> {
        within!(self, |client| find_checkout(client, "session_id = $1", session))
    }

    async fn set_checkout_session(&self, id: Uuid, session: &str) -> StoreResult<()> {
        let update = "UPDATE checkouts SET session_id = $2 WHERE id = $1 AND session_id IS NULL";
        within!(self, |client| execute(client, update, &[&id, &session])).map(drop)
    }

    async fn set_checkout_state(&self, id: Uuid, state: CheckoutState) -> StoreResult<()> {
        let state = names::checkout_state_name(state);
        within!(self, |client| execute(client, "UPDATE checkouts SET state = $2 WHERE id = $1", &[&id, &state]))
            .map(drop)
    }

    async fn call_key(&self, scope: &str, fingerprint: u64, life_us: u64) -> StoreResult<String> {
        within!(self, |client| call_key(client, scope, fingerprint, life_us))
    }

    async fn forget_call(&self, scope: &str) -> StoreResult<()> {
        within!(self, |client| execute(client, "DELETE FROM billing_calls WHERE scope = $1", &[&scope])).map(drop)
    }

    async fn claim_reconciliation(&self, next_us: u64) -> StoreResult<Option<Option<Micros>>> {
        let now = common::now();
        let update = "UPDATE billing_reconciliation SET due_at = $2 WHERE due_at <= $1 RETURNING done_until";
        let (from, until) = (time(now), time(now.saturating_add(next_us)));
        let claimed = within!(self, |client| query_opt(client, update, &[&from, &until]))?;
        Ok(claimed.map(|row| row.get::<_, Option<SystemTime>>(0).map(micros)))
    }

    async fn expedite_reconciliation(&self, older_us: u64) -> StoreResult<()> {
        let now = common::now();
        let update = "UPDATE billing_reconciliation SET due_at = least(due_at, $1) WHERE done_until < $2";
        let before = time(now.saturating_sub(older_us));
        within!(self, |client| execute(client, update, &[&time(now), &before])).map(drop)
    }

    async fn finish_reconciliation(&self, until: Micros) -> StoreResult<()> {
        let update = "UPDATE billing_reconciliation SET done_until = $1";
        within!(self, |client| execute(client, update, &[&time(until)])).map(drop)
    }
}

async fn users<C: GenericClient>(client: &C, sql: &str, values: Values<'_>) -> StoreResult<Vec<AccountId>> {
    query(client, sql, values).await?.iter().map(|row| common::account(row.get(0))).collect()
}

async fn begin_checkout(client: &mut Client, checkout: &Checkout) -> StoreResult<()> {
    let tx = client.transaction().await.map_err(failed)?;
    account::begin(&tx, &checkout.user).await?;
    let insert = "INSERT INTO checkouts
        (id, user_id, session_id, kind, name, price_id, currency, amount, state, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let row: Values<'_> = &[
        &checkout.id,
        &checkout.user.as_str(),
        &checkout.session,
        &names::checkout_kind_name(checkout.kind),
        &checkout.name,
        &checkout.price,
        &checkout.currency,
        &checkout.amount,
        &names::checkout_state_name(checkout.state),
        &time(checkout.created_at),
    ];
    execute(&tx, insert, row).await?;
    tx.commit().await.map_err(failed)
}

async fn find_checkout<C: GenericClient>(client: &C, which: &str, value: &str) -> StoreResult<Option<Checkout>> {
    let select = format!(
        "SELECT id, user_id, session_id, kind, name, price_id, currency, amount, state, created_at
        FROM checkouts WHERE {which}"
    );
    let read = |row: Row| {
        Ok(Checkout {
            id: row.get(0),
            user: common::account(row.get(1))?,
            session: row.get(2),
            kind: names::checkout_kind(row.get(3))?,
            name: row.get(4),
            price: row.get(5),
            currency: row.get(6),
            amount: row.get(7),
            state: names::checkout_state(row.get(8))?,
            created_at: micros(row.get(9)),
        })
    };
    query_opt(client, &select, &[&value]).await?.map(read).transpose()
}

async fn call_key(client: &mut Client, scope: &str, fingerprint: u64, life_us: u64) -> StoreResult<String> {
    let now = common::now();
    let tx = client.transaction().await.map_err(failed)?;
    // Made first, so that of two at once the second waits for the first one's row.
    let (fresh, print) = (Uuid::now_v7().to_string(), bits(fingerprint));
    let insert = "INSERT INTO billing_calls (scope, key, fingerprint, created_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (scope) DO NOTHING";
    execute(&tx, insert, &[&scope, &fresh, &print, &time(now)]).await?;
    let select = "SELECT key, fingerprint, created_at FROM billing_calls WHERE scope = $1 FOR UPDATE";
    let row = query_opt(&tx, select, &[&scope]).await?.ok_or_else(|| common::broken("key of a call"))?;
    let (key, known, at): (String, i64, SystemTime) = (row.get(0), row.get(1), row.get(2));
    let stands = from_bits(known) == fingerprint && now.saturating_sub(micros(at)) < life_us;
    let key = if stands {
        key
    } else {
        let update = "UPDATE billing_calls SET key = $2, fingerprint = $3, created_at = $4 WHERE scope = $1";
        execute(&tx, update, &[&scope, &fresh, &print, &time(now)]).await?;
        fresh
    };
    tx.commit().await.map_err(failed)?;
    Ok(key)
}

fn not_known() -> StoreError {
    StoreError::NotFound("the event")
}
