//! A shard's event log, as the bridge reads it: one entry for each batch that changed something, numbered without gaps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Value};

use super::connection::{CallError, Link};
use super::wire::decode::{self, Entry};
use super::wire::{Keyspace, encode};
use super::{Core, Position, script};

/// Entries stay for so long after they were flushed.
const TRIM_BEHIND: Duration = Duration::from_secs(60);
/// Flush marks remembered, so that what to trim is known.
const MARKS_MAX: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the event log is out of reach: {0}")]
    Unavailable(String),
    /// The shard stands in another epoch, or before the place asked for: it lost its data.
    #[error("the ledger stands at epoch {} entry {}", .0.epoch, .0.counter)]
    Lost(Position),
    /// Entries are missing.
    #[error("entry {expected} is missing, the next one is {found}")]
    Hole { expected: u64, found: u64 },
    #[error("entry {counter} cannot be read: {reason}")]
    Malformed { counter: u64, reason: &'static str },
}

/// One reader of one shard's log.
#[derive(Debug)]
pub struct Log {
    core: Arc<Core>,
    shard: u32,
    link: Link,
    marks: Marks,
}

/// When the log was flushed how far, so that what to trim is known.
#[derive(Debug, Default)]
struct Marks {
    epoch: u64,
    /// Oldest first.
    flushed: VecDeque<(Instant, u64)>,
}

impl Log {
    pub(crate) fn new(core: Arc<Core>, shard: u32) -> Log {
        let link = core.link();
        Log { core, shard, link, marks: Marks::default() }
    }

    pub fn shard(&self) -> u32 {
        self.shard
    }

    /// Where the shard stands: the number of its last entry. Makes one that is missing.
    pub async fn position(&mut self) -> Result<Position, LogError> {
        super::meta::find_or_make(&self.core, &mut self.link, self.shard)
            .await
            .map_err(|error| LogError::Unavailable(error.to_string()))
    }

    /// The entries after `after`, in order, at most `limit`; none when there are no more.
    pub async fn read(&mut self, after: Position, limit: usize) -> Result<Vec<Entry>, LogError> {
        let keys = Keyspace::new(self.shard, after.epoch);
        let mut command = Cmd::new();
        command.arg("XRANGE").arg(keys.events()).arg(format!("({}-0", after.counter)).arg("+");
        command.arg("COUNT").arg(limit.max(1));
        let value = match self.link.send(&command).await {
            Err(CallError::Broken(_)) => self.link.send(&command).await,
            value => value,
        };
        let Value::Array(rows) = value.map_err(|error| LogError::Unavailable(error.to_string()))? else {
            return Err(LogError::Unavailable("an unexpected answer".to_owned()));
        };
        if rows.is_empty() {
            let now = self.position().await?;
            let stands = now.epoch == after.epoch && now.counter >= after.counter;
            return if stands { Ok(Vec::new()) } else { Err(LogError::Lost(now)) };
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(rows.len());
        for row in &rows {
            let expected = after.counter + 1 + entries.len() as u64;
            let (counter, events, details) =
                parts(row).ok_or(LogError::Malformed { counter: expected, reason: "its form" })?;
            if counter != expected {
                return Err(LogError::Hole { expected, found: counter });
            }
            let entry = decode::entry(counter, events, details);
            entries.push(entry.map_err(|error| LogError::Malformed { counter, reason: error.0 })?);
        }
        Ok(entries)
    }

    /// Tells the ledger that everything up to `to` is in the store; what was so a minute ago is trimmed.
    pub async fn flushed(&mut self, to: Position) -> Result<(), LogError> {
        let trim = self.marks.note(to, Instant::now());
        let keys = Keyspace::new(self.shard, to.epoch);
        let (meta, events) = (keys.meta(), keys.events());
        let argument = encode::numbers(&[to.epoch, to.counter, trim]);
        let command = script::FLUSHED.command([meta.as_str(), events.as_str()].into_iter(), &argument);
        self.link
            .call(&script::FLUSHED, &command)
            .await
            .map(drop)
            .map_err(|error| LogError::Unavailable(error.to_string()))
    }
}

impl Marks {
    /// Remembers that the log is flushed up to `to`; answers the last entry that was so long enough ago, or 0.
    fn note(&mut self, to: Position, now: Instant) -> u64 {
        if self.epoch != to.epoch {
            // A new epoch counts from 0: an old mark there would stand for entries that are not flushed.
            *self = Marks { epoch: to.epoch, flushed: VecDeque::new() };
        }
        let spaced = self.flushed.back().is_none_or(|(at, _)| now.duration_since(*at) >= TRIM_BEHIND / 60);
        if spaced {
            self.flushed.push_back((now, to.counter));
        }
        let mut trim = 0;
        while let Some((at, counter)) = self.flushed.front().copied() {
            if now.duration_since(at) < TRIM_BEHIND && self.flushed.len() <= MARKS_MAX {
                break;
            }
            trim = counter;
            self.flushed.pop_front();
        }
        trim
    }
}

/// `[id, [b, events, d, details]]`, the details only where there are some.
fn parts(row: &Value) -> Option<(u64, &[u8], &[u8])> {
    let Value::Array(row) = row else { return None };
    let [Value::BulkString(id), Value::Array(fields)] = row.as_slice() else { return None };
    let (events, details): (_, &[u8]) = match fields.as_slice() {
        [_, Value::BulkString(events)] => (events, &[]),
        [_, Value::BulkString(events), _, Value::BulkString(details)] => (events, details),
        _ => return None,
    };
    let counter = std::str::from_utf8(id).ok()?.strip_suffix("-0")?.parse().ok()?;
    Some((counter, events, details))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_a_minute_ago_is_trimmed() {
        let (mut marks, begin) = (Marks::default(), Instant::now());
        let at = |counter| Position { epoch: 3, counter };
        assert_eq!(marks.note(at(700), begin), 0);
        assert_eq!(marks.note(at(800), begin + TRIM_BEHIND / 2), 0);
        assert_eq!(marks.note(at(900), begin + TRIM_BEHIND), 700);
    }

    /// The ledger lost its data and began anew: what the old log came to says nothing about the new one.
    #[test]
    fn a_new_epoch_is_not_trimmed_by_the_marks_of_the_old() {
        let (mut marks, begin) = (Marks::default(), Instant::now());
        assert_eq!(marks.note(Position { epoch: 3, counter: 700 }, begin), 0);
        assert_eq!(marks.note(Position { epoch: 4, counter: 2 }, begin + TRIM_BEHIND), 0);
        assert_eq!(marks.note(Position { epoch: 4, counter: 9 }, begin + TRIM_BEHIND * 2), 2);
    }
}
