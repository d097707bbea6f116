//! What must be equal, and what is found where it is not.

use crate::ledger::AccountId;
use crate::store::books::AccountBooks;
use crate::store::usage_sums::Figures;

/// One equation of the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    Books,
    Grants,
    TakenEarly,
    Granted,
    GrantAmounts,
    Charged,
    DayRequests,
    DayCharged,
    DayTokens,
    DayMarks,
    DaySequence,
    Changes,
    AppliedChanges,
    LedgerBalance,
    LedgerDebt,
    LedgerNet,
    LedgerGrant,
    LedgerChange,
    LedgerFrozen,
    LedgerSequence,
    LedgerUnreadable,
    Epoch,
    Cursor,
}

impl Check {
    pub fn name(self) -> &'static str {
        match self {
            Check::Books => "books",
            Check::Grants => "grants",
            Check::TakenEarly => "taken_early",
            Check::Granted => "granted",
            Check::GrantAmounts => "grant_amounts",
            Check::Charged => "charged",
            Check::DayRequests => "day_requests",
            Check::DayCharged => "day_charged",
            Check::DayTokens => "day_tokens",
            Check::DayMarks => "day_marks",
            Check::DaySequence => "day_sequence",
            Check::Changes => "changes",
            Check::AppliedChanges => "applied_changes",
            Check::LedgerBalance => "ledger_balance",
            Check::LedgerDebt => "ledger_debt",
            Check::LedgerNet => "ledger_net",
            Check::LedgerGrant => "ledger_grant",
            Check::LedgerChange => "ledger_change",
            Check::LedgerFrozen => "ledger_frozen",
            Check::LedgerSequence => "ledger_sequence",
            Check::LedgerUnreadable => "ledger_unreadable",
            Check::Epoch => "epoch",
            Check::Cursor => "cursor",
        }
    }

    /// Left side = right side.
    pub fn equation(self) -> &'static str {
        match self {
            Check::Books => "granted - charged - written off = balance - debt",
            Check::Grants => "balance = what remains of the grants",
            Check::TakenEarly => "taken from grants before they were applied = 0",
            Check::Granted => "granted = amounts of the applied changes",
            Check::GrantAmounts => "amounts of the grants = amounts of the changes that made them",
            Check::Charged => "charged = usage rows + dead letters + what is no longer kept",
            Check::DayRequests => "requests by day = usage rows that were added up + what is no longer kept",
            Check::DayCharged => "charged by day = usage rows that were added up + what is no longer kept",
            Check::DayTokens => "tokens by day = usage rows that were added up + what is no longer kept",
            Check::DayMarks => "estimates and errors by day = usage rows that were added up + what is no longer kept",
            Check::DaySequence => "the sequence up to which usage was added up by day <= the account's",
            Check::Changes => "number of the last change = how many there are, without gaps",
            Check::AppliedChanges => "last applied change = how many are marked as applied",
            Check::LedgerBalance => "the store's balance = the ledger's, with what is held",
            Check::LedgerDebt => "the store's debt = the ledger's",
            Check::LedgerNet => "the store's balance - debt = the ledger's, with what is held",
            Check::LedgerGrant => "what remains of a grant in the store = in the ledger",
            Check::LedgerChange => "the last change applied in the store = in the ledger",
            Check::LedgerFrozen => "frozen in the store = in the ledger",
            Check::LedgerSequence => "the store's sequence <= the ledger's",
            Check::LedgerUnreadable => "the ledger can read the account",
            Check::Epoch => "the store's epoch of a shard = the ledger's",
            Check::Cursor => "the store's cursor of a shard <= the ledger's counter",
        }
    }

    /// Whether rows that are pruned between two looks may bring it about.
    pub(super) fn is_of_usage(self) -> bool {
        use Check::{Charged, DayCharged, DayMarks, DayRequests, DayTokens};
        matches!(self, Charged | DayRequests | DayCharged | DayTokens | DayMarks)
    }

    /// Whether the sides are micro-credits; else they are plain numbers.
    pub fn is_money(self) -> bool {
        !matches!(
            self,
            Check::DayRequests
                | Check::DayTokens
                | Check::DayMarks
                | Check::DaySequence
                | Check::Changes
                | Check::AppliedChanges
                | Check::LedgerChange
                | Check::LedgerFrozen
                | Check::LedgerSequence
                | Check::LedgerUnreadable
                | Check::Epoch
                | Check::Cursor
        )
    }
}

