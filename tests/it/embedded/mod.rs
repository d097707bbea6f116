//! The embedded ledger over the real SQLite store, with its flusher and its pusher.

mod faulty;
mod journal;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use faregate::bridge::{self, PushError, Pusher, StoreSource};
use faregate::config;
use faregate::credits::Credits;
use faregate::ledger::embedded::{Clock, EmbeddedLedger};
use faregate::ledger::hold::{self, Ask, Hold, Refusal};
use faregate::ledger::{
    AccountId, Act, Answer, Balance, Change, Connect, GrantKind, Kept, LedgerError, Limits, Micros, Op, RecordId,
    RecordKey, SharedLedger, Status,
};
use faregate::store::{self, NewChange, NewUser, PageRequest, SharedStore, Store};
use faregate::telemetry::Metrics;
use faregate::usage::Usage;
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::faulty::Faulty;
use super::support::eventually;

const SOON: Duration = Duration::from_secs(10);

/// A clock that stands on the system's and can be put forward.
#[derive(Default)]
struct Ahead(AtomicU64);

impl Clock for Ahead {
    fn now(&self) -> Micros {
        let wall = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as Micros);
        wall + self.0.load(Ordering::SeqCst)
    }
}

/// One life of the process: ledger, flusher and pusher over a data directory.
struct World {
    store: Arc<Faulty>,
    ledger: Arc<EmbeddedLedger>,
    worker: SharedLedger,
    pusher: Arc<Pusher>,
    clock: Arc<Ahead>,
    metrics: Metrics,
    tasks: TaskTracker,
    flushing: TaskTracker,
    stop: CancellationToken,
}

impl World {
    async fn begin(dir: &tempfile::TempDir, settings: config::Ledger) -> World {
        let (metrics, tasks, stop) = (Metrics::new().unwrap(), TaskTracker::new(), CancellationToken::new());
        let inner = store::open(&config::Store::default(), dir.path()).await.unwrap();
        let store = Arc::new(Faulty::new(inner));
        let shared: SharedStore = store.clone();
        bridge::flush::take_over(&shared).await.unwrap();
        let clock = Arc::new(Ahead::default());
        let source = Arc::new(StoreSource::whole(shared.clone()));
        let ledger = EmbeddedLedger::with_clock(&settings, source, metrics.clone(), clock.clone());
        let worker = ledger.connect(&tasks, stop.clone());
        let pusher = Pusher::new(shared.clone(), worker.clone(), metrics.clone());
        let (log, flush_metrics, stopping) = (ledger.outbox(), metrics.clone(), stop.clone());
        let flushing = TaskTracker::new();
        flushing.spawn(async move {
            bridge::flush::run(log, shared, &config::Store::default(), flush_metrics, stopping).await;
        });
        World { store, ledger, worker, pusher, clock, metrics, tasks, flushing, stop }
    }

    /// As after SIGTERM: what is under way is carried out.
    async fn end(self) {
        self.stop.cancel();
        for tasks in [&self.tasks, &self.flushing] {
            tasks.close();
            tokio::time::timeout(SOON, tasks.wait()).await.expect("drained");
        }
        self.store.close().await;
    }

    /// As after kill -9: nothing more is flushed.
    async fn die(self) {
        self.store.stop();
        self.store.stop_folding();
        self.store.close().await;
    }

    async fn user(&self, name: &str, credits: u32) -> AccountId {
        let id = AccountId::parse(name).unwrap();
        let signup_credits = Credits::whole(credits);
        let user = NewUser { id: id.clone(), email: None, plan: "free".into(), signup_credits };
        self.store.create_user(user).await.unwrap();
        self.pusher.push(&id).await.unwrap();
        id
    }

    async fn grant(&self, account: &AccountId, credits: u32, expires_at: Micros, key: &str) {
        let amount_micro = Credits::whole(credits).micro();
        let change = Change::Grant { kind: GrantKind::Topup, amount_micro, expires_at };
        let (source_key, actor) = (key.to_owned(), "operator".to_owned());
        let new = NewChange { account: account.clone(), change, source_key, note: None, actor };
        self.store.add_change(new).await.unwrap();
    }

    async fn ask(&self, account: &AccountId, act: Act) -> Result<Answer, LedgerError> {
        let reply = self.worker.submit(Op { account: account.clone(), act });
        tokio::time::timeout(SOON, reply).await.expect("an answer")
    }

    async fn balance(&self, account: &AccountId) -> Balance {
        match self.ask(account, Act::Balance).await {
            Ok(Answer::Balance(balance)) => balance,
            other => panic!("no balance: {other:?}"),
        }
    }

