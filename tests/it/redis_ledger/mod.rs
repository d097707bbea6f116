//! The Redis ledger against a real Redis.

mod faults;
pub(crate) mod fixture;
mod sessions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use faregate::ledger::redis::wire::decode::Entry;
use faregate::ledger::redis::{Epochs, OpenError, Position, RedisLedger, Standing};
use faregate::ledger::{Act, Answer, EventKind, LedgerError, Op, RecordId, RecordKey, Reserved, SessionId, Status};
use faregate::telemetry::Metrics;
use futures_util::future::join_all;
use uuid::Uuid;

use self::fixture::{Fixture, ask, credits, id, parts, reserve, reserved, settings};
use crate::support::{Redis, eventually};

#[tokio::test]
async fn a_request_reserves_and_settles() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 5_000_000);
    let hold = fixture.reserve(&account, 3_000_000).await;
    assert_eq!((hold.parts.clone(), hold.available), (parts(3_000_000), credits(2_000_000)));
    let answer = fixture.settle(&account, hold, 1_000_000).await;
    assert_eq!(answer, Answer::Settled { charged: credits(1_000_000), available: credits(4_000_000) });
    let events = fixture.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].kind, events[0].seq, &events[0].usage[..]), (EventKind::Settled, 1, &b"usage"[..]));
    assert_eq!(fixture.ledger.status(), Status::Ready);
    fixture.shut_down().await;
}

/// failures 1 and 2 (new-api#5690, litellm#34732, one-api#2440): the check and the taking are one step, with a floor.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_get_exactly_what_is_there() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 50);
    let workers: Vec<_> = (0..4).map(|_| fixture.connect()).collect();
    let asks = (0..200).map(|number| ask(&workers[number % 4], &account, reserve(1)));
    let answers = join_all(asks).await;
    let (granted, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| matches!(answer, Answer::Reserved(_)));
    assert_eq!((granted.len(), refused.len()), (50, 150));
    assert!(refused.iter().all(|answer| *answer == Answer::Insufficient { available: credits(0), held: credits(50) }));
    let balance = fixture.balance(&account).await;
    assert_eq!((balance.available, balance.held, balance.in_flight), (credits(0), credits(50), 50));
    fixture.shut_down().await;
}

/// failures 5 (litellm#28247): several replicas load the hot balance at once, and it is loaded once.
#[tokio::test(flavor = "multi_thread")]
async fn a_stampede_loads_once() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 100);
    fixture.bank.slow(Duration::from_millis(50));
    let workers: Vec<_> = (0..8).map(|_| fixture.connect()).collect();
    let answers = join_all((0..160).map(|number| ask(&workers[number % 8], &account, reserve(1)))).await;
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Answer::Reserved(_))).count(), 100);
    assert_eq!(fixture.bank.loads.load(Ordering::Relaxed), 1);
    let stranger = fixture::id("stranger");
    assert_eq!(ask(&fixture.ledger, &stranger, reserve(1)).await, Answer::NotLoaded, "there is no such user");
    fixture.shut_down().await;
}

/// failures 3 (litellm#27639, #36926): a reply that nobody reads takes nothing for good.
#[tokio::test]
async fn dropped_replies_leak_nothing() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    let hold = fixture.reserve(&account, 100).await;
    for _ in 0..20 {
        drop(fixture.ledger.submit(Op { account: account.clone(), act: reserve(10) }));
        let act = Act::Extend { session: hold.session, more: credits(10), floor: credits(10) };
        // Sent before it is dropped: its answer finds nobody.
        let reply = fixture.ledger.submit(Op { account: account.clone(), act });
        tokio::task::yield_now().await;
        drop(reply);
    }
    eventually(Duration::from_secs(5), "everything is given back", || async {
        let balance = fixture.balance(&account).await;
        (balance.held == credits(100) && balance.in_flight == 1).then_some(())
    })
    .await;
    assert!(matches!(fixture.settle(&account, hold, 100).await, Answer::Settled { .. }));
    assert_eq!(fixture.balance(&account).await.available, credits(900));
    fixture.shut_down().await;
}

