//! What requests do to an account: reserve, extend, shrink, settle, release, charge; and the limits that admit them.

use bytes::Bytes;

use super::{Account, Context, Detail, Effect, as_micro, records};
use crate::credits::Credits;
use crate::ledger::{
    Answer, EventKind, LIMIT_WINDOW_US, Limit, Limits, Micros, Parts, RecordKey, SessionId, limit_increment,
};

impl Account {
    pub(super) fn reserve(
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
    pub(super) fn admit_rates(&self, tokens: u64, limits: &Limits, now: Micros) -> Result<(Micros, Micros), Answer> {
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

    pub(super) fn extend(
        &mut self,
        session: SessionId,
        more: Credits,
        floor: Credits,
        context: &mut Context<'_>,
    ) -> Answer {
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

    pub(super) fn settle(
        &mut self,
        session: SessionId,
        parts: &Parts,
        actual: Credits,
        tokens_back_us: u64,
        usage: &Bytes,
        context: &mut Context<'_>,
    ) -> Answer {
        let parts = as_micro(parts);
        if !self.holds(session, &parts) {
            return Answer::UnknownHold;
        }
        let actual = self.payable(actual);
        let mut effect = Effect::default();
        self.end_hold(session, &parts, actual.micro(), context.now, &mut effect);
        self.give_back_tokens(tokens_back_us);
        self.emit(EventKind::Settled, effect, Detail { usage: usage.clone(), ..Detail::default() }, context);
        Answer::Settled { charged: actual, available: Credits::ZERO }
    }

    pub(super) fn release(
        &mut self,
        session: SessionId,
        parts: &Parts,
        tokens_back_us: u64,
        context: &mut Context<'_>,
    ) -> Answer {
        let parts = as_micro(parts);
        if !self.holds(session, &parts) {
            return Answer::UnknownHold;
        }
        self.return_hold(session, &parts, context);
        self.give_back_tokens(tokens_back_us);
        Answer::Released { available: Credits::ZERO }
    }

    pub(super) fn shrink(&mut self, session: SessionId, parts: &Parts, context: &mut Context<'_>) -> Answer {
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

    pub(super) fn charge(
        &mut self,
        actual: Credits,
        must: bool,
        usage: &Bytes,
        record: Option<RecordKey>,
        context: &mut Context<'_>,
    ) -> Answer {
        if let Some(kept) = record.and_then(|key| records::repeated(key, context)) {
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
        let actual = self.payable(actual);
        let mut effect = Effect::default();
        self.pay(actual.micro(), context.now, &mut effect);
        effect.charged = actual.micro();
        let detail = Detail { usage: usage.clone(), record: record.map(|key| key.id), change: 0 };
        self.emit(EventKind::Charged, effect, detail, context);
        if let Some(key) = record {
            records::finish(key, records::charged(actual), context);
        }
        Answer::Settled { charged: actual, available: Credits::ZERO }
    }
}
