//! What every call has in common: keys, errors, idempotency, lists, expansion, faults.

use serde_json::json;

use super::rig::{Rig, id};
use crate::stripe::{Fault, FaultRule, Kind};

#[tokio::test]
async fn keys_decide_the_mode_and_modes_do_not_mix() {
    let rig = Rig::start().await;
    let customer = rig.customer().await;
    for (key, status) in
        [("Bearer sk_live_x", 404), ("Bearer nonsense", 401), ("Bearer ", 401), ("Basic c2tfdGVzdF94Og==", 200)]
    {
        let answer =
            rig.send("GET", &format!("/v1/customers/{customer}"), "", &[("authorization", key)]).await.unwrap();
        assert_eq!(answer.status, status, "{key}: {}", answer.body);
    }
    let live = rig
        .send("GET", &format!("/v1/customers/{customer}"), "", &[("authorization", "Bearer sk_live_x")])
        .await
        .unwrap();
    assert!(live.body["error"]["message"].as_str().unwrap().contains("a similar object exists in test mode"));
    rig.stop().await;
}

#[tokio::test]
async fn mistakes_are_named() {
    let rig = Rig::start().await;
    let error = rig.refused(400, "POST", "/v1/customers", "emial=a@example.com").await;
    assert_eq!((&error["code"], &error["param"]), (&json!("parameter_unknown"), &json!("emial")));
    let error = rig.refused(400, "POST", "/v1/checkout/sessions", "mode=payment&success_url=http://x").await;
    assert_eq!(error["param"], "line_items");
    let error = rig.refused(404, "GET", "/v1/customers/cus_none", "").await;
    assert_eq!(error["code"], "resource_missing");
    rig.refused(404, "GET", "/v1/nothing", "").await;
    let error = rig.refused(400, "GET", "/v1/customers?expand[]=nonsense", "").await;
    assert_eq!(error["param"], "expand", "a list's own fields are expanded by data.*");
    rig.stop().await;
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_answer_and_no_second_effect() {
    let rig = Rig::start().await;
    let key = [("idempotency-key", "k1")];
    let first = rig.send("POST", "/v1/customers", "email=a@example.com&name=A", &key).await.unwrap();
    let again = rig.send("POST", "/v1/customers", "name=A&email=a@example.com", &key).await.unwrap();
    assert_eq!(
        (first.body, &again.headers["idempotent-replayed"]),
        (again.body, &http::HeaderValue::from_static("true"))
    );
    let other = rig.send("POST", "/v1/customers", "email=b@example.com", &key).await.unwrap();
    assert_eq!((other.status, &other.body["error"]["type"]), (400, &json!("idempotency_error")));
    assert_eq!(rig.control.objects(Kind::Customer).len(), 1);
    rig.control.advance_by(86_401).unwrap();
    let later = rig.send("POST", "/v1/customers", "email=b@example.com", &key).await.unwrap();
    assert_eq!(later.status, 200, "keys are forgotten after a day");
    rig.stop().await;
}

#[tokio::test]
async fn faults_happen_as_asked_and_a_retry_finds_the_effect() {
    let rig = Rig::start().await;
    let fault = |fault| {
        rig.control.fault(FaultRule { method: "POST".to_owned(), path: "/v1/customers".to_owned(), fault, times: 1 })
    };
    let key = |name: &'static str| [("idempotency-key", name)];
    fault(Fault::ResetAfter);
    assert!(rig.send("POST", "/v1/customers", "name=A", &key("a")).await.is_err());
    assert_eq!(rig.control.objects(Kind::Customer).len(), 1);
    let retried = rig.send("POST", "/v1/customers", "name=A", &key("a")).await.unwrap();
    assert_eq!(id(&retried.body), id(&rig.control.objects(Kind::Customer)[0]));
    fault(Fault::ErrorAfter);
    for _ in 0..2 {
        let answer = rig.send("POST", "/v1/customers", "name=B", &key("b")).await.unwrap();
        assert_eq!(answer.status, 500, "a 500 is replayed too");
    }
    assert_eq!(rig.control.objects(Kind::Customer).len(), 2);
    fault(Fault::RateLimit);
    assert_eq!(rig.send("POST", "/v1/customers", "name=C", &key("c")).await.unwrap().status, 429);
    assert_eq!(rig.send("POST", "/v1/customers", "name=C", &key("c")).await.unwrap().status, 200);
    fault(Fault::ResetBefore);
    assert!(rig.send("POST", "/v1/customers", "name=D", &key("d")).await.is_err());
    assert_eq!(rig.control.objects(Kind::Customer).len(), 3);
    assert_eq!(rig.control.requests().last().unwrap().idempotency_key.as_deref(), Some("d"));
    rig.stop().await;
}

#[tokio::test]
async fn lists_are_paged_newest_first() {
    let rig = Rig::start().await;
    for _ in 0..5 {
        rig.customer().await;
    }
    let ids: Vec<String> = rig.control.objects(Kind::Customer).iter().rev().map(id).collect();
    let first = rig.get("/v1/customers?limit=2").await;
    assert_eq!((id(&first["data"][0]), &first["has_more"]), (ids[0].clone(), &json!(true)));
    let rest = rig.get(&format!("/v1/customers?limit=3&starting_after={}", ids[1])).await;
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (3, &json!(false)));
    let back = rig.get(&format!("/v1/customers?limit=1&ending_before={}", ids[2])).await;
    assert_eq!((id(&back["data"][0]), &back["has_more"]), (ids[1].clone(), &json!(true)));
    rig.refused(400, "GET", "/v1/customers?limit=101", "").await;
    rig.stop().await;
}

