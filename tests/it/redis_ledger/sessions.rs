//! Sessions that die, sleep, or only seem to.

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use faregate::config;
use faregate::ledger::redis::connection::Connector;
use faregate::ledger::redis::script;
use faregate::ledger::redis::wire::Keyspace;
use faregate::ledger::redis::wire::decode::{self, BatchReply};
use faregate::ledger::redis::wire::encode::{Header, Packed};
use faregate::ledger::{Act, Answer, Connect, EventKind, Op, SessionId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fixture::{Fixture, ask, credits, reserve, reserved, settings, settle};
use crate::support::{Redis, eventually};

fn quick(redis: &Redis) -> config::Ledger {
    config::Ledger { fence_after_ms: 600, ..settings(&redis.url()) }
}

/// A worker on a thread of its own, which can be put to sleep.
struct Sleeper {
    ledger: faregate::ledger::SharedLedger,
    sleep: mpsc::Sender<mpsc::Receiver<()>>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sleeper {
    fn start(fixture: &Fixture) -> Sleeper {
        let ledger = fixture.redis_ledger.clone();
        let stop = CancellationToken::new();
        let (give, take) = mpsc::channel();
        let (sleep, orders) = mpsc::channel::<mpsc::Receiver<()>>();
        let stop_there = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let tasks = TaskTracker::new();
                give.send(ledger.connect(&tasks, stop_there.clone())).unwrap();
                while !stop_there.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    if let Ok(until) = orders.try_recv() {
                        // The whole worker stands still, heartbeats and all.
                        let _ = until.recv();
                    }
                }
                tasks.close();
                tasks.wait().await;
            });
        });
        Sleeper { ledger: take.recv().unwrap(), sleep, stop, thread: Some(thread) }
    }

    /// Until the answer is dropped.
    fn sleep(&self) -> mpsc::Sender<()> {
        let (wake, until) = mpsc::channel();
        self.sleep.send(until).unwrap();
        wake
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// failures 10 and 11: no hold has a fixed life; those of a dead worker come back, those of a live one stay. What a
/// worker that only slept still has to settle is charged.
#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_worker_is_fenced_and_charges_late() {
    let redis = Redis::start();
    let fixture = Fixture::with(&quick(&redis)).await;
    fixture.sweep();
    let account = fixture.account("ada", 1_000);
    let live = fixture.reserve(&account, 100).await;
    let sleeper = Sleeper::start(&fixture);
    let (settled, released, running) = (
        reserved(ask(&sleeper.ledger, &account, reserve(200)).await),
        reserved(ask(&sleeper.ledger, &account, reserve(200)).await),
        reserved(ask(&sleeper.ledger, &account, reserve(200)).await),
    );
    let wake = sleeper.sleep();
    eventually(Duration::from_secs(10), "the dead worker's holds come back", || async {
        (fixture.balance(&account).await.held == credits(100)).then_some(())
    })
    .await;
    eventually(Duration::from_secs(10), "the sweeper says so", || async {
        (fixture.metrics.sessions_fenced.get() == 1).then_some(())
    })
    .await;
    drop(wake);
    assert!(matches!(ask(&sleeper.ledger, &account, settle(&settled, 150)).await, Answer::Settled { .. }));
    let act = Act::Release { session: released.session, parts: released.parts, tokens_back_us: 0 };
    assert!(matches!(ask(&sleeper.ledger, &account, act).await, Answer::Released { .. }));
    let act = Act::Extend { session: running.session, more: credits(1), floor: credits(1) };
    assert_eq!(ask(&sleeper.ledger, &account, act).await, Answer::UnknownHold);
    assert!(matches!(fixture.settle(&account, live, 100).await, Answer::Settled { .. }));
    let kinds: Vec<_> = fixture.events().await.iter().map(|event| (event.kind, event.charged.micro())).collect();
    assert_eq!(kinds, [(EventKind::Abandoned, 0), (EventKind::Charged, 150), (EventKind::Settled, 100)]);
    assert_eq!(fixture.metrics.sessions_fenced.get(), 1, "the live one is not");
    assert_eq!(fixture.balance(&account).await.available, credits(750));
    drop(sleeper);
    fixture.shut_down().await;
}

/// failures 46: a worker is fenced, and while it asks what became of its batch Redis loses everything and is opened anew. It
/// begins again in another epoch than the one that fenced it, and charges what it remembers all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_fenced_and_loses_its_data_at_once_charges_what_it_remembers() {
    let redis = Redis::start();
    let fixture = Fixture::with(&quick(&redis)).await;
    fixture.sweep();
    let account = fixture.account("ada", 1_000);
    let sleeper = Sleeper::start(&fixture);
    let hold = reserved(ask(&sleeper.ledger, &account, reserve(10)).await);
    assert!(matches!(ask(&sleeper.ledger, &account, settle(&hold, 10)).await, Answer::Settled { .. }));
    let wake = sleeper.sleep();
    eventually(Duration::from_secs(10), "it is fenced", || async {
        (fixture.metrics.sessions_fenced.get() == 1).then_some(())
    })
    .await;
    let asked = fixture.bank.numbers.lock().await;
    drop(wake);
    eventually(Duration::from_secs(10), "it asks", || async {
        (fixture.bank.asked.load(Ordering::Relaxed) > 0).then_some(())
    })
    .await;
    redis.command(&["FLUSHALL"]);
    let lost = fixture.bank.cursor();
    assert_eq!(fixture.redis_ledger.log(0).reopen(lost).await.unwrap().epoch, lost.epoch + 1);
    drop(asked);
    eventually(Duration::from_secs(10), "what it remembers is charged", || async {
        (fixture.balance(&account).await.available == credits(990)).then_some(())
    })
    .await;
    drop(sleeper);
    fixture.shut_down().await;
}

