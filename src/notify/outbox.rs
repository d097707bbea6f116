//! Notifications on their way to the product's backend: claimed in the store, so that of all replicas one sends each, and
//! sent again until they are acknowledged or given up. At least once, in no order.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::webhook::{Message, Sender};
use crate::config::Webhook;
use crate::ledger::Micros;
use crate::store::SharedStore;
use crate::store::notifications::{Delivered, Delivery};
use crate::telemetry::Metrics;

/// How often it is looked for something to send.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How often what waits is counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// A claim stands for so much longer than an attempt may take: for the store to hear of it.
const LEASE_BEYOND: Duration = Duration::from_secs(15);
/// What is under way at the stop may end within this; else another replica, or the next start, sends it again.
const LAST_ATTEMPTS: Duration = Duration::from_secs(5);
/// Each wait is so many times the one before.
const GROWTH: u64 = 4;
/// Waits differ by up to a tenth, so that what failed together does not come again together.
const JITTER_PERCENT: u64 = 10;

pub struct Outbox {
    pub store: SharedStore,
    pub sender: Sender,
    pub settings: Webhook,
    pub metrics: Metrics,
    pub clock: fn() -> Micros,
}

impl Outbox {
    /// Sends until `stop`.
    pub async fn run(self: Arc<Outbox>, stop: CancellationToken) {
        let mut under_way = FuturesUnordered::new();
        let mut look_at = Instant::now();
        let mut count_at = Instant::now();
        loop {
            let room = self.settings.max_calls.saturating_sub(under_way.len());
            tokio::select! {
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                () = tokio::time::sleep_until(look_at), if room > 0 => {
                    let claimed = self.claim(room).await;
                    // A full hand: there may be more.
                    look_at = if claimed.len() == room { Instant::now() } else { Instant::now() + POLL_INTERVAL };
                    under_way.extend(claimed.into_iter().map(|delivery| self.attempt(delivery)));
                    if Instant::now() >= count_at {
                        count_at = Instant::now() + COUNT_INTERVAL;
                        self.count().await;
                    }
                }
                () = stop.cancelled() => break,
            }
        }
        let rest = async { while under_way.next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_ATTEMPTS, rest).await;
    }

    async fn claim(&self, room: usize) -> Vec<Delivery> {
        let lease = Duration::from_millis(self.settings.timeout_ms) + LEASE_BEYOND;
        let lease_us = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
        match self.store.claim_deliveries(u32::try_from(room).unwrap_or(u32::MAX), lease_us).await {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::warn!(%error, "notifications cannot be claimed for delivery");
                Vec::new()
            }
        }
    }

    async fn attempt(&self, delivery: Delivery) {
        let row = &delivery.notification;
        let sent = self.sender.send(&Message::of(row), (self.clock)()).await;
        let (user, notification, attempt) = (&row.user, row.number, delivery.attempt);
        let (result, outcome) = match sent {
            Ok(()) => ("delivered", Delivered::Done),
            Err(error) if attempt >= self.settings.max_attempts => {
                tracing::error!(%user, notification, attempt, error, "a notification went to the dead letters");
                ("dead", Delivered::Dead { error })
            }
            Err(error) => {
                let wait = wait_after(attempt, &self.settings, random());
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(%user, notification, attempt, error, wait_ms, "a notification was not delivered");
                ("retry", Delivered::Retry { at: (self.clock)().saturating_add(wait_ms.saturating_mul(1_000)) })
            }
        };
        self.metrics.webhook_deliveries.with_label_values(&[result]).inc();
        if let Err(error) = self.store.finish_delivery(&delivery, outcome).await {
            // Its claim runs out, and it is sent again.
            tracing::warn!(%user, notification, %error, "what came of a delivery cannot be written down");
        }
    }

    async fn count(&self) {
        if let Ok(waiting) = self.store.deliveries_waiting().await {
            self.metrics.webhook_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        }
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness the waits are all alike, which is no harm.
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// How long to wait after this attempt, from 1.
fn wait_after(attempt: u32, settings: &Webhook, random: u64) -> Duration {
    let grown = GROWTH.saturating_pow(attempt.saturating_sub(1)).saturating_mul(settings.retry_wait_ms);
    let wait = grown.min(settings.max_retry_wait_ms);
    let span = wait.saturating_mul(2 * JITTER_PERCENT) / 100;
    let jitter = if span == 0 { 0 } else { random % span };
    Duration::from_millis(wait - span / 2 + jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_day_and_last_for_days() {
        let settings = Webhook::default();
        let waits: Vec<u64> =
            (1..settings.max_attempts).map(|attempt| wait_after(attempt, &settings, 0).as_secs()).collect();
        assert!(waits.is_sorted(), "{waits:?}");
        assert_eq!(waits[0], 4);
        assert!(*waits.last().unwrap() <= 24 * 3600);
        let days = waits.iter().sum::<u64>() / (24 * 3600);
        assert!((2..5).contains(&days), "{days}");
        for random in [0, 1, u64::MAX] {
            let wait = wait_after(50, &settings, random).as_secs();
            assert!((21 * 3600..=27 * 3600).contains(&wait), "{wait}");
        }
    }
}
