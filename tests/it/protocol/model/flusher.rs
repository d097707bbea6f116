//! Ledger to store.

use super::State;
use super::ledger::Entry;
use super::scope::Guards;
use super::store::Cursor;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) enum Flusher {
    #[default]
    Idle,
    Read {
        from: Cursor,
        entries: Vec<Entry>,
    },
    Wrote {
        to: Cursor,
    },
}

impl State {
    pub(super) fn flush(&mut self, flusher: usize, guards: &Guards) {
        match self.flushers[flusher].clone() {
            Flusher::Idle => {
                let from = self.store.cursor;
                let Some(redis) = &self.redis else {
                    self.noticed = Some(from.epoch);
                    return;
                };
                let at_cursor = usize::from(from.counter).checked_sub(1).and_then(|at| redis.stream.get(at));
                let same = at_cursor.map(|entry| (entry.session, entry.number, entry.history)) == from.mark;
                if from.reopening || redis.epoch != from.epoch {
                    if redis.epoch < from.epoch {
                        self.noticed = Some(redis.epoch);
                    }
                } else if redis.counter < from.counter || (guards.mark && !same) {
                    self.noticed = Some(from.epoch);
                } else if redis.counter > from.counter {
                    let entries = redis.stream[usize::from(from.counter)..].to_vec();
                    self.flushers[flusher] = Flusher::Read { from, entries };
                } else if redis.flushed < from.counter {
                    self.flushers[flusher] = Flusher::Wrote { to: from };
                }
            }
            Flusher::Read { from, entries } => {
                self.flushers[flusher] = Flusher::Idle;
                if self.store.cursor == from {
                    entries.iter().for_each(|entry| self.store.write(entry));
                    let last = entries.last().map(|entry| (entry.session, entry.number, entry.history));
                    let counter = from.counter + entries.len() as u8;
                    self.store.cursor = Cursor { counter, mark: last, ..from };
                    self.flushers[flusher] = Flusher::Wrote { to: self.store.cursor };
                }
            }
            Flusher::Wrote { to } => {
                self.flushers[flusher] = Flusher::Idle;
                let Some(redis) = &mut self.redis else { return };
                let at = usize::from(to.counter).checked_sub(1).and_then(|at| redis.stream.get(at));
                let same = at.map(|entry| (entry.session, entry.number, entry.history)) == to.mark;
                if redis.epoch == to.epoch && (same || !guards.mark) {
                    redis.flushed = redis.flushed.max(to.counter.min(redis.counter));
                }
            }
        }
    }
}
