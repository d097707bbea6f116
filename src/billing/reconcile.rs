//! The comparison with Stripe: finds what no webhook told, after a downtime and once a day.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::envelope;
use super::inbox::now;
use super::lifecycle::facts::Failure;
use super::lifecycle::route::HANDLED;
use super::process::Processor;
use super::stripe::Client;
use crate::store::SharedStore;
use crate::store::billing::EventState;

/// How often it is asked whether a comparison is due. The first time is not at start, which calls nobody.
const LOOK: Duration = Duration::from_secs(30);
/// Between attempts at a comparison that breaks off; the first follows after twice [`LOOK`].
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// Whoever was away for longer compares when it is back.
const AWAY_US: u64 = 15 * 60 * 1_000_000;
/// Stripe keeps events for so long.
const EVENTS_KEPT_US: u64 = 29 * 24 * 3600 * 1_000_000;
/// The last comparison may have missed what Stripe listed late.
const OVERLAP_US: u64 = 2 * 3600 * 1_000_000;
/// Types that Stripe takes in one question.
const TYPES_AT_ONCE: usize = 20;
/// Users read at once.
const USERS: u32 = 200;

/// Compares what is here with Stripe.
pub struct Reconciler {
    pub store: SharedStore,
    pub client: Arc<Client>,
    pub processor: Arc<Processor>,
    pub interval_us: u64,
}

impl Reconciler {
    /// Until `stop`. Of several replicas one compares.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let work = async {
            let (mut away, mut pause) = (true, LOOK);
            // From when on a comparison is still to be made that broke off.
            let mut broken_off: Option<Option<u64>> = None;
            loop {
                tokio::time::sleep(pause).await;
                if std::mem::take(&mut away)
                    && let Err(error) = self.store.expedite_reconciliation(AWAY_US).await
                {
                    tracing::warn!(%error, "whether a comparison with Stripe is due could not be read");
                }
                let due = match broken_off.take() {
                    Some(until) => Some(until),
                    None => self.claim().await,
                };
                pause = match due {
                    Some(until) if !self.compare(until).await => {
                        broken_off = Some(until);
                        (pause * 2).min(LONGEST_PAUSE)
                    }
                    _ => LOOK,
                };
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    async fn claim(&self) -> Option<Option<u64>> {
        let claimed = self.store.claim_reconciliation(self.interval_us).await;
        claimed.unwrap_or_else(|error| {
            tracing::warn!(%error, "whether a comparison with Stripe is due could not be read");
            None
        })
    }

    /// Answers whether it came to its end.
    async fn compare(&self, until: Option<u64>) -> bool {
        let begun = now();
        let kept = begun.saturating_sub(EVENTS_KEPT_US);
        let since = until.map_or(kept, |until| until.saturating_sub(OVERLAP_US)).max(kept);
        let done = async {
            let found = self.events(since).await?;
            let users = self.users(since).await?;
            tracing::info!(found, users, "compared with Stripe");
            self.store.finish_reconciliation(begun).await?;
            Ok::<_, Failure>(())
        };
        let done = done.await;
        if let Err(error) = &done {
            // The next one begins where the last whole one ended.
            tracing::warn!(%error, "the comparison with Stripe broke off; it is begun again");
        }
        done.is_ok()
    }

    /// Takes in events that never came. Answers how many.
    pub async fn events(&self, since_us: u64) -> Result<usize, Failure> {
        let types: Vec<&str> = HANDLED.iter().map(|(name, _)| *name).collect();
        let mut found = 0;
        for types in types.chunks(TYPES_AT_ONCE) {
            for event in self.client.events(types, seconds(since_us), false).await? {
                let Ok(mut event) = envelope::read(event.to_string().as_bytes()) else { continue };
                event.state = EventState::Pending;
                found += usize::from(self.store.insert_event(event).await?);
            }
        }
        Ok(found)
    }

    /// Compares every user that has a customer. Answers how many.
    pub async fn users(&self, since_us: u64) -> Result<usize, Failure> {
        let (mut after, mut seen) = (None, 0);
        loop {
            let users = self.store.billed_users(after.as_ref(), USERS).await?;
            let Some(last) = users.last().cloned() else { return Ok(seen) };
            for user in &users {
                match self.processor.compare(user, seconds(since_us), "reconciliation").await {
                    Ok(()) => seen += 1,
                    Err(error @ Failure::Stripe(_)) | Err(error @ Failure::Store(_)) => return Err(error),
                    Err(error) => tracing::error!(%user, %error, "a user does not agree with Stripe"),
                }
            }
            after = Some(last);
        }
    }
}

fn seconds(micros: u64) -> i64 {
    i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX)
}
