//! HTTP itself: versions, framing, hop-by-hop headers, credentials, limits.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::rig::{Rig, UPSTREAM_KEY, settings};
use crate::support::http::{Http, raw, request};
use crate::support::{Sim, eventually};

const SILENCE: Duration = Duration::from_secs(3);

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

#[tokio::test]
async fn credentials_stay_on_their_own_side() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "9").await;
    for (path, ours) in
        [("/v1/chat/completions", "authorization"), ("/v1/messages", "x-api-key"), ("/echo/app", "authorization")]
    {
        let body = json!({"model": "m@echo=1", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]});
        let mut asked = request(Method::POST, &rig.url(path), &key, Some(&body));
        let secrets = [("x-faregate-user", "bob"), ("x-stack-refresh-token", "stack-secret"), ("api-key", &key)];
        for (name, value) in secrets {
            asked.headers_mut().insert(name, value.parse().unwrap());
        }
        asked.headers_mut().insert("cookie", "session=secret".parse().unwrap());
        let answer = rig.http.call(asked).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let seen = sim.stats().last().unwrap();
        let everything = format!("{:?}", seen.headers);
        assert!(!everything.contains(&key) && !everything.contains("stack-secret") && !everything.contains("bob"));
        assert!(seen.headers[ours].to_str().unwrap().ends_with(UPSTREAM_KEY), "{path}");
        assert_eq!(seen.headers.contains_key("cookie"), path.starts_with("/echo"));
        assert_eq!(seen.headers["x-request-id"], answer.header("x-request-id"));
        assert!(!format!("{:?}", answer.headers).contains(UPSTREAM_KEY));
    }
    // Two callers in one request: whichever were believed, somebody before us might have believed the other.
    let mut asked = request(Method::GET, &rig.url("/echo/app"), &key, None);
    asked.headers_mut().insert("x-stack-access-token", "a.b.c".parse().unwrap());
    assert_eq!(rig.http.call(asked).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn hop_by_hop_headers_end_here() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "9").await;
    let head = format!(
        "GET /echo/app HTTP/1.1\r\nhost: gate\r\nauthorization: Bearer {key}\r\nconnection: close, x-mine\r\n\
         x-mine: 1\r\nkeep-alive: timeout=9\r\nproxy-authorization: x\r\nte: trailers\r\nx-kept: 2\r\n\r\n"
    );
    let answer = tokio::task::spawn_blocking(move || raw(rig.addr, head.as_bytes(), SILENCE)).await.unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    let seen = sim.stats().last().unwrap().headers;
    for gone in ["x-mine", "keep-alive", "proxy-authorization"] {
        assert!(!seen.contains_key(gone), "{gone}");
    }
    assert_eq!(seen["x-kept"], "2");
    assert_eq!(seen["via"], "1.1 faregate");
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["x-forwarded-host"], "gate");
}

#[tokio::test]
async fn both_versions_in_and_out() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    let h2c = faregate::config::Upstream { h2c: true, ..super::rig::upstream(&sim.url()) };
    config.upstreams.insert("two".into(), h2c);
    let route = config.routes["app"].clone();
    let two = faregate::config::Route { prefix: "/echo/two".into(), upstreams: vec!["two".into()], ..route };
    config.routes.insert("two".into(), two);
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "100").await;
    for http in [Http::new(), Http::h2c()] {
        for path in ["/v1/chat/completions", "/echo/two/x"] {
            let body = super::chat("hello");
            let url = rig.url(path);
            let calls = (0..10).map(|_| http.post(&url, &key, &body));
            for answer in futures_util::future::join_all(calls).await {
                assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
            }
        }
        let mut body = super::chat("hello");
        body["stream"] = true.into();
        let (text, proper) = http.stream(&rig.url("/v1/chat/completions"), &key, &body).await.rest().await;
        assert!(proper && String::from_utf8(text).unwrap().contains("[DONE]"));
    }
    assert_eq!(rig.idle("ann").await.available.to_string(), "58");
}

