//! Billing changes, applied in their numbered order.

use super::{Account, Context, Detail, Effect, Grant, LIMIT};
use crate::ledger::{Answer, Change, EventKind, GrantId, GrantKind, Micros, Scope};

impl Account {
    pub(super) fn apply_change(&mut self, number: u64, change: &Change, context: &mut Context<'_>) -> Answer {
        if number <= self.change {
            return Answer::Duplicate;
        }
        if number > self.change + 1 {
            return Answer::Gap { applied: self.change };
        }
        if !within_bounds(change) {
            return Answer::TooLarge;
        }
        let mut effect = Effect::default();
        let kind = match change {
            Change::Grant { kind, amount_micro, expires_at } => {
                if self.total() > LIMIT - amount_micro {
                    return Answer::TooLarge;
                }
                self.insert_grant(Grant {
                    id: GrantId(number),
                    kind: *kind,
                    remaining: *amount_micro,
                    expires_at: *expires_at,
                    frozen: false,
                    claw: 0,
                });
                EventKind::Granted
            }
            Change::Revoke { grant, amount_micro } => {
                if amount_micro.is_some_and(|amount| self.debt.max(self.beside(*grant, amount)) > LIMIT - amount) {
                    return Answer::TooLarge;
                }
                self.revoke(*grant, *amount_micro, &mut effect);
                EventKind::Revoked
            }
            Change::Rollover { from, cap_micro, kind, expires_at } => {
                self.roll_over(*from, *cap_micro, GrantId(number), *kind, *expires_at, &mut effect);
                EventKind::RolledOver
            }
            Change::Freeze { scope } => {
                self.set_frozen(*scope, true);
                EventKind::Frozen
            }
            Change::Unfreeze { scope } => {
                self.set_frozen(*scope, false);
                EventKind::Unfrozen
            }
        };
        self.change = number;
        self.emit(kind, effect, Detail { change: number, ..Detail::default() }, context);
        Answer::Applied
    }

    /// The most that one event may write off besides `amount` of a revocation: the event's sum must stay exact.
    fn beside(&self, id: GrantId, amount: i64) -> i64 {
        let grant = self.grants.iter().find(|grant| grant.id == id);
        let there = grant.map_or(0, |grant| grant.remaining + self.held_from(id) - grant.claw);
        self.total() - there.min(amount)
    }

    pub(super) fn revoke(&mut self, id: GrantId, amount: Option<i64>, effect: &mut Effect) {
        let held = self.held_from(id);
        let mut left = amount;
        if let Some(grant) = self.grants.iter_mut().find(|grant| grant.id == id) {
            let now_taken = amount.map_or(grant.remaining, |amount| amount.min(grant.remaining));
            grant.remaining -= now_taken;
            left = amount.map(|amount| amount - now_taken);
            let free = held - grant.claw;
            let later = left.map_or(free, |left| left.min(free));
            grant.claw += later;
            left = left.map(|left| left - later);
            effect.shift(id, -(now_taken + later));
            effect.written_off += now_taken + later;
        }
        // What was spent of a clawed-back grant is owed.
        let owed = left.unwrap_or(0);
        self.debt += owed;
        effect.debt_delta += owed;
        effect.written_off += owed;
    }

    pub(super) fn roll_over(
        &mut self,
        from: GrantId,
        cap: i64,
        to: GrantId,
        kind: GrantKind,
        expires_at: Micros,
        effect: &mut Effect,
    ) {
        let (mut moved, mut frozen) = (0, false);
        if let Some(grant) = self.grants.iter_mut().find(|grant| grant.id == from) {
            moved = grant.remaining.min(cap);
            effect.shift(from, -grant.remaining);
            effect.written_off += grant.remaining - moved;
            grant.remaining = 0;
            // What is frozen stays so wherever it moves.
            frozen = grant.frozen;
        }
        effect.shift(to, moved);
        self.insert_grant(Grant { id: to, kind, remaining: moved, expires_at, frozen, claw: 0 });
    }

    pub(super) fn set_frozen(&mut self, scope: Scope, frozen: bool) {
        match scope {
            Scope::Account => self.frozen = frozen,
            Scope::Grant { grant: id } => {
                if let Some(grant) = self.grants.iter_mut().find(|grant| grant.id == id) {
                    grant.frozen = frozen;
                }
            }
        }
    }
}

/// Whether the change's amount is one that can be counted.
fn within_bounds(change: &Change) -> bool {
    let amount = match change {
        Change::Grant { amount_micro, .. } => *amount_micro,
        Change::Revoke { amount_micro, .. } => amount_micro.unwrap_or(0),
        Change::Rollover { cap_micro, .. } => *cap_micro,
        Change::Freeze { .. } | Change::Unfreeze { .. } => 0,
    };
    (0..=LIMIT).contains(&amount)
}