    async fn reserve(&self, account: &AccountId, credits: u32) -> Result<Hold, Refusal> {
        hold::reserve(&self.worker, account, ask(credits)).await.map(|(hold, _)| hold)
    }

    /// Until what was acknowledged is in the tables.
    async fn folded(&self) {
        eventually(SOON, "everything folded", async || (self.ledger.outbox().unfolded() == 0).then_some(())).await;
    }

    /// Rows of usage in the store.
    async fn charged(&self, account: &AccountId) -> Vec<Credits> {
        self.folded().await;
        let page = self.store.usage(account, PageRequest { limit: 500, cursor: None }).await.unwrap();
        page.data.into_iter().map(|row| row.charged).collect()
    }
}

fn ask(credits: u32) -> Ask {
    let amount = Credits::whole(credits);
    Ask { amount, floor: amount, tokens: 0, limits: Limits::default() }
}

fn usage() -> Bytes {
    Usage { request_id: Uuid::now_v7(), route: "test".into(), status: 200, ..Usage::default() }.encode()
}

fn charge(credits: u32, must: bool, record: Option<RecordKey>) -> Act {
    Act::Charge { actual: Credits::whole(credits), must, usage: usage(), record }
}

fn key(number: u128) -> RecordKey {
    RecordKey { id: RecordId(Uuid::from_u128(number)), fingerprint: 1 }
}

/// failures 22 and 23 (litellm#33872, bifrost#3548): what was acknowledged outlives the process, and what was not held
/// back nobody's credits.
#[tokio::test(flavor = "multi_thread")]
async fn balances_survive_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    let hold = world.reserve(&user, 10).await.unwrap();
    hold.settle(Credits::whole(7), 0, usage()).await.unwrap();
    let unfinished = world.reserve(&user, 20).await.unwrap();
    assert_eq!(world.balance(&user).await.held, Credits::whole(20));
    std::mem::forget(unfinished);
    world.die().await;

    let world = World::begin(&dir, config::Ledger::default()).await;
    let balance = world.balance(&user).await;
    assert_eq!((balance.available, balance.held), (Credits::whole(43), Credits::ZERO));
    assert_eq!(world.charged(&user).await, [Credits::whole(7)]);
    world.end().await;
}

/// Two embedded ledgers over one store (two replicas over one Postgres, a deployment that overlaps): the later one has
/// it, and the earlier one neither writes there nor takes the other's commits for its own.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_ledgers_over_one_store_the_earlier_ends() {
    let dir = tempfile::tempdir().unwrap();
    let earlier = World::begin(&dir, config::Ledger::default()).await;
    let user = earlier.user("ada", 50).await;
    let hold = earlier.reserve(&user, 10).await.unwrap();
    let later = World::begin(&dir, config::Ledger::default()).await;
    assert!(matches!(later.ask(&user, charge(3, true, None)).await, Ok(Answer::Settled { .. })));
    let mut reply = hold.settle(Credits::whole(7), 0, usage());
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut reply).await.is_err(), "it was not stored");
    assert!(matches!(later.ask(&user, charge(4, true, None)).await, Ok(Answer::Settled { .. })));
    assert_eq!(earlier.ledger.outbox().backlog(), 1, "nor taken for stored");
    earlier.flushing.close();
    tokio::time::timeout(SOON, earlier.flushing.wait()).await.expect("its flusher ended, and with it the process");
    assert_eq!(later.charged(&user).await, [Credits::whole(4), Credits::whole(3)]);
    assert_eq!(later.balance(&user).await.available, Credits::whole(43));
    later.end().await;
    earlier.end().await;
}

/// failures 24: a store that is too slow for a large batch gets smaller ones, instead of the same one for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_is_halved() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 100).await;
    world.store.stop();
    let charges: Vec<_> =
        (0..60).map(|_| world.worker.submit(Op { account: user.clone(), act: charge(1, true, None) })).collect();
    world.store.most.store(20, Ordering::SeqCst);
    world.store.go_on();
    let answers = tokio::time::timeout(SOON * 3, join_all(charges)).await.expect("all are stored");
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Answer::Settled { .. }))));
    assert_eq!(world.charged(&user).await.len(), 60);
    world.end().await;
}

/// failures 22 (litellm#33872): the acknowledgement of a settle follows the commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_settle_is_acknowledged_once_it_is_in_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    world.store.stop();
    let hold = world.reserve(&user, 10).await.unwrap();
    let mut reply = hold.settle(Credits::whole(7), 0, usage());
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut reply).await.is_err(), "not before");
    assert_eq!(world.charged(&user).await, []);
    assert_eq!(world.ledger.outbox().backlog(), 1);
    world.store.go_on();
    let settled = tokio::time::timeout(SOON, reply).await.unwrap();
    assert_eq!(settled, Ok(Answer::Settled { charged: Credits::whole(7), available: Credits::whole(43) }));
    assert_eq!(world.charged(&user).await, [Credits::whole(7)]);
    world.end().await;
}

