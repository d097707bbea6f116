//! The proxy: what passes, what is refused, and that it is paid once whatever happens.

mod mishaps;
mod protocol;
mod rig;
mod slow;
mod tls;

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::Sim;
use rig::{Rig, settings};

fn chat(text: &str) -> Value {
    json!({"model": "gpt-4o", "messages": [{"role": "user", "content": text}]})
}

#[tokio::test]
async fn a_message_is_answered_and_paid_once() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "5").await;
    let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &chat("hello")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(answer.header("x-credits-cost"), "1");
    assert_eq!(answer.header("x-credits-reserved"), "1");
    assert_eq!(answer.header("x-credits-remaining"), "4");
    assert_eq!(rig.available("ann").await, "4");
    let rows = rig.usage("ann", 1).await;
    let usage = &rows[0].usage;
    assert_eq!(usage.request_id.to_string(), answer.header("x-request-id"));
    assert_eq!((usage.status, usage.route.as_str(), usage.model.as_deref()), (200, "openai", Some("gpt-4o")));
    assert_eq!(usage.upstream.as_deref(), Some("default"));
    assert_eq!(usage.output_tokens, 13);
    assert!(!usage.estimated);
    assert_eq!(rig.requests("openai", "ok"), 1);
}

#[tokio::test]
async fn two_hundred_at_once_spend_fifty_credits_once_each() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "50").await;
    let calls = (0..200).map(|_| {
        let (http, url, key) = (rig.http.clone(), rig.url("/v1/chat/completions"), key.clone());
        async move { http.post(&url, &key, &chat("hello")).await.status.as_u16() }
    });
    let statuses = futures_util::future::join_all(calls).await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 50);
    assert_eq!(statuses.iter().filter(|status| **status == 402).count(), 150);
    let balance = rig.idle("ann").await;
    assert!(balance.available.is_zero() && balance.debt.is_zero());
}

/// failures 20: one-api and others billed an upstream's error text as output.
#[tokio::test]
async fn an_upstreams_error_passes_through_and_is_free() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "5").await;
    for status in [400, 429, 500] {
        let mut body = chat("hello");
        body["model"] = format!("gpt@status={status}").into();
        let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &body).await;
        assert_eq!(answer.status.as_u16(), status);
        assert!(answer.text().contains("the upstream fails, as asked"));
        assert_eq!(answer.header("x-credits-cost"), "0");
    }
    assert_eq!(rig.idle("ann").await.available.to_string(), "5");
    let rows = rig.usage("ann", 3).await;
    assert!(rows.iter().all(|row| row.charged.is_zero()));
    assert_eq!(rig.requests("openai", "upstream_error"), 3);
}

#[tokio::test]
async fn an_upstream_that_refuses_our_key_is_no_affair_of_the_clients() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "5").await;
    for status in [401, 403] {
        let mut body = chat("hello");
        body["model"] = format!("gpt@status={status}").into();
        let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.json()["error"]["code"], "upstream_refused");
    }
    assert_eq!(rig.idle("ann").await.available.to_string(), "5");
    assert_eq!(rig.usage("ann", 2).await[0].usage.status, 502);
}

#[tokio::test]
async fn models_and_token_counting_are_free_and_authenticated() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "0").await;
    let models = rig.http.get(&rig.url("/v1/models"), &key).await;
    assert_eq!(models.status, StatusCode::OK);
    let count = rig.http.post(&rig.url("/v1/messages/count_tokens"), &key, &chat("hello")).await;
    assert_eq!(count.status, StatusCode::OK, "{}", count.text());
    assert_eq!(rig.http.get(&rig.url("/v1/models"), "").await.status, StatusCode::UNAUTHORIZED);
    let rows = rig.usage("ann", 2).await;
    assert!(rows.iter().all(|row| row.charged.is_zero()));
}

#[tokio::test]
async fn refusals_come_in_the_protocols_form() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "0").await;
    let chat_url = rig.url("/v1/chat/completions");
    let answer = rig.http.post(&chat_url, &key, &chat("hello")).await;
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(answer.json()["error"]["code"], "insufficient_credits");
    assert_eq!(answer.header("x-should-retry"), "false");
    let answer = rig.http.post(&rig.url("/v1/messages"), &key, &chat("hello")).await;
    assert_eq!(answer.json()["error"]["type"], "billing_error");
    assert_eq!(answer.json()["request_id"], answer.header("x-request-id"));
    let answer = rig.http.get(&rig.url("/echo/x"), &key).await;
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.json()["status"], 402);
    assert_eq!(rig.http.get(&rig.url("/nowhere"), &key).await.status, StatusCode::NOT_FOUND);
    assert_eq!(rig.http.post(&chat_url, "fg_live_wrong", &chat("x")).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(rig.http.post(&chat_url, &key, &json!("no object")).await.status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(sim.stats().requests(), 0);
    rig.user("bob", "5").await;
    assert_eq!(rig.http.get(&rig.url("/api/ping"), "").await.text(), "pong");
}

#[tokio::test]
async fn malformed_bodies_are_refused_and_give_the_hold_back() {
    let sim = Sim::start();
    let rig = Rig::start(settings(&sim.url())).await;
    let key = rig.user("ann", "5").await;
    let bad = [json!("text"), json!({"messages": []}), json!({"model": 7}), json!({"model": "m", "max_tokens": -1})];
    for body in bad {
        let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {}", answer.text());
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    assert_eq!(rig.idle("ann").await.available.to_string(), "5");
    assert_eq!(sim.stats().requests(), 0);
    tokio::time::timeout(Duration::from_secs(1), rig.idle("ann")).await.unwrap();
}
