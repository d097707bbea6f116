//! The embedded ledger, driven as a worker's session would drive Redis. Its outbox is flushed after every step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use faregate::config;
use faregate::ledger::embedded::{Clock, EmbeddedLedger};
use faregate::ledger::log::Cursor;
use faregate::ledger::{
    AccountId, AccountSource, AccountState, Act, Event, LedgerError, Micros, Op, RecordId, RecordState, SessionId,
};
use faregate::telemetry::Metrics;

use super::driver::{BatchAnswer, Driver};

pub(crate) struct Embedded {
    ledger: Arc<EmbeddedLedger>,
    metrics: Metrics,
    clock: Arc<TestClock>,
    cursor: Cursor,
    /// The last batch of each session.
    sessions: BTreeMap<SessionId, (u64, BatchAnswer)>,
    /// Records that were flushed: what a load brings back.
    records: BTreeMap<(AccountId, RecordId), RecordState>,
}

#[derive(Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> Micros {
        self.0.load(Ordering::Relaxed)
    }
}

/// The harness loads by itself.
struct NoSource;

#[async_trait::async_trait]
impl AccountSource for NoSource {
    async fn load(&self, _account: &AccountId) -> Result<Option<AccountState>, LedgerError> {
        Err(LedgerError::Unavailable)
    }

    async fn record(&self, _account: &AccountId, _record: RecordId) -> Result<Option<RecordState>, LedgerError> {
        Err(LedgerError::Unavailable)
    }
}

impl Embedded {
    pub(crate) fn new() -> Embedded {
        let (metrics, clock) = (Metrics::new().unwrap(), Arc::new(TestClock::default()));
        Embedded {
            ledger: ledger(&metrics, &clock),
            metrics,
            clock,
            cursor: Cursor { epoch: 0, counter: 17 },
            sessions: BTreeMap::new(),
            records: BTreeMap::new(),
        }
    }
}

fn ledger(metrics: &Metrics, clock: &Arc<TestClock>) -> Arc<EmbeddedLedger> {
    EmbeddedLedger::with_clock(&config::Ledger::default(), Arc::new(NoSource), metrics.clone(), clock.clone())
}

impl Driver for Embedded {
    fn name(&self) -> &'static str {
        "the embedded ledger"
    }

    fn reset(&mut self) {
        self.ledger = ledger(&self.metrics, &self.clock);
        self.cursor = Cursor { epoch: 0, counter: 17 };
        self.sessions.clear();
        self.records.clear();
    }

    fn set_clock(&mut self, now: Micros) {
        self.clock.0.store(now, Ordering::Relaxed);
    }

    fn open(&mut self, session: SessionId) {
        self.sessions.insert(session, (0, BatchAnswer::Answers(Vec::new())));
    }

    fn batch(&mut self, session: SessionId, number: u64, ops: &[Op]) -> BatchAnswer {
        if let Some((last, answers)) = self.sessions.get(&session)
            && *last == number
        {
            return answers.clone();
        }
        let mut answers = Vec::new();
        for op in ops {
            if let Act::Load { state, .. } = &op.act {
                let flushed = self.records.iter().filter(|((owner, _), _)| *owner == op.account);
                assert!(flushed.map(|(_, record)| record).eq(&state.records), "the store's records are the model's");
            }
            match self.ledger.apply_as(session, op) {
                Some(answer) => answers.push(answer),
                None => return BatchAnswer::Fenced,
            }
        }
        let answers = BatchAnswer::Answers(answers);
        self.sessions.insert(session, (number, answers.clone()));
        answers
    }

    fn fence(&mut self, session: SessionId, seen: u64) -> bool {
        match self.sessions.get(&session) {
            Some((last, _)) if *last == seen => {
                self.ledger.fence(session);
                self.sessions.remove(&session);
                true
            }
            // Fenced before.
            None => true,
            Some(_) => false,
        }
    }

    fn store(&mut self, account: &AccountId, records: &[RecordState]) {
        let records = records.iter().map(|record| ((account.clone(), record.id), record.clone()));
        self.records.extend(records);
    }

    fn abandon(&mut self, session: SessionId) {
        self.ledger.abandon(session);
    }

    fn events(&mut self) -> Vec<Event> {
        let entries = self.ledger.outbox().collect(self.cursor, usize::MAX);
        self.cursor.counter = entries.to;
        for (account, record) in entries.records {
            self.records.insert((account, record.id), record);
        }
        entries.events
    }

    fn flushed(&mut self) {
        self.ledger.outbox().acknowledge_up_to(self.cursor);
        self.ledger.outbox().folded_up_to(self.cursor);
        assert_eq!(self.ledger.outbox().backlog(), 0);
    }
}
