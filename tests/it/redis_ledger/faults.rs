//! Redis and the network at their worst: whatever happens, an operation takes effect once.

use std::time::Duration;

use bytes::Bytes;
use faregate::ledger::redis::Position;
use faregate::ledger::{Act, Answer, Kept, LedgerError, Op, RecordId, RecordKey, Status};
use uuid::Uuid;

use super::fixture::{Fixture, ask, credits, reserve, settings};
use crate::support::{ChaosProxy, Redis, eventually};

fn charge(micro: i64) -> Act {
    Act::Charge { actual: credits(micro), must: true, usage: Bytes::new(), record: None }
}

/// failures 46 and 48: a reply is lost, the command has run; the batch is sent again and answered from what was kept.
#[tokio::test]
async fn lost_replies_are_answered_and_nothing_happens_twice() {
    let redis = Redis::start();
    let proxy = ChaosProxy::start(redis.addr());
    let fixture = Fixture::with(&settings(&proxy.redis_url())).await;
    let account = fixture.account("ada", 1_000_000);
    fixture.balance(&account).await;
    for round in 0..10 {
        match round % 3 {
            0 => proxy.swallow_replies(true),
            1 => proxy.cut_after(3),
            _ => proxy.cut(),
        }
        let charged = fixture.ledger.submit(Op { account: account.clone(), act: charge(100) });
        if round % 3 == 0 {
            eventually(Duration::from_secs(5), "the command has run", || async {
                let done = redis.command(&["XLEN", "fg:{00}:0:events"]) == (round + 1).to_string();
                done.then(|| proxy.swallow_replies(false))
            })
            .await;
            proxy.cut();
        }
        assert!(matches!(charged.await, Ok(Answer::Settled { .. })), "round {round}");
    }
    assert_eq!(fixture.balance(&account).await.available, credits(999_000));
    assert_eq!(fixture.events().await.len(), 10);
    assert!(fixture.metrics.ledger_reconnects.get() > 0);
    fixture.shut_down().await;
}

/// failures 46: Redis stalls for longer than a call may take, and carries it out all the same.
#[tokio::test]
async fn a_call_that_timed_out_and_still_ran_counts_once() {
    let mut redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    fixture.balance(&account).await;
    redis.pause();
    let charged = fixture.ledger.submit(Op { account: account.clone(), act: charge(10) });
    let before = fixture.metrics.ledger_calls.with_label_values(&["broken"]).get();
    eventually(Duration::from_secs(10), "the call times out", || async {
        (fixture.metrics.ledger_calls.with_label_values(&["broken"]).get() > before).then_some(())
    })
    .await;
    redis.resume();
    assert!(matches!(charged.await, Ok(Answer::Settled { .. })));
    assert_eq!(fixture.balance(&account).await.available, credits(990));
    fixture.shut_down().await;
}

/// failures 49: the scripts are gone after a failover or a SCRIPT FLUSH.
#[tokio::test]
async fn flushed_scripts_are_loaded_again() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    for _ in 0..5 {
        redis.command(&["SCRIPT", "FLUSH"]);
        assert!(matches!(ask(&fixture.ledger, &account, charge(10)).await, Answer::Settled { .. }));
    }
    assert_eq!(fixture.balance(&account).await.available, credits(950));
    assert_eq!(fixture.metrics.ledger_reconnects.get(), 0);
    fixture.shut_down().await;
}

/// failures 45: a demoted server answers READONLY for ever; the connection is replaced, and leads to its successor.
#[tokio::test]
async fn a_demoted_redis_is_left() {
    let (old, new) = (Redis::start(), Redis::start());
    let proxy = ChaosProxy::start(old.addr());
    let fixture = Fixture::with(&settings(&proxy.redis_url())).await;
    let account = fixture.account("ada", 1_000);
    assert!(matches!(ask(&fixture.ledger, &account, charge(10)).await, Answer::Settled { .. }));
    new.command(&["REPLICAOF", "127.0.0.1", &old.port().to_string()]);
    eventually(Duration::from_secs(20), "the replica has everything", || async {
        let synced = new.command(&["INFO", "replication"]).contains("master_link_status:up");
        (synced && new.command(&["EXISTS", "fg:{00}:0:acct:ada"]) == "1").then_some(())
    })
    .await;
    // What it acknowledges from here on, a sign of life too, would be lost with it, and that is another test.
    old.command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    let offset = |redis: &Redis| {
        let said = redis.command(&["INFO", "replication"]);
        said.lines().find_map(|line| line.strip_prefix("master_repl_offset:").map(str::to_owned))
    };
    eventually(Duration::from_secs(20), "the replica has all of it", || async {
        (offset(&old).is_some() && offset(&old) == offset(&new)).then_some(())
    })
    .await;
    // The old one stays up, and refuses: only a new connection finds the new one.
    old.command(&["REPLICAOF", "127.0.0.1", "1"]);
    new.command(&["REPLICAOF", "NO", "ONE"]);
    proxy.aim(new.addr());
    old.command(&["CLIENT", "UNPAUSE"]);
    assert!(matches!(ask(&fixture.ledger, &account, charge(10)).await, Answer::Settled { .. }));
    assert_eq!(new.command(&["XLEN", "fg:{00}:0:events"]), "2");
    assert!(fixture.metrics.ledger_reconnects.get() > 0);
    fixture.shut_down().await;
}

