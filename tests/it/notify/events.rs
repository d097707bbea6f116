//! GET /api/events: told from whichever replica it came, resumed without a gap, ended when it must be.

use faregate::ledger::AccountId;
use faregate::store::notifications::{Notice, NoticeKind};
use http::{Method, StatusCode};
use serde_json::json;

use super::{Listener, on_both};
use crate::api::rig::{Ground, Rig, settings};
use crate::support::eventually;

on_both!(
    a_change_is_told_wherever_it_was_made,
    what_was_missed_comes_first_and_once,
    a_stream_ends_with_its_key,
    a_stream_ends_with_its_account_and_outlives_a_freeze,
);

async fn tell(rig: &Rig, user: &str, key: &str) {
    let user = AccountId::parse(user).unwrap();
    let notice =
        Notice { user, kind: NoticeKind::TrialEnding, data: json!({ "key": key }), dedupe_key: key.to_owned() };
    assert!(rig.store.notify(notice).await.unwrap());
}

async fn a_change_is_told_wherever_it_was_made(ground: &Ground) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    let key = here.user("u", "10").await;
    let other = here.user("v", "10").await;
    let mut listener = Listener::open(&here, &key, None).await;
    let first = listener.next().await.unwrap();
    assert_eq!((first.name.as_str(), first.data["reason"].as_str()), ("credits", Some("snapshot")));
    assert_eq!(first.data.to_string(), r#"{"available":10,"debt":0,"held":0,"low":false,"reason":"snapshot"}"#);
    // Another's are another's.
    elsewhere.post("/api/credits/deduct", &other, json!({ "amount": 1 })).await;
    elsewhere.post("/api/credits/deduct", &key, json!({ "amount": 2.5 })).await;
    let told = listener.until_available("7.5").await;
    assert_eq!((told.data["reason"].as_str(), told.data["low"].as_bool()), (Some("usage"), Some(false)));
    elsewhere.post("/api/credits/deduct", &key, json!({ "amount": 6 })).await;
    assert_eq!(listener.until_available("1.5").await.data["low"], true);
    let grant = elsewhere.admin(Method::POST, "/admin/v1/users/u/grants").json(&json!({ "amount": 20 })).send().await;
    assert_eq!(grant.status, StatusCode::CREATED);
    assert_eq!(listener.until_available("21.5").await.data["reason"], "billing");
    // A hold that is given back changes nothing in the store.
    let hold = here.post("/api/credits/reserve", &key, json!({ "amount": 5 })).await.json();
    here.post("/api/credits/deduct", &key, json!({ "amount": 0.5 })).await;
    let held = listener.until_available("16").await;
    assert_eq!(held.data["held"].to_string(), "5");
    here.post("/api/credits/release", &key, json!({ "id": hold["id"] })).await;
    assert_eq!(listener.until_available("21").await.data["held"].to_string(), "0");
    tell(&elsewhere, "u", "a").await;
    let told = listener.of_name("notification").await;
    let kind = told.data["kind"].as_str();
    assert!(matches!(kind, Some("credits_low" | "trial_ending")), "{told:?}");
}

/// A client that is cut off again and again sees each notification exactly once, in order, and the latest balance.
async fn what_was_missed_comes_first_and_once(ground: &Ground) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    let key = here.user("u", "10").await;
    tell(&here, "u", "before").await;
    let mut listener = Listener::open(&here, &key, None).await;
    let mut last = listener.next().await.unwrap().id;
    let mut seen = Vec::new();
    for round in 0..4 {
        drop(listener);
        for key in ["a", "b", "c"] {
            tell(&elsewhere, "u", &format!("{key}{round}")).await;
        }
        elsewhere.post("/api/credits/deduct", &key, json!({ "amount": 1 })).await;
        let rig = if round % 2 == 0 { &elsewhere } else { &here };
        listener = Listener::open(rig, &key, Some(&last)).await;
        tell(&here, "u", &format!("d{round}")).await;
        for _ in 0..4 {
            let told = listener.of_name("notification").await;
            seen.push(told.data["id"].as_u64().unwrap());
            last = told.id;
        }
    }
    assert_eq!(seen, (2..=17).collect::<Vec<u64>>());
    Listener::open(&here, &key, Some(&last)).await.until_available("6").await;
    // What is no position of ours, or of an older store, begins anew.
    for strange in ["", "x", "1-999-1", "1-2"] {
        let mut listener = Listener::open(&here, &key, Some(strange)).await;
        assert_eq!(listener.next().await.unwrap().name, "credits", "{strange}");
    }
}