/// A Redis that stands still for longer than the limit fences nobody: the sweeper's own observation was broken.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_redis_fences_nobody() {
    let mut redis = Redis::start();
    let fixture = Fixture::with(&quick(&redis)).await;
    fixture.sweep();
    let account = fixture.account("ada", 1_000);
    let hold = fixture.reserve(&account, 100).await;
    let late = fixture.ledger.submit(Op { account: account.clone(), act: Act::Balance });
    for _ in 0..3 {
        redis.pause();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        redis.resume();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(matches!(late.await, Ok(Answer::Balance(_))));
    assert!(matches!(fixture.settle(&account, hold, 100).await, Answer::Settled { .. }));
    assert_eq!(fixture.metrics.sessions_fenced.get(), 0);
    let kinds: Vec<_> = fixture.events().await.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Settled]);
    fixture.shut_down().await;
}

/// The numbering of batches, spoken by hand.
#[tokio::test]
async fn batches_apply_once_and_in_order() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    fixture.balance(&account).await;
    let keys = Keyspace::new(0, 0);
    let mut link = Connector::new(&redis.url(), Duration::from_secs(5))
        .unwrap()
        .link(prometheus::IntCounter::new("reconnects", "reconnects").unwrap());
    let session = SessionId(77);
    let op = Op { account: account.clone(), act: reserve(10) };
    let send = async |link: &mut faregate::ledger::redis::connection::Link, number| {
        let mut packed = Packed::default();
        let header = Header { session, number, max_backlog: 1_000, memory_full: false, seen: 0 };
        packed.pack(&keys, header, [&op].into_iter());
        let command = packed.command();
        let bytes = link.call_bytes(&script::BATCH, &command).await.unwrap();
        decode::batch(&bytes, session, [&op].into_iter()).unwrap()
    };
    let lost = |reply: BatchReply| assert!(matches!(reply, BatchReply::Lost { .. }), "{reply:?}");
    lost(send(&mut link, 2).await);
    let first = send(&mut link, 1).await;
    assert_eq!(first, send(&mut link, 1).await, "a repeated number gets its first reply");
    lost(send(&mut link, 3).await);
    let second = send(&mut link, 2).await;
    lost(send(&mut link, 1).await);
    assert_eq!(fixture.balance(&account).await.held, credits(20));
    assert!(!faregate::ledger::redis::sweeper::mark(&mut link, &keys, session, 1).await.unwrap(), "it has moved on");
    assert!(faregate::ledger::redis::sweeper::mark(&mut link, &keys, session, 2).await.unwrap());
    assert_eq!(second, send(&mut link, 2).await, "also when it was fenced since");
    assert_eq!(send(&mut link, 3).await, BatchReply::Fenced);
    // Whoever is short of credits returns them itself.
    assert!(matches!(ask(&fixture.ledger, &account, reserve(1_000)).await, Answer::Reserved(_)));
    faregate::ledger::redis::sweeper::return_holds(&mut link, &keys, session).await.unwrap();
    assert_eq!(send(&mut link, 3).await, BatchReply::Fenced, "its marker outlives it");
    lost(send(&mut link, 1).await);
    assert_eq!(redis.command(&["SISMEMBER", "fg:{00}:0:sessions", "77"]), "0");
    assert_ne!(redis.command(&["TTL", "fg:{00}:0:sess:77"]), "-1");
    fixture.shut_down().await;
}

