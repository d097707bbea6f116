//! What users bought.

pub(super) mod account;
mod events;

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::super::billing::{
    BillingAccount, BillingStore, Checkout, CheckoutState, Decision, EventFilter, EventOutcome, EventRow, NewEvent,
    names,
};
use super::super::common::{self, bits, from_bits, int, uint};
use super::super::{ChangeRow, Page, PageRequest, StoreError, StoreResult};
use super::{SqliteStore, failed};
use crate::ledger::{AccountId, GrantId, Micros};

#[async_trait]
impl BillingStore for SqliteStore {
    async fn insert_event(&self, event: NewEvent) -> StoreResult<bool> {
        self.threads.write(move |tx| events::insert(tx, &event)).await
    }

    async fn billing_event(&self, id: &str) -> StoreResult<Option<EventRow>> {
        let id = id.to_owned();
        self.threads.read(move |tx| events::one(tx, &id)).await
    }

    async fn billing_events(&self, filter: EventFilter, page: PageRequest) -> StoreResult<Page<EventRow>> {
        self.threads.read(move |tx| events::list(tx, &filter, &page)).await
    }

    async fn claim_events(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<EventRow>> {
        self.threads.write(move |tx| events::claim(tx, limit, lease_us)).await
    }

    async fn finish_event(&self, id: &str, outcome: EventOutcome) -> StoreResult<()> {
        let id = id.to_owned();
        self.threads.write(move |tx| events::finish(tx, &id, &outcome)).await
    }

    async fn replay_event(&self, id: &str) -> StoreResult<EventRow> {
        let id = id.to_owned();
        self.threads.write(move |tx| events::replay(tx, &id)).await
    }

    async fn event_counts(&self) -> StoreResult<(u64, u64)> {
        self.threads.read(events::counts).await
    }

    async fn billing_account(&self, user: &AccountId) -> StoreResult<BillingAccount> {
        let user = user.clone();
        self.threads.write(move |tx| account::read(tx, &user)).await
    }

    async fn period_ends(&self, user: &AccountId) -> StoreResult<Vec<(GrantId, Micros)>> {
        let user = user.clone();
        self.threads.read(move |tx| account::period_ends(tx, &user)).await
    }

    async fn apply_decision(&self, decision: Decision) -> StoreResult<Option<Vec<ChangeRow>>> {
        self.threads.write(move |tx| account::apply(tx, &decision)).await
    }

    async fn user_of_customer(&self, customer: &str) -> StoreResult<Option<AccountId>> {
        self.user_of("SELECT user_id FROM billing_accounts WHERE customer_id = ?1", customer).await
    }

    async fn user_of_subscription(&self, subscription: &str) -> StoreResult<Option<AccountId>> {
        self.user_of("SELECT user_id FROM subscriptions WHERE id = ?1", subscription).await
    }

    async fn user_of_payment(&self, payment_intent: &str) -> StoreResult<Option<AccountId>> {
        self.user_of("SELECT user_id FROM purchases WHERE payment_intent = ?1", payment_intent).await
    }

    async fn claim_due_accounts(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<AccountId>> {
        let claim = move |tx: &Transaction<'_>| {
            let now = common::now();
            let update = "UPDATE billing_accounts SET due_at = ?2 WHERE user_id IN
                (SELECT user_id FROM billing_accounts WHERE due_at <= ?1 ORDER BY due_at LIMIT ?3) RETURNING user_id";
            let (now, later) = (int(now), int(now.saturating_add(lease_us)));
            users(tx, update, params![now, later, limit])
        };
        self.threads.write(claim).await
    }

    async fn billed_users(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountId>> {
        let after = after.map(|after| after.as_str().to_owned()).unwrap_or_default();
        let select = "SELECT user_id FROM billing_accounts WHERE customer_id IS NOT NULL AND user_id > ?1
            ORDER BY user_id LIMIT ?2";
        self.threads.read(move |tx| users(tx, select, params![after, limit])).await
    }

    async fn begin_checkout(&self, checkout: Checkout) -> StoreResult<()> {
        let begin = move |tx: &Transaction<'_>| {
            account::begin(tx, &checkout.user)?;
            let insert = "INSERT INTO checkouts
                (id, user_id, session_id, kind, name, price_id, currency, amount, state, created_at)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
            let (kind, state) = (names::checkout_kind_name(checkout.kind), names::checkout_state_name(checkout.state));
            let row = params![
                checkout.id.as_bytes(),
                checkout.user.as_str(),
                checkout.session,
                kind,
                checkout.name,
                checkout.price,
                checkout.currency,
                checkout.amount,
                state,
                int(checkout.created_at),
            ];
            tx.execute(insert, row).map_err(failed).map(drop)
        };
        self.threads.write(begin).await
    }

    async fn open_checkout(&self, user: &AccountId) -> StoreResult<Option<Checkout>> {
        let user = user.as_str().to_owned();
        self.threads.read(move |tx| checkout(tx, "user_id = ?1 AND state = 'open'", &user)).await
    }

    async fn checkout_of_session(&self, session: &str) -> StoreResult<Option<Checkout>> {
        let session = session.to_owned();
        self.threads.read(move |tx| checkout(tx, "session_id = ?1", &session)).await
    }

    async fn set_checkout_session(&self, id: Uuid, session: &str) -> StoreResult<()> {
        let session = session.to_owned();
        let set = move |tx: &Transaction<'_>| {
            let update = "UPDATE checkouts SET session_id = ?2 WHERE id = ?1 AND session_id IS NULL";
            tx.execute(update, params![id.as_bytes(), session]).map_err(failed).map(drop)
        };
        self.threads.write(set).await
    }

