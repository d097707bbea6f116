//! What a ledger must offer to be driven through a random sequence.

use faregate::ledger::{AccountId, Answer, Event, Micros, Op, RecordState, SessionId};

/// A ledger in the hands of the property test. The harness chooses every number, so that all drivers can agree.
pub(crate) trait Driver {
    fn name(&self) -> &'static str;

    /// Begins anew: no accounts, no sessions, no records, no events.
    fn reset(&mut self);

    /// Moves the ledger's clock, never backwards.
    fn set_clock(&mut self, now: Micros);

    /// Opens a worker session. Its first batch is number 1.
    fn open(&mut self, session: SessionId);

    /// Sends a batch. The harness sends number n until it has an answer, then n + 1; a repeated number, byte-identical,
    /// is answered as the first time and changes nothing.
    fn batch(&mut self, session: SessionId, number: u64, ops: &[Op]) -> BatchAnswer;

    /// Marks the session as dead if its last batch is `seen`. Answers whether it is dead now.
    fn fence(&mut self, session: SessionId, seen: u64) -> bool;

    /// Gives back everything that a fenced session still holds, in all accounts.
    fn abandon(&mut self, session: SessionId);

    /// Events since the last call, in the order of the log; across accounts only each account's own order counts.
    fn events(&mut self) -> Vec<Event>;

    /// The store has these records, for a ledger that asks it.
    fn store(&mut self, _account: &AccountId, _records: &[RecordState]) {}

    /// All events handed out so far are in the store (what parking needs to know in the embedded ledger).
    fn flushed(&mut self) {}
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BatchAnswer {
    /// One answer an operation.
    Answers(Vec<Answer>),
    /// The session is dead; nothing was applied.
    Fenced,
}
