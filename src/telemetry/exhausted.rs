//! How many accounts ran dry lately: a figure for operators, without a label for each account.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

/// For so long an account counts after it was refused for want of credits.
const WINDOW: Duration = Duration::from_secs(300);
/// Accounts remembered at most; beyond it the figure says this many.
const MAX_ACCOUNTS: usize = 10_000;

/// Accounts that this replica refused for want of credits within the last five minutes.
#[derive(Debug, Clone)]
pub struct Exhausted {
    gauge: IntGauge,
    keys: RandomState,
    /// When each was refused last, by a hash of its id: that two fall together does not matter here.
    refused: Arc<Mutex<HashMap<u64, Instant>>>,
}

impl Exhausted {
    pub(super) fn new() -> Result<Exhausted, prometheus::Error> {
        let help = "Accounts that were refused for want of credits within the last five minutes";
        let gauge = IntGauge::new("faregate_exhausted_accounts", help)?;
        Ok(Exhausted { gauge, keys: RandomState::new(), refused: Arc::default() })
    }

    /// An account was refused for want of credits.
    pub fn note(&self, account: &str) {
        self.note_at(account, Instant::now());
    }

    fn note_at(&self, account: &str, now: Instant) {
        let key = self.keys.hash_one(account);
        let mut refused = self.refused.lock();
        if refused.len() < MAX_ACCOUNTS || refused.contains_key(&key) {
            refused.insert(key, now);
        }
    }

    fn count(&self, now: Instant) -> usize {
        let mut refused = self.refused.lock();
        refused.retain(|_, last| now.saturating_duration_since(*last) < WINDOW);
        refused.len()
    }
}

impl Collector for Exhausted {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set(i64::try_from(self.count(Instant::now())).unwrap_or(i64::MAX));
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_count_once_and_for_a_while() {
        let exhausted = Exhausted::new().unwrap();
        let start = Instant::now();
        for account in ["ann", "bob", "ann"] {
            exhausted.note_at(account, start);
        }
        assert_eq!(exhausted.count(start), 2);
        exhausted.note_at("bob", start + WINDOW / 2);
        assert_eq!(exhausted.count(start + WINDOW), 1);
        assert_eq!(exhausted.count(start + WINDOW * 2), 0);
    }

    #[test]
    fn it_is_bounded() {
        let exhausted = Exhausted::new().unwrap();
        let now = Instant::now();
        for number in 0..=MAX_ACCOUNTS {
            exhausted.note_at(&number.to_string(), now);
        }
        assert_eq!(exhausted.count(now), MAX_ACCOUNTS);
    }
}
