//! What goes wrong: clients that leave, upstreams that fail, a balance that runs out, a ledger that is not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use faregate::config::{ClientGone, Config, OnLedgerDown};
use faregate::ledger::{Act, Connect, Ledger, LedgerError, Op, Reply, SharedLedger, Status};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::rig::{Rig, SOON, by_token, settings, upstream};
use crate::support::http::{request, sse_data};
use crate::support::{Sim, eventually, free_port};

fn stream(model: &str) -> Value {
    json!({"model": model, "stream": true, "messages": [{"role": "user", "content": "hello"}]})
}

async fn rig_with(sim: &Sim, change: impl FnOnce(&mut Config)) -> (Rig, String) {
    let mut config = settings(&sim.url());
    change(&mut config);
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "1000").await;
    (rig, key)
}

fn set_policy(config: &mut Config, policy: ClientGone) {
    for route in config.routes.values_mut() {
        route.client_gone = policy;
    }
}

/// Leaves a stream after its first piece.
async fn leave_midway(rig: &Rig, key: &str, model: &str) {
    let mut answer = rig.http.stream(&rig.url("/v1/chat/completions"), key, &stream(model)).await;
    assert_eq!(answer.status, StatusCode::OK);
    answer.chunk().await.unwrap().unwrap();
    answer.chunk().await.unwrap().unwrap();
    drop(answer);
}

const SLOW: &str = "gpt@tokens=20,chunk-ms=30";

/// failures 17: no stated policy for a client that disconnects mid-stream (litellm PR#33736, new-api#7062, #4168).
#[tokio::test]
async fn a_client_that_leaves_pays_for_what_was_delivered() {
    let sim = Sim::start();
    let (rig, key) = rig_with(&sim, by_token).await;
    leave_midway(&rig, &key, SLOW).await;
    let rows = rig.usage("ann", 1).await;
    let usage = &rows[0].usage;
    assert!(usage.estimated && usage.streamed);
    assert!((1..19).contains(&usage.output_tokens), "{usage:?}");
    assert_eq!(usage.status, 200);
    assert!(!rows[0].charged.is_zero());
    rig.idle("ann").await;
    assert_eq!(rig.requests("openai", "client_gone"), 1);
    eventually(SOON, "the upstream is told", || async { (sim.stats().cut() == 1).then_some(()) }).await;
}

/// failures 17 and 21: under `drain` the whole answer is read, and charged as the upstream reports it.
#[tokio::test]
async fn under_drain_the_rest_is_read_and_charged_as_reported() {
    let sim = Sim::start();
    let (rig, key) = rig_with(&sim, |config| {
        by_token(config);
        set_policy(config, ClientGone::Drain);
    })
    .await;
    leave_midway(&rig, &key, SLOW).await;
    let rows = rig.usage("ann", 1).await;
    assert_eq!(rows[0].usage.output_tokens, 20);
    assert!(!rows[0].usage.estimated);
    // Before the head came: the wait goes on too.
    let slow = json!({"model": "gpt@first-byte-ms=300", "messages": [{"role": "user", "content": "hello"}]});
    let asked = request(Method::POST, &rig.url("/v1/chat/completions"), &key, Some(&slow));
    let gone = tokio::time::timeout(Duration::from_millis(100), rig.http.send(asked)).await;
    assert!(gone.is_err());
    let rows = rig.usage("ann", 2).await;
    assert_eq!(rows[0].usage.output_tokens, 13);
    assert!(!rows[0].charged.is_zero());
    rig.idle("ann").await;
}

/// failures 17: under `void` whoever leaves pays nothing; under `partial` nothing delivered is nothing to pay.
#[tokio::test]
async fn under_void_and_before_the_first_byte_nothing_is_paid() {
    let sim = Sim::start();
    let (rig, key) = rig_with(&sim, |config| {
        by_token(config);
        set_policy(config, ClientGone::Void);
    })
    .await;
    leave_midway(&rig, &key, SLOW).await;
    assert!(rig.usage("ann", 1).await[0].charged.is_zero());
    let (rig, key) = rig_with(&sim, by_token).await;
    let slow = json!({"model": "gpt@first-byte-ms=60000", "messages": [{"role": "user", "content": "hello"}]});
    let asked = request(Method::POST, &rig.url("/v1/chat/completions"), &key, Some(&slow));
    let gone = tokio::time::timeout(Duration::from_millis(200), rig.http.send(asked)).await;
    assert!(gone.is_err());
    let rows = rig.usage("ann", 1).await;
    assert!(rows[0].charged.is_zero());
    assert_eq!(rows[0].usage.status, 499);
    assert_eq!(rig.idle("ann").await.available.to_string(), "1000");
}

