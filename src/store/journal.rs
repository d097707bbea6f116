//! A store that takes events down at the price of a log, and brings them into its tables a moment later.
//!
//! [`Journal::append`] makes a batch durable in one small write, which is what a settle waits for. [`Journal::fold`]
//! writes what stands in the journal into the tables: usage rows in bulk, an account's row once for all its events.
//! The cursor moves with the fold, and a fold that was cut off goes on where it was, so each event takes effect once.
//! Until they are folded events are in no table: an account is loaded only once everything of it is.

use async_trait::async_trait;

use super::{Cursor, FlushBatch, SharedStore, StoreError, StoreResult};

/// How often others may fold or append while [`fold_rest`] does.
const ATTEMPTS: usize = 16;

/// What came of a fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Folded {
    /// Everything up to here is in the tables.
    pub to: Cursor,
    pub usage_rows: u64,
    pub dead_letters: u64,
    /// It took as much as one fold takes: more may stand in the journal.
    pub full: bool,
}

#[async_trait]
pub trait Journal: Send + Sync {
    /// Where the journal ends, which is the cursor where it is empty.
    async fn journal_end(&self, shard: u32) -> StoreResult<Cursor>;

    /// Writes a batch down; its records go to their table at once. When this answers, the batch survives the process and
    /// the machine. `CursorMoved` unless the journal ends at `batch.from`.
    async fn append(&self, batch: FlushBatch) -> StoreResult<()>;

    /// Brings events from the journal into the tables, as [`super::Store::flush`] would have, oldest first and a bounded
    /// number. Takes short transactions, between which others write. `None` where the journal is empty; `CursorMoved`
    /// where another fold of the shard is at work.
    async fn fold(&self, shard: u32) -> StoreResult<Option<Folded>>;
}

/// Folds all that an embedded ledger left: before anything reads accounts.
pub async fn fold_rest(store: &SharedStore) -> StoreResult<()> {
    let Some(journal) = store.journal() else { return Ok(()) };
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        match journal.fold(0).await {
            Ok(None) => return Ok(()),
            Ok(Some(folded)) if folded.full => {}
            Ok(Some(_)) | Err(StoreError::CursorMoved) => attempts += 1,
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::CursorMoved)
}
