//! A worker: its session, what it remembers, how it goes on after a loss.

use super::State;
use super::ledger::{Reply, Said, Session};
use super::scope::{Guards, WORKERS};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Op {
    Reserve,
    Settle(u8),
    Charge(u8),
    /// With an Idempotency-Key. `must`: it was acknowledged before.
    Keyed {
        usage: u8,
        must: bool,
    },
    Grant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Remembered {
    pub(super) session: u8,
    pub(super) number: u8,
    pub(super) counter: u8,
    pub(super) usage: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Worker {
    pub(super) dead: bool,
    pub(super) epoch: u8,
    pub(super) session: u8,
    pub(super) number: u8,
    pub(super) seen: u8,
    /// The session whose hold the request has; 0: none.
    pub(super) hold: u8,
    pub(super) in_flight: Option<Op>,
    /// It was told that the shard lost its data.
    pub(super) lost: bool,
    /// Still to be charged after a loss.
    pub(super) owed: Vec<u8>,
    pub(super) ring: Vec<Remembered>,
    pub(super) requests_left: u8,
    pub(super) grant_left: bool,
    pub(super) keyed_left: bool,
    /// The epoch in which the store was asked for the key, and whether it had it.
    pub(super) recalled: Option<(u8, bool)>,
    /// It was told that the key is unknown.
    pub(super) recalling: bool,
    /// The fenced session that this one follows, and its last number, until that is known to be in this history.
    pub(super) follows: Option<(u8, u8)>,
}

impl State {
    pub(super) fn ask(&mut self, worker: usize, guards: &Guards) {
        let first_usage: u8 = self.by_worker.iter().take_while(|owner| usize::from(**owner) < worker).count() as u8;
        let keyed = self.keyed;
        let full = guards.ring_bound && self.workers[worker].ring.len() >= self.ring_max;
        let worker = &mut self.workers[worker];
        if worker.dead || worker.lost || worker.in_flight.is_some() || worker.must_look() {
            return;
        }
        if let Some(usage) = worker.owed.pop() {
            let with_key = guards.claimed_key && keyed == Some(usage);
            worker.in_flight = Some(if with_key { Op::Keyed { usage, must: true } } else { Op::Charge(usage) });
        } else if worker.hold > 0 {
            let usage = first_usage + worker.requests_left;
            worker.in_flight = Some(if worker.hold == worker.session { Op::Settle(usage) } else { Op::Charge(usage) });
            worker.hold = 0;
        } else if worker.grant_left {
            worker.grant_left = false;
            worker.in_flight = Some(Op::Grant);
        } else if full {
        } else if let (true, Some(usage)) = (worker.keyed_left, keyed) {
            worker.keyed_left = false;
            worker.in_flight = Some(Op::Keyed { usage, must: false });
        } else if worker.requests_left > 0 {
            worker.requests_left -= 1;
            worker.in_flight = Some(Op::Reserve);
        }
    }

    pub(super) fn send(&mut self, worker: usize, delivered: bool, guards: &Guards) {
        let state = &self.workers[worker];
        if state.in_flight.is_none() || state.lost || state.recalling || state.must_look() {
            return;
        }
        if !delivered {
            if self.lost_replies > 0 {
                self.lost_replies -= 1;
                self.script(worker, guards);
            }
            return;
        }
        let reply = self.script(worker, guards);
        let op = self.workers[worker].in_flight;
        match (reply, op) {
            (Reply::Applied(said), Some(op)) => self.acknowledge(worker, op, said, guards),
            (Reply::Fenced, _) => self.go_on_after_fence(worker, guards),
            _ => self.workers[worker].lost = true,
        }
    }

    fn go_on_after_fence(&mut self, worker: usize, guards: &Guards) {
        let state = &mut self.workers[worker];
        // It did apply, in a history that is gone: the store has it.
        if guards.fenced && state.in_flight.is_some() && self.store.number(state.session) > state.number {
            state.lost = true;
            return;
        }
        // The batch was not applied; its operations go first in the new session of the same epoch.
        if guards.same_history && !state.ring.is_empty() {
            state.follows = Some((state.session, state.number));
        }
        (state.session, state.number) = (self.next_session, 0);
        self.next_session += 1;
        if let Some(Op::Settle(usage)) = state.in_flight {
            state.in_flight = Some(Op::Charge(usage));
        }
    }

    /// Looks for the fenced session where the new one has begun.
    pub(super) fn look_back(&mut self, worker: usize) {
        let state = &mut self.workers[worker];
        let Some((session, number)) = state.follows.filter(|_| state.must_look()) else { return };
        let there = self.redis.as_ref().is_some_and(|redis| {
            let known = |known: &Session| known.id == session && known.number >= number;
            !redis.closed && redis.epoch == state.epoch && redis.sessions.iter().any(known)
        });
        state.follows = None;
        state.lost = !there;
    }

    fn acknowledge(&mut self, worker: usize, op: Op, said: Said, guards: &Guards) {
        let Some(redis) = &self.redis else { return };
        let (counter, flushed) = (redis.counter, redis.flushed);
        let reserved = redis.holds.contains(&self.workers[worker].session);
        let worker = &mut self.workers[worker];
        worker.number += 1;
        worker.seen = worker.seen.max(counter);
        worker.forget(flushed);
        if said == Said::Unknown {
            worker.recalling = true;
            return;
        }
        worker.in_flight = None;
        match op {
            // Without credits there is no request, and no usage.
            Op::Reserve if reserved => worker.hold = worker.session,
            Op::Settle(usage) | Op::Charge(usage) | Op::Keyed { usage, .. } if said != Said::Refused => {
                self.acknowledged[usize::from(usage)] = true;
                if guards.ring && said == Said::Done && counter > flushed {
                    let (session, number) = (worker.session, worker.number);
                    worker.ring.push(Remembered { session, number, counter, usage });
                }
            }
            _ => {}
        }
    }

    /// Asks the store for the key.
    pub(super) fn recall(&mut self, worker: usize) {
        let (Some(usage), state) = (self.keyed, &mut self.workers[worker]) else { return };
        if state.recalling {
            state.recalling = false;
            state.recalled = Some((state.epoch, self.store.charged[usize::from(usage)] > 0));
        }
    }

    /// An idle worker's sign of life: it learns that the shard lost its data, or what is flushed by now.
    pub(super) fn heartbeat(&mut self, worker: usize, guards: &Guards) {
        let state = &self.workers[worker];
        let idle = !state.dead && !state.lost && state.in_flight.is_none() && !state.must_look();
        // A session that has not begun begins with the first batch, here where that matters.
        if !idle || (state.session > WORKERS as u8 && state.number == 0 && state.ring.is_empty()) {
            return;
        }
        let (mut probe, begun) = (self.clone(), state.number > 0);
        match probe.script(worker, guards) {
            Reply::Lost => self.workers[worker].lost = true,
            Reply::Applied(_) => {
                let flushed = self.redis.as_ref().map_or(0, |redis| redis.flushed);
                let tells = self.workers[worker].ring.iter().any(|kept| kept.counter <= flushed);
                let begins = !begun && self.workers[worker].follows.is_some();
                if (begun && tells) || begins {
                    self.script(worker, guards);
                    let worker = &mut self.workers[worker];
                    worker.number += 1;
                    worker.forget(flushed);
                }
            }
            Reply::Fenced if !state.ring.is_empty() => self.go_on_after_fence(worker, guards),
            Reply::Fenced => {}
        }
    }

    /// Begins again in the shard's new epoch.
    pub(super) fn recover(&mut self, worker: usize, guards: &Guards) {
        let Some(redis) = &self.redis else { return };
        let state = &mut self.workers[worker];
        if state.dead || !state.lost || redis.closed || redis.epoch <= state.epoch {
            return;
        }
        let stored = |session: u8| if guards.stored_number { self.store.number(session) } else { 0 };
        let mut ended = vec![state.session];
        for kept in std::mem::take(&mut state.ring) {
            ended.push(kept.session);
            if kept.number > stored(kept.session) {
                state.owed.push(kept.usage);
            }
        }
        let took_effect = state.number < stored(state.session);
        match state.in_flight.take() {
            Some(Op::Settle(usage) | Op::Charge(usage)) if took_effect => {
                self.acknowledged[usize::from(usage)] = true;
            }
            Some(Op::Settle(usage) | Op::Charge(usage) | Op::Keyed { usage, must: true }) => state.owed.push(usage),
            Some(Op::Keyed { must: false, .. }) => state.keyed_left = true,
            Some(Op::Reserve) => state.requests_left += 1,
            Some(Op::Grant) | None => {}
        }
        // The pusher takes what the store has as unapplied.
        let pusher = worker == 0 && self.store.account.change == 0;
        state.grant_left |= pusher && self.change;
        (state.epoch, state.session, state.number, state.seen) = (redis.epoch, self.next_session, 0, 0);
        (state.lost, state.recalling, state.follows) = (false, false, None);
        state.owed.sort_unstable();
        self.next_session += 1;
        if guards.ended_sessions {
            ended.into_iter().for_each(|session| self.store.end(session));
        }
    }
}

impl Worker {
    /// The first batch after a fence is answered: before anything else it makes sure of its history.
    fn must_look(&self) -> bool {
        self.follows.is_some() && self.number > 0
    }

    /// Entries up to `flushed` are in the store. Those of a fenced session only if this one is known to follow it.
    fn forget(&mut self, flushed: u8) {
        if self.follows.is_none() {
            self.ring.retain(|kept| kept.counter > flushed);
        }
    }
}
