//! The bookkeeping under every operation: taking, paying, returning, writing off, and the event that tells of it.
//! Whoever calls has checked that it may.

use super::{Account, Context, Detail, Effect, Grant, Holder, LIMIT, held_by, micro};
use crate::credits::Credits;
use crate::ledger::{Event, EventKind, GrantId, Micros, Parts, SessionId};

impl Account {
    /// Takes `amount`, which the account can pay, in burn order.
    pub(super) fn take(&mut self, amount: i64, now: Micros) -> Parts {
        let mut left = amount;
        let mut parts = Parts::new();
        for grant in self.grants.iter_mut().filter(|grant| grant.drawable(now)) {
            if left == 0 {
                break;
            }
            let taken = left.min(grant.remaining);
            if taken > 0 {
                grant.remaining -= taken;
                left -= taken;
                parts.push((grant.id, micro(taken)));
            }
        }
        parts
    }

    /// Pays `amount` from the balance; what is missing becomes debt.
    pub(super) fn pay(&mut self, amount: i64, now: Micros, effect: &mut Effect) {
        let affordable = amount.min(self.drawable(now));
        for (grant, taken) in self.take(affordable, now) {
            effect.shift(grant, -taken.micro());
        }
        self.debt += amount - affordable;
        effect.debt_delta += amount - affordable;
    }

    /// `actual`, cut to what the account could still come to owe, so that a settle always passes. Where that is less,
    /// the debt is nine billion credits.
    pub(super) fn payable(&self, actual: Credits) -> Credits {
        actual.min(micro(LIMIT - self.debt))
    }

    /// Pays `actual` from a hold's parts in the order taken, returns the rest, and draws on the balance for an overrun.
    pub(super) fn end_hold(
        &mut self,
        session: SessionId,
        parts: &[(GrantId, i64)],
        actual: i64,
        now: Micros,
        effect: &mut Effect,
    ) {
        let left_over = self.remove_hold(session, parts);
        let mut left = actual;
        for (id, amount) in parts {
            let paid = left.min(*amount);
            left -= paid;
            self.resolve(*id, paid, amount - paid, effect);
        }
        for (id, amount) in left_over {
            self.resolve(id, 0, amount, effect);
        }
        self.pay(left, now, effect);
        effect.charged += actual;
    }

