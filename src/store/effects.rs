//! What events do to an account's rows: worked out in memory, so that both stores write the same.
//!
//! A flush loads the rows that a batch touches, applies the events in order, and writes the rows back. Nothing here
//! fails: what does not fit is cut, becomes debt, and is reported as a [`Letter`].

use bytes::Bytes;
use serde_json::json;

use super::notifications::NoticeKind;
use crate::credits::Credits;
use crate::ledger::{AccountId, Change, Delta, Event, GrantId, Micros, Scope, WRITE_OFF_AFTER_US};

/// Why something ended among the dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The account's sequence was past this event; nothing of it was applied.
    Repeat,
    /// Events of the account are missing before this one.
    Hole,
    UnknownAccount,
    UnknownChange,
    UnknownGrant,
    /// A delta or a debt that the rows cannot hold.
    Misfit,
    UnreadableUsage,
    DuplicateRequest,
    /// The store refused what the event changes: nothing of it was applied.
    RefusedEffect,
    /// The store refused the usage row; what the event changes was applied.
    Refused,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reason::Repeat => "repeat",
            Reason::Hole => "hole",
            Reason::UnknownAccount => "unknown_account",
            Reason::UnknownChange => "unknown_change",
            Reason::UnknownGrant => "unknown_grant",
            Reason::Misfit => "misfit",
            Reason::UnreadableUsage => "unreadable_usage",
            Reason::DuplicateRequest => "duplicate_request",
            Reason::RefusedEffect => "refused_effect",
            Reason::Refused => "refused",
        }
    }
}

/// What could not be written as it should be, with the whole event.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) account: AccountId,
    pub(crate) seq: u64,
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// The event without its usage, as JSON.
    pub(crate) event: String,
    pub(crate) usage: Bytes,
}

impl Letter {
    pub(crate) fn new(event: &Event, reason: Reason, detail: impl Into<String>) -> Letter {
        let text = json!({
            "account": event.account,
            "seq": event.seq,
            "at": event.at,
            "kind": event.kind,
            "charged_micro": event.charged.micro(),
            "written_off_micro": event.written_off.micro(),
            "forfeited_micro": event.forfeited.micro(),
            "debt_delta": event.debt_delta,
            "change": event.change,
            "deltas": event.deltas.as_slice(),
            "record": event.record,
        });
        Letter {
            account: event.account.clone(),
            seq: event.seq,
            reason,
            detail: detail.into(),
            event: text.to_string(),
            usage: event.usage.clone(),
        }
    }
}

/// An account's row of `credits`, the changes that the batch's events answer, and the grants that they touch.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) seq: u64,
    pub(crate) balance: i64,
    pub(crate) debt: i64,
    pub(crate) frozen: bool,
    pub(crate) granted: i64,
    pub(crate) charged: i64,
    pub(crate) written_off: i64,
    pub(crate) forfeited: i64,
    pub(crate) applied_change: u64,
    /// Number of the last notification.
    pub(crate) notices: u64,
    /// What was said about the balance: 0 nothing, 1 that it is low, 2 that it is used up.
    pub(crate) warned: i16,
    /// The highest that new credits made the balance, if any came.
    pub(crate) refilled: Option<i64>,
    /// Changes after `applied_change`, in order, without gaps; each leaves when it is applied.
    pub(crate) changes: Vec<(u64, Change)>,
    pub(crate) grants: Vec<GrantRows>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GrantRows {
    pub(crate) id: GrantId,
    pub(crate) amount: i64,
    pub(crate) remaining: i64,
    pub(crate) frozen: bool,
    /// 0: never.
    pub(crate) expires_at: Micros,
    /// What ended unused, other than by a revocation with an amount: a refund counts it as returned.
    pub(crate) lapsed: i64,
    /// Whether the row must be written back.
    pub(crate) changed: bool,
}

