//! When keys were last used, and how much of their budgets.

use std::collections::BTreeSet;

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::super::StoreResult;
use super::super::common::{self, bits, int, uint};
use super::super::key_use::{HOLD_LOST_US, HOLD_QUIET_US, KeyUse, Share, Shared, Spent, SpentKey, portion};
use super::{SqliteStore, failed};
use crate::credits::Credits;
use crate::ledger::Micros;

#[async_trait]
impl KeyUse for SqliteStore {
    async fn touch_keys(&self, keys: &[String], at: Micros) -> StoreResult<()> {
        let keys = keys.to_vec();
        self.threads.write(move |tx| touch(tx, &keys, at)).await
    }

    async fn share_budget(&self, asked: Share) -> StoreResult<Shared> {
        // A sync for each request would make every settle of this replica wait. A power cut forgets what requests in
        // flight held of their keys' budgets, as it ends the requests.
        self.threads.write_relaxed(move |tx| share(tx, &asked)).await
    }

    async fn settle_shares(&self, spent: &[Spent]) -> StoreResult<Vec<SpentKey>> {
        let spent = spent.to_vec();
        self.threads.write(move |tx| settle_all(tx, &spent)).await
    }

    async fn renew_shares(&self, owner: u64) -> StoreResult<()> {
        let renew = move |tx: &Transaction<'_>| {
            let update = "UPDATE key_holds SET seen_at = ?2 WHERE owner = ?1";
            tx.execute(update, params![bits(owner), int(common::now())]).map_err(failed).map(drop)
        };
        self.threads.write(renew).await
    }

    async fn sweep_shares(&self, limit: u32) -> StoreResult<u64> {
        self.threads.write(move |tx| sweep(tx, limit)).await
    }
}

fn touch(tx: &Transaction<'_>, keys: &[String], at: Micros) -> StoreResult<()> {
    let update = "UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at < ?2)";
    let mut statement = tx.prepare_cached(update).map_err(failed)?;
    for key in keys {
        statement.execute(params![key, int(at)]).map_err(failed)?;
    }
    Ok(())
}

fn share(tx: &Transaction<'_>, asked: &Share) -> StoreResult<Shared> {
    let select = "SELECT budget - budget_used - budget_held, budget_held FROM api_keys
        WHERE id = ?1 AND budget IS NOT NULL AND revoked_at IS NULL";
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let Some((left, held)) = tx.query_row(select, [&asked.key], read).optional().map_err(failed)? else {
        return Ok(Shared::Unknown);
    };
    let Some(amount) = portion(left, asked) else {
        let credits = |micro: i64| Credits::saturating_from_micro(i128::from(micro.max(0)));
        return Ok(Shared::Exhausted { left: credits(left), held: credits(held) });
    };
    let take = "UPDATE api_keys SET budget_held = budget_held + ?2 WHERE id = ?1";
    tx.execute(take, params![asked.key, amount]).map_err(failed)?;
    let note = "INSERT INTO key_holds (id, key_id, amount, owner, seen_at) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (id) DO UPDATE SET amount = amount + excluded.amount, seen_at = excluded.seen_at";
    let row = params![asked.id.as_bytes(), asked.key, amount, bits(asked.owner), int(common::now())];
    tx.execute(note, row).map_err(failed)?;
    Ok(Shared::Held(Credits::saturating_from_micro(i128::from(amount))))
}

fn settle_all(tx: &Transaction<'_>, spent: &[Spent]) -> StoreResult<Vec<SpentKey>> {
    for one in spent {
        settle(tx, one.id, one.amount.micro())?;
    }
    let keys: BTreeSet<&str> = spent.iter().map(|one| one.key.as_str()).collect();
    let select = "SELECT user_id, name, budget FROM api_keys WHERE id = ?1 AND budget_used >= budget";
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let mut found = Vec::new();
    for key in keys {
        let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?));
        let Some((user, name, limit)) = statement.query_row([key], read).optional().map_err(failed)? else { continue };
        let limit = Credits::saturating_from_micro(i128::from(limit));
        found.push(SpentKey { id: key.to_owned(), user: common::account(&user)?, name, limit });
    }
    Ok(found)
}

fn settle(tx: &Transaction<'_>, id: Uuid, amount: i64) -> StoreResult<()> {
    let take = "DELETE FROM key_holds WHERE id = ?1 RETURNING key_id, amount";
    let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?));
    let Some((key, held)) = tx.query_row(take, [id.as_bytes()], read).optional().map_err(failed)? else {
        return Ok(());
    };
    let update = "UPDATE api_keys SET budget_held = budget_held - ?2, budget_used = budget_used + ?3 WHERE id = ?1";
    tx.execute(update, params![key, held, amount]).map_err(failed).map(drop)
}

fn sweep(tx: &Transaction<'_>, limit: u32) -> StoreResult<u64> {
    let now = common::now();
    let select =
        "SELECT h.id, h.seen_at, u.charged FROM key_holds AS h LEFT JOIN usage_logs AS u ON u.request_id = h.id
        WHERE h.seen_at < ?1 AND (u.charged IS NOT NULL OR h.seen_at < ?2) ORDER BY h.seen_at LIMIT ?3";
    let quiet = int(now.saturating_sub(HOLD_QUIET_US));
    let lost = int(now.saturating_sub(HOLD_LOST_US));
    let mut statement = tx.prepare_cached(select).map_err(failed)?;
    let read = |row: &Row<'_>| Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, Option<i64>>(2)?));
    let rows = statement.query_map(params![quiet, lost, limit], read).map_err(failed)?;
    let found: Vec<([u8; 16], Option<i64>)> = rows.collect::<Result<_, _>>().map_err(failed)?;
    for (id, charged) in &found {
        settle(tx, Uuid::from_bytes(*id), charged.unwrap_or(0))?;
    }
    Ok(uint(i64::try_from(found.len()).unwrap_or(0)))
}
