//! The accounts behind their locks, and what one operation does there.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::oneshot;

use super::Clock;
use super::loads::Waiting;
use super::mailbox::Mailbox;
use super::outbox::{Outbox, Position, Waiter};
use crate::config;
use crate::ledger::account::{Account, Context};
use crate::ledger::counters::Counters;
use crate::ledger::{
    AccountId, AccountState, Act, Answer, Event, Micros, Op, RecordId, RecordState, Reply, SessionId, TICKET_LIFE_US,
};
use crate::telemetry::Metrics;

/// Locks over the accounts: enough that threads seldom meet.
const SHARDS: usize = 64;
/// Records in memory past which no new ones are made: about 200 bytes each. They go a day after they are finished, and
/// when their account is parked.
const MAX_RECORDS: usize = 1_000_000;

/// The backlog may take so many bytes for each event that it may have: two to three times what a request's takes.
const EVENT_BYTES: u64 = 1_024;

pub(super) struct Core {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    pub outbox: Arc<Outbox>,
    pub clock: Arc<dyn Clock>,
    fenced: RwLock<HashSet<SessionId>>,
    any_fenced: AtomicBool,
    /// Operations that wait for a load.
    pub waiting: AtomicUsize,
    records: AtomicUsize,
    pub counters: Counters,
    max_backlog: u64,
    pub max_waiting: usize,
    unacknowledged_limit_us: Micros,
    park_after_us: Micros,
}

/// The accounts behind one lock.
#[derive(Default)]
pub(super) struct Shard {
    pub accounts: HashMap<AccountId, Loaded>,
    /// Number and end of the ticket that stands.
    pub tickets: HashMap<AccountId, (u64, Micros)>,
    /// What waits for an account that is being loaded.
    pub waiting: HashMap<AccountId, Vec<Waiting>>,
}

pub(super) struct Loaded {
    pub account: Account,
    pub records: HashMap<RecordId, RecordState>,
    used_at: Micros,
    /// Its last entry in the outbox.
    position: Position,
}

/// What an operation came to.
pub(super) struct Outcome {
    pub answer: Answer,
    /// The answer may leave once this entry is in the store.
    pub after: Option<Position>,
}

impl Core {
    pub(super) fn new(settings: &config::Ledger, clock: Arc<dyn Clock>, metrics: Metrics) -> Core {
        Core {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            counters: Counters::new(&metrics),
            outbox: Arc::new(Outbox::new(clock.clone(), metrics)),
            clock,
            fenced: RwLock::default(),
            any_fenced: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            records: AtomicUsize::new(0),
            max_backlog: settings.max_backlog,
            max_waiting: settings.max_queue,
            unacknowledged_limit_us: settings.unacknowledged_limit_ms.saturating_mul(1_000),
            park_after_us: settings.park_after_ms.saturating_mul(1_000),
        }
    }

