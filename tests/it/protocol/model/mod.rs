//! The protocol between workers, one shard of the ledger and the store, reduced to what can race: one account, settles
//! that cost 1, one billing change. A step is what one party does at once; between any two steps anything else may happen.

mod flusher;
mod ledger;
mod reopener;
mod scope;
mod store;
mod worker;

use flusher::Flusher;
use ledger::Account;
use ledger::{Effect, Entry, Redis};
use reopener::Reopener;
pub(super) use scope::{ALL, Guards, Scope, WORKERS};
use store::Store;
use worker::Worker;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    redis: Option<Redis>,
    replica: Option<Redis>,
    history: u8,
    store: Store,
    workers: Vec<Worker>,
    flushers: Vec<Flusher>,
    reopeners: Vec<Reopener>,
    /// A flusher found that the shard lost its data.
    noticed: Option<u8>,
    next_session: u8,
    /// By usage: acknowledged to whoever asked.
    acknowledged: Vec<bool>,
    /// By usage: its entry was lost before it was flushed; only its own worker can still know of it.
    forgotten: Vec<bool>,
    by_worker: Vec<u8>,
    change: bool,
    /// Which usage is charged with a key.
    keyed: Option<u8>,
    ring_max: usize,
    old_returns: bool,
    losses: u8,
    lost_replies: u8,
    crashes: u8,
    fences: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Ask(usize),
    Send {
        worker: usize,
        delivered: bool,
    },
    Recover(usize),
    Heartbeat(usize),
    LookBack(usize),
    Recall(usize),
    Fence(usize),
    Flush(usize),
    Reopen(usize),
    /// Once for each flusher or reopener that was in the middle of something.
    CrashWorker(usize),
    CrashFlusher(usize),
    CrashReopener(usize),
    Replicate,
    Promote,
    Empty,
}

impl State {
    pub(super) fn first(scope: &Scope) -> State {
        let requests: u8 = scope.requests.iter().sum();
        let keyed = scope.keyed.iter().any(|keyed| *keyed).then_some(requests);
        let usages = requests + u8::from(keyed.is_some());
        let account = Account { remaining: 2, ..Account::default() };
        let mut by_worker = Vec::new();
        let workers = (0..WORKERS).map(|worker| {
            by_worker.extend(vec![worker as u8; usize::from(scope.requests[worker])]);
            Worker {
                session: worker as u8 + 1,
                requests_left: scope.requests[worker],
                grant_left: scope.change && worker == 0,
                keyed_left: scope.keyed[worker],
                ..Worker::default()
            }
        });
        let workers: Vec<Worker> = workers.collect();
        by_worker.extend(keyed.map(|_| WORKERS as u8));
        State {
            workers,
            redis: Some(Redis::default()),
            replica: None,
            history: 0,
            store: Store { account, granted: 2, charged: vec![0; usages.into()], ..Store::default() },
            flushers: vec![Flusher::Idle; scope.flushers],
            reopeners: vec![Reopener::Idle; scope.reopeners],
            noticed: None,
            next_session: WORKERS as u8 + 1,
            acknowledged: vec![false; usages.into()],
            forgotten: vec![false; usages.into()],
            by_worker,
            change: scope.change,
            keyed,
            ring_max: scope.ring_max,
            old_returns: scope.old_returns,
            losses: scope.losses,
            lost_replies: scope.lost_replies,
            crashes: scope.crashes,
            fences: scope.fences,
        }
    }

    /// Every step of those that work, and where it leads. A step that would change nothing is none.
    pub(super) fn regular(&self, guards: &Guards) -> Vec<(Step, State)> {
        let mut steps: Vec<Step> = Vec::new();
        for (index, worker) in self.workers.iter().enumerate().filter(|(_, worker)| !worker.dead) {
            match (worker.lost, worker.in_flight) {
                (true, _) => steps.push(Step::Recover(index)),
                (false, Some(_)) => steps.push(Step::Send { worker: index, delivered: true }),
                (false, None) => steps.extend([Step::Ask(index), Step::Heartbeat(index)]),
            }
            steps.extend([Step::LookBack(index), Step::Recall(index)]);
        }
        steps.extend((0..self.flushers.len()).map(Step::Flush));
        let wanted = self.wanted().is_some();
        let busy = |index: &usize| wanted || self.reopeners[*index] != Reopener::Idle;
        steps.extend((0..self.reopeners.len()).filter(busy).map(Step::Reopen));
        self.each(steps, guards)
    }

    /// Every way to fail.
    pub(super) fn faults(&self, guards: &Guards) -> Vec<(Step, State)> {
        let mut steps: Vec<Step> = Vec::new();
        for (index, worker) in self.workers.iter().enumerate().filter(|(_, worker)| !worker.dead) {
            if self.lost_replies > 0 && worker.in_flight.is_some() && !worker.lost {
                steps.push(Step::Send { worker: index, delivered: false });
            }
            if self.fences > 0 {
                steps.push(Step::Fence(index));
            }
            if self.crashes > 0 {
                steps.push(Step::CrashWorker(index));
            }
        }
        if self.crashes > 0 {
            steps.extend((0..self.flushers.len()).map(Step::CrashFlusher));
            steps.extend((0..self.reopeners.len()).map(Step::CrashReopener));
        }
        if self.losses > 0 {
            steps.extend([Step::Replicate, Step::Promote, Step::Empty]);
        }
        self.each(steps, guards)
    }

    fn each(&self, steps: Vec<Step>, guards: &Guards) -> Vec<(Step, State)> {
        let mut found: Vec<_> = steps.into_iter().map(|step| (step, self.after(step, guards))).collect();
        found.retain(|(_, next)| next != self);
        found
    }