#[tokio::test]
async fn half_a_stream_is_charged_as_delivered_and_cut() {
    let sim = Sim::start();
    let (rig, key) = rig_with(&sim, by_token).await;
    let url = rig.url("/v1/chat/completions");
    let answer = rig.http.stream(&url, &key, &stream("gpt@tokens=20,reset-after=6")).await;
    let (text, proper) = answer.rest().await;
    assert!(!proper, "a broken answer must not look whole: {:?}", String::from_utf8_lossy(&text));
    let rows = rig.usage("ann", 1).await;
    assert!(rows[0].usage.estimated && !rows[0].charged.is_zero(), "{rows:?}");
    assert!(rows[0].usage.output_tokens < 20);
    assert_eq!(rig.requests("openai", "upstream_cut"), 1);
    // A short answer that breaks off before any of it was passed on is free.
    let body = json!({"model": "gpt@split=20,reset-after=2", "messages": [{"role": "user", "content": "x"}]});
    let answer = rig.http.post(&url, &key, &body).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.json()["error"]["code"], "upstream_broke_off");
    assert!(rig.usage("ann", 2).await[0].charged.is_zero());
    rig.idle("ann").await;
}

#[tokio::test]
async fn a_whole_stream_by_token_is_charged_as_reported() {
    let sim = Sim::start();
    let (rig, key) = rig_with(&sim, by_token).await;
    let answer = rig.http.stream(&rig.url("/v1/chat/completions"), &key, &stream("gpt@tokens=20")).await;
    assert!(answer.headers.contains_key("x-credits-reserved"));
    let (text, proper) = answer.rest().await;
    assert!(proper);
    let data = sse_data(&text);
    assert_eq!(data.last().map(String::as_str), Some("[DONE]"));
    assert!(!data.iter().any(|event| event.contains("\"usage\":{")), "usage that nobody asked for is hidden");
    // The end was seen, so it is charged already, whatever happens next.
    let charged = 1000.0 - rig.available("ann").await.parse::<f64>().unwrap();
    let rows = rig.usage("ann", 1).await;
    assert_eq!(rows[0].usage.output_tokens, 20);
    assert!((charged - rows[0].charged.to_string().parse::<f64>().unwrap()).abs() < 1e-6);
    assert!(!rows[0].usage.estimated);
}

/// An upstream, or a cache before it, may know how long its stream is.
#[tokio::test]
async fn a_stream_of_known_length_is_read_like_any_other() {
    let events = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"}}]}\n\n\
        data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":11}}\n\ndata: [DONE]\n\n";
    let length = events.len();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n");
    let mut tasks = JoinSet::new();
    let (addr, _asked) = super::tls::canned(head + events, &mut tasks).await;
    let mut config = settings(&format!("http://{addr}"));
    by_token(&mut config);
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "1000").await;
    let answer = rig.http.stream(&rig.url("/v1/chat/completions"), &key, &stream("gpt")).await;
    let (text, proper) = answer.rest().await;
    assert!(proper && sse_data(&text).last().is_some_and(|last| last == "[DONE]"));
    let rows = rig.usage("ann", 1).await;
    assert_eq!((rows[0].usage.input_tokens, rows[0].usage.output_tokens, rows[0].usage.estimated), (7, 11, false));
}

#[tokio::test]
async fn a_balance_that_cannot_pay_the_estimate_clamps_the_output() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    by_token(&mut config);
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "3").await;
    let body = json!({"model": "gpt@tokens=900", "max_tokens": 1000, "messages": [{"role": "user", "content": "x"}]});
    let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let seen: Value = serde_json::from_slice(&sim.stats().last().unwrap().body).unwrap();
    let limit = seen["max_tokens"].as_u64().unwrap();
    assert!((1..30).contains(&limit), "{seen}");
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    let balance = rig.idle("ann").await;
    assert!(balance.debt.is_zero());
    let key = rig.user("bob", "0.05").await;
    let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &body).await;
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
}

