//! The operator's API.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::rig::{Ground, Rig, settings};
use crate::support::eventually;
use crate::support::http::Answer;

async fn post(rig: &Rig, path: &str, idempotency: &str, body: &Value) -> Answer {
    let ask = rig.admin(Method::POST, path).json(body);
    if idempotency.is_empty() { ask.send().await } else { ask.header("idempotency-key", idempotency).send().await }
}

#[tokio::test]
async fn only_the_token_opens() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "1").await;
    for token in ["", "Bearer", "Bearer ", "Bearer the-operators-toke", "Bearer the-operators-token2", "Basic x"] {
        let answer = rig.open(Method::GET, "/admin/v1/users").header("authorization", token).send().await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{token:?}");
    }
    let bearer = format!("Bearer {key}");
    let answer = rig.open(Method::GET, "/admin/v1/users").header("authorization", &bearer).send().await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "a user's key is no token");
    assert_eq!(rig.open(Method::GET, "/healthz").send().await.status, StatusCode::OK);
    assert_eq!(rig.open(Method::GET, "/metrics").send().await.status, StatusCode::OK);
}

pub(super) async fn users_are_made_with_their_plans_credits(ground: &Ground) {
    let rig = ground.replica();
    let made = post(&rig, "/admin/v1/users", "", &json!({"email": "a@example.com"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    let user = made.json();
    assert_eq!((&user["plan"], &user["status"]), (&json!("free"), &json!("active")));
    assert_eq!(user["credits"].to_string(), r#"{"available":5,"debt":0,"held":0}"#);
    assert_eq!(user.get("pending"), None);
    let id = user["id"].as_str().unwrap();
    let shown = rig.admin(Method::GET, &format!("/admin/v1/users/{id}")).send().await.json();
    assert_eq!(shown["email"], "a@example.com");
    assert_eq!(shown["credits"], user["credits"]);
    assert_eq!((shown["grants"][0]["amount"].to_string(), &shown["grants"][0]["kind"]), ("5".into(), &json!("free")));
    assert!(shown["created_at"].as_str().unwrap().ends_with('Z'));

    assert_eq!(post(&rig, "/admin/v1/users", "", &json!({"id": "x"})).await.status, StatusCode::CREATED);
    assert_eq!(post(&rig, "/admin/v1/users", "", &json!({"id": "x"})).await.status, StatusCode::CONFLICT);
    for bad in [
        json!({"id": "a/b"}),
        json!({"id": ""}),
        json!({"id": ".."}),
        json!({"plan": "gold"}),
        json!({"id": "y", "credits": 5}),
        json!({"email": ""}),
        json!([]),
    ] {
        let answer = post(&rig, "/admin/v1/users", "", &bad).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}: {}", answer.text());
    }
    for path in ["/admin/v1/users/nobody", "/admin/v1/users/nobody/usage", "/admin/v1/users/a%2Fb"] {
        assert_eq!(rig.admin(Method::GET, path).send().await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

pub(super) async fn grants_are_live_when_the_answer_leaves_and_given_once(ground: &Ground) {
    let (rig, other) = (ground.replica(), ground.replica());
    let key = rig.user("u", "0").await;
    let path = "/admin/v1/users/u/grants";
    let body = json!({"amount": 7.25, "kind": "topup", "expires_at": "2099-01-01T00:00:00Z", "note": "thanks"});
    let made = post(&rig, path, "g", &body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    let grant = made.json();
    assert_eq!((grant["amount"].to_string(), grant["remaining"].to_string()), ("7.25".into(), "7.25".into()));
    assert_eq!((&grant["kind"], &grant["note"]), (&json!("topup"), &json!("thanks")));
    assert_eq!(grant["expires_at"], "2099-01-01T00:00:00Z");
    let deducted = other.post("/api/credits/deduct", &key, json!({"amount": 7.25})).await;
    assert_eq!(deducted.text(), r#"{"charged":7.25,"available":0}"#);

    let again = post(&other, path, "g", &body).await;
    assert_eq!((again.status, again.text()), (StatusCode::CREATED, made.text()));
    assert_eq!(again.header("idempotent-replayed"), "true");
    let mismatch = post(&rig, path, "g", &json!({"amount": 8})).await;
    assert_eq!(mismatch.status, StatusCode::UNPROCESSABLE_ENTITY);
    let body = json!({"amount": 1});
    let together = futures_util::future::join_all((0..10).map(|_| post(&rig, path, "h", &body))).await;
    let made = together.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
    let running = together.iter().filter(|answer| answer.status == StatusCode::CONFLICT).count();
    assert!(made >= 1 && made + running == 10);
    assert_eq!(rig.credits("u").await.0, "1");
    for bad in [
        json!({"amount": 0}),
        json!({"amount": -1}),
        json!({"amount": 9_000_000_000_u64}),
        json!({"amount": 1, "kind": "gift"}),
        json!({"amount": 1, "expires_at": "2001-01-01T00:00:00Z"}),
        json!({"amount": 1, "expires_at": "tomorrow"}),
    ] {
        assert_eq!(post(&rig, path, "", &bad).await.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let unknown = post(&rig, "/admin/v1/users/nobody/grants", "", &json!({"amount": 1})).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_keys_text_is_shown_once() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    rig.user("u", "1").await;
    let body = json!({"name": "laptop"});
    let made = post(&rig, "/admin/v1/users/u/keys", "k", &body).await;
    let text = made.json()["key"].as_str().unwrap().to_owned();
    assert!(text.starts_with("fg_live_"));
    let again = post(&rig, "/admin/v1/users/u/keys", "k", &body).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::CREATED, "true"));
    assert_eq!((again.json().get("key"), &again.json()["id"]), (None, &made.json()["id"]));
    let test = post(&rig, "/admin/v1/users/u/keys", "", &json!({"name": "ci", "test": true})).await.json();
    let test = test["key"].as_str().unwrap().to_owned();
    assert!(test.starts_with("fg_test_"));
    assert_eq!(rig.api(Method::GET, "/api/credits/check", &test).send().await.status, StatusCode::OK);
    let service = post(&rig, "/admin/v1/keys", "", &json!({"name": "app"})).await.json();
    assert!(service["key"].as_str().unwrap().starts_with("fg_srv_"));

    let listed = rig.admin(Method::GET, "/admin/v1/users/u/keys").send().await;
    assert_eq!(listed.json()["data"].as_array().unwrap().len(), 3);
    let services = rig.admin(Method::GET, "/admin/v1/keys").send().await;
    assert_eq!(services.json()["data"].as_array().unwrap().len(), 1);
    assert!(!listed.text().contains(&text) && !listed.text().contains("hash"));
    let other = rig.user("other", "0").await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let foreign = rig.admin(Method::DELETE, &format!("/admin/v1/users/other/keys/{id}")).send().await;
    assert_eq!(foreign.status, StatusCode::NOT_FOUND, "another user's key");
    assert_eq!(rig.api(Method::GET, "/api/credits/check", &other).send().await.status, StatusCode::OK);
}

/// failures 27: litellm#37007. No list comes without pages.
#[tokio::test]
async fn lists_come_in_pages() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    for number in 0..7 {
        let made = post(&rig, "/admin/v1/users", "", &json!({"id": format!("u{number}"), "plan": "none"})).await;
        assert_eq!(made.status, StatusCode::CREATED);
        post(&rig, "/admin/v1/users/u0/grants", "", &json!({"amount": 1})).await;
        rig.key("u0").await;
    }
    for path in ["/admin/v1/users", "/admin/v1/users/u0/grants", "/admin/v1/users/u0/keys"] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        for _ in 0..3 {
            let page = rig.admin(Method::GET, &format!("{path}?limit=3{cursor}")).send().await.json();
            seen.extend(page["data"].as_array().unwrap().iter().map(|item| item["id"].to_string()));
            cursor = match &page["next"] {
                Value::String(next) => format!("&cursor={next}"),
                _ => break,
            };
        }
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!((count, seen.len()), (7, 7), "{path}");
    }
    for query in ["limit=0", "limit=501", "limit=-1", "limit=x", "page=2", "cursor=%00", "limit=1&limit=2"] {
        for path in ["/admin/v1/users", "/admin/v1/users/u0/usage", "/admin/v1/users/u0/keys"] {
            let answer = rig.admin(Method::GET, &format!("{path}?{query}")).send().await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}?{query}: {}", answer.text());
        }
    }
    let garbage = rig.admin(Method::GET, "/admin/v1/users/u0/usage?cursor=!!!").send().await;
    assert_eq!(garbage.status, StatusCode::BAD_REQUEST, "{}", garbage.text());
}

#[tokio::test]
async fn ready_means_ledger_store_and_a_route() {
    let (ground, ledger) = Ground::model(settings()).await;
    let rig = ground.replica();
    let ready = || rig.open(Method::GET, "/readyz").send();
    assert_eq!(ready().await.status, StatusCode::OK);
    rig.routes_ready.store(false, Ordering::SeqCst);
    let answer = ready().await;
    assert_eq!((answer.status, &answer.json()["routes"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    rig.routes_ready.store(true, Ordering::SeqCst);
    ledger.take_down(true);
    let answer = ready().await;
    assert_eq!((answer.status, &answer.json()["ledger"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    ledger.take_down(false);
    ground.store.close().await;
    let answer = ready().await;
    assert_eq!((answer.status, &answer.json()["store"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    assert_eq!(rig.open(Method::GET, "/healthz").send().await.status, StatusCode::OK);
}

/// Design section 4: no ledger, no service; but what the operator does is stored, and said to be on its way.
#[tokio::test]
async fn without_the_ledger_changes_are_stored_and_told_as_pending() {
    let (ground, ledger) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("old", "3").await;
    ledger.take_down(true);
    let made = post(&rig, "/admin/v1/users", "", &json!({"id": "new"})).await;
    assert_eq!((made.status, &made.json()["pending"]), (StatusCode::CREATED, &json!(true)));
    let granted = post(&rig, "/admin/v1/users/old/grants", "", &json!({"amount": 2})).await;
    assert_eq!((granted.status, &granted.json()["pending"]), (StatusCode::CREATED, &json!(true)));
    for answer in [
        rig.api(Method::GET, "/api/credits/check", &key).send().await,
        rig.post("/api/credits/deduct", &key, json!({"amount": 1})).await,
        rig.admin(Method::GET, "/admin/v1/users/old").send().await,
    ] {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
        assert_eq!(answer.header("retry-after"), "1");
    }
    ledger.take_down(false);
    // The next change brings the missing ones along.
    post(&rig, "/admin/v1/users/old/grants", "", &json!({"amount": 1})).await;
    assert_eq!(rig.credits("old").await.0, "6");
}

/// failures 29: litellm#12159. No name of a user, key, model or path becomes a label.
#[tokio::test]
async fn metrics_carry_no_names() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("somebody-special", "3").await;
    let series = |text: String| text.lines().filter(|line| !line.starts_with('#')).count();
    rig.api(Method::GET, "/api/credits/check", &key).send().await;
    rig.api(Method::GET, "/api/credits/check", "fg_live_unknown").send().await;
    let before = series(rig.open(Method::GET, "/metrics").send().await.text());
    for number in 0..20 {
        let key = rig.user(&format!("somebody-{number}"), "1").await;
        rig.api(Method::GET, &format!("/api/path-{number}"), &key).send().await;
        rig.post("/api/credits/deduct", &key, json!({"amount": 1, "reason": format!("reason-{number}")})).await;
    }
    let text = rig.open(Method::GET, "/metrics").send().await.text();
    assert!(!text.contains("somebody") && !text.contains("path-") && !text.contains("reason-"));
    assert!(series(text.clone()) <= before + 2, "the set of series does not grow with users:\n{text}");
}

#[tokio::test]
async fn work_goes_on_when_its_caller_hangs_up() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    rig.user("u", "0").await;
    let body = json!({"amount": 2});
    let path = "/admin/v1/users/u/grants";
    for polls in 1..=40 {
        let key = format!("hung-up-{polls}");
        let mut asked = Box::pin(post(&rig, path, &key, &body));
        for _ in 0..polls {
            if futures_util::poll!(asked.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(asked);
        eventually(Duration::from_secs(10), "the key is not left running", || async {
            (post(&rig, path, &key, &body).await.status == StatusCode::CREATED).then_some(())
        })
        .await;
    }
    assert_eq!(rig.credits("u").await.0, "80");
}
