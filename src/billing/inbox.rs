//! Works off what was stored: events as they come, and what only waits for its time. Every replica does; each event and
//! each account is one replica's at a time, and comes back when that one dies over it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, StreamExt};
use tokio_util::sync::CancellationToken;

use super::Billing;
use super::lifecycle::facts::Failure;
use super::process::{Done, Processor};
use crate::ledger::{AccountId, Micros};
use crate::store::SharedStore;
use crate::store::billing::{EventOutcome, EventRow};
use crate::telemetry::Metrics;

/// Events worked on at once.
const AT_ONCE: usize = 8;
/// Accounts that are due, taken at once.
const BATCH: u32 = 32;
/// How long a claim stands; longer than an event can take.
const LEASE_US: u64 = 120 * 1_000_000;
/// How often events are looked for that nobody told of: those of other replicas, and those tried again.
const POLL: Duration = Duration::from_millis(500);
/// How often the clock looks.
const TICK: Duration = Duration::from_secs(1);
/// The first wait before another attempt; each next one is twice as long.
const FIRST_WAIT_US: u64 = 1_000_000;
const MAX_WAIT_US: u64 = 3600 * 1_000_000;

/// The workers of one replica.
pub struct Inbox {
    pub store: SharedStore,
    pub billing: Arc<Billing>,
    pub processor: Arc<Processor>,
    pub max_attempts: u32,
    pub metrics: Metrics,
}

impl Inbox {
    /// Works events off until `stop`. What is under way is finished by whoever claims it next.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let work = async {
            let mut under_way = FuturesUnordered::new();
            let mut look = true;
            loop {
                let room = AT_ONCE - under_way.len();
                // A claim is a transaction: not one for every event that ends.
                let mut full = false;
                if room > 0 && (look || room >= AT_ONCE / 2) {
                    let taken = self.claim(room).await;
                    full = taken.len() == room;
                    under_way.extend(taken.into_iter().map(|event| self.work(event)));
                }
                if under_way.is_empty() {
                    self.count().await;
                }
                // One that takes long keeps only its own place.
                look = tokio::select! {
                    Some(()) = under_way.next() => full,
                    () = self.billing.wake.notified(), if !full => true,
                    () = tokio::time::sleep(POLL), if !full => true,
                };
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    async fn claim(&self, room: usize) -> Vec<EventRow> {
        let claimed = self.store.claim_events(u32::try_from(room).unwrap_or(1), LEASE_US).await;
        claimed.unwrap_or_else(|error| {
            tracing::warn!(%error, "events of Stripe's could not be read");
            Vec::new()
        })
    }

    /// Does what waited for its time, until `stop`.
    pub async fn run_clock(self: Arc<Self>, stop: CancellationToken) {
        let work = async {
            loop {
                tokio::time::sleep(TICK).await;
                match self.store.claim_due_accounts(BATCH, LEASE_US).await {
                    Ok(users) => stream::iter(users).for_each_concurrent(AT_ONCE, |user| self.tick(user)).await,
                    Err(error) => tracing::warn!(%error, "accounts that are due could not be read"),
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    async fn tick(&self, user: AccountId) {
        if let Err(error) = self.processor.time(&user).await {
            tracing::warn!(%user, %error, "what was due could not be done; it is tried again");
        }
    }

    async fn work(&self, event: EventRow) {
        let (result, outcome) = match self.attempt(&event).await {
            Ok(Done::Processed(user)) => {
                tracing::info!(event = event.id, kind = event.event_type, %user, "an event of Stripe's was processed");
                return self.told("processed");
            }
            Ok(Done::Ignored) => ("ignored", EventOutcome::Ignored),
            Err(error) => self.failed(&event, &error),
        };
        self.told(result);
        if let Err(error) = self.store.finish_event(&event.id, outcome).await {
            tracing::warn!(event = event.id, %error, "what came of an event could not be written; it comes again");
        }
    }

    /// An event that was begun more often than it may be, and never came to an end, brought the process down each time.
    async fn attempt(&self, event: &EventRow) -> Result<Done, Failure> {
        if event.attempts > self.max_attempts {
            return Err(Failure::Wrong(format!("it was begun {} times and never came to an end", event.attempts - 1)));
        }
        self.processor.event(event).await
    }

    fn failed(&self, event: &EventRow, error: &Failure) -> (&'static str, EventOutcome) {
        let text = error.to_string();
        // A contradiction does not go away by itself.
        let hopeless = matches!(error, Failure::Wrong(_));
        if hopeless || event.attempts >= self.max_attempts {
            tracing::error!(event = event.id, kind = event.event_type, error = text, "an event of Stripe's is parked");
            return ("parked", EventOutcome::Parked { error: text });
        }
        tracing::warn!(event = event.id, kind = event.event_type, error = text, "an event of Stripe's is tried again");
        ("retry", EventOutcome::Retry { error: text, at: now().saturating_add(wait(event.attempts)) })
    }

    fn told(&self, result: &str) {
        self.metrics.billing_attempts.with_label_values(&[result]).inc();
    }

    async fn count(&self) {
        let Ok((pending, parked)) = self.store.event_counts().await else { return };
        for (state, count) in [("pending", pending), ("parked", parked)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.metrics.billing_events.with_label_values(&[state]).set(count);
        }
    }
}

/// Before the attempt that follows on this one.
fn wait(attempts: u32) -> u64 {
    let doubled = FIRST_WAIT_US.checked_shl(attempts.saturating_sub(1).min(32)).unwrap_or(MAX_WAIT_US);
    doubled.min(MAX_WAIT_US)
}

/// Microseconds since the Unix epoch by this machine's clock.
pub fn now() -> Micros {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end_at_an_hour() {
        assert_eq!([1, 2, 3].map(wait), [1_000_000, 2_000_000, 4_000_000]);
        assert_eq!([13, 40, u32::MAX].map(wait), [MAX_WAIT_US; 3]);
    }
}
