//! Ledger → store: one flusher a process reads each shard's event log on from the store's cursor and writes it down:
//! into the store's tables, or, where requests wait for it and the store has one, into its journal, which is folded into
//! the tables a moment later.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fold::Folder;
use crate::config;
use crate::ledger::log::{Cursor, Entries, EventLog, LogError};
use crate::store::{FlushBatch, SharedStore, StoreError, StoreResult, journal};
use crate::telemetry::Metrics;

/// The first wait after a failure; it doubles up to [`BACKOFF_MAX`].
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(20);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// The least time between the starts of two group commits.
const COMMIT_INTERVAL: Duration = Duration::from_millis(2);
/// How long one look at an empty log that wakes its reader may last.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// How long the log may take to drain once the process stops. What is left then is still in the log where that is
/// durable (Redis); where it is not, the store was out of reach all the while.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// How often another process may move the cursor while this one takes the store over.
const TAKE_OVER_ATTEMPTS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(super) enum FlushError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Begins a new epoch for a ledger that has its store alone. A process that had the store before, and may still run
/// somewhere, can write there no more: of two embedded ledgers over one Postgres each would spend the whole balance.
pub async fn take_over(store: &SharedStore) -> StoreResult<()> {
    for _ in 0..TAKE_OVER_ATTEMPTS {
        journal::fold_rest(store).await?;
        match store.raise_epoch(0, store.cursor(0).await?).await {
            Err(StoreError::CursorMoved) => {}
            raised => return raised.map(drop),
        }
    }
    Err(StoreError::CursorMoved)
}

/// Flushes all shards until `stop`, then drains them. Errors are logged and tried again, with growing waits; ends by
/// itself only where another process has taken the store over.
pub async fn run(
    log: impl EventLog,
    store: SharedStore,
    settings: &config::Store,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let flusher = Flusher { log: &log, store: &store, settings, metrics: &metrics, stop: &stop };
    let shards = (0..log.shards()).map(async |shard| {
        let folder = if log.awaited() { Folder::new(&log, &store, &metrics, shard) } else { None };
        let Some(folder) = &folder else { return flusher.run(shard, None).await };
        let drained = CancellationToken::new();
        let flush = async {
            flusher.run(shard, Some(folder)).await;
            drained.cancel();
        };
        tokio::join!(flush, folder.run(&drained));
    });
    futures_util::future::join_all(shards).await;
}

struct Flusher<'a, L> {
    log: &'a L,
    store: &'a SharedStore,
    settings: &'a config::Store,
    metrics: &'a Metrics,
    stop: &'a CancellationToken,
}

impl<L: EventLog> Flusher<'_, L> {
    async fn run(&self, shard: u32, folder: Option<&Folder<'_, L>>) {
        let mut cursor = None;
        let mut backoff = BACKOFF_MIN;
        let mut deadline = None;
        let most = self.settings.flush_batch.max(1);
        let mut limit = most;
        loop {
            let stopping = self.stop.is_cancelled();
            if stopping {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN_LIMIT);
                if Instant::now() >= deadline {
                    tracing::error!(shard, "stopping with events that the store did not take");
                    return;
                }
            }
            match self.turn(shard, folder, &mut cursor, limit).await {
                Ok(0) if stopping => return,
                // Where others go on writing the log never runs dry: what was there at the stop is in the store.
                Ok(count) if stopping && count < limit && !self.log.awaited() => return,
                Ok(_) => {
                    backoff = BACKOFF_MIN;
                    limit = limit.saturating_mul(2).min(most);
                }
                Err(FlushError::Store(StoreError::CursorMoved)) => {
                    // Another replica's flusher is at work: it is left to it for a moment.
                    cursor = None;
                    tokio::time::sleep(BACKOFF_MIN).await;
                }
                Err(FlushError::Log(error @ LogError::Lost(_))) if self.log.awaited() => {
                    tracing::error!(shard, %error, "the store belongs to another process now: this one must end");
                    return;
                }
                Err(error) => {
                    tracing::warn!(shard, %error, wait_ms = backoff.as_millis() as u64, "events could not be flushed");
                    // Whether a failed commit took effect is not known: the store's own cursor tells.
                    cursor = None;
                    // A batch that is too much for a slow store would be too much each time.
                    limit = (limit / 2).max(1);
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// Reads, writes and acknowledges at most `limit` entries. Answers how many they were.
    async fn turn(
        &self,
        shard: u32,
        folder: Option<&Folder<'_, L>>,
        known: &mut Option<Cursor>,
        limit: usize,
    ) -> Result<usize, FlushError> {
        let started = Instant::now();
        let from = match *known {
            Some(cursor) => cursor,
            None => {
                let cursor = match folder {
                    Some(folder) => folder.end().await?,
                    None => self.store.cursor(shard).await?,
                };
                // What an unknown commit or another flusher wrote need not be written again.
                self.acknowledge(shard, folder, cursor).await?;
                *known.insert(cursor)
            }
        };
        let entries = self.read(shard, from, limit).await?;
        self.metrics.outbox_backlog.set(i64::try_from(entries.backlog).unwrap_or(i64::MAX));
        self.metrics.outbox_lag_ms.set(i64::try_from(entries.lag.as_millis()).unwrap_or(i64::MAX));
        let count = entries.count;
        if count == 0 {
            return Ok(0);
        }
        let Entries { to, events, sessions, records, .. } = entries;
        let batch = FlushBatch { shard, from, to, events, sessions, records };
        match folder {
            Some(folder) => folder.append(batch).await?,
            None => {
                let flushed = self.store.flush(batch).await?;
                self.metrics.flushed_rows.inc_by(flushed.usage_rows);
                self.metrics.dead_letters.inc_by(flushed.dead_letters);
            }
        }
        let cursor = Cursor { epoch: from.epoch, counter: to };
        *known = Some(cursor);
        self.acknowledge(shard, folder, cursor).await?;
        self.pace(count < limit, started).await;
        Ok(count)
    }

    /// What was written into the tables needs no folding.
    async fn acknowledge(&self, shard: u32, folder: Option<&Folder<'_, L>>, cursor: Cursor) -> Result<(), FlushError> {
        self.log.acknowledge(shard, cursor).await?;
        if folder.is_none() {
            self.log.folded(shard, cursor).await?;
        }
        Ok(())
    }

    async fn read(&self, shard: u32, from: Cursor, limit: usize) -> Result<Entries, FlushError> {
        let wait = match self.stop.is_cancelled() {
            true => Duration::ZERO,
            // An awaited log wakes its reader.
            false if self.log.awaited() => IDLE_WAIT,
            false => self.interval(),
        };
        let read = self.log.read(shard, from, limit, wait);
        tokio::select! {
            entries = read => Ok(entries?),
            () = self.stop.cancelled(), if !self.stop.is_cancelled() => {
                Ok(self.log.read(shard, from, limit, Duration::ZERO).await?)
            }
        }
    }

    /// Lets a busy log gather a batch: a commit an event would cost more than the event. Full batches follow each
    /// other at once, and a quiet log waits for nothing.
    async fn pace(&self, caught_up: bool, started: Instant) {
        if caught_up && !self.stop.is_cancelled() {
            let interval = if self.log.awaited() { COMMIT_INTERVAL } else { self.interval() };
            tokio::time::sleep_until(started + interval).await;
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.settings.flush_interval_ms.max(1))
    }
}
