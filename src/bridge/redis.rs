//! The event logs of the Redis ledger as one [`EventLog`]. A log that lost entries is opened anew.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::ledger::log::{Entries, EventLog, LogError};
use crate::ledger::redis::log::{self as redis_log, Log};
use crate::ledger::redis::wire::decode::Entry;
use crate::ledger::redis::{Position, RedisLedger};
use crate::store::{Cursor, SharedStore};

/// Entries in one reply of Redis: their size is known only once they are there.
const READ_MAX: usize = 1_024;
/// Events that an entry is taken to have until some were seen: many, so that the first reply is not too large.
const EVENTS_PER_ENTRY: usize = 32;

/// The event logs of all shards.
pub struct RedisEvents {
    shards: Vec<Mutex<Shard>>,
    store: SharedStore,
}

struct Shard {
    log: Log,
    /// As the last read found, rounded up.
    events_per_entry: usize,
}

impl RedisEvents {
    pub fn new(ledger: &RedisLedger, store: SharedStore) -> RedisEvents {
        RedisEvents { shards: (0..ledger.shards()).map(|shard| Shard::new(ledger.log(shard))).collect(), store }
    }

    fn shard(&self, shard: u32) -> Result<&Mutex<Shard>, LogError> {
        let log = self.shards.get(shard as usize);
        log.ok_or_else(|| LogError::Unavailable(format!("there is no shard {shard}")))
    }

    /// Opens the shard anew, if it is the log that lost entries: a cursor that another flusher moved is no loss.
    async fn judge(&self, log: &mut Log, cursor: Cursor, error: redis_log::LogError) -> LogError {
        if let redis_log::LogError::Lost(_) | redis_log::LogError::Hole { .. } = error
            && let Ok(standing) = self.store.standing(log.shard()).await
            && standing.cursor == cursor
        {
            let lost = Position { epoch: cursor.epoch, counter: cursor.counter };
            if let Err(error) = log.reopen(lost).await {
                tracing::warn!(shard = log.shard(), %error, "the shard could not be opened anew yet");
            }
        }
        error.into()
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
        let mut read = shard.read(after, limit).await;
        if read.as_ref().is_ok_and(|(entries, _)| entries.is_empty()) && !wait.is_zero() {
            tokio::time::sleep(wait).await;
            read = shard.read(after, limit).await;
        }
        let (read, more) = match read {
            Ok(read) => read,
            Err(error) => return Err(self.judge(&mut shard.log, cursor, error).await),
        };
        let to = read.last().map_or(cursor.counter, |entry| entry.counter);
        // A page that is not full is all there is; only behind a full one the end must be asked for.
        let behind = if more { shard.log.position().await?.counter.saturating_sub(to) } else { 0 };
        let lag = read.first().map_or(Duration::ZERO, age);
        let mut entries = Entries { count: read.len(), to, lag, more: behind > 0, ..Entries::default() };
        for entry in read {
            entries.mark = entry.mark;
            if entry.number > 0 {
                entries.sessions.push((entry.session.0, entry.number));
            }
            entries.unreadable.extend(entry.unreadable);
            entries.events.extend(entry.events);
            entries.records.extend(entry.records);
        }
        entries.backlog = behind.saturating_add(entries.count as u64);
        Ok(entries)
    }

    async fn acknowledge(&self, shard: u32, cursor: Cursor) -> Result<(), LogError> {
        let to = Position { epoch: cursor.epoch, counter: cursor.counter };
        let mut shard = self.shard(shard)?.lock().await;
        match shard.log.flushed(to).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.judge(&mut shard.log, cursor, error).await),
        }
    }
}

impl Shard {
    fn new(log: Log) -> Mutex<Shard> {
        Mutex::new(Shard { log, events_per_entry: EVENTS_PER_ENTRY })
    }

    /// Entries with at most `limit` events, or a single one with more; and whether there may be more of them.
    async fn read(&mut self, after: Position, limit: usize) -> Result<(Vec<Entry>, bool), redis_log::LogError> {
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
    if entry.unreadable.is_some() {
        return Duration::ZERO;
    }
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
