//! Clients, upstreams and gateways that die in the middle.

use std::time::Duration;

use super::load::{Load, ask};
use super::{Kind, Scene, TOKEN_PRICES, healed};
use crate::support::{Options, eventually, fault_rounds};

/// failures 17, 21: a client that leaves pays for what it got, and the upstream is left (litellm PR#33736, bifrost PR#3709).
async fn client_gone(kind: Kind) {
    let prices = TOKEN_PRICES.replace("max_output_tokens = 10", "max_output_tokens = 2000");
    let scene = Scene::with(kind, Options::new().config(&prices));
    let key = scene.gate.user("ann", "500").await;
    let mut body = ask(true, "");
    body["model"] = "sim-1@tokens=1000,chunk-ms=10".into();
    body["max_tokens"] = 1_000.into();
    let mut stream = scene.gate.http.stream(&scene.gate.url("/v1/chat/completions"), &key, &body).await;
    assert_eq!(stream.status, 200);
    let mut received = 0;
    while received < 20 {
        let chunk = stream.chunk().await.unwrap().unwrap();
        received += chunk.windows(5).filter(|window| window == b"data:").count();
    }
    assert!(scene.gate.held("ann").await > 0.0, "a running stream holds");
    drop(stream);
    let rows = scene.gate.usage_of("ann", 1).await;
    assert_eq!(rows[0]["estimated"], true, "{rows:?}");
    let output = rows[0]["output_tokens"].as_u64().unwrap();
    assert!((19..=200).contains(&output), "about what was delivered: {output}");
    let books = healed(&scene.gate, "ann").await;
    assert_eq!(books.usage.len(), 1);
    eventually(Duration::from_secs(5), "the upstream is left", || async {
        (scene.sim.stats().cut() == 1 && scene.sim.stats().open() == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_pays_what_it_got_embedded() {
    client_gone(Kind::Embedded).await;
}

#[tokio::test]
async fn a_client_that_leaves_pays_what_it_got_redis() {
    client_gone(Kind::Redis).await;
}

/// The upstream dies in the middle of streams: they end, and what they held comes back or is charged, once.
async fn upstream_killed(kind: Kind) {
    let scene = Scene::with(kind, Options::new().config(TOKEN_PRICES));
    let key = scene.gate.user("ann", "100").await;
    let url = scene.gate.url("/v1/chat/completions");
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = scene.gate.http.stream(&url, &key, &ask(true, "chunk-ms=200")).await;
        assert_eq!(stream.status, 200);
        stream.chunk().await.unwrap().unwrap();
        streams.push(stream);
    }
    scene.sim.kill();
    for stream in streams {
        let (_, proper) = tokio::time::timeout(Duration::from_secs(10), stream.rest()).await.expect("the stream ends");
        assert!(!proper, "a broken answer does not look like a whole one");
    }
    let books = healed(&scene.gate, "ann").await;
    assert!(books.charged < 50_000_000 && books.debt == 0, "never more than was delivered: {books:?}");
    let answer = scene.gate.http.post(&url, &key, &ask(false, "")).await;
    assert!(answer.status.is_server_error(), "{}", answer.text());
    assert_eq!(healed(&scene.gate, "ann").await.charged, books.charged, "errors are free");
}

#[tokio::test]
async fn an_upstream_killed_mid_stream_embedded() {
    upstream_killed(Kind::Embedded).await;
}

#[tokio::test]
async fn an_upstream_killed_mid_stream_redis() {
    upstream_killed(Kind::Redis).await;
}

/// kill -9 under load: every answer whose end a client saw is charged, the books balance, nothing stays held.
///
/// The last bytes wait for the settle as long as it takes: a machine busy with other tests may need more than the 250 ms
/// after which they leave anyway.
async fn gateway_killed(kind: Kind, options: Options) {
    let mut scene = Scene::with(kind, options.set("ledger.settle_wait_ms", 10_000));
    let key = scene.gate.user("ann", "100000").await;
    for _ in 0..fault_rounds() {
        let load = Load::start(&scene.gate.url(""), &key, 32);
        load.more(100).await;
        scene.gate.kill9();
        let seen = load.stop().await;
        scene.gate.restart();
        let books = healed(&scene.gate, "ann").await;
        let missing: Vec<&String> = seen.paid.iter().filter(|id| !books.has(id)).collect();
        assert!(missing.is_empty(), "{} of {} answers were not charged", missing.len(), seen.paid.len());
        assert_eq!(books.debt, 0);
        assert_eq!(books.charged, i64::try_from(books.usage.len()).unwrap() * 1_000_000, "each once, at its price");
    }
    let answer = scene.gate.http.post(&scene.gate.url("/v1/chat/completions"), &key, &ask(false, "")).await;
    assert_eq!(answer.status, 200, "it serves on");
}

/// failures 3, 22, 23: holds and spending lost with the process (litellm#27639, #33872, bifrost#3548).
#[tokio::test]
async fn a_gateway_killed_under_load_embedded() {
    gateway_killed(Kind::Embedded, Options::new()).await;
}

#[tokio::test]
async fn a_gateway_killed_under_load_redis() {
    gateway_killed(Kind::Redis, Options::new()).await;
}

#[tokio::test]
async fn a_gateway_killed_under_load_by_token_embedded() {
    gateway_killed(Kind::Embedded, Options::new().config(TOKEN_PRICES)).await;
}

#[tokio::test]
async fn a_gateway_killed_under_load_by_token_redis() {
    gateway_killed(Kind::Redis, Options::new().config(TOKEN_PRICES)).await;
}

/// One of two replicas dies for good: the other gives back what it held.
#[tokio::test]
async fn a_dead_replicas_holds_come_back() {
    let mut scene = Scene::with(Kind::Redis, Options::new().set("ledger.settle_wait_ms", 10_000));
    let other = scene.replica();
    let key = scene.gate.user("ann", "100000").await;
    let (load, staying) = (Load::start(&scene.gate.url(""), &key, 16), Load::start(&other.url(""), &key, 4));
    load.more(200).await;
    scene.gate.kill9();
    let mut seen = load.stop().await;
    staying.more(50).await;
    let rest = staying.stop().await;
    assert_eq!(rest.statuses.keys().collect::<Vec<_>>(), [&200], "the other replica does not notice");
    seen.paid.extend(rest.paid);
    let books = healed(&other, "ann").await;
    assert!(seen.paid.iter().all(|id| books.has(id)), "every answer that was seen is charged");
}

/// SIGTERM under load: what is in flight is finished and settled, nothing is lost, nothing is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_gateway_settles_everything() {
    let mut scene = Scene::start(Kind::Redis);
    let key = scene.gate.user("ann", "100000").await;
    let load = Load::start(&scene.gate.url(""), &key, 16);
    load.more(100).await;
    let status = scene.gate.terminate();
    let seen = load.stop().await;
    assert!(status.success(), "{status:?}");
    scene.gate.restart();
    let books = healed(&scene.gate, "ann").await;
    assert!(seen.paid.iter().all(|id| books.has(id)), "every answer that was seen is charged");
    assert_eq!(books.usage.len(), seen.paid.len(), "and nothing else: whatever was accepted was finished");
}

/// SIGTERM with a stream that outlasts the drain: at the deadline it is cut, and what was delivered is charged.
async fn drain_deadline(kind: Kind) {
    let prices = TOKEN_PRICES.replace("max_output_tokens = 10", "max_output_tokens = 20000");
    let options = Options::new().config(&prices).set("server.drain_timeout_ms", 500);
    let mut scene = Scene::with(kind, options);
    let key = scene.gate.user("ann", "5000").await;
    let mut body = ask(true, "");
    body["model"] = "sim-1@tokens=10000,chunk-ms=20".into();
    body["max_tokens"] = 10_000.into();
    let url = scene.gate.url("/v1/chat/completions");
    let mut stream = scene.gate.http.stream(&url, &key, &body).await;
    assert_eq!(stream.status, 200);
    let mut received = 0;
    while received < 20 {
        let chunk = stream.chunk().await.unwrap().unwrap();
        received += chunk.windows(5).filter(|window| window == b"data:").count();
    }
    scene.gate.signal("TERM");
    let (_, proper) = tokio::time::timeout(Duration::from_secs(10), stream.rest()).await.expect("the stream ends");
    assert!(!proper, "a broken answer does not look like a whole one");
    let status = scene.gate.wait(Duration::from_secs(10));
    assert!(status.success(), "{status:?}: {}", scene.gate.output());
    scene.gate.restart();
    let books = healed(&scene.gate, "ann").await;
    assert_eq!(books.usage.len(), 1, "{books:?}");
    assert!(books.charged >= 1_900_000, "what was delivered before the end is paid: {books:?}");
    assert!(books.charged < 1_000_000_000 && books.debt == 0, "and no more than that: {books:?}");
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_pays_what_it_got_embedded() {
    drain_deadline(Kind::Embedded).await;
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_pays_what_it_got_redis() {
    drain_deadline(Kind::Redis).await;
}
