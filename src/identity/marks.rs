//! Marks tell a cached principal that what it was made from has changed.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Dead marks are swept when the map has doubled since the last time, and not below this size.
const SWEEP_FROM: usize = 1024;

/// Shared by everything that was cached from one key or one user.
#[derive(Debug, Default)]
pub(super) struct Mark {
    spoiled: AtomicBool,
}

impl Mark {
    pub(super) fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Acquire)
    }
}

/// The living marks, by what they stand for. Cached entries keep them alive, so the map is bounded as the caches are.
#[derive(Debug)]
pub(super) struct Marks<K> {
    living: Mutex<Living<K>>,
}

#[derive(Debug)]
struct Living<K> {
    by_key: HashMap<K, Weak<Mark>>,
    sweep_at: usize,
}

impl<K: Eq + Hash> Marks<K> {
    pub(super) fn new() -> Marks<K> {
        Marks { living: Mutex::new(Living { by_key: HashMap::new(), sweep_at: SWEEP_FROM }) }
    }

    /// Take the mark before reading the store: a change that comes between reading and caching then spoils what is cached.
    pub(super) fn mark(&self, key: K) -> Arc<Mark> {
        let mut living = self.living.lock();
        if living.by_key.len() >= living.sweep_at {
            living.by_key.retain(|_, mark| mark.strong_count() > 0);
            living.sweep_at = SWEEP_FROM.max(living.by_key.len() * 2);
        }
        if let Some(mark) = living.by_key.get(&key).and_then(Weak::upgrade) {
            return mark;
        }
        let mark = Arc::new(Mark::default());
        living.by_key.insert(key, Arc::downgrade(&mark));
        mark
    }

    /// Whatever was made with this mark is void from now on.
    pub(super) fn spoil(&self, key: &K) {
        if let Some(mark) = self.living.lock().by_key.remove(key).and_then(|mark| mark.upgrade()) {
            mark.spoiled.store(true, Ordering::Release);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.living.lock().by_key.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoiled_mark_is_seen_by_all_and_replaced() {
        let marks = Marks::new();
        let (one, two) = (marks.mark("a"), marks.mark("a"));
        marks.spoil(&"a");
        assert!(one.is_spoiled() && two.is_spoiled());
        assert!(!marks.mark("a").is_spoiled());
    }

    #[test]
    fn dead_marks_do_not_pile_up() {
        let marks = Marks::new();
        for number in 0..100_000 {
            drop(marks.mark(number));
        }
        assert!(marks.len() <= SWEEP_FROM, "{}", marks.len());
    }
}
