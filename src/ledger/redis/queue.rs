//! What waits for a session's next batch.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::Core;
use super::recall::Recalled;
use crate::ledger::{AccountId, AccountState, Act, Answer, LedgerError, Op, Reply, Reserved, Status, limit_increment};

/// An operation and who waits for its answer.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) op: Op,
    pub(crate) to: To,
    /// The account had to be loaded for it: the holds that it had before are gone.
    pub(crate) reloaded: bool,
    /// What the store has of its record, where it had to be asked.
    pub(crate) recalled: Option<Recalled>,
}

#[derive(Debug)]
pub(crate) enum To {
    Caller(oneshot::Sender<Result<Answer, LedgerError>>),
    /// Something is given back, and nobody waits for it.
    Nobody,
    /// The session itself, which is loading the account.
    Loading,
}

/// What a session finds in its queue.
#[derive(Debug)]
pub(crate) enum Item {
    Op(Pending),
    /// What the store had of an account, and the ticket it was asked with.
    Found {
        account: AccountId,
        ticket: u64,
        result: Result<Option<AccountState>, LedgerError>,
    },
    /// It is time to try loading again.
    LoadAgain(AccountId),
    /// What the store had of an operation's record, asked in that epoch.
    Recalled {
        pending: Pending,
        epoch: u64,
        result: Result<Recalled, LedgerError>,
    },
}

/// Between those who submit and the session's task.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    pub(crate) wake: Notify,
    begun: Instant,
    /// Milliseconds after `begun`.
    acknowledged_ms: AtomicU64,
    backlogged: AtomicBool,
    unacknowledged_limit_ms: u64,
    max: usize,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    closed: bool,
}

impl Pending {
    pub(crate) fn new(op: Op, to: To) -> Pending {
        Pending { op, to, reloaded: false, recalled: None }
    }

    /// The operation that tells the ledger, just before this one, what the store has of its record.
    pub(crate) fn recall(&self, epoch: u64) -> Option<Pending> {
        let Recalled { state, .. } = self.recalled.as_ref().filter(|recalled| recalled.epoch == epoch)?;
        let act = Act::Recall { record: self.op.act.record()?, state: state.clone() };
        Some(Pending::new(Op { account: self.op.account.clone(), act }, To::Nobody))
    }

    /// Work that is owed: never refused for want of room, never dropped because nobody waits for it.
    pub(crate) fn is_owed(&self) -> bool {
        is_owed(&self.op.act) || matches!(self.to, To::Nobody)
    }

    /// Nobody waits for an answer that would be worthless to anyone else.
    pub(crate) fn is_pointless(&self) -> bool {
        matches!(&self.to, To::Caller(sender) if sender.is_closed()) && !self.is_owed()
    }

    /// Hands over the answer. What nobody took is given back by the operation that this answers.
    pub(crate) fn answer(self, result: Result<Answer, LedgerError>) -> Option<Pending> {
        let To::Caller(sender) = self.to else { return None };
        let act = match (sender.send(result), &self.op.act) {
            (Err(Ok(Answer::Reserved(reserved))), Act::Reserve { tokens, limits, .. }) => {
                let Reserved { session, parts, .. } = reserved;
                let tokens_back_us = limit_increment(*tokens, limits.tokens_per_minute);
                Act::Release { session, parts, tokens_back_us }
            }
            (Err(Ok(Answer::Reserved(Reserved { session, parts, .. }))), Act::Extend { .. }) if !parts.is_empty() => {
                Act::Shrink { session, parts }
            }
            // Whoever repeats the request under its key finds the hold; without one nobody knows its name.
            (Err(Ok(Answer::Held { .. })), Act::Hold { record, .. }) if !record.id.can_be_named_again() => {
                Act::ReleaseHold { record: record.id, expired_only: false }
            }
            _ => return None,
        };
        Some(Pending::new(Op { account: self.op.account, act }, To::Nobody))
    }
}

