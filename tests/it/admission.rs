//! Who is let in, and how soon no longer.

use std::time::Duration;

use faregate::config::Config;
use faregate::credits::Credits;
use faregate::identity::MAX_REFUSALS;
use faregate::identity::keys::NewKey;
use faregate::identity::principal::AuthError;
use faregate::ledger::Limit;
use faregate::ledger::hold::{Ask, Hold, Refusal, reserve};
use faregate::store::KeyKind;
use faregate::usage::Usage;
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;

use crate::api::rig::{Ground, Rig, bearer, headers, settings};
use crate::support::http::request;
use crate::support::{Faregate, Options, Postgres, Redis, Sim, eventually};

/// Polling has begun once a second look-up of a key asks the store no more.
async fn watching(rig: &Rig, key: &str) {
    eventually(Duration::from_secs(5), "callers are cached", || async {
        rig.identity.authenticate(&bearer(key)).await.unwrap();
        rig.identity.cached(&bearer(key))
    })
    .await
    .unwrap();
}

pub(crate) async fn a_revoked_key_is_refused_at_once_here_and_within_a_second_elsewhere(ground: &Ground) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    here.user("u", "1").await;
    let (key, id) = here.key("u").await;
    watching(&here, &key).await;
    watching(&elsewhere, &key).await;

    let revoked = here.admin(Method::DELETE, &format!("/admin/v1/users/u/keys/{id}")).send().await;
    assert_eq!(revoked.status, StatusCode::OK);
    assert_eq!(here.identity.cached(&bearer(&key)), None);
    assert_eq!(here.identity.authenticate(&bearer(&key)).await, Err(AuthError::Revoked));
    eventually(Duration::from_secs(1), "the other replica refuses the key", || async {
        matches!(elsewhere.identity.authenticate(&bearer(&key)).await, Err(AuthError::Revoked)).then_some(())
    })
    .await;
    let answer = elsewhere.api(Method::GET, "/api/credits/check", &key).send().await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

pub(crate) async fn a_revoked_service_key_is_refused_for_every_user_it_acted_for(ground: &Ground) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    let (key, id) = here.service_key().await;
    let acting = |user: &str| headers(&[("x-api-key", key.as_str()), ("x-faregate-user", user)]);
    for user in ["ann", "bob"] {
        eventually(Duration::from_secs(5), "the other replica caches", || async {
            elsewhere.identity.authenticate(&acting(user)).await.unwrap();
            elsewhere.identity.cached(&acting(user))
        })
        .await
        .unwrap();
    }
    let revoked = here.admin(Method::DELETE, &format!("/admin/v1/keys/{id}")).send().await;
    assert_eq!(revoked.status, StatusCode::OK);
    for user in ["ann", "bob"] {
        eventually(Duration::from_secs(1), "refused elsewhere", || async {
            matches!(elsewhere.identity.authenticate(&acting(user)).await, Err(AuthError::Revoked)).then_some(())
        })
        .await;
        assert_eq!(here.identity.authenticate(&acting(user)).await, Err(AuthError::Revoked));
    }
}

#[tokio::test]
async fn garbage_asks_the_store_nothing_and_unknown_keys_ask_it_once() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "0").await;
    watching(&rig, &key).await;
    let before = rig.look_ups("found");
    for garbage in ["sk-something", "fg_live_", &key[..key.len() - 1], &format!("{key}x")] {
        assert_eq!(rig.identity.cached(&bearer(garbage)), Some(Err(AuthError::Invalid)), "{garbage}");
        assert_eq!(rig.identity.authenticate(&bearer(garbage)).await, Err(AuthError::Invalid));
    }
    assert_eq!(rig.look_ups("unknown"), 0);

    let unknown = NewKey::generate(KeyKind::Live).unwrap();
    let unknown = bearer(unknown.text.reveal());
    let asked = futures_util::future::join_all((0..50).map(|_| rig.identity.authenticate(&unknown))).await;
    assert!(asked.iter().all(|answer| *answer == Err(AuthError::Invalid)));
    assert_eq!(rig.identity.cached(&unknown), Some(Err(AuthError::Invalid)));
    assert_eq!(rig.look_ups("unknown"), 1, "equal look-ups fly together, and the answer is kept");
    assert_eq!(rig.look_ups("found"), before);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_pushes_no_known_caller_out() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "0").await;
    watching(&rig, &key).await;
    let flood = MAX_REFUSALS / 4;
    for _ in 0..flood {
        let unknown = NewKey::generate(KeyKind::Live).unwrap();
        let refused = rig.identity.authenticate(&bearer(unknown.text.reveal())).await;
        assert_eq!(refused, Err(AuthError::Invalid));
    }
    assert!(rig.identity.cached(&bearer(&key)).is_some_and(|known| known.is_ok()));
}

