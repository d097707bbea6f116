//! The account model: what every operation does to one account, in pure Rust.
//!
//! This is the meaning of the ledger. The embedded ledger runs it behind locks; the Lua scripts say the same in Redis
//! and are held against it by property tests. Between operations these hold:
//!
//! * Σ parts of sessions = what is held; a grant stays in the account while anything is held from it.
//! * `debt > 0` only while nothing can be drawn.
//! * A grant with a claw has nothing remaining, and at least the claw is held from it.
//! * `Σ(remaining + held - claw) - debt` changes by `granted - charged - written_off` of the events, exactly. That sum
//!   is also what the store knows, so that a load after a crash brings nothing revoked back.

mod books;
mod changes;
mod records;
mod requests;
#[cfg(test)]
mod tests;

use smallvec::SmallVec;

use super::{
    AccountId, AccountState, Act, Answer, Balance, Delta, Deltas, Event, GrantId, GrantKind, GrantState, Micros, Parts,
    RecordId, RecordState, Reserved, SessionId, WRITE_OFF_AFTER_US,
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
    /// How much of what is held a revocation has written off already: it is discarded as it comes back, and becomes
    /// debt as it is settled.
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
    /// An account as loaded from the store. Pays debt from what the crash of a worker gave back, so that nothing draws on
    /// it before.
    pub fn load(state: &AccountState, context: &mut Context<'_>) -> Account {
        let mut account = Account::from_state(state);
        account.tidy(context.events.len(), context);
        account
    }

    /// What API records hold leaves `remaining` here; where they hold more than
    /// the store says is left of a grant, the difference was revoked.
    fn from_state(state: &AccountState) -> Account {
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
            for (id, micro) in held {
                if !account.grants.iter().any(|grant| grant.id == *id) {
                    account.insert_grant(Grant::revoked(*id));
                }
                if let Some(grant) = account.grants.iter_mut().find(|candidate| candidate.id == *id) {
                    let missing = (micro - grant.remaining).max(0);
                    grant.remaining -= micro - missing;
                    grant.claw += missing;
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
            Act::Hold { record, amount, expires_in_us, must } => {
                self.hold(*record, *amount, *expires_in_us, *must, context)
            }
            Act::SettleHold { record, actual, must, usage } => {
                self.settle_hold(*record, *actual, *must, usage, context)
            }
            Act::ReleaseHold { record, expired_only } => self.release_hold(*record, *expired_only, context),
            Act::Apply { number, change } => self.apply_change(*number, change, context),
            Act::Park { flushed_seq } => return self.park(*flushed_seq, context.now),
            Act::Balance => return Answer::Balance(self.balance(context.now)),
            Act::Ticket { .. } | Act::Load { .. } => return Answer::Already,
            Act::Recall { .. } => return Answer::Applied,
            Act::Sweep => Answer::Applied,
        };
        self.tidy(events_before, context);
        match (act, answer) {
            (Act::Sweep, _) => Answer::Balance(self.balance(context.now)),
            (act, answer) => self.with_available(act, answer, context),
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

    /// Whether something expired long enough ago to be written off by a `Sweep`.
    pub fn write_off_due(&self, now: Micros) -> bool {
        self.grants.iter().any(|grant| grant.remaining > 0 && grant.write_off_due(now))
    }

    pub fn seq(&self) -> u64 {
        self.seq
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
            clawed: micro(self.grants.iter().map(|grant| grant.claw).sum()),
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

    /// What is available is told as it stands after everything else, in the answer and in the record that repeats it.
    fn with_available(&self, act: &Act, answer: Answer, context: &mut Context<'_>) -> Answer {
        let now = micro(self.available(context.now));
        let answer = match answer {
            Answer::Settled { charged, .. } => Answer::Settled { charged, available: now },
            Answer::Released { .. } => Answer::Released { available: now },
            Answer::Held { held, expires_at, .. } => Answer::Held { held, available: now, expires_at },
            Answer::Reserved(reserved) => Answer::Reserved(Reserved { available: now, ..reserved }),
            other => return other,
        };
        if let (Some(id), Some(record)) = (act.record(), context.record.as_mut())
            && record.id == id
        {
            record.answer.set_available(now.micro());
        }
        answer
    }
}

impl Grant {
    /// A grant past its expiry is never drawn from.
    fn drawable(&self, now: Micros) -> bool {
        !self.frozen && (self.expires_at == 0 || self.expires_at > now)
    }

    fn write_off_due(&self, now: Micros) -> bool {
        self.expires_at > 0 && self.expires_at.saturating_add(WRITE_OFF_AFTER_US) <= now
    }

    /// What stands for a grant of which nothing is left but what is held.
    fn revoked(id: GrantId) -> Grant {
        Grant { id, kind: GrantKind::Adjust, remaining: 0, expires_at: 0, frozen: false, claw: 0 }
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

fn as_micro(parts: &Parts) -> MicroParts {
    parts.iter().map(|(grant, amount)| (*grant, amount.micro())).collect()
}

/// Amounts of an account are within bounds by construction; a value outside would be a bug, and is cut rather than wrapped.
fn micro(amount: i64) -> Credits {
    Credits::saturating_from_micro(i128::from(amount))
}