/// RFC 9112 §6.1 and §6.3: a message with two lengths is an attack or a mistake.
#[tokio::test]
async fn smuggled_lengths_are_refused() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "9").await;
    let inner = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
    let auth = format!("host: x\r\nauthorization: Bearer {key}\r\n");
    let variants = [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        "Transfer-Encoding: chunked\r\nContent-LENGTH: 4\r\n",
        "content-length: 4\r\ncontent-length: 5\r\n",
        "content-length: 4, 5\r\n",
        "content-length: +4\r\n",
        "content-length: -1\r\n",
        "content-length: 0x4\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "content-length : 4\r\n",
        "x: y\r\n content-length: 4\r\n",
    ];
    for lengths in variants {
        for path in ["/v1/chat/completions", "/echo/app", "/api/ping"] {
            let bytes = format!("POST {path} HTTP/1.1\r\n{auth}{lengths}\r\n0\r\n\r\n{inner}");
            let addr = rig.addr;
            let answer = tokio::task::spawn_blocking(move || raw(addr, bytes.as_bytes(), SILENCE)).await.unwrap();
            let answers = answer.matches("HTTP/1.1 ").count();
            assert_eq!((status(&answer), answers), (400, 1), "{lengths:?} on {path}: {answer}");
        }
    }
    assert_eq!(sim.stats().requests(), 0);
    assert_eq!(rig.idle("ann").await.available.to_string(), "9");
}

#[tokio::test]
async fn chunked_bodies_pass_and_oversized_ones_do_not() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    for route in config.routes.values_mut() {
        route.max_body_bytes = 200_000;
    }
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "9").await;
    let chunked = |path: &str, size: usize| {
        let chunk = format!("{size:x}\r\n{}\r\n0\r\n\r\n", "a".repeat(size));
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
        format!("{head}transfer-encoding: chunked\r\nconnection: close\r\n\r\n{chunk}")
    };
    let send = |bytes: String| {
        let addr = rig.addr;
        async move { tokio::task::spawn_blocking(move || raw(addr, bytes.as_bytes(), SILENCE)).await.unwrap() }
    };
    let answer = send(chunked("/echo/app", 100_000)).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(sim.stats().last().unwrap().body.len(), 100_000);
    for path in ["/echo/app", "/v1/chat/completions"] {
        assert_eq!(status(&send(chunked(path, 200_001)).await), 413, "{path}");
        let declared = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 200001\r\n\
             expect: 100-continue\r\n\r\n"
        );
        let answer = send(declared).await;
        assert_eq!(status(&answer), 413, "refused before a byte of it is asked for: {answer}");
    }
    assert_eq!(rig.idle("ann").await.available.to_string(), "8");
}

#[tokio::test]
async fn expectations() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "9").await;
    let addr = rig.addr;
    let body = super::chat("hello").to_string();
    let head = |key: &str, expect: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
             content-length: {}\r\nexpect: {expect}\r\n\r\n",
            body.len()
        )
    };
    let (welcome, bytes) = (head(&key, "100-continue"), body.clone());
    let both = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(addr).unwrap();
        connection.set_read_timeout(Some(SILENCE)).unwrap();
        connection.write_all(welcome.as_bytes()).unwrap();
        let mut first = [0; 25];
        connection.read_exact(&mut first).unwrap();
        connection.write_all(bytes.as_bytes()).unwrap();
        let mut rest = String::new();
        connection.read_to_string(&mut rest).unwrap();
        (String::from_utf8_lossy(&first).into_owned(), rest)
    });
    let (first, rest) = both.await.unwrap();
    assert!(first.starts_with("HTTP/1.1 100 Continue"), "{first}");
    assert_eq!(status(&rest), 200, "{rest}");
    assert!(!sim.stats().last().unwrap().headers.contains_key("expect"));
    for (key, expect, expected) in [(key.as_str(), "200-maybe", 417), ("fg_live_none", "100-continue", 401)] {
        let bytes = head(key, expect);
        let answer = tokio::task::spawn_blocking(move || raw(addr, bytes.as_bytes(), SILENCE)).await.unwrap();
        assert_eq!(status(&answer), expected, "no 100 before the refusal: {answer}");
    }
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "9").await;
    let answer = rig.http.call(request(Method::HEAD, &rig.url("/v1/models"), &key, None)).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body.is_empty());
    assert!(answer.header("content-length").parse::<u64>().unwrap() > 0, "{:?}", answer.headers);
}

