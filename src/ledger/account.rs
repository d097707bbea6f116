//! The account model: what every operation does to one account, in pure Rust.
//!
//! This is the meaning of the ledger. The embedded ledger runs it behind locks; the Lua scripts say the same in Redis
//! and are held against it by property tests. Between operations these hold:
//!
//! * Σ parts of sessions = what is held; a grant stays in the account while anything is held from it.
//! * `debt > 0` only while nothing can be drawn.
//! * `Σ(remaining + held) - debt` changes by `granted - charged - written_off` of the events, exactly.

use smallvec::SmallVec;

use super::{AccountId, AccountState, LIMIT_WINDOW_US};
use super::{
    Act, Answer, Balance, Change, Delta, Deltas, Event, EventKind, GrantId, GrantKind, GrantState, Kept, Limit, Limits,
    Micros, Parts, RECORD_KEPT_US, RecordId, RecordKey, RecordState, Reserved, Scope, SessionId, WRITE_OFF_AFTER_US,
    limit_increment,
};
use crate::credits::Credits;

/// One account's hot state. Amounts are micro-credits, times microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// In burn order: soonest expiry, then given before bought, then oldest.
    grants: Vec<Grant>,
    /// Who holds what. API holds are those of [`SessionId::API`].
    holders: Vec<Holder>,
    debt: i64,
    frozen: bool,
    seq: u64,
    /// Number of the last billing change applied.
    change: u64,
    /// When the requests/min and tokens/min states are idle again (GCRA's theoretical arrival times).
    requests_idle_at: Micros,
    tokens_idle_at: Micros,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    id: GrantId,
    kind: GrantKind,
    remaining: i64,
    /// 0: never.
    expires_at: Micros,
    frozen: bool,
    /// What a revocation still takes from what is held, as it comes back or is settled.
    claw: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    session: SessionId,
    /// Live holds.
    count: u64,
    taken: Vec<(GrantId, i64)>,
}

/// What an operation needs besides the account.
pub struct Context<'a> {
    pub account: &'a AccountId,
    pub now: Micros,
    /// The session that asks.
    pub session: SessionId,
    /// Sessions whose holds may be returned by whoever needs them.
    pub fenced: &'a dyn Fn(SessionId) -> bool,
    /// The ledger takes no new work: holds and voluntary charges are refused.
    pub backlogged: bool,
    /// The record that the operation names, as it is kept now. The operation changes it in place.
    pub record: &'a mut Option<RecordState>,
    /// Where events go, in order.
    pub events: &'a mut Vec<Event>,
}

/// What one operation has done so far, until it becomes an event.
#[derive(Default)]
struct Effect {
    charged: i64,
    written_off: i64,
    forfeited: i64,
    debt_delta: i64,
    deltas: Deltas,
}

impl Effect {
    fn shift(&mut self, grant: GrantId, micro: i64) {
        if micro == 0 {
            return;
        }
        match self.deltas.iter_mut().find(|delta| delta.grant == grant) {
            Some(delta) => delta.micro += micro,
            None => self.deltas.push(Delta { grant, micro }),
        }
    }

    fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.debt_delta == 0 && self.written_off == 0
    }
}

/// Parts in plain micro-credits.
type MicroParts = SmallVec<[(GrantId, i64); 4]>;

/// A sum or amount that Lua could not hold exactly.
const LIMIT: i64 = Credits::MAX.micro();

impl Account {
    /// An account as loaded from the store. Held API records leave `remaining` here.
    pub fn from_state(state: &AccountState) -> Account {
        let mut account = Account {
            debt: state.debt_micro,
            frozen: state.frozen,
            seq: state.seq,
            change: state.change,
            ..Account::default()
        };
        for grant in &state.grants {
            account.insert_grant(Grant {
                id: grant.id,
                kind: grant.kind,
                remaining: grant.remaining_micro,
                expires_at: grant.expires_at,
                frozen: grant.frozen,
                claw: 0,
            });
        }
        for held in state.records.iter().filter_map(|record| record.held.as_ref()) {
            for (grant, micro) in held {
                if let Some(grant) = account.grants.iter_mut().find(|candidate| candidate.id == *grant) {
                    grant.remaining -= micro;
                }
            }
            account.add_hold(SessionId::API, held);
        }
        account
    }

