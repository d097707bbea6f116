//! Leaves a failing upstream alone for a while, and bounds how much work retries add.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntGauge;

/// One upstream's state, shared by all workers of the replica.
#[derive(Debug)]
pub(super) struct Breaker {
    began: Instant,
    /// Consecutive failures; 0 turns the breaker off.
    threshold: u32,
    open_ms: u64,
    failures: AtomicU32,
    /// Milliseconds after `began` until which nothing is tried; 0: closed.
    open_until: AtomicU64,
    gauge: IntGauge,
}

impl Breaker {
    pub(super) fn new(threshold: u32, open_ms: u64, gauge: IntGauge) -> Breaker {
        Breaker {
            began: Instant::now(),
            threshold,
            open_ms,
            failures: AtomicU32::new(0),
            open_until: AtomicU64::new(0),
            gauge,
        }
    }

    /// Whether the upstream may be tried. When the pause is over one request may, and whether that one succeeds decides.
    pub(super) fn admits(&self) -> Result<(), Duration> {
        let until = self.open_until.load(Ordering::Relaxed);
        if until == 0 {
            return Ok(());
        }
        let now = self.now_ms();
        if now < until {
            return Err(Duration::from_millis(until - now));
        }
        let next = now + self.open_ms.max(1);
        match self.open_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(Duration::from_millis(self.open_ms)),
        }
    }

    pub(super) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.open_until.store(0, Ordering::Relaxed);
            self.gauge.set(0);
        }
    }

    pub(super) fn failed(&self) {
        if self.threshold == 0 {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= self.threshold {
            self.open_until.store((self.now_ms() + self.open_ms).max(1), Ordering::Relaxed);
            self.gauge.set(1);
        }
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

/// How many retries a route may still make, in hundredths: each request earns a few, each retry costs a hundred.
#[derive(Debug)]
pub(super) struct RetryBudget {
    percent: i64,
    hundredths: AtomicI64,
}

/// Retries that a route may make before any request has earned some, and at most at once.
const RETRIES_SAVED: i64 = 10;

impl RetryBudget {
    pub(super) fn new(percent: u32) -> RetryBudget {
        let saved = if percent == 0 { 0 } else { RETRIES_SAVED * 100 };
        RetryBudget { percent: i64::from(percent), hundredths: AtomicI64::new(saved) }
    }

    pub(super) fn earn(&self) {
        if self.hundredths.load(Ordering::Relaxed) < RETRIES_SAVED * 100 {
            self.hundredths.fetch_add(self.percent, Ordering::Relaxed);
        }
    }

    pub(super) fn spend(&self) -> bool {
        let spend = |saved: i64| (saved >= 100).then_some(saved - 100);
        self.hundredths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauge() -> IntGauge {
        IntGauge::new("open", "open").unwrap()
    }

    #[test]
    fn opens_after_consecutive_failures_and_lets_one_try_again() {
        let breaker = Breaker::new(2, 0, gauge());
        breaker.failed();
        breaker.succeeded();
        breaker.failed();
        assert!(breaker.admits().is_ok());
        let breaker = Breaker::new(2, 60_000, gauge());
        breaker.failed();
        breaker.failed();
        assert!(breaker.admits().is_err());
        assert_eq!(breaker.gauge.get(), 1);
        breaker.succeeded();
        assert!(breaker.admits().is_ok());
        assert_eq!(breaker.gauge.get(), 0);
    }

    #[test]
    fn after_the_pause_exactly_one_probe_goes_out() {
        let breaker = Breaker::new(1, 60_000, gauge());
        breaker.failed();
        breaker.open_until.store(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(2));
        assert!(breaker.admits().is_ok());
        assert!(breaker.admits().is_err());
    }

    #[test]
    fn retries_are_earned() {
        let budget = RetryBudget::new(20);
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
        for _ in 0..5 {
            budget.earn();
        }
        assert!(budget.spend());
        assert!(!budget.spend());
        assert!(!RetryBudget::new(0).spend());
    }
}
