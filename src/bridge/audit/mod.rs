//! Proves the books of every account, while everything runs: grants − usage − written off = balance − debt, in the
//! store by its own rows, and between store and ledger.
//!
//! The rows of a flushed event never change, so that an account's usage can be summed up in pieces, however much it is
//! and however busy the account. Accounts that the ledger does not have loaded are not loaded for the audit.

mod checks;
mod compare;
mod repair;
mod shards;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

pub use checks::{Check, Finding};
pub use repair::Repaired;
pub use shards::{RedisShards, Shards};
pub use watch::watch;

use self::compare::Compared;
use crate::ledger::{AccountId, LedgerError, SharedLedger};
use crate::store::books::{AccountBooks, UsageSpan};
use crate::store::usage_sums::Figures;
use crate::store::{SharedStore, StoreError};

/// Usage rows summed up for each account of a page in one question.
const PAGE_ROWS: u32 = 2_000;
/// Usage rows summed up in one question for an account that has more.
const CHUNK_ROWS: u32 = 20_000;
/// Accounts looked at together.
const TOGETHER: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// How far an account's usage has been summed up: where the audit of a large account goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summed {
    /// Usage with sequence numbers up to this is in the sum.
    pub upto: u64,
    /// Micro-credits.
    pub micro: i64,
    /// What pruned rows had charged, and how many they were, when the sum was begun: when more are pruned, it begins anew.
    pub pruned: i64,
    pub pruned_rows: i64,
    /// The usage rows alone.
    pub figures: Figures,
}

/// What came of looking at one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// Its books are proven, or differ as the findings say.
    Done(Vec<Finding>),
    /// Time was up while its usage was summed up: go on from here.
    Summing(Summed),
    /// Time was up, or it changed too fast, before store and ledger could be compared. Says why.
    Moving(String),
}

/// What came of looking at a page of accounts.
#[derive(Debug, Default)]
pub struct PageLooked {
    /// Accounts whose audit came to an end.
    pub accounts: u64,
    pub findings: Vec<Finding>,
    /// Those that have to be asked for alone.
    pub unfinished: Vec<AccountId>,
    /// The last account of the page, if there may be more.
    pub last: Option<AccountId>,
}

/// Compares the books, which changes nothing, and mends them when told to. Any number may run at once.
pub struct Auditor {
    store: SharedStore,
    ledger: SharedLedger,
    shards: Option<Arc<dyn Shards>>,
}

impl Auditor {
    /// `shards`: where the ledger's own logs stand, for a ledger outside this process.
    pub fn new(store: SharedStore, ledger: SharedLedger, shards: Option<Arc<dyn Shards>>) -> Arc<Auditor> {
        Arc::new(Auditor { store, ledger, shards })
    }

    /// Looks at up to `limit` accounts after `after`, for about as long as `budget`.
    pub async fn page(
        &self,
        after: Option<&AccountId>,
        limit: u32,
        budget: Duration,
    ) -> Result<PageLooked, AuditError> {
        let deadline = Instant::now() + budget;
        let books = self.store.books(after, limit).await?;
        let mut page = PageLooked::default();
        if books.len() >= limit as usize {
            page.last = books.last().map(|books| books.account.clone());
        }
        let spans = books.iter().map(|books| span(books, 0)).collect();
        let sums = self.store.charged(spans, PAGE_ROWS).await?;
        let looks = books.into_iter().zip(sums).map(|(books, sum)| async move {
            let account = books.account.clone();
            let summed = Summed { upto: sum.upto, micro: sum.micro, figures: sum.figures, ..begun(&books) };
            (account, self.look(books, summed, deadline).await)
        });
        let mut looks = futures_util::stream::iter(looks).buffer_unordered(TOGETHER);
        while let Some((account, looked)) = looks.next().await {
            match looked? {
                Looked::Done(findings) => {
                    page.accounts += 1;
                    page.findings.extend(findings);
                }
                Looked::Summing(_) | Looked::Moving(_) => page.unfinished.push(account),
            }
        }
        page.findings.sort_by(|left, right| left.account.cmp(&right.account));
        page.unfinished.sort();
        Ok(page)
    }