    /// Carries out one operation. Everything is checked before anything changes.
    pub fn apply(&mut self, act: &Act, context: &mut Context<'_>) -> Answer {
        let events_before = context.events.len();
        let answer = match act {
            Act::Reserve { amount, floor, tokens, limits } => self.reserve(*amount, *floor, *tokens, limits, context),
            Act::Extend { session, more, floor } => self.extend(*session, *more, *floor, context),
            Act::Settle { session, parts, actual, tokens_back_us, usage } => {
                self.settle(*session, parts, *actual, *tokens_back_us, usage, context)
            }
            Act::Shrink { session, parts } => self.shrink(*session, parts, context),
            Act::Release { session, parts, tokens_back_us } => self.release(*session, parts, *tokens_back_us, context),
            Act::Charge { actual, must, usage, record } => self.charge(*actual, *must, usage, *record, context),
            Act::Hold { record, amount, expires_in_us } => self.hold(*record, *amount, *expires_in_us, context),
            Act::SettleHold { record, actual, usage } => self.settle_hold(*record, *actual, usage, context),
            Act::ReleaseHold { record, expired_only } => self.release_hold(*record, *expired_only, context),
            Act::Apply { number, change } => self.apply_change(*number, change, context),
            Act::Park { flushed_seq } => return self.park(*flushed_seq, context.now),
            Act::Balance => return Answer::Balance(self.balance(context.now)),
            Act::Ticket { .. } | Act::Load { .. } => return Answer::Already,
            Act::Sweep => Answer::Applied,
        };
        self.tidy(events_before, context);
        match (act, answer) {
            (Act::Sweep, _) => Answer::Balance(self.balance(context.now)),
            (_, answer) => self.with_available(answer, context),
        }
    }

    /// Returns everything that a dead session holds here. Answers how much that was.
    pub fn abandon(&mut self, session: SessionId, context: &mut Context<'_>) -> i64 {
        let Some(index) = self.holders.iter().position(|holder| holder.session == session) else { return 0 };
        let events_before = context.events.len();
        let forfeited = self.abandon_at(index, context);
        self.tidy(events_before, context);
        forfeited
    }

    pub fn seq(&self) -> u64 {
        self.seq
    }

    fn reserve(
        &mut self,
        amount: Credits,
        floor: Credits,
        tokens: u64,
        limits: &Limits,
        context: &mut Context<'_>,
    ) -> Answer {
        if context.backlogged {
            return Answer::Backlogged;
        }
        if self.frozen {
            return Answer::Frozen;
        }
        let (requests_idle_at, tokens_idle_at) = match self.admit_rates(tokens, limits, context.now) {
            Ok(states) => states,
            Err(refusal) => return refusal,
        };
        let crowded = |account: &Account| limits.concurrency > 0 && account.in_flight() >= limits.concurrency;
        let short = |account: &Account| account.drawable(context.now) < floor.micro();
        if crowded(self) || short(self) {
            self.abandon_fenced(context);
        }
        if crowded(self) {
            return Answer::Limited { limit: Limit::Concurrency, retry_after_us: Some(1_000_000) };
        }
        let available = self.drawable(context.now);
        if available < floor.micro() {
            return self.insufficient(context.now);
        }
        let parts = self.take(amount.micro().min(available), context.now);
        self.add_hold(context.session, &as_micro(&parts));
        self.requests_idle_at = requests_idle_at;
        self.tokens_idle_at = tokens_idle_at;
        self.reserved(context.session, parts, context.now)
    }

    /// The limits' states after one more request of `tokens`, or why not. Changes nothing: a refusal consumes no limit.
    fn admit_rates(&self, tokens: u64, limits: &Limits, now: Micros) -> Result<(Micros, Micros), Answer> {
        let step = |idle_at: Micros, count: u64, per_minute: u64, limit: Limit| {
            if per_minute == 0 {
                return Ok(idle_at);
            }
            if count > per_minute {
                return Err(Answer::Limited { limit, retry_after_us: None });
            }
            let next = idle_at.max(now) + limit_increment(count, per_minute);
            match next.checked_sub(now + LIMIT_WINDOW_US) {
                None | Some(0) => Ok(next),
                Some(wait) => Err(Answer::Limited { limit, retry_after_us: Some(wait) }),
            }
        };
        let requests = step(self.requests_idle_at, 1, limits.requests_per_minute, Limit::Requests)?;
        let tokens = step(self.tokens_idle_at, tokens, limits.tokens_per_minute, Limit::Tokens)?;
        Ok((requests, tokens))
    }