/// failures 1 (new-api#5690, litellm#34732): 200 at once against 50 credits.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_credits_admit_fifty_requests() {
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::begin(&dir, config::Ledger::default()).await);
    let user = world.user("ada", 50).await;
    let requests = (0..200).map(|_| {
        let (world, user) = (world.clone(), user.clone());
        tokio::spawn(async move {
            let hold = world.reserve(&user, 1).await?;
            tokio::task::yield_now().await;
            hold.settle(Credits::whole(1), 0, usage()).await.map_err(|_| Refusal::Unavailable)
        })
    });
    let answers: Vec<_> = join_all(requests).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 50);
    let refused = |answer: &&Result<Answer, Refusal>| matches!(answer, Err(Refusal::Insufficient { .. }));
    assert_eq!(answers.iter().filter(refused).count(), 150);
    let balance = world.balance(&user).await;
    assert_eq!((balance.available, balance.held, balance.debt), (Credits::ZERO, Credits::ZERO, Credits::ZERO));
    assert_eq!(world.charged(&user).await.len(), 50);
    Arc::into_inner(world).unwrap().end().await;
}

/// failures 5 (litellm#28247): a stampede seeds the balance once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stampede_loads_once() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    world.end().await;

    let world = World::begin(&dir, config::Ledger::default()).await;
    let requests = (0..100).map(|_| world.reserve(&user, 1));
    let holds: Vec<Hold> = join_all(requests).await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(holds.len(), 50);
    assert_eq!(world.store.loads.load(Ordering::SeqCst), 1);
    drop(holds);
    assert_eq!(world.balance(&user).await.available, Credits::whole(50));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_does_not_exist_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let nobody = AccountId::parse("nobody").unwrap();
    assert_eq!(world.reserve(&nobody, 1).await.unwrap_err(), Refusal::UnknownAccount);
    assert!(matches!(world.pusher.push(&nobody).await, Err(PushError::UnknownAccount(_))));
    world.end().await;
}

/// failures 24 (litellm#21514): while the store takes nothing, memory stays bounded: new work is refused, what is in
/// flight settles, and it all goes on afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_backlog_refuses_new_work_and_lifts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::Ledger { max_backlog: 5, ..config::Ledger::default() };
    let world = World::begin(&dir, settings).await;
    let user = world.user("ada", 50).await;
    world.store.stop();
    let mut holds = Vec::new();
    for _ in 0..10 {
        holds.push(world.reserve(&user, 1).await.unwrap());
    }
    let late = holds.split_off(5);
    let replies: Vec<_> = holds.into_iter().map(|hold| hold.settle(Credits::whole(1), 0, usage())).collect();
    assert_eq!(world.worker.status(), Status::Backlogged);
    assert_eq!(world.reserve(&user, 1).await.unwrap_err(), Refusal::Backlogged);
    assert_eq!(world.ask(&user, charge(1, false, None)).await, Ok(Answer::Backlogged));
    let late: Vec<_> = late.into_iter().map(|hold| hold.settle(Credits::whole(1), 0, usage())).collect();
    assert_eq!(world.ledger.outbox().backlog(), 10, "settles always pass");
    world.store.go_on();
    for reply in replies.into_iter().chain(late) {
        assert!(matches!(tokio::time::timeout(SOON, reply).await.unwrap(), Ok(Answer::Settled { .. })));
    }
    world.folded().await;
    assert_eq!(world.worker.status(), Status::Ready);
    world.reserve(&user, 1).await.unwrap().release().await.unwrap();
    world.end().await;
}

