//! The support's own tests: what the others stand on must hold.

use std::time::Duration;

use serde_json::json;

use super::{ChaosProxy, Http, Postgres, Redis, Sim, eventually};

#[test]
fn redis_survives_kill_9_when_durable() {
    let mut redis = Redis::durable();
    assert_eq!(redis.command(&["set", "a", "1"]), "OK");
    redis.restart();
    assert_eq!(redis.command(&["get", "a"]), "1");
}

#[test]
fn each_postgres_is_a_fresh_database() {
    let (one, other) = (Postgres::start(), Postgres::start());
    one.query("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    assert_eq!(one.query("SELECT n, 'x' FROM t"), ["1|x"]);
    assert_eq!(other.query("SELECT to_regclass('t')"), [""]);
}

#[tokio::test]
async fn the_chaos_proxy_swallows_and_cuts() {
    let redis = Redis::start();
    let proxy = ChaosProxy::start(redis.addr());
    let client = redis::Client::open(proxy.redis_url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut set = redis::cmd("SET");
    set.arg("a").arg("1");
    proxy.swallow_replies(true);
    let lost = tokio::time::timeout(Duration::from_millis(300), set.query_async::<()>(&mut connection)).await;
    assert!(!matches!(lost, Ok(Ok(()))), "the reply is swallowed");
    eventually(Duration::from_secs(5), "the command ran", || async {
        (redis.command(&["get", "a"]) == "1").then_some(())
    })
    .await;
    proxy.swallow_replies(false);
    proxy.cut();
    assert!(set.query_async::<()>(&mut connection).await.is_err(), "the connection is cut");
}

#[tokio::test]
async fn the_demo_upstream_answers_and_misbehaves() {
    let sim = Sim::start();
    let http = Http::new();
    let url = format!("{}/v1/chat/completions", sim.url());
    let ask = json!({"model": "sim-1", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5});
    let answer = http.post(&url, "", &ask).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["prompt_tokens"], 6);
    assert_eq!(answer["usage"]["completion_tokens"], 5);

    let mut streamed = ask.clone();
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let (body, whole) = http.stream(&url, "", &streamed).await.rest().await;
    let events = super::http::sse_data(&body);
    assert!(whole);
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert!(events[events.len() - 2].contains("\"completion_tokens\":5"), "{events:?}");

    streamed["model"] = "sim-1@reset-after=3".into();
    let (body, whole) = http.stream(&url, "", &streamed).await.rest().await;
    assert!(!whole);
    assert_eq!(super::http::sse_data(&body).len(), 3);
    eventually(Duration::from_secs(5), "the stats know", || async { (sim.stats().cut() == 1).then_some(()) }).await;
    assert_eq!((sim.stats().requests(), sim.stats().completed()), (3, 2));
}

#[test]
fn the_demo_upstream_echoes_websocket_frames() {
    let sim = Sim::start();
    let head = "GET /v1/any HTTP/1.1\r\nhost: sim\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // "hi", masked with zeros, and a close frame.
    let frames = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i', 0x88, 0x80, 0, 0, 0, 0];
    let answer = super::raw(sim.addr(), &[head.as_bytes(), &frames].concat(), Duration::from_secs(5));
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer:?}");
    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer:?}");
    assert!(answer.contains("\x02hi"), "{answer:?}");
}

#[tokio::test]
async fn the_stripe_simulator_answers_and_delivers_nothing_unasked() {
    let stripe = super::Stripe::start();
    let head =
        "GET /v1/customers HTTP/1.1\r\nhost: sim\r\nauthorization: Bearer sk_test_it\r\nconnection: close\r\n\r\n";
    let addr = stripe.url().strip_prefix("http://").unwrap().parse().unwrap();
    let answer = super::raw(addr, head.as_bytes(), Duration::from_secs(5));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"data\": []"), "{answer:?}");
    assert!(stripe.delivered(Duration::from_secs(5)).await && stripe.deliveries().is_empty());
}
