//! The oracle: accounts of the model, sessions and records in plain maps, one operation after the other.

use std::collections::BTreeMap;

use faregate::ledger::account::{Account, Context};
use faregate::ledger::{AccountId, Act, Answer, Event, Micros, Op, RecordId, RecordState, SessionId, TICKET_LIFE_US};

use super::driver::{BatchAnswer, Driver};

#[derive(Default)]
pub(crate) struct Model {
    now: Micros,
    accounts: BTreeMap<AccountId, Account>,
    /// Number and end of the ticket that stands.
    tickets: BTreeMap<AccountId, (u64, Micros)>,
    records: BTreeMap<(AccountId, RecordId), RecordState>,
    sessions: BTreeMap<SessionId, Session>,
    events: Vec<Event>,
}

#[derive(Default)]
struct Session {
    fenced: bool,
    last: u64,
    answers: Vec<Answer>,
}

impl Model {
    /// An account's records, as the store would know them.
    pub(crate) fn records_of(&self, account: &AccountId) -> Vec<RecordState> {
        self.records.iter().filter(|((owner, _), _)| owner == account).map(|(_, record)| record.clone()).collect()
    }

    fn with_context<T>(
        &mut self,
        account: &AccountId,
        session: SessionId,
        record: Option<RecordId>,
        call: impl FnOnce(Option<&mut Account>, &mut Context<'_>) -> T,
    ) -> T {
        let mut kept = record.and_then(|id| self.records.get(&(account.clone(), id)).cloned());
        let sessions = &self.sessions;
        let mut context = Context {
            account,
            now: self.now,
            session,
            fenced: &|session| sessions.get(&session).is_some_and(|session| session.fenced),
            backlogged: false,
            record: &mut kept,
            events: &mut self.events,
        };
        let result = call(self.accounts.get_mut(account), &mut context);
        if let Some(record) = kept {
            self.records.insert((account.clone(), record.id), record);
        }
        result
    }

    fn apply(&mut self, session: SessionId, op: &Op) -> Answer {
        let Op { account, act } = op;
        if self.accounts.contains_key(account) {
            let before = (self.accounts[account].clone(), self.events.len());
            let answer = self.with_context(account, session, act.record(), |loaded, context| {
                loaded.map_or(Answer::NotLoaded, |loaded| loaded.apply(act, context))
            });
            if refused(&answer) && before.1 == self.events.len() {
                assert_eq!(before.0, self.accounts[account], "a refusal changes nothing: {op:?} {answer:?}");
            }
            if answer == Answer::Parked {
                self.accounts.remove(account);
            }
            return answer;
        }
        let standing = self.tickets.get(account).filter(|(_, until)| self.now < *until).copied();
        match act {
            Act::Ticket { ticket } if standing.is_none() => {
                self.tickets.insert(account.clone(), (*ticket, self.now + TICKET_LIFE_US));
                Answer::Ticketed
            }
            Act::Load { ticket, state } if standing.is_some_and(|(number, _)| number == *ticket) => {
                self.tickets.remove(account);
                let loaded = self.with_context(account, session, None, |_, context| Account::load(state, context));
                self.accounts.insert(account.clone(), loaded);
                let records = state.records.iter().map(|record| ((account.clone(), record.id), record.clone()));
                self.records.extend(records);
                Answer::Loaded
            }
            Act::Ticket { .. } | Act::Load { .. } => Answer::Refused,
            _ => Answer::NotLoaded,
        }
    }
}

fn refused(answer: &Answer) -> bool {
    !matches!(
        answer,
        Answer::Reserved(_) | Answer::Settled { .. } | Answer::Released { .. } | Answer::Held { .. } | Answer::Applied
    )
}

impl Driver for Model {
    fn name(&self) -> &'static str {
        "model"
    }

    fn reset(&mut self) {
        *self = Model::default();
    }

    fn set_clock(&mut self, now: Micros) {
        self.now = now;
    }

    fn open(&mut self, session: SessionId) {
        self.sessions.insert(session, Session::default());
    }

    fn batch(&mut self, session: SessionId, number: u64, ops: &[Op]) -> BatchAnswer {
        let known = self.sessions.get(&session).expect("the harness opens sessions");
        if known.fenced {
            return BatchAnswer::Fenced;
        }
        if number == known.last {
            return BatchAnswer::Answers(known.answers.clone());
        }
        assert_eq!(number, known.last + 1, "the harness numbers batches without gaps");
        let answers: Vec<Answer> = ops.iter().map(|op| self.apply(session, op)).collect();
        let known = self.sessions.get_mut(&session).expect("still there");
        (known.last, known.answers) = (number, answers.clone());
        BatchAnswer::Answers(answers)
    }

    fn fence(&mut self, session: SessionId, seen: u64) -> bool {
        let known = self.sessions.get_mut(&session).expect("the harness opens sessions");
        known.fenced |= known.last == seen;
        known.fenced
    }

    fn abandon(&mut self, session: SessionId) {
        for account in self.accounts.keys().cloned().collect::<Vec<_>>() {
            self.with_context(&account, session, None, |loaded, context| {
                loaded.map(|loaded| loaded.abandon(session, context))
            });
        }
    }

    fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}