/// However many accounts cannot be applied, the others get their changes at once, and those once they can.
#[tokio::test(flavor = "multi_thread")]
async fn accounts_that_cannot_be_applied_keep_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let new = |name: String| NewUser {
        id: AccountId::parse(&name).unwrap(),
        email: None,
        plan: "free".into(),
        signup_credits: Credits::whole(5),
    };
    // More than one page of them, and all before the other one.
    let stuck: Vec<NewUser> = (0..510).map(|number| new(format!("a{number}"))).collect();
    for user in &stuck {
        world.store.create_user(user.clone()).await.unwrap();
    }
    let well = world.store.create_user(new("z".into())).await.unwrap().id;
    world.store.failing_loads_of("a");
    world.tasks.spawn(world.pusher.clone().run(world.stop.clone()));
    let applied = async |account: &AccountId| {
        world.store.load_account(account).await.is_ok_and(|state| state.unwrap().change == 1)
    };
    eventually(SOON, "the account behind them has its credits", async || applied(&well).await.then_some(())).await;
    eventually(SOON, "the stuck are counted", async || (world.metrics.pending_changes.get() == 510).then_some(()))
        .await;
    world.store.failing_loads_of("-");
    let recovers = Duration::from_secs(30);
    eventually(recovers, "nothing is outstanding", async || {
        let left = world.store.unapplied_accounts(None, 1).await.unwrap();
        (left.is_empty() && world.metrics.pending_changes.get() == 0).then_some(())
    })
    .await;
    world.end().await;
}

/// failures 7 (litellm#33923): with the store gone for longer than the limit nothing new is let through.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_store_refuses_new_work() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    let (one, two) = (world.reserve(&user, 1).await.unwrap(), world.reserve(&user, 1).await.unwrap());
    world.store.stop();
    let settled = one.settle(Credits::whole(1), 0, usage());
    world.reserve(&user, 1).await.unwrap().release().await.unwrap();
    world.clock.0.store(6_000_000, Ordering::SeqCst);
    assert_eq!(world.worker.status(), Status::Unavailable);
    assert_eq!(world.reserve(&user, 1).await.unwrap_err(), Refusal::Unavailable);
    let late = two.settle(Credits::whole(1), 0, usage());
    world.store.go_on();
    assert!(settled.await.is_ok() && late.await.is_ok());
    assert_eq!(world.worker.status(), Status::Ready);
    world.end().await;
}

/// failures 46: a commit whose answer was lost is not written again, and one that failed is.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_unknown_outcome_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    world.store.lie(1);
    world.ask(&user, charge(1, true, None)).await.unwrap();
    world.store.fail(2);
    world.ask(&user, charge(2, true, None)).await.unwrap();
    world.ask(&user, charge(3, true, None)).await.unwrap();
    assert_eq!(world.charged(&user).await, [3, 2, 1].map(Credits::whole));
    world.folded().await;
    let state = world.store.load_account(&user).await.unwrap().unwrap();
    assert_eq!(state.grants[0].remaining_micro, Credits::whole(44).micro());
    assert_eq!(world.ledger.outbox().backlog(), 0);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_applied_in_order_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 1).await;
    for number in 0..20 {
        world.grant(&user, 1, 0, &format!("key-{number}")).await;
    }
    world.die().await;

    let world = World::begin(&dir, config::Ledger::default()).await;
    assert_eq!(world.balance(&user).await.available, Credits::whole(1), "not pushed yet");
    let (pusher, stop) = (world.pusher.clone(), world.stop.clone());
    world.tasks.spawn(pusher.run(stop));
    eventually(SOON, "all changes pushed", async || {
        (world.balance(&user).await.available == Credits::whole(21)).then_some(())
    })
    .await;
    eventually(SOON, "all changes acknowledged", async || {
        world.store.unapplied_accounts(None, 10).await.unwrap().is_empty().then_some(())
    })
    .await;
    // Pushing what was pushed does nothing.
    join_all((0..10).map(|_| world.pusher.push(&user))).await.into_iter().for_each(|pushed| pushed.unwrap());
    assert_eq!(world.balance(&user).await.available, Credits::whole(21));
    assert_eq!(world.metrics.pending_changes.get(), 0);
    world.end().await;
}

