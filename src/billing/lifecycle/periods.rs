//! Months: what comes with each, what moves on from one to the next, what ends.

use jiff::ToSpan;
use jiff::tz::TimeZone;

use super::draft::{Draft, Given};
use crate::ledger::{GrantKind, Micros};
use crate::store::billing::{GrantUse, PaidGrant, PlannedAct, Purchase, PurchaseKind, SubscriptionRow};

/// Stripe's periods follow each other exactly; leap seconds and rounding do not matter beyond this.
pub(super) const SEAM_US: Micros = 3600 * 1_000_000;
/// What is rolled over rolls over once, and ends after the next month.
const MAX_HAND_OVERS: usize = 4;

impl Draft<'_> {
    /// Brings everything into the state that the purchases and subscriptions ask for.
    pub(super) fn settle(&mut self) {
        self.late_periods();
        self.later_months();
        // What rolled over late may have to end at once: once more until nothing is left to do.
        for _ in 0..MAX_HAND_OVERS {
            if !self.hand_over() {
                break;
            }
        }
        self.end();
        self.claims();
        // What was given back of a subscription that has ended.
        self.end();
        self.freezes();
    }

    /// From when to when a purchase's month runs.
    pub(super) fn month(&self, purchase: &Purchase, month: u32) -> (Option<Micros>, Option<Micros>) {
        let Some(start) = purchase.period_start else { return (None, purchase.period_end) };
        if purchase.months <= 1 {
            return (Some(start), purchase.period_end);
        }
        let end = if month + 1 >= purchase.months { purchase.period_end } else { Some(add_months(start, month + 1)) };
        (Some(add_months(start, month)), end)
    }

    /// A period that was told of after its time brings what moved on from it, once the next one is known.
    fn late_periods(&mut self) {
        let told: Vec<Purchase> = self.account.purchases.clone();
        for purchase in told.into_iter().filter(|purchase| purchase.subscription.is_some()) {
            let (starts_at, ends_at) = self.month(&purchase, 0);
            if self.is_over(&purchase, ends_at) {
                let (key, why) = (purchase.id.clone(), format!("{}, told of late", purchase.name));
                let (used_as, amount) = (GrantUse::Main, purchase.month_credits(0));
                self.give(&purchase, Given { key, used_as, parent: None, month: 0, amount, starts_at, ends_at, why });
            }
        }
    }

    /// Whether what ends then can move on, into a month that is not over.
    pub(super) fn moves_on(&self, purchase: &Purchase, ends_at: Micros) -> bool {
        let plan = self.catalog.plan(&purchase.name);
        let rolls = plan.is_some_and(|plan| !plan.rollover_cap.is_zero()) && purchase.kind != PurchaseKind::Trial;
        let next = self.successor(purchase, ends_at).filter(|_| rolls);
        next.is_some_and(|(_, ends, paid_at)| {
            let in_time = self.lapses_at(purchase, Some(ends_at)).is_none_or(|lapses| paid_at <= lapses);
            in_time && !self.is_over(purchase, ends)
        })
    }

    /// Of a year, the months whose time has come. The clock stops when the subscription ends, or all was given back.
    fn later_months(&mut self) {
        let years: Vec<Purchase> =
            self.account.purchases.iter().filter(|purchase| purchase.months > 1).cloned().collect();
        for purchase in years {
            let ended_at = self.subscription_of(&purchase).and_then(|row| row.ended_at);
            for month in 1..purchase.months {
                let (starts_at, ends_at) = self.month(&purchase, month);
                let Some(start) = starts_at else { break };
                if ended_at.is_some_and(|ended| ended <= start) || purchase.reversed >= purchase.amount.max(1) {
                    break;
                }
                if start > self.now {
                    self.due_at(start);
                    break;
                }
                let subscription = purchase.subscription.as_deref().unwrap_or_default();
                let first = purchase.period_start.unwrap_or_default() / 1_000_000;
                let key = format!("month:{subscription}:{first}:{month}");
                let why = format!("{}, month {} of {}", purchase.name, month + 1, purchase.months);
                let (used_as, amount) = (GrantUse::Main, purchase.month_credits(month));
                self.give(&purchase, Given { key, used_as, parent: None, month, amount, starts_at, ends_at, why });
            }
        }
    }

    /// What a month left moves into the next, up to the plan's cap, and the rest ends. Answers whether anything did.
    fn hand_over(&mut self) -> bool {
        let mut open: Vec<(PaidGrant, Purchase)> = self.open_plan_grants();
        // The newest first: it is drawn from last, so it is where something is left.
        open.sort_by(|(left, _), (right, _)| right.starts_at.cmp(&left.starts_at).then(right.key.cmp(&left.key)));
        let mut moved = false;
        for (grant, purchase) in open {
            let Some(ends_at) = grant.ends_at else { continue };
            let lapsed = self.has_lapsed(&purchase, &grant);
            let Some((starts, ends, paid_at)) = self.successor(&purchase, ends_at) else { continue };
            moved = true;
            // It had lapsed before the next month was paid.
            let too_late = self.lapses_at(&purchase, grant.ends_at).is_some_and(|lapses| paid_at > lapses);
            let cap = self.catalog.plan(&purchase.name).map_or(0, |plan| plan.rollover_cap.micro());
            let rolls = grant.used_as != GrantUse::Rollover && purchase.kind != PurchaseKind::Trial;
            let rolls = rolls && !lapsed && !too_late;
            let cap = if rolls { grant.amount.min(cap - self.rolled_into(&purchase, starts)).max(0) } else { 0 };
            if cap > 0 {
                self.roll_over(&grant, &purchase, cap, starts, ends);
            } else {
                self.close(grant, lapsed, "its time is over");
            }
        }
        moved
    }

    /// What has moved already into the subscription's month that starts then, whenever it was decided: a month takes in no
    /// more than the plan's cap, from however many grants it comes.
    fn rolled_into(&self, purchase: &Purchase, starts: Micros) -> i64 {
        let same = |grant: &&PaidGrant| {
            grant.used_as == GrantUse::Rollover
                && grant.starts_at.is_some_and(|begun| begun.abs_diff(starts) < SEAM_US)
                && self.purchase_of(grant).is_some_and(|of| of.subscription == purchase.subscription)
        };
        self.account.grants.iter().filter(same).map(|grant| grant.amount).sum()
    }

    fn roll_over(&mut self, grant: &PaidGrant, purchase: &Purchase, cap: i64, starts: Micros, ends: Option<Micros>) {
        let key = format!("roll:{}", grant.key);
        let child = PaidGrant {
            key: key.clone(),
            used_as: GrantUse::Rollover,
            parent: Some(grant.key.clone()),
            amount: cap,
            starts_at: Some(starts),
            ends_at: ends,
            claimed: 0,
            taken: 0,
            serial: 0,
            stored: Default::default(),
            ..grant.clone()
        };
        let expires_at = match self.expiry(purchase, &child) {
            expiry if expiry > 0 && expiry <= self.now => self.now + SEAM_US,
            expiry => expiry,
        };
        let act = PlannedAct::Rollover { from: grant.key.clone(), cap, kind: GrantKind::Plan, expires_at };
        self.change(key, act, "what the month left");
        self.put_grant(child);
        self.put_grant(PaidGrant { ended: true, ..grant.clone() });
    }

    /// Takes what remains of a grant whose time is over. What lapsed by itself needs no change.
    fn close(&mut self, grant: PaidGrant, lapsed: bool, why: &str) {
        if !lapsed {
            let act = PlannedAct::Revoke { grant: grant.key.clone(), amount: None };
            self.change(format!("end:{}", grant.key), act, why);
        }
        self.put_grant(PaidGrant { ended: true, ..grant });
    }

    /// An ended subscription takes with it what its plan gave.
    fn end(&mut self) {
        for (grant, purchase) in self.open_plan_grants() {
            if self.subscription_of(&purchase).is_some_and(|row| row.ended_at.is_some()) {
                let lapsed = self.has_lapsed(&purchase, &grant);
                self.close(grant, lapsed, "the subscription ended");
            }
        }
    }

    fn open_plan_grants(&self) -> Vec<(PaidGrant, Purchase)> {
        let open = self.account.grants.iter().filter(|grant| !grant.ended);
        let of_plan = |grant: &PaidGrant| {
            let purchase = self.purchase_of(grant)?;
            purchase.subscription.is_some().then(|| (grant.clone(), purchase.clone()))
        };
        open.filter_map(of_plan).collect()
    }

    /// The paid month that follows on this time: from when to when it is, and since when it was there to move into.
    fn successor(&self, purchase: &Purchase, ends_at: Micros) -> Option<(Micros, Option<Micros>, Micros)> {
        let same = |of: &&Purchase| of.subscription == purchase.subscription && of.kind == PurchaseKind::Period;
        let months = |of: &Purchase| {
            let begun = (0..of.months).map(|month| self.month(of, month)).collect::<Vec<_>>();
            let (created_at, ended_at) = (of.created_at, self.subscription_of(of).and_then(|row| row.ended_at));
            begun.into_iter().enumerate().filter_map(move |(month, (starts, ends))| {
                let starts = starts.filter(|starts| starts.saturating_add(SEAM_US) > ends_at)?;
                // The first month of a purchase is there when it is paid; a later one when its time comes.
                let there = month == 0 || (starts <= self.now && ended_at.is_none_or(|ended| ended > starts));
                there.then_some((starts, ends, if month == 0 { created_at } else { created_at.max(starts) }))
            })
        };
        self.account.purchases.iter().filter(same).flat_map(months).min()
    }

    /// Freezes what is disputed, flagged or not paid for, and frees what no longer is.
    fn freezes(&mut self) {
        for grant in self.account.grants.clone() {
            let Some(purchase) = self.purchase_of(&grant).cloned() else { continue };
            let row = self.subscription_of(&purchase).cloned();
            let stopped = row.is_some_and(|row| self.stopped(&row));
            let wanted = purchase.frozen || self.account.flagged || stopped;
            if grant.ended || grant.frozen == wanted {
                continue;
            }
            let serial = grant.serial + 1;
            let named = grant.key.clone();
            let (act, what) = match wanted {
                true => (PlannedAct::Freeze { grant: named }, "freeze"),
                false => (PlannedAct::Unfreeze { grant: named }, "unfreeze"),
            };
            let why = if purchase.frozen || self.account.flagged { "disputed" } else { "payment" };
            self.change(format!("{what}:{}:{serial}", grant.key), act, why);
            self.put_grant(PaidGrant { frozen: wanted, serial, ..grant });
        }
    }

    /// Whether the subscription's plan stands still: paused, or unpaid beyond the plan's grace.
    fn stopped(&mut self, row: &SubscriptionRow) -> bool {
        match (row.status.as_str(), row.past_due_since) {
            ("paused" | "unpaid", _) => true,
            ("past_due", Some(since)) => {
                let days = self.catalog.plan(&row.plan).map_or(0, |plan| plan.grace_days);
                let until = since + u64::from(days) * super::draft::DAY_US;
                if until > self.now {
                    self.due_at(until);
                }
                until <= self.now
            }
            _ => false,
        }
    }
}

/// So many calendar months later; a day that the month lacks is its last.
fn add_months(start: Micros, months: u32) -> Micros {
    let later = || {
        let at = jiff::Timestamp::from_microsecond(i64::try_from(start).ok()?).ok()?.to_zoned(TimeZone::UTC);
        u64::try_from(at.checked_add(i64::from(months).months()).ok()?.timestamp().as_microsecond()).ok()
    };
    later().unwrap_or(start)
}