#[tokio::test]
async fn an_invoice_shows_ten_lines_and_lists_the_rest() {
    let rig = Rig::start().await;
    let customer = rig.customer().await;
    rig.control.change_card(&customer, "pm_card_visa").unwrap();
    let mut form = format!("customer={customer}");
    for at in 0..12 {
        let spec = crate::stripe::PriceSpec {
            id: Some(format!("price_{at}")),
            product_name: "seat".to_owned(),
            unit_amount: 100,
            currency: "usd".to_owned(),
            interval: Some("month".to_owned()),
            live: false,
        };
        form += &format!("&items[{at}][price]={}", rig.control.price(&spec));
    }
    let made = rig.post("/v1/subscriptions", &format!("{form}&expand[]=latest_invoice")).await;
    let invoice = &made["latest_invoice"];
    assert_eq!(
        (invoice["lines"]["data"].as_array().unwrap().len(), &invoice["lines"]["has_more"], &invoice["total"]),
        (10, &json!(true), &json!(1_200))
    );
    let lines = rig.get(&format!("/v1/invoices/{}/lines?limit=100", id(invoice))).await;
    assert_eq!(lines["data"].as_array().unwrap().len(), 12);
    rig.stop().await;
}

#[tokio::test]
async fn an_old_version_gets_the_old_shape() {
    let rig = Rig::start().await;
    let (_, subscription) = rig.subscribe("price_small", "").await;
    let path = format!("/v1/subscriptions/{subscription}?expand[]=latest_invoice");
    let old = rig.send("GET", &path, "", &[("stripe-version", "2023-10-16")]).await.unwrap().body;
    assert!(old["current_period_end"].is_i64() && old["items"]["data"][0].get("current_period_end").is_none());
    let invoice = rig
        .send("GET", &format!("/v1/invoices/{}", id(&old["latest_invoice"])), "", &[("stripe-version", "2023-10-16")])
        .await
        .unwrap()
        .body;
    assert_eq!((&invoice["subscription"], &invoice["paid"]), (&json!(subscription), &json!(true)));
    assert!(invoice.get("parent").is_none() && invoice["lines"]["data"][0]["price"]["id"] == "price_small");
    rig.stop().await;
}
