//! Deliveries: signed or not, twice, out of order, lost, and while the gateway dies.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use faregate_sim::stripe::{Order, signature_header};
use futures_util::StreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::{CARD, SECRET, SOON, Shop, over_both};
use crate::support::eventually;
use crate::support::process::signal_pid;

over_both!(the_order_of_deliveries_does_not_matter);

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
    let metrics = shop.admin(Method::GET, "/metrics", None).await.text();
    for (result, count) in [("wrong", 2), ("stale", 1), ("stored", 0)] {
        let line = format!("faregate_billing_webhooks_total{{result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
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
async fn the_order_of_deliveries_does_not_matter(shop: Shop) {
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

/// Answers, for each, whether it was taken.
async fn send(shop: &Shop, numbers: Vec<usize>, mut sent: impl FnMut(usize, bool)) {
    const AT_ONCE: usize = 32;
    let requests = numbers.into_iter().map(|number| {
        let text = body(&format!("evt_{number}"), "customer.created");
        (number, delivery(shop, SECRET, now(), &text, &text))
    });
    let calls = requests.map(|(number, request)| async move {
        let call = tokio::time::timeout(Duration::from_secs(10), shop.faregate.http.try_call(request)).await;
        (number, call.is_ok_and(|call| call.is_ok_and(|answer| answer.status == StatusCode::OK)))
    });
    let mut calls = std::pin::pin!(futures_util::stream::iter(calls.collect::<Vec<_>>()).buffer_unordered(AT_ONCE));
    while let Some((number, taken)) = calls.next().await {
        sent(number, taken);
    }
}

/// What was acknowledged is there, whatever dies; what was not is sent again, as Stripe does.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_events_none_is_lost_when_the_gateway_dies_amid_them() {
    const EVENTS: usize = 1_000;
    let mut shop = Shop::start();
    let (mut acknowledged, mut left) = (Vec::new(), Vec::new());
    let pid = shop.faregate.pid();
    send(&shop, (0..EVENTS).collect(), |number, taken| {
        if taken {
            acknowledged.push(number)
        } else {
            left.push(number)
        }
        if acknowledged.len() == EVENTS / 3 && left.is_empty() {
            signal_pid(pid, "KILL");
        }
    })
    .await;
    assert!(!acknowledged.is_empty() && !left.is_empty(), "{} were taken", acknowledged.len());
    shop.faregate.kill9();
    shop.faregate.restart();
    for number in &acknowledged {
        let found = shop.admin(Method::GET, &format!("/admin/v1/events/evt_{number}"), None).await;
        assert_eq!(found.status, StatusCode::OK, "evt_{number}");
    }
    send(&shop, left, |number, taken| assert!(taken, "evt_{number}")).await;
    eventually(SOON, "all are worked off", || async {
        let pending = shop.admin(Method::GET, "/admin/v1/events?state=pending&limit=500", None).await.json();
        let pending = pending["data"].as_array().unwrap();
        // What the dead process was at comes back when its lease ends: here at once.
        for event in pending.iter().filter(|_| pending.len() <= 8) {
            let path = format!("/admin/v1/events/{}/replay", event["id"].as_str().unwrap());
            shop.admin(Method::POST, &path, None).await;
        }
        pending.is_empty().then_some(())
    })
    .await;
    let mut cursor = String::new();
    let mut ignored = 0;
    loop {
        let path = format!("/admin/v1/events?state=ignored&limit=500{cursor}");
        let page = shop.admin(Method::GET, &path, None).await.json();
        ignored += page["data"].as_array().unwrap().len();
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={}", next.replace(' ', "%20"));
    }
    assert_eq!(ignored, EVENTS);
}

/// `make bench-webhooks`: how long an answer to a webhook takes, from a burst of a thousand.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn bench_time_to_answer() {
    const EVENTS: usize = 1_000;
    let shop = Shop::start();
    let mut times = Vec::new();
    for number in 0..EVENTS {
        let text = body(&format!("evt_one_{number}"), "customer.created");
        let begun = std::time::Instant::now();
        let answer = shop.faregate.http.call(delivery(&shop, SECRET, now(), &text, &text)).await;
        assert_eq!(answer.status, StatusCode::OK);
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let begun = std::time::Instant::now();
    let mut taken = 0;
    send(&shop, (0..EVENTS).collect(), |_, ok| taken += usize::from(ok)).await;
    let burst = begun.elapsed();
    assert_eq!(taken, EVENTS);
    println!(
        "webhooks, stored and answered: median {:.2} ms, 99th percentile {:.2} ms one after the other; {EVENTS} by 32 at a \
         time in {:.0} ms ({:.0} a second)",
        times[EVENTS / 2].as_secs_f64() * 1e3,
        times[EVENTS * 99 / 100].as_secs_f64() * 1e3,
        burst.as_secs_f64() * 1e3,
        EVENTS as f64 / burst.as_secs_f64()
    );
}