impl Queue {
    pub(crate) fn new(core: &Core) -> Queue {
        Queue {
            state: Mutex::default(),
            wake: Notify::new(),
            begun: Instant::now(),
            acknowledged_ms: AtomicU64::new(0),
            backlogged: AtomicBool::new(false),
            unacknowledged_limit_ms: core.settings.unacknowledged_limit_ms,
            max: core.settings.max_queue,
        }
    }

    pub(crate) fn submit(&self, op: Op) -> Reply {
        if is_new_work(&op.act) && self.status() == Status::Unavailable {
            return Reply::now(Err(LedgerError::Unavailable));
        }
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        if state.closed {
            if matches!(op.act, Act::Settle { .. } | Act::Charge { must: true, .. }) {
                tracing::error!(account = %op.account, "a settle came after the ledger's session had ended: it is lost");
            }
            return Reply::now(Err(LedgerError::Unavailable));
        }
        // What is owed is bounded by what was reserved before it.
        if state.items.len() >= self.max && !is_owed(&op.act) {
            return Reply::now(Err(LedgerError::Busy));
        }
        state.items.push_back(Item::Op(Pending::new(op, To::Caller(sender))));
        drop(state);
        self.wake.notify_one();
        Reply::Later(receiver)
    }

    /// What a session tells itself.
    pub(crate) fn push(&self, item: Item) {
        self.state.lock().items.push_back(item);
        self.wake.notify_one();
    }

    /// Moves at most `limit` items into `into`.
    pub(crate) fn take(&self, limit: usize, into: &mut VecDeque<Item>) {
        let mut state = self.state.lock();
        let count = limit.min(state.items.len());
        into.extend(state.items.drain(..count));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().items.is_empty()
    }

    /// Takes nothing more, and answers what is still there.
    pub(crate) fn close(&self) -> VecDeque<Item> {
        let mut state = self.state.lock();
        state.closed = true;
        std::mem::take(&mut state.items)
    }

    pub(crate) fn acknowledged(&self, backlogged: bool) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.acknowledged_ms.store(since, Ordering::Relaxed);
        self.backlogged.store(backlogged, Ordering::Relaxed);
    }

    pub(crate) fn status(&self) -> Status {
        if self.since_acknowledged() > Duration::from_millis(self.unacknowledged_limit_ms) {
            Status::Unavailable
        } else if self.backlogged.load(Ordering::Relaxed) {
            Status::Backlogged
        } else {
            Status::Ready
        }
    }

    pub(crate) fn since_acknowledged(&self) -> Duration {
        let at = Duration::from_millis(self.acknowledged_ms.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(at)
    }
}

fn is_owed(act: &Act) -> bool {
    matches!(
        act,
        Act::Settle { .. }
            | Act::Release { .. }
            | Act::Shrink { .. }
            | Act::Charge { must: true, .. }
            | Act::Load { .. }
    )
}

/// Refused at once while the ledger is out of reach.
fn is_new_work(act: &Act) -> bool {
    matches!(act, Act::Reserve { .. } | Act::Hold { .. } | Act::Charge { must: false, .. })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::credits::Credits;
    use crate::ledger::{AccountId, RecordId, RecordKey};

    /// failures 3: a hold under a name that nobody heard of goes back; one with a key is found by whoever repeats the request.
    #[test]
    fn a_hold_that_nobody_heard_of_goes_back() {
        let one = Credits::from_micro(1).unwrap();
        let left = |id: Uuid| {
            let record = RecordKey { id: RecordId(id), fingerprint: 7 };
            let act = Act::Hold { record, amount: one, expires_in_us: 5, must: false };
            let (sender, _) = oneshot::channel();
            let pending = Pending::new(Op { account: AccountId::parse("ada").unwrap(), act }, To::Caller(sender));
            let answer = Answer::Held { held: one, available: one, expires_at: 9 };
            pending.answer(Ok(answer)).map(|pending| pending.op.act)
        };
        let made_up = Uuid::now_v7();
        let back = Act::ReleaseHold { record: RecordId(made_up), expired_only: false };
        assert_eq!(left(made_up), Some(back));
        assert_eq!(left(Uuid::from_u128(7)), None);
    }
}