/// failures 14 and 15: amounts near 2^53 stay exact to the last micro-credit, and a balance has no time to live.
#[tokio::test]
async fn large_amounts_are_exact_and_balances_do_not_expire() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let all = (1_i64 << 53) - 1;
    let account = fixture.account("ada", all);
    let hold = fixture.reserve(&account, all - 1).await;
    assert_eq!((hold.parts.clone(), hold.available), (parts(all - 1), credits(1)));
    fixture.settle(&account, hold, all - 2).await;
    let balance = fixture.balance(&account).await;
    assert_eq!((balance.available, balance.held), (credits(2), credits(0)));
    let events = fixture.events().await;
    assert_eq!((events[0].charged.micro(), events[0].deltas[0].micro), (all - 2, 2 - all));
    assert_eq!(redis.command(&["TTL", "fg:{00}:0:acct:ada"]), "-1");
    assert_eq!(redis.command(&["TTL", "fg:{00}:meta"]), "-1");
    fixture.shut_down().await;
}

#[tokio::test]
async fn an_unreadable_account_fails_only_its_own_operations() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let (ada, bob) = (fixture.account("ada", 100), fixture.account("bob", 100));
    let (hold, other) = (fixture.reserve(&ada, 10).await, fixture.reserve(&bob, 10).await);
    // The last but one begins as what most accounts are written as.
    for garbage in ["rubbish", "", "\u{1}", &format!("\u{3}{}", "x".repeat(100)), "\u{fffd}"] {
        redis.command(&["SET", "fg:{00}:0:acct:ada", garbage]);
        let ops = [(&ada, reserve(1)), (&bob, reserve(1)), (&ada, fixture::settle(&hold, 1)), (&ada, Act::Balance)];
        let answers = join_all(ops.map(|(account, act)| ask(&fixture.ledger, account, act))).await;
        let unreadable = |answer: &Answer| *answer == Answer::Unreadable;
        assert_eq!(answers.iter().map(unreadable).collect::<Vec<_>>(), [true, false, true, true], "{answers:?}");
    }
    assert!(matches!(fixture.settle(&bob, other, 10).await, Answer::Settled { .. }));
    assert_eq!(fixture.balance(&bob).await.held, credits(5));
    assert_eq!(redis.command(&["GET", "fg:{00}:0:acct:ada"]), "\u{fffd}", "nothing was written to it");
    fixture.shut_down().await;
}

/// More expired holds than one round takes, of an account that cannot be read, stand before another's: that one's goes back.
#[tokio::test]
async fn holds_that_cannot_be_returned_keep_no_others() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let (ada, bob) = (fixture.account("ada", 1_000), fixture.account("bob", 100));
    let key = |number| RecordKey { id: RecordId(Uuid::from_u128(number)), fingerprint: 7 };
    let hold = |number, us| Act::Hold { record: key(number), amount: credits(1), expires_in_us: us, must: false };
    for number in 0..250 {
        assert!(matches!(ask(&fixture.ledger, &ada, hold(number, 1_000)).await, Answer::Held { .. }));
    }
    assert!(matches!(ask(&fixture.ledger, &bob, hold(999, 2_000)).await, Answer::Held { .. }));
    redis.command(&["ZADD", "fg:{00}:0:holds", "1", "no record's name"]);
    redis.command(&["SET", "fg:{00}:0:acct:ada", "rubbish"]);
    fixture.sweep();
    eventually(Duration::from_secs(20), "bob's hold goes back", || async {
        (fixture.balance(&bob).await.held == credits(0)).then_some(())
    })
    .await;
    assert_eq!(redis.command(&["ZCARD", "fg:{00}:0:holds"]), "250", "what is not returned is not forgotten either");
    fixture.shut_down().await;
}

#[tokio::test]
async fn api_holds_are_records_that_expire() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    fixture.sweep();
    let account = fixture.account("ada", 100);
    let key = |number| RecordKey { id: RecordId(Uuid::from_u128(number)), fingerprint: 7 };
    let hold = |number, us| Act::Hold { record: key(number), amount: credits(10), expires_in_us: us, must: false };
    let held = ask(&fixture.ledger, &account, hold(1, 3_600_000_000)).await;
    let Answer::Held { expires_at, .. } = held else { panic!("{held:?}") };
    assert!(matches!(ask(&fixture.ledger, &account, hold(1, 5)).await, Answer::Repeated(_)));
    assert!(matches!(ask(&fixture.ledger, &account, hold(2, 200_000)).await, Answer::Held { .. }));
    assert_eq!(redis.command(&["ZCARD", "fg:{00}:0:holds"]), "2");
    eventually(Duration::from_secs(10), "the sweeper returns the expired one", || async {
        (fixture.balance(&account).await.held == credits(10)).then_some(())
    })
    .await;
    let act = Act::SettleHold { record: key(1).id, actual: credits(4), must: false, usage: bytes::Bytes::new() };
    assert!(matches!(ask(&fixture.ledger, &account, act.clone()).await, Answer::Settled { .. }));
    assert!(matches!(ask(&fixture.ledger, &account, act).await, Answer::Finished(_)));
    let left = fixture.balance(&account).await;
    assert_eq!((left.available, left.held), (credits(96), credits(0)));
    assert_eq!(redis.command(&["ZCARD", "fg:{00}:0:holds"]), "0");
    let record = format!("fg:{{00}}:0:rec:{}:ada", key(1).id.0.simple());
    assert_ne!(redis.command(&["TTL", &record]), "-1", "an answer is kept for a day");
    assert!(expires_at > 0);
    fixture.shut_down().await;
}

