//! One shard of the ledger: what its scripts do with a batch.

use super::State;
use super::flusher::Flusher;
use super::scope::Guards;
use super::worker::{Op, Worker};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Effect {
    Settle { usage: u8, paid: u8 },
    Grant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Entry {
    pub(super) session: u8,
    pub(super) number: u8,
    /// The same batch, applied again in another history, is another entry.
    pub(super) history: u8,
    pub(super) effect: Effect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Account {
    pub(super) remaining: i8,
    pub(super) held: i8,
    pub(super) debt: i8,
    pub(super) change: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Redis {
    pub(super) epoch: u8,
    pub(super) closed: bool,
    pub(super) counter: u8,
    pub(super) flushed: u8,
    pub(super) history: u8,
    pub(super) sessions: Vec<Session>,
    /// It has the answer of the charge with a key.
    pub(super) record: bool,
    /// What each session holds.
    pub(super) holds: Vec<u8>,
    pub(super) account: Option<Account>,
    pub(super) stream: Vec<Entry>,
    /// Streams of earlier epochs are dropped in the background: here, they are kept.
    pub(super) old: Vec<(u8, Vec<Entry>)>,
}

#[derive(PartialEq, Eq)]
pub(super) enum Reply {
    Applied(Said),
    Fenced,
    Lost,
}

/// What a batch was answered; a resent one is answered the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Said {
    Done,
    /// Of a charge with a key: it was charged before, there is too little, or the store must be asked for it first.
    Repeated,
    Refused,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Session {
    pub(super) id: u8,
    pub(super) number: u8,
    pub(super) fenced: bool,
    pub(super) said: Said,
}

impl State {
    /// What the script does with a batch.
    pub(super) fn script(&mut self, worker: usize, guards: &Guards) -> Reply {
        let Worker { epoch, session, number, seen, in_flight, recalled, .. } = self.workers[worker].clone();
        let Some(redis) = &mut self.redis else { return Reply::Lost };
        if redis.closed || redis.epoch != epoch || (guards.seen && redis.counter < seen) {
            return Reply::Lost;
        }
        let number = number + 1;
        match redis.sessions.iter_mut().find(|known| known.id == session) {
            Some(known) if known.number == number => return Reply::Applied(known.said),
            Some(known) if known.number + 1 != number => return Reply::Lost,
            Some(known) if known.fenced => return Reply::Fenced,
            Some(known) => known.number = number,
            None if number == 1 => {
                redis.sessions.push(Session { id: session, number, fenced: false, said: Said::Done })
            }
            None => return Reply::Lost,
        }
        redis.sessions.sort_unstable();
        let recalled = recalled.filter(|(at, _)| *at == epoch || !guards.recall_epoch).map(|(_, charged)| charged);
        let (said, effect) = redis.apply(in_flight, session, self.store.account, recalled, guards);
        if let Some(known) = redis.sessions.iter_mut().find(|known| known.id == session) {
            known.said = said;
        }
        if let Some(effect) = effect {
            redis.counter += 1;
            redis.stream.push(Entry { session, number, history: redis.history, effect });
            if let (Effect::Settle { usage, .. }, Some(Op::Keyed { .. })) = (effect, in_flight) {
                self.by_worker[usize::from(usage)] = worker as u8;
            }
        }
        Reply::Applied(said)
    }

    pub(super) fn fence(&mut self, worker: usize) {
        let session = self.workers[worker].session;
        let Some(redis) = &mut self.redis else { return };
        let state = redis.sessions.iter_mut().find(|known| known.id == session && !known.fenced);
        let (Some(state), 1..) = (state, self.fences) else { return };
        // A session is fenced after ten seconds of standing still, also since a loss; a flush is given up after five.
        let reading = self.flushers.iter().any(|flusher| matches!(flusher, Flusher::Read { .. }));
        if redis.closed || reading {
            return;
        }
        self.fences -= 1;
        state.fenced = true;
        let back = redis.holds.iter().filter(|holder| **holder == session).count() as i8;
        redis.holds.retain(|holder| *holder != session);
        if let Some(account) = &mut redis.account {
            account.held -= back;
            account.remaining += back;
        }
    }
}

impl Redis {
    /// What the batch does to the account, and what the flusher will hear of it.
    fn apply(
        &mut self,
        op: Option<Op>,
        session: u8,
        stored: Account,
        recalled: Option<bool>,
        guards: &Guards,
    ) -> (Said, Option<Effect>) {
        let account = self.account.get_or_insert(stored);
        let effect = match op {
            None => None,
            Some(Op::Reserve) => {
                if account.remaining > 0 {
                    account.remaining -= 1;
                    account.held += 1;
                    self.holds.push(session);
                    self.holds.sort_unstable();
                }
                None
            }
            Some(Op::Settle(usage)) => {
                let Some(index) = self.holds.iter().position(|holder| *holder == session) else {
                    return (Said::Done, Some(account.charge(usage)));
                };
                self.holds.remove(index);
                account.held -= 1;
                Some(Effect::Settle { usage, paid: 1 })
            }
            Some(Op::Charge(usage)) => Some(account.charge(usage)),
            Some(Op::Keyed { .. }) if self.record => return (Said::Repeated, None),
            Some(Op::Keyed { .. }) if self.epoch > 0 && guards.recall && recalled.is_none() => {
                return (Said::Unknown, None);
            }
            Some(Op::Keyed { .. }) if self.epoch > 0 && guards.recall && recalled == Some(true) => {
                self.record = true;
                return (Said::Repeated, None);
            }
            Some(Op::Keyed { must: false, .. }) if account.remaining == 0 => return (Said::Refused, None),
            Some(Op::Keyed { usage, .. }) => {
                self.record = true;
                Some(account.charge(usage))
            }
            Some(Op::Grant) if account.change == 1 => None,
            Some(Op::Grant) => {
                account.change = 1;
                account.remaining += 1;
                Some(Effect::Grant)
            }
        };
        (Said::Done, effect)
    }
}

impl Account {
    /// Without a hold: what there is not becomes debt.
    fn charge(&mut self, usage: u8) -> Effect {
        let paid = u8::from(self.remaining > 0);
        self.remaining -= paid as i8;
        self.debt += 1 - paid as i8;
        Effect::Settle { usage, paid }
    }
}
