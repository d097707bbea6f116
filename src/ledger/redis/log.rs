//! A shard's event log, as the bridge reads it: one entry for each batch that changed something, numbered without gaps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Value};

use super::connection::{CallError, Link};
use super::wire::decode::{self, Entry, Fields};
use super::wire::{Keyspace, Writer};
use super::{Core, Position, script};

/// Entries stay for so long after they were flushed.
const TRIM_BEHIND: Duration = Duration::from_secs(60);
/// Entries of an earlier page whose marks are remembered.
const PAGE_KEPT: usize = 2_048;
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
    /// Where entries end that were read lately, and how those begin.
    read: (u64, Vec<(u64, Vec<u8>)>),
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
        let link = core.link(shard);
        Log { core, shard, link, marks: Marks::default(), read: (0, Vec::new()) }
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

    /// How the entry at a cursor of the store begins: as it was read here, or as the store has it. Empty at the beginning
    /// of an epoch, and where it is not known.
    async fn mark_at(&self, at: Position) -> Result<Vec<u8>, LogError> {
        if at.counter == 0 {
            return Ok(Vec::new());
        }
        let (epoch, read) = &self.read;
        if let Some((_, mark)) = read.iter().find(|(counter, _)| *counter == at.counter).filter(|_| *epoch == at.epoch)
        {
            return Ok(mark.clone());
        }
        let store = self.core.epochs.standing(self.shard).await;
        let store = store.map_err(|error| LogError::Unavailable(error.to_string()))?;
        if store.at != at || store.reopening {
            return Err(LogError::Unavailable("the store's cursor moved on".to_owned()));
        }
        Ok(store.mark)
    }

    /// Opens the shard anew, which lost what came up to `at`. Answers where it then stands.
    pub async fn reopen(&mut self, at: Position) -> Result<Position, LogError> {
        super::reopen::reopen(&self.core, &mut self.link, self.shard, Some(at.epoch))
            .await
            .map_err(|error| LogError::Unavailable(error.to_string()))
    }

    /// The entries after `after`, in order, at most `limit`; none when there are no more.
    pub async fn read(&mut self, after: Position, limit: usize) -> Result<Vec<Entry>, LogError> {
        let keys = Keyspace::new(self.shard, after.epoch);
        let mark = self.mark_at(after).await?;
        let mut command = Cmd::new();
        // From the entry at the cursor on: another one there is of another history.
        command.arg("XRANGE").arg(keys.events()).arg(format!("{}-0", after.counter)).arg("+");
        command.arg("COUNT").arg(limit.max(1) + usize::from(after.counter > 0));
        let value = match self.link.send(&command).await {
            Err(CallError::Broken(_)) => self.link.send(&command).await,
            value => value,
        };
        let Value::Array(rows) = value.map_err(|error| LogError::Unavailable(error.to_string()))? else {
            return Err(LogError::Unavailable("an unexpected answer".to_owned()));
        };
        let rows = match rows.split_first() {
            Some((first, rest)) if after.counter > 0 => {
                let known = parts(first).is_some_and(|(counter, fields)| {
                    counter == after.counter && fields.events.get(..mark.len()) == Some(mark.as_slice())
                });
                if !known {
                    return Err(LogError::Lost(self.position().await?));
                }
                rest
            }
            None if after.counter > 0 => return Err(LogError::Lost(self.position().await?)),
            _ => &rows,
        };
        if rows.is_empty() {
            let now = self.position().await?;
            let stands = now.epoch == after.epoch && now.counter >= after.counter;
            return if stands { Ok(Vec::new()) } else { Err(LogError::Lost(now)) };
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(rows.len());
        for row in rows {
            let expected = after.counter + 1 + entries.len() as u64;
            let (counter, fields) = parts(row).ok_or(LogError::Malformed { counter: expected, reason: "its form" })?;
            if counter != expected {
                return Err(LogError::Hole { expected, found: counter });
            }
            let entry = decode::entry(counter, fields);
            // What cannot be read stops nothing behind it.
            entries.push(entry.unwrap_or_else(|error| Entry::unreadable(after.epoch, counter, fields, error)));
        }
        let read = entries.iter().map(|entry| (entry.counter, entry.mark.clone()));
        // The page before as well: what is read ahead may have to be read again.
        let before = std::mem::take(&mut self.read);
        let before = before.1.into_iter().filter(|(counter, _)| before.0 == after.epoch && *counter < after.counter);
        let before: Vec<_> = before.collect();
        let recent = before.len().saturating_sub(PAGE_KEPT);
        let page = std::iter::once((after.counter, mark)).chain(read);
        self.read = (after.epoch, before.into_iter().skip(recent).chain(page).collect());
        Ok(entries)
    }

    /// Tells the ledger that everything up to `to` is in the store; what was so a minute ago is trimmed.
    pub async fn flushed(&mut self, to: Position) -> Result<(), LogError> {
        let trim = self.marks.note(to, Instant::now());
        let keys = Keyspace::new(self.shard, to.epoch);
        let (meta, events) = (keys.meta(), keys.events());
        let mut argument = Writer::default();
        argument.array(4);
        [to.epoch, to.counter, trim].into_iter().for_each(|number| argument.uint(number));
        argument.bytes(&self.mark_at(to).await?);
        let command = script::FLUSHED.command([meta.as_str(), events.as_str()].into_iter(), &argument.0);
        let answer = self.link.call(&script::FLUSHED, &command).await;
        match answer.map_err(|error| LogError::Unavailable(error.to_string()))? {
            Value::Int(-1) => Err(LogError::Lost(self.position().await?)),
            _ => Ok(()),
        }
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

/// `[id, [b, events, d, details, r, records]]`, the last ones only where there are some.
pub(super) fn parts(row: &Value) -> Option<(u64, Fields<'_>)> {
    let Value::Array(row) = row else { return None };
    let [Value::BulkString(id), Value::Array(fields)] = row.as_slice() else { return None };
    let field = |index: usize| match fields.get(index) {
        Some(Value::BulkString(bytes)) => Some(bytes.as_slice()),
        _ => None,
    };
    let (details, records) = (field(3).unwrap_or_default(), field(5).unwrap_or_default());
    let counter = std::str::from_utf8(id).ok()?.strip_suffix("-0")?.parse().ok()?;
    Some((counter, Fields { events: field(1)?, details, records }))
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