async fn a_stream_ends_with_its_key(ground: &Ground) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    let other = here.user("u", "10").await;
    let (key, id) = here.key("u").await;
    let mut listener = Listener::open(&here, &key, None).await;
    let mut stays = Listener::open(&here, &other, None).await;
    listener.next().await.unwrap();
    let revoked = elsewhere.admin(Method::DELETE, &format!("/admin/v1/users/u/keys/{id}")).send().await;
    assert!(revoked.status.is_success(), "{}", revoked.text());
    listener.ended().await;
    elsewhere.post("/api/credits/deduct", &other, json!({ "amount": 1 })).await;
    stays.until_available("9").await;
    assert_eq!(here.api(Method::GET, "/api/events", &key).begin().await.status(), StatusCode::UNAUTHORIZED);
}

async fn a_stream_ends_with_its_account_and_outlives_a_freeze(ground: &Ground) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    let key = here.user("u", "10").await;
    let mut listener = Listener::open(&here, &key, None).await;
    listener.next().await.unwrap();
    elsewhere.admin(Method::POST, "/admin/v1/users/u/freeze").send().await;
    assert_eq!(listener.of_name("notification").await.data["kind"], "account_frozen");
    elsewhere.admin(Method::DELETE, "/admin/v1/users/u/freeze").send().await;
    assert_eq!(listener.of_name("notification").await.data["kind"], "account_unfrozen");
}

#[tokio::test]
async fn streams_are_bounded_by_user_and_by_replica() {
    let mut config = settings();
    (config.notify.max_streams, config.notify.max_streams_per_user) = (3, 2);
    let (ground, _) = Ground::model(config).await;
    let rig = ground.replica();
    let (ann, bob) = (rig.user("ann", "1").await, rig.user("bob", "1").await);
    let first = Listener::open(&rig, &ann, None).await;
    let _second = Listener::open(&rig, &ann, None).await;
    let refused = rig.api(Method::GET, "/api/events", &ann).send().await;
    assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "5"));
    let _third = Listener::open(&rig, &bob, None).await;
    let full = rig.api(Method::GET, "/api/events", &bob).send().await;
    assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rig.metrics.event_streams.get(), 3);
    // Whoever leaves makes room.
    drop(first);
    let _again = Listener::open(&rig, &bob, None).await;
    assert_eq!(rig.metrics.event_streams.get(), 3);
}

/// A reader that stands still is not buffered for: it gets the latest balance, and once it has lost the notifications it
/// is ended, and resumes from the store.
#[tokio::test]
async fn a_slow_reader_is_ended_and_resumes_without_a_gap() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "100").await;
    let mut slow = Listener::open(&rig, &key, None).await;
    let first = slow.next().await.unwrap();
    let mut quick = Listener::open(&rig, &key, None).await;
    for round in 0..3 {
        for number in 0..50 {
            tell(&rig, "u", &format!("{round} {number}")).await;
        }
        for number in 1..=50 {
            assert_eq!(quick.of_name("notification").await.data["id"], round * 50 + number);
        }
    }
    slow.ended().await;
    assert_eq!(rig.metrics.event_streams_ended.with_label_values(&["slow"]).get(), 1);
    let mut again = Listener::open(&rig, &key, Some(&first.id)).await;
    for number in 1..=150 {
        assert_eq!(again.of_name("notification").await.data["id"], number);
    }
}

#[tokio::test]
async fn a_quiet_stream_gives_signs_of_life() {
    let mut config = settings();
    config.notify.keep_alive_ms = 100;
    let (ground, _) = Ground::model(config).await;
    let rig = ground.replica();
    let key = rig.user("u", "1").await;
    let mut listener = Listener::open(&rig, &key, None).await;
    assert_eq!(listener.block().await.as_deref(), Some("retry: 1000"));
    assert!(listener.block().await.unwrap().starts_with("event: credits\nid: "));
    for _ in 0..3 {
        assert_eq!(listener.block().await.as_deref(), Some(":"));
    }
}

#[tokio::test]
async fn a_replica_that_stops_ends_its_streams() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "1").await;
    let mut listener = Listener::open(&rig, &key, None).await;
    listener.next().await.unwrap();
    rig.hub.drain();
    listener.ended().await;
    drop(listener);
    assert_eq!(rig.metrics.event_streams.get(), 0);
    let refused = rig.api(Method::GET, "/api/events", &key).send().await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    eventually(std::time::Duration::from_secs(5), "counted", || async {
        (rig.metrics.event_streams_ended.with_label_values(&["drain"]).get() == 1).then_some(())
    })
    .await;
}
