//! Opens a shard anew that lost its data.

use super::State;
use super::ledger::{Entry, Redis};
use super::scope::Guards;
use super::store::Cursor;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) enum Reopener {
    #[default]
    Idle,
    /// The shard is closed at this epoch.
    Closed {
        epoch: u8,
    },
    /// The store's epoch is raised above it.
    Raised {
        epoch: u8,
    },
    Survivors {
        epoch: u8,
        entries: Vec<Entry>,
    },
    /// The store has them all.
    Written {
        epoch: u8,
    },
    /// And says so: the shard may open.
    Ended {
        epoch: u8,
    },
}

impl State {
    /// The epoch that somebody found lost, if the shard still stands in it. Whoever looks at a closed shard opens it.
    pub(super) fn wanted(&self) -> Option<u8> {
        if self.redis.as_ref().is_some_and(|redis| redis.closed) {
            return Some(self.store.cursor.epoch);
        }
        let workers = self.workers.iter().filter(|worker| worker.lost).map(|worker| worker.epoch);
        let lost = workers.chain(self.noticed).max()?;
        match &self.redis {
            Some(redis) if redis.epoch > lost && !redis.closed => None,
            _ => Some(self.store.cursor.epoch),
        }
    }

    pub(super) fn reopen(&mut self, reopener: usize, guards: &Guards) {
        let cursor = self.store.cursor;
        let next = match self.reopeners[reopener].clone() {
            Reopener::Idle => {
                if self.wanted().is_none() {
                    return;
                }
                // All is written, and somebody died before the shard was open.
                let closed = self.redis.as_ref().is_some_and(|redis| redis.closed && redis.epoch < cursor.epoch);
                if closed && !cursor.reopening && cursor.counter == 0 {
                    self.reopeners[reopener] = Reopener::Ended { epoch: cursor.epoch - 1 };
                    return;
                }
                let epoch = if cursor.reopening { cursor.epoch - 1 } else { cursor.epoch };
                let redis = self.redis.get_or_insert_with(|| Redis {
                    epoch,
                    history: self.history,
                    closed: true,
                    ..Redis::default()
                });
                if guards.close && redis.epoch <= epoch {
                    redis.closed = true;
                    // Else who is late in opening this very epoch would open it again.
                    if redis.epoch < epoch && guards.binding {
                        redis.old.push((redis.epoch, std::mem::take(&mut redis.stream)));
                        let (old, history) = (std::mem::take(&mut redis.old), redis.history);
                        *redis = Redis { epoch, closed: true, old, history, ..Redis::default() };
                    }
                }
                Reopener::Closed { epoch }
            }
            Reopener::Closed { epoch } => {
                if cursor.epoch == epoch && guards.raise {
                    let next = Cursor { epoch: epoch + 1, counter: 0, reopening: true, mark: None };
                    self.store.cursor = next;
                }
                match guards.raise && self.store.cursor.epoch != epoch + 1 {
                    true => Reopener::Idle,
                    false => Reopener::Raised { epoch },
                }
            }
            Reopener::Raised { epoch } => {
                let entries = match &self.redis {
                    Some(redis) if redis.epoch <= epoch => {
                        let old = redis.old.iter().flat_map(|(_, entries)| entries);
                        old.chain(&redis.stream).copied().collect()
                    }
                    _ => Vec::new(),
                };
                Reopener::Survivors { epoch, entries }
            }
            Reopener::Survivors { epoch, entries } => {
                let expected = !guards.raise || (cursor.epoch == epoch + 1 && cursor.reopening);
                if expected {
                    for entry in &entries {
                        let known = guards.survivors && entry.number <= self.store.number(entry.session);
                        if !(known || guards.record_once && self.store.has_key(entry, self.keyed)) {
                            self.store.write(entry);
                        }
                    }
                    Reopener::Written { epoch }
                } else {
                    Reopener::Idle
                }
            }
            Reopener::Written { epoch } => {
                if cursor.epoch == epoch + 1 {
                    self.store.cursor.reopening = false;
                } else if !guards.raise && cursor.epoch == epoch {
                    self.store.cursor = Cursor { epoch: epoch + 1, ..Cursor::default() };
                }
                Reopener::Ended { epoch }
            }
            Reopener::Ended { epoch } => {
                let history = self.history;
                if let Some(redis) = &mut self.redis
                    && redis.epoch <= epoch
                    && (redis.closed || !guards.close)
                {
                    let mut old = std::mem::take(&mut redis.old);
                    old.push((redis.epoch, std::mem::take(&mut redis.stream)));
                    *redis = Redis { epoch: epoch + 1, history, old, ..Redis::default() };
                }
                if self.noticed.is_some_and(|noticed| noticed <= epoch) {
                    self.noticed = None;
                }
                Reopener::Idle
            }
        };
        self.reopeners[reopener] = next;
    }
}
