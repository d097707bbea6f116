//! Who has the store to itself.

use async_trait::async_trait;
use deadpool_postgres::{Client, Object};

use super::super::common::bits;
use super::super::owners::Owners;
use super::super::{StoreError, StoreResult};
use super::{PostgresStore, execute, within};
use crate::ledger::Micros;

async fn own(client: &Client, owner: u64, within_us: Micros) -> StoreResult<bool> {
    let upsert = "INSERT INTO ledger_owners AS o (process, seen_at) VALUES ($1, clock_timestamp())
        ON CONFLICT (one) DO UPDATE SET process = excluded.process, seen_at = excluded.seen_at
        WHERE o.process = excluded.process OR o.seen_at <= clock_timestamp() - make_interval(secs => $2)";
    let seconds = std::time::Duration::from_micros(within_us).as_secs_f64();
    Ok(execute(client, upsert, &[&bits(owner), &seconds]).await? > 0)
}

#[async_trait]
impl Owners for PostgresStore {
    async fn own(&self, owner: u64, within_us: Micros) -> StoreResult<bool> {
        within!(self, |client| own(client, owner, within_us))
    }

    async fn disown(&self, owner: u64) -> StoreResult<()> {
        within!(self, |client| async {
            execute(client, "DELETE FROM ledger_owners WHERE process = $1", &[&bits(owner)]).await.map(drop)
        })
    }
}
