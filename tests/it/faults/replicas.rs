//! Two replicas over one Redis and one Postgres: one balance, one flusher at a time, and a dead or stopped replica's part
//! is taken over.

use std::time::Duration;

use rand::Rng;
use tokio::task::JoinSet;

use super::load::{Load, ask};
use super::{Books, Scene, healed};
use crate::support::http::request;
use crate::support::{Faregate, Http, Options, eventually, fault_rounds};

/// How soon another replica goes on with what a dead one did.
const TAKEN_OVER: Duration = Duration::from_secs(30);

fn patient() -> Options {
    Options::new().set("ledger.settle_wait_ms", 10_000)
}

/// failures 1, 5 (new-api#5690, litellm#28247): 500 requests on 300 credits over two replicas, exactly 300 paid.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_requests_on_three_hundred_credits() {
    let scene = Scene::durable(patient());
    let other = scene.replica_with(patient());
    let http = Http::new();
    for round in 0..fault_rounds() {
        let user = format!("user-{round}");
        let key = scene.gate.user(&user, "300").await;
        let mut tasks = JoinSet::new();
        for number in 0..500 {
            let gate = if number % 2 == 0 { &scene.gate } else { &other };
            let body = ask(number % 3 == 0, "first-byte-ms=20");
            let request = request(hyper::Method::POST, &gate.url("/v1/chat/completions"), &key, Some(&body));
            let http = http.clone();
            tasks.spawn(async move { http.call(request).await.status.as_u16() });
        }
        let statuses = tasks.join_all().await;
        let count = |status: u16| statuses.iter().filter(|answer| **answer == status).count();
        assert_eq!((count(200), count(402)), (300, 200), "{statuses:?}");
        for gate in [&scene.gate, &other] {
            let books = healed(gate, &user).await;
            assert_eq!((books.available, books.debt, books.usage.len()), (0, 0, 300));
        }
    }
    scene.gate.audit().unwrap();
}

/// What is left of the log is written, no row twice, and whatever was seen is there.
async fn written(gate: &Faregate, paid: &[String]) -> Books {
    let books = healed(gate, "ann").await;
    assert!(paid.iter().all(|id| books.has(id)), "every answer that was seen is charged");
    let mut ids: Vec<&str> = books.usage.iter().map(|row| row["request_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), books.usage.len(), "no row twice");
    books
}

/// failures 3, 22, 23: one of two replicas dies under load: the other flushes on, and its holds are back within seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_is_taken_over() {
    let mut scene = Scene::durable(patient());
    let other = scene.replica_with(patient());
    let key = scene.gate.user("ann", "1000000").await;
    let mut paid = Vec::new();
    for _ in 0..fault_rounds() {
        let (load, staying) = (Load::start(&scene.gate.url(""), &key, 8), Load::start(&other.url(""), &key, 4));
        load.more(40).await;
        let wait = rand::rng().random_range(0..200);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        scene.gate.kill9();
        paid.extend(load.stop().await.paid);
        staying.more(20).await;
        let rest = staying.stop().await;
        assert_eq!(rest.statuses.keys().collect::<Vec<_>>(), [&200], "the other replica does not notice");
        paid.extend(rest.paid);
        written(&other, &paid).await;
        scene.gate.restart();
    }
    other.audit().unwrap();
}

/// One of two replicas is stopped, in the middle of a transaction if it comes so: its connections stay open, and with them
/// the lock of the cursor's row, until somebody ends them.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_replicas_locks_are_taken_from_it() {
    let mut scene = Scene::durable(patient());
    let other = scene.replica_with(patient());
    let key = scene.gate.user("ann", "1000000").await;
    let mut paid = Vec::new();
    for round in 0..fault_rounds() {
        let (load, staying) = (Load::start(&scene.gate.url(""), &key, 8), Load::start(&other.url(""), &key, 4));
        load.more(30).await;
        let wait = rand::rng().random_range(0..200);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        scene.gate.signal("STOP");
        staying.more(20).await;
        eventually(TAKEN_OVER, "the log is written by the other replica", async || {
            (other.metric("faregate_outbox_lag_milliseconds").await < 1_000.0).then_some(())
        })
        .await;
        scene.gate.signal("CONT");
        paid.extend(load.stop().await.paid);
        let rest = staying.stop().await;
        assert_eq!(rest.statuses.keys().collect::<Vec<_>>(), [&200], "round {round}");
        paid.extend(rest.paid);
        written(&other, &paid).await;
    }
    other.audit().unwrap();
}
