//! Store against ledger, both of which may move.
//!
//! Equal sequence numbers mean equal books. The store follows the ledger, so one waits until it has come to where the
//! ledger stood. Where it passes that point between two looks (an account that is busy all the time), the store's
//! balance at that point is worked out: the balance before, less what the usage rows up to there say was charged,
//! provided that nothing was granted or written off meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::checks::{Check, Differences, Finding, number};
use super::{AuditError, Auditor};
use crate::ledger::{AccountId, Act, Answer, Balance, GrantId, GrantState, LedgerError, Op};
use crate::store::books::{AccountBooks, UsageSpan};

/// How long one answer of the ledger is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait for the store to come to where the ledger stood; it doubles up to [`FOLLOW_MAX`].
const FOLLOW_MIN: Duration = Duration::from_millis(5);
const FOLLOW_MAX: Duration = Duration::from_millis(200);
/// Looks in which the ledger stands behind the store before that is believed: it may just be loading the account anew.
const BEHIND_MAX: u32 = 5;
/// Usage rows between two looks; an account with more is looked at again.
const BETWEEN_ROWS: u32 = 20_000;
/// A sequence number that no account has: parking at it is always refused.
const NO_SEQ: u64 = u64::MAX;

pub(super) enum Compared {
    /// What differs; nothing where the account is not in the ledger.
    Done(Vec<Finding>),
    /// Not yet, and why.
    Moving(String),
}

pub(super) enum Hot {
    Loaded(Balance),
    NotLoaded,
    Unreadable,
}

impl Auditor {
    /// Compares the account, whose books in the store were `before` a moment ago.
    pub(super) async fn compare(&self, mut before: AccountBooks, deadline: Instant) -> Result<Compared, AuditError> {
        let account = before.account.clone();
        let mut behind = 0;
        loop {
            let balance = match self.hot(&account).await? {
                Hot::NotLoaded => return Ok(Compared::Done(Vec::new())),
                Hot::Unreadable => {
                    let mut differences = Differences::of(&account);
                    differences.equal(Check::LedgerUnreadable, 1, 0);
                    return Ok(Compared::Done(differences.found()));
                }
                Hot::Loaded(balance) => balance,
            };
            let mut why = "its credits changed in other ways than by usage";
            if balance.seq < before.seq {
                behind += 1;
                if behind >= BEHIND_MAX {
                    let mut differences = Differences::of(&account);
                    differences.equal(Check::LedgerSequence, number(before.seq), number(balance.seq));
                    return Ok(Compared::Done(differences.found()));
                }
                tokio::time::sleep(FOLLOW_MAX).await;
            } else if let Some(after) = self.follow(&before, balance.seq, deadline).await? {
                if let Some(findings) = self.against(&before, &balance, &after).await? {
                    return Ok(Compared::Done(findings));
                }
            } else {
                why = "the store has not come to where the ledger stands";
            }
            if Instant::now() >= deadline {
                return Ok(Compared::Moving(why.to_owned()));
            }
            let Some(books) = self.store.books_of(&account).await? else {
                return Ok(Compared::Moving("it is gone".to_owned()));
            };
            before = books;
        }
    }

    /// The account's balance, if the ledger has it; asking does not bring it in.
    pub(super) async fn hot(&self, account: &AccountId) -> Result<Hot, AuditError> {
        match self.ask(account, Act::Park { flushed_seq: NO_SEQ }).await? {
            Answer::NotLoaded => return Ok(Hot::NotLoaded),
            Answer::Unreadable => return Ok(Hot::Unreadable),
            _ => {}
        }
        match self.ask(account, Act::Balance).await? {
            Answer::Balance(balance) => Ok(Hot::Loaded(balance)),
            Answer::Unreadable => Ok(Hot::Unreadable),
            Answer::NotLoaded => Ok(Hot::NotLoaded),
            answer => {
                tracing::error!(%account, ?answer, "the ledger answered what was not asked");
                Err(LedgerError::Unavailable.into())
            }
        }
    }