#[tokio::test]
async fn methods_that_no_upstream_shall_see() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "9").await;
    let answer = rig.http.call(request(Method::TRACE, &rig.url("/echo/app"), &key, None)).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    for path in [
        "/echo/../v1/models",
        "/echo/%2e%2e/secret",
        "/echo/x%2f..%2F..%2fsecret",
        "/echo/..;/secret",
        "/v1/chat/%2e./batches",
    ] {
        let bytes =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n");
        let addr = rig.addr;
        let answer = tokio::task::spawn_blocking(move || raw(addr, bytes.as_bytes(), SILENCE)).await.unwrap();
        assert!((400..500).contains(&status(&answer)), "{path}: {answer}");
    }
    assert_eq!(sim.stats().requests(), 0);
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    config.server.header_timeout_ms = 300;
    config.server.body_idle_timeout_ms = 300;
    config.server.body_timeout_ms = 900;
    config.server.keep_alive_ms = 600;
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "9").await;
    let addr = rig.addr;
    let auth = format!("host: x\r\nauthorization: Bearer {key}\r\n");
    let post = format!("POST /v1/chat/completions HTTP/1.1\r\n{auth}content-length: 1000\r\n\r\n");
    let (half_head, half_body, trickle) = ("POST / HTTP/1.1\r\nx: ".to_owned(), format!("{post}abc"), post);
    tokio::task::spawn_blocking(move || {
        for (bytes, wait) in [(String::new(), 300), (half_head, 300), (half_body, 300)] {
            let began = Instant::now();
            let answer = raw(addr, bytes.as_bytes(), SILENCE);
            assert!(began.elapsed() < SILENCE, "closed after {wait} ms: {bytes:?} {answer}");
            assert!(answer.is_empty() || status(&answer) == 408, "{answer}");
        }
        // A byte now and then keeps the line busy, but not for ever.
        let mut connection = TcpStream::connect(addr).unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        connection.write_all(trickle.as_bytes()).unwrap();
        let (began, mut answer, mut buffer) = (Instant::now(), Vec::new(), [0; 4096]);
        while began.elapsed() < SILENCE {
            let _ = connection.write_all(b"x");
            match connection.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
                Err(_) => {}
            }
        }
        assert!(began.elapsed() < SILENCE);
        assert_eq!(status(&String::from_utf8_lossy(&answer)), 408);
    })
    .await
    .unwrap();
    assert_eq!(rig.idle("ann").await.available.to_string(), "9");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    config.server.max_connections = 2;
    let rig = Rig::start(config).await;
    let addr = rig.addr;
    let ping = "GET /api/ping HTTP/1.1\r\nhost: x\r\n\r\n";
    tokio::task::spawn_blocking(move || {
        let mut held: Vec<TcpStream> = Vec::new();
        for _ in 0..2 {
            let mut connection = TcpStream::connect(addr).unwrap();
            connection.set_read_timeout(Some(SILENCE)).unwrap();
            connection.write_all(ping.as_bytes()).unwrap();
            let mut first = [0; 12];
            connection.read_exact(&mut first).unwrap();
            held.push(connection);
        }
        let mut third = TcpStream::connect(addr).unwrap();
        third.write_all(ping.as_bytes()).unwrap();
        third.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(third.read(&mut [0; 12]).is_err(), "the third waits");
        drop(held);
        third.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(third.read(&mut [0; 12]).is_ok_and(|count| count > 0), "and is served when there is room");
    })
    .await
    .unwrap();
    assert_eq!(rig.metrics.panics.get(), 0);
}

