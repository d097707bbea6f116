//! Events on their way to the store, and who waits for them there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use super::Clock;
use super::mailbox::{self, Mailbox};
use crate::ledger::log::{Cursor, Entries, EventLog, LogError};
use crate::ledger::{AccountId, Answer, Event, LedgerError, Micros, RecordState};
use crate::telemetry::Metrics;

/// Number of an entry of this process, from 1; 0: before all.
pub(super) type Position = u64;

/// What an entry takes beside its events' usage, in bytes.
const ENTRY_BYTES: u64 = 256;

/// An answer that leaves once what it says is in the store.
pub(super) struct Waiter {
    pub sender: oneshot::Sender<Result<Answer, LedgerError>>,
    pub answer: Answer,
    /// Of the connection that asked.
    pub mailbox: Arc<Mailbox>,
}

impl Waiter {
    /// Hands the answer over. Whoever asked may have left: the settle stands all the same.
    pub(super) fn answer(self) {
        drop(self.sender.send(Ok(self.answer)));
    }
}

/// The event log of the embedded ledger, in memory. Entries leave it once the store has them.
///
/// What it may hold is bounded by the ledger, which takes no new work past `max_backlog` events here and unfolded in the
/// store, nor past a kilobyte for each of so many; beyond that only the settles of holds that are there already come in, and billing changes.
pub struct Outbox {
    state: Mutex<State>,
    filled: Notify,
    /// Events here. Beside the lock, so that every reserve can look.
    backlog: AtomicU64,
    /// When the oldest entry was made, by the ledger's clock; 0: none.
    oldest: AtomicU64,
    /// Up to here everything is safe in the store.
    acknowledged: AtomicU64,
    /// Up to here everything is in the store's tables.
    folded: AtomicU64,
    /// Events that are safe in the store and not in its tables.
    unfolded: AtomicU64,
    /// About what all of that takes: in memory, and then in the store's journal.
    bytes: AtomicU64,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    /// Each acknowledged group of entries that is not folded.
    unfolded: VecDeque<Group>,
    /// Position of the last entry made.
    last: Position,
    /// Where the store's cursor stood when this process began: an entry's number is its position after that.
    base: Option<Cursor>,
    /// When the batch under way was read.
    read_at: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Group {
    /// Position of its last entry.
    last: Position,
    events: u64,
    bytes: u64,
}

struct Entry {
    at: Micros,
    events: Vec<Event>,
    record: Option<(AccountId, RecordState)>,
    waiters: SmallVec<[Waiter; 1]>,
}

impl Outbox {
    pub(super) fn new(clock: Arc<dyn Clock>, metrics: Metrics) -> Outbox {
        Outbox {
            state: Mutex::default(),
            filled: Notify::new(),
            backlog: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            folded: AtomicU64::new(0),
            unfolded: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            clock,
            metrics,
        }
    }