    pub(super) fn shard(&self, account: &AccountId) -> MutexGuard<'_, Shard> {
        // SHARDS is not zero, and the index is below it.
        self.shards[self.hasher.hash_one(account) as usize % SHARDS].lock()
    }

    pub(super) fn loaded_accounts(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().accounts.len()).sum()
    }

    pub(super) fn backlogged(&self) -> bool {
        self.outbox.backlog() + self.outbox.unfolded() >= self.max_backlog
            || self.outbox.bytes() >= self.max_backlog.saturating_mul(EVENT_BYTES)
    }

    /// Whether the store has taken nothing for too long.
    pub(super) fn stalled(&self, now: Micros) -> bool {
        self.outbox.lag_us(now) > self.unacknowledged_limit_us
    }

    /// Carries out an operation on an account that is there; `None` where it is not.
    pub(super) fn apply_loaded(&self, shard: &mut Shard, session: SessionId, op: &Op) -> Option<Outcome> {
        let now = self.clock.now();
        let loaded = shard.accounts.get_mut(&op.account)?;
        let outcome = self.apply_to(loaded, session, &op.account, &op.act, now);
        if outcome.answer == Answer::Parked {
            self.forget(shard, &op.account);
        }
        self.counters.count(&op.act, &outcome.answer);
        Some(outcome)
    }

    /// The raw operations on an account that is not there.
    pub(super) fn apply_unloaded(&self, shard: &mut Shard, session: SessionId, op: &Op) -> Answer {
        let now = self.clock.now();
        let standing = shard.tickets.get(&op.account).filter(|(_, until)| now < *until).map(|(number, _)| *number);
        match &op.act {
            Act::Ticket { ticket } if standing.is_none() => {
                shard.tickets.insert(op.account.clone(), (*ticket, now + TICKET_LIFE_US));
                Answer::Ticketed
            }
            Act::Load { ticket, state } if standing == Some(*ticket) => {
                self.load(shard, session, &op.account, state);
                Answer::Loaded
            }
            Act::Ticket { .. } | Act::Load { .. } => Answer::Refused,
            _ => Answer::NotLoaded,
        }
    }

    /// Brings an account in, whose ticket the caller has checked.
    pub(super) fn load(&self, shard: &mut Shard, session: SessionId, id: &AccountId, state: &AccountState) {
        let now = self.clock.now();
        let mut events = Vec::new();
        let (record, fenced) = (&mut None, |session| self.is_fenced(session));
        let account = Account::load(state, &mut self.context(session, id, now, record, &mut events, &fenced));
        let records: HashMap<RecordId, RecordState> =
            state.records.iter().map(|record| (record.id, record.clone())).collect();
        self.records.fetch_add(records.len(), Ordering::Relaxed);
        let position = if events.is_empty() { 0 } else { self.outbox.push(now, events, None) };
        shard.tickets.remove(id);
        shard.accounts.insert(id.clone(), Loaded { account, records, used_at: now, position });
        // API holds whose time ran out while the account was away stand in nobody's way.
        let expired = state.records.iter().filter(|record| record.held.is_some() && record.until <= now);
        for record in expired {
            let act = Act::ReleaseHold { record: record.id, expired_only: true };
            self.apply_loaded(shard, SessionId::API, &Op { account: id.clone(), act });
        }
    }

    fn apply_to(&self, loaded: &mut Loaded, session: SessionId, id: &AccountId, act: &Act, now: Micros) -> Outcome {
        if matches!(act, Act::Park { .. }) && loaded.position > self.outbox.folded() {
            return Outcome { answer: Answer::Refused, after: None };
        }
        if !matches!(act, Act::Park { .. } | Act::Sweep | Act::Balance) {
            loaded.used_at = now;
        }
        let before = act.record().and_then(|record| loaded.records.get(&record).cloned());
        let mut record = before.clone();
        let mut events = Vec::new();
        let fenced = |session| self.is_fenced(session);
        let mut context = self.context(session, id, now, &mut record, &mut events, &fenced);
        context.backlogged |= self.too_many_records(act, before.is_some());
        let answer = loaded.account.apply(act, &mut context);
        let written = record.filter(|record| before.as_ref() != Some(record));
        if let Some(record) = &written
            && loaded.records.insert(record.id, record.clone()).is_none()
        {
            self.records.fetch_add(1, Ordering::Relaxed);
        }
        if !events.is_empty() || written.is_some() {
            let record = written.map(|record| (id.clone(), record));
            loaded.position = self.outbox.push(now, events, record);
        }
        let acknowledged = self.outbox.acknowledged();
        let after = durable(act, &answer).then_some(loaded.position).filter(|position| *position > acknowledged);
        Outcome { answer, after }
    }

    fn too_many_records(&self, act: &Act, known: bool) -> bool {
        act.record().is_some() && !known && self.records.load(Ordering::Relaxed) >= MAX_RECORDS
    }

    fn context<'a>(
        &self,
        session: SessionId,
        account: &'a AccountId,
        now: Micros,
        record: &'a mut Option<RecordState>,
        events: &'a mut Vec<Event>,
        fenced: &'a dyn Fn(SessionId) -> bool,
    ) -> Context<'a> {
        Context { account, now, session, fenced, backlogged: self.backlogged(), record, events }
    }

    /// Hands the answer over: now, or once the store has what it says.
    pub(super) fn reply(&self, outcome: Outcome, mailbox: &Arc<Mailbox>) -> Reply {
        match outcome.after {
            Some(position) => {
                let (sender, receiver) = oneshot::channel();
                self.outbox.wait_for(position, Waiter { sender, answer: outcome.answer, mailbox: mailbox.clone() });
                Reply::Later(receiver)
            }
            None => Reply::now(Ok(outcome.answer)),
        }
    }

    /// Operations of this session are refused from now on, and its holds are anybody's to return.
    pub(super) fn fence(&self, session: SessionId) {
        self.fenced.write().insert(session);
        self.any_fenced.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_fenced(&self, session: SessionId) -> bool {
        self.any_fenced.load(Ordering::Relaxed) && self.fenced.read().contains(&session)
    }

    /// Gives back what a dead session holds, account by account.
    pub(super) fn abandon(&self, session: SessionId) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let now = self.clock.now();
            for (id, loaded) in &mut shard.accounts {
                let mut events = Vec::new();
                let (record, fenced) = (&mut None, |session| self.is_fenced(session));
                let mut context = self.context(session, id, now, record, &mut events, &fenced);
                self.counters.abandoned(loaded.account.abandon(session, &mut context));
                if !events.is_empty() {
                    loaded.position = self.outbox.push(now, events, None);
                }
            }
        }
    }

    /// Writes off what is due, ends API holds past their time, forgets records past theirs, and parks idle accounts.
    pub(super) fn sweep(&self) {
        for shard in &self.shards {
            let now = self.clock.now();
            let folded = self.outbox.folded();
            // Accounts with something due are few: they are found first, so that the lock is held shortly.
            let due: Vec<Op> = {
                let mut shard = shard.lock();
                shard.tickets.retain(|_, (_, until)| now < *until);
                shard.accounts.iter().flat_map(|(id, loaded)| self.due(id, loaded, now, folded)).collect()
            };
            for op in due {
                let mut shard = shard.lock();
                self.apply_loaded(&mut shard, SessionId::API, &op);
                if let Some(loaded) = shard.accounts.get_mut(&op.account) {
                    self.forget_records(loaded, now, folded);
                }
            }
        }
    }

    fn due<'a>(
        &self,
        id: &'a AccountId,
        loaded: &'a Loaded,
        now: Micros,
        folded: Position,
    ) -> impl Iterator<Item = Op> + use<'a> {
        let idle = loaded.used_at.saturating_add(self.park_after_us) <= now && loaded.position <= folded;
        let past = loaded.records.values().filter(move |record| record.until <= now);
        let release = past.map(|record| Act::ReleaseHold { record: record.id, expired_only: true });
        let write_off = loaded.account.write_off_due(now).then_some(Act::Sweep);
        let park = idle.then(|| Act::Park { flushed_seq: loaded.account.seq() });
        release.chain(write_off).chain(park).map(|act| Op { account: id.clone(), act })
    }

    /// Drops finished records past their time, once the store has them; it drops its own by itself.
    fn forget_records(&self, loaded: &mut Loaded, now: Micros, folded: Position) {
        if loaded.position <= folded {
            let before = loaded.records.len();
            loaded.records.retain(|_, record| record.held.is_some() || record.until > now);
            self.records.fetch_sub(before - loaded.records.len(), Ordering::Relaxed);
        }
    }

    /// A parked account leaves the memory.
    fn forget(&self, shard: &mut Shard, account: &AccountId) {
        if let Some(loaded) = shard.accounts.remove(account) {
            self.records.fetch_sub(loaded.records.len(), Ordering::Relaxed);
        }
        if shard.accounts.capacity() > 1_024 && shard.accounts.len() < shard.accounts.capacity() / 4 {
            shard.accounts.shrink_to(2 * shard.accounts.len());
        }
    }
}

/// Whether the answer says something that must not be forgotten: it waits for the store. What a worker reserves or
/// releases need not survive the process, which takes its holds with it.
fn durable(act: &Act, answer: &Answer) -> bool {
    let keeps = match act {
        Act::Settle { .. } | Act::Apply { .. } => true,
        act => act.record().is_some() || matches!(act, Act::Charge { .. }),
    };
    let says = matches!(
        answer,
        Answer::Settled { .. }
            | Answer::Released { .. }
            | Answer::Held { .. }
            | Answer::Applied
            | Answer::Repeated(_)
            | Answer::Finished(_)
    );
    keeps && says
}