/// An equation that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `None`: about a shard.
    pub account: Option<AccountId>,
    pub check: Check,
    pub left: i64,
    pub right: i64,
    /// Which grant or shard, where the equation is about one.
    pub which: Option<u64>,
}

impl Finding {
    /// By how much the left side is larger.
    pub fn difference(&self) -> i64 {
        self.left.saturating_sub(self.right)
    }
}

/// Collects what differs of one account.
pub(super) struct Differences<'a> {
    account: &'a AccountId,
    found: Vec<Finding>,
}

impl<'a> Differences<'a> {
    pub(super) fn of(account: &'a AccountId) -> Differences<'a> {
        Differences { account, found: Vec::new() }
    }

    pub(super) fn equal(&mut self, check: Check, left: i64, right: i64) {
        self.equal_of(check, None, left, right);
    }

    pub(super) fn equal_of(&mut self, check: Check, which: Option<u64>, left: i64, right: i64) {
        if left != right {
            self.found.push(Finding { account: Some(self.account.clone()), check, left, right, which });
        }
    }

    pub(super) fn found(self) -> Vec<Finding> {
        self.found
    }
}

pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The store by itself. `used`: what the usage up to the books' sequence adds up to.
pub(super) fn of_store(books: &AccountBooks, used: i64) -> Vec<Finding> {
    let rows = &books.rows;
    let mut differences = Differences::of(&books.account);
    let earned = books.granted.saturating_sub(books.charged).saturating_sub(books.written_off);
    differences.equal(Check::Books, earned, books.balance.saturating_sub(books.debt));
    differences.equal(Check::Grants, books.balance, rows.remaining);
    differences.equal(Check::TakenEarly, rows.taken_early, 0);
    differences.equal(Check::Granted, books.granted, rows.change_amounts_applied);
    differences.equal(Check::GrantAmounts, rows.grant_amounts, rows.change_amounts);
    differences.equal(Check::Charged, books.charged, used.saturating_add(rows.pruned));
    // So many numbers, the largest of them that many: none is missing.
    let there = unlike(books.last_change, rows.changes, rows.newest_change);
    differences.equal(Check::Changes, number(books.last_change), number(there));
    let marked = unlike(books.applied_change, rows.applied, rows.newest_applied);
    differences.equal(Check::AppliedChanges, number(books.applied_change), number(marked));
    differences.found()
}

/// Usage by day. `rows`: what the usage rows that were added up come to.
pub(super) fn of_days(books: &AccountBooks, rows: &Figures) -> Vec<Finding> {
    let mut differences = Differences::of(&books.account);
    let there = &books.days.sums;
    let wanted = rows.plus(&books.days.pruned);
    let tokens = |of: &Figures| of.input_tokens.saturating_add(of.cached_tokens).saturating_add(of.output_tokens);
    let marks = |of: &Figures| of.estimated.saturating_add(of.client_errors).saturating_add(of.server_errors);
    differences.equal(Check::DayRequests, there.requests, wanted.requests);
    differences.equal(Check::DayCharged, there.charged, wanted.charged);
    differences.equal(Check::DayTokens, tokens(there), tokens(&wanted));
    differences.equal(Check::DayMarks, marks(there), marks(&wanted));
    if books.days.rolled > books.seq {
        differences.equal(Check::DaySequence, number(books.days.rolled), number(books.seq));
    }
    differences.found()
}

/// The one of two numbers that is not as it should be, if there is one.
fn unlike(wanted: u64, count: u64, newest: u64) -> u64 {
    if count == wanted { newest } else { count }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::books::{BookRows, DayBooks};

    fn books() -> AccountBooks {
        AccountBooks {
            account: AccountId::parse("ann").unwrap(),
            seq: 7,
            balance: 60,
            debt: 0,
            granted: 100,
            charged: 30,
            written_off: 10,
            frozen: false,
            applied_change: 2,
            last_change: 3,
            rows: BookRows {
                remaining: 60,
                taken_early: 0,
                grant_amounts: 150,
                change_amounts: 150,
                change_amounts_applied: 100,
                changes: 3,
                newest_change: 3,
                applied: 2,
                newest_applied: 2,
                pruned: 5,
            },
            days: DayBooks {
                rolled: 7,
                sums: Figures { requests: 4, charged: 30, input_tokens: 9, ..Figures::default() },
                pruned: Figures { requests: 1, charged: 5, ..Figures::default() },
            },
        }
    }

    #[test]
    fn books_that_balance_are_silent() {
        assert_eq!(of_store(&books(), 25), []);
    }

    #[test]
    fn every_figure_by_day_that_is_wrong_is_found() {
        let rows = Figures { requests: 3, charged: 25, input_tokens: 9, ..Figures::default() };
        assert_eq!(of_days(&books(), &rows), []);
        let check = |change: &dyn Fn(&mut AccountBooks)| {
            let mut books = books();
            change(&mut books);
            of_days(&books, &rows).into_iter().map(|finding| finding.check).collect::<Vec<_>>()
        };
        assert_eq!(check(&|books| books.days.sums.requests = 5), [Check::DayRequests]);
        assert_eq!(check(&|books| books.days.pruned.charged = 6), [Check::DayCharged]);
        assert_eq!(check(&|books| books.days.sums.cached_tokens = 1), [Check::DayTokens]);
        assert_eq!(check(&|books| books.days.sums.server_errors = 1), [Check::DayMarks]);
        assert_eq!(check(&|books| books.days.rolled = 8), [Check::DaySequence]);
        assert_eq!(check(&|books| books.days.rolled = 6), []);
    }

    #[test]
    fn every_figure_that_is_wrong_is_found() {
        let check = |change: &dyn Fn(&mut AccountBooks), used| {
            let mut books = books();
            change(&mut books);
            of_store(&books, used).into_iter().map(|finding| finding.check).collect::<Vec<_>>()
        };
        assert_eq!(check(&|books| books.balance = 61, 25), [Check::Books, Check::Grants]);
        assert_eq!(check(&|books| books.debt = 1, 25), [Check::Books]);
        assert_eq!(check(&|books| books.written_off = 11, 25), [Check::Books]);
        assert_eq!(check(&|books| books.granted = 101, 25), [Check::Books, Check::Granted]);
        assert_eq!(check(&|books| books.charged = 31, 25), [Check::Books, Check::Charged]);
        assert_eq!(check(&|_| (), 24), [Check::Charged]);
        assert_eq!(check(&|books| books.rows.remaining = 59, 25), [Check::Grants]);
        assert_eq!(check(&|books| books.rows.taken_early = 1, 25), [Check::TakenEarly]);
        assert_eq!(check(&|books| books.rows.grant_amounts = 149, 25), [Check::GrantAmounts]);
        assert_eq!(check(&|books| books.rows.change_amounts = 151, 25), [Check::GrantAmounts]);
        assert_eq!(check(&|books| books.rows.pruned = 4, 25), [Check::Charged]);
        assert_eq!(check(&|books| books.last_change = 4, 25), [Check::Changes]);
        assert_eq!(check(&|books| books.rows.changes = 2, 25), [Check::Changes]);
        assert_eq!(check(&|books| books.rows.newest_change = 4, 25), [Check::Changes]);
        assert_eq!(check(&|books| books.applied_change = 3, 25), [Check::AppliedChanges]);
        assert_eq!(check(&|books| books.rows.applied = 1, 25), [Check::AppliedChanges]);
        assert_eq!(check(&|books| books.rows.newest_applied = 3, 25), [Check::AppliedChanges]);
    }
}