/// failures 6 and 7 (litellm#42653, #33923): an outage is noticed at once and again, refuses new work, loses no settle.
#[tokio::test]
async fn while_redis_is_away_nothing_is_admitted_and_settles_wait() {
    let redis = Redis::start();
    let proxy = ChaosProxy::start(redis.addr());
    let settings = faregate::config::Ledger { unacknowledged_limit_ms: 300, ..settings(&proxy.redis_url()) };
    let fixture = Fixture::with(&settings).await;
    let account = fixture.account("ada", 1_000);
    for round in 1..=2 {
        let hold = fixture.reserve(&account, 10).await;
        proxy.refuse(true);
        let settled = fixture.ledger.submit(Op { account: account.clone(), act: super::fixture::settle(&hold, 10) });
        eventually(Duration::from_secs(5), "the outage is noticed", || async {
            (fixture.ledger.status() == Status::Unavailable).then_some(())
        })
        .await;
        let refused = fixture.ledger.submit(Op { account: account.clone(), act: reserve(1) }).await;
        assert_eq!(refused, Err(LedgerError::Unavailable));
        proxy.refuse(false);
        assert!(matches!(settled.await, Ok(Answer::Settled { .. })));
        assert_eq!(fixture.ledger.status(), Status::Ready);
        assert_eq!(fixture.balance(&account).await.available, credits(1_000 - 10 * round));
    }
    fixture.shut_down().await;
}

/// failures 28: the meta key is gone, and nothing else. What stands in the log and not in the store is written by the
/// reopening, once; nobody charges it again, and the old epoch's keys go.
#[tokio::test]
async fn what_survives_a_loss_is_written_and_not_charged_again() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    let hold = fixture.reserve(&account, 10).await;
    fixture.settle(&account, hold, 10).await;
    redis.command(&["DEL", "fg:{00}:meta"]);
    assert_eq!(fixture.balance(&account).await.available, credits(990));
    assert_eq!((fixture.metrics.reopenings.get(), fixture.metrics.reopened_credits.get()), (1, 0));
    fixture.sweep();
    eventually(Duration::from_secs(20), "the old epoch's keys go", || async {
        let left = redis.command(&["KEYS", "fg:{00}:0:*"]);
        left.is_empty().then_some(())
    })
    .await;
    assert_eq!(fixture.balance(&account).await.available, credits(990));
    fixture.shut_down().await;
}

/// failures 46, 47: Redis is emptied, then comes back from an older file after all. What its worker charged anew meanwhile
/// is not written a second time from the history that came back.
#[tokio::test]
async fn a_history_that_comes_back_late_is_not_charged_twice() {
    let mut redis = Redis::durable();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    let hold = fixture.reserve(&account, 10).await;
    fixture.settle(&account, hold, 10).await;
    let old = redis.files();
    redis.command(&["FLUSHALL"]);
    assert_eq!(fixture.balance(&account).await.available, credits(990));
    assert_eq!(fixture.metrics.reopened_credits.get(), 10, "the worker remembered it");
    redis.kill9();
    redis.put_back(&old);
    redis.restart();
    eventually(Duration::from_secs(20), "the shard is opened anew", || async {
        (fixture.metrics.reopenings.get() >= 2).then_some(())
    })
    .await;
    assert_eq!(fixture.balance(&account).await.available, credits(990));
    fixture.shut_down().await;
}

/// failures 46, 47: an emptied Redis is a new beginning from the store. What a worker still has to settle is charged, and so
/// is what it was told is charged and the store does not have; not what the store has.
#[tokio::test]
async fn an_emptied_redis_begins_anew_from_the_store() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    let first = fixture.reserve(&account, 10).await;
    fixture.settle(&account, first, 10).await;
    let entries = fixture.redis_ledger.log(0).read(Position::default(), 10).await.unwrap();
    fixture.bank.flush_entries(&entries);
    let unflushed = fixture.reserve(&account, 7).await;
    fixture.settle(&account, unflushed, 7).await;
    let (hold, other) = (fixture.reserve(&account, 100).await, fixture.reserve(&account, 100).await);
    redis.command(&["FLUSHALL"]);
    assert!(matches!(fixture.settle(&account, hold, 60).await, Answer::Settled { .. }));
    let balance = fixture.balance(&account).await;
    assert_eq!((balance.available, balance.held), (credits(923), credits(0)));
    assert_eq!(fixture.bank.cursor().epoch, 1, "the epoch is a new one");
    assert_eq!((fixture.metrics.reopenings.get(), fixture.metrics.reopened_credits.get()), (1, 7));
    let act = Act::Extend { session: other.session, more: credits(1), floor: credits(1) };
    assert_eq!(ask(&fixture.ledger, &account, act).await, Answer::UnknownHold);
    let act = Act::Release { session: other.session, parts: other.parts, tokens_back_us: 0 };
    assert!(matches!(ask(&fixture.ledger, &account, act).await, Answer::Released { .. }));
    assert_eq!(fixture.balance(&account).await.available, credits(923));
    fixture.shut_down().await;
}

