//! How flushing and folding fail, and how long they wait before they try again.

use std::time::Duration;

use crate::ledger::log::LogError;
use crate::store::StoreError;

/// The first wait after a failure; it doubles up to [`BACKOFF_MAX`].
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(20);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(super) enum FlushError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