    fn after(&self, step: Step, guards: &Guards) -> State {
        let mut next = self.clone();
        match step {
            Step::Ask(worker) => next.ask(worker, guards),
            Step::Send { worker, delivered } => next.send(worker, delivered, guards),
            Step::Recover(worker) => next.recover(worker, guards),
            Step::Heartbeat(worker) => next.heartbeat(worker, guards),
            Step::LookBack(worker) => next.look_back(worker),
            Step::Recall(worker) => next.recall(worker),
            Step::Fence(worker) => next.fence(worker),
            Step::Flush(flusher) => next.flush(flusher, guards),
            Step::Reopen(reopener) => next.reopen(reopener, guards),
            Step::CrashWorker(worker) => {
                if next.crashes > 0 && !next.workers[worker].dead {
                    next.crashes -= 1;
                    next.workers[worker] = Worker { dead: true, ..Worker::default() };
                }
            }
            Step::CrashFlusher(flusher) => {
                if next.crashes > 0 && next.flushers[flusher] != Flusher::Idle {
                    next.crashes -= 1;
                    next.flushers[flusher] = Flusher::Idle;
                }
            }
            Step::CrashReopener(reopener) => {
                if next.crashes > 0 && next.reopeners[reopener] != Reopener::Idle {
                    next.crashes -= 1;
                    next.reopeners[reopener] = Reopener::Idle;
                }
            }
            Step::Replicate => {
                // What is gone is not replicated: a replica of nothing is none.
                if next.losses > 0 && (next.redis.is_some() || !next.old_returns) {
                    next.replica.clone_from(&next.redis);
                }
            }
            Step::Promote => {
                if next.losses > 0 && next.replica.is_some() {
                    let mut promoted = next.replica.take();
                    next.history += 1;
                    if let Some(redis) = &mut promoted {
                        redis.history = next.history;
                    }
                    next.lose(promoted);
                }
            }
            Step::Empty => {
                if next.losses > 0 && next.redis.is_some() {
                    next.history += 1;
                    next.lose(None);
                }
            }
        }
        // Which of two flushers it is makes no difference.
        next.flushers.sort_unstable();
        next.reopeners.sort_unstable();
        next
    }

    fn lose(&mut self, now: Option<Redis>) {
        self.losses -= 1;
        if !self.old_returns {
            self.replica = None;
        }
        let entries = |redis: &Option<Redis>| -> Vec<u8> {
            let Some(redis) = redis else { return Vec::new() };
            let old = redis.old.iter().flat_map(|(_, entries)| entries);
            let usage =
                |entry: &Entry| if let Effect::Settle { usage, .. } = entry.effect { Some(usage) } else { None };
            old.chain(&redis.stream).filter_map(usage).collect()
        };
        let (before, after) = (entries(&self.redis), entries(&now));
        for usage in before {
            if self.store.charged[usize::from(usage)] == 0 && !after.contains(&usage) {
                self.forgotten[usize::from(usage)] = true;
            }
        }
        self.redis = now;
    }

    /// What must hold in every state.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(twice) = self.store.charged.iter().position(|times| *times > 1) {
            return Err(format!("usage {twice} is charged twice"));
        }
        if self.store.account.remaining < 0 || self.store.account.debt < 0 || self.store.granted > 3 {
            return Err(format!("the store's account cannot be: {:?}", self.store));
        }
        let account = self.redis.as_ref().and_then(|redis| redis.account);
        if account.is_some_and(|account| account.remaining < 0 || account.held < 0) {
            return Err(format!("the ledger's account cannot be: {account:?}"));
        }
        let charged: i8 = self.store.charged.iter().map(|times| *times as i8).sum();
        if self.workers.iter().any(|worker| worker.ring.len() > self.ring_max) {
            return Err("a worker remembers more than it may".to_owned());
        }
        let Account { remaining, debt, .. } = self.store.account;
        if remaining - debt != self.store.granted - charged {
            return Err(format!("the store's books do not add up: {:?}", self.store));
        }
        Ok(())
    }

    /// What must hold once nobody has anything left to do.
    pub(super) fn check_end(&self, scope: &Scope) -> Result<(), String> {
        let Some(redis) = &self.redis else {
            let unused = self.workers.iter().all(|worker| worker.dead);
            return if unused { Ok(()) } else { Err("nobody reopened the shard".to_owned()) };
        };
        if redis.closed || self.workers.iter().any(|worker| worker.lost || worker.in_flight.is_some()) {
            return Err("somebody waits for ever".to_owned());
        }
        if self.workers.iter().any(|worker| !worker.dead && (worker.requests_left > 0 || worker.keyed_left)) {
            return Err("work is refused for ever".to_owned());
        }
        for (usage, times) in self.store.charged.iter().enumerate() {
            let dead = self.workers.get(usize::from(self.by_worker[usage])).is_some_and(|worker| worker.dead);
            if self.acknowledged[usage] && *times != 1 && !(dead && self.forgotten[usage]) {
                return Err(format!("acknowledged usage {usage} is charged {times} times"));
            }
        }
        let granted = 2 + i8::from(scope.change && !self.workers[0].dead);
        if self.store.granted < granted {
            return Err("the billing change is lost".to_owned());
        }
        if let Some(account) = redis.account {
            let dead_holds = account.held;
            let there = (account.remaining + dead_holds, account.debt, account.change);
            let store = &self.store.account;
            if there != (store.remaining, store.debt, store.change) {
                return Err(format!("ledger and store differ: {account:?}, {store:?}"));
            }
        }
        Ok(())
    }
}
