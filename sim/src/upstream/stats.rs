//! What the upstream has seen, for tests to look at.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method};

/// Most names that `fail-key` can count by.
const FAIL_KEYS_MAX: usize = 4_096;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Debug, Default)]
pub struct Stats {
    requests: AtomicU64,
    completed: AtomicU64,
    cut: AtomicU64,
    open: AtomicU64,
    last: Mutex<Option<Seen>>,
    failures: Mutex<HashMap<String, u64>>,
}

impl Stats {
    /// Requests whose body has been read.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Answers handed over to their end.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// Answers that were given up before their end: by the receiver, or by a knob.
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Answers being sent.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    pub fn last(&self) -> Option<Seen> {
        lock(&self.last).clone()
    }

    pub(super) fn saw(&self, seen: Seen) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        *lock(&self.last) = Some(seen);
    }

    pub(super) fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, complete: bool) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let counter = if complete { &self.completed } else { &self.cut };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether this is still one of the first `count` requests under `key`.
    pub(super) fn fails(&self, key: &str, count: u64) -> bool {
        let mut failures = lock(&self.failures);
        if failures.len() >= FAIL_KEYS_MAX && !failures.contains_key(key) {
            return false;
        }
        let seen = failures.entry(key.to_owned()).or_default();
        *seen += 1;
        *seen <= count
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