    fn extend(&mut self, session: SessionId, more: Credits, floor: Credits, context: &mut Context<'_>) -> Answer {
        if context.backlogged {
            return Answer::Backlogged;
        }
        if !self.holders.iter().any(|holder| holder.session == session) {
            return Answer::UnknownHold;
        }
        if self.frozen {
            return Answer::Frozen;
        }
        if self.drawable(context.now) < floor.micro() {
            self.abandon_fenced(context);
        }
        let available = self.drawable(context.now);
        if available < floor.micro() {
            return self.insufficient(context.now);
        }
        let parts = self.take(more.micro().min(available), context.now);
        self.grow_hold(session, &as_micro(&parts));
        self.reserved(session, parts, context.now)
    }

    fn settle(
        &mut self,
        session: SessionId,
        parts: &Parts,
        actual: Credits,
        tokens_back_us: u64,
        usage: &bytes::Bytes,
        context: &mut Context<'_>,
    ) -> Answer {
        let parts = as_micro(parts);
        if !self.holds(session, &parts) {
            return Answer::UnknownHold;
        }
        if self.debt > LIMIT - actual.micro() {
            return Answer::TooLarge;
        }
        let mut effect = Effect::default();
        self.end_hold(session, &parts, actual.micro(), context.now, &mut effect);
        self.give_back_tokens(tokens_back_us);
        let charged = actual;
        self.emit(EventKind::Settled, effect, Detail { usage: usage.clone(), ..Detail::default() }, context);
        Answer::Settled { charged, available: Credits::ZERO }
    }

    fn release(&mut self, session: SessionId, parts: &Parts, tokens_back_us: u64, context: &mut Context<'_>) -> Answer {
        let parts = as_micro(parts);
        if !self.holds(session, &parts) {
            return Answer::UnknownHold;
        }
        self.return_hold(session, &parts, context);
        self.give_back_tokens(tokens_back_us);
        Answer::Released { available: Credits::ZERO }
    }

    fn shrink(&mut self, session: SessionId, parts: &Parts, context: &mut Context<'_>) -> Answer {
        let parts = as_micro(parts);
        if !self.holds(session, &parts) {
            return Answer::UnknownHold;
        }
        let mut effect = Effect::default();
        self.lower_hold(session, &parts);
        for (id, amount) in &parts {
            self.resolve(*id, 0, *amount, &mut effect);
        }
        self.emit_if_any(effect, context);
        Answer::Released { available: Credits::ZERO }
    }

    fn charge(
        &mut self,
        actual: Credits,
        must: bool,
        usage: &bytes::Bytes,
        record: Option<RecordKey>,
        context: &mut Context<'_>,
    ) -> Answer {
        if let Some(kept) = record.and_then(|key| repeated(key, context)) {
            return kept;
        }
        if !must {
            if context.backlogged {
                return Answer::Backlogged;
            }
            if self.frozen {
                return Answer::Frozen;
            }
            if self.drawable(context.now) < actual.micro() {
                self.abandon_fenced(context);
            }
            if self.drawable(context.now) < actual.micro() {
                return self.insufficient(context.now);
            }
        }
        if self.debt > LIMIT - actual.micro() {
            return Answer::TooLarge;
        }
        let mut effect = Effect::default();
        self.pay(actual.micro(), context.now, &mut effect);
        effect.charged = actual.micro();
        let detail = Detail { usage: usage.clone(), record: record.map(|key| key.id), change: 0 };
        self.emit(EventKind::Charged, effect, detail, context);
        if let Some(key) = record {
            let available = self.available(context.now);
            finish(key, Kept::Charged { charged_micro: actual.micro(), available_micro: available }, context);
        }
        Answer::Settled { charged: actual, available: Credits::ZERO }
    }

