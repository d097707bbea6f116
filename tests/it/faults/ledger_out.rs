//! Redis slow, gone, stopped, read-only, flushed of its scripts, restarted: a clear answer, and exact books afterwards.

use std::time::Duration;

use super::load::{Load, Seen, ask};
use super::{Kind, Scene, healed};
use crate::support::{Answer, Faregate, Options, Redis, eventually, fault_rounds};

/// The settled answers are exactly those that clients saw whole, plus at most those that broke off.
async fn exact(gate: &Faregate, seen: &Seen) {
    let books = healed(gate, "ann").await;
    let missing = seen.paid.iter().filter(|id| !books.has(id)).count();
    assert_eq!((missing, books.debt), (0, 0), "{seen:?}");
    let most = seen.paid.len() + seen.broken;
    assert!((seen.paid.len()..=most).contains(&books.usage.len()), "{} charged: {seen:?}", books.usage.len());
    let only = seen.statuses.keys().all(|status| [200, 503].contains(status));
    assert!(only, "an outage of the ledger is a 503: {:?}", seen.statuses);
}

async fn post(scene: &Scene, key: &str) -> Answer {
    scene.gate.http.post(&scene.gate.url("/v1/chat/completions"), key, &ask(false, "")).await
}

async fn recovers(scene: &Scene, key: &str) {
    eventually(Duration::from_secs(15), "requests pass again", || async {
        (post(scene, key).await.status == 200).then_some(())
    })
    .await;
}

/// No ledger, no service: nothing reaches the upstream, and the client learns when to come back.
async fn refuses(scene: &Scene, key: &str) {
    eventually(Duration::from_secs(15), "requests are refused", || async {
        (post(scene, key).await.status == 503).then_some(())
    })
    .await;
    let before = scene.sim.stats().requests();
    for _ in 0..5 {
        let answer = post(scene, key).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.json()["error"]["message"].is_string(), "{}", answer.text());
        assert!(answer.header("retry-after").parse::<u64>().is_ok(), "{:?}", answer.headers);
    }
    assert_eq!(scene.sim.stats().requests(), before, "a refused request was forwarded");
}

#[tokio::test]
async fn a_slow_redis_only_slows() {
    let scene = Scene::start(Kind::Redis);
    let key = scene.gate.user("ann", "100000").await;
    scene.proxy().delay(Duration::from_millis(30));
    let load = Load::start(&scene.gate.url(""), &key, 16);
    load.more(100).await;
    scene.proxy().delay(Duration::ZERO);
    let seen = load.stop().await;
    assert_eq!(seen.statuses.keys().collect::<Vec<_>>(), [&200]);
    exact(&scene.gate, &seen).await;
}

/// failures 46, 48: commands whose reply was lost have run; they are neither lost nor done twice.
#[tokio::test]
async fn lost_replies_and_cut_connections_charge_once() {
    let scene = Scene::start(Kind::Redis);
    let key = scene.gate.user("ann", "100000").await;
    let load = Load::start(&scene.gate.url(""), &key, 16);
    for round in 0..6_u64 {
        load.more(40).await;
        match round % 3 {
            0 => scene.proxy().cut(),
            1 => scene.proxy().cut_after(7 * round),
            _ => {
                scene.proxy().swallow_replies(true);
                tokio::time::sleep(Duration::from_millis(300)).await;
                scene.proxy().swallow_replies(false);
                scene.proxy().cut();
            }
        }
    }
    load.more(40).await;
    exact(&scene.gate, &load.stop().await).await;
}

/// failures 6, 7: an outage that comes later is noticed, lets nothing through, and ends by itself (litellm#42653, #33923).
#[tokio::test]
async fn an_unreachable_redis_refuses_and_recovers() {
    let scene = Scene::start(Kind::Redis);
    let key = scene.gate.user("ann", "100000").await;
    let load = Load::start(&scene.gate.url(""), &key, 8);
    load.more(50).await;
    let probe = scene.gate.user("probe", "1000").await;
    scene.proxy().refuse(true);
    refuses(&scene, &probe).await;
    scene.proxy().refuse(false);
    recovers(&scene, &probe).await;
    load.more(50).await;
    exact(&scene.gate, &load.stop().await).await;
    healed(&scene.gate, "probe").await;
}

/// A Redis that answers nothing, its connections open: like one that is gone. And it fences nobody.
#[tokio::test]
async fn a_stopped_redis_refuses_and_recovers() {
    let mut scene = Scene::start(Kind::Redis);
    let key = scene.gate.user("ann", "100000").await;
    let load = Load::start(&scene.gate.url(""), &key, 8);
    load.more(50).await;
    let probe = scene.gate.user("probe", "1000").await;
    scene.redis().pause();
    refuses(&scene, &probe).await;
    scene.redis().resume();
    recovers(&scene, &probe).await;
    load.more(50).await;
    exact(&scene.gate, &load.stop().await).await;
    assert_eq!(scene.gate.metric("faregate_sessions_fenced_total").await, 0.0, "nobody was dead");
}

/// failures 45: a demoted Redis answers READONLY; the client must not stay on it for good.
#[tokio::test]
async fn a_read_only_redis_refuses_and_recovers() {
    let mut scene = Scene::start(Kind::Redis);
    let key = scene.gate.user("ann", "100000").await;
    assert_eq!(post(&scene, &key).await.status, 200);
    // Demoted to a replica of nobody, as after a failover that leaves the old primary behind. A partial resynchronisation
    // never comes, so its data stays.
    scene.redis().command(&["replicaof", "127.0.0.1", "1"]);
    refuses(&scene, &key).await;
    scene.redis().command(&["replicaof", "no", "one"]);
    recovers(&scene, &key).await;
    scene.redis().command(&["config", "set", "min-replicas-to-write", "1"]);
    refuses(&scene, &key).await;
    scene.redis().command(&["config", "set", "min-replicas-to-write", "0"]);
    recovers(&scene, &key).await;
    healed(&scene.gate, "ann").await;
}

/// failures 49: NOSCRIPT after a failover or a SCRIPT FLUSH.
#[tokio::test]
async fn flushed_scripts_are_loaded_again() {
    let mut scene = Scene::start(Kind::Redis);
    let key = scene.gate.user("ann", "100000").await;
    let load = Load::start(&scene.gate.url(""), &key, 8);
    for _ in 0..5 {
        load.more(20).await;
        assert_eq!(scene.redis().command(&["script", "flush"]), "OK");
    }
    load.more(20).await;
    let seen = load.stop().await;
    assert_eq!(seen.statuses.keys().collect::<Vec<_>>(), [&200], "nobody notices");
    exact(&scene.gate, &seen).await;
}

/// Killed and started again under load, its append-only file written at once: nothing acknowledged is lost.
#[tokio::test]
async fn a_restarted_durable_redis_keeps_the_books() {
    let mut scene = Scene::start(Kind::Redis);
    let key = scene.gate.user("ann", "100000").await;
    let load = Load::start(&scene.gate.url(""), &key, 8);
    for _ in 0..fault_rounds() {
        load.more(50).await;
        scene.redis().restart();
    }
    load.more(50).await;
    exact(&scene.gate, &load.stop().await).await;
}

/// failures 50: a Redis that may evict balances is refused at start.
#[tokio::test]
async fn a_redis_that_evicts_is_refused() {
    let redis = Redis::with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let mut gate = Faregate::launch(Options::new().ledger(redis.url()));
    let status = gate.wait(Duration::from_secs(20));
    assert!(!status.success());
    assert!(gate.output().contains("noeviction"), "it says why: {}", gate.output());
}
