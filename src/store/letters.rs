//! What a flush could not write as it should be: for people to look at.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Page, PageRequest, StoreResult, Unreadable};
use crate::ledger::Micros;

/// One event that did not fit. Its effect on the account was applied, unless the reason says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: i64,
    pub at: Micros,
    pub shard: u32,
    pub epoch: u64,
    /// As the event had it: there may be no such user.
    pub account: String,
    pub seq: u64,
    /// `repeat`, `hole`, `unknown_account`, `unknown_change`, `unknown_grant`, `misfit`, `unreadable_usage`,
    /// `duplicate_request`, `refused_effect`, `refused`; `unreadable_entry` for an entry of the ledger's log, of no account
    /// that is known, with its bytes as `usage`.
    pub reason: String,
    pub detail: String,
    /// The event without its usage, as JSON.
    pub event: String,
    /// The usage as the event had it.
    pub usage: Bytes,
}

/// Of entries of a log that cannot be read.
pub(super) const UNREADABLE_ENTRY: &str = "unreadable_entry";

/// By what an entry of a shard's log is told from any other.
pub(super) fn place(entry: &Unreadable) -> String {
    serde_json::json!({ "epoch": entry.epoch, "counter": entry.counter }).to_string()
}

#[async_trait]
pub trait DeadLetters {
    /// Newest first.
    async fn dead_letters(&self, page: PageRequest) -> StoreResult<Page<DeadLetter>>;

    /// One of them, while it is kept.
    async fn dead_letter(&self, id: i64) -> StoreResult<Option<DeadLetter>>;
}
