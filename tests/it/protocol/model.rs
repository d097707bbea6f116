//! The protocol between workers, one shard of the ledger and the store, reduced to what can race: one account, settles
//! that cost 1, one billing change. A step is what one party does at once; between any two steps anything else may happen.

use std::hash::Hash;

pub(super) const WORKERS: usize = 2;

/// How far one exploration goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    /// Reserve-and-settle pairs, by worker.
    pub(super) requests: [u8; WORKERS],
    /// Of a grant beyond the first.
    pub(super) change: bool,
    pub(super) losses: u8,
    /// Replies that get lost after the script has run.
    pub(super) lost_replies: u8,
    /// Workers, reopeners and flushers that die. A dead worker stays dead; the others begin again from nothing.
    pub(super) crashes: u8,
    pub(super) fences: u8,
    pub(super) flushers: usize,
    pub(super) reopeners: usize,
    pub(super) guards: Guards,
}

/// What makes it right; each can be left out, to see that it is missed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guards {
    /// Workers remember what was acknowledged until it is flushed.
    pub(super) ring: bool,
    /// They charge again only what is numbered above the session's stored number.
    pub(super) stored_number: bool,
    /// A worker that is fenced looks whether the batch under way is in the store all the same.
    pub(super) fenced: bool,
    /// A reopening flushes only entries numbered above it.
    pub(super) survivors: bool,
    /// It closes the shard before it reads what survived.
    pub(super) close: bool,
    /// The closed shard stands in the epoch that is closed, also where it stood in an earlier one.
    pub(super) binding: bool,
    /// It raises the store's epoch before it writes, so that a flusher's write under way fails.
    pub(super) raise: bool,
    /// The flusher compares the entry at its cursor with the one it wrote.
    pub(super) mark: bool,
}

