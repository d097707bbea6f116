//! Clients that take nothing, and bodies that together would take too much.

use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::Bytes;
use faregate::config::Config;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use super::rig::{Rig, SOON, by_token, settings};
use crate::support::http::request;
use crate::support::{Sim, eventually};

const WRITE_TIMEOUT_MS: u64 = 300;

fn stream(model: &str) -> Value {
    json!({"model": model, "stream": true, "messages": [{"role": "user", "content": "hello"}]})
}

async fn impatient(sim: &Sim, price: impl FnOnce(&mut Config)) -> (Rig, String) {
    let mut config = settings(&sim.url());
    price(&mut config);
    config.server.write_timeout_ms = WRITE_TIMEOUT_MS;
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "1000").await;
    (rig, key)
}

/// The client is gone, it pays for what it was given, and nobody holds anything any longer.
async fn let_go(rig: &Rig) {
    let rows = rig.usage("ann", 1).await;
    assert!(rows[0].usage.estimated && !rows[0].charged.is_zero(), "{rows:?}");
    assert_eq!(rig.requests("openai", "client_gone"), 1);
    rig.idle("ann").await;
    assert_eq!(rig.metrics.streams.get(), 0);
}

/// Without the timer the stream's hold and its connection to the upstream would stay for as long as the client likes.
#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let sim = Sim::start();
    let (rig, key) = impatient(&sim, |_| {}).await;
    // More than any socket buffers.
    let body = stream("gpt@tokens=1000000,chunk-tokens=1000").to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(rig.addr).unwrap();
    connection.write_all((head + &body).as_bytes()).unwrap();
    // Its upstream is told too, but may have handed all of it to the kernel by then: the other test looks at that.
    let_go(&rig).await;
    // What was under way still arrives, and then the end, which is no proper one.
    let reading = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        connection.set_read_timeout(Some(SOON)).unwrap();
        let _ = connection.read_to_end(&mut all);
        all
    });
    assert!(!reading.await.unwrap().ends_with(b"0\r\n\r\n"));
}

async fn http2(rig: &Rig, window: u32) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let stream = tokio::net::TcpStream::connect(rig.addr).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn ask(rig: &Rig, key: &str, body: &Value) -> Request<Full<Bytes>> {
    request(Method::POST, &rig.url("/v1/chat/completions"), key, Some(body))
}

/// Over HTTP/2 the connection stays alive and well; only the stream gets no window.
#[tokio::test]
async fn a_stream_without_a_window_is_reset_and_the_others_go_on() {
    let sim = Sim::start();
    let (rig, key) = impatient(&sim, by_token).await;
    let mut sender = http2(&rig, 64).await;
    let stuck = stream("gpt@tokens=1000,chunk-ms=10");
    let answer = sender.send_request(ask(&rig, &key, &stuck)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    // Nobody reads it.
    let_go(&rig).await;
    eventually(SOON, "the upstream is told", || async { (sim.stats().cut() == 1).then_some(()) }).await;
    assert!(answer.into_body().collect().await.is_err(), "a stream that was reset must not look whole");
    // One that is read, slower than the timeout in all, comes to its end on the same connection.
    let slow = stream("gpt@tokens=30,chunk-ms=20");
    let answer = sender.send_request(ask(&rig, &key, &slow)).await.unwrap();
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("[DONE]"));
    // And one whose upstream is slower than that is not the client's fault.
    let late = stream("gpt@tokens=3,chunk-ms=700");
    let answer = sender.send_request(ask(&rig, &key, &late)).await.unwrap();
    assert!(String::from_utf8_lossy(&answer.into_body().collect().await.unwrap().to_bytes()).contains("[DONE]"));
    assert_eq!(rig.requests("openai", "ok"), 2);
}

/// Bodies that are kept whole have a bound together, not only one by one.
#[tokio::test]
async fn bodies_take_no_more_than_their_share_of_the_memory() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    let largest = 200 * 1_024;
    config.routes.values_mut().for_each(|route| route.max_body_bytes = largest);
    config.server.body_memory_bytes = largest;
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "100").await;
    let body = |model: &str, bytes: usize| json!({"model": model, "messages": [{"role": "user", "content": "x".repeat(bytes)}]});
    // Its body is kept until the answer begins, so that it could be sent again.
    let large = body("gpt@first-byte-ms=60000", 150 * 1_024);
    let waiting = tokio::spawn({
        let (http, asked) = (rig.http.clone(), ask(&rig, &key, &large));
        async move { http.send(asked).await.map(drop) }
    });
    eventually(SOON, "it is on its way", || async { (sim.stats().requests() == 1).then_some(()) }).await;
    let refused = rig.http.call(ask(&rig, &key, &body("gpt", 100 * 1_024))).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text());
    assert_eq!((refused.header("retry-after"), refused.header("connection")), ("1", "close"));
    assert_eq!(refused.json()["error"]["code"], "server_busy");
    assert_eq!(rig.requests("openai", "shed"), 1);
    assert_eq!(sim.stats().requests(), 1);
    // Small ones pass, and large ones again once the first is gone.
    let small = rig.http.call(ask(&rig, &key, &body("gpt", 4 * 1_024))).await;
    assert_eq!(small.status, StatusCode::OK);
    waiting.abort();
    let _ = waiting.await;
    let passed = rig.http.call(ask(&rig, &key, &body("gpt", 150 * 1_024))).await;
    assert_eq!(passed.status, StatusCode::OK, "{}", passed.text());
    rig.idle("ann").await;
}