    /// Returns a whole hold. Emits only where returning it changes what the store knows.
    pub(super) fn return_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)], context: &mut Context<'_>) {
        let effect = self.returned(session, parts);
        self.emit_if_any(effect, context);
    }

    /// Returns a whole hold. Answers what the store is to know of it.
    pub(super) fn returned(&mut self, session: SessionId, parts: &[(GrantId, i64)]) -> Effect {
        let mut effect = Effect::default();
        let left_over = self.remove_hold(session, parts);
        for (id, amount) in parts.iter().copied().chain(left_over) {
            self.resolve(id, 0, amount, &mut effect);
        }
        effect
    }

    pub(super) fn emit_if_any(&mut self, effect: Effect, context: &mut Context<'_>) {
        if !effect.is_empty() {
            self.emit(EventKind::Adjusted, effect, Detail::default(), context);
        }
    }

    /// One part of an ended hold: `paid` of it is used, `returned` comes back. A revocation, written off when it was
    /// applied, takes its share of both.
    pub(super) fn resolve(&mut self, id: GrantId, paid: i64, returned: i64, effect: &mut Effect) {
        let Some(grant) = self.grants.iter_mut().find(|grant| grant.id == id) else { return };
        let discarded = returned.min(grant.claw);
        grant.claw -= discarded;
        grant.remaining += returned - discarded;
        let owed = paid.min(grant.claw);
        grant.claw -= owed;
        self.debt += owed;
        effect.shift(id, -(paid - owed));
        effect.debt_delta += owed;
    }

    pub(super) fn abandon_fenced(&mut self, context: &mut Context<'_>) {
        let fenced = context.fenced;
        while let Some(index) = self.holders.iter().position(|holder| fenced(holder.session)) {
            self.abandon_at(index, context);
        }
    }

    pub(super) fn abandon_at(&mut self, index: usize, context: &mut Context<'_>) -> i64 {
        let holder = self.holders.remove(index);
        let mut effect = Effect::default();
        for (id, amount) in &holder.taken {
            effect.forfeited += amount;
            self.resolve(*id, 0, *amount, &mut effect);
        }
        // Before anything else draws on what came back.
        self.pay_debt(context.now, &mut effect);
        let forfeited = effect.forfeited;
        self.emit(EventKind::Abandoned, effect, Detail::default(), context);
        forfeited
    }

    /// Writes off what expired a minute ago, pays debt from what can be drawn, forgets empty grants. Rides in the
    /// operation's last event, or in one of its own.
    pub(super) fn tidy(&mut self, events_before: usize, context: &mut Context<'_>) {
        let now = context.now;
        let mut effect = Effect::default();
        for grant in &mut self.grants {
            if grant.remaining > 0 && grant.write_off_due(now) {
                effect.shift(grant.id, -grant.remaining);
                effect.written_off += grant.remaining;
                grant.remaining = 0;
            }
        }
        self.pay_debt(now, &mut effect);
        self.forget_empty_grants();
        if effect.is_empty() {
            return;
        }
        match context.events.get_mut(events_before..).and_then(|events| events.last_mut()) {
            Some(event) => fold(event, effect),
            None => self.emit(EventKind::Adjusted, effect, Detail::default(), context),
        }
    }

    fn pay_debt(&mut self, now: Micros, effect: &mut Effect) {
        if self.debt == 0 {
            return;
        }
        let paid = self.debt.min(self.drawable(now));
        for (grant, taken) in self.take(paid, now) {
            effect.shift(grant, -taken.micro());
        }
        self.debt -= paid;
        effect.debt_delta -= paid;
    }

    pub(super) fn forget_empty_grants(&mut self) {
        if self.grants.iter().all(|grant| grant.remaining > 0) {
            return;
        }
        let holders = std::mem::take(&mut self.holders);
        self.grants.retain(|grant| grant.remaining > 0 || held_by(&holders, grant.id) > 0);
        self.holders = holders;
    }

    pub(super) fn emit(&mut self, kind: EventKind, effect: Effect, detail: Detail, context: &mut Context<'_>) {
        self.seq += 1;
        context.events.push(Event {
            account: context.account.clone(),
            seq: self.seq,
            at: context.now,
            kind,
            charged: micro(effect.charged),
            written_off: micro(effect.written_off),
            forfeited: micro(effect.forfeited),
            debt_delta: effect.debt_delta,
            change: detail.change,
            deltas: effect.deltas.into_iter().filter(|delta| delta.micro != 0).collect(),
            record: detail.record,
            usage: detail.usage,
        });
    }

    pub(super) fn insert_grant(&mut self, grant: Grant) {
        let at = self.grants.partition_point(|other| other.burn_order() < grant.burn_order());
        self.grants.insert(at, grant);
    }

    pub(super) fn add_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)]) {
        match self.holders.iter_mut().find(|holder| holder.session == session) {
            Some(holder) => holder.count += 1,
            None => self.holders.push(Holder { session, count: 1, taken: Vec::new() }),
        }
        self.grow_hold(session, parts);
    }

    pub(super) fn grow_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)]) {
        let Some(holder) = self.holders.iter_mut().find(|holder| holder.session == session) else { return };
        for (id, amount) in parts {
            match holder.taken.iter_mut().find(|(grant, _)| grant == id) {
                Some((_, taken)) => *taken += amount,
                None => holder.taken.push((*id, *amount)),
            }
        }
    }

    pub(super) fn lower_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)]) {
        let Some(holder) = self.holders.iter_mut().find(|holder| holder.session == session) else { return };
        for (id, amount) in parts {
            if let Some((_, taken)) = holder.taken.iter_mut().find(|(grant, _)| grant == id) {
                *taken -= amount;
            }
        }
        holder.taken.retain(|(_, taken)| *taken > 0);
    }

    /// Ends one hold. Answers what the session still had from this account although no hold of it is left.
    pub(super) fn remove_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)]) -> Vec<(GrantId, i64)> {
        self.lower_hold(session, parts);
        let Some(index) = self.holders.iter().position(|holder| holder.session == session) else { return Vec::new() };
        if let Some(holder) = self.holders.get_mut(index).filter(|holder| holder.count > 1) {
            holder.count -= 1;
            return Vec::new();
        }
        self.holders.remove(index).taken
    }

    pub(super) fn give_back_tokens(&mut self, tokens_back_us: u64) {
        self.tokens_idle_at = self.tokens_idle_at.saturating_sub(tokens_back_us);
    }
}

/// Adds what tidying did to the operation's own event.
fn fold(event: &mut Event, effect: Effect) {
    event.written_off = micro(event.written_off.micro() + effect.written_off);
    event.debt_delta += effect.debt_delta;
    for delta in effect.deltas {
        match event.deltas.iter_mut().find(|known| known.grant == delta.grant) {
            Some(known) => known.micro += delta.micro,
            None => event.deltas.push(delta),
        }
    }
    event.deltas.retain(|delta| delta.micro != 0);
}