/// The largest batch that the settings allow comes in pieces: what Lua's stack holds at once is bounded.
#[tokio::test]
async fn the_largest_batch_is_carried_out_whole() {
    const COUNT: i64 = 1_024;
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let accounts: Vec<_> = (0..COUNT).map(|number| fixture.account(&format!("user-{number}"), 1 << 50)).collect();
    let loads = accounts.iter().map(|account| ask(&fixture.ledger, account, Act::Balance));
    futures_util::future::join_all(loads).await;
    let mut link = Connector::new(&redis.url(), Duration::from_secs(5))
        .unwrap()
        .link(prometheus::IntCounter::new("reconnects", "reconnects").unwrap());
    let session = SessionId((1 << 53) - 1);
    let send = async |link: &mut faregate::ledger::redis::connection::Link, number, ops: &[Op]| {
        let mut packed = Packed::default();
        let header = Header { session, number, max_backlog: 1_000, memory_full: false, seen: 0 };
        packed.pack(&Keyspace::new(0, 0), header, ops.iter());
        let bytes = link.call_bytes(&script::BATCH, &packed.command()).await.unwrap();
        match decode::batch(&bytes, session, ops.iter()).unwrap() {
            BatchReply::Applied { answers, .. } => answers,
            other => panic!("{other:?}"),
        }
    };
    let op = |account: &faregate::ledger::AccountId, act| Op { account: account.clone(), act };
    let ops: Vec<_> = accounts.iter().map(|account| op(account, reserve(1 << 49))).collect();
    let holds = send(&mut link, 1, &ops).await.into_iter().map(reserved);
    let ops: Vec<_> = accounts.iter().zip(holds).map(|(account, hold)| op(account, settle(&hold, 1 << 48))).collect();
    let settled = Answer::Settled { charged: credits(1 << 48), available: credits((1 << 50) - (1 << 48)) };
    assert!(send(&mut link, 2, &ops).await.iter().all(|answer| *answer == settled));
    let events = fixture.events().await;
    let told: Vec<_> = events.iter().map(|event| (event.account.as_str(), &event.usage[..])).collect();
    let expected: Vec<_> = accounts.iter().map(|account| (account.as_str(), &b"usage"[..])).collect();
    assert_eq!(told, expected);
    let touched = redis.command(&["SCARD", &format!("fg:{{00}}:0:touch:{}", session.0)]);
    assert_eq!(touched, COUNT.to_string(), "what was touched is remembered until it is parked");
    fixture.shut_down().await;
}

/// failures 10: a hold that begins where an earlier one of the worker ended is returned like the first, also after another
/// worker held something there meanwhile, and where several grants and limits make the account an unusual one.
#[tokio::test(flavor = "multi_thread")]
async fn holds_of_accounts_that_were_used_before_are_returned() {
    let redis = Redis::start();
    let fixture = Fixture::with(&quick(&redis)).await;
    fixture.sweep();
    let accounts: Vec<_> = (0..3).map(|number| fixture.account(&format!("user-{number}"), 1_000)).collect();
    let [usual, shared, spent] = accounts.as_slice() else { unreachable!() };
    let sleeper = Sleeper::start(&fixture);
    for account in &accounts {
        for _ in 0..2 {
            let hold = reserved(ask(&sleeper.ledger, account, reserve(200)).await);
            assert!(matches!(ask(&sleeper.ledger, account, settle(&hold, 100)).await, Answer::Settled { .. }));
        }
    }
    let other = fixture.reserve(shared, 100).await;
    // All that is left, which is more than a plain account can hold.
    reserved(ask(&sleeper.ledger, spent, reserve(800)).await);
    for account in [usual, shared] {
        reserved(ask(&sleeper.ledger, account, reserve(300)).await);
    }
    let wake = sleeper.sleep();
    for (account, held) in [(usual, 0), (shared, 100), (spent, 0)] {
        eventually(Duration::from_secs(10), "the dead worker's holds come back", || async {
            (fixture.balance(account).await.held == credits(held)).then_some(())
        })
        .await;
    }
    assert!(matches!(fixture.settle(shared, other, 100).await, Answer::Settled { .. }));
    drop(wake);
    drop(sleeper);
    fixture.shut_down().await;
}

/// failures 3: the store is out, so idle accounts cannot be parked; a dead worker's holds go back all the same.
#[tokio::test]
async fn a_slow_store_keeps_no_dead_session_alive() {
    let redis = Redis::start();
    let settings = config::Ledger { park_after_ms: 0, ..quick(&redis) };
    let fixture = Fixture::with(&settings).await;
    let (account, idle) = (fixture.account("ada", 1_000), fixture.account("bob", 1_000));
    let sleeper = Sleeper::start(&fixture);
    reserved(ask(&sleeper.ledger, &account, reserve(700)).await);
    fixture.balance(&idle).await;
    fixture.bank.slow(Duration::from_secs(60));
    fixture.sweep();
    let asleep = sleeper.sleep();
    eventually(Duration::from_secs(20), "the holds go back", || async {
        (fixture.balance(&account).await.available == credits(1_000)).then_some(())
    })
    .await;
    drop(asleep);
    drop(sleeper);
    fixture.shut_down().await;
}

/// A dead session's holds in very many accounts go back, a bounded piece at a time.
#[tokio::test]
async fn thousands_of_accounts_are_returned_in_pieces() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let accounts: Vec<_> = (0..1_050).map(|number| fixture.account(&format!("user-{number}"), 100)).collect();
    let asks = accounts.iter().map(|account| ask(&fixture.ledger, account, reserve(40)));
    futures_util::future::join_all(asks).await;
    let bank = fixture.bank.clone();
    fixture.shut_down().await;
    let next = Fixture::over(bank, &settings(&redis.url())).await.unwrap();
    for account in &accounts {
        assert_eq!(next.balance(account).await.available, credits(100));
    }
    assert_eq!(next.events().await.iter().filter(|event| event.forfeited == credits(40)).count(), 1_050);
    next.shut_down().await;
}