/// A stream without a limit of its own, longer than its price list reckoned with, takes more while it runs, and ends in
/// the protocol's own form when there is no more.
#[tokio::test]
async fn a_stream_that_outgrows_its_hold_extends_it_and_ends_properly_when_the_balance_is_used_up() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    by_token(&mut config);
    config.prices.get_mut("message").unwrap().models[0].max_output_tokens = 20;
    config.metering.extend_tokens = 10;
    let rig = Rig::start(config).await;
    let url = rig.url("/v1/chat/completions");
    let rich = rig.user("rich", "1000").await;
    let unlimited = stream("gpt@tokens=200,usage=none");
    let (text, proper) = rig.http.stream(&url, &rich, &unlimited).await.rest().await;
    assert!(proper && sse_data(&text).last().is_some_and(|last| last == "[DONE]"));
    let rows = rig.usage("rich", 1).await;
    assert!(rows[0].usage.output_tokens > 100, "{rows:?}");
    let poor = rig.user("poor", "8").await;
    let (text, proper) = rig.http.stream(&url, &poor, &unlimited).await.rest().await;
    let data = sse_data(&text);
    assert!(proper && data.last().is_some_and(|last| last == "[DONE]"), "{data:?}");
    assert!(data.iter().any(|event| event.contains("\"finish_reason\":\"length\"")), "{data:?}");
    let balance = rig.idle("poor").await;
    assert!(balance.debt.is_zero(), "{balance:?}");
    assert_eq!(rig.requests("openai", "credits_exhausted"), 1);
}

/// failures 8: passthrough routes went unmetered (bifrost#2873, litellm PR#38111).
#[tokio::test]
async fn what_cannot_be_metered_is_refused_or_charged_per_request() {
    let sim = Sim::start();
    let (rig, key) = rig_with(&sim, by_token).await;
    for path in ["/v1/audio/speech", "/v1/batches", "/v1/moderations", "/echo/app", "/v1/files", "/v1/messages/batches"]
    {
        let answer = rig.http.post(&rig.url(path), &key, &super::chat("x")).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}: {}", answer.text());
    }
    let mut body = super::chat("x");
    body["background"] = true.into();
    body["input"] = "x".into();
    let answer = rig.http.post(&rig.url("/v1/responses"), &key, &body).await;
    assert!(answer.status.is_client_error(), "{}", answer.text());
    assert_eq!(sim.stats().requests(), 0);
    let (rig, key) = rig_with(&sim, |_| {}).await;
    rig.http.post(&rig.url("/v1/echo/anything"), &key, &super::chat("x")).await;
    rig.http.post(&rig.url("/echo/app"), &key, &super::chat("x")).await;
    let rows = rig.usage("ann", 2).await;
    assert_eq!(rows.iter().filter(|row| row.charged.to_string() == "1").count(), 2, "{rows:?}");
    assert_eq!(rig.http.post(&rig.url("/v1/batches"), &key, &super::chat("x")).await.status, StatusCode::FORBIDDEN);
}

/// What is compressed cannot be metered: by token it is refused, per request it passes unread.
#[tokio::test]
async fn an_answer_compressed_against_our_wish_is_never_metered_by_its_size() {
    let sim = Sim::start();
    let (rig, key) = rig_with(&sim, by_token).await;
    for mut body in [super::chat("x"), stream("x")] {
        body["model"] = "gpt@encoding=gzip,usage=none,tokens=500".into();
        let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "upstream_encoding");
    }
    assert!(rig.usage("ann", 2).await.iter().all(|row| row.charged.is_zero()));
    let mut plain = super::chat("x");
    plain["model"] = "gpt@encoding=identity".into();
    let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &plain).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let (rig, key) = rig_with(&sim, |_| {}).await;
    let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &stream("gpt@encoding=br")).await;
    assert_eq!((answer.status, answer.header("content-encoding")), (StatusCode::OK, "br"));
    let rows = rig.usage("ann", 1).await;
    assert_eq!((rows[0].charged.to_string().as_str(), rows[0].usage.output_tokens), ("1", 0), "{rows:?}");
}

fn two_upstreams(config: &mut Config, first: &str, second: &str) {
    config.upstreams.insert("first".into(), upstream(first));
    config.upstreams.insert("second".into(), upstream(second));
    for route in config.routes.values_mut() {
        route.upstreams = vec!["first".into(), "second".into()];
    }
}