#[tokio::test]
async fn the_shed_answers_before_anybody_is_asked() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    config.shed.per_address_requests_per_second = 5;
    let rig = Rig::start(config).await;
    let answers =
        futures_util::future::join_all((0..20).map(|_| async { rig.http.get(&rig.url("/v1/models"), "").await })).await;
    let shed: Vec<_> = answers.iter().filter(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).collect();
    assert!(shed.len() >= 10, "{}", shed.len());
    assert_eq!(shed[0].header("retry-after"), "1");
    assert!(rig.requests("openai", "shed") >= 10);
}

#[tokio::test]
async fn websockets_are_echoed_and_charged_once() {
    let sim = Sim::start();
    let mut config = settings(&sim.url());
    // The clocks of requests do not run in a tunnel.
    (config.server.header_timeout_ms, config.server.keep_alive_ms) = (300, 300);
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "9").await;
    let addr = rig.addr;
    let head = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        )
    };
    let (allowed, refused) = (head("/echo/socket"), head("/v1/realtime"));
    let open = rig.metrics.client_connections.clone();
    let echoed = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(addr).unwrap();
        connection.set_read_timeout(Some(SILENCE)).unwrap();
        connection.write_all(allowed.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0; 1];
        while !answer.ends_with(b"\r\n\r\n") {
            connection.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        // A masked text frame with an all-zero mask: "hi".
        connection.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).unwrap();
        let mut frame = [0; 4];
        connection.read_exact(&mut frame).unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(900))).unwrap();
        let silent = connection.read(&mut byte).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock, "the tunnel stays open: {silent}");
        assert_eq!(open.get(), 1, "a tunnel is a connection");
        (String::from_utf8(answer).unwrap(), frame)
    });
    let (answer, frame) = echoed.await.unwrap();
    assert_eq!(status(&answer), 101, "{answer}");
    assert!(answer.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(frame, [0x81, 2, b'h', b'i']);
    let answer = tokio::task::spawn_blocking(move || raw(addr, refused.as_bytes(), SILENCE)).await.unwrap();
    assert!((400..500).contains(&status(&answer)), "{answer}");
    assert_eq!(rig.idle("ann").await.available.to_string(), "8");
    assert_eq!(rig.usage("ann", 1).await[0].usage.status, 101);
}

#[tokio::test]
async fn a_clients_own_request_id_is_kept_beside_ours() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "9").await;
    let mut asked = request(Method::POST, &rig.url("/v1/chat/completions"), &key, Some(&super::chat("x")));
    asked.headers_mut().insert("x-request-id", "theirs-1".parse().unwrap());
    let answer = rig.http.call(asked).await;
    assert_ne!(answer.header("x-request-id"), "theirs-1");
    let rows = rig.usage("ann", 1).await;
    assert_eq!(rows[0].usage.client_request_id.as_deref(), Some("theirs-1"));
    let _: Value = answer.json();
    eventually(SILENCE, "the hold is gone", || async { (rig.metrics.holds_in_flight.get() == 0).then_some(()) }).await;
}

/// Dashboards add these up as money: each credit is counted where it moves, and once.
#[tokio::test]
async fn credits_are_counted_once() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "9").await;
    for _ in 0..2 {
        let asked = request(Method::POST, &rig.url("/v1/chat/completions"), &key, Some(&super::chat("x")));
        assert_eq!(rig.http.call(asked).await.status, 200);
    }
    assert_eq!(rig.usage("ann", 2).await.len(), 2);
    let credits = |what: &str| rig.metrics.credits.with_label_values(&[what]).get();
    assert_eq!((credits("reserved"), credits("settled"), credits("released")), (2_000_000, 2_000_000, 0));
    assert_eq!(rig.metrics.holds_in_flight.get(), 0);
}