/// failures 16, 46: what the store does not have yet of keys and API holds, the worker that was told of it does again: a key is
/// charged once, a hold ends once.
#[tokio::test]
async fn what_only_the_worker_knows_of_keys_and_holds_is_done_again() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let account = fixture.account("ada", 1_000);
    let key = |number| RecordKey { id: RecordId(Uuid::from_u128(number)), fingerprint: 7 };
    let usage = || Bytes::from_static(b"usage");
    let keyed = |fingerprint| {
        let record = Some(RecordKey { fingerprint, ..key(1) });
        Act::Charge { actual: credits(5), must: false, usage: usage(), record }
    };
    let hold = |number, micro| Act::Hold {
        record: key(number),
        amount: credits(micro),
        expires_in_us: 60_000_000,
        must: false,
    };
    let settle =
        |number, micro| Act::SettleHold { record: key(number).id, actual: credits(micro), must: false, usage: usage() };
    let release = |number| Act::ReleaseHold { record: key(number).id, expired_only: false };
    let say = async |act: Act| ask(&fixture.ledger, &account, act).await;
    assert!(matches!(say(keyed(7)).await, Answer::Settled { .. }));
    for (number, micro) in [(2, 10), (3, 20), (4, 30)] {
        assert!(matches!(say(hold(number, micro)).await, Answer::Held { .. }));
    }
    assert!(matches!(say(settle(3, 15)).await, Answer::Settled { .. }));
    assert!(matches!(say(release(4)).await, Answer::Released { .. }));
    redis.command(&["FLUSHALL"]);
    assert!(matches!(say(keyed(7)).await, Answer::Repeated(Kept::Charged { charged_micro: 5, .. })));
    assert_eq!(say(keyed(8)).await, Answer::Mismatch);
    assert!(matches!(say(hold(2, 10)).await, Answer::Repeated(Kept::Held { held_micro: 10, .. })));
    assert!(matches!(say(settle(2, 4)).await, Answer::Settled { .. }));
    assert!(matches!(say(settle(2, 4)).await, Answer::Finished(Kept::Charged { charged_micro: 4, .. })));
    assert!(matches!(say(settle(3, 15)).await, Answer::Finished(Kept::Charged { charged_micro: 15, .. })));
    assert!(matches!(say(settle(4, 1)).await, Answer::Finished(Kept::Released { .. })));
    // Another worker may yet claim one that nobody here knows: not for ever unknown, only now.
    assert_eq!(say(settle(9, 1)).await, Answer::Backlogged);
    let balance = fixture.balance(&account).await;
    assert_eq!((balance.available, balance.held, balance.debt), (credits(976), credits(0), credits(0)));
    fixture.shut_down().await;
}

/// failures 3: a hold that one worker was told of and another released, neither in the store. Whichever claims first, the hold
/// ends released.
#[tokio::test]
async fn a_release_that_only_its_worker_remembers_is_not_dropped() {
    let redis = Redis::start();
    let fixture = Fixture::new(&redis).await;
    let (account, other) = (fixture.account("ada", 1_000), fixture.connect());
    let claimed = || fixture.metrics.reopened_entries.with_label_values(&["claimed"]).get();
    for round in 0..crate::recovery::rounds() {
        let record = RecordKey { id: RecordId(Uuid::from_u128(round as u128)), fingerprint: 7 };
        let hold = Act::Hold { record, amount: credits(10), expires_in_us: 3_600_000_000, must: false };
        let release = Act::ReleaseHold { record: record.id, expired_only: false };
        assert!(matches!(ask(&fixture.ledger, &account, hold).await, Answer::Held { .. }));
        assert!(matches!(ask(&other, &account, release).await, Answer::Released { .. }));
        let before = claimed();
        redis.command(&["FLUSHALL"]);
        eventually(Duration::from_secs(20), "both claim what they remember", || async {
            (claimed() >= before + 2).then_some(())
        })
        .await;
        // What a worker claims goes before what it is asked from then on.
        fixture.balance(&account).await;
        eventually(Duration::from_secs(20), "nothing is held", || async {
            let balance = fixture.balance(&account).await;
            (balance.held == credits(0) && balance.available == credits(1_000)).then_some(())
        })
        .await;
    }
    fixture.shut_down().await;
}