/// failures 15 (Unkey's limiter): an account that leaves the memory comes back as it was.
#[tokio::test(flavor = "multi_thread")]
async fn idle_accounts_are_parked_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let (idle, busy) = (world.user("ada", 50).await, world.user("bob", 50).await);
    world.ask(&idle, charge(8, true, Some(key(1)))).await.unwrap();
    let hold = world.reserve(&busy, 10).await.unwrap();
    world.ledger.sweep();
    assert_eq!(world.ledger.loaded_accounts(), 2, "neither is idle yet");
    world.clock.0.store(601_000_000, Ordering::SeqCst);
    world.folded().await;
    world.ledger.sweep();
    assert_eq!(world.ledger.loaded_accounts(), 1, "what is held stays");
    let kept = Kept::Charged { charged_micro: Credits::whole(8).micro(), available_micro: Credits::whole(42).micro() };
    assert_eq!(world.ask(&idle, charge(8, true, Some(key(1)))).await, Ok(Answer::Repeated(kept)));
    assert_eq!(world.balance(&idle).await.available, Credits::whole(42));
    hold.settle(Credits::whole(10), 0, usage()).await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expired_is_written_off_by_the_sweeper() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 5).await;
    world.grant(&user, 7, world.clock.now() + 10_000_000, "soon").await;
    world.pusher.push(&user).await.unwrap();
    assert_eq!(world.balance(&user).await.available, Credits::whole(12));
    world.clock.0.store(71_000_000, Ordering::SeqCst);
    assert_eq!(world.balance(&user).await.available, Credits::whole(5), "past its expiry it is not drawn from");
    world.ledger.sweep();
    eventually(SOON, "written off in the store", async || {
        let state = world.store.load_account(&user).await.unwrap().unwrap();
        (state.grants.len() == 1).then_some(())
    })
    .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_and_answers_of_the_api_survive_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    let hold =
        |number| Act::Hold { record: key(number), amount: Credits::whole(10), expires_in_us: 60_000_000, must: false };
    let held = world.ask(&user, hold(1)).await.unwrap();
    assert!(matches!(held, Answer::Held { .. }), "{held:?}");
    world.ask(&user, hold(2)).await.unwrap();
    world.ask(&user, charge(5, false, Some(key(3)))).await.unwrap();
    world.die().await;

    let world = World::begin(&dir, config::Ledger::default()).await;
    let balance = world.balance(&user).await;
    assert_eq!((balance.available, balance.held), (Credits::whole(25), Credits::whole(20)));
    assert!(matches!(world.ask(&user, hold(1)).await, Ok(Answer::Repeated(Kept::Held { .. }))));
    assert!(matches!(world.ask(&user, charge(5, false, Some(key(3)))).await, Ok(Answer::Repeated(_))));
    let settle = || Act::SettleHold { record: key(1).id, actual: Credits::whole(4), must: false, usage: usage() };
    let settled = world.ask(&user, settle()).await;
    assert_eq!(settled, Ok(Answer::Settled { charged: Credits::whole(4), available: Credits::whole(31) }));
    assert!(matches!(world.ask(&user, settle()).await, Ok(Answer::Finished(Kept::Charged { .. }))));
    world.ask(&user, hold(4)).await.unwrap();
    world.clock.0.store(61_000_000, Ordering::SeqCst);
    world.ledger.sweep();
    let balance = world.balance(&user).await;
    assert_eq!((balance.available, balance.held), (Credits::whole(41), Credits::ZERO), "an API hold expires");
    world.ask(&user, hold(5)).await.unwrap();
    world.die().await;

    let world = World::begin(&dir, config::Ledger::default()).await;
    world.clock.0.store(122_000_000, Ordering::SeqCst);
    let balance = world.balance(&user).await;
    assert_eq!((balance.available, balance.held), (Credits::whole(41), Credits::ZERO), "also while nobody ran");
    world.end().await;
}

/// failures 3 (litellm#27639): whoever leaves while the account is being loaded, or just as the answer comes, leaves
/// no hold behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reserve_that_nobody_waits_for_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    world.end().await;

    let world = World::begin(&dir, config::Ledger::default()).await;
    // The first of them starts the load; each asks once and leaves.
    let asked = (0..100).map(|_| hold::reserve(&world.worker, &user, ask(1)).now_or_never());
    let waited = asked.filter(Option::is_none).count();
    assert!(waited > 0, "the account was there already");
    let balance = world.balance(&user).await;
    assert_eq!((balance.available, balance.in_flight), (Credits::whole(50), 0));
    world.end().await;
}

/// failures 6 (litellm#42653): an outage refuses what is new, and a late settle is carried out when it is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_charge_waits_for_its_account() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    world.end().await;

    let world = World::begin(&dir, config::Ledger::default()).await;
    world.store.failing_loads.store(2, Ordering::SeqCst);
    let (refused, charged) = tokio::join!(world.reserve(&user, 1), world.ask(&user, charge(60, true, None)));
    assert_eq!(refused.unwrap_err(), Refusal::Unavailable);
    assert_eq!(charged, Ok(Answer::Settled { charged: Credits::whole(60), available: Credits::ZERO }));
    assert_eq!(world.balance(&user).await.debt, Credits::whole(10));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_brings_everything_into_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 5_000).await;
    let replies: Vec<_> =
        (0..3_000).map(|_| world.worker.submit(Op { account: user.clone(), act: charge(1, true, None) })).collect();
    world.end().await;
    for reply in replies {
        assert!(reply.await.is_ok());
    }
    let world = World::begin(&dir, config::Ledger::default()).await;
    assert_eq!(world.balance(&user).await.available, Credits::whole(2_000));
    world.end().await;
}