    async fn set_checkout_state(&self, id: Uuid, state: CheckoutState) -> StoreResult<()> {
        let set = move |tx: &Transaction<'_>| {
            let update = "UPDATE checkouts SET state = ?2 WHERE id = ?1";
            let row = params![id.as_bytes(), names::checkout_state_name(state)];
            tx.execute(update, row).map_err(failed).map(drop)
        };
        self.threads.write(set).await
    }

    async fn call_key(&self, scope: &str, fingerprint: u64, life_us: u64) -> StoreResult<String> {
        let scope = scope.to_owned();
        self.threads.write(move |tx| call_key(tx, &scope, fingerprint, life_us)).await
    }

    async fn forget_call(&self, scope: &str) -> StoreResult<()> {
        let scope = scope.to_owned();
        let forget = move |tx: &Transaction<'_>| {
            tx.execute("DELETE FROM billing_calls WHERE scope = ?1", [scope]).map_err(failed).map(drop)
        };
        self.threads.write(forget).await
    }

    async fn claim_reconciliation(&self, next_us: u64) -> StoreResult<Option<Option<Micros>>> {
        let claim = move |tx: &Transaction<'_>| {
            let now = common::now();
            let update = "UPDATE billing_reconciliation SET due_at = ?2 WHERE due_at <= ?1 RETURNING done_until";
            let row = params![int(now), int(now.saturating_add(next_us))];
            let read = |row: &Row<'_>| row.get::<_, Option<i64>>(0);
            let claimed = tx.query_row(update, row, read).optional().map_err(failed)?;
            Ok(claimed.map(|until| until.map(uint)))
        };
        self.threads.write(claim).await
    }

    async fn expedite_reconciliation(&self, older_us: u64) -> StoreResult<()> {
        let expedite = move |tx: &Transaction<'_>| {
            let now = common::now();
            let update = "UPDATE billing_reconciliation SET due_at = min(due_at, ?1) WHERE done_until < ?2";
            tx.execute(update, params![int(now), int(now.saturating_sub(older_us))]).map_err(failed).map(drop)
        };
        self.threads.write(expedite).await
    }

    async fn finish_reconciliation(&self, until: Micros) -> StoreResult<()> {
        let finish = move |tx: &Transaction<'_>| {
            tx.execute("UPDATE billing_reconciliation SET done_until = ?1", [int(until)]).map_err(failed).map(drop)
        };
        self.threads.write(finish).await
    }
}

impl SqliteStore {
    async fn user_of(&self, select: &'static str, id: &str) -> StoreResult<Option<AccountId>> {
        let id = id.to_owned();
        Ok(self.threads.read(move |tx| users(tx, select, params![id])).await?.pop())
    }
}

fn users(tx: &Transaction<'_>, sql: &str, values: impl rusqlite::Params) -> StoreResult<Vec<AccountId>> {
    let mut statement = tx.prepare_cached(sql).map_err(failed)?;
    let rows = statement.query_map(values, |row| row.get::<_, String>(0)).map_err(failed)?;
    rows.map(|row| common::account(&row.map_err(failed)?)).collect()
}

fn checkout(tx: &Transaction<'_>, which: &str, value: &str) -> StoreResult<Option<Checkout>> {
    let select = format!(
        "SELECT id, user_id, session_id, kind, name, price_id, currency, amount, state, created_at
        FROM checkouts WHERE {which}"
    );
    let read = |row: &Row<'_>| {
        let (id, user): ([u8; 16], String) = (row.get(0)?, row.get(1)?);
        let (kind, state): (String, String) = (row.get(3)?, row.get(8)?);
        let (session, name, price, currency) = (row.get(2)?, row.get(4)?, row.get(5)?, row.get(6)?);
        let (amount, created_at): (i64, i64) = (row.get(7)?, row.get(9)?);
        Ok(common::account(&user).and_then(|user| {
            let (kind, state) = (names::checkout_kind(&kind)?, names::checkout_state(&state)?);
            let (id, created_at) = (Uuid::from_bytes(id), uint(created_at));
            Ok(Checkout { id, user, session, kind, name, price, currency, amount, state, created_at })
        }))
    };
    tx.query_row(&select, [value], read).optional().map_err(failed)?.transpose()
}

fn call_key(tx: &Transaction<'_>, scope: &str, fingerprint: u64, life_us: u64) -> StoreResult<String> {
    let now = common::now();
    let select = "SELECT key, fingerprint, created_at FROM billing_calls WHERE scope = ?1";
    let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
    if let Some((key, known, at)) = tx.query_row(select, [scope], read).optional().map_err(failed)?
        && from_bits(known) == fingerprint
        && now.saturating_sub(uint(at)) < life_us
    {
        return Ok(key);
    }
    let key = Uuid::now_v7().to_string();
    let insert = "INSERT OR REPLACE INTO billing_calls (scope, key, fingerprint, created_at) VALUES (?1, ?2, ?3, ?4)";
    tx.execute(insert, params![scope, key, bits(fingerprint), int(now)]).map_err(failed)?;
    Ok(key)
}

fn not_known() -> StoreError {
    StoreError::NotFound("the event")
}