#[tokio::test]
async fn the_log_is_read_trimmed_and_bounded() {
    let redis = Redis::start();
    let settings = faregate::config::Ledger { max_backlog: 5, ..settings(&redis.url()) };
    let fixture = Fixture::with(&settings).await;
    let account = fixture.account("ada", 1_000);
    for _ in 0..5 {
        let hold = fixture.reserve(&account, 10).await;
        fixture.settle(&account, hold, 1).await;
    }
    // failures 24 (litellm#21514): an unflushed log grows up to its bound, and then new work is refused.
    assert_eq!(ask(&fixture.ledger, &account, reserve(1)).await, Answer::Backlogged);
    let begin = Position { epoch: 0, counter: 0 };
    let mut log = fixture.redis_ledger.log(0);
    let entries = log.read(begin, 3).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.counter).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(entries[2].events[0].charged, credits(1));
    let events: Vec<_> = entries.iter().flat_map(|entry| entry.events.clone()).collect();
    fixture.bank.flush(&events, 3);
    log.flushed(Position { epoch: 0, counter: 3 }).await.unwrap();
    assert!(matches!(ask(&fixture.ledger, &account, reserve(1)).await, Answer::Reserved(_)));
    assert_eq!(log.read(Position { epoch: 0, counter: 3 }, 10).await.unwrap().len(), 2);
    redis.command(&["XDEL", "fg:{00}:0:events", "4-0"]);
    assert!(log.read(Position { epoch: 0, counter: 3 }, 10).await.is_err(), "a hole is told");
    assert!(log.read(Position { epoch: 0, counter: 9 }, 10).await.is_err(), "a log that fell behind is told");
    fixture.shut_down().await;
}

/// A ledger and a store that do not belong together would bring old balances back: refused at start.
#[tokio::test]
async fn another_store_is_refused() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    let hold = fixture.reserve(&account, 10).await;
    fixture.settle(&account, hold, 1).await;
    let mut log = fixture.redis_ledger.log(0);
    log.read(Position::default(), 10).await.unwrap();
    log.flushed(Position { epoch: 0, counter: 1 }).await.unwrap();
    let stranger = Fixture::over(Default::default(), &settings(&redis.url())).await.err();
    assert!(matches!(stranger, Some(OpenError::Mismatch { .. })), "{stranger:?}");
    fixture.shut_down().await;
}

/// Another replica's work goes on while one starts: that is no mismatch.
#[tokio::test]
async fn a_busy_ledger_is_joined() {
    let redis = Redis::start();
    let fixture = Arc::new(Fixture::new(&redis).await);
    fixture.account("ada", 1_000);
    let epochs = Arc::new(Busy(fixture.clone()));
    let metrics = Metrics::new().unwrap();
    let joined = RedisLedger::open(&settings(&redis.url()), fixture.bank.clone(), epochs, metrics).await;
    assert!(joined.is_ok(), "{joined:?}");
    drop(joined);
    Arc::into_inner(fixture).unwrap().shut_down().await;
}

/// What another version made is neither read nor written.
#[tokio::test]
async fn a_ledger_of_another_version_is_refused() {
    let redis = Redis::start();
    let make = "redis.call('SET', KEYS[1], cmsgpack.pack({2, 0, 0, 0, 0, {}, 0}))";
    redis.command(&["EVAL", make, "1", "fg:{00}:meta"]);
    let before = redis.command(&["GET", "fg:{00}:meta"]);
    let bank = Arc::new(fixture::Bank::default());
    let refused = Fixture::over(bank, &settings(&redis.url())).await.map(drop);
    assert!(matches!(refused, Err(OpenError::Ledger(LedgerError::Unavailable))), "{refused:?}");
    assert_eq!(redis.command(&["GET", "fg:{00}:meta"]), before);
}

