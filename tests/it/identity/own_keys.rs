//! Keys that users make for themselves, and what those may do.

use std::time::Duration;

use faregate::store::questions::{Question, text, time};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Ground, StackAuth, ann, trusting};
use crate::api::rig::Rig;
use crate::support::{Faregate, Options, Postgres, Redis, Sim, eventually};

const SOON: Duration = Duration::from_secs(10);

async fn made(rig: &Rig, token: &str, body: Value) -> Value {
    let answer = rig.post("/api/keys", token, body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    answer.json()
}

pub(super) async fn keys_are_made_shown_and_ended(ground: &Ground, issuer: &StackAuth) {
    let rig = ground.replica();
    let token = issuer.token(&ann());
    let plain = made(&rig, &token, json!({"name": "laptop"})).await;
    let key = plain["key"].as_str().unwrap();
    assert!(key.starts_with(plain["prefix"].as_str().unwrap()));
    let body = json!({"name": "ci", "budget": 2.5, "models": ["gpt-4o*"], "expires_at": "2099-01-01T00:00:00Z"});
    let limited = made(&rig, &token, body).await;
    assert_eq!(limited["budget"], json!({"limit": 2.5, "used": 0}));
    let listed = rig.api(Method::GET, "/api/keys", &token).send().await.json();
    let names: Vec<&str> = listed["data"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ci", "laptop"], "{listed}");
    assert!(listed["data"].as_array().unwrap().iter().all(|key| key.get("key").is_none()), "{listed}");
    let page = rig.api(Method::GET, "/api/keys?limit=1", &token).send().await.json();
    let next = format!("/api/keys?limit=1&cursor={}", page["next"].as_str().unwrap());
    assert_eq!(rig.api(Method::GET, &next, &token).send().await.json()["data"][0]["name"], "laptop");
    // A key with limits only looks here; it can neither spend past them nor make one without.
    let own = limited["key"].as_str().unwrap();
    assert!(rig.api(Method::GET, "/api/credits/check", own).send().await.status.is_success());
    for (path, body) in [("/api/keys", json!({"name": "x"})), ("/api/credits/deduct", json!({"amount": 1}))] {
        assert_eq!(rig.post(path, own, body).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    for wrong in [
        json!({}),
        json!({"name": ""}),
        json!({"name": "x", "budget": 0}),
        json!({"name": "x", "models": []}),
        json!({"name": "x", "models": ["a["]}),
        json!({"name": "x", "expires_at": "2001-01-01T00:00:00Z"}),
    ] {
        assert_eq!(rig.post("/api/keys", &token, wrong.clone()).await.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
    let path = format!("/api/keys/{}", plain["id"].as_str().unwrap());
    let other = issuer.token(&faregate_sim::stack_auth::Person::new("bob", "bob@example.com"));
    assert_eq!(rig.api(Method::DELETE, &path, &other).send().await.status, StatusCode::NOT_FOUND);
    assert_eq!(rig.api(Method::DELETE, &path, &token).send().await.status, StatusCode::NO_CONTENT);
    assert_eq!(rig.api(Method::GET, "/api/credits/check", key).send().await.status, StatusCode::UNAUTHORIZED);
}

/// A key that opens is listed and counted however many were revoked since; of many made at once none is one too many.
pub(super) async fn a_live_key_is_never_hidden_nor_one_too_many(ground: &Ground, issuer: &StackAuth) {
    let rig = ground.replica();
    let token = issuer.token(&ann());
    let first = made(&rig, &token, json!({"name": "planted"})).await;
    let sqlite = ground.config.store.url.is_empty();
    let revoked = (0..510).map(|number| {
        let hash = format!("{number:064x}");
        let hash = if sqlite { format!("x'{hash}'") } else { format!("decode('{hash}', 'hex')") };
        let sql = format!(
            "INSERT INTO api_keys (id, hash, prefix, kind, user_id, name, created_at, revoked_at)
            VALUES (?, {hash}, 'fg_live_x', 'live', ?, 'old', ?, ?)"
        );
        let at = || time(u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap() + 1_000_000);
        Question::new(sql, [text(format!("key_{number}")), text(ann().id), at(), at()])
    });
    ground.store.execute(revoked.collect()).await.unwrap();
    let listed = async || {
        let list = rig.api(Method::GET, "/api/keys?limit=500", &token).send().await.json();
        list["data"].as_array().unwrap().iter().map(|key| key["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, [first["id"].clone()]);
    let asks = (0..130).map(|number| {
        let body = json!({"name": format!("key {number}")});
        let (rig, token) = (&rig, &token);
        async move { rig.post("/api/keys", token, body).await.status }
    });
    let statuses = futures_util::future::join_all(asks).await;
    let count = |status: StatusCode| statuses.iter().filter(|one| **one == status).count();
    assert_eq!((count(StatusCode::CREATED), count(StatusCode::CONFLICT)), (99, 31), "{statuses:?}");
    assert_eq!(listed().await.len(), 100);
}

/// A repetition answers what was made, but not the key: that is kept nowhere.
#[tokio::test]
async fn a_repetition_makes_no_second_key() {
    let issuer = StackAuth::start();
    let (ground, _) = Ground::model(trusting(&issuer)).await;
    let rig = ground.replica();
    let token = issuer.token(&ann());
    let ask = || rig.api(Method::POST, "/api/keys", &token).header("idempotency-key", "k").json(&json!({"name": "a"}));
    let (first, again) = (ask().send().await.json(), ask().send().await.json());
    assert_eq!((&first["id"], first["key"].is_string(), again.get("key")), (&again["id"], true, None));
}

fn message(model: &str) -> Value {
    json!({"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]})
}

/// failures 1: of 40 requests at once, over two replicas, a key's budget of 5 credits pays for 5; the rest is told why.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_never_overspent() {
    let (issuer, upstream, postgres, redis) = (StackAuth::start(), Sim::start(), Postgres::start(), Redis::start());
    let options = || {
        let options = Options::new().upstream(upstream.url()).store(postgres.url()).ledger(redis.url());
        let options = options.set("plans.free.signup_credits", 100).set("stack.project_id", issuer.project());
        Faregate::start(options.set("stack.base_url", issuer.url()))
    };
    let gates = [options(), options()];
    let token = issuer.token(&ann());
    let body = json!({"name": "ci", "budget": 5});
    let key = gates[0].http.post(&gates[0].url("/api/keys"), &token, &body).await.json();
    let (id, key) = (key["id"].as_str().unwrap().to_owned(), key["key"].as_str().unwrap().to_owned());
    let asks = (0..40).map(|number| {
        let gate = &gates[number % 2];
        let (key, body) = (&key, message("demo"));
        async move { gate.http.post(&gate.url("/v1/chat/completions"), key, &body).await }
    });
    let answers = futures_util::future::join_all(asks).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 5);
    for refused in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (402, &json!("key_budget_exhausted")));
    }
    let used = || async {
        let keys = gates[1].http.get(&gates[1].url("/api/keys"), &token).await.json();
        let key = keys["data"].as_array().unwrap().iter().find(|key| key["id"] == id.as_str()).unwrap().clone();
        (key["budget"] == json!({"limit": 5, "used": 5})).then_some(())
    };
    eventually(SOON, "what was used shows", used).await;
    assert_eq!(gates[0].available(&ann().id).await, 95.0);
    let told = || async {
        let list = gates[0].http.get(&gates[0].url("/api/notifications"), &token).await.json();
        let kinds = list["data"].as_array()?.iter().filter(|notice| notice["kind"] == "key_budget_exhausted").count();
        (kinds == 1).then_some(())
    };
    eventually(SOON, "the user is told, once", told).await;
    what_is_left_is_too_little(&gates, &token).await;
}

/// A budget that cannot pay the next request is used up for its owner, whatever is left of it.
async fn what_is_left_is_too_little(gates: &[Faregate; 2], token: &str) {
    let gate = &gates[0];
    let body = json!({"name": "half", "budget": 2.5});
    let made = gate.http.post(&gate.url("/api/keys"), token, &body).await.json();
    let (id, key) = (made["id"].clone(), made["key"].as_str().unwrap().to_owned());
    let told = async || {
        let list = gate.http.get(&gate.url("/api/notifications"), token).await.json();
        list["data"].as_array().unwrap().iter().filter(|notice| notice["data"]["key"] == id).count()
    };
    for _ in 0..2 {
        assert_eq!(gate.http.post(&gate.url("/v1/chat/completions"), &key, &message("demo")).await.status, 200);
    }
    let used = || async {
        let keys = gate.http.get(&gate.url("/api/keys"), token).await.json();
        let key = keys["data"].as_array().unwrap().iter().find(|key| key["id"] == id).unwrap().clone();
        (key["budget"]["used"] == 2).then_some(())
    };
    eventually(SOON, "nothing of it is in flight", used).await;
    assert_eq!(told().await, 0, "half a credit is left");
    for gate in gates.iter().chain(gates) {
        assert_eq!(gate.http.post(&gate.url("/v1/chat/completions"), &key, &message("demo")).await.status, 402);
        assert_eq!(told().await, 1, "told before the refusal, and once");
    }
}

/// What a key may not ask for is refused in the protocol's own form, and nothing is taken for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_asks_for_its_models_until_its_time() {
    let (issuer, upstream) = (StackAuth::start(), Sim::start());
    let options = Options::new().upstream(upstream.url()).set("stack.project_id", issuer.project());
    let gate = Faregate::start(options.set("stack.base_url", issuer.url()));
    let token = issuer.token(&ann());
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4)).to_string();
    let body = json!({"name": "ci", "models": ["gpt-4o*"], "expires_at": soon});
    let key = gate.http.post(&gate.url("/api/keys"), &token, &body).await.json()["key"].as_str().unwrap().to_owned();
    let chat = gate.url("/v1/chat/completions");
    let refused = gate.http.post(&chat, &key, &message("o1")).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (403, &json!("model_not_allowed")));
    let refused = gate.http.post(&gate.url("/v1/messages"), &key, &message("o1")).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["type"]), (403, &json!("permission_error")));
    let allowed = gate.http.post(&chat, &key, &message("gpt-4o-mini")).await;
    assert_eq!((allowed.status.as_u16(), allowed.header("x-credits-remaining")), (200, "4"), "{}", allowed.text());
    let expired = || async {
        let answer = gate.http.post(&chat, &key, &message("gpt-4o")).await;
        (answer.status == 401).then(|| answer.json()["error"]["code"].clone())
    };
    assert_eq!(eventually(SOON, "the key has expired", expired).await, "expired_api_key");
}
