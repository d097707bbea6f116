//! Event streams of a whole gateway: its end, and their weight.

use std::time::Duration;

use http::Method;

use super::Listener;
use crate::support::http::{Http, request};
use crate::support::{Faregate, Options, eventually};

async fn open(http: &Http, faregate: &Faregate, key: &str) -> Listener {
    let response = http.send(request(Method::GET, &faregate.url("/api/events"), key, None)).await.unwrap();
    assert_eq!(response.status(), 200);
    Listener::of(axum::body::Body::new(response.into_body()))
}

/// SIGTERM ends the streams, so that the drain does not wait for them, and their clients go elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_event_streams() {
    let mut faregate = Faregate::start(Options::new().set("server.drain_timeout_ms", 600_000));
    let key = faregate.user("ann", "5").await;
    let mut listener = open(&Http::new(), &faregate, &key).await;
    assert_eq!(listener.next().await.unwrap().name, "credits");
    faregate.signal("TERM");
    listener.ended().await;
    // Far less than the drain could last; `wait` panics when it is not enough.
    assert!(faregate.wait(Duration::from_secs(30)).success());
}

/// A thousand open streams of as many users: every one is told, and none weighs more than a connection does.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_are_light() {
    const STREAMS: usize = 1_000;
    /// Bytes of the process for each stream, its connection and its account in the ledger included.
    const MOST_BYTES: f64 = 48_000.0;
    let faregate = Faregate::start(Options::new().set("service_keys.create_users", true));
    let made = faregate.admin(Method::POST, "/admin/v1/keys", Some(serde_json::json!({ "name": "app" }))).await.json();
    let key = made["key"].as_str().unwrap();
    let before = faregate.metric("process_resident_memory_bytes").await;
    let http = Http::new();
    let mut listeners = Vec::with_capacity(STREAMS);
    for number in 0..STREAMS {
        let mut asked = request(Method::GET, &faregate.url("/api/events"), key, None);
        asked.headers_mut().insert("x-faregate-user", format!("user{number}").parse().unwrap());
        let response = http.send(asked).await.unwrap();
        assert_eq!(response.status(), 200, "{number}");
        listeners.push(Listener::of(axum::body::Body::new(response.into_body())));
    }
    for listener in &mut listeners {
        listener.until_available("5").await;
    }
    let each = (faregate.metric("process_resident_memory_bytes").await - before) / STREAMS as f64;
    println!("{each:.0} bytes a stream");
    assert!(each < MOST_BYTES, "{each}");
    assert_eq!(faregate.metric("faregate_event_streams").await, STREAMS as f64);
    drop(listeners);
    eventually(Duration::from_secs(20), "all have left", || async {
        (faregate.metric("faregate_event_streams").await == 0.0).then_some(())
    })
    .await;
}
