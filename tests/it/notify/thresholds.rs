//! Warnings about the balance: each once, under concurrent spending over two replicas, and again after new credits.

use std::time::Duration;

use faregate::ledger::AccountId;
use faregate::store::PageRequest;
use http::{Method, StatusCode};
use serde_json::json;

use super::on_both;
use crate::api::rig::{Ground, Rig};
use crate::support::eventually;

on_both!(each_threshold_is_told_once_under_concurrent_spending);

/// Spends so often an amount, over both replicas at once.
async fn spend(replicas: &[&Rig; 2], key: &str, times: usize, amount: f64) {
    let spending = (0..times).map(|number| {
        let rig = replicas[number % 2];
        async move { rig.post("/api/credits/deduct", key, json!({ "amount": amount })).await.status }
    });
    let done = futures_util::future::join_all(spending).await;
    assert!(done.iter().all(|status| *status == StatusCode::OK), "{done:?}");
}

/// The kinds of all notifications, oldest first.
async fn kinds(rig: &Rig, user: &str) -> Vec<String> {
    let user = AccountId::parse(user).unwrap();
    let page = rig.store.notifications(&user, false, PageRequest::default()).await.unwrap();
    page.data.into_iter().rev().map(|row| row.kind).collect()
}

/// Until everything that was spent is in the store, then what was told.
async fn told(rig: &Rig, user: &str, rows: usize) -> Vec<String> {
    let path = format!("/admin/v1/users/{user}/usage?limit=500");
    eventually(Duration::from_secs(20), "all usage is in the store", || async {
        let usage = rig.admin(Method::GET, &path).send().await.json();
        (usage["data"].as_array().unwrap().len() == rows).then_some(())
    })
    .await;
    kinds(rig, user).await
}

/// Issue 5: thresholds fire once each under concurrent spending, and again after a refill.
async fn each_threshold_is_told_once_under_concurrent_spending(ground: &Ground) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    let both = [&here, &elsewhere];
    let key = here.user("u", "10").await;
    spend(&both, &key, 32, 0.25).await;
    assert_eq!(told(&here, "u", 32).await, [""; 0], "2 is not below 2");
    // Several flushes below the threshold: the first one tells.
    for rows in [34, 36, 38] {
        spend(&both, &key, 2, 0.25).await;
        assert_eq!(told(&here, "u", rows).await, ["credits_low"]);
    }
    spend(&both, &key, 2, 0.25).await;
    assert_eq!(told(&here, "u", 40).await, ["credits_low", "credits_exhausted"]);
    let again = here.post("/api/credits/deduct", &key, json!({ "amount": 0.25 })).await;
    assert_eq!(again.status, StatusCode::PAYMENT_REQUIRED);
    let grant = async |amount: u32| {
        let body = json!({ "amount": amount });
        let granted = here.admin(Method::POST, "/admin/v1/users/u/grants").json(&body).send().await;
        assert_eq!(granted.status, StatusCode::CREATED, "{}", granted.text());
    };
    grant(1).await;
    spend(&both, &key, 4, 0.25).await;
    assert_eq!(
        told(&here, "u", 44).await,
        ["credits_low", "credits_exhausted", "credits_exhausted"],
        "little came, which was low from the beginning"
    );
    grant(5).await;
    spend(&both, &key, 16, 0.25).await;
    let expected = ["credits_low", "credits_exhausted", "credits_exhausted", "credits_low"];
    assert_eq!(told(&here, "u", 60).await, expected);
    let user = AccountId::parse("u").unwrap();
    let newest = here.store.notifications(&user, false, PageRequest { limit: 1, cursor: None }).await.unwrap();
    assert_eq!(newest.data[0].data, r#"{"balance":1,"threshold":2}"#);
}