impl Rows {
    /// Applies one event. `false` where it was applied before: then its usage is not a row either.
    pub(crate) fn apply(&mut self, event: &Event, letters: &mut Vec<Letter>) -> bool {
        if event.seq <= self.seq {
            letters.push(Letter::new(event, Reason::Repeat, format!("the account stands at {}", self.seq)));
            return false;
        }
        if event.seq != self.seq + 1 {
            letters.push(Letter::new(event, Reason::Hole, format!("the account stands at {}", self.seq)));
        }
        self.seq = event.seq;
        let granted = self.granted;
        let mut lapsing = Lapsing::of(event);
        if event.change > 0 {
            self.apply_changes(event, &mut lapsing, letters);
        }
        // Debt that was paid already is not paid twice: what was taken for it stays where it was.
        let overpaid = -(i128::from(self.debt) + i128::from(event.debt_delta)).min(0);
        let mut kept = i64::try_from(overpaid).unwrap_or(i64::MAX);
        let (mut short, mut spared) = (0, 0);
        for delta in &event.deltas {
            let back = kept.min(delta.micro.saturating_neg().max(0));
            kept -= back;
            spared += i128::from(back);
            short += self.shift(Delta { micro: delta.micro.saturating_add(back), ..*delta }, event, letters);
            self.lapse(*delta, event.at, &mut lapsing);
        }
        if spared > 0 {
            letters.push(Letter::new(event, Reason::Misfit, format!("{spared} of the debt were paid before")));
        }
        // What was to be written off and is gone is owed by nobody; what was used and could not be paid is.
        let gone = short.min(i128::from(event.written_off.micro()));
        self.add_debt(i128::from(event.debt_delta) + spared + short - gone, event, letters);
        self.charged = self.charged.saturating_add(event.charged.micro());
        let written_off = i64::try_from(i128::from(event.written_off.micro()) - gone).unwrap_or(0);
        self.written_off = self.written_off.saturating_add(written_off);
        self.forfeited = self.forfeited.saturating_add(event.forfeited.micro());
        if event.change > 0 && self.granted > granted {
            self.refilled = Some(self.refilled.map_or(self.net(), |known| known.max(self.net())));
        }
        true
    }

    /// What there is, held or not, less what is owed.
    pub(crate) fn net(&self) -> i64 {
        self.balance.saturating_sub(self.debt)
    }

    /// Whether [`Rows::warn`] may have something to do, under no matter which plan.
    pub(crate) fn may_warn(&self, highest: i64) -> bool {
        let next = match self.warned {
            0 => highest.max(1),
            1 => 1,
            _ => i64::MIN,
        };
        self.net() < next || self.refilled.is_some_and(|refilled| self.warned > 0 || refilled < highest)
    }

    /// What the user is to be told now that the balance stands where it does, and that it was told. `low`: below that.
    pub(crate) fn warn(&mut self, low: i64) -> Option<NoticeKind> {
        match self.refilled.take() {
            // What was small from the beginning is no news; its end is.
            Some(refilled) if refilled > 0 => self.warned = i16::from(refilled < low),
            _ => {}
        }
        let (level, kind) = match self.net() {
            net if net <= 0 => (2, NoticeKind::CreditsExhausted),
            net if net < low => (1, NoticeKind::CreditsLow),
            _ => return None,
        };
        if level <= self.warned {
            return None;
        }
        self.warned = level;
        self.notices += 1;
        Some(kind)
    }

    /// Takes over what the ledger says it has applied: change `event.change` and, should an event be missing, those before it.
    fn apply_changes(&mut self, event: &Event, lapsing: &mut Lapsing, letters: &mut Vec<Letter>) {
        let due = self.changes.iter().take_while(|(number, _)| *number <= event.change).count();
        let due: Vec<(u64, Change)> = self.changes.drain(..due).collect();
        if due.last().is_none_or(|(number, _)| *number != event.change) {
            let detail = format!("change {} is not stored, or was applied", event.change);
            letters.push(Letter::new(event, Reason::UnknownChange, detail));
        }
        for (number, change) in due {
            self.applied_change = number;
            match change {
                Change::Grant { amount_micro, .. } => {
                    self.balance = self.balance.saturating_add(amount_micro);
                    self.granted = self.granted.saturating_add(amount_micro);
                }
                Change::Rollover { from, .. } => {
                    let moved = self.begin_rollover(GrantId(number), from, event);
                    lapsing.moves(from, moved);
                }
                Change::Revoke { grant, amount_micro: None } => lapsing.ends(grant),
                Change::Revoke { grant, amount_micro: Some(_) } => lapsing.clawed = Some(grant),
                Change::Freeze { scope } => self.set_frozen(scope, true),
                Change::Unfreeze { scope } => self.set_frozen(scope, false),
            }
        }
    }

