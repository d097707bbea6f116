//! Each way to lose data, over and over.

use std::time::Duration;

use super::{Scene, exact, rounds, serves};
use crate::support::{Options, Redis, eventually};

/// failures 5, 15, 23, 28, 46: Redis is emptied under load. Two replicas lose their sessions at once, balances come back
/// from the store, and what was acknowledged and not yet flushed is charged from what they remember.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_emptied_under_load() {
    let scene = Scene::start(Redis::durable());
    let other = scene.another();
    let gates = [&scene.gate, &other];
    for round in 0..rounds() {
        let user = format!("emptied-{round}");
        let load = scene.load(&user, &gates).await;
        load[0].more(60).await;
        let before = scene.metric("faregate_ledger_reopenings_total", &gates).await;
        assert_eq!(scene.redis.command(&["FLUSHALL"]), "OK");
        load[0].more(60).await;
        load[1].more(10).await;
        let mut seen = Vec::new();
        for load in load {
            seen.push(load.stop().await);
        }
        exact(&scene.gate, &user, &seen).await;
        let after = scene.metric("faregate_ledger_reopenings_total", &gates).await;
        assert!(after > before, "it is told");
        let of = |what| format!("faregate_ledger_reopened_entries_total{{what=\"{what}\"}}");
        let missing = scene.metric(&of("missing"), &gates).await;
        assert!(missing > 0.0, "how much was at risk is told");
    }
}

/// failures 47: a replica that lacks the last writes is promoted under load, the gateways alive: no credit comes back that
/// was spent, no settle counts twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_replica_is_promoted_under_load() {
    let mut scene = Scene::start(Redis::start());
    let other = scene.another();
    let gates = [&scene.gate, &other];
    for round in 0..rounds() {
        let replica = Redis::start();
        replica.command(&["REPLICAOF", "127.0.0.1", &scene.redis.port().to_string()]);
        let user = format!("stale-{round}");
        let load = scene.load(&user, &gates).await;
        load[0].more(40).await;
        eventually(Duration::from_secs(20), "the replica follows", || async {
            replica.command(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
        })
        .await;
        load[0].more(10).await;
        // It hears nothing from here on: its primary looks alive to it, and to everybody else.
        replica.command(&["REPLICAOF", "NO", "ONE"]);
        replica.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
        load[0].more(40).await;
        scene.proxy.aim(replica.addr());
        scene.proxy.cut();
        load[0].more(60).await;
        load[1].more(10).await;
        let mut seen = Vec::new();
        for load in load {
            seen.push(load.stop().await);
        }
        exact(&scene.gate, &user, &seen).await;
        scene.redis = replica;
    }
    let reopened = scene.metric("faregate_ledger_reopenings_total", &gates).await;
    assert!(reopened >= 1.0, "it was noticed: {reopened}");
}

/// failures 22, 23: Redis is killed, and comes back from an old append-only file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_comes_back_from_an_old_file() {
    let mut scene = Scene::start(Redis::durable());
    for round in 0..rounds() {
        let user = format!("old-{round}");
        let load = scene.load(&user, &[&scene.gate]).await.remove(0);
        load.more(30).await;
        let old = scene.redis.files();
        load.more(40).await;
        scene.redis.kill9();
        scene.redis.put_back(&old);
        scene.redis.restart();
        load.more(40).await;
        let seen = load.stop().await;
        exact(&scene.gate, &user, &[seen]).await;
    }
    assert!(scene.gate.metric("faregate_ledger_reopenings_total").await >= 1.0);
}

/// A gateway that starts over a Redis that lost data opens it anew by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_starts_over_an_emptied_redis() {
    let mut scene = Scene::start(Redis::durable());
    let load = scene.load("ann", &[&scene.gate]).await.remove(0);
    load.more(40).await;
    let seen = load.stop().await;
    assert!(scene.gate.terminate().success());
    scene.redis.command(&["FLUSHALL"]);
    scene.gate.restart();
    exact(&scene.gate, "ann", &[seen]).await;
    serves(&scene, "ann").await;
}

/// A stopped Redis loses nothing, and nobody is fenced: sessions go on where they were. It stands still for half as long again
/// as a session may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stands_still_fences_nobody() {
    let still = u64::try_from(stall().as_millis()).unwrap();
    let settings = Options::new()
        .set("ledger.fence_after_ms", still * 2 / 3)
        .set("ledger.unacknowledged_limit_ms", still / 3)
        .set("store.timeout_ms", still / 2);
    let mut scene = Scene::with(Redis::durable(), settings);
    let load = scene.load("ann", &[&scene.gate]).await.remove(0);
    for _ in 0..rounds() {
        load.more(20).await;
        scene.redis.pause();
        tokio::time::sleep(stall()).await;
        scene.redis.resume();
    }
    load.more(40).await;
    exact(&scene.gate, "ann", &[load.stop().await]).await;
    assert_eq!(scene.gate.metric("faregate_sessions_fenced_total").await, 0.0);
    assert_eq!(scene.gate.metric("faregate_ledger_reopenings_total").await, 0.0);
}

/// How long something stands still: FAREGATE_FAULT_STALL_MS, three seconds without it.
fn stall() -> Duration {
    let given = std::env::var("FAREGATE_FAULT_STALL_MS").ok().map(|ms| ms.parse().expect("milliseconds"));
    Duration::from_millis(given.unwrap_or(3_000))
}