    pub(super) async fn ask(&self, account: &AccountId, act: Act) -> Result<Answer, LedgerError> {
        let reply = self.ledger.submit(Op { account: account.clone(), act });
        tokio::time::timeout(ANSWER_TIMEOUT, reply).await.unwrap_or(Err(LedgerError::Unavailable))
    }

    /// Waits until the store has come to `seq`. `None` when time is up first.
    async fn follow(
        &self,
        before: &AccountBooks,
        seq: u64,
        deadline: Instant,
    ) -> Result<Option<AccountBooks>, AuditError> {
        if before.seq == seq {
            return Ok(Some(before.clone()));
        }
        let mut wait = FOLLOW_MIN;
        loop {
            match self.store.books_of(&before.account).await? {
                Some(books) if books.seq >= seq => return Ok(Some(books)),
                _ if Instant::now() >= deadline => return Ok(None),
                _ => {}
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(FOLLOW_MAX);
        }
    }

    /// Compares where that is possible: `before` and `after` are the store's books on both sides of the ledger's balance.
    async fn against(
        &self,
        before: &AccountBooks,
        balance: &Balance,
        after: &AccountBooks,
    ) -> Result<Option<Vec<Finding>>, AuditError> {
        let mut differences = Differences::of(&before.account);
        if after.seq == balance.seq {
            equal(&mut differences, after, balance);
            self.equal_grants(&mut differences, after, balance).await?;
            return Ok(Some(differences.found()));
        }
        if before.written_off != after.written_off || before.granted != after.granted {
            return Ok(None);
        }
        let span = UsageSpan { account: before.account.clone(), after: before.seq, upto: balance.seq };
        let sums = self.store.charged(vec![span], BETWEEN_ROWS).await?;
        let Some(sum) = sums.first().filter(|sum| sum.upto >= balance.seq) else { return Ok(None) };
        let stored = before.balance.saturating_sub(before.debt).saturating_sub(sum.micro);
        differences.equal(Check::LedgerNet, stored, whole(balance).saturating_sub(balance.debt.micro()));
        Ok(Some(differences.found()))
    }

    /// By grant, where the store still stands at the same place and nothing is held: what is held is not told by grant.
    async fn equal_grants(
        &self,
        differences: &mut Differences<'_>,
        books: &AccountBooks,
        balance: &Balance,
    ) -> Result<(), AuditError> {
        if !balance.held.is_zero() {
            return Ok(());
        }
        let stored = self.store.load_open(&books.account).await?;
        let Some(stored) = stored.filter(|state| state.seq == balance.seq) else { return Ok(()) };
        let ids: BTreeSet<GrantId> = stored.grants.iter().chain(&balance.grants).map(|grant| grant.id).collect();
        for id in ids {
            let remaining = |grants: &[GrantState]| {
                grants.iter().find(|grant| grant.id == id).map_or(0, |grant| grant.remaining_micro)
            };
            let (left, right) = (remaining(&stored.grants), remaining(&balance.grants));
            differences.equal_of(Check::LedgerGrant, Some(id.0), left, right);
        }
        Ok(())
    }
}

/// What the ledger has, with what is held from it.
fn whole(balance: &Balance) -> i64 {
    let remaining: i64 = balance.grants.iter().map(|grant| grant.remaining_micro).sum();
    remaining + balance.held.micro() - balance.clawed.micro()
}

fn equal(differences: &mut Differences<'_>, books: &AccountBooks, balance: &Balance) {
    differences.equal(Check::LedgerBalance, books.balance, whole(balance));
    differences.equal(Check::LedgerDebt, books.debt, balance.debt.micro());
    differences.equal(Check::LedgerChange, number(books.applied_change), number(balance.change));
    differences.equal(Check::LedgerFrozen, i64::from(books.frozen), i64::from(balance.frozen));
}
