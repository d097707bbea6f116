//! The store's journal → its tables, where the store has one: what the flusher took down at the price of a log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pace::{BACKOFF_MAX, BACKOFF_MIN, FlushError};
use crate::ledger::log::{Cursor, EventLog, LogError};
use crate::store::{FlushBatch, Journal, SharedStore, StoreError};
use crate::telemetry::Metrics;

/// Between two folds: how long a usage row may take to be seen, and how long an account's events gather into one row.
const FOLD_INTERVAL: Duration = Duration::from_millis(750);
/// How long folding the rest may take once the process stops. What is left then is safe: the next start folds it.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Folds one shard's journal.
pub(super) struct Folder<'a, L> {
    log: &'a L,
    store: &'a SharedStore,
    journal: &'a dyn Journal,
    metrics: &'a Metrics,
    shard: u32,
    /// Something was appended since the last look.
    appended: AtomicBool,
}

impl<'a, L: EventLog> Folder<'a, L> {
    /// `None` where the store has no journal.
    pub(super) fn new(log: &'a L, store: &'a SharedStore, metrics: &'a Metrics, shard: u32) -> Option<Folder<'a, L>> {
        let journal = store.journal()?;
        Some(Folder { log, store, journal, metrics, shard, appended: AtomicBool::new(true) })
    }

    /// Writes a batch down, to be folded later.
    pub(super) async fn append(&self, batch: FlushBatch) -> Result<(), FlushError> {
        let appended = self.journal.append(batch).await;
        // Also what failed may have taken effect.
        self.appended.store(true, Ordering::Release);
        Ok(appended?)
    }

    /// Where the journal ends: up to there everything is safe.
    pub(super) async fn end(&self) -> Result<Cursor, FlushError> {
        Ok(self.journal.journal_end(self.shard).await?)
    }

    /// Folds now and then until `drained`: then nothing is appended any more, and the rest is folded.
    pub(super) async fn run(&self, drained: &CancellationToken) {
        let mut backoff = BACKOFF_MIN;
        let mut deadline = None;
        loop {
            let last = drained.is_cancelled();
            let mut wait = FOLD_INTERVAL;
            match self.turn().await {
                Ok(true) => wait = Duration::ZERO,
                Ok(false) if last => return,
                Ok(false) => backoff = BACKOFF_MIN,
                // The store belongs to another process now, as the flusher says; that one folds.
                Err(FlushError::Log(LogError::Lost(_))) => return,
                // Another process folds: what it does need not be done.
                Err(FlushError::Store(StoreError::CursorMoved)) => wait = BACKOFF_MIN,
                Err(error) => {
                    let wait_ms = backoff.as_millis() as u64;
                    tracing::warn!(shard = self.shard, %error, wait_ms, "the journal could not be folded");
                    wait = backoff;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
            if last && Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + DRAIN_LIMIT) {
                tracing::error!(
                    shard = self.shard,
                    "stopping with a journal that is not folded; the next start folds it"
                );
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = drained.cancelled(), if !last => {}
            }
        }
    }

    /// Folds what is there, at most as much as one fold takes. Whether there may be more.
    async fn turn(&self) -> Result<bool, FlushError> {
        if !self.appended.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        let more = self.fold().await;
        if !matches!(more, Ok(false)) {
            self.appended.store(true, Ordering::Release);
        }
        more
    }

    async fn fold(&self) -> Result<bool, FlushError> {
        let Some(folded) = self.journal.fold(self.shard).await? else {
            // Where the answer to an earlier fold was lost, the cursor tells what it did.
            let cursor = self.store.cursor(self.shard).await?;
            self.log.folded(self.shard, cursor).await?;
            return Ok(false);
        };
        self.metrics.flushed_rows.inc_by(folded.usage_rows);
        self.metrics.dead_letters.inc_by(folded.dead_letters);
        self.log.folded(self.shard, folded.to).await?;
        Ok(folded.full)
    }
}