/// Of two replicas that notice a loss at once the one that is late leaves the shard open that the other opened.
#[tokio::test]
async fn who_is_late_to_reopen_closes_nothing() {
    let redis = Redis::start();
    let fixture = Arc::new(Fixture::new(&redis).await);
    let epochs = Arc::new(Overtaken { fixture: fixture.clone(), armed: AtomicBool::new(false) });
    let metrics = Metrics::new().unwrap();
    let late = RedisLedger::open(&settings(&redis.url()), fixture.bank.clone(), epochs.clone(), metrics).await.unwrap();
    epochs.armed.store(true, Ordering::Relaxed);
    let opened = late.log(0).reopen(Position::default()).await.unwrap();
    assert_eq!((opened.epoch, fixture.bank.cursor().epoch), (1, 1), "once");
    drop((late, epochs));
    Arc::into_inner(fixture).unwrap().shut_down().await;
}

/// Once armed: between a look at the shard and the look at the store another replica opens the shard anew, from end to end.
struct Overtaken {
    fixture: Arc<Fixture>,
    armed: AtomicBool,
}

#[async_trait::async_trait]
impl Epochs for Overtaken {
    async fn standing(&self, shard: u32) -> Result<Standing, LedgerError> {
        if self.armed.swap(false, Ordering::Relaxed) {
            self.fixture.redis_ledger.log(shard).reopen(Position::default()).await.unwrap();
        }
        self.fixture.bank.standing(shard).await
    }

    async fn begin(&self, shard: u32, epoch: u64) -> Result<Standing, LedgerError> {
        self.fixture.bank.begin(shard, epoch).await
    }

    async fn write(&self, shard: u32, epoch: u64, entries: Vec<Entry>) -> Result<Option<u64>, LedgerError> {
        self.fixture.bank.write(shard, epoch, entries).await
    }

    async fn end(&self, shard: u32, epoch: u64) -> Result<(), LedgerError> {
        self.fixture.bank.end(shard, epoch).await
    }

    async fn numbers(&self, shard: u32, sessions: &[SessionId]) -> Result<Vec<u64>, LedgerError> {
        self.fixture.bank.numbers(shard, sessions).await
    }

    async fn close(&self, shard: u32, known: &[(SessionId, u64)]) -> Result<bool, LedgerError> {
        self.fixture.bank.close(shard, known).await
    }
}

/// The store of a ledger at work: something is settled and flushed before and after each look at it.
struct Busy(Arc<Fixture>);

impl Busy {
    async fn work(&self) {
        let (account, from) = (id("ada"), self.0.bank.cursor());
        let hold = self.0.reserve(&account, 10).await;
        self.0.settle(&account, hold, 1).await;
        let mut log = self.0.redis_ledger.log(0);
        let entries = log.read(from, 100).await.unwrap();
        let events: Vec<_> = entries.iter().flat_map(|entry| entry.events.clone()).collect();
        let to = Position { epoch: from.epoch, counter: from.counter + entries.len() as u64 };
        self.0.bank.flush(&events, to.counter);
        log.flushed(to).await.unwrap();
    }
}

#[async_trait::async_trait]
impl Epochs for Busy {
    async fn standing(&self, shard: u32) -> Result<Standing, LedgerError> {
        self.work().await;
        let standing = self.0.bank.standing(shard).await;
        self.work().await;
        standing
    }

    async fn begin(&self, _shard: u32, _epoch: u64) -> Result<Standing, LedgerError> {
        panic!("nothing was lost")
    }

    async fn write(&self, _shard: u32, _epoch: u64, _entries: Vec<Entry>) -> Result<Option<u64>, LedgerError> {
        panic!("nothing was lost")
    }

    async fn end(&self, _shard: u32, _epoch: u64) -> Result<(), LedgerError> {
        panic!("nothing was lost")
    }

    async fn numbers(&self, _shard: u32, _sessions: &[SessionId]) -> Result<Vec<u64>, LedgerError> {
        panic!("nothing was lost")
    }

    async fn close(&self, _shard: u32, _known: &[(SessionId, u64)]) -> Result<bool, LedgerError> {
        panic!("nothing was lost")
    }
}