    /// Only the ledger knew how much moves: the new grant is that large.
    fn begin_rollover(&mut self, to: GrantId, from: GrantId, event: &Event) -> i64 {
        let moved = event.deltas.iter().find(|delta| delta.grant == to).map_or(0, |delta| delta.micro);
        let moved = moved.clamp(0, Credits::MAX.micro());
        let frozen = self.grant(from).is_some_and(|grant| grant.frozen);
        if let Some(grant) = self.grant(to) {
            grant.amount = moved;
            grant.frozen = frozen;
            grant.changed = true;
        }
        moved
    }

    /// Counts what the event wrote off of a grant.
    fn lapse(&mut self, delta: Delta, at: Micros, lapsing: &mut Lapsing) {
        let Some(grant) = self.grant(delta.grant) else { return };
        let due = grant.expires_at > 0 && grant.expires_at.saturating_add(WRITE_OFF_AFTER_US) <= at;
        let most = (grant.amount - grant.lapsed).max(0);
        let lapsed = lapsing.share(delta, due).min(most);
        if lapsed > 0 {
            grant.lapsed += lapsed;
            grant.changed = true;
        }
    }

    fn set_frozen(&mut self, scope: Scope, frozen: bool) {
        match scope {
            Scope::Account => self.frozen = frozen,
            Scope::Grant { grant } => {
                if let Some(grant) = self.grant(grant) {
                    grant.frozen = frozen;
                    grant.changed = true;
                }
            }
        }
    }

    /// Answers what the grant could not give. What it could not take in is not given to anyone.
    fn shift(&mut self, delta: Delta, event: &Event, letters: &mut Vec<Letter>) -> i128 {
        let Some(grant) = self.grant(delta.grant) else {
            letters.push(Letter::new(event, Reason::UnknownGrant, format!("grant {}", delta.grant.0)));
            return -i128::from(delta.micro.min(0));
        };
        let wanted = i128::from(grant.remaining) + i128::from(delta.micro);
        let fits = wanted.clamp(0, i128::from(grant.amount));
        let now = i64::try_from(fits).unwrap_or(grant.remaining);
        let moved = now - grant.remaining;
        grant.remaining = now;
        grant.changed = true;
        self.balance = self.balance.saturating_add(moved);
        if wanted != fits {
            let detail = format!("grant {} would stand at {wanted}", delta.grant.0);
            letters.push(Letter::new(event, Reason::Misfit, detail));
        }
        -wanted.min(0)
    }

    fn add_debt(&mut self, micro: i128, event: &Event, letters: &mut Vec<Letter>) {
        let wanted = i128::from(self.debt) + micro;
        let fits = wanted.clamp(0, i128::from(Credits::MAX.micro()));
        self.debt = i64::try_from(fits).unwrap_or(self.debt);
        if wanted != fits {
            letters.push(Letter::new(event, Reason::Misfit, format!("the debt would stand at {wanted}")));
        }
    }

    fn grant(&mut self, id: GrantId) -> Option<&mut GrantRows> {
        self.grants.iter_mut().find(|grant| grant.id == id)
    }

