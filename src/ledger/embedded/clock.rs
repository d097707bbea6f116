//! The ledger's time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::ledger::Micros;

/// How long the system's clock is taken at its last word while the monotonic one counts on: each reading costs, and an
/// operation asks several times.
const WORD_US: Micros = 10_000;

/// Where the embedded ledger reads the time. It never runs backwards.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Micros;
}

/// The system's time, except where that is set back: then it goes on from where it stood. (A clock that stood still
/// until the system's caught up would stop every rate limit for as long.)
pub struct SystemClock {
    started: Instant,
    /// The Unix time at `started`: the latest that the system's clock ever amounted to.
    origin: AtomicU64,
    /// Microseconds after `started`: from then on the system's clock is asked again.
    ask_at: AtomicU64,
}

impl SystemClock {
    pub fn new() -> SystemClock {
        SystemClock { started: Instant::now(), origin: AtomicU64::new(0), ask_at: AtomicU64::new(0) }
    }

    fn at(&self, elapsed: Micros, wall: Micros) -> Micros {
        let origin = wall.saturating_sub(elapsed);
        self.origin.fetch_max(origin, Ordering::Relaxed).max(origin) + elapsed
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Micros {
        let elapsed = self.started.elapsed().as_micros() as Micros;
        if elapsed < self.ask_at.load(Ordering::Acquire) {
            return self.origin.load(Ordering::Relaxed) + elapsed;
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as Micros);
        let now = self.at(elapsed, wall);
        // Last, so that whoever sees it has the origin too.
        self.ask_at.store(elapsed + WORD_US, Ordering::Release);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_goes_on() {
        let clock = SystemClock::new();
        assert_eq!(clock.at(10, 1_000_010), 1_000_010);
        assert_eq!(clock.at(20, 500_020), 1_000_020, "set back");
        assert_eq!(clock.at(30, 2_000_030), 2_000_030, "set forward");
        assert_eq!(clock.at(40, 2_000_039), 2_000_040);
    }
}