    fn hold(&mut self, key: RecordKey, amount: Credits, expires_in_us: u64, context: &mut Context<'_>) -> Answer {
        if let Some(kept) = repeated(key, context) {
            return kept;
        }
        if context.backlogged {
            return Answer::Backlogged;
        }
        if self.frozen {
            return Answer::Frozen;
        }
        if self.drawable(context.now) < amount.micro() {
            self.abandon_fenced(context);
        }
        if self.drawable(context.now) < amount.micro() {
            return self.insufficient(context.now);
        }
        let parts = self.take(amount.micro(), context.now);
        let held = as_micro(&parts);
        self.add_hold(SessionId::API, &held);
        let expires_at = context.now.saturating_add(expires_in_us);
        let available_micro = self.available(context.now);
        *context.record = Some(RecordState {
            id: key.id,
            fingerprint: key.fingerprint,
            until: expires_at,
            held: Some(held.to_vec()),
            answer: Kept::Held { held_micro: amount.micro(), available_micro, expires_at },
        });
        Answer::Held { held: amount, available: Credits::ZERO, expires_at }
    }

    fn settle_hold(
        &mut self,
        id: RecordId,
        actual: Credits,
        usage: &bytes::Bytes,
        context: &mut Context<'_>,
    ) -> Answer {
        let (key, held) = match self.open_record(id, context) {
            Ok(open) => open,
            Err(answer) => return answer,
        };
        let total: i64 = held.iter().map(|(_, micro)| micro).sum();
        if actual.micro() > total + self.drawable(context.now) {
            return self.insufficient(context.now);
        }
        let mut effect = Effect::default();
        self.end_hold(SessionId::API, &held, actual.micro(), context.now, &mut effect);
        let detail = Detail { usage: usage.clone(), record: Some(id), change: 0 };
        self.emit(EventKind::Settled, effect, detail, context);
        let available = self.available(context.now);
        finish(key, Kept::Charged { charged_micro: actual.micro(), available_micro: available }, context);
        Answer::Settled { charged: actual, available: Credits::ZERO }
    }

    fn release_hold(&mut self, id: RecordId, expired_only: bool, context: &mut Context<'_>) -> Answer {
        let (key, held) = match self.open_record(id, context) {
            Ok(open) => open,
            Err(answer) => return answer,
        };
        if expired_only && context.record.as_ref().is_some_and(|record| record.until > context.now) {
            return Answer::Refused;
        }
        self.return_hold(SessionId::API, &held, context);
        finish(key, Kept::Released { available_micro: self.available(context.now) }, context);
        Answer::Released { available: Credits::ZERO }
    }

    /// The parts of a record that is still held here.
    fn open_record(&self, id: RecordId, context: &Context<'_>) -> Result<(RecordKey, MicroParts), Answer> {
        let record = context.record.as_ref().filter(|record| record.id == id).ok_or(Answer::UnknownHold)?;
        let held = record.held.as_ref().ok_or(Answer::Finished(record.answer))?;
        let held: MicroParts = held.iter().copied().collect();
        if !self.holds(SessionId::API, &held) {
            return Err(Answer::UnknownHold);
        }
        Ok((RecordKey { id, fingerprint: record.fingerprint }, held))
    }

