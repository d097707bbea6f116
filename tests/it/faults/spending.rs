//! Many at once on one balance.

use std::time::Duration;

use hyper::Method;
use tokio::task::JoinSet;

use super::load::ask;
use super::{Kind, Scene, TOKEN_PRICES, healed};
use crate::support::http::request;
use crate::support::{Answer, Faregate, Http, Options};

/// 200 requests at once against 50 credits, over these gateways.
async fn rush(gates: &[&Faregate]) {
    let key = gates[0].user("ann", "50").await;
    let http = Http::new();
    let mut tasks = JoinSet::new();
    for number in 0..200 {
        let url = gates[number % gates.len()].url("/v1/chat/completions");
        let request = request(Method::POST, &url, &key, Some(&ask(number.is_multiple_of(2), "first-byte-ms=100")));
        let http = http.clone();
        tasks.spawn(async move { http.call(request).await });
    }
    let mut answers: Vec<Answer> = Vec::new();
    while let Some(answer) = tasks.join_next().await {
        answers.push(answer.unwrap());
    }
    let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(200), count(402)), (50, 150), "{:?}", answers.iter().map(|a| a.status).collect::<Vec<_>>());
    for refused in answers.iter().filter(|answer| answer.status == 402) {
        let error = &refused.json()["error"];
        assert_eq!(
            (error["type"].as_str(), error["code"].as_str()),
            (Some("insufficient_quota"), Some("insufficient_credits"))
        );
    }
    for gate in gates {
        let books = healed(gate, "ann").await;
        assert_eq!((books.available, books.debt, books.charged, books.usage.len()), (0, 0, 50_000_000, 50));
    }
    let again = http.post(&gates[0].url("/v1/chat/completions"), &key, &ask(false, "")).await;
    assert_eq!((again.status.as_u16(), again.header("retry-after")), (402, ""), "nothing is held that could come back");
}

/// failures 1, 2: check-then-deduct and decrements without a floor (new-api#5690, litellm#34732, one-api#2440).
#[tokio::test]
async fn two_hundred_at_once_against_fifty_credits_embedded() {
    rush(&[&Scene::start(Kind::Embedded).gate]).await;
}

#[tokio::test]
async fn two_hundred_at_once_against_fifty_credits_redis() {
    rush(&[&Scene::start(Kind::Redis).gate]).await;
}

#[tokio::test]
async fn two_hundred_at_once_against_fifty_credits_by_token_embedded() {
    rush(&[&Scene::with(Kind::Embedded, Options::new().config(TOKEN_PRICES)).gate]).await;
}

#[tokio::test]
async fn two_hundred_at_once_against_fifty_credits_by_token_redis() {
    rush(&[&Scene::with(Kind::Redis, Options::new().config(TOKEN_PRICES)).gate]).await;
}

/// failures 5, 6: each replica with a balance of its own (litellm#28247, #42653).
#[tokio::test]
async fn two_hundred_at_once_over_two_replicas() {
    let scene = Scene::start(Kind::Redis);
    let other = scene.replica();
    rush(&[&scene.gate, &other]).await;
}

/// failures 3: holds that outlive a client, an error, an upstream (litellm#27639, #36926, new-api#4429).
async fn nothing_leaks(kind: Kind) {
    let scene = Scene::start(kind);
    let key = scene.gate.user("ann", "3").await;
    let url = scene.gate.url("/v1/chat/completions");
    for knobs in ["status=500", "refuse=true", "status=429", "reset-after=0", "status=401"] {
        let answer = scene.gate.http.try_call(request(Method::POST, &url, &key, Some(&ask(false, knobs)))).await;
        let status = answer.map_or(0, |answer| answer.status.as_u16());
        assert!(status == 0 || status >= 400, "{knobs}: {status}");
        let books = healed(&scene.gate, "ann").await;
        assert_eq!(books.available, 3_000_000, "{knobs} is free, and holds nothing: {books:?}");
    }
    assert_eq!(scene.gate.http.post(&url, &key, &ask(false, "")).await.status, 200);
    tokio::time::timeout(Duration::from_secs(20), healed(&scene.gate, "ann")).await.unwrap();
}

#[tokio::test]
async fn failures_of_the_upstream_are_free_embedded() {
    nothing_leaks(Kind::Embedded).await;
}

#[tokio::test]
async fn failures_of_the_upstream_are_free_redis() {
    nothing_leaks(Kind::Redis).await;
}
