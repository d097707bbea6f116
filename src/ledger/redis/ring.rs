//! What a worker was told is charged, held or released through the API, and is not in the store yet: should Redis lose it,
//! only the worker knows of it.
//!
//! Kept until the ledger says that its entry is in the store. Nothing is dropped for want of room: a worker whose memory is
//! full takes no new work.

use std::collections::VecDeque;

use crate::credits::Credits;
use crate::ledger::{Act, Answer, Op, SessionId};

/// The charges of one batch.
#[derive(Debug)]
struct Kept {
    session: SessionId,
    number: u64,
    /// Of the entry that carries them.
    counter: u64,
    charges: Vec<Op>,
}

#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// In the order of their entries.
    kept: VecDeque<Kept>,
    len: usize,
}

/// What must be done again should `answer` to `op` be lost. Takes the usage out of it.
pub(crate) fn claim(op: &mut Op, answer: &Answer) -> Option<Op> {
    let act = match (&mut op.act, answer) {
        (Act::Charge { usage, record, .. }, Answer::Settled { charged, .. }) => {
            Act::Charge { actual: *charged, must: true, usage: std::mem::take(usage), record: *record }
        }
        (Act::Settle { usage, .. }, Answer::Settled { charged, .. }) => {
            Act::Charge { actual: *charged, must: true, usage: std::mem::take(usage), record: None }
        }
        (Act::SettleHold { usage, record, .. }, Answer::Settled { charged, .. }) => {
            Act::SettleHold { record: *record, actual: *charged, must: true, usage: std::mem::take(usage) }
        }
        (Act::Hold { record, amount, expires_in_us, .. }, Answer::Held { .. }) => {
            Act::Hold { record: *record, amount: *amount, expires_in_us: *expires_in_us, must: true }
        }
        (Act::ReleaseHold { record, .. }, Answer::Released { .. }) => {
            Act::ReleaseHold { record: *record, expired_only: false }
        }
        _ => return None,
    };
    Some(Op { account: op.account.clone(), act })
}

/// What a claim charges.
pub(crate) fn charged(op: &Op) -> Credits {
    match &op.act {
        Act::Charge { actual, .. } | Act::SettleHold { actual, .. } => *actual,
        _ => Credits::ZERO,
    }
}

impl Ring {
    /// Charges that are kept.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn keep(&mut self, session: SessionId, number: u64, counter: u64, charges: Vec<Op>) {
        if !charges.is_empty() {
            self.len += charges.len();
            self.kept.push_back(Kept { session, number, counter, charges });
        }
    }

    /// Entries up to `counter` are in the store.
    pub(crate) fn flushed(&mut self, counter: u64) {
        while self.kept.front().is_some_and(|first| first.counter <= counter) {
            let flushed = self.kept.pop_front().map_or(0, |first| first.charges.len());
            self.len = self.len.saturating_sub(flushed);
        }
    }

    /// The sessions that something is kept of.
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        let mut sessions: Vec<SessionId> = self.kept.iter().map(|kept| kept.session).collect();
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }

    /// Empties it. Answers what is not in the store, which has each session's batches up to the number that `stored` says;
    /// and how many batches that was.
    pub(crate) fn recover(&mut self, stored: impl Fn(SessionId) -> u64) -> (Vec<Op>, u64) {
        self.len = 0;
        let lost = self.kept.drain(..).filter(|kept| kept.number > stored(kept.session));
        let mut batches = 0;
        let charges = lost.inspect(|_| batches += 1).flat_map(|kept| kept.charges).collect();
        (charges, batches)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ledger::AccountId;

    fn charge(micro: i64) -> Op {
        let actual = Credits::from_micro(micro).unwrap();
        let act = Act::Charge { actual, must: true, usage: Bytes::new(), record: None };
        Op { account: AccountId::parse("ada").unwrap(), act }
    }

    #[test]
    fn what_is_flushed_is_forgotten_and_nothing_else() {
        let mut ring = Ring::default();
        ring.keep(SessionId(1), 1, 4, vec![charge(1), charge(2)]);
        ring.keep(SessionId(1), 2, 4, Vec::new());
        ring.keep(SessionId(1), 3, 9, vec![charge(3)]);
        ring.flushed(3);
        assert_eq!(ring.len(), 3);
        ring.flushed(4);
        assert_eq!(ring.len(), 1);
        ring.flushed(9);
        assert_eq!((ring.len(), ring.sessions()), (0, vec![]));
    }

    /// failures 46, 47: what the store has is not charged again, what it lacks is.
    #[test]
    fn what_the_store_lacks_is_charged_again() {
        let mut ring = Ring::default();
        ring.keep(SessionId(1), 5, 1, vec![charge(1)]);
        ring.keep(SessionId(2), 1, 2, vec![charge(2)]);
        ring.keep(SessionId(2), 2, 3, vec![charge(3), charge(4)]);
        assert_eq!(ring.sessions(), [SessionId(1), SessionId(2)]);
        let stored = |session| if session == SessionId(1) { 5 } else { 1 };
        assert_eq!(ring.recover(stored), (vec![charge(3), charge(4)], 1));
        assert_eq!(ring.len(), 0);
    }
}