    /// Grants that the events and the loaded changes touch, sorted, each once.
    pub(crate) fn grants_touched<'a>(&self, events: impl Iterator<Item = &'a Event>) -> Vec<GrantId> {
        let mut ids: Vec<GrantId> = events.flat_map(|event| event.deltas.iter().map(|delta| delta.grant)).collect();
        for (number, change) in &self.changes {
            match change {
                Change::Rollover { from, .. } => ids.extend([*from, GrantId(*number)]),
                Change::Freeze { scope: Scope::Grant { grant } }
                | Change::Unfreeze { scope: Scope::Grant { grant } } => ids.push(*grant),
                _ => {}
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Which part of an event's deltas ended unused. The event tells the sum; of a settlement that pays from several grants
/// past their time, how it divides among these is a guess, and the sum is right.
struct Lapsing {
    /// What was written off and is not told to be of a grant yet.
    left: i64,
    /// The grant that a revocation ended, or a rollover emptied, and how much of it moved.
    ended: Option<(GrantId, i64)>,
    /// The grant that was revoked by an amount: that is a claim on what was sold, not a lapse.
    clawed: Option<GrantId>,
}

impl Lapsing {
    fn of(event: &Event) -> Lapsing {
        Lapsing { left: event.written_off.micro(), ended: None, clawed: None }
    }

    fn ends(&mut self, grant: GrantId) {
        self.ended = Some((grant, 0));
    }

    fn moves(&mut self, from: GrantId, moved: i64) {
        self.ended = Some((from, moved));
    }

    fn share(&mut self, delta: Delta, due: bool) -> i64 {
        let gone = delta.micro.saturating_neg().max(0);
        let share = match self.ended {
            _ if self.clawed == Some(delta.grant) => 0,
            Some((grant, moved)) if grant == delta.grant => gone - moved,
            _ if due => gone,
            _ => 0,
        };
        let share = share.clamp(0, self.left.max(0));
        self.left -= share;
        share
    }
}

/// The events' indices by account: accounts sorted (so that two writers never wait for each other in a circle), each account's events in their order.
pub(crate) fn by_account(events: &[Event]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..events.len()).collect();
    order.sort_by(|left, right| events[*left].account.cmp(&events[*right].account));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Deltas, EventKind, GrantKind};

    fn event(seq: u64, deltas: &[(u64, i64)], debt_delta: i64) -> Event {
        Event {
            account: AccountId::parse("a").unwrap(),
            seq,
            at: 1,
            kind: EventKind::Settled,
            charged: Credits::ZERO,
            written_off: Credits::ZERO,
            forfeited: Credits::ZERO,
            debt_delta,
            change: 0,
            deltas: deltas.iter().map(|(id, micro)| Delta { grant: GrantId(*id), micro: *micro }).collect::<Deltas>(),
            record: None,
            usage: Bytes::new(),
        }
    }

    fn rows(remaining: i64) -> Rows {
        let grant = GrantRows {
            id: GrantId(1),
            amount: 100,
            remaining,
            frozen: false,
            expires_at: 0,
            lapsed: 0,
            changed: false,
        };
        Rows { balance: remaining, applied_change: 1, grants: vec![grant], ..Rows::default() }
    }

    /// failures 12 would be a warning a request: each level is told once, and again only after new credits.
    #[test]
    fn each_level_is_told_once_until_credits_come_in() {
        let mut rows = Rows { balance: 30, ..Rows::default() };
        let at = |rows: &mut Rows, balance: i64, refilled: Option<i64>| {
            (rows.balance, rows.refilled) = (balance, refilled);
            let may = rows.may_warn(20);
            let told = rows.warn(20);
            assert!(may || told.is_none(), "{balance} {refilled:?}");
            told
        };
        assert_eq!(at(&mut rows, 20, None), None);
        assert_eq!(at(&mut rows, 19, None), Some(NoticeKind::CreditsLow));
        assert_eq!(at(&mut rows, 5, None), None);
        assert_eq!(at(&mut rows, 0, None), Some(NoticeKind::CreditsExhausted));
        assert_eq!(at(&mut rows, -3, None), None);
        // New credits that only pay what is owed change nothing.
        assert_eq!(at(&mut rows, 0, Some(0)), None);
        // A few: it is still low, which was said; their end is news.
        assert_eq!(at(&mut rows, 10, Some(10)), None);
        assert_eq!(at(&mut rows, 0, None), Some(NoticeKind::CreditsExhausted));
        assert_eq!(at(&mut rows, 50, Some(50)), None);
        assert_eq!(at(&mut rows, 19, None), Some(NoticeKind::CreditsLow));
        // Filled and used up again between two flushes.
        assert_eq!(at(&mut rows, 0, Some(50)), Some(NoticeKind::CreditsExhausted));
        assert_eq!(rows.notices, 5);
    }

    #[test]
    fn what_a_grant_cannot_pay_is_owed() {
        let (mut rows, mut letters) = (rows(30), Vec::new());
        assert!(rows.apply(&event(1, &[(1, -50)], 0), &mut letters));
        assert_eq!((rows.balance, rows.debt, rows.grants[0].remaining), (0, 20, 0));
        assert_eq!(letters.len(), 1);
        assert_eq!(letters[0].reason, Reason::Misfit);
    }

    /// Of two histories, each wrote the same expired grant off, and paid the same debt: once is enough, and nobody owes
    /// anything for it.
    #[test]
    fn what_was_written_off_or_paid_before_becomes_no_debt() {
        let (mut rows, mut letters) = (rows(30), Vec::new());
        rows.debt = 5;
        let adds_up = |rows: &Rows| rows.balance - rows.debt + rows.charged + rows.written_off;
        let before = adds_up(&rows);
        let micro = |micro| Credits::from_micro(micro).unwrap();
        let written_off = Event { written_off: micro(20), ..event(1, &[(1, -20)], 0) };
        rows.apply(&written_off, &mut letters);
        rows.apply(&Event { seq: 2, ..written_off }, &mut letters);
        assert_eq!((rows.balance, rows.debt, rows.written_off, adds_up(&rows)), (0, 5, 30, before));
        rows.grants[0].remaining = 50;
        rows.balance = 50;
        rows.apply(&event(3, &[(1, -5)], -5), &mut letters);
        rows.apply(&event(4, &[(1, -5)], -5), &mut letters);
        assert_eq!((rows.balance, rows.debt, adds_up(&rows)), (45, 0, before + 50));
        rows.apply(&Event { charged: micro(60), ..event(5, &[(1, -60)], 0) }, &mut letters);
        assert_eq!((rows.balance, rows.debt, adds_up(&rows)), (0, 15, before + 50), "what was used is owed");
    }

    #[test]
    fn credits_do_not_come_from_nowhere() {
        let (mut rows, mut letters) = (rows(90), Vec::new());
        rows.apply(&event(1, &[(1, 50)], -5), &mut letters);
        assert_eq!((rows.balance, rows.debt), (100, 0));
        rows.apply(&event(2, &[(7, 50), (8, -3)], 0), &mut letters);
        assert_eq!((rows.balance, rows.debt), (100, 3));
        let reasons: Vec<Reason> = letters.iter().map(|letter| letter.reason).collect();
        assert_eq!(reasons, [Reason::Misfit, Reason::Misfit, Reason::UnknownGrant, Reason::UnknownGrant]);
    }

    #[test]
    fn absurd_amounts_are_cut() {
        let (mut rows, mut letters) = (rows(90), Vec::new());
        rows.apply(&event(1, &[(1, i64::MIN)], i64::MAX), &mut letters);
        rows.apply(&event(2, &[(1, i64::MAX)], i64::MIN), &mut letters);
        assert_eq!((rows.balance, rows.debt, rows.seq), (100, 0, 2));
    }

    #[test]
    fn repeats_change_nothing_and_holes_are_told() {
        let (mut rows, mut letters) = (rows(90), Vec::new());
        assert!(rows.apply(&event(1, &[(1, -10)], 0), &mut letters));
        assert!(!rows.apply(&event(1, &[(1, -10)], 0), &mut letters));
        assert!(rows.apply(&event(3, &[(1, -10)], 0), &mut letters));
        assert_eq!((rows.balance, rows.seq), (70, 3));
        let reasons: Vec<Reason> = letters.iter().map(|letter| letter.reason).collect();
        assert_eq!(reasons, [Reason::Repeat, Reason::Hole]);
    }

    fn lapsed(rows: &Rows) -> Vec<i64> {
        rows.grants.iter().map(|grant| grant.lapsed).collect()
    }

    #[test]
    fn what_expires_lapses_and_what_is_paid_or_clawed_does_not() {
        let (mut rows, mut letters) = (rows(100), Vec::new());
        rows.grants[0].expires_at = 10;
        let (before, after) = (10 + WRITE_OFF_AFTER_US - 1, 10 + WRITE_OFF_AFTER_US);
        rows.apply(&Event { at: before, ..event(1, &[(1, -30)], 0) }, &mut letters);
        assert_eq!(lapsed(&rows), [0]);
        rows.changes = vec![(2, Change::Revoke { grant: GrantId(1), amount_micro: Some(5) })];
        let written_off = Credits::from_micro(5).unwrap();
        rows.apply(&Event { at: after, change: 2, written_off, ..event(2, &[(1, -5)], 0) }, &mut letters);
        assert_eq!(lapsed(&rows), [0]);
        // Of what was held 25 are paid, and the rest of the grant ends.
        let written_off = Credits::from_micro(40).unwrap();
        rows.apply(&Event { at: after, written_off, ..event(3, &[(1, -65)], 0) }, &mut letters);
        assert_eq!((lapsed(&rows), rows.grants[0].remaining), (vec![40], 0));
        assert!(letters.is_empty());
    }

    #[test]
    fn what_a_rollover_or_an_end_leaves_behind_lapses() {
        let (mut rows, mut letters) = (rows(100), Vec::new());
        rows.grants[0].frozen = true;
        rows.grants.push(GrantRows {
            id: GrantId(2),
            amount: 0,
            remaining: 0,
            frozen: false,
            ..rows.grants[0].clone()
        });
        rows.changes = vec![
            (2, Change::Rollover { from: GrantId(1), cap_micro: 60, kind: GrantKind::Plan, expires_at: 0 }),
            (3, Change::Revoke { grant: GrantId(2), amount_micro: None }),
        ];
        let written_off = |micro| Credits::from_micro(micro).unwrap();
        let rollover = Event { change: 2, written_off: written_off(40), ..event(1, &[(1, -100), (2, 60)], 0) };
        rows.apply(&rollover, &mut letters);
        assert_eq!((lapsed(&rows), rows.grants[1].amount, rows.grants[1].frozen), (vec![40, 0], 60, true));
        rows.apply(&Event { change: 3, written_off: written_off(60), ..event(2, &[(2, -60)], 0) }, &mut letters);
        assert_eq!((lapsed(&rows), rows.balance), (vec![40, 60], 0));
        assert!(letters.is_empty());
    }

    #[test]
    fn changes_take_effect_with_their_event() {
        let (mut rows, mut letters) = (rows(90), Vec::new());
        rows.changes = vec![
            (2, Change::Grant { kind: GrantKind::Topup, amount_micro: 7, expires_at: 0 }),
            (3, Change::Freeze { scope: Scope::Grant { grant: GrantId(1) } }),
            (4, Change::Freeze { scope: Scope::Account }),
        ];
        rows.apply(&Event { change: 2, ..event(1, &[], 0) }, &mut letters);
        assert_eq!((rows.balance, rows.granted, rows.applied_change, rows.frozen), (97, 7, 2, false));
        // The event of change 3 is missing: it was applied all the same.
        rows.apply(&Event { change: 4, ..event(2, &[], 0) }, &mut letters);
        assert!(rows.frozen && rows.grants[0].frozen && letters.is_empty());
        rows.apply(&Event { change: 9, ..event(3, &[], 0) }, &mut letters);
        assert_eq!((rows.applied_change, letters[0].reason), (4, Reason::UnknownChange));
    }
}
