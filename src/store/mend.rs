//! What an account's rows must be, by its record: billing changes say what was granted, usage rows what was used.
//! Worked out in memory, so that both stores mend alike.

use serde_json::json;

use super::books::{AccountBooks, MendRequest};
use super::{StoreError, StoreResult};
use crate::credits::Credits;
use crate::ledger::{Change, GrantId, GrantKind, Micros, Scope};

/// Billing changes of one account that mending looks at, at most.
pub(super) const CHANGES_MAX: usize = 100_000;

/// An account's rows, read under its lock.
pub(super) struct Rows {
    pub(super) books: AccountBooks,
    /// In order. `None`: unreadable.
    pub(super) changes: Vec<(u64, Option<Change>)>,
    pub(super) grants: Vec<GrantFound>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GrantFound {
    pub(super) id: GrantId,
    pub(super) kind: GrantKind,
    pub(super) amount: i64,
    pub(super) remaining: i64,
    pub(super) expires_at: Option<Micros>,
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mended {
    pub(super) balance: i64,
    pub(super) debt: i64,
    pub(super) granted: i64,
    pub(super) charged: i64,
    pub(super) frozen: bool,
    pub(super) last_change: u64,
    /// Those that change.
    pub(super) grants: Vec<GrantFound>,
    /// Before and after, for the audit log.
    pub(super) detail: String,
}

/// `used`: what the usage up to the books' sequence adds up to. `None` where everything is as it must be.
///
/// What was granted and used decides what is left. Where the grants' own rows say otherwise, the ledger tells which
/// grant is wrong, if it agrees with the record; else what is missing goes to the grants that burn last, what is too
/// much leaves those that burn first, and what no grant can pay is owed.
///
/// # Errors
/// `Conflict` where the record itself has holes: then a person must look.
pub(super) fn plan(found: &Rows, used: i64, request: &MendRequest) -> StoreResult<Option<Mended>> {
    let books = &found.books;
    let last_change = found.changes.last().map_or(0, |(number, _)| *number);
    if last_change != found.changes.len() as u64 || books.applied_change > last_change {
        return Err(conflict("billing changes are missing"));
    }
    if found.changes.iter().any(|(_, change)| change.is_none()) {
        return Err(conflict("a billing change cannot be read"));
    }
    let mut grants = as_granted(found)?;
    let granted = applied(found).filter_map(|(_, change)| amount_of(change)).sum::<i64>();
    let charged = used.checked_add(books.rows.pruned).ok_or_else(|| conflict("the usage is beyond counting"))?;
    let net = granted.checked_sub(charged).and_then(|net| net.checked_sub(books.written_off));
    let net = net.ok_or_else(|| conflict("the sums are beyond counting"))?;
    let debt = match hinted(&grants, net, books, request) {
        Some((debt, remaining)) => {
            for (grant, remaining) in grants.iter_mut().zip(remaining) {
                grant.remaining = remaining;
            }
            debt
        }
        None => fit(&mut grants, books, net)?,
    };
    let balance = ours(&grants, books).map(|grant| grant.remaining).sum();
    let frozen = applied(found).fold(false, |frozen, (_, change)| match change {
        Change::Freeze { scope: Scope::Account } => true,
        Change::Unfreeze { scope: Scope::Account } => false,
        _ => frozen,
    });
    let changed: Vec<GrantFound> = grants.into_iter().filter(|grant| !found.grants.contains(grant)).collect();
    let after = (balance, debt, granted, charged, frozen, last_change);
    let before = (books.balance, books.debt, books.granted, books.charged, books.frozen, books.last_change);
    let rows = &books.rows;
    let marked = rows.applied == books.applied_change && rows.newest_applied == books.applied_change;
    if before == after && changed.is_empty() && marked {
        return Ok(None);
    }
    let detail = detail(found, before, after, &changed);
    Ok(Some(Mended { balance, debt, granted, charged, frozen, last_change, grants: changed, detail }))
}

fn conflict(why: &str) -> StoreError {
    StoreError::Conflict(format!("the books cannot be mended: {why}"))
}

fn applied(found: &Rows) -> impl Iterator<Item = (u64, &Change)> {
    let upto = found.books.applied_change;
    let changes = found.changes.iter().take_while(move |(number, _)| *number <= upto);
    changes.filter_map(|(number, change)| Some((*number, change.as_ref()?)))
}

fn amount_of(change: &Change) -> Option<i64> {
    match change {
        Change::Grant { amount_micro, .. } => Some(*amount_micro),
        _ => None,
    }
}

/// The grants with the amounts that their changes gave them.
fn as_granted(found: &Rows) -> StoreResult<Vec<GrantFound>> {
    let mut grants = found.grants.clone();
    for (number, change) in &found.changes {
        let Some(amount) = change.as_ref().and_then(amount_of) else { continue };
        let grant = grants.iter_mut().find(|grant| grant.id.0 == *number);
        let grant = grant.ok_or_else(|| conflict("a grant is missing"))?;
        grant.amount = amount;
        let untouched = *number > found.books.applied_change;
        grant.remaining = if untouched { amount } else { grant.remaining.clamp(0, amount) };
    }
    Ok(grants)
}

/// Those that the ledger has.
fn ours<'a>(grants: &'a [GrantFound], books: &'a AccountBooks) -> impl Iterator<Item = &'a GrantFound> {
    grants.iter().filter(|grant| grant.id.0 <= books.applied_change)
}

/// What the ledger says, where it stands at the same place, holds nothing and agrees with the record: the debt, and what
/// remains of each grant.
fn hinted(grants: &[GrantFound], net: i64, books: &AccountBooks, request: &MendRequest) -> Option<(i64, Vec<i64>)> {
    let hint = request.hint.as_ref().filter(|hint| hint.seq == books.seq)?;
    let told = |id: GrantId| hint.grants.iter().find(|(grant, _)| *grant == id).map_or(0, |(_, remaining)| *remaining);
    let sum: i64 = hint.grants.iter().map(|(_, remaining)| remaining).sum();
    let known =
        |(id, remaining): &(GrantId, i64)| grants.iter().any(|grant| grant.id == *id && *remaining <= grant.amount);
    if sum - hint.debt != net || !hint.grants.iter().all(known) {
        return None;
    }
    let remaining = grants.iter().map(|grant| match grant.id.0 <= books.applied_change {
        true => told(grant.id),
        false => grant.remaining,
    });
    Some((hint.debt, remaining.collect()))
}

/// Makes grants and debt add up to `net`; answers the debt.
fn fit(grants: &mut [GrantFound], books: &AccountBooks, net: i64) -> StoreResult<i64> {
    let mut debt = books.debt;
    let there: i64 = ours(grants, books).map(|grant| grant.remaining).sum();
    let mut missing = net - (there - debt);
    let forgiven = missing.clamp(0, debt);
    debt -= forgiven;
    missing -= forgiven;
    let mut order: Vec<&mut GrantFound> =
        grants.iter_mut().filter(|grant| grant.id.0 <= books.applied_change).collect();
    let bought = |kind: GrantKind| kind.bought();
    order.sort_by_key(|grant| (grant.expires_at.unwrap_or(Micros::MAX), bought(grant.kind), grant.id));
    if missing > 0 {
        for grant in order.iter_mut().rev() {
            let given = missing.min(grant.amount - grant.remaining);
            grant.remaining += given;
            missing -= given;
        }
        if missing > 0 {
            return Err(conflict("more would be left than was ever granted"));
        }
    }
    for grant in &mut order {
        let taken = (-missing).min(grant.remaining);
        grant.remaining -= taken;
        missing += taken;
    }
    debt = debt.checked_sub(missing).filter(|debt| *debt <= Credits::MAX.micro()).unwrap_or(Credits::MAX.micro());
    Ok(debt)
}

type Figures = (i64, i64, i64, i64, bool, u64);

fn detail(found: &Rows, before: Figures, after: Figures, changed: &[GrantFound]) -> String {
    let figures = |(balance, debt, granted, charged, frozen, last_change): Figures| {
        json!({
            "balance_micro": balance, "debt_micro": debt, "granted_micro": granted, "charged_micro": charged,
            "frozen": frozen, "last_change": last_change,
        })
    };
    let grants: Vec<_> = changed
        .iter()
        .map(|grant| {
            let was = found.grants.iter().find(|was| was.id == grant.id);
            json!({
                "grant": grant.id.0, "before_micro": was.map(|was| was.remaining), "after_micro": grant.remaining,
            })
        })
        .collect();
    json!({ "seq": found.books.seq, "before": figures(before), "after": figures(after), "grants": grants }).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::books::{BookRows, MendHint};
    use super::*;
    use crate::ledger::AccountId;

    fn grant(id: u64, amount: i64, remaining: i64, expires_at: Option<Micros>) -> GrantFound {
        GrantFound { id: GrantId(id), kind: GrantKind::Topup, amount, remaining, expires_at }
    }

    fn change(amount_micro: i64) -> Option<Change> {
        Some(Change::Grant { kind: GrantKind::Topup, amount_micro, expires_at: 0 })
    }

    /// 100 and 50 granted, 30 used, the second expires first; a third grant is not applied yet.
    fn rows() -> Rows {
        let account = AccountId::parse("ann").unwrap();
        Rows {
            books: AccountBooks {
                days: Default::default(),
                account,
                seq: 9,
                balance: 120,
                debt: 0,
                granted: 150,
                charged: 30,
                written_off: 0,
                frozen: false,
                applied_change: 2,
                last_change: 3,
                rows: BookRows { applied: 2, newest_applied: 2, ..BookRows::default() },
            },
            changes: vec![(1, change(100)), (2, change(50)), (3, change(7))],
            grants: vec![grant(1, 100, 100, None), grant(2, 50, 20, Some(5)), grant(3, 7, 7, None)],
        }
    }

    fn request() -> MendRequest {
        let account = AccountId::parse("ann").unwrap();
        MendRequest { account, upto: 9, used: 30, pruned: 0, hint: None, actor: "test".into() }
    }

    fn mended(change: impl Fn(&mut Rows), used: i64) -> Mended {
        let mut rows = rows();
        change(&mut rows);
        plan(&rows, used, &request()).unwrap().unwrap()
    }

    #[test]
    fn what_is_right_is_left_alone() {
        assert_eq!(plan(&rows(), 30, &request()).unwrap(), None);
    }

    #[test]
    fn sums_follow_the_record() {
        let all = mended(
            |rows| {
                let books = &mut rows.books;
                (books.balance, books.granted, books.charged, books.last_change, books.frozen) = (1, 2, 3, 4, true);
            },
            30,
        );
        assert_eq!((all.balance, all.debt, all.granted, all.charged, all.last_change), (120, 0, 150, 30, 3));
        assert!(!all.frozen && all.grants.is_empty());
        assert!(all.detail.contains("\"balance_micro\":1") && all.detail.contains("\"balance_micro\":120"));
        assert_eq!(mended(|rows| rows.books.rows.applied = 1, 30).balance, 120);
    }

    #[test]
    fn missing_credits_come_back_and_extra_ones_leave_in_burn_order() {
        // More was used than the grants show: the one that expires first pays, then the other, then it is owed.
        assert_eq!(mended(|_| (), 45).grants, [grant(2, 50, 5, Some(5))]);
        let owed = mended(|_| (), 160);
        assert_eq!((owed.balance, owed.debt), (0, 10));
        // Less: what is owed is forgiven first, then what burns last is given back.
        let back = mended(|rows| (rows.grants[0].remaining, rows.books.debt) = (60, 5), 30);
        assert_eq!((back.balance, back.debt, back.grants), (120, 0, vec![grant(1, 100, 100, None)]));
        assert_eq!(mended(|rows| rows.grants[2].remaining = 3, 30).grants, [grant(3, 7, 7, None)]);
        assert_eq!(mended(|rows| rows.grants[0].amount = 900, 30).balance, 120);
    }

    #[test]
    fn the_ledger_tells_which_grant_is_wrong() {
        let mut found = rows();
        found.grants[1].remaining = 0;
        let hint = |seq, one, two| Some(MendHint { seq, debt: 0, grants: vec![(GrantId(1), one), (GrantId(2), two)] });
        let with = |hint| plan(&found, 30, &MendRequest { hint, ..request() }).unwrap().unwrap();
        assert_eq!(with(hint(9, 100, 20)).grants, [grant(2, 50, 20, Some(5))]);
        assert_eq!(with(hint(9, 80, 40)).grants, [grant(1, 100, 80, None), grant(2, 50, 40, Some(5))]);
        // One that stands elsewhere, or does not agree with the record, is not asked.
        for useless in [hint(8, 80, 40), hint(9, 100, 30), None] {
            assert_eq!(with(useless).grants, [grant(2, 50, 20, Some(5))]);
        }
    }

    #[test]
    fn a_record_with_holes_is_for_people() {
        let refused = |change: &dyn Fn(&mut Rows)| {
            let mut rows = rows();
            change(&mut rows);
            plan(&rows, 30, &request()).unwrap_err().to_string()
        };
        assert!(refused(&|rows| rows.changes.retain(|(number, _)| *number != 2)).contains("missing"));
        assert!(refused(&|rows| rows.changes[1].1 = None).contains("read"));
        assert!(refused(&|rows| rows.grants.retain(|grant| grant.id.0 != 2)).contains("grant is missing"));
        assert!(refused(&|rows| rows.books.written_off = -1_000).contains("ever granted"));
    }
}