/// The 50 first requests of a user come at once, to two replicas.
pub(crate) async fn first_uses_at_once_make_one_user_with_one_grant(ground: &Ground) {
    let (one, two) = (ground.replica(), ground.replica());
    let (key, _) = one.service_key().await;
    let asks = (0..50).map(|number| {
        let rig = if number % 2 == 0 { &one } else { &two };
        let ask = rig.api(Method::POST, "/api/credits/deduct", "");
        ask.header("x-api-key", &key).header("x-faregate-user", "new-user").json(&json!({"amount": 0.1})).send()
    });
    let answers = futures_util::future::join_all(asks).await;
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
    let shown = one.admin(Method::GET, "/admin/v1/users/new-user").send().await.json();
    assert_eq!(shown["grants"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(shown["credits"]["available"].to_string(), "0", "5 granted, 50 times 0.1 spent");
    assert_eq!(shown["plan"], "free");
    let users = one.admin(Method::GET, "/admin/v1/users").send().await.json();
    assert_eq!(users["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_service_key_needs_a_user_that_it_may_have() {
    let mut config = settings();
    config.service_keys.create_users = false;
    let (ground, _) = Ground::model(config).await;
    let rig = ground.replica();
    let (key, _) = rig.service_key().await;
    let check = |user: Option<&str>| {
        let ask = rig.api(Method::GET, "/api/credits/check", &key);
        match user {
            Some(user) => ask.header("x-faregate-user", user).send(),
            None => ask.send(),
        }
    };
    assert_eq!(check(None).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(check(Some("no/id")).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(check(Some("stranger")).await.status, StatusCode::NOT_FOUND);
    rig.user("known", "2").await;
    assert_eq!(check(Some("known")).await.status, StatusCode::OK);
    // A user's own key acts for that user, whatever else it names.
    rig.user("other", "0").await;
    let (own, _) = rig.key("known").await;
    let ask = rig.api(Method::GET, "/api/credits/check", &own).header("x-faregate-user", "other");
    assert_eq!(ask.send().await.json()["available"].to_string(), "2");
}

#[tokio::test]
async fn without_the_store_known_callers_go_on_and_nobody_new_gets_in() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "1").await;
    let (other, _) = rig.key("u").await;
    watching(&rig, &key).await;
    ground.store.close().await;
    assert!(rig.identity.cached(&bearer(&key)).is_some_and(|known| known.is_ok()));
    assert_eq!(rig.identity.authenticate(&bearer(&other)).await, Err(AuthError::Unavailable));
    let answer = rig.api(Method::GET, "/api/credits/check", &other).send().await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("retry-after"), "1");
}

/// failures 13: litellm#27480. Limits come with the principal: nothing that a client sends names, raises or splits them.
#[tokio::test]
async fn limits_belong_to_the_principal() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let made = rig.admin(Method::POST, "/admin/v1/users").json(&json!({"id": "u", "plan": "tight"})).send().await;
    assert_eq!(made.status, StatusCode::CREATED);
    let (one, two) = (rig.key("u").await.0, rig.key("u").await.0);
    let mut labelled = bearer(&one);
    for name in ["x-user", "x-faregate-user", "x-end-user-id", "x-forwarded-for"] {
        labelled.insert(name, "someone-else".parse().unwrap());
    }
    let (plain, other_key) = (bearer(&one), bearer(&two));
    for headers in [&plain, &labelled, &other_key] {
        let principal = rig.identity.authenticate(headers).await.unwrap();
        assert_eq!(principal.account.as_str(), "u");
        assert_eq!(&*principal.plan, "tight");
        assert_eq!(principal.limits, settings().plans["tight"].limits());
    }
}

#[tokio::test]
async fn a_plan_that_left_the_configuration_keeps_a_limit() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    rig.admin(Method::POST, "/admin/v1/users").json(&json!({"id": "u", "plan": "tight"})).send().await;
    let (key, _) = rig.key("u").await;
    let mut config: Config = settings();
    config.plans.remove("tight");
    config.plans.get_mut("free").unwrap().requests_per_minute = 7;
    let metrics = faregate::telemetry::Metrics::new().unwrap();
    let later = faregate::identity::Identity::new(ground.store.clone(), &config, metrics, None);
    let principal = later.authenticate(&bearer(&key)).await.unwrap();
    assert_eq!((&*principal.plan, principal.limits.requests_per_minute), ("tight", 7));
}

/// What the gateway does before a request rides: who is it, and may they.
async fn board(rig: &Rig, headers: &HeaderMap, credits: u32) -> Result<Hold, Refusal> {
    let principal = rig.identity.authenticate(headers).await.unwrap();
    let amount = Credits::whole(credits);
    let ask = Ask { amount, floor: amount, tokens: 0, limits: principal.limits };
    reserve(&rig.ledger, &principal.account, ask).await.map(|(hold, _)| hold)
}

async fn tight_user(rig: &Rig) -> (String, String) {
    let made = rig.admin(Method::POST, "/admin/v1/users").json(&json!({"id": "u", "plan": "tight"})).send().await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    (rig.key("u").await.0, rig.key("u").await.0)
}

/// failures 12: litellm#39309. Whoever is refused for want of credits, or by a limit, has used nothing up.
pub(crate) async fn a_refusal_consumes_no_rate_limit(ground: &Ground) {
    let rig = ground.replica();
    let (key, _) = tight_user(&rig).await;
    let headers = bearer(&key);
    for _ in 0..10 {
        assert!(matches!(board(&rig, &headers, 1).await, Err(Refusal::Insufficient { .. })));
    }
    rig.admin(Method::POST, "/admin/v1/users/u/grants").json(&json!({"amount": 10})).send().await;
    // Two ride at a time; the third is turned away by concurrency, and that costs it no request either.
    let (one, two) = (board(&rig, &headers, 1).await.unwrap(), board(&rig, &headers, 1).await.unwrap());
    for _ in 0..10 {
        let refused = board(&rig, &headers, 1).await.map(drop);
        assert!(matches!(refused, Err(Refusal::Limited { limit: Limit::Concurrency, .. })), "{refused:?}");
    }
    for hold in [one, two] {
        hold.settle(Credits::whole(1), 0, Usage::default().encode()).await.unwrap();
    }
    board(&rig, &headers, 1).await.unwrap().release().await.unwrap();
    let refused = board(&rig, &headers, 1).await.map(drop);
    assert!(matches!(refused, Err(Refusal::Limited { limit: Limit::Requests, .. })), "{refused:?}");
}

/// failures 13: litellm#27480, docs PR#1106. Two keys and any number of labels are still one account.
pub(crate) async fn limits_hold_across_keys_labels_and_replicas(ground: &Ground) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    let (one, two) = tight_user(&here).await;
    here.admin(Method::POST, "/admin/v1/users/u/grants").json(&json!({"amount": 10})).send().await;
    let mut labelled = bearer(&one);
    labelled.insert("x-faregate-user", "someone-else".parse().unwrap());
    for (rig, headers) in [(&here, &bearer(&one)), (&elsewhere, &bearer(&two)), (&here, &labelled)] {
        board(rig, headers, 1).await.unwrap().release().await.unwrap();
    }
    for (rig, headers) in [(&elsewhere, &bearer(&one)), (&here, &bearer(&two)), (&elsewhere, &labelled)] {
        let refused = board(rig, headers, 1).await.map(drop);
        assert!(matches!(refused, Err(Refusal::Limited { limit: Limit::Requests, .. })), "{refused:?}");
    }
}