/// A settle that names more than its session holds, for whatever reason, is charged all the same.
#[tokio::test]
async fn what_was_used_is_charged_whatever_became_of_its_hold() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    let hold = fixture.reserve(&account, 10).await;
    let wrong = Reserved { parts: parts(20), ..hold };
    assert!(matches!(fixture.settle(&account, wrong, 15).await, Answer::Settled { .. }));
    let events: Vec<_> = fixture.events().await.iter().map(|event| (event.kind, event.charged)).collect();
    assert_eq!(events, [(EventKind::Charged, credits(15))]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn idle_accounts_are_parked_once_the_store_has_their_events() {
    let redis = Redis::start();
    let settings = faregate::config::Ledger { park_after_ms: 1_000, ..settings(&redis.url()) };
    let fixture = Fixture::with(&settings).await;
    let (ada, bob) = (fixture.account("ada", 100), fixture.account("bob", 100));
    let (hold, _kept) = (fixture.reserve(&ada, 10).await, fixture.reserve(&bob, 10).await);
    fixture.settle(&ada, hold, 10).await;
    fixture.sweep();
    fixture.bank.flush(&fixture.events().await, 1);
    eventually(Duration::from_secs(20), "the idle account is parked", || async {
        (redis.command(&["EXISTS", "fg:{00}:0:acct:ada"]) == "0").then_some(())
    })
    .await;
    assert_eq!(redis.command(&["EXISTS", "fg:{00}:0:acct:bob"]), "1", "what is held keeps an account here");
    eventually(Duration::from_secs(10), "the session forgets the parked one", || async {
        let touched = redis.command(&["KEYS", "fg:{00}:0:touch:*"]);
        (redis.command(&["SMEMBERS", &touched]) == "bob").then_some(())
    })
    .await;
    assert_eq!(fixture.balance(&ada).await.available, credits(90));
    fixture.shut_down().await;
}

#[tokio::test]
async fn shards_are_many_and_fixed() {
    let redis = Redis::start();
    let settings = faregate::config::Ledger { shards: 4, ..settings(&redis.url()) };
    let fixture = Fixture::with(&settings).await;
    let accounts: Vec<_> = (0..40).map(|number| fixture.account(&format!("user-{number}"), 100)).collect();
    let answers = join_all(accounts.iter().map(|account| ask(&fixture.ledger, account, reserve(7)))).await;
    assert!(answers.into_iter().all(|answer| reserved(answer).available == credits(93)));
    for shard in 0..4 {
        let keys = redis.command(&["KEYS", &format!("fg:{{0{shard}}}:0:acct:*")]);
        assert!(!keys.is_empty(), "shard {shard} has accounts");
    }
    let other = faregate::config::Ledger { shards: 2, ..settings };
    let refused = Fixture::over(fixture.bank.clone(), &other).await.err();
    assert!(matches!(refused, Some(OpenError::Shards { created: 4, set: 2 })));
    fixture.shut_down().await;
}

/// failures 50: a Redis that may evict a balance is refused at start.
#[tokio::test]
async fn a_redis_that_evicts_is_refused() {
    let redis = Redis::with(&["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]);
    let refused = Fixture::over(Default::default(), &settings(&redis.url())).await.err();
    assert!(matches!(&refused, Some(OpenError::Evicts { policy, .. }) if policy == "allkeys-lru"), "{refused:?}");
}

/// Settles pass when memory is full (the scripts are flagged allow-oom); new work is refused.
#[tokio::test]
async fn a_full_redis_refuses_new_work_and_settles_what_is_held() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    fixture.sweep();
    let account = fixture.account("ada", 100);
    let hold = fixture.reserve(&account, 10).await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1mb"]);
    eventually(Duration::from_secs(10), "new work is refused", || async {
        (ask(&fixture.ledger, &account, reserve(1)).await == Answer::Backlogged).then_some(())
    })
    .await;
    assert!(matches!(fixture.settle(&account, hold, 10).await, Answer::Settled { .. }));
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn after_the_stop_nothing_is_held_and_nothing_is_taken() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 100);
    for _ in 0..5 {
        fixture.reserve(&account, 10).await;
    }
    let (ledger, bank) = (fixture.ledger.clone(), fixture.bank.clone());
    fixture.shut_down().await;
    let late = ledger.submit(Op { account: account.clone(), act: reserve(1) }).await;
    assert_eq!(late, Err(LedgerError::Unavailable));
    assert_eq!(redis.command(&["SCARD", "fg:{00}:0:sessions"]), "0");
    let next = Fixture::over(bank, &settings(&redis.url())).await.unwrap();
    let balance = next.balance(&account).await;
    assert_eq!((balance.available, balance.held), (credits(100), credits(0)));
    next.shut_down().await;
}
