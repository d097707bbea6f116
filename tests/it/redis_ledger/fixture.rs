//! A Redis ledger over a store that is a map.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use faregate::config;
use faregate::credits::Credits;
use faregate::ledger::redis::wire::decode::Entry;
use faregate::ledger::redis::{Epochs, OpenError, Position, RedisLedger, Standing};
use faregate::ledger::{
    AccountId, AccountSource, AccountState, Act, Answer, Balance, Connect, Event, GrantId, GrantKind, GrantState,
    LedgerError, Limits, Op, Parts, RecordId, RecordState, Reserved, SessionId, SharedLedger,
};
use faregate::store::reopenings::SESSION_CLOSED;
use faregate::telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::Redis;

/// Accounts as the store would know them, and where its cursor stands.
#[derive(Default)]
pub(crate) struct Bank {
    accounts: Mutex<BTreeMap<AccountId, AccountState>>,
    pub(crate) records: Mutex<BTreeMap<RecordId, RecordState>>,
    position: Mutex<Position>,
    reopening: AtomicBool,
    sessions: Mutex<BTreeMap<SessionId, u64>>,
    /// While it is held, the store does not tell how far sessions are.
    pub(crate) numbers: tokio::sync::Mutex<()>,
    /// How often it was asked.
    pub(crate) asked: AtomicU64,
    pub(crate) loads: AtomicU64,
    load_ms: AtomicU64,
}

impl Bank {
    pub(crate) fn put(&self, account: &AccountId, micro: i64) {
        let grant =
            GrantState { id: GrantId(1), kind: GrantKind::Topup, remaining_micro: micro, expires_at: 0, frozen: false };
        let state = AccountState { change: 1, grants: vec![grant], ..AccountState::default() };
        self.accounts.lock().unwrap().insert(account.clone(), state);
    }

    /// Loads take so long from now on.
    pub(crate) fn slow(&self, load: Duration) {
        self.load_ms.store(u64::try_from(load.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// What the flusher would do with these events.
    pub(crate) fn flush(&self, events: &[Event], counter: u64) {
        let mut accounts = self.accounts.lock().unwrap();
        for event in events {
            let state = accounts.get_mut(&event.account).unwrap();
            assert_eq!(event.seq, state.seq + 1);
            state.seq = event.seq;
            state.debt_micro += event.debt_delta;
            for delta in &event.deltas {
                state.grants.iter_mut().find(|grant| grant.id == delta.grant).unwrap().remaining_micro += delta.micro;
            }
        }
        self.position.lock().unwrap().counter = counter;
    }

    /// An entry as the flusher would write it.
    fn write_entry(&self, entry: &Entry) {
        let mut events = entry.events.clone();
        for event in &mut events {
            event.seq = self.accounts.lock().unwrap()[&event.account].seq + 1;
            self.flush(std::slice::from_ref(event), self.cursor().counter);
        }
        self.sessions.lock().unwrap().insert(entry.session, entry.number);
    }

    /// What the flusher would do with the entries of this log.
    pub(crate) fn flush_entries(&self, entries: &[Entry]) {
        for entry in entries {
            self.write_entry(entry);
            self.position.lock().unwrap().counter = entry.counter;
        }
    }

    pub(crate) fn cursor(&self) -> Position {
        *self.position.lock().unwrap()
    }
}

#[async_trait::async_trait]
impl AccountSource for Bank {
    async fn load(&self, account: &AccountId) -> Result<Option<AccountState>, LedgerError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(self.load_ms.load(Ordering::Relaxed))).await;
        Ok(self.accounts.lock().unwrap().get(account).cloned())
    }

    async fn record(&self, _account: &AccountId, record: RecordId) -> Result<Option<RecordState>, LedgerError> {
        Ok(self.records.lock().unwrap().get(&record).cloned())
    }
}

#[async_trait::async_trait]
impl Epochs for Bank {
    async fn standing(&self, _shard: u32) -> Result<Standing, LedgerError> {
        let reopening = self.reopening.load(Ordering::Relaxed);
        Ok(Standing { at: self.cursor(), mark: Vec::new(), reopening })
    }

    async fn begin(&self, shard: u32, epoch: u64) -> Result<Standing, LedgerError> {
        if self.cursor().epoch == epoch && !self.reopening.swap(true, Ordering::Relaxed) {
            *self.position.lock().unwrap() = Position { epoch: epoch + 1, counter: 0 };
        }
        self.standing(shard).await
    }

    async fn write(&self, _shard: u32, _epoch: u64, entries: Vec<Entry>) -> Result<Option<u64>, LedgerError> {
        let mut count = 0;
        for entry in entries {
            let stored = self.sessions.lock().unwrap().get(&entry.session).copied().unwrap_or(0);
            if entry.number > stored {
                count += 1;
                self.write_entry(&entry);
            }
        }
        Ok(Some(count))
    }

