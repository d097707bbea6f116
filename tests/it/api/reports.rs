//! Usage, added up.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::rig::Ground;
use crate::support::eventually;

pub(super) async fn usage_is_reported_by_what_is_asked(ground: &Ground) {
    let rig = ground.replica();
    let (ann, bob) = (rig.user("ann", "10").await, rig.user("bob", "10").await);
    for (key, amount) in [(&ann, "0.1"), (&ann, "0.2"), (&bob, "3")] {
        let body = format!("{{\"amount\": {amount}}}");
        let charged = rig.api(Method::POST, "/api/credits/deduct", key).body("application/json", body).send().await;
        assert_eq!(charged.status, StatusCode::OK, "{}", charged.text());
    }
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().to_string();
    // The flush follows within a moment.
    let own = eventually(Duration::from_secs(10), "ann's usage is reported", || async {
        let report = rig.api(Method::GET, "/api/usage?group_by=day,route", &ann).send().await;
        assert_eq!(report.status, StatusCode::OK, "{}", report.text());
        (report.json()["data"][0]["requests"] == 2).then_some(report)
    })
    .await;
    let text = own.text();
    assert!(text.contains("\"credits\":0.3,"), "exactly: {text}");
    let row = own.json()["data"][0].clone();
    // A test that runs into midnight sees yesterday.
    assert!(row["day"].as_str().unwrap() <= today.as_str() && row["route"] == "api" && row.get("model").is_none());
    assert_eq!((&row["errors"], &row["estimated"]), (&json!({"4xx": 0, "5xx": 0}), &json!(0)));
    assert_eq!((&own.json()["next"], &own.json()["complete"]), (&Value::Null, &json!(true)));

    let report = async |query: &str| rig.admin(Method::GET, &format!("/admin/v1/usage{query}")).send().await;
    eventually(Duration::from_secs(10), "bob's usage is reported", || async {
        let all = report("?group_by=user").await.json();
        let users: Vec<(&str, String)> = all["data"].as_array().unwrap().iter().map(of_user).collect();
        (users == [("ann", "0.3".to_owned()), ("bob", "3".to_owned())]).then_some(())
    })
    .await;
    let of_bob = report("?user=bob").await.json();
    assert_eq!((of_bob["data"].as_array().unwrap().len(), &of_bob["data"][0]["requests"]), (1, &json!(1)));
    assert_eq!(report("?plan=pro").await.json()["data"], json!([]));
    assert_eq!(report("?group_by=model&plan=none").await.json()["data"][0]["model"], Value::Null);
    assert_eq!(report("?from=2099-01-01T00:00:00Z&to=2099-02-01").await.json()["data"], json!([]));
    let page = report("?group_by=user&limit=1").await.json();
    let next = format!("?group_by=user&limit=1&cursor={}", page["next"].as_str().unwrap());
    assert_eq!(report(&next).await.json()["data"][0]["user"], "bob");
    let of_user = rig.admin(Method::GET, "/admin/v1/users/bob/usage?group_by=key").send().await.json();
    assert_eq!(of_user["data"][0]["requests"], 1);

    for bad in ["?group_by=user,nobody", "?from=2026-01-01T10:00:00Z", "?limit=0", "?cursor=x", "?group=day"] {
        assert_eq!(report(bad).await.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    assert_eq!(report("?user=nobody").await.status, StatusCode::NOT_FOUND);
    for bad in ["group_by=user", "group_by=day&user=bob", "group_by=day&plan=none", "group_by=", "limit=501"] {
        let answer = rig.api(Method::GET, &format!("/api/usage?{bad}"), &ann).send().await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let rows = rig.api(Method::GET, "/api/usage?limit=1", &ann).send().await.json();
    assert!(rows["data"][0]["request_id"].is_string() && rows["next"].is_string(), "the list of rows is as before");
}

fn of_user(row: &Value) -> (&str, String) {
    (row["user"].as_str().unwrap(), row["credits"].to_string())
}
