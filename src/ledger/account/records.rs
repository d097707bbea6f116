//! Holds made through the API, and charges that answer a repetition with what they answered first.

use bytes::Bytes;

use super::{Account, Context, Detail, Effect, MicroParts, as_micro};
use crate::credits::Credits;
use crate::ledger::{
    API_HOLDS_MAX, Answer, EventKind, Kept, Limit, RECORD_KEPT_US, RecordId, RecordKey, RecordState, SessionId,
};

impl Account {
    pub(super) fn hold(
        &mut self,
        key: RecordKey,
        amount: Credits,
        expires_in_us: u64,
        must: bool,
        context: &mut Context<'_>,
    ) -> Answer {
        if let Some(kept) = repeated(key, context) {
            return kept;
        }
        if !must {
            if context.backlogged {
                return Answer::Backlogged;
            }
            if self.frozen {
                return Answer::Frozen;
            }
            let api = self.holders.iter().find(|holder| holder.session == SessionId::API);
            if api.is_some_and(|api| api.count >= API_HOLDS_MAX) {
                return Answer::Limited { limit: Limit::Concurrency, retry_after_us: Some(1_000_000) };
            }
        }
        if self.drawable(context.now) < amount.micro() {
            self.abandon_fenced(context);
        }
        let available = self.drawable(context.now);
        if !must && available < amount.micro() {
            return self.insufficient(context.now);
        }
        let parts = self.take(amount.micro().min(available), context.now);
        let held = as_micro(&parts);
        self.add_hold(SessionId::API, &held);
        self.emit(EventKind::Adjusted, Effect::default(), Detail::default(), context);
        let expires_at = context.now.saturating_add(expires_in_us);
        *context.record = Some(RecordState {
            id: key.id,
            fingerprint: key.fingerprint,
            until: expires_at,
            held: Some(held.to_vec()),
            answer: Kept::Held { held_micro: amount.micro(), available_micro: 0, expires_at },
        });
        Answer::Held { held: amount, available: Credits::ZERO, expires_at }
    }

    pub(super) fn settle_hold(
        &mut self,
        id: RecordId,
        actual: Credits,
        must: bool,
        usage: &Bytes,
        context: &mut Context<'_>,
    ) -> Answer {
        let (key, held) = match self.open_record(id, context) {
            Ok(open) => open,
            Err(Answer::UnknownHold) if must => return self.charge_lost(id, actual, usage, context),
            Err(answer) => return answer,
        };
        let total: i64 = held.iter().map(|(_, micro)| micro).sum();
        if actual.micro() > total + self.drawable(context.now) {
            self.abandon_fenced(context);
        }
        if !must && actual.micro() > total + self.drawable(context.now) {
            return self.insufficient(context.now);
        }
        let actual = self.payable(actual);
        let mut effect = Effect::default();
        self.end_hold(SessionId::API, &held, actual.micro(), context.now, &mut effect);
        let detail = Detail { usage: usage.clone(), record: Some(id), change: 0 };
        self.emit(EventKind::Settled, effect, detail, context);
        finish(key, charged(actual), context);
        Answer::Settled { charged: actual, available: Credits::ZERO }
    }

    /// Settles a hold that was lost with what knew of it: its worker was told that it is settled.
    fn charge_lost(&mut self, id: RecordId, actual: Credits, usage: &Bytes, context: &mut Context<'_>) -> Answer {
        let actual = self.payable(actual);
        let mut effect = Effect::default();
        self.pay(actual.micro(), context.now, &mut effect);
        effect.charged = actual.micro();
        let detail = Detail { usage: usage.clone(), record: Some(id), change: 0 };
        self.emit(EventKind::Charged, effect, detail, context);
        let known = context.record.as_ref().filter(|record| record.id == id);
        let key = RecordKey { id, fingerprint: known.map_or(0, |record| record.fingerprint) };
        finish(key, charged(actual), context);
        Answer::Settled { charged: actual, available: Credits::ZERO }
    }

    pub(super) fn release_hold(&mut self, id: RecordId, expired_only: bool, context: &mut Context<'_>) -> Answer {
        let (key, held) = match self.open_record(id, context) {
            Ok(open) => open,
            Err(answer) => return answer,
        };
        if expired_only && context.record.as_ref().is_some_and(|record| record.until > context.now) {
            return Answer::Refused;
        }
        let effect = self.returned(SessionId::API, &held);
        self.emit(EventKind::Adjusted, effect, Detail::default(), context);
        finish(key, Kept::Released { available_micro: 0 }, context);
        Answer::Released { available: Credits::ZERO }
    }

    /// The parts of a record that is still held here.
    pub(super) fn open_record(&self, id: RecordId, context: &Context<'_>) -> Result<(RecordKey, MicroParts), Answer> {
        let record = context.record.as_ref().filter(|record| record.id == id).ok_or(Answer::UnknownHold)?;
        let held = record.held.as_ref().ok_or(Answer::Finished(record.answer))?;
        let held: MicroParts = held.iter().copied().collect();
        if !self.holds(SessionId::API, &held) {
            return Err(Answer::UnknownHold);
        }
        Ok((RecordKey { id, fingerprint: record.fingerprint }, held))
    }
}

/// What to answer when the record exists already.
pub(super) fn repeated(key: RecordKey, context: &Context<'_>) -> Option<Answer> {
    let record = context.record.as_ref().filter(|record| record.id == key.id)?;
    if record.held.is_none() && record.until <= context.now {
        return None;
    }
    if record.fingerprint != key.fingerprint { Some(Answer::Mismatch) } else { Some(Answer::Repeated(record.answer)) }
}

/// The answer of a charge, to be kept; what is available is filled in at the end of the operation.
pub(super) fn charged(actual: Credits) -> Kept {
    Kept::Charged { charged_micro: actual.micro(), available_micro: 0 }
}

pub(super) fn finish(key: RecordKey, answer: Kept, context: &mut Context<'_>) {
    let until = context.now.saturating_add(RECORD_KEPT_US);
    *context.record = Some(RecordState { id: key.id, fingerprint: key.fingerprint, until, held: None, answer });
}