    async fn end(&self, _shard: u32, _epoch: u64) -> Result<(), LedgerError> {
        self.reopening.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn numbers(&self, _shard: u32, sessions: &[SessionId]) -> Result<Vec<u64>, LedgerError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        drop(self.numbers.lock().await);
        let known = self.sessions.lock().unwrap();
        Ok(sessions.iter().map(|session| known.get(session).copied().unwrap_or(0)).collect())
    }

    async fn close(&self, _shard: u32, known: &[(SessionId, u64)]) -> Result<bool, LedgerError> {
        let mut sessions = self.sessions.lock().unwrap();
        let stands = |(session, number): &(SessionId, u64)| {
            let stored = sessions.get(session).copied().unwrap_or(0);
            [*number, SESSION_CLOSED].contains(&stored)
        };
        if !known.iter().all(stands) {
            return Ok(false);
        }
        sessions.extend(known.iter().map(|(session, _)| (*session, SESSION_CLOSED)));
        Ok(true)
    }
}

/// A ledger with one worker on the test's runtime.
pub(crate) struct Fixture {
    pub(crate) bank: Arc<Bank>,
    pub(crate) redis_ledger: Arc<RedisLedger>,
    pub(crate) ledger: SharedLedger,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

pub(crate) fn settings(url: &str) -> config::Ledger {
    config::Ledger { url: url.to_owned(), call_timeout_ms: 300, heartbeat_interval_ms: 50, ..config::Ledger::default() }
}

impl Fixture {
    pub(crate) async fn new(redis: &Redis) -> Fixture {
        Fixture::with(&settings(&redis.url())).await
    }

    pub(crate) async fn with(settings: &config::Ledger) -> Fixture {
        Fixture::over(Arc::new(Bank::default()), settings).await.unwrap()
    }

    pub(crate) async fn over(bank: Arc<Bank>, settings: &config::Ledger) -> Result<Fixture, OpenError> {
        let metrics = Metrics::new().unwrap();
        let redis_ledger = RedisLedger::open(settings, bank.clone(), bank.clone(), metrics.clone()).await?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let ledger = redis_ledger.connect(&tasks, stop.clone());
        Ok(Fixture { bank, redis_ledger, ledger, metrics, tasks, stop })
    }

    /// An account of the store with so much in it.
    pub(crate) fn account(&self, name: &str, micro: i64) -> AccountId {
        let account = id(name);
        self.bank.put(&account, micro);
        account
    }

    pub(crate) fn connect(&self) -> SharedLedger {
        self.redis_ledger.connect(&self.tasks, self.stop.clone())
    }

    pub(crate) fn sweep(&self) {
        self.tasks.spawn(self.redis_ledger.clone().run_sweeper(self.stop.clone()));
    }

    pub(crate) async fn reserve(&self, account: &AccountId, micro: i64) -> Reserved {
        reserved(ask(&self.ledger, account, reserve(micro)).await)
    }

    pub(crate) async fn settle(&self, account: &AccountId, hold: Reserved, micro: i64) -> Answer {
        ask(&self.ledger, account, settle(&hold, micro)).await
    }

    pub(crate) async fn balance(&self, account: &AccountId) -> Balance {
        match ask(&self.ledger, account, Act::Balance).await {
            Answer::Balance(balance) => balance,
            other => panic!("{other:?}"),
        }
    }

    /// Ends the worker as a shutdown does.
    pub(crate) async fn shut_down(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// All events so far, from the log's beginning.
    pub(crate) async fn events(&self) -> Vec<Event> {
        let epoch = self.bank.cursor().epoch;
        let entries = self.redis_ledger.log(0).read(Position { epoch, counter: 0 }, 10_000).await.unwrap();
        entries.into_iter().flat_map(|entry| entry.events).collect()
    }
}

pub(crate) async fn ask(ledger: &SharedLedger, account: &AccountId, act: Act) -> Answer {
    ledger.submit(Op { account: account.clone(), act }).await.unwrap()
}

pub(crate) fn reserve(micro: i64) -> Act {
    Act::Reserve { amount: credits(micro), floor: credits(micro), tokens: 0, limits: Limits::default() }
}

pub(crate) fn settle(hold: &Reserved, micro: i64) -> Act {
    Act::Settle {
        session: hold.session,
        parts: hold.parts.clone(),
        actual: credits(micro),
        tokens_back_us: 0,
        usage: Bytes::from_static(b"usage"),
    }
}

pub(crate) fn reserved(answer: Answer) -> Reserved {
    match answer {
        Answer::Reserved(reserved) => reserved,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn parts(micro: i64) -> Parts {
    Parts::from_iter([(GrantId(1), credits(micro))])
}

pub(crate) fn credits(micro: i64) -> Credits {
    Credits::from_micro(micro).unwrap()
}

pub(crate) fn id(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}