    fn apply_change(&mut self, number: u64, change: &Change, context: &mut Context<'_>) -> Answer {
        if number <= self.change {
            return Answer::Duplicate;
        }
        if number > self.change + 1 {
            return Answer::Gap { applied: self.change };
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
                if amount_micro.is_some_and(|amount| self.debt > LIMIT - amount) {
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

    fn revoke(&mut self, id: GrantId, amount: Option<i64>, effect: &mut Effect) {
        let held = self.held_from(id);
        let mut left = amount;
        if let Some(grant) = self.grants.iter_mut().find(|grant| grant.id == id) {
            let now_taken = amount.map_or(grant.remaining, |amount| amount.min(grant.remaining));
            grant.remaining -= now_taken;
            effect.shift(id, -now_taken);
            effect.written_off += now_taken;
            left = amount.map(|amount| amount - now_taken);
            let free = held - grant.claw;
            let later = left.map_or(free, |left| left.min(free));
            grant.claw += later;
            left = left.map(|left| left - later);
        }
        // What was spent of a clawed-back grant is owed.
        let owed = left.unwrap_or(0);
        self.debt += owed;
        effect.debt_delta += owed;
        effect.written_off += owed;
    }

    fn roll_over(
        &mut self,
        from: GrantId,
        cap: i64,
        to: GrantId,
        kind: GrantKind,
        expires_at: Micros,
        effect: &mut Effect,
    ) {
        let mut moved = 0;
        if let Some(grant) = self.grants.iter_mut().find(|grant| grant.id == from) {
            moved = grant.remaining.min(cap);
            effect.shift(from, -grant.remaining);
            effect.written_off += grant.remaining - moved;
            grant.remaining = 0;
        }
        effect.shift(to, moved);
        self.insert_grant(Grant { id: to, kind, remaining: moved, expires_at, frozen: false, claw: 0 });
    }

    fn set_frozen(&mut self, scope: Scope, frozen: bool) {
        match scope {
            Scope::Account => self.frozen = frozen,
            Scope::Grant { grant: id } => {
                if let Some(grant) = self.grants.iter_mut().find(|grant| grant.id == id) {
                    grant.frozen = frozen;
                }
            }
        }
    }

    fn park(&self, flushed_seq: u64, now: Micros) -> Answer {
        let held = self.holders.iter().any(|holder| holder.count > 0);
        let busy = self.requests_idle_at > now || self.tokens_idle_at > now;
        if self.seq != flushed_seq || held || busy { Answer::Refused } else { Answer::Parked }
    }

    fn balance(&self, now: Micros) -> Balance {
        Balance {
            available: micro(self.available(now)),
            held: micro(self.held()),
            debt: micro(self.debt),
            frozen: self.frozen,
            seq: self.seq,
            change: self.change,
            in_flight: self.in_flight(),
            grants: self
                .grants
                .iter()
                .map(|grant| GrantState {
                    id: grant.id,
                    kind: grant.kind,
                    remaining_micro: grant.remaining,
                    expires_at: grant.expires_at,
                    frozen: grant.frozen,
                })
                .collect(),
        }
    }

    // What follows changes the account; the caller has checked that it may.

    /// Takes `amount`, which the account can pay, in burn order.
    fn take(&mut self, amount: i64, now: Micros) -> Parts {
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
    fn pay(&mut self, amount: i64, now: Micros, effect: &mut Effect) {
        let affordable = amount.min(self.drawable(now));
        for (grant, taken) in self.take(affordable, now) {
            effect.shift(grant, -taken.micro());
        }
        self.debt += amount - affordable;
        effect.debt_delta += amount - affordable;
    }

    /// Pays `actual` from a hold's parts in the order taken, returns the rest, and draws on the balance for an overrun.
    fn end_hold(
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
    fn return_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)], context: &mut Context<'_>) {
        let mut effect = Effect::default();
        let left_over = self.remove_hold(session, parts);
        for (id, amount) in parts.iter().copied().chain(left_over) {
            self.resolve(id, 0, amount, &mut effect);
        }
        self.emit_if_any(effect, context);
    }

    fn emit_if_any(&mut self, effect: Effect, context: &mut Context<'_>) {
        if !effect.is_empty() {
            self.emit(EventKind::Adjusted, effect, Detail::default(), context);
        }
    }

    /// One part of an ended hold: `paid` of it is used, `returned` comes back. A revocation takes its share of both.
    fn resolve(&mut self, id: GrantId, paid: i64, returned: i64, effect: &mut Effect) {
        let Some(grant) = self.grants.iter_mut().find(|grant| grant.id == id) else { return };
        let discarded = returned.min(grant.claw);
        grant.claw -= discarded;
        grant.remaining += returned - discarded;
        let owed = paid.min(grant.claw);
        grant.claw -= owed;
        self.debt += owed;
        effect.shift(id, -(paid + discarded));
        effect.written_off += discarded + owed;
        effect.debt_delta += owed;
    }

    fn abandon_fenced(&mut self, context: &mut Context<'_>) {
        let fenced = context.fenced;
        while let Some(index) = self.holders.iter().position(|holder| holder.count > 0 && fenced(holder.session)) {
            self.abandon_at(index, context);
        }
    }

    fn abandon_at(&mut self, index: usize, context: &mut Context<'_>) -> i64 {
        let holder = self.holders.swap_remove(index);
        if holder.count == 0 {
            return 0;
        }
        let mut effect = Effect::default();
        for (id, amount) in &holder.taken {
            effect.forfeited += amount;
            self.resolve(*id, 0, *amount, &mut effect);
        }
        let forfeited = effect.forfeited;
        self.emit(EventKind::Abandoned, effect, Detail::default(), context);
        forfeited
    }

    /// Writes off what expired a minute ago, pays debt from what can be drawn, forgets empty grants. Rides in the
    /// operation's last event, or in one of its own.
    fn tidy(&mut self, events_before: usize, context: &mut Context<'_>) {
        let now = context.now;
        let mut effect = Effect::default();
        for grant in &mut self.grants {
            if grant.remaining > 0 && grant.expires_at > 0 && grant.expires_at + WRITE_OFF_AFTER_US <= now {
                effect.shift(grant.id, -grant.remaining);
                effect.written_off += grant.remaining;
                grant.remaining = 0;
            }
        }
        if self.debt > 0 {
            let paid = self.debt.min(self.drawable(now));
            for (grant, taken) in self.take(paid, now) {
                effect.shift(grant, -taken.micro());
            }
            self.debt -= paid;
            effect.debt_delta -= paid;
        }
        self.forget_empty_grants();
        if effect.is_empty() {
            return;
        }
        match context.events.get_mut(events_before..).and_then(|events| events.last_mut()) {
            Some(event) => fold(event, effect),
            None => self.emit(EventKind::Adjusted, effect, Detail::default(), context),
        }
    }

    fn forget_empty_grants(&mut self) {
        if self.grants.iter().all(|grant| grant.remaining > 0) {
            return;
        }
        let holders = std::mem::take(&mut self.holders);
        self.grants.retain(|grant| grant.remaining > 0 || held_by(&holders, grant.id) > 0);
        self.holders = holders;
    }

    fn emit(&mut self, kind: EventKind, effect: Effect, detail: Detail, context: &mut Context<'_>) {
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

    fn insert_grant(&mut self, grant: Grant) {
        let at = self.grants.partition_point(|other| other.burn_order() < grant.burn_order());
        self.grants.insert(at, grant);
    }

    fn add_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)]) {
        match self.holders.iter_mut().find(|holder| holder.session == session) {
            Some(holder) => holder.count += 1,
            None => self.holders.push(Holder { session, count: 1, taken: Vec::new() }),
        }
        self.grow_hold(session, parts);
    }

