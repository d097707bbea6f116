//! Who has the store to itself.

use async_trait::async_trait;
use rusqlite::params;

use super::super::StoreResult;
use super::super::common::{self, bits, int};
use super::super::owners::Owners;
use super::{SqliteStore, failed};
use crate::ledger::Micros;

#[async_trait]
impl Owners for SqliteStore {
    async fn own(&self, owner: u64, within_us: Micros) -> StoreResult<bool> {
        let upsert = "INSERT INTO ledger_owners (one, process, seen_at) VALUES (1, ?1, ?2)
            ON CONFLICT (one) DO UPDATE SET process = excluded.process, seen_at = excluded.seen_at
            WHERE process = excluded.process OR seen_at <= ?2 - ?3";
        let owned = move |tx: &rusqlite::Transaction<'_>| {
            let row = params![bits(owner), int(common::now()), int(within_us)];
            Ok(tx.execute(upsert, row).map_err(failed)? > 0)
        };
        self.threads.write(owned).await
    }

    async fn disown(&self, owner: u64) -> StoreResult<()> {
        let delete = "DELETE FROM ledger_owners WHERE process = ?1";
        self.threads.write(move |tx| tx.execute(delete, [bits(owner)]).map(drop).map_err(failed)).await
    }
}