#[tokio::test]
async fn a_dead_upstream_is_passed_over_and_the_answer_paid_once() {
    let sim = Sim::start();
    let dead = format!("http://127.0.0.1:{}", free_port());
    let (rig, key) = rig_with(&sim, |config| {
        two_upstreams(config, &dead, &sim.url());
        config.upstreams.get_mut("first").unwrap().breaker_failures = 3;
    })
    .await;
    for _ in 0..6 {
        let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &super::chat("x")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
    assert_eq!(rig.idle("ann").await.available.to_string(), "994");
    let rows = rig.usage("ann", 6).await;
    assert!(rows.iter().all(|row| row.usage.upstream.as_deref() == Some("second")));
    assert_eq!(rig.metrics.upstream_open.with_label_values(&["first"]).get(), 1, "and left alone after three failures");
    assert_eq!(rig.metrics.upstream_errors.with_label_values(&["first", "connect"]).get(), 3);
    // A body that passes through unread can still go elsewhere when the connection was never made.
    let body = Value::String("x".repeat(200_000));
    let answer = rig.http.post(&rig.url("/echo/app"), &key, &body).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn retries_stay_within_their_number_and_their_budget() {
    let sim = Sim::start();
    let (rig, key) = rig_with(&sim, |config| {
        config.upstream.breaker_failures = 0;
        for route in config.routes.values_mut() {
            route.max_retries = 2;
            route.retry_budget_percent = 20;
        }
    })
    .await;
    let post = async |model: String| {
        let mut body = super::chat("x");
        body["model"] = model.into();
        rig.http.post(&rig.url("/v1/chat/completions"), &key, &body).await
    };
    let answer = post("gpt@fail-first=2,fail-key=a".into()).await;
    assert_eq!(answer.status, StatusCode::OK, "the third attempt succeeds: {}", answer.text());
    let before = sim.stats().requests();
    let answer = post("gpt@fail-first=3,fail-key=b".into()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(sim.stats().requests() - before, 3);
    assert_eq!(rig.idle("ann").await.available.to_string(), "999", "one answer, one credit");
    // Ten retries are saved up, four are spent; each of thirty requests earns a fifth of another.
    let before = sim.stats().requests();
    for _ in 0..30 {
        post("gpt@status=503".into()).await;
    }
    let retries = sim.stats().requests() - before - 30;
    assert!((6..=13).contains(&retries), "{retries}");
    assert_eq!(post("gpt@status=500".into()).await.status.as_u16(), 500, "a 500 is an answer, not retried");
}

#[tokio::test]
async fn an_open_breaker_answers_at_once_and_tries_again_later() {
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let spare = Sim::start();
    let (rig, key) = rig_with(&spare, |config| {
        config.upstream = upstream(&url);
        config.upstream.breaker_failures = 2;
        config.upstream.breaker_open_ms = 400;
        config.routes.get_mut("openai").unwrap().max_retries = 0;
    })
    .await;
    let post = async || rig.http.post(&rig.url("/v1/chat/completions"), &key, &super::chat("x")).await;
    assert_eq!(post().await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(post().await.status, StatusCode::BAD_GATEWAY);
    let answer = post().await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "1");
    let _sim = Sim::start_at(([127, 0, 0, 1], port).into());
    eventually(SOON, "the probe succeeds", || async { (post().await.status == StatusCode::OK).then_some(()) }).await;
    assert_eq!(post().await.status, StatusCode::OK);
    assert_eq!(rig.idle("ann").await.debt.to_string(), "0");
}

#[tokio::test]
async fn upstream_timeouts() {
    let sim = Sim::start();
    let (rig, key) = rig_with(&sim, |config| {
        config.upstream.first_byte_timeout_ms = 200;
        config.upstream.idle_timeout_ms = 200;
        config.upstream.connect_timeout_ms = 200;
        // TEST-NET-1 answers nobody.
        config.upstreams.insert("nowhere".into(), upstream("http://192.0.2.1:9"));
        config.upstreams.get_mut("nowhere").unwrap().connect_timeout_ms = 200;
        let route = config.routes.get_mut("app").unwrap();
        route.upstreams = vec!["nowhere".into()];
        route.max_retries = 0;
    })
    .await;
    let began = Instant::now();
    let url = rig.url("/v1/chat/completions");
    let mut body = super::chat("x");
    body["model"] = "gpt@first-byte-ms=60000".into();
    let answer = rig.http.post(&url, &key, &body).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.json()["error"]["code"], "upstream_timeout");
    let answer = rig.http.stream(&url, &key, &stream("gpt@tokens=20,stall-after=4")).await;
    let (_, proper) = answer.rest().await;
    assert!(!proper);
    let answer = rig.http.get(&rig.url("/echo/app"), &key).await;
    // Where the network itself says no, that is as good.
    assert!(matches!(answer.status.as_u16(), 502 | 504), "{}", answer.text());
    assert!(began.elapsed() < Duration::from_secs(5));
    rig.idle("ann").await;
    let rows = rig.usage("ann", 3).await;
    assert!(rows[2].charged.is_zero() && rows[0].charged.is_zero(), "{rows:?}");
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced_quietly() {
    let port = free_port();
    let sim = Sim::start_at(([127, 0, 0, 1], port).into());
    let (rig, key) = rig_with(&sim, |config| config.workers = 1).await;
    let post = async || rig.http.post(&rig.url("/v1/chat/completions"), &key, &super::chat("x")).await;
    assert_eq!(post().await.status, StatusCode::OK);
    assert_eq!(post().await.status, StatusCode::OK);
    let connects = rig.metrics.upstream_connects.with_label_values(&["default"]);
    assert_eq!(connects.get(), 1, "connections are used again");
    sim.kill();
    let _sim = Sim::start_at(([127, 0, 0, 1], port).into());
    assert_eq!(post().await.status, StatusCode::OK);
    assert_eq!(connects.get(), 2);
    assert_eq!(rig.idle("ann").await.available.to_string(), "997");
}

#[tokio::test]
async fn a_drain_lets_answers_end_and_settles_what_does_not() {
    let sim = Sim::start();
    let (mut rig, key) = rig_with(&sim, |config| {
        by_token(config);
        config.server.drain_timeout_ms = 1_000;
    })
    .await;
    let url = rig.url("/v1/chat/completions");
    let ending = rig.http.stream(&url, &key, &stream("gpt@tokens=10,chunk-ms=30")).await;
    let mut endless = rig.http.stream(&url, &key, &stream("gpt@tokens=900,chunk-ms=100")).await;
    endless.chunk().await.unwrap().unwrap();
    let workers = rig.stop();
    let (text, proper) = ending.rest().await;
    assert!(proper && sse_data(&text).last().is_some_and(|last| last == "[DONE]"));
    let (_, proper) = endless.rest().await;
    assert!(!proper, "cut at the deadline");
    workers.await.unwrap().unwrap();
    let rows = rig.usage("ann", 2).await;
    assert!(rows.iter().all(|row| !row.charged.is_zero()), "{rows:?}");
    assert_eq!(rig.requests("openai", "drained"), 1);
    rig.idle("ann").await;
    assert_eq!(rig.metrics.holds_in_flight.get(), 0);
    assert!(std::net::TcpStream::connect(rig.addr).is_err(), "nobody listens any longer");
}

/// Pretends, on demand, that the ledger is out of reach, or that it takes settles and is silent about them.
struct Moody {
    inner: Arc<dyn Connect>,
    moods: Arc<Moods>,
}

#[derive(Debug, Default)]
struct Moods {
    down: AtomicBool,
    silent: AtomicBool,
}

#[derive(Debug)]
struct MoodyLedger {
    inner: SharedLedger,
    moods: Arc<Moods>,
    /// Kept, so that their replies never come.
    unsaid: std::sync::Mutex<Vec<tokio::sync::oneshot::Sender<Result<faregate::ledger::Answer, LedgerError>>>>,
}

impl Connect for Moody {
    fn connect(&self, tasks: &TaskTracker, stop: CancellationToken) -> SharedLedger {
        let inner = self.inner.connect(tasks, stop);
        Arc::new(MoodyLedger { inner, moods: self.moods.clone(), unsaid: Default::default() })
    }
}

impl Ledger for MoodyLedger {
    fn submit(&self, op: Op) -> Reply {
        let settles = matches!(op.act, Act::Settle { .. } | Act::Charge { .. });
        if self.moods.down.load(Ordering::SeqCst) && !settles {
            return Reply::now(Err(LedgerError::Unavailable));
        }
        let reply = self.inner.submit(op);
        if settles && self.moods.silent.load(Ordering::SeqCst) {
            let (said, reply) = tokio::sync::oneshot::channel();
            self.unsaid.lock().unwrap().push(said);
            return Reply::Later(reply);
        }
        reply
    }

    fn status(&self) -> Status {
        if self.moods.down.load(Ordering::SeqCst) { Status::Unavailable } else { self.inner.status() }
    }
}

async fn moody(config: Config) -> (Rig, Arc<Moods>) {
    let moods = Arc::new(Moods::default());
    let theirs = moods.clone();
    let rig = Rig::with_ledger(config, move |inner| Arc::new(Moody { inner, moods: theirs.clone() })).await;
    (rig, moods)
}

/// failures 7: in an outage of the hot store the strict mode still let requests through (litellm#33923).
#[tokio::test]
async fn without_the_ledger_nothing_rides_unless_the_route_says_so() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    let app = config.routes.get_mut("app").unwrap();
    app.on_ledger_down = OnLedgerDown::Allow;
    app.max_uncharged_requests = 2;
    let (rig, moods) = moody(config).await;
    let key = rig.user("ann", "9").await;
    assert_eq!(rig.http.get(&rig.url("/echo/app"), &key).await.status, StatusCode::OK);
    moods.down.store(true, Ordering::SeqCst);
    let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &super::chat("x")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.json()["error"]["code"], "ledger_unavailable");
    // What costs nothing is recorded through the ledger too, and must not pile up.
    assert_eq!(rig.http.get(&rig.url("/v1/models"), &key).await.status, StatusCode::SERVICE_UNAVAILABLE);
    // The charges of those that ride are not acknowledged: after two it is enough.
    moods.silent.store(true, Ordering::SeqCst);
    for expected in [200, 200, 503] {
        let answer = rig.http.get(&rig.url("/echo/app"), &key).await;
        assert_eq!(answer.status.as_u16(), expected, "{}", answer.text());
    }
    moods.down.store(false, Ordering::SeqCst);
    assert_eq!(rig.available("ann").await, "6", "what rode was charged");
    assert_eq!(rig.metrics.credits.with_label_values(&["uncharged"]).get(), 2_000_000);
}

#[tokio::test]
async fn an_answers_end_waits_for_its_settle_but_not_for_ever() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    config.ledger.settle_wait_ms = 400;
    let (rig, moods) = moody(config).await;
    let key = rig.user("ann", "9").await;
    moods.silent.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let mut answer = rig.http.stream(&rig.url("/v1/chat/completions"), &key, &stream("gpt@tokens=3")).await;
    let mut before = Vec::new();
    while let Some(piece) = answer.chunk().await {
        let piece = piece.unwrap();
        if began.elapsed() < Duration::from_millis(350) {
            before.extend_from_slice(&piece);
        }
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    let before = String::from_utf8(before).unwrap();
    assert!(before.contains("\"content\"") && !before.contains("[DONE]"), "only the end waits: {before}");
    let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &super::chat("x")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(rig.metrics.unacknowledged_answers.get(), 2);
    assert_eq!(rig.available("ann").await, "7");
}

/// failures 12 and concurrency: what holds block, and who is told to come back.
#[tokio::test]
async fn limits_of_a_plan() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    let plan = faregate::config::Plan { requests_per_minute: 3, concurrency: 1, ..Default::default() };
    config.plans.insert("tight".into(), plan);
    let rig = Rig::start(config).await;
    let key = rig.user_on("ann", "100", "tight").await;
    let url = rig.url("/v1/chat/completions");
    let mut slow = rig.http.stream(&url, &key, &stream(SLOW)).await;
    slow.chunk().await.unwrap().unwrap();
    assert_eq!(slow.headers["x-ratelimit-limit-requests"], "3");
    for _ in 0..5 {
        let answer = rig.http.post(&url, &key, &super::chat("x")).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(answer.text().contains("concurrent requests"), "{}", answer.text());
    }
    assert!(slow.rest().await.1);
    for expected in [200, 200, 429] {
        let answer = rig.http.post(&url, &key, &super::chat("x")).await;
        assert_eq!(answer.status.as_u16(), expected, "a refusal consumes no limit: {}", answer.text());
        if expected == 429 {
            assert!(answer.header("retry-after").parse::<u64>().unwrap() > 0);
            assert!(answer.text().contains("requests per minute"));
        }
    }
    let key = rig.user("bob", "1.5").await;
    rig.hold("bob", "1").await;
    let answer = rig.http.post(&url, &key, &super::chat("x")).await;
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(answer.header("retry-after"), "1", "live holds are all that blocks");
}