    fn grow_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)]) {
        let Some(holder) = self.holders.iter_mut().find(|holder| holder.session == session) else { return };
        for (id, amount) in parts {
            match holder.taken.iter_mut().find(|(grant, _)| grant == id) {
                Some((_, taken)) => *taken += amount,
                None => holder.taken.push((*id, *amount)),
            }
        }
    }

    fn lower_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)]) {
        let Some(holder) = self.holders.iter_mut().find(|holder| holder.session == session) else { return };
        for (id, amount) in parts {
            if let Some((_, taken)) = holder.taken.iter_mut().find(|(grant, _)| grant == id) {
                *taken -= amount;
            }
        }
        holder.taken.retain(|(_, taken)| *taken > 0);
    }

    /// Ends one hold. Answers what the session still had from this account although no hold of it is left.
    fn remove_hold(&mut self, session: SessionId, parts: &[(GrantId, i64)]) -> Vec<(GrantId, i64)> {
        self.lower_hold(session, parts);
        let Some(index) = self.holders.iter().position(|holder| holder.session == session) else { return Vec::new() };
        let holder = &mut self.holders[index];
        holder.count -= 1;
        if holder.count > 0 {
            return Vec::new();
        }
        self.holders.swap_remove(index).taken
    }

    fn give_back_tokens(&mut self, tokens_back_us: u64) {
        self.tokens_idle_at = self.tokens_idle_at.saturating_sub(tokens_back_us);
    }

    // What follows only reads.

    /// Whether the session holds at least these parts, each named once.
    fn holds(&self, session: SessionId, parts: &[(GrantId, i64)]) -> bool {
        let Some(holder) = self.holders.iter().find(|holder| holder.session == session) else { return false };
        let taken = |id: &GrantId| holder.taken.iter().find(|(grant, _)| grant == id).map_or(0, |(_, taken)| *taken);
        parts.iter().enumerate().all(|(index, (id, amount))| {
            let first = parts[..index].iter().all(|(other, _)| other != id);
            first && *amount > 0 && *amount <= taken(id)
        })
    }

    fn drawable(&self, now: Micros) -> i64 {
        self.grants.iter().filter(|grant| grant.drawable(now)).map(|grant| grant.remaining).sum()
    }

    fn available(&self, now: Micros) -> i64 {
        if self.frozen { 0 } else { self.drawable(now) }
    }

    fn held(&self) -> i64 {
        self.holders.iter().flat_map(|holder| &holder.taken).map(|(_, taken)| taken).sum()
    }

    fn held_from(&self, id: GrantId) -> i64 {
        held_by(&self.holders, id)
    }

    fn total(&self) -> i64 {
        self.held() + self.grants.iter().map(|grant| grant.remaining).sum::<i64>()
    }

    fn in_flight(&self) -> u64 {
        self.holders.iter().filter(|holder| holder.session != SessionId::API).map(|holder| holder.count).sum()
    }

    fn insufficient(&self, now: Micros) -> Answer {
        Answer::Insufficient { available: micro(self.available(now)), held: micro(self.held()) }
    }

    fn reserved(&self, session: SessionId, parts: Parts, now: Micros) -> Answer {
        Answer::Reserved(Reserved {
            session,
            parts,
            available: micro(self.available(now)),
            requests_busy_us: self.requests_idle_at.saturating_sub(now),
            tokens_busy_us: self.tokens_idle_at.saturating_sub(now),
        })
    }

    /// What is available is told as it stands after everything else.
    fn with_available(&self, answer: Answer, context: &mut Context<'_>) -> Answer {
        let now = micro(self.available(context.now));
        match answer {
            Answer::Settled { charged, .. } => Answer::Settled { charged, available: now },
            Answer::Released { .. } => Answer::Released { available: now },
            Answer::Held { held, expires_at, .. } => Answer::Held { held, available: now, expires_at },
            Answer::Reserved(reserved) => Answer::Reserved(Reserved { available: now, ..reserved }),
            other => other,
        }
    }
}

