//! Accounts on their way in: one load at a time for each, however many operations wait for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::queue::{Item, Pending, Queue, To};
use super::{Core, random};
use crate::ledger::{AccountId, AccountState, Act, Answer, LedgerError, Op, TICKET_LIFE_US};

/// Another loader won, or slept: how long until the next look. Twice that at most, at random, so that loaders part.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The store could not answer, and something owed waits for the account.
const STORE_AGAIN: Duration = Duration::from_millis(500);
/// A load that takes longer than its ticket stands is worth nothing.
const LOAD_LIMIT: Duration = Duration::from_micros(TICKET_LIFE_US);
/// Looks before the operations give up: longer than a dead loader's ticket stands.
const ATTEMPTS: u32 = 1_000;

pub(crate) struct Loading {
    core: Arc<Core>,
    queue: Arc<Queue>,
    tasks: TaskTracker,
    /// Cancelled when the session ends.
    stop: CancellationToken,
    waiting: HashMap<AccountId, Waiting>,
    count: usize,
}

#[derive(Default)]
struct Waiting {
    pending: Vec<Pending>,
    attempts: u32,
}

impl Loading {
    pub(crate) fn new(core: Arc<Core>, queue: Arc<Queue>, tasks: TaskTracker, stop: CancellationToken) -> Loading {
        Loading { core, queue, tasks, stop, waiting: HashMap::new(), count: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn is_loading(&self, account: &AccountId) -> bool {
        self.waiting.contains_key(account)
    }

    /// Lets an operation wait for its account; the first one begins the load with the operation that this answers.
    pub(crate) fn wait(&mut self, mut pending: Pending) -> Option<Pending> {
        if self.count >= self.core.settings.max_queue && !pending.is_owed() {
            pending.answer(Err(LedgerError::Busy));
            return None;
        }
        pending.reloaded = true;
        let account = pending.op.account.clone();
        let first = !self.is_loading(&account);
        self.waiting.entry(account.clone()).or_default().pending.push(pending);
        self.count += 1;
        first.then(|| ticket_for(account))
    }

    /// The ledger's answer to a step of the load. What may go on is moved to `ready`.
    pub(crate) fn answered(&mut self, op: Op, answer: &Answer, ready: &mut VecDeque<Item>) {
        match (op.act, answer) {
            (Act::Ticket { ticket }, Answer::Ticketed) => self.ask_store(op.account, ticket),
            (_, Answer::Loaded | Answer::Already) => {
                for pending in self.take(&op.account) {
                    ready.push_back(Item::Op(pending));
                }
            }
            // The account cannot be read, or another loader's ticket stands.
            _ => self.retry(op.account, LOOK_AGAIN, answer == &Answer::Unreadable),
        }
    }

    /// The store's answer. Answers the next operation of the load.
    pub(crate) fn found(
        &mut self,
        account: AccountId,
        ticket: u64,
        result: Result<Option<AccountState>, LedgerError>,
    ) -> Option<Pending> {
        match result {
            Ok(Some(state)) => {
                let op = Op { account, act: Act::Load { ticket, state } };
                return Some(Pending::new(op, To::Loading));
            }
            Ok(None) => {
                for pending in self.take(&account) {
                    pending.answer(Ok(Answer::NotLoaded));
                }
            }
            Err(_) => self.retry(account, STORE_AGAIN, true),
        }
        None
    }

    /// Begins the load again.
    pub(crate) fn again(&mut self, account: AccountId) -> Option<Pending> {
        self.is_loading(&account).then(|| ticket_for(account))
    }

    /// Ends all waiting; answers how many owed operations were given up.
    pub(crate) fn give_up(&mut self) -> usize {
        let mut owed = 0;
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            for pending in waiting.pending {
                owed += usize::from(pending.is_owed());
                pending.answer(Err(LedgerError::Unavailable));
            }
        }
        owed
    }

    fn take(&mut self, account: &AccountId) -> Vec<Pending> {
        let pending = self.waiting.remove(account).map(|waiting| waiting.pending).unwrap_or_default();
        self.count = self.count.saturating_sub(pending.len());
        pending
    }

    /// Tries again after a while. What is owed goes on waiting; the rest, once `refuse` or too many attempts say so, does not.
    fn retry(&mut self, account: AccountId, after: Duration, refuse: bool) {
        let Some(waiting) = self.waiting.get_mut(&account) else { return };
        waiting.attempts += 1;
        if refuse || waiting.attempts >= ATTEMPTS {
            let (owed, rest): (Vec<_>, Vec<_>) = waiting.pending.drain(..).partition(Pending::is_owed);
            waiting.pending = owed;
            self.count = self.count.saturating_sub(rest.len());
            for pending in rest {
                pending.answer(Err(LedgerError::Unavailable));
            }
        }
        if self.waiting.get(&account).is_some_and(|waiting| waiting.pending.is_empty()) {
            self.waiting.remove(&account);
            return;
        }
        let (queue, stop) = (self.queue.clone(), self.stop.clone());
        let after = after + after.mul_f64((random() % 1_000) as f64 / 1_000.0);
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(after) => queue.push(Item::LoadAgain(account)),
                () = stop.cancelled() => {}
            }
        });
    }

    fn ask_store(&self, account: AccountId, ticket: u64) {
        let (queue, source, stop) = (self.queue.clone(), self.core.source.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let load = tokio::time::timeout(LOAD_LIMIT, source.load(&account));
            tokio::select! {
                result = load => {
                    let result = result.unwrap_or(Err(LedgerError::Unavailable));
                    queue.push(Item::Found { account, ticket, result });
                }
                () = stop.cancelled() => {}
            }
        });
    }
}

fn ticket_for(account: AccountId) -> Pending {
    Pending::new(Op { account, act: Act::Ticket { ticket: random() } }, To::Loading)
}
