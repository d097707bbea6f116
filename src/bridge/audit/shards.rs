//! The ledger's logs against the store's cursors.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::AuditError;
use super::checks::{Check, Finding, number};
use crate::ledger::LedgerError;
use crate::ledger::redis::RedisLedger;
use crate::ledger::redis::log::Log;
use crate::store::{Cursor, SharedStore};

/// A shard that is just being opened anew is looked at again, so often and after this long.
const LOOKS: usize = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Where the ledger's event logs stand.
#[async_trait]
pub trait Shards: Send + Sync + 'static {
    /// Shards are numbered from 0.
    fn count(&self) -> u32;

    /// The epoch and the number of the shard's last entry.
    async fn position(&self, shard: u32) -> Result<Cursor, LedgerError>;
}

/// The shards in Redis.
pub struct RedisShards {
    logs: Vec<Mutex<Log>>,
}

impl RedisShards {
    pub fn new(ledger: &RedisLedger) -> RedisShards {
        RedisShards { logs: (0..ledger.shards()).map(|shard| Mutex::new(ledger.log(shard))).collect() }
    }
}

#[async_trait]
impl Shards for RedisShards {
    fn count(&self) -> u32 {
        u32::try_from(self.logs.len()).unwrap_or(u32::MAX)
    }

    async fn position(&self, shard: u32) -> Result<Cursor, LedgerError> {
        let log = self.logs.get(shard as usize).ok_or(LedgerError::Unavailable)?;
        let position = log.lock().await.position().await.map_err(|error| {
            tracing::warn!(shard, %error, "where the ledger stands is not known");
            LedgerError::Unavailable
        })?;
        Ok(Cursor { epoch: position.epoch, counter: position.counter })
    }
}

/// The store is read first: the ledger goes on meanwhile, never back.
pub(super) async fn check(store: &SharedStore, shards: &dyn Shards) -> Result<Vec<Finding>, AuditError> {
    let mut findings = Vec::new();
    for shard in 0..shards.count() {
        let mut found = None;
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            let stored = store.cursor(shard).await?;
            found = compare(shard, stored, shards.position(shard).await?);
            if found.is_none() {
                break;
            }
        }
        findings.extend(found);
    }
    Ok(findings)
}

fn compare(shard: u32, stored: Cursor, ledger: Cursor) -> Option<Finding> {
    let differs = |check, left, right| Finding {
        account: None,
        check,
        left: number(left),
        right: number(right),
        which: Some(u64::from(shard)),
    };
    if stored.epoch != ledger.epoch {
        return Some(differs(Check::Epoch, stored.epoch, ledger.epoch));
    }
    (stored.counter > ledger.counter).then(|| differs(Check::Cursor, stored.counter, ledger.counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_never_ahead_of_its_log() {
        let at = |epoch, counter| Cursor { epoch, counter };
        assert_eq!(compare(0, at(1, 5), at(1, 5)), None);
        assert_eq!(compare(0, at(1, 5), at(1, 9)), None);
        assert_eq!(compare(0, at(1, 6), at(1, 5)).map(|found| found.check), Some(Check::Cursor));
        assert_eq!(
            compare(3, at(2, 0), at(1, 5)).map(|found| (found.check, found.which)),
            Some((Check::Epoch, Some(3)))
        );
    }
}
