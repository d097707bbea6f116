//! The books of an account as its rows tell them: what the audit compares.

use async_trait::async_trait;

use super::StoreResult;
use super::usage_sums::Figures;
use crate::ledger::{AccountId, GrantId};

/// Usage rows that are summed up while an account is locked to be mended: what came since it was audited.
pub(super) const REST_ROWS: u32 = 100_000;

/// An account's sums beside the rows that they stand for, all as of one moment. Amounts are micro-credits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountBooks {
    pub account: AccountId,
    /// The account's last flushed event.
    pub seq: u64,
    pub balance: i64,
    pub debt: i64,
    pub granted: i64,
    pub charged: i64,
    pub written_off: i64,
    pub frozen: bool,
    pub applied_change: u64,
    pub last_change: u64,
    pub rows: BookRows,
    pub days: DayBooks,
}

/// What an account's usage by day comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DayBooks {
    /// Usage up to this sequence number has been added up.
    pub rolled: u64,
    /// All days together.
    pub sums: Figures,
    /// What rows that are no longer kept had added to them.
    pub pruned: Figures,
}

/// What the rows of an account add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BookRows {
    /// What remains of the grants that the ledger has applied.
    pub remaining: i64,
    /// What was taken from grants that the ledger has not applied yet; nothing can have been.
    pub taken_early: i64,
    /// The amounts of all grants that billing changes made, by the grants' own rows.
    pub grant_amounts: i64,
    /// The same by the changes.
    pub change_amounts: i64,
    /// Of these, what is applied.
    pub change_amounts_applied: i64,
    pub changes: u64,
    pub newest_change: u64,
    /// Changes marked as applied, and the newest of them.
    pub applied: u64,
    pub newest_applied: u64,
    /// Charged by usage rows and dead letters that are no longer kept.
    pub pruned: i64,
}

/// Usage of an account with sequence numbers above `after`, up to `upto`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSpan {
    pub account: AccountId,
    pub after: u64,
    pub upto: u64,
}

/// What the usage of a span adds up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpanCharged {
    /// By usage rows, and by dead letters whose usage is no row.
    pub micro: i64,
    /// The sum goes up to this sequence number: the span's end, unless there were more rows than asked for.
    pub upto: u64,
    /// The usage rows alone.
    pub figures: Figures,
}

/// An account to be mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MendRequest {
    pub account: AccountId,
    /// What the usage up to the sequence number `upto` adds up to, in micro-credits.
    pub upto: u64,
    pub used: i64,
    /// What rows that are no longer kept had charged when that sum was begun.
    pub pruned: i64,
    /// What the ledger has, where it holds nothing.
    pub hint: Option<MendHint>,
    /// For the audit log.
    pub actor: String,
}

/// An account as the ledger has it, in micro-credits: it tells which grant is wrong, where it agrees with the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MendHint {
    pub seq: u64,
    pub debt: i64,
    pub grants: Vec<(GrantId, i64)>,
}

/// What the audit reads and mends.
#[async_trait]
pub trait Books {
    /// The books of at most `limit` accounts after `after`, in their order.
    async fn books(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountBooks>>;

    /// The books of one account; `None` where there is none.
    async fn books_of(&self, account: &AccountId) -> StoreResult<Option<AccountBooks>>;

    /// What each span was charged, by the rows; at most `limit` rows of each are summed up.
    async fn charged(&self, spans: Vec<UsageSpan>, limit: u32) -> StoreResult<Vec<SpanCharged>>;

    /// Makes an account's sums, debt and grants what billing changes and usage rows say, with a line in the audit log.
    /// Answers whether anything had to change. `Conflict` where the record itself has holes, `NotFound` without such an
    /// account, `Invalid` where the account has not come to `upto`, or has used very much since, `CursorMoved` where rows
    /// were pruned since the sum was begun: they may be in both figures, or in none.
    async fn mend(&self, request: MendRequest) -> StoreResult<bool>;
}
