//! /api/credits: each test runs over every pair of ledger and store.

use std::time::Duration;

use faregate::ledger::AccountId;
use faregate::store::PageRequest;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::rig::{Ground, Rig};
use crate::support::eventually;
use crate::support::http::Answer;

const DEDUCT: &str = "/api/credits/deduct";
const RESERVE: &str = "/api/credits/reserve";
const SETTLE: &str = "/api/credits/settle";
const RELEASE: &str = "/api/credits/release";
const CHECK: &str = "/api/credits/check";

async fn keyed(rig: &Rig, path: &str, key: &str, idempotency: &str, body: &str) -> Answer {
    let ask = rig.api(Method::POST, path, key).header("idempotency-key", idempotency);
    ask.body("application/json", body.to_owned()).send().await
}

fn problem(answer: &Answer, status: u16, slug: &str) -> Value {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let body = answer.json();
    assert_eq!(body["type"], format!("urn:faregate:problem:{slug}"));
    assert_eq!(body["status"], status);
    assert!(body["title"].is_string() && body["detail"].is_string());
    body
}

/// failures 14: litellm PR#36592. What is charged and what remains are exact decimals.
pub(super) async fn amounts_are_exact(ground: &Ground) {
    let rig = ground.replica();
    let key = rig.user("u", "0.3").await;
    for left in ["0.2", "0.1", "0"] {
        let answer = rig.post(DEDUCT, &key, json!({"amount": 0.1})).await;
        assert_eq!(answer.text(), format!(r#"{{"charged":0.1,"available":{left}}}"#));
    }
    let key = rig.user("rich", "8999999.999999").await;
    let answer = keyed(&rig, DEDUCT, &key, "k", r#"{"amount": 0.000001}"#).await;
    assert_eq!(answer.text(), r#"{"charged":0.000001,"available":8999999.999998}"#);
    let refused = rig.post(DEDUCT, &key, json!({"amount": 8999999.9999985})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "seven decimals");
    let refused = keyed(&rig, DEDUCT, &key, "l", r#"{"amount": 8999999.999999}"#).await;
    assert!(problem(&refused, 402, "insufficient-credits")["detail"].as_str().unwrap().contains("8999999.999998"));
    assert!(refused.text().contains(r#""available":8999999.999998"#));
}

/// failures 1 and 2: new-api#5690, litellm#34732, one-api#2440. Nobody checks first and deducts later.
pub(super) async fn concurrent_deductions_never_overspend(ground: &Ground) {
    let (one, two) = (ground.replica(), ground.replica());
    let key = one.user("u", "10").await;
    let asks = (0..50).map(|number| {
        let rig = if number % 2 == 0 { &one } else { &two };
        rig.post(DEDUCT, &key, json!({"amount": 1}))
    });
    let answers = futures_util::future::join_all(asks).await;
    let count = |status: u16| answers.iter().filter(|answer| answer.status.as_u16() == status).count();
    assert_eq!((count(200), count(402)), (10, 40));
    for refused in answers.iter().filter(|answer| answer.status == StatusCode::PAYMENT_REQUIRED) {
        problem(refused, 402, "insufficient-credits");
        assert_eq!(refused.header("retry-after"), "");
        assert_eq!(refused.header("x-should-retry"), "false");
    }
    assert_eq!(one.credits("u").await, ("0".into(), "0".into(), "0".into()));
}

pub(super) async fn a_hold_is_settled_once_and_the_rest_comes_back(ground: &Ground) {
    let (rig, other) = (ground.replica(), ground.replica());
    let key = rig.user("u", "10").await;
    let made = rig.post(RESERVE, &key, json!({"amount": 4})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    let hold = made.json();
    assert_eq!((hold["held"].to_string(), hold["available"].to_string()), ("4".into(), "6".into()));
    let expires: jiff::Timestamp = hold["expires_at"].as_str().unwrap().parse().unwrap();
    let minutes = (expires.as_second() - jiff::Timestamp::now().as_second()) as f64 / 60.0;
    assert!((14.5..=15.1).contains(&minutes), "{minutes} minutes");
    assert_eq!(rig.credits("u").await, ("6".into(), "4".into(), "0".into()));

    // Settled from another replica.
    let settled = other.post(SETTLE, &key, json!({"id": hold["id"], "amount": 1.5})).await;
    assert_eq!(settled.text(), r#"{"charged":1.5,"available":8.5}"#);
    assert_eq!(rig.credits("u").await, ("8.5".into(), "0".into(), "0".into()));
    let again = rig.post(SETTLE, &key, json!({"id": hold["id"], "amount": 1.5})).await;
    assert_eq!(problem(&again, 409, "finished-hold")["charged"].to_string(), "1.5");
    let late = rig.post(RELEASE, &key, json!({"id": hold["id"]})).await;
    problem(&late, 409, "finished-hold");
    assert_eq!(rig.credits("u").await, ("8.5".into(), "0".into(), "0".into()));

    let second = rig.post(RESERVE, &key, json!({"amount": 8.5})).await.json();
    let released = rig.post(RELEASE, &key, json!({"id": second["id"]})).await;
    assert_eq!(released.text(), r#"{"available":8.5}"#);
    problem(&rig.post(RELEASE, &key, json!({"id": second["id"]})).await, 409, "finished-hold");
    problem(&rig.post(SETTLE, &key, json!({"id": second["id"], "amount": 1})).await, 409, "finished-hold");
}

pub(super) async fn what_does_not_fit_is_refused_whole(ground: &Ground) {
    let rig = ground.replica();
    let key = rig.user("u", "10").await;
    let hold = rig.post(RESERVE, &key, json!({"amount": 8})).await.json();
    // Only what the hold holds is missing: that may come back soon.
    let refused = rig.post(DEDUCT, &key, json!({"amount": 3})).await;
    let told = problem(&refused, 402, "insufficient-credits");
    assert_eq!((told["available"].to_string(), told["held"].to_string()), ("2".into(), "8".into()));
    assert_eq!(refused.header("retry-after"), "1");
    let refused = rig.post(RESERVE, &key, json!({"amount": 11})).await;
    problem(&refused, 402, "insufficient-credits");
    assert_eq!(refused.header("retry-after"), "");
    // More than held, within the balance: paid. Beyond it: refused, and the hold stands.
    problem(&rig.post(SETTLE, &key, json!({"id": hold["id"], "amount": 10.5})).await, 402, "insufficient-credits");
    assert_eq!(rig.credits("u").await, ("2".into(), "8".into(), "0".into()));
    let settled = rig.post(SETTLE, &key, json!({"id": hold["id"], "amount": 9})).await;
    assert_eq!(settled.text(), r#"{"charged":9,"available":1}"#);
}

pub(super) async fn holds_of_others_and_of_nobody_are_unknown(ground: &Ground) {
    let rig = ground.replica();
    let (key, thief) = (rig.user("u", "10").await, rig.user("thief", "10").await);
    let hold = rig.post(RESERVE, &key, json!({"amount": 4})).await.json();
    // The thief holds as much from a grant of the same number.
    rig.post(RESERVE, &thief, json!({"amount": 4})).await;
    for id in [hold["id"].clone(), json!("0192d1d0-0000-7000-8000-000000000000"), json!("no-id"), json!("")] {
        problem(&rig.post(SETTLE, &thief, json!({"id": id, "amount": 1})).await, 404, "unknown-hold");
        problem(&rig.post(RELEASE, &thief, json!({"id": id})).await, 404, "unknown-hold");
    }
    assert_eq!(rig.credits("u").await, ("6".into(), "4".into(), "0".into()));
    assert_eq!(rig.credits("thief").await, ("6".into(), "4".into(), "0".into()));
}

pub(super) async fn a_deduction_is_done_once_for_its_key(ground: &Ground) {
    let (one, two) = (ground.replica(), ground.replica());
    let key = one.user("u", "10").await;
    let first = keyed(&one, DEDUCT, &key, "order-1", r#"{"amount": 2, "reason": "a book"}"#).await;
    assert_eq!(first.text(), r#"{"charged":2,"available":8}"#);
    assert_eq!(first.header("idempotent-replayed"), "");
    keyed(&one, DEDUCT, &key, "order-2", r#"{"amount": 1}"#).await;
    // Also from another replica, also written otherwise.
    let again = keyed(&two, DEDUCT, &key, "order-1", r#"{"reason":"a book","amount":2.0}"#).await;
    assert_eq!((again.status, again.text()), (StatusCode::OK, first.text()));
    assert_eq!(again.header("idempotent-replayed"), "true");
    for other in [r#"{"amount": 3, "reason": "a book"}"#, r#"{"amount": 2}"#, r#"{"amount": 2, "reason": "b"}"#] {
        problem(&keyed(&one, DEDUCT, &key, "order-1", other).await, 422, "idempotency-key-reused");
    }
    assert_eq!(one.credits("u").await.0, "7");
    // Another account's key of the same name, and another operation's, are their own.
    let neighbour = one.user("neighbour", "10").await;
    let theirs = keyed(&one, DEDUCT, &neighbour, "order-1", r#"{"amount": 5}"#).await;
    assert_eq!(theirs.text(), r#"{"charged":5,"available":5}"#);
    assert_eq!(keyed(&one, RESERVE, &key, "order-1", r#"{"amount": 2}"#).await.status, StatusCode::CREATED);
}

/// failures 46: a request that timed out has still run; the retry carries the same key and charges nothing more.
pub(super) async fn duplicates_at_once_charge_once(ground: &Ground) {
    let (one, two) = (ground.replica(), ground.replica());
    let key = one.user("u", "10").await;
    let asks = (0..20).map(|number| {
        let rig = if number % 2 == 0 { &one } else { &two };
        keyed(rig, DEDUCT, &key, "same", r#"{"amount": 3}"#)
    });
    let answers = futures_util::future::join_all(asks).await;
    for answer in &answers {
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, r#"{"charged":3,"available":7}"#.to_owned()));
    }
    let fresh = answers.iter().filter(|answer| answer.header("idempotent-replayed").is_empty()).count();
    assert_eq!(fresh, 1);

    let asks = (0..20).map(|_| keyed(&one, RESERVE, &key, "same", r#"{"amount": 2}"#));
    let answers = futures_util::future::join_all(asks).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::CREATED && answer.text() == answers[0].text()));
    assert_eq!(one.credits("u").await, ("5".into(), "2".into(), "0".into()));

    let settle = json!({"id": answers[0].json()["id"], "amount": 1}).to_string();
    let asks = (0..20).map(|_| keyed(&one, SETTLE, &key, "settle", &settle));
    let answers = futures_util::future::join_all(asks).await;
    let of = |status: u16| answers.iter().filter(|answer| answer.status.as_u16() == status).count();
    assert_eq!(of(200) + of(409), 20, "done, replayed, or still under way");
    assert!(of(200) >= 1);
    assert_eq!(one.credits("u").await, ("6".into(), "0".into(), "0".into()));
    let again = keyed(&two, SETTLE, &key, "settle", &settle).await;
    assert_eq!((again.text(), again.header("idempotent-replayed")), (r#"{"charged":1,"available":6}"#.into(), "true"));
}

pub(super) async fn reserve_settle_and_release_answer_repetitions(ground: &Ground) {
    let rig = ground.replica();
    let key = rig.user("u", "10").await;
    let first = keyed(&rig, RESERVE, &key, "r", r#"{"amount": 4, "expires_in": 60}"#).await;
    let again = keyed(&rig, RESERVE, &key, "r", r#"{"amount": 4, "expires_in": 60}"#).await;
    assert_eq!((again.status, again.text()), (StatusCode::CREATED, first.text()));
    assert_eq!(again.header("idempotent-replayed"), "true");
    let other = keyed(&rig, RESERVE, &key, "r", r#"{"amount": 4, "expires_in": 61}"#).await;
    problem(&other, 422, "idempotency-key-reused");

    let id = first.json()["id"].clone();
    let settle = json!({"id": id, "amount": 3}).to_string();
    let first = keyed(&rig, SETTLE, &key, "s", &settle).await;
    let again = keyed(&rig, SETTLE, &key, "s", &settle).await;
    assert_eq!((first.status, again.status, again.text()), (StatusCode::OK, StatusCode::OK, first.text()));
    problem(
        &keyed(&rig, SETTLE, &key, "s", &json!({"id": id, "amount": 2}).to_string()).await,
        422,
        "idempotency-key-reused",
    );
    problem(&keyed(&rig, SETTLE, &key, "another", &settle).await, 409, "finished-hold");
    // The hold that this key made is over; to repeat its answer would promise credits that nobody holds.
    problem(&keyed(&rig, RESERVE, &key, "r", r#"{"amount": 4, "expires_in": 60}"#).await, 409, "finished-hold");

    let hold = rig.post(RESERVE, &key, json!({"amount": 1})).await.json();
    let release = json!({"id": hold["id"]}).to_string();
    let first = keyed(&rig, RELEASE, &key, "s", &release).await;
    let again = keyed(&rig, RELEASE, &key, "s", &release).await;
    assert_eq!((first.status, again.status, again.text()), (StatusCode::OK, StatusCode::OK, first.text()));
    assert_eq!(rig.credits("u").await, ("7".into(), "0".into(), "0".into()));
}

/// A refusal is not kept: with more credits the same key goes through.
pub(super) async fn a_refused_request_may_try_its_key_again(ground: &Ground) {
    let rig = ground.replica();
    let key = rig.user("u", "1").await;
    problem(&keyed(&rig, DEDUCT, &key, "k", r#"{"amount": 5}"#).await, 402, "insufficient-credits");
    let hold = rig.post(RESERVE, &key, json!({"amount": 1})).await.json();
    let settle = json!({"id": hold["id"], "amount": 5}).to_string();
    problem(&keyed(&rig, SETTLE, &key, "k", &settle).await, 402, "insufficient-credits");
    let grant = rig.admin(Method::POST, "/admin/v1/users/u/grants").json(&json!({"amount": 20})).send().await;
    assert_eq!(grant.status, StatusCode::CREATED);
    assert_eq!(keyed(&rig, DEDUCT, &key, "k", r#"{"amount": 5}"#).await.status, StatusCode::OK);
    assert_eq!(keyed(&rig, SETTLE, &key, "k", &settle).await.status, StatusCode::OK);
    assert_eq!(rig.credits("u").await.0, "11");
}

pub(super) async fn a_check_shows_what_was_true_a_second_ago_at_most(ground: &Ground) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    let key = here.user("u", "10").await;
    let seen = here.api(Method::GET, CHECK, &key).send().await;
    let shape = r#"{"available":10,"held":0,"debt":0,"plan":"none","low":false,"resets_at":null}"#;
    assert_eq!((seen.status, seen.text()), (StatusCode::OK, shape.to_owned()));
    assert_eq!(seen.header("cache-control"), "no-store");
    // One's own change shows at once, another replica's within a second.
    here.post(DEDUCT, &key, json!({"amount": 1})).await;
    assert_eq!(here.api(Method::GET, CHECK, &key).send().await.json()["available"].to_string(), "9");
    elsewhere.post(DEDUCT, &key, json!({"amount": 8.5})).await;
    eventually(Duration::from_secs(1), "the new balance shows", || async {
        let check = here.api(Method::GET, CHECK, &key).send().await.json();
        (check["available"] == 0.5 && check["low"] == true).then_some(())
    })
    .await;
}

pub(super) async fn a_frozen_account_only_settles(ground: &Ground) {
    let rig = ground.replica();
    let key = rig.user("u", "10").await;
    let hold = rig.post(RESERVE, &key, json!({"amount": 4})).await.json();
    let frozen = rig.admin(Method::POST, "/admin/v1/users/u/freeze").send().await;
    assert_eq!((frozen.status, &frozen.json()["status"]), (StatusCode::OK, &json!("frozen")));
    assert_eq!(frozen.json()["credits"]["available"].to_string(), "0", "nothing can be reserved");
    problem(&rig.post(DEDUCT, &key, json!({"amount": 1})).await, 403, "frozen");
    problem(&rig.post(RESERVE, &key, json!({"amount": 1})).await, 403, "frozen");
    let settled = rig.post(SETTLE, &key, json!({"id": hold["id"], "amount": 4})).await;
    assert_eq!(settled.status, StatusCode::OK, "{}", settled.text());
    let again = rig.admin(Method::POST, "/admin/v1/users/u/freeze").send().await;
    assert_eq!(again.status, StatusCode::OK);
    let thawed = rig.admin(Method::DELETE, "/admin/v1/users/u/freeze").send().await.json();
    assert_eq!((&thawed["status"], thawed["credits"]["available"].to_string()), (&json!("active"), "6".to_owned()));
    assert_eq!(rig.post(DEDUCT, &key, json!({"amount": 1})).await.status, StatusCode::OK);
    let changes = rig.store.changes_after(&AccountId::parse("u").unwrap(), 0).await.unwrap();
    assert_eq!(changes.len(), 3, "a grant, one freeze, one unfreeze");
}

/// failures 3 and 10: litellm#27639, limitador. A hold that nobody finishes goes back by itself, and a late settle of it
/// is told so instead of being free.
pub(super) async fn an_unfinished_hold_expires(ground: &Ground) {
    let rig = ground.replica();
    let key = rig.user("u", "10").await;
    let hold = rig.post(RESERVE, &key, json!({"amount": 4, "expires_in": 1})).await.json();
    let lasting = rig.post(RESERVE, &key, json!({"amount": 1})).await.json();
    eventually(Duration::from_secs(20), "the hold expires", || async {
        (rig.credits("u").await == ("9".into(), "1".into(), "0".into())).then_some(())
    })
    .await;
    problem(&rig.post(SETTLE, &key, json!({"id": hold["id"], "amount": 4})).await, 409, "finished-hold");
    assert_eq!(rig.post(SETTLE, &key, json!({"id": lasting["id"], "amount": 1})).await.status, StatusCode::OK);
    assert_eq!(rig.credits("u").await, ("9".into(), "0".into(), "0".into()));
}

pub(super) async fn every_charge_leaves_a_usage_row(ground: &Ground) {
    let rig = ground.replica();
    let key = rig.user("u", "10").await;
    let ask = rig.api(Method::POST, DEDUCT, &key).header("x-request-id", "their-name");
    let deducted = ask.json(&json!({"amount": 2.5, "reason": "a book"})).send().await;
    keyed(&rig, DEDUCT, &key, "k", r#"{"amount": 1}"#).await;
    keyed(&rig, DEDUCT, &key, "k", r#"{"amount": 1}"#).await;
    rig.post(DEDUCT, &key, json!({"amount": 100})).await;
    let hold = rig.post(RESERVE, &key, json!({"amount": 4})).await.json();
    let settled = rig.post(SETTLE, &key, json!({"id": hold["id"], "amount": 0.5, "reason": "a page"})).await;
    let released = rig.post(RESERVE, &key, json!({"amount": 4})).await.json();
    rig.post(RELEASE, &key, json!({"id": released["id"]})).await;

    let rows = eventually(Duration::from_secs(2), "the usage is there within two seconds", || async {
        let usage = rig.admin(Method::GET, "/admin/v1/users/u/usage").send().await.json();
        let rows = usage["data"].as_array().unwrap().clone();
        (rows.len() >= 3).then_some(rows)
    })
    .await;
    let charged: Vec<String> = rows.iter().map(|row| row["credits"].to_string()).collect();
    assert_eq!(charged, ["0.5", "1", "2.5"], "newest first, each once, refusals and releases none");
    let names: Vec<&str> = rows[2].as_object().unwrap().keys().map(String::as_str).collect();
    let shape = "client_request_id created_at credits estimated input_tokens latency_ms model output_tokens request_id route status";
    assert_eq!(names.join(" "), shape);
    assert_eq!(rows[2]["request_id"], deducted.header("x-request-id"));
    assert_eq!(rows[2]["client_request_id"], "their-name");
    assert_eq!((&rows[2]["route"], &rows[2]["status"]), (&json!("api"), &json!(200)));
    assert_eq!(rows[0]["request_id"], settled.header("x-request-id"));
    let account = AccountId::parse("u").unwrap();
    let stored = rig.store.usage(&account, PageRequest::default()).await.unwrap().data;
    let reasons: Vec<Option<&str>> = stored.iter().map(|row| row.usage.reason.as_deref()).collect();
    assert_eq!(reasons, [Some("a page"), None, Some("a book")]);

    // The user sees the same, in pages, and nobody else's.
    let own = rig.api(Method::GET, "/api/usage?limit=2", &key).send().await.json();
    assert_eq!(own["data"].as_array().unwrap()[..], rows[..2]);
    let cursor = own["next"].as_str().unwrap();
    let rest = rig.api(Method::GET, &format!("/api/usage?limit=2&cursor={cursor}"), &key).send().await.json();
    assert_eq!((rest["data"].as_array().unwrap(), &rest["next"]), (&rows[2..].to_vec(), &Value::Null));
    let neighbour = rig.user("neighbour", "1").await;
    let theirs = rig.api(Method::GET, "/api/usage", &neighbour).send().await;
    assert_eq!(theirs.text(), r#"{"data":[],"next":null}"#);
}
