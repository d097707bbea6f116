//! Usage by day follows the flush: a step at a time, by every replica, of which the store lets one at a time.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::ledger::AccountId;
use crate::store::{SharedStore, StoreError, StoreResult};

/// Time between two rounds over the accounts. Reports do not wait for a round: they add up what is fresh themselves.
const INTERVAL_MIN: Duration = Duration::from_secs(5);
const INTERVAL_MAX: Duration = Duration::from_secs(20);
/// A round takes at most one part in so many of the time: with very many accounts looking alone is work.
const SHARE: u32 = 20;
/// Steps of one round at most; a round that is cut goes on at the next one.
const STEPS_MAX: usize = 1_000;
/// Between two steps of a round, so that other work of the store comes first.
const BREATH: Duration = Duration::from_millis(2);

/// Adds usage up until `stop`.
pub async fn run(store: SharedStore, stop: CancellationToken) {
    let mut interval = INTERVAL_MIN;
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = stop.cancelled() => return,
        }
        let began = Instant::now();
        let round = async {
            match round(&store).await {
                // Another replica adds up the same.
                Ok(()) | Err(StoreError::CursorMoved) => {}
                Err(error) => tracing::warn!(%error, "usage could not be added up by day"),
            }
        };
        // What a step has not committed is added up the next time.
        tokio::select! {
            () = round => {}
            () = stop.cancelled() => return,
        }
        interval = (began.elapsed() * SHARE).clamp(INTERVAL_MIN, INTERVAL_MAX);
    }
}

async fn round(store: &SharedStore) -> StoreResult<()> {
    let mut after = None;
    for _ in 0..STEPS_MAX {
        let step = store.roll_up(None, after.as_ref()).await?;
        after = step.last;
        if after.is_none() {
            break;
        }
        tokio::time::sleep(BREATH).await;
    }
    Ok(())
}

/// Adds up what is there now, of one account or of all, before a report. Answers whether that was done within `budget`.
pub async fn catch_up(store: &SharedStore, account: Option<&AccountId>, budget: Duration) -> StoreResult<bool> {
    let deadline = Instant::now() + budget;
    let mut after = None;
    loop {
        match store.roll_up(account, after.as_ref()).await {
            Ok(step) if step.last.is_none() => return Ok(true),
            // The rest of one account begins where it is itself; of all, with the account that was cut.
            Ok(step) => after = step.last.filter(|_| account.is_none()),
            Err(StoreError::CursorMoved) => tokio::time::sleep(BREATH).await,
            Err(error) => return Err(error),
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
}
