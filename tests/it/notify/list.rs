//! GET and PATCH /api/notifications.

use faregate::ledger::AccountId;
use faregate::store::notifications::{Notice, NoticeKind};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::api::rig::{Ground, Rig, settings};

const PATH: &str = "/api/notifications";

async fn tell(rig: &Rig, user: &str, key: &str) {
    let (user, data) = (AccountId::parse(user).unwrap(), json!({ "key": key }));
    let notice = Notice { user, kind: NoticeKind::PaymentFailed, data, dedupe_key: key.to_owned() };
    assert!(rig.store.notify(notice).await.unwrap());
}

async fn list(rig: &Rig, key: &str, query: &str) -> Value {
    let answer = rig.api(Method::GET, &format!("{PATH}{query}"), key).send().await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()
}

async fn mark(rig: &Rig, key: &str, body: Value) -> (StatusCode, Value) {
    let answer = rig.api(Method::PATCH, PATH, key).json(&body).send().await;
    (answer.status, answer.json())
}

fn ids(page: &Value) -> Vec<u64> {
    page["data"].as_array().unwrap().iter().map(|row| row["id"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn notifications_are_listed_and_marked_by_their_own_user_only() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let (ann, bob) = (rig.user("ann", "0").await, rig.user("bob", "0").await);
    for key in ["a", "b", "c"] {
        tell(&rig, "ann", key).await;
    }
    let page = list(&rig, &ann, "?limit=2").await;
    assert_eq!(ids(&page), [3, 2]);
    let first = &page["data"][0];
    let told = (&first["kind"], &first["data"], &first["read_at"]);
    assert_eq!(told, (&json!("payment_failed"), &json!({ "key": "c" }), &Value::Null));
    assert!(first["created_at"].as_str().unwrap().ends_with('Z'));
    let next = page["next"].as_str().unwrap();
    let rest = list(&rig, &ann, &format!("?limit=2&cursor={next}")).await;
    assert_eq!((ids(&rest), &rest["next"]), (vec![1], &Value::Null));
    assert_eq!(ids(&list(&rig, &bob, "").await), [0; 0]);
    assert_eq!(mark(&rig, &bob, json!({ "ids": [1, 2], "read": true })).await.1, json!({ "updated": 0 }));
    assert_eq!(mark(&rig, &ann, json!({ "ids": [2, 99], "read": true })).await.1, json!({ "updated": 1 }));
    assert_eq!(ids(&list(&rig, &ann, "?unread=true").await), [3, 1]);
    assert!(list(&rig, &ann, "").await["data"][1]["read_at"].is_string());
    assert_eq!(mark(&rig, &ann, json!({ "all": true, "read": true })).await.1, json!({ "updated": 2 }));
    assert_eq!(ids(&list(&rig, &ann, "?unread=true").await), [0; 0]);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "0").await;
    let many: Vec<u64> = (1..=501).collect();
    let wrong = [
        json!({ "read": true }),
        json!({ "ids": [1] }),
        json!({ "ids": [1], "read": false }),
        json!({ "ids": [1], "all": true, "read": true }),
        json!({ "ids": ["x"], "read": true }),
        json!({ "ids": many, "read": true }),
        json!({ "all": true, "read": true, "more": 1 }),
    ];
    for body in wrong {
        assert_eq!(mark(&rig, &key, body.clone()).await.0, StatusCode::BAD_REQUEST, "{body}");
    }
    for query in ["?limit=0", "?limit=501", "?unread=maybe", "?cursor=%21", "?since=1"] {
        let answer = rig.api(Method::GET, &format!("{PATH}{query}"), &key).send().await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
    }
    assert_eq!(rig.api(Method::GET, PATH, "").send().await.status, StatusCode::UNAUTHORIZED);
}
