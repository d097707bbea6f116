//! The Redis ledger's side of the bridge: its event logs as one [`EventLog`], and its epochs in the store.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::ledger::LedgerError;
use crate::ledger::log::{Entries, EventLog, LogError};
use crate::ledger::redis::log::{self as redis_log, Log};
use crate::ledger::redis::wire::decode::Entry;
use crate::ledger::redis::{Epochs, Position, RedisLedger};
use crate::store::{Cursor, SharedStore, StoreError};

/// Entries in one reply of Redis: their size is known only once they are there.
const READ_MAX: usize = 1_024;
/// Events that an entry is taken to have until some were seen: many, so that the first reply is not too large.
const EVENTS_PER_ENTRY: usize = 32;

/// The event logs of all shards.
pub struct RedisEvents {
    shards: Vec<Mutex<Shard>>,
}

struct Shard {
    log: Log,
    /// As the last read found, rounded up.
    events_per_entry: usize,
}

impl RedisEvents {
    pub fn new(ledger: &RedisLedger) -> RedisEvents {
        RedisEvents { shards: (0..ledger.shards()).map(|shard| Shard::new(ledger.log(shard))).collect() }
    }

    fn shard(&self, shard: u32) -> Result<&Mutex<Shard>, LogError> {
        let log = self.shards.get(shard as usize);
        log.ok_or_else(|| LogError::Unavailable(format!("there is no shard {shard}")))
    }
}

#[async_trait]
impl EventLog for RedisEvents {
    fn shards(&self) -> u32 {
        u32::try_from(self.shards.len()).unwrap_or(u32::MAX)
    }

    /// Redis keeps the events: nobody waits for the store.
    fn awaited(&self) -> bool {
        false
    }

    async fn read(&self, shard: u32, cursor: Cursor, limit: usize, wait: Duration) -> Result<Entries, LogError> {
        let mut shard = self.shard(shard)?.lock().await;
        let after = Position { epoch: cursor.epoch, counter: cursor.counter };
        let (mut read, mut more) = shard.read(after, limit).await?;
        if read.is_empty() && !wait.is_zero() {
            tokio::time::sleep(wait).await;
            (read, more) = shard.read(after, limit).await?;
        }
        let to = read.last().map_or(cursor.counter, |entry| entry.counter);
        // A page that is not full is all there is; only behind a full one the end must be asked for.
        let behind = if more { shard.log.position().await?.counter.saturating_sub(to) } else { 0 };
        let lag = read.first().map_or(Duration::ZERO, age);
        let mut entries = Entries { count: read.len(), to, lag, more: behind > 0, ..Entries::default() };
        for entry in read {
            entries.sessions.push((entry.session.0, entry.number));
            entries.events.extend(entry.events);
        }
        entries.backlog = behind.saturating_add(entries.count as u64);
        Ok(entries)
    }

    async fn acknowledge(&self, shard: u32, cursor: Cursor) -> Result<(), LogError> {
        let to = Position { epoch: cursor.epoch, counter: cursor.counter };
        Ok(self.shard(shard)?.lock().await.log.flushed(to).await?)
    }
}

impl Shard {
    fn new(log: Log) -> Mutex<Shard> {
        Mutex::new(Shard { log, events_per_entry: EVENTS_PER_ENTRY })
    }

    /// Entries with at most `limit` events, or a single one with more; and whether there may be more of them.
    async fn read(&mut self, after: Position, limit: usize) -> Result<(Vec<Entry>, bool), LogError> {
        let asked = (limit / self.events_per_entry).clamp(1, READ_MAX);
        let mut read = self.log.read(after, asked).await?;
        let full = read.len() >= asked;
        let mut events = 0;
        let fitting = read.iter().take_while(|entry| {
            events += entry.events.len();
            events <= limit
        });
        let kept = fitting.count().max(1).min(read.len());
        let cut = kept < read.len();
        read.truncate(kept);
        if !read.is_empty() {
            let events: usize = read.iter().map(|entry| entry.events.len()).sum();
            self.events_per_entry = events.div_ceil(read.len()).max(1);
        }
        Ok((read, full || cut))
    }
}

fn age(entry: &Entry) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_micros(entry.at))
}

impl From<redis_log::LogError> for LogError {
    fn from(error: redis_log::LogError) -> LogError {
        match error {
            redis_log::LogError::Unavailable(_) => LogError::Unavailable(error.to_string()),
            _ => LogError::Lost(error.to_string()),
        }
    }
}

/// Epochs as the store's cursors tell them.
pub struct StoreEpochs {
    store: SharedStore,
}

impl StoreEpochs {
    pub fn new(store: SharedStore) -> Arc<StoreEpochs> {
        Arc::new(StoreEpochs { store })
    }
}

#[async_trait]
impl Epochs for StoreEpochs {
    async fn position(&self, shard: u32) -> Result<Position, LedgerError> {
        self.store.cursor(shard).await.map(position).map_err(unavailable)
    }

    async fn raise(&self, shard: u32, from: Position) -> Result<Position, LedgerError> {
        let from = Cursor { epoch: from.epoch, counter: from.counter };
        match self.store.raise_epoch(shard, from).await {
            Ok(cursor) => Ok(position(cursor)),
            // Another replica was first.
            Err(StoreError::CursorMoved) => self.position(shard).await,
            Err(error) => Err(unavailable(error)),
        }
    }
}

fn position(cursor: Cursor) -> Position {
    Position { epoch: cursor.epoch, counter: cursor.counter }
}

fn unavailable(error: StoreError) -> LedgerError {
    tracing::warn!(%error, "the ledger's cursor could not be read or moved");
    LedgerError::Unavailable
}
