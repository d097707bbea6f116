//! Deliveries: signed or not, twice, out of order, lost, and while the gateway dies.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use faregate_sim::stripe::{Order, signature_header};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::{CARD, SECRET, SOON, Shop};
use crate::support::eventually;

fn body(id: &str, kind: &str) -> String {
    json!({
        "id": id, "object": "event", "type": kind, "created": 1_700_000_000, "livemode": false,
        "data": {"object": {"id": "in_none", "object": "invoice"}},
    })
    .to_string()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn delivery(shop: &Shop, secret: &str, at: i64, signed: &str, sent: &str) -> Request<Full<Bytes>> {
    let header = signature_header(&[secret.to_owned()], at, signed.as_bytes());
    Request::builder()
        .method(Method::POST)
        .uri(shop.faregate.url("/api/billing/webhook"))
        .header("stripe-signature", header)
        .header("content-type", "application/json")
        .body(Full::from(sent.to_owned()))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_stripe_signed_is_taken() {
    let shop = Shop::start();
    let good = body("evt_good", "customer.created");
    let send = |request| shop.faregate.http.call(request);
    for (secret, at, sent) in [
        ("whsec_other", now(), good.as_str()),
        (SECRET, now() - 400, good.as_str()),
        (SECRET, now(), "{\"id\":\"evt_bad\",\"type\":\"invoice.paid\"}"),
    ] {
        assert_eq!(send(delivery(&shop, secret, at, &good, sent)).await.status, StatusCode::BAD_REQUEST);
    }
    let events = shop.admin(Method::GET, "/admin/v1/events", None).await.json();
    assert_eq!(events["data"], json!([]));
    // The secret that comes next counts already.
    for secret in [SECRET, "whsec_next"] {
        assert_eq!(send(delivery(&shop, secret, now(), &good, &good)).await.status, StatusCode::OK);
    }
    let ignored = eventually(SOON, "it is looked at", || async {
        let event = shop.admin(Method::GET, "/admin/v1/events/evt_good", None).await.json();
        (event["state"] == "ignored").then_some(event)
    })
    .await;
    assert_eq!(ignored["payload"]["id"], "evt_good");
    let live = good.replace("\"livemode\":false", "\"livemode\":true").replace("evt_good", "evt_live");
    assert_eq!(send(delivery(&shop, SECRET, now(), &live, &live)).await.status, StatusCode::OK);
    let parked = shop.admin(Method::GET, "/admin/v1/events?state=parked", None).await.json();
    assert_eq!((&parked["data"][0]["id"], parked["data"].as_array().unwrap().len()), (&json!("evt_live"), 1));
}

/// failures 30, 33: in any order, and after the fact.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_deliveries_does_not_matter() {
    let shop = Shop::open().await;
    for (seed, credits) in [(1, 100), (2, 200), (3, 1_200)] {
        shop.stripe.hold_webhooks();
        let order = if seed < 3 { json!({"pack": "small"}) } else { json!({"plan": "pro"}) };
        let session = shop.checkout(order).await;
        shop.stripe.complete_checkout(&session, CARD).unwrap();
        shop.stripe.release_webhooks(if seed == 2 { Order::Reversed } else { Order::Shuffled(seed) });
        shop.has(credits).await;
    }
    assert!(shop.stripe.delivered(SOON).await);
    eventually(SOON, "nothing is left pending", || async {
        let left = shop.admin(Method::GET, "/admin/v1/events?state=pending", None).await.json();
        (left["data"] == json!([])).then_some(())
    })
    .await;
    let parked = shop.admin(Method::GET, "/admin/v1/events?state=parked", None).await.json();
    assert_eq!(parked["data"], json!([]));
    shop.has(1_200).await;
    // Once more, by hand.
    let events = shop.admin(Method::GET, "/admin/v1/events?state=processed&limit=500", None).await.json();
    for event in events["data"].as_array().unwrap() {
        let path = format!("/admin/v1/events/{}/replay", event["id"].as_str().unwrap());
        assert_eq!(shop.admin(Method::POST, &path, None).await.status, StatusCode::OK);
    }
    eventually(SOON, "all are processed again", || async {
        let left = shop.admin(Method::GET, "/admin/v1/events?state=pending", None).await.json();
        (left["data"] == json!([])).then_some(())
    })
    .await;
    shop.has(1_200).await;
}

/// What was acknowledged is there, whatever dies.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_event_is_lost_when_the_gateway_dies() {
    const EVENTS: usize = 200;
    let mut shop = Shop::start();
    let sending = (0..EVENTS).map(|number| {
        let text = body(&format!("evt_{number}"), "customer.created");
        let request = delivery(&shop, SECRET, now(), &text, &text);
        let http = shop.faregate.http.clone();
        tokio::spawn(async move {
            tokio::time::timeout(Duration::from_secs(10), http.try_call(request))
                .await
                .is_ok_and(|sent| sent.is_ok_and(|answer| answer.status == StatusCode::OK))
        })
    });
    let sending: Vec<_> = sending.collect();
    let metrics = format!("http://{}/metrics", shop.faregate.admin_addr());
    eventually(SOON, "some are stored", || async {
        let told = shop.faregate.http.try_call(crate::support::http::request(Method::GET, &metrics, "", None)).await;
        told.is_ok_and(|told| told.text().contains("billing_webhooks_total{result=\"stored\"}")).then_some(())
    })
    .await;
    shop.faregate.kill9();
    let mut acknowledged = Vec::new();
    for (number, sent) in sending.into_iter().enumerate() {
        if sent.await.unwrap() {
            acknowledged.push(number);
        }
    }
    shop.faregate.restart();
    assert!(!acknowledged.is_empty());
    for number in acknowledged {
        let found = shop.admin(Method::GET, &format!("/admin/v1/events/evt_{number}"), None).await;
        assert_eq!(found.status, StatusCode::OK, "evt_{number}");
    }
}
