//! Ledger → store: one flusher a process reads each shard's event log on from the store's cursor and writes it down:
//! into the store's tables, or, where requests wait for it and the store has one, into its journal, which is folded into
//! the tables a moment later.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fold::Folder;
use super::pace::{BACKOFF_MAX, BACKOFF_MIN, FlushError};
use crate::config;
use crate::ledger::log::{Cursor, Entries, EventLog, LogError};
use crate::store::{FlushBatch, SharedStore, StoreError, StoreResult, journal};
use crate::telemetry::Metrics;

/// The least time between the starts of two group commits. Each costs about as much as writing down fifty requests does,
/// most of it for the sync.
const COMMIT_INTERVAL: Duration = Duration::from_millis(4);
/// How long one look at an empty log that wakes its reader may last.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// How long the log may take to drain once the process stops. What is left then is still in the log where that is
/// durable (Redis); where it is not, the store was out of reach all the while.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// How often another process may move the cursor while this one takes the store over.
const TAKE_OVER_ATTEMPTS: usize = 16;

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
    let backlogs = Backlogs::new(log.shards(), &metrics);
    let flusher = Flusher { log: &log, store: &store, settings, metrics: &metrics, backlogs, stop: &stop };
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

/// What came of one turn.
enum Turn {
    Empty,
    /// Something was written, and nothing more was there.
    CaughtUp,
    Full,
}

/// What waits in each shard's log; the metrics tell the sum of the backlogs and the longest lag.
struct Backlogs<'a> {
    /// Entries, and the age of the oldest in milliseconds.
    shards: Vec<(AtomicI64, AtomicI64)>,
    metrics: &'a Metrics,
}

impl Backlogs<'_> {
    fn new(shards: u32, metrics: &Metrics) -> Backlogs<'_> {
        Backlogs { shards: (0..shards).map(|_| Default::default()).collect(), metrics }
    }

    fn note(&self, shard: u32, entries: &Entries) {
        if let Some((backlog, lag)) = self.shards.get(shard as usize) {
            backlog.store(i64::try_from(entries.backlog).unwrap_or(i64::MAX), Ordering::Relaxed);
            lag.store(i64::try_from(entries.lag.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
        }
        let backlogs = self.shards.iter().map(|(backlog, _)| backlog.load(Ordering::Relaxed));
        let lags = self.shards.iter().map(|(_, lag)| lag.load(Ordering::Relaxed));
        self.metrics.outbox_backlog.set(backlogs.fold(0, i64::saturating_add));
        self.metrics.outbox_lag_ms.set(lags.max().unwrap_or(0));
    }
}

struct Flusher<'a, L> {
    log: &'a L,
    store: &'a SharedStore,
    settings: &'a config::Store,
    metrics: &'a Metrics,
    backlogs: Backlogs<'a>,
    stop: &'a CancellationToken,
}

/// Where one shard's flusher stands.
#[derive(Default)]
struct Place {
    /// The store's cursor. `None`: it must be asked.
    cursor: Option<Cursor>,
    /// What was read behind the last batch while that was written, and from where.
    ahead: Option<(Cursor, Entries)>,
    /// The cursor as it was last known, for figures only.
    last: Option<Cursor>,
}

impl<L: EventLog> Flusher<'_, L> {
    async fn run(&self, shard: u32, folder: Option<&Folder<'_, L>>) {
        let mut place = Place::default();
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
            match self.turn(shard, folder, &mut place, limit).await {
                Ok(Turn::Empty) if stopping => return,
                // Where others go on writing the log never runs dry: what was there at the stop is in the store.
                Ok(Turn::CaughtUp) if stopping && !self.log.awaited() => return,
                Ok(_) => {
                    backoff = BACKOFF_MIN;
                    limit = limit.saturating_mul(2).min(most);
                }
                Err(FlushError::Store(StoreError::CursorMoved)) => {
                    // Another replica's flusher is at work: it is left to it for a moment.
                    place = Place::default();
                    tokio::time::sleep(BACKOFF_MIN).await;
                }
                Err(FlushError::Log(error @ LogError::Lost(_))) if self.log.awaited() => {
                    tracing::error!(shard, %error, "the store belongs to another process now: this one must end");
                    return;
                }
                Err(error) => {
                    tracing::warn!(shard, %error, wait_ms = backoff.as_millis() as u64, "events could not be flushed");
                    // Whether a failed commit took effect is not known: the store's own cursor tells.
                    place = Place { last: place.last, ..Place::default() };
                    self.look(shard, &place).await;
                    // A batch that is too much for a slow store would be too much each time.
                    limit = (limit / 2).max(1);
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// Reads, writes and acknowledges at most `limit` entries and about as many events. While they are written the next
    /// ones are read, where more are there and nobody waits for the commit.
    async fn turn(
        &self,
        shard: u32,
        folder: Option<&Folder<'_, L>>,
        place: &mut Place,
        limit: usize,
    ) -> Result<Turn, FlushError> {
        let started = Instant::now();
        let from = match place.cursor {
            Some(cursor) => cursor,
            None => {
                let cursor = match folder {
                    Some(folder) => folder.end().await?,
                    None => self.store.cursor(shard).await?,
                };
                // What an unknown commit or another flusher wrote need not be written again.
                self.acknowledge(shard, folder, cursor).await?;
                *place.cursor.insert(cursor)
            }
        };
        place.last = Some(from);
        let entries = match place.ahead.take() {
            Some((behind, entries)) if behind == from => entries,
            _ => self.read(shard, from, limit).await?,
        };
        self.backlogs.note(shard, &entries);
        if entries.count == 0 {
            return Ok(Turn::Empty);
        }
        let full = entries.more || entries.count >= limit;
        let Entries { to, mark, events, sessions, records, unreadable, more, .. } = entries;
        let cursor = Cursor { epoch: from.epoch, counter: to };
        let write = self.write(folder, FlushBatch { shard, from, to, mark, events, sessions, records, unreadable });
        if more && !self.log.awaited() {
            let (written, ahead) = tokio::join!(write, self.log.read(shard, cursor, limit, Duration::ZERO));
            // A read that failed is done again, and then it counts.
            place.ahead = ahead.ok().filter(|entries| entries.count > 0).map(|entries| (cursor, entries));
            written?;
        } else {
            write.await?;
        }
        place.cursor = Some(cursor);
        self.acknowledge(shard, folder, cursor).await?;
        self.pace(!full, started).await;
        Ok(if full { Turn::Full } else { Turn::CaughtUp })
    }

    async fn write(&self, folder: Option<&Folder<'_, L>>, batch: FlushBatch) -> Result<(), FlushError> {
        if let Some(folder) = folder {
            return folder.append(batch).await;
        }
        let flushed = self.store.flush(batch).await?;
        self.metrics.flushed_rows.inc_by(flushed.usage_rows);
        self.metrics.dead_letters.inc_by(flushed.dead_letters);
        Ok(())
    }

    /// How much waits, while the store takes nothing.
    async fn look(&self, shard: u32, place: &Place) {
        if let Some(cursor) = place.last.filter(|_| !self.log.awaited())
            && let Ok(entries) = self.log.read(shard, cursor, 1, Duration::ZERO).await
        {
            self.backlogs.note(shard, &entries);
        }
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