    /// Adds what one operation did. Call with the account's lock held: that keeps each account's events in order.
    pub(super) fn push(&self, at: Micros, events: Vec<Event>, record: Option<(AccountId, RecordState)>) -> Position {
        let count = events.len() as u64;
        let bytes = bytes(&events);
        let position = {
            let mut state = self.state.lock();
            state.last += 1;
            if state.entries.is_empty() {
                self.oldest.store(at.max(1), Ordering::Relaxed);
            }
            // Within the lock, so that an acknowledgement never subtracts first.
            self.backlog.fetch_add(count, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            state.entries.push_back(Entry { at, events, record, waiters: SmallVec::new() });
            state.last
        };
        self.filled.notify_one();
        position
    }

    /// Answers the waiter once the entry is in the store; at once where it is.
    pub(super) fn wait_for(&self, position: Position, waiter: Waiter) {
        let mut state = self.state.lock();
        let first = state.last - state.entries.len() as u64 + 1;
        let entry = position.checked_sub(first).and_then(|index| state.entries.get_mut(index as usize));
        match entry {
            Some(entry) => entry.waiters.push(waiter),
            None => waiter.answer(),
        }
    }

    /// Up to where everything is safe in the store.
    pub(super) fn acknowledged(&self) -> Position {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Up to where everything is in the store's tables: an account whose last entry that is can be loaded again.
    pub(super) fn folded(&self) -> Position {
        self.folded.load(Ordering::Acquire)
    }

    /// Events that are safe in the store and not in its tables yet.
    pub fn unfolded(&self) -> u64 {
        self.unfolded.load(Ordering::Relaxed)
    }

    /// Events that are not safe in the store yet.
    pub fn backlog(&self) -> u64 {
        self.backlog.load(Ordering::Relaxed)
    }

    /// About how many bytes are not in the store's tables yet.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How long the oldest entry has been waiting.
    pub(super) fn lag_us(&self, now: Micros) -> Micros {
        match self.oldest.load(Ordering::Relaxed) {
            0 => 0,
            at => now.saturating_sub(at),
        }
    }

    /// Whether the cursor is still of the epoch in which this process began. An embedded ledger has its store alone, and
    /// begins an epoch when it starts: a later one means that another process has taken the store over.
    fn owns(&self, cursor: Cursor) -> Result<(), LogError> {
        let base = *self.state.lock().base.get_or_insert(cursor);
        if base.epoch == cursor.epoch {
            return Ok(());
        }
        Err(LogError::Lost(format!("another process began epoch {}; this one has {}", cursor.epoch, base.epoch)))
    }

    /// Entries after the cursor, at most `limit`.
    pub fn collect(&self, cursor: Cursor, limit: usize) -> Entries {
        let mut state = self.state.lock();
        let base = *state.base.get_or_insert(cursor);
        let backlog = self.backlog() + self.unfolded();
        let mut entries = Entries { to: cursor.counter, backlog, ..Entries::default() };
        entries.lag = Duration::from_micros(self.lag_us(self.clock.now()));
        let first = state.last - state.entries.len() as u64 + 1;
        let skip = (cursor.counter.saturating_sub(base.counter) + 1).saturating_sub(first) as usize;
        for entry in state.entries.iter().skip(skip).take(limit) {
            entries.count += 1;
            entries.events.extend(entry.events.iter().cloned());
            entries.records.extend(entry.record.clone());
        }
        entries.to += entries.count as u64;
        if entries.count > 0 {
            state.read_at = Some(Instant::now());
        }
        entries
    }

    /// Takes note of what the store's tables have.
    pub fn folded_up_to(&self, cursor: Cursor) {
        let mut state = self.state.lock();
        let Some(base) = state.base else { return };
        let position = cursor.counter.saturating_sub(base.counter).min(self.acknowledged());
        let (mut events, mut bytes) = (0, 0);
        while let Some(group) = state.unfolded.front().copied().filter(|group| group.last <= position) {
            events += group.events;
            bytes += group.bytes;
            state.unfolded.pop_front();
            self.folded.fetch_max(group.last, Ordering::AcqRel);
        }
        self.unfolded.fetch_sub(events, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Drops what the store has, and answers who waited for it.
    pub fn acknowledge_up_to(&self, cursor: Cursor) {
        let mut done = Vec::new();
        let (mut events, mut bytes) = (0, 0);
        {
            let mut state = self.state.lock();
            let base = *state.base.get_or_insert(cursor);
            let position = cursor.counter.saturating_sub(base.counter).min(state.last);
            while state.entries.len() as u64 > state.last - position {
                let Some(entry) = state.entries.pop_front() else { break };
                events += entry.events.len() as u64;
                bytes += self::bytes(&entry.events);
                done.push(entry);
            }
            self.backlog.fetch_sub(events, Ordering::Relaxed);
            self.oldest.store(state.entries.front().map_or(0, |entry| entry.at.max(1)), Ordering::Relaxed);
            self.acknowledged.fetch_max(position, Ordering::AcqRel);
            if !done.is_empty() {
                state.unfolded.push_back(Group { last: position, events, bytes });
                self.unfolded.fetch_add(events, Ordering::Relaxed);
            }
            if let Some(read_at) = state.read_at.take().filter(|_| !done.is_empty()) {
                self.metrics.ledger_call_seconds.observe(read_at.elapsed().as_secs_f64());
                self.metrics.ledger_batch_size.observe(done.len() as f64);
            }
            // A backlog that was worked off gives its memory back.
            if state.entries.is_empty() && state.entries.capacity() > 4_096 {
                state.entries.shrink_to(256);
            }
        }
        mailbox::deliver(done.into_iter().flat_map(|entry| entry.waiters));
    }
}

fn bytes(events: &[Event]) -> u64 {
    let event = |event: &Event| std::mem::size_of::<Event>() + event.usage.len();
    ENTRY_BYTES + events.iter().map(event).sum::<usize>() as u64
}

#[async_trait]
impl EventLog for Outbox {
    fn shards(&self) -> u32 {
        1
    }

    fn awaited(&self) -> bool {
        true
    }

    async fn read(&self, _shard: u32, cursor: Cursor, limit: usize, wait: Duration) -> Result<Entries, LogError> {
        self.owns(cursor)?;
        let entries = self.collect(cursor, limit);
        if entries.count > 0 || wait.is_zero() {
            return Ok(entries);
        }
        // A push between the look above and here has left its permit.
        drop(tokio::time::timeout(wait, self.filled.notified()).await);
        Ok(self.collect(cursor, limit))
    }

    async fn acknowledge(&self, _shard: u32, cursor: Cursor) -> Result<(), LogError> {
        // Another process's cursor says nothing about what is here.
        self.owns(cursor)?;
        self.acknowledge_up_to(cursor);
        Ok(())
    }

    async fn folded(&self, _shard: u32, cursor: Cursor) -> Result<(), LogError> {
        self.owns(cursor)?;
        self.folded_up_to(cursor);
        Ok(())
    }
}
