//! What a ledger emitted, in numbered entries, until the store has it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{AccountId, Event, RecordState};

/// How far a shard's events are in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Raised when a ledger that lost its data begins anew.
    pub epoch: u64,
    /// Number of the last entry written.
    pub counter: u64,
}

/// An entry of a log that cannot be read: what it did to accounts is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub epoch: u64,
    pub counter: u64,
    pub reason: String,
    /// As the log has it.
    pub bytes: Bytes,
}

/// Consecutive entries of one shard's log.
#[derive(Debug, Clone, Default)]
pub struct Entries {
    /// How many.
    pub count: usize,
    /// Number of the last; the cursor's own where there are none.
    pub to: u64,
    /// The head of that entry, by which it is told from another history's (Redis only).
    pub mark: Vec<u8>,
    /// In the order of the log.
    pub events: Vec<Event>,
    /// Last batch number of each session in these entries (Redis only).
    pub sessions: Vec<(u64, u64)>,
    /// Records as they now stand, in the order of their changes.
    pub records: Vec<(AccountId, RecordState)>,
    /// Among them, without any events (Redis only).
    pub unreadable: Vec<Unreadable>,
    /// Events that are not in the store's tables, these included.
    pub backlog: u64,
    /// Age of the oldest of them.
    pub lag: Duration,
    /// Whether more were in the log already when these were read.
    pub more: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("the event log is out of reach: {0}")]
    Unavailable(String),
    /// Entries that the cursor expects are not there, or the log is of another epoch.
    #[error("the event log lost entries: {0}")]
    Lost(String),
}

/// The event log of a ledger, read by the one flusher.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Shards are numbered from 0.
    fn shards(&self) -> u32;

    /// Whether requests wait for the flush (group commit): then the next batch starts as soon as the last is done.
    fn awaited(&self) -> bool;

    /// Entries after `cursor`, oldest first, at most `limit`, and with no more than `limit` events in them unless the
    /// first alone has more. With none there, waits up to `wait` for the first. Reading takes nothing away: an entry stays
    /// until it is acknowledged, and what follows it can be read before.
    async fn read(&self, shard: u32, cursor: Cursor, limit: usize, wait: Duration) -> Result<Entries, LogError>;

    /// Entries up to the cursor are safe in the store: they may be dropped, and whoever waits for them may go on.
    async fn acknowledge(&self, shard: u32, cursor: Cursor) -> Result<(), LogError>;

    /// Entries up to the cursor, acknowledged before, are in the store's tables: accounts load as those left them.
    async fn folded(&self, _shard: u32, _cursor: Cursor) -> Result<(), LogError> {
        Ok(())
    }
}

#[async_trait]
impl<L: EventLog + ?Sized> EventLog for Arc<L> {
    fn shards(&self) -> u32 {
        (**self).shards()
    }

    fn awaited(&self) -> bool {
        (**self).awaited()
    }

    async fn read(&self, shard: u32, cursor: Cursor, limit: usize, wait: Duration) -> Result<Entries, LogError> {
        (**self).read(shard, cursor, limit, wait).await
    }

    async fn acknowledge(&self, shard: u32, cursor: Cursor) -> Result<(), LogError> {
        (**self).acknowledge(shard, cursor).await
    }

    async fn folded(&self, shard: u32, cursor: Cursor) -> Result<(), LogError> {
        (**self).folded(shard, cursor).await
    }
}