pub(super) const ALL: Guards = Guards {
    ring: true,
    stored_number: true,
    fenced: true,
    survivors: true,
    close: true,
    binding: true,
    raise: true,
    mark: true,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Effect {
    Settle { usage: u8, paid: u8 },
    Grant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Entry {
    session: u8,
    number: u8,
    /// The same batch, applied again in another history, is another entry.
    history: u8,
    effect: Effect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Account {
    remaining: i8,
    held: i8,
    debt: i8,
    change: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Redis {
    epoch: u8,
    closed: bool,
    counter: u8,
    flushed: u8,
    history: u8,
    /// Last number and whether fenced, by session.
    sessions: Vec<(u8, u8, bool)>,
    /// What each session holds.
    holds: Vec<u8>,
    account: Option<Account>,
    stream: Vec<Entry>,
    /// Streams of earlier epochs are dropped in the background: here, they are kept.
    old: Vec<(u8, Vec<Entry>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Cursor {
    epoch: u8,
    counter: u8,
    reopening: bool,
    mark: Option<(u8, u8, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Store {
    cursor: Cursor,
    sessions: Vec<(u8, u8)>,
    account: Account,
    granted: i8,
    /// Charges by usage: how often each was written.
    charged: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Op {
    Reserve,
    Settle(u8),
    Charge(u8),
    Grant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Remembered {
    session: u8,
    number: u8,
    counter: u8,
    usage: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Worker {
    dead: bool,
    epoch: u8,
    session: u8,
    number: u8,
    seen: u8,
    /// The session whose hold the request has; 0: none.
    hold: u8,
    in_flight: Option<Op>,
    /// It was told that the shard lost its data.
    lost: bool,
    /// Still to be charged after a loss.
    owed: Vec<u8>,
    ring: Vec<Remembered>,
    requests_left: u8,
    grant_left: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
enum Flusher {
    #[default]
    Idle,
    Read {
        from: Cursor,
        entries: Vec<Entry>,
    },
    Wrote {
        to: Cursor,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
enum Reopener {
    #[default]
    Idle,
    /// The shard is closed at this epoch.
    Closed {
        epoch: u8,
    },
    /// The store's epoch is raised above it.
    Raised {
        epoch: u8,
    },
    Survivors {
        epoch: u8,
        entries: Vec<Entry>,
    },
    /// The store has them all.
    Written {
        epoch: u8,
    },
    /// And says so: the shard may open.
    Ended {
        epoch: u8,
    },
}

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

#[derive(PartialEq, Eq)]
enum Reply {
    Applied,
    Fenced,
    Lost,
}

impl State {
    pub(super) fn first(scope: &Scope) -> State {
        let usages: u8 = scope.requests.iter().sum();
        let account = Account { remaining: 2, ..Account::default() };
        let mut by_worker = Vec::new();
        let workers = (0..WORKERS).map(|worker| {
            by_worker.extend(vec![worker as u8; usize::from(scope.requests[worker])]);
            Worker {
                session: worker as u8 + 1,
                requests_left: scope.requests[worker],
                grant_left: scope.change && worker == 0,
                ..Worker::default()
            }
        });
        State {
            workers: workers.collect(),
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
            Step::Ask(worker) => next.ask(worker),
            Step::Send { worker, delivered } => next.send(worker, delivered, guards),
            Step::Recover(worker) => next.recover(worker, guards),
            Step::Heartbeat(worker) => next.heartbeat(worker),
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
                if next.losses > 0 {
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
        self.replica = None;
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

    fn ask(&mut self, worker: usize) {
        let first_usage: u8 = self.by_worker.iter().take_while(|owner| usize::from(**owner) < worker).count() as u8;
        let worker = &mut self.workers[worker];
        if worker.dead || worker.lost || worker.in_flight.is_some() {
            return;
        }
        if let Some(usage) = worker.owed.pop() {
            worker.in_flight = Some(Op::Charge(usage));
        } else if worker.hold > 0 {
            let usage = first_usage + worker.requests_left;
            worker.in_flight = Some(if worker.hold == worker.session { Op::Settle(usage) } else { Op::Charge(usage) });
            worker.hold = 0;
        } else if worker.grant_left {
            worker.grant_left = false;
            worker.in_flight = Some(Op::Grant);
        } else if worker.requests_left > 0 {
            worker.requests_left -= 1;
            worker.in_flight = Some(Op::Reserve);
        }
    }

    /// What the script does with a batch.
    fn script(&mut self, worker: usize) -> Reply {
        let Worker { epoch, session, number, seen, in_flight, .. } = self.workers[worker].clone();
        let Some(redis) = &mut self.redis else { return Reply::Lost };
        if redis.closed || redis.epoch != epoch || redis.counter < seen {
            return Reply::Lost;
        }
        let number = number + 1;
        let state = redis.sessions.iter_mut().find(|(id, _, _)| *id == session);
        match state {
            Some((_, known, _)) if *known == number => return Reply::Applied,
            Some((_, known, _)) if *known + 1 != number => return Reply::Lost,
            Some((_, _, true)) => return Reply::Fenced,
            Some((_, known, false)) => *known = number,
            None if number == 1 => redis.sessions.push((session, 1, false)),
            None => return Reply::Lost,
        }
        redis.sessions.sort_unstable();
        let account = redis.account.get_or_insert(self.store.account);
        let effect = match in_flight {
            None => None,
            Some(Op::Reserve) => {
                if account.remaining > 0 {
                    account.remaining -= 1;
                    account.held += 1;
                    redis.holds.push(session);
                    redis.holds.sort_unstable();
                }
                None
            }
            Some(Op::Settle(usage) | Op::Charge(usage)) => {
                let held = redis.holds.iter().position(|holder| *holder == session);
                let mut paid = 0;
                if let (Some(Op::Settle(_)), Some(index)) = (in_flight, held) {
                    redis.holds.remove(index);
                    account.held -= 1;
                    paid = 1;
                } else if account.remaining > 0 {
                    account.remaining -= 1;
                    paid = 1;
                } else {
                    account.debt += 1;
                }
                Some(Effect::Settle { usage, paid })
            }
            Some(Op::Grant) if account.change == 1 => None,
            Some(Op::Grant) => {
                account.change = 1;
                account.remaining += 1;
                Some(Effect::Grant)
            }
        };
        if let Some(effect) = effect {
            redis.counter += 1;
            redis.stream.push(Entry { session, number, history: redis.history, effect });
        }
        Reply::Applied
    }

    fn send(&mut self, worker: usize, delivered: bool, guards: &Guards) {
        if self.workers[worker].in_flight.is_none() || self.workers[worker].lost {
            return;
        }
        if !delivered {
            if self.lost_replies > 0 {
                self.lost_replies -= 1;
                self.script(worker);
            }
            return;
        }
        let reply = self.script(worker);
        let op = self.workers[worker].in_flight;
        match (reply, op) {
            (Reply::Applied, Some(op)) => self.acknowledge(worker, op, guards),
            // It did apply, in a history that is gone: the store has it.
            (Reply::Fenced, _)
                if guards.fenced && self.store.number(self.workers[worker].session) > self.workers[worker].number =>
            {
                self.workers[worker].lost = true;
            }
            (Reply::Fenced, _) => {
                // The batch was not applied; its operations go first in the new session of the same epoch.
                let session = self.next_session;
                self.next_session += 1;
                let worker = &mut self.workers[worker];
                (worker.session, worker.number) = (session, 0);
                if let Some(Op::Settle(usage)) = worker.in_flight {
                    worker.in_flight = Some(Op::Charge(usage));
                }
            }
            _ => self.workers[worker].lost = true,
        }
    }

    fn acknowledge(&mut self, worker: usize, op: Op, guards: &Guards) {
        let Some(redis) = &self.redis else { return };
        let (counter, flushed) = (redis.counter, redis.flushed);
        let reserved = redis.holds.contains(&self.workers[worker].session);
        let worker = &mut self.workers[worker];
        worker.number += 1;
        worker.in_flight = None;
        worker.seen = worker.seen.max(counter);
        match op {
            // Without credits there is no request, and no usage.
            Op::Reserve if reserved => worker.hold = worker.session,
            Op::Settle(usage) | Op::Charge(usage) => {
                self.acknowledged[usize::from(usage)] = true;
                if guards.ring {
                    let (session, number) = (worker.session, worker.number);
                    worker.ring.push(Remembered { session, number, counter, usage });
                }
            }
            Op::Reserve | Op::Grant => {}
        }
        worker.ring.retain(|kept| kept.counter > flushed);
    }

    /// An idle worker's sign of life: it learns that the shard lost its data, or what is flushed by now.
    fn heartbeat(&mut self, worker: usize) {
        let state = &self.workers[worker];
        let idle = !state.dead && !state.lost && state.in_flight.is_none();
        if !idle || (state.session > WORKERS as u8 && state.number == 0) {
            return;
        }
        let mut probe = self.clone();
        let reply = probe.script(worker);
        if state.number == 0 && reply == Reply::Applied {
            return;
        }
        match reply {
            Reply::Lost => self.workers[worker].lost = true,
            Reply::Applied => {
                let flushed = self.redis.as_ref().map_or(0, |redis| redis.flushed);
                if self.workers[worker].ring.iter().any(|kept| kept.counter <= flushed) {
                    self.script(worker);
                    let worker = &mut self.workers[worker];
                    worker.number += 1;
                    worker.ring.retain(|kept| kept.counter > flushed);
                }
            }
            Reply::Fenced => {}
        }
    }

    /// Begins again in the shard's new epoch.
    fn recover(&mut self, worker: usize, guards: &Guards) {
        let Some(redis) = &self.redis else { return };
        let state = &mut self.workers[worker];
        if state.dead || !state.lost || redis.closed || redis.epoch <= state.epoch {
            return;
        }
        let stored = |session: u8| match guards.stored_number {
            true => self.store.sessions.iter().find(|(id, _)| *id == session).map_or(0, |(_, number)| *number),
            false => 0,
        };
        for kept in std::mem::take(&mut state.ring) {
            if kept.number > stored(kept.session) {
                state.owed.push(kept.usage);
            }
        }
        let took_effect = state.number < stored(state.session);
        match state.in_flight.take() {
            Some(Op::Settle(usage) | Op::Charge(usage)) if took_effect => {
                self.acknowledged[usize::from(usage)] = true;
            }
            Some(Op::Settle(usage) | Op::Charge(usage)) => state.owed.push(usage),
            Some(Op::Reserve) => state.requests_left += 1,
            Some(Op::Grant) | None => {}
        }
        // The pusher takes what the store has as unapplied.
        let pusher = worker == 0 && self.store.account.change == 0;
        state.grant_left |= pusher && self.change;
        (state.epoch, state.session, state.number, state.seen) = (redis.epoch, self.next_session, 0, 0);
        state.lost = false;
        state.owed.sort_unstable();
        self.next_session += 1;
    }

    fn fence(&mut self, worker: usize) {
        let session = self.workers[worker].session;
        let Some(redis) = &mut self.redis else { return };
        let state = redis.sessions.iter_mut().find(|(id, _, fenced)| *id == session && !fenced);
        let (Some(state), 1..) = (state, self.fences) else { return };
        // A session is fenced after ten seconds of standing still, also since a loss; a flush is given up after five.
        let reading = self.flushers.iter().any(|flusher| matches!(flusher, Flusher::Read { .. }));
        if redis.closed || reading {
            return;
        }
        self.fences -= 1;
        state.2 = true;
        let back = redis.holds.iter().filter(|holder| **holder == session).count() as i8;
        redis.holds.retain(|holder| *holder != session);
        if let Some(account) = &mut redis.account {
            account.held -= back;
            account.remaining += back;
        }
    }

    fn flush(&mut self, flusher: usize, guards: &Guards) {
        match self.flushers[flusher].clone() {
            Flusher::Idle => {
                let from = self.store.cursor;
                let Some(redis) = &self.redis else {
                    self.noticed = Some(from.epoch);
                    return;
                };
                let at_cursor = usize::from(from.counter).checked_sub(1).and_then(|at| redis.stream.get(at));
                let same = at_cursor.map(|entry| (entry.session, entry.number, entry.history)) == from.mark;
                if from.reopening || redis.epoch != from.epoch {
                    if redis.epoch < from.epoch {
                        self.noticed = Some(redis.epoch);
                    }
                } else if redis.counter < from.counter || (guards.mark && !same) {
                    self.noticed = Some(from.epoch);
                } else if redis.counter > from.counter {
                    let entries = redis.stream[usize::from(from.counter)..].to_vec();
                    self.flushers[flusher] = Flusher::Read { from, entries };
                } else if redis.flushed < from.counter {
                    self.flushers[flusher] = Flusher::Wrote { to: from };
                }
            }
            Flusher::Read { from, entries } => {
                self.flushers[flusher] = Flusher::Idle;
                if self.store.cursor == from {
                    entries.iter().for_each(|entry| self.store.write(entry));
                    let last = entries.last().map(|entry| (entry.session, entry.number, entry.history));
                    let counter = from.counter + entries.len() as u8;
                    self.store.cursor = Cursor { counter, mark: last, ..from };
                    self.flushers[flusher] = Flusher::Wrote { to: self.store.cursor };
                }
            }
            Flusher::Wrote { to } => {
                self.flushers[flusher] = Flusher::Idle;
                let Some(redis) = &mut self.redis else { return };
                let at = usize::from(to.counter).checked_sub(1).and_then(|at| redis.stream.get(at));
                let same = at.map(|entry| (entry.session, entry.number, entry.history)) == to.mark;
                if redis.epoch == to.epoch && (same || !guards.mark) {
                    redis.flushed = redis.flushed.max(to.counter.min(redis.counter));
                }
            }
        }
    }

    /// The epoch that somebody found lost, if the shard still stands in it. Whoever looks at a closed shard opens it.
    fn wanted(&self) -> Option<u8> {
        if self.redis.as_ref().is_some_and(|redis| redis.closed) {
            return Some(self.store.cursor.epoch);
        }
        let workers = self.workers.iter().filter(|worker| worker.lost).map(|worker| worker.epoch);
        let lost = workers.chain(self.noticed).max()?;
        match &self.redis {
            Some(redis) if redis.epoch > lost && !redis.closed => None,
            _ => Some(self.store.cursor.epoch),
        }
    }

    fn reopen(&mut self, reopener: usize, guards: &Guards) {
        let cursor = self.store.cursor;
        let next = match self.reopeners[reopener].clone() {
            Reopener::Idle => {
                if self.wanted().is_none() {
                    return;
                }
                // All is written, and somebody died before the shard was open.
                let closed = self.redis.as_ref().is_some_and(|redis| redis.closed && redis.epoch < cursor.epoch);
                if closed && !cursor.reopening && cursor.counter == 0 {
                    self.reopeners[reopener] = Reopener::Ended { epoch: cursor.epoch - 1 };
                    return;
                }
                let epoch = if cursor.reopening { cursor.epoch - 1 } else { cursor.epoch };
                let redis = self.redis.get_or_insert_with(|| Redis {
                    epoch,
                    history: self.history,
                    closed: true,
                    ..Redis::default()
                });
                if guards.close && redis.epoch <= epoch {
                    redis.closed = true;
                    // Else who is late in opening this very epoch would open it again.
                    if redis.epoch < epoch && guards.binding {
                        redis.old.push((redis.epoch, std::mem::take(&mut redis.stream)));
                        let (old, history) = (std::mem::take(&mut redis.old), redis.history);
                        *redis = Redis { epoch, closed: true, old, history, ..Redis::default() };
                    }
                }
                Reopener::Closed { epoch }
            }
            Reopener::Closed { epoch } => {
                if cursor.epoch == epoch && guards.raise {
                    let next = Cursor { epoch: epoch + 1, counter: 0, reopening: true, mark: None };
                    self.store.cursor = next;
                }
                match guards.raise && self.store.cursor.epoch != epoch + 1 {
                    true => Reopener::Idle,
                    false => Reopener::Raised { epoch },
                }
            }
            Reopener::Raised { epoch } => {
                let entries = match &self.redis {
                    Some(redis) if redis.epoch <= epoch => {
                        let old = redis.old.iter().flat_map(|(_, entries)| entries);
                        old.chain(&redis.stream).copied().collect()
                    }
                    _ => Vec::new(),
                };
                Reopener::Survivors { epoch, entries }
            }
            Reopener::Survivors { epoch, entries } => {
                let expected = !guards.raise || (cursor.epoch == epoch + 1 && cursor.reopening);
                if expected {
                    for entry in &entries {
                        if !guards.survivors || entry.number > self.store.number(entry.session) {
                            self.store.write(entry);
                        }
                    }
                    Reopener::Written { epoch }
                } else {
                    Reopener::Idle
                }
            }
            Reopener::Written { epoch } => {
                if cursor.epoch == epoch + 1 {
                    self.store.cursor.reopening = false;
                } else if !guards.raise && cursor.epoch == epoch {
                    self.store.cursor = Cursor { epoch: epoch + 1, ..Cursor::default() };
                }
                Reopener::Ended { epoch }
            }
            Reopener::Ended { epoch } => {
                let history = self.history;
                if let Some(redis) = &mut self.redis
                    && redis.epoch <= epoch
                    && (redis.closed || !guards.close)
                {
                    let mut old = std::mem::take(&mut redis.old);
                    old.push((redis.epoch, std::mem::take(&mut redis.stream)));
                    *redis = Redis { epoch: epoch + 1, history, old, ..Redis::default() };
                }
                if self.noticed.is_some_and(|noticed| noticed <= epoch) {
                    self.noticed = None;
                }
                Reopener::Idle
            }
        };
        self.reopeners[reopener] = next;
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
        for (usage, times) in self.store.charged.iter().enumerate() {
            let dead = self.workers[usize::from(self.by_worker[usage])].dead;
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

impl Store {
    fn number(&self, session: u8) -> u8 {
        self.sessions.iter().find(|(id, _)| *id == session).map_or(0, |(_, number)| *number)
    }

    fn write(&mut self, entry: &Entry) {
        match entry.effect {
            Effect::Settle { usage, paid } => {
                self.charged[usize::from(usage)] += 1;
                // What does not fit becomes debt.
                let fits = (paid as i8).min(self.account.remaining);
                self.account.remaining -= fits;
                self.account.debt += 1 - fits;
            }
            Effect::Grant if self.account.change == 1 => {}
            Effect::Grant => {
                self.account.change = 1;
                self.account.remaining += 1;
                self.granted += 1;
            }
        }
        match self.sessions.iter_mut().find(|(id, _)| *id == entry.session) {
            Some((_, number)) => *number = entry.number.max(*number),
            None => self.sessions.push((entry.session, entry.number)),
        }
        self.sessions.sort_unstable();
    }
}