impl Grant {
    /// A grant past its expiry is never drawn from.
    fn drawable(&self, now: Micros) -> bool {
        !self.frozen && (self.expires_at == 0 || self.expires_at > now)
    }

    fn burn_order(&self) -> (Micros, bool, GrantId) {
        let expiry = if self.expires_at == 0 { Micros::MAX } else { self.expires_at };
        (expiry, self.kind.bought(), self.id)
    }
}

#[derive(Default)]
struct Detail {
    usage: bytes::Bytes,
    record: Option<RecordId>,
    change: u64,
}

fn held_by(holders: &[Holder], id: GrantId) -> i64 {
    holders.iter().flat_map(|holder| &holder.taken).filter(|(grant, _)| *grant == id).map(|(_, taken)| taken).sum()
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

/// What to answer when the record exists already.
fn repeated(key: RecordKey, context: &Context<'_>) -> Option<Answer> {
    let record = context.record.as_ref().filter(|record| record.id == key.id)?;
    if record.held.is_none() && record.until <= context.now {
        return None;
    }
    if record.fingerprint != key.fingerprint { Some(Answer::Mismatch) } else { Some(Answer::Repeated(record.answer)) }
}

fn finish(key: RecordKey, answer: Kept, context: &mut Context<'_>) {
    let until = context.now.saturating_add(RECORD_KEPT_US);
    *context.record = Some(RecordState { id: key.id, fingerprint: key.fingerprint, until, held: None, answer });
}

fn as_micro(parts: &Parts) -> MicroParts {
    parts.iter().map(|(grant, amount)| (*grant, amount.micro())).collect()
}

/// Amounts of an account are within bounds by construction; a value outside would be a bug, and is cut rather than wrapped.
fn micro(amount: i64) -> Credits {
    Credits::saturating_from_micro(i128::from(amount))
}