/// Two real replicas, beside each other on one Redis and one Postgres.
fn replicas(sim: &Sim, redis: &Redis, postgres: &Postgres) -> [Faregate; 2] {
    let options = || {
        let options = Options::new().ledger(redis.url()).store(postgres.url()).env("FAREGATE_WORKERS", 1);
        options.upstream(format!("http://{}", sim.addr()))
    };
    [Faregate::start(options()), Faregate::start(options())]
}

fn message(key: &str, user: Option<&str>, replica: &Faregate) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
    let mut request = request(Method::POST, &replica.url("/v1/chat/completions"), key, Some(&body));
    if let Some(user) = user {
        request.headers_mut().insert("x-faregate-user", user.parse().unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_rides_no_more_on_any_replica() {
    let (sim, redis, postgres) = (Sim::start(), Redis::start(), Postgres::start());
    let [here, elsewhere] = replicas(&sim, &redis, &postgres);
    let key = here.user("u", "5").await;
    for replica in [&here, &elsewhere] {
        assert_eq!(replica.http.call(message(&key, None, replica)).await.status, 200);
    }
    let keys = here.admin(Method::GET, "/admin/v1/users/u/keys", None).await.json();
    let path = format!("/admin/v1/users/u/keys/{}", keys["data"][0]["id"].as_str().unwrap());
    assert_eq!(here.admin(Method::DELETE, &path, None).await.status, 200);
    assert_eq!(here.http.call(message(&key, None, &here)).await.status, 401, "at once where it was revoked");
    eventually(Duration::from_secs(1), "the other replica refuses the key", || async {
        (elsewhere.http.call(message(&key, None, &elsewhere)).await.status == 401).then_some(())
    })
    .await;
    let check = elsewhere.http.get(&elsewhere.url("/api/credits/check"), &key).await;
    assert_eq!(check.status, 401);
}

/// 50 first messages of a user nobody knew, through a service key, on two replicas: one user, one grant of 5 credits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_users_first_messages_share_one_grant() {
    let (sim, redis, postgres) = (Sim::start(), Redis::start(), Postgres::start());
    let replicas = replicas(&sim, &redis, &postgres);
    let made = replicas[0].admin(Method::POST, "/admin/v1/keys", Some(json!({"name": "app"}))).await.json();
    let key = made["key"].as_str().unwrap();
    let asks = (0..50).map(|number| {
        let replica = &replicas[number % 2];
        replica.http.call(message(key, Some("newcomer"), replica))
    });
    let answers = futures_util::future::join_all(asks).await;
    let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(200), count(402)), (5, 45));
    let shown = replicas[1].show("newcomer").await;
    assert_eq!(shown["grants"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(shown["credits"], json!({"available": 0, "held": 0, "debt": 0}));
}