    /// Looks at one account; `None` where there is none.
    pub async fn account(
        &self,
        account: &AccountId,
        from: Summed,
        budget: Duration,
    ) -> Result<Option<Looked>, AuditError> {
        let deadline = Instant::now() + budget;
        let Some(books) = self.store.books_of(account).await? else { return Ok(None) };
        Ok(Some(self.look(books, from, deadline).await?))
    }

    /// Whether the ledger's logs and the store's cursors belong together. Nothing to say of a ledger in the process.
    pub async fn shards(&self) -> Result<Vec<Finding>, AuditError> {
        match &self.shards {
            None => Ok(Vec::new()),
            Some(shards) => shards::check(&self.store, shards.as_ref()).await,
        }
    }

    async fn look(&self, mut books: AccountBooks, from: Summed, deadline: Instant) -> Result<Looked, AuditError> {
        let mut from = still(from, &books);
        let mut findings = loop {
            let summed = self.sum_up(&books, from, deadline).await?;
            if summed.upto < books.seq {
                return Ok(Looked::Summing(summed));
            }
            let mut findings = checks::of_store(&books, summed.micro);
            let Some(days) = self.days(&books, &summed, deadline).await? else {
                return Ok(Looked::Moving("its usage is being added up by day".to_owned()));
            };
            findings.extend(days);
            if findings.iter().all(|found| !found.check.is_of_usage()) {
                break findings;
            }
            // Rows that were pruned since the sum was begun may be in both figures, or in none.
            match self.store.books_of(&books.account).await? {
                Some(now) if !is_of(&summed, &now) => (from, books) = (still(summed, &now), now),
                _ => break findings,
            }
        };
        match self.compare(books, deadline).await? {
            Compared::Done(differences) => findings.extend(differences),
            Compared::Moving(why) => return Ok(Looked::Moving(why)),
        }
        Ok(Looked::Done(findings))
    }

    /// Adds up usage to the end of the account's books, as far as time allows.
    async fn sum_up(&self, books: &AccountBooks, from: Summed, deadline: Instant) -> Result<Summed, StoreError> {
        let mut summed = from;
        while summed.upto < books.seq && Instant::now() < deadline {
            let sums = self.store.charged(vec![span(books, summed.upto)], CHUNK_ROWS).await?;
            let Some(sum) = sums.first() else { break };
            let micro = summed.micro.checked_add(sum.micro);
            let micro = micro.ok_or(StoreError::Invalid("the sum of the usage"))?;
            summed = Summed { upto: sum.upto, micro, figures: summed.figures.plus(&sum.figures), ..summed };
        }
        Ok(summed)
    }

    /// What differs of an account's usage by day, whose usage was `summed` up to the end of its books. `None`: too much of
    /// it is not yet added up by day.
    async fn days(
        &self,
        books: &AccountBooks,
        summed: &Summed,
        deadline: Instant,
    ) -> Result<Option<Vec<Finding>>, StoreError> {
        let (mut rows, mut upto) = (summed.figures, books.days.rolled);
        while upto < summed.upto {
            let rest = UsageSpan { upto: summed.upto, ..span(books, upto) };
            let Some(sum) = self.store.charged(vec![rest], CHUNK_ROWS).await?.pop() else { return Ok(None) };
            (rows, upto) = (rows.minus(&sum.figures), sum.upto);
            if upto < summed.upto && Instant::now() >= deadline {
                return Ok(None);
            }
        }
        Ok(Some(checks::of_days(books, &rows)))
    }
}

/// Nothing summed up yet.
fn begun(books: &AccountBooks) -> Summed {
    Summed { pruned: books.rows.pruned, pruned_rows: books.days.pruned.requests, ..Summed::default() }
}

/// Whether no row was pruned since the sum was begun.
fn is_of(summed: &Summed, books: &AccountBooks) -> bool {
    (summed.pruned, summed.pruned_rows) == (books.rows.pruned, books.days.pruned.requests)
}

/// The sum so far, or none where rows of it may have been pruned since.
fn still(from: Summed, books: &AccountBooks) -> Summed {
    if is_of(&from, books) { from } else { begun(books) }
}

fn span(books: &AccountBooks, after: u64) -> UsageSpan {
    UsageSpan { account: books.account.clone(), after, upto: books.seq }
}
