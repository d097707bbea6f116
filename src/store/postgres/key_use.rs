//! When keys were last used, and how much of their budgets.

use async_trait::async_trait;
use deadpool_postgres::{Client, Object, Transaction};
use uuid::Uuid;

use super::super::common::{self, bits};
use super::super::key_use::{HOLD_LOST_US, HOLD_QUIET_US, KeyUse, Share, Shared, Spent, SpentKey, portion};
use super::super::{StoreError, StoreResult};
use super::{PostgresStore, execute, failed, query, query_opt, time, within};
use crate::credits::Credits;
use crate::ledger::Micros;

#[async_trait]
impl KeyUse for PostgresStore {
    async fn touch_keys(&self, keys: &[String], at: Micros) -> StoreResult<()> {
        within!(self, |client| touch(client, keys, at))
    }

    async fn share_budget(&self, asked: Share) -> StoreResult<Shared> {
        within!(self, |client| share(client, &asked))
    }

    async fn settle_shares(&self, spent: &[Spent]) -> StoreResult<Vec<SpentKey>> {
        within!(self, |client| settle_all(client, spent))
    }

    async fn renew_shares(&self, owner: u64) -> StoreResult<()> {
        within!(self, |client| renew(client, owner))
    }

    async fn sweep_shares(&self, limit: u32) -> StoreResult<u64> {
        within!(self, |client| sweep(client, limit))
    }
}

async fn touch(client: &Client, keys: &[String], at: Micros) -> StoreResult<()> {
    // Locked in one order, so that replicas do not wait for each other in a circle.
    let update = "UPDATE api_keys SET last_used_at = $2 WHERE id IN
        (SELECT id FROM api_keys WHERE id = ANY ($1) AND (last_used_at IS NULL OR last_used_at < $2)
        ORDER BY id FOR NO KEY UPDATE)";
    execute(client, update, &[&keys, &time(at)]).await.map(drop)
}

async fn share(client: &mut Client, asked: &Share) -> StoreResult<Shared> {
    let tx = client.transaction().await.map_err(failed)?;
    let select = "SELECT budget - budget_used - budget_held, budget_held FROM api_keys
        WHERE id = $1 AND budget IS NOT NULL AND revoked_at IS NULL FOR NO KEY UPDATE";
    let Some(row) = query_opt(&tx, select, &[&asked.key]).await? else { return Ok(Shared::Unknown) };
    let (left, held): (i64, i64) = (row.get(0), row.get(1));
    let Some(amount) = portion(left, asked) else {
        let credits = |micro: i64| Credits::saturating_from_micro(i128::from(micro.max(0)));
        return Ok(Shared::Exhausted { left: credits(left), held: credits(held) });
    };
    execute(&tx, "UPDATE api_keys SET budget_held = budget_held + $2 WHERE id = $1", &[&asked.key, &amount]).await?;
    let note = "INSERT INTO key_holds AS known (id, key_id, amount, owner, seen_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (id) DO UPDATE SET amount = known.amount + excluded.amount, seen_at = excluded.seen_at";
    execute(&tx, note, &[&asked.id, &asked.key, &amount, &bits(asked.owner), &time(common::now())]).await?;
    tx.commit().await.map_err(failed)?;
    Ok(Shared::Held(Credits::saturating_from_micro(i128::from(amount))))
}

async fn settle_all(client: &mut Client, spent: &[Spent]) -> StoreResult<Vec<SpentKey>> {
    let tx = client.transaction().await.map_err(failed)?;
    let mut spent: Vec<&Spent> = spent.iter().collect();
    // The keys' rows in one order, so that replicas do not wait for each other in a circle.
    spent.sort_by(|one, other| (&one.key, one.id).cmp(&(&other.key, other.id)));
    for one in &spent {
        settle(&tx, &one.key, one.id, one.amount.micro()).await?;
    }
    let keys: Vec<&str> = spent.iter().map(|one| one.key.as_str()).collect();
    let select = "SELECT id, user_id, name, budget FROM api_keys WHERE id = ANY ($1) AND budget_used >= budget";
    let mut found = Vec::new();
    for row in query(&tx, select, &[&keys]).await? {
        let limit: i64 = row.get(3);
        let limit = Credits::saturating_from_micro(i128::from(limit));
        found.push(SpentKey { id: row.get(0), user: common::account(row.get(1))?, name: row.get(2), limit });
    }
    tx.commit().await.map_err(failed)?;
    Ok(found)
}

/// The key's row first, as [`share`] takes it.
async fn settle(tx: &Transaction<'_>, key: &str, id: Uuid, amount: i64) -> StoreResult<()> {
    query_opt(tx, "SELECT FROM api_keys WHERE id = $1 FOR NO KEY UPDATE", &[&key]).await?;
    let take = "DELETE FROM key_holds WHERE id = $1 AND key_id = $2 RETURNING amount";
    let Some(row) = query_opt(tx, take, &[&id, &key]).await? else { return Ok(()) };
    let held: i64 = row.get(0);
    let update = "UPDATE api_keys SET budget_held = budget_held - $2, budget_used = budget_used + $3 WHERE id = $1";
    execute(tx, update, &[&key, &held, &amount]).await.map(drop)
}

async fn renew(client: &Client, owner: u64) -> StoreResult<()> {
    let update = "UPDATE key_holds SET seen_at = $2 WHERE owner = $1";
    execute(client, update, &[&bits(owner), &time(common::now())]).await.map(drop)
}

async fn sweep(client: &mut Client, limit: u32) -> StoreResult<u64> {
    let now = common::now();
    let tx = client.transaction().await.map_err(failed)?;
    let select = "SELECT h.key_id, h.id, u.charged FROM key_holds AS h
        LEFT JOIN usage_logs AS u ON u.request_id = h.id
        WHERE h.seen_at < $1 AND (u.charged IS NOT NULL OR h.seen_at < $2) ORDER BY h.key_id, h.id LIMIT $3";
    let (quiet, lost) = (time(now.saturating_sub(HOLD_QUIET_US)), time(now.saturating_sub(HOLD_LOST_US)));
    let rows = query(&tx, select, &[&quiet, &lost, &i64::from(limit)]).await?;
    for row in &rows {
        let charged: Option<i64> = row.get(2);
        settle(&tx, row.get(0), row.get(1), charged.unwrap_or(0)).await?;
    }
    tx.commit().await.map_err(failed)?;
    u64::try_from(rows.len()).map_err(|_| StoreError::Invalid("the count"))
}
