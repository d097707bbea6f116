//! Who spent just now: told by the flusher as it reads a ledger's events, for whoever acts on a balance that fell.
//!
//! It is a hint and may be lost: whoever listens looks for itself now and then.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::credits::Credits;
use crate::ledger::log::{Cursor, Entries, EventLog, LogError};
use crate::ledger::{AccountId, Event};

/// Accounts kept until they are taken; those beyond are forgotten.
const ACCOUNTS_MAX: usize = 20_000;

/// Accounts that spent since they were last asked for.
#[derive(Debug, Default)]
pub struct Spenders {
    /// Whether anybody wants to know.
    open: AtomicBool,
    accounts: Mutex<HashSet<AccountId>>,
    told: Notify,
}

impl Spenders {
    /// Nobody's are kept until it is opened.
    pub fn open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    fn note(&self, events: &[Event]) {
        if !self.open.load(Ordering::Relaxed) {
            return;
        }
        let fell =
            |event: &&Event| event.charged > Credits::ZERO || event.written_off > Credits::ZERO || event.debt_delta > 0;
        let mut accounts = self.accounts.lock();
        for event in events.iter().filter(fell) {
            if accounts.len() < ACCOUNTS_MAX && !accounts.contains(&event.account) {
                accounts.insert(event.account.clone());
            }
        }
        if !accounts.is_empty() {
            self.told.notify_one();
        }
    }

    /// Waits until somebody spent.
    pub async fn told(&self) {
        self.told.notified().await;
    }

    /// Those who spent, each once.
    pub fn take(&self) -> Vec<AccountId> {
        self.accounts.lock().drain().collect()
    }
}

/// An event log whose events are told to [`Spenders`] as they are read.
pub struct Watched<L> {
    pub log: L,
    pub spenders: Arc<Spenders>,
}

#[async_trait]
impl<L: EventLog> EventLog for Watched<L> {
    fn shards(&self) -> u32 {
        self.log.shards()
    }

    fn awaited(&self) -> bool {
        self.log.awaited()
    }

    async fn read(&self, shard: u32, cursor: Cursor, limit: usize, wait: Duration) -> Result<Entries, LogError> {
        let entries = self.log.read(shard, cursor, limit, wait).await?;
        self.spenders.note(&entries.events);
        Ok(entries)
    }

    async fn acknowledge(&self, shard: u32, cursor: Cursor) -> Result<(), LogError> {
        self.log.acknowledge(shard, cursor).await
    }

    async fn folded(&self, shard: u32, cursor: Cursor) -> Result<(), LogError> {
        self.log.folded(shard, cursor).await
    }
}
